"""The page in a real browser: nothing is wider than the window, nothing is fetched, nothing runs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seamfast.gating.documents.html import as_html
from tests.gating.chromium import Browser, find
from tests.gating.examples import OUTCOMES, example
from tests.gating.hostile_text import STRINGS, with_strings
from tests.gating.pictures import example_pictures

FILLS = {"pass": (0, 158, 115), "fail": (213, 94, 0)}

# Elements that stick out of the window, and cells that run into the next; but for what only a screen reader meets.
SEEN = "node => !node.closest('thead') || getComputedStyle(node.closest('thead')).position !== 'absolute'"
STICKING_OUT = f"""
[...document.body.querySelectorAll('*')].filter({SEEN})
  .filter(node => {{ const b = node.getBoundingClientRect(); return b.right > innerWidth + 0.5 || b.left < -0.5; }})
  .map(node => `${{node.tagName}}: ${{node.textContent.slice(0, 40)}}`)
"""
OVERFLOWING = f"""
[...document.querySelectorAll('th, td, dd, dt')].filter({SEEN})
  .filter(cell => cell.scrollWidth > cell.clientWidth + 1)
  .map(cell => `${{cell.tagName}}: ${{cell.textContent.slice(0, 40)}}`)
"""


pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find()
    assert path is not None, "there is no chromium, chromium-browser or google-chrome on the PATH"
    with Browser(path, tmp_path_factory.mktemp("profile")) as started:
        yield started


def saved(tmp_path: Path, report: dict[str, Any]) -> Path:
    path = tmp_path / "report.html"
    path.write_bytes(as_html(report, example_pictures()))
    return path


def check_fits(browser: Browser, width: int) -> None:
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(STICKING_OUT) == []
    assert browser.evaluate(OVERFLOWING) == []


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_pages_fit_every_window(browser: Browser, outcome: str, tmp_path: Path) -> None:
    page = saved(tmp_path, example(outcome))
    for width in (320, 740, 1024, 1280):
        browser.look_at(page, width)
        check_fits(browser, width)
    # The page and its pictures, and nothing else.
    assert [url for url in browser.requested if not url.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth === 8)")
    assert browser.evaluate("document.scripts.length") == 0


@pytest.mark.parametrize("name", ["script", "handler", "style", "long and special", "combining"])
def test_hostile_names_do_nothing(browser: Browser, name: str, tmp_path: Path) -> None:
    page = saved(tmp_path, with_strings(example("fail"), STRINGS[name]))
    for width in (320, 1280):
        browser.look_at(page, width)
        check_fits(browser, width)
    assert browser.evaluate("document.title").startswith("Failed: ")
    assert [url for url in browser.requested if not url.startswith("data:")] == [page.as_uri()]
    verdict = "getComputedStyle(document.querySelector('.verdict')).display"
    assert browser.evaluate(verdict) == "block"
    heading = "document.querySelector('h1').innerText"
    assert "Failed" in browser.evaluate(heading)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("outcome", FILLS)
def test_screenshots_show_the_verdict(browser: Browser, outcome: str, width: int, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow reads the screenshots")
    browser.look_at(saved(tmp_path, example(outcome)), width)
    check_fits(browser, width)
    picture = pillow.open(io.BytesIO(browser.screenshot())).convert("RGB")
    assert picture.width == width
    assert picture.height > 1000
    n_pixels = {color: n for n, color in picture.crop((0, 0, width, 400)).getcolors(width * 400)}
    assert n_pixels[FILLS[outcome]] > 0.1 * width * 400


def test_color_schemes(browser: Browser, tmp_path: Path) -> None:
    page = saved(tmp_path, example())
    colors = []
    for scheme in ("light", "dark"):
        browser.look_at(page, 1280, features=[("prefers-color-scheme", scheme)])
        colors.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_page_prints(browser: Browser, tmp_path: Path) -> None:
    browser.look_at(saved(tmp_path, example()), 1280, features=[("prefers-color-scheme", "dark")])
    assert browser.pdf().startswith(b"%PDF-")
