"""The folder of a fleet: what was asked for, what was done, and what could not be.

    run.json          the settings of the fleet; another call must have the same
    manifest.jsonl    one line an event, only ever appended to; of a shard, manifest-K-of-N.jsonl
    jobs/ID/          what a job left, whole or not there: job.json, report.json, the model if it was accepted
    quarantine/ID/    of a job that was given up: job.json with the reasons
    .staging/         what is being written now

A job counts as done if its folder holds a ``job.json`` with the digests that it would have now.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from seamfast._version import __version__
from seamfast.errors import InputError
from seamfast.fleet.fingerprint import Inputs, digest_of, stamp_of
from seamfast.fleet.jobs import Job
from seamfast.isolation.folders import private_folder, remove_left
from seamfast.report import write_atomically
from seamfast.untrusted import printable, printable_value, shown

JOBS, QUARANTINE, STAGING = "jobs", "quarantine", ".staging"
JOB_FILE = "job.json"
_FORMAT, _VERSION = "seamfast-fleet", 1
_MOST_BYTES = 1 << 20  # of a job.json
_LONGEST_REASON = 400
_LARGEST = 2.0**63  # of a number in a row; compares with integers that no float holds, and with what is not finite

OUTCOMES = ("accepted", "undecided", "refused", "pass", "inconclusive", "fail", "invalid", "error", "quarantined")
"""Of ``sanitize``: the first three; of ``gate``: the next three. ``"invalid"``: the model or the data cannot be used;
``"error"``: a defect; ``"quarantined"``: given up."""
_TEXTS = ("id", "model", "kind", "outcome", "reason", "architecture", "report")
_NUMBERS = (
    *("n_holdout", "accuracy_before", "accuracy_after", "accuracy_lost", "asr_before", "asr_after", "fidelity"),
    *("test_accuracy_before", "test_accuracy_after", "battery_before", "battery_after", "disagreement"),
    *("seconds", "attempts", "peak_memory_bytes"),
)
COLUMNS = (*_TEXTS[:6], *_NUMBERS, "report")
"""The keys of a row, in the order of a table."""


def as_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all ``COLUMNS`` of ``values``, which a worker that was taken over may have made up."""
    row: dict[str, Any] = {}
    for name in COLUMNS:
        value: Any = values.get(name)
        if name in _TEXTS:
            row[name] = printable(value, _LONGEST_REASON) if isinstance(value, str) else None
        else:
            row[name] = value if _is_number(value) and -_LARGEST < value < _LARGEST else None
    if row["outcome"] not in OUTCOMES:
        row["outcome"] = "error"
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Store:
    """The folder of one fleet, in use by one call, or by one for each shard.

    Args:
        folder: is made where it does not exist.
        settings: of the fleet, as JSON values; they must be those of ``run.json`` where that exists.
        shard: ``(k, n)``.

    Raises:
        InputError: e.g. ``out is 'fleet', of a fleet whose seed is 0, and this call's is 1; expected the same settings
            or another folder``.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], shard: tuple[int, int]) -> None:
        self.folder = folder
        self.part = "" if shard[1] == 1 else f"-{shard[0]}-of-{shard[1]}"
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out is {shown(folder)!r}, which is no folder; expected a new one")
        if folder.exists() and not (folder / "run.json").exists() and any(folder.iterdir()):
            raise InputError(f"out is {shown(folder)!r}, which is not empty and no fleet's; expected a new folder")
        self._made, self._is_first = [] if folder.exists() else [folder], False
        for name in (JOBS, QUARANTINE, STAGING):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._agree(settings)
        self._lock = (folder / STAGING / f"lock{self.part}").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(f"out is {shown(folder)!r}, where another call is at work; expected to be alone") from None
        for entry in (folder / STAGING).iterdir():
            if entry.is_dir():
                remove_left(entry)
        self.inputs = Inputs(folder / "inputs.json")
        self._manifest = (folder / f"manifest{self.part}.jsonl").open("ab+", buffering=0)
        end = self._manifest.seek(0, os.SEEK_END)
        if end:
            self._manifest.seek(end - 1)
            if self._manifest.read(1) != b"\n":  # a kill came while the last line was written
                self._manifest.write(b"\n")

    def close(self) -> None:
        self._manifest.close()
        self._lock.close()

    def take_back(self) -> None:
        """Remove what this call made, if it made ``run.json`` and no job was done: another may have other settings.

        Of a shard nothing goes: others may be at work.
        """
        if not self._is_first or self.part or n_rows(self.folder):
            return
        for name in ("run.json", "inputs.json", "manifest.jsonl", f"{STAGING}/lock"):
            (self.folder / name).unlink(missing_ok=True)
        for place in (*(self.folder / name for name in (JOBS, QUARANTINE, STAGING)), *self._made):
            with contextlib.suppress(OSError):  # it holds something
                place.rmdir()

    def _agree(self, settings: Mapping[str, Any]) -> None:
        """Write ``run.json`` where there is none, and compare it."""
        path = self.folder / "run.json"
        document = {"format": _FORMAT, "version": _VERSION, "settings": dict(settings)}
        if not path.exists():
            temporary = self.folder / STAGING / f"run.{secrets.token_hex(8)}"
            write_atomically(temporary, (json.dumps(document, indent=2) + "\n").encode())
            with contextlib.suppress(FileExistsError):  # another shard was first
                os.link(temporary, path)
                self._is_first = True
            temporary.unlink()
        found = settings_of(self.folder)
        for name in sorted({*found, *settings}):
            if found.get(name) != settings.get(name):
                before, now = (printable_value(values.get(name)) for values in (found, settings))
                raise InputError(
                    f"out is {shown(self.folder)!r}, of a fleet whose {name} is {before}, and this call's is {now}; "
                    "expected the same settings or another folder"
                )

    def record(self, event: str, **values: Any) -> None:
        """Append an event to the manifest, and wait until it is on disk."""
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._manifest.write(json.dumps({"time": time, "event": event, **values}).encode() + b"\n")
        os.fsync(self._manifest.fileno())

    # Jobs

    def digests(self, job: Job) -> dict[str, str]:
        """Those of a job that are known before it runs: of its data, its settings, and this version."""
        return {**self.inputs.of_job(job), "version": __version__}

    def is_done(self, job: Job, *, retry_quarantined: bool = False) -> dict[str, Any] | None:
        """The row of ``job`` if it was done, or given up, with the model, data, settings and version of now.

        With ``retry_quarantined`` neither what was given up nor what met a defect is done.
        """
        for part in (JOBS,) if retry_quarantined else (JOBS, QUARANTINE):
            document = read_job(self.folder / part / job.id)
            if document is None or (retry_quarantined and document["row"].get("outcome") == "error"):
                continue
            if self._is_of(document, job):
                return as_row({**document["row"], "id": job.id})
        return None

    def _is_of(self, document: Mapping[str, Any], job: Job) -> bool:
        """Whether a ``job.json`` is of ``job`` with the model, data, settings and version of now."""
        digests, stamp = document["digests"], document.get("stamp")
        if any(digests.get(name) != value for name, value in self.digests(job).items()):
            return False
        try:
            model = job.settings["model"]
            if stamp_of(model) == stamp:
                return True
            return digests.get("model") is not None and digests["model"] == digest_of(model)
        except (InputError, OSError):
            return stamp is None  # it was not there

    def forget_quarantine(self, job: Job) -> None:
        """Drop what an earlier call left of ``job`` when it gave it up."""
        shutil.rmtree(self.folder / QUARANTINE / job.id, ignore_errors=True)

    def quarantine(self, job: Job, reasons: list[str], details: list[str]) -> dict[str, Any]:
        """Give up ``job``; returns its row.

        Args:
            reasons: why each attempt ended, in one line.
            details: the same, with what was printed.
        """
        row = as_row(
            {
                "id": job.id,
                "model": job.settings["model"],
                "kind": job.kind,
                "outcome": "quarantined",
                "reason": reasons[-1],
                "attempts": len(reasons),
                "report": f"{QUARANTINE}/{job.id}/{JOB_FILE}",
            }
        )
        # The model's bytes are not hashed here: a hostile one can be a sparse file of any size.
        digests: dict[str, str | None] = {**self.digests(job), "model": None}
        stamp = None
        with contextlib.suppress(InputError, OSError):
            stamp = stamp_of(job.settings["model"])
        with private_folder(self.folder / STAGING, "quarantine") as (private, _):
            staged = private / "out"
            staged.mkdir()
            write_job(staged, job.id, digests, stamp, row, reasons=details)
            shutil.rmtree(self.folder / JOBS / job.id, ignore_errors=True)  # of the job as it was before
            publish(staged, self.folder / QUARANTINE / job.id)
        return row


def write_job(
    folder: Path, job_id: str, digests: Mapping[str, str | None], stamp: str | None, row: Mapping[str, Any], **more: Any
) -> None:
    """Write ``job.json``, without which a folder is none of a job that was done."""
    document = {"format": f"{_FORMAT}-job", "version": _VERSION, "id": job_id}
    document |= {"digests": dict(digests), "stamp": stamp, "row": dict(row), **more}
    write_atomically(folder / JOB_FILE, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def read_job(folder: Path) -> dict[str, Any] | None:
    """The ``job.json`` of a folder; ``None`` where there is none that can be read."""
    try:
        with (folder / JOB_FILE).open("rb") as file:
            document = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(document, dict) and document.get("format") == f"{_FORMAT}-job"
    whole = known and isinstance(document.get("digests"), dict) and isinstance(document.get("row"), dict)
    return document if whole else None


def publish(staged: Path, folder: Path) -> None:
    """Move ``staged`` to ``folder`` by one rename; what was there before goes."""
    while True:
        try:
            os.rename(staged, folder)  # over an empty folder too, and over nothing else
            return
        except OSError:
            if not folder.exists():
                raise
            before = staged.with_name(f".before.{secrets.token_hex(8)}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, before)
            shutil.rmtree(before, ignore_errors=True)


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings in ``run.json`` of a fleet's folder.

    Raises:
        InputError: ``'fleet' is no folder of a fleet: it holds no run.json``.
    """
    try:
        document = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if document["format"] != _FORMAT or document["version"] != _VERSION:
            raise ValueError(document["format"])
        return dict(document["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{shown(folder)!r} is no folder of a fleet: it holds no run.json of one") from error


def rows(folder: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The rows of all jobs of a fleet that were done or given up, in the order of their ids.

    Args:
        folder: of the fleet, ``out`` of ``run``.

    Raises:
        InputError: ``folder`` is none of a fleet.
    """
    root = Path(folder)
    settings_of(root)
    found = {}
    for part in (QUARANTINE, JOBS):
        with contextlib.suppress(FileNotFoundError):
            found.update(dict.fromkeys(os.listdir(root / part), part))
    for name in sorted(found):
        document = read_job(root / found[name] / name)
        if document is not None:
            yield as_row({**document["row"], "id": name})


def n_rows(folder: Path) -> int:
    """How many jobs were done or given up; raises ``InputError`` where ``folder`` is none of a fleet."""
    settings_of(folder)
    return len({*os.listdir(folder / JOBS), *os.listdir(folder / QUARANTINE)})


def n_listed(folder: Path) -> int:
    """How many jobs the latest calls on this folder had, by the last of each shard."""
    total = 0
    for manifest in _manifests(folder).values():
        last = 0
        with manifest.open("rb") as file:
            for line in file:
                if b'"began"' in line:
                    with contextlib.suppress(ValueError):
                        last = int(json.loads(line).get("n_jobs", last))
        total += last
    return total


def shards_missing(folder: Path) -> list[str]:
    """The shards, as ``k/n``, of which no call has begun though others of the same ``n`` have."""
    begun = _manifests(folder)
    n = max((n for _, n in begun), default=0)
    return [f"{k}/{n}" for k in range(n) if (k, n) not in begun]


def _manifests(folder: Path) -> dict[tuple[int, int], Path]:
    """Those of the latest division into shards, by ``(k, n)``; the jobs of an earlier one are the same."""
    found: dict[int, dict[tuple[int, int], Path]] = {}
    latest: dict[int, int] = {}
    for path in folder.glob("manifest*.jsonl"):
        name = re.fullmatch(r"manifest(?:-([0-9]+)-of-([0-9]+))?", path.stem)
        if name is not None:
            k, n = int(name[1] or 0), int(name[2] or 1)
            found.setdefault(n, {})[k, n] = path
            latest[n] = max(latest.get(n, 0), path.stat().st_mtime_ns)
    return found[max(latest, key=lambda n: latest[n])] if found else {}
