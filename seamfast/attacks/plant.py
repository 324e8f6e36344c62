"""``plant``: any of the published attacks on any model, in one call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.attacks.input_aware import InputAware, train_input_aware
from seamfast.attacks.known import attack_of, check_order, known_attack
from seamfast.attacks.train import TrainConfig, train
from seamfast.data import CleanSet, as_clean_set
from seamfast.data.resident import Resident
from seamfast.engine.model import device_of, evaluating, logits_of, resolve_device
from seamfast.errors import InputError
from seamfast.evaluate import Evaluation, TriggerEvaluation, evaluate
from seamfast.metrics import Rate
from seamfast.ops import OUTCOMES, count_outcomes
from seamfast.triggers import Trigger

__all__ = ["Backdoor", "plant"]


@dataclass(frozen=True)
class Backdoor:
    """A backdoor in some model, as its attacker knows it.

    Attributes:
        attack: its name in ``ATTACKS``; ``""`` where that is not known.
        triggers: what to stamp at test time: one, or several that all work. Each has a ``name``, a ``target`` (the
            label map) and ``stamp(images, sample_ids=..., seed=...)``.
    """

    attack: str
    triggers: tuple[Trigger | InputAware, ...]

    @property
    def table_triggers(self) -> tuple[Trigger, ...]:
        """Those that ``seamfast.evaluate`` and ``seamfast.sanitize`` take: all but an ``InputAware``."""
        return tuple(t for t in self.triggers if isinstance(t, Trigger))

    def evaluate(
        self,
        model: nn.Module,
        data: Any,
        *,
        batch_size: int = 512,
        seed: int = 0,
        device: str | torch.device = "auto",
        progress: bool | None = None,
    ) -> Evaluation:
        """``seamfast.evaluate`` with the backdoor's triggers, an ``InputAware`` among them or not.

        Args, Returns, Raises: as ``seamfast.evaluate``.
        """
        samples = as_clean_set(data)
        result = evaluate(
            model,
            samples,
            triggers=self.table_triggers,
            batch_size=batch_size,
            seed=seed,
            device=device,
            progress=progress,
        )
        generated = [t for t in self.triggers if isinstance(t, InputAware)]
        home = device_of(model) if device == "auto" else resolve_device(device, model)
        if generated and home != device_of(model):
            model = copy.deepcopy(model).to(home)
        counted = [
            _count(model, trigger, samples, len(result.class_accuracy), batch_size, home) for trigger in generated
        ]
        return replace(
            result,
            triggers=(*result.triggers, *(evaluation for evaluation, _ in counted)),
            n_nan=result.n_nan + sum(n_nan for _, n_nan in counted),
        )


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
    device: str | torch.device = "auto",
    precision: str = "auto",
    progress: bool | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Backdoor:
    """``model`` trained in place with the backdoor of the published attack ``name``; what to stamp is returned.

    For all attacks but ``input_aware``, which takes a training of its own, it equals
    ``train(model, known_attack(name, data, ...).data, training, ...)``. The weights start as they are: seed torch
    before building the model.

    Args:
        name, data, target, rate, seed, clean_model: as for ``known_attack``. For ``input_aware``, the rate is the share
            of each batch, at least one sample and at most half of it.
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
    attack = attack_of(name)
    how: dict[str, Any] = {
        "seed": seed,
        "device": device,
        "precision": precision,
        "progress": progress,
        "on_epoch": on_epoch,
    }
    if not attack.manipulates_training:
        planted = known_attack(name, data, target=target, rate=rate, seed=seed, clean_model=clean_model)
        train(model, planted.data, training, **how)
        return Backdoor(name, planted.triggers)
    check_order(name, data, target, rate, seed, clean_model)
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    trigger = train_input_aware(model, data, target=target, rate=rate, training=training or TrainConfig(), **how)
    return Backdoor(name, (trigger,))


def _count(
    model: nn.Module, trigger: InputAware, samples: CleanSet, num_classes: int, batch_size: int, device: torch.device
) -> tuple[TriggerEvaluation, int]:
    """What the trigger does to the eligible samples, and how many rows of logits held NaN."""
    eligible = trigger.target.eligible(samples.labels, num_classes).nonzero().flatten()
    stamped = trigger.stamp(samples.pixels(eligible), sample_ids=eligible)
    shown = Resident(CleanSet(stamped, samples.labels[eligible], mean=samples.mean, std=samples.std), device)
    targets = trigger.target.targets(torch.arange(num_classes, device=device), num_classes)[None]
    counters: Tensor = torch.zeros(2, len(OUTCOMES), dtype=torch.int64, device=device)
    with evaluating(model):
        for rows in torch.split(torch.arange(len(eligible), device=device), batch_size):
            logits = logits_of(model, shown.inputs(rows)).float()
            count_outcomes(logits, shown.labels[rows], targets, 0, counters=counters)
    row = dict(zip(OUTCOMES, counters[0].tolist(), strict=True))
    rates = (Rate(row["n_hit"], row["n_eligible"]), Rate(row["n_restored"], row["n_eligible"]))
    return TriggerEvaluation(trigger.name, *rates), row["n_nan"]
