"""``TensorModality``: samples of unknown meaning, in one tensor or in several named ones."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from seamfast.errors import InputError
from seamfast.modalities.base import OF_IMAGES, Modality, StepDraws, Views, ViewSettings
from seamfast.modalities.batch import Batch, named_tensors
from seamfast.modalities.columns import Floats, chosen
from seamfast.modalities.mixing import mixed

_MOST_REPLACED = 0.5
"""Share of the features that are replaced by those of another sample."""


class TensorModality(Modality):
    """Tensors as the model takes them: gathered by index; floats in one tensor can be mixed and disturbed.

    Args:
        inputs: the samples.
        observed: the values of each feature, of floats in one tensor; see ``fitted``.
    """

    name: ClassVar[str] = "tensor"

    def __init__(self, inputs: Batch, observed: Floats | None = None) -> None:
        self._shapes = ", ".join(
            f"{name} ({', '.join(['N', *map(str, value.shape[1:])])})" for name, value in named_tensors(inputs).items()
        )
        is_one = isinstance(inputs, Tensor) and inputs.is_floating_point()
        self.settings = ("mixing", "disturbance") if is_one else ()
        self._observed = observed

    def fitted(self, inputs: Batch, device: torch.device) -> TensorModality:
        """With the spread of each feature of floats in one tensor."""
        if not isinstance(inputs, Tensor) or not self.settings or not inputs.numel():
            return self
        return TensorModality(inputs, Floats.of(inputs.flatten(1), device))

    def views(self, inputs: Batch, labels: Tensor, settings: ViewSettings, draws: StepDraws) -> Views:
        if not isinstance(inputs, Tensor) or not self.settings:
            return Views(inputs, inputs)
        views = mixed(inputs, labels, settings.mixing, draws) if settings.mixing else Views(inputs, inputs)
        if not settings.disturbance or self._observed is None:
            return views
        samples = views.student
        assert isinstance(samples, Tensor)
        share = settings.disturbance * draws.disturbed * draws.changed
        return views._replace(student=self._disturbed(samples.flatten(1), share, draws.generator).view_as(samples))

    def _disturbed(self, rows: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
        """Noise and offsets on a share of the rows; of another such share, up to half of the features are those of
        another row."""
        assert self._observed is not None
        n, n_features = rows.shape
        other = rows[torch.rand(n, generator=generator, device=rows.device).argsort()]
        which = chosen(n, n_features, max(math.ceil(_MOST_REPLACED * n_features), 1), generator, rows.device)
        which &= torch.rand(n, 1, generator=generator, device=rows.device) < share
        return torch.where(which, other, self._observed.disturbed(rows, generator, share))

    def why_not(self, setting: str, value: Any) -> str | None:
        return OF_IMAGES.get(setting) or super().why_not(setting, value)

    def not_stampable(self) -> InputError:
        return InputError(f"triggers are stamped on images of shape (N, C, H, W); the inputs are {self._shapes}")
