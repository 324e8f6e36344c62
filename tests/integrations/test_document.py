"""The blocks of docs/integrations.md that need optional packages; tests/test_docs.py runs the others alone."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "integrations.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDED = {"tensorboard": "tensorboard", "mlflow": "mlflow", "sqlalchemy": "mlflow", "lightning": "lightning"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_blocks_that_need_packages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, extra in {**NEEDED, "transformers": "hf"}.items():
        pytest.importorskip(package, reason=f"needs the extra {extra}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "logs")
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}
    blocks = [body for language, body in FENCE.findall(DOCUMENT.read_text(encoding="utf-8")) if language[:2] == "py"]
    assert len(blocks) == 5
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for block in blocks:
            exec(compile(block, str(DOCUMENT), "exec"), namespace)
    assert [str(w.message) for w in warned if "failed in" in str(w.message)] == []
    assert namespace["sanitizer"].result.report["seed"] == 1
    assert namespace["mlflow"].run_id is not None
    assert (tmp_path / "logs").is_dir()
