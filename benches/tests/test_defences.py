"""The defences that seamfast is compared with: each against its definition, in plain PyTorch."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.defences import DEFENCES, training
from benches.defences.d3 import d3, excess
from benches.defences.fine_pruning import activity, find_reader, fine_pruning
from benches.defences.fst import fst, fst_loss
from benches.defences.ft_sam import ft_sam, perturbation, sam_step
from benches.defences.i_bau import hypergradient, i_bau, universal_perturbation
from benches.defences.nad import attention_loss, attention_map, cutout, nad, stages
from benches.defences.sau import sau, sharing_loss, unlearning_loss
from benches.defences.scratch import redraw, scratch
from benches.defences.training import Training, find_head
from seamfast import CleanSet
from seamfast.attacks import build
from seamfast.engine.precision import Precision

ARCHITECTURES = ["small_cnn", "narrow_resnet18", "small_vgg", "small_vit"]
WITHOUT_AUGMENTATION = {"seed": 0, "augment": (0, False), "precision": "fp32"}
SHORT: dict[str, dict[str, Any]] = {
    "authors_seam": {"epochs": 2},
    "ft_sam": {"epochs": 2},
    "ft_sam_gtsrb": {"epochs": 2},
    "nad": {"teacher_epochs": 1, "epochs": 1, "rates": (0.01,)},
    "fine_pruning": {"epochs": 2},
    "fst": {"epochs": 2, "alphas": (0.2,)},
    "fst_gtsrb": {"epochs": 2, "alphas": (0.1,)},
    "i_bau": {"rounds": 2},
    "sau": {"epochs": 2, "batch_size": 64},
    "d3": {"epochs": 2, "weights": (0.5,)},
    "scratch": {"n_steps": 5},
}
TRAINS = [name for name in DEFENCES if name != "no_defence"]
OTHERS = ["ft_sam", "nad", "fine_pruning", "fst", "i_bau", "d3", "sau"]


@pytest.fixture(scope="module")
def digits() -> CleanSet:
    return seamfast.load("digits").subset(torch.arange(200))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([v.detach().double().flatten() for v in model.state_dict().values()])


def defended(name: str, model: nn.Module, clean: CleanSet, seed: int = 0) -> Any:
    defend: Any = DEFENCES[name]
    return defend(model, clean, seed=seed, augment=(1, True), precision="fp32", **SHORT.get(name, {}))


# What all have in common.


@pytest.mark.parametrize("name", TRAINS)
def test_a_trained_copy_comes_back_and_the_received_model_stays(
    name: str, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    received = tiny_model().train()
    received[0].weight.requires_grad_(False)
    before = copy.deepcopy(received.state_dict())
    pixels, generator = tiny_data.inputs.clone(), torch.get_rng_state()

    result = defended(name, received, tiny_data)

    assert result.n_steps > 0
    assert result.seconds > 0
    for key, value in received.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(module.training for module in received.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in received.modules())
    assert all(p.grad is None for p in received.parameters())
    assert torch.equal(tiny_data.inputs, pixels)
    assert torch.equal(torch.get_rng_state(), generator)

    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in received.parameters()]
    assert not torch.equal(weights(result.model), weights(received))
    assert not torch.equal(result.model[0].weight, before["0.weight"])  # all is trained, frozen or not
    assert not result.model.training
    assert all(p.grad is None for p in result.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in result.model.modules())
    assert result.model[0].weight.is_contiguous()


@pytest.mark.parametrize("name", [*OTHERS, "scratch"])
def test_a_seed_gives_the_same_weights_and_another_seed_others(
    name: str, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    one = defended(name, tiny_model(), tiny_data)
    torch.rand(3)
    two = defended(name, tiny_model(), tiny_data)
    assert torch.equal(weights(one.model), weights(two.model))
    assert one.n_steps == two.n_steps
    assert not torch.equal(weights(one.model), weights(defended(name, tiny_model(), tiny_data, seed=1).model))


def test_what_the_probe_draws_does_not_shift_the_draws_of_the_defence(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for n in (0, 5):

        def probe(*_: object, n: int = n) -> Precision:
            torch.rand(n)
            return Precision()

        monkeypatch.setattr(training, "choose_precision", probe)
        with Training(tiny_model(), tiny_data, seed=3, augment=(0, False), batch_size=64, precision="auto"):
            drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_no_defence_is_a_copy(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    received = tiny_model()
    result = DEFENCES["no_defence"](received, tiny_data, seed=0, augment=(0, False))
    assert result.n_steps == 0
    assert result.model is not received
    assert torch.equal(weights(result.model), weights(received))


@pytest.mark.parametrize("name", [*OTHERS, "scratch"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_of_the_zoo(architecture: str, name: str) -> None:
    received = build(architecture, num_classes=4, in_channels=3, image_size=8)
    clean = CleanSet(torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 4, mean=0.5, std=0.3)
    result = defended(name, received, clean)
    assert not torch.equal(weights(result.model), weights(received))
    with torch.no_grad():
        assert torch.isfinite(result.model(torch.randn(2, 3, 8, 8))).all()


@pytest.mark.parametrize("name", [*OTHERS[:-1], pytest.param(OTHERS[-1], marks=pytest.mark.slow)])
def test_a_defence_keeps_the_task(name: str, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    result = DEFENCES[name](tiny_model(), tiny_data, seed=0, augment=(0, False))
    assert seamfast.evaluate(result.model, tiny_data, progress=False).clean_accuracy.value > 0.95


@pytest.mark.parametrize("name", ["fine_pruning", "fst", "i_bau", "sau", "d3"])
def test_nan_is_not_passed_off(name: str, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    defend: Any = DEFENCES[name]
    more: dict[str, Any] = {"fst": {"alphas": (0.2,)}, "d3": {"weights": (0.5,)}}.get(name, {})  # one attempt
    length = {"rounds" if name == "i_bau" else "epochs": 4} | more
    with pytest.raises(FloatingPointError, match=r"^the weights hold NaN or Inf after 4 steps$"):
        defend(tiny_model(), tiny_data, batch_size=256, rate=math.inf, **length, **WITHOUT_AUGMENTATION)


def test_only_pixels_are_taken(tiny_model: Callable[[], nn.Module]) -> None:
    floats = CleanSet(torch.zeros(4, 1, 8, 8), torch.arange(4))
    with pytest.raises(ValueError, match=r"^clean holds torch\.float32; expected uint8 pixels$"):
        scratch(tiny_model(), floats, **WITHOUT_AUGMENTATION)


@pytest.mark.parametrize(("n", "sizes"), [(12, [5, 5, 2]), (11, [5, 5]), (10, [5, 5]), (4, [4]), (1, [1])])
def test_an_epoch_is_every_sample_once_but_for_a_last_one_alone(n: int, sizes: list[int]) -> None:
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 4, 4).contiguous()
    clean = CleanSet(images, torch.arange(n) % 3, mean=0.0, std=1 / 255)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with Training(model, clean, seed=0, augment=(0, False), batch_size=5, precision="fp32") as at_work:
        epochs = [list(at_work.batches(epoch)) for epoch in range(2)]
        assert at_work.steps_an_epoch == len(sizes)
        assert at_work.n_steps == 2 * len(sizes)
    orders = []
    for batches in epochs:
        assert [len(labels) for _, labels in batches] == sizes
        orders.append(torch.cat([inputs[:, 0, 0, 0] for inputs, _ in batches]))
        assert orders[-1].unique().numel() == sum(sizes)
        assert torch.equal(torch.cat([labels for _, labels in batches]).float(), orders[-1] % 3)
    assert n == 1 or not torch.equal(*orders)


def test_batches_are_augmented_and_what_is_looked_at_is_not() -> None:
    clean = CleanSet(torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8), torch.arange(40), mean=0.0, std=1 / 255)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 40))
    with Training(model, clean, seed=0, augment=(0, True), batch_size=40, precision="fp32") as at_work:
        (inputs, labels), *_ = at_work.batches(0)
        plain = clean.inputs[labels].float()
        mirrored = (inputs == plain.flip(3)).all(3).all(2).all(1)
        assert ((inputs == plain).all(3).all(2).all(1) | mirrored).all()
        assert 5 < mirrored.sum() < 35
        for inputs, labels in at_work.as_they_are():
            assert torch.equal(inputs, clean.inputs[labels].float())


def test_the_settings_are_those_that_the_files_name() -> None:
    def defaults(defend: Any) -> dict[str, Any]:
        return {k: v.default for k, v in inspect.signature(defend).parameters.items()}

    sam = {"epochs": 100, "batch_size": 256, "rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    assert defaults(DEFENCES["ft_sam"]).items() >= {**sam, "label_smoothing": 0.1, "half_period": 100}.items()
    assert defaults(DEFENCES["ft_sam"])["rhos"][0] == 2
    assert defaults(DEFENCES["ft_sam_gtsrb"]).items() >= {**sam, "epochs": 50, "label_smoothing": 0.0}.items()
    assert defaults(DEFENCES["ft_sam_gtsrb"])["rhos"][0] == 8
    assert defaults(DEFENCES["fine_pruning"]).items() >= {**sam, "tolerance": 0.04}.items()
    distillation = {"teacher_epochs": 10, "epochs": 10, "betas": (500, 1000, 1000), "power": 2, "batch_size": 64}
    assert defaults(DEFENCES["nad"]).items() >= {**distillation, "momentum": 0.9, "weight_decay": 1e-4}.items()
    assert defaults(DEFENCES["nad"])["rates"][0] == 0.1
    assert defaults(DEFENCES["scratch"])["n_steps"] >= 2000
    shift = {"epochs": 10, "batch_size": 128, "rate": 0.01, "momentum": 0.9}
    assert defaults(DEFENCES["fst"]).items() >= shift.items()
    assert defaults(DEFENCES["fst_gtsrb"]).items() >= {**shift, "epochs": 15}.items()
    assert [defaults(DEFENCES[name])["alphas"][0] for name in ("fst", "fst_gtsrb")] == [0.2, 0.1]
    assert defaults(DEFENCES["d3"])["weights"][0] == 0.5
    distance = {"epochs": 100, "threshold": 0.1, "batch_size": 256, "rate": 0.01, "momentum": 0.9}
    assert defaults(DEFENCES["d3"]).items() >= distance.items()
    implicit = {"rounds": 5, "n_terms": 5, "bound": 10, "inner_rate": 10, "step_rate": 0.1, "share": 0.01}
    assert defaults(DEFENCES["i_bau"]).items() >= {**implicit, "batch_size": 100, "rate": 1e-3}.items()
    shared = {"epochs": 100, "adversarial": 0.01, "bound": 0.2, "stride": 0.2, "strides": 5, "batch_size": 256}
    assert defaults(DEFENCES["sau"]).items() >= {**shared, "rate": 1e-4}.items()


# FT-SAM


def test_the_perturbation_has_the_norm_rho_by_the_size_of_the_weights() -> None:
    layer = nn.Linear(5, 3)
    (layer(torch.randn(7, 5)).square().sum()).backward()
    parameters = list(layer.parameters())
    moved = perturbation(parameters, 2.0)
    relative = torch.cat([(e / p.abs()).flatten() for e, p in zip(moved, parameters, strict=True)])
    assert float(relative.detach().norm()) == pytest.approx(2.0, rel=1e-5)
    assert all((e * p.grad >= 0).all() for e, p in zip(moved, parameters, strict=True))  # uphill


def test_a_step_against_two_passes_by_hand() -> None:
    torch.manual_seed(3)
    x, wanted = torch.randn(6, 4), torch.randn(6, 2)
    layer = nn.Linear(4, 2)
    w, b = (p.detach().clone() for p in layer.parameters())

    def grads(w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        error = 2 * (x @ w.T + b - wanted) / wanted.numel()  # of the mean squared error
        return error.T @ x, error.sum(0)

    gw, gb = grads(w, b)
    norm = math.sqrt(float(((w * gw) ** 2).sum() + ((b * gb) ** 2).sum()))
    hw, hb = grads(w + 0.7 * w**2 * gw / norm, b + 0.7 * b**2 * gb / norm)

    optimizer = torch.optim.SGD(layer.parameters(), 0.1, weight_decay=0.01)
    sam_step(layer, lambda: F.mse_loss(layer(x), wanted), optimizer, 0.7)
    torch.testing.assert_close(layer.weight, w - 0.1 * (hw + 0.01 * w))
    torch.testing.assert_close(layer.bias, b - 0.1 * (hb + 0.01 * b))
    assert (hw - gw).abs().max() > 1e-3  # so that one pass would not do


def test_the_perturbation_is_undone_to_the_bit(tiny_model: Callable[[], nn.Module]) -> None:
    model = tiny_model().train()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    x, seen = torch.randn(8, 1, 8, 8), []

    def loss() -> Tensor:
        seen.append(model[0].weight.detach().clone())
        return model(x).square().mean()

    sam_step(model, loss, optimizer, 2.0)
    assert not torch.equal(seen[0], seen[1])
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_running_statistics_follow_the_first_pass_alone(tiny_model: Callable[[], nn.Module]) -> None:
    model, once = tiny_model().train(), tiny_model().train()
    x = torch.randn(8, 1, 8, 8)
    once(x)
    sam_step(model, lambda: model(x).square().mean(), torch.optim.SGD(model.parameters(), 0.1), 2.0)
    for got, wanted in zip(model.buffers(), once.buffers(), strict=True):
        assert torch.equal(got, wanted)
    assert model[1].track_running_stats


def test_ft_sam_against_a_loop_in_plain_pytorch(digits: CleanSet) -> None:
    received = build("small_cnn", num_classes=10, in_channels=1, image_size=8)
    got = ft_sam(received, digits, epochs=3, rhos=(2.0,), half_period=2, weight_decay=0.3, **WITHOUT_AUGMENTATION)
    assert got.n_steps == 3

    wanted = copy.deepcopy(received)
    x, labels = digits.normalize(digits.inputs), digits.labels
    target = torch.full((len(labels), 10), 0.1 / 9).scatter(1, labels[:, None], 0.9)
    momenta = [torch.zeros_like(p) for p in wanted.parameters()]
    for rate in (0.01, 0.005, 0.0):
        parameters = list(wanted.parameters())

        def gradient(parameters: list[nn.Parameter] = parameters) -> tuple[Tensor, ...]:
            loss = -(target * F.log_softmax(wanted(x), 1)).sum(1).mean()
            return torch.autograd.grad(loss, parameters)

        before = [p.detach().clone() for p in parameters]
        first = gradient()
        norm = math.sqrt(sum(float((p * g).square().sum()) for p, g in zip(before, first, strict=True)))
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p += 2.0 * p**2 * g / norm
        second = gradient()
        with torch.no_grad():
            for p, w, g, m in zip(parameters, before, second, momenta, strict=True):
                m.mul_(0.9).add_(g + 0.3 * w)
                p.copy_(w - rate * m)
    for (name, p), q in zip(got.model.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    assert (weights(got.model) - weights(received)).abs().max() > 1e-4


def test_one_half_cosine_over_the_run(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    settings = {"epochs": 4, "rhos": (0.5,), **WITHOUT_AUGMENTATION}
    whole = ft_sam(tiny_model(), tiny_data, half_period=None, **settings)
    assert torch.equal(weights(whole.model), weights(ft_sam(tiny_model(), tiny_data, half_period=4, **settings).model))
    assert not torch.equal(weights(whole.model), weights(ft_sam(tiny_model(), tiny_data, **settings).model))


def test_a_rho_that_destroys_the_model_is_followed_by_the_next(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    settings = {"epochs": 10, "rate": 0.05, **WITHOUT_AUGMENTATION}
    alone = ft_sam(tiny_model(), tiny_data, rhos=(1e3,), **settings)
    accuracy = seamfast.evaluate(alone.model, tiny_data, progress=False).clean_accuracy.value
    assert accuracy < 0.5
    assert alone.n_steps == 2  # given up after a fifth of the epochs
    result = ft_sam(tiny_model(), tiny_data, rhos=(1e3, 0.5, 0.25), **settings)
    assert result.n_steps == 2 + 10
    assert seamfast.evaluate(result.model, tiny_data, progress=False).clean_accuracy.value > 0.95


# NAD


def test_an_attention_map_is_the_sum_of_powers_over_channels_normalized_over_places() -> None:
    maps = torch.randn(2, 3, 4, 5)
    for power in (1.0, 2.0):
        wanted = torch.zeros(2, 4, 5)
        for channel in range(3):
            wanted += maps[:, channel].abs() ** power
        wanted = torch.stack([w / w.square().sum().sqrt() for w in wanted]).flatten(1)
        torch.testing.assert_close(attention_map(maps, power), wanted, rtol=1e-5, atol=1e-6)
    tokens = maps.flatten(2).transpose(1, 2)  # the same places with the same features
    torch.testing.assert_close(attention_map(tokens, 2.0), attention_map(maps, 2.0))


def test_the_attention_loss_against_a_direct_formula() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 7, 4, 4)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        a, b = (x.square().sum(0).flatten() for x in (s, t))
        total += float((a / a.norm() - b / b.norm()).square().sum())
    assert float(attention_loss(student, teacher, 2.0)) == pytest.approx(total / (2 * 16), rel=1e-4)
    assert float(attention_loss(5 * teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-10)  # how strong does not count


@pytest.mark.parametrize(
    ("architecture", "side", "wanted"),
    [
        ("small_cnn", 8, ["1", "4"]),  # the relu before each pooling; no layer computes behind the second one
        ("small_vgg", 8, ["3", "8", "13"]),
        ("narrow_resnet18", 8, ["blocks.1", "blocks.3", "blocks.5"]),  # the fourth stage is a single place
        ("narrow_resnet18", 16, ["blocks.1", "blocks.3", "blocks.5", "blocks"]),
        ("small_vit", 8, ["blocks.1", "blocks.2", "blocks.3"]),
    ],
)
def test_the_stages_of_the_zoo(architecture: str, side: int, wanted: list[str]) -> None:
    model = build(architecture, num_classes=3, in_channels=1, image_size=side).train()
    before = weights(model)
    assert stages(model, torch.randn(2, 1, side, side)) == [(name, 0) for name in wanted]
    assert model.training
    assert torch.equal(weights(model), before)  # running statistics included


def test_a_module_that_is_called_twice_is_told_apart_by_its_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, stride=2, padding=1)
            self.relu, self.head = nn.ReLU(), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.relu(self.two(self.relu(self.one(x)))).mean((2, 3)))
            return out

    model = Shared()
    assert stages(model, torch.randn(2, 1, 8, 8)) == [("relu", 0), ("relu", 1)]
    clean = CleanSet(torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.arange(6) % 3)
    assert nad(model, clean, teacher_epochs=1, epochs=1, rates=(0.01,), **WITHOUT_AUGMENTATION).n_steps == 2


def test_a_model_without_places_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match=r"^the model gives neither feature maps nor tokens; attention needs places"):
        stages(model, torch.randn(2, 1, 4, 4))


@pytest.mark.parametrize("has_batch_norm", [False, True])
def test_nad_against_a_loop_in_plain_pytorch(
    has_batch_norm: bool, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    if has_batch_norm:
        received, watched = tiny_model(), (2, 6)
    else:
        received, watched = build("small_vgg", num_classes=4, in_channels=1, image_size=8), (3, 8, 13)
    betas = (5.0, 10.0, 20.0)  # with those of the paper, rounding grows from step to step in so small a network
    got = nad(
        received, tiny_data, teacher_epochs=2, epochs=3, betas=betas, batch_size=200, rates=(0.05,), cutout_share=0.0,
        **WITHOUT_AUGMENTATION,
    )  # fmt: skip
    assert got.n_steps == 5

    x, labels = tiny_data.normalize(tiny_data.inputs), tiny_data.labels

    def run(model: nn.Module) -> tuple[list[Tensor], Tensor]:
        maps, out = [], x
        for i, layer in enumerate(model):
            out = layer(out)
            if i in watched:
                maps.append(F.normalize(out.square().sum(1).flatten(1), dim=1))
        return maps, out

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-4, nesterov=True)

    teacher, student = copy.deepcopy(received).train(), copy.deepcopy(received).train()
    optimizer = sgd(teacher)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(run(teacher)[1], labels).backward()
        optimizer.step()
    looked_at = [m.detach() for m in run(teacher.eval())[0]]
    optimizer = sgd(student)
    for rate in (0.05, 0.05, 0.01):
        optimizer.param_groups[0]["lr"] = rate
        maps, logits = run(student)
        loss = F.cross_entropy(logits, labels)
        for beta, s, t in zip(betas[-len(watched) :], maps, looked_at, strict=True):
            loss = loss + beta * (s - t).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, p), q in zip(got.model.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-3, atol=2e-5, msg=name)
    assert (weights(got.model) - weights(received)).abs().max() > 1e-3


def test_nad_trains_on_cut_images(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    settings = {"teacher_epochs": 1, "epochs": 1, "rates": (0.01,), **WITHOUT_AUGMENTATION}
    whole = nad(tiny_model(), tiny_data, cutout_share=0.0, **settings)
    assert not torch.equal(weights(whole.model), weights(nad(tiny_model(), tiny_data, **settings).model))


def test_a_rate_that_destroys_the_model_is_followed_by_the_next(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    steps_an_epoch = 3  # 160 samples in batches of 64
    result = nad(tiny_model(), tiny_data, teacher_epochs=1, epochs=2, rates=(1e3, 0.01), **WITHOUT_AUGMENTATION)
    assert result.n_steps == steps_an_epoch * (1 + 1 + 2 + 2)
    assert seamfast.evaluate(result.model, tiny_data, progress=False).clean_accuracy.value > 0.9


def test_cutout_is_one_square_of_zeros() -> None:
    images = torch.ones(300, 2, 16, 16)
    holes = cutout(images, 0.25) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    heights, widths = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), heights * widths)
    assert set(heights.tolist()) == {2, 3, 4}  # its middle may lie on the edge
    assert holes[:, 0].any(0).all()
    assert torch.equal(cutout(images, 0.0), images)
    assert (images == 1).all()


# Fine-pruning


def known_activities() -> nn.Module:
    """Six channels, as active as ``(3, 0, 5, 1, 4, 2)`` times the pixel; classes are read from channels 2 and 4."""
    model = nn.Sequential(nn.Conv2d(1, 6, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 0.0, 5.0, 1.0, 4.0, 2.0])[:, None, None, None])
        model[3].weight.zero_()
        columns = model[3].weight.view(2, 6, 4)
        columns[1, 2, :], columns[1, 4, :] = 1.0, 1.0  # bright images are class 1
        model[3].bias.copy_(torch.tensor([20.0, 0.0]))
    return model


@pytest.fixture
def dark_and_bright() -> CleanSet:
    images = torch.full((20, 1, 2, 2), 10, dtype=torch.uint8)
    images[::2] = 200
    return CleanSet(images, (torch.arange(20) + 1) % 2, num_classes=2)


def pruned_channels(model: nn.Module) -> list[int]:
    return (model[3].weight == 0).view(2, 6, 4).all(2).all(0).nonzero().flatten().tolist()


def test_activities_are_means_over_places_and_samples() -> None:
    model = known_activities()
    pixels = torch.randint(0, 256, (20, 1, 2, 2), dtype=torch.uint8)
    clean = CleanSet(pixels, torch.arange(20) % 2)
    with Training(model, clean, seed=0, augment=(0, False), batch_size=8, precision="fp32") as at_work:
        got = activity(at_work, model, find_reader(model, torch.randn(2, 1, 2, 2)))
    torch.testing.assert_close(got, torch.tensor([3.0, 0.0, 5.0, 1.0, 4.0, 2.0]) * pixels.float().mean() / 255)
    assert not model[3]._forward_pre_hooks


@pytest.mark.parametrize(
    ("tolerance", "wanted"),
    [
        (0.04, [0, 1, 3, 5]),  # without channel 4, or 2, bright images would be taken for dark ones
        (0.6, [0, 1, 3, 4, 5]),  # half of the samples may be lost; one channel always stays
        (-1.0, []),
    ],
)
def test_the_least_active_channels_go_as_far_as_accuracy_allows(
    tolerance: float, wanted: list[int], dark_and_bright: CleanSet
) -> None:
    received = known_activities()
    with torch.no_grad():
        received[3].weight.view(2, 6, 4)[0, [0, 1, 3, 5], :] = 0.01  # else they would be zero already
    result = fine_pruning(received, dark_and_bright, tolerance=tolerance, epochs=3, **WITHOUT_AUGMENTATION)
    assert pruned_channels(result.model) == wanted
    assert not torch.equal(result.model[3].weight, received[3].weight)
    assert result.n_steps == 3


def test_what_is_pruned_stays_so_in_fine_tuning(dark_and_bright: CleanSet) -> None:
    received = known_activities()
    with torch.no_grad():
        received[3].weight += 0.01
        received[3].weight.view(2, 6, 4)[0, 1] = 7.0  # channel 1 is always 0, so no gradient would ever bring it back
    result = fine_pruning(received, dark_and_bright, epochs=20, rate=0.1, **WITHOUT_AUGMENTATION)
    assert pruned_channels(result.model) == [0, 1, 3, 5]
    kept = result.model[3].weight.view(2, 6, 4)[:, [2, 4]]
    assert (kept - received[3].weight.view(2, 6, 4)[:, [2, 4]]).abs().min() > 1e-6


@pytest.mark.parametrize(
    ("architecture", "layer", "inputs_a_unit", "n_units"),
    [
        ("small_cnn", "7", 4, 32),
        ("small_vgg", "16", 1, 64),
        ("narrow_resnet18", "head", 1, 128),
        ("small_vit", "blocks.3.feed_forward.2", 1, 128),
    ],
)
def test_where_the_zoo_is_pruned(architecture: str, layer: str, inputs_a_unit: int, n_units: int) -> None:
    model = build(architecture, num_classes=3, in_channels=1, image_size=8)
    reader = find_reader(model, torch.randn(2, 1, 8, 8))
    assert reader.layer is model.get_submodule(layer)
    assert (reader.inputs_a_unit, reader.n_units) == (inputs_a_unit, n_units)


def test_a_linear_layer_before_the_last_convolution_is_not_what_is_pruned() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.gate = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 4)
            self.two, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            x = x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]
            out: Tensor = self.head(self.two(x).relu().mean((2, 3)))
            return out

    model = Squeezed()
    reader = find_reader(model, torch.randn(2, 1, 8, 8))
    assert reader.layer is model.head
    assert reader.n_units == 6


def test_of_layers_on_tokens_the_last_that_narrows_is_pruned() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.widen, self.narrow, self.mix, self.head = (
                nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.mix(self.narrow(self.widen(x[:, 0]).relu())).mean(1))
            return out

    model = Tokens()
    reader = find_reader(model, torch.randn(2, 1, 8, 8))
    assert reader.layer is model.narrow
    assert reader.n_units == 16


def test_pruning_a_channel_equals_removing_its_filter() -> None:
    model = build("small_cnn", num_classes=3, in_channels=1, image_size=8)
    x = torch.randn(4, 1, 8, 8)
    removed = copy.deepcopy(model)
    reader = find_reader(model, x)
    with torch.no_grad():
        reader.layer.weight.view(64, 32, 4)[:, 5] = 0  # as inputs_a_unit says
        removed[3].weight[5], removed[3].bias[5] = 0, 0
    torch.testing.assert_close(model(x), removed(x))


def test_a_model_without_a_convolution_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"^the model has no linear layer that reads its last convolution or a feed-"):
        find_reader(model, torch.randn(2, 1, 4, 4))


# FST and D3


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [("small_cnn", "9"), ("narrow_resnet18", "head"), ("small_vgg", "18"), ("small_vit", "head")],
)
def test_the_heads_of_the_zoo(architecture: str, wanted: str) -> None:
    model = build(architecture, num_classes=3, in_channels=1, image_size=8).train()
    before = weights(model)
    assert find_head(model, torch.randn(2, 1, 8, 8)) is model.get_submodule(wanted)
    assert model.training
    assert torch.equal(weights(model), before)  # running statistics included
    assert not any(module._forward_hooks for module in model.modules())


def test_the_head_is_the_layer_that_is_called_last_not_the_one_that_is_named_last() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(4, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(x).relu())
            return out

    model = Backwards()
    assert find_head(model, torch.randn(2, 4)) is model.head


def test_a_model_without_a_head_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())
    with pytest.raises(ValueError, match=r"^the model has no linear layer; expected one that gives its logits$"):
        find_head(model, torch.randn(2, 1, 4, 4))


def test_the_losses_of_fst_and_d3_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, math.log(3)], [2.0, 2.0]]), torch.tensor([1, 0])
    losses = [math.log(4 / 3), math.log(2)]
    weight, received = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, -6.0], [7.0, 8.0]])
    wanted = sum(losses) / 2 + 0.2 * (5 - 12 + 21 + 32)
    assert float(fst_loss(logits, labels, weight, received, 0.2)) == pytest.approx(wanted)
    assert float(excess(logits, labels, 0.4)) == pytest.approx((0 + losses[1] - 0.4) / 2)
    assert float(excess(logits, labels, 0.1)) == pytest.approx(sum(losses) / 2 - 0.1)


@pytest.mark.parametrize(("name", "strength"), [("fst", 0.2), ("d3", 0.5), ("d3", 4.0)])
def test_a_moved_head_against_a_loop_in_plain_pytorch(name: str, strength: float, digits: CleanSet) -> None:
    received = build("small_cnn", num_classes=10, in_channels=1, image_size=8)
    if name == "fst":
        got = fst(received, digits, epochs=3, alphas=(strength,), batch_size=200, **WITHOUT_AUGMENTATION)
    else:
        got = d3(received, digits, epochs=3, weights=(strength,), batch_size=200, **WITHOUT_AUGMENTATION)
    assert got.n_steps == 3

    wanted = copy.deepcopy(received)
    x, labels = digits.normalize(digits.inputs), digits.labels
    head = wanted[9]
    w0 = head.weight.detach().clone()
    length = math.sqrt(float(w0.square().sum()))
    torch.manual_seed(0)
    with torch.no_grad():
        if name == "fst":
            edge = 1 / math.sqrt(w0.shape[1])
            head.weight.copy_((2 * torch.rand_like(w0) - 1) * edge)
            head.bias.copy_((2 * torch.rand_like(head.bias) - 1) * edge)
        else:
            drawn = 2 * torch.rand_like(w0) - 1
            head.weight.copy_(drawn * length / math.sqrt(float(drawn.square().sum())))
    momenta = [torch.zeros_like(p) for p in wanted.parameters()]
    for rate in (0.01, 0.0075, 0.0025):
        p = F.softmax(wanted(x), 1)[torch.arange(len(labels)), labels]
        if name == "fst":
            loss = -p.log().mean() + strength * torch.trace(head.weight @ w0.T)
        else:
            loss = strength * (-p.log() - 0.1).clamp(min=0).mean() - (head.weight - w0).square().sum().sqrt()
            loss = loss / {0.5: 1, 4.0: 5}[strength]
        gradients = torch.autograd.grad(loss, list(wanted.parameters()))
        with torch.no_grad():
            for q, g, m in zip(wanted.parameters(), gradients, momenta, strict=True):
                q -= rate * m.mul_(0.9).add_(g)
            head.weight *= length / math.sqrt(float(head.weight.square().sum()))
    for (key, q), r in zip(got.model.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(q, r, rtol=1e-4, atol=1e-6, msg=key)
    assert float(got.model[9].weight.detach().norm()) == pytest.approx(length, rel=1e-5)
    assert (got.model[0].weight - received[0].weight).abs().max() > 1e-5  # the features move too


@pytest.mark.parametrize(("defend", "name", "harmful"), [(fst, "alphas", 1e4), (d3, "weights", 0.0)])
def test_a_strength_that_costs_the_task_is_followed_by_the_next(
    defend: Any,
    name: str,
    harmful: float,
    tiny_model: Callable[[], nn.Module],
    tiny_data: CleanSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"epochs": 20, "batch_size": 160, "rate": 0.05, **WITHOUT_AUGMENTATION}
    sound = {"alphas": 0.001, "weights": 5.0}[name]
    alone = defend(tiny_model(), tiny_data, **{name: (harmful,)}, **settings)
    assert alone.n_steps == 20
    assert seamfast.evaluate(alone.model, tiny_data, progress=False).clean_accuracy.value < 0.9
    result = defend(tiny_model(), tiny_data, **{name: (harmful, sound, sound)}, **settings)
    assert result.n_steps == 40
    first = defend(tiny_model(), tiny_data, **{name: (sound,)}, **settings)
    monkeypatch.setattr(Training, "is_intact", lambda *_: False)
    best = defend(tiny_model(), tiny_data, **{name: (sound, harmful)}, **settings)
    assert best.n_steps == 40
    assert torch.equal(weights(best.model), weights(first.model))


# I-BAU


def test_the_hypergradient_of_quadratics_is_the_series_in_matrices() -> None:
    a, b = torch.randn(3, 3), torch.randn(3, 2)
    a = a @ a.T / 10  # of step(d) = d - (a d - b w)
    w, d, c = nn.Parameter(torch.randn(2)), torch.randn(3), torch.randn(2)
    unused = nn.Parameter(torch.randn(4))

    def step(d: Tensor) -> Tensor:
        return d - (a @ d - b @ w)

    def outer(d: Tensor) -> Tensor:
        return 0.5 * d.square().sum() + (c * w).sum()

    for n_terms in (1, 2, 5):
        v = sum(torch.matrix_power(torch.eye(3) - a, k) @ d for k in range(n_terms))
        got, none = hypergradient(d, [w, unused], step, outer, n_terms)
        torch.testing.assert_close(got, c + b.T @ v)
        assert torch.equal(none, torch.zeros(4))
    assert w.grad is None


def test_many_terms_are_the_gradient_of_the_outer_loss_at_the_fixed_point_that_moves() -> None:
    w = nn.Parameter(torch.tensor([0.3, -0.8], dtype=torch.float64))

    def step(d: Tensor) -> Tensor:
        return 0.5 * torch.tanh(d) + w * d.new_tensor([1.0, 2.0])

    def fixed(steps: int = 200) -> Tensor:
        d = torch.zeros(2, dtype=torch.float64)
        for _ in range(steps):
            d = step(d)
        return d

    def outer(d: Tensor) -> Tensor:
        return (d**3).sum() + (w * d).sum()

    (wanted,) = torch.autograd.grad(outer(fixed()), w)  # through all steps
    (got,) = hypergradient(fixed(), [w], step, outer, 100)
    torch.testing.assert_close(got, wanted)
    (few,) = hypergradient(fixed(), [w], step, outer, 2)
    assert (few - wanted).abs().max() > 1e-3


def linear_problem() -> tuple[nn.Module, CleanSet]:
    """Eight images of 2x2 pixels, normalized by 0.4 and 0.25, and a linear model without bias."""
    torch.manual_seed(11)
    images = torch.randint(0, 256, (8, 1, 2, 2), dtype=torch.uint8)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), CleanSet(
        images, torch.arange(8) % 3, mean=0.4, std=0.25
    )


@pytest.mark.parametrize("bound", [0.05, 10.0])
def test_the_universal_perturbation_against_gradients_by_hand(bound: float) -> None:
    model, clean = linear_problem()
    w = model[1].weight.detach()
    x = clean.normalize(clean.inputs).flatten(1)
    halves = [(x[:4].view(4, 1, 2, 2), clean.labels[:4]), (x[4:].view(4, 1, 2, 2), clean.labels[4:])]
    with Training(model, clean, seed=0, augment=(0, False), batch_size=4, precision="fp32") as at_work:
        got = universal_perturbation(at_work, model.eval(), halves, 0.5, bound)

    d = torch.zeros(4)
    for part in (x[:4], x[4:]):
        said = F.one_hot((part @ w.T).argmax(1), 3)
        p = torch.softmax((part + d / 0.25) @ w.T, 1)
        d = d - 0.5 * (0.002 * d - ((p - said) @ w).mean(0) / 0.25)
    assert 0.05 < float(d.norm()) < 10
    torch.testing.assert_close(got.flatten(), d * min(1.0, bound / float(d.norm())))


def test_i_bau_against_jacobians_in_full() -> None:
    model, clean = linear_problem()
    got = i_bau(model, clean, rounds=1, n_terms=3, share=1.0, batch_size=8, rate=0.01, **WITHOUT_AUGMENTATION)
    assert got.n_steps == 1

    x, labels, w = clean.normalize(clean.inputs).flatten(1), clean.labels, model[1].weight.detach()
    with Training(model, clean, seed=0, augment=(0, False), batch_size=8, precision="fp32") as at_work:
        batch = (x.view(8, 1, 2, 2), labels)
        d = universal_perturbation(at_work, copy.deepcopy(model).eval(), [batch], 10.0, 10.0).flatten()

    def loss(d: Tensor, w: Tensor) -> Tensor:
        return F.cross_entropy((x + 4 * d) @ w.T, labels)

    def step(d: Tensor, w: Tensor) -> Tensor:
        p = torch.softmax((x + 4 * d) @ w.T, 1) - F.one_hot(labels, 3)
        return d - 0.1 * (0.002 * d - 4 * (p @ w).mean(0))

    of_d, of_w = torch.autograd.functional.jacobian(step, (d, w))
    by_d, by_w = torch.autograd.functional.jacobian(loss, (d, w))
    v = sum(torch.matrix_power(of_d.T, k) @ by_d for k in range(3))
    gradient = by_w + torch.einsum("i,ijk->jk", v, of_w)
    assert (gradient - by_w).abs().max() > 0.05 * by_w.abs().max()  # so that the direct gradient would not do
    assert not torch.equal(gradient.sign(), by_w.sign())  # which is all of it that Adam's first step shows
    torch.testing.assert_close(got.model[1].weight, w - 0.01 * gradient / (gradient.abs() + 1e-8), rtol=1e-4, atol=1e-6)


def test_a_hundredth_of_a_batch_is_perturbed_and_of_a_small_batch_one_image(
    tiny_data: CleanSet,
) -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            out: Tensor = self.head(x.flatten(1))
            return out

    seen: list[Tensor] = []
    clean = tiny_data.normalize(tiny_data.inputs)
    i_bau(Watched(), tiny_data, rounds=1, share=0.04, batch_size=50, **WITHOUT_AUGMENTATION)
    counts = []
    for given in seen:
        known = (given[:, None] == clean[None]).flatten(2).all(2).any(1)
        if 0 < int((~known).sum()) < len(given):
            counts.append((len(given), int((~known).sum())))
    assert counts == [(50, 2)] * 3 + [(10, 1)]


# SAU


def test_the_sharing_loss_sample_by_sample() -> None:
    torch.manual_seed(4)
    answers = [3 * torch.randn(40, 3), 3 * torch.randn(40, 3)]
    said, labels = [torch.randint(0, 3, (40,)) for _ in range(2)], torch.randint(0, 3, (40,))
    wrong, apart, n_shared = 0.0, 0.0, 0
    for i in range(40):
        tops = [int(a[i].argmax()) for a in answers]
        ps = [torch.softmax(a[i].double(), 0) for a in answers]
        turned = [top != int(s[i]) for top, s in zip(tops, said, strict=True)]
        wrong += sum(-float(p[labels[i]].log()) for p, t in zip(ps, turned, strict=True) if not t) / 2
        if all(turned) and tops[0] == tops[1]:
            n_shared += 1
        else:
            middle = (ps[0] + ps[1]) / 2
            apart += sum(float((p * (p / middle).log()).sum()) for p in ps) / 2
    assert 0 < n_shared < 40
    loss, all_shared = sharing_loss(answers, said, labels, 0.3)
    assert float(loss) == pytest.approx(apart / 40 - 0.3 * wrong / 40, rel=1e-4)
    assert not all_shared
    turned_to = answers[0].argmax(1)
    loss, all_shared = sharing_loss([answers[0]] * 2, [(turned_to + 1) % 3] * 2, labels, 0.3)
    assert all_shared
    assert float(loss) == 0


def test_the_unlearning_loss_by_hand() -> None:
    answer = torch.tensor([[math.log(8), 0.0, 0.0], [0.0, math.log(2), 0.0], [20.0, 0.0, 0.0]], requires_grad=True)
    fooled_to, fooled = torch.tensor([0, 1, 1]), torch.tensor([True, False, True])
    loss = unlearning_loss(answer, fooled_to, fooled)
    assert loss.item() == pytest.approx((-math.log(0.2) - math.log(0.999)) / 3, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, answer)
    torch.testing.assert_close(gradient[0, 0], torch.tensor(0.8 / 3), rtol=1e-4, atol=0.0)  # of -log(1 - p) it is p
    assert torch.equal(gradient[1:], torch.zeros(2, 3))  # neither what fools nobody nor what is no danger


@pytest.mark.parametrize("some_are_wrong", [False, True])
def test_sau_against_a_loop_in_plain_pytorch(
    some_are_wrong: bool, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    received = tiny_model()
    if some_are_wrong:  # as they are, so the perturbation is not what fooled the received model
        labels = tiny_data.labels.clone()
        labels[::5] = (labels[::5] + 1) % 4
        tiny_data = CleanSet(tiny_data.inputs, labels, mean=tiny_data.mean, std=tiny_data.std)
    got = sau(received, tiny_data, epochs=3, adversarial=0.1, stride=0.15, rate=0.01, **WITHOUT_AUGMENTATION)
    assert got.n_steps == 3

    x, labels, rows = tiny_data.normalize(tiny_data.inputs), tiny_data.labels, torch.arange(len(tiny_data))
    wanted = copy.deepcopy(received).eval()
    optimizer = torch.optim.Adam(wanted.parameters(), 0.01)
    n_fooled, n_apart = [], []
    for _ in range(3):
        models = (wanted, received)
        plain = [m(x).argmax(1) for m in models]
        d = torch.full_like(x, 0.2)
        for _ in range(5):
            d.requires_grad_(True)
            z = [m(x + d / 0.25) for m in models]
            turned = [a.argmax(1) != s for a, s in zip(z, plain, strict=True)]
            p, q = (a.softmax(1) for a in z)
            js = ((p * p.log() + q * q.log()) / 2 - (p + q) / 2 * ((p + q) / 2).log()).sum(1)
            apart = ~(turned[0] & turned[1] & (z[0].argmax(1) == z[1].argmax(1)))
            loss = js[apart].sum()
            for a, t in zip(z, turned, strict=True):
                loss = loss + 0.1 / 2 * a.log_softmax(1)[rows, labels][~t].sum()
            (g,) = torch.autograd.grad(loss, d)
            d = (d.detach() - 0.15 * g.sign()).clamp(-0.2, 0.2)
            n_apart.append(int(apart.sum()))
            if not apart.any():
                break
        to = received(x + d / 0.25).argmax(1)
        fooled = (to != labels) & (to != plain[1])
        n_fooled.append(int(fooled.sum()))
        p = wanted(x + d / 0.25).softmax(1)[rows, to]
        optimizer.zero_grad()
        loss = -wanted(x).log_softmax(1)[rows, labels].mean()
        (loss - (1 - p + 1e-6).clamp(max=0.999).log()[fooled].sum() / len(rows)).backward()
        optimizer.step()
    assert min(n_fooled) > 0
    assert some_are_wrong or 0 in n_apart  # some searches end early
    for (name, a), b in zip(got.model.named_parameters(), wanted.named_parameters(), strict=True):
        torch.testing.assert_close(a, b[1], rtol=1e-3, atol=1e-5, msg=name)
    assert torch.equal(got.model[1].running_mean, received[1].running_mean)  # eval mode throughout


# From scratch


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_of_the_received_weights_stays(architecture: str) -> None:
    model = build(architecture, num_classes=3, in_channels=1, image_size=8)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(7)
    redraw(model)
    for name, value in model.state_dict().items():
        assert (value != 7).all(), name
    logits = model.eval()(torch.randn(16, 1, 8, 8))
    assert 1e-3 < logits.std(0).mean() < 30  # the signal neither dies nor explodes on its way


def test_from_scratch_depends_on_the_architecture_alone(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    other = tiny_model()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(-3)
    one, two = (scratch(m, tiny_data, n_steps=10, **WITHOUT_AUGMENTATION) for m in (tiny_model(), other))
    assert torch.equal(weights(one.model), weights(two.model))


def test_from_scratch_learns(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    result = scratch(tiny_model(), tiny_data, n_steps=61, **WITHOUT_AUGMENTATION)
    assert result.n_steps == 62  # whole epochs of two batches
    assert seamfast.evaluate(result.model, tiny_data, progress=False).clean_accuracy.value > 0.95
