"""``evaluate`` against a loop of its own: one sample at a time, float64, and the definitions written out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from refusals import raises
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import seamfast
from seamfast import CleanSet, Evaluation, Rate
from seamfast.errors import InputError, ModelError, ShapeError
from seamfast.triggers import AllToAll, AllToOne, LabelMap, Patch, SourceSpecific

Make = Callable[[], nn.Module]

WHITE = Patch.square(3, target=1, name="white")
MAPS: dict[str, LabelMap] = {
    "all to one": AllToOne(2),
    "all to all": AllToAll(3),
    "source-specific": SourceSpecific((0, 3), 2),
}


def linear() -> nn.Module:
    """Right on about two of three, and easily moved to any class: the brightness of the quadrants, and noise."""
    generator = torch.Generator().manual_seed(6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    quadrants = torch.eye(4).view(4, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
    weight = 0.1 * quadrants + 0.2 * torch.randn(4, 64, generator=generator)
    with torch.no_grad():
        model[1].weight.copy_(weight - weight.mean(1, keepdim=True))
        model[1].bias.zero_()
    return model


def rates(evaluation: Evaluation) -> list[Any]:
    triggers = [(t.name, t.n_eligible, t.n_hit, t.attack_success_rate, t.robust_accuracy) for t in evaluation.triggers]
    return [evaluation.clean_accuracy, evaluation.class_accuracy, triggers, evaluation.n_nan]


@pytest.mark.parametrize("target", MAPS.values(), ids=MAPS)
def test_against_a_loop_over_single_samples(target: LabelMap, noisy_data: CleanSet) -> None:
    triggers = [
        Patch.square(3, target=target, margin=1, name="white"),
        Patch.checkerboard(2, target=target, corner="top-left", name="checks"),
    ]
    model = linear()
    got = seamfast.evaluate(model, noisy_data, triggers=triggers, batch_size=48)

    exact = linear().double().eval()
    images = noisy_data.inputs
    assert isinstance(images, Tensor)

    def predict(pixels: Tensor) -> int:
        with torch.no_grad():
            logits = exact(((pixels.double() / 255 - 0.4) / 0.25)[None])[0].tolist()
        return logits.index(max(logits))

    def paste(pixels: Tensor, name: str) -> Tensor:
        stamped = pixels.clone()
        if name == "white":
            stamped[:, 4:7, 4:7] = 255
        else:
            stamped[:, 1:3, 1:3] = torch.tensor([[255, 0], [0, 255]], dtype=torch.uint8)
        return stamped

    def wanted(label: int) -> int:
        if isinstance(target, AllToOne):
            return 2
        if isinstance(target, AllToAll):
            return (label + 3) % 4
        return 2 if label in (0, 3) else label

    n_correct, per_class = 0, [[0, 0] for _ in range(4)]
    outcomes = {name: [0, 0, 0] for name in ("white", "checks")}
    for image, label in zip(images, noisy_data.labels.tolist(), strict=True):
        right = predict(image) == label
        n_correct += right
        per_class[label][0] += right
        per_class[label][1] += 1
        if wanted(label) == label:
            continue
        for name, outcome in outcomes.items():
            predicted = predict(paste(image, name))
            outcome[0] += 1
            outcome[1] += predicted == wanted(label)
            outcome[2] += predicted == label

    assert got.clean_accuracy == Rate(n_correct, 160)
    assert got.class_accuracy == tuple(Rate(k, n) for k, n in per_class)
    assert [t.name for t in got.triggers] == ["white", "checks"]
    for trigger, (n_eligible, n_hit, n_restored) in zip(got.triggers, outcomes.values(), strict=True):
        assert trigger.attack_success_rate == Rate(n_hit, n_eligible)
        assert trigger.robust_accuracy == Rate(n_restored, n_eligible)
        assert (trigger.n_hit, trigger.n_eligible) == (n_hit, n_eligible)
        assert 0 < n_hit < n_eligible  # else the loop and the counters could agree on nothing
        assert 0 < n_restored < n_eligible
    assert 0.3 < n_correct / 160 < 1
    assert got.worst_attack_success_rate == max(n_hit / n for n, n_hit, _ in outcomes.values())
    assert got.n_nan == 0


@pytest.mark.parametrize("batch_size", [1, 7, 160, 10_000])
def test_the_batch_size_does_not_matter(batch_size: int, noisy_data: CleanSet) -> None:
    """Not for a patch at random positions either: its draws belong to the samples."""
    triggers = [WHITE, Patch.square(3, corner="random", target=AllToAll(), name="anywhere")]
    model = linear()
    got = seamfast.evaluate(model, noisy_data, triggers=triggers, batch_size=batch_size, seed=5)
    assert rates(got) == rates(seamfast.evaluate(model, noisy_data, triggers=triggers, seed=5))


def test_the_seed_places_random_patches_only(noisy_data: CleanSet) -> None:
    anywhere = Patch.square(3, corner="random", target=AllToAll(), name="anywhere")
    found = [seamfast.evaluate(linear(), noisy_data, triggers=[WHITE, anywhere], seed=seed) for seed in range(5)]
    assert len({f.triggers[0] for f in found}) == 1
    assert len({f.triggers[1] for f in found}) > 1


class NanOn(nn.Module):
    """NaN in the first logit of samples whose first pixel is at least ``threshold``."""

    def __init__(self, model: nn.Module, threshold: float) -> None:
        super().__init__()
        self.model = model
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x).clone()
        logits[x[:, 0, 0, 0] >= self.threshold, 0] = float("nan")
        return logits


def test_rows_with_nan_count_as_wrong_and_are_reported(tiny_model: Make, tiny_data: CleanSet) -> None:
    images = tiny_data.inputs
    assert isinstance(images, Tensor)
    bad = images[:, 0, 0, 0] >= 80  # a quadrant is bright there: class 0, among the first samples too
    assert bad[0]
    model = NanOn(tiny_model(), (80 / 255 - 0.4) / 0.25)
    got = seamfast.evaluate(model, tiny_data, triggers=[Patch.square(2, target=3, name="p")])
    clean = seamfast.evaluate(tiny_model(), tiny_data)
    n_bad = int(bad.sum())
    assert n_bad == 40
    assert got.clean_accuracy.n_hit == clean.clean_accuracy.n_hit - clean.class_accuracy[0].n_hit
    assert got.class_accuracy[0].n_hit == 0
    assert got.n_nan == 2 * n_bad  # clean and triggered
    (found,) = got.triggers
    assert found.n_nan == n_bad  # of class 0, all of which are eligible
    assert str(got).splitlines()[2:] == [
        "warning: 40 of 160 clean samples have an answer of NaN",
        "warning: 40 of 120 samples under p have an answer of NaN, which is no hit; the ASR may be up to "
        f"{(found.n_hit + 40) / 120:.4f}",
    ]
    assert len(str(clean).splitlines()) == 1
    everything = seamfast.evaluate(NanOn(tiny_model(), -9.0), tiny_data)
    assert (everything.clean_accuracy.n_hit, everything.n_nan) == (0, 160)


def test_the_model_is_left_as_it_was(tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model().train()
    model[1].eval()
    model[9].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    in_eval = seamfast.evaluate(tiny_model().eval(), tiny_data, triggers=[WHITE])
    assert rates(seamfast.evaluate(model, tiny_data, triggers=[WHITE])) == rates(in_eval)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [True] * 8 + [False, True]
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert torch.equal(torch.get_rng_state(), rng)


def test_modes_come_back_after_an_error_too(tiny_model: Make) -> None:
    model = tiny_model().train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError):
        seamfast.evaluate(model, (torch.zeros(4, 3, 8, 8), [0, 1, 2, 3]))
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_other_dtypes(dtype: torch.dtype, tiny_model: Make, tiny_data: CleanSet) -> None:
    """Pixels and floats arrive in the weights' dtype; on samples this easy rounding changes no class."""
    model = tiny_model().to(dtype)
    wanted = seamfast.evaluate(tiny_model(), tiny_data)
    assert wanted.clean_accuracy.value is not None
    assert wanted.clean_accuracy.value > 0.99
    floats = CleanSet(tiny_data.normalize(tiny_data.pixels(torch.arange(160))), tiny_data.labels, mean=0.4, std=0.25)
    for data in (tiny_data, floats):
        got = seamfast.evaluate(model, data, triggers=[WHITE])
        assert got.clean_accuracy == wanted.clean_accuracy
        assert got.n_nan == 0
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("wrap", [lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x)], ids=["dict", "object"])
def test_logits_in_a_dict_or_an_object(wrap: Callable[[Tensor], Any], tiny_model: Make, tiny_data: CleanSet) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_model()

        def forward(self, pixel_values: Tensor) -> Any:
            return wrap(self.model(pixel_values))

    wanted = rates(seamfast.evaluate(tiny_model(), tiny_data, triggers=[WHITE]))
    assert rates(seamfast.evaluate(Wrapped(), tiny_data, triggers=[WHITE])) == wanted
    floats = tiny_data.normalize(tiny_data.pixels(torch.arange(160)))
    batches = list(zip(floats.split(50), tiny_data.labels.split(50), strict=True))
    for name in ("pixel_values", "image"):  # the forward's own name and a foreign one
        named = [{name: x, "labels": y} for x, y in batches]
        assert rates(seamfast.evaluate(Wrapped(), named))[:2] == wanted[:2]


