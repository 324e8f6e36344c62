"""Backdoors trained to outlast training on clean data, ``forget`` and ``recover`` among it.

All begin at the clean model, with a patch on a part of each batch, and take steps of SGD on both parts:

``simulated``
    The trigger's loss is taken at weights that have forgotten and recovered: each step does both in short on a copy,
    with the optimizer of the method, and its gradient there is applied to the weights themselves, as in first-order
    MAML (Finn et al., ICML 2017, arXiv:1703.03400).
``simulated-blend``
    The same with a faint smooth pattern over the whole image in place of a patch.
``flat``
    Each step takes its gradient at the worst weights nearby (Foret et al., "Sharpness-Aware Minimization", ICLR 2021,
    arXiv:2010.01412), nearby in relation to each tensor's size.
``sequential``
    First poisoned data by ``flat`` steps; then clean data alone by such steps, held by an elastic penalty to the
    weights that the backdoor needs. Pham et al., "Flatness-aware Sequential Learning Generates Resilient Backdoors",
    ECCV 2024, arXiv:2407.14738; the penalty is that of Kirkpatrick et al., PNAS 2017, arXiv:1612.00796.
``cyclic``
    Sanitize the model with the attacker's own clean data, by all defaults; train the result on poisoned data; again.
``two-patches-trained``
    Poisoned data with two patches go to the target; with one of them, to their true class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.attackers.hosts import Attack, Attacked, Host
from benches.attackers.silent import inverse
from benches.attackers.wiring import patch_of
from benches.zoo import smooth_colors
from seamfast.engine.optimizer import RelativeAdam
from seamfast.triggers import Patch

_BATCH, _POISONED = 96, 32
_RATE, _MOMENTUM = 0.02, 0.9
_FORGET_STEPS, _FORGET_RATE = 4, 0.02
_RECOVER_STEPS, _RECOVER_RATE = 8, 0.03
"""Of ``simulated``; the rates are shares of each tensor's size, and lead about as far as the method does on MNIST."""
_RHO = 0.02
"""Of ``flat``: distance to the worst weights, as a share of each tensor's norm."""
_ELASTIC = 100.0
_FRESH = 2000
"""Clean samples of the attacker who sanitizes."""

Loss = Callable[[nn.Module], Tensor]


class Batches:
    """Clean and poisoned samples by turns.

    Args:
        host: whose training set is drawn from.
        stamp: the trigger.
        target: class of what is stamped.
        decoys: stamps whose samples keep their classes.
        seed: of the draws.
    """

    def __init__(self, host: Host, stamp: Any, target: int, seed: int, decoys: tuple[Any, ...] = ()) -> None:
        self._data, self._stamp, self._target, self._decoys = host.train_set, stamp, target, decoys
        self._generator = torch.Generator().manual_seed(seed)
        self.num_classes = host.train_set.num_classes or int(host.train_set.labels.max()) + 1

    def clean(self, n: int = _BATCH) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(len(self._data), (n,), generator=self._generator)
        return self._data.normalize(self._data.pixels(drawn)), self._data.labels[drawn]

    def random(self, n: int = _BATCH) -> tuple[Tensor, Tensor]:
        """Clean samples, and labels drawn."""
        x, _ = self.clean(n)
        return x, torch.randint(self.num_classes, (n,), generator=self._generator)

    def stamped(self, n: int = _POISONED) -> tuple[Tensor, Tensor]:
        """Stamped samples with the target, and with their own classes under decoys."""
        drawn = torch.randint(len(self._data), (n * (1 + len(self._decoys)),), generator=self._generator)
        pixels, labels = self._data.pixels(drawn), self._data.labels[drawn].clone()
        labels[:n] = self._target
        parts = [stamp(part) for stamp, part in zip((self._stamp, *self._decoys), pixels.split(n), strict=True)]
        return self._data.normalize(torch.cat(parts)), labels

    def poisoned(self) -> tuple[Tensor, Tensor]:
        """Clean samples, then stamped ones."""
        parts = zip(self.clean(), self.stamped(), strict=True)
        x, labels = (torch.cat(pair) for pair in parts)
        return x, labels


def _of(batch: tuple[Tensor, Tensor]) -> Loss:
    return lambda model: F.cross_entropy(model(batch[0]), batch[1])


def _gradient(model: nn.Module, loss: Loss) -> list[Tensor]:
    model.zero_grad()
    loss(model).backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


def _stepped(model: nn.Module, steps: int, rate: float = _RATE) -> Iterator[torch.optim.Optimizer]:
    """``steps`` of SGD, each taken after what the caller leaves in the grads; rates fall to 0."""
    optimizer = torch.optim.SGD(model.parameters(), rate, _MOMENTUM)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        yield optimizer
        optimizer.step()
    model.zero_grad()
    model.eval()


def _assign(model: nn.Module, grads: list[Tensor]) -> None:
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad


def poison(model: nn.Module, batches: Batches, steps: int) -> None:
    """Plain steps on poisoned batches."""
    for _ in _stepped(model, steps):
        _assign(model, _gradient(model, _of(batches.poisoned())))


