"""The linters' rules that guard the architecture bite; what an import costs and does; the public names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import grimp
import pytest

import seamfast

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "seamfast"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {contract["name"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}

# The only uses of what ruff bans, each with how it reads.
ASKED_FOR = {
    ("__init__.py", 'importlib.import_module(f"seamfast.'),
    ("cli.py", "print("),
    ("cli.py", "sys.stdout."),
    ("terminal.py", "print(printable(text)"),
    ("terminal.py", "sys.stdout"),
    ("fleet/nursery.py", "pid = os.fork()  # of a process without threads"),
    ("supervisor.py", "child = os.fork()  # of a process without threads"),
    ("isolation/confine.py", 'importlib.import_module("seamfast._confine")'),
    ("engine/run.py", "return torch.compile(model) if self.compute.compiles else model"),
    ("gating/architecture.py", "importlib.import_module(module_name)"),
    ("gating/architecture.py", 'importlib.import_module("timm")'),
    ("gating/architecture.py", 'importlib.import_module("torchvision.models")'),
    ("gating/architecture.py", 'importlib.import_module("transformers")'),
    ("gating/architecture.py", 'import_module("transformers.core_model_loading")'),
    ("intake/_pickle_child.py", "torch.load(archive, weights_only=True, "),
    ("ops/dispatch.py", 'importlib.import_module(f"seamfast.ops.{backend}")'),
    ("ops/cpp/native.py", 'importlib.import_module("seamfast._native")'),
    ("ops/cuda/native.py", 'importlib.import_module("seamfast._cuda")'),
}


# The rules of pyproject.toml, and what they find.


def contract_lines(place: Path) -> str:
    """What import-linter says of the package in ``place``, under the contracts of pyproject.toml."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    command += ["--no-cache", "--no-logo", str(ROOT / "pyproject.toml")]
    environment = os.environ | {"PYTHONPATH": str(place), "COLUMNS": "200"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True).stdout


