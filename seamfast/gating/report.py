"""The gate report: what is known of a run, as one strict JSON document by ``schema/gate-report-v1.json``."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from seamfast._version import __version__
from seamfast.gating.audit import Pictures
from seamfast.gating.decision import Decision, not_finite
from seamfast.gating.folder import Inspection, Received, model_values
from seamfast.gating.policy import Policy
from seamfast.intake.refusal import RefusedError
from seamfast.isolation import state
from seamfast.record import machine
from seamfast.untrusted import printable, printable_value

EXIT_CODES = {"pass": 0, "fail": 1, "incomplete": 2, "refused": 3, "inconclusive": 3}
_SCHEMA_VERSION = 1
_AUDITS = ("before", "after", "change")
_NOTABLE = 0.05  # share of samples from which a statement names the trigger that moves them
_MOST_CLASSES = 10  # that one statement names
_LIMITS = (
    "Evidence is of absence of what was looked for, not of a backdoor: an unknown trigger may have no effect in the "
    "battery and may not show in the inversion.",
    "Accuracy and bounds hold for data drawn like the audit part; poisoned or shifted data void them.",
    "An attacker who knows this gate may plant a backdoor that it does not find and sanitization does not remove.",
)


@dataclass
class GateRun:
    """A run of the gate as far as it has come; ``gate_report`` takes it at any time."""

    path: Path
    policy: Policy
    seed: int
    began: float = field(default_factory=time.perf_counter)
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    seconds: dict[str, float] = field(default_factory=lambda: {"inspect": 0.0, "audit": 0.0, "sanitize": 0.0})
    inspection: Inspection | None = None
    received: Received | None = None
    data: dict[str, Any] | None = None
    evidence: dict[str, Any] = field(
        default_factory=lambda: {
            "audit": dict.fromkeys(_AUDITS),
            "disagreement": None,
            "sentences": [],
            "sanitize": None,
            "provenance": {"signature": None, "attestation": None},
        }
    )
    decision: Decision | None = None
    refusal: RefusedError | None = None
    stopped: str | None = None
    error: BaseException | None = None
    n_truncated: int | None = None
    warnings: list[str] = field(default_factory=list)
    pictures: dict[str, Pictures] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time that passes to that part of ``seconds``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - begin

    def picture(self, name: str, images: list[Pictures]) -> None:
        """Keeps images for the HTML report, if there are any."""
        if images:
            self.pictures[name] = np.stack(images)


def gate_report(run: GateRun, *, dry_run: bool = False) -> dict[str, Any]:
    """The report of ``run``; ``"sanitized"`` is left for the one who writes it."""
    isolation = state.current
    outcome, reasons = _verdict(run, dry_run)
    policy, inspection = run.policy, run.inspection
    seconds = {**run.seconds, "total": time.perf_counter() - run.began}
    return {
        "schema_version": _SCHEMA_VERSION,
        "kind": "seamfast-gate-report",
        "tool": {"name": "seamfast", "version": __version__},
        "created": run.created.isoformat(timespec="seconds"),
        "seed": run.seed,
        "verdict": {"outcome": outcome, "exit_code": EXIT_CODES[outcome], "reasons": reasons},
        "policy": {
            "name": policy.name,
            "path": policy.path,
            "sha256": policy.sha256,
            "ignored": [] if inspection is None else list(inspection.ignored_policies),
            "rules": [] if run.decision is None else [rule.to_dict() for rule in run.decision.rules],
        },
        "model": _unknown_model(run.path) if inspection is None else model_values(inspection, run.received),
        "refusal": None if run.refusal is None else {"code": run.refusal.code, "reason": str(run.refusal)},
        "data": run.data,
        **run.evidence,
        "sanitized": None,
        "isolation": isolation.to_dict(),
        "statements": _provenance(run.evidence["provenance"]) + _statements(run.evidence, policy.audit.level),
        "limits": list(_LIMITS),
        "warnings": [*run.warnings, *isolation.missing],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_bytes": _peak_memory(),
        "machine": machine(),
    }


def _unknown_model(path: Path) -> dict[str, Any]:
    unknown = dict.fromkeys(("architecture", "n_parameters", "n_bytes"))
    return {"path": printable(path, 4096), "files": [], **unknown, "converted_from_pickle": False}


def _verdict(run: GateRun, dry_run: bool) -> tuple[str, list[str]]:
    if run.refusal is not None:
        return "refused", [str(run.refusal)]
    if run.stopped is not None:
        return "incomplete", [run.stopped]
    if dry_run:
        return "inconclusive", ["a dry run: no rule was evaluated"]
    if run.decision is None:
        return "incomplete", ["no rule was evaluated"]
    reasons = [f"{rule.id}: {rule.reason}" for rule in run.decision.rules if rule.outcome != "pass"]
    return run.decision.outcome, reasons or [f"all {len(run.decision.rules)} rules passed"]


def _provenance(provenance: Mapping[str, Any]) -> list[str]:
    """Whose signature the model has, in a sentence, if it was verified."""
    signature = provenance["signature"]
    if signature is None or not signature["verified"]:
        return []
    who = "" if signature["subject"] is None else f" of {signature['subject']}"
    n_files = signature["n_files"]
    key = f"key sha256:{signature['key_sha256']}"
    return [f"model as received: signed with {key}{who}; all {n_files} files are as they were signed"]


_NOT_FINITE = {
    "clean": "clean samples have no finite answer, which counts as wrong",
    "battery": "samples under {} have no finite answer, which counts as moved",
    "disagreement": "samples perturbed by {} have no finite answer, which counts as disagreement",
    "vocabulary": "texts with {} inserted have no finite answer, which counts as moved",
}


def _statements(evidence: Mapping[str, Any], level: float) -> list[str]:
    """What the audits show, each with its bound; never that a model is free of anything."""
    lines = []
    for when, model in (("before", "model as received"), ("after", "sanitized model")):
        audit = evidence["audit"][when]
        if audit is None:
            continue
        n = audit["clean_accuracy"]["n_total"]
        lost = not_finite(evidence, when)
        for kind, text in _NOT_FINITE.items():
            if of_kind := [one for one in lost if one.kind == kind]:
                most = max(of_kind, key=lambda one: one.share)
                share = f"{most.n_not_finite} of {most.n} ({most.share:.1%})"
                name = printable_value(most.name) if kind == "vocabulary" else most.name
                lines.append(f"{model}: {share} {text.format(name)}")
        if audit["n_not_repeated"]:
            lines.append(
                f"{model}: {audit['n_not_repeated']} of {n} clean samples get another answer when they are asked "
                "again in other batches, which counts as wrong; other audits ask once"
            )
        if audit["battery"]:
            worst = max(audit["battery"], key=lambda result: result["rate"]["high"])
            low, high = worst["rate"]["low"], worst["rate"]["high"]
            where = f"class {worst['target']}" + (" or to no finite answer" if worst["n_not_finite"] else "")
            more = f"; {worst['name']} moves at least {low:.1%} to {where}" if low >= _NOTABLE else ""
            bound = f"{100 * level:g} % bound, widened for all looks"
            lines.append(
                f"{model}: no evidence above {high:.1%} ({bound}) on the battery of {len(audit['battery'])} built-in "
                f"triggers, n = {n}{more}"
            )
        lines += _of_vocabulary(model, audit.get("vocabulary"), level)
        inversion = audit["inversion"]
        if inversion is not None:
            index = inversion["anomaly_index"]
            broken = [one.name for one in lost if one.kind == "inversion"]
            if broken:
                classes = ", ".join(broken[:_MOST_CLASSES]) + (", ..." if len(broken) > _MOST_CLASSES else "")
                lines.append(
                    f"{model}: trigger inversion met answers that are not finite in its search for {len(broken)} of "
                    f"{len(inversion['classes'])} classes ({classes}), so it has no anomaly index"
                )
            elif not inversion["complete"]:
                cause = "its time budget or by gradients of NaN"
                lines.append(f"{model}: trigger inversion was cut short, by {cause}, and says nothing")
            elif index is None:
                lines.append(f"{model}: trigger inversion has no anomaly index with so few classes")
            else:
                side = "above" if index > inversion["threshold"] else "below"
                lines.append(
                    f"{model}: trigger inversion has its smallest mask for class {inversion['suspect']}, with an "
                    f"anomaly index of {index:.2f}, {side} the usual {inversion['threshold']:g}"
                )
    return lines


def _of_vocabulary(model: str, searched: Mapping[str, Any] | None, level: float) -> list[str]:
    """What the search of the vocabulary found, in a sentence, if there was one."""
    if searched is None:
        return []
    if not searched["complete"]:
        return [f"{model}: the search of the vocabulary was cut short, and says nothing"]
    found = [(one, entry["class"]) for entry in searched["classes"] for one in entry["found"]]
    known = [one for one in found if one[0]["rate"]["value"] is not None]
    if not known:
        return [f"{model}: the search of the vocabulary found nothing to test"]
    one, label = max(known, key=lambda entry: entry[0]["rate"]["high"])
    rate, n_tokens = one["rate"], searched["n_tokens"]
    return [
        f"{model}: of {n_tokens:,} tokens and their phrases, {printable_value(one['text'])} moves most texts, "
        f"{rate['value']:.1%} to class {label}, no evidence above {rate['high']:.1%} ({100 * level:g} % bound, widened "
        f"for all looks), n = {rate['n_total']}"
    ]


def _peak_memory() -> int:
    """Of this process since it began; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
