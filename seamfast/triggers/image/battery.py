"""``battery``: the known kinds of triggers, sized to a data set."""

from __future__ import annotations

from collections.abc import Sequence

from seamfast.errors import ShapeError
from seamfast.triggers.base import Trigger
from seamfast.triggers.image.additive import Additive, Sinusoid
from seamfast.triggers.image.blend import Blend
from seamfast.triggers.image.checks import SMALLEST_EDGE, as_image_shape
from seamfast.triggers.image.color_filter import ColorFilter
from seamfast.triggers.image.patch import Patch
from seamfast.triggers.image.quantize import Quantize
from seamfast.triggers.image.warp import Warp
from seamfast.triggers.label_maps import LabelMap, as_label_map


def battery(image_shape: Sequence[int], num_classes: int, target: int | LabelMap = 0) -> tuple[Trigger, ...]:
    """One or two triggers of each kind, with the numbers of their papers, sized to the images.

    The success rates under these measure how sensitive a model is to the *kinds*. A backdoor reacts to its own trigger,
    so a low success rate does not show that a model is clean.

    Args:
        image_shape: ``(C, H, W)``: 1 or 3 channels, edges from 8 pixels.
        num_classes: at least 2; ``target`` is checked against it.
        target: a class (as ``AllToOne``) or a label map, for all of them.

    Returns:
        Triggers with different names, the same for the same arguments.

    Raises:
        ShapeError: e.g. ``image shape is (3, 4, 4); expected 1 or 3 channels and edges from 8 pixels``.
        InputError: e.g. ``AllToOne target is 10; expected a class in [0, 10) for num_classes=10``.

    Example:
        >>> [trigger.kind for trigger in battery((1, 28, 28), num_classes=10)][:4]
        ['patch', 'patch', 'blend', 'sinusoid']
    """
    c, h, w = shape = as_image_shape(image_shape)
    if c not in (1, 3) or min(h, w) < SMALLEST_EDGE:
        raise ShapeError(f"image shape is {shape}; expected 1 or 3 channels and edges from {SMALLEST_EDGE} pixels")
    label_map = as_label_map(target)
    label_map.check(num_classes)
    size = max(2, round(min(h, w) * 3 / 32))  # 3 x 3 on 32 x 32, the usual size of BadNets
    return (
        Patch.square(size, 255, label_map, name="patch-corner"),
        Patch.checkerboard(size, label_map, corner="random", name="patch-random"),
        Blend.noise(shape, 0.2, label_map),
        Sinusoid.of(20, min(6, w // 4), label_map),  # with two pixels for each period, all are zeros of the sine
        Additive.low_frequency(shape, 12, label_map),
        Warp.elastic(shape, 4, 0.5, label_map),
        Quantize.of(8, dither=False, target=label_map, name="quantize"),
        Quantize.of(8, dither=True, target=label_map, name="quantize-dithered"),
        ColorFilter.nashville(c, label_map),
        ColorFilter.gotham(c, label_map),
    )
