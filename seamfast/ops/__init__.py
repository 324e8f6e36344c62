"""The operations on pixels, logits and labels. Each is one public function, whose backends give the same results."""

from __future__ import annotations

from seamfast.ops.count_outcomes import OUTCOMES, count_outcomes
from seamfast.ops.cross_entropy import (
    LossAndCount,
    random_label_cross_entropy,
    random_label_loss_and_count,
    true_label_cross_entropy,
    true_label_loss_and_count,
)
from seamfast.ops.dispatch import backends
from seamfast.ops.gather_augment import gather_augment
from seamfast.ops.occlude import occlude
from seamfast.ops.random_labels import random_labels
from seamfast.ops.stamp_trigger import stamp_trigger
from seamfast.ops.trigger_table import TriggerTable

__all__ = [
    "OUTCOMES",
    "LossAndCount",
    "TriggerTable",
    "backends",
    "count_outcomes",
    "gather_augment",
    "occlude",
    "random_label_cross_entropy",
    "random_label_loss_and_count",
    "random_labels",
    "stamp_trigger",
    "true_label_cross_entropy",
    "true_label_loss_and_count",
]
