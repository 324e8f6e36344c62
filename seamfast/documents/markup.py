"""HTML and SVG as a tree of calls. What is not ``Markup`` is text, and text is escaped: here, and nowhere else."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable
from typing import TypeAlias

LONGEST_TEXT = 1000  # characters
_MOST_MARKS = 4  # combining marks in a row; writing systems use no more, and more of them overprint their neighbours
_WITHOUT_END = frozenset({"img", "input", "link", "meta"})


class Markup(str):
    """HTML that is whole as it stands.

    Whatever is done to it, joining and formatting too, gives a plain ``str``, so that a mistake is escaped once more
    than needed, never once too little.
    """

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child] | None"


def element(tag: str, *children: Child, **attributes: str | None) -> Markup:
    """``<tag attributes>children</tag>``.

    Args:
        tag: written as it is; never from a report.
        children: ``Markup`` as it is, other strings as text of at most ``LONGEST_TEXT`` characters, and sequences of
            both; ``None`` is left out.
        attributes: always text, of any length; ``None`` is left out. A name's last ``_`` is dropped (``class_``),
            others become ``-`` (``aria_label``).
    """
    opening = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(value, None)}"'
        for name, value in attributes.items()
        if value is not None
    )
    closing = "" if tag in _WITHOUT_END else f"</{tag}>"
    return Markup(f"<{tag}{opening}>{_joined(children)}{closing}")


def _joined(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, str):
        return child if isinstance(child, Markup) else _escaped(child, LONGEST_TEXT)
    return "".join(_joined(one) for one in child)


def _escaped(text: str, limit: int | None) -> str:
    return html.escape(visible(text, limit), quote=True)


def visible(text: str, limit: int | None = LONGEST_TEXT) -> str:
    """``text`` with unprintable characters as escapes, such as ``\\u202e``, and without its middle where too long.

    Escaped are control characters, line breaks, bidirectional overrides, zero-width and private-use characters, lone
    surrogates, and combining marks that follow no character or more than three other marks.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-limit // 2 :]}"
    if text.isascii() and text.isprintable():
        return text or "(empty)"
    parts, n_marks = [], _MOST_MARKS  # so that a mark at the start is an escape too
    for character in text:
        n_marks = n_marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        plain = character.isprintable() and n_marks <= _MOST_MARKS
        parts.append(character if plain else character.encode("unicode_escape").decode("ascii"))
    return "".join(parts)
