"""The reader of safetensors: what is honest comes out to the bit, what is not is refused before it costs anything."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from seamfast.errors import ModelError
from seamfast.intake import tensors as module
from seamfast.intake.refusal import RefusedError
from seamfast.intake.tensors import (
    DTYPES,
    TensorSpec,
    expected_of,
    fill,
    non_finite,
    read_sharded,
    read_tensors,
    strict_json,
)
from tests.gating.golden_files import check_messages
from tests.hostile.case import Case, refuses
from tests.hostile.tensor_files import CASES, EXPECTED, INDEX, framed, honest, sharded

FEW_MEGABYTES = 8 << 20


def specs(state: dict[str, Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def written(path: Path, state: dict[str, Tensor]) -> Path:
    path.write_bytes(to_safetensors(state))
    return path


def stored(path: Path, header: dict[str, Any], data: bytes) -> Path:
    path.write_bytes(framed(json.dumps(header).encode(), data))
    return path


def one(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


# What is honest.


def test_every_dtype_comes_back_to_the_bit(tmp_path: Path) -> None:
    state = {}
    for name, dtype in DTYPES.items():
        raw = torch.randint(0, 2 if dtype == torch.bool else 256, (6 * dtype.itemsize,), dtype=torch.uint8)
        state[name] = raw.view(dtype).reshape(2, 3)
    path = written(tmp_path / "all.safetensors", state)
    weights = read_tensors(path, specs(state), what="all")
    assert list(weights.state) == list(state)
    for name, tensor in state.items():
        assert weights.state[name].dtype == tensor.dtype
        assert weights.state[name].shape == tensor.shape
        assert torch.equal(bits(weights.state[name]), bits(tensor)), name
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.n_bytes == path.stat().st_size


def test_scalars_and_tensors_of_nothing(tmp_path: Path) -> None:
    state = {"a": torch.tensor(7), "b": torch.empty(0, 5), "c": torch.empty(3, 0, dtype=torch.bool), "d": torch.ones(2)}
    weights = read_tensors(written(tmp_path / "x", state), specs(state), what="x")
    assert {name: (tuple(t.shape), t.tolist()) for name, t in weights.state.items()} == {
        "a": ((), 7),
        "b": ((0, 5), []),
        "c": ((3, 0), [[], [], []]),
        "d": ((2,), [1.0, 1.0]),
    }


def test_no_tensors_at_all(tmp_path: Path) -> None:
    assert read_tensors(stored(tmp_path / "x", {}, b""), {}, what="x").state == {}


def test_order_in_the_header_need_not_be_that_in_the_file(tmp_path: Path) -> None:
    path = stored(tmp_path / "x", {"b": one("U8", [2], 1, 3), "a": one("U8", [1], 0, 1)}, b"\1\2\3")
    expected = {"a": TensorSpec((1,), torch.uint8), "b": TensorSpec((2,), torch.uint8)}
    assert {name: t.tolist() for name, t in read_tensors(path, expected, what="x").state.items()} == {
        "a": [1],
        "b": [2, 3],
    }


def test_padded_header_and_metadata_are_read(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt", "é": "\U0001f600"}, "a": one("U8", [1], 0, 1)}).encode()
    (tmp_path / "x").write_bytes(framed(header + b" " * 7, b"\5"))
    assert read_tensors(tmp_path / "x", {"a": TensorSpec((1,), torch.uint8)}, what="x").state["a"].item() == 5


def test_tensors_are_writable_and_no_part_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x", {"a": torch.ones(4)})
    tensor = read_tensors(path, {"a": TensorSpec((4,), torch.float32)}, what="x").state["a"]
    path.write_bytes(b"something else")
    tensor += 1
    assert tensor.tolist() == [2.0] * 4


def test_memory_is_about_that_of_the_weights(tmp_path: Path) -> None:
    state = {f"t{i}": torch.zeros(1 << 20, dtype=torch.uint8) for i in range(16)}
    path = written(tmp_path / "x", state)
    wanted = specs(state)
    tracemalloc.start()
    try:
        read_tensors(path, wanted, what="x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 16 << 20 <= peak < 18 << 20


def test_module_is_filled(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    model[3].requires_grad_(False)
    path = written(tmp_path / "x", dict(model.state_dict()))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    empty[3].requires_grad_(False)
    fill(empty, read_tensors(path, expected_of(empty), what="x").state)
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in model.parameters()]
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(model(images), empty(images))


# Tied tensors.


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


NAMES = ("first.weight", "second.weight")


def tied_on_meta() -> Tied:
    with torch.device("meta"):
        return Tied()


@pytest.mark.parametrize("kept", [NAMES, NAMES[:1], NAMES[1:]])
def test_tied_tensors_may_be_stored_once_or_twice(kept: tuple[str, ...], tmp_path: Path) -> None:
    value = torch.tensor([[float("nan"), 1.0, 2.0]] * 3)  # NaN is not equal to itself, but its bits are
    path = written(tmp_path / "x", {name: value.clone() for name in kept})
    model = tied_on_meta()
    assert expected_of(model)["first.weight"].tied_to == ("second.weight",)
    fill(model, read_tensors(path, expected_of(model), what="x").state)
    assert model.first.weight is model.second.weight
    assert torch.equal(bits(model.first.weight), bits(value))


def test_tied_tensors_that_differ_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x", {"first.weight": torch.zeros(3, 3), "second.weight": torch.ones(3, 3)})
    message = r"^x: first\.weight and second\.weight are one tensor in the model, but differ in the file$"
    with refuses("tied", message):
        read_tensors(path, expected_of(tied_on_meta()), what="x")


def test_neither_of_two_tied_tensors_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"^x lacks first\.weight, second\.weight, for the architecture y$"):
        read_tensors(stored(tmp_path / "x", {}, b""), expected_of(tied_on_meta()), what="y")


def test_tied_tensors_in_two_shards(tmp_path: Path) -> None:
    for shard, name in (("a.safetensors", NAMES[0]), ("b.safetensors", NAMES[1])):
        written(tmp_path / shard, {name: torch.ones(3, 3)})
    index = tmp_path / "index.json"
    expected = expected_of(tied_on_meta())
    index.write_text(json.dumps({"weight_map": {NAMES[0]: "a.safetensors", NAMES[1]: "b.safetensors"}}))
    state = read_sharded(index, expected, what="x").state
    assert state[NAMES[0]] is state[NAMES[1]]
    index.write_text(json.dumps({"weight_map": {NAMES[1]: "b.safetensors"}}))
    assert read_sharded(index, expected, what="x").state[NAMES[0]].tolist() == torch.ones(3, 3).tolist()
    index.write_text(json.dumps({"weight_map": {NAMES[0]: "a.safetensors", NAMES[1]: "b.safetensors"}}))
    written(tmp_path / "b.safetensors", {NAMES[1]: torch.zeros(3, 3)})
    with pytest.raises(RefusedError, match=r"index\.json: first\.weight and second\.weight are one tensor"):
        read_sharded(index, expected, what="x")


# What is expected of a module.


def test_expected_names_shapes_and_dtypes() -> None:
    with torch.device("meta"):
        model = nn.BatchNorm1d(3).bfloat16()
    assert expected_of(model) == {
        "weight": TensorSpec((3,), torch.bfloat16),
        "bias": TensorSpec((3,), torch.bfloat16),
        "running_mean": TensorSpec((3,), torch.bfloat16),
        "running_var": TensorSpec((3,), torch.bfloat16),
        "num_batches_tracked": TensorSpec((), torch.int64),
    }
    assert sum(spec.n_bytes for spec in expected_of(model).values()) == 32


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {}


def of_complex() -> nn.Module:
    model = nn.Module()
    model.scale = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Extra(2, 2), r"^_extra_state is a dict; expected a dense tensor$"),
        (lambda: nn.LazyLinear(2), r"^weight is a UninitializedParameter; expected a dense tensor$"),
        (of_complex, r"^scale is complex64; expected one of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL$"),
    ],
)
def test_modules_that_safetensors_cannot_fill(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        expected_of(make())


# What is hostile.


def read(path: Path) -> object:
    return (read_sharded if path.name == INDEX else read_tensors)(path, EXPECTED, what="small_cnn")


def test_honest_files_are_read(tmp_path: Path) -> None:
    assert read(honest(tmp_path)) is not None
    assert read(sharded(tmp_path)) is not None


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_hostile_file_is_refused_at_little_cost(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError) as caught:
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == case.code, str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert peak < FEW_MEGABYTES
    assert sorted(tmp_path.rglob("*")) == before


def test_refusals_say_what_was_found_and_expected(tmp_path: Path) -> None:
    def refused(name: str) -> object:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return read(CASES[name].make(folder))

    names = [
        *("header of 2**63 bytes", "nested deeply", "doubled name", "escapes in a name", "matrix on its side"),
        *("integers", "symbolic link", "pipe", "a terabyte", "index: path upwards"),
        "index: tensor in another shard",
    ]
    check_messages("tensors.txt", RefusedError, refused, names, rf"{tmp_path}/\d+/")


def test_reasons_of_a_broken_header(tmp_path: Path) -> None:
    headers = [
        *({"a": one("U8", [2], 1, 3)}, {"a": one("U8", [3], 0, 2)}, {"a": one("U9", [2], 0, 2)}),
        *({"a": one("U8", [True], 0, 2)}, {"a": one("U8", [2], 2, 0)}, {"a": one("U8", [1], 0, 1)}, {"a": {}}),
        {"__metadata__": {"a": None}},
    ]
    expected = {"a": TensorSpec((2,), torch.uint8)}
    check_messages(
        "tensor-headers.txt",
        RefusedError,
        lambda header: read_tensors(stored(tmp_path / "x", header, b"\0\0"), expected, what="y"),
        headers,
        f"{tmp_path}/",
    )


def test_boolean_of_another_byte_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "x", {"a": one("BOOL", [3], 0, 3)}, b"\0\1\2")
    with refuses("value", r"^x: a holds 2 as a BOOL; expected 0 or 1$"):
        read_tensors(path, {"a": TensorSpec((3,), torch.bool)}, what="x")


@pytest.mark.parametrize("read_with", [read_tensors, read_sharded])
def test_giant_is_refused_before_its_file_is_looked_for(read_with: Callable[..., object], tmp_path: Path) -> None:
    expected = {"a": TensorSpec((1 << 40,), torch.float64)}
    with refuses("too-large", r"^y takes weights of 8,796,093,022,208 bytes; the limit is 100$"):
        read_with(tmp_path / "none", expected, what="y", max_bytes=100)


def test_no_weight_is_allocated_for_a_file_whose_last_tensor_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(module, "allocate", never)
    state = {"a": torch.ones(1000), "b": torch.ones(2)}
    path = written(tmp_path / "x", state)
    with pytest.raises(RefusedError, match=r"^x holds b of shape \(2,\); y expects \(3,\)$"):
        read_tensors(path, specs(state) | {"b": TensorSpec((3,), torch.float32)}, what="y")


def test_too_many_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SHARDS", 1)
    with refuses("index", r"index\.json names 2 files; expected at most 1$"):
        read(sharded(tmp_path))


def test_what_cannot_be_allocated_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise MemoryError

    path = written(tmp_path / "x", {"a": torch.ones(4)})
    monkeypatch.setattr("seamfast.untrusted.np.empty", full)
    with refuses("memory", r"^x: a: would take 16 bytes, more than can be allocated here$"):
        read_tensors(path, {"a": TensorSpec((4,), torch.float32)}, what="x")


# Files that move.


def while_reading(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """``change`` happens once, when the header has been checked and the tensors are about to be read."""
    allocate, waiting = module.allocate, [change]

    def and_change(*args: Any) -> Any:
        if waiting:
            waiting.pop()()
        return allocate(*args)

    monkeypatch.setattr(module, "allocate", and_change)


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def overwrite(path: Path) -> None:
    os.utime(path, ns=(0, 0))
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (shrink, r"it ended after [\d,]+ of [\d,]+ bytes"),
        (grow, r"it has more than [\d,]+ bytes"),
        (overwrite, r"it was written to"),
    ],
)
def test_file_that_changes_while_it_is_read_is_refused(
    change: Callable[[Path], None], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"a": torch.ones(100_000), "b": torch.ones(100_000)}
    path = written(tmp_path / "x", state)
    while_reading(monkeypatch, lambda: change(path))
    with refuses("changed", rf"^x changed while it was read: {how}; expected a file that stays as it is$"):
        read_tensors(path, specs(state), what="x")


def test_file_put_in_its_place_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x", {"a": torch.ones(100_000)})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    other = written(tmp_path / "other", {"a": torch.zeros(100_000)})
    while_reading(monkeypatch, lambda: os.replace(other, path))
    weights = read_tensors(path, {"a": TensorSpec((100_000,), torch.float32)}, what="x")
    assert weights.sha256 == digest
    assert weights.state["a"].min() == 1


def test_bytes_that_change_behind_the_reader_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As within one tick of the clock, or through a mapping: the times stay."""
    state = {"a": torch.ones(100_000), "b": torch.ones(100_000)}
    path = written(tmp_path / "x", state)
    kept = path.stat()

    def overwrite_the_first_tensor() -> None:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            content[-800_000:-400_000] = bytes(400_000)
        os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))

    while_reading(monkeypatch, lambda: while_reading(monkeypatch, overwrite_the_first_tensor))
    with refuses(
        "changed", r"^x changed while it was read: a second reading found other bytes; expected a file that st"
    ):
        read_tensors(path, specs(state), what="x")


