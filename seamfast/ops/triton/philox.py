"""Philox4x32-10 inside Triton kernels: the same words as ``seamfast.ops.philox``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from seamfast.ops.philox import Counter


def counter(value: Counter, unused: Tensor) -> tuple[int, Tensor]:
    """A seed or step as the kernels take it, for ``scalar``: ``(number, any tensor)``, or ``(0, tensor)``."""
    return (0, value) if isinstance(value, Tensor) else (value, unused)


@triton.jit
def draw_words(seed, ids, when, stream: tl.constexpr):
    """``seamfast.ops.philox.draw``: four uint32 blocks for int64 ``ids``; ``seed`` and ``when`` are int64 scalars."""
    zero = (ids & 0).to(tl.uint32)
    c0 = (ids & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((ids >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c2 = zero + (when & 0xFFFFFFFF).to(tl.uint32)
    c3 = zero + stream
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        a, b = c0, c2
        high_a, high_b = tl.umulhi(a, zero + 0xD2511F53), tl.umulhi(b, zero + 0xCD9E8D57)
        c0 = high_b ^ c1 ^ k0
        c2 = high_a ^ c3 ^ k1
        c1 = b * (zero + 0xCD9E8D57)
        c3 = a * (zero + 0xD2511F53)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def below(words, bound):
    """``words * bound >> 32``: uint32 words to int64 in ``[0, bound)``."""
    return ((words.to(tl.uint64) * bound) >> 32).to(tl.int64)


@triton.jit
def scalar(value, pointer, is_pointer: tl.constexpr):
    """The number, or the value of the counter on the device: int64."""
    if is_pointer:
        return tl.load(pointer)
    return value.to(tl.int64) + tl.zeros((), tl.int64)  # the interpreter leaves numbers of 32 bits as they are