# By contract: where an import is planted, what it is, and what import-linter reports.
PLANTED_IMPORTS = {
    "Imports point down; parts of one layer do not import each other": [
        ("ops/planted.py", "from seamfast.data import CleanSet", "seamfast.ops.planted -> seamfast.data (l."),
        ("triggers/planted.py", "from seamfast.modalities import Modality", "triggers.planted -> seamfast.modalities"),
        ("modalities/planted.py", "from seamfast.data import CleanSet", "seamfast.modalities.planted -> seamfast.data"),
        ("engine/planted.py", "from seamfast.observer import TriggerObserver", "engine.planted -> seamfast.observer"),
        ("data/planted.py", "from seamfast.engine.run import Run", "seamfast.data.planted -> seamfast.engine.run"),
        ("triggers/planted.py", "import seamfast.data.split", "seamfast.triggers.planted -> seamfast.data.split"),
        ("engine/planted.py", "from seamfast.methods import seam", "seamfast.engine.planted -> seamfast.methods.seam"),
        ("engine/planted.py", "from .. import sanitize", "seamfast.engine.planted -> seamfast.sanitize"),
        ("engine/planted.py", "from ..attacks import train", "seamfast.engine.planted -> seamfast.attacks.train"),
        ("methods/planted.py", "from seamfast import evaluate", "seamfast.methods.planted -> seamfast.evaluate"),
        (
            "methods/planted.py",
            "def f():\n  from seamfast import record",
            "seamfast.methods.planted -> seamfast.record",
        ),
        ("record.py", "from seamfast.sanitize import sanitize", "seamfast.record -> seamfast.sanitize"),
        ("sanitize.py", "from seamfast import cli", "seamfast.sanitize -> seamfast.cli"),
        ("attacks/planted.py", "from seamfast import sanitize", "seamfast.attacks.planted -> seamfast.sanitize"),
        ("models/planted.py", "from seamfast.attacks import plant", "seamfast.models.planted -> seamfast.attacks"),
        ("audits/planted.py", "from seamfast.evaluate import evaluate", "seamfast.audits.planted -> seamfast.evaluate"),
        ("plot.py", "from seamfast.cli import main", "seamfast.plot -> seamfast.cli"),
        ("sanitize.py", "from seamfast import integrations", "seamfast.sanitize -> seamfast.integrations"),
        ("errors.py", "from seamfast.report import Report", "seamfast.errors -> seamfast.report"),
        ("cli.py", "from seamfast import supervisor", "seamfast.cli -> seamfast.supervisor"),
        ("isolation/planted.py", "from seamfast.gating import policy", "isolation.planted -> seamfast.gating.policy"),
        ("magic.py", "", "seamfast.magic"),
    ],
    "Only the command line imports the package as a whole": [
        ("methods/planted.py", "import seamfast", "seamfast.methods.planted -> seamfast (l."),
        ("triggers/planted.py", "from seamfast import Report", "seamfast.triggers.planted -> seamfast (l."),
    ],
    "The public names come from elsewhere": [
        ("__init__.py", "def f():\n  from seamfast import cli", "seamfast -> seamfast.cli"),
        ("__init__.py", "import seamfast.plot", "seamfast -> seamfast.plot"),
    ],
    "Planting backdoors shares settings and schedules with the methods, and no method": [
        ("attacks/planted.py", "from seamfast.methods import seam", "attacks.planted -> seamfast.methods.seam"),
    ],
    "Errors, metrics, the report and its verdict need the standard library only": [
        ("report.py", "import numpy as np", "seamfast.report -> numpy"),
        ("metrics.py", "from torch import Tensor", "seamfast.metrics -> torch"),
    ],
    "The driver of a fleet needs no torch": [
        ("fleet/store.py", "from seamfast.fleet import work", "seamfast.fleet.work -> torch"),
    ],
    "Signing needs no torch": [
        (
            "gating/provenance/bundle.py",
            "from seamfast.intake.tensors import strict_json",
            "seamfast.intake.tensors -> torch",
        ),
    ],
    "What lies outside is imported in its place, and some of it nowhere": [
        ("gating/planted.py", "def f():\n  import cryptography", "seamfast.gating.planted -> cryptography"),
        ("engine/planted.py", "import triton", "seamfast.engine.planted -> triton"),
        ("ops/planted.py", "def f():\n  import triton.language as tl", "seamfast.ops.planted -> triton"),
        ("data/planted.py", "def f():\n  from PIL import Image", "seamfast.data.planted -> PIL"),
        ("data/planted.py", "def f():\n  import tokenizers", "seamfast.data.planted -> tokenizers"),
        ("cli.py", "def f():\n  from sklearn import datasets", "seamfast.cli -> sklearn"),
        ("sanitize.py", "import argparse", "seamfast.sanitize -> argparse"),
        ("intake/pickles.py", "import pickle", "seamfast.intake.pickles -> pickle"),
        ("intake/_pickle_child.py", "import pickle", "seamfast.intake._pickle_child -> pickle"),
        ("cli.py", "from subprocess import run", "seamfast.cli -> subprocess"),
        ("fleet/run.py", "def f():\n  import ray", "seamfast.fleet.run -> ray"),
        ("launch.py", "import argparse", "seamfast.launch -> argparse"),
        ("engine/planted.py", "def f():\n  import mlflow", "seamfast.engine.planted -> mlflow"),
        ("data/planted.py", "def f():\n  from lightning.pytorch import Callback", "seamfast.data.planted -> lightning"),
        ("integrations/mlflow.py", "import tensorboardX", "seamfast.integrations.mlflow -> tensorboardX"),
        *(
            ("data/planted.py", source, f"seamfast.data.planted -> {source.split()[1].split('.')[0]} (l.")
            for source in (
                *("import pickle", "from _pickle import loads", "import marshal", "import shelve", "import joblib"),
                *("from dill import load", "import cloudpickle as c", "import subprocess", "import socket"),
                *("import http.client", "from urllib.request import urlopen", "import requests", "import ctypes"),
                *("import multiprocessing",),
            )
        ),
    ],
}


def test_package_keeps_the_contracts() -> None:
    assert set(PLANTED_IMPORTS) == set(CONTRACTS)
    assert f"{len(CONTRACTS)} kept, 0 broken" in contract_lines(ROOT)


