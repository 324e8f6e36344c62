"""Small architectures by name, models as folders, and encoders with a linear head."""

from seamfast.models.linear_probe import LinearProbe, embed, with_head

__all__ = ["LinearProbe", "embed", "with_head"]
