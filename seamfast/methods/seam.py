"""SEAM, selective amnesia: forget on random labels, recover on true ones.

The order of things, straight down:

1. *Forget.* Train on labels drawn at random until held-out accuracy falls to chance. What the model knew is shaken
   loose, the backdoor with it.
2. *Recover.* Train on true labels. Three things keep the backdoor from coming back with the task: rates relative to
   the size of each tensor, so that one setting pushes every architecture equally hard; patterns pasted over the images;
   and distillation from the model as received, which holds the task in place, but is shown the mean image where the
   patterns are, so that it never answers to anything like a trigger.
3. *Do no harm.* If held-out accuracy does not come back within its budget, start again from the weights as received
   and push half as hard, until a push is gentle enough or the strengths are used up.

Nothing here sees test or triggered data: every decision is made on the held-out part of the clean data.

Source: Zhu et al., "Selective Amnesia", IEEE S&P 2023, arXiv:2212.04687. The recovery differs from theirs as said
above; their own settings are ``SeamConfig.authors_cifar10()`` and ``SeamConfig.authors_trojai()``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seamfast.data.clean_set import Batch
from seamfast.data.mixing import mix_up
from seamfast.engine.optimizer import Adam, Optimizer, RelativeAdam
from seamfast.engine.run import Run, distillation_loss
from seamfast.engine.step import TrainingBatch
from seamfast.methods.config import MethodConfig
from seamfast.methods.schedules import cosine
from seamfast.ops import occlude, random_label_cross_entropy, true_label_cross_entropy


@dataclass(frozen=True, kw_only=True)
class SeamConfig(MethodConfig):
    """Settings of SEAM.

    Attributes:
        optimizer: ``"relative_adam"``: rates are shares of each tensor's size a step; ``"adam"``: absolute rates.
        strengths: factors on ``forget_rate`` and ``recover_rate``, tried in this order until accuracy comes back.
        forget_fraction: share of the recovery part that the forgetting step sees, in (0, 1].
        forget_rate: learning rate of the forgetting step.
        forget_weight_decay: as in Adam; 0 with ``relative_adam``.
        forget_max_steps: 0 skips the forgetting step, for an ablation.
        forget_until: stop once held-out accuracy is below ``forget_until / num_classes`` (and half-way down to
            guessing)...
        forget_patience: ...at so many evaluations.
        forget_eval_every: steps from one evaluation to the next.
        exclude_true: draw from the wrong classes only, else from all.
        recover_rate: peak learning rate of the recovery step.
        recover_weight_decay: as in Adam; 0 with ``relative_adam``.
        recover_decay: share of each matrix and kernel taken off at each step at the peak, with ``relative_adam``.
        recover_betas: Adam's decay rates in recovery.
        recover_max_steps: at least 1.
        recover_schedule: ``"cosine"`` (a tenth of warm-up, then down to 0) or ``"constant"``.
        recover_until: stop once held-out accuracy is above this at ``recover_patience`` evaluations; ``None``: run to
            the end.
        recover_patience: see above; an evaluation after the 50th below the best by more than 0.001 counts too.
        recover_eval_every: steps from one evaluation to the next.
        distillation: weight of the received model's answers against the true labels, in [0, 1].
        temperature: of the distillation, above 0.
        mixing: share of the recovery samples that are mixed with another one, in [0, 1].
        occlusions: patterns pasted over each image, in both steps, at most 64; 0 for none.
    """

    optimizer: str = "relative_adam"
    strengths: tuple[float, ...] = (1.0, 0.5, 0.25)
    forget_fraction: float = 1.0
    forget_rate: float = 0.03
    forget_weight_decay: float = 0.0
    forget_max_steps: int = 40
    forget_until: float = 2.0
    forget_patience: int = 1
    forget_eval_every: int = 5
    exclude_true: bool = True
    recover_rate: float = 0.15
    recover_weight_decay: float = 0.0
    recover_decay: float = 0.0
    recover_betas: tuple[float, ...] = (0.9, 0.99)
    recover_max_steps: int = 300
    recover_schedule: str = "cosine"
    recover_until: float | None = None
    recover_patience: int = 10
    recover_eval_every: int = 50
    distillation: float = 0.95
    temperature: float = 2.0
    mixing: float = 0.5
    occlusions: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("optimizer", self.optimizer in ("relative_adam", "adam"), "'relative_adam' or 'adam'")
        self.check("strengths", bool(self.strengths) and min(self.strengths) > 0, "at least one number, all above 0")
        self.check("forget_fraction", 0 < self.forget_fraction <= 1, "a number in (0, 1]")
        for name in ("forget_rate", "recover_rate", "forget_until", "temperature"):
            self.check(name, getattr(self, name) > 0, "a number above 0")
        for name in ("forget_weight_decay", "recover_weight_decay", "forget_max_steps"):
            self.check(name, getattr(self, name) >= 0, "at least 0")
        for name in (
            "forget_patience",
            "forget_eval_every",
            "recover_max_steps",
            "recover_patience",
            "recover_eval_every",
        ):
            self.check(name, getattr(self, name) >= 1, "an integer of at least 1")
        self.check("occlusions", 0 <= self.occlusions <= 64, "an integer in [0, 64]")
        self.check("recover_decay", 0 <= self.recover_decay < 1, "a number in [0, 1)")
        betas = self.recover_betas
        self.check("recover_betas", len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers in [0, 1)")
        self.check("recover_schedule", self.recover_schedule in ("cosine", "constant"), "'cosine' or 'constant'")
        self.check(
            "recover_until", self.recover_until is None or 0 < self.recover_until < 1, "None or a number in (0, 1)"
        )
        self.check("distillation", 0 <= self.distillation <= 1, "a number in [0, 1]")
        self.check("mixing", 0 <= self.mixing <= 1, "a number in [0, 1]")

    @classmethod
    def authors_cifar10(cls, n_recovery: int = 5000, **changes: Any) -> SeamConfig:
        """The authors' public CIFAR-10 script: forget with Adam 3e-5 on 1 % of the recovery set (0.1 % of train
        against 10 %).

        Batch 32; labels over the wrong classes; until accuracy < 2/C; then Adam 5e-4, betas (0.5, 0.9), weight decay
        5e-5, until accuracy > 0.92 ten times, at most 300 epochs. An epoch here is ``n_recovery`` samples. Theirs
        stops on the test set, and reports the epoch that is best on triggered test data; here the held-out part
        decides, and the last step counts. Their crop pads with zeros, ours reflects.

        Source: TDteach/SEAM, ``seam.py``.
        """
        steps_an_epoch = max(math.ceil(n_recovery / 32), 1)
        forget_steps_an_epoch = max(math.ceil(n_recovery * 0.01 / 32), 1)
        preset = cls(
            batch_size=32,
            crop_pad=4,
            flip=True,
            optimizer="adam",
            strengths=(1.0,),
            forget_fraction=0.01,
            forget_rate=3e-5,
            forget_weight_decay=5e-5,
            forget_max_steps=300 * forget_steps_an_epoch,
            forget_eval_every=forget_steps_an_epoch,
            recover_rate=5e-4,
            recover_weight_decay=5e-5,
            recover_betas=(0.5, 0.9),
            recover_max_steps=300 * steps_an_epoch,
            recover_schedule="constant",
            recover_until=0.92,
            recover_patience=10,
            recover_eval_every=steps_an_epoch,
            distillation=0.0,
            mixing=0.0,
            occlusions=0,
        )
        return replace(preset, **changes)

    @classmethod
    def authors_trojai(cls, n_recovery: int = 100, **changes: Any) -> SeamConfig:
        """The authors' public TrojAI scripts: Adam 5e-4 in both steps, labels over all classes, all clean data for
        both.

        Weight decay 5e-4 (forget) and 5e-5 (recover, betas (0.9, 0.5)); forget until accuracy < 2/C in ten epochs;
        recover until accuracy > 0.99 ten times, at most 300 epochs of ``n_recovery`` samples. Theirs measures on the
        samples that it trains on; here the held-out part decides.

        Source: TDteach/SEAM, ``trojan_example_r34.py``.
        """
        steps_an_epoch = max(math.ceil(n_recovery / 32), 1)
        preset = replace(
            cls.authors_cifar10(n_recovery),
            crop_pad=0,
            flip=False,
            forget_fraction=1.0,
            forget_rate=5e-4,
            forget_weight_decay=5e-4,
            forget_max_steps=300 * steps_an_epoch,
            forget_patience=10,
            forget_eval_every=steps_an_epoch,
            exclude_true=False,
            recover_betas=(0.9, 0.5),
            recover_until=0.99,
        )
        return replace(preset, **changes)


def seam(run: Run, config: SeamConfig) -> None:
    """Forget, recover; again and more gently while accuracy does not come back."""
    for strength in config.strengths:
        if run.attempt >= 0 and not run.time_for_another_attempt():
            return
        run.restart()
        forget(run, config, strength)
        recover(run, config, strength)
        if run.accuracy_is_back():
            return


def forget(run: Run, config: SeamConfig, strength: float) -> None:
    """Train on random labels, drawn anew at each step, until held-out accuracy is near chance."""
    if config.forget_max_steps == 0:
        return

    def loss(batch: TrainingBatch) -> Tensor:
        # Under patterns, so that what answers to patterns is active, and forgets too.
        seen, _ = _occluded(run, config, "forget", batch.inputs, batch.number)
        return random_label_cross_entropy(
            run.logits(seen),
            batch.labels,
            batch.indices,
            seed=run.seed,
            step=batch.number,
            exclude_true=config.exclude_true,
        )

    # With few classes 2/C is no fall at all (1 for two classes), so at least half of the way down to guessing is asked
    # for.
    threshold = min(config.forget_until / run.num_classes, run.halfway_to_guessing)
    n_below = 0
    for step in run.steps(
        "forget",
        loss,
        _optimizer(run, config, (0.9, 0.999), config.forget_weight_decay),
        of=run.split.forget,
        batch_size=config.batch_size,
        max_steps=config.forget_max_steps,
        pad=config.crop_pad,
        flip=config.flip,
        time_share=0.2,
    ):
        step.take(strength * config.forget_rate)

        if step.is_last or (step.number + 1) % config.forget_eval_every == 0:
            n_below += run.evaluate_holdout() < threshold
            if n_below >= config.forget_patience:
                return


def recover(run: Run, config: SeamConfig, strength: float) -> None:
    """Train on true labels, held in place by the received model's answers."""
    generator = run.generator("recover")

    def loss(batch: TrainingBatch) -> Tensor:
        inputs = batch.inputs
        others, share = None, None
        if config.mixing and isinstance(inputs, Tensor) and inputs.is_floating_point():
            inputs, partner, share = mix_up(inputs, config.mixing, generator)
            others = batch.labels[partner]
        # The student sees pasted patterns, its teacher the mean image in their place: a pattern never gets an answer.
        seen, neutral = _occluded(run, config, "recover", inputs, batch.number)
        logits = run.logits(seen)
        loss = true_label_cross_entropy(logits, batch.labels, mixed_labels=others, mixed_weight=share)
        if config.distillation:
            received = run.received_logits(neutral)
            loss = torch.lerp(loss, distillation_loss(logits, received, config.temperature), config.distillation)
        return loss

    n_evaluations, n_good, best = 0, 0, 0.0
    for step in run.steps(
        "recover",
        loss,
        _optimizer(run, config, config.recover_betas, config.recover_weight_decay),
        of=run.split.recovery,
        batch_size=config.batch_size,
        max_steps=config.recover_max_steps,
        pad=config.crop_pad,
        flip=config.flip,
    ):
        factor = cosine(step.fraction) if config.recover_schedule == "cosine" else 1.0
        step.take(strength * config.recover_rate * factor, strength * config.recover_decay * factor)

        if step.is_last or (step.number + 1) % config.recover_eval_every == 0:
            accuracy = run.evaluate_holdout()
            n_evaluations += 1
            if config.recover_until is not None:
                n_good += accuracy > config.recover_until or (n_evaluations > 50 and accuracy < best - 1e-3)
                best = max(best, accuracy)
                if n_good >= config.recover_patience:
                    return


def _occluded(run: Run, config: SeamConfig, phase: str, inputs: Batch, step: int | Tensor) -> tuple[Batch, Batch]:
    input_range = run.input_range()
    if not config.occlusions or input_range is None or isinstance(inputs, dict):
        return inputs, inputs
    lowest, highest = (value.flatten() for value in input_range)
    # Places in the batch, not samples: one that comes twice, as in small sets, is to be covered in two ways.
    places = torch.arange(len(inputs), device=inputs.device)
    seed = run.stream_seed(phase)
    return occlude(inputs, lowest, highest, places, n_rectangles=config.occlusions, seed=seed, step=step)


def _optimizer(run: Run, config: SeamConfig, betas: tuple[float, ...], weight_decay: float) -> Optimizer:
    pair = (float(betas[0]), float(betas[1]))
    if config.optimizer == "adam":
        return Adam(run.model, pair, weight_decay)
    return RelativeAdam(run.model, pair, decays=config.recover_decay > 0)
