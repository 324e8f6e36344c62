"""Hostile safetensors files and indexes, each beside an honest ``model.json``: only the weights are at fault."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from seamfast.intake.tensors import expected_of
from seamfast.models.folder import ModelDescription, save_model
from tests.hostile.case import Case

DESCRIPTION = ModelDescription("small_cnn", num_classes=4, in_channels=1, image_size=8)
with torch.device("meta"):
    EXPECTED = expected_of(DESCRIPTION.build())

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Header = dict[str, Any]


def honest(folder: Path) -> Path:
    """A model as ``save_model`` writes it; the path of its weights."""
    save_model(folder, DESCRIPTION.build(), DESCRIPTION)
    return folder / WEIGHTS


def parts(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, content[8 + length :]


def framed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def with_header(change: Callable[[Header], object], more: bytes = b"") -> Callable[[Path], Path]:
    """``change`` spoils the parsed header in place; ``more`` follows the honest data."""

    def make(folder: Path) -> Path:
        path = honest(folder)
        header, data = parts(path)
        change(header)
        path.write_bytes(framed(json.dumps(header).encode(), data + more))
        return path

    return make


def with_text(change: Callable[[str], str | bytes]) -> Callable[[Path], Path]:
    """``change`` spoils the text of the header."""

    def make(folder: Path) -> Path:
        path = honest(folder)
        header, data = parts(path)
        text = change(json.dumps(header))
        path.write_bytes(framed(text if isinstance(text, bytes) else text.encode(), data))
        return path

    return make


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """``change`` spoils the whole file."""

    def make(folder: Path) -> Path:
        path = honest(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def entry(name: str, **fields: Any) -> Callable[[Path], Path]:
    """One tensor described otherwise."""
    return with_header(lambda header: header[name].update(fields))


def length(n: int) -> Callable[[Path], Path]:
    """A header that would have ``n`` bytes."""
    return with_bytes(lambda content: struct.pack("<Q", n) + content[8:])


def metadata(value: str) -> Callable[[Path], Path]:
    return with_text(lambda text: f'{{"__metadata__": {value}, ' + text[1:])


def sparse(name: str, start: bytes, size: int) -> Callable[[Path], Path]:
    """A file that takes no space on the disk."""

    def make(folder: Path) -> Path:
        honest(folder).unlink()
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)
        return folder / name

    return make


def besides(name: str) -> Callable[[Path], Path]:
    """One tensor more, of that name."""

    def change(header: Header) -> None:
        end = max(about["data_offsets"][1] for about in header.values())
        header[name] = {"dtype": "U8", "shape": [4], "data_offsets": [end, end + 4]}

    return with_header(change, b"\0" * 4)


def renamed(old: str, new: str) -> Callable[[Path], Path]:
    return with_header(lambda header: header.update({new: header.pop(old)}))


def shifted(by_start: int, by_end: int) -> Callable[[Path], Path]:
    """The second tensor, in order of place, moved."""

    def change(header: Header) -> None:
        second = sorted(header.values(), key=lambda about: about["data_offsets"])[1]
        start, end = second["data_offsets"]
        second["data_offsets"] = [start + by_start, end + by_end]

    return with_header(change)


def swapped(header: Header) -> None:
    start, end = header["0.weight"]["data_offsets"]
    header["0.weight"]["data_offsets"] = [end, start]


def nothing_inside(header: Header) -> None:
    """A tensor of no bytes, in the middle of another."""
    start, _ = header["7.weight"]["data_offsets"]
    header["nothing"] = {"dtype": "F32", "shape": [0], "data_offsets": [start + 4, start + 4]}


def all_halves(header: Header, dtype: str) -> None:
    for about in header.values():
        about.update(dtype=dtype, shape=[*about["shape"], 2])


def without_last(folder: Path) -> Path:
    path = honest(folder)
    header, data = parts(path)
    last = max(header, key=lambda name: header[name]["data_offsets"])
    start, _ = header.pop(last)["data_offsets"]
    path.write_bytes(framed(json.dumps(header).encode(), data[:start]))
    return path


def flat(folder: Path) -> Path:
    """A matrix stored as a vector of as many numbers."""
    return with_header(lambda header: header["9.weight"].update(shape=[256]))(folder)


def symlink(folder: Path) -> Path:
    path = honest(folder)
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    return path


def symlink_to_nothing(folder: Path) -> Path:
    path = honest(folder)
    path.unlink()
    path.symlink_to("/nowhere/at/all")
    return path


def pipe(folder: Path) -> Path:
    path = honest(folder)
    path.unlink()
    os.mkfifo(path)
    return path


def directory(folder: Path) -> Path:
    path = honest(folder)
    path.unlink()
    path.mkdir()
    return path


def sharded(folder: Path, change: Callable[[Header], object] = lambda index: None) -> Path:
    """The honest weights in two shards; ``change`` spoils the index."""
    path = honest(folder)
    header, data = parts(path)
    weight_map = {}
    for i, half in enumerate((sorted(header)[:4], sorted(header)[4:]), 1):
        described, pieces, end = {}, [], 0
        for name in half:
            start, stop = header[name]["data_offsets"]
            described[name] = header[name] | {"data_offsets": [end, end + stop - start]}
            pieces.append(data[start:stop])
            end += stop - start
            weight_map[name] = f"model-0000{i}-of-00002.safetensors"
        (folder / f"model-0000{i}-of-00002.safetensors").write_bytes(
            framed(json.dumps(described).encode(), b"".join(pieces))
        )
    path.unlink()
    index = {"metadata": {"total_size": len(data)}, "weight_map": weight_map}
    change(index)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return folder / INDEX


def index(change: Callable[[Header], object]) -> Callable[[Path], Path]:
    return lambda folder: sharded(folder, change)


def in_file(shard: Any) -> Callable[[Path], Path]:
    """An index that looks for one tensor in ``shard``."""
    return index(lambda document: document["weight_map"].update({"0.bias": shard}))


def index_text(change: Callable[[str], str]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = sharded(folder)
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        return path

    return make


def second_shard(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = sharded(folder)
        change(folder / "model-00002-of-00002.safetensors")
        return path

    return make


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


_MANY = ",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(4_000))
_DEEP = '{"a":' * 20_000 + "1" + "}" * 20_000

CASES: dict[str, Case] = {
    # The length of the header.
    "empty": Case(with_bytes(lambda content: b""), "header"),
    "seven bytes": Case(with_bytes(lambda content: content[:7]), "header"),
    "eight bytes": Case(with_bytes(lambda content: content[:8]), "header"),
    "header of no bytes": Case(length(0), "header"),
    "header of 2**63 bytes": Case(length(2**63), "header"),
    "header of 2**64 - 1 bytes": Case(length(2**64 - 1), "header"),
    "header that passes the end": Case(length(200_000), "header"),
    "header cut": Case(with_bytes(lambda content: content[:100]), "header"),
    "100 MB of JSON": Case(sparse(WEIGHTS, struct.pack("<Q", 100_000_000) + b'{"a":[', 100_000_008), "too-large"),
    "a terabyte": Case(sparse(WEIGHTS, struct.pack("<Q", 2) + b"{}", 2**40), "too-large"),
    # The JSON of the header.
    "a list": Case(with_text(lambda text: f"[{text}]"), "header"),
    "not JSON": Case(with_text(lambda text: "{" + "x" * 50 + "}"), "header"),
    "nested deeply": Case(with_text(lambda text: _DEEP), "header"),
    "lists nested deeply": Case(with_text(lambda text: '{"a":' + "[" * 60_000 + "]" * 60_000 + "}"), "header"),
    "a hundred thousand lists": Case(with_text(lambda text: '{"a":[' + "[]," * 80_000 + "[]]}"), "header"),
    "thousands of tensors": Case(with_text(lambda text: "{" + _MANY + "," + text[1:]), "names"),
    "a million tensors": Case(
        with_text(lambda text: "{" + ",".join(f'"{i}":0' for i in range(1_000_000)) + "}"), "too-large"
    ),
    "doubled name": Case(with_text(lambda text: text[:-1] + ', "0.bias": {}}'), "header"),
    "name doubled by an escape": Case(with_text(lambda text: text[:-1] + ', "0.b\\u0069as": {}}'), "header"),
    "doubled field": Case(with_text(lambda text: text.replace('"dtype"', '"dtype": "I64", "dtype"', 1)), "header"),
    "1e309": Case(with_text(lambda text: text.replace("[16]", "[1e309]")), "header"),
    "NaN": Case(with_text(lambda text: text.replace("[16]", "[NaN]")), "header"),
    "-Infinity": Case(with_text(lambda text: text.replace("[16]", "[-Infinity]")), "header"),
    "number of five thousand digits": Case(with_text(lambda text: text.replace("[16]", f"[{'1' * 5_000}]")), "header"),
    "not UTF-8": Case(with_text(lambda text: text.encode().replace(b"0.bias", b"0.bia\xff")), "header"),
    "UTF-16": Case(with_text(lambda text: text.encode("utf-16")), "header"),
    "byte order mark": Case(with_text(lambda text: b"\xef\xbb\xbf" + text.encode()), "header"),
    "space before": Case(with_text(lambda text: f" {text}"), "header"),
    "newline after": Case(with_text(lambda text: f"{text}\n"), "header"),
    "NUL after": Case(with_text(lambda text: f"{text}\0"), "header"),
    "two objects": Case(with_text(lambda text: text + text), "header"),
    "metadata of numbers": Case(metadata('{"a": 1}'), "header"),
    "metadata of objects": Case(metadata('{"a": {"b": "c"}}'), "header"),
    "metadata of no object": Case(metadata('"a"'), "header"),
    "half of a surrogate in the metadata": Case(metadata('{"a": "\\ud800"}'), "header"),
    # The fields of a tensor.
    "tensor of no object": Case(with_header(lambda header: header.update({"0.bias": [1]})), "header"),
    "field too many": Case(entry("0.bias", code="import os"), "header"),
    "field too few": Case(with_header(lambda header: header["0.bias"].pop("shape")), "header"),
    "unknown dtype": Case(entry("0.bias", dtype="object"), "header"),
    "dtype of no string": Case(entry("0.bias", dtype=["F32"]), "header"),
    "dtype in lower case": Case(entry("0.bias", dtype="f32"), "header"),
    "shape of no list": Case(entry("0.bias", shape=16), "header"),
    "shape of strings": Case(entry("0.bias", shape=["16"]), "header"),
    "shape of floats": Case(entry("0.bias", shape=[16.0]), "header"),
    "shape of booleans": Case(entry("9.bias", shape=[4, True]), "header"),
    "negative size": Case(entry("0.bias", shape=[-16]), "header"),
    "two negative sizes": Case(entry("0.bias", shape=[-4, -4]), "header"),
    "2**60 numbers": Case(entry("0.bias", shape=[2**60]), "header"),
    "a shape that overflows to no bytes": Case(entry("0.bias", shape=[2**32, 2**32]), "header"),
    "a size beyond 63 bits": Case(entry("0.bias", shape=[2**63, 0]), "header"),
    "sixty-five sizes": Case(entry("0.bias", shape=[16] + [1] * 64), "header"),
    "a hundred thousand sizes": Case(entry("0.bias", shape=[1] * 80_000), "header"),
    "shape that takes more": Case(entry("0.bias", shape=[17]), "header"),
    "dtype that takes less": Case(entry("0.bias", dtype="F16"), "header"),
    "offsets past the end": Case(entry("0.bias", data_offsets=[2**62, 2**62 + 64]), "header"),
    "offsets beyond 64 bits": Case(entry("0.bias", data_offsets=[2**64, 2**64 + 64]), "header"),
    "negative offsets": Case(entry("0.bias", data_offsets=[-64, 0]), "header"),
    "three offsets": Case(entry("0.bias", data_offsets=[0, 64, 64]), "header"),
    "end before start": Case(with_header(swapped), "header"),
    # Where the tensors lie.
    "overlap": Case(shifted(-4, -4), "header"),
    "hole": Case(shifted(4, 4), "header"),
    "two in one place": Case(entry("9.bias", data_offsets=[0, 16]), "header"),
    "nothing inside of another": Case(with_header(nothing_inside), "header"),
    "one byte more": Case(with_bytes(lambda content: content + b"\0"), "header"),
    "one byte less": Case(with_bytes(lambda content: content[:-1]), "header"),
    "no data": Case(with_bytes(lambda content: content[: 8 + struct.unpack("<Q", content[:8])[0]]), "header"),
    # Tensors that the model does not have.
    "no tensors": Case(with_bytes(lambda content: framed(b"{}", b"")), "names"),
    "tensor missing": Case(without_last, "names"),
    "tensor too many": Case(besides("extra"), "names"),
    "__proto__": Case(besides("__proto__"), "names"),
    "__class__": Case(besides("__class__"), "names"),
    "constructor": Case(besides("constructor.prototype"), "names"),
    "0.weight.__dict__": Case(besides("0.weight.__dict__"), "names"),
    "a path for a name": Case(besides("../../etc/passwd"), "names"),
    "escapes in a name": Case(besides("\x1b[2Jextra\n"), "names"),
    "text that runs backwards in a name": Case(besides("\u202eextra"), "names"),
    "no name": Case(besides(""), "names"),
    "half of a surrogate in a name": Case(besides("\ud800"), "header"),
    "name of other letters": Case(renamed("0.bias", "0.bi\u0430s"), "names"),
    "name in capitals": Case(renamed("0.bias", "0.BIAS"), "names"),
    "name with a NUL": Case(renamed("0.bias", "0.bias\0"), "names"),
    "name of a wrapper": Case(renamed("0.bias", "module.0.bias"), "names"),
    "matrix as a vector": Case(flat, "shape"),
    "matrix on its side": Case(entry("9.weight", shape=[64, 4]), "shape"),
    "one size more": Case(entry("0.bias", shape=[16, 1]), "shape"),
    "halves": Case(with_header(lambda header: all_halves(header, "F16")), "shape"),
    "integers": Case(entry("9.bias", dtype="I32"), "dtype"),
    # Files that are no files.
    "symbolic link": Case(symlink, "symlink"),
    "symbolic link to nothing": Case(symlink_to_nothing, "symlink"),
    "pipe": Case(pipe, "not-a-file"),
    "folder": Case(directory, "not-a-file"),
    # Indexes.
    "index: path upwards": Case(in_file("../model.safetensors"), "index"),
    "index: absolute path": Case(in_file("/etc/model.safetensors"), "index"),
    "index: path downwards": Case(in_file("sub/model.safetensors"), "index"),
    "index: backslashes": Case(in_file("..\\model.safetensors"), "index"),
    "index: NUL": Case(in_file("model\0.safetensors"), "index"),
    "index: newline": Case(in_file("model.safetensors\n"), "index"),
    "index: hidden file": Case(in_file(".model.safetensors"), "index"),
    "index: address": Case(in_file("https://example.org/model.safetensors"), "index"),
    "index: pickle": Case(in_file("pytorch_model.bin"), "index"),
    "index: number for a file": Case(in_file(1), "index"),
    "index: list for a file": Case(in_file(["model-00001-of-00002.safetensors"]), "index"),
    "index: weight_map a list": Case(index(lambda document: document.update(weight_map=[])), "index"),
    "index: no weight_map": Case(index(lambda document: document.pop("weight_map")), "index"),
    "index: key too many": Case(index(lambda document: document.update(auto_map={})), "index"),
    "index: a list": Case(index_text(lambda text: f"[{text}]"), "index"),
    "index: not JSON": Case(index_text(lambda text: text[:-1]), "index"),
    "index: nested deeply": Case(index_text(lambda text: '{"weight_map": ' + _DEEP[:60_000]), "index"),
    "index: doubled name": Case(index_text(lambda text: text[:-2] + ', "0.bias": "a.safetensors"}}'), "index"),
    "index: 1e309": Case(
        index_text(lambda text: text.replace('"total_size": ', '"total_size": 1e309, "x": ')), "index"
    ),
    "index: 100 MB": Case(sparse(INDEX, b'{"weight_map": {', 100_000_000), "too-large"),
    "index: tensor missing": Case(index(lambda document: document["weight_map"].pop("0.bias")), "names"),
    "index: tensor too many": Case(
        index(lambda document: document["weight_map"].update(extra="model-00001-of-00002.safetensors")), "names"
    ),
    "index: tensor in another shard": Case(in_file("model-00002-of-00002.safetensors"), "names"),
    "index: no such shard": Case(second_shard(Path.unlink), "not-a-file"),
    "index: shard a symbolic link": Case(second_shard(linked), "symlink"),
    "index: shard too long": Case(second_shard(lambda path: path.write_bytes(path.read_bytes() + b"\0")), "header"),
}
