"""``Subject``: a model and its data on one device, as ``evaluate``, the audits and a run use them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.data import CleanSet
from seamfast.data.clean_set import check_clean_set
from seamfast.data.collected import LABEL_KEYS
from seamfast.data.rereading import AugmentingSet
from seamfast.data.resident import Resident
from seamfast.engine.model import check_logits, device_of, evaluating, logits_of, resolve_device
from seamfast.engine.precision import Precision
from seamfast.errors import InputError, ModelError
from seamfast.modalities import TabularModality, TensorModality
from seamfast.modalities.batch import Batch, fit_to_call, missing_arguments
from seamfast.triggers import Trigger

UNANSWERED = -1
"""The answer of a row of logits that has none: with NaN, and of ``finite_answers`` with Inf too."""


_DERIVED = (TensorModality, TabularModality)
"""Modalities that are made of the inputs alone, unlike one of the caller's."""


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    Attributes:
        model: on the device; a copy if the given one is on another device. Its mode is not changed.
        data: the samples, on the device.
        num_classes: the number of the model's logits.
    """

    model: nn.Module
    data: Resident
    num_classes: int

    @classmethod
    def of(cls, model: nn.Module, data: Resident, *, finite: bool = True) -> Subject:
        """With ``num_classes`` from one small forward pass; raises if logits or labels do not fit."""
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
        return cls(model, data, num_classes)

    @property
    def samples(self) -> CleanSet:
        return self.data.samples

    @property
    def device(self) -> torch.device:
        return self.data.device

    def inputs(self, stampable: Any) -> Batch:
        """Stampable samples on the device, in the form that the model takes."""
        return self.data.modality.inputs_like(stampable, self.samples.inputs, self.data.dtype, self.device)

    def logits(self, inputs: Batch) -> Tensor:
        """``(B, num_classes)`` floats of a batch."""
        with Precision().computing(self.device):
            return logits_of(self.model, inputs)

    def answers(self, inputs: Batch) -> Tensor:
        """``finite_answers`` of the model's logits, ``(B,)`` int64."""
        return finite_answers(self.logits(inputs))

    def returns_probabilities(self, indices: Tensor) -> bool:
        """Whether the outputs for the samples at ``indices`` (int64, CPU) look like those of a softmax."""
        with evaluating(self.model):
            outputs = logits_of(self.model, self.data.inputs(indices.to(self.device))).float()
        return bool((outputs >= 0).all() and torch.isclose(outputs.sum(1), outputs.new_ones(())).all())

    def check_triggers(self, triggers: Sequence[Trigger]) -> None:
        """Raise if a trigger does not fit the samples or the classes, or if two triggers have one name."""
        names = [t.name if isinstance(t, Trigger) else repr(t) for t in triggers]
        for trigger in triggers:
            if not isinstance(trigger, Trigger):
                raise InputError(f"triggers hold a {type(trigger).__name__}; expected seamfast.triggers.Trigger")
            trigger.target.check(self.num_classes)
            self.data.modality.check_trigger(trigger)
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise InputError(f"trigger names {', '.join(doubled)} occur more than once; expected different names")


def answers_of(logits: Tensor) -> Tensor:
    """``logits.argmax(1)``, the first of equal ones; a row with NaN is ``UNANSWERED``, as ``count_outcomes`` has it."""
    return torch.where(logits.isnan().any(1), UNANSWERED, logits.argmax(1))


def finite_answers(logits: Tensor) -> Tensor:
    """``logits.argmax(1)``, the first of equal ones; a row that is not finite is ``UNANSWERED``.

    What a caller makes of such a row is up to whoever chose its place: argmax gives the class of a NaN or of an Inf,
    softmax nothing but NaN.
    """
    return torch.where(logits.isfinite().all(1), logits.argmax(1), UNANSWERED)


def as_called(model: nn.Module, samples: CleanSet) -> CleanSet:
    """The set with its inputs as ``model`` takes them, by position or by keyword."""
    modality = samples.modality.for_model(model, samples.inputs)
    named = modality.called(model, samples.inputs, inspect.signature(model.forward).parameters)
    inputs = fit_to_call(model, named)
    _check_needs_no_labels(model, inputs)
    if inputs is samples.inputs and modality is samples.modality:
        return samples
    if isinstance(samples, AugmentingSet):
        return samples.fitted(lambda inputs: fit_to_call(model, inputs))
    description = samples.description | {"modality": modality}
    if isinstance(samples.modality, _DERIVED):
        description["modality"] = None
    return CleanSet(inputs, samples.labels, **description)


def _check_needs_no_labels(model: nn.Module, inputs: Batch) -> None:
    """Raise ``ModelError`` if ``forward`` cannot be called without labels."""
    name = next((name for name in missing_arguments(model, inputs) if name in LABEL_KEYS), None)
    if name is not None:
        raise ModelError(
            f"the model's forward needs {name!r}; expected one that returns logits of the inputs alone: give it a "
            f"default, {name}=None, with which no loss is computed, or wrap the model"
        )


def place(model: nn.Module, samples: CleanSet, device: str | torch.device) -> Subject:
    """The model and the samples on ``device``, in the model's dtype.

    Args:
        model: its logits may hold NaN.
        samples: at least one.
        device: ``"auto"`` is the model's own; for another one, the model is copied.

    Raises:
        InputError, ModelError: e.g. ``model is a dict; expected a torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    check_clean_set("data", samples)
    given = device_of(model)
    target = given if device == "auto" else resolve_device(device, model)
    if target != given:
        model = copy.deepcopy(model).to(target)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return Subject.of(model, Resident(as_called(model, samples), target, dtype), finite=False)
