"""SEAM of an encoder, without labels: forget on random groups, recover the embeddings as received.

The samples are divided into groups by their embeddings as received, and a linear probe that no step trains reads the
groups. Forgetting is that of ``seam``, with groups as classes. In recovery, the received encoder is the only source of
the task: the student sees samples under patterns, disturbances and waves, and its embeddings are drawn to those that
the received encoder has of the same samples without them. A trigger is such a pattern, and the received encoder is
never asked for its embedding.

Source: the loss is the utility loss of BadEncoder, Jia et al., IEEE S&P 2022, arXiv:2108.00352, with patterns on the
student's side.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seamfast.engine.optimizer import RelativeAdam
from seamfast.engine.run import Run
from seamfast.engine.step import TrainingBatch
from seamfast.methods.config import EXTRA, LENGTH, OPTIONAL
from seamfast.methods.forgetting import ForgettingConfig, forget, invariances
from seamfast.methods.schedules import cosine
from seamfast.modalities import Modality, ViewSettings

_FIRST_PATTERN_STEPS, _PATTERN_STEPS = 60, 20
"""Of the search for patterns, at first and each time after."""


@dataclass(frozen=True, kw_only=True)
class SeamEncoderConfig(ForgettingConfig):
    """Settings of SEAM of an encoder, beside those of ``ForgettingConfig``.

    Attributes:
        n_groups: of samples, in place of classes; at most one for each ten samples.
        recover_rate: peak learning rate of the recovery step, as a multiple of the radius.
        recover_max_steps: at least 1.
        recover_eval_every: steps from one evaluation to the next.
        dropout: whether PyTorch's dropout modules drop in recovery.
        mixing: share of the recovery samples that are mixed with another one, in [0, 1].
        waves: share of the images that a plane wave is added to in recovery, in [0, 1].
        plain_end: share of the recovery steps, the last ones, that see samples as they are, in [0, 1). They have a rate
            of 0: all that they change is the running statistics of norms, which are those of patterns until then.
        patterns_every: steps from one search for patterns to the next: small ones that give all images one embedding,
            as a trigger does. They are stamped on half of the student's images. Of images whose normalization is known;
            0: none.
        searches: times that recovery searches the vocabulary for phrases that take texts to another group, to insert
            them; of texts only.
    """

    n_groups: int = 32
    recover_rate: float = 1.0
    recover_max_steps: int = field(default=300, metadata=LENGTH)
    recover_eval_every: int = 25
    dropout: bool = False
    mixing: float = field(default=1.0, metadata=OPTIONAL)
    waves: float = field(default=0.25, metadata=OPTIONAL)
    plain_end: float = 0.1
    patterns_every: int = field(default=25, metadata=EXTRA)
    searches: int = field(default=0, metadata=EXTRA)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("n_groups", self.n_groups >= 2, "an integer of at least 2")
        self.check_each(("recover_rate",), 0, "a number above 0", above=True)
        self.check_each(("recover_max_steps", "recover_eval_every"), 1, "an integer of at least 1")
        for name in ("mixing", "waves"):
            self.check(name, 0 <= getattr(self, name) <= 1, "a number in [0, 1]")
        self.check("plain_end", 0 <= self.plain_end < 1, "a number in [0, 1)")
        self.check_each(("patterns_every", "searches"), 0, "an integer of at least 0")

    @classmethod
    def of(cls, kind: Modality) -> SeamEncoderConfig:
        """The defaults for samples of a kind: its changes of the preset ``"balanced"`` of ``seam``."""
        known = {f.name for f in fields(cls)}
        changes: dict[str, Any] = {k: v for k, v in kind.presets.get("balanced", {}).items() if k in known}
        return cls(**changes)


def seam_encoder(run: Run, config: SeamEncoderConfig) -> None:
    """Forget and recover; in the end, the probe is fitted anew."""
    if config.invariances:
        run.augmentation = invariances(run)
    run.restart()
    received = None if config.recover_from_forgotten else run.weights()
    radius = forget(run, config)
    if received is not None:
        run.restore(received)
    recover(run, config, radius)
    run.fit_probe()


def recover(run: Run, config: SeamEncoderConfig, radius: float) -> None:
    """Draw the embeddings of changed samples to those that the received encoder has of the unchanged ones."""
    settings = ViewSettings(config.mixing, config.occlusions, config.disturbance, config.waves)
    changed = torch.ones((), device=run.device)
    run.insert_outlying()

    def loss(batch: TrainingBatch) -> Tensor:
        views = run.views(batch, settings, changed=changed)
        return agreement_loss(run.embeddings(views.student), run.received_embeddings(views.teacher))

    n_steps, n_searches = config.recover_max_steps, config.searches if run.can_search else 0
    search_at = {i * n_steps // n_searches for i in range(n_searches)}
    for step in run.steps(
        "recover",
        loss,
        RelativeAdam(run.model),
        of=run.split.recovery,
        max_steps=n_steps,
        dropout=config.dropout,
    ):
        is_plain = step.fraction >= 1 - config.plain_end
        if is_plain:
            changed.zero_()
        if step.number in search_at:
            run.search()
        if config.patterns_every and step.number % config.patterns_every == 0 and not is_plain:
            run.search_patterns(_FIRST_PATTERN_STEPS if step.number == 0 else _PATTERN_STEPS)
        # Plain samples defend nothing: at any rate above 0, their agreement brings the backdoor back.
        step.take(0.0 if is_plain else config.recover_rate * radius * cosine(step.fraction / (1 - config.plain_end)))
        if step.is_last or (step.number + 1) % config.recover_eval_every == 0:
            run.evaluate_holdout()


def agreement_loss(embeddings: Tensor, received: Tensor) -> Tensor:
    """``F.mse_loss(embeddings, received) / 2`` of standardized embeddings: 1 for such as have nothing in common."""
    return F.mse_loss(embeddings, received) / 2
