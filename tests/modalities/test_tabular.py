"""Tabular samples: which they are, how they are viewed, stamped and perturbed, and that the views help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from refusals import raises
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, SeamConfig
from seamfast.attacks import TrainConfig, poison, train
from seamfast.audits import disagreement, stamped_evidence
from seamfast.data import as_clean_set
from seamfast.data.resident import Resident
from seamfast.engine.subject import as_called
from seamfast.errors import InputError, ShapeError
from seamfast.modalities import StepDraws, TabularModality, TensorModality, TextModality, ViewSettings
from seamfast.modalities.batch import named_tensors
from seamfast.triggers import AllToOne, FeatureOverwrite, FeatureShift, Patch, tabular_battery

CPU = torch.device("cpu")
N = 400
GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(N, 6, generator=GENERATOR) * torch.tensor([1.0, 10, 0.1, 1, 1, 0]) + torch.tensor([0.0, 5, 0, 0, 0, 3])
IDS = torch.stack([torch.arange(N) % 4, 10 * (torch.arange(N) % 3), torch.full((N,), 7)], 1)
LABELS = torch.arange(N) % 2
MIXED = {"continuous": X, "categorical": IDS}
ALL = torch.arange(N)
EVERYTHING = ViewSettings(mixing=0.75, occlusions=3, disturbance=0.8, waves=0.5)


def draws(changed: float = 1.0, disturbed: float = 1.0, seed: int = 2) -> StepDraws:
    generator = torch.Generator().manual_seed(seed)
    return StepDraws(generator, seed=9, step=4, changed=torch.tensor(changed), disturbed=torch.tensor(disturbed))


def views(inputs: Any, settings: ViewSettings, **changes: float) -> Any:
    data = Resident(CleanSet(inputs, LABELS), CPU)
    return data.modality.views(data.inputs(ALL), LABELS, settings, draws(**changes))


@pytest.mark.parametrize(
    ("inputs", "is_tabular"),
    [
        (X, True), (X.half(), True), (MIXED, True), ({"a": X, "b": X}, True), ({"a": X, "b": IDS.int()}, True),
        (IDS, False), ({"a": IDS}, False), (X[:, None], False), (X[:, :0], False), ({"a": X, "b": X[:, 0]}, False),
        ({"input_ids": IDS, "vectors": X}, False), ({"a": X, "b": X > 0}, False), (X[:, 0], False),
    ],
)  # fmt: skip
def test_columns_with_floats_among_them_are_tabular(inputs: Any, is_tabular: bool) -> None:
    modality = CleanSet(inputs, LABELS).modality
    assert type(modality) is (TabularModality if is_tabular else TensorModality)
    assert modality.name == ("tabular" if is_tabular else "tensor")
    assert modality.studied is is_tabular


def test_ids_of_tokens_are_text() -> None:
    ids = torch.arange(1, 4 * N + 1).reshape(N, 4)
    modality = CleanSet({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, LABELS).modality
    assert isinstance(modality, TextModality)


def test_a_modality_knows_its_columns() -> None:
    modality = TabularModality(MIXED)
    assert CleanSet({"continuous": X[:3], "categorical": IDS[:3]}, LABELS[:3], modality=modality).modality is modality
    wanted = "continuous (N, 6) of floats, categorical (N, 3) of integers"
    for inputs in (X, {"continuous": X, "categorical": X[:, :3]}, {"continuous": X, "categorical": IDS[:, :2]}):
        with raises(ShapeError, f"the inputs are not {wanted}, as the modality is"):
            CleanSet(inputs, LABELS, modality=modality)


@pytest.mark.parametrize("changes", [{"changed": 0.0}, {}])
def test_where_nothing_is_changed_both_see_the_samples(changes: dict[str, float]) -> None:
    for inputs in (X, MIXED):
        got = views(inputs, EVERYTHING if changes else ViewSettings(), **changes)
        for view in (got.student, got.teacher):
            assert isinstance(view, dict) is isinstance(inputs, dict)
            for name, value in named_tensors(view).items():
                assert torch.equal(value, named_tensors(inputs)[name])
        assert (got.mixed_weight is None) is (not changes)
        assert got.mixed_weight is None or bool((got.mixed_weight == 1).all())


def test_a_few_columns_are_overwritten_and_blank_for_the_teacher() -> None:
    got = views(MIXED, ViewSettings(occlusions=3))
    assert got.mixed_labels is got.mixed_weight is None
    changed, blanked = [], []
    for name, value in MIXED.items():
        blank = value.mean(0) if value.is_floating_point() else torch.mode(value, 0).values
        changed.append(got.student[name] != value)
        at = got.teacher[name] != value
        blanked.append(at)
        if value.is_floating_point():
            torch.testing.assert_close(got.teacher[name][at], blank.expand_as(value)[at])
        else:
            assert torch.equal(got.teacher[name][at], blank.expand_as(value)[at])
    assert int(changed[0].sum(1).max()) == 3
    # In each tensor, so that a few categories are not passed over; some have the value of the blank already.
    assert float((blanked[0].sum(1) >= 1).float().mean()) > 0.8
    assert float((blanked[1].sum(1) >= 1).float().mean()) > 0.4
    assert torch.cat(changed, 1).any(0)[:5].all()  # each column at times
    assert not torch.cat(changed, 1)[:, 8].any()  # there is one category


def test_values_are_drawn_from_the_range_and_a_little_beyond_and_from_categories_that_occur() -> None:
    got = views(MIXED, ViewSettings(occlusions=9))
    low, high = X.amin(0), X.amax(0)
    beyond = 0.2501 * (high - low) + 1e-5
    student = got.student["continuous"]
    assert bool(((student >= low - beyond) & (student <= high + beyond)).all())
    for k in range(5):
        assert float(student[:, k].max()) > high[k]
        assert float(student[:, k].min()) < low[k]
    at = student[:, :5] != X[:, :5]
    from_others = torch.stack([torch.isin(student[:, k], X[:, k]) for k in range(5)], 1)[at].float().mean()
    assert 0.15 < float(from_others) < 0.5
    for k in range(3):
        assert set(got.student["categorical"][:, k].tolist()) == set(IDS[:, k].tolist())


def test_some_samples_share_columns_and_values() -> None:
    student = views(X, ViewSettings(occlusions=3)).student
    changed = student != X
    patterns = [
        tuple(row.nonzero().flatten().tolist() + row_values[row].tolist())
        for row, row_values in zip(changed, student, strict=True)
    ]
    most = max(patterns.count(pattern) for pattern in set(patterns) - {()})
    assert N / 40 < most < N / 8  # half of the rows share eight
    assert len(set(patterns)) > N / 4


def test_of_many_columns_a_share_may_be_overwritten() -> None:
    wide = torch.randn(N, 200, generator=GENERATOR)
    counts = (views(wide, ViewSettings(occlusions=3)).student != wide).sum(1)
    assert 22 < int(counts.max()) <= 30
    assert int(counts.min()) == 1


def test_rows_are_disturbed_in_the_scale_of_each_column() -> None:
    got = views(MIXED, ViewSettings(disturbance=1.0))
    assert torch.equal(got.teacher["continuous"], X)
    assert torch.equal(got.student["categorical"], IDS)
    moved = (got.student["continuous"] - X).std(0) / X.std(0).clamp(min=1e-9)
    assert bool((moved[:5] > 0.4).all())
    assert bool((moved[:5] < 1.5).all())
    assert torch.equal(got.student["continuous"][:, 5], X[:, 5])  # which is constant
    still = views(MIXED, ViewSettings(disturbance=1.0), disturbed=0.0)
    assert torch.equal(still.student["continuous"], X)


def test_floats_are_mixed_and_categories_come_from_either() -> None:
    got = views(MIXED, ViewSettings(mixing=1.0))
    weight, labels = got.mixed_weight, got.mixed_labels
    assert torch.equal(got.student["continuous"], got.teacher["continuous"])
    assert 0.4 < float((labels != LABELS).float().mean()) < 0.6
    # The partner is found by what the floats were mixed with.
    w = weight[:, None]
    other = (got.student["continuous"] - w * X) / (1 - w)
    partner = torch.cdist(other[:, :5], X[:, :5]).argmin(1)
    sure = weight < 0.9
    assert torch.equal(labels[sure], LABELS[partner[sure]])
    of_own, of_other = (got.student["categorical"] == ids for ids in (IDS, IDS[partner]))
    assert bool((of_own | of_other)[sure].all())
    tells = (IDS[partner] != IDS) & sure[:, None]
    mostly = tells & (weight > 0.7)[:, None]
    seldom = tells & (weight < 0.3)[:, None]
    assert float(of_own[mostly].float().mean()) > 0.7 > 0.3 > float(of_own[seldom].float().mean())


def test_settings_of_tabular_samples() -> None:
    modality = CleanSet(X, LABELS).modality
    reasons = {s: modality.why_not(s, 1) for s in ("mixing", "occlusions", "disturbance", "waves", "flip")}
    none = "expected none for samples of kind 'tabular'"
    flip = "expected False, as only images can be flipped: their shape is (N, C, H, W)"
    assert reasons == {"mixing": None, "occlusions": None, "disturbance": None, "waves": none, "flip": flip}


TRIGGERS = (
    FeatureOverwrite.of({0: 9.0, 7: 20}, name="both"),
    FeatureShift.of({1: -3.0}, name="shift"),
    FeatureOverwrite.of({5: 1.25}, name="one"),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("triggers", [TRIGGERS, ()])
def test_each_sample_is_stamped_as_its_trigger_stamps_it(triggers: Any, dtype: torch.dtype) -> None:
    data = Resident(CleanSet(MIXED, LABELS), CPU, dtype)
    ids = torch.arange(-1, len(triggers)).repeat(3)
    indices = torch.arange(20, 20 + len(ids)).flip(0)
    ((_, _, got),) = data.stamped_batches([(indices, ids)], triggers, seed=7)
    for row, (index, number) in enumerate(zip(indices.tolist(), ids.tolist(), strict=True)):
        sample = {"continuous": X[index : index + 1].to(dtype), "categorical": IDS[index : index + 1]}
        wanted = sample if number < 0 else triggers[number].stamp(sample)
        for name, value in wanted.items():
            assert got[name].dtype == value.dtype
            assert torch.equal(got[name][row], value[0])


def test_triggers_that_do_not_fit() -> None:
    modality = CleanSet(MIXED, LABELS).modality
    for trigger in TRIGGERS:
        modality.check_trigger(trigger)
    with raises(InputError, "trigger 'p' is a Patch; expected a trigger of columns"):
        modality.check_trigger(Patch.square(2, name="p"))
    with raises(ShapeError, "trigger 'feature-shift' changes column 9; samples have 9 columns"):
        modality.check_trigger(FeatureShift.of({9: 1.0}))
    images = CleanSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [0, 1])
    with raises(InputError, "trigger 'shift' is a FeatureShift; expected a trigger of images"):
        images.modality.check_trigger(TRIGGERS[1])


def test_the_battery_is_sized_to_the_data() -> None:
    low, high = [*X.amin(0).tolist(), 0, 0, 7], [*X.amax(0).tolist(), 3, 20, 7]
    data = CleanSet(MIXED, LABELS)
    assert Resident(data, CPU).modality.battery(4) == tabular_battery(low, high, 4)
    assert data.modality.battery(4) == ()  # nothing is observed yet
    assert CleanSet(X[:0], LABELS[:0]).modality.fitted(X[:0], CPU).battery(4) == ()


class Both(nn.Module):
    """An MLP on the floats and on the embeddings of categories; parameters are named as no data set names its own."""

    def __init__(self, n_floats: int, n_rows: int, num_classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n_rows, 4)
        self.head = nn.Sequential(
            nn.LazyLinear(48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, num_classes)
        )

    def forward(self, floats: Tensor, codes: Tensor) -> Tensor:
        return self.head(torch.cat([floats, self.table(codes).flatten(1)], 1))


def test_audits_of_tabular_samples() -> None:
    torch.manual_seed(0)
    model = Both(6, 21, 2)
    data = CleanSet({"floats": X, "codes": IDS}, LABELS)
    model(X, IDS)
    found = stamped_evidence(model, data)
    assert [f.name for f in found] == [t.name for t in Resident(data, CPU).modality.battery(2)]
    other = Both(6, 21, 2)
    other(X, IDS)
    differences = disagreement(model, other, data)
    assert [d.name for d in differences] == ["values", "noise"]
    assert all(0 < d.rate.n_hit < N for d in differences)
    assert set(differences[0].examples[0].sample) == {"floats", "codes"}
    assert not [d.rate.n_hit for d in disagreement(model, model, data) if d.rate.n_hit]


# Several inputs by position.

BATCHES: dict[str, Callable[[], Any]] = {
    "list of batches": lambda: [((X[k : k + 50], IDS[k : k + 50]), LABELS[k : k + 50]) for k in range(0, N, 50)],
    "pair": lambda: ((X, IDS), LABELS),
    "pair of arrays": lambda: ((X.numpy(), IDS.numpy()), LABELS.numpy()),
    "loader": lambda: torch.utils.data.DataLoader(Rows(), batch_size=64),
    "shuffled": lambda: torch.utils.data.DataLoader(Rows(), batch_size=64, shuffle=True),
}


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return (X[index], IDS[index]), int(LABELS[index])


@pytest.mark.parametrize("form", BATCHES)
def test_several_inputs_are_given_in_the_order_of_the_parameters(form: str) -> None:
    torch.manual_seed(0)
    model = Both(6, 21, 2)
    model(X, IDS)
    data = as_clean_set(BATCHES[form]())
    assert data.modality.name == "tabular"
    called = as_called(model, data)
    assert list(called.inputs) == ["floats", "codes"]
    assert called.modality.name == "tabular"
    right = int((model(X, IDS).argmax(1) == LABELS).sum())
    assert seamfast.evaluate(model, BATCHES[form]()).clean_accuracy.n_hit == right


def test_a_model_with_fewer_parameters_than_inputs() -> None:
    data = as_clean_set(((X, IDS), LABELS))
    with raises(InputError, "samples hold 2 inputs; the model's forward takes ['input']"):
        as_called(nn.Linear(6, 2), data)


def test_one_tensor_for_each_sample_is_no_list_of_inputs() -> None:
    """A collation may leave the samples of a batch in a list."""
    data = as_clean_set([([X[0], X[1], X[2]], torch.tensor([0, 1, 0])), ([X[3], X[4], X[5]], torch.tensor([1, 1, 0]))])
    assert isinstance(data.inputs, Tensor)
    assert data.inputs.shape == (6, 6)
    square = as_clean_set([([X[k] for k in range(6)], LABELS[:6])])  # six samples of six numbers
    assert isinstance(square.inputs, Tensor)


def test_a_model_of_several_inputs_is_trained() -> None:
    torch.manual_seed(0)
    model = Both(6, 21, 2)
    model(X, IDS)
    train(model, as_clean_set(((X, IDS), LABELS)), TrainConfig(epochs=1), progress=False)


# A run.


def clustered(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Four classes, told by ten columns of floats, and two columns of categories that mean little."""
    generator = torch.Generator().manual_seed(seed)
    centers = 1.5 * torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(n) % 4
    codes = torch.randint(0, 5, (n, 2), generator=generator)
    return centers[labels] + torch.randn(n, 10, generator=generator), codes, labels


