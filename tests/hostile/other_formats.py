"""Files that are no safetensors, or are more than that: each is refused as the kind that it is.

Those that hold a pickle would make a folder called ``canary`` beside themselves if anyone ever read it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tests.hostile.case import Case

CANARY = "canary"
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(88)
ELF = b"\x7fELF\x02\x01\x01" + bytes(57)
Content = Callable[[Path], bytes]


class Canary:
    """Whoever unpickles this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CANARY

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def pickled(protocol: int) -> Content:
    return lambda folder: pickle.dumps({"weight": Canary(folder)}, protocol)


def bare(folder: Path) -> bytes:
    """Letters and lines, without even a dict around it."""
    return f"cos\nmkdir\n(V{folder / CANARY}\ntR.".encode()


def without_number(folder: Path) -> bytes:
    """Protocol 4 without the two bytes that say so; a reader does not mind."""
    return pickle.dumps(Canary(folder), 4)[2:]


def long_before(folder: Path) -> bytes:
    """The call lies behind a string that is longer than what is read of most files."""
    return b"X" + struct.pack("<I", 300_000) + b"x" * 300_000 + b"0" + bare(folder)


def many_before(folder: Path) -> bytes:
    return b"N0" * 20_000 + bare(folder)


def junk_after(folder: Path) -> bytes:
    return bare(folder) + bytes(1000)


