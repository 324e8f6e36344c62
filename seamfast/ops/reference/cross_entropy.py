"""Cross-entropy on random or true labels, as its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops._check import check_in_range
from seamfast.ops.library import NONE, SUM
from seamfast.ops.random_labels import random_labels


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    sample_ids: Tensor | None,
    mixed_labels: Tensor | None,
    mixed_weight: Tensor | None,
    *,
    seed: int | Tensor,
    step: int | Tensor,
    exclude_true: bool,
    label_smoothing: float,
    reduction: int,
    want_grad: bool,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of checked arguments: the loss, its gradient (of no elements unless wanted), and the count of correct rows.

    With ``sample_ids`` the labels are drawn, without they are ``labels``. ``threads`` is PyTorch's own affair.
    """
    n, classes = logits.shape
    if logits.device.type == "cpu":
        check_in_range("labels", labels, classes)
        if mixed_labels is not None:
            check_in_range("mixed_labels", mixed_labels, classes)

    if sample_ids is not None:
        trained = random_labels(
            labels, sample_ids, num_classes=classes, seed=seed, step=step, exclude_true=exclude_true
        )
    else:
        trained = labels

    # What the loss is linear in: the probabilities that are aimed at.
    aim = torch.full((n, classes), label_smoothing / classes, device=logits.device)
    if mixed_labels is None or mixed_weight is None:
        aim.scatter_add_(1, trained[:, None], torch.full_like(aim[:, :1], 1 - label_smoothing))
    else:
        for label, weight in ((trained, mixed_weight), (mixed_labels, 1 - mixed_weight)):
            aim.scatter_add_(1, label[:, None], (1 - label_smoothing) * weight[:, None])

    wide = logits.float()
    log_probability = wide.log_softmax(1)
    # A class that is not aimed at adds nothing, even where its probability is 0.
    each = -torch.where(aim == 0, 0.0, aim * log_probability).sum(1)
    each = torch.where(wide.isnan().any(1), torch.nan, each)
    correct = (wide.argmax(1) == labels) & ~wide.isnan().any(1)

    grad = log_probability.exp() - aim
    if reduction == NONE:
        loss = each
    elif reduction == SUM:
        loss = each.sum()
    else:
        loss = each.mean()
        grad = grad / n
    return loss, grad.to(logits.dtype) if want_grad else logits.new_empty(0), correct.sum()
