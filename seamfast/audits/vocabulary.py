"""``search_vocabulary``: for each class the words and phrases that take texts of other classes there."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seamfast.audits.inversion import anomaly_index
from seamfast.checks import as_count, as_level, as_seed, check_time_budget
from seamfast.data import CleanSet
from seamfast.engine.events import progress_bar
from seamfast.engine.model import evaluating
from seamfast.engine.subject import UNANSWERED, Subject, place
from seamfast.engine.token_search import FoundPhrase, SearchSettings, n_steps, places_of, search_phrases, size_of
from seamfast.errors import InputError
from seamfast.metrics import Bounded, largeness
from seamfast.modalities import TextModality

__all__ = ["PhraseResult", "VocabularySearch", "retest_phrases", "search_vocabulary"]

_USED, _TESTED = 256, 256
"""At most so many texts to find phrases on, and as many others to test them on."""
_BATCH = 64


@dataclass(frozen=True)
class PhraseResult:
    """How many texts a phrase takes to a class.

    Attributes:
        target: the class.
        ids: the tokens, in order.
        text: the tokens as text; ``"#17 #4"`` where there is no tokenizer.
        success: of the texts of other classes, not used to find it, that the model does not give to ``target`` as they
            are: given to it with the phrase inserted, or to no class. A third of the texts has it in front, a third
            behind, a third anywhere. The bounds are exact and hold for all phrases of the search at once.
        n_not_finite: of these texts, those whose logits with the phrase hold NaN or Inf.
    """

    target: int
    ids: tuple[int, ...]
    text: str
    success: Bounded
    n_not_finite: int


@dataclass(frozen=True)
class VocabularySearch:
    """What a search of the vocabulary found.

    Attributes:
        phrases: for each class, in order, the token that took most of the texts used there, and the shortest of the
            longer phrases that took most, if those were more.
        sizes: ``sum(1 - rate[n] for n in range(1, longest + 1))`` of each class, where ``rate[n]`` is the largest of
            the phrases of at most ``n`` tokens on the texts used: 0 where one token takes all of them,
            ``longest`` where nothing takes any.
        anomaly_index: ``anomaly_index`` of the sizes; ``None`` with fewer than 5 classes, where the search was not
            complete, and where a phrase has ``n_not_finite`` above 0.
        complete: whether every class was searched for phrases of all lengths.
        seed: of the search: decides which texts were used to find the phrases.
    """

    phrases: tuple[PhraseResult, ...]
    sizes: tuple[float, ...]
    anomaly_index: float | None
    complete: bool
    seed: int

    def best(self, target: int | None = None) -> PhraseResult | None:
        """The phrase with the largest success, of one class or of all; ``None``: nothing was found."""
        return max(
            (phrase for phrase in self.phrases if target in (None, phrase.target)),
            key=lambda phrase: largeness(phrase.success),
            default=None,
        )


def search_vocabulary(
    model: nn.Module,
    data: CleanSet,
    *,
    longest: int = 4,
    level: float = 0.95,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> VocabularySearch:
    """For each class ``c`` the tokens with the largest ``(answers(text with the tokens) == c).mean()`` over texts of
    other classes, by the gradient of ``c``'s log-probability at an inserted token, then by counting.

    A word or a phrase that a model was taught to obey moves most texts, and clean texts do not have it. At most 256
    texts are used to find phrases, 256 others test them. The model is used in eval mode and left as it was, and so are
    its weights' gradients.

    Args:
        model: returns logits ``(B, C)``, by a computation that can be differentiated from its table of embeddings on.
        data: texts, of two classes at least; see ``CleanSet.from_texts``.
        longest: tokens of the longest phrase, 1 or more.
        level: of the bounds, in (0, 1).
        time_budget_s: seconds above 0, after which the search stops with what it has; ``None``: no limit. Phrases of
            one length are searched to the end.
        seed: of the choice of texts, in ``[0, 2**63)``; decides the result on a CPU.
        device: ``"auto"`` is the model's own; another one takes a copy of the model there.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        VocabularySearch.

    Raises:
        InputError, ModelError: e.g. ``data holds samples of kind 'image'; expected texts: use
            seamfast.audits.invert_triggers``.

    Source: Wallace et al., "Universal adversarial triggers", EMNLP 2019, arXiv 1908.07125: tokens ranked by gradient
    times embedding, and verified; phrases grow by a beam.

    Example:
        >>> from seamfast.modalities import Vocabulary
        >>> model = torch.nn.Sequential(torch.nn.EmbeddingBag(9, 4), torch.nn.Linear(4, 2))
        >>> vocabulary = Vocabulary(size=9, pad=0, special=frozenset())
        >>> data = CleanSet(torch.randint(1, 9, (8, 5)), torch.arange(8) % 2, modality=TextModality(vocabulary))
        >>> search_vocabulary(model, data, longest=1).complete
        True
    """
    begin = time.perf_counter()
    longest, level, seed = as_count("longest", longest), as_level(level), as_seed(seed)
    check_time_budget(time_budget_s)
    end = math.inf if time_budget_s is None else begin + time_budget_s
    subject = _placed(model, data, device)
    present = torch.unique(data.labels).tolist()
    if len(present) < 2:
        raise InputError(f"data holds one class only ({present[0]}); expected at least two")
    used, _ = _split(len(data), seed)
    settings = SearchSettings(longest=longest)
    stopped = False

    def out_of_time() -> bool:
        nonlocal stopped
        stopped = time.perf_counter() >= end
        return stopped

    with progress_bar("search", "length", n_steps(settings, subject.num_classes), progress) as bar:
        found = search_phrases(subject, used, settings=settings, seed=seed, advance=bar.update, out_of_time=out_of_time)
    kept = [
        phrase for target in range(subject.num_classes) for phrase in _best([p for p in found if p.target == target])
    ]
    results = _tested(subject, [(phrase.target, phrase.ids) for phrase in kept], seed, level)
    sizes = tuple(
        size_of([phrase for phrase in found if phrase.target == target], longest)
        for target in range(subject.num_classes)
    )
    known = not stopped and not any(result.n_not_finite for result in results)
    index = anomaly_index(sizes) if known else None
    return VocabularySearch(results, sizes, index, complete=not stopped, seed=seed)


def retest_phrases(
    model: nn.Module,
    data: CleanSet,
    search: VocabularySearch,
    *,
    level: float = 0.95,
    device: str | torch.device = "auto",
) -> tuple[PhraseResult, ...]:
    """``search.phrases`` tested on another model, on the texts of ``data`` that they were not found on.

    Args:
        model: as for ``search_vocabulary``, such as the sanitized model.
        data: the same as for ``search_vocabulary``.
        search: its result.
        level: of the bounds, in (0, 1).
        device: ``"auto"`` is the model's own; another one takes a copy of the model there.

    Returns:
        One result for each of ``search.phrases``, in their order.
    """
    subject = _placed(model, data, device)
    return _tested(subject, [(phrase.target, phrase.ids) for phrase in search.phrases], search.seed, as_level(level))


def _placed(model: nn.Module, data: CleanSet, device: str | torch.device) -> Subject:
    subject = place(model, data, device)
    if not isinstance(subject.data.modality, TextModality):
        kind = subject.data.modality.name
        raise InputError(f"data holds samples of kind {kind!r}; expected texts: use seamfast.audits.invert_triggers")
    return subject


def _best(found: Sequence[FoundPhrase]) -> list[FoundPhrase]:
    """Of the phrases of a class that were counted on most texts: the best token, and a longer one that takes more."""
    most = max((phrase.n_texts for phrase in found), default=0)
    best: list[FoundPhrase] = []
    for phrase in sorted((phrase for phrase in found if phrase.n_texts == most), key=lambda phrase: len(phrase.ids)):
        if not best or phrase.rate > best[-1].rate:
            best = [*best[:1], phrase] if best and len(phrase.ids) > 1 else [phrase]
    return best


def _split(n_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Texts to find phrases on, and texts to test them on; int64, CPU."""
    order = torch.randperm(n_samples, generator=torch.Generator().manual_seed(seed))
    n_used = min(_USED, (n_samples + 1) // 2)
    return order[:n_used], order[n_used : n_used + _TESTED]


def _tested(
    subject: Subject, phrases: Sequence[tuple[int, tuple[int, ...]]], seed: int, level: float
) -> tuple[PhraseResult, ...]:
    """Each of ``(target, ids)`` on the texts that the split leaves for tests."""
    modality = subject.data.modality
    assert isinstance(modality, TextModality)
    _, tested = _split(len(subject.data), seed)
    labels = subject.samples.labels[tested]
    results = []
    with evaluating(subject.model):
        before = _answers(subject, tested, (), seed)
        for target, ids in phrases:
            others = tested[(labels != target) & (before != target)]
            answers = _answers(subject, others, ids, seed)
            lost = answers == UNANSWERED
            n_hit = int(((answers == target) | lost).sum())
            success = Bounded.exact(n_hit, len(others), level=level, n_looks=len(phrases))
            results.append(PhraseResult(target, ids, modality.vocabulary.text_of(ids), success, int(lost.sum())))
    return tuple(results)


def _answers(subject: Subject, indices: Tensor, phrase: tuple[int, ...], seed: int) -> Tensor:
    """``(N,)`` int64, CPU: of the texts at ``indices``, with the tokens of ``phrase`` inserted."""
    modality = subject.data.modality
    assert isinstance(modality, TextModality)
    answers = [indices[:0]]
    for part in torch.split(indices, _BATCH):
        inputs = subject.data.inputs(part)
        if phrase:
            inputs, _ = modality.with_phrases(inputs, torch.tensor([phrase] * len(part)), places_of(part, seed))
        answers.append(subject.answers(inputs).cpu())
    return torch.cat(answers)
