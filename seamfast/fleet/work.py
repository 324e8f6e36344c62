"""What a worker does for a job: sanitize a model or gate it, and say in one row what came of it."""

from __future__ import annotations

import errno
import json
import resource
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from seamfast.audits import disagreement, stamped_evidence
from seamfast.audits.sequela import check_audit_name
from seamfast.checks import as_seed
from seamfast.data import CleanSet
from seamfast.engine.precision import check_precision
from seamfast.errors import ConfigError, DataFileError, InputError, SeamfastError
from seamfast.evaluate import evaluate
from seamfast.fleet.clean_data import CleanData
from seamfast.fleet.fingerprint import digest_of, stamp_of
from seamfast.fleet.jobs import DATA_SETS
from seamfast.gating.pipeline import gate
from seamfast.gating.policy import read_policy
from seamfast.isolation.limits import is_out_of_memory
from seamfast.isolation.state import explained
from seamfast.methods import SeamConfig, config_class
from seamfast.metrics import largeness, rate_values
from seamfast.models.folder import Description, load_model, save_model
from seamfast.record import comparison
from seamfast.report import write_atomically
from seamfast.sanitize import SanitizeResult, sanitize
from seamfast.triggers import Trigger, load_triggers
from seamfast.untrusted import shown

REPORT, EVIDENCE = "report.json", "evidence.json"

_FULL = (errno.ENOSPC, errno.EDQUOT)

_shared: CleanData
_SPLITS = {"data": "train", "holdout": "test", "test": "test"}


def prepare(how: Mapping[str, Any]) -> None:
    """Once in a worker: one thread, and the folder of the machine's clean data."""
    global _shared
    torch.set_num_threads(1)
    _shared = CleanData(how["key"])


def finish() -> None:
    """Leave the clean data to other workers, or remove them."""
    _shared.close()


