"""``edited``: tokens taken out of a batch of texts and put into it, without a sync."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """A batch of texts.

    Attributes:
        ids: ``(B, L)`` int64.
        attended: ``(B, L)`` int64, 1 where there is a token.
        types: ``(B, L)`` int64 token types, or ``None``.
    """

    ids: Tensor
    attended: Tensor
    types: Tensor | None = None


def edited(
    tokens: Tokens, kept: Tensor, inserted: Tensor, gaps: Tensor, used: Tensor, *, pad: int, width: int, longest: int
) -> Tokens:
    """For each text ``[t for t, k in zip(tokens, kept) if k]``, with ``inserted[i]`` put before ``tokens[gaps[i]]``.

    Args:
        tokens: not modified.
        kept: ``(B, L)`` bool: tokens that stay; those that are not attended always do.
        inserted: ``(B, I)`` int64 ids. Those at one gap keep their order.
        gaps: ``(B, I)`` int64 in ``[0, L]``, of the tokens as given.
        used: ``(B, I)`` bool: whether to insert it. Where a text would end behind column ``longest``, the last ones are
            left out.
        pad: the id of what follows a text.
        width: columns of the result. What does not fit is cut, so choose at least ``min(L + I, longest)``.
        longest: columns that a text may reach to.

    Returns:
        Tokens, new, ``(B, width)``. Token types of inserted tokens are those of the tokens in front of them.
    """
    ids, attended, types = tokens
    n_rows, length = ids.shape
    kept = kept | (attended == 0)
    columns = torch.arange(1, length + 1, device=ids.device)
    end = torch.where(kept, torch.cumsum(kept, 1), 0).masked_fill(attended == 0, 0).amax(1, keepdim=True)
    used = used & (end + torch.cumsum(used, 1) <= longest)

    n_before = torch.cat([kept.new_zeros(n_rows, 1, dtype=torch.int64), torch.cumsum(kept, 1)], 1)  # kept, by gap
    earlier = used[:, None, :] & (gaps[:, None, :] <= columns[:, None] - 1)  # inserted before each token
    place = n_before[:, :-1] + earlier.sum(2)
    order = torch.arange(gaps.shape[1], device=ids.device)
    first = (gaps[:, None, :] < gaps[:, :, None]) | ((gaps[:, None, :] == gaps[:, :, None]) & (order < order[:, None]))
    own_place = n_before.gather(1, gaps) + (first & used[:, None, :]).sum(2)

    # One column more takes what is left out and what does not fit.
    places = torch.cat([torch.where(kept, place, width), torch.where(used, own_place, width)], 1).clamp(max=width)

    def laid_out(values: Tensor, new: Tensor, fill: int) -> Tensor:
        result = values.new_full((n_rows, width + 1), fill)
        return result.scatter_(1, places, torch.cat([values, new], 1))[:, :width]

    types_out = None
    if types is not None:
        types_out = laid_out(types, types.gather(1, (gaps - 1).clamp(min=0)), 0)
    return Tokens(laid_out(ids, inserted, pad), laid_out(attended, torch.ones_like(inserted), 0), types_out)


def places_of(uniform: Tensor) -> Tensor:
    """Where to insert, of uniform numbers in [0, 1): 0 is in front of a text, 1 behind it.

    A third each: in front, behind, and anywhere. Training inserts where the search does.
    """
    return (3 * uniform - 1).clamp(0, 1)