@pytest.fixture(scope="module")
def found_imports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By contract, the findings in a copy of the package with all planted imports at the ends of their files."""
    place = tmp_path_factory.mktemp("imports")
    shutil.copytree(PACKAGE, place / "seamfast", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.json"))
    for file, source, _ in chain(*PLANTED_IMPORTS.values()):
        with open(place / "seamfast" / file, "a", encoding="utf-8") as end:
            end.write(source + "\n")
    sections = re.split(rf"^({'|'.join(map(re.escape, CONTRACTS))})\n-+$", contract_lines(place), flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


@pytest.mark.parametrize(
    ("contract", "file", "source", "line"),
    [(contract, *row) for contract, rows in PLANTED_IMPORTS.items() for row in rows],
)
def test_planted_import_breaks_a_contract(
    contract: str, file: str, source: str, line: str, found_imports: dict[str, str]
) -> None:
    assert line in found_imports[contract], f"{source} in {file}"


# Uses: what ruff reports of a file in data/ with these lines.
PLANTED_USES = [
    ("TID251", "import torch\ntorch.load('x')"),
    ("TID251", "import torch as t\nf = t.load"),
    ("TID251", "from torch import load"),
    ("TID251", "from torch.serialization import load"),
    ("TID251", "from torch import hub"),
    ("TID251", "import torch\ntorch.hub.load('a', 'b')"),
    ("TID251", "import torch\ntorch.jit.load('x')"),
    ("TID251", "import torch.package"),
    ("TID251", "import torch\ntorch.compile(f)"),
    ("TID251", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    ("TID251", "import yaml\nyaml.load('x')"),
    ("TID251", "import importlib as i\ni.import_module('pickle')"),
    ("TID251", "def f():\n    import seamfast._native"),
    ("TID251", "def f():\n    from seamfast import _native"),
    ("TID251", "import sys\nsys.stdout.write('x')"),
    ("TID251", "import os\nos.fork()"),
    ("TID251", "from os import system as s"),
    ("TID251", "from builtins import exec as run"),
    ("TID253", "import matplotlib"),
    ("TID253", "from PIL import Image"),
    ("TID253", "import sklearn.datasets"),
    ("TID253", "import transformers"),
    ("TID253", "import timm"),
    ("TID253", "import torchvision"),
    ("TID253", "from tokenizers import Tokenizer"),
    ("S102", "exec('1')"),
    ("S307", "eval('1')"),
    ("S307", "import builtins\nbuiltins.eval('1')"),
    ("S605", "import os\nos.system('ls')"),
    ("S606", "import os\nos.execv('ls', [])"),
    ("S606", "import os\nos.spawnl(0, 'ls')"),
    ("T201", "print('done')"),
    ("T100", "breakpoint()"),
    ("B009", "import torch\ngetattr(torch, 'load')('x')"),
    ("F403", "from seamfast.errors import *"),
]


def banned(place: Path, *options: str) -> list[tuple[str, str, str]]:
    """File, rule and line of each banned use below ``place``, where no ``noqa`` counts."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--ignore-noqa", "--output-format", "json"]
    command += ["--config", str(ROOT / "pyproject.toml"), *options, "."]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = []
    for entry in json.loads(done.stdout):
        if re.match(r"TID|S\d|T\d|B009|F403", entry["code"]):
            path = Path(entry["filename"])
            line = path.read_text(encoding="utf-8").splitlines()[entry["location"]["row"] - 1]
            found.append((path.relative_to(place.resolve()).as_posix(), entry["code"], line))
    return found


def test_package_uses_what_is_banned_only_where_asked_for() -> None:
    found = {(file, line) for file, _, line in banned(PACKAGE, "--config", "lint.per-file-ignores = {}")}
    read = {(file, line): [use for place, use in ASKED_FOR if file == place and use in line] for file, line in found}
    assert [at for at, uses in read.items() if not uses] == []
    assert {(file, use) for (file, _), uses in read.items() for use in uses} == ASKED_FOR


