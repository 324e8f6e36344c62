"""Perturbations of texts that seldom change their class, for the comparison of two models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from seamfast.modalities.base import Perturbation
from seamfast.modalities.text.vocabulary import Vocabulary

Uniform = Callable[[int], list[float]]
_OnWords = Callable[[list[str], Uniform, Callable[[], list[str]], Vocabulary], list[str]]

_SHARE = 0.15
"""Of the words that are dropped or replaced."""
_INSERTED = 3
"""Tokens that are inserted."""
_BORROWED = 8
"""Words of another text, at most."""
_MOVED = 3.0
"""Words that a word is moved by, at most."""


def _inserted(words: list[str], uniform: Uniform, other: Callable[[], list[str]], vocabulary: Vocabulary) -> list[str]:
    """Three tokens of the whole vocabulary, at random gaps."""
    for new in _tokens(_INSERTED, uniform, vocabulary):
        words.insert(_below(uniform, len(words) + 1), new)
    return words


def _replaced(words: list[str], uniform: Uniform, other: Callable[[], list[str]], vocabulary: Vocabulary) -> list[str]:
    """About 15 % of the words, by tokens of the whole vocabulary."""
    new = _tokens(len(words), uniform, vocabulary)
    return [
        token if chance < _SHARE else word for word, token, chance in zip(words, new, uniform(len(words)), strict=True)
    ]


def _dropped(words: list[str], uniform: Uniform, other: Callable[[], list[str]], vocabulary: Vocabulary) -> list[str]:
    """Without about 15 % of the words; the last word that would be left stays."""
    kept = [word for word, chance in zip(words, uniform(len(words)), strict=True) if chance >= _SHARE]
    return kept or words[:1]


def _shuffled(words: list[str], uniform: Uniform, other: Callable[[], list[str]], vocabulary: Vocabulary) -> list[str]:
    """Words moved by a few places."""
    keys = [place + _MOVED * chance for place, chance in enumerate(uniform(len(words)))]
    return [words[place] for place in sorted(range(len(words)), key=keys.__getitem__)]


def _borrowed(words: list[str], uniform: Uniform, other: Callable[[], list[str]], vocabulary: Vocabulary) -> list[str]:
    """Up to eight words in a row of another text of the batch, at a random gap."""
    source = other()
    first = _below(uniform, max(len(source) - _BORROWED, 0) + 1)
    gap = _below(uniform, len(words) + 1)
    return words[:gap] + source[first : first + _BORROWED] + words[gap:]


def _tokens(n: int, uniform: Uniform, vocabulary: Vocabulary) -> list[str]:
    insertable = vocabulary.insertable
    return [vocabulary.text_of((int(insertable[int(value * len(insertable))]),)) for value in uniform(n)]


def _below(uniform: Uniform, bound: int) -> int:
    return min(int(uniform(1)[0] * bound), bound - 1)


def _on_words(
    change: _OnWords,
    vocabulary: Vocabulary,
    texts: Sequence[str],
    sample_ids: Tensor,
    generator: torch.Generator,
    seed: int,
) -> list[str]:
    """``change`` on the words of each text, as ``str.split`` finds them; a text without words stays as it is."""
    words = [text.split() for text in texts]

    def uniform(n: int) -> list[float]:
        values: list[float] = torch.rand(n, generator=generator, device=generator.device).tolist()
        return values

    def other_than(number: int) -> list[str]:
        return words[(number + 1 + _below(uniform, max(len(words) - 1, 1))) % len(words)]

    return [
        " ".join(change(list(own), uniform, partial(other_than, number), vocabulary)) if own else text
        for number, (own, text) in enumerate(zip(words, texts, strict=True))
    ]


def perturbations(vocabulary: Vocabulary) -> Mapping[str, Perturbation]:
    """By name: texts, the ids of their samples, a generator, the seed."""
    changes: dict[str, _OnWords] = {
        "inserted": _inserted,
        "replaced": _replaced,
        "dropped": _dropped,
        "shuffled": _shuffled,
        "borrowed": _borrowed,
    }
    return {name: partial(_on_words, change, vocabulary) for name, change in changes.items()}
