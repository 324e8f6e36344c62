"""Small architectures for rows of columns, known by name: ``(B, F)`` floats to logits."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["TABULAR_ARCHITECTURES"]


def mlp(num_classes: int, n_columns: int) -> nn.Module:
    """Two hidden layers of 64 units with ReLU, without normalization: columns must be scaled alike."""
    return nn.Sequential(
        nn.Linear(n_columns, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


TABULAR_ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"mlp": mlp}
"""Of rows of columns, by name; all take ``(num_classes, n_columns)``."""
