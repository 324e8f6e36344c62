"""Signatures: of the model on the way in, of the attestation and the sanitized model on the way out."""

from __future__ import annotations

import base64
import datetime
import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import seamfast
from seamfast.cli import main
from seamfast.errors import InputError, PolicyError
from seamfast.gating import pipeline
from seamfast.gating.decision import metrics_of
from seamfast.gating.folder import ModelFile
from seamfast.gating.pipeline import GateResult, gate
from seamfast.gating.provenance import keys, model_signature
from seamfast.gating.provenance.attestation import sign_folder, signing_key_sha256
from seamfast.gating.provenance.bundle import model_signature as bundle_of
from seamfast.gating.provenance.dsse import PAYLOAD_TYPE, pae
from seamfast.gating.provenance.keys import TrustedKey, read_signing_key, read_verifier
from seamfast.gating.provenance.model_signature import MAX_SIGNATURE_BYTES, read_model_signature
from seamfast.intake.refusal import RefusedError
from tests.gating.conftest import policy_in
from tests.gating.examples import example
from tests.gating.test_schema import VALIDATOR

pytest.importorskip("cryptography.x509.verification", reason='signatures need "seamfast[sign]"')

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Policies = Callable[..., Path]
Change = Callable[[dict[str, Any]], Any]
SIGNED_RULE = '[[rule]]\nid = "{}"\nmetric = "{}"\nthreshold = true\ngreater_is_better = true\n'
NOWHERE = Path("/nowhere")


def write_key(path: Path, key: Any, password: bytes | None = None) -> Path:
    """The private key in ``path``, of mode 0600, and the public one beside it, with the suffix ``.pub``."""
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, how))
    path.chmod(0o600)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


KINDS: dict[str, Callable[[], Any]] = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.fixture(scope="module", params=KINDS)
def any_key(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_key(tmp_path_factory.mktemp("keys") / f"{request.param}.pem", KINDS[request.param]())


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_key(tmp_path_factory.mktemp("keys") / "key.pem", KINDS["p256"]())


def digests(folder: Path, *left_out: str) -> dict[str, str]:
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items() if name not in left_out}


def signed(folder: Path, key: Path, change: Change | None = None, **outer: Any) -> Path:
    """Sign the files of ``folder`` as ``model.sig``, the statement changed before it is signed."""
    signing = read_signing_key(key, model=NOWHERE)
    bundle = json.loads(bundle_of("model", digests(folder, "model.sig"), signing))
    if change is not None:
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(statement)
        seal(bundle, json.dumps(statement).encode(), signing)
    path = folder / "model.sig"
    path.write_text(json.dumps(bundle | outer))
    return path


def seal(bundle: dict[str, Any], payload: bytes, signing: keys.SigningKey) -> None:
    envelope = bundle["dsseEnvelope"]
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(signing.sign(pae(payload))).decode()


@pytest.fixture
def model(planted: Path, tmp_path: Path) -> Path:
    """A copy of the planted model, which tests may change."""
    return Path(shutil.copytree(planted, tmp_path / "incoming"))


def looked_at(model: Path, rules: Path, key: Path, **options: Any) -> GateResult:
    return gate(model, "digits", policy=rules, verify_key=key.with_suffix(".pub"), progress=False, **options)


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a run where the audit would begin: everything that is refused is refused before."""

    def stop(*_: Any, **__: Any) -> None:
        raise MemoryError("stopped here")

    monkeypatch.setattr(pipeline, "audit", stop)


# On the way in.


@pytest.mark.usefixtures("sanitized_once")
def test_signed_model_passes_and_the_report_names_the_key(
    model: Path, any_key: Path, policy: Policies, tmp_path: Path
) -> None:
    rules = policy()
    rules.write_text(rules.read_text() + SIGNED_RULE.format("signed", "provenance.verified"))
    signed(model, any_key)
    result = looked_at(model, rules, any_key)
    assert result.outcome == "pass"
    public = serialization.load_pem_public_key(any_key.with_suffix(".pub").read_bytes())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    digest = hashlib.sha256(public.public_bytes(serialization.Encoding.DER, form)).hexdigest()
    assert result.report["provenance"] == {
        "signature": {
            "path": "model.sig",
            "by": "key",
            "verified": True,
            "key_sha256": digest,
            "subject": None,
            "n_files": 2,
        },
        "attestation": None,
    }
    assert [rule["n"] for rule in result.report["policy"]["rules"] if rule["metric"] == "provenance.verified"] == [2]
    assert result.report["statements"][0] == (
        f"model as received: signed with key sha256:{digest}; all 2 files are as they were signed"
    )
    VALIDATOR.validate(result.report)


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights changed": (lambda m: flip(m / "model.safetensors"), "model.safetensors is not as it was signed: its SHA-"),
    "description changed": (
        lambda m: (m / "model.json").write_bytes((m / "model.json").read_bytes() + b" "),
        "model.json is not as it was signed",
    ),
    "unused file changed": (lambda m: (m / "notes.txt").write_text("other"), "notes.txt is not as it was signed: its"),
    "file added": (lambda m: (m / "more.txt").write_text(""), "more.txt is not covered by {sig}; expected a signature"),
    "file removed": (lambda m: (m / "notes.txt").unlink(), "{sig} covers notes.txt; expected no file that is not in "),
    "file renamed": (lambda m: (m / "notes.txt").rename(m / "n.txt"), "n.txt is not covered by {sig}; expected"),
    "no signature": (lambda m: (m / "model.sig").unlink(), "{sig}: no such file; looked for the signature of the"),
    "signature empty": (lambda m: (m / "model.sig").write_text(""), "{sig}: "),
    "a folder": (lambda m: ((m / "model.sig").unlink(), (m / "model.sig").mkdir()), "{sig}: is not a regular file"),
}


def flip(path: Path) -> None:
    """Another number, in a file of the same shape."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.usefixtures("no_run")
