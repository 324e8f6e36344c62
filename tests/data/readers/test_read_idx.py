from __future__ import annotations

import gzip
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reader_files import allocating_at_most, idx_bytes
from refusals import refused

from seamfast.data.readers import read_fashion_mnist, read_idx, read_mnist
from seamfast.errors import DataFileError, InputError

IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([2, 0, 1], dtype=np.uint8)
MIB = 1 << 20


def write(folder: Path, images: bytes = idx_bytes(IMAGES), labels: bytes = idx_bytes(LABELS)) -> tuple[Path, Path]:
    (folder / "images").write_bytes(images)
    (folder / "labels").write_bytes(labels)
    return folder / "images", folder / "labels"


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_what_was_written(tmp_path, pack):
    data = read_idx(
        *write(tmp_path, pack(idx_bytes(IMAGES)), pack(idx_bytes(LABELS))), mean=0.5, std=0.25, num_classes=3
    )
    assert torch.equal(data.inputs, torch.from_numpy(IMAGES)[:, None])
    assert data.inputs.dtype == torch.uint8
    assert data.labels.tolist() == [2, 0, 1]
    assert data.labels.dtype == torch.int64
    assert (data.mean, data.std, data.num_classes) == ((0.5,), (0.25,), 3)


def test_normalization_defaults_to_the_unit_scale(tmp_path):
    data = read_idx(*write(tmp_path))
    assert (data.mean, data.std, data.num_classes) == ((0.0,), (1.0,), None)


def test_gzip_of_several_members_is_one_stream(tmp_path):
    whole = idx_bytes(IMAGES)
    data = read_idx(*write(tmp_path, gzip.compress(whole[:10]) + gzip.compress(whole[10:])))
    assert torch.equal(data.inputs, torch.from_numpy(IMAGES)[:, None])


HOSTILE = {
    "empty": (b"", "ends inside its header"),
    "cut in the magic number": (b"\0\0\x08", "ends inside its header"),
    "cut in the shape": (idx_bytes(IMAGES)[:9], "ends inside its header"),
    "no IDX": (b"GIF89a" + bytes(40), r"magic number is 0x47494638; expected 0x00000803 \(uint8, 3 dimensions\)"),
    "labels for images": (idx_bytes(LABELS), r"0x00000801 \(uint8, 1 dimension\); expected 0x00000803"),
    "floats": (idx_bytes(IMAGES, element=0x0D), r"0x00000D03 \(float32, 3 dimensions\); expected 0x00000803"),
    "unknown element": (idx_bytes(IMAGES, element=0x0A), "magic number is 0x00000A03; expected 0x00000803"),
    "cut in the data": (idx_bytes(IMAGES)[:-1], r"header promises shape \(3, 4, 5\), 60 bytes; the file holds 59"),
    "trailing byte": (idx_bytes(IMAGES) + b"\0", r"header promises shape \(3, 4, 5\), 60 bytes; the file holds 61"),
    "more promised": (idx_bytes(IMAGES, (4, 4, 5)), r"promises shape \(4, 4, 5\), 80 bytes; the file holds 60"),
    "2^93 promised": (
        idx_bytes(IMAGES, (2**31,) * 3),
        r"9,903,520,314,283,042,199,192,993,792 bytes; the file holds 60",
    ),
    "product 0 mod 2^64": (
        idx_bytes(IMAGES, (2**31, 2**31, 4)),
        r"18,446,744,073,709,551,616 bytes; the file holds 60",
    ),
    "no images": (idx_bytes(IMAGES, (0, 4, 5)), "expected at least 1 in every dimension"),
    "no width": (idx_bytes(IMAGES, (2**32 - 1, 2**32 - 1, 0)), "expected at least 1 in every dimension"),
    # Within gzip.
    "cut stream": (gzip.compress(idx_bytes(IMAGES))[:-9], "truncated or corrupt"),
    "cut trailer": (gzip.compress(idx_bytes(IMAGES))[:-2], "truncated or corrupt"),
    "short data": (gzip.compress(idx_bytes(IMAGES)[:-1]), "ends after 59 of 60 bytes"),
    "trailing byte inside": (gzip.compress(idx_bytes(IMAGES) + b"\0"), "holds more than the 60 bytes that its header"),
    "garbage after": (gzip.compress(idx_bytes(IMAGES)) + b"garbage", "truncated or corrupt"),
    "wrong CRC": (gzip.compress(idx_bytes(IMAGES))[:-8] + bytes(8), "truncated or corrupt"),
    "no deflate": (b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 40, "truncated or corrupt"),
    "2^93 promised by few": (
        gzip.compress(idx_bytes(IMAGES, (2**31,) * 3)),
        r"\d+ bytes would unpack to 9,903,520,.*; expected at most",
    ),
    "1 GiB promised": (
        gzip.compress(idx_bytes(IMAGES, (2**20, 32, 32))),
        "to 1,073,741,840; expected at most 67,108,864",
    ),
}


@pytest.mark.parametrize(("images", "message"), HOSTILE.values(), ids=HOSTILE)
def test_refuses_hostile_files(tmp_path, images, message):
    paths = write(tmp_path, images=images)
    with allocating_at_most(2 * MIB if images.startswith(b"\x1f") else MIB):
        assert refused(DataFileError, message, read_idx, *paths).startswith("images: ")


def test_gzip_bomb_stops_at_the_promised_size(tmp_path):
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as stream:
        stream.write(idx_bytes(IMAGES))
        for _ in range(64):
            stream.write(bytes(MIB))
    paths = write(tmp_path, images=out.getvalue())
    with allocating_at_most(4 * MIB):
        refused(DataFileError, "holds more than the 60 bytes", read_idx, *paths)


