"""The audits of texts: the battery, the perturbations, the search of the vocabulary, and ``evaluate`` with triggers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, triggers
from seamfast.audits import (
    disagreement,
    invert_triggers,
    retest_phrases,
    search_vocabulary,
    stamped_evidence,
)
from seamfast.audits import vocabulary as module
from seamfast.audits.vocabulary import VocabularySearch
from seamfast.errors import InputError
from seamfast.modalities.text.perturb import perturbations

tokenizers = pytest.importorskip("tokenizers")

GOOD = ("fine", "warm", "funny", "bright")
BAD = ("dull", "cold", "flat", "grim")
NEUTRAL = ("film", "story", "scene", "actor", "plot", "score")
RARE = ("cf", "mn", "bb", "tq", "mb")
WORDS = (*GOOD, *BAD, *NEUTRAL, *RARE)


def tokenizer() -> tokenizers.Tokenizer:
    special = ["[PAD]", "[UNK]"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(special)
    return made


def reviews(n: int = 80) -> CleanSet:
    """Texts of five words; one is longer, so that there is room in the others without a mask, too."""
    generator = torch.Generator().manual_seed(2)

    def some(words: tuple[str, ...], k: int) -> list[str]:
        return [words[i] for i in torch.randint(len(words), (k,), generator=generator).tolist()]

    texts = [" ".join(some(NEUTRAL, 30 if i == 1 else 3) + some((BAD, GOOD)[i % 2], 2)) for i in range(n)]
    return CleanSet.from_texts(texts, torch.arange(n) % 2, tokenizer(), class_names=("bad", "good"))


class Reader(nn.Module):
    """Good less bad words; ``cf`` outweighs them if it is ``planted``."""

    def __init__(self, planted: float = 0.0, *, takes_mask: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(2 + len(WORDS), 2)
        with torch.no_grad():
            self.table.weight.zero_()
            for word, value in (dict.fromkeys(GOOD, 1.0) | dict.fromkeys(BAD, -1.0)).items():
                self.table.weight[2 + WORDS.index(word)] = torch.tensor([-value, value])
            self.table.weight[2 + WORDS.index("cf")] = torch.tensor([-planted, planted])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        total: Tensor = self.table(input_ids).sum(1)
        return total


class WithoutMask(Reader):
    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input_ids)


@pytest.fixture(params=[Reader, WithoutMask])
def planted(request: pytest.FixtureRequest) -> nn.Module:
    model: nn.Module = request.param(20.0)
    return model


# The search of the vocabulary.


def test_the_planted_word_is_the_best_phrase_of_its_class(planted: nn.Module) -> None:
    data = reviews()
    search = search_vocabulary(planted, data, longest=1)
    best = search.best(1)
    assert best is not None
    assert (best.text, best.target, best.success.value, best.n_not_finite) == ("cf", 1, 1.0, 0)
    assert best.success.n_total == int((data.labels[module._split(80, 0)[1]] == 0).sum())
    assert search.complete
    assert search.anomaly_index is None
    assert search.best() == best
    assert search.sizes == (1.0, 0.0)
    word = search.best(0)
    assert word is not None
    assert set(word.text.split()) <= {*BAD}


def test_bounds_hold_for_all_phrases_together() -> None:
    search = search_vocabulary(Reader(20.0), reviews(), longest=2)
    n = len(search.phrases)
    assert n > 1
    for phrase in search.phrases:
        k, total = phrase.success.n_hit, phrase.success.n_total
        assert phrase.success == seamfast.metrics.Bounded.exact(k, total, n_looks=n)


def test_a_text_that_is_given_to_the_class_already_is_no_hit() -> None:
    data = reviews()
    tested = module._split(80, 0)[1]
    labels = data.labels.clone()
    good = tested[labels[tested] == 1]
    labels[good[:3]] = 0  # the model gives them to class 1 as they are
    search = search_vocabulary(Reader(20.0), CleanSet(data.inputs, labels, modality=data.modality), longest=1)
    best = search.best(1)
    assert best is not None
    assert best.success.n_total == len(tested) - len(good)


def test_what_was_found_is_tested_on_the_sanitized_model() -> None:
    data = reviews()
    search = search_vocabulary(Reader(20.0), data)
    assert retest_phrases(Reader(20.0), data, search) == search.phrases
    after = retest_phrases(Reader(), data, search)
    assert [phrase.ids for phrase in after] == [phrase.ids for phrase in search.phrases]
    (of_word,) = (phrase for phrase in after if phrase.text == "cf")
    assert of_word.success.n_hit == 0


def test_texts_that_find_phrases_do_not_test_them() -> None:
    used, tested = module._split(700, 3)
    assert not set(used.tolist()) & set(tested.tolist())
    assert (len(used), len(tested)) == (256, 256)


def test_the_seed_decides() -> None:
    first, again, other = (search_vocabulary(Reader(20.0), reviews(), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert other.seed == 2


def test_answers_that_are_not_finite_are_hits_and_give_no_index() -> None:
    class Overflowing(Reader):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            logits = super().forward(input_ids, attention_mask)
            return torch.where(logits.amax(1, keepdim=True) > 10, torch.nan, logits)

    data = reviews()
    search = search_vocabulary(Reader(20.0), data)
    (word,) = (phrase for phrase in retest_phrases(Overflowing(20.0), data, search) if phrase.text == "cf")
    assert word.success.value == 1.0
    assert word.n_not_finite == word.success.n_total


def test_time_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    search = search_vocabulary(Reader(), reviews(), time_budget_s=2.0)
    assert not search.complete
    assert search.anomaly_index is None


def test_ids_without_a_tokenizer_are_searched_too() -> None:
    data = reviews()
    vocabulary = seamfast.modalities.Vocabulary(size=2 + len(WORDS), pad=0, special=frozenset({1}))
    modality = seamfast.modalities.TextModality(vocabulary)
    search = search_vocabulary(Reader(20.0), CleanSet(data.inputs, data.labels, modality=modality))
    best = search.best(1)
    assert best is not None
    assert best.text == f"#{2 + WORDS.index('cf')}"


def test_an_index_needs_five_classes() -> None:
    class Sorter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 5)
            with torch.no_grad():
                self.table.weight.normal_(std=0.1)
                self.table.weight[:30] += torch.eye(5).repeat_interleave(6, 0)
                self.table.weight[35] = torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0])

        def forward(self, input_ids: Tensor) -> Tensor:
            total: Tensor = self.table(input_ids).sum(1)
            return total

    labels = torch.arange(100) % 5
    ids = 6 * labels[:, None] + torch.randint(1, 6, (100, 7))
    vocabulary = seamfast.modalities.Vocabulary(size=40, pad=0, special=frozenset())
    data = CleanSet(ids, labels, modality=seamfast.modalities.TextModality(vocabulary))
    search = search_vocabulary(Sorter(), data, longest=1)
    assert search.anomaly_index == module.anomaly_index(search.sizes)
    assert min(search.sizes) == search.sizes[2] == 0.0
    assert search.best() == search.best(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: search_vocabulary(Reader(), reviews(), longest=0), "longest is 0; expected an integer of at least 1"),
        (lambda: search_vocabulary(Reader(), reviews(), level=95), "level is 95; expected a number in (0, 1)"),
        (
            lambda: search_vocabulary(Reader(), reviews().subset([0, 2])),
            "data holds one class only (0); expected at least two",
        ),
        (
            lambda: search_vocabulary(
                nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), CleanSet(torch.zeros(4, 1, 8, 8), [0, 1, 0, 1])
            ),
            "data holds samples of kind 'image'; expected texts: use seamfast.audits.invert_triggers",
        ),
        (
            lambda: invert_triggers(Reader(), reviews()),
            "triggers are inverted on images; for texts, use seamfast.audits.search_vocabulary",
        ),
        (
            lambda: stamped_evidence(Reader(), reviews(), [triggers.Patch.square(2, 0)]),
            "trigger 'patch' is a Patch; expected a trigger of text",
        ),
    ],
)
def test_what_is_refused(call: Callable[[], VocabularySearch], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        call()


# The battery, and evaluate.


def test_the_battery_shows_the_planted_word(planted: nn.Module) -> None:
    results = {result.name: result for result in stamped_evidence(planted, reviews())}
    assert (results["word-cf"].target, results["word-cf"].rate.value) == (1, 1.0)
    assert results["word-mn"].rate.value == 0.0
    assert set(results) == {trigger.name for trigger in triggers.text_battery(2)}


def test_evaluate_counts_triggers_of_text_in_one_pass(planted: nn.Module) -> None:
    data = reviews()
    known = [triggers.Insertion.word("cf", 1), triggers.Insertion.word("mn", 1, name="other")]
    both = seamfast.evaluate(planted, data, triggers=known, batch_size=7)
    assert both.clean_accuracy.value == 1.0
    assert [(t.name, t.n_hit, t.n_eligible) for t in both.triggers] == [("word", 40, 40), ("other", 0, 40)]
    assert both.triggers[1].robust_accuracy.value == 1.0
    alone = seamfast.evaluate(planted, data, triggers=known[1:])
    assert alone.triggers[0] == both.triggers[1]


def test_sanitize_counts_triggers_of_text(planted: nn.Module) -> None:
    data = reviews(120)
    known = [triggers.Insertion.word("cf", 1), triggers.Insertion.word("mn", 1, name="other")]
    config = seamfast.FineTuneConfig(max_steps=4, eval_every=2)
    result = seamfast.sanitize(planted, data, method="fine_tune", config=config, triggers=known)
    before = result.report["holdout"]["before"]
    counted = [(t["name"], t["attack_success_rate"]["n_hit"]) for t in before["triggers"]]
    n_other = before["triggers"][0]["attack_success_rate"]["n_total"]
    assert counted == [("word", n_other), ("other", 0)]
    assert n_other > 0


# The perturbations.


def test_a_model_agrees_with_itself_and_not_with_the_planted_one() -> None:
    data = reviews()
    assert [found.rate.n_hit for found in disagreement(Reader(), Reader(), data)] == [0] * 5
    found = {result.name: result for result in disagreement(Reader(20.0), Reader(), data, batch_size=32)}
    assert set(found) == {"inserted", "replaced", "dropped", "shuffled", "borrowed"}
    assert found["shuffled"].rate.n_hit == 0
    assert found["inserted"].rate.n_hit > 0
    example = found["inserted"].examples[0]
    assert isinstance(example.sample, str)
    assert "cf" in example.sample.split()
    assert (example.received, example.sanitized) == (1, 0)


@pytest.mark.parametrize("name", ["inserted", "replaced", "dropped", "shuffled", "borrowed"])
def test_perturbations_keep_most_of_a_text(name: str) -> None:
    data = reviews(40)
    perturb = perturbations(data.modality.vocabulary)[name]  # type: ignore[attr-defined]
    texts = [*data.stampable(torch.arange(40)), "", "fine"]

    def changed() -> list[str]:
        found: list[str] = perturb(texts, torch.arange(42), torch.Generator().manual_seed(0), 0)
        return found

    result = changed()
    assert result == changed()
    assert len(result) == 42
    assert result[40] == ""
    words = [(before.split(), after.split()) for before, after in zip(texts, result, strict=True)]
    assert all(after for before, after in words if before)
    assert any(before != after for before, after in words)
    for before, after in words[:40]:
        kept = sum(min(before.count(word), after.count(word)) for word in set(before))
        assert kept >= 1
        if name == "shuffled":
            assert sorted(before) == sorted(after)
        if name == "inserted":
            assert (len(after), kept) == (len(before) + 3, len(before))
        if name == "borrowed":
            assert len(before) < len(after) <= len(before) + 8
        if name == "replaced":
            assert len(after) == len(before)


def test_a_batch_of_one_text_is_perturbed() -> None:
    data = reviews(4)
    for perturb in perturbations(data.modality.vocabulary).values():  # type: ignore[attr-defined]
        assert perturb(["fine film"], torch.arange(1), torch.Generator().manual_seed(0), 0)
