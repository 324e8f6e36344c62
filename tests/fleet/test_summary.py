"""What a fleet did: the page, the tables, the lines for a terminal and for Prometheus."""

from __future__ import annotations

import csv
import io
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from seamfast.fleet.store import as_row
from seamfast.fleet.summary import as_text, write_summary
from seamfast.fleet.summary.figures import counts, histogram, quantile
from seamfast.fleet.summary.html import as_html
from seamfast.fleet.summary.prometheus import as_prometheus
from seamfast.fleet.summary.table import as_csv, as_jsonl
from tests.gating.hostile_text import STRINGS

HOW: dict[str, Any] = {"name": "fleet", "created": "2026-01-01T00:00:00+00:00", "n_waiting": 0}
HOW |= {"seconds": None, "workers": None}


def row(name: str, outcome: str = "accepted", **values: Any) -> dict[str, Any]:
    return as_row({"id": name, "outcome": outcome, "kind": "sanitize", "attempts": 1, **values})


@pytest.fixture
def some() -> list[dict[str, Any]]:
    measured = {"accuracy_before": 0.9, "asr_before": 1.0, "asr_after": 0.02, "seconds": 2.0}
    rows = [row(f"m{n}", accuracy_lost=n / 100, report=f"jobs/m{n}/report.json", **measured) for n in range(5)]
    rows.append(row("bad", "quarantined", reason="did not end within 1 s"))
    return rows


def test_page_is_self_contained_and_the_same_each_time(some: list[dict[str, Any]]) -> None:
    page = as_html(some, **HOW).decode()
    assert page.encode() == as_html(some[::-1], **HOW)
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", page)
    assert "<h1>6 models</h1>" in page
    assert 'href="jobs/m4/report.json"' in page
    assert page.index(">bad<") < page.index(">m4<") < page.index(">m3<")  # what needs a look, then what lost most
    policy = re.search(r'content="(default-src[^"]*)"', page)
    assert policy is not None
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert "script-src &#x27;sha256-" in policy[1]


@pytest.mark.parametrize("text", STRINGS)
def test_page_has_strings_as_text(text: str) -> None:
    """Whatever stands in a row, the page has the elements and the script of one without it."""
    plain = as_html([row("x", "refused", reason="r", architecture="a")], **HOW).decode()
    hostile = row("x", "refused")
    hostile |= {"id": text, "reason": text, "architecture": text}
    page = as_html([hostile], **HOW).decode()
    tags = re.compile(r"<[a-z][a-z0-9]*")
    assert tags.findall(page) == tags.findall(plain)


@pytest.mark.parametrize(
    "report",
    ["javascript:alert(1)", "//host/x", "../../etc/passwd", "jobs/../../x", "jobs/a/b/c", 'jobs/a/"><b'.lower()],
)
def test_page_links_nothing_but_reports_of_the_fleet(report: str) -> None:
    assert b"<a " not in as_html([row("x") | {"report": report}], **HOW)


def test_page_of_many_jobs_is_cut_and_says_so() -> None:
    page = as_html([row(f"m{n}") for n in range(6000)], **HOW).decode()
    assert page.count("<tr") == 5001
    assert "1,000 more jobs are in summary.csv" in page


def test_page_of_no_jobs() -> None:
    page = as_html([], **{**HOW, "n_waiting": 3}).decode()
    assert "<h1>3 models</h1>" in page
    assert "<script" not in page


def test_tables_hold_all_columns(some: list[dict[str, Any]]) -> None:
    read = list(csv.DictReader(io.StringIO(as_csv(some).decode(), newline="")))
    assert [cells["id"] for cells in read] == [one["id"] for one in some]
    assert read[3]["accuracy_lost"] == "0.03"
    assert read[5]["accuracy_lost"] == ""
    assert [json.loads(line) for line in as_jsonl(some).splitlines()] == some


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x"])
def test_csv_holds_no_formula(text: str) -> None:
    read = list(csv.DictReader(io.StringIO(as_csv([row("x", reason=text, accuracy_lost=-0.5)]).decode(), newline="")))
    assert read[0]["reason"] == f"'{text}"
    assert read[0]["accuracy_lost"] == "-0.5"


