"""``gather_augment``: a training batch from resident uint8 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seamfast.checks import MAX_THREADS, as_integer, check_flag, check_vector
from seamfast.ops import library
from seamfast.ops.arguments import GatherArguments, check_contiguous, check_dtype, check_images
from seamfast.ops.normalization import MAX_CHANNELS, as_numbers
from seamfast.ops.philox import Counter, as_seed, as_when

__all__ = ["gather_augment"]


def gather_augment(
    images: Tensor,
    indices: Tensor,
    *,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    pad: int = 0,
    flip: bool = False,
    seed: Counter = 0,
    epoch: Counter = 0,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str = "auto",
    threads: int = 0,
) -> Tensor:
    """``((images[indices] / 255 - mean) / std).to(dtype)``, each image first cropped and flipped at random.

    The crop and the flip of an image depend on ``seed``, its index and ``epoch`` alone: not on the order of the batch,
    its size, the threads, the backend or the device. All backends give the same bits (``seamfast.ops.normalization``
    defines them).

    Args:
        images: ``(N, C, H, W)`` uint8, contiguous, 1 to 4 channels.
        indices: ``(B,)`` int64 in ``[0, N)``, on the device of ``images``; repeats are allowed and give equal images.
        mean, std: one number a channel or one for all, in units of the ``[0, 1]`` pixel scale.
        pad: pixels of reflection on each side, in ``[0, min(H, W))``; the crop is as large as the image, at one of
            ``(2 * pad + 1) ** 2`` equally probable offsets. 0 does not crop.
        flip: mirror left and right with probability 1/2.
        seed: in ``[0, 2**64)``; or an int64 0-d tensor on the device, whose 64 bits are the seed.
        epoch: in ``[0, 2**32)``; or an int64 0-d tensor on the device, taken modulo ``2**32``. New draws at each epoch.
        dtype: float32, bfloat16 or float16.
        channels_last: lay the result out as ``torch.channels_last``.
        backend: ``"auto"``, ``"reference"``, ``"cpp"`` or ``"triton"``.
        threads: for ``"cpp"``, at most so many; 0 is as many as PyTorch has.

    Returns:
        ``(B, C, H, W)`` of ``dtype`` on the device of ``images``.

    Raises:
        DTypeError: ``images has dtype float32; expected uint8``.
        ShapeError: ``images has shape (3, 32, 32); expected (N, C, H, W)``.
        InputError: ``pad is 4; expected an integer in [0, 3], below the smaller side of images of 4 x 32 pixels``,
            ``indices hold 10 at position 2; expected integers in [0, 10)``. On a CUDA device looking would
            wait for the device, so there an index out of range is a device-side assertion of PyTorch, or NaN.
        BackendUnavailableError: a named backend cannot run; the message gives the reason.

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
    check_images(images, torch.uint8, MAX_CHANNELS)
    check_contiguous("images", images)
    check_vector("indices", indices, torch.int64, device=images.device)
    height, width = images.shape[2:]
    below = f", below the smaller side of images of {height} x {width} pixels"
    pad = as_integer("pad", pad, 0, min(height, width) - 1, below)
    check_flag("flip", flip)
    check_flag("channels_last", channels_last)
    check_dtype(dtype)
    args = GatherArguments(
        images,
        indices,
        as_numbers(mean),
        as_numbers(std),
        pad,
        flip,
        as_seed(seed, images.device),
        as_when("epoch", epoch, images.device),
        dtype,
        channels_last,
        backend,
        as_integer("threads", threads, 0, MAX_THREADS),
    )
    batch: Tensor = library.call("gather_augment", args)
    return batch
