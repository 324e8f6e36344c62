from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch
from refusals import refused

from seamfast.data.readers import read_digits
from seamfast.errors import InputError

datasets = pytest.importorskip("sklearn.datasets")


def test_both_splits_together_are_the_whole_set():
    train, test = read_digits("train"), read_digits("test", mean=0.3, std=0.4)
    assert (len(train), len(test)) == (1438, 359)
    assert train.image_shape == (1, 8, 8)
    assert (test.mean, test.num_classes, test.class_names[9]) == ((0.3,), 10, "9")
    whole = datasets.load_digits()
    wanted = np.rint(whole.images * 255 / 16).astype(np.uint8)
    got = torch.cat([train.inputs, test.inputs]).numpy().reshape(-1, 64)
    assert sorted(map(bytes, got)) == sorted(map(bytes, wanted.reshape(-1, 64)))
    assert int(train.inputs.max()) == 255


def test_split_is_stratified():
    train, test = read_digits("train"), read_digits("test")
    share = test.labels.bincount() / (test.labels.bincount() + train.labels.bincount())
    assert ((share - 0.2).abs() < 0.005).all()


def test_split_depends_on_the_seed_alone():
    images = read_digits("test", seed=0).inputs
    assert torch.equal(images, read_digits("test", seed=0).inputs)
    assert not torch.equal(images, read_digits("test", seed=1).inputs)
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    assert digest[:16] == "945dec6adde59487"


def test_bad_arguments():
    refused(InputError, r"split is 'all'; expected 'train' or 'test'", read_digits, "all")
    refused(InputError, "seed is -1; expected an integer of at least 0", read_digits, seed=-1)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(InputError, r"read_digits needs scikit-learn: pip install seamfast\[demo\]", read_digits)
