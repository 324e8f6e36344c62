"""What a run computes in: the fastest that agrees with float32, and nothing left behind by trying."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast.engine import precision as module
from seamfast.engine.precision import Precision, choose_precision
from seamfast.errors import InputError

CPU = torch.device("cpu")


class Net(nn.Module):
    """A convolution and a head that notice how they are called."""

    def __init__(self, under_bf16: str = "fine") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        self.under_bf16 = under_bf16

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images).relu().mean((2, 3))
        logits: Tensor = self.head(x)
        if torch.is_autocast_enabled("cpu"):
            if self.under_bf16 == "raises":
                raise RuntimeError("no such kernel\nin bfloat16")
            if self.under_bf16 == "is wrong":
                logits = -logits
            if self.under_bf16 == "is NaN":
                logits = logits * torch.nan
        return logits


BATCH = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice of an earlier test is known; the processor computes in bfloat16."""
    monkeypatch.setattr(module, "_chosen", {})
    monkeypatch.setattr(module, "_why_no_bf16", lambda device: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of a step by name of candidate, in place of a real clock."""
    steps = {"fp32": 1.0, "fp32 channels_last": 1.0, "bf16": 1.0, "bf16 channels_last": 1.0}
    now = [0.0]

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        last = batch.is_contiguous(memory_format=torch.channels_last)
        now[0] += steps[module._name(torch.is_autocast_enabled("cpu"), last)]
        logits: Tensor = model(batch)
        return logits

    monkeypatch.setattr(module, "logits_of", forward)
    monkeypatch.setattr(module, "_now", lambda device: now[0])
    return steps


def chosen(wanted: str = "auto", net: nn.Module | None = None, **arguments: Any) -> Precision:
    torch.manual_seed(0)
    return choose_precision(net or Net(), BATCH, LABELS, wanted, 5, **arguments)


@pytest.mark.parametrize(
    ("times", "wanted", "name", "reason"),
    [
        ({}, "auto", "fp32", "bfloat16 is 1.00 times as fast as float32, below 1.2"),
        ({"fp32 channels_last": 0.5}, "auto", "fp32 channels_last", "bfloat16 is 0.50 times as fast as float32, below"),
        ({"fp32 channels_last": 0.96}, "auto", "fp32", "bfloat16 is 1.00 times as fast"),  # a layout needs a gain, too
        ({"bf16": 0.5}, "auto", "bf16", "bfloat16 is 2.00 times as fast as float32"),
        ({"bf16": 0.85}, "auto", "fp32", "bfloat16 is 1.18 times as fast as float32, below 1.2"),
        ({"fp32 channels_last": 0.5, "bf16 channels_last": 0.25}, "auto", "bf16 channels_last", "bfloat16 is 2.00"),
        ({"bf16": 0.5, "bf16 channels_last": 0.2}, "auto", "bf16 channels_last", "bfloat16 is 5.00"),  # its own layout
        ({"bf16": 2.0, "bf16 channels_last": 4.0}, "bf16", "bf16", "bfloat16 was asked for; 0.50 times as fast"),
        ({"bf16": 0.1}, "fp32", "fp32", "float32 was asked for"),
    ],
)
def test_the_fastest_is_chosen(
    clock: dict[str, float], times: dict[str, float], wanted: str, name: str, reason: str
) -> None:
    clock |= times
    found = chosen(wanted)
    assert found.name == name
    assert found.reason.startswith(reason)
    assert [trial.step_seconds for trial in found.trials] == pytest.approx([clock[t.name] for t in found.trials])


def test_the_quickest_of_several_short_steps_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([9.0, 0.005, 0.001, 0.004, 0.005, 0.005])  # the first pays for what is made once
    step = module.step_seconds
    monkeypatch.setattr(module, "step_seconds", lambda model, *rest: (step(model, *rest), next(taken))[1])
    assert chosen("bf16", limit_s=0.0).trials[0].step_seconds == 0.001


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raises", "bfloat16 was turned down: RuntimeError: no such kernel"),
        ("is wrong", "bfloat16 was turned down: its gradients agree with float32's to a cosine of "),
        ("is NaN", "bfloat16 was turned down: its gradients are not finite"),
    ],
)
@pytest.mark.parametrize("wanted", ["auto", "bf16"])
def test_what_does_not_agree_is_turned_down(clock: dict[str, float], fault: str, reason: str, wanted: str) -> None:
    clock["bf16"] = 0.1
    found = chosen(wanted, Net(fault))
    assert found.name == "fp32"
    assert found.reason.startswith(reason)


def test_without_instructions_bfloat16_is_not_tried(clock: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_why_no_bf16", lambda device: "the processor has no instructions for it")
    found = chosen()
    assert [trial.name for trial in found.trials] == ["fp32", "fp32 channels_last"]
    assert found.reason == "bfloat16 was not tried: the processor has no instructions for it"


def test_only_images_are_laid_out(clock: dict[str, float]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    assert [trial.name for trial in chosen(net=net).trials] == ["fp32", "bf16"]


def test_a_choice_is_made_once_for_a_structure_and_a_shape(clock: dict[str, float]) -> None:
    clock["bf16"] = 0.5
    first = chosen()
    clock["bf16"] = 2.0
    assert chosen() is first
    assert choose_precision(Net(), BATCH[:4], LABELS[:4], "auto", 5).name == "fp32"
    assert chosen(net=nn.Sequential(Net())).name == "fp32"


def test_a_time_budget_that_trying_would_use_up_is_respected(clock: dict[str, float]) -> None:
    found = chosen(limit_s=0.0)
    assert (found.name, len(found.trials)) == ("fp32", 1)
    assert found.reason == "the time budget left no time to try anything but float32"
    assert len(chosen().trials) == 4  # and it was not kept


def test_trying_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    before = copy.deepcopy(net.state_dict())
    choose_precision(net, BATCH, LABELS, "auto", 5)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.stride() == before[name].stride()
    assert all(p.grad is None for p in net.parameters())


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match=r"^precision is 'fp16'; expected one of auto, fp32, bf16$"):
        seamfast.sanitize(nn.Linear(2, 2), (torch.rand(4, 2), torch.arange(4) % 2), precision="fp16")


# ---- In a run ----


@pytest.fixture
def last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs compute in bfloat16, channels last."""
    choice = Precision(bf16=True, channels_last=True, reason="planted")
    monkeypatch.setattr("seamfast.engine.compute.choose_precision", lambda *args, **kwargs: choice)


def data() -> seamfast.CleanSet:
    pixels = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return seamfast.CleanSet(pixels, torch.arange(60) % 5)


def config() -> seamfast.FineTuneConfig:
    return seamfast.FineTuneConfig(max_steps=4, batch_size=16)


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
def test_the_model_comes_back_in_the_layout_and_dtype_of_the_given_one(last: None, given: torch.memory_format) -> None:
    torch.manual_seed(0)
    net = Net().to(memory_format=given)
    result = seamfast.sanitize(net, data(), method="fine_tune", config=config())
    assert result.report["run"]["precision"] == {"chosen": "bf16 channels_last", "reason": "planted", "trials": []}
    assert result.report["verdict"]["accepted"] in (True, False)
    for name, value in result.model.state_dict().items():
        assert value.dtype == torch.float32
        assert value.is_contiguous(memory_format=given if value.ndim == 4 else torch.contiguous_format), name
    assert not torch.equal(result.model.conv.weight, net.conv.weight)


@pytest.mark.usefixtures("guessers_are_trained")
def test_steps_compute_in_the_choice_and_measuring_in_float32(last: None) -> None:
    seen: list[tuple[bool, bool, bool]] = []

    class Watched(Net):
        def forward(self, images: Tensor) -> Tensor:
            bf16 = torch.is_autocast_enabled("cpu")
            seen.append((self.training, bf16, images.is_contiguous(memory_format=torch.channels_last)))
            return super().forward(images)

    seamfast.sanitize(Watched(), data(), method="fine_tune", config=config())
    assert {row for row in seen if row[0]} == {(True, True, True)}
    first, *_, final = [row for row in seen if not row[0]]
    assert not first[1]
    assert final == (False, False, True)


def test_float32_repeats_to_the_bit() -> None:
    def cured() -> dict[str, Tensor]:
        torch.manual_seed(0)
        return seamfast.sanitize(
            Net(), data(), method="fine_tune", config=config(), precision="fp32"
        ).model.state_dict()

    first, second = cured(), cured()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dropout_does_not_look_like_disagreement(clock: dict[str, float]) -> None:
    clock["bf16"] = 0.1
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 5))
    assert chosen(net=net).name == "bf16"
