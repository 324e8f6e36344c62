"""The kind of a file, by its content first and its name second. Nothing in it is run, and little of it is read.

A file can be of two kinds at once: readers find a zip archive from its end, a pickle or a protobuf from its start, HDF5
at any power of two. So a file counts as safetensors only if no other reader would accept it too.

Source: the formats' own specifications; for pickle, the standard library's ``pickletools``; for zip, PKWARE's
"APPNOTE", 6.3.10, sections 4.3.12 to 4.3.16; for ONNX and SavedModel, their ``.proto`` files.
"""

from __future__ import annotations

import itertools
import pickletools
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from seamfast.intake.refusal import RefusedError
from seamfast.untrusted import printable

READABLE = frozenset({"safetensors", "safetensors-index", "json", "text"})
"""The kinds that are read; ``refuse_kind`` has a reason for each of the others."""

_CONVERT = "convert it to safetensors where you trained it"
_IN_TORCH = "save the weights in PyTorch, as safetensors"
_STATE_DICT = "save the state dict of the module instead, as safetensors"
_UNPACK = "unpack it, look at what it holds and give the weights as safetensors"
_RUNS = "can run any code as soon as it is read"
_NO_CODE = "name the architecture yourself: no code from a model folder is ever run"
_REASONS = {
    "pickle": (f"a pickle, which {_RUNS}", _CONVERT),
    "torch-zip": (f"a zip of torch.save around a pickle, which {_RUNS}", _CONVERT),
    "torchscript": ("TorchScript, which is a program", _STATE_DICT),
    "torch-export": ("a program of torch.export", _STATE_DICT),
    "numpy-pickle": (f"a NumPy file of Python objects, that is a pickle, which {_RUNS}", _CONVERT),
    "numpy": ("a NumPy array without the name of a tensor", _CONVERT),
    "npz": ("an archive of NumPy arrays", _CONVERT),
    "onnx": ("an ONNX graph, which may name files and custom operators", "save the weights of the module, not a graph"),
    "keras": ("a Keras model in HDF5, whose layers can hold code", _IN_TORCH),
    "keras-zip": ("a zip of Keras, whose layers can hold code", _IN_TORCH),
    "hdf5": ("HDF5, which may name other files", _CONVERT),
    "tensorflow-savedmodel": ("a graph of TensorFlow, which is a program", _IN_TORCH),
    "gguf": ("GGUF, a format of quantized language models", "give the unquantized weights as safetensors"),
    "zip": ("a zip archive, or holds one", _UNPACK),
    "tar": ("a tar archive", _UNPACK),
    "gzip": ("compressed by gzip", _UNPACK),
    "archive": ("compressed, or an archive", _UNPACK),
    "python": ("Python code", _NO_CODE),
    "native": ("machine code", _NO_CODE),
    "script": ("a script, or a notebook", _NO_CODE),
    "build": ("a description of a build, which installers and editors act on", "remove it from the model"),
    "web": ("a web page or a drawing, which may hold scripts", "remove it from the model"),
    "lfs-pointer": ("a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull"),
    "unknown": ("of no known kind", "give the weights as safetensors"),
}

