"""Adam whose rate is relative to the size of each tensor, so that one number suits every architecture."""

from __future__ import annotations

import torch
from torch import nn

_FLOOR = 0.1
"""Least size of a vector (bias, norm gain) for its rate: many biases start at 0, where a relative rate freezes them."""


class RelativeAdam:
    """``torch.optim.AdamW`` with ``lr = rate * RMS(tensor as received)`` for each tensor.

    A rate of 0.01 moves each weight by about 1 % of its tensor's typical size a step, whatever the architecture's
    scale: the absolute rates that cure one model and destroy another differ by more than ten times, the relative ones
    do not. The sizes are those of the weights as given, so a run cannot feed its own growth.

    Args:
        model: all its parameters are trained.
        betas: Adam's decay rates of the running moments.

    Source: relative step sizes, Shazeer and Stern, "Adafactor", arXiv:1804.04235, section 8; decoupled decay,
    Loshchilov and Hutter, arXiv:1711.05101.
    """

    def __init__(self, model: nn.Module, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        groups = []
        for parameter in model.parameters():
            size = float(parameter.detach().square().mean().sqrt()) if parameter.numel() else 1.0
            if parameter.ndim < 2:
                size = max(size, _FLOOR)
            groups.append({"params": [parameter], "size": max(size, 1e-8), "decays": parameter.ndim >= 2})
        # Fused takes half the time, where there is a kernel for it; foreach, by groups of one tensor, takes longer.
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=fused, foreach=False)

    def step(self, rate: float, decay: float = 0.0) -> None:
        """One update, then forget the grads. ``decay``: the share of each matrix and kernel taken off, at each step."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["size"]
            group["weight_decay"] = decay / group["lr"] if group["decays"] and group["lr"] else 0.0
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
