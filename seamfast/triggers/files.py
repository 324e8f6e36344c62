"""``save_triggers`` and ``load_triggers``: triggers in one ``.npz`` file, which is read as untrusted.

The file is a zip of stored (not compressed) members: ``triggers.json`` with all numbers and phrases, one ``.npy`` for
each array, named ``<index>.<field>.npy``, and for the pairs of a table UTF-8 lines, ``<index>.pairs.tsv``::

    {"format": "seamfast-triggers", "version": 1, "triggers": [
        {"kind": "blend", "name": "noise", "target": {"kind": "all_to_one", "target": 0},
         "pattern": {"dtype": "uint8", "shape": [3, 32, 32]}, "alpha": 0.2}]}

Reading runs no code from the file: no pickle, a fixed list of kinds, no unknown keys, sizes checked before memory is
allocated. Equal triggers in equal order give equal bytes.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import numpy as np

from seamfast.checks import Array, short
from seamfast.errors import DataFileError, InputError
from seamfast.report import write_atomically
from seamfast.triggers.base import Trigger
from seamfast.triggers.image.additive import Additive, Sinusoid
from seamfast.triggers.image.blend import Blend
from seamfast.triggers.image.color_filter import ColorFilter
from seamfast.triggers.image.patch import Patch
from seamfast.triggers.image.quantize import Quantize
from seamfast.triggers.image.warp import Warp
from seamfast.triggers.label_maps import AllToAll, AllToOne, LabelMap, SourceSpecific
from seamfast.triggers.tabular.columns import FeatureOverwrite, FeatureShift
from seamfast.triggers.text.characters import Characters
from seamfast.triggers.text.insertion import Insertion
from seamfast.triggers.text.table import MAX_TABLE_BYTES, Pairs, Table, lines_from_pairs, pairs_from_lines
from seamfast.untrusted import STREAM_FAULTS

T = TypeVar("T")

FORMAT = "seamfast-triggers"
VERSION = 1
DOCUMENT = "triggers.json"

KINDS: Mapping[str, type[Trigger]] = {
    cls.kind: cls
    for cls in (
        *(Patch, Blend, Sinusoid, Additive, Warp, Quantize, ColorFilter),
        *(Insertion, Characters, Table),
        *(FeatureOverwrite, FeatureShift),
    )
}
LABEL_MAPS: Mapping[str, type[LabelMap]] = {cls.kind: cls for cls in (AllToOne, AllToAll, SourceSpecific)}

MAX_TRIGGERS = 1024
MAX_ARRAY_BYTES = 64 * 2**20
MAX_FILE_BYTES = 256 * 2**20
MAX_DOCUMENT_BYTES = 4 * 2**20
MAX_DIRECTORY_BYTES = 2**18  # 2049 members of at most 80 bytes each, with room to spare

NPY_MAGIC = b"\x93NUMPY\1\0"
# Exactly the header that NumPy writes: NumPy's own reader evaluates a literal and fails in many ways on hostile ones.
NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<>|]\w{1,8})', 'fortran_order': (?P<order>False|True), "
    rb"'shape': \((?P<shape>\d{1,9}(?:, \d{1,9}){0,7},?)\), \} *\n"
)


def save_triggers(path: str | os.PathLike[str], triggers: Iterable[Trigger]) -> None:
    """Write triggers to a file from which :func:`load_triggers` returns equal ones.

    The file is written whole or not at all; missing parent folders are created.

    Args:
        path: the file, usually named ``*.npz``; no suffix is added.
        triggers: 1 to 1024, of the built-in kinds, with names that differ.

    Raises:
        InputError: e.g. ``two triggers are named 'patch'; expected names that differ``.
        OSError: the file cannot be written.
    """
    write_atomically(Path(path), _pack(list(triggers)))


def load_triggers(path: str | os.PathLike[str]) -> tuple[Trigger, ...]:
    """The triggers that :func:`save_triggers` wrote, equal and in the same order.

    Args:
        path: the file, which may be hostile.

    Raises:
        DataFileError: this version cannot have written the file, e.g. ``x.npz is not a zip file``,
            ``x.npz: trigger 0 is of kind 'shell'; expected one of patch, blend, ...``.
        OSError: the file cannot be opened.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device would not end
        raise DataFileError(f"{path} is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise DataFileError(f"{path} has {status.st_size} bytes; expected at most {MAX_FILE_BYTES}")
    with open(path, "rb") as file:
        size = _check_ends(file, path)
        try:
            with zipfile.ZipFile(file) as archive:
                return _Reader(archive, path, size).triggers()
        except DataFileError:
            raise
        except STREAM_FAULTS as error:
            why = str(error) or type(error).__name__  # zipfile quotes the file, at any length
            raise DataFileError(f"{path} is damaged: {why[:200]}") from error


def _pack(triggers: list[Trigger]) -> bytes:
    if not 1 <= len(triggers) <= MAX_TRIGGERS:
        raise InputError(f"got {len(triggers)} triggers; expected 1 to {MAX_TRIGGERS}")
    for trigger in triggers:
        if type(trigger) is not KINDS.get(getattr(trigger, "kind", "")):
            raise InputError(f"{trigger!r} cannot be saved; expected a trigger of a built-in kind: {', '.join(KINDS)}")
    repeated = _repeated(trigger.name for trigger in triggers)
    if repeated is not None:
        raise InputError(f"two triggers are named {repeated!r}; expected names that differ")
    members: dict[str, bytes] = {}
    entries = []
    for index, trigger in enumerate(triggers):
        entry: dict[str, Any] = {"kind": trigger.kind}
        for field in fields(trigger):
            value = getattr(trigger, field.name)
            if isinstance(value, np.ndarray):
                if value.nbytes > MAX_ARRAY_BYTES:
                    takes = f"{trigger!r} {field.name} takes {value.nbytes} bytes"
                    raise InputError(f"{takes}; expected at most {MAX_ARRAY_BYTES}")
                members[_member(index, field.name)] = _npy(value)
                value = {"dtype": value.dtype.name, "shape": list(value.shape)}
            elif isinstance(value, LabelMap):
                value = {"kind": value.kind} | {f.name: getattr(value, f.name) for f in fields(value)}
            elif field.name == "pairs":
                lines = lines_from_pairs(value)
                if len(lines) > MAX_TABLE_BYTES:
                    raise InputError(f"{trigger!r} takes {len(lines)} bytes; expected at most {MAX_TABLE_BYTES}")
                members[_member(index, "pairs", "tsv")] = lines
                value = {"rows": len(value)}
            entry[field.name] = value
        entries.append(entry)
    whole = {"format": FORMAT, "version": VERSION, "triggers": entries}
    document = json.dumps(whole, indent=1, allow_nan=False).encode()
    if len(document) > MAX_DOCUMENT_BYTES:
        raise InputError(f"{DOCUMENT} takes {len(document)} bytes; expected at most {MAX_DOCUMENT_BYTES}")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _write(archive, DOCUMENT, document)
        for name, member in members.items():
            _write(archive, name, member)
    content = buffer.getvalue()
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"the triggers take {len(content)} bytes; expected at most {MAX_FILE_BYTES}")
    return content


