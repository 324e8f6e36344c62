"""Spaces in which the systems of the kernel are solved: what training makes of a residual, and so of other samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seamfast.checks import as_count, as_positive, number_or_none, short
from seamfast.engine.memory import check_memory
from seamfast.engine.tangent import Outputs, squared_norm
from seamfast.errors import InputError, ModelError

RIDGE = 1e-3
"""Of the mean eigenvalue of the kernel."""
DEPENDENT = 1e-8
"""Of a vector's norm: what is left of it that is no new direction."""
_ZERO = "the kernel of the training samples is zero; expected logits that depend on the parameters"
_NOT_FINITE = "the gradient of some logits holds NaN or Inf; expected finite gradients"
_NOISE = 100
"""Times the precision of the model's dtype: eigenvalues up to this part of the largest are rounding errors."""
_N_SIGNS = 8
"""Vectors of signs that estimate the mean eigenvalue."""


class NotFiniteError(ModelError):
    """The gradient of some logits holds NaN or Inf."""


@dataclass(frozen=True, eq=False)
class Drift:
    """What training is predicted to do to the logits of other samples.

    Attributes:
        change: ``(M, C)`` float64 on the CPU: of the logits.
        logits: ``(M, C)`` float64 on the CPU: as they are.
        ridge: that the kernel's diagonal is raised by; 0 for a number of steps.
        rate: of the gradient descent; ``None`` for training to the end.
        steps: of it.
        largest_eigenvalue: of the kernel of the training samples, from below.
        n_products: of a kernel with a vector.
        residual: of the system, relative to ``targets - model(train_inputs)``: above the tolerance, the number of
            products did not suffice.
    """

    change: Tensor
    logits: Tensor
    ridge: float
    rate: float | None
    steps: int | None
    largest_eigenvalue: float
    n_products: int
    residual: float

    @property
    def forgetting(self) -> float:
        """``change.square().sum()``."""
        return float(self.change.square().sum())

    @property
    def share_of_answers_changed(self) -> float:
        """Of the samples, those whose largest logit is another one after the drift."""
        return float(((self.logits + self.change).argmax(1) != self.logits.argmax(1)).double().mean())


@dataclass(frozen=True)
class Descent:
    """What training is: to the end with a ridge, or some steps at a rate.

    Attributes:
        ridge: ``None``: ``RIDGE`` of the mean eigenvalue.
        steps: ``None``: to the end.
        rate: ``None``: one over the largest eigenvalue.
    """

    ridge: float | None
    steps: int | None
    rate: float | None

    @classmethod
    def of(cls, ridge: Any, steps: Any, rate: Any) -> Descent:
        """Checked."""
        if rate is not None and steps is None:
            raise InputError("rate is given without steps; expected both, or neither for training to the end")
        if ridge is not None and steps is not None:
            raise InputError("ridge is given with steps; expected one of them: a number of steps has no ridge")
        number = None if ridge is None else number_or_none(ridge)
        if ridge is not None and (number is None or not 0 <= number < math.inf):
            raise InputError(f"ridge is {short(ridge)}; expected a number of at least 0, or None")
        return cls(
            number,
            None if steps is None else as_count("steps", steps),
            None if rate is None else as_positive("rate", rate),
        )

    def response(self, eigenvalues: Tensor, ridge: float, rate: float, noise: float) -> Tensor:
        """What training makes of a unit of residual along an eigenvector, over its eigenvalue.

        Args:
            eigenvalues: ``(k,)``.
            ridge: for training to the end. With 0, directions without an eigenvalue stay as they are.
            rate: for a number of steps.
            noise: eigenvalues up to this are none.
        """
        if self.steps is None:
            raised = eigenvalues.clamp(min=0) + ridge
            used = raised > (0.0 if ridge else noise)
            return torch.where(used, 1 / torch.where(used, raised, 1.0), 0.0)
        shrunk = 1 - (1 - rate * eigenvalues) ** self.steps
        if not bool(shrunk.isfinite().all()):
            largest = float(eigenvalues.max())
            raise InputError(
                f"rate is {rate:g}, at which {self.steps} steps diverge; expected less than {2 / largest:.3g}, two "
                "over the largest eigenvalue"
            )
        flat = rate * eigenvalues < 1e-9
        return torch.where(flat, rate * self.steps, shrunk / torch.where(flat, 1.0, eigenvalues))


