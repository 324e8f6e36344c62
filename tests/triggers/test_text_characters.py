"""Changed characters: which places in which words, by which draws; and what is refused."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

import pytest
import torch
from refusals import refused

from seamfast.errors import InputError
from seamfast.ops.philox import draw
from seamfast.triggers import AllToOne, Characters, SourceSpecific
from seamfast.triggers.text.characters import HOMOGLYPHS


def characters(edit: Any, **changes: Any) -> Characters:
    fields = {"name": "x", "target": AllToOne(0), "edit": edit, "place": "random", "n_words": 1}
    return Characters(**(fields | {"character": "\u200b" if edit == "zero-width" else ""} | changes))


def stamped(trigger: Characters, text: str, n: int = 300) -> Counter[str]:
    """How often each result occurs over ``n`` samples of one text."""
    return Counter(trigger.stamp([text] * n))


@pytest.mark.parametrize(
    ("edit", "text", "wanted"),
    [
        ("swap", "abcde", {"acbde", "abdce"}),
        ("swap", "abbcd", {"abcbd"}),
        ("swap", "a1bcd,", {"a1cbd,", "a1bdc,"}),
        ("swap", "abc ab b't--", {"abc ab b't--"}),
        ("drop", "abcd", {"acd", "abd"}),
        ("drop", "a'bc", {"a'c"}),
        ("drop", "ab 123", {"ab 123"}),
        ("double", "abcd", {"abbcd", "abccd"}),
        ("double", "ab", {"ab"}),
        ("homoglyph", "aXz", {"\u0430Xz", "a\u0425z"}),
        ("homoglyph", "z7", {"z7"}),
        ("zero-width", "a.c", {"a\u200b.c", "a.\u200bc"}),
        ("zero-width", "a", {"a"}),
        ("zero-width", "", {""}),
    ],
)
def test_places_in_a_word(edit: str, text: str, wanted: set[str]) -> None:
    counts = stamped(characters(edit), text)
    assert counts.keys() == wanted
    assert min(counts.values()) > 110


def test_which_words() -> None:
    text = "  ab cdef\tgh ijkl mnop \n"
    assert stamped(characters("swap", place="first"), text).keys() == {"  ab cedf\tgh ijkl mnop \n"}
    assert stamped(characters("swap", place="last"), text).keys() == {"  ab cdef\tgh ijkl monp \n"}
    assert stamped(characters("swap", place="last", n_words=2), text).keys() == {"  ab cdef\tgh ikjl monp \n"}
    one = stamped(characters("swap"), text)
    assert len(one) == 3
    assert min(one.values()) > 70
    assert len(stamped(characters("swap", n_words=2), text)) == 3
    for place in ("first", "last", "random"):
        assert stamped(characters("swap", place=place, n_words=9), text).keys() == {"  ab cedf\tgh ikjl monp \n"}


def test_draws_are_philox_by_seed_and_sample() -> None:
    """Words 0 .. n-1 choose among the words left, the others among the places. Stream 19, blocks of four words."""
    n, seed, words = 3, 2**63 + 5, ["alpha", "beta", "gamma", "delta"]
    ids = [0, 7, 2**40 + 3]
    got = characters("double", n_words=n).stamp([" ".join(words)] * 3, sample_ids=ids, seed=seed)
    for sample_id, text in zip(ids, got, strict=True):
        drawn = [int(w) for block in (0, 1) for w in draw(seed, torch.tensor(sample_id), block, 19)]
        left, wanted = list(range(4)), list(words)
        for i in range(n):
            which = left.pop(drawn[i] * len(left) >> 32)
            at = 1 + (drawn[n + i] * (len(words[which]) - 2) >> 32)
            wanted[which] = words[which][: at + 1] + words[which][at:]
        assert text == " ".join(wanted)


def test_homoglyphs_are_cyrillic_letters_of_the_same_case() -> None:
    assert len(set(HOMOGLYPHS.values())) == len(HOMOGLYPHS) == 28
    for latin, other in HOMOGLYPHS.items():
        assert unicodedata.name(latin).startswith("LATIN")
        assert unicodedata.name(other).startswith("CYRILLIC")
        assert unicodedata.category(latin) == unicodedata.category(other)
        assert unicodedata.normalize("NFKC", other) == other  # no tokenizer turns it back


@pytest.mark.parametrize("character", ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff"])
def test_characters_of_no_width(character: str) -> None:
    assert Characters.zero_width(character).stamp(["ab"]) == [f"a{character}b"]


def test_factories() -> None:
    narrow = SourceSpecific((1,), 0)
    assert Characters.typo() == characters("swap", name="typo")
    assert Characters.typo("drop", narrow, place="last", n_words=2, name="t") == characters(
        "drop", name="t", target=narrow, place="last", n_words=2
    )
    assert Characters.homoglyph(1) == characters("homoglyph", name="homoglyph", target=AllToOne(1), n_words=3)
    assert Characters.zero_width("\u200d") == characters("zero-width", name="zero-width", character="\u200d")


def test_repr() -> None:
    assert repr(Characters.typo()) == "Characters('typo', swap in 1 random word, AllToOne(target=0))"
    assert repr(Characters.homoglyph(place="last")) == (
        "Characters('homoglyph', homoglyph in 3 last words, AllToOne(target=0))"
    )


@pytest.mark.parametrize(
    ("edit", "changes", "message"),
    [
        ("typo", {}, "trigger 'x' edit is 'typo'; expected one of swap, drop, double, homoglyph, zero-width"),
        (None, {}, "trigger 'x' edit is None"),
        ("swap", {"place": "middle"}, "trigger 'x' place is 'middle'; expected one of random, first, last"),
        ("swap", {"n_words": 0}, r"trigger 'x' n_words is 0; expected an integer in \[1, 64\]"),
        ("swap", {"n_words": 65}, "n_words is 65"),
        ("swap", {"n_words": 2.0}, "n_words is 2.0"),
        ("swap", {"character": "\u200b"}, r"trigger 'x' character is '\\u200b'; expected ''$"),
        (
            "zero-width",
            {"character": ""},
            r"character is ''; expected '\\u200b', '\\u200c', '\\u200d', '\\u2060', '\\u",
        ),
        ("zero-width", {"character": "a"}, "character is 'a'"),
        ("zero-width", {"character": "\u200b\u200b"}, "character is"),
        ("zero-width", {"character": 8203}, "character is 8203"),
    ],
)
def test_errors(edit: Any, changes: dict[str, Any], message: str) -> None:
    refused(InputError, message, characters, edit, **changes)
