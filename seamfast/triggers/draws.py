"""The random numbers of triggers: Philox4x32-10 words, a function of seed, sample and place alone.

Key = seed; counter = (sample id low, sample id high, block, stream), as everywhere in seamfast. A block is four words.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seamfast.checks import as_seed
from seamfast.ops.philox import philox4x32

# The stream of random places is seamfast.ops.philox.STREAM_PLACE.
STREAM_NOISE = 17  # WaNet's noise mode: word i is element i of the sample's (H, W, 2) noise
STREAM_PATTERN = 18  # patterns made by factories: word i is element i; the sample id is 0
STREAM_TEXT = 19  # triggers of text: word i is choice i for the sample

WORD = 0xFFFFFFFF


def draw_signed_per_sample(shape: tuple[int, ...], sample_ids: Tensor, seed: int) -> Tensor:
    """``(N, *shape)`` float64, uniform in (-1, 1), on the device of ``sample_ids``."""
    size = math.prod(shape)
    words = _words(sample_ids, -(-size // 4), STREAM_NOISE, seed)[:, :size]
    return words.double().add_(0.5).div_(2**31).sub_(1).reshape(len(sample_ids), *shape)


def draw_words(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.int64]:
    """``shape`` 32-bit words, as int64."""
    size = math.prod(shape)
    words = _words(torch.zeros(1, dtype=torch.int64, device="cpu"), -(-size // 4), STREAM_PATTERN, as_seed(seed, 64))
    return words[0, :size].numpy().reshape(shape)


def draw_signed(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float64]:
    """``shape`` float64 numbers, uniform in (-1, 1), never 0."""
    return (draw_words(shape, seed) + 0.5) / 2**31 - 1


def draw_choices_per_sample(n: int, sample_ids: Tensor, seed: int) -> list[list[int]]:
    """``N`` lists of ``n`` 32-bit words, one list for each of the ``(N,)`` sample ids."""
    words: list[list[int]] = _words(sample_ids, -(-n // 4), STREAM_TEXT, seed)[:, :n].tolist()
    return words


def _words(sample_ids: Tensor, blocks: int, stream: int, seed: int) -> Tensor:
    """``(N, 4 * blocks)`` int64 in ``[0, 2**32)``."""
    ids = sample_ids.view(-1, 1)
    block = torch.arange(blocks, device=ids.device)
    counter = (ids & WORD, (ids >> 32) & WORD, block, torch.full_like(block, stream))
    low, high, when, tag = (word.expand(len(ids), blocks) for word in counter)
    words = philox4x32((low, high, when, tag), (seed & WORD, seed >> 32))
    return torch.stack(words, dim=-1).flatten(1)
