"""seamfast reads no pickle and runs no code from files: not in any test, and not by its source. Both watches go red."""

from __future__ import annotations

import ast
import io
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "seamfast"


# While tests run.


def planted(source: str, name: str = "seamfast.planted") -> types.ModuleType:
    """A module of that name, as if it lay in the package."""
    module = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(2)}, path)
    return path


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    return path


def trips(source: str, path: Path, tripwire: list[str], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"^seamfast\.planted:\d+ reaches {message}$"):
        planted(source).read(path)
    assert len(tripwire) == 1
    tripwire.clear()  # or this very test would fail


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ndef read(path): return torch.load(path)",
        "import torch\ndef read(path): return torch.load(path, weights_only=False)",
        "import torch\ndef read(path): return torch.load(path, weights_only=1)",
        "from torch import load\ndef read(path): return load(path)",
        "from torch.serialization import load\ndef read(path): return load(path)",
        "import torch\ndef read(path): return (lambda *a: torch.load(*a))(path)",
    ],
)
def test_loading_by_torch_trips(source: str, saved: Path, tripwire: list[str]) -> None:
    trips(source, saved, tripwire, r"torch\.load")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import io, pickle\ndef read(path): return pickle.load(io.BytesIO(path.read_bytes()))", "pickle.load"),
        ("import pickle\ndef read(path): return pickle.loads(path.read_bytes())", "pickle.loads"),
        ("from pickle import loads\ndef read(path): return loads(path.read_bytes())", "pickle.loads"),
        ("import _pickle\ndef read(path): return _pickle.loads(path.read_bytes())", "pickle.loads"),
        (
            "import io, pickle\ndef read(path): return pickle.Unpickler(io.BytesIO(path.read_bytes())).load()",
            "pickle.Unpickler",
        ),
        (
            "import io, pickle\nclass Mine(pickle.Unpickler): pass\n"
            "def read(path): return Mine(io.BytesIO(path.read_bytes())).load()",
            "pickle.Unpickler",
        ),
    ],
)
def test_unpickling_trips(source: str, message: str, pickled: Path, tripwire: list[str]) -> None:
    trips(source, pickled, tripwire, message)


def test_unpickling_through_numpy_trips(tmp_path: Path, tripwire: list[str]) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.array([None, {}], dtype=object), allow_pickle=True)
    trips("import numpy\ndef read(path): return numpy.load(path, allow_pickle=True)", path, tripwire, "pickle.load")


def test_what_others_do_does_not_trip(saved: Path, pickled: Path, tripwire: list[str]) -> None:
    source = "import torch\ndef read(path): return torch.load(path, weights_only=True)"
    assert list(planted(source).read(saved)) == ["w"]
    for load in (partial(torch.load, weights_only=False), partial(torch.load, weights_only=True)):
        assert list(load(saved)) == ["w"]
    content = pickled.read_bytes()
    assert pickle.loads(content) == pickle.Unpickler(io.BytesIO(content)).load() == [1, 2]  # noqa: S301
    queue: multiprocessing.SimpleQueue[list[int]] = multiprocessing.get_context("spawn").SimpleQueue()
    assert planted("def read(queue):\n  queue.put([1, 2])\n  return queue.get()").read(queue) == [1, 2]
    assert tripwire == []


PLANTED_TEST = """
import sys, types
import pytest

def swallowing(data):
    module = types.ModuleType("seamfast.planted")
    read = "import pickle\\ndef read(data):\\n  try: return pickle.loads(data)\\n  except BaseException: pass"
    exec(read, module.__dict__)
    return module.read(data)

@pytest.fixture(scope="module")
def early():
    return swallowing(b"N.")

def test_that_swallows():
    assert swallowing(b"N.") is None

def test_whose_fixture_swallows(early):
    pass

def test_that_does_nothing_wrong():
    pass
"""


def test_test_that_reaches_a_pickle_fails_even_if_it_swallows_the_error(tmp_path: Path) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_planted.py").write_text(PLANTED_TEST)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "-p", "no:cacheprovider", "-rA", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    said = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith(("PASSED", "ERROR", "FAILED"))]
    found = {(line.split()[0], line.split("::")[1]) for line in said if "::" in line}
    assert ("ERROR", "test_that_swallows") in found, done.stdout
    assert ("ERROR", "test_whose_fixture_swallows") in found
    assert ("PASSED", "test_that_does_nothing_wrong") in found
    assert ("ERROR", "test_that_does_nothing_wrong") not in found
    assert "seamfast.planted:3 reaches pickle.loads" in done.stdout


# In the source.

READERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN = {"torch.hub", "torch.jit.load", "torch.package", "yaml.load", "yaml.unsafe_load", "numpy.load"}
RUNNING = {"eval", "exec"}
ONE_PLACE = "intake/_pickle_child.py"  # the one that may call torch.load, if with weights_only=True
ONLY = {"weights_only": True, "trust_remote_code": False}  # keywords that have one literal value, wherever they occur


