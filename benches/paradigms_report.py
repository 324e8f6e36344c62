"""``paradigms.py --report``: a table a paradigm, of the rows of three studies. Nothing is measured.

Means are over rows, each one model, task, budget and seed. Those of the standalone and of the encoder-based paradigm
are of models whose attack worked: ASR of 0.9 and more with no defense. Points are percentage points.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from benches import transfer_study
from benches.rows import Row
from benches.study_report import (
    SEAM,
    acc_lost,
    accepted,
    budget_name,
    counted,
    grouped,
    in_order,
    is_ablation,
    is_unseen,
    key,
    summary,
    table,
)
from seamfast.metrics import Rate
from seamfast.report import write_atomically

STANDALONE_BUDGET = 0.05
WORKED = 0.7
"""Least ASR of an encoder under a head that is fitted on the budget alone, for it to count. Under heads that are fitted
on all labels attacks reach more, but no user has those here."""
INTRODUCTION = """# Three paradigms

Made by `python benches/paradigms.py --report` from the rows in `benches/results/`.

Sha et al., "Fine-Tuning Is All You Need to Mitigate Backdoor Attacks" (arXiv:2212.09067), have three paradigms, with a
defense for each:

| paradigm | what is received | what becomes of it | the paper's defense | here |
| --- | --- | --- | --- | --- |
| standalone | a classifier | it is deployed | super-fine-tuning | `SuperFineTuneConfig()` |
| transfer-based | a pretrained model | it is trained for another task | that training, by the schedule | `.transfer` |
| encoder-based | an encoder | it gets a head for a task | conventional fine-tuning of all weights | `.encoder` |

