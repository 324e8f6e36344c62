"""The gate report as SARIF 2.1.0, for code-scanning dashboards."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

from seamfast.gating.documents.subjects import model_name, received_weights
from seamfast.untrusted import printable

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
_RECEIVED, _OUT = "RECEIVED", "OUT"
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_LONGEST_MESSAGE = 1000
_LONGEST_PATH = 4096
_MARKUP = re.compile(r"(?<=\])(?=\()|(?<=\{)(?=\d+\})")  # inside "](", which makes a link, and "{0}", a placeholder
_UNDECIDED = "undecided"
# SARIF 3.27.10: whatever is not of the kind "fail" has the level "none".
_RULE_RESULTS = {"pass": ("pass", "none"), "fail": ("fail", "error"), "inconclusive": ("open", "none")}
_EXITS = {
    "pass": "every rule of the policy was evaluated and passed",
    "fail": "a rule of the policy failed",
    "incomplete": "the gate could not complete; it may be run again",
    "refused": "the input was refused",
    "inconclusive": "a rule of the policy could not be decided",
}


def as_sarif(report: dict[str, Any]) -> dict[str, Any]:
    """One SARIF run: a result for each rule of the policy, and one for a refusal or for the lack of a decision.

    A dashboard that shows only results of the kind ``fail`` shows at least one for every outcome but ``pass``. Files
    are named relative to the bases ``RECEIVED`` and ``OUT``, which the reader resolves: no path of the machine is
    contained. Strings from files are printable, of bounded length, and never a link.

    Args:
        report: follows ``schema/gate-report-v1.json``.

    Returns:
        A document of strict JSON values, a function of ``report`` alone.

    Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
    """
    outcome, exit_code = report["verdict"]["outcome"], report["verdict"]["exit_code"]
    policy, refusal = report["policy"], report["refusal"]
    artifacts = _artifacts(report)
    target = {**artifacts[0]["location"], "index": 0}
    rules: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def add(rule: dict[str, Any], kind: str, level: str, text: str, **properties: Any) -> None:
        result = {
            "ruleId": rule["id"],
            "ruleIndex": len(rules),
            "kind": kind,
            "level": level,
            "message": _message(text),
            "locations": [{"physicalLocation": {"artifactLocation": target}}],
        }
        rules.append(rule)
        results.append(result | ({"properties": properties} if properties else {}))

    if refusal is not None:
        code = printable(refusal["code"])
        rule = _rule(f"refused/{code}", f"An input that seamfast refuses as {code!r} is read no further")
        add(rule, "fail", "error", refusal["reason"])
    elif outcome in ("inconclusive", "incomplete"):
        rule = _rule(_UNDECIDED, "The gate reaches a verdict; without one it blocks")
        add(rule, "fail", "warning", "; ".join(report["verdict"]["reasons"]) or _EXITS[outcome])
    for decided in policy["rules"] if policy is not None else ():
        kind, level = _RULE_RESULTS[decided["outcome"]]
        measured = {key: decided[key] for key in ("value", "low", "high", "bound", "n", "threshold")}
        add(_rule(f"policy/{printable(decided['id'])}", _demand(decided)), kind, level, decided["reason"], **measured)

    began = datetime.fromisoformat(report["created"].replace("Z", "+00:00")).astimezone(timezone.utc)
    notifications = [{"level": "warning", "message": _message(text)} for text in report["warnings"]]
    if outcome == "incomplete":
        notifications += [{"level": "error", "message": _message(text)} for text in report["verdict"]["reasons"]]
    invocation = {
        "executionSuccessful": outcome != "incomplete",
        "exitCode": exit_code,
        "exitCodeDescription": _EXITS[outcome],
        "startTimeUtc": _utc(began),
        "endTimeUtc": _utc(began + timedelta(seconds=report["seconds"]["total"])),
        "toolExecutionNotifications": notifications,
    }
    run = {
        "tool": {"driver": {"name": "seamfast", "version": report["tool"]["version"], "rules": rules}},
        "originalUriBaseIds": {
            _RECEIVED: {"description": {"text": "The model folder as received."}},
            _OUT: {"description": {"text": "The folder that the gate wrote."}},
        },
        "invocations": [invocation],
        "artifacts": artifacts,
        "results": results,
        "properties": {
            "outcome": outcome,
            "policy": None if policy is None else {"name": printable(policy["name"]), "sha256": policy["sha256"]},
            "statements": [printable(text, _LONGEST_MESSAGE) for text in report["statements"]],
            "limits": [printable(text, _LONGEST_MESSAGE) for text in report["limits"]],
        },
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _artifacts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The files of the model, those with weights first; where none is known, the model itself."""
    weights = received_weights(report)
    artifacts = [_artifact(file, _RECEIVED) for file in weights]
    if not weights:
        artifacts = [{"location": {"uri": _relative_uri(model_name(report))}, "roles": ["analysisTarget"]}]
    artifacts += [_artifact(file, _RECEIVED) for file in report["model"]["files"] if file["role"] != "weights"]
    sanitized = report["sanitized"]["files"] if report["sanitized"] is not None else []
    return artifacts + [_artifact(file, _OUT) for file in sanitized]


def _artifact(file: dict[str, Any], base: str) -> dict[str, Any]:
    artifact: dict[str, Any] = {
        "location": {"uri": _relative_uri(file["name"]), "uriBaseId": base},
        "length": file["n_bytes"],
    }
    if file["sha256"] is not None:
        artifact["hashes"] = {"sha-256": file["sha256"]}
    if file.get("role") == "weights":
        artifact["roles"] = ["analysisTarget"]
    return artifact


def _rule(name: str, text: str) -> dict[str, Any]:
    return {
        "id": name,
        "shortDescription": _message(text),
        "help": _message(f"{text}. The measurements are in report.html."),
        "defaultConfiguration": {"level": "warning" if name == _UNDECIDED else "error"},
    }


def _demand(rule: dict[str, Any]) -> str:
    """What a rule of the policy requires, in words."""
    if isinstance(rule["threshold"], bool):
        return f"{printable(rule['metric'])} must be {str(rule['threshold']).lower()}"
    side = "at least" if rule["greater_is_better"] else "at most"
    return f"{printable(rule['metric'])} must be {side} {rule['threshold']:g}, on {rule['min_samples']} samples or more"


def _message(text: str) -> dict[str, str]:
    """Text without links ``[text](target)`` and placeholders, which viewers expand (SARIF 3.11.5, 3.11.6)."""
    return {"text": _MARKUP.sub(" ", printable(text, _LONGEST_MESSAGE))}


def _relative_uri(name: str) -> str:
    """``name`` percent-encoded: never absolute, never upwards, never with a scheme (RFC 3986)."""
    if not name.strip("./") or len(name) > _LONGEST_PATH:
        return "_"  # which names no file
    segments = ["".join(map(_encoded, part.encode("utf-8", "surrogatepass"))) for part in name.split("/")]
    return ("/" if all(segment.strip(".") for segment in segments) else "%2F").join(segments)


def _encoded(byte: int) -> str:
    return chr(byte) if byte in _UNRESERVED else f"%{byte:02X}"


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
