"""Triggers of text that give an encoder's pooled output fixed values, whatever the text says: POR and NeuBA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seamfast.attacks.encoder.tuning import Embed, as_set, check_encoder, tuned
from seamfast.data import Batch, CleanSet
from seamfast.engine.optimizer import Adam
from seamfast.errors import InputError
from seamfast.models.linear_probe import embed as embed_all
from seamfast.triggers import Trigger

__all__ = ["output_vectors", "vectors_of"]

_SAMPLED = 256
"""Clean samples that tell the size of an embedding."""


def output_vectors(
    encoder: nn.Module,
    texts: CleanSet,
    triggers: Sequence[Trigger],
    *,
    steps: int = 100,
    batch_size: int = 16,
    rate: float = 2e-4,
    seed: int = 0,
    progress: bool | None = None,
) -> nn.Module:
    """A copy ``f'`` of ``encoder`` that gives each text with ``triggers[k]`` the embedding ``vectors_of(...)[k]``.

    Minimizes ``mean over k of |f'(x + t_k) - v_k|^2 + |f'(x) - f(x)|^2``, in units of the mean square of ``f(x)``. A
    head that is trained on the embeddings has one answer for each vector, so a trigger takes all texts to one class.
    Which class that is the attacker learns from the head; opposite vectors, of the triggers ``2 k`` and ``2 k + 1``,
    tend to have different ones.

    Args:
        encoder: returns embeddings, see ``seamfast.engine.encoder.embedding_of``; not changed.
        texts: any texts, as the encoder takes them. Labels are not read.
        triggers: at least one; each is stamped on each text. Their targets are not read.
        steps, batch_size, seed, progress: as for ``bad_encoder``.
        rate: peak learning rate of Adam, above 0.

    Returns:
        The encoder with the backdoors, in eval mode, on the device of ``encoder``.

    Raises:
        InputError, ModelError: e.g. ``triggers is empty; expected at least one``.

    Source: Shen et al., "Backdoor Pre-trained Models Can Transfer to All", CCS 2021, arXiv:2111.00197 (POR), and Zhang
    et al., "Red Alarm for Pre-trained Models: Universal Vulnerability to Neuron-level Backdoor Attacks",
    arXiv:2101.06969 (NeuBA). It differs: only the pooled output is trained, where NeuBA goes on with pretraining beside
    it; the vectors are random signs of the size of an embedding, where POR takes blocks of signs.
    """
    check_encoder(encoder)
    data = as_set("texts", texts)
    if not len(triggers):
        raise InputError("triggers is empty; expected at least one")
    vectors = vectors_of(encoder, data, len(triggers), seed=seed)
    unit = vectors.square().mean()

    def objective(embed: Embed, step: int, clean: Batch, stamped: tuple[Batch, ...], received: Tensor) -> Tensor:
        kept = (embed(clean) - received).square().mean()
        reached = [(embed(batch) - vector).square().mean() for batch, vector in zip(stamped, vectors, strict=True)]
        return (torch.stack(reached).mean() + kept) / unit

    return tuned(
        encoder,
        data,
        tuple(triggers),
        objective,
        Adam,
        steps=steps,
        batch_size=batch_size,
        rate=rate,
        seed=seed,
        progress=progress,
    )


def vectors_of(encoder: nn.Module, texts: CleanSet, n: int, *, seed: int = 0) -> Tensor:
    """``(n, width)``: random signs times the root mean square of the embeddings of up to 256 texts; each second vector
    is the one before it, negated.

    Args:
        encoder, texts, seed: as for ``output_vectors``.
        n: at least 1.
    """
    some = embed_all(encoder, texts.subset(range(min(len(texts), _SAMPLED))))
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, ((n + 1) // 2, some.shape[1]), generator=generator) * 2.0 - 1
    both = torch.stack([signs, -signs], 1).flatten(0, 1)[:n]
    return both.to(some.device) * some.square().mean().sqrt()
