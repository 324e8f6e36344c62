"""What does a cure leave behind? The weakness of models to other attacks, before and after each method; resumable.

    python benches/sequela.py [--minutes 10] [--shard 1/2]
    python benches/sequela.py [--data mnist] [--attacks badnets] [--methods fine_tune] [--defence-seeds 0 1]
    python benches/sequela.py --report

A model of the zoo is measured as received, after each method, and beside its twin that was never backdoored:

- membership inference, by loss and modified entropy: members are the *training* data of the model, less the clean
  budget, and the *clean* budget, which is part of that data and which the cure trains on again; outsiders are test
  data; at most 2,000 of each. Samples that the attacker had stamped (5 %) are among the training data as they were
  before; the model from scratch has seen the clean budget only.
- re-injection (``seamfast.audits.reinjection``), the attacker with 2 % of the training set: a drawn patch, whose target
  is not that of the backdoor;
- re-activation (``seamfast.audits.reactivation``) of the known triggers, with the same 2 %;
- calibration, accuracy under PGD.

All are audits of ``seamfast.audits`` by their defaults, one seed, the same samples and draws for every method. Nothing
is chosen by what they find. ``MODELS`` by default: twelve attacks and more on three data sets.

A row of ``--out`` is one model, method and seed, at a clean budget of 5 %. What has a row is not run again, so a killed
run goes on where it was; two processes may share a file (``--shard``). Delete the rows of a method that changed. Models
that are not planted are left out (``zoo.py`` plants them). One thread.

``--report`` measures nothing: it writes ``sequela-study.md`` from the rows to ``--docs``.
"""

from __future__ import annotations

import argparse
import math
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

from benches import sequela_report, study, zoo  # noqa: E402
from benches.rows import Row, commit, read_rows  # noqa: E402
from benches.sequela_report import RECEIVED, TWIN  # noqa: E402
from benches.study import Job, Treated, latest, rates  # noqa: E402
from benches.study_report import SEAM  # noqa: E402
from benches.zoo import Entry, clean_part, read  # noqa: E402
from seamfast import CleanSet  # noqa: E402
from seamfast.attacks import Backdoor  # noqa: E402
from seamfast.audits import adversarial_accuracy, calibration, membership, reactivation, reinjection  # noqa: E402
from seamfast.errors import ConfigError, InputError, ModelError  # noqa: E402
from seamfast.record import machine  # noqa: E402

OUT = ROOT / "benches" / "results" / "sequela.jsonl"
BUDGET, ATTACKERS = 0.05, 0.02
"""Clean shares of the training set: of the defender, and of the attacker who comes afterwards."""
MOST = 2000
"""Members, and outsiders."""
MODELS = {
    ("mnist", "small_cnn"): ("badnets", "blended", "tact", "multi_trigger", "low_frequency", "sig"),
    ("fashion-mnist", "small_cnn"): ("badnets", "blended", "low_frequency", "random_patch"),
    ("gtsrb", "small_vgg"): ("badnets", "blended", "wanet", "low_frequency"),
}
"""Attacks by data set and architecture, at the zoo's usual poison rate and seed 0."""
METHODS: dict[str, study.Method] = {
    RECEIVED: study.METHODS["no_defence"],
    **{name: study.METHODS[name] for name in (SEAM, "super_fine_tune", "fine_tune", "ft_sam", "scratch")},
}


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo.add_choices(parser)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, TWIN], default=[*METHODS, TWIN])
    parser.add_argument("--defence-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing that is expected to end later")
    parser.add_argument("--shard", default="1/1", help="i/n: of the models, every n-th from the i-th on")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="measure nothing; the tables of the rows")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    arguments = parser.parse_args(given)
    rows = latest(read_rows(arguments.out))
    if arguments.report:
        sequela_report.write(arguments.docs, list(rows.values()))
        return 0
    place, n_shards = (int(number) for number in arguments.shard.split("/"))
    if not 1 <= place <= n_shards:
        parser.error(f"--shard is {arguments.shard}; expected i/n with i from 1 to n")
    torch.set_num_threads(1)
    todo = [job for of_model in jobs(arguments)[place - 1 :: n_shards] for job in of_model if job.key not in rows]
    study.run(todo, list(rows.values()), arguments, in_turn(arguments))
    return 0


def jobs(arguments: argparse.Namespace) -> list[list[Job]]:
    """All that was asked for and can be done: a list for each model."""
    entries = [entry for entry in zoo.chosen(arguments) if entry.attack != "clean"]
    if arguments.data is None and arguments.architectures is None and arguments.attacks is None:
        entries = [e for e in entries if e.attack in MODELS.get((e.data, e.architecture), ())]
        entries = [e for e in entries if e.rate == zoo.RATE and e.seed == 0]
    ready = [e for e in entries if all(zoo.is_planted(one, arguments.zoo) for one in (e, e.clean_twin))]
    if len(ready) < len(entries):
        print(f"{len(entries) - len(ready)} models are not planted and left out", file=sys.stderr)
    return [
        [Job(entry, method, BUDGET, seed) for seed in arguments.defence_seeds for method in arguments.methods]
        for entry in ready
    ]


