"""Policies: what is accepted, what is refused and in which words, and what a rule makes of a measurement."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

import seamfast
from seamfast.errors import ConfigError, InputError, PolicyError
from seamfast.gating import policy as module
from seamfast.gating.decision import TREATED, Measured, decide
from seamfast.gating.policy import (
    FORMER_METRICS,
    METRICS,
    TEMPLATE,
    AuditSettings,
    Policy,
    Rule,
    SanitizeSettings,
    describe,
    parse_policy,
    read_policy,
    samples_needed,
)
from seamfast.metrics import Bounded, Rate
from tests.gating.golden_files import check, check_messages

DOCUMENT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")

HEAD = 'version = 1\nname = "gate"\n'
FREE = HEAD + 'untreated = "allowed"\n'  # by its own rules alone
RULE = """
[[rule]]
id = "accuracy"
metric = "after.clean_accuracy"
threshold = 0.9
greater_is_better = true
"""
BATTERY = """
[[rule]]
id = "battery"
metric = "after.battery_worst"
threshold = 0.05
greater_is_better = false
min_samples = 40
"""


def parsed(text: str) -> Policy:
    return parse_policy(text.encode())


def refused(text: str | bytes) -> None:
    parse_policy(text if isinstance(text, bytes) else text.encode())


def refused_message(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        refused(text)
    assert str(caught.value).isprintable()
    return str(caught.value)


# What is accepted.


def test_smallest_policy_has_the_defaults() -> None:
    policy = parsed(HEAD + RULE)
    assert policy.name == "gate"
    assert policy.rules == (Rule("accuracy", "after.clean_accuracy", 0.9, True, 1),)
    assert policy.sanitize == SanitizeSettings("seam", None, None, None)
    assert policy.audit == AuditSettings(
        share=0.5, level=0.95, inversion=True, inversion_steps=None, inversion_time_budget_s=None
    )
    assert policy.untreated == "refused"
    assert policy.path is None


def test_all_that_may_be_said() -> None:
    text = """
    version = 1
    name = "Prüfstand 3"
    [sanitize]
    method = "seam"
    time_budget_s = 90
    [sanitize.settings]
    batch_size = 32
    strengths = [1.0, 0.5]
    [audit]
    share = 0.25
    level = 0.99
    inversion = false
    """
    policy = parsed(text + RULE + BATTERY)
    config = seamfast.SeamConfig(batch_size=32, strengths=(1.0, 0.5))
    assert policy.sanitize == SanitizeSettings("seam", config=config, time_budget_s=90)
    assert policy.audit == AuditSettings(share=0.25, level=0.99, inversion=False)
    assert [rule.id for rule in policy.rules] == ["accuracy", "battery"]
    assert policy.rules[1].min_samples == 40


def test_settings_are_of_the_method_that_is_named() -> None:
    text = HEAD + '[sanitize]\nmethod = "fine_tune"\nsettings = { batch_size = 16 }\n' + RULE
    assert parsed(text).sanitize.config == seamfast.FineTuneConfig(batch_size=16)


def test_digest_is_of_the_bytes() -> None:
    content = (HEAD + RULE).encode()
    assert parse_policy(content).sha256 == hashlib.sha256(content).hexdigest()
    assert parse_policy(content + b"\n").sha256 != parse_policy(content).sha256


def test_as_dict_it_is_strict_json() -> None:
    policy = parsed(HEAD + "[sanitize.settings]\nstrengths = [1.0, 0.5]\n" + RULE)
    told = policy.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["version"] == 1
    assert told["sanitize"]["settings"]["strengths"] == [1.0, 0.5]
    assert told["rules"] == [
        {
            "id": "accuracy",
            "metric": "after.clean_accuracy",
            "threshold": 0.9,
            "greater_is_better": True,
            "min_samples": 1,
        }
    ]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_asked_for(name: str) -> None:
    metric = METRICS[name]
    threshold = True if metric.kind == "boolean" else 0.5
    rule = Rule("r", name, threshold, metric.greater_is_better)
    assert rule.metric == name
    with pytest.raises(
        PolicyError,
        match=r"^greater_is_better is (true|false); expected (true|false), since (more|less) of .+ is better$",
    ):
        replace(rule, greater_is_better=not metric.greater_is_better)


def test_a_former_name_of_a_metric_is_taken_with_a_warning() -> None:
    text = HEAD + RULE + BATTERY.replace("after.battery_worst", "parting_worst")
    policy = parsed(text)
    assert policy.rules == parsed(text.replace("parting_worst", "disagreement_worst")).rules
    warning = (
        "rule 2 of the policy: metric is 'parting_worst'; expected 'disagreement_worst', its new name; the next "
        "version refuses the old one"
    )
    assert policy.warnings == (warning,)
    assert policy.to_dict()["warnings"] == [warning]
    assert describe(policy).endswith(f"\n\nwarning   {warning}")
    assert not set(FORMER_METRICS) & set(METRICS)
    assert set(FORMER_METRICS.values()) <= set(METRICS)
    with pytest.raises(PolicyError, match=r"^metric is 'parting_worst'; "):
        replace(policy.rules[1], metric="parting_worst")


# What is refused, and in which words.

SWAPPED = RULE.replace("true", "false")


def headed(tables: str) -> str:
    return HEAD + tables + RULE


def rule(old: str, new: str) -> str:
    return HEAD + RULE.replace(old, new)


def battery(old: str, new: str) -> str:
    return HEAD + BATTERY.replace(old, new)


REFUSED: list[str | bytes] = [
    b"\xff",
    "x = 1\n" * 6000,
    HEAD + "# " + "x" * 400,
    HEAD + "rule = " + "[\n" * 10_000,
    "",
    "version = 2\nrules = 3",
    "version = true",
    "version = 1.0",
    'version = "1"',
    "version = 1" + RULE,
    "version = 1\nname = 7" + RULE,
    'version = 1\nname = " "' + RULE,
    'version = 1\nname = "a\\u001b[2J"' + RULE,
    'version = 1\nname = "a\\u202Eb"' + RULE,
    headed("rules = 1"),
    *(headed(f"untreated = {written}") for written in ('"yes"', "true", "[]")),
    headed('"\\u001b" = 1'),
    headed('[sanitise]\nmethod = "seam"'),
    headed("[sanitize]\ntime_budget = 1"),
    headed('[sanitize]\nconfig = "x"'),
    headed("[sanitize.settings]\nbatchsize = 1"),
    headed("[audit]\nshares = 0.5"),
    HEAD + RULE + BATTERY + "treshold = 1",
    HEAD,
    HEAD + "rule = []",
    HEAD + "[rule]\n" + 'id = "a"',
    HEAD + "rule = [1]",
    headed("sanitize = 3"),
    headed("audit = [1]"),
    headed("[sanitize]\nsettings = 1"),
    HEAD + "[[rule]]",
    HEAD + RULE + RULE,
    rule('"accuracy"', '"a b"'),
    rule('"accuracy"', '"é"'),
    rule('"accuracy"', '""'),
    rule('"accuracy"', '"a\\n"'),
    rule('"accuracy"', "5"),
    rule("after.clean", "after.claen"),
    rule('"after.clean_accuracy"', '"x"'),
    rule('"after.clean_accuracy"', "{}"),
    HEAD + SWAPPED,
    battery("false", "true"),
    rule("= true", "= 1"),
    *(rule("0.9", number) for number in ("nan", "inf", "-inf", "1e999", "0", "1", "-0.1", "1e-7", "90")),
    *(rule("0.9", other) for other in ('"a"', "true", "[0.9]", "2026-01-01")),
    battery("after.battery_worst", "accuracy_lost").replace("0.05", "1"),
    battery("after.battery_worst", "after.inversion_anomaly_index").replace("0.05", "inf"),
    rule("after.clean_accuracy", "sanitize.accepted"),
    rule("after.clean_accuracy", "sanitize.accepted").replace("0.9", "1"),
    *(battery("= 40", f"= {written}") for written in ("0", "-1", "true", "40.0", "1000000001")),
    battery("= 40", "= 0x" + "f" * 380),
    headed('[sanitize]\nmethod = "sgd"'),
    headed("[sanitize]\nmethod = []"),
    headed('[sanitize]\npreset = "slow"'),
    headed("[sanitize]\npreset = true"),
    headed('[sanitize]\nmethod = "fine_tune"\npreset = "fast"'),
    headed('[sanitize]\npreset = "fast"\nsettings = { flip = true }'),
    *(headed(f"[sanitize]\ntime_budget_s = {written}") for written in ("0", "-1", "nan", "inf", "true", "1000000")),
    headed("[sanitize.settings]\nbatch_size = 0"),
    headed("[sanitize.settings]\nbatch_size = true"),
    HEAD + "[sanitize.settings]\nforget_max_steps = 0x" + "f" * 300 + RULE,
    headed("[sanitize.settings.batch_size]\nx = 1"),
    headed("[sanitize.settings]\nstrengths = [[1]]"),
    headed("[sanitize.settings]\nstrengths = [nan]"),
    *(headed(f"[audit]\nshare = {written}") for written in ("0", "1", "nan", "true", '"0.5"')),
    *(headed(f"[audit]\nlevel = {written}") for written in ("0.5", "1", "95", "nan", "false")),
    headed("[audit]\ninversion = 1"),
    *(headed(f"[audit]\ninversion_steps = {written}") for written in ("0", "1.5", "true", "100001")),
    headed("[audit]\ninversion_time_budget_s = 0"),
    headed("[audit]\nvocabulary = 1"),
    headed("[audit]\nvocabulary_time_budget_s = 0"),
    headed("[audit]\nvocabulary = false") + BATTERY.replace("after.battery_worst", "after.vocabulary_worst"),
    headed("[audit]\ninversion = false") + BATTERY.replace("after.battery_worst", "after.inversion_anomaly_index"),
]


def test_refusals() -> None:
    check_messages(
        "policy-refusals.txt", PolicyError, lambda t: parse_policy(t.encode() if isinstance(t, str) else t), REFUSED
    )


def test_deep_tables_are_refused_without_printing_them() -> None:
    deep = ".".join(["a"] * 150)
    message = refused_message(f"{HEAD}[sanitize.method.{deep}]\n{deep} = 1{RULE}")
    assert message == "sanitize: method is a table; expected a string"
    assert "did you mean" in refused_message(f"{HEAD}[rules.{deep}]\n{deep} = 1{RULE}")


def test_a_policy_error_is_a_config_error() -> None:
    assert issubclass(PolicyError, ConfigError)


def test_policies_made_in_python_are_checked_as_well() -> None:
    policy = parsed(HEAD + RULE)
    with pytest.raises(PolicyError, match=r"^the policy has no rules; expected at least one \[\[rule\]\]$"):
        replace(policy, rules=())
    with pytest.raises(PolicyError, match=r"^config is a FineTuneConfig; expected SeamConfig$"):
        SanitizeSettings(config=seamfast.FineTuneConfig())


# From a file.


def test_read_policy_says_where_from(tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(TEMPLATE, encoding="utf-8")
    policy = read_policy(path)
    assert policy == replace(parsed(TEMPLATE), path=str(path))
    assert policy.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_link_that_the_caller_names_is_followed(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text(TEMPLATE, encoding="utf-8")
    (tmp_path / "link.toml").symlink_to("gate.toml")
    assert read_policy(tmp_path / "link.toml").sha256 == parsed(TEMPLATE).sha256


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "long"])
def test_what_is_no_readable_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "long":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # sparse
    wanted = {
        "missing": "no such file; looked for a policy as TOML",
        "folder": "is not a regular file; looked for a policy as TOML",
        "pipe": "is not a regular file; looked for a policy as TOML",
        "long": "the policy has more than 32,768 bytes; expected at most so many",
    }[kind]
    with pytest.raises(PolicyError, match=re.escape(f"gate.toml: {wanted}")):
        read_policy(path)


def test_errors_in_a_file_name_it(tmp_path: Path) -> None:
    path = tmp_path / "a\x1bb.toml"
    path.write_text(HEAD, encoding="utf-8")
    with pytest.raises(PolicyError, match=r"a\\x1bb\.toml'?: the policy has no rules") as caught:
        read_policy(path)
    assert str(caught.value).isprintable()


# Deciding.


def of(rate: Rate) -> Measured:
    return Measured(rate.value, rate.low, rate.high, rate.n_total)


def judged(text: str, measured: Measured | None) -> tuple[str, str]:
    """The outcome of a policy of one rule, and the rule's reason."""
    policy = parsed(FREE + text)
    (rule,) = policy.rules
    decision = decide(policy, {} if measured is None else {rule.metric: measured})
    (outcome,) = decision.rules
    assert decision.outcome == outcome.outcome
    assert outcome.reason.isprintable()
    return outcome.outcome, outcome.reason