def test_floats_with_their_normalization_are_stamped_as_the_pixels_are(tiny_model: Make, noisy_data: CleanSet) -> None:
    floats = noisy_data.normalize(noisy_data.pixels(torch.arange(160)))
    data = CleanSet(floats, noisy_data.labels, mean=0.4, std=0.25)
    triggers = [WHITE, Patch.square(2, corner="random", target=AllToAll(), name="anywhere")]
    wanted = seamfast.evaluate(tiny_model(), noisy_data, triggers=triggers)
    assert rates(seamfast.evaluate(tiny_model(), data, triggers=triggers)) == rates(wanted)


def test_a_loader_that_shuffles(tiny_model: Make, tiny_data: CleanSet) -> None:
    floats = tiny_data.normalize(tiny_data.pixels(torch.arange(160)))
    loader = DataLoader(TensorDataset(floats, tiny_data.labels), batch_size=32, shuffle=True)
    wanted = seamfast.evaluate(tiny_model(), tiny_data)
    assert rates(seamfast.evaluate(tiny_model(), loader)) == rates(wanted)


def test_inputs_that_are_no_images() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 3), torch.randn(40, 5)
    labels = model(inputs).argmax(1)
    labels[:4] = (labels[:4] + 1) % 3
    assert seamfast.evaluate(model, (inputs, labels)).clean_accuracy == Rate(36, 40)


