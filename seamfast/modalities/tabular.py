"""``TabularModality``: rows of columns, of floats and of categories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from seamfast.errors import InputError, ShapeError
from seamfast.modalities.base import Modality, Perturbation, Stamper, StepDraws, Views, ViewSettings
from seamfast.modalities.batch import Batch, map_tensors, named_tensors
from seamfast.modalities.columns import Categories, Columns, Floats, chosen, shared
from seamfast.triggers.base import Trigger
from seamfast.triggers.tabular.base import TabularTrigger, changed
from seamfast.triggers.tabular.battery import tabular_battery

_CATEGORY_DTYPES = (torch.int64, torch.int32)
MOST_COLUMNS = 0.25
NOISE = 1.0
OFFSET = 2.0


def is_tabular(inputs: Batch) -> bool:
    """Whether ``inputs`` are columns: ``(N, F)`` floats, or several such tensors, some of which may be categories."""
    tensors = named_tensors(inputs)
    return (
        all(
            value.ndim == 2 and value.shape[1] and (value.is_floating_point() or value.dtype in _CATEGORY_DTYPES)
            for value in tensors.values()
        )
        and any(value.is_floating_point() for value in tensors.values())
        and "input_ids" not in tensors
    )


class TabularModality(Modality):
    """Rows of columns: ``(N, F)`` floats, or several such tensors by name; columns of integers are categories.

    Triggers are stamped on the samples as they are stored.

    Args:
        inputs: the samples.
        fitted: the observed values of each tensor, by name; see ``fitted``.
    """

    name: ClassVar[str] = "tabular"
    stores_stampable = True
    settings = ("mixing", "occlusions", "disturbance")

    def __init__(self, inputs: Batch, fitted: Mapping[str, Columns] | None = None) -> None:
        self._are_floats = {
            name: (value.shape[1], value.is_floating_point()) for name, value in named_tensors(inputs).items()
        }
        self._inputs_given = inputs
        self._fitted = fitted

    @property
    def n_columns(self) -> int:
        return sum(n for n, _ in self._are_floats.values())

    def fitted(self, inputs: Batch, device: torch.device) -> TabularModality:
        tensors = named_tensors(inputs)
        if not len(next(iter(tensors.values()))):
            return self
        return TabularModality(
            inputs,
            {
                name: Floats.of(v, device) if v.is_floating_point() else Categories.of(v, device)
                for name, v in tensors.items()
            },
        )

    def views(self, inputs: Batch, labels: Tensor, settings: ViewSettings, draws: StepDraws) -> Views:
        tensors, generator = named_tensors(inputs), draws.generator
        first = next(iter(tensors.values()))
        n, device = len(first), first.device
        labels_mixed = weight = None
        if settings.mixing:
            weight = torch.rand(n, generator=generator, device=device)
            whole = torch.rand(n, generator=generator, device=device) >= settings.mixing * draws.changed
            weight = torch.where(whole, 1.0, weight)
            partner = torch.rand(n, generator=generator, device=device).argsort()
            labels_mixed = labels[partner]
            tensors = {k: _mixed(v, partner, weight, generator) for k, v in tensors.items()}
        student = teacher = tensors
        if self._fitted is None:
            return self._views(inputs, student, teacher, labels_mixed, weight)
        if settings.disturbance:
            share = settings.disturbance * draws.disturbed * draws.changed
            student = {
                k: self._disturbed(self._fitted[k], v, share, generator) if v.is_floating_point() else v
                for k, v in student.items()
            }
        if settings.occlusions:
            most = max(settings.occlusions, math.ceil(MOST_COLUMNS * self.n_columns))
            mask = chosen(n, self.n_columns, min(most, self.n_columns), generator, device)
            rows = shared(n, generator, device)
            mask = mask[rows] & (draws.changed > 0)
            seen, blanked, begin = {}, {}, 0
            for k, v in student.items():
                part = mask[:, begin : begin + v.shape[1]]
                begin += v.shape[1]
                seen[k] = torch.where(part, self._fitted[k].drawn(tensors[k], generator)[rows], v)
                blanked[k] = torch.where(part, self._fitted[k].blank, tensors[k])
            student, teacher = seen, blanked
        return self._views(inputs, student, teacher, labels_mixed, weight)

    @staticmethod
    def _disturbed(columns: Any, v: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
        n, f = v.shape
        draw = torch.rand(4, n, 1, generator=generator, device=v.device)
        noise = torch.randn(n, f, generator=generator, device=v.device)
        out = v + (draw[0] < share) * draw[1] * NOISE * noise * columns.std
        some = chosen(n, f, max(1, f // 4), generator, v.device)
        offs = OFFSET * columns.std * (2 * torch.rand(n, f, generator=generator, device=v.device) - 1)
        rows = shared(n, generator, v.device)
        return out + ((some * offs)[rows] * (draw[2] < share)).to(v.dtype)

    @staticmethod
    def _views(inputs, student, teacher, labels_mixed, weight):
        if not isinstance(inputs, dict):
            student, teacher = student["inputs"], teacher["inputs"]
        return Views(student, teacher, labels_mixed, weight)

    def stampable(self, inputs: Batch, indices: Tensor) -> Batch:
        return map_tensors(lambda value: value[indices.to(value.device)], inputs)

    def model_inputs(self, samples: Batch, dtype: torch.dtype) -> Batch:
        return map_tensors(lambda v: v.to(dtype) if v.is_floating_point() else v, samples)

    def stamper(self, triggers: Sequence[Trigger], device: torch.device) -> Stamper:
        rows = [t.affine(self.n_columns) for t in triggers if isinstance(t, TabularTrigger)]
        ones = torch.ones(1, self.n_columns, dtype=torch.float64)
        factor = torch.cat([*(row[0][None] for row in rows), ones]).to(device)
        offset = torch.cat([*(row[1][None] for row in rows), 0 * ones]).to(device)

        def stamp(inputs: Batch, indices: Tensor, trigger_ids: Tensor, seed: int) -> Batch:
            return changed(self.stampable(inputs, indices), factor[trigger_ids], offset[trigger_ids])

        return stamp

    def check_trigger(self, trigger: Trigger) -> None:
        if not isinstance(trigger, TabularTrigger):
            raise InputError(
                f"trigger {trigger.name!r} is a {type(trigger).__name__}; expected a trigger of tabular samples"
            )
        trigger.check_columns([is_float for n, is_float in self._are_floats.values() for _ in range(n)])


def _mixed(value: Tensor, partner: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
    w = weight[:, None]
    if value.is_floating_point():
        w = w.to(value.dtype)
        return w * value + (1 - w) * value[partner]
    draw = torch.rand(value.shape, generator=generator, device=value.device)
    return torch.where(draw < w, value, value[partner])
