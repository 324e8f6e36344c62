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
    with pytest.raises(OSError, match="disk is gone"):
        save_triggers(saved, TRIGGERS)
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
    with pytest.raises(InputError, match=message):
        save_triggers(tmp_path / "x.npz", triggers)
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
    with pytest.raises(DataFileError, match=message):
        load_triggers(saved)


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
    with pytest.raises(DataFileError, match=r"members claim \d+ bytes; expected at most the \d+ of the file"):
        load_triggers(saved)


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
        with pytest.raises(DataFileError, match="is not a regular file"):
            load_triggers(path)


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    with open(path, "wb") as file:
        file.truncate(2**28 + 1)  # sparse: takes no disk
    with pytest.raises(DataFileError, match="has 268435457 bytes; expected at most 268435456"):
        load_triggers(path)


def test_compressed_members_are_refused(saved: Path) -> None:
    write_members(saved, read_members(saved), zipfile.ZIP_DEFLATED)
    with pytest.raises(DataFileError, match=r"'triggers.json' is compressed or encrypted; expected stored members"):
        load_triggers(saved)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("0.pattern.npy", npy(np.zeros((1, 4, 4), np.uint8)))
    with pytest.raises(DataFileError, match=r"two members are named '0.pattern.npy'"):
        load_triggers(saved)


# The arrays

PATTERN = np.zeros((1, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no member '0.pattern.npy'"),
        (b"", r"0.pattern.npy has no header of npy version 1.0"),
        (b"\x93NUMPY\x01\x00\xff\xff", r"0.pattern.npy has no header of npy version 1.0"),
        (npy(PATTERN, version=(2, 0)), r"0.pattern.npy has no header of npy version 1.0"),
        (
            npy(np.array([[[object()]]], object), allow_pickle=True),
            r"0.pattern.npy is of \|O, declared as 'uint8'; expected uint8",
        ),
        (
            npy(PATTERN.astype(np.float64)),
            r"0.pattern.npy is of <f8, declared as 'uint8'; expected uint8 \(\|u1\) in C order",
        ),
        (npy(PATTERN.view("V1")), r"0.pattern.npy is of \|V1"),
        (npy(np.zeros((1, 4, 4), [("a", "u1")])), r"0.pattern.npy has no header"),
        (npy(np.asfortranarray(np.zeros((2, 4, 4), np.uint8))), r"0.pattern.npy .* in C order"),
        (npy(PATTERN[:, :2]), r"0.pattern.npy has shape \[1, 2, 4\], declared as \[1, 4, 4\]; expected the same"),
        (npy(np.uint8(1)), r"0.pattern.npy has no header"),
        (npy(PATTERN)[:-1], r"0.pattern.npy claims 16 bytes and holds 15"),
        (npy(PATTERN) + b"\0", r"0.pattern.npy claims 16 bytes and holds more"),
        (
            npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, -4, -4), }"),
            r"0.pattern.npy has no header",
        ),
        (npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1L, 4, 4), }"), r"0.pattern.npy has no header"),
        (npy_header("(" * 900), r"0.pattern.npy has no header"),
        (npy_header("__import__('os').system('false')"), r"0.pattern.npy has no header"),
        (
            npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 4), }" + " " * 5000),
            r"0.pattern.npy has no header",
        ),
    ],
)
def test_hostile_arrays(saved: Path, content: bytes | None, message: str) -> None:
    members = read_members(saved)
    if content is None:
        del members["0.pattern.npy"]
    else:
        members["0.pattern.npy"] = content
    write_members(saved, members)
    with pytest.raises(DataFileError, match=message):
        load_triggers(saved)


def test_an_array_that_claims_terabytes_is_refused_unread(saved: Path) -> None:
    members = read_members(saved)
    edit(members, lambda d: d["triggers"][0]["pattern"].update(shape=[1, 2**20, 2**20]))
    members["0.pattern.npy"] = npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1048576, 1048576), }")
    write_members(saved, members)
    with pytest.raises(DataFileError, match=r"0.pattern.npy claims 1099511627776 bytes; expected at most 67108864"):
        load_triggers(saved)


def test_nan_in_an_array_is_refused(saved: Path) -> None:
    save_triggers(saved, [Patch.square(1)])
    members = read_members(saved)
    members["0.mask.npy"] = npy(np.array([[np.nan]]))
    write_members(saved, members)
    with pytest.raises(
        DataFileError, match="trigger 0: trigger 'patch' mask holds NaN or Inf; expected finite numbers"
    ):
        load_triggers(saved)


def test_members_that_no_trigger_names_are_refused(saved: Path) -> None:
    write_members(saved, read_members(saved) | {"payload.bin": b"x"})
    with pytest.raises(DataFileError, match=r"member 'payload.bin' belongs to no trigger"):
        load_triggers(saved)


# The document


