"""Models of every kind that ``sanitize`` takes, and in which state they come back."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, FineTuneConfig, SeamConfig, SuperFineTuneConfig, attacks
from seamfast.engine.model import digest
from seamfast.triggers import Patch

Make = Callable[[], nn.Module]
pytestmark = pytest.mark.usefixtures("guessers_are_trained")

SHORT = SeamConfig(forget_max_steps=2, recover_max_steps=4, recover_eval_every=2, strengths=(1.0,), batch_size=32)
METHODS: dict[str, Any] = {
    "seam": SHORT,
    "fine_tune": FineTuneConfig(max_steps=4, eval_every=2),
    "super_fine_tune": SuperFineTuneConfig(forget_steps=2, recover_steps=2, eval_every=2),
}
PROBABILITIES = "the model seems to return probabilities, not logits: take its last softmax off for a better cure"


def pixels(n: int, channels: int, side: int, classes: int = 4) -> CleanSet:
    images = torch.randint(0, 256, (n, channels, side, side), generator=torch.Generator().manual_seed(3))
    return CleanSet(images.to(torch.uint8), torch.arange(n) % classes, mean=0.5, std=0.25)


def changed(result: seamfast.SanitizeResult, given: nn.Module) -> list[str]:
    """The parameters that the run moved."""
    before = dict(given.named_parameters())
    return [n for n, p in result.model.named_parameters() if not torch.equal(p, before[n])]


def check(model: nn.Module, data: Any, **options: Any) -> seamfast.SanitizeResult:
    """Run to the end; every parameter moved, and the state as given."""
    result = seamfast.sanitize(model, data, **({"config": SHORT} | options))
    assert result.report["run"]["stopped"] is None
    assert type(result.model) is type(model)
    assert changed(result, model) == [name for name, _ in model.named_parameters()]
    got, given = result.model.state_dict(), model.state_dict()
    assert {k: (v.dtype, v.shape, v.device) for k, v in got.items()} == {
        k: (v.dtype, v.shape, v.device) for k, v in given.items()
    }
    assert [m.training for m in result.model.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in result.model.parameters())
    return result


class Head(nn.Module):
    """A linear model of flattened images of 64 pixels, to derive others from."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits


# Architectures and shapes.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["small_cnn", "narrow_resnet18"])  # without and with BatchNorm
def test_architectures(architecture: str, method: str) -> None:
    model = attacks.build(architecture, num_classes=4, in_channels=3, image_size=8)
    check(model, pixels(24, 3, 8), method=method, config=METHODS[method])


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 28), (3, 32)])
def test_sizes_of_images(channels: int, side: int) -> None:
    model = attacks.build("small_cnn", num_classes=4, in_channels=channels, image_size=side)
    check(model, pixels(40, channels, side), triggers=[Patch.square(3)])


def test_images_of_224_pixels() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 4)
    )
    check(model, pixels(12, 3, 224), triggers=[Patch.square(20)])


def test_two_classes(tiny_data: CleanSet) -> None:
    data = CleanSet(tiny_data.inputs, tiny_data.labels % 2)
    result = check(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), data)
    assert result.report["data"]["num_classes"] == 2
    assert len(result.report["holdout"]["after"]["class_accuracy"]) == 2


def test_inputs_that_are_no_images() -> None:
    inputs = torch.randn(80, 10)
    check(nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2)), (inputs, (inputs.sum(1) > 0).long()))


def test_batch_norm_statistics_follow_the_clean_data(tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model()
    result = check(model, tiny_data)
    for name, value in model.named_buffers():
        assert not torch.equal(result.model.get_buffer(name), value), name
    assert int(result.model[1].num_batches_tracked) == int(model[1].num_batches_tracked) + 6


def test_buffers_that_are_not_saved_come_back_too(tiny_data: CleanSet) -> None:
    class Scaled(Head):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(0.5), persistent=False)

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * self.scale

    assert check(Scaled(), tiny_data).model.scale == 0.5


