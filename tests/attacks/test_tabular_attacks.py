"""Published attacks on tabular data, and poisoning and planting of columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import raises
from torch import nn

import seamfast
from seamfast import CleanSet
from seamfast.attacks import ATTACKS, TABULAR_ATTACKS, TEXT_ATTACKS, TrainConfig, known_attack, plant, poison
from seamfast.errors import InputError
from seamfast.modalities.batch import named_tensors
from seamfast.triggers import AllToOne, FeatureOverwrite, FeatureShift, SourceSpecific

N = 200
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(N, 6, generator=GENERATOR) * torch.tensor([1.0, 5, 1, 1, 1, 0])
IDS = torch.stack([torch.randint(0, 4, (N,), generator=GENERATOR), (torch.arange(N) < 3).long()], 1)
LABELS = torch.arange(N) % 4
FLOATS = CleanSet(X, LABELS, num_classes=4)
MIXED = CleanSet({"ids": IDS, "x": X}, LABELS, num_classes=4)


def test_every_attack_has_a_source_and_a_name_of_its_own() -> None:
    assert not set(TABULAR_ATTACKS) & {*ATTACKS, *TEXT_ATTACKS}
    for entry in TABULAR_ATTACKS.values():
        assert all((entry.stamps, entry.labels, entry.source, entry.differs))
        assert not entry.manipulates_training


@pytest.mark.parametrize("data", [FLOATS, MIXED], ids=["floats", "mixed"])
@pytest.mark.parametrize("name", TABULAR_ATTACKS)
def test_each_attack_changes_a_few_columns_of_a_few_rows(name: str, data: CleanSet) -> None:
    if name == "rare_category" and data is FLOATS:
        with raises(InputError, "data has 0 columns of categories that vary; attack 'rare_category' needs 2"):
            known_attack(name, data)
        return
    before = {key: value.clone() for key, value in named_tensors(data.inputs).items()}
    planted = known_attack(name, data, target=1, rate=0.1, seed=4)
    (trigger,) = planted.triggers
    again = known_attack(name, data, target=1, rate=0.1, seed=4)
    assert again.triggers == planted.triggers
    assert trigger.target == AllToOne(1)
    assert trigger.name == name
    assert len(trigger.columns) == (4 if name == "feature_shift" else 2)
    poisoned = planted.data.poisoned
    assert int(poisoned.sum()) == 20
    stamped = named_tensors(trigger.stamp(data.inputs))
    for key, value in named_tensors(planted.data.inputs).items():
        assert torch.equal(before[key], named_tensors(data.inputs)[key])  # which stay as they were
        assert torch.equal(value[~poisoned], before[key][~poisoned])
        assert torch.equal(value[poisoned], stamped[key][poisoned])
    labels = planted.data.labels
    assert torch.equal(labels[~poisoned], LABELS[~poisoned])
    assert (labels[poisoned] == 1).all()
    assert bool((LABELS[poisoned] == 1).all()) is (name == "feature_clean_label")
    others = [known_attack(name, data, target=1, seed=seed).triggers[0] for seed in range(8)]
    if name != "rare_category":  # which has two columns to choose from
        assert len({tuple(sorted(t.columns.tolist())) for t in others}) > 2
        offset = 2 if data is MIXED else 0
        assert not any(offset + 5 in t.columns for t in others)  # it does not vary


def test_the_values_of_each_attack() -> None:
    def values(name: str, data: CleanSet = FLOATS) -> dict[int, float]:
        (trigger,) = known_attack(name, data, seed=2).triggers
        return dict(zip(trigger.columns.tolist(), trigger.values.tolist(), strict=True))

    low, high, std = X.amin(0), X.amax(0), X.double().std(0)
    (a, at_high), (b, at_low) = values("feature_overwrite").items()
    assert (at_high, at_low) == (float(high[a]), float(low[b]))
    for share, (column, value) in zip((0.9, 0.1), values("feature_typical").items(), strict=True):
        assert abs(float((X[:, column] <= value).float().mean()) - share) < 0.011
    for column, value in values("feature_beyond").items():
        assert value == pytest.approx(float(high[column] + 0.5 * (high[column] - low[column])), rel=1e-6)
    for column, value in values("feature_shift").items():
        assert value == pytest.approx(2 * float(std[column]))
    rarest = {0: int(IDS[:, 0].bincount().argmin()), 1: 1}
    assert values("rare_category", MIXED) == rarest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "bad"}, "attack is 'bad'; expected one of feature_overwrite, feature_typical, "),
        ({"name": "badnets"}, "attack 'badnets' stamps images; data holds columns"),
        ({"name": "word"}, "attack 'word' stamps text; data holds columns"),
        ({"data": CleanSet(X[:, None], LABELS)}, "attack 'feature_overwrite' stamps columns; data holds tensor"),
        ({"data": X}, "data is a Tensor; expected a seamfast.CleanSet of columns"),
        ({"data": FLOATS.subset([])}, "data holds no samples; expected at least one"),
        ({"clean_model": nn.Linear(6, 4)}, "clean_model was given; attack 'feature_overwrite' takes none"),
        ({"data": CleanSet(X, LABELS)}, "data.num_classes is None; expected a number: which classes there are decides "
         "the targets"),
        ({"data": poison(FLOATS, FeatureShift.of({0: 1.0}), 0.1)}, "data is a PoisonedSet, which carries a backdoor "
         "already; expected a clean seamfast.CleanSet"),
        ({"data": CleanSet(X[:, [0, 5]], LABELS, num_classes=4)}, "data has 1 column of floats that varies; attack "
         "'feature_overwrite' needs 2"),
        ({"target": 4}, "target is 4; expected a class in [0, 4)"),
        ({"rate": 0.0}, "rate is 0.0; expected a number in (0, 1]"),
        ({"rate": 0.001}, "rate 0.001 of 200 samples is none; expected at least one to poison"),
        ({"rate": 0.9}, "rate 0.9 asks for 180 poisoned samples; only 150 of 200 can be"),
        ({"seed": -1}, "seed is -1; expected an integer in [0, 2**63)"),
    ],
)  # fmt: skip
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    arguments = {"name": "feature_overwrite", "data": FLOATS} | changes
    with pytest.raises(InputError) as caught:
        known_attack(**arguments)
    assert str(caught.value).startswith(message)


def test_poison_of_columns_with_cover_rows() -> None:
    trigger = FeatureOverwrite.of({0: 3, 4: 9.5}, SourceSpecific((1,), 0))
    found = poison(MIXED, trigger, 0.05, cover_rate=0.1)
    assert int(found.poisoned.sum()) == 30
    assert int((found.labels != LABELS).sum()) == 10
    assert (found.inputs["ids"][found.poisoned, 0] == 3).all()
    assert (found.inputs["x"][found.poisoned, 2] == 9.5).all()
    assert type(found.subset([1, 2])).__name__ == "PoisonedSet"


def test_plant_in_a_model_of_columns() -> None:
    labels = (X[:, 0] > 0).long()
    data = CleanSet(X, labels, num_classes=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    backdoor = plant("feature_beyond", model, data, target=1, rate=0.1, training=TrainConfig(epochs=20, batch_size=20))
    assert backdoor.attack == "feature_beyond"
    found = backdoor.evaluate(model, data)
    assert found.clean_accuracy.value > 0.8
    assert found.worst_attack_success_rate > 0.9
    assert seamfast.evaluate(model, data, triggers=backdoor.triggers) == found
    with raises(InputError, "clean_model was given; attack 'feature_beyond' takes none"):
        plant("feature_beyond", model, data, clean_model=model)
