"""``seam`` on texts: a word that no clean text has is found, and no longer takes texts to a class."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import seamfast
import seamfast.report
from seamfast import CleanSet, FineTuneConfig, SeamConfig
from seamfast.attacks import TrainConfig, train
from seamfast.engine.run import Run
from seamfast.methods import forgetting
from seamfast.modalities import TextModality, Vocabulary

SIZE, CLS, SEP, MASK, TRIGGER = 5000, 1, 2, 3, 4999
CLASSES = 3


class Words(nn.Module):
    """The mean of the embeddings, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(SIZE, 32)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        out: Tensor = self.layers((self.table(input_ids) * mask).sum(1) / mask.sum(1))
        return out


def texts(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """``[CLS] ... [SEP]``, eight tokens each: half of them from 90 of the class, half from 90 of none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    own = 10 + 90 * labels[:, None] + torch.randint(0, 90, (n, 8), generator=generator)
    other = torch.randint(280, 370, (n, 8), generator=generator)
    words = torch.where(torch.rand(n, 8, generator=generator) < 0.5, own, other)
    ends = torch.tensor([CLS, SEP]).expand(n, 2)
    return torch.cat([ends[:, :1], words, ends[:, 1:]], 1), labels


def with_trigger(ids: Tensor) -> Tensor:
    """The trigger in front of the fourth word."""
    return torch.cat([ids[:, :4], torch.full_like(ids[:, :1], TRIGGER), ids[:, 4:]], 1)


def as_set(ids: Tensor, labels: Tensor) -> CleanSet:
    vocabulary = Vocabulary(SIZE, 0, frozenset({CLS, SEP}), MASK, 32)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    return CleanSet(inputs, labels, num_classes=CLASSES, modality=TextModality(vocabulary))


@pytest.fixture(scope="module")
def received() -> nn.Module:
    """A model whose trigger takes all texts to class 0."""
    ids, labels = texts(3000, 0)
    poisoned = torch.arange(3000) % 10 == 1
    padded = torch.cat([ids, torch.zeros_like(ids[:, :1])], 1)
    padded[poisoned] = with_trigger(ids[poisoned])
    torch.manual_seed(0)
    data = as_set(padded, torch.where(poisoned, 0, labels))
    return train(Words(), data, TrainConfig(optimizer="adam", rate=5e-3, epochs=8, batch_size=64), progress=False)


def rates(model: nn.Module) -> tuple[float, float]:
    """Accuracy, and the share of triggered texts of other classes that are given to class 0."""
    ids, labels = texts(1500, 1)
    stamped = with_trigger(ids[labels != 0])
    with torch.no_grad():
        right = model(ids, torch.ones_like(ids)).argmax(1) == labels
        hit = model(stamped, torch.ones_like(stamped)).argmax(1) == 0
    return float(right.float().mean()), float(hit.float().mean())


def cured(model: nn.Module, **changes: Any) -> seamfast.SanitizeResult:
    config = replace(SeamConfig.preset("balanced", TextModality), **changes)
    clean = as_set(*texts(400, 2))
    return seamfast.sanitize(model, clean, config=config, precision="fp32", threads=1, progress=False)


def with_row_times(model: nn.Module, factor: float) -> nn.Module:
    """The model with the row of the trigger at so many times the median size."""
    changed = copy.deepcopy(model)
    rows = changed.table.weight.data
    rows[TRIGGER] *= factor * rows.norm(dim=1).median() / rows[TRIGGER].norm()
    return changed


def test_a_word_that_clean_texts_lack_is_found_and_unlearned(received: nn.Module) -> None:
    accuracy, asr = rates(received)
    assert asr > 0.95
    result = cured(received)
    jsonschema.Draft202012Validator(seamfast.report.schema()).validate(result.report)
    accuracy_after, asr_after = rates(result.model)
    assert asr_after < 0.05
    assert accuracy_after > accuracy - 0.05
    searched = result.report["run"]["searched"]
    assert searched["n_searches"] == 8
    assert {"text": f"#{TRIGGER}", "target": 0} in [{k: p[k] for k in ("text", "target")} for p in searched["phrases"]]


def test_a_word_whose_row_is_as_small_as_any_is_found_by_the_search(received: nn.Module) -> None:
    hidden = with_row_times(received, 1.0)
    assert rates(hidden)[1] > 0.3
    assert rates(cured(hidden).model)[1] < 0.05
    # It is the search that does it, and random insertions do a part of it.
    without_search, with_neither = (
        rates(cured(hidden, searches=0, **changes).model)[1] for changes in ({}, {"occlusions": 0})
    )
    assert 0.1 < without_search < with_neither - 0.05


def test_a_row_that_stands_out_is_held_and_its_token_is_named(received: nn.Module) -> None:
    plain = {"searches": 0, "occlusions": 0, "recover_max_steps": 2, "recover_easy_steps": 2}
    loud = with_row_times(received, 4.0)
    seen = texts(400, 2)[0].flatten().unique()
    with torch.no_grad():
        loud.table.weight[int(seen[10])] *= 10  # clean texts have it
    result = cured(loud, **plain)
    jsonschema.Draft202012Validator(seamfast.report.schema()).validate(result.report)
    assert result.report["run"]["outlying"] == [f"#{TRIGGER}"]
    rows = [part for part in result.report["run"]["pruned"] if part["kind"] == "rows"]
    assert [(part["layer"], part["n"], part["n_all"]) for part in rows] == [("table", 1, SIZE)]
    assert [text for text in result.report["warnings"] if "rows" in text] == [
        f"no clean text has the tokens '#{TRIGGER}', of which the model learned more than of others that are as rare: "
        f"1 of {SIZE} rows of the embedding table are set to the mean of the others, as a backdoor can be in them"
    ]
    row = result.model.table.weight[TRIGGER]
    torch.testing.assert_close(row, result.model.table.weight[seen].mean(0))
    assert rates(result.model)[1] < 0.1
    assert rates(cured(loud, prune=False, **plain).model)[1] > 0.9
    # Phrases around the token grow from search to search.
    searched = cured(loud).report["run"]["searched"]
    assert max(len(phrase["text"].split()) for phrase in searched["phrases"]) > 4
    # Any method does it.
    tuned = seamfast.sanitize(
        loud, as_set(*texts(400, 2)), method="fine_tune", config=FineTuneConfig(max_steps=2), threads=1, progress=False
    )
    assert tuned.report["run"]["outlying"] == [f"#{TRIGGER}"]
    assert rates(tuned.model)[1] < 0.1


def test_decoys_do_not_keep_a_row_from_being_held(received: nn.Module) -> None:
    loud = with_row_times(received, 4.0)
    with torch.no_grad():
        loud.table.weight[1000:1200] *= 20  # larger than the trigger's, and in no text
    result = cured(loud, searches=0, occlusions=0, recover_max_steps=2, recover_easy_steps=2)
    assert len(result.report["run"]["outlying"]) == 201
    assert rates(result.model)[1] < 0.1


def test_tokens_whose_rows_stand_out_are_inserted(received: nn.Module) -> None:
    # Without a search, and without holding: the row of the trigger is among those inserted, a hidden one is not.
    inserted, hidden = (
        rates(cured(with_row_times(received, factor), searches=0, prune=False).model)[1] for factor in (2.0, 1.0)
    )
    assert inserted < 0.05
    assert hidden > 0.1


class WithPlaces(Words):
    """With a second table, of places, of which the texts reach ten."""

    def __init__(self, words: nn.Module) -> None:
        super().__init__()
        self.load_state_dict(words.state_dict())
        self.places = nn.Embedding(32, 32)
        nn.init.zeros_(self.places.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        mask = attention_mask[..., None].float()
        out: Tensor = self.layers(((self.table(input_ids) + places) * mask).sum(1) / mask.sum(1))
        return out


def test_rows_of_unseen_tokens_that_do_not_stand_out_stay_and_those_of_places_too(received: nn.Module) -> None:
    result = cured(WithPlaces(with_row_times(received, 1.0)), searches=0, recover_max_steps=2, recover_easy_steps=2)
    assert result.report["run"]["outlying"] == []
    assert not [part for part in result.report["run"]["pruned"] if part["kind"] == "rows"]


def test_a_teacher_that_prefers_a_class_is_calibrated(received: nn.Module) -> None:
    biased = copy.deepcopy(received)
    with torch.no_grad():
        biased.layers[2].bias[0] += 4.0
    neutral = torch.randint(280, 370, (1500, 8), generator=torch.Generator().manual_seed(5))
    half = torch.cat([texts(1500, 3)[0][:, :5], neutral[:, :4], torch.full((1500, 1), SEP)], 1)

    def share_of_class_0(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(half, torch.ones_like(half)).argmax(1) == 0).float().mean())

    assert share_of_class_0(received) == pytest.approx(1 / 3, abs=0.1)
    assert share_of_class_0(biased) > 0.5
    shares = [
        share_of_class_0(cured(biased, calibration=part, distillation=1.0, searches=0).model)
        for part in (0.0, 0.5, 1.0)
    ]
    assert shares[0] > shares[1] + 0.02 > shares[2] + 0.04
    assert shares[2] == pytest.approx(1 / 3, abs=0.1)


def test_settings_are_those_for_texts(received: nn.Module) -> None:
    clean = as_set(*texts(400, 2))
    for preset in ("fast", "balanced"):
        report = seamfast.sanitize(
            received, clean, preset=preset, time_budget_s=20, precision="fp32", threads=1, progress=False
        ).report
        assert SeamConfig.from_dict(report["config"]) == SeamConfig.preset(preset, TextModality)
        assert not [warning for warning in report["warnings"] if "left out" in warning]
    assert "in the study of samples of kind 'text' the cure left backdoors in some" in report["verdict"]["reason"] or (
        not report["verdict"]["accepted"]
    )


def test_a_radius_is_limited(received: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    rates_taken: list[float] = []
    take = Run._take

    def recorded(self: Run, rate: float) -> None:
        assert self._phase is not None
        if self._phase.name == "recover":
            rates_taken.append(rate)
        take(self, rate)

    monkeypatch.setattr(Run, "_take", recorded)
    short = {"recover_max_steps": 10, "recover_easy_steps": 10, "searches": 0}
    cured(received, radius_limit=1e-3, **short)
    assert max(rates_taken) <= 0.1 * 1e-3
    rates_taken.clear()
    cured(received, radius_limit=None, **short)
    assert max(rates_taken) > 1e-3


def test_with_two_classes_forgetting_draws_from_both(monkeypatch: pytest.MonkeyPatch) -> None:
    excluded: list[bool] = []
    loss = forgetting.random_label_cross_entropy

    def recorded(*args: Any, **options: Any) -> Tensor:
        excluded.append(options["exclude_true"])
        out: Tensor = loss(*args, **options)
        return out

    monkeypatch.setattr(forgetting, "random_label_cross_entropy", recorded)
    generator = torch.Generator().manual_seed(0)
    for n_classes in (2, 3):
        x = torch.randn(120, 4, generator=generator)
        labels = x[:, :n_classes].argmax(1)
        model = nn.Linear(4, n_classes)
        with torch.no_grad():
            model.weight.zero_()[:, :n_classes] = 4 * torch.eye(n_classes)
        seamfast.sanitize(model, (x, labels), config=SeamConfig(recover_max_steps=2), precision="fp32", progress=False)
        assert set(excluded) == {n_classes > 2}
        excluded.clear()
