"""``sequela``: how a cure changed a model's weakness to other attacks, by the audits of ``AUDITS``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from seamfast.audits.label_forgetting import LabelForgetting, label_forgetting
from seamfast.audits.membership import Membership, Reference, membership
from seamfast.audits.reactivation import Reactivation, reactivation
from seamfast.audits.reinjection import Reinjection, reinjection
from seamfast.audits.weaknesses import adversarial_accuracy, calibration, check_adjustable, class_accuracy
from seamfast.checks import as_level, as_seed, check_time_budget, short
from seamfast.data import CleanSet
from seamfast.engine.model import device_of
from seamfast.errors import InputError, SeamfastError
from seamfast.metrics import Figure, Rate, rate_difference
from seamfast.triggers import Trigger

__all__ = [
    "AUDITS",
    "Audit",
    "Change",
    "Compared",
    "Given",
    "Sequela",
    "as_table",
    "check_audits",
    "sequela",
    "sequela_of",
]


@dataclass(frozen=True)
class Given:
    """What the audits of one call have to work with; see ``sequela``.

    Attributes:
        time_budget_s: for one audit of one model.
    """

    data: CleanSet
    members: CleanSet | None = None
    clean: CleanSet | None = None
    triggers: tuple[Trigger, ...] = ()
    references: tuple[Reference, ...] = ()
    level: float = 0.95
    seed: int = 0
    device: str | torch.device = "auto"
    progress: bool | None = None
    time_budget_s: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What each audit takes that only reads the model."""
        return self.options_of_training | {"level": self.level}

    @property
    def options_of_training(self) -> dict[str, Any]:
        """What each audit takes that trains a copy."""
        return {"seed": self.seed, "device": self.device, "progress": self.progress}


@dataclass(frozen=True)
class Audit:
    """One row of ``AUDITS``.

    Attributes:
        meaning: in a few words.
        needs: names of attributes of ``Given``: of each group, one must be there.
        measure: of one model.
        figures: the numbers of a result, by name.
        changes: from one result to another, by name of figure: the difference with its bounds.
        check: raises where the data cannot be audited.
    """

    meaning: str
    needs: tuple[tuple[str, ...], ...]
    measure: Callable[[nn.Module, Given], Any]
    figures: Callable[[Any], dict[str, Figure]]
    changes: Callable[[Any, Any], dict[str, Figure]]
    check: Callable[[Given], None] = lambda given: None


# ---- What the audits take and give ----


def _membership(model: nn.Module, given: Given) -> dict[str, Membership]:
    """By set of members."""
    sets = {"training": given.members, "clean": given.clean}
    options = given.options | {"references": given.references}
    return {name: membership(model, one, given.data, **options) for name, one in sets.items() if one is not None}


_SEPARATIONS = ("auc", "balanced_accuracy", "tpr_at_1_percent", "tpr_at_0_1_percent")


def _separations(found: Mapping[str, Mapping[str, Any]], n: Mapping[str, int]) -> dict[str, Figure]:
    """By name of figure ``SET.ATTACK.FIGURE``; one that there are too few outsiders for is left out."""
    figures = {}
    for members, attacks in found.items():
        for attack, separation in attacks.items():
            for name in _SEPARATIONS:
                if (one := getattr(separation, name)) is not None:
                    figures[f"{members}.{attack}.{name}"] = Figure(one.value, one.low, one.high, n[members])
    return figures


def _n_samples(result: Mapping[str, Membership]) -> dict[str, int]:
    """By set of members, the smaller number: of members or of outsiders."""
    return {name: min(one.member_accuracy.n_total, one.outsider_accuracy.n_total) for name, one in result.items()}


def _reinjection(model: nn.Module, given: Given) -> Reinjection:
    assert given.clean is not None
    return reinjection(model, given.clean, given.data, time_budget_s=given.time_budget_s, **given.options_of_training)


def _injected(result: Reinjection) -> dict[str, Figure]:
    """Numbers of one seed, without bounds; a count that was not reached has no value."""
    n = result.before.attack_success_rate.n_total
    counts = {f"steps_with_{count}": steps for count, steps in result.steps.items()}
    numbers = {"fewest_poisoned": result.fewest, **counts}
    return {name: Figure(number, None, None, n) for name, number in numbers.items()}