def test_more_logits_than_labels(tiny_data: CleanSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9))
    got = seamfast.evaluate(model, tiny_data, triggers=[Patch.square(2, target=8)])
    assert [rate.n_total for rate in got.class_accuracy] == [40] * 4 + [0] * 5
    assert got.class_accuracy[8] == Rate(0, 0)
    assert got.triggers[0].n_eligible == 160


def test_as_text() -> None:
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    got = seamfast.evaluate(model, (torch.zeros(4, 2), [0, 0, 0, 1]))
    assert str(got) == "clean accuracy       0.7500 [0.3006, 0.9544] (n = 4)"
    assert got.worst_attack_success_rate is None


def test_a_trigger_without_eligible_samples(tiny_model: Make, tiny_data: CleanSet) -> None:
    part = tiny_data.subset((tiny_data.labels == 0).nonzero().flatten())
    got = seamfast.evaluate(tiny_model(), part, triggers=[Patch.square(2, target=0)])
    assert got.triggers[0].attack_success_rate == Rate(0, 0)
    assert got.worst_attack_success_rate is None
    assert "n/a (n = 0)" in str(got)


def test_progress_goes_to_stderr_if_asked_for(
    tiny_model: Make, tiny_data: CleanSet, capsys: pytest.CaptureFixture[str]
) -> None:
    for progress in (None, False, True):
        seamfast.evaluate(tiny_model(), tiny_data, progress=progress)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("evaluate" in captured.err) is (progress is True)


class Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    ("kind", "message", "model"),
    [
        (InputError, "model is a dict; expected a torch.nn.Module", {"weight": 3}),
        (InputError, "model is a type; expected a torch.nn.Module", nn.Linear),
        (InputError, "model is a function; expected a torch.nn.Module", lambda x: x),
        (ModelError, "the model has no parameters; expected a trained nn.Module", nn.Flatten()),
        (
            ModelError,
            "the model is on the meta device and holds no weights; expected a trained model on a real device",
            nn.Linear(64, 4, device="meta"),
        ),
        (
            ModelError, "1.weight is not initialized yet; run one batch through the model first",
            nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
        ),
        (
            InputError, "labels hold 3; expected integers in [0, 3) for the model's 3 logits",
            nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        ),
        (
            ModelError, "the model returned logits of shape (8, 4, 8, 8); expected (8, number of classes >= 2)",
            nn.Conv2d(1, 4, 1),
        ),
        (
            ModelError, "the model returned logits of shape (8, 1); expected (8, number of classes >= 2)",
            nn.Sequential(nn.Flatten(), nn.Linear(64, 1)),
        ),
        (
            ModelError, "the model returned torch.int64; expected floating-point logits",
            Returns(lambda x: torch.zeros(len(x), 4, dtype=torch.int64)),
        ),
        (
            ModelError, "the model returned a tuple; expected logits: a tensor, an object or dict with 'logits', or a "
            "tuple with one (B, C) tensor, such as (loss, logits)",
            Returns(lambda x: (torch.zeros(len(x), 4), torch.zeros(len(x), 4))),
        ),
    ],
)  # fmt: skip
def test_models_that_cannot_be_used(kind: type[Exception], message: str, model: Any, tiny_data: CleanSet) -> None:
    with raises(kind, message):
        seamfast.evaluate(model, tiny_data)
    if isinstance(model, nn.Sequential) and isinstance(model[1], nn.LazyLinear):
        assert nn.parameter.is_lazy(model[1].weight)


