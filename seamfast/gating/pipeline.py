"""``gate``: an untrusted model folder, clean data and a policy in; a verdict, its evidence and a sanitized folder out.

The order of things, straight down: read the policy, inspect the model's files, load the data, receive the weights,
audit, sanitize, audit again, decide by the policy, write. Whatever goes wrong on the way ends in a report with its own
outcome; only a policy whose every rule was evaluated and passed ends in 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seamfast.data import CleanSet, Split, split_by_class
from seamfast.data.readers import load
from seamfast.engine.model import resolve_device
from seamfast.errors import DataFileError, InputError, ModelError, PolicyError, SanitizeInterrupted
from seamfast.gating.architecture import Architecture
from seamfast.gating.audit import audit, change, disagreement, sample_pictures
from seamfast.gating.decision import decide, metrics_of
from seamfast.gating.folder import Inspection, Received, digest_of, inspect, name_of, receive
from seamfast.gating.output import free_folder, write
from seamfast.gating.policy import Policy, read_policy
from seamfast.gating.provenance.attestation import sign_folder, signing_key_sha256
from seamfast.gating.provenance.keys import Verifier, read_verifier
from seamfast.gating.provenance.model_signature import ModelSignature, read_model_signature, signature_path
from seamfast.gating.report import GateRun, gate_report
from seamfast.intake.refusal import RefusedError
from seamfast.sanitize import sanitize
from seamfast.untrusted import printable


@dataclass(frozen=True)
class GateResult:
    """What the gate decided, and on what.

    Attributes:
        outcome: ``"pass"``, ``"fail"``, ``"inconclusive"``, ``"refused"`` or ``"incomplete"``.
        exit_code: 0 for pass, 1, 3, 3 and 2; all but 0 block.
        report: a strict JSON document, by ``schema/gate-report-v1.json``.
        model: the sanitized model, where every rule passed; else ``None``.
    """

    outcome: str
    exit_code: int
    report: dict[str, Any]
    model: nn.Module | None = None


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
    verify_key: str | os.PathLike[str] | None = None,
    verify_certificate: str | os.PathLike[str] | None = None,
    signature: str | os.PathLike[str] | None = None,
    sign_key: str | os.PathLike[str] | None = None,
    signed_by: str | None = None,
    dry_run: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> GateResult:
    """``policy(audit(sanitize(load(model))))``: inspect, audit, sanitize, audit again, decide, write.

    The clean data are divided by class: one part repairs the model; both audits measure on the other, which no step of
    the repair reads. The model folder is untrusted: no code in it runs, nothing in it chooses the policy, and what is
    not safetensors is refused.

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
        verify_key, verify_certificate: a public key, or certificates, as PEM: refuse a model whose signature does not
            verify with it (``seamfast[sign]``).
        signature: of the model, by OpenSSF model signing; ``None``: ``model.sig`` in its folder.
        sign_key: a private key as PEM, EC P-256 or Ed25519, for ``attestation.dsse.json`` and ``sanitized/model.sig``.
            It is read before the run and again after it, and not kept meanwhile.
        signed_by: in place of ``sign_key``, for a caller that signs the output itself, by ``sign_folder``: what
            ``signing_key_sha256`` returned.
        dry_run: read the policy, inspect the files, load the data; no weights, no run, nothing written. The outcome is
            ``"inconclusive"`` at best.
        seed: of the division, the audits and the run.
        device: as for ``seamfast.sanitize``.
        progress: bars on stderr; ``None``: where it is a terminal.

    Returns:
        GateResult. Refusals and failures are results too; what is wrong with the call itself raises.

    Raises:
        PolicyError: the policy cannot be used, or a rule of it needs a key that is not given.
        OSError: the output cannot be written or signed; nothing is left of it.
        InputError: e.g. ``out is 'gate', which is not empty; expected a folder that does not exist yet``.
        KeyboardInterrupt: on Ctrl-C; nothing is written.
    """
    rules = read_policy(policy)
    folder = None if out is None else free_folder(Path(out))
    verifier = read_verifier(verify_key, verify_certificate, model=model)
    if signature is not None and verifier is None:
        raise InputError("signature is given and no key; expected verify_key or verify_certificate with it")
    if sign_key is not None and folder is None:
        raise InputError("sign_key is given and out is None; expected a folder for what is signed")
    _check_keys(rules, verifier, sign_key or signed_by)
    run = GateRun(Path(model), rules, seed, warnings=list(rules.warnings))
    sign = None
    if sign_key is not None:
        signed_by, warnings = signing_key_sha256(sign_key, model=model)
        run.warnings += warnings
        sign = partial(sign_folder, path=sign_key, sha256=signed_by, model=model)
    if signed_by is not None:
        run.evidence["provenance"]["attestation"] = {"key_sha256": signed_by}
    sanitized: nn.Module | None = None
    try:
        with run.timed("inspect"):
            run.inspection = inspect(
                run.path, architecture=architecture, arguments=arguments, allow_pickle=allow_pickle
            )
            for name in run.inspection.ignored_policies:
                run.warnings.append(f"{name} in the model folder was not read: the policy is the one that was given")
            signed = None if verifier is None else _signature(run, run.inspection, verifier, signature)
            samples = _clean_data(data, root, split, run.inspection.architecture)
            parts = _divided(run, samples, data, split)
            if not dry_run:
                run.received = receive(run.inspection)
                if signed is not None:
                    _compare(run, run.inspection, run.received, signed)
        if run.received is not None:
            repair_set, audit_set = samples.subset(parts.recovery), samples.subset(parts.holdout)
            sanitized = _measure(run, run.received.model, repair_set, audit_set, device, progress)
            run.decision = decide(rules, metrics_of(run.evidence))
    except RefusedError as error:
        run.refusal = error
    except DataFileError as error:
        run.refusal = RefusedError("data" if run.inspection is not None else "model", str(error))
    except ModelError as error:
        run.refusal = RefusedError("model", str(error))
    except SanitizeInterrupted as stop:  # an audit under way is no result, as little as a report of half of one
        raise KeyboardInterrupt(str(stop)) from stop
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:
        run.stopped = f"could not complete: {type(error).__name__}: {error}"
    report = gate_report(run, dry_run=dry_run)
    verdict = report["verdict"]
    if verdict["outcome"] != "pass":
        sanitized = None
    if folder is not None and not dry_run:
        write(folder, report, run.pictures, run.received, sanitized, sign)
    return GateResult(verdict["outcome"], verdict["exit_code"], report, sanitized)


def _check_keys(policy: Policy, verifier: Verifier | None, sign_key: object) -> None:
    """A rule that no run can meet is found before the run."""
    given = {"provenance.verified": verifier is not None, "attestation.signed": sign_key is not None}
    wanted = {"provenance.verified": "verify_key or verify_certificate", "attestation.signed": "sign_key"}
    for rule in policy.rules:
        if not given.get(rule.metric, True):
            raise PolicyError(f"rule '{rule.id}' requires {rule.metric}; expected {wanted[rule.metric]}")


def _signature(
    run: GateRun, inspection: Inspection, verifier: Verifier, given: str | os.PathLike[str] | None
) -> ModelSignature:
    """The model's signature, verified, and over every file that is used; the digests are still to be compared."""
    path = signature_path(run.path, given)
    values = {"path": name_of(inspection, path) or printable(path.name), "by": verifier.kind, "verified": False}
    run.evidence["provenance"]["signature"] = values | dict.fromkeys(("key_sha256", "subject", "n_files"))
    signed = read_model_signature(path, verifier)
    signed.check_names(inspection.files, name_of(inspection, path), alone=run.path.is_file())
    signer = {"key_sha256": signed.signer.key.sha256, "subject": signed.signer.subject, "verified": None}
    run.evidence["provenance"]["signature"] |= signer
    return signed


