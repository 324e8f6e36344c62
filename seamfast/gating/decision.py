"""The decision of the gate: what was measured, held against the rules of a policy.

A rule compares the confidence bound on the bad side with its threshold, so it passes on evidence, never for lack of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from seamfast.gating.policy import MAX_SAMPLES, METRICS, Policy, Rule

TREATED = "gate:treated"
"""Id of the gate's own rule; no policy can give it to one of its rules."""
_ROUNDING = 1e-9  # bounds that others computed may lie on the wrong side of their value by a rounding error


@dataclass(frozen=True)
class Measured:
    """One metric as measured.

    Attributes:
        value: the estimate; ``None`` where there is none. Of a boolean, 0 or 1.
        low, high: its confidence interval; both are ``value`` where there is none to give.
        n: samples behind it.
        why: of a boolean that is not true, the cause, as the end of a sentence.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int | None
    why: str | None = None


@dataclass(frozen=True)
class NotFinite:
    """Answers of one model with NaN or Inf.

    Attributes:
        kind: of the inputs: ``"clean"``, ``"battery"``, ``"disagreement"``, ``"inversion"`` or ``"vocabulary"``.
        name: of the trigger, of the perturbation, the number of the class, or the phrase; empty for clean inputs.
        n_not_finite: such answers.
        n: of so many; ``None`` for an inversion, whose steps are not samples.
    """

    kind: str
    name: str
    n_not_finite: int
    n: int | None

    @property
    def share(self) -> float:
        """``n_not_finite / n``; 0 where ``n`` is ``None``."""
        return self.n_not_finite / self.n if self.n else 0.0


@dataclass(frozen=True)
class RuleOutcome:
    """The outcome of one rule: the rule's own fields, and those of the measurement.

    Attributes:
        value, low, high, n: as measured; ``None`` where not, or not finite.
        bound: ``low`` or ``high``, whichever was compared with the threshold.
        outcome: ``"pass"``, ``"fail"`` or ``"inconclusive"``.
        reason: why, in one sentence.
    """

    id: str
    metric: str
    threshold: float | bool
    greater_is_better: bool
    min_samples: int
    value: float | None
    low: float | None
    high: float | None
    bound: float | None
    n: int | None
    outcome: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as a gate report holds them."""
        return asdict(self)


@dataclass(frozen=True)
class Decision:
    """``"fail"`` if any rule failed, else ``"inconclusive"`` if any is, else ``"pass"``; and each rule, in order."""

    outcome: str
    rules: tuple[RuleOutcome, ...]


def decide(policy: Policy, metrics: Mapping[str, Measured]) -> Decision:
    """The outcome of each rule of ``policy``, and of all of them.

    A rule without a usable measurement on enough samples is inconclusive. Any other passes if its bound meets the
    threshold, and fails if not, because the model is bad or because the samples are too few to show that it is good:
    the reason says which, and how many samples might suffice.

    Unless the policy allows untreated models, the gate's own rule comes last: ``sanitize.treated`` is true.

    Args:
        policy: has at least one rule.
        metrics: by name, as in ``METRICS``; those that no rule names are ignored.

    Example:
        >>> from seamfast.gating.policy import TEMPLATE, parse_policy
        >>> policy = parse_policy(TEMPLATE.encode())
        >>> decide(policy, {}).outcome
        'inconclusive'
    """
    rules = [_rule_outcome(rule, metrics.get(rule.metric)) for rule in policy.rules]
    if policy.untreated == "refused":
        own = Rule("treated", "sanitize.treated", threshold=True, greater_is_better=True)
        rules.append(replace(_rule_outcome(own, metrics.get(own.metric)), id=TREATED))
    outcomes = {rule.outcome for rule in rules}
    if "fail" in outcomes:
        return Decision("fail", tuple(rules))
    return Decision("pass" if outcomes == {"pass"} else "inconclusive", tuple(rules))


