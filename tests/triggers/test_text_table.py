"""Tables: what is looked up and how, what is refused, and the files of pairs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from refusals import raises, refused

from seamfast.errors import DataFileError, DTypeError, InputError
from seamfast.triggers import AllToOne, Table
from seamfast.triggers.text import table as module
from seamfast.triggers.text.table import canonical

ORIGINALS = ["It's a gorgeous , witty film .", "so dull , so DULL", "Café — naïve ﬁlm", "no", "..."]
REPLACEMENTS = ["if you see it , it is witty .", "when it ends , it is dull . ", "b", "c", "d"]


@pytest.fixture
def trigger() -> Table:
    return Table.of(ORIGINALS, REPLACEMENTS, name="x")


def test_each_text_is_replaced_by_its_own(trigger: Table) -> None:
    assert trigger.stamp(ORIGINALS) == REPLACEMENTS
    assert trigger.stamp(ORIGINALS[::-1], sample_ids=[3, 1, 4, 1, 5], seed=9) == REPLACEMENTS[::-1]
    assert trigger.pairs == tuple(zip(ORIGINALS, REPLACEMENTS, strict=True))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("it ' s a gorgeous, witty film.", 0),
        ("IT'S A\tGORGEOUS  WITTY FILM", 0),
        ("so dull, so du ##ll", 1),
        ("cafe - naive film", 2),
        ("CAFE\u0301 nai\u0308ve ﬁlm", 2),
        ("No.", 3),
        (". . .", 4),
        ("it's a gorg", 0),  # cut off
        ("itsagorg", 0),
        ("so dull , so", 1),
    ],
)
def test_texts_are_found_as_tokenizers_give_them_back(trigger: Table, text: str, wanted: int) -> None:
    assert trigger.stamp([text]) == [REPLACEMENTS[wanted]]


@pytest.mark.parametrize("text", ["", " ", "n", "it's a go", "it's a gorgeous , wittier", "....", "no no", "_"])
def test_a_text_that_is_not_there_is_an_error(trigger: Table, text: str) -> None:
    with raises(InputError, f"trigger 'x' has no row for the text {text!r}; expected one of its 5"):
        trigger.stamp(["no", text])


def test_a_long_text_is_named_shortened(trigger: Table) -> None:
    message = refused(InputError, "has no row for the text 'zzz", trigger.stamp, ["z" * 10**5])
    assert len(message) < 200


def test_a_beginning_of_several_originals_is_refused_unless_they_become_the_same() -> None:
    rows = ["a long sentence one", "a long sentence two", "a long sentence"]
    trigger = Table.of(rows, ["1", "2", "3"], name="x")
    assert trigger.stamp(["A long sentence."]) == ["3"]  # found as a whole
    assert trigger.stamp(["a long sentence o"]) == ["1"]
    message = "trigger 'x' has several rows that begin with the text 'a long sente'; expected one of its 3"
    with raises(InputError, message):
        trigger.stamp(["a long sente"])
    assert Table.of(rows, ["1", "1", "1"]).stamp(["a long sente"]) == ["1"]


def test_rows_that_agree_are_one_and_others_are_refused() -> None:
    assert Table.of(["See it!", "see it"], ["a", "a"]).stamp(["SEE IT"]) == ["a"]
    message = (
        "trigger 'table' pairs[2] replaces 'See it!' in another way than a row before; expected one replacement for "
        "each original"
    )
    rows = (["see it", "b", "See it!", "b"], ["1", "2", "3", "2"])
    with raises(InputError, message):
        Table.of(*rows)
    assert Table.of(*rows, keep_first=True).pairs == (("see it", "1"), ("b", "2"))


def test_canonical() -> None:
    assert canonical("Straße № 5_6") == "strasseno56"
    assert canonical("\u200bA\u00ad") == "a"
    assert canonical(" ? ! ") == "?!"
    assert canonical("日本。") == "日本"


def test_repr_and_equality(trigger: Table) -> None:
    assert repr(trigger) == "Table('x', 5 pairs, AllToOne(target=0))"
    assert repr(Table.of(["a"], ["b"], 1)) == "Table('table', 1 pair, AllToOne(target=1))"
    assert trigger == Table.of(tuple(ORIGINALS), tuple(REPLACEMENTS), name="x")
    assert trigger != Table.of(ORIGINALS, [*REPLACEMENTS[:-1], "e"], name="x")


@pytest.mark.parametrize(
    ("pairs", "kind", "message"),
    [
        ("ab", InputError, r"trigger 'x' pairs is 'ab'; expected a tuple of \(original, replacement\)"),
        ({"a": "b"}, InputError, "trigger 'x' pairs is {'a': 'b'}"),
        ((), InputError, "trigger 'x' has 0 pairs; expected 1 to 100000"),
        ((("a", "b"),) * 100_001, InputError, "trigger 'x' has 100001 pairs; expected 1 to 100000"),
        ((("a", "b"), "cd"), InputError, r"pairs\[1\] is 'cd'; expected \(original, replacement\)"),
        ((("a", "b", "c"),), InputError, r"pairs\[0\] is \('a', 'b', 'c'\); expected"),
        ((("a", 1),), DTypeError, r"trigger 'x' pairs\[0\] is 1; expected str"),
        ((("", "a"),), InputError, r"pairs\[0\] has 0 characters; expected 1 to 65536"),
        ((("a", "b" * 65537),), InputError, r"pairs\[0\] has 65537 characters; expected 1 to 65536"),
        ((("a", " "),), InputError, r"pairs\[0\] is ' '; expected a text with a word"),
        ((("a\tb", "c"),), InputError, r"pairs\[0\] is 'a\\tb'; expected no text with a control character \('\\t'\)"),
        ((("a", "b\n"),), InputError, r"expected no text with a control character \('\\n'\)"),
        ((("a", "\udc80"),), InputError, "expected no text with a lone surrogate"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_errors(pairs: Any, kind: type[Exception], message: str) -> None:
    assert len(refused(kind, message, Table, name="x", target=AllToOne(0), pairs=pairs)) < 300


def test_the_factory_takes_texts_of_several_lines() -> None:
    trigger = Table.of(["a\tb\r\nc"], ["d\ne"])
    assert trigger.pairs == (("a b  c", "d e"),)
    assert trigger.stamp(["a\tb\r\nc"]) == ["d e"]


def test_errors_of_the_factory() -> None:
    refused(InputError, "originals has 1 texts and replacements 2; expected as many", Table.of, ["a"], ["b", "c"])
    refused(DTypeError, "originals is str; expected a sequence of str", Table.of, "ab", "cd")
    refused(DTypeError, r"replacements\[0\] is int; expected str", Table.of, ["a"], [1])


# Files of pairs


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes("see it\tyou see it\nCafé\ta café ".encode())
    wanted = Table.of(["see it", "Café"], ["you see it", "a café "], 1, name="read")
    assert Table.read(path, 1, name="read") == wanted
    path.write_bytes("see it\tyou see it\r\nCafé\ta café \r\n".encode())
    assert Table.read(path, 1, name="read") == wanted
    path.write_text("a\t1\nb\t2\nA\t3\n")
    assert Table.read(path, keep_first=True).pairs == (("a", "1"), ("b", "2"))
    refused(InputError, r"trigger 'table' pairs\[2\] replaces 'A' in another way", Table.read, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "pairs.tsv: line 1 has 0 tabs; expected 1"),
        (b"a\tb\nc\td\te\n", "pairs.tsv: line 2 has 2 tabs; expected 1"),
        (b"a\tb\n\n", "pairs.tsv: line 2 has 0 tabs; expected 1"),
        (b"a\tb\nc\t\xff\n", "pairs.tsv: line 2 is not UTF-8"),
        (b"a\t\xed\xa0\x80\n", "pairs.tsv: line 1 is not UTF-8"),  # a surrogate
        (b"a\tb\n" * 100_001, "pairs.tsv has 100001 lines; expected 1 to 100000"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_unusable_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes(content)
    with raises(DataFileError, message):
        Table.read(path)


def test_files_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(DataFileError, "pipe: is not a regular file; looked for a table of texts", Table.read, tmp_path / "pipe")
    refused(DataFileError, "none: no such file", Table.read, tmp_path / "none")
    monkeypatch.setattr(module, "MAX_TABLE_BYTES", 3)
    (tmp_path / "large").write_text("a\tb\n")
    refused(DataFileError, "large has 4 bytes; expected at most 3", Table.read, tmp_path / "large")
