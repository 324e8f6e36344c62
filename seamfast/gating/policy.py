"""Policies: what a model must show to pass the gate, as strict TOML; ``seamfast.gating.decision`` decides by them."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from seamfast.errors import ConfigError, DataFileError, InputError, PolicyError
from seamfast.methods import MethodConfig, SeamConfig, config_class
from seamfast.untrusted import open_regular, printable, printable_value

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - CI runs 3.11
    import tomli as tomllib

VERSION = 1
MAX_BYTES = 32 << 10
MAX_LINE_BYTES = 400  # a dotted key of n parts costs the parser n * n steps, and cannot be broken over lines
_MAX_TIME_S = 1e6
_FEWEST_STEPS, _MOST_STEPS, _ALL_STEPS = 60, 300, 3000
_MAX_STEPS = 100_000
MAX_SAMPLES = 10**9
_LARGEST_SETTING = 1e9
_FINEST = 1e-6  # a threshold closer to an end of its range takes millions of samples
_LONGEST_NAME = 100
_UNTREATED = ("refused", "allowed")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Metric:
    """What a rule may name.

    Attributes:
        kind: ``"rate"`` (a share of samples), ``"difference"`` (of two shares) or ``"estimate"`` (of many samples
            together), which have confidence intervals; ``"number"`` or ``"boolean"``, which have none.
        lowest, highest: its range. A threshold lies inside: at the ends, a rule would be decided before measuring.
        greater_is_better: the direction in which a model is better; a rule that says otherwise is an error.
        meaning: in a few words.
        audit: of ``seamfast.audits.AUDITS``, which runs where a rule names the metric.
    """

    kind: str
    lowest: float
    highest: float
    greater_is_better: bool
    meaning: str
    audit: str | None = None

    @property
    def has_interval(self) -> bool:
        """Whether a measurement without a confidence interval is none."""
        return self.kind in ("rate", "difference", "estimate")

    @property
    def expected(self) -> str:
        """The thresholds that ``allows`` accepts, for a message or a table."""
        if self.kind == "boolean":
            return "true"
        if self.kind == "number":
            return f"a number above {self.lowest:g}"
        return f"a number in [{self.lowest + _FINEST:g}, {self.highest - _FINEST:g}]"

    def allows(self, threshold: object) -> bool:
        """Whether ``threshold`` is as ``expected``."""
        if self.kind == "boolean":
            return threshold is True
        if self.kind == "number":
            return _is_number(threshold, self.lowest, self.highest)
        return _is_number(threshold, self.lowest, self.highest, _FINEST)


METRICS: dict[str, Metric] = {
    "before.clean_accuracy": Metric("rate", 0, 1, True, "accuracy of the model as received"),
    "after.clean_accuracy": Metric("rate", 0, 1, True, "accuracy of the sanitized model"),
    "accuracy_lost": Metric("difference", -1, 1, False, "right before and wrong after, less the other way round"),
    "before.battery_worst": Metric("rate", 0, 1, False, "largest rate of the built-in battery, as received"),
    "after.battery_worst": Metric("rate", 0, 1, False, "largest rate of the built-in battery, sanitized"),
    "before.inversion_anomaly_index": Metric("number", 0, math.inf, False, "anomaly index of inversion, as received"),
    "after.inversion_anomaly_index": Metric("number", 0, math.inf, False, "anomaly index of inversion, sanitized"),
    "before.vocabulary_worst": Metric("rate", 0, 1, False, "largest rate of a token or phrase found, as received"),
    "after.vocabulary_worst": Metric("rate", 0, 1, False, "largest rate of a token or phrase found, sanitized"),
    "disagreement_worst": Metric("rate", 0, 1, False, "largest share of perturbed samples with two different answers"),
    "after.ece": Metric("estimate", 0, 1, False, "expected calibration error, sanitized", "calibration"),
    "class_accuracy_drop": Metric(
        "difference", -1, 1, False, "accuracy lost of the class that lost most", "class_accuracy"
    ),
    "after.adversarial_accuracy": Metric(
        "rate", 0, 1, True, "accuracy under small changes by PGD, sanitized", "adversarial"
    ),
    "after.membership_auc": Metric(
        "estimate", 0, 1, False, "how well the samples of the repair are told from others", "membership"
    ),
    "reinjection_ratio": Metric(
        "number", 0, math.inf, True, "steps to plant another backdoor, over those as received", "reinjection"
    ),
    "before.finite": Metric("boolean", 0, 1, True, "whether no audited input has an answer of NaN or Inf, as received"),
    "after.finite": Metric("boolean", 0, 1, True, "whether no audited input has an answer of NaN or Inf, sanitized"),
    "sanitize.accepted": Metric("boolean", 0, 1, True, "whether the sanitization was accepted; no value if undecided"),
    "sanitize.treated": Metric("boolean", 0, 1, True, "accepted, run to its end, and other weights than received"),
    "provenance.verified": Metric("boolean", 0, 1, True, "whether the signature of the received model was verified"),
    "attestation.signed": Metric("boolean", 0, 1, True, "whether the attestation is signed"),
}
"""All that a rule may name."""
FORMER_METRICS = {"parting_worst": "disagreement_worst"}
"""Names of the version before, which a policy file may still use, with a warning."""


@dataclass(frozen=True)
class Rule:
    """One thing that a model must show.

    Attributes:
        id: unique in its policy; letters, digits, ``.``, ``_`` and ``-``, at most 64.
        metric: a name in ``METRICS``.
        threshold: compared with the bound on the bad side; ``True`` for a boolean.
        greater_is_better: ``True``: the lower bound must be at least ``threshold``; ``False``: the upper at most.
        min_samples: with fewer, at least 1, the rule stays undecided.

    Raises:
        PolicyError: e.g. ``threshold is 1; expected a number in [1e-06, 0.999999]``.
    """

    id: str
    metric: str
    threshold: float | bool
    greater_is_better: bool
    min_samples: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _ID.fullmatch(self.id):
            raise PolicyError(
                f"id is {_value(self.id)}; expected 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
            )
        if not isinstance(self.metric, str) or self.metric not in METRICS:
            raise PolicyError(f"metric is {_value(self.metric)}; {_nearest(self.metric, METRICS)}")
        metric = METRICS[self.metric]
        if not metric.allows(self.threshold):
            raise PolicyError(f"threshold is {_value(self.threshold)}; expected {metric.expected}")
        better = "more" if metric.greater_is_better else "less"
        if self.greater_is_better is not metric.greater_is_better:
            raise PolicyError(
                f"greater_is_better is {_value(self.greater_is_better)}; expected {_value(metric.greater_is_better)}, "
                f"since {better} of {self.metric} is better"
            )
        if type(self.min_samples) is not int or not 1 <= self.min_samples <= MAX_SAMPLES:
            raise PolicyError(f"min_samples is {_value(self.min_samples)}; expected an integer in [1, {MAX_SAMPLES}]")


@dataclass(frozen=True)
class SanitizeSettings:
    """How the model is sanitized: arguments of ``seamfast.sanitize``.

    Attributes:
        method: a name in ``seamfast.methods.METHODS``.
        preset: of ``"seam"``, in place of a config.
        config: of the method; ``None`` for its defaults.
        time_budget_s: for the run; ``None``: no limit.

    Raises:
        PolicyError: e.g. ``preset is 'slow'; expected one of fast, balanced, thorough``.
    """

    method: str = "seam"
    preset: str | None = None
    config: MethodConfig | None = None
    time_budget_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("method", "preset"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name == "method" or value is not None):
                raise PolicyError(f"{name} is {_value(value)}; expected a string")
        try:
            config_type = config_class(self.method)
            if self.preset is not None and config_type is SeamConfig:
                SeamConfig.preset(self.preset)
        except ConfigError as error:
            raise PolicyError(printable(error, 400)) from error
        if self.preset is not None and config_type is not SeamConfig:
            raise PolicyError(f"preset is {_value(self.preset)}; expected none for method {self.method!r}")
        if self.preset is not None and self.config is not None:
            raise PolicyError(f"preset is {_value(self.preset)} and settings are given; expected one of them")
        if self.config is not None and not isinstance(self.config, config_type):
            raise PolicyError(f"config is a {type(self.config).__name__}; expected {config_type.__name__}")
        _check_time("time_budget_s", self.time_budget_s)


@dataclass(frozen=True)
class AuditSettings:
    """What is measured, and on how much of the data.

    Attributes:
        share: of the clean data, kept for the audits alone, in (0, 1); the rest repairs the model.
        level: of the two-sided confidence intervals that rules look at, in (0.5, 1).
        inversion: whether triggers are inverted, which costs most of an audit's time.
        inversion_steps: of the search, for each class of each of the two models, from 1 to 100,000; ``None``: 3,000 for
            all classes together, but from 60 to 300 for each.
        inversion_time_budget_s: for each of the two models; ``None``: no limit. A search that reaches it gives no
            result at all, so that nothing depends on how fast the machine is but whether there is one.
        vocabulary: of texts, whether the vocabulary is searched for tokens and phrases that move them to a class.
        vocabulary_time_budget_s: for each of the two models; ``None``: no limit. As for the inversion, a search that
            reaches it gives no result.

    Raises:
        PolicyError: e.g. ``share is 1; expected a number in (0, 1)``.
    """

    share: float = 0.5
    level: float = 0.95
    inversion: bool = True
    inversion_steps: int | None = None
    inversion_time_budget_s: float | None = None
    vocabulary: bool = True
    vocabulary_time_budget_s: float | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("share", 0), ("level", 0.5)):
            value = getattr(self, name)
            if not _is_number(value, lowest, 1):
                raise PolicyError(f"{name} is {_value(value)}; expected a number in ({lowest:g}, 1)")
        for name in ("inversion", "vocabulary"):
            value = getattr(self, name)
            if type(value) is not bool:
                raise PolicyError(f"{name} is {_value(value)}; expected true or false")
        steps = self.inversion_steps
        if steps is not None and (type(steps) is not int or not 1 <= steps <= _MAX_STEPS):
            raise PolicyError(f"inversion_steps is {_value(steps)}; expected an integer in [1, {_MAX_STEPS}]")
        _check_time("inversion_time_budget_s", self.inversion_time_budget_s)
        _check_time("vocabulary_time_budget_s", self.vocabulary_time_budget_s)

    def steps_for(self, num_classes: int) -> int:
        """``inversion_steps``, or what stands for them with so many classes."""
        return self.inversion_steps or max(_FEWEST_STEPS, min(_MOST_STEPS, _ALL_STEPS // num_classes))


@dataclass(frozen=True)
class Policy:
    """Rules, all of which a model must pass, and how it is sanitized and audited before.

    Attributes:
        name: for people; printable, at most 100 characters.
        rules: at least one.
        untreated: ``"refused"``: whatever the rules say, a pass needs ``sanitize.treated``; ``"allowed"``: it does not.
        sha256: of the bytes that it was read from.
        path: where from, fit for a report; ``None`` if not from a file.
        warnings: what its author should change, one sentence each.

    Raises:
        PolicyError: e.g. ``rules 1 and 3 have the id 'accuracy'; expected different ids``.
    """

    name: str
    rules: tuple[Rule, ...]
    sanitize: SanitizeSettings
    audit: AuditSettings
    sha256: str
    untreated: str = "refused"
    path: str | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name = self.name
        if not (isinstance(name, str) and name.strip() and name.isprintable() and len(name) <= _LONGEST_NAME):
            raise PolicyError(f"name is {_value(name)}; expected 1 to {_LONGEST_NAME} printable characters")
        if self.untreated not in _UNTREATED:
            raise PolicyError(f"untreated is {_value(self.untreated)}; expected 'refused' or 'allowed'")
        if not self.rules:
            raise PolicyError("the policy has no rules; expected at least one [[rule]]")
        first: dict[str, int] = {}
        for number, rule in enumerate(self.rules, 1):
            if rule.id in first:
                message = f"rules {first[rule.id]} and {number} have the id '{rule.id}'; expected different ids"
                raise PolicyError(message)
            first[rule.id] = number
            for search in ("inversion", "vocabulary"):
                if search in rule.metric and not getattr(self.audit, search):
                    message = f"rule {number}: metric is '{rule.metric}', but audit.{search} is false; expected true"
                    raise PolicyError(message)

    @property
    def audits(self) -> tuple[str, ...]:
        """Of ``seamfast.audits.AUDITS``, those that a rule needs."""
        needed = [METRICS[rule.metric].audit for rule in self.rules]
        return tuple(dict.fromkeys(name for name in needed if name is not None))

    def to_dict(self) -> dict[str, Any]:
        """All that it holds, as plain dicts, lists, strings, numbers, booleans and ``None``."""
        config = self.sanitize.config
        return {
            "version": VERSION,
            "name": self.name,
            "untreated": self.untreated,
            "path": self.path,
            "sha256": self.sha256,
            "sanitize": {
                "method": self.sanitize.method,
                "preset": self.sanitize.preset,
                "time_budget_s": self.sanitize.time_budget_s,
                "settings": None if config is None else config.to_dict(),
            },
            "audit": asdict(self.audit),
            "rules": [asdict(rule) for rule in self.rules],
            "warnings": list(self.warnings),
        }


# ---- Reading. ----


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """``parse_policy(Path(path).read_bytes())``, of a regular file of bounded size, opened once.

    A symbolic link to such a file is followed: the caller named it.

    Args:
        path: a TOML file.

    Returns:
        Policy, with its ``path``, and the ``sha256`` of the bytes that were read.

    Raises:
        PolicyError: e.g. ``gate.toml: rule 3: threshold is 'a'; expected a number in [1e-06, 0.999999]``.
        OSError: the disk failed.
    """
    try:
        with open_regular(path, "a policy as TOML") as file:
            content = file.read(MAX_BYTES + 1)
        return replace(parse_policy(content), path=printable(path, 4096))
    except DataFileError as error:
        raise PolicyError(str(error)) from error
    except PolicyError as error:
        raise PolicyError(f"{printable(path)}: {error}") from error


def parse_policy(content: bytes) -> Policy:
    """The policy in ``content``; whatever is unknown, doubled or out of range is an error.

    Args:
        content: UTF-8, TOML 1.0, at most 32 KiB, no line above 400 bytes. The format is in ``docs/policy.md``.

    Returns:
        Policy, without a ``path``.

    Raises:
        PolicyError: e.g. ``rule 2: unknown key 'treshold'; did you mean 'threshold'?``.

    Example:
        >>> parse_policy(TEMPLATE.encode()).rules[0].metric
        'after.clean_accuracy'
    """
    document = _document(content)
    if "version" not in document:
        raise PolicyError(f"version is missing; expected version = {VERSION}")
    # Checked before the keys: another version may have other keys.
    if type(document["version"]) is not int or document["version"] != VERSION:
        raise PolicyError(f"version is {_value(document['version'])}; expected {VERSION}")
    _check_keys(document, ("version", "name", "untreated", "sanitize", "audit", "rule"), ("name",))
    tables = document.get("rule", [])
    if not isinstance(tables, list):
        raise PolicyError(f"rule is {_value(tables)}; expected tables, each headed [[rule]]")
    warnings: list[str] = []
    return Policy(
        name=document["name"],
        rules=tuple(_rule(table, number, warnings) for number, table in enumerate(tables, 1)),
        sanitize=_sanitize_settings(document.get("sanitize", {})),
        audit=_audit_settings(document.get("audit", {})),
        untreated=document.get("untreated", "refused"),
        sha256=hashlib.sha256(content).hexdigest(),
        warnings=tuple(warnings),
    )


def _document(content: bytes) -> dict[str, Any]:
    """The TOML as parsed. Input that makes the parser slow is refused first."""
    if len(content) > MAX_BYTES:
        raise PolicyError(f"the policy has more than {MAX_BYTES:,} bytes; expected at most so many")
    for number, line in enumerate(content.split(b"\n"), 1):
        if len(line) > MAX_LINE_BYTES:
            raise PolicyError(f"line {number} has {len(line):,} bytes; expected at most {MAX_LINE_BYTES}")
    try:
        document: dict[str, Any] = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PolicyError(f"the policy is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError:
        raise PolicyError("the policy is nested too deeply; expected plain tables") from None
    except ValueError as error:  # dates and integers out of range too
        raise PolicyError(f"the policy is not TOML: {printable(error)}") from error
    return document


@contextmanager
def _errors_of(part: str) -> Iterator[None]:
    """Every ``PolicyError`` names the part of the policy."""
    try:
        yield
    except PolicyError as error:
        raise PolicyError(f"{part}: {error}") from error


def _rule(table: Any, number: int, warnings: list[str]) -> Rule:
    keys = [field.name for field in fields(Rule)]
    with _errors_of(f"rule {number}"):
        _check_keys(table, keys, [key for key in keys if key != "min_samples"])
        former = table["metric"]
        if isinstance(former, str) and former in FORMER_METRICS:
            table = {**table, "metric": FORMER_METRICS[former]}
            warnings.append(
                f"rule {number} of the policy: metric is '{former}'; expected '{table['metric']}', its new name; the "
                "next version refuses the old one"
            )
        return Rule(**table)


def _sanitize_settings(table: Any) -> SanitizeSettings:
    with _errors_of("sanitize"):
        _check_keys(table, ("method", "preset", "time_budget_s", "settings"))
        given = SanitizeSettings(**{key: value for key, value in table.items() if key != "settings"})
        return replace(given, config=_config(given.method, table["settings"])) if "settings" in table else given


def _config(method: str, table: Any) -> MethodConfig:
    config_type = config_class(method)
    try:
        _check_keys(table, [field.name for field in fields(config_type)])
        for key, value in table.items():
            for item in value if isinstance(value, list) else [value]:
                # The config checks the rest; huge integers would overflow in its arithmetic.
                if isinstance(item, (dict, list)) or (isinstance(item, int) and abs(item) > _LARGEST_SETTING):
                    message = f"{key} has {_value(item)}; expected strings, booleans or numbers of at most 1e9 in size"
                    raise PolicyError(message)
        return config_type.from_dict(table)
    except ConfigError as error:
        raise PolicyError(f"settings: {printable(error, 400)}") from error


def _audit_settings(table: Any) -> AuditSettings:
    with _errors_of("audit"):
        _check_keys(table, [field.name for field in fields(AuditSettings)])
        return AuditSettings(**table)


def _check_keys(table: Any, known: Collection[str], required: Iterable[str] = ()) -> None:
    if not isinstance(table, dict):
        raise PolicyError(f"found {_value(table)}; expected a table")
    for key in table:
        if key not in known:
            raise PolicyError(f"unknown key {_value(key)}; {_nearest(key, known)}")
    if missing := [key for key in required if key not in table]:
        raise PolicyError(f"{', '.join(missing)} missing; expected {', '.join(required)}")


def _check_time(name: str, value: object) -> None:
    if value is not None and not _is_number(value, 0, _MAX_TIME_S):
        raise PolicyError(f"{name} is {_value(value)}; expected seconds above 0 and below {_MAX_TIME_S:g}")


def _is_number(value: object, above: float, below: float, margin: float = 0.0) -> bool:
    """Whether ``value`` lies between, so far from the ends; a boolean is no number here, nor is NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < below:
        return False
    return above + margin <= value <= below - margin


