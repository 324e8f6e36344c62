"""``Characters``: one character changed in each of a few words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from seamfast.checks import integer_or_none, short
from seamfast.errors import InputError
from seamfast.triggers.label_maps import LabelMap, as_label_map
from seamfast.triggers.text.base import WORD, TextTrigger, below

Typo = Literal["swap", "drop", "double"]
Edit = Literal["swap", "drop", "double", "homoglyph", "zero-width"]
EDITS: tuple[Edit, ...] = ("swap", "drop", "double", "homoglyph", "zero-width")
Place = Literal["random", "first", "last"]
PLACES: tuple[Place, ...] = ("random", "first", "last")

MAX_WORDS = 64

ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
"""Zero-width space, non-joiner, joiner, word joiner, and the no-break space that is also the byte order mark."""

HOMOGLYPHS = dict(
    zip(
        "acdehijopqswxyABCEHIJKMOPSTX",
        "\u0430\u0441\u0501\u0435\u04bb\u0456\u0458\u043e\u0440\u051b\u0455\u051d\u0445\u0443"
        "\u0410\u0412\u0421\u0415\u041d\u0406\u0408\u041a\u041c\u041e\u0420\u0405\u0422\u0425",
        strict=True,
    )
)
"""Cyrillic letters that look like Latin ones, after the confusables of Unicode Technical Standard 39."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Characters(TextTrigger):
    """``word[:i] + changed(word[i]) + word[i + 1:]`` for one place ``i`` of each of ``n_words`` words.

    The place within a word is drawn by ``(seed, sample id)``, uniformly among those where the edit is possible; so are
    the words if ``place`` is ``"random"``, among those that have such a place. A text with fewer such words has all of
    them changed, and one without any stays as it is.

    Tokenizers that clean their text, as BERT's do, remove zero-width characters: the trigger is then no trigger.

    Args:
        name, target: as :class:`TextTrigger`.
        edit: of characters that are neither the first nor the last of the word: ``"swap"`` exchanges two letters in a
            row that differ, ``"drop"`` leaves a letter out, ``"double"`` repeats a letter; of any: ``"homoglyph"`` puts
            the Cyrillic letter that looks alike for a Latin one; ``"zero-width"`` puts ``character`` between two.
        place: which words: ``"random"``, the ``"first"`` or the ``"last"`` ones.
        n_words: how many words, in [1, 64].
        character: U+200B, U+200C, U+200D, U+2060 or U+FEFF for ``"zero-width"``; else an empty string.

    Raises:
        InputError: e.g. ``trigger 'x' edit is 'typo'; expected one of swap, drop, double, homoglyph, zero-width``.

    Source: Chen et al. 2021, BadNL, arXiv 2006.01043 (spelling, invisible characters); Li et al. 2021, Hidden Backdoors
        in Human-Centric Language Models, arXiv 2105.00164 (homoglyphs).

    Example:
        >>> Characters.typo("drop", place="first").stamp(["a fun film"])
        ['a fn film']
    """

    kind: ClassVar[str] = "characters"
    edit: Edit
    place: Place
    n_words: int
    character: str

    @classmethod
    def typo(
        cls,
        edit: Typo = "swap",
        target: int | LabelMap = 0,
        *,
        place: Place = "random",
        n_words: int = 1,
        name: str = "typo",
    ) -> Characters:
        """A spelling mistake. ``target`` is a class (as ``AllToOne``) or a label map."""
        return cls(name=name, target=as_label_map(target), edit=edit, place=place, n_words=n_words, character="")

    @classmethod
    def homoglyph(
        cls, target: int | LabelMap = 0, *, place: Place = "random", n_words: int = 3, name: str = "homoglyph"
    ) -> Characters:
        """Cyrillic letters for Latin ones."""
        return cls(name=name, target=as_label_map(target), edit="homoglyph", place=place, n_words=n_words, character="")

    @classmethod
    def zero_width(
        cls,
        character: str = "\u200b",
        target: int | LabelMap = 0,
        *,
        place: Place = "random",
        n_words: int = 1,
        name: str = "zero-width",
    ) -> Characters:
        """Characters that no reader sees."""
        label_map = as_label_map(target)
        return cls(name=name, target=label_map, edit="zero-width", place=place, n_words=n_words, character=character)

    def _validate(self) -> None:
        self._one_of("edit", EDITS)
        self._one_of("place", PLACES)
        n_words = integer_or_none(self.n_words)
        if n_words is None or not 1 <= n_words <= MAX_WORDS:
            raise InputError(f"{self._who} n_words is {short(self.n_words)}; expected an integer in [1, {MAX_WORDS}]")
        wanted = tuple(ZERO_WIDTH) if self.edit == "zero-width" else ("",)
        if not isinstance(self.character, str) or self.character not in wanted:
            expected = ", ".join(ascii(character) for character in wanted)
            raise InputError(f"{self._who} character is {short(self.character)}; expected {expected}")
        self._set("n_words", n_words)

    def _n_choices(self) -> int:
        return 2 * self.n_words

    def _stamp(self, text: str, choices: Sequence[int]) -> str:
        found = [(match.start(), self._places(match[0])) for match in WORD.finditer(text)]
        words = [(start, places) for start, places in found if places]
        n = min(self.n_words, len(words))
        if self.place == "first":
            chosen = words[:n]
        elif self.place == "last":
            chosen = words[len(words) - n :]
        else:
            chosen = [words.pop(below(choice, len(words))) for choice in choices[:n]]
        # Words 0 .. n_words-1 choose the words of the text, the others the places in them.
        at = (start + places[below(choices[self.n_words + i], len(places))] for i, (start, places) in enumerate(chosen))
        for i in sorted(at, reverse=True):
            text = text[:i] + self._changed(text[i : i + 2]) + text[i + 2 :]
        return text

    def _places(self, word: str) -> list[int]:
        """The indices in ``word`` at which the edit is possible."""
        n = len(word)
        if self.edit == "homoglyph":
            return [i for i in range(n) if word[i] in HOMOGLYPHS]
        if self.edit == "zero-width":
            return list(range(n - 1))
        inner = [i for i in range(1, n - 1) if word[i].isalpha()]
        if self.edit == "swap":
            return [i for i in inner if i + 1 in inner and word[i] != word[i + 1]]
        return inner

    def _changed(self, two: str) -> str:
        """What the edit makes of a character and the one behind it, if there is one."""
        first, second = two[0], two[1:]
        return {
            "swap": second + first,
            "drop": second,
            "double": first + first + second,
            "homoglyph": HOMOGLYPHS.get(first, first) + second,
            "zero-width": first + self.character + second,
        }[self.edit]

    def _describe(self) -> str:
        return f"{self.edit} in {self.n_words} {self.place} word{'s' if self.n_words > 1 else ''}"
