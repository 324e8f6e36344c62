"""The fused loss on every backend: against float64, its labels to the bit, its gradient, its count, its errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import check_count, check_labels, check_loss, labels_of
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from seamfast.errors import BackendUnavailableError, DTypeError, InputError, ShapeError
from seamfast.ops import (
    cpp,
    random_label_cross_entropy,
    random_label_loss_and_count,
    random_labels,
    true_label_cross_entropy,
    true_label_loss_and_count,
)
from seamfast.ops.arguments import CrossEntropyArguments

CLASSES = (
    2,  # the fewest: one wrong class
    3,
    10,  # CIFAR-10
    43,  # GTSRB: no power of two, below a vector register's multiple
    64,  # the last that lies across rows in C++
    65,  # the first that does not
    100,
    200,
    1000,  # ImageNet
    1001,  # with a background class: odd, so rows are unaligned
    21843,  # ImageNet-21k: past what a Triton program holds in registers
)
ROWS = (
    0,  # an empty batch
    1,
    7,  # less than a block of rows
    128,  # a usual batch
    513,  # one more than blocks hold
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Every value once for the interpreter, which is a thousand times slower.
THIN = {(2, 7), (3, 128), (10, 513), (43, 1), (64, 7), (65, 7), (100, 0), (200, 7), (1000, 7), (1001, 1), (21843, 1)}


def batch(n: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(n, classes, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return logits, labels, torch.randint(-(2**62), 2**62, (n,), generator=generator)


def forget(
    backend: Backend, logits: Tensor, labels: Tensor, ids: Tensor, **arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and count of the forgetting step, on the CPU."""
    x = logits.to(backend.device).detach().requires_grad_()
    settings_ = {"seed": 3, "step": 5, **arguments}
    loss, n_correct = random_label_loss_and_count(
        x, labels.to(backend.device), ids.to(backend.device), backend=backend.name, **settings_
    )
    loss.sum().backward()
    assert x.grad is not None
    return loss.detach().cpu(), x.grad.cpu(), n_correct.cpu()


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("n", ROWS)
def test_against_float64(backend: Backend, n: int, classes: int) -> None:
    backend.needs_classes(classes)
    if (backend.is_slow and (classes, n) not in THIN) or n * classes > 3_000_000:
        pytest.skip("too slow here, and other sizes show the same")
    for dtype in DTYPES[:1] if backend.is_slow and classes > 1000 else DTYPES:
        logits, labels, ids = batch(n, classes, dtype)
        loss, grad, n_correct = forget(backend, logits, labels, ids)
        check_loss(logits, random_labels(labels, ids, num_classes=classes, seed=3, step=5), loss, grad)
        check_count(logits, labels, n_correct)


@pytest.mark.parametrize(
    ("reduction", "exclude_true"), [("mean", False), ("sum", True), ("none", False), ("none", True), ("sum", False)]
)
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_options(backend: Backend, classes: int, reduction: str, exclude_true: bool) -> None:
    logits, labels, ids = batch(37, classes, seed=1)
    loss, grad, _ = forget(backend, logits, labels, ids, exclude_true=exclude_true, reduction=reduction)
    drawn = random_labels(labels, ids, num_classes=classes, seed=3, step=5, exclude_true=exclude_true)
    check_loss(logits, drawn, loss, grad, reduction=reduction)


@pytest.mark.parametrize("classes", [3, 100, 20_000])
@pytest.mark.parametrize("mixes", [False, True])
def test_true_labels(backend: Backend, classes: int, mixes: bool) -> None:
    backend.needs_classes(classes)
    for reduction in ("mean", "none"):
        logits, labels, _ = batch(9, classes, seed=2)
        mixed = (batch(9, classes, seed=3)[1], torch.linspace(0, 1, 9)) if mixes else None
        more = dict(zip(("mixed_labels", "mixed_weight"), (v.to(backend.device) for v in mixed or ()), strict=False))
        x = logits.to(backend.device).requires_grad_()
        loss, n_correct = true_label_loss_and_count(
            x, labels.to(backend.device), **more, reduction=reduction, backend=backend.name
        )
        loss.sum().backward()
        assert x.grad is not None
        check_loss(logits, labels, loss.detach().cpu(), x.grad.cpu(), mixed=mixed, reduction=reduction)
        check_count(logits, labels, n_correct)


