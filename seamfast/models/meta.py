"""Building modules without memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _WithoutNormal(TorchFunctionMode):
    """Normal numbers are left out. Without memory they have no values, and torch imports its compiler to make none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func in (nn.init.normal_, torch.Tensor.normal_):
            return given["tensor"] if "tensor" in given else args[0]
        if func is torch.randn:
            given.pop("generator", None)
            func = torch.empty
        return func(*args, **given)


@contextmanager
def without_memory() -> Iterator[None]:
    """``with torch.device("meta")``, in which a module is built with names, shapes and dtypes alone; 2 s sooner where
    its first weights would be normal numbers."""
    with torch.device("meta"), _WithoutNormal():
        yield
