"""Policies and measurements at random: what comes out is a decision or a refusal. And that the fuzz driver works."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamfast.errors import PolicyError
from seamfast.gating.decision import Measured, decide
from seamfast.gating.policy import (
    METRICS,
    TEMPLATE,
    AuditSettings,
    Policy,
    Rule,
    SanitizeSettings,
    describe,
    parse_policy,
)

FUZZ = Path(__file__).parents[2] / "fuzz"

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([]) | st.just({})
AUDIT_KEYS = [*(key.name for key in fields(AuditSettings)), "x"]
NAMES = st.sampled_from(list(METRICS))


def toml(value: Any) -> str:
    """A value as TOML writes it; ``None``, which TOML has not, as a key that is not there."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value).replace("\x7f", "\\u007f")


@settings(max_examples=120, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_policy_or_refused(content: bytes) -> None:
    with contextlib.suppress(PolicyError):
        parse_policy(content)


@settings(max_examples=120, deadline=None)
@given(
    rule=st.fixed_dictionaries(
        {
            "id": st.just("a") | SCALARS,
            "metric": NAMES | SCALARS,
            "threshold": st.floats(-2, 2) | st.just(True) | SCALARS,
            "greater_is_better": st.booleans() | SCALARS,
        },
        optional={"min_samples": st.integers(-2, 9) | SCALARS},
    ),
    audit=st.dictionaries(st.sampled_from(AUDIT_KEYS), SCALARS),
    sanitize=st.dictionaries(st.sampled_from(["method", "preset", "time_budget_s", "settings", "x"]), SCALARS),
)
def test_whatever_is_accepted_makes_sense(rule: Any, audit: Any, sanitize: Any) -> None:
    tables = {"rule": [rule], "audit": audit, "sanitize": sanitize}
    text = 'version = 1\nname = "a"\n' + "".join(f"{key} = {toml(value)}\n" for key, value in tables.items())
    policy, message = None, ""
    try:
        policy = parse_policy(text.encode())
    except PolicyError as error:
        message = str(error)
    assert message.isprintable()
    if policy is None:
        return
    (made,) = policy.rules
    metric = METRICS[made.metric]
    assert made.greater_is_better is metric.greater_is_better
    if metric.kind == "boolean":
        assert made.threshold is True
    else:
        assert type(made.threshold) in (int, float)
        assert metric.lowest < made.threshold < metric.highest
    assert type(made.min_samples) is int
    assert made.min_samples >= 1
    assert 0 < policy.audit.share < 1
    assert 0.5 < policy.audit.level < 1
    assert json.loads(json.dumps(policy.to_dict(), allow_nan=False)) == policy.to_dict()
    assert all(line.isprintable() for line in describe(policy).splitlines())


def rule_on(name: str) -> st.SearchStrategy[Rule]:
    metric = METRICS[name]
    threshold: st.SearchStrategy[Any] = st.just(True)
    if metric.kind != "boolean":
        threshold = st.floats(max(metric.lowest, -0.99) + 0.001, min(metric.highest, 1) - 0.001)
    return st.builds(
        Rule, st.just("r"), st.just(name), threshold, st.just(metric.greater_is_better), st.integers(1, 2000)
    )


RULES = NAMES.flatmap(rule_on)
NUMBERS = st.none() | st.floats(-0.1, 1.1) | st.floats()
ANYTHING = st.builds(Measured, NUMBERS, NUMBERS, NUMBERS, st.none() | st.integers(-1, 3000))
# As measurements are: three numbers in order.
ORDERED = st.builds(
    lambda numbers, n: Measured(sorted(numbers)[1], min(numbers), max(numbers), n),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    st.integers(0, 3000),
)


def policy_of(*rules: Rule) -> Policy:
    named = tuple(replace(rule, id=f"r{number}") for number, rule in enumerate(rules))
    return Policy("p", named, SanitizeSettings(), AuditSettings(), "0" * 64, untreated="allowed")


@settings(max_examples=200, deadline=None)
@given(rule=RULES, measured=st.none() | ANYTHING | ORDERED)
def test_a_rule_passes_only_on_evidence(rule: Rule, measured: Measured | None) -> None:
    decision = decide(policy_of(rule), {} if measured is None else {rule.metric: measured})
    (outcome,) = decision.rules
    assert decision.outcome == outcome.outcome
    json.dumps(outcome.to_dict(), allow_nan=False)
    assert outcome.reason.isprintable()
    assert rule.metric in outcome.reason
    if outcome.outcome == "inconclusive":
        return
    assert measured is not None
    assert None not in (measured.value, measured.low, measured.high, measured.n)
    assert all(math.isfinite(x) for x in (measured.value, measured.low, measured.high))  # type: ignore[arg-type]
    assert measured.n >= rule.min_samples  # type: ignore[operator]
    bound = measured.low if rule.greater_is_better else measured.high
    assert outcome.bound == bound
    good = bound >= rule.threshold if rule.greater_is_better else bound <= rule.threshold  # type: ignore[operator]
    assert good == (outcome.outcome == "pass")


@settings(max_examples=80, deadline=None)
@given(rules=st.lists(RULES, min_size=1, max_size=4), found=st.dictionaries(NAMES, ORDERED))
def test_the_whole_passes_only_if_each_part_does(rules: list[Rule], found: dict[str, Measured]) -> None:
    decision = decide(policy_of(*rules), found)
    outcomes = [rule.outcome for rule in decision.rules]
    alone = [decide(policy_of(rule), found).outcome for rule in rules]
    assert outcomes == alone
    assert decision.outcome == ("fail" if "fail" in alone else "inconclusive" if "inconclusive" in alone else "pass")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_mutated_template_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(TEMPLATE.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=6))
    with contextlib.suppress(PolicyError):
        assert decide(parse_policy(bytes(content)), {}).outcome == "inconclusive"


