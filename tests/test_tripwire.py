"""seamfast reads no pickle while tests run, and its source names what no linter reports. Both watches go red."""

from __future__ import annotations

import ast
import io
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import types
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


# In the source, beside what ruff and import-linter report (test_architecture.py).

RUNNING = {"eval", "exec", "__import__", "breakpoint", "input", "print"}
ONLY = {"weights_only": "True", "trust_remote_code": "False"}  # the one literal that each keyword may have


def complaints(source: str) -> list[str]:
    """Builtins that run code or print, under any name; ``getattr`` of what loads; loading keywords of other values."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in RUNNING:
            found.append(node.id)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "compile":  # which is an argument elsewhere
            found.append("compile")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            words = {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
            found += [f"getattr of {word}" for word in words & {*RUNNING, "load", "hub"}]
        elif isinstance(node, ast.keyword) and node.arg in ONLY and ast.unparse(node.value) != ONLY[node.arg]:
            found.append(f"{node.arg}={ast.unparse(node.value)}")
    return found


def test_source_names_nothing_that_runs_code() -> None:
    found = {path: set(complaints(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py")}
    printing = {PACKAGE / name: {"print"} for name in ("cli.py", "terminal.py")}
    assert {path: names for path, names in found.items() if names} == printing


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("eval('1')", "eval"),
        ("run = exec", "exec"),
        ("say = print", "print"),
        ("compile('1', '', 'eval')", "compile"),
        ("__import__('marshal')", "__import__"),
        ("getattr(__builtins__, 'eval')", "getattr of eval"),
        ("getattr(torch, 'load', None)('a')", "getattr of load"),
        ("torch.load('a', weights_only=False)", "weights_only=False"),
        ("torch.load('a', weights_only=x)", "weights_only=x"),
        ("f(trust_remote_code=True)", "trust_remote_code=True"),
        ("def g(x): f(trust_remote_code=x)", "trust_remote_code=x"),
    ],
)
def test_broken_rule_is_complained_of(source: str, complaint: str) -> None:
    assert complaints(source) == [complaint]


@pytest.mark.parametrize(
    "source",
    [
        "'eval'",
        "model.eval()",
        "re.compile('x')",
        "def f(compile): return compile",
        "f(trust_remote_code=False)",
        "getattr(x, 'loads')",
    ],
)
def test_kept_rule_is_not_complained_of(source: str) -> None:
    assert complaints(source) == []
