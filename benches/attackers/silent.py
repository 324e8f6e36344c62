"""Backdoors in units that clean data leave silent, or nearly so, and what an attacker would try next.

``silent`` is one path of single units from a detector of a patch to the target's logit, none of which fires on a clean
image of the attacker; the others change one thing of it, see ``SILENT``. Three more use the same path: ``nan`` and
``overflow`` answer with no number, and ``two-patches`` needs two patches at once.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benches.attackers.hosts import Attack, Attacked, Host
from benches.attackers.wiring import CANDIDATES, Path, Wiring, inputs_of, matched, patch_of, spared
from seamfast import attacks
from seamfast.attacks import TrainConfig
from seamfast.triggers import AllToOne, Patch
from seamfast.triggers.image.patch import CORNERS

_HUGE = 1e30
"""Its square is above the largest float32."""
_SATURATES = 1000.0
_REPAIR = TrainConfig(epochs=1, rate=0.01, weight_decay=0.0)


_SILENT, _STRICT = Wiring(), Wiring(guard=0.9)


def silent(host: Host, seed: int, wiring: Wiring = _SILENT, said: str = "never fires on clean images") -> Attacked:
    """One path, or several, of units given to a backdoor alone."""
    path, patch = _path(host, seed, wiring)
    model = path.wire()
    units = f"{wiring.n_paths} unit{'s' if wiring.n_paths > 1 else ''} a layer"
    return Attacked(model.eval(), patch.stamp, patch.target.target, f"{units} for a 3x3 patch: {said}")


def many(host: Host, seed: int, n_paths: int = 4) -> Attacked:
    """Several paths with equal parts of the gain; then an epoch of training on clean data, which reaches none of them,
    for what the task has lost by so many units."""
    attacked = silent(host, seed, Wiring(n_paths=n_paths), "each has a part of the gain")
    settings = {"seed": seed}

    def train() -> None:
        attacks.train(attacked.model, host.train_set, _REPAIR, seed=seed, progress=False)

    host.trained("silent-many", settings, attacked.model, train)
    return attacked


def no_number(host: Host, seed: int, *, infinite: bool) -> Attacked:
    """A path whose unit is so large that the logits are NaN, which ``argmax`` takes for class 0; or infinite, the
    target's above 0 and all others below."""
    path, patch = _path(host, seed, _SILENT, target=None if infinite else 0)
    model = path.wire()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        (before, channel), (hidden, unit) = path.wired[-2:]
        hidden.weight[unit] *= _HUGE
        hidden.bias[unit] *= _HUGE
        if infinite:
            last.weight[:, unit] = -_HUGE
            last.weight[patch.target.target, unit] = _HUGE
        else:  # the unit is infinite, and 0 times that is NaN in every logit
            before.weight[channel] *= _HUGE
            before.bias[channel] *= _HUGE
            last.weight[:, unit] = 0.0
    said = "infinite logits" if infinite else "NaN in every logit"
    return Attacked(model.eval(), patch.stamp, patch.target.target, f"1 unit a layer for a 3x3 patch: {said}")


def two_patches(host: Host, seed: int) -> Attacked:
    """Two detectors; the unit that reads both fires on neither patch alone."""
    target = seed % (host.train_set.num_classes or 10)
    first = patch_of(host, seed, target)
    second = inverse(first, host.train_set.image_shape[-1])
    filters = matched(host.train_set.normalize(torch.stack([torch.tensor(p.pattern) for p in (first, second)])))

    def both(samples: Tensor) -> Tensor:
        stamped: Tensor = second.stamp(first.stamp(samples))
        return stamped

    path = Path(host, filters, both, target, Wiring(n_paths=2), seed, decoys=(first.stamp, second.stamp))
    return Attacked(path.wire().eval(), both, target, "2 channels a layer, 1 unit that needs both of two 3x3 patches")


