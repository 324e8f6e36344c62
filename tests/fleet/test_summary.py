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
from seamfast.fleet.summary.figures import Tally, histogram, quantile
from seamfast.fleet.summary.html import MOST_ROWS, as_html
from seamfast.fleet.summary.prometheus import as_prometheus
from seamfast.fleet.summary.table import csv_head, csv_line, json_line
from tests.gating.hostile_text import STRINGS

HOW: dict[str, Any] = {"name": "fleet", "created": "2026-01-01T00:00:00+00:00", "seconds": None, "workers": None}


def row(name: str, outcome: str = "accepted", **values: Any) -> dict[str, Any]:
    return as_row({"id": name, "outcome": outcome, "kind": "sanitize", "attempts": 1, **values})


def page_of(rows: list[dict[str, Any]], n_waiting: int = 0) -> bytes:
    return as_html(Tally(rows, n_waiting=n_waiting, most=MOST_ROWS), **HOW)


def read_csv(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    text = b"".join([csv_head(), *map(csv_line, rows)]).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture
def some() -> list[dict[str, Any]]:
    measured = {"accuracy_before": 0.9, "asr_before": 1.0, "asr_after": 0.02, "seconds": 2.0}
    rows = [row(f"m{n}", accuracy_lost=n / 100, report=f"jobs/m{n}/report.json", **measured) for n in range(5)]
    rows.append(row("bad", "quarantined", reason="did not end within 1 s"))
    return rows


def test_page_is_self_contained_and_the_same_each_time(some: list[dict[str, Any]]) -> None:
    page = page_of(some).decode()
    assert page.encode() == page_of(some[::-1])
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
    plain = page_of([row("x", "refused", reason="r", architecture="a")]).decode()
    hostile = row("x", "refused")
    hostile |= {"id": text, "reason": text, "architecture": text}
    page = page_of([hostile]).decode()
    tags = re.compile(r"<[a-z][a-z0-9]*")
    assert tags.findall(page) == tags.findall(plain)


@pytest.mark.parametrize(
    "report",
    ["javascript:alert(1)", "//host/x", "../../etc/passwd", "jobs/../../x", "jobs/a/b/c", 'jobs/a/"><b'.lower()],
)
def test_page_links_nothing_but_reports_of_the_fleet(report: str) -> None:
    assert b"<a " not in page_of([row("x") | {"report": report}])


def test_page_of_many_jobs_is_cut_and_says_so() -> None:
    page = page_of([row(f"m{n}") for n in range(3000)]).decode()
    assert page.count("<tr") == 2001
    assert "1,000 more jobs are in summary.csv" in page


def test_page_of_no_jobs() -> None:
    page = page_of([], 3).decode()
    assert "<h1>3 models</h1>" in page
    assert "<script" not in page


def test_tables_hold_all_columns(some: list[dict[str, Any]]) -> None:
    read = read_csv(some)
    assert [cells["id"] for cells in read] == [one["id"] for one in some]
    assert read[3]["accuracy_lost"] == "0.03"
    assert read[5]["accuracy_lost"] == ""
    assert [json.loads(json_line(one)) for one in some] == some


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x"])
def test_csv_holds_no_formula(text: str) -> None:
    read = read_csv([row("x", reason=text, accuracy_lost=-0.5)])
    assert read[0]["reason"] == f"'{text}"
    assert read[0]["accuracy_lost"] == "-0.5"


def test_prometheus_counts(some: list[dict[str, Any]]) -> None:
    text = as_prometheus(Tally(some, n_waiting=4, most=1), 1000.0).decode()
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


def test_figures() -> None:
    assert quantile([1.0], 0.95) == 1.0
    assert quantile([0.0, 1.0, 2.0, 3.0], 0.5) == 1.5
    assert histogram([-9.0, 0.0, 0.5, 1.0, 9.0], (0.0, 0.5, 1.0, 2.0)) == [2, 1, 2]


def test_tally_keeps_what_needs_a_look_and_counts_all() -> None:
    rows = [row(f"m{n:03}", accuracy_lost=n / 1000, seconds=1.0) for n in range(100)]
    tally = Tally([*rows, row("a", "invalid"), *rows[::-1]], n_waiting=1, most=3)
    assert tally.outcomes() == {"invalid": 1, "accepted": 200, "waiting": 1}
    assert (tally.n_rows, tally.n_jobs) == (201, 202)
    assert [one["id"] for one in tally.first()] == ["a", "m099", "m099"]
    assert len(tally.column("accuracy_lost")) == 200


def test_memory_hardly_grows_with_the_jobs(tmp_path: Path) -> None:
    """Beyond the rows that the page shows, a job takes what its figures take."""

    def peak(n: int) -> int:
        tracemalloc.start()
        try:
            write_summary(tmp_path, (row(f"m{i}", accuracy_lost=0.01, reason="r" * 300) for i in range(n)))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    first, second = peak(11_000), peak(22_000)
    assert (second - first) / 11_000 < 300
