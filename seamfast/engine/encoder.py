"""Encoders: modules that return embeddings. Groups of samples stand in for the classes that they do not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.engine.model import evaluating
from seamfast.engine.precision import Precision
from seamfast.engine.subject import Subject
from seamfast.errors import ModelError
from seamfast.modalities.batch import call

_RIDGE = 1e-3
"""Of the squared weights of a probe, as a multiple of the number of samples; features have a variance of 1."""
_ROUNDS = 20
"""Of k-means."""
_SHARPNESS = 10.0
"""Logits of a probe, as a multiple of its answers: those are 0 or 1 where it is sure, and softmax needs more."""
_LEAST_SPREAD = 0.01
"""Of a feature, as a share of the mean spread: below it, differences are rounding errors."""


def embedding_of(output: Any) -> Tensor:
    """``(B, D)`` floats of an encoder's output.

    Args:
        output: a tensor ``(B, D)``, or ``(B, D, 1, ...)``; or an object or dict with ``embedding``, ``pooler_output``
            or ``last_hidden_state`` ``(B, L, D)``, of which the first token counts.

    Raises:
        ModelError: ``the encoder returned a tuple; expected embeddings: ...``.
    """
    found = output
    if not isinstance(output, Tensor):
        for name in ("embedding", "pooler_output", "last_hidden_state"):
            found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
            if isinstance(found, Tensor):
                found = found[:, 0] if name == "last_hidden_state" and found.ndim == 3 else found
                break
    if not isinstance(found, Tensor):
        raise ModelError(
            f"the encoder returned a {type(output).__name__}; expected embeddings: a tensor of shape (B, D), or an "
            "object or dict with 'embedding', 'pooler_output' or 'last_hidden_state'"
        )
    if found.ndim > 2 and found.shape[2:].numel() == 1:
        found = found.flatten(1)
    if found.ndim != 2 or found.shape[1] < 2 or not found.is_floating_point():
        raise ModelError(
            f"the encoder returned {str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}; "
            "expected floats of shape (B, D >= 2)"
        )
    return found


def grouped(embeddings: Tensor, n_groups: int, seed: int) -> Tensor:
    """``(N,)`` int64: k-means of the rows, with centers drawn as in k-means++; groups without a row are left out.

    Args:
        embeddings: ``(N, D)``, one scale for all columns.
        n_groups: at most so many groups, numbered from 0 by falling size.
        seed: of the first centers.

    Source: Arthur and Vassilvitskii, "k-means++", SODA 2007.
    """
    rows = embeddings.double()
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    distances = (rows - rows[chosen[0]]).square().sum(1)
    while len(chosen) < n_groups and bool(distances.max() > 0):
        chosen.append(int(torch.multinomial(distances.cpu(), 1, generator=generator)))
        distances = torch.minimum(distances, (rows - rows[chosen[-1]]).square().sum(1))
    centers = rows[chosen]
    for _ in range(_ROUNDS):
        group = torch.cdist(rows, centers).argmin(1)
        sums = torch.zeros_like(centers).index_add_(0, group, rows)
        sizes = group.bincount(minlength=len(centers)).unsqueeze(1)
        centers = torch.where(sizes > 0, sums / sizes.clamp(min=1), centers)
    group = torch.cdist(rows, centers).argmin(1)
    by_size = group.bincount(minlength=len(centers)).argsort(descending=True, stable=True)
    number = torch.empty_like(by_size)
    number[by_size] = torch.arange(len(by_size), device=by_size.device)
    return number[group]


class ProbedEncoder(nn.Module):
    """An encoder under a linear probe, whose logits are those of groups of samples.

    The probe is a buffer: no step trains it. It reads standardized embeddings, ``(z - center) / spread``, as the
    received encoder's are standardized.

    Args:
        encoder: returns embeddings; held, not copied.
        embeddings: ``(N, D)`` of the clean samples, as received.
        n_groups: of the probe's logits.
    """

    center: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: nn.Module, embeddings: Tensor, n_groups: int) -> None:
        super().__init__()
        self.encoder = encoder
        embeddings = embeddings.float()
        spread = embeddings.std(0)
        for name, value in {
            "center": embeddings.mean(0),
            "spread": spread.clamp(min=float(_LEAST_SPREAD * spread.mean())),
            "weight": embeddings.new_zeros(n_groups, embeddings.shape[1]),
            "bias": embeddings.new_zeros(n_groups),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, *inputs: Tensor, **named: Tensor) -> dict[str, Tensor]:
        standardized = self.standardized(embedding_of(self.encoder(*inputs, **named)))
        return {"logits": F.linear(standardized, self.weight, self.bias), "embedding": standardized}

    def standardized(self, embeddings: Tensor) -> Tensor:
        """``(embeddings - center) / spread``."""
        return (embeddings - self.center) / self.spread

    @torch.no_grad()
    def fit(self, standardized: Tensor, groups: Tensor) -> None:
        """Set the probe to the ridge regression of the groups, as one-hot vectors, on standardized embeddings.

        Args:
            standardized: ``(N, D)``.
            groups: ``(N,)`` int64, on the same device.
        """
        rows = standardized.double()
        center = rows.mean(0)
        wanted = F.one_hot(groups, len(self.weight)).double()
        share = wanted.mean(0)
        centered = rows - center
        gram = centered.T @ centered + _RIDGE * len(rows) * torch.eye(rows.shape[1]).to(rows)
        weight = torch.linalg.solve(gram, centered.T @ (wanted - share)).T
        self.weight.copy_(_SHARPNESS * weight)
        self.bias.copy_(_SHARPNESS * (share - weight @ center))


def embed(subject: Subject, indices: Tensor, *, batch_size: int = 256) -> Tensor:
    """``(N, D)`` float32 on the device: standardized embeddings of a ``ProbedEncoder`` in eval mode, without grads.

    Args:
        subject: the model and the samples.
        indices: ``(N,)`` int64, CPU.
        batch_size: samples of a forward pass.
    """
    parts = []
    with evaluating(subject.model), Precision().computing(subject.device):
        for part in torch.split(indices, batch_size):
            parts.append(call(subject.model, subject.data.inputs(part))["embedding"].float())
    return torch.cat(parts)
