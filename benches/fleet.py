"""A thousand models through ``seamfast fleet``: what the cure does to them, what blind evidence tells, what it costs.

    python benches/fleet_zoo.py --jobs benches/.cache/fleet-zoo/jobs.jsonl    # plants the models: 20 core-minutes
    python benches/fleet.py [--zoo ZOO] [--workers 2]                         # sanitizes all; resumes
    python benches/fleet.py --report                                          # tables and docs/fleet.svg from the rows
    python benches/fleet.py --scaling [--jobs-at-a-time 200]                  # one worker against two, side by side

    python benches/fleet.py --dispatch                                        # what a job costs beside its own work

The first writes one row a model to ``results/fleet_models.jsonl`` and one of the whole to ``results/fleet.jsonl``; so
does ``--scaling``, which wants two free cores. A model's cure sees its clean data and its held-out data. ACC and ASR
are those on the test part, which decides nothing; blind evidence is measured there too, without the trigger. The ASR
of a model without a backdoor is that of a trigger it never saw: the floor.

ROC: the evidence on models with a backdoor that took (ASR from 0.9) against that on models that were never attacked, of
the same data and architecture. Bounds are 95 % ones of a bootstrap over models (2,000 resamples, one seed).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benches.fleet_zoo import ZOO  # noqa: E402
from benches.rows import append_row, as_svg, commit, read_rows  # noqa: E402
from benches.zoo import PLANTED  # noqa: E402
from seamfast.fleet.store import rows as rows_of  # noqa: E402
from seamfast.report import write_atomically  # noqa: E402

MODELS = ROOT / "benches" / "results" / "fleet_models.jsonl"
WHOLE = ROOT / "benches" / "results" / "fleet.jsonl"
PICTURE = ROOT / "docs" / "fleet.svg"
KEPT = (
    *("id", "outcome", "n_holdout", "accuracy_before", "accuracy_after", "test_accuracy_before", "test_accuracy_after"),
    *("asr_before", "asr_after", "fidelity", "battery_before", "battery_after", "disagreement", "seconds", "attempts"),
)
SCORES = ("battery_before", "disagreement", "both")
_RESAMPLES = 2000
DISPATCHED = (100, 1000, 4000, 16000)
Row = dict[str, Any]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--out", type=Path, help="of the fleet (default: ZOO/fleet)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--dispatch", action="store_true")
    parser.add_argument("--jobs-at-a-time", type=int, default=200, help="of --scaling")
    arguments = parser.parse_args(given)
    out = arguments.out or arguments.zoo / "fleet"
    if arguments.report:
        print(report(read_rows(MODELS)))
        return 0
    if arguments.scaling:
        row = scaling(arguments.zoo, out.with_name("scaling"), arguments.jobs_at_a_time)
        append_row(WHOLE, row)
        print(json.dumps(row, indent=2))
        return 0
    if arguments.dispatch:
        for n_jobs in DISPATCHED:
            row = dispatch(out.with_name("dispatch"), n_jobs, arguments.workers)
            append_row(WHOLE, row)
            print(json.dumps(row))
        return 0
    row = sanitize_all(arguments.zoo / "jobs.jsonl", out, arguments.workers)
    append_row(WHOLE, row)
    write_atomically(MODELS, "".join(json.dumps(one) + "\n" for one in model_rows(out, arguments.zoo)).encode())
    print(json.dumps(row, indent=2))
    return 0


# ---- Runs. ----


def stamp() -> Row:
    """What a row of a whole run was measured with."""
    import torch

    cores = len(os.sched_getaffinity(0))
    return {"commit": commit(), "machine": platform.processor() or platform.machine(), "cores": cores} | {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def fleet(jobs: Path, out: Path, workers: int) -> Row:
    """Run ``seamfast fleet`` as a command; its document, its seconds, and the largest memory of the driver."""
    command = [
        sys.executable,
        "-m",
        "seamfast",
        "fleet",
        str(jobs),
        "--out",
        str(out),
        "--workers",
        str(workers),
        "--json",
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, largest_memory(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        document = json.loads(process.stdout.read())
    return {**document, "wall_s": time.perf_counter() - began, "driver_bytes": peak}


def largest_memory(pid: int) -> int:
    """Of a process alone, in bytes: what it waited for has its own."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def sanitize_all(jobs: Path, out: Path, workers: int) -> Row:
    done = fleet(jobs, out, workers)
    seconds = [row["seconds"] for row in rows_of(out) if row["seconds"] is not None]
    return {
        "what": "all",
        "n_jobs": done["n_jobs"],
        "n_done_before": done["n_done_before"],
        "workers": workers,
        "outcomes": done["outcomes"],
        "wall_s": round(done["wall_s"], 1),
        "job_s": round(sum(seconds), 1),
        "driver_bytes": done["driver_bytes"],
        **stamp(),
    }


