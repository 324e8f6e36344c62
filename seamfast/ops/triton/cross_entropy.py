"""``cross_entropy`` as Triton kernels: labels drawn, loss, gradient and count, the logits read once or, past 16,384
classes, twice.

Launch table, by number of classes C:

=============  ====================  =====================================================================
C              rows a program        why
=============  ====================  =====================================================================
2 to 1024      2048 / next power     small rows would leave most lanes of a program idle
to 16,384      1, 4 to 16 warps      the row stays in registers: read once, the gradient written once
above          1, 16 warps, tiles    the row does not fit: running maximum and sum, then a pass for the gradient
=============  ====================  =====================================================================

The sum over rows is deterministic: each program writes its part, and the last one to finish, by an integer ticket, adds
all parts in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seamfast.ops.arguments import CrossEntropyArguments
from seamfast.ops.philox import STREAM_LABELS
from seamfast.ops.triton.philox import below, counter, draw_words, scalar

_IN_REGISTERS = 16_384
_TILE = 8192
_LABELS = tl.constexpr(STREAM_LABELS)


@triton.jit
def _drawn(labels, ids, seed, step, classes, EXCLUDE_TRUE: tl.constexpr):
    """The labels of the forgetting step, for a block of rows."""
    word, _, _, _ = draw_words(seed, ids, step, _LABELS)
    if EXCLUDE_TRUE:
        wrong = below(word, classes - 1)
        return wrong + (wrong >= labels).to(tl.int64)
    return below(word, classes)


@triton.jit
def _finish(loss, part, n_correct, scratch, parts, programs, scale, NONE_: tl.constexpr):
    """Add a program's part of the loss and its count; the last program adds the parts."""
    tl.atomic_add(scratch + 1, n_correct.to(tl.int64))
    if not NONE_:
        tl.store(parts + tl.program_id(0), part)
        tl.debug_barrier()  # the part is written before the ticket is drawn
        ticket = tl.atomic_add(scratch, 1)
        if ticket == programs - 1:
            tl.debug_barrier()
            lanes = tl.arange(0, 1024)
            sums = tl.zeros((1024,), tl.float32)
            for begin in range(0, programs, 1024):
                at = begin + lanes
                sums += tl.load(parts + at, mask=at < programs, other=0.0, cache_modifier=".cg")
            tl.store(loss, tl.sum(sums, 0) * scale)