def _compare(run: GateRun, inspection: Inspection, received: Received, signed: ModelSignature) -> None:
    """The bytes that were used are those that were signed."""
    values = run.evidence["provenance"]["signature"]
    values["verified"] = False
    n_files = signed.check_digests(received.files, partial(digest_of, inspection), alone=run.path.is_file())
    values |= {"verified": True, "n_files": n_files}


def _clean_data(data: Any, root: Any, split: str | None, architecture: Architecture) -> CleanSet:
    """The clean images, normalized as the model takes them."""
    if isinstance(data, CleanSet):
        samples = data
    else:
        mean, std = architecture.mean or (0.0,), architecture.std or (1.0,)
        samples = load(os.fspath(data), root=root, split=split, mean=mean, std=std)
    if architecture.input_shape is not None and samples.sample_shape != architecture.input_shape:
        expected = f"expected {architecture.input_shape} (C, H, W), as the model takes them"
        raise RefusedError("data", f"the images are {samples.sample_shape}; {expected}")
    n_classes = architecture.num_classes
    largest = int(samples.labels.max())
    if n_classes is not None and largest >= n_classes:
        message = f"labels hold {largest}; expected integers in [0, {n_classes}) for the model's classes"
        raise RefusedError("data", message)
    if int(samples.labels.bincount().max()) < 2:
        message = f"data hold {len(samples)} samples, no class twice; expected some to repair, some to audit"
        raise RefusedError("data", message)
    return samples


