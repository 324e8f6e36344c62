"""``occlude``: random rectangles pasted over images."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from seamfast.checks import MAX_THREADS, as_integer, check_vector
from seamfast.errors import InputError
from seamfast.ops import library
from seamfast.ops.arguments import OccludeArguments, check_images
from seamfast.ops.philox import Counter, as_seed, as_when

__all__ = ["MAX_RECTANGLES", "length_thresholds", "occlude", "thresholds_on"]

MAX_RECTANGLES, MAX_CHANNELS = 64, 4088


def occlude(
    images: Tensor,
    lowest: Tensor,
    highest: Tensor,
    sample_ids: Tensor,
    *,
    n_rectangles: int = 3,
    largest: float = 0.4,
    seed: Counter = 0,
    step: Counter = 0,
    backend: str = "auto",
    threads: int = 0,
) -> tuple[Tensor, Tensor]:
    """``torch.where(rectangle, filling, images)``, ``n_rectangles`` times; and the same with the mean image as filling.

    In distillation the first is the student's input and the second the teacher's: the same parts are hidden from both,
    for the student under patterns, for the teacher under the mean image. A student that matches its teacher ignores
    such patterns.

    A rectangle's sides follow ``1 + floor(largest * side * u ** 1.5)``, ``u`` uniform in [0, 1): small ones are more
    frequent. A rectangle that crosses the border is moved inside, so borders and corners are covered more often than
    the centre: that is where triggers often are, and where clean images hold little. Its filling is, with equal
    probability: one color from the range of the data, one color of extremes, noise of extremes, or the same place of
    another image of the batch.

    Args:
        images: ``(N, C, H, W)`` float32 in any normalization, C from 1 to 4088. Not modified, and not differentiated.
        lowest, highest: ``(C,)`` float32 on the device, the range of the data for each channel.
        sample_ids: ``(N,)`` int64 on the device, the name of each row in the draws.
        n_rectangles: in ``[0, 64]``.
        largest: greatest side as a share of the image's, in ``[0, 1]``.
        seed: in ``[0, 2**64)``; or an int64 0-d tensor on the device, whose 64 bits are the seed.
        step: in ``[0, 2**32)``; or an int64 0-d tensor on the device, taken modulo ``2**32``.
        backend: ``"auto"``, ``"reference"``, ``"cpp"`` or ``"triton"``.
        threads: for ``"cpp"``, at most so many; 0 is as many as PyTorch has.

    Returns:
        The images under patterns, and under the mean image of the batch: new tensors in the
        memory format of ``images``. The same bits on every backend.

    Raises:
        ShapeError: ``images has shape (3, 32, 32); expected (N, C, H, W)``.
        DTypeError: ``images has dtype float64; expected float32``.
        InputError: ``largest is 1.5; expected a number in [0, 1]``.
        BackendUnavailableError: a named backend cannot run; the message gives the reason.

    Source:
        Fillings after random erasing (Zhong et al., arXiv:1708.04896) and CutMix (Yun et al., arXiv:1905.04899).

    Example:
        >>> images, low, high = torch.zeros(2, 1, 8, 8), torch.tensor([-1.0]), torch.tensor([1.0])
        >>> occluded, neutral = occlude(images, low, high, torch.arange(2), seed=3)
        >>> bool((occluded != 0).any()), bool((neutral != 0).any())
        (True, False)
    """
    check_images(images, torch.float32, MAX_CHANNELS)
    n, channels = images.shape[:2]
    for name, value in (("lowest", lowest), ("highest", highest)):
        check_vector(name, value, torch.float32, length=channels, device=images.device)
    check_vector("sample_ids", sample_ids, torch.int64, length=n, device=images.device)
    n_rectangles = as_integer("n_rectangles", n_rectangles, 0, MAX_RECTANGLES)
    if isinstance(largest, bool) or not isinstance(largest, (int, float)) or not 0 <= largest <= 1:
        raise InputError(f"largest is {largest!r}; expected a number in [0, 1]")
    images = images.detach()
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    images = images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    args = OccludeArguments(
        images,
        images.mean(0).contiguous(),
        lowest,
        highest,
        sample_ids,
        n_rectangles,
        float(largest),
        as_seed(seed, images.device),
        as_when("step", step, images.device),
        backend,
        as_integer("threads", threads, 0, MAX_THREADS),
    )
    result: tuple[Tensor, Tensor] = library.call("occlude", args)
    return result


@functools.lru_cache(maxsize=64)
def length_thresholds(side: int, largest: float) -> tuple[int, ...]:
    """A rectangle's side is 1, and one more for each of these 32-bit words that the drawn word reaches.

    ``1 + floor(reach * u ** 1.5) > k`` where ``u`` is at least ``(k / reach) ** (2 / 3)``: in integers, so that all
    backends round alike.
    """
    reach = largest * side
    longest = min(math.floor(reach), side - 1)
    return tuple(min(math.ceil((k / reach) ** (2 / 3) * 2**32), 2**32 - 1) for k in range(1, longest + 1))


# Never evicted: a captured CUDA graph reads the tensor at its address for as long as the graph lives.
@functools.cache
def thresholds_on(side: int, largest: float, device: torch.device) -> Tensor:
    """``length_thresholds`` as int64 on ``device``, padded to a power of two with ``2**32``, which no word reaches."""
    thresholds = length_thresholds(side, largest)
    full = 2 ** len(thresholds).bit_length()
    with torch.inference_mode(False):  # an ordinary tensor, whatever mode the first caller is in
        return torch.tensor(thresholds + (2**32,) * (full - len(thresholds)), dtype=torch.int64, device=device)
