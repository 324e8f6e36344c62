"""``study.py --report``: what the rows of a study say, as a page of tables and three pictures. Nothing is measured.

All means are over rows, each one model, budget and seed. They are of models whose attack worked (ASR of 0.9 and more as
received) at the usual poison rate, development and held-out attacks apart; attacks that worked less, other poison
rates, other nets and clean models have tables of their own. Points are percentage points.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benches.rows import Row, as_svg
from benches.zoo import DEVELOPMENT, HELD_OUT, PLANTED, RATE
from seamfast.plot import _BLUE, _GREY, _LINES
from seamfast.report import write_atomically

SEAM = "seam (balanced)"
"""Our method by its defaults."""

NETS = ("small_cnn", "small_vgg", "narrow_resnet18")
"""The architectures of the first tables. The others are fewer models, on one data set, chosen for being difficult."""
PARTS = ("held-out", "development")
ATTACKS = (*DEVELOPMENT, *HELD_OUT)
SHOWN_BUDGET = 0.05
_MARKS = "os^Dv*PX<>"


def write(folder: Path, rows: list[Row]) -> None:
    """``study.md`` in ``folder``, and beside it the pictures that it shows; equal rows give equal files."""
    rows = sorted(rows, key=key)
    shown = [row for row in rows if not is_unseen(row) and row["architecture"] in NETS]
    for name, draw in (("tradeoff", draw_tradeoff), ("attacks", draw_heat_map), ("budgets", draw_budgets)):
        write_atomically(folder / f"study-{name}.svg", draw(shown))
    write_atomically(folder / "study.md", page(rows).encode())


# ---- What is counted. ----


def counted(rows: Iterable[Row]) -> list[Row]:
    """Rows of attacks that worked, at the usual poison rate."""
    return [r for r in rows if r["part"] != "clean" and r["rate"] == RATE and r["asr_before"] >= PLANTED]


def summary(rows: list[Row]) -> Row:
    """What one line of a table says of rows of attacked models; rates as shares, ``acc_lost`` in points."""
    ended = [row for row in rows if "failed" not in row]
    judged = [row["accepted"] for row in ended if row["accepted"] is not None]
    found: Row = {"n": len(ended), "n_failed": len(rows) - len(ended)}
    found |= {"accepted": sum(judged) if judged else None, "judged": len(judged)}
    if ended:
        found |= {
            "asr_mean": statistics.mean(row["asr_after"] for row in ended),
            "asr_worst": max(row["asr_after"] for row in ended),
            "acc_lost": statistics.mean(map(acc_lost, ended)),
            "fidelity": statistics.mean(row["fidelity"] for row in ended),
            "fidelity_nist": statistics.mean(row["fidelity_nist"] for row in ended),
            "steps": statistics.mean(row["steps"] for row in ended),
            "seconds": statistics.median(row["seconds"] for row in ended),
        }
    return found


def is_unseen(row: Row) -> bool:
    """Whether the clean data were unseen by the model's training."""
    return bool(row.get("unseen"))


Key = tuple[str, str, float, int, bool]


def key(row: Row) -> Key:
    """Of the job that a row is of: model, method, budget, seed, and whether the clean data were unseen."""
    return row["entry"], row["method"], row["budget"], row["seed"], is_unseen(row)


def acc_lost(row: Row) -> float:
    """In percentage points."""
    return 100 * float(row["acc_before"] - row["acc_after"])


