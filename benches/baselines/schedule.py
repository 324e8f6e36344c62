"""A schedule without a stop rule, so that everybody does the same steps; and the arithmetic that all share.

What SEAM finds out on its way, and steps by, would make runs differ: where forgetting stops and how often it is
evaluated, the radius, whether the task is easy, whether accuracy comes back. A schedule fixes it: so many steps, one
evaluation at the end of forgetting, this radius, no shorter recovery, one attempt. Images are cropped and flipped as
the settings say, without a search for what the model is invariant to, which costs two passes over up to 256 samples;
dropout layers drop in both phases, as in most training code. All else is as in ``seamfast/methods/seam.py``: the
growing rates of forgetting, patterns and disturbances, the teacher's weight by the accuracy that is missing now and was
at first, the plain end, and the slice of the held-out part that is evaluated. Where the teacher has no weight, it is
not asked; seamfast asks it even then where it replays a graph. Disturbances and waves are computed for as many images
as they can fall on at most, on both sides. Patterns are pasted by ``occlude.py``; mixing, disturbance, waves and
distillation are seamfast's own functions, which are plain tensor operations.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.baselines.occlude import occlude
from seamfast import SeamAuthorsConfig, SeamConfig
from seamfast.data.split import Split, split_by_class
from seamfast.engine.run import _EVALUATION_SHARE, _FEWEST_WATCHED, distillation_loss
from seamfast.methods.schedules import cosine
from seamfast.modalities import ViewSettings
from seamfast.modalities.image.disturb import add_plane_waves, disturb
from seamfast.modalities.mixing import mix_up

RADIUS = 0.3
"""About that of a small CNN on MNIST; it decides how far weights move, not how long that takes."""


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


@dataclass
class Found:
    """What the phase in progress has found out.

    Attributes:
        at_first: accuracy missing at the first evaluation of recovery.
        weight: of the teacher.
    """

    at_first: float | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """Of SEAM: settings whose stop rules never apply, and the clean data, split as ``sanitize`` splits it.

    One run at a time: ``optimizer`` begins a phase and clears ``found``.
    """

    config: SeamConfig | SeamAuthorsConfig
    clean: seamfast.CleanSet
    seed: int = 0
    found: Found = field(default_factory=Found, init=False, compare=False, repr=False)

    @classmethod
    def of(
        cls, clean: seamfast.CleanSet, forget: int, recover: int, base: SeamConfig | SeamAuthorsConfig | None = None
    ) -> Schedule:
        """``forget`` and ``recover`` steps of ``base``, all taken, in one attempt; ``RADIUS`` where one is needed. The
        authors' settings count in epochs: the nearest number of them, at least one."""
        base = base or SeamConfig()
        if isinstance(base, SeamAuthorsConfig):
            epochs = cls(base, clean)._epoch_steps
            config = dataclasses.replace(
                base,
                forget_max_epochs=max(round(forget / epochs("forget")), 1),
                recover_max_epochs=max(round(recover / epochs("recover")), 1),
                forget_patience=10**6,
                recover_patience=10**6,
                accuracy_budget=1.0,
            )
            return cls(config, clean)
        config = dataclasses.replace(
            base,
            invariances=False,
            strengths=(1.0,),
            forget_max_steps=forget,
            forget_until=0.0,
            forget_eval_every=max(forget, 1),
            radius=RADIUS,
            recover_max_steps=recover,
            recover_easy_steps=recover,
            dropout=True,
            accuracy_budget=1.0,
        )
        return cls(config, clean)

    @property
    def method(self) -> str:
        return "seam" if isinstance(self.config, SeamConfig) else "seam_authors"

    @property
    def views(self) -> ViewSettings:
        """What the student's images differ in."""
        c = self.config
        if not isinstance(c, SeamConfig):
            return ViewSettings()
        return ViewSettings(c.mixing, c.occlusions, c.disturbance, c.waves)

    def teacher_weight(self, missing: float, n_holdout: int) -> float:
        """After an evaluation of recovery. Of the accuracy, of which the rule takes two standard errors, only what is
        missing is known here: as of a model that was right on all."""
        if not isinstance(self.config, SeamConfig):
            return 0.0
        if self.found.at_first is None:
            self.found.at_first = missing
        self.found.weight = self.config.teacher_weight(missing, self.found.at_first, 1 - missing, n_holdout)
        return self.found.weight

    def split(self) -> Split:
        return split_by_class(
            self.clean.labels,
            holdout_fraction=self.config.holdout_fraction,
            forget_fraction=self.config.forgotten_share,
            seed=self.seed,
        )

    def optimizer(self, model: nn.Module, phase: str) -> Stepper:
        """Of a phase that begins."""
        self.found.at_first, self.found.weight = None, 1.0
        c = self.config
        if isinstance(c, SeamConfig):
            betas = (0.9, 0.999) if phase == "forget" else (0.9, 0.99)
            return Stepper(model, lambda groups: torch.optim.AdamW(groups, betas=betas, weight_decay=0.0, fused=True))
        betas = (0.9, 0.999) if phase == "forget" else (c.recover_betas[0], c.recover_betas[1])
        decay = c.forget_weight_decay if phase == "forget" else c.recover_weight_decay
        return Stepper(
            model, lambda groups: torch.optim.Adam(groups, betas=betas, weight_decay=decay, fused=True), relative=False
        )

    def rate(self, phase: str, step: int) -> float:
        c = self.config
        if not isinstance(c, SeamConfig):
            return c.forget_rate if phase == "forget" else c.recover_rate
        if phase == "forget":
            return c.forget_rate_at(step)
        return c.recover_rate * RADIUS * cosine(step / c.recover_max_steps)

    def changes(self, phase: str, step: int) -> float:
        """1 while images are changed, 0 at the plain end of recovery."""
        c = self.config
        return float(isinstance(c, SeamConfig) and (phase == "forget" or step / c.recover_max_steps < 1 - c.plain_end))

    def steps(self, phase: str) -> int:
        c = self.config
        if isinstance(c, SeamConfig):
            return c.forget_max_steps if phase == "forget" else c.recover_max_steps
        return (c.forget_max_epochs if phase == "forget" else c.recover_max_epochs) * self._epoch_steps(phase)

    def evaluates_after(self, phase: str, step: int) -> bool:
        return (step + 1) % self._every(phase) == 0 or step == self.steps(phase) - 1

    def watched(self, split: Split, phase: str) -> Tensor:
        """The held-out samples that an evaluation counts: as many as are worth what they cost beside the steps."""
        affordable = int(_EVALUATION_SHARE * 3 * self._every(phase) * self.config.batch_size)
        order = torch.randperm(len(split.holdout), generator=torch.Generator().manual_seed(self.seed))
        return split.holdout[order[: max(affordable, _FEWEST_WATCHED)]]

    def _every(self, phase: str) -> int:
        c = self.config
        if isinstance(c, SeamConfig):
            return c.forget_eval_every if phase == "forget" else c.recover_eval_every
        return self._epoch_steps(phase)

    def _epoch_steps(self, phase: str) -> int:
        split = self.split()
        return math.ceil(len(split.forget if phase == "forget" else split.recovery) / self.config.batch_size)


