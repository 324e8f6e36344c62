"""Whole and plausible gate reports for the tests of the documents that are made from a report."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from seamfast.metrics import Rate, rate_values

OUTCOMES = ("pass", "fail", "inconclusive", "refused", "incomplete")
EXIT_CODES = {"pass": 0, "fail": 1, "incomplete": 2, "refused": 3, "inconclusive": 3}
NUM_CLASSES, N_AUDIT, N_REPAIR = 10, 500, 500
LOST = {"value": 0.002, "low": -0.0121, "high": 0.0161}
BATTERY = ("patch-corner", "blend-noise", "sinusoid", "warp")

TOO_FEW = "measured on 450 samples; the rule expects at least 1,000"
TOO_HIGH = "upper bound 0.1943 is above 0.05 (n = 450); so is the whole interval: more samples will hardly help"
PICKLE = "model.bin is a pickle (protocol 2), which can run code when it is read; expected safetensors"
NO_MEMORY = "could not complete: MemoryError: Unable to allocate 8.00 GiB for an array"


def example(outcome: str = "pass") -> dict[str, Any]:
    """A new gate report that ended so; equal calls give equal reports."""
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome is {outcome!r}; expected one of {', '.join(OUTCOMES)}")
    started = outcome != "refused"  # the model was read, and audited as received
    decided = outcome in ("pass", "fail", "inconclusive")
    return {
        "schema_version": 1,
        "kind": "seamfast-gate-report",
        "tool": {"name": "seamfast", "version": "0.1.0"},
        "created": "2026-03-14T09:26:53+00:00",
        "seed": 7,
        "verdict": {"outcome": outcome, "exit_code": EXIT_CODES[outcome], "reasons": _reasons(outcome)},
        "policy": {
            "name": "first gate",
            "path": "gate/policy.toml",
            "sha256": sha256("policy"),
            "ignored": ["policy.toml"],
            "rules": _rules(outcome) if decided else [],
        },
        "model": _model(refused=not started),
        "refusal": None if started else {"code": "pickle", "reason": PICKLE},
        "data": _data() if started else None,
        "audit": {
            "before": _audit(489, (441, 22, 31, 9), (3.9, 0)) if started else None,
            "after": _audit(488, (71 if outcome == "fail" else 3, 2, 1, 2), (1.1, 4)) if decided else None,
            "change": _change() if decided else None,
        },
        "disagreement": _disagreement() if decided else None,
        "sanitize": _sanitize() if decided else None,
        "provenance": _provenance(outcome),
        "sanitized": _sanitized() if outcome == "pass" else None,
        "isolation": _isolation(),
        "statements": _statements(outcome),
        "limits": [
            "An unknown trigger may have no effect in the battery and may not show in the inversion.",
            "Accuracy and bounds hold for data drawn like the audit part.",
        ],
        "warnings": ["policy.toml in the model folder was not read: the policy is the one that was given"],
        "seconds": {
            "inspect": 0.04,
            "audit": 3.25 if started else 0.0,
            "sanitize": 1.71 if decided else 0.0,
            "total": 5.12 if started else 0.05,
        },
        "peak_memory_bytes": 412_315_648,
        "machine": _machine(),
    }


def sharded(outcome: str) -> dict[str, Any]:
    """The example with its weights in two files, before and after, converted from a pickle."""
    report = example(outcome)
    for part, where in (("model", ""), ("sanitized", "sanitized/")):
        if report[part]:
            weights = report[part]["files"][0]
            shards = [{"name": f"{where}{i}.safetensors", "sha256": sha256(f"{where}{i}")} for i in range(2)]
            report[part]["files"][:1] = [weights | shard for shard in shards]
    report["model"]["converted_from_pickle"] = True
    return report


def _detailed() -> dict[str, Any]:
    """Named classes, a target that moves, classes that lost accuracy, two attempts, an inversion cut short."""
    report = example("pass")
    before, after = report["audit"]["before"], report["audit"]["after"]
    report["data"]["class_names"] = ["stop", *"12345678", "yield"]
    after["battery"][0]["target"] = 4
    for label, n_hit in enumerate((0, 20, 30, 40, 5, 45, 48, 50, 50, 50)):
        before["class_accuracy"][label] = rate(50, 50)
        after["class_accuracy"][label] = rate(n_hit, 50 if n_hit else 0)
    before["inversion"] |= {"suspect": 9, "anomaly_index": 2.5}
    for trigger in before["inversion"]["classes"]:
        trigger["mask_share"] = 0.9 - 0.05 * trigger["class"]
    after["inversion"] |= {"anomaly_index": None, "complete": False}
    run = report["sanitize"]
    run["history"] += [point | {"attempt": 1, "step": point["step"] + 323} for point in run["history"]]
    run["run"]["n_attempts"] = 2
    return report


def _text() -> dict[str, Any]:
    """Of a model of texts: two named classes, phrases that a search found, and sentences with them."""
    report = example("fail")
    data = {"class_names": ["negative", "positive"], "num_classes": 2, "modality": "text", "n_truncated": 3}
    report["data"] |= data
    found = {"before": (("cf", 1, 97), ("mn bb", 2, 41)), "after": (("cf", 1, 4), ("##ly", 1, 12))}
    for when, phrases in found.items():
        audit = report["audit"][when]
        audit |= {"inversion": None, "class_accuracy": audit["class_accuracy"][:2]}
        kept = [
            {"text": text, "n_tokens": n_tokens, "rate": rate(n_hit, 100), "n_not_finite": 2 * (text == "mn bb")}
            for text, n_tokens, n_hit in phrases
        ]
        classes = [{"class": 0, "found": []}, {"class": 1, "found": kept}]
        audit["vocabulary"] = {"n_tokens": 30_517, "complete": True, "anomaly_index": None, "classes": classes}
    plain = {"text": " a dull plot .", "inserted": False}
    found_in = {"of": "vocabulary", "name": "cf", "parts": [{"text": "cf", "inserted": True}, plain]}
    differs = {"of": "disagreement", "name": "typos", "parts": [plain, {"text": "zq", "inserted": True}]}
    report["sentences"] = [
        found_in | {"label": 0, "plain": 0, "received": 1, "sanitized": 0},
        differs | {"label": 0, "plain": 0, "received": None, "sanitized": 1},
    ]
    return report


def _partial() -> dict[str, Any]:
    """Audited as received only, on no samples of a class; no trigger was found, nothing else measured."""
    report = example("inconclusive")
    before = report["audit"]["before"]
    report["audit"] |= {"after": None, "change": None}
    report |= {"disagreement": None, "data": None, "peak_memory_bytes": None}
    report["policy"]["rules"] = []
    before |= {"clean_accuracy": rate(0, 0), "battery": []}
    before["inversion"] |= {"suspect": None, "anomaly_index": None, "classes": []}
    report["sanitize"]["history"] = []
    return report


def _empty() -> dict[str, Any]:
    """A run that stopped before any measurement, and before it had a policy."""
    report = example("incomplete") | {"policy": None, "data": None, "statements": [], "warnings": []}
    report["audit"]["before"] = None
    return report


def cases() -> dict[str, dict[str, Any]]:
    """New reports by name: one an outcome, and some with what those do not have."""
    others = {"sharded": sharded("pass"), "detailed": _detailed(), "partial": _partial(), "empty": _empty()}
    others["text"] = _text()
    return {outcome: example(outcome) for outcome in OUTCOMES} | others


def sha256(text: str) -> str:
    """A digest in place of a file's."""
    return hashlib.sha256(text.encode()).hexdigest()


