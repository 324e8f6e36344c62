"""``reactivation``: the success of a known backdoor after an attacker's short fine-tuning."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from seamfast.audits.retraining import (
    Attacker,
    eligible_indices,
    with_stamped,
)
from seamfast.checks import as_count, as_positive, as_seed, check_time_budget
from seamfast.data import CleanSet
from seamfast.data.clean_set import check_clean_set
from seamfast.data.resident import one_pass
from seamfast.engine.events import progress_bar
from seamfast.engine.host import in_use, seeded
from seamfast.engine.subject import as_called
from seamfast.errors import InputError
from seamfast.metrics import Bounded, Rate, rate_values
from seamfast.triggers import Trigger

__all__ = ["Reactivation", "reactivation"]

_MOMENTUM = 0.9


@dataclass(frozen=True)
class Reactivation:
    """The success of triggers before and after an attacker's fine-tuning.

    Attributes:
        names: of the triggers.
        before, after: attack success rate of each of them, in that order, with 95 % Wilson bounds.
        accuracy_before, accuracy_after: clean accuracy.
        n_clean, n_triggered: samples that the attacker trained on.
        n_steps: of SGD; fewer than ``epochs`` passes make where the time ran out.
        complete: whether all steps were taken.
    """

    names: tuple[str, ...]
    before: tuple[Rate, ...]
    after: tuple[Rate, ...]
    accuracy_before: Rate
    accuracy_after: Rate
    n_clean: int
    n_triggered: int
    n_steps: int
    complete: bool

    @property
    def asr_before(self) -> Rate:
        """The largest of ``before``."""
        return _largest(self.before)

    @property
    def asr_after(self) -> Rate:
        """The largest of ``after``."""
        return _largest(self.after)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "triggers": [
                {"name": name, "before": rate_values(before), "after": rate_values(after)}
                for name, before, after in zip(self.names, self.before, self.after, strict=True)
            ],
            "asr_before": rate_values(self.asr_before),
            "asr_after": rate_values(self.asr_after),
            "accuracy_before": rate_values(self.accuracy_before),
            "accuracy_after": rate_values(self.accuracy_after),
            "n_clean": self.n_clean,
            "n_triggered": self.n_triggered,
            "n_steps": self.n_steps,
            "complete": self.complete,
        }


def reactivation(
    model: nn.Module,
    data: CleanSet,
    trigger: Trigger | Sequence[Trigger],
    test: CleanSet,
    *,
    source: CleanSet | None = None,
    n_triggered: int = 5,
    epochs: int = 5,
    rate: float = 0.01,
    batch_size: int = 128,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    progress: bool | None = None,
) -> Reactivation:
    """Attack success rate of a known trigger before and after ``epochs`` of SGD on ``data`` and ``n_triggered`` stamped
    samples.

    A copy of the model is trained, all its weights, with momentum 0.9 and without augmentation; the model itself is
    only read. A cure that hides a backdoor instead of removing it loses to this: compare the result with that of a
    model that never had the backdoor.

    Args:
        model: returns logits ``(B, C)``.
        data: the clean samples that the attacker trains on; the paper has 2 % of the training set.
        trigger: that of the old backdoor, or several, which are stamped by turns.
        test: samples that accuracy and success are measured on, none of them in ``data``.
        source: samples that the stamped ones are drawn from; ``None``: ``data``, whose own samples stay as they are.
        n_triggered: stamped samples, with the attacker's label, at least 1.
        epochs: passes over all, at least 1.
        rate: of SGD, above 0.
        batch_size: samples a step, at least 1; the last batch of a pass is smaller.
        time_budget_s: seconds above 0, after which training stops; ``None``: no limit.
        seed: of the stamped samples, their order, dropout and random places, in ``[0, 2**63)``.
        device: as for ``seamfast.sanitize``.
        precision: as for ``seamfast.sanitize``; float32 by default, so that a seed gives the same result everywhere.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        Reactivation.

    Raises:
        InputError, ModelError: e.g. ``n_triggered is 9; only 5 of the 8 samples can be stamped``, or
            ``trigger is empty; expected at least one seamfast.triggers.Trigger``, or ``the loss became nan; try a lower
            rate than 0.01``.

    Source: Min et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense", NeurIPS
        2024, arXiv:2410.09838: their retuning attack.

    Example:
        >>> from seamfast.triggers import Patch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = CleanSet(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2)
        >>> found = reactivation(model, data, Patch.square(size=3, target=1), data, n_triggered=2)
        >>> found.n_steps, found.asr_after.n_total
        (5, 4)
    """
    begin = time.perf_counter()
    n_triggered, epochs = as_count("n_triggered", n_triggered), as_count("epochs", epochs)
    batch_size, seed, rate = as_count("batch_size", batch_size), as_seed(seed), as_positive("rate", rate)
    check_time_budget(time_budget_s)
    end = math.inf if time_budget_s is None else begin + time_budget_s
    triggers = (trigger,) if isinstance(trigger, Trigger) else tuple(trigger)
    if not triggers:
        raise InputError("trigger is empty; expected at least one seamfast.triggers.Trigger")
    source = data if source is None else source
    for name, samples in (("data", data), ("test", test), ("source", source)):
        check_clean_set(name, samples)
    attacker = Attacker(model, test, device, seed)
    attacker.will_stamp(triggers)
    parts = _drawn(as_called(model, source), triggers, n_triggered, seed, attacker.num_classes)
    both = with_stamped(as_called(model, data), as_called(model, source), parts, seed, attacker.num_classes)
    everything, generator = torch.arange(len(both)), torch.Generator().manual_seed(seed)
    n_steps, complete = 0, True
    with in_use(), seeded(seed, attacker.device):
        attacker.will_train_on(both, batch_size, precision)
        before, accuracy_before = attacker.success(torch.arange(len(test))), attacker.accuracy(torch.arange(len(test)))
        attacker.begin(rate, _MOMENTUM)
        steps_a_pass = len(one_pass(everything, batch_size, torch.Generator()))
        with progress_bar("reactivate", "step", epochs * steps_a_pass, progress) as bar:
            for _ in range(epochs):
                for indices in one_pass(everything, batch_size, generator, attacker.data.lengths):
                    if time.perf_counter() >= end:
                        complete = False
                        break
                    attacker.step(indices)
                    n_steps += 1
                    bar.update()
        attacker.check_finite()
        after, accuracy_after = attacker.success(torch.arange(len(test))), attacker.accuracy(torch.arange(len(test)))
    return Reactivation(
        names=tuple(t.name for t in triggers),
        before=before,
        after=after,
        accuracy_before=accuracy_before,
        accuracy_after=accuracy_after,
        n_clean=len(data),
        n_triggered=n_triggered,
        n_steps=n_steps,
        complete=complete,
    )


def _drawn(
    source: CleanSet, triggers: Sequence[Trigger], n: int, seed: int, num_classes: int
) -> list[tuple[Trigger, torch.Tensor]]:
    """``n`` samples of ``source`` by turns of triggers, each from those that the trigger moves to another class."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    parts = []
    for number, trigger in enumerate(triggers):
        eligible = eligible_indices(trigger, source, order, num_classes)
        wanted = len(range(number, n, len(triggers)))
        drawn = eligible[number :: len(triggers)][:wanted]
        if len(drawn) < wanted:
            n_able = len(eligible[number :: len(triggers)]) * len(triggers)
            raise InputError(f"n_triggered is {n}; only {n_able} of the {len(source)} samples can be stamped")
        parts.append((trigger, drawn))
    return parts


def _largest(rates: Sequence[Rate]) -> Rate:
    return rates[0] if len(rates) == 1 else Bounded.largest(rates)