def seamfast_run(schedule: Schedule, model: nn.Module, **more: Any) -> nn.Module:
    """The same by seamfast, all that a caller gets included: copy, split, probe, measurements, report."""
    how = {"method": schedule.method, "config": schedule.config, "seed": schedule.seed}
    return seamfast.sanitize(model, schedule.clean, progress=False, **how, **more).model


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
    teacher_weight: Tensor,
    changes: Tensor,
) -> Tensor:
    """The loss of one step, by plain tensor operations; ``teacher_weight`` and ``changes`` are 0-d on the device."""
    c, settings = schedule.config, schedule.views
    targets = labels
    if phase == "forget":
        drawn = torch.randint(0, classes - 1, labels.shape, device=labels.device)
        targets = drawn + (drawn >= labels)
        share = torch.full_like(teacher_weight, settings.disturbance)
    else:
        share = settings.disturbance * (1 - teacher_weight)
        if settings.mixing:
            inputs, partner, weight = mix_up(inputs, settings.mixing * changes, generator)
            whole = F.one_hot(labels, classes).float()
            targets = torch.lerp(whole[partner], whole, weight[:, None])
    seen = neutral = inputs
    if settings.occlusions:
        both = occlude(inputs, *ends, generator, n_rectangles=settings.occlusions)
        seen, neutral = (torch.where(changes > 0, patterned, inputs) for patterned in both)
    if settings.disturbance:
        most = settings.disturbance
        seen = disturb(seen, *(end.flatten() for end in ends), generator, share=share * changes, most=most)
    if settings.waves and phase == "recover":
        most = settings.waves
        seen = add_plane_waves(seen, *(end.flatten() for end in ends), generator, share=most * changes, most=most)
    logits = student(seen)
    loss = F.cross_entropy(logits, targets)
    if isinstance(c, SeamConfig) and c.distillation and phase == "recover" and schedule.found.weight:
        with torch.no_grad():
            received = teacher(neutral)
        loss = torch.lerp(loss, distillation_loss(logits, received, c.temperature), c.distillation * teacher_weight)
    return loss


def ends_of(clean: seamfast.CleanSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """The least and greatest normalized value of each channel."""
    channels = clean.image_shape[0]
    both = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, channels, 1, 1)
    normal = clean.normalize(both).to(device)
    return normal[:1], normal[1:]


def frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)
