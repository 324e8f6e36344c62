"""Numbers and names as the documents for people say them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seamfast.documents.markup import visible
from seamfast.gating.documents import wording


@pytest.mark.parametrize(
    ("value", "apart", "text"),
    [
        (0.0, (), "0.0%"),
        (1.0, (), "100.0%"),
        (0.976, (), "97.6%"),
        (0.00021, (), "0.02%"),
        (0.0000004, (), "<0.01%"),
        (0.00004, (), "<0.01%"),
        (0.00004, (0.00005,), "0.004%"),
        (0.00011, (), "0.01%"),
        (0.99996, (), "99.996%"),
        (-0.0107, (), "−1.1%"),
        (0.0304, (), "3.0%"),
        (0.0304, (0.03,), "3.04%"),
        (0.0296, (0.03,), "2.96%"),
        (0.03, (0.03,), "3.0%"),
        (None, (), "n/a"),
    ],
)
def test_percent(value: float | None, apart: tuple[float, ...], text: str) -> None:
    assert wording.percent(value, *apart) == text


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_percent_is_on_the_right_side_of_what_it_is_compared_with(value: int, other: int) -> None:
    told = float(wording.percent(value / 10**6, other / 10**6).strip("<%")) / 100
    difference, told_difference = value - other, told - other / 10**6
    assert (difference > 0) == (told_difference > 1e-12)
    assert (difference < 0) == (told_difference < -1e-12)


def rule(**changes: Any) -> dict[str, Any]:
    known = {"metric": "accuracy_lost", "threshold": 0.03, "greater_is_better": False}
    return known | {"value": 0.01, "low": -0.01, "high": 0.0304, "bound": 0.0304} | changes


def test_rules_in_words() -> None:
    assert wording.requirement(rule()) == "at most 3%"
    assert wording.measured(rule(), "bound") == "3.04%"
    assert wording.interval(rule()) == "−1.0% to 3.0%"
    assert wording.requirement(rule(threshold=0.0125, greater_is_better=True)) == "at least 1.25%"
    assert wording.measured(rule(value=None), "value") == "n/a"
    assert wording.interval(rule(low=None)) == "n/a"


def test_rules_on_numbers_and_truths() -> None:
    index = rule(metric="after.inversion_anomaly_index", threshold=2.0, value=2.001, low=2.001, high=2.001, bound=2.001)
    assert (wording.requirement(index), wording.measured(index, "bound")) == ("at most 2", "2.001")
    assert wording.interval(index) == "n/a"
    accepted = rule(metric="sanitize.accepted", threshold=True, value=0.0, bound=None)
    assert (wording.requirement(accepted), wording.measured(accepted, "value")) == ("true", "false")
    assert wording.measured(accepted, "bound") == "n/a"


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (55_736, "55.7 kB"), (999_960, "1.0 MB"), (3 * 10**15, "3,000.0 TB")],
)
def test_size(n_bytes: int, text: str) -> None:
    assert wording.size(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.04 s"), (3.25, "3.2 s"), (59.96, "1 min 0 s"), (125.4, "2 min 5 s"), (3780.0, "1 h 3 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("created", "text"),
    [
        ("2026-03-14T09:26:53+00:00", "2026-03-14 09:26 UTC"),
        ("2026-03-14T01:26:53+02:00", "2026-03-13 23:26 UTC"),
        ("2026-03-14T09:26:53Z", "2026-03-14 09:26 UTC"),
        ("0001-01-01T00:00:00+23:00", "0001-01-01T00:00:00+23:00"),
        ("today", "today"),
    ],
)
def test_moment(created: str, text: str) -> None:
    assert wording.moment(created) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain_name.safetensors", "plain_name.safetensors"),
        ("Straße 東京 עברית 🦆", "Straße 東京 עברית 🦆"),
        ("a\x00\x1b[2J\n\u202eb", r"a\x00\x1b[2J\n\u202eb"),
        ("\ud800\U000e0041", r"\ud800\U000e0041"),
        ("\u0338a", r"\u0338a"),
        ("e\u0301x", "e\u0301x"),
        ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + r"\u0301\u0301"),
        ("", "(empty)"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=())), st.integers(2, 40))
def test_visible_is_printable_short_and_stable(text: str, limit: int) -> None:
    shown = visible(text, limit)
    assert shown.isprintable()
    assert shown.encode()
    assert len(shown) <= 10 * (limit + 1)
    assert visible(shown, None) == shown


def test_long_names_keep_both_ends() -> None:
    assert visible("a" * 600 + "b" * 600, 10) == "aaaaa…bbbbb"


def test_classes_with_and_without_names() -> None:
    report = {"data": {"class_names": ["0", "stop\n"]}}
    assert [wording.class_label(report, label) for label in (0, 1, 2)] == ["0", r"1 (stop\n)", "2"]
    assert wording.class_label({"data": None}, 3) == "3"


def test_lists_say_what_they_leave_out() -> None:
    assert wording.first([1, 2], 2) == ([1, 2], [])
    assert wording.first(list(range(1234)), 2) == ([0, 1], ["1,232 more are in report.json."])
