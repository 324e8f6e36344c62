"""Does the backdoor go, and does the task stay? Methods on the models of the zoo, by clean budget; resumable.

    python benches/study.py --core [--minutes 10] [--shard 1/2]
    python benches/study.py [--data mnist] [--attacks tact] [--methods ft_sam] [--budgets 0.05 20] [--reactivate]
    python benches/study.py --report

Each method gets a model of the zoo as received, a clean budget and a seed, and nothing else. What is triggered is
stamped here, on the whole test set, and only to measure: before and after. Nothing is chosen by it. A budget below 1
is a share of the whole original training set, from 1 on it is images a class; it is drawn by class, by the seed.

A row of ``--out`` is one model, method, budget and seed. What has a row is not run again, so a killed run goes on where
it was; half a row, which a kill may leave, is passed over. Two processes may share a file; ``--shard 1/2`` and
``--shard 2/2`` divide the models between them. A row knows its commit, but a method that changes does not take its rows
with it: delete them. Models that are not planted are left out (``zoo.py`` plants them), and so are budgets of fewer
than two images a class. One thread; seconds are those of the method, on a machine that may have other load.

Methods: ``seam (balanced)``, the defaults of ``sanitize``, and its other presets; ``ABLATIONS``, the defaults with some
settings changed, more of which ``--ablation`` takes as JSON; and those of ``benches/defences``. ``--core`` is about
two hours of two cores: twelve attacks and more on three data sets, 5 % clean data, one seed.

``--reactivate`` does to the cured model what its attacker might: 5 epochs on 2 % clean data, among which 5 triggered
images have the attacker's label, SGD 0.01: ``seamfast.audits.reactivation``. The row then has the ASR of that, beside
that of the never-backdoored model of the zoo, before and after the same. Source: Min et al., "Uncovering, Explaining,
and Mitigating the Superficial Safety of Backdoor Defense", NeurIPS 2024, arXiv:2410.09838.

``--unseen`` draws the clean data from one half of the test set and measures on the other. Beside the rows of clean data
out of the training set they show how far acceptance can be trusted, and count in no other table.

``--report`` measures nothing: it writes ``study.md`` and pictures from the rows to ``--docs``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches import study_report, zoo  # noqa: E402
from benches.defences import DEFENCES  # noqa: E402
from benches.rows import Row, append_row, commit, read_rows  # noqa: E402
from benches.study_report import SEAM, Key, key  # noqa: E402
from benches.zoo import Entry, clean_part, measure, read  # noqa: E402
from seamfast import CleanSet, SeamConfig  # noqa: E402
from seamfast.attacks import Backdoor  # noqa: E402
from seamfast.audits import reactivation  # noqa: E402
from seamfast.data import split_by_class  # noqa: E402
from seamfast.errors import ConfigError, InputError  # noqa: E402
from seamfast.metrics import fidelity, fidelity_nist  # noqa: E402
from seamfast.record import machine  # noqa: E402

OUT = ROOT / "benches" / "results" / "study.jsonl"
MAIN = (SEAM, *(name for name in DEFENCES if not name.endswith("_gtsrb")))
CORE = {
    ("mnist", "small_cnn"): MAIN,
    ("gtsrb", "small_vgg"): MAIN,
    ("cifar10", "narrow_resnet18"): (SEAM, "no_defence", "fine_tune", "ft_sam"),
}
"""Models and methods of ``--core``, at the zoo's usual poison rate and seed 0."""
ABLATIONS: tuple[dict[str, Any], ...] = (
    {"recover_from_forgotten": False},
    {"radius": 0.3},
    {"distillation": 0.0},
    {"margin": 0.0},
    {"disturbance": 0.0},
    {"occlusions": 0},
    {"mixing": 0.0},
    {"waves": 0.0},
    {"plain_end": 0.0},
    {"allowance": 0.0},
    {"invariances": False},
    {"dropout": True},
    {"recover_easy_steps": 300},
    {"prune": False},
)
"""Changes to ``SeamConfig``, one method each. In order: no forgetting, no radius, no teacher, the teacher always (and
so no disturbance in recovery), no disturbance, no patterns, no mixing, no waves, no plain end, no allowance, no crops
and flips, dropout, no short runs, no pruning."""


@dataclass(frozen=True)
class Treated:
    """What a method made of a model; ``accepted`` is ``None`` for methods that do not judge."""

    model: nn.Module
    n_steps: int
    seconds: float
    accepted: bool | None = None
    n_attempts: int = 1


