"""``gather_augment``: a training batch from resident uint8 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.ops import library
from seamfast.ops._check import MAX_THREADS, as_integer, check_flag, check_out, check_tensor, check_vector
from seamfast.ops.normalization import DTYPES, MAX_CHANNELS, as_numbers
from seamfast.ops.philox import as_seed, as_when

__all__ = ["gather_augment"]


def gather_augment(
    images: Tensor,
    indices: Tensor,
    *,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    pad: int = 0,
    flip: bool = False,
    seed: int | Tensor = 0,
    epoch: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str = "auto",
    threads: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """``((images[indices] / 255 - mean) / std).to(dtype)``, each image first cropped and flipped at random.

    The crop and the flip of an image depend on ``seed``, its index and ``epoch`` alone: not on the order of the batch,
    its size, the threads, the backend or the device. All backends give the same bits (``seamfast.ops.normalization``
    pins them).

    Args:
        images: ``(N, C, H, W)`` uint8, contiguous, 1 to 4 channels.
        indices: ``(B,)`` int64 in ``[0, N)``, on the device of ``images``; repeats are fine and come out alike.
        mean, std: one number a channel or one for all, in units of the ``[0, 1]`` pixel scale.
        pad: pixels of reflection on each side, in ``[0, min(H, W))``; the crop is as large as the image, at one of
            ``(2 * pad + 1) ** 2`` offsets, all alike probable. 0 does not crop.
        flip: mirror left and right with probability 1/2.
        seed: in ``[0, 2**64)``; or an int64 0-d tensor on the device, whose 64 bits are the seed.
        epoch: in ``[0, 2**32)``; or an int64 0-d tensor on the device, taken modulo ``2**32``. New draws at each epoch.
        dtype: float32, bfloat16 or float16.
        channels_last: lay the result out as ``torch.channels_last``.
        backend: ``"auto"``, ``"reference"``, ``"cpp"`` or ``"triton"``.
        threads: for ``"cpp"``, at most so many; 0 is as many as PyTorch has.
        out: ``(B, C, H, W)`` of ``dtype`` and of that layout, to write to instead of a new tensor.

    Returns:
        ``(B, C, H, W)`` of ``dtype`` on the device of ``images``: ``out``, if given.

    Raises:
        DTypeError: ``images has dtype float32; expected uint8``.
        ShapeError: ``images has shape (3, 32, 32); expected (N, C, H, W)``.
        InputError: ``pad is 4; expected an integer in [0, 3], below the smaller side of images of 4 x 32 pixels``,
            ``indices hold 10 at position 2; expected integers in [0, 10)``; nothing has been written then. On a
            CUDA device looking would wait for the device, so there an index out of range is a device-side assertion of
            PyTorch.
        BackendUnavailableError: a named backend cannot run; the message says why.

    Source:
        Crop after padding and flip: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2
        (with zeros as padding). Draws: Salmon et al., SC 2011 (``seamfast.ops.philox``), the counter being
        ``(index low, index high, epoch, STREAM_AUGMENT)``: offsets down and right from words 0 and 1 by multiply-high,
        the flip from the top bit of word 2.

    Example:
        >>> images = torch.arange(2 * 1 * 2 * 2, dtype=torch.uint8).view(2, 1, 2, 2)
        >>> gather_augment(images, torch.tensor([1]), mean=0.0, std=1 / 255, backend="reference")
        tensor([[[[4., 5.],
                  [6., 7.]]]])
    """
    check_tensor("images", images, torch.uint8)
    if images.ndim != 4:
        raise ShapeError(f"images has shape {tuple(images.shape)}; expected (N, C, H, W)")
    _, channels, height, width = images.shape
    if not 1 <= channels <= MAX_CHANNELS or height < 1 or width < 1:
        wanted = f"(N, C, H, W) with C in [1, {MAX_CHANNELS}] and at least one pixel"
        raise ShapeError(f"images has shape {tuple(images.shape)}; expected {wanted}")
    if not images.is_contiguous():
        raise InputError(f"images has strides {images.stride()}; expected a contiguous tensor")
    check_vector("indices", indices, torch.int64, device=images.device)
    below = f", below the smaller side of images of {height} x {width} pixels"
    pad = as_integer("pad", pad, 0, min(height, width) - 1, below)
    check_flag("flip", flip)
    check_flag("channels_last", channels_last)
    seed, seed_tensor = as_seed(seed, images.device)
    epoch, epoch_tensor = as_when("epoch", epoch, images.device)
    threads = as_integer("threads", threads, 0, MAX_THREADS)
    if dtype not in DTYPES:
        raise DTypeError(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}")
    means, stds = as_numbers(mean), as_numbers(std)
    draws = (pad, flip, seed, seed_tensor, epoch, epoch_tensor)
    arguments = (images, indices, means, stds, *draws, dtype, channels_last, backend, threads)
    if out is None:
        result: Tensor = library.call("gather_augment", *arguments)
        return result
    check_out(out, (len(indices), channels, height, width), dtype, channels_last, images)
    library.call("gather_augment_out", *arguments, out)
    return out
