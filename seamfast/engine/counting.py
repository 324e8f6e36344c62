"""Counting outcomes: correct, hit, restored, for many triggers in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seamfast.data.resident import Resident
from seamfast.engine.model import evaluating, logits_of
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


def count_outcomes(
    model: nn.Module,
    data: Resident,
    indices: Tensor,
    *,
    num_classes: int,
    triggers: Sequence[Trigger] = (),
    batch_size: int = 512,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda n: None,
) -> Counts:
    """Counts over the samples at ``indices`` (int64, CPU), in eval mode, without grads; the model's mode is put back.

    All counters stay on the device until the end: one synchronisation for the whole pass. Only samples that are
    eligible for a trigger are stamped with it.
    """
    device = data.device
    correct = torch.zeros(num_classes, dtype=torch.int64, device=device)
    n_nan = torch.zeros((), dtype=torch.int64, device=device)
    hits = torch.zeros(len(triggers), 2, dtype=torch.int64, device=device)
    n_eligible = [0] * len(triggers)
    with evaluating(model):
        for part in torch.split(indices, batch_size):
            on_device = part.to(device)
            labels = data.labels[on_device]
            predicted, nan = _predict(model, data, on_device, None)
            n_nan += nan
            correct.scatter_add_(0, labels, (predicted == labels).long())
            for number, trigger in enumerate(triggers):
                # Who is eligible follows from labels on the CPU: choosing them does not wait for the device.
                true = data.samples.labels[part]
                chosen = part[trigger.target.eligible(true, num_classes)]
                if not len(chosen):
                    continue
                n_eligible[number] += len(chosen)
                stamped = trigger.stamp(data.samples.pixels(chosen), sample_ids=chosen, seed=seed).to(device)
                predicted, nan = _predict(model, data, chosen.to(device), stamped)
                n_nan += nan
                true = data.samples.labels[chosen]
                wanted = trigger.target.targets(true, num_classes).to(device)
                hits[number, 0] += (predicted == wanted).sum()
                hits[number, 1] += (predicted == true.to(device)).sum()
            on_batch(len(part))
    totals = torch.bincount(data.samples.labels[indices], minlength=num_classes).tolist()
    results = [
        TriggerCounts(trigger.name, n, *counted)
        for trigger, n, counted in zip(triggers, n_eligible, hits.tolist(), strict=True)
    ]
    return Counts(tuple(correct.tolist()), tuple(totals), int(n_nan), tuple(results))


def _predict(model: nn.Module, data: Resident, indices: Tensor, pixels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Classes (ties to the first index; -1 for rows with NaN) and how many rows held NaN."""
    batch = data.inputs(indices) if pixels is None else data.samples.normalize(pixels, data.dtype)
    logits = logits_of(model, batch)
    nan = logits.isnan().any(1)
    return torch.where(nan, -1, logits.argmax(1)), nan.sum()
