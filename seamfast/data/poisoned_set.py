"""``PoisonedSet``: training data with a backdoor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from seamfast.data.clean_set import CleanSet, as_index


class PoisonedSet(CleanSet):
    """A ``CleanSet`` with triggers on some samples; ``sanitize`` refuses it as clean data.

    Args:
        inputs, labels, others: as for ``CleanSet``; the labels are those to train on.
        poisoned: ``(N,)`` bool: whether a sample was stamped.
    """

    def __init__(self, inputs: Any, labels: Any, *, poisoned: Tensor, **others: Any) -> None:
        super().__init__(inputs, labels, **others)
        self.poisoned = poisoned

    def subset(self, indices: Tensor | Sequence[int]) -> PoisonedSet:
        """As ``CleanSet.subset``: a part of a poisoned set still counts as poisoned."""
        part = super().subset(indices)
        return PoisonedSet(part.inputs, part.labels, poisoned=self.poisoned[as_index(indices)], **self.description)
