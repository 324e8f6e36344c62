"""``Modality``: the kind of a sample, such as image or plain tensor.

Every ``CleanSet`` has a modality. It defines the form in which samples are stored, in which triggers are stamped on
them, and in which the model takes them; no code above ``data`` depends on the content of a sample.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy.typing as npt
import torch
from torch import Tensor, nn

from seamfast.errors import InputError
from seamfast.modalities.batch import Batch, map_tensors, named_tensors
from seamfast.triggers.base import Trigger


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training samples, drawn by seed, sample and epoch.

    Attributes:
        pad: pixels of reflect-padding before a random crop; 0: no crop.
        flip: mirror left and right with probability 1/2.
        seed: of the draws, in ``[0, 2**63)``.
    """

    pad: int = 0
    flip: bool = False
    seed: int = 0

    @property
    def is_any(self) -> bool:
        """Whether samples are changed at all."""
        return bool(self.pad or self.flip)


NO_AUGMENTATION = Augmentation()
OF_IMAGES = {
    "crop_pad": "expected 0, as only images can be cropped: their shape is (N, C, H, W)",
    "flip": "expected False, as only images can be flipped: their shape is (N, C, H, W)",
}
"""What plain tensors and tables say of settings that only images can have."""


@dataclass(frozen=True)
class ViewSettings:
    """Changes that the views of a training step make to the samples.

    Attributes:
        mixing: share of the samples that are mixed with another one, in [0, 1].
        occlusions: number of patterns pasted over each sample, at least 0.
        disturbance: largest share of the samples that are disturbed as a whole, in [0, 1].
        waves: share of the samples that a plane wave is added to, in [0, 1].
    """

    mixing: float = 0.0
    occlusions: int = 0
    disturbance: float = 0.0
    waves: float = 0.0


@dataclass(frozen=True)
class StepDraws:
    """The sources of the random choices of one training step.

    Attributes:
        generator: on the device, seeded for the phase.
        seed, step: keys of counter-based draws; the step is a 0-d int64 tensor in a replayed step.
        changed: 0-d on the device: 1, or 0 to leave the samples unchanged.
        disturbed: 0-d on the device, in [0, 1]: factor on ``ViewSettings.disturbance``.
        found: what ``Modality.as_views_see`` made of the findings of a search; ``None``: nothing was found.
    """

    generator: torch.Generator
    seed: int
    step: int | Tensor
    changed: Tensor
    disturbed: Tensor
    found: Any = None


class Views(NamedTuple):
    """One batch for the student and its teacher.

    Attributes:
        student: the samples with patterns.
        teacher: the same samples with blanks in place of the patterns.
        mixed_labels, mixed_weight: ``(B,)`` int64 and float32, see ``seamfast.ops.true_label_cross_entropy``; ``None``
            if nothing is mixed.
    """

    student: Batch
    teacher: Batch
    mixed_labels: Tensor | None = None
    mixed_weight: Tensor | None = None


@dataclass(frozen=True)
class Adjustable:
    """Samples as floats that may change by small amounts, each within its range.

    Attributes:
        values: by name, ``(B, ...)`` floats.
        scale: by name, the size of one unit of each, which broadcasts with ``values``.
        lowest, highest: by name, the range.
        unit: what the scale is, in a few words.
        as_inputs: values as the model takes them; differentiable.
    """

    values: dict[str, Tensor]
    scale: dict[str, Tensor]
    lowest: dict[str, Tensor]
    highest: dict[str, Tensor]
    unit: str
    as_inputs: Callable[[dict[str, Tensor]], Batch]


OF_FEATURES = "standard deviation of the feature"
"""The unit of ``Adjustable`` samples other than images."""

Stamper = Callable[[Batch, Tensor, Tensor, int], Batch]
"""``stamper(inputs, indices, trigger_ids, seed)``: the samples at the indices, each with the trigger of its id, as the
model takes them."""

Perturbation = Callable[[Any, Tensor, torch.Generator, int], Any]
"""``perturbation(samples, sample_ids, generator, seed)``: stampable samples, changed without changing their class."""


