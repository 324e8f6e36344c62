"""Super-fine-tuning: triangular learning-rate cycles, first with a large peak, to forget, then with a small one, to
recover.

Source: Sha et al., "Fine-Tuning Is All You Need to Mitigate Backdoor Attacks", arXiv:2212.09067.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from seamfast.engine.optimizer import SGD
from seamfast.engine.run import Run
from seamfast.engine.step import TrainingBatch
from seamfast.methods.config import LENGTH, MethodConfig
from seamfast.methods.schedules import triangle
from seamfast.ops import true_label_cross_entropy


@dataclass(frozen=True, kw_only=True)
class SuperFineTuneConfig(MethodConfig):
    """Settings of super-fine-tuning: SGD with momentum.

    Attributes:
        base_rate: where every cycle begins and ends, above 0.
        forget_rate: peak of the cycles of the first phase.
        recover_rate: peak of the cycles of the second phase.
        momentum: in [0, 1).
        weight_decay: at least 0.
        forget_steps, recover_steps: length of the phases, at least 1.
        n_cycles: triangles in each phase, at least 1.
        eval_every: steps from one evaluation to the next.

    The defaults keep the published regime's ratio of the peaks (100 to 1) and its two equal phases; the step count is
    ours.
    """

    base_rate: float = 3e-4
    forget_rate: float = 0.1
    recover_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    forget_steps: int = field(default=200, metadata=LENGTH)
    recover_steps: int = field(default=200, metadata=LENGTH)
    n_cycles: int = 2
    eval_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("base_rate", "forget_rate", "recover_rate"):
            self.check(name, getattr(self, name) > 0, "a number above 0")
        self.check("momentum", 0 <= self.momentum < 1, "a number in [0, 1)")
        self.check("weight_decay", self.weight_decay >= 0, "at least 0")
        for name in ("forget_steps", "recover_steps", "n_cycles", "eval_every"):
            self.check(name, getattr(self, name) >= 1, "an integer of at least 1")


def super_fine_tune(run: Run, config: SuperFineTuneConfig) -> None:
    """Two phases of cycles on true labels, one optimizer throughout."""
    run.restart()

    def loss(batch: TrainingBatch) -> Tensor:
        return true_label_cross_entropy(run.logits(batch.inputs), batch.labels)

    optimizer = SGD(run.model, config.momentum, config.weight_decay)
    for phase, peak, max_steps, time_share in (
        ("forget", config.forget_rate, config.forget_steps, 0.5),
        ("recover", config.recover_rate, config.recover_steps, 1.0),
    ):
        for step in run.steps(
            phase,
            loss,
            optimizer,
            of=run.split.recovery,
            max_steps=max_steps,
            time_share=time_share,
        ):
            step.take(config.base_rate + (peak - config.base_rate) * triangle(step.fraction, config.n_cycles))
            if step.is_last or (step.number + 1) % config.eval_every == 0:
                run.evaluate_holdout()