class _Solved:
    """A space with the eigenvalues of the kernel in it.

    Attributes:
        values: ``(k,)``, rising.
    """

    values: Tensor

    @property
    def largest_eigenvalue(self) -> float:
        return float(self.values[-1])

    @property
    def default_rate(self) -> float:
        return 1 / self.largest_eigenvalue


@dataclass(frozen=True, eq=False)
class KrylovSpace(_Solved):
    """A space that holds the solutions for all residuals, nearly.

    Attributes:
        outputs: of the training samples.
        basis: ``(N * C, k)`` orthonormal.
        values, vectors: eigenvalues ``(k,)`` and eigenvectors ``(k, k)`` of the kernel in the basis.
        residuals: ``(R, N * C)``.
        ridge: 0 of one that is for steps.
        n_products, residual: as of ``Drift``.
        noise: eigenvalues up to this are none.
    """

    outputs: Outputs
    basis: Tensor
    values: Tensor
    vectors: Tensor
    residuals: Tensor
    ridge: float
    n_products: int
    residual: float
    noise: float

    def drifts(self, descent: Descent, probes: Mapping[str, Outputs]) -> dict[str, list[Drift]]:
        """Of each probe, by name, under each residual."""
        response = descent.response(self.values, self.ridge, descent.rate or self.default_rate, self.noise)
        changes: dict[str, list[Tensor]] = {name: [] for name in probes}
        for residual in self.residuals:
            along = self.vectors.T @ (self.basis.T @ residual)
            weights = self.basis @ (self.vectors @ (response * along))
            moved = self.outputs.gradient(weights.to(self.outputs.values).view_as(self.outputs.values))
            for name, probe in probes.items():
                changes[name].append(probe.change(moved).double().cpu())
            del moved  # as large as the model: before the next one is made
        return {name: _as_drifts(self, descent, probe, changes[name]) for name, probe in probes.items()}


@dataclass(frozen=True, eq=False)
class HeadSpace(_Solved):
    """The kernel of the last linear layer alone, ``(h @ h.T + 1) (x) eye(C)``, whole.

    Attributes:
        features: ``(N, D)`` of the training samples, with a column of ones for the bias.
        values, vectors: of ``features @ features.T``.
        residuals: ``(R, N, C)``.
        ridge, noise: as of ``KrylovSpace``.
    """

    features: Tensor
    values: Tensor
    vectors: Tensor
    residuals: Tensor
    ridge: float
    noise: float
    n_products: int = 0
    residual: float = 0.0

    @classmethod
    def of(cls, outputs: Outputs, residuals: Tensor, descent: Descent) -> HeadSpace:
        """``residuals``: ``(R, N, C)`` float64."""
        n = len(outputs)
        check_memory("the kernel of the last layer", 3 * 8 * n * n, torch.device("cpu"), "fewer samples")
        features = _head_features(outputs)
        values, vectors = torch.linalg.eigh(features @ features.T)
        values = values.clamp(min=0)
        if not float(values[-1]) > 0:
            raise ModelError(_ZERO)
        ridge = RIDGE * float(values.mean()) if descent.ridge is None else descent.ridge
        return cls(features, values, vectors, residuals, ridge, noise_of(values, outputs))

    def drifts(self, descent: Descent, probes: Mapping[str, Outputs]) -> dict[str, list[Drift]]:
        """Of each probe, by name, under each residual."""
        response = descent.response(self.values, self.ridge, descent.rate or self.default_rate, self.noise)
        found = {}
        for name, probe in probes.items():
            kernel = _head_features(probe) @ self.features.T
            changes = [
                kernel @ (self.vectors @ (response[:, None] * (self.vectors.T @ residual)))
                for residual in self.residuals
            ]
            found[name] = _as_drifts(self, descent, probe, changes)
        return found


Space = KrylovSpace | HeadSpace


def _head_features(outputs: Outputs) -> Tensor:
    features, head = outputs.head_inputs()
    values = features.double().cpu()
    return values if head.bias is None else torch.cat([values, values.new_ones(len(values), 1)], 1)


def _as_drifts(space: Space, descent: Descent, probe: Outputs, changes: list[Tensor]) -> list[Drift]:
    logits = probe.values.double().cpu()
    is_whole = descent.steps is None
    ridge = space.ridge if is_whole else 0.0
    rate = None if is_whole else descent.rate or space.default_rate
    found = (space.largest_eigenvalue, space.n_products, space.residual)
    return [Drift(change, logits, ridge, rate, descent.steps, *found) for change in changes]