def test_budget_is_checked_before_allocating(tmp_path):
    with pytest.raises(DataFileError, match="images: would take 60 bytes; the limit is max_bytes=59"):
        read_idx(*write(tmp_path), max_bytes=59)
    assert len(read_idx(*write(tmp_path), max_bytes=60)) == 3


def test_sparse_file_of_true_but_vast_size_is_over_budget(tmp_path):
    images, labels = write(tmp_path)
    with images.open("r+b") as stream:
        stream.write(b"\0\0\x08\x03" + struct.pack(">3I", 3, 2**16, 2**16))
        stream.truncate(16 + 3 * 2**32)
    with pytest.raises(DataFileError, match=r"would take 12,884,901,888 bytes; the limit is max_bytes=8,589,934,592"):
        read_idx(images, labels)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS[:2], {}, r"labels: 2 labels, but 3 images in .*images; expected as many labels as images"),
        (LABELS, {"num_classes": 2}, r"labels: label 2 in row 0; expected integers in \[0, 2\) for num_classes=2"),
        (LABELS, {"mean": (0, 0), "std": (1, 1)}, r"mean has 2 numbers; expected 1 or one for each of 1 channels"),
    ],
)
def test_labels_and_options_that_do_not_fit(tmp_path, labels, options, message):
    error = InputError if "mean" in options else DataFileError
    refused(error, message, read_idx, *write(tmp_path, labels=idx_bytes(labels)), **options)


def test_labels_are_checked_against_their_header(tmp_path):
    paths = write(tmp_path, labels=idx_bytes(LABELS, (4,)))
    refused(DataFileError, r"shape \(4,\), 4 bytes; the file holds 3 after its header", read_idx, *paths)


def test_refuses_what_is_no_regular_file(tmp_path):
    images, labels = write(tmp_path)
    with pytest.raises(DataFileError, match="absent: no such file; looked for an IDX file of uint8 with 3 dimensions"):
        read_idx(tmp_path / "absent", labels)
    refused(ValueError, "is not a regular file", read_idx, tmp_path, labels)
    os.mkfifo(tmp_path / "pipe")
    refused(DataFileError, "is not a regular file", read_idx, tmp_path / "pipe", labels)
    refused(DataFileError, "is not a regular file", read_idx, images, "/dev/zero")
    refused(DataFileError, "cannot be opened", read_idx, "nul\0byte", labels)


def test_message_escapes_a_name_with_terminal_codes(tmp_path):
    assert refused(DataFileError, "no such file", read_idx, tmp_path / "\x1b[2J", tmp_path / "labels").isprintable()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


dimension = st.one_of(st.integers(0, 6), st.sampled_from([2**16, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))
header = st.one_of(
    st.binary(max_size=24),
    st.builds(
        lambda element, dims: bytes((0, 0, element, len(dims))) + struct.pack(f">{len(dims)}I", *dims),
        st.one_of(st.just(8), st.integers(0, 255)),
        st.one_of(st.lists(dimension, min_size=3, max_size=3), st.lists(dimension, max_size=6)),
    ),
)


@settings(max_examples=300, deadline=None)
@example(struct.pack(">4I", 0x803, 3, 6, 107_678), b"", True, 5)  # less than 64 MiB, and more than it can hold
@given(header=header, data=st.binary(max_size=64), zipped=st.booleans(), cut=st.integers(0, 12))
def test_any_header_reads_or_raises_data_file_error(scratch, header, data, zipped, cut):
    images = gzip.compress(header + data) if zipped else header + data
    images = images[: len(images) - cut] if cut else images
    n = int.from_bytes(header[4:8], "big")
    labels = idx_bytes(np.zeros(n if n < 100 else 3, np.uint8))
    paths = write(scratch, images, labels)
    with allocating_at_most(2 * MIB):
        try:
            data_set = read_idx(*paths)
        except DataFileError:
            return
    assert data_set.inputs.numel() <= 64


MNIST_FILES = {
    "train-images-idx3-ubyte": IMAGES,
    "train-labels-idx1-ubyte": LABELS,
    "t10k-images-idx3-ubyte": IMAGES[:1],
    "t10k-labels-idx1-ubyte": LABELS[:1],
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("place", "reader"),
    [
        (".", read_mnist),
        ("raw", read_mnist),
        ("MNIST/raw", read_mnist),
        (".", read_fashion_mnist),
        ("raw", read_fashion_mnist),
        ("FashionMNIST/raw", read_fashion_mnist),
    ],
)
def test_mnist_is_found_by_its_usual_names(tmp_path, place, reader, suffix):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in MNIST_FILES.items():
        (folder / (name + suffix)).write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    train, test = reader(tmp_path), reader(str(tmp_path), "test")
    assert (len(train), len(test), train.num_classes) == (3, 1, 10)
    assert train.class_names[2] == ("2" if reader is read_mnist else "Pullover")


def test_mnist_files_that_are_missing_are_named(tmp_path):
    with pytest.raises(DataFileError, match=r"absent: no such folder; looked for train-images-idx3-ubyte"):
        read_mnist(tmp_path / "absent")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    wanted = (
        r"no MNIST test files; looked for t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, with or without \.gz, "
        r"in \., raw, MNIST/raw"
    )
    refused(DataFileError, wanted, read_mnist, tmp_path, "test")
    refused(InputError, r"split is 'val'; expected 'train' or 'test'", read_mnist, tmp_path, "val")


def test_mnist_refuses_an_eleventh_class(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS + np.uint8(9)))
    with pytest.raises(DataFileError, match=r"label 11 in row 0; expected integers in \[0, 10\) for num_classes=10"):
        read_mnist(tmp_path)
