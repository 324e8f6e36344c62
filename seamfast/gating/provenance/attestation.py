"""Signing what the gate wrote: a step of its own, after the run, so that the key is not in memory beside the model.

It needs neither torch nor what the run held: a process that starts the gate in another one can sign what that left.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from seamfast.errors import SeamfastError
from seamfast.gating.provenance.bundle import FILE, model_signature
from seamfast.gating.provenance.dsse import envelope
from seamfast.gating.provenance.keys import mode_warning, read_signing_key
from seamfast.untrusted import CHUNK, open_regular

ATTESTATION, SIGNED = "attestation.json", "attestation.dsse.json"
REPORT, SANITIZED = "report.json", "sanitized"
_MAX_BYTES = 16 << 20


def signing_key_sha256(path: str | os.PathLike[str], *, model: str | os.PathLike[str]) -> tuple[str, list[str]]:
    """The SHA-256 of the public key that belongs to a private one, and warnings; the key itself is not kept.

    Called before a run, so that a key that cannot sign is found then.

    Raises:
        InputError: as ``read_signing_key``.
    """
    digest = read_signing_key(path, model=model).public.sha256
    warning = mode_warning(path)
    return digest, [] if warning is None else [warning]


def sign_folder(folder: Path, path: str | os.PathLike[str], sha256: str, *, model: str | os.PathLike[str]) -> None:
    """Write ``attestation.dsse.json`` and, if there is a sanitized model, ``sanitized/model.sig``.

    The attestation is signed as its bytes lie there, once the digests in it are those of the files beside it. Without
    an attestation, as of a model that was refused before it was read, nothing is signed.

    Args:
        folder: with all that ``seamfast.gating.output.write`` writes; not yet under its final name.
        path: of the private key.
        sha256: from ``signing_key_sha256``: the key that the report names.
        model: the folder in which the key must not lie.

    Raises:
        OSError: e.g. ``the attestation cannot be signed: sanitized/model.safetensors differs from the attestation``.
    """
    if not (folder / ATTESTATION).exists():
        return
    try:
        key = read_signing_key(path, model=model)
        if key.public.sha256 != sha256:
            raise ValueError(f"sign_key holds another key than before the run; expected sha256:{sha256}")
        with open_regular(folder / ATTESTATION, "the attestation", follow=False) as file:
            payload = file.read(_MAX_BYTES)
        sanitized = _digests(folder, SANITIZED)
        _check(json.loads(payload), {**sanitized, REPORT: _sha256(folder / REPORT)})
        if sanitized:
            digests = {name.removeprefix(f"{SANITIZED}/"): digest for name, digest in sanitized.items()}
            _put(folder / SANITIZED / FILE, model_signature(SANITIZED, digests, key))
        _put(folder / SIGNED, (json.dumps(envelope(payload, key), indent=2) + "\n").encode())
    except (SeamfastError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OSError(f"the attestation cannot be signed: {error}") from error


def _check(statement: Any, found: dict[str, str]) -> None:
    """The files beside the statement are those that it speaks of: the model that passed, if one did, and the report."""
    predicate = statement["predicate"]
    passed = predicate["result"] in ("PASSED", "WARNED")
    spoken = {entry["name"]: entry["digest"]["sha256"] for entry in predicate["configuration"] if "digest" in entry}
    named = {REPORT: spoken[REPORT]}
    subjects = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    if passed:
        named |= subjects
    for name, digest in named.items():
        if found.get(name) != digest:
            raise ValueError(f"{name} differs from the attestation")
    weights = {name for name in found if name.endswith(".safetensors")}
    if weights != (set(subjects) if passed else set()):
        raise ValueError("the weights in sanitized/ are not those that the attestation names")


def _digests(folder: Path, name: str) -> dict[str, str]:
    root = folder / name
    if not root.is_dir():
        return {}
    return {f"{name}/{path.name}": _sha256(path) for path in sorted(root.iterdir())}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path, "a file that the gate wrote", follow=False) as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()


def _put(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
