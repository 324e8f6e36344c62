"""``--allow-pickle``: the tensors of a file of ``torch.save``, as safetensors; the pickle is never trusted.

Four fences, one behind the other. Whatever fails at one of them is refused; nothing is tried a second time.

1. The zip is read by the code below, which accounts for every byte of the file and knows every member by name.
2. The pickle is stepped through, not run: the few opcodes that a state_dict needs, with the few globals it needs, on
   values that stand for tensors. What it would build is known before anything is built.
3. A new archive is written of exactly what was checked, so that no other reader can see in it what this one did not.
4. ``torch.load(weights_only=True)`` reads that archive in a process of its own, confined and without a heritage; what
   it writes must be the tensors found in step 2.

Sources: Python's ``pickletools``; PKWARE, ".ZIP File Format Specification" (APPNOTE), 6.3.10; ``torch.serialization``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickletools
import re
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from seamfast.errors import ConfigError
from seamfast.intake.refusal import RefusedError
from seamfast.intake.tensors import DTYPES, TensorSpec, open_untrusted, read_tensors
from seamfast.untrusted import CHUNK, file_size, printable, shown

_OLDEST_TORCH = (2, 10)  # earlier ones had ways around weights_only
_MAX_FILE_BYTES = (4 << 30) - 1  # from here on, zip needs its 64-bit fields
_MAX_PICKLE_BYTES = 16 << 20  # a tensor takes about 250
_MAX_OPCODES = 1_000_000  # a tensor takes about 35
_MAX_MEMBERS = 65_534
_MAX_DIRECTORY_BYTES = 16 << 20  # a member takes about 70
_MAX_DIMS = 16
_MAX_INT = 1 << 48
_MAX_NAME = 512
_MAX_SHARING = 4  # times that the tensors may add up to what is stored: tied ones are written once a name
_SPARE_BYTES = 512 << 20  # for loading, besides the tensors

_OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "BINPERSID", "REDUCE", "BUILD"),
    *("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
}
_BY_CODE = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_NUMBERS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")  # as in DTYPES
_STORAGES = {f"torch {name}Storage": dtype for name, dtype in zip(_NUMBERS, DTYPES.values(), strict=True)}
_ORDERED_DICT = "collections OrderedDict"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_GLOBALS = {  # as the bytes that follow the opcode: pickletools shows escapes undone, which unpicklers do not
    name.replace(" ", "\n").encode() + b"\n": name for name in (_ORDERED_DICT, _TENSOR, _PARAMETER, *_STORAGES)
}
_PLAIN_VALUES = (bool, int, float, str, type(None))


class _Fault(RefusedError):
    """A refusal before ``convert_pickle`` adds the file's name to its message."""


_zip_fault, _limit_fault = partial(_Fault, "pickle-zip"), partial(_Fault, "pickle-limits")
_opcode_fault = partial(_Fault, "pickle-opcode")


@dataclass(frozen=True)
class Converted:
    """What was read: the SHA-256 (hex) and the size in bytes of the pickled file, and the number of its tensors."""

    sha256: str
    n_bytes: int
    n_tensors: int


