"""Counting outcomes of a model over a data set: correct, hit, restored, for many triggers in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seamfast.data.clean_set import Batch
from seamfast.data.resident import Resident
from seamfast.engine.model import evaluating, logits_of
from seamfast.engine.precision import Precision
from seamfast.ops import OUTCOMES, TriggerTable, count_outcomes
from seamfast.triggers import Trigger


@dataclass(frozen=True)
class TriggerCounts:
    """Of ``n_eligible`` triggered samples, ``n_hit`` got the attacker's class and ``n_restored`` their true one."""

    name: str
    n_eligible: int
    n_hit: int
    n_restored: int


@dataclass(frozen=True)
class Counts:
    """Integer outcomes of one pass. ``n_nan`` rows held NaN and count as wrong."""

    class_correct: tuple[int, ...]
    class_total: tuple[int, ...]
    n_nan: int
    triggers: tuple[TriggerCounts, ...]

    @property
    def n_correct(self) -> int:
        return sum(self.class_correct)

    @property
    def n_samples(self) -> int:
        return sum(self.class_total)


def measure(
    model: nn.Module,
    data: Resident,
    indices: Tensor,
    *,
    num_classes: int,
    triggers: Sequence[Trigger] = (),
    batch_size: int | None = None,
    seed: int = 0,
    precision: Precision = Precision(),  # noqa: B008 - frozen
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Counts:
    """Counts over the samples at ``indices`` (int64, CPU), in eval mode, without grads; the model's mode is put back.

    The samples go through the model once as they are, and once for each trigger that they are eligible for; batches mix
    triggers, so all but the last are full. Counters stay on the device until the end: one synchronisation for the whole
    pass. A batch has ``batch_size`` samples, unless told otherwise 128 on a CPU, whose caches hold what they become,
    and 1024 elsewhere. ``on_batch`` is told how many forward samples a batch had, and how many there are in all.
    """
    device, labels = data.device, data.samples.labels
    if batch_size is None:
        batch_size = 128 if device.type == "cpu" else 1024
    # What each trigger makes of each class; where it leaves the class, samples of it show nothing.
    classes = torch.arange(num_classes)
    targets = torch.empty(0, num_classes, dtype=torch.int64)
    if triggers:
        targets = torch.stack([trigger.target.targets(classes, num_classes) for trigger in triggers])
    # Who is eligible follows from labels on the CPU: choosing them does not wait for the device.
    chosen = [indices[row[labels[indices]] != labels[indices]] for row in targets]
    n_total = len(indices) + sum(map(len, chosen))

    counters = torch.zeros(len(triggers) + 1, len(OUTCOMES), dtype=torch.int64, device=device)
    class_correct = torch.zeros(len(triggers) + 1, num_classes, dtype=torch.int64, device=device)
    on_device = targets.to(device)

    def count(inputs: Batch, samples: Tensor, trigger_ids: Tensor | int) -> None:
        with precision.computing(device):
            logits = logits_of(model, precision.laid_out(inputs))
        if logits.dtype == torch.float64:
            logits = logits.float()
        count_outcomes(
            logits, data.labels[samples], on_device, trigger_ids, counters=counters, class_correct=class_correct
        )
        on_batch(len(samples), n_total)

    with evaluating(model):
        parts = torch.split(indices.to(data.home), batch_size)
        with closing(data.batches((part, 0) for part in parts)) as batches:
            for samples, inputs in batches:
                count(inputs, samples, -1)
        if any(map(len, chosen)):
            table = TriggerTable.of(triggers, data.samples.image_shape, data.home)
            eligible = torch.cat(chosen).to(data.home)
            by = torch.cat([torch.full((len(part),), number) for number, part in enumerate(chosen)]).to(data.home)
            drawn = zip(torch.split(eligible, batch_size), torch.split(by, batch_size), strict=True)
            with closing(data.stamped_batches(drawn, table, seed=seed)) as stamped:
                for samples, ids, images in stamped:
                    count(images, samples, ids)

    totals = torch.bincount(labels[indices], minlength=num_classes).tolist()
    rows = [dict(zip(OUTCOMES, row, strict=True)) for row in counters.tolist()]
    return Counts(
        class_correct=tuple(class_correct[-1].tolist()),
        class_total=tuple(totals),
        n_nan=sum(row["n_nan"] for row in rows),
        triggers=tuple(
            TriggerCounts(trigger.name, row["n_eligible"], row["n_hit"], row["n_restored"])
            for trigger, row in zip(triggers, rows, strict=False)
        ),
    )
