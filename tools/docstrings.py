"""The docstrings of the project as Griffe reads them, which makes the reference: an extension, named in ``mkdocs.yml``.

Two things differ from the style that Griffe knows: arguments of one kind share an entry (``mean, std: a channel``), and
the section of an example is ``Example:``.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Attributes):\n((?:[ ]{4}.*\n|\n)*)", re.MULTILINE)
ENTRY = re.compile(r"^    (\w+(?:, \w+)+):((?:.*\n)(?:[ ]{5,}.*\n|\n(?=[ ]{5}))*)", re.MULTILINE)


def readable(docstring: str) -> str:
    """The same docstring with an entry for each argument and attribute, and with ``Examples:``."""
    text = re.sub(r"^Example:$", "Examples:", f"{docstring}\n", flags=re.MULTILINE)
    return SECTION.sub(lambda section: f"{section[1]}:\n{ENTRY.sub(_apart, section[2])}", text).rstrip()


def _apart(entry: re.Match[str]) -> str:
    return "".join(f"    {name}:{entry[2]}" for name in entry[1].split(", "))


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
