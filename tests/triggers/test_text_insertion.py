"""Insertions: at which gaps, of what, by which draws; and what is refused."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from refusals import refused

from seamfast.errors import DTypeError, InputError
from seamfast.ops.philox import draw
from seamfast.triggers import AllToOne, Insertion, SourceSpecific

TEXT = "one two three four"


def insertion(**changes: Any) -> Insertion:
    fields = {"name": "x", "target": AllToOne(0), "phrases": ("cf",), "place": "random", "choose": "all"}
    return Insertion(**(fields | {"n_copies": 1} | changes))


def stamped(trigger: Insertion, text: str, n: int = 400) -> Counter[str]:
    """How often each result occurs over ``n`` samples of one text."""
    return Counter(trigger.stamp([text] * n))


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ("start", {"cf one two three four"}),
        ("end", {"one two three four cf"}),
        ("first-half", {"cf one two three four", "one cf two three four"}),
        ("second-half", {"one two cf three four", "one two three cf four", "one two three four cf"}),
    ],
)
def test_places(place: str, wanted: set[str]) -> None:
    assert stamped(insertion(place=place), TEXT).keys() == wanted


def test_a_random_place_is_any_gap_equally_often() -> None:
    counts = stamped(insertion(), TEXT, 5000)
    assert len(counts) == 5
    assert min(counts.values()) > 880  # 1000 expected, 28 a standard deviation


@pytest.mark.parametrize("n_words", range(8))
def test_the_halves_share_all_gaps_out(n_words: int) -> None:
    text = " ".join("abcdefgh"[:n_words])
    first, second, whole = (
        stamped(insertion(place=place), text).keys() for place in ("first-half", "second-half", "random")
    )
    assert first | second == whole
    assert len(first & second) == (n_words == 0)
    assert len(whole) == n_words + 1
    for half, words in ((first, range(n_words // 2 + 1)), (second, range((n_words + 1) // 2, n_words + 1))):
        assert {text.split().index("cf") for text in half} <= set(words)


@pytest.mark.parametrize(
    ("text", "place", "wanted"),
    [
        ("", "random", "cf"),
        ("", "second-half", "cf"),
        (" \n", "start", " \ncf"),
        ("  a  b\t", "start", "  cf a  b\t"),
        ("  a  b\t", "end", "  a  b cf\t"),
        ("a", "first-half", "cf a"),
        ("a", "second-half", "a cf"),
        ("a\u00a0b", "end", "a\u00a0b cf"),
        ("don't .", "end", "don't . cf"),
    ],
)
def test_white_space_stays(text: str, place: str, wanted: str) -> None:
    assert insertion(place=place).stamp([text]) == [wanted]


def test_words_are_those_of_split() -> None:
    spaces = [chr(i) for i in range(sys.maxunicode + 1) if chr(i).isspace()]
    for space in spaces:
        text = f"{space}a{space}{space}b"
        (got,) = insertion(place="end").stamp([text])
        assert got == text + " cf"
        assert got.split() == ["a", "b", "cf"]


def test_all_phrases_are_there_each_at_its_own_gap() -> None:
    counts = stamped(insertion(phrases=("X", "Y Z")), "a b c", 4000)
    assert len(counts) == 4 * 3
    assert min(counts.values()) > 240  # 333 expected, 17 a standard deviation
    assert not any("X Y" in text or "Z X" in text for text in counts)


def test_with_more_phrases_than_gaps_they_share_gaps_in_order() -> None:
    assert insertion(phrases=tuple("XYZ"), place="start").stamp(["a"]) == ["X Y Z a"]
    assert insertion(phrases=tuple("XYZ"), place="end", n_copies=2).stamp(["a"]) == ["a X Y Z X Y Z"]
    for text in stamped(insertion(phrases=tuple("WXYZ")), "a", 50):
        assert sorted(text.split()) == sorted("WXYZa")


def test_one_of_the_phrases_is_drawn_for_each_copy() -> None:
    counts = stamped(insertion(phrases=("X", "Y"), choose="one", place="start"), "a", 1000)
    assert counts.keys() == {"X a", "Y a"}
    assert min(counts.values()) > 430
    counts = stamped(insertion(phrases=("X", "Y"), choose="one", place="start", n_copies=2), "a", 1000)
    assert counts.keys() == {"X X a", "X Y a", "Y X a", "Y Y a"}
    assert min(counts.values()) > 190


def test_draws_are_philox_by_seed_and_sample() -> None:
    """Copy i goes to the free gap that word i names; word n + i names its phrase. Stream 19, blocks of four words."""
    phrases, n, seed = ("U", "V", "W"), 3, 2**63 + 5
    trigger = insertion(phrases=phrases, choose="one", n_copies=n)
    ids = [0, 7, 2**40 + 3]
    for sample_id, got in zip(ids, trigger.stamp([TEXT] * 3, sample_ids=ids, seed=seed), strict=True):
        words = [int(w) for block in (0, 1) for w in draw(seed, torch.tensor(sample_id), block, 19)]
        free, wanted = list(range(5)), {}
        for i in range(n):
            gap = free.pop(words[i] * len(free) >> 32)
            wanted[gap] = phrases[words[n + i] * 3 >> 32]
        texts = TEXT.split()
        for gap in sorted(wanted, reverse=True):
            texts.insert(gap, wanted[gap])
        assert got == " ".join(texts)


def test_factories() -> None:
    narrow = SourceSpecific((1,), 0)
    assert Insertion.word() == insertion(name="word")
    assert Insertion.word("mn", narrow, place="end", n_copies=3, name="w") == insertion(
        name="w", target=narrow, phrases=("mn",), place="end", n_copies=3
    )
    assert Insertion.rare_words(n_copies=5) == insertion(
        name="rare-words", phrases=("cf", "mn", "bb", "tq", "mb"), choose="one", n_copies=5
    )
    assert Insertion.sentence() == insertion(name="sentence", phrases=("I watch this 3D movie",))
    assert Insertion.phrase("a b", 2) == insertion(
        name="phrase", phrases=("a b",), place="first-half", target=AllToOne(2)
    )
    assert Insertion.words_together() == insertion(name="words-together", phrases=("friends", "weekend", "store"))
    assert Insertion.words_together(["a", "b"]).phrases == ("a", "b")
    refused(InputError, "trigger 'rare-words' phrases is 5; expected a tuple of str", Insertion.rare_words, 5)
    refused(InputError, "trigger 'rare-words' phrases is 'cf'; expected a tuple of str", Insertion.rare_words, "cf")


def test_repr() -> None:
    assert repr(Insertion.word(target=1)) == "Insertion('word', 'cf' at random, AllToOne(target=1))"
    text = "Insertion('rare-words', one of 5 phrases at random, 3 copies, AllToOne(target=0))"
    assert repr(Insertion.rare_words(n_copies=3)) == text
    assert len(repr(Insertion.sentence("word " * 100 + "word"))) < 120


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"phrases": "cf"}, InputError, "trigger 'x' phrases is 'cf'; expected a tuple of str"),
        ({"phrases": None}, InputError, "trigger 'x' phrases is None; expected a tuple of str"),
        ({"phrases": {"cf": 1}}, InputError, "trigger 'x' phrases is {'cf': 1}; expected a tuple of str"),
        ({"phrases": ()}, InputError, "trigger 'x' has 0 phrases; expected 1 to 64"),
        ({"phrases": tuple(map(str, range(65)))}, InputError, "trigger 'x' has 65 phrases; expected 1 to 64"),
        ({"phrases": ("a", 1)}, DTypeError, r"trigger 'x' phrases\[1\] is 1; expected str"),
        ({"phrases": ("a", b"b")}, DTypeError, r"trigger 'x' phrases\[1\] is b'b'; expected str"),
        ({"phrases": ("",)}, InputError, r"trigger 'x' phrases\[0\] has 0 characters; expected 1 to 1024"),
        ({"phrases": ("a" * 1025,)}, InputError, r"phrases\[0\] has 1025 characters; expected 1 to 1024"),
        ({"phrases": ("cf ",)}, InputError, r"phrases\[0\] is 'cf '; expected no white space at its ends"),
        ({"phrases": ("\u2003",)}, InputError, r"phrases\[0\] is '\\u2003'; expected a text with a word"),
        ({"phrases": ("a\nb",)}, InputError, r"is 'a\\nb'; expected no text with a control character \('\\n'\)"),
        ({"phrases": ("\x1b[2J",)}, InputError, r"is '\\x1b\[2J'; expected no text with a control character"),
        ({"phrases": ("\ud800",)}, InputError, r"is '\\ud800'; expected no text with a lone surrogate"),
        (
            {"phrases": ("a", "b", "a")},
            InputError,
            "trigger 'x' has the phrase 'a' twice; expected phrases that differ",
        ),
        ({"place": "middle"}, InputError, "place is 'middle'; expected one of start, end, random, first-half, second"),
        ({"place": ["start"]}, InputError, r"trigger 'x' place is \['start'\]"),
        ({"choose": "some"}, InputError, "trigger 'x' choose is 'some'; expected one of all, one"),
        ({"n_copies": 0}, InputError, r"trigger 'x' n_copies is 0; expected an integer in \[1, 64\]"),
        ({"n_copies": 65}, InputError, "n_copies is 65"),
        ({"n_copies": 1.0}, InputError, "n_copies is 1.0"),
        ({"n_copies": True}, InputError, "n_copies is True"),
    ],
)
def test_errors(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    assert len(refused(kind, message, insertion, **changes)) < 300


def test_unusual_phrases_are_taken() -> None:
    for phrase in ("≈", "\u200b", "नमस्ते", "👩‍💻", "a\u00a0b"):
        assert insertion(phrases=(phrase,), place="start").stamp(["x"]) == [phrase + " x"]
