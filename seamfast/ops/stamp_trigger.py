"""``stamp_trigger``: a batch of triggered images from resident uint8 images, ready for the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seamfast.checks import MAX_THREADS, as_integer, check_flag, check_vector
from seamfast.errors import InputError, ShapeError
from seamfast.ops import library
from seamfast.ops.arguments import StampArguments, check_contiguous, check_dtype, check_images
from seamfast.ops.normalization import MAX_CHANNELS, as_numbers
from seamfast.ops.philox import Counter, as_seed
from seamfast.ops.trigger_table import Packable, TriggerTable

__all__ = ["stamp_trigger"]


def stamp_trigger(
    images: Tensor,
    indices: Tensor,
    triggers: TriggerTable | Packable | Sequence[Packable],
    trigger_ids: Tensor | int = 0,
    *,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    sample_ids: Tensor | None = None,
    seed: Counter = 0,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str = "auto",
    threads: int = 0,
) -> Tensor:
    """``((trigger.stamp(images[indices]) / 255 - mean) / std).to(dtype)``, each image with its own trigger.

    All backends give the same bits: those of ``Trigger.stamp``, which defines how each kind rounds to uint8, and of
    ``seamfast.ops.normalization``.

    Args:
        images: ``(N, C, H, W)`` uint8, contiguous, 1 to 4 channels.
        indices: ``(B,)`` int64 in ``[0, N)``, on the device of ``images``.
        triggers: a ``TriggerTable`` on that device; or a trigger, or several: then every call makes a table.
        trigger_ids: which trigger each image gets: ``(B,)`` int64 in ``[-1, T)``, -1 for none; or one integer for all.
        mean, std: one number a channel or one for all, in units of the ``[0, 1]`` pixel scale.
        sample_ids: ``(B,)`` int64, by which random places are drawn; default ``indices``.
        seed: in ``[0, 2**64)``; or an int64 0-d tensor on the device, whose 64 bits are the seed.
        dtype: float32, bfloat16 or float16.
        channels_last: lay the result out as ``torch.channels_last``.
        backend: ``"auto"``, ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.
        threads: for ``"cpp"``, at most so many; 0 is as many as PyTorch has.

    Returns:
        ``(B, C, H, W)`` of ``dtype`` on the device of ``images``.

    Raises:
        DTypeError: ``images has dtype float32; expected uint8``.
        ShapeError: ``the trigger table is for images of (3, 32, 32); these are (1, 28, 28)``.
        InputError: ``trigger_ids hold 2 at position 0; expected integers in [-1, 2)``, ``indices hold 10 at position 2;
            expected integers in [0, 10)``. On a CUDA device looking would wait for the device, so there an index out of
            range is an assertion on the device, or NaN.
        BackendUnavailableError: a named backend cannot run; the message gives the reason.

    Source:
        The kinds' papers: ``seamfast.triggers``. Draws: ``seamfast.ops.philox``.

    Example:
        >>> from seamfast.triggers import Patch
        >>> images = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
        >>> stamp_trigger(images, torch.tensor([3]), Patch.square(size=1, margin=0), mean=0.0, std=1.0)
        tensor([[[[0., 0.],
                  [0., 1.]]]])
    """
    check_images(images, torch.uint8, MAX_CHANNELS)
    check_contiguous("images", images)
    check_vector("indices", indices, torch.int64, device=images.device)
    n, image_shape = indices.shape[0], tuple(images.shape[1:])
    if not isinstance(triggers, TriggerTable):
        several = triggers if isinstance(triggers, Sequence) else [triggers]
        triggers = TriggerTable.of(several, image_shape, images.device)
    if triggers.image_shape != image_shape:
        raise ShapeError(f"the trigger table is for images of {triggers.image_shape}; these are {image_shape}")
    if triggers.numbers.device != images.device:
        raise InputError(f"the trigger table is on {triggers.numbers.device}; expected {images.device}")
    if isinstance(trigger_ids, Tensor):
        check_vector("trigger_ids", trigger_ids, torch.int64, length=n, device=images.device)
    else:
        one = as_integer("trigger_ids", trigger_ids, -1, len(triggers) - 1, " or a tensor of such")
        trigger_ids = torch.full((n,), one, dtype=torch.int64, device=images.device)
    if sample_ids is None:
        sample_ids = indices
    check_vector("sample_ids", sample_ids, torch.int64, length=n, device=images.device)
    check_flag("channels_last", channels_last)
    check_dtype(dtype)
    args = StampArguments(
        images,
        indices,
        trigger_ids,
        sample_ids,
        triggers.rows,
        triggers.device_rows,
        triggers.numbers,
        as_numbers(mean),
        as_numbers(std),
        as_seed(seed, images.device),
        dtype,
        channels_last,
        backend,
        as_integer("threads", threads, 0, MAX_THREADS),
    )
    batch: Tensor = library.call("stamp_trigger", args)
    return batch
