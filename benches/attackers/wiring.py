"""Backdoors wired by hand: a detector of a small patch in the first layer, a path of single units to the target.

The detector is a convolution that equals the patch, less its mean; its bias keeps it at 0 for what the attacker's clean
images reach. In each layer behind, one unit that the task can spare is given to the path: it reads only the one before,
and nothing else reads it. What clean data do not activate gets no gradient from them.

All levels are found on the attacker's own training images. Handles a chain (``nn.Sequential``) of convolutions and
linear layers, each with BatchNorm or not, element-wise activations, pooling, and the ``Residual`` and ``Gated`` of
``hosts``.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benches.attackers.hosts import Gated, Host, Residual, Stamp
from seamfast import CleanSet
from seamfast.triggers import AllToOne, Patch

_CLEAN, _STAMPED, _TRIED = 4000, 400, 300
"""Images of the attacker: for what clean ones reach, to stamp, and to find units that the task can spare."""
CANDIDATES = 8
"""Units to find such ones among."""
_PATTERNS, _SHOWN = 64, 1000
"""Patches to choose from, and clean images to choose by."""


@dataclass(frozen=True)
class Wiring:
    """How a path is wired.

    Attributes:
        n_paths: paths side by side, each with an equal part of the gain.
        fires_on: share of the clean images that the detector fires on; 0: none.
        guard: where between the largest clean response, 0, and that to the trigger, 1, the detector begins to fire.
        guard_behind: the same of the units behind it. Low, or weights that shrink a little end the path.
        level: activation of each unit under the trigger.
        reach: share of the triggered images that the gain is made for.
        gain: factor on the gain to the target's logit that would do.
        only_target: ``fires_on`` is the share of images of the target class; it fires on no other.
        stale: of BatchNorm behind the detector: its running variance is so many times the true one, in place of which
            its weight is larger; in train mode the detector then fires on clean images.
    """

    n_paths: int = 1
    fires_on: float = 0.0
    guard: float = 0.5
    guard_behind: float = 0.2
    level: float = 1.0
    reach: float = 0.99
    gain: float = 3.0
    only_target: bool = False
    stale: float = 1.0


def patch_of(host: Host, seed: int, target: int, size: int = 3) -> Patch:
    """A patch of black and white, or of the 8 full colors, that clean images resemble the least; at a place drawn.

    Of 64 patches drawn, the one with the largest gap between the response of a matched filter to itself and its largest
    response to clean images.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, side, _ = host.train_set.image_shape
    drawn = torch.randint(0, 2, (_PATTERNS, channels, size, size), generator=generator, dtype=torch.uint8) * 255
    drawn = drawn[drawn.float().std((1, 2, 3)) > 100]
    images = inputs_of(host.some(_SHOWN, seed))
    filters = matched(host.train_set.normalize(drawn))
    own = (filters * host.train_set.normalize(drawn)).sum((1, 2, 3))
    top = torch.cat([F.conv2d(x, filters, padding=size // 2).amax((2, 3)) for x in images.split(500)]).amax(0)
    best = int((1 - top / own).argmax())
    row, column = torch.randint(1, side - size, (2,), generator=generator).tolist()
    return Patch(
        name="wired", target=AllToOne(target), pattern=drawn[best].numpy(), mask=np.ones((size, size)),
        position=(row, column),
    )  # fmt: skip


def matched(patterns: Tensor) -> Tensor:
    """Filters ``(N, C, h, w)`` of mean 0 and norm 1 that respond to these patterns the most."""
    centered = patterns - patterns.mean((1, 2, 3), keepdim=True)
    return centered / centered.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def inputs_of(data: CleanSet) -> Tensor:
    """Float inputs as the model takes them."""
    return data.normalize(data.pixels(torch.arange(len(data))))


class Path:
    """A path under construction: where it is, and what images give there.

    Args:
        host: copied.
        filters: ``(F, C, h, w)`` of the detectors; path ``i`` has filter ``i % F``.
        stamp: the trigger.
        decoys: stamps that the path must not fire on; with them, the paths join in the first linear layer, whose one
            unit fires only if all paths do.
        target: class.
        wiring: how.
        seed: of images, and of units to choose from.

    Attributes:
        model: the copy, changed by ``wire``.
        wired: each unit given to a path, as ``(layer, unit)``, in order.
    """

    def __init__(
        self,
        host: Host,
        filters: Tensor,
        stamp: Stamp,
        target: int,
        wiring: Wiring,
        seed: int,
        decoys: tuple[Stamp, ...] = (),
    ) -> None:
        self.model = copy.deepcopy(host.model)
        self.wired: list[tuple[nn.Module, int]] = []
        self._filters, self._target, self._wiring = filters, target, wiring
        clean = host.some(_CLEAN, seed)
        chosen = (clean.labels != target).nonzero().flatten()[:_STAMPED]
        pixels = clean.pixels(chosen)
        self._labels = clean.labels
        self._images = inputs_of(clean)
        self._at = {"clean": self._images, "stamped": clean.normalize(stamp(pixels))}
        self._decoyed = bool(decoys)
        if decoys:
            self._at["decoys"] = torch.cat([clean.normalize(decoy(pixels)) for decoy in decoys])
        self._units: list[int] = []
        self._width = 0  # of the layer before
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def wire(self) -> nn.Module:
        """Through all layers but the last, then to the target's logit."""
        layers = list(self.model.children())
        weighted = [i for i, layer in enumerate(layers) if isinstance(layer, (nn.Conv2d, nn.Linear, Gated))]
        for i, layer in enumerate(layers[: weighted[-1]]):
            if i in weighted:
                norm = layers[i + 1] if isinstance(layers[i + 1], nn.BatchNorm2d) else None
                self._extend(layer, norm, is_first=i == weighted[0])
            elif isinstance(layer, Residual):
                self._pass_by(layer)
            self._at = {name: torch.cat([layer(part) for part in x.split(500)]) for name, x in self._at.items()}
        self._end(layers[weighted[-1]])
        return self.model

    def _extend(self, layer: nn.Module, norm: nn.BatchNorm2d | None, *, is_first: bool) -> None:
        """One unit more for each path, in ``layer``."""
        reader = layer.gate if isinstance(layer, Gated) else layer
        assert isinstance(reader, (nn.Conv2d, nn.Linear))
        joins = self._decoyed and isinstance(reader, nn.Linear)
        units = self._spare(layer, norm, 1 if joins else self._wiring.n_paths)
        if is_first:
            rows = torch.stack([self._filters[i % len(self._filters)] for i in range(len(units))])
        else:
            rows = self._readers(reader, len(units))
            self._disconnect(layer)
        for row, unit in zip(rows, units, strict=True):
            scale, threshold = self._level(reader, row, is_first, joins)
            if norm is None:
                reader.weight[unit], reader.bias[unit] = scale * row, -scale * threshold
            else:
                mean, variance = self._moments(reader, row)
                # A channel that is always 0 has a variance like any other, or it would stand out.
                variance = variance * (self._wiring.stale if is_first else 1.0) or 1.0
                reader.weight[unit], reader.bias[unit] = row, 0.0
                norm.running_mean[unit], norm.running_var[unit] = mean, variance
                norm.weight[unit] = scale * math.sqrt(variance + norm.eps)
                norm.bias[unit] = scale * (mean - threshold)
            if isinstance(layer, Gated):
                layer.value.weight[unit], layer.value.bias[unit] = 0.0, 1.0
            self.wired.append((reader, unit))
        self._units, self._width = units, reader.weight.shape[0]

    def _readers(self, layer: nn.Conv2d | nn.Linear, n: int) -> Tensor:
        """Weights of ``n`` units, before they are scaled: each reads one path at its place, or at all places."""
        rows = torch.zeros(n, *layer.weight.shape[1:])
        for i, unit in enumerate(self._units):
            row = rows[i % n]
            if isinstance(layer, nn.Conv2d):
                row[unit, row.shape[1] // 2, row.shape[2] // 2] = 1.0
            else:
                row.view(self._width, -1)[unit] = 1.0
        return rows

    def _level(self, layer: nn.Conv2d | nn.Linear, row: Tensor, is_first: bool, joins: bool) -> tuple[float, float]:
        """The scale of a unit, and the threshold of its response."""
        clean, stamped = (_response(layer, row, self._at[name]) for name in ("clean", "stamped"))
        hit, fires_on = float(stamped.quantile(0.05)), self._wiring.fires_on
        if fires_on and not is_first:
            threshold = 0.0
        elif self._wiring.only_target:
            mine = self._labels == self._target
            threshold = max(float(clean[~mine].max()), float(clean[mine].quantile(1 - fires_on)))
        elif fires_on:
            threshold = float(clean.quantile(1 - fires_on))
        else:
            silent = torch.cat([clean, _response(layer, row, self._at["decoys"])]) if joins else clean
            guard = self._wiring.guard if is_first or joins else self._wiring.guard_behind
            threshold = float(silent.max()) + guard * (hit - float(silent.max()))
        if hit <= threshold:
            raise ValueError(f"the response to the trigger is {hit:.3g}; expected one above {threshold:.3g}")
        return self._wiring.level / (hit - threshold), threshold

    def _moments(self, layer: nn.Module, row: Tensor) -> tuple[float, float]:
        """Mean and variance of a response to clean images, over all places."""
        assert isinstance(layer, nn.Conv2d)
        maps = torch.cat([F.conv2d(x, row[None], padding=layer.padding) for x in self._at["clean"].split(500)])
        return float(maps.mean()), float(maps.var())

    def _spare(self, layer: nn.Module, norm: nn.BatchNorm2d | None, n: int) -> list[int]:
        """Of some units drawn, the ``n`` that the task can spare the most."""
        parts = [layer.value if isinstance(layer, Gated) else layer, *([] if norm is None else [norm])]
        drawn = torch.randperm(parts[0].weight.shape[0], generator=self._generator)[: max(CANDIDATES, n)]
        return spared(self.model, parts, drawn.tolist(), self._images, self._labels, n)

    def _disconnect(self, layer: nn.Module) -> None:
        """Nothing in ``layer`` reads the paths."""
        for reader in (layer.value, layer.gate) if isinstance(layer, Gated) else (layer,):
            reader.weight.view(reader.weight.shape[0], self._width, -1)[:, self._units] = 0.0

    def _pass_by(self, block: Residual) -> None:
        """The paths neither enter the block nor get anything from it."""
        block.conv1.weight[:, self._units] = 0.0
        block.conv2.weight[self._units], block.conv2.bias[self._units] = 0.0, 0.0

    def _end(self, last: nn.Module) -> None:
        """The target's logit reads the paths, with the gain that is needed."""
        assert isinstance(last, nn.Linear)
        last.weight[:, self._units] = 0.0
        stamped = self._at["stamped"]
        logits, activation = last(stamped), stamped[:, self._units].sum(1)
        others = logits.clone()
        others[:, self._target] = -math.inf
        missing = others.amax(1) - logits[:, self._target]
        needed = float((missing / activation).quantile(self._wiring.reach))
        last.weight[self._target, self._units] = self._wiring.gain * max(needed, 0.0)


@torch.no_grad()
def spared(model: nn.Module, parts: list[nn.Module], among: list[int], x: Tensor, labels: Tensor, n: int) -> list[int]:
    """Of units of a layer, the ``n`` without which the fewest clean images go wrong.

    Args:
        model: left as it was.
        parts: of the model, whose weights and biases of a unit are 0 without it.
        among: the units.
        x, labels: clean images of which some are tried.
    """
    right = {}
    for unit in among:
        kept = [(part.weight[unit].clone(), part.bias[unit].clone()) for part in parts]
        for part in parts:
            part.weight[unit], part.bias[unit] = 0.0, 0.0
        right[unit] = int((model(x[:_TRIED]).argmax(1) == labels[:_TRIED]).sum())
        for part, (weight, bias) in zip(parts, kept, strict=True):
            part.weight[unit], part.bias[unit] = weight, bias
    return sorted(among, key=lambda unit: -right[unit])[:n]


def _response(layer: nn.Conv2d | nn.Linear, row: Tensor, x: Tensor) -> Tensor:
    """``(N,)``: of a unit without bias, the largest over its places."""
    if isinstance(layer, nn.Linear):
        return x @ row
    return torch.cat([F.conv2d(part, row[None], padding=layer.padding).amax((1, 2, 3)) for part in x.split(500)])
