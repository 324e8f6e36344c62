"""``gate``: an untrusted model folder, clean data and a policy in; a verdict, its evidence and a sanitized folder out.

The order of things, straight down: check the call, read the policy, inspect the model's files, load the data, receive
the weights, audit, sanitize, audit again, decide by the policy, write, read again what was written. Whatever goes wrong
on the way ends in a report with its own outcome; only a policy whose every rule was evaluated and passed ends in 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.audits.sequela import Given, sequela_of
from seamfast.checks import as_seed
from seamfast.data import CleanSet, Split, split_by_class
from seamfast.data.readers.load import check_source
from seamfast.engine.model import as_device, check_weights, resolve_device
from seamfast.engine.subject import Subject, place
from seamfast.errors import DataFileError, InputError, ModelError, PolicyError
from seamfast.gating.architecture import Architecture, parse_architecture
from seamfast.gating.audit import audit, change, disagreement, sample_pictures
from seamfast.gating.clean_samples import clean_samples
from seamfast.gating.clean_texts import MAX_DATA_BYTES
from seamfast.gating.decision import decide, metrics_of
from seamfast.gating.folder import Inspection, Received, digest_of, inspect, name_of, receive, resolved
from seamfast.gating.import_guard import nothing_imported_from, refuse_imported
from seamfast.gating.interrupts import Interrupts, noticed
from seamfast.gating.output import Staging, free_folder
from seamfast.gating.overrides import NO_OVERRIDES, Overrides
from seamfast.gating.places import Shortened, check_places
from seamfast.gating.policy import Policy, read_policy
from seamfast.gating.provenance.attestation import sign_folder, signing_key_sha256
from seamfast.gating.provenance.keys import Verifier, read_verifier
from seamfast.gating.provenance.model_signature import ModelSignature, read_model_signature, signature_path
from seamfast.gating.report import GateRun, gate_report
from seamfast.gating.sentences import found_sentences
from seamfast.gating.written import NotAsMeasuredError, check_written, outputs
from seamfast.intake.refusal import RefusedError
from seamfast.isolation.state import explained
from seamfast.sanitize import sanitize
from seamfast.untrusted import listed, printable, printable_value


@dataclass(frozen=True)
class GateResult:
    """What the gate decided, and on what.

    Attributes:
        outcome: ``"pass"``, ``"fail"``, ``"inconclusive"``, ``"refused"`` or ``"incomplete"``.
        exit_code: 0 for pass, 1, 3, 3 and 2; all but 0 block.
        report: a strict JSON document, by ``schema/gate-report-v1.json``.
        model: the sanitized model, where every rule passed; else ``None``.
        error: what ended the run, where it is ``"incomplete"``: lack of memory, or a defect in code that was called.
    """

    outcome: str
    exit_code: int
    report: dict[str, Any]
    model: nn.Module | None = None
    error: BaseException | None = None


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
    image_size: int | Sequence[int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    num_classes: int | None = None,
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
        data: clean samples with labels: a path or a name as for ``seamfast.load``, or a ``CleanSet``. Texts are
            encoded by the tokenizer in the model's folder, and a ``CleanSet`` of them is decoded by it.
        policy: a TOML file, see ``docs/policy.md``. Only this one is read.
        out: a folder that does not exist yet, or is empty; it appears whole, by one rename, at the end. ``None``:
            nothing is written.
        root, split: as for ``seamfast.load``: the folder of a data set given by name; ``"train"`` or ``"test"``.
        architecture: ``None``: what the folder's own ``model.json`` or ``config.json`` selects from an allow-list; else
            ``registered:NAME``, ``module:function`` (operator's code), ``timm:NAME``, ``torchvision:NAME``, or ``hf``
            for a ``config.json`` of transformers.
        arguments: of the architecture.
        image_size: one number or (H, W) in pixels: of the model's images, in place of what the folder says; images of
            another size are resized to it.
        mean, std: normalization on the [0, 1] pixel scale, one number or one for each channel, in the same way.
        num_classes: logits of the model; a folder that says otherwise is refused.
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
        InputError: e.g. ``out is 'gate', which is not empty; expected a folder that does not exist yet``, or ``policy
            is 'model/policy.toml', which lies in the model's folder; expected another place``.
        OSError: the output cannot be written or signed; nothing is left of it.
        KeyboardInterrupt: on Ctrl-C; nothing is written. One that code of an architecture raises ends in a report.
    """
    overrides = Overrides.of(image_size, mean, std, num_classes)
    _check_call(model, data, policy, out, root, split, architecture, arguments, overrides, seed, device)
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
    if rules.untreated == "allowed":
        run.warnings.append("the policy allows untreated models: a pass does not say that the model was sanitized")
    in_files = None if isinstance(data, CleanSet) else data
    sanitized: nn.Module | None = None
    with noticed() as interrupts, Staging(None if dry_run else folder) as staging:
        shortened = Shortened(run.path, in_files, root, policy, out)
        with _ending_in_report(run, interrupts, shortened), ExitStack() as guards:
            folder_of_model = str(resolved(run.path))
            refuse_imported(folder_of_model)
            guards.enter_context(nothing_imported_from(folder_of_model))
            with run.timed("inspect"):
                run.inspection = _inspected(run.path, architecture, arguments, overrides, allow_pickle)
                run.warnings += _about_files(run.inspection)
                run.warnings += _about_tokenizer(run.inspection)
                signed = None if verifier is None else _signature(run, run.inspection, verifier, signature)
                samples = _clean_data(run, data, root, split, run.inspection.architecture)
                parts = _divided(run, samples, data, split)
                if not dry_run:
                    run.received = receive(run.inspection)
                    if signed is not None:
                        _compare(run, run.inspection, run.received, signed)
                    check_weights(run.received.model)
                    _check_parts(samples.labels, parts, place(run.received.model, samples.subset([0]), "cpu"))
            if run.received is not None:
                repair_set, audit_set = samples.subset(parts.recovery), samples.subset(parts.holdout)
                sanitized, measured = _measure(run, run.received.model, repair_set, audit_set, device, progress)
                run.decision = decide(rules, metrics_of(run.evidence, modality=samples.modality.name))
                if run.decision.outcome == "pass":
                    with run.timed("audit"):
                        check_written(
                            staging.save_model(run.received, sanitized),
                            sanitized,
                            run.received.architecture,
                            audit_set,
                            measured,
                            run.evidence["sanitize"]["model"]["digest_after"],
                            architecture=architecture,
                            arguments=arguments,
                            overrides=overrides,
                            seed=seed,
                        )
        if interrupts.came:  # whatever became of the exception
            raise KeyboardInterrupt("interrupted")
        report = gate_report(run, dry_run=dry_run)
        verdict = report["verdict"]
        if verdict["outcome"] != "pass":
            sanitized = None
            staging.discard_model()
        if not dry_run:
            staging.finish(report, run.pictures, sign)
    return GateResult(verdict["outcome"], verdict["exit_code"], report, sanitized, run.error)


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


