"""README.md says what the rows of the results say."""

from __future__ import annotations

import pytest

from benches import readme


def test_the_figures_are_those_of_the_rows() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.replaced(text) == text, "run python benches/readme.py --write"


def test_other_figures_are_replaced_and_the_rest_is_kept() -> None:
    text = readme.README.read_text(encoding="utf-8")
    begin, end = (mark.format(name="claims") for mark in (readme.BEGIN, readme.END))
    claims = text.partition(begin)[2].partition(end)[0]
    assert readme.replaced(text.replace(claims, "\nFidelity 1\n")) == text


def test_a_file_without_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"README\.md lacks"):
        readme.replaced("# seamfast")
