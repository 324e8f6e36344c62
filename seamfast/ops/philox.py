"""Philox4x32-10 in PyTorch: the same words as ``csrc/philox.h``, on any device, without a host sync."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.checks import as_integer, dtype_name
from seamfast.errors import DTypeError, InputError, ShapeError

__all__ = [
    "STREAMS_OF_NOISE",
    "STREAMS_OF_RECTANGLE",
    "STREAM_AUGMENT",
    "STREAM_LABELS",
    "STREAM_OCCLUDE",
    "STREAM_PLACE",
    "Counter",
    "as_seed",
    "as_when",
    "below",
    "draw",
    "philox4x32",
]

STREAM_AUGMENT = 1
"""Last counter word of the draws behind crops and flips."""
STREAM_LABELS = 2
"""Last counter word of the draws behind random labels."""
STREAM_PLACE = 16
"""Last counter word of the draws behind patches at random places."""
STREAM_OCCLUDE = 32
"""First of the last counter words of the draws behind pasted rectangles."""
STREAMS_OF_RECTANGLE = 1 << 10
"""Streams of each rectangle: its sides, its kind, and its colors, four channels each."""
STREAMS_OF_NOISE = 1 << 24
"""Streams of each rectangle's noise: block ``b`` of 128 bits of rectangle ``r`` is ``(r + 1) * 2**24 + b``."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

Words = tuple[Tensor, Tensor, Tensor, Tensor]

Counter = int | Tensor
"""A seed, step or epoch: a number, or an int64 0-d tensor on the device that a captured graph reads at each replay."""


def philox4x32(counter: Words, key: tuple[int | Tensor, int | Tensor]) -> Words:
    """Four 32-bit words for each counter: ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one shape, each element in ``[0, 2**32)``.
        key: two integers in ``[0, 2**32)``, or int64 0-d tensors that hold such.

    Returns:
        Four int64 tensors of that shape, each element in ``[0, 2**32)``.

    Source:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

    Example:
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> [f"{int(word):08x}" for word in philox4x32((zero, zero, zero, zero), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two 32-bit words fills 64 bits unsigned. int64 wraps to the same bits; the masks remove the sign.
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = _high(b) ^ c1 ^ k0, b & _MASK, _high(a) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def draw(seed: Counter, sample_ids: Tensor, when: Counter, stream: int | Tensor) -> Words:
    """Four random words for each sample: ``philox4x32((id low, id high, when, stream), key=seed)``.

    Args:
        seed: its lowest 64 bits; or an int64 0-d tensor on the device of ``sample_ids``, whose 64 bits are the seed.
        sample_ids: int64, any shape.
        when: the epoch or step, in ``[0, 2**32)``; or an int64 0-d tensor on the device of ``sample_ids``, taken modulo
            ``2**32``, so that a captured graph can count steps on the device.
        stream: the purpose of the draws, see ``STREAM_*`` above; or an int64 tensor of streams, for many draws at once.

    Returns:
        Four int64 tensors shaped as ``sample_ids``, or as that and ``stream`` broadcast; each element in
        ``[0, 2**32)``.
    """
    if isinstance(stream, Tensor):
        sample_ids, streams = torch.broadcast_tensors(sample_ids, stream)  # type: ignore[no-untyped-call]
    else:
        streams = torch.full_like(sample_ids, stream)
    step = (when & _MASK).expand_as(sample_ids) if isinstance(when, Tensor) else torch.full_like(sample_ids, when)
    counter = (sample_ids & _MASK, _high(sample_ids), step, streams)
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))


def below(words: Tensor, bound: int) -> Tensor:
    """``words * bound >> 32``: 32-bit words to integers in ``[0, bound)``, for ``bound`` up to ``2**31``.

    Source:
        Lemire, "Fast Random Integer Generation in an Interval", ACM TOMACS 29(1), 2019, without the rejection step: an
        outcome's probability is off by less than ``2**-32``.
    """
    return (words * bound) >> 32


def as_seed(seed: Counter, device: torch.device) -> Counter:
    """``seed`` as a signed 64-bit integer with the same bits; a tensor as it is.

    Raises unless ``seed`` is an integer in ``[0, 2**64)`` or an int64 0-d tensor on ``device``.
    """
    if isinstance(seed, Tensor):
        return _counter("seed", seed, device)
    number = as_integer("seed", seed, 0, 2**64 - 1, " or an int64 0-d tensor")
    return number - 2**64 * (number >> 63)


def as_when(name: str, when: Counter, device: torch.device) -> Counter:
    """``when``, checked.

    Raises unless ``when`` is an integer in ``[0, 2**32)`` or an int64 0-d tensor on ``device``.
    """
    if isinstance(when, Tensor):
        return _counter(name, when, device)
    return as_integer(name, when, 0, _MASK, " or an int64 0-d tensor")


def _counter(name: str, value: Tensor, device: torch.device) -> Tensor:
    if value.dtype != torch.int64:
        raise DTypeError(f"{name} has dtype {dtype_name(value.dtype)}; expected int64")
    if value.ndim != 0:
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; expected () for a counter on the device")
    if value.device != device:
        raise InputError(f"{name} is on {value.device}; expected {device}")
    return value


def _high(value: Tensor) -> Tensor:
    return (value >> 32) & _MASK
