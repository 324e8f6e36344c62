"""SEAM, phase by phase: what forgetting and recovery do to a model, and where they stop."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

import seamfast
from seamfast import CleanSet, HistoryPoint, SeamConfig
from seamfast.data import split_by_class
from seamfast.engine.run import Clock, Run
from seamfast.methods import forgetting
from seamfast.methods.schedules import cosine
from seamfast.modalities import Augmentation
from seamfast.modalities.image import modality as image_module

Make = Callable[[], nn.Module]
Enlarged = Callable[[CleanSet, int], CleanSet]

STILL = 1e-12  # a rate at which nothing moves
PLAIN = {"mixing": 0.0, "occlusions": 0, "distillation": 0.0, "disturbance": 0.0, "waves": 0.0}
RECOVERY_ALONE: dict[str, Any] = {"forget_max_steps": 0, "radius": 1.0}
seam_module = sys.modules["seamfast.methods.seam"]  # the package gives the function of that name


def cured(
    model: nn.Module, data: CleanSet, *callbacks: Any, holdout: Any = None, **settings: Any
) -> seamfast.SanitizeResult:
    """``sanitize`` in float32 by SEAM with these settings."""
    return seamfast.sanitize(
        model, data, config=SeamConfig(**settings), precision="fp32", callbacks=callbacks, holdout=holdout
    )


def points(result: seamfast.SanitizeResult, phase: str) -> list[HistoryPoint]:
    return [p for p in result.history if p.phase == phase]


class Watch(seamfast.Callback):
    """The weight matrices and kernels after each step, in one vector, with the phase and the attempt."""

    def __init__(self, model: nn.Module) -> None:
        self.received = self.vector(model)
        self.steps: list[tuple[str, int, Tensor]] = []

    @staticmethod
    def vector(model: nn.Module) -> Tensor:
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append((state.phase, state.attempt, self.vector(kwargs["model"])))

    def first_move(self, phase: str, attempt: int) -> Tensor:
        """What the first step of a phase that begins with the weights as received did to them."""
        return next(after for p, a, after in self.steps if (p, a) == (phase, attempt)) - self.received


def normalized(data: CleanSet) -> Tensor:
    """All of ``tiny_data`` as its models take it."""
    assert isinstance(data.inputs, Tensor)
    return (data.inputs.float() / 255 - 0.4) / 0.25


def linear(n_classes: int = 4) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))
    with torch.no_grad():
        model[1].weight.copy_(0.3 * torch.randn(n_classes, 64, generator=generator))
        model[1].bias.fill_(1.0)
    return model


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: Iterable[float]) -> None:
    """Evaluations within a run find these accuracies, one after the other, and those of the model once they end."""
    seen, evaluate = iter(accuracies), Run.evaluate_holdout

    def found(run: Run) -> float:
        counted = evaluate(run)
        return next(seen, counted)

    monkeypatch.setattr(Run, "evaluate_holdout", found)


# Forgetting.


def test_forgetting_stops_near_chance_and_recovery_brings_the_task_back(
    tiny_model: Make, tiny_data: CleanSet, enlarged: Enlarged
) -> None:
    result = cured(tiny_model(), enlarged(tiny_data, 2), recover_max_steps=80, recover_eval_every=20)
    before = result.report["holdout"]["before"]["clean_accuracy"]["value"]
    assert before > 0.95
    *earlier, last = [p.holdout_accuracy for p in points(result, "forget")]
    assert last < 2 / 4
    assert all(accuracy >= 2 / 4 for accuracy in earlier)
    assert result.report["run"]["steps"]["forget"] < SeamConfig().forget_max_steps
    assert points(result, "recover")[-1].holdout_accuracy > before - 0.04
    assert result.accepted


@pytest.mark.parametrize("changes", [{"forget_rate": STILL}, {"forget_rate": 0.1, "forget_until": 0.0}])
def test_forgetting_ends_after_its_steps_if_accuracy_is_not_below_the_threshold(
    changes: dict[str, Any], tiny_model: Make, tiny_data: CleanSet
) -> None:
    result = cured(tiny_model(), tiny_data, forget_max_steps=7, forget_eval_every=3, recover_max_steps=1, **changes)
    assert [p.step for p in points(result, "forget")] == [6, 7]  # every other one, as nothing is forgotten at first
    assert result.report["run"]["steps"] == {"forget": 7, "recover": 1}


@pytest.mark.parametrize("every", [1, 2])
def test_while_nine_tenths_are_left_every_other_evaluation_is_made(
    every: int, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the accuracy as received, which is 1; should it come back, so does the longer way to the next one."""
    scripted(monkeypatch, [0.95, 0.91, 0.9, 0.8, 0.92, 0.7, 0.6])
    result = cured(
        sure(), tiny_data, forget_rate=STILL, forget_growth=1.0, forget_eval_every=every, forget_max_steps=11 * every,
        forget_until=0.0, radius=1.0, recover_max_steps=1, recover_rate=STILL,
    )  # fmt: skip
    assert [p.step for p in points(result, "forget")] == [every * k for k in (2, 4, 6, 7, 8, 10, 11)]


def test_forget_until_is_a_multiple_of_chance(tiny_model: Make, tiny_data: CleanSet) -> None:
    for until in (1.2, 2.4):
        result = cured(
            tiny_model(), tiny_data, forget_rate=0.01, forget_growth=1.0, forget_max_steps=200, forget_until=until,
            recover_max_steps=1,
        )  # fmt: skip
        *earlier, last = (p.holdout_accuracy for p in points(result, "forget"))
        assert last < until / 4 <= min(earlier)


def test_with_two_classes_a_good_model_has_not_forgotten_yet(tiny_data: CleanSet) -> None:
    """Twice chance is 1.0 for two classes: a model that is right on nine of ten would count as forgotten at once."""
    labels = (tiny_data.labels % 2).clone()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    columns = torch.arange(64) % 8 < 4
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([columns.float(), (~columns).float()]))
    labels[::10] = 1 - labels[::10]  # as many are given a wrong label, in both parts
    data = CleanSet(tiny_data.inputs, labels, mean=0.4, std=0.25)
    result = cured(model, data, forget_rate=STILL, forget_max_steps=6, forget_eval_every=2, recover_max_steps=1)
    assert 0.75 < result.report["holdout"]["before"]["clean_accuracy"]["value"] < 1
    assert result.report["run"]["steps"]["forget"] == 6
    result = cured(model, data, forget_rate=0.2, recover_max_steps=1)
    assert points(result, "forget")[-1].holdout_accuracy < 0.75


def test_no_steps_of_forgetting_skip_the_phase(tiny_model: Make, tiny_data: CleanSet) -> None:
    result = cured(tiny_model(), tiny_data, **RECOVERY_ALONE, recover_max_steps=3)
    assert result.report["run"]["steps"] == {"recover": 3}
    assert {p.phase for p in result.history} == {"recover"}
    assert "forget" not in result.report["run"]["seconds"]


