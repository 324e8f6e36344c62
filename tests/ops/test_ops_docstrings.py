"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest

from seamfast.ops import cpp


@pytest.mark.parametrize("module", ["dispatch", "gather_augment", "philox", "random_labels"])
def test_examples(module: str) -> None:
    if module == "dispatch" and cpp.why_unavailable() is not None:
        pytest.skip("the example shows a build with the extension")
    failed, tried = doctest.testmod(importlib.import_module(f"seamfast.ops.{module}"))
    assert tried > 0
    assert failed == 0