_BY_SUFFIX = {
    "safetensors": "safetensors",
    **dict.fromkeys(("pkl", "pickle", "pt", "pth", "ckpt", "joblib", "dill"), "pickle"),
    "pt2": "torch-export",
    "onnx": "onnx",
    **dict.fromkeys(("h5", "hdf5"), "hdf5"),
    "keras": "keras-zip",
    **dict.fromkeys(("pb", "pbtxt"), "tensorflow-savedmodel"),
    "gguf": "gguf",
    **dict.fromkeys(("zip", "npz", "whl", "egg", "jar", "war", "apk", "mar"), "zip"),
    "tar": "tar",
    **dict.fromkeys(("gz", "tgz"), "gzip"),
    **dict.fromkeys(("py", "pyw", "pyc", "pyo"), "python"),
    **dict.fromkeys(("so", "dll", "dylib", "pyd", "exe", "com", "msi", "scr", "a", "o"), "native"),
    **dict.fromkeys(
        ("7z", "xz", "bz2", "tbz", "txz", "zst", "rar", "lz4", "lzma", "z", "cab", "deb", "rpm"), "archive"
    ),
    **dict.fromkeys(("sh", "bash", "zsh", "fish", "csh", "ksh", "bat", "cmd", "ps1", "psm1", "psd1", "vbs"), "script"),
    **dict.fromkeys(("js", "mjs", "cjs", "ts", "jse", "wsf", "hta", "lua", "rb", "pl", "php", "tcl"), "script"),
    **dict.fromkeys(("ipynb", "r", "jl", "mk", "desktop", "command", "scpt", "applescript", "nsh", "xsh"), "script"),
    **dict.fromkeys(("html", "htm", "xhtml", "xht", "mhtml", "svg", "svgz"), "web"),
}
_BY_NAME = {
    **dict.fromkeys(("makefile", "gnumakefile", "justfile", "rakefile", "jenkinsfile", "vagrantfile"), "script"),
    **dict.fromkeys((".envrc", ".bashrc", ".bash_profile", ".profile", ".zshrc", ".zshenv"), "script"),
    **dict.fromkeys(("setup.cfg", "pyproject.toml", "tox.ini", "pytest.ini", "pip.conf", "package.json"), "build"),
    **dict.fromkeys(("dockerfile", "containerfile", "cmakelists.txt", ".pre-commit-config.yaml"), "build"),
}

_HEAD = 64 << 10
_MAX_HEADER = 100 << 20  # the format's own limit on a safetensors header

_NATIVE = (b"\x7fELF", b"!<arch>\n", b"\0asm", *(bytes.fromhex(h) for h in ("feedface", "feedfacf", "cafebabe")))
_NATIVE += tuple(magic[::-1] for magic in _NATIVE[-3:])
_PACKED = (b"7z\xbc\xaf\x27\x1c", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"Rar!\x1a\x07", b"\x04\x22\x4d\x18", b"MSCF\0\0")
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_COMMENTS = rb"(?:<!--(?:(?!-->).)*-->\s*)*"  # each can be read in one way only, so that nothing is tried twice
_WEB = re.compile(
    rb"\s*" + _COMMENTS + rb"(?:<\?xml[^>]*>\s*)?" + _COMMENTS + rb"(?:<!doctype (?:html|svg)|<(?:html|svg|script)\b)",
    re.IGNORECASE | re.DOTALL,
)
_WEB_HEAD = 2048  # bytes in which a page says what it is
_HDF5 = b"\x89HDF\r\n\x1a\n"
_NUMPY = b"\x93NUMPY"
_LFS = b"version https://git-lfs."

_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_ZIP_ENTRY, _ZIP_END, _ZIP64_END, _ZIP64_LOCATOR = b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ZIP_END_SIZE, _ZIP64_LOCATOR_SIZE, _ZIP64_END_SIZE, _ZIP_ENTRY_SIZE = 22, 20, 56, 46
_ZIP_TAIL = _ZIP64_END_SIZE + _ZIP64_LOCATOR_SIZE + _ZIP_END_SIZE + 0xFFFF  # a comment may follow
_ZIP_LOCAL_SIZE = 30
_PLAIN_ZIPS = {"zip", "npz", "numpy-pickle"}  # of which a name may tell more
_ZIP_DIRECTORY, _ZIP_DIRECTORIES = 256 << 10, 8  # bytes read of all, and how many of them
_MAX_ZIP_ENDS, _MAX_ZIP_MEMBERS = 256, 2_000
_DEFLATED = 8
_MAX_ARRAYS, _ARRAY_HEAD = 256, 4096  # arrays looked at in one archive, and bytes of each

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_MAX_OPCODES = 5_000
MAX_EFFORT, _A_READ = 256 << 20, 256
"""Bytes that are read of all files of a model to tell what they are; each read, and each entry of an archive, counts as
so many more."""
_MAX_LINES, _LINE = 16 << 20, 64 << 10  # bytes of lines that are read, in all and at a time
_TWO_LINES = {"GLOBAL", "INST"}
_GLOBALS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
_CALLS = {"REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
_COUNT_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}

