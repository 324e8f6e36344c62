"""``occlude`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.cpp.native import default_threads, load
from seamfast.ops.occlude import length_thresholds


def occlude(
    images: Tensor,
    mean: Tensor,
    lowest: Tensor,
    highest: Tensor,
    sample_ids: Tensor,
    *,
    n_rectangles: int,
    largest: float,
    seed: int | Tensor,
    step: int | Tensor,
    threads: int,
) -> tuple[Tensor, Tensor]:
    """Of checked arguments, as the reference's."""
    _, _, height, width = images.shape
    sample_ids = sample_ids.contiguous()
    occluded, neutral = torch.empty_like(images), torch.empty_like(images)
    load().occlude(
        images=images.data_ptr(),
        shape=tuple(images.shape),
        channels_last=not images.is_contiguous(),
        mean=mean.data_ptr(),
        lowest=lowest.tolist(),
        reach=(highest - lowest).tolist(),
        heights=length_thresholds(height, largest),
        widths=length_thresholds(width, largest),
        sample_ids=sample_ids.data_ptr(),
        n_rectangles=n_rectangles,
        seed=int(seed) & 0xFFFFFFFFFFFFFFFF,
        step=int(step) & 0xFFFFFFFF,
        occluded=occluded.data_ptr(),
        neutral=neutral.data_ptr(),
        threads=threads or default_threads(),
    )
    return occluded, neutral
