"""An encoder with a backdoor, put to a downstream task: what does each defense leave? And a table a paradigm.

    python benches/paradigms.py [--downstream gtsrb] [--methods fine_tune nad] [--budgets 0.05 20] [--defence-seeds 0 1]
    python benches/paradigms.py --report

Models are the encoders of ``encoder_zoo.py``. The user has an encoder as received and a budget of labeled images
of a downstream task, drawn by class: below 1 a share of its original training set (5 % is 1,960 images of GTSRB,
3,000 of Fashion-MNIST, 2,500 of CIFAR-10, 346 texts of SST-2), from 1 on samples a class. A linear head is fitted on
the encoder's embeddings of these images (``seamfast.models.LinearProbe``), the encoder as it is: that is the line
without a defense, and where every method that trains the whole begins. What is triggered is stamped here, on test
samples, and only to measure. Nothing is chosen by it. The target is the class of the task that the zoo names: that of
the attacker's references, or on other tasks the class that they get. A word of ``output_vectors`` leads to the class
that the head gives the attacker's vector: with a head of other samples, it may be another one. The floor (ASR-B) is
the ASR of the same trigger on the encoder without a backdoor, under a head of the same samples, and CA the accuracy of
that.

A row of ``--out`` is one encoder, task, method, budget and seed. What has a row is not run again, so a killed run goes
on where it was, and two processes may share a file (``--shard``). Delete the rows of a method that changed. Encoders
that are not planted are left out. One thread; seconds are those of the method, on a machine that may have other load.

Methods, all of them with the same head to begin with:

``no_defence``: the head on the encoder as received.
``fine_tune``: conventional fine-tuning of encoder and head at a constant rate, the defense of Sha et al. for encoders
    (``SuperFineTuneConfig.encoder``), at the rate of their guide, 3e-4.
``fine_tune (pretraining rate)``: the same at the peak rate of the encoder's own pretraining, as the paper has it.
``super_fine_tune``: cycles of the rate (``SuperFineTuneConfig``), which the paper does not study on encoders.
``seam (balanced)``: ``seamfast.sanitize`` of encoder and head.
``sanitize_encoder``: ``seamfast.sanitize_encoder`` with unlabeled samples of the kind that the encoder was pretrained
    on, ``UNLABELED`` of them; a head is fitted on the cured encoder, which stays as it is. For encoders of texts, whose
    pretraining is not here, they are training texts of the task.
``sanitize_encoder (task)``: the same, with the samples of the budget, without their labels.
``nad``, ``fst``, ``scratch``: those of ``benches/defences``, of encoder and head; of images only, as is the pretraining
    rate.

``--report`` measures nothing: it writes ``paradigms.md`` to ``--docs``, from these rows for the encoder-based paradigm,
from those of ``study.py`` for the standalone one, and from those of ``transfer_study.py`` for the transfer-based one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches import encoder_zoo, paradigms_report, study  # noqa: E402
from benches.encoder_zoo import EncoderEntry  # noqa: E402
from benches.rows import Row, read_rows  # noqa: E402
from benches.study import Treated, latest  # noqa: E402
from benches.study_report import SEAM, Key  # noqa: E402
from benches.zoo import clean_part  # noqa: E402
from seamfast import CleanSet, SuperFineTuneConfig  # noqa: E402
from seamfast.attacks import Backdoor  # noqa: E402
from seamfast.attacks.encoder import encoder_rates  # noqa: E402
from seamfast.errors import InputError  # noqa: E402
from seamfast.models import LinearProbe, with_head  # noqa: E402
from seamfast.triggers import AllToOne, Trigger  # noqa: E402

RESULTS = ROOT / "benches" / "results"
OUT = RESULTS / "paradigms.jsonl"
DOWNSTREAM = tuple(name for names in encoder_zoo.DOWNSTREAM.values() for name in names)
UNLABELED = 2500
"""Samples of the kind of the encoder's pretraining that ``sanitize_encoder`` gets: 5 % of the 50,000 of CIFAR-10."""
OF_IMAGES = ("fine_tune (pretraining rate)", "nad", "fst", "scratch")
"""Methods that encoders of texts do not have."""
AUGMENT: dict[str, tuple[int, bool]] = {"cifar10": (4, True)}
"""``(crop_pad, flip)`` of a task; ``(0, False)`` of others."""


