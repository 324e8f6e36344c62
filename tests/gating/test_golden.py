"""Every document of every example report equals its golden file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from seamfast.documents.style import STYLE
from seamfast.gating.documents.cyclonedx import as_bom
from seamfast.gating.documents.html import as_html
from seamfast.gating.documents.in_toto import as_statement
from seamfast.gating.documents.markdown import as_markdown
from seamfast.gating.documents.sarif import as_sarif
from tests.gating.examples import cases
from tests.gating.golden_files import GOLDEN, check
from tests.gating.pictures import example_pictures
from tests.gating.test_schema import VALIDATOR

CASES = cases()
BLOCKS = re.compile(r"(?=<(?:section|h\d|p|ul|li|dl|div|figure|table|tr|t[hd]|svg|g|line|circle|rect|footer|main)\b)")


def html(report: dict[str, Any]) -> str:
    """The page with an element a line, without the style sheet, and with pixels for PNG files, which depend on zlib."""
    page = as_html(report, example_pictures()).decode()
    assert page.count(STYLE) == 1
    page = re.sub(r"data:image/png;base64,([\w+/=]+)", lambda match: pixels(base64.b64decode(match[1])), page)
    return BLOCKS.sub("\n", page.replace(STYLE, "STYLE"))


def pixels(png: bytes) -> str:
    """Size, color type and a digest of the rows of a PNG file as ``as_png`` writes it."""
    (length,) = struct.unpack(">I", png[33:37])
    return "png {}x{} {} {}".format(*struct.unpack(">IIxB", png[16:26]), digest(zlib.decompress(png[41 : 41 + length])))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def as_json(make: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], str]:
    return lambda report: json.dumps(make(report), indent=1) + "\n"


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "html": html,
    "md": as_markdown,
    "sarif": as_json(as_sarif),
    "in-toto": as_json(as_statement),
    "cdx": as_json(as_bom),
}
NAMES = [f"{case}.{suffix}" for case in CASES for suffix in FORMATS if (case, suffix) != ("refused", "in-toto")]


@pytest.mark.parametrize("case", CASES)
def test_examples_follow_the_schema(case: str) -> None:
    VALIDATOR.validate(CASES[case])


@pytest.mark.parametrize("name", NAMES)
def test_document_is_the_golden_one(name: str) -> None:
    case, suffix = name.split(".")
    check(name, FORMATS[suffix](CASES[case]))


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir() if path.suffix != ".txt"} == set(NAMES)