@triton.jit(do_not_specialize=["seed", "step"])
def _rows_kernel(
    logits,
    row_stride,
    column_stride,
    labels,
    ids,
    mixed_labels,
    mixed_weight,
    seed: tl.int64,
    seed_pointer,
    step: tl.int64,
    step_pointer,
    loss,
    grad,
    scratch,
    parts,
    n,
    classes,
    programs,
    scale,
    RANDOM: tl.constexpr,
    EXCLUDE_TRUE: tl.constexpr,
    MIXED: tl.constexpr,
    GRAD: tl.constexpr,
    NONE_: tl.constexpr,
    SEED_POINTER: tl.constexpr,
    STEP_POINTER: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < n
    columns = tl.arange(0, BLOCK)
    inside = live[:, None] & (columns[None, :] < classes)
    places = rows[:, None] * row_stride + columns[None, :].to(tl.int64) * column_stride
    x = tl.load(logits + places, mask=inside, other=float("-inf")).to(tl.float32)

    label = tl.load(labels + rows, mask=live, other=0)
    usable = (label >= 0) & (label < classes)
    is_nan = x != x
    nan = tl.max(is_nan.to(tl.int32), 1) > 0
    largest = tl.max(tl.where(is_nan, float("-inf"), x), 1)
    first_place = tl.min(tl.where((x == largest[:, None]) & inside, columns[None, :], BLOCK), 1)
    correct = live & usable & (nan == 0) & (first_place == label)

    first = label
    if RANDOM:
        sample = tl.load(ids + rows, mask=live, other=0)
        first = _drawn(
            label,
            sample,
            scalar(seed, seed_pointer, SEED_POINTER),
            scalar(step, step_pointer, STEP_POINTER),
            classes,
            EXCLUDE_TRUE,
        )
    first_weight = tl.full((ROWS,), 1.0, tl.float32)
    if MIXED:
        second = tl.load(mixed_labels + rows, mask=live, other=0)
        usable = usable & (second >= 0) & (second < classes)
        share = tl.load(mixed_weight + rows, mask=live, other=0.0)
        first_weight = share
        second_weight = 1.0 - share

    below_largest = x - largest[:, None]
    e = tl.exp(below_largest)
    total = tl.sum(e, 1)
    log_total = tl.log(total)
    at_first = columns[None, :] == first[:, None]
    log_first = tl.sum(tl.where(at_first, below_largest, 0.0), 1) - log_total
    # A class of weight 0 adds nothing, even where its probability is 0.
    each = -tl.where(first_weight == 0.0, 0.0, first_weight * log_first)
    if MIXED:
        at_second = columns[None, :] == second[:, None]
        log_second = tl.sum(tl.where(at_second, below_largest, 0.0), 1) - log_total
        each -= tl.where(second_weight == 0.0, 0.0, second_weight * log_second)
    each = tl.where((nan == 0) & usable, each, float("nan"))

    if GRAD:
        slope = e / total[:, None] - tl.where(at_first, first_weight[:, None], 0.0)
        if MIXED:
            slope -= tl.where(at_second, second_weight[:, None], 0.0)
        out = rows[:, None] * classes + columns[None, :]
        tl.store(grad + out, (slope * scale).to(grad.dtype.element_ty), mask=inside)
    if NONE_:
        tl.store(loss + rows, each, mask=live)
    part = tl.sum(tl.where(live, each, 0.0), 0)
    _finish(loss, part, tl.sum(correct.to(tl.int32), 0), scratch, parts, programs, scale, NONE_)


@triton.jit(do_not_specialize=["seed", "step"])
def _tiles_kernel(
    logits,
    row_stride,
    column_stride,
    labels,
    ids,
    mixed_labels,
    mixed_weight,
    seed: tl.int64,
    seed_pointer,
    step: tl.int64,
    step_pointer,
    loss,
    grad,
    scratch,
    parts,
    n,
    classes,
    programs,
    scale,
    RANDOM: tl.constexpr,
    EXCLUDE_TRUE: tl.constexpr,
    MIXED: tl.constexpr,
    GRAD: tl.constexpr,
    NONE_: tl.constexpr,
    SEED_POINTER: tl.constexpr,
    STEP_POINTER: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_row = logits + row * row_stride
    columns = tl.arange(0, BLOCK)

    # Pass 1: running maximum, its first place, and the sum of exponentials below it.
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    place = tl.full((), 0, tl.int32)
    nans = tl.full((), 0, tl.int32)
    for begin in range(0, classes, BLOCK):
        at = begin + columns
        inside = at < classes
        x = tl.load(x_row + at.to(tl.int64) * column_stride, mask=inside, other=float("-inf")).to(tl.float32)
        is_nan = x != x
        nans += tl.max(is_nan.to(tl.int32), 0)
        x = tl.where(is_nan, float("-inf"), x)
        tile_largest = tl.max(x, 0)
        tile_place = tl.min(tl.where((x == tile_largest) & inside, at, 2147483647), 0)
        place = tl.where(tile_largest > largest, tile_place, place)  # strictly: the first of equals stays
        new = tl.maximum(largest, tile_largest)
        anchor = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - anchor) + tl.sum(tl.exp(x - anchor), 0)
        largest = new

    label = tl.load(labels + row)
    usable = (label >= 0) & (label < classes)
    first = label
    if RANDOM:
        first = _drawn(
            label,
            tl.load(ids + row),
            scalar(seed, seed_pointer, SEED_POINTER),
            scalar(step, step_pointer, STEP_POINTER),
            classes,
            EXCLUDE_TRUE,
        )
    first_weight = tl.full((), 1.0, tl.float32)
    if MIXED:
        second = tl.load(mixed_labels + row)
        usable = usable & (second >= 0) & (second < classes)
        share = tl.load(mixed_weight + row)
        first_weight = share
        second_weight = 1.0 - share

    log_total = tl.log(total)
    x_first = tl.load(x_row + first * column_stride, mask=usable, other=0.0).to(tl.float32)
    each = -tl.where(first_weight == 0.0, 0.0, first_weight * (x_first - largest - log_total))
    if MIXED:
        x_second = tl.load(x_row + second * column_stride, mask=usable, other=0.0).to(tl.float32)
        each -= tl.where(second_weight == 0.0, 0.0, second_weight * (x_second - largest - log_total))
    broken = (nans > 0) | (largest == float("-inf")) | (largest == float("inf")) | (usable == 0)
    each = tl.where(broken, float("nan"), each)

    # Pass 2: the gradient.
    if GRAD:
        inverse = tl.where(broken & usable, float("nan"), 1.0 / total)
        for begin in range(0, classes, BLOCK):
            at = begin + columns
            inside = at < classes
            x = tl.load(x_row + at.to(tl.int64) * column_stride, mask=inside, other=float("-inf")).to(tl.float32)
            slope = tl.exp(x - largest) * inverse - tl.where(at == first, first_weight, 0.0)
            if MIXED:
                slope -= tl.where(at == second, second_weight, 0.0)
            tl.store(grad + row * classes + at, (slope * scale).to(grad.dtype.element_ty), mask=inside)
    if NONE_:
        tl.store(loss + row, each)
    correct = usable & (nans == 0) & (place == label)
    _finish(loss, each, correct.to(tl.int32), scratch, parts, programs, scale, NONE_)


def launch_of(classes: int) -> tuple[bool, int, int, int]:
    """``(tiled, rows a program, columns a block, warps)`` for so many classes."""
    if classes > _IN_REGISTERS:
        return True, 1, _TILE, 16
    block = max(2, triton.next_power_of_2(classes))
    return False, max(1, min(64, 2048 // block)), block, 4 if block <= 2048 else 8 if block <= 4096 else 16


def cross_entropy(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference's; a label out of range makes its row's loss NaN, and never correct."""
    logits, device, each = args.logits, args.logits.device, args.reduction == "none"
    n, classes = logits.shape
    tiled, rows, block, warps = launch_of(classes)
    programs = triton.cdiv(n, rows)
    scratch = torch.zeros(2, dtype=torch.int64, device=device)  # ticket, count of correct
    grad = torch.empty((n, classes) if args.want_grad else 0, dtype=logits.dtype, device=device)
    if n == 0:
        empty = float("nan") if args.reduction == "mean" else 0.0
        return torch.full((0,) if each else (), empty, device=device), grad, scratch[1]
    loss = torch.empty((n,) if each else (), device=device)
    labels = args.labels.contiguous()
    with torch.cuda.device_of(logits):
        (_tiles_kernel if tiled else _rows_kernel)[(programs,)](
            logits,
            *logits.stride(),
            labels,
            labels if args.sample_ids is None else args.sample_ids.contiguous(),
            labels if args.mixed_labels is None else args.mixed_labels.contiguous(),
            loss if args.mixed_weight is None else args.mixed_weight.contiguous(),
            *counter(args.seed, labels),
            *counter(args.step, labels),
            loss,
            grad if args.want_grad else loss,
            scratch,
            loss if each else torch.empty(programs, device=device),
            n,
            classes,
            programs,
            1.0 / n if args.reduction == "mean" else 1.0,
            RANDOM=args.sample_ids is not None,
            EXCLUDE_TRUE=args.exclude_true,
            MIXED=args.mixed_labels is not None,
            GRAD=args.want_grad,
            NONE_=each,
            SEED_POINTER=isinstance(args.seed, Tensor),
            STEP_POINTER=isinstance(args.step, Tensor),
            ROWS=rows,
            BLOCK=block,
            num_warps=warps,
        )
    return loss, grad, scratch[1]
