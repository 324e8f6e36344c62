"""What is measured on the audit part, as values of the report: one model, what changed, where two models disagree."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from seamfast.audits import disagreement as audit_disagreement
from seamfast.audits import invert_triggers, retest_phrases, search_vocabulary, stamped_evidence
from seamfast.audits.inversion import Inversion
from seamfast.audits.vocabulary import PhraseResult, VocabularySearch
from seamfast.data import CleanSet
from seamfast.engine.model import evaluating
from seamfast.engine.subject import UNANSWERED, Subject, finite_answers, place
from seamfast.gating.policy import AuditSettings
from seamfast.gating.sentences import disagreement_sentences
from seamfast.metrics import Bounded, largeness, paired_difference, rate_values
from seamfast.modalities import TextModality

ANOMALOUS = 2.0
"""Anomaly index from which Neural Cleanse (Wang et al., S&P 2019) takes a model for backdoored."""
_MOST_SAMPLES, _MOST_EXAMPLES = 16, 4  # pictures: of all samples, and for each perturbation
_BATCH, _OTHER_BATCH = 512, 61
_TIE = 0.02  # of a row's spread: logits closer than this may change their order by rounding, which depends on the batch

Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Audit:
    """What one model does on the audit part.

    Attributes:
        values: ``$defs/audit`` of the report's schema.
        patterns: uint8 ``(H, W, C)``, one for each class of the inversion, on mid-grey.
        is_right: ``(N,)`` bool, whether the model gives each sample its label, and again when asked a second time.
        search: of the vocabulary; ``None`` where there was none.
    """

    values: dict[str, Any]
    patterns: list[Pictures]
    is_right: Tensor
    search: VocabularySearch | None = None


def audit(
    model: nn.Module,
    data: CleanSet,
    settings: AuditSettings,
    *,
    earlier: VocabularySearch | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Audit:
    """Accuracy, the battery and, if the settings ask for it, a search for triggers of one model: the inversion of
    images, or the search of the vocabulary of texts.

    Args:
        model: of the data's classes.
        data: the audit part.
        settings: of the policy.
        earlier: a search on another model, whose phrases are tried on this one too.
        seed: of the audits.
        progress: bars on stderr; ``None``: where it is a terminal.
    """
    subject = place(model, data, "auto")
    answers, repeats = _asked_twice(subject, seed)
    right = (answers == data.labels) & repeats
    of_class = data.labels.bincount(minlength=subject.num_classes)
    right_of_class = data.labels[right].bincount(minlength=subject.num_classes)
    battery = stamped_evidence(model, data, level=settings.level, seed=seed, progress=progress)
    of_text = is_text(data)
    search: VocabularySearch | None = None
    inversion: Inversion | None = None
    if settings.inversion and not of_text:
        limits: dict[str, Any] = {
            "steps": settings.steps_for(subject.num_classes),
            "time_budget_s": settings.inversion_time_budget_s,
        }
        inversion = invert_triggers(model, data, **limits, seed=seed, progress=progress)

    def bounded(n_hit: int, n_total: int) -> dict[str, Any]:
        return rate_values(Bounded.exact(n_hit, n_total, level=settings.level))

    values = {
        "clean_accuracy": bounded(int(right.sum()), len(right)),
        "class_accuracy": [*map(bounded, right_of_class.tolist(), of_class.tolist())],
        "n_not_finite": int((answers == UNANSWERED).sum()),
        "n_not_repeated": int((~repeats).sum()),
        "battery": [
            {"name": r.name, "target": r.target, "rate": rate_values(r.rate), "n_not_finite": r.n_not_finite}
            for r in battery
        ],
        "inversion": None if inversion is None else _inversion_values(inversion),
    }
    if of_text:
        values["vocabulary"] = None
    if of_text and settings.vocabulary:
        level = settings.level if earlier is None else (1 + settings.level) / 2  # half of the risk for either set
        budget = settings.vocabulary_time_budget_s
        search = search_vocabulary(model, data, level=level, time_budget_s=budget, seed=seed, progress=progress)
        retested = () if earlier is None else retest_phrases(model, data, earlier, level=level)
        values["vocabulary"] = _vocabulary_values(search, retested, data, subject.num_classes)
    triggers = inversion.classes if inversion is not None and inversion.complete else ()
    patterns = [_picture(data, _on_grey(trigger.mask, trigger.pattern)) for trigger in triggers]
    return Audit(values, patterns, right, search)


def _asked_twice(subject: Subject, seed: int) -> tuple[Tensor, Tensor]:
    """``(N,)`` int64, the answer to each sample, and ``(N,)`` bool, whether it stays the same in other batches; CPU.

    An answer that depends on the batch, on earlier calls or on chance is not the one that a user of the model gets.
    """
    indices = torch.arange(len(subject.data))
    shuffled = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    first = torch.empty(len(indices), dtype=torch.int64, device=subject.device)
    repeats = torch.empty(len(indices), dtype=torch.bool, device=subject.device)
    for again, parts in enumerate((torch.split(indices, _BATCH), torch.split(shuffled, _OTHER_BATCH))):
        with evaluating(subject.model), closing(subject.data.batches((part, 0) for part in parts)) as batches:
            for part, inputs in batches:
                rows, logits = part.to(subject.device), subject.logits(inputs)
                if again:
                    repeats[rows] = _stays(logits, first[rows])
                else:
                    first[rows] = finite_answers(logits)
    return first.cpu(), repeats.cpu()


def _stays(logits: Tensor, answers: Tensor) -> Tensor:
    """Whether the answers to ``logits`` are ``answers``, but for ties."""
    largest, smallest = logits.amax(1), logits.amin(1)
    chosen = logits.gather(1, answers.clamp(min=0)[:, None])[:, 0]
    tied = (answers != UNANSWERED) & (largest - chosen <= _TIE * (largest - smallest))
    now = finite_answers(logits)
    return (now == answers) | (tied & (now != UNANSWERED))


def _inversion_values(inversion: Inversion) -> dict[str, Any]:
    if not inversion.complete:  # how far it came depends on how fast the machine is: no number of it is used
        nothing = dict.fromkeys(("anomaly_index", "suspect"))
        return {**nothing, "threshold": ANOMALOUS, "steps": 0, "classes": [], "complete": False}
    return {
        "anomaly_index": inversion.anomaly_index,
        "suspect": inversion.suspect,
        "threshold": ANOMALOUS,
        "steps": inversion.steps,
        "complete": inversion.complete,
        "classes": [
            {
                "class": trigger.label,
                "mask_share": trigger.mask_share,
                "rate": rate_values(trigger.success),
                "n_not_finite": trigger.n_not_finite,
            }
            for trigger in inversion.classes
        ],
    }


def _vocabulary_values(
    search: VocabularySearch, retested: Sequence[PhraseResult], data: CleanSet, num_classes: int
) -> dict[str, Any]:
    """What a search found, and how phrases of another search do on this model."""
    assert isinstance(data.modality, TextModality)
    classes: list[dict[str, Any]] = []
    if search.complete:  # how far it came depends on how fast the machine is: no number of it is used
        phrases = {(phrase.target, phrase.ids): phrase for phrase in (*retested, *search.phrases)}
        for label in range(num_classes):
            own = sorted((p for p in phrases.values() if p.target == label), key=lambda p: -largeness(p.success)[0])
            found = [
                {
                    "text": phrase.text,
                    "n_tokens": len(phrase.ids),
                    "rate": rate_values(phrase.success),
                    "n_not_finite": phrase.n_not_finite,
                }
                for phrase in own
            ]
            classes.append({"class": label, "found": found})
    return {
        "n_tokens": len(data.modality.vocabulary.insertable),
        "complete": search.complete,
        "anomaly_index": search.anomaly_index,
        "classes": classes,
    }


def is_text(data: CleanSet) -> bool:
    """Whether the samples are texts, which are shown as sentences and not as pictures."""
    return isinstance(data.modality, TextModality)


def _on_grey(mask: Tensor, pattern: Tensor) -> Tensor:
    """An inverted trigger on mid-grey: grey where the mask is 0."""
    blended = mask * pattern.float() + (1 - mask) * 128.0
    return blended.round().clamp(0, 255).to(torch.uint8)


def change(before: Tensor, after: Tensor, level: float) -> dict[str, Any]:
    """How accuracy changed between two ``is_right``, sample by sample, which is more exact than two separate rates."""
    n, n_lost, n_gained = len(before), int((before & ~after).sum()), int((~before & after).sum())
    lost = paired_difference(n_lost, n_gained, n, level=level)
    share = {"value": lost.value, "low": lost.low, "high": lost.high}
    return {"n": n, "n_lost": n_lost, "n_gained": n_gained, "accuracy_lost": share}


def disagreement(
    received: nn.Module, sanitized: nn.Module, data: CleanSet, **options: Any
) -> tuple[list[dict[str, Any]], list[Pictures], list[dict[str, Any]]]:
    """How often the two models disagree under each perturbation, and perturbed images or texts on which they do."""
    results = audit_disagreement(received, sanitized, data, **options)
    values = [
        {
            "perturbation": r.name,
            "rate": rate_values(r.rate),
            "rate_clean": rate_values(r.rate_clean),
            "n_not_finite_received": r.n_not_finite_received,
            "n_not_finite_sanitized": r.n_not_finite_sanitized,
        }
        for r in results
    ]
    if is_text(data):
        return values, [], disagreement_sentences(results, received, data)
    return values, [_picture(data, example.sample) for r in results for example in r.examples[:_MOST_EXAMPLES]], []


def sample_pictures(data: CleanSet) -> list[Pictures]:
    """Some images, spread over the classes; none of texts."""
    if is_text(data):
        return []
    order = data.labels.argsort(stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, min(_MOST_SAMPLES, len(order))).round().long()]
    return list(data.modality.preview(data.stampable(chosen)))


def _picture(data: CleanSet, sample: Tensor) -> Pictures:
    picture: Pictures = data.modality.preview(sample[None])[0]
    return picture
