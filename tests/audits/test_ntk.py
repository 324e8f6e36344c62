"""``seamfast.audits.ntk`` against dense algebra on whole Jacobians and against training; what it takes and refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from live_bytes import Live
from refusals import raises
from small_networks import CLASSES, NETWORKS, N, Residual, images, jacobian, network, off, tokens
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.audits import kernel_space, ntk
from seamfast.audits.ntk_subject import Differentiated
from seamfast.engine import memory, tangent
from seamfast.errors import ConfigError, InputError, ModelError

M = 4
"""Samples of the probes."""


@pytest.fixture
def residual() -> nn.Module:
    return Residual().double()


@pytest.fixture
def linear() -> nn.Module:
    """The NTK of its weight is ``(x @ x.T) (x) eye``, whatever it is."""
    return nn.Linear(4, CLASSES, bias=False).double()


def vectors(n: int = N) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64)


def logits_of(model: nn.Module, inputs: Any) -> Tensor:
    was = model.training
    model.eval()
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    model.train(was)
    return output if isinstance(output, Tensor) else output.logits


# ---- Products ----


@pytest.mark.parametrize("batch_size", [64, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_products_and_the_matrix_are_those_of_the_whole_jacobian(name: str, batch_size: int) -> None:
    model, samples = network(name)  # in train mode, some with dropout
    inputs, others = samples(), samples(M)
    here, there = jacobian(model, inputs), jacobian(model, others)
    v = torch.randn(N, CLASSES, dtype=torch.float64)
    found = ntk.ntk_vector_product(model, inputs, v, batch_size=batch_size)
    assert found.shape == (N, CLASSES)
    assert not found.requires_grad
    assert off(found.flatten(), here @ (here.T @ v.flatten())) < 1e-10
    across = ntk.ntk_vector_product(model, inputs, v, others=others, batch_size=batch_size)
    assert off(across.flatten(), there @ (here.T @ v.flatten())) < 1e-10
    assert off(ntk.ntk_matrix(model, inputs, batch_size=batch_size), here @ here.T) < 1e-10
    assert off(ntk.ntk_matrix(model, inputs, others, batch_size=batch_size), here @ there.T) < 1e-10
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_the_matrix_is_the_same_in_blocks(residual: nn.Module, rows: int) -> None:
    """Four and seven rows are no whole samples."""
    inputs, others = images(), images(M)
    n_bytes = 2 * 8 * rows * sum(p.numel() for p in residual.parameters())
    here, there = jacobian(residual, inputs), jacobian(residual, others)
    assert off(ntk.ntk_matrix(residual, inputs, max_bytes=n_bytes), here @ here.T) < 1e-12
    assert off(ntk.ntk_matrix(residual, inputs, others, max_bytes=n_bytes), here @ there.T) < 1e-12


def test_named_parameters_alone_have_a_kernel(residual: nn.Module) -> None:
    inputs, v = images(), torch.randn(N, CLASSES, dtype=torch.float64)
    part = jacobian(residual, inputs, {"head.weight", "head.bias"})
    found = ntk.ntk_vector_product(residual, inputs, v, trainable=["head.*"])
    assert off(found.flatten(), part @ (part.T @ v.flatten())) < 1e-12
    assert off(ntk.ntk_matrix(residual, inputs, trainable=["head.*"]), part @ part.T) < 1e-12
    for p in residual.block.parameters():
        p.requires_grad_(False)
    rest = jacobian(residual, inputs, {name for name, p in residual.named_parameters() if p.requires_grad})
    assert off(ntk.ntk_matrix(residual, inputs, trainable="as_given"), rest @ rest.T) < 1e-12
    whole = jacobian(residual, inputs)
    assert off(ntk.ntk_matrix(residual, inputs), whole @ whole.T) < 1e-12


@pytest.mark.parametrize(
    ("dtype", "computed", "most"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.float32, 1e-5),
    ],
)
def test_models_of_few_bits_are_computed_in_float32(dtype: torch.dtype, computed: torch.dtype, most: float) -> None:
    model = Residual().to(dtype)
    same = copy.deepcopy(model).double()
    inputs, v = images().to(dtype), torch.randn(N, CLASSES)
    found = ntk.ntk_vector_product(model, inputs, v)
    assert found.dtype == computed
    whole = jacobian(same, inputs.double())
    assert off(found.double().flatten(), whole @ (whole.T @ v.double().flatten())) < most
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_samples_are_as_given_or_as_a_clean_set_has_them(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    """Pixels are normalized; tensors are taken as they are."""
    model, some = tiny_model(), tiny_data.subset(range(12))
    v = torch.randn(12, 4)
    as_floats = tiny_data.normalize(tiny_data.pixels(torch.arange(12)))
    wanted = ntk.ntk_vector_product(model, as_floats, v)
    assert off(ntk.ntk_vector_product(model, some, v, batch_size=5), wanted) < 1e-5
    assert off(ntk.ntk_vector_product(model, {"input": as_floats}, v), wanted) < 1e-5


def test_inputs_and_weights_may_require_grad(residual: nn.Module) -> None:
    inputs, v = images().requires_grad_(), torch.randn(N, CLASSES).double().requires_grad_()
    assert not ntk.ntk_vector_product(residual, inputs, v).requires_grad
    assert not ntk.ntk_matrix(residual, inputs).requires_grad


# ---- Drift ----


def dense_drift(
    model: nn.Module, train: Any, targets: Tensor, probe: Any, respond: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``K_ST @ respond(K_TT, residual)``, ``(M, C)``."""
    here, there = jacobian(model, train), jacobian(model, probe)
    residual = (targets - logits_of(model, train)).flatten()
    return (there @ (here.T @ respond(here @ here.T, residual))).view(-1, CLASSES)


