"""The rules of docs/architecture.md, held against the source: who may import whom, and what no module may do."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest

import seamfast

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "seamfast"

# Upwards: a part may import those of lower layers. Parts of one layer do not import each other, but where said below.
LAYERS = (
    {"errors", "metrics", "report", "_version"},
    {"ops"},
    {"data", "triggers"},
    {"engine"},
    {"methods", "evaluate"},
    {"record"},
    {"sanitize", "attacks", "plot", "evidence", "intake"},
    {"model_files", "warmup"},
    {"gating"},
    {"cli"},
    {"__main__"},
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
# The public names come from everywhere but here.
NOT_PUBLIC = {"cli", "__main__", "plot", "model_files", "record"}
STANDARD_ONLY = {"errors", "metrics", "report"}
# What planting backdoors shares with the methods; the methods themselves are none of its business.
ATTACKS_FROM_METHODS = {"seamfast.methods.config", "seamfast.methods.schedules"}

# Who may import what lies outside, beside the standard library; for the rest it is forbidden.
OUTSIDE = {
    "torch": "*",
    "numpy": "*",
    "tqdm": {"engine", "evaluate", "evidence", "attacks", "data.readers.images"},
    "safetensors": {"model_files", "intake._pickle_child"},
    "matplotlib": {"plot"},
    "PIL": {"data.readers.images"},
    "sklearn": {"data.readers.digits"},
    "transformers": {"gating.architecture"},
    "timm": {"gating.architecture"},
    "tomli": {"methods.config", "gating.policy"},
    "triton": {"ops.triton"},
    "seamfast._native": {"ops.cpp"},
    "seamfast._cuda": {"ops.cuda"},
}
# Imported when first needed.
LAZY = {"matplotlib", "PIL", "sklearn", "transformers", "timm", "seamfast._native", "seamfast._cuda"}
ONLY_CLI = {"argparse"}
FORBIDDEN_MODULES = {
    # Code from files.
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "runpy", "code"),
    *("torch.hub", "torch.package", "torch.jit", "torch.utils.cpp_extension"),
    # Other programs, and machines.
    *("subprocess", "multiprocessing", "pty", "ctypes", "socket", "socketserver", "ssl", "http", "urllib", "requests"),
    *("ftplib", "smtplib", "telnetlib", "xmlrpc", "asyncio", "aiohttp", "httpx", "webbrowser"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "input"),
    *("torch.load", "torch.hub", "torch.package", "torch.jit.load", "torch.compile"),
    *("numpy.load", "os.popen", "os.system", "os.fork"),
}
ASKED_FOR = {  # only where the caller says so
    ("seamfast.engine.run", "torch.compile"),  # compile=True
    (
        "seamfast.intake._pickle_child",
        "torch.load",
    ),  # allow_pickle=True, in a process of its own
    ("seamfast.intake.pickles", "subprocess"),  # that process
    ("seamfast.gating.architecture", "a module whose name is computed"),  # architecture="module:function"
}
FORBIDDEN_PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")


@dataclass(frozen=True)
class Import:
    """One import: of which module, on which line, and whether it happens as soon as the importer is imported."""

    imported: str
    line: int
    at_once: bool


def module_name(path: Path, package: Path) -> str:
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """``seamfast.data.readers.idx`` is of the part ``data``; the package itself has no name."""
    return module.split(".")[1] if "." in module else ""


def is_in(module: str, places: set[str] | str) -> bool:
    inner = module.removeprefix("seamfast.")
    return places == "*" or any(inner == place or inner.startswith(place + ".") for place in places)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute of a name, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


class Reader(ast.NodeVisitor):
    """Collects the imports of a module, and what it calls, names resolved through them."""

    def __init__(self, module: str, is_package: bool, modules: set[str]) -> None:
        self.module, self.is_package, self.modules = module, is_package, modules
        self.imports: list[Import] = []
        self.used: list[tuple[str, int]] = []
        self.problems: list[tuple[int, str]] = []
        self._meaning: dict[str, str] = {}
        self._depth = 0

    def _add(self, imported: str, line: int) -> None:
        self.imports.append(Import(imported, line, at_once=self._depth == 0))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)
            self._meaning[alias.asname or alias.name.split(".")[0]] = (
                alias.name if alias.asname else alias.name.split(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            home = self.module.split(".")
            home = home[: len(home) - node.level + self.is_package]
            base = ".".join([*home, *([base] if base else [])])
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            self._add(whole if whole in self.modules | FORBIDDEN_MODULES | set(OUTSIDE) else base, node.lineno)
            self._meaning[alias.asname or alias.name] = whole
            if alias.name == "*":
                self.problems.append((node.lineno, "imports *"))

    def visit_If(self, node: ast.If) -> None:
        if dotted(node.test).endswith("TYPE_CHECKING"):
            for child in node.orelse:
                self.visit(child)
            return
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._depth += 1
        self.visit(node.args)
        outside = self._meaning
        own = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        self._meaning = {**outside, **{arg.arg: f"argument {arg.arg}" for arg in own}}  # compile, say, shadowed
        for child in node.body:
            self.visit(child)
        self._meaning = outside
        self._depth -= 1

    def visit_Call(self, node: ast.Call) -> None:
        name = dotted(node.func)
        if name.split(".")[-1] == "import_module" and node.args:
            self._dynamic(node.args[0], node.lineno)
        self.generic_visit(node)

    def _dynamic(self, argument: ast.expr, line: int) -> None:
        if isinstance(argument, ast.Constant):
            self._add(str(argument.value), line)
        elif not (
            (self.module, "a module whose name is computed") in ASKED_FOR
            or (isinstance(argument, ast.JoinedStr) and ast.unparse(argument).startswith("f'seamfast.ops.{"))
        ):
            self.problems.append((line, "imports a module whose name is computed"))

    def visit_Name(self, node: ast.Name) -> None:
        self.used.append((self._meaning.get(node.id, node.id), node.lineno))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = dotted(node)
        if name:
            first, *rest = name.split(".")
            name = self._meaning.get(first, first)
            for attribute in rest:  # a.b and a.b.c
                name = f"{name}.{attribute}"
                self.used.append((name, node.lineno))
        else:
            self.visit(node.value)


def violations(package: Path) -> list[str]:
    """What breaks the rules, a line each: ``seamfast/data/split.py:3: data imports engine, which lies above it``."""
    paths = sorted(package.rglob("*.py"))
    modules = {module_name(path, package) for path in paths}
    found = []
    for path in paths:
        reader = Reader(module_name(path, package), path.name == "__init__.py", modules)
        reader.visit(ast.parse(path.read_text(encoding="utf-8")))
        where = path.relative_to(package.parent)
        problems = [*reader.problems, *import_problems(reader), *use_problems(reader)]
        if path.stem in ("utils", "util", "helpers", "common", "misc"):
            problems.append((1, f"is called {path.stem}, which says nothing"))
        if part_of(reader.module) not in {"", *RANK}:
            problems.append((1, f"{part_of(reader.module)} has no place in the layers"))
        found += [f"{where}:{line}: {what}" for line, what in sorted(set(problems))]
    return found


def import_problems(reader: Reader) -> Iterator[tuple[int, str]]:
    for entry in reader.imports:
        top = entry.imported.split(".")[0]
        forbidden = next(
            (m for m in FORBIDDEN_MODULES if entry.imported == m or entry.imported.startswith(m + ".")), None
        )
        if forbidden and (reader.module, forbidden) not in ASKED_FOR:
            yield entry.line, f"imports {entry.imported}"
            continue
        outside = next((m for m in OUTSIDE if f"{entry.imported}.".startswith(f"{m}.")), None)
        if outside is not None:
            if not is_in(reader.module, OUTSIDE[outside]):
                yield entry.line, f"imports {outside}"
            elif outside in LAZY and entry.at_once:
                yield entry.line, f"imports {outside} at once, not when first needed"
            if part_of(reader.module) in STANDARD_ONLY:
                yield entry.line, f"{part_of(reader.module)} imports {outside}; the standard library must do"
        elif top == "seamfast":
            yield from inner_problems(reader.module, entry)
        elif top not in sys.stdlib_module_names:
            yield entry.line, f"imports {top}, which nothing is known of"
        elif top in ONLY_CLI and part_of(reader.module) != "cli":
            yield entry.line, f"imports {top}; only cli may"


def inner_problems(module: str, entry: Import) -> Iterator[tuple[int, str]]:
    part, other = part_of(module), part_of(entry.imported)
    if part in STANDARD_ONLY:
        yield entry.line, f"{part} imports {entry.imported}; the standard library must do"
    elif part == "":
        if other in NOT_PUBLIC:
            yield entry.line, f"the package imports {other}, which is not public"
    elif other == "":
        if part != "cli":  # most of the package's names lie above
            yield entry.line, f"{part} imports the package, and so all of it"
    elif part != other and RANK.get(other, 99) >= RANK.get(part, 99):
        yield entry.line, f"{part} imports {other}, which does not lie below it"
    if part == "attacks" and other == "methods" and entry.imported not in ATTACKS_FROM_METHODS:
        yield entry.line, f"attacks imports {entry.imported}"


def use_problems(reader: Reader) -> Iterator[tuple[int, str]]:
    part = part_of(reader.module)
    for name, line in reader.used:
        bare = name.removeprefix("builtins.")
        forbidden = bare in FORBIDDEN_CALLS or bare.startswith(FORBIDDEN_PREFIXES)
        if forbidden and (reader.module, bare) not in ASKED_FOR:
            yield line, f"uses {bare}"
        if bare in ("print", "sys.stdout", "sys.__stdout__") and part != "cli":
            yield line, f"uses {bare}; only cli may"


# The package keeps the rules.


def test_package_keeps_the_rules() -> None:
    assert violations(PACKAGE) == []


def test_every_part_has_a_place() -> None:
    there = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert there - {"__init__"} - set(RANK) == set()


def test_reader_sees_the_imports_that_there_are() -> None:
    reader = Reader("seamfast.cli", False, {module_name(path, PACKAGE) for path in PACKAGE.rglob("*.py")})
    reader.visit(ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8")))
    seen = {(entry.imported, entry.at_once) for entry in reader.imports}
    assert {("argparse", True), ("seamfast.ops", True), ("seamfast.sanitize", True), ("seamfast.plot", False)} <= seen
    assert {"print", "os.dup2"} <= {name for name, _ in reader.used}


def test_layers_are_those_of_the_document() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (chain,) = re.findall(r"Imports point one way: (.+?)\.", text, re.DOTALL)
    documented = [set(re.findall(r"`(\w+)`", step)) for step in chain.split("→")]
    assert len(documented) > 4
    ranks = [{RANK[part] for part in step} for step in documented]
    for above, below in pairwise(ranks):
        assert min(above) > max(below), chain
    (standard,) = re.findall(r"^- (.*) need nothing but the standard library", text, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", standard)) == STANDARD_ONLY


# The checker goes red where a rule is broken.

BROKEN = [
    ("ops/a.py", "from seamfast.data import CleanSet", "ops imports data, which does not lie below it"),
    ("data/a.py", "from seamfast.triggers import Patch", "data imports triggers, which does not lie below it"),
    ("data/a.py", "from seamfast.engine.run import Run", "data imports engine, which does not lie below it"),
    ("triggers/a.py", "import seamfast.data.split", "triggers imports data, which does not lie below it"),
    ("engine/a.py", "from seamfast.methods import seam", "engine imports methods, which does not lie below it"),
    ("engine/a.py", "from .. import sanitize", "engine imports sanitize, which does not lie below it"),
    ("engine/a.py", "from ..attacks.train import train", "engine imports attacks, which does not lie below it"),
    ("methods/a.py", "from seamfast import evaluate", "methods imports evaluate, which does not lie below it"),
    ("methods/a.py", "def f():\n  from seamfast import record", "methods imports record, which does not lie below it"),
    ("methods/a.py", "import seamfast", "methods imports the package, and so all of it"),
    ("methods/a.py", "from seamfast import Report", "methods imports the package, and so all of it"),
    ("record.py", "from seamfast.sanitize import sanitize", "record imports sanitize, which does not lie below it"),
    ("sanitize.py", "from seamfast import cli", "sanitize imports cli, which does not lie below it"),
    ("sanitize.py", "import seamfast.attacks", "sanitize imports attacks, which does not lie below it"),
    ("attacks/a.py", "from seamfast.methods import seam", "attacks imports seamfast.methods"),
    ("attacks/a.py", "from seamfast import model_files", "attacks imports model_files, which does not lie below it"),
    ("plot.py", "from seamfast.cli import main", "plot imports cli, which does not lie below it"),
    ("__init__.py", "from seamfast import cli", "the package imports cli, which is not public"),
    ("__init__.py", "import seamfast.plot", "the package imports plot, which is not public"),
    ("report.py", "import numpy as np", "report imports numpy; the standard library must do"),
    ("metrics.py", "from torch import Tensor", "metrics imports torch; the standard library must do"),
    ("errors.py", "from seamfast.report import Report", "errors imports seamfast.report; the standard library must do"),
    ("engine/a.py", "import triton", "imports triton"),
    ("ops/a.py", "def f():\n  import triton.language as tl", "imports triton"),
    ("engine/a.py", "def f():\n  import seamfast._native", "imports seamfast._native"),
    ("ops/a.py", "def f():\n  from seamfast import _native", "imports seamfast._native"),
    ("ops/a.py", "import importlib\nimportlib.import_module('seamfast._native')", "imports seamfast._native"),
    ("ops/cpp.py", "from seamfast import _native", "imports seamfast._native at once, not when first needed"),
    ("plot.py", "import matplotlib", "imports matplotlib at once, not when first needed"),
    ("data/readers/images.py", "from PIL import Image", "imports PIL at once, not when first needed"),
    ("data/a.py", "def f():\n  from PIL import Image", "imports PIL"),
    ("cli.py", "def f():\n  from sklearn import datasets", "imports sklearn"),
    ("sanitize.py", "import keras", "imports keras, which nothing is known of"),
    ("sanitize.py", "print('done')", "uses print; only cli may"),
    ("sanitize.py", "say = print", "uses print; only cli may"),
    ("sanitize.py", "import sys\nsys.stdout.write('x')", "uses sys.stdout; only cli may"),
    ("sanitize.py", "import argparse", "imports argparse; only cli may"),
    ("sanitize.py", "from argparse import ArgumentParser", "imports argparse; only cli may"),
    ("data/a.py", "import pickle", "imports pickle"),
    ("data/a.py", "from pickle import loads", "imports pickle"),
    ("data/a.py", "def f():\n  import cloudpickle", "imports cloudpickle"),
    ("data/a.py", "import importlib as i\ni.import_module('pickle')", "imports pickle"),
    ("data/a.py", "import importlib\ndef f(x): importlib.import_module(x)", "imports a module whose name is computed"),
    (
        "data/a.py",
        "import importlib\ndef f(x): importlib.import_module(f'{x}.y')",
        "imports a module whose name is comp",
    ),
    ("data/a.py", "import torch\ntorch.load('x')", "uses torch.load"),
    ("data/a.py", "import torch as t\nf = t.load", "uses torch.load"),
    ("data/a.py", "from torch import load\nload('x')", "uses torch.load"),
    ("data/a.py", "from torch import hub", "imports torch.hub"),
    ("data/a.py", "import torch\ntorch.jit.load('x')", "uses torch.jit.load"),
    ("data/a.py", "import numpy as np\nnp.load('x')", "uses numpy.load"),
    ("data/a.py", "eval('1')", "uses eval"),
    ("data/a.py", "exec('1')", "uses exec"),
    ("data/a.py", "import builtins\nbuiltins.eval('1')", "uses eval"),
    ("data/a.py", "__import__('os')", "uses __import__"),
    ("data/a.py", "import os\nos.system('ls')", "uses os.system"),
    ("data/a.py", "from os import system as s\ns('ls')", "uses os.system"),
    ("data/a.py", "import os\nos.execv('ls', [])", "uses os.execv"),
    ("data/a.py", "import subprocess", "imports subprocess"),
    ("cli.py", "from subprocess import run", "imports subprocess"),
    ("data/a.py", "import socket", "imports socket"),
    ("data/a.py", "from urllib.request import urlopen", "imports urllib.request"),
    ("data/a.py", "import http.client", "imports http.client"),
    ("data/a.py", "import requests", "imports requests"),
    ("data/a.py", "from seamfast.errors import *", "imports *"),
    ("data/utils.py", "", "is called utils, which says nothing"),
    ("magic.py", "", "magic has no place in the layers"),
]


def small_package(folder: Path) -> Path:
    """A package laid out as seamfast is, whose modules keep the rules."""
    package = folder / "seamfast"
    for part in ("ops", "data", "data/readers", "triggers", "engine", "methods", "attacks"):
        (package / part).mkdir(parents=True)
        (package / part / "__init__.py").touch()
    for part in ("errors", "metrics", "report", "evaluate", "record", "sanitize", "plot", "model_files", "cli"):
        (package / f"{part}.py").touch()
    for module in ("methods/seam", "methods/schedules", "attacks/train", "engine/run", "data/split", "ops/cpp"):
        (package / f"{module}.py").touch()
    (package / "__init__.py").touch()
    return package


@pytest.mark.parametrize(("place", "source", "message"), BROKEN)
def test_broken_rule_is_found(place: str, source: str, message: str, tmp_path: Path) -> None:
    package = small_package(tmp_path)
    assert violations(package) == []
    (package / place).write_text(source + "\n", encoding="utf-8")
    found = violations(package)
    assert len(found) >= 1
    assert found[0].startswith(f"seamfast/{place}:")
    assert any(message in line for line in found), found


KEPT = [
    ("methods/a.py", "from seamfast.ops import x\nfrom seamfast.data import y\nfrom ..engine.run import Run"),
    ("triggers/a.py", "from seamfast.ops.philox import draw"),
    ("record.py", "from seamfast.methods import MethodConfig\nfrom seamfast.evaluate import Evaluation"),
    ("attacks/a.py", "from seamfast.methods.schedules import cosine\nfrom seamfast.evaluate import probe"),
    ("model_files.py", "from seamfast.attacks.models import build\nfrom safetensors import safe_open"),
    ("errors.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from seamfast.report import Report"),
    ("plot.py", "def f():\n  from matplotlib.figure import Figure"),
    ("ops/cpp.py", "import importlib\ndef f(): return importlib.import_module('seamfast._native')"),
    ("ops/dispatch.py", "import importlib\ndef f(x): return importlib.import_module(f'seamfast.ops.{x}')"),
    ("engine/a.py", "def f(model): return model.eval()"),
    ("engine/a.py", "def f(file): return file.load()"),
    ("data/a.py", "import ast\nast.literal_eval('1')"),
    ("data/a.py", "import re\nre.compile('x')"),
    ("data/a.py", "import json\njson.load"),
    ("cli.py", "import argparse\nprint(1)"),
]


@pytest.mark.parametrize(("place", "source"), KEPT)
def test_kept_rule_is_not_complained_of(place: str, source: str, tmp_path: Path) -> None:
    package = small_package(tmp_path)
    (package / place).write_text(source + "\n", encoding="utf-8")
    assert violations(package) == []


# What an import costs and does.


STANDARD_ALONE = """
import importlib.util, sys
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("alone", path)
    module = sys.modules["alone"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
"""


def test_modules_for_the_standard_library_run_on_it_alone() -> None:
    paths = [str(PACKAGE / f"{part}.py") for part in sorted(STANDARD_ONLY)]
    # -I -S: no site-packages, no environment.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", STANDARD_ALONE, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Each measurement in a process forked off after `import torch`, so that it imports seamfast for the first time.
IMPORT_COST = """
import json, os, sys, time, warnings
import torch

def in_child(measure):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, json.dumps(measure()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer)

def seconds():
    begin = time.process_time()
    import seamfast
    return time.process_time() - begin

def effects():
    before, done = set(sys.modules), []
    sys.dont_write_bytecode = True
    watched = ("os.mkdir", "os.rename", "os.remove", "os.system", "os.exec", "subprocess.Popen", "socket.connect")

    def hook(event, args):
        writes = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writes or event in watched:
            done.append(f"{event} {args}")

    sys.addaudithook(hook)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        generator = torch.random.get_rng_state()
        threads = torch.get_num_threads()
        import seamfast
    same = bool(torch.equal(generator, torch.random.get_rng_state())) and threads == torch.get_num_threads()
    return {
        "loaded": sorted(set(sys.modules) - before),
        "cuda": torch.cuda.is_initialized(),
        "done": done,
        "warned": [str(w.message) for w in warned],
        "torch is as it was": same,
    }

print(json.dumps({"seconds": [in_child(seconds) for _ in range(5)], "effects": in_child(effects)}))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, object]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", IMPORT_COST], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="measured in forked processes")


