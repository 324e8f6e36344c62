"""The one reader of safetensors files: every check before any weight is allocated, and the bytes hashed are those used.

A file is an 8-byte little-endian length, a JSON header of that length, and the bytes of the tensors, end to end.

Source: Hugging Face, "Safetensors", documentation, section "Format".
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from seamfast.errors import DataFileError, ModelError
from seamfast.intake.refusal import RefusedError
from seamfast.untrusted import (
    CHUNK,
    MAX_BYTES,
    allocate,
    file_size,
    listed,
    open_regular,
    printable,
    printable_value,
    shown,
)

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes that are read, by the names that the format gives them."""

MAX_SHARDS = 1_000

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PREFIX = 8
# A header may take this much for its metadata, and per expected tensor this much more and its name, escaped. Parsed,
# JSON takes up to some twenty times its length, so this is what bounds the memory that a hostile header can cost.
_HEADER_BYTES, _ENTRY_BYTES, _ESCAPED = 256 << 10, 256, 6
_INDEX_ENTRY_BYTES = 512  # a file name besides
_MAX_SIZES = 64  # dimensions of one tensor, as many as PyTorch takes
_BEYOND = 1 << 63  # sizes and offsets are signed 64-bit integers in PyTorch
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}\.safetensors")


@dataclass(frozen=True)
class TensorSpec:
    """What one tensor of a model is.

    Attributes:
        shape: its sizes.
        dtype: one of ``DTYPES``.
        tied_to: the other names of the same tensor. Of tied names one is enough in a file; where there are more, their
            bytes must be equal.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    tied_to: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Weights:
    """One file, read.

    Attributes:
        state: the tensors by name, on the CPU and not shared with the file; tied names hold one tensor.
        sha256: of the whole file, in hexadecimal.
        n_bytes: of the whole file.
    """

    state: dict[str, Tensor]
    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class ShardedWeights(Weights):
    """An index and its shards, read.

    Attributes:
        state: the tensors of all shards by name; tied names hold one tensor.
        sha256, n_bytes: of the index file.
        shards: each shard by its file name, in order of name.
    """

    shards: dict[str, Weights]


def expected_of(module: nn.Module) -> dict[str, TensorSpec]:
    """Name, shape and dtype of everything in ``module.state_dict()``; ``module`` may be on the meta device.

    Raises:
        ModelError: e.g. ``_extra_state is a dict; expected a dense tensor``, ``scale is complex64; expected one of F64,
            F32, ...``.
    """
    state = module.state_dict(keep_vars=True)  # the tensors themselves, so that the same one is seen as the same
    names: dict[int, list[str]] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value) or value.layout is not torch.strided:
            raise ModelError(f"{printable(name)} is a {type(value).__name__}; expected a dense tensor")
        if value.dtype not in _NAMES:
            dtype = str(value.dtype).removeprefix("torch.")
            raise ModelError(f"{printable(name)} is {dtype}; expected one of {', '.join(DTYPES)}")
        names.setdefault(id(value), []).append(name)
    return {
        name: TensorSpec(tuple(value.shape), value.dtype, tuple(other for other in names[id(value)] if other != name))
        for name, value in state.items()
    }


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``module.load_state_dict(state, assign=True)``, but a parameter under several names stays one parameter.

    Args:
        module: may be on the meta device; it takes the tensors over, without a copy.
        state: as in ``Weights``.
    """
    shared: dict[int, nn.Parameter] = {}
    filled = dict(state)
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, nn.Parameter):
            new = nn.Parameter(state[name], requires_grad=value.requires_grad)
            filled[name] = shared.setdefault(id(value), new)
    module.load_state_dict(filled, assign=True)


def read_tensors(path: Path, expected: Mapping[str, TensorSpec], *, what: str, max_bytes: int = MAX_BYTES) -> Weights:
    """The tensors of a safetensors file, if they are exactly those expected.

    The file is opened once and never followed through a symbolic link. Its length, its header, the names, shapes,
    dtypes and offsets in it are checked before memory is taken for a weight; then each byte is read once, hashed, and
    kept. NaN and Inf are let through: ``non_finite`` finds them.

    Args:
        path: the file.
        expected: ``expected_of`` the module that the tensors are for.
        what: names that module in messages.
        max_bytes: what ``expected`` may take in memory, in bytes.

    Raises:
        RefusedError: codes ``symlink``, ``not-a-file``, ``too-large``, ``header``, ``names``, ``shape``, ``dtype``,
            ``value``, ``tied``, ``changed`` and ``memory``, e.g. ``model.safetensors holds head.weight of shape (10,
            64); small_cnn expects (10, 32)``.
    """
    _check_budget(expected, what, max_bytes)
    where, file_name = shown(path), printable(path.name)
    with open_untrusted(path, "the weights as safetensors") as file:
        source = _Source(file, where)
        entries = {entry.name: entry for entry in _read_header(source, expected)}
        _check_names(entries, expected, file_name, what)
        for name, spec in expected.items():
            if name in entries:  # else it is tied to one that is
                _check_spec(entries[name], spec, file_name, what)
        tensors = {name: _read_tensor(source, entry) for name, entry in entries.items()}  # in order of place
        source.finish()
    return Weights(_tie(tensors, expected, where), source.sha256(), source.size)