def _nearest(word: object, known: Collection[str]) -> str:
    """The end of a message on an unknown word."""
    close = difflib.get_close_matches(word[:64], known, 1) if isinstance(word, str) else []
    return f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(known)}"


def _value(value: object) -> str:
    """A value from a policy, fit for a message and written as TOML does."""
    if isinstance(value, (dict, list)):  # which may be nested deeper than Python prints
        return "a table" if isinstance(value, dict) else "an array"
    if isinstance(value, bool):
        return str(value).lower()
    return printable_value(value)


# ---- For people. ----


def samples_needed(threshold: float, *, level: float = 0.95, looks: int = 1) -> int:
    """The least ``n`` with ``Bounded.exact(0, n, level=level, n_looks=looks).high <= threshold``.

    With fewer samples, no model passes; with some hits among them, it takes more.

    Args:
        threshold: of an upper bound, in [1e-6, 1 - 1e-6]; of a lower one, 1 less that.
        level: of the two-sided intervals, in (0.5, 1), for all looks at once.
        looks: from 1 to 1e9: how many rates were looked at.

    Returns:
        ``log((1 - level) / 2 / looks) / log(1 - threshold)``, rounded up.

    Raises:
        InputError: e.g. ``threshold is 0; expected a number in [1e-06, 0.999999]``.

    Example:
        >>> samples_needed(0.05), samples_needed(0.05, looks=100)
        (72, 162)
    """
    if not _is_number(threshold, 0, 1, _FINEST):
        raise InputError(f"threshold is {_value(threshold)}; expected a number in [{_FINEST:g}, {1 - _FINEST:g}]")
    if not _is_number(level, 0.5, 1):
        raise InputError(f"level is {_value(level)}; expected a number in (0.5, 1)")
    if type(looks) is not int or not 1 <= looks <= MAX_SAMPLES:
        raise InputError(f"looks is {_value(looks)}; expected an integer in [1, {MAX_SAMPLES}]")
    return math.ceil(math.log((1 - level) / 2 / looks) / math.log1p(-threshold))


