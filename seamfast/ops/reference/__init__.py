"""The reference backend: the definition of each op, in plain PyTorch, on any device and without a host sync on CUDA."""

from seamfast.ops.reference.count_outcomes import count_outcomes
from seamfast.ops.reference.cross_entropy import cross_entropy
from seamfast.ops.reference.gather_augment import gather_augment
from seamfast.ops.reference.occlude import occlude
from seamfast.ops.reference.stamp_trigger import stamp_trigger

__all__ = ["count_outcomes", "cross_entropy", "gather_augment", "occlude", "stamp_trigger"]
