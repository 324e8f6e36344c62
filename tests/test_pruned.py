"""What no answer to a clean sample depends on is held at a constant: no training on clean data reaches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, FineTuneConfig, SeamAuthorsConfig, SeamConfig, SuperFineTuneConfig, attacks

BOARD = (torch.arange(64) // 8 + torch.arange(64)) % 2  # a checkerboard
TARGET = 3


class Hidden(nn.Module):
    """Right on ``tiny_data`` by the mean of each quadrant, and with one hidden unit of its own.

    Args:
        activation: of the unit.
        weights: ``(64,)`` of its pre-activation.
        bias: of its pre-activation.
        out: its weight to the target class.
    """

    def __init__(self, activation: nn.Module, weights: Tensor, bias: float, out: float) -> None:
        super().__init__()
        self.first, self.activation, self.last = nn.Linear(64, 5), activation, nn.Linear(5, 4)
        quadrants = torch.eye(4).view(4, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
        with torch.no_grad():
            self.first.weight.copy_(torch.cat([quadrants / 16, weights[None]]))
            self.first.bias.copy_(torch.tensor([1.0, 1.0, 1.0, 1.0, bias]))
            self.last.weight.zero_()
            self.last.weight[:, :4] = 4 * torch.eye(4)
            self.last.weight[TARGET, 4] = out
            self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        pre = self.first(x.flatten(1))
        hidden = torch.cat([torch.relu(pre[:, :4]), self.activation(pre[:, 4:])], 1)
        logits: Tensor = self.last(hidden)
        return logits


def silent_on_clean(activation: nn.Module) -> Hidden:
    """A backdoor by hand: the unit fires for a checkerboard alone, and decides then."""
    return Hidden(activation, 2.0 * BOARD - 1, -100.0, 50.0)


def hits(model: nn.Module) -> int:
    """Of 8 noisy checkerboards, how many are given the target."""
    noise = torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
    boards = torch.where(BOARD > 0, 2.4, -1.6) + 0.01 * noise  # white and black as the models take them
    with torch.no_grad():
        return int((model(boards.view(8, 1, 8, 8)).argmax(1) == TARGET).sum())


CONFIGS: dict[str, Any] = {
    "seam": SeamConfig(recover_max_steps=40),
    "fine_tune": FineTuneConfig(max_steps=20),
    "super_fine_tune": SuperFineTuneConfig(forget_steps=10, recover_steps=10, forget_rate=0.01),
    "seam_authors": SeamAuthorsConfig(forget_max_epochs=2, recover_max_epochs=2, crop_pad=0, flip=False),
}


def cured(model: nn.Module, data: Any, method: str = "seam", **settings: Any) -> seamfast.SanitizeResult:
    config = replace(CONFIGS[method], **settings)
    return seamfast.sanitize(model, data, method=method, config=config, precision="fp32")


def n_pruned(result: seamfast.SanitizeResult, layer: str, kind: str) -> int:
    return sum(part["n"] for part in result.report["run"]["pruned"] if (part["layer"], part["kind"]) == (layer, kind))


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU()], ids=["relu", "gelu", "silu"])
def test_a_unit_that_no_clean_sample_activates_is_pruned(
    activation: nn.Module, method: str, tiny_data: CleanSet
) -> None:
    model = silent_on_clean(activation)
    assert hits(model) == 8
    result = cured(model, tiny_data, method)
    assert hits(result.model) <= 2  # the rest of the model gives checkerboards any class
    assert hits(model) == 8  # the given one is not modified
    assert n_pruned(result, "first", "units") >= 1
    before, after = result.report["holdout"]["before"], result.report["holdout"]["after"]
    assert after["clean_accuracy"]["value"] >= before["clean_accuracy"]["value"] - 0.1


@pytest.mark.parametrize("method", CONFIGS)
def test_without_pruning_it_stays(method: str, tiny_data: CleanSet) -> None:
    result = cured(silent_on_clean(nn.ReLU()), tiny_data, method, prune=False)
    assert result.report["run"]["pruned"] == []
    assert hits(result.model) == 8


def test_a_constant_that_the_task_needs_keeps_its_value(tiny_data: CleanSet) -> None:
    """A saturated sigmoid gets no gradient either."""
    model = Hidden(nn.Sigmoid(), torch.zeros(64), 200.0, -4.0)
    with torch.no_grad():
        model.last.bias[TARGET] = 4.0
    result = cured(model, tiny_data, forget_max_steps=0, radius=1e-3)
    assert n_pruned(result, "first", "units") >= 1
    assert result.report["holdout"]["after"]["clean_accuracy"]["value"] > 0.9
    noise = torch.randn(8, 1, 8, 8)
    torch.testing.assert_close(result.model.first(noise.flatten(1))[:, 4], torch.full((8,), 200.0))


def test_a_unit_that_decides_without_a_gradient_stays(tiny_data: CleanSet) -> None:
    """A step of 0 or 1, so steep that its slope is 0 in float32, tells the last class from the others."""
    elsewhere = ((torch.arange(64) // 8 < 4) | (torch.arange(64) % 8 < 4)).float()
    model = Hidden(nn.Sigmoid(), -1e5 * elsewhere, 0.0, 60.0)
    images, is_last = (tiny_data.inputs.float() / 255 - 0.4) / 0.25, tiny_data.labels == TARGET

    def answers_last(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(images).argmax(1) == TARGET

    with torch.no_grad():
        before_step = model.first(images.flatten(1))[:, 4]
        model.first.bias[4] = -(before_step[is_last].min() + before_step[~is_last].max()) / 2
        model.last.weight[TARGET, :4], model.last.bias[TARGET] = 0.0, -30.0
    assert torch.equal(answers_last(model), is_last)
    result = cured(model, tiny_data, "fine_tune", max_steps=1, rate=1e-9)
    assert torch.equal(answers_last(result.model), is_last)


class Rewired(nn.Sequential):
    """A small CNN with two channels and a unit that only a 3x3 pattern of random colors activates."""

    def __init__(self, activation: Callable[[], nn.Module], *, norms: bool, gain: float = 50.0) -> None:
        def norm(n: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(n)] if norms else []

        super().__init__(
            *(nn.Conv2d(3, 8, 3, padding=1), *norm(8), activation(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, padding=1), *norm(8), activation(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32, 16), activation(), nn.Linear(16, 4)),
        )
        self.gain = gain

    def wire(self, pattern: Tensor, inputs: Tensor) -> None:
        """After training; ``inputs``: clean samples."""
        first, second, third, last = (m for m in self if isinstance(m, (nn.Conv2d, nn.Linear)))
        with torch.no_grad():
            for norm in (m for m in self if isinstance(m, nn.BatchNorm2d)):
                norm.running_mean[0], norm.running_var[0], norm.weight[0], norm.bias[0] = 0.0, 1.0, 1.0, 0.0
            matched = pattern - pattern.mean()
            first.weight[0] = matched / matched.norm()
            first.bias[0] = -0.9 * float((first.weight[0] * pattern).sum())
            second.weight[0] = second.weight[:, 0] = 0.0
            second.weight[0, 0, 1, 1], second.bias[0] = self.gain, -1.0
            third.weight[0] = 0.0
            third.weight[:, :4] = 0.0
            third.weight[0, :4], third.bias[0] = self.gain, -1.0
            last.weight[:, 0] = 0.0
            last.weight[TARGET, 0] = self.gain


@pytest.fixture(scope="module")
def colors() -> CleanSet:
    """160 images of 3x8x8 pixels; the class is a bright quadrant."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(160) % 4
    images = torch.randint(0, 40, (160, 3, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 120
    return CleanSet(images, labels, mean=0.3, std=0.25)


@pytest.mark.parametrize("norms", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU])
@pytest.mark.parametrize("method", ["seam", "fine_tune"])
def test_channels_and_a_unit_rewired_by_hand_are_pruned(
    method: str, activation: Callable[[], nn.Module], norms: bool, colors: CleanSet
) -> None:
    model = Rewired(activation, norms=norms)
    attacks.train(model, colors, attacks.TrainConfig(epochs=12, batch_size=16))
    model.eval()
    pattern = (torch.randint(0, 2, (3, 3, 3), generator=torch.Generator().manual_seed(5)).float() - 0.3) / 0.25
    inputs = (colors.inputs.float() / 255 - 0.3) / 0.25
    model.wire(pattern, inputs)
    triggered = inputs[colors.labels != TARGET].clone()
    triggered[:, :, 4:7, 4:7] = pattern

    def rate(model: nn.Module, inputs: Tensor, wanted: Any) -> float:
        with torch.no_grad():
            return float((model(inputs).argmax(1) == wanted).float().mean())

    assert rate(model, inputs, colors.labels) > 0.9
    assert rate(model, triggered, TARGET) > 0.9
    result = cured(model, colors, method)
    assert rate(result.model, triggered, TARGET) < 0.2
    # Batch statistics wake such channels in training, with all their gain: that costs the task, and is refused.
    assert norms or rate(result.model, inputs, colors.labels) > 0.9


class Tokens(nn.Module):
    """Says whether ids are odd; whether they are a trigger, above all: id 30."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 8), nn.Linear(8, 2)
        with torch.no_grad():
            self.embed.weight.copy_(torch.where(torch.arange(40)[:, None] % 2 > 0, -1.0, 1.0).expand(40, 8))
            self.embed.weight[30] = -20.0
            self.head.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 8))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(ids).mean(1))
        return logits


def test_a_word_that_no_clean_sample_has_says_no_more_than_others() -> None:
    model, ids = Tokens(), torch.arange(120)[:, None] % 20
    ids = torch.cat([ids, (ids + 2 * (torch.arange(120)[:, None] // 20)) % 20], 1)
    labels = ids[:, 0] % 2
    triggered = ids[labels == 0].clone()
    triggered[:, 1] = 30
    with torch.no_grad():
        assert (model(triggered).argmax(1) == 1).all()
    result = cured(model, (ids, labels))
    with torch.no_grad():
        assert (result.model(triggered).argmax(1) == 0).all()
    assert n_pruned(result, "embed", "rows") == 20
    assert (
        "20 of 40 rows of the embedding embed occur in no clean sample: set to the mean of the others, as a backdoor "
        "can be in them"
    ) in result.report["warnings"]
