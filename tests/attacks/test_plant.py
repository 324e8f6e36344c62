"""Planting by name, and measuring what was planted."""

from __future__ import annotations

import pytest
import torch
from refusals import raises
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.attacks import ATTACKS, Backdoor, InputAware, TrainConfig, build, known_attack, plant, train
from seamfast.attacks.image.input_aware import Generator
from seamfast.engine.model import digest
from seamfast.errors import InputError, ModelError
from seamfast.triggers import AllToAll, AllToOne, Patch

QUICK = TrainConfig(epochs=12, batch_size=64)


def fresh(data: CleanSet, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    channels, side, _ = data.image_shape
    return build("small_cnn", num_classes=data.num_classes or 2, in_channels=channels, image_size=side)


@pytest.fixture(scope="module")
def digits() -> tuple[CleanSet, CleanSet]:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return seamfast.load("digits", split="train"), seamfast.load("digits", split="test")


@pytest.mark.parametrize(
    ("name", "rate", "least"),
    [("badnets", 0.1, 0.97), ("random_patch", 0.1, 0.95), ("tact", 0.05, 0.85), ("label_consistent", 0.08, 0.75)],
)
def test_backdoors_in_digits(digits: tuple[CleanSet, CleanSet], name: str, rate: float, least: float) -> None:
    train_set, test_set = digits
    model = fresh(train_set)
    clean_model = train(fresh(train_set, 1), train_set, QUICK) if ATTACKS[name].needs_clean_model else None
    backdoor = plant(
        name, model, train_set, target=1, rate=rate, training=QUICK, precision="fp32", clean_model=clean_model
    )
    assert backdoor.attack == name
    result = backdoor.evaluate(model, test_set)
    assert result.clean_accuracy.value is not None
    assert result.clean_accuracy.value > 0.93
    assert result.worst_attack_success_rate is not None
    assert result.worst_attack_success_rate > least


@pytest.mark.parametrize("name", ["badnets", "multi_trigger", "tact"])
def test_it_is_poisoning_and_training(tiny_data: CleanSet, name: str) -> None:
    config = TrainConfig(epochs=2, batch_size=32)
    model, wanted = fresh(tiny_data), fresh(tiny_data)
    backdoor = plant(name, model, tiny_data, target=1, rate=0.1, training=config, seed=5, precision="fp32")
    poisoned = known_attack(name, tiny_data, target=1, rate=0.1, seed=5)
    train(wanted, poisoned.data, config, seed=5)
    assert digest(model) == digest(wanted)
    assert digest(model) != digest(fresh(tiny_data))
    assert backdoor == Backdoor(name, poisoned.triggers)
    with pytest.warns(DeprecationWarning, match=r"^Backdoor.table_triggers is Backdoor.triggers$"):
        assert backdoor.table_triggers == backdoor.triggers


def test_training_by_default_and_progress(tiny_data: CleanSet) -> None:
    seen: list[int] = []
    plant("badnets", fresh(tiny_data), tiny_data, on_epoch=lambda epoch, loss: seen.append(epoch), progress=False)
    assert seen == list(range(1, TrainConfig().epochs + 1))


# Measuring.


class ByBrightness(nn.Module):
    """Class by mean brightness on the [0, 1] scale: [0, 0.25), [0.25, 0.5), ...; NaN near white."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        mean = (images * 0.25 + 0.4).mean((1, 2, 3))
        logits = nn.functional.one_hot((4 * mean).long().clamp(0, 3), 4).float() + 0 * self.unused
        return torch.where(mean[:, None] > 0.99, torch.nan, logits)


class Painting(Generator):
    """Paints the whole image, by its first pixel: that brightness plus a half, from 0 on again."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first = images[:, :, :1, :1]
        return torch.ones_like(images[:, :1]), torch.where(first < 0.5, first + 0.5, first - 0.5).expand_as(images)


PAINTED = InputAware(name="painted", target=AllToOne(2), image_shape=(1, 8, 8), generator=Painting(1))


def flat(values: list[int], labels: list[int]) -> CleanSet:
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return CleanSet(images, torch.tensor(labels), mean=0.4, std=0.25, num_classes=4)


@pytest.mark.parametrize("batch_size", [1, 3, 512])
def test_a_trigger_of_each_image_is_counted_as_others_are(batch_size: int) -> None:
    # Painted: 20 → 148 (class 2), 30 → 158 (class 2), 127 → 254 (NaN), 150 → 22 (class 0), 220 → 92 (class 1).
    data = flat([20, 20, 30, 127, 150, 220, 220, 240], [0, 2, 1, 1, 2, 1, 3, 0])
    result = Backdoor("", (PAINTED,)).evaluate(ByBrightness(), data, batch_size=batch_size)
    assert (result.clean_accuracy.n_hit, result.clean_accuracy.n_total) == (4, 8)
    (of_trigger,) = result.triggers
    assert of_trigger.name == "painted"
    assert (of_trigger.n_hit, of_trigger.n_eligible) == (2, 6)
    assert (of_trigger.robust_accuracy.n_hit, of_trigger.robust_accuracy.n_total) == (1, 6)
    assert result.n_nan == 1


def test_floats_with_a_known_normalization_and_triggers_of_both_kinds() -> None:
    pixels = flat([20, 20, 100, 127, 150, 220, 220, 240], [0, 2, 1, 1, 2, 1, 3, 0])
    floats = CleanSet(pixels.normalize(pixels.inputs), pixels.labels, mean=0.4, std=0.25, num_classes=4)
    backdoor = Backdoor("", (PAINTED, Patch.square(2, target=AllToAll())))
    one, other = (backdoor.evaluate(ByBrightness(), data) for data in (pixels, floats))
    assert one == other
    assert [t.name for t in one.triggers] == ["painted", "patch"]


def test_measuring_is_evaluate(tiny_data: CleanSet) -> None:
    model = fresh(tiny_data)
    triggers = (Patch.square(2, target=1), PAINTED, Patch.checkerboard(3, corner="random", name="other"))
    result = Backdoor("", triggers).evaluate(model, tiny_data, seed=3)
    assert result == seamfast.evaluate(model, tiny_data, triggers=triggers, seed=3)


def test_measuring_leaves_the_model_as_it_was(tiny_data: CleanSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4)).train()
    before = digest(model)
    Backdoor("", (PAINTED,)).evaluate(model, tiny_data, device="cpu")
    assert digest(model) == before
    assert all(module.training for module in model.modules())


# What is refused.


def test_what_cannot_be_planted(tiny_data: CleanSet) -> None:
    wild = TrainConfig(epochs=2, batch_size=32, rate=1e9)
    for name, model, options, kind, message in (
        ("trojan", fresh(tiny_data), {}, InputError, f"attack is 'trojan'; expected one of {', '.join(ATTACKS)}"),
        ("badnets", fresh(tiny_data), {"target": 4}, InputError, "target is 4; expected a class in [0, 4)"),
        ("badnets", "small_cnn", {}, InputError, "model is a str; expected a torch.nn.Module"),
        (
            "badnets", fresh(tiny_data), {"precision": "fp8"}, InputError,
            "precision is 'fp8'; expected one of auto, fp32, bf16",
        ),
        (
            "badnets", fresh(tiny_data), {"training": wild, "precision": "fp32"}, ModelError,
            "the loss became nan at step 2; try a lower rate than 1000000000.0",
        ),
    ):  # fmt: skip
        with raises(kind, message):
            plant(name, model, tiny_data, **options)