def read_sharded(
    index: Path, expected: Mapping[str, TensorSpec], *, what: str, max_bytes: int = MAX_BYTES
) -> ShardedWeights:
    """The tensors of all the files that an index names, each read as ``read_tensors`` does.

    Args:
        index: a strict JSON object of ``weight_map``, which maps every tensor to a file in the same folder, and,
            unused, ``metadata``. A shard must hold the tensors that the index gives it, and no others.
        expected, what, max_bytes: as in ``read_tensors``, for all shards together.

    Raises:
        RefusedError: as ``read_tensors``, and code ``index``, e.g. ``model.safetensors.index.json: weight_map names the
            file '../x.safetensors'; expected a plain name that ends in .safetensors``.
    """
    _check_budget(expected, what, max_bytes)
    where = shown(index)
    with open_untrusted(index, "the index of the weights") as file:
        source = _Source(file, where)
        limit = _HEADER_BYTES + sum(_INDEX_ENTRY_BYTES + _ESCAPED * len(name) for name in expected)
        if source.size > limit:
            raise RefusedError("too-large", f"{where} has {source.size:,} bytes; expected at most {limit:,}")
        text = source.read(source.size)
        source.finish()
    weight_map = _weight_map(text, where)
    _check_names(weight_map, expected, printable(index.name), what)
    stored: dict[str, dict[str, TensorSpec]] = {}
    for name, shard in sorted(weight_map.items(), key=lambda item: item[1]):
        stored.setdefault(shard, {})[name] = replace(expected[name], tied_to=())  # the index names the tensors stored
    if len(stored) > MAX_SHARDS:
        raise RefusedError("index", f"{where} names {len(stored):,} files; expected at most {MAX_SHARDS:,}")
    shards = {shard: read_tensors(index.parent / shard, specs, what=what) for shard, specs in stored.items()}
    tensors = {name: tensor for weights in shards.values() for name, tensor in weights.state.items()}
    return ShardedWeights(_tie(tensors, expected, where), source.sha256(), source.size, shards)