def torch_saved(folder: Path, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save({"0.weight": Canary(folder)}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def zipped(*members: str, content: bytes = b"x") -> Content:
    def make(folder: Path) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in members:
                archive.writestr(name, content)
        return stream.getvalue()

    return make


def nested(folder: Path) -> bytes:
    content = torch_saved(folder)
    for _ in range(3):
        content = zipped("inner.zip", content=content)(folder)
    return content


def arrays(folder: Path, *, of_objects: bool, archived: bool) -> bytes:
    stream = io.BytesIO()
    array = np.array([Canary(folder)], dtype=object) if of_objects else np.zeros(3)
    np.savez_compressed(stream, plain=np.zeros(2), x=array) if archived else np.save(stream, array)
    return stream.getvalue()


def fields_of_objects(folder: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(2, dtype=[("a", "f4"), ("b", object)]))
    return stream.getvalue()


def tarred(folder: Path, how: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=how) as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return stream.getvalue()


def tarred_long_ago(folder: Path) -> bytes:
    """A header without the word ``ustar``, which only its check sum gives away."""
    block = bytearray(tarred(folder)[:512])
    block[257:265] = bytes(8)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf; numbers and lengths below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


ONNX = field(1, 8) + field(2, b"pytorch") + field(7, b"graph") + field(8, field(1, b"") + field(2, 17))
SAVED_MODEL = field(1, 1) + field(2, b"a graph")


def portable(folder: Path) -> bytes:
    return b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + bytes(20)


def fixed(content: bytes) -> Content:
    return lambda folder: content


# Safetensors that are something else as well: a reader of the one takes them, and so does a reader of the other.


def around(data: bytes, *, after: str = "", metadata: str | None = None) -> bytes:
    """A whole safetensors file whose only tensor holds ``data``."""
    about = "" if metadata is None else f'"__metadata__":{{"p":"{metadata}"}},'
    tensor = json.dumps({"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]})
    header = f'{{{about}"x":{tensor}{after}}}'.encode()
    return struct.pack("<Q", len(header)) + header + data


def around_zip(folder: Path) -> bytes:
    """A zip archive is found from its end."""
    return around(torch_saved(folder))


def around_zip_and_comment(folder: Path) -> bytes:
    """The record that a reader looks for may lie 64 kB before the end."""
    content = bytearray(torch_saved(folder))
    content[-2:] = struct.pack("<H", 60_000)
    return around(bytes(content) + bytes(60_000))


def around_zip_with_a_longer_comment(folder: Path) -> bytes:
    """The comment is longer than what is there; readers take the archive all the same."""
    content = bytearray(torch_saved(folder))
    content[-2:] = struct.pack("<H", 60_000)
    return around(bytes(content) + bytes(10))


def around_hdf5(folder: Path) -> bytes:
    """HDF5 may begin at 512 bytes, or 1024, or 2048."""
    start = len(around(HDF5, metadata="")) - len(HDF5)
    return around(HDF5, metadata=" " * (1024 - start))


def around_old_pickle(folder: Path) -> bytes:
    """The length of the header is an opcode, the header its argument up to a newline, and the data do the rest."""
    data = b"0" + bare(folder)
    for n in range(256):
        content = around(data, metadata="p" * n, after="\n")
        if content[0] == ord("V"):
            return content
    raise AssertionError("no length of 256 begins with V")


def before_pickle(folder: Path) -> bytes:
    return around(pickled(4)(folder))


def around_onnx(folder: Path) -> bytes:
    """Each piece of the header is the content of a field, up to the data, which are a graph."""
    first = 0x20  # bytes of the field that begins in the length and ends in the metadata
    length = first << 8 | 0x12
    start = len(around(ONNX, metadata="").partition(b'"p":"')[0]) + 5
    metadata = bytearray(b"-" * (length - (len(around(ONNX, metadata="")) - len(ONNX) - 8)))
    at, end = 2 + first, 8 + length
    while at < end:
        rest = end - at
        n = 90 if rest > 236 else rest - 112 if rest > 110 else rest - 2
        assert n not in b'"\\'
        metadata[at - start : at - start + 2] = b"2" + bytes([n])
        at += 2 + n
    content = around(ONNX, metadata=metadata.decode("ascii"))
    assert content.startswith(struct.pack("<Q", length))
    return content


def case(content: Content, name: str, kind: str) -> Case:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content(folder))
        return path

    return Case(make, kind)


CASES: dict[str, Case] = {
    **{
        f"pickle of protocol {protocol} called {name}": case(pickled(protocol), name, "pickle")
        for protocol in range(6)
        for name in ("model.pkl", "model.safetensors", "pytorch_model.bin", "config.json")
    },
    "bare calls": case(bare, "model.pkl", "pickle"),
    "bare calls called model.safetensors": case(bare, "model.safetensors", "pickle"),
    "bare calls called README.md": case(bare, "README.md", "pickle"),
    "bare calls, junk after": case(junk_after, "model.safetensors", "pickle"),
    "bare calls behind a long string": case(long_before, "model.safetensors", "pickle"),
    "bare calls behind many opcodes": case(many_before, "model.safetensors", "pickle"),
    "protocol 4 without its number": case(without_number, "model.safetensors", "pickle"),
    "data alone, protocol 0": case(lambda folder: pickle.dumps({"a": [1.5]}, 0), "notes.txt", "pickle"),
    "pickle cut": case(lambda folder: pickled(4)(folder)[:20], "model.safetensors", "pickle"),
    "torch.save, legacy": case(partial(torch_saved, legacy=True), "model.pt", "pickle"),
    "torch.save, legacy, called model.safetensors": case(
        partial(torch_saved, legacy=True), "model.safetensors", "pickle"
    ),
    "unknown bytes called model.pth": case(fixed(b"\xff\xfe\xfd"), "model.pth", "pickle"),
    "text called model.ckpt": case(fixed(b"hello\n"), "model.ckpt", "pickle"),
    "torch.save": case(torch_saved, "model.pt", "torch-zip"),
    "torch.save called model.safetensors": case(torch_saved, "model.safetensors", "torch-zip"),
    "torch.save called config.json": case(torch_saved, "config.json", "torch-zip"),
    "data.pkl in capitals": case(zipped("x/DATA.PKL"), "model.bin", "torch-zip"),
    "TorchScript": case(zipped("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"), "model.pt", "torchscript"),
    "TorchScript by its constants": case(zipped("m/data.pkl", "m/constants.pkl"), "model.safetensors", "torchscript"),
    "torch.export": case(
        zipped("m/archive_format", "m/models/model.json", "m/data/weights/weight_0"),
        "model.safetensors",
        "torch-export",
    ),
    "torch.export by its name": case(zipped("version"), "model.pt2", "torch-export"),
    "nested zips": case(nested, "model.safetensors", "zip"),
    "zip bomb": case(zipped("x", "y", content=bytes(20_000_000)), "model.zip", "zip"),
    "zip behind text": case(lambda folder: b"hello\n" * 99 + zipped("x")(folder), "README.md", "zip"),
    "zip behind JSON": case(lambda folder: b'{"a": 1}' + torch_saved(folder), "config.json", "torch-zip"),
    "zip without an end": case(lambda folder: zipped("x")(folder)[:20], "model.bin", "zip"),
    "empty zip": case(zipped(), "model.bin", "zip"),
    "zip of a program": case(zipped("__main__.py"), "model.bin", "zip"),
    "Keras": case(zipped("metadata.json", "config.json", "model.weights.h5"), "model.bin", "keras-zip"),
    "Keras by its name": case(zipped("config.json"), "model.keras", "keras-zip"),
    "Keras in HDF5": case(fixed(HDF5 + b"keras_version" + bytes(50)), "weights.bin", "keras"),
    "HDF5": case(fixed(HDF5), "model.safetensors", "hdf5"),
    "HDF5 behind 2048 bytes": case(fixed(bytes(2048) + HDF5), "model.bin", "hdf5"),
    "objects of NumPy": case(partial(arrays, of_objects=True, archived=False), "weights.npy", "numpy-pickle"),
    "records of NumPy with objects": case(fields_of_objects, "weights.safetensors", "numpy-pickle"),
    "objects of NumPy in an archive": case(
        partial(arrays, of_objects=True, archived=True), "weights.npz", "numpy-pickle"
    ),
    "array of NumPy": case(partial(arrays, of_objects=False, archived=False), "weights.npy", "numpy"),
    "archive of NumPy": case(partial(arrays, of_objects=False, archived=True), "weights.npz", "npz"),
    "tar": case(tarred, "model.pt", "tar"),
    "tar, POSIX, called model.safetensors": case(partial(tarred, how=tarfile.PAX_FORMAT), "model.safetensors", "tar"),
    "tar of long ago": case(tarred_long_ago, "model.bin", "tar"),
    "gzip": case(lambda folder: gzip.compress(pickled(4)(folder)), "model.pkl", "gzip"),
    "gzip bomb called model.safetensors": case(
        lambda folder: gzip.compress(bytes(20_000_000)), "model.safetensors", "gzip"
    ),
    "ONNX": case(fixed(ONNX), "model.onnx", "onnx"),
    "ONNX called model.safetensors": case(fixed(ONNX), "model.safetensors", "onnx"),
    "ONNX by its name": case(fixed(b"\x00\x01"), "model.onnx", "onnx"),
    "SavedModel": case(fixed(SAVED_MODEL), "model.bin", "tensorflow-savedmodel"),
    "SavedModel by its name": case(fixed(b"\x00\x01"), "saved_model.pb", "tensorflow-savedmodel"),
    "SavedModel as text": case(fixed(b"saved_model_schema_version: 1\n"), "saved_model.pbtxt", "tensorflow-savedmodel"),
    "GGUF": case(fixed(b"GGUF\3\0\0\0" + bytes(40)), "model.safetensors", "gguf"),
    "Python": case(fixed(b"import os\n"), "modeling.py", "python"),
    "no Python yet": case(fixed(b""), "__init__.py", "python"),
    "Python without its name": case(fixed(b"#!/usr/bin/env python3\nimport os\n"), "setup", "python"),
    "path configuration that imports": case(fixed(b"import os; os.mkdir('canary')\n"), "site.pth", "python"),
    "notebook": case(fixed(b'{"cells": [], "nbformat": 4}'), "train.ipynb", "script"),
    "shell script": case(fixed(b"#!/bin/sh\nmkdir canary\n"), "pre-commit", "script"),
    "Makefile": case(fixed(b"all:\n\tmkdir canary\n"), "Makefile", "script"),
    **{
        f"{name} by its name": case(fixed(b"x\n"), name, "script")
        for name in ("run.bat", "run.ps1", "index.js", "init.LUA", ".envrc", "run.sh")
    },
    **{name: case(fixed(b"[build-system]\n"), name, "build") for name in ("setup.cfg", "pyproject.toml", "Dockerfile")},
    "web page": case(fixed(b"<!-- -->\n<!DOCTYPE html>\n<script>alert(1)</script>"), "card", "web"),
    "web page by its name": case(fixed(b"hello\n"), "card.html", "web"),
    "drawing with a script": case(
        fixed(b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'), "logo", "web"
    ),
    "7z": case(fixed(b"7z\xbc\xaf\x27\x1c" + bytes(30)), "model.bin", "archive"),
    "7z by its name": case(fixed(b"\0\1"), "model.7z", "archive"),
    "xz": case(lambda folder: lzma.compress(pickled(4)(folder)), "model.bin", "archive"),
    "bzip2 called model.safetensors": case(
        lambda folder: bz2.compress(pickled(4)(folder)), "model.safetensors", "archive"
    ),
    "zstd": case(fixed(b"\x28\xb5\x2f\xfd" + bytes(30)), "model.pkl.zst", "archive"),
    "wheel": case(zipped("evil/__init__.py", "evil-1.dist-info/METADATA"), "evil-1-py3-none-any.whl", "zip"),
    "wheel by its name": case(fixed(b"\0\1"), "evil-1-py3-none-any.whl", "zip"),
    "thousands of ends of zips": case(fixed(b"PK\5\6" * 5000), "notes.txt", "zip"),
    "compiled Python": case(fixed(b"\xa7\r\r\n" + bytes(12) + b"\xe3"), "modeling.bin", "python"),
    "ELF": case(fixed(ELF), "op.so", "native"),
    "ELF called model.safetensors": case(fixed(ELF), "model.safetensors", "native"),
    "library by its name": case(fixed(b"\0"), "libop.so.1.2", "native"),
    "Windows": case(portable, "model.safetensors", "native"),
    "DOS": case(fixed(b"MZ\x90\0\3" + bytes(100)), "model.bin", "native"),
    "Mach-O": case(fixed(bytes.fromhex("cffaedfe") + bytes(60)), "op.dylib", "native"),
    "Mach-O for many machines": case(fixed(bytes.fromhex("cafebabe") + bytes(60)), "model.bin", "native"),
    "WebAssembly": case(fixed(b"\0asm\1\0\0\0"), "model.bin", "native"),
    "pointer of Git LFS": case(
        fixed(b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 9\n"), "model.safetensors", "lfs-pointer"
    ),
    "random bytes": case(fixed(bytes(range(255, 200, -1))), "model.bin", "unknown"),
    "text with escapes": case(fixed(b"\x1b[2J"), "README.md", "unknown"),
    "safetensors and a zip": case(around_zip, "model.safetensors", "torch-zip"),
    "safetensors and a zip with a comment": case(around_zip_and_comment, "model.safetensors", "torch-zip"),
    "safetensors and a zip with a cut comment": case(
        around_zip_with_a_longer_comment, "model.safetensors", "torch-zip"
    ),
    "safetensors and HDF5": case(around_hdf5, "model.safetensors", "hdf5"),
    "safetensors and an old pickle": case(around_old_pickle, "model.safetensors", "pickle"),
    "safetensors before a pickle": case(before_pickle, "model.safetensors", "pickle"),
    "safetensors and ONNX": case(around_onnx, "model.safetensors", "onnx"),
}
