"""``invert_triggers``: for each class the smallest mask and pattern that take other samples there."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.checks import as_count, as_seed, check_time_budget
from seamfast.data import CleanSet
from seamfast.engine.events import progress_bar
from seamfast.engine.model import evaluating
from seamfast.engine.optimizer import Adam
from seamfast.engine.subject import UNANSWERED, Subject, finite_answers, place
from seamfast.errors import InputError, ModelError
from seamfast.metrics import Rate

__all__ = ["Inversion", "InvertedTrigger", "anomaly_index", "invert_triggers"]

FEWEST_CLASSES = 5
"""With fewer, the median and the spread that one class is held against are made of next to nothing."""

_USED, _TESTED = 256, 256
"""At most so many samples to find masks on, and as many others to test them on."""
_BATCH = 16
"""Samples a step, for each class."""
_GROUP_IMAGES, _GROUP_BYTES = 256, 16 << 20
"""Greatest forward pass: classes are taken in groups that keep below both."""
_RATE, _BETAS = 0.1, (0.5, 0.9)
_WANTED = 0.99
"""Success that the mask may not fall below as it shrinks."""
_WINDOW = 5
"""Steps between two looks at the success so far, which then changes the weight of the mask."""
_WEIGHT, _UP, _DOWN = 1.0, 1.5, 1.5**1.5
"""The first weight of the mask's share; its factor where success suffices, and its divisor where not."""


@dataclass(frozen=True, eq=False)
class InvertedTrigger:
    """The smallest trigger found that takes samples of other classes to one class.

    Attributes:
        label: the class.
        mask: ``(H, W)`` float32 in [0, 1]: how much of the pattern shows.
        pattern: ``(C, H, W)`` uint8.
        mask_share: mean of the mask, in [0, 1].
        success: of samples of other classes that were not used to find it: given to the class under
            ``((1 - mask) * pixels + mask * pattern).round()``.
        reached: whether a mask was found under which at least 99 % of the samples used went there; if not, the mask is
            the last one that was tried, and says nothing about how small one could be.
        n_not_finite: answers, in the search and in the test, whose logits hold NaN or Inf. The search cannot follow
            them, so with any of them ``mask_share`` is no measure of how small a mask could be.
    """

    label: int
    mask: Tensor
    pattern: Tensor
    mask_share: float
    success: Rate
    reached: bool
    n_not_finite: int


@dataclass(frozen=True, eq=False)
class Inversion:
    """Inverted triggers, and whether one class needs a much smaller one than the others.

    Attributes:
        classes: one for each class, in order; fewer where the time ran out.
        anomaly_index: ``anomaly_index`` of the mask shares, 1 for a class that was not reached; ``None`` with fewer
            than 5 classes, and where a class has ``n_not_finite`` above 0: a model could hide its smallest mask behind
            NaN. The paper takes more than 2 for a backdoor.
        suspect: the class with the smallest mask of those reached; ``None`` where none was.
        steps: how many were taken for the class with the fewest; one whose gradient is not finite is none.
        complete: whether every class got all its steps.
    """

    classes: tuple[InvertedTrigger, ...]
    anomaly_index: float | None
    suspect: int | None
    steps: int
    complete: bool


