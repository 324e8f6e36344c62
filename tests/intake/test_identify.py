"""What files are: honest ones are told apart, hostile ones are refused as what they are, whatever they are called."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.torch import save as to_safetensors

from seamfast.intake import identify as module
from seamfast.intake.identify import READABLE, Effort, identify, look, refuse_kind
from seamfast.intake.refusal import RefusedError
from seamfast.intake.tensors import TensorSpec, open_untrusted, read_tensors
from tests.gating.golden_files import check_messages
from tests.hostile import other_formats
from tests.hostile.case import Case
from tests.hostile.other_formats import CASES
from tests.hostile.tensor_files import framed, honest, sharded

FEW_MEGABYTES = 8 << 20


def kind_of(content: bytes, name: str) -> str:
    return identify(io.BytesIO(content), name)


# What is honest.


def test_files_of_a_model_folder(tmp_path: Path) -> None:
    honest(tmp_path)
    kinds = {path.name: kind_of(path.read_bytes(), path.name) for path in tmp_path.iterdir()}
    assert kinds == {"model.safetensors": "safetensors", "model.json": "json"}
    sharded(tmp_path)
    kinds = {path.name: kind_of(path.read_bytes(), path.name) for path in tmp_path.iterdir()}
    assert kinds == {
        "model-00001-of-00002.safetensors": "safetensors",
        "model-00002-of-00002.safetensors": "safetensors",
        "model.json": "json",
        "model.safetensors.index.json": "safetensors-index",
    }


@pytest.mark.parametrize(
    ("content", "name", "kind"),
    [
        (b"# A model\n\nOf digits.\n", "README.md", "text"),
        ("# Größe: 3 µm, 数字\n".encode(), "README.md", "text"),
        (("é" * 40_000).encode(), "README.md", "text"),  # a character is cut where reading stops
        (b"x" + ("é" * 40_000).encode(), "README.md", "text"),
        (b"", "empty", "text"),
        (b"", ".gitattributes", "text"),
        (b"*.bin filter=lfs\n", ".gitattributes", "text"),
        (b"<!-- " + b"<!---->" * 280 + b" -->\n# A model\n", "README.md", "text"),
        (b"<p align='center'>A model</p>\n", "README.md", "text"),
        (b"{}", "config.json", "json"),
        (b'\n { "a": 1}', "config", "json"),
        (b"[1, 2]", "classes.json", "json"),
        (b"not JSON at all", "config.json", "json"),  # whoever reads it will say so
        (b'{"metadata": {}, "weight_map": {}}', "pytorch_model.bin.index.json", "safetensors-index"),
        (b'{"weight_map": 3}', "config.json", "json"),
        (b"{", "model.safetensors", "safetensors"),  # as its name says: the reader says what is wrong
        (b"", "model.safetensors", "safetensors"),
        (bytes(4), "model.safetensors", "safetensors"),
        (bytes(4), "image.png", "unknown"),
    ],
)
def test_what_is_read(content: bytes, name: str, kind: str) -> None:
    assert kind_of(content, name) == kind


@pytest.mark.parametrize(
    "text",
    [
        *("N.B. this is no pickle of nothing.\n", "(see below)\n", "I1\nI2\n", "cat\ndog\nbird\n", "cat\ndog\n"),
        *("Vision transformer\n\nOf digits.\n", ".\n", "hi. Read me.\n", "0\n1\n2\n3\n", "Kx. and so on", "\n\n"),
        *("Mercury\nVenus\nEarth\n", "GGU\n", "MZ\n", "PK\n"),
    ],
)
def test_text_that_begins_as_something_else_might(text: str) -> None:
    assert kind_of(text.encode(), "labels.txt") == "text"


@pytest.mark.parametrize("length", [*range(8, 2000, 8), 11_912, 0x2E4E, 0x5A4D, 559_903 & ~7, 0x470280])
def test_no_length_of_a_header_looks_like_anything_else(length: int) -> None:
    """The length comes first in the file, where others have their magic numbers and opcodes."""
    entry = json.dumps({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    header = entry + b" " * (length - len(entry)) if length > len(entry) else b"{" + b" " * (length - 2) + b"}"
    assert kind_of(framed(header, bytes(4)), "weights") == "safetensors"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 300))
def test_no_weights_look_like_anything_else(seed: int, n: int) -> None:
    weights = torch.randint(0, 256, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    assert kind_of(to_safetensors({"w": weights}), "weights") == "safetensors"


def test_what_holds_the_marks_of_others_somewhere_is_still_safetensors() -> None:
    marks = b"PK\x05\x06" + bytes(18) + b"PK\x03\x04ustar\x89HDF\r\n\x1a\n\x80\x04cos\nsystem\nPK\x05\x06"
    assert kind_of(other_formats.around(bytes(5) + marks * 9 + bytes(500)), "weights") == "safetensors"


def test_file_is_left_at_its_start(tmp_path: Path) -> None:
    file = io.BytesIO(CASES["torch.save"].make(tmp_path).read_bytes())
    file.seek(3)
    identify(file, "x")
    assert file.tell() == 0


# What is hostile.


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_hostile_file_is_refused_as_what_it_is(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    before = path.read_bytes()
    tracemalloc.start()
    try:
        with open_untrusted(path, "anything") as file:
            kind = identify(file, path.name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kind == case.code
    assert peak < FEW_MEGABYTES
    with pytest.raises(RefusedError) as caught:
        refuse_kind(kind, path.name)
    assert caught.value.code == case.code
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no canary
    assert path.read_bytes() == before


def test_every_kind_that_is_refused_is_met() -> None:
    assert {case.code for case in CASES.values()} == set(module._REASONS)
    assert set(module._BY_SUFFIX.values()) <= set(module._REASONS) | READABLE


@pytest.mark.parametrize(
    "name", [name for name in CASES if name.startswith("safetensors and")] + ["safetensors before a pickle"]
)
def test_polyglots_are_whole_safetensors(name: str, tmp_path: Path) -> None:
    """Or refusing them would prove nothing: other readers of safetensors take them, and so does this one."""
    path = CASES[name].make(tmp_path)
    ((_, piece),) = deserialize(path.read_bytes())
    expected = {"x": TensorSpec(tuple(piece["shape"]), torch.uint8)}
    assert read_tensors(path, expected, what="x").state["x"].numpy().tobytes() == bytes(piece["data"])


def test_polyglots_are_whole_otherwise(tmp_path: Path) -> None:
    for name in ("safetensors and a zip", "safetensors and a zip with a comment"):
        with zipfile.ZipFile(CASES[name].make(tmp_path)) as archive:
            assert any(member.endswith("data.pkl") for member in archive.namelist())
    content = CASES["safetensors and an old pickle"].make(tmp_path).read_bytes()
    opcodes = [opcode.name for opcode, _, _ in pickletools.genops(content)]
    assert opcodes[:3] == ["UNICODE", "EMPTY_DICT", "POP"]
    assert opcodes[-2:] == ["REDUCE", "STOP"]


def test_canary_is_alive(tmp_path: Path) -> None:
    """It names what makes a folder, and it is called: a reader of pickles would have made one."""
    for name, case in CASES.items():
        if "pickle of protocol" in name or "bare calls" in name:
            content = case.make(tmp_path).read_bytes()
            names = [opcode.name for opcode, _, _ in pickletools.genops(content)]
            assert b"mkdir" in content
            assert "REDUCE" in names, name


# Zip archives in corners.


def zip_of(*members: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")
    return stream.getvalue()


def test_directory_is_found_by_its_offset_too() -> None:
    """Some readers go where the record says, not backwards from it: what lies between does not stop them."""
    content = zip_of("x/data.pkl")
    end = content.index(b"PK\x05\x06")
    assert kind_of(content[:end] + b"between" + content[end:], "x") == "torch-zip"
    assert kind_of(b"before" * 99 + content, "x") == "torch-zip"


def test_two_directories_are_both_read() -> None:
    plain, hidden = zip_of("weights.npy"), zip_of("x/constants.pkl")
    assert kind_of(hidden + plain, "x") == "torchscript"
    assert kind_of(plain + hidden, "x") == "torchscript"


@pytest.mark.parametrize("shift", [0, 1000])
def test_zip64(shift: int) -> None:
    content = zip_of("x/data.pkl")
    end = content.index(b"PK\x05\x06")
    start = content.index(b"PK\x01\x02")
    large = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, end - start, start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    record = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    whole = content[:end] + large + locator + record
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.namelist() == ["x/data.pkl"]
    assert kind_of(bytes(shift) + whole, "x") == "torch-zip"


def test_thousands_of_ends_cost_little() -> None:
    """Each could be an archive's end, and points to a directory of its own."""
    entry = b"PK\x01\x02" + bytes(42)
    ends = b"".join(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 46, 46 * i, 0) for i in range(2900))
    file = Counted(entry * 100_000 + ends)
    assert identify(file, "x") == "zip"
    assert file.n_read < 4 << 20


