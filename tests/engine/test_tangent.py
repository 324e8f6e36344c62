"""Products with the Jacobian of a model's logits: against ``torch.func.jacrev``, over batches; what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from live_bytes import Live
from refusals import raises, refused
from small_networks import CLASSES, NETWORKS, N, Residual, jacobian, network, off
from torch import Tensor, nn

from seamfast.engine import tangent
from seamfast.engine.tangent import Outputs
from seamfast.errors import ModelError
from seamfast.modalities.batch import Batch, part_of, size_of


def outputs(model: nn.Module, inputs: Batch, batch_size: int = 64, **options: Any) -> Outputs:
    names = options.pop("names", None) or {name for name, _ in model.named_parameters()}
    batches = [part_of(inputs, first, first + batch_size) for first in range(0, size_of(inputs), batch_size)]
    return Outputs(model, frozenset(names), batches, **options)


def direction(one: Outputs) -> dict[str, Tensor]:
    return {name: torch.randn_like(p) for name, p in one.parameters.items()}


def flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in parts.values()])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"repeated": True}], ids=str)
def test_products_are_those_of_the_whole_jacobian(name: str, options: dict[str, Any]) -> None:
    """Each twice: a trace of a GRU changes its own constants, so that its second answer was wrong by a sixth."""
    model, samples = network(name)
    inputs = samples()
    wanted = jacobian(model, inputs)
    one = outputs(model, inputs, **options)
    one.check()
    assert len(one) == N
    assert one.num_classes == CLASSES
    assert one.n_parameters == wanted.shape[1]
    for _ in range(2):
        weights, moved = torch.randn(N, CLASSES, dtype=torch.float64), direction(one)
        assert off(flat(one.gradient(weights)), wanted.T @ weights.flatten()) < 1e-10
        assert off(one.change(moved).flatten(), wanted @ flat(moved)) < 1e-10
    assert off(one.jacobian_rows(0, N * CLASSES), wanted) < 1e-10
    assert off(one.jacobian_rows(2, 8), wanted[2:8]) < 1e-10


@pytest.mark.parametrize("name", ["residual", "attention", "tied"])
def test_a_trace_is_kept_where_it_can_be(name: str) -> None:
    """It takes two thirds of the time: a change to what it does must not go unseen."""
    model, samples = network(name)
    one = outputs(model, samples(), repeated=True)
    one.change(direction(one))
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    one.change(direction(one))
    one.gradient(torch.randn(N, CLASSES).double())
    after_first = len(calls)
    one.gradient(torch.randn(N, CLASSES).double())
    assert (after_first, len(calls)) == (1, 1)


def test_a_large_model_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tangent, "_MOST_TRACED", 100)
    model, samples = network("residual")
    one = outputs(model, samples(), repeated=True)
    assert one.n_parameters > 100
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    one.change(direction(one))
    one.change(direction(one))
    assert len(calls) == 2


def test_samples_of_several_batches_are_not_kept() -> None:
    model, samples = network("residual")
    one = outputs(model, samples(), 2, repeated=True)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    one.gradient(one.values)
    one.change(direction(one))
    assert len(calls) == 6


def test_named_parameters_alone_move() -> None:
    model, samples = network("residual")
    inputs, names = samples(), {"head.weight", "norm.bias"}
    one = outputs(model, inputs, names=names)
    wanted = jacobian(model, inputs, names)
    weights = torch.randn(N, CLASSES, dtype=torch.float64)
    found = one.gradient(weights)
    assert set(found) == names
    assert not any(value.requires_grad for value in found.values())
    assert off(flat(found), wanted.T @ weights.flatten()) < 1e-12


def test_a_gradient_that_two_parameters_share_is_summed_once_for_each() -> None:
    model, samples = network("tied")
    weights = torch.randn(N, CLASSES, dtype=torch.float64)
    found = outputs(model, samples(), 2).gradient(weights)
    torch.testing.assert_close(found["one"], weights.sum(0))
    torch.testing.assert_close(found["other"], weights.sum(0))
    assert set(found) == {"first.weight", "first.bias", "one", "other"}


class Counting(nn.Module):
    """Counts its calls in a buffer, and scales its logits with what another buffer was before it doubles that."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.linear(x) * self.scale
        self.scale = self.scale * 2
        return logits


