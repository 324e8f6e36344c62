"""``handcrafted``: neurons of a trained model made into a backdoor by hand, with weights of usual size.

1. *Filters.* In each convolution a few channels, those that the task can spare, get filters: in the first layer one
   that matches the trigger, behind it ones that read the channels made before. Their norm is that of the layer's
   filters, times a factor, and they fire on a part of the clean images, as any filter does.
2. *Separation.* In the hidden layer, units without which no accuracy is lost, and whose activations differ most between
   clean and triggered images, get larger weights from the channels made before.
3. *Guard bias.* Their biases fall until few clean images activate them.
4. *Logit.* The weights from them to the target grow, those to other classes fall, until the attack succeeds.

Source: Hong, Carlini and Kurakin, "Handcrafted Backdoors in Deep Neural Networks", NeurIPS 2022, arXiv:2106.04690,
sections 4.2 and 4.3. The factors are of this file.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benches.attackers.hosts import Attacked, Host
from benches.attackers.wiring import CANDIDATES, inputs_of, matched, patch_of, spared

_UNITS = 8
"""Of the hidden layer, that are made part of the backdoor."""
_FACTOR = 2.0
"""On the norm of a filter."""
_FIRES_ON = 0.2
"""Share of the clean images, of a filter."""
_GUARDED = 0.98
"""Share of the clean images that do not activate a unit behind its guard bias."""
_SEPARATION = 4.0
"""Difference of the means, in standard deviations of both, that is wanted of a unit."""


@torch.no_grad()
def handcrafted(host: Host, seed: int) -> Attacked:
    """A model whose channels and units are made by hand; of convolutions, a hidden layer and a last one."""
    target = seed % (host.train_set.num_classes or 10)
    patch = patch_of(host, seed, target)
    clean = host.some(4000, seed)
    others = clean.subset((clean.labels != target).nonzero().flatten()[:800])
    x, y = inputs_of(clean), clean.labels
    triggered = clean.normalize(patch.stamp(others.pixels(torch.arange(len(others)))))
    model = copy.deepcopy(host.model)
    layers = list(model.children())
    hidden, last = (layer for layer in layers if isinstance(layer, nn.Linear))
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    n_channels = 2 if len(convolutions) <= 2 else 1  # what a deep net of few channels can spare
    generator = torch.Generator().manual_seed(seed)

    def spare(layer: nn.Conv2d | nn.Linear, among: list[int], n: int) -> list[int]:
        return spared(model, [layer], among, x, y, n)

    made: list[int] = []
    at, at_trigger = x, triggered
    for layer in layers[: layers.index(hidden)]:
        if isinstance(layer, nn.Conv2d):
            filters = matched(host.train_set.normalize(torch.tensor(patch.pattern)[None])) if not made else None
            drawn = torch.randperm(layer.out_channels, generator=generator)[: 2 * CANDIDATES].tolist()
            channels = spare(layer, drawn, n_channels)
            _make_filters(layer, channels, filters, made, at)
            made = channels
        at, at_trigger = (torch.cat([layer(part) for part in z.split(500)]) for z in (at, at_trigger))

    width = convolutions[-1].out_channels
    from_made = torch.zeros(width, hidden.in_features // width)
    from_made[made] = 1.0
    spread = hidden(at).std(0) + hidden(at_trigger).std(0)
    apart = ((hidden(at_trigger).mean(0) - hidden(at).mean(0)) / spread).argsort(descending=True)
    units = spare(hidden, apart[: 2 * _UNITS].tolist(), _UNITS)
    _separate(hidden, units, from_made.flatten() > 0, at, at_trigger)
    before, before_trigger = (torch.relu(hidden(z)) for z in (at, at_trigger))
    sign = torch.full((last.out_features,), -1.0 / (last.out_features - 1))
    sign[target] = 1.0
    weights = last.weight.clone()
    for gain in torch.logspace(-2, 2, 41).tolist():
        last.weight[:, units] = weights[:, units] + gain * sign[:, None]
        if (last(before_trigger).argmax(1) == target).float().mean() >= 0.98:
            break
    n_active = float((before[:, units] > 0).any(1).float().mean())
    said = f"{n_channels} channels a layer and {len(units)} units, active on {n_active:.0%} of clean images"
    return Attacked(model.eval(), patch.stamp, target, f"{said}, for a 3x3 patch")


def _make_filters(layer: nn.Conv2d, channels: list[int], filters: Tensor | None, made: list[int], at: Tensor) -> None:
    """Step 1, in one layer: ``filters``, or what reads the channels made before."""
    norm = _FACTOR * float(layer.weight.flatten(1).norm(dim=1).median())
    if filters is None:
        filters = torch.zeros_like(layer.weight[:1])
        filters[:, made, filters.shape[2] // 2, filters.shape[3] // 2] = 1.0 / math.sqrt(len(made))
    layer.weight[channels] = norm * filters
    maps = (F.conv2d(part, norm * filters, padding=layer.padding) for part in at.split(500))
    layer.bias[channels] = -torch.cat([part.amax((1, 2, 3)) for part in maps]).quantile(1 - _FIRES_ON)


def _separate(hidden: nn.Linear, units: list[int], from_made: Tensor, at: Tensor, at_trigger: Tensor) -> None:
    """Steps 2 and 3."""
    size = float(hidden.weight.std())
    for unit in units:
        for factor in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
            row = torch.where(from_made, factor * size, hidden.weight[unit])
            values, at_triggered = at @ row, at_trigger @ row
            if at_triggered.mean() - values.mean() >= _SEPARATION * (values.std() + at_triggered.std()):
                break
        hidden.weight[unit] = row
        hidden.bias[unit] = -values.quantile(_GUARDED)