@pytest.fixture(scope="module")
def found_uses(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    place = tmp_path_factory.mktemp("uses")
    (place / "seamfast" / "data").mkdir(parents=True)
    for number, (_, source) in enumerate(PLANTED_USES):
        (place / "seamfast" / "data" / f"planted_{number}.py").write_text(source + "\n", encoding="utf-8")
    return {(Path(file).stem, rule) for file, rule, _ in banned(place)}


@pytest.mark.parametrize("number", range(len(PLANTED_USES)), ids=[source for _, source in PLANTED_USES])
def test_planted_use_is_found(number: int, found_uses: set[tuple[str, str]]) -> None:
    assert (f"planted_{number}", PLANTED_USES[number][0]) in found_uses


# The rest of the rules.


def test_package_imports_nothing_unknown() -> None:
    graph = grimp.build_graph(
        "seamfast", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    outside = {name for name in graph.modules if graph.is_module_squashed(name)} - set(sys.stdlib_module_names)
    placed = CONTRACTS["What lies outside is imported in its place, and some of it nowhere"]["ignore_imports"]
    known = {"torch", "numpy", *(entry.split(" -> ")[1] for entry in placed)} - set(sys.stdlib_module_names)
    assert outside | {"tomllib"} == known | {"tomllib"}  # of the standard library from Python 3.11 on


def test_module_names_say_something() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert "sanitize" in names
    assert not names & {"utils", "util", "helpers", "common", "misc"}


# Above these, nobody looks into a sample; attacks on images and their models are about images by name.
LOOK_INTO_SAMPLES = ("ops", "triggers", "modalities", "data", "attacks/image", "attacks/files.py", "models")
LOOKS = re.compile(
    r"\.image_shape\b|\.is_pixels\b|isinstance\(\w*(inputs|batch)\w*, (dict|Mapping)\)|inputs\w*\.is_floating"
)


def looks(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if LOOKS.search(line)]


def test_nothing_above_the_data_looks_into_a_sample() -> None:
    for planted in ("c = data.image_shape[0]", "if isinstance(batch.inputs, dict):", "if inputs.is_floating_point():"):
        assert looks(planted.replace("batch.inputs", "inputs"))
    found = {
        path.relative_to(PACKAGE).as_posix(): looks(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
        if not path.relative_to(PACKAGE).as_posix().startswith(LOOK_INTO_SAMPLES)
    }
    assert "engine/run.py" in found
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_layers_are_those_of_the_document() -> None:
    (layers,) = (contract["layers"] for contract in CONTRACTS.values() if contract["type"] == "layers")
    rank = {part: -depth for depth, layer in enumerate(layers) for part in layer.split(" | ")}
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (order,) = re.findall(r"Imports point one way: (.+?)\.", text, re.DOTALL)
    documented = [[rank[part] for part in re.findall(r"`(\w+)`", step)] for step in order.split("→")]
    assert len(documented) > 4
    for above, below in pairwise(documented):
        assert min(above) > max(below), order
    (standard,) = re.findall(r"^- (.*) need nothing but the standard library", text, re.MULTILINE)
    modules = [f"seamfast.{part}" for part in re.findall(r"`(\w+)`", standard)]
    assert (
        modules
        == CONTRACTS["Errors, metrics, the report and its verdict need the standard library only"]["source_modules"]
    )


# What an import costs and does.


# Each measurement in a process forked off after `import torch`, so that it imports seamfast for the first time. Names
# are imported when they are first used, so the functions are named.
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
    seamfast.sanitize, seamfast.evaluate, seamfast.warmup, seamfast.CleanSet, seamfast.triggers
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
        seamfast.sanitize, seamfast.evaluate, seamfast.warmup, seamfast.CleanSet, seamfast.triggers
    same = bool(torch.equal(generator, torch.random.get_rng_state())) and threads == torch.get_num_threads()
    return {
        "loaded": sorted(set(sys.modules) - before),
        "cuda": torch.cuda.is_initialized(),
        "done": done,
        "warned": [str(w.message) for w in warned],
        "torch is as it was": same,
    }

print(json.dumps({"seconds": [in_child(seconds) for _ in range(15)], "effects": in_child(effects)}))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, object]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its byte code: only the first is without
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
model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
with torch.no_grad():  # right on its labels, half of them each
    lead = model(images / 255).diff(dim=1)[:, 0]
    model[3].bias[1] -= lead.median()
data = seamfast.CleanSet(images, (lead > lead.median()).long())
started = []
sys.addaudithook(lambda event, args: started.append(args) if event == "subprocess.Popen" else None)
short = {"forget_max_steps": 1, "recover_max_steps": 1, "strengths": (1.0,)}
before = set(sys.modules)
for method, config in (
    ("seam", seamfast.SeamConfig(**short)),
    ("seam_authors", seamfast.SeamAuthorsConfig(forget_max_epochs=1, recover_max_epochs=1)),
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


ALONE = """
import sys
before = set(sys.modules)
import seamfast
print(*sorted(set(sys.modules) - before))
"""


def test_import_alone_loads_no_other_module() -> None:
    # Whatever it loaded would be looked for in the working folder first, where Python is run with -m.
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("seamfast seamfast._version\n", "")


@pytest.mark.parametrize("name", ["sanitize", "evaluate", "warmup"])
def test_name_of_a_function_and_its_module_stays_the_function(name: str) -> None:
    source = f"""
import importlib, pickle, sys
module = importlib.import_module("seamfast.{name}")
import seamfast.{name}
assert seamfast.{name} is module.{name}, seamfast.{name}
from seamfast import {name} as named
assert named is module.{name}
assert sys.modules["seamfast.{name}"] is module
assert pickle.loads(pickle.dumps(named)) is named
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_lazy_names_are_found_and_others_are_not() -> None:
    assert seamfast.attacks.poison is not None
    assert seamfast.ops.backends is not None
    assert seamfast.load is seamfast.data.readers.load
    assert {"attacks", "load", "sanitize"} <= set(dir(seamfast))
    with pytest.raises(AttributeError, match=r"^module 'seamfast' has no attribute 'lod'$"):
        seamfast.lod  # noqa: B018


# The public names.


PUBLIC = """
    Callback CleanSet Evaluation FineTuneConfig GateResult HistoryPoint Rate Report SanitizeResult SeamAuthorsConfig
    SeamConfig SeamEncoderConfig SuperFineTuneConfig __version__ attacks evaluate fidelity fidelity_nist fleet gate load
    sanitize sanitize_encoder triggers warmup
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
    assert {"py.typed", "schema/*.json"} <= set(PYPROJECT["tool"]["setuptools"]["package-data"]["seamfast"])
