"""Forgetting, which methods share: random labels until held-out accuracy is near chance, and the radius."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from seamfast.engine.optimizer import RelativeAdam
from seamfast.engine.run import Run
from seamfast.engine.step import TrainingBatch
from seamfast.methods.config import LENGTH, OPTIONAL, MethodConfig
from seamfast.modalities import Augmentation, ViewSettings
from seamfast.ops import random_label_cross_entropy

_MOST_LOST = 0.04
"""Of the accuracy, by an augmentation that a model is invariant to. Nine planted models lose at most 2.6 %
by those that they were trained with, and 5.7 % or more by others."""
_HARDLY_FORGOTTEN = 0.9
"""Share of the received accuracy."""


@dataclass(frozen=True, kw_only=True)
class ForgettingConfig(MethodConfig):
    """Settings of forgetting, and of the views that both steps share. Rates are shares of each tensor's size a step.

    Attributes:
        invariances: augment the samples of both steps as far as the model, as received, is invariant to it: where its
            accuracy on up to 256 clean samples falls by at most 4 points. Without effect where ``crop_pad`` or ``flip``
            is given, or the loader augments.
        forget_rate: learning rate of the first step of forgetting.
        forget_growth: factor on it from one step to the next, at least 1.
        forget_max_steps: at least 1; 0 only where the radius is given.
        forget_until: stop once held-out accuracy is below ``forget_until / num_classes`` (and half-way down to
            guessing); 0: take all the steps.
        forget_eval_every: steps from one evaluation to the next; twice as many while more than 90 % of the accuracy is
            left.
        recover_from_forgotten: ``False``: restore the received weights before recovery, for an ablation; forgetting
            then only finds the radius.
        radius: ``None``: found by forgetting; else this one, above 0.
        radius_limit: a radius that is found counts as this at most, above 0; ``None``: no limit.
        occlusions: patterns pasted over each image, in both steps, at most 64; 0 for none.
        disturbance: greatest share of the images that are disturbed as a whole, in [0, 1].
    """

    invariances: bool = field(default=True, metadata=OPTIONAL)
    forget_rate: float = 0.002
    forget_growth: float = 1.2
    forget_max_steps: int = field(default=40, metadata=LENGTH)
    forget_until: float = 2.0
    forget_eval_every: int = 1
    recover_from_forgotten: bool = True
    radius: float | None = None
    radius_limit: float | None = None
    occlusions: int = field(default=3, metadata=OPTIONAL)
    disturbance: float = field(default=0.5, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(("forget_rate",), 0, "a number above 0", above=True)
        self.check_each(("forget_max_steps", "forget_until"), 0, "at least 0")
        self.check_each(("forget_eval_every",), 1, "an integer of at least 1")
        self.check("occlusions", 0 <= self.occlusions <= 64, "an integer in [0, 64]")
        self.check("disturbance", 0 <= self.disturbance <= 1, "a number in [0, 1]")
        self.check("forget_growth", 1 <= self.forget_growth <= 2, "a number in [1, 2]")
        in_all = self.forget_max_steps * math.log(max(self.forget_growth, 1))
        self.check("forget_growth", in_all <= math.log(1e6), "a growth of at most a million over forget_max_steps")
        self.check("radius", self.radius is None or 0 < self.radius <= 1000, "None or a number in (0, 1000]")
        within = self.radius_limit is None or 0 < self.radius_limit <= 1000
        self.check("radius_limit", within, "None or a number in (0, 1000]")
        self.check("forget_max_steps", self.forget_max_steps >= 1 or self.radius is not None, "at least 1, or a radius")

    def forget_rate_at(self, step: int) -> float:
        """The learning rate of forgetting at a step, from 0."""
        return self.forget_rate * self.forget_growth**step


def invariances(run: Run) -> Augmentation:
    """The augmentations that the received model is invariant to, together; the run's own if it has some.

    Where a label does not depend on a change, recovery gets more samples by it; where it does, wrong ones. The model
    knows: it was trained for the task.
    """
    if run.augmentation.is_any:
        return run.augmentation
    harmless = [a for a in run.candidate_augmentations() if run.share_lost_under(a) <= _MOST_LOST]
    return Augmentation(
        pad=max((a.pad for a in harmless), default=0), flip=any(a.flip for a in harmless), seed=run.augmentation.seed
    )


def forget(run: Run, config: ForgettingConfig) -> float:
    """Train on random labels, drawn anew at each step, until held-out accuracy is near chance; returns the radius."""
    if config.forget_max_steps == 0:
        return config.radius or 0.0
    settings = ViewSettings(occlusions=config.occlusions, disturbance=config.disturbance)

    def loss(batch: TrainingBatch) -> Tensor:
        # Under patterns, so that what reacts to patterns is active, and forgets too.
        views = run.views(batch, settings)
        return random_label_cross_entropy(
            run.logits(views.student),
            batch.labels,
            batch.indices,
            seed=run.seed,
            step=batch.number,
            exclude_true=run.num_classes > 2,
        )

    # With few classes 2/C is no fall at all (1 for two classes): at least half of the way down to guessing counts.
    threshold = min(config.forget_until / run.num_classes, run.halfway_to_guessing)
    path, moved = [(0.0, run.accuracy_received)], 0.0
    for step in run.steps(
        "forget",
        loss,
        RelativeAdam(run.model, (0.9, 0.999)),
        of=run.split.forget,
        max_steps=config.forget_max_steps,
        time_share=0.2,
    ):
        rate = config.forget_rate_at(step.number)
        step.take(rate)
        moved += rate
        # While next to nothing is forgotten, every other evaluation is enough.
        every = config.forget_eval_every * (2 if path[-1][1] > _HARDLY_FORGOTTEN * run.accuracy_received else 1)
        if step.is_last or (step.number + 1) % every == 0:
            path.append((moved, run.evaluate_holdout()))
            if path[-1][1] < threshold:
                break
    radius = config.radius or radius_of(path, run.halfway_to_guessing)
    return radius if config.radius_limit is None else min(radius, config.radius_limit)


def radius_of(path: Sequence[tuple[float, float]], halfway: float) -> float:
    """How far the weights had moved when accuracy came down to ``halfway``, between two evaluations in proportion.

    Args:
        path: how far, as a share of each tensor's size, and the accuracy there, from 0 on. ``RelativeAdam`` moves each
            weight by about its rate a step, so the rates are summed.
        halfway: between the accuracy as received and that of guessing.

    Returns:
        The radius; where accuracy never came down, all of the way.
    """
    for (start, before), (end, after) in itertools.pairwise(path):
        if after <= halfway:
            # A model that guesses from the start has no such point: all of the way to the evaluation counts then.
            part = (before - halfway) / (before - after) if before > halfway else 1.0
            return start + part * (end - start)
    return path[-1][0]
