"""Cross-entropy on random or true labels, as its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.checks import check_in_range
from seamfast.ops.arguments import CrossEntropyArguments
from seamfast.ops.random_labels import drawn_labels


def cross_entropy(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Of checked arguments: the loss, its gradient (of no elements unless wanted), and the count of correct rows."""
    logits, labels = args.logits.detach(), args.labels
    n, classes = logits.shape
    if logits.device.type == "cpu":
        check_in_range("labels", labels, classes)
        if args.mixed_labels is not None:
            check_in_range("mixed_labels", args.mixed_labels, classes)

    trained = labels
    if args.sample_ids is not None:
        trained = drawn_labels(labels, args.sample_ids, classes, args.seed, args.step, args.exclude_true)

    # The target probabilities.
    target = torch.zeros((n, classes), dtype=torch.float32, device=logits.device)
    if args.mixed_labels is None or args.mixed_weight is None:
        target.scatter_(1, trained[:, None], 1.0)
    else:
        for label, weight in ((trained, args.mixed_weight), (args.mixed_labels, 1 - args.mixed_weight)):
            target.scatter_add_(1, label[:, None], weight[:, None])

    wide = logits.float()
    log_probability = wide.log_softmax(1)
    # A class of target 0 adds nothing, even where its probability is 0.
    each = -torch.where(target == 0, 0.0, target * log_probability).sum(1)
    each = torch.where(wide.isnan().any(1), torch.nan, each)
    correct = (wide.argmax(1) == labels) & ~wide.isnan().any(1)

    grad = log_probability.exp() - target
    if args.reduction == "none":
        loss = each
    elif args.reduction == "sum":
        loss = each.sum()
    else:
        loss = each.mean()
        grad = grad / n
    return loss, grad.to(logits.dtype) if args.want_grad else logits.new_empty(0), correct.sum()
