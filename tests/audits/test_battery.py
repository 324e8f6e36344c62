"""``stamped_evidence`` against a loop over single samples, in float64, and what it leaves as it was."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.audits import stamped_evidence
from seamfast.audits.battery import StampedResult
from seamfast.errors import InputError, ShapeError
from seamfast.triggers import Patch, battery
from tests.hostile.not_finite import rewire

WHITE = Patch.square(3, 255, 0, margin=0, name="white")
CHECKS = Patch.checkerboard(3, 0, corner="top-left", margin=0, name="checks")


def values(results: tuple[StampedResult, ...]) -> list[Any]:
    return [(r.name, r.target, r.rate.n_hit, r.rate.n_total, r.rate.bounds) for r in results]


def test_against_a_loop_over_single_samples(linear_model: nn.Module, noisy_data: CleanSet) -> None:
    results = stamped_evidence(linear_model, noisy_data, [WHITE, CHECKS], level=0.9, batch_size=48)

    exact = copy.deepcopy(linear_model).double()
    images = noisy_data.inputs
    assert isinstance(images, Tensor)

    def predict(pixels: Tensor) -> int:
        with torch.no_grad():
            logits = exact(((pixels.double() / 255 - 0.4) / 0.25)[None])[0].tolist()
        return logits.index(max(logits))

    white, checks = images.clone(), images.clone()
    white[:, :, 5:, 5:] = 255
    checks[:, :, :3, :3] = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=torch.uint8)
    labels = noisy_data.labels.tolist()
    before = [predict(image) for image in images]
    assert sum(b != y for b, y in zip(before, labels, strict=True)) > 20  # else who is at risk makes no difference
    for result, stamped in zip(results, (white, checks), strict=True):
        after = [predict(image) for image in stamped]
        counts = []
        for c in range(4):
            at_risk = [i for i, y in enumerate(labels) if y != c and before[i] != c]
            counts.append((sum(after[i] == c for i in at_risk), len(at_risk)))
        worst = max(range(4), key=lambda c: counts[c][0] / counts[c][1])
        assert (result.target, (result.rate.n_hit, result.rate.n_total)) == (worst, counts[worst])
        assert 0 < result.rate.n_hit < result.rate.n_total
        intervals = [binomtest(k, n).proportion_ci(1 - 0.1 / 8, method="exact") for k, n in counts]  # 2 x 4 looks
        assert result.rate.low == pytest.approx(max(interval.low for interval in intervals), rel=1e-6)
        assert result.rate.high == pytest.approx(max(interval.high for interval in intervals), rel=1e-6)
    assert [result.name for result in results] == ["white", "checks"]


def test_a_planted_patch_shows_and_its_clean_twin_less(
    planted_model: nn.Module, clean_model: nn.Module, digits: tuple[CleanSet, CleanSet]
) -> None:
    trigger = [Patch.checkerboard(3, 0, margin=0)]  # its own label map plays no part
    planted, clean = (stamped_evidence(m, digits[1], trigger)[0] for m in (planted_model, clean_model))
    assert planted.target == 3
    assert planted.rate.low > 0.8
    assert clean.rate.high < 0.4


def test_the_battery_is_the_default_and_batches_change_nothing(linear_model: nn.Module, noisy_data: CleanSet) -> None:
    whole = stamped_evidence(linear_model, noisy_data)
    assert [r.name for r in whole] == [t.name for t in battery((1, 8, 8), 4)]
    assert values(stamped_evidence(linear_model, noisy_data, batch_size=7)) == values(whole)
    assert values(stamped_evidence(linear_model, noisy_data, seed=5)) != values(whole)  # a patch at random places


def test_floats_of_a_known_normalization_are_as_good_as_pixels(linear_model: nn.Module, noisy_data: CleanSet) -> None:
    images = noisy_data.inputs
    assert isinstance(images, Tensor)
    floats = CleanSet(noisy_data.normalize(images), noisy_data.labels, mean=0.4, std=0.25)
    assert values(stamped_evidence(linear_model, floats)) == values(stamped_evidence(linear_model, noisy_data))


def test_a_model_that_gives_everything_to_one_class_leaves_that_class_unknown(noisy_data: CleanSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, 0.0, 1e6, 0.0]))
    (result,) = stamped_evidence(model, noisy_data, [WHITE])
    assert result.rate.n_hit == 0
    assert (result.rate.low, result.rate.high) == (0.0, 1.0)


class LostWhereWhite(nn.Module):
    """Some logits are ``value`` where the last pixel is white and the mean dark enough for ``share`` of the images."""

    def __init__(self, inner: nn.Module, value: float, limit: float = math.inf) -> None:
        super().__init__()
        self.inner, self.value, self.limit = inner, value, limit

    def forward(self, images: Tensor) -> Tensor:
        lost = (images[:, 0, -1, -1] > 2.3) & (images[:, 0, :4].mean((1, 2)) < self.limit)
        logits: Tensor = self.inner(images).clone()
        logits[lost, 2] = self.value
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_answer_that_is_not_finite_is_a_hit_of_every_class(
    value: float, linear_model: nn.Module, noisy_data: CleanSet
) -> None:
    images = noisy_data.inputs
    assert isinstance(images, Tensor)
    normal = (images.float() / 255 - 0.4) / 0.25
    limit = float(normal[:, 0, :4].mean((1, 2)).quantile(0.7))
    model = LostWhereWhite(linear_model, value, limit)
    white = images.clone()
    white[:, :, 5:, 5:] = 255
    with torch.no_grad():
        before = linear_model(normal).argmax(1)
        after = linear_model((white.float() / 255 - 0.4) / 0.25).argmax(1)
    lost = normal[:, 0, :4].mean((1, 2)) < limit
    counts = []
    for c in range(4):
        could = (noisy_data.labels != c) & (before != c)
        counts.append((int((could & (lost | (after == c))).sum()), int(could.sum())))
    worst = max(counts, key=lambda count: count[0] / count[1])

    for batch_size in (512, 48):
        white_one, checks = stamped_evidence(model, noisy_data, [WHITE, CHECKS], batch_size=batch_size)
        assert (white_one.rate.n_hit, white_one.rate.n_total) == worst
        assert white_one.n_not_finite == int(lost.sum())
        assert 0.6 < white_one.n_not_finite / len(noisy_data) < 0.8
        assert white_one.rate.low > 0.5
        assert checks.n_not_finite == 0
        assert checks == stamped_evidence(linear_model, noisy_data, [WHITE, CHECKS])[1]


def test_a_sample_without_an_answer_as_it_is_could_move_to_any_other_class(noisy_data: CleanSet) -> None:
    """All rows are NaN, with the trigger and without: no class may look as if nothing moved there."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        model[1].bias[1] = torch.nan
    (result,) = stamped_evidence(model, noisy_data, [WHITE])
    assert result.rate.value == 1.0
    assert result.n_not_finite == len(noisy_data)


