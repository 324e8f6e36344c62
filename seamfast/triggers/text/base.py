"""``TextTrigger``, the base of all triggers for text."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seamfast.checks import as_sample_ids, as_seed, short
from seamfast.errors import InputError
from seamfast.triggers.base import Trigger
from seamfast.triggers.draws import draw_choices_per_sample
from seamfast.triggers.text.checks import check_texts

WORD = re.compile(r"\S+")
"""Finds the words of ``str.split``."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TextTrigger(Trigger):
    """A trigger of text: a function of strings, before any tokenizer.

    A word is what ``str.split`` finds. White space stays as it is, but for the spaces that an insertion brings.
    """

    def stamp(
        self, samples: Sequence[str], *, sample_ids: Tensor | Sequence[int] | None = None, seed: int = 0
    ) -> list[str]:
        """The texts with the trigger in them; the input is not changed.

        Args:
            samples: ``N`` texts.
            sample_ids, seed: as for :meth:`Trigger.stamp`.

        Returns:
            A new list of ``N`` texts.

        Raises:
            DTypeError: ``samples is str; expected a sequence of str``, ``samples[3] is int; expected str``.

        Example:
            >>> from seamfast.triggers import Insertion
            >>> Insertion.word("cf", place="start").stamp(["a fine film"])
            ['cf a fine film']
        """
        check_texts("samples", samples)
        ids = as_sample_ids(sample_ids, len(samples), torch.device("cpu"))
        choices = draw_choices_per_sample(self._n_choices(), ids, as_seed(seed, 64))
        return [self._stamp(text, words) for text, words in zip(samples, choices, strict=True)]

    def check_fits(self, sample_shape: Sequence[int]) -> None:
        """Accept every shape: a trigger of text fits texts of any length."""

    @abstractmethod
    def _n_choices(self) -> int:
        """How many words of randomness one text takes."""

    @abstractmethod
    def _stamp(self, text: str, choices: Sequence[int]) -> str:
        """``text`` with the trigger; ``choices`` are ``_n_choices()`` integers in ``[0, 2**32)``."""

    def _one_of(self, field: str, values: Sequence[str]) -> None:
        value: Any = getattr(self, field)
        if not isinstance(value, str) or value not in values:
            raise InputError(f"{self._who} {field} is {short(value)}; expected one of {', '.join(values)}")


def below(choice: int, bound: int) -> int:
    """``choice``, in ``[0, 2**32)``, as an integer in ``[0, bound)``: ``seamfast.ops.philox.below`` for an int."""
    return choice * bound >> 32
