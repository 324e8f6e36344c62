"""``adaptive.py --report``: ``docs/adaptive.md`` out of the rows. Nothing is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benches.rows import Row
from benches.study_report import grouped, table
from seamfast.metrics import Rate
from seamfast.report import write_atomically

SURVIVES = 0.1
"""Attack success from which a backdoor is said to survive."""

HEAD = """# Attackers who have read these pages

Backdoors that are made to stay: wired by hand into units that clean data do not reach, or trained against forgetting
and recovery. Made by `python benches/adaptive.py --report` from the rows in `benches/results/adaptive.jsonl`. How they
are measured stands at the head of [`benches/adaptive.py`](../benches/adaptive.py); what each attack does, with its
source, at the heads of [`benches/attackers`](../benches/attackers).

A method gets the model, 5 % of the training set and unseen held-out data, and no trigger. ACC and ASR (attack success
rate) are measured on half of the test set, at most 3,000 samples, which nothing else uses, as the answers that a
deployment would get: NaN is class 0, as `argmax` has it. An attack counts if it works as received: an ASR of 90 % or
more, and at most 2 points of accuracy below the clean model. ASR is pooled over the seeds; in brackets is its 95 %
Wilson interval, as if samples of all seeds were independent. Points are percentage points of accuracy lost, the mean
over the seeds. The worst seed follows where it is more than 5 % above the pooled rate.
"""


def write(folder: Path, rows: list[Row], order: list[str]) -> None:
    """``adaptive.md`` in ``folder``; equal rows give equal files.

    Args:
        folder: of the page.
        rows: the last one of each case, method and seed counts.
        order: of the cases.
    """
    write_atomically(folder / "adaptive.md", "\n".join(page(rows, order)).encode())


def page(rows: list[Row], order: list[str]) -> Iterator[str]:
    """The parts of the page."""
    rows = list({(row["case"], row["method"], row["seed"]): row for row in rows}.values())
    rows.sort(key=lambda row: (order.index(row["case"]) if row["case"] in order else len(order), row["seed"]))
    treated = [row for row in rows if row["method"] is not None]
    yield HEAD
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    yield f"{len(rows)} rows; commits {commits}. One thread of {machine_named(rows)}.\n"
    methods = [*grouped(treated, "method")]
    yield "## What survives\n"
    yield f"Cases with an ASR of {SURVIVES:.0%} or more after the method, in any seed, of those that count:\n"
    lines = []
    for method in methods:
        cases = grouped((row for row in treated if row["method"] == method), "case")
        left = [case for case, group in cases.items() if max(asr_after(row) for row in group) >= SURVIVES]
        accepted = [c for c in left if any(r.get("accepted") and asr_after(r) >= SURVIVES for r in cases[c])]
        named = ", ".join(f"{c} ({max(map(asr_after, cases[c])):.0%})" for c in left)
        lines.append([method, f"{len(left)} of {len(cases)}", f"{len(accepted)}", named or "none"])
    yield table(["method", "survive", "accepted nonetheless", "which (ASR of the worst seed)"], lines)
    yield "## All attacks\n"
    yield "Each method: ASR after, points lost, and how many results it accepted.\n"
    lines = []
    for case, group in grouped(treated, "case").items():
        by_method = grouped(group, "method")
        first = [*{row["seed"]: row for row in group}.values()]
        cells = [cell(by_method[method]) if method in by_method else "" for method in methods]
        received = f"{mean(r['acc_before'] for r in first):.1%} ({mean(r['acc_clean_model'] for r in first):.1%})"
        seeds = ", ".join(str(row["seed"]) for row in first)
        lines.append([case, seeds, received, pooled(first, "before"), *cells])
    yield table(["attack", "seeds", "ACC received (clean model)", "ASR received", *methods], lines)
    yield from of_audits(treated)
    yield "## The attacks\n"
    yield table(
        ["attack", "of seed 0"],
        [[case, group[0]["description"]] for case, group in grouped(rows, "case").items()],
    )
    yield from of_failures(rows)


def asr_after(row: Row) -> float:
    """Of a method that failed, as received: nothing else can be deployed."""
    return float(row["asr_before"] if "failed" in row else row["asr_after"])


def cell(rows: list[Row]) -> str:
    """One method on one case."""
    ended = [row for row in rows if "failed" not in row]
    failed = f"{len(rows) - len(ended)} failed" if len(ended) < len(rows) else ""
    if not ended:
        return failed
    lost = mean(100 * (row["acc_before"] - row["acc_after"]) for row in ended)
    said = f"{pooled(ended, 'after')}, {lost:.1f}"
    worst = max(row["asr_after"] for row in ended)
    if worst - sum(row["n_hit_after"] for row in ended) / sum(row["n_eligible_after"] for row in ended) > 0.05:
        said += f", worst {worst:.0%}"
    not_finite = sum(row["n_not_finite_after"] for row in ended)
    if not_finite:
        said += f", {not_finite / sum(row['n_eligible_after'] for row in ended):.0%} NaN or Inf"
    judged = [row["accepted"] for row in ended if row["accepted"] is not None]
    if judged:
        said += f", {sum(judged)}/{len(judged)}"
    return f"{said}; {failed}" if failed else said


def pooled(rows: list[Row], when: str) -> str:
    """ASR over the seeds, with its bounds."""
    rate = Rate(*(sum(row[f"{name}_{when}"] for row in rows) for name in ("n_hit", "n_eligible")))
    return f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}] of {rate.n_total:,}"


def mean(values: Iterator[float]) -> float:
    numbers = [*values]
    return sum(numbers) / len(numbers)


def machine_named(rows: list[Row]) -> str:
    """The processors and torch versions of the rows."""
    return "; ".join(sorted({f"{row['machine']['processor']}, torch {row['machine']['torch']}" for row in rows}))


def of_audits(rows: list[Row]) -> Iterator[str]:
    """What the gate's audits say of sanitized models."""
    rows = [row for row in rows if row.get("audits")]
    if not rows:
        return
    yield "## What the gate's audits see\n"
    yield (
        "Of the sanitized model, on held-out data: the largest rate of the battery and the upper bound of it, the "
        "anomaly index of the inverted triggers (2 and more is a suspicion), the largest disagreement with the model "
        "as received.\n"
    )
    lines = []
    for row in rows:
        seen = row["audits"]
        index = "" if seen["anomaly_index"] is None else f"{seen['anomaly_index']:.1f}"
        lines.append(
            [
                row["case"],
                row["method"],
                f"{row['seed']}",
                f"{row['asr_after']:.1%}",
                f"{seen['n']:,}",
                f"{seen['battery_rate']:.1%} (up to {seen['battery_high']:.1%}), {seen['battery']}",
                f"{index}, class {seen['suspect']} (target {row['target']})",
                f"{seen['disagreement_rate']:.1%} (up to {seen['disagreement_high']:.1%}), {seen['disagreement']}",
            ]
        )
    heads = ["attack", "method", "seed", "ASR after", "n", "battery", "inversion", "disagreement"]
    yield table(heads, lines)


def of_failures(rows: list[Row]) -> Iterator[str]:
    """Attacks that do not count, and methods that ended in an error."""
    weak = [row for row in rows if row["method"] is None]
    if weak:
        yield "## Attacks that do not count\n"
        lines = [
            [row["case"], f"{row['seed']}", *(f"{row[k]:.1%}" for k in ("acc_clean_model", "acc_before", "asr_before"))]
            for row in weak
        ]
        yield table(["attack", "seed", "ACC of the clean model", "ACC", "ASR"], lines)
    failed = [row for row in rows if "failed" in row]
    if failed:
        yield "## Methods that failed\n"
        yield table(
            ["attack", "method", "seed", "error"],
            [[row["case"], row["method"], f"{row['seed']}", row["failed"].replace("|", "\\|")] for row in failed],
        )