def convert_pickle(
    path: Path, out: Path, *, time_limit_s: float = 60, memory_limit_bytes: int | None = None
) -> Converted:
    """``save_file(torch.load(path, weights_only=True), out)``, for state_dicts only, and after the checks above.

    A state_dict is a flat dict of names and dense tensors; one inside ``{"state_dict": ...}`` is taken too where only
    numbers, strings and ``None`` lie beside it, which are dropped. Names stay as they are; tied tensors are written
    once for each name. ``path`` is opened once, and copied before it is looked at.

    Args:
        path: a regular file as ``torch.save`` writes since torch 1.6: a zip, members stored; below 4 GiB.
        out: where the safetensors file goes, whole or not at all; its folder exists. A private folder in there holds
            up to three times the size of the file meanwhile.
        time_limit_s: how long the reading process may take, in seconds, and in CPU seconds, above 0.
        memory_limit_bytes: what it may take beyond torch itself, in bytes; ``None`` for five times the tensors and
            512 MiB.

    Returns:
        What was read.

    Raises:
        RefusedError: with the code ``"torch-too-old"``; ``"pickle"`` for what is no such zip, or is refused by torch;
            ``"torchscript"``; ``"pickle-zip"``; ``"pickle-opcode"``; ``"pickle-global"``, e.g.
            ``model.pt: GLOBAL at byte 2 of data.pkl names posix.system; expected only OrderedDict, ...``;
            ``"pickle-not-a-state-dict"``; ``"pickle-limits"``; and those of ``read_tensors``.
        ConfigError: ``time_limit_s is 0; expected a number of seconds above 0``.
    """
    if not (math.isfinite(time_limit_s) and time_limit_s > 0):
        raise ConfigError(f"time_limit_s is {time_limit_s}; expected a number of seconds above 0")
    if memory_limit_bytes is not None and memory_limit_bytes <= 0:
        raise ConfigError(f"memory_limit_bytes is {memory_limit_bytes}; expected a number of bytes above 0, or None")
    _check_platform()
    try:
        with tempfile.TemporaryDirectory(prefix=".seamfast-", dir=out.parent) as private:
            return _convert(path, out, Path(private), time_limit_s, memory_limit_bytes)
    except _Fault as fault:
        raise RefusedError(fault.code, f"{shown(path)}: {fault}") from fault.__cause__


def _convert(path: Path, out: Path, private: Path, time_limit_s: float, memory_bytes: int | None) -> Converted:
    archive, result = private / "archive.pt", private / "model.safetensors"
    with tempfile.TemporaryFile(dir=private) as copy:
        sha256, n_bytes = _copy(path, copy)
        _check_beginning(copy)
        members = _members(copy, n_bytes)
        if "data.pkl" not in members:
            raise _zip_fault("holds no data.pkl; expected a zip that torch.save wrote")
        if members["data.pkl"].n_bytes > _MAX_PICKLE_BYTES:
            found = f"data.pkl has {members['data.pkl'].n_bytes:,} bytes"
            raise _limit_fault(f"{found}; expected at most {_MAX_PICKLE_BYTES:,}")
        pickled = b"".join(_chunks(copy, "data.pkl", members["data.pkl"]))
        state, storages = _state_of(pickled)
        _check_storages(members, storages, copy)
        total = sum(tensor.n_bytes for tensor in state.values())
        stored = sum(storage.n_bytes for storage in storages.values())
        if total > _MAX_SHARING * stored:
            raise _limit_fault(
                f"its tensors share memory and would take {total:,} bytes; expected at most {_MAX_SHARING} times the "
                f"{stored:,} that are stored"
            )
        _write_archive(archive, pickled, copy, members, storages)
    memory_bytes = 5 * total + _SPARE_BYTES if memory_bytes is None else memory_bytes
    file_bytes = total + 4096 * (len(state) + 16)
    _run_child(private, [archive, result, memory_bytes, file_bytes, math.ceil(time_limit_s)], time_limit_s)
    expected = {name: TensorSpec(tensor.size, tensor.storage.dtype) for name, tensor in state.items()}
    try:
        read_tensors(result, expected, what="its pickle")
    except RefusedError as error:
        raise _Fault(error.code, f"gave something else than its pickle describes: {error}") from error
    os.replace(result, out)
    return Converted(sha256, n_bytes, len(state))


def _check_platform() -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        message = f"torch is {torch.__version__}; expected {oldest} or later, to read a pickle with"
        raise RefusedError("torch-too-old", message)
    if sys.platform != "linux":
        message = f"the platform is {sys.platform}; expected linux, where the process that reads is confined"
        raise RefusedError("pickle", message)