def grouped(rows: Iterable[Row], *names: str) -> dict[Any, list[Row]]:
    """Rows by the values of some fields, in the order in which they come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names) if len(names) > 1 else row[names[0]], []).append(row)
    return groups


def budget_name(budget: float) -> str:
    return f"{budget:g} a class" if budget >= 1 else f"{100 * budget:g} %"


def in_order(methods: Iterable[str]) -> list[str]:
    """Ours first, then the defences of others, then our ablations."""
    return sorted(set(methods), key=lambda name: (is_ablation(name), not name.startswith("seam"), name))


def is_ablation(method: str) -> bool:
    return method.startswith("seam,")


# ---- Tables. ----


def page(rows: list[Row]) -> str:
    """The whole of ``study.md``."""
    return "\n".join(_page(rows)) + "\n"


def _page(rows: list[Row]) -> Iterator[str]:
    yield "# The defence study\n"
    yield (
        "Made by `python benches/study.py --report` from the rows in `benches/results/study.jsonl`; how they are "
        "measured stands at the head of [`benches/study.py`](../benches/study.py), which models there are at that of "
        "[`benches/zoo.py`](../benches/zoo.py). Hyper-parameters were chosen on the development attacks; the held-out "
        f"ones are the result. Means are over models whose attack worked (ASR of {100 * PLANTED:g} % and more as "
        f'received) at a poison rate of {100 * RATE:g} %. Where methods had different models (n), "ours there" is the '
        f'Fidelity of `{SEAM}` on the same ones. Steps are means, seconds medians, of one thread. "Accepted" is the '
        "verdict of methods that give one.\n"
    )
    yield f"{len(rows)} rows; commits {', '.join(sorted({row['commit'] for row in rows}))}.\n"
    for name, about in (
        ("tradeoff", f"accuracy lost against ASR, {budget_name(SHOWN_BUDGET)} clean data"),
        ("attacks", f"ASR by method and attack, {budget_name(SHOWN_BUDGET)} clean data"),
        ("budgets", "Fidelity against the clean budget"),
    ):
        yield f"![{about}](study-{name}.svg)\n"
    judged = [row for row in rows if row["method"] == SEAM and row["rate"] == RATE]
    rows = [row for row in rows if not is_unseen(row)]
    for budget, of_budget in sorted(grouped(rows, "budget").items(), key=lambda item: (item[0] >= 1, -item[0])):
        share = "" if budget >= 1 else " of the training set"
        yield f"## Clean data: {budget_name(budget)}{share}\n"
        of_nets = [row for row in counted(of_budget) if row["architecture"] in NETS]
        yield f"On {', '.join(f'`{net}`' for net in NETS)}:\n"
        yield from by_method(of_nets)
        yield "ASR after, and accuracy lost in points, by attack:\n"
        yield from crossed(of_nets, "part", "attack")
        yield "By data set and architecture:\n"
        yield from crossed(counted(of_budget), "data", "architecture")
        attacked = [row for row in of_budget if row["part"] != "clean"]
        rated = [row for row in attacked if row["rate"] != RATE and row["asr_before"] >= PLANTED]
        if rated:
            yield "At other poison rates:\n"
            yield from crossed(rated, "attack", "rate")
        weak = [row for row in attacked if row["asr_before"] < PLANTED]
        if weak:
            yield f"Attacks that did not reach an ASR of {100 * PLANTED:g} %, and count in no other table:\n"
            yield from crossed(weak, "data", "architecture", "attack", "rate")
        yield from of_clean_models([row for row in of_budget if row["part"] == "clean"])
        yield from after_reactivation(counted(of_budget))
    yield from of_acceptance(judged)


def table(heads: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines]) + "\n"


def by_method(rows: list[Row]) -> Iterator[str]:
    """Held-out attacks, then development; beside each method's Fidelity that of ours on the very models that it had."""
    heads = ["attacks", "method", "n", "mean ASR", "worst ASR", "ACC lost", "Fidelity", "ours there"]
    ours = {(r["entry"], r["seed"]): r["fidelity"] for r in rows if r["method"] == SEAM and "failed" not in r}
    groups = grouped(rows, "part", "method")
    lines = []
    for part in PARTS:
        for method in in_order(row["method"] for row in rows):
            group = groups.get((part, method), [])
            found = summary(group)
            models = [(row["entry"], row["seed"]) for row in group if "failed" not in row]
            there = [ours[model] for model in models if model in ours]
            n = f"{found['n']}" + (f" ({found['n_failed']} failed)" if found["n_failed"] else "")
            if found["n"]:
                line = [part, method, n, f"{found['asr_mean']:.2%}", f"{found['asr_worst']:.2%}"]
                line += [f"{found['acc_lost']:.2f} points", f"{found['fidelity']:.3f}"]
                line += [f"{statistics.mean(there):.3f}" if there else "", f"{found['fidelity_nist']:.3f}"]
                line += [f"{found['steps']:,.0f}", f"{found['seconds']:.1f}", accepted(found)]
                lines.append(line)
            elif found["n_failed"]:
                lines.append([part, method, n, *[""] * 9])
    yield table([*heads, "Fidelity (NIST)", "steps", "s", "accepted"], lines)


