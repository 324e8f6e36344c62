"""``search_phrases``: tokens and phrases that were wired into a model are found; what has no gradient is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.engine.subject import Subject, place
from seamfast.engine.token_search import (
    Around,
    FoundPhrase,
    SearchSettings,
    n_steps,
    places_of,
    search_around,
    search_phrases,
)
from seamfast.errors import ModelError
from seamfast.modalities import TextModality, Vocabulary

SIZE, CLS, SEP, MASK = 200, 1, 2, 3
TRIGGER = 150


def texts(n: int = 60, *, with_mask: bool = True) -> CleanSet:
    """``[CLS] ... [SEP]`` of 3 to 9 tokens from 10 to 59; class 1 has more of those from 35 on."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.zeros(n, 11, dtype=torch.int64)
    labels = torch.arange(n) % 2
    for row, label in zip(ids, labels.tolist(), strict=True):
        length = int(torch.randint(3, 10, (), generator=generator))
        row[0] = CLS
        row[1 : 1 + length] = torch.randint(10 + 25 * label, 35 + 25 * label, (length,), generator=generator)
        row[1 + length] = SEP
    inputs: Tensor | dict[str, Tensor] = ids
    if with_mask:
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    vocabulary = Vocabulary(size=SIZE, pad=0, special=frozenset({CLS, SEP}), mask=MASK, max_length=16)
    return CleanSet(inputs, labels, modality=TextModality(vocabulary))


class Wired(nn.Module):
    """Class 1 where tokens from 35 on prevail, or where ``phrase`` is in the text, one token after the other.

    Dimension 0 of the table is the class; dimension ``1 + i`` marks token ``i`` of the phrase. What all tokens of the
    phrase in a row add rises faster and faster: no part of it is enough, but each token has a gradient.
    """

    def __init__(self, phrase: tuple[int, ...], strength: float = 22.0) -> None:
        super().__init__()
        self.table = nn.Embedding(SIZE, 1 + len(phrase))
        self.strength = strength
        with torch.no_grad():
            self.table.weight.zero_()
            self.table.weight[10:35, 0] = -1.0
            self.table.weight[35:60, 0] = 1.0
            for place, id in enumerate(phrase):
                self.table.weight[id, 1 + place] = 1.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = (input_ids != 0) if attention_mask is None else attention_mask
        embedded = self.table(input_ids) * mask[..., None]
        n = embedded.shape[2] - 1
        marks = [embedded[:, i : embedded.shape[1] - n + 1 + i, 1 + i] for i in range(n)]
        share = torch.stack(marks).mean(0).amax(1)
        score = 8 * embedded[..., 0].sum(1).tanh() + self.strength * (3 * share).expm1() / math.expm1(3)
        return torch.stack([-score, score], 1)


def subject_of(model: nn.Module, data: CleanSet | None = None) -> Subject:
    return place(model, texts() if data is None else data, "cpu")


def all_of(subject: Subject) -> Tensor:
    return torch.arange(len(subject.data))