def sure(scale: float = 1.0) -> nn.Module:
    """Right on ``tiny_data`` with a margin of a fixed size: the loss of a wrong label is much the same for each."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))
    quadrants = torch.eye(4).view(4, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
    with torch.no_grad():
        model[1].weight.copy_(scale * quadrants)
    return model


def test_labels_are_drawn_anew_at_each_step_from_the_wrong_classes(
    tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sure model that never moves, on the whole recovery part: the labels alone change its loss."""
    losses: list[float] = []
    of_random_labels = forgetting.random_label_cross_entropy

    def noted(*arguments: Any, **options: Any) -> Tensor:
        loss: Tensor = of_random_labels(*arguments, **options)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(forgetting, "random_label_cross_entropy", noted)
    cured(sure(), tiny_data, forget_rate=STILL, recover_max_steps=1, batch_size=128, **PLAIN)
    assert len(set(losses)) == len(losses) == 40
    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    labels, logits = tiny_data.labels[split.forget], sure()(normalized(tiny_data)[split.forget]).detach()
    wrong = logits.log_softmax(1).scatter(1, labels[:, None], 0).sum(1) / -3  # mean loss over the wrong classes
    assert sum(losses) / 40 == pytest.approx(float(wrong.mean()), rel=0.02)


# Recovery.


