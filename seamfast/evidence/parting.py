"""``parting``: clean images under perturbations that seldom change what they show, and how often two models part."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from seamfast.data import CleanSet
from seamfast.data.disturbing import disturb
from seamfast.engine.model import evaluating
from seamfast.errors import InputError
from seamfast.evidence.subject import UNANSWERED, Subject, check_level, check_positive, check_seed, subject
from seamfast.metrics import Bounded, Rate
from seamfast.ops import occlude

__all__ = ["PERTURBATIONS", "PartedExample", "Parting", "parting"]

MOST_EXAMPLES = 16


@dataclass(frozen=True, eq=False)
class PartedExample:
    """A perturbed image on which the models part.

    Attributes:
        index: of the sample in the data.
        image: ``(C, H, W)`` uint8, as the models saw it.
        received, sanitised: their answers, classes; ``None`` where the logits hold NaN.
    """

    index: int
    image: Tensor
    received: int | None
    sanitised: int | None


@dataclass(frozen=True, eq=False)
class Parting:
    """How often two models part under one perturbation.

    Attributes:
        name: the perturbation's, a key of ``PERTURBATIONS``.
        rate: of the samples on which both agree as they are: both answer differently when perturbed. Its bounds are
            exact and hold for all perturbations at once.
        rate_clean: of all samples, as they are: both answer differently; the same for every perturbation.
        examples: the first of the samples in ``rate``, at most 16.
    """

    name: str
    rate: Bounded
    rate_clean: Rate
    examples: tuple[PartedExample, ...]


def parting(
    received: nn.Module,
    sanitised: nn.Module,
    data: CleanSet,
    *,
    level: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> tuple[Parting, ...]:
    """``(received(perturb(images)) != sanitised(perturb(images))).mean()`` over the images on which both agree.

    Perturbations are drawn for each sample from ``seed``; both models see the same pixels. They are used in eval mode
    and left as they were.

    Args:
        received, sanitised: models that return logits ``(B, C)``, of the same classes.
        data: uint8 images, or floats with ``mean`` and ``std``.
        level: of the bounds, in (0, 1).
        batch_size: samples a forward pass, 1 or more. An image may get a patch of another one of its batch.
        seed: in ``[0, 2**63)``.
        device: ``"auto"`` is where ``received`` is; a model that is not there is copied there.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        One result for each of ``PERTURBATIONS``, in their order.

    Raises:
        InputError, ModelError: e.g. ``received returns 10 logits and sanitised 12; expected the same classes``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = CleanSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> [(parted.name, parted.rate.n_hit) for parted in parting(model, model, data)][:2]
        [('patches', 0), ('noise', 0)]
    """
    level, batch_size, seed = check_level(level), check_positive("batch_size", batch_size), check_seed(seed)
    first = subject(received, data, device)
    second = subject(sanitised, data, first.device)
    if first.num_classes != second.num_classes:
        counts = f"received returns {first.num_classes} logits and sanitised {second.num_classes}"
        raise InputError(f"{counts}; expected the same classes")
    shown = sys.stderr.isatty() if progress is None else progress
    parts = torch.split(torch.arange(len(data)), batch_size)
    total = (1 + len(PERTURBATIONS)) * len(data)
    with (
        tqdm(total=total, desc="parting", unit="sample", disable=not shown, leave=False) as bar,
        evaluating(first.model),
        evaluating(second.model),
    ):
        agreed = []
        for part in parts:
            answers = _answers(first, second, first.pixels(part))
            agreed.append(answers[0] == answers[1])
            bar.update(len(part))
        n_agreed = int(torch.cat(agreed).sum())
        found = []
        for name, perturb in PERTURBATIONS.items():
            generator = torch.Generator(first.device).manual_seed(seed)
            n_hit, examples = torch.zeros((), dtype=torch.int64, device=first.device), list[PartedExample]()
            for part, alike in zip(parts, agreed, strict=True):
                pixels = perturb(first.pixels(part).float(), part.to(first.device), generator, seed)
                pixels = pixels.round().clamp(0, 255).to(torch.uint8)
                answers = _answers(first, second, pixels)
                hit = alike & (answers[0] != answers[1])
                n_hit += hit.sum()
                if len(examples) < MOST_EXAMPLES:
                    examples += _examples(hit, part, pixels, answers, MOST_EXAMPLES - len(examples))
                bar.update(len(part))
            rate = Bounded.exact(int(n_hit), n_agreed, level=level, n_looks=len(PERTURBATIONS))
            rate_clean = Rate(len(data) - n_agreed, len(data))
            found.append(Parting(name, rate, rate_clean, tuple(examples)))
    return tuple(found)


def _answers(first: Subject, second: Subject, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Of both models, to the same ``(B, C, H, W)`` uint8 pixels."""
    return first.answers(first.inputs(pixels)), second.answers(second.inputs(pixels))


def _examples(
    hit: Tensor, part: Tensor, pixels: Tensor, answers: tuple[Tensor, Tensor], most: int
) -> list[PartedExample]:
    """The first ``most`` of the batch ``part`` that are ``hit``."""
    rows = hit.nonzero().flatten()[:most]
    images = pixels[rows].cpu()
    both = [[None if a == UNANSWERED else a for a in answer[rows].tolist()] for answer in answers]
    return [PartedExample(*values) for values in zip(part[rows.cpu()].tolist(), images.unbind(), *both, strict=True)]


# The perturbations: of (B, C, H, W) float32 pixels in [0, 255] and of their samples' numbers.


def _patches(pixels: Tensor, samples: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """Two rectangles, sides up to 0.3 of the image's: a colour, noise, or a piece of another image."""
    lowest = pixels.new_zeros(pixels.shape[1])
    return occlude(pixels, lowest, lowest + 255, samples, n_rectangles=2, largest=0.3, seed=seed)[0]


def _noise(pixels: Tensor, samples: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """A fifth of uniform noise."""
    noise = 255 * torch.rand(pixels.shape, generator=generator, device=pixels.device)
    return torch.lerp(pixels, noise, 0.2)


def _brightness(pixels: Tensor, samples: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """Lighter or darker by up to 40 grey levels."""
    by = 80 * torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device) - 40
    return pixels + by


def _smooth(pixels: Tensor, samples: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """Bent, in other tones, under a veil of waves, each for a third of the images: ``seamfast.data.disturbing``."""
    lowest = pixels.new_zeros(pixels.shape[1])
    return disturb(pixels, lowest, lowest + 255, generator, pixels.new_tensor(1 / 3))


PERTURBATIONS: dict[str, Callable[[Tensor, Tensor, torch.Generator, int], Tensor]] = {
    "patches": _patches,
    "noise": _noise,
    "brightness": _brightness,
    "smooth": _smooth,
}
"""By name: pixels, the numbers of their samples, a generator on their device, the seed; new pixels, not yet rounded."""