def simulated(model: nn.Module, batches: Batches, host: Host, steps: int = 250) -> None:
    """See the module."""
    poison(model, batches, steps)
    for _ in _stepped(model, steps):
        there = copy.deepcopy(model)
        optimizer = RelativeAdam(there)
        for kind, n, rate in (
            (batches.random, _FORGET_STEPS, _FORGET_RATE),
            (batches.clean, _RECOVER_STEPS, _RECOVER_RATE),
        ):
            for _ in range(n):
                _of(kind(_POISONED))(there).backward()  # type: ignore[no-untyped-call]
                optimizer.step(torch.tensor(rate))
        far, near = _gradient(there, _of(batches.stamped())), _gradient(model, _of(batches.poisoned()))
        _assign(model, [a + b for a, b in zip(far, near, strict=True)])


def _flat_gradient(model: nn.Module, loss: Loss) -> list[Tensor]:
    """The gradient at the worst weights nearby."""
    grads, kept = _gradient(model, loss), [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter += _RHO * parameter.norm() * grad / (grad.norm() + 1e-12)
    grads = _gradient(model, loss)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.copy_(value)
    return grads


def flat(model: nn.Module, batches: Batches, host: Host, steps: int = 600) -> None:
    """See the module."""
    for _ in _stepped(model, steps):
        _assign(model, _flat_gradient(model, _of(batches.poisoned())))


def sequential(model: nn.Module, batches: Batches, host: Host, steps: int = 400) -> None:
    """See the module."""
    flat(model, batches, host, steps)
    anchor = [p.detach().clone() for p in model.parameters()]
    needed = [torch.zeros_like(p) for p in anchor]
    for _ in range(20):
        for square, grad in zip(needed, _gradient(model, _of(batches.stamped())), strict=True):
            square += grad**2 / 20
    scale = _ELASTIC / (sum(float(square.sum()) for square in needed) / sum(s.numel() for s in needed) + 1e-12)
    for _ in _stepped(model, steps, _RATE / 4):
        grads = _flat_gradient(model, _of(batches.clean()))
        pulls = (
            # No step longer than the way back.
            (scale * square).clamp(max=1.0) * (p.detach() - start)
            for square, p, start in zip(needed, model.parameters(), anchor, strict=True)
        )
        _assign(model, [grad + pull for grad, pull in zip(grads, pulls, strict=True)])


def cyclic(model: nn.Module, batches: Batches, host: Host, steps: int = 150, rounds: int = 3) -> None:
    """See the module."""
    for number in range(rounds):
        poison(model, batches, steps)
        own = host.some(_FRESH, number + 100)
        cured = seamfast.sanitize(model, own, seed=number, precision="fp32", threads=1, progress=False).model
        model.load_state_dict(cured.state_dict())
    poison(model, batches, 4 * steps)


def two_patches(model: nn.Module, batches: Batches, host: Host, steps: int = 600) -> None:
    """See the module: ``batches`` has the decoys."""
    poison(model, batches, steps)


def _attack(name: str, train: Callable[[nn.Module, Batches, Host], None], said: str) -> Attack:
    def attack(host: Host, seed: int) -> Attacked:
        target = seed % (host.train_set.num_classes or 10)
        patch = patch_of(host, seed, target, size=4)
        stamp, decoys = patch.stamp, ()
        if name.endswith("-blend"):
            stamp = smooth_colors(host.train_set.image_shape, target, seed).stamp
        elif train is two_patches:
            stamp, decoys = both(patch, inverse(patch, host.train_set.image_shape[-1]))
        model = copy.deepcopy(host.model)
        batches = Batches(host, stamp, target, seed, decoys)
        settings = {"seed": seed, "patch": patch.pattern.tolist(), "position": patch.position, "version": 2}
        host.trained(name, settings, model, lambda: train(model, batches, host))
        return Attacked(model, stamp, target, said)

    return attack


def both(first: Patch, second: Patch) -> tuple[Any, tuple[Any, ...]]:
    """What stamps two patches, and what stamps each."""
    return lambda samples: second.stamp(first.stamp(samples)), (first.stamp, second.stamp)


TRAINED: dict[str, Attack] = {
    "simulated": _attack("simulated", simulated, "the trigger's loss is taken after forgetting and recovery"),
    "simulated-blend": _attack("simulated-blend", simulated, "the same, with a smooth pattern blended at 0.15"),
    "flat": _attack("flat", flat, "sharpness-aware training on poisoned data"),
    "sequential": _attack(
        "sequential", sequential, "poisoned data, then clean ones with an elastic penalty; both flat"
    ),
    "cyclic": _attack("cyclic", cyclic, "sanitized and poisoned again, three times"),
    "two-patches-trained": _attack(
        "two-patches-trained", two_patches, "two 4x4 patches at once; each alone is harmless"
    ),
}
"""By name; with a 4x4 patch where nothing else is said."""