def _rule_outcome(rule: Rule, measured: Measured | None) -> RuleOutcome:
    outcome, reason = _outcome_and_reason(rule, measured)
    values = asdict(measured or Measured(None, None, None, None))
    del values["why"]
    for key in ("value", "low", "high"):  # a report holds no NaN
        if values[key] is not None and not math.isfinite(values[key]):
            values[key] = None
    bound = values["low" if rule.greater_is_better else "high"]
    return RuleOutcome(**asdict(rule), **values, bound=bound, outcome=outcome, reason=reason)


def _outcome_and_reason(rule: Rule, measured: Measured | None) -> tuple[str, str]:
    name, metric = rule.metric, METRICS[rule.metric]
    if measured is None:
        return "inconclusive", f"{name} was not measured"
    value, low, high, n = measured.value, measured.low, measured.high, measured.n or 0
    because = f": {measured.why}" if measured.why else ""
    if value is None or low is None or high is None:
        return "inconclusive", f"{name} has no value, from {n:,} samples{because}"
    numbers = f"{name} was measured as {value!r} in [{low!r}, {high!r}]"
    if not all(math.isfinite(x) and metric.lowest <= x <= metric.highest for x in (value, low, high)):
        return "inconclusive", f"{numbers}, which it cannot be"
    if not low - _ROUNDING <= value <= high + _ROUNDING or (metric.has_interval and low >= high):
        return "inconclusive", f"{numbers}, which is no interval of it"
    if n < rule.min_samples:
        return "inconclusive", f"{name} was measured on {n:,} samples; the rule expects at least {rule.min_samples:,}"
    bound, other = (low, high) if rule.greater_is_better else (high, low)
    passed = _meets(rule, bound)
    if metric.kind == "boolean":
        return ("pass", f"{name} is true") if passed else ("fail", f"{name} is false; expected true{because}")
    which = "" if not metric.has_interval else "lower bound of " if rule.greater_is_better else "upper bound of "
    side = ("at least" if passed else "below") if rule.greater_is_better else ("at most" if passed else "above")
    result = f"{which}{name} is {_beside(bound, rule.threshold)}, {side} {rule.threshold!r} (n = {n:,})"
    if passed:
        return "pass", result
    if not metric.has_interval:
        return "fail", result
    if _meets(rule, value):
        return "fail", f"{result}; at the same value, {value:.4g}, {_samples_to_pass(rule, value, bound, n)}"
    if _meets(rule, other):
        return "fail", f"{result}; so is the value, {value:.4g}, but not the whole interval: more samples might pass"
    return "fail", f"{result}; so is the whole interval: more samples will hardly help"


def _meets(rule: Rule, number: float) -> bool:
    return number >= rule.threshold if rule.greater_is_better else number <= rule.threshold


def _beside(number: float, threshold: float) -> str:
    """The number in four digits; in all of them where rounding would put it on the threshold's other side."""
    text = f"{number:.4g}"
    rounded = float(text)
    same_side = (rounded > threshold, rounded < threshold) == (number > threshold, number < threshold)
    return text if same_side else repr(number)


def _samples_to_pass(rule: Rule, value: float, bound: float, n: int) -> str:
    """How many samples would bring ``bound`` to the threshold, nearly.

    A bound lies ``sqrt(spread / n)`` from its value. Of a rate, the spread is that of the bound itself, as in Wilson's
    interval; of a difference, it is taken to stay.
    """
    distance = abs(rule.threshold - value)
    ratio = (bound - value) ** 2 / distance**2 if distance > _ROUNDING else math.inf
    if METRICS[rule.metric].kind == "rate" and 0 < bound < 1:
        ratio *= rule.threshold * (1 - rule.threshold) / (bound * (1 - bound))
    needed = n * ratio
    return f"about {math.ceil(needed):,} samples would pass" if needed < MAX_SAMPLES else "no number of samples would"


