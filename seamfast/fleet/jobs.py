"""The jobs of a fleet: a folder of model folders, or JSON lines; read strictly, and one at a time."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seamfast.errors import InputError
from seamfast.untrusted import open_regular, printable, printable_value, shown

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MOST_BYTES = 64 << 10  # of a line
_OF_A_MODEL = ("model.safetensors", "model.json", "config.json")

# What a field holds, as its errors name it.
TEXT, NUMBER, COUNT, FLAG = "text", "a number", "an integer in [0, 2**63)", "true or false"
TABLE, NAMES = "an object of JSON values", "a list of names"

_COMMON = {"model": TEXT, "data": TEXT, "root": TEXT, "split": TEXT, "seed": COUNT, "device": TEXT}
_SANITIZE = {
    "fraction": NUMBER,
    "holdout": TEXT,
    "holdout_split": TEXT,
    "test": TEXT,
    "test_split": TEXT,
    "triggers": TEXT,
    "method": TEXT,
    "preset": TEXT,
    "config": TABLE,
    "trainable": NAMES,
    "audits": NAMES,
    "precision": TEXT,
    "time_budget_s": NUMBER,
    "evidence": FLAG,
}
_GATE = {"policy": TEXT, "architecture": TEXT, "arguments": TABLE, "allow_pickle": FLAG}
FIELDS = {"sanitize": {**_COMMON, **_SANITIZE}, "gate": {**_COMMON, **_GATE}}
"""The settings of a job by its kind, and what each holds."""

PATHS = ("model", "root", "triggers", "policy")
"""Settings that are always paths."""
SOURCES = ("data", "holdout", "test")
"""Settings that are paths or names of data sets."""
DATA_SETS = (
    *("breast-cancer", "cifar10", "digits", "digits-table", "fashion-mnist", "mnist", "mnist-5k"),
    *("ag-news", "sst2", "trec"),
)
"""What ``seamfast.load`` knows by name; here too, since its modules import torch."""


@dataclass(frozen=True)
class Job:
    """One model to sanitize, or to gate.

    Attributes:
        id: names its folder; unique in its fleet.
        settings: JSON values by the names in ``FIELDS``, those of the fleet included; paths are absolute.
    """

    id: str
    settings: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """``"gate"`` with a policy, else ``"sanitize"``."""
        return "gate" if "policy" in self.settings else "sanitize"


class Jobs:
    """The jobs of a source, read when they are asked for, so that memory hardly grows with their number.

    Args:
        source: a folder, each of whose folders is a model, or a file of JSON objects, one a line.
        defaults: settings of the jobs that do not have their own, with absolute paths.
        shard: ``(k, n)``: the jobs whose id has a SHA-256 that leaves ``k`` modulo ``n``.

    Raises:
        InputError: e.g. ``jobs.jsonl, line 3: unknown key 'modle'; did you mean 'model'?``.
    """

    def __init__(
        self, source: str | os.PathLike[str], defaults: Mapping[str, Any], shard: tuple[int, int] = (0, 1)
    ) -> None:
        self.source = Path(os.path.abspath(source))
        check_settings(defaults, "the fleet's settings")
        self._defaults = dict(defaults)
        self._shard = shard
        self._offsets = array("q")  # of lines, or numbers of folders
        self._folders: list[str] = []
        if self.source.is_dir():
            self._find_folders()
        else:
            self._find_lines()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> Job:
        offset = self._offsets[number]
        if self._folders:
            return self._of_folder(self._folders[offset])
        with self.source.open("rb") as file:
            file.seek(offset)
            return self._of_line(file.readline(), shown(self.source))

    def __iter__(self) -> Iterator[Job]:
        return (self[number] for number in range(len(self)))

    def _find_folders(self) -> None:
        if any((self.source / name).is_file() for name in _OF_A_MODEL):
            raise InputError(f"{shown(self.source)} is the folder of one model; expected a folder of such folders")
        with os.scandir(self.source) as entries:
            names = sorted(e.name for e in entries if os.path.isdir(e.path) and not e.name.startswith("."))
        if not names:
            raise InputError(f"{shown(self.source)} holds no folders; expected one for each model")
        _check_kind(self._defaults, self._defaults, "the fleet's settings")
        self._folders, known = names, set(names)
        for number, name in enumerate(names):
            job_id = self._of_folder(name).id
            if job_id != name and job_id in known:
                raise InputError(f"{shown(self.source)} holds {printable(name)!r} and {job_id!r}; expected one of them")
            if self._is_ours(job_id):
                self._offsets.append(number)

    def _of_folder(self, name: str) -> Job:
        settings = {**self._defaults, "model": str(self.source / name)}
        _check_data(settings, "the fleet")
        whole = _ID.fullmatch(name)
        return Job(name if whole else f"{_cleaned(name)}-{_hash(name)}", settings)

    def _find_lines(self) -> None:
        where, seen = shown(self.source), dict[bytes, int]()
        with open_regular(self.source, "a folder of models, or a file of JSON lines") as file:
            offset = 0
            for number, line in enumerate(iter(lambda: file.readline(_MOST_BYTES + 1), b""), 1):
                if line.strip():
                    job = self._of_line(line, f"{where}, line {number}")
                    key = hashlib.sha256(job.id.encode()).digest()[:12]
                    if (first := seen.setdefault(key, number)) != number:
                        raise InputError(
                            f"{where}, line {number}: id {job.id!r} is that of line {first}; expected one of its own"
                        )
                    if self._is_ours(job.id):
                        self._offsets.append(offset)
                offset += len(line)
        if not seen:
            raise InputError(f"{where} holds no jobs; expected one JSON object a line")

    def _of_line(self, line: bytes, where: str) -> Job:
        if len(line) > _MOST_BYTES:
            raise InputError(f"{where}: is longer than {_MOST_BYTES:,} bytes; expected one JSON object")
        try:
            given = json.loads(line, object_pairs_hook=_once, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: is not strict JSON ({printable(error)}); expected one object") from None
        if not isinstance(given, dict):
            raise InputError(f"{where}: is {printable_value(given)}; expected a JSON object")
        name = given.pop("id", None)
        check_settings(given, where)
        if "model" not in given:
            raise InputError(f"{where}: has no 'model'; expected a path")
        is_gate = "policy" in given or ("policy" in self._defaults and not _SANITIZE.keys() & given)
        known = FIELDS["gate" if is_gate else "sanitize"]
        settings = {k: v for k, v in self._defaults.items() if k in known} | absolute(given, self.source.parent)
        _check_kind(given, settings, where)
        _check_data(settings, where)
        if name is None:
            named = {key: settings.get(key) for key in ("data", "seed", "policy")} | {"model": given["model"]}
            name = f"{_cleaned(Path(given['model']).name)}-{_hash(json.dumps(named, sort_keys=True))}"
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise InputError(
                f"{where}: id is {printable_value(name)}; expected 1 to 128 letters, digits, '.', '_' or '-'"
            )
        return Job(name, settings)

    def _is_ours(self, job_id: str) -> bool:
        k, n = self._shard
        return n == 1 or int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "big") % n == k


def absolute(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """``settings`` with the paths among them made absolute, from ``folder``; a name of a data set stays."""
    found = dict(settings)
    for name in (*PATHS, *SOURCES):
        value = found.get(name)
        if isinstance(value, str) and (name in PATHS or value not in DATA_SETS):
            found[name] = os.path.abspath(folder / value)
    return found


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise ``InputError`` for a key that no job has, or a value of another type."""
    fields = FIELDS["sanitize"] | FIELDS["gate"]
    for name, value in settings.items():
        if name not in fields:
            near = difflib.get_close_matches(name, [*fields, "id"], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected id, {', '.join(sorted(fields))}"
            raise InputError(f"{where}: unknown key {printable_value(name)}; {hint}")
        if not _is_of(value, fields[name]):
            raise InputError(f"{where}: {name} is {printable_value(value)}; expected {fields[name]}")


def _is_of(value: Any, kind: str) -> bool:
    if kind == TEXT:
        return isinstance(value, str) and value != "" and "\0" not in value and _is_encodable(value)
    if kind == NUMBER:
        return type(value) in (int, float) and math.isfinite(value)
    if kind == COUNT:
        return type(value) is int and 0 <= value < 2**63
    if kind == FLAG:
        return isinstance(value, bool)
    if kind == TABLE:
        return isinstance(value, dict) and _is_json(value)
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_encodable(text: str) -> bool:
    """Whether a file could have this name; JSON can hold half of a surrogate pair."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _is_json(value: Any) -> bool:
    """Whether JSON gives back ``value`` as it is: no date of TOML, no infinity, no tuple."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _check_kind(given: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """Raise ``InputError`` if ``given`` holds what a job with these ``settings`` does not take."""
    is_gate = "policy" in settings
    known = FIELDS["gate" if is_gate else "sanitize"]
    if other := sorted(given.keys() - known.keys()):
        why = "a job with a policy is a gate" if is_gate else "a job without a policy is no gate"
        raise InputError(f"{where}: has {other[0]!r}, but {why}; expected {', '.join(sorted(known))}")


def _check_data(settings: Mapping[str, Any], where: str) -> None:
    if "data" not in settings:
        raise InputError(f"{where}: has no data; expected 'data' in the job, or data for the fleet")


def _cleaned(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip("._-")[:100] or "model"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:10]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def check_shard(shard: str | None) -> tuple[int, int]:
    """``"2/8"`` as ``(2, 8)``; ``None`` as ``(0, 1)``.

    Raises:
        InputError: ``shard is '8/8'; expected k/n with k from 0 to n - 1``.
    """
    if shard is None:
        return 0, 1
    found = re.fullmatch(r"([0-9]{1,6})/([1-9][0-9]{0,5})", shard) if isinstance(shard, str) else None
    if found is None or int(found[1]) >= int(found[2]):
        raise InputError(f"shard is {printable_value(shard)}; expected k/n with k from 0 to n - 1")
    return int(found[1]), int(found[2])