UPPER = "upper bound of after.battery_worst is "
MEASURED = {
    BATTERY: [
        *(of(Rate(0, 100)), Measured(0.04, 0.03, 0.05, 900), Measured(0.04, 0.03, 0.05000001, 900), of(Rate(0, 50))),
        *(Measured(0.05, 0.02, 0.08, 300), Measured(0.06, 0.04, 0.08, 300), of(Rate(90, 1000)), None),
        *(Measured(None, None, None, 0), of(Rate(0, 39)), Measured(0.0, 0.0, 0.01, None)),
        *(Measured(-0.1, -0.2, 0.0, 900), Measured(0.5, 0.01, 0.02, 900), Measured(0.01, 0.01, 0.01, 900)),
    ],
    RULE: [of(Rate(950, 1000)), of(Rate(19, 20)), Measured(0.95, 0.94, math.nan, 900)],
}


def short(number: float | None) -> str:
    return str(number) if number is None else f"{number:.7g}"


def test_reasons() -> None:
    lines = []
    for text, all_measured in MEASURED.items():
        for measured in all_measured:
            outcome, reason = judged(text, measured)
            numbers = "None" if measured is None else "{} in [{}, {}], n = {}".format(*map(short, astuple(measured)))
            lines += [numbers, f"    {outcome}: {reason}"]
    check("policy-reasons.txt", "\n".join(lines))


