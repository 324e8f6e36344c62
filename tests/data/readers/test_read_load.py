from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reader_files import idx_bytes, image_bytes, write_zip
from refusals import refused

from seamfast.data.readers import load
from seamfast.errors import DataFileError, InputError

PNG = image_bytes(np.zeros((4, 4), np.uint8))


@pytest.fixture
def idx_folder(tmp_path):
    for prefix, n in (("train", 3), ("t10k", 2)):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((n, 4, 4), np.uint8)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(n, dtype=np.uint8)))
    return tmp_path


def test_names(idx_folder):
    pytest.importorskip("sklearn")
    assert len(load("digits")) == 1438
    assert len(load("digits", split="test", seed=3)) == 359
    assert load("mnist", root=idx_folder).class_names[0] == "0"
    assert load("fashion-mnist", root=idx_folder, split="test").class_names[0] == "T-shirt/top"


def test_folder_of_idx_files(idx_folder):
    data = load(idx_folder, split="test", num_classes=7, mean=0.5, std=0.5)
    assert (len(data), data.num_classes, data.class_names, data.mean) == (2, 7, None, (0.5,))
    assert len(load(str(idx_folder))) == 3


def test_npz_and_cifar(tmp_path):
    x, y = np.zeros((2, 32, 32, 3), np.uint8), np.arange(2)
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
    assert load(tmp_path / "cifar10.npz", split="test").class_names is None
    assert len(load(tmp_path)) == len(load("cifar10", root=tmp_path)) == 2
    assert load(str(tmp_path), split="test").class_names[0] == "airplane"


def test_folders_and_zips_of_images(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        (tmp_path / "set" / split / "a" / "1.png").write_bytes(PNG)
    assert len(load(tmp_path / "set", split="train", size=(2, 2))) == 1
    assert len(load(tmp_path / "set" / "test")) == 1
    path = write_zip(tmp_path / "a.ZIP", {"top/train/a/1.png": PNG, "top/b/1.png": PNG})
    assert load(path, folder="top", split="train").class_names == ("a",)


def test_pickled_cifar_is_refused_by_path_too(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80")
    refused(DataFileError, "Python pickle", load, tmp_path)


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    names = "breast-cancer, cifar10, digits, digits-table, fashion-mnist, mnist, mnist-5k, ag-news, sst2, trec"
    known = rf"'foo' is neither a known data set \({names}\) nor a file or folder"
    refused(DataFileError, known, load, "foo")
    monkeypatch.chdir(tmp_path)
    refused(DataFileError, "'mnist' is neither", load, Path("mnist"))
    refused(InputError, r"load\('mnist'\) needs root=, the folder that holds its files", load, "mnist")
    with pytest.raises(
        InputError, match=r"got root='.' with a path; expected root= only with one of breast-cancer, cifar10, "
    ):
        load(tmp_path, root=".")
    with pytest.raises(InputError, match=r"read_mnist takes no size=; expected mean, std"):
        load("mnist", root=tmp_path, size=(8, 8))
    refused(InputError, r"split is 'dev'; expected 'train' or 'test'", load, tmp_path, split="dev")
    (tmp_path / "model.pkl").touch()
    with pytest.raises(DataFileError, match=r"model\.pkl: unknown kind of file; expected \.npz, \.zip, \.csv, "):
        load(tmp_path / "model.pkl")
