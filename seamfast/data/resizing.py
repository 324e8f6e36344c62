"""``resized``: the same images in another size, and gray ones as color."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from seamfast.data.clean_set import CleanSet
from seamfast.errors import InputError
from seamfast.modalities import ImageModality
from seamfast.untrusted import check_budget

_AT_A_TIME = 256  # images


def resized(
    data: CleanSet, size: tuple[int, int], *, channels: int | None = None, max_bytes: int, where: str
) -> CleanSet:
    """``interpolate(images, size, mode="bilinear", antialias=True)`` of uint8 images, without keeping the aspect ratio.

    Args:
        data: images ``(N, C, H, W)`` uint8.
        size: (H, W) in pixels.
        channels: 3 repeats the channel of gray images; otherwise they stay as many.
        max_bytes: limit on the result.
        where: names the data in messages.

    Raises:
        InputError: e.g. ``data: holds no images of pixels; expected such, to resize them``.
        DataFileError: the result would take more than ``max_bytes``.
    """
    if not data.is_pixels or not isinstance(data.modality, ImageModality) or not isinstance(data.inputs, torch.Tensor):
        raise InputError(f"{where}: holds no images of pixels; expected such, to resize them")
    images, (n_channels, *before) = data.inputs, data.image_shape
    is_widened = channels == 3 and n_channels == 1
    if tuple(before) == tuple(size) and not is_widened:
        return data
    n_channels = 3 if is_widened else n_channels
    check_budget(len(images) * n_channels * size[0] * size[1], max_bytes, where)
    pixels = torch.empty(len(images), n_channels, *size, dtype=torch.uint8)
    for start in range(0, len(images), _AT_A_TIME):
        part = images[start : start + _AT_A_TIME]
        if tuple(before) != tuple(size):
            part = F.interpolate(part, size=size, mode="bilinear", antialias=True, align_corners=False)
        pixels[start : start + _AT_A_TIME] = part
    return CleanSet(
        pixels, data.labels, mean=data.mean, std=data.std, num_classes=data.num_classes, class_names=data.class_names
    )
