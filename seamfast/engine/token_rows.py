"""``surplus_of_rows``: tokens that a model has learned more of than clean texts explain.

Training moves the row of a token the further, the more often the token occurs. A trigger is in a tenth of the training
texts, say, and in no clean one: its row is larger than those of tokens that are as rare.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_SEEN = 8
"""Occurrences in clean texts up to which tokens are compared; a token of the task may occur as often as a trigger."""
_FEWEST = 20
"""Tokens that occur equally often; fewer are not compared."""
_LEAST_SPREAD = 0.01
"""As a share of the median size."""


def surplus_of_rows(rows: Tensor, counts: Tensor, allowed: Tensor) -> Tensor:
    """``(size - median) / spread`` of each row, where both are of the tokens that occur equally often.

    ``size`` is ``(rows - rows[allowed].mean(0)).norm(dim=1)``, and ``spread`` half of the range of its middle 68 %: one
    standard deviation if it were normal.

    Args:
        rows: ``(V, d)`` floats: the table of embeddings, finite.
        counts: ``(V,)`` integers: how often each token occurs in clean texts.
        allowed: ``(A,)`` int64: the tokens that texts may have.

    Returns:
        ``(V,)`` float32; ``-inf`` for tokens that are not allowed, occur more than eight times, or equally often as
        fewer than twenty do.
    """
    is_allowed = torch.zeros(len(rows), device=rows.device)
    is_allowed[allowed] = 1.0
    centre = is_allowed @ rows.float() / is_allowed.sum()
    # Without a copy of the table.
    size = torch.cdist(rows.float(), centre[None], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
    surplus = torch.full_like(size, -torch.inf)
    for n in range(_MOST_SEEN + 1):
        alike = allowed[counts[allowed] == n]
        if len(alike) < _FEWEST:
            continue
        low, median, high = size[alike].quantile(size.new_tensor([0.16, 0.5, 0.84]))
        spread = torch.maximum((high - low) / 2, _LEAST_SPREAD * median)
        surplus[alike] = ((size[alike] - median) / spread).nan_to_num(0.0)
    return surplus
