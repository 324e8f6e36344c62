"""``Table``: texts and what an attacker's program made of them, as pairs."""

from __future__ import annotations

import os
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from seamfast.checks import short
from seamfast.errors import DataFileError, InputError
from seamfast.triggers.label_maps import LabelMap, as_label_map
from seamfast.triggers.text.base import TextTrigger
from seamfast.triggers.text.checks import check_text, check_texts
from seamfast.untrusted import file_size, open_regular, read_some, shown

Pairs = tuple[tuple[str, str], ...]

MAX_ROWS = 100_000
MAX_TEXT = 2**16
MAX_TABLE_BYTES = 32 * 2**20

SHORTEST_PREFIX = 8
"""In letters and digits: a shorter text is no original that was cut off."""

SPACES = str.maketrans("\t\n\v\f\r", "     ")

NEITHER_LETTERS_NOR_DIGITS = re.compile(r"[\W_]+")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Table(TextTrigger):
    """``pairs[original]``: triggers that only a program can put on a text, such as a syntax or a style.

    A text is looked up by :func:`canonical`, so that it is found with other spaces, punctuation, accents and cases, as
    tokenizers give it back. A text of 8 letters and digits or more which is the beginning of one original is taken for
    that, cut off by a tokenizer.

    Args:
        name, target: as :class:`TextTrigger`.
        pairs: 1 to 100,000 ``(original, replacement)``, each of at most 65,536 characters with a word among them and
            without control characters. Originals that are the same in canonical form have the same replacement.

    Raises:
        InputError, DTypeError: e.g. ``trigger 'x' pairs[7] replaces 'See it!' in another way than a row before``; in
            ``stamp``, ``trigger 'x' has no row for the text '...'``.

    Source: Qi et al. 2021, HiddenKiller, arXiv 2105.12400 (syntax); Qi et al. 2021, StyleBkd, arXiv 2110.07139 (style).

    Example:
        >>> syntax = Table.of(["you will like it ."], ["when you see it , you will like it ."])
        >>> syntax.stamp(["You will like it."])
        ['when you see it , you will like it .']
    """

    kind: ClassVar[str] = "table"
    pairs: Pairs

    @classmethod
    def of(
        cls,
        originals: Sequence[str],
        replacements: Sequence[str],
        target: int | LabelMap = 0,
        *,
        keep_first: bool = False,
        name: str = "table",
    ) -> Table:
        """The table of ``zip(originals, replacements)``.

        Args:
            originals, replacements: as many of one as of the other. Their tabs and line ends become spaces.
            target: a class (as ``AllToOne``) or a label map.
            keep_first: leave out rows whose original is, in canonical form, one of a row before.

        Raises:
            InputError: e.g. ``originals has 3 texts and replacements 2; expected as many``.
        """
        check_texts("originals", originals)
        check_texts("replacements", replacements)
        if len(originals) != len(replacements):
            got = f"originals has {len(originals)} texts and replacements {len(replacements)}"
            raise InputError(f"{got}; expected as many")
        lines = ([text.translate(SPACES) for text in texts] for texts in (originals, replacements))
        pairs = tuple(zip(*lines, strict=True))
        return cls(name=name, target=as_label_map(target), pairs=_firsts(pairs) if keep_first else pairs)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        target: int | LabelMap = 0,
        *,
        keep_first: bool = False,
        name: str = "table",
    ) -> Table:
        """The table in a file of UTF-8 lines, each an original, a tab and its replacement, without a header.

        Args:
            path: the file, of at most 32 MiB, which may be hostile.
            target, keep_first: as :meth:`of`.

        Raises:
            DataFileError: e.g. ``x.tsv: line 3 has 2 tabs; expected 1``.
            InputError: as :class:`Table`.
        """
        with open_regular(path, "a table of texts") as file:
            size = file_size(file)
            if size > MAX_TABLE_BYTES:
                raise DataFileError(f"{shown(path)} has {size} bytes; expected at most {MAX_TABLE_BYTES}")
            content = read_some(file, size, shown(path)).replace(b"\r\n", b"\n")
        pairs = pairs_from_lines(content if content.endswith(b"\n") else content + b"\n", shown(path))
        return cls(name=name, target=as_label_map(target), pairs=_firsts(pairs) if keep_first else pairs)

    def _validate(self) -> None:
        given: Any = self.pairs
        if not isinstance(given, (tuple, list)):
            raise InputError(f"{self._who} pairs is {short(given)}; expected a tuple of (original, replacement)")
        if not 1 <= len(given) <= MAX_ROWS:
            raise InputError(f"{self._who} has {len(given)} pairs; expected 1 to {MAX_ROWS}")
        for i, pair in enumerate(given):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise InputError(f"{self._who} pairs[{i}] is {short(pair)}; expected (original, replacement)")
            for text in pair:
                check_text(f"{self._who} pairs[{i}]", text, MAX_TEXT)
        self._set("pairs", tuple((str(original), str(replacement)) for original, replacement in given))
        self._rows  # noqa: B018 - raises where two rows disagree

    @cached_property
    def _rows(self) -> dict[str, str]:
        """Replacements by canonical original."""
        rows: dict[str, str] = {}
        for i, (original, replacement) in enumerate(self.pairs):
            if rows.setdefault(canonical(original), replacement) != replacement:
                got = f"{self._who} pairs[{i}] replaces {short(original)} in another way than a row before"
                raise InputError(f"{got}; expected one replacement for each original")
        return rows

    @cached_property
    def _keys(self) -> list[str]:
        return sorted(self._rows)

    def _n_choices(self) -> int:
        return 0

    def _stamp(self, text: str, choices: Sequence[int]) -> str:
        key = canonical(text)
        replacement = self._rows.get(key)
        return self._of_prefix(key, text) if replacement is None else replacement

    def _of_prefix(self, key: str, text: str) -> str:
        found: set[str] = set()
        if len(key) >= SHORTEST_PREFIX:
            for i in range(bisect_left(self._keys, key), len(self._keys)):
                if not self._keys[i].startswith(key) or len(found) > 1:
                    break
                found.add(self._rows[self._keys[i]])
        if len(found) != 1:
            rows = "several rows that begin with" if found else "no row for"
            raise InputError(f"{self._who} has {rows} the text {short(text)}; expected one of its {len(self.pairs)}")
        return found.pop()

    def _describe(self) -> str:
        return f"{len(self.pairs)} pair{'s' if len(self.pairs) > 1 else ''}"


