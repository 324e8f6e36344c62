"""``search_phrases``: the inserted tokens that take most texts to another class, by gradients, then by counting.

Training on clean texts does not reach a token that they do not have: its embedding has no gradient. The model itself
tells: the gradient of a class at an inserted token, times the table of embeddings, ranks the whole vocabulary in one
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.engine.model import evaluating, logits_of
from seamfast.engine.subject import Subject, finite_answers
from seamfast.errors import ModelError
from seamfast.modalities.text.modality import TextModality

Progress = Callable[[int], object]


@dataclass(frozen=True)
class SearchSettings:
    """Size of a search.

    Attributes:
        n_samples: texts that tokens are inserted in, for each class.
        n_scored: texts of them that candidates are compared on.
        n_candidates: tokens of the largest scores that are tried.
        n_beams: phrases that are made longer.
        longest: tokens of a phrase, 1 or more.
    """

    n_samples: int = 64
    n_scored: int = 16
    n_candidates: int = 20
    n_beams: int = 3
    longest: int = 4


@dataclass(frozen=True)
class FoundPhrase:
    """Tokens that take texts to a class.

    Attributes:
        ids: the tokens, in order.
        target: the class.
        n_moved: texts given to it with the tokens inserted...
        n_texts: ...out of so many that are of another class and given to another one without them.
    """

    ids: tuple[int, ...]
    target: int
    n_moved: int
    n_texts: int

    @property
    def rate(self) -> float:
        """``n_moved / n_texts``, in [0, 1]."""
        return self.n_moved / max(self.n_texts, 1)


def n_steps(settings: SearchSettings, num_classes: int) -> int:
    """How often ``advance`` is called by a search of all classes, at most."""
    return num_classes * settings.longest


def search_phrases(
    subject: Subject,
    indices: Tensor,
    *,
    settings: SearchSettings = SearchSettings(),
    classes: Sequence[int] | None = None,
    seed: int = 0,
    advance: Progress = lambda n: None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> list[FoundPhrase]:
    """For each class the phrases of one to ``longest`` tokens that take most texts of other classes to it.

    Args:
        subject: a model, and texts whose table of embeddings is known.
        indices: ``(N,)`` int64, CPU: the texts to insert tokens in.
        settings: of the search.
        classes: ``None``: all.
        seed: of the choice of texts and of places.
        advance: called after each length of phrases.
        out_of_time: asked before each length of phrases; once it is true, the search ends with what it has.

    Returns:
        Up to ``n_candidates`` single tokens and ``n_beams`` of each longer length for each class, by falling rate.
    """
    search = _Search(subject, settings, torch.Generator().manual_seed(seed))
    found: list[FoundPhrase] = []
    with evaluating(subject.model), _differentiable():
        answers, order = search.answered(indices)
        for target in range(subject.num_classes) if classes is None else classes:
            others = order[(subject.samples.labels[order] != target) & (answers != target)][: settings.n_samples]
            if not len(others):
                advance(settings.longest)
                continue
            if out_of_time():
                break
            found += search.of_class(target, others, advance, out_of_time)
    return sorted(found, key=lambda phrase: -phrase.rate)


class _Search:
    """A search on one model."""

    def __init__(self, subject: Subject, settings: SearchSettings, generator: torch.Generator) -> None:
        modality = subject.data.modality
        if not isinstance(modality, TextModality) or modality.table is None:
            raise ModelError("the model has no table of embeddings that token ids are looked up in; expected one")
        self._subject = subject
        self._modality = modality
        self._table = subject.model.get_submodule(modality.table)
        self._settings = settings
        self._generator = generator
        self._insertable = modality.vocabulary.insertable.to(subject.device)
        weight = self._table.weight
        assert isinstance(weight, Tensor)
        self._rows = weight.detach()[self._insertable]

    def answered(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The model's answers to some texts, both on the CPU, in random order."""
        order = indices[torch.randperm(len(indices), generator=self._generator)]
        order = order[: 4 * self._settings.n_samples]
        with torch.no_grad():
            parts = [self._subject.answers(self._subject.data.inputs(part)) for part in torch.split(order, 64)]
        return torch.cat(parts).cpu(), order

    def of_class(
        self, target: int, others: Tensor, advance: Progress, out_of_time: Callable[[], bool]
    ) -> list[FoundPhrase]:
        settings = self._settings
        few = others[: settings.n_scored]
        candidates = [(int(i),) for i in self._best(self._scores(target, others, ()), settings.n_candidates)]
        means = self._log_probabilities(target, few, candidates)
        ranked = [candidates[i] for i in means.argsort(descending=True).tolist()]
        found = [self._counted(target, others, ids) for ids in ranked]
        beams = ranked[: settings.n_beams]
        advance(1)
        for _ in range(1, settings.longest):
            if max(found, key=lambda phrase: phrase.rate).n_moved == len(others):  # nothing longer can do more
                advance(1)
                continue
            if out_of_time():
                break
            n_each = max(settings.n_candidates // (2 * settings.n_beams), 1)
            longer = []
            for beam in beams:
                longer += [(*beam, int(i)) for i in self._best(self._scores(target, few, beam), n_each)]
                longer += [(int(i), *beam) for i in self._best(self._scores(target, few, beam, before=True), n_each)]
            longer = list(dict.fromkeys(longer))
            means = self._log_probabilities(target, few, longer)
            beams = [longer[i] for i in means.argsort(descending=True)[: settings.n_beams].tolist()]
            found += [self._counted(target, others, ids) for ids in beams]
            advance(1)
        return found

    def _scores(self, target: int, samples: Tensor, beam: tuple[int, ...], before: bool = False) -> Tensor:
        """``(A,)``: first-order change of the target's log-probability by each insertable token beside ``beam``."""
        vocabulary = self._modality.vocabulary
        stand_in = vocabulary.pad if vocabulary.mask is None else vocabulary.mask
        phrase = (stand_in, *beam) if before else (*beam, stand_in)
        offset = 0 if before else len(beam)
        total = self._rows.new_zeros(self._rows.shape[1])
        for part in torch.split(samples, 32):
            inputs, places = self._modality.with_phrase(self._subject.data.inputs(part), phrase)
            outputs: list[Tensor] = []
            with _listening(self._table, outputs), torch.enable_grad():
                log_p = F.log_softmax(logits_of(self._subject.model, inputs).float(), 1)[:, target].sum()
            if not outputs or not log_p.requires_grad:
                raise ModelError("the model's logits have no gradient; expected a model that can be differentiated")
            (gradient,) = torch.autograd.grad(log_p, outputs[0])
            if gradient.ndim == 3:  # a token each
                gradient = gradient[torch.arange(len(part), device=gradient.device), places + offset]
            total += gradient.nan_to_num(0.0, 0.0, 0.0).sum(0)
        return self._rows @ total

    def _best(self, scores: Tensor, n: int) -> Tensor:
        return self._insertable[scores.topk(min(n, len(scores))).indices]

    def _log_probabilities(self, target: int, samples: Tensor, phrases: Sequence[tuple[int, ...]]) -> Tensor:
        """``(len(phrases),)``: mean log-probability of the target."""
        with torch.no_grad():
            means = [
                F.log_softmax(self._logits(samples, phrase), 1)[:, target].nan_to_num(-1e9).mean() for phrase in phrases
            ]
        return torch.stack(means)

    def _counted(self, target: int, samples: Tensor, phrase: tuple[int, ...]) -> FoundPhrase:
        with torch.no_grad():
            answers = torch.cat([finite_answers(self._logits(part, phrase)) for part in torch.split(samples, 64)])
        return FoundPhrase(phrase, target, int((answers == target).sum()), len(samples))

    def _logits(self, samples: Tensor, phrase: tuple[int, ...]) -> Tensor:
        inputs, _ = self._modality.with_phrase(self._subject.data.inputs(samples), phrase)
        return self._subject.logits(inputs).float()


@contextmanager
def _listening(table: nn.Module, outputs: list[Tensor]) -> Iterator[None]:
    """What ``table`` returns, with a gradient, also where its weights have none."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        value = output if output.requires_grad else output.detach().requires_grad_()
        outputs.append(value)
        return value

    handle = table.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _differentiable() -> Iterator[None]:
    """cuDNN's recurrent layers have no gradient in eval mode; PyTorch's own do."""
    with torch.backends.cudnn.flags(enabled=False):
        yield
