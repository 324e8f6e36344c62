"""What the gate writes: the report in its forms and, on a pass, the sanitized model; whole, by one rename."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from seamfast.errors import InputError
from seamfast.gating.audit import Pictures
from seamfast.gating.documents.cyclonedx import as_bom
from seamfast.gating.documents.html import as_html
from seamfast.gating.documents.in_toto import as_statement
from seamfast.gating.documents.markdown import as_markdown
from seamfast.gating.documents.sarif import as_sarif
from seamfast.gating.folder import Received
from seamfast.isolation import state
from seamfast.isolation.folders import open_to_others, why_not_free
from seamfast.models.folder import DESCRIPTION, WEIGHTS, description_class, save_model, save_weights
from seamfast.report import write_atomically

FILES = ("report.json", "report.html", "summary.md", "report.sarif", "attestation.json", "bom.json")
SANITIZED = "sanitized"
ARCHITECTURE = "architecture.json"  # says what the caller named, and selects nothing


def free_folder(out: Path) -> Path:
    """``out``, where nothing or an empty folder is.

    Raises:
        InputError: e.g. ``out is 'gate', which is not empty; expected a folder that does not exist yet``.
    """
    if reason := why_not_free(out):
        raise InputError(reason)
    return out


class Staging:
    """A folder beside ``out``, which becomes it by one rename: a run that is killed leaves no part in ``out``.

    Without an ``out``, the sanitized model is written to a temporary folder, so that it can be checked all the same.
    Whatever is left is removed at the end.

    Args:
        out: from ``free_folder``, or ``None``.
    """

    def __init__(self, out: Path | None) -> None:
        self._out = out
        self._partial: Path | None = None

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)

    def save_model(self, received: Received, sanitized: nn.Module) -> Path:
        """The folder with the sanitized model, and all that is needed to build it again."""
        folder = self._folder() / SANITIZED
        save_sanitized(folder, received, sanitized)
        return folder

    def discard_model(self) -> None:
        """Remove what ``save_model`` wrote."""
        if self._partial is not None:
            shutil.rmtree(self._partial / SANITIZED, ignore_errors=True)

    def finish(
        self, report: dict[str, Any], pictures: Mapping[str, Pictures], sign: Callable[[Path], None] | None = None
    ) -> None:
        """Write the report in all its forms, and rename; without an ``out``, do nothing.

        Args:
            report: from ``gate_report``; what was written of the sanitized model is added to it.
            pictures: as for ``as_html``.
            sign: called with the folder before it is renamed, so that none appears whose signing failed.
        """
        if self._out is None:
            return
        partial = self._folder()
        if (partial / SANITIZED).is_dir():
            files = [_hashed(path, partial) for path in sorted((partial / SANITIZED).iterdir())]
            report["sanitized"] = {"files": files}
        documents = {
            "report.json": _json(report),
            "report.html": as_html(report, pictures),
            "summary.md": as_markdown(report).encode(),
            "report.sarif": _json(as_sarif(report)),
            "bom.json": _json(as_bom(report)),
        }
        if any(file["sha256"] is not None and file["role"] == "weights" for file in report["model"]["files"]):
            digest = hashlib.sha256(documents["report.json"]).hexdigest()
            documents["attestation.json"] = _json(as_statement(report, digest))  # without a digest it has no subject
        for name, content in documents.items():
            _put(partial / name, content)
        if sign is not None:
            sign(partial)
        if not state.current.seccomp:  # else whoever started this process does it
            open_to_others(partial)
        os.rename(partial, self._out)  # over an empty folder too, and over nothing else
        self._partial = None

    def _folder(self) -> Path:
        if self._partial is None:
            self._partial = _private_folder(self._out)
        return self._partial


def _private_folder(out: Path | None) -> Path:
    if out is None:
        return Path(tempfile.mkdtemp(prefix="seamfast-"))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.{secrets.token_hex(8)}"
    partial.mkdir(mode=0o700)
    return partial


def save_sanitized(folder: Path, received: Received, model: nn.Module) -> list[str]:
    """The weights, under the names that the received file had, and what is needed to build and to feed them again.

    Returns:
        Names of the files, the weights first.
    """
    chosen = received.architecture
    if chosen.source == "registered":
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in chosen.arguments.items()}
        save_model(folder, model, description_class(chosen.name)(chosen.name, **fields))
    else:
        save_weights(folder, model, chosen.names_in_file(model))
    documents: dict[str, Mapping[str, Any]] = dict(chosen.documents)
    if chosen.source != "registered" and not documents:
        documents[ARCHITECTURE] = {
            "source": chosen.source,
            "name": chosen.name,
            "arguments": dict(chosen.arguments),
        }
    for name, document in documents.items():
        write_atomically(folder / name, _json(document))
    return [WEIGHTS, *([DESCRIPTION] if chosen.source == "registered" else []), *documents]


def _hashed(path: Path, root: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    name = path.relative_to(root).as_posix()
    return {"name": name, "n_bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