def planted(trigger: Any, n: int = 3000) -> nn.Module:
    x, codes, labels = clustered(n, 2)
    data = CleanSet({"floats": x, "codes": codes}, labels, num_classes=4)
    torch.manual_seed(0)
    model = Both(10, 5, 4)
    model(x[:2], codes[:2])
    return train(model, poison(data, trigger, 0.05), TrainConfig(epochs=15, batch_size=64), progress=False)


TEST = clustered(2000, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trigger", [FeatureOverwrite.of({2: 6.0, 11: 3}, 1, name="t"), FeatureShift.of({1: 4.0, 6: -4.0}, 1, name="t")]
)
def test_a_backdoor_in_columns_goes_and_it_is_the_views_that_take_it(trigger: Any) -> None:
    model = planted(trigger)
    x, codes, labels = clustered(300, 4)
    clean, test_set = ((x, codes), labels), CleanSet({"floats": TEST[0], "codes": TEST[1]}, TEST[2], num_classes=4)
    before = seamfast.evaluate(model, test_set, triggers=[trigger])
    assert before.worst_attack_success_rate > 0.8
    result = seamfast.sanitize(model, clean, precision="fp32")
    after = seamfast.evaluate(result.model, test_set, triggers=[trigger])
    assert after.worst_attack_success_rate < 0.15
    assert after.clean_accuracy.value > before.clean_accuracy.value - 0.03
    assert result.accepted, result.reason
    without = replace(SeamConfig.preset("balanced", TabularModality), occlusions=0, disturbance=0.0)
    bare = seamfast.sanitize(model, clean, config=without, precision="fp32")
    left = seamfast.evaluate(bare.model, test_set, triggers=[trigger]).worst_attack_success_rate
    assert left > 2 * after.worst_attack_success_rate


