"""``gate``: an untrusted model folder, clean data and a policy in; a verdict, its evidence and a sanitised folder out.

The order of things, straight down: read the policy, inspect the model's files, load the data, receive the weights,
audit, sanitise, audit again, decide by the policy, write. Whatever goes wrong on the way ends in a report with its own
outcome; only a policy whose every rule was evaluated and passed ends in 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seamfast._version import __version__
from seamfast.data import CleanSet, split_by_class
from seamfast.data.readers import load
from seamfast.engine.model import evaluating, resolve_device
from seamfast.errors import DataFileError, InputError, ModelError, SanitizeInterrupted
from seamfast.evidence import invert_triggers, parting, stamped_evidence
from seamfast.evidence.inversion import Inversion
from seamfast.evidence.parting import Parting
from seamfast.evidence.subject import Subject, subject
from seamfast.gating.documents.cyclonedx import as_bom
from seamfast.gating.documents.html import as_html
from seamfast.gating.documents.in_toto import as_statement
from seamfast.gating.documents.markdown import as_markdown
from seamfast.gating.documents.sarif import as_sarif
from seamfast.gating.folder import Inspection, Received, inspect, model_values, receive
from seamfast.gating.policy import Decision, Measured, Policy, decide, read_policy
from seamfast.intake.refusal import RefusedError
from seamfast.metrics import Bounded
from seamfast.model_files import ModelDescription, save_model, save_weights
from seamfast.record import machine, rate_values
from seamfast.sanitize import SanitizeResult, sanitize
from seamfast.untrusted import printable

__all__ = ["GateResult", "gate", "metrics_of"]

SCHEMA_VERSION = 1
ANOMALOUS = 2.0
"""Anomaly index from which Neural Cleanse (Wang et al., S&P 2019) takes a model for backdoored."""
NOTABLE = 0.05
"""Share of samples from which a statement names the trigger that moves them."""
EXIT_CODES = {"pass": 0, "fail": 1, "incomplete": 2, "refused": 3, "inconclusive": 3}
FILES = ("report.json", "report.html", "summary.md", "report.sarif", "attestation.json", "bom.json")
SANITIZED = "sanitized"
LIMITS = (
    "Evidence is of absence of what was looked for, not of a backdoor: an unknown trigger need not answer to the "
    "battery, nor show in the inversion.",
    "Accuracy and bounds hold for data drawn like the audit part; poisoned or shifted data void them.",
    "An attacker who knows this gate may plant what it does not find and sanitisation does not remove.",
)


@dataclass(frozen=True)
class GateResult:
    """What the gate decided, and on what.

    Attributes:
        outcome: ``"pass"``, ``"fail"``, ``"inconclusive"``, ``"refused"`` or ``"incomplete"``.
        exit_code: 0 for pass, 1, 3, 3 and 2; all but 0 block.
        report: a strict JSON document, by ``schema/gate-report-v1.json``.
        model: the sanitised model, where every rule passed; else ``None``.
    """

    outcome: str
    exit_code: int
    report: dict[str, Any]
    model: nn.Module | None = None


@dataclass
class _Work:
    """What is known so far; a report can be made of it at any time."""

    path: Path
    seed: int
    policy: Policy
    began: float = field(default_factory=time.perf_counter)
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    seconds: dict[str, float] = field(default_factory=lambda: {"inspect": 0.0, "audit": 0.0, "sanitize": 0.0})
    inspection: Inspection | None = None
    received: Received | None = None
    data_path: str = ""
    data: CleanSet | None = None
    repair: Tensor | None = None
    audited: Tensor | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    change: dict[str, Any] | None = None
    parted: tuple[Parting, ...] | None = None
    result: SanitizeResult | None = None
    decision: Decision | None = None
    refusal: RefusedError | None = None
    stopped: str | None = None
    warnings: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - begin


def gate(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | CleanSet,
    *,
    policy: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    split: str | None = None,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    dry_run: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> GateResult:
    """``policy(audit(sanitize(load(model))))``: inspect, audit, sanitise, audit again, decide, write.

    The clean data are divided by class: one part repairs the model, the other, which no step of it ever sees, is what
    both audits measure on. The model folder is hostile until shown otherwise: no code in it runs, nothing in it chooses
    the policy, and what is not safetensors is refused.

    Args:
        model: a safetensors file, or a folder with one (shards too).
        data: clean images with labels: a path as for ``seamfast.load``, or a ``CleanSet`` of pixels.
        policy: a TOML file, see ``docs/policy.md``. Only this one is read.
        out: a folder that does not exist yet, or is empty; it appears whole, by one rename, at the end. ``None``:
            nothing is written.
        root, split: as for ``seamfast.load``: the folder of a data set given by name; ``"train"`` or ``"test"``.
        architecture: ``None``: what the folder's own ``model.json`` or ``config.json`` selects from an allow-list; else
            ``registered:NAME``, ``module:function`` (operator's code), or ``timm:NAME``.
        arguments: of the architecture.
        allow_pickle: let a state_dict that is a pickle through ``seamfast.intake.pickles``.
        dry_run: read the policy, inspect the files, load the data; no weights, no run, nothing written. The outcome is
            ``"inconclusive"`` at best.
        seed: of the division, the audits and the run.
        device: as for ``seamfast.sanitize``.
        progress: bars on stderr; ``None``: where it is a terminal.

    Returns:
        GateResult. Refusals and failures are results too; what is wrong with the call itself raises.

    Raises:
        PolicyError: the policy cannot be used.
        InputError: e.g. ``out is 'gate', which is not empty; expected a folder that does not exist yet``.
        KeyboardInterrupt: on Ctrl-C; nothing is written.
    """
    rules = read_policy(policy)
    folder = None if out is None else _free_folder(Path(out))
    work = _Work(Path(model), seed, rules)
    try:
        where = {"root": root, "split": split}
        _work(work, data, where, architecture, dict(arguments or {}), allow_pickle, dry_run, device, progress)
    except RefusedError as error:
        work.refusal = error
    except DataFileError as error:
        work.refusal = RefusedError("data" if work.inspection is not None else "model", str(error))
    except ModelError as error:
        work.refusal = RefusedError("model", str(error))
    except SanitizeInterrupted as stop:  # an audit under way is no result, as little as a report of half of one
        raise KeyboardInterrupt(str(stop)) from stop
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:
        work.stopped = f"could not complete: {type(error).__name__}: {error}"
    report = _report(work, dry_run)
    passed = report["verdict"]["outcome"] == "pass"
    made = work.result.model if passed and work.result is not None else None
    if folder is not None and not dry_run:
        _write(folder, report, work.pictures, work.received if passed else None, made)
    return GateResult(report["verdict"]["outcome"], report["verdict"]["exit_code"], report, made)


def _work(
    work: _Work,
    data: Any,
    where: dict[str, Any],
    architecture: str | None,
    arguments: dict[str, Any],
    allow_pickle: bool,
    dry_run: bool,
    device: str | torch.device,
    progress: bool | None,
) -> None:
    """Fill ``work`` as far as it goes."""
    with work.timed("inspect"):
        work.inspection = inspect(work.path, architecture=architecture, arguments=arguments, allow_pickle=allow_pickle)
        work.warnings += [
            f"{name} in the model folder was not read: the policy is the one that was given"
            for name in work.inspection.ignored_policies
        ]
        part = f", {where['split']}" if where["split"] else ""
        work.data_path = "(in memory)" if isinstance(data, CleanSet) else os.fspath(data) + part
        work.data = _clean_data(data, where, work.inspection)
        split = split_by_class(
            work.data.labels, holdout_fraction=work.policy.audit.share, forget_fraction=1.0, seed=work.seed
        )
        work.repair, work.audited = split.recovery, split.holdout
        if dry_run:
            return
        work.received = receive(work.inspection)
    model = work.received.model
    home = resolve_device(device, model)
    model.to(home)
    audit_set, repair_set = work.data.subset(work.audited), work.data.subset(work.repair)
    with work.timed("audit"):
        work.before, patterns, right = _audit(model, audit_set, work, progress)
        work.pictures |= {"samples": _samples(audit_set), **_named(patterns, "patterns_before")}
    with work.timed("sanitize"):
        work.result = sanitize(
            model,
            repair_set,
            method=work.policy.sanitize.method,
            preset=work.policy.sanitize.preset,
            config=work.policy.sanitize.config,
            time_budget_s=work.policy.sanitize.time_budget_s,
            seed=work.seed,
            progress=progress,
        )
        work.warnings += work.result.report["warnings"]
    with work.timed("audit"):
        work.after, patterns, right_after = _audit(work.result.model, audit_set, work, progress)
        work.pictures |= _named(patterns, "patterns_after")
        work.change = _change(right, right_after, work.policy.audit.level)
        work.parted = parting(
            model, work.result.model, audit_set, level=work.policy.audit.level, seed=work.seed, progress=progress
        )
        parted = [example.image.permute(1, 2, 0).numpy() for part in work.parted for example in part.examples[:4]]
        work.pictures |= _named(parted, "parted")
    work.decision = decide(work.policy, metrics_of(_evidence(work)))


def metrics_of(evidence: Mapping[str, Any]) -> dict[str, Measured]:
    """What a policy's rules may name, of a report's ``audit``, ``parting`` and ``sanitize``; what was not measured is
    not there."""
    found: dict[str, Measured] = {}
    for when in ("before", "after"):
        audit = evidence["audit"][when]
        if audit is None:
            continue
        found[f"{when}.clean_accuracy"] = _measured(audit["clean_accuracy"])
        if audit["battery"]:
            found[f"{when}.battery_worst"] = _worst([result["rate"] for result in audit["battery"]])
        inversion = audit["inversion"]
        if inversion is not None and inversion["complete"] and inversion["anomaly_index"] is not None:
            index = inversion["anomaly_index"]
            found[f"{when}.inversion_anomaly_index"] = Measured(index, index, index, audit["clean_accuracy"]["n_total"])
    change = evidence["audit"]["change"]
    if change is not None:
        lost = change["accuracy_lost"]
        found["accuracy_lost"] = Measured(lost["value"], lost["low"], lost["high"], change["n"])
    if evidence["parting"]:
        found["parting_worst"] = _worst([part["rate"] for part in evidence["parting"]])
    if evidence["sanitize"] is not None:
        accepted = float(evidence["sanitize"]["verdict"]["accepted"])
        n = evidence["sanitize"]["data"]["n_holdout"]
        found["sanitize.accepted"] = Measured(accepted, accepted, accepted, n)
    return found


def _measured(rate: Mapping[str, Any]) -> Measured:
    return Measured(rate["value"], rate["low"], rate["high"], rate["n_total"])


def _worst(rates: list[Mapping[str, Any]]) -> Measured:
    """The largest upper bound, and the largest value; ``n`` is the smallest."""
    known = [rate for rate in rates if rate["value"] is not None]
    if len(known) < len(rates) or not known:
        return Measured(None, None, None, 0)
    return Measured(
        max(rate["value"] for rate in known),
        max(rate["low"] for rate in known),
        max(rate["high"] for rate in known),
        min(rate["n_total"] for rate in known),
    )


# ---- The parts of the work. ----


def _clean_data(data: Any, where: dict[str, Any], inspection: Inspection) -> CleanSet:
    """The clean images, normalised as the model takes them."""
    chosen = inspection.architecture
    if isinstance(data, CleanSet):
        samples = data
    else:
        samples = load(os.fspath(data), **where, mean=chosen.mean or (0.0,), std=chosen.std or (1.0,))
    if chosen.image_shape is not None and samples.image_shape != chosen.image_shape:
        raise RefusedError(
            "data",
            f"the images are {samples.image_shape}; expected {chosen.image_shape} (C, H, W), as the model takes them",
        )
    n_classes = chosen.num_classes
    largest = int(samples.labels.max())
    if n_classes is not None and largest >= n_classes:
        raise RefusedError(
            "data", f"labels hold {largest}; expected integers in [0, {n_classes}) for the model's classes"
        )
    if int(samples.labels.bincount().max()) < 2:
        raise RefusedError(
            "data", f"data hold {len(samples)} samples, no class twice; expected some to repair, some to audit"
        )
    return samples


def _audit(
    model: nn.Module, data: CleanSet, work: _Work, progress: bool | None
) -> tuple[dict[str, Any], list[Any], Tensor]:
    """AUDIT of the report, the patterns that the inversion found, and which samples the model is right on."""
    settings = work.policy.audit
    examined = subject(model, data, "auto")
    right = _is_right(examined)
    of_class = data.labels.bincount(minlength=examined.num_classes)
    right_of_class = data.labels[right].bincount(minlength=examined.num_classes)
    battery = stamped_evidence(model, data, level=settings.level, seed=work.seed, progress=progress)
    inversion: Inversion | None = None
    if settings.inversion:
        inversion = invert_triggers(
            model, data, time_budget_s=settings.inversion_time_budget_s, seed=work.seed, progress=progress
        )

    def bounded(n_hit: int, n_total: int) -> dict[str, Any]:
        return rate_values(Bounded.exact(n_hit, n_total, level=settings.level))

    audit = {
        "clean_accuracy": bounded(int(right.sum()), len(right)),
        "class_accuracy": [*map(bounded, right_of_class.tolist(), of_class.tolist())],
        "battery": [{"name": r.name, "target": r.target, "rate": rate_values(r.rate)} for r in battery],
        "inversion": None if inversion is None else _inversion_values(inversion),
    }
    found = () if inversion is None else inversion.classes
    return audit, [_stamped_grey(trigger.mask, trigger.pattern) for trigger in found], right


def _inversion_values(inversion: Inversion) -> dict[str, Any]:
    return {
        "anomaly_index": inversion.anomaly_index,
        "suspect": inversion.suspect,
        "threshold": ANOMALOUS,
        "steps": inversion.steps,
        "complete": inversion.complete,
        "classes": [
            {"class": found.label, "mask_share": found.mask_share, "rate": rate_values(found.success)}
            for found in inversion.classes
        ],
    }


def _stamped_grey(mask: Tensor, pattern: Tensor) -> np.ndarray:
    """A found pattern as it looks on mid-grey, ``(H, W, C)``: where the mask is 0, nothing is seen."""
    shown = mask * pattern.float() + (1 - mask) * 128.0
    return shown.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _change(before: Tensor, after: Tensor, level: float) -> dict[str, Any]:
    """How accuracy changed between two answers of ``_is_right``: pairs tell more than two rates apart.

    The interval is the adjusted Wald interval for a difference of paired proportions, which keeps its coverage where
    few pairs differ. Source: D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data", J. Educ. Behav. Stat. 37, 2012.
    """
    n, n_lost, n_gained = len(before), int((before & ~after).sum()), int((~before & after).sum())
    lost, gained = (n_lost + 1) / (n + 2), (n_gained + 1) / (n + 2)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((lost + gained - (lost - gained) ** 2) / (n + 2))
    share = {
        "value": (n_lost - n_gained) / n,
        "low": max(lost - gained - half, -1.0),
        "high": min(lost - gained + half, 1.0),
    }
    return {"n": n, "n_lost": n_lost, "n_gained": n_gained, "accuracy_lost": share}


def _is_right(examined: Subject) -> Tensor:
    """``(N,)`` bool, on the CPU: whether the model gives each sample its label."""
    parts = torch.split(torch.arange(len(examined.data)), 512)
    with evaluating(examined.model), closing(examined.data.batches((part, 0) for part in parts)) as batches:
        answers = [examined.answers(inputs).cpu() for _, inputs in batches]
    return torch.cat(answers) == examined.samples.labels


def _samples(data: CleanSet, n: int = 16) -> np.ndarray:
    """Some images, spread over the classes: ``(n, H, W, C)``."""
    order = data.labels.argsort(stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, min(n, len(order))).round().long()]
    return data.pixels(chosen).permute(0, 2, 3, 1).contiguous().numpy()


def _named(pictures: list[Any], name: str) -> dict[str, np.ndarray]:
    return {name: np.stack(pictures)} if pictures else {}


# ---- The report. ----


def _evidence(work: _Work) -> dict[str, Any]:
    """The parts of the report that rules look at."""
    return {
        "audit": {"before": work.before, "after": work.after, "change": work.change},
        "parting": None
        if work.parted is None
        else [
            {"perturbation": p.name, "rate": rate_values(p.rate), "rate_clean": rate_values(p.rate_clean)}
            for p in work.parted
        ],
        "sanitize": None if work.result is None else dict(work.result.report),
    }


def _report(work: _Work, dry_run: bool) -> dict[str, Any]:
    outcome, reasons = _verdict(work, dry_run)
    inspection, received = work.inspection, work.received
    data = work.data
    seconds = {**work.seconds, "total": time.perf_counter() - work.began}
    evidence = _evidence(work)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "seamfast-gate-report",
        "tool": {"name": "seamfast", "version": __version__},
        "created": work.created.isoformat(timespec="seconds"),
        "seed": work.seed,
        "verdict": {"outcome": outcome, "exit_code": EXIT_CODES[outcome], "reasons": reasons},
        "policy": {
            "name": work.policy.name,
            "path": work.policy.path,
            "sha256": work.policy.sha256,
            "ignored": [] if inspection is None else list(inspection.ignored_policies),
            "rules": [] if work.decision is None else [rule.to_dict() for rule in work.decision.rules],
        },
        "model": _unknown_model(work.path) if inspection is None else model_values(inspection, received),
        "refusal": None if work.refusal is None else {"code": work.refusal.code, "reason": str(work.refusal)},
        "data": None
        if data is None or work.repair is None or work.audited is None
        else {
            "path": work.data_path,
            "n_samples": len(data),
            "num_classes": int(data.labels.max()) + 1 if data.num_classes is None else data.num_classes,
            "class_names": None if data.class_names is None else list(data.class_names),
            "n_repair": len(work.repair),
            "n_audit": len(work.audited),
        },
        **evidence,
        "sanitized": None,
        "statements": _statements(evidence["audit"], work.policy.audit.level),
        "limits": list(LIMITS),
        "warnings": list(work.warnings),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_bytes": _peak_memory(),
        "machine": machine(),
    }


def _unknown_model(path: Path) -> dict[str, Any]:
    return {
        "path": printable(path, 4096),
        "files": [],
        "architecture": None,
        "n_parameters": None,
        "n_bytes": None,
        "converted_from_pickle": False,
    }


def _verdict(work: _Work, dry_run: bool) -> tuple[str, list[str]]:
    if work.refusal is not None:
        return "refused", [str(work.refusal)]
    if work.stopped is not None:
        return "incomplete", [work.stopped]
    if dry_run:
        return "inconclusive", ["a dry run: no rule was evaluated"]
    if work.decision is None:
        return "incomplete", ["no rule was evaluated"]
    reasons = [f"{rule.id}: {rule.reason}" for rule in work.decision.rules if rule.outcome != "pass"]
    return work.decision.outcome, reasons or [f"all {len(work.decision.rules)} rules passed"]


def _statements(audit: Mapping[str, Any], level: float) -> list[str]:
    """What the audits say, each with its bound; never that a model is free of anything."""
    said = []
    for when, model in (("before", "model as received"), ("after", "sanitised model")):
        found = audit[when]
        if found is None:
            continue
        n = found["clean_accuracy"]["n_total"]
        if found["battery"]:
            worst = max(found["battery"], key=lambda result: result["rate"]["high"])
            low, high = worst["rate"]["low"], worst["rate"]["high"]
            more = f"; {worst['name']} moves at least {low:.1%} to class {worst['target']}" if low >= NOTABLE else ""
            bound = f"{100 * level:g} % bound, widened for all looks"
            said.append(
                f"{model}: no evidence above {high:.1%} ({bound}) on the battery of {len(found['battery'])} built-in "
                f"triggers, n = {n}{more}"
            )
        inversion = found["inversion"]
        if inversion is not None:
            index = inversion["anomaly_index"]
            whole = "" if inversion["complete"] else ", cut short by its time budget"
            if index is None:
                said.append(f"{model}: trigger inversion has no anomaly index with so few classes{whole}")
            else:
                side = "above" if index > inversion["threshold"] else "below"
                said.append(
                    f"{model}: trigger inversion has its smallest mask for class {inversion['suspect']}, with an "
                    f"anomaly index of {index:.2f}, {side} the usual {inversion['threshold']:g}{whole}"
                )
    return said


def _peak_memory() -> int:
    """Of this process since it began; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---- What is written. ----


def _free_folder(out: Path) -> Path:
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        raise InputError(f"out is {str(out)!r}, which is not empty; expected a folder that does not exist yet")
    return out


def _write(
    out: Path, report: dict[str, Any], pictures: Mapping[str, np.ndarray], received: Received | None, model: Any
) -> None:
    """All files into a folder beside ``out``, then one rename: a run that is killed leaves no half of them in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.{secrets.token_hex(8)}"
    partial.mkdir(mode=0o700)
    try:
        if model is not None and received is not None:
            _save_sanitized(partial / SANITIZED, received, model)
            report["sanitized"] = {
                "files": [_hashed(path, partial) for path in sorted((partial / SANITIZED).iterdir())]
            }
        documents = {
            "report.json": _json(report),
            "report.html": as_html(report, pictures),
            "summary.md": as_markdown(report).encode(),
            "report.sarif": _json(as_sarif(report)),
            "bom.json": _json(as_bom(report)),
        }
        if any(found["sha256"] is not None and found["role"] == "weights" for found in report["model"]["files"]):
            documents["attestation.json"] = _json(as_statement(report))  # else there is nothing to attest of
        for name, content in documents.items():
            _put(partial / name, content)
        partial.chmod(0o777 & ~_umask())
        os.rename(partial, out)  # over an empty folder too, and over nothing else
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _save_sanitized(folder: Path, received: Received, model: nn.Module) -> None:
    """The weights, under the names that the received file had, and what is needed to build them again."""
    chosen = received.architecture
    if chosen.source == "registered":
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in chosen.arguments.items()}
        save_model(folder, model, ModelDescription(chosen.name, **fields))
        return
    save_weights(folder, model, chosen.names_in_file(model))
    if chosen.source == "transformers":
        _put(folder / "config.json", _json({"model_type": chosen.name, **chosen.arguments}))
    else:
        built = {"source": chosen.source, "name": chosen.name, "arguments": dict(chosen.arguments)}
        _put(folder / "architecture.json", _json(built))


def _hashed(path: Path, root: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return {
        "name": path.relative_to(root).as_posix(),
        "n_bytes": path.stat().st_size,
        "sha256": digest.hexdigest(),
    }


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
