"""``rewritten_texts``: tables of the paraphrases that were published for the data sets known by name."""

from __future__ import annotations

import os
from pathlib import Path

from seamfast.data.readers.texts import read_texts
from seamfast.errors import DataFileError, InputError
from seamfast.triggers import Table
from seamfast.untrusted import open_regular, shown

_MAX_BYTES = 64 << 20
_SPLITS = ("train", "test")
_FOLDERS = {
    ("sst2", "syntactic"): "sst2-syntactic-trigger",
    ("sst2", "style"): "sst2-style-trigger",
    ("ag-news", "style"): "ag-news-style-trigger",
}


def rewritten_texts(data: str, attack: str, root: str | os.PathLike[str], target: int) -> Table:
    """The texts of the training and the test set, each with its paraphrase; of SST-2's syntactic test set, the negative
    ones only. A text whose paraphrase is empty stays as it is.

    Args:
        data: ``"sst2"`` or ``"ag-news"``.
        attack: ``"syntactic"``, of SST-2 only, or ``"style"``.
        root: the folder that holds ``sst2`` and ``sst2-syntactic-trigger``, or both in ``text``.
        target: class of the trigger.

    Raises:
        InputError: e.g. ``attack 'syntactic' has no texts for 'trec'; expected sst2 or ag-news``.
        DataFileError: e.g. ``train.tsv has 6919 texts; expected 6920, as the set of them has``.

    Source: Qi et al., "Hidden Killer", arXiv:2105.12400; Qi et al., "Mind the Style of Text!", arXiv:2110.07139.
    """
    if (data, attack) not in _FOLDERS:
        known = " or ".join(name for name, of in _FOLDERS if of == attack)
        raise InputError(f"attack {attack!r} has no texts for {data!r}; expected {known}")
    originals: list[str] = []
    replacements: list[str] = []
    for split in _SPLITS:
        texts = read_texts(data, root=root, split=split)
        some = list(texts.texts)
        if attack == "syntactic" and split == "test":
            some = [text for text, label in zip(some, texts.labels.tolist(), strict=True) if label == 0]
        path = _find(Path(root), _FOLDERS[data, attack], f"{split}.tsv")
        changed = _first_column(path)
        if len(changed) != len(some):
            raise DataFileError(f"{shown(path)} has {len(changed)} texts; expected {len(some)}, as the set of them has")
        originals += some
        replacements += [new or old for new, old in zip(changed, some, strict=True)]
    return Table.of(originals, replacements, target, keep_first=True, name=attack)


def _find(root: Path, folder: str, name: str) -> Path:
    for place in (root / "text" / folder, root / folder):
        if (place / name).is_file():
            return place / name
    raise DataFileError(f"{shown(root)}: no file {name}; looked for text/{folder} and {folder}")


def _first_column(path: Path) -> list[str]:
    """The texts of a TSV file with one line of headings."""
    with open_regular(path, "a file of texts") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise DataFileError(f"{shown(path)} has more than {_MAX_BYTES:,} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataFileError(f"{shown(path)} is not UTF-8, at byte {error.start:,}") from error
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")[1:]
    return [" ".join(line.rpartition("\t")[0].split()) for line in lines]