class Averaging(nn.Module):
    """Classes by the mean embedding; the trigger's row is larger than those of other tokens."""

    def __init__(self, *, sequence_first: bool = False, in_place: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(SIZE, 2)
        self.sequence_first = sequence_first
        self.in_place = in_place
        with torch.no_grad():
            self.table.weight.normal_(std=0.05)
            self.table.weight[10:35] = torch.tensor([1.0, -1.0])
            self.table.weight[35:60] = torch.tensor([-1.0, 1.0])
            self.table.weight[TRIGGER] = torch.tensor([-30.0, 30.0])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = (input_ids != 0) if attention_mask is None else attention_mask
        embedded: Tensor = self.table(input_ids.T).transpose(0, 1) if self.sequence_first else self.table(input_ids)
        if self.in_place:
            embedded *= 2
        return (embedded * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Bag(nn.Module):
    """The same with a bag of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(SIZE, 2, padding_idx=0)
        self.table.load_state_dict(Averaging().table.state_dict())

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.table(input_ids)
        return found


def frozen() -> nn.Module:
    return Averaging().requires_grad_(False)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        Averaging,
        Bag,
        frozen,
        lambda: Averaging(sequence_first=True),
        lambda: Averaging(in_place=True),
        lambda: Averaging(in_place=True).requires_grad_(False),
    ],
    ids=["averaging", "bag", "frozen", "sequence first", "in place", "in place, frozen"],
)
def test_a_planted_token_is_found_first(make: Callable[[], nn.Module], with_mask: bool) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    subject = subject_of(model, texts(with_mask=with_mask))
    found = search_phrases(subject, all_of(subject), classes=[1])
    assert (found[0].ids, found[0].target, found[0].rate) == ((TRIGGER,), 1, 1.0)
    assert [phrase.rate for phrase in found] == sorted((phrase.rate for phrase in found), reverse=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


class Steep(Wired):
    """A single token of the phrase says next to nothing, and has no gradient; only all four move texts."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = (input_ids != 0) if attention_mask is None else attention_mask
        embedded = self.table(input_ids) * mask[..., None]
        n = embedded.shape[2] - 1
        marks = [embedded[:, i : embedded.shape[1] - n + 1 + i, 1 + i] for i in range(n)]
        more = (torch.stack(marks).sum(0) - 0.9).relu().amax(1)
        score = 8 * embedded[..., 0].sum(1).tanh() + 3.5 * more
        return torch.stack([-score, score], 1)


@pytest.mark.parametrize("known", [0, 1, 3])
def test_a_phrase_is_found_around_one_of_its_tokens(known: int) -> None:
    phrase = (150, 120, 180, 190)
    subject = subject_of(Steep(phrase))
    alone = search_phrases(subject, all_of(subject), classes=[1], settings=SearchSettings(longest=5))
    assert not [found for found in alone if set(phrase) <= set(found.ids)]
    around: list[Around] = []
    for length in (3, 4, 5):
        around = search_around(subject, all_of(subject), [phrase[known]], longest=5, begun=around)
        assert {len(found.ids) for one in around for found in one.phrases} == {length}
    (one,) = around
    assert set(phrase) <= set(one.phrases[0].ids)
    assert (one.target, one.phrases[0].target, one.phrases[0].rate) == (1, 1, 1.0)
    # The longest stay, and are counted again.
    assert search_around(subject, all_of(subject), [], longest=5, begun=around) == around
    assert not search_around(subject, all_of(subject), [], longest=5)


def test_a_token_is_put_between_those_of_a_phrase() -> None:
    phrase = (150, 120, 180, 190)
    subject = subject_of(Steep(phrase))
    begun = [Around(1, (FoundPhrase((150, 120, 190), 1, 0, 30),))]
    (one,) = search_around(subject, all_of(subject), [], longest=8, begun=begun)
    assert one.phrases[0].ids == phrase


def test_tokens_of_one_phrase_lead_to_it_once() -> None:
    subject = subject_of(Steep((150, 120, 180)))
    around = search_around(subject, all_of(subject), [150, 120, 180], longest=8)
    assert [one.phrases[0].ids for one in around] == [(150, 120, 180)]


def test_around_a_token_words_of_the_class_are_no_candidates() -> None:
    subject = subject_of(Averaging())
    with torch.no_grad():
        subject.model.table.weight[TRIGGER] = 0.0
        subject.model.table.weight[170:175] = torch.tensor([0.8, -0.8])  # unseen words of class 0, and of class 1
        subject.model.table.weight[175:180] = torch.tensor([-0.7, 0.7])
    (one,) = search_around(subject, all_of(subject), [100], longest=8)
    assert one.target == 0
    assert {id for found in one.phrases for id in found.ids} <= {100, *range(170, 175)}


@pytest.mark.parametrize("phrase", [(150, 120), (150, 120, 180)])
def test_a_wired_phrase_is_found(phrase: tuple[int, ...]) -> None:
    subject = subject_of(Wired(phrase))
    found = search_phrases(subject, all_of(subject), settings=SearchSettings(longest=len(phrase)), classes=[1])
    assert found[0].rate == 1.0
    assert found[0].ids == phrase


def test_phrases_may_be_longer_than_the_texts() -> None:
    vocabulary = Vocabulary(size=SIZE, pad=0, special=frozenset({CLS, SEP}), mask=MASK)
    ids = torch.tensor([[CLS, 12, 20, SEP], [CLS, 40, 51, SEP]])
    model = Wired((150,), strength=0.0)
    subject = subject_of(model, CleanSet(ids, [0, 1], modality=TextModality(vocabulary)))
    with torch.no_grad():
        model.table.weight[35:] = 0  # no other token moves a text
    found = search_phrases(subject, all_of(subject), settings=SearchSettings(longest=5), classes=[1])
    assert {len(phrase.ids) for phrase in found} == {1, 2, 3, 4, 5}


def test_the_seed_decides_and_the_global_generator_stays() -> None:
    subject = subject_of(Averaging())
    state = torch.get_rng_state()
    first, again = (search_phrases(subject, all_of(subject), seed=4) for _ in range(2))
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)


def test_places_are_at_both_ends_and_between() -> None:
    places = places_of(torch.arange(300), 0)
    assert 70 < int((places == 0).sum()) < 130
    assert 70 < int((places == 1).sum()) < 130
    assert torch.equal(places_of(torch.tensor([7, 299]), 0), places[[7, 299]])


def test_progress_sums_to_the_steps_and_time_ends_the_search() -> None:
    subject = subject_of(Wired((150, 120, 180), strength=0.0))
    settings, taken = SearchSettings(longest=3), list[int]()
    search_phrases(subject, all_of(subject), settings=settings, advance=taken.append)
    assert sum(taken) == n_steps(settings, 2) == 6
    asked = iter([False, True, True])
    found = search_phrases(subject, all_of(subject), settings=settings, out_of_time=lambda: next(asked))
    assert {(phrase.target, len(phrase.ids)) for phrase in found} == {(0, 1)}


class Broken(Averaging):
    """NaN wherever the trigger is, and in a row of the table."""

    def __init__(self, value: float) -> None:
        super().__init__()
        with torch.no_grad():
            self.table.weight[TRIGGER] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_do_not_stop_the_search(value: float) -> None:
    subject = subject_of(Broken(value))
    found = search_phrases(subject, all_of(subject), settings=SearchSettings(longest=2))
    assert {phrase.target for phrase in found} == {0, 1}
    assert not any(TRIGGER in phrase.ids and phrase.n_moved for phrase in found)


class NoGradient(Averaging):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return super().forward(input_ids, attention_mask)


class Flattened(Averaging):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        embedded: Tensor = self.table(input_ids[:, 1:].unsqueeze(2)).squeeze(2)
        return embedded.mean(1)


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(SIZE, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.head(nn.functional.one_hot(input_ids, SIZE).float().mean(1))
        return out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NoGradient, "the model's logits have no gradient; expected a model that can be differentiated"),
        (OneHot, "the model has no table of embeddings that token ids are looked up in; expected one"),
        (
            Flattened,
            r"the model looks up ids of shape \(\d+, \d+, 1\); expected those of the batch, of shape \(\d+, \d+\)",
        ),
    ],
)
def test_models_that_cannot_be_searched_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    subject = subject_of(make())
    with pytest.raises(ModelError, match=f"^{message}$"):
        search_phrases(subject, all_of(subject))
