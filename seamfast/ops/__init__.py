"""The operations that seamfast is built of. Each is one public function, whose backends give the same results."""

from __future__ import annotations

from seamfast.ops.dispatch import backends
from seamfast.ops.gather_augment import gather_augment
from seamfast.ops.random_labels import random_labels

__all__ = ["backends", "gather_augment", "random_labels"]
