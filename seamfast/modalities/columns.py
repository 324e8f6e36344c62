"""Random changes of single columns of a batch, which a label seldom depends on, and the ranges that they are drawn in.

A trigger of tabular data is a few columns with values that seldom occur, or an offset on them. Nothing here
synchronizes with the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BEYOND = 0.25
"""How far values are drawn beyond the range of a column, as a share of it."""
_SHARED = 8
"""Sets of columns and values of which half of the samples get one, so that several samples have the same."""


@dataclass(frozen=True)
class Floats:
    """The observed values of ``F`` columns of floats, ``(F,)`` each."""

    lowest: Tensor
    highest: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: Tensor, device: torch.device) -> Floats:
        """Of ``(N, F)`` floats, at least one row."""
        wide = values.double() if values.device.type != "mps" else values.float()
        std, mean = torch.std_mean(wide, 0, correction=0)
        found = (values.amin(0), values.amax(0), mean, std)
        return cls(*(value.to(device, values.dtype) for value in found))

    @property
    def reach(self) -> Tensor:
        return self.highest - self.lowest

    def drawn(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """``(N, F)`` values to overwrite ``values`` with: each is drawn from the column's range and a little beyond, is
        one of its ends, or is the value of another sample."""
        n, f = values.shape
        draw = torch.rand(3, n, f, generator=generator, device=values.device)
        kind, place, which = draw[0], draw[1], draw[2]
        low, reach = self.lowest, self.reach
        anywhere = low + reach * ((1 + 2 * _BEYOND) * place - _BEYOND)
        end = low + reach * ((place < 0.5) * (1 + _BEYOND * which) - (place >= 0.5) * (_BEYOND * which))
        other = values.gather(0, (which * n).long().clamp(max=n - 1))
        return torch.where(kind < 0.4, anywhere, torch.where(kind < 0.7, end, other)).to(values.dtype)

    @property
    def blank(self) -> Tensor:
        return self.mean


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
        """``(N, G)`` values to overwrite ``values`` with: any category, or that of another sample."""
        n, g = values.shape
        draw = torch.rand(2, n, g, generator=generator, device=values.device)
        place = (draw[0] * self.n).long().minimum(self.n - 1)
        anywhere = self.table.expand(n, *self.table.shape).gather(2, place[..., None])[..., 0]
        other = values.gather(0, (draw[0] * n).long().clamp(max=n - 1))
        return torch.where(draw[1] < 0.6, anywhere, other)


Columns = Floats | Categories


def chosen(n: int, n_columns: int, most: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """``(N, F)`` bool: 1 to ``most`` random columns of each row; small numbers are as likely as large ones.

    The number is log-uniform.
    """
    ranks = torch.rand(n, n_columns, generator=generator, device=device).argsort(1).argsort(1)
    number = torch.exp(math.log(most + 1) * torch.rand(n, 1, generator=generator, device=device)).floor()
    return ranks < number


def shared(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """``(N,)`` int64: for each row, the row whose columns and values it gets: half of the rows get one of a few."""
    draw = torch.rand(2, n, generator=generator, device=device)
    own = torch.arange(n, device=device)
    return torch.where(draw[0] < 0.5, own, (draw[1] * min(_SHARED, n)).long())
