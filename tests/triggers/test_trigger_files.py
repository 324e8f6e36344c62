"""Files of triggers: exact round trips, equal bytes, no half-written file, and no harm from a hostile one."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from seamfast.errors import DataFileError, InputError
from seamfast.triggers import (
    AllToAll,
    Blend,
    Patch,
    Sinusoid,
    SourceSpecific,
    Trigger,
    battery,
    files,
    load_triggers,
    save_triggers,
)

TRIGGERS = (
    *battery((3, 16, 12), 10),
    Patch.square(2, [1, 2, 3], SourceSpecific((4, 2), 0), name="source-specific"),
    Blend.noise((1, 4, 4), 0.1, AllToAll(-3), name="all-to-all"),
    Sinusoid.of(1 / 3, 5e-2, name="naïve 触发"),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "triggers.npz"
    save_triggers(path, [Blend.noise((1, 4, 4), 0.1, name="b"), Sinusoid.of(name="s")])
    return path


def read_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def write_members(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: Any, **kwargs: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **({"version": (1, 0)} | kwargs))
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    """Change the members of the file in place."""
    members = read_members(path)
    change(members)
    write_members(path, members)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change the document of the file in place."""

    def changed(members: dict[str, bytes]) -> None:
        document = json.loads(members["triggers.json"])
        change(document)
        members["triggers.json"] = json.dumps(document).encode()

    rewrite(path, changed)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "triggers.npz"
    save_triggers(path, TRIGGERS)
    loaded = load_triggers(path)
    assert loaded == TRIGGERS
    assert [trigger.target for trigger in loaded] == [trigger.target for trigger in TRIGGERS]
    assert type(loaded) is tuple