def largest(model: nn.Module, inputs: Any) -> float:
    here = jacobian(model, inputs)
    return float(torch.linalg.eigvalsh(here @ here.T)[-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_drift_is_that_of_the_direct_solution(name: str) -> None:
    model, samples = network(name)
    train, probe, targets = samples(), samples(M), torch.randn(N, CLASSES, dtype=torch.float64)

    def solved(ridge: float) -> Tensor:
        return dense_drift(
            model, train, targets, probe, lambda k, r: torch.linalg.solve(k + ridge * torch.eye(len(k)), r)
        )

    found = ntk.drift(model, train, targets, probe, ridge=0.01, tolerance=1e-10)
    assert off(found.change, solved(0.01)) < 1e-7
    assert (found.ridge, found.rate, found.steps) == (0.01, None, None)
    assert found.residual <= 1e-10
    assert 0 < found.n_products <= N * CLASSES
    assert found.largest_eigenvalue == pytest.approx(largest(model, train), rel=1e-3)
    assert off(found.logits, logits_of(model, probe)) < 1e-12
    in_batches = ntk.drift(model, train, targets, probe, ridge=0.01, tolerance=1e-10, batch_size=2)
    assert off(in_batches.change, solved(0.01)) < 1e-7

    by_default = ntk.drift(model, train, targets, probe, tolerance=1e-10)
    here = jacobian(model, train)
    mean = float((here @ here.T).diagonal().mean())
    assert 0.3e-3 * mean < by_default.ridge < 3e-3 * mean
    assert off(by_default.change, solved(by_default.ridge)) < 1e-7


def test_the_default_tolerance_is_good_to_a_percent(residual: nn.Module) -> None:
    train, probe, targets = images(12), images(6), torch.randint(CLASSES, (12,))
    wanted = ntk.drift(residual, train, targets, probe, tolerance=1e-12)
    found = ntk.drift(residual, train, targets, probe)
    assert found.n_products < wanted.n_products
    assert found.residual <= 0.01
    assert found.forgetting == pytest.approx(wanted.forgetting, rel=0.01)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_ridge_is_a_function_of_the_seed(residual: nn.Module, seed: int) -> None:
    arguments = (residual, images(), torch.arange(N) % CLASSES, images(M))
    ridges = [ntk.drift(*arguments, seed=one).ridge for one in (seed, seed, seed + 1)]
    assert ridges[0] == ridges[1] != ridges[2]


def test_without_a_ridge_the_drift_is_of_least_squares() -> None:
    """Of a kernel of rank 4 for 8 samples, whose labels no weights can all give."""
    for dtype in (torch.float64, torch.float32):
        model = nn.Linear(4, CLASSES, bias=False).to(dtype)
        train, probe, targets = vectors(8).to(dtype), vectors(M).to(dtype), torch.randn(8, CLASSES)
        found = ntk.drift(model, train, targets, probe, ridge=0, tolerance=1e-9)
        best = torch.linalg.pinv(train.double()) @ targets.double()
        wanted = probe.double() @ best - logits_of(model, probe).double()
        assert off(found.change, wanted) < (1e-10 if dtype == torch.float64 else 1e-3)
        assert found.ridge == 0


def descended(model: nn.Module, train: Any, targets: Tensor, probe: Any, steps: int, rate: float) -> Tensor:
    """By autograd alone: what gradient descent on half the squared error makes of the logits."""
    before, model = logits_of(model, probe), copy.deepcopy(model).eval()
    for _ in range(steps):
        model.zero_grad()
        output = model(**train) if isinstance(train, dict) else model(train)
        output = output if isinstance(output, Tensor) else output.logits
        (0.5 * (targets - output).square().sum()).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
    return logits_of(model, probe) - before


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("name", NETWORKS)
def test_drift_of_small_steps_is_that_of_training(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    model, samples = network(name)
    train, probe = samples(), samples(M)
    # Near the weights: the logits are linear in them where targets are near to the logits.
    targets = logits_of(model, train) + 1e-3 * torch.randn(N, CLASSES, dtype=torch.float64)
    rate = 0.5 / largest(model, train)
    found = ntk.drift(model, train, targets, probe, steps=steps, rate=rate)
    trained = ntk.trained_drift(model, train, targets, probe, steps=steps, rate=rate)
    assert off(trained, descended(model, train, targets, probe, steps, rate)) < 1e-8
    assert off(ntk.trained_drift(model, train, targets, probe, steps=steps, rate=rate, batch_size=2), trained) < 1e-8
    assert off(found.change, trained) < 0.05
    assert (found.steps, found.rate, found.ridge) == (steps, rate, 0.0)

    def respond(kernel: Tensor, residual: Tensor) -> Tensor:
        total = torch.zeros_like(residual)
        for _ in range(steps):
            total = total + rate * (residual - kernel @ total)
        return total

    assert off(found.change, dense_drift(model, train, targets, probe, respond)) < 0.02


def test_a_step_is_at_one_over_the_largest_eigenvalue_by_default(residual: nn.Module) -> None:
    train, targets = images(), torch.arange(N) % CLASSES
    found = ntk.drift(residual, train, targets, images(M), steps=3, tolerance=1e-9)
    assert found.rate == pytest.approx(1 / largest(residual, train), rel=1e-3)


def test_many_steps_are_training_to_the_end(linear: nn.Module) -> None:
    train, probe, targets = vectors(3), vectors(M), torch.randn(3, CLASSES, dtype=torch.float64)
    at_end = ntk.drift(linear, train, targets, probe, ridge=0, tolerance=1e-10)
    late = ntk.drift(linear, train, targets, probe, steps=1_000_000, tolerance=1e-10)
    assert off(late.change, at_end.change) < 1e-6


def test_labels_stand_for_centered_rows(residual: nn.Module) -> None:
    train, probe, labels = images(), images(M), torch.arange(N) % CLASSES
    rows = F.one_hot(labels, CLASSES).double() - 1 / CLASSES
    wanted = ntk.drift(residual, train, rows, probe)
    for given in (labels, labels.to(torch.uint8), labels.int()):
        assert torch.equal(ntk.drift(residual, train, given, probe).change, wanted.change)
    assert torch.equal(
        ntk.trained_drift(residual, train, labels, probe, steps=1, rate=0.01),
        ntk.trained_drift(residual, train, rows, probe, steps=1, rate=0.01),
    )


def test_what_is_learnt_already_does_not_drift(residual: nn.Module) -> None:
    train = images()
    for options in ({}, {"ridge": 0.0}, {"steps": 2}):
        found = ntk.drift(residual, train, logits_of(residual, train), images(M), **options)
        assert found.change.abs().max() < 1e-12
        assert found.residual < 1e-12
        assert found.largest_eigenvalue > 0
        assert found.share_of_answers_changed == 0


def test_too_few_products_are_told_by_the_residual(residual: nn.Module) -> None:
    arguments = (residual, images(12), torch.randint(CLASSES, (12,)), images(M))
    few, more = (ntk.drift(*arguments, ridge=1e-4, max_products=n) for n in (2, 36))
    assert (few.n_products, few.residual > 0.01) == (2, True)
    assert more.residual <= 0.01


def test_figures_of_a_drift_are_those_of_its_change() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]).double()
    change = torch.tensor([[0.0, 2.0], [0.0, 3.0], [0.0, 1.0]]).double()
    found = ntk.Drift(change, logits, 0.1, None, None, 1.0, 1, 0.0)
    assert found.forgetting == 14
    assert found.share_of_answers_changed == pytest.approx(1 / 3)


def test_drift_of_named_parameters_is_of_them_alone(residual: nn.Module) -> None:
    train, probe, targets = images(), images(M), torch.randn(N, CLASSES, dtype=torch.float64)
    options = {"steps": 2, "rate": 0.01}
    found = ntk.drift(residual, train, targets, probe, trainable=["head.*"], **options)
    trained = ntk.trained_drift(residual, train, targets, probe, trainable=["head.*"], **options)
    assert off(found.change, trained) < 1e-6  # the logits are linear in them
    assert off(found.change, ntk.trained_drift(residual, train, targets, probe, **options)) > 0.1


# ---- Labels ----


def test_targets_of_true_labels_are_the_best_fit_to_the_logits() -> None:
    logits, labels = torch.randn(50, 4) + 3, torch.randint(4, (50,))
    logits[torch.arange(50), labels] += 2
    found = ntk.label_targets(logits, labels, "true")
    mean = logits.double().mean(1, keepdim=True)
    rows = F.one_hot(labels, 4).double() - 0.25
    best = torch.linalg.lstsq(rows.flatten()[:, None], (logits.double() - mean).flatten()[:, None]).solution
    torch.testing.assert_close(found, mean + best * rows)
    torch.testing.assert_close(found.mean(1, keepdim=True), mean)
    assert found.dtype == torch.float64


@pytest.mark.parametrize("scheme", ntk.SCHEMES)
def test_labels_are_drawn_as_the_scheme_says(scheme: str) -> None:
    n, labels = 4000, torch.arange(4000) % 4
    logits = torch.zeros(n, 4)
    found = ntk.label_targets(logits, labels, scheme, seed=3, scale=2.0)
    assert torch.equal(found, ntk.label_targets(logits, labels, scheme, seed=3, scale=2.0))
    torch.testing.assert_close(found.mean(1), torch.zeros(n).double())
    if scheme == "max_entropy":
        assert not found.any()
        return
    torch.testing.assert_close(found.max(1).values, torch.full((n,), 1.5).double())
    torch.testing.assert_close(found.min(1).values, torch.full((n,), -0.5).double())
    moved = torch.bincount((found.argmax(1) - labels) % 4, minlength=4) / n
    wanted = {"true": [1, 0, 0, 0], "wrong": [0, 1 / 3, 1 / 3, 1 / 3], "uniform": [0.25] * 4}[scheme]
    assert torch.allclose(moved, torch.tensor(wanted, dtype=torch.float32), atol=0.03)
    differs = not torch.equal(found, ntk.label_targets(logits, labels, scheme, seed=4, scale=2.0))
    assert differs == (scheme != "true")


def test_the_scale_of_targets_is_at_least_a_thousandth() -> None:
    logits = torch.tensor([[-5.0, 5.0]])
    found = ntk.label_targets(logits, torch.tensor([0]), "true")
    torch.testing.assert_close(found, torch.tensor([[0.0005, -0.0005]]).double())


# ---- Forgetting ----


@pytest.fixture
def parts(tiny_data: CleanSet) -> tuple[CleanSet, CleanSet]:
    return tiny_data.subset(range(12)), tiny_data.subset(range(100, 110))


def test_forgetting_is_the_drift_of_each_scheme(
    tiny_model: Callable[[], nn.Module], parts: tuple[CleanSet, CleanSet]
) -> None:
    model, (train, probe) = tiny_model().double(), parts
    inverted = 1 - tensors(probe)
    probes = {"clean": probe, "inverted": inverted}
    found = ntk.forgetting(model, train, probes, steps=(1, 20), tolerance=1e-9, seed=5)
    assert list(found.schemes) == list(ntk.SCHEMES)
    assert found.n_train == 12
    logits = logits_of(model, tensors(train))
    for scheme, by_probe in found.schemes.items():
        targets = ntk.label_targets(logits, train.labels, scheme, seed=5)
        for name, samples in {"clean": tensors(probe), "inverted": inverted}.items():
            alone = ntk.drift(model, tensors(train), targets, samples, ridge=found.ridge, tolerance=1e-9)
            one = by_probe[name]
            assert off(one.drifts[0].change, alone.change) < 1e-4
            assert one.to_the_end == pytest.approx(alone.forgetting / 10, rel=1e-3)
            assert one.share_of_answers_changed == pytest.approx(alone.share_of_answers_changed)
            centered = alone.logits - alone.logits.mean(1, keepdim=True)
            assert one.share == pytest.approx(one.to_the_end / float(centered.square().sum(1).mean()), rel=1e-3)
            assert list(one.by_steps) == [1, 20]
        early = ntk.drift(model, tensors(train), targets, inverted, steps=20, rate=found.rate, tolerance=1e-9)
        assert by_probe["inverted"].by_steps[20] == pytest.approx(early.forgetting / 10, rel=1e-3)
    assert found.rate == pytest.approx(1 / found.largest_eigenvalue)
    assert found.residual <= 1e-9


def tensors(samples: CleanSet) -> Tensor:
    """As the model takes them."""
    return samples.normalize(samples.pixels(torch.arange(len(samples)))).double()


def test_forgetting_is_the_same_in_batches(
    tiny_model: Callable[[], nn.Module], parts: tuple[CleanSet, CleanSet]
) -> None:
    model = tiny_model().double()
    one, several = (ntk.forgetting(model, *parts, tolerance=1e-9, batch_size=size) for size in (64, 5))
    for scheme in ntk.SCHEMES:
        assert several.schemes[scheme]["probes"].to_the_end == pytest.approx(
            one.schemes[scheme]["probes"].to_the_end, rel=1e-4
        )


def test_only_random_labels_are_drawn_several_times(
    tiny_model: Callable[[], nn.Module], parts: tuple[CleanSet, CleanSet]
) -> None:
    found = ntk.forgetting(tiny_model(), *parts, n_draws=3, steps=(2,))
    n_draws = {scheme: len(by_probe["probes"].drifts) for scheme, by_probe in found.schemes.items()}
    assert n_draws == {"true": 1, "wrong": 3, "uniform": 3, "max_entropy": 1}
    wrong = found.schemes["wrong"]["probes"]
    sizes = [one.forgetting / 10 for one in wrong.drifts]
    assert wrong.to_the_end == pytest.approx(sum(sizes) / 3)
    assert len({round(size, 6) for size in sizes}) == 3
    assert list(wrong.by_steps) == [2]


def test_schemes_are_those_asked_for(tiny_model: Callable[[], nn.Module], parts: tuple[CleanSet, CleanSet]) -> None:
    found = ntk.forgetting(tiny_model(), *parts, schemes=("uniform", "true"), steps=())
    assert list(found.schemes) == ["uniform", "true"]
    assert found.schemes["uniform"]["probes"].by_steps == {}


def test_larger_targets_are_forgotten_for_more(
    tiny_model: Callable[[], nn.Module], parts: tuple[CleanSet, CleanSet]
) -> None:
    small, large = (
        ntk.forgetting(tiny_model(), *parts, schemes=("wrong",), scale=scale).schemes["wrong"]["probes"].to_the_end
        for scale in (1.0, 30.0)
    )
    assert large > small


@pytest.mark.parametrize("bias", [True, False])
def test_the_kernel_of_the_last_layer_is_that_of_its_inputs(
    tiny_model: Callable[[], nn.Module], parts: tuple[CleanSet, CleanSet], bias: bool
) -> None:
    model, (train, probe) = tiny_model().double(), parts
    if not bias:
        model[9].bias = None  # type: ignore[index, union-attr]
    with torch.no_grad():
        h, g = (model[:9](tensors(part)) for part in (train, probe))  # type: ignore[index]
    here, there = (torch.kron(one @ h.T + float(bias), torch.eye(4)) for one in (h, g))
    found = ntk.forgetting(model, train, probe, kernel="last_layer", schemes=("wrong", "max_entropy"))
    assert (found.n_products, found.residual) == (0, 0.0)
    assert found.ridge == pytest.approx(1e-3 * float(here.diagonal().mean()))
    assert found.largest_eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(here)[-1]))
    logits = logits_of(model, tensors(train))
    for scheme in ("wrong", "max_entropy"):
        residual = (ntk.label_targets(logits, train.labels, scheme) - logits).flatten()
        wanted = there @ torch.linalg.solve(here + found.ridge * torch.eye(48), residual)
        one = found.schemes[scheme]["probes"]
        assert off(one.drifts[0].change.flatten(), wanted) < 1e-8
        step = there @ residual * found.rate
        assert one.by_steps[1] == pytest.approx(float(step.square().sum()) / 10)
    # The same as that of all parameters, where those are the ones of the last layer.
    whole = ntk.forgetting(model, train, probe, trainable=["9.*"], ridge=found.ridge, tolerance=1e-10)
    assert whole.schemes["wrong"]["probes"].to_the_end == pytest.approx(
        found.schemes["wrong"]["probes"].to_the_end, rel=1e-5
    )


