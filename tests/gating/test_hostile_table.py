"""Every hostile input through the whole gate: refused, with nothing left behind, as docs/hostile-inputs.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.table import PAGE, SETS, results, table

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


@pytest.mark.parametrize("title", SETS)
def test_every_input_is_refused_as_the_page_says(title: str, tmp_path: Path, tripwire: list[str]) -> None:
    if title.startswith("Folders"):
        pytest.importorskip("transformers", reason="descriptions of transformers' models need seamfast[hf]")
    found = dict(results(title, tmp_path))
    for name, result in found.items():
        is_run = title.startswith("Weights of extreme")
        assert (result.outcome, result.exit_code) in {("refused", 3), ("fail", 1) if is_run else ("refused", 3)}, name
        assert result.left == (), name
        assert result.reason.isprintable(), name
    told = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n\n")[1].split("\n## ")[0]
    assert told.strip().splitlines() == table(found)
    assert tripwire == []