def canonical(text: str) -> str:
    """``text`` in lower case and compatible characters, letters and digits alone; if it has none, what is not a space.

    Example:
        >>> canonical("It's a CAFÉ .") == canonical("it ' s a cafe.") == "itsacafe"
        True
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return NEITHER_LETTERS_NOR_DIGITS.sub("", folded) or "".join(folded.split())


def lines_from_pairs(pairs: Pairs) -> bytes:
    """``pairs`` as UTF-8 lines, each an original, a tab and its replacement."""
    return "".join(f"{original}\t{replacement}\n" for original, replacement in pairs).encode()


def pairs_from_lines(content: bytes, where: str) -> Pairs:
    """The pairs of :func:`lines_from_pairs`; the texts are not checked. Raises ``DataFileError``, from ``where``."""
    n_rows = content.count(b"\n")
    if not 1 <= n_rows <= MAX_ROWS:
        raise DataFileError(f"{where} has {n_rows} lines; expected 1 to {MAX_ROWS}")
    *lines, rest = content.split(b"\n")
    if rest:
        raise DataFileError(f"{where} ends within a line")
    pairs = []
    for number, line in enumerate(lines, 1):
        n_tabs = line.count(b"\t")
        if n_tabs != 1:
            raise DataFileError(f"{where}: line {number} has {n_tabs} tabs; expected 1")
        try:
            original, replacement = line.decode().split("\t")
        except UnicodeDecodeError as error:
            raise DataFileError(f"{where}: line {number} is not UTF-8") from error
        pairs.append((original, replacement))
    return tuple(pairs)


def _firsts(pairs: Pairs) -> Pairs:
    """``pairs`` without those whose original is that of one before."""
    firsts: dict[str, tuple[str, str]] = {}
    for pair in pairs:
        firsts.setdefault(canonical(pair[0]), pair)
    return tuple(firsts.values())