def test_prometheus_counts(some: list[dict[str, Any]]) -> None:
    text = as_prometheus(some, 1000.0, 4).decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['seamfast_fleet_jobs{outcome="accepted"}'] == "5"
    assert lines['seamfast_fleet_jobs{outcome="quarantined"}'] == "1"
    assert lines['seamfast_fleet_jobs{outcome="waiting"}'] == "4"
    assert lines['seamfast_fleet_job_seconds_bucket{le="1"}'] == "0"
    assert lines['seamfast_fleet_job_seconds_bucket{le="2"}'] == lines["seamfast_fleet_job_seconds_count"] == "5"
    assert lines['seamfast_fleet_accuracy_lost_bucket{le="0.02"}'] == "3"
    named = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert named == set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE))


def test_text_tells_what_needs_a_look(some: list[dict[str, Any]]) -> None:
    text = as_text(some, n_waiting=2)
    assert text.startswith("8 jobs: 1 quarantined, 5 accepted, 2 waiting\n")
    assert re.search(r"^accuracy lost +5 +2\.0% +3\.8% +4\.0%$", text, re.MULTILINE)
    assert text.endswith("quarantined: bad: did not end within 1 s\n")
    many = as_text([row(f"m{n}", "refused", reason="r") for n in range(30)])
    assert many.count("refused: ") == 10
    assert "and 20 more: summary.html lists them" in many
    assert as_text([]) == "0 jobs: \n"


def test_files_are_written_and_prometheus_if_asked(some: list[dict[str, Any]], tmp_path: Path) -> None:
    write_summary(tmp_path, iter(some))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.csv", "summary.html", "summary.jsonl"]
    write_summary(tmp_path, some, prometheus=True)
    assert (tmp_path / "fleet.prom").read_bytes().startswith(b"# HELP")


def test_file_that_cannot_be_written_to_its_end_stays_as_it_was(some: list[dict[str, Any]], tmp_path: Path) -> None:
    write_summary(tmp_path, some)
    before = (tmp_path / "summary.jsonl").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_summary(tmp_path, [*some, row("x") | {"seconds": float("nan")}])
    assert (tmp_path / "summary.jsonl").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_summary_of_many_rows_needs_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a row adds, once the page is full: it, and neither its texts again nor the lines of the files."""
    monkeypatch.setattr("seamfast.fleet.summary.html._MOST_ROWS", 100)
    peaks = []
    for n in (1000, 6000):
        rows = (row(f"m{k}", reason=f"the same {'.' * 300}", accuracy_lost=k / n, seconds=k / 7) for k in range(n))
        tracemalloc.start()
        write_summary(tmp_path, rows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 5000 < 800


@pytest.mark.parametrize(
    ("largest", "last"), [(62.7, "80"), (0.0, "0.008"), (3.9, "4"), (19.0, "20"), (1000.0, "1,600")]
)
def test_axis_of_seconds_ends_at_a_round_number(largest: float, last: str) -> None:
    page = as_html([row("x", seconds=largest)], **HOW).decode()
    axis = re.findall(r'text-anchor="middle">([^<]*)<', page)
    assert axis[0] == "0"
    assert axis[-1] == last


def test_figures() -> None:
    assert quantile([1.0], 0.95) == 1.0
    assert quantile([0.0, 1.0, 2.0, 3.0], 0.5) == 1.5
    assert histogram([-9.0, 0.0, 0.5, 1.0, 9.0], (0.0, 0.5, 1.0, 2.0)) == [2, 1, 2]
    assert counts([row("a", "invalid"), row("b")], 1) == {"invalid": 1, "accepted": 1, "waiting": 1}
