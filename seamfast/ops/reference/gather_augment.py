"""``gather_augment`` as its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.checks import check_in_range
from seamfast.ops.arguments import GatherArguments
from seamfast.ops.places import augmented_places
from seamfast.ops.reference.pixels import normalized


def gather_augment(args: GatherArguments) -> Tensor:
    """``seamfast.ops.gather_augment`` of checked arguments."""
    images, indices = args.images, args.indices
    count, channels, height, width = images.shape
    if images.device.type == "cpu":
        check_in_range("indices", indices, count)
    rows, columns = augmented_places(
        indices, height, width, pad=args.pad, flip=args.flip, seed=args.seed, epoch=args.epoch
    )
    channel = torch.arange(channels, device=images.device)[:, None, None]
    pixels = images[indices[:, None, None, None], channel, rows[:, None, :, None], columns[:, None, None, :]]
    return normalized(pixels, args)
