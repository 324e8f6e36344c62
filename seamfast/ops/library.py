"""The ops as ``torch.ops.seamfast.*``: schemas, fake kernels, autograd; and the shortest way to run one.

Under ``torch.compile``, fake tensors or any other mode that intercepts operators, an op goes through PyTorch's
dispatcher. Everywhere else its backend is called directly: the dispatcher and its generic autograd cost more (30 to
40 µs a call from Python) than the C++ kernels take for a batch. Both ways run the same code below.

A schema takes the fields of the op's record one by one, in their order. The backend is chosen inside the operator,
which a compiler does not trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from seamfast.ops.arguments import (
    CountArguments,
    CrossEntropyArguments,
    GatherArguments,
    OccludeArguments,
    StampArguments,
    empty_batch,
)
from seamfast.ops.dispatch import package, resolve
from seamfast.ops.philox import Counter

__all__ = ["call", "cross_entropy"]

_PLAIN = {Tensor, torch.nn.Parameter, type(None)}

_LIBRARY: Any = torch.library.Library("seamfast", "DEF")  # type: ignore[no-untyped-call]


def call(op: str, args: Any) -> Any:
    """Runs ``op`` on its record, by the shortest way."""
    if _is_watched(args):
        return getattr(torch.ops.seamfast, op)(*_values(op, args))
    return _run(op, args)


def cross_entropy(args: CrossEntropyArguments) -> tuple[Tensor, Tensor]:
    """``(loss, n_correct)`` of the op ``cross_entropy``, part of autograd."""
    if _is_watched(args):
        loss, _, n_correct = torch.ops.seamfast.cross_entropy(*_values("cross_entropy", args))
        return loss, n_correct
    loss, grad, n_correct = _run("cross_entropy", args)
    if args.want_grad:
        loss = _WithGradient.apply(args.logits, (loss, grad))  # type: ignore[no-untyped-call]
    return loss, n_correct


def _is_watched(args: Any) -> bool:
    """Whether the call goes through the dispatcher: under a compiler, in a dispatch mode, with a tensor subclass."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return True
    for value in args[:4]:  # noqa: SIM110 - any() of a generator takes longer than the rest of this function
        if type(value) not in _PLAIN and isinstance(value, Tensor):
            return True
    return False


def _run(op: str, args: Any) -> Any:
    return getattr(package(resolve(op, args.backend, args[0].device)), op)(args)


# ---- Records and schemas ----


class _Op(NamedTuple):
    record: Any
    returns: str
    fake: Callable[[Any], Any]
    written: tuple[str, ...] = ()  # fields


def _fake_cross_entropy(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    logits = args.logits
    loss = logits.new_empty((logits.shape[0],) if args.reduction == "none" else (), dtype=torch.float32)
    grad = logits.new_empty(logits.shape if args.want_grad else (0,))
    return loss, grad, logits.new_empty((), dtype=torch.int64)


def _fake_occlude(args: OccludeArguments) -> tuple[Tensor, Tensor]:
    return torch.empty_like(args.images), torch.empty_like(args.images)


_OPS = {
    "cross_entropy": _Op(CrossEntropyArguments, "(Tensor loss, Tensor grad, Tensor n_correct)", _fake_cross_entropy),
    "gather_augment": _Op(GatherArguments, "Tensor", empty_batch),
    "stamp_trigger": _Op(StampArguments, "Tensor", empty_batch),
    "occlude": _Op(OccludeArguments, "(Tensor occluded, Tensor neutral)", _fake_occlude),
    "count_outcomes": _Op(CountArguments, "()", lambda args: None, written=("counters", "class_correct")),
}

_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    torch.dtype: "ScalarType",
    tuple[float, ...]: "float[]",
}

# A counter takes two places of the schema: a number, and the tensor that is in force where one is given.
_IS_COUNTER = {name: tuple(kind == Counter for kind in get_type_hints(op.record).values()) for name, op in _OPS.items()}


def _schema(op: _Op) -> str:
    """Such as ``(Tensor images, SymInt seed, Tensor? seed_tensor, bool flip) -> Tensor``."""
    places = []
    for name, kind in get_type_hints(op.record).items():
        if kind == Counter:
            places += [f"SymInt {name}", f"Tensor? {name}_tensor"]
        elif name in op.written:
            alias = f"Tensor({name[:2]}!)"  # any name, one for each
            places.append(f"{_SCHEMA_TYPES[kind].replace('Tensor', alias)} {name}")
        else:
            places.append(f"{_SCHEMA_TYPES[kind]} {name}")
    return f"({', '.join(places)}) -> {op.returns}"


def _values(op: str, args: Any) -> list[Any]:
    """The record as the values of the schema."""
    values: list[Any] = []
    for value, is_counter in zip(args, _IS_COUNTER[op], strict=True):
        values.append(0 if is_counter and isinstance(value, Tensor) else value)
        if is_counter:
            values.append(value if isinstance(value, Tensor) else None)
    return values


def _record(op: str, values: tuple[Any, ...]) -> Any:
    """The values of the schema as the record."""
    rest = iter(values)
    fields = []
    for is_counter in _IS_COUNTER[op]:
        value = next(rest)
        tensor = next(rest) if is_counter else None
        fields.append(value if tensor is None else tensor)
    return _OPS[op].record(*fields)


def _register(name: str, op: _Op) -> None:
    def run(*values: Any) -> Any:
        return _run(name, _record(name, values))

    def fake(*values: Any) -> Any:
        return op.fake(_record(name, values))

    _LIBRARY.define(name + _schema(op))
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"seamfast::{name}", fake, lib=_LIBRARY)


for _name, _op in _OPS.items():
    _register(_name, _op)


# ---- Autograd: the gradient is computed with the loss; the backward pass scales it. ----


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
        # It is 1 nearly always. On the CPU reading it costs nothing; elsewhere it would wait for the device.
        if outer.ndim == 0 and outer.device.type == "cpu" and outer.item() == 1:
            return grad, None
        return _scaled(grad, outer), None
