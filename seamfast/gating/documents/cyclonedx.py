"""The gate report as a CycloneDX 1.6 bill of materials with a model card."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

from seamfast.errors import InputError
from seamfast.gating.decision import not_finite
from seamfast.gating.documents.subjects import model_name, received_weights, sanitized_weights
from seamfast.untrusted import printable

_NAMESPACE = uuid.UUID("5ea3fa57-0b0a-4d3c-9f61-6d6f64656c73")  # of the serial numbers; any constant
_LONGEST_TEXT = 1000
Values = dict[str, Any]  # of the report, or of the document


def as_bom(report: Values) -> Values:
    """A machine-learning bill of materials: the sanitized model, and the received one as its ancestor.

    Where nothing was sanitized it describes the received model alone. Each has its files with their SHA-256 and a
    model card with what the audit measured on it, 95 % bounds included. Property names begin with ``seamfast:``.

    Args:
        report: follows ``schema/gate-report-v1.json``.

    Returns:
        A document of strict JSON values, a function of ``report`` alone; so is its serial number.

    Raises:
        InputError: ``the report passed but holds no sanitized files; expected them: they are what passed``.

    Source: OWASP CycloneDX Specification 1.6 (ECMA-424).
    """
    if report["verdict"]["outcome"] == "pass" and report["sanitized"] is None:  # the received model did not pass
        raise InputError("the report passed but holds no sanitized files; expected them: they are what passed")
    files, weights = report["model"]["files"], received_weights(report)
    component = received = _model(report, "received", files, weights, report["audit"]["before"])
    if report["sanitized"] is not None:
        files, weights = report["sanitized"]["files"], sanitized_weights(report)
        component = _model(report, "sanitized", files, weights, report["audit"]["after"])
        component["pedigree"] = {"ancestors": [received], "notes": "Weights changed by seamfast.sanitize."}
    tool = {"type": "application", "name": "seamfast", "version": report["tool"]["version"]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_serial_number(report)}",
        "version": 1,
        "metadata": {
            "timestamp": report["created"],
            "tools": {"components": [tool]},
            "component": component,
            "properties": _properties(report),
        },
    }


def _serial_number(report: Values) -> uuid.UUID:
    """Of the whole report: documents that differ in anything must not share a serial number."""
    text = json.dumps(report, sort_keys=True, allow_nan=False)
    return uuid.uuid5(_NAMESPACE, hashlib.sha256(text.encode()).hexdigest())


def _model(report: Values, state: str, files: list[Values], weights: list[Values], audit: Values | None) -> Values:
    component: Values = {
        "type": "machine-learning-model",
        "bom-ref": state,
        "name": printable(model_name(report)),
        "description": "The model as received." if state == "received" else "The model as sanitized.",
        "components": [_file(file, f"{state}/{i}") for i, file in enumerate(files)],
        "modelCard": _model_card(report, state, audit),
    }
    if len(weights) == 1 and weights[0]["sha256"] is not None:  # shards have a digest each, and none together
        component["hashes"] = _hashes(weights[0])
    return component


def _file(file: Values, reference: str) -> Values:
    component = {
        "type": "file",
        "bom-ref": reference,
        "name": printable(file["name"]),
        "properties": [_property("bytes", file["n_bytes"])],
    }
    if file["sha256"] is not None:
        component["hashes"] = _hashes(file)
    return component


def _hashes(file: Values) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": file["sha256"]}]


def _model_card(report: Values, state: str, audit: Values | None) -> Values:
    model = report["model"]
    parameters: Values = {"task": "classification"}
    if model["architecture"] is not None:
        parameters["modelArchitecture"] = printable(model["architecture"]["name"])
    limitations = [printable(text, _LONGEST_TEXT) for text in report["limits"]]
    card: Values = {"modelParameters": parameters, "considerations": {"technicalLimitations": limitations}}
    if audit is not None:
        card["quantitativeAnalysis"] = {"performanceMetrics": _metrics(report, state, audit)}
    if model["n_parameters"] is not None:
        card["properties"] = [_property("parameters", model["n_parameters"])]
    return card


def _metrics(report: Values, state: str, audit: Values) -> list[Values]:
    accuracy, change, inversion = audit["clean_accuracy"], report["audit"]["change"], audit["inversion"]
    metrics = [_metric("accuracy", f"{accuracy['n_total']} audit samples", accuracy)]
    if state == "sanitized" and change is not None:
        metrics.append(_metric("accuracy lost", f"{change['n']} audit samples", change["accuracy_lost"]))
    for result in audit["battery"]:
        where = f"{printable(result['name'])} on {result['rate']['n_total']} audit samples, class {result['target']}"
        metrics.append(_metric("share of stamped samples that go to one class", where, result["rate"]))
    for lost in not_finite(report, "before" if state == "received" else "after"):
        if lost.n is not None:
            where = f"{printable(lost.name) or 'clean'}, {lost.n} audit samples"
            metrics.append(
                {"type": "share of samples without a finite answer", "slice": where, "value": str(lost.share)}
            )
    for entry in (audit.get("vocabulary") or {"classes": ()})["classes"]:
        for one in entry["found"]:
            where = f"{printable(one['text'])} in {one['rate']['n_total']} audit texts, class {entry['class']}"
            metrics.append(_metric("share of texts that a found phrase moves to one class", where, one["rate"]))
    if inversion is not None and inversion["anomaly_index"] is not None:
        where = f"{len(inversion['classes'])} classes"
        metrics.append(
            {"type": "anomaly index of trigger inversion", "slice": where, "value": str(inversion["anomaly_index"])}
        )
    return metrics


def _metric(kind: str, where: str, measured: Values) -> Values:
    """A share with its bounds; of no samples it has bounds but no value."""
    metric: Values = {
        "type": kind,
        "slice": where,
        "confidenceInterval": {"lowerBound": str(measured["low"]), "upperBound": str(measured["high"])},
    }
    return metric if measured["value"] is None else metric | {"value": str(measured["value"])}


def _properties(report: Values) -> list[dict[str, str]]:
    """The verdict, the policy and the outcome of each rule, the seed, and the statements."""
    policy, refusal = report["policy"], report["refusal"]
    properties = [_property("outcome", report["verdict"]["outcome"]), _property("seed", report["seed"])]
    if policy is not None:
        properties += [_property("policy", policy["name"]), _property("policy:sha256", policy["sha256"])]
        properties += [_property("rule", f"{rule['outcome']}: {rule['id']}") for rule in policy["rules"]]
    if refusal is not None:
        properties += [_property("refusal", f"{refusal['code']}: {refusal['reason']}")]
    return properties + [_property("statement", text) for text in report["statements"]]


def _property(name: str, value: object) -> dict[str, str]:
    return {"name": f"seamfast:{name}", "value": printable(value, _LONGEST_TEXT)}