Method = Callable[[nn.Module, CleanSet, str, tuple[int, bool], int], Treated]
"""``(model, clean, data, augment, seed)``: all that a defender knows; of the data set its name, and the crop and flip
that go with it."""


def seam(**options: Any) -> Method:
    """``seamfast.sanitize`` with these options."""

    def treat(model: nn.Module, clean: CleanSet, data: str, augment: tuple[int, bool], seed: int) -> Treated:
        begin = time.perf_counter()
        result = seamfast.sanitize(model, clean, seed=seed, progress=False, **options)
        seconds = time.perf_counter() - begin
        run = result.report["run"]
        return Treated(result.model, sum(run["steps"].values()), seconds, result.accepted, run["n_attempts"])

    return treat


def published(name: str) -> Method:
    """A defence of ``benches/defences``, by the settings for the data set where it has some."""

    def treat(model: nn.Module, clean: CleanSet, data: str, augment: tuple[int, bool], seed: int) -> Treated:
        defend = DEFENCES.get(f"{name}_{data}", DEFENCES[name])
        done = defend(model, clean, seed=seed, augment=augment)
        return Treated(done.model, done.n_steps, done.seconds)

    return treat


def ablation(changes: dict[str, Any]) -> tuple[str, Method]:
    """The method and its name: ``seam, occlusions=0``."""
    name = ", ".join(["seam", *(f"{field}={value}" for field, value in changes.items())])
    return name, seam(config=SeamConfig.from_dict(changes))


METHODS: dict[str, Method] = {
    SEAM: seam(),
    **{f"seam ({preset})": seam(preset=preset) for preset in ("fast", "thorough")},
    **{name: published(name) for name in MAIN[1:]},
    **dict(map(ablation, ABLATIONS)),
}


@dataclass(frozen=True)
class Job:
    """One row to be."""

    entry: Entry
    method: str
    budget: float
    seed: int
    unseen: bool = False

    @property
    def key(self) -> Key:
        return self.entry.name, self.method, self.budget, self.seed, self.unseen


def latest(rows: list[Row]) -> dict[Key, Row]:
    """The last row of each job."""
    return {key(row): row for row in rows}


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo.add_choices(parser)
    parser.add_argument("--core", action="store_true", help="the models and methods of CORE")
    parser.add_argument("--methods", nargs="+", default=[], help=f"of {', '.join(METHODS)}; default: {', '.join(MAIN)}")
    parser.add_argument(
        "--ablation", action="append", default=[], type=json.loads, metavar="JSON", help="a method more"
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.05], help="e.g. 0.1 0.05 0.01 0.001 20")
    parser.add_argument("--defence-seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--unseen",
        action="store_true",
        help="draw the clean data from one half of the test set, which no model saw, and measure on the other",
    )
    parser.add_argument("--reactivate", action="store_true")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing that is expected to end later")
    parser.add_argument("--shard", default="1/1", help="i/n: of the models, every n-th from the i-th on")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="measure nothing; tables and pictures of the rows")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    arguments = parser.parse_args(given)
    rows = latest(read_rows(arguments.out))
    if arguments.report:
        study_report.write(arguments.docs, list(rows.values()))
        return 0

    more = dict(map(ablation, arguments.ablation))
    methods = METHODS | more
    arguments.methods = [*arguments.methods, *more]
    unknown = sorted(set(arguments.methods) - set(methods))
    if unknown:
        parser.error(f"there is no method {', '.join(unknown)}; expected some of {', '.join(methods)}")
    place, n_shards = (int(number) for number in arguments.shard.split("/"))
    if not 1 <= place <= n_shards:
        parser.error(f"--shard is {arguments.shard}; expected i/n with i from 1 to n")
    torch.set_num_threads(1)
    done = {known for known, row in rows.items() if not arguments.reactivate or "asr_reactivated" in row}
    todo = [job for job in jobs(arguments, place, n_shards) if job.key not in done]
    run(todo, list(rows.values()), arguments, in_turn(methods, arguments))
    return 0


