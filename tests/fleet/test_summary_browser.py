"""The summary's page in a real browser: it fits, fetches nothing, and its table is sorted and filtered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seamfast.fleet.store import as_row
from seamfast.fleet.summary.figures import Tally
from seamfast.fleet.summary.html import MOST_ROWS, as_html
from tests.gating.chromium import Browser, find
from tests.gating.hostile_text import STRINGS

pytestmark = pytest.mark.browser

WIDTHS = (320, 375, 740, 1280)
SHOWN = "[...document.querySelectorAll('.jobs tbody tr')].filter(row => row.offsetHeight)"
JOBS = f"{SHOWN}.map(row => row.cells[0].textContent)"
# What sticks out of the window, but for the table, which scrolls in its own box.
STICKING_OUT = """
[...document.body.querySelectorAll('*')].filter(node => !node.closest('.box table'))
  .filter(node => { const b = node.getBoundingClientRect(); return b.right > innerWidth + 0.5 || b.left < -0.5; })
  .map(node => `${node.tagName}: ${node.textContent.slice(0, 40)}`)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find()
    if path is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome on the PATH")
    with Browser(path, tmp_path_factory.mktemp("profile")) as started:
        yield started


def saved(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    how = {"name": "registry", "created": "2026-01-01T00:00:00+00:00"}
    path = tmp_path / "summary.html"
    path.write_bytes(as_html(Tally(rows, n_waiting=1, most=MOST_ROWS), **how, seconds=10.0, workers=2))
    return path


def row(name: str, outcome: str = "accepted", **values: Any) -> dict[str, Any]:
    return as_row({"id": name, "outcome": outcome, "kind": "sanitize", "attempts": 1, **values})


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    rates = {"asr_before": 1.0, "asr_after": 0.1, "battery_before": 0.9, "battery_after": 0.05, "disagreement": 0.1}
    return [
        row("a", accuracy_lost=0.02, seconds=9.0, architecture="mlp", report="jobs/a/report.json", **rates),
        row("b", accuracy_lost=-0.01, seconds=10.0, architecture="lstm", **rates),
        row("c", accuracy_lost=0.1, seconds=100.0, architecture="mlp", **rates),
        row("d", "invalid", reason="the model is truncated", seconds=0.5),
    ]


def click(browser: Browser, head: str) -> None:
    heads = "[...document.querySelectorAll('.jobs thead button')]"
    browser.evaluate(f"{heads}.find(button => button.textContent === '{head}').click()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_and_fetches_nothing(
    browser: Browser, rows: list[dict[str, Any]], width: int, scheme: str, tmp_path: Path
) -> None:
    page = saved(tmp_path, rows)
    browser.look_at(page, width, features=[("prefers-color-scheme", scheme)])
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(STICKING_OUT) == []
    assert [url for url in browser.requested if not url.startswith("data:")] == [page.as_uri()]
    background = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == background


def test_table_has_room_at_the_desk(browser: Browser, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    rows.append(row("small_cnn-00041-a1b2", "quarantined", architecture="small_cnn", seconds=1234.5))
    browser.look_at(saved(tmp_path, rows), 1280)
    box = "document.querySelector('.box')"
    assert browser.evaluate(f"{box}.scrollWidth - {box}.clientWidth") == 0


@pytest.mark.parametrize("width", [375, 1280])
def test_first_column_stays_where_the_table_scrolls(
    browser: Browser, rows: list[dict[str, Any]], width: int, tmp_path: Path
) -> None:
    browser.look_at(saved(tmp_path, rows), width)
    browser.evaluate("document.querySelector('.box').scrollLeft = 400")
    for cell in ("thead th", "tbody th"):
        left = f"document.querySelector('.jobs {cell}').getBoundingClientRect().left"
        assert browser.evaluate(f"{left} >= document.querySelector('.box').getBoundingClientRect().left - 0.5")


@pytest.mark.parametrize("width", [375, 1280])
def test_table_is_filtered_by_outcome_and_text(
    browser: Browser, rows: list[dict[str, Any]], width: int, tmp_path: Path
) -> None:
    browser.look_at(saved(tmp_path, rows), width)
    assert browser.evaluate(JOBS) == ["d", "c", "a", "b"]
    outcome, text = "document.querySelector('#outcome')", "document.querySelector('#text')"
    browser.evaluate(f"{outcome}.value = 'accepted', {outcome}.dispatchEvent(new Event('change'))")
    assert browser.evaluate(JOBS) == ["c", "a", "b"]
    browser.evaluate(f"{text}.value = 'MLP', {text}.dispatchEvent(new Event('input'))")
    assert browser.evaluate(JOBS) == ["c", "a"]
    assert browser.evaluate("document.querySelector('#shown').textContent") == "2 of 4 jobs"


def test_table_is_sorted_by_numbers_and_texts(browser: Browser, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    browser.look_at(saved(tmp_path, rows), 1280)
    orders = []
    for head in ("Seconds", "Seconds", "ACC lost", "Job"):
        click(browser, head)
        orders.append("".join(browser.evaluate(JOBS)))
    assert orders == ["dabc", "cbad", "bacd", "abcd"]  # a job without a value is last
    assert browser.evaluate("document.querySelectorAll('[aria-sort]').length") == 1
    assert browser.evaluate("document.querySelector('[aria-sort]').textContent") == "Job"


def test_heads_and_box_are_reached_by_keyboard(browser: Browser, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    browser.look_at(saved(tmp_path, rows), 1280)
    focused = "document.activeElement.closest('.jobs thead button') !== null"
    heads = "[...document.querySelectorAll('.jobs thead button')]"
    assert browser.evaluate(f"{heads}.every(button => (button.focus(), {focused}))")
    box = "document.querySelector('.box')"
    assert browser.evaluate(f"({box}.focus(), document.activeElement === {box})")


def test_without_its_script_the_page_offers_no_filter(
    browser: Browser, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    page = saved(tmp_path, rows)
    page.write_bytes(page.read_bytes().replace(b"const table", b"const  table"))  # which its policy refuses to run
    browser.look_at(page, 1280)
    assert browser.evaluate(JOBS) == ["d", "c", "a", "b"]
    assert browser.evaluate("document.querySelector('.tools').offsetHeight") == 0


@pytest.mark.parametrize("name", ["script", "handler", "style", "long and special", "combining"])
def test_hostile_texts_do_nothing(browser: Browser, name: str, tmp_path: Path) -> None:
    hostile = row("x", "refused")
    hostile |= {"id": STRINGS[name], "reason": STRINGS[name], "architecture": STRINGS[name]}
    page = saved(tmp_path, [hostile])
    for width in (320, 1280):
        browser.look_at(page, width)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate(STICKING_OUT) == []
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate("document.title") == "Fleet registry – seamfast"
    assert browser.evaluate("document.querySelector('h1').innerText") == "2 models"
    assert [url for url in browser.requested if not url.startswith("data:")] == [page.as_uri()]
