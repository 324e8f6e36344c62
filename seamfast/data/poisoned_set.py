"""``PoisonedSet``: training data with a backdoor in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seamfast.data.clean_set import CleanSet


class PoisonedSet(CleanSet):
    """A ``CleanSet`` some of whose samples carry a trigger; ``sanitize`` refuses it as clean data.

    Args:
        inputs, labels, others: as for ``CleanSet``; the labels are those to train on.
        poisoned: ``(N,)`` bool, which samples were stamped.
    """

    def __init__(self, inputs: Any, labels: Any, *, poisoned: Tensor, **others: Any) -> None:
        super().__init__(inputs, labels, **others)
        self.poisoned = poisoned
