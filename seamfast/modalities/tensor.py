"""``TensorModality``: samples of unknown meaning, in one tensor or in several named ones."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from seamfast.errors import InputError
from seamfast.modalities.base import Modality, StepDraws, Views, ViewSettings
from seamfast.modalities.batch import Batch, named_tensors
from seamfast.modalities.mixing import mixed

_EXPECTED = {
    "crop_pad": "expected 0, as only images can be cropped: their shape is (N, C, H, W)",
    "flip": "expected False, as only images can be flipped: their shape is (N, C, H, W)",
}


class TensorModality(Modality):
    """Tensors as the model takes them: gathered by index; floats in one tensor can be mixed.

    Args:
        inputs: the samples.
    """

    name: ClassVar[str] = "tensor"

    def __init__(self, inputs: Batch) -> None:
        self._shapes = ", ".join(
            f"{name} ({', '.join(['N', *map(str, value.shape[1:])])})" for name, value in named_tensors(inputs).items()
        )
        self.settings = ("mixing",) if isinstance(inputs, Tensor) and inputs.is_floating_point() else ()

    def views(self, inputs: Batch, labels: Tensor, settings: ViewSettings, draws: StepDraws) -> Views:
        if settings.mixing and isinstance(inputs, Tensor) and self.settings:
            return mixed(inputs, labels, settings.mixing, draws)
        return Views(inputs, inputs)

    def why_not(self, setting: str, value: Any) -> str | None:
        return _EXPECTED.get(setting) or super().why_not(setting, value)

    def not_stampable(self) -> InputError:
        return InputError(f"triggers are stamped on images of shape (N, C, H, W); the inputs are {self._shapes}")
