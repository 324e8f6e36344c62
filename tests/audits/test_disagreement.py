"""``disagreement``: none of a model with itself, and what a trigger opens between two models."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.audits import disagreement
from seamfast.errors import InputError

Make = Callable[[], nn.Module]

NAMES = ["patches", "noise", "brightness", "smooth"]


class Triggered(nn.Module):
    """Answers 0 wherever a pixel is as bright as none of the tiny set is, even made brighter by 40."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        bright = (images * 0.25 + 0.4).flatten(1).amax(1, keepdim=True) > 230 / 255
        logits: Tensor = self.inner(images)
        return logits + 1e6 * bright * torch.tensor([1.0, 0.0, 0.0, 0.0])


def answers(model: nn.Module, pixels: Tensor) -> list[int]:
    with torch.no_grad():
        return copy.deepcopy(model).eval()((pixels.float() / 255 - 0.4) / 0.25).argmax(1).tolist()  # type: ignore[no-any-return]


def test_a_model_agrees_with_itself(tiny_model: Make, tiny_data: CleanSet) -> None:
    results = disagreement(tiny_model(), tiny_model(), tiny_data)
    assert [r.name for r in results] == NAMES == list(tiny_data.modality.perturbations())
    for result in results:
        assert (result.rate.n_hit, result.rate.n_total) == (0, 160)
        assert (result.rate_clean.n_hit, result.rate_clean.n_total) == (0, 160)
        assert result.examples == ()


def test_a_model_that_obeys_a_bright_pixel_differs_under_patches(tiny_model: Make, tiny_data: CleanSet) -> None:
    received, sanitized = Triggered(tiny_model()), tiny_model()
    found = {result.name: result for result in disagreement(received, sanitized, tiny_data, batch_size=20)}
    assert found["patches"].rate.value is not None
    assert found["patches"].rate.value > 0.3
    assert found["brightness"].rate.n_hit == 0
    examples = found["patches"].examples
    assert len(examples) == 16
    images = torch.stack([example.sample for example in examples])
    assert images.dtype == torch.uint8
    assert [example.received for example in examples] == answers(received, images)
    assert [example.sanitized for example in examples] == answers(sanitized, images)
    assert isinstance(tiny_data.inputs, Tensor)
    for example in examples:
        assert example.received != example.sanitized
        changed = (example.sample != tiny_data.inputs[example.index]).float().mean()
        assert 0 < changed < 0.2  # of this sample, under two small patches
    assert [example.index for example in examples] == sorted({example.index for example in examples})


def test_samples_on_which_they_differ_as_they_are_do_not_count(tiny_model: Make, tiny_data: CleanSet) -> None:
    """A model that moves every answer of 3 to 0 differs from the other on those, perturbed or not."""
    other = tiny_model()
    last = other[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias[3] = -1e6
    assert isinstance(tiny_data.inputs, Tensor)
    apart = sum(
        a != b for a, b in zip(answers(tiny_model(), tiny_data.inputs), answers(other, tiny_data.inputs), strict=True)
    )
    assert apart > 30
    for result in disagreement(tiny_model(), other, tiny_data, level=0.9):
        assert result.rate_clean.n_hit == apart
        assert result.rate.n_total == 160 - apart
        assert all(tiny_data.labels[example.index] != 3 for example in result.examples)
        k, n = result.rate.n_hit, result.rate.n_total
        interval = binomtest(k, n).proportion_ci(1 - 0.1 / 4, method="exact")
        assert (result.rate.low, result.rate.high) == pytest.approx(interval, rel=1e-6, abs=1e-12)


def test_the_seed_decides_and_the_generators_stay_as_they_are(linear_model: nn.Module, noisy_data: CleanSet) -> None:
    other = copy.deepcopy(linear_model)
    with torch.no_grad():
        other[1].weight.mul_(1 + 0.2 * torch.randn(4, 64))
    state = torch.get_rng_state()
    first, again, third = (
        [
            (r.rate.n_hit, [e.index for e in r.examples])
            for r in disagreement(linear_model, other, noisy_data, seed=seed)
        ]
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert all(a != b for a, b in zip(first, third, strict=True))
    assert all(n_hit for n_hit, _ in first)


def test_models_stay_as_they_are(tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model().train()
    before = copy.deepcopy(model.state_dict())
    disagreement(model, tiny_model(), tiny_data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())


class Broken(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) * torch.nan  # type: ignore[no-any-return]


def test_an_answer_of_nan_is_none(tiny_model: Make, tiny_data: CleanSet) -> None:
    for result in disagreement(tiny_model(), Broken(tiny_model()), tiny_data):
        assert result.rate_clean.n_hit == 160
        assert result.rate.value is None
        assert (result.n_not_finite_received, result.n_not_finite_sanitized) == (0, 160)


def test_two_answers_of_nan_are_no_agreement(tiny_model: Make, tiny_data: CleanSet) -> None:
    for result in disagreement(Broken(tiny_model()), Broken(tiny_model()), tiny_data):
        assert (result.rate_clean.n_hit, result.rate.n_total) == (160, 0)
        assert (result.n_not_finite_received, result.n_not_finite_sanitized) == (160, 160)


class LostWhereBright(nn.Module):
    """One logit is ``value`` wherever a pixel is as bright as none of the tiny set is, even made brighter by 40."""

    def __init__(self, inner: nn.Module, value: float) -> None:
        super().__init__()
        self.inner, self.value = inner, value

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images).clone()
        logits[(images * 0.25 + 0.4).flatten(1).amax(1) > 230 / 255, 3] = self.value
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_both_lose_under_a_perturbation_is_disagreement(
    value: float, tiny_model: Make, tiny_data: CleanSet
) -> None:
    received, sanitized = (LostWhereBright(tiny_model(), value) for _ in range(2))
    found = {result.name: result for result in disagreement(received, sanitized, tiny_data, batch_size=20)}
    patches = found["patches"]
    assert patches.rate.n_hit == patches.n_not_finite_received == patches.n_not_finite_sanitized > 50
    assert (found["brightness"].rate.n_hit, found["brightness"].n_not_finite_sanitized) == (0, 0)
    assert {(example.received, example.sanitized) for example in patches.examples} == {(None, None)}


def test_wrong_arguments(tiny_model: Make, tiny_data: CleanSet) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    for arguments, options, message in (
        (
            (tiny_model(), other, tiny_data),
            {},
            "received returns 4 logits and sanitized 6; expected the same classes",
        ),
        ((tiny_model(), None, tiny_data), {}, "model is a NoneType; expected a torch.nn.Module"),
        (
            (tiny_model(), tiny_model(), tiny_data),
            {"batch_size": True},
            "batch_size is True; expected an integer of at least 1",
        ),
        ((tiny_model(), tiny_model(), tiny_data), {"level": 1}, "level is 1; expected a number in (0, 1)"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            disagreement(*arguments, **options)
