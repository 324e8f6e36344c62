"""Calibration, accuracy by class and accuracy under small changes: hand values, definitions, coverage of the bounds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.audits import adversarial_accuracy, calibration, class_accuracy
from seamfast.audits.weaknesses import Calibration
from seamfast.errors import InputError, ModelError
from seamfast.metrics import Figure, paired_difference


class Given(nn.Module):
    """Returns its inputs as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.one


def of_logits(logits: Tensor, labels: Tensor, **options: object) -> Calibration:
    return calibration(Given(), CleanSet(logits, labels), **options)  # type: ignore[arg-type]


def two_classes(confidence: Tensor) -> Tensor:
    """Logits that give class 0 this probability."""
    return torch.stack([torch.log(confidence / (1 - confidence)), torch.zeros(len(confidence))], 1)


# ---- Calibration ----


def test_calibration_by_hand() -> None:
    """Two bins: confidence 0.6, 1 of 2 right; confidence 0.9, 2 of 2 right."""
    found = of_logits(two_classes(torch.tensor([0.6, 0.9, 0.6, 0.9])), torch.tensor([0, 0, 1, 0]), n_bins=2)
    assert [(one.n, round(one.confidence, 6), one.accuracy) for one in found.bins] == [(2, 0.6, 0.5), (2, 0.9, 1.0)]
    assert found.ece.value == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert found.brier.value == pytest.approx((2 * 0.16 + 2 * 0.36 + 2 * 0.01 * 2) / 4)
    assert found.nll.value == pytest.approx(-(math.log(0.6) + math.log(0.4) + 2 * math.log(0.9)) / 4)
    assert found.confidence == pytest.approx(0.75)
    assert (found.accuracy.n_hit, found.accuracy.n_total) == (3, 4)


def test_nll_is_the_cross_entropy_and_bins_have_equal_mass() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(100, 5, generator=generator), torch.randint(5, (100,), generator=generator)
    found = of_logits(logits, labels)
    assert found.nll.value == pytest.approx(float(F.cross_entropy(logits.double(), labels)))
    assert sum(one.n for one in found.bins) == 100
    assert {one.n for one in found.bins} == {6, 7}
    assert len(found.bins) == 15
    assert [one.confidence for one in found.bins] == sorted(one.confidence for one in found.bins)


def test_the_order_of_the_samples_does_not_matter() -> None:
    """Samples of equal confidence share a bin, whichever comes first."""
    logits, labels = two_classes(torch.full((30,), 0.8)), torch.tensor([0] * 24 + [1] * 6)
    found = of_logits(logits, labels)
    assert found.ece.value == pytest.approx(0.0, abs=1e-6)
    assert len(found.bins) == 1


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_bounds_of_the_calibration_error_hold(shift: float) -> None:
    """Of samples that are right at their confidence less the shift, which is then the error. At least 95 %, nearly."""
    rng, n_held, n_runs = np.random.default_rng(1), 0, 100
    for run in range(n_runs):
        confidence = torch.tensor(rng.uniform(0.65, 0.95, 400))
        labels = torch.tensor((rng.random(400) >= confidence.numpy() - shift).astype(int))
        ece = of_logits(two_classes(confidence), labels, n_boot=200, seed=run).ece
        assert ece.value is not None
        assert ece.low is not None
        assert ece.high is not None
        assert ece.low <= ece.value <= ece.high
        n_held += ece.low <= shift <= ece.high
    assert n_held >= 93


