"""The page: well formed, accessible, self-contained, and text alone whatever the names; test_golden.py has the rest."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example as example_of
from hypothesis import given, settings
from hypothesis import strategies as st

from seamfast.documents.markup import Markup, element, visible
from seamfast.documents.style import STYLE
from seamfast.gating.documents.html import as_html
from tests.gating.examples import OUTCOMES, cases, example
from tests.gating.hostile_text import STRINGS, with_strings
from tests.gating.pictures import example_pictures

CASES = cases()
VOID = {"img", "link", "meta"}
ANYTHING = st.text(st.characters(exclude_categories=()), max_size=30)


@dataclass
class Node:
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def all(self, *tags: str) -> list[Node]:
        return [node for node in self._walk() if not tags or node.tag in tags]

    def one(self, tag: str, class_: str = "") -> Node:
        (found,) = (n for n in self.all(tag) if class_ in n.attributes.get("class", ""))
        return found

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def _walk(self) -> Iterator[Node]:
        for child in self.children:
            if isinstance(child, Node):
                yield child
                yield from child._walk()


class Tree(HTMLParser):
    """Builds the tree of a page whose every tag is closed, in order."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("page")]
        self.feed(page.decode("utf-8"))
        self.close()
        (self.root,) = self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    handle_pi = unknown_decl = handle_comment


def parsed(report: dict[str, Any], pictures: dict[str, np.ndarray] | None = None) -> Node:
    return Tree(as_html(report, example_pictures() if pictures is None else pictures)).root


# What every page is.


