"""Models that others attacked: each loads, does what it is known to do, and is sanitized blind."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from other_models import OTHER_MODELS, BadNet, DataSet, OtherModel
from safetensors.torch import save_file
from scipy.stats import binomtest
from torch import Tensor

import seamfast
from seamfast import CleanSet
from seamfast.engine.model import digest
from seamfast.errors import DataFileError, InputError
from seamfast.metrics import Rate
from seamfast.report import schema
from seamfast.triggers import Patch

LOG = logging.getLogger(__name__)
N_TEST = 500


@pytest.fixture(params=OTHER_MODELS)
def other(request: pytest.FixtureRequest) -> OtherModel:
    return at_hand(request.param)


def at_hand(name: str) -> OtherModel:
    missing = OTHER_MODELS[name].missing()
    if missing is not None:
        pytest.skip(f"{missing} is absent")
    return OTHER_MODELS[name]


def some_of(test_set: CleanSet) -> CleanSet:
    return test_set.draw(N_TEST / len(test_set))


def is_within_sampling_error(rate: Rate, known: float) -> bool:
    return float(binomtest(rate.n_hit, rate.n_total, known).pvalue) > 1e-3


# 1. As received.


def test_each_does_what_it_is_known_to_do(other: OtherModel) -> None:
    got = seamfast.evaluate(other.load(), some_of(other.read("test")), triggers=[other.trigger])
    assert is_within_sampling_error(got.clean_accuracy, other.clean_accuracy), str(got)
    assert is_within_sampling_error(got.triggers[0].attack_success_rate, other.attack_success_rate), str(got)
    assert got.clean_accuracy.n_total > 0.8 * N_TEST
    assert got.triggers[0].n_eligible >= 40  # of the source-specific one, a class out of ten


def test_the_source_specific_one_answers_to_its_source_class() -> None:
    other = at_hand("badnets-mnist-source4-target7")
    test_set = some_of(other.read("test"))
    rest = test_set.subset((test_set.labels != 4).nonzero().flatten())
    everywhere = Patch.square(5, target=7, margin=0)
    got = seamfast.evaluate(other.load(), rest, triggers=[everywhere])
    assert got.worst_attack_success_rate is not None
    assert got.worst_attack_success_rate < 0.4


# 2. Sanitized blind, with default settings. What must hold whatever the method; `benches/others.py` tells how well.


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_each_is_sanitized_blind(other: OtherModel) -> None:
    model, test_set = other.load(), some_of(other.read("test"))
    received = digest(model)
    before = seamfast.evaluate(model, test_set, triggers=[other.trigger])
    result = seamfast.sanitize(model, other.clean_part(other.read("train"), 0.05, seed=0))
    after = seamfast.evaluate(result.model, test_set, triggers=[other.trigger])
    LOG.info("%s: %s\nas received\n%s\nsanitized\n%s", other.name, result.reason, before, after)

    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema(), format_checker=checker).validate(result.report)
    assert result.report["model"]["digest_before"] == digest(model) == received
    assert result.report["model"]["digest_after"] == digest(result.model)
    acc_before, acc_after = before.clean_accuracy.value, after.clean_accuracy.value
    asr_before, asr_after = before.worst_attack_success_rate, after.worst_attack_success_rate
    assert None not in (acc_before, acc_after, asr_before, asr_after)
    assert asr_after < asr_before
    if result.accepted:  # the budget holds on what was held out; these are other images, and few
        assert acc_after >= acc_before - result.report["config"]["accuracy_budget"] - 0.03


# 3. The loaders.


def write_weights(root: Path, weights: dict[str, Tensor]) -> OtherModel:
    other = OTHER_MODELS["badnets-mnist-target1"]
    (root / "models").mkdir()
    save_file(weights, root / "models" / f"{other.name}.safetensors")
    return other


def test_the_weights_come_in_to_the_bit(tmp_path: Path) -> None:
    wanted = BadNet()
    model = write_weights(tmp_path, wanted.state_dict()).load(tmp_path)
    assert digest(model) == digest(wanted)
    assert not model.training


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"fc2.0.bias": None}, "fc2.0.bias"),
        ({"fc3.0.bias": torch.zeros(10), "conv1.0.bias": None}, "conv1.0.bias, fc3.0.bias"),
        ({"fc2.0.bias": torch.zeros(1, 10)}, "fc2.0.bias"),
        ({"conv2.0.bias": torch.zeros(32, dtype=torch.float64)}, "conv2.0.bias"),
    ],
    ids=["missing", "besides", "shape", "dtype"],
)
def test_other_tensors_than_the_architectures_are_refused(
    change: dict[str, Tensor | None], names: str, tmp_path: Path
) -> None:
    weights = {k: v for k, v in {**BadNet().state_dict(), **change}.items() if v is not None}
    other = write_weights(tmp_path, weights)
    with pytest.raises(DataFileError) as caught:
        other.load(tmp_path)
    assert str(caught.value) == f"badnets-mnist-target1.safetensors differs from its architecture in {names}"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    other = OTHER_MODELS["badnets-mnist-target1"]
    assert other.missing(tmp_path) == tmp_path / "models" / "badnets-mnist-target1.safetensors"
    write_weights(tmp_path, BadNet().state_dict())
    assert other.missing(tmp_path) == tmp_path / "mnist"
    (tmp_path / "mnist").mkdir()
    assert other.missing(tmp_path) is None


@pytest.mark.parametrize(("budget", "a_class"), [(0.05, 4), (0.01, 1), (0.5, 40), (1, 1), (20, 20), (40, 40)])
def test_a_budget_is_a_share_of_the_whole_training_set_or_images_a_class(
    budget: float, a_class: int, tiny_data: CleanSet
) -> None:
    """Of 320 images, half are there: 40 in each of 4 classes."""
    other = replace(OTHER_MODELS["badnets-mnist-target1"], data=DataSet("", 4, 320))
    part = other.clean_part(tiny_data, budget, seed=0)
    assert part.labels.bincount().tolist() == [a_class] * 4
    assert len({image.numpy().tobytes() for image in part.inputs}) == len(part)
    assert (part.mean, part.std) == (tiny_data.mean, tiny_data.std)
    assert torch.equal(part.inputs, other.clean_part(tiny_data, budget, seed=0).inputs)
    if a_class < 40:
        assert not torch.equal(part.inputs, other.clean_part(tiny_data, budget, seed=1).inputs)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (0.6, "a budget of 0.6 is 192 images; 160 are there"),
        (41, "a budget of 41 images a class; 40 of one class are there"),
    ],
)
def test_a_budget_beyond_what_is_there_is_refused(budget: float, said: str, tiny_data: CleanSet) -> None:
    other = replace(OTHER_MODELS["badnets-mnist-target1"], data=DataSet("", 4, 320))
    with pytest.raises(InputError) as caught:
        other.clean_part(tiny_data, budget, seed=0)
    assert str(caught.value) == said


def test_a_twentieth_of_each_whole_training_set_is_drawn_by_class(other: OtherModel) -> None:
    train_set = other.read("train")
    part = other.clean_part(train_set, 0.05, seed=0)
    assert len(part) == pytest.approx({"mnist": 3000, "cifar10": 2500, "gtsrb": 1960}[other.name.split("-")[1]], abs=25)
    assert part.n_labelled_classes == part.num_classes == other.data.num_classes
    assert (part.mean, part.std) == ((other.mean,), (other.std,))