def _check_call(
    model: Any,
    data: Any,
    policy: Any,
    out: Any,
    root: Any,
    split: str | None,
    architecture: str | None,
    arguments: Mapping[str, Any] | None,
    overrides: Overrides,
    seed: int,
    device: str | torch.device,
) -> None:
    """Raise ``InputError`` for what is wrong with the call itself, before the model or the data are looked at."""
    places = {"policy": policy, "root": root}
    if not isinstance(data, CleanSet):
        check_source(data, root=root, split=split)
        places["data"] = data if os.path.lexists(data) else None  # else it is a name
    check_places(model, places, out)
    parse_architecture(architecture, arguments or {}, overrides)
    as_seed(seed)
    if device != "auto":
        as_device(device)


def _inspected(
    path: Path,
    architecture: str | None,
    arguments: Mapping[str, Any] | None,
    overrides: Overrides,
    allow_pickle: bool,
) -> Inspection:
    try:
        return inspect(
            path, architecture=architecture, arguments=arguments, overrides=overrides, allow_pickle=allow_pickle
        )
    except DataFileError:
        raise
    except InputError as error:
        if architecture is not None or overrides != NO_OVERRIDES:
            raise _WrongCall(error) from error
        raise RefusedError("architecture", str(error)) from error  # what the folder asks for is not installed


def _about_files(inspection: Inspection) -> Iterator[str]:
    """A warning for each kind of files in the model folder that was not read."""
    for name in inspection.ignored_policies:
        yield f"{name} in the model folder was not read: the policy is the one that was given"
    if inspection.not_read:
        yield (
            f"the model folder holds files that other tools may run, open or unpack: "
            f"{listed(list(inspection.not_read))}; they were not read and are not in the sanitized folder"
        )


def _about_tokenizer(inspection: Inspection) -> Iterator[str]:
    """A warning on special tokens, which a trigger could be declared to be."""
    text = inspection.architecture.text
    if text is not None and text.unusual:
        names = listed([printable_value(token) for token in text.unusual], 10)
        yield f"the tokenizer has special tokens that are not usual, which no search inserts: {names}"


