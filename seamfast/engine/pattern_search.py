"""A search for small patterns that give all images one embedding: what a backdoor of an encoder does."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seamfast.engine.model import evaluating
from seamfast.engine.optimizer import Adam
from seamfast.engine.subject import Subject
from seamfast.modalities import ImageModality, StepDraws

_SIZE_WEIGHTS = (0.5, 1.0, 2.0)
"""Of the mask's mean against the spread that is left, one search each: what is found differs in size."""
_BETAS, _RATE = (0.5, 0.9), 0.1
"""As in ``audits.inversion``."""
_SAMPLES, _BATCH = 256, 32
_LARGEST, _MOST_SPREAD = 0.25, 0.5
"""Share of the image that a pattern may cover, and of the spread of the embeddings that it may leave. Larger masks take
away what the image shows, in any encoder."""

_STAMPED = 0.5
"""Share of the images that a pattern is stamped on."""


class FoundPatterns(NamedTuple):
    """``K`` patterns.

    Attributes:
        masks: ``(K, 1, H, W)`` in [0, 1].
        patterns: ``(K, C, H, W)`` as the model takes images.
    """

    masks: Tensor
    patterns: Tensor


class PatternSearch:
    """Masks and patterns, optimized so that the embeddings of stamped images spread as little as possible.

    Args:
        subject: a ``ProbedEncoder`` and images whose normalization is known.
        indices: of the images to search on, int64, CPU.
        seed: of the first patterns and of the batches.

    Source: the objective follows DECREE, Feng et al., CVPR 2023: similarity of all stamped images to each other, and
        the size of the mask.
    """

    def __init__(self, subject: Subject, indices: Tensor, seed: int) -> None:
        assert isinstance(subject.data.modality, ImageModality)
        self._subject = subject
        self._modality = subject.data.modality
        self._generator = torch.Generator().manual_seed(seed)
        device, n = subject.device, len(_SIZE_WEIGHTS)
        self._triggers = self._modality.inverted(n, self._generator, device)
        order = torch.randperm(len(indices), generator=self._generator)[:_SAMPLES]
        self._samples = self._triggers.prepared(subject.data.stampable(indices[order]))
        self._adam = Adam(nn.ParameterList(self._triggers.parameters), betas=_BETAS)
        self._rate = torch.tensor(_RATE, device=device)
        self._weights = torch.tensor(_SIZE_WEIGHTS, device=device)
        self._spread = torch.ones(n, device=device)

    def run(self, encoder: nn.Module, n_steps: int) -> FoundPatterns:
        """Take ``n_steps`` on a ``ProbedEncoder`` as it is now; returns the patterns that are small and leave little
        spread."""
        with evaluating(encoder):
            for _ in range(n_steps):
                self._step(encoder)
        values = self._triggers.values()
        kept = (self._triggers.sizes(values) <= _LARGEST) & (self._spread <= _MOST_SPREAD)
        masks, patterns = (value[kept] for value in values)
        return FoundPatterns(masks, self._modality.model_inputs(patterns))

    def _step(self, encoder: nn.Module) -> None:
        rows = torch.randint(len(self._samples), (_BATCH,), generator=self._generator).to(self._samples.device)
        with torch.enable_grad():
            stamped, sizes = self._triggers.stamp(self._samples[rows])
            inputs = self._modality.model_inputs(stamped)
            embeddings = encoder(inputs)["embedding"].float().unflatten(0, (len(sizes), _BATCH))
            # Standardized embeddings of clean images have a variance of 1.
            spread = embeddings.var(1).mean(1)
            loss = (spread + self._weights * sizes).sum()
            gradients = torch.autograd.grad(loss, self._triggers.parameters)
        for value, gradient in zip(self._triggers.parameters, gradients, strict=True):
            value.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        self._adam.step(self._rate)
        self._spread = spread.detach()


def with_patterns(images: Tensor, found: FoundPatterns, draws: StepDraws) -> Tensor:
    """Half of the images, ``(B, C, H, W)`` as the model takes them, each with one of the patterns."""
    n, generator = len(images), draws.generator
    which = torch.randint(len(found.masks), (n,), generator=generator, device=images.device)
    is_stamped = torch.rand(n, 1, 1, 1, generator=generator, device=images.device) < _STAMPED * draws.changed
    stamped = torch.lerp(images, found.patterns[which].to(images.dtype), found.masks[which].to(images.dtype))
    return torch.where(is_stamped, stamped, images)
