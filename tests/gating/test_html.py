"""The page: well formed, complete, self-contained, and deaf to what stands in names."""

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

from seamfast.gating.documents.html import as_html
from seamfast.gating.documents.markup import Markup, element
from seamfast.gating.documents.style import STYLE
from seamfast.gating.documents.wording import visible
from tests.gating.examples import OUTCOMES, example
from tests.gating.hostile_text import STRINGS, with_strings
from tests.gating.pictures import example_pictures

VOID = {"img", "link", "meta"}
TITLES = {"pass": "Passed", "fail": "Failed", "inconclusive": "Inconclusive", "refused": "Refused"}
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


def sections(page: Node) -> list[str]:
    return [heading.text for heading in page.all("h2")]


def rows(node: Node) -> list[list[str]]:
    return [[cell.text for cell in row.all("th", "td")] for row in node.one("tbody").all("tr")]


# What every page is.


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_pages_are_whole_and_accessible(outcome: str) -> None:
    page = parsed(example(outcome))
    assert as_html(example(outcome), {}).startswith(b"<!DOCTYPE html>\n<html lang=")
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
        assert all(len(row) == len(columns) for row in rows(table))
        assert all(row.all("th", "td")[0].attributes["scope"] == "row" for row in table.one("tbody").all("tr"))
        assert all(head.text for head in table.all("th"))
        assert {node.tag: node.attributes["role"] for node in table.all("thead", "tbody", "tr", "td")} == {
            "thead": "rowgroup",
            "tbody": "rowgroup",
            "tr": "row",
            "td": "cell",
        }
    assert [node.tag for node in page.one("body").children if isinstance(node, Node)] == ["header", "main", "footer"]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_pages_are_self_contained(outcome: str) -> None:
    page = as_html(example(outcome), example_pictures())
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
        "h1",
        "h2",
        "h3",
        "p",
        "span",
        "code",
        "bdi",
        "time",
        "ul",
        "li",
        "dl",
        "dt",
        "dd",
        "figure",
        "figcaption",
    }
    allowed |= {"table", "thead", "tbody", "tr", "th", "td", "img", "svg", "g", "line", "circle", "rect", "text"}
    for node in root.all():
        assert node.tag in allowed
        assert not any(name.startswith("on") or name == "style" for name in node.attributes)
        for name in ("src", "href", "action", "data", "srcset", "poster", "background", "xlink:href"):
            assert node.attributes.get(name, "data:").startswith("data:")


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_verdict_comes_first(outcome: str) -> None:
    report = example(outcome)
    page = parsed(report)
    verdict = page.one("div", f"verdict {outcome}")
    title = TITLES.get(outcome, "Incomplete")
    assert title in verdict.one("h1").text
    assert f"exit code {report['verdict']['exit_code']}" in verdict.one("h1").text
    assert [reason.text for reason in verdict.all("li")] == report["verdict"]["reasons"]
    assert page.one("title").text == f"{title}: incoming/digits-cnn – seamfast intake gate"
    text = page.one("body").text
    assert text.index(title) < text.index(report["verdict"]["reasons"][0]) < text.index("Model files")


def test_order_of_the_sections() -> None:
    assert sections(parsed(example("pass"))) == [
        "Rules of the policy",
        "Before and after",
        "Forgetting and recovery",
        "Pictures",
        "What was found",
        "What this does not show",
        "Warnings",
        "Model files",
        "Settings",
    ]


def test_refused_and_incomplete_pages_are_short() -> None:
    refused, incomplete = parsed(example("refused")), parsed(example("incomplete"))
    assert sections(refused) == ["Warnings", "Model files", "Settings"]
    assert sections(incomplete) == [
        "What was found",
        "What this does not show",
        "Warnings",
        "Model files",
        "Settings",
    ]
    assert "Code of the refusal: pickle" in refused.one("div", "verdict").text
    assert not refused.all("svg", "img") + incomplete.all("svg", "img")


# What stands in it.


def test_rules_are_told_the_failed_first() -> None:
    table, *_ = parsed(example("fail")).all("table")
    told = rows(table)
    assert told[0] == [
        "batteryafter.battery_worst" + example("fail")["policy"]["rules"][2]["reason"],
        "✕fail",
        "15.8%",
        "12.7% to 19.4%",
        "19.4%",
        "at most 5%",
        "450300 wanted",
    ]
    assert [row[1] for row in told] == ["✕fail", "✓pass", "✓pass", "✓pass"]
    assert told[3][2:6] == ["true", "n/a", "true", "true"]
    cells = table.one("tbody").all("td")
    assert [cell.attributes["data-label"] for cell in cells[:6]] == [
        *("Outcome", "Measured", "Interval", "Bound", "Wanted", "Samples")
    ]


