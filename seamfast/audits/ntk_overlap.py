"""``overlap``: how much of the gradients of some samples is in the span of those of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.audits.kernel_space import multiply, noise_of
from seamfast.audits.ntk_subject import BATCH, Differentiated
from seamfast.checks import as_count, as_seed
from seamfast.engine.events import progress_bar
from seamfast.engine.tangent import Outputs

__all__ = ["Overlap", "overlap"]


@dataclass(frozen=True, eq=False)
class Overlap:
    """How much of the gradients of one set of samples is in the span of those of another.

    Attributes:
        cosines: falling, in [0, 1], of the principal angles between the leading gradients of both: 1, a direction that
            both have.
        shared: of the leading gradients of ``others``, the share of their squared size that is in the span of those of
            ``inputs``, in [0, 1].
        rank: of directions of each set.
        is_whole: whether these are all directions, so that nothing was left out.
    """

    cosines: tuple[float, ...]
    shared: float
    rank: int
    is_whole: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"cosines": list(self.cosines), "shared": self.shared, "rank": self.rank, "is_whole": self.is_whole}


def overlap(
    model: nn.Module,
    inputs: Any,
    others: Any,
    *,
    rank: int = 16,
    trainable: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Overlap:
    """``torch.linalg.svdvals(solve(L_S, K_ST) @ inv(L_T).T)`` with ``K_SS = L_S @ L_S.T``, ``K_TT = L_T @ L_T.T``.

    These are the cosines of the angles between the row spaces of the two Jacobians. With more pairs of a sample and a
    class than ``rank``, the spaces are those of about the ``rank`` leading eigenvectors of each kernel, found by one
    power iteration on random vectors; the Jacobians are not made.

    Args:
        model, trainable, batch_size, device: as for ``ntk_vector_product``.
        inputs: T, ``N`` samples as the model takes them, e.g. clean ones.
        others: S, ``M`` samples, e.g. triggered ones.
        rank: directions of each set, at least 1. It takes ``4 * rank`` backward passes and ``5 * rank`` forward ones.
        seed: of the random vectors, in ``[0, 2**63)``.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        Overlap.

    Raises:
        InputError: ``rank is 0; expected an integer of at least 1``.
        ModelError: as ``ntk_vector_product``.

    Source: Bjorck and Golub, "Numerical methods for computing angles between linear subspaces", 1973; the leading
        directions: Halko, Martinsson and Tropp, "Finding structure with randomness", 2011.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> round(overlap(model, torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])).shared, 6)
        0.5
    """
    rank, seed = as_count("rank", rank), as_seed(seed)
    subject = Differentiated.of(model, trainable, batch_size, device)
    train, probe = (subject.outputs(name, one, repeated=True) for name, one in (("inputs", inputs), ("others", others)))
    generator = torch.Generator().manual_seed(seed)
    with progress_bar("overlap", "product", 0, progress) as bar:
        of_train, of_probe = (_leading(outputs, rank, generator, bar.update) for outputs in (train, probe))
        of_cross = torch.empty(of_probe.shape[1], of_train.shape[1], dtype=torch.float64)
        kernels = []
        for vectors, outputs in ((of_train, train), (of_probe, probe)):
            columns = []
            for number, vector in enumerate(vectors.T):
                moved = outputs.gradient(vector.to(outputs.values).view_as(outputs.values))
                columns.append(outputs.change(moved).double().cpu().flatten())
                if outputs is train:
                    of_cross[:, number] = of_probe.T @ probe.change(moved).double().cpu().flatten()
                del moved  # as large as the model: before the next one is made
                bar.update()
            kernels.append(vectors.T @ torch.stack(columns, 1))
    half_train, half_probe = (_inverse_root(kernel, train) for kernel in kernels)
    cosines = torch.linalg.svdvals(half_probe.T @ of_cross @ half_train).clamp(0, 1)
    shared = float((of_cross @ half_train).square().sum() / kernels[1].trace())
    whole = of_train.shape[1] == train.values.numel() and of_probe.shape[1] == probe.values.numel()
    return Overlap(tuple(cosines.tolist()), min(shared, 1.0), min(of_train.shape[1], of_probe.shape[1]), whole)


def _leading(outputs: Outputs, rank: int, generator: torch.Generator, update: Callable[[], Any]) -> Tensor:
    """``(N * C, rank)`` orthonormal float64: about the leading eigenvectors of the kernel; all where that is all."""
    n = outputs.values.numel()
    if n <= rank:
        return torch.eye(n, dtype=torch.float64)
    drawn = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    columns = []
    for vector in drawn.T:
        columns.append(multiply(outputs, vector))
        update()
    leading: Tensor = torch.linalg.qr(torch.stack(columns, 1)).Q
    return leading


def _inverse_root(kernel: Tensor, outputs: Outputs) -> Tensor:
    """``W`` with ``W.T @ kernel @ W = eye``, of the directions that are no rounding errors."""
    values, vectors = torch.linalg.eigh((kernel + kernel.T) / 2)
    used = values > noise_of(values, outputs)
    root: Tensor = vectors[:, used] / values[used].sqrt()
    return root