def model_rows(out: Path, zoo: Path) -> list[Row]:
    """One row a model: what the fleet found, and what was planted."""
    found = []
    for row in rows_of(out):
        info = json.loads((zoo / "models" / row["id"] / "info.json").read_text())
        known = {name: info[name] for name in ("attack", "measured_attack", "architecture", "data", "seed")}
        values = {key: round(row[key], 5) if isinstance(row[key], float) else row[key] for key in KEPT}
        found.append({**known, **values})
    return found


def scaling(zoo: Path, out: Path, n_jobs: int) -> Row:
    """The same jobs, without blind evidence, with one worker and with two, in parts by turns: on the same machine."""
    lines = (zoo / "jobs.jsonl").read_text().splitlines()
    small = [line for line in map(json.loads, lines) if "-small_cnn-" in line["id"] or "-mlp-" in line["id"]]
    chosen = sorted(small, key=lambda job: random.Random(job["id"]).random())[:n_jobs]
    parts = [chosen[place::4] for place in range(4)]
    walls: dict[int, list[float]] = {1: [], 2: []}
    inside: dict[int, list[float]] = {1: [], 2: []}
    memory = []
    for place, part in enumerate(parts):
        for workers in (1, 2) if place % 2 == 0 else (2, 1):
            folder = out / f"{place}-{workers}"
            jobs = out / f"{place}.jsonl"
            out.mkdir(parents=True, exist_ok=True)
            jobs.write_text("".join(json.dumps({**absolute(job, zoo), "evidence": False}) + "\n" for job in part))
            done = fleet(jobs, folder, workers)
            assert done["n_done_before"] == 0, f"{folder} is there already"
            walls[workers].append(done["wall_s"])
            inside[workers].append(sum(row["seconds"] for row in rows_of(folder)))
            memory.append(done["driver_bytes"])
    return {
        "what": "scaling",
        "n_jobs": len(chosen),
        "wall_s": {str(n): [round(s, 2) for s in found] for n, found in walls.items()},
        "job_s": {str(n): [round(s, 2) for s in found] for n, found in inside.items()},
        "ratio": round(sum(walls[2]) / sum(walls[1]), 4),
        "ratios": [round(two / one, 4) for one, two in zip(walls[1], walls[2], strict=True)],
        "overhead": {str(n): round(n * sum(walls[n]) / sum(inside[n]) - 1, 4) for n in (1, 2)},
        "driver_bytes": max(memory),
        **stamp(),
    }


def dispatch(place: Path, n_jobs: int, workers: int) -> Row:
    """Jobs whose model cannot be used, which end at once: seconds and memory of all that is not a job's own work."""
    with tempfile.TemporaryDirectory(prefix="dispatch", dir=place.parent) as folder:
        for number in range(n_jobs):
            model = Path(folder, "models", f"m{number:06}")
            model.mkdir(parents=True)
            (model / "model.json").write_text("{}")
        jobs = Path(folder, "jobs.jsonl")
        lines = (json.dumps({"model": f"models/m{n:06}", "data": "digits", "id": f"m{n:06}"}) for n in range(n_jobs))
        jobs.write_text("".join(f"{line}\n" for line in lines))
        out = Path(folder, "out")
        first, again = (fleet(jobs, out, workers) for _ in range(2))
        inside = sum(row["seconds"] for row in rows_of(out))
    return {
        "what": "dispatch",
        "n_jobs": n_jobs,
        "workers": workers,
        "outcomes": first["outcomes"],
        "wall_s": round(first["wall_s"], 2),
        "job_s": round(inside, 2),
        "nothing_to_do_s": round(again["wall_s"], 2),
        "driver_bytes": first["driver_bytes"],
        **stamp(),
    }


