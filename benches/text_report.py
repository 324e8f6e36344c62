"""``text_study.py --report``: what the rows say, as a page of tables. Nothing is measured.

All means are over rows, each one model, budget and seed, of models whose attack worked (ASR of 0.9 and more as
received), development and held-out models apart. Points are percentage points.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from benches.rows import Row
from benches.study_report import (
    PARTS,
    SEAM,
    acc_lost,
    accepted,
    budget_name,
    grouped,
    in_order,
    is_ablation,
    key,
    of_clean_models,
    summary,
    table,
)
from benches.zoo import PLANTED
from seamfast.report import write_atomically

MOST_ASR = 0.25
"""A row of ours with more than this, or with more than its floor and ``ABOVE_FLOOR``, is a failure..."""
ABOVE_FLOOR = 0.05
MOST_LOST = 4.0
"""...and so is one that lost more points of accuracy than this."""


def write(folder: Path, rows: list[Row]) -> None:
    """``text.md`` in ``folder``; equal rows give equal files."""
    write_atomically(folder / "text.md", page(sorted(rows, key=key)).encode())


def page(rows: list[Row]) -> str:
    """The whole of ``text.md``."""
    return "\n".join(_page(rows)) + "\n"


def _page(rows: list[Row]) -> Iterator[str]:
    yield "# The study of text\n"
    yield (
        "Made by `python benches/text_study.py --report` from the rows in `benches/results/text.jsonl`; how they are "
        "measured stands at the head of [`benches/text_study.py`](../benches/text_study.py), which models there are at "
        "that of [`benches/text_zoo.py`](../benches/text_zoo.py), and the settings of the other defences at that of "
        "[`benches/defences/text.py`](../benches/defences/text.py). Settings of the cure were chosen on the "
        "development models; the held-out ones are the result. Means are over models whose attack worked (ASR of "
        f'{100 * PLANTED:g} % and more as received). The floor is the ASR of the same model without a backdoor; "above '
        'floor" is ASR less floor, in points, and 0 where it is below; "Fidelity, floor off" has it in place of ASR. '
        "RA is the share of triggered texts that get "
        'their true class. Where methods had different models (n), "ours there" is the Fidelity of '
        f'`{SEAM}` on the same ones. Steps are means, seconds medians, of one thread. "Accepted" is the verdict of '
        "methods that give one.\n"
    )
    yield f"{len(rows)} rows; commits {', '.join(sorted({row['commit'] for row in rows}))}.\n"
    for budget, of_budget in sorted(grouped(rows, "budget").items(), key=lambda item: (item[0] >= 1, -item[0])):
        share = "" if budget >= 1 else " of the training set"
        yield f"## Clean data: {budget_name(budget)}{share}\n"
        worked = counted(of_budget)
        published = [row for row in worked if not is_ablation(row["method"])]
        for part in PARTS:
            of_part = [row for row in published if row["part"] == part]
            if of_part:
                yield f"### {part.capitalize()} models\n"
                yield by_method(of_part)
                yield "ASR after, and accuracy lost in points, by attack:\n"
                yield crossed(of_part, "attack")
                yield "By data set and architecture:\n"
                yield crossed(of_part, "data", "architecture")
        if len(published) < len(worked):
            yield "### Ablations\n"
            yield "Of the cure's own settings, on the models that each had:\n"
            for part in PARTS:
                ours = [r for r in worked if r["part"] == part and (is_ablation(r["method"]) or r["method"] == SEAM)]
                if ours:
                    yield f"{part.capitalize()}:\n"
                    yield by_method(ours)
        yield from of_encoder(worked)
        yield from of_failures([row for row in of_budget if row["method"] == SEAM])
        weak = [row for row in of_budget if row["part"] != "clean" and row["asr_before"] < PLANTED]
        if weak:
            yield f"### Attacks that did not reach an ASR of {100 * PLANTED:g} %\n"
            yield "They count in no other table:\n"
            yield crossed(weak, "data", "architecture", "attack")
        yield from of_clean_models([row for row in of_budget if row["part"] == "clean"])


# ---- What is counted. ----


def counted(rows: Iterable[Row]) -> list[Row]:
    """Rows of attacks that worked."""
    return [row for row in rows if row["part"] != "clean" and row["asr_before"] >= PLANTED]


def above_floor(row: Row) -> float:
    """In points."""
    return 100 * max(float(row["asr_after"]) - float(row["floor"]), 0.0)


def floor_off(row: Row) -> float:
    """Fidelity with the ASR above the floor in place of the ASR, as no cure can be asked to go below the floor."""
    return (float(row["acc_after"]) - above_floor(row) / 100) / float(row["acc_before"])


def is_failure(row: Row) -> bool:
    """Whether a row of an attacked or a clean model is one to show."""
    if "failed" in row:
        return True
    left = row["asr_after"] is not None and row["asr_after"] > max(MOST_ASR, row["floor"] + ABOVE_FLOOR)
    return bool(left or acc_lost(row) > MOST_LOST)


# ---- Tables. ----


def by_method(rows: list[Row]) -> str:
    """A line a method; beside each one's Fidelity that of ours on the very models that it had."""
    heads = ["method", "n", "ASR before", "floor", "mean ASR", "worst ASR", "above floor", "RA", "ACC lost", "worst"]
    heads += ["Fidelity", "ours there", "Fidelity, floor off", "steps", "s", "accepted"]
    ours = {(r["entry"], r["seed"]): r["fidelity"] for r in rows if r["method"] == SEAM and "failed" not in r}
    groups = grouped(rows, "method")
    lines = []
    for method in in_order(groups):
        found = summary(groups[method])
        ended = [row for row in groups[method] if "failed" not in row]
        line = [method, f"{found['n']}" + (f" ({found['n_failed']} failed)" if found["n_failed"] else "")]
        if not ended:
            lines.append([*line, *[""] * (len(heads) - 2)])
            continue
        there = [ours[known] for row in ended if (known := (row["entry"], row["seed"])) in ours]
        means = {name: statistics.mean(row[name] for row in ended) for name in ("asr_before", "floor", "ra_after")}
        line += [f"{means['asr_before']:.1%}", f"{means['floor']:.1%}"]
        line += [f"{found['asr_mean']:.1%}", f"{found['asr_worst']:.1%}"]
        line += [f"{statistics.mean(map(above_floor, ended)):.1f}", f"{means['ra_after']:.1%}"]
        line += [f"{found['acc_lost']:.2f}", f"{max(map(acc_lost, ended)):.2f}", f"{found['fidelity']:.3f}"]
        line += [f"{statistics.mean(there):.3f}" if there else "", f"{statistics.mean(map(floor_off, ended)):.3f}"]
        line += [f"{found['steps']:,.0f}", f"{found['seconds']:.1f}"]
        lines.append([*line, accepted(found)])
    return table(heads, lines)


