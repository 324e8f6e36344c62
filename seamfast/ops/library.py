"""The ops as ``torch.ops.seamfast.*``: schemas, fake kernels, autograd; and the shortest way to run one.

Under ``torch.compile``, fake tensors or any other mode that watches operators, an op goes through PyTorch's dispatcher.
Everywhere else its implementation is called directly: the dispatcher and its generic autograd cost more (30 to 40 µs a
call from Python) than the C++ kernels take for a batch. Both ways run the same code below.

Every implementation takes the backend's name: which backend runs is settled in here, where a compiler does not look.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from seamfast.ops.dispatch import package, resolve
from seamfast.ops.normalization import normalization

__all__ = ["MEAN", "NONE", "REDUCTIONS", "SUM", "call", "cross_entropy"]

REDUCTIONS = ("none", "sum", "mean")
NONE, SUM, MEAN = range(3)

_PLAIN = {Tensor, torch.nn.Parameter, type(None)}

_LIBRARY: Any = torch.library.Library("seamfast", "DEF")  # type: ignore[no-untyped-call]

# A seed or step is an integer, or, where one is given, the tensor after it: a counter on the device, which a captured
# graph reads anew at each replay.
_SCHEMAS = {
    "cross_entropy": """(Tensor logits, Tensor labels, Tensor? sample_ids, Tensor? mixed_labels, Tensor? mixed_weight,
        SymInt seed, Tensor? seed_tensor, SymInt step, Tensor? step_tensor, bool exclude_true, float label_smoothing,
        int reduction, bool want_grad, str backend, int threads) -> (Tensor loss, Tensor grad, Tensor n_correct)""",
    "gather_augment": """(Tensor images, Tensor indices, float[] mean, float[] std, int pad, bool flip,
        SymInt seed, Tensor? seed_tensor, SymInt epoch, Tensor? epoch_tensor, ScalarType dtype, bool channels_last,
        str backend, int threads) -> Tensor""",
    "gather_augment_out": """(Tensor images, Tensor indices, float[] mean, float[] std, int pad, bool flip,
        SymInt seed, Tensor? seed_tensor, SymInt epoch, Tensor? epoch_tensor, ScalarType dtype, bool channels_last,
        str backend, int threads, Tensor(a!) out) -> ()""",
    "stamp_trigger": """(Tensor images, Tensor indices, Tensor trigger_ids, Tensor sample_ids, Tensor rows,
        Tensor device_rows, Tensor numbers, float[] mean, float[] std, SymInt seed, Tensor? seed_tensor,
        ScalarType dtype, bool channels_last, str backend, int threads) -> Tensor""",
    "stamp_trigger_out": """(Tensor images, Tensor indices, Tensor trigger_ids, Tensor sample_ids, Tensor rows,
        Tensor device_rows, Tensor numbers, float[] mean, float[] std, SymInt seed, Tensor? seed_tensor,
        ScalarType dtype, bool channels_last, str backend, int threads, Tensor(a!) out) -> ()""",
    "occlude": """(Tensor images, Tensor mean, Tensor lowest, Tensor highest, Tensor sample_ids, int n_rectangles,
        float largest, SymInt seed, Tensor? seed_tensor, SymInt step, Tensor? step_tensor, str backend, int threads)
        -> (Tensor occluded, Tensor neutral)""",
    "count_outcomes": """(Tensor(a!) counters, Tensor(b!)? class_correct, Tensor(c!)? confusion, Tensor logits,
        Tensor labels, Tensor? trigger_ids, Tensor targets, str backend, int threads) -> ()""",
}


def call(name: str, *arguments: Any) -> Any:
    """``torch.ops.seamfast.<name>(*arguments)``, by the shortest way."""
    if is_watched(*arguments[:4]):
        return getattr(torch.ops.seamfast, name)(*arguments)
    return _IMPLEMENTATIONS[name](*arguments)


def is_watched(*arguments: Any) -> bool:
    """Whether somebody wants to see the operator: a compiler, a dispatch mode, a tensor subclass as an argument."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return True
    for value in arguments:  # noqa: SIM110 - any() of a generator takes longer than all the rest of this
        if type(value) not in _PLAIN and isinstance(value, Tensor):
            return True
    return False