class Counted(io.BytesIO):
    """Counts what is read of it."""

    n_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.n_read += len(data)
        return data

    def readline(self, size: int | None = -1, /) -> bytes:
        data = super().readline(size)
        self.n_read += len(data)
        return data


@pytest.mark.parametrize(
    "content",
    [
        b"V" + bytes(40 << 20),  # a line without an end
        b"V\n0" * (4 << 20),  # lines without an end
        b"NNNN" * (4 << 20),
        b"\x08\x00" * (8 << 20),  # a protobuf of one number after the other
        (b"PK\x05\x06" * 9) + bytes(20 << 20) + (b"PK\x05\x06" * 16_000),
        bytes(40 << 20),
    ],
    ids=["line", "lines", "opcodes", "protobuf", "ends", "zeros"],
)
def test_little_is_read_of_large_files(content: bytes) -> None:
    file = Counted(content)
    identify(file, "x")
    assert file.n_read < 20 << 20


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300), name=st.text(max_size=20))
def test_any_bytes_have_a_kind(content: bytes, name: str) -> None:
    assert kind_of(content, name) in set(module._REASONS) | READABLE


PREFIXES = (b"\x80\x04", b"PK\x03\x04", b"MZ", b"(", b"c", b"\x08\x01", b"\x1f\x8b\x08", b"\x93NUMPY", b"PK\x05\x06")


