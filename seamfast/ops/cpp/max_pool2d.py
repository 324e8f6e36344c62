"""Max-pooling and its gradient, for ``seamfast.engine.layers``."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.cpp.native import LOGIT_TYPES, load


def max_pool2d(
    x: Tensor, window: tuple[int, int], *, indexed: bool, threads: int, rectified: bool = False, isa: str = ""
) -> tuple[Tensor, Tensor | None]:
    """The maxima of windows side by side and, where ``indexed``, which pixel of its window each is, uint8.

    Args:
        x: ``(N, C, H, W)`` float32 or bfloat16 on the CPU, channels last and dense, not empty.
        window: height and width, at most 256 pixels and no larger than an image.
        indexed: whether a backward pass follows.
        threads: at most so many.
        rectified: ``x`` is relu's result, and the backward pass gives the gradient before it; windows below 256.
        isa: forces an instruction set, for tests.
    """
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // window[0], width // window[1])
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    index = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last) if indexed else None
    load().max_pool2d(
        input=x.data_ptr(),
        type=LOGIT_TYPES[x.dtype],
        shape=tuple(x.shape),
        window=window,
        rectified=rectified,
        output=out.data_ptr(),
        index=0 if index is None else index.data_ptr(),
        threads=threads,
        isa=isa,
    )
    return out, index


def max_pool2d_backward(
    grad: Tensor, index: Tensor, shape: torch.Size, window: tuple[int, int], *, threads: int, isa: str = ""
) -> Tensor:
    """The gradient of the input, of the given shape; ``grad`` is that of the output, channels last and dense."""
    out = torch.empty(shape, dtype=grad.dtype, memory_format=torch.channels_last)
    load().max_pool2d_backward(
        grad_output=grad.data_ptr(),
        index=index.data_ptr(),
        type=LOGIT_TYPES[grad.dtype],
        shape=tuple(shape),
        window=window,
        grad_input=out.data_ptr(),
        threads=threads,
        isa=isa,
    )
    return out