def invert_triggers(
    model: nn.Module,
    data: CleanSet,
    *,
    steps: int = 300,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Inversion:
    """For each class ``c`` a minimum of ``cross_entropy(model((1 - m) * x + m * p), c) + weight * m.mean()`` over mask
    ``m`` and pattern ``p``, with the weight rising for as long as 99 % of other classes' samples go to ``c``.

    A patch that a model was taught to obey is found as a mask much smaller than what other classes need. The model is
    used in eval mode and left as it was, and so are its weights' gradients; at most 256 samples are used, 256 others
    test what was found.

    Args:
        model: returns logits ``(B, C)``, by a computation that can be differentiated.
        data: uint8 images, or floats with ``mean`` and ``std``; of two classes at least.
        steps: of Adam, for each class, 1 or more.
        time_budget_s: seconds above 0, after which the search stops with what it has; ``None``: no limit. The step
            under way is finished and its classes are tested; classes that were not begun are left out.
        seed: of first masks and of the choice of samples, in ``[0, 2**63)``; decides the result on a CPU.
        device: ``"auto"`` is the model's own; another one takes a copy of the model there.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        Inversion.

    Raises:
        InputError, ModelError: e.g. ``steps is 0; expected an integer of at least 1``.

    Source: Wang et al., "Neural Cleanse", IEEE S&P 2019: loss, rising weight, Adam's settings, anomaly index. Here all
    classes share a batch, the weight is of the mask's mean and not of its sum, and changes every fifth step.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = CleanSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> inversion = invert_triggers(model, data, steps=2)
        >>> [found.label for found in inversion.classes], inversion.anomaly_index
        ([0, 1], None)
    """
    begin = time.perf_counter()
    steps, seed = as_count("steps", steps), as_seed(seed)
    check_time_budget(time_budget_s)
    end = math.inf if time_budget_s is None else begin + time_budget_s
    subject = place(model, data, device)
    subject.data.modality.inverted(1, torch.Generator(), subject.device)  # raises where there is nothing to invert
    present = torch.unique(data.labels).tolist()
    if len(present) < 2:
        raise InputError(f"data holds one class only ({present[0]}); expected at least two")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    n_used = min(_USED, (len(data) + 1) // 2)
    used, tested = order[:n_used], order[n_used : n_used + _TESTED]

    groups = _groups(subject)
    found: list[InvertedTrigger] = []
    fewest = steps
    with (
        progress_bar("invert", "step", steps * len(groups), progress) as bar,
        evaluating(subject.model),
    ):
        for number, group in enumerate(groups):
            now = time.perf_counter()
            if now >= end:
                fewest = 0
                break
            search = _Search(subject, used, group, seed)
            taken = search.run(steps, now + (end - now) / (len(groups) - number), bar.update)
            fewest = min(fewest, taken)
            found += search.tested_on(tested)
    shares = [trigger.mask_share if trigger.reached else 1.0 for trigger in found]
    reached = [trigger for trigger in found if trigger.reached]
    finite = not any(trigger.n_not_finite for trigger in found)
    return Inversion(
        classes=tuple(found),
        anomaly_index=anomaly_index(shares) if finite else None,
        suspect=min(reached, key=lambda trigger: trigger.mask_share).label if reached else None,
        steps=fewest,
        complete=fewest == steps,
    )


def anomaly_index(sizes: Sequence[float]) -> float | None:
    """``(median - min) / (1.4826 * median(abs(sizes - median)))``: how far below the others the smallest lies.

    1.4826 makes the denominator a standard deviation where the sizes are normally distributed.

    Args:
        sizes: of one mask a class.

    Returns:
        A number from 0; ``None`` for fewer than 5 sizes, and where more than half of them are equal: there is no spread
        then to hold one against.

    Source: Wang et al., "Neural Cleanse", IEEE S&P 2019, section V-B.

    Example:
        >>> round(anomaly_index([1, 9, 10, 11, 12]), 2)
        6.07
    """
    if len(sizes) < FEWEST_CLASSES:
        return None
    median = statistics.median(sizes)
    spread = 1.4826 * statistics.median(abs(size - median) for size in sizes)
    return (median - min(sizes)) / spread if spread else None


class _Search:
    """Masks and patterns of a group of classes, all in one batch."""

    def __init__(self, subject: Subject, used: Tensor, group: range, seed: int) -> None:
        self._subject = subject
        # The same first trigger and the same batches for every class: how they are grouped changes nothing.
        self._generator = torch.Generator().manual_seed(seed)
        device, n = subject.device, len(group)
        self._triggers = subject.data.modality.inverted(n, self._generator, device)
        self._samples = self._triggers.prepared(subject.data.stampable(used))
        self._of = subject.samples.labels[used].to(device)
        self._classes = torch.tensor(group, device=device)
        self._adam = Adam(nn.ParameterList(self._triggers.parameters), betas=_BETAS)
        self._rate = torch.tensor(_RATE, device=device)
        self._weight = torch.full((n,), _WEIGHT, device=device)
        self._reached = torch.zeros(n, dtype=torch.bool, device=device)
        self._not_finite = torch.zeros(n, dtype=torch.int64, device=device)
        self._blocked = torch.zeros(n, dtype=torch.int64, device=device)
        self._share = torch.full((n,), math.inf, device=device)
        self._best = self._triggers.values()

    def run(self, steps: int, end: float, advance: Callable[[int], object]) -> int:
        """Take ``steps``, fewer where ``end`` on the clock comes before, one at least. Returns how many were of use to
        the class with the fewest: a step along a gradient that is not finite is not."""
        hit = seen = torch.zeros_like(self._weight)
        taken = 0
        while taken < steps and (taken == 0 or time.perf_counter() < end):
            step_hit, step_seen = self._step()
            hit, seen, taken = hit + step_hit, seen + step_seen, taken + 1
            advance(1)
            if taken % _WINDOW == 0:
                self._look(hit, seen)
                hit = seen = torch.zeros_like(self._weight)
                self._share.sum().item()  # the clock is to see what was computed, not what was queued
        self._keep(~self._reached)
        return taken - int(self._blocked.max())

    def tested_on(self, indices: Tensor) -> list[InvertedTrigger]:
        """What was found, each tested on the samples at ``indices`` (int64, CPU)."""
        samples, of = self._subject.data.stampable(indices), self._subject.samples.labels[indices]
        sizes = self._triggers.sizes(self._best).tolist()
        found = []
        for row, label in enumerate(self._classes.tolist()):
            others = samples[(of != label).to(samples.device)]
            stamped = self._triggers.stamp_found(self._best, row, others)
            parts = torch.split(stamped, _largest_batch(self._subject)) if len(stamped) else ()
            answers = torch.cat([of[:0].to(stamped.device), *map(self._answers, parts)])
            mask, pattern = self._triggers.found(self._best, row)
            found.append(
                InvertedTrigger(
                    label=label,
                    mask=mask,
                    pattern=pattern,
                    mask_share=sizes[row],
                    success=Rate(int((answers == label).sum()), len(others)),
                    reached=bool(self._reached[row]),
                    n_not_finite=int(self._not_finite[row] + (answers == UNANSWERED).sum()),
                )
            )
        return found

    def _answers(self, stampable: Tensor) -> Tensor:
        return self._subject.answers(self._subject.inputs(stampable))

    def _step(self) -> tuple[Tensor, Tensor]:
        """One update; for each class how many samples of others went there, and of how many."""
        n, device = len(self._classes), self._weight.device
        rows = torch.randint(len(self._samples), (_BATCH,), generator=self._generator).to(device)
        samples, counted = self._samples[rows], self._of[rows] != self._classes[:, None]
        with torch.enable_grad():
            stamped, sizes = self._triggers.stamp(samples)
            logits = self._subject.logits(self._subject.inputs(stamped)).float()
            if not logits.requires_grad:
                raise ModelError("the model's logits have no gradient; expected a model that can be differentiated")
            wanted = self._classes.repeat_interleave(_BATCH)
            losses = F.cross_entropy(logits, wanted, reduction="none").view(n, _BATCH)
            seen = counted.sum(1)
            loss = (losses * counted).sum(1) / seen.clamp(min=1) + self._weight * sizes
            # Of these alone: the model's own gradients stay as they are.
            gradients = torch.autograd.grad(loss.sum(), self._triggers.parameters)
        answers = finite_answers(logits)
        self._not_finite += (answers == UNANSWERED).view(n, _BATCH).sum(1)
        hit = ((answers == wanted).view(n, _BATCH) & counted).sum(1)
        known = torch.stack([gradient.isfinite().reshape(n, -1).all(1) for gradient in gradients]).all(0)
        self._blocked += ~known
        for value, gradient in zip(self._triggers.parameters, gradients, strict=True):
            # One NaN would stay in the mask for good, and one Inf in Adam's second moment, where it stops all steps.
            value.grad = torch.where(known.view(-1, *[1] * (gradient.ndim - 1)), gradient, 0.0)
        self._adam.step(self._rate)
        return hit, seen

    def _look(self, hit: Tensor, seen: Tensor) -> None:
        """Keep what suffices and is smaller, and change the weights."""
        suffices = (hit >= _WANTED * seen) & (seen > 0)
        self._reached |= suffices
        self._keep(suffices & (self._triggers.sizes(self._triggers.values()) < self._share))
        self._weight = torch.where(suffices, self._weight * _UP, self._weight / _DOWN)

    def _keep(self, which: Tensor) -> None:
        """Make the masks and patterns of the classes ``which`` the best so far, as they are now."""
        now = self._triggers.values()
        self._share = torch.where(which, self._triggers.sizes(now), self._share)
        self._best = [
            torch.where(which.view(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(now, self._best, strict=True)
        ]


def _groups(subject: Subject) -> list[range]:
    """The classes, in runs whose batches keep below the limits; a single class may pass them."""
    size = max(_largest_batch(subject) // _BATCH, 1)
    return [range(k, min(k + size, subject.num_classes)) for k in range(0, subject.num_classes, size)]


def _largest_batch(subject: Subject) -> int:
    """How many samples a forward pass may have."""
    n_bytes: int = 4 * subject.samples.stampable(torch.arange(1)).numel()
    return max(min(_GROUP_IMAGES, _GROUP_BYTES // n_bytes), 1)