def test_mixing_with_itself_is_no_mixing(backend: Backend) -> None:
    logits, labels, _ = batch(9, 10)
    on = [value.to(backend.device) for value in (logits, labels)]
    weight = torch.linspace(0, 1, 9, device=backend.device)
    plain = true_label_cross_entropy(*on, backend=backend.name)
    mixed = true_label_cross_entropy(*on, mixed_labels=on[1], mixed_weight=weight, backend=backend.name)
    assert torch.allclose(plain, mixed, rtol=1e-6, atol=0)


STRIDED = {
    "transposed": lambda x: x.t().contiguous().t(),
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every third row": lambda x: x.repeat_interleave(3, 0)[::3],
    "inner columns": lambda x: F.pad(x, (3, 5))[:, 3:-5],
}


@pytest.mark.parametrize("how", STRIDED)
@pytest.mark.parametrize("classes", [10, 100])
def test_strides_change_nothing(backend: Backend, classes: int, how: str) -> None:
    logits, labels, ids = batch(21, classes)
    strided = STRIDED[how](logits.to(backend.device))
    assert strided.stride() != logits.stride()
    for got, want in zip(forget(backend, strided, labels, ids), forget(backend, logits, labels, ids), strict=True):
        assert torch.equal(got, want)


def test_one_row_for_all(backend: Backend) -> None:
    """A stride of 0."""
    row = batch(1, 10)[0].to(backend.device)
    _, labels, ids = batch(7, 10)
    spread = row.expand(7, 10)
    loss, _ = random_label_loss_and_count(
        spread, labels.to(backend.device), ids.to(backend.device), seed=0, step=0, backend=backend.name
    )
    whole, _ = random_label_loss_and_count(
        spread.contiguous(), labels.to(backend.device), ids.to(backend.device), seed=0, step=0, backend=backend.name
    )
    assert torch.equal(loss, whole)


@pytest.mark.slow
def test_offsets_past_2_to_the_31(backend: Backend) -> None:
    """Two rows, 2^31 + 8 elements apart: 4.3 GB of bfloat16, of which only the rows are touched."""
    if backend.is_slow:
        pytest.skip("the interpreter copies what it is given")
    try:
        storage = torch.empty(2**31 + 24, dtype=torch.bfloat16, device=backend.device)
    except (RuntimeError, MemoryError):
        pytest.skip("needs 4.3 GB of memory")
    logits, labels, ids = batch(2, 16, torch.bfloat16)
    far = storage.as_strided((2, 16), (2**31 + 8, 1))
    far.copy_(logits)
    for got, want in zip(forget(backend, far, labels, ids), forget(backend, logits, labels, ids), strict=True):
        assert torch.equal(got, want)


# ---- Labels ----


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (1, 1), (16, 16), (2**63 + 5, 2**32 - 1), (2**64 - 1, 2**31)])
def test_labels_are_those_of_random_labels(backend: Backend, seed: int, step: int) -> None:
    _, labels, ids = batch(65, 10)
    logits = torch.zeros(65, 10)
    for exclude_true in (True, False):
        _, grad, _ = forget(backend, logits, labels, ids, seed=seed, step=step, exclude_true=exclude_true)
        check_labels(labels, ids, grad, seed, step, exclude_true)
    signed = torch.tensor(seed - 2**64 * (seed >> 63), device=backend.device)
    counter = torch.tensor(step + 2**32, device=backend.device)  # taken modulo 2^32
    _, again, _ = forget(backend, logits, labels, ids, seed=signed, step=counter, exclude_true=False)
    assert torch.equal(again, grad)


def test_labels_do_not_depend_on_the_batch(backend: Backend) -> None:
    _, labels, ids = batch(33, 10)
    logits = torch.zeros(33, 10)
    whole = labels_of(forget(backend, logits, labels, ids)[1])
    order = torch.randperm(33)
    assert torch.equal(labels_of(forget(backend, logits, labels[order], ids[order])[1]), whole[order])
    parts = [labels_of(forget(backend, logits[:n], labels[part], ids[part])[1]) for part, n in _parts(33)]
    assert torch.equal(torch.cat(parts), whole)