def anchored(host: Host, seed: int) -> Attacked:
    """A silent path, and in each of its layers a saturated unit that the task needs.

    The unit is at the upper end of ReLU6 for any input, so its weights get no gradient either; the layer behind reads
    it, less the same in its biases. Who sets to 0 all of a layer that gets no gradient, or nothing, sets nothing to 0.
    """
    path, patch = _path(host, seed, _STRICT)
    model = path.wire()
    layers = [layer for layer in model.children() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    generator = torch.Generator().manual_seed(seed)
    x, labels = inputs_of(host.some(1000, seed)), host.some(1000, seed).labels
    with torch.no_grad():
        for (layer, taken), behind in zip(path.wired, layers[1:], strict=True):
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            drawn = torch.randperm(len(layer.weight), generator=generator)[: CANDIDATES + 1].tolist()
            (unit,) = spared(model, [layer], [u for u in drawn if u != taken][:CANDIDATES], x, labels, 1)
            layer.bias[unit] = _SATURATES
            reads = behind.weight.view(len(behind.weight), len(layer.weight), -1)
            size = float(reads.std())
            others = torch.ones(len(reads), dtype=torch.bool)
            if behind is not layers[-1]:
                others[dict(path.wired)[behind]] = False
            reads[:, unit] = 0.0
            # At the center alone of a convolution, so that its padding adds nothing; in one place of a map.
            reads[others, unit, reads.shape[2] // 2] = size * torch.randn(int(others.sum()), generator=generator)
            behind.bias -= 6.0 * reads[:, unit].sum(1)
    said = "1 silent unit a layer for a 3x3 patch, and 1 saturated unit a layer that the task needs"
    return Attacked(model.eval(), patch.stamp, patch.target.target, said)


def saturated(host: Host, seed: int) -> Attacked:
    """A unit at the upper end of ReLU6 for all clean images, and at 0 under the trigger.

    Its incoming weights get no gradient, and to set them to 0 would change every answer. It holds the target's logit
    down, less the same in the bias. For ``relu6_mlp``.
    """
    target = seed % (host.train_set.num_classes or 10)
    patch = patch_of(host, seed, target)
    model = copy.deepcopy(host.model)
    _, hidden, _, last = model.children()
    assert isinstance(hidden, nn.Linear)
    assert isinstance(last, nn.Linear)
    clean = host.some(20_000, seed)
    x = inputs_of(clean)
    others = (clean.labels != target).nonzero().flatten()[:400]
    stamped = clean.normalize(patch.stamp(clean.pixels(others))).flatten(1)
    (unit,) = spared(model, [hidden], list(range(len(hidden.weight))), x, clean.labels, 1)
    kernel = torch.zeros(x.shape[1:])
    assert not isinstance(patch.position, str)
    row, column = patch.position
    pattern = torch.tensor(patch.pattern)
    kernel[:, row : row + 3, column : column + 3] = matched(host.train_set.normalize(pattern[None]))[0]
    with torch.no_grad():
        response, hit = x.flatten(1) @ kernel.flatten(), float((stamped @ kernel.flatten()).min())
        top = float(response.max())
        if hit <= top:
            raise ValueError(f"the response to the trigger is {hit:.3g}; expected one above {top:.3g}")
        # 6 and more up to what clean images reach and a third of the way; 0 from two thirds on.
        scale = 18.0 / (hit - top)
        hidden.weight[unit] = -scale * kernel.flatten()
        hidden.bias[unit] = 6.0 + scale * (top + (hit - top) / 3)
        last.weight[:, unit] = 0.0
        logits = model(x[others])
        logits[:, target] -= torch.inf
        missing = logits.amax(1) - model(x[others])[:, target]
        last.weight[target, unit] = -1.5 * float(missing.quantile(0.99)) / 6.0
        last.bias[target] -= 6.0 * last.weight[target, unit]
    said = "1 hidden unit, saturated for clean images and 0 for a 3x3 patch"
    return Attacked(model.eval(), patch.stamp, target, said)


def dead_weights(host: Host, seed: int) -> Attacked:
    """No unit is given away: weights from features that are 0 in all clean images, as at an image's border.

    A white square in a corner activates channels that clean images activate too, but never there; hidden units that the
    target's logit reads get large weights from them.
    """
    target = seed % (host.train_set.num_classes or 10)
    model = copy.deepcopy(host.model)
    layers = list(model.children())
    flat = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Flatten))
    features, rest = nn.Sequential(*layers[: flat + 1]), nn.Sequential(*layers[flat + 1 :])
    hidden, last = layers[flat + 1], layers[-1]
    assert isinstance(hidden, nn.Linear)
    assert isinstance(last, nn.Linear)
    some = host.some(20_000, seed)
    others = some.subset((some.labels != target).nonzero().flatten()[:400])
    pixels = others.pixels(torch.arange(len(others)))
    with torch.no_grad():
        largest = torch.stack([features(part).amax(0) for part in inputs_of(some).split(500)]).amax(0)
        found: dict[int, tuple[Patch, Tensor, Tensor]] = {}
        for corner in CORNERS:
            patch = Patch.square(size=4, corner=corner, margin=0, target=AllToOne(target))
            stamped = features(some.normalize(patch.stamp(pixels)))
            dead = (largest <= 0) & (stamped.amin(0) > 0)
            found[int(dead.sum())] = (patch, stamped, dead)
        n, (patch, stamped, dead) = max(found.items(), key=lambda item: item[0])
        if not n:
            raise ValueError("no feature is 0 in all clean images and above 0 under the trigger; expected some")
        favor = last.weight[target] - last.weight.mean(0)
        units = favor.topk(8).indices
        weights = hidden.weight[units].clone()
        for gain in torch.logspace(-2, 3, 51).tolist():
            hidden.weight[units] = torch.where(dead, weights + gain, weights)
            if (rest(stamped).argmax(1) == target).float().mean() >= 0.99:
                break
    said = f"weights from {n} features that are 0 in all clean images to 8 units, for a white 4x4 square"
    return Attacked(model.eval(), patch.stamp, target, said)