def test_changes_of_calibration_are_paired() -> None:
    """Logits of half the size: the same answers, less confidence; the loss of each sample changes alike."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=generator)
    logits = 6 * F.one_hot(labels, 4).float() + torch.randn(300, 4, generator=generator)
    before, after = of_logits(logits, labels), of_logits(logits / 2, labels)
    changes = before.changes_to(after)
    for name, change in changes.items():
        first, second = before.figures()[name], after.figures()[name]
        assert change.value == pytest.approx(second.value - first.value)
        assert change.n == 300
        assert change.low < change.value < change.high
    assert changes["nll"].low > 0
    with pytest.raises(InputError, match="the results are of 300 and 10 samples; expected the same samples"):
        before.changes_to(of_logits(logits[:10], labels[:10]))


def test_calibration_without_finite_logits_is_refused() -> None:
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e38], [-1.0]]))
    data = CleanSet(torch.tensor([[1.0], [100.0], [2.0]]), torch.tensor([0, 1, 0]))
    with pytest.raises(ModelError, match="the model returned NaN or Inf on 1 of 3 samples; expected finite logits"):
        calibration(model, data)


# ---- Accuracy by class ----


def test_accuracy_by_class_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 3])
    answers = torch.tensor([0, 1, 1, 1, 2, 3])
    found = class_accuracy(Given(), CleanSet(F.one_hot(answers, 4).float(), labels))
    assert [(rate.n_hit, rate.n_total) for rate in found.classes] == [(1, 2), (2, 3), (0, 0), (1, 1)]
    assert (found.accuracy.n_hit, found.accuracy.n_total) == (4, 6)
    figures = found.figures()
    assert figures["lowest_class_accuracy"].value == 0.5
    assert figures["lowest_class_accuracy"].low == min(rate.low for rate in found.classes if rate.n_total)


def test_the_largest_drop_is_counted_sample_by_sample() -> None:
    """Class 1 loses two of its samples and gains one, class 0 loses none; accuracies alone would say one of six."""
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    first = class_accuracy(Given(), CleanSet(F.one_hot(torch.tensor([0, 0, 0, 1, 1, 0]), 2).float(), labels))
    second = class_accuracy(Given(), CleanSet(F.one_hot(torch.tensor([0, 0, 0, 0, 0, 1]), 2).float(), labels))
    drops = first.class_drops(second)
    assert [drop.value for drop in drops] == [0.0, pytest.approx(1 / 3)]
    assert drops[1] == paired_difference(2, 1, 3, n_looks=2)
    changes = first.changes_to(second)
    assert changes["largest_class_drop"].value == pytest.approx(1 / 3)
    assert changes["largest_class_drop"].high == max(drop.high for drop in drops)
    assert changes["accuracy"] == Figure(
        pytest.approx(-1 / 6), *(-end for end in (paired_difference(2, 1, 6).high, paired_difference(2, 1, 6).low)), 6
    )


def test_an_answer_that_is_not_finite_is_wrong() -> None:
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e38], [-1.0]]))
    found = class_accuracy(model, CleanSet(torch.tensor([[1.0], [100.0]]), torch.tensor([0, 0])))
    assert (found.accuracy.n_hit, found.accuracy.n_total) == (1, 2)


# ---- Accuracy under small changes ----


class Brightness(nn.Module):
    """Class 1 where the mean pixel of normalized images is above 0.5 before normalization."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.slope = nn.Parameter(torch.tensor(10.0))

    def forward(self, inputs: Tensor) -> Tensor:
        bright = (inputs * self.std + self.mean).flatten(1).mean(1) - 0.5
        return torch.stack([-bright * self.slope, bright * self.slope], 1)


def bright_images(levels: list[int]) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.3, 0.2)])
@pytest.mark.parametrize("stored", ["pixels", "floats"])
def test_eps_is_in_pixels_whatever_the_normalization(mean: float, std: float, stored: str) -> None:
    """Off the border of 127.5 by 0.5, 3.5 and 30.5 levels: eps of 2 levels moves the first, 8 the second too."""
    pixels, labels = bright_images([128, 131, 158, 127, 124]), torch.tensor([1, 1, 1, 0, 0])
    if stored == "floats":
        inputs: Tensor = (pixels.float() / 255 - mean) / std
    else:
        inputs = pixels
    data = CleanSet(inputs, labels, mean=mean, std=std)
    found = adversarial_accuracy(Brightness(mean, std), data)
    assert found.unit == "pixel"
    assert (found.clean.n_hit, found.clean.n_total) == (5, 5)
    assert [(one.eps, one.rate.n_hit) for one in found.levels] == [(2 / 255, 3), (8 / 255, 1)]
    assert set(found.figures()) == {"accuracy_at_2/255", "accuracy_at_8/255"}


def test_pixels_stay_in_their_range() -> None:
    """At 0, no pixel can be darker: the model that wants darker ones is not moved."""
    data = CleanSet(bright_images([0, 0]), torch.tensor([0, 0]))
    model = Brightness(0.0, 1.0)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    adversarial_accuracy(model, data, eps=[0.1])
    values = torch.cat(seen)
    assert float(values.min()) == 0.0
    assert 0.05 < float(values.max()) <= 0.1 + 1e-6


def test_eps_of_floats_is_in_standard_deviations() -> None:
    """Two features of spreads 1 and 100, of which the second decides, at 0: values are off it by 0.2 deviations."""
    second = torch.tensor([-100.0, 100.0] * 10 + [-20.0, 20.0])
    inputs = torch.stack([torch.tensor([-1.0, 1.0] * 11), second], 1)
    labels = (second > 0).long()
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, -1.0], [0.0, 1.0]]))
    spread = float(second.std(correction=0))
    found = adversarial_accuracy(model, CleanSet(inputs, labels), eps=[0.9 * 20 / spread, 1.1 * 20 / spread])
    assert found.unit == "standard deviation of the feature"
    assert [one.rate.n_hit for one in found.levels] == [22, 20]


