"""Fine-pruning: what clean inputs leave unused is cut off, and the rest is fine-tuned.

Source: Liu et al., "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018,
arXiv:1805.12185.

The channels of the last convolution are pruned from the least active on, by their mean activation on the clean budget,
until accuracy on it has dropped by ``tolerance``; the last state before that is kept. Then all weights are fine-tuned,
and what was pruned stays so. The paper's defender measures and fine-tunes on one clean set, so nothing is held out.

Pruning a channel is done where it is read: its columns of the linear layer behind the last convolution are set to
zero. Where nothing else reads it, as in a VGG, that equals the removal of the filter. In a residual network it removes
the channel of the last feature map, shortcut included, as BackdoorBench does (``defense/fp.py``). A transformer has no
such convolution; there it is the hidden units of the last feed-forward block, by the mean of their absolute
activation: the paper says nothing of transformers.

Settings: ``tolerance`` 4 points; the paper leaves the threshold to the defender. Fine-tuning as in BackdoorBench
(``config/defense/fp``): 100 epochs of batches of 256, SGD 0.01, momentum 0.9, weight decay 5e-4, half a cosine.

Departs: channels go in 32 rounds at most, not one by one, with a look at accuracy after each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.defences.training import Defended, Training, set_rate

_ROUNDS = 32


def fine_pruning(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    tolerance: float = 0.04,
    epochs: int = 100,
    batch_size: int = 256,
    rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    precision: str = "auto",
) -> Defended:
    """Fine-pruning, as in the head of this file."""
    with Training(model, clean, seed=seed, augment=augment, batch_size=batch_size, precision=precision) as training:
        pruned = training.copy()
        reader = find_reader(pruned, next(training.as_they_are())[0][:2])
        kept = prune(training, pruned, reader, tolerance)

        optimizer = torch.optim.SGD(pruned.parameters(), rate, momentum, weight_decay=weight_decay)
        for epoch in range(epochs):
            set_rate(optimizer, 0.5 * rate * (1 + math.cos(math.pi * epoch / epochs)))
            for inputs, labels in training.batches(epoch):
                optimizer.zero_grad()
                F.cross_entropy(training.logits(pruned, inputs), labels).backward()
                optimizer.step()
                with torch.no_grad():
                    reader.layer.weight.mul_(kept)
        return training.finish(pruned)


@dataclass(frozen=True)
class Reader:
    """The linear layer that reads the units that are pruned, and how many of its inputs in a row are of one unit."""

    layer: nn.Linear
    inputs_a_unit: int

    @property
    def n_units(self) -> int:
        return self.layer.in_features // self.inputs_a_unit


def find_reader(model: nn.Module, inputs: Tensor) -> Reader:
    """The first linear layer after the last convolution; in a transformer, the last that narrows tokens.

    Raises:
        ValueError: ``the model has no linear layer that reads its last convolution or a feed-forward block``.
    """
    calls: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], _: object) -> None:
        calls.append((module, given[0].ndim))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()

    on_tokens = [m for m, ndim in calls if isinstance(m, nn.Linear) and ndim == 3]
    for layer in reversed(on_tokens):
        if layer.in_features > layer.out_features:
            return Reader(layer, 1)
    channels = 0
    reader: nn.Linear | None = None
    for module, _ in calls:
        if isinstance(module, nn.Conv2d):
            channels, reader = module.out_channels, None
        elif isinstance(module, nn.Linear) and reader is None:
            reader = module
    if reader is None or not channels or reader.in_features % channels:
        raise ValueError("the model has no linear layer that reads its last convolution or a feed-forward block")
    return Reader(reader, reader.in_features // channels)


def prune(training: Training, model: nn.Module, reader: Reader, tolerance: float) -> Tensor:
    """Set the columns of the least active units to zero, in place, as many as accuracy can spare.

    Returns:
        ``(in_features,)``: 1 for the inputs that are kept, 0 for those of pruned units.
    """
    before = reader.layer.weight.detach().clone()
    order = activity(training, model, reader).argsort(stable=True)
    least = training.accuracy(model) - tolerance
    kept = torch.ones(reader.n_units, device=training.device)
    in_a_round = math.ceil(reader.n_units / _ROUNDS)
    for n_pruned in range(in_a_round, reader.n_units, in_a_round):
        fewer = torch.ones_like(kept)
        fewer[order[:n_pruned]] = 0
        _keep(reader, before, fewer)
        if training.accuracy(model) < least:
            break
        kept = fewer
    _keep(reader, before, kept)
    return kept.repeat_interleave(reader.inputs_a_unit)


def _keep(reader: Reader, weight: Tensor, kept: Tensor) -> None:
    with torch.no_grad():
        reader.layer.weight.copy_(weight * kept.repeat_interleave(reader.inputs_a_unit))


def activity(training: Training, model: nn.Module, reader: Reader) -> Tensor:
    """``(n_units,)``: mean absolute activation of each unit over the clean budget, places and tokens."""
    sums = torch.zeros(reader.n_units, device=training.device)
    n = 0

    def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal n
        values = given[0].float().abs().reshape(-1, reader.n_units, reader.inputs_a_unit)
        sums.add_(values.mean(2).sum(0))
        n += len(values)

    hook = reader.layer.register_forward_pre_hook(add)
    try:
        training.accuracy(model)
    finally:
        hook.remove()
    return sums / n
