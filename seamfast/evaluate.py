"""Clean accuracy, attack success rate and robust accuracy, with confidence bounds, for many triggers in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from seamfast.checks import as_count
from seamfast.data import as_clean_set
from seamfast.engine.counting import Counts, TriggerCounts, count_clean, count_triggered, eligible, target_table
from seamfast.engine.events import progress_bar
from seamfast.engine.subject import place
from seamfast.metrics import Rate
from seamfast.triggers import Trigger


@dataclass(frozen=True)
class TriggerEvaluation:
    """Outcome of one trigger.

    Attributes:
        name: the trigger's.
        attack_success_rate: share of the eligible samples (true class is not the attacker's target) that are
            classified as the target when triggered: ``n_hit`` of ``n_eligible``. Rows of logits with NaN count as not
            classified at all, though a caller's argmax gives them a class: with any, the rate is too low.
        robust_accuracy: share of the same samples that still get their true class.
        n_nan: logit rows of the same samples with NaN, which are no hit of either rate.
    """

    name: str
    attack_success_rate: Rate
    robust_accuracy: Rate
    n_nan: int = 0

    @property
    def n_eligible(self) -> int:
        return self.attack_success_rate.n_total

    @property
    def n_hit(self) -> int:
        return self.attack_success_rate.n_hit


@dataclass(frozen=True)
class Evaluation:
    """Outcome of a model on clean and on triggered data.

    Attributes:
        clean_accuracy: over all samples.
        class_accuracy: for each class, in order; a class without samples has ``n_total`` 0.
        triggers: one for each trigger, in the order given.
        n_nan: logit rows with NaN, clean and triggered; they count as wrong.
    """

    clean_accuracy: Rate
    class_accuracy: tuple[Rate, ...]
    triggers: tuple[TriggerEvaluation, ...]
    n_nan: int = 0

    @property
    def worst_attack_success_rate(self) -> float | None:
        """The largest attack success rate; ``None`` without triggers or eligible samples."""
        rates = [t.attack_success_rate.value for t in self.triggers]
        return max((rate for rate in rates if rate is not None), default=None)

    def __str__(self) -> str:
        lines = [f"clean accuracy       {self.clean_accuracy}"]
        lines += [f"{t.name:<20} ASR {t.attack_success_rate}  RA {t.robust_accuracy}" for t in self.triggers]
        n_clean = self.n_nan - sum(t.n_nan for t in self.triggers)
        if n_clean:
            lines.append(f"warning: {n_clean} of {self.clean_accuracy.n_total} clean samples have an answer of NaN")
        lines += [
            f"warning: {t.n_nan} of {t.n_eligible} samples under {t.name} have an answer of NaN, which is no hit; the "
            f"ASR may be up to {(t.n_hit + t.n_nan) / t.n_eligible:.4f}"
            for t in self.triggers
            if t.n_nan
        ]
        return "\n".join(lines)


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    triggers: Sequence[Trigger] = (),
    batch_size: int = 512,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Evaluation:
    """``(model(inputs).argmax(1) == labels).float().mean()``, also for every trigger, in one pass over the data.

    Ties of logits go to the first class. The model runs in eval mode; its own mode is restored.

    Args:
        model: as for ``seamfast.sanitize``.
        data: as for ``seamfast.sanitize``; triggers need pixels: uint8 images, or floats with ``mean`` and ``std``
            (``seamfast.CleanSet``).
        triggers: stamped in pixel space, before normalization.
        batch_size: samples per forward pass, at least 1.
        seed: of triggers at random positions.
        device: ``"auto"`` is the model's own; for another one, a copy of the model is used.
        progress: show a progress bar; ``None``: if stderr is a terminal.

    Returns:
        Evaluation.

    Raises:
        InputError, ModelError: e.g. ``labels hold 10; expected integers in [0, 10) for the model's 10 logits``.

    Example:
        >>> import torch, seamfast
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> data = seamfast.CleanSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> seamfast.evaluate(model, data).clean_accuracy.n_total
        3
    """
    batch_size = as_count("batch_size", batch_size)
    subject = place(model, as_clean_set(data), device)
    subject.check_triggers(triggers)
    indices = torch.arange(len(subject.data))
    targets = target_table(triggers, subject.num_classes)
    n_samples = len(indices) + sum(map(len, eligible(targets, subject.samples.labels, indices)))
    with progress_bar("evaluate", "sample", n_samples, progress) as bar:
        clean = count_clean(subject, indices, batch_size=batch_size, on_batch=bar.update)
        triggered = count_triggered(subject, indices, triggers, seed=seed, batch_size=batch_size, on_batch=bar.update)
    return as_evaluation(clean, triggered)


def as_evaluation(clean: Counts, triggers: Sequence[TriggerCounts]) -> Evaluation:
    """Counts as rates with their intervals."""
    return Evaluation(
        clean_accuracy=Rate(clean.n_correct, clean.n_samples),
        class_accuracy=tuple(Rate(k, n) for k, n in zip(clean.class_correct, clean.class_total, strict=True)),
        triggers=tuple(
            TriggerEvaluation(t.name, Rate(t.n_hit, t.n_eligible), Rate(t.n_restored, t.n_eligible), t.n_nan)
            for t in triggers
        ),
        n_nan=clean.n_nan + sum(t.n_nan for t in triggers),
    )
