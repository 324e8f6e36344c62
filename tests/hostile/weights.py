"""Weights that fit the architecture and have values that no training leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from seamfast.models.folder import ModelDescription, save_model
from tests.hostile.case import Case

CNN = ModelDescription("small_cnn", num_classes=10, in_channels=1, image_size=8)
NORMED = ModelDescription("small_vgg_bn", num_classes=10, in_channels=1, image_size=8)


def _with(description: ModelDescription, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], Path]:
    """``change`` spoils the tensors in place."""

    def make(place: Path) -> Path:
        torch.manual_seed(0)
        model = description.build()
        with torch.no_grad():
            change(dict(model.state_dict(keep_vars=True)))
        save_model(place / "model", model, description)
        return place / "model"

    return make


def _fill(end: str, value: float, description: ModelDescription = CNN) -> Callable[[Path], Path]:
    """All tensors whose name ends so hold ``value``."""
    return _with(description, lambda state: [t.fill_(value) for name, t in state.items() if name.endswith(end)])


# What is refused before the model is run.
CASES: dict[str, Case] = {
    "NaN in a weight": Case(_with(CNN, lambda state: state["0.weight"][0, 0].fill_(float("nan"))), "non-finite"),
    "Inf in a bias": Case(_with(CNN, lambda state: state["0.bias"][:1].fill_(float("inf"))), "non-finite"),
    "-Inf in a bias": Case(_with(CNN, lambda state: state["0.bias"][:1].fill_(float("-inf"))), "non-finite"),
    "NaN in a running mean": Case(_fill("running_mean", float("nan"), NORMED), "non-finite"),
    "running variance below 0": Case(_fill("running_var", -1.0, NORMED), "value"),
    "running variance just below 0": Case(_fill("running_var", -1e-30, NORMED), "value"),
    "-1 batches tracked": Case(_fill("num_batches_tracked", -1, NORMED), "value"),
    "fewest batches tracked": Case(_fill("num_batches_tracked", -(2**63), NORMED), "value"),
}

# What is finite is run, and does not pass.
EXTREME: dict[str, Case] = {
    "weights of 1e38": Case(_fill("weight", 1e38), "model"),
    "weights 1e30 times as large": Case(_with(CNN, lambda state: [t.mul_(1e30) for t in state.values()]), "model"),
    "weights of 1e-45": Case(_fill("weight", 1e-45), ""),
}
"""Each with the code of its refusal, if it is refused."""