The schedule is cross-entropy on clean data with a rate that rises and falls on straight lines between a base and a
peak: a high peak in the first phase, a low one in the second. What is known of it comes from the abstract, the public
reviews (openreview.net/forum?id=ywGSgEmOYb), a third party's guide (base 3e-4, peaks 0.1 and 1e-3, three epochs a
phase, SGD with momentum 0.9, weight decay 5e-4; 3e-4 for conventional fine-tuning) and a port
(vtu81/backdoor-toolbox: 0.03, 5 and 0.1, no momentum). Not found: the authors' code, rates, epochs and cycle lengths,
the clean data by paradigm, and their tables. So these are figures of the method as far as it is public, at the guide's
rates, and no reproduction. The reviews say that the authors used the whole training set, and that some
transfer attacks fail without any defense: here the budget is small, and each table has a line without a defense.
"""


def write(folder: Path, standalone: list[Row], transfer: list[Row], encoder: list[Row]) -> None:
    """``paradigms.md`` in ``folder``; equal rows give equal files."""
    write_atomically(folder / "paradigms.md", page(standalone, transfer, encoder).encode())


def page(standalone: list[Row], transfer: list[Row], encoder: list[Row]) -> str:
    """The whole of ``paradigms.md``.

    Args:
        standalone: rows of ``study.py``.
        transfer: rows of ``transfer_study.py``.
        encoder: rows of ``paradigms.py``.
    """
    parts = [INTRODUCTION, *_standalone(standalone), *_transfer(transfer), *_encoder(encoder)]
    return "\n".join(parts) + "\n"


def _standalone(rows: list[Row]) -> Iterator[str]:
    yield "## Standalone\n"
    rows = [r for r in counted(rows) if r["budget"] == STANDALONE_BUDGET and not is_unseen(r)]
    cured = {(r["entry"], r["seed"]) for r in rows if r["method"] == "super_fine_tune"}
    rows = sorted((r for r in rows if (r["entry"], r["seed"]) in cured and not is_ablation(r["method"])), key=key)
    if not rows:
        yield _missing("study.py")
        return
    yield (
        f"The {len(cured)} models of [the study](study.md) that super-fine-tuning had, of those whose attack worked; "
        f"{budget_name(STANDALONE_BUDGET)} clean data. Where a method had fewer of them (n), "
        f'"ours there" is the mean ASR of `{SEAM}` on the same ones.\n'
    )
    ours = {(r["entry"], r["seed"]): r["asr_after"] for r in rows if r["method"] == SEAM and "failed" not in r}
    lines = []
    groups = grouped(rows, "method")
    for method in in_order(groups):
        found = summary(groups[method])
        ended = [row for row in groups[method] if "failed" not in row]
        if not ended:
            lines.append([method, f"0 ({found['n_failed']} failed)", *[""] * 8])
            continue
        there = [ours[known] for row in ended if (known := (row["entry"], row["seed"])) in ours]
        before = statistics.mean(row["asr_before"] for row in ended)
        line = [method, _n(found), f"{before:.1%}", f"{found['asr_mean']:.1%}", f"{found['asr_worst']:.1%}"]
        line += [f"{statistics.mean(there):.1%}" if there else "", f"{found['acc_lost']:.2f}"]
        lines.append([*line, f"{found['fidelity']:.3f}", f"{found['seconds']:.1f}", accepted(found)])
    heads = ["method", "n", "ASR before", "mean ASR", "worst ASR", "ours there", "ACC lost", "Fidelity", "s"]
    yield table([*heads, "accepted"], lines)


def _transfer(rows: list[Row]) -> Iterator[str]:
    yield "## Transfer-based\n"
    if not rows:
        yield _missing("transfer_study.py")
        return
    yield transfer_study.page(rows)


def _encoder(rows: list[Row]) -> Iterator[str]:
    yield "## Encoder-based\n"
    if not rows:
        yield _missing("paradigms.py")
        return
    yield (
        "An encoder with a backdoor, and a head for a downstream task; how it is measured stands at the head of "
        "[`benches/paradigms.py`](../benches/paradigms.py). The floor is the ASR that the same trigger has on the "
        "encoder without a backdoor, under a head of the same data (ASR-B); CA is the accuracy of that. BA is the "
        "accuracy of the received encoder and its head, before and after.\n"
    )
    for budget, of_budget in sorted(grouped(rows, "budget").items(), key=lambda item: (item[0] >= 1, -item[0])):
        share = "" if budget >= 1 else " of the downstream training set"
        yield f"### Labeled samples: {budget_name(budget)}{share}\n"
        yield from _by_task(of_budget)
        yield "Model by model, with 95 % bounds of the ASR:\n"
        yield _by_model([row for row in of_budget if row["asr_before"] >= WORKED])


# ---- Tables. ----


def _by_task(rows: Iterable[Row]) -> Iterator[str]:
    """A line a task and method, of attacks that worked; then those that did not."""
    rows = sorted(rows, key=key)
    worked = [row for row in rows if row["asr_before"] >= WORKED]
    weak = {row["entry"]: row["asr_before"] for row in rows if row["asr_before"] < WORKED}
    lines = []
    for data, of_data in sorted(grouped(worked, "data").items()):
        groups = grouped(of_data, "method")
        lines += [[data, *_line(method, groups[method])] for method in in_order(groups)]
    heads = ["task", "method", "n", "ACC before", "ACC lost", "worst", "ASR before", "floor", "mean ASR", "worst ASR"]
    if lines:
        yield table([*heads, "above floor", "s", "accepted"], lines)
    if weak:
        named = ", ".join(f"{entry} ({asr:.1%})" for entry, asr in sorted(weak.items()))
        yield f"Left out, as the attack did not reach an ASR of {100 * WORKED:g} % with no defense: {named}.\n"


def _line(method: str, rows: list[Row]) -> list[str]:
    found = summary(rows)
    ended = [row for row in rows if "failed" not in row]
    if not ended:
        return [method, _n(found), *[""] * 10]
    means = {name: statistics.mean(row[name] for row in ended) for name in ("acc_before", "asr_before", "floor")}
    above = statistics.mean(100 * max(row["asr_after"] - row["floor"], 0.0) for row in ended)
    line = [method, _n(found), f"{means['acc_before']:.1%}", f"{found['acc_lost']:.2f}"]
    line += [f"{max(map(acc_lost, ended)):.2f}", f"{means['asr_before']:.1%}", f"{means['floor']:.1%}"]
    line += [f"{found['asr_mean']:.1%}", f"{found['asr_worst']:.1%}", f"{above:.1f}", f"{found['seconds']:.1f}"]
    return [*line, accepted(found)]


def _by_model(rows: list[Row]) -> str:
    lines = []
    for (entry, method), group in grouped(sorted(rows, key=key), "entry", "method").items():
        for row in group:
            line = [entry, method, str(row["seed"]), f"{row['ca']:.1%}", f"{row['acc_before']:.1%}"]
            if "failed" in row:
                lines.append([*line, row["failed"], *[""] * 4])
                continue
            asr = Rate(round(row["asr_after"] * row["n_eligible"]), row["n_eligible"])
            line += [f"{row['acc_after']:.1%}", f"{row['asr_before']:.1%}", f"{row['floor']:.1%}"]
            lines.append([*line, f"{row['asr_after']:.1%} [{asr.low:.1%}, {asr.high:.1%}]", str(row["n_eligible"])])
    heads = ["model and task", "method", "seed", "CA", "BA before", "BA", "ASR before", "floor", "ASR", "n"]
    return table(heads, lines)


def _n(found: Row) -> str:
    return f"{found['n']}" + (f" ({found['n_failed']} failed)" if found["n_failed"] else "")


def _missing(name: str) -> str:
    return f"No rows yet; `python benches/{name}` makes them.\n"