def test_with_the_received_answers_alone_labels_do_not_matter(tiny_data: CleanSet) -> None:
    def first_loss(distillation: float) -> float:
        settings = RECOVERY_ALONE | PLAIN | {"distillation": distillation}
        return cured(linear(), tiny_data, recover_max_steps=4, recover_eval_every=1, **settings).history[0].loss

    # Student and teacher are the same model at first: nothing is to be learnt.
    assert first_loss(1.0) == pytest.approx(0, abs=1e-6)
    assert first_loss(0.0) > 0.1
    assert first_loss(0.5) == pytest.approx(first_loss(0.0) / 2, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(
    ("margin", "allowance", "part"),
    [
        (0.0, 0.15, 1.0),
        (0.2, 0.02, 1.0),
        (0.2, 0.15, (9 / 32 - 0.15) / 0.2),
        (0.3, 0.15, (9 / 32 - 0.15) / 0.25),
        (0.2, 0.5, (9 / 32 - 1 / 6) / 0.2),
    ],
)
def test_the_loss_of_recovery_by_hand(
    temperature: float, margin: float, allowance: float, part: float, tiny_data: CleanSet
) -> None:
    """The loss of the third step, on all of the recovery part, from the weights that the second one left.

    After the first, half of the accuracy is missing: the margin is at most a quarter, the allowance at most a sixth.
    After the second a quarter is, 8 held-out samples of 32, and one more may be.
    """

    scale = 0.05  # of a model that is not so sure that its answers are but the labels

    models: list[nn.Module] = []

    class LoseClasses(seamfast.Callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weight = kwargs["model"][1].weight
            with torch.no_grad():
                weight[2] = scale  # no image is bright all over: never this class
                weight[3] = scale if state.global_step == 1 else sure(scale)[1].weight[3]
            models.append(copy.deepcopy(kwargs["model"]))

    result = cured(
        sure(scale), tiny_data, LoseClasses(), recover_rate=0.1, recover_max_steps=3, recover_eval_every=1,
        temperature=temperature, margin=margin, allowance=allowance,
        **(RECOVERY_ALONE | PLAIN | {"distillation": 0.7}),
    )  # fmt: skip
    assert result.report["holdout"]["before"]["clean_accuracy"]["value"] == 1
    assert [p.holdout_accuracy for p in result.history[:2]] == [0.5, 0.75]
    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    inputs = normalized(tiny_data)[split.recovery]
    with torch.no_grad():
        student, teacher = models[1](inputs).double(), sure(scale)(inputs).double()
    task = F.cross_entropy(student, tiny_data.labels[split.recovery])
    wanted = (teacher / temperature).softmax(1)
    gap = (wanted * (wanted.log() - (student / temperature).log_softmax(1))).sum(1).mean() * temperature**2
    assert abs(gap - task) > 0.1
    weight = 0.7 * part
    assert result.history[2].loss == pytest.approx(float((1 - weight) * task + weight * gap), rel=1e-4)


class Notes(nn.Module):
    """Notes what it is trained on and what its frozen copy, the teacher, is asked."""

    asked: dict[bool, list[Tensor]]

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)
        self.asked = {True: [], False: []}

    def __deepcopy__(self, memo: Any) -> Notes:
        made = Notes()
        made.load_state_dict(self.state_dict())
        made.asked = self.asked
        return made

    def forward(self, images: Tensor) -> Tensor:
        self.asked[self.training].append(images.detach().clone())
        logits: Tensor = self.head(images.flatten(1))
        return logits


def another(images: Tensor, label: int) -> CleanSet:
    """The first image with another first pixel, to be held out: equal ones would not be trained on."""
    image = images[:1].clone()
    image[..., 0, 0] += 1
    return CleanSet(image, torch.tensor([label]))


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize("occlusions", [0, 3])
def test_patterns_are_shown_to_the_student_and_the_mean_image_to_the_teacher(occlusions: int) -> None:
    # All images are the same grey: so is their mean, and whatever differs from it is a pattern.
    model, data = Notes(), CleanSet(torch.full((80, 1, 8, 8), 51, dtype=torch.uint8), torch.arange(80) % 3)
    cured(
        model, data, **RECOVERY_ALONE, holdout=another(data.inputs, 3), recover_max_steps=5,
        occlusions=occlusions, mixing=0.0, disturbance=0.0, waves=0.0,
        plain_end=0.0, batch_size=32,
    )  # fmt: skip
    trained = torch.cat(model.asked[True])
    asked = torch.cat([images for images in model.asked[False] if len(images) == 32])  # not the held-out sample
    assert len(trained) == 5 * 32
    torch.testing.assert_close(asked, torch.full_like(asked, 51 / 255))
    patterned = (trained - 51 / 255).abs().flatten(1).amax(1) > 0.01
    assert patterned.float().mean() > 0.9 if occlusions else not patterned.any()


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize("mixing", [0.0, 0.5, 1.0])
def test_mixing_makes_images_between_two(mixing: float) -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(40).view(80, 1, 1, 1).expand(80, 1, 8, 8)
    model, data = Notes(), CleanSet(pixels, torch.arange(80) % 4)
    cured(
        model, data, holdout=another(pixels, 1), **RECOVERY_ALONE, recover_max_steps=8,
        occlusions=0, mixing=mixing, disturbance=0.0, waves=0.0,
        plain_end=0.0, batch_size=64,
    )  # fmt: skip
    trained = torch.cat(model.asked[True])[:, 0, 0, 0]
    between = ((trained > 1e-4) & (trained < 1 - 1e-4)).float().mean()
    assert between == pytest.approx(mixing / 2, abs=0.07)  # every other partner is of the same brightness


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize("plain_end", [0.0, 0.25, 1.0])
def test_at_the_end_images_are_shown_as_they_are(plain_end: float) -> None:
    data = CleanSet(torch.full((80, 1, 8, 8), 51, dtype=torch.uint8), torch.arange(80) % 4)
    data.inputs[::2] = 102  # or a mixture would be like the others
    model = Notes()
    cured(
        model, data, **RECOVERY_ALONE, holdout=another(data.inputs[1:2], 0), recover_max_steps=8,
        mixing=1.0, disturbance=1.0, margin=1.0,
        plain_end=plain_end, batch_size=32,
    )  # fmt: skip
    n_plain = round(8 * plain_end)
    for mode in (True, False):  # the student's and the teacher's
        batches = [images for images in model.asked[mode] if len(images) == 32]  # not the held-out samples
        shown = torch.stack(batches[-8:]).flatten(1) * 255
        known = ((shown - 51).abs() < 0.01) | ((shown - 102).abs() < 0.01)
        assert known.all(1).tolist() == [step >= 8 - n_plain for step in range(8)]


def asked(data: CleanSet, **settings: Any) -> dict[bool, list[float]]:
    """Of each batch of training (``True``) and of the others, the share of images that are not in ``data``."""
    model = Notes()
    with torch.no_grad():
        model.head.weight.copy_(sure()[1].weight)
        model.head.bias.zero_()
    cured(model, data, batch_size=128, occlusions=0, waves=0.0, invariances=False, **settings)
    known = normalized(data).flatten(1)
    return {
        mode: [float((torch.cdist(b.flatten(1), known).amin(1) > 0.01).double().mean()) for b in model.asked[mode]]
        for mode in (True, False)
    }


def test_once_nothing_is_missing_images_are_disturbed_but_not_the_teachers(tiny_data: CleanSet) -> None:
    strange = asked(
        tiny_data, **RECOVERY_ALONE, recover_rate=STILL, recover_max_steps=4, recover_eval_every=2, mixing=0.0,
        disturbance=1.0, margin=1.0,
    )  # fmt: skip
    assert strange[True][:2] == [0, 0]  # until it is known what is missing
    assert min(strange[True][2:]) > 0.9
    assert max(strange[False]) == 0


@pytest.mark.parametrize("disturbance", [0.0, 1.0])
def test_forgetting_disturbs_as_many_as_it_may(disturbance: float, tiny_data: CleanSet) -> None:
    """No teacher reduces it."""
    shares = asked(tiny_data, forget_rate=STILL, forget_max_steps=3, recover_max_steps=1, disturbance=disturbance)
    assert min(shares[True][:3]) > 0.9 if disturbance else max(shares[True][:3]) == 0


# The weight of the teacher.


def weights_and_shares(
    accuracies: list[float], data: CleanSet, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> list[tuple[float, float]]:
    """The weight of the teacher, and the share of images that are disturbed, at each step of a recovery in which
    held-out accuracy is seen to be that of ``accuracies`` after the first step, after the second one, ...

    The model as received is right on all.
    """
    shares: list[float] = []

    def noted(images: Tensor, *_: Any, share: Tensor, most: float) -> Tensor:
        assert most == changes["disturbance"]
        shares.append(float(share))
        return images

    def large(logits: Tensor, received: Tensor, temperature: float) -> Tensor:
        return 0 * logits.sum() + 1e6  # of the loss, this is the teacher's part

    scripted(monkeypatch, accuracies)
    monkeypatch.setattr(image_module, "disturb", noted)
    monkeypatch.setattr(seam_module, "distillation_loss", large)
    n_steps = len(accuracies)
    result = cured(
        sure(), data, **RECOVERY_ALONE, recover_rate=STILL, recover_eval_every=1, recover_max_steps=n_steps,
        plain_end=0.0, **changes,
    )  # fmt: skip
    assert result.report["holdout"]["before"]["clean_accuracy"]["value"] == 1
    weights = [p.loss / 1e6 for p in points(result, "recover")]
    return list(zip(weights, shares or [0.0] * len(weights), strict=True))


@pytest.mark.parametrize(
    ("missing", "weights", "settings"),
    [
        # One held-out sample more than is seen to be missing may be so. All of the weight at first, as what is missing
        # is not known yet; the last accuracy comes too late. The allowance is 0.1.
        (
            [0.6, 0.1, 0.15, 0.5, 0.3, 0.12, 1 / 32, 0.0],
            [1.0, 1.0, 0.0, 0.25, 1.0, 1.0, 0.1, 0.0],
            {"margin": 0.2, "allowance": 0.1, "distillation": 0.8, "disturbance": 0.5},
        ),
        # Of what is missing at first, no more than a third is allowed, and half of it is all of the margin.
        (
            [0.5, 0.25, 0.3, 0.0],
            [1.0, 1.0, (0.25 - 0.46875 / 3) / 0.234375, (0.3 - 0.46875 / 3) / 0.234375],
            {"margin": 0.9, "allowance": 0.9, "distillation": 0.8, "disturbance": 0.5},
        ),
        ([-0.5, -0.5], [1.0, 0.0], {"disturbance": 1.0, "distillation": 0.8}),
        # Without a margin always the teacher, never a disturbance.
        ([0.0, 0.8, 0.0, 0.0], [1.0] * 4, {"margin": 0.0, "distillation": 0.95, "disturbance": 1.0}),
    ],
)
def test_the_teachers_weight_follows_the_accuracy_that_is_missing(
    missing: list[float],
    weights: list[float],
    settings: dict[str, float],
    tiny_data: CleanSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got = weights_and_shares([1 + 1 / 32 - part for part in missing], tiny_data, monkeypatch, **settings)
    assert len(got) == len(weights)
    for (weight, share), wanted in zip(got, weights, strict=True):
        assert weight == pytest.approx(settings["distillation"] * wanted, abs=1e-4)
        assert share == pytest.approx(settings["disturbance"] * (1 - wanted), abs=1e-4)


@pytest.mark.parametrize(
    ("missing", "at_first", "accuracy", "n_holdout", "weight"),
    [
        # Of many samples: by the settings, 0.02 and 0.06.
        (0.03, 0.5, 0.9, 10_000, (0.03 + 1e-4 - 0.02) / 0.06),
        (0.02 - 1e-4, 0.5, 0.9, 10_000, 0.0),
        (0.08, 0.5, 0.9, 10_000, 1.0),
        # Where little is missing at first: a third and half of that.
        (0.015, 0.03, 0.9, 10_000, (0.015 + 1e-4 - 0.01) / 0.015),
        (0.03, 0.03, 0.9, 10_000, 1.0),
        # Where it is within two standard errors, 0.006: a third and all of them.
        (0.003, 0.001, 0.9, 10_000, (0.003 + 1e-4 - 0.002) / 0.006),
        (0.003, -0.2, 0.9, 10_000, (0.003 + 1e-4 - 0.002) / 0.006),
        # On few samples more must be missing for the same weight: two standard errors are 0.08.
        (0.05, 0.5, 0.8, 100, (0.05 + 1 / 100 - 0.02) / 0.08),
        (0.05, 0.5, 0.9, 36, (0.05 + 1 / 36 - 0.02) / (2 * (0.09 / 40) ** 0.5)),  # no further down than forty
        # Of an accuracy of 1 or 0, as if one sample were otherwise.
        (0.01, 0.5, 1.0, 100, 0.0),
        (0.025, 0.5, 1.0, 50, (0.025 + 1 / 50 - 0.02) / 0.06),
        (0.045, 0.5, 0.0, 40, (0.045 + 1 / 40 - 0.02) / 0.06),
        (0.0, 0.0, 1.0, 4, 1.0),
        (0.2, 0.2, 0.8, 36, 1.0),
        (-0.1, 0.5, 1.0, 36, 0.0),
    ],
)
def test_the_teachers_weight_by_hand(
    missing: float, at_first: float, accuracy: float, n_holdout: int, weight: float
) -> None:
    got = SeamConfig().teacher_weight(missing, at_first, accuracy, n_holdout)
    assert got == pytest.approx(weight, abs=1e-12)


RATE, SIZE = st.floats(0, 1), st.integers(1, 10**6)


@given(RATE, RATE, st.tuples(*[st.floats(-1, 1)] * 2), st.floats(-1, 1), RATE, SIZE)
def test_the_more_is_missing_the_greater_the_teachers_weight(
    allowance: float, margin: float, missing: tuple[float, float], at_first: float, accuracy: float, n_holdout: int
) -> None:
    config = SeamConfig(allowance=allowance, margin=margin)
    less, more = (config.teacher_weight(part, at_first, accuracy, n_holdout) for part in sorted(missing))
    assert 0 <= less <= more <= 1
    assert margin or less == 1


@given(RATE, st.floats(0, 1, exclude_min=True), st.floats(0.2, 1), RATE, st.integers(100, 10**6))
def test_what_is_missing_at_first_beyond_chance_is_worth_all_of_the_teacher(
    allowance: float, margin: float, at_first: float, accuracy: float, n_holdout: int
) -> None:
    """Whatever is allowed: or a hard task would be left alone."""
    config = SeamConfig(allowance=allowance, margin=margin)
    assert config.teacher_weight(at_first, at_first, accuracy, n_holdout) == 1
    generous = SeamConfig(allowance=1.0, margin=margin)  # a third is allowed
    assert generous.teacher_weight(at_first / 3 - 1 / n_holdout, at_first, accuracy, n_holdout) < 1e-6


@pytest.mark.parametrize("disturbance", [0.0, 0.5])
def test_without_disturbance_nothing_is_disturbed(
    disturbance: float, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(image_module, "disturb", lambda images, *rest, **more: called.append(1) or images)
    cured(sure(), tiny_data, forget_max_steps=2, forget_rate=STILL, recover_max_steps=2, disturbance=disturbance)
    assert len(called) == (4 if disturbance else 0)


# The radius.


def radius_of(model: nn.Module, data: CleanSet, **changes: Any) -> tuple[float, seamfast.SanitizeResult]:
    """What forgetting finds, and the result of the run, which ends there."""
    found: list[float] = []
    with pytest.MonkeyPatch.context() as patch:

        def recover(run: Run, config: SeamConfig, strength: float, radius: float) -> int:
            found.append(radius)
            return 0

        patch.setattr(seam_module, "recover", recover)
        result = cured(model, data, **changes)
    assert result.report["run"]["stopped"] is None
    (radius,) = found
    return radius, result


@pytest.mark.parametrize(
    ("accuracies", "halfway", "radius"),
    [
        ([0.9, 0.5, 0.2], 0.5, 1.0),  # at an evaluation
        ([0.9, 0.7, 0.3], 0.5, 1.5),
        ([0.9, 0.3, 0.9, 0.1], 0.6, 0.5),  # the first time
        ([0.9, 0.8, 0.7], 0.5, 2.0),  # never: all of the way
        ([0.2, 0.3, 0.1], 0.4, 1.0),  # from the start: all of the way to the first evaluation
        ([0.9], 0.5, 0.0),
    ],
)
def test_the_radius_by_hand(accuracies: list[float], halfway: float, radius: float) -> None:
    path = [(float(moved), accuracy) for moved, accuracy in enumerate(accuracies)]
    assert forgetting.radius_of(path, halfway) == pytest.approx(radius)


@pytest.mark.parametrize(("rate", "growth", "every"), [(0.004, 1.2, 3), (0.01, 1.0, 1), (0.3, 1.1, 1)])
def test_the_radius_is_the_way_to_half_of_the_accuracy(
    rate: float, growth: float, every: int, tiny_model: Make, tiny_data: CleanSet
) -> None:
    radius, result = radius_of(
        tiny_model(), tiny_data, forget_rate=rate, forget_growth=growth, forget_eval_every=every, forget_max_steps=70
    )
    before = (0.0, result.report["holdout"]["before"]["clean_accuracy"]["value"])
    half = (before[1] + 1 / 4) / 2
    for point in points(result, "forget"):
        moved = sum(rate * growth**k for k in range(point.step))
        if point.holdout_accuracy <= half:
            break
        before = (moved, point.holdout_accuracy)
    assert point.holdout_accuracy <= half < before[1]
    share = (before[1] - half) / (before[1] - point.holdout_accuracy)
    assert radius == pytest.approx(before[0] + share * (moved - before[0]))
    assert before[0] < radius <= moved


def test_the_radius_is_all_of_the_way_if_the_task_stays(tiny_model: Make, tiny_data: CleanSet) -> None:
    radius, _ = radius_of(tiny_model(), tiny_data, forget_rate=1e-7, forget_growth=2.0, forget_max_steps=5)
    assert radius == pytest.approx(1e-7 * (1 + 2 + 4 + 8 + 16))


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize("bias", [(0.0, 0.0, 0.0, 0.0), (9.0, 0.0, 0.0, 0.0)])
def test_a_model_that_only_guesses_has_a_radius_too(bias: tuple[float, ...], tiny_data: CleanSet) -> None:
    """At chance, or below: it is half-way down before the first step, and still recovery is to go forward."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        model[1].weight.copy_(-sure()[1].weight if not any(bias) else sure()[1].weight * 1e-3)
        model[1].bias.copy_(torch.tensor(bias))
    radius, result = radius_of(model, tiny_data, forget_rate=0.01, forget_max_steps=10)
    assert result.report["holdout"]["before"]["clean_accuracy"]["value"] <= 0.25
    assert 0.01 <= radius <= sum(0.01 * 1.2**k for k in range(10))


def test_the_radius_does_not_know_the_scale_of_the_weights(tiny_data: CleanSet) -> None:
    """A kernel before a BatchNorm may be of any size: it computes the same, and its share of moving is the same."""

    def model(factor: float) -> nn.Module:
        torch.manual_seed(4)
        layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 4),
        )  # fmt: skip
        inputs = normalized(tiny_data)
        optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
        for _ in range(40):
            F.cross_entropy(layers(inputs), tiny_data.labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for kernel, norm in ((0, 1), (3, 4)):
                layers[kernel].weight.mul_(factor)
                layers[norm].running_mean.mul_(factor)
                layers[norm].running_var.mul_(factor**2)
        return layers.eval()

    small, plain, large = (radius_of(model(factor), tiny_data)[0] for factor in (1 / 4, 1.0, 64.0))
    assert small == pytest.approx(plain, rel=0.1)
    assert large == pytest.approx(plain, rel=0.1)
    assert 0.01 < plain < 2


def test_a_fragile_model_has_a_small_radius(tiny_data: CleanSet) -> None:
    """What is the same for all classes changes no answer, but is large: a small share of it is much to the rest."""
    robust, fragile = sure(), sure()
    with torch.no_grad():
        fragile[1].weight += 10 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    inputs = normalized(tiny_data)
    assert torch.equal(robust(inputs).argmax(1), fragile(inputs).argmax(1))
    assert radius_of(fragile, tiny_data)[0] < 0.25 * radius_of(robust, tiny_data)[0]


def test_a_radius_that_is_given_is_used(tiny_model: Make, tiny_data: CleanSet) -> None:
    radius, result = radius_of(tiny_model(), tiny_data, radius=0.123)
    assert radius == 0.123
    assert result.report["run"]["steps"]["forget"] > 3  # it forgets all the same
    assert points(result, "forget")[-1].holdout_accuracy < 0.5
    assert radius_of(tiny_model(), tiny_data, radius=0.123, forget_max_steps=0)[0] == 0.123


# The rates.


def rates_of(monkeypatch: pytest.MonkeyPatch, data: CleanSet, **changes: Any) -> list[list[float]]:
    """The rates that each phase takes its steps at, in the order of the phases."""
    phases: list[list[float]] = []

    class Noting(seam_module.RelativeAdam):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            phases.append([])

        def step(self, rate: Tensor) -> None:
            phases[-1].append(float(rate))
            super().step(rate)

    for module in (forgetting, seam_module):
        monkeypatch.setattr(module, "RelativeAdam", Noting)
    cured(sure(), data, **changes)
    return phases


@pytest.mark.parametrize("growth", [1.0, 1.2, 2.0])
def test_the_rates_of_forgetting_grow(growth: float, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the strength: that is of recovery."""
    forget, _ = rates_of(
        monkeypatch, tiny_data, forget_rate=1e-6, forget_growth=growth, forget_max_steps=6, recover_max_steps=1,
        strengths=(0.3,),
    )  # fmt: skip
    assert forget == pytest.approx([1e-6 * growth**k for k in range(6)])


@pytest.mark.parametrize(("rate", "radius", "strength"), [(0.75, 0.2, 1.0), (0.75, 0.2, 0.5), (0.1, 0.07, 1.0)])
def test_recovery_pushes_by_rate_times_radius_times_strength(
    rate: float, radius: float, strength: float, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recover,) = rates_of(
        monkeypatch, tiny_data, recover_rate=rate, radius=radius, strengths=(strength,), forget_max_steps=0,
        recover_max_steps=30, accuracy_budget=1.0,
    )  # fmt: skip
    assert recover == pytest.approx([rate * radius * strength * cosine(k / 30) for k in range(30)])
    assert max(recover) == pytest.approx(rate * radius * strength)


def test_recovery_pushes_by_the_radius_that_was_found(tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {"recover_max_steps": 40, "accuracy_budget": 1.0}
    radius, _ = radius_of(sure(), tiny_data, **config)
    _, recover = rates_of(monkeypatch, tiny_data, **config)
    assert max(recover) == pytest.approx(SeamConfig().recover_rate * radius, rel=0.01)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_relative_rates_are_shares_of_each_tensors_size(strength: float, tiny_data: CleanSet) -> None:
    model = linear()
    watch = Watch(model)
    cured(
        model, tiny_data, watch, **RECOVERY_ALONE, strengths=(strength,), recover_rate=0.04, recover_max_steps=1,
        **PLAIN,
    )  # fmt: skip
    moved = watch.first_move("recover", 0).abs().max() / watch.received.square().mean().sqrt()
    assert float(moved) == pytest.approx(strength * 0.04 * cosine(0.0), rel=1e-3)


@pytest.mark.parametrize("radius", [None, 1000])
def test_the_largest_rates_are_reported_as_not_accepted(radius: float | None, tiny_data: CleanSet) -> None:
    """They ruin the model, as they must; the run ends all the same."""
    result = cured(
        sure(), tiny_data, invariances=False, forget_rate=1e9, recover_rate=1e9, strengths=(1e9,), forget_max_steps=3,
        recover_max_steps=3, radius=radius,
    )  # fmt: skip
    assert not result.accepted


# The strengths.


class Pushes:
    """In place of forgetting and recovery: the ``k``-th push leaves a model that is wrong on ``lost[k]`` classes of
    four, and whose weights are ``k + 1`` times as large, by which it is known again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lost: int) -> None:
        self.lost = lost
        self.strengths: list[float] = []
        self.radii: list[float] = []
        self.from_received: list[bool] = []
        monkeypatch.setattr(seam_module, "forget", self.forget)
        monkeypatch.setattr(seam_module, "recover", self.recover)

    def forget(self, run: Run, config: SeamConfig) -> float:
        self.from_received.append(torch.equal(run.model[1].weight, sure()[1].weight))  # type: ignore[index]
        with torch.no_grad():
            run.model[1].weight.zero_()  # type: ignore[index]
        return 0.5 + run.attempt

    def recover(self, run: Run, config: SeamConfig, strength: float, radius: float) -> int:
        left = sure()[1].weight.detach() * (run.attempt + 1)
        left[: self.lost[run.attempt]] = run.attempt + 1  # no image is bright all over: never these classes
        with torch.no_grad():
            run.model[1].weight.copy_(left)  # type: ignore[index]
        self.strengths.append(strength)
        self.radii.append(radius)
        return 0

    @staticmethod
    def returned(result: seamfast.SanitizeResult) -> int:
        """Which push the returned model is of, from 0."""
        return int(result.model[1].weight.max()) - 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("lost", "n_pushes", "returned"),
    [
        ((0, 0, 0), 1, 0),  # back at once
        ((1, 0, 0), 2, 1),  # back at the second push
        ((2, 1, 0), 3, 2),  # half as much is missing: on
        ((3, 1, 0), 3, 2),
        ((2, 2, 0), 2, 0),  # as much is missing: the harder push it is
        ((1, 1, 0), 2, 0),
        ((1, 3, 0), 2, 0),  # even more
        ((3, 2, 0), 2, 0),  # less, but by less than half
        ((3, 1, 1), 3, 1),  # the third is held to what the second left
        ((3, 1, 2), 3, 1),
    ],
)
def test_a_gentler_push_is_kept_if_it_halves_what_is_missing(
    lost: tuple[int, ...],
    n_pushes: int,
    returned: int,
    tiny_data: CleanSet,
    enlarged: Enlarged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pushes = Pushes(monkeypatch, *lost)
    result = cured(sure(), enlarged(tiny_data, 2), strengths=(1.0, 0.5, 0.25))
    assert result.report["run"]["n_attempts"] == n_pushes
    assert pushes.strengths == [1.0, 0.5, 0.25][:n_pushes]
    assert pushes.radii == [0.5, 1.5, 2.5][:n_pushes]  # each by the radius found on its own way
    assert pushes.from_received == [True] * n_pushes
    assert Pushes.returned(result) == returned
    # What is reported is what is returned.
    after = result.report["holdout"]["after"]["clean_accuracy"]
    assert after["value"] == 1 - lost[returned] / 4
    assert result.accepted is (lost[returned] == 0)


@pytest.mark.parametrize(("settings", "has_time"), [({}, True), ({"strengths": (1.0, 0.5)}, False)])
def test_there_is_one_push_by_default_and_where_no_time_is_left(
    settings: dict[str, Any], has_time: bool, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes = Pushes(monkeypatch, 2, 0)
    monkeypatch.setattr(Run, "time_for_another_attempt", lambda run: has_time)
    result = cured(sure(), tiny_data, **settings)
    assert pushes.strengths == [1.0]
    assert result.report["run"]["n_attempts"] == 1
    assert Pushes.returned(result) == 0
    assert not result.accepted


def test_pushes_in_earnest_from_the_weights_as_received(tiny_model: Make, tiny_data: CleanSet) -> None:
    """The first push forgets and cannot recover; the second one forgets next to nothing, as accuracy may not fall."""
    watch = Watch(tiny_model())
    result = cured(
        tiny_model(), tiny_data, watch, strengths=(1.0, 1e-9), forget_rate=0.4, forget_growth=1.0, forget_max_steps=5,
        recover_rate=STILL, recover_max_steps=2, **PLAIN,
    )  # fmt: skip
    assert not result.accepted
    assert result.report["run"]["n_attempts"] == 2
    moved = [float(watch.first_move("forget", attempt).abs().max()) for attempt in range(2)]
    assert moved[1] == pytest.approx(moved[0], rel=0.02)  # the second begins where the first did
    first = next(v for p, a, v in reversed(watch.steps) if (p, a) == ("recover", 0))
    assert torch.equal(Watch.vector(result.model), first)  # and helps nothing, so that the first one's are returned


@pytest.mark.parametrize("forgotten", [True, False])
def test_recovery_goes_on_from_what_was_forgotten_or_from_what_was_received(
    forgotten: bool, tiny_model: Make, tiny_data: CleanSet, enlarged: Enlarged
) -> None:
    watch = Watch(tiny_model())
    result = cured(
        tiny_model(), enlarged(tiny_data, 2), watch, recover_from_forgotten=forgotten, recover_rate=STILL,
        recover_max_steps=1, **PLAIN,
    )  # fmt: skip
    end_of_forgetting = next(v for p, _, v in reversed(watch.steps) if p == "forget")
    assert (end_of_forgetting - watch.received).abs().max() > 0.01
    wanted = end_of_forgetting if forgotten else watch.received
    torch.testing.assert_close(Watch.vector(result.model), wanted)
    assert result.report["run"]["steps"]["forget"] > 1
    assert result.accepted is not forgotten
    if not forgotten:  # the running statistics, too
        for (name, got), given in zip(result.model.named_buffers(), tiny_model().buffers(), strict=True):
            if name.endswith("running_var"):
                assert (got / given).log().abs().max() < 1  # one step of recovery away


def test_a_teacher_of_weight_0_is_not_asked(
    tiny_model: Make, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Tensor] = []
    received = Run.received_logits
    monkeypatch.setattr(Run, "received_logits", lambda run, x: answers.append(received(run, x)) or answers[-1])
    monkeypatch.setattr(SeamConfig, "teacher_weight", lambda *_: 0.0)
    cured(tiny_model(), tiny_data, **RECOVERY_ALONE, recover_rate=STILL, recover_max_steps=6, recover_eval_every=2)
    assert len(answers) == 2  # until it is first known what is missing


# Easy tasks.


@pytest.mark.parametrize(
    ("radius", "at_first", "n_holdout", "budget", "is_easy"),
    [
        (0.15, 0.03, 200, 0.03, True),
        (0.149, 0.0, 10_000, 0.03, False),  # a backdoor comes back as soon
        (0.3, 0.0301, 10_000, 0.03, False),
        (0.3, 0.0301, 10_000, 0.05, True),
        (0.3, -0.1, 200, 0.0, True),
        (0.3, 0.0, 199, 0.03, False),  # too few to tell
    ],
)
def test_a_task_is_easy_where_it_is_far_away_and_no_more_than_the_budget_is_missing(
    radius: float, at_first: float, n_holdout: int, budget: float, is_easy: bool
) -> None:
    assert SeamConfig(accuracy_budget=budget).is_easy(radius, at_first, n_holdout) is is_easy


EASY: dict[str, Any] = {
    "forget_max_steps": 0, "radius": 0.2, "recover_rate": 5e-6, "recover_max_steps": 60, "recover_easy_steps": 15,
    "recover_eval_every": 5, "batch_size": 16, **PLAIN,
}  # fmt: skip


class Ends(seamfast.Callback):
    """What the state says at the end of the run."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.taken, self.planned = state.global_step, state.max_steps


def easy_rates(tiny_data: CleanSet, enlarged: Enlarged, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[float]:
    """The rates of recovery of a model that is right on all, on 224 held-out samples."""
    data = enlarged(tiny_data, 7)
    assert round(0.2 * len(data)) == 224
    (rates,) = rates_of(monkeypatch, data, **EASY | changes)
    return rates


def test_an_easy_task_gets_fewer_and_smaller_steps(
    tiny_data: CleanSet, enlarged: Enlarged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first evaluation on; they are smaller as the root of their number, and end as all runs end."""
    rates = easy_rates(tiny_data, enlarged, monkeypatch)
    wanted = [1e-6 * cosine(k / 60) for k in range(5)] + [
        1e-6 * (15 / 60) ** 0.5 * cosine(k / 15) for k in range(5, 15)
    ]
    assert rates == pytest.approx(wanted)


@pytest.mark.parametrize(
    "changes",
    [
        {"recover_easy_steps": 60},  # no fewer than all
        {"recover_easy_steps": 90},
        {"recover_easy_steps": 5},  # all taken when it is first known
        {"recover_easy_steps": 3},
        {"recover_eval_every": 15},
    ],
)
def test_a_task_that_is_found_easy_too_late_gets_all_steps(
    changes: dict[str, Any], tiny_data: CleanSet, enlarged: Enlarged, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = easy_rates(tiny_data, enlarged, monkeypatch, **changes)
    assert rates == pytest.approx([1e-6 * cosine(k / 60) for k in range(60)])


@pytest.mark.parametrize(
    ("accuracies", "n_steps"),
    [([0.96], 60), ([0.98], 15), ([0.96, 1, 1], 60), ([1, 0.5], 15)],
)
def test_the_first_evaluation_decides_how_many_steps_a_task_needs(
    accuracies: list[float], n_steps: int, tiny_data: CleanSet, enlarged: Enlarged, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, accuracies)
    assert len(easy_rates(tiny_data, enlarged, monkeypatch)) == n_steps


@pytest.mark.parametrize(("times", "radius", "n_steps"), [(7, 0.15, 15), (7, 0.14, 60), (6, 0.15, 60)])
def test_near_by_or_on_few_held_out_samples_no_task_is_easy(
    times: int, radius: float, n_steps: int, tiny_data: CleanSet, enlarged: Enlarged
) -> None:
    """With 224 of them, or 192."""
    result = cured(sure(), enlarged(tiny_data, times), **EASY | {"radius": radius})
    assert result.report["run"]["steps"] == {"recover": n_steps}


def test_a_short_run_is_reported_as_complete(tiny_data: CleanSet, enlarged: Enlarged) -> None:
    ends = Ends()
    result = cured(sure(), enlarged(tiny_data, 7), ends, **EASY | {"recover_easy_steps": 12, "plain_end": 0.2})
    assert result.report["run"]["steps"] == {"recover": 12}
    assert [p.step for p in result.history] == [5, 10, 12]
    assert (ends.taken, ends.planned) == (12, 12)
    assert not result.report["run"]["time_ran_out"]
    assert result.accepted


def test_the_plain_end_of_a_short_run_is_a_share_of_its_steps(
    tiny_data: CleanSet, enlarged: Enlarged, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[float] = []
    views = Run.views

    def noted(run: Run, *arguments: Any, **draws: Tensor) -> Any:
        changed.append(float(draws["changed"]))
        return views(run, *arguments, **draws)

    monkeypatch.setattr(Run, "views", noted)
    cured(sure(), enlarged(tiny_data, 7), **EASY | {"plain_end": 0.4})
    assert changed == [1.0] * 9 + [0.0] * 6


class Ticks(seamfast.Callback):
    """A second passes at each step, and no time besides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(Clock, "elapsed", lambda _: self.now)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.now += 1


@pytest.mark.parametrize(("budget_s", "n_steps"), [(9.5, 9), (14.5, 14), (15.5, 15), (60.5, 15)])
def test_a_time_budget_ends_a_short_run_too(
    budget_s: float, n_steps: int, tiny_data: CleanSet, enlarged: Enlarged, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    take = Run._take
    monkeypatch.setattr(Run, "_take", lambda run, rate: (rates.append(rate), take(run, rate)))
    ends = Ends()
    result = seamfast.sanitize(
        sure(), enlarged(tiny_data, 7), config=SeamConfig(**EASY), precision="fp32", time_budget_s=budget_s,
        callbacks=[Ticks(monkeypatch), ends],
    )  # fmt: skip
    assert result.report["run"]["steps"] == {"recover": n_steps}
    assert (ends.taken, ends.planned) == (n_steps, n_steps)
    assert result.report["run"]["time_ran_out"] is (n_steps < 15)
    assert result.history[-1].step == n_steps
    assert min(rates) == rates[-1] < 0.1 * max(rates)
    assert result.accepted  # at least half of the steps that it needs


@pytest.mark.parametrize(("budget_s", "n_steps"), [(9.5, 9), (29.5, 29), (31.5, 31)])
def test_a_recovery_that_the_clock_cut_short_is_reported(
    budget_s: float, n_steps: int, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = seamfast.sanitize(
        sure(), tiny_data, config=SeamConfig(**EASY), precision="fp32", time_budget_s=budget_s,
        callbacks=[Ticks(monkeypatch)],
    )  # fmt: skip
    assert result.report["run"]["steps"] == {"recover": n_steps}
    assert result.report["run"]["time_ran_out"]
    warning = f"the time budget of {budget_s} s cut the run short; steps taken: recover {n_steps}"
    assert warning in result.report["warnings"]
    share = f"{n_steps / 60:.0%} of the recovery steps were taken"
    checks = {check["name"]: check for check in result.report["verdict"]["checks"]}
    assert share in checks["recovery not cut short"]["detail"]
    assert checks["recovery not cut short"]["passed"] is (n_steps >= 30)


# Invariances.

SIDE = 16  # the smallest images that are cropped, by a pixel


def templates(kind: str) -> Tensor:
    """``(4, 16, 16)``: where the images of each class are bright.

    A band is four rows, a comb every fourth row. A crop moves a comb onto that of another class, and bands by little; a
    flip changes neither, but both of columns.
    """
    rows = torch.arange(SIDE)
    lines = rows // 4 if kind.endswith("bands") else rows % 4
    bright = (lines == torch.arange(4)[:, None]).float().view(4, SIDE, 1).expand(4, SIDE, SIDE)
    return bright.mT if kind.startswith("upright") else bright


def striped(kind: str, n: int = 160) -> CleanSet:
    labels = torch.arange(n) % 4
    noise = torch.randint(0, 60, (n, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(3))
    pixels = (noise + 120 * templates(kind)[labels][:, None]).to(torch.uint8)
    return CleanSet(pixels, labels, mean=0.4, std=0.25)


def of_stripes(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(templates(kind).flatten(1))
    return model


FOUND = {"bands": (1, True), "upright bands": (1, False), "combs": (0, True), "upright combs": (0, False)}
FEW: dict[str, Any] = {"forget_max_steps": 1, "recover_max_steps": 1, **PLAIN}


def augmentation_of(result: seamfast.SanitizeResult) -> tuple[int, bool]:
    found = result.report["run"]["augmentation"]
    assert list(found) == ["crop_pad", "flip"]
    return found["crop_pad"], found["flip"]


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("is_pixels", [True, False])
def test_samples_are_augmented_as_far_as_the_model_is_invariant_to_it(kind: str, is_pixels: bool) -> None:
    data = striped(kind)
    if not is_pixels:
        data = CleanSet(normalized(data), data.labels)
    result = cured(of_stripes(kind), data, **FEW)
    assert result.report["holdout"]["before"]["clean_accuracy"]["value"] == 1
    assert augmentation_of(result) == FOUND[kind]
    assert augmentation_of(cured(of_stripes(kind), data, **FEW, invariances=False)) == (0, False)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({"crop_pad": 2}, (2, False)), ({"flip": True}, (0, True)), ({"crop_pad": 3, "flip": True}, (3, True))],
)
@pytest.mark.parametrize("kind", ["bands", "upright combs"])
def test_an_augmentation_that_is_given_is_the_one_that_is_used(
    kind: str, given: dict[str, Any], wanted: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "share_lost_under", None)  # nothing else is tried
    assert augmentation_of(cured(of_stripes(kind), striped(kind), **FEW, **given)) == wanted


class AsRead(Dataset[Any]):
    def __init__(self, data: CleanSet) -> None:
        self.inputs, self.labels = normalized(data), data.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(self.labels[index])


@pytest.mark.parametrize(("augments", "wanted"), [(True, (0, False)), (False, (1, True))])
def test_what_the_loader_augments_is_augmented_no_further(augments: bool, wanted: tuple[int, bool]) -> None:
    config = SeamConfig(**FEW)
    result = seamfast.sanitize(
        of_stripes("bands"), AsRead(striped("bands")), augments=augments, config=config, precision="fp32"
    )
    assert augmentation_of(result) == wanted


def test_what_is_no_image_is_not_augmented_and_said_to_be_left_out() -> None:
    data = striped("bands")
    rows = CleanSet(normalized(data).flatten(1), data.labels)
    result = cured(of_stripes("bands"), rows, **FEW)
    assert augmentation_of(result) == (0, False)
    assert "samples of kind 'tabular' cannot have invariances: left out, a weaker cure" in result.report["warnings"]
    without = cured(of_stripes("bands"), rows, **FEW, invariances=False).report["warnings"]
    assert not [warning for warning in without if "left out" in warning]


@pytest.mark.parametrize(("crop", "flip", "wanted"), [(0.04, 0.041, (1, False)), (0.041, 0.04, (0, True))])
def test_a_twenty_fifth_of_the_samples_may_be_lost(
    crop: float, flip: float, wanted: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By each change alone."""

    def lost(run: Run, augmentation: Augmentation) -> float:
        assert bool(augmentation.pad) is not augmentation.flip
        return flip if augmentation.flip else crop

    monkeypatch.setattr(Run, "share_lost_under", lost)
    assert augmentation_of(cured(of_stripes("bands"), striped("bands"), **FEW)) == wanted


def among(images: Tensor, known: Tensor) -> Tensor:
    """``(B,)`` bool."""
    return torch.stack([(image - known).abs().flatten(1).amax(1).amin() < 1e-4 for image in images])


def test_both_steps_see_augmented_samples_and_evaluations_do_not() -> None:
    """Combs are flipped: of each sample, about half of the time."""
    data = striped("combs")
    inputs = normalized(data)
    split = split_by_class(data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    seen: list[tuple[bool, Tensor]] = []
    model = of_stripes("combs")
    model.register_forward_pre_hook(lambda module, args: seen.append((module.training, args[0].clone())))
    cured(model, data, batch_size=128, **FEW)
    trained = [images for training, images in seen if training and len(images) == 128]
    assert len(trained) == 2
    for images in trained:
        plain, mirrored = (among(images, known) for known in (inputs, inputs.flip(3)))
        assert (plain ^ mirrored).all()
        assert 0.3 < plain.float().mean() < 0.7
    assert not torch.equal(*(torch.stack([x.flatten(1).sum(1) for x in trained])))
    evaluated = [images for training, images in seen if not training and len(images) == len(split.holdout)]
    assert (
        sum(torch.allclose(images, inputs[split.holdout], atol=1e-4) for images in evaluated) >= 2
    )  # before and after


# Dropout.


class Dropping(nn.Module):
    """Right on ``tiny_data``, with one of each of PyTorch's dropout layers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = sure()
        self.norm = nn.BatchNorm1d(4)
        self.drops = nn.ModuleList(
            [
                nn.Dropout(0.2), nn.Dropout1d(0.2), nn.Dropout2d(0.2), nn.Dropout3d(0.2), nn.AlphaDropout(0.2),
                nn.FeatureAlphaDropout(0.2),
            ]
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drops[0](images))
        return logits


class Modes(seamfast.Callback):
    """At the end of each step, whether each dropout layer drops, by phase and attempt; all else is in train mode."""

    def __init__(self) -> None:
        self.drops: dict[tuple[str, int], set[bool]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        assert model.training
        assert model.norm.training
        modes = {layer.training for layer in model.drops}
        self.drops.setdefault((state.phase, state.attempt), set()).update(modes)


@pytest.mark.parametrize("dropout", [False, True])
def test_nothing_drops_in_recovery_unless_asked_to(dropout: bool, tiny_data: CleanSet) -> None:
    """In forgetting it does, in that of a second attempt too; nor do the evaluations in between change it."""
    modes = Modes()
    result = cured(
        Dropping(), tiny_data, modes, dropout=dropout, strengths=(1.0, 1e-9), forget_rate=0.4, forget_max_steps=3,
        recover_rate=STILL, recover_max_steps=4, recover_eval_every=1, **PLAIN,
    )  # fmt: skip
    assert result.report["run"]["n_attempts"] == 2
    assert modes.drops == {
        (phase, attempt): {phase == "forget" or dropout} for phase in ("forget", "recover") for attempt in (0, 1)
    }


@pytest.mark.parametrize("dropout", [False, True])
def test_what_dropout_does_to_recovery_is_what_it_does_to_its_batches(dropout: bool, tiny_data: CleanSet) -> None:
    seen: list[Tensor] = []
    model = Dropping()
    model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()) if module.training else None)
    cured(model, tiny_data, dropout=dropout, **RECOVERY_ALONE, recover_rate=STILL, recover_max_steps=2, **PLAIN)
    assert len(seen) == 2
    zeros = torch.cat(seen).eq(0).double().mean()
    assert zeros == pytest.approx(0.2, abs=0.03) if dropout else zeros < 0.02


@pytest.mark.parametrize("trains", [False, True])
def test_the_returned_model_has_the_modes_of_the_given_one(trains: bool, tiny_data: CleanSet) -> None:
    model = Dropping().train(trains)
    model.drops[1].train(not trains)
    result = cured(model, tiny_data, forget_max_steps=2, recover_max_steps=2, **PLAIN)
    assert result.report["run"]["stopped"] is None
    wanted = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in result.model.named_modules()} == wanted