def why_wrong(settings: Mapping[str, Any]) -> str | None:
    """Why settings of a fleet cannot be used, as ``Error: message``; what the jobs themselves give is not known yet."""
    try:
        as_seed(settings.get("seed", 0))
        _config(settings)
        check_precision(settings.get("precision", "fp32"))
        for name in settings.get("audits", ()):
            check_audit_name(name)
        if "policy" in settings:
            read_policy(settings["policy"])
        _triggers(settings)
        share_data(settings)
    except (SeamfastError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise  # which is no mistake of the caller's
        return f"{type(error).__name__}: {error}"
    return None


def share_data(settings: Mapping[str, Any]) -> None:
    """Read the clean data of a ``sanitize`` job, unless this was done on this machine; a gate reads its own."""
    if "policy" not in settings:
        for name in _SPLITS:
            source, split = _named(settings, name)
            if source is not None:
                _shared.share(source, settings.get("root"), split)


def do(task: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job in this process, writing to ``task["place"]/out``.

    Returns:
        ``{"row", "digest", "stamp"}``, where the job came to an end: its own errors are results too. ``{"ended"}``: why
        it did not, and may be tried again.
    """
    settings = task["settings"]
    found: dict[str, str | None] = {"digest": None, "stamp": None}
    try:
        try:
            if task["memory_share"] is not None:
                torch.cuda.set_per_process_memory_fraction(task["memory_share"])
            found["stamp"] = stamp_of(settings["model"])
            found["digest"] = digest_of(settings["model"])
            row = (_gated if task["kind"] == "gate" else _sanitized)(settings, Path(task["place"]) / "out", task)
            if stamp_of(settings["model"]) != found["stamp"]:
                return {"ended": "the model's files changed while they were read"}
        except SeamfastError as error:
            row = {"outcome": "invalid", "reason": f"{type(error).__name__}: {error}"}
    except (MemoryError, OSError, torch.OutOfMemoryError) as error:
        return {"ended": explained(error)}
    except Exception as error:
        if is_out_of_memory(error):
            return {"ended": explained(error)}
        traceback.print_exc()
        row = {"outcome": "error", "reason": f"defect: {type(error).__name__}: {error}"}
    sys.stderr.flush()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"row": {"peak_memory_bytes": peak, **row}, **found}


# A model to sanitize


def _sanitized(settings: Mapping[str, Any], out: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    model, description = load_model(settings["model"])
    triggers, seed = _triggers(settings), settings.get("seed", 0)
    data = _data(settings, "data", description)
    assert data is not None
    if settings.get("fraction", 1) != 1:
        fraction = settings["fraction"]
        if not 0 < fraction <= 1:
            raise InputError(f"fraction is {fraction!r}; expected a number in (0, 1]")
        data = data.draw(fraction, seed=seed)
    holdout = _data(settings, "holdout", description)
    device = _device(settings, task)
    result = sanitize(
        model,
        data,
        holdout=holdout,
        triggers=triggers,
        seed=seed,
        device=device,
        precision=settings.get("precision", "fp32"),
        threads=1,
        trainable=settings.get("trainable"),
        time_budget_s=settings.get("time_budget_s"),
        audits=settings.get("audits", ()),
        progress=False,
        **_config(settings),
    )
    out.mkdir()
    test = _data(settings, "test", description)
    if test is not None:
        before, after = (
            evaluate(one, test, triggers=triggers, seed=seed, device=device, progress=False)
            for one in (model, result.model)
        )
        result.report["test"] = comparison(before, after)
    row = _row(result, description)
    if settings.get("evidence"):
        found = _evidence(model, result, test or holdout or _held_out(data, result), seed, device)
        write_atomically(out / EVIDENCE, (json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
        row |= _worst_evidence(found)
    result.report.save(out / REPORT)
    if result.accepted:
        save_model(out, result.model, description)
    return row


def _row(result: SanitizeResult, description: Description) -> dict[str, Any]:
    report = result.report
    row: dict[str, Any] = {
        "outcome": result.outcome,
        "reason": result.reason,
        "architecture": description.architecture,
        "n_holdout": report["data"]["n_holdout"],
        "fidelity": report["holdout"]["fidelity"],
        "report": REPORT,
    }
    for when in ("before", "after"):
        row[f"accuracy_{when}"], row[f"asr_{when}"] = _accuracy_and_asr(report["holdout"][when])
        if "test" in report:
            row[f"test_accuracy_{when}"], row[f"asr_{when}"] = _accuracy_and_asr(report["test"][when])
    if row["accuracy_before"] is not None and row["accuracy_after"] is not None:
        row["accuracy_lost"] = row["accuracy_before"] - row["accuracy_after"]
    if "test" in report:
        row["fidelity"] = report["test"]["fidelity"]
    return row


def _accuracy_and_asr(values: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
    if values is None:
        return None, None
    rates = [trigger["attack_success_rate"]["value"] for trigger in values["triggers"]]
    known = [rate for rate in rates if rate is not None]
    return values["clean_accuracy"]["value"], max(known, default=None)


def _evidence(model: Any, result: SanitizeResult, data: CleanSet, seed: int, device: str) -> dict[str, Any]:
    """Of both models on the same samples: where the battery moves them, and how often the two disagree."""
    how: dict[str, Any] = {"seed": seed, "device": device, "progress": False}
    found: dict[str, Any] = {"n": len(data), "battery": {}}
    for when, one in (("before", model), ("after", result.model)):
        found["battery"][when] = [
            {"name": r.name, "target": r.target, "rate": rate_values(r.rate), "largeness": largeness(r.rate)[0]}
            for r in stamped_evidence(one, data, **how)
        ]
    found["disagreement"] = [
        {"name": r.name, "rate": rate_values(r.rate), "rate_clean": rate_values(r.rate_clean)}
        for r in disagreement(model, result.model, data, **how)
    ]
    return found


def _worst_evidence(found: Mapping[str, Any]) -> dict[str, Any]:
    row = {f"battery_{when}": _largest(parts) for when, parts in found["battery"].items()}
    return row | {"disagreement": _largest(found["disagreement"])}


def _largest(parts: Any) -> float | None:
    return max((part["rate"]["value"] for part in parts if part["rate"]["value"] is not None), default=None)


def _held_out(data: CleanSet, result: SanitizeResult) -> CleanSet:
    """The samples of ``data`` that were not trained on."""
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[result.recovery] = False
    return data.subset(kept.nonzero().flatten())


# A model to gate


def _gated(settings: Mapping[str, Any], out: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    result = gate(
        settings["model"],
        settings["data"],
        policy=settings["policy"],
        out=out,
        root=settings.get("root"),
        split=settings.get("split"),
        architecture=settings.get("architecture"),
        arguments=settings.get("arguments"),
        allow_pickle=settings.get("allow_pickle", False),
        seed=settings.get("seed", 0),
        device=_device(settings, task),
        progress=False,
    )
    if result.error is not None and (is_out_of_memory(result.error) or isinstance(result.error, OSError)):
        raise result.error
    report = result.report
    architecture, audits = report["model"]["architecture"], report["audit"]
    row: dict[str, Any] = {
        "outcome": {"refused": "invalid", "incomplete": "error"}.get(result.outcome, result.outcome),
        "reason": "; ".join(report["verdict"]["reasons"]),
        "architecture": None if architecture is None else architecture["name"],
        "report": "report.html",
    }
    for when in ("before", "after"):
        if audits[when] is not None:
            row[f"accuracy_{when}"] = audits[when]["clean_accuracy"]["value"]
            row["n_holdout"] = audits[when]["clean_accuracy"]["n_total"]
            row[f"battery_{when}"] = _largest(audits[when]["battery"])
    if audits["change"] is not None:
        row["accuracy_lost"] = audits["change"]["accuracy_lost"]["value"]
    if report["disagreement"]:
        row["disagreement"] = _largest(report["disagreement"])
    return row


# What both take


def _config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``sanitize`` that say how."""
    method = settings.get("method", "seam")
    of = config_class(method)
    config = of.from_dict(settings["config"]) if "config" in settings else None
    preset = settings.get("preset")
    if preset is not None:
        if of is not SeamConfig or config is not None:
            raise ConfigError(f"preset is {preset!r}; expected it with method 'seam' and without config")
        SeamConfig.preset(preset)
    return {"method": method, "config": config, "preset": preset}


def _triggers(settings: Mapping[str, Any]) -> tuple[Trigger, ...]:
    if "triggers" not in settings:
        return ()
    try:
        return load_triggers(settings["triggers"])
    except OSError as error:
        raise DataFileError(
            f"{shown(settings['triggers'])} cannot be read ({error.strerror}); expected triggers"
        ) from error


def _named(settings: Mapping[str, Any], name: str) -> tuple[str | None, str | None]:
    """The source of ``data``, ``holdout`` or ``test``, and its split; ``(None, None)`` where there is none."""
    own = f"{name}_split" if name != "data" else "split"
    source, split = settings.get(name), settings.get(own)
    if source is None and split is None:
        return None, None
    source = source or settings["data"]
    return source, split or (_SPLITS[name] if source in DATA_SETS else None)


def _data(settings: Mapping[str, Any], name: str, description: Description) -> CleanSet | None:
    source, split = _named(settings, name)
    return None if source is None else _shared.get(source, settings.get("root"), split, description)


def _device(settings: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    return str(settings.get("device", "cuda" if task["cuda"] else "cpu"))