_VARINT, _DELIMITED = 0, 2
_WIRE_SIZES = {1: 8, 5: 4}
_MAX_FIELDS = 1_000
_ONNX = {1: _VARINT, 5: _VARINT, **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), _DELIMITED)}
_ONNX_GRAPH, _ONNX_OPSETS = 7, 8
_SAVED_MODEL = {1: _VARINT, 2: _DELIMITED}


class Effort:
    """What identifying the files of one model may still cost, in bytes; see ``MAX_EFFORT``."""

    def __init__(self, left: int = MAX_EFFORT) -> None:
        self._left = left

    def spend(self, n_bytes: int) -> None:
        """Raise ``RefusedError`` with the code ``too-many-files`` where nothing is left."""
        self._left -= n_bytes + _A_READ
        if self._left < 0:
            message = "telling what the files of the model are takes too much reading; expected fewer, or simpler ones"
            raise RefusedError("too-many-files", message)


@dataclass(frozen=True)
class Look:
    """What the content of a file says; one look serves all names of the file.

    Attributes:
        certain: its kind, if the content shows it.
        is_zip: whether it holds a zip archive.
        plain: its kind if neither content nor name shows any other.
    """

    certain: str | None
    is_zip: bool
    plain: str

    def kind(self, name: str) -> str:
        """The kind of the file under this name: one of ``READABLE``, or one that ``refuse_kind`` refuses."""
        lower = name.lower().rpartition("/")[2]
        stem, _, suffix = lower.rpartition(".")
        if self.certain is not None:
            if self.is_zip and suffix == "pt2" and self.certain != "torchscript":
                return "torch-export"
            return "keras-zip" if suffix == "keras" and self.certain in _PLAIN_ZIPS else self.certain
        if self.plain == "lfs-pointer":
            return self.plain
        if re.search(r"\.so(\.[0-9]+)+$", lower):
            return "native"
        if lower in _BY_NAME:
            return _BY_NAME[lower]
        if suffix == "pth" and self.plain != "unknown":  # lines that Python's start-up runs
            return "python"
        if stem and suffix in _BY_SUFFIX:
            return _BY_SUFFIX[suffix]
        return "json" if suffix == "json" and self.plain == "text" else self.plain


def identify(file: BinaryIO, name: str) -> str:
    """The kind of a file: ``look(file).kind(name)``; the name decides only where the content does not."""
    return look(file).kind(name)


def look(file: BinaryIO, effort: Effort | None = None) -> Look:
    """What the content of a file says about its kind.

    Args:
        file: open for reading, and seekable; left at its start. At most some 64 MB of it are read, whatever its size,
            and of most files less than a megabyte.
        effort: what may be spent, shared by the files of a model; ``None``: ``MAX_EFFORT`` for this one.

    Raises:
        RefusedError: code ``too-many-files``, where the effort is spent.
    """
    size = file.seek(0, 2)
    try:
        return _look(_Window(file, size, effort or Effort()))
    finally:
        file.seek(0)


def refuse_kind(kind: str, name: str) -> NoReturn:
    """Raise the ``RefusedError`` for a file that is no weights: its code is ``kind``.

    Raises:
        RefusedError: e.g. ``model.bin is a pickle, which can run any code as soon as it is read; convert it to
            safetensors where you trained it``.
    """
    what, advice = _REASONS.get(kind, (f"of the kind {kind}", "expected weights as safetensors"))
    raise RefusedError(kind, f"{printable(name)} is {what}; {advice}")


class _Window:
    """A file and its size: small pieces of it, from anywhere; what is read of it is counted."""

    def __init__(self, file: BinaryIO, size: int, effort: Effort) -> None:
        self.file = file
        self.size = size
        self.effort = effort
        self.n_line_bytes = 0

    def at(self, start: int, n: int) -> bytes:
        """At most ``n`` bytes from ``start`` on; none where ``start`` lies outside."""
        if not 0 <= start < self.size:
            return b""
        self.file.seek(start)
        return self.read(n)

    def read(self, n: int) -> bytes:
        """The next bytes, at most ``n``."""
        data = self.file.read(n)
        self.effort.spend(len(data))
        return data

    def line(self) -> bytes:
        """The next bytes to the end of the line, at most ``_LINE``."""
        data = self.file.readline(_LINE)
        self.effort.spend(len(data))
        self.n_line_bytes += len(data)
        return data


