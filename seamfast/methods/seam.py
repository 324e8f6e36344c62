"""SEAM, selective amnesia: forget on random labels, recover on true ones.

1. *Forget.* Train on labels drawn at random, with rates that grow from step to step, until held-out accuracy falls to
   chance. On the way, the *radius* is measured: how far the weights had moved, relative to their size, when half of the
   accuracy was gone. It differs by five times between models, and sets how far recovery may move them.
2. *Recover.* Train on true labels, in steps in proportion to the radius. The student sees its samples under patterns
   and disturbances, as a trigger is one. The received model is the teacher and preserves the task; but a teacher with a
   backdoor leaks it, even on clean samples, so its weight is in proportion to the accuracy that is missing beyond an
   allowance, and it never sees a pattern. As accuracy comes back, the teacher's weight falls and the disturbances grow.
   Plane waves are added all the time: smooth, faint triggers are what a teacher leaks most. The last steps see samples
   as they are, or the model would fit patterns and mixtures instead.
3. *Do no harm.* If held-out accuracy does not come back within its budget, the result is not accepted; where more
   strengths are given, they are tried in turn, each from the weights as received.

Every decision is made on the held-out part of the clean data; only which augmentations the received model is invariant
to is tried on recovery samples too, where few are held out.

Source: Zhu et al., "Selective Amnesia", IEEE S&P 2023, arXiv:2212.04687. The recovery differs from theirs as described
above; their own settings are the method ``seam_authors``.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from seamfast.engine.optimizer import RelativeAdam
from seamfast.engine.run import Run, distillation_loss
from seamfast.engine.step import TrainingBatch
from seamfast.errors import ConfigError
from seamfast.methods.config import EXTRA, LENGTH, OPTIONAL
from seamfast.methods.forgetting import ForgettingConfig, forget, invariances
from seamfast.methods.schedules import cosine
from seamfast.methods.seam_authors import SeamAuthorsConfig
from seamfast.modalities import Modality, ViewSettings
from seamfast.ops import true_label_cross_entropy

# Until 0.2.0, files may hold these settings, which are now those of ``seam_authors``, with the values that they had.
_MOVED: dict[str, Any] = {
    "optimizer": "relative_adam",
    "forget_fraction": 1.0,
    "forget_weight_decay": 0.0,
    "forget_patience": 1,
    "exclude_true": True,
    "recover_weight_decay": 0.0,
    "recover_betas": [0.9, 0.99],
    "recover_schedule": "cosine",
    "recover_until": None,
    "recover_patience": 10,
}

_EASY_RADIUS = 0.15
"""Models on MNIST have 0.2 to 0.3. Traffic sign classifiers of a radius of 0.07 may also be accurate again after 25
steps, with their backdoor."""
_FEWEST_TO_BE_EASY = 200
"""Held-out samples; the standard error of an accuracy is about the accuracy budget or below."""


@dataclass(frozen=True, kw_only=True)
class SeamConfig(ForgettingConfig):
    """Settings of SEAM, beside those of ``ForgettingConfig``. Rates are shares of each tensor's size a step.

    Attributes:
        strengths: factors on ``recover_rate``, tried in this order until accuracy comes back.
        recover_rate: peak learning rate of the recovery step, as a multiple of the radius.
        recover_max_steps: at least 1.
        recover_easy_steps: so many instead, at least 1, and smaller ones, where the task is easy: its radius is 0.15 or
            more, and no more accuracy than ``accuracy_budget`` is missing at the first evaluation of recovery, on at
            least 200 held-out samples.
        recover_eval_every: steps from one evaluation to the next.
        dropout: whether PyTorch's dropout modules drop in recovery, whose steps are too few to train by it.
        distillation: greatest weight of the received model's answers against the true labels, in [0, 1].
        temperature: of the distillation, above 0.
        calibration: part of the offsets of the teacher's logits that make its answers to the samples, as it sees them,
            fall on the classes as the labels do, in [0, 1]: a backdoor draws changed samples to its class. 0: none.
        allowance: held-out accuracy that may be missing while the teacher's weight is 0, in [0, 1]. At most a third of
            what is missing at the first evaluation of recovery, which tells how hard the task is.
        margin: where this much more than the allowance is missing, or more, the teacher has all of its weight and
            nothing is disturbed; where no more is missing, the other way round; in between, in proportion. At most half
            of what is missing at the first evaluation, but no less than two standard errors of the held-out accuracy.
            One sample more than is missing is counted. In [0, 1]; 0: always the teacher, never a disturbance.
        mixing: share of the recovery samples that are mixed with another one, in [0, 1].
        waves: share of the images that a plane wave is added to in recovery, whatever the teacher's weight, in [0, 1].
        plain_end: share of the recovery steps, the last ones, that are free of all four, in [0, 1].
        searches: times that recovery searches the vocabulary for phrases that take texts to another class, to insert
            them; of texts only.
    """

    strengths: tuple[float, ...] = (1.0,)
    recover_rate: float = 1.0
    recover_max_steps: int = field(default=300, metadata=LENGTH)
    recover_easy_steps: int = field(default=60, metadata=LENGTH)
    recover_eval_every: int = 25
    dropout: bool = False
    distillation: float = 0.8
    temperature: float = 2.0
    calibration: float = 0.0
    allowance: float = 0.02
    margin: float = 0.06
    mixing: float = field(default=1.0, metadata=OPTIONAL)
    waves: float = field(default=0.25, metadata=OPTIONAL)
    plain_end: float = 0.2
    searches: int = field(default=0, metadata=EXTRA)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("strengths", bool(self.strengths) and min(self.strengths) > 0, "at least one number, all above 0")
        self.check_each(("recover_rate", "temperature"), 0, "a number above 0", above=True)
        self.check_each(("recover_eval_every",), 1, "an integer of at least 1")
        self.check_each(("recover_max_steps", "recover_easy_steps"), 1, "an integer of at least 1")
        shares = "distillation calibration allowance margin mixing waves plain_end"
        for name in shares.split():
            self.check(name, 0 <= getattr(self, name) <= 1, "a number in [0, 1]")
        self.check("searches", self.searches >= 0, "an integer of at least 0")

    def teacher_weight(self, missing: float, at_first: float, accuracy: float, n_holdout: int) -> float:
        """In [0, 1]; see ``allowance`` and ``margin``.

        Args:
            missing: accuracy received minus accuracy now, in [-1, 1].
            at_first: the same at the first evaluation of recovery.
            accuracy: now, in [0, 1].
            n_holdout: samples that it was counted on.
        """
        if not self.margin:
            return 1.0
        # Of few held-out samples, much seems to be missing by chance alone: within about two standard errors of it, the
        # teacher, which leaks, must not have all of its weight. Nor none, as one sample more than seems may be missing.
        # Below forty samples nothing can be concluded, and the task comes first.
        n = max(n_holdout, 40)
        share = min(max(accuracy, 1 / n), 1 - 1 / n)
        error = 2 * math.sqrt(share * (1 - share) / n)
        at_first = max(at_first, error)
        margin = max(min(self.margin, at_first / 2), error)
        excess = missing + 1 / n_holdout - min(self.allowance, at_first / 3)
        return min(max(excess / margin, 0.0), 1.0)

    def is_easy(self, radius: float, at_first: float, n_holdout: int) -> bool:
        """Whether ``recover_easy_steps`` are enough; ``at_first``: accuracy missing at the first evaluation."""
        return radius >= _EASY_RADIUS and at_first <= self.accuracy_budget and n_holdout >= _FEWEST_TO_BE_EASY

    def shortened(self, n_steps: int) -> SeamConfig:
        return replace(super().shortened(n_steps), strengths=self.strengths[:1])

    @classmethod
    def preset(cls, name: str, kind: Modality | type[Modality] | None = None) -> SeamConfig:
        """Settings by name, from the fewest steps to the most, for samples of a kind.

        ``"fast"``: 100 steps of recovery, 60 for easy tasks, without mixing. ``"balanced"``: the defaults, 300 and 60.
        ``"thorough"``: 900 and 180, and a second push, half as hard, where accuracy does not come back.

        Args:
            name: of the preset.
            kind: its ``presets`` change these settings, as those of ``seamfast.modalities.TextModality`` do; ``None``:
                images.

        Raises:
            ConfigError: ``preset is 'slow'; expected one of fast, balanced, thorough``.
        """
        presets: dict[str, dict[str, Any]] = {
            "fast": {"recover_max_steps": 100, "mixing": 0.0},  # mixtures need more steps
            "balanced": {},
            "thorough": {"recover_max_steps": 900, "recover_easy_steps": 180, "strengths": (1.0, 0.5)},
        }
        if not isinstance(name, str) or name not in presets:
            raise ConfigError(f"preset is {name!r}; expected one of {', '.join(presets)}")
        return cls(**presets[name] | ({} if kind is None else dict(kind.presets.get(name, {}))))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SeamConfig:
        """As ``MethodConfig.from_dict``; settings that are now those of ``seam_authors`` are accepted where they have
        the value that ``seam`` used."""
        moved = {name: value for name, value in values.items() if name in _MOVED}
        for name, value in moved.items():
            if (list(value) if isinstance(value, tuple) else value) != _MOVED[name]:
                raise ConfigError(
                    f"{name} is {value!r}; expected {_MOVED[name]!r}: other values are settings of 'seam_authors'"
                )
        if moved:
            warnings.warn(f"seam no longer has {', '.join(moved)}; remove them", DeprecationWarning, stacklevel=2)
        return super().from_dict({name: value for name, value in values.items() if name not in moved})

    @classmethod
    def authors_cifar10(cls, n_recovery: int = 5000, **changes: Any) -> SeamAuthorsConfig:
        """Deprecated: ``SeamAuthorsConfig``, of the method ``"seam_authors"``."""
        return _deprecated(SeamAuthorsConfig(**changes), "SeamAuthorsConfig()")

    @classmethod
    def authors_trojai(cls, n_recovery: int = 100, **changes: Any) -> SeamAuthorsConfig:
        """Deprecated: ``SeamAuthorsConfig.trojai``, of the method ``"seam_authors"``."""
        return _deprecated(SeamAuthorsConfig.trojai(**changes), "SeamAuthorsConfig.trojai()")


def _deprecated(config: SeamAuthorsConfig, instead: str) -> SeamAuthorsConfig:
    warnings.warn(
        f"the authors' settings are a method of their own: use method='seam_authors' with {instead}",
        DeprecationWarning,
        stacklevel=3,
    )
    return config


def seam(run: Run, config: SeamConfig) -> None:
    """Forget and recover, on samples augmented as far as the model is invariant to it."""
    if config.invariances:
        run.augmentation = invariances(run)
    run_attempts(run, config)


def run_attempts(run: Run, config: SeamConfig) -> int:
    """Forget and recover; again and more gently while accuracy does not come back and a gentler push helps.

    Returns:
        Number of recovery steps of the attempt whose weights were kept.
    """
    missing, n_steps = math.inf, 0
    for strength in config.strengths:
        if run.attempt >= 0 and not run.time_for_another_attempt():
            break
        kept, n_before = (run.weights(), n_steps) if run.attempt >= 0 else (None, 0)
        share_before = run.ledger.share_taken.get("recover", 1.0)
        run.restart()
        received = None if config.recover_from_forgotten else run.weights()
        radius = forget(run, config)
        if received is not None:
            run.restore(received)
        n_steps = recover(run, config, strength, radius)
        if run.accuracy_is_back():
            break
        # A push half as hard should cost half as much. Where it does not, the push is not what costs: the model
        # remembers the held-out samples, say, as part of its training data. Then the harder push is the better cure.
        before, missing = missing, run.accuracy_missing()
        if kept is not None and missing > before / 2:
            run.restore(kept)
            run.ledger.share_taken["recover"] = share_before
            return n_before
    return n_steps


def recover(run: Run, config: SeamConfig, strength: float, radius: float) -> int:
    """Train on true labels, held in place by the received model's answers; returns the number of steps."""
    settings = ViewSettings(config.mixing, config.occlusions, config.disturbance, config.waves)
    weight = 1.0  # of the teacher
    # Written between steps, read within: the same; 1 while samples are changed, 0 at the plain end.
    teacher_weight, changed = torch.ones((), device=run.device), torch.ones((), device=run.device)
    is_calibrated = config.distillation > 0 and config.calibration > 0
    offsets = config.calibration * run.received_offsets(settings) if is_calibrated else None
    run.insert_outlying()

    def loss(batch: TrainingBatch) -> Tensor:
        views = run.views(batch, settings, changed=changed, disturbed=1 - teacher_weight)
        logits = run.logits(views.student)
        loss = true_label_cross_entropy(
            logits, batch.labels, mixed_labels=views.mixed_labels, mixed_weight=views.mixed_weight
        )
        # A replayed step cannot leave the teacher out: it multiplies by a weight of 0.
        if config.distillation and (weight or batch.is_replayed):
            wanted = run.received_logits(views.teacher)
            wanted = wanted if offsets is None else wanted + offsets
            distilled = distillation_loss(logits, wanted, config.temperature)
            loss = torch.lerp(loss, distilled, config.distillation * teacher_weight)
        return loss

    push, easy, n_steps = strength * (config.recover_rate * radius), config.recover_easy_steps, config.recover_max_steps
    missing, n_taken = list[float](), 0
    n_searches = config.searches if run.can_search else 0
    search_at = {math.floor(i * n_steps / n_searches) for i in range(n_searches)}
    for step in run.steps(
        "recover",
        loss,
        RelativeAdam(run.model),
        of=run.split.recovery,
        max_steps=n_steps,
        dropout=config.dropout,
    ):
        if step.fraction >= 1 - config.plain_end:
            changed.zero_()
        if step.number in search_at:
            run.search()
        step.take(push * cosine(step.fraction))
        n_taken = step.number + 1
        if step.is_last or n_taken % config.recover_eval_every == 0:
            accuracy = run.evaluate_holdout()
            n_counted, received = run.last_evaluated()
            missing.append(received - accuracy)
            weight = config.teacher_weight(missing[-1], missing[0], accuracy, n_counted)
            teacher_weight.fill_(weight)
            is_easy = len(missing) == 1 and config.is_easy(radius, missing[0], n_counted)
            if is_easy and n_taken < easy < n_steps:
                # Steps as large as those of a long run would lead too far to come back in a few.
                push *= math.sqrt(easy / n_steps)
                step.shorten(easy)
    return n_taken