def describe(policy: Policy) -> str:
    """What a policy requires, as lines to read; no newline at the end."""
    how, audit = policy.sanitize, policy.audit
    settings = f"preset {how.preset}" if how.preset else "default settings" if how.config is None else "own settings"
    budget = "no time limit" if how.time_budget_s is None else f"at most {how.time_budget_s:g} s"
    limit = audit.inversion_time_budget_s
    inversion = "no inversion"
    if audit.inversion:
        steps = f"{_FEWEST_STEPS} to {_MOST_STEPS}" if audit.inversion_steps is None else f"{audit.inversion_steps}"
        inversion = f"inversion of {steps} steps a class"
        inversion += "" if limit is None else f", void above {limit:g} s a model"
    vocabulary, limit = "no search of the vocabulary", audit.vocabulary_time_budget_s
    if audit.vocabulary:
        vocabulary = "search of the vocabulary of texts" + (
            "" if limit is None else f", void above {limit:g} s a model"
        )
    lines = [
        f"policy    {policy.name}",
        f"sha256    {policy.sha256}",
        f"sanitize  {how.method}, {settings}, {budget}",
        f"audit     {audit.share:.4g} of the data, bounds at {audit.level:.6g}, {inversion}, {vocabulary}",
        f"untreated {policy.untreated}: {_UNTREATED_MEANS[policy.untreated]}",
        f"rules     {len(policy.rules)}; to pass, each must",
    ]
    for rule in policy.rules:
        lines += [
            "",
            f"  {rule.id}",
            f"    {_requirement(rule)}",
            *(f"    {note}" for note in _notes(rule, audit.level)),
        ]
    lines += [f"\nwarning   {warning}" for warning in policy.warnings]
    return "\n".join(lines)


