"""``ntk.py --report``: what the rows say, as tables and figures. Nothing is measured.

Intervals are 95 % ones of a bootstrap over the models (2,000 resamples, one seed).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benches.rows import Row, as_svg
from benches.study_report import SEAM, table
from seamfast.audits.ntk import SCHEMES
from seamfast.plot import _BLUE, _GREY, _VERMILION
from seamfast.report import write_atomically

_RESAMPLES = 2000
_LAST = "20"
"""Steps of the row of actual drift that tables show."""
BUDGET = 0.05
PATCHES = ("badnets", "random_patch", "multi_trigger", "tact", "label_consistent", "input_aware")
"""Attacks whose trigger is a patch."""
_TEXTS = ("sst2", "trec", "ag-news")

Figure = Callable[[Row], float | None]


def gone(scheme: str, probes: str) -> Figure:
    """Share of the answers that training to the end is predicted to change."""
    return lambda row: row["predicted"][scheme][probes]["gone"]


def share(scheme: str, probes: str, kernel: str = "predicted") -> Figure:
    """Predicted drift to the end, squared, of the squared logits."""
    return lambda row: row[kernel][scheme][probes]["share"]


def ratio(row: Row) -> float:
    """Share of the logits that uniform labels take from triggered samples, over that from clean ones."""
    found: float = share("uniform", "triggered")(row) / share("uniform", "clean")(row)  # type: ignore[operator]
    return found


INDICATORS: dict[str, Figure] = {
    "shared gradients of triggered samples": lambda row: row["overlap"]["triggered"]["shared"],
    "the same, T under the patterns of recovery": lambda row: row["overlap"]["recover"]["shared"],
    "largest cosine, triggered": lambda row: row["overlap"]["triggered"]["cosines"][0],
    "share of logits gone, triggered": share("uniform", "triggered"),
    "the same, over that of clean samples": ratio,
    "the same, last layer": share("uniform", "triggered", "last_layer"),
    "share of logits gone, clean (blind)": share("uniform", "clean"),
    "shared gradients of clean samples (blind)": lambda row: row["overlap"]["clean"]["shared"],
}
"""What may tell which backdoors stay; blind: of clean samples alone."""
VIEWS = ("forget", "recover")
OUTCOMES = ("ASR at collapse", "ASR after the cure")


def write(folder: Path, rows: list[Row], cured: list[Row]) -> None:
    """``ntk-study.md`` and its figures in ``folder``; equal rows give equal files.

    Args:
        rows: of ``ntk.py``; the last one of a model counts.
        cured: of ``study.py`` and ``text_study.py``.
    """
    rows = [row for _, row in sorted({row["entry"]: row for row in rows}.items())]
    after = {
        row["entry"]: row["asr_after"]
        for row in cured
        if (row["method"], row["budget"], row["seed"]) == (SEAM, BUDGET, 0)
        and not row.get("unseen")
        and "failed" not in row
        and row["asr_after"] is not None
    }
    write_atomically(folder / "ntk-study.md", ("\n".join(_page(rows, after)) + "\n").encode())
    if rows:
        for name, draw, size in (
            ("ntk-drift", _draw_drift, (9.0, 3.2)),
            ("ntk-labels", _draw_labels, (7.0, 3.4)),
            ("ntk-overlap", _draw_overlap, (9.0, 3.2)),
        ):
            write_atomically(folder / f"{name}.svg", as_svg(lambda figure, d=draw: d(figure, rows), size, name))
        drawn = as_svg(lambda figure: _draw_outcomes(figure, rows, after), (7.0, 3.4), "ntk-left")
        write_atomically(folder / "ntk-left.svg", drawn)


def outcome(name: str, row: Row, after: dict[str, float]) -> float | None:
    """The ASR at collapse; or after the cure, where a study has it."""
    found: float | None = row["path"]["asr_at_collapse"] if name == OUTCOMES[0] else after.get(row["entry"])
    return found


# ---- Statistics ----


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """The rank correlation, ties at their mean rank; ``None`` of no pairs and where one side is constant."""
    if not pairs:
        return None
    ranks = [_ranks(side) for side in zip(*pairs, strict=True)]
    means = [statistics.mean(side) for side in ranks]
    products = sum((a - means[0]) * (b - means[1]) for a, b in zip(*ranks, strict=True))
    sizes = [sum((a - mean) ** 2 for a in side) for side, mean in zip(ranks, means, strict=True)]
    return products / (sizes[0] * sizes[1]) ** 0.5 if min(sizes) > 0 else None


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def bounded(values: Sequence[Any], statistic: Callable[[Sequence[Any]], float | None]) -> str:
    """The statistic with its interval, as text."""
    value = statistic(values)
    if value is None or len(values) < 2:
        return "n/a"
    generator = random.Random(0)
    drawn = (statistic(generator.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    found = sorted(one for one in drawn if one is not None)
    low, high = found[round(0.025 * (len(found) - 1))], found[round(0.975 * (len(found) - 1))]
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


# ---- Tables ----


def _page(rows: list[Row], after: dict[str, float]) -> Iterator[str]:
    yield "# Forgetting by the kernel, measured\n"
    if not rows:
        yield "No rows yet; `python benches/ntk.py` makes them."
        return
    n_text = sum(row["data"] in _TEXTS for row in rows)
    yield (
        f"{len(rows)} models with a backdoor, {n_text} of them of text; what is measured stands at the head of "
        "[`benches/ntk.py`](../benches/ntk.py), the theory in [ntk.md](ntk.md). Made by `python benches/ntk.py "
        f"--report` from the rows in `benches/results/ntk.jsonl`. {rows[0]['n']} training samples and as many probes; "
        "medians are over models, with 95 % intervals of a bootstrap over them.\n"
    )
    yield "## Predicted and actual drift\n"
    yield (
        "Gradient descent on half of the summed squares; rates are in units of one over the largest eigenvalue of the "
        "kernel. The error is the norm of the difference of both drifts over that of the actual one.\n"
    )
    yield "![Predicted and actual drift](ntk-drift.svg)\n"
    yield table(["labels", "rate", "steps", "error, clean", "error, triggered", "n"], _drift_lines(rows))
    yield "## Which labels forget most\n"
    yield (
        "Forgetting to the end, as predicted, over that of the same model with maximum-entropy labels, and in how many "
        f"models the scheme is the largest of the four; and the same after {_LAST} real steps.\n"
    )
    yield "![Forgetting by labels](ntk-labels.svg)\n"
    heads = ["probes", "labels", "predicted", "largest in", f"after {_LAST} steps", "largest in", "answers gone", "n"]
    yield table(heads, _scheme_lines(rows))
    yield "## Which backdoors stay\n"
    yield "![Cosines between gradients](ntk-overlap.svg)\n"
    yield (
        "Rank correlation with the ASR when forgetting has brought the ACC halfway to chance, and with the ASR after "
        "the whole cure. Blind indicators need no trigger.\n"
    )
    yield "![What is left](ntk-left.svg)\n"
    images = [row for row in rows if row["data"] not in _TEXTS]
    groups = {
        f"{name}, {kind}": (name, some) for name in OUTCOMES for kind, some in (("images", images), ("all", rows))
    }
    counts = {title: len(_pairs(some, after, name, ratio)) for title, (name, some) in groups.items()}
    heads = ["indicator", *(f"{title} (n = {count})" for title, count in counts.items())]
    yield table(heads, _correlation_lines(list(groups.values()), after))
    yield "## What patterns on T add\n"
    yield (
        "Of the leading gradients of triggered samples, the share that is in the span of those of T: clean, under the "
        "patterns of forgetting, and under those of recovery.\n"
    )
    yield table(["triggers", "clean T", "forgetting", "recovery", "n"], _view_lines(rows))
    yield "## Model by model\n"
    yield (
        "Shared: of the leading gradients of probes, the share that is in the span of those of clean training samples; "
        "of triggered ones also of training samples under the patterns of forgetting and of recovery. "
        "Gone: the share of the answers that uniform labels are predicted to change.\n"
    )
    heads = [
        "model",
        "shared, clean",
        "triggered",
        "forgetting",
        "recovery",
        "gone, clean",
        "gone, triggered",
        *OUTCOMES,
        "products",
        "s",
    ]
    yield table(heads, [_model_line(row, after) for row in rows])


def _drift_lines(rows: list[Row]) -> Iterator[list[str]]:
    for scheme in SCHEMES:
        kinds = sorted({(a["rate"], a["steps"]) for row in rows for a in row["actual"] if a["scheme"] == scheme})
        for rate, steps in kinds:
            line = [scheme, f"{rate:g}", str(steps)]
            for probes in ("clean", "triggered"):
                errors = [_actual(row, scheme, steps, rate, probes)["error"] for row in rows]
                line.append(bounded(errors, statistics.median))
            yield [*line, str(len(rows))]


def _actual(row: Row, scheme: str, steps: int, rate: float, probes: str) -> Row:
    wanted = {"scheme": scheme, "steps": steps, "rate": rate, "probes": probes}
    found: Row = next(one for one in row["actual"] if wanted.items() <= one.items())
    return found


def _scheme_lines(rows: list[Row]) -> Iterator[list[str]]:
    def ended(row: Row, scheme: str, probes: str) -> float:
        value: float = row["predicted"][scheme][probes]["to_the_end"]
        return value

    def stepped(row: Row, scheme: str, probes: str) -> float:
        value: float = _actual(row, scheme, int(_LAST), 1.0, probes)["actual"]
        return value

    for probes in ("clean", "triggered"):
        for scheme in SCHEMES:
            line = [probes, scheme]
            for measure in (ended, stepped):
                over = [measure(row, scheme, probes) / measure(row, "max_entropy", probes) for row in rows]
                largest = sum(
                    measure(row, scheme, probes) >= max(measure(row, one, probes) for one in SCHEMES) for row in rows
                )
                line += [bounded(over, statistics.median), str(largest)]
            answers = [gone(scheme, probes)(row) for row in rows]
            yield [*line, bounded(answers, statistics.median), str(len(rows))]


def _pairs(rows: list[Row], after: dict[str, float], name: str, indicator: Figure) -> list[tuple[float, float]]:
    found = ((indicator(row), outcome(name, row, after)) for row in rows)
    return [(value, result) for value, result in found if value is not None and result is not None]


def _correlation_lines(groups: list[tuple[str, list[Row]]], after: dict[str, float]) -> Iterator[list[str]]:
    for indicator, value in INDICATORS.items():
        yield [indicator, *(bounded(_pairs(rows, after, name, value), spearman) for name, rows in groups)]


def _view_lines(rows: list[Row]) -> Iterator[list[str]]:
    for name, some in _kinds(rows).items():
        shared = [[row["overlap"][probes]["shared"] for row in some] for probes in ("triggered", *VIEWS)]
        if some:
            yield [name, *(bounded(values, statistics.median) for values in shared), str(len(some))]


def _kinds(rows: list[Row]) -> dict[str, list[Row]]:
    """By the kind of trigger."""
    return {
        "patches": [row for row in rows if row["attack"] in PATCHES],
        "other triggers": [row for row in rows if row["attack"] not in PATCHES and row["data"] not in _TEXTS],
        "texts": [row for row in rows if row["data"] in _TEXTS],
    }


def _model_line(row: Row, after: dict[str, float]) -> list[str]:
    shared = [f"{row['overlap'][probes]['shared']:.2f}" for probes in ("clean", "triggered", *VIEWS)]
    answers = [f"{gone('uniform', probes)(row):.0%}" for probes in ("clean", "triggered")]
    results = (outcome(name, row, after) for name in OUTCOMES)
    left = ["" if result is None else f"{result:.1%}" for result in results]
    return [row["entry"], *shared, *answers, *left, str(row["n_products"]), f"{row['predicted_seconds']:.0f}"]


# ---- Figures ----


def _draw_drift(figure: Any, rows: list[Row]) -> None:
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for axis, steps in zip(axes, (1, 5, 20), strict=True):
        for rate, marker in ((1.0, "o"), (0.1, "x")):
            for probes, color in (("clean", _BLUE), ("triggered", _VERMILION)):
                some = [
                    one
                    for row in rows
                    for one in row["actual"]
                    if (one["steps"], one["rate"], one["probes"]) == (steps, rate, probes)
                ]
                axis.scatter(
                    [one["actual"] for one in some],
                    [one["predicted"] for one in some],
                    s=12,
                    marker=marker,
                    linewidths=0.8,
                    color=color,
                    label=f"{probes}, rate {rate:g}",
                )
        axis.axline((1.0, 1.0), (10.0, 10.0), color=_GREY, linewidth=0.8)
        axis.set(xscale="log", yscale="log", title=f"{steps} step" + ("s" if steps > 1 else ""))
    axes[0].set_ylabel("predicted")
    axes[1].set_xlabel("actual: mean squared change of the logits")
    axes[0].legend(frameon=False, fontsize=7)


def _draw_labels(figure: Any, rows: list[Row]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for axis, probes in zip(axes, ("clean", "triggered"), strict=True):
        for row in rows:
            color = _VERMILION if row["attack"] in PATCHES else _BLUE
            values = [100 * (gone(scheme, probes)(row) or 0.0) for scheme in SCHEMES]
            axis.plot(range(len(SCHEMES)), values, color=color, linewidth=0.8, marker=".", alpha=0.7)
        axis.set_xticks(range(len(SCHEMES)), [name.replace("_", "\n") for name in SCHEMES], fontsize=8)
        axis.set_title(probes, fontsize=9)
    axes[0].set_ylabel("answers that go, predicted (%)")
    axes[1].plot([], [], color=_VERMILION, label="patches")
    axes[1].plot([], [], color=_BLUE, label="other triggers")
    axes[1].legend(frameon=False, fontsize=8)


def _draw_overlap(figure: Any, rows: list[Row]) -> None:
    kinds = _kinds(rows)
    axes = figure.subplots(1, len(kinds), sharey=True)
    for axis, (name, some) in zip(axes, kinds.items(), strict=True):
        for row in some:
            for probes, color in (("clean", _BLUE), ("triggered", _VERMILION)):
                cosines = row["overlap"][probes]["cosines"]
                axis.plot(range(1, len(cosines) + 1), cosines, color=color, linewidth=0.8, alpha=0.7)
        axis.set(title=f"{name} (n = {len(some)})", ylim=(0, 1.02), xticks=range(1, 13, 2))
    axes[0].plot([], [], color=_BLUE, label="clean probes")
    axes[0].plot([], [], color=_VERMILION, label="triggered probes")
    axes[0].legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("cosine to gradients of T")
    axes[1].set_xlabel("direction")


def _draw_outcomes(figure: Any, rows: list[Row], after: dict[str, float]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    shown = (
        ("share of logits gone, triggered", 100, "share of the logits that uniform labels take (%)"),
        ("the same, T under the patterns of recovery", 1, "shared gradients, T under patterns of recovery"),
    )
    for axis, name, (indicator, factor, label) in zip(axes, OUTCOMES, shown, strict=True):
        for kind, color in (("patches", _VERMILION), ("other triggers", _BLUE)):
            some = [row for row in rows if (row["attack"] in PATCHES) == (kind == "patches")]
            points = _pairs(some, after, name, INDICATORS[indicator])
            axis.scatter([factor * x for x, _ in points], [100 * y for _, y in points], s=16, color=color, label=kind)
        axis.set(title=name, ylim=(-2, 102))
        axis.set_xlabel(label, fontsize=8)
    axes[0].set_ylabel("ASR (%)")
    axes[0].legend(frameon=False, fontsize=8)
