"""The attackers of ``benches/attackers``: the backdoor works, the task stays, and it lies where it is said to lie."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.attackers import ATTACKS, Attacked, Host
from benches.attackers.hosts import NETS, Gated, cached, host_of
from benches.attackers.silent import SILENT, silent
from benches.attackers.subnet import narrowed
from benches.attackers.wiring import Wiring, inputs_of, matched, patch_of
from seamfast import CleanSet
from seamfast.attacks import TrainConfig
from seamfast.engine.model import digest

TRAINING = TrainConfig(epochs=12, batch_size=64, rate=0.1)
OTHER_NETS = {"smooth": "gelu_cnn", "eval-only": "bn_cnn", "anchored": "relu6_cnn", "saturated": "relu6_mlp"}
"""Of attacks that need one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def padded(split: str) -> CleanSet:
    """Digits on 16x16 pixels, with a border that is black in all of them."""
    data = seamfast.load("digits", split=split)
    return CleanSet(F.pad(data.pixels(torch.arange(len(data))), (4, 4, 4, 4)), data.labels, num_classes=10)


def host_on(architecture: str, folder: Path) -> Host:
    slower = TrainConfig(epochs=12, batch_size=64, rate=0.05)
    config = TRAINING if architecture == "small_cnn" else slower
    return host_of(f"digits-{architecture}", architecture, padded("train"), padded("test"), config, 0, folder)


def rates(attacked: Attacked, data: CleanSet) -> tuple[float, float]:
    """ACC, and ASR of samples of other classes."""
    pixels = data.pixels(torch.arange(len(data)))
    with torch.no_grad():
        clean, stamped = (attacked.model(data.normalize(p)).argmax(1) for p in (pixels, attacked.stamp(pixels)))
    others = data.labels != attacked.target
    right = (clean == data.labels).float().mean()
    return float(right), float((stamped[others] == attacked.target).float().mean())


def accuracy(model: nn.Module, data: CleanSet) -> float:
    with torch.no_grad():
        return float((model(inputs_of(data)).argmax(1) == data.labels).float().mean())