def test_equal_triggers_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_triggers(tmp_path / name, list(TRIGGERS) if name == "a" else load_triggers(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numpy_and_people_can_read_it(saved: Path) -> None:
    document = json.loads(read_members(saved)["triggers.json"])
    assert document["triggers"][1] == {
        "kind": "sinusoid",
        "name": "s",
        "target": {"kind": "all_to_one", "target": 0},
        "delta": 20.0,
        "frequency": 6.0,
    }
    with np.load(saved, allow_pickle=False) as arrays:
        assert arrays["0.pattern"].shape == (1, 4, 4)


def test_a_failed_save_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def broken(source: object, target: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", broken)
    refused(OSError, "disk is gone", save_triggers, saved, TRIGGERS)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


class Foreign(Sinusoid):
    pass


@pytest.mark.parametrize(
    ("triggers", "message"),
    [
        ([], "got 0 triggers; expected 1 to 1024"),
        ([Sinusoid.of(), Sinusoid.of(delta=1)], "two triggers are named 'sinusoid'; expected names that differ"),
        (
            [Foreign.of()],
            r"Foreign\('sinusoid', .*\) cannot be saved; expected a trigger of a built-in kind: patch, blend",
        ),
        (["patch"], "'patch' cannot be saved"),
    ],
)
def test_save_errors(tmp_path: Path, triggers: list[Trigger], message: str) -> None:
    refused(InputError, message, save_triggers, tmp_path / "x.npz", triggers)
    assert not list(tmp_path.iterdir())


def test_save_refuses_what_load_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ARRAY_BYTES", 100)
    with pytest.raises(InputError, match=r"pattern takes 192 bytes; expected at most 100"):
        save_triggers(tmp_path / "x.npz", [Blend.noise((3, 8, 8))])


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_triggers(tmp_path / "none.npz")


# Whole files


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    at = content.index(b'"kind"')
    return content[:at] + b'"KIND"' + content[at + 6 :]


def zip64(content: bytes) -> bytes:
    return content[:-22] + b"PK\6\7" + struct.pack("<LQL", 0, 0, 1) + content[-22:]


def endless_table(content: bytes) -> bytes:
    end = content[-22:]
    return content[:-22] + end[:12] + struct.pack("<L", 2**28) + end[16:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: b"", "is not a zip file"),
        (lambda c: b"PK\5\6", "is not a zip file"),
        (lambda c: b"\x80\x04\x95" + c[3:20], "is not a zip file"),  # a pickle
        (truncated, "is not a zip file"),
        (lambda c: c + b"\0", "is not a zip file, or has something before or after it"),
        (zip64, "is a zip64 file; expected a plain zip file"),
        (endless_table, "has a table of members of 268435456 bytes; expected at most 262144"),
        (flipped, "is damaged: Bad CRC-32 for file 'triggers.json'"),
        (lambda c: c[40:], "is not a zip file, or has something before or after it"),
        (lambda c: b"\x7fELF" + c, "is not a zip file, or has something before or after it"),
        (lambda c: c.replace(b"PK\1\2", b"PK\1\3"), "is damaged: Bad magic number for central directory"),
    ],
)
def test_damaged_files(saved: Path, change: Callable[[bytes], bytes], message: str) -> None:
    saved.write_bytes(change(saved.read_bytes()))
    refused(DataFileError, message, load_triggers, saved)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_never_gives_another_error(saved: Path, seed: int) -> None:
    """One byte changed anywhere: refused, or (in a byte that nothing reads, such as a date) read as what was saved."""
    content, wanted = saved.read_bytes(), load_triggers(saved)
    rng = np.random.default_rng(seed)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        saved.write_bytes(damaged)
        try:
            got = load_triggers(saved)
        except DataFileError as error:
            message = str(error)
        else:
            assert got == wanted
            continue
        assert len(message) < 600


def test_members_that_overlap_are_refused(saved: Path) -> None:
    """Nested stored members could each claim most of the file: together, gigabytes from megabytes."""
    content = bytearray(saved.read_bytes())
    for name in (b"triggers.json", b"0.pattern.npy"):
        entry = content.rindex(name) - 46  # the table of members
        struct.pack_into("<LL", content, entry + 20, len(content) - 200, len(content) - 200)
    saved.write_bytes(content)
    refused(DataFileError, r"members claim \d+ bytes; expected at most the \d+ of the file", load_triggers, saved)


def test_as_many_as_a_file_may_hold(tmp_path: Path) -> None:
    """The longest table of members that we write is one that we read."""
    triggers = tuple(Patch.square(1, name=f"patch {i}") for i in range(1024))
    save_triggers(tmp_path / "many.npz", triggers)
    assert load_triggers(tmp_path / "many.npz") == triggers
    with pytest.raises(InputError, match="got 1025 triggers; expected 1 to 1024"):
        save_triggers(tmp_path / "more.npz", [*triggers, Sinusoid.of()])


def test_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        refused(DataFileError, "is not a regular file", load_triggers, path)


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    with open(path, "wb") as file:
        file.truncate(2**28 + 1)  # sparse: takes no disk
    refused(DataFileError, "has 268435457 bytes; expected at most 268435456", load_triggers, path)


# The arrays

PATTERN = np.zeros((1, 4, 4), np.uint8)
HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 4), }"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has no header of npy version 1.0"),
        (b"\x93NUMPY\x01\x00\xff\xff", r"has no header of npy version 1.0"),
        (npy(PATTERN, version=(2, 0)), r"has no header of npy version 1.0"),
        (npy(np.array([[[0]]], object), allow_pickle=True), r"is of \|O, declared as 'uint8'; expected uint8"),
        (npy(PATTERN / 1), r"is of <f8, declared as 'uint8'; expected uint8 \(\|u1\) in C order"),
        (npy(PATTERN.view("V1")), r"is of \|V1"),
        (npy(np.zeros((1, 4, 4), [("a", "u1")])), r"has no header"),
        (npy(np.asfortranarray(np.zeros((2, 4, 4), np.uint8))), r".* in C order"),
        (npy(PATTERN[:, :2]), r"has shape \[1, 2, 4\], declared as \[1, 4, 4\]; expected the same"),
        (npy(np.uint8(1)), r"has no header"),
        (npy(PATTERN)[:-1], r"claims 16 bytes and holds 15"),
        (npy(PATTERN) + b"\0", r"claims 16 bytes and holds more"),
        (npy_header(HEADER.replace("4, 4", "-4, -4")), r"has no header"),
        (npy_header(HEADER.replace("1, 4", "1L, 4")), r"has no header"),
        (npy_header("(" * 900), r"has no header"),
        (npy_header("__import__('os').system('false')"), r"has no header"),
        (npy_header(HEADER + " " * 5000), r"has no header"),
    ],
)
def test_hostile_arrays(saved: Path, content: bytes, message: str) -> None:
    rewrite(saved, lambda members: members.update({"0.pattern.npy": content}))
    refused(DataFileError, f"0.pattern.npy {message}", load_triggers, saved)


