"""``reinjection``: the poisoned samples and the steps that bring a backdoor of another trigger into a model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.audits.retraining import (
    Attacker,
    eligible_indices,
    with_stamped,
)
from seamfast.checks import as_count, as_positive, as_rate, as_seed, check_time_budget
from seamfast.data import CleanSet
from seamfast.data.clean_set import check_clean_set
from seamfast.data.resident import wrap_around_batches
from seamfast.engine.counting import OnBatch
from seamfast.engine.events import progress_bar
from seamfast.engine.host import in_use, seeded
from seamfast.engine.subject import as_called
from seamfast.errors import InputError
from seamfast.metrics import Rate, rate_values
from seamfast.triggers import Trigger

__all__ = ["InjectionPoint", "Reinjection", "ReinjectionCurve", "reinjection", "steps_ratio"]

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_CLEAN, _POISONED = 48, 16
"""Samples of a step. An attacker who trains the model himself can show it a few poisoned samples often."""
_MOMENTUM = 0.9
_MOST_TESTED = 500
"""Test samples of each kind: the success rate is known to 3 points, and a look costs less than the steps before it."""
_LOOKS_AN_OCTAVE = 4


@dataclass(frozen=True)
class InjectionPoint:
    """A model after so many steps of the attack.

    Attributes:
        steps: of SGD.
        attack_success_rate, accuracy: on test samples, with 95 % Wilson bounds.
    """

    steps: int
    attack_success_rate: Rate
    accuracy: Rate


@dataclass(frozen=True)
class ReinjectionCurve:
    """The attack with one number of poisoned samples.

    Attributes:
        n_poisoned: different poisoned samples.
        steps: those of the first point that counts as reached; ``None``: none of them does.
        points: in the order of steps; the last one is the first that counts as reached, or the last that was tried.
    """

    n_poisoned: int
    steps: int | None
    points: tuple[InjectionPoint, ...]


@dataclass(frozen=True)
class Reinjection:
    """How many poisoned samples, and how many steps, bring a backdoor into a model.

    Attributes:
        trigger: its name.
        wanted, allowance, max_steps: as given.
        before: the model as it is, at 0 steps: the success rate is that of the trigger on a model that never saw it.
        curves: one a count, from the largest down; counts below one that was not reached were not tried.
        untried: those counts.
        complete: whether the time sufficed.
    """

    trigger: str
    wanted: float
    allowance: float
    max_steps: int
    before: InjectionPoint
    curves: tuple[ReinjectionCurve, ...]
    untried: tuple[int, ...]
    complete: bool

    @property
    def fewest(self) -> int | None:
        """The smallest count that was reached; ``None``: none was."""
        return min((curve.n_poisoned for curve in self.curves if curve.steps is not None), default=None)

    @property
    def steps(self) -> dict[int, int | None]:
        """Steps by count, in ascending order; ``None`` where the count was not reached or not tried."""
        found = {curve.n_poisoned: curve.steps for curve in self.curves}
        return {count: found.get(count) for count in sorted([*found, *self.untried])}

    def ratio_to(self, other: Reinjection) -> float | None:
        """Geometric mean over the counts of ``self.steps / other.steps``: below 1, this model is easier to poison.

        A count that one of both did not reach has ``max_steps`` there, so that the true ratio is further from 1; those
        that neither reached are left out.

        Args:
            other: of another model, by the same trigger, counts and settings; then with the same seed, all else is
                equal, too.

        Returns:
            A number above 0; ``None`` where no count was reached, or one of both is not complete.

        Raises:
            InputError: e.g. ``the other has counts 1, 5; expected 1, 2, 5, as here``.
        """
        for name, mine, others in (
            ("trigger", self.trigger, other.trigger),
            ("counts", _listed(self.steps), _listed(other.steps)),
            ("wanted", self.wanted, other.wanted),
            ("allowance", self.allowance, other.allowance),
            ("max_steps", self.max_steps, other.max_steps),
        ):
            if mine != others:
                raise InputError(f"the other has {name} {others}; expected {mine}, as here")
        return steps_ratio(self.steps, other.steps, self.max_steps) if self.complete and other.complete else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "trigger": self.trigger,
            "wanted": self.wanted,
            "allowance": self.allowance,
            "max_steps": self.max_steps,
            "before": _point_values(self.before),
            "fewest": self.fewest,
            "curves": [
                {"n_poisoned": c.n_poisoned, "steps": c.steps, "points": [_point_values(p) for p in c.points]}
                for c in self.curves
            ],
            "untried": list(self.untried),
            "complete": self.complete,
        }


def steps_ratio(steps: Mapping[int, int | None], others: Mapping[int, int | None], max_steps: int) -> float | None:
    """``Reinjection.ratio_to`` of the ``steps`` of two models, which have the same counts."""
    both = [(steps[count], others[count]) for count in steps]
    logs = [math.log((a or max_steps) / (b or max_steps)) for a, b in both if a or b]
    return math.exp(sum(logs) / len(logs)) if logs else None


def reinjection(
    model: nn.Module,
    data: CleanSet,
    test: CleanSet,
    *,
    trigger: Trigger | None = None,
    counts: Sequence[int] | None = None,
    max_steps: int = 256,
    wanted: float = 0.9,
    allowance: float = 0.05,
    rate: float = 0.01,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    progress: bool | None = None,
) -> Reinjection:
    """Steps of SGD until ``wanted`` of the test samples follow a new trigger, for each number of poisoned samples.

    An attacker trains a copy of the model, all its weights, with momentum 0.9: each step has 48 clean samples of
    ``data`` and 16 poisoned ones, which repeat where there are fewer. The model is tested after steps 1 to 8, and then
    four times while the steps double. A test counts as reached if the success rate is at least ``wanted`` and the
    accuracy is at least that of the model as given less ``allowance``. The ladder of counts goes from the largest down,
    and ends with the first that is not reached within ``max_steps``.

    With equal arguments, all models get the same samples, trigger and order: differences are those of the models. The
    poisoned samples of a count are among those of the next one. The model itself is only read.

    Args:
        model: returns logits ``(B, C)``.
        data: the attacker's samples, clean; poisoned ones are stamped copies of some of them.
        test: samples that accuracy and success are measured on, none of them in ``data``; at most 500 for each.
        trigger: of the new backdoor; ``None``: one drawn by ``seed``, with the target class ``(seed + 1) % C``: a patch
            of random pixels, a rare word, or two columns. It should not be one that the model knows.
        counts: numbers of poisoned samples, at least 1 each; ``None``: of 1, 2, 5, 10, 20, 50, 100, 200 and
            500 those that ``data`` has samples for.
        max_steps: at least 1.
        wanted: success rate, in [0, 1].
        allowance: of accuracy, in [0, 1]; a model that gives all samples to the target has no backdoor.
        rate: of SGD, above 0.
        time_budget_s: seconds above 0, after which nothing more is tried; ``None``: no limit.
        seed: in ``[0, 2**63)``.
        device: as for ``seamfast.sanitize``.
        precision: as for ``seamfast.sanitize``; float32 by default, so that a seed gives the same result everywhere.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        Reinjection.

    Raises:
        InputError, ModelError: e.g. ``counts hold 50; only 30 of the 40 samples can be poisoned``, or
            ``the loss became nan; try a lower rate than 0.01``.

    Source: the question, Sha et al., "Fine-Tuning Is All You Need to Mitigate Backdoor Attacks", arXiv:2212.09067,
        whose settings could not be found; those here are chosen for this function.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = CleanSet(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 2)
        >>> reinjection(model, data, data, counts=(2, 5), max_steps=1).trigger
        'drawn-patch'
    """
    begin = time.perf_counter()
    max_steps, seed, rate = as_count("max_steps", max_steps), as_seed(seed), as_positive("rate", rate)
    wanted, allowance = as_rate("wanted", wanted), as_rate("allowance", allowance)
    check_time_budget(time_budget_s)
    end = math.inf if time_budget_s is None else begin + time_budget_s
    for name, samples in (("data", data), ("test", test)):
        check_clean_set(name, samples)
    attacker = Attacker(model, test, device, seed)
    called = as_called(model, data)
    if trigger is None:
        trigger = called.modality.drawn_trigger(called.inputs, (seed + 1) % attacker.num_classes, seed)
    attacker.will_stamp((trigger,))

    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    eligible = eligible_indices(trigger, data, order, attacker.num_classes)
    ladder = _ladder(counts, len(eligible), len(data))
    both = with_stamped(called, called, [(trigger, eligible[: ladder[0]])], seed, attacker.num_classes)
    attack = _Attack(attacker, test, trigger, len(data), max_steps, rate, seed)
    curves: list[ReinjectionCurve] = []
    complete = True
    with in_use(), progress_bar("reinject", "step", len(ladder) * max_steps, progress) as bar:
        attacker.will_train_on(both, _CLEAN + _POISONED, precision)
        before = attack.point(0)
        least = (before.accuracy.value or 0.0) - allowance
        for number, count in enumerate(ladder):
            curve, complete = attack.curve(count, wanted, least, end, bar.update)
            curves.append(curve)
            bar.update((number + 1) * max_steps - bar.n)
            if curve.steps is None:
                break
    return Reinjection(
        trigger=trigger.name,
        wanted=wanted,
        allowance=allowance,
        max_steps=max_steps,
        before=before,
        curves=tuple(curves),
        untried=tuple(ladder[len(curves) :]),
        complete=complete,
    )


class _Attack:
    """The attack on one model, for any number of poisoned samples."""

    def __init__(
        self, attacker: Attacker, test: CleanSet, trigger: Trigger, n_clean: int, max_steps: int, rate: float, seed: int
    ) -> None:
        self._attacker = attacker
        self._n_clean = n_clean
        self._looks = set(looks(max_steps))
        self._max_steps = max_steps
        self._rate = rate
        self._seed = seed
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
        self._plain = order[:_MOST_TESTED]
        self._triggered = eligible_indices(trigger, test, order, attacker.num_classes)[:_MOST_TESTED]
        if not len(self._triggered):
            raise InputError(f"test holds no samples that {trigger.name!r} moves; expected at least one")

    def point(self, steps: int) -> InjectionPoint:
        """The model as it is now."""
        (success,) = self._attacker.success(self._triggered)
        return InjectionPoint(steps, success, self._attacker.accuracy(self._plain))

    def curve(
        self, count: int, wanted: float, least: float, end: float, advance: OnBatch
    ) -> tuple[ReinjectionCurve, bool]:
        """From the weights as received; and whether there was time for it."""
        points: list[InjectionPoint] = []
        self._attacker.begin(self._rate, _MOMENTUM)
        with seeded(self._seed, self._attacker.device):  # dropout
            for step, indices in enumerate(self._batches(count), 1):
                if time.perf_counter() >= end:
                    return ReinjectionCurve(count, None, tuple(points)), False
                self._attacker.step(indices)
                advance(1)
                if step in self._looks:
                    self._attacker.check_finite()
                    points.append(self.point(step))
                    reached = (points[-1].attack_success_rate.value or 0.0) >= wanted
                    if reached and (points[-1].accuracy.value or 0.0) >= least:
                        return ReinjectionCurve(count, step, tuple(points)), True
        return ReinjectionCurve(count, None, tuple(points)), True

    def _batches(self, count: int) -> Iterator[Tensor]:
        """The indices of each step: the clean samples are the same for all counts."""
        clean = wrap_around_batches(torch.arange(self._n_clean), _CLEAN, self._seed)
        poisoned = wrap_around_batches(self._n_clean + torch.arange(count), _POISONED, self._seed)
        for _, some, few in zip(range(self._max_steps), clean, poisoned, strict=False):
            yield torch.cat([some, few])


def looks(max_steps: int) -> Iterator[int]:
    """The steps after which the model is tested: all up to 8, four an octave from there, and the last."""
    step = 1
    while step < max_steps:
        yield step
        step += max(1, 2 ** (step.bit_length() - 1) // _LOOKS_AN_OCTAVE)
    yield max_steps


def _ladder(counts: Sequence[int] | None, n_eligible: int, n: int) -> list[int]:
    """The counts, the largest first."""
    if counts is None:
        given = [count for count in COUNTS if count <= n_eligible]
    elif not isinstance(counts, Sequence):
        raise InputError(f"counts is {counts!r}; expected integers such as (5, 20, 100)")
    else:
        given = sorted({as_count("counts", count) for count in counts})
    if not given:
        raise InputError("counts is empty; expected at least one" if counts is not None else _none_of(n))
    if given[-1] > n_eligible:
        raise InputError(f"counts hold {given[-1]}; only {n_eligible} of the {n} samples can be poisoned")
    return given[::-1]


def _none_of(n: int) -> str:
    return f"none of the {n} samples of data can be poisoned; expected one that the trigger moves to another class"


def _listed(counts: Any) -> str:
    return ", ".join(map(str, counts))


def _point_values(point: InjectionPoint) -> dict[str, Any]:
    return {
        "steps": point.steps,
        "attack_success_rate": rate_values(point.attack_success_rate),
        "accuracy": rate_values(point.accuracy),
    }
