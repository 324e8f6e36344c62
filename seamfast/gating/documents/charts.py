"""Charts as inline SVG: x in percent of the width, y in pixels, so that text keeps its size.

Before is hollow, after is filled: the two differ without color.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from seamfast.documents.markup import Markup, element
from seamfast.gating.documents.wording import percent

Rate = Mapping[str, Any]
Point = tuple[float, float]  # step, accuracy

_LANES = {"before": 10, "after": 24}  # of a row's two rates, in pixels from its top
_ROW_HEIGHT = 34
_RADIUS = {"before": "4.5", "after": "5"}
_TOP, _BOTTOM, _CURVE_HEIGHT = 24, 204, 228  # of the curve: pixels at 100 %, at 0 %, and in all
_MOST_POINTS = 400


def dots(before: Rate | None, after: Rate | None) -> Markup:
    """One row: up to two rates with their intervals on a scale of 0 to 100 %; the table has the numbers."""
    grid = [_line(share, 0, share, _ROW_HEIGHT, "grid") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    marks = [_dot(rate, side) for rate, side in ((before, "before"), (after, "after")) if rate is not None]
    return element("svg", grid, marks, class_="dots", width="100%", height=str(_ROW_HEIGHT), aria_hidden="true")


def scale() -> Markup:
    """The scale above such rows."""
    ends = [element("span", f"{share}%") for share in (0, 50, 100)]
    return element("span", ends, class_="scale", aria_hidden="true")


def curve(history: Sequence[Mapping[str, Any]], received: float | None) -> Markup:
    """Held-out accuracy over the steps of all attempts; forgetting is shaded.

    Args:
        history: of the report of ``sanitize``; at least one measurement. At most 400 are drawn, evenly taken.
        received: the accuracy as received, where each attempt begins.
    """
    every = -(-len(history) // _MOST_POINTS)
    points = [point for i, point in enumerate(history) if i % every == 0 or i == len(history) - 1]
    last = max(points[-1]["step"], 1)
    shades: list[Markup] = []
    shapes: list[Markup] = []
    start = 0
    for attempt, group in groupby(points, key=lambda point: point["attempt"]):
        known = list(group)
        forgotten = max((p["step"] for p in known if p["phase"] == "forget"), default=start)
        shades.append(_shade(start / last, forgotten / last))
        if attempt:
            shapes.append(_line(start / last, _TOP, start / last, _BOTTOM, "attempt"))
            shapes.append(_text(f"attempt {attempt + 1}", _share(start / last), _TOP - 8, "middle"))
        begin: list[Point] = [] if received is None else [(start, received)]
        shapes += _path([*begin, *((p["step"], p["holdout_accuracy"]) for p in known)], last)
        start = known[-1]["step"]
    if received is not None:
        shades.append(_line(0, _height(received), 1, _height(received), "received"))
    return element(
        "svg",
        shades,
        _axes(last),
        shapes,
        class_="curve",
        width="100%",
        height=str(_CURVE_HEIGHT),
        role="img",
        aria_label=_label(history, received),
    )


def _label(history: Sequence[Mapping[str, Any]], received: float | None) -> str:
    """The curve in words."""
    forgotten = min((p["holdout_accuracy"] for p in history if p["phase"] == "forget"), default=None)
    return (
        f"Held-out accuracy over {history[-1]['step']:,} training steps: {percent(received)} as received, at least "
        f"{percent(forgotten)} while forgetting, {percent(history[-1]['holdout_accuracy'])} at the end."
    )


def _axes(last: int) -> list[Markup]:
    grid = [_line(0, _height(share), 1, _height(share), "grid") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    labels = [_text(f"{share:.0%}", "-8", _height(share) + 4, "end") for share in (0.0, 0.5, 1.0)]
    ends = [_text("0", "0", _BOTTOM + 20, "start"), _text(f"{last:,} steps", "100%", _BOTTOM + 20, "end")]
    return [*grid, *labels, *ends]


def _path(points: Sequence[Point], last: int) -> list[Markup]:
    lines = [_line(a / last, _height(p), b / last, _height(q), "path") for (a, p), (b, q) in pairwise(points)]
    marks = [
        element("circle", cx=_share(step / last), cy=_number(_height(accuracy)), r="2.5", class_="point")
        for step, accuracy in points
    ]
    return [*lines, *marks]


def _shade(start: float, end: float) -> Markup:
    size = {"width": _share(end - start), "height": str(_BOTTOM - _TOP)}
    return element("rect", x=_share(start), y=str(_TOP), class_="forget", **size)


def _dot(rate: Rate, side: str) -> Markup:
    y = _LANES[side]
    span = _line(rate["low"], y, rate["high"], y, f"span {side}")
    if rate["value"] is None:
        return span
    return element("g", span, element("circle", cx=_share(rate["value"]), cy=str(y), r=_RADIUS[side], class_=side))


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    ends = {"x1": _share(x1), "y1": _number(y1), "x2": _share(x2), "y2": _number(y2)}
    return element("line", class_=class_, **ends)


def _text(text: str, x: str, y: float, anchor: str) -> Markup:
    return element("text", text, x=x, y=_number(y), text_anchor=anchor)


def _height(share: float) -> float:
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _share(share: float) -> str:
    return f"{100 * share:.2f}%"


def _number(number: float) -> str:
    return f"{number:.1f}"