def accepted(found: Row) -> str:
    return "" if found["accepted"] is None else f"{found['accepted']}/{found['judged']}"


def crossed(rows: list[Row], *names: str) -> Iterator[str]:
    """Means by the values of some fields, a column a method."""
    methods = in_order(row["method"] for row in rows)
    groups = grouped(rows, *names)
    lines = []
    for values in sorted(groups):
        received = {(row["entry"], row["seed"]): row["asr_before"] for row in groups[values]}
        line = [*map(str, values), f"{statistics.mean(received.values()):.1%}"]
        of_methods = grouped(groups[values], "method")
        for method in methods:
            found = summary(of_methods.get(method, []))
            line.append(f"{found['asr_mean']:.1%}, {found['acc_lost']:.1f}" if found["n"] else "")
        lines.append(line)
    yield table([*names, "ASR before", *methods], lines)


def of_acceptance(rows: list[Row]) -> Iterator[str]:
    """How many were accepted, by what they lost in truth and by where the clean data came from."""
    if not any(map(is_unseen, rows)):
        return
    yield "## Acceptance\n"
    yield (
        f"Accepted results of `{SEAM}`, by the accuracy that they lost on test data, and by whether the model was "
        "trained on the clean data. A cure that lost 3 points or less should be accepted, one that lost "
        "6 or more should not.\n"
    )
    lines = []
    for (unseen, budget), group in sorted(
        grouped(({**r, "unseen": is_unseen(r)} for r in rows), "unseen", "budget").items()
    ):
        line = ["unseen" if unseen else "of the training set", budget_name(budget)]
        for low, high in ((-100, 3), (3, 6), (6, 101)):
            of_loss = [row["accepted"] for row in group if "failed" not in row and low < acc_lost(row) <= high]
            line.append(f"{sum(of_loss)}/{len(of_loss)}")
        lines.append(line)
    yield table(["clean data", "budget", "lost up to 3 points", "3 to 6", "more than 6"], lines)


def of_clean_models(rows: list[Row]) -> Iterator[str]:
    """Do they do harm?"""
    if not rows:
        return
    yield "Models without a backdoor:\n"
    lines = []
    groups = grouped(rows, "method")
    for method in in_order(groups):
        ended = [row for row in groups[method] if "failed" not in row]
        if ended:
            lost = [acc_lost(row) for row in ended]
            judged = [row["accepted"] for row in ended if row["accepted"] is not None]
            verdict = f"{sum(judged)}/{len(judged)}" if judged else ""
            lines.append([method, f"{len(ended)}", f"{statistics.mean(lost):.2f}", f"{max(lost):.2f}", verdict])
    yield table(["method", "n", "mean ACC lost, points", "most", "accepted"], lines)


def after_reactivation(rows: list[Row]) -> Iterator[str]:
    """Mean ASR after the cure, after what its attacker does then, and the same of models that were never backdoored."""
    rows = [row for row in rows if row.get("asr_reactivated") is not None]
    if not rows:
        return
    yield "Re-activation (fine-tuned on 2 % clean data with 5 triggered images), mean ASR:\n"
    names = ("asr_after", "asr_reactivated", "asr_clean_twin", "asr_clean_twin_reactivated")
    lines = []
    for (part, method), group in sorted(grouped(rows, "part", "method").items(), reverse=True):
        means = [f"{statistics.mean(row[name] for row in group):.2%}" for name in names]
        lines.append([part, method, f"{len(group)}", *means])
    heads = ["attacks", "method", "n", "cured", "then re-activated", "never backdoored", "then re-activated"]
    yield table(heads, lines)


# ---- Pictures. ----


