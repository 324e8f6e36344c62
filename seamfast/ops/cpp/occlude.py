"""``occlude`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.arguments import OccludeArguments
from seamfast.ops.cpp.native import default_threads, load
from seamfast.ops.occlude import length_thresholds


def occlude(args: OccludeArguments) -> tuple[Tensor, Tensor]:
    """As the reference's."""
    images, sample_ids = args.images, args.sample_ids.contiguous()
    occluded, neutral = torch.empty_like(images), torch.empty_like(images)
    load().occlude(
        images=images.data_ptr(),
        shape=tuple(images.shape),
        channels_last=not images.is_contiguous(),
        mean=args.mean.data_ptr(),
        lowest=args.lowest.tolist(),
        reach=(args.highest - args.lowest).tolist(),
        heights=length_thresholds(images.shape[2], args.largest),
        widths=length_thresholds(images.shape[3], args.largest),
        sample_ids=sample_ids.data_ptr(),
        n_rectangles=args.n_rectangles,
        seed=int(args.seed) & 0xFFFFFFFFFFFFFFFF,
        step=int(args.step) & 0xFFFFFFFF,
        occluded=occluded.data_ptr(),
        neutral=neutral.data_ptr(),
        threads=args.threads or default_threads(),
    )
    return occluded, neutral