def state(model: nn.Module) -> dict[str, Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": {name: value.detach().clone() for name, value in tensors},
        "places": {name: value.data_ptr() for name, value in tensors},
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def of_torch() -> list[Any]:
    switches = [torch.backends.mha.get_fastpath_enabled(), torch.get_float32_matmul_precision()]
    switches += [torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()]
    return [*switches, torch.backends.cuda.flash_sdp_enabled(), torch.random.get_rng_state().tolist()]


@pytest.fixture
def precision_is_restored() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("precision_is_restored")
@pytest.mark.parametrize("make", [Counting, Residual])
def test_nothing_of_the_model_and_of_torch_changes(make: Callable[[], nn.Module]) -> None:
    torch.set_float32_matmul_precision("medium")
    model = make().double()
    model.train()
    next(model.modules()).training = False  # of the outermost alone: it is not what train() or eval() leaves
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    before, of_it = of_torch(), state(model)
    inputs = torch.ones((N, 4) if make is Counting else (N, 1, 4, 4), dtype=torch.float64)
    for options in ({"batch_size": 2}, {"repeated": True}):
        one = outputs(model, inputs, **options)
        one.check()
        one.change(one.gradient(one.values))
        one.jacobian_rows(0, 4)
        if make is Residual:
            one.head_inputs()
    after = state(model)
    for key, value in of_it.items():
        if key == "values":
            assert all(torch.equal(after[key][name], kept) for name, kept in value.items())
        else:
            assert after[key] == value, key
    assert of_torch() == before


def test_a_model_that_counts_its_calls_has_one_function() -> None:
    model = Counting().double()
    inputs = torch.randn(N, 4).double()
    one = outputs(model, inputs, 2)
    one.check()
    assert off(one.jacobian_rows(0, N * CLASSES), jacobian(nn.Sequential(model.linear), inputs)) < 1e-12


@pytest.mark.usefixtures("precision_is_restored")
def test_arithmetic_is_of_full_width() -> None:
    seen: list[tuple[bool, str, bool, bool]] = []

    class Asking(nn.Module):
        def __init__(self, rnn: bool) -> None:
            super().__init__()
            self.inner = nn.GRU(4, 4, batch_first=True) if rnn else nn.Linear(4, 4)
            self.linear = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            precision = torch.get_float32_matmul_precision()
            flags = (torch.backends.cudnn.enabled, precision, torch.backends.cudnn.allow_tf32, self.training)
            seen.append(flags)
            logits: Tensor = self.linear(x)
            return logits

    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", torch.bfloat16):
        for rnn in (False, True):
            one = outputs(Asking(rnn), torch.randn(N, 4), repeated=True)
            assert one.values.dtype == torch.float32
            assert one.change(one.gradient(one.values)).dtype == torch.float32
    # cuDNN cannot differentiate recurrent layers in eval mode.
    assert set(seen) == {(True, "highest", False, False), (False, "highest", False, False)}


# Where there is no forward mode.


class Doubled(torch.autograd.Function):
    """``2 * x``, with neither ``setup_context`` nor ``jvp``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(Doubled.apply(self.first(x)).tanh())
        return logits


class Transparent(Opaque):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second((2 * self.first(x)).tanh())
        return logits


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"repeated": True}], ids=str)
def test_a_function_without_jvp_is_differentiated_backward_twice(options: dict[str, Any]) -> None:
    model, same = Opaque().double(), Transparent().double()
    same.load_state_dict(model.state_dict())
    inputs = torch.randn(N, 4).double()
    wanted = jacobian(same, inputs)
    one = outputs(model, inputs, **options)
    one.check()
    for _ in range(2):
        moved = direction(one)
        assert off(one.change(moved).flatten(), wanted @ flat(moved)) < 1e-12
    some = {name: torch.zeros_like(p) for name, p in one.parameters.items()}
    assert not one.change(some).any()


def test_forward_mode_goes_unused_once_it_has_failed() -> None:
    one = outputs(Opaque().double(), torch.randn(N, 4).double())
    calls: list[int] = []
    one.model.register_forward_hook(lambda *_: calls.append(1))
    one.change(direction(one))
    first = len(calls)
    one.change(direction(one))
    assert (first, len(calls) - first) == (1, 1)  # the hook sees a forward pass that returns, not the one that fails


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_mode_is_used_where_it_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention has it off its fast path alone."""
    monkeypatch.setattr(Outputs, "_push_by_backward", lambda *_: pytest.fail("forward mode failed"))
    model, samples = network(name)
    one = outputs(model, samples())
    one.change(direction(one))


# The layer at the end.


def test_head_inputs_are_what_the_last_linear_layer_gets() -> None:
    model, samples = network("residual")
    inputs = samples()
    features, head = outputs(model, inputs, 2).head_inputs()
    assert head is model.head
    torch.testing.assert_close(head(features), model.eval()(inputs))
    assert features.shape == (N, 4)
    assert not features.requires_grad


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.linear(x)


def convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, CLASSES, 4), nn.Flatten())


@pytest.mark.parametrize("make", [Scaled, convolution])
def test_logits_of_no_linear_layer_are_refused_by_head_inputs(make: Callable[[], nn.Module]) -> None:
    one = outputs(make(), torch.randn(N, 4))
    message = "the model has no linear layer whose 3 outputs are its logits; expected one, or the exact kernel"
    with raises(ModelError, message):
        one.head_inputs()
    assert not any(module._forward_hooks for module in one.model.modules())