# The driver.


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules ``drive`` and ``targets``."""
    monkeypatch.syspath_prepend(FUZZ)
    yield importlib.import_module("drive"), importlib.import_module("targets")
    for name in ("drive", "targets"):
        del sys.modules[name]


def test_seeds_are_accepted_and_mutations_do_no_harm(
    fuzz: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, targets = fuzz
    assert set(drive.NAMES) == set(targets.TARGETS)
    monkeypatch.setattr(drive, "ROUND", 40)
    for target in targets.TARGETS.values():
        assert all(target.run(content) for content in target.seeds)
        tried: Counter[bool] = Counter()
        drive.attack(target, 0, tried)
        assert tried[True] > 0
        assert tried[False] > 0, target


def raises() -> None:
    raise KeyError("planted")


def hangs() -> None:
    time.sleep(30)


def talks() -> None:
    raise PolicyError("\x1b[2J")


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (raises, "KeyError: 'planted'"),
        (hangs, "an input took more than 0.05 s: b'["),
        (talks, "the message is not printable: '\\x1b[2J'"),
    ],
)
def test_driver_finds_a_defect(
    defect: Callable[[], None],
    message: str,
    fuzz: tuple[ModuleType, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    drive, targets = fuzz
    monkeypatch.setattr(drive, "INPUT_S", 0.05)

    def run(data: bytes) -> bool:
        return not data.startswith(b"[") or not targets.refusal(defect, PolicyError)

    assert drive.with_hypothesis("planted", targets.Target(run, (b"x",), (b"[",)), 0.0, 0) == 1
    told = capfd.readouterr().err
    assert "planted: a defect, in round 0 of seed 0" in told
    assert message in told


def test_driver_says_what_it_tried(
    fuzz: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    drive, targets = fuzz
    monkeypatch.setattr(drive, "ROUND", 10)
    assert drive.with_hypothesis("config", targets.TARGETS["config"], 0.0, 3) == 0
    assert "inputs by Hypothesis" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        drive.main(["no-such-target"])
    assert "unknown target 'no-such-target'; expected some of header, policy, config" in capfd.readouterr().err
