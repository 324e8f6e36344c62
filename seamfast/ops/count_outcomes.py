"""``count_outcomes``: accuracy and attack success of a batch of logits, as counters on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.checks import MAX_THREADS, as_integer, check_tensor, check_vector
from seamfast.errors import InputError, ShapeError
from seamfast.ops import library
from seamfast.ops.arguments import CountArguments, check_contiguous, check_logits

__all__ = ["OUTCOMES", "count_outcomes"]

OUTCOMES = ("n_samples", "n_correct", "n_eligible", "n_hit", "n_restored", "n_nan")
"""The columns of the counters."""


def count_outcomes(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor | None = None,
    trigger_ids: Tensor | int | None = None,
    *,
    counters: Tensor | None = None,
    class_correct: Tensor | None = None,
    backend: str = "auto",
    threads: int = 0,
) -> Tensor:
    """``((logits.argmax(1) == labels).sum(), ...)``: adds a batch's outcomes to int64 counters, without a host sync.

    One row of counters for each trigger and, last, one for samples without a trigger. The prediction is the class of
    the largest logit, the first of equals; a row with NaN predicts nothing.

    Args:
        logits: ``(N, C)`` float32, bfloat16 or float16, of any strides, on any device; N from 0, C from 1.
        labels: ``(N,)`` int64, the true classes, in ``[0, C)``.
        targets: ``(T, C)`` int64, the class that the attacker wants for each true class; where that is the true class
            itself, a sample is not eligible. T is 0 without ``targets``.
        trigger_ids: the trigger that each sample carries: ``(N,)`` int64 in ``[-1, T)``, -1 for none; or one integer
            for all. ``None`` is 0 if there are ``targets``, else -1.
        counters: ``(T + 1, 6)`` int64 to add to, contiguous; ``None`` starts from zeros.
        class_correct: ``(T + 1, C)`` int64, contiguous: correct predictions by true class are added to it.
        backend: ``"auto"``, ``"reference"``, ``"cpp"`` or ``"triton"``.
        threads: for ``"cpp"``, at most so many; 0 is as many as PyTorch has.

    Returns:
        ``(T + 1, 6)`` int64 on the device: ``counters``, if given. Row ``t`` is of trigger ``t``, row -1 of the samples
        without. The columns are ``OUTCOMES``: ``n_samples``; ``n_correct``, predicted as the true class;
        ``n_eligible``, whose target is another class; of these ``n_hit``, predicted as the target, and ``n_restored``,
        predicted as the true class; ``n_nan``, rows with NaN, which are neither.

    Raises:
        ShapeError: ``targets has shape (2, 3); expected (T, C) with C = 10``.
        DTypeError: ``counters has dtype int32; expected int64``.
        InputError: ``labels hold 10 at position 2; expected integers in [0, 10)``; nothing has been counted then. On a
            CUDA device nothing waits for the host: there a row with a label or trigger out of range is an assertion on
            the device, or counts in no column.
        BackendUnavailableError: a named backend cannot run; the message gives the reason.

    Source:
        Gu et al., arXiv 1708.06733 (attack success rate over the samples of other classes than the target).

    Example:
        >>> logits = torch.eye(3)[[0, 1, 0]]
        >>> count_outcomes(logits, torch.tensor([0, 1, 2]), targets=torch.tensor([[0, 0, 0]])).tolist()
        [[3, 2, 2, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    """
    check_logits(logits)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ShapeError(f"logits has shape {tuple(logits.shape)}; expected (N, C)")
    n, classes = logits.shape
    device = logits.device
    check_vector("labels", labels, torch.int64, length=n, device=device)
    if trigger_ids is None:
        trigger_ids = -1 if targets is None else 0
    if targets is None:
        targets = torch.empty(0, classes, dtype=torch.int64, device=device)
    _check("targets", targets, ("T", "C"), (None, classes), device)
    triggers = targets.shape[0]
    if not isinstance(trigger_ids, Tensor):
        one = as_integer("trigger_ids", trigger_ids, -1, triggers - 1, " or a tensor of such")
        trigger_ids = torch.full((n,), one, dtype=torch.int64, device=device) if one >= 0 else None
    else:
        check_vector("trigger_ids", trigger_ids, torch.int64, length=n, device=device)
    if counters is None:
        counters = torch.zeros(triggers + 1, len(OUTCOMES), dtype=torch.int64, device=device)
    _check("counters", counters, ("T + 1", "6"), (triggers + 1, len(OUTCOMES)), device)
    if class_correct is not None:
        _check("class_correct", class_correct, ("T + 1", "C"), (triggers + 1, classes), device)
    threads = as_integer("threads", threads, 0, MAX_THREADS)
    args = CountArguments(counters, class_correct, logits, labels, trigger_ids, targets, backend, threads)
    library.call("count_outcomes", args)
    return counters


def _check(
    name: str, value: Tensor, names: tuple[str, ...], sizes: tuple[int | None, ...], device: torch.device
) -> None:
    check_tensor(name, value, torch.int64)
    if value.ndim != len(sizes) or any(w is not None and g != w for g, w in zip(value.shape, sizes, strict=True)):
        wanted = "".join(f", {n} = {w}" for n, w in zip(names, sizes, strict=True) if w is not None and n != str(w))
        shape = f"({', '.join(names)}) with {wanted[2:]}"
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; expected {shape}")
    if value.device != device:
        raise InputError(f"{name} is on {value.device}; expected {device}")
    check_contiguous(name, value)
