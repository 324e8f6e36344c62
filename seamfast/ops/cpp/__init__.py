"""The C++ backend: CPU tensors, through the compiled extension."""

from seamfast.ops.cpp.batch_norm import batch_norm, batch_norm_backward
from seamfast.ops.cpp.count_outcomes import count_outcomes
from seamfast.ops.cpp.cross_entropy import cross_entropy
from seamfast.ops.cpp.gather_augment import gather_augment
from seamfast.ops.cpp.max_pool2d import max_pool2d, max_pool2d_backward
from seamfast.ops.cpp.native import default_threads, freed_memory_kept, isa, why_unavailable
from seamfast.ops.cpp.occlude import occlude
from seamfast.ops.cpp.stamp_trigger import stamp_trigger

__all__ = [
    "DEVICE_TYPES",
    "batch_norm",
    "batch_norm_backward",
    "count_outcomes",
    "cross_entropy",
    "default_threads",
    "freed_memory_kept",
    "gather_augment",
    "isa",
    "max_pool2d",
    "max_pool2d_backward",
    "occlude",
    "stamp_trigger",
    "why_unavailable",
]

DEVICE_TYPES = ("cpu",)