def test_link_that_appears_while_looking_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = CASES["symbolic link"].make(tmp_path)
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)
    with refuses("not-a-file", r"cannot be opened \(Too many levels of symbolic links\)"):
        read(path)


# Shards.


def test_shards_are_one_state(tmp_path: Path) -> None:
    whole = read_tensors(honest(tmp_path), EXPECTED, what="small_cnn")
    torch.manual_seed(0)
    index = sharded(tmp_path)
    parts = read_sharded(index, EXPECTED, what="small_cnn")
    assert list(parts.state) == list(EXPECTED) == list(whole.state)
    assert parts.sha256 == hashlib.sha256(index.read_bytes()).hexdigest()
    assert parts.n_bytes == index.stat().st_size
    assert list(parts.shards) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, shard in parts.shards.items():
        assert shard.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    held = [name for shard in parts.shards.values() for name in shard.state]
    assert sorted(held) == sorted(EXPECTED)
    assert all(parts.state[name] is shard.state[name] for shard in parts.shards.values() for name in shard.state)


# NaN and Inf.


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.is_floating_point])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_tensors_are_named(dtype: torch.dtype, bad: float) -> None:
    spoilt = torch.zeros(3, 5, dtype=dtype)
    spoilt[1, 2] = bad
    state = {"good": torch.ones(2, dtype=dtype), "bad": spoilt, "none": torch.empty(0, dtype=dtype)}
    assert non_finite(state) == ["bad"]


