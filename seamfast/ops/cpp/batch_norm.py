"""Batch normalization in training mode, and its gradient, for ``seamfast.engine.layers``."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.cpp.native import LOGIT_TYPES, address, load


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    momentum: float,
    eps: float,
    threads: int,
    isa: str = "",
) -> tuple[Tensor, Tensor]:
    """The normalized ``x``, and mean and inverse deviation of each channel, float32 ``(2, C)``.

    Args:
        x: ``(N, C, H, W)`` float32 or bfloat16 on the CPU, channels last and dense, with two values a channel or more.
        weight, bias: float32 ``(C,)``, dense; ``None``: 1 and 0.
        running_mean, running_var: float32 ``(C,)``, dense, updated in place; both or neither.
        momentum: of that update.
        eps: added to the variance.
        threads: at most so many; the bits do not depend on it.
        isa: forces an instruction set, for tests.
    """
    out = torch.empty_like(x)
    channels = x.shape[1]
    statistics = torch.empty((2, channels), dtype=torch.float32)
    load().batch_norm(
        input=x.data_ptr(),
        type=LOGIT_TYPES[x.dtype],
        rows=x.numel() // channels,
        channels=channels,
        weight=address(weight),
        bias=address(bias),
        epsilon=eps,
        running_mean=address(running_mean),
        running_variance=address(running_var),
        momentum=momentum,
        output=out.data_ptr(),
        mean=statistics[0].data_ptr(),
        inverse_std=statistics[1].data_ptr(),
        threads=threads,
        isa=isa,
    )
    # The running statistics keep their version, as in PyTorch: with a new one the backward pass of a module that occurs
    # twice in a model would fail.
    return out, statistics


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    *,
    of_input: bool,
    threads: int,
    isa: str = "",
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of the input, where ``of_input``, of the weight and of the bias.

    Args:
        grad: that of the output, channels last and dense.
        x, weight, statistics: see ``batch_norm``.
        of_input: whether to compute that of the input.
        threads, isa: see ``batch_norm``.
    """
    channels = x.shape[1]
    of_x = torch.empty_like(x) if of_input else None
    of_weight, of_bias = (torch.empty(channels, dtype=torch.float32) for _ in range(2))
    load().batch_norm_backward(
        grad_output=grad.data_ptr(),
        input=x.data_ptr(),
        type=LOGIT_TYPES[x.dtype],
        rows=x.numel() // channels,
        channels=channels,
        weight=address(weight),
        mean=statistics[0].data_ptr(),
        inverse_std=statistics[1].data_ptr(),
        grad_weight=of_weight.data_ptr(),
        grad_bias=of_bias.data_ptr(),
        grad_input=address(of_x),
        threads=threads,
        isa=isa,
    )
    return of_x, of_weight, of_bias
