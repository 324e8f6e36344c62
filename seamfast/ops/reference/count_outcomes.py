"""``count_outcomes`` as its definition."""

from __future__ import annotations

import torch

from seamfast.checks import check_in_range
from seamfast.ops.arguments import CountArguments


def count_outcomes(args: CountArguments) -> None:
    """``seamfast.ops.count_outcomes`` of checked arguments."""
    logits, labels, trigger_ids = args.logits, args.labels, args.trigger_ids
    classes, triggers = logits.shape[1], len(args.targets)
    if logits.device.type == "cpu":
        check_in_range("labels", labels, classes)
        if trigger_ids is not None:
            check_in_range("trigger_ids", trigger_ids, triggers, low=-1)

    row = torch.full_like(labels, triggers)
    wanted = labels
    if trigger_ids is not None and triggers:
        row = torch.where(trigger_ids < 0, triggers, trigger_ids)
        wanted = torch.where(trigger_ids < 0, labels, args.targets[trigger_ids.clamp(min=0), labels])
    nan = logits.isnan().any(1)
    predicted = torch.where(nan, -1, logits.argmax(1))
    correct, eligible = predicted == labels, wanted != labels
    outcomes = (torch.ones_like(nan), correct, eligible, eligible & (predicted == wanted), eligible & correct, nan)
    args.counters.index_add_(0, row, torch.stack(outcomes, dim=1).long())
    if args.class_correct is not None:
        args.class_correct.view(-1).index_add_(0, row * classes + labels, correct.long())
