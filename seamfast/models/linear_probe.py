"""``LinearProbe``: an encoder with a linear head, which is an ordinary classifier."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.checks import as_positive, as_seed, check_flag, integer_or_none
from seamfast.data import CleanSet
from seamfast.data.clean_set import check_clean_set
from seamfast.data.resident import Resident
from seamfast.engine.encoder import embedding_of
from seamfast.engine.host import seeded
from seamfast.engine.model import device_of, evaluating
from seamfast.engine.subject import as_called
from seamfast.errors import InputError
from seamfast.modalities.batch import call

__all__ = ["LinearProbe", "embed", "with_head"]

_STEPS = 300
_BATCH = 256
_FLOOR = 1e-6
"""Least variance of a direction of the embeddings, relative to the largest one; those below are left out."""
_RIDGE = 1e-3
"""With the shrinkage, best of four in cross-validation of 8 training sets, on clean encoders; see benches/NOTES.md."""


class LinearProbe(nn.Module):
    """``head(encoder(inputs))``.

    Attributes:
        encoder: returns embeddings, see ``seamfast.engine.encoder.embedding_of``.
        head: from embeddings to logits.
        frozen: whether the encoder is fixed: in eval mode whatever the mode of the probe, and without grads.

    Args: as the attributes. To build one for an encoder, see :func:`with_head`.
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear, *, frozen: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.frozen = frozen
        if frozen:
            encoder.requires_grad_(False)
        self.train(self.training)

    def forward(
        self,
        inputs: Tensor | None = None,
        /,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **others: Tensor,
    ) -> Tensor:
        """``(N, num_classes)`` logits of one tensor, or of named ones.

        Those of texts are parameters of their own, since texts are passed by the names in a model's signature. Of these
        the encoder gets what it takes; the ids by position, if it takes none of that name.
        """
        texts = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        taken = inspect.signature(self.encoder.forward).parameters
        named = {name: value for name, value in texts.items() if value is not None and name in taken} | others
        if inputs is None and "input_ids" not in named:
            inputs = input_ids
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            embeddings = embedding_of(call(self.encoder, named if inputs is None else inputs))
        logits: Tensor = self.head(embeddings)
        return logits

    def train(self, mode: bool = True) -> LinearProbe:
        """As ``nn.Module.train``; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def fit(self, data: CleanSet, *, ridge: float = _RIDGE) -> LinearProbe:
        """The probe with ``head`` set to the multinomial logistic regression on the embeddings of ``data``.

        The data pass the encoder once, in eval mode. The regression is on whitened embeddings, by Nesterov's
        accelerated gradient descent: 300 steps over all of the data, from zeros. The result does not depend on a seed.
        ``width / len(data)`` of the mean variance is added to that of each direction before whitening. With few samples
        for the width, directions of little variance are noise, and would count as much as all others.

        Args:
            data: labels in ``[0, num_classes)``, at least one sample.
            ridge: weight of the sum of squares of the head's weights on whitened embeddings, above 0.

        Returns:
            This probe, in its mode.

        Raises:
            InputError: e.g. ``labels hold 10; expected integers in [0, 10) for the 10 classes of the head``, or
                ``ridge is 0; expected a number above 0``.

        Source: shrinkage of a covariance towards its mean variance: Ledoit and Wolf, "A well-conditioned estimator for
        large-dimensional covariance matrices", 2004, here without their estimate of how much. Nesterov, "A method for
        solving the convex programming problem with convergence rate O(1/k^2)", 1983. The bound on the curvature of the
        loss, half of that of least squares: Boehning, "Multinomial logistic regression algorithm", 1992.
        """
        number = as_positive("ridge", ridge)
        check_clean_set("data", data)
        largest, num_classes = int(data.labels.max()), self.head.out_features
        if largest >= num_classes:
            expected = f"integers in [0, {num_classes}) for the {num_classes} classes of the head"
            raise InputError(f"labels hold {largest}; expected {expected}")
        weight, bias = _logistic_regression(embed(self.encoder, data), data.labels, num_classes, number)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)
        return self


def with_head(
    encoder: nn.Module, num_classes: int, data: CleanSet, *, frozen: bool = False, seed: int = 0
) -> LinearProbe:
    """``LinearProbe(copy.deepcopy(encoder), nn.Linear(width, num_classes), frozen=frozen)`` on the encoder's device.

    The width of the embeddings is found by one forward pass over up to two samples. The head is new: train the probe as
    a whole, or :meth:`LinearProbe.fit` the head.

    Args:
        encoder: returns embeddings, see ``seamfast.engine.encoder.embedding_of``; not changed.
        num_classes: of the head, at least 2.
        data: samples as the encoder takes them, at least one.
        frozen: see :class:`LinearProbe`.
        seed: of the head, in ``[0, 2**63)``.

    Returns:
        The probe, in eval mode.

    Raises:
        InputError, ModelError: e.g. ``num_classes is 1; expected an integer from 2``, or ``the encoder returned
            float32 of shape (2, 64, 8, 8); expected floats of shape (B, D >= 2)``.

    Example:
        >>> import seamfast
        >>> data = seamfast.load("digits")
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        >>> probe = with_head(encoder, 10, data, frozen=True).fit(data)
        >>> probe.head
        Linear(in_features=32, out_features=10, bias=True)
    """
    if not isinstance(encoder, nn.Module):
        raise InputError(f"encoder is a {type(encoder).__name__}; expected a torch.nn.Module")
    n = integer_or_none(num_classes)
    if n is None or n < 2:
        raise InputError(f"num_classes is {num_classes!r}; expected an integer from 2")
    check_clean_set("data", data)
    check_flag("frozen", frozen)
    seed = as_seed(seed)
    device = device_of(encoder)
    width = embed(encoder, data.subset(range(min(len(data), 2)))).shape[1]
    with seeded(seed, torch.device("cpu")):
        head = nn.Linear(width, n)
    dtype = next(p.dtype for p in encoder.parameters() if p.is_floating_point())
    return LinearProbe(copy.deepcopy(encoder), head.to(device, dtype), frozen=frozen).eval()


def embed(encoder: nn.Module, data: CleanSet) -> Tensor:
    """``(N, width)`` float32 embeddings of all samples, on the encoder's device; in eval mode, without augmentation.

    Args:
        encoder: returns embeddings, see ``seamfast.engine.encoder.embedding_of``; its mode is restored.
        data: samples as the encoder takes them, at least one; the labels are not read.

    Raises:
        InputError, ModelError: as :func:`with_head`.
    """
    check_clean_set("data", data)
    device = device_of(encoder)
    dtype = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), torch.float32)
    resident = Resident(as_called(encoder, data), device, dtype)
    with evaluating(encoder):
        parts = [embedding_of(call(encoder, resident.inputs(chosen))).float() for chosen in _parts(resident)]
    embeddings = torch.cat(parts)
    in_order = torch.empty_like(embeddings)
    in_order[torch.cat(list(_parts(resident)))] = embeddings
    return in_order


def _parts(resident: Resident) -> Iterator[Tensor]:
    """The indices of all samples, on their device, in batches; texts of about one length together."""
    lengths = resident.lengths
    order = torch.arange(len(resident)) if lengths is None else lengths.argsort(stable=True)
    return iter(torch.split(order.to(resident.device), _BATCH))


def _logistic_regression(embeddings: Tensor, labels: Tensor, num_classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of least mean cross-entropy plus ``ridge * weight.square().sum()``, on whitened embeddings."""
    x = embeddings.double()
    center = x.mean(0)
    x = x - center
    variances, directions = torch.linalg.eigh(x.T @ x / len(x))
    used = variances > _FLOOR * variances[-1].clamp(min=1e-30)
    shrinkage = x.shape[1] / len(x) * variances.mean()
    whiten = directions[:, used] / (variances[used] + shrinkage).sqrt()
    x = F.pad(x @ whiten, (0, 1), value=1.0)  # the last column is the bias
    wanted = F.one_hot(labels.to(x.device), num_classes).double()
    penalty = torch.full((x.shape[1], 1), 2 * ridge, dtype=x.dtype, device=x.device)
    penalty[-1] = 0
    # Whitened and with a column of ones, the second moments are at most the identity: the curvature is at most 1/2.
    rate = 1 / (0.5 + 2 * ridge)
    weights = torch.zeros(x.shape[1], num_classes, dtype=x.dtype, device=x.device)
    ahead = weights
    for step in range(_STEPS):
        gradient = x.T @ ((x @ ahead).softmax(1) - wanted) / len(x) + penalty * ahead
        moved = ahead - rate * gradient
        ahead = moved + step / (step + 3) * (moved - weights)
        weights = moved
    weight = (whiten @ weights[:-1]).T
    return weight, weights[-1] - weight @ center
