"""SEAM, selective amnesia: forget on random labels, recover on true ones.

The order of things, straight down:

1. *Forget.* Train on labels drawn at random, with rates that grow from step to step, until held-out accuracy falls to
   chance. What the model knew is shaken loose, the backdoor with it. On the way, the *radius* is found: how far the
   weights had moved, relative to their size, when half of the accuracy was gone. It differs by five times between
   models, and says how far recovery may move them.
2. *Recover.* Train on true labels, in steps in proportion to the radius. The student sees its images under patterns
   and disturbances, as a trigger is one. The received model is the teacher, and holds the task in place: but a teacher
   with a backdoor leaks it, even on clean images, so it is listened to in so far as accuracy is missing, and it never
   sees a pattern. As accuracy comes back, the teacher falls silent and the disturbances grow. The last steps see
   images as they are, or the model would be at home with patterns and mixtures instead.
3. *Do no harm.* If held-out accuracy does not come back within its budget, the result is not accepted; where more
   strengths are given, they are tried in turn, each from the weights as received.

Nothing here sees test or triggered data: every decision is made on the held-out part of the clean data.

Source: Zhu et al., "Selective Amnesia", IEEE S&P 2023, arXiv:2212.04687. The recovery differs from theirs as said
above; their own settings are ``SeamConfig.authors_cifar10()`` and ``SeamConfig.authors_trojai()``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seamfast.data.clean_set import Batch
from seamfast.data.disturbing import disturb
from seamfast.data.mixing import mix_up
from seamfast.engine.optimizer import Adam, Optimizer, RelativeAdam
from seamfast.engine.run import Run, distillation_loss
from seamfast.engine.step import TrainingBatch
from seamfast.errors import ConfigError
from seamfast.methods.config import MethodConfig
from seamfast.methods.schedules import cosine
from seamfast.ops import occlude, random_label_cross_entropy, true_label_cross_entropy


@dataclass(frozen=True, kw_only=True)
class SeamConfig(MethodConfig):
    """Settings of SEAM.

    Attributes:
        optimizer: ``"relative_adam"``: rates are shares of each tensor's size a step; ``"adam"``: absolute rates.
        strengths: factors on ``recover_rate``, tried in this order until accuracy comes back.
        forget_fraction: share of the recovery part that the forgetting step sees, in (0, 1].
        forget_rate: learning rate of the first step of forgetting.
        forget_growth: factor on it from one step to the next, at least 1.
        forget_weight_decay: as in Adam; 0 with ``relative_adam``.
        forget_max_steps: at least 1; 0 only where the radius is given.
        forget_until: stop once held-out accuracy is below ``forget_until / num_classes`` (and half-way down to
            guessing)...
        forget_patience: ...at so many evaluations.
        forget_eval_every: steps from one evaluation to the next.
        exclude_true: draw from the wrong classes only, else from all.
        recover_from_forgotten: ``False``: put the received weights back before recovery, for an ablation; forgetting
            then only finds the radius.
        radius: ``None``: found by forgetting; else this one, above 0.
        recover_rate: peak learning rate of the recovery step; with ``relative_adam``, as a multiple of the radius.
        recover_weight_decay: as in Adam; 0 with ``relative_adam``.
        recover_betas: Adam's decay rates in recovery.
        recover_max_steps: at least 1.
        recover_schedule: ``"cosine"`` (a tenth of warm-up, then down to 0) or ``"constant"``.
        recover_until: stop once held-out accuracy is above this at ``recover_patience`` evaluations; ``None``: run to
            the end.
        recover_patience: see above; an evaluation after the 50th below the best by more than 0.001 counts too.
        recover_eval_every: steps from one evaluation to the next.
        distillation: greatest weight of the received model's answers against the true labels, in [0, 1].
        temperature: of the distillation, above 0.
        margin: where this much of the held-out accuracy is missing, or more, the teacher has all of its weight and
            nothing is disturbed; where none is missing, the other way round; in between, in proportion. One sample more
            than is missing is counted, and with n held-out samples, at least 40, the margin is 0.9 / sqrt(n) or more.
            In [0, 1]; 0: always the teacher, never a disturbance.
        mixing: share of the recovery samples that are mixed with another one, in [0, 1].
        occlusions: patterns pasted over each image, in both steps, at most 64; 0 for none.
        disturbance: greatest share of the images that are disturbed as a whole, in [0, 1].
        plain_end: share of the recovery steps, the last ones, that are free of all three, in [0, 1].
    """

    optimizer: str = "relative_adam"
    strengths: tuple[float, ...] = (1.0,)
    forget_fraction: float = 1.0
    forget_rate: float = 0.002
    forget_growth: float = 1.2
    forget_weight_decay: float = 0.0
    forget_max_steps: int = 40
    forget_until: float = 2.0
    forget_patience: int = 1
    forget_eval_every: int = 1
    exclude_true: bool = True
    recover_from_forgotten: bool = True
    radius: float | None = None
    recover_rate: float = 0.75
    recover_weight_decay: float = 0.0
    recover_betas: tuple[float, ...] = (0.9, 0.99)
    recover_max_steps: int = 300
    recover_schedule: str = "cosine"
    recover_until: float | None = None
    recover_patience: int = 10
    recover_eval_every: int = 25
    distillation: float = 0.8
    temperature: float = 2.0
    margin: float = 0.06
    mixing: float = 0.5
    occlusions: int = 3
    disturbance: float = 0.5
    plain_end: float = 0.2

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
        betas = self.recover_betas
        self.check("recover_betas", len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers in [0, 1)")
        self.check("recover_schedule", self.recover_schedule in ("cosine", "constant"), "'cosine' or 'constant'")
        self.check(
            "recover_until", self.recover_until is None or 0 < self.recover_until < 1, "None or a number in (0, 1)"
        )
        for name in ("distillation", "margin", "mixing", "disturbance", "plain_end"):
            self.check(name, 0 <= getattr(self, name) <= 1, "a number in [0, 1]")
        self.check("forget_growth", 1 <= self.forget_growth <= 2, "a number in [1, 2]")
        in_all = self.forget_max_steps * math.log(max(self.forget_growth, 1))
        self.check("forget_growth", in_all <= math.log(1e6), "a growth of at most a million over forget_max_steps")
        self.check("radius", self.radius is None or 0 < self.radius <= 1000, "None or a number in (0, 1000]")
        needs_forgetting = self.optimizer == "relative_adam" and self.radius is None
        self.check("forget_max_steps", self.forget_max_steps >= 1 or not needs_forgetting, "at least 1, or a radius")

    def forget_rate_at(self, step: int) -> float:
        """The learning rate of forgetting at a step, from 0."""
        return self.forget_rate * self.forget_growth**step

    def need(self, missing: float, n_holdout: int) -> float:
        """For the teacher, in [0, 1], where so much accuracy is missing on so many held-out samples; see ``margin``."""
        if not self.margin:
            return 1.0
        # Of few held-out samples, much seems to be missing by chance alone: within about two standard errors of it, the
        # teacher, who leaks, must not have all of its weight. Nor none, as one sample more than seems may be missing.
        # Below forty samples nothing can be told, and the task comes first.
        margin = max(self.margin, 0.9 / math.sqrt(max(n_holdout, 40)))
        return min(max((missing + 1 / n_holdout) / margin, 0.0), 1.0)

    @classmethod
    def preset(cls, name: str) -> SeamConfig:
        """Settings by name, from the fewest steps to the surest cure.

        ``"fast"``: 100 steps of recovery. ``"balanced"``: the defaults. ``"thorough"``: 900 steps, and a second push,
        half as hard, where accuracy does not come back.

        Raises:
            ConfigError: ``preset is 'slow'; expected one of fast, balanced, thorough``.
        """
        presets: dict[str, dict[str, Any]] = {
            "fast": {"recover_max_steps": 100},
            "balanced": {},
            "thorough": {"recover_max_steps": 900, "strengths": (1.0, 0.5)},
        }
        if not isinstance(name, str) or name not in presets:
            raise ConfigError(f"preset is {name!r}; expected one of {', '.join(presets)}")
        return cls(**presets[name])

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
            forget_growth=1.0,
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
            disturbance=0.0,
            plain_end=0.0,
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
    """Forget, recover; again and more gently while accuracy does not come back and a gentler push helps."""
    missing = math.inf
    for strength in config.strengths:
        if run.attempt >= 0 and not run.time_for_another_attempt():
            return
        kept = run.weights() if run.attempt >= 0 else None
        run.restart()
        received = None if config.recover_from_forgotten else run.weights()
        radius = forget(run, config)
        if received is not None:
            run.put_back(received)
        recover(run, config, strength, radius)
        if run.accuracy_is_back():
            return
        # A push half as hard should cost half as much. Where it does not, the push is not what costs: the model
        # remembers the held-out samples, say, as part of its training data. Then the harder push is the better cure.
        before, missing = missing, run.accuracy_missing()
        if kept is not None and missing > before / 2:
            run.put_back(kept)
            return


def forget(run: Run, config: SeamConfig) -> float:
    """Train on random labels, drawn anew at each step, until held-out accuracy is near chance; returns the radius."""
    if config.forget_max_steps == 0:
        return config.radius or 0.0
    generator = run.generator("forget")
    always = torch.ones((), device=run.device)

    def loss(batch: TrainingBatch) -> Tensor:
        # Under patterns, so that what answers to patterns is active, and forgets too.
        seen, _ = _disturbed(run, config, "forget", batch.inputs, batch.number, generator, always, always)
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
    path, moved, n_below = [(0.0, run.accuracy_received)], 0.0, 0
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
        rate = config.forget_rate_at(step.number)
        step.take(rate)
        moved += rate

        if step.is_last or (step.number + 1) % config.forget_eval_every == 0:
            accuracy = run.evaluate_holdout()
            path.append((moved, accuracy))
            n_below += accuracy < threshold
            if n_below >= config.forget_patience:
                break
    return config.radius or radius_of(path, run.halfway_to_guessing)


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
            # Who only guessed before has no such point: all of the way to the evaluation counts then.
            part = (before - halfway) / (before - after) if before > halfway else 1.0
            return start + part * (end - start)
    return path[-1][0]


def recover(run: Run, config: SeamConfig, strength: float, radius: float) -> None:
    """Train on true labels, held in place by the received model's answers."""
    generator = run.generator("recover")
    # Written between steps, read within: the need for the teacher; 1 while images are changed, 0 at the plain end.
    need, changes = torch.ones((), device=run.device), torch.ones((), device=run.device)

    def loss(batch: TrainingBatch) -> Tensor:
        inputs = batch.inputs
        others, weight = None, None
        if config.mixing and isinstance(inputs, Tensor) and inputs.is_floating_point():
            inputs, partner, weight = mix_up(inputs, config.mixing * changes, generator)
            others = batch.labels[partner]
        # The student sees pasted patterns, its teacher the mean image in their place: a pattern never gets an answer.
        seen, neutral = _disturbed(run, config, "recover", inputs, batch.number, generator, changes, 1 - need)
        logits = run.logits(seen)
        loss = true_label_cross_entropy(logits, batch.labels, mixed_labels=others, mixed_weight=weight)
        if config.distillation:
            received = run.received_logits(neutral)
            loss = torch.lerp(loss, distillation_loss(logits, received, config.temperature), config.distillation * need)
        return loss

    push = strength * (config.recover_rate * radius if config.optimizer == "relative_adam" else config.recover_rate)
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
        if step.fraction >= 1 - config.plain_end:
            changes.zero_()
        factor = cosine(step.fraction) if config.recover_schedule == "cosine" else 1.0
        step.take(push * factor)

        if step.is_last or (step.number + 1) % config.recover_eval_every == 0:
            accuracy = run.evaluate_holdout()
            need.fill_(config.need(run.accuracy_received - accuracy, len(run.split.holdout)))
            n_evaluations += 1
            if config.recover_until is not None:
                n_good += accuracy > config.recover_until or (n_evaluations > 50 and accuracy < best - 1e-3)
                best = max(best, accuracy)
                if n_good >= config.recover_patience:
                    return


