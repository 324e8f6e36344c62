"""Tables: CSV files of numbers, and scikit-learn's breast cancer and digits as columns."""

from __future__ import annotations

import csv
import io
import os
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from seamfast.data.clean_set import CleanSet
from seamfast.data.readers.digits import test_share
from seamfast.data.readers.labels import check_labels, check_split
from seamfast.errors import DataFileError, InputError
from seamfast.untrusted import (
    CHUNK,
    MAX_BYTES,
    PathLike,
    check_budget,
    file_size,
    listed,
    open_regular,
    printable,
    printable_value,
    read_some,
    shown,
)

_LABEL_NAMES = ("label", "labels", "target", "class", "y")
_MOST_COLUMNS = 1 << 14
_FEWEST_BYTES = 2
"""Of a number in the file: a digit and what separates it from the next."""
_BYTES = 8
"""Of a number in memory while the file is read."""


def read_csv_table(
    path: PathLike,
    *,
    label: str | None = None,
    categorical: Sequence[str] = (),
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> CleanSet:
    """``CleanSet`` of a CSV file of numbers with one header line of column names.

    Args:
        path: the file: UTF-8, separated by commas.
        label: name of the column of labels, integers from 0. Default: the one that is named ``label``, ``labels``,
            ``target``, ``class`` or ``y``, in any case.
        categorical: names of the columns that hold categories, integers.
        num_classes: labels at or above it are refused; ``None`` leaves the number to the model's logits.
        class_names: one name for each class.
        max_bytes: limit on the numbers in memory, in bytes.

    Returns:
        ``(N, F)`` float32 as in the file, in its order; with ``categorical``, ``{"continuous": (N, F) float32,
        "categorical": (N, G) int64}``. Numbers are not scaled: they must be as the model was trained on.

    Raises:
        DataFileError: e.g. ``a.csv: line 3 has 4 values; expected 5, as many as names in the header``, ``a.csv: line 2
            holds 'red' in column 'color'; expected a finite number``, or ``a.csv: no column is named label, labels,
            target, class or y; found age, income; name it by label=``.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "tiny.csv")
        >>> _ = path.write_text("age,income,label\\n30,1.5,0\\n41,2.5,1\\n")
        >>> read_csv_table(path).inputs
        tensor([[30.0000,  1.5000],
                [41.0000,  2.5000]])
    """
    where = shown(path)

    def refuse(why: str) -> NoReturn:
        raise DataFileError(f"{where}: {why}")

    with open_regular(path, "a CSV file of numbers") as stream:
        check_budget(file_size(stream) // _FEWEST_BYTES * _BYTES, max_bytes, where)
        parts = list(iter(lambda: read_some(stream, CHUNK, where), b""))
    try:
        text = b"".join(parts).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFileError(f"{where}: is not UTF-8 at byte {error.start}") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    numbers = array("d")
    try:
        names = [name.strip() for name in next(rows, [])]
        if not 2 <= len(names) <= _MOST_COLUMNS:
            refuse(f"the header has {len(names)} names; expected 2 to {_MOST_COLUMNS}")
        if len(set(names)) < len(names):
            refuse("two columns have one name; expected names that differ")
        for row in rows:
            if not row:  # an empty line
                continue
            if len(row) != len(names):
                refuse(f"line {rows.line_num} has {len(row)} values; expected {len(names)}, as many as in the header")
            try:
                numbers.extend(map(float, row))
            except ValueError:
                wrong = next(k for k, value in enumerate(row) if not _is_number(value))
                got = f"line {rows.line_num} holds {printable_value(row[wrong])} in column {printable(names[wrong])!r}"
                refuse(f"{got}; expected a finite number")
    except csv.Error as error:
        raise DataFileError(f"{where}: line {rows.line_num} is no CSV ({error})") from error
    if not numbers:
        refuse("holds no rows")
    values = np.frombuffer(numbers, dtype=np.float64).reshape(-1, len(names))
    # Float32 ends at 3.4e38.
    if not (np.abs(values) < 3e38).all():
        at_row, at_column = (int(k) for k in np.argwhere(~(np.abs(values) < 3e38))[0])
        got = f"row {at_row} holds {values[at_row, at_column]:g} in column {printable(names[at_column])!r}"
        refuse(f"{got}; expected a finite number")

    def position(name: str, argument: str) -> int:
        if name not in names:
            refuse(f"no column is named {printable(name)!r}, as {argument} is; found {listed(names)}")
        return names.index(name)

    def integers(columns: list[int]) -> Any:
        for k in columns:
            if not (values[:, k] == np.rint(values[:, k])).all() or np.abs(values[:, k]).max() > 2**31:
                refuse(f"column {printable(names[k])!r} holds fractions or huge numbers; expected integers")
        return values[:, columns].astype(np.int64)

    if label is None:
        found = [name for name in names if name.lower() in _LABEL_NAMES]
        if len(found) != 1:
            *most, last = _LABEL_NAMES
            wanted, got = f"{', '.join(most)} or {last}", "more than one" if found else "no"
            refuse(f"{got} column is named {wanted}; found {listed(names)}; name it by label=")
        label = found[0]
    at = position(label, "label=")
    of_categories = [position(name, "categorical=") for name in categorical]
    if at in of_categories:
        raise InputError(f"label and categorical both name {label!r}; expected different columns")
    floats = [k for k in range(len(names)) if k != at and k not in of_categories]
    labels = check_labels(integers([at])[:, 0], where, num_classes)
    if not floats:
        refuse("holds columns of categories alone; expected one of floats at least")
    inputs: Any = torch.tensor(values[:, floats], dtype=torch.float32)
    if of_categories:
        inputs = {"continuous": inputs, "categorical": torch.tensor(integers(of_categories))}
    return CleanSet(inputs, labels, num_classes=num_classes, class_names=class_names)


def holds_numbers(source: PathLike) -> bool:
    """Whether ``source`` is a ``.csv`` that ``read_csv_table`` reads, by its first two lines: names, then numbers."""
    if os.path.splitext(os.fspath(source))[1].lower() != ".csv" or not os.path.isfile(source):
        return False
    with open_regular(source, "a CSV file") as stream:
        head = read_some(stream, CHUNK, shown(source))
    lines = head.decode("utf-8-sig", errors="replace").splitlines()
    rows = csv.reader(line for line in lines if line.strip())
    try:
        next(rows, None)
        return all(map(_is_number, next(rows, [""])))
    except csv.Error:
        return False


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def read_breast_cancer(split: str = "train", seed: int = 0) -> CleanSet:
    """scikit-learn's breast cancer: 30 columns, standardized, two classes; split 80:20 within each class.

    Args:
        split: ``"train"`` (456 rows) or ``"test"`` (113).
        seed: at least 0; equal seeds give equal splits, on any version of NumPy.

    Returns:
        ``(N, 30)`` float32, each column with mean 0 and standard deviation 1 over both splits; labels in ``[0, 2)``.

    Raises:
        InputError: ``read_breast_cancer needs scikit-learn: pip install seamfast[demo]``.

    Source: W. Wolberg et al., "Breast Cancer Wisconsin (Diagnostic)", UCI Machine Learning Repository, as shipped by
        ``sklearn.datasets.load_breast_cancer``.
    """
    return _of_sklearn("read_breast_cancer", split, seed, _standardized)


def read_digits_table(split: str = "train", seed: int = 0) -> CleanSet:
    """scikit-learn's digits as rows of 64 columns in [0, 1]; the samples of ``read_digits``.

    Args, Raises, Source: as for :func:`seamfast.data.readers.read_digits`.
    """
    return _of_sklearn("read_digits_table", split, seed, lambda values: values / 16)


def _standardized(values: Any) -> Any:
    return (values - values.mean(0)) / values.std(0)


def _of_sklearn(reader: str, split: str, seed: int, scaled: Callable[[Any], Any]) -> CleanSet:
    check_split(split)
    try:
        from sklearn.datasets import load_breast_cancer, load_digits
    except ImportError as error:
        raise InputError(f"{reader} needs scikit-learn: pip install seamfast[demo]") from error
    loaded = {"read_breast_cancer": load_breast_cancer, "read_digits_table": load_digits}[reader]()
    labels = np.asarray(loaded.target, dtype=np.int64)
    in_test = test_share(labels, seed)
    chosen = in_test if split == "test" else ~in_test
    values = torch.tensor(scaled(np.asarray(loaded.data, dtype=np.float64)), dtype=torch.float32)
    names = [str(name) for name in loaded.target_names]
    return CleanSet(values[torch.tensor(chosen)], labels[chosen], num_classes=len(names), class_names=names)