@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (
            InputError, "trigger names a, b occur more than once; expected different names",
            {"triggers": [Patch.square(2, name=n) for n in "abcba"]},
        ),
        (InputError, "triggers hold a str; expected seamfast.triggers.Trigger", {"triggers": ["badnets"]}),
        (InputError, "triggers hold a NoneType; expected seamfast.triggers.Trigger", {"triggers": [WHITE, None]}),
        (ShapeError, "trigger 'patch' patch is 9x9; images are 8x8", {"triggers": [Patch.square(9)]}),
        (
            ShapeError, "trigger 'patch' patch has 3 channels; images have 1",
            {"triggers": [Patch.square(2, value=(255, 0, 0))]},
        ),
        (
            InputError, "AllToOne target is 4; expected a class in [0, 4) for num_classes=4",
            {"triggers": [Patch.square(2, target=4)]},
        ),
        *(
            (InputError, f"batch_size is {batch_size!r}; expected an integer of at least 1", {"batch_size": batch_size})
            for batch_size in (0, -1, 2.5, True, "8", None)
        ),
        (InputError, "device is 'gpu'; expected 'auto' or a torch device such as 'cpu' or 'cuda:0'", {"device": "gpu"}),
    ],
)  # fmt: skip
def test_options_that_cannot_be_used(
    kind: type[Exception], message: str, options: dict[str, Any], tiny_model: Make, tiny_data: CleanSet
) -> None:
    with raises(kind, message):
        seamfast.evaluate(tiny_model(), tiny_data, **options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (4, 1, 8, 8), "triggers are stamped in pixel space, before normalization; the inputs are floats without a "
            "known normalization: pass seamfast.CleanSet(inputs, labels, mean=..., std=...), or a loader "
            "as seamfast.data.as_clean_set(loader, mean=..., std=...)",
        ),
        ((4, 64), "trigger 'white' is a Patch; expected a trigger of columns"),
        ((4, 8, 8), "triggers are stamped on images of shape (N, C, H, W); the inputs are inputs (N, 8, 8)"),
    ],
)  # fmt: skip
def test_triggers_need_pixels(shape: tuple[int, ...], message: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with raises(InputError, message):
        seamfast.evaluate(model, (torch.zeros(shape), [0, 1, 2, 3]), triggers=[WHITE])


def test_a_trigger_that_does_not_fit_is_refused_before_any_work_is_done(tiny_data: CleanSet) -> None:
    seen: list[int] = []
    model = Returns(lambda images: seen.append(len(images)) or torch.zeros(len(images), 4))
    with pytest.raises(ShapeError):
        seamfast.evaluate(model, tiny_data, triggers=[WHITE, Patch.square(9)])
    assert sum(seen) <= 8  # the look at the logits


def test_no_samples(tiny_model: Make, tiny_data: CleanSet) -> None:
    with raises(InputError, "data holds no samples; expected at least one"):
        seamfast.evaluate(tiny_model(), tiny_data.subset([]))


@pytest.mark.gpu
def test_on_another_device_a_copy_is_used(tiny_model: Make, noisy_data: CleanSet) -> None:
    model = tiny_model()
    triggers = [WHITE, Patch.square(3, corner="random", target=AllToAll(), name="anywhere")]
    on_gpu = seamfast.evaluate(model, noisy_data, triggers=triggers, device="cuda")
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    on_cpu = seamfast.evaluate(model, noisy_data, triggers=triggers)
    for got, wanted in zip(on_gpu.triggers, on_cpu.triggers, strict=True):
        assert abs(got.n_hit - wanted.n_hit) <= 2  # a near tie may fall the other way
    assert abs(on_gpu.clean_accuracy.n_hit - on_cpu.clean_accuracy.n_hit) <= 2
