"""Clean accuracy, attack success rate and robust accuracy, with confidence bounds, for many triggers in one pass."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from seamfast.data import as_clean_set
from seamfast.data.clean_set import CleanSet
from seamfast.data.rereading import AugmentingSet
from seamfast.data.resident import Resident
from seamfast.engine.counting import Counts, measure
from seamfast.engine.model import check_logits, device_of, evaluating, fit_to_call, logits_of, resolve_device
from seamfast.errors import InputError
from seamfast.metrics import Rate
from seamfast.triggers import Trigger


@dataclass(frozen=True)
class TriggerEvaluation:
    """What one trigger does to a model.

    Attributes:
        name: the trigger's.
        attack_success_rate: of the eligible samples (true class is not the attacker's), triggered: classified as the
            attacker's class. ``n_hit`` of ``n_eligible``.
        robust_accuracy: of the same samples: still given their true class.
    """

    name: str
    attack_success_rate: Rate
    robust_accuracy: Rate

    @property
    def n_eligible(self) -> int:
        return self.attack_success_rate.n_total

    @property
    def n_hit(self) -> int:
        return self.attack_success_rate.n_hit


@dataclass(frozen=True)
class Evaluation:
    """What a model does on clean and on triggered data.

    Attributes:
        clean_accuracy: over all samples.
        class_accuracy: for each class, in order; a class without samples has ``n_total`` 0.
        triggers: one result a trigger, in the order given.
        n_nan: logit rows with NaN, clean and triggered; they count as wrong.
    """

    clean_accuracy: Rate
    class_accuracy: tuple[Rate, ...]
    triggers: tuple[TriggerEvaluation, ...]
    n_nan: int = 0

    @property
    def worst_attack_success_rate(self) -> float | None:
        """The largest attack success rate; ``None`` without triggers or eligible samples."""
        return max(
            (t.attack_success_rate.value for t in self.triggers if t.attack_success_rate.value is not None),
            default=None,
        )

    def __str__(self) -> str:
        lines = [f"clean accuracy       {self.clean_accuracy}"]
        for t in self.triggers:
            lines.append(f"{t.name:<20} ASR {t.attack_success_rate}  RA {t.robust_accuracy}")
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
    """``(model(inputs).argmax(1) == labels).float().mean()``, and the same for every trigger, in one pass over the
    data.

    Logits' ties go to the first class. The model is used in eval mode and left as it was.

    Args:
        model: returns logits ``(B, C)``: a tensor, or an object or dict with ``logits``.
        data: as for ``seamfast.sanitize``; triggers need pixels: uint8 images, or floats with ``mean`` and ``std``
            (``seamfast.CleanSet``).
        triggers: stamped in pixel space, before normalisation.
        batch_size: samples a forward pass, 1 or more.
        seed: for triggers at random positions.
        device: ``"auto"`` is the model's own; another one takes a copy of the model there.
        progress: show a progress bar; ``None``: where stderr is a terminal.

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
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected an integer of at least 1")
    samples = as_clean_set(data)
    if not len(samples):
        raise InputError("data holds no samples; expected at least one")
    model, resident, num_classes = placed(model, samples, device)
    check_triggers(triggers, resident.samples, num_classes)
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(samples), desc="evaluate", unit="sample", disable=not shown, leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        counts = measure(
            model,
            resident,
            torch.arange(len(samples)),
            num_classes=num_classes,
            triggers=triggers,
            batch_size=batch_size,
            seed=seed,
            on_batch=advance,
        )
    return as_evaluation(counts)


def placed(model: nn.Module, samples: CleanSet, device: str | torch.device) -> tuple[nn.Module, Resident, int]:
    """The model, or a copy of it, on ``device``; the samples beside it, as it is called; how many classes it knows.

    Args:
        model: its logits may hold NaN.
        samples: at least one.
        device: ``"auto"`` is the model's own; another one takes a copy of the model there.
    """
    home = device_of(model)
    target = home if device == "auto" else resolve_device(device, model)
    if target != home:
        model = copy.deepcopy(model).to(target)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    resident = Resident(as_called(model, samples), target, dtype)
    return model, resident, probe_logits(model, resident, finite=False)


def as_called(model: nn.Module, samples: CleanSet) -> CleanSet:
    """The set with its inputs in the form in which ``model`` is called: by position or by keyword."""
    inputs = fit_to_call(model, samples.inputs)
    if inputs is samples.inputs:
        return samples
    if isinstance(samples, AugmentingSet):
        return samples.fitted(lambda inputs: fit_to_call(model, inputs))
    return CleanSet(inputs, samples.labels, num_classes=samples.num_classes, class_names=samples.class_names)


def probe_logits(model: nn.Module, data: Resident, *, finite: bool = True) -> int:
    """Number of classes, from one small forward pass; raises where logits or labels do not fit."""
    indices = torch.arange(min(len(data), 8), device=data.device)
    with evaluating(model):
        logits = logits_of(model, data.inputs(indices))
    check_logits(logits, len(indices), finite=finite)
    num_classes = logits.shape[1]
    largest = int(data.samples.labels.max())
    if largest >= num_classes:
        raise InputError(
            f"labels hold {largest}; expected integers in [0, {num_classes}) for the model's {num_classes} logits"
        )
    return num_classes


def check_triggers(triggers: Sequence[Trigger], samples: CleanSet, num_classes: int) -> None:
    """Raise where a trigger does not fit the images or the classes, before any work is done."""
    names = [t.name if isinstance(t, Trigger) else repr(t) for t in triggers]
    for trigger in triggers:
        if not isinstance(trigger, Trigger):
            raise InputError(f"triggers hold a {type(trigger).__name__}; expected seamfast.triggers.Trigger")
        trigger.target.check(num_classes)
        samples.pixels(torch.arange(1))  # raises where there are no pixels to stamp
        trigger.check_fits(samples.image_shape)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"trigger names {', '.join(doubled)} occur more than once; expected different names")


def as_evaluation(counts: Counts) -> Evaluation:
    """Counts as rates with their intervals."""
    return Evaluation(
        clean_accuracy=Rate(counts.n_correct, counts.n_samples),
        class_accuracy=tuple(Rate(k, n) for k, n in zip(counts.class_correct, counts.class_total, strict=True)),
        triggers=tuple(
            TriggerEvaluation(t.name, Rate(t.n_hit, t.n_eligible), Rate(t.n_restored, t.n_eligible))
            for t in counts.triggers
        ),
        n_nan=counts.n_nan,
    )