def test_a_number_has_no_interval() -> None:
    text = BATTERY.replace("after.battery_worst", "after.inversion_anomaly_index").replace("0.05", "2")
    name = "after.inversion_anomaly_index"
    assert judged(text, Measured(1.5, 1.5, 1.5, 40)) == ("pass", f"{name} is 1.5, at most 2 (n = 40)")
    assert judged(text, Measured(2.5, 2.5, 2.5, 40)) == ("fail", f"{name} is 2.5, above 2 (n = 40)")
    assert judged(text, Measured(math.inf, math.inf, math.inf, 40))[0] == "inconclusive"


def test_a_boolean() -> None:
    text = RULE.replace("after.clean_accuracy", "sanitize.accepted").replace("0.9", "true")
    assert judged(text, Measured(1.0, 1.0, 1.0, 20)) == ("pass", "sanitize.accepted is true")
    assert judged(text, Measured(0.0, 0.0, 0.0, 20)) == ("fail", "sanitize.accepted is false; expected true")
    assert judged(text, None) == ("inconclusive", "sanitize.accepted was not measured")
    assert judged(text, Measured(1.0, 1.0, 1.0, 0))[0] == "inconclusive"


def test_a_rounding_error_in_a_bound_does_no_harm() -> None:
    assert judged(BATTERY, Measured(0.0, 1e-17, 0.01, 900))[0] == "pass"