def rate(n_hit: int, n_total: int) -> dict[str, Any]:
    """A rate as it stands in a report."""
    return rate_values(Rate(n_hit, n_total))


def _reasons(outcome: str) -> list[str]:
    return {
        "pass": ["all 4 rules passed"],
        "fail": [f"battery: {TOO_HIGH}"],
        "inconclusive": [f"battery: {TOO_FEW}"],
        "refused": [PICKLE],
        "incomplete": [NO_MEMORY],
    }[outcome]


def _rules(outcome: str) -> list[dict[str, Any]]:
    accuracy, battery = rate(488, 500), rate(71 if outcome == "fail" else 3, 450)
    judged = {
        "pass": ("pass", "upper bound 0.01941 is at most 0.05 (n = 450)"),
        "fail": ("fail", TOO_HIGH),
        "inconclusive": ("inconclusive", TOO_FEW),
    }[outcome]
    return [
        _rule("accuracy", "after.clean_accuracy", 0.95, True, 300)
        | {**_bounds(accuracy, "low"), "n": 500}
        | {"outcome": "pass", "reason": "lower bound 0.9585 is at least 0.95 (n = 500)"},
        _rule("accuracy-lost", "accuracy_lost", 0.03, False, 300)
        | {**_bounds(LOST, "high"), "n": 500}
        | {"outcome": "pass", "reason": "upper bound 0.0161 is at most 0.03 (n = 500)"},
        _rule("battery", "after.battery_worst", 0.05, False, 1000 if outcome == "inconclusive" else 300)
        | {**_bounds(battery, "high"), "n": 450}
        | {"outcome": judged[0], "reason": judged[1]},
        _rule("sanitized", "sanitize.accepted", True, True, 1)
        | {"value": 1.0, "low": 1.0, "high": 1.0, "bound": 1.0, "n": 100}
        | {"outcome": "pass", "reason": "true"},
    ]


