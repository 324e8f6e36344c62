"""``Batch``: the input of one forward pass, and operations on any batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seamfast.errors import InputError

Batch = Tensor | dict[str, Tensor]
"""A tensor (passed by position) or named tensors (passed by keyword)."""


def map_tensors(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """``batch`` with ``function`` applied to each of its tensors."""
    if isinstance(batch, dict):
        return {name: function(value) for name, value in batch.items()}
    return function(batch)


def named_tensors(batch: Batch) -> dict[str, Tensor]:
    """The tensors of ``batch`` by name; a single one is called ``inputs``."""
    return batch if isinstance(batch, dict) else {"inputs": batch}


def size_of(batch: Batch) -> int:
    """The number of samples in ``batch``."""
    return len(next(iter(named_tensors(batch).values())))


def part_of(batch: Batch, first: int, last: int) -> Batch:
    """Samples ``first`` to ``last - 1`` of ``batch``."""
    return map_tensors(lambda value: value[first:last], batch)


def by_position(values: Any, n_samples: int) -> dict[str, Any] | None:
    """The tensors or arrays of a tuple or list under the names of positions, if they are several inputs of
    ``n_samples`` samples; ``None`` if they are anything else, such as one tensor for each sample."""
    if not isinstance(values, (tuple, list)) or len(values) < 2:
        return None
    if not all(isinstance(v, (Tensor, np.ndarray)) and v.ndim and len(v) == n_samples for v in values):
        return None
    if len(values) == n_samples and len({(v.shape, v.dtype) for v in values}) == 1:
        return None  # as many samples as numbers in each
    return {_position(number): value for number, value in enumerate(values)}


def _position(number: int) -> str:
    """No name of a parameter, which has no space."""
    return f"input {number}"


def call(model: nn.Module, batch: Batch) -> Any:
    """``model(batch)``, or ``model(**batch)`` for named tensors."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


def fit_to_call(model: nn.Module, inputs: Batch) -> Batch:
    """Inputs as ``forward`` takes them: named ones by keyword, or by position for one tensor of unknown name.

    Those of ``by_position`` get the names of the parameters, in order.
    """
    if not isinstance(inputs, dict):
        return inputs
    parameters: Mapping[str, Any] = inspect.signature(model.forward).parameters
    if list(inputs) == [_position(number) for number in range(len(inputs))]:
        names = [name for name, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if len(names) < len(inputs):
            raise InputError(f"samples hold {len(inputs)} inputs; the model's forward takes {sorted(parameters)}")
        return dict(zip(names, inputs.values(), strict=False))
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in inputs if name not in parameters]
    if not unknown or open_ended:
        return inputs
    if len(inputs) == 1:
        return next(iter(inputs.values()))
    raise InputError(f"batches hold {sorted(inputs)}; the model's forward takes {sorted(parameters)}")


def missing_arguments(model: nn.Module, inputs: Batch) -> list[str]:
    """Names of the parameters of ``forward`` that have no default and get none of the ``inputs``."""
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(model.forward).parameters
    given = list(inputs) if isinstance(inputs, dict) else list(parameters)[:1]
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [name for name, p in parameters.items() if p.default is p.empty and p.kind not in open_ended]
    return [name for name in needed if name not in given]


def has_channels(batch: Batch) -> bool:
    """Whether ``batch`` is one ``(N, C, H, W)`` tensor, which can be laid out channels last."""
    return isinstance(batch, Tensor) and batch.ndim == 4


def channels_last(batch: Batch) -> Batch:
    """``batch`` in ``torch.channels_last``; unchanged without channels."""
    if not isinstance(batch, Tensor) or not has_channels(batch):
        return batch
    return batch.contiguous(memory_format=torch.channels_last)


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
    """``batch`` on ``device``, with floats in ``dtype``; copies only where needed."""
    return map_tensors(
        lambda value: value.to(device, dtype) if dtype and value.is_floating_point() else value.to(device), batch
    )
