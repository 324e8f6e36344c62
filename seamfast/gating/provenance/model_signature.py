"""Signatures of model folders as OpenSSF model signing 1.0 writes them: read, verified, and compared.

A signature is a Sigstore bundle around a DSSE envelope, whose statement lists the files of the folder with their
digests. Keyless signatures need Sigstore's roots of trust from the network; here, a key or certificates are given.

Files are compared by the digests that the gate took of the bytes it used, not read again, so that nothing can be
swapped in between. OpenSSF's own library is not used: it reads the folder itself, returns no list of files, and accepts
forms from before version 1.0.

Source: OpenSSF model signing specification v1.0 (github.com/sigstore/model-transparency); Sigstore bundle v0.3.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from seamfast.errors import DataFileError
from seamfast.gating.provenance.bundle import FILE, MEDIA_TYPE, PREDICATE_TYPE
from seamfast.gating.provenance.dsse import STATEMENT_TYPE, opened, pae
from seamfast.gating.provenance.keys import Signer, Verifier
from seamfast.intake.refusal import RefusedError
from seamfast.intake.tensors import strict_json
from seamfast.untrusted import listed, open_regular, printable, printable_value

if TYPE_CHECKING:
    from seamfast.gating.folder import ModelFile

MAX_SIGNATURE_BYTES = 1 << 20  # some four thousand files
MAX_HASHED_BYTES = 16 << 30  # of files that were signed and are not used
_HEX = frozenset("0123456789abcdef")
_ALONE = "."  # the name of a model that was signed as one file


@dataclass(frozen=True)
class ModelSignature:
    """A signature that verified: the statement in it is the signer's.

    Attributes:
        name: of its file, fit for a message.
        signer: whose.
        digests: SHA-256 by name, of each file that was signed.
        left_out: names of files and folders that the signer left out.
    """

    name: str
    signer: Signer
    digests: Mapping[str, str]
    left_out: tuple[str, ...]

    def check_names(self, files: Sequence[ModelFile], own: str | None, *, alone: bool = False) -> None:
        """Every file that is used was signed; the others were too, or the signer left them out; none is missing.

        Args:
            files: of the folder.
            own: the name of the signature in it, if it lies there.
            alone: one file of a folder is looked at; the others do not matter.

        Raises:
            RefusedError: code ``signature``, e.g. ``config.json is not covered by model.sig; expected a signature over
                every file of the model``.
        """
        present = {file.name for file in files}
        uncovered = [f.name for f in files if f.role != "ignored" and self._digest(f.name, alone=alone) is None]
        if not alone:
            uncovered += [
                file.name
                for file in files
                if file.role == "ignored" and file.name not in self.digests and not self._leaves_out(file.name, own)
            ]
        if uncovered:
            verb = "is" if len(uncovered) == 1 else "are"
            message = f"{listed(uncovered, 5)} {verb} not covered by {self.name}; expected a signature over every file"
            raise RefusedError("signature", message)
        missing = [] if alone else [name for name in self.digests if name not in present]
        if missing:
            message = f"{self.name} covers {listed(missing, 5)}; expected no file that is not in the folder"
            raise RefusedError("signature", message)

    def check_digests(self, files: Sequence[ModelFile], digest_of: Callable[[str], str], *, alone: bool = False) -> int:
        """How many files have the bytes that were signed, which are all of them.

        Args:
            files: of the folder, those that were used with the SHA-256 of the bytes used.
            digest_of: the SHA-256 of another file, by its name.
            alone: as for ``check_names``.

        Raises:
            RefusedError: code ``signature``, e.g. ``model.safetensors is not as it was signed: its SHA-256 is 3f...;
                model.sig expects a0...``.
        """
        signed = [(file, self._digest(file.name, alone=alone)) for file in files]
        n_bytes = sum(file.n_bytes for file, digest in signed if digest is not None and file.role == "ignored")
        if n_bytes > MAX_HASHED_BYTES:
            message = f"signed files that are not used have {n_bytes:,} bytes; expected at most {MAX_HASHED_BYTES:,}"
            raise RefusedError("signature", message)
        n_files = 0
        for file, expected in signed:
            if file.role == "ignored" and (expected is None or alone):
                continue
            found = digest_of(file.name) if file.role == "ignored" else file.sha256
            if found is None or found != expected:
                how = f"its SHA-256 is {found}; {self.name} expects {expected}"
                raise RefusedError("signature", f"{printable(file.name)} is not as it was signed: {how}")
            n_files += 1
        return n_files

    def _digest(self, name: str, *, alone: bool) -> str | None:
        if alone and set(self.digests) == {_ALONE}:
            return self.digests[_ALONE]
        return self.digests.get(name)

    def _leaves_out(self, name: str, own: str | None) -> bool:
        return name == own or any(PurePosixPath(name).is_relative_to(other) for other in self.left_out)


def signature_path(model: str | os.PathLike[str], given: str | os.PathLike[str] | None) -> Path:
    """``given``, else ``model.sig`` in the model's folder."""
    if given is not None:
        return Path(given)
    path = Path(model)
    return (path if path.is_dir() else path.parent) / FILE


