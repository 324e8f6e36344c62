"""What is examined: a model on its device, images that it can be shown, and its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.data import CleanSet
from seamfast.data.resident import Resident
from seamfast.engine.model import logits_of
from seamfast.engine.precision import Precision
from seamfast.errors import InputError
from seamfast.evaluate import placed
from seamfast.triggers.checks import as_integer

UNANSWERED = -1
"""The answer of a row of logits with NaN: no class."""


@dataclass(frozen=True)
class Subject:
    """A model and the images that it is shown.

    Attributes:
        model: on the device; the given one, or a copy if that lies elsewhere. Its mode is not changed.
        data: the samples, on the device.
        num_classes: as many as the model's logits.
    """

    model: nn.Module
    data: Resident
    num_classes: int

    @property
    def samples(self) -> CleanSet:
        return self.data.samples

    @property
    def device(self) -> torch.device:
        return self.data.device

    def inputs(self, pixels: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 pixels, or float ones in [0, 1], on the device, as the model takes them."""
        if pixels.dtype == torch.uint8:
            return self.samples.normalize(pixels, self.data.dtype)
        mean, std = (pixels.new_tensor(v).view(1, -1, 1, 1) for v in (self.samples.mean, self.samples.std))
        return ((pixels - mean) / std).to(self.data.dtype)

    def logits(self, inputs: Any) -> Tensor:
        """``(B, num_classes)`` floats of a batch as the model takes it."""
        with Precision().computing(self.device):
            return logits_of(self.model, inputs)

    def answers(self, inputs: Any) -> Tensor:
        """``answers_of`` the model's logits, ``(B,)`` int64."""
        return answers_of(self.logits(inputs))

    def pixels(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (int64, CPU): ``(B, C, H, W)`` uint8 on the device."""
        return self.samples.pixels(indices).to(self.device)


def answers_of(logits: Tensor) -> Tensor:
    """``logits.argmax(1)``, of equals the first; a row with NaN is ``UNANSWERED``."""
    return torch.where(logits.isnan().any(1), UNANSWERED, logits.argmax(1))


def subject(model: Any, data: Any, device: str | torch.device) -> Subject:
    """``model`` and ``data`` checked, and brought to ``device``; ``"auto"`` is the model's own.

    Raises:
        InputError, ModelError: e.g. ``data is a Tensor; expected a seamfast.CleanSet``.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(data, CleanSet):
        raise InputError(f"data is a {type(data).__name__}; expected a seamfast.CleanSet")
    if not len(data):
        raise InputError("data holds no samples; expected at least one")
    examined = Subject(*placed(model, data, device))
    examined.pixels(torch.arange(1))  # raises where there are no pixels to change
    return examined


def check_positive(name: str, value: Any) -> int:
    """``value`` as an int of at least 1: ``batch_size is 0; expected an integer of at least 1``."""
    number = as_integer(value)
    if number is None or number < 1:
        raise InputError(f"{name} is {value!r}; expected an integer of at least 1")
    return number


def check_seed(seed: Any) -> int:
    """``seed`` as an int in ``[0, 2**63)``."""
    number = as_integer(seed)
    if number is None or not 0 <= number < 2**63:
        raise InputError(f"seed is {seed!r}; expected an integer in [0, 2**63)")
    return number


def check_level(level: Any) -> float:
    """``level`` as a float in (0, 1)."""
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise InputError(f"level is {level!r}; expected a number in (0, 1)")
    return float(level)
