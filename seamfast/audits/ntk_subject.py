"""What the functions of ``seamfast.audits.ntk`` are given, checked and on one device."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.checks import as_count, check_in_range, dtype_name, short
from seamfast.data import CleanSet
from seamfast.data.collected import describe
from seamfast.data.resident import Resident
from seamfast.engine.model import device_of, resolve_device
from seamfast.engine.subject import as_called
from seamfast.engine.tangent import Outputs
from seamfast.engine.trainable import choose_trainable
from seamfast.errors import InputError
from seamfast.modalities.batch import Batch, fit_to_call, named_tensors, part_of, size_of, to_device

BATCH = 64


@dataclass(frozen=True)
class Differentiated:
    """A model, on its device, and what its Jacobian is of."""

    model: nn.Module
    names: frozenset[str]
    batch_size: int
    device: torch.device

    @classmethod
    def of(
        cls, model: Any, trainable: str | Sequence[str] | None, batch_size: Any, device: str | torch.device
    ) -> Differentiated:
        """Checked."""
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        batch_size = as_count("batch_size", batch_size)
        given = device_of(model)
        target = given if device == "auto" else resolve_device(device, model)
        names = choose_trainable(model, trainable).names
        is_short = _dtype_of(model).itemsize < torch.float32.itemsize
        if target != given or is_short:
            model = copy.deepcopy(model).to(target, torch.float32 if is_short else None)
        return cls(model, names, batch_size, target)

    def copied(self) -> Differentiated:
        """With a copy of the model."""
        return replace(self, model=copy.deepcopy(self.model))

    def outputs(self, name: str, inputs: Any, *, repeated: bool = False, checked: bool = True) -> Outputs:
        """Of samples in any form; see ``Outputs``."""
        found = Outputs(self.model, self.names, self._batches(name, inputs), repeated=repeated)
        if checked:
            found.check()
        return found

    def _batches(self, name: str, given: Any) -> list[Batch]:
        dtype = _dtype_of(self.model)
        if isinstance(given, CleanSet):
            resident = Resident(as_called(self.model, given), self.device, dtype)
            return [resident.inputs(chosen) for chosen in torch.split(torch.arange(len(given)), self.batch_size)]
        if not isinstance(given, (Tensor, Mapping)):
            raise InputError(
                f"{name} is a {type(given).__name__}; expected a tensor, a mapping of tensors, or a seamfast.CleanSet"
            )
        values = dict(given) if isinstance(given, Mapping) else given
        tensors = list(named_tensors(values).values())
        wrong = [value for value in tensors if not isinstance(value, Tensor) or not value.ndim]
        if wrong or len({len(value) for value in tensors}) != 1:
            raise InputError(f"{name} hold {short(given)}; expected tensors of one number of samples")
        if any(value.dtype == torch.uint8 for value in tensors):
            raise InputError(f"{name} are uint8; expected floats as the model takes them, or a seamfast.CleanSet")
        placed = fit_to_call(self.model, to_device(values, self.device, dtype))
        n = size_of(placed)
        if not n:
            raise InputError(f"{name} hold no samples; expected at least one")
        return [part_of(placed, first, first + self.batch_size) for first in range(0, n, self.batch_size)]


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def named_probes(model: nn.Module, probes: Any) -> dict[str, Any]:
    """Probes by name; one set of them is called ``"probes"``."""
    if isinstance(probes, Mapping) and not set(probes) & set(inspect.signature(model.forward).parameters):
        if not probes:
            raise InputError("probes are empty; expected at least one set of samples")
        return {str(name): one for name, one in probes.items()}
    return {"probes": probes}


def as_weights(name: str, value: Any, outputs: Outputs) -> Tensor:
    """``value``, ``(N, C)`` finite floats, in the dtype and on the device of the logits."""
    shape = tuple(outputs.values.shape)
    if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
        raise InputError(f"{name} is {described(value)}; expected floats of shape {shape}")
    _check_finite(name, value)
    return value.detach().to(outputs.values)


def as_targets(targets: Any, outputs: Outputs) -> Tensor:
    """``(N, C)`` float64 on the CPU: ``targets``, or of labels their centered one-hot rows."""
    n, num_classes = outputs.values.shape
    if isinstance(targets, Tensor) and are_integers(targets) and tuple(targets.shape) == (n,):
        check_in_range("targets", targets, num_classes)
        return F.one_hot(targets.long().cpu(), num_classes).double() - 1 / num_classes
    if not isinstance(targets, Tensor) or not targets.is_floating_point() or tuple(targets.shape) != (n, num_classes):
        raise InputError(
            f"targets is {described(targets)}; expected {n} integers in [0, {num_classes}), or floats of shape "
            f"{(n, num_classes)}"
        )
    _check_finite("targets", targets)
    return targets.detach().double().cpu()


def are_integers(values: Tensor) -> bool:
    """Whether ``values`` are integers, and no truth values."""
    return not values.is_floating_point() and not values.is_complex() and values.dtype != torch.bool


def _check_finite(name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"{name} holds NaN or Inf; expected finite numbers")


def described(value: Any) -> str:
    """Dtype and shape of a tensor, the type of anything else, for error messages."""
    return f"{dtype_name(value.dtype)} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else describe(value)