def test_forgetting_of_texts() -> None:
    """Named tensors: a mapping with a name of the model's parameters is one set of samples."""
    model, _ = network("attention")
    given = tokens(8)
    train = CleanSet(given, torch.arange(8) % CLASSES, num_classes=CLASSES)
    probe = tokens(M)
    one = ntk.forgetting(model, train, probe, schemes=("wrong",))
    named = ntk.forgetting(
        model, train, {"clean": probe, "same": CleanSet(probe, torch.zeros(M).long())}, schemes=("wrong",)
    )
    assert list(one.schemes["wrong"]) == ["probes"]
    assert list(named.schemes["wrong"]) == ["clean", "same"]
    values = [*one.schemes["wrong"].values(), *named.schemes["wrong"].values()]
    assert values[0].to_the_end > 0
    assert [value.to_the_end for value in values] == pytest.approx([values[0].to_the_end] * 3, rel=1e-6)
    targets = ntk.label_targets(logits_of(model, given), train.labels, "wrong")
    alone = ntk.drift(model, given, targets, probe, ridge=one.ridge)
    assert values[0].to_the_end == pytest.approx(alone.forgetting / M, rel=0.01)
    head = ntk.forgetting(model, train, probe, kernel="last_layer", schemes=("wrong",))
    assert head.schemes["wrong"]["probes"].to_the_end > 0


