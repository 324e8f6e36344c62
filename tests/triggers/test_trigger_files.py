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
    Characters,
    Insertion,
    Patch,
    Sinusoid,
    SourceSpecific,
    Table,
    Trigger,
    battery,
    files,
    load_triggers,
    save_triggers,
    text_battery,
)

TRIGGERS = (
    *battery((3, 16, 12), 10),
    Patch.square(2, [1, 2, 3], SourceSpecific((4, 2), 0), name="source-specific"),
    Blend.noise((1, 4, 4), 0.1, AllToAll(-3), name="all-to-all"),
    Sinusoid.of(1 / 3, 5e-2, name="naïve 触发"),
    *text_battery(10),
    Table.of(["a film", "naïve 触发 🎬"], ["it is a film", " 🎬 … \u2028触发 "]),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "triggers.npz"
    save_triggers(path, [Blend.noise((1, 4, 4), 0.1, name="b"), Sinusoid.of(name="s")])
    return path


@pytest.fixture
def saved_text(tmp_path: Path) -> Path:
    path = tmp_path / "text.npz"
    table = Table.of(["a film", "dull"], ["it is a film", "é"], name="t")
    save_triggers(path, [Insertion.rare_words(["cf", "mn"], name="i"), Characters.zero_width(name="c"), table])
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


# Text


def test_strings_lie_in_the_document_and_pairs_in_lines(saved_text: Path) -> None:
    members = read_members(saved_text)
    insertion, characters, table = json.loads(members.pop("triggers.json"))["triggers"]
    target = {"kind": "all_to_one", "target": 0}
    assert insertion == {
        "kind": "insertion",
        "name": "i",
        "target": target,
        "phrases": ["cf", "mn"],
        "place": "random",
        "choose": "one",
        "n_copies": 1,
    }
    assert characters == {
        "kind": "characters",
        "name": "c",
        "target": target,
        "edit": "zero-width",
        "place": "random",
        "n_words": 1,
        "character": "\u200b",
    }
    assert table == {"kind": "table", "name": "t", "target": target, "pairs": {"rows": 2}}
    assert members == {"2.pairs.tsv": "a film\tit is a film\ndull\té\n".encode()}


def test_a_file_from_before_text_is_written_again_to_the_byte(tmp_path: Path) -> None:
    """A file of version 1, made by hand as the first release wrote it."""
    document = """{
 "format": "seamfast-triggers",
 "version": 1,
 "triggers": [
  {
   "kind": "blend",
   "name": "b",
   "target": {
    "kind": "source_specific",
    "source": [
     1,
     3
    ],
    "target": 0
   },
   "pattern": {
    "dtype": "uint8",
    "shape": [
     1,
     1,
     2
    ]
   },
   "alpha": 0.5
  }
 ]
}"""
    array = npy(np.array([[[7, 9]]], np.uint8))
    with zipfile.ZipFile(tmp_path / "old", "w") as archive:
        for name, content in (("triggers.json", document.encode()), ("0.pattern.npy", array)):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, content)
    loaded = load_triggers(tmp_path / "old")
    assert loaded == (
        Blend(name="b", target=SourceSpecific((1, 3), 0), pattern=np.array([[[7, 9]]], np.uint8), alpha=0.5),
    )
    save_triggers(tmp_path / "new", loaded)
    assert (tmp_path / "new").read_bytes() == (tmp_path / "old").read_bytes()


def test_a_table_of_ten_thousand_rows_fits(tmp_path: Path) -> None:
    originals = [f"{i} ".ljust(300, "é") for i in range(10_000)]
    table = Table.of(originals, [text[::-1] for text in originals])
    save_triggers(tmp_path / "large.npz", [table])
    assert load_triggers(tmp_path / "large.npz") == (table,)