def test_rates_stand_as_numbers_and_as_dots() -> None:
    figure, *_ = parsed(example("pass")).all("figure")
    told = rows(figure)
    assert told[0][0] == "Clean accuracy"
    assert told[0][2:] == ["97.8%96.1% to 98.8%, n = 500", "97.6%95.9% to 98.6%, n = 500"]
    assert told[1][0] == "patch-cornersamples moved to class 0"
    assert told[1][2:] == ["98.0%96.2% to 98.9%, n = 450", "0.7%0.2% to 1.9%, n = 450"]
    before, after = figure.one("tbody").all("tr")[1].all("g")
    assert before.one("line").attributes["class"] == "span before"
    assert (before.one("circle").attributes["cx"], after.one("circle").attributes["cx"]) == ("98.00%", "0.67%")
    rate = example("pass")["audit"]["after"]["battery"][0]["rate"]
    ends = [after.one("line").attributes[name] for name in ("x1", "x2")]
    assert ends == [f"{100 * rate['low']:.2f}%", f"{100 * rate['high']:.2f}%"]


def test_target_that_changes_is_told() -> None:
    report = example()
    report["data"]["class_names"] = ["stop", *"123456789"]
    report["audit"]["after"]["battery"][0]["target"] = 4
    figure, *_ = parsed(report).all("figure")
    assert rows(figure)[1][0] == "patch-cornersamples moved to class 0 (stop) → 4"


def test_classes_that_lost_most() -> None:
    report = example()
    for label, n_hit in enumerate((10, 20, 30, 40, 5, 45, 48, 50, 50, 50)):
        report["audit"]["before"]["class_accuracy"][label] |= {"value": 1.0}
        report["audit"]["after"]["class_accuracy"][label] |= {"value": n_hit / 50}
    report["audit"]["after"]["class_accuracy"][0]["value"] = None
    figure = parsed(report).all("figure")[1]
    assert [row[0] for row in rows(figure)] == ["class 4", "class 1", "class 2", "class 3", "class 5"]
    assert figure.one("figcaption").text == "6 of 9 classes lost accuracy; the 5 that lost most are shown."


def test_inversion_and_parting() -> None:
    report = example()
    report["audit"]["after"]["inversion"] |= {"anomaly_index": None, "complete": False}
    page = parsed(report)
    _, _, _, inversion, parting, *_ = page.all("table")
    assert rows(inversion) == [
        ["as received", "3.90usual threshold 2", "0", "5.0%", "98.0% (93.0% to 99.4%)", "300"],
        ["sanitised", "n/a", "4", "24.0%", "98.0% (93.0% to 99.4%)", "300, cut short by its time budget"],
    ]
    assert rows(parting)[0] == ["pasted patches", "", "1.4%0.7% to 2.9%, n = 500", "43.8%39.4% to 48.3%, n = 484"]


def test_curve_is_the_history() -> None:
    report = example()
    history = report["sanitize"]["history"]
    curve = parsed(report).one("svg", "curve")
    points = [node for node in curve.all("circle") if node.attributes["class"] == "point"]
    assert len(points) == len(history) + 1  # and the accuracy as received
    last = points[-1].attributes
    assert (last["cx"], float(last["cy"])) == (
        "100.00%",
        pytest.approx(204 - 180 * history[-1]["holdout_accuracy"], abs=0.1),
    )
    assert (points[0].attributes["cx"], points[0].attributes["cy"]) == ("0.00%", "29.4")  # 97 %
    assert float(curve.one("rect").attributes["width"].rstrip("%")) == pytest.approx(100 * 23 / 323, abs=0.01)
    assert curve.attributes["aria-label"] == (
        "Held-out accuracy over 323 training steps: 97.0% as received, at least 11.0% while forgetting, "
        "98.0% at the end."
    )


def test_each_attempt_of_the_curve_begins_anew() -> None:
    report = example()
    again = [point | {"attempt": 1, "step": point["step"] + 323} for point in report["sanitize"]["history"]]
    report["sanitize"]["history"] += again
    report["sanitize"]["run"]["n_attempts"] = 2
    page = parsed(report)
    curve = page.one("svg", "curve")
    assert [node.text for node in curve.all("text")][-1] == "try 2"
    assert [rect.attributes["x"] for rect in curve.all("rect")] == ["0.00%", "50.00%"]
    lines = [node for node in curve.all("line") if node.attributes["class"] == "path"]
    assert len(lines) == len(report["sanitize"]["history"])
    assert ", in 2 tries." in page.text


def test_long_history_is_thinned() -> None:
    report = example()
    point = report["sanitize"]["history"][0]
    report["sanitize"]["history"] = [point | {"step": step} for step in range(1, 10_001)]
    points = parsed(report).one("svg", "curve").all("circle")
    assert len(points) in range(380, 403)
    assert points[-1].attributes["cx"] == "100.00%"


