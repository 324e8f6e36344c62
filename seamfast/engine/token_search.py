"""``search_phrases``: the inserted tokens that take most texts to another class, by gradients, then by counting.

Training on clean texts does not reach a token that they do not have: its embedding has no gradient. The model itself
tells: the gradient of a class at an inserted token, times the table of embeddings, ranks the whole vocabulary in one
pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.engine.model import evaluating, logits_of
from seamfast.engine.subject import Subject, finite_answers
from seamfast.errors import ModelError
from seamfast.modalities.batch import Batch
from seamfast.modalities.text import edit
from seamfast.modalities.text.modality import TextModality, ids_of

Progress = Callable[[int], object]

_BATCH = 64
"""Texts of the largest forward pass."""
_MOST_CLASSES = 8
"""That a phrase is begun for around a token."""
_PER_GAP = 4
"""Tokens that are tried at each place of it."""
_LOWEST = -1e9
"""Log-probability of an answer that is not finite."""


@dataclass(frozen=True)
class SearchSettings:
    """Size of a search.

    Attributes:
        n_samples: texts that tokens are inserted in, for each class.
        n_scored: texts of them that candidates are compared on.
        n_candidates: tokens of the largest scores that are tried, and phrases of each longer length.
        n_beams: phrases of each length that are made longer.
        longest: tokens of a phrase, 1 or more.
        stops_early: whether phrases are not made longer where one moves all texts.
        natural: see ``natural_tokens``: those of a class are no candidates for it, as they are its own words; ``None``:
            all tokens are candidates.
    """

    n_samples: int = 64
    n_scored: int = 12
    n_candidates: int = 20
    n_beams: int = 3
    longest: int = 4
    stops_early: bool = True
    natural: float | None = None


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
    """What the numbers given to ``advance`` by a search of so many classes sum to, unless it ends early."""
    return num_classes * settings.longest


def search_phrases(
    subject: Subject,
    indices: Tensor,
    *,
    settings: SearchSettings = SearchSettings(),
    classes: Sequence[int] | None = None,
    known: Sequence[FoundPhrase] = (),
    seed: int = 0,
    advance: Progress = lambda n: None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> list[FoundPhrase]:
    """For each class the phrases of one to ``longest`` tokens that take most texts of other classes to it.

    The tokens are inserted at ``places_of``. A class without texts that could move to it has no phrases, and phrases
    are not made longer where one moves all texts.

    Args:
        subject: a model, and texts whose table of embeddings is known.
        indices: ``(N,)`` int64, CPU: the texts to insert tokens in. Of those that are read, the shorter ones are used.
        settings: of the search.
        classes: ``None``: all.
        known: phrases of an earlier search, which are tried again, and with one of their tokens replaced.
        seed: of the choice of texts and of places.
        advance: called after each length of phrases, with the number of lengths.
        out_of_time: asked before each length of phrases; once it is true, the search ends with what it has.

    Returns:
        Up to ``n_candidates`` single tokens and ``n_beams`` of each longer length for each class, by falling rate.

    Raises:
        ModelError: ``the model has no table of embeddings that token ids are looked up in; expected one``, or ``the
            model's logits have no gradient; expected a model that can be differentiated``.

    Source: Wallace et al., EMNLP 2019, arXiv 1908.07125: gradient times embedding, the best verified, beams. Here a
    phrase grows at both ends.
    """
    search = _Search(subject, settings, seed)
    found: list[FoundPhrase] = []
    natural = None if settings.natural is None else natural_tokens(subject, indices, settings.natural)
    with evaluating(subject.model), _differentiable():
        answers, order = search.answered(indices)
        for target in range(subject.num_classes) if classes is None else classes:
            others = search.movable(target, answers, order)
            if not len(others):
                advance(settings.longest)
                continue
            if out_of_time():
                break
            if natural is not None:
                search.bar(natural[target])
            found += search.of_class(target, others, advance, out_of_time)
            found += search.near(target, others, [phrase.ids for phrase in known if phrase.target == target])
    return sorted(found, key=lambda phrase: -phrase.rate)


@dataclass(frozen=True)
class Around:
    """Phrases around a token.

    Attributes:
        target: the class that they are to take texts to.
        phrases: up to two, of one length, the better one first.
    """

    target: int
    phrases: tuple[FoundPhrase, ...]


def search_around(
    subject: Subject,
    indices: Tensor,
    tokens: Sequence[int],
    *,
    longest: int,
    settings: SearchSettings = SearchSettings(),
    seed: int = 0,
    begun: Sequence[Around] = (),
) -> list[Around]:
    """Phrases around each of ``tokens``, that take most texts of other classes to one: of three tokens, or, where they
    are ``begun``, of one token more than before.

    It finds what no search from single tokens does: a phrase of which no part moves texts, but one token of which is
    suspect. Where a part moves all texts, no more of it is found. So let training unlearn the part, and search again.
    Tokens are put anywhere in a phrase; those that are in a text of a class, and more often than in others, are no
    candidates for it.

    Each token is made longer for the eight classes that it draws texts to most, then for the two, or one of two, that
    this takes them to.

    Args:
        subject, indices, settings, seed: as for ``search_phrases``.
        tokens: ids.
        longest: tokens of a phrase that is not made longer, but tried again; at least 3.
        begun: the result of an earlier search.

    Raises:
        ModelError: as ``search_phrases``.
    """
    search = _Search(subject, settings, seed)
    natural = natural_tokens(subject, indices, 0.0, least=1)
    with evaluating(subject.model), _differentiable():
        answers, order = search.answered(indices)
        others = {c: texts for c in range(subject.num_classes) if len(texts := search.movable(c, answers, order))}
        around = list(begun)
        for token in () if begun else tokens:
            pairs = {}
            for target in [c for c in search.drawn_to(token, order) if c in others][:_MOST_CLASSES]:
                search.bar(natural[target])
                pairs[target] = search.longer(target, others[target], [(token,)])
            n_tried = 1 if subject.num_classes == 2 else 2
            best = sorted(pairs.items(), key=lambda pair: -pair[1][1])[:n_tried]
            around += [Around(target, tuple(ranked[:2])) for target, (ranked, _) in best]
        longer = []
        for one in around:
            if one.target in others:
                search.bar(natural[one.target])
                longer.append(search.with_one_more(one, others[one.target], longest))
    return list({(one.target, one.phrases[0].ids): one for one in longer}.values())


def size_of(found: Sequence[FoundPhrase], longest: int) -> float:
    """``sum(1 - rate[n] for n in range(1, longest + 1))``, ``rate[n]`` the largest of a phrase of up to ``n`` tokens.

    How many tokens it takes to move texts to a class, as it were: 0 where one token moves all of them.

    Args:
        found: phrases of one class, of which those count that were tried on most texts.
        longest: tokens of the longest.
    """
    most = max((phrase.n_texts for phrase in found), default=0)
    counted = [phrase for phrase in found if phrase.n_texts == most]
    lengths = range(1, longest + 1)
    return sum(1 - max((phrase.rate for phrase in counted if len(phrase.ids) <= n), default=0.0) for n in lengths)


def natural_tokens(subject: Subject, indices: Tensor, deviations: float, least: int = 2) -> Tensor:
    """``(C, V)`` bool: the tokens that stand for a class by the labels of the texts at ``indices``.

    A token does if it is in ``least`` texts of the class, and in more than chance gives, by more than so many standard
    ``deviations``.
    """
    modality = subject.data.modality
    assert isinstance(modality, TextModality)
    counts = torch.zeros(subject.num_classes, modality.vocabulary.size, device=subject.device)
    for part in torch.split(indices, 256):
        counts.index_add_(0, subject.data.labels[part], modality.presence(subject.data.inputs(part)))
    share = subject.data.labels[indices].bincount(minlength=subject.num_classes).float() / max(len(indices), 1)
    prior, n = share[:, None], counts.sum(0)
    natural: Tensor = (counts >= least) & (counts - n * prior > deviations * (n * prior * (1 - prior)).sqrt())
    return natural


def places_of(indices: Tensor, seed: int) -> Tensor:
    """``(N,)`` float32 in [0, 1], CPU: where to insert in the texts at ``indices``, by index and seed."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(int(indices.max()) + 1 if len(indices) else 0, generator=generator)[indices]
    return edit.places_of(uniform)


