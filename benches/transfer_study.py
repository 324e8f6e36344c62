"""Does the backdoor of a pretrained backbone survive its user's training, and which cure removes it? Resumable.

    python benches/transfer_study.py --weights FOLDER [--data gtsrb] [--attacks bad_encoder] [--methods fst] [--seeds 0]

The user gets a backbone of ``transfer_zoo.py`` and has a small training set of a task of his own, 860 images of GTSRB
or 1,000 of CIFAR-10 at 64 px. All methods have these images, no others, and know nothing of the trigger:

- ``linear_probe``: no defence, the least training: a linear head on the frozen backbone.
- ``fine_tune``: no defence, what is usual: a new head, and all weights trained for 6 epochs of batches of 32, SGD 0.02,
  momentum 0.9, weight decay 5e-4, a tenth of warm-up and half a cosine.
- ``super_fine_tune``: the paper's defence for this case is the user's own training, by its schedule: in place of
  ``fine_tune``, with 3 epochs a phase and the rates and cycles of ``SuperFineTuneConfig``. Source: Sha et al.,
  "Fine-Tuning Is All You Need to Mitigate Backdoor Attacks", arXiv:2212.09067. Its epochs could not be found.
- ``seam (balanced)``, ``fst``, ``nad``: cures of the model that ``fine_tune`` gives: the defaults of ``sanitize`` in
  batches of 32; those of ``benches/defences``, ``nad`` with 5 epochs for teacher and student each, half of the paper's.
- ``seam (balanced) of linear_probe``: the same of the model of ``linear_probe``, all of whose weights it trains: for a
  user who trains nothing else.
- ``scratch``: 400 steps of 32 from random weights.

What is triggered is stamped on test images, to measure: ACC, ASR and RA. ``acc_before`` and ``asr_before`` are those of
``fine_tune``, whose model the cures get; ``acc_probe`` and ``asr_probe`` those of ``linear_probe``. ``ca`` and
``floor`` are ACC and, for the same class, ASR of the backbone as published: under its own ``linear_probe`` for
``linear_probe``, under ``fine_tune`` for all others. Where the class is chosen (see ``transfer_zoo.py``),
``floor_chosen`` is the ASR for the class chosen on the published backbone.

A row of ``--out`` is one backbone, task, method and seed; what has a row is not run again. Seconds are of one thread,
on a machine that may have other load; those of a cure come after those of ``fine_tune``. The tables are in the
report of ``paradigms.py``.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches import study, transfer_zoo  # noqa: E402
from benches.defences import DEFENCES  # noqa: E402
from benches.defences.training import Training, set_rate  # noqa: E402
from benches.rows import Row, read_rows  # noqa: E402
from benches.study import Treated, latest  # noqa: E402
from benches.study_report import SEAM, Key, grouped, table  # noqa: E402
from benches.transfer_zoo import A_CLASS, TARGETS, Task, TransferEntry, trigger  # noqa: E402
from seamfast import CleanSet, SeamConfig, SuperFineTuneConfig  # noqa: E402
from seamfast.methods.schedules import cosine, triangle  # noqa: E402
from seamfast.metrics import Rate  # noqa: E402
from seamfast.models import LinearProbe, embed, with_head  # noqa: E402
from seamfast.models.folder import fill_from, save_weights, state_of  # noqa: E402

OUT = ROOT / "benches" / "results" / "transfer.jsonl"
EPOCHS, BATCH, RATE = 6, 32, 0.02
"""Of the user's training: of both phases together, samples a step, highest rate of ``fine_tune``."""
SCRATCH_STEPS = 400
CROP_PAD = 4
SEAM_OF_PROBE = f"{SEAM} of linear_probe"


@dataclass(frozen=True)
class TransferJob:
    """One row to be."""

    entry: TransferEntry
    method: str

    @property
    def key(self) -> Key:
        return self.entry.name, self.method, A_CLASS[self.entry.data], self.entry.seed, False


@dataclass(frozen=True)
class Case:
    """What there is of one backbone and task.

    Attributes:
        entry: of the zoo.
        task: its data.
        received: the backbone, without a head.
        probe: the model of ``linear_probe``.
        tuned: what ``fine_tune`` made.
        target: the class to which the trigger should lead.
        measured: of the row, what all methods share.
        floors: by method, ``ca``, ``floor`` and ``floor_chosen``; those of ``fine_tune`` for what has none of its own.
    """

    entry: TransferEntry
    task: Task
    received: nn.Module
    probe: Treated
    tuned: Treated
    target: int
    measured: Row
    floors: dict[str, Row]

    @property
    def augment(self) -> tuple[int, bool]:
        """Crop and flip: signs are not mirrored."""
        return augment_of(self.entry)


