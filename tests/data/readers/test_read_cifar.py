from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import refused

from seamfast.data.readers import read_cifar10
from seamfast.errors import DataFileError, InputError

RECORD = 3073


def records(labels: list[int], seed: int = 0) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels.reshape(len(labels), -1)], axis=1)
    return rows.tobytes(), pixels


def write_binary(folder, counts=(2, 1, 1, 1, 1)):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = []
    for k, n in enumerate(counts, start=1):
        data, images = records([k] * n, seed=k)
        (folder / f"data_batch_{k}.bin").write_bytes(data)
        pixels.append(images)
    (folder / "test_batch.bin").write_bytes(records([9, 0])[0])
    return np.concatenate(pixels)


@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin"])
def test_reads_the_binary_version(tmp_path, place):
    pixels = write_binary(tmp_path / place)
    data = read_cifar10(tmp_path, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert torch.equal(data.inputs, torch.from_numpy(pixels))
    assert data.labels.tolist() == [1, 1, 2, 3, 4, 5]
    assert (data.num_classes, data.class_names[9], data.mean) == (10, "truck", (0.5,) * 3)
    assert read_cifar10(str(tmp_path), "test").labels.tolist() == [9, 0]


def test_reads_more_records_than_one_chunk(tmp_path):
    data, pixels = records([k % 10 for k in range(1001)])
    (tmp_path / "test_batch.bin").write_bytes(data)
    read = read_cifar10(tmp_path, "test")
    assert torch.equal(read.inputs, torch.from_numpy(pixels))
    assert read.labels.tolist() == [k % 10 for k in range(1001)]


@pytest.mark.parametrize("name", ["cifar10.npz", "cifar-10-half.npz"])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["NCHW", "NHWC"])
def test_reads_an_npz(tmp_path, name, axes):
    _, pixels = records([0] * 4)
    labels = np.arange(4)
    layout = pixels.transpose(axes)
    np.savez(tmp_path / name, x_train=layout, y_train=labels, x_test=layout[:1], y_test=labels[:1, None])
    for root in (tmp_path, tmp_path / name):
        data = read_cifar10(root)
        assert torch.equal(data.inputs, torch.from_numpy(pixels))
        assert data.class_names[3] == "cat"
        assert len(read_cifar10(root, "test")) == 1


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_the_pickle_version_is_refused_by_name(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "data_batch_1").write_bytes(b"\x80\x04.")
    wanted = (
        r"holds CIFAR-10 as Python pickle \(.*data_batch_1\), which seamfast never reads, since loading a pickle can "
        r"run any code; use the binary version \(data_batch_1\.bin and so on\), or an \.npz with x_train"
    )
    refused(DataFileError, wanted, read_cifar10, tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r": 0 bytes; expected a multiple of 3,073"),
        (bytes(RECORD - 1), r": 3,072 bytes; expected a multiple of 3,073"),
        (bytes(RECORD + 1), r": 3,074 bytes; expected a multiple of 3,073"),
        (records([0, 10])[0], r": label 10 in row 1; expected integers in \[0, 10\)"),
        (None, r" missing; expected data_batch_1\.bin, data_batch_2\.bin"),
    ],
    ids=["empty", "short", "long", "label", "missing"],
)
def test_hostile_records(tmp_path, data, message):
    write_binary(tmp_path)
    batch = tmp_path / "data_batch_2.bin"
    batch.unlink() if data is None else batch.write_bytes(data)
    refused(DataFileError, r"data_batch_2\.bin" + message, read_cifar10, tmp_path)


def test_budget_is_checked_before_allocating(tmp_path):
    write_binary(tmp_path)
    with (tmp_path / "data_batch_1.bin").open("r+b") as stream:
        stream.truncate(RECORD * 4_000_000)  # sparse
    with pytest.raises(DataFileError, match=r"would take 12,324,012,324 bytes; the limit is max_bytes=8,589,934,592"):
        read_cifar10(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    message = r"absent: no such folder; looked for test_batch\.bin in \. or cifar-10-batches-bin"
    refused(DataFileError, message, read_cifar10, tmp_path / "absent", "test")
    message = r"no CIFAR-10 train files; looked for data_batch_1\.bin, .*or a cifar\*10\*\.npz"
    refused(DataFileError, message, read_cifar10, tmp_path)
    refused(InputError, r"split is 'dev'; expected 'train' or 'test'", read_cifar10, tmp_path, "dev")
    for name in ("cifar10-a.npz", "cifar10-b.npz"):
        (tmp_path / name).touch()
    with pytest.raises(DataFileError, match=r"holds cifar10-a\.npz, cifar10-b\.npz; pass the path of one of them"):
        read_cifar10(tmp_path)


def test_images_of_another_size_are_refused(tmp_path):
    np.savez(tmp_path / "cifar10.npz", x_train=np.zeros((2, 28, 28, 1), np.uint8), y_train=np.arange(2))
    refused(
        DataFileError,
        r"cifar10\.npz: array 'x_train': the images are \(1, 28, 28\); expected \(3, 32, 32\)",
        read_cifar10,
        tmp_path,
    )