def jobs(arguments: argparse.Namespace, place: int, n_shards: int) -> list[Job]:
    """All that was asked for, falls to this shard and can be done, one budget and seed after the other."""
    entries = zoo.chosen(arguments)
    if arguments.core:
        entries = [e for e in entries if (e.data, e.architecture) in CORE and e.rate == zoo.RATE and e.seed == 0]
    entries = entries[place - 1 :: n_shards]

    def is_ready(entry: Entry) -> bool:
        needed = {entry, entry.clean_twin} if arguments.reactivate else {entry}
        return all(zoo.is_planted(e, arguments.zoo) for e in needed)

    missing = [entry.name for entry in entries if not is_ready(entry)]
    if missing:
        named = ", ".join([*missing[:5], *(["..."] if missing[5:] else [])])
        print(f"{len(missing)} models are not planted and left out: {named}", file=sys.stderr)
    return [
        Job(entry, method, budget, seed, arguments.unseen)
        for budget, seed in itertools.product(arguments.budgets, arguments.defence_seeds)
        for entry in filter(is_ready, entries)
        for method in arguments.methods or (CORE[entry.data, entry.architecture] if arguments.core else MAIN)
    ]


def run(todo: list[Job], rows: list[Row], arguments: argparse.Namespace, measured: Callable[[Job], Row | None]) -> None:
    """Do the jobs in order; each row that ``measured`` gives is written at once, and added to ``rows``."""
    start = time.perf_counter()
    for number, job in enumerate(todo):
        elapsed = time.perf_counter() - start
        if number and elapsed + expected_seconds([job], rows) > 60 * arguments.minutes:
            print(f"{len(todo) - number} rows are left for another time", file=sys.stderr)
            return
        row = measured(job)
        if row is None:
            continue
        append_row(arguments.out, row)
        rows.append(row)
        left = expected_seconds(todo[number + 1 :], rows) / 60
        print(f"[{number + 1}/{len(todo)}] {shown(row)}; about {left:.0f} min left", file=sys.stderr, flush=True)


def in_turn(methods: dict[str, Method], arguments: argparse.Namespace) -> Callable[[Job], Row | None]:
    """The row of a job, or ``None`` where there is too little data; a case is kept for the jobs that follow on it."""
    case: Case | None = None
    case_of: tuple[Entry, float, int] | None = None

    def measured(job: Job) -> Row | None:
        nonlocal case, case_of
        if case_of != (job.entry, job.budget, job.seed):
            case_of = (job.entry, job.budget, job.seed)
            case = prepare(job, arguments)
        return None if case is None else row_of(job, case, methods[job.method])

    return measured


def expected_seconds(todo: list[Job], rows: list[Row]) -> float:
    """Of the jobs: the medians of such rows, or the mean of all where there are none."""
    known: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        known.setdefault((row["data"], row["architecture"], row["method"]), []).append(row["row_seconds"])
    medians = {kind: statistics.median(values) for kind, values in known.items()}
    other = statistics.mean(row["row_seconds"] for row in rows) if rows else 0.0
    return sum(medians.get((job.entry.data, job.entry.architecture, job.method), other) for job in todo)


def shown(row: Row) -> str:
    """A row as a line of progress."""
    if "failed" in row:
        return f"{row['entry']}: {row['method']}: {row['failed']}"
    pairs = [
        f"{name.upper()} {row[f'{name}_before']:.2%} -> {row[f'{name}_after']:.2%}"
        for name in ("acc", "asr")
        if row[f"{name}_before"] is not None
    ]
    return f"{row['entry']}: {row['method']}: {', '.join(pairs)}, {row['seconds']:.1f} s"


# ---- One row. ----


@dataclass(frozen=True)
class Case:
    """What all methods get of one model, budget and seed, and what they are measured with."""

    model: nn.Module
    clean: CleanSet
    backdoor: Backdoor | None
    train_set: CleanSet
    test_set: CleanSet
    before: Row
    reactivates: bool
    of_clean_twin: Row


def prepare(job: Job, arguments: argparse.Namespace) -> Case | None:
    """The case of a job; ``None``, and a word about it, where there is too little data for the budget."""
    entry = job.entry
    train_set, test_set = (read(entry.data, arguments.root, split) for split in ("train", "test"))
    drawn_from = train_set
    if arguments.unseen:
        halves = split_by_class(test_set.labels, holdout_fraction=0.5, forget_fraction=1.0, seed=0)
        drawn_from, test_set = test_set.subset(halves.recovery), test_set.subset(halves.holdout)
    try:
        clean = clean_part(entry.data, drawn_from, job.budget, job.seed)
        if int(clean.labels.bincount().min()) < 2:  # one to train on, one to hold out
            raise InputError(f"a budget of {job.budget:g} of {entry.data} is fewer than two images of some class")
    except InputError as error:
        print(f"{entry.name}: left out, {error}", file=sys.stderr)
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, backdoor = zoo.load(entry, arguments.zoo)
    model.to(device)
    of_clean_twin: Row = {}
    if arguments.reactivate and backdoor is not None:
        twin, _ = zoo.load(entry.clean_twin, arguments.zoo)
        twin.to(device)
        of_clean_twin = {
            "asr_clean_twin": rates(twin, backdoor, test_set)["asr"],
            "asr_clean_twin_reactivated": reactivated(twin, backdoor, entry.data, train_set, test_set, job.seed),
        }
    before = {f"{name}_before": value for name, value in rates(model, backdoor, test_set).items()}
    return Case(model, clean, backdoor, train_set, test_set, before, arguments.reactivate, of_clean_twin)


