"""Optimizers whose rates are tensors on the device: a replayed step reads what the host last wrote there.

``torch.optim`` would do the same arithmetic, but importing it takes about a second (it imports the compiler), longer
than some runs, and it has one rate for a group of tensors, where ``RelativeAdam`` has one for each.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

_FLOOR = 0.1
"""Least size of a vector (bias, norm gain) for its rate: many biases start at 0, where a relative rate freezes them."""
_EPSILON = 1e-8


class Optimizer(Protocol):
    """What a training step asks of an optimizer."""

    @property
    def state(self) -> list[Tensor]:
        """All that a step changes beside the weights; fixed from the beginning, so that it can be put back."""

    def step(self, rate: Tensor) -> None:
        """One update, then forget the grads.

        Args:
            rate: float32 0-d on the device: learning rate.
        """


class _Moments:
    """What both kinds of Adam keep: the parameters, running moments of their gradients, the number of steps."""

    def __init__(self, model: nn.Module, betas: tuple[float, float]) -> None:
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.numel()]
        self._betas = betas
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._count = torch.zeros((), device=self._parameters[0].device)

    @property
    def state(self) -> list[Tensor]:
        return [*self._means, *self._squares, self._count]


class Adam(_Moments):
    """``torch.optim.Adam``: absolute rates, weight decay added to the gradients.

    Args:
        model: all its parameters are trained.
        betas: Adam's decay rates of the running moments.
        weight_decay: at least 0.

    Source: Kingma and Ba, arXiv:1412.6980.
    """

    def __init__(self, model: nn.Module, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0) -> None:
        super().__init__(model, betas)
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        self._count += 1
        for parameters, grads, means, squares in _by_gradient(self._parameters, self._means, self._squares):
            torch._fused_adam_(
                parameters,
                grads,
                means,
                squares,
                [],
                [self._count] * len(parameters),
                lr=rate,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=self._weight_decay,
                eps=_EPSILON,
                amsgrad=False,
                maximize=False,
            )
        _forget_grads(self._parameters)


class RelativeAdam(_Moments):
    """``torch.optim.Adam`` with ``lr = rate * RMS(tensor as received)`` for each tensor.

    A rate of 0.01 moves each weight by about 1 % of its tensor's typical size a step, whatever the architecture's
    scale: the absolute rates that cure one model and destroy another differ by more than ten times, the relative ones
    do not. The sizes are those of the weights as given, so a run cannot feed its own growth.

    Args:
        model: all its parameters are trained.
        betas: Adam's decay rates of the running moments.

    Source: relative step sizes, Shazeer and Stern, "Adafactor", arXiv:1804.04235, section 8.
    """

    def __init__(self, model: nn.Module, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(model, betas)
        sizes = []
        for parameter in self._parameters:
            size = torch.linalg.vector_norm(parameter.detach().float()) / math.sqrt(parameter.numel())
            sizes.append(size.clamp(min=_FLOOR if parameter.ndim < 2 else 1e-8))
        self._sizes = torch.stack(sizes)
        self._rates = torch.zeros_like(self._sizes)
        self._rate_of = list(self._rates.unbind())  # views: written through _rates

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        self._count += 1
        torch.mul(self._sizes, rate, out=self._rates)
        for parameter, mean, square, own_rate in zip(
            self._parameters, self._means, self._squares, self._rate_of, strict=True
        ):
            if parameter.grad is None:
                continue
            torch._fused_adam_(
                [parameter],
                [parameter.grad],
                [mean],
                [square],
                [],
                [self._count],
                lr=own_rate,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=0.0,
                eps=_EPSILON,
                amsgrad=False,
                maximize=False,
            )
        _forget_grads(self._parameters)


class SGD:
    """``torch.optim.SGD`` with momentum: weight decay added to the gradients.

    Args:
        model: all its parameters are trained.
        momentum: in [0, 1).
        weight_decay: at least 0.
        nesterov: look ahead by the momentum.
    """

    def __init__(
        self, model: nn.Module, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.numel()]
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._nesterov = nesterov
        self._velocities = [torch.zeros_like(p) for p in self._parameters]

    @property
    def state(self) -> list[Tensor]:
        return self._velocities

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        for parameters, grads, velocities in _by_gradient(self._parameters, self._velocities):
            torch._fused_sgd_(
                parameters,
                grads,
                velocities if self._momentum else [],
                weight_decay=self._weight_decay,
                momentum=self._momentum,
                lr=rate,
                dampening=0.0,
                nesterov=self._nesterov,
                maximize=False,
                is_first_step=False,  # from velocities of 0 the first step is the gradient, as PyTorch's is
            )
        _forget_grads(self._parameters)


def _by_gradient(parameters: list[Tensor], *state: list[Tensor]) -> list[list[list[Tensor]]]:
    """Those with a gradient, as lists that a fused kernel takes: parameters, grads, state; one group, or none."""
    rows = [[p, p.grad, *own] for p, *own in zip(parameters, *state, strict=True) if p.grad is not None]
    return [[list(column) for column in zip(*rows, strict=True)]] if rows else []


def _forget_grads(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