@needs_fork
def test_import_takes_little_longer_than_that_of_torch(imported: dict[str, list[float]]) -> None:
    assert min(imported["seconds"]) <= 0.3, imported["seconds"]


@needs_fork
def test_import_touches_nothing(imported: dict[str, dict[str, object]]) -> None:
    effects = imported["effects"]
    assert effects["done"] == []
    assert effects["warned"] == []
    assert effects["cuda"] is False
    assert effects["torch is as it was"] is True


@needs_fork
def test_import_loads_nothing_heavy(imported: dict[str, dict[str, list[str]]]) -> None:
    loaded = imported["effects"]["loaded"]
    assert "seamfast.sanitize" in loaded
    heavy = {"triton", "matplotlib", "sklearn", "PIL", "scipy", "pandas", "safetensors", "transformers"}
    heavy |= {"seamfast._native", "torch._dynamo", "torch._inductor", "seamfast.cli", "seamfast.plot", "argparse"}
    heavy |= {"seamfast.attacks", "seamfast.data.readers"}
    assert [name for name in loaded if any(name == h or name.startswith(h + ".") for h in heavy)] == []


RUN = """
import sys
import torch
import seamfast

torch.set_num_threads(1)
images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
data = seamfast.CleanSet(images, torch.arange(64) % 2)
model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
started = []
sys.addaudithook(lambda event, args: started.append(args) if event == "subprocess.Popen" else None)
short = {"forget_max_steps": 1, "recover_max_steps": 1, "strengths": (1.0,)}
before = set(sys.modules)
for method, config in (
    ("seam", seamfast.SeamConfig(**short)),
    ("seam", seamfast.SeamConfig(**short, optimizer="adam", recover_weight_decay=1e-4)),
    ("fine_tune", seamfast.FineTuneConfig(max_steps=1)),
    ("super_fine_tune", seamfast.SuperFineTuneConfig(forget_steps=1, recover_steps=1)),
):
    result = seamfast.sanitize(model, data, method=method, config=config, device="cpu")
    assert result.report["run"]["stopped"] is None
seamfast.evaluate(model, data, triggers=[seamfast.triggers.Patch.square(2, target=0)])
assert not started, started
print(*sorted(set(sys.modules) - before))
"""


