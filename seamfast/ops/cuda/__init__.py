"""The CUDA C++ backend: CUDA tensors, through the compiled extension ``seamfast._cuda``.

It has the two operations whose Triton launch, from Python, can take longer than their kernels.
"""

from seamfast.ops.cuda.cross_entropy import cross_entropy
from seamfast.ops.cuda.native import why_unavailable
from seamfast.ops.cuda.stamp_trigger import stamp_trigger

__all__ = ["DEVICE_TYPES", "cross_entropy", "stamp_trigger", "why_unavailable"]

DEVICE_TYPES = ("cuda",)