def absolute(job: Row, zoo: Path) -> Row:
    """A job that can be written to another folder."""
    paths = ("model", "data", "holdout", "test", "triggers")
    return {key: str((zoo / value).resolve()) if key in paths else value for key, value in job.items()}


# ---- The report. ----


def report(rows: Sequence[Row]) -> str:
    """All tables, in Markdown; writes the figure."""
    write_atomically(PICTURE, as_svg(lambda figure: draw(figure, rows), (9.0, 3.6), "fleet"))
    parts = [cured(rows), by_attack(rows), worst(rows), evidence(rows)]
    return "\n\n".join(parts)


def is_clean(row: Row) -> bool:
    return bool(row["attack"] == "clean")


def took(row: Row) -> bool:
    return not is_clean(row) and row["asr_before"] is not None and row["asr_before"] >= PLANTED


def lost(row: Row) -> float | None:
    before, after = row["test_accuracy_before"], row["test_accuracy_after"]
    return None if before is None or after is None else before - after


def quantiles(values: Iterable[float | None], scale: float = 100.0) -> str:
    """Median, 5th and 95th percentile and largest, in percent."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "– | – | –"
    cuts = [statistics.median(known), known[int(0.95 * (len(known) - 1))], known[-1]]
    return " | ".join(f"{scale * value:.1f}" for value in cuts)


GROUPS: dict[str, Callable[[Row], bool]] = {
    "backdoored, took": took,
    "backdoored, weak": lambda row: not is_clean(row) and not took(row),
    "never backdoored": is_clean,
}


def cured(rows: Sequence[Row]) -> str:
    """What the cure did, by kind of model."""
    lines = [
        "| models | n | accepted | undecided | refused | ACC lost: median, 95th, largest | ASR after: median, 95th, "
        "largest | Fidelity: median, 5th, least |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, chosen in GROUPS.items():
        part = [row for row in rows if chosen(row)]
        n = {
            outcome: sum(row["outcome"] == outcome for row in part) for outcome in ("accepted", "undecided", "refused")
        }
        least = sorted((row["fidelity"] for row in part if row["fidelity"] is not None), reverse=True)
        fidelities = [statistics.median(least), least[int(0.95 * (len(least) - 1))], least[-1]] if least else []
        cells = [quantiles(map(lost, part)), quantiles(row["asr_after"] for row in part)]
        shown = [cell.replace(" | ", ", ") for cell in cells]
        lines.append(
            f"| {name} | {len(part)} | {n['accepted']} | {n['undecided']} | {n['refused']} | {shown[0]} | {shown[1]} | "
            f"{', '.join(f'{100 * value:.1f}' for value in fidelities)} |"
        )
    return "\n".join(lines)


def by_attack(rows: Sequence[Row]) -> str:
    """Attacks that took, and the floor of models that were never attacked."""
    lines = [
        "| data | architecture | attack | n | took | ASR before | ASR after: median, 95th, largest | above 20 % | "
        "ACC lost: median, 95th, largest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    keys = sorted({(row["data"], row["architecture"], row["attack"]) for row in rows})
    for key in keys:
        part = [row for row in rows if (row["data"], row["architecture"], row["attack"]) == key]
        strong = part if key[2] == "clean" else [row for row in part if took(row)]
        before = statistics.mean(row["asr_before"] for row in part)
        cells = [quantiles(row["asr_after"] for row in strong), quantiles(map(lost, strong))]
        high = sum(row["asr_after"] is not None and row["asr_after"] > 0.2 for row in strong)
        n_took = "–" if key[2] == "clean" else str(len(strong))
        lines.append(
            f"| {' | '.join(key)} | {len(part)} | {n_took} | {100 * before:.1f} | {cells[0].replace(' | ', ', ')} | "
            f"{high} | {cells[1].replace(' | ', ', ')} |"
        )
    return "\n".join(lines)


def worst(rows: Sequence[Row], most: int = 12) -> str:
    """The accepted results that kept most of a backdoor that took, above the floor of their data and architecture."""
    accepted = [row for row in rows if took(row) and row["outcome"] == "accepted" and row["asr_after"] is not None]
    lines = ["| accepted, with most ASR left | ASR before | ASR after | ACC lost |", "| --- | --- | --- | --- |"]
    for row in sorted(accepted, key=lambda row: -row["asr_after"])[:most]:
        values = (row["asr_before"], row["asr_after"], lost(row) or 0.0)
        lines.append(f"| {row['id']} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
    return "\n".join(lines)


def evidence(rows: Sequence[Row]) -> str:
    """AUC of each figure of blind evidence, and its rate of hits at a false alarm in twenty."""
    lines = [
        "| data, architecture | backdoored / clean | evidence | AUC | found at 5 % false alarms |",
        "| --- | --- | --- | --- | --- |",
    ]
    keys = sorted({(row["data"], row["architecture"]) for row in rows})
    for key in keys:
        part = [row for row in rows if (row["data"], row["architecture"]) == key]
        bad, good = [row for row in part if took(row)], [row for row in part if is_clean(row)]
        if len(bad) < 5 or len(good) < 5:
            continue
        for name in SCORES:
            first, second = scores(bad, name), scores(good, name)
            value, low, high = bounded(auc, first, second)
            found, least, most = bounded(found_at, first, second)
            lines.append(
                f"| {', '.join(key)} | {len(bad)} / {len(good)} | {name.replace('_', ' ')} | {value:.3f} [{low:.3f}, "
                f"{high:.3f}] | {found:.1%} [{least:.1%}, {most:.1%}] |"
            )
    return "\n".join(lines)


def scores(rows: Iterable[Row], name: str) -> list[float]:
    """The figure of each row; ``"both"``: the sum of the two."""
    names = SCORES[:2] if name == "both" else (name,)
    return [sum(row[one] or 0.0 for one in names) for row in rows]


def auc(bad: Sequence[float], good: Sequence[float]) -> float:
    """``P(bad > good) + P(bad == good) / 2``."""
    ordered = sorted(good)
    wins = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in bad)
    return wins / (2 * len(bad) * len(good))


def found_at(bad: Sequence[float], good: Sequence[float], alarms: float = 0.05) -> float:
    """Share of ``bad`` above the level that ``alarms`` of ``good`` exceed."""
    level = sorted(good)[min(len(good) - 1, int((1 - alarms) * len(good)))]
    return sum(value > level for value in bad) / len(bad)


def bounded(
    figure: Callable[[Sequence[float], Sequence[float]], float], bad: Sequence[float], good: Sequence[float]
) -> tuple[float, float, float]:
    """A figure, and the 95 % bounds of a bootstrap over the models of each side."""
    draw_from = random.Random(0)
    drawn = sorted(
        figure(draw_from.choices(bad, k=len(bad)), draw_from.choices(good, k=len(good))) for _ in range(_RESAMPLES)
    )
    return figure(bad, good), drawn[int(0.025 * _RESAMPLES)], drawn[int(0.975 * _RESAMPLES) - 1]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """ASR before and after of what took; ROC of the blind evidence by kind of model."""
    from seamfast.plot import _BLUE, _GREY, _VERMILION

    left, right = figure.subplots(1, 2)
    strong = [row for row in rows if took(row)]
    edges = [place / 20 for place in range(21)]
    for name, color, label in (("asr_before", _VERMILION, "as received"), ("asr_after", _BLUE, "sanitized")):
        values = [row[name] for row in strong if row[name] is not None]
        left.hist(values, bins=edges, weights=[1 / len(values)] * len(values), color=color, alpha=0.8, label=label)
    left.set(xlabel="ASR", ylabel="share of models", title=f"{len(strong)} backdoored models", xlim=(0, 1))
    left.legend(frameon=False)
    keys = sorted({(row["data"], row["architecture"]) for row in rows})
    right.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    for place, key in enumerate(keys):
        part = [row for row in rows if (row["data"], row["architecture"]) == key]
        bad, good = scores(filter(took, part), "both"), scores(filter(is_clean, part), "both")
        if len(bad) < 5 or len(good) < 5:
            continue
        levels = sorted({*bad, *good}, reverse=True)
        x = [0.0, *(sum(v >= level for v in good) / len(good) for level in levels)]
        y = [0.0, *(sum(v >= level for v in bad) / len(bad) for level in levels)]
        right.plot(x, y, linewidth=1.5, label=", ".join(key), color=f"C{place}")
    right.set(xlabel="false alarms", ylabel="found", title="battery and disagreement, summed", xlim=(0, 1), ylim=(0, 1))
    right.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