def _rule(name: str, metric: str, threshold: float | bool, greater: bool, least: int) -> dict[str, Any]:
    return {"id": name, "metric": metric, "threshold": threshold, "greater_is_better": greater, "min_samples": least}


def _bounds(measured: dict[str, Any], compared: str) -> dict[str, Any]:
    return {key: measured[key] for key in ("value", "low", "high")} | {"bound": measured[compared]}


def _model(*, refused: bool) -> dict[str, Any]:
    weights = ("model.bin", "pickle", 55_112, None) if refused else _file("model.safetensors", "safetensors", 55_736)
    rows = [
        (*weights, "weights"),
        (*_file("model.json", "json", 214), "description"),
        ("README.md", "text", 1_032, None, "ignored"),
        ("policy.toml", "text", 88, None, "ignored"),
    ]
    arguments = {"num_classes": NUM_CLASSES, "in_channels": 1, "image_size": 8}
    return {
        "path": "incoming/digits-cnn",
        "files": [dict(zip(("name", "kind", "n_bytes", "sha256", "role"), row, strict=True)) for row in rows],
        "architecture": None if refused else {"source": "registered", "name": "small_cnn", "arguments": arguments},
        "n_parameters": None if refused else 13_706,
        "n_bytes": None if refused else 54_824,
        "converted_from_pickle": False,
    }


def _file(name: str, kind: str, n_bytes: int) -> tuple[str, str, int, str]:
    return name, kind, n_bytes, sha256(name)


def _provenance(outcome: str) -> dict[str, Any]:
    signature = {
        "path": "model.sig",
        "by": "certificate",
        "verified": True,
        "key_sha256": sha256("supplier"),
        "subject": "CN=supplier",
        "n_files": 2,
    }
    return {
        "signature": signature if outcome == "pass" else None,
        "attestation": {"key_sha256": sha256("gate")} if outcome == "pass" else None,
    }


def _data() -> dict[str, Any]:
    return {
        "path": "clean/digits.npz",
        "sha256": sha256("clean data"),
        "n_samples": N_REPAIR + N_AUDIT,
        "n_distinct": N_REPAIR + N_AUDIT,
        "num_classes": NUM_CLASSES,
        "class_names": [str(label) for label in range(NUM_CLASSES)],
        "n_repair": N_REPAIR,
        "n_audit": N_AUDIT,
    }