@dataclass(frozen=True)
class Task:
    """An encoder of the zoo, put to a downstream task."""

    encoder: EncoderEntry
    data: str

    @property
    def name(self) -> str:
        return f"{self.encoder.name}-on-{self.data}"

    @property
    def architecture(self) -> str:
        return self.encoder.encoder

    @property
    def augment(self) -> tuple[int, bool]:
        return AUGMENT.get(self.data, (0, False))


@dataclass(frozen=True)
class TaskJob:
    """One row to be."""

    entry: Task
    method: str
    budget: float
    seed: int

    @property
    def key(self) -> Key:
        return self.entry.name, self.method, self.budget, self.seed, False


@dataclass(frozen=True)
class Received:
    """What the zoo has for a task.

    Attributes:
        encoder: with the backdoor.
        clean_encoder: the one that the backdoor was planted in.
        trigger: of several, the most successful one as planted.
        target: the class of the task that it leads to, under a head.
        pretraining: samples of the kind that the encoder was pretrained on.
        rate: peak of the pretraining; ``None`` where that is not the zoo's.
        train_set, test_set: of the task, as the encoder takes them.
    """

    encoder: nn.Module
    clean_encoder: nn.Module
    trigger: Trigger
    target: Callable[[LinearProbe], int]
    pretraining: CleanSet
    rate: float | None
    train_set: CleanSet
    test_set: CleanSet


@dataclass(frozen=True)
class Case:
    """What all methods get of one task, budget and seed, and what they are measured with.

    Attributes:
        data: the task.
        encoder: as received.
        model: the encoder and its head, all of it trainable.
        clean: the budget.
        unlabeled: samples of the pretraining.
        rate: peak of the pretraining; ``None`` where that is not the zoo's.
        augment: of the task.
        trigger, test_set: to measure with.
        before: columns of the row that no method changes.
    """

    data: str
    encoder: nn.Module
    model: nn.Module
    clean: CleanSet
    unlabeled: CleanSet
    rate: float | None
    augment: tuple[int, bool]
    trigger: Trigger
    test_set: CleanSet
    before: Row


Method = Callable[[Case, int], Treated]
"""``(case, seed)``; a method reads neither the trigger nor the test set of the case, nor ``before``."""


def sanitized(**options: Any) -> Method:
    """``seamfast.sanitize`` of encoder and head; an option may be a function of the case."""

    def treat(case: Case, seed: int) -> Treated:
        given = {name: value(case) if callable(value) else value for name, value in options.items()}
        return study.seam(**given)(case.model, case.clean, case.data, case.augment, seed)

    return treat


def encoder_sanitized(images: Callable[[Case], CleanSet]) -> Method:
    """``seamfast.sanitize_encoder`` with these images, and a head on what comes back."""

    def treat(case: Case, seed: int) -> Treated:
        begin = time.perf_counter()
        result = seamfast.sanitize_encoder(case.encoder, images(case), seed=seed, progress=False)
        model = headed(result.model, case.clean, seed)
        seconds = time.perf_counter() - begin
        run = result.report["run"]
        return Treated(model, sum(run["steps"].values()), seconds, result.accepted, run["n_attempts"])

    return treat


def published(name: str) -> Method:
    """A defense of ``benches/defences``, by the settings for the task where it has some."""

    def treat(case: Case, seed: int) -> Treated:
        return study.published(name)(case.model, case.clean, case.data, case.augment, seed)

    return treat


def _as_published(case: Case) -> dict[str, Any]:
    """Settings that the paper's methods have here: the task's augmentation, and no pruning."""
    return {"crop_pad": case.augment[0], "flip": case.augment[1], "prune": False}


def _cycles(case: Case) -> SuperFineTuneConfig:
    return SuperFineTuneConfig(**_as_published(case))


def _guide_rate(case: Case) -> SuperFineTuneConfig:
    return SuperFineTuneConfig.encoder(**_as_published(case))


def _pretraining_rate(case: Case) -> SuperFineTuneConfig:
    assert case.rate is not None
    return SuperFineTuneConfig.encoder(case.rate, **_as_published(case))