def read_model_signature(path: Path, verifier: Verifier) -> ModelSignature:
    """The signature in ``path``, verified.

    Raises:
        RefusedError: code ``signature``, e.g. ``model.sig does not verify with key sha256:3f...; expected a signature
            by it``.
    """
    where = printable(path.name)  # a report goes to others, whom the folders of this machine do not concern
    try:
        with open_regular(path, "the signature of the model", follow=False) as file:
            content = file.read(MAX_SIGNATURE_BYTES + 1)
    except DataFileError as error:
        raise RefusedError("signature", str(error).replace(printable(path), where)) from error
    if len(content) > MAX_SIGNATURE_BYTES:
        message = f"{where} has more than {MAX_SIGNATURE_BYTES:,} bytes; expected at most so many"
        raise RefusedError("signature", message)
    try:
        return _verified(content, verifier, where)
    except ValueError as error:
        raise RefusedError("signature", f"{where}: {printable(error, 400)}") from error


def _verified(content: bytes, verifier: Verifier, where: str) -> ModelSignature:
    bundle = _object(strict_json(content), "it")
    if bundle.get("mediaType") != MEDIA_TYPE:
        raise ValueError(f"mediaType is {printable_value(bundle.get('mediaType'))}; expected {MEDIA_TYPE!r}")
    payload, signature = opened(bundle.get("dsseEnvelope"))
    signer = verifier.signer(_object(bundle.get("verificationMaterial"), "verificationMaterial"))
    if not signer.key.verifies(signature, pae(payload)):
        raise ValueError(f"the signature does not verify with {signer.name}; expected one by it")
    # From here on, the words are the signer's.
    digests, left_out = _manifest(_object(strict_json(payload), "the statement"))
    return ModelSignature(where, signer, digests, left_out)


def _manifest(statement: dict[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """SHA-256 by name of file, and what was left out."""
    for key, wanted in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if statement.get(key) != wanted:
            raise ValueError(f"{key} is {printable_value(statement.get(key))}; expected {wanted!r}")
    predicate = _object(statement.get("predicate"), "predicate")
    how = _object(predicate.get("serialization"), "serialization")
    for key, wanted in (("method", "files"), ("hash_type", "sha256")):
        if how.get(key) != wanted:
            reason = "digests of whole files by SHA-256 alone compare with those of the bytes read"
            raise ValueError(f"{key} is {printable_value(how.get(key))}; expected {wanted!r}, since {reason}")
    left_out = how.get("ignore_paths", [])
    if not isinstance(left_out, list) or not all(isinstance(name, str) for name in left_out):
        raise ValueError("ignore_paths is no list of names")
    resources = predicate.get("resources")
    if not isinstance(resources, list) or not resources:
        raise ValueError("resources is no list of files")
    digests: dict[str, str] = {}
    for resource in resources:
        name, digest = _resource(_object(resource, "a resource"))
        if name in digests:
            raise ValueError(f"resources name {printable(name)} twice")
        digests[name] = digest
    subject = statement.get("subject")
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests.values())).hexdigest()
    if not isinstance(subject, list) or len(subject) != 1 or _digest_of(subject[0]) != root:
        raise ValueError("the subject is not the digest of all resources; expected the statement to agree with itself")
    return digests, tuple(left_out)


def _resource(resource: dict[str, Any]) -> tuple[str, str]:
    name, algorithm, digest = (resource.get(key) for key in ("name", "algorithm", "digest"))
    if algorithm != "sha256" or not isinstance(digest, str) or len(digest) != 64 or not _HEX.issuperset(digest):
        raise ValueError(f"the digest of {printable_value(name)} is no SHA-256 in lower-case hexadecimal")
    if not isinstance(name, str) or (name != _ALONE and not _is_plain(name)):
        raise ValueError(f"a resource has the name {printable_value(name)}; expected a path below the folder")
    return name, digest


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and str(path) == name


def _digest_of(subject: Any) -> Any:
    digest = subject.get("digest") if isinstance(subject, dict) else None
    return digest.get("sha256") if isinstance(digest, dict) else None


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {printable_value(value)}; expected an object")
    return value
