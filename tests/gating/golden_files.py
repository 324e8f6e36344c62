"""Golden files, in golden/: what a test compares with as a whole. ``SEAMFAST_UPDATE_GOLDEN=1`` writes them anew."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from seamfast.untrusted import printable_value

GOLDEN = Path(__file__).parent / "golden"


def check(name: str, text: str) -> None:
    """``text`` is that of the golden file of this name."""
    if os.environ.get("SEAMFAST_UPDATE_GOLDEN") == "1":
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text.splitlines() == (GOLDEN / name).read_text(encoding="utf-8").splitlines()


def check_messages(
    name: str, error: type[Exception], act: Callable[[Any], object], inputs: Iterable[Any], hidden: str = "$^"
) -> None:
    """``act`` of each input raises ``error``, printable and short; inputs, codes and messages are in the golden file.

    Args:
        hidden: expression for what differs from run to run, left out of messages.
    """
    lines = []
    for value in inputs:
        with pytest.raises(error) as caught:
            act(value)
        message = str(caught.value)
        assert message.isprintable(), ascii(message)
        assert len(message) < 1000
        code = getattr(caught.value, "code", type(caught.value).__name__)
        label = value if isinstance(value, str) else printable_value(value)
        lines += [ascii(label)[1:-1][:300], f"    {code}: {re.sub(hidden, '', message)}"]
    check(name, "\n".join(lines) + "\n")
