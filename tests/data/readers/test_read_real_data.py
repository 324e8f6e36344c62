"""The readers on the real sets, where these are at hand."""

from __future__ import annotations

import pytest
from reader_files import SHARED_DATA

from seamfast.data.readers import load, read_cifar10, read_fashion_mnist, read_mnist, read_npz

MNIST_TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def shared(name: str):
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def test_mnist():
    train, test = (read_mnist(shared("mnist"), split) for split in ("train", "test"))
    assert (train.inputs.shape, test.inputs.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert train.labels.bincount().tolist() == MNIST_TRAIN_COUNTS
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert round(float(train.inputs.float().mean() / 255), 4) == 0.1307


def test_fashion_mnist():
    train, test = (read_fashion_mnist(shared("fashion-mnist"), split) for split in ("train", "test"))
    assert train.labels.bincount().tolist() == [6000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.class_names[train.labels[0]] == "Ankle boot"
    assert round(float(train.inputs.float().mean() / 255), 4) == 0.2860


def test_cifar10():
    train, test = (read_cifar10(shared("cifar10-half.npz"), split) for split in ("train", "test"))
    assert (train.inputs.shape, test.inputs.shape) == ((25000, 3, 32, 32), (5000, 3, 32, 32))
    assert train.labels.bincount().tolist() == [2500] * 10
    assert test.labels.bincount().tolist() == [500] * 10


def test_gtsrb():
    path = shared("gtsrb-32x32-subset.npz")
    train, test = (read_npz(path, split=split, num_classes=43) for split in ("train", "test"))
    assert (train.inputs.shape, test.inputs.shape) == ((8600, 3, 32, 32), (2580, 3, 32, 32))
    assert train.labels.bincount().tolist() == [200] * 43
    assert test.labels.bincount().tolist() == [60] * 43
    assert len(load(path, split="test")) == 2580
