"""Random changes of single columns of a batch, which a label seldom depends on, and the values that they are made of.

A trigger of tabular data is a few columns with values that seldom occur together, or an offset on them. Nothing here
synchronizes with the device, but ``of``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BEYOND = 0.25
"""How far values are drawn beyond the range of a column, as a share of it."""
_ANYWHERE, _AT_AN_END = 0.4, 0.3
"""Shares of the drawn values of floats; the others are those of other samples. A quarter of the samples is not enough
to show a model each value of each column, and the ends are what triggers use."""
_ANY_CATEGORY = 0.6
_FEW = 8
"""Rows that half of a batch shares, so that several samples have the same columns and values, as under a trigger."""
_NOISE, _OFFSET = 1.0, 2.0
"""Largest ones, in standard deviations of the column."""
_SHARE_OFFSET = 0.25
"""Of the columns, the most that get an offset."""


@dataclass(frozen=True)
class Floats:
    """The observed values of ``F`` columns of floats, ``(F,)`` each; ``blank`` is the mean."""

    lowest: Tensor
    highest: Tensor
    blank: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: Tensor, device: torch.device) -> Floats:
        """Of ``(N, F)`` floats, at least one row."""
        std, mean = torch.std_mean(values.float(), 0, correction=0)
        found = (values.amin(0), values.amax(0), mean, std)
        return cls(*(value.to(device, values.dtype) for value in found))

    def drawn(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """``(N, F)`` to overwrite ``values`` with: each is from the range of its column and a little beyond, at one of
        its ends or beyond, or that of another sample."""
        n = len(values)
        kind, place, which = torch.rand(3, *values.shape, generator=generator, device=values.device).to(values.dtype)
        reach = self.highest - self.lowest
        anywhere = self.lowest + reach * ((1 + 2 * _BEYOND) * place - _BEYOND)
        end = torch.where(place < 0.5, self.highest + _BEYOND * which * reach, self.lowest - _BEYOND * which * reach)
        other = values.gather(0, (which * n).long().clamp(max=n - 1))
        return torch.where(kind < _ANYWHERE, anywhere, torch.where(kind < _ANYWHERE + _AT_AN_END, end, other))

    def disturbed(self, values: Tensor, generator: torch.Generator, share: Tensor) -> Tensor:
        """``values``, with noise on a ``share`` of the samples and an offset on some columns of another such share."""
        n, n_columns = values.shape
        device, dtype = values.device, values.dtype
        noisy, strength, offset = torch.rand(3, n, 1, generator=generator, device=device)
        noise = torch.randn(values.shape, generator=generator, device=device).to(dtype)
        drawn = (2 * torch.rand(values.shape, generator=generator, device=device) - 1).to(dtype)
        most = max(math.ceil(_SHARE_OFFSET * n_columns), 1)
        offsets = chosen(n, n_columns, most, generator, device) * drawn
        offsets = offsets[shared(n, generator, device)]
        by = (noisy < share) * _NOISE * strength * noise + (offset < share) * _OFFSET * offsets
        disturbed: Tensor = values + by.to(dtype) * self.std
        return disturbed


@dataclass(frozen=True)
class Categories:
    """The categories of ``G`` columns.

    Attributes:
        table: ``(G, K)`` those that occur, ascending, then repeats of the last.
        n: ``(G,)`` how many occur.
        blank: ``(G,)`` the most frequent one.
    """

    table: Tensor
    n: Tensor
    blank: Tensor

    @classmethod
    def of(cls, values: Tensor, device: torch.device) -> Categories:
        """Of ``(N, G)`` integers, at least one row."""
        found = [torch.unique(column, return_counts=True) for column in values.unbind(1)]
        most = max(len(categories) for categories, _ in found)
        table = torch.stack([torch.cat([c, c[-1:].expand(most - len(c))]) for c, _ in found])
        blank = torch.stack([c[counts.argmax()] for c, counts in found])
        n = torch.tensor([len(c) for c, _ in found], device=values.device)
        return cls(table.to(device), n.to(device), blank.to(device))

    def drawn(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """``(N, G)`` to overwrite ``values`` with: each is any category that occurs, or that of another sample."""
        n, n_columns = values.shape
        kind, place = torch.rand(2, n, n_columns, generator=generator, device=values.device)
        row = (place * self.n).long().minimum(self.n - 1)
        anywhere = self.table.expand(n, *self.table.shape).gather(2, row[..., None])[..., 0]
        other = values.gather(0, (place * n).long().clamp(max=n - 1))
        return torch.where(kind < _ANY_CATEGORY, anywhere, other)

    def disturbed(self, values: Tensor, generator: torch.Generator, share: Tensor) -> Tensor:
        """``values``: there is no little noise on categories."""
        return values


Columns = Floats | Categories


def chosen(n: int, n_columns: int, most: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """``(N, F)`` bool: 1 to ``most`` random columns of each row; the number is log-uniform."""
    ranks = torch.rand(n, n_columns, generator=generator, device=device).argsort(1).argsort(1)
    number = torch.exp(math.log(most + 1) * torch.rand(n, 1, generator=generator, device=device)).floor()
    return ranks < number


def shared(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """``(N,)`` int64: the row whose columns and values each row gets: its own, or for half of them one of a few."""
    own, which = torch.rand(2, n, generator=generator, device=device)
    return torch.where(own < 0.5, torch.arange(n, device=device), (which * min(_FEW, n)).long())