METHODS: dict[str, Method] = {
    "no_defence": published("no_defence"),
    "fine_tune": sanitized(method="super_fine_tune", config=_guide_rate),
    "fine_tune (pretraining rate)": sanitized(method="super_fine_tune", config=_pretraining_rate),
    "super_fine_tune": sanitized(method="super_fine_tune", config=_cycles),
    SEAM: sanitized(),
    "sanitize_encoder": encoder_sanitized(lambda case: case.unlabeled),
    "sanitize_encoder (task)": encoder_sanitized(lambda case: case.clean),
    **{name: published(name) for name in ("nad", "fst", "scratch")},
}


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    encoder_zoo.add_choices(parser)
    parser.add_argument("--downstream", nargs="+", default=list(DOWNSTREAM), choices=DOWNSTREAM)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"of {', '.join(METHODS)}; default: all")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.05], help="e.g. 0.05 20")
    parser.add_argument("--defence-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing that is expected to end later")
    parser.add_argument("--shard", default="1/1", help="i/n: of the encoders, every n-th from the i-th on")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="measure nothing; tables of the rows")
    parser.add_argument("--standalone", type=Path, default=RESULTS / "study.jsonl", help="rows for the report")
    parser.add_argument("--transfer", type=Path, default=RESULTS / "transfer.jsonl", help="rows for the report")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    arguments = parser.parse_args(given)
    rows = latest(read_rows(arguments.out))
    if arguments.report:
        others = (list(latest(read_rows(path)).values()) for path in (arguments.standalone, arguments.transfer))
        paradigms_report.write(arguments.docs, *others, list(rows.values()))
        return 0

    unknown = sorted(set(arguments.methods) - set(METHODS))
    if unknown:
        parser.error(f"there is no method {', '.join(unknown)}; expected some of {', '.join(METHODS)}")
    place, n_shards = (int(number) for number in arguments.shard.split("/"))
    if not 1 <= place <= n_shards:
        parser.error(f"--shard is {arguments.shard}; expected i/n with i from 1 to n")
    torch.set_num_threads(1)
    todo = [job for job in jobs(arguments, place, n_shards) if job.key not in rows]
    study.run(todo, list(rows.values()), arguments, in_turn(arguments))  # type: ignore[arg-type]
    return 0


def jobs(arguments: argparse.Namespace, place: int, n_shards: int) -> list[TaskJob]:
    """All that was asked for, falls to this shard and can be done, one budget and seed after the other."""
    entries = [entry for entry in encoder_zoo.chosen(arguments) if entry.attack != "clean"][place - 1 :: n_shards]
    missing = [
        entry.name
        for entry in entries
        if not all(encoder_zoo.is_planted(e, arguments.zoo) for e in (entry, entry.clean_twin))
    ]
    if missing:
        named = ", ".join([*missing[:5], *(["..."] if missing[5:] else [])])
        print(f"{len(missing)} encoders are not planted and left out: {named}", file=sys.stderr)
    return [
        TaskJob(Task(entry, data), method, budget, seed)
        for budget, seed in itertools.product(arguments.budgets, arguments.defence_seeds)
        for entry in entries
        if entry.name not in missing
        for data in arguments.downstream
        if data in encoder_zoo.DOWNSTREAM[entry.encoder]
        for method in arguments.methods
        if entry.encoder != "minilm" or method not in OF_IMAGES
    ]


def in_turn(arguments: argparse.Namespace) -> Callable[[TaskJob], Row | None]:
    """The row of a job, or ``None`` where there is too little data; a case is kept for the jobs that follow on it."""
    case: Case | None = None
    case_of: tuple[Task, float, int] | None = None

    def measured(job: TaskJob) -> Row | None:
        nonlocal case, case_of
        if case_of != (job.entry, job.budget, job.seed):
            case_of = (job.entry, job.budget, job.seed)
            try:
                case = prepare(job, received(job.entry, arguments))
            except InputError as error:
                print(f"{job.entry.name}: left out, {error}", file=sys.stderr)
                case = None
        return None if case is None else row_of(job, case, METHODS[job.method])

    return measured