def _look(window: _Window) -> Look:
    head = window.at(0, _HEAD)
    text = _is_text(head)
    members = _zip_members(window, head)
    certain = _certain_kind(window, head, text, members)
    return Look(certain, members is not None, _plain_kind(head, text))


def _certain_kind(window: _Window, head: bytes, text: bool, members: list[_Member] | None) -> str | None:
    """The kind that the content shows; ``None`` where it shows none."""
    data = _safetensors_data(window, head)
    if _is_native(window, head, plain=text or data is not None):
        return "native"
    if any(window.at(start, len(_HDF5)) == _HDF5 for start in _hdf5_places(window.size)):
        about = head + window.at(max(window.size - _HEAD, 0), _HEAD)
        return "keras" if re.search(rb"keras_version|model_config|layer_names", about) else "hdf5"
    if members is not None:
        return _zip_kind(members, window)
    if _is_pickle(window, head, plain=text or data is not None):
        return "pickle"
    if head.startswith(_NUMPY):
        return _numpy_kind(head)
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if _is_tar(head):
        return "tar"
    if head.startswith(_PACKED) or _BZIP2.match(head):
        return "archive"
    if head.startswith(b"GGUF"):
        return "gguf"
    if not text:
        if graph := _graph_kind(window):
            return graph
        if head[2:4] == b"\r\n" and data is None:  # how the magic number of compiled Python ends
            return "python"
        if data is not None:
            behind = re.match(rb"\x80[\x00-\x05]", window.at(data, 2)) and _walk(window, data) is not None
            return "pickle" if behind else "safetensors"
    return None


def _plain_kind(head: bytes, text: bool) -> str:
    """The kind of what shows no sign of its own: text, or bytes that only a name tells anything about."""
    if head.startswith(_LFS):
        return "lfs-pointer"
    if not text:
        return "unknown"
    if re.match(rb"#![^\n]*python", head):
        return "python"
    if head.startswith(b"#!"):
        return "script"
    if _WEB.match(head[:_WEB_HEAD]):
        return "web"
    if re.match(rb'\s*\{\s*["}]', head):
        return "safetensors-index" if re.search(rb'"weight_map"\s*:\s*\{', head) else "json"
    return "text"


def _is_text(head: bytes) -> bool:
    """Whether the start of a file is UTF-8 without control characters but white space; nothing at all is text too."""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) < _HEAD or error.start < len(head) - 3:  # a character may be cut in two
            return False
    return not re.search(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]", head)


def _safetensors_data(window: _Window, head: bytes) -> int | None:
    """Where the data of a safetensors file would start, or ``None`` where it cannot be one."""
    start = 8 + int.from_bytes(head[:8], "little")
    return start if head[8:9] == b"{" and start <= min(window.size, 8 + _MAX_HEADER) else None


def _is_native(window: _Window, head: bytes, *, plain: bool) -> bool:
    """ELF, Mach-O, archives of objects, WebAssembly, or DOS and Windows programs, whose two letters prove little."""
    if head.startswith(_NATIVE):
        return True
    portable = window.at(int.from_bytes(head[0x3C:0x40], "little"), 4) == b"PE\0\0"
    return head.startswith(b"MZ") and (portable or not plain)


def _hdf5_places(size: int) -> Iterator[int]:
    """Where HDF5 may begin: at the start, or at 512 bytes times a power of two."""
    yield 0
    start = 512
    while start < size:
        yield start
        start *= 2


@dataclass(frozen=True)
class _Member:
    """An entry of a zip directory; ``start`` is where it says that its local header is."""

    name: str
    method: int
    n_bytes: int
    start: int