ACCEPTED, REFUSED_CURE = Measured(1.0, 1.0, 1.0, 90), Measured(0.0, 0.0, 0.0, 90, "the weights are those received")


@pytest.mark.parametrize(
    ("treated", "outcome", "reason"),
    [
        (ACCEPTED, "pass", "sanitize.treated is true"),
        (REFUSED_CURE, "fail", "sanitize.treated is false; expected true: the weights are those received"),
        (
            Measured(None, None, None, 9, "too few"),
            "inconclusive",
            "sanitize.treated has no value, from 9 samples: too few",
        ),
        (None, "inconclusive", "sanitize.treated was not measured"),
    ],
)
def test_a_pass_needs_a_treatment_whatever_the_rules_say(treated: Measured | None, outcome: str, reason: str) -> None:
    found = {"after.clean_accuracy": of(Rate(990, 1000))} | ({} if treated is None else {"sanitize.treated": treated})
    decision = decide(parsed(HEAD + RULE), found)
    assert decision.outcome == outcome
    assert [(rule.id, rule.outcome) for rule in decision.rules] == [("accuracy", "pass"), (TREATED, outcome)]
    assert decision.rules[-1].reason == reason
    assert decide(parsed(FREE + RULE), found).outcome == "pass"
    assert [rule.id for rule in decide(parsed(FREE + RULE), found).rules] == ["accuracy"]