def non_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors in ``state`` that hold a NaN or an Inf."""
    names = []
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)  # either is NaN where any number is, and no mask is allocated
            if not (math.isfinite(low.item()) and math.isfinite(high.item())):
                names.append(name)
    return names


def open_untrusted(path: Path, looked_for: str, *, where: str | None = None) -> io.BufferedReader:
    """Open a regular file that is no symbolic link; ``looked_for`` ends the message where there is none.

    Args:
        path: the file.
        looked_for: ends the message.
        where: begins the message; ``None``: ``shown(path)``.

    Raises:
        RefusedError: codes ``symlink`` and ``not-a-file``, e.g. ``x is a symbolic link; expected the file itself: the
            weights as safetensors``.
    """
    where = shown(path) if where is None else where
    if path.is_symlink():  # for the message; opening refuses it again
        raise RefusedError("symlink", f"{where} is a symbolic link; expected the file itself: {looked_for}")
    try:
        return open_regular(path, looked_for, follow=False, where=where)
    except DataFileError as error:
        raise RefusedError("not-a-file", str(error)) from error


def strict_json(data: bytes) -> Any:
    """Parse UTF-8 JSON as its standard has it: no key twice, no NaN, no number beyond a float, no half of a surrogate.

    Raises:
        ValueError: e.g. ``it holds a key twice``. The message may need ``printable``.
    """
    text = data.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # only escapes can stand for what UTF-8 cannot hold
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json``'s ``object_pairs_hook``: the dict of ``pairs``, or a ``ValueError`` where a key is there twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("it holds a key twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_constant(printable(digits, 60))


class _Source:
    """A file that is read from its start to its end, hashed on the way, kept, and at the end compared with itself.

    The times of a file have the grain of a clock tick and do not follow writes through a mapping. So a file that is
    written to while it is read may end up as parts of two, with the times that it had. The comparison finds that: a
    mixture passes only if it is what the file holds for two readers in a row.
    """

    def __init__(self, file: io.BufferedReader, where: str) -> None:
        self.size = file_size(file)
        self.where = where
        self._file = file
        self._before = self._stamp()
        self._hash = hashlib.sha256()
        self._done = 0
        self._kept: list[memoryview] = []

    def read(self, n: int) -> bytes:
        """The next ``n`` bytes, all of them."""
        out = memoryview(bytearray(n))
        self.read_into(out)
        return bytes(out)

    def read_into(self, out: memoryview) -> None:
        """Fill ``out`` with the next bytes; it must stay as it is until ``finish``."""
        self._kept.append(out)
        for start in range(0, len(out), CHUNK):
            part = out[start : start + CHUNK]
            got = self._file.readinto(part)
            if got != len(part):
                self._refuse(f"it ended after {self._done + got:,} of {self.size:,} bytes")
            self._hash.update(part)
            self._done += got

    def finish(self) -> None:
        """Raise unless the file ends here, and is what it was when it was opened."""
        if self._file.read(1):
            self._refuse(f"it has more than {self.size:,} bytes")
        if self._stamp() != self._before:
            self._refuse("it was written to")
        self._compare()
        self._kept.clear()

    def _compare(self) -> None:
        """Read the file once more, and raise unless it holds what was kept."""
        self._file.seek(0)
        again = memoryview(bytearray(CHUNK))
        for kept in self._kept:
            for start in range(0, len(kept), CHUNK):
                part = kept[start : start + CHUNK]
                got = self._file.readinto(again[: len(part)])
                if got != len(part) or again[:got] != part:
                    self._refuse("a second reading found other bytes")

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _stamp(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _refuse(self, how: str) -> NoReturn:
        message = f"{self.where} changed while it was read: {how}; expected a file that stays as it is"
        raise RefusedError("changed", message)


@dataclass(frozen=True)
class _Entry:
    """One tensor in the header; ``start`` and ``end`` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def _read_header(source: _Source, expected: Mapping[str, TensorSpec]) -> list[_Entry]:
    """The tensors of a header, in order of their bytes, which fill the file without a hole."""
    where, size = source.where, source.size
    limit = _HEADER_BYTES + sum(_ENTRY_BYTES + _ESCAPED * len(name) for name in expected)
    largest = _PREFIX + limit + sum(spec.n_bytes for spec in expected.values())
    if size > largest:
        raise RefusedError("too-large", f"{where} has {size:,} bytes; expected at most {largest:,}")
    if size < _PREFIX:
        _not_whole(where, f"it has {size} bytes; expected {_PREFIX} for the length of its header")
    length = int.from_bytes(source.read(_PREFIX), "little")
    if length > min(limit, size - _PREFIX):
        _not_whole(where, f"its header would take {length:,} bytes; expected at most {min(limit, size - _PREFIX):,}")
    entries = sorted(_entries(source.read(length), where), key=lambda entry: (entry.start, entry.end))
    end = 0
    for entry in entries:
        if entry.start != end:
            _not_whole(
                where,
                f"{printable(entry.name, 60)} starts at {entry.start:,}; expected {end:,}, without hole or overlap",
            )
        end = entry.end
    if _PREFIX + length + end != size:
        _not_whole(where, f"it has {size:,} bytes; its header describes {_PREFIX + length + end:,}")
    return entries


def _entries(header: bytes, where: str) -> list[_Entry]:
    if not header.startswith(b"{") or not header.rstrip(b" ").endswith(b"}"):
        _not_whole(where, "its header is no JSON object")
    try:
        fields = strict_json(header)
    except ValueError as error:
        _not_whole(where, f"its header is not strict JSON: {printable(error)}")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _not_whole(where, "its __metadata__ is not an object of strings")
    return [_entry(name, value, where) for name, value in fields.items()]


