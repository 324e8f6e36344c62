"""Data folders and files made to harm: images, labels and archives that are not what they say."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile.case import Case

CANARY = "canary"


class _Runs:
    """Runs when unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.canary,)


def _image(kind: str) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).resize((8, 8)).save(out, kind)
    return out.getvalue()


def _png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def _frames(kind: str) -> bytes:
    out = io.BytesIO()
    frames = [Image.new("L", (8, 8), number) for number in range(50)]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


def _classes(folder: Path) -> Path:
    """Two classes of honest images."""
    data = folder / "data"
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        for number in range(8):
            (data / name / f"{number}.png").write_bytes(_image("PNG"))
    return data


def _with(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        data = _classes(folder)
        (data / name).write_bytes(content)
        return data

    return make


def _linked(folder: Path) -> Path:
    data = _classes(folder)
    (data / "a" / "8.png").symlink_to("/etc/passwd")
    return data


def _pipe(folder: Path) -> Path:
    data = _classes(folder)
    os.mkfifo(data / "a" / "8.png")
    return data


def _idx(folder: Path, *, images: int = 20, labels: int = 20, label: int = 1, claimed: int | None = None) -> Path:
    data = folder / "data"
    data.mkdir()
    pixels = struct.pack(">IIII", 0x803, images if claimed is None else claimed, 8, 8) + bytes(images * 64)
    (data / "train-images-idx3-ubyte").write_bytes(pixels)
    named = struct.pack(">II", 0x801, labels) + bytes([0, label]) * (labels // 2)
    (data / "train-labels-idx1-ubyte").write_bytes(named)
    return data


def _pickled_array(folder: Path) -> Path:
    path = folder / "data.npz"
    objects = np.array([_Runs(str(folder / CANARY))], dtype=object)
    np.savez(path, x=objects, y=np.zeros(1, dtype=np.int64))
    return path


def _renamed_pickle(folder: Path) -> Path:
    path = folder / "data.npz"
    path.write_bytes(pickle.dumps(_Runs(str(folder / CANARY))))
    return path


def _npz_bomb(folder: Path) -> Path:
    header = repr({"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 64, 64)}).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(32 << 20)
    path = folder / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", content)
    return path


def _zeros(folder: Path) -> Path:
    """128 KB that unpack to 128 MB of images as the model takes them."""
    path = folder / "data.npz"
    np.savez_compressed(path, x=np.zeros((1 << 21, 8, 8), np.uint8), y=np.zeros(1 << 21, np.uint8))
    return path


def _gzipped_zeros(folder: Path, *, behind: bytes = b"", n: int = 1 << 21) -> Path:
    data = folder / "data"
    data.mkdir()
    packed = gzip.compress(struct.pack(">IIII", 0x803, n, 8, 8) + bytes(n * 64), 9)
    (data / "train-images-idx3-ubyte.gz").write_bytes(packed + behind)
    (data / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + bytes(n))
    return data


def _arrays(dtype: str, labels: str = "i8") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "data.npz"
        np.savez(path, x=np.zeros((20, 8, 8), dtype), y=np.zeros(20, labels))
        return path

    return make


def _large_images(folder: Path) -> Path:
    data = _classes(folder)
    out = io.BytesIO()
    Image.new("L", (5000, 5000)).save(out, "PNG")
    (data / "a" / "0.png").write_bytes(out.getvalue())
    return data


def _chunks(name: bytes, content: bytes, n: int) -> bytes:
    whole = _image("PNG")
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return whole[:33] + chunk * n + whole[33:]


def _scans() -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(_image("PNG"))).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * 3000 + whole[-2:]


def _padded_zip(folder: Path) -> Path:
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(80):
            archive.writestr(f"a/{number}.png", _image("PNG") + bytes(1 << 20))
    return path


def _overlapping(folder: Path) -> Path:
    """Every entry of the directory is one and the same stream."""
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(100):
            archive.writestr(f"a/{number}.png", _image("PNG"))
    content = bytearray(path.read_bytes())
    last = content.rindex(b"PK\1\2")
    at = content.index(b"PK\1\2")
    while 0 <= at <= last:
        content[at + 20 : at + 28] = struct.pack("<II", 1 << 20, 1 << 20)
        at = content.find(b"PK\1\2", at + 4)
    path.write_bytes(content)
    return path


def _zipped(folder: Path, names: tuple[str, ...]) -> Path:
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png", *names):
            archive.writestr(name, _image("PNG"))
    return path


CASES: dict[str, Case] = {
    "JPEG cut short": Case(_with("a/8.jpg", _image("JPEG")[:-8]), "data"),
    "PNG of 4 gigapixels": Case(_with("a/8.png", _png_claiming(65_500, 65_500)), "data"),
    "PNG of 2**31 columns": Case(_with("a/8.png", _png_claiming(2**31 - 1, 1)), "data"),
    "text called PNG": Case(_with("a/8.png", b"<svg onload='alert(1)'/>"), "data"),
    "pickle called PNG": Case(_with("a/8.png", pickle.dumps(_Runs(CANARY))), "data"),
    "name with an escape": Case(_with("a/\x1b[2J.png", b""), "data"),
    "link out": Case(_linked, "data"),
    "pipe": Case(_pipe, "data"),
    "nothing": Case(lambda folder: folder / "data", "data"),
    "one label too few": Case(partial(_idx, labels=18), "data"),
    "labels that the model has no class for": Case(partial(_idx, label=200), "data"),
    "more images promised than held": Case(partial(_idx, claimed=2**30), "data"),
    "array of objects": Case(_pickled_array, "data"),
    "pickle called npz": Case(_renamed_pickle, "data"),
    "npz bomb": Case(_npz_bomb, "data"),
    "npz that unpacks to a thousand times its size": Case(_zeros, "data"),
    "gzip that unpacks to a thousand times its size": Case(_gzipped_zeros, "data"),
    "gzip with 100,000 empty members": Case(partial(_gzipped_zeros, n=20, behind=gzip.compress(b"") * 100_000), "data"),
    "zip of images that unpacks to a thousand times its size": Case(_padded_zip, "data"),
    "zip with overlapping members": Case(_overlapping, "data"),
    "array of float64": Case(_arrays("f8"), "data"),
    "array of complex numbers": Case(_arrays("c16"), "data"),
    "labels of float64": Case(_arrays("u1", "f8"), "data"),
    "images larger than the model takes": Case(_large_images, "data"),
    "PNG of 20,000 chunks": Case(_with("a/8.png", _chunks(b"tEXt", b"", 20_000)), "data"),
    "PNG with 1 MB in a chunk that it needs": Case(_with("a/8.png", _chunks(b"ABCD", bytes(1 << 20), 1)), "data"),
    "JPEG of 3,000 scans": Case(_with("a/8.jpg", _scans()), "data"),
    "GIF of many frames called PNG": Case(_with("a/8.png", _frames("GIF")), "data"),
    "TIFF of many frames called JPEG": Case(_with("a/8.jpg", _frames("TIFF")), "data"),
    "zip that leaves its folder": Case(partial(_zipped, names=("../../a/3.png",)), "data"),
    "zip with an absolute name": Case(partial(_zipped, names=("/a/3.png",)), "data"),
    "zip with a name twice": Case(partial(_zipped, names=("a/1.png",)), "data"),
}
