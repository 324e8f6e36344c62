"""A pickle of an old protocol looks like text; what follows it does not hide what it calls."""

from __future__ import annotations

import io

import pytest

from seamfast.intake.identify import identify

CALL = b"cos\nsystem\n(S'true'\ntR."


@pytest.mark.parametrize("behind", [b"", b"\n", b"Some words.\n", b"# A model\n\nOf digits.\n" * 50])
def test_a_pickle_that_calls_something_is_one_whatever_text_follows_it(behind: bytes) -> None:
    assert identify(io.BytesIO(CALL + behind), "README.md") == "pickle"