def test_run_on_a_cpu_imports_nothing_heavy_and_starts_no_program() -> None:
    # Not even of torch: its compiler, which an optimizer of torch.optim imports, takes longer than many a run.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    imported = done.stdout.split()
    assert "seamfast.ops.cpp" in imported
    allowed = {"seamfast", *sys.stdlib_module_names}
    assert [name for name in imported if name.split(".")[0] not in allowed] == []
    assert [name for name in imported if name.startswith(("seamfast.ops.triton", "seamfast.ops.cuda"))] == []


def test_lazy_names_are_found_and_others_are_not() -> None:
    assert seamfast.attacks.poison is not None
    assert seamfast.load is seamfast.data.readers.load
    assert {"attacks", "load", "sanitize"} <= set(dir(seamfast))
    with pytest.raises(AttributeError, match=r"^module 'seamfast' has no attribute 'lod'$"):
        seamfast.lod  # noqa: B018


# The public names.


PUBLIC = """
    Callback CleanSet Evaluation FineTuneConfig GateResult HistoryPoint Rate Report SanitizeResult SeamConfig
    SuperFineTuneConfig __version__ attacks evaluate fidelity fidelity_nist gate load sanitize triggers warmup
"""


def test_public_names() -> None:
    assert sorted(seamfast.__all__) == sorted(PUBLIC.split())
    for name in seamfast.__all__:
        assert hasattr(seamfast, name), name


def test_names_in_documents_and_examples_are_public() -> None:
    texts = [*ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py"), *ROOT.glob("README.md")]
    named = {name for path in texts for name in re.findall(r"(?<![\w/.`])seamfast\.([A-Za-z]\w*)\b", path.read_text())}
    assert {"sanitize", "CleanSet", "load"} <= named
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert named - set(seamfast.__all__) - modules == set()


@pytest.mark.parametrize("package", ["seamfast", "seamfast.ops", "seamfast.data", "seamfast.data.readers"])
def test_lists_of_public_names_hold(package: str) -> None:
    module = __import__(package, fromlist=["__all__"])
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name, None) is not None, name


def test_type_information_and_schema_are_shipped() -> None:
    files = resources.files("seamfast")
    assert files.joinpath("py.typed").is_file()
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (shipped,) = re.findall(r"^\[tool\.setuptools\.package-data\]\nseamfast = (\[.*\])$", text, re.MULTILINE)
    assert {"py.typed", "schema/*.json"} <= set(json.loads(shipped))
