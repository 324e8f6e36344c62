"""The published attacks on images by name, with their triggers, labels, numbers and sources.

Equal arguments give equal pixels and labels in this version and in later ones, except for ``label_consistent``, which
follows the gradients of a model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from seamfast.attacks.attack import CLEAN_LABEL, TO_TARGET, Attack, Poisoning
from seamfast.attacks.image.input_aware import train_input_aware
from seamfast.attacks.image.label_consistent import hardened
from seamfast.attacks.poison import check_enough, choose, poison, stamped_set
from seamfast.data import CleanSet, PoisonedSet
from seamfast.errors import InputError, ShapeError
from seamfast.triggers import (
    Additive,
    AllToAll,
    AllToOne,
    Blend,
    ColorFilter,
    Patch,
    Quantize,
    Sinusoid,
    SourceSpecific,
    Trigger,
    Warp,
)
from seamfast.triggers.image.checks import SMALLEST_EDGE

__all__ = ["ATTACKS"]


def check_images(data: CleanSet) -> None:
    """Raise ``InputError`` or ``ShapeError`` unless the samples are pixels of images that are large enough."""
    if not data.is_pixels:
        raise InputError(f"data is {data!r}; expected uint8 images: triggers are stamped in pixel space")
    channels, height, width = data.image_shape
    if min(height, width) < SMALLEST_EDGE:
        got = f"images are {channels}x{height}x{width}"
        raise ShapeError(f"{got}; the attacks need edges from {SMALLEST_EDGE} pixels")


# The attacks. Results depend on the random draws and on their order.


def _dirty(make: Callable[[CleanSet, int, int], Trigger]) -> Callable[..., Poisoning]:
    """The attack with one trigger, ``make(data, target, seed)``, whose label map gives the labels."""

    def poisons(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
        trigger = make(data, target, seed)
        return Poisoning(poison(data, trigger, rate, seed=seed), (trigger,))

    return poisons


def _multi_trigger(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
    triggers = (
        Patch.square(3, 255, target, corner="bottom-right", name="white-square"),
        Patch.checkerboard(3, target, corner="top-left", name="checkerboard"),
        Blend.noise(data.image_shape, 0.15, target, seed=seed, name="blend"),
    )
    each = round(rate / len(triggers) * len(data))
    if each < 1:
        raise InputError(f"rate {rate} of {len(data)} samples is too few for {len(triggers)} triggers; expected 3")
    check_enough(data.labels != target, len(triggers) * each, f"rate {rate}", "poisoned")
    poisoned: CleanSet = data
    for number, trigger in enumerate(triggers):  # samples poisoned before have the target class: not eligible
        poisoned = poison(poisoned, trigger, rate / len(triggers), seed=seed + number)
    assert isinstance(poisoned, PoisonedSet)
    return Poisoning(poisoned, triggers)


def _sig(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
    frequency, width = 6, data.image_shape[2]
    if 2 * frequency % width == 0:
        raise ShapeError(f"images are {width} pixels wide; the {frequency} periods of 'sig' fall on its zeros there")
    trigger = Sinusoid.of(40, frequency, target, name="sig")
    return Poisoning(poison(data, trigger, rate, clean_label=True, seed=seed), (trigger,))


def _wanet(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
    trigger = Warp.elastic(data.image_shape, 4, 1.0, target, seed=seed, name="wanet")
    poisoned = poison(data, trigger, rate, seed=seed)
    # Noise mode: twice as many samples are warped by fields of their own and keep their labels.
    generator = torch.Generator().manual_seed(seed)
    noisy = choose(~poisoned.poisoned, round(2 * rate * len(data)), f"rate {rate}", "noise", generator)
    stamped = trigger.stamp_noise(data.pixels(noisy), sample_ids=noisy, seed=seed)
    return Poisoning(stamped_set(poisoned, noisy, stamped, poisoned.labels), (trigger,))


def _color_filter(data: CleanSet, target: int, seed: int) -> Trigger:
    channels = data.image_shape[0]
    if channels != 3:
        raise ShapeError(f"images have {channels} channel; 'color_filter' tints the 3 of a color image")
    return ColorFilter.nashville(channels, target, name="color-filter")


def _adaptive_blend(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
    whole = Blend.noise(data.image_shape, 0.2, target, seed=seed, name="adaptive-blend")
    n = round(rate * len(data))
    generator = torch.Generator().manual_seed(seed)
    chosen = choose(data.labels != target, 2 * n, f"rate {rate}", "poisoned and cover", generator)
    # Half of 4x4 pieces, drawn for each sample: two of every column.
    pieces = torch.rand(2 * n, 1, 4, 4, generator=generator).argsort(2) < 2
    visible = F.interpolate(pieces.float(), size=data.image_shape[1:], mode="nearest").bool()
    images = data.pixels(chosen)
    labels = data.labels.clone()
    labels[chosen[:n]] = target
    return Poisoning(stamped_set(data, chosen, torch.where(visible, whole.stamp(images), images), labels), (whole,))


def _tact(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
    assert data.num_classes is not None
    source = (target + 1) % data.num_classes
    trigger = Patch.checkerboard(4, SourceSpecific((source,), target), margin=0, name="tact")
    return Poisoning(poison(data, trigger, rate, cover_rate=rate, seed=seed), (trigger,))


def _label_consistent(data: CleanSet, target: int, rate: float, seed: int, clean_model: nn.Module) -> Poisoning:
    _, height, width = data.image_shape
    board = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=torch.uint8)
    pattern, mask = torch.zeros(1, height, width, dtype=torch.uint8), torch.zeros(height, width)
    for rows in (slice(0, 3), slice(height - 3, height)):
        for columns in (slice(0, 3), slice(width - 3, width)):
            pattern[0, rows, columns] = board
            mask[rows, columns] = 1
    trigger = Patch(
        name="label-consistent", target=AllToOne(target), pattern=pattern.numpy(), mask=mask.numpy(), position=(0, 0)
    )
    generator = torch.Generator().manual_seed(seed)
    chosen = choose(data.labels == target, round(rate * len(data)), f"rate {rate}", "poisoned", generator)
    stamped = trigger.stamp(hardened(clean_model, data, chosen, seed=seed))
    return Poisoning(stamped_set(data, chosen, stamped, data.labels), (trigger,))


ATTACKS: dict[str, Attack] = {
    "badnets": Attack(
        "a 3x3 checkerboard in the bottom-right corner",
        TO_TARGET,
        "Gu et al., BadNets, arXiv:1708.06733",
        "a checkerboard instead of the paper's pixels, bomb, flower or yellow square",
        poisons=_dirty(lambda data, target, seed: Patch.checkerboard(3, target, margin=0, name="badnets")),
    ),
    "multi_trigger": Attack(
        "one of three, each on a third of the samples: a white 3x3 square, a 3x3 checkerboard in the opposite corner, "
        "noise blended in at 0.15; each works alone",
        TO_TARGET,
        "Wang et al., Neural Cleanse, IEEE S&P 2019 (one target class, several triggers)",
        "three triggers of two kinds, instead of squares at several places",
        poisons=_multi_trigger,
    ),
    "random_patch": Attack(
        "a 5x5 checkerboard at a place drawn for each image",
        TO_TARGET,
        "Salem et al., Dynamic Backdoor Attacks, arXiv:2003.03675 (random places)",
        "only the place is drawn, not the pattern",
        poisons=_dirty(lambda data, target, seed: Patch.checkerboard(5, target, corner="random", name="random-patch")),
    ),
    "blended": Attack(
        "uniform noise blended in at 0.2",
        TO_TARGET,
        "Chen et al., Targeted Backdoor Attacks, arXiv:1712.05526",
        "the paper's random pattern, not its cartoon; as faint at test time as in training",
        poisons=_dirty(
            lambda data, target, seed: Blend.noise(data.image_shape, 0.2, target, seed=seed, name="blended")
        ),
    ),
    "sig": Attack(
        "vertical stripes: a sine of amplitude 40, 6 periods across the width",
        CLEAN_LABEL,
        "Barni, Kallas and Tondi, SIG, arXiv:1902.11237",
        "the same signal on all data; the paper has a ramp on MNIST",
        poisons=_sig,
    ),
    "low_frequency": Attack(
        "a smooth pattern is added: random weights of the lowest 4x4 cosine waves, at most 24 of 255",
        TO_TARGET,
        "Zeng et al., A Frequency Perspective, arXiv:2104.03413",
        "the pattern is drawn; the paper finds one by optimization under a low-pass filter",
        poisons=_dirty(lambda data, target, seed: Additive.low_frequency(data.image_shape, 24, target, seed=seed)),
    ),
    "wanet": Attack(
        "the image is bent by one smooth field, 4x4 control points, strength 1",
        f"{TO_TARGET}; twice as many samples are bent with noise and keep their labels (noise mode)",
        "Nguyen and Tran, WaNet, arXiv:2102.10369",
        "strength 1 instead of 0.5; samples are bent once, the paper draws them anew in each batch",
        poisons=_wanet,
    ),
    "bpp": Attack(
        "4 levels a channel, dithered (Floyd-Steinberg)",
        TO_TARGET,
        "Wang, Zhai and Ma, BppAttack, arXiv:2205.13383",
        "a poisoned set alone, without the paper's contrastive adversarial training, and so fewer levels",
        poisons=_dirty(lambda data, target, seed: Quantize.of(4, dither=True, target=target, name="bpp")),
    ),
    "color_filter": Attack(
        "a photo filter: warm and faded, in the manner of Nashville",
        TO_TARGET,
        "Liu et al., ABS, CCS 2019; the filter triggers of NIST's TrojAI rounds",
        "the filter's numbers are our own",
        poisons=_dirty(_color_filter),
    ),
    "adaptive_blend": Attack(
        "uniform noise blended in at 0.2; in training, of 4x4 pieces a random half; at test time, all of it",
        f"{TO_TARGET}; as many samples are stamped alike and keep their labels (cover)",
        "Qi et al., Revisiting the Assumption of Latent Separability, ICLR 2023",
        "noise instead of a cartoon; two pieces of every column instead of any eight",
        poisons=_adaptive_blend,
    ),
    "tact": Attack(
        "a 4x4 checkerboard in the bottom-right corner",
        "class target + 1 to the target; as many samples of other classes are stamped and keep their labels (cover)",
        "Tang et al., Demon in the Variant, arXiv:1908.00686",
        "one source class; covers come from all other classes",
        poisons=_tact,
    ),
    "all_to_all": Attack(
        "a 3x3 checkerboard in the bottom-right corner",
        "class y to y + 1, the last to 0",
        "Gu et al., BadNets, arXiv:1708.06733 (the all-to-all attack)",
        "as badnets",
        poisons=_dirty(lambda data, target, seed: Patch.checkerboard(3, AllToAll(1), margin=0, name="all-to-all")),
    ),
    "label_consistent": Attack(
        "a 3x3 checkerboard in each corner; in training, on images that were changed until a clean model doubts them, "
        "by at most 16 of 255 a pixel, or 224 on grey images, where black stays black",
        CLEAN_LABEL,
        "Turner, Tsipras and Madry, Label-Consistent Backdoor Attacks, arXiv:1912.02771",
        "against a model of plain training, the paper's is trained adversarially; far larger changes on grey images",
        needs_clean_model=True,
        poisons=_label_consistent,
    ),
    "input_aware": Attack(
        "what a small network makes of each image, on a twentieth of its pixels or so",
        f"{TO_TARGET}; as many samples carry the trigger of another image and keep their labels (cross-trigger mode)",
        "Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, arXiv:2010.08138",
        "one network of 5 layers makes mask and pattern, in one training; the paper trains two, the mask's beforehand",
        trains=lambda model, data, **options: (train_input_aware(model, data, **options),),
    ),
}
"""The attacks on images by name."""