def test_no_rule_of_a_policy_can_take_the_name_of_the_own_one() -> None:
    assert "id is 'gate:treated'" in refused_message(HEAD + RULE.replace('"accuracy"', f'"{TREATED}"'))


GOOD, BAD, FEW = of(Rate(990, 1000)), of(Rate(500, 1000)), of(Rate(0, 10))


@pytest.mark.parametrize(
    ("accuracy", "battery", "outcome"),
    [
        (GOOD, of(Rate(0, 1000)), "pass"),
        (GOOD, FEW, "inconclusive"),
        (GOOD, None, "inconclusive"),
        (None, None, "inconclusive"),
        (BAD, of(Rate(0, 1000)), "fail"),
        (BAD, FEW, "fail"),
        (GOOD, BAD, "fail"),
        (None, BAD, "fail"),
    ],
)
def test_the_worst_rule_decides(accuracy: Measured | None, battery: Measured | None, outcome: str) -> None:
    found = {"after.clean_accuracy": accuracy, "after.battery_worst": battery}
    decision = decide(parsed(FREE + RULE + BATTERY), {k: v for k, v in found.items() if v is not None})
    assert decision.outcome == outcome
    assert [rule.id for rule in decision.rules] == ["accuracy", "battery"]


def test_an_outcome_is_what_a_report_holds() -> None:
    policy = parsed(FREE + BATTERY)
    (outcome,) = decide(policy, {"after.battery_worst": of(Rate(0, 100))}).rules
    assert outcome.to_dict() == {
        "id": "battery",
        "metric": "after.battery_worst",
        "threshold": 0.05,
        "greater_is_better": False,
        "min_samples": 40,
        "value": 0.0,
        "low": 0.0,
        "high": Rate(0, 100).high,
        "bound": Rate(0, 100).high,
        "n": 100,
        "outcome": "pass",
        "reason": UPPER + "0.03699, at most 0.05 (n = 100)",
    }
    (outcome,) = decide(policy, {"after.battery_worst": Measured(math.nan, 0.0, math.inf, 9)}).rules
    told: dict[str, Any] = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
    assert (told["value"], told["low"], told["high"], told["bound"]) == (None, 0.0, None, None)


# How many samples.


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize(("level", "looks"), [(0.95, 1), (0.99, 100)])
def test_samples_needed_is_where_the_exact_bound_arrives(threshold: float, level: float, looks: int) -> None:
    n = samples_needed(threshold, level=level, looks=looks)
    at, before = (Bounded.exact(0, samples, level=level, n_looks=looks).high for samples in (n, n - 1))
    assert at <= threshold < before


