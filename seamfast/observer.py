"""``TriggerObserver``: outcomes of known triggers during a run, out of reach of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from seamfast.engine.counting import TriggerCounts, count_triggered
from seamfast.engine.events import Evaluated
from seamfast.engine.host import seeded
from seamfast.engine.precision import Precision
from seamfast.engine.subject import Subject
from seamfast.triggers import Trigger

_FEWEST_WATCHED = 256


@dataclass(frozen=True)
class TriggerObserver:
    """Measures known triggers on the held-out part.

    Attributes:
        subject: the working copy and the samples.
        triggers: must fit the samples.
        holdout: ``(N,)`` int64, CPU: the held-out samples.
        seed: of random positions.
    """

    subject: Subject
    triggers: Sequence[Trigger]
    holdout: Tensor
    seed: int

    def counts(self, precision: Precision, of: Tensor | None = None) -> tuple[TriggerCounts, ...]:
        """Outcomes of each trigger on the samples ``of``, by default the whole held-out part."""
        with seeded(self.seed, self.subject.device):  # a model may draw in eval mode too
            return count_triggered(
                self.subject, self.holdout if of is None else of, self.triggers, seed=self.seed, precision=precision
            )

    def rates(self, evaluated: Evaluated) -> dict[str, float]:
        """Attack success rates by trigger name, on a part of the evaluated samples, since each trigger is a pass.

        Answers of NaN are no hits, so a rate with any is too low; that of the end has their number beside it.
        """
        if not self.triggers:
            return {}
        n_samples = max(len(evaluated.samples) // (1 + len(self.triggers)), _FEWEST_WATCHED)
        counts = self.counts(evaluated.precision, evaluated.samples[:n_samples])
        return {t.name: t.n_hit / t.n_eligible for t in counts if t.n_eligible}