def _copy(path: Path, copy: IO[bytes]) -> tuple[str, int]:
    """Copy a regular file; its SHA-256 and size are those of what was copied, whatever happens to it meanwhile."""
    digest, n_bytes = hashlib.sha256(), 0
    with open_untrusted(path, "what torch.save wrote") as source:
        if file_size(source) > _MAX_FILE_BYTES:
            raise _limit_fault(f"has {file_size(source):,} bytes; expected at most {_MAX_FILE_BYTES:,}")
        while chunk := source.read(min(CHUNK, _MAX_FILE_BYTES - n_bytes)):
            digest.update(chunk)
            n_bytes += copy.write(chunk)
    return digest.hexdigest(), n_bytes


# The zip


_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
_END_64, _LOCATOR = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_DESCRIPTOR = struct.Struct("<4s3L")
_HAS_DESCRIPTOR, _UTF_8, _ENCRYPTED = 0x8, 0x800, 0x1
_AS_TORCH = "as torch.save writes"
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_KNOWN_MEMBERS = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]{1,9}"
)


@dataclass(frozen=True)
class _Member:
    """The bytes of the file that are a member, and the CRC-32 that they must have."""

    start: int
    n_bytes: int
    crc: int


_Members = dict[str, _Member]


def _check_beginning(file: IO[bytes]) -> None:
    beginning = _bytes_at(file, 0, len(_LEGACY_MAGIC))
    if beginning == _LEGACY_MAGIC:
        raise _Fault(
            "pickle",
            "is in the legacy format of torch.save, several pickles in a row; expected a zip: where you trust it, save "
            "it anew as safetensors",
        )
    if beginning[:4] != b"PK\x03\x04":
        raise _Fault("pickle", f"begins with {beginning[:4]!r}; expected a zip that torch.save wrote")


def _members(file: IO[bytes], size: int) -> _Members:
    """The members of a zip without unused bytes, by their names below the one top folder.

    Members one behind the other, the directory and its end leave no room for a second archive in front, behind, between
    or in a comment, nor for two members in one place. torch writes such files; ``zip`` and ``zipfile`` do too, where
    nothing is compressed.
    """
    n_members, start, end = _find_directory(file, size)
    if n_members > _MAX_MEMBERS:
        raise _zip_fault(f"has {n_members:,} members; expected at most {_MAX_MEMBERS:,}")
    directory = _bytes_at(file, start, end - start)
    at = after = 0  # in the directory; the end of the member before
    tops: set[str] = set()
    members: _Members = {}
    for _ in range(n_members):
        entry = directory[at : at + _CENTRAL.size]
        if len(entry) < _CENTRAL.size or entry[:4] != b"PK\x01\x02":
            raise _zip_fault(f"its directory has no entry at byte {start + at:,}; expected {n_members:,} entries")
        _, _, _, flags, method, _, _, crc, packed, n_bytes, n_name, n_extra, n_comment, disk, _, mode, offset = (
            _CENTRAL.unpack(entry)
        )
        at += _CENTRAL.size + n_name
        raw_name = directory[at - n_name : at]
        name = _member_name(raw_name, tops)
        kind, more = stat.S_IFMT(mode >> 16), flags & ~(_HAS_DESCRIPTOR | _UTF_8) or n_extra or n_comment or disk
        faults = (
            (name in members, "occurs twice; expected unique names"),
            (flags & _ENCRYPTED, "is encrypted; expected plain members"),
            (method or packed != n_bytes, f"is compressed (method {method}); expected stored members, {_AS_TORCH}"),
            (more, f"carries more than a name and bytes; expected members {_AS_TORCH}"),
            (kind not in (0, stat.S_IFREG), f"is no regular file (mode {mode >> 16:o}); expected plain members"),
            (offset != after, f"begins at byte {offset:,}; expected byte {after:,}, the end of the one before"),
        )
        member = f"member {printable(name, 60)}"
        for is_fault, fault in faults:
            if is_fault:
                raise _zip_fault(f"{member} {fault}")
        members[name], after = _locate(file, offset, raw_name, flags, crc, n_bytes, start, member)
    if at != len(directory) or after != start:
        raise _zip_fault("has bytes that belong to no member; expected members, a directory and its end, nothing else")
    return members


