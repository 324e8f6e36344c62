"""The Triton backend: CUDA tensors, and CPU tensors where ``TRITON_INTERPRET=1`` is set before Triton is imported."""

from seamfast.ops.triton.availability import DEVICE_TYPES, why_unavailable

__all__ = [
    "DEVICE_TYPES",
    "count_outcomes",
    "cross_entropy",
    "gather_augment",
    "occlude",
    "stamp_trigger",
    "why_unavailable",
]

if why_unavailable() is None:
    from seamfast.ops.triton.count_outcomes import count_outcomes
    from seamfast.ops.triton.cross_entropy import cross_entropy
    from seamfast.ops.triton.gather_augment import gather_augment
    from seamfast.ops.triton.occlude import occlude
    from seamfast.ops.triton.stamp_trigger import stamp_trigger
