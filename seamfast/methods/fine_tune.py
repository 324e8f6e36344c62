"""Plain fine-tuning on clean data: the baseline. It keeps the task, and mostly the backdoor."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from seamfast.engine.optimizer import SGD
from seamfast.engine.run import Run
from seamfast.engine.step import TrainingBatch
from seamfast.methods.config import LENGTH, MethodConfig
from seamfast.methods.schedules import cosine
from seamfast.ops import true_label_cross_entropy


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(MethodConfig):
    """Settings of fine-tuning: SGD with momentum, cosine schedule.

    Attributes:
        rate: peak learning rate, above 0.
        momentum: in [0, 1).
        weight_decay: at least 0.
        max_steps: at least 1.
        eval_every: steps from one evaluation to the next.

    Source of the defaults: BackdoorBench's fine-tuning baseline (SGD 0.01, momentum 0.9, weight decay 5e-4, cosine).
    """

    rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_steps: int = field(default=400, metadata=LENGTH)
    eval_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("rate", self.rate > 0, "a number above 0")
        self.check("momentum", 0 <= self.momentum < 1, "a number in [0, 1)")
        self.check("weight_decay", self.weight_decay >= 0, "at least 0")
        self.check("max_steps", self.max_steps >= 1, "an integer of at least 1")
        self.check("eval_every", self.eval_every >= 1, "an integer of at least 1")


def fine_tune(run: Run, config: FineTuneConfig) -> None:
    """Train on true labels, all parameters, to the end of the schedule."""
    run.restart()

    def loss(batch: TrainingBatch) -> Tensor:
        return true_label_cross_entropy(run.logits(batch.inputs), batch.labels)

    for step in run.steps(
        "recover",
        loss,
        SGD(run.model, config.momentum, config.weight_decay),
        of=run.split.recovery,
        max_steps=config.max_steps,
    ):
        step.take(config.rate * cosine(step.fraction))
        if step.is_last or (step.number + 1) % config.eval_every == 0:
            run.evaluate_holdout()