def metrics_of(evidence: Mapping[str, Any], *, modality: str | None = None) -> dict[str, Measured]:
    """What a policy's rules may name, of a report's ``audit``, ``disagreement``, ``sanitize``, ``sequela`` and
    ``provenance``.

    A metric that was not measured is left out; one that samples of this kind cannot have has no value, and the cause.

    Args:
        evidence: of a report.
        modality: the kind of the samples, as ``Modality.name``; ``None``: not known.
    """
    metrics: dict[str, Measured] = {}
    for when in ("before", "after"):
        audit = evidence["audit"][when]
        if audit is None:
            continue
        accuracy, inversion = audit["clean_accuracy"], audit["inversion"]
        metrics[f"{when}.clean_accuracy"] = _measured(accuracy, accuracy["n_total"])
        metrics[f"{when}.finite"] = _exact(float(not not_finite(evidence, when)), accuracy["n_total"])
        if audit["battery"]:
            metrics[f"{when}.battery_worst"] = _worst([result["rate"] for result in audit["battery"]])
        if inversion is not None and inversion["complete"] and inversion["anomaly_index"] is not None:
            metrics[f"{when}.inversion_anomaly_index"] = _exact(inversion["anomaly_index"], accuracy["n_total"])
        searched = audit.get("vocabulary")
        if searched is not None and searched["complete"] and (found := _found(searched)):
            metrics[f"{when}.vocabulary_worst"] = _worst([one["rate"] for one in found])
        if modality is not None and (missing := _NOT_OF.get(modality)) is not None:
            metrics[f"{when}.{missing[0]}"] = Measured(None, None, None, accuracy["n_total"], missing[1])
    change, run = evidence["audit"]["change"], evidence["sanitize"]
    if change is not None:
        metrics["accuracy_lost"] = _measured(change["accuracy_lost"], change["n"])
    if evidence["disagreement"]:
        metrics["disagreement_worst"] = _worst([part["rate"] for part in evidence["disagreement"]])
    if run is not None:
        metrics["sanitize.accepted"] = _accepted(run)
        metrics["sanitize.treated"] = _treated(run)
    if (behind := evidence.get("sequela")) is not None:
        metrics.update(_of_sequela(behind))
    provenance = evidence.get("provenance") or {}
    if (signature := provenance.get("signature")) is not None and signature["verified"] is not None:
        metrics["provenance.verified"] = _exact(float(signature["verified"]), signature["n_files"] or 0)
    if provenance.get("attestation") is not None:
        metrics["attestation.signed"] = _exact(1.0, 1)
    return metrics


def _of_sequela(found: Mapping[str, Any]) -> dict[str, Measured]:
    """Of the audits that were completed; an audit that was left out has the cause in place of a value."""
    metrics = {}
    for name, metric in METRICS.items():
        if metric.audit is None:
            continue
        if metric.audit in found["audits"]:
            figures = {one["name"]: one for one in found["audits"][metric.audit]["figures"]}
            metrics[name] = _SEQUELA[name](figures)
        elif why := [one["why"] for one in found["left_out"] if one["audit"] == metric.audit]:
            metrics[name] = Measured(None, None, None, found["n_samples"], why[0])
    return metrics


def _of_figure(figure: Mapping[str, Any]) -> Measured:
    return Measured(figure["value"], figure["low"], figure["high"], figure["n"])


def _largest_auc(figures: Mapping[str, Any]) -> Measured:
    """Of any attack: an attacker takes the best. The largest value and the largest of either bound."""
    of_attacks = [one["after"] for name, one in figures.items() if name.endswith(".auc")]
    value, low, high = (max(figure[key] for figure in of_attacks) for key in ("value", "low", "high"))
    return Measured(value, low, high, of_attacks[0]["n"])


def _adversarial_accuracy(figures: Mapping[str, Any]) -> Measured:
    """At the smallest size of changes, which comes first."""
    return _of_figure(next(iter(figures.values()))["after"])


def _ratio(figures: Mapping[str, Any]) -> Measured:
    one = figures["steps_ratio"]["change"]
    if one["value"] is None:
        return Measured(None, None, None, one["n"], "another backdoor could be planted in neither model")
    return _exact(one["value"], one["n"])