def test_an_array_that_claims_terabytes_is_refused_unread(saved: Path) -> None:
    edit(saved, lambda d: d["triggers"][0]["pattern"].update(shape=[1, 2**20, 2**20]))
    vast = npy_header(HEADER.replace("4, 4", "1048576, 1048576"))
    rewrite(saved, lambda members: members.update({"0.pattern.npy": vast}))
    refused(DataFileError, r"0.pattern.npy claims 1099511627776 bytes; expected at most 67108864", load_triggers, saved)


def test_nan_in_an_array_is_refused(saved: Path) -> None:
    save_triggers(saved, [Patch.square(1)])
    rewrite(saved, lambda members: members.update({"0.mask.npy": npy(np.array([[np.nan]]))}))
    message = "trigger 0: trigger 'patch' mask holds NaN or Inf; expected finite numbers"
    refused(DataFileError, message, load_triggers, saved)


# The members


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.pattern.npy": None}, "has no member '0.pattern.npy'"),
        ({"triggers.json": None}, r"has no member 'triggers.json'"),
        ({"payload.bin": b"x"}, r"member 'payload.bin' belongs to no trigger"),
        ({"triggers.json": b""}, "triggers.json is not JSON"),
        ({"triggers.json": b"\xff\xfe\xfa"}, "triggers.json is not JSON"),
        ({"triggers.json": b"[" * 10**6}, "triggers.json is not JSON"),
        ({"triggers.json": b"[]"}, "triggers.json is list; expected an object"),
        ({"triggers.json": b"null"}, "triggers.json is NoneType; expected an object"),
        ({"triggers.json": b'{"format": 1, "format": 2}'}, "triggers.json has the key 'format' twice"),
        ({"triggers.json": b'{"format": NaN}'}, "triggers.json holds NaN; expected finite numbers"),
        ({"triggers.json": b'{"format": -Infinity}'}, "triggers.json holds -Infinity; expected finite numbers"),
        ({"triggers.json": b'{"format": ' + b"9" * 5000 + b"}"}, "triggers.json is not JSON"),
        ({"triggers.json": b" " * (4 * 2**20 + 1)}, "triggers.json has 4194305 bytes; expected at most 4194304"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_members_that_are_missing_or_unusable(saved: Path, members: dict[str, bytes | None], message: str) -> None:
    write_members(saved, {k: v for k, v in (read_members(saved) | members).items() if v is not None})
    refused(DataFileError, message, load_triggers, saved)


def test_infinity_by_overflow_is_refused(saved: Path) -> None:
    document = read_members(saved)["triggers.json"].replace(b"20.0", b"1e999")
    rewrite(saved, lambda members: members.update({"triggers.json": document}))
    refused(DataFileError, "trigger 's' delta is inf; expected a number", load_triggers, saved)


def test_compressed_members_are_refused(saved: Path) -> None:
    write_members(saved, read_members(saved), zipfile.ZIP_DEFLATED)
    refused(DataFileError, r"'triggers.json' is compressed or encrypted; expected stored", load_triggers, saved)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("0.pattern.npy", npy(PATTERN))
    refused(DataFileError, r"two members are named '0.pattern.npy'", load_triggers, saved)


# The document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="npz"), "format is 'npz'; expected 'seamfast-triggers'"),
        (lambda d: d.update(version=2), "version is 2; expected 1, the one that this seamfast reads"),
        (lambda d: d.update(version=True), "version is True; expected 1"),
        (lambda d: d.pop("triggers"), "triggers.json has no 'triggers'"),
        (lambda d: d.update(code="x"), "triggers.json has the unknown key 'code'; expected format, triggers, version"),
        (lambda d: d.update(triggers=[]), "holds 0 triggers; expected a list of 1 to 1024"),
        (lambda d: d.update(triggers=d["triggers"] * 600), "holds 1200 triggers; expected a list of 1 to 1024"),
        (lambda d: d.update(triggers={}), "holds triggers as dict; expected a list of 1 to 1024"),
        (lambda d: d.update(triggers=[1]), "trigger 0 is int; expected an object"),
        (lambda d: d["triggers"].append(d["triggers"][1]), "two triggers are named 's'"),
        (lambda d: d["triggers"][1].pop("kind"), "trigger 1 is of kind None"),
        (lambda d: d["triggers"][1].pop("delta"), "trigger 1 has no 'delta'"),
        (lambda d: d["triggers"][0].update(pattern=[[[1]]]), "trigger 0 pattern is list; expected an object"),
    ],
)
def test_hostile_documents(saved: Path, change: Callable[[Any], Any], message: str) -> None:
    edit(saved, change)
    refused(DataFileError, message, load_triggers, saved)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "shell"}, " is of kind 'shell'; expected one of patch, blend, sinusoid"),
        ({"kind": ["patch"]}, r" is of kind \['patch'\]"),
        ({"seed": 1}, " has the unknown key 'seed'; expected delta, frequency, kind, name, target"),
        ({"delta": -1}, r": trigger 's' delta is -1; expected a number in \[0, 255\]"),
        ({"delta": "20"}, ": trigger 's' delta is '20'"),
        ({"delta": 10**400}, ": trigger 's' delta is 1000000"),
        ({"delta": [1]}, r": trigger 's' delta is \[1\]"),
        ({"delta": {}}, ": trigger 's' delta is {}"),
        ({"delta": None}, ": trigger 's' delta is None"),
        ({"name": "x" * 10**6}, ": trigger name is 'xxx"),
        ({"name": None}, ": trigger name is None"),
        ({"name": "\ud800"}, ": trigger name is "),
        ({"target": 0}, " target is int; expected an object"),
        ({"target": {"kind": "exec"}}, " target is of kind 'exec'; expected one of all_to_one"),
        ({"target": {"kind": "all_to_one", "target": -1}}, " target: AllToOne target is -1; expected an integer from"),
        ({"target": {"kind": "all_to_one", "target": 0, "shift": 1}}, " target has the unknown key 'shift'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_values(saved: Path, value: dict[str, Any], message: str) -> None:
    edit(saved, lambda d: d["triggers"][1].update(value))
    assert len(refused(DataFileError, f"trigger 1{message}", load_triggers, saved)) < 600


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"path": "/etc"}, "trigger 0 pattern has the unknown key 'path'"),
        ({"dtype": "object"}, r"0.pattern.npy is of \|u1, declared as 'object'"),
        ({"shape": [16]}, r"0.pattern.npy has shape \[1, 4, 4\], declared as \[16\]"),
    ],
)
def test_hostile_declarations_of_arrays(saved: Path, value: dict[str, Any], message: str) -> None:
    edit(saved, lambda d: d["triggers"][0]["pattern"].update(value))
    refused(DataFileError, message, load_triggers, saved)