class InvertedTriggers(Protocol):
    """One trigger for each of ``K`` classes, as parameters that a search optimizes."""

    parameters: list[nn.Parameter]

    def values(self) -> list[Tensor]:
        """The current triggers, detached: tensors of ``K`` rows."""

    def sizes(self, values: list[Tensor]) -> Tensor:
        """``(K,)`` size of each trigger, in [0, 1]."""

    def prepared(self, samples: Any) -> Tensor:
        """Stampable samples in the form for ``stamp``; indexed by sample."""

    def stamp(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """``N`` prepared samples with each trigger, ``K * N`` in order of trigger, and ``sizes``; differentiable."""

    def stamp_found(self, values: list[Tensor], row: int, samples: Any) -> Any:
        """``N`` stampable samples with one trigger of ``values``."""

    def found(self, values: list[Tensor], row: int) -> tuple[Tensor, Tensor]:
        """Mask and pattern of one trigger, on the CPU."""


class Modality(ABC):
    """The kind of a sample: how samples are gathered, viewed, stamped, perturbed and drawn.

    The default methods suit samples of unknown meaning; subclasses override them. ``inputs`` are samples as the set
    stores them; *stampable* samples are in the form on which triggers are stamped: uint8 pixels for images.

    Attributes:
        name: in reports.
        mean, std: normalization of the stored numbers, if known.
        stores_stampable: whether samples are stored in stampable form.
        studied: whether a study measured what the cure leaves of backdoors in such samples; where none did, the report
            says so beside the verdict.
        remains: what the study found too much left of; the report says it beside the verdict. ``None``: nothing.
        settings: supported settings of methods, of ``crop_pad``, ``flip``, ``invariances``, ``mixing``, ``occlusions``,
            ``disturbance``, ``waves`` and ``searches``.
        presets: changes of the presets of ``seam`` for such samples, by the name of the preset.
    """

    name: ClassVar[str]
    studied: ClassVar[bool] = False
    remains: ClassVar[str | None] = None
    settings: tuple[str, ...] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stores_stampable: bool = False

    def check_inputs(self, inputs: Batch) -> None:  # noqa: B027 - accepts any inputs by default
        """Raise if ``inputs`` are not samples of this kind."""

    def for_model(self, model: nn.Module, inputs: Batch) -> Modality:
        """This modality with the properties of the model that it depends on, such as the rows of an embedding."""
        return self

    def joined(self, first: Batch, second: Batch) -> Batch:
        """The samples of ``first``, then those of ``second``."""
        others = named_tensors(second)
        joined = {name: torch.cat([value, others[name]]) for name, value in named_tensors(first).items()}
        return joined if isinstance(first, dict) else joined["inputs"]

    def called(self, model: nn.Module, inputs: Batch, parameters: Mapping[str, Any]) -> Batch:
        """Inputs as ``forward``, which has these parameters, takes them."""
        return inputs

    def lengths(self, inputs: Batch) -> Tensor | None:
        """``(N,)`` int64: batches of samples of about one length are faster; ``None``: all have the same."""
        return None

    def fitted(self, inputs: Batch, device: torch.device) -> Modality:
        """This modality with the properties of all ``inputs`` that its views use, such as their range."""
        return self

    def gather(self, inputs: Batch, indices: Tensor, augmentation: Augmentation, epoch: int | Tensor) -> Batch:
        """The samples at ``indices`` (int64, on the device of ``inputs``), as the model takes them."""
        return map_tensors(lambda value: value[indices], inputs)

    def augmentations(self, seed: int) -> tuple[Augmentation, ...]:
        """Single changes that the labels of many tasks do not depend on, for a model to be tried with."""
        return ()

    def views(self, inputs: Batch, labels: Tensor, settings: ViewSettings, draws: StepDraws) -> Views:
        """The views of the student and its teacher of a gathered batch, without a sync."""
        return Views(inputs, inputs)

    def why_not(self, setting: str, value: Any) -> str | None:
        """Why a setting cannot have this value, as ``expected ...``, or ``None`` if it can."""
        return None if setting in self.settings else f"expected none for samples of kind {self.name!r}"

    def not_stampable(self) -> InputError:
        """The error of methods that need stampable samples."""
        return InputError(f"samples of kind {self.name!r} cannot be stamped, searched for triggers or drawn")

    def stampable(self, inputs: Batch, indices: Tensor) -> Any:
        """The samples at ``indices`` in stampable form."""
        raise self.not_stampable()

    def model_inputs(self, samples: Any, dtype: torch.dtype) -> Batch:
        """Stampable samples on the device, as the model takes them."""
        raise self.not_stampable()

    def inputs_like(self, samples: Any, like: Batch, dtype: torch.dtype, device: torch.device) -> Batch:
        """Stampable samples as the model takes the samples ``like``: under the same names, on ``device``."""
        return self.model_inputs(samples, dtype)

    def stamper(self, triggers: Sequence[Trigger], device: torch.device) -> Stamper:
        """The stamper of ``triggers`` on samples that are stored on ``device``."""
        raise self.not_stampable()

    def check_trigger(self, trigger: Trigger) -> None:
        """Raise if ``trigger`` cannot be stamped on such samples."""
        raise self.not_stampable()

    def battery(self, num_classes: int) -> tuple[Trigger, ...]:
        """Triggers of the known attack families."""
        return ()

    def drawn_trigger(self, inputs: Batch, target: int, seed: int) -> Trigger:
        """A trigger of such samples that no known attack has, drawn by ``seed``; ``inputs`` are samples to suit."""
        raise self.not_stampable()

    def perturbations(self) -> Mapping[str, Perturbation]:
        """Changes by name, for the comparison of two models."""
        return {}

    def adjustable(self, inputs: Batch, indices: Tensor, dtype: torch.dtype, device: torch.device) -> Adjustable | None:
        """The samples at ``indices`` (int64), which the model takes as ``dtype`` on ``device``; all floats among them
        may change, within the range of each feature in ``inputs``. ``None``: they hold no floats."""
        tensors = named_tensors(inputs)
        floats = {name: value.float() for name, value in tensors.items() if value.is_floating_point()}
        if not floats:
            return None
        chosen = {name: value[indices.to(value.device)].to(device) for name, value in tensors.items()}

        def as_inputs(values: dict[str, Tensor]) -> Batch:
            changed = chosen | {name: value.to(dtype) for name, value in values.items()}
            return changed if isinstance(inputs, dict) else changed["inputs"]

        return Adjustable(
            {name: chosen[name].float() for name in floats},
            {name: value.std(0, correction=0).to(device) for name, value in floats.items()},
            {name: value.amin(0).to(device) for name, value in floats.items()},
            {name: value.amax(0).to(device) for name, value in floats.items()},
            OF_FEATURES,
            as_inputs,
        )

    def inverted(self, n_classes: int, generator: torch.Generator, device: torch.device) -> InvertedTriggers:
        """Random initial triggers of a search, equal for all classes."""
        raise self.not_stampable()

    def preview(self, samples: Any) -> npt.NDArray[Any]:
        """Stampable samples as pictures: ``(N, H, W, C)`` uint8."""
        raise self.not_stampable()
