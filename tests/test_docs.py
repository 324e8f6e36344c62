"""What the documents show, works: their Python blocks, the docstrings' examples, the commands that they name."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import seamfast
from seamfast.cli import main
from seamfast.ops import cpp
from seamfast.report import schema

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_COMMANDS = [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]
EXTRAS = {
    "PIL",
    "matplotlib",
    "pytorch_lightning",
    "sklearn",
    "triton",
}  # what a module may need and a plain install does not bring

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def text_of(document: Path) -> str:
    if not document.exists():
        pytest.fail(f"{document.name} is missing; expected it at the root of the repository")
    return document.read_text(encoding="utf-8")


def commands_of(document: Path) -> list[str]:
    """Lines of shell blocks (of console blocks only those after a ``$``), and code spans in the prose."""
    text = text_of(document)
    lines = []
    for language, body in FENCE.findall(text):
        if language in ("sh", "bash", "shell"):
            lines += body.splitlines()
        elif language == "console":
            lines += [line[2:] for line in body.splitlines() if line.startswith("$ ")]
    return lines + CODE_SPAN.findall(FENCE.sub("", text))


def named_after(word: str) -> set[str]:
    """What follows ``word`` as a command, in any document: targets of make, subcommands of seamfast."""
    start = re.compile(rf"(?:^|[;&|/(] ?){word} ([a-z][a-z_-]*)\b(?!=)")
    return {name for document in WITH_COMMANDS for command in commands_of(document) for name in start.findall(command)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore:seamfast runs on its slower PyTorch reference:RuntimeWarning")
def test_python_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace, in an empty folder."""
    text = text_of(document)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in FENCE.finditer(text):
        if block[1] == "python":
            lines_before = text[: block.start(2)].count("\n")
            # Compiled with the lines before it, so that a traceback shows the line in the document.
            exec(compile("\n" * lines_before + block[2], str(document), "exec"), namespace)


def public_modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(seamfast.__path__, "seamfast.", onerror=lambda name: None)]
    return ["seamfast", *(name for name in found if not any(part.startswith("_") for part in name.split(".")))]


FORMER_NAMES = {  # of modules, accepted until 0.2.0
    "seamfast.evidence": {"invert_triggers", "parting", "stamped_evidence"},
    "seamfast.model_files": {
        *("ModelDescription", "load_backdoor", "load_model", "save_backdoor", "save_model", "save_weights"),
    },
}


@pytest.mark.parametrize("name", FORMER_NAMES)
def test_former_names_of_modules_warn_and_work(name: str) -> None:
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=rf"^{re.escape(name)} is seamfast\."):
        module = importlib.import_module(name)
    assert set(module.__all__) == FORMER_NAMES[name]
    assert all(callable(getattr(module, former)) for former in module.__all__)


@pytest.mark.parametrize("name", [name for name in public_modules() if name not in FORMER_NAMES])
@pytest.mark.filterwarnings("ignore:seamfast runs on its slower PyTorch reference:RuntimeWarning")
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "seamfast.ops.dispatch" and cpp.why_unavailable() is not None:
        pytest.skip("the example shows a build with the extension")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in EXTRAS:
            pytest.skip(f"needs {error.name}")
        raise
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test)
    assert runner.failures == 0, "see the captured output"


def test_make_targets_that_documents_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = named_after("make")
    assert {"test", "lint"} <= named
    assert named <= targets


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    assert set(re.findall(r"^  make ([\w-]+) ", listed, re.MULTILINE)) == set(phony[1].split())


def test_subcommands_that_documents_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    named = named_after("seamfast")
    assert {"sanitize", "gate"} <= named
    for subcommand in sorted(named):
        with pytest.raises(SystemExit) as stopped:
            main([subcommand, "--help"])
        assert stopped.value.code == 0, f"seamfast {subcommand}: {capsys.readouterr().err}"


def test_report_document_names_every_key() -> None:
    text = text_of(ROOT / "docs" / "report.md")
    explained = {word for span in CODE_SPAN.findall(FENCE.sub("", text)) for word in re.split(r"[.,\s]+", span)}
    assert keys_of(schema()) - explained == set()


def keys_of(part: Any) -> set[str]:
    """The names of all properties in a JSON Schema; a method's settings are left to its own documentation."""
    if isinstance(part, list):
        return {key for item in part for key in keys_of(item)}
    if not isinstance(part, dict):
        return set()
    inner = (keys_of(item) for key, item in part.items() if key != "config")
    return set(part.get("properties", {})).union(*inner)


def test_architecture_document_shows_the_package_as_it_is() -> None:
    text = text_of(ROOT / "docs" / "architecture.md")
    tree = next(body for _, body in FENCE.findall(text) if "seamfast/" in body)
    section = tree[tree.index("seamfast/") :]
    shown = set(re.findall(r"^ {2}(\w+(?:\.py|/))", section, re.MULTILINE))
    package = ROOT / "seamfast"
    there = {path.name for path in package.glob("*.py")} | {f"{path.parent.name}/" for path in package.glob("*/*.py")}
    there |= {f"{path.parent.name}/" for path in package.glob("*/*.json")}
    assert there - shown == set(), "not in the tree of docs/architecture.md"
    assert shown - there == set(), "in the tree of docs/architecture.md, and not in the package"
