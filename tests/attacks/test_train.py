"""Training from scratch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import raises
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.attacks import TrainConfig, build, train
from seamfast.engine.model import digest
from seamfast.errors import ConfigError, InputError, ModelError
from seamfast.methods.schedules import cosine


def fresh(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("small_cnn", num_classes=4, in_channels=1, image_size=8)


def test_it_learns_and_the_loss_falls(tiny_data: CleanSet) -> None:
    seen: list[tuple[int, float]] = []
    model = fresh()
    trained = train(
        model, tiny_data, TrainConfig(epochs=12, batch_size=32), on_epoch=lambda epoch, loss: seen.append((epoch, loss))
    )
    assert trained is model  # in place
    assert not any(m.training for m in model.modules())
    assert [epoch for epoch, _ in seen] == list(range(1, 13))
    assert seen[0][1] > 1
    assert seen[-1][1] < 0.1
    assert seamfast.evaluate(model, tiny_data).clean_accuracy.value > 0.97


def test_it_is_sgd_with_nesterov_momentum_and_one_cycle(tiny_data: CleanSet) -> None:
    """Against a loop of its own; every batch is the whole set."""
    got = train(fresh(), tiny_data, TrainConfig(epochs=10, batch_size=160, rate=0.1, momentum=0.8, weight_decay=1e-2))
    wanted, inputs = fresh(), (tiny_data.inputs.float() / 255 - 0.4) / 0.25
    optimizer = torch.optim.SGD(wanted.parameters(), lr=1.0, momentum=0.8, weight_decay=1e-2, nesterov=True)
    for step in range(10):
        through = torch.tensor(step / 10)
        falling = 0.5 * (1 + torch.cos(torch.pi * (through - 0.2) / 0.8))
        optimizer.param_groups[0]["lr"] = 0.1 * float((through + 0.01) / 0.21 if step < 2 else falling)
        optimizer.zero_grad()
        nn.functional.cross_entropy(wanted(inputs), tiny_data.labels).backward()
        optimizer.step()
    torch.testing.assert_close(dict(got.state_dict()), dict(wanted.state_dict()), rtol=1e-3, atol=1e-5)
    assert digest(wanted) != digest(fresh())


def test_it_is_adam_if_asked_for(tiny_data: CleanSet) -> None:
    config = TrainConfig(optimizer="adam", epochs=6, batch_size=160, rate=1e-3, weight_decay=1e-2)
    got = train(fresh(), tiny_data, config)
    wanted, inputs = fresh(), (tiny_data.inputs.float() / 255 - 0.4) / 0.25
    optimizer = torch.optim.Adam(wanted.parameters(), lr=1.0, weight_decay=1e-2)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 1e-3 * cosine(step / 6, warmup=0.2)
        optimizer.zero_grad()
        nn.functional.cross_entropy(wanted(inputs), tiny_data.labels).backward()
        optimizer.step()
    torch.testing.assert_close(dict(got.state_dict()), dict(wanted.state_dict()), rtol=1e-2, atol=1e-4)


class Counting(nn.Module):
    """Counts how often it is trained on each image; an image is known by its brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 4)
        self.counts: dict[int, int] = {}

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            for tag in (images[:, 0, 0, 0] * 255).round().int().tolist():
                self.counts[tag] = self.counts.get(tag, 0) + 1
        logits: Tensor = self.head(images.mean((1, 2, 3))[:, None])
        return logits


@pytest.mark.parametrize("batch_size", [1, 16, 64, 500])
def test_an_epoch_shows_every_sample_once(batch_size: int) -> None:
    data = CleanSet(torch.arange(64, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), torch.arange(64) % 4)
    model = Counting()
    train(model, data, TrainConfig(epochs=3, batch_size=batch_size))
    assert model.counts == dict.fromkeys(range(64), 3)