def test_numbers_that_are_finite_are_not_named() -> None:
    largest = torch.tensor([torch.finfo(torch.float64).max, torch.finfo(torch.float64).min], dtype=torch.float64)
    assert non_finite({"a": largest, "b": torch.tensor([True]), "c": torch.tensor(1 << 62)}) == []


def test_nan_is_read_for_others_to_judge(tmp_path: Path) -> None:
    path = written(tmp_path / "x", {"a": torch.tensor([float("nan")])})
    assert non_finite(read_tensors(path, {"a": TensorSpec((1,), torch.float32)}, what="x").state) == ["a"]


# Anything at all.


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_bytes_changed_are_survived(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("x")
    state = {"a": torch.ones(2, 3), "b": torch.tensor([1, 2])}
    content = bytearray(to_safetensors(state))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x").write_bytes(content)
    try:
        weights = read_tensors(folder / "x", specs(state), what="x")
    except RefusedError:
        return
    (length,) = struct.unpack("<Q", content[:8])
    assert b"".join(bytes(bits(weights.state[name]).numpy()) for name in ("b", "a")) == content[8 + length :]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(value=JSON, ascii_only=st.booleans())
def test_strict_json_takes_what_is_strict(value: Any, ascii_only: bool) -> None:
    try:
        text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8")
    except UnicodeEncodeError:
        return
    assert strict_json(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 1}', "^it holds a key twice$"),
        ('[{"a": 1, "\\u0061": 1}]', "^it holds a key twice$"),
        ("[NaN]", "^it holds NaN$"),
        ("[-Infinity]", "^it holds -Infinity$"),
        ("[1e999]", "^it holds 1e999$"),
        ('["\\udc00"]', "surrogates not allowed"),
        ('{"\\ud83d": 1}', "surrogates not allowed"),
        ("[" * 100_000, "^it is nested too deeply$"),
        ("[1] 2", "Extra data"),
        ("'a'", "Expecting value"),
        ("\ufeff[]", "BOM"),
        ("1" * 5000, "digits"),
        ("", "Expecting value"),
    ],
)
def test_strict_json_refuses_the_rest(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strict_json(text.encode("utf-8"))