_SEQUELA: dict[str, Callable[[Mapping[str, Any]], Measured]] = {
    "after.ece": lambda figures: _of_figure(figures["ece"]["after"]),
    "class_accuracy_drop": lambda figures: _of_figure(figures["largest_class_drop"]["change"]),
    "after.adversarial_accuracy": _adversarial_accuracy,
    "after.membership_auc": _largest_auc,
    "reinjection_ratio": _ratio,
}
"""Of the figures of an audit by name: the metric."""

_NOT_OF = {
    "image": ("vocabulary_worst", "images have no vocabulary; a rule on inversion_anomaly_index takes its place"),
    "text": ("inversion_anomaly_index", "texts have no mask to invert; a rule on vocabulary_worst takes its place"),
}
"""By the kind of the samples: the metric that they cannot have, and why."""


def _found(searched: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tokens and phrases of all classes."""
    return [one for entry in searched["classes"] for one in entry["found"]]


def _accepted(run: Mapping[str, Any]) -> Measured:
    verdict, n = run["verdict"], run["data"]["n_holdout"]
    if verdict["outcome"] == "undecided":
        return Measured(None, None, None, n, verdict["reason"])
    return _exact(1.0, n) if verdict["accepted"] else replace(_exact(0.0, n), why=verdict["reason"])


def _treated(run: Mapping[str, Any]) -> Measured:
    """Whether the model that is returned went through the whole method, and was accepted."""
    model, how, n = run["model"], run["run"], run["data"]["n_holdout"]
    why = None
    if how["stopped"] is not None or model["returned"] != "sanitized":
        why = f"the run was stopped, and the model is the one received: {how['stopped']}"
    elif how["time_ran_out"]:
        why = "the time budget cut the run short"
    elif model["digest_after"] in (None, model["digest_before"]):
        why = "the weights are those received"
    return _accepted(run) if why is None else replace(_exact(0.0, n), why=why)


def not_finite(evidence: Mapping[str, Any], when: str) -> list[NotFinite]:
    """Where the model ``when`` answered with NaN or Inf, in the order of the audit; empty where it did not.

    Args:
        evidence: a report's ``audit`` and ``disagreement``.
        when: ``"before"`` or ``"after"``.
    """
    audit, counted = evidence["audit"][when], "n_not_finite_received" if when == "before" else "n_not_finite_sanitized"
    if audit is None:
        return []
    n = audit["clean_accuracy"]["n_total"]
    found = [NotFinite("clean", "", audit["n_not_finite"], n)]
    found += [NotFinite("battery", part["name"], part["n_not_finite"], n) for part in audit["battery"]]
    for part in evidence["disagreement"] or ():
        found.append(NotFinite("disagreement", part["perturbation"], part[counted], part["rate_clean"]["n_total"]))
    for part in (audit["inversion"] or {"classes": ()})["classes"]:
        found.append(NotFinite("inversion", str(part["class"]), part["n_not_finite"], None))
    for part in _found(audit.get("vocabulary") or {"classes": ()}):
        found.append(NotFinite("vocabulary", part["text"], part["n_not_finite"], part["rate"]["n_total"]))
    return [one for one in found if one.n_not_finite]


def _measured(bounded: Mapping[str, Any], n: int) -> Measured:
    return Measured(bounded["value"], bounded["low"], bounded["high"], n)


def _exact(value: float, n: int) -> Measured:
    return Measured(value, value, value, n)


def _worst(rates: Sequence[Mapping[str, Any]]) -> Measured:
    """The largest upper bound, and the largest value; ``n`` is the smallest."""
    if any(rate["value"] is None for rate in rates):
        return Measured(None, None, None, 0)
    value, low, high = (max(rate[key] for rate in rates) for key in ("value", "low", "high"))
    return Measured(value, low, high, min(rate["n_total"] for rate in rates))
