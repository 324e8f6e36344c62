"""HTML and SVG as a tree of calls. What is not ``Markup`` is text, and text is escaped: here, and nowhere else."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

from seamfast.gating.documents.wording import LONGEST_TEXT, visible

_WITHOUT_END = frozenset({"img", "link", "meta"})


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
