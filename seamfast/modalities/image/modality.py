"""``ImageModality``: images of one shape, stored as uint8 pixels or as floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seamfast.errors import InputError, ShapeError
from seamfast.modalities.base import (
    Adjustable,
    Augmentation,
    Modality,
    Perturbation,
    Stamper,
    StepDraws,
    Views,
    ViewSettings,
)
from seamfast.modalities.batch import Batch
from seamfast.modalities.image.disturb import add_plane_waves, disturb
from seamfast.modalities.image.masks import MaskedPatterns
from seamfast.modalities.image.perturb import PERTURBATIONS
from seamfast.modalities.mixing import mixed
from seamfast.ops import TriggerTable, gather_augment, occlude, stamp_trigger
from seamfast.ops.augmented_images import augmented_images
from seamfast.ops.normalization import normalization
from seamfast.triggers.base import Trigger
from seamfast.triggers.image.base import ImageTrigger
from seamfast.triggers.image.battery import battery
from seamfast.triggers.image.checks import ImageShape
from seamfast.triggers.image.patch import Patch
from seamfast.triggers.label_maps import AllToOne

_SMALLEST_PATCH, _LARGEST_PATCH = 3, 5
"""Edges of a drawn patch, in pixels."""


class ImageModality(Modality):
    """Images ``(N, C, H, W)``.

    *Pixels*, uint8, are normalized as ``(pixels / 255 - mean) / std`` for the model. *Floats* are in the form that the
    model takes; with ``mean`` and ``std`` their pixels can be recovered, so that triggers can be stamped on them too.

    Args:
        shape: ``(C, H, W)``.
        is_pixels: whether they are stored as uint8.
        mean, std: one number per channel or one for all, in units of the ``[0, 1]`` pixel scale; known for pixels.
        value_range: ``(C,)`` lowest and highest input of each channel, as the model takes it; see ``fitted``.
    """

    name: ClassVar[str] = "image"
    studied = True
    settings = ("crop_pad", "flip", "invariances", "mixing", "occlusions", "disturbance", "waves")

    def __init__(
        self,
        shape: ImageShape,
        is_pixels: bool,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        value_range: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.shape = shape
        self.is_pixels = self.stores_stampable = is_pixels
        self.mean = mean
        self.std = std
        self._range = value_range

    def check_inputs(self, inputs: Batch) -> None:
        if (
            not isinstance(inputs, Tensor)
            or inputs.shape[1:] != self.shape
            or (self.is_pixels != (inputs.dtype == torch.uint8))
        ):
            kind = "uint8 pixels" if self.is_pixels else "floats"
            message = f"the inputs are not {kind} of shape (N, {', '.join(map(str, self.shape))}), as the modality is"
            raise ShapeError(message)

    def fitted(self, inputs: Batch, device: torch.device) -> ImageModality:
        """With the range of the inputs: that of all possible pixels, or that of the given floats."""
        assert isinstance(inputs, Tensor)
        if self.is_pixels:
            ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, self.shape[0], 1, 1)
            both = self.model_inputs(ends).flatten(1)
        elif len(inputs):
            both = torch.stack([inputs.amin((0, 2, 3)), inputs.amax((0, 2, 3))])
        else:
            return self
        lowest, highest = both.to(device)
        return ImageModality(self.shape, self.is_pixels, self.mean, self.std, (lowest, highest))

    def gather(self, inputs: Batch, indices: Tensor, augmentation: Augmentation, epoch: int | Tensor) -> Tensor:
        assert isinstance(inputs, Tensor)
        how: dict[str, Any] = {"pad": augmentation.pad, "flip": augmentation.flip, "seed": augmentation.seed}
        if not self.is_pixels:
            return augmented_images(inputs, indices, epoch=epoch, **how)
        mean, std = self._normalization()
        return gather_augment(inputs, indices, mean=mean, std=std, epoch=epoch, **how)

    def augmentations(self, seed: int) -> tuple[Augmentation, ...]:
        """Crops by a sixteenth of the shorter side, and flips."""
        pad = round(min(self.shape[1:]) / 16)
        crop = (Augmentation(pad=pad, seed=seed),) if pad else ()
        return *crop, Augmentation(flip=True, seed=seed)

    def views(self, inputs: Batch, labels: Tensor, settings: ViewSettings, draws: StepDraws) -> Views:
        """Student: patterns are pasted, images are disturbed, waves are added. Teacher: blanks in place of the
        patterns."""
        assert isinstance(inputs, Tensor)
        views = mixed(inputs, labels, settings.mixing, draws) if settings.mixing else Views(inputs, inputs)
        if self._range is None:
            return views
        lowest, highest = self._range
        images = views.student
        assert isinstance(images, Tensor)
        student = teacher = images
        if settings.occlusions:
            # Keyed by position in the batch, so that the copies of a repeated sample get different patterns.
            places = torch.arange(len(images), device=images.device)
            covered = occlude(
                images, lowest, highest, places, n_rectangles=settings.occlusions, seed=draws.seed, step=draws.step
            )
            student, teacher = (torch.where(draws.changed > 0, view, images) for view in covered)
        if settings.disturbance:
            share = settings.disturbance * draws.disturbed * draws.changed
            student = disturb(student, lowest, highest, draws.generator, share=share, most=settings.disturbance)
        if settings.waves:
            share = settings.waves * draws.changed
            student = add_plane_waves(student, lowest, highest, draws.generator, share=share, most=settings.waves)
        return views._replace(student=student, teacher=teacher)

    def why_not(self, setting: str, value: Any) -> str | None:
        if setting == "crop_pad" and value >= min(self.shape[1:]):
            return f"expected less than the image side {min(self.shape[1:])}"
        return super().why_not(setting, value)

    def stampable(self, inputs: Batch, indices: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 pixels: stored, or recovered from floats by ``mean`` and ``std``."""
        assert isinstance(inputs, Tensor)
        chosen = inputs[indices.to(inputs.device)]
        if self.is_pixels:
            return chosen
        return (self._unnormalized(chosen) * 255).round_().clamp_(0, 255).to(torch.uint8)

    def model_inputs(self, samples: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(pixels / 255 - mean) / std`` of uint8 pixels, bit-equal to ``gather_augment``; or of floats in [0, 1]."""
        mean, std = self._normalization()
        if samples.dtype != torch.uint8:
            means, stds = (samples.new_tensor(v).view(1, -1, 1, 1) for v in (mean, std))
            return ((samples - means) / stds).to(dtype)
        channels = samples.shape[1]
        table = normalization(mean, std, channels).table(torch.float32, samples.device)
        return table[torch.arange(channels, device=samples.device)[:, None, None], samples.long()].to(dtype)

    def stamper(self, triggers: Sequence[Trigger], device: torch.device) -> Stamper:
        """One kernel stamps all triggers with a row in the table; the others use their own ``stamp``."""
        in_table: list[ImageTrigger] = []
        others: dict[int, ImageTrigger] = {}
        numbers = []  # rows of the table; -1 is none
        for number, trigger in enumerate(triggers):
            assert isinstance(trigger, ImageTrigger)
            numbers.append(len(in_table) if trigger.has_row else -1)
            if trigger.has_row:
                in_table.append(trigger)
            else:
                others[number] = trigger
        table = TriggerTable.of(in_table, self.shape, device)
        row_of = torch.tensor([*numbers, -1], device=device)
        mean, std = self._normalization()

        def stamp(inputs: Batch, indices: Tensor, trigger_ids: Tensor, seed: int) -> Tensor:
            assert isinstance(inputs, Tensor)
            images, places = inputs, indices
            if not self.is_pixels:
                images, places = self.stampable(inputs, indices).to(device), torch.arange(len(indices), device=device)
            rows = row_of[trigger_ids] if others else trigger_ids
            batch = stamp_trigger(images, places, table, rows, mean=mean, std=std, sample_ids=indices, seed=seed)
            for number, trigger in others.items():
                at = (trigger_ids == number).nonzero().flatten()
                stamped = trigger.stamp(images[places[at]], sample_ids=indices[at], seed=seed)
                batch[at] = self.model_inputs(stamped, batch.dtype)
            return batch

        return stamp

    def check_trigger(self, trigger: Trigger) -> None:
        self._normalization()
        if not isinstance(trigger, ImageTrigger):
            raise InputError(f"trigger {trigger.name!r} is a {type(trigger).__name__}; expected a trigger of images")
        trigger.check_fits(self.shape)

    def battery(self, num_classes: int) -> tuple[Trigger, ...]:
        return battery(self.shape, num_classes)

    def drawn_trigger(self, inputs: Batch, target: int, seed: int) -> Patch:
        """A patch of random pixels, 3x3 to 5x5, at a random place."""
        channels, height, width = self.shape
        side = min(max(min(height, width) // 8, _SMALLEST_PATCH), _LARGEST_PATCH, height, width)
        generator = torch.Generator().manual_seed(seed)
        pattern = torch.randint(256, (channels, side, side), generator=generator, dtype=torch.uint8)
        row, column = (int(torch.randint(n - side + 1, (), generator=generator)) for n in (height, width))
        return Patch(
            name="drawn-patch",
            target=AllToOne(target),
            pattern=pattern.numpy(),
            mask=np.ones((side, side)),
            position=(row, column),
        )

    def perturbations(self) -> Mapping[str, Perturbation]:
        return PERTURBATIONS

    def adjustable(self, inputs: Batch, indices: Tensor, dtype: torch.dtype, device: torch.device) -> Adjustable | None:
        """Pixels in [0, 1], where the normalization is known: those of floats are recovered, and not rounded."""
        assert isinstance(inputs, Tensor)
        if self.mean is None or self.std is None:
            return super().adjustable(inputs, indices, dtype, device)
        chosen = inputs[indices.to(inputs.device)].to(device)
        pixels = chosen.float() / 255 if self.is_pixels else self._unnormalized(chosen).clamp(0, 1)
        one = torch.ones((), device=device)

        def as_inputs(values: dict[str, Tensor]) -> Tensor:
            return self.model_inputs(values["inputs"], dtype)

        return Adjustable({"inputs": pixels}, {"inputs": one}, {"inputs": 0 * one}, {"inputs": one}, "pixel", as_inputs)

    def inverted(self, n_classes: int, generator: torch.Generator, device: torch.device) -> MaskedPatterns:
        return MaskedPatterns(self.shape, n_classes, generator, device)

    def preview(self, samples: Tensor) -> npt.NDArray[np.uint8]:
        pictures: npt.NDArray[np.uint8] = samples.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return pictures

    def _unnormalized(self, images: Tensor) -> Tensor:
        """Float images as the model takes them, on the scale of [0, 1]."""
        mean, std = (images.new_tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in self._normalization())
        return images.float() * std + mean

    def _normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.mean is None or self.std is None:
            raise InputError(
                "triggers are stamped in pixel space, before normalization; the inputs are floats without a known "
                "normalization: pass seamfast.CleanSet(inputs, labels, mean=..., std=...), or a loader as "
                "seamfast.data.as_clean_set(loader, mean=..., std=...)"
            )
        return self.mean, self.std
