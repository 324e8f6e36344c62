from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_files import allocating_at_most, forge_size, npy_bytes, npy_header, write_zip
from refusals import refused

from seamfast.data.readers import read_npz
from seamfast.errors import DataFileError, InputError

X = np.arange(4 * 6 * 5 * 3, dtype=np.uint16).astype(np.uint8).reshape(4, 6, 5, 3)
Y = np.array([3, 1, 0, 2])
NCHW = torch.from_numpy(X).permute(0, 3, 1, 2)
MIB = 1 << 20


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "images",
    [X, X.transpose(0, 3, 1, 2), np.asfortranarray(X)],
    ids=["NHWC", "NCHW", "fortran"],
)
def test_reads_what_numpy_saves(tmp_path, save, images):
    save(tmp_path / "a.npz", x=images, y=Y)
    data = read_npz(tmp_path / "a.npz", num_classes=4, class_names="abcd", mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert torch.equal(data.inputs, NCHW)
    assert data.labels.tolist() == Y.tolist()
    assert (data.num_classes, data.class_names, data.mean) == (4, ("a", "b", "c", "d"), (0.1, 0.2, 0.3))


def test_reads_grey_images_without_a_channel_axis(tmp_path):
    np.savez(tmp_path / "a.npz", images=X[..., 0], labels=Y)
    assert read_npz(tmp_path / "a.npz").image_shape == (1, 6, 5)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", ">u8", "<i8"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_reads_integer_labels_of_any_kind(tmp_path, dtype, shape):
    np.savez(tmp_path / "a.npz", x=X, y=Y.astype(dtype).reshape(shape))
    assert read_npz(tmp_path / "a.npz").labels.tolist() == Y.tolist()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_reads_every_npy_version_and_any_key_order(tmp_path, version):
    header = "{'shape': (4,6,5,3), 'fortran_order': False, 'descr': '|u1'}"
    members = {"x.npy": npy_bytes(header, X.tobytes(), version), "y.npy": saved(Y)}
    assert torch.equal(read_npz(write_zip(tmp_path / "a.npz", members)).inputs, NCHW)


@pytest.mark.parametrize(
    ("names", "arguments"),
    [
        (("images", "labels"), {}),
        (("x", "y"), {}),
        (("data", "target"), {}),
        (("x_train", "y_train"), {"split": "train"}),
        (("x_test", "y_test"), {"split": "test"}),
        (("train_images", "train_labels"), {"split": "train"}),
        (("a", "b"), {"images": "a", "labels": "b"}),
    ],
)
def test_finds_arrays_by_name(tmp_path, names, arguments):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (X, Y), strict=True)), other=np.zeros(3))
    assert len(read_npz(tmp_path / "a.npz", **arguments)) == 4


def test_names_that_do_not_fit_are_answered_with_those_there(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=X, y_train=Y, x_test=X, y_test=Y)
    wanted = (
        r"no arrays named images and labels, or x and y, or data and target; found x_test, x_train, y_test, y_train; "
        r"pass split=, or name them by images= and labels="
    )
    refused(DataFileError, wanted, read_npz, path)
    with pytest.raises(DataFileError, match=r"no array named nope; found x_test, x_train, y_test, y_train"):
        read_npz(path, images="nope", labels="y_test")
    refused(InputError, r"got images='x' and labels=None; expected both or neither", read_npz, path, images="x")
    refused(InputError, r"split is 'val'; expected 'train' or 'test'", read_npz, path, split="val")
    np.savez(path, x=X, y=Y, data=X, target=Y)
    refused(DataFileError, "more than one pair of arrays named", read_npz, path)
    refused(DataFileError, "found none", read_npz, write_zip(path, {}))


