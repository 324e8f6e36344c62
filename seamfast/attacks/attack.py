"""``Attack``, the row of a published attack in its table, and ``Poisoning``, what it makes of a training set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from seamfast.data import PoisonedSet
from seamfast.triggers import Trigger

TO_TARGET = "any class to the target"
CLEAN_LABEL = "none: samples of the target class keep their labels"
"""``Attack.labels`` of the attacks that are the most common."""


@dataclass(frozen=True)
class Poisoning:
    """A poisoned training set and its triggers.

    Attributes:
        data: to train on; ``.poisoned`` marks all changed samples, including those with unchanged labels.
        triggers: to stamp at test time; one, or several that all work.
    """

    data: PoisonedSet
    triggers: tuple[Trigger, ...]


@dataclass(frozen=True)
class Attack:
    """A published attack as implemented here.

    Attributes:
        stamps: the change of a sample.
        labels: the classes of stamped training samples, before and after.
        source: the paper.
        differs: the differences from the paper.
        needs_clean_model: whether it requires a model trained without a backdoor.
        needs_table: whether it requires the changed form of each text, a ``seamfast.triggers.Table``.
        poisons: poisons a training set.
        trains: trains a model instead, where the attack is more than a poisoned training set; only ``plant`` takes
            such attacks.
    """

    stamps: str
    labels: str
    source: str
    differs: str
    needs_clean_model: bool = False
    needs_table: bool = False
    poisons: Callable[..., Poisoning] | None = field(default=None, repr=False)
    trains: Callable[..., tuple[Trigger, ...]] | None = field(default=None, repr=False)

    @property
    def manipulates_training(self) -> bool:
        """Whether it is more than a poisoned training set."""
        return self.trains is not None