def complaints(package: Path) -> list[str]:
    """Every name in the source of ``package`` that could read a pickle or run what a file says, a line each."""
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        for line, what in _names(ast.parse(path.read_text(encoding="utf-8"))):
            if what != "torch.load" or place != ONE_PLACE:
                found.append(f"{place}:{line}: {what}")
    return sorted(found)


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    meaning: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(alias.name, node.lineno)
                meaning[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            yield from _module(node.module or "", node.lineno)
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                meaning[alias.asname or alias.name] = whole
                yield from _module(whole, node.lineno)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            first, *rest = _dotted(node).split(".")
            name = ".".join([meaning.get(first, first), *rest]).removeprefix("builtins.")
            if (
                name in {*RUNNING, *FORBIDDEN, "torch.load", "torch.serialization.load"}
                or name.split(".")[0] in READERS
            ):
                yield node.lineno, name.replace("serialization.", "")
        elif isinstance(node, ast.Call):
            called = _dotted(node.func).split(".")[-1]
            if _dotted(node.func) == "torch.load" and not any(k.arg == "weights_only" for k in node.keywords):
                yield node.lineno, "torch.load without weights_only"
            words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if called in ("import_module", "__import__", "getattr"):
                for word in words:
                    yield from _module(word, node.lineno)
                    if called == "getattr" and word in {*RUNNING, "load", "hub"}:
                        yield node.lineno, f"getattr of {word}"
        if isinstance(node, ast.keyword) and node.arg in ONLY:
            literal = isinstance(node.value, ast.Constant) and node.value.value is ONLY[node.arg]
            if not literal:
                yield node.value.lineno, f"{node.arg}={ast.unparse(node.value)}"


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute of a name; nothing where it begins otherwise."""
    if isinstance(node, ast.Name):
        return node.id
    inner = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def _module(name: str, line: int) -> Iterator[tuple[int, str]]:
    if name.split(".")[0] in READERS or any(f"{name}.".startswith(f"{bad}.") for bad in FORBIDDEN):
        yield line, name


def test_source_names_nothing_that_unpickles_or_runs() -> None:
    assert complaints(PACKAGE) == []


def test_one_place_is_there() -> None:
    text = (PACKAGE / ONE_PLACE).read_text(encoding="utf-8")
    assert "torch.load(archive, weights_only=True" in text


@pytest.mark.parametrize(
    ("place", "source", "complaint"),
    [
        ("a.py", "import pickle", "a.py:1: pickle"),
        ("a.py", "import pickle as p", "a.py:1: pickle"),
        ("a.py", "from pickle import loads as l", "a.py:1: pickle.loads"),
        ("a.py", "def f():\n  import _pickle", "a.py:2: _pickle"),
        ("intake/pickles.py", "import pickle", "intake/pickles.py:1: pickle"),
        (ONE_PLACE, "import pickle", f"{ONE_PLACE}:1: pickle"),
        ("a.py", "import marshal", "a.py:1: marshal"),
        ("a.py", "import shelve", "a.py:1: shelve"),
        ("a.py", "from dill import load", "a.py:1: dill"),
        ("a.py", "import cloudpickle", "a.py:1: cloudpickle"),
        ("a.py", "import importlib\nimportlib.import_module('pickle')", "a.py:2: pickle"),
        ("a.py", "__import__('marshal')", "a.py:1: marshal"),
        ("a.py", "eval('1')", "a.py:1: eval"),
        ("a.py", "run = exec", "a.py:1: exec"),
        ("a.py", "import builtins\nbuiltins.eval('1')", "a.py:2: eval"),
        ("a.py", "from builtins import exec as run\nrun('1')", "a.py:2: exec"),
        ("a.py", "getattr(__builtins__, 'eval')", "a.py:1: getattr of eval"),
        ("a.py", "import torch\ntorch.hub.load('a', 'b')", "a.py:2: torch.hub"),
        ("a.py", "from torch import hub", "a.py:1: torch.hub"),
        ("a.py", "import torch\ntorch.jit.load('a')", "a.py:2: torch.jit.load"),
        ("a.py", "import torch as t\nt.load('a', weights_only=True)", "a.py:2: torch.load"),
        ("a.py", "from torch import load\nload('a', weights_only=True)", "a.py:2: torch.load"),
        ("a.py", "import torch\ngetattr(torch, 'load')('a')", "a.py:2: getattr of load"),
        (ONE_PLACE, "import torch\ntorch.load('a')", f"{ONE_PLACE}:2: torch.load without weights_only"),
        (ONE_PLACE, "import torch\ntorch.load('a', weights_only=False)", f"{ONE_PLACE}:2: weights_only=False"),
        (ONE_PLACE, "import torch\nx = 1\ntorch.load('a', weights_only=x)", f"{ONE_PLACE}:3: weights_only=x"),
        ("a.py", "f(weights_only=False)", "a.py:1: weights_only=False"),
        ("a.py", "f(trust_remote_code=True)", "a.py:1: trust_remote_code=True"),
        ("a.py", "def g(x): f(trust_remote_code=x)", "a.py:1: trust_remote_code=x"),
        ("a.py", "import yaml\nyaml.load('a')", "a.py:2: yaml.load"),
        ("a.py", "import numpy as np\nnp.load('a', allow_pickle=True)", "a.py:2: numpy.load"),
    ],
)
def test_broken_rule_is_complained_of(place: str, source: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "intake").mkdir()
    (tmp_path / place).write_text(source + "\n", encoding="utf-8")
    assert complaint in complaints(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        '"""Never pickle, eval or exec."""',
        "def f(model, kind='pickle'): return model.eval()",
        "import ast\nast.literal_eval('1')",
        "import pickletools",
        "f(trust_remote_code=False)",
        "def f(file): return file.load()",
    ],
)
def test_kept_rule_is_not_complained_of(source: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(source + "\n", encoding="utf-8")
    assert complaints(tmp_path) == []