def rates(model: nn.Module, backdoor: Backdoor | None, test_set: CleanSet) -> dict[str, float | None]:
    """ACC, ASR and RA; of several triggers the largest ASR and the least RA."""
    found = measure(model, backdoor, test_set)
    ra = [t.robust_accuracy.value for t in found.triggers if t.robust_accuracy.value is not None]
    return {
        "acc": found.clean_accuracy.value,
        "asr": found.worst_attack_success_rate,
        "ra": min(ra, default=None),
    }


def row_of(job: Job, case: Case, method: Method) -> Row:
    """Treat, measure, and say all of it."""
    entry = job.entry
    row: Row = {"entry": entry.name, "method": job.method, "budget": job.budget, "seed": job.seed}
    row |= {"unseen": True} if job.unseen else {}
    row |= {name: getattr(entry, name) for name in ("data", "architecture", "attack", "rate", "part")}
    row |= {"model_seed": entry.seed, "n_clean": len(case.clean), "n_test": len(case.test_set)} | case.before
    if case.reactivates:
        row |= {"asr_reactivated": None} | case.of_clean_twin
    augment = (entry.training.crop_pad, entry.training.flip)

    def reactivated_asr(treated: Treated) -> Row:
        if not case.reactivates or case.backdoor is None:
            return {}
        sets = entry.data, case.train_set, case.test_set
        return {"asr_reactivated": reactivated(treated.model, case.backdoor, *sets, job.seed)}

    return row | outcome(
        lambda: method(case.model, case.clean, entry.data, augment, job.seed),
        lambda model: rates(model, case.backdoor, case.test_set),
        case.before,
        reactivated_asr,
    )


def outcome(
    treat: Callable[[], Treated],
    measure: Callable[[nn.Module], dict[str, float | None]],
    before: Row,
    more: Callable[[Treated], Row] = lambda treated: {},
) -> Row:
    """Columns of what a method makes of a model, or why it failed.

    Args:
        treat: the method.
        measure: rates of a model, by name.
        before: has those of the model as received.
        more: further columns.
    """
    begin = time.perf_counter()
    row: Row = {}
    try:
        treated = treat()
    except ConfigError:
        raise
    except (FloatingPointError, InputError) as error:
        row["failed"] = str(error)
    else:
        after = measure(treated.model)
        row |= {f"{name}_after": value for name, value in after.items()} | fidelities(before, after)
        row |= {"steps": treated.n_steps, "seconds": round(treated.seconds, 3)}
        row |= {"accepted": treated.accepted, "n_attempts": treated.n_attempts}
        row |= more(treated)
    return row | {"row_seconds": round(time.perf_counter() - begin, 3), "machine": machine(), "commit": commit()}


def fidelities(before: Row, after: dict[str, float | None]) -> Row:
    """Both, where they are defined; see ``seamfast.metrics``."""
    accuracies = {"acc_before": before["acc_before"], "acc_after": after["acc"]}
    return {
        "fidelity": None if after["asr"] is None else fidelity(**accuracies, asr_after=after["asr"]),
        "fidelity_nist": fidelity_nist(**accuracies, asr_before=before["asr_before"], asr_after=after["asr"]),
    }


def reactivated(
    model: nn.Module, backdoor: Backdoor, name: str, train_set: CleanSet, test_set: CleanSet, seed: int
) -> float | None:
    """ASR after the re-activation of ``seamfast.audits`` on 2 % clean data, with 5 triggered images of all others."""
    few = clean_part(name, train_set, 0.02, seed + 1)  # other images than the defence had, but for chance
    found = reactivation(
        model, few, backdoor.triggers, test_set, source=train_set, seed=seed, precision="auto", progress=False
    )
    return found.asr_after.value


if __name__ == "__main__":
    sys.exit(main())
