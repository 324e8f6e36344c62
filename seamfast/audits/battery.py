"""``stamped_evidence``: samples under known kinds of triggers, and the class that they move to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seamfast.checks import as_count, as_level, as_seed
from seamfast.data import CleanSet
from seamfast.engine.counting import OnBatch
from seamfast.engine.events import progress_bar
from seamfast.engine.model import evaluating
from seamfast.engine.subject import UNANSWERED, Subject, place
from seamfast.metrics import Bounded, largeness
from seamfast.triggers import Trigger

__all__ = ["StampedResult", "stamped_evidence"]


@dataclass(frozen=True)
class StampedResult:
    """Where samples go under one trigger.

    Attributes:
        name: the trigger's.
        target: the class with the largest rate.
        rate: of the samples of other classes that the model does not give to ``target`` as they are: given to it under
            the trigger, or to no class. Its bounds are for the largest rate of any class, and hold for all triggers at
            once.
        n_not_finite: stamped samples, of all, whose logits hold NaN or Inf.
    """

    name: str
    target: int
    rate: Bounded
    n_not_finite: int


def stamped_evidence(
    model: nn.Module,
    data: CleanSet,
    triggers: Sequence[Trigger] | None = None,
    *,
    level: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> tuple[StampedResult, ...]:
    """``(answers(stamp(images)) == c).mean()`` over the samples of other classes that were not given to ``c`` before,
    for the class ``c`` where that is largest; for each trigger, in one pass.

    What a model gets wrong without a trigger is no hit. A stamped sample whose logits hold NaN or Inf is a hit of every
    class that it could move to: where it goes is up to the caller's argmax. The bounds are exact and hold with
    probability ``level`` for all triggers and classes at once, each being a look (Bonferroni). The model is used in
    eval mode and left as it was.

    Args:
        model: returns logits ``(B, C)``.
        data: uint8 images, or floats with ``mean`` and ``std``, or texts with their tokenizer.
        triggers: stamped in pixel space or on texts; their label maps play no part. ``None``:
            ``seamfast.triggers.battery``, or ``seamfast.triggers.text_battery`` for texts.
        level: in (0, 1).
        batch_size: samples a forward pass, 1 or more.
        seed: of triggers at random places, in ``[0, 2**63)``.
        device: ``"auto"`` is the model's own; another one takes a copy of the model there.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        One result a trigger, in their order.

    Raises:
        InputError, ModelError: e.g. ``level is 95; expected a number in (0, 1)``, or ``labels hold 10; expected
            integers in [0, 10) for the model's 10 logits``.
        ShapeError: a trigger does not fit; the battery wants 1 or 3 channels and edges from 8 pixels.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = CleanSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> [result.name for result in stamped_evidence(model, data)][:2]
        ['patch-corner', 'patch-random']
    """
    level, batch_size, seed = as_level(level), as_count("batch_size", batch_size), as_seed(seed)
    subject = place(model, data, device)
    subject.data.stampable(torch.arange(1))  # raises where there is nothing to stamp
    if triggers is None:
        triggers = subject.data.modality.battery(subject.num_classes)
    subject.check_triggers(triggers)
    n_samples = (1 + len(triggers)) * len(data)
    with progress_bar("stamped", "sample", n_samples, progress) as bar, evaluating(subject.model):
        moved, n_not_finite, at_risk = _counted(subject, triggers, batch_size, seed, bar.update)
    n_looks = max(moved.numel(), 1)
    results = []
    for trigger, row, n_lost in zip(triggers, moved.tolist(), n_not_finite.tolist(), strict=True):
        rates = [Bounded.exact(k, n, level=level, n_looks=n_looks) for k, n in zip(row, at_risk.tolist(), strict=True)]
        target = max(range(len(rates)), key=lambda c: largeness(rates[c]))
        results.append(StampedResult(trigger.name, target, Bounded.largest(rates), n_lost))
    return tuple(results)


def _counted(
    subject: Subject, triggers: Sequence[Trigger], batch_size: int, seed: int, advance: OnBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """``(T, C)`` samples moved to each class by each trigger, ``(T,)`` those with no finite answer, and ``(C,)`` those
    that could be moved; int64, on the CPU.

    Counters stay on the device until the end: nothing waits for it in between.
    """
    data, num_classes, labels = subject.data, subject.num_classes, subject.data.labels
    before = torch.empty_like(labels)
    moved = torch.zeros(len(triggers), num_classes, dtype=torch.int64, device=data.device)
    not_finite = torch.zeros(len(triggers), dtype=torch.int64, device=data.device)
    classes = torch.arange(num_classes, device=data.device)
    parts = torch.split(torch.arange(len(data)), batch_size)

    with closing(data.batches((part, 0) for part in parts)) as batches:
        for indices, inputs in batches:
            before[indices.to(data.device)] = subject.answers(inputs)
            advance(len(indices))

    def drawn() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(triggers)):
            for part in parts:
                yield part, torch.full_like(part, number)

    with closing(data.stamped_batches(drawn(), triggers, seed=seed)) as stamped:
        for indices, numbers, inputs in stamped:
            rows, ids = indices.to(data.device), numbers.to(data.device)
            answers = subject.answers(inputs)
            lost = answers == UNANSWERED
            could = (classes != labels[rows, None]) & (classes != before[rows, None])
            moved.index_add_(0, ids, (could & ((classes == answers[:, None]) | lost[:, None])).long())
            not_finite.index_add_(0, ids, lost.long())
            advance(len(indices))

    true, given = labels.cpu(), before.cpu()
    theirs, taken, both = (
        torch.bincount(classes, minlength=num_classes) for classes in (true, given[given >= 0], true[true == given])
    )
    return moved.cpu(), not_finite.cpu(), len(data) - theirs - taken + both