def _injection_changes(before: Reinjection, after: Reinjection) -> dict[str, Figure]:
    """Differences of the numbers, and ``steps_ratio``: below 1, the later model is easier to poison."""
    first, second = _injected(before), _injected(after)
    found = {name: _less(second[name], first[name]) for name in first}
    n = after.before.attack_success_rate.n_total
    return {**found, "steps_ratio": Figure(after.ratio_to(before), None, None, n)}


def _label_forgetting(model: nn.Module, given: Given) -> LabelForgetting:
    return label_forgetting(model, given.data, time_budget_s=given.time_budget_s, **given.options)


def _less(figure: Figure, other: Figure) -> Figure:
    known = figure.value is not None and other.value is not None
    return Figure(figure.value - other.value if known else None, None, None, figure.n)  # type: ignore[operator]


def _check_injection(given: Given) -> None:
    assert given.clean is not None
    modality = given.clean.modality
    modality.check_trigger(modality.drawn_trigger(given.clean.inputs, 0, given.seed))


def _reactivation(model: nn.Module, given: Given) -> Reactivation:
    assert given.clean is not None
    options = given.options_of_training | {"time_budget_s": given.time_budget_s}
    return reactivation(model, given.clean, given.triggers, given.data, **options)


def _success(result: Reactivation) -> dict[str, Rate]:
    return {"attack_success_rate": result.asr_before, "attack_success_rate_retrained": result.asr_after}


def _success_changes(before: Reactivation, after: Reactivation) -> dict[str, Figure]:
    first, second = _success(before), _success(after)
    return {name: rate_difference(first[name], second[name]) for name in first}


def _check_triggers(given: Given) -> None:
    for trigger in given.triggers:
        given.data.modality.check_trigger(trigger)


AUDITS: dict[str, Audit] = {
    "calibration": Audit(
        "errors of the confidence: ECE, Brier score, negative log-likelihood",
        (),
        lambda model, given: calibration(model, given.data, **given.options),
        lambda result: result.figures(),
        lambda before, after: before.changes_to(after),
    ),
    "class_accuracy": Audit(
        "accuracy by class, and the largest drop of one",
        (),
        lambda model, given: class_accuracy(
            model, given.data, level=given.level, device=given.device, progress=given.progress
        ),
        lambda result: result.figures(),
        lambda before, after: before.changes_to(after),
    ),
    "adversarial": Audit(
        "accuracy under small changes of the input (PGD)",
        (),
        lambda model, given: adversarial_accuracy(model, given.data, **given.options),
        lambda result: result.figures(),
        lambda before, after: before.changes_to(after),
        lambda given: check_adjustable(given.data),
    ),
    "membership": Audit(
        "how well training data can be told from other samples",
        (("members", "clean"),),
        _membership,
        lambda result: _separations({name: one.attacks for name, one in result.items()}, _n_samples(result)),
        lambda before, after: _separations(
            {name: one.change_from(before[name]) for name, one in after.items()}, _n_samples(after)
        ),
    ),
    "reinjection": Audit(
        "poisoned samples and steps that bring another backdoor in",
        (("clean",),),
        _reinjection,
        _injected,
        _injection_changes,
        _check_injection,
    ),
    "reactivation": Audit(
        "attack success of the known trigger after a short fine-tuning by the attacker",
        (("clean",), ("triggers",)),
        _reactivation,
        lambda result: {name: Figure.of(rate) for name, rate in _success(result).items()},
        _success_changes,
        _check_triggers,
    ),
    "ntk": Audit(
        "share of the logits that steps on random labels are predicted to move",
        (),
        _label_forgetting,
        lambda result: result.figures(),
        lambda before, after: before.changes_to(after),
    ),
}
"""The audits by name; one row each."""


# ---- Results ----


@dataclass(frozen=True)
class Change:
    """One figure of an audit, of both models.

    Attributes:
        name: of the figure.
        before, after: ``None`` for a figure that only a pair of models has.
        change: after less before, or the figure of the pair; its bounds are ``None`` where there are none to give.
    """

    name: str
    before: Figure | None
    after: Figure | None
    change: Figure

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        both = {"before": self.before, "after": self.after}
        figures = {when: None if figure is None else figure.to_dict() for when, figure in both.items()}
        return {"name": self.name, **figures, "change": self.change.to_dict()}


