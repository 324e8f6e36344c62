"""Data that cost far more than their size: refused from what they declare, before they are unpacked."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from reader_files import allocating_at_most, idx_bytes, image_bytes, npy_bytes, npy_header, write_zip
from refusals import refused

from seamfast.data.readers import _gunzip, images, load, read_image_folder, read_image_zip, read_npz
from seamfast.data.readers._encoded import MAX_PARTS, MAX_SCANS, without_extras
from seamfast.data.readers._gunzip import Gunzip
from seamfast.errors import DataFileError

MIB = 1 << 20
NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
LABELS = np.zeros(1 << 18, np.uint8)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks: bytes, at: int = 33) -> bytes:
    """An honest PNG with more chunks, by default behind its header."""
    whole = image_bytes(NOISE)
    return whole[:at] + b"".join(chunks) + whole[at:]


# Archives that declare more than they can be worth.


def npz_bomb(path: Path) -> Path:
    """128 KB that unpack to 128 MB."""
    shape = (1 << 17, 1, 32, 32)
    pixels = npy_bytes(npy_header(shape), bytes(128 * MIB))
    labels = npy_bytes(npy_header(shape[:1]), bytes(shape[0]))
    return write_zip(path, {"x.npy": pixels, "y.npy": labels}, zipfile.ZIP_DEFLATED)


def test_npz_is_not_unpacked_to_a_thousand_times_its_size(tmp_path):
    path = npz_bomb(tmp_path / "a.npz")
    with allocating_at_most(MIB):
        refused(
            DataFileError, r"^a\.npz: 13\d,\d{3} bytes would unpack to 134,348,800; expected at most 67,108", load, path
        )


def idx_bomb(folder: Path) -> Path:
    shape = (1 << 18, 32, 32)
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as stream:
        stream.write(idx_bytes(np.empty(0, np.uint8), shape))
        for _ in range(shape[0] // 1024):
            stream.write(bytes(MIB))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS))
    return folder


def test_gzipped_idx_is_not_unpacked_to_a_thousand_times_its_size(tmp_path):
    with allocating_at_most(2 * MIB):
        message = r"idx3-ubyte\.gz: 26\d,\d{3} bytes would unpack to 268,435,472; expected at most 67,108,864"
        refused(DataFileError, message, load, idx_bomb(tmp_path))


def test_zip_of_images_is_not_unpacked_to_a_thousand_times_its_size(tmp_path):
    vast = image_bytes(NOISE) + bytes(MIB)
    path = write_zip(tmp_path / "a.zip", {f"a/{k}.png": vast for k in range(80)}, zipfile.ZIP_DEFLATED)
    with allocating_at_most(MIB):
        refused(DataFileError, r"a\.zip: \d\d\d,\d{3} bytes would unpack to 83,\d{3},\d{3}; expected", load, path)


def test_what_expands_little_or_is_small_is_read(tmp_path):
    few = np.zeros((200, 32, 32, 3), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=few, y=np.arange(200) % 3)
    assert (tmp_path / "a.npz").stat().st_size < few.size // 100
    assert len(load(tmp_path / "a.npz")) == 200


# Samples that the model does not take.


def other_npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=np.zeros((4, 9, 9, 3), np.uint8), y=np.arange(4))
    return folder / "a.npz"


def other_idx(folder: Path) -> Path:
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((4, 9, 9), np.uint8)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(4, dtype=np.uint8)))
    return folder


def other_cifar(folder: Path) -> Path:
    (folder / "data_batch_1.bin").write_bytes(b"no record")
    return folder


def vast_images(folder: Path) -> Path:
    (folder / "a").mkdir()
    (folder / "a" / "1.png").write_bytes(image_bytes(np.zeros((3000, 3000), np.uint8)))
    return folder


def zipped_images(folder: Path) -> Path:
    return write_zip(folder / "a.zip", {"a/1.png": image_bytes(NOISE)})


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (other_npz, r"a\.npz: array 'x': the images are \(3, 9, 9\)"),
        (other_idx, r"idx3-ubyte: the images are \(1, 9, 9\)"),
        (other_cifar, r"the images are \(3, 32, 32\)"),
        (vast_images, r"a/1\.png: the images are \(1, 3000, 3000\)"),
        (zipped_images, r"a\.zip: a/1\.png: the images are \(3, 16, 16\)"),
        (lambda folder: "digits", r"^digits: the images are \(1, 8, 8\)"),
    ],
)
def test_shape_is_compared_before_anything_is_unpacked(make: Callable[[Path], Path | str], found: str, tmp_path: Path):
    path = make(tmp_path)
    if isinstance(path, Path):
        with allocating_at_most(MIB):
            message = refused(DataFileError, found, load, path, sample_shape=(1, 28, 28))
    else:
        message = refused(DataFileError, found, load, path, sample_shape=(1, 28, 28))
    assert message.endswith("; expected (1, 28, 28) (C, H, W), as the model takes them")


def test_samples_of_the_shape_are_read(tmp_path):
    assert len(load(other_idx(tmp_path), sample_shape=(1, 9, 9))) == 4
    assert len(load(zipped_images(tmp_path), sample_shape=(3, 16, 16))) == 1
    assert len(load(other_npz(tmp_path), sample_shape=(3, 9, 9))) == 4


def test_images_are_counted_against_the_budget_before_the_first_is_opened(tmp_path):
    path = write_zip(tmp_path / "a.zip", {f"a/{k}.png": b"no image" for k in range(9)})
    refused(
        DataFileError,
        "would take 576 bytes; the limit is max_bytes=575",
        load,
        path,
        sample_shape=(1, 8, 8),
        max_bytes=575,
    )


# Gzip streams.


@pytest.mark.parametrize("n", [1, 7, 4096, 1 << 20])
def test_gunzip_reads_what_gzip_wrote(n):
    parts = [np.random.default_rng(k).bytes(5000 * k) for k in range(1, 6)]
    stream = Gunzip(io.BytesIO(b"\0\0\0".join(gzip.compress(part) for part in parts) + bytes(300_000)))
    whole = bytearray()
    while part := stream.read(n):
        assert len(part) <= n
        whole += part
    assert bytes(whole) == b"".join(parts)
    assert stream.read(1) == b""


def test_gunzip_reads_a_header_of_any_length():
    packed = gzip.compress(b"abc")
    named = packed[:3] + b"\x08" + packed[4:10] + b"n" * 500_000 + b"\0" + packed[10:]
    assert Gunzip(io.BytesIO(named)).read(9) == b"abc"


def test_many_empty_members_are_refused(tmp_path, monkeypatch):
    whole = gzip.compress(idx_bytes(np.zeros((3, 4, 5), np.uint8)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(whole + gzip.compress(b"") * 100_000)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(3, dtype=np.uint8)))
    refused(DataFileError, r"truncated or corrupt \(more than 16 gzip members for 76 bytes\)", load, tmp_path)
    monkeypatch.setattr(_gunzip, "_FEW_MEMBERS", 1 << 20)
    assert len(load(tmp_path)) == 3


# Images that hold more than pixels.


def text_bomb() -> list[bytes]:
    return [chunk(b"zTXt", b"k%d\0\0" % k + zlib.compress(bytes(MIB - 1), 9)) for k in range(60)]


@pytest.mark.parametrize(
    "chunks",
    [
        text_bomb(),
        [chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(32 * MIB), 9))],
        [chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(MIB - 1), 9))] * 60,
        [chunk(b"eXIf", bytes(1 << 16))],
        [chunk(b"acTL", struct.pack(">II", 1 << 31, 0)), chunk(b"fcTL", bytes(26))],
        [chunk(b"gAMA", struct.pack(">I", 1)), chunk(b"prVt", bytes(1 << 20))],
    ],
    ids=["zTXt", "iCCP", "iTXt", "eXIf", "APNG", "others"],
)
def test_chunks_beside_the_pixels_are_not_even_unpacked(chunks, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png_with(*chunks))
    with allocating_at_most(4 * MIB):
        assert np.array_equal(read_image_folder(tmp_path).inputs[0].permute(1, 2, 0).numpy(), NOISE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("transparent", [False, True])
def test_png_keeps_its_pixels(mode, transparent):
    out, info = io.BytesIO(), PngInfo()
    info.add_text("Comment", "c" * 5000, zip=True)
    options = {"transparency": 3} if transparent and mode in ("1", "L", "P") else {}
    Image.fromarray(NOISE).convert(mode).save(
        out, "PNG", pnginfo=info, icc_profile=b"p" * 5000, dpi=(72, 72), **options
    )
    plain = without_extras(out.getvalue(), "x")
    assert b"zTXt" in out.getvalue()
    assert not any(name in plain for name in (b"zTXt", b"iCCP", b"pHYs"))
    one, other = (Image.open(io.BytesIO(data)) for data in (out.getvalue(), plain))
    assert (one.mode, one.size) == (other.mode, other.size)
    assert np.array_equal(np.asarray(one.convert("RGBA")), np.asarray(other.convert("RGBA")))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_keeps_its_pixels(mode, progressive):
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = "d" * 500
    options = {"progressive": progressive, "exif": exif, "icc_profile": b"p" * 9000, "comment": b"c" * 50}
    Image.fromarray(NOISE).convert(mode).resize((50, 40)).save(out, "JPEG", **options)
    plain = without_extras(out.getvalue() + b"behind", "x")
    assert len(plain) < len(out.getvalue()) - 9500
    one, other = (Image.open(io.BytesIO(data)) for data in (out.getvalue(), plain))
    assert (one.mode, one.format) == (other.mode, other.format)
    assert np.array_equal(np.asarray(one), np.asarray(other))


def test_fill_bytes_and_several_pictures_in_a_jpeg():
    whole = image_bytes(NOISE, "JPEG")
    filled = whole[:2] + b"\xff" * 4000 + whole[2:] + whole
    assert without_extras(filled, "x") == whole


def test_jpeg_of_many_scans_is_refused(tmp_path):
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    start = whole.rindex(b"\xff\xda")
    last = whole[start:-2]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(whole[:-2] + last * 3000 + whole[-2:])
    refused(DataFileError, rf"a/1\.jpg: has 3,\d{{3}} scans; expected at most {MAX_SCANS}", read_image_folder, tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_with(chunk(b"tEXt", b"") * (MAX_PARTS + 1)), r"has more than 16,384 chunks"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * (MAX_PARTS + 1), r"has more than 16,384 segments"),
        (png_with(chunk(b"ABCD", bytes(70_000))), r"takes 70,\d{3} bytes for 256 pixels; expected at most 67,584"),
    ],
    ids=["chunks", "segments", "critical"],
)
def test_images_of_many_parts_are_refused(data, message, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(data)
    refused(DataFileError, rf"a/1\.png: {message}", read_image_folder, tmp_path)


def test_work_that_resizing_drops_has_a_budget(tmp_path):
    files = {f"a/{k}.png": image_bytes(np.zeros((100, 100), np.uint8)) for k in range(20)}
    path = write_zip(tmp_path / "a.zip", files)
    message = r"a\.zip: its images decode from and to 8\d,\d{3} bytes; the limit is 8 times max_bytes=10,000"
    refused(DataFileError, message, read_image_zip, path, size=(4, 4), max_bytes=10_000, threads=1)
    assert len(read_image_zip(path, size=(4, 4), max_bytes=30_000)) == 20


def test_names_in_class_folders_are_counted(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(5):
            (tmp_path / name / f"{k}.png").write_bytes(image_bytes(NOISE))
    monkeypatch.setattr(images, "_MAX_ENTRIES", 11)
    refused(DataFileError, r"with it, there are more than 11 names; expected fewer", read_image_folder, tmp_path)
    monkeypatch.setattr(images, "_MAX_ENTRIES", 12)
    assert len(read_image_folder(tmp_path)) == 10


# Messages.


def test_messages_name_no_folder_of_this_machine(tmp_path):
    calls = [
        (read_npz, tmp_path / "absent.npz"),
        (read_image_zip, tmp_path / "absent.zip"),
        (read_image_folder, tmp_path / "absent"),
        (read_image_folder, vast_images(tmp_path)),
        (load, tmp_path / "absent"),
        (load, idx_bomb(tmp_path)),
    ]
    for call, path in calls:
        message = refused(DataFileError, ".", call, path, **({"max_bytes": 1} if call is read_image_folder else {}))
        assert str(tmp_path) not in message
        assert message.startswith((path.name, f"'{path.name}'", "train-images"))