def _divided(run: GateRun, samples: CleanSet, data: Any, split: str | None) -> Split:
    """Which samples repair and which audit; what the report holds of the data is added to ``run``."""
    parts = split_by_class(
        samples.labels,
        holdout_fraction=run.policy.audit.share,
        forget_fraction=1.0,
        seed=run.seed,
        identities=samples.identities(),
    )
    run.data = {
        "path": "(in memory)" if isinstance(data, CleanSet) else os.fspath(data) + (f", {split}" if split else ""),
        "sha256": samples.sha256(),
        "n_samples": len(samples),
        "num_classes": int(samples.labels.max()) + 1 if samples.num_classes is None else samples.num_classes,
        "class_names": None if samples.class_names is None else list(samples.class_names),
        "n_repair": len(parts.recovery),
        "n_audit": len(parts.holdout),
    }
    return parts


def _measure(
    run: GateRun,
    received: nn.Module,
    repair_set: CleanSet,
    audit_set: CleanSet,
    device: str | torch.device,
    progress: bool | None,
) -> nn.Module:
    """Audit, sanitize, audit again; the evidence is added to ``run`` as it comes. The sanitized model."""
    policy, audits = run.policy, run.evidence["audit"]
    options: dict[str, Any] = {"seed": run.seed, "progress": progress}
    received.to(resolve_device(device, received))
    with run.timed("audit"):
        before = audit(received, audit_set, policy.audit, **options)
        audits["before"] = before.values
        run.picture("samples", sample_pictures(audit_set))
        run.picture("patterns_before", before.patterns)
    with run.timed("sanitize"):
        result = sanitize(
            received,
            repair_set,
            method=policy.sanitize.method,
            preset=policy.sanitize.preset,
            config=policy.sanitize.config,
            time_budget_s=policy.sanitize.time_budget_s,
            **options,
        )
        run.evidence["sanitize"] = dict(result.report)
        run.warnings += result.report["warnings"]
        if not result.accepted:
            run.warnings.append(f"the sanitization was {result.outcome}: {result.reason}")
    with run.timed("audit"):
        after = audit(result.model, audit_set, policy.audit, **options)
        audits["after"] = after.values
        audits["change"] = change(before.is_right, after.is_right, policy.audit.level)
        run.picture("patterns_after", after.patterns)
        values, examples = disagreement(received, result.model, audit_set, level=policy.audit.level, **options)
        run.evidence["disagreement"] = values
        run.picture("disagreement", examples)
    return result.model
