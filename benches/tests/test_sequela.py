"""The study of what a cure leaves behind: which rows are run, what is measured with what, what the tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benches import sequela, sequela_report, study, zoo
from benches.rows import Row, read_rows
from benches.zoo import Entry
from seamfast.attacks import TrainConfig

NOWHERE = Path("nowhere")  # digits come with scikit-learn
DIGITS = {("digits", "small_cnn"): TrainConfig(epochs=10, batch_size=64, rate=0.1)}
BADNETS = Entry("digits", "small_cnn", "badnets", 0.05)


@pytest.fixture(autouse=True)
def of_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "TRAINING", DIGITS)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of two models of digits: badnets, and its clean twin."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "TRAINING", DIGITS)
        for entry in (BADNETS, BADNETS.clean_twin):
            zoo.plant(entry, folder, precision="fp32")
    return folder


@pytest.fixture(scope="module")
def measured(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the models as they are, run in two parts, and a third time with nothing left to do."""
    out = tmp_path_factory.mktemp("rows") / "sequela.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "TRAINING", DIGITS)
        for methods in ([sequela.RECEIVED], [sequela.RECEIVED, sequela.TWIN], [sequela.TWIN]):
            sequela.main(asked(planted, out, "--methods", *methods))
    return out


def asked(planted: Path, out: Path, *more: str) -> list[str]:
    return ["--data", "digits", "--zoo", str(planted), "--root", str(NOWHERE), "--out", str(out), *more]


def test_the_models_by_default_are_twelve_and_more() -> None:
    assert sum(map(len, sequela.MODELS.values())) >= 12
    assert list(sequela.METHODS) == ["received", "seam (balanced)", "super_fine_tune", "fine_tune", "ft_sam", "scratch"]


def test_what_is_there_is_not_run_again(measured: Path) -> None:
    rows = read_rows(measured)
    assert [row["method"] for row in rows] == ["received", "never backdoored"]
    assert {row["entry"] for row in rows} == {BADNETS.name}
    assert not any("failed" in row for row in rows)


def test_a_row_says_what_the_models_are_weak_to(measured: Path) -> None:
    received, twin = read_rows(measured)
    assert received["acc_after"] == received["acc_before"] == twin["acc_before"]
    assert received["asr_after"] > 0.9
    assert twin["asr_after"] < 0.2
    assert received["reactivation"]["asr_after"]["value"] > 0.9 > twin["reactivation"]["asr_after"]["value"]
    for row in (received, twin):
        assert set(row["membership"]) == {"training", "clean"}
        assert 0.4 < row["membership"]["training"]["attacks"]["loss"]["auc"]["value"] < 0.9
        assert row["reinjection"]["before"]["attack_success_rate"]["value"] < 0.5
        assert row["calibration"]["ece"]["low"] <= row["calibration"]["ece"]["value"]
        assert [level["eps"] for level in row["adversarial"]["levels"]] == [2 / 255, 8 / 255]


def test_members_are_of_the_budget_or_of_the_rest_of_the_training_data(planted: Path) -> None:
    arguments = type("Arguments", (), {"root": NOWHERE, "zoo": planted})()
    case = sequela.prepare(study.Job(BADNETS, "received", 0.05, 3), arguments)
    sets = {name: set(data.identities()) for name, data in sequela.member_sets(case, 3).items()}
    budget, everything = set(case.clean.identities()), set(case.train_set.identities())
    assert sets["clean"] == budget
    assert sets["training"] == everything - budget
    assert set(sequela.outsiders(case, 3).identities()) == set(case.test_set.identities())


def test_sets_are_cut(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequela, "MOST", 20)
    arguments = type("Arguments", (), {"root": NOWHERE, "zoo": planted})()
    case = sequela.prepare(study.Job(BADNETS, "received", 0.05, 3), arguments)
    assert [len(data) for data in sequela.member_sets(case, 3).values()] == [20, 20]
    assert len(sequela.outsiders(case, 3)) == 20