def test_fewer_samples_than_needed_never_pass() -> None:
    text = RULE.replace("0.9", "0.95")
    n = samples_needed(1 - 0.95)
    assert judged(text, of(Bounded.exact(n, n)))[0] == "pass"
    assert judged(text, of(Bounded.exact(n - 1, n - 1)))[0] == "fail"


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (0, 60), (4, 200), (20, 1000)])
def test_the_number_of_samples_in_a_reason_is_about_right(hits: int, n: int) -> None:
    _, reason = judged(BATTERY.replace("= 40", "= 1").replace("0.05", "0.03"), of(Bounded.exact(hits, n)))
    (about,) = re.findall(r"about ([\d,]+) samples would pass$", reason)
    assert int(about.replace(",", "")) == pytest.approx(samples_for(0.03, hits / n), rel=0.15)


def test_samples_needed_refuses() -> None:
    wrong = [{"threshold": 0.0}, {"threshold": True}, {"level": 0.5}, {"looks": 0}, {"looks": 1.5}]
    check_messages("samples-refusals.txt", InputError, lambda a: samples_needed(**{"threshold": 0.05, **a}), wrong)


def samples_for(threshold: float, rate: float, looks: int = 1) -> int:
    """The least n whose exact upper bound is there, with as many hits as ``rate`` makes of n, rounded up."""

    def passes(hits: int, n: int) -> bool:
        return n > 0 and Bounded.exact(hits, n, n_looks=looks).high <= threshold

    if rate == 0:
        return samples_needed(threshold, looks=looks)
    for hits in itertools.count(1):
        # So many hits belong to the n from one step of 1 / rate to the next.
        least, most = math.floor((hits - 1) / rate + 1e-9) + 1, math.floor(hits / rate + 1e-9)
        if passes(hits, most):
            return next(n for n in range(least, most + 1) if passes(hits, n))
    raise AssertionError("unreachable")


def paired_samples_needed(threshold: float, lost: float, gained: float) -> int:
    """By the adjusted Wald interval of Bonett and Price (2012), counted up until it fits."""
    for n in range(1, 100_000):
        worse, better = (lost * n + 1) / (n + 2), (gained * n + 1) / (n + 2)
        half = 1.959963984540054 * math.sqrt((worse + better - (worse - better) ** 2) / (n + 2))
        if worse - better + half <= threshold:
            return n
    raise AssertionError("no such number")


# The template and the document say what the code does.


def test_template_is_a_policy() -> None:
    policy = parsed(TEMPLATE)
    assert [rule.metric for rule in policy.rules] == [
        "after.clean_accuracy",
        "accuracy_lost",
        "after.battery_worst",
        "after.finite",
        "sanitize.accepted",
    ]
    assert policy.sanitize == SanitizeSettings(preset="balanced")
    assert policy.audit == AuditSettings(share=0.25)
    assert max(len(line) for line in TEMPLATE.splitlines()) <= 120


def test_template_tells_the_right_numbers_of_samples() -> None:
    words = " ".join(line.removeprefix("# ") for line in TEMPLATE.splitlines())
    accuracy = f"at an accuracy of 0.95, {samples_for(0.1, 0.05)} audit samples show 0.9, and "
    assert f"{accuracy}{samples_for(0.07, 0.05)} show 0.93." in words
    paired = f"{paired_samples_needed(0.05, 0.02, 0.01)} audit samples show 0.05, and "
    assert f"{paired}{paired_samples_needed(0.03, 0.02, 0.01)} show 0.03." in words
    battery = f"of 10 and 10, {samples_for(0.2, 0.0, looks=100)} samples show 0.2 if none moves, and "
    assert f"{battery}{samples_for(0.2, 0.1, looks=100)} if one in ten does." in words


