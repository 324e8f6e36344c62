"""The schema of gate reports: what is one follows it, what contradicts itself does not."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from torch import nn

import seamfast
from seamfast import CleanSet, SeamConfig
from seamfast.gating.policy import METRICS
from tests.gating.examples import EXIT_CODES, OUTCOMES, example

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "seamfast" / "schema"
SCHEMA: dict[str, Any] = json.loads((SCHEMAS / "gate-report-v1.json").read_text(encoding="utf-8"))
INNER: dict[str, Any] = json.loads((SCHEMAS / "report-v2.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(
    SCHEMA,
    registry=referencing.Registry().with_contents([("report-v2.json", INNER)]),
    format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
)
Path_ = tuple[Any, ...]
FREE = (("model", "architecture", "arguments"), ("sanitize",))  # what others decide on


def places(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value in a document and where it is."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def at(document: Any, path: Path_) -> Any:
    for key in path:
        document = document[key]
    return document


def put(document: Any, path: Path_, value: Any) -> Any:
    """A copy of ``document`` with ``value`` at ``path``."""
    changed = copy.deepcopy(document)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def small(outcome: str) -> dict[str, Any]:
    """The example with two items left of each list: validating takes time."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(inner) for key, inner in value.items()}
        return [cut(inner) for inner in value[-2:]] if isinstance(value, list) else value

    report: dict[str, Any] = cut(example(outcome))
    VALIDATOR.validate(report)
    return report


def own_places(report: dict[str, Any]) -> Iterator[tuple[Path_, Any]]:
    """Those that this schema describes by itself; of each list, in its first item."""
    for path, value in places(report):
        if not any(path[: len(free)] == free for free in FREE) and 1 not in path:
            yield path, value


# What is a report follows it.


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_follows_the_schema(outcome: str) -> None:
    report = example(outcome)
    VALIDATOR.validate(report)
    assert report["verdict"] == {
        "outcome": outcome,
        "exit_code": EXIT_CODES[outcome],
        "reasons": report["verdict"]["reasons"],
    }
    assert example(outcome) == report
    assert example(outcome)["machine"] is not report["machine"]


def test_there_is_no_example_of_anything_else() -> None:
    with pytest.raises(ValueError, match=r"^outcome is 'clean'; expected one of pass, fail, inconclusive, refused"):
        example("clean")


def test_a_real_report_of_a_sanitization_fits_in(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    config = SeamConfig(forget_max_steps=1, recover_max_steps=1, batch_size=32)
    made = seamfast.sanitize(tiny_model(), tiny_data, config=config).report
    VALIDATOR.validate(put(example(), ("sanitize",), made))
    assert not VALIDATOR.is_valid(put(example(), ("sanitize",), {**made, "seed": "7"}))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("policy", "path"), None, id="policy not from a file"),
        pytest.param(("data", "class_names"), None, id="classes without names"),
        pytest.param(("audit", "before", "inversion"), None, id="no inversion"),
        pytest.param(("audit", "before", "inversion", "anomaly_index"), None, id="too few classes for an index"),
        pytest.param(("audit", "before", "inversion", "suspect"), None, id="no trigger found"),
        pytest.param(("sanitized",), None, id="nothing written"),
        pytest.param(("peak_memory_bytes",), None, id="memory not known"),
        pytest.param(("policy", "rules", 0, "threshold"), 1, id="a whole number"),
    ],
)
def test_what_may_be_left_open(path: Path_, value: Any) -> None:
    VALIDATOR.validate(put(example(), path, value))


def test_a_model_refused_before_its_files_were_looked_at() -> None:
    VALIDATOR.validate(put(example("refused"), ("model", "files"), []))


def test_a_dry_run_evaluates_no_rule() -> None:
    report = example("inconclusive")
    report["policy"]["rules"] = []
    report["audit"] = dict.fromkeys(("before", "after", "change"))
    report["disagreement"] = report["sanitize"] = None
    VALIDATOR.validate(report)


# What contradicts itself does not.


@pytest.mark.parametrize(
    ("outcome", "path", "value"),
    [
        *((o, ("verdict", "exit_code"), code) for o in OUTCOMES for code in range(4) if code != EXIT_CODES[o]),
        ("pass", ("policy", "rules", 3, "outcome"), "fail"),
        ("pass", ("policy", "rules", 0, "outcome"), "inconclusive"),
        ("pass", ("policy", "rules"), []),
        ("pass", ("policy",), None),
        ("pass", ("sanitize",), None),
        ("pass", ("data",), None),
        ("pass", ("refusal",), {"code": "pickle", "reason": "a pickle"}),
        ("pass", ("policy", "rules", 0, "value"), None),
        ("pass", ("policy", "rules", 0, "bound"), None),
        ("pass", ("policy", "rules", 0, "n"), None),
        ("pass", ("policy", "rules", 0, "threshold"), True),
        ("pass", ("policy", "rules", 3, "threshold"), 1.0),
        ("pass", ("policy", "rules", 3, "threshold"), False),
        ("pass", ("sanitized", "files"), []),
        ("pass", ("provenance", "signature", "verified"), False),
        ("pass", ("provenance", "signature", "verified"), None),
        ("fail", ("policy", "rules", 2, "outcome"), "pass"),
        ("inconclusive", ("policy", "rules", 1, "outcome"), "fail"),
        ("refused", ("refusal",), None),
        ("incomplete", ("refusal",), {"code": "pickle", "reason": "a pickle"}),
        *((outcome, ("sanitized",), example()["sanitized"]) for outcome in OUTCOMES[1:]),
    ],
    ids=str,
)  # fmt: skip
def test_no_report_may_contradict_itself(outcome: str, path: Path_, value: Any) -> None:
    assert not VALIDATOR.is_valid(put(example(outcome), path, value))


