"""SEAM, phase by phase: what forgetting and recovery do to a model, and where they stop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, HistoryPoint, SeamConfig
from seamfast.data import split_by_class

STILL = 1e-12  # a rate at which nothing moves
PLAIN = {"mixing": 0.0, "occlusions": 0, "distillation": 0.0}


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

    def moves(self, phase: str) -> list[float]:
        """The length of each step of a phase, the first one excepted."""
        vectors = [v for p, _, v in self.steps if p == phase]
        return [float((b - a).norm()) for a, b in pairwise(vectors)]


def linear(n_classes: int = 4) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))
    with torch.no_grad():
        model[1].weight.copy_(0.3 * torch.randn(n_classes, 64, generator=generator))
        model[1].bias.fill_(1.0)
    return model


# Forgetting.


def test_forgetting_stops_near_chance_and_recovery_brings_the_task_back(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    config = SeamConfig(recover_max_steps=80, recover_eval_every=20, strengths=(1.0,))
    result = seamfast.sanitize(tiny_model(), tiny_data, config=config)
    before = result.report["holdout"]["before"]["clean_accuracy"]["value"]
    assert before > 0.95
    *earlier, last = [p.holdout_accuracy for p in points(result, "forget")]
    assert last < 2 / 4
    assert all(accuracy >= 2 / 4 for accuracy in earlier)
    assert result.report["run"]["steps"]["forget"] < config.forget_max_steps
    assert points(result, "recover")[-1].holdout_accuracy > before - 0.04
    assert result.accepted


def test_forgetting_ends_after_its_steps_if_the_task_stays(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    config = SeamConfig(
        forget_rate=STILL, forget_max_steps=7, forget_eval_every=3, recover_max_steps=1, strengths=(1.0,)
    )
    result = seamfast.sanitize(tiny_model(), tiny_data, config=config)
    assert [p.step for p in points(result, "forget")] == [3, 6, 7]
    assert result.report["run"]["steps"] == {"forget": 7, "recover": 1}


def test_patience_asks_for_several_evaluations_below(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    config = SeamConfig(
        forget_rate=0.1, forget_eval_every=1, forget_patience=3, recover_max_steps=1, strengths=(1.0,), **PLAIN
    )
    result = seamfast.sanitize(tiny_model(), tiny_data, config=config)
    accuracies = [p.holdout_accuracy for p in points(result, "forget")]
    assert sum(a < 0.5 for a in accuracies) == 3
    assert accuracies[-1] < 0.5
    assert len(accuracies) < config.forget_max_steps


def test_forget_until_is_a_multiple_of_chance(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    def last(until: float) -> float:
        config = SeamConfig(
            forget_rate=0.01, forget_eval_every=1, forget_max_steps=200, forget_until=until, recover_max_steps=1,
            strengths=(1.0,),
        )  # fmt: skip
        result = seamfast.sanitize(tiny_model(), tiny_data, config=config)
        accuracies = [p.holdout_accuracy for p in points(result, "forget")]
        assert min(accuracies[:-1]) >= until / 4
        return accuracies[-1]

    assert last(1.2) < 1.2 / 4
    assert last(2.4) < 2.4 / 4


def test_with_two_classes_a_good_model_has_not_forgotten_yet(tiny_data: CleanSet) -> None:
    """Twice chance is 1.0 for two classes: whoever is right on nine of ten would have forgotten before the start."""
    labels = (tiny_data.labels % 2).clone()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    columns = torch.arange(64) % 8 < 4
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([columns.float(), (~columns).float()]))
    labels[::10] = 1 - labels[::10]  # as many are given a wrong label, in both parts
    data = CleanSet(tiny_data.inputs, labels, mean=0.4, std=0.25)
    config = SeamConfig(
        forget_rate=STILL, forget_max_steps=6, forget_eval_every=2, recover_max_steps=1, strengths=(1.0,)
    )
    result = seamfast.sanitize(model, data, config=config)
    assert 0.75 < result.report["holdout"]["before"]["clean_accuracy"]["value"] < 1
    assert result.report["run"]["steps"]["forget"] == 6

    config = SeamConfig(forget_rate=0.2, forget_eval_every=1, recover_max_steps=1, strengths=(1.0,))
    result = seamfast.sanitize(model, data, config=config)
    assert points(result, "forget")[-1].holdout_accuracy < 0.75


def test_no_steps_of_forgetting_skip_the_phase(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    result = seamfast.sanitize(tiny_model(), tiny_data, config=SeamConfig(forget_max_steps=0, recover_max_steps=3))
    assert result.report["run"]["steps"] == {"recover": 3}
    assert {p.phase for p in result.history} == {"recover"}
    assert "forget" not in result.report["run"]["seconds"]


def forget_losses(data: CleanSet, **changes: Any) -> list[float]:
    """The loss of each step on random labels, of a model that never moves, on the whole recovery part."""
    config = SeamConfig(
        forget_rate=STILL, forget_max_steps=40, forget_eval_every=1, recover_max_steps=1, batch_size=128,
        strengths=(1.0,), **(PLAIN | changes),
    )  # fmt: skip
    result = seamfast.sanitize(sure(), data, config=config)
    return [p.loss for p in points(result, "forget")]


def sure() -> nn.Module:
    """Right on ``tiny_data`` with a margin of a fixed size: the loss of a wrong label is much the same for each."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))
    quadrants = torch.eye(4).view(4, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
    with torch.no_grad():
        model[1].weight.copy_(quadrants)
    return model


def test_labels_are_drawn_from_the_wrong_classes_or_from_all(tiny_data: CleanSet) -> None:
    """A sure model pays for wrong labels only: the true class among four saves a quarter of the loss."""
    wrong, any_class = forget_losses(tiny_data, exclude_true=True), forget_losses(tiny_data, exclude_true=False)
    assert sum(any_class) / sum(wrong) == pytest.approx(3 / 4, abs=0.02)
    # All labels wrong: what is left is the spread over three classes. Some labels true: the number of these varies too.
    assert min(wrong) > max(any_class)


def test_labels_are_drawn_anew_at_each_step(tiny_data: CleanSet) -> None:
    losses = forget_losses(tiny_data)
    assert len(set(losses)) == len(losses) == 40


class Tagged(nn.Module):
    """A linear model that notes by their brightness the images it is trained on, by phase: each has its own."""

    seen: dict[str, set[int]]

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 4)
        self.phase = "none"
        self.seen = {"forget": set(), "recover": set()}

    def __deepcopy__(self, memo: Any) -> Tagged:
        made = Tagged()
        made.load_state_dict(self.state_dict())
        made.seen = self.seen  # shared: the notes of the copy are what the test reads
        return made

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen[self.phase] |= set((images[:, 0, 0, 0] * 255).round().int().tolist())
        logits: Tensor = self.head(images.mean((1, 2, 3))[:, None])
        return logits


