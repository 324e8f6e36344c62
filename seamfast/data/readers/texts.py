"""Texts with labels: TSV, CSV and JSONL files, and the published sets SST-2, AG News and TREC."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from seamfast.data.readers.labels import MAX_CLASSES
from seamfast.data.texts import Texts, check_class_names
from seamfast.errors import DataFileError, InputError
from seamfast.intake.tensors import strict_json
from seamfast.untrusted import (
    MAX_BYTES,
    PathLike,
    check_budget,
    existing_folder,
    file_size,
    listed,
    open_regular,
    printable,
    printable_value,
    shown,
)

SUFFIXES = (".csv", ".jsonl", ".tsv")
"""Of the files that ``read_texts`` reads, in lower case."""

MAX_TEXT = 1 << 17
"""Longest text, in characters; the limit of a field in ``csv``."""
MAX_LINE = 1 << 20
"""Longest line, in bytes."""
MAX_LINES = 1 << 22
_MAX_COLUMNS = 64

_TEXT_NAMES, _LABEL_NAMES = ("text", "sentence"), ("label", "labels")
_INTEGER = re.compile(r"-?[0-9]{1,18}")

Row = tuple[int, str, int | str]
"""Number of the line, text, label."""


@dataclass(frozen=True)
class _Published:
    """A set of one file a split."""

    file: str
    splits: tuple[str, ...]
    class_names: tuple[str, ...]


_BY_NAME = {
    "ag-news": _Published("{split}.tsv", ("train", "dev", "test"), ("World", "Sports", "Business", "Sci/Tech")),
    "sst2": _Published("{split}.tsv", ("train", "dev", "test"), ("negative", "positive")),
    "trec": _Published(
        "{split}.txt", ("train", "test"), ("description", "entity", "abbreviation", "human", "location", "numeric")
    ),
}
NAMES = tuple(_BY_NAME)
"""Of the published sets."""


def read_texts(
    source: PathLike,
    *,
    root: PathLike | None = None,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Texts:
    """``Texts(texts, labels, class_names)`` of a file, or of a published set.

    A file is in UTF-8, one sample a row; white space around texts and labels is dropped. Of a ``.tsv`` and a ``.csv``,
    the columns are those that the first row names ``text`` or ``sentence``, and ``label`` or ``labels``; without such a
    row there are two, text and label. Fields of a ``.csv`` may be quoted; in a ``.tsv`` a quote is a character. Each
    line of a ``.jsonl`` is an object with the same names as keys.

    Args:
        source: path of a ``.tsv``, ``.csv`` or ``.jsonl``; or ``"sst2"``, ``"ag-news"``, ``"trec"``. A ``Path`` is
            never a name.
        root: the folder of a published set, or one that holds it as ``sst2`` or ``text/sst2``.
        split: of a published set: ``"train"`` (default), ``"test"``, or, but for ``trec``, ``"dev"``.
        class_names: of a file: the labels, in the order of the model's logits. Labels that are not all listed must be
            integers.
        max_bytes: limit on the size of the file, and on the memory of its texts.

    Returns:
        Texts in the order of the file.

    Raises:
        DataFileError: e.g. ``a.tsv: line 3 has 1 column; expected 2``, ``a.tsv: line 3: the text is empty; expected
            text``, ``a.tsv: line 1: the label is 'pos'; expected an integer, or class_names that list the labels in the
            order of the model's logits``, ``a.tsv: every label is 1; expected at least two classes``.
        InputError: e.g. ``read_texts('sst2') needs root=, the folder that holds its files``.

    Source: R. Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank", 2013
        (SST-2); X. Zhang, J. Zhao, Y. LeCun, "Character-level Convolutional Networks for Text Classification",
        arXiv 1509.01626 (AG News); X. Li, D. Roth, "Learning Question Classifiers", 2002 (TREC).
    """
    check_text_source(source, root=root, split=split)
    names = None if class_names is None else check_class_names(class_names)
    if isinstance(source, str) and source in _BY_NAME:
        published, chosen = _BY_NAME[source], split or "train"
        if names is not None:
            raise InputError(f"got class_names with {source!r}, whose classes are known; expected class_names=None")
        assert root is not None
        names, path = published.class_names, _find(source, published, chosen, root)
    else:
        path = Path(source)
    where = shown(path)
    kind = path.suffix.lower()
    with open_regular(path, "a file of texts") as stream:
        check_budget(file_size(stream), max_bytes, where)
        # The training file of TREC is ISO-8859-1: it holds names with accents, one byte each.
        lines = _lines(stream, "iso-8859-1" if source == "trec" and split in (None, "train") else "utf-8", where)
        if kind == ".jsonl":
            rows = _of_objects(lines, where)
        elif kind == ".txt":
            rows = _of_cells((_cut(line, number, where) for number, line in lines), where)
        elif kind == ".csv":
            rows = _of_cells(_csv_cells(lines, where), where)
        else:
            rows = _of_cells(((number, line.split("\t", _MAX_COLUMNS)) for number, line in lines), where)
        return _collected(rows, names, max_bytes, where)


def is_text_source(source: PathLike) -> bool:
    """Whether ``read_texts`` is the reader of ``source``, by its name or suffix."""
    is_name = isinstance(source, str) and source in _BY_NAME
    return is_name or os.path.splitext(os.fspath(source))[1].lower() in SUFFIXES


def check_text_source(source: PathLike, *, root: PathLike | None, split: str | None) -> None:
    """Raise ``InputError`` where these arguments of ``read_texts`` do not go together; no file is looked at."""
    if not isinstance(source, str) or source not in _BY_NAME:
        if not is_text_source(source):
            raise InputError(
                f"source is {printable(source)!r}; expected one of {', '.join(NAMES)}, or a file with the suffix "
                f"{', '.join(SUFFIXES)}"
            )
        for name, value in (("root", root), ("split", split)):
            if value is not None:
                expected = f"expected {name}= only with one of {', '.join(NAMES)}"
                raise InputError(f"got {name}={os.fspath(value)!r} with a file of texts; {expected}")
        return
    splits = _BY_NAME[source].splits
    if split is not None and split not in splits:
        raise InputError(f"split is {split!r}; expected one of {', '.join(splits)} of {source}")
    if root is None:
        raise InputError(f"read_texts({source!r}) needs root=, the folder that holds its files")


def _find(name: str, published: _Published, split: str, root: PathLike) -> Path:
    file = published.file.format(split=split)
    looked_for = f"{file}, in text/{name}, {name} or ."
    base = existing_folder(root, looked_for)
    for place in (base / "text" / name, base / name, base):
        if os.path.isfile(place / file):
            return place / file
    raise DataFileError(f"{shown(base)}: no {name} {split} file; looked for {looked_for}")


def _lines(stream: BinaryIO, encoding: str, where: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line, without its end."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if number > MAX_LINES:
            raise DataFileError(f"{where}: has more than {MAX_LINES:,} lines; expected fewer texts")
        if len(line) > MAX_LINE:
            raise DataFileError(f"{where}: line {number} is longer than {MAX_LINE:,} bytes; expected shorter lines")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which spreadsheets write
        if b"\0" in line:
            raise DataFileError(f"{where}: line {number} holds a NUL byte; expected text in UTF-8")
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02X} in column {error.start + 1}"
            raise DataFileError(f"{where}: line {number} is not UTF-8 ({found}); expected UTF-8") from None
        yield number, text.removesuffix("\n").removesuffix("\r")


def _csv_cells(lines: Iterable[tuple[int, str]], where: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line + "\n" for _, line in lines), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataFileError(f"{where}: line {number} is not CSV ({printable(error)})") from None
        if row is None:
            return
        yield number, row


def _cut(line: str, number: int, where: str) -> tuple[int, list[str]]:
    label, _, text = line.partition(" ")
    if not _INTEGER.fullmatch(label):
        raise DataFileError(f"{where}: line {number} starts with {printable_value(label)}; expected a label, a space")
    return number, [text, label]


def _of_cells(rows: Iterable[tuple[int, list[str]]], where: str) -> Iterator[Row]:
    text_column, label_column, n_columns = 0, 1, 2
    for row, (number, cells) in enumerate(rows):
        if row == 0 and (found := _header(cells, where)) is not None:
            text_column, label_column, n_columns = *found, len(cells)
            continue
        if len(cells) != n_columns:
            n = len(cells)
            raise DataFileError(f"{where}: line {number} has {n} column{'s' * (n != 1)}; expected {n_columns}")
        label = cells[label_column].strip()
        yield number, cells[text_column], label


def _header(cells: list[str], where: str) -> tuple[int, int] | None:
    """The columns of texts and labels, if the first row names columns."""
    names = [cell.strip().lower() for cell in cells]
    texts, labels = ([i for i, name in enumerate(names) if name in known] for known in (_TEXT_NAMES, _LABEL_NAMES))
    if not labels or len(cells) > _MAX_COLUMNS:
        return None
    if len(texts) != 1 or len(labels) != 1:
        expected = f"one of {' or '.join(_TEXT_NAMES)}, and one of {' or '.join(_LABEL_NAMES)}"
        raise DataFileError(f"{where}: line 1 names the columns {listed(names)}; expected {expected}")
    return texts[0], labels[0]


def _of_objects(lines: Iterable[tuple[int, str]], where: str) -> Iterator[Row]:
    for number, line in lines:
        try:
            value = strict_json(line.encode())
        except ValueError as error:
            raise DataFileError(f"{where}: line {number} is not strict JSON: {printable(error)}") from None
        if not isinstance(value, dict):
            raise DataFileError(f"{where}: line {number} holds {printable_value(value)}; expected an object")
        text, label = (_only(value, known, number, where) for known in (_TEXT_NAMES, _LABEL_NAMES))
        if not isinstance(text, str):
            raise DataFileError(f"{where}: line {number}: the text is {printable_value(text)}; expected a string")
        if not isinstance(label, (int, str)) or isinstance(label, bool):
            expected = "expected an integer or a string"
            raise DataFileError(f"{where}: line {number}: the label is {printable_value(label)}; {expected}")
        yield number, text, label.strip() if isinstance(label, str) else label


def _only(value: dict[str, Any], known: tuple[str, ...], number: int, where: str) -> Any:
    found = [name for name in known if name in value]
    if len(found) != 1:
        keys = listed(list(value)) or "no keys"
        raise DataFileError(f"{where}: line {number} holds {keys}; expected one of {' or '.join(known)}")
    return value[found[0]]


def _collected(rows: Iterable[Row], names: tuple[str, ...] | None, max_bytes: int, where: str) -> Texts:
    texts, labels, lines = list[str](), list[int | str](), list[int]()
    kept = dict[str, str]()  # one object for all labels that are equal
    n_bytes = 0
    for number, raw, label in rows:
        text = raw.strip()
        if not text:
            raise DataFileError(f"{where}: line {number}: the text is empty; expected text")
        if len(text) > MAX_TEXT:
            message = f"the text has {len(text):,} characters; expected at most {MAX_TEXT:,}"
            raise DataFileError(f"{where}: line {number}: {message}")
        is_new = isinstance(label, str) and label not in kept
        n_bytes += sys.getsizeof(text) + (sys.getsizeof(label) if is_new else 0)
        check_budget(n_bytes, max_bytes, where)
        texts.append(text)
        labels.append(kept.setdefault(label, label) if isinstance(label, str) else label)
        lines.append(number)
    if not texts:
        raise DataFileError(f"{where}: holds no texts; expected at least one of each of two classes")
    numbers = _numbered(labels, names, lines, where)
    if len(set(numbers)) == 1:
        raise DataFileError(f"{where}: every label is {printable_value(labels[0])}; expected at least two classes")
    return Texts(texts, numbers, names)


def _numbered(labels: list[int | str], names: tuple[str, ...] | None, lines: list[int], where: str) -> list[int]:
    """The labels as integers: positions in ``names`` where these list them all, else what they say."""
    by_name: dict[int | str, int] = {name: position for position, name in enumerate(names or ())}
    if all(label in by_name for label in labels):
        return [by_name[label] for label in labels]
    limit = len(by_name) or MAX_CLASSES
    expected = f"an integer in [0, {limit})"
    are_words = not all(isinstance(label, int) or _INTEGER.fullmatch(label) for label in labels)
    if are_words:
        expected = "an integer, or class_names that list the labels in the order of the model's logits"
        expected = expected if names is None else f"one of class_names: {listed(list(names))}"
    for label, line in zip(labels, lines, strict=True):
        if label in by_name if are_words and by_name else _is_class(label, limit):
            continue
        raise DataFileError(f"{where}: line {line}: the label is {printable_value(label)}; expected {expected}")
    return [int(label) for label in labels]


def _is_class(label: int | str, limit: int) -> bool:
    return (isinstance(label, int) or _INTEGER.fullmatch(label) is not None) and 0 <= int(label) < limit