def test_template_lists_every_metric() -> None:
    assert re.findall(r"^#   ([a-z_.]+)  ", TEMPLATE, re.MULTILINE) == list(METRICS)


def test_describe() -> None:
    policy = parsed(HEAD + "[audit]\ninversion_time_budget_s = 5\n[sanitize]\ntime_budget_s = 90" + RULE + BATTERY)
    assert describe(policy).splitlines() == [
        *("policy    gate", f"sha256    {policy.sha256}", "sanitize  seam, default settings, at most 90 s"),
        "audit     0.5 of the data, bounds at 0.95, inversion of 60 to 300 steps a class, void above 5 s a model, "
        "search of the vocabulary of texts",
        "untreated refused: a pass needs a sanitization that was accepted and run to its end, whatever the rules say",
        *("rules     2; to pass, each must", "", "  accuracy"),
        "    after.clean_accuracy >= 0.9 by its lower bound, on at least 1 samples",
        *("    with fewer than 36 samples it cannot pass, whatever the model", "", "  battery"),
        "    after.battery_worst <= 0.05 by its upper bound, on at least 40 samples",
        "    with fewer than 72 samples it cannot pass, whatever the model",
    ]
    text = describe(parsed(TEMPLATE))
    assert "sanitize.accepted is true" in text
    assert "preset balanced, no time limit" in text
    index = BATTERY.replace("after.battery_worst", "after.inversion_anomaly_index")
    assert describe(parsed(HEAD + index)).endswith("it has no interval: the bound is the value")
    assert "no inversion" in describe(parsed(HEAD + "[audit]\ninversion = false" + RULE))
    assert "no search of the vocabulary" in describe(parsed(HEAD + "[audit]\nvocabulary = false" + RULE))
    limited = "search of the vocabulary of texts, void above 7 s a model"
    assert limited in describe(parsed(HEAD + "[audit]\nvocabulary_time_budget_s = 7" + RULE))
    allowed = "untreated allowed: a model may pass by the rules alone, with the weights as received"
    assert allowed in describe(parsed(FREE + RULE)).splitlines()


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading of the document, but for its own head."""
    section = DOCUMENT[DOCUMENT.index(heading) :]
    table = re.search(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
    assert table is not None, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


def test_document_has_the_table_of_metrics() -> None:
    rows = [
        [f"`{name}`", metric.kind, metric.expected, "true" if metric.greater_is_better else "false", metric.meaning]
        for name, metric in METRICS.items()
    ]
    assert rows_below("## What a rule may name") == rows


def test_document_has_the_tables_of_samples() -> None:
    by_rate = rows_below("### Rates")
    assert len(by_rate) > 3
    for threshold, *cells in by_rate:
        wanted = [samples_for(float(threshold), float(threshold) * share) for share in (0, 0.25, 0.5)]
        assert cells == [f"{n:,}" for n in wanted], threshold
    by_looks = rows_below("### The battery")
    assert len(by_looks) > 3
    for threshold, *cells in by_looks:
        wanted = [samples_needed(float(threshold), looks=looks) for looks in (1, 100, 1000, 10_000)]
        assert cells == [f"{n:,}" for n in wanted], threshold
    by_change = rows_below("### Accuracy lost")
    assert len(by_change) > 3
    for lost, gained, *cells in by_change:
        shares = (float(lost.removesuffix(" %")) / 100, float(gained.removesuffix(" %")) / 100)
        assert cells == [f"{paired_samples_needed(t, *shares):,}" for t in (0.05, 0.03)], lost


def test_document_tells_the_limits() -> None:
    assert f"{module.MAX_BYTES >> 10} KiB" in DOCUMENT
    assert f"{module.MAX_LINE_BYTES} bytes" in DOCUMENT


def test_example_of_the_document_is_a_policy() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    policy = parsed(example)
    assert {rule.metric for rule in policy.rules} <= set(METRICS)
    assert policy.sanitize.config is not None