HOSTILE_ARRAYS = {
    "float images": ({"x": X / 255, "y": Y}, "'x' has dtype float64; expected uint8 pixels"),
    "float labels": ({"x": X, "y": Y / 1}, "'y' has dtype float64; expected integer labels"),
    "bool labels": ({"x": X, "y": Y > 1}, "'y' has dtype bool; expected integer labels"),
    "text": ({"x": X, "y": np.array(list("abcd"))}, "'y' has dtype <U1; expected plain numbers"),
    "structured": ({"x": np.zeros(4, "u1,u1"), "y": Y}, r"'x' has dtype \[\('f0', '\|u1'\)"),
    "flat images": (
        {"x": X.reshape(4, -1), "y": Y},
        r"'x' has shape \(4, 90\); expected \(N, C, H, W\), \(N, H, W, C\)",
    ),
    "five channels": ({"x": X.reshape(4, 3 * 6, 5, 1)[:, :, :, [0] * 5], "y": Y}, "with 1 or 3 channels"),
    "one-hot labels": ({"x": X, "y": np.eye(4, dtype=int)}, r"'y' has shape \(4, 4\); expected \(N,\) or \(N, 1\)"),
    "fewer labels": ({"x": X, "y": Y[:3]}, "'y': 3 labels, but 4 images in .*'x'; expected as many labels as images"),
    "no samples": (
        {"x": X[:0], "y": Y[:0]},
        r"'x' has shape \(0, 6, 5, 3\); expected at most 8 dimensions of at least 1",
    ),
    "scalar": ({"x": np.uint8(1), "y": Y}, r"'x' has shape \(\); expected"),
    "negative label": ({"x": X, "y": Y - 1}, r"'y': label -1 in row 2; expected integers in \[0, 1048576\)"),
    "vast label": ({"x": X, "y": Y + 2**40}, r"'y': label 1099511627779 in row 0; expected integers in \[0, 1048576\)"),
    "label that wraps": ({"x": X, "y": Y.astype("u8") + np.uint64(2**63)}, "'y': label 9223372036854775811 in row 0"),
}


@pytest.mark.parametrize(("arrays", "message"), HOSTILE_ARRAYS.values(), ids=HOSTILE_ARRAYS)
def test_refuses_unsuitable_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(DataFileError, message, read_npz, tmp_path / "a.npz")


