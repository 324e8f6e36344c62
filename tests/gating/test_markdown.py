"""The summary in Markdown: names in it stay names, and it is short enough; test_golden.py has the rest."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamfast.documents.markup import visible
from seamfast.gating.documents.markdown import MAX_CHARACTERS, as_markdown
from tests.gating.examples import OUTCOMES, cases, example
from tests.gating.hostile_text import STRINGS, with_strings

ANYTHING = st.text(st.characters(exclude_categories=()), max_size=30)


def shape(summary: str) -> list[tuple[str, int, int]]:
    """Of each line: what begins it, how many cells and how many pieces of code it has."""
    return [
        (re.match(r"(#+ |- |\| )?", line)[0], line.count("|"), line.count("`"))  # type: ignore[index]
        for line in summary.split("\n")
    ]


def without_code(summary: str) -> str:
    return re.sub(r"`[^`]*`", "CODE", summary)


@pytest.mark.parametrize("case", [*OUTCOMES, "text"])
@pytest.mark.parametrize("name", STRINGS)
def test_hostile_strings_change_no_structure(name: str, case: str) -> None:
    report = cases()[case]
    summary = as_markdown(with_strings(report, STRINGS[name]))
    assert shape(summary) == shape(as_markdown(with_strings(report, "benign")))
    assert len(summary) <= MAX_CHARACTERS
    assert all(character.isprintable() or character == "\n" for character in summary)
    text = without_code(summary)
    assert not re.search(r"[<>\[\]~$\\@*]", text)
    assert not re.search(r"&(?!#\d+;)", text)
    assert not re.search(r"(?i)www\.|https?:|javascript:", text)
    assert not re.search(r"&#(64|35|58);(?!&#8203;)", text)  # a zero-width space follows @, # and :
    assert not re.search(r"^- (?:[-+#>]|\d+[.)]\s)", text, re.M)


@settings(max_examples=40, deadline=None)
@given(ANYTHING)
def test_any_string_changes_no_structure(string: str) -> None:
    report = example("pass")
    assert shape(as_markdown(with_strings(report, string))) == shape(as_markdown(with_strings(report, "benign")))


def test_names_are_shown_as_they_are() -> None:
    report: dict[str, Any] = example()
    report["model"]["path"] = "a<b>|c`d*e\u202ef @g"
    assert r"Model `a<b>\x7cc\x60d*e\u202ef @g`. " in as_markdown(report)


def test_texts_are_read_back_as_they_are() -> None:
    report = example()
    report["statements"] = ["a_b _c_ 1.5 (d): <e> & f|g #1 @h 09:26 x:y"]
    line = next(line for line in as_markdown(report).split("\n") if line.startswith("- a_"))
    assert line.startswith("- a_b &#95;c&#95; 1.5 (d): &#60;e&#62; &#38; f&#124;g ")
    told = re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), line).replace("\u200b", "")
    assert told == f"- {report['statements'][0]}"


def test_long_reports_are_cut_and_say_so() -> None:
    report = with_strings(example("fail"), "@\ud800" * 5_000)
    report["policy"]["rules"] *= 500
    report["model"]["files"] *= 500
    for key in ("statements", "limits", "warnings"):
        report[key] *= 500
    report["verdict"]["reasons"] *= 500
    summary = as_markdown(report)
    assert len(summary) <= MAX_CHARACTERS
    assert "1,960 more are in report.json." in summary  # rules
    assert "- 480 more are in report.json." in summary
    assert "| 15.8% | 12.7% to 19.4% | 19.4% | at most 5% | 450 |" in summary  # numbers are whole


def test_long_digests_are_whole_in_a_cut_summary() -> None:
    report = example()
    report["policy"]["rules"] = [rule | {"id": visible("x" * 600)} for rule in report["policy"]["rules"]] * 100
    assert report["policy"]["sha256"] in as_markdown(report)


def test_equal_reports_give_equal_summaries() -> None:
    report = example()
    before = repr(report)
    assert as_markdown(report) == as_markdown(example())
    assert repr(report) == before