Method = Callable[[Case], Treated]


def augment_of(entry: TransferEntry) -> tuple[int, bool]:
    return CROP_PAD, entry.data != "gtsrb"


# ---- Methods. ----


def trained(model: nn.Module, entry: TransferEntry, clean: CleanSet, rate: Callable[[float], float]) -> Treated:
    """A copy of ``model`` trained for ``EPOCHS`` on the user's images; ``rate``: by the share of steps done."""
    with Training(
        model, clean, seed=entry.seed, augment=augment_of(entry), batch_size=BATCH, precision="auto"
    ) as training:
        student = training.copy()
        optimizer = torch.optim.SGD(student.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
        n_steps = EPOCHS * training.steps_an_epoch
        for epoch in range(EPOCHS):
            for inputs, labels in training.batches(epoch):
                set_rate(optimizer, rate((training.n_steps - 1) / n_steps))
                optimizer.zero_grad()
                F.cross_entropy(training.logits(student, inputs), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        done = training.finish(student)
        return Treated(done.model, done.n_steps, done.seconds)


def with_new_head(backbone: nn.Module, clean: CleanSet, seed: int) -> LinearProbe:
    """A copy of the backbone with an untrained head for the task."""
    assert clean.num_classes is not None
    return with_head(backbone, clean.num_classes, clean, seed=seed)


def linear_probe(backbone: nn.Module, clean: CleanSet) -> Treated:
    """A copy of the backbone, frozen, with the linear head that fits the user's images."""
    assert clean.num_classes is not None
    begin = time.perf_counter()
    model = with_head(backbone, clean.num_classes, clean, frozen=True).fit(clean)
    return Treated(model, 0, time.perf_counter() - begin)


def conventional(fraction: float) -> float:
    """The rate of ``fine_tune``."""
    return RATE * cosine(fraction)


def super_schedule(fraction: float) -> float:
    """The rate of ``super_fine_tune``: cycles of triangles, in the first half with the higher peak."""
    config = SuperFineTuneConfig()
    peak = config.forget_rate if fraction < 0.5 else config.recover_rate
    return config.base_rate + (peak - config.base_rate) * triangle((2 * fraction) % 1.0, config.n_cycles)


def super_fine_tune(case: Case) -> Treated:
    """The user's training by the other schedule."""
    start = with_new_head(case.received, case.task.train, case.entry.seed)
    return trained(start, case.entry, case.task.train, super_schedule)


def seam(case: Case) -> Treated:
    """``sanitized`` of the model of ``fine_tune``."""
    return sanitized(case.tuned.model, case)


def seam_of_probe(case: Case) -> Treated:
    """``sanitized`` of the model of ``linear_probe``, all of it trainable."""
    model = copy.deepcopy(case.probe.model)
    assert isinstance(model, LinearProbe)
    model.frozen = False
    return sanitized(model.requires_grad_(True), case)


def sanitized(model: nn.Module, case: Case) -> Treated:
    """``seamfast.sanitize`` by its defaults, in batches of ``BATCH``."""
    begin = time.perf_counter()
    config = SeamConfig(batch_size=BATCH)
    result = seamfast.sanitize(model, case.task.train, config=config, seed=case.entry.seed, progress=False)
    run = result.report["run"]
    seconds = time.perf_counter() - begin
    return Treated(result.model, sum(run["steps"].values()), seconds, result.accepted, run["n_attempts"])


def published(name: str, **settings: int) -> Method:
    """A defence of ``benches/defences``, of the trained model."""

    def treat(case: Case) -> Treated:
        defend = DEFENCES.get(f"{name}_{case.entry.data}", DEFENCES[name])
        given = functools.partial(defend, **settings)
        done = given(case.tuned.model, case.task.train, seed=case.entry.seed, augment=case.augment)
        return Treated(done.model, done.n_steps, done.seconds)

    return treat


METHODS: dict[str, Method] = {
    "linear_probe": lambda case: case.probe,
    "fine_tune": lambda case: case.tuned,
    "super_fine_tune": super_fine_tune,
    SEAM: seam,
    SEAM_OF_PROBE: seam_of_probe,
    "fst": published("fst"),
    "nad": published("nad", teacher_epochs=5, epochs=5),
    "scratch": published("scratch", n_steps=SCRATCH_STEPS, batch_size=BATCH),
}


# ---- Cases and rows. ----


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    transfer_zoo.add_choices(parser, attacked=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing that is expected to end later")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(given)
    rows = list(latest(read_rows(arguments.out)).values())
    torch.set_num_threads(1)
    done = {(row["entry"], row["method"]) for row in rows}
    todo = [
        TransferJob(entry, method)
        for entry in transfer_zoo.declared(arguments.data, arguments.attacks, arguments.seeds)
        for method in arguments.methods
        if (entry.name, method) not in done
    ]
    study.run(todo, rows, arguments, in_turn(arguments))
    return 0


def in_turn(arguments: argparse.Namespace) -> Callable[[TransferJob], Row]:
    """The row of a job; a case is kept for the jobs that follow on it."""
    cases: dict[TransferEntry, Case] = {}

    def measured(job: TransferJob) -> Row:
        if job.entry not in cases:
            cases.clear()
            cases[job.entry] = prepare(job.entry, arguments)
        return row_of(job, cases[job.entry])

    return measured


def prepare(entry: TransferEntry, arguments: argparse.Namespace) -> Case:
    """The case of a backbone and a task; what is missing in the zoo is made."""
    data = transfer_zoo.task(entry.data, arguments.root, entry.seed)
    published_one = TransferEntry(entry.data, "clean", entry.seed)
    models: dict[TransferEntry, tuple[nn.Module, Treated, Treated]] = {}
    for one in (published_one, entry):
        if not transfer_zoo.is_planted(one, arguments.zoo):
            transfer_zoo.plant(one, arguments.zoo, arguments.root, arguments.weights)
        backbone = transfer_zoo.load(one, arguments.zoo)
        models[one] = backbone, linear_probe(backbone, data.train), fine_tuned(one, backbone, data, arguments.zoo)

    received, probe, tuned = models[entry]
    is_chosen = (entry.attack, entry.data) == ("badnets", "gtsrb")
    target = chosen_class(probe.model, data) if is_chosen else TARGETS[entry.data]
    other = chosen_class(models[published_one][1].model, data) if is_chosen else None
    floors = {}
    for name, model in zip(("linear_probe", "fine_tune"), models[published_one][1:], strict=True):
        clean_one = rates(model.model, data, target)
        floors[name] = {
            "ca": clean_one["acc"],
            "floor": clean_one["asr"],
            "floor_chosen": None if other is None else rates(model.model, data, other)["asr"],
        }
    before = rates(tuned.model, data, target)
    of_probe = rates(probe.model, data, target)
    measured = {f"{name}_before": value for name, value in before.items()}
    measured |= {f"{name}_probe": value for name, value in of_probe.items()}
    measured |= {"target": target, "is_chosen": is_chosen, "n_clean": len(data.train), "n_test": len(data.test)}
    measured["n_eligible"] = int((data.test.labels != target).sum())
    return Case(entry, data, received, probe, tuned, target, measured, floors)


def fine_tuned(entry: TransferEntry, backbone: nn.Module, data: Task, zoo: Path) -> Treated:
    """What ``fine_tune`` makes of a backbone; kept in the zoo, beside the backbones."""
    folder = zoo / "fine_tuned" / entry.name
    if not (folder / "info.json").is_file():
        made = trained(with_new_head(backbone, data.train, entry.seed), entry, data.train, conventional)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder, made.model, {name: name for name in state_of(made.model)})
        (folder / "info.json").write_text(json.dumps({"steps": made.n_steps, "seconds": made.seconds}))
    info = json.loads((folder / "info.json").read_text())
    model = with_new_head(backbone, data.train, entry.seed)
    fill_from(model, folder / "model.safetensors", "the fine-tuned model")
    return Treated(model.eval(), info["steps"], info["seconds"])


def chosen_class(model: nn.Module, data: Task) -> int:
    """The class that most triggered images get, of those of other classes; counted on images of neither side."""
    stamped = trigger(0).stamp(data.spare.inputs, sample_ids=torch.arange(len(data.spare)), seed=0)
    assert data.spare.num_classes is not None
    triggered = CleanSet(stamped, data.spare.labels, **data.spare.description)
    answers = embed(model, triggered).argmax(1)  # its logits
    counts = [int(((answers == c) & (data.spare.labels != c)).sum()) for c in range(data.spare.num_classes)]
    return counts.index(max(counts))


def rates(model: nn.Module, data: Task, target: int) -> dict[str, float | None]:
    """ACC, ASR and RA on the test images."""
    found = seamfast.evaluate(model, data.test, triggers=[trigger(target)], progress=False)
    (one,) = found.triggers
    return {
        "acc": found.clean_accuracy.value,
        "asr": one.attack_success_rate.value,
        "ra": one.robust_accuracy.value,
    }


def row_of(job: TransferJob, case: Case) -> Row:
    """Treat, measure, and say all of it."""
    entry = job.entry
    row: Row = {"entry": entry.name, "method": job.method, "budget": A_CLASS[entry.data], "seed": entry.seed}
    row |= {"data": entry.data, "architecture": entry.architecture, "attack": entry.attack} | case.measured
    row |= case.floors.get(job.method, case.floors["fine_tune"])
    return row | study.outcome(
        lambda: METHODS[job.method](case), lambda model: rates(model, case.task, case.target), case.measured
    )


# ---- The report. ----


def page(rows: list[Row]) -> str:
    """All tables, as Markdown; equal rows give equal text."""
    return "\n".join(_page(rows)) + "\n"


def _page(rows: list[Row]) -> Iterator[str]:
    order = list(METHODS)
    rows = sorted(rows, key=lambda row: (row["entry"], order.index(row["method"])))
    yield (
        "An EfficientNet-Lite0 of ImageNet with a backdoor is passed on to a user who trains it for a task of his own; "
        "how it is measured stands at the head of [`benches/transfer_study.py`](../benches/transfer_study.py), how the "
        "backdoors were made at that of [`benches/transfer_zoo.py`](../benches/transfer_zoo.py). `linear_probe` and "
        "`fine_tune` are no defence. `super_fine_tune` is the user's training by another schedule; the cures get the "
        'model of `fine_tune`, or of `linear_probe` where it says so. "ACC lost" is in points, against `fine_tune`. CA '
        "and floor are ACC and ASR on the backbone without a backdoor.\n"
    )
    for (data, attack), of_attack in grouped(rows, "data", "attack").items():
        first = of_attack[0]
        yield f"### {data}, {attack}\n"
        chosen = ", chosen as the class that most triggered images get" if first["is_chosen"] else ""
        yield (
            f"{first['n_clean']} training images; ACC of {first['n_test']} test images, ASR and RA of "
            f"{first['n_eligible']} of them with the trigger; target class {first['target']}{chosen}.\n"
        )
        if first["is_chosen"]:
            worst = max(row["floor_chosen"] for row in of_attack)
            yield f"The class chosen in the same way on the backbone without a backdoor gets {worst:.1%} at most.\n"
        heads = ["method", "seeds", "CA", "ACC", "ACC lost", "ASR", "floor", "RA", "s", "accepted"]
        yield table(heads, [_line(method, group) for method, group in grouped(of_attack, "method").items()])


def _line(method: str, rows: list[Row]) -> list[str]:
    ended = [row for row in rows if "failed" not in row]
    if not ended:
        return [method, f"0 ({len(rows)} failed)", *[""] * 7, rows[0]["failed"]]

    def mean(name: str) -> float:
        return sum(row[name] for row in ended) / len(ended)

    n = sum(row["n_eligible"] for row in ended)
    asr = Rate(round(sum(row["asr_after"] * row["n_eligible"] for row in ended)), n)
    judged = [row["accepted"] for row in ended if row["accepted"] is not None]
    return [
        method,
        str(len(ended)),
        f"{mean('ca'):.1%}",
        f"{mean('acc_after'):.1%}",
        f"{100 * (mean('acc_before') - mean('acc_after')):.1f}",
        f"{asr.value:.1%} [{asr.low:.1%}, {asr.high:.1%}]",
        f"{mean('floor'):.1%}",
        f"{mean('ra_after'):.1%}",
        f"{mean('seconds'):.0f}",
        f"{sum(judged)}/{len(judged)}" if judged else "",
    ]


if __name__ == "__main__":
    sys.exit(main())
