"""Mixing samples and their labels."""

from __future__ import annotations

import torch
from torch import Tensor


def mix_up(inputs: Tensor, targets: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``w * inputs + (1 - w) * inputs[permutation]``, and the same of ``targets``; ``w`` uniform in [0, 1) for each
    sample.

    Args:
        inputs: ``(N, ...)`` floats. Not modified.
        targets: ``(N, C)`` probabilities.
        share: of the samples that are mixed, in [0, 1]; the others stay whole.
        generator: on the device of ``inputs``.

    Returns:
        Mixed inputs and targets, new tensors.

    Source: Zhang et al., "mixup", arXiv:1710.09412, with Beta(1, 1).
    """
    n, device = len(inputs), inputs.device
    weight = torch.rand(n, generator=generator, device=device)
    whole = torch.rand(n, generator=generator, device=device) >= share
    weight = torch.where(whole, 1.0, weight)
    partner = torch.randperm(n, generator=generator, device=device)

    def mixed(values: Tensor) -> Tensor:
        w = weight.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
        return w * values + (1 - w) * values[partner]

    return mixed(inputs), mixed(targets)