def test_forgetting_of_a_text_classifier_of_words() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "dull", "fine", "film", "long"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    texts = ["a dull film", "fine", "a long dull film a long film", "a fine film", "long", "dull fine"]
    data = CleanSet.from_texts(texts, [0, 1, 0, 1, 2, 2], tokenizer)
    model, _ = network("attention")
    in_one, in_three = (ntk.forgetting(model, data, data, batch_size=size, tolerance=1e-9) for size in (6, 2))
    for scheme in ntk.SCHEMES:
        figures = [found.schemes[scheme]["probes"].to_the_end for found in (in_one, in_three)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-5)
        assert math.isfinite(figures[0])


# ---- Overlap ----


def dense_overlap(model: nn.Module, inputs: Any, others: Any) -> tuple[Tensor, float]:
    """Cosines, and the share of the squared size of the rows of ``others`` in the span of those of ``inputs``."""
    here, there = jacobian(model, inputs), jacobian(model, others)
    left, right = (torch.linalg.qr(one.T).Q for one in (here, there))
    inside = (there @ left).square().sum() / there.square().sum()
    return torch.linalg.svdvals(left.T @ right), float(inside)


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_overlap_of_all_directions_is_that_of_the_row_spaces(name: str) -> None:
    model, samples = network(name)
    inputs, others = samples(), samples(M)
    found = ntk.overlap(model, inputs, others, rank=N * CLASSES)
    cosines, shared = dense_overlap(model, inputs, others)
    assert found.is_whole
    assert found.rank == M * CLASSES
    torch.testing.assert_close(torch.tensor(found.cosines).double(), cosines, rtol=0, atol=1e-6)
    assert found.shared == pytest.approx(shared, abs=1e-6)
    in_batches = ntk.overlap(model, inputs, others, rank=N * CLASSES, batch_size=2)
    assert in_batches.shared == pytest.approx(found.shared, abs=1e-9)