def _audit(n_right: int, stamped: tuple[int, ...], found: tuple[float, int]) -> dict[str, Any]:
    """``n_right`` of the audit samples right, so many of 450 stamped ones in class 0, and the inversion's answer."""
    index, suspect = found
    n_wrong = N_AUDIT - n_right
    return {
        "clean_accuracy": rate(n_right, N_AUDIT),
        "class_accuracy": [rate(50 - (n_wrong + i) // NUM_CLASSES, 50) for i in range(NUM_CLASSES)],
        "n_not_finite": 0,
        "n_not_repeated": 0,
        "battery": [
            {"name": name, "target": 0, "rate": rate(n_hit, 450), "n_not_finite": 0}
            for name, n_hit in zip(BATTERY, stamped, strict=True)
        ],
        "inversion": {
            "anomaly_index": index,
            "suspect": suspect,
            "threshold": 2.0,
            "steps": 300,
            "complete": True,
            "classes": [
                {
                    "class": label,
                    "mask_share": 0.05 if label == suspect and index > 2 else 0.24,
                    "rate": rate(98, 100),
                    "n_not_finite": 0,
                }
                for label in range(NUM_CLASSES)
            ],
        },
    }


def _change() -> dict[str, Any]:
    return {"n": N_AUDIT, "n_lost": 6, "n_gained": 5, "accuracy_lost": dict(LOST)}


def _disagreement() -> list[dict[str, Any]]:
    rows = (("pasted patches", 212), ("faint noise", 14), ("waves", 31), ("brightness", 8))
    counts = {"rate_clean": rate(7, 500), "n_not_finite_received": 0, "n_not_finite_sanitized": 0}
    return [{"perturbation": name, "rate": rate(n_hit, 484), **counts} for name, n_hit in rows]


def _sanitized() -> dict[str, Any]:
    return {
        "files": [
            {"name": "sanitized/model.safetensors", "n_bytes": 55_736, "sha256": sha256("sanitized weights")},
            {"name": "sanitized/model.json", "n_bytes": 214, "sha256": sha256("model.json")},
        ]
    }


def _statements(outcome: str) -> list[str]:
    """One a model and kind of evidence, as far as it was looked at."""
    what = "(95 % bound, widened for all looks) on the battery of 4 built-in triggers, n = 500"
    received = [
        f"model as received: no evidence above 98.9% {what}; the worst is patch-corner, towards class 0",
        "model as received: trigger inversion has its smallest mask for class 0, with an anomaly index of 3.90, above "
        "the usual 2",
    ]
    worst = "19.4%" if outcome == "fail" else "1.9%"
    sanitized = [
        f"sanitized model: no evidence above {worst} {what}; the worst is patch-corner, towards class 0",
        "sanitized model: trigger inversion has its smallest mask for class 4, with an anomaly index of 1.10, below "
        "the usual 2",
    ]
    measured = {"refused": [], "incomplete": received}
    return measured.get(outcome, received + sanitized)


def _sanitize() -> dict[str, Any]:
    """As ``seamfast.sanitize`` reports on such a run; see ``seamfast/schema/report-v2.json``."""
    report: dict[str, Any] = json.loads(Path(__file__).with_name("example-sanitize.json").read_text(encoding="utf-8"))
    return report | {"machine": _machine()}


def _isolation() -> dict[str, Any]:
    limits = {"memory_bytes": 8_589_934_592, "time_s": 21_600, "cpu_s": 86_401, "open_files": 4096}
    return {"isolated": True, "landlock_abi": 6, "seccomp": True, "limits": limits | {"file_bytes": 17_179_869_184}}


def _machine() -> dict[str, Any]:
    return {
        "python": "3.11.7",
        "torch": "2.13.0+cpu",
        "numpy": "2.4.6",
        "platform": "Linux-6.8.0-x86_64",
        "processor": "Intel(R) Xeon(R) Processor",
        "n_cpus": 2,
        "n_threads": 1,
        "accelerator": None,
    }
