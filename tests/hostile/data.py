"""Data folders and files made to harm: images, labels and archives that are not what they say."""

from __future__ import annotations

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
    "zip that leaves its folder": Case(partial(_zipped, names=("../../a/3.png",)), "data"),
    "zip with an absolute name": Case(partial(_zipped, names=("/a/3.png",)), "data"),
    "zip with a name twice": Case(partial(_zipped, names=("a/1.png",)), "data"),
}