def test_overlap_of_a_few_directions_is_of_the_leading_ones(residual: nn.Module) -> None:
    inputs = images(12)
    with_itself = ntk.overlap(residual, inputs, inputs, rank=6)
    other = ntk.overlap(residual, inputs, images(12), rank=6)
    assert (with_itself.rank, with_itself.is_whole) == (6, False)
    for found in (with_itself, other):
        assert len(found.cosines) == 6
        assert all(0 <= cosine <= 1 for cosine in found.cosines)
        assert list(found.cosines) == sorted(found.cosines, reverse=True)
        assert 0 <= found.shared <= 1
    assert with_itself.cosines[0] > 0.999
    assert with_itself.shared > other.shared
    assert ntk.overlap(residual, inputs, inputs, rank=36).shared == pytest.approx(1, abs=1e-6)
    same, another = (ntk.overlap(residual, inputs, inputs, rank=6, seed=seed) for seed in (0, 1))
    assert same.to_dict() == with_itself.to_dict() != another.to_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_directions_that_are_rounding_errors_have_no_cosine(dtype: torch.dtype) -> None:
    """Eight samples in a plane, and eight in another that meets it in a line: gradients of rank two."""
    model = nn.Linear(4, CLASSES, bias=False).to(dtype)
    inputs, others = torch.zeros(8, 4, dtype=dtype), torch.zeros(8, 4, dtype=dtype)
    inputs[:, [0, 1]], others[:, [1, 2]] = torch.randn(8, 2, dtype=dtype), torch.randn(8, 2, dtype=dtype)
    found = ntk.overlap(model, inputs, others, rank=24)
    assert found.cosines == pytest.approx([1, 1, 1, 0, 0, 0], abs=1e-3)
    wanted = float(others[:, 1].square().sum() / others.square().sum())
    assert found.shared == pytest.approx(wanted, rel=1e-3)
    assert found.to_dict() == {"cosines": list(found.cosines), "shared": found.shared, "rank": 24, "is_whole": True}


