"""The bench of forgetting by the kernel: what a row holds, which are run, and what the report makes of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import seamfast
from benches import ntk, ntk_growth, ntk_report, text_zoo, zoo
from benches.rows import append_row, read_rows
from benches.text_zoo import TextEntry
from benches.zoo import Entry
from seamfast import CleanSet, attacks
from seamfast.attacks import Backdoor, TrainConfig
from seamfast.audits.ntk import SCHEMES
from seamfast.triggers import Patch

MODEL = Entry("mnist", "small_cnn", "badnets")


@pytest.fixture(scope="module")
def case() -> ntk.Case:
    """Digits with a patch."""
    train, test = (seamfast.load("digits", split=split) for split in ("train", "test"))
    torch.manual_seed(0)
    model = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
    trigger = Patch.square(size=3, target=3)
    attacks.train(model, attacks.poison(train, trigger, 0.1), TrainConfig(epochs=20), seed=0, progress=False)
    probes = (test.labels != 3).nonzero().flatten()[:12]
    stamped = trigger.stamp(test.stampable(probes), sample_ids=probes)
    triggered = CleanSet(stamped, test.labels[probes], **test.description)
    sets = train.subset(range(16)), test.subset(probes), triggered, train.draw(0.2)
    return ntk.Case(model, Backdoor("badnets", (trigger,)), *sets)


@pytest.fixture(scope="module")
def row(case: ntk.Case) -> dict[str, Any]:
    return ntk.row_of(MODEL, case) | {"seconds": 1.0}


def test_a_row_has_what_was_predicted_and_what_was(row: dict[str, Any]) -> None:
    assert (row["entry"], row["n"], row["batch_norm"]) == (MODEL.name, 16, False)
    for kernel in ("predicted", "last_layer"):
        assert set(row[kernel]) == set(SCHEMES)
        assert set(row[kernel]["uniform"]) == {"clean", "triggered"}
        assert all(0 <= one["gone"] <= 1 for by in row[kernel].values() for one in by.values())
    assert row["predicted"]["true"]["clean"]["to_the_end"] < row["predicted"]["wrong"]["clean"]["to_the_end"]
    kinds = {(one["scheme"], one["steps"], one["rate"], one["probes"]) for one in row["actual"]}
    assert len(kinds) == len(row["actual"]) == (len(SCHEMES) + 1) * len(ntk.STEPS) * 2
    small = [one for one in row["actual"] if (one["steps"], one["rate"]) == (1, 0.1)]
    assert all(one["error"] < 0.2 for one in small)
    assert all(0.5 < one["predicted"] / one["actual"] < 2 for one in small)
    assert set(row["overlap"]) == {"clean", "triggered", "forget", "recover"}
    assert row["overlap"]["clean"]["shared"] > row["overlap"]["triggered"]["shared"]
    acc = row["path"]["acc"]
    assert len(acc) == len(row["path"]["asr"]) + 1
    assert acc[0] > 0.8 > 0.3 > min(acc)


def test_the_asr_at_collapse_is_that_of_the_first_step_below_half(row: dict[str, Any]) -> None:
    path = row["path"]
    first = next(number for number, acc in enumerate(path["acc"][1:]) if acc <= path["half"])
    assert path["asr_at_collapse"] == path["asr"][first]


def test_the_student_sees_patterns(case: ntk.Case) -> None:
    subject = ntk.place(case.model, case.train, "auto")
    plain = subject.data.inputs(torch.arange(len(case.train)))
    seen = {name: ntk.as_student_sees(case.model, case.train, s) for name, s in ntk.views(case.train).items()}
    assert all(
        torch.is_tensor(one) and one.shape == plain.shape and not torch.equal(one, plain) for one in seen.values()
    )
    assert not torch.equal(seen["forget"], seen["recover"])


def test_joined_sets_are_in_order(case: ntk.Case) -> None:
    both = ntk.joined(case.clean, case.triggered)
    assert torch.equal(both.inputs[: len(case.clean)], case.clean.inputs)
    assert torch.equal(both.inputs[len(case.clean) :], case.triggered.inputs)
    assert len(both) == len(case.clean) + len(case.triggered)


def test_joined_texts_are_as_long_as_the_longest() -> None:
    short, long = (
        CleanSet(
            {
                "input_ids": torch.arange(208 - n, 208).expand(2, n),
                "attention_mask": torch.ones(2, n, dtype=torch.int64),
            },
            torch.tensor([0, 1]),
        )
        for n in (3, 4)
    )
    both = ntk.joined(short, long).inputs
    assert isinstance(both, dict)
    assert both["attention_mask"].sum(1).tolist() == [3, 3, 4, 4]


def test_rows_that_are_there_are_not_made_again(
    case: ntk.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    monkeypatch.setattr(zoo, "is_planted", lambda entry, zoo: entry.attack != "blended")
    monkeypatch.setattr(text_zoo, "is_planted", lambda entry, zoo: True)
    monkeypatch.setattr(ntk, "prepare", lambda entry, arguments: case)
    monkeypatch.setattr(ntk, "row_of", lambda entry, case: made.append(entry.name) or {"entry": entry.name})
    text = TextEntry("sst2", "text_cnn", "word").name
    given = ["--out", str(tmp_path / "rows"), "--models", MODEL.name, text, "mnist-small_cnn-blended-0.05-0", "none"]
    for _ in range(2):
        assert ntk.main(given) == 0
    assert made == [row["entry"] for row in read_rows(tmp_path / "rows")] == [MODEL.name, text]
    assert "not planted and left out: mnist-small_cnn-blended-0.05-0, none\n" in capsys.readouterr().err


def test_at_least_twelve_models_are_asked_for_by_default() -> None:
    planted = {entry.name for entry in (*zoo.declared(zoo.TRAINING), *text_zoo.declared())}
    assert {entry.name for entry in ntk.MODELS} <= planted
    assert len(ntk.MODELS) >= 12


def test_a_planted_model_becomes_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {split: seamfast.load("digits", split=split) for split in ("train", "test")}
    trigger = Patch.square(size=3, target=3)
    model = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
    monkeypatch.setattr(zoo, "load", lambda entry, zoo: (model, Backdoor("badnets", (trigger,))))
    monkeypatch.setattr(zoo, "read", lambda name, root, split: sets[split])
    monkeypatch.setattr(zoo, "clean_part", lambda name, data, budget, seed: data.draw(budget, seed=seed))
    made = ntk.prepare(MODEL, SimpleNamespace(zoo=tmp_path, root=tmp_path))
    assert [len(part) for part in (made.train, made.clean, made.triggered)] == [64, 64, 64]
    assert 3 not in made.clean.labels
    assert torch.equal(made.clean.labels, made.triggered.labels)
    assert torch.equal(made.clean.inputs[..., :4, :4], made.triggered.inputs[..., :4, :4])
    assert not torch.equal(made.clean.inputs, made.triggered.inputs)


# The report.


def test_ranks_are_compared() -> None:
    assert ntk_report.spearman([(1, 2), (2, 4), (5, 9)]) == pytest.approx(1.0)
    assert ntk_report.spearman([(1, 9), (2, 4), (5, 2)]) == pytest.approx(-1.0)
    assert ntk_report.spearman([(1, 1), (1, 2), (2, 3), (3, 3)]) == pytest.approx(8 / 9)  # ties
    assert ntk_report.spearman([(1, 1), (1, 2)]) is ntk_report.spearman([]) is None


def test_the_report_is_made_of_the_rows(row: dict[str, Any], tmp_path: Path) -> None:
    other = row | {"entry": "sst2-text_cnn-word-0", "data": "sst2", "attack": "word"}
    other["path"] = other["path"] | {"asr_at_collapse": None}
    cured = {"entry": MODEL.name, "method": "seam (balanced)", "budget": 0.05, "seed": 0, "asr_after": 0.07}
    ntk_report.write(tmp_path, [other, row], [cured, cured | {"method": "nad", "asr_after": 0.5}])
    page = (tmp_path / "ntk-study.md").read_text()
    assert page.startswith("# Forgetting by the kernel, measured\n\n2 models with a backdoor, 1 of them of text;")
    line = next(one for one in page.splitlines() if one.startswith(f"| {MODEL.name} |")).split(" | ")
    assert line[7].endswith("%")
    assert line[8] == "7.0%"
    assert "ASR after the cure, images (n = 1) | ASR after the cure, all (n = 1) |" in page
    for block in page.split("\n\n"):
        lines = [one for one in block.splitlines() if one.startswith("|")]
        assert len({one.count("|") for one in lines}) <= 1, block
    first = {path.name: path.read_bytes() for path in tmp_path.glob("ntk*")}
    assert len(first) == 5
    ntk_report.write(tmp_path, [row, other, row], [cured])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("ntk*")} == first


def test_no_rows_are_said(tmp_path: Path) -> None:
    append_row(tmp_path / "rows", {"entry": "other"})
    (tmp_path / "rows").unlink()
    assert ntk.main(["--report", "--out", str(tmp_path / "rows"), "--docs", str(tmp_path)]) == 0
    assert "No rows yet; `python benches/ntk.py` makes them." in (tmp_path / "ntk-study.md").read_text()


# What it costs.


def test_a_size_is_timed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    sizes = (ntk_growth.Size("images", n=4, width=4, classes=3), ntk_growth.Size("classes", n=4, width=4, classes=2))
    monkeypatch.setattr(ntk_growth, "SIZES", sizes)
    given = ["--out", str(tmp_path / "rows"), "--docs", str(tmp_path), "--repeats", "1"]
    for _ in range(2):
        assert ntk_growth.main(given) == 0
    rows = read_rows(tmp_path / "rows")
    assert [(row["kind"], row["n"], row["classes"]) for row in rows] == [("images", 4, 3), ("classes", 4, 2)]
    assert all(row["seconds"] > 0 and row["seconds_a_product"] > 0 and row["residual"] <= 0.01 for row in rows)
    assert rows[0]["n_parameters"] == sum(p.numel() for p in ntk_growth.network(sizes[0]).parameters())
    capsys.readouterr()
    assert ntk_growth.main([*given, "--report"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith(f"| images | cnn | {rows[0]['n_parameters']:,} | 4 + 4 | 3 | {rows[0]['n_products']} |")
    assert len({line.count("|") for line in table}) == 1
    assert (tmp_path / "ntk-growth.svg").is_file()