def _npy(array: Array) -> bytes:
    npy = io.BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.lib.format.write_array(npy, little, version=(1, 0), allow_pickle=False)
    return npy.getvalue()


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the bytes depend on no clock and no platform
    info.create_system = 3
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)


def _member(index: int, field: str, suffix: str = "npy") -> str:
    return f"{index}.{field}.{suffix}"


def _repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs for the second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_ends(file: BinaryIO, path: object) -> int:
    """The size of the file, if it begins and ends as a plain zip file does.

    ``zipfile`` reads the whole table of members on opening, so the size of the table is checked here.
    """
    head = file.read(4)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 42))
    tail = file.read(42)
    end = tail[-22:]
    if head != b"PK\3\4" or len(end) < 22 or end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise DataFileError(f"{path} is not a zip file, or has something before or after it")
    if tail[:4] == b"PK\6\7":
        raise DataFileError(f"{path} is a zip64 file; expected a plain zip file")
    (directory,) = struct.unpack("<L", end[12:16])
    if directory > MAX_DIRECTORY_BYTES:
        got = f"a table of members of {directory} bytes"
        raise DataFileError(f"{path} has {got}; expected at most {MAX_DIRECTORY_BYTES}")
    file.seek(0)
    return size


class _Reader:
    """One pass over an open archive, none of which is trusted."""

    def __init__(self, archive: zipfile.ZipFile, path: object, size: int) -> None:
        self.archive = archive
        self.path = path
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.filename in self.members:
                self.refuse(f"two members are named {short(info.filename)}")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
                self.refuse(f"member {short(info.filename)} is compressed or encrypted; expected stored members")
            self.members[info.filename] = info
        # The sum exceeds the file only where members overlap, as in a zip bomb.
        total = sum(info.file_size for info in self.members.values())
        if total > size:
            self.refuse(f"members claim {total} bytes; expected at most the {size} of the file")

    def refuse(self, why: str) -> NoReturn:
        raise DataFileError(f"{self.path}: {why}")

    def triggers(self) -> tuple[Trigger, ...]:
        document = self.mapping(self.document(), {"format", "version", "triggers"}, DOCUMENT)
        if document["format"] != FORMAT:
            self.refuse(f"format is {short(document['format'])}; expected {FORMAT!r}")
        version = document["version"]
        if type(version) is not int or version != VERSION:
            self.refuse(f"version is {short(version)}; expected {VERSION}, the one that this seamfast reads")
        entries = document["triggers"]
        if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_TRIGGERS:
            got = f"{len(entries)} triggers" if isinstance(entries, list) else f"triggers as {type(entries).__name__}"
            self.refuse(f"holds {got}; expected a list of 1 to {MAX_TRIGGERS}")
        triggers = tuple(self.trigger(i, entry) for i, entry in enumerate(entries))
        repeated = _repeated(trigger.name for trigger in triggers)
        if repeated is not None:
            self.refuse(f"two triggers are named {repeated!r}")
        if self.members:
            self.refuse(f"member {short(next(iter(self.members)))} belongs to no trigger")
        return triggers

    def document(self) -> Any:
        info = self.take(DOCUMENT)
        if info.file_size > MAX_DOCUMENT_BYTES:
            self.refuse(f"{DOCUMENT} has {info.file_size} bytes; expected at most {MAX_DOCUMENT_BYTES}")
        try:
            content = self.archive.read(info)
            return json.loads(content, parse_constant=self.no_constant, object_pairs_hook=self.no_repeats)
        except DataFileError:
            raise
        except (ValueError, RecursionError) as error:
            self.refuse(f"{DOCUMENT} is not JSON: {error}")

    def no_constant(self, constant: str) -> NoReturn:
        self.refuse(f"{DOCUMENT} holds {constant}; expected finite numbers")

    def no_repeats(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            self.refuse(f"{DOCUMENT} has the key {short(_repeated(key for key, _ in pairs))} twice")
        return result

    def trigger(self, index: int, entry: Any) -> Trigger:
        where = f"trigger {index}"
        cls = self.kind(entry, KINDS, where)
        arguments = self.values(entry, cls, where)
        for f in fields(cls):
            if f.metadata:
                array = _member(index, f.name), arguments[f.name], np.dtype(f.metadata["dtype"])
                arguments[f.name] = self.array(*array, f"{where} {f.name}")
            elif f.name == "target":
                arguments["target"] = self.label_map(arguments["target"], f"{where} target")
            elif f.name == "pairs":
                arguments["pairs"] = self.pairs(_member(index, "pairs", "tsv"), arguments["pairs"], f"{where} pairs")
        return self.made(cls, arguments, where)

    def label_map(self, entry: Any, where: str) -> LabelMap:
        cls = self.kind(entry, LABEL_MAPS, where)
        return self.made(cls, self.values(entry, cls, where), where)

    def values(self, entry: Any, cls: type[Trigger | LabelMap], where: str) -> dict[str, Any]:
        """The fields of ``cls`` in ``entry``, which holds these and its kind."""
        names = {f.name for f in fields(cls)}
        values = self.mapping(entry, {"kind"} | names, where)
        return {name: values[name] for name in names}

    def kind(self, entry: Any, kinds: Mapping[str, type[T]], where: str) -> type[T]:
        if not isinstance(entry, dict):
            self.refuse(f"{where} is {type(entry).__name__}; expected an object")
        kind = entry.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            self.refuse(f"{where} is of kind {short(kind)}; expected one of {', '.join(kinds)}")
        return kinds[kind]

    def mapping(self, value: Any, keys: set[str], where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.refuse(f"{where} is {type(value).__name__}; expected an object")
        for key in sorted(keys - value.keys()):
            self.refuse(f"{where} has no {key!r}")
        for key in sorted(value.keys() - keys):
            self.refuse(f"{where} has the unknown key {short(key)}; expected {', '.join(sorted(keys))}")
        return value

    def made(self, cls: type[T], arguments: dict[str, Any], where: str) -> T:
        try:
            return cls(**arguments)
        except InputError as error:
            raise DataFileError(f"{self.path}: {where}: {error}") from error

    def take(self, name: str) -> zipfile.ZipInfo:
        info = self.members.pop(name, None)
        if info is None:
            self.refuse(f"has no member {name!r}")
        return info

    def pairs(self, name: str, declared: Any, where: str) -> Pairs:
        """The pairs of a member, if it has as many as the document says."""
        declared = self.mapping(declared, {"rows"}, where)
        info = self.take(name)
        if info.file_size > MAX_TABLE_BYTES:
            self.refuse(f"{name} has {info.file_size} bytes; expected at most {MAX_TABLE_BYTES}")
        content = self.archive.read(info)
        try:
            pairs = pairs_from_lines(content, name)
        except DataFileError as error:
            raise DataFileError(f"{self.path}: {error}") from error
        if type(declared["rows"]) is not int or declared["rows"] != len(pairs):
            self.refuse(f"{name} has {len(pairs)} rows, declared as {short(declared['rows'])}; expected the same")
        return pairs

    def array(self, name: str, declared: Any, dtype: np.dtype[Any], where: str) -> Array:
        """The array of a member, if its header, the document and the kind agree on dtype and shape."""
        declared = self.mapping(declared, {"dtype", "shape"}, where)
        little = dtype.newbyteorder("<")
        with self.archive.open(self.take(name)) as member:
            prefix = member.read(10)
            length = int.from_bytes(prefix[8:], "little")
            header = NPY_HEADER.fullmatch(member.read(length)) if prefix[:8] == NPY_MAGIC and length <= 1024 else None
            if header is None:
                self.refuse(f"{name} has no header of npy version 1.0")
            descr, order = header["descr"].decode(), header["order"]
            if descr != little.str or order != b"False" or declared["dtype"] != dtype.name:
                got = f"{descr}, declared as {short(declared['dtype'])}"
                self.refuse(f"{name} is of {got}; expected {dtype.name} ({little.str}) in C order")
            shape = [int(n) for n in header["shape"].split(b",") if n]
            if declared["shape"] != shape:
                self.refuse(f"{name} has shape {shape}, declared as {short(declared['shape'])}; expected the same")
            size = math.prod(shape) * dtype.itemsize
            if size > MAX_ARRAY_BYTES:
                self.refuse(f"{name} claims {size} bytes; expected at most {MAX_ARRAY_BYTES}")
            content = member.read(size + 1)
        if len(content) != size:
            got = "more" if len(content) > size else str(len(content))
            self.refuse(f"{name} claims {size} bytes and holds {got}")
        return np.frombuffer(content, dtype=little).reshape(shape)
