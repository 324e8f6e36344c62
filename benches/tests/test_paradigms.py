"""The study of paradigms: which rows are run, what they hold, and what the tables make of them."""

from __future__ import annotations

from typing import Any

from benches import paradigms_report

# 1. The report.


def row(**changes: Any) -> dict[str, Any]:
    """One of a cure that took the ASR from 100 to 10 %, 8 above the floor, and the ACC from 80 to 78 %."""
    made = {"method": "seam (balanced)", "budget": 0.05, "seed": 0, "data": "gtsrb", "architecture": "resnet20"}
    before = {"acc_before": 0.8, "asr_before": 1.0, "floor": 0.02, "ca": 0.81, "n_eligible": 1000}
    after = {"acc_after": 0.78, "asr_after": 0.1, "fidelity": 0.85, "fidelity_nist": 0.88, "steps": 300}
    return {"entry": "a-on-gtsrb", **made, **before, **after, "seconds": 3.0, "accepted": True, **changes}


ENCODER = [
    row(),
    row(entry="b-on-gtsrb", asr_after=0.0, acc_after=0.8, fidelity=1.0),  # below its floor
    row(method="fine_tune", accepted=None, asr_after=0.9, acc_after=0.7),
    row(entry="c-on-gtsrb", asr_before=0.5),  # did not work
    row(entry="a-on-cifar10", data="cifar10", budget=1.0),
    row(entry="a-on-cifar10", data="cifar10", budget=1.0, method="nad", failed="NaN"),
]


def standalone(**changes: Any) -> dict[str, Any]:
    """A row of the study of classifiers."""
    made = {"entry": "mnist-a", "data": "mnist", "architecture": "small_cnn", "attack": "badnets", "rate": 0.05}
    return row(**made, part="development") | changes


STANDALONE = [
    standalone(asr_after=0.02),
    standalone(entry="mnist-b", asr_after=0.04),
    standalone(entry="mnist-c", asr_after=0.9),  # one that super-fine-tuning did not have
    standalone(method="super_fine_tune", asr_after=0.3, accepted=None),
    standalone(method="super_fine_tune", entry="mnist-b", asr_after=0.5, accepted=None),
    standalone(method="super_fine_tune", entry="mnist-d", asr_before=0.2),  # did not work
    standalone(method="super_fine_tune", entry="mnist-c", budget=0.01),
    standalone(method="nad", asr_after=0.6, accepted=None),
    standalone(method="seam, occlusions=0", asr_after=0.7),
]


def test_encoders_have_a_table_for_each_budget() -> None:
    lines = paradigms_report.page([], [], ENCODER).splitlines()
    wanted = (
        "| gtsrb | seam (balanced) | 2 | 80.0% | 1.00 | 2.00 | 100.0% | 2.0% | 5.0% | 10.0% | 4.0 | 3.0 | 2/2 |",
        "| gtsrb | fine_tune | 1 | 80.0% | 10.00 | 10.00 | 100.0% | 2.0% | 90.0% | 90.0% | 88.0 | 3.0 |  |",
        "| a-on-gtsrb | seam (balanced) | 0 | 81.0% | 80.0% | 78.0% | 100.0% | 2.0% | 10.0% [8.3%, 12.0%] | 1000 |",
        "| cifar10 | nad | 0 (1 failed) |" + "  |" * 10,
        "| a-on-cifar10 | nad | 0 | 81.0% | 80.0% | NaN |" + "  |" * 4,
        "Left out, as the attack did not reach an ASR of 90 % with no defense: c-on-gtsrb (50.0%).",
        "### 5 % of the downstream training set",
        "### All of the downstream training set",
    )
    for line in wanted:
        assert line in lines, line
    assert not any(line.startswith("| c-on-gtsrb") for line in lines)


def test_all_lines_of_a_table_are_as_long_as_its_head() -> None:
    blocks = paradigms_report.page(STANDALONE, ENCODER, ENCODER).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("| ")]
    assert len(tables) == 7  # of the paradigms; standalone; transfer; two for each of two budgets
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1, lines


def test_classifiers_are_those_that_super_fine_tuning_had() -> None:
    lines = paradigms_report.page(STANDALONE, [], []).splitlines()
    wanted = (
        "| seam (balanced) | 2 | 100.0% | 3.0% | 4.0% | 3.0% | 2.00 | 0.850 | 3.0 | 2/2 |",
        "| super_fine_tune | 2 | 100.0% | 40.0% | 50.0% | 3.0% | 2.00 | 0.850 | 3.0 |  |",
        "| nad | 1 | 100.0% | 60.0% | 60.0% | 2.0% | 2.00 | 0.850 | 3.0 |  |",
    )
    for line in wanted:
        assert line in lines, line
    assert not any("occlusions" in line for line in lines)


def test_what_has_no_rows_is_named() -> None:
    page = paradigms_report.page([], [], [])
    for name in ("study", "transfer_study", "paradigms"):
        assert f"No rows yet; `python benches/{name}.py` makes them.\n" in page