def test_what_changed_after_signing_is_refused(name: str, model: Path, key: Path, policy: Policies) -> None:
    change, message = CHANGES[name]
    (model / "notes.txt").write_text("notes")
    signed(model, key)
    assert looked_at(model, policy(), key).outcome == "incomplete"  # as signed, it comes to the audit
    change(model)
    report = looked_at(model, policy(), key).report
    assert (report["verdict"]["outcome"], report["refusal"]["code"]) == ("refused", "signature")
    assert report["refusal"]["reason"].startswith(message.format(sig="model.sig"))
    assert report["provenance"]["signature"]["verified"] is False
    VALIDATOR.validate(report)


def predicate(key: str, value: Any) -> Change:
    return lambda statement: statement["predicate"].update({key: value})


def serialized(**how: Any) -> Change:
    return lambda statement: statement["predicate"]["serialization"].update(how)


def resource(**fields: Any) -> Change:
    return lambda statement: statement["predicate"]["resources"][0].update(fields)


STATEMENTS: dict[str, tuple[Change, str]] = {
    "by shards": (serialized(method="shards"), "method is 'shards'; expected 'files', since digests of whole files by"),
    "blake2": (serialized(hash_type="blake2b"), "hash_type is 'blake2b'; expected 'sha256', since digests of whole"),
    "no method": (predicate("serialization", None), "serialization is None; expected an object"),
    "before 1.0": (lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"), "predicateType is 'https:/"),
    "a test result": (lambda s: s.update(predicateType="https://in-toto.io/attestation/test-result/v0.1"), "predicate"),
    "no statement": (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "_type is 'https://in-toto.io/St"),
    "no files": (predicate("resources", []), "resources is no list of files"),
    "files as text": (predicate("resources", "x" * 9), "resources is no list of files"),
    "a file is text": (predicate("resources", ["x"]), "a resource is 'x'; expected an object"),
    "blake2 digest": (resource(algorithm="blake2b"), "the digest of 'model.json' is no SHA-256 in lower-case hexadec"),
    "short digest": (resource(digest="ab"), "the digest of 'model.json' is no SHA-256 in lower-case hexadecimal"),
    "no digest": (resource(digest=None), "the digest of 'model.json' is no SHA-256 in lower-case hexadecimal"),
    "outside": (resource(name="../model.json"), "a resource has the name '../model.json'; expected a path below the"),
    "absolute": (resource(name="/etc/passwd"), "a resource has the name '/etc/passwd'; expected a path below the fo"),
    "not plain": (resource(name="./model.json"), "a resource has the name './model.json'; expected a path below the"),
    "no name": (resource(name=None), "a resource has the name None; expected a path below the folder"),
    "twice": (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "resources name model.js"),
    "other digest": (resource(digest="0" * 64), "the subject is not the digest of all resources; expected the stat"),
    "no subject": (lambda s: s.update(subject=[]), "the subject is not the digest of all resources; expected the sta"),
    "two subjects": (lambda s: s["subject"].append(s["subject"][0]), "the subject is not the digest of all resources"),
    "left out": (serialized(ignore_paths="model.sig"), "ignore_paths is no list of names"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_that_says_too_little_is_refused(name: str, model: Path, key: Path) -> None:
    change, message = STATEMENTS[name]
    path = signed(model, key, change)
    refused(path, key, message)


def refused(path: Path, key: Path, message: str) -> None:
    verifier = read_verifier(key.with_suffix(".pub"), None, model=NOWHERE)
    assert verifier is not None
    with pytest.raises(RefusedError) as error:
        read_model_signature(path, verifier)
    assert error.value.code == "signature"
    assert str(error.value).startswith(f"{path.name}: {message}")


def enveloped(**fields: Any) -> Change:
    return lambda bundle: bundle["dsseEnvelope"].update(fields)


def twice(bundle: dict[str, Any]) -> None:
    bundle["dsseEnvelope"]["signatures"] *= 2


BUNDLES: dict[str, tuple[Change, str]] = {
    "media type": (lambda b: b.update(mediaType="application/json"), "mediaType is 'application/json'; expected"),
    "no envelope": (lambda b: b.pop("dsseEnvelope"), "its envelope is None; expected an object"),
    "no material": (lambda b: b.pop("verificationMaterial"), "verificationMaterial is None; expected an object"),
    "payload type": (enveloped(payloadType="text/plain"), f"payloadType is 'text/plain'; expected '{PAYLOAD_TYPE}'"),
    "two signatures": (twice, "it holds 2 signatures; expected one"),
    "no signature": (enveloped(signatures=[]), "it holds 0 signatures; expected one"),
    "signatures as text": (enveloped(signatures="x"), "it holds no list of signatures; expected one"),
    "signature is text": (enveloped(signatures=["x"]), "it holds 1 signatures; expected one"),
    "not base64": (enveloped(payload="*"), "payload is '*'; expected base64"),
    "payload is a number": (enveloped(payload=7), "payload is 7; expected base64"),
    "not ASCII": (enveloped(payload="é"), "payload is 'é'; expected base64"),
    "signature of zeros": (enveloped(signatures=[{"sig": "AAAA"}]), "the signature does not verify with key sha256:"),
    "another payload": (enveloped(payload=base64.b64encode(b"{}").decode()), "the signature does not verify with key"),
}  # fmt: skip


@pytest.mark.parametrize("name", BUNDLES)
def test_bundle_of_another_form_is_refused(name: str, model: Path, key: Path) -> None:
    change, message = BUNDLES[name]
    path = signed(model, key)
    bundle = json.loads(path.read_text())
    change(bundle)
    path.write_text(json.dumps(bundle))
    refused(path, key, message)


BYTES: dict[str, tuple[bytes, str]] = {
    "random": (hashlib.sha512(b"seed").digest() * 9, "'utf-8' codec can't decode"),
    "deep": (b"[" * 500_000, "it is nested too deeply"),
    "a key twice": (b'{"mediaType": 1, "mediaType": 1}', "it holds a key twice"),
    "a list": (b"[]", "it is []; expected an object"),
    "NaN": (b'{"mediaType": NaN}', "it holds NaN"),
    "a long number": (b'{"mediaType": %s}' % (b"9" * 9999), "Exceeds the limit"),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_bundle_are_refused(name: str, key: Path, tmp_path: Path) -> None:
    content, message = BYTES[name]
    path = tmp_path / "model.sig"
    path.write_bytes(content)
    refused(path, key, message)


def test_large_signature_is_refused_before_it_is_read(key: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.sig"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # sparse
    verifier = read_verifier(key.with_suffix(".pub"), None, model=NOWHERE)
    assert verifier is not None
    message = f"model.sig has more than {MAX_SIGNATURE_BYTES:,} bytes; expected at most so many"
    with pytest.raises(RefusedError) as error:
        read_model_signature(path, verifier)
    assert str(error.value) == message


@pytest.mark.parametrize("kind", KINDS)
def test_signature_by_another_key_is_refused(kind: str, model: Path, key: Path, tmp_path: Path) -> None:
    other = write_key(tmp_path / "other.pem", KINDS[kind]())
    path = signed(model, other)
    bundle = json.loads(path.read_text())  # what a bundle says of its key is no evidence
    bundle["verificationMaterial"]["publicKey"]["hint"] = read_signing_key(key, model=NOWHERE).public.hint
    path.write_text(json.dumps(bundle))
    refused(path, key, "the signature does not verify with key sha256:")


@pytest.mark.usefixtures("no_run")
def test_signature_may_be_elsewhere_and_is_no_link(model: Path, key: Path, policy: Policies, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.sig"
    signed(model, key, serialized(ignore_paths=[])).rename(elsewhere)
    assert looked_at(model, policy(), key, signature=elsewhere).outcome == "incomplete"
    link = tmp_path / "link.sig"
    link.symlink_to(elsewhere)
    reason = looked_at(model, policy(), key, signature=link).report["refusal"]["reason"]
    assert reason.startswith("link.sig: cannot be opened")
    # Of the model's files, model.sig alone needs no signature.
    elsewhere.rename(model / "other.sig")
    (model / "model.sig").write_text("{}")
    result = looked_at(model, policy(), key, signature=model / "other.sig")
    assert result.report["refusal"]["reason"].startswith("model.sig is not covered by ")


@pytest.mark.usefixtures("no_run")
def test_what_the_signer_left_out_may_be_there_and_may_not_be_used(model: Path, key: Path, policy: Policies) -> None:
    signed(model, key, serialized(ignore_paths=["model.sig", ".cache", "model.json"]))
    (model / ".cache").mkdir()
    (model / ".cache" / "config").write_text("")
    assert looked_at(model, policy(), key).outcome == "incomplete"

    def uncover(statement: dict[str, Any]) -> None:
        serialized(ignore_paths=["model.json", ".cache"])(statement)
        resources = [r for r in statement["predicate"]["resources"] if r["name"] != "model.json"]
        statement["predicate"]["resources"] = resources
        root = hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()
        statement["subject"][0]["digest"]["sha256"] = root

    (model / ".cache" / "config").unlink()
    (model / ".cache").rmdir()
    signed(model, key, uncover)
    reason = looked_at(model, policy(), key).report["refusal"]["reason"]
    assert reason.startswith("model.json is not covered by ")


@pytest.mark.usefixtures("no_run")
def test_digests_are_of_the_bytes_used(
    model: Path, key: Path, policy: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that have other bytes only while they are read are refused, whatever lies there later."""
    weights, good = model / "model.safetensors", (model / "model.safetensors").read_bytes()
    signed(model, key)
    real = pipeline.receive

    def swapped(inspection: Any) -> Any:
        flip(weights)
        status = weights.lstat()
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        inspection._stamps["model.safetensors"] = stamp  # an attacker who gets past the other check
        try:
            return real(inspection)
        finally:
            weights.write_bytes(good)

    monkeypatch.setattr(pipeline, "receive", swapped)
    reason = looked_at(model, policy(), key).report["refusal"]["reason"]
    assert reason.startswith("model.safetensors is not as it was signed: its SHA-256 is ")


@pytest.mark.usefixtures("no_run")
def test_one_file_needs_no_more_than_its_own_digest(model: Path, key: Path, policy: Policies) -> None:
    arguments = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    options = {"architecture": "registered:small_cnn", "arguments": arguments}
    signed(model, key)
    weights = model / "model.safetensors"
    (model / "model.json").unlink()
    assert looked_at(weights, policy(), key, **options).outcome == "incomplete"
    flip(weights)
    assert looked_at(weights, policy(), key, **options).outcome == "refused"
    weights.rename(model / "other.safetensors")
    reason = looked_at(model / "other.safetensors", policy(), key, **options).report["refusal"]["reason"]
    assert reason.startswith("other.safetensors is not covered by ")


def test_unused_files_are_hashed_within_a_budget() -> None:
    large = ModelFile("large.bin", "unknown", 1 << 40)
    found = model_signature.ModelSignature("model.sig", None, {"large.bin": "0" * 64}, ())  # type: ignore[arg-type]
    message = r"^signed files that are not used have 1,099,511,627,776 bytes; expected at most 17,179,869,184$"
    with pytest.raises(RefusedError, match=message):
        found.check_digests([large], lambda _: pytest.fail("hashed"))


@pytest.mark.usefixtures("no_run")
def test_a_dry_run_verifies_and_leaves_the_digests_open(model: Path, key: Path, policy: Policies) -> None:
    signed(model, key)
    values = looked_at(model, policy(), key, dry_run=True).report["provenance"]["signature"]
    assert (values["verified"], values["n_files"]) == (None, None)
    assert metrics_of(example() | {"provenance": {"signature": values, "attestation": None}}).keys() == (
        metrics_of(example() | {"provenance": {"signature": None, "attestation": None}}).keys()
    )


# Certificates.

Certificates = tuple[Path, list[bytes], Any]


def certified(
    folder: Path,
    *,
    usage: Any = None,
    days: int = 30,
    middle_is_authority: bool = True,
    path_length: int | None = None,
) -> Certificates:
    """A root in a PEM file; the chain of a signer below it, in DER, the signer first; and the signer's key."""
    now = datetime.datetime.now(datetime.timezone.utc)
    made = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    found = []
    for depth, name in enumerate(("root", "middle", "signer")):
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ("root", "root", "middle")[depth])]))
            .public_key(made[depth].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=30 if depth < 2 else days))
        )
        if depth < 2:
            is_authority = depth == 0 or middle_is_authority
            builder = builder.add_extension(
                x509.BasicConstraints(is_authority, None if depth else path_length), critical=True
            )
        elif usage is not None:
            builder = builder.add_extension(usage, critical=True)
        found.append(builder.sign(made[max(depth - 1, 0)], hashes.SHA256()))
    path = folder / "root.pem"
    path.write_bytes(found[0].public_bytes(serialization.Encoding.PEM))
    chain = [certificate.public_bytes(serialization.Encoding.DER) for certificate in found[:0:-1]]
    return path, chain, made[2]


def with_chain(path: Path, chain: list[bytes]) -> None:
    bundle = json.loads(path.read_text())
    certificates = [{"rawBytes": base64.b64encode(der).decode()} for der in chain]
    bundle["verificationMaterial"] = {"x509CertificateChain": {"certificates": certificates}, "tlogEntries": []}
    path.write_text(json.dumps(bundle))


SIGNING = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
SEALING = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
CODE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


@pytest.mark.parametrize("usage", [SIGNING, CODE])
@pytest.mark.usefixtures("no_run")
def test_signer_with_a_certificate(usage: Any, model: Path, policy: Policies, tmp_path: Path) -> None:
    root, chain, own = certified(tmp_path, usage=usage)
    key = write_key(tmp_path / "own.pem", own)
    with_chain(signed(model, key), chain)
    report = gate(model, "digits", policy=policy(), verify_certificate=root, progress=False).report
    assert report["verdict"]["outcome"] == "incomplete"
    values = report["provenance"]["signature"]
    assert (values["by"], values["verified"], values["subject"]) == ("certificate", True, "CN=signer")
    assert values["key_sha256"] == read_signing_key(key, model=NOWHERE).public.sha256
    flip(model / "model.safetensors")
    assert gate(model, "digits", policy=policy(), verify_certificate=root, progress=False).outcome == "refused"


def in_version_9(der: bytes) -> bytes:
    version = bytes.fromhex("a003020102")  # [0] INTEGER 2, which is version 3
    assert der.count(version) == 1
    return der.replace(version, bytes.fromhex("a003020108"))


REFUSED_CHAINS: dict[str, tuple[dict[str, Any], Callable[[list[bytes]], list[bytes]], str]] = {
    "of a web server": ({"usage": SERVER}, list, "its certificate is not for code signing"),
    "for encryption": ({"usage": SEALING}, list, "its certificate is not for digital signatures"),
    "for nothing": ({}, list, "its certificate states no usage; expected one for digital signatures or code signing"),
    "expired": ({"usage": CODE, "days": -1}, list, "its certificate is not valid by those that are trusted: "),
    "middle missing": ({"usage": CODE}, lambda c: c[:1], "its certificate is not valid by those that are trusted: "),
    "signed by no authority": ({"usage": CODE, "middle_is_authority": False}, list, "its certificate is not valid by"),
    "no certificate": ({"usage": CODE}, lambda c: [], "it holds no list of 1 to 8 certificates"),
    "too many": ({"usage": CODE}, lambda c: c * 5, "it holds no list of 1 to 8 certificates"),
    "version 9": ({"usage": CODE}, lambda c: [in_version_9(c[0])], "its certificate cannot be read: 8 is not a valid"),
    "no DER": ({"usage": CODE}, lambda c: [b"no", *c], "error parsing asn1 value"),
}


@pytest.mark.parametrize("name", REFUSED_CHAINS)
def test_certificate_that_vouches_for_nothing_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    options, cut, message = REFUSED_CHAINS[name]
    root, chain, own = certified(tmp_path, **options)
    path = signed(model, write_key(tmp_path / "own.pem", own))
    with_chain(path, cut(chain))
    verifier = read_verifier(None, root, model=NOWHERE)
    assert verifier is not None
    with pytest.raises(RefusedError) as error:
        read_model_signature(path, verifier)
    assert str(error.value).startswith(f"{path.name}: {message}")


def test_chain_to_another_root_and_key_of_another_are_refused(model: Path, key: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    other, _, _ = certified(tmp_path / "a", usage=CODE)
    root, chain, own = certified(tmp_path / "b", usage=CODE)
    path = signed(model, write_key(tmp_path / "own.pem", own))
    with_chain(path, chain)
    for trusted, message in ((root, None), (other, "its certificate is not valid by those that are trusted")):
        verifier = read_verifier(None, trusted, model=NOWHERE)
        assert verifier is not None
        if message is None:
            assert read_model_signature(path, verifier).signer.subject == "CN=signer"
            continue
        with pytest.raises(RefusedError, match=message):
            read_model_signature(path, verifier)
    with_chain(signed(model, key), chain)  # the certificate of one, the signature of another
    verifier = read_verifier(None, root, model=NOWHERE)
    assert verifier is not None
    with pytest.raises(RefusedError, match=r"the signature does not verify with key sha256:\w+ of CN=signer; expected"):
        read_model_signature(path, verifier)


def test_length_of_a_path_is_kept(model: Path, tmp_path: Path) -> None:
    root, chain, own = certified(tmp_path, usage=CODE, path_length=0)
    path = signed(model, write_key(tmp_path / "own.pem", own))
    with_chain(path, chain)
    verifier = read_verifier(None, root, model=NOWHERE)
    assert verifier is not None
    with pytest.raises(RefusedError, match="its certificate is not valid by those that are trusted: "):
        read_model_signature(path, verifier)


# Keys.


def test_keys_of_other_kinds_are_refused(key: Path, tmp_path: Path) -> None:
    wrong = write_key(tmp_path / "rsa.pem", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    curve = write_key(tmp_path / "curve.pem", ec.generate_private_key(ec.SECP256K1()))
    large = write_key(tmp_path / "large.pem", ec.generate_private_key(ec.SECP384R1()))
    locked = write_key(tmp_path / "locked.pem", KINDS["p256"](), b"secret")
    for path, message in (
        (wrong, "sign_key is {!r}, an RSA key; expected EC P-256 or Ed25519"),
        (curve, "sign_key is {!r}, an EC key on secp256k1; expected EC P-256 or Ed25519"),
        (large, "sign_key is {!r}, an EC key on secp384r1; expected EC P-256 or Ed25519"),
        (locked, "sign_key is {!r}, which cannot be read ("),
        (key.with_suffix(".pub"), "sign_key is {!r}, which cannot be read ("),
        (tmp_path / "none", "sign_key: {}: no such file; looked for a private key as PEM"),
    ):
        with pytest.raises(InputError) as error:
            read_signing_key(path, model=NOWHERE)
        assert str(error.value).startswith((message.format(str(path)), message.format(path.name))), path
    for path, message in (
        (wrong.with_suffix(".pub"), "verify_key is {!r}, an RSA key; expected EC P-256, P-384, P-521, or Ed25519"),
        (key, "verify_key is {!r}, which cannot be read ("),
    ):
        with pytest.raises(InputError) as error:
            read_verifier(path, None, model=NOWHERE)
        assert str(error.value).startswith((message.format(str(path)), message.format(path.name))), path
    with pytest.raises(
        InputError, match=r"^verify_certificate is .*, which cannot be read \(.*expected certificates as"
    ):
        read_verifier(None, key, model=NOWHERE)
    with pytest.raises(InputError, match=r"^verify_key and verify_certificate are given; expected one of them$"):
        read_verifier(key, key, model=NOWHERE)
    assert isinstance(read_verifier(large.with_suffix(".pub"), None, model=NOWHERE), TrustedKey)


def test_password_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = write_key(tmp_path / "locked.pem", KINDS["ed25519"](), b"secret")
    monkeypatch.setenv("SEAMFAST_SIGN_PASSWORD", "secret")
    assert read_signing_key(locked, model=NOWHERE).public.sha256
    monkeypatch.setenv("SEAMFAST_SIGN_PASSWORD", "wrong")
    with pytest.raises(InputError, match="which cannot be read"):
        read_signing_key(locked, model=NOWHERE)


@pytest.mark.parametrize("option", ["verify_key", "verify_certificate", "sign_key"])
def test_key_in_the_model_folder_is_refused(
    option: str, model: Path, key: Path, policy: Policies, tmp_path: Path
) -> None:
    shutil.copy(key.with_suffix(".pub"), model / "key.pub")
    link, other = tmp_path / "link.pub", model / "link.pub"
    link.symlink_to(model / "key.pub")
    other.symlink_to(key.with_suffix(".pub"))  # the supplier would choose the key
    for path in (model / "key.pub", link, other):
        with pytest.raises(InputError) as error:
            gate(model, "digits", policy=policy(), out=tmp_path / "out", **{option: path})
        assert str(error.value) == f"{option} is {str(path)!r}, inside the model folder; expected a file elsewhere"


def test_without_the_extra_the_message_names_it(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.x509.verification", None)
    for call in (
        lambda: read_signing_key(key, model=NOWHERE),
        lambda: read_verifier(key, None, model=NOWHERE),
        lambda: read_verifier(None, key, model=NOWHERE),
    ):
        with pytest.raises(InputError, match=r'^signatures need cryptography: pip install "seamfast\[sign\]"$'):
            call()


def test_options_that_need_another_are_refused(planted: Path, key: Path, policy: Policies, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^signature is given and no key; expected verify_key or verify_certificate"):
        gate(planted, "digits", policy=policy(), signature=tmp_path / "model.sig")
    with pytest.raises(InputError, match=r"^sign_key is given and out is None; expected a folder for what is signed$"):
        gate(planted, "digits", policy=policy(), sign_key=key)


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [("provenance.verified", "verify_key or verify_certificate"), ("attestation.signed", "sign_key")],
)
@pytest.mark.usefixtures("no_run")
def test_policy_that_requires_a_key_ends_at_once_without(
    metric: str, wanted: str, planted: Path, policy: Policies, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = policy()
    rules.write_text(rules.read_text() + SIGNED_RULE.format("needed", metric))
    with pytest.raises(PolicyError, match=rf"^rule 'needed' requires {metric}; expected {wanted}$"):
        gate(planted, "digits", policy=rules)
    assert main(["gate", str(planted), "--data", "digits", "--policy", str(rules)]) == 4
    assert f"requires {metric}" in capsys.readouterr().err


# On the way out.


@pytest.fixture(scope="module")
def signed_run(
    planted: Path, any_key: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, Path]:
    """The report of a run that passed and was signed, its output, and the public key."""
    folder = tmp_path_factory.mktemp("signed")
    rules = policy_in(folder)
    rules.write_text(rules.read_text() + SIGNED_RULE.format("attested", "attestation.signed"))
    options = {"policy": rules, "out": folder / "out", "sign_key": any_key, "progress": False}
    result = gate(planted, "digits", **options)  # type: ignore[arg-type]
    assert result.outcome == "pass"
    return result.report, folder / "out", any_key.with_suffix(".pub")


Run = tuple[dict[str, Any], Path, Path]


def test_attestation_is_signed_as_it_lies_there(signed_run: Run, planted: Path) -> None:
    report, out, public = signed_run
    envelope = json.loads((out / "attestation.dsse.json").read_text())
    payload = base64.b64decode(envelope["payload"])
    assert payload == (out / "attestation.json").read_bytes()
    verifier = read_verifier(public, None, model=NOWHERE)
    assert isinstance(verifier, TrustedKey)
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    assert verifier.key.verifies(signature, pae(payload))
    assert not verifier.key.verifies(signature, pae(payload + b" "))
    assert report["provenance"]["attestation"] == {"key_sha256": verifier.key.sha256}
    assert report["warnings"] == []
    VALIDATOR.validate(report)

    statement = json.loads(payload)
    found = {entry["name"]: entry["digest"]["sha256"] for entry in statement["predicate"]["configuration"]}
    for name in ("report.json", "sanitized/model.safetensors"):
        digest = hashlib.sha256((out / name).read_bytes()).hexdigest()
        assert {**found, **{s["name"]: s["digest"]["sha256"] for s in statement["subject"]}}[name] == digest
    assert found["test"] == report["policy"]["sha256"]
    assert found["clean data"] == report["data"]["sha256"] == seamfast.load("digits").sha256()
    for name, digest in digests(planted).items():
        assert found[f"received/{name}"] == digest


def test_openssl_verifies_the_attestation(signed_run: Run, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    _, out, public = signed_run
    envelope = json.loads((out / "attestation.dsse.json").read_text())
    payload = base64.b64decode(envelope["payload"])
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    if "ed25519" in public.name:
        command = ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public, "-sigfile", "signature", "-in", "signed"]
    else:
        command = ["dgst", "-sha256", "-verify", public, "-signature", "signature", "signed"]
    for content, verifies in ((pae(payload), True), (pae(payload) + b" ", False)):
        (tmp_path / "signed").write_bytes(content)
        ended = subprocess.run(["openssl", *map(str, command)], cwd=tmp_path, capture_output=True, check=False)
        assert (ended.returncode == 0) is verifies, ended


@pytest.mark.parametrize("tampered", [False, True])
def test_commands_of_the_document_verify_the_attestation(signed_run: Run, tampered: bool, tmp_path: Path) -> None:
    if missing := [name for name in ("jq", "openssl", "sha256sum") if shutil.which(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    _, out, public = signed_run
    text = (Path(__file__).parents[2] / "docs" / "provenance.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(jq .*?)^```$", text, re.MULTILINE | re.DOTALL)
    if "ed25519" in public.name:
        (other,) = re.findall(r"`(openssl pkeyutl [^`]*)`", text)
        block = re.sub(r"^openssl dgst .*$", other, block, flags=re.MULTILINE)
    shutil.copytree(out, tmp_path / "verdict")
    shutil.copy(public, tmp_path / "gate.pub")
    if tampered:
        flip(tmp_path / "verdict" / "sanitized" / "model.safetensors")
    ended = subprocess.run(["sh", "-e"], input=block, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode == 0) is not tampered, ended
    assert "Verified" in ended.stdout
    assert f"verdict/sanitized/model.safetensors: {'FAILED' if tampered else 'OK'}" in ended.stdout


def test_securesystemslib_verifies_the_attestation(signed_run: Run) -> None:
    dsse = pytest.importorskip("securesystemslib.dsse", reason="securesystemslib is not installed")
    signer = pytest.importorskip("securesystemslib.signer")
    _, out, public = signed_run
    envelope = dsse.Envelope.from_dict(json.loads((out / "attestation.dsse.json").read_text()))
    trusted = signer.SSlibKey.from_crypto(serialization.load_pem_public_key(public.read_bytes()), keyid="")
    trusted.keyid = ""
    assert list(envelope.verify([trusted], 1)) == [""]
    envelope.payload += b" "
    with pytest.raises(Exception, match="do not match threshold"):
        envelope.verify([trusted], 1)


def test_sanitized_model_passes_the_next_gate_by_its_signature(
    signed_run: Run, policy: Policies, tmp_path: Path, no_run: None
) -> None:
    _, out, public = signed_run
    model = tmp_path / "model"
    shutil.copytree(out / "sanitized", model)
    report = gate(model, "digits", policy=policy(), verify_key=public, progress=False).report
    assert (report["verdict"]["outcome"], report["provenance"]["signature"]["verified"]) == ("incomplete", True)
    flip(model / "model.safetensors")
    assert gate(model, "digits", policy=policy(), verify_key=public, progress=False).outcome == "refused"


def model_signing(*arguments: object) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    pytest.importorskip("OpenSSL", reason="pyopenssl is not installed, which model-signing imports")
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_model_signing_verifies_the_sanitized_model(signed_run: Run, tmp_path: Path) -> None:
    _, out, public = signed_run
    if "ed25519" in public.name:
        pytest.skip("model-signing 1.1 has no Ed25519")
    model = shutil.copytree(out / "sanitized", tmp_path / "sanitized")
    command = ("verify", "key", model, "--signature", model / "model.sig", "--public_key", public)
    ended = model_signing(*command)
    assert ended.returncode == 0, ended
    flip(model / "model.safetensors")
    assert model_signing(*command).returncode != 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_run")
def test_what_model_signing_signs_is_verified(model: Path, key: Path, policy: Policies, tmp_path: Path) -> None:
    (model / "docs").mkdir()
    (model / "docs" / "card.md").write_text("a card")
    ended = model_signing("sign", "key", model, "--signature", model / "model.sig", "--private_key", key)
    assert ended.returncode == 0, ended
    report = looked_at(model, policy(), key).report
    assert report["verdict"]["outcome"] == "incomplete", report["verdict"]
    assert report["provenance"]["signature"]["n_files"] == 3
    root, chain, own = certified(tmp_path, usage=SIGNING)
    own_key = write_key(tmp_path / "own.pem", own)
    for name, der in zip(("signer.pem", "middle.pem"), chain, strict=True):
        certificate = x509.load_der_x509_certificate(der)
        (tmp_path / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    where = ("--private_key", own_key, "--signing_certificate", tmp_path / "signer.pem")
    more = ("--certificate_chain", tmp_path / "middle.pem", "--signature", model / "model.sig")
    (model / "model.sig").unlink()
    ended = model_signing("sign", "certificate", model, *where, *more)
    assert ended.returncode == 0, ended
    report = gate(model, "digits", policy=policy(), verify_certificate=root, progress=False).report
    assert report["provenance"]["signature"]["subject"] == "CN=signer"
    assert report["verdict"]["outcome"] == "incomplete", report["verdict"]


@pytest.mark.usefixtures("sanitized_once")
def test_what_fails_is_signed_too_and_has_no_model(planted: Path, key: Path, policy: Policies, tmp_path: Path) -> None:
    options = {"policy": policy(accuracy=0.9999), "out": tmp_path / "out", "sign_key": key, "progress": False}
    assert gate(planted, "digits", **options).outcome == "fail"  # type: ignore[arg-type]
    statement = json.loads(
        base64.b64decode(json.loads((tmp_path / "out/attestation.dsse.json").read_text())["payload"])
    )
    assert statement["predicate"]["result"] == "FAILED"
    assert not (tmp_path / "out" / "sanitized").exists()


def test_what_was_refused_before_it_was_read_has_nothing_to_sign(key: Path, policy: Policies, tmp_path: Path) -> None:
    result = gate(tmp_path / "none", "digits", policy=policy(), out=tmp_path / "out", sign_key=key)
    assert result.outcome == "refused"
    assert not list((tmp_path / "out").glob("attestation*"))


@pytest.mark.usefixtures("sanitized_once")
def test_key_that_others_can_read_is_a_warning(planted: Path, key: Path, policy: Policies, tmp_path: Path) -> None:
    shutil.copy(key, tmp_path / "open.pem")
    (tmp_path / "open.pem").chmod(0o644)
    options = {"policy": policy(), "out": tmp_path / "out", "sign_key": tmp_path / "open.pem", "progress": False}
    result = gate(planted, "digits", **options)  # type: ignore[arg-type]
    warning = "the signing key's file has mode 0644, open to others than its owner; expected 0600"
    assert warning in result.report["warnings"]


@pytest.mark.usefixtures("sanitized_once")
@pytest.mark.parametrize("other", [None, "p256"])
def test_signing_that_fails_is_2_and_leaves_nothing(
    other: str | None, planted: Path, policy: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    key = write_key(tmp_path / "key.pem", KINDS["p256"]())
    rules, decide = policy(), pipeline.decide

    def change(*given: Any) -> Any:  # in the course of the run
        key.unlink()
        if other is not None:
            write_key(key, KINDS[other]())
        return decide(*given)

    monkeypatch.setattr(pipeline, "decide", change)
    arguments = ["gate", planted, "--data", "digits", "--policy", rules, "--out", tmp_path / "out", "--sign-key", key]
    assert main([*map(str, arguments)]) == 2
    assert "the attestation cannot be signed: sign_key" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"key.pem", "key.pub", rules.name}


@pytest.mark.usefixtures("sanitized_once")
def test_another_process_may_sign(planted: Path, key: Path, policy: Policies, tmp_path: Path) -> None:
    rules, out = policy(), tmp_path / "out"
    rules.write_text(rules.read_text() + SIGNED_RULE.format("attested", "attestation.signed"))
    sha256, warnings = signing_key_sha256(key, model=planted)
    assert warnings == []
    report = gate(planted, "digits", policy=rules, out=out, signed_by=sha256, progress=False).report
    assert report["verdict"]["outcome"] == "pass"
    assert report["provenance"]["attestation"] == {"key_sha256": sha256}
    assert not (out / "attestation.dsse.json").exists()
    program = (
        "import sys; from pathlib import Path; from seamfast.gating.provenance.attestation import sign_folder; "
        "sign_folder(Path(sys.argv[1]), sys.argv[2], sys.argv[3], model=sys.argv[4])"
    )
    subprocess.run([sys.executable, "-c", program, *map(str, (out, key, sha256, planted))], check=True)
    envelope = json.loads((out / "attestation.dsse.json").read_text())
    public = read_signing_key(key, model=NOWHERE).public
    assert public.verifies(
        base64.b64decode(envelope["signatures"][0]["sig"]), pae(base64.b64decode(envelope["payload"]))
    )
    assert (out / "sanitized" / "model.sig").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: flip(out / "report.json"), "report.json differs from the attestation"),
        (lambda out: flip(out / "sanitized/model.safetensors"), "sanitized/model.safetensors differs from the attest"),
        (lambda out: shutil.rmtree(out / "sanitized"), "sanitized/model.safetensors differs from the attestation"),
        (
            lambda out: shutil.copy(out / "sanitized/model.safetensors", out / "sanitized/more.safetensors"),
            "the weights in sanitized/ are not those that the attestation names",
        ),
        (lambda out: (out / "attestation.json").write_text("{}"), "'predicate'"),
        (lambda out: relinked(out / "attestation.json"), ""),
        (lambda out: relinked(out / "sanitized/model.json"), ""),
    ],
)
def test_only_what_agrees_with_its_attestation_is_signed(
    change: Callable[[Path], Any], message: str, passed: tuple[GateResult, Path], key: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(passed[1] / "out", tmp_path / "out"))
    sha256 = read_signing_key(key, model=NOWHERE).public.sha256
    change(out)
    with pytest.raises(OSError, match=f"^the attestation cannot be signed: .*{message}"):
        sign_folder(out, key, sha256, model=NOWHERE)
    assert not list(out.rglob("*.sig"))
    assert not (out / "attestation.dsse.json").exists()


def relinked(path: Path) -> None:
    """The same content, behind a symbolic link."""
    moved = path.rename(path.parent.parent / "moved")
    path.symlink_to(moved)


def test_digest_of_clean_data_is_of_every_sample_and_label() -> None:
    data = seamfast.load("digits")
    digest = hashlib.sha256(b'["inputs", "uint8", [%d, 1, 8, 8]]\n' % len(data))
    digest.update(data.inputs.numpy().tobytes())  # type: ignore[union-attr]
    digest.update(b'["labels", "int64", [%d]]\n' % len(data))
    digest.update(data.labels.numpy().tobytes())
    assert data.sha256() == digest.hexdigest()
    images = data.pixels(torch.arange(len(data)))
    assert seamfast.CleanSet(images.clone(), data.labels).sha256() == data.sha256()
    images[-1, 0, 7, 7] ^= 1
    assert seamfast.CleanSet(images, data.labels).sha256() != data.sha256()
    labels = data.labels.clone()
    labels[-1] = 9 - labels[-1]
    assert seamfast.CleanSet(data.inputs, labels).sha256() != data.sha256()


def test_no_key_is_read_while_the_model_runs(
    planted: Path, policy: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = write_key(tmp_path / "key.pem", KINDS["p256"]())
    held: list[bool] = []

    def n_keys() -> int:
        return sum(type(value) is keys.SigningKey for value in gc.get_objects())

    others = n_keys()  # of other tests

    def look(*_: Any, **__: Any) -> None:
        held.append(n_keys() > others)
        raise MemoryError("stopped here")

    monkeypatch.setattr(pipeline, "audit", look)
    options = {"policy": policy(), "out": tmp_path / "out", "sign_key": key, "progress": False}
    assert gate(planted, "digits", **options).outcome == "incomplete"  # type: ignore[arg-type]
    assert held == [False]
    assert os.path.exists(tmp_path / "out" / "attestation.dsse.json")