def test_labels_above_num_classes(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(DataFileError, match=r"label 3 in row 0; expected integers in \[0, 3\) for num_classes=3"):
        read_npz(tmp_path / "a.npz", num_classes=3)


OF_120 = npy_header((4, 6, 5))
HOSTILE_NPY = {
    "empty": (b"", "ends after 0 of 8 bytes"),
    "no npy": (b"PK\3\4" * 8, r"does not start as \.npy data does; expected the magic string"),
    "version 9": (npy_bytes(npy_header((4, 6, 5)), version=(9, 0)), r"has \.npy version \(9, 0\)"),
    "vast header": (b"\x93NUMPY\2\0\xff\xff\xff\xff", "has a header of 4,294,967,295 bytes; the limit is 4,096"),
    "cut header": (npy_bytes(npy_header((4, 6, 5)))[:30], "ends after 20 of 62 bytes"),
    "no literal": (npy_bytes("__import__('os').abort()"), "has a header that is no Python literal"),
    "no dict": (npy_bytes("[1, 2]"), "without exactly the keys descr, fortran_order and shape"),
    "deep nesting": (npy_bytes("(" * 4000), "has a header that is no Python literal"),
    "deep negation": (npy_bytes("-" * 4000 + "1"), "has a header that is no Python literal"),
    "unhashable key": (npy_bytes("{[]: 1}"), "has a header that is no Python literal"),
    "extra key": (npy_bytes("{'descr':'|u1','fortran_order':False,'shape':(1,),'x':1}"), "without exactly the keys"),
    "float in shape": (npy_bytes(npy_header((4.0, 6, 5))), r"has shape \(4.0, 6, 5\); expected at most 8 dimensions"),
    "True in shape": (npy_bytes(npy_header((True, 6, 5))), r"has shape \(True, 6, 5\)"),
    "negative shape": (npy_bytes(npy_header((-4, -6, 5))), r"has shape \(-4, -6, 5\)"),
    "many dimensions": (npy_bytes(npy_header((1,) * 200)), "expected at most 8 dimensions of at least 1"),
    "unprintable integer": (
        npy_bytes("{'descr':'|u1','fortran_order':False,'shape':(0x%s,)}" % ("f" * 4000)),
        "has shape",
    ),
    "fortran 1": (npy_bytes(npy_header((4, 6, 5), fortran=1)), "has fortran_order 1; expected True or False"),
    "vast shape": (npy_bytes(npy_header((2**40, 6, 5))), r"32,985,348,833,280 bytes; its member holds 0"),
    "short data": (npy_bytes(OF_120, bytes(119)), r"\(4, 6, 5\) of uint8, 120 bytes; its member holds 119"),
    "long data": (npy_bytes(OF_120, bytes(121)), r"\(4, 6, 5\) of uint8, 120 bytes; its member holds 121"),
    "void": (npy_bytes(npy_header((4, 6, 5), "|V2000000000")), r"has dtype \|V2000000000; expected plain numbers"),
    "dates": (npy_bytes(npy_header((4, 6, 5), "<M8[ns]")), "expected plain numbers"),
    "subarray": (npy_bytes(npy_header((4, 6, 5), ("|u1", (2**31, 2**31)))), "expected plain numbers"),
}


@pytest.mark.parametrize(("member", "message"), HOSTILE_NPY.values(), ids=HOSTILE_NPY)
def test_refuses_hostile_npy_headers(tmp_path, member, message):
    path = write_zip(tmp_path / "a.npz", {"x.npy": member, "y.npy": saved(Y)})
    with allocating_at_most(2 * MIB):
        refused(DataFileError, message, read_npz, path)


class Canary:
    """Unpickling one makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("which", ["x", "y"])
def test_object_arrays_are_refused_and_nothing_is_unpickled(tmp_path, which):
    canary = tmp_path / "canary"
    objects = np.array([Canary(canary)] * 4, dtype=object)
    np.savez(tmp_path / "a.npz", **{"x": X, "y": Y, which: objects})
    with pytest.raises(
        DataFileError, match=f"'{which}' holds Python objects, that is pickle, which seamfast never reads"
    ):
        read_npz(tmp_path / "a.npz")
    assert not canary.exists()
    pickle.loads(pickle.dumps(objects[0]))  # noqa: S301 - the canary itself: it does sing
    assert canary.exists()


def test_a_bare_pickle_is_refused_and_not_unpickled(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Canary(canary)))
    refused(DataFileError, "is not a zip archive that can be read", read_npz, tmp_path / "a.npz")
    members = {"x.npy": pickle.dumps(Canary(canary)), "y.npy": saved(Y)}
    refused(DataFileError, r"does not start as \.npy data does", read_npz, write_zip(tmp_path / "b.npz", members))
    assert not canary.exists()


def test_refuses_what_is_no_zip(tmp_path):
    refused(DataFileError, r"absent\.npz: no such file; looked for an \.npz archive", read_npz, tmp_path / "absent.npz")
    np.save(tmp_path / "a.npy", X)
    refused(DataFileError, "is not a zip archive that can be read", read_npz, tmp_path / "a.npy")


def test_a_cut_archive_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    whole = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(whole), 41):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(DataFileError):
            read_npz(tmp_path / "cut.npz")


def test_budget_counts_both_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(DataFileError, match=r"a\.npz: would take 392 bytes; the limit is max_bytes=391"):
        read_npz(tmp_path / "a.npz", max_bytes=391)
    assert len(read_npz(tmp_path / "a.npz", max_bytes=392)) == 4


def test_zip_bomb_is_over_budget_before_it_is_inflated(tmp_path):
    bomb = npy_bytes(npy_header((65536, 32, 32)), bytes(64 * MIB))
    path = write_zip(tmp_path / "a.npz", {"x.npy": bomb, "y.npy": saved(np.zeros(65536, int))}, zipfile.ZIP_DEFLATED)
    del bomb
    with allocating_at_most(2 * MIB):
        refused(DataFileError, "the limit is max_bytes=1,000,000", read_npz, path, max_bytes=1_000_000)


def test_declared_sizes_that_cannot_be_true(tmp_path):
    vast = npy_bytes(npy_header((2**20, 32, 32)))
    path = write_zip(tmp_path / "a.npz", {"x.npy": vast, "y.npy": saved(Y)}, zipfile.ZIP_DEFLATED)
    forge_size(path, len(vast) + 2**30)
    with allocating_at_most(2 * MIB):
        refused(DataFileError, r"declares 1,073,741,904 bytes from .* cannot be true", read_npz, path)
    path = write_zip(tmp_path / "b.npz", {"x.npy": saved(X), "y.npy": saved(Y)})
    forge_size(path, 5000)
    refused(DataFileError, "declares 5,000 bytes from 488, which cannot be true", read_npz, path)


def test_member_that_inflates_beyond_its_declared_size_stops_there(tmp_path):
    path = write_zip(tmp_path / "a.npz", {"x.npy": saved(X) + bytes(32 * MIB), "y.npy": saved(Y)}, zipfile.ZIP_DEFLATED)
    forge_size(path, len(saved(X)))
    with allocating_at_most(2 * MIB):
        refused(DataFileError, "truncated or corrupt", read_npz, path)


def test_a_flipped_bit_fails_the_checksum(tmp_path):
    path = write_zip(tmp_path / "a.npz", {"x.npy": saved(X), "y.npy": saved(Y)})
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    refused(DataFileError, r"truncated or corrupt \(Bad CRC-32", read_npz, path)


def test_refuses_odd_zip_members(tmp_path):
    with pytest.raises(DataFileError, match=r"member x\.npy uses compression method 14; expected 0 \(stored\) or 8"):
        read_npz(write_zip(tmp_path / "lzma.npz", {"x.npy": saved(X)}, zipfile.ZIP_LZMA))
    path = write_zip(tmp_path / "twice.npz", {"x.npy": saved(X), "z.npy": saved(X)})
    path.write_bytes(path.read_bytes().replace(b"z.npy", b"x.npy"))
    refused(DataFileError, r"member x\.npy occurs twice; expected unique names", read_npz, tmp_path / "twice.npz")
    path = write_zip(tmp_path / "locked.npz", {"x.npy": saved(X), "y.npy": saved(Y)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(DataFileError, r"member x\.npy is encrypted; expected plain members", read_npz, path)


def test_overlapping_members_are_refused(tmp_path):
    """Many entries that share one compressed stream: the way to a bomb that needs no nesting."""
    path = write_zip(tmp_path / "a.npz", {f"{k:03}.npy": b"" for k in range(20)} | {"big": bytes(4096)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    for _ in range(20):
        data[at + 20 : at + 28] = struct.pack("<II", 4096, 4096)
        at = data.index(b"PK\x01\x02", at + 4)
    path.write_bytes(data)
    refused(DataFileError, r"members take 86,016 bytes of a file of [\d,]+; they overlap or lie", read_npz, path)


def test_a_vast_directory_is_refused_before_it_is_parsed(tmp_path):
    path = write_zip(tmp_path / "a.npz", {f"{k:0200}": b"" for k in range(4300)})
    with allocating_at_most(4 * MIB):
        refused(DataFileError, "its zip directory is larger than 1,048,576 bytes", read_npz, path)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "a.npz"
    np.savez_compressed(path, x=X, y=Y)
    return path, path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_reads_or_raises_data_file_error(sample, data):
    path, whole = sample
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[data.draw(st.sampled_from([0, 0, 0, 1, 30])) :])
    with allocating_at_most(4 * MIB):
        try:
            read_npz(path)
        except DataFileError:
            return


@settings(max_examples=200, deadline=None)
@given(header=st.one_of(st.text("{}[]():,'0123456789udescrfotan_h|<>-. ", max_size=80), st.text(max_size=40)))
def test_any_header_text_raises_data_file_error(sample, header):
    path = sample[0].with_name("header.npz")
    text = header.encode("utf-8").decode("latin-1")
    write_zip(path, {"x.npy": npy_bytes(text, bytes(8)), "y.npy": saved(Y)})
    with pytest.raises(DataFileError):
        read_npz(path)