def _zip_members(window: _Window, head: bytes) -> list[_Member] | None:
    """The members of a zip archive, wherever in the file it is; ``None`` where there is none.

    Readers differ in how they find the directory: by its offset from the start of the file, or backwards from its end.
    Here it is looked for in each place, from each record that could be the end, with zip64 and without.
    """
    base = max(window.size - _ZIP_TAIL, 0)
    tail = window.at(base, _ZIP_TAIL)
    if tail.count(_ZIP_END) > _MAX_ZIP_ENDS:  # no other file has as many
        return []
    places = set[int]()
    for match in re.finditer(re.escape(_ZIP_END), tail):
        record = tail[match.start() : match.start() + _ZIP_END_SIZE]
        end = base + match.start()
        places |= _directory_places(record[12:16], record[16:20], end)
        locator = window.at(end - _ZIP64_LOCATOR_SIZE, _ZIP64_LOCATOR_SIZE)
        if locator.startswith(_ZIP64_LOCATOR):
            for at in (int.from_bytes(locator[8:16], "little"), end - _ZIP64_LOCATOR_SIZE - _ZIP64_END_SIZE):
                larger = window.at(at, _ZIP64_END_SIZE)
                if larger.startswith(_ZIP64_END):
                    places |= _directory_places(larger[40:48], larger[48:56], at)
    directories = [start for start in sorted(places) if window.at(start, len(_ZIP_ENTRY)) == _ZIP_ENTRY]
    if not directories and not head.startswith(_ZIP_STARTS):
        return None
    directories = directories[:_ZIP_DIRECTORIES]
    n_bytes = _ZIP_DIRECTORY // max(len(directories), 1)
    members = (member for start in directories for member in _directory(window, start, n_bytes))
    return list(itertools.islice(members, _MAX_ZIP_MEMBERS))


def _directory_places(length: bytes, offset: bytes, end: int) -> set[int]:
    return {int.from_bytes(offset, "little"), end - int.from_bytes(length, "little")}


def _directory(window: _Window, start: int, n_bytes: int) -> Iterator[_Member]:
    data, at = window.at(start, n_bytes), 0
    while data[at : at + 4] == _ZIP_ENTRY:
        window.effort.spend(0)
        n_name, n_extra, n_comment = (_integer(data, at + place, 2) for place in (28, 30, 32))
        name = data[at + _ZIP_ENTRY_SIZE : at + _ZIP_ENTRY_SIZE + n_name].decode("latin-1")
        yield _Member(name.lower(), _integer(data, at + 10, 2), _integer(data, at + 20, 4), _integer(data, at + 42, 4))
        at += _ZIP_ENTRY_SIZE + n_name + n_extra + n_comment


def _integer(data: bytes, start: int, n: int) -> int:
    return int.from_bytes(data[start : start + n], "little")


def _zip_kind(members: list[_Member], window: _Window) -> str:
    files = {member.name.rpartition("/")[2] for member in members}
    folders = {part for member in members for part in member.name.split("/")[:-1]}
    if "constants.pkl" in files or "code" in folders:
        return "torchscript"
    if files & {"serialized_exported_program.json", "archive_format"}:
        return "torch-export"
    if "data.pkl" in files:
        return "torch-zip"
    if "model.weights.h5" in files:
        return "keras-zip"
    if 0 < len(members) <= _MAX_ARRAYS and all(member.name.endswith(".npy") for member in members):
        kinds = {_array_kind(window, member) for member in members}
        return "npz" if kinds == {"numpy"} else "numpy-pickle" if "numpy-pickle" in kinds else "zip"
    return "zip"


def _array_kind(window: _Window, member: _Member) -> str:
    """``_numpy_kind`` of a member of an archive, of whose start a little is unpacked."""
    local = window.at(member.start, _ZIP_LOCAL_SIZE)
    if not local.startswith(_ZIP_STARTS[0]):
        return "unknown"
    data = member.start + _ZIP_LOCAL_SIZE + _integer(local, 26, 2) + _integer(local, 28, 2)
    start = window.at(data, min(member.n_bytes, _ARRAY_HEAD))
    if member.method == _DEFLATED:
        try:
            start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(start, _ARRAY_HEAD)
        except zlib.error:
            return "unknown"
    return _numpy_kind(start)


def _numpy_kind(start: bytes) -> str:
    """Plain arrays, or arrays of Python objects (their dtype is ``O``), or none at all."""
    if not start.startswith(_NUMPY):
        return "unknown"
    return "numpy-pickle" if re.search(rb"""['"][|<>=]?O[0-9]*['"]""", start) else "numpy"