def _find_directory(file: IO[bytes], size: int) -> tuple[int, int, int]:
    """How many entries the directory has, and where it begins and ends."""
    tail = _bytes_at(file, max(size - _END.size, 0), _END.size)
    if len(tail) < _END.size or tail[:4] != b"PK\x05\x06":
        raise _zip_fault("does not end as a zip without a comment does; expected one that torch.save wrote")
    _, disk, first_disk, here, n_members, n_bytes, start, n_comment = _END.unpack(tail)
    end = start + n_bytes
    if disk or first_disk or here != n_members or n_comment or end > size - _END.size:
        raise _zip_fault("has an end that contradicts the file; expected one archive in one piece, without a comment")
    if n_bytes > _MAX_DIRECTORY_BYTES:
        raise _zip_fault(f"has a directory of {n_bytes:,} bytes; expected at most {_MAX_DIRECTORY_BYTES:,}")
    n_between = size - _END.size - end
    if n_between:  # torch always writes the 64-bit end too: it must say the same
        between = _bytes_at(file, end, _END_64.size + _LOCATOR.size)
        same = _END_64.pack(b"PK\x06\x06", _END_64.size - 12, 0, 0, 0, 0, n_members, n_members, n_bytes, start)
        same = same[:12] + between[12:16] + same[16:] + _LOCATOR.pack(b"PK\x06\x07", 0, end, 1)  # but for versions
        if n_between != len(between) or between != same:
            raise _zip_fault(
                f"has {n_between:,} bytes between its directory and its end that are not the 64-bit end of the same "
                "archive; expected one archive, with nothing around it"
            )
    return n_members, start, end


def _member_name(raw: bytes, tops: set[str]) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _zip_fault(f"has a member named {raw[:60]!r}, which is not UTF-8") from None
    holds = f"holds {printable(name, 60)}"
    top, _, rest = name.partition("/")
    tops.add(top)
    if rest.startswith("code/") or rest == "constants.pkl":
        raise _Fault("torchscript", f"{holds}, that is TorchScript, a program; expected weights alone")
    if not _KNOWN_MEMBERS.fullmatch(rest):
        raise _zip_fault(f"{holds}; expected only members that torch.save writes")
    plain = top.isprintable() and top not in ("", ".", "..") and not set(top) & set("\\:")
    if not plain or len(tops) > 1:
        raise _zip_fault(f"{holds}; expected all members in one folder with a plain name")
    return rest


