"""Does random labelling forget backdoors most, as the neural tangent kernel says, and does the kernel tell which stay?

    python benches/ntk.py [--models NAME ...] [--zoo ZOO] [--text-zoo ZOO] [--root DATA]
    python benches/ntk.py --report

Models are those of ``zoo.py`` and ``text_zoo.py`` that are planted; ``MODELS`` by default, or all with ``--models
all``. Of each: T, 64 clean training samples; S, 64 clean test samples of classes that the trigger leads away from; and
the same samples with the trigger. A row of ``--out`` has, of one model,

- ``predicted``: by scheme of labels for T and by set of probes, what ``seamfast.audits.ntk.forgetting`` says, with two
  draws of random labels: the mean squared drift of the logits by number of steps and to the end; ``gone``, the share of
  the probes whose answer is another one at the end; ``share`` of the squared logits;
- ``last_layer``: the same by the kernel of the last layer;
- ``actual``: for the first draw, the drift after 1, 5 and 20 steps of gradient descent at one over the largest
  eigenvalue, and for uniform labels also at a tenth of that; ``error`` is the norm of the difference between predicted
  and actual drift over that of the actual one;
- ``overlap``: of the gradients of T with those of S and with those of the triggered samples; and with the latter those
  of T as the student of ``sanitize`` sees it, under the patterns of forgetting and of recovery, once a sample;
- ``path``: what the forgetting step of the cure does, with 5 % clean data and the end put off: ACC and ASR on the whole
  held-out part by step; ``asr_at_collapse`` is the ASR when the ACC is halfway to chance, as the report counts it.

The ASR after the cure is that of the rows of ``study.py`` and ``text_study.py``, 5 % clean data. What is triggered is
only measured. A row that is there is not made again. One thread; seconds are on a machine that may have other load.

``--report`` measures nothing: it writes ``ntk-study.md`` and its figures to ``--docs``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches import ntk_report, text_zoo, zoo  # noqa: E402
from benches.rows import Row, append_row, commit, read_rows  # noqa: E402
from benches.text_zoo import TextEntry  # noqa: E402
from benches.zoo import Entry  # noqa: E402
from seamfast import CleanSet, SeamConfig  # noqa: E402
from seamfast.attacks import Backdoor  # noqa: E402
from seamfast.audits import ntk  # noqa: E402
from seamfast.data.collected import padded  # noqa: E402
from seamfast.engine.subject import place  # noqa: E402
from seamfast.modalities import ViewSettings  # noqa: E402
from seamfast.modalities.base import StepDraws  # noqa: E402
from seamfast.modalities.batch import Batch, named_tensors  # noqa: E402
from seamfast.models import embed  # noqa: E402
from seamfast.record import machine  # noqa: E402

RESULTS = ROOT / "benches" / "results"
OUT = RESULTS / "ntk.jsonl"
N = 64
STEPS = (1, 5, 20)
N_DRAWS = 2
RANK = 12
BUDGET = 0.05
MODELS: tuple[Entry | TextEntry, ...] = (
    *(Entry("mnist", "small_cnn", name) for name in ("badnets", "blended", "wanet")),
    *(Entry("fashion-mnist", "small_cnn", name) for name in ("badnets", "blended", "wanet", "wave")),
    *(Entry("cifar10", "small_vgg", name) for name in ("badnets", "blended", "sig", "wave", "low_frequency")),
    *(Entry("cifar10", "small_vgg_bn", name) for name in ("badnets", "blended", "low_frequency")),
    *(Entry("cifar10", "wrn_16_1", name) for name in ("badnets", "blended", "bpp")),
    *(Entry("cifar10", "small_convnext", name) for name in ("badnets", "blended", "sig")),
    *(TextEntry("sst2", "text_cnn", name) for name in ("word", "sentence", "syntactic")),
    *(TextEntry("sst2", "bilstm", name) for name in ("word", "sentence")),
    *(TextEntry("sst2", "text_transformer", name) for name in ("word", "sentence")),
)


@dataclass(frozen=True)
class Case:
    """One model and its samples.

    Attributes:
        train: T.
        clean, triggered: the probes.
        budget: clean data of the cure.
    """

    model: nn.Module
    backdoor: Backdoor
    train: CleanSet
    clean: CleanSet
    triggered: CleanSet
    budget: CleanSet


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="names in the zoos, or all; default: those of MODELS")
    parser.add_argument("--zoo", type=Path, default=zoo.ZOO)
    parser.add_argument("--text-zoo", type=Path, default=text_zoo.ZOO)
    parser.add_argument("--root", type=Path, default=zoo.DATA_ROOT, help="of the data sets")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="measure nothing; tables and figures of the rows")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    arguments = parser.parse_args(given)
    if arguments.report:
        cured = [read_rows(RESULTS / name) for name in ("study.jsonl", "text.jsonl")]
        ntk_report.write(arguments.docs, read_rows(arguments.out), [row for rows in cured for row in rows])
        return 0
    torch.set_num_threads(1)
    done = {row["entry"] for row in read_rows(arguments.out)}
    todo = [entry for entry in chosen(arguments) if entry.name not in done]
    for number, entry in enumerate(todo):
        start = time.perf_counter()
        row = row_of(entry, prepare(entry, arguments))
        row |= {"seconds": round(time.perf_counter() - start, 1), "machine": machine(), "commit": commit()}
        append_row(arguments.out, row)
        print(f"[{number + 1}/{len(todo)}] {entry.name}: {row['seconds']:.0f} s", file=sys.stderr, flush=True)
    return 0


def chosen(arguments: argparse.Namespace) -> list[Entry | TextEntry]:
    """The planted ones of those asked for; what is not planted is named."""
    declared: list[Entry | TextEntry] = [*zoo.declared(zoo.TRAINING), *text_zoo.declared()]
    declared = [
        entry for entry in declared if entry.attack != "clean" and entry.architecture not in text_zoo.PRETRAINED
    ]
    names = [entry.name for entry in MODELS] if arguments.models is None else arguments.models
    wanted = [entry for entry in declared if names == ["all"] or entry.name in names]
    there = [entry for entry in wanted if is_planted(entry, arguments)]
    missing = [entry.name for entry in wanted if entry not in there] if names != ["all"] else []
    missing += sorted(set(names) - {entry.name for entry in declared} - {"all"})
    if missing:
        print(f"not planted and left out: {', '.join(missing)}", file=sys.stderr)
    return there


def is_planted(entry: Entry | TextEntry, arguments: argparse.Namespace) -> bool:
    if isinstance(entry, TextEntry):
        return text_zoo.is_planted(entry, arguments.text_zoo)
    return zoo.is_planted(entry, arguments.zoo)


def prepare(entry: Entry | TextEntry, arguments: argparse.Namespace) -> Case:
    """The case of a planted model."""
    if isinstance(entry, TextEntry):
        model, backdoor = text_zoo.load(entry, arguments.text_zoo)
        train_set = text_zoo.train_set(entry, arguments.text_zoo, arguments.root, None)
        test_set = text_zoo.test_set(entry, arguments.text_zoo, arguments.root, None).texts
        budget = text_zoo.clean_part(train_set, BUDGET, 0)
    else:
        model, backdoor = zoo.load(entry, arguments.zoo)
        train_set, test_set = (zoo.read(entry.data, arguments.root, split) for split in ("train", "test"))
        budget = zoo.clean_part(entry.data, train_set, BUDGET, 0)
    assert backdoor is not None
    trigger = backdoor.triggers[0]
    assert test_set.num_classes is not None
    eligible = trigger.target.eligible(test_set.labels, test_set.num_classes).nonzero().flatten()
    probes = eligible[torch.randperm(len(eligible), generator=torch.Generator().manual_seed(1))[:N]].sort().values
    drawn = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(0))[:N].sort().values
    stamped = trigger.stamp(test_set.stampable(probes), sample_ids=probes)
    if isinstance(entry, TextEntry):
        stamped = test_set.modality.model_inputs(stamped)
    description = test_set.description
    triggered = CleanSet(stamped, test_set.labels[probes], **description)
    return Case(model.eval(), backdoor, train_set.subset(drawn), test_set.subset(probes), triggered, budget)


def row_of(entry: Entry | TextEntry, case: Case) -> Row:
    """Predict, train, and say all of it."""
    model, probes = case.model, {"clean": case.clean, "triggered": case.triggered}
    row: Row = {"entry": entry.name, "data": entry.data, "architecture": entry.architecture, "attack": entry.attack}
    row |= {"n_parameters": sum(p.numel() for p in model.parameters()), "n": len(case.train)}
    row["batch_norm"] = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    begin = time.perf_counter()
    exact = ntk.forgetting(model, case.train, probes, n_draws=N_DRAWS, steps=STEPS, progress=False)
    row["predicted_seconds"] = round(time.perf_counter() - begin, 2)
    row["predicted"] = as_values(exact)
    row |= {"n_products": exact.n_products, "residual": exact.residual, "ridge": exact.ridge}
    row["largest_eigenvalue"] = exact.largest_eigenvalue
    row["last_layer"] = as_values(
        ntk.forgetting(model, case.train, probes, kernel="last_layer", n_draws=N_DRAWS, steps=STEPS, progress=False)
    )
    row["actual"] = actual(case, exact.rate)
    row["overlap"] = {
        name: ntk.overlap(model, case.train, one, rank=RANK, progress=False).to_dict() for name, one in probes.items()
    }
    for name, settings in views(case.train).items():
        seen = as_student_sees(model, case.train, settings)
        row["overlap"][name] = ntk.overlap(model, seen, case.triggered, rank=RANK, progress=False).to_dict()
    return row | {"path": path(case)}


def views(data: CleanSet) -> dict[str, ViewSettings]:
    """What ``seam`` shows its student, by step, without the mixing of samples, which needs labels."""
    config = SeamConfig.preset("balanced", data.modality)
    both = {"occlusions": config.occlusions, "disturbance": config.disturbance}
    return {"forget": ViewSettings(**both), "recover": ViewSettings(**both, waves=config.waves)}


def as_student_sees(model: nn.Module, data: CleanSet, settings: ViewSettings) -> Batch:
    """All samples, under patterns."""
    subject = place(model, data, "auto")
    one = torch.ones(())
    draws = StepDraws(generator=torch.Generator().manual_seed(0), seed=0, step=0, changed=one, disturbed=one)
    inputs = subject.data.inputs(torch.arange(len(data)))
    return subject.data.modality.views(inputs, subject.data.labels, settings, draws).student


def as_values(found: ntk.Forgetting) -> dict[str, Any]:
    """A result as JSON values."""
    return {
        scheme: {
            name: {
                "to_the_end": one.to_the_end,
                "by_steps": {str(count): value for count, value in one.by_steps.items()},
                "share": one.share,
                "gone": one.share_of_answers_changed,
            }
            for name, one in by_probes.items()
        }
        for scheme, by_probes in found.schemes.items()
    }


def actual(case: Case, rate: float) -> list[Row]:
    """Predicted beside actual drift: a row for each scheme, number of steps, rate and set of probes."""
    rows = []
    logits = embed(case.model, case.train)
    both = joined(case.clean, case.triggered)
    parts = {"clean": slice(0, len(case.clean)), "triggered": slice(len(case.clean), None)}
    for scheme in ntk.SCHEMES:
        targets = ntk.label_targets(logits, case.train.labels, scheme)
        for share in (1.0, 0.1) if scheme == "uniform" else (1.0,):
            for count in STEPS:
                how: dict[str, Any] = {"steps": count, "rate": share * rate, "progress": False}
                found = ntk.trained_drift(case.model, case.train, targets, both, **how)
                said = ntk.drift(case.model, case.train, targets, both, **how)
                for name, part in parts.items():
                    change, predicted, before = found[part], said.change[part], said.logits[part]
                    rows.append(
                        {
                            "scheme": scheme,
                            "steps": count,
                            "rate": share,
                            "probes": name,
                            "error": float((predicted - change).norm() / change.norm()),
                            "predicted": float(predicted.square().sum(1).mean()),
                            "actual": float(change.square().sum(1).mean()),
                            "gone": float(((before + change).argmax(1) != before.argmax(1)).double().mean()),
                        }
                    )
    return rows


def joined(first: CleanSet, second: CleanSet) -> CleanSet:
    """The samples of both, in order; texts are padded to the longest."""
    columns = padded([named_tensors(one.inputs) for one in (first, second)])
    inputs: Any = {name: torch.cat([one[name] for one in columns]) for name in columns[0]}
    labels = torch.cat([first.labels, second.labels])
    return CleanSet(inputs if isinstance(first.inputs, dict) else inputs["inputs"], labels, **first.description)


def path(case: Case) -> dict[str, Any]:
    """ACC and ASR by step of the forgetting of the cure."""
    config = replace(
        SeamConfig.preset("balanced", case.budget.modality),
        forget_until=1e-9,
        forget_max_steps=27,
        recover_max_steps=1,
        recover_easy_steps=1,
        searches=0,
    )
    triggers = list(case.backdoor.triggers)
    result = seamfast.sanitize(case.model, case.budget, config=config, triggers=triggers, threads=1, progress=False)
    points = [point for point in result.history if point.phase == "forget"]
    before = result.report["holdout"]["before"]
    received = before["clean_accuracy"]["value"]
    accuracy = [received, *(point.holdout_accuracy for point in points)]
    success = [max(point.attack_success_rate.values()) for point in points]
    half = (received + 1 / (case.budget.num_classes or 2)) / 2
    at_collapse = next((s for a, s in zip(accuracy[1:], success, strict=True) if a <= half), None)
    return {"acc": accuracy, "asr": success, "half": half, "asr_at_collapse": at_collapse}


if __name__ == "__main__":
    sys.exit(main())