def _is_tar(head: bytes) -> bool:
    """Whether the first block has the check sum of a tar header; old ones have no other mark."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _graph_kind(window: _Window) -> str | None:
    """ONNX or SavedModel, by the fields of the protobuf that the whole file must be."""
    fields: dict[int, int] = {}
    at = 0
    for _ in range(_MAX_FIELDS):
        tag, at = _varint(window, at)
        number, wire = tag >> 3, tag & 7
        if at == 0 or not number or fields.setdefault(number, wire) != wire:
            return None
        if wire == _VARINT:
            _, at = _varint(window, at)
        elif wire == _DELIMITED:
            length, at = _varint(window, at)
            at = at and at + length
        else:
            at += _WIRE_SIZES.get(wire, window.size)
        if not 0 < at <= window.size:
            return None
        if at == window.size:
            break
    if _ONNX_GRAPH in fields and fields.keys() & {1, _ONNX_OPSETS} and fields.items() <= _ONNX.items():
        return "onnx"
    return "tensorflow-savedmodel" if fields == _SAVED_MODEL else None


def _varint(window: _Window, start: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, and where it ends; 0 where it does not."""
    value = 0
    for i, byte in enumerate(window.at(start, 10)):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, start + i + 1
    return 0, 0


def _is_pickle(window: _Window, head: bytes, *, plain: bool) -> bool:
    """Whether a pickle begins the file.

    Protocols 2 to 5 begin with their number. Older ones, and those that leave it out, are letters and lines, which text
    and the length of a safetensors header may look like: such are pickles only if they call something, or end where
    the file does.
    """
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and not plain:
        return len(head) > 1
    end = _walk(window, 0)
    return end is not None and (not plain or end < 0 or not window.at(end, _HEAD).strip())


def _walk(window: _Window, start: int) -> int | None:
    """Follow the opcodes of a pickle from ``start`` without doing what they say.

    Returns:
        ``None`` where a reader would stumble before it had called anything, -1 where something is called or the
        opcodes have no end, else where the pickle ends.
    """
    depth, marks, named = 0, list[int](), False
    window.file.seek(start)
    for _ in range(_MAX_OPCODES):
        opcode = _OPCODES.get(window.read(1))
        if opcode is None:
            return None
        before, after = opcode.stack_before, opcode.stack_after
        if opcode.name == "POP" and marks and marks[-1] == depth:
            marks.pop()
        elif pickletools.markobject in before:
            if not marks:
                return None
            depth = marks.pop() - before.index(pickletools.markobject)
        else:
            depth -= len(before)
        if depth < (marks[-1] if marks else 0):
            return None
        if after == [pickletools.markobject]:
            marks.append(depth)
        else:
            depth += len(after)
        if opcode.arg is not None:
            if opcode.arg.n != pickletools.UP_TO_NEWLINE:
                known = _skip(window, opcode.arg.n)
            elif opcode.name in _TWO_LINES:
                known = _names_something(_line(window)) and _names_something(_line(window))
            else:
                known = _line(window) is not None
            if not known or window.n_line_bytes > _MAX_LINES:
                return None
        named |= opcode.name in _GLOBALS
        if named and opcode.name in _CALLS:
            return -1
        if opcode.name == "STOP":
            return window.file.tell()
    return -1


def _skip(window: _Window, n: int) -> bool:
    """Pass over an argument of ``n`` bytes, or of as many as it says; whether the file holds them all."""
    if n < 0:
        n = int.from_bytes(window.file.read(_COUNT_BYTES[n]), "little")
    end = window.file.tell() + n
    if end <= window.size:
        window.file.seek(end)
    return end <= window.size


def _line(window: _Window) -> bytes | None:
    """The start of the next line, which is read to its end; ``None`` where it has none."""
    start = part = window.line()
    while part and not part.endswith(b"\n") and window.n_line_bytes <= _MAX_LINES:
        part = window.line()
    return start.rstrip(b"\n") if part.endswith(b"\n") else None


def _names_something(line: bytes | None) -> bool:
    """Whether a line is what a module or an attribute may be called: ``os.path``."""
    return line is not None and all(part.isidentifier() for part in line.decode("utf-8", "replace").split("."))
