"""The gate report as an in-toto statement: a test result about files that are known by their SHA-256."""

from __future__ import annotations

from typing import Any

from seamfast.errors import InputError
from seamfast.gating.documents.subjects import received_weights, sanitized_weights
from seamfast.untrusted import printable


def as_statement(report: dict[str, Any]) -> dict[str, Any]:
    """An unsigned in-toto Statement v1 with the predicate test-result v0.1; the policy's rules are its tests.

    The subject is the sanitized weights where the gate passed, the received ones where it did not, so no statement
    that passed names the weights as received. Weights only: a subject is matched by its digest alone, and a
    description like ``model.json`` may belong to other models too.

    ``PASSED`` and ``WARNED`` (passed, with warnings in the report, or with the weights as received) go with exit code
    0, ``FAILED`` with all others. A rule that could not be decided is among the failed tests, since verifiers accept a
    warned test.

    Args:
        report: follows ``schema/gate-report-v1.json``.

    Returns:
        A document of strict JSON values, a function of ``report`` alone.

    Raises:
        InputError: no digest is known, as of a model refused before it was read, or of a run that wrote none: ``the
            report holds no SHA-256 of sanitized weights; expected one at least, as subject of the
            statement``.

    Source: in-toto Attestation Framework, Statement v1 and predicate test-result v0.1.
    """
    passed = report["verdict"]["outcome"] == "pass"
    policy = report["policy"]
    rules = policy["rules"] if policy is not None else []
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
            "configuration": [_descriptor(policy)] if policy is not None else [],
            "passedTests": [printable(rule["id"]) for rule in rules if rule["outcome"] == "pass"],
            "warnedTests": [],
            "failedTests": [printable(rule["id"]) for rule in rules if rule["outcome"] != "pass"],
        },
    }


def _is_untreated(report: dict[str, Any]) -> bool:
    model = report["sanitize"]["model"]
    return bool(model["digest_after"] in (None, model["digest_before"]))


def _descriptor(named: dict[str, Any]) -> dict[str, Any]:
    return {"name": printable(named["name"]), "digest": {"sha256": named["sha256"]}}