def _locate(
    file: IO[bytes], offset: int, name: bytes, flags: int, crc: int, n_bytes: int, end: int, member: str
) -> tuple[_Member, int]:
    """Where the bytes of a member are, and where the next one begins; its own header must agree."""
    header = _bytes_at(file, offset, _LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise _zip_fault(f"{member} has no header at byte {offset:,}")
    _, _, flags_here, method, _, _, crc_here, packed, n_here, n_name, n_extra = _LOCAL.unpack(header)
    name_here = _bytes_at(file, offset + _LOCAL.size, n_name)
    values = (crc_here, packed, n_here)
    # A writer that streams puts sizes behind the bytes, and zeros before them.
    agrees = values == (crc, n_bytes, n_bytes) or (flags & _HAS_DESCRIPTOR and values == (0, 0, 0))
    if name_here != name or flags_here != flags or method != 0 or not agrees:
        raise _zip_fault(f"{member} has a header that contradicts the directory")
    start = offset + _LOCAL.size + n_name + n_extra
    after = start + n_bytes
    if flags & _HAS_DESCRIPTOR:
        if _bytes_at(file, after, _DESCRIPTOR.size) != _DESCRIPTOR.pack(b"PK\x07\x08", crc, n_bytes, n_bytes):
            raise _zip_fault(f"{member} has a descriptor that contradicts the directory")
        after += _DESCRIPTOR.size
    if after > end:
        raise _zip_fault(f"{member} ends at byte {after:,}, past byte {end:,} where the directory begins")
    return _Member(start, n_bytes, crc), after


def _bytes_at(file: IO[bytes], start: int, n: int) -> bytes:
    file.seek(start)
    return file.read(n)


def _chunks(file: IO[bytes], name: str, member: _Member) -> Iterator[bytes]:
    """The bytes of a member, and the error at their end if they are not those of its CRC-32."""
    crc, done = 0, 0
    while done < member.n_bytes:
        chunk = _bytes_at(file, member.start + done, min(CHUNK, member.n_bytes - done))
        crc = zlib.crc32(chunk, crc)
        done += len(chunk)
        yield chunk
    if crc != member.crc:
        raise _zip_fault(f"member {name} has CRC-32 {crc:08x}; expected {member.crc:08x}")


def _check_storages(members: _Members, storages: Mapping[str, _Storage], file: IO[bytes]) -> None:
    """Each storage that the pickle names is there, to the byte; nothing is there that it does not name."""
    stored = {name.removeprefix("data/") for name in members if name.startswith("data/")}
    if lost := sorted(set(storages) ^ stored):
        half = "stored" if lost[0] in stored else "named in data.pkl"
        raise _zip_fault(f"data/{lost[0]} is {half} only; expected each storage to be both")
    for key, storage in storages.items():
        n_bytes = members[f"data/{key}"].n_bytes
        if n_bytes != storage.n_bytes:
            expected = f"data.pkl expects {storage.n_elements:,} of {storage.dtype}"
            raise _zip_fault(f"data/{key} has {n_bytes:,} bytes; {expected}")
    if "byteorder" in members:
        order = _bytes_at(file, members["byteorder"].start, min(members["byteorder"].n_bytes, 16))
        if order != b"little":
            raise _zip_fault(f"has byte order {order!r}; expected b'little'")


def _write_archive(path: Path, pickled: bytes, file: IO[bytes], members: _Members, keys: Iterable[str]) -> None:
    """What torch reads: a zip of our own, with the bytes that were checked and nothing else."""
    with zipfile.ZipFile(path, "x") as archive:  # stored
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key in keys:
            with archive.open(f"archive/data/{key}", "w") as stream:
                for chunk in _chunks(file, f"data/{key}", members[f"data/{key}"]):
                    stream.write(chunk)


# The pickle


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    n_elements: int

    @property
    def n_bytes(self) -> int:
        return self.n_elements * self.dtype.itemsize


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    size: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize


@dataclass(eq=False)
class _Dict:
    ordered: bool
    items: dict[str, Any] = field(default_factory=dict)


def _state_of(pickled: bytes) -> tuple[dict[str, _Tensor], dict[str, _Storage]]:
    """The tensors by name, and the storages by key, that ``pickled`` would make."""
    _check_opcodes(pickled)
    machine = _Machine(pickled)
    result = machine.run()

    def refused(what: str) -> _Fault:
        expected = "a flat dict of names and tensors, or one in {'state_dict': ...}"
        return _Fault("pickle-not-a-state-dict", f"{what}; expected {expected}")

    if not isinstance(result, _Dict):
        raise refused(f"holds {_described(result)}")
    items = result.items
    if isinstance(inner := items.get("state_dict"), _Dict):
        for name, value in items.items():
            if value is not inner and not isinstance(value, _PLAIN_VALUES):
                raise refused(f"holds {_described(value)} as {printable(name, 60)} beside the state_dict")
        items = inner.items
    if not items:
        raise refused("holds no tensor")
    for name, value in items.items():
        if not isinstance(value, _Tensor):
            raise refused(f"holds {_described(value)} as {printable(name, 60)}")
        if not (name.isprintable() and 0 < len(name) <= _MAX_NAME) or name == "__metadata__":
            raise refused(f"holds a tensor named {printable(name, 60)!r}, which safetensors cannot or should not carry")
    return items, machine.storages


def _opcodes(pickled: bytes) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and place of each opcode, up to STOP. Arguments that are lines stay bytes, newlines included.

    ``pickletools.genops`` would undo escapes in those lines, which unpicklers do not, and so tell other names.
    """
    stream = io.BytesIO(pickled)
    name = ""
    while name != "STOP":
        at = stream.tell()
        code = stream.read(1)
        opcode = _BY_CODE.get(code)
        if opcode is None:
            fault = f"has {code!r} at byte {at:,}, which is no opcode" if code else "ends without STOP"
            raise _opcode_fault(f"data.pkl {fault}")
        name, argument = opcode.name, None
        try:
            if opcode.arg is None:
                pass
            elif opcode.arg.n == pickletools.UP_TO_NEWLINE:
                argument = b"".join(stream.readline() for _ in range(2 if name in ("GLOBAL", "INST") else 1))
                if not argument.endswith(b"\n"):
                    raise ValueError("it ends within a line")
            else:
                argument = opcode.arg.reader(stream)
        except ValueError as error:
            fault = f"cannot be followed past {name} at byte {at:,}: {printable(error)}"
            raise _opcode_fault(f"data.pkl {fault}") from error
        yield name, argument, at


def _check_opcodes(pickled: bytes) -> None:
    """Refuse the first global that is none of a state_dict; if there is none, the first opcode that is none of its.

    All are looked at first, since the name of a global says more than the opcode that happens to come before it.
    """
    unknown: str | None = None
    memo: dict[Any, str | None] = {}
    pushed: deque[str | None] = deque(maxlen=2)  # the last two values, where they are strings for sure
    try:
        for i, (name, argument, at) in enumerate(_opcodes(pickled)):
            if i == _MAX_OPCODES:
                raise _limit_fault(f"data.pkl has more than {_MAX_OPCODES:,} opcodes; expected fewer")
            named = argument if name in ("GLOBAL", "INST") else b""
            if name == "STACK_GLOBAL" and len(pushed) == 2 and None not in pushed:
                named = "".join(f"{text}\n" for text in pushed).encode("utf-8", "replace")
            if named and named not in _GLOBALS:
                printed = named.decode("utf-8", "replace").rstrip("\n").replace("\n", ".")
                named_as = f"{name} at byte {at:,} of data.pkl names {printable(printed, 120)}"
                expected = (
                    "OrderedDict, torch's storages and what rebuilds its tensors, since any other global may be code"
                )
                raise _Fault("pickle-global", f"{named_as}; expected only {expected}")
            if unknown is None and (name not in _OPCODES or (name == "PROTO" and (at, argument) != (0, 2))):
                what = name if argument is None else f"{name} {printable(argument, 60)}"
                unknown = f"data.pkl has {what} at byte {at:,}"
            _follow_strings(name, argument, pushed, memo)
    except RefusedError as error:
        if unknown is None or error.code != "pickle-opcode":
            raise
    if unknown is not None:
        raise _opcode_fault(f"{unknown}; expected only what torch.save writes for a state_dict, in protocol 2")


def _follow_strings(name: str, argument: Any, pushed: deque[str | None], memo: dict[Any, str | None]) -> None:
    """Keep ``pushed`` and ``memo`` up to date where that is sure; whatever is not, is ``None`` or nothing."""
    last = pushed[-1] if pushed else None
    if name == "MEMOIZE":
        memo[len(memo)] = last
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = last
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        pushed.append(memo.get(argument))
    elif "UNICODE" in name or "STRING" in name:
        pushed.append(argument if isinstance(argument, str) else argument.decode("ascii", "replace").strip("\n"))
    elif name not in ("PROTO", "FRAME"):
        pushed.clear()


class _Machine:
    """A pickle machine of placeholders: it follows what ``torch.load`` would build, without building it."""

    def __init__(self, pickled: bytes) -> None:
        self.storages: dict[str, _Storage] = {}
        self._pickled = pickled
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._here = ""

    def run(self) -> Any:
        """The value at STOP, which must be the last byte, with nothing else left."""
        for name, argument, at in _opcodes(self._pickled):
            self._here = f"{name} at byte {at:,}"
            self._step(name, argument)
        result = self._pop()
        if self._stack or self._outer:
            raise self._refused("leaves more than one value; expected one")
        if at + 1 != len(self._pickled):
            raise self._refused(f"is followed by {len(self._pickled) - at - 1:,} bytes; expected none")
        return result

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "STOP":
                pass
            case "NONE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                self._stack.append(argument)
            case "NEWTRUE" | "NEWFALSE":
                self._stack.append(name == "NEWTRUE")
            case "GLOBAL":
                self._stack.append(_Global(_GLOBALS[argument]))
            case "MARK":
                self._outer.append(self._stack)
                self._stack = []
            case "EMPTY_TUPLE":
                self._stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push_tuple([self._pop() for _ in range(int(name[-1]))][::-1])
            case "TUPLE":
                self._push_tuple(self._pop_to_mark())
            case "EMPTY_DICT":
                self._stack.append(_Dict(ordered=False))
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                if argument in self._memo:
                    again = f"stores to place {argument} of the memo again"
                    raise self._refused(f"{again}; expected each to be stored to once")
                self._memo[argument] = self._top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self._memo:
                    raise self._refused(f"reads place {argument} of the memo, where nothing is")
                self._stack.append(self._memo[argument])
            case "BINPERSID":
                self._stack.append(self._storage(self._pop()))
            case "REDUCE":
                arguments, called = self._pop(), self._pop()
                self._stack.append(self._called(called, arguments))
            case "BUILD":
                state, target = self._pop(), self._top()
                attributes = state.items if isinstance(state, _Dict) else None
                if not (isinstance(target, _Dict) and target.ordered and attributes and [*attributes] == ["_metadata"]):
                    raise self._refused("sets attributes; expected only the _metadata of an OrderedDict")
            case _:
                raise AssertionError(name)  # _check_opcodes refuses any other

    def _storage(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Global(kind), str(key), str(place), int(n)) if (
                kind in _STORAGES
                and re.fullmatch("[0-9]{1,9}", key, re.ASCII)
                and re.fullmatch("[a-z]+(:[0-9]+)?", place, re.ASCII)  # ignored: all is loaded on the CPU
                and type(n) is int
                and 0 <= n < _MAX_INT
            ):
                storage = _Storage(_STORAGES[kind], n)
                if self.storages.setdefault(key, storage) != storage:
                    raise self._refused(f"describes storage {key} in two ways; expected one")
                return storage
        expected = "('storage', kind, key, place, number of elements)"
        raise self._refused(f"names something else than a storage; expected {expected}")

    def _called(self, called: Any, arguments: Any) -> Any:
        match called, arguments:
            case _Global("collections OrderedDict"), ():
                return _Dict(ordered=True)
            case _Global("torch._utils _rebuild_tensor_v2"), (_Storage() as storage, *place, bool(), _Dict() as hooks):
                match place:
                    case int(offset), tuple(size), tuple(stride) if hooks.ordered and not hooks.items:
                        return self._tensor(storage, offset, size, stride)
            case _Global("torch._utils _rebuild_parameter"), (_Tensor() as tensor, bool(), _Dict() as hooks):
                if hooks.ordered and not hooks.items:
                    return tensor
        raise self._refused(f"calls {_described(called)} with {_described(arguments)}; expected the making of a tensor")

    def _tensor(self, storage: _Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> _Tensor:
        """Refused unless each element lies in the storage, and there are no more of them than it has."""
        layout = f"size {printable(size, 80)}, stride {printable(stride, 80)} at {printable(offset, 40)}"
        makes = f"makes a tensor of {layout}"
        plain = all(type(n) is int and 0 <= n < _MAX_INT for n in (offset, *size, *stride))
        if not plain or len(size) != len(stride):
            raise self._refused(f"{makes}; expected such as can be")
        n_elements = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if n_elements > storage.n_elements or (n_elements and last >= storage.n_elements):
            held = f"of a storage of {storage.n_elements:,} elements"
            raise self._refused(f"{makes} {held}; expected it to lie inside, each element once")
        return _Tensor(storage, size)

    def _push_tuple(self, items: list[Any]) -> None:
        inner = [item for item in items if isinstance(item, tuple)]
        if len(items) > _MAX_DIMS or any(isinstance(value, tuple) for item in inner for value in item):
            raise self._refused(f"makes a tuple that is long or deep; expected at most {_MAX_DIMS} values, two levels")
        self._stack.append(tuple(items))

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, _Dict) or len(pairs) % 2:
            raise self._refused("sets items of no dict, or half an item")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str):
                raise self._refused(f"sets an item named {_described(key)}; expected a string")
            if key in target.items:
                raise self._refused(f"sets the item {printable(key, 60)} twice; expected each once")
            if not isinstance(value, (*_PLAIN_VALUES, _Tensor, _Dict)):
                raise self._refused(f"sets the item {printable(key, 60)} to {_described(value)}; expected a tensor")
            target.items[key] = value

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise self._refused("takes a value where there is none")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._outer:
            raise self._refused("takes values up to a mark where there is none")
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _refused(self, what: str) -> _Fault:
        return _opcode_fault(f"{self._here} of data.pkl {what}")


def _described(value: Any) -> str:
    """The kind of a value, without its content."""
    match value:
        case _Global(name):
            return name.replace(" ", ".")
        case _Dict(ordered=ordered):
            return "an OrderedDict" if ordered else "a dict"
        case _Tensor() | _Storage():
            return f"a {type(value).__name__.lower().strip('_')}"
        case tuple():
            return f"a tuple of {len(value)}"
    return f"a value of type {type(value).__name__}"


# The process that reads


def _run_child(folder: Path, arguments: Iterable[object], time_limit_s: float) -> None:
    program, home = Path(__file__).with_name("_pickle_child.py"), str(folder)
    # No environment of the caller: no settings of torch, no proxies, no credentials.
    env = {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile(dir=folder) as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(program), *map(str, arguments), str(torch.__version__)],
            stdin=subprocess.PIPE,  # whose end says that this process has ended
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=env,
            start_new_session=True,
        )
        try:
            status = process.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            raise _limit_fault(f"was not read within time_limit_s={time_limit_s:g} seconds") from None
        finally:
            if process.returncode is None:  # too slow, or interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if status:
            raise _ended(output, status)


def _ended(output: IO[bytes], status: int) -> _Fault:
    """Why the process ended with ``status``; its own output serves as a message only."""
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
        limits = status in (-signal.SIGKILL, -signal.SIGXCPU, -signal.SIGXFSZ)
        return _Fault("pickle-limits" if limits else "pickle", f"the process that read it was ended by {name}")
    size = output.seek(0, os.SEEK_END)
    output.seek(max(size - 4096, 0))
    last = output.read(4096).splitlines()[-1:]
    try:
        words = json.loads(last[0])
        code, reason = str(words["code"]), str(words["reason"])
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        code, reason = "pickle", f"no account of it (exit status {status})"
    code = code if code in ("pickle", "pickle-limits", "pickle-not-a-state-dict") else "pickle"
    return _Fault(code, f"could not be read: {printable(reason, 500)}")