# ---- What is left alone ----


def test_no_function_changes_the_model() -> None:
    model = Residual().train()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(CLASSES)
    data = CleanSet(torch.rand(8, 1, 4, 4), torch.arange(8) % CLASSES)
    inputs, targets = torch.rand(8, 1, 4, 4), torch.arange(8) % CLASSES
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    ntk.ntk_vector_product(model, inputs, torch.ones(8, CLASSES))
    ntk.ntk_matrix(model, inputs)
    ntk.drift(model, inputs, targets, inputs)
    ntk.trained_drift(model, inputs, targets, inputs, steps=2, rate=0.1)
    ntk.forgetting(model, data, data)
    ntk.forgetting(model, data, data, kernel="last_layer")
    ntk.overlap(model, inputs, inputs, rank=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.bias"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_progress_is_shown_where_asked_for(linear: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = vectors()
    calls: list[Callable[[bool], object]] = [
        lambda shown: ntk.ntk_matrix(linear, inputs, progress=shown),
        lambda shown: ntk.drift(linear, inputs, torch.arange(N) % CLASSES, inputs, progress=shown),
        lambda shown: ntk.trained_drift(
            linear, inputs, torch.arange(N) % CLASSES, inputs, steps=1, rate=0.1, progress=shown
        ),
        lambda shown: ntk.overlap(linear, inputs, inputs, rank=2, progress=shown),
    ]
    for call, name in zip(calls, ("kernel", "drift", "train", "overlap"), strict=True):
        call(False)
        assert capsys.readouterr().err == ""
        call(True)
        assert name in capsys.readouterr().err


# ---- What is refused ----


X = torch.zeros(N, 4).double() + torch.arange(4)
Y = torch.arange(N) % CLASSES
V = torch.ones(N, CLASSES).double()
NAN = torch.full((N, CLASSES), math.nan)

REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "no module": (
        lambda m: ntk.ntk_vector_product({}, X, V),  # type: ignore[arg-type]
        InputError,
        "model is a dict; expected a torch.nn.Module",
    ),
    "no module to train": (
        lambda m: ntk.trained_drift("x", X, Y, X, steps=1, rate=0.1),  # type: ignore[arg-type]
        InputError,
        "model is a str; expected a torch.nn.Module",
    ),
    "v of wrong shape": (
        lambda m: ntk.ntk_vector_product(m, X, V[:, :2]),
        InputError,
        "v is float64 of shape (5, 2); expected floats of shape (5, 3)",
    ),
    "v of integers": (
        lambda m: ntk.ntk_vector_product(m, X, V.long()),
        InputError,
        "v is int64 of shape (5, 3); expected floats of shape (5, 3)",
    ),
    "v no tensor": (
        lambda m: ntk.ntk_vector_product(m, X, [1.0, 2.0]),  # type: ignore[arg-type]
        InputError,
        "v is a list of length 2; expected floats of shape (5, 3)",
    ),
    "v not finite": (
        lambda m: ntk.ntk_vector_product(m, X, NAN),
        InputError,
        "v holds NaN or Inf; expected finite numbers",
    ),
    "pixels": (
        lambda m: ntk.ntk_vector_product(m, X.to(torch.uint8), V),
        InputError,
        "inputs are uint8; expected floats as the model takes them, or a seamfast.CleanSet",
    ),
    "pixels of others": (
        lambda m: ntk.overlap(m, X, X.to(torch.uint8)),
        InputError,
        "others are uint8; expected floats as the model takes them, or a seamfast.CleanSet",
    ),
    "no samples": (
        lambda m: ntk.ntk_matrix(m, X[:0]),
        InputError,
        "inputs hold no samples; expected at least one",
    ),
    "no tensors": (
        lambda m: ntk.ntk_matrix(m, {}),
        InputError,
        "inputs hold {}; expected tensors of one number of samples",
    ),
    "a number": (
        lambda m: ntk.ntk_matrix(m, torch.tensor(1.0)),
        InputError,
        "inputs hold tensor(1.); expected tensors of one number of samples",
    ),
    "lists": (
        lambda m: ntk.ntk_matrix(m, {"x": [1, 2]}),
        InputError,
        "inputs hold {'x': [1, 2]}; expected tensors of one number of samples",
    ),
    "an array": (
        lambda m: ntk.drift(m, X.numpy(), Y, X),
        InputError,
        "train_inputs is a ndarray; expected a tensor, a mapping of tensors, or a seamfast.CleanSet",
    ),
    "probes of a list": (
        lambda m: ntk.forgetting(m, CleanSet(X, Y), [X]),
        InputError,
        "probes['probes'] is a list; expected a tensor, a mapping of tensors, or a seamfast.CleanSet",
    ),
    "no probes": (
        lambda m: ntk.forgetting(m, CleanSet(X, Y), {}),
        InputError,
        "probes are empty; expected at least one set of samples",
    ),
    "a batch of none": (
        lambda m: ntk.ntk_matrix(m, X, batch_size=0),
        InputError,
        "batch_size is 0; expected an integer of at least 1",
    ),
    "no bytes": (
        lambda m: ntk.ntk_matrix(m, X, max_bytes=0),
        InputError,
        "max_bytes is 0; expected an integer of at least 1",
    ),
    "an unknown device": (
        lambda m: ntk.ntk_matrix(m, X, device="gpu"),
        InputError,
        "device is 'gpu'; expected 'auto' or a torch device such as 'cpu' or 'cuda:0'",
    ),
    "a device without weights": (
        lambda m: ntk.ntk_matrix(m, X, device="meta"),
        InputError,
        "device is 'meta', which holds no weights; expected 'auto' or 'cpu'",
    ),
    "unknown parameters": (
        lambda m: ntk.ntk_matrix(m, X, trainable=["head.*"]),
        ConfigError,
        "trainable holds 'head.*', which matches no parameter; expected names or patterns of names such as 'weight'",
    ),
    "targets of wrong length": (
        lambda m: ntk.drift(m, X, Y[:3], X),
        InputError,
        "targets is int64 of shape (3,); expected 5 integers in [0, 3), or floats of shape (5, 3)",
    ),
    "targets of truth values": (
        lambda m: ntk.drift(m, X, Y > 0, X),
        InputError,
        "targets is bool of shape (5,); expected 5 integers in [0, 3), or floats of shape (5, 3)",
    ),
    "targets of a wrong class": (
        lambda m: ntk.drift(m, X, Y + 1, X),
        InputError,
        "targets hold 3 at position 2; expected integers in [0, 3)",
    ),
    "targets no tensor": (
        lambda m: ntk.trained_drift(m, X, None, X, steps=1, rate=0.1),  # type: ignore[arg-type]
        InputError,
        "targets is a NoneType; expected 5 integers in [0, 3), or floats of shape (5, 3)",
    ),
    "targets not finite": (
        lambda m: ntk.drift(m, X, NAN, X),
        InputError,
        "targets holds NaN or Inf; expected finite numbers",
    ),
    "ridge below 0": (
        lambda m: ntk.drift(m, X, Y, X, ridge=-1),
        InputError,
        "ridge is -1; expected a number of at least 0, or None",
    ),
    "ridge and steps": (
        lambda m: ntk.drift(m, X, Y, X, ridge=1, steps=1),
        InputError,
        "ridge is given with steps; expected one of them: a number of steps has no ridge",
    ),
    "rate without steps": (
        lambda m: ntk.drift(m, X, Y, X, rate=0.1),
        InputError,
        "rate is given without steps; expected both, or neither for training to the end",
    ),
    "rate of 0": (
        lambda m: ntk.drift(m, X, Y, X, steps=1, rate=0),
        InputError,
        "rate is 0; expected a number above 0",
    ),
    "steps of 0": (
        lambda m: ntk.trained_drift(m, X, Y, X, steps=0, rate=0.1),
        InputError,
        "steps is 0; expected an integer of at least 1",
    ),
    "no products": (
        lambda m: ntk.drift(m, X, Y, X, max_products=0),
        InputError,
        "max_products is 0; expected an integer of at least 1",
    ),
    "no tolerance": (
        lambda m: ntk.drift(m, X, Y, X, tolerance=0),
        InputError,
        "tolerance is 0; expected a number above 0",
    ),
    "a wrong seed": (
        lambda m: ntk.drift(m, X, Y, X, seed=-1),
        InputError,
        "seed is -1; expected an integer in [0, 2**63)",
    ),
    "no rank": (
        lambda m: ntk.overlap(m, X, X, rank=0),
        InputError,
        "rank is 0; expected an integer of at least 1",
    ),
    "an unknown kernel": (
        lambda m: ntk.forgetting(m, CleanSet(X, Y), X, kernel="last"),
        InputError,
        "kernel is 'last'; expected one of exact, last_layer",
    ),
    "an unknown scheme": (
        lambda m: ntk.forgetting(m, CleanSet(X, Y), X, schemes=("true", "random")),
        InputError,
        "schemes hold 'random'; expected names in true, wrong, uniform, max_entropy",
    ),
    "no schemes": (
        lambda m: ntk.forgetting(m, CleanSet(X, Y), X, schemes=()),
        InputError,
        "schemes are empty; expected names in true, wrong, uniform, max_entropy",
    ),
    "no draws": (
        lambda m: ntk.forgetting(m, CleanSet(X, Y), X, n_draws=0),
        InputError,
        "n_draws is 0; expected an integer of at least 1",
    ),
    "wrong steps": (
        lambda m: ntk.forgetting(m, CleanSet(X, Y), X, steps=(0,)),
        InputError,
        "steps is 0; expected an integer of at least 1",
    ),
    "no clean set": (
        lambda m: ntk.forgetting(m, X, X),  # type: ignore[arg-type]
        InputError,
        "train is a Tensor; expected a seamfast.CleanSet",
    ),
    "labels of more classes": (
        lambda m: ntk.forgetting(m, CleanSet(X, Y + 1), X),
        InputError,
        "labels hold 3; expected integers in [0, 3) for the model's 3 logits",
    ),
    "an unknown scheme of targets": (
        lambda m: ntk.label_targets(V, Y, "random"),
        InputError,
        "scheme is 'random'; expected one of true, wrong, uniform, max_entropy",
    ),
    "targets of no logits": (
        lambda m: ntk.label_targets(V[:, 0], Y, "true"),
        InputError,
        "logits are float64 of shape (5,) and labels int64 of shape (5,); expected (N, C) floats and (N,) integers",
    ),
    "targets of other labels": (
        lambda m: ntk.label_targets(V, Y + 1, "true"),
        InputError,
        "labels hold 3 at position 2; expected integers in [0, 3)",
    ),
    "targets of no scale": (
        lambda m: ntk.label_targets(V, Y, "true", scale=-1.0),
        InputError,
        "scale is -1.0; expected a number above 0",
    ),
    "NaN in the inputs": (
        lambda m: ntk.ntk_matrix(m, X * math.nan),
        ModelError,
        "the model returned NaN or Inf on clean data; expected finite logits",
    ),
    "no head": (
        lambda m: ntk.forgetting(nn.Sequential(m, nn.Tanh()), CleanSet(X, Y), X, kernel="last_layer"),
        ModelError,
        "the model has no linear layer whose 3 outputs are its logits; expected one, or the exact kernel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused(linear: nn.Module, case: str) -> None:
    call, kind, message = REFUSED[case]
    with raises(kind, message):
        call(linear)


def test_a_rate_at_which_training_diverges_is_refused(linear: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^rate is 10, at which 5000 steps diverge; expected less than ") as caught:
        ntk.drift(linear, X, Y, X, steps=5000, rate=10)
    message = str(caught.value)
    assert message.endswith(", two over the largest eigenvalue")
    bound = float(message.split("less than ")[1].split(",")[0])
    assert bound == pytest.approx(2 / largest(linear, X), rel=0.01)


def test_a_kernel_of_zeros_is_refused() -> None:
    model = nn.Linear(4, CLASSES, bias=False)
    zeros, residuals = torch.zeros(4, 4), torch.ones(1, 4, CLASSES).double()
    with pytest.raises(
        ModelError, match=r"^no logit depends on the parameters by a gradient; expected a model that is "
    ):
        ntk.drift(model, zeros, torch.zeros(4).long(), zeros)
    outputs = Differentiated.of(model, None, 64, "auto").outputs("train", zeros, checked=False)
    message = "the kernel of the training samples is zero; expected logits that depend on the parameters"
    with raises(ModelError, message):
        kernel_space.HeadSpace.of(outputs, residuals, kernel_space.Descent(None, None, None))
    with raises(ModelError, message):
        kernel_space.krylov_space(outputs, residuals, kernel_space.Descent(None, 1, None), 0.1, 9, 0, lambda: None)


# ---- Memory ----


def test_what_does_not_fit_is_refused_before_it_is_allocated(
    linear: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    inputs = vectors(N)
    assert ntk.ntk_matrix(linear, inputs[:3]).shape == (9, 9)
    with raises(
        InputError,
        "a kernel of 15 x 15 needs 1.80 kB, and cpu has 1.00 kB free; expected fewer samples, or products with vectors",
    ):
        ntk.ntk_matrix(linear, inputs)
    with raises(
        InputError,
        "the space of the kernel needs 5.40 kB, and cpu has 1.00 kB free; expected fewer samples or max_products",
    ):
        ntk.drift(linear, inputs, Y, inputs)
    assert ntk.drift(linear, inputs, Y, inputs, max_products=2).n_products == 2
    with raises(
        InputError, "the kernel of the last layer needs 2.40 kB, and cpu has 1.00 kB free; expected fewer samples"
    ):
        ntk.forgetting(linear, CleanSet(vectors(10), torch.arange(10) % CLASSES), inputs, kernel="last_layer")


@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("name", ["product", "drift", "forgetting", "overlap"])
def test_memory_is_below_four_models_and_one_batch(name: str, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model itself counts as one; small models are traced, which takes more."""
    monkeypatch.setattr(tangent, "_MOST_TRACED", 0)
    widths = [64, 512, 512, CLASSES]
    first, second, third = (nn.Linear(*pair) for pair in pairwise(widths))
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
    inputs, labels = torch.randn(32, 64), torch.arange(32) % CLASSES
    calls: dict[str, Callable[[], object]] = {
        "product": lambda: ntk.ntk_vector_product(model, inputs, torch.ones(32, CLASSES), batch_size=batch_size),
        "drift": lambda: ntk.drift(model, inputs, labels, inputs, batch_size=batch_size),
        "forgetting": lambda: ntk.forgetting(model, CleanSet(inputs, labels), inputs, batch_size=batch_size),
        "overlap": lambda: ntk.overlap(model, inputs, inputs, rank=4, batch_size=batch_size),
    }
    with Live() as live:
        calls[name]()
    of_model = 4 * sum(p.numel() for p in model.parameters())
    of_batch = 4 * batch_size * (sum(widths) + 1024)
    assert 2 * of_model < live.peak < 4 * of_model + 2 * of_batch


# ---- CUDA ----


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_figures_on_cuda_are_those_on_a_cpu(name: str) -> None:
    model, samples = network(name)
    train, probe = samples(), samples(M)
    here, there = (
        (
            ntk.ntk_vector_product(model, train, V, device=device).cpu(),
            ntk.ntk_matrix(model, train, device=device).cpu(),
            ntk.drift(model, train, Y, probe, ridge=0.1, tolerance=1e-9, device=device).change,
            ntk.trained_drift(model, train, Y, probe, steps=2, rate=1e-3, device=device),
        )
        for device in ("cpu", "cuda")
    )
    for wanted, found in zip(here, there, strict=True):
        assert off(found, wanted) < 1e-6
    assert {p.device.type for p in model.parameters()} == {"cpu"}
