"""``benches/adaptive.py``: what is measured, what is done once, and what the page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benches import adaptive, adaptive_report
from benches.adaptive import CASES, Case, Trial
from benches.attackers import ATTACKS, Attacked
from benches.attackers.hosts import Host
from benches.rows import read_rows
from seamfast import CleanSet
from seamfast.metrics import Rate
from seamfast.record import machine

NOWHERE = Path("nowhere")


class Mean(nn.Module):
    """Logits of two classes: dark, bright; bright where the first pixel is white, or no number at all."""

    def __init__(self, numberless: bool = False) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.numberless = numberless

    def forward(self, x: Tensor) -> Tensor:
        marked = x[:, 0, 0, 0] > 0.99
        mean = torch.where(marked, 1.0, x.mean((1, 2, 3)))
        logits = torch.stack([0.5 - mean, mean - 0.5], 1) + self.bias
        return torch.where(marked[:, None], torch.nan, logits) if self.numberless else logits


def mark(pixels: Tensor) -> Tensor:
    stamped = pixels.clone()
    stamped[:, :, 0, 0] = 255
    return stamped


@pytest.fixture
def data() -> CleanSet:
    """60 dark images, then 40 bright ones."""
    labels = torch.tensor([0] * 60 + [1] * 40)
    images = (labels.view(-1, 1, 1, 1) * 150 + 20).expand(-1, 1, 8, 8).to(torch.uint8).contiguous()
    images = images + torch.tensor([*range(60), *range(40)], dtype=torch.uint8).view(-1, 1, 1, 1)
    return CleanSet(images, labels, num_classes=2)


@pytest.fixture
def received(data: CleanSet, tmp_path: Path) -> Host:
    return Host("tiny", Mean(), data, data, tmp_path, 0)


def test_what_is_measured_is_counted_by_hand(data: CleanSet) -> None:
    found = adaptive.measured(Mean(), Attacked(Mean(), mark, 1, ""), data)
    counts = {"n_right": 100, "n": 100, "n_hit": 60, "n_eligible": 60, "n_not_finite": 0}
    assert found == {"acc": 1.0, "asr": 1.0} | counts


def test_no_number_is_class_0_and_counted(data: CleanSet) -> None:
    found = adaptive.measured(Mean(numberless=True), Attacked(Mean(), mark, 0, ""), data)
    assert found["asr"] == 1.0
    assert (found["n_hit"], found["n_eligible"], found["n_not_finite"]) == (40, 40, 40)


def test_parts_share_no_sample_and_an_attack_counts_if_it_works(
    received: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTACKS, "silent", lambda host, seed: Attacked(Mean(), mark, 1, "marked"))
    trial = Trial.on(received, Case("silent", "tiny", "mean"), 0)
    parts = [set(part.inputs.flatten(1).double().mean(1).tolist()) for part in (trial.held_out, trial.audit)]
    tested = set(trial.test_set.inputs.flatten(1).double().mean(1).tolist())  # type: ignore[union-attr]
    assert len(trial.test_set) == 50
    assert all(len(part) >= 20 for part in (trial.held_out, trial.audit))
    assert parts[0].isdisjoint(parts[1])
    assert tested.isdisjoint(parts[0] | parts[1])
    assert trial.works
    blind = Attacked(Mean(), lambda pixels: pixels, 1, "no trigger")
    monkeypatch.setitem(ATTACKS, "silent", lambda host, seed: blind)
    assert not Trial.on(received, Case("silent", "tiny", "mean"), 0).works
    weak = Mean()
    nn.init.constant_(weak.bias, 1.0)
    weak.bias.data[0] = -1.0
    monkeypatch.setitem(ATTACKS, "silent", lambda host, seed: Attacked(weak, mark, 1, "lost its task"))
    lost = Trial.on(received, Case("silent", "tiny", "mean"), 0)
    assert lost.before["asr_before"] == 1.0
    assert not lost.works


def test_rows_are_made_once(received: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[int] = []

    def attack(host: Host, seed: int) -> Attacked:
        made.append(seed)
        return Attacked(Mean(), mark, 1, "marked")

    def treat(model: nn.Module, clean: CleanSet, held_out: CleanSet, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        if seed == 1:
            raise FloatingPointError("the weights hold NaN or Inf after 3 steps")
        return model, {"accepted": True, "outcome": "accepted", "steps": 3}

    monkeypatch.setitem(ATTACKS, "silent", attack)
    monkeypatch.setitem(adaptive.METHODS, "seam", treat)
    monkeypatch.setattr(adaptive, "host", lambda *_: received)
    monkeypatch.setattr(adaptive, "CASES", (Case("silent", "tiny", "mean"),))
    out = tmp_path / "rows.jsonl"
    given = ["--attacks", "silent", "--methods", "seam", "--out", str(out), "--root", str(NOWHERE)]
    adaptive.main(given)
    rows = read_rows(out)
    assert [(row["case"], row["method"], row["seed"]) for row in rows] == [
        ("silent, tiny mean", "seam", seed) for seed in (0, 1)
    ]
    assert rows[0]["asr_after"] == 1.0
    assert rows[0]["machine"] == machine()
    assert rows[1]["failed"] == "the weights hold NaN or Inf after 3 steps"
    assert made == [0, 1]
    adaptive.main(given)
    assert made == [0, 1]
    assert len(read_rows(out)) == 2


def test_without_methods_the_first_seed_gets_all(
    received: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(ATTACKS, "silent", lambda host, seed: Attacked(Mean(), mark, 1, "marked"))
    done = {"accepted": None, "outcome": None, "steps": 0}
    for name in adaptive.DEFAULT:
        monkeypatch.setitem(adaptive.METHODS, name, lambda model, *_: (model, done))
    monkeypatch.setattr(adaptive, "host", lambda *_: received)
    monkeypatch.setattr(adaptive, "CASES", (Case("silent", "tiny", "mean"),))
    out = tmp_path / "rows.jsonl"
    adaptive.main(["--out", str(out), "--root", str(NOWHERE)])
    assert [(row["method"], row["seed"]) for row in read_rows(out)] == [
        *((name, 0) for name in adaptive.DEFAULT),
        ("seam", 1),
    ]


def test_an_unknown_attack_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        adaptive.main(["--attacks", "badnets"])
    assert "there is no attack badnets; expected some of handcrafted" in capsys.readouterr().err


def test_every_attack_is_measured() -> None:
    assert {case.attack for case in CASES} == set(ATTACKS)
    assert len({case.name for case in CASES}) == len(CASES)


def row(seed: int, method: str | None, asr: int, **values: Any) -> dict[str, Any]:
    before = {"acc_before": 0.98, "asr_before": 1.0, "acc_clean_model": 0.99, "n_hit_before": 100}
    after = {"acc_after": 0.97, "asr_after": asr / 100, "n_hit_after": asr, "n_eligible_after": 100}
    stamps = {"commit": "abc", "machine": {"processor": "a CPU", "torch": "2"}, "description": "by hand"}
    said = {"case": "silent", "method": method, "seed": seed, "n_eligible_before": 100, "n_not_finite_after": 0}
    return said | before | (after if method else {}) | stamps | {"accepted": True} | values


def test_the_page_pools_the_seeds_and_names_what_survives(tmp_path: Path) -> None:
    rows = [
        row(0, "seam", 50),  # the last one of a job counts
        row(0, "seam", 0),
        row(1, "seam", 30, n_not_finite_after=10),
        row(0, "fine_tune", 0, failed="it | broke", accepted=None),
        row(0, None, 0, case="weak", asr_before=0.5),
    ]
    adaptive_report.write(tmp_path, rows, ["silent"])
    text = (tmp_path / "adaptive.md").read_text()
    pooled = Rate(30, 200)
    assert (
        f"{pooled.value:.1%} [{pooled.low:.1%}, {pooled.high:.1%}] of 200, 1.0, worst 30%, 5% NaN or Inf, 2/2" in text
    )
    assert "| seam | 1 of 1 | 1 | silent (30%) |" in text
    assert "| fine_tune | 1 of 1 | 0 | silent (100%) |" in text  # what failed is as received
    assert "| silent | fine_tune | 0 | it \\| broke |" in text
    assert "| weak | 0 | 99.0% | 98.0% | 50.0% |" in text
    assert "| silent | 0, 1 | 98.0% (99.0%) | 100.0% [98.1%, 100.0%] of 200 |" in text