@pytest.mark.parametrize("case", CASES)
def test_pages_are_whole_and_accessible(case: str) -> None:
    page = parsed(CASES[case])
    assert as_html(CASES[case], {}).startswith(b"<!DOCTYPE html>\n<html lang=")
    assert page.one("html").attributes["lang"] == "en-GB"
    levels = [int(node.tag[1]) for node in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert all(node.attributes.get("alt") for node in page.all("img"))
    assert all(len(figure.all("figcaption")) == 1 for figure in page.all("figure"))
    for svg in page.one("body").all("svg"):
        in_key = "class" not in svg.attributes  # what it means stands beside it
        assert in_key or svg.attributes.get("aria-hidden") == "true" or svg.attributes.get("aria-label")
    for table in page.all("table"):
        columns = [head.attributes["scope"] for head in table.one("thead").all("th")]
        assert all(len(row.all("th", "td")) == len(columns) for row in table.one("tbody").all("tr"))
        assert all(row.all("th", "td")[0].attributes["scope"] == "row" for row in table.one("tbody").all("tr"))
        assert all(head.text for head in table.all("th"))
        assert {node.tag: node.attributes["role"] for node in table.all("thead", "tbody", "tr", "td")} == {
            "thead": "rowgroup",
            "tbody": "rowgroup",
            "tr": "row",
            "td": "cell",
        }
    assert [node.tag for node in page.one("body").children if isinstance(node, Node)] == ["header", "main", "footer"]


@pytest.mark.parametrize("case", CASES)
def test_pages_are_self_contained(case: str) -> None:
    page = as_html(CASES[case], example_pictures())
    root = Tree(page).root
    first, policy, *_ = root.one("head").children
    assert isinstance(first, Node)
    assert isinstance(policy, Node)
    assert first.attributes == {"charset": "utf-8"}
    assert policy.attributes["http-equiv"] == "Content-Security-Policy"
    assert policy.attributes["content"].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert b"http:" not in page
    assert b"https:" not in page
    assert not re.search(r"url\(|@import|expression|</", STYLE)
    allowed = {"html", "head", "meta", "title", "link", "style", "body", "header", "main", "footer", "section", "div"}
    allowed |= {
        *["h1", "h2", "h3", "p", "span", "code", "bdi", "time", "ul", "li", "dl", "dt", "dd", "figure", "figcaption"]
    }
    allowed |= {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "img",
        "svg",
        "g",
        "line",
        "circle",
        "rect",
        "text",
        "mark",
    }
    for node in root.all():
        assert node.tag in allowed
        assert not any(name.startswith("on") or name == "style" for name in node.attributes)
        for name in ("src", "href", "action", "data", "srcset", "poster", "background", "xlink:href"):
            assert node.attributes.get(name, "data:").startswith("data:")


# Long lists.


def test_long_history_is_thinned() -> None:
    report = example()
    point = report["sanitize"]["history"][0]
    report["sanitize"]["history"] = [point | {"step": step} for step in range(1, 10_001)]
    points = parsed(report).one("svg", "curve").all("circle")
    assert len(points) in range(380, 403)
    assert points[-1].attributes["cx"] == "100.00%"


# Pictures.


def images(figure: Node) -> list[np.ndarray]:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow reads the images again")
    prefix = "data:image/png;base64,"
    sources = [image.attributes["src"] for image in figure.all("img")]
    assert all(source.startswith(prefix) for source in sources)
    return [np.asarray(pillow.open(io.BytesIO(base64.b64decode(source[len(prefix) :])))) for source in sources]


def galleries(page: Node) -> list[Node]:
    return [figure for figure in page.all("figure") if figure.all("img")]


def test_pictures_are_there_to_the_pixel() -> None:
    pictures = example_pictures()
    samples, before, _, disagreement = galleries(parsed(example(), pictures))
    assert np.array_equal(np.stack(images(samples)), pictures["samples"][..., 0])
    assert np.array_equal(images(before)[0], pictures["patterns_before"][0, ..., 0])
    assert disagreement.one("figcaption").text.endswith("different answers. 16 of 40 are shown.")
    assert np.array_equal(images(disagreement)[-1], pictures["disagreement"][-1, ..., 0])


def test_the_smallest_pattern_is_no_suspect_below_the_threshold() -> None:
    report = example()
    report["audit"]["before"]["inversion"] |= {"suspect": 0, "anomaly_index": 1.9}
    _, before, *_ = galleries(parsed(report))
    assert "suspect" not in before.text


def test_patterns_are_in_the_order_of_their_size_with_the_suspect_marked() -> None:
    report = example()
    for found in report["audit"]["before"]["inversion"]["classes"]:
        found["mask_share"] = 0.9 - 0.05 * found["class"]
    report["audit"]["before"]["inversion"] |= {"suspect": 9, "anomaly_index": 2.5}
    _, before, *_ = galleries(parsed(report))
    labels = [item.text for item in before.all("li")]
    assert labels[:2] == ["class 9, suspect45.0% of pixels", "class 850.0% of pixels"]
    assert [image.attributes["alt"] for image in before.all("img")][:2] == [
        "pattern for class 9",
        "pattern for class 8",
    ]
    pixels = example_pictures()["patterns_before"]
    assert np.array_equal(images(before)[0], pixels[9, ..., 0])
    _, before, *_ = galleries(parsed(report, example_pictures() | {"patterns_before": pixels[:4]}))  # whose they are?
    assert [image.attributes["alt"] for image in before.all("img")] == [f"pattern {i}" for i in range(1, 5)]


def test_large_images_and_many_channels_are_reduced() -> None:
    wide = np.zeros((1, 100, 301, 3), np.uint8)
    wide[:, :, :4] = (200, 100, 0)
    many = np.stack([np.full((2, 8, 8), 10 * i, np.uint8) for i in range(4)], axis=3)
    first, second = galleries(parsed(example(), {"samples": wide, "disagreement": many}))
    (small,) = images(first)
    assert small.shape == (25, 76, 3)
    assert small[0, 0].tolist() == [200, 100, 0]
    assert not small[:, 1:].any()
    assert first.one("figcaption").text.endswith("Larger images are reduced to at most 96 pixels a side.")
    assert all((image == 15).all() for image in images(second))
    assert second.one("figcaption").text.endswith("Each shows the mean of 4 channels.")


# Texts.


def test_inserted_tokens_are_marked_and_the_answers_stand_beside() -> None:
    page = parsed(CASES["text"], {})
    assert [mark.text for mark in page.all("mark")] == ["cf", "zq"]
    first, second = (table.one("tbody").one("tr") for table in page.all("table") if table.all("mark"))
    assert first.one("th").text == "cf a dull plot .cf"
    assert [cell.text for cell in first.all("td")] == ["0 (negative)", "0 (negative)", "1 (positive)", "0 (negative)"]
    assert [cell.text for cell in second.all("td")][2] == "not finite"
    assert not page.all("img")


def test_what_turns_text_around_or_is_invisible_is_an_escape_in_a_text() -> None:
    report = with_strings(CASES["text"], "a\u202eb\u200b\x1b[2J\n<script>")
    assert [mark.text for mark in parsed(report, {}).all("mark")] == [r"a\u202eb\u200b\x1b[2J\n<script>"] * 2


# Hostile names.


def shape(page: Node) -> list[tuple[str, tuple[str, ...], str]]:
    return [(node.tag, tuple(node.attributes), node.attributes.get("class", "")) for node in page.all()]


@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("case", ["pass", "refused", "text"])
def test_hostile_strings_are_text(name: str, case: str) -> None:
    report = with_strings(CASES[case], STRINGS[name])
    content = as_html(report, example_pictures())
    page = Tree(content).root
    assert shape(page) == shape(parsed(with_strings(CASES[case], "benign")))
    assert all(character.isprintable() or character == "\n" for character in content.decode())
    assert page.one("style").text == STYLE
    assert page.one("header").all("code")[0].text == visible(STRINGS[name], 200)
    assert len(content) < 1_000_000


@settings(max_examples=25, deadline=None)
@given(ANYTHING)
def test_any_string_is_text(string: str) -> None:
    for case in ("pass", "text"):
        page = parsed(with_strings(CASES[case], string), {})
        assert shape(page) == shape(parsed(with_strings(CASES[case], "benign"), {}))
        assert page.one("header").all("code")[0].text == visible(string, 200)


@given(ANYTHING, ANYTHING)
@example_of("<b>&lt;</b>", "' x='\"><b y=\"")
def test_elements_escape_all_that_is_not_markup(text: str, value: str) -> None:
    inner = element("b", text)
    # Whatever is done to markup leaves text.
    changed: list[str] = [inner + "", inner.lower(), f"{inner}", "".join([inner, inner]), inner[:], str(inner)[0:]]
    assert not any(isinstance(one, Markup) for one in changed)
    outer = Tree(element("p", inner, changed[0], data_x=value).encode()).root.one("p")
    assert outer.children[0] == Node("b", {}, [visible(text)])
    assert outer.attributes == {"data-x": visible(value, None)}
    assert outer.text == visible(text) + visible(inner)


def test_huge_reports_give_bounded_pages() -> None:
    report = with_strings(example("fail"), "<" * 10_000)
    for rule_or_file in (report["policy"]["rules"], report["model"]["files"], report["policy"]["ignored"]):
        rule_or_file *= 2_000
    for key in ("statements", "limits", "warnings", "disagreement"):
        report[key] *= 2_000
    for when in ("before", "after"):
        audit = report["audit"][when]
        audit["class_accuracy"] *= 2_000
        audit["battery"] *= 500
        audit["inversion"]["classes"] *= 2_000
    noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)
    content = as_html(report, dict.fromkeys(("samples", "patterns_before", "patterns_after", "disagreement"), noise))
    assert len(content) < 6_000_000
    text = Tree(content).root.text
    assert "7,800 more are in report.json." in text  # rules, files
    assert "1,900 more are in report.json." in text  # sentences


def test_equal_reports_give_equal_pages_and_are_left_alone() -> None:
    report, pictures = example(), example_pictures()
    before = repr(report)
    assert as_html(report, pictures) == as_html(example(), example_pictures())
    assert repr(report) == before


# Colors.


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrasts() -> None:
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)
    )
    for scheme in (light, dark):
        for text in ("ink", "soft"):
            assert contrast(scheme[text], scheme["paper"]) >= 4.5
        for mark in ("before", "after"):  # graphics
            assert contrast(scheme[mark], scheme["paper"]) >= 3
            assert contrast(scheme[mark], scheme["shade"]) >= 3
    fills = dict(re.findall(r"\.(\w+) \{ background: (#\w{6}); \}", STYLE))
    assert set(fills) == set(OUTCOMES)
    assert all(contrast(fill, "#000000") >= 4.5 for fill in fills.values())
    okabe_ito = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"}
    used = {scheme[mark] for scheme in (light, dark) for mark in ("before", "after")}
    assert okabe_ito >= used | set(fills.values())