class _WrongCall(Exception):
    """Its ``error`` is to be raised as it is: the caller's architecture cannot be used."""

    def __init__(self, error: InputError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def _ending_in_report(run: GateRun, interrupts: Interrupts, shortened: Shortened) -> Iterator[None]:
    """Whatever goes wrong is written down in ``run``, but for a signal and a wrong call.

    Code of the operator, such as an architecture, may raise anything, ``SystemExit`` and ``KeyboardInterrupt`` too.
    """
    try:
        yield
    except _WrongCall as wrong:
        raise wrong.error from wrong.__cause__
    except InputError as error:
        if isinstance(error, RefusedError):
            code = error.code
        elif isinstance(error, DataFileError):
            code = "data" if run.inspection is not None else "model"
        else:
            code = "model" if isinstance(error, ModelError) else "input"
        run.refusal = RefusedError(code, shortened(str(error)))
    except NotAsMeasuredError as error:
        run.stopped = shortened(str(error))
    except BaseException as error:
        if interrupts.came:  # a report of half a run is no result
            raise KeyboardInterrupt(str(error)) from error
        run.error = error
        run.stopped = shortened(f"could not complete: {explained(error)}")


def _clean_data(run: GateRun, data: Any, root: Any, split: str | None, architecture: Architecture) -> CleanSet:
    """The clean samples, as the model takes them: normalized images, or encoded texts."""
    samples, run.n_truncated = clean_samples(data, root, split, architecture, max_bytes=MAX_DATA_BYTES)
    if run.n_truncated and architecture.text is not None:
        longest = architecture.text.vocabulary.max_length
        cut = f"{run.n_truncated:,} of {len(samples):,} texts have more than {longest:,} tokens"
        run.warnings.append(f"{cut}, the most that the model takes: they were cut")
    if architecture.input_shape is not None and samples.sample_shape != architecture.input_shape:
        expected = f"expected {architecture.input_shape} (C, H, W), as the model takes them"
        raise RefusedError("data", f"the images are {samples.sample_shape}; {expected}")
    n_classes = architecture.num_classes
    largest = int(samples.labels.max())
    if n_classes is not None and largest >= n_classes:
        message = f"labels hold {largest}; expected integers in [0, {n_classes}) for the model's classes"
        raise RefusedError("data", message)
    if int((samples.labels.bincount() > 0).sum()) < 2:
        raise RefusedError("data", f"data hold one class only ({largest}); expected at least two")
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
        identities=samples.contents(),
    )
    n_distinct = len(set(samples.identities()))
    if n_distinct < len(samples):
        found = f"of {len(samples):,} clean samples {n_distinct:,} are distinct"
        run.warnings.append(f"{found}: repeats were used to repair, and audited once")
    run.data = {
        "path": "(in memory)" if isinstance(data, CleanSet) else os.fspath(data) + (f", {split}" if split else ""),
        "n_samples": len(samples),
        "sha256": samples.sha256(),
        "n_distinct": n_distinct,
        "num_classes": int(samples.labels.max()) + 1 if samples.num_classes is None else samples.num_classes,
        "class_names": None if samples.class_names is None else list(samples.class_names),
        "n_repair": len(parts.recovery),
        "n_audit": len(parts.holdout),
        "modality": samples.modality.name,
        **({} if run.n_truncated is None else {"n_truncated": run.n_truncated}),
    }
    if not len(parts.holdout):
        message = f"data hold {len(samples)} samples, no two different ones of a class"
        raise RefusedError("data", f"{message}; expected some to repair, some to audit")
    return parts


def _check_parts(labels: Tensor, parts: Split, model: Subject) -> None:
    """Refuse, before minutes are spent on audits, too few samples for ``sanitize`` to begin with."""
    n, num_classes = len(parts.recovery), model.num_classes
    if n < num_classes:
        message = f"data hold {n} samples to repair with; expected at least one for each of {num_classes} classes"
        raise RefusedError("data", message)
    if int(labels[parts.recovery].bincount().max()) < 2:
        message = f"data hold {n} samples to repair with, no class twice; expected two of a class, to hold one out"
        raise RefusedError("data", message)


def _measure(
    run: GateRun,
    received: nn.Module,
    repair_set: CleanSet,
    audit_set: CleanSet,
    device: str | torch.device,
    progress: bool | None,
) -> tuple[nn.Module, Tensor]:
    """Audit, sanitize, audit again; the evidence is added to ``run`` as it comes. The sanitized model, its outputs."""
    policy, audits = run.policy, run.evidence["audit"]
    options: dict[str, Any] = {"seed": run.seed, "progress": progress}
    target = resolve_device(device, received)
    if target.type == "cuda":  # without it, PyTorch's deterministic mode raises at the first product of matrices
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    received.to(target)
    with run.timed("audit"):
        before = audit(received, audit_set, policy.audit, **options)
        audits["before"] = before.values
        run.picture("samples", sample_pictures(audit_set))
        run.picture("patterns_before", before.patterns)
    with run.timed("sanitize"):
        result = sanitize(
            received,
            repair_set,
            precision="fp32",
            deterministic=True,
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
        answers = outputs(result.model, audit_set, seed=run.seed)
        after = audit(result.model, audit_set, policy.audit, earlier=before.search, **options)
        audits["after"] = after.values
        audits["change"] = change(before.is_right, after.is_right, policy.audit.level)
        run.picture("patterns_after", after.patterns)
        if before.search is not None and before.search.complete:
            run.evidence["sentences"] += found_sentences(received, result.model, audit_set, before.search)
        values, examples, texts = disagreement(received, result.model, audit_set, level=policy.audit.level, **options)
        run.evidence["disagreement"] = values
        run.evidence["sentences"] += texts
        run.picture("disagreement", examples)
        if policy.audits:
            clean = repair_set.subset(result.recovery)
            given = Given(audit_set, clean=clean, level=policy.audit.level, device=target, **options)
            found = sequela_of(received, result.model, policy.audits, given, None, raises=False)
            run.evidence["sequela"] = found.to_dict()
            run.warnings += [f"the audit {name!r} was left out: {why}" for name, why in found.left_out.items()]
    return result.model, answers
