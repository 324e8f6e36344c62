"""From scratch: the same architecture trained on the clean budget alone, with none of the received weights.

It has no backdoor to forget, so it shows what accuracy the clean budget is worth by itself, and whatever a defence has
above it, it has from the received model. It is given more than the defences, not less: 2,000 steps of 128.

Settings: as models are usually trained. SGD with Nesterov momentum 0.9, weight decay 5e-4, peak rate 0.1 with
BatchNorm and 0.03 without; a network with LayerNorm has AdamW at 1e-3 with weight decay 0.05. A fifth of warm-up, then
half a cosine; the caller's augmentation.

New weights (``redraw``): convolutions as He et al. (arXiv:1502.01852) draw them, other layers as PyTorch makes them,
what belongs to no layer (a class token, places) from ``N(0, 0.02**2)``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

import seamfast
from benches.defences.training import Defended, Training, set_rate
from seamfast.methods.schedules import cosine


def scratch(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    n_steps: int = 2000,
    batch_size: int = 128,
    precision: str = "auto",
) -> Defended:
    """A new model of the same architecture, trained for whole epochs: ``n_steps`` steps or up to an epoch more."""
    with Training(model, clean, seed=seed, augment=augment, batch_size=batch_size, precision=precision) as training:
        new = training.copy()
        redraw(new)
        kinds = {type(m) for m in new.modules()}
        optimizer: torch.optim.Optimizer
        if nn.LayerNorm in kinds:
            rate = 1e-3
            optimizer = torch.optim.AdamW(new.parameters(), rate, weight_decay=0.05)
        else:
            rate = 0.1 if any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds) else 0.03
            optimizer = torch.optim.SGD(new.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True)
        epochs = math.ceil(n_steps / training.steps_an_epoch)
        step = 0
        for epoch in range(epochs):
            for inputs, labels in training.batches(epoch):
                set_rate(optimizer, rate * cosine(step / (epochs * training.steps_an_epoch), warmup=0.2))
                optimizer.zero_grad()
                F.cross_entropy(training.logits(new, inputs), labels).backward()
                optimizer.step()
                step += 1
        return training.finish(new)


def redraw(model: nn.Module) -> None:
    """Draw all weights anew, in place, and reset running statistics; see the head of this file.

    Other buffers, such as fixed tables of places, stay.
    """
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