def test_no_property_may_be_missing() -> None:
    n_tried = 0
    for outcome in ("pass", "refused"):
        report = small(outcome)
        for path, value in own_places(report):
            for key in value if isinstance(value, dict) else ():
                changed = copy.deepcopy(report)
                del at(changed, path)[key]
                assert not VALIDATOR.is_valid(changed), (outcome, path, key)
                n_tried += 1
    assert n_tried > 150


def test_no_property_may_be_added() -> None:
    report, n_tried = small("pass"), 0
    for path, value in own_places(report):
        if isinstance(value, dict):
            assert not VALIDATOR.is_valid(put(report, (*path, "extra"), "more")), path
            n_tried += 1
    assert n_tried > 25


NULLABLE = {  # here or in some outcome
    *("path", "value", "low", "high", "bound", "n", "sha256", "architecture", "n_parameters", "n_bytes", "policy"),
    *("refusal", "data", "class_names", "before", "after", "change", "inversion", "anomaly_index", "suspect"),
    *("disagreement", "sanitize", "sanitized", "peak_memory_bytes", "n_cpus", "accelerator"),
    *("landlock_abi", "limits", "memory_bytes"),
    *("signature", "attestation", "key_sha256", "subject", "n_files"),
}
MAY_BE_NEGATIVE = {"threshold", "value", "low", "high", "bound"}


@pytest.mark.parametrize("wrong", ["NaN", True, -1.5, None, [], {}], ids=repr)
def test_no_value_may_be_of_another_type(wrong: Any) -> None:
    report, n_tried = small("pass"), 0
    assert not VALIDATOR.is_valid(wrong)
    for path, value in own_places(report):
        is_number = type(value) in (int, float)
        if not path or (type(wrong) is type(value) and not is_number):
            continue
        key = path[-1]
        if (is_number and wrong == -1.5 and key in MAY_BE_NEGATIVE) or (key in NULLABLE and None in (wrong, value)):
            continue
        assert not VALIDATOR.is_valid(put(report, path, wrong)), (path, value, wrong)
        n_tried += 1
    assert n_tried > 100


DIGEST = example()["policy"]["sha256"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("kind",), "seamfast-report"),
        (("created",), "yesterday"),
        (("created",), "2026-03-14T09:26:53"),
        (("seed",), 2**63),
        (("verdict", "outcome"), "clean"),
        (("verdict", "reasons"), []),
        (("policy", "sha256"), DIGEST.upper()),
        (("policy", "sha256"), DIGEST + "\n"),
        (("policy", "sha256"), DIGEST[1:]),
        (("policy", "rules", 0, "metric"), "after.accuracy"),
        (("policy", "rules", 0, "min_samples"), 0),
        (("policy", "rules", 0, "outcome"), "skipped"),
        (("model", "files", 0, "kind"), "Safe Tensors"),
        (("model", "files", 0, "role"), "code"),
        (("model", "files", 0, "name"), ""),
        (("model", "architecture", "source"), "folder"),
        (("data", "n_samples"), 0),
        (("audit", "before", "class_accuracy"), []),
        (("audit", "before", "battery", 0, "rate", "high"), 1.01),
        (("audit", "before", "inversion", "classes", 0, "mask_share"), 1.5),
        (("audit", "change", "accuracy_lost", "low"), -1.01),
        (("seconds", "total"), -0.1),
    ],
    ids=str,
)
def test_no_value_may_leave_its_range(path: Path_, value: Any) -> None:
    assert not VALIDATOR.is_valid(put(example(), path, value))


# The schema itself.


def test_the_schema_is_sound_and_every_property_described() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    n_objects = 0
    for path, node in places(SCHEMA):
        if {"if", "then", "else"} & set(path) or not isinstance(node, dict) or path[-1:] == ("properties",):
            continue
        if "properties" in node:
            n_objects += 1
            assert node["additionalProperties"] is False, path
            for name, inner in node["properties"].items():
                assert inner.get("description", "").endswith("."), (path, name)
    assert n_objects > 15


def test_the_schema_refers_to_nothing_but_the_report_beside_it() -> None:
    refs = {value for path, value in places(SCHEMA) if path[-1:] == ("$ref",)}
    assert {ref.partition("#")[0] for ref in refs} == {"", "report-v2.json"}
    assert "$id" not in SCHEMA  # so that the other file is looked for in the same folder


def test_metrics_are_those_that_a_policy_may_name() -> None:
    metrics, booleans = (value for path, value in places(SCHEMA) if path[-2:] == ("metric", "enum"))
    assert metrics == list(METRICS)
    assert booleans == [name for name, metric in METRICS.items() if metric.kind == "boolean"]


def test_the_document_names_every_key() -> None:
    text = (ROOT / "docs" / "gate-report.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    explained = {word for span in re.findall(r"`([^`\n]+)`", prose) for word in re.split(r"[.,\s]+", span)}
    keys = {key for path, node in places(SCHEMA) if path[-1:] == ("properties",) for key in node}
    assert keys - explained == set()
