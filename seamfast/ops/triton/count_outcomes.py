"""``count_outcomes`` as a Triton kernel: argmax and counters in one pass over the logits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seamfast.ops.arguments import CountArguments

_TILE = 4096
_COLUMNS = tl.constexpr(6)


@triton.jit
def _kernel(
    logits,
    row_stride,
    column_stride,
    labels,
    trigger_ids,
    targets,
    counters,
    class_correct,
    n,
    classes,
    triggers,
    TRIGGERS: tl.constexpr,
    CLASS_CORRECT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < n
    columns = tl.arange(0, BLOCK)

    # 1. The first place of the largest logit.
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    predicted = tl.zeros((ROWS,), tl.int64)
    nans = tl.zeros((ROWS,), tl.int32)
    for begin in range(0, classes, BLOCK):
        at = begin + columns
        inside = live[:, None] & (at[None, :] < classes)
        places = rows[:, None] * row_stride + at[None, :].to(tl.int64) * column_stride
        x = tl.load(logits + places, mask=inside, other=float("-inf")).to(tl.float32)
        is_nan = x != x
        nans += tl.max(is_nan.to(tl.int32), 1)
        x = tl.where(is_nan, float("-inf"), x)
        tile_largest = tl.max(x, 1)
        tile_place = tl.min(tl.where((x == tile_largest[:, None]) & inside, at[None, :], 2147483647), 1)
        larger = tile_largest > largest  # strictly: the first of equals stays
        predicted = tl.where(larger, tile_place.to(tl.int64), predicted)
        largest = tl.where(larger, tile_largest, largest)
    nan = nans > 0

    # 2. What that is for the sample. A row with a label or a trigger out of range counts in no column.
    label = tl.load(labels + rows, mask=live, other=0)
    counted = live & (label >= 0) & (label < classes)
    row = tl.zeros((ROWS,), tl.int64) + triggers
    wanted = label
    if TRIGGERS:
        trigger = tl.load(trigger_ids + rows, mask=live, other=-1)
        counted = counted & (trigger >= -1) & (trigger < triggers)
        stamped = counted & (trigger >= 0)
        row = tl.where(stamped, trigger, row)
        wanted = tl.load(targets + trigger * classes + label, mask=stamped, other=0)
        wanted = tl.where(stamped, wanted, label)
    some = nan == 0
    correct = some & (predicted == label)
    eligible = wanted != label
    hit = some & (predicted == wanted) & eligible
    restored = correct & eligible

    # 3. Integers: the order in which they are added does not matter.
    one = tl.full((ROWS,), 1, tl.int64)
    at = counters + row * _COLUMNS
    tl.atomic_add(at, one, mask=counted)
    tl.atomic_add(at + 1, one, mask=counted & correct)
    tl.atomic_add(at + 2, one, mask=counted & eligible)
    tl.atomic_add(at + 3, one, mask=counted & hit)
    tl.atomic_add(at + 4, one, mask=counted & restored)
    tl.atomic_add(at + 5, one, mask=counted & nan)
    if CLASS_CORRECT:
        tl.atomic_add(class_correct + row * classes + label, one, mask=counted & correct)


def count_outcomes(args: CountArguments) -> None:
    """As the reference's; a row with a label or trigger out of range counts in no column."""
    logits, labels, trigger_ids, targets = args.logits, args.labels, args.trigger_ids, args.targets
    n, classes = logits.shape
    if n == 0:
        return
    block = max(2, min(_TILE, triton.next_power_of_2(classes)))
    rows = max(1, min(64, 2048 // block))
    with torch.cuda.device_of(logits):
        _kernel[(triton.cdiv(n, rows),)](
            logits,
            *logits.stride(),
            labels.contiguous(),
            labels if trigger_ids is None else trigger_ids.contiguous(),
            targets if len(targets) else labels,
            args.counters,
            args.counters if args.class_correct is None else args.class_correct,
            n,
            classes,
            len(targets),
            TRIGGERS=trigger_ids is not None and len(targets) > 0,
            CLASS_CORRECT=args.class_correct is not None,
            ROWS=rows,
            BLOCK=block,
            num_warps=4 if block <= 2048 else 8,
        )
    args.mark_written()
