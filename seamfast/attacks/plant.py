"""``plant``: a published attack on a model, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from seamfast.attacks.known import checked_attack, known_attack
from seamfast.attacks.train import TrainConfig, train
from seamfast.data import CleanSet
from seamfast.errors import InputError
from seamfast.evaluate import Evaluation, evaluate
from seamfast.triggers import Table, Trigger

__all__ = ["Backdoor", "plant"]


@dataclass(frozen=True)
class Backdoor:
    """A backdoor in a model.

    Attributes:
        attack: its name in ``ATTACKS``; ``""`` if unknown.
        triggers: to stamp at test time; one, or several that all work.
    """

    attack: str
    triggers: tuple[Trigger, ...]

    @property
    def table_triggers(self) -> tuple[Trigger, ...]:
        """Deprecated: ``triggers``, which ``seamfast.evaluate`` and ``seamfast.sanitize`` take."""
        warnings.warn("Backdoor.table_triggers is Backdoor.triggers", DeprecationWarning, stacklevel=2)
        return self.triggers

    def evaluate(self, model: nn.Module, data: Any, **options: Any) -> Evaluation:
        """``seamfast.evaluate(model, data, triggers=self.triggers, **options)``."""
        return evaluate(model, data, triggers=self.triggers, **options)


def plant(
    name: str,
    model: nn.Module,
    data: CleanSet,
    *,
    target: int = 0,
    rate: float = 0.05,
    training: TrainConfig | None = None,
    seed: int = 0,
    clean_model: nn.Module | None = None,
    table: Table | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    progress: bool | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Backdoor:
    """Train ``model`` in place with the backdoor of the published attack ``name``, and return the triggers.

    Equals ``train(model, known_attack(name, data, ...).data, training, ...)``, but ``input_aware`` and ``ep`` have
    their own training. The weights are not initialized here: seed torch before building the model.

    Args:
        name, data, target, rate, seed, clean_model, table: as for ``known_attack``. For ``input_aware``, the rate is
            the share of each batch, from one sample to half of the batch.
        model: returns logits; in eval mode on ``device`` afterwards.
        training: ``None`` for the defaults of ``TrainConfig``.
        device, progress, on_epoch: as for ``train``.
        precision: as for ``train``; by default the fastest whose gradients agree with float32's.

    Returns:
        Backdoor.

    Raises:
        InputError, ShapeError, ModelError: as ``known_attack`` and ``train``.

    Example:
        >>> import seamfast
        >>> data = seamfast.load("digits")
        >>> _ = torch.manual_seed(0)
        >>> model = seamfast.attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
        >>> plant("badnets", model, data, target=3, training=TrainConfig(epochs=1)).triggers
        (Patch('badnets', 3x3 at (-3, -3), AllToOne(target=3)),)
    """
    attack = checked_attack(name, data, target, rate, seed, clean_model, table)
    options: dict[str, Any] = {"seed": seed, "device": device, "precision": precision}
    options |= {"progress": progress, "on_epoch": on_epoch}
    if attack.trains is None:
        poisoning: dict[str, Any] = {"seed": seed, "clean_model": clean_model, "table": table}
        planted = known_attack(name, data, target=target, rate=rate, **poisoning)
        train(model, planted.data, training, **options)
        return Backdoor(name, planted.triggers)
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    how = training or TrainConfig()
    return Backdoor(name, attack.trains(model, data, target=target, rate=rate, training=how, **options))