def draw_tradeoff(rows: list[Row]) -> bytes:
    """Accuracy lost against ASR, both from 1 on logarithmic: a method's mean is large, its attacks are small."""
    shown = [row for row in drawn(rows) if row["budget"] == SHOWN_BUDGET and not is_ablation(row["method"])]
    styles = styles_of(shown)

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for axis, part in zip(axes, PARTS, strict=True):
            groups = grouped((row for row in shown if row["part"] == part), "method")
            for method in in_order(groups):
                color, mark = styles[method]
                for of_attack in grouped(groups[method], "attack").values():
                    found = summary(of_attack)
                    axis.plot(found["acc_lost"], 100 * found["asr_mean"], mark, color=color, ms=3.5, alpha=0.6)
                found = summary(groups[method])
                axis.plot(found["acc_lost"], 100 * found["asr_mean"], mark, color=color, ms=10, mec="black", mew=0.8)
            for scale in (axis.set_xscale, axis.set_yscale):
                scale("symlog", linthresh=1)
            for one_axis in (axis.xaxis, axis.yaxis):
                one_axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set(title=f"{part} attacks", xlabel="accuracy lost, points")
            axis.grid(color="0.9", lw=0.6)
            axis.set_axisbelow(True)
        axes[0].set_ylabel("ASR, %")
        add_legend(figure, styles)

    return as_svg(draw, (9, 5.2), "study", math=False)


def draw_heat_map(rows: list[Row]) -> bytes:
    """Mean ASR, a line a method and a column an attack, development attacks on the left."""
    shown = [row for row in drawn(rows) if row["budget"] == SHOWN_BUDGET]
    groups = grouped(shown, "method", "attack")
    methods = in_order(row["method"] for row in shown)
    attacks = [attack for attack in ATTACKS if any(attack == of for _, of in groups)]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        means = [
            [100 * summary(groups[m, a])["asr_mean"] if (m, a) in groups else float("nan") for a in attacks]
            for m in methods
        ]
        if not means:
            return
        picture = axis.imshow(means, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for y, line in enumerate(means):
            for x, value in enumerate(line):
                if value == value:
                    color = "black" if value > 50 else "white"
                    axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color)
        axis.set_xticks(range(len(attacks)), [a.replace("_", " ") for a in attacks], rotation=40, ha="right")
        axis.set_yticks(range(len(methods)), methods)
        n_development = sum(attack in DEVELOPMENT for attack in attacks)
        axis.axvline(n_development - 0.5, color="white", lw=4)
        axis.set_title("development attacks | held-out attacks", fontsize=10)
        figure.colorbar(picture, label="ASR, %", fraction=0.03)

    return as_svg(draw, (9, 1.6 + 0.36 * max(len(methods), 1)), "study", math=False)


def draw_budgets(rows: list[Row]) -> bytes:
    """Mean Fidelity; a budget of so many images a class is no point on the line of shares."""
    shown = [row for row in drawn(rows) if not is_ablation(row["method"])]
    styles = styles_of(shown)
    budgets = sorted({row["budget"] for row in shown}, key=lambda budget: (budget >= 1, budget))

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, part in zip(axes, PARTS, strict=True):
            groups = grouped((row for row in shown if row["part"] == part), "method", "budget")
            for method, (color, mark) in styles.items():
                for connected, wanted in (("-", [b for b in budgets if b < 1]), ("", [b for b in budgets if b >= 1])):
                    there = [budget for budget in wanted if (method, budget) in groups]
                    places = [budgets.index(budget) for budget in there]
                    means = [summary(groups[method, budget])["fidelity"] for budget in there]
                    axis.plot(places, means, f"{mark}{connected}", color=color, ms=5, lw=1.5)
            axis.set_xticks(range(len(budgets)), map(budget_name, budgets))
            axis.set(title=f"{part} attacks", xlabel="clean data")
            axis.grid(color="0.9", lw=0.6)
            axis.set_axisbelow(True)
        axes[0].set_ylabel("Fidelity")
        add_legend(figure, styles)

    return as_svg(draw, (9, 5.2), "study", math=False)


def drawn(rows: list[Row]) -> list[Row]:
    """What the tables count, less failures."""
    return [row for row in counted(rows) if "failed" not in row]


def styles_of(rows: list[Row]) -> dict[str, tuple[str, str]]:
    """A color and a mark for each method, of which no two have both."""
    colors = (_BLUE, *_LINES, _GREY)
    methods = in_order(row["method"] for row in rows)
    return {m: (colors[i % len(colors)], _MARKS[i % len(_MARKS)]) for i, m in enumerate(methods)}


def add_legend(figure: Any, styles: dict[str, tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, marker=mark, ls="", label=m) for m, (color, mark) in styles.items()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
