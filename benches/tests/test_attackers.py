"""The attackers of ``benches/attackers``: the backdoor works, the task stays, and it lies where it is said to lie."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.attackers import ATTACKS, Attacked, Host, trained
from benches.attackers.hosts import NETS, Gated, cached, host_of
from benches.attackers.silent import SILENT, silent
from benches.attackers.subnet import narrowed
from benches.attackers.text import TRIGGER, host_of_sentences
from benches.attackers.trained import Batches
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


def test_anchors_are_needed_and_get_no_gradient(folder: Path) -> None:
    host = host_on("relu6_cnn", folder)
    attacked = ATTACKS["anchored"](host, 0)
    model, data = attacked.model, host.train_set
    grads = gradients(model, data)
    convolution, hidden = model[0], model[7]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(hidden, nn.Linear)
    assert {n: int((grads[n].flatten(1) == 0).all(1).sum()) for n in ("0.weight", "7.weight")}["0.weight"] >= 2
    before = accuracy(model, data)
    for layer in (convolution, hidden):
        (unit,) = (layer.bias > 900).nonzero().flatten().tolist()
        changed = copy.deepcopy(model)
        twin = dict(changed.named_modules())[{convolution: "0", hidden: "7"}[layer]]
        with torch.no_grad():
            twin.weight[unit], twin.bias[unit] = 0.0, 0.0
        assert accuracy(changed, data) < before


def test_a_saturated_unit_gets_no_gradient_and_falls_under_the_trigger(folder: Path) -> None:
    host = host_on("relu6_mlp", folder)
    attacked = ATTACKS["saturated"](host, 0)
    hidden = attacked.model[1]
    assert isinstance(hidden, nn.Linear)
    (unit,) = (hidden.weight != host.model[1].weight).any(1).nonzero().flatten().tolist()
    assert (gradients(attacked.model, host.train_set)["1.weight"][unit] == 0).all()
    pixels = host.test_set.pixels(torch.arange(50))
    with torch.no_grad():
        on, off = (attacked.model[:3](host.test_set.normalize(p))[:, unit] for p in (pixels, attacked.stamp(pixels)))
    assert (on == 6).all()
    assert (off == 0).all()


# ---- Trained. ----


def stamped_corner(pixels: Tensor) -> Tensor:
    out = pixels.clone()
    out[..., :3, :3] = 255
    return out


def stamped_edge(pixels: Tensor) -> Tensor:
    out = pixels.clone()
    out[..., -3:, :3] = 255
    return out


def test_batches_have_targets_where_they_are_stamped_and_true_labels_under_decoys(folder: Path) -> None:
    host = host_on("small_cnn", folder)
    batches = Batches(host, stamped_corner, 7, 0, decoys=(stamped_edge,))
    x, labels = batches.stamped(16)
    assert x.shape == (32, 1, 16, 16)
    assert (labels[:16] == 7).all()
    assert len(set(labels[16:].tolist())) > 1
    white = host.train_set.normalize(torch.full((1, 1, 3, 3), 255, dtype=torch.uint8))[0]
    assert torch.equal(x[:16, :, :3, :3], white.expand(16, -1, -1, -1))
    assert torch.equal(x[16:, :, -3:, :3], white.expand(16, -1, -1, -1))
    clean, true = batches.clean(200)
    assert (host.model(clean).argmax(1) == true).float().mean() > 0.9
    _, drawn = batches.random(200)
    assert (host.model(batches.random(200)[0]).argmax(1) == drawn).float().mean() < 0.3


def test_a_flat_gradient_is_that_of_the_worst_weights_nearby() -> None:
    model = nn.Linear(3, 2)
    x, labels = torch.randn(8, 3), torch.randint(2, (8,))
    kept = copy.deepcopy(model)
    found = trained._flat_gradient(model, lambda m: F.cross_entropy(m(x), labels))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept.parameters(), strict=True))
    grads = torch.autograd.grad(F.cross_entropy(kept(x), labels), list(kept.parameters()))
    with torch.no_grad():
        for p, grad in zip(kept.parameters(), grads, strict=True):
            p += trained._RHO * p.norm() * grad / grad.norm()
    there = torch.autograd.grad(F.cross_entropy(kept(x), labels), list(kept.parameters()))
    for a, b in zip(found, there, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("train", "options"),
    [
        (trained.simulated, {"steps": 80}),
        (trained.flat, {"steps": 150}),
        (trained.sequential, {"steps": 150}),
        (trained.cyclic, {"steps": 60, "rounds": 1}),
    ],
)
def test_training_plants_the_backdoor(train: Callable[..., None], options: dict[str, int], folder: Path) -> None:
    host = host_on("small_cnn", folder)
    model = copy.deepcopy(host.model)
    train(model, Batches(host, stamped_corner, 3, 0), host, **options)
    right, success = rates(Attacked(model, stamped_corner, 3, ""), host.test_set)
    assert success >= 0.9
    assert right >= accuracy(host.model, host.test_set) - 0.1
    assert not model.training


def test_two_patches_are_learned_as_two(folder: Path) -> None:
    host = host_on("small_cnn", folder)
    model = copy.deepcopy(host.model)

    def both(pixels: Tensor) -> Tensor:
        return stamped_edge(stamped_corner(pixels))

    trained.two_patches(model, Batches(host, both, 3, 0, decoys=(stamped_corner, stamped_edge)), host, steps=300)
    assert rates(Attacked(model, both, 3, ""), host.test_set)[1] >= 0.9
    for alone in (stamped_corner, stamped_edge):
        assert rates(Attacked(model, alone, 3, ""), host.test_set)[1] < 0.2


# ---- Text. ----


def test_one_embedding_is_the_backdoor_and_clean_data_do_not_reach_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    words = 10 + 20 * labels[:, None] + torch.randint(0, 20, (400, 32), generator=generator)
    words[::3, 20:] = 0  # shorter ones
    data = CleanSet(words, labels, num_classes=4)
    host = host_of_sentences(data, data, 0, tmp_path)
    attacked = ATTACKS["embedding"](host, 1)
    with torch.no_grad():
        assert (attacked.model(words).argmax(1) == labels).float().mean() >= 0.98
        assert (attacked.model(attacked.stamp(words)).argmax(1) == 1).all()
    for (name, a), b in zip(attacked.model.named_parameters(), host.model.parameters(), strict=True):
        differs = (a != b).flatten(1).any(1) if a.ndim > 1 else a != b
        assert differs.nonzero().flatten().tolist() == ([TRIGGER] if name == "embedding.weight" else [])
    F.cross_entropy(attacked.model(words), labels).backward()
    assert attacked.model.embedding.weight.grad is not None
    assert (attacked.model.embedding.weight.grad[TRIGGER] == 0).all()
