"""The input-aware attack: a small network makes a trigger for each image, and is trained together with the model.

Source: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", arXiv:2010.08138.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from seamfast.triggers import AllToOne, LabelMap
from seamfast.triggers.builtin import SMALLEST_EDGE
from seamfast.triggers.checks import as_image_shape, as_sample_ids, as_seed, check_images, check_name

__all__ = ["Generator", "InputAware", "train_input_aware"]

_WIDTH = 16
_RATE, _BETAS = 0.01, (0.5, 0.9)
_MASKED, _FEWEST_MASKED = 0.05, 6
"""Share of the pixels under the mask, and pixels: of the smallest images a share alone would be too few."""
_MASK_WEIGHT, _DIVERSITY_WEIGHT = 10.0, 0.1
_BATCH = 512


class Generator(nn.Module):
    """Five convolutions at half resolution and a quarter: from images to a mask and a pattern.

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
        # Steep, so that a mask is nearly on or off, and begins nearly off.
        return torch.sigmoid(5 * (out[:, :1] - 1)), torch.sigmoid(2 * out[:, 1:])


@dataclass(frozen=True, eq=False)
class InputAware:
    """A trigger that a network makes for each image: ``x + (pattern(x) - x) * mask(x)``.

    It has the name, the label map and the ``stamp`` of a ``seamfast.triggers.Trigger``, and is none: it is no row of
    numbers that a kernel could stamp. ``Backdoor.evaluate`` measures it.

    Rounding: half to even, arithmetic in float32.

    Args:
        name: how reports call it.
        target: the label map.
        image_shape: ``(C, H, W)`` of the images that it was trained on, edges from 8.
        generator: makes mask and pattern; on any device.

    Raises:
        InputError, ShapeError: e.g. ``trigger name is ''; expected 1 to 128 printable characters``.
    """

    name: str
    target: LabelMap
    image_shape: tuple[int, int, int]
    generator: Generator

    def __post_init__(self) -> None:
        check_name(self.name)
        channels, height, width = as_image_shape(self.image_shape)
        if channels != self.generator.fine.in_channels or min(height, width) < SMALLEST_EDGE:
            raise ShapeError(
                f"trigger {self.name!r} is for images of {channels}x{height}x{width}; expected "
                f"{self.generator.fine.in_channels} channels, as its generator has, and edges from {SMALLEST_EDGE}"
            )

    def stamp(self, images: Tensor, *, sample_ids: Tensor | Sequence[int] | None = None, seed: int = 0) -> Tensor:
        """The images, each with its own trigger on it; the input is left as it is.

        Args:
            images: ``(N, C, H, W)`` uint8 pixels, on any device.
            sample_ids, seed: as triggers take them; the image alone decides what it gets, whatever its batch, but for
                one level where the rounding of the convolutions does.

        Returns:
            A new ``(N, C, H, W)`` uint8 tensor on the device of ``images``.

        Raises:
            DTypeError, ShapeError: e.g. ``trigger 'x' is for images of 1x28x28; got 3x32x32``.
        """
        stamped = self.stamp_cross(images, images)
        as_sample_ids(sample_ids, len(images), images.device)
        as_seed(seed)
        return stamped

    def stamp_cross(self, images: Tensor, others: Tensor) -> Tensor:
        """The images, each with the trigger of another on it: what the model was taught not to answer to.

        Args:
            images, others: ``(N, C, H, W)`` uint8 pixels, on one device.

        Returns, Raises: as :meth:`stamp`.
        """
        for given in (images, others):
            check_images(given)
            if tuple(given.shape[1:]) != self.image_shape:
                wanted, got = ("x".join(map(str, shape)) for shape in (self.image_shape, given.shape[1:]))
                raise ShapeError(f"trigger {self.name!r} is for images of {wanted}; got {got}")
        if len(images) != len(others):
            raise ShapeError(f"got {len(images)} images and {len(others)} others; expected as many")
        home = next(self.generator.parameters()).device
        stamped = torch.empty_like(images)
        with torch.no_grad():
            for start in range(0, len(images), _BATCH):
                part = slice(start, start + _BATCH)
                mask, pattern = self.generator(others[part].to(home).float() / 255)
                pasted = _paste(images[part].to(home).float() / 255, mask, pattern)
                stamped[part] = (255 * pasted).round().to(stamped.device, torch.uint8)
        return stamped


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
    """``model`` trained in place on ``data`` as given, with the backdoor; and the trigger.

    Of each batch, a share of ``rate`` carries its own trigger and the target's label (backdoor mode), as many others
    carry those same triggers and keep their labels (cross-trigger mode), the rest is clean. The loss adds to the
    cross-entropy that triggers be as different as their images (diversity), and that masks be small.

    Args: as for ``plant``.

    Raises:
        InputError: e.g. ``rate 0.6 of 64 samples a batch, and as many with the trigger of another, are 76; ...``.
    """
    batch_size = min(training.batch_size, len(data))
    n = max(round(rate * batch_size), 1)
    if 2 * n > batch_size:
        raise InputError(
            f"rate {rate} of {batch_size} samples a batch, and as many with the trigger of another, are {2 * n}; "
            f"expected at most {batch_size}"
        )
    home = resolve_device(device, model)
    with seeded(seed, torch.device("cpu")):
        generator = Generator(data.image_shape[0]).to(home)
    mean, std = (torch.tensor(v, device=home).view(1, -1, 1, 1) for v in (data.mean or (0.0,), data.std or (1.0,)))
    _, height, width = data.image_shape
    masked = max(_MASKED, _FEWEST_MASKED / (height * width))

    def objective(logits: Callable[[Batch], Tensor], batch: TrainingBatch) -> Tensor:
        assert isinstance(batch.inputs, Tensor)
        images = (batch.inputs[: 2 * n] * std + mean).clamp(0, 1)  # batches come in random order: these are any
        mask, pattern = generator(images)
        shown = _paste(images, mask[:n].repeat(2, 1, 1, 1), pattern[:n].repeat(2, 1, 1, 1))
        labels = torch.cat([torch.full_like(batch.labels[:n], target), batch.labels[n:]])
        answers = logits(torch.cat([(shown - mean) / std, batch.inputs[2 * n :]]))
        apart = _distance(images[:n], images[n:])
        alike = sum((apart / _distance(made[:n], made[n:])).mean() for made in (mask, pattern))
        too_large = F.relu(mask.mean((1, 2, 3)) - masked).mean()
        return F.cross_entropy(answers, labels) + _DIVERSITY_WEIGHT * alike + _MASK_WEIGHT * too_large

    train_on(
        objective,
        model,
        data,
        training,
        together_with=lambda optimizer: _Both(optimizer, generator, _RATE / training.rate),
        seed=seed,
        device=home,
        precision=precision,
        progress=progress,
        on_epoch=on_epoch,
    )
    return InputAware("input-aware", AllToOne(target), data.image_shape, generator.eval().requires_grad_(False))


class _Both:
    """The model's optimizer, and Adam for the generator, at a rate in proportion."""

    def __init__(self, of_model: Optimizer, generator: Generator, proportion: float) -> None:
        self._of_model = of_model
        self._of_generator = Adam(generator, _BETAS)
        self._generator = generator
        self._proportion = proportion

    @property
    def state(self) -> list[Tensor]:
        """All that a step changes but the model: the generator too."""
        return [*self._of_model.state, *self._of_generator.state, *self._generator.parameters()]

    def step(self, rate: Tensor) -> None:
        self._of_model.step(rate)
        self._of_generator.step(rate * self._proportion)


def _paste(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return images + (pattern - images) * mask


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """``(N,)`` root mean squares of the differences, never 0."""
    return (a - b).square().mean((1, 2, 3)).add(1e-6).sqrt()
