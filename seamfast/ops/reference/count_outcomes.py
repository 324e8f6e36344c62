"""``count_outcomes`` as its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops._check import check_in_range


def count_outcomes(
    counters: Tensor,
    class_correct: Tensor | None,
    confusion: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    trigger_ids: Tensor | None,
    targets: Tensor,
    *,
    threads: int,
) -> None:
    """Of checked arguments, ``seamfast.ops.count_outcomes``, added to the first three. No ``trigger_ids``: all -1."""
    classes = logits.shape[1]
    triggers = len(targets)
    if logits.device.type == "cpu":
        check_in_range("labels", labels, classes)
        if trigger_ids is not None:
            check_in_range("trigger_ids", trigger_ids, triggers, low=-1)

    row = torch.full_like(labels, triggers)
    wanted = labels
    if trigger_ids is not None and triggers:
        row = torch.where(trigger_ids < 0, triggers, trigger_ids)
        wanted = torch.where(trigger_ids < 0, labels, targets[trigger_ids.clamp(min=0), labels])
    nan = logits.isnan().any(1)
    predicted = torch.where(nan, -1, logits.argmax(1))
    correct, eligible = predicted == labels, wanted != labels
    outcomes = (torch.ones_like(nan), correct, eligible, eligible & (predicted == wanted), eligible & correct, nan)
    counters.index_add_(0, row, torch.stack(outcomes, dim=1).long())
    if class_correct is not None:
        class_correct.view(-1).index_add_(0, row * classes + labels, correct.long())
    if confusion is not None:
        cell = (row * classes + labels) * classes + predicted.clamp(min=0)
        confusion.view(-1).index_add_(0, cell, (~nan).long())
