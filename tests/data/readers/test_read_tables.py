"""CSV files of numbers, which may be hostile, and the tables of scikit-learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

import seamfast
from seamfast.data.readers import load, read_breast_cancer, read_csv_table, read_digits, read_digits_table
from seamfast.errors import DataFileError, InputError

TEXT = 'age,"job, past",Label,income\n30,2,0,1.5\n41,0,1,-2.5e1\n\n7, 1 ,0,0\n'


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(text: str | bytes, name: str = "a.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def test_columns_of_floats(write: Any) -> None:
    data = read_csv_table(write(TEXT), num_classes=3, class_names=["a", "b", "c"])
    assert data.inputs.dtype == torch.float32
    assert data.inputs.tolist() == [[30, 2, 1.5], [41, 0, -25], [7, 1, 0]]
    assert data.labels.tolist() == [0, 1, 0]
    assert (data.modality.name, data.num_classes, data.class_names) == ("tabular", 3, ("a", "b", "c"))
    for text in ("\ufeff" + TEXT, TEXT.replace("\n", "\r\n")):  # of other editors
        assert torch.equal(read_csv_table(write(text)).inputs, data.inputs)


def test_columns_of_categories(write: Any) -> None:
    data = load(write(TEXT), categorical=["job, past"])
    assert data.inputs["continuous"].tolist() == [[30, 1.5], [41, -25], [7, 0]]
    assert data.inputs["categorical"].tolist() == [[2], [0], [1]]
    assert data.inputs["categorical"].dtype == torch.int64
    other = load(write(TEXT, "B.CSV"), label="job, past")
    assert other.labels.tolist() == [2, 0, 1]
    assert other.inputs[:, 1].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "options", "why"),
    [
        ("", {}, r"a\.csv: the header has 0 names; expected 2 to 16384$"),
        ("label\n1\n", {}, r"the header has 1 names; expected 2 to 16384$"),
        ("a,label\n", {}, r"holds no rows$"),
        ("a,a,label\n1,2,3\n", {}, r"two columns have one name; expected names that differ$"),
        ("a,label\n1,0\n1,0,2\n", {}, r"line 3 has 3 values; expected 2, as many as in the header$"),
        ("a,label\n1,0\nred,1\n", {}, r"line 3 holds 'red' in column 'a'; expected a finite number$"),
        ("a,label\nnan,0\n", {}, r"row 0 holds nan in column 'a'; expected a finite number$"),
        ("a,label\n1,0\n1e39,0\n", {}, r"row 1 holds 1e\+39 in column 'a'; expected a finite number$"),
        ("a,label\n1,yes\n", {}, r"line 2 holds 'yes' in column 'label'; expected a finite number$"),
        ("a,label\n1,0.5\n", {}, r"column 'label' holds fractions or huge numbers; expected integers$"),
        ("a,label\n1,-1\n", {}, r"label -1 in row 0; expected integers in \[0, 1048576\)$"),
        ("a,label\n1,3\n", {"num_classes": 2}, r"label 3 in row 0; expected integers in \[0, 2\) for num_classes=2$"),
        ("a,b\n1,0\n", {}, r"no column is named label, labels, target, class or y; found a, b; name it by label=$"),
        ("label,y\n1,0\n", {}, r"more than one column is named label, labels, .*; found label, y; name it by label=$"),
        ("a,b\n1,0\n", {"label": "c"}, r"no column is named 'c', as label= is; found a, b$"),
        ("a,y\n1,0\n", {"categorical": ["x"]}, r"no column is named 'x', as categorical= is; found a, y$"),
        ("a,b,y\n.5,1,0\n", {"categorical": ["a"]}, r"column 'a' holds fractions or huge numbers; expected integers$"),
        ("a,y\n1,0\n", {"categorical": ["a"]}, r"holds columns of categories alone; expected one of floats at least$"),
        ("a,y\n1e300,0\n", {"categorical": ["a"]}, r"row 0 holds 1e\+300 in column 'a'; expected a finite number$"),
        (b"a,y\n\xff,0\n", {}, r"is not UTF-8 at byte 4$"),
        ('a,y\n"1,0\n', {}, r"line 2 is no CSV \(unexpected end of data\)$"),
        ("a,y\n" + "1" * 200_000 + ",0\n", {}, r"line 2 is no CSV \(field larger than field limit \(131072\)\)$"),
        (",".join(map(str, range(20_000))) + "\n1\n", {}, r"the header has 20000 names; expected 2 to 16384$"),
        ("a,y\n1\x1b[31m,0\n", {}, r"line 2 holds '1\\x1b\[31m' in column 'a'; expected a finite number$"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(write: Any, text: str | bytes, options: Any, why: str) -> None:
    refused(DataFileError, why, read_csv_table, write(text), **options)


def test_files_that_are_none_or_too_large(write: Any, tmp_path: Path) -> None:
    refused(
        DataFileError, r"b\.csv: no such file; looked for a CSV file of numbers", read_csv_table, tmp_path / "b.csv"
    )
    refused(DataFileError, r"is not a regular file", read_csv_table, tmp_path)
    path = write("a,y\n" + "1,0\n" * 100)
    assert len(read_csv_table(path, max_bytes=1616)) == 100
    refused(DataFileError, r"a\.csv: .*1,616 bytes", read_csv_table, path, max_bytes=1615)
    refused(DataFileError, r"a\.csv", load, path, sample_shape=(3, 8, 8))
    refused(InputError, "label and categorical both name 'y'", read_csv_table, path, categorical=["y"])


def test_load_tells_tables_from_texts(write: Any) -> None:
    assert load(write(TEXT)).modality.name == "tabular"
    assert load(write(TEXT, "b.CSV"), label="Label", categorical=["job, past"]).inputs["categorical"].shape == (3, 1)
    wanted = "reads texts and needs tokenizer=, the tokenizer of the model"
    for text in ("a film,1\nb film,0\n", "text,label\n\n7 days,1\n", "text,label\n", "", '"a\n1', "1,2\n3,x\n"):
        refused(InputError, wanted, load, write(text))
    for name in ("a.tsv", "c.csv"):  # of another kind, or not there
        refused(InputError, wanted, load, write(TEXT, "a.tsv").with_name(name))
    refused(InputError, wanted, load, write(TEXT), max_length=9)
    refused(DataFileError, "line 3 holds 'x' in column 'b'; expected a finite number", load, write("b,y\n1,0\nx,1\n"))
    refused(
        InputError, "read_csv_table takes no mean=; expected categorical, class_names, label", load, write(TEXT), mean=1
    )


def test_breast_cancer() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    train, test = load("breast-cancer"), load("breast-cancer", split="test")
    assert (len(train), len(test), train.num_classes) == (456, 113, 2)
    assert train.class_names == ("malignant", "benign")
    whole = datasets.load_breast_cancer()
    both = torch.cat([train.inputs, test.inputs])
    assert both.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(both.std(0, correction=0), torch.ones(30))
    wanted = torch.tensor((whole.data - whole.data.mean(0)) / whole.data.std(0)).float()
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, wanted.tolist()))
    assert not torch.equal(read_breast_cancer("test", seed=1).inputs, test.inputs)


def test_digits_as_a_table_are_the_digits() -> None:
    pytest.importorskip("sklearn.datasets")
    for split in ("train", "test"):
        images, table = read_digits(split), load("digits-table", split=split)
        assert torch.equal(table.labels, images.labels)
        assert np.abs(table.inputs.numpy() - images.inputs.flatten(1).numpy() / 255).max() < 0.002
        assert table.class_names == images.class_names
    refused(InputError, r"split is 'all'; expected 'train' or 'test'", read_digits_table, "all")
    refused(InputError, "seed is -1; expected an integer of at least 0", read_digits_table, seed=-1)
    refused(DataFileError, "digits-table", seamfast.load, "digits-table", sample_shape=(1, 8, 8))


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(InputError, r"read_breast_cancer needs scikit-learn: pip install seamfast\[demo\]", read_breast_cancer)
