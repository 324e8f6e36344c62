"""Whether a model is better than guessing, and if not, the likely cause."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.engine.counting import Counts
from seamfast.metrics import Rate

_NEARLY_ALL = 0.9
"""Share of the predictions from which one class takes nearly all of them."""
_FEW_CLASSES = 3
"""Classes that are named as an example."""


def accuracy_of_guessing(counts: Counts) -> float:
    """The expected accuracy of answers drawn in the same proportions, regardless of the sample, in [0, 1].

    ``1 / C`` where all classes have as many samples; a constant answer has exactly this accuracy on any data.
    """
    n_classes = len(counts.class_total)
    shares = [torch.bincount(_answered(x), minlength=n_classes) for x in (counts.answers, counts.labels)]
    return float((shares[0].double() @ shares[1].double()) / len(counts.labels) ** 2)


def is_better_than_guessing(counts: Counts) -> bool:
    """Whether the 95 % interval of the accuracy lies above that of guessing."""
    return Rate(counts.n_correct, counts.n_samples).low > accuracy_of_guessing(counts)


def likely_cause(counts: Counts) -> str:
    """Why a model may be no better than guessing: one class for all samples, or classes in another order."""
    answers, labels, n = counts.answers, counts.labels, counts.n_samples
    n_given = torch.bincount(_answered(answers), minlength=len(counts.class_total))
    most = int(n_given.argmax())
    if n_given[most] >= _NEARLY_ALL * n:
        return f"class {most} takes {int(n_given[most]) / n:.0%} of the predictions: check the normalization"
    # The map is found on every other sample of each class and judged on the rest: on its own, any map looks good.
    order = labels.argsort(stable=True)
    found, judged = order[::2], order[1::2]
    renamed = _best_map(answers[found], labels[found], len(counts.class_total))
    n_right = int((renamed[answers[judged]] == labels[judged]).sum())
    right = Rate(n_right, len(judged))
    is_renaming = len(set(renamed.tolist())) == len(renamed)
    if is_renaming and right.low > max(accuracy_of_guessing(counts), 0.5):
        pairs = [f"{k} is {int(renamed[k])}" for k in n_given.nonzero().flatten().tolist() if renamed[k] != k]
        text = ", ".join(pairs[:_FEW_CLASSES]) + (", ..." if len(pairs) > _FEW_CLASSES else "")
        return (
            f"with its classes renamed ({text}), the model would be right on {n_right / len(judged):.0%}: "
            "check the class order"
        )
    return "check normalization and class order, or give more clean data"


def _answered(answers: Tensor) -> Tensor:
    return answers[answers >= 0]


def _best_map(answers: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """``(C,)`` int64: the label that each answer has most often; itself where it was not given."""
    given = answers >= 0
    pairs = torch.bincount(answers[given] * n_classes + labels[given], minlength=n_classes**2).view(n_classes, -1)
    return torch.where(pairs.sum(1) > 0, pairs.argmax(1), torch.arange(n_classes))
