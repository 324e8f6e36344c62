"""Faster max-pooling and batch normalization on a CPU, for the forward pass of any model.

For channels-last images, PyTorch's own are far slower than the memory. ``faster_layers`` intercepts the two functions
and computes the calls that it covers with the compiled extension; PyTorch computes the others. The model is not
modified, so hooks, shared modules and functional calls work as before.

Max-pooling equals PyTorch's to the bit. Batch normalization rounds differently: its sums are more exact than PyTorch's,
and do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from seamfast.checks import MAX_THREADS
from seamfast.ops import dispatch

_DTYPES = (torch.float32, torch.bfloat16)
_MAX_WINDOW = 256
"""Pixels: kMaxWindow in csrc/layers/max_pool2d.h."""


def faster_layers(device: torch.device) -> AbstractContextManager[object]:
    """Run forward passes with the faster layers, on a CPU with the compiled extension; elsewhere do nothing.

    The backward pass may run outside. A gradient of a gradient raises. ``SEAMFAST_BACKEND`` turns the layers off if it
    names another backend than ``cpp``.
    """
    backend = os.environ.get("SEAMFAST_BACKEND") or "auto"
    if device.type != "cpu" or backend not in ("auto", "cpp") or _cpp().why_unavailable() is not None:
        return nullcontext()
    return _FasterLayers()


class _FasterLayers(TorchFunctionMode):
    """Intercepts every call of a PyTorch function, so it costs most of them one look-up only."""

    def __init__(self) -> None:
        super().__init__()
        self._rectified: _Rectified | None = None  # of the last relu, unless a layer was taken since

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _RELU:
            result = func(*args, **kwargs) if kwargs else func(*args)
            self._rectified = _Rectified.of(result, args[0]) if args else None
            return result
        take = _TAKEN.get(func)
        if take is not None:
            rectified, self._rectified = self._rectified, None
            if take is _take_max_pool2d and rectified is not None and args and rectified.is_still(args[0]):
                result = take(*args, **(kwargs or {}), unrectified=rectified.given)
            else:
                result = take(*args, **kwargs) if kwargs else take(*args)
            if result is not None:
                return result
        return func(*args, **kwargs) if kwargs else func(*args)


@dataclass(frozen=True)
class _Rectified:
    """``result = relu(given)``, and the state of both."""

    result: Tensor
    given: Tensor
    state: tuple[Any, ...]

    @classmethod
    def of(cls, result: Any, given: Any) -> _Rectified | None:
        """``None`` if ``result`` has no gradient, or if ``given`` was overwritten."""
        if type(result) is not Tensor or type(given) is not Tensor or result is given or not given.requires_grad:
            return None
        return None if result.grad_fn is None else cls(result, given, _state(result, given))

    def is_still(self, x: Any) -> bool:
        """Whether ``x`` is ``result``, neither tensor was written to, and nothing reads the gradient of ``x``."""
        return (
            x is self.result
            and _state(self.result, self.given) == self.state
            and not x._backward_hooks
            and not x.retains_grad
        )


def _state(*tensors: Tensor) -> tuple[Any, ...]:
    """Graph nodes and versions, which change when a tensor is written to."""
    return tuple((tensor.grad_fn, tensor._version) for tensor in tensors)


_RELU = {F.relu, torch.relu}


# ---- The calls that are covered. The functions below have PyTorch's signatures, and return None for the other calls,
# including those with a tensor by name or with a missing argument. ----


def _take_max_pool2d(
    x: Any = None,
    kernel_size: Any = None,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    return_indices: Any = False,
    unrectified: Tensor | None = None,
    **other: Any,
) -> Tensor | None:
    window = _pair(kernel_size)
    if (
        other
        or ceil_mode is not False
        or return_indices is not False
        or window is None
        or (stride is not None and stride != [] and _pair(stride) != window)
        or _pair(padding) != (0, 0)
        or _pair(dilation) != (1, 1)
        or not _is_covered(x)
    ):
        return None
    height, width = window
    if not (1 <= height <= x.shape[2] and 1 <= width <= x.shape[3] and height * width <= _MAX_WINDOW):
        return None
    if torch.is_grad_enabled() and x.requires_grad:
        if unrectified is not None and height * width < _MAX_WINDOW:
            return _MaxPool2dOfRelu.apply(unrectified, x.detach(), window)  # type: ignore[no-untyped-call, no-any-return]
        return _MaxPool2d.apply(x, window)  # type: ignore[no-untyped-call, no-any-return]
    out: Tensor = _cpp().max_pool2d(x, window, indexed=False, threads=_threads())[0]
    return out


def _take_functional_batch_norm(
    x: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Tensor | None:
    return _take_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)


def _take_batch_norm(
    x: Any = None,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    training: Any = None,
    momentum: Any = None,
    eps: Any = None,
    cudnn_enabled: Any = True,
    **other: Any,
) -> Tensor | None:
    if (
        other
        or training is not True
        or type(momentum) is not float
        or type(eps) is not float
        or not eps > 0
        or (running_mean is None) != (running_var is None)
        or not _is_covered(x)
    ):
        return None
    channels = x.shape[1]
    if not all(_is_of_channels(t, channels) for t in (weight, bias, running_mean, running_var)):
        return None
    if any(t is not None and t.requires_grad for t in (running_mean, running_var)):
        return None
    arguments = (running_mean, running_var, momentum, eps)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _BatchNorm.apply(x, weight, bias, *arguments)  # type: ignore[no-untyped-call, no-any-return]
    return _normalized(x, weight, bias, *arguments)[0]


_TAKEN: dict[Any, Callable[..., Tensor | None]] = {
    F.max_pool2d: _take_max_pool2d,
    torch.max_pool2d: _take_max_pool2d,
    F.batch_norm: _take_functional_batch_norm,
    torch.batch_norm: _take_batch_norm,
}


def _pair(value: Any) -> tuple[int, int] | None:
    """``value`` for height and width, or ``None`` if it is not one or two plain integers."""
    if type(value) is int:
        return value, value
    if type(value) in (tuple, list) and len(value) in (1, 2) and all(type(v) is int for v in value):
        return value[0], value[-1]
    return None


def _is_covered(x: Any) -> bool:
    """Whether ``x`` is a plain, dense batch of channels-last images, and only autograd follows its operations."""
    return (
        type(x) is Tensor
        and not _is_watched()  # first: vmap has no answer to the checks below, and tracing would record them
        and x.ndim == 4
        and x.dtype in _DTYPES
        and x.is_cpu
        and x.layout is torch.strided
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()  # one channel or pixel: PyTorch chooses the layout, or raises
        and not x.is_neg()
    )


def _is_watched() -> bool:
    """Whether a transform is active that cannot follow a call into the extension."""
    return (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.compiler.is_compiling()
        # Checkpoints in particular: their second forward pass runs outside and must save the same tensors.
        or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    )


def _is_of_channels(value: Any, channels: int) -> bool:
    """Whether ``value`` is one float32 number per channel, or ``None``."""
    return value is None or (
        type(value) in (Tensor, nn.Parameter, nn.Buffer)
        and value.dtype is torch.float32
        and value.is_cpu
        and value.shape == (channels,)
        and value.is_contiguous()
    )


# ---- The computation. ----


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, int]) -> Any:
        out, index = _cpp().max_pool2d(x, window, indexed=True, threads=_threads())
        ctx.save_for_backward(index)
        ctx.shape, ctx.window = x.shape, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _cpp().max_pool2d_backward(_laid_out(grad), index, ctx.shape, ctx.window, threads=_threads()), None


class _MaxPool2dOfRelu(torch.autograd.Function):
    """Max-pooling of ``rectified = relu(x)``, with the gradient of ``x``, which saves the backward pass of relu.

    If the maximum of a window is 0, relu's gradient is 0; else it is that of the maximum. Other uses of ``rectified``
    add their gradients through relu.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rectified: Tensor, window: tuple[int, int]) -> Tensor:
        out, index = _cpp().max_pool2d(rectified, window, indexed=True, rectified=True, threads=_threads())
        ctx.save_for_backward(index)
        ctx.shape, ctx.window = x.shape, window
        return out  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        of_x = _cpp().max_pool2d_backward(_laid_out(grad), index, ctx.shape, ctx.window, threads=_threads())
        return of_x, None, None


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *arguments: Any) -> Tensor:
        out, statistics = _normalized(x, weight, bias, *arguments)
        ctx.save_for_backward(x, weight, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        of_x, of_weight, of_bias = _cpp().batch_norm_backward(
            _laid_out(grad), x, weight, statistics, of_input=ctx.needs_input_grad[0], threads=_threads()
        )
        _, for_weight, for_bias, *_ = ctx.needs_input_grad
        return of_x, of_weight if for_weight else None, of_bias if for_bias else None, None, None, None, None


def _normalized(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The result and the statistics; ``arguments`` as for ``_BatchNorm``."""
    weight, bias, running_mean, running_var, momentum, eps = arguments
    results: tuple[Tensor, Tensor] = _cpp().batch_norm(
        x, weight, bias, running_mean, running_var, momentum=momentum, eps=eps, threads=_threads()
    )
    return results


def _laid_out(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last).resolve_neg()


def _threads() -> int:
    """As many threads as PyTorch uses."""
    return min(torch.get_num_threads(), MAX_THREADS)


def _cpp() -> ModuleType:
    return dispatch.package("cpp")
