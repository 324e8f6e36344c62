"""The figures in README.md, of the rows in ``results/``: nothing is measured.

    python benches/readme.py            # prints them
    python benches/readme.py --write    # puts them between the marks in README.md

A test compares README.md with what this gives.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benches.rows import read_rows  # noqa: E402
from benches.study_report import NETS, SEAM, SHOWN_BUDGET, counted, grouped, is_unseen, summary  # noqa: E402
from benches.zoo import PLANTED  # noqa: E402

README = ROOT / "README.md"
RESULTS = ROOT / "benches" / "results"
BEGIN, END = "<!-- {name}: python benches/readme.py --write -->", "<!-- end of {name} -->"
_NAMES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "gtsrb": "GTSRB"}
Row = dict[str, Any]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into README.md")
    arguments = parser.parse_args(given)
    if arguments.write:
        README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(made() for made in PARTS.values()))
    return 0


def replaced(text: str) -> str:
    """``text`` with what the rows say between the marks."""
    for name, made in PARTS.items():
        begin, end = BEGIN.format(name=name), END.format(name=name)
        before, _, rest = text.partition(f"{begin}\n")
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"README.md lacks {begin!r} or {end!r}")
        text = f"{before}{begin}\n{made()}\n{end}{after}"
    return text


def claims() -> str:
    """Fidelity, speed and the fleet, each with its n."""
    unseen = counted(row for row in study() if row["part"] == "held-out")
    found = summary(unseen)
    n_models = len({row["entry"] for row in unseen})
    asr = statistics.mean(row["asr_before"] for row in unseen)
    speed = {row["data"]: row for row in read_rows(RESULTS / "bench_engine.jsonl") if row["baseline"] == "scratch"}
    ratios = []
    for data in ("mnist", "fashion-mnist"):
        low, high = speed[data]["ratio_range"]
        ratios.append(
            f"{speed[data]['ratio']:.1f}x on {_NAMES[data]} ({low:.1f} to {high:.1f}, n = {speed[data]['turns']})"
        )
    models = read_rows(RESULTS / "fleet_models.jsonl")
    took = [row for row in models if row["attack"] != "clean" and (row["asr_before"] or 0) >= PLANTED]
    left = statistics.median(row["asr_after"] for row in took)
    accepted = sum(row["outcome"] == "accepted" for row in models)
    lines = [
        f"- **Fidelity {found['fidelity']:.3f}** on {n_models} small models with attacks on which no setting was "
        f"chosen, {100 * SHOWN_BUDGET:g} % clean data, {found['n']} runs: ASR {100 * asr:.1f} -> "
        f"{100 * found['asr_mean']:.1f} % (worst {100 * found['asr_worst']:.1f} %) for {found['acc_lost']:.1f} points "
        "of accuracy.",
        f"- **Time** of {speed['mnist']['epochs']} epochs of training from scratch, by the same engine, over that of a "
        f"run: {', '.join(ratios)}, side by side on one core.",
        f"- **Fleet**: {accepted:,} of {len(models):,} small models accepted; of the {len(took)} whose backdoor "
        f"worked, the median ASR left is {100 * left:.1f} %.",
    ]
    return "\n".join(wrapped(line) for line in lines)


def table() -> str:
    """Means over the attacks that worked, by data."""
    lines = ["| data, model | attacks | ACC lost | ASR before | ASR after (worst) |", "| --- | --- | --- | --- | --- |"]
    rows = [row for row in counted(study()) if row["seed"] == 0]
    for (data, architecture), part in sorted(
        grouped(rows, "data", "architecture").items(), key=lambda item: place(item[0])
    ):
        found = summary(part)
        asr = statistics.mean(row["asr_before"] for row in part)
        n_attacks = len({row["attack"] for row in part})
        lines.append(
            f"| {_NAMES[data]}, `{architecture}` | {n_attacks} | {found['acc_lost']:.2f} points | "
            f"{100 * asr:.1f} % | {100 * found['asr_mean']:.1f} % ({100 * found['asr_worst']:.1f} %) |"
        )
    return "\n".join(lines)


def study() -> list[Row]:
    """The rows of our method, by its defaults, with the usual clean data, on the nets of the first tables."""
    rows = read_rows(RESULTS / "study.jsonl")
    own = [row for row in rows if row["method"] == SEAM and row["budget"] == SHOWN_BUDGET and not is_unseen(row)]
    return [row for row in own if row["architecture"] in NETS]


def place(key: tuple[str, str]) -> tuple[int, str]:
    return list(_NAMES).index(key[0]), key[1]


PARTS = {"claims": claims, "table": table}


def wrapped(line: str, width: int = 116) -> str:
    """A list item in lines."""
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())
