"""What training sees of a text: tokens replaced and taken out, and a phrase inserted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seamfast.modalities.base import StepDraws
from seamfast.modalities.text.edit import Tokens, edited, places_of
from seamfast.modalities.text.vocabulary import Vocabulary, ends_of

LONGEST = 8
"""Tokens of the longest insertion."""
_PLAIN_EVERY = 3
"""One text of so many gets no insertion."""
_REPLACED, _DROPPED = 0.3, 0.2
"""Mean shares of the tokens of a text. The few texts that there are become many: on the texts alone, training learns
what to answer to them with a phrase in them, and not to others."""
_FOUND = 0.8
"""Share of the insertions that come from what was found, once something was; the others are random tokens."""
_SHUFFLED = 0.6
"""Share of these that are sequences of the tokens of found phrases, of any length and order."""
_WIDTH = 256


@dataclass(frozen=True, eq=False)
class Insertions:
    """What to insert.

    Attributes:
        phrases: ``(S, LONGEST)`` int64 ids, the latest first; -1 behind the end of a phrase.
        tokens: ``(A, _WIDTH)`` int64: for each class, the tokens of its phrases, each as often as it occurs in them.
    """

    phrases: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, phrases: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> Insertions:
        """Of ``(class, ids)``, the latest first."""
        rows = torch.full((len(phrases), LONGEST), -1, dtype=torch.int64)
        for row, (_, ids) in zip(rows, phrases, strict=True):
            row[: len(ids)] = torch.tensor(list(ids[:LONGEST]))
        tokens = []
        for target in sorted({target for target, _ in phrases}):
            own = [id for other, ids in phrases if other == target for id in ids][:_WIDTH]
            tokens.append((own * (_WIDTH // len(own) + 1))[:_WIDTH])
        return cls(rows.to(device), torch.tensor(tokens, device=device))


@dataclass(frozen=True)
class TextViews:
    """The changes of one training step.

    Args:
        vocabulary: of the ids.
        draws: of the step.
        is_fixed: whether the width of the batch stays as it is.
    """

    vocabulary: Vocabulary
    draws: StepDraws
    is_fixed: bool

    def of(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """The texts for the student, and for its teacher: edited, but without the insertions."""
        _, attended, _ = tokens
        n, length = tokens.ids.shape
        device = tokens.ids.device
        changed = self.draws.changed > 0
        columns, rows = torch.arange(length, device=device), torch.arange(n, device=device)
        first, last = (ends[:, None] for ends in ends_of(tokens.ids, attended, self.vocabulary.around))
        may_change = (columns >= first) & (columns < last) & changed
        replaced = may_change & (self._uniform(n, length) < 2 * _REPLACED * self._uniform(n, 1))
        dropped = may_change & (self._uniform(n, length) < 2 * _DROPPED * self._uniform(n, 1))
        dropped &= ((attended > 0) & ~dropped).any(1, keepdim=True)  # a text of no token at all has no mean
        ids = torch.where(replaced, self._any(self._uniform(n, length)), tokens.ids)
        nothing = torch.zeros(n, 1, dtype=torch.int64, device=device)
        options = {"pad": self.vocabulary.pad, "width": length, "longest": length}
        teacher = edited(tokens._replace(ids=ids), ~dropped, nothing, nothing, nothing > 0, **options)

        inserted = self._insertions(n)
        used = (inserted >= 0) & (rows % _PLAIN_EVERY > 0)[:, None] & changed
        # Edits keep the first place.
        last = last - dropped.sum(1, keepdim=True)
        place = places_of(self._uniform(n, 1))
        gaps = (first + (place * (last - first)).round().long()).expand(n, LONGEST)
        if not self.is_fixed:
            longest = max(self.vocabulary.max_length, length)
            options |= {"width": min(length + LONGEST, longest), "longest": longest}
        student = edited(
            teacher, torch.ones_like(attended, dtype=torch.bool), inserted.clamp(min=0), gaps, used, **options
        )
        if device.type == "cpu" and not self.is_fixed:
            student, teacher = _narrowed(student), _narrowed(teacher)
        return student, teacher

    def _uniform(self, *shape: int) -> Tensor:
        generator = self.draws.generator
        return torch.rand(*shape, generator=generator, device=generator.device)

    def _any(self, uniform: Tensor) -> Tensor:
        """Tokens of the whole vocabulary."""
        insertable = self.vocabulary.insertable.to(uniform.device)
        return insertable[(uniform * len(insertable)).long()]

    def _insertions(self, n: int) -> Tensor:
        """``(n, LONGEST)`` ids, -1 behind the end.

        They do not depend on the labels: that nothing is inserted would tell of the class.
        """
        places = torch.arange(LONGEST, device=self.draws.generator.device)
        is_within = places < 1 + (self._uniform(n, 1) * LONGEST).long()
        spans = torch.where(is_within, self._any(self._uniform(n, LONGEST)), -1)
        found: Insertions | None = self.draws.found
        if found is None:
            return spans
        chosen = (self._uniform(n) * len(found.tokens)).long()
        shuffled = found.tokens[chosen].gather(1, (self._uniform(n, LONGEST) * _WIDTH).long())
        which = (self._uniform(n).square() * len(found.phrases)).long()  # the latest more often
        is_shuffled = self._uniform(n, 1) < _SHUFFLED
        phrases = torch.where(is_shuffled, torch.where(is_within, shuffled, -1), found.phrases[which])
        return torch.where(self._uniform(n, 1) < _FOUND, phrases, spans)


def _narrowed(tokens: Tokens) -> Tokens:
    """As wide as the longest text."""
    width = int(tokens.attended.any(0).nonzero()[-1]) + 1
    return Tokens(*(None if value is None else value[:, :width] for value in tokens))  # type: ignore[arg-type]
