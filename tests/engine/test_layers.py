"""The faster layers against PyTorch's: the same bits where there is one right answer, less error where there is not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from seamfast.attacks import build
from seamfast.engine.layers import faster_layers
from seamfast.ops import cpp
from seamfast.ops.cpp import native
from seamfast.ops.cpp.batch_norm import batch_norm, batch_norm_backward
from seamfast.ops.cpp.max_pool2d import max_pool2d, max_pool2d_backward

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)

needs_native = pytest.mark.skipif(cpp.why_unavailable() is not None, reason=str(cpp.why_unavailable()))


@pytest.fixture(autouse=True)
def on_any_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEAMFAST_BACKEND", raising=False)


def isas() -> list[str]:
    return list(native.load().isas())


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def is_same(got: Tensor, wanted: Tensor) -> bool:
    """Whether all bits are the same; NaN is NaN."""
    assert got.dtype == wanted.dtype
    bits = torch.int16 if got.dtype == torch.bfloat16 else torch.int32
    nan = wanted.isnan()
    same_bits = got.contiguous().view(bits) == wanted.contiguous().view(bits)
    return got.shape == wanted.shape and bool((same_bits | (nan & got.isnan())).all())


class Counted:
    """How often each of the extension's functions was called."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.of[name] = self.of.get(name, 0) + 1
            return function(*args, **kwargs)

        return called


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    for name in ("max_pool2d", "max_pool2d_backward", "batch_norm", "batch_norm_backward"):
        monkeypatch.setattr(cpp, name, counted.watch(name, getattr(cpp, name)))
    return counted


# ---- Max-pooling ---------------------------------------------------------------------------------


def hard_images(*shape: int, dtype: torch.dtype) -> Tensor:
    """Few values, so that windows hold ties; both zeros, infinities and NaN among them."""
    draws = torch.Generator().manual_seed(sum(shape))
    x = torch.randint(-2, 3, shape, generator=draws).float()
    for value in (float("nan"), float("-inf"), float("inf"), -0.0):
        x[torch.rand(shape, generator=draws) < 0.1] = value
    return last(x.to(dtype))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [2, 3, 15, 16, 17, 40])
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((2, 2), (2, 2)),
        ((8, 6), (2, 2)),
        ((5, 7), (2, 2)),
        ((9, 11), (3, 3)),
        ((3, 4), (1, 1)),
        ((11, 6), (5, 2)),
        ((17, 16), (16, 16)),
    ],
)
def test_max_pool_has_the_bits_of_pytorch(
    dtype: torch.dtype, channels: int, size: tuple[int, int], window: tuple[int, int]
) -> None:
    for batch in (1, 3):
        x = hard_images(batch, channels, *size, dtype=dtype).requires_grad_()
        wanted = F.max_pool2d(x, window)
        grad = draw(*wanted.shape).to(dtype)
        grad[torch.rand(grad.shape) < 0.2] = -0.0
        grad = last(grad)
        (wanted_grad,) = torch.autograd.grad(wanted, x, grad)
        for isa in isas():
            for threads in (1, 3):
                out, index = max_pool2d(x.detach(), window, indexed=True, threads=threads, isa=isa)
                assert index is not None
                unindexed, nothing = max_pool2d(x.detach(), window, indexed=False, threads=threads, isa=isa)
                got_grad = max_pool2d_backward(grad, index, x.shape, window, threads=threads, isa=isa)
                assert nothing is None
                assert is_same(out, wanted.detach()), (isa, threads)
                assert is_same(unindexed, wanted.detach()), (isa, threads)
                assert is_same(got_grad, wanted_grad), (isa, threads)
                assert out.stride() == wanted.stride()
                assert got_grad.stride() == wanted_grad.stride()


@needs_native
def test_max_pool_of_many_images_is_shared_among_threads() -> None:
    x = last(draw(64, 16, 31, 30))
    (one, index), (four, other) = (max_pool2d(x, (2, 2), indexed=True, threads=n) for n in (1, 4))
    assert index is not None
    assert other is not None
    assert torch.equal(one, F.max_pool2d(x, 2))
    assert torch.equal(one, four)
    assert torch.equal(index, other)
    grads = [max_pool2d_backward(one, index, x.shape, (2, 2), threads=n) for n in (1, 4)]
    assert torch.equal(*grads)


