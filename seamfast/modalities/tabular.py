"""``TabularModality``: rows of columns, of floats and of categories."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from seamfast.errors import InputError, ShapeError
from seamfast.modalities.base import OF_IMAGES, Modality, Perturbation, Stamper, StepDraws, Views, ViewSettings
from seamfast.modalities.batch import Batch, map_tensors, named_tensors
from seamfast.modalities.columns import Categories, Columns, Floats, chosen, shared
from seamfast.triggers.base import Trigger
from seamfast.triggers.tabular.base import TabularTrigger, changed
from seamfast.triggers.tabular.battery import tabular_battery
from seamfast.triggers.tabular.columns import FeatureOverwrite

_CATEGORIES = (torch.int64, torch.int32)
_DRAWN = 2
"""Columns of a drawn trigger."""
_MOST_OVERWRITTEN = 0.15
"""Share of the columns of each tensor, where that is more than ``ViewSettings.occlusions``."""


def is_tabular(inputs: Batch) -> bool:
    """Whether ``inputs`` are columns: ``(N, F)`` floats, or several such tensors, others of which may be integers."""
    tensors = named_tensors(inputs)
    are_columns = all(
        value.ndim == 2 and value.shape[1] and (value.is_floating_point() or value.dtype in _CATEGORIES)
        for value in tensors.values()
    )
    has_floats = any(value.is_floating_point() for value in tensors.values())
    return are_columns and has_floats and "input_ids" not in tensors


_OF_IMAGES_OFF: dict[str, Any] = {"invariances": False, "waves": 0.0}


class TabularModality(Modality):
    """Rows of columns: ``(N, F)`` floats, or several such tensors by name; columns of integers are categories.

    Triggers are stamped on the samples as they are stored.

    Args:
        inputs: the samples; what is kept of them is names, widths and dtypes.
        observed: the values of each tensor, by name; see ``fitted``.
    """

    name: ClassVar[str] = "tabular"
    studied = True
    remains = "up to half of what was triggered, most with two categories as the trigger, or in 20 columns of floats"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Steps are short, and accuracy comes back slowly where each column counts.
        "fast": _OF_IMAGES_OFF | {"recover_max_steps": 300, "recover_easy_steps": 60},
        "balanced": _OF_IMAGES_OFF | {"recover_max_steps": 900, "recover_easy_steps": 180},
        "thorough": _OF_IMAGES_OFF | {"recover_max_steps": 1800, "recover_easy_steps": 360},
    }
    settings = ("mixing", "occlusions", "disturbance")
    stores_stampable = True

    def __init__(self, inputs: Batch, observed: Mapping[str, Columns] | None = None) -> None:
        self._layout = {name: (v.shape[1], v.is_floating_point()) for name, v in named_tensors(inputs).items()}
        self._n_columns = sum(n for n, _ in self._layout.values())
        self._observed = observed

    def check_inputs(self, inputs: Batch) -> None:
        layout = {name: (v.shape[1:], v.is_floating_point()) for name, v in named_tensors(inputs).items()}
        if layout != {name: ((n,), is_float) for name, (n, is_float) in self._layout.items()}:
            wanted = ", ".join(
                f"{name} (N, {n}) of {'floats' if is_float else 'integers'}"
                for name, (n, is_float) in self._layout.items()
            )
            raise ShapeError(f"the inputs are not {wanted}, as the modality is")

    def fitted(self, inputs: Batch, device: torch.device) -> TabularModality:
        """With the ends, mean and spread of each column of floats, and the categories that occur."""
        tensors = named_tensors(inputs)
        if not len(next(iter(tensors.values()))):
            return self
        kinds = {name: Floats if is_float else Categories for name, (_, is_float) in self._layout.items()}
        return TabularModality(inputs, {name: kinds[name].of(value, device) for name, value in tensors.items()})

    def views(self, inputs: Batch, labels: Tensor, settings: ViewSettings, draws: StepDraws) -> Views:
        """Student: columns are overwritten, the row is disturbed. Teacher: the column's mean, or its most frequent
        category, in place of what was overwritten."""
        tensors, generator = dict(named_tensors(inputs)), draws.generator
        first = next(iter(tensors.values()))
        n, device = len(first), first.device
        partner = weight = None
        if settings.mixing:
            weight = torch.rand(n, generator=generator, device=device)
            whole = torch.rand(n, generator=generator, device=device) >= settings.mixing * draws.changed
            weight = torch.where(whole, 1.0, weight)
            partner = torch.rand(n, generator=generator, device=device).argsort()
            for name, value in tensors.items():
                tensors[name] = _mixed(value, value[partner], weight[:, None], generator)
        student, teacher = dict(tensors), tensors
        if self._observed is not None:
            if settings.disturbance:
                share = settings.disturbance * draws.disturbed * draws.changed
                for name, value in student.items():
                    student[name] = self._observed[name].disturbed(value, generator, share)
            if settings.occlusions:
                rows = shared(n, generator, device)
                for name, value in tensors.items():
                    size, observed = value.shape[1], self._observed[name]
                    most = min(max(settings.occlusions, math.ceil(_MOST_OVERWRITTEN * size)), size)
                    part = chosen(n, size, most, generator, device)[rows] & (draws.changed > 0)
                    student[name] = torch.where(part, observed.drawn(value, generator)[rows], student[name])
                    teacher[name] = torch.where(part, observed.blank, value)
        is_one = not isinstance(inputs, dict)
        return Views(
            student["inputs"] if is_one else student,
            teacher["inputs"] if is_one else teacher,
            None if partner is None else labels[partner],
            weight,
        )

    def why_not(self, setting: str, value: Any) -> str | None:
        return OF_IMAGES.get(setting) or super().why_not(setting, value)

    def stampable(self, inputs: Batch, indices: Tensor) -> Batch:
        return map_tensors(lambda value: value[indices.to(value.device)], inputs)

    def model_inputs(self, samples: Batch, dtype: torch.dtype) -> Batch:
        return map_tensors(lambda value: value.to(dtype) if value.is_floating_point() else value, samples)

    def stamper(self, triggers: Sequence[Trigger], device: torch.device) -> Stamper:
        """All triggers at once: each is a factor and an offset for every column."""
        rows = [(torch.ones(self._n_columns).double(), torch.zeros(self._n_columns).double())]
        for trigger in reversed(triggers):  # the row of no trigger, -1, is the last
            assert isinstance(trigger, TabularTrigger)
            rows.insert(0, trigger.affine(self._n_columns))
        factor, offset = (torch.stack(parts).to(device) for parts in zip(*rows, strict=True))

        def stamp(inputs: Batch, indices: Tensor, trigger_ids: Tensor, seed: int) -> Batch:
            return changed(self.stampable(inputs, indices), factor[trigger_ids], offset[trigger_ids])

        return stamp

    def check_trigger(self, trigger: Trigger) -> None:
        if not isinstance(trigger, TabularTrigger):
            raise InputError(f"trigger {trigger.name!r} is a {type(trigger).__name__}; expected a trigger of columns")
        trigger.check_columns([is_float for n, is_float in self._layout.values() for _ in range(n)])

    def battery(self, num_classes: int) -> tuple[Trigger, ...]:
        """``tabular_battery`` of the observed columns."""
        return () if self._observed is None else tabular_battery(*self._ends(self._observed), num_classes)

    def drawn_trigger(self, inputs: Batch, target: int, seed: int) -> FeatureOverwrite:
        """Two columns of those that vary, set to the end that is further from the mean or from the most frequent."""
        observed = self.fitted(inputs, torch.device("cpu"))._observed
        if observed is None:
            raise InputError("inputs hold no samples; expected at least one to draw a trigger from")
        lowest, highest = (torch.tensor(end, dtype=torch.float64) for end in self._ends(observed))
        usual = torch.cat([columns.blank.flatten().double() for columns in observed.values()])
        end = torch.where(highest - usual >= usual - lowest, highest, lowest)
        order = torch.randperm(self._n_columns, generator=torch.Generator().manual_seed(seed))
        columns = order[(end == usual)[order].byte().argsort(stable=True)][:_DRAWN]
        values = dict(zip(columns.tolist(), end[columns].tolist(), strict=True))
        return FeatureOverwrite.of(values, target, name="drawn-columns")

    def _ends(self, observed: Mapping[str, Columns]) -> tuple[list[float], list[float]]:
        """The lowest and the highest value of each column."""
        ends: tuple[list[float], list[float]] = ([], [])
        for columns in observed.values():
            if isinstance(columns, Floats):
                both = columns.lowest, columns.highest
            else:
                both = columns.table[:, 0], columns.table[:, -1]
            for values, found in zip(ends, both, strict=True):
                values.extend(found.tolist())
        return ends

    def perturbations(self) -> Mapping[str, Perturbation]:
        """Up to three columns with other values, and noise; none of categories in the latter."""
        return {} if self._observed is None else {"values": self._with_values, "noise": self._with_noise}

    def _with_values(self, samples: Batch, sample_ids: Tensor, generator: torch.Generator, seed: int) -> Batch:
        n, device = len(sample_ids), sample_ids.device
        where = chosen(n, self._n_columns, min(3, self._n_columns), generator, device)
        parts = dict(zip(self._layout, torch.split(where, [size for size, _ in self._layout.values()], 1), strict=True))

        def overwritten(observed: Columns, name: str, value: Tensor) -> Tensor:
            return torch.where(parts[name], observed.drawn(value, generator), value)

        return self._each(overwritten, samples)

    def _with_noise(self, samples: Batch, sample_ids: Tensor, generator: torch.Generator, seed: int) -> Batch:
        one = torch.ones((), device=sample_ids.device)
        return self._each(lambda observed, name, value: observed.disturbed(value, generator, one), samples)

    def _each(self, function: Callable[[Columns, str, Tensor], Tensor], samples: Batch) -> Batch:
        assert self._observed is not None
        results = {name: function(self._observed[name], name, v) for name, v in named_tensors(samples).items()}
        return results if isinstance(samples, dict) else results["inputs"]


def _mixed(value: Tensor, other: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Floats in proportion; of categories, as large a share of the columns."""
    if value.is_floating_point():
        return torch.lerp(other, value, weight.to(value.dtype))
    drawn = torch.rand(value.shape, generator=generator, device=value.device)
    return torch.where(drawn < weight, value, other)