def test_sentences_files_and_settings() -> None:
    report = example()
    page = parsed(report)
    items = [item.text for item in page.one("main").all("li")]
    for sentence in (*report["statements"], *report["limits"], *report["warnings"]):
        assert sentence in items
    text = page.text
    for found in (report["model"]["files"][0], *report["sanitized"]["files"], report["policy"]):
        assert found["sha256"] in text
    for value in (
        "small_cnn (registered)",
        "13,706",
        "55.7 kB",
        "2.13.0+cpu",
        "clean/digits.npz",
        "412.3 MB",
        "cosine",
    ):
        assert value in text
    assert "No sanitised model was written." not in text
    assert "No sanitised model was written." in parsed(example("fail")).text
    report["model"]["converted_from_pickle"] = True
    assert "converted from a pickle, as the caller allowed" in parsed(report).text


def test_what_was_not_measured_is_not_told() -> None:
    report = example("inconclusive")
    report |= {"parting": None, "sanitize": None, "data": None, "peak_memory_bytes": None, "policy": None}
    report["audit"] |= {"after": None, "change": None}
    nothing = {"n_hit": 0, "n_total": 0, "value": None, "low": 0.0, "high": 1.0}
    report["audit"]["before"] |= {"clean_accuracy": nothing, "inversion": None}
    page = parsed(report, {})
    assert sections(page)[0] == "Before and after"
    assert rows(page.all("figure")[0])[0][2:] == ["n/a (no samples)", "n/a"]
    report["audit"]["before"] = None
    report |= {"statements": [], "warnings": []}
    assert sections(parsed(report, {})) == ["Model files", "Settings"]


def test_run_without_measurements() -> None:
    report = example()
    report["sanitize"]["history"] = []
    page = parsed(report)
    assert "No step was measured." in page.text
    assert not any(svg.attributes.get("class") == "curve" for svg in page.all("svg"))


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
    samples, before, _, parted = galleries(parsed(example(), pictures))
    assert np.array_equal(np.stack(images(samples)), pictures["samples"][..., 0])
    assert np.array_equal(images(before)[0], pictures["patterns_before"][0, ..., 0])
    assert parted.one("figcaption").text.endswith("different answers. 16 of 40 are shown.")
    assert np.array_equal(images(parted)[-1], pictures["parted"][-1, ..., 0])


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
    first, second = galleries(parsed(example(), {"samples": wide, "parted": many}))
    (small,) = images(first)
    assert small.shape == (25, 76, 3)
    assert small[0, 0].tolist() == [200, 100, 0]
    assert not small[:, 1:].any()
    assert first.one("figcaption").text.endswith("Larger images are reduced to at most 96 pixels a side.")
    assert all((image == 15).all() for image in images(second))
    assert second.one("figcaption").text.endswith("Each shows the mean of 4 channels.")


# Hostile names.


def shape(page: Node) -> list[tuple[str, tuple[str, ...], str]]:
    return [(node.tag, tuple(node.attributes), node.attributes.get("class", "")) for node in page.all()]


@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("outcome", ["pass", "refused"])
def test_hostile_strings_are_text(name: str, outcome: str) -> None:
    report = with_strings(example(outcome), STRINGS[name])
    content = as_html(report, example_pictures())
    page = Tree(content).root
    assert shape(page) == shape(parsed(with_strings(example(outcome), "benign")))
    assert all(character.isprintable() or character == "\n" for character in content.decode())
    assert page.one("style").text == STYLE
    assert page.one("header").all("code")[0].text == visible(STRINGS[name], 200)
    assert len(content) < 1_000_000


@settings(max_examples=25, deadline=None)
@given(ANYTHING)
def test_any_string_is_text(string: str) -> None:
    page = parsed(with_strings(example(), string), {})
    assert shape(page) == shape(parsed(with_strings(example(), "benign"), {}))
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
    for key in ("statements", "limits", "warnings", "parting"):
        report[key] *= 2_000
    for when in ("before", "after"):
        audit = report["audit"][when]
        audit["class_accuracy"] *= 2_000
        audit["battery"] *= 500
        audit["inversion"]["classes"] *= 2_000
    noise = np.random.default_rng(0).integers(0, 256, (40, 224, 224, 3), dtype=np.uint8)
    content = as_html(report, dict.fromkeys(("samples", "patterns_before", "patterns_after", "parted"), noise))
    assert len(content) < 6_000_000
    text = Tree(content).root.text
    assert "7,800 more are in report.json." in text  # rules, files
    assert "1,900 more are in report.json." in text  # sentences


def test_equal_reports_give_equal_pages_and_are_left_alone() -> None:
    report, pictures = example(), example_pictures()
    before = repr(report)
    assert as_html(report, pictures) == as_html(example(), example_pictures())
    assert repr(report) == before


# Colours.


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
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
