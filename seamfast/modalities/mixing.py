"""Mixup."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.modalities.base import StepDraws, Views


def mixed(inputs: Tensor, labels: Tensor, share: float, draws: StepDraws) -> Views:
    """``mix_up`` of a batch, as equal views of student and teacher."""
    inputs, partner, weight = mix_up(inputs, share * draws.changed, draws.generator)
    return Views(inputs, inputs, labels[partner], weight)


def mix_up(inputs: Tensor, share: float | Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``w * inputs + (1 - w) * inputs[partner]``; ``w`` uniform in [0, 1) for each sample, ``partner`` a permutation.

    Args:
        inputs: ``(N, ...)`` floats. Not modified.
        share: of the samples that are mixed, in [0, 1], a number or 0-d.
        generator: on the device of ``inputs``.

    Returns:
        The mixed inputs, new; ``partner``, ``(N,)`` int64; and ``w``, ``(N,)`` float32: 1 for a sample that is not
        mixed. Targets are mixed with the same two.

    Source: Zhang et al., "mixup", arXiv:1710.09412, with Beta(1, 1).
    """
    n, device = len(inputs), inputs.device
    weight = torch.rand(n, generator=generator, device=device)
    whole = torch.rand(n, generator=generator, device=device) >= share
    weight = torch.where(whole, 1.0, weight)
    # Not randperm, which a CUDA graph cannot capture.
    partner = torch.rand(n, generator=generator, device=device).argsort()
    w = weight.to(inputs.dtype).view(-1, *[1] * (inputs.ndim - 1))
    return w * inputs + (1 - w) * inputs[partner], partner, weight