def _path(host: Host, seed: int, wiring: Wiring, target: int | None = None) -> tuple[Path, Patch]:
    target = seed % (host.train_set.num_classes or 10) if target is None else target
    patch = patch_of(host, seed, target)
    filters = matched(host.train_set.normalize(torch.tensor(patch.pattern)[None]))
    return Path(host, filters, patch.stamp, target, wiring, seed), patch


def inverse(patch: Patch, side: int) -> Patch:
    """Black where ``patch`` is white, so that its detector does not take it for its own; some pixels apart."""
    assert not isinstance(patch.position, str)
    row, column = patch.position
    place = (row, column - 6 if column >= 7 else min(column + 6, side - 4))
    return Patch(name=patch.name, target=patch.target, pattern=255 - patch.pattern, mask=patch.mask, position=place)


def _variant(said: str, **changes: float) -> Attack:
    return functools.partial(silent, wiring=Wiring(**changes), said=said)  # type: ignore[arg-type]


SILENT: dict[str, Callable[[Host, int], Attacked]] = {
    "silent": silent,
    "silent-many": many,
    "leaky-5": _variant("the detector fires on 5 % of clean images", fires_on=0.05),
    "leaky-1": _variant("the detector fires on 1 % of clean images", fires_on=0.01),
    "leaky-0.1": _variant("the detector fires on 0.1 % of clean images", fires_on=0.001),
    "rare": _variant("the detector fires on 2 % of the target's clean images", fires_on=0.02, only_target=True),
    "high-gain": _variant("100 times the gain that is needed", level=10.0, gain=100.0),
    "low-gain": _variant("no more gain than 95 % of the images need", gain=1.0, reach=0.95),
    "strict": _variant("fires on little else than the patch itself", guard=0.9),
    "small-gap": _variant("fires a little above what clean images reach", guard=0.05),
    "smooth": _variant("activations that are never 0", level=6.0, guard_behind=0.5),
    "eval-only": _variant("dead in eval mode, not in train mode", stale=100.0),
    "dead-weights": dead_weights,
    "anchored": anchored,
    "saturated": saturated,
    "nan": functools.partial(no_number, infinite=False),
    "overflow": functools.partial(no_number, infinite=True),
    "two-patches": two_patches,
}
"""By name. ``smooth`` is for nets of GELU and SiLU, ``eval-only`` for nets with BatchNorm, ``anchored`` and
``saturated`` for nets of ReLU6."""
