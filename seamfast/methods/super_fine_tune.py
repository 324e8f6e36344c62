"""Super-fine-tuning: triangular learning-rate cycles, first with a large peak, to forget, then with a small one, to
recover.

Source: Sha et al., "Fine-Tuning Is All You Need to Mitigate Backdoor Attacks", arXiv:2212.09067. The abstract and the
public reviews (openreview.net/forum?id=ywGSgEmOYb) give the method: cross-entropy on clean data, all weights, a rate
that rises and falls on straight lines, two phases. The paper has three paradigms:

- standalone: the user deploys the received model. Super-fine-tuning; the defaults.
- transfer-based: the user trains the received model for a task of his own. That training, with this schedule, is the
  defense: ``SuperFineTuneConfig.transfer``.
- encoder-based: the user puts a head on the received encoder. Conventional fine-tuning of encoder and head, at the rate
  of the encoder's pretraining; super-fine-tuning is not studied there: ``SuperFineTuneConfig.encoder``.

The rates, the two phases of three epochs, and the conventional rate are those of a third party's guide to the paper
(its values: 3e-4, 0.1, 1e-3, SGD with momentum 0.9 and weight decay 5e-4). Another port, vtu81/backdoor-toolbox,
``super_finetuning.py``, has 0.03, 5 and 0.1 without momentum, and cycles of 20 steps over 40 and 60 epochs. Not found:
the authors' code, their rates, epochs and cycle lengths, the amount of clean data by paradigm, and whether the new head
is trained alone first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from seamfast.engine.optimizer import SGD
from seamfast.engine.run import Run
from seamfast.engine.step import TrainingBatch
from seamfast.errors import ConfigError
from seamfast.methods.config import LENGTH, MethodConfig
from seamfast.methods.schedules import triangle
from seamfast.ops import true_label_cross_entropy

_EPOCHS_A_PHASE = 3


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

    The defaults are for the standalone paradigm. They keep the regime's ratio of the peaks (100 to 1) and its two equal
    phases; the step count and the cycles are ours.
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

    @classmethod
    def transfer(cls, n_training: int, **changes: Any) -> SuperFineTuneConfig:
        """The defaults, with phases of at least three epochs: the training of a downstream task is the defense.

        Args:
            n_training: samples that are trained on, at least 1; held-out ones do not count.
            changes: other settings, by name.

        Raises:
            ConfigError: ``n_training is 0; expected an integer of at least 1``.

        Example:
            >>> config = SuperFineTuneConfig.transfer(50_000, batch_size=256)
            >>> config.forget_steps, config.recover_steps
            (586, 586)
        """
        if isinstance(n_training, bool) or not isinstance(n_training, int) or n_training < 1:
            raise ConfigError(f"n_training is {n_training!r}; expected an integer of at least 1")
        given = cls(**changes)
        epochs = math.ceil(_EPOCHS_A_PHASE * n_training / given.batch_size)
        lengths = {name: max(getattr(given, name), epochs) for name in ("forget_steps", "recover_steps")}
        return replace(given, **(lengths | changes))

    @classmethod
    def encoder(cls, rate: float = 3e-4, **changes: Any) -> SuperFineTuneConfig:
        """A constant rate: conventional fine-tuning of an encoder with a head on it, see ``seamfast.models.with_head``.

        Both phases then train alike, and ``n_cycles`` has no effect.

        Args:
            rate: of the encoder's pretraining, above 0; 3e-4 where it is not known.
            changes: other settings, by name.

        Raises:
            ConfigError: ``base_rate is 0; expected a number above 0``.

        Example:
            >>> config = SuperFineTuneConfig.encoder(0.01)
            >>> config.base_rate, config.forget_rate, config.recover_rate
            (0.01, 0.01, 0.01)
        """
        return cls(**({"base_rate": rate, "forget_rate": rate, "recover_rate": rate} | changes))


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