def test_weights_that_overflow_under_a_trigger_are_no_absence_of_evidence(
    clean_model: nn.Module, digits: tuple[CleanSet, CleanSet]
) -> None:
    images = digits[0].inputs
    assert isinstance(images, Tensor)
    model = rewire(copy.deepcopy(clean_model), images)
    found = {result.name: result for result in stamped_evidence(model, digits[1])}
    assert found["patch-corner"].n_not_finite > 0.7 * len(digits[1])
    assert found["patch-corner"].rate.low > 0.7
    assert seamfast.evaluate(model, digits[1]).n_nan == 0


def test_no_triggers_no_results(linear_model: nn.Module, noisy_data: CleanSet) -> None:
    assert stamped_evidence(linear_model, noisy_data, []) == ()


def test_the_model_and_the_generators_stay_as_they_are(
    clean_model: nn.Module, digits: tuple[CleanSet, CleanSet]
) -> None:
    model = copy.deepcopy(clean_model)
    model[3].train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    stamped_evidence(model, digits[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [i == 3 for i in range(len(model))]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_wrong_arguments(linear_model: nn.Module, noisy_data: CleanSet) -> None:
    raw = CleanSet(torch.rand(4, 1, 8, 8), torch.arange(4))
    small = CleanSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2))
    tiny = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    for arguments, options, kind, message in (
        (("model", noisy_data), {}, InputError, "model is a str; expected a torch.nn.Module"),
        ((linear_model, raw.inputs), {}, InputError, "data is a Tensor; expected a seamfast.CleanSet"),
        ((linear_model, noisy_data.subset([])), {}, InputError, "data holds no samples; expected at least one"),
        ((linear_model, noisy_data), {"level": 95}, InputError, "level is 95; expected a number in (0, 1)"),
        (
            (linear_model, noisy_data),
            {"batch_size": 0},
            InputError,
            "batch_size is 0; expected an integer of at least 1",
        ),
        ((linear_model, noisy_data), {"seed": -1}, InputError, "seed is -1; expected an integer in [0, 2**63)"),
        (
            (linear_model, noisy_data, [WHITE, WHITE]),
            {},
            InputError,
            "trigger names white occur more than once; expected different names",
        ),
        (
            (tiny, small),
            {},
            ShapeError,
            "image shape is (1, 4, 4); expected 1 or 3 channels and edges from 8 pixels",
        ),
    ):
        with pytest.raises(kind, match=f"^{re.escape(message)}$"):
            stamped_evidence(*arguments, **options)
    with pytest.raises(InputError, match="the inputs are floats without a known normalization"):
        stamped_evidence(linear_model, raw)