def _parts(n: int) -> list[tuple[slice, int]]:
    return [(slice(begin, min(begin + 5, n)), min(5, n - begin)) for begin in range(0, n, 5)]


@pytest.mark.parametrize("exclude_true", [True, False])
def test_labels_are_uniform(backend: Backend, exclude_true: bool) -> None:
    """Chi-square over 20,000 draws from fixed seeds; a fair draw would fail with probability 1e-4."""
    n, classes = (2_000 if backend.is_slow else 20_000), 7
    labels = torch.full((n,), 3)
    _, grad, _ = forget(backend, torch.zeros(n, classes), labels, torch.arange(n), exclude_true=exclude_true)
    counts = torch.bincount(labels_of(grad), minlength=classes)
    if exclude_true:
        assert int(counts[3]) == 0
        counts = torch.cat([counts[:3], counts[4:]])
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_each_step_draws_anew(backend: Backend) -> None:
    """Two steps agree on one sample in C - 1, not on more."""
    n, classes = 900, 10
    labels, ids, logits = torch.zeros(n, dtype=torch.int64), torch.arange(n), torch.zeros(n, classes)
    one, two = (labels_of(forget(backend, logits, labels, ids, step=step)[1]) for step in (0, 1))
    assert abs(int((one == two).sum()) - n / 9) < 5 * (n / 9) ** 0.5


# ---- Hard logits ----


def test_extremes(backend: Backend) -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor(
        [
            [1e4, -1e4, 0.0, 3.0],  # exponentials of one are 1, of the others 0
            [-inf, 1.0, 2.0, -inf],  # impossible classes
            [1.0, nan, 2.0, 3.0],
            [inf, 1.0, 2.0, 3.0],  # as in PyTorch: NaN
            [-inf, -inf, -inf, -inf],
            [88.0, 88.0, 88.0, 88.0],  # exp overflows unless the largest is subtracted
            [-3e38, 3e38, 0.0, 1.0],
        ]
    )
    labels = torch.tensor([0, 2, 3, 0, 0, 0, 1])
    wide = [100 * [-5.0] for _ in logits]
    for x in (logits, torch.cat([logits, torch.tensor(wide)], 1)):
        on = x.to(backend.device).requires_grad_()
        loss, n_correct = true_label_loss_and_count(
            on, labels.to(backend.device), reduction="none", backend=backend.name
        )
        loss[[0, 1, 5, 6]].sum().backward()
        want = F.cross_entropy(x, labels, reduction="none")
        assert torch.equal(loss.isnan().cpu(), want.isnan())
        torch.testing.assert_close(loss.detach().cpu(), want, equal_nan=True)
        check_count(x, labels, n_correct)
        # -Inf at the label is an infinite loss, not NaN.
        infinite = true_label_cross_entropy(
            x[1:2].to(backend.device), torch.tensor([0], device=backend.device), backend=backend.name
        )
        assert float(infinite.detach()) == inf


def test_ties_go_to_the_first(backend: Backend) -> None:
    for classes in (3, 130):
        logits = torch.zeros(classes, classes)
        logits[:, 2] = 1.0
        logits[1:, 1] = 1.0
        for label in range(3):
            labels = torch.full((classes,), label)
            _, _, n_correct = forget(backend, logits, labels, torch.arange(classes))
            check_count(logits, labels, n_correct)


# ---- Autograd ----


def test_backward_scales_and_repeats(backend: Backend) -> None:
    logits, labels, ids = (value.to(backend.device) for value in batch(9, 10))
    x = logits.requires_grad_()
    loss = random_label_cross_entropy(x, labels, ids, seed=0, step=0, backend=backend.name)
    (once,) = torch.autograd.grad(loss, x, retain_graph=True)
    once = once.clone()
    (thrice,) = torch.autograd.grad(3 * loss, x, retain_graph=True)
    torch.testing.assert_close(thrice, 3 * once)
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    loss.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 3 * once)