@dataclass(frozen=True, eq=False)
class Compared:
    """One audit of both models.

    Attributes:
        before, after: what the audit returned; of ``"membership"``, by name of the set of members.
        changes: of each figure.
        seconds: that it took.
    """

    before: Any
    after: Any
    changes: tuple[Change, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "seconds": round(self.seconds, 3),
            "figures": [change.to_dict() for change in self.changes],
            "before": _values(self.before),
            "after": _values(self.after),
        }


@dataclass(frozen=True, eq=False)
class Sequela:
    """What a cure left behind, by audit.

    Attributes:
        audits: by name, in the order asked for.
        left_out: audits that the time did not suffice for, by name: why.
        n_samples: of the data that were measured on.
        level: of the bounds.
        seed: of the audits.
    """

    audits: Mapping[str, Compared]
    left_out: Mapping[str, str]
    n_samples: int
    level: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON values."""
        return {
            "n_samples": self.n_samples,
            "level": self.level,
            "seed": self.seed,
            "audits": {name: compared.to_dict() for name, compared in self.audits.items()},
            "left_out": [{"audit": name, "why": why} for name, why in self.left_out.items()],
        }

    def __str__(self) -> str:
        return as_table(self.to_dict())


def as_table(values: Mapping[str, Any]) -> str:
    """The figures in ``Sequela.to_dict()``, as lines of one width; then a line for each audit that was left out."""
    rows = [
        (f"{name}: {figure['name']}", *(_cell(figure[column]) for column in ("before", "after", "change")))
        for name, audited in values["audits"].items()
        for figure in audited["figures"]
    ]
    table = [("", "as received", "sanitized", "change"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    return "\n".join([*lines, *(f"left out: {one['audit']}: {one['why']}" for one in values["left_out"])])


def check_audit_name(name: object) -> None:
    """Raise unless ``name`` is in ``AUDITS``: ``audits hold 'x'; expected names in ...``."""
    if not isinstance(name, str) or name not in AUDITS:
        raise InputError(f"audits hold {short(name)}; expected names in {', '.join(AUDITS)}")


def check_audits(audits: Any, given: Given) -> tuple[str, ...]:
    """The names of ``audits``, each once; raises for an unknown one, and where ``given`` does not suffice for one."""
    if isinstance(audits, str) or not isinstance(audits, Sequence):
        raise InputError(f"audits is {short(audits)}; expected names in {', '.join(AUDITS)}")
    for name in audits:
        check_audit_name(name)
        audit = AUDITS[name]
        for group in audit.needs:
            if not any(getattr(given, need) for need in group):
                wanted = " or ".join(f"{need}=" for need in group)
                raise InputError(f"audits hold {name!r}, which lacks {group[0]}; expected {wanted}")
        audit.check(given)
    return tuple(dict.fromkeys(audits))


def sequela(
    received: nn.Module,
    sanitized: nn.Module,
    data: CleanSet,
    *,
    audits: Sequence[str] = ("calibration", "class_accuracy"),
    members: CleanSet | None = None,
    clean: CleanSet | None = None,
    triggers: Sequence[Trigger] = (),
    references: Sequence[Reference] = (),
    level: float = 0.95,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Sequela:
    """Each audit of both models, with the change of its figures.

    Both models are measured on the same samples with the same random draws. They are used in eval mode and left as
    they were; audits that train do so on copies.

    Args:
        received, sanitized: models of the same classes, e.g. before and after a cure.
        data: samples that neither model was trained on, as outsiders and to measure on.
        audits: names in ``AUDITS``: ``"calibration"``, ``"class_accuracy"``, ``"adversarial"``, ``"membership"``,
            ``"reinjection"``, ``"reactivation"``, ``"ntk"``.
        members: samples that ``received`` was trained on: of ``"membership"``, the set ``"training"``.
        clean: samples that the cure trained on, new members: of ``"membership"``, the set ``"clean"``. The attacker of
            ``"reinjection"`` and ``"reactivation"`` trains on them too.
        triggers: of the known backdoor, for ``"reactivation"``.
        references: models of ``seamfast.audits.train_references``, for sharper attacks of ``"membership"``.
        level: of the bounds, in (0, 1).
        time_budget_s: for all audits. One that it does not suffice for is left out: time is looked at between the
            audits and their models. ``None``: no limit.
        seed: in ``[0, 2**63)``.
        device: ``"auto"`` is where ``received`` is; a model that is not there is copied there.
        progress: show progress bars; ``None``: where stderr is a terminal.

    Returns:
        Sequela.

    Raises:
        InputError: e.g. ``audits hold 'membership', which lacks members; expected members= or clean=``; before
            anything is measured.

    Source: the term and two of its measurements, membership inference and the planting of another backdoor: Sha et al.,
        Fine-tuning is all you need to mitigate backdoor attacks, arXiv:2212.09067.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = CleanSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> found = sequela(model, model, data)
        >>> [(change.name, change.change.value) for change in found.audits["calibration"].changes]
        [('ece', 0.0), ('brier', 0.0), ('nll', 0.0)]
    """
    for name, samples in (("data", data), ("members", members), ("clean", clean)):
        if not isinstance(samples, CleanSet) and (samples is not None or name == "data"):
            raise InputError(f"{name} is a {type(samples).__name__}; expected a seamfast.CleanSet")
    check_time_budget(time_budget_s)
    given = Given(
        data,
        members,
        clean,
        tuple(triggers),
        tuple(references),
        level=as_level(level),
        seed=as_seed(seed),
        device=device,
        progress=progress,
    )
    names = check_audits(audits, given)
    for name, model in (("received", received), ("sanitized", sanitized)):
        if not isinstance(model, nn.Module):
            raise InputError(f"{name} is a {type(model).__name__}; expected a torch.nn.Module")
    if device == "auto":
        given = replace(given, device=device_of(received))
    return sequela_of(received, sanitized, names, given, time_budget_s)


def sequela_of(
    received: nn.Module,
    sanitized: nn.Module,
    audits: Sequence[str],
    given: Given,
    time_budget_s: float | None,
    *,
    raises: bool = True,
) -> Sequela:
    """``sequela`` of arguments that were checked.

    Args:
        received, sanitized, audits, given: as for ``sequela``.
        time_budget_s: may be used up, 0 or less.
        raises: whether an audit that the data are not fit for, or that cannot be completed, raises; else it is left
            out.
    """
    deadline = math.inf if time_budget_s is None else time.perf_counter() + time_budget_s
    compared: dict[str, Compared] = {}
    left_out: dict[str, str] = {}
    for name in audits:
        try:
            AUDITS[name].check(given)
            found = _compared(AUDITS[name], received, sanitized, given, deadline)
        except SeamfastError as error:
            if raises:
                raise
            found = str(error)
        if isinstance(found, str):
            left_out[name] = found
        else:
            compared[name] = found
    return Sequela(compared, left_out, len(given.data), given.level, given.seed)


def _compared(audit: Audit, received: nn.Module, sanitized: nn.Module, given: Given, deadline: float) -> Compared | str:
    """One audit, or why the time did not suffice for it."""
    start = time.perf_counter()
    if start >= deadline:
        return "the time budget was used up"
    if deadline < math.inf:
        given = replace(given, time_budget_s=(deadline - start) / 2)
    before = audit.measure(received, given)
    took = time.perf_counter() - start
    if time.perf_counter() + took > deadline or not _is_complete(before):
        return f"the time budget did not suffice: the received model alone took {took:.1f} s"
    after = audit.measure(sanitized, given)
    if not _is_complete(after):
        return "the time budget did not suffice for the sanitized model"
    first, second = audit.figures(before), audit.figures(after)
    changes = tuple(
        Change(name, first.get(name), second.get(name), change) for name, change in audit.changes(before, after).items()
    )
    return Compared(before, after, changes, time.perf_counter() - start)


def _is_complete(result: Any) -> bool:
    """Of an audit that trains: whether its own time sufficed."""
    return not isinstance(result, (Reactivation, Reinjection)) or result.complete


def _values(result: Any) -> dict[str, Any]:
    if isinstance(result, Mapping):
        return {name: one.to_dict() for name, one in result.items()}
    values: dict[str, Any] = result.to_dict()
    return values


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    if figure["value"] is None:
        return "n/a"
    bounds = "" if figure["low"] is None or figure["high"] is None else f" [{figure['low']:.4f}, {figure['high']:.4f}]"
    return f"{figure['value']:.4f}{bounds}"