POOLED: dict[str, tuple[bool, Callable[[Tensor], Any]]] = {
    "module": (True, nn.MaxPool2d(2)),
    "functional": (True, lambda x: F.max_pool2d(x, 2)),
    "torch": (True, lambda x: torch.max_pool2d(x, 2)),
    "stride": (True, lambda x: F.max_pool2d(x, (2, 3), stride=(2, 3))),
    "by name": (True, lambda x: F.max_pool2d(x, kernel_size=[2], stride=2, padding=[0], dilation=(1, 1))),
    "input by name": (False, lambda x: torch.max_pool2d(input=x, kernel_size=2)),
    "positions": (True, lambda x: F.max_pool2d(x, 3, 3, 0, 1, False, False)),
    "no stride": (True, lambda x: torch.max_pool2d(x, 3, [])),
    "overlap": (False, lambda x: F.max_pool2d(x, 3, stride=2)),
    "padding": (False, lambda x: F.max_pool2d(x, 2, padding=1)),
    "dilation": (False, lambda x: F.max_pool2d(x, 2, dilation=2)),
    "ceil": (False, lambda x: F.max_pool2d(x, 2, ceil_mode=True)),
    "indices": (False, lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "indices by position": (False, lambda x: F.max_pool2d(x, 2, 2, 0, 1, False, True)[0]),
    "module with indices": (False, lambda x: nn.MaxPool2d(2, return_indices=True)(x)[0]),
    "planes": (False, lambda x: F.max_pool2d(x.contiguous(), 2)),
    "one image": (False, lambda x: F.max_pool2d(x[0], 2)),
    "strided": (False, lambda x: F.max_pool2d(x[:, :, ::2], 2)),
    "some channels": (False, lambda x: F.max_pool2d(x[:, :3], 2)),
    "float64": (False, lambda x: F.max_pool2d(x.double(), 2)),
    "float16": (False, lambda x: F.max_pool2d(x.half(), 2)),
    "one channel": (False, lambda x: F.max_pool2d(last(x[:, :1].clone()), 2)),
    "large window": (False, lambda x: F.max_pool2d(F.interpolate(x, size=(20, 20)), 17)),
    "other function": (False, lambda x: F.adaptive_max_pool2d(x, 2)),
    "no images": (False, lambda x: F.max_pool2d(x[:0], 2)),
}


@needs_native
@pytest.mark.parametrize("name", POOLED)
def test_max_pool_is_taken_where_it_is_covered(calls: Counted, name: str) -> None:
    is_taken, pool = POOLED[name]
    x = last(draw(2, 5, 9, 11)).requires_grad_()
    wanted = pool(x)
    (wanted_grad,) = torch.autograd.grad(wanted.sum(), x)
    with faster_layers(CPU):
        got = pool(x)
    assert is_same(got.detach().float(), wanted.detach().float())
    assert (got.dtype, got.stride(), got.requires_grad) == (wanted.dtype, wanted.stride(), True)
    assert torch.equal(torch.autograd.grad(got.sum(), x)[0], wanted_grad)
    assert calls.of == ({"max_pool2d": 1, "max_pool2d_backward": 1} if is_taken else {})


def normed(x: Tensor, **changes: Any) -> Tensor:
    return F.batch_norm(x, **{"running_mean": torch.zeros(6), "running_var": torch.ones(6), "training": True} | changes)


@needs_native
@pytest.mark.parametrize(
    "layer",
    [
        *(lambda x, size=size: F.max_pool2d(x, size) for size in (0, 20, -2)),
        lambda x: F.max_pool2d(x, 2, padding=3),
        lambda x: normed(x, eps=0.0),
        lambda x: normed(x, weight=torch.ones(7)),
        lambda x: normed(x, running_mean=torch.zeros(5)),
        lambda x: normed(x, weight=torch.ones(6, dtype=torch.float64)),
        lambda x: nn.BatchNorm2d(6)(last(x[:1, :, :1, :1])),  # one value a channel
    ],
)
def test_what_pytorch_refuses_it_still_refuses(layer: Callable[[Tensor], Tensor]) -> None:
    x = last(draw(2, 6, 9, 11))
    with pytest.raises((RuntimeError, ValueError)) as wanted:
        layer(x)
    with pytest.raises((RuntimeError, ValueError)) as got, faster_layers(CPU):
        layer(x)
    assert str(got.value) == str(wanted.value)


@needs_native
@pytest.mark.parametrize("grad_of", [lambda y: y.sum(), lambda y: (y.contiguous() * draw(*y.shape)).sum()])
def test_gradients_may_come_in_any_layout(calls: Counted, grad_of: Callable[[Tensor], Tensor]) -> None:
    """Those of a sum are one number, expanded; those of planes lie plane by plane."""
    x = last(draw(4, 6, 8, 8)).requires_grad_()
    wanted = torch.autograd.grad(grad_of(F.batch_norm(F.max_pool2d(x, 2), None, None, training=True)), x)[0]
    with faster_layers(CPU):
        out = F.batch_norm(F.max_pool2d(x, 2), None, None, training=True)
    torch.testing.assert_close(torch.autograd.grad(grad_of(out), x)[0], wanted, atol=1e-5, rtol=1e-5)
    assert calls.of == dict.fromkeys(("max_pool2d", "max_pool2d_backward", "batch_norm", "batch_norm_backward"), 1)


# ---- Batch normalization -------------------------------------------------------------------------


class Case:
    """An input, its parameters and a gradient of the output; what comes of them in any dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0, std: float = 1.0) -> None:
        channels = shape[1]
        self.x = last((draw(*shape) * std + mean).to(dtype))
        self.weight, self.bias, self.running_mean = (draw(channels, seed=seed) for seed in (1, 2, 3))
        self.running_var = draw(channels, seed=4).abs()
        self.grad = last((draw(*shape, seed=5) + 0.3).to(dtype))

    def of_pytorch(self, exact: bool) -> list[Tensor]:
        def given(tensor: Tensor) -> Tensor:
            return (tensor.double() if exact else tensor).clone()

        x, weight, bias = (given(tensor).requires_grad_() for tensor in (self.x, self.weight, self.bias))
        running = [given(self.running_mean), given(self.running_var)]
        out = F.batch_norm(x, *running, weight, bias, training=True, momentum=0.3, eps=1e-5)
        return [out.detach(), *torch.autograd.grad(out, (x, weight, bias), given(self.grad)), *running]

    def of_ours(self, threads: int = 1, isa: str = "") -> list[Tensor]:
        running = [self.running_mean.clone(), self.running_var.clone()]
        how: dict[str, Any] = {"threads": threads, "isa": isa}
        out, found = batch_norm(self.x, self.weight, self.bias, *running, momentum=0.3, eps=1e-5, **how)
        of_x, *of_parameters = batch_norm_backward(self.grad, self.x, self.weight, found, of_input=True, **how)
        assert of_x is not None
        return [out, of_x, *of_parameters, *running]


RESULTS = ("output", "grad of input", "grad of weight", "grad of bias", "running mean", "running variance")

SHAPES = [
    *((4, channels, 3, 5) for channels in (*range(2, 20), 31, 32, 33, 64, 70)),
    (4, 1, 3, 5),
    (1, 16, 1, 2),
    (2, 70, 1, 1),
    (16, 16, 32, 32),
    (40, 64, 16, 17),
    (3, 3, 200, 201),
    (600, 128, 4, 4),
]


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_is_at_least_as_exact_as_pytorch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Largest error of each result, against float64 on the same numbers: PyTorch's, or 4 units in the last place of the
    largest result, or for a mean half a unit of the deviation."""
    check_errors(Case(shape, dtype), units=4 if shape[0] * shape[2] * shape[3] > 2 else 2**16)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 0.1), (-30.0, 1e-3), (1e-4, 1e-5), (0.0, 1e4)])