@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from(PREFIXES), content=st.binary(max_size=100))
def test_any_bytes_behind_a_magic_number_have_a_kind(start: bytes, content: bytes) -> None:
    assert kind_of(start + content, "x") in set(module._REASONS) | READABLE
    assert kind_of(content + start, "x") in set(module._REASONS) | READABLE


# What many files cost together.


def test_files_share_what_may_be_spent() -> None:
    effort = Effort(1 << 20)
    for _ in range(7):
        look(io.BytesIO(bytes(200_000)), effort)  # its start and its end
    with pytest.raises(
        RefusedError,
        match=r"^telling what the files of the model are takes too much reading; expected fewer, or simpler ones$",
    ):
        look(io.BytesIO(bytes(200_000)), effort)


@pytest.mark.parametrize(
    "content",
    [b"N0" * 3000, b"PK\5\6" * 250 + bytes(9000), zip_of(*map(str, range(3000)))],
    ids=["opcodes", "ends", "members"],
)
def test_work_counts_more_than_its_bytes(content: bytes) -> None:
    with pytest.raises(RefusedError, match="takes too much reading"):
        look(io.BytesIO(content), Effort(2 * len(content) + 50_000))


def test_one_look_serves_all_names() -> None:
    text, archive = look(io.BytesIO(b"hello\n")), look(io.BytesIO(zip_of("x")))
    assert [text.kind(name) for name in ("a/README.md", "a.py/b.json", ".sh", "x.pth")] == [
        "text",
        "json",
        "text",
        "python",
    ]
    assert [archive.kind(name) for name in ("x.py", "x.keras", "x.pt2")] == ["zip", "keras-zip", "torch-export"]


# Refusals.


def test_refusals_say_what_to_do_instead() -> None:
    kinds = [*module._REASONS, "text"]
    check_messages("kinds.txt", RefusedError, lambda kind: refuse_kind(kind, "model.\x1b[2J"), kinds)


# A pickle of an old protocol looks like text; what follows it does not hide what it calls.

CALL = b"cos\nsystem\n(S'true'\ntR."


@pytest.mark.parametrize("behind", [b"", b"\n", b"Some words.\n", b"# A model\n\nOf digits.\n" * 50])
def test_a_pickle_that_calls_something_is_one_whatever_text_follows_it(behind: bytes) -> None:
    assert identify(io.BytesIO(CALL + behind), "README.md") == "pickle"