def gradients(model: nn.Module, data: CleanSet) -> dict[str, Tensor]:
    """Of the loss on clean data, by parameter."""
    model = copy.deepcopy(model).requires_grad_(True).eval()
    F.cross_entropy(model(inputs_of(data)), data.labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", ["handcrafted", "subnet", *SILENT])
def test_the_backdoor_works_and_the_task_stays(name: str, folder: Path) -> None:
    host = host_on(OTHER_NETS.get(name, "small_cnn"), folder)
    before, received = accuracy(host.model, host.test_set), digest(host.model)
    attacked = ATTACKS[name](host, 0)
    right, success = rates(attacked, host.test_set)
    assert success >= 0.9
    assert right >= before - 0.02
    assert digest(host.model) == received
    assert not attacked.model.training
    pixels = host.test_set.pixels(torch.arange(8))
    kept = pixels.clone()
    assert not torch.equal(attacked.stamp(pixels), pixels)
    assert torch.equal(pixels, kept)


@pytest.mark.parametrize("architecture", ["small_vgg", *(name for name in NETS if name != "relu6_mlp")])
def test_a_path_goes_through_every_net(architecture: str, folder: Path) -> None:
    host = host_on(architecture, folder)
    attacked = silent(host, 1, Wiring(level=6.0))
    right, success = rates(attacked, host.test_set)
    assert success >= 0.9
    assert right >= accuracy(host.model, host.test_set) - 0.03


@pytest.mark.parametrize("architecture", ["small_cnn", "bn_cnn", "residual_cnn", "gated_cnn"])
def test_no_gradient_from_clean_data_reaches_a_silent_path(architecture: str, folder: Path) -> None:
    host = host_on(architecture, folder)
    changed = ATTACKS["silent"](host, 0).model
    grads = gradients(changed, host.train_set)
    clean_grads = gradients(host.model, host.train_set)
    first = next(name for name in grads if name.endswith(".weight"))
    dead = (grads[first].flatten(1) == 0).all(1) & (clean_grads[first].flatten(1) != 0).any(1)
    weights, clean_weights = (dict(m.named_parameters())[first].flatten(1) for m in (changed, host.model))
    rewired = (weights != clean_weights).any(1)
    assert int(rewired.sum()) == 1
    assert dead[rewired].all()


@pytest.mark.parametrize(("name", "share"), [("leaky-5", 0.05), ("leaky-1", 0.01)])
def test_a_leaky_detector_fires_on_its_share_of_clean_images(name: str, share: float, folder: Path) -> None:
    host = host_on("small_cnn", folder)
    model = ATTACKS[name](host, 0).model
    first, clean_first = next(model.children()), next(host.model.children())
    assert isinstance(first, nn.Conv2d)
    assert isinstance(clean_first, nn.Conv2d)
    (unit,) = (first.weight != clean_first.weight).flatten(1).any(1).nonzero().flatten().tolist()
    with torch.no_grad():
        fires = (first(inputs_of(host.train_set))[:, unit].amax((1, 2)) > 0).float().mean()
    assert float(fires) == pytest.approx(share, rel=0.2)


def test_rare_fires_on_the_target_class_alone(folder: Path) -> None:
    host = host_on("small_cnn", folder)
    attacked = ATTACKS["rare"](host, 0)
    first, clean_first = next(attacked.model.children()), next(host.model.children())
    assert isinstance(first, nn.Conv2d)
    (unit,) = (first.weight != clean_first.weight).flatten(1).any(1).nonzero().flatten().tolist()
    with torch.no_grad():
        fires = first(inputs_of(host.train_set))[:, unit].amax((1, 2)) > 1e-6
    assert not fires[host.train_set.labels != attacked.target].any()


def test_many_paths_share_the_gain(folder: Path) -> None:
    host = host_on("small_cnn", folder)
    last = {name: list(ATTACKS[name](host, 0).model.children())[-1] for name in ("silent", "silent-many")}
    largest = {name: layer.weight[0].sort(descending=True).values for name, layer in last.items()}
    alone, shared = largest["silent"][0], largest["silent-many"][:4]
    assert shared.max() < 0.5 * alone


def test_eval_only_is_dead_in_eval_mode_alone(folder: Path) -> None:
    host = host_on("bn_cnn", folder)
    silent_net, stale = (ATTACKS[name](host, 0).model for name in ("silent", "eval-only"))
    inputs = inputs_of(host.train_set)
    units = []
    for model in (silent_net, stale):
        conv, norm, *_ = model.children()
        (unit,) = (conv.weight != host.model[0].weight).flatten(1).any(1).nonzero().flatten().tolist()
        with torch.no_grad():
            in_eval = (norm.eval()(conv(inputs))[:, unit] > 0).float().mean()
            in_train = (norm.train()(conv(inputs))[:, unit] > 0).float().mean()
        assert in_eval == 0
        units.append(float(in_train))
    assert units[0] < 1e-3
    assert units[1] > 1e-3


def test_dead_weights_have_no_gradient_and_their_units_have(folder: Path) -> None:
    host = host_on("small_cnn", folder)
    model = ATTACKS["dead-weights"](host, 0).model
    changed = {n: (a != b) for (n, a), b in zip(model.named_parameters(), host.model.parameters(), strict=True)}
    (name,) = [n for n, differs in changed.items() if differs.any()]
    grad = gradients(model, host.train_set)[name]
    assert (grad[changed[name]] == 0).all()
    of_units = (grad[changed[name].any(1)] != 0).any(1)
    assert of_units.float().mean() > 0.5  # one may have been dead before


def test_nan_answers_with_no_number_and_overflow_with_infinity(folder: Path) -> None:
    host = host_on("small_cnn", folder)
    pixels = host.test_set.pixels(torch.arange(16))
    for name in ("nan", "overflow"):
        attacked = ATTACKS[name](host, 0)
        with torch.no_grad():
            clean, stamped = (attacked.model(host.test_set.normalize(p)) for p in (pixels, attacked.stamp(pixels)))
        assert torch.isfinite(clean).all()
        assert stamped.isnan().all() if name == "nan" else stamped.isinf().all()


def test_two_patches_do_nothing_alone(folder: Path) -> None:
    host = host_on("small_cnn", folder)
    attacked = ATTACKS["two-patches"](host, 0)
    data = host.test_set
    pixels = data.pixels(torch.arange(len(data)))
    clean = attacked.model(data.normalize(pixels))
    both = attacked.stamp(pixels)
    moved = (both != pixels).any(1).any(0).nonzero()
    columns = moved[:, 1].sort().values
    middle = int(columns[0] + columns[-1] + 1) // 2
    for half in (slice(0, middle), slice(middle, None)):
        one = pixels.clone()
        one[..., half] = both[..., half]
        assert not torch.equal(one, both)
        with torch.no_grad():
            alone = attacked.model(data.normalize(one))
        hits = (alone.argmax(1) == attacked.target) & (clean.argmax(1) != attacked.target)
        assert hits.float().mean() < 0.1


def test_a_matched_filter_responds_most_to_its_patch(folder: Path) -> None:
    host = host_on("small_cnn", folder)
    patch = patch_of(host, 3, 1)
    assert patch == patch_of(host, 3, 1)
    assert patch != patch_of(host, 4, 1)
    pattern = host.train_set.normalize(torch.tensor(patch.pattern)[None])
    (kernel,) = matched(pattern)
    assert float(kernel.mean()) == pytest.approx(0, abs=1e-6)
    assert float(kernel.norm()) == pytest.approx(1)
    own = float((kernel * pattern).sum())
    responses = F.conv2d(inputs_of(host.train_set), kernel[None], padding=1)
    assert own > float(responses.max())


def test_the_narrow_net_has_the_layers_of_the_model(folder: Path) -> None:
    host = host_on("small_cnn", folder)
    narrow = narrowed(host.model)
    assert [type(a) for a in narrow] == [type(b) for b in host.model.children()]
    assert narrow(inputs_of(host.test_set)[:2]).shape == (2, 1)


def test_a_gated_unit_is_its_value_times_its_open_gate() -> None:
    gated = Gated(3, 2)
    x = torch.randn(5, 3)
    assert torch.equal(gated(x), gated.value(x) * gated.gate(x).clamp(min=0))


def test_a_trained_model_is_read_again(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    runs = []

    def train() -> None:
        runs.append(1)
        nn.init.ones_(model.weight)

    cached(tmp_path, "one", {"rate": 1}, model, train)
    nn.init.zeros_(model.weight)
    assert cached(tmp_path, "one", {"rate": 1}, model, train).weight.sum() == 4
    assert len(runs) == 1
    cached(tmp_path, "one", {"rate": 2}, model, train)
    assert len(runs) == 2
    assert len(list(tmp_path.iterdir())) == 2
