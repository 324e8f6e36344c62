"""A schedule without a stop rule, so that everybody does the same steps; and the arithmetic that all share."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.baselines.occlude import occlude
from seamfast import SeamConfig
from seamfast.data.mixing import mix_up
from seamfast.data.split import split_by_class
from seamfast.engine.run import distillation_loss
from seamfast.methods.schedules import cosine


class Stepper:
    """A fused optimizer of ``torch.optim``; where rates are relative, with a group of its own for each tensor."""

    def __init__(
        self, model: nn.Module, make: Callable[[Any], torch.optim.Optimizer], *, relative: bool = True
    ) -> None:
        def size(p: Tensor) -> float:
            return max(float(p.detach().square().mean().sqrt()), 0.1 if p.ndim < 2 else 1e-8)

        if relative:
            self.optimizer = make([{"params": [p], "size": size(p)} for p in model.parameters()])
        else:
            self.optimizer = make([{"params": list(model.parameters()), "size": 1.0}])

    def step(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["size"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Schedule:
    """Of SEAM: settings whose stop rules never apply, and the clean data, split as ``sanitize`` splits it."""

    config: SeamConfig
    clean: seamfast.CleanSet
    seed: int = 0

    @classmethod
    def of(cls, clean: seamfast.CleanSet, forget: int, recover: int, base: SeamConfig | None = None) -> Schedule:
        """``forget`` and ``recover`` steps of ``base``, all taken, in one attempt."""
        config = dataclasses.replace(
            base or SeamConfig(),
            strengths=(1.0,),
            forget_max_steps=forget,
            recover_max_steps=recover,
            forget_until=1e-9,
            recover_until=None,
            accuracy_budget=1.0,
        )
        return cls(config, clean)

    def split(self) -> Any:
        return split_by_class(
            self.clean.labels,
            holdout_fraction=self.config.holdout_fraction,
            forget_fraction=self.config.forget_fraction,
            seed=self.seed,
        )

    def optimizer(self, model: nn.Module, phase: str) -> Stepper:
        c = self.config
        betas = (0.9, 0.999) if phase == "forget" else (c.recover_betas[0], c.recover_betas[1])
        if c.optimizer == "relative_adam":
            return Stepper(model, lambda groups: torch.optim.AdamW(groups, betas=betas, weight_decay=0.0, fused=True))
        decay = c.forget_weight_decay if phase == "forget" else c.recover_weight_decay
        return Stepper(
            model, lambda groups: torch.optim.Adam(groups, betas=betas, weight_decay=decay, fused=True), relative=False
        )

    def rate(self, phase: str, step: int) -> float:
        c = self.config
        if phase == "forget":
            return c.forget_rate
        return c.recover_rate * (cosine(step / c.recover_max_steps) if c.recover_schedule == "cosine" else 1.0)

    def steps(self, phase: str) -> int:
        return self.config.forget_max_steps if phase == "forget" else self.config.recover_max_steps

    def evaluates_after(self, phase: str, step: int) -> bool:
        c = self.config
        every = c.forget_eval_every if phase == "forget" else c.recover_eval_every
        return (step + 1) % every == 0 or step == self.steps(phase) - 1


def seamfast_run(schedule: Schedule, model: nn.Module, **more: Any) -> nn.Module:
    """The same by seamfast, all that a caller gets included: copy, split, probe, measurements, report."""
    clean, config, seed = schedule.clean, schedule.config, schedule.seed
    return seamfast.sanitize(model, clean, config=config, seed=seed, progress=False, **more).model


def loss_of(
    schedule: Schedule,
    phase: str,
    inputs: Tensor,
    labels: Tensor,
    student: Callable[[Tensor], Tensor],
    teacher: Callable[[Tensor], Tensor],
    ends: tuple[Tensor, Tensor],
    generator: torch.Generator,
    classes: int,
) -> Tensor:
    """The loss of one step, by plain tensor operations."""
    c = schedule.config
    if phase == "forget":
        seen = occlude(inputs, *ends, generator, n_rectangles=c.occlusions)[0] if c.occlusions else inputs
        drawn = torch.randint(0, classes - 1, labels.shape, device=labels.device)
        return F.cross_entropy(student(seen), drawn + (drawn >= labels))
    targets = F.one_hot(labels, classes).float()
    if c.mixing:
        inputs, partner, weight = mix_up(inputs, c.mixing, generator)
        targets = torch.lerp(targets[partner], targets, weight[:, None])
    seen, neutral = occlude(inputs, *ends, generator, n_rectangles=c.occlusions) if c.occlusions else (inputs, inputs)
    logits = student(seen)
    loss = F.cross_entropy(logits, targets)
    if c.distillation:
        with torch.no_grad():
            received = teacher(neutral)
        loss = torch.lerp(loss, distillation_loss(logits, received, c.temperature), c.distillation)
    return loss


def ends_of(clean: seamfast.CleanSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """The least and greatest normalised value of each channel."""
    channels = clean.image_shape[0]
    both = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, channels, 1, 1)
    normal = clean.normalize(both).to(device)
    return normal[:1], normal[1:]


def frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)