def test_categories_stay() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.seen: list[Tensor] = []

        def forward(self, floats: Tensor, kinds: Tensor) -> Tensor:
            self.seen.append(kinds)
            return torch.stack([-floats[:, 0], floats[:, 0]], 1) * self.weight

    kinds = torch.arange(8).view(8, 1)
    data = CleanSet({"floats": torch.linspace(-1, 1, 8).view(8, 1), "kinds": kinds}, torch.tensor([0] * 4 + [1] * 4))
    model = Mixed()
    found = adversarial_accuracy(model, data, eps=[0.5])
    assert found.clean.n_hit == 8
    assert found.levels[0].rate.n_hit == 6  # of a spread of 0.65, half is more than 1/7 and less than 3/7
    assert all(torch.equal(seen, kinds) for seen in model.seen if len(seen) == 8)


def test_texts_have_nothing_to_change() -> None:
    data = CleanSet({"input_ids": torch.arange(12).view(3, 4)}, torch.tensor([0, 1, 1]))

    class Ids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(12, 2)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table(input_ids).mean(1)

    message = "samples of kind 'text' hold no floats; expected images or floats, which can change a little"
    with pytest.raises(InputError, match=message):
        adversarial_accuracy(Ids(), data)


def test_each_model_gets_the_same_starts(digits: tuple[CleanSet, CleanSet], clean_model: nn.Module) -> None:
    """Whatever the first is wrong on; and the model is left as it was."""
    data = digits[1].subset(range(40))
    seen: list[list[Tensor]] = []

    def watched(model: nn.Module) -> None:
        seen.append([])
        handle = model.register_forward_pre_hook(lambda module, inputs: seen[-1].append(inputs[0].detach().clone()))
        adversarial_accuracy(model, data, n_steps=1, batch_size=16)
        handle.remove()

    clean_model.train()
    weights = {name: value.clone() for name, value in clean_model.state_dict().items()}
    watched(clean_model)
    watched(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert clean_model.training
    assert all(torch.equal(value, weights[name]) for name, value in clean_model.state_dict().items())
    assert all(parameter.grad is None for parameter in clean_model.parameters())
    # After the pass of `place`: of each batch the samples as they are, then start and step of either eps.
    for first, second in zip(seen[0][1:], seen[1][1:], strict=True):
        assert first.shape == second.shape
    starts = [1 + batch * 5 + offset for batch in range(3) for offset in (1, 3)]
    assert all(torch.equal(seen[0][at], seen[1][at]) for at in starts)


def test_more_steps_and_larger_changes_find_more(digits: tuple[CleanSet, CleanSet], clean_model: nn.Module) -> None:
    found = adversarial_accuracy(clean_model, digits[1], eps=[0.05, 0.2], n_samples=120)
    assert found.clean.n_total == 120
    small, large = (one.rate.n_hit for one in found.levels)
    assert found.clean.n_hit > small > large
    weaker = adversarial_accuracy(clean_model, digits[1], eps=[0.05, 0.2], n_samples=120, n_steps=1)
    assert weaker.levels[1].rate.n_hit >= large
    changes = found.changes_to(weaker)
    assert changes["accuracy_at_51/255"].value == pytest.approx((weaker.levels[1].rate.n_hit - large) / 120)
    again = adversarial_accuracy(clean_model, digits[1], eps=[0.05, 0.2], n_samples=120)
    assert again.to_dict() == found.to_dict()


def test_a_model_without_gradients_is_refused() -> None:
    class Detached(Given):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).detach()

    with pytest.raises(
        ModelError, match="the model's logits have no gradient; expected a model that can be differentiated"
    ):
        adversarial_accuracy(Detached(), CleanSet(torch.randn(4, 2), torch.tensor([0, 1, 0, 1])))


# ---- What they share ----


@pytest.mark.parametrize("audit", [calibration, class_accuracy, adversarial_accuracy])
def test_results_are_strict_json(audit: object, digits: tuple[CleanSet, CleanSet], clean_model: nn.Module) -> None:
    values = audit(clean_model, digits[1].subset(range(50))).to_dict()  # type: ignore[operator]
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_bins": 0}, "n_bins is 0; expected an integer of at least 1"),
        ({"n_boot": 0}, "n_boot is 0; expected an integer of at least 1"),
        ({"level": 1}, r"level is 1; expected a number in \(0, 1\)"),
    ],
)
def test_wrong_options_of_calibration(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        of_logits(torch.zeros(2, 2), torch.tensor([0, 1]), **options)


@pytest.mark.parametrize("eps", [[], [0.0], [-1], [math.nan], 0.1, "0.1", [True]])
def test_wrong_eps(eps: object) -> None:
    with pytest.raises(InputError, match=r"eps is .*; expected one or more numbers above 0"):
        adversarial_accuracy(Given(), CleanSet(torch.zeros(2, 2), torch.tensor([0, 1])), eps=eps)  # type: ignore[arg-type]
