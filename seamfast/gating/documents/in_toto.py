"""The gate report as an in-toto statement: a test result about files that are known by their SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from seamfast.errors import InputError
from seamfast.gating.documents.subjects import received_weights, sanitized_weights
from seamfast.untrusted import printable


def as_statement(report: dict[str, Any], report_sha256: str | None = None) -> dict[str, Any]:
    """An in-toto Statement v1 with the predicate test-result v0.1; the policy's rules are its tests.

    The subject is the sanitized weights where the gate passed, the received ones where it did not, so no statement
    that passed names the weights as received. Weights only: a subject is matched by its digest alone, and a
    description like ``model.json`` may belong to other models too.

    ``PASSED`` and ``WARNED`` (passed, with warnings in the report, or with the weights as received) go with exit code
    0, ``FAILED`` with all others. A rule that could not be decided is among the failed tests, since verifiers accept a
    warned test.

    The configuration holds what the result rests on, each by its digest: the policy, the clean data, the files of the
    model as received, the report, and the architecture and the environment, whose values are annotations too.

    Args:
        report: follows ``schema/gate-report-v1.json``.
        report_sha256: of ``report.json`` as written; ``None`` leaves it out.

    Returns:
        A document of strict JSON values, a function of the arguments alone.

    Raises:
        InputError: no digest is known, as of a model refused before it was read, or of a run that wrote none: ``the
            report holds no SHA-256 of sanitized weights; expected one at least, as subject of the
            statement``.

    Source: in-toto Attestation Framework, Statement v1 and predicate test-result v0.1.
    """
    passed = report["verdict"]["outcome"] == "pass"
    rules = report["policy"]["rules"] if report["policy"] is not None else []
    weights = sanitized_weights(report) if passed else received_weights(report)
    subject = [_descriptor(file) for file in weights if file["sha256"] is not None]
    if not subject:
        which = "sanitized" if passed else "received"
        message = f"the report holds no SHA-256 of {which} weights; expected one at least, as subject of the statement"
        raise InputError(message)
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": ("WARNED" if report["warnings"] or _is_untreated(report) else "PASSED") if passed else "FAILED",
            "configuration": _configuration(report, report_sha256),
            "passedTests": [printable(rule["id"]) for rule in rules if rule["outcome"] == "pass"],
            "warnedTests": [],
            "failedTests": [printable(rule["id"]) for rule in rules if rule["outcome"] != "pass"],
        },
    }


def _is_untreated(report: dict[str, Any]) -> bool:
    model = report["sanitize"]["model"]
    return bool(model["digest_after"] in (None, model["digest_before"]))


def _configuration(report: Mapping[str, Any], report_sha256: str | None) -> list[dict[str, Any]]:
    model, data, machine = report["model"], report["data"], report["machine"]
    found = [] if report["policy"] is None else [_descriptor(report["policy"])]
    if data is not None:
        found.append(_descriptor({"name": "clean data", "sha256": data["sha256"]}))
    for file in model["files"]:
        if file["sha256"] is not None:
            found.append(_descriptor({"name": f"received/{file['name']}", "sha256": file["sha256"]}))
    if report_sha256 is not None:
        found.append(_descriptor({"name": "report.json", "sha256": report_sha256}))
    if model["architecture"] is not None:
        found.append(_annotated("architecture", model["architecture"]))
    versions = {name: machine[name] for name in ("python", "torch", "numpy", "platform")}
    found.append(_annotated("environment", {"seamfast": report["tool"]["version"], **versions}))
    return found


def _descriptor(named: dict[str, Any]) -> dict[str, Any]:
    return {"name": printable(named["name"]), "digest": {"sha256": named["sha256"]}}


def _annotated(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as annotations, cut where they are long, and the digest of all of them, as JSON."""
    text = {key: value if isinstance(value, str) else _as_json(value) for key, value in sorted(values.items())}
    annotations = {key: printable(value, 1000) for key, value in text.items()}
    digest = hashlib.sha256(_as_json(values).encode()).hexdigest()
    return {"name": name, "digest": {"sha256": digest}, "annotations": annotations}


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