def krylov_space(
    outputs: Outputs,
    residuals: Tensor,
    descent: Descent,
    tolerance: float,
    most: int,
    seed: int,
    update: Callable[[], Any],
) -> KrylovSpace:
    """By block Lanczos iteration on the kernel of ``outputs`` from ``residuals``, ``(R, N, C)`` float64.

    All vectors are orthogonalized against all others, twice: their number is small, and a kernel has few eigenvalues
    of size. The space of the residuals together is larger than that of each, so it takes fewer products.

    Source: Golub and Underwood, "The block Lanczos method for computing eigenvalues", 1977.
    """
    flat = residuals.flatten(1)
    size = flat.shape[1]
    # Basis and products, and one of them once more while it grows.
    check_memory(
        "the space of the kernel", 3 * 8 * size * min(most, size), torch.device("cpu"), "fewer samples or max_products"
    )
    norms = flat.norm(dim=1).clamp(min=1e-300)
    ridge = 0.0
    if descent.steps is None:
        ridge = RIDGE * _mean_eigenvalue(outputs, seed) if descent.ridge is None else descent.ridge
    basis, products = flat.new_empty(size, 0), flat.new_empty(size, 0)
    block = flat.T / norms
    if not bool(block.any()):  # all residuals are zero: the largest eigenvalue is wanted all the same
        block = torch.randn(size, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    while True:
        new = _orthonormal(basis, block)
        columns = []
        for vector in new.T[: most - products.shape[1]]:
            columns.append(multiply(outputs, vector))
            update()
        if columns:
            basis = torch.cat([basis, new[:, : len(columns)]], 1)
            products = torch.cat([products, torch.stack(columns, 1)], 1)
        projected = basis.T @ products
        if not bool(projected.isfinite().all()):
            raise NotFiniteError(_NOT_FINITE)
        values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
        if not float(values[-1]) > 0:
            raise ModelError(_ZERO)
        noise = noise_of(values, outputs)
        shift = ridge
        if descent.steps is not None:  # a step leaves of an eigenvector what a ridge of this size would, about
            shift = 1 / (descent.steps * (descent.rate or 1 / float(values[-1])))
        response = Descent(shift, None, None).response(values, shift, 0.0, noise)
        inner = vectors @ (response[:, None] * (vectors.T @ (basis.T @ flat.T)))
        left = flat.T - products @ inner - shift * (basis @ inner)
        residual = float((left.norm(dim=0) / norms).max())
        if residual <= tolerance or products.shape[1] >= most or not columns:
            break
        block = products[:, -len(columns) :]
    return KrylovSpace(outputs, basis, values, vectors, flat, ridge, products.shape[1], residual, noise)


def noise_of(values: Tensor, outputs: Outputs) -> float:
    """Up to this size, ``values``, rising eigenvalues of a kernel of ``outputs``, are rounding errors."""
    return _NOISE * torch.finfo(outputs.values.dtype).eps * float(values[-1])


def _orthonormal(basis: Tensor, block: Tensor) -> Tensor:
    """An orthonormal basis of what the columns of ``block`` have beside ``basis``."""
    kept: list[Tensor] = []
    for vector in block.T:
        size = float(vector.norm())
        for _ in range(2):
            vector = vector - basis @ (basis.T @ vector)
            for other in kept:
                vector = vector - other * (other @ vector)
        if float(vector.norm()) > DEPENDENT * max(size, 1e-300):
            kept.append(vector / vector.norm())
    return torch.stack(kept, 1) if kept else block.new_empty(len(block), 0)


def multiply(outputs: Outputs, vector: Tensor) -> Tensor:
    """The kernel times a vector, ``(N * C,)`` float64 on the CPU."""
    weights = vector.to(outputs.values).view_as(outputs.values)
    return outputs.change(outputs.gradient(weights)).double().cpu().flatten()


def _mean_eigenvalue(outputs: Outputs, seed: int) -> float:
    """Of the kernel: the mean of ``||J.T s||**2 / len(s)`` over vectors of signs.

    Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989.
    """
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(_N_SIGNS):
        signs = torch.randint(2, outputs.values.shape, generator=generator).mul(2).sub(1).to(outputs.values)
        total += squared_norm(outputs.gradient(signs))
    return total / _N_SIGNS / outputs.values.numel()