def test_a_mean_far_from_zero_costs_nothing(mean: float, std: float, dtype: torch.dtype) -> None:
    check_errors(Case((16, 20, 16, 17), dtype, mean, std), units=4)


def check_errors(case: Case, units: float, of_deviation: float = 0.5) -> None:
    exact, same_dtype = case.of_pytorch(exact=True), case.of_pytorch(exact=False)
    for name, got, theirs, wanted in zip(RESULTS, case.of_ours(), same_dtype, exact, strict=True):
        assert (got.dtype, got.shape) == (theirs.dtype, theirs.shape)
        size = float(wanted.abs().max())
        if name == "running mean":
            size = max(size, 0.3 * float(exact[-1].max().sqrt()) * of_deviation / units)
        rounding = torch.finfo(got.dtype).eps / 2 * size
        error, their_error = (float((y.double() - wanted).abs().max()) for y in (got, theirs))
        assert error <= max(their_error, units * rounding), name


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 1, 3, 5), (4, 17, 9, 9), (40, 64, 16, 17), (3, 3, 200, 201)], ids=str)
def test_batch_norm_has_the_same_bits_on_any_threads_and_isa(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    case = Case(shape, dtype, mean=3.0)
    wanted = case.of_ours()
    for isa in isas():
        for threads in (1, 2, 7):
            for name, got, same in zip(RESULTS, case.of_ours(threads, isa), wanted, strict=True):
                assert torch.equal(got, same), (name, isa, threads)


@needs_native
def test_one_outlier_at_the_start_does_not_spoil_the_variance() -> None:
    """Chunks are shifted by a mean of their first rows: the worst that can lie there."""
    case = Case((16, 16, 32, 32), torch.float32)
    case.x[0, :, 0, 0] = 1e6
    case.x[8, 3, 0, 0] = -1e5
    check_errors(case, units=64, of_deviation=8)


@needs_native
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_channel(value: float) -> None:
    case = Case((4, 5, 6, 7), torch.float32)
    clean = case.of_ours()
    case.x[1, 2, 3, 4] = value
    for got, before, theirs in zip(case.of_ours(), clean, case.of_pytorch(exact=False), strict=True):
        channel = 1 if got.ndim == 4 else 0
        others = [0, 1, 3, 4]
        assert torch.equal(
            got.index_select(channel, torch.tensor(others)), before.index_select(channel, torch.tensor(others))
        )
        spoilt = theirs.select(channel, 2).isfinite()
        assert torch.equal(got.select(channel, 2).isfinite(), spoilt)


NORMALISED: dict[str, tuple[bool, Callable[[], nn.Module]]] = {
    "usual": (True, lambda: nn.BatchNorm2d(6)),
    "not affine": (True, lambda: nn.BatchNorm2d(6, affine=False)),
    "no running statistics": (True, lambda: nn.BatchNorm2d(6, track_running_stats=False)),
    "neither": (True, lambda: nn.BatchNorm2d(6, affine=False, track_running_stats=False)),
    "cumulative": (True, lambda: nn.BatchNorm2d(6, momentum=None)),
    "momentum": (True, lambda: nn.BatchNorm2d(6, momentum=0.7, eps=0.5)),
    "frozen parameters": (True, lambda: nn.BatchNorm2d(6).requires_grad_(False)),
    "eval": (False, lambda: nn.BatchNorm2d(6).eval()),
    "eval without statistics": (True, lambda: nn.BatchNorm2d(6, track_running_stats=False).eval()),
    "float64": (False, lambda: nn.Sequential(Cast(torch.float64), nn.BatchNorm2d(6).double())),
    "all in bfloat16": (False, lambda: nn.Sequential(Cast(torch.bfloat16), nn.BatchNorm2d(6).bfloat16())),
    "bfloat16": (True, lambda: nn.Sequential(Cast(torch.bfloat16), nn.BatchNorm2d(6))),
    "planes": (False, lambda: nn.Sequential(Planes(), nn.BatchNorm2d(6))),
    "rows": (False, lambda: nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(6))),
}


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