# States.


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back(training: bool, tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model().train(training)
    model[1].train(not training)  # not all of one mode
    result = check(model, tiny_data)
    assert result.model.training is training
    assert result.model[1].training is not training


def test_a_model_in_train_mode_is_judged_in_eval_mode(tiny_model: Make, tiny_data: CleanSet) -> None:
    one, other = (check(tiny_model().train(mode), tiny_data) for mode in (True, False))
    assert digest(one.model) == digest(other.model)
    assert one.report["holdout"] == other.report["holdout"]


def test_dropout(tiny_data: CleanSet) -> None:
    check(nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 4)).train(), tiny_data)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_are_trained_and_come_back_frozen(method: str, tiny_model: Make, tiny_data: CleanSet) -> None:
    """A backdoor may lie in any layer; what the owner froze is no sign of innocence."""
    model = tiny_model()
    model[0].requires_grad_(False)
    model[4].weight.requires_grad_(False)
    result = check(model, tiny_data, method=method, config=METHODS[method])
    frozen = [n for n, p in result.model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", "0.bias", "4.weight"]
    result.model(torch.zeros(2, 1, 8, 8)).sum().backward()
    assert result.model[0].weight.grad is None


class Tied(Head):
    """The second layer has the first one's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.again = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.again.weight = self.embed.weight

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.again(self.embed(images.flatten(1)).relu()))


@pytest.mark.parametrize("ending", ["sanitized", "received"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_weights_stay_tied(dtype: torch.dtype, ending: str, tiny_data: CleanSet) -> None:
    class Stop(seamfast.Callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = ending == "received"

    model = Tied().to(dtype)
    result = seamfast.sanitize(model, tiny_data, config=SHORT, callbacks=[Stop()])
    assert result.report["model"]["returned"] == ending
    assert result.model.again.weight is result.model.embed.weight
    assert result.model.embed.weight is not model.embed.weight
    assert torch.equal(result.model.embed.weight, model.embed.weight) is (ending == "received")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_comes_back(dtype: torch.dtype, method: str, tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model().to(dtype)
    result = seamfast.sanitize(model, tiny_data, method=method, config=METHODS[method])
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.model[1].running_mean.dtype == dtype
    assert result.model[1].num_batches_tracked.dtype == torch.int64
    assert digest(result.model) != digest(model)
    # What is reported is what is returned, rounding included.
    after = result.report["holdout"]["after"]["clean_accuracy"]
    assert 0 < after["n_hit"] <= after["n_total"]
    assert result.report["model"]["digest_after"] == digest(result.model)


def test_what_is_measured_is_rounded_as_what_is_returned(tiny_data: CleanSet) -> None:
    """Two logits that differ in float32, and are equal in bfloat16: the tie goes to the first class."""

    class Nudge(seamfast.Callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                kwargs["model"][1].weight.zero_()
                kwargs["model"][1].bias.copy_(torch.tensor([1.0, 1.0 + 2**-10, 0, 0]))

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).to(torch.bfloat16)
    config = FineTuneConfig(max_steps=1)
    result = seamfast.sanitize(model, tiny_data, method="fine_tune", config=config, callbacks=[Nudge()])
    assert [r["n_hit"] for r in result.report["holdout"]["after"]["class_accuracy"]] == [8, 0, 0, 0]
    assert result.model[1].bias.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_hooks_come_along(tiny_model: Make, tiny_data: CleanSet) -> None:
    calls = []
    model = tiny_model()
    model[2].register_forward_hook(lambda *args: calls.append(1))
    result = check(model, tiny_data)
    n = len(calls)
    result.model(torch.zeros(1, 1, 8, 8))
    assert len(calls) == n + 1


def test_layers_that_are_not_used(tiny_data: CleanSet) -> None:
    model = Head()
    model.idle, model.none = nn.Linear(3, 3), nn.Parameter(torch.empty(0))
    result = seamfast.sanitize(model, tiny_data, config=SHORT)
    assert changed(result, model) == ["head.weight", "head.bias", "idle.weight", "idle.bias"]
    assert not result.model.idle.weight.any()
    assert "no clean sample reaches the layer idle: set to 0, as a backdoor can be in it" in result.report["warnings"]


# How it is called, and how it answers.


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.answer = inner, answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.inner(images))


@pytest.mark.parametrize("method", METHODS)
def test_logits_in_a_dict_or_an_object_give_the_same(method: str, tiny_model: Make, tiny_data: CleanSet) -> None:
    digests = set()
    for answer in (lambda x: x, lambda x: {"logits": x, "loss": None}, lambda x: SimpleNamespace(logits=x)):
        result = check(Wrapped(tiny_model(), answer), tiny_data, method=method, config=METHODS[method])
        digests.add(digest(result.model))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("answer", "warned"),
    [
        (lambda x: x.softmax(1), True),
        (lambda x: x, False),
        (lambda x: x.log_softmax(1), False),
        (lambda x: x.bfloat16(), False),
    ],
)
def test_probabilities_are_warned_of(
    answer: Callable[[Tensor], Tensor], warned: bool, tiny_model: Make, tiny_data: CleanSet
) -> None:
    warnings = check(Wrapped(tiny_model(), answer), tiny_data).report["warnings"]
    assert (PROBABILITIES in warnings) is warned


def test_a_forward_with_keywords(tiny_data: CleanSet) -> None:
    class Keywords(Head):
        def forward(self, *, images: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(images) * scale

    images = tiny_data.inputs.float() / 255
    check(Keywords(), CleanSet({"images": images}, tiny_data.labels))
    check(Keywords(), [{"images": images, "labels": tiny_data.labels}])


def test_a_forward_that_needs_grads(tiny_data: CleanSet) -> None:
    """In evaluation grads are off; a model that turns them on for itself must not leave a graph behind."""

    class Energy(Head):
        def forward(self, images: Tensor) -> Tensor:
            with torch.enable_grad():
                return super().forward(images)

    check(Energy(), tiny_data)