def test_rows_have_their_own_outer_gradient(backend: Backend) -> None:
    logits, labels, ids = (value.to(backend.device) for value in batch(9, 10))
    outer = torch.linspace(-1, 2, 9, device=backend.device)
    for dtype in (torch.float32, torch.bfloat16):
        x = logits.to(dtype).clone().requires_grad_()
        each = random_label_cross_entropy(x, labels, ids, seed=0, step=0, reduction="none", backend=backend.name)
        each.backward(outer)
        y = logits.to(dtype).clone().requires_grad_()
        drawn = random_labels(labels, ids, num_classes=10, seed=0, step=0)
        F.cross_entropy(y.float(), drawn, reduction="none").backward(outer)
        torch.testing.assert_close(x.grad, y.grad)
        assert x.grad is not None
        assert x.grad.dtype == dtype


def test_without_gradient(backend: Backend) -> None:
    logits, labels, ids = (value.to(backend.device) for value in batch(9, 10))
    arguments: dict[str, Any] = {"seed": 0, "step": 0, "backend": backend.name}
    plain = random_label_cross_entropy(logits, labels, ids, **arguments)
    assert not plain.requires_grad
    x = logits.clone().requires_grad_()
    with torch.no_grad():
        assert torch.equal(random_label_cross_entropy(x, labels, ids, **arguments), plain)
    with torch.inference_mode():
        assert torch.equal(random_label_cross_entropy(x, labels, ids, **arguments), plain)
    assert torch.equal(random_label_cross_entropy(x, labels, ids, **arguments).detach(), plain)


def test_a_second_derivative_raises(backend: Backend) -> None:
    logits, labels, ids = (value.to(backend.device) for value in batch(9, 10))
    loss = random_label_cross_entropy(logits.requires_grad_(), labels, ids, seed=0, step=0, backend=backend.name)
    with pytest.raises(RuntimeError, match=r"^the loss of seamfast\.ops has no second derivative; call backward\(\)"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_the_mean_of_nothing_is_nan(backend: Backend) -> None:
    logits, labels, ids = batch(0, 10)
    for reduction, want in (
        ("mean", F.cross_entropy(logits, labels)),
        ("sum", torch.zeros(())),
        ("none", torch.zeros(0)),
    ):
        loss, grad, n_correct = forget(backend, logits, labels, ids, reduction=reduction)
        assert torch.equal(loss.isnan(), want.isnan())
        assert loss.shape == want.shape
        assert grad.shape == (0, 10)
        assert int(n_correct) == 0


# ---- C++: nothing depends on threads or instruction set ----


def test_threads_and_isa_change_no_bit(native: Any) -> None:
    for classes, n in ((10, 20_000), (65, 3_000), (1000, 203)):
        logits, labels, ids = batch(n, classes)
        args = CrossEntropyArguments(logits, labels, ids, None, None, 1, 2, True, "mean", True, "cpp", 1)
        results = [
            cpp.cross_entropy(args._replace(threads=threads), isa)
            for threads, isa in itertools.product((1, 2, 5), native.isas())
        ]
        for result in results[1:]:
            for got, want in zip(result, results[0], strict=True):
                assert torch.equal(got, want)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 40),
    classes=st.integers(2, 150),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
)
def test_cpp_is_the_reference(native: Any, n: int, classes: int, scale: float, seed: int, step: int) -> None:
    logits, labels, ids = batch(n, classes, seed=seed % 1000)
    found = []
    for name in ("reference", "cpp"):
        x = (scale * logits).requires_grad_()
        loss, n_correct = random_label_loss_and_count(
            x, labels, ids, seed=seed, step=step, reduction="sum", backend=name
        )
        loss.backward()
        found.append((loss.detach(), x.grad, n_correct))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert int(found[0][2]) == int(found[1][2])


# ---- Invalid arguments ----

