"""``ntk_matrix`` against the Gram matrices of NNGeometry, which makes them of hooks on layers.

pip install --no-deps nngeometry && python -m pytest tests/audits/test_ntk_oracle.py

Without its dependencies: they name torchvision, which it does not import, and of which pip takes a build that does not
load beside a torch for CPUs.
"""

from __future__ import annotations

import pytest
import torch
from small_networks import CLASSES, N, Residual, images, off
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from seamfast.audits import ntk

gram = pytest.importorskip("nngeometry.gram", reason="needs nngeometry")
collections = pytest.importorskip("nngeometry.layercollection")
fspace = pytest.importorskip("nngeometry.object.fspace")


def plain() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("make", [plain, Residual])
def test_the_matrix_is_that_of_nngeometry(make: type[nn.Module]) -> None:
    model, inputs = make().double().eval(), images()
    loader = DataLoader(TensorDataset(inputs, torch.zeros(N)), batch_size=N)
    layers = collections.LayerCollection.from_model(model)
    found = gram.GramMatrix(model, loader, lambda images, _: model(images), fspace.FMatDense, layers)
    by_class = found.to_torch()  # (C, N, C, N)
    wanted = by_class.permute(1, 0, 3, 2).reshape(N * CLASSES, N * CLASSES)
    assert off(ntk.ntk_matrix(model, inputs), wanted) < 1e-6