def received(task: Task, arguments: argparse.Namespace) -> Received:
    """What the zoo has for a task."""
    entry, places = task.encoder, (arguments.zoo, arguments.root)
    encoder, backdoor = encoder_zoo.load(entry, arguments.zoo)
    assert backdoor is not None
    aim = json.loads((arguments.zoo / entry.name / "info.json").read_text())["downstream"][task.data]
    (trigger,) = [one for one in backdoor.triggers if one.name == aim["trigger"]]
    train_set, test_set = (encoder_zoo.downstream(entry, task.data, *places, split) for split in ("train", "test"))
    is_text = entry.encoder == "minilm"

    def target(model: LinearProbe) -> int:
        return led_to(task, model, backdoor, trigger.name, arguments) if is_text else int(aim["target"])

    return Received(
        encoder,
        encoder_zoo.load(entry.clean_twin, arguments.zoo)[0],
        trigger,
        (lambda model: led_to(task, model, backdoor, trigger.name, arguments))
        if is_text
        else (lambda model: int(aim["target"])),
        train_set if is_text else encoder_zoo.whole("cifar10", arguments.root, "train"),
        None if is_text else encoder_zoo.PRETRAINING.rate,
        train_set,
        test_set,
    )


def led_to(task: Task, model: LinearProbe, backdoor: Backdoor, name: str, arguments: argparse.Namespace) -> int:
    """The class that the head of ``model`` gives the vector that the attacker chose for a trigger."""
    aimed = encoder_zoo.targeted(task.encoder, model, task.data, backdoor, arguments.zoo, arguments.root)
    (target,) = [trigger.target for trigger in aimed if trigger.name == name]
    assert isinstance(target, AllToOne)
    return target.target


def prepare(job: TaskJob, had: Received) -> Case:
    """The case of a job: the heads are fitted, and what no method changes is measured."""
    clean = clean_part(job.entry.data, had.train_set, job.budget, job.seed)
    model, clean_model = (headed(encoder, clean, job.seed) for encoder in (had.encoder, had.clean_encoder))
    trigger = replace(had.trigger, target=AllToOne(had.target(model)))  # type: ignore[type-var]
    found = encoder_rates(clean_model, model, had.test_set, trigger)
    columns = {
        "ca": found.clean_accuracy.value,
        "acc_before": found.backdoored_accuracy.value,
        "asr_before": found.attack_success_rate.value,
        "floor": found.clean_attack_success_rate.value,
        "n_eligible": found.attack_success_rate.n_total,
    }
    unlabeled = had.pretraining.draw(min(UNLABELED / len(had.pretraining), 1.0), seed=job.seed)
    where = {"rate": had.rate, "augment": job.entry.augment, "trigger": trigger, "test_set": had.test_set}
    return Case(job.entry.data, had.encoder, model, clean, unlabeled, **where, before=columns)


def headed(encoder: nn.Module, clean: CleanSet, seed: int) -> LinearProbe:
    """The encoder as it is and a head fitted on its features of these images; all of it may be trained."""
    assert clean.num_classes is not None
    return with_head(encoder, clean.num_classes, clean, seed=seed).fit(clean)


def rates(model: nn.Module, trigger: Trigger, test_set: CleanSet) -> dict[str, float | None]:
    """ACC and ASR."""
    found = seamfast.evaluate(model, test_set, triggers=[trigger], progress=False)
    return {"acc": found.clean_accuracy.value, "asr": found.worst_attack_success_rate}


def row_of(job: TaskJob, case: Case, method: Method) -> Row:
    """Treat, measure, and say all of it."""
    encoder = job.entry.encoder
    row: Row = {"entry": job.entry.name, "method": job.method, "budget": job.budget, "seed": job.seed}
    row |= {"encoder": encoder.name, "data": job.entry.data, "architecture": encoder.encoder}
    row |= {
        "attack": encoder.attack,
        "towards": encoder.towards,
        "model_seed": encoder.seed,
        "n_clean": len(case.clean),
    }
    row |= {"n_unlabeled": len(case.unlabeled), "n_test": len(case.test_set)} | case.before
    return row | study.outcome(
        lambda: method(case, job.seed), lambda model: rates(model, case.trigger, case.test_set), case.before
    )


if __name__ == "__main__":
    sys.exit(main())