def _disturbed(
    run: Run,
    config: SeamConfig,
    phase: str,
    inputs: Batch,
    step: int | Tensor,
    generator: torch.Generator,
    changes: Tensor,
    disturbance: Tensor,
) -> tuple[Batch, Batch]:
    """What the student sees, and what its teacher sees: ``inputs`` where ``changes`` is 0; it is 0-d, 1 or 0.

    ``disturbance``, 0-d in [0, 1], is the part of the greatest share of disturbed images.
    """
    input_range = run.input_range()
    if input_range is None or isinstance(inputs, dict):
        return inputs, inputs
    lowest, highest = (value.flatten() for value in input_range)
    seen = neutral = inputs
    if config.occlusions:
        # Places in the batch, not samples: one that comes twice, as in small sets, is to be covered in two ways.
        places = torch.arange(len(inputs), device=inputs.device)
        seed = run.stream_seed(phase)
        seen, neutral = occlude(inputs, lowest, highest, places, n_rectangles=config.occlusions, seed=seed, step=step)
        seen, neutral = (torch.where(changes > 0, patterned, inputs) for patterned in (seen, neutral))
    if config.disturbance:
        share = config.disturbance * disturbance * changes
        seen = disturb(seen, lowest, highest, generator, share=share)
    return seen, neutral


def _optimizer(run: Run, config: SeamConfig, betas: tuple[float, ...], weight_decay: float) -> Optimizer:
    pair = (float(betas[0]), float(betas[1]))
    if config.optimizer == "adam":
        return Adam(run.model, pair, weight_decay)
    return RelativeAdam(run.model, pair)
