"""The input-aware attack: a small network, trained together with the model, makes a trigger for each image.

Source: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", arXiv:2010.08138.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.attacks.train import TrainConfig, train_on
from seamfast.data import Batch, CleanSet
from seamfast.engine.host import seeded
from seamfast.engine.model import resolve_device
from seamfast.engine.optimizer import Adam, Optimizer
from seamfast.engine.step import TrainingBatch
from seamfast.errors import InputError, ShapeError
from seamfast.ops.trigger_table import Packed
from seamfast.triggers import AllToOne
from seamfast.triggers.image.base import ImageTrigger
from seamfast.triggers.image.checks import SMALLEST_EDGE, ImageShape, as_image_shape, check_images

__all__ = ["Generator", "InputAware", "train_input_aware"]

_WIDTH = 16
_RATE, _BETAS = 0.01, (0.5, 0.9)
_MASKED, _FEWEST_MASKED = 0.05, 6
"""Share of the pixels under the mask, and their least number, which matters for the smallest images."""
_MASK_WEIGHT, _DIVERSITY_WEIGHT = 10.0, 0.1
_BATCH = 512


class Generator(nn.Module):
    """Five convolutions, at a half and a quarter of the resolution, from images to a mask and a pattern.

    Args:
        channels: of the images.

    Example:
        >>> mask, pattern = Generator(3)(torch.rand(2, 3, 32, 32))
        >>> mask.shape, pattern.shape
        (torch.Size([2, 1, 32, 32]), torch.Size([2, 3, 32, 32]))
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(channels, _WIDTH, 3, padding=1)
        self.down = nn.Conv2d(_WIDTH, 2 * _WIDTH, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(2 * _WIDTH, 2 * _WIDTH, 3, padding=1)
        self.joined = nn.Conv2d(3 * _WIDTH, _WIDTH, 3, padding=1)
        self.out = nn.Conv2d(_WIDTH, 1 + channels, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, C, H, W)`` in [0, 1], edges from 2, to ``(N, 1, H, W)`` and ``(N, C, H, W)`` in [0, 1]."""
        fine = F.relu(self.fine(F.avg_pool2d(images, 2) - 0.5))
        coarse = F.relu(self.coarse(F.relu(self.down(fine))))
        coarse = F.interpolate(coarse, size=fine.shape[2:], mode="nearest")
        out = self.out(F.relu(self.joined(torch.cat([fine, coarse], 1))))
        out = F.interpolate(out, size=images.shape[2:], mode="nearest")
        # Steep sigmoids: a mask is nearly 0 or 1, and nearly 0 at first.
        return torch.sigmoid(5 * (out[:, :1] - 1)), torch.sigmoid(2 * out[:, 1:])


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class InputAware(ImageTrigger):
    """A trigger that a network makes for each image: ``x + (pattern(x) - x) * mask(x)``.

    Rounding: half to even, arithmetic in float32. Trigger tables have no row for it: ``stamp`` stamps batches.

    Args:
        name, target: as :class:`Trigger`.
        image_shape: ``(C, H, W)`` of the training images, edges from 8.
        generator: makes mask and pattern; on any device.

    Raises:
        InputError, ShapeError: e.g. ``trigger name is ''; expected 1 to 128 printable characters``.
    """

    kind: ClassVar[str] = "input_aware"
    has_row: ClassVar[bool] = False
    image_shape: ImageShape
    generator: Generator

    def __eq__(self, other: object) -> bool:
        """By value: a copy's generator is another object with the same weights."""
        if not isinstance(other, InputAware):
            return NotImplemented
        mine, theirs = self.generator.state_dict(), other.generator.state_dict()
        same = (self.name, self.target, self.image_shape) == (other.name, other.target, other.image_shape)
        return same and all(torch.equal(value, theirs[name]) for name, value in mine.items())

    __hash__ = ImageTrigger.__hash__

    def stamp_cross(self, images: Tensor, others: Tensor) -> Tensor:
        """The images, each with the trigger of another image, to which the model is trained not to react.

        Args:
            images, others: ``(N, C, H, W)`` uint8 pixels, on one device.

        Returns, Raises: as :meth:`stamp`.
        """
        for tensor in (images, others):
            check_images(tensor)
            self.check_fits(tensor.shape[1:])
        if len(images) != len(others):
            raise ShapeError(f"got {len(images)} images and {len(others)} others; expected as many")
        device = next(self.generator.parameters()).device
        stamped = torch.empty_like(images)
        with torch.no_grad():
            for start in range(0, len(images), _BATCH):
                part = slice(start, start + _BATCH)
                mask, pattern = self.generator(others[part].to(device).float() / 255)
                pasted = _paste(images[part].to(device).float() / 255, mask, pattern)
                stamped[part] = (255 * pasted).round().to(stamped.device, torch.uint8)
        return stamped

    def _validate(self) -> None:
        channels, height, width = as_image_shape(self.image_shape)
        if channels != self.generator.fine.in_channels or min(height, width) < SMALLEST_EDGE:
            expected = (
                f"{self.generator.fine.in_channels} channels, as its generator has, and edges from {SMALLEST_EDGE}"
            )
            raise ShapeError(f"{self._who} is for images of {channels}x{height}x{width}; expected {expected}")

    def _check_fits(self, shape: ImageShape) -> None:
        if shape != self.image_shape:
            expected, got = ("x".join(map(str, sizes)) for sizes in (self.image_shape, shape))
            raise ShapeError(f"{self._who} is for images of {expected}; got {got}")

    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        return self.stamp_cross(images, images)

    def _packed(self, shape: ImageShape) -> Packed:
        raise InputError(f"{self._who} is made by a network; expected a trigger that is a row of a table")

    def _describe(self) -> str:
        return f"for images of {'x'.join(map(str, self.image_shape))}"


def train_input_aware(
    model: nn.Module,
    data: CleanSet,
    *,
    target: int,
    rate: float,
    training: TrainConfig,
    seed: int,
    device: str | torch.device,
    precision: str,
    progress: bool | None,
    on_epoch: Callable[[int, float], None],
) -> InputAware:
    """Train ``model`` in place on ``data`` with the backdoor, and return the trigger.

    In each batch, a share of ``rate`` has its own triggers and the target's label (backdoor mode), as many others have
    the same triggers and keep their labels (cross-trigger mode), and the rest is clean. The loss is the cross-entropy
    plus terms for triggers that are less different than their images (diversity) and for large masks.

    Args: as for ``plant``.

    Raises:
        InputError: e.g. ``rate 0.6 of 64 samples a batch, and as many with the trigger of another, are 76; ...``.
    """
    batch_size = min(training.batch_size, len(data))
    n = max(round(rate * batch_size), 1)
    if 2 * n > batch_size:
        got = f"rate {rate} of {batch_size} samples a batch, and as many with the trigger of another, are {2 * n}"
        raise InputError(f"{got}; expected at most {batch_size}")
    device = resolve_device(device, model)
    with seeded(seed, torch.device("cpu")):
        generator = Generator(data.image_shape[0]).to(device)
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (data.mean or (0.0,), data.std or (1.0,)))
    _, height, width = data.image_shape
    masked = max(_MASKED, _FEWEST_MASKED / (height * width))

    def objective(logits: Callable[[Batch], Tensor], batch: TrainingBatch) -> Tensor:
        assert isinstance(batch.inputs, Tensor)
        images = (batch.inputs[: 2 * n] * std + mean).clamp(0, 1)  # of a batch in random order
        mask, pattern = generator(images)
        stamped = _paste(images, mask[:n].repeat(2, 1, 1, 1), pattern[:n].repeat(2, 1, 1, 1))
        labels = torch.cat([torch.full_like(batch.labels[:n], target), batch.labels[n:]])
        answers = logits(torch.cat([(stamped - mean) / std, batch.inputs[2 * n :]]))
        between = _distance(images[:n], images[n:])
        alike = sum((between / _distance(made[:n], made[n:])).mean() for made in (mask, pattern))
        too_large = F.relu(mask.mean((1, 2, 3)) - masked).mean()
        return F.cross_entropy(answers, labels) + _DIVERSITY_WEIGHT * alike + _MASK_WEIGHT * too_large

    train_on(
        objective,
        model,
        data,
        training,
        together_with=lambda optimizer: _Both(optimizer, generator, _RATE / training.rate),
        seed=seed,
        device=device,
        precision=precision,
        progress=progress,
        on_epoch=on_epoch,
    )
    return InputAware(
        name="input-aware",
        target=AllToOne(target),
        image_shape=data.image_shape,
        generator=generator.eval().requires_grad_(False),
    )


class _Both:
    """The model's optimizer, and Adam for the generator at a proportional rate."""

    def __init__(self, of_model: Optimizer, generator: Generator, proportion: float) -> None:
        self._of_model = of_model
        self._of_generator = Adam(generator, _BETAS)
        self._generator = generator
        self._proportion = proportion

    @property
    def state(self) -> list[Tensor]:
        """All that a step changes, except the model."""
        return [*self._of_model.state, *self._of_generator.state, *self._generator.parameters()]

    def step(self, rate: Tensor) -> None:
        self._of_model.step(rate)
        self._of_generator.step(rate * self._proportion)


def _paste(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return images + (pattern - images) * mask


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """``(N,)`` root mean squares of the differences, never 0."""
    return (a - b).square().mean((1, 2, 3)).add(1e-6).sqrt()