def crossed(rows: list[Row], *names: str) -> str:
    """Means by the values of some fields, a column a method."""
    methods = in_order(row["method"] for row in rows)
    groups = grouped(rows, *names)
    lines = []
    for values in sorted(groups):
        received = {(r["entry"], r["seed"]): (r["asr_before"], r["floor"]) for r in groups[values]}
        means = [statistics.mean(pair[i] for pair in received.values()) for i in (0, 1)]
        line = [*((values,) if isinstance(values, str) else values), *(f"{mean:.1%}" for mean in means)]
        of_methods = grouped(groups[values], "method")
        for method in methods:
            found = summary(of_methods.get(method, []))
            line.append(f"{found['asr_mean']:.1%}, {found['acc_lost']:.1f}" if found["n"] else "")
        lines.append(line)
    return table([*names, "ASR before", "floor", *methods], lines)


def of_encoder(rows: list[Row]) -> Iterator[str]:
    """Each model of the pretrained encoder, each method: seeds together."""
    rows = [row for row in rows if row["architecture"] == "minilm" and "failed" not in row]
    if not rows:
        return
    yield "### MiniLM, model by model\n"
    lines = []
    for (entry, method), group in grouped(rows, "entry", "method").items():
        found = summary(group)
        before = [statistics.mean(row[name] for row in group) for name in ("acc_before", "asr_before", "floor")]
        after = [statistics.mean(row[name] for row in group) for name in ("acc_after", "asr_after", "ra_after")]
        line = [entry, method, f"{len(group)}", *(f"{value:.1%}" for value in [*before, *after])]
        lines.append([*line, f"{found['asr_worst']:.1%}", f"{found['seconds']:.0f}", accepted(found)])
    heads = ["model", "method", "seeds", "ACC before", "ASR before", "floor", "ACC", "ASR", "RA", "worst ASR", "s"]
    yield table(
        [*heads, "accepted"], sorted(lines, key=lambda line: (line[0], not line[1].startswith("seam"), line[1]))
    )


def of_failures(rows: list[Row]) -> Iterator[str]:
    """Every row of ours that is one, the worst first."""
    if not rows:
        return
    failures = [row for row in rows if is_failure(row)]
    yield "### Failures\n"
    yield (
        f"Rows of `{SEAM}` with an ASR above {100 * MOST_ASR:g} % and above the floor by more than "
        f"{100 * ABOVE_FLOOR:g} points, or that lost more than {MOST_LOST:g} points: {len(failures)} of {len(rows)}.\n"
    )
    lines = []
    for row in sorted(failures, key=lambda r: (-(r.get("asr_after") or 0), r["entry"], r["seed"])):
        line = [row["entry"], str(row["seed"])]
        if "failed" in row:
            lines.append([*line, *[""] * 4, row["failed"]])
            continue
        shares = ["" if row[name] is None else f"{row[name]:.1%}" for name in ("asr_before", "floor", "asr_after")]
        verdict = {True: "accepted", False: "refused", None: ""}[row["accepted"]]
        lines.append([*line, *shares, f"{acc_lost(row):.2f}", verdict])
    if lines:
        yield table(["model", "seed", "ASR before", "floor", "ASR after", "ACC lost", "verdict"], lines)