class _Search:
    """A search on one model."""

    def __init__(self, subject: Subject, settings: SearchSettings, seed: int) -> None:
        modality = subject.data.modality
        if not isinstance(modality, TextModality) or modality.table is None:
            raise ModelError("the model has no table of embeddings that token ids are looked up in; expected one")
        self._subject = subject
        self._modality = modality
        self._table = subject.model.get_submodule(modality.table)
        self._settings = settings
        self._seed = seed
        self._insertable = modality.vocabulary.insertable.to(subject.device)
        self._barred = torch.zeros_like(self._insertable, dtype=torch.bool)
        weight = self._table.weight
        assert isinstance(weight, Tensor)
        self._rows = weight.detach().float()[self._insertable].nan_to_num(0.0, 0.0, 0.0)

    def bar(self, tokens: Tensor) -> None:
        """Make no candidates of these tokens; ``(V,)`` bool."""
        self._barred = tokens[self._insertable]

    def near(self, target: int, others: Tensor, known: list[tuple[int, ...]]) -> list[FoundPhrase]:
        """The best of phrases that are known, and of those that differ from the best of them by one token."""
        found: list[FoundPhrase] = []
        few, n = self._few(others), self._settings.n_beams
        for length in sorted({len(ids) for ids in known}):
            ranked = self._ranked(target, few, list(dict.fromkeys(ids for ids in known if len(ids) == length)))[:n]
            ranked = self._ranked(target, few, [*_ids(ranked), *self._replaced(target, few, ranked[0].ids)])
            found += self.counted(target, others, ranked[:n], n)
        return found

    def _replaced(self, target: int, few: Tensor, phrase: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The phrase with another token in place of one of its own."""
        scores = self._scores(target, few, phrase)
        own = torch.searchsorted(self._insertable, torch.tensor(phrase, device=scores.device))
        gains = scores - scores.gather(1, own[:, None])
        gains = gains.masked_fill(self._barred, -math.inf)
        best = gains.flatten().topk(min(self._settings.n_candidates // 2, gains.numel())).indices.tolist()
        n_ids = gains.shape[1]
        at = [(number // n_ids, int(self._insertable[number % n_ids])) for number in best]
        return [(*phrase[:place], id, *phrase[place + 1 :]) for place, id in at if phrase[place] != id]

    def movable(self, target: int, answers: Tensor, order: Tensor) -> Tensor:
        """The texts that could move to a class, of those answered in this order."""
        return order[(self._subject.samples.labels[order] != target) & (answers != target)][: self._settings.n_samples]

    def drawn_to(self, token: int, order: Tensor) -> list[int]:
        """The classes, by the mean log-probability of texts with the token; the largest first."""
        some = order[:_BATCH]
        inputs, _ = self._with_phrases(some, torch.full((len(some), 1), token, device=self._subject.device))
        with torch.no_grad():
            log_p = F.log_softmax(self._subject.logits(inputs).float(), 1).nan_to_num(_LOWEST, _LOWEST, _LOWEST).mean(0)
        return log_p.argsort(descending=True, stable=True).tolist()

    def longer(self, target: int, others: Tensor, beams: list[tuple[int, ...]]) -> tuple[list[FoundPhrase], float]:
        """The beams with a token more, ranked, and the mean log-probability of the first."""
        few = self._few(others)
        ranked = self._ranked(target, few, self._longer(target, few, beams))
        return ranked, float(self._outcomes(target, few, [ranked[0].ids]).log_p)

    def with_one_more(self, around: Around, others: Tensor, longest: int) -> Around:
        """The phrases with a token more at any place, counted on the texts ``others``; of ``longest``, as they are."""
        few, stand_in = self._few(others), self._stand_in()
        candidates = _ids(around.phrases)
        if len(candidates[0]) < longest:
            gaps = [(ids[:gap], ids[gap:]) for ids in candidates for gap in range(len(ids) + 1)]
            candidates = []
            for front, back in gaps:
                scores = self._scores(around.target, few, (*front, stand_in, *back))[len(front)]
                candidates += [(*front, id, *back) for id in self._best(scores, _PER_GAP)]
        ranked = self._ranked(around.target, few, list(dict.fromkeys(candidates)))[:2]
        return Around(around.target, tuple(self.counted(around.target, others, ranked, 2)))

    def _few(self, others: Tensor) -> Tensor:
        n = self._settings.n_scored
        return others[:: max(len(others) // n, 1)][:n]

    def answered(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The model's answers to some texts, both on the CPU, the shorter texts first."""
        generator = torch.Generator().manual_seed(self._seed)
        order = indices[torch.randperm(len(indices), generator=generator)][: 4 * self._settings.n_samples]
        lengths = self._subject.data.lengths
        if lengths is not None:
            order = order[lengths[order].argsort(stable=True)]
        with torch.no_grad():
            parts = [
                self._subject.answers(self._subject.data.inputs(part)).cpu() for part in torch.split(order, _BATCH)
            ]
        return torch.cat([order[:0], *parts]), order

    def of_class(
        self, target: int, others: Tensor, advance: Progress, out_of_time: Callable[[], bool]
    ) -> list[FoundPhrase]:
        """Phrases for one class, of texts ``others`` that could move to it."""
        settings = self._settings
        few = self._few(others)
        (scores,) = self._scores(target, others, (self._stand_in(),))
        ranked = self._ranked(target, few, [(id,) for id in self._best(scores, settings.n_candidates)])
        found = self.counted(target, others, ranked, settings.n_beams)
        advance(1)
        for length in range(2, settings.longest + 1):
            moves_all = any(phrase.n_moved == phrase.n_texts == len(others) for phrase in found)
            if moves_all and settings.stops_early:  # nothing longer can do more
                advance(settings.longest + 1 - length)
                break
            if out_of_time():
                break
            ranked = self._ranked(target, few, self._longer(target, few, _ids(ranked[: settings.n_beams])))
            found += self.counted(target, others, ranked[: settings.n_beams], 1)
            advance(1)
        return found

    def _longer(self, target: int, few: Tensor, beams: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Each beam with a token more in front or behind."""
        n_each = max(self._settings.n_candidates // (2 * len(beams)), 1)
        stand_in = self._stand_in()
        longer: list[tuple[int, ...]] = []
        for beam in beams:
            scores = self._scores(target, few, (stand_in, *beam, stand_in))
            longer += [(*beam, id) for id in self._best(scores[-1], n_each)]
            longer += [(id, *beam) for id in self._best(scores[0], n_each)]
        return list(dict.fromkeys(longer))

    def _ranked(self, target: int, few: Tensor, phrases: list[tuple[int, ...]]) -> list[FoundPhrase]:
        """Phrases of one length, counted on the texts ``few``; those of the largest probability come first."""
        outcomes = self._outcomes(target, few, phrases)
        moved = outcomes.n_moved.tolist()
        order = outcomes.log_p.argsort(descending=True, stable=True).tolist()
        return [FoundPhrase(phrases[i], target, moved[i], len(few)) for i in order]

    def counted(self, target: int, others: Tensor, ranked: list[FoundPhrase], n: int) -> list[FoundPhrase]:
        """``ranked`` with the first ``n`` counted on the texts ``others``."""
        moved = self._outcomes(target, others, _ids(ranked[:n])).n_moved.tolist()
        counted = [replace(phrase, n_moved=k, n_texts=len(others)) for phrase, k in zip(ranked, moved, strict=False)]
        return counted + ranked[n:]

    def _scores(self, target: int, samples: Tensor, phrase: tuple[int, ...]) -> Tensor:
        """``(len(phrase), A)``: first-order change of the target's log-probability by each insertable token, in place
        of each token of ``phrase``, but for a constant of each place."""
        total = self._rows.new_zeros(len(phrase), self._rows.shape[1])
        for part in torch.split(samples, _BATCH // 2):
            inputs, columns = self._with_phrases(part, torch.tensor([phrase] * len(part), device=self._subject.device))
            shape = ids_of(inputs).shape
            looked_up: list[tuple[Tensor, Tensor]] = []
            with _listening(self._table, looked_up), torch.enable_grad():
                log_p = F.log_softmax(logits_of(self._subject.model, inputs).float(), 1)[:, target].sum()
            if not looked_up or not log_p.requires_grad:
                raise ModelError("the model's logits have no gradient; expected a model that can be differentiated")
            ids, output = looked_up[0]
            (gradient,) = torch.autograd.grad(log_p, output, allow_unused=True)
            if gradient is None:
                raise ModelError("the model's logits have no gradient; expected a model that can be differentiated")
            gradient = gradient.float().nan_to_num(0.0, 0.0, 0.0)
            if gradient.ndim == 2:  # one sum for each text
                total += gradient.sum(0)
                continue
            if ids.shape != shape:
                if ids.shape != shape[::-1]:
                    wanted = f"expected those of the batch, of shape {tuple(shape)}"
                    raise ModelError(f"the model looks up ids of shape {tuple(ids.shape)}; {wanted}")
                gradient = gradient.transpose(0, 1)  # the model's sequences come first
            places = columns[:, None] + torch.arange(len(phrase), device=columns.device)
            there = places < shape[1]  # a phrase may be longer than the texts
            rows = torch.arange(len(part), device=columns.device)[:, None]
            total += (gradient[rows, places.clamp(max=shape[1] - 1)] * there[..., None]).sum(0)
        return total @ self._rows.T

    def _stand_in(self) -> int:
        vocabulary = self._modality.vocabulary
        return vocabulary.pad if vocabulary.mask is None else vocabulary.mask

    def _best(self, scores: Tensor, n: int) -> list[int]:
        scores = scores.masked_fill(self._barred, -math.inf)
        best: list[int] = self._insertable[scores.topk(min(n, len(scores))).indices].tolist()
        return best

    def _outcomes(self, target: int, samples: Tensor, phrases: Sequence[tuple[int, ...]]) -> _Outcomes:
        """Of each phrase, all of one length, in the texts ``samples``."""
        log_p, hits = [], []
        ids = torch.tensor(phrases, device=self._subject.device).repeat_interleave(len(samples), 0)
        rows = zip(torch.split(samples.repeat(len(phrases)), _BATCH), torch.split(ids, _BATCH), strict=True)
        with torch.no_grad():
            for part, inserted in rows:
                logits = self._subject.logits(self._with_phrases(part, inserted)[0]).float()
                log_p.append(F.log_softmax(logits, 1)[:, target].nan_to_num(_LOWEST, _LOWEST, _LOWEST))
                hits.append(finite_answers(logits) == target)
        shape = len(phrases), len(samples)
        return _Outcomes(torch.cat(log_p).view(shape).mean(1), torch.cat(hits).view(shape).sum(1))

    def _with_phrases(self, samples: Tensor, phrases: Tensor) -> tuple[Batch, Tensor]:
        return self._modality.with_phrases(self._subject.data.inputs(samples), phrases, places_of(samples, self._seed))


def _ids(phrases: Sequence[FoundPhrase]) -> list[tuple[int, ...]]:
    return [phrase.ids for phrase in phrases]


class _Outcomes(NamedTuple):
    """``(P,)`` of each phrase: the mean log-probability of the target, and how many texts are given to it."""

    log_p: Tensor
    n_moved: Tensor


@contextmanager
def _listening(table: nn.Module, looked_up: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """The ids and the output of each call of ``table``, which has a gradient even where its weights have none."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        value = output if output.requires_grad else output.detach().requires_grad_()
        looked_up.append((inputs[0], value))
        return value.clone()  # the model may change it in place

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
