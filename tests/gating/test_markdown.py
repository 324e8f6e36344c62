"""The summary in Markdown: what it says, and that names in it stay names."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamfast.gating.documents.markdown import MAX_CHARACTERS, as_markdown
from seamfast.gating.documents.wording import visible
from tests.gating.examples import OUTCOMES, example
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


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_verdict_comes_first(outcome: str) -> None:
    report = example(outcome)
    lines = as_markdown(report).split("\n")
    assert re.fullmatch(rf"## . seamfast intake gate: \w+ \(exit code {report['verdict']['exit_code']}\)", lines[0])
    assert {"pass": "passed", "fail": "failed"}.get(outcome, outcome) in lines[0]
    assert lines[2].startswith("Model `incoming/digits-cnn`. ")
    assert lines[4] == f"- {report['verdict']['reasons'][0]}"
    assert ("### Rules" in lines) == (outcome not in ("refused", "incomplete"))
    assert ("Code of the refusal: `pickle`" in lines) == (outcome == "refused")
    assert lines[-1] == ""


def test_rules_and_numbers() -> None:
    summary = as_markdown(example("fail"))
    rules = re.findall(r"^\| . (\w+) \| `([\w-]+)` \| `([\w.]+)` \| (.*) \|$", summary, re.M)
    assert rules[0] == (
        "fail",
        "battery",
        "after.battery_worst",
        "15.8% | 12.7% to 19.4% | 19.4% | at most 5% | 450",
    )
    assert [outcome for outcome, *_ in rules] == ["fail", "pass", "pass", "pass"]
    assert "| Clean accuracy | 97.8% (96.1% to 98.8%) | 97.6% (95.9% to 98.6%) |" in summary
    assert "| Battery, worst | 98.0% (96.2% to 98.9%): `patch-corner` to class `0` | 15.8% (" in summary
    assert "class `0` | anomaly index 1.10 (usual threshold 2), class `4` |" in summary
    report = example("pass")
    assert "sanitised | `" not in summary
    for found in (report["model"]["files"][0], *report["sanitized"]["files"], report["policy"]):
        assert f"| `{found['sha256']}` |" in as_markdown(report)


def test_every_statement_limit_and_warning_is_there() -> None:
    report = example()
    lines = as_markdown(report).split("\n")
    for sentence in (*report["statements"], *report["limits"], *report["warnings"]):
        assert f"- {sentence}" in lines


def test_nothing_found_has_no_limits() -> None:
    report = example("refused")
    assert report["limits"]
    assert "### Limits" not in as_markdown(report)


def test_what_was_not_measured_is_not_told() -> None:
    report = example("inconclusive")
    report["audit"]["after"] = None
    report["audit"]["before"]["inversion"]["anomaly_index"] = None
    report["audit"]["before"]["battery"] = []
    report["policy"]["rules"] = []
    summary = as_markdown(report)
    assert "| Battery, worst | n/a | n/a |" in summary
    assert "| Inversion | n/a | n/a |" in summary
    assert "### Rules" not in summary
    report["audit"]["before"] = None
    report["policy"] = None
    assert "### Before and after" not in as_markdown(report)


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("name", STRINGS)
def test_hostile_strings_change_no_structure(name: str, outcome: str) -> None:
    report = example(outcome)
    summary = as_markdown(with_strings(report, STRINGS[name]))
    assert shape(summary) == shape(as_markdown(with_strings(report, "benign")))
    assert len(summary) <= MAX_CHARACTERS
    assert all(character.isprintable() or character == "\n" for character in summary)
    text = without_code(summary)
    assert not re.search(r"[<>\[\]~$\\@*]", text)
    assert not re.search(r"&(?!#\d+;)", text)
    assert not re.search(r"(?i)www\.|https?:|javascript:", text)
    assert not re.search(r"&#(64|35|58);(?!&#8203;)", text)  # @, # and : are parted from what follows
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