def test_a_method_that_fails_has_a_row_that_says_so(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> study.Treated:
        raise FloatingPointError("the weights hold NaN or Inf after 3 steps")

    monkeypatch.setitem(sequela.METHODS, "ft_sam", fail)
    sequela.main(asked(planted, tmp_path / "rows", "--methods", "ft_sam"))
    (row,) = read_rows(tmp_path / "rows")
    assert row["failed"] == "the weights hold NaN or Inf after 3 steps"
    sequela.main(asked(planted, tmp_path / "rows", "--report", "--docs", str(tmp_path)))
    assert "No rows yet" in (tmp_path / "sequela-study.md").read_text()


def test_models_that_are_not_planted_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sequela.main(asked(tmp_path, tmp_path / "rows", "--attacks", "sig"))
    assert not (tmp_path / "rows").exists()
    assert "1 models are not planted and left out" not in capsys.readouterr().out


# The tables.


def row(method: str, entry: str, **changes: Any) -> Row:
    def rate(value: float) -> Row:
        return {"value": value}

    figures = {
        "acc": 0.9,
        "asr": 0.02,
        "back": 0.1,
        "auc": 0.6,
        "ece": 0.05,
        "steps": {"10": None, "200": 20},
    } | changes
    reached = [int(count) for count, steps in figures["steps"].items() if steps]
    separation = {"auc": rate(figures["auc"]), "tpr_at_1_percent": rate(0.03)}
    return {
        "entry": entry,
        "method": method,
        "budget": 0.05,
        "seed": 0,
        "n_test": 1000,
        "acc_after": figures["acc"],
        "asr_after": figures["asr"],
        "membership": {name: {"attacks": {"loss": separation}} for name in ("training", "clean")},
        "reinjection": {
            "wanted": 0.9,
            "max_steps": 80,
            "fewest": min(reached, default=None),
            "steps": figures["steps"],
        },
        "reactivation": {"asr_after": rate(figures["back"])},
        "calibration": {"ece": rate(figures["ece"])},
        "adversarial": {"levels": [{"rate": rate(0.5)}, {"rate": rate(0.1)}]},
    }


def tables(tmp_path: Path, rows: list[Row]) -> dict[str, list[str]]:
    """The cells of each line of each table, by the number of the table and the method."""
    path = tmp_path / "rows"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    sequela.main(["--report", "--out", str(path), "--docs", str(tmp_path)])
    found: dict[str, list[str]] = {}
    number = 0
    for line in (tmp_path / "sequela-study.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        number += cells[0] == "method"
        found[f"{number} {cells[0]}"] = cells[1:]
    return found


def test_the_tables_by_hand(tmp_path: Path) -> None:
    rows = [
        row("received", "a", asr=1.0),
        row("received", "b", asr=0.98),
        row("fine_tune", "a", asr=0.5, auc=0.58),
        row("fine_tune", "b", asr=0.5, auc=0.56, steps={"10": 40, "200": 5}),
        row("scratch", "a", steps={"10": None, "200": None}),
    ]
    cells = tables(tmp_path, rows)
    assert cells["1 received"][:3] == ["2", "90.0", "99.0"]
    assert cells["1 fine_tune"] == ["2", "90.0", "50.0", "10.0", "3.0", "5.0", "50.0", "10.0", "0.570", "0.570"]
    # ASR: -50 and -48 points; AUC: -2 and -4 hundredths. The bounds are those of two values.
    assert cells["2 fine_tune"][2] == "-49.0 [-50.0, -48.0]"
    assert cells["2 fine_tune"][8] == "-3.0 [-4.0, -2.0]"
    assert cells["2 scratch"][0] == "1"
    assert cells["2 scratch"][2] == "-98.0"
    assert "2 received" not in cells
    # Of a: 20 / 20. Of b: sqrt(40 / 80 * 5 / 20). Together the square root of 1 * 0.3536.
    assert cells["3 fine_tune"][:5] == ["2", "2", "105", "12.5", "0.59 [0.35, 1.00] (2)"]
    assert cells["3 scratch"][:5] == ["1", "0", "", "80", "4.00 (1)"]


def test_equal_rows_give_equal_tables(tmp_path: Path) -> None:
    rows = [row("received", "a"), row("received", "b"), row("fine_tune", "b", asr=0.3), row("fine_tune", "a")]
    first = tables(tmp_path, rows)
    assert tables(tmp_path, rows[::-1]) == first


def test_the_means_of_many_have_narrow_bounds() -> None:
    values = torch.linspace(0, 1, 101).tolist()
    mean, low, high = sequela_report._mean_and_bounds(values)
    error = 1.96 * torch.tensor(values).std().item() / 101**0.5
    assert mean == pytest.approx(0.5)
    assert (low, high) == (pytest.approx(0.5 - error, abs=0.01), pytest.approx(0.5 + error, abs=0.01))