# What is refused.


class Ending(nn.Module):
    """``end(linear(x))``."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)
        self.unused = nn.Parameter(torch.ones(2))
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.linear(x))


NO_GRADIENT = (
    "no logit depends on the parameters by a gradient; expected a model that is not detached and does not run under "
    "torch.no_grad()"
)


@pytest.mark.parametrize("end", [Tensor.detach, torch.no_grad()(lambda x: -x), torch.round])
def test_logits_without_a_gradient_are_refused(end: Callable[[Tensor], Tensor]) -> None:
    with raises(ModelError, NO_GRADIENT):
        outputs(Ending(end), torch.randn(N, 4)).check()


def test_parameters_that_no_logit_depends_on_are_refused() -> None:
    one = outputs(Ending(torch.neg), torch.randn(N, 4), names={"unused"})
    with raises(ModelError, NO_GRADIENT):
        one.check()


def test_an_infinite_gradient_is_refused() -> None:
    one = outputs(Ending(lambda x: (x * 0).sqrt() + x), torch.randn(N, 4))
    with raises(ModelError, "the gradient of the logits holds NaN or Inf; expected finite gradients"):
        one.check()


class Remembering(nn.Module):
    """Adds what no buffer holds: state of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        logits: Tensor = self.linear(x) + self.seen
        return logits


class Crowded(nn.Module):
    """Batch normalization by the statistics of the batch, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)
        self.norm = nn.BatchNorm1d(CLASSES, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.norm(self.linear(x))
        return logits


@pytest.mark.parametrize("make", [Remembering, Crowded, lambda: Ending(lambda x: nn.functional.dropout(x, 0.5))])
def test_logits_of_more_than_the_sample_and_the_weights_are_refused(make: Callable[[], nn.Module]) -> None:
    one = outputs(make().double(), torch.randn(N, 4).double())
    message = refused(ModelError, r"^the logits of one sample differ by \d", one.check)
    assert message.endswith(
        " between two batches; expected logits that depend on the sample and the weights alone, not on other samples, "
        "random numbers or in-place state"
    )


class WrongBackward(torch.autograd.Function):
    """``x``, with the gradient of ``2 * x`` backward and its own forward."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad

    @staticmethod
    def jvp(ctx: Any, moved: Tensor) -> Tensor:
        return moved.clone()


def test_derivatives_that_disagree_are_refused() -> None:
    one = outputs(Ending(WrongBackward.apply).double(), torch.ones(N, 4).double(), names={"linear.bias"})
    message = refused(ModelError, r"^backward and forward derivatives of the model disagree, ", one.check)
    backward, forward = (float(number) for number in message.split("disagree, ")[1].split(";")[0].split(" and "))
    assert backward == pytest.approx(2 * forward, rel=1e-4)
    assert message.endswith("; expected derivatives of one function")


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.clamp_(-1, 1)
        logits: Tensor = self.linear(x)
        return logits


def test_a_forward_that_overwrites_its_weights_is_refused() -> None:
    one = outputs(Overwriting(), torch.randn(N, 4))
    message = refused(ModelError, r"^the model has no derivatives by its parameters \(RuntimeError: a leaf ", one.check)
    assert message.endswith(
        "); expected a forward that torch.autograd can differentiate, without in-place changes of its parameters"
    )


def test_an_error_of_the_model_itself_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        outputs(nn.Linear(4, CLASSES), torch.randn(N, 5))
    with raises(ModelError, "the model returned logits of shape (5,); expected (5, number of classes >= 2)"):
        outputs(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), torch.randn(N, 4))


# Memory.


def peak_of(one: Outputs) -> int:
    with Live() as live:
        one.change(one.gradient(one.values))
    return live.peak


def test_the_count_of_live_bytes_counts() -> None:
    with Live() as live:
        one = torch.zeros(1000)
        two = one.view(10, 100) + 1
        del one
        two = two * 2
    assert (live.now, live.peak) == (4000, 8000)


def test_memory_is_below_four_models_and_one_batch() -> None:
    """The model, the sum of the gradients, those of a batch, and one tensor of the sum that is being made."""
    widths = [64, 256, 256, CLASSES]
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    size = sum(p.numel() for p in model.parameters()) * 4
    inputs = torch.randn(512, 64)
    small, large = (peak_of(outputs(model, inputs, batch_size)) for batch_size in (16, 512))
    of_batch = 16 * (sum(widths) + 512) * 4
    assert 3 * size < small < 4 * size + of_batch
    assert large > small + 16 * of_batch  # which the argument bounds
    assert peak_of(outputs(model, inputs[:32], 16)) == pytest.approx(small, rel=0.05)  # not more with more batches
