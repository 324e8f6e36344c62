"""SEAM as its authors' public code runs it: Adam with absolute rates, true and random labels, and nothing else.

Theirs stops on the test set and reports the epoch that is best on triggered test data; here the held-out part of the
clean data decides, and the last step counts. Their crop pads with zeros, ours reflects.

Source: Zhu et al., "Selective Amnesia", IEEE S&P 2023, arXiv:2212.04687; settings of TDteach/SEAM, ``seam.py`` and
``trojan_example_r34.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from seamfast.engine.optimizer import Adam
from seamfast.engine.run import Run
from seamfast.engine.step import TrainingBatch
from seamfast.methods.config import REQUIRED, MethodConfig
from seamfast.ops import random_label_cross_entropy, true_label_cross_entropy


@dataclass(frozen=True, kw_only=True)
class SeamAuthorsConfig(MethodConfig):
    """The authors' settings for CIFAR-10 by default; ``trojai`` has those of their TrojAI scripts.

    Attributes:
        forget_fraction: share of the recovery part that the forgetting step sees, in (0, 1].
        forget_rate, recover_rate: learning rates, above 0.
        forget_weight_decay, recover_weight_decay: added to the gradients, at least 0.
        forget_until: an epoch of forgetting counts where held-out accuracy is below ``forget_until / num_classes`` (and
            half-way down to guessing)...
        forget_patience: ...and the step ends after so many of them.
        exclude_true: draw from the wrong classes only, else from all.
        recover_betas: Adam's decay rates in recovery.
        recover_until: an epoch of recovery counts where held-out accuracy is above this, or, after the 50th, below the
            best by more than 0.001...
        recover_patience: ...and the step ends after so many of them.
        forget_max_epochs, recover_max_epochs: at least 1.
    """

    batch_size: int = 32
    crop_pad: int = field(default=4, metadata=REQUIRED)
    flip: bool = field(default=True, metadata=REQUIRED)
    forget_fraction: float = 0.01
    forget_rate: float = 3e-5
    forget_weight_decay: float = 5e-5
    forget_until: float = 2.0
    forget_patience: int = 1
    forget_max_epochs: int = 300
    exclude_true: bool = True
    recover_rate: float = 5e-4
    recover_weight_decay: float = 5e-5
    recover_betas: tuple[float, ...] = (0.5, 0.9)
    recover_until: float = 0.92
    recover_patience: int = 10
    recover_max_epochs: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("forget_fraction", 0 < self.forget_fraction <= 1, "a number in (0, 1]")
        self.check_each(("forget_rate", "recover_rate", "forget_until"), 0, "a number above 0", above=True)
        self.check_each(("forget_weight_decay", "recover_weight_decay"), 0, "at least 0")
        self.check_each(("forget_patience", "recover_patience"), 1, "an integer of at least 1")
        self.check_each(("forget_max_epochs", "recover_max_epochs"), 1, "an integer of at least 1")
        betas = self.recover_betas
        self.check("recover_betas", len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers in [0, 1)")
        self.check("recover_until", 0 < self.recover_until < 1, "a number in (0, 1)")

    @classmethod
    def trojai(cls, **changes: Any) -> SeamAuthorsConfig:
        """All clean data in both steps, labels over all classes, stronger forgetting, no augmentation."""
        preset = cls(
            crop_pad=0,
            flip=False,
            forget_fraction=1.0,
            forget_rate=5e-4,
            forget_weight_decay=5e-4,
            forget_patience=10,
            exclude_true=False,
            recover_betas=(0.9, 0.5),
            recover_until=0.99,
        )
        return replace(preset, **changes)

    @property
    def forgotten_share(self) -> float:
        return self.forget_fraction

    def shortened(self, n_steps: int) -> SeamAuthorsConfig:
        return replace(self, forget_max_epochs=1, recover_max_epochs=1)


def seam_authors(run: Run, config: SeamAuthorsConfig) -> None:
    """Forget until held-out accuracy is near chance, recover until it is high or falls."""
    run.restart()

    def random_label_loss(batch: TrainingBatch) -> Tensor:
        return random_label_cross_entropy(
            run.logits(batch.inputs),
            batch.labels,
            batch.indices,
            seed=run.seed,
            step=batch.number,
            exclude_true=config.exclude_true,
        )

    def true_label_loss(batch: TrainingBatch) -> Tensor:
        return true_label_cross_entropy(run.logits(batch.inputs), batch.labels)

    threshold = min(config.forget_until / run.num_classes, run.halfway_to_guessing)
    epoch = math.ceil(len(run.split.forget) / config.batch_size)
    n_below = 0
    for step in run.steps(
        "forget",
        random_label_loss,
        Adam(run.model, weight_decay=config.forget_weight_decay),
        of=run.split.forget,
        max_steps=config.forget_max_epochs * epoch,
        time_share=0.2,
    ):
        step.take(config.forget_rate)
        if step.is_last or (step.number + 1) % epoch == 0:
            n_below += run.evaluate_holdout() < threshold
            if n_below >= config.forget_patience:
                break

    epoch = math.ceil(len(run.split.recovery) / config.batch_size)
    n_good, best = 0, 0.0
    betas = (float(config.recover_betas[0]), float(config.recover_betas[1]))
    for step in run.steps(
        "recover",
        true_label_loss,
        Adam(run.model, betas, config.recover_weight_decay),
        of=run.split.recovery,
        max_steps=config.recover_max_epochs * epoch,
    ):
        step.take(config.recover_rate)
        if step.is_last or (step.number + 1) % epoch == 0:
            accuracy = run.evaluate_holdout()
            falls = (step.number + 1) // epoch > 50 and accuracy < best - 1e-3
            n_good += accuracy > config.recover_until or falls
            best = max(best, accuracy)
            if n_good >= config.recover_patience:
                break