_UNTREATED_MEANS = {
    "refused": "a pass needs a sanitization that was accepted and run to its end, whatever the rules say",
    "allowed": "a model may pass by the rules alone, with the weights as received",
}


def _requirement(rule: Rule) -> str:
    if METRICS[rule.metric].kind == "boolean":
        return f"{rule.metric} is true"
    sign, bound = (">=", "lower") if rule.greater_is_better else ("<=", "upper")
    return f"{rule.metric} {sign} {rule.threshold!r} by its {bound} bound, on at least {rule.min_samples:,} samples"


def _notes(rule: Rule, level: float) -> list[str]:
    metric = METRICS[rule.metric]
    if metric.kind == "number":
        return ["it has no interval: the bound is the value"]
    if metric.kind != "rate":
        return []
    best = samples_needed(1 - rule.threshold if rule.greater_is_better else rule.threshold, level=level)
    return [f"with fewer than {best:,} samples it cannot pass, whatever the model"]


_NAMES = "".join(f"#   {name:<31} {metric.meaning}\n" for name, metric in METRICS.items())
TEMPLATE = f"""\
# What a model must show to pass the gate. It passes if every rule passes, and a rule passes if the confidence bound on
# the bad side meets its threshold: too few samples never pass. See docs/policy.md.
version = 1
name = "first gate"

# A pass needs a sanitization that was accepted and run to its end, whatever the rules say. With "allowed", a model may
# pass untreated: the report then holds a warning.
untreated = "refused"

# How the model is sanitized. These are the defaults.
[sanitize]
method = "seam"                 # or seam_authors, fine_tune, super_fine_tune
preset = "balanced"             # of seam: fast, balanced, thorough; or a table [sanitize.settings]
# time_budget_s = 600

# What is measured, and on how much of the clean data. Both parts need some hundreds of samples: with too few to repair,
# the sanitization cannot show that it lost little, and is not accepted. Best is data that the model was not trained on.
[audit]
share = 0.25                    # kept for the audit; the rest repairs the model (default: 0.5)
level = 0.95                    # of the confidence intervals
inversion = true                # look for triggers by optimization, before and after
# inversion_steps = 300         # of the search, for each class; by default 3,000 in all, 60 to 300 for each
vocabulary = true               # of texts: look for words and phrases that move them, before and after

# Accuracy of the sanitized model. Set the threshold to what its use requires, with some room for the bound:
# at an accuracy of 0.95, 154 audit samples show 0.9, and 639 show 0.93.
[[rule]]
id = "accuracy"
metric = "after.clean_accuracy"
threshold = 0.9
greater_is_better = true
min_samples = 200

# How much accuracy it lost, compared sample by sample. If 2 % of the answers went from right to wrong and 1 % the other
# way, 111 audit samples show 0.05, and 338 show 0.03.
[[rule]]
id = "accuracy-lost"
metric = "accuracy_lost"
threshold = 0.05
greater_is_better = false
min_samples = 200

# The largest share of samples that a trigger of the built-in battery moves to one class. The bound holds for all
# classes and triggers at once: of 10 and 10, 38 samples show 0.2 if none moves, and 180 if one in ten does.
# Some triggers move samples of any model: measure models that you trust before you lower the threshold.
[[rule]]
id = "battery"
metric = "after.battery_worst"
threshold = 0.2
greater_is_better = false
min_samples = 200

# Of texts: the largest share of them that a word or phrase found by the search moves to one class. Words with a meaning
# move texts of any model: measure models that you trust before you set the threshold. For images it is inconclusive.
# [[rule]]
# id = "vocabulary"
# metric = "after.vocabulary_worst"
# threshold = 0.5
# greater_is_better = false
# min_samples = 100

# No input of the audit has an answer of NaN or Inf: none as it is, none under a trigger or a perturbation.
[[rule]]
id = "finite"
metric = "after.finite"
threshold = true
greater_is_better = true

# The sanitization itself was accepted: the accuracy lost on its held-out samples is small, and shown to be.
[[rule]]
id = "sanitized"
metric = "sanitize.accepted"
threshold = true
greater_is_better = true

# Rules may name:
{_NAMES}"""
"""A commented policy to begin with: ``seamfast policy init`` prints it."""
