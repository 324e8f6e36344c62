"""Optimizers whose rates are tensors on the device, so that a replayed step reads the rate that the host last set.

``torch.optim`` has the same arithmetic, but importing it takes about a second (it imports the compiler), longer than
some runs, and it has one rate per group of tensors, while ``RelativeAdam`` has one per tensor.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

_FLOOR = 0.1
"""Least size of a tensor for its rate, as a share of the usual one: many biases and the second matrix of LoRA start at
0, and a relative rate would be 0. Of the matrices of 90 trained models (small CNNs, residual nets, EfficientNet-Lite0,
MiniLM) none is below 0.12 of its model's median."""
_EPSILON = 1e-8


class Optimizer(Protocol):
    """The interface of an optimizer to a training step."""

    @property
    def state(self) -> list[Tensor]:
        """All tensors that a step changes, except the weights; the same ones for every step."""

    def step(self, rate: Tensor) -> None:
        """Update the weights at the learning rate ``rate``, float32 0-d on the device, and drop the grads."""


class _Moments:
    """State of both kinds of Adam: the parameters, running moments of their gradients, the number of steps."""

    def __init__(self, model: nn.Module, betas: tuple[float, float]) -> None:
        self._parameters = _trained(model)
        self._betas = betas
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._count = torch.zeros((), device=self._parameters[0].device)

    @property
    def state(self) -> list[Tensor]:
        return [*self._means, *self._squares, self._count]

    def _update(
        self,
        parameters: list[Tensor],
        grads: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        rate: Tensor,
        weight_decay: float = 0.0,
    ) -> None:
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
            weight_decay=weight_decay,
            eps=_EPSILON,
            amsgrad=False,
            maximize=False,
        )


class Adam(_Moments):
    """``torch.optim.Adam``: absolute rates, weight decay added to the gradients.

    Args:
        model: its parameters that require grad are trained.
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
            self._update(parameters, grads, means, squares, rate, self._weight_decay)
        _forget_grads(self._parameters)


class RelativeAdam(_Moments):
    """``torch.optim.Adam`` with ``lr = rate * max(RMS(tensor as received), floor)`` for each tensor.

    A rate of 0.01 moves each weight by about 1 % of its tensor's typical size per step, at any scale of the
    architecture: suitable absolute rates differ between models by more than ten times, relative ones do not. The sizes
    are those of the weights as received, so the growth of a weight does not raise its rate.

    The floor is for tensors that are zero or nearly so. Of a vector (a bias, the gain of a norm) it is 0.1. A matrix
    multiplies its output by its gain, RMS times the root of its fan-in (the numbers that one output depends on): its
    floor is the RMS at which its gain is a tenth of the median over the matrices of the model that are not zero. So a
    matrix of zeros changes its output by a tenth as much as other matrices do, at any scale of the model.

    Args:
        model: its parameters that require grad are trained; all its matrices have a part in the median.
        betas: Adam's decay rates of the running moments.

    Source: relative step sizes, Shazeer and Stern, "Adafactor", arXiv:1804.04235, section 8.
    """

    def __init__(self, model: nn.Module, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(model, betas)
        gain = _median_gain(model)
        sizes = []
        for parameter in self._parameters:
            floor = gain.new_tensor(_FLOOR) if parameter.ndim < 2 else _FLOOR * gain / _root_of_fan_in(parameter)
            sizes.append(torch.maximum(_rms(parameter), floor))
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
            if parameter.grad is not None:
                self._update([parameter], [parameter.grad], [mean], [square], own_rate)
        _forget_grads(self._parameters)


class SGD:
    """``torch.optim.SGD`` with momentum: weight decay added to the gradients.

    Args:
        model: its parameters that require grad are trained.
        momentum: in [0, 1).
        weight_decay: at least 0.
        nesterov: use Nesterov's momentum.
    """

    def __init__(
        self, model: nn.Module, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        self._parameters = _trained(model)
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
                is_first_step=False,  # from velocities of 0, the first step is the gradient, as in PyTorch
            )
        _forget_grads(self._parameters)


def _trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad and p.numel()]


def _rms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor.detach().float()) / math.sqrt(tensor.numel())


def _root_of_fan_in(matrix: Tensor) -> float:
    return math.sqrt(matrix[0].numel())


def _median_gain(model: nn.Module) -> Tensor:
    """Median of RMS times the root of the fan-in over the matrices that are not zero; 1 if all are. 0-d float32."""
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p.numel() and p.is_floating_point()]
    if not matrices:
        return torch.ones((), device=next(model.parameters()).device)
    gains = torch.stack([_rms(p) * _root_of_fan_in(p) for p in matrices])
    gains = gains[gains > 0]
    return gains.median() if len(gains) else gains.new_ones(())


def _by_gradient(parameters: list[Tensor], *state: list[Tensor]) -> list[list[list[Tensor]]]:
    """Parameters with a gradient, their grads and state, as lists for a fused kernel; one group, or none."""
    rows = [[p, p.grad, *own] for p, *own in zip(parameters, *state, strict=True) if p.grad is not None]
    return [[list(column) for column in zip(*rows, strict=True)]] if rows else []


def _forget_grads(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
