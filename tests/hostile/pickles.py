"""Hostile pickles: each would leave a canary file behind, or is no state_dict, or lies in a zip that lies.

All are put together byte by byte, so that making one runs nothing. None may be unpickled but by the reading process of
``seamfast.intake.pickles``.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.hostile.case import Case

CANARY = "canary"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# The parts of a pickle.

PROTO_2, STOP, MARK, TUPLE, REDUCE, BUILD = b"\x80\x02", b".", b"(", b"t", b"R", b"b"
EMPTY_DICT, EMPTY_TUPLE, SETITEM, BINPERSID, NEWFALSE, NONE = b"}", b")", b"s", b"Q", b"\x89", b"N"


def text(value: str) -> bytes:
    """BINUNICODE."""
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def short(value: str) -> bytes:
    """SHORT_BINUNICODE, of protocol 4."""
    encoded = value.encode()
    return b"\x8c" + bytes([len(encoded)]) + encoded


def number(value: int) -> bytes:
    """LONG1."""
    encoded = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def line(value: str) -> bytes:
    """STRING, of protocol 0."""
    return b"S" + repr(value).encode() + b"\n"


def named(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + MARK + b"".join(arguments) + TUPLE + REDUCE


def storage(key: str = "0", n: int = 2, kind: str = "FloatStorage") -> bytes:
    return MARK + text("storage") + named("torch", kind) + text(key) + text("cpu") + number(n) + TUPLE + BINPERSID


def tensor(
    size: tuple[int, ...] = (2,), stride: tuple[int, ...] = (1,), offset: int = 0, stored: bytes | None = None
) -> bytes:
    return call(
        named("torch._utils", "_rebuild_tensor_v2"),
        storage() if stored is None else stored,
        number(offset),
        MARK + b"".join(map(number, size)) + TUPLE,
        MARK + b"".join(map(number, stride)) + TUPLE,
        NEWFALSE,
        named("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE,
    )


def dict_of(**items: bytes) -> bytes:
    return EMPTY_DICT + b"".join(text(name) + value + SETITEM for name, value in items.items())


def whole(value: bytes) -> bytes:
    return PROTO_2 + value + STOP


GOOD = whole(dict_of(w=tensor()))
STORAGES = {"0": struct.pack("<2f", 1.0, 2.0)}


# Payloads: what they hold is made to touch the canary, if anything in it runs.


def _system(canary: str, protocol: int, framed: bool = False) -> bytes:
    """``os.system("touch ...")`` as each protocol spells it."""
    command = f"touch {canary}"
    if protocol == 0:
        return b"cposix\nsystem\n" + MARK + line(command) + TUPLE + REDUCE + STOP
    if protocol < 4:
        return b"\x80" + bytes([protocol]) + call(named("posix", "system"), text(command)) + STOP
    body = short("posix") + b"\x94" + short("system") + b"\x94\x93" + text(command) + b"\x85" + REDUCE + STOP
    frame = b"\x95" + struct.pack("<Q", len(body)) if framed else b""
    return b"\x80" + bytes([protocol]) + frame + body


def _calling(module: str, name: str, *arguments: str) -> Callable[[str], bytes]:
    """A call whose arguments may speak of ``{canary}``."""
    return lambda canary: whole(call(named(module, name), *(text(a.format(canary=canary)) for a in arguments)))


def _stacked(before: bytes, module: bytes, name: bytes) -> Callable[[str], bytes]:
    """A call of what STACK_GLOBAL makes of two strings that came about in an odd way."""
    return lambda canary: b"\x80\x04" + before + module + name + b"\x93" + text(f"touch {canary}") + b"\x85R."


def _plain(pickled: bytes) -> Callable[[str], bytes]:
    return lambda canary: pickled


_TOUCH, _OPEN = "touch {canary}", "open({canary!r}, 'w')"
_OF_SYSTEM = partial(_system, protocol=2)
_ORDERED = named("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE

# By name: the pickle, and the code that it is refused with where it is the data.pkl of an else faultless zip.
_CALLING: dict[str, Callable[[str], bytes]] = {
    **{f"posix.system, protocol {n}": partial(_system, protocol=n) for n in range(6)},
    **{f"posix.system, protocol {n}, framed": partial(_system, protocol=n, framed=True) for n in (4, 5)},
    "os.system": _calling("os", "system", _TOUCH),
    "builtins.eval": _calling("builtins", "eval", _OPEN),
    "builtins.exec": _calling("builtins", "exec", _OPEN),
    "eval by its old name": _calling("__builtin__", "eval", _OPEN),
    "subprocess": _calling("subprocess", "getoutput", _TOUCH),
    "runpy": _calling("runpy", "run_path", "{canary}.py"),
    "importlib": _calling("importlib", "import_module", "antigravity {canary}"),
    "getattr": _calling("builtins", "getattr", "{canary}", "x"),
    "torch.load": _calling("torch", "load", "{canary}"),
    "torch.hub": _calling("torch.hub", "load", "{canary}", "x"),
    "torch.jit": _calling("torch.jit", "load", "{canary}"),
    "torch.storage": _calling("torch.storage", "_load_from_bytes", "{canary}"),
    "torch's name, another's module": _calling("torch_utils", "_rebuild_tensor_v2", _TOUCH),
    "through an attribute of torch": _calling("torch", "serialization.os.system", _TOUCH),
    "through an attribute of a storage": _calling("torch", "FloatStorage.__init__", _TOUCH),
    "a name behind the right one": _calling("torch", "FloatStorage\n", _TOUCH),
    "a space in a name": _calling("torch FloatStorage", "", _TOUCH),
    "an escape in a name": _calling("collect\\x69ons", "OrderedDict", _TOUCH),
    "a name with terminal escapes": _calling("\x1b[2Jos\u202e", "system", _TOUCH),
    "a name of a megabyte": _calling("os" * (1 << 19), "system", _TOUCH),
    "numpy": _calling("numpy._core.multiarray", "_reconstruct", "{canary}"),
    "_codecs.encode": _calling("_codecs", "encode", "{canary}", "latin1"),
    "torch.device": _calling("torch", "device", "{canary}"),
    "a pickle within": lambda canary: whole(call(named("_pickle", "loads"), b"B" + _sized(_OF_SYSTEM(canary)))),
    "as a value": lambda canary: whole(dict_of(w=tensor(), x=_OF_SYSTEM(canary)[2:-1])),
    "in place of the hooks": lambda canary: GOOD.replace(_ORDERED, _OF_SYSTEM(canary)[2:-1]),
    "INST": lambda canary: PROTO_2 + MARK + line(f"touch {canary}") + b"ios\nsystem\n" + STOP,
    "OBJ": lambda canary: whole(MARK + named("os", "system") + text(f"touch {canary}") + b"o"),
    "NEWOBJ": lambda canary: whole(named("os", "system") + text(f"touch {canary}") + b"\x85\x81"),
    "NEWOBJ_EX": lambda canary: (
        b"\x80\x04" + short("os") + short("system") + b"\x93" + text(f"touch {canary}") + b"\x85}\x92."
    ),
    "STACK_GLOBAL by way of the memo": _stacked(short("system") + b"\x94" + short("os") + b"\x94", b"h\x01", b"h\x00"),
    "STACK_GLOBAL, a memo written twice": _stacked(
        short("collections") + b"q\x00" + short("os") + b"q\x00", b"h\x00", short("system")
    ),
    "STACK_GLOBAL, harmless names dropped": _stacked(
        short("os") + short("system") + short("collections") + short("OrderedDict"), b"0", b"0"
    ),
    "STACK_GLOBAL of a name twice": _stacked(short("posix"), b"2", b"00" + short("system")),
    "STACK_GLOBAL of computed strings": _stacked(b"", call(b"\x8c\x01.\x8c\x04join\x93", short("os")), short("system")),
    "STACK_GLOBAL of nothing": _stacked(b"", b"", b""),
    "EXT1": lambda canary: whole(b"\x82\x01" + text(f"touch {canary}") + b"\x85R"),
    "EXT2": lambda canary: whole(b"\x83\x01\x01" + text(f"touch {canary}") + b"\x85R"),
    "EXT4": lambda canary: whole(b"\x84\x01\x01\x01\x01" + text(f"touch {canary}") + b"\x85R"),
    "behind STOP": lambda canary: GOOD + _OF_SYSTEM(canary),
    "before PROTO": lambda canary: call(named("os", "system"), text(f"touch {canary}")) + b"0" + GOOD,
    "NEWOBJ of a class that is known": lambda c: whole(named("collections", "OrderedDict") + text(c) + b"\x85\x81"),
    "REDUCE of a string": lambda canary: whole(call(text("os.system"), text(f"touch {canary}"))),
    "REDUCE of a class with an argument": _calling("collections", "OrderedDict", "{canary}"),
    "BUILD of an attribute": lambda canary: whole(_ORDERED + dict_of(items=text(canary)) + BUILD),
    "BUILD of an attribute beside _metadata": lambda c: whole(
        _ORDERED + dict_of(_metadata=NONE, __class__=text(c)) + BUILD
    ),
    "BUILD of a tensor": lambda canary: whole(dict_of(w=tensor() + dict_of(_metadata=text(canary)) + BUILD)),
    "BUILD of a dict": lambda canary: whole(dict_of(w=tensor()) + dict_of(_metadata=text(canary)) + BUILD),
    "a module by persistent id": lambda c: whole(MARK + text("module") + text(c) + 3 * NONE + TUPLE + BINPERSID),
    "PERSID": lambda canary: PROTO_2 + f"P{canary}\n".encode() + STOP,
    "a storage whose key leaves the archive": lambda c: whole(dict_of(w=tensor(stored=storage(f"../../{c}")))),
}
_BY_OPCODE = {
    *("a name behind the right one", "STACK_GLOBAL, harmless names dropped", "STACK_GLOBAL of a name twice"),
    *("STACK_GLOBAL of nothing", "EXT1", "EXT2", "EXT4", "behind STOP", "NEWOBJ of a class that is known"),
    *("REDUCE of a string", "REDUCE of a class with an argument", "BUILD of an attribute", "BUILD of a tensor"),
    *("BUILD of an attribute beside _metadata", "BUILD of a dict", "a module by persistent id", "PERSID"),
    "a storage whose key leaves the archive",
}
CALLING = {name: (make, "pickle-opcode" if name in _BY_OPCODE else "pickle-global") for name, make in _CALLING.items()}


def _sized(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


_BY_ITSELF = dict_of(w=tensor())

# Harmless but wrong, in the same form.
_NO_STATE = "pickle-not-a-state-dict"
WRONG: Mapping[str, tuple[Callable[[str], bytes], str]] = {
    name: (_plain(pickled), *(code or ["pickle-opcode"]))
    for name, pickled, *code in (
        ("nothing", b""),
        ("no STOP", GOOD[:-1]),
        ("cut in a string", PROTO_2 + b"X\xff\xff\xff\xffabc"),
        ("cut in a name", PROTO_2 + b"ccollections\nOrderedDict"),
        ("text that is not UTF-8", PROTO_2 + b"X\x01\0\0\0\xff" + STOP),
        ("no opcode", PROTO_2 + b"\xff" + STOP),
        ("no PROTO and a list", b"]" + STOP),
        ("PROTO twice", PROTO_2 + GOOD),
        ("protocol 255", b"\x80\xff" + GOOD[2:]),
        ("an integer of a megabyte", PROTO_2 + b"\x8b" + _sized(b"\x7f" * (1 << 20)) + STOP),
        ("a negative length", PROTO_2 + b"\x8b\xff\xff\xff\xff" + STOP),
        ("a line that is no number", b"Pzz\n" + b"pzz\ngzz\n" + b"Iqq\n" + STOP),
        ("DUP", whole(_BY_ITSELF + b"2")),
        ("two values", whole(_BY_ITSELF + _BY_ITSELF)),
        ("a mark left over", whole(MARK + _BY_ITSELF)),
        ("no value", whole(b"")),
        ("a tuple of nothing", whole(b"\x86")),
        ("no mark", whole(b"t")),
        ("half an item", whole(EMPTY_DICT + MARK + text("w") + b"u")),
        ("an item of a number", whole(b"K\x01" + text("w") + NONE + SETITEM)),
        ("a key that is no string", whole(EMPTY_DICT + b"K\x01" + tensor() + SETITEM)),
        ("a key twice", whole(_BY_ITSELF + text("w") + tensor() + SETITEM)),
        ("a memo place twice", whole(_BY_ITSELF + b"q\x00q\x00")),
        ("a memo place unset", whole(EMPTY_DICT + b"h\x07")),
        ("tuples in tuples", whole(b")" + b"\x85" * 20_000)),
        ("a long tuple", whole(MARK + NONE * 20_000 + TUPLE)),
        ("marks in marks", whole(MARK * 20_000)),
        ("a dict in itself", whole(EMPTY_DICT + b"q\x00" + text("state_dict") + b"h\x00" + SETITEM), _NO_STATE),
        ("a number", whole(b"K\x01"), _NO_STATE),
        ("a global", whole(named("torch", "FloatStorage")), _NO_STATE),
        ("a tensor by itself", whole(tensor()), _NO_STATE),
        ("no tensor", whole(EMPTY_DICT), _NO_STATE),
        ("a number in it", whole(dict_of(w=tensor(), epoch=b"K\x01")), _NO_STATE),
        ("a state_dict in a state_dict", whole(dict_of(state_dict=dict_of(state_dict=_BY_ITSELF))), _NO_STATE),
        ("an optimizer beside it", whole(dict_of(state_dict=_BY_ITSELF, optimizer=_BY_ITSELF)), _NO_STATE),
        ("a name that is reserved", whole(dict_of(__metadata__=tensor())), _NO_STATE),
        ("an empty name", whole(dict_of(**{"": tensor()})), _NO_STATE),
        ("half a surrogate in a name", whole(dict_of(**{"\ud800": tensor()})), _NO_STATE),
        ("terminal escapes in a name", whole(dict_of(**{"\x1b[2J\n": tensor()})), _NO_STATE),
        ("a tensor's name of a megabyte", whole(dict_of(**{"w" * (1 << 20): tensor()})), _NO_STATE),
        ("a tensor beyond its storage", whole(dict_of(w=tensor((3,))))),
        ("an offset beyond the storage", whole(dict_of(w=tensor(offset=1)))),
        ("an offset that wraps", whole(dict_of(w=tensor(offset=2**63)))),
        ("a negative offset", whole(dict_of(w=tensor(offset=-1)))),
        ("a negative stride", whole(dict_of(w=tensor(stride=(-1,), offset=1)))),
        ("a negative size", whole(dict_of(w=tensor((-2, -1), (1, 1))))),
        ("a terabyte of one element", whole(dict_of(w=tensor((1 << 20, 1 << 20), (0, 0))))),
        ("sizes that overflow", whole(dict_of(w=tensor((1 << 62, 4), (0, 0))))),
        ("a size without a stride", whole(dict_of(w=tensor((1, 2), (1,))))),
        ("65 dimensions", whole(dict_of(w=tensor((1,) * 65, (1,) * 65)))),
        ("a storage of a negative size", whole(dict_of(w=tensor((), (), stored=storage(n=-1))))),
        ("a storage in two ways", whole(dict_of(w=tensor(), x=tensor(stored=storage(kind="LongStorage"))))),
        (
            "a storage of quantized numbers",
            whole(dict_of(w=tensor(stored=storage(kind="QInt8Storage")))),
            "pickle-global",
        ),
        ("five times what is stored", whole(dict_of(**{f"w{i}": tensor() for i in range(5)})), "pickle-limits"),
    )
}


# Archives.


@dataclass(frozen=True)
class Member:
    """One member of an archive, and how its entries lie."""

    name: str
    content: bytes
    flags: int = 0
    method: int = 0
    mode: int = 0
    crc: int | None = None
    extra: bytes = b""
    local: Mapping[str, object] = field(default_factory=dict)  # name, method or n_bytes, where the own header differs
    at: int | None = None  # where the directory says that it begins, where that is not so
    listed: bool = True
    hidden_behind: bytes = b""  # bytes before the next member


def archive(
    members: list[Member], *, before: bytes = b"", comment: bytes = b"", end_64: Callable[[bytes], bytes] | None = None
) -> bytes:
    """A zip of ``members``, as faulty as they say; ``end_64`` spoils the 64-bit end that is written then."""
    body, directory, n = before, b"", 0
    for member in members:
        packed = member.content
        if member.method == 8:
            deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = deflate.compress(member.content) + deflate.flush()
        crc = zlib.crc32(member.content) if member.crc is None else member.crc
        name = member.name.encode()
        local_name = str(member.local.get("name", member.name)).encode()
        sizes = (crc, len(packed), member.local.get("n_bytes", len(member.content)))
        begin = len(body) if member.at is None else member.at
        entry = (20, member.flags, member.local.get("method", member.method), 0, 0, *sizes, len(local_name), 0)
        body += struct.pack("<4s5H3L2H", b"PK\3\4", *entry) + local_name + packed + member.hidden_behind
        if member.listed:
            n += 1
            directory += struct.pack(
                "<4s6H3L5H2L",
                *(b"PK\1\2", 20, 20, member.flags, member.method, 0, 0, crc, len(packed), len(member.content)),
                *(len(name), len(member.extra), 0, 0, 0, member.mode << 16, begin),
            )
            directory += name + member.extra
    start, end = len(body), len(body) + len(directory)
    tail = b""
    if end_64 is not None:
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 20, 45, 0, 0, n, n, len(directory), start)
        tail = end_64(record + struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
    ending = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n, n, len(directory), start, len(comment))
    return body + directory + tail + ending + comment


def torch_zip(pickled: bytes, storages: Mapping[str, bytes] = STORAGES) -> bytes:
    """What ``torch.save`` might have written, of any pickle."""
    data = [Member(f"archive/data/{key}", content) for key, content in storages.items()]
    return archive([Member("archive/data.pkl", pickled), *data, Member("archive/version", b"3\n")])


_GOOD_MEMBER = Member("archive/data.pkl", GOOD)
_DATA = Member("archive/data/0", STORAGES["0"])
_GOOD_MEMBERS = [_GOOD_MEMBER, _DATA]


def _evil(canary: str) -> Member:
    return Member("archive/data.pkl", _OF_SYSTEM(canary))


def _spoilt(**faults: Any) -> Callable[[str], bytes]:
    """A faultless archive, but for the entries of its pickle."""
    return lambda canary: archive([replace(_GOOD_MEMBER, **faults), _DATA])


_ARCHIVES: dict[str, Callable[[str], bytes]] = {
    "a member above": lambda c: archive([*_GOOD_MEMBERS, Member("../data/1", b"")]),
    "a top folder that is the one above": lambda c: archive([Member("../data.pkl", GOOD), Member("../data/0", b"")]),
    "a member above, from within": lambda c: archive([*_GOOD_MEMBERS, Member("archive/../x", b"")]),
    "an absolute name": lambda c: archive([*_GOOD_MEMBERS, Member(c, b"")]),
    "no top folder": lambda c: archive([Member("/data.pkl", GOOD), Member("/data/0", b"")]),
    "a backslash": lambda c: archive([Member("..\\a/data.pkl", GOOD)]),
    "a drive": lambda c: archive([Member("C:/data.pkl", GOOD)]),
    "a zero in a name": lambda c: archive([*_GOOD_MEMBERS, Member("archive/data.pkl\0x", b"")]),
    "terminal escapes in a name": lambda c: archive([Member("\x1b[2J\n/data.pkl", GOOD)]),
    "two folders": lambda c: archive([*_GOOD_MEMBERS, Member("other/version", _OF_SYSTEM(c))]),
    "data.pkl twice, the last evil": lambda c: archive([*_GOOD_MEMBERS, _evil(c)]),
    "data.pkl twice, the first evil": lambda c: archive([_evil(c), *_GOOD_MEMBERS]),
    "data.pkl in capitals": lambda c: archive([Member("archive/DATA.PKL", _OF_SYSTEM(c)), *_GOOD_MEMBERS]),
    "no data.pkl": lambda c: archive([_DATA]),
    "no member": lambda c: archive([], before=b"PK\3\4"),
    "a member that nobody knows": lambda c: archive([*_GOOD_MEMBERS, Member("archive/run.sh", b"")]),
    "code": lambda c: archive([*_GOOD_MEMBERS, Member("archive/code/__torch__.py", b"")]),
    "constants.pkl": lambda c: archive([*_GOOD_MEMBERS, Member("archive/constants.pkl", _OF_SYSTEM(c))]),
    "another archive in the comment": lambda c: archive(_GOOD_MEMBERS, comment=torch_zip(_OF_SYSTEM(c))),
    "another archive in front": lambda c: torch_zip(_OF_SYSTEM(c)) + archive(_GOOD_MEMBERS),
    "another archive in front, accounted for": lambda c: archive(_GOOD_MEMBERS, before=torch_zip(_OF_SYSTEM(c))),
    "another archive behind": lambda c: archive(_GOOD_MEMBERS) + torch_zip(_OF_SYSTEM(c)),
    "bytes between members": lambda c: archive([replace(_GOOD_MEMBER, hidden_behind=_OF_SYSTEM(c)), _DATA]),
    "bytes before the directory": lambda c: archive([_GOOD_MEMBER, replace(_DATA, hidden_behind=_OF_SYSTEM(c))]),
    "a member that is not listed": lambda c: archive([replace(_evil(c), listed=False), *_GOOD_MEMBERS]),
    "two members in one place": lambda c: archive([*_GOOD_MEMBERS, Member("archive/version", GOOD, at=0)]),
    "a member within another": lambda c: archive(
        [Member("archive/data.pkl", GOOD + archive([_evil(c)])), Member("archive/version", b"", at=60)]
    ),
    "a member past the end": lambda c: archive([_GOOD_MEMBER, Member("archive/data/0", b"", at=1 << 31)]),
    "another name in the header": _spoilt(local={"name": "archive/DATA.pkl"}),
    "another size in the header": _spoilt(local={"n_bytes": 7}),
    "another method in the header": _spoilt(local={"method": 8}),
    "a descriptor that is not there": _spoilt(flags=8),
    "a wrong checksum": _spoilt(crc=1),
    "a wrong checksum of weights": lambda c: archive([_GOOD_MEMBER, Member("archive/data/0", STORAGES["0"], crc=1)]),
    "64-bit sizes in an extra field": _spoilt(extra=struct.pack("<2H2Q", 1, 16, 1 << 40, 1 << 40)),
    "a 64-bit end that lies": lambda c: archive(
        _GOOD_MEMBERS, end_64=lambda end: end[:48] + b"\7" + bytes(7) + end[56:]
    ),
    "a 64-bit end that is cut": lambda c: archive(_GOOD_MEMBERS, end_64=lambda end: end[:-8]),
    "a bomb": lambda c: archive([Member("archive/data.pkl", bytes(1 << 20), method=8), _DATA]),
    "an unknown method": _spoilt(method=14),
    "encrypted": _spoilt(flags=1),
    "a symbolic link": lambda c: archive([Member("archive/data.pkl", c.encode(), mode=stat.S_IFLNK | 0o777), _DATA]),
    "a storage that is not there": lambda c: archive([_GOOD_MEMBER]),
    "a storage that is not named": lambda c: archive([*_GOOD_MEMBERS, Member("archive/data/1", b"1234")]),
    "a storage that is short": lambda c: archive([_GOOD_MEMBER, Member("archive/data/0", b"1234")]),
    "the other byte order": lambda c: archive([*_GOOD_MEMBERS, Member("archive/byteorder", b"big")]),
    "a directory as long as the file": lambda c: (
        archive([*_GOOD_MEMBERS, Member("archive/data/1", bytes(17 << 20))])[:-10] + struct.pack("<2LH", 17 << 20, 0, 0)
    ),
    "cut": lambda c: archive(_GOOD_MEMBERS)[:-9],
    "cut in the directory": lambda c: archive(_GOOD_MEMBERS)[:-40],
    "a header alone": lambda c: b"PK\3\4",
}
ARCHIVES = {
    name: (make, "torchscript" if name in ("code", "constants.pkl") else "pickle-zip")
    for name, make in _ARCHIVES.items()
}


# Files.


def _raw(pickled: bytes) -> bytes:
    return pickled


def _legacy(pickled: bytes) -> bytes:
    """The format before the zip: magic, version and machine as pickles of their own, then the pickle."""
    return LEGACY_MAGIC + b"\x80\x02M\xe9\x03." + whole(EMPTY_DICT) + pickled + whole(b"]")


# By file name: how the pickle lies in it, and the code if that form alone is enough to refuse it.
FORMS: Mapping[str, tuple[Callable[[bytes], bytes], str | None]] = {
    "model.pt": (torch_zip, None),
    "zip.safetensors": (torch_zip, None),
    "model.pkl": (_raw, "pickle"),
    "pytorch_model.bin": (_raw, "pickle"),
    "model.safetensors": (_raw, "pickle"),
    "legacy.pth": (_legacy, "pickle"),
}


def _written(folder: Path, name: str, content: Callable[[str], bytes]) -> Path:
    path = folder / name
    path.write_bytes(content(str(folder / CANARY)))
    return path


def _in_form(folder: Path, name: str, pickled: Callable[[str], bytes], form: Callable[[bytes], bytes]) -> Path:
    return _written(folder, name, lambda canary: form(pickled(canary)))


def _linked(folder: Path) -> Path:
    (folder / "elsewhere.pt").write_bytes(torch_zip(GOOD))
    (folder / "model.pt").symlink_to(folder / "elsewhere.pt")
    return folder / "model.pt"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.pt")
    return folder / "model.pt"


def _folder(folder: Path) -> Path:
    (folder / "model.pt").mkdir()
    return folder / "model.pt"


CASES: dict[str, Case] = {
    **{
        f"{payload} in {name}": Case(partial(_in_form, name=name, pickled=pickled, form=form), by_form or code)
        for payload, (pickled, code) in CALLING.items()
        for name, (form, by_form) in FORMS.items()
    },
    **{
        f"{payload} in model.pt": Case(partial(_in_form, name="model.pt", pickled=pickled, form=torch_zip), code)
        for payload, (pickled, code) in WRONG.items()
    },
    **{
        f"{name}, in the zip": Case(partial(_written, name="model.pt", content=content), code)
        for name, (content, code) in ARCHIVES.items()
    },
    "a symbolic link to a good one": Case(_linked, "symlink"),
    "a pipe": Case(_pipe, "not-a-file"),
    "a folder": Case(_folder, "not-a-file"),
    "no file": Case(lambda folder: folder / "model.pt", "not-a-file"),
    "an empty file": Case(partial(_written, name="model.pt", content=lambda canary: b""), "pickle"),
}
