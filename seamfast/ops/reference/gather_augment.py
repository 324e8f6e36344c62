"""``gather_augment`` as its definition."""

from __future__ import annotations

from torch import Tensor

from seamfast.checks import check_in_range
from seamfast.ops.arguments import GatherArguments
from seamfast.ops.augmented_images import augmented_images
from seamfast.ops.reference.pixels import normalized


def gather_augment(args: GatherArguments) -> Tensor:
    """``seamfast.ops.gather_augment`` of checked arguments."""
    if args.images.device.type == "cpu":
        check_in_range("indices", args.indices, len(args.images))
    pixels = augmented_images(args.images, args.indices, pad=args.pad, flip=args.flip, seed=args.seed, epoch=args.epoch)
    return normalized(pixels, args)