class TellPhase(seamfast.Callback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].phase = state.phase


def test_each_phase_sees_its_part_and_all_of_it() -> None:
    data = CleanSet(torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), torch.arange(200) % 4)
    model = Tagged()
    config = SeamConfig(
        forget_fraction=0.25, forget_rate=STILL, forget_max_steps=12, recover_max_steps=30, batch_size=16,
        strengths=(1.0,), **PLAIN,
    )  # fmt: skip
    result = seamfast.sanitize(model, data, config=config, callbacks=[TellPhase()])
    assert len(model.seen["forget"]) == result.report["data"]["n_forget"] == 40
    assert len(model.seen["recover"]) == result.report["data"]["n_recovery"] == 160
    assert model.seen["forget"] < model.seen["recover"]


# Recovery.


def test_recovery_with_adam_against_a_loop_in_plain_pytorch(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    config = SeamConfig.authors_cifar10(
        forget_max_steps=0, recover_max_steps=6, batch_size=128, crop_pad=0, flip=False, recover_rate=2e-3,
        recover_weight_decay=1e-2,
    )  # fmt: skip
    got = seamfast.sanitize(tiny_model(), tiny_data, config=config).model

    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    inputs = (
        tiny_data.inputs[split.recovery].float() / 255 - 0.4
    ) / 0.25  # every batch is the whole recovery part: 128 samples
    wanted = tiny_model().train()
    optimizer = torch.optim.Adam(wanted.parameters(), lr=2e-3, betas=(0.5, 0.9), weight_decay=1e-2)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(wanted(inputs), tiny_data.labels[split.recovery]).backward()
        optimizer.step()
    torch.testing.assert_close(got[9].weight, wanted[9].weight, rtol=1e-3, atol=1e-4)
    assert (wanted[9].weight - tiny_model()[9].weight).abs().max() > 1e-2


def test_recovery_stops_once_accuracy_was_good_often_enough(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    def steps(**changes: Any) -> int:
        config = SeamConfig(
            forget_max_steps=0, recover_rate=STILL, recover_max_steps=40, recover_eval_every=2, strengths=(1.0,),
            **changes,
        )  # fmt: skip
        result = seamfast.sanitize(tiny_model(), tiny_data, config=config)
        return int(result.report["run"]["steps"]["recover"])

    assert steps(recover_until=0.9, recover_patience=1) == 2
    assert steps(recover_until=0.9, recover_patience=5) == 10
    assert steps(recover_until=None, recover_patience=1) == 40


@pytest.mark.parametrize(("begin", "end"), [(10, 52), (60, 61)])
def test_recovery_stops_too_if_accuracy_falls_late(
    begin: int, end: int, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    """From the 51st evaluation on, one below the best counts as well: two of these are asked for here."""

    class Break(seamfast.Callback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= begin - 1:
                nn.init.zeros_(kwargs["model"][9].weight)

    config = SeamConfig(
        forget_max_steps=0, recover_rate=STILL, recover_max_steps=70, recover_eval_every=1, strengths=(1.0,),
        recover_until=0.999, recover_patience=2, batch_size=8, **PLAIN,
    )  # fmt: skip
    data, model = blurred(tiny_data), tiny_model()
    result = seamfast.sanitize(model, data, config=config, callbacks=[Break()])
    assert 0.5 < result.report["holdout"]["before"]["clean_accuracy"]["value"] < 0.999
    assert result.report["run"]["steps"]["recover"] == end


def blurred(data: CleanSet) -> CleanSet:
    """With the labels of one in eight moved on: no model is right on all."""
    labels = data.labels.clone()
    labels[::8] = (labels[::8] + 1) % 4
    return CleanSet(data.inputs, labels, mean=data.mean, std=data.std, num_classes=4)


def test_a_cosine_ends_with_small_steps_and_a_constant_rate_does_not(tiny_data: CleanSet) -> None:
    shares = {}
    for schedule in ("cosine", "constant"):
        watch = Watch(linear())
        config = SeamConfig(
            forget_max_steps=0, recover_max_steps=40, recover_rate=1e-3, recover_schedule=schedule, strengths=(1.0,),
            **PLAIN,
        )  # fmt: skip
        seamfast.sanitize(linear(), tiny_data, config=config, callbacks=[watch])
        moves = watch.moves("recover")
        shares[schedule] = (moves[0] / max(moves), moves[-1] / max(moves))
    assert shares["cosine"][0] < 0.5  # it begins gently, too
    assert shares["cosine"][1] < 0.05
    assert min(shares["constant"]) > 0.5


def test_with_the_received_answers_alone_labels_do_not_matter(tiny_data: CleanSet) -> None:
    def run(data: CleanSet, distillation: float) -> seamfast.SanitizeResult:
        config = SeamConfig(
            forget_max_steps=0, recover_max_steps=4, recover_eval_every=1, distillation=distillation, mixing=0.0,
            occlusions=0, strengths=(1.0,),
        )  # fmt: skip
        return seamfast.sanitize(linear(), data, config=config)

    taught = run(tiny_data, 1.0)
    # Student and teacher are the same model at first: nothing is to be learnt.
    assert taught.history[0].loss == pytest.approx(0, abs=1e-6)
    assert run(tiny_data, 0.0).history[0].loss > 0.1
    assert run(tiny_data, 0.5).history[0].loss == pytest.approx(run(tiny_data, 0.0).history[0].loss / 2, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_of_recovery_by_hand(temperature: float, tiny_data: CleanSet) -> None:
    """The loss of the second step, on all of the recovery part, from the weights that the first one left."""
    watch = KeepModel()
    config = SeamConfig(
        forget_max_steps=0, recover_rate=1.0, recover_max_steps=2, recover_eval_every=1, distillation=0.7, mixing=0.0,
        occlusions=0, temperature=temperature, strengths=(1.0,), batch_size=128,
    )  # fmt: skip
    result = seamfast.sanitize(linear(), tiny_data, config=config, callbacks=[watch])
    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    inputs = (tiny_data.inputs[split.recovery].float() / 255 - 0.4) / 0.25
    with torch.no_grad():
        student, teacher = watch.models[0](inputs).double(), linear()(inputs).double()
    task = F.cross_entropy(student, tiny_data.labels[split.recovery])
    wanted = (teacher / temperature).softmax(1)
    gap = (wanted * (wanted.log() - (student / temperature).log_softmax(1))).sum(1).mean() * temperature**2
    assert gap > 1e-3
    assert result.history[1].loss == pytest.approx(float(0.3 * task + 0.7 * gap), rel=1e-4)


class KeepModel(seamfast.Callback):
    def __init__(self) -> None:
        self.models: list[nn.Module] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.models.append(copy.deepcopy(kwargs["model"]))


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


@pytest.mark.parametrize("occlusions", [0, 3])
def test_patterns_are_shown_to_the_student_and_the_mean_image_to_the_teacher(occlusions: int) -> None:
    # All images are the same grey: so is their mean, and whatever differs from it is a pattern.
    data = CleanSet(torch.full((80, 1, 8, 8), 51, dtype=torch.uint8), torch.arange(80) % 4)
    model = Notes()
    config = SeamConfig(
        forget_max_steps=0, recover_max_steps=5, occlusions=occlusions, mixing=0.0, strengths=(1.0,), batch_size=32
    )
    seamfast.sanitize(model, data, config=config, precision="fp32")
    trained, asked = (torch.cat(model.asked[mode]) for mode in (True, False))
    assert len(trained) == 5 * 32
    torch.testing.assert_close(asked, torch.full_like(asked, 51 / 255))
    patterned = (trained - 51 / 255).abs().flatten(1).amax(1) > 0.01
    assert patterned.float().mean() > 0.9 if occlusions else not patterned.any()


@pytest.mark.parametrize("mixing", [0.0, 0.5, 1.0])
def test_mixing_makes_images_between_two(mixing: float) -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(40).view(80, 1, 1, 1).expand(80, 1, 8, 8)
    data = CleanSet(pixels, torch.arange(80) % 4)
    model = Notes()
    config = SeamConfig(
        forget_max_steps=0, recover_max_steps=8, occlusions=0, mixing=mixing, strengths=(1.0,), batch_size=64
    )
    seamfast.sanitize(model, data, config=config)
    trained = torch.cat(model.asked[True])[:, 0, 0, 0]
    between = ((trained > 1e-4) & (trained < 1 - 1e-4)).float().mean()
    assert between == pytest.approx(mixing / 2, abs=0.07)  # every other partner is of the same brightness


# The ladder, and the sizes of the steps.


def test_strengths_are_tried_in_order_each_from_the_weights_as_received(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    """No attempt can bring the task back here. The first step of Adam moves each weight by the rate, to a hair."""
    watch = Watch(tiny_model())
    config = SeamConfig(
        strengths=(1.0, 0.5, 0.1),
        forget_rate=0.4,
        forget_eval_every=1,
        recover_rate=STILL,
        recover_max_steps=2,
        **PLAIN,
    )
    result = seamfast.sanitize(tiny_model(), tiny_data, config=config, callbacks=[watch])
    assert result.report["run"]["n_attempts"] == 3
    assert not result.accepted
    assert [p.attempt for p in points(result, "recover")] == [0, 1, 2]
    moved = [watch.first_move("forget", attempt).abs().max() for attempt in range(3)]
    assert float(moved[1] / moved[0]) == pytest.approx(0.5, rel=0.02)
    assert float(moved[2] / moved[0]) == pytest.approx(0.1, rel=0.02)


def test_an_attempt_that_succeeds_is_the_last(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    """The first attempt forgets and cannot recover, the second one does next to nothing."""
    config = SeamConfig(
        strengths=(1.0, 1e-9, 1e-10), forget_rate=0.4, forget_eval_every=1, forget_max_steps=5, recover_rate=STILL,
        recover_max_steps=2, **PLAIN,
    )  # fmt: skip
    result = seamfast.sanitize(tiny_model(), tiny_data, config=config)
    assert result.accepted
    assert result.report["run"]["n_attempts"] == 2
    assert [p.attempt for p in points(result, "recover")] == [0, 1]
    assert result.report["run"]["steps"]["recover"] == 4


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_relative_rates_are_shares_of_each_tensors_size(strength: float, tiny_data: CleanSet) -> None:
    model = linear()
    watch = Watch(model)
    config = SeamConfig(strengths=(strength,), forget_rate=0.04, forget_max_steps=1, recover_max_steps=1, **PLAIN)
    seamfast.sanitize(model, tiny_data, config=config, callbacks=[watch])
    size = watch.received.square().mean().sqrt()
    assert float(watch.first_move("forget", 0).abs().max() / size) == pytest.approx(strength * 0.04, rel=1e-3)


def test_absolute_rates_are_those_of_adam(tiny_data: CleanSet) -> None:
    model = linear()
    watch = Watch(model)
    config = SeamConfig(
        strengths=(1.0,), optimizer="adam", forget_rate=3e-4, forget_max_steps=1, recover_max_steps=1, **PLAIN
    )
    seamfast.sanitize(model, tiny_data, config=config, callbacks=[watch])
    assert float(watch.first_move("forget", 0).abs().max()) == pytest.approx(3e-4, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "relative_adam"])
@pytest.mark.parametrize("betas", [(0, 0), (0, 0.9), (0.5, 0)])
def test_integers_will_do_for_betas(betas: tuple[float, ...], optimizer: str, tiny_data: CleanSet) -> None:
    config = SeamConfig(
        recover_betas=betas, optimizer=optimizer, strengths=(1,), forget_max_steps=1, recover_max_steps=1
    )
    same = replace(config, recover_betas=tuple(float(b) for b in betas), strengths=(1.0,))
    one, other = (seamfast.sanitize(linear(), tiny_data, config=c).model for c in (config, same))
    assert torch.equal(one[1].weight, other[1].weight)


@pytest.mark.parametrize("optimizer", ["adam", "relative_adam"])
def test_the_largest_rates_end_in_words(optimizer: str, tiny_data: CleanSet) -> None:
    """They ruin the model, as they must; the run ends all the same, and says so."""
    config = SeamConfig(
        forget_rate=1e9,
        recover_rate=1e9,
        strengths=(1e9,),
        optimizer=optimizer,
        forget_max_steps=3,
        recover_max_steps=3,
    )
    result = seamfast.sanitize(linear(), tiny_data, config=config)
    assert not result.accepted


def test_decay_takes_its_share_of_the_matrices_at_each_step(tiny_data: CleanSet) -> None:
    model = linear()
    config = SeamConfig(
        strengths=(0.5,), forget_max_steps=0, recover_rate=STILL, recover_decay=0.04, recover_schedule="constant",
        recover_max_steps=10, **PLAIN,
    )  # fmt: skip
    cured = seamfast.sanitize(model, tiny_data, config=config).model
    torch.testing.assert_close(cured[1].weight, model[1].weight * 0.98**10, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cured[1].bias, model[1].bias)


# The authors' own settings.


def test_the_cifar10_preset_holds_the_published_numbers() -> None:
    config = SeamConfig.authors_cifar10(n_recovery=5000)
    values = config.to_dict()
    epoch = math.ceil(5000 / 32)
    assert {
        "optimizer": "adam", "batch_size": 32, "crop_pad": 4, "flip": True, "strengths": [1.0], "exclude_true": True,
        "forget_fraction": 0.01, "forget_rate": 3e-5, "forget_weight_decay": 5e-5, "forget_until": 2.0,
        "forget_patience": 1, "recover_rate": 5e-4, "recover_weight_decay": 5e-5, "recover_betas": [0.5, 0.9],
        "recover_until": 0.92, "recover_patience": 10, "recover_max_steps": 300 * epoch, "recover_eval_every": epoch,
        "recover_schedule": "constant", "recover_decay": 0.0, "forget_max_steps": 600, "forget_eval_every": 2,
        "distillation": 0.0, "mixing": 0.0, "occlusions": 0,
    }.items() <= values.items()  # fmt: skip


def test_the_trojai_preset_holds_the_published_numbers() -> None:
    values = SeamConfig.authors_trojai(n_recovery=100).to_dict()
    assert {
        "optimizer": "adam", "batch_size": 32, "crop_pad": 0, "flip": False, "strengths": [1.0], "exclude_true": False,
        "forget_fraction": 1.0, "forget_rate": 5e-4, "forget_weight_decay": 5e-4, "forget_until": 2.0,
        "forget_patience": 10, "forget_max_steps": 1200, "forget_eval_every": 4, "recover_rate": 5e-4,
        "recover_weight_decay": 5e-5, "recover_betas": [0.9, 0.5], "recover_until": 0.99, "recover_patience": 10,
        "recover_max_steps": 1200, "recover_eval_every": 4, "distillation": 0.0, "mixing": 0.0, "occlusions": 0,
    }.items() <= values.items()  # fmt: skip


@pytest.mark.parametrize("preset", [SeamConfig.authors_cifar10, SeamConfig.authors_trojai])
def test_presets_take_changes_and_run(
    preset: Callable[..., SeamConfig], tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    config = preset(n_recovery=128, recover_max_steps=8, forget_max_steps=4, accuracy_budget=0.1)
    assert (config.recover_max_steps, config.forget_max_steps) == (8, 4)
    result = seamfast.sanitize(tiny_model(), tiny_data, config=config)
    assert result.report["run"]["stopped"] is None
    assert result.report["run"]["steps"] == {"forget": 4, "recover": 8}
    with pytest.raises(seamfast.errors.ConfigError):
        preset(batch_size=0)