def _entry(name: str, value: Any, where: str) -> _Entry:
    """One tensor, once its fields are of the right kind and agree."""
    tensor = printable(name, 60)
    if not isinstance(value, dict) or set(value) != _ENTRY_KEYS:
        _not_whole(where, f"{tensor} is not an object of {', '.join(sorted(_ENTRY_KEYS))}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _not_whole(where, f"{tensor} has the dtype {printable_value(dtype)}; expected one of {', '.join(DTYPES)}")
    if not _integers(shape) or len(shape) > _MAX_SIZES:
        _not_whole(
            where, f"{tensor} has the shape {printable_value(shape)}; expected at most {_MAX_SIZES} integers from 0 on"
        )
    if not _integers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _not_whole(where, f"{tensor} has data_offsets {printable_value(offsets)}; expected its start and its end")
    entry = _Entry(name, dtype, tuple(shape), *offsets)
    n_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if entry.end - entry.start != n_bytes:
        size = f"{dtype} of shape {printable_value(shape)} takes {printable_value(n_bytes)}"
        _not_whole(where, f"{tensor} has {entry.end - entry.start} bytes; {size}")
    return entry


def _integers(values: Any) -> bool:
    """Whether ``values`` is a list of integers that can be sizes; type(), since bool is an int too."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < _BEYOND for value in values)


def _check_budget(expected: Mapping[str, TensorSpec], what: str, max_bytes: int) -> None:
    n_bytes = sum(spec.n_bytes for spec in expected.values())
    if n_bytes > max_bytes:
        raise RefusedError("too-large", f"{what} takes weights of {n_bytes:,} bytes; the limit is {max_bytes:,}")


def _check_names(found: Collection[str], expected: Mapping[str, TensorSpec], file_name: str, what: str) -> None:
    """Raise unless the names in a file are those expected; of tied ones, one is enough."""
    there = set(found)
    lacking = [n for n, spec in expected.items() if n not in there and there.isdisjoint(spec.tied_to)]
    for verb, names in (("lacks", lacking), ("holds besides", there - set(expected))):
        if names:
            raise RefusedError("names", f"{file_name} {verb} {listed(sorted(names), 5)}, for the architecture {what}")


def _check_spec(entry: _Entry, spec: TensorSpec, file_name: str, what: str) -> None:
    holds = f"{file_name} holds {printable(entry.name, 60)}"
    if entry.shape != spec.shape:
        raise RefusedError("shape", f"{holds} of shape {printable_value(entry.shape)}; {what} expects {spec.shape}")
    if DTYPES[entry.dtype] != spec.dtype:
        raise RefusedError("dtype", f"{holds} as {entry.dtype}; expected {_NAMES[spec.dtype]}")


def _read_tensor(source: _Source, entry: _Entry) -> Tensor:
    tensor = f"{source.where}: {printable(entry.name, 60)}"
    if entry.start == entry.end:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    try:
        data = allocate((entry.end - entry.start,), tensor)
    except DataFileError as error:
        raise RefusedError("memory", str(error)) from error
    source.read_into(data.data)
    if entry.dtype == "BOOL" and data.max() > 1:
        raise RefusedError("value", f"{tensor} holds {data.max()} as a BOOL; expected 0 or 1")
    return torch.from_numpy(data).view(DTYPES[entry.dtype]).reshape(entry.shape)


def _tie(tensors: Mapping[str, Tensor], expected: Mapping[str, TensorSpec], where: str) -> dict[str, Tensor]:
    """``tensors`` in the order of ``expected``; tied names hold the one tensor that was stored for them."""
    state = {}
    for name, spec in expected.items():
        first, *others = sorted(known for known in (name, *spec.tied_to) if known in tensors)
        for other in others:
            if not torch.equal(_bits(tensors[first]), _bits(tensors[other])):
                names = f"{printable(first, 60)} and {printable(other, 60)}"
                raise RefusedError("tied", f"{where}: {names} are one tensor in the model, but differ in the file")
        state[name] = tensors[first]
    return state


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: NaN differs from itself, its bytes do not."""
    return tensor.reshape(-1).view(torch.uint8)


def _weight_map(text: bytes, where: str) -> dict[str, str]:
    """Which file holds which tensor, as an index says."""
    try:
        document = strict_json(text)
    except ValueError as error:
        raise RefusedError("index", f"{where} is not strict JSON: {printable(error)}") from error
    fields = document if isinstance(document, dict) else {}
    weight_map = fields.get("weight_map")
    if not isinstance(weight_map, dict) or set(fields) - {"weight_map", "metadata"}:
        raise RefusedError("index", f"{where} is not an object of metadata and weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
            named = f"{where}: weight_map names the file {printable_value(shard)}"
            raise RefusedError("index", f"{named}; expected a plain name that ends in .safetensors")
    return weight_map


def _not_whole(where: str, reason: str) -> NoReturn:
    raise RefusedError("header", f"{where} is not a whole safetensors file ({reason}); other formats are refused")