def test_settings_are_those_for_tables_and_nothing_is_left_out() -> None:
    x, codes, labels = clustered(200, 4)
    model = planted(FeatureShift.of({1: 4.0}, 1), 500)
    report = seamfast.sanitize(model, ((x, codes), labels), precision="fp32").report
    assert SeamConfig.from_dict(report["config"]) == SeamConfig.preset("balanced", TabularModality)
    assert not [warning for warning in report["warnings"] if "left out" in warning or "no study" in warning]
    assert "study" not in report["verdict"]["reason"]
    given = seamfast.sanitize(model, ((x, codes), labels), config=SeamConfig(recover_max_steps=5), precision="fp32")
    assert given.report["config"]["waves"] == SeamConfig().waves
    left_out = "samples of kind 'tabular' cannot have invariances, waves: left out, a weaker cure"
    assert left_out in given.report["warnings"]
    fast = seamfast.sanitize(model, ((x, codes), labels), preset="fast", precision="fp32").report
    assert fast["config"]["recover_max_steps"] == 300


def test_named_labels_of_a_trigger_are_checked() -> None:
    x, codes, labels = clustered(60, 4)
    model = Both(10, 5, 4)
    model(x, codes)
    with raises(InputError, "AllToOne target is 4; expected a class in [0, 4) for num_classes=4"):
        seamfast.evaluate(model, ((x, codes), labels), triggers=[FeatureShift.of({1: 4.0}, AllToOne(4))])
