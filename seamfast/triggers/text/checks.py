"""Checks of texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from seamfast.checks import short
from seamfast.errors import DTypeError, InputError

REFUSED = {"Cc": "a control character", "Cs": "a lone surrogate"}
"""Categories of characters that no text of a trigger holds: no tokenizer sees them, and terminals obey some."""


def check_texts(name: str, texts: Any) -> None:
    """Raise unless ``texts`` is a sequence of ``str``."""
    if isinstance(texts, (str, bytes, bytearray)) or not isinstance(texts, Sequence):
        raise DTypeError(f"{name} is {type(texts).__name__}; expected a sequence of str")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DTypeError(f"{name}[{i}] is {type(text).__name__}; expected str")


def check_text(what: str, text: Any, longest: int) -> None:
    """Raise unless ``text`` is a ``str`` of 1 to ``longest`` characters with a word among them, and without control
    characters and lone surrogates.
    """
    if not isinstance(text, str):
        raise DTypeError(f"{what} is {short(text)}; expected str")
    if not 0 < len(text) <= longest:
        raise InputError(f"{what} has {len(text)} characters; expected 1 to {longest}")
    if text.isspace():
        raise InputError(f"{what} is {short(text)}; expected a text with a word")
    if not text.isprintable():
        for character in text:
            refused = REFUSED.get(unicodedata.category(character))
            if refused is not None:
                raise InputError(f"{what} is {short(text)}; expected no text with {refused} ({character!a})")
