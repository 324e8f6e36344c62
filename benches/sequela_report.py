"""``sequela.py --report``: what the rows say, as tables. Nothing is measured.

A mean is over models. Changes are differences to the same model as received, model by model, with a 95 % interval of
the mean by a bootstrap over the models (2,000 resamples, one seed). The bounds of a single row, over samples, are in
the rows.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benches.rows import Row
from benches.study_report import SEAM, grouped, key, table
from seamfast.audits.reinjection import steps_ratio
from seamfast.report import write_atomically

RECEIVED, TWIN = "received", "never backdoored"
ORDER = (RECEIVED, SEAM, "super_fine_tune", "fine_tune", "ft_sam", "scratch", TWIN)
SHOWN_COUNT = "200"
"""Poisoned samples whose steps are shown."""
_RESAMPLES = 2000

Figure = Callable[[Row], float | None]


def auc(members: str) -> Figure:
    """Of membership by loss."""
    return lambda row: row["membership"][members]["attacks"]["loss"]["auc"]["value"]


def found_at_1_percent(row: Row) -> float | None:
    """TPR at 1 % FPR of membership by loss, of the training data."""
    found = row["membership"]["training"]["attacks"]["loss"]["tpr_at_1_percent"]
    return None if found is None else found["value"]


def under_pgd(number: int) -> Figure:
    """Accuracy at the first or second size of changes."""
    return lambda row: row["adversarial"]["levels"][number]["rate"]["value"]


SHARES: dict[str, Figure] = {
    "ACC": lambda row: row["acc_after"],
    "ASR": lambda row: row["asr_after"],
    "ASR, re-activated": lambda row: row["reactivation"]["asr_after"]["value"],
    "TPR, training": found_at_1_percent,
    "ECE": lambda row: row["calibration"]["ece"]["value"],
    "PGD 2/255": under_pgd(0),
    "PGD 8/255": under_pgd(1),
}
"""Shown in percent; changes in points."""
AUCS: dict[str, Figure] = {"AUC, training": auc("training"), "AUC, clean": auc("clean")}


def write(folder: Path, rows: list[Row]) -> None:
    """``sequela-study.md`` in ``folder``; equal rows give equal files."""
    text = "\n".join(_page(sorted((row for row in rows if "failed" not in row), key=key))) + "\n"
    write_atomically(folder / "sequela-study.md", text.encode())


def _page(rows: list[Row]) -> Iterator[str]:
    yield "# What cures leave behind, measured\n"
    if not rows:
        yield "No rows yet; `python benches/sequela.py` makes them."
        return
    n_models = len({row["entry"] for row in rows})
    n_test = sorted({row["n_test"] for row in rows})
    yield (
        f"{n_models} models, at 5 % clean data; made by `python benches/sequela.py --report` from the rows in "
        "`benches/results/sequela.jsonl`; how they are measured stands at the head of "
        f"[`benches/sequela.py`](../benches/sequela.py). Test sets of {', '.join(f'{n:,}' for n in n_test)} samples. "
        "AUC and TPR (at 1 % FPR) are of membership inference by loss: 0.5 and 1 % say nothing. Means over models.\n"
    )
    heads = ["method", "n", *SHARES, *AUCS]
    groups = grouped(rows, "method")
    lines = []
    for method in (name for name in ORDER if name in groups):
        group = groups[method]
        shares = [_shown(group, figure, lambda x: f"{100 * x:.1f}") for figure in SHARES.values()]
        aucs = [_shown(group, figure, lambda x: f"{x:.3f}") for figure in AUCS.values()]
        lines.append([method, f"{len(group)}", *shares, *aucs])
    yield table(heads, lines)
    yield from _changes(rows)
    yield from _injections(rows)


def _changes(rows: list[Row]) -> Iterator[str]:
    """Against the same models as received."""
    yield "Changes to the same models as received, in points (AUC: in units of 0.01), with 95 % bounds of the mean:\n"
    received = {(row["entry"], row["seed"]): row for row in rows if row["method"] == RECEIVED}
    groups = grouped(rows, "method")
    figures = {**SHARES, **AUCS}
    lines = []
    for method in (name for name in ORDER[1:] if name in groups):
        pairs = [(row, received[at]) for row in groups[method] if (at := (row["entry"], row["seed"])) in received]
        cells = []
        for figure in figures.values():
            both = [(figure(row), figure(before)) for row, before in pairs]
            cells.append(_with_bounds([100 * (a - b) for a, b in both if a is not None and b is not None]))
        lines.append([method, f"{len(pairs)}", *cells])
    yield table(["method", "n", *figures], lines)


def _injections(rows: list[Row]) -> Iterator[str]:
    """How many samples, and how many steps."""
    first = rows[0]["reinjection"]
    yield (
        f"Re-injection of a new backdoor to an ASR of {100 * first['wanted']:g} %, at most {first['max_steps']} steps. "
        "Fewest: median of the fewest poisoned samples that sufficed, of the models where some number did. Steps with "
        f"{SHOWN_COUNT}: median, one that was not reached counted as all steps. Ratios of steps, geometric mean over "
        "numbers of samples and models with 95 % bounds: below 1, the model is easier to poison.\n"
    )
    by_method = {
        name: {(row["entry"], row["seed"]): row for row in group} for name, group in grouped(rows, "method").items()
    }
    lines = []
    for method in (name for name in ORDER if name in by_method):
        group = by_method[method]
        fewest = [row["reinjection"]["fewest"] for row in group.values()]
        reached = [count for count in fewest if count is not None]
        steps = [
            row["reinjection"]["steps"][SHOWN_COUNT] or row["reinjection"]["max_steps"]
            for row in group.values()
            if SHOWN_COUNT in row["reinjection"]["steps"]
        ]
        ratios = [_ratio(group, by_method.get(other, {})) for other in (RECEIVED, TWIN)]
        lines.append(
            [
                method,
                f"{len(group)}",
                f"{len(reached)}",
                f"{statistics.median(reached):g}" if reached else "",
                f"{statistics.median(steps):g}" if steps else "",
                *ratios,
            ]
        )
    heads = ["method", "n", "reached", "fewest", f"steps with {SHOWN_COUNT}", "ratio to received", f"ratio to {TWIN}"]
    yield table(heads, lines)


def _ratio(group: dict[tuple[str, int], Row], others: dict[tuple[str, int], Row]) -> str:
    """Geometric mean over the models that both have, with bounds."""
    logs = []
    for at in group.keys() & others.keys():
        mine, other = group[at]["reinjection"], others[at]["reinjection"]
        ratio = steps_ratio(mine["steps"], other["steps"], mine["max_steps"])
        if ratio is not None:
            logs.append(math.log(ratio))
    if not logs:
        return ""
    mean, low, high = (math.exp(x) for x in _mean_and_bounds(sorted(logs)))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}] ({len(logs)})" if len(logs) > 1 else f"{mean:.2f} (1)"


def _shown(rows: Sequence[Row], figure: Figure, form: Callable[[float], str]) -> str:
    values = [value for row in rows if (value := figure(row)) is not None]
    return form(statistics.mean(values)) if values else ""


def _with_bounds(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, low, high = _mean_and_bounds(values)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if len(values) > 1 else f"{mean:+.1f}"


def _mean_and_bounds(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean, and the percentiles 2.5 and 97.5 of the means of resamples."""
    generator = random.Random(0)
    means = sorted(statistics.fmean(generator.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    cut = round(0.025 * _RESAMPLES)
    return statistics.fmean(values), means[cut], means[-1 - cut]
