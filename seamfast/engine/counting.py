"""Counting outcomes of a model over a data set: correct, hit, restored, for many triggers in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seamfast.engine.model import evaluating, logits_of
from seamfast.engine.precision import Precision
from seamfast.engine.subject import Subject, answers_of
from seamfast.modalities import NO_AUGMENTATION, Augmentation
from seamfast.modalities.batch import Batch
from seamfast.ops import OUTCOMES, count_outcomes
from seamfast.triggers import Trigger

OnBatch = Callable[[int], None]


@dataclass(frozen=True)
class TriggerCounts:
    """Outcomes of ``n_eligible`` triggered samples: ``n_hit`` are given the target, ``n_restored`` their true class;
    ``n_nan`` rows of logits hold NaN and count as neither, so that up to ``n_hit + n_nan`` may be given the target."""

    name: str
    n_eligible: int
    n_hit: int
    n_restored: int
    n_nan: int


@dataclass(frozen=True)
class Counts:
    """Outcomes on clean samples.

    Attributes:
        class_correct, class_total: number of samples of each class that are right, and of all of them.
        n_nan: rows of logits that hold NaN; they count as wrong.
        answers, labels: ``(N,)`` int64, CPU, of each sample in the order of the pass: the class that the model gives,
            ``UNANSWERED`` where its logits hold NaN, and the true one. Not compared by ``==``.
        confidence: mean of the largest softmax probability, in [0, 1]; NaN if some logits are. Not compared by ``==``.
    """

    class_correct: tuple[int, ...]
    class_total: tuple[int, ...]
    n_nan: int
    answers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), compare=False, repr=False)
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), compare=False, repr=False)
    confidence: float = field(default=math.nan, compare=False, repr=False)

    @property
    def correct(self) -> Tensor:
        """``(N,)`` bool, CPU: whether each sample is right."""
        return self.answers == self.labels

    @property
    def n_correct(self) -> int:
        return sum(self.class_correct)

    @property
    def n_samples(self) -> int:
        return sum(self.class_total)

    @property
    def accuracy(self) -> float:
        """``n_correct / n_samples``, in [0, 1]."""
        return self.n_correct / self.n_samples


def count_clean(
    subject: Subject,
    indices: Tensor,
    *,
    batch_size: int | None = None,
    precision: Precision = Precision(),  # noqa: B008 - frozen
    augmentation: Augmentation = NO_AUGMENTATION,
    on_batch: OnBatch = lambda n_samples: None,
) -> Counts:
    """``Counts`` of the samples at ``indices``, in eval mode, without grads; the model's mode is restored.

    Args:
        subject: the model and the samples.
        indices: ``(N,)`` int64, CPU.
        batch_size: samples per forward pass; ``None``: 128 on a CPU, whose caches hold their activations, else 1024.
        precision: of the forward passes.
        augmentation: of the samples, as in the first epoch of training.
        on_batch: called with the number of samples of each batch.
    """
    data, num_classes = subject.data, subject.num_classes
    counter = _Counter(subject, torch.empty(0, num_classes, dtype=torch.int64), precision)
    parts = torch.split(indices.to(data.storage_device), batch_size or _batch_size(data.device))
    with evaluating(subject.model), closing(data.batches(((part, 0) for part in parts), augmentation)) as batches:
        for samples, inputs in batches:
            counter.add(inputs, samples, -1)
            on_batch(len(samples))
    labels = data.samples.labels[indices]
    totals = torch.bincount(labels, minlength=num_classes).tolist()
    (row,) = counter.rows()
    answers = torch.cat([labels[:0].to(data.device), *counter.answers]).cpu()
    confidence = float(counter.confidence) / max(len(labels), 1)
    return Counts(tuple(counter.class_correct[-1].tolist()), tuple(totals), row["n_nan"], answers, labels, confidence)


def count_triggered(
    subject: Subject,
    indices: Tensor,
    triggers: Sequence[Trigger],
    *,
    seed: int,
    batch_size: int | None = None,
    precision: Precision = Precision(),  # noqa: B008 - frozen
    on_batch: OnBatch = lambda n_samples: None,
) -> tuple[TriggerCounts, ...]:
    """``TriggerCounts`` of each trigger on its eligible samples at ``indices``; batches mix triggers.

    Args:
        subject, indices, batch_size, precision, on_batch: as for ``count_clean``.
        triggers: must fit the samples.
        seed: of random positions.
    """
    data, num_classes = subject.data, subject.num_classes
    targets = target_table(triggers, num_classes)
    chosen = eligible(targets, data.samples.labels, indices)
    counter = _Counter(subject, targets, precision)
    if any(map(len, chosen)):
        samples = torch.cat(chosen).to(data.storage_device)
        ids = torch.cat([torch.full((len(part),), number) for number, part in enumerate(chosen)])
        size = batch_size or _batch_size(data.device)
        drawn = zip(torch.split(samples, size), torch.split(ids.to(data.storage_device), size), strict=True)
        with evaluating(subject.model), closing(data.stamped_batches(drawn, triggers, seed=seed)) as stamped:
            for part, numbers, inputs in stamped:
                counter.add(inputs, part, numbers)
                on_batch(len(part))
    return tuple(
        TriggerCounts(trigger.name, row["n_eligible"], row["n_hit"], row["n_restored"], row["n_nan"])
        for trigger, row in zip(triggers, counter.rows(), strict=False)
    )


def target_table(triggers: Sequence[Trigger], num_classes: int) -> Tensor:
    """``(T, C)`` int64: the target of each trigger for each class."""
    classes = torch.arange(num_classes)
    if not triggers:
        return torch.empty(0, num_classes, dtype=torch.int64)
    return torch.stack([trigger.target.targets(classes, num_classes) for trigger in triggers])


def eligible(targets: Tensor, labels: Tensor, indices: Tensor) -> list[Tensor]:
    """For each row of ``targets``, the ``indices`` whose label it changes; all on the CPU, to avoid a sync."""
    return [indices[row[labels[indices]] != labels[indices]] for row in targets]


class _Counter:
    """Counters on the device, read once at the end: one sync for a whole pass."""

    def __init__(self, subject: Subject, targets: Tensor, precision: Precision) -> None:
        device, n_rows = subject.device, len(targets) + 1
        self._subject = subject
        self._precision = precision
        self._targets = targets.to(device)
        self._counters = torch.zeros(n_rows, len(OUTCOMES), dtype=torch.int64, device=device)
        self.answers: list[Tensor] = []
        self.confidence = torch.zeros((), device=device)  # summed over the samples without a trigger
        self.class_correct = torch.zeros(n_rows, subject.num_classes, dtype=torch.int64, device=device)

    def add(self, inputs: Batch, samples: Tensor, trigger_ids: Tensor | int) -> None:
        with self._precision.computing(self._subject.device):
            logits = logits_of(self._subject.model, self._precision.laid_out(inputs))
        if logits.dtype == torch.float64:
            logits = logits.float()
        labels = self._subject.data.labels[samples]
        if isinstance(trigger_ids, int):
            self.answers.append(answers_of(logits))
            self.confidence += logits.float().softmax(1).amax(1).sum()
        count_outcomes(
            logits, labels, self._targets, trigger_ids, counters=self._counters, class_correct=self.class_correct
        )

    def rows(self) -> Iterable[dict[str, int]]:
        """Counters by name, for each trigger in order; the last are those without a trigger."""
        return [dict(zip(OUTCOMES, row, strict=True)) for row in self._counters.tolist()]


def _batch_size(device: torch.device) -> int:
    return 128 if device.type == "cpu" else 1024