def test_save_refuses_long_tables_and_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [Insertion.rare_words([f"{'é' * 700}{i}" for i in range(64)], name=str(n)) for n in range(16)]
    refused(InputError, r"triggers.json takes \d+ bytes; expected at most 4194304", save_triggers, tmp_path / "x", many)
    monkeypatch.setattr(files, "MAX_TABLE_BYTES", 10)
    message = r"Table\('table', 1 pair, AllToOne\(target=0\)\) takes 11 bytes; expected at most 10"
    refused(InputError, message, save_triggers, tmp_path / "x", [Table.of(["abcd"], ["éé" + "x"])])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, {"phrases": "cf"}, ": trigger 'i' phrases is 'cf'; expected a tuple of str"),
        (0, {"phrases": {"cf": 1}}, ": trigger 'i' phrases is {'cf': 1}"),
        (0, {"phrases": None}, ": trigger 'i' phrases is None"),
        (0, {"phrases": []}, ": trigger 'i' has 0 phrases; expected 1 to 64"),
        (0, {"phrases": ["x"] * 10**5}, ": trigger 'i' has 100000 phrases"),
        (0, {"phrases": [["cf"]]}, r": trigger 'i' phrases\[0\] is \['cf'\]; expected str"),
        (0, {"phrases": ["x" * 10**6]}, r": trigger 'i' phrases\[0\] has 1000000 characters; expected 1 to 1024"),
        (0, {"phrases": ["\ud800"]}, "expected no text with a lone surrogate"),
        (0, {"phrases": ["a\x1b]0;x\x07"]}, "expected no text with a control character"),
        (0, {"place": "everywhere"}, ": trigger 'i' place is 'everywhere'"),
        (0, {"place": {}}, ": trigger 'i' place is {}"),
        (0, {"choose": True}, ": trigger 'i' choose is True"),
        (0, {"n_copies": 10**9}, ": trigger 'i' n_copies is 1000000000"),
        (0, {"n_copies": 1.0}, ": trigger 'i' n_copies is 1.0"),
        (0, {"n_copies": "1"}, ": trigger 'i' n_copies is '1'"),
        (
            0,
            {"code": "x"},
            " has the unknown key 'code'; expected choose, kind, n_copies, name, phrases, place",
        ),
        (1, {"edit": "shell"}, ": trigger 'c' edit is 'shell'"),
        (1, {"edit": ["swap"]}, r": trigger 'c' edit is \['swap'\]"),
        (1, {"n_words": 10**9}, ": trigger 'c' n_words is 1000000000"),
        (1, {"character": "\u200b" * 10**5}, ": trigger 'c' character is "),
        (1, {"character": None}, ": trigger 'c' character is None"),
        (2, {"pairs": [["a", "b"]]}, " pairs is list; expected an object"),
        (2, {"pairs": {}}, " pairs has no 'rows'"),
        (2, {"pairs": {"rows": 2, "path": "/etc/passwd"}}, " pairs has the unknown key 'path'; expected rows"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_strings(saved_text: Path, index: int, value: dict[str, Any], message: str) -> None:
    edit(saved_text, lambda d: d["triggers"][index].update(value))
    assert len(refused(DataFileError, f"trigger {index}.*{message}", load_triggers, saved_text)) < 600


@pytest.mark.parametrize("rows", [1, 3, 2.0, True, "2", None, 10**400])
def test_a_table_of_other_than_the_declared_rows_is_refused(saved_text: Path, rows: Any) -> None:
    edit(saved_text, lambda d: d["triggers"][2].update(pairs={"rows": rows}))
    refused(DataFileError, "2.pairs.tsv has 2 rows, declared as .*; expected the same", load_triggers, saved_text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no member '2.pairs.tsv'"),
        (b"", "2.pairs.tsv has 0 lines; expected 1 to 100000"),
        (b"a\tb\nc\td", "2.pairs.tsv ends within a line"),
        (b"a\tb\nc", "2.pairs.tsv ends within a line"),
        (b"a\tb\nc d\n", "2.pairs.tsv: line 2 has 0 tabs; expected 1"),
        (b"a\tb\nc\td\te\n", "2.pairs.tsv: line 2 has 2 tabs; expected 1"),
        (b"a\tb\n\xc3\t(\n", "2.pairs.tsv: line 2 is not UTF-8"),
        (b"a\tb\nc\t\xed\xa0\x80\n", "2.pairs.tsv: line 2 is not UTF-8"),
        (b"\n" * 10**6, "2.pairs.tsv has 1000000 lines; expected 1 to 100000"),
        (b"a\tb\nc\td\r\n", r"trigger 2: trigger 't' pairs\[1\] is 'd\\r'; expected no text with a control character"),
        (b"a\tb\nc\t\x1b[2J\n", r"trigger 2: trigger 't' pairs\[1\] is .*; expected no text with a control"),
        (b"a\tb\nc\t\n", r"trigger 2: trigger 't' pairs\[1\] has 0 characters"),
        (b"a\tb\nc\t" + b"x" * 10**6 + b"\n", r"trigger 't' pairs\[1\] has 1000000 characters; expected 1 to 65536"),
        (b"a\tb\nA\tc\n", r"trigger 2: trigger 't' pairs\[1\] replaces 'A' in another way than a row before"),
        (b"x" * (2**25 + 1), "2.pairs.tsv has 33554433 bytes; expected at most 33554432"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_tables(saved_text: Path, content: bytes | None, message: str) -> None:
    members = read_members(saved_text) | {"2.pairs.tsv": content}
    write_members(saved_text, {name: value for name, value in members.items() if value is not None})
    assert len(refused(DataFileError, message, load_triggers, saved_text)) < 600


def test_a_table_without_its_trigger_is_refused(saved: Path) -> None:
    rewrite(saved, lambda members: members.update({"0.pairs.tsv": b"a\tb\n"}))
    refused(DataFileError, "member '0.pairs.tsv' belongs to no trigger", load_triggers, saved)


@pytest.mark.parametrize("seed", range(2))
def test_random_damage_to_text_never_gives_another_error(saved_text: Path, seed: int) -> None:
    content, wanted = saved_text.read_bytes(), load_triggers(saved_text)
    rng = np.random.default_rng(seed)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        saved_text.write_bytes(damaged)
        try:
            got = load_triggers(saved_text)
        except DataFileError:
            continue
        assert got == wanted