# ---- Implementations: settle the backend, put the arguments together, run. ----


def _backend(op: str, backend: str, device: torch.device) -> ModuleType:
    return package(resolve(op, backend, device))


def _unsigned(value: int, tensor: Tensor | None) -> int | Tensor:
    return value & (2**64 - 1) if tensor is None else tensor


def _cross_entropy(
    logits: Tensor,
    labels: Tensor,
    sample_ids: Tensor | None,
    mixed_labels: Tensor | None,
    mixed_weight: Tensor | None,
    seed: int,
    seed_tensor: Tensor | None,
    step: int,
    step_tensor: Tensor | None,
    exclude_true: bool,
    label_smoothing: float,
    reduction: int,
    want_grad: bool,
    backend: str,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _backend("cross_entropy", backend, logits.device).cross_entropy(
        logits.detach(),
        labels,
        sample_ids,
        mixed_labels,
        mixed_weight,
        seed=_unsigned(seed, seed_tensor),
        step=step if step_tensor is None else step_tensor,
        exclude_true=exclude_true,
        label_smoothing=label_smoothing,
        reduction=reduction,
        want_grad=want_grad,
        threads=threads,
    )
    return result


def _gather_augment(
    images: Tensor,
    indices: Tensor,
    mean: list[float],
    std: list[float],
    pad: int,
    flip: bool,
    seed: int,
    seed_tensor: Tensor | None,
    epoch: int,
    epoch_tensor: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
    backend: str,
    threads: int,
    out: Tensor | None = None,
) -> Tensor:
    result: Tensor = _backend("gather_augment", backend, images.device).gather_augment(
        images,
        indices,
        normalization=normalization(mean, std, images.shape[1]),
        pad=pad,
        flip=flip,
        seed=_unsigned(seed, seed_tensor),
        epoch=epoch if epoch_tensor is None else epoch_tensor,
        dtype=dtype,
        channels_last=channels_last,
        threads=threads,
        out=out,
    )
    return result


def _stamp_trigger(
    images: Tensor,
    indices: Tensor,
    trigger_ids: Tensor,
    sample_ids: Tensor,
    rows: Tensor,
    device_rows: Tensor,
    numbers: Tensor,
    mean: list[float],
    std: list[float],
    seed: int,
    seed_tensor: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
    backend: str,
    threads: int,
    out: Tensor | None = None,
) -> Tensor:
    result: Tensor = _backend("stamp_trigger", backend, images.device).stamp_trigger(
        images,
        indices,
        trigger_ids,
        sample_ids,
        rows=rows,
        device_rows=device_rows,
        numbers=numbers,
        normalization=normalization(mean, std, images.shape[1]),
        seed=_unsigned(seed, seed_tensor),
        dtype=dtype,
        channels_last=channels_last,
        threads=threads,
        out=out,
    )
    return result


def _count_outcomes(
    counters: Tensor,
    class_correct: Tensor | None,
    confusion: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    trigger_ids: Tensor | None,
    targets: Tensor,
    backend: str,
    threads: int,
) -> None:
    _backend("count_outcomes", backend, logits.device).count_outcomes(
        counters, class_correct, confusion, logits.detach(), labels, trigger_ids, targets, threads=threads
    )


def _occlude(
    images: Tensor,
    mean: Tensor,
    lowest: Tensor,
    highest: Tensor,
    sample_ids: Tensor,
    n_rectangles: int,
    largest: float,
    seed: int,
    seed_tensor: Tensor | None,
    step: int,
    step_tensor: Tensor | None,
    backend: str,
    threads: int,
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _backend("occlude", backend, images.device).occlude(
        images,
        mean,
        lowest,
        highest,
        sample_ids,
        n_rectangles=n_rectangles,
        largest=largest,
        seed=_unsigned(seed, seed_tensor),
        step=step if step_tensor is None else step_tensor,
        threads=threads,
    )
    return result


def _into_out(implementation: Any) -> Any:
    """The form that returns nothing, as a schema without a result asks for."""

    def into_out(*arguments: Any) -> None:
        implementation(*arguments)

    return into_out


_IMPLEMENTATIONS: dict[str, Any] = {
    "cross_entropy": _cross_entropy,
    "gather_augment": _gather_augment,
    "gather_augment_out": _gather_augment,
    "stamp_trigger": _stamp_trigger,
    "stamp_trigger_out": _stamp_trigger,
    "count_outcomes": _count_outcomes,
    "occlude": _occlude,
}

for _name, _schema in _SCHEMAS.items():
    _LIBRARY.define(_name + " ".join(_schema.split()))
    _run: Any = _IMPLEMENTATIONS[_name]
    _run = _into_out(_run) if _schema.endswith("-> ()") else _run
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _run, _device)


# ---- Fake kernels: shapes, dtypes and layouts, for compilers. ----


def _fake_cross_entropy(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    reduction, want_grad = others[-4:-2]
    shape = (logits.shape[0],) if reduction == NONE else ()
    grad = logits.new_empty(logits.shape if want_grad else (0,))
    return logits.new_empty(shape, dtype=torch.float32), grad, logits.new_empty((), dtype=torch.int64)


def _fake_batch(images: Tensor, indices: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (indices.shape[0], *images.shape[1:])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=layout)


def _fake_gather_augment(images: Tensor, indices: Tensor, *others: Any) -> Tensor:
    return _fake_batch(images, indices, *others[-4:-2])


def _fake_occlude(images: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(images), torch.empty_like(images)


def _fake_nothing(*arguments: Any) -> None:
    return None


torch.library.register_fake("seamfast::cross_entropy", _fake_cross_entropy, lib=_LIBRARY)
for _name in ("gather_augment", "stamp_trigger"):
    torch.library.register_fake(f"seamfast::{_name}", _fake_gather_augment, lib=_LIBRARY)
    torch.library.register_fake(f"seamfast::{_name}_out", _fake_nothing, lib=_LIBRARY)
torch.library.register_fake("seamfast::occlude", _fake_occlude, lib=_LIBRARY)
torch.library.register_fake("seamfast::count_outcomes", _fake_nothing, lib=_LIBRARY)


# ---- Autograd: the loss's gradient is there when the loss is; the backward pass scales it. ----


def _keep_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.n_inputs = len(inputs)


def _backward(ctx: Any, outer: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return (None if outer is None else _scaled(grad, outer), *[None] * (ctx.n_inputs - 1))


def _scaled(grad: Tensor, outer: Tensor) -> Tensor:
    return (grad * outer[:, None]).to(grad.dtype) if outer.ndim else grad * outer


torch.library.register_autograd("seamfast::cross_entropy", _backward, setup_context=_keep_grad, lib=_LIBRARY)


class _WithGradient(torch.autograd.Function):
    """A loss that was computed together with its gradient, as a node of autograd: of two arguments, to be cheap."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss_and_grad: tuple[Tensor, Tensor]) -> Tensor:
        loss, grad = loss_and_grad
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the loss of seamfast.ops has no second derivative; call backward() without create_graph=True"
            )
        (grad,) = ctx.saved_tensors
        # Nearly always 1, and on the CPU looking is free; elsewhere it would wait for the device.
        if outer.ndim == 0 and outer.device.type == "cpu" and outer.item() == 1:
            return grad, None
        return _scaled(grad, outer), None


def cross_entropy(*arguments: Any) -> tuple[Tensor, Tensor]:
    """``(loss, n_correct)`` of the op ``cross_entropy``, part of autograd."""
    logits, want_grad = arguments[0], arguments[-3]
    if is_watched(*arguments[:3]):
        loss, _, n_correct = torch.ops.seamfast.cross_entropy(*arguments)
        return loss, n_correct
    loss, grad, n_correct = _cross_entropy(*arguments)
    if want_grad:
        loss = _WithGradient.apply(logits, (loss, grad))  # type: ignore[no-untyped-call]
    return loss, n_correct
