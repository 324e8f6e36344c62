"""Texts for the report: what was inserted in them, and what both models answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.audits.disagreement import Disagreement
from seamfast.audits.vocabulary import PhraseResult, VocabularySearch
from seamfast.data import CleanSet
from seamfast.engine.model import evaluating
from seamfast.engine.subject import UNANSWERED, Subject, place
from seamfast.engine.token_search import places_of
from seamfast.metrics import largeness
from seamfast.modalities import Batch, TextModality, Vocabulary
from seamfast.modalities.batch import named_tensors
from seamfast.modalities.text.modality import IDS, MASK

_LONGEST_PART = 1000  # characters
_MOST_COMPARED = 400  # words and gaps, as the comparison takes their square
_MOST_FINDS, _MOST_TRIED, _MOST_SHOWN = 4, 64, 3
_MOST_EXAMPLES = 4  # of each perturbation
_PIECES = re.compile(r"\s+|\S+")

Part = tuple[str, bool]


def marked(plain: str, changed: str) -> list[dict[str, Any]]:
    """``changed`` in parts, ``{"text": ..., "inserted": ...}``: what of it is not in ``plain`` is inserted.

    Words are compared, with the gaps between them. A part of more than 1,000 characters loses its middle.
    """
    before, after = _PIECES.findall(plain), _PIECES.findall(changed)
    start = _n_common(before, after)
    end = _n_common(before[start:][::-1], after[start:][::-1])
    pieces = [(piece, False) for piece in after[:start]]
    pieces += _compared(before[start : len(before) - end], after[start : len(after) - end])
    pieces += [(piece, False) for piece in after[len(after) - end :]]
    parts = [("".join(piece for piece, _ in group), is_new) for is_new, group in groupby(pieces, lambda p: p[1])]
    return [{"text": _cut(text), "inserted": is_new} for text, is_new in parts]


def _n_common(first: Sequence[str], second: Sequence[str]) -> int:
    """How many items both begin with."""
    n = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        n += 1
    return n


def _compared(before: Sequence[str], after: Sequence[str]) -> list[Part]:
    if len(before) > _MOST_COMPARED or len(after) > _MOST_COMPARED:
        return [(piece, True) for piece in after]
    kept = set[int]()
    for match in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        kept.update(range(match.b, match.b + match.size))
    return [(piece, i not in kept) for i, piece in enumerate(after)]


def _cut(text: str) -> str:
    half = _LONGEST_PART // 2
    return text if len(text) <= _LONGEST_PART else f"{text[:half]}…{text[-half:]}"


def found_sentences(
    received: nn.Module, sanitized: nn.Module, data: CleanSet, search: VocabularySearch
) -> list[dict[str, Any]]:
    """Texts of other classes, with the strongest phrases inserted as the search does; those that move come first.

    Args:
        received, sanitized: the models.
        data: the texts that were searched with.
        search: on the received model.
    """
    first = place(received, data, "auto")
    second = place(sanitized, data, first.device)
    labels = sorted({phrase.target for phrase in search.phrases})
    best = [phrase for label in labels if (phrase := search.best(label)) is not None]
    best.sort(key=lambda phrase: largeness(phrase.success), reverse=True)
    return [row for phrase in best[:_MOST_FINDS] for row in _with(phrase, first, second, search.seed)]


def _with(phrase: PhraseResult, first: Subject, second: Subject, seed: int) -> Iterator[dict[str, Any]]:
    modality, of = first.data.modality, first.samples.labels
    assert isinstance(modality, TextModality)
    chosen = (of != phrase.target).nonzero().flatten()[:_MOST_TRIED]
    if not len(chosen):
        return
    plain = first.data.inputs(chosen)
    ids = torch.tensor([phrase.ids] * len(chosen))
    changed, columns = modality.with_phrases(plain, ids, places_of(chosen, seed))
    answers = [_answers(first, plain), _answers(first, changed), _answers(second, changed)]
    moved = (answers[1] == phrase.target) & (answers[0] != phrase.target)
    for i in moved.int().argsort(descending=True, stable=True)[:_MOST_SHOWN].tolist():
        parts = _around(modality.vocabulary, changed, i, int(columns[i]), len(phrase.ids))
        given = [int(answer[i]) for answer in answers]
        yield _values("vocabulary", phrase.text, parts, int(of[chosen[i]]), given)


def _around(vocabulary: Vocabulary, inputs: Batch, row: int, column: int, n: int) -> list[dict[str, Any]]:
    """One text in parts, of which the ``n`` tokens from ``column`` on are inserted."""
    named = named_tensors(inputs)
    ids, mask = named.get(IDS, next(iter(named.values()))), named.get(MASK)
    parts: list[dict[str, Any]] = []
    for span in (slice(0, column), slice(column, column + n), slice(column + n, None)):
        (text,) = vocabulary.decode(ids[row, span][None].cpu(), None if mask is None else mask[row, span][None].cpu())
        if text:
            gap = " " if parts and not text[0].isspace() else ""
            parts.append({"text": gap + _cut(text), "inserted": span.start == column})
    return parts


def _answers(subject: Subject, inputs: Batch) -> Tensor:
    with evaluating(subject.model):
        return subject.answers(inputs).cpu()


def disagreement_sentences(
    results: Sequence[Disagreement], received: nn.Module, data: CleanSet
) -> list[dict[str, Any]]:
    """Perturbed texts on which the models disagree."""
    subject = place(received, data, "auto")
    rows = []
    for result in results:
        examples = result.examples[:_MOST_EXAMPLES]
        indices = torch.tensor([example.index for example in examples], dtype=torch.int64)
        plain: list[str] = subject.data.stampable(indices) if examples else []
        answers = _answers(subject, subject.data.inputs(indices)).tolist() if examples else []
        for example, text, answer in zip(examples, plain, answers, strict=True):
            given = [answer, *(UNANSWERED if a is None else a for a in (example.received, example.sanitized))]
            label = int(data.labels[example.index])
            rows.append(_values("disagreement", result.name, marked(text, example.sample), label, given))
    return rows


def _values(of: str, name: str, parts: list[dict[str, Any]], label: int, answers: Sequence[int]) -> dict[str, Any]:
    given = (None if answer == UNANSWERED else answer for answer in answers)
    answered = dict(zip(("plain", "received", "sanitized"), given, strict=True))
    return {"of": of, "name": name, "parts": parts, "label": label, **answered}