def test_seeds(tiny_data: CleanSet) -> None:
    config = TrainConfig(epochs=2, batch_size=32)

    def run(seed: int) -> str:
        return digest(train(fresh(), tiny_data, config, seed=seed))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_seed_covers_dropout_and_leaves_torchs_generator_alone(tiny_data: CleanSet) -> None:
    def run(seed: int) -> str:
        torch.manual_seed(9)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4))
        torch.rand(seed + 1)  # whatever was drawn before
        state = torch.get_rng_state()
        train(model, tiny_data, TrainConfig(epochs=1, batch_size=160), seed=0)
        assert torch.equal(torch.get_rng_state(), state)
        return digest(model)

    assert run(0) == run(1)


def test_augmentation_changes_what_is_learnt(tiny_data: CleanSet) -> None:
    plain = {"epochs": 1, "batch_size": 160}
    trained = [
        digest(train(fresh(), tiny_data, TrainConfig(**(plain | changes))))  # type: ignore[arg-type]
        for changes in ({}, {"flip": True}, {"crop_pad": 2})
    ]
    assert len(set(trained)) == 3


def test_floats_and_logits_in_an_object() -> None:
    class Output(dict[str, Tensor]):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Output:
            return Output(logits=self.head(x))

    inputs = torch.randn(80, 4)
    data = CleanSet(inputs, (inputs.sum(1) > 0).long())
    model = train(Model(), data, TrainConfig(epochs=20, batch_size=20))
    assert seamfast.evaluate(model, data).clean_accuracy.value > 0.9


def test_a_loss_that_is_nan_stops_the_training(tiny_data: CleanSet) -> None:
    with raises(ModelError, "the loss became nan at step 2; try a lower rate than 1000000000.0"):
        train(fresh(), tiny_data, TrainConfig(epochs=2, batch_size=32, rate=1e9))


def test_progress_goes_to_stderr_if_asked_for(tiny_data: CleanSet, capsys: pytest.CaptureFixture[str]) -> None:
    for progress, shown in ((True, True), (False, False), (None, False)):  # None: captured stderr is no terminal
        train(fresh(), tiny_data, TrainConfig(epochs=1), progress=progress)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("train" in captured.err) is shown


# What is refused.


@pytest.mark.parametrize(
    ("setting", "wrong", "wanted"),
    [
        ("optimizer", "adamw", "'sgd' or 'adam'"),
        ("optimizer", "SGD", "'sgd' or 'adam'"),
        ("optimizer", None, "str"),
        ("epochs", 0, "an integer of at least 1"),
        ("batch_size", 0, "an integer of at least 1"),
        ("rate", 0, "a number above 0"),
        ("momentum", 1, "a number in [0, 1)"),
        ("momentum", -0.1, "a number in [0, 1)"),
        ("weight_decay", -1e-9, "at least 0"),
        ("crop_pad", -1, "an integer of at least 0"),
        ("epochs", 1.5, "int"),
        ("epochs", True, "int"),
        ("rate", "0.1", "float"),
        ("rate", float("nan"), "float"),
        ("flip", 1, "bool"),
    ],
)
def test_settings_out_of_range(setting: str, wrong: Any, wanted: str) -> None:
    with raises(ConfigError, f"{setting} is {wrong!r}; expected {wanted}"):
        TrainConfig(**{setting: wrong})


def test_data_that_cannot_be_learnt(tiny_data: CleanSet) -> None:
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 4])
    with raises(InputError, "labels hold 4; expected integers in [0, 4) for the model's 4 logits"):
        train(fresh(), CleanSet(images, labels))
    with raises(InputError, "data holds no samples; expected at least one"):
        train(fresh(), CleanSet(images[:0], labels[:0]))
    with raises(InputError, "data is a list; expected a seamfast.CleanSet"):
        train(fresh(), [(images, labels)])  # type: ignore[arg-type]
    with raises(InputError, "model is a function; expected a torch.nn.Module"):
        train(fresh, tiny_data)  # type: ignore[arg-type]
    with raises(ModelError, "the model has no parameters; expected a trained nn.Module"):
        train(nn.Flatten(), tiny_data)
    with raises(ModelError, "the model returned logits of shape (8, 1, 8, 8); expected (8, number of classes >= 2)"):
        train(nn.Conv2d(1, 1, 1), tiny_data)