GOOD: dict[str, Any] = {
    "logits": torch.zeros(4, 10),
    "labels": torch.arange(4),
    "sample_ids": torch.arange(4),
    "seed": 0,
    "step": 0,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": [[0.0]]}, DTypeError, "logits is a list; expected a torch.Tensor"),
        (
            {"logits": torch.zeros(4, 10).double()},
            DTypeError,
            "logits has dtype float64; expected one of float32, bfloat16, float16",
        ),
        ({"logits": torch.zeros(10)}, ShapeError, "logits has shape (10,); expected (N, C)"),
        ({"logits": torch.zeros(4, 1)}, ShapeError, "logits has shape (4, 1); expected (N, C) with C in [2, 100000]"),
        ({"labels": torch.zeros(4)}, DTypeError, "labels has dtype float32; expected int64"),
        ({"labels": torch.arange(3)}, ShapeError, "labels has shape (3,); expected (N,) = (4,)"),
        ({"sample_ids": torch.arange(3)}, ShapeError, "sample_ids has shape (3,); expected (N,) = (4,)"),
        (
            {"labels": torch.tensor([0, 1, 10, 3])},
            InputError,
            "labels hold 10 at position 2; expected integers in [0, 10)",
        ),
        (
            {"labels": torch.tensor([0, -1, 10, 3])},
            InputError,
            "labels hold -1 at position 1; expected integers in [0, 10)",
        ),
        (
            {"seed": -1},
            InputError,
            "seed is -1; expected an integer in [0, 18446744073709551615] or an int64 0-d tensor",
        ),
        (
            {"step": 2**32},
            InputError,
            "step is 4294967296; expected an integer in [0, 4294967295] or an int64 0-d tensor",
        ),
        (
            {"step": torch.zeros(1, dtype=torch.int64)},
            ShapeError,
            "step has shape (1,); expected () for a counter on the device",
        ),
        ({"seed": torch.zeros(())}, DTypeError, "seed has dtype float32; expected int64"),
        ({"exclude_true": 1}, InputError, "exclude_true is 1; expected True or False"),
        ({"reduction": "max"}, InputError, "reduction is 'max'; expected one of none, sum, mean"),
        ({"threads": 1025}, InputError, "threads is 1025; expected an integer in [0, 1024]"),
        ({"backend": "gpu"}, InputError, "backend is 'gpu'; expected one of auto, reference, cpp, triton, cuda"),
        ({"labels": torch.arange(4).to("meta")}, InputError, "labels is on meta; expected cpu"),
    ],
)
def test_invalid_arguments_raise(native: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    for fallback in ("cpp", "reference"):
        with pytest.raises(error) as caught:
            random_label_cross_entropy(**{**GOOD, "backend": fallback, **change})
        assert str(caught.value) == message


def test_mixed_labels_come_with_their_weights(native: Any) -> None:
    logits, labels = GOOD["logits"], GOOD["labels"]
    for given_, missing in (("labels", "weight"), ("weight", "labels")):
        value = {f"mixed_{given_}": labels if given_ == "labels" else torch.zeros(4)}
        with pytest.raises(InputError) as caught:
            true_label_cross_entropy(logits, labels, **value)
        assert str(caught.value) == f"got mixed_{given_} without mixed_{missing}; expected both or neither"
    for name in ("cpp", "reference"):
        with pytest.raises(InputError) as caught:
            true_label_cross_entropy(logits, labels, mixed_labels=labels + 8, mixed_weight=torch.zeros(4), backend=name)
        assert str(caught.value) == "mixed_labels hold 10 at position 2; expected integers in [0, 10)"
    weight = torch.zeros(4, requires_grad=True)
    with pytest.raises(InputError, match=r"^mixed_weight requires grad; expected a tensor that does not$"):
        true_label_cross_entropy(logits, labels, mixed_labels=labels, mixed_weight=weight)


@pytest.mark.parametrize("classes", [10, 20_000])
def test_a_label_out_of_range_gives_nan_on_a_gpu(backend: Backend, classes: int) -> None:
    """Where nothing may wait for the device, the loss of the row is NaN, and no other memory is read or written."""
    if backend.name not in ("triton", "cuda"):
        pytest.skip("it raises here, or fails an assertion on the device")
    backend.needs_classes(classes)
    logits = torch.zeros(3, classes, device=backend.device)
    labels = torch.tensor([0, classes + 5, -7], device=backend.device)
    loss, n_correct = true_label_loss_and_count(logits, labels, reduction="none", backend=backend.name)
    assert loss.isnan().tolist() == [False, True, True]
    assert int(n_correct) == 1


def test_a_named_backend_that_cannot_run_raises() -> None:
    with pytest.raises(BackendUnavailableError, match=r"^backend 'cuda' (runs on cuda tensors|cannot run)"):
        random_label_cross_entropy(**GOOD, backend="cuda")