@dataclass(frozen=True)
class Case:
    """What all methods get of one model and seed, and what they are measured with."""

    model: nn.Module
    twin: nn.Module
    backdoor: Backdoor
    clean: CleanSet
    attackers: CleanSet
    train_set: CleanSet
    test_set: CleanSet
    before: Row


def in_turn(arguments: argparse.Namespace) -> Callable[[Job], Row | None]:
    """The row of a job; a case is kept for the jobs that follow on it."""
    case: Case | None = None
    case_of: tuple[Entry, int] | None = None

    def measured(job: Job) -> Row | None:
        nonlocal case, case_of
        if case is None or case_of != (job.entry, job.seed):
            case, case_of = prepare(job, arguments), (job.entry, job.seed)
        return row_of(job, case)

    return measured


def prepare(job: Job, arguments: argparse.Namespace) -> Case:
    """The case of a job."""
    entry = job.entry
    train_set, test_set = (read(entry.data, arguments.root, split) for split in ("train", "test"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, backdoor = zoo.load(entry, arguments.zoo)
    twin, _ = zoo.load(entry.clean_twin, arguments.zoo)
    assert backdoor is not None
    model.to(device)
    return Case(
        model=model,
        twin=twin.to(device),
        backdoor=backdoor,
        clean=clean_part(entry.data, train_set, BUDGET, job.seed),
        attackers=clean_part(entry.data, train_set, ATTACKERS, job.seed + 1),
        train_set=train_set,
        test_set=test_set,
        before={f"{name}_before": value for name, value in rates(model, backdoor, test_set).items()},
    )


def row_of(job: Job, case: Case) -> Row:
    """Treat, audit, and say all of it."""
    begin = time.perf_counter()
    entry = job.entry
    row: Row = {"entry": entry.name, "method": job.method, "budget": job.budget, "seed": job.seed}
    row |= {name: getattr(entry, name) for name in ("data", "architecture", "attack", "rate", "part")}
    row |= {"model_seed": entry.seed, "n_clean": len(case.clean), "n_test": len(case.test_set)} | case.before
    try:
        treated = treat(job, case)
        row |= {f"{name}_after": value for name, value in rates(treated.model, case.backdoor, case.test_set).items()}
        row |= {"seconds": round(treated.seconds, 3), "accepted": treated.accepted}
        row |= audits(treated.model, case, job.seed)
    except ConfigError:
        raise
    except (FloatingPointError, InputError, ModelError) as error:
        row["failed"] = str(error)
    return row | {
        "row_seconds": round(time.perf_counter() - begin, 3),
        "machine": machine(),
        "commit": commit(),
    }


def treat(job: Job, case: Case) -> Treated:
    """The model that the row is about."""
    if job.method == TWIN:
        return Treated(case.twin, 0, 0.0)
    augment = (job.entry.training.crop_pad, job.entry.training.flip)
    return METHODS[job.method](case.model, case.clean, job.entry.data, augment, job.seed)


# ---- The audits. ----


def audits(model: nn.Module, case: Case, seed: int) -> Row:
    """The figures of all audits; what they are made of, bins and curves, is left out."""
    options: dict[str, Any] = {"seed": seed, "progress": False}
    injected = reinjection(model, case.attackers, case.test_set, **options)
    activated = reactivation(
        model, case.attackers, case.backdoor.triggers, case.test_set, source=case.train_set, **options
    )
    calibrated = calibration(model, case.test_set, **options).to_dict()
    return {
        "membership": {
            name: membership(model, members, outsiders(case, seed), **options).to_dict()
            for name, members in member_sets(case, seed).items()
        },
        "reinjection": {name: value for name, value in injected.to_dict().items() if name != "curves"}
        | {"steps": {str(count): steps for count, steps in injected.steps.items()}},
        "reactivation": activated.to_dict(),
        "calibration": {name: calibrated[name] for name in ("ece", "brier", "nll")},
        "adversarial": adversarial_accuracy(model, case.test_set, **options).to_dict(),
    }


def member_sets(case: Case, seed: int) -> dict[str, CleanSet]:
    """At most ``MOST`` of the clean budget, and of the rest of the training data."""
    budget = set(case.clean.identities())
    order = torch.randperm(len(case.train_set), generator=torch.Generator().manual_seed(seed))
    some = order[: MOST + 2 * len(case.clean)]
    identities = case.train_set.subset(some).identities()
    rest = torch.tensor([identity not in budget for identity in identities])
    return {"training": case.train_set.subset(some[rest][:MOST]), "clean": drawn(case.clean, seed)}


def outsiders(case: Case, seed: int) -> CleanSet:
    """At most ``MOST`` of the test set."""
    return drawn(case.test_set, seed)


def drawn(data: CleanSet, seed: int) -> CleanSet:
    """At most ``MOST`` samples."""
    return data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:MOST])


if __name__ == "__main__":
    sys.exit(main())