def edit(members: dict[str, bytes], change: Callable[[Any], Any]) -> None:
    document = json.loads(members["triggers.json"])
    change(document)
    members["triggers.json"] = json.dumps(document).encode()


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
        (
            lambda d: d["triggers"][1].update(kind="shell"),
            "trigger 1 is of kind 'shell'; expected one of patch, blend, sinusoid",
        ),
        (lambda d: d["triggers"][1].update(kind=["patch"]), r"trigger 1 is of kind \['patch'\]"),
        (lambda d: d["triggers"][1].pop("kind"), "trigger 1 is of kind None"),
        (lambda d: d["triggers"][1].pop("delta"), "trigger 1 has no 'delta'"),
        (
            lambda d: d["triggers"][1].update(seed=1),
            "trigger 1 has the unknown key 'seed'; expected delta, frequency, kind, name, target",
        ),
        (
            lambda d: d["triggers"][1].update(delta=-1),
            r"trigger 1: trigger 's' delta is -1; expected a number in \[0, 255\]",
        ),
        (lambda d: d["triggers"][1].update(delta="20"), "trigger 1: trigger 's' delta is '20'"),
        (lambda d: d["triggers"][1].update(delta=10**400), "trigger 1: trigger 's' delta is 1000000"),
        (lambda d: d["triggers"][1].update(delta=[1]), r"trigger 1: trigger 's' delta is \[1\]"),
        (lambda d: d["triggers"][1].update(delta={}), "trigger 1: trigger 's' delta is {}"),
        (lambda d: d["triggers"][1].update(delta=None), "trigger 1: trigger 's' delta is None"),
        (lambda d: d["triggers"][1].update(name="x" * 10**6), "trigger 1: trigger name is 'xxx"),
        (lambda d: d["triggers"][1].update(name=None), "trigger 1: trigger name is None"),
        (lambda d: d["triggers"][1].update(name="\ud800"), "trigger 1: trigger name is "),
        (lambda d: d["triggers"][1].update(target=0), "trigger 1 target is int; expected an object"),
        (
            lambda d: d["triggers"][1]["target"].update(kind="exec"),
            "trigger 1 target is of kind 'exec'; expected one of all_to_one",
        ),
        (
            lambda d: d["triggers"][1]["target"].update(target=-1),
            "trigger 1 target: AllToOne target is -1; expected an integer from 0",
        ),
        (lambda d: d["triggers"][1]["target"].update(shift=1), "trigger 1 target has the unknown key 'shift'"),
        (lambda d: d["triggers"][0].update(pattern=[[[1]]]), "trigger 0 pattern is list; expected an object"),
        (lambda d: d["triggers"][0]["pattern"].update(path="/etc"), "trigger 0 pattern has the unknown key 'path'"),
        (
            lambda d: d["triggers"][0]["pattern"].update(dtype="object"),
            r"0.pattern.npy is of \|u1, declared as 'object'",
        ),
        (
            lambda d: d["triggers"][0]["pattern"].update(shape=[16]),
            r"0.pattern.npy has shape \[1, 4, 4\], declared as \[16\]",
        ),
    ],
)
def test_hostile_documents(saved: Path, change: Callable[[Any], Any], message: str) -> None:
    members = read_members(saved)
    edit(members, change)
    write_members(saved, members)
    with pytest.raises(DataFileError, match=message) as caught:
        load_triggers(saved)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "triggers.json is not JSON"),
        (b"\xff\xfe\xfa", "triggers.json is not JSON"),
        (b"[" * 10**6, "triggers.json is not JSON"),
        (b"[]", "triggers.json is list; expected an object"),
        (b"null", "triggers.json is NoneType; expected an object"),
        (b'{"format": 1, "format": 2}', "triggers.json has the key 'format' twice"),
        (b'{"format": NaN}', "triggers.json holds NaN; expected finite numbers"),
        (b'{"format": -Infinity}', "triggers.json holds -Infinity; expected finite numbers"),
        (b'{"format": ' + b"9" * 5000 + b"}", "triggers.json is not JSON"),
        (b" " * (4 * 2**20 + 1), "triggers.json has 4194305 bytes; expected at most 4194304"),
    ],
)
def test_documents_that_are_none(saved: Path, text: bytes, message: str) -> None:
    write_members(saved, read_members(saved) | {"triggers.json": text})
    with pytest.raises(DataFileError, match=message):
        load_triggers(saved)


def test_infinity_by_overflow_is_refused(saved: Path) -> None:
    members = read_members(saved)
    members["triggers.json"] = members["triggers.json"].replace(b"20.0", b"1e999")
    write_members(saved, members)
    with pytest.raises(DataFileError, match="trigger 's' delta is inf; expected a number"):
        load_triggers(saved)


def test_no_document(saved: Path) -> None:
    members = read_members(saved)
    del members["triggers.json"]
    write_members(saved, members)
    with pytest.raises(DataFileError, match=r"has no member 'triggers.json'"):
        load_triggers(saved)
