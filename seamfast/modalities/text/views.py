"""What training sees of a text: something inserted at a random place, and tokens taken out or replaced."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seamfast.modalities.base import StepDraws, ViewSettings
from seamfast.modalities.text.edit import Tokens, edited
from seamfast.modalities.text.vocabulary import Vocabulary, ends_of

SPAN = 5
"""Tokens of the longest inserted span."""
_DROPPED = 0.3
"""Largest share of the tokens of a text that are taken out or replaced."""
_INSERTED = 0.5
"""Share of the texts that something is inserted in."""
_FOUND = 0.8
"""Share of the insertions that the search has found, once it has found something."""


@dataclass(frozen=True)
class View:
    """The changes of one training step.

    Args:
        vocabulary: of the ids.
        settings: in half of the texts, up to ``occlusions`` spans of tokens are inserted; a share of up to
            ``disturbance`` of the texts lose some of their tokens, and as many have some replaced.
        draws: of the step.
        is_fixed: whether the width of the batch stays as it is.
    """

    vocabulary: Vocabulary
    settings: ViewSettings
    draws: StepDraws
    is_fixed: bool

    def of(self, tokens: Tokens) -> Tokens:
        """The texts, changed."""
        ids, attended, _ = tokens
        n, length = ids.shape
        device, generator = ids.device, self.draws.generator
        first, last = ends_of(ids, attended, self.vocabulary.special)
        first, last = first[:, None], last[:, None]
        columns = torch.arange(length, device=device)
        inside = (columns >= first) & (columns < last)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        kept = torch.ones_like(inside)
        if self.settings.disturbance:
            share = self.settings.disturbance * self.draws.disturbed * self.draws.changed
            dropped = (uniform(n, 1) < share) & (uniform(n, length) < _DROPPED * uniform(n, 1))
            replaced = (uniform(n, 1) < share) & (uniform(n, length) < _DROPPED * uniform(n, 1))
            kept = ~(dropped & inside)
            ids = torch.where(replaced & inside, self._any(uniform(n, length)), ids)
        n_spans = self.settings.occlusions
        spans = self._spans(uniform(n, n_spans, SPAN), uniform(n, n_spans, 1), uniform(n, n_spans))
        # A third each in front, behind and anywhere, as searched.
        place = (3 * uniform(n, n_spans) - 1).clamp(0, 1)
        gap = first + (place * (last - first)).round().long()
        gaps = gap[:, :, None].expand(n, n_spans, SPAN).reshape(n, -1).clamp(max=length)
        spans = spans.reshape(n, -1)
        some = uniform(n, n_spans) < 1 / max(n_spans, 1)
        some[:, :1] = True
        some &= uniform(n, 1) < _INSERTED
        used = (spans >= 0) & some.repeat_interleave(SPAN, 1) & (self.draws.changed > 0)
        longest = length if self.is_fixed else max(self.vocabulary.max_length, length)
        width = length if self.is_fixed else min(length + spans.shape[1], longest)
        result = edited(
            tokens._replace(ids=ids),
            kept,
            spans.clamp(min=0),
            gaps,
            used,
            pad=self.vocabulary.pad,
            width=width,
            longest=longest,
        )
        if device.type != "cpu" or self.is_fixed:
            return result
        width = int(result.attended.any(0).nonzero()[-1]) + 1
        return Tokens(*(None if value is None else value[:, :width] for value in result))  # type: ignore[arg-type]

    def _any(self, words: Tensor) -> Tensor:
        """Tokens of the whole vocabulary, drawn by uniform numbers in [0, 1)."""
        insertable = self.vocabulary.insertable.to(words.device)
        return insertable[(words * len(insertable)).long()]

    def _spans(self, words: Tensor, lengths: Tensor, kinds: Tensor) -> Tensor:
        """``(B, spans, SPAN)`` ids, -1 where a span is shorter: of the whole vocabulary, or found by the search."""
        spans = self._any(words)
        places = torch.arange(SPAN, device=words.device)
        spans = torch.where(places <= lengths * SPAN, spans, -1)
        found = self.draws.found
        if found is None:
            return spans
        chosen = found[(lengths[:, :, 0].square() * len(found)).long()]  # the latest more often
        return torch.where((kinds < _FOUND)[:, :, None], chosen, spans)
