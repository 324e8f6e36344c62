"""Every hostile input through the whole gate: ``python -m tests.hostile.table`` writes docs/hostile-inputs.md.

What the gate says is written down, not what it should say: tests/gating/test_hostile_table.py holds the page against a
run, and each input is refused, by the code that its own module names, in the tests of what reads it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from seamfast.data.readers import load
from seamfast.gating.pipeline import gate
from seamfast.gating.policy import TEMPLATE
from seamfast.models.folder import ModelDescription, save_model
from tests.hostile import data, folders, other_formats, pickles, tensor_files, text_folders, weights
from tests.hostile.case import Case

PAGE = Path(__file__).parents[2] / "docs" / "hostile-inputs.md"
ARCHITECTURE = {"num_classes": 10, "in_channels": 1, "image_size": 8}
SETS: dict[str, tuple[Mapping[str, Case], bool]] = {
    "Folders and descriptions": (folders.CASES, False),
    "Folders of text classifiers": (text_folders.CASES, False),
    "Invalid safetensors": (tensor_files.CASES, False),
    "Weights that no training leaves": (weights.CASES, False),
    "Weights of extreme values, which are run": (weights.EXTREME, False),
    "Other formats, and disguised ones": (other_formats.CASES, False),
    "Pickles, with `--allow-pickle`": (pickles.CASES, True),
    "Clean data": (data.CASES, False),
}
"""Title, cases, whether pickles are allowed."""
HEAD = """# Hostile inputs

Made by `python -m tests.hostile.table`, which runs `seamfast.gate` on every input of `tests/hostile/` and records the
result. {n} inputs, none of which passes: a report, no `sanitized/`, nothing run and nothing else written. All are
refused with exit code 3, but for those of extreme values that are `fail`. None took longer than {slowest} s, imports
included. The result is `refusal.code` of the report, or else the outcome.
"""


@dataclass(frozen=True)
class Result:
    """What the gate said."""

    outcome: str
    exit_code: int
    code: str | None
    reason: str
    left: tuple[str, ...]  # what was there after it and not before


def results(title: str, place: Path) -> Iterator[tuple[str, Result]]:
    """Name and result of each input of one of ``SETS``, each made in a folder of its own below ``place``."""
    cases, allow_pickle = SETS[title]
    honest, policy = place / "honest", place / "policy.toml"
    description = ModelDescription("small_cnn", **ARCHITECTURE)
    torch.manual_seed(0)
    save_model(honest, description.build(), description)
    policy.write_text(TEMPLATE)
    digits = load("digits")  # once: reading it takes longer than most refusals
    for number, (name, case) in enumerate(cases.items()):
        folder = place / str(number)
        folder.mkdir()
        path = case.make(folder)
        before = _tree(folder)
        of_data = cases is data.CASES
        described = of_data or cases in (folders.CASES, text_folders.CASES, weights.CASES, weights.EXTREME)
        result = gate(
            honest if of_data else path,
            path if of_data else digits,
            policy=policy,
            architecture=None if described else "registered:small_cnn",
            arguments=None if described else ARCHITECTURE,
            allow_pickle=allow_pickle,
            progress=False,
        )
        refusal = result.report["refusal"] or {"code": None, "reason": result.report["verdict"]["reasons"][0]}
        left = tuple(sorted(_tree(folder) - before))
        yield name, Result(result.outcome, result.exit_code, refusal["code"], refusal["reason"], left)


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def table(found: Mapping[str, Result]) -> list[str]:
    """Markdown: a table of the tricks that come in ``pickles.FORMS``, a column each, and one of the rest."""
    forms, rest = dict[str, dict[str, str]](), dict[str, str]()
    for name, result in found.items():
        trick, _, form = name.rpartition(" in ")
        told = f"`{result.code or result.outcome}`"
        if form in pickles.FORMS and f"{trick} in {list(pickles.FORMS)[-1]}" in found:
            forms.setdefault(trick, {})[form] = told
        else:
            rest[name] = told
    lines = []
    if forms:
        lines += [f"| input, called | {' | '.join(pickles.FORMS)} |", "| --- |" + " --- |" * len(pickles.FORMS)]
        lines += [f"| {_cell(t)} | {' | '.join(codes[f] for f in pickles.FORMS)} |" for t, codes in forms.items()]
        lines += [""]
    lines += ["| input | result |", "| --- | --- |"]
    return lines + [f"| {_cell(name)} | {told} |" for name, told in rest.items()]


def _cell(text: str) -> str:
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def main() -> None:
    """Write the page."""
    lines, n, slowest = list[str](), 0, 0.0
    for title in SETS:
        found: dict[str, Result] = {}
        with tempfile.TemporaryDirectory() as place:
            begin = time.perf_counter()
            for name, result in results(title, Path(place)):
                now = time.perf_counter()
                slowest, begin = max(slowest, now - begin), now
                found[name] = result
        n += len(found)
        lines += ["", f"## {title}", "", *table(found)]
    PAGE.write_text(HEAD.format(n=n, slowest=math.ceil(slowest)) + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