class Planes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


@needs_native
@pytest.mark.parametrize("name", NORMALISED)
def test_batch_norm_is_taken_where_it_is_covered(calls: Counted, name: str) -> None:
    is_taken, make = NORMALISED[name]
    theirs = make()
    ours = copy.deepcopy(theirs)
    for step in range(3):  # each sees the running statistics of the one before
        x = last(draw(4, 6, 5, 7, seed=step)).requires_grad_()
        y = last(draw(4, 6, 5, 7, seed=step)).requires_grad_()
        wanted = theirs(x)
        with faster_layers(CPU):
            got = ours(y)
        assert (got.dtype, got.stride()) == (wanted.dtype, wanted.stride())
        wanted.square().sum().backward()
        got.square().sum().backward()
        close = {"atol": 0.04, "rtol": 0.02} if got.dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-5}
        torch.testing.assert_close(got, wanted, **close)
        torch.testing.assert_close(y.grad, x.grad, **close)
    for (key, got), wanted in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(got, wanted, msg=key)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, atol=5e-2 if "16" in name else 1e-3, rtol=1e-2)
    assert calls.of == ({"batch_norm": 3, "batch_norm_backward": 3} if is_taken else {})


@needs_native
def test_batch_norm_by_its_other_names(calls: Counted) -> None:
    x, mean, var, weight, bias = last(draw(4, 6, 5, 7)), torch.zeros(6), torch.ones(6), draw(6), draw(6)
    wanted = F.batch_norm(x, mean.clone(), var.clone(), weight, bias, True, 0.1, 1e-5)
    with faster_layers(CPU):
        by_position = F.batch_norm(x, mean.clone(), var.clone(), weight, bias, True, 0.1, 1e-5)
        of_torch = torch.batch_norm(x, weight, bias, mean, var, True, 0.1, 1e-5, True)
    torch.testing.assert_close(by_position, wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(of_torch, by_position)
    all_by_name = {"weight": weight, "bias": bias, "running_mean": None, "running_var": None, "training": True}
    with faster_layers(CPU):
        by_name = torch.batch_norm(input=x, **all_by_name, momentum=0.1, eps=1e-5, cudnn_enabled=True)
    assert torch.equal(by_name, wanted)
    torch.testing.assert_close(mean, 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(var, 0.9 + 0.1 * x.var((0, 2, 3)))
    assert calls.of == {"batch_norm": 2}


@needs_native
def test_a_module_may_come_twice_and_be_taken_once(calls: Counted) -> None:
    """PyTorch's backward pass must not find the running statistics, which it keeps, changed by ours."""
    norm = nn.BatchNorm2d(6)
    planes = draw(4, 6, 5, 7).requires_grad_()
    with faster_layers(CPU):
        out = norm(planes).sum() + norm(last(planes)).square().sum()
    out.backward()
    assert planes.grad is not None
    assert calls.of == {"batch_norm": 1, "batch_norm_backward": 1}


@needs_native
def test_only_the_gradients_that_are_wanted_are_there() -> None:
    norm = nn.BatchNorm2d(6)
    assert norm.bias is not None
    norm.bias.requires_grad_(False)
    with faster_layers(CPU):
        norm(last(draw(4, 6, 5, 7))).square().sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is None


@needs_native
def test_a_changed_input_is_seen_in_the_backward_pass() -> None:
    x = last(draw(4, 6, 5, 7)).requires_grad_()
    seen = x * 1
    with faster_layers(CPU):
        out = F.batch_norm(seen, None, None, training=True)
    seen.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# ---- Whole models, and what else may be at work --------------------------------------------------


def model_and_images(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    model = build(name, num_classes=5, in_channels=3, image_size=32).to(memory_format=torch.channels_last)
    return model.train(), last(draw(16, 3, 32, 32))


def gradients(model: nn.Module, images: Tensor, bf16: bool, mode: bool) -> Tensor:
    """Of all parameters, and the buffers afterwards."""
    model = copy.deepcopy(model).to(images.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if mode:
            with faster_layers(CPU):
                logits = model(images)
        else:
            logits = model(images)
    F.cross_entropy(logits.float() if bf16 else logits, torch.arange(16) % 5).backward()
    results = [*(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]
    return torch.cat([result.flatten().double() for result in results])


@needs_native
@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_with_pooling_learns_the_same_to_the_bit(calls: Counted, bf16: bool) -> None:
    model, images = model_and_images("small_cnn")
    wanted = gradients(model, images, bf16, mode=False)
    assert calls.of == {}
    assert torch.equal(gradients(model, images, bf16, mode=True), wanted)
    assert calls.of == {"max_pool2d": 2, "max_pool2d_backward": 2}


@needs_native
@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_with_batch_norm_is_no_further_from_float64(calls: Counted, bf16: bool) -> None:
    model, images = model_and_images("narrow_resnet18")
    exact = gradients(model, images.double(), bf16=False, mode=True)
    assert calls.of == {}
    theirs, ours = (gradients(model, images, bf16, mode=mode) for mode in (False, True))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert calls.of == {"batch_norm": norms, "batch_norm_backward": norms}
    error, their_error = (float((got - exact).norm() / exact.norm()) for got in (ours, theirs))
    assert error < 1.5 * their_error  # each is chance; a wrong gradient is off by hundreds of times as much


@needs_native
def test_hooks_shared_modules_and_functional_calls_see_what_they_always_see(calls: Counted) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm, self.pool = nn.BatchNorm2d(4), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.norm(self.conv(x)))
            return F.max_pool2d(self.norm(self.pool(x)), 3, stride=1, padding=1)

    torch.manual_seed(0)
    model = Model().to(memory_format=torch.channels_last)
    shapes: list[tuple[int, ...]] = []
    model.pool.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model.norm.register_full_backward_hook(lambda module, inputs, outputs: shapes.append(tuple(inputs[0].shape)))
    images = last(draw(2, 3, 18, 18)).requires_grad_()
    wanted = copy.deepcopy(model)(images)
    del shapes[:]
    with faster_layers(CPU):
        got = model(images)
    got.sum().backward()
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert shapes == [(2, 4, 8, 8), (2, 4, 4, 4), (2, 4, 4, 4), (2, 4, 16, 16)]
    assert calls.of == {"max_pool2d": 2, "max_pool2d_backward": 2, "batch_norm": 2, "batch_norm_backward": 2}


def active() -> int:
    return int(torch._C._len_torch_function_stack())


@needs_native
def test_no_mode_stays_active() -> None:
    def fails() -> None:
        with faster_layers(CPU):
            assert active() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert active() == 0
    with pytest.raises(RuntimeError), faster_layers(CPU):
        F.max_pool2d(last(draw(2, 5, 9, 11)), 20)
    assert active() == 0
    with faster_layers(CPU), faster_layers(CPU):
        assert active() == 2
        assert torch.equal(F.max_pool2d(last(draw(2, 5, 9, 11)), 3, 2), F.max_pool2d(draw(2, 5, 9, 11), 3, 2))
    assert active() == 0


@needs_native
def test_another_mode_within_still_sees_everything(calls: Counted) -> None:
    class Seeing(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    with faster_layers(CPU), Seeing() as seeing:
        F.max_pool2d(last(draw(2, 5, 9, 11)), 2)
    assert F.max_pool2d in seeing.seen
    assert calls.of == {"max_pool2d": 1}


def test_nothing_happens_off_the_cpu() -> None:
    with faster_layers(torch.device("cuda")):
        assert active() == 0


def test_nothing_happens_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "why_unavailable", lambda: "not built")
    with faster_layers(CPU):
        assert active() == 0


@needs_native
@pytest.mark.parametrize(("backend", "modes"), [("", 1), ("auto", 1), ("cpp", 1), ("reference", 0), ("triton", 0)])
def test_another_backend_may_be_asked_for(monkeypatch: pytest.MonkeyPatch, backend: str, modes: int) -> None:
    monkeypatch.setenv("SEAMFAST_BACKEND", backend)
    with faster_layers(CPU):
        assert active() == modes


@needs_native
@pytest.mark.parametrize("layer", [lambda x: F.max_pool2d(x, 2), lambda x: F.batch_norm(x, None, None, training=True)])
class TestWhatElseMayBeAtWork:
    """Goes to PyTorch, as it does without the mode, or is no different."""

    @pytest.fixture
    def x(self) -> Tensor:
        return last(draw(4, 6, 8, 8))

    @pytest.fixture(autouse=True)
    def mode(self) -> Iterator[None]:
        with faster_layers(CPU):
            yield

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own
    def test_forward_mode(self, calls: Counted, x: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        with forward_ad.dual_level():
            out = layer(forward_ad.make_dual(x, last(torch.ones_like(x))))
            assert forward_ad.unpack_dual(out).tangent is not None
        assert calls.of == {}

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_vmap_and_grad(self, calls: Counted, x: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        torch.func.grad(lambda y: layer(y).sum())(x)
        torch.func.vmap(layer)(torch.stack([x, x], 0))
        assert calls.of == {}

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_tracing(self, calls: Counted, x: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        traced = torch.jit.trace(layer, (x,), check_trace=False)
        assert ("max_pool2d" in str(traced.graph)) or ("batch_norm" in str(traced.graph))
        assert calls.of == {}

    def test_subclasses(self, calls: Counted, x: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        class Own(Tensor):
            pass

        assert type(layer(x.as_subclass(Own))) is Own
        assert calls.of == {}

    def test_meta_tensors(self, calls: Counted, x: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        assert layer(x.to("meta")).is_meta
        assert calls.of == {}

    def test_checkpoints(self, calls: Counted, x: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        """Their second forward pass is outside the mode, and has to save what the first did."""
        x.requires_grad_()
        out = checkpoint(layer, x, use_reentrant=False)
        with torch._C.DisableTorchFunction():  # as it is outside
            out.square().sum().backward()
        assert x.grad is not None
        assert calls.of == {}

    def test_no_gradients(self, calls: Counted, x: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            assert not layer(x.requires_grad_()).requires_grad
        with torch.inference_mode():
            assert layer(x).is_inference()
        assert not layer(x.detach()).requires_grad
        assert sum(calls.of.values()) == 3

    def test_gradients_of_gradients(self, calls: Counted, x: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        x.requires_grad_()
        (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.sum().backward()

    def test_in_place_changes_of_the_result(self, calls: Counted, x: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        y = x.clone().requires_grad_()
        x.requires_grad_()
        F.relu(layer(x), inplace=True).sum().backward()
        F.relu(layer(y)).sum().backward()
        assert x.grad is not None
        assert y.grad is not None
        assert torch.equal(x.grad, y.grad)


# Max-pooling after relu, whose gradient goes past relu.


def pooled(x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(x), 2)


def pooled_and_more(x: Tensor) -> Tensor:
    y = F.relu(x)
    return F.max_pool2d(y, 2) + y[:, :, ::2, ::2] * x[:, :, 1::2, 1::2]


def pooled_twice(x: Tensor) -> Tensor:
    y = torch.relu(x)
    return F.max_pool2d(y, 2) - 2 * F.max_pool2d(y, (2, 2))


def written_in_place(x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(x, inplace=True), 2)


def given_is_written_to(x: Tensor) -> Tensor:
    y = F.relu(x)
    x.mul_(3)
    return F.max_pool2d(y, 2) + x[:, :, ::2, ::2]


def hooked(x: Tensor) -> Tensor:
    y = F.relu(x)
    y.register_hook(lambda grad: 2 * grad)
    return F.max_pool2d(y, 2)


def view_of_it(x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(x)[:, :, 1:], 2)


def another_relu_between(x: Tensor) -> Tensor:
    y = F.relu(x)
    z = F.relu(-x)
    return F.max_pool2d(y, 2) + F.max_pool2d(z, 2)


PAST_RELU = {
    pooled: True,
    pooled_and_more: True,
    pooled_twice: True,  # once
    written_in_place: False,
    given_is_written_to: False,
    hooked: False,
    view_of_it: False,
    another_relu_between: False,
}


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of", PAST_RELU)
def test_the_gradient_past_relu_is_that_through_relu(of: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    def gradient(mode: bool) -> tuple[Tensor, Tensor, bool]:
        leaf = last(draw(4, 20, 8, 10).to(dtype)).requires_grad_()
        with faster_layers(torch.device("cpu" if mode else "meta")):
            x = leaf * 1.0
            out = of(x)
        nodes, names = [out.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is not None:
                names.add(type(node).__name__)
                nodes += [inner for inner, _ in node.next_functions]
        out.backward(draw(*out.shape, seed=1).to(dtype))
        assert leaf.grad is not None
        return out.detach(), leaf.grad, "_MaxPool2dOfReluBackward" in names

    wanted, got = gradient(False), gradient(True)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])
    assert got[2] == PAST_RELU[of]


@needs_native
def test_nan_passes_through_both() -> None:
    leaf = last(draw(1, 16, 4, 4))
    leaf[0, 3, 2, 2] = torch.nan
    leaf.requires_grad_()
    with faster_layers(CPU):
        pooled(leaf * 1.0).backward(torch.ones(1, 16, 2, 2))
    other = leaf.detach().clone().requires_grad_()
    pooled(other * 1.0).backward(torch.ones(1, 16, 2, 2))
    assert leaf.grad is not None
    assert other.grad is not None
    assert torch.equal(leaf.grad, other.grad)
    assert leaf.grad[0, 3, 2, 2] == 1


@needs_native
def test_a_gradient_that_is_kept_is_seen() -> None:
    with faster_layers(CPU):
        y = F.relu(last(draw(2, 16, 4, 4)).requires_grad_())
        y.retain_grad()
        F.max_pool2d(y, 2).sum().backward()
    assert y.grad is not None
    assert float(y.grad.sum()) == 2 * 16 * 4
