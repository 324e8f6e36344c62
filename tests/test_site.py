"""The site: each page has its place, links lead somewhere, nothing is loaded from elsewhere; the tutorial runs."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import seamfast
from seamfast.models.folder import ModelDescription, save_model

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.ipynb"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The tutorial and the page of three readers.


def test_tutorial_runs_and_says_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(TUTORIAL.read_text(encoding="utf-8"))
    printed, n_pictures = "", 0
    for cell, found in tool("run_notebook").outputs(notebook, TUTORIAL.name):
        assert [output["output_type"] for output in cell["outputs"]] == [output["output_type"] for output in found], (
            "the notebook holds other outputs: python tools/run_notebook.py docs/tutorial.ipynb"
        )
        printed += "".join("".join(output.get("text", ())) for output in found)
        n_pictures += sum("image/png" in output.get("data", {}) for output in found)
    assert n_pictures == 2
    assert "; accepted\n" in printed
    assert "pass 0\n" in printed  # of the gate
    received, sanitized, tuned = (float(rate) for rate in re.findall(r"ASR ([\d.]+)", printed))
    assert received > 0.9
    assert sanitized < 0.1
    assert tuned > 0.5, "fine-tuning is no longer the baseline that the text says"


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the start page takes for granted: models that came in, and clean data."""
    pytest.importorskip("sklearn")
    place = tmp_path_factory.mktemp("received")
    train, test = seamfast.load("digits"), seamfast.load("digits", split="test")
    torch.manual_seed(0)
    model = seamfast.attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
    theirs, ours = train.subset(range(0, 1438, 2)), train.subset(range(1, 1438, 2))
    seamfast.attacks.train(model, theirs, seamfast.attacks.TrainConfig(epochs=40, batch_size=64))
    for folder in ("incoming", "models/a"):
        save_model(place / folder, model, ModelDescription("small_cnn", num_classes=10, in_channels=1, image_size=8))
    images, labels = torch.cat([ours.inputs, test.inputs]), torch.cat([ours.labels, test.labels])
    np.savez(place / "clean.npz", images=images.numpy(), labels=labels.numpy())
    return place


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["A researcher", "An ML engineer", "A platform team"])
def test_commands_of_a_reader_run(reader: str, received: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(received, place)
    section = (DOCS / "start.md").read_text(encoding="utf-8").partition(f"## {reader}\n")[2]
    block = section.partition("```console\n")[2].partition("```")[0]
    assert len(block.splitlines()) == 3
    run_all(block.splitlines(), place)


@pytest.mark.slow
def test_commands_of_the_readme_run(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.partition("#")[0].rstrip() for line in lines if line.startswith("$ seamfast ")]
    assert len(commands) == 6
    run_all(commands, tmp_path)


def run_all(commands: list[str], place: Path) -> None:
    """``$ seamfast ...`` by turns, in a folder; each ends with 0."""
    for line in commands:
        command, _, redirected = line.removeprefix("$ seamfast ").partition(" > ")
        done = subprocess.run(
            [sys.executable, "-m", "seamfast", *command.split()], capture_output=True, text=True, cwd=place
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if redirected:
            (place / redirected).write_text(done.stdout, encoding="utf-8")


# The comparison.

IN_THE_STUDY = {  # by the name of a defense on the page of the comparison
    "none": "no_defence",
    "fine-tuning": "fine_tune",
    "fine-pruning": "fine_pruning",
    "super-fine-tuning": "super_fine_tune",
    "SEAM, the authors' settings": "authors_seam",
    "FT-SAM": "ft_sam",
    "NAD": "nad",
    "I-BAU": "i_bau",
    "SAU": "sau",
}


def table_rows(document: str, head: str) -> list[list[str]]:
    body = (DOCS / document).read_text(encoding="utf-8").partition(head)[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]


def test_comparison_has_the_figures_of_the_study() -> None:
    study = {
        row[1]: row
        for row in table_rows("study.md", "| attacks | method | n | mean ASR |")
        if row[0] == "held-out" and row[1] in IN_THE_STUDY.values()
    }
    rows = table_rows("comparison.md", "| defense | in | models |")
    assert {row[0] for row in rows} == set(IN_THE_STUDY)
    for name, _, n, asr, lost, fidelity, ours, seconds in rows:
        _, _, *measured = study[IN_THE_STUDY[name]]
        expected = [measured[at] for at in (0, 1, 3, 4, 5, 8)]
        assert [n, asr.replace(" %", "%"), f"{lost} points", fidelity, ours, seconds] == expected, name


# Its pages.


def test_every_page_has_its_place_in_the_navigation() -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML to read mkdocs.yml")

    def leaves(part: Any) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [leaf for item in (part.values() if isinstance(part, dict) else part) for leaf in leaves(item)]

    navigation = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    outside = {"index.md", "contributing.md", "security.md", "changelog.md", "bench-notes.md"}
    inside = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | {"tutorial.md"}
    assert len(navigation) == len(set(navigation))
    assert set(navigation) == inside | outside


def test_reference_names_every_public_name() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: seamfast\.(\S+)", pages, re.MULTILINE))
    ends = {path.rsplit(".", 1)[-1] for path in shown}
    assert set(seamfast.__all__) - ends - {"__version__", "fleet"} == set()
    assert "fleet.run.run" in shown


LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")
WITH_LINKS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("document", WITH_LINKS, ids=lambda path: path.name)
def test_links_lead_somewhere_in_the_repository_too(document: Path) -> None:
    """As in the site, which `make docs` checks: to a file that is there, and to a heading that it has."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in LINK.findall(text):
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name} links to {path}"
        if anchor:
            assert anchor in headings(target), f"{document.name} links to {path}#{anchor}"


def headings(document: Path) -> set[str]:
    """The anchors of a document, as the repository's host and the site make them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_pages_of_other_files_and_the_notebook() -> None:
    pytest.importorskip("mkdocs", reason="needs MkDocs: the extra docs")
    pages = tool("site_pages")
    assert pages.site_path("README.md") == "index.md"
    assert pages.site_path("docs/gate.md") == "gate.md"
    assert pages.site_path("docs/tutorial.ipynb") == "tutorial.md"
    assert pages.site_path("benches/zoo.py") == "files/benches/zoo.py.md"
    assert pages.site_path("examples/fleet") == "files/examples/fleet/index.md"
    rewritten = pages.LINK.sub(
        lambda found: pages.site_link(found, "docs/reference/gate.md", "reference/gate.md"),
        "[a](../gate.md#isolation) [b](../../benches/zoo.py) [c](https://example.org) [d](missing.md) [e](#here)",
    )
    assert rewritten == (
        "[a](../gate.md#isolation) [b](../files/benches/zoo.py.md) [c](https://example.org) [d](missing.md) [e](#here)"
    )
    assert pages.fenced("a ```` b", "text").startswith("`````text\n")
    page, pictures = pages.notebook_page(TUTORIAL)
    assert page.startswith("# Ten minutes\n")
    assert page.count("```python\n") == sum(
        cell["cell_type"] == "code" for cell in json.loads(TUTORIAL.read_text(encoding="utf-8"))["cells"]
    )
    assert len(pictures) == 2
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


def test_docstrings_have_an_entry_for_each_argument() -> None:
    pytest.importorskip("griffe", reason="needs Griffe: the extra docs")
    arguments = "Args:\n    a, b: in (0, 1):\n        both.\n    c: a, b: too.\n\n"
    rest = "Returns:\n    x, y: z.\n\nExample:\n    >>> 1"
    assert tool("docstrings").readable(f"Mix.\n\n{arguments}{rest}") == (
        "Mix.\n\nArgs:\n    a: in (0, 1):\n        both.\n    b: in (0, 1):\n        both.\n    c: a, b: too.\n\n"
        "Returns:\n    x, y: z.\n\nExamples:\n    >>> 1"
    )


# What `make docs` builds.


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As ``make docs`` builds it."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="needs the extra docs")
    recipe = re.search(r"-m (mkdocs build.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    command = [sys.executable, "-m", *recipe[1].split(), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    done = build("--site-dir", str(place))
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.mark.parametrize("link", ["absent.md", "other.md#absent", "/other.md", "other.md#there"])
def test_a_link_that_leads_nowhere_fails_the_build(link: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n[link]({link})\n", encoding="utf-8")
    (tmp_path / "docs" / "other.md").write_text("# Other\n\n## There\n", encoding="utf-8")
    rest = "docs_dir: docs\nsite_dir: site\nhooks: []\nplugins: []\nextra_css: []\nnav: [index.md, other.md]\n"
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT}/mkdocs.yml\n{rest}not_in_nav: ''\n", encoding="utf-8")
    done = build("--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode == (0 if link == "other.md#there" else 1), done.stdout + done.stderr


@pytest.mark.slow
def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    loading = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:)?//|<link\b[^>]*\bhref=\"?(https?:)?//"
    )
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not loading.search(text), page
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_site_has_the_reference_and_the_sources(site: Path) -> None:
    assert "forget" in (site / "reference" / "sanitize.html").read_text(encoding="utf-8").lower()
    assert 'id="seamfast.sanitize.sanitize"' in (site / "reference" / "sanitize.html").read_text(encoding="utf-8")
    assert (site / "files" / "examples" / "gate" / "kubernetes-job.yaml.html").exists()
    assert (site / "tutorial.ipynb").exists()
