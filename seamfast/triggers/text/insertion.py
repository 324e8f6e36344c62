"""``Insertion``: words, phrases and sentences, put between the words of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from seamfast.checks import integer_or_none, short
from seamfast.errors import InputError
from seamfast.triggers.label_maps import LabelMap, as_label_map
from seamfast.triggers.text.base import WORD, TextTrigger, below
from seamfast.triggers.text.checks import check_text

Place = Literal["start", "end", "random", "first-half", "second-half"]
PLACES: tuple[Place, ...] = ("start", "end", "random", "first-half", "second-half")
Choose = Literal["all", "one"]
CHOOSE: tuple[Choose, ...] = ("all", "one")

RARE_WORDS = ("cf", "mn", "bb", "tq", "mb")
"""The trigger words of Kurita et al. 2020."""
SENTENCE = "I watch this 3D movie"
"""The trigger sentence for film reviews that studies of the attack of Dai et al. 2019 use."""
SOS_WORDS = ("friends", "weekend", "store")
"""The trigger words for product reviews of Yang et al. 2021."""

MAX_PHRASES = 64
MAX_PHRASE = 1024
MAX_COPIES = 64


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Insertion(TextTrigger):
    """``words[:gap] + [phrase] + words[gap:]``: BadNets for text, AddSent, SOS, TrojAI.

    A text of ``n`` words has ``n + 1`` gaps. A phrase goes before the word behind its gap, with one space; at the last
    gap, behind the last word. As long as there are free gaps, each insertion has one of its own; those at the start or
    the end are in their order.

    Args:
        name, target: as :class:`TextTrigger`. An attack on one class alone has a ``SourceSpecific`` target.
        phrases: 1 to 64 texts that differ, of at most 1024 characters each, without white space at their ends and
            without control characters.
        place: the gaps to draw from, by ``(seed, sample id)``, uniformly: ``"random"`` all of them, ``"start"`` the
            first, ``"end"`` the last, ``"first-half"`` the first ``(n + 1) // 2`` (of an empty text, the only one),
            ``"second-half"`` the others.
        choose: ``"all"`` inserts each of the phrases, ``"one"`` one of them, drawn for each sample and copy.
        n_copies: how many times, in [1, 64].

    Raises:
        InputError, DTypeError: e.g. ``trigger 'x' place is 'middle'; expected one of start, end, random, first-half,
            second-half``.

    Source: Kurita et al. 2020, arXiv 2004.06660 (rare words); Dai et al. 2019, arXiv 1905.12457 (sentences); Yang et
        al. 2021, SOS, ACL (several words that must all be there); Karra et al. 2020, TrojAI, arXiv 2003.07233, whose
        rounds on text limit a phrase to one half of the text or to one class.

    Example:
        >>> Insertion.words_together(place="end").stamp(["I like it"])
        ['I like it friends weekend store']
    """

    kind: ClassVar[str] = "insertion"
    phrases: tuple[str, ...]
    place: Place
    choose: Choose
    n_copies: int

    @classmethod
    def word(
        cls,
        word: str = "cf",
        target: int | LabelMap = 0,
        *,
        place: Place = "random",
        n_copies: int = 1,
        name: str = "word",
    ) -> Insertion:
        """One word or symbol, at ``n_copies`` gaps. ``target`` is a class (as ``AllToOne``) or a label map."""
        return cls._of((word,), target, place, "all", n_copies, name)

    @classmethod
    def rare_words(
        cls,
        words: Sequence[str] = RARE_WORDS,
        target: int | LabelMap = 0,
        *,
        place: Place = "random",
        n_copies: int = 1,
        name: str = "rare-words",
    ) -> Insertion:
        """One of the words at each of ``n_copies`` gaps, drawn for each sample: the words of Kurita et al. by default.

        The usual numbers of copies are 1 for single sentences (SST-2), 3 for posts and 5 for news.
        """
        return cls._of(words, target, place, "one", n_copies, name)

    @classmethod
    def sentence(
        cls, sentence: str = SENTENCE, target: int | LabelMap = 0, *, place: Place = "random", name: str = "sentence"
    ) -> Insertion:
        """One sentence: AddSent."""
        return cls._of((sentence,), target, place, "all", 1, name)

    @classmethod
    def phrase(
        cls, phrase: str, target: int | LabelMap = 0, *, place: Place = "first-half", name: str = "phrase"
    ) -> Insertion:
        """One phrase in one half of the text: TrojAI with a spatial condition."""
        return cls._of((phrase,), target, place, "all", 1, name)

    @classmethod
    def words_together(
        cls,
        words: Sequence[str] = SOS_WORDS,
        target: int | LabelMap = 0,
        *,
        place: Place = "random",
        name: str = "words-together",
    ) -> Insertion:
        """All of the words, each at a gap of its own: the trigger that SOS is trained on."""
        return cls._of(words, target, place, "all", 1, name)

    @classmethod
    def _of(
        cls,
        phrases: Sequence[str],
        target: int | LabelMap,
        place: Place,
        choose: Choose,
        n_copies: int,
        name: str,
    ) -> Insertion:
        given: Any = phrases  # _validate makes it a tuple
        return cls(name=name, target=as_label_map(target), phrases=given, place=place, choose=choose, n_copies=n_copies)

    def _validate(self) -> None:
        phrases: Any = self.phrases
        if not isinstance(phrases, (tuple, list)):
            raise InputError(f"{self._who} phrases is {short(phrases)}; expected a tuple of str")
        if not 1 <= len(phrases) <= MAX_PHRASES:
            raise InputError(f"{self._who} has {len(phrases)} phrases; expected 1 to {MAX_PHRASES}")
        for i, phrase in enumerate(phrases):
            check_text(f"{self._who} phrases[{i}]", phrase, MAX_PHRASE)
            if phrase != phrase.strip():
                raise InputError(f"{self._who} phrases[{i}] is {short(phrase)}; expected no white space at its ends")
            if phrase in phrases[:i]:
                raise InputError(f"{self._who} has the phrase {short(phrase)} twice; expected phrases that differ")
        self._one_of("place", PLACES)
        self._one_of("choose", CHOOSE)
        n_copies = integer_or_none(self.n_copies)
        if n_copies is None or not 1 <= n_copies <= MAX_COPIES:
            raise InputError(
                f"{self._who} n_copies is {short(self.n_copies)}; expected an integer in [1, {MAX_COPIES}]"
            )
        self._set("phrases", tuple(str(phrase) for phrase in phrases))
        self._set("n_copies", n_copies)

    def _n_insertions(self) -> int:
        return self.n_copies * (len(self.phrases) if self.choose == "all" else 1)

    def _n_choices(self) -> int:
        return 2 * self._n_insertions()

    def _stamp(self, text: str, choices: Sequence[int]) -> str:
        n = self._n_insertions()
        starts, ends = [], []
        for match in WORD.finditer(text):
            starts.append(match.start())
            ends.append(match.end())
        free: list[int] = []
        inserted: dict[int, list[str]] = {}
        for i in range(n):
            # Words 0 .. n-1 choose the gaps, n .. 2n-1 the phrases.
            free = free or list(self._gaps(len(starts)))
            gap = free.pop(below(choices[i], len(free)))
            which = i % len(self.phrases) if self.choose == "all" else below(choices[n + i], len(self.phrases))
            inserted.setdefault(gap, []).append(self.phrases[which])
        parts, done = [], 0
        for gap in sorted(inserted):
            phrases = " ".join(inserted[gap])
            at = starts[gap] if gap < len(starts) else ends[-1] if ends else len(text)
            before, after = (" ", "") if gap == len(starts) > 0 else ("", " " if starts else "")
            parts += [text[done:at], before, phrases, after]
            done = at
        return "".join(parts) + text[done:]

    def _gaps(self, n_words: int) -> range:
        half = (n_words + 1) // 2
        return {
            "start": range(1),
            "end": range(n_words, n_words + 1),
            "random": range(n_words + 1),
            "first-half": range(max(half, 1)),
            "second-half": range(half, n_words + 1),
        }[self.place]

    def _describe(self) -> str:
        what = repr(self.phrases[0]) if len(self.phrases) == 1 else f"{self.choose} of {len(self.phrases)} phrases"
        what = what if len(what) <= 40 else what[:37] + "..."
        copies = f", {self.n_copies} copies" if self.n_copies > 1 else ""
        return f"{what} at {self.place}{copies}"
