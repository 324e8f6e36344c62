"""Deprecated name of ``seamfast.audits``, accepted until 0.2.0."""

import warnings

from seamfast.audits import disagreement as parting
from seamfast.audits import invert_triggers, stamped_evidence

__all__ = ["invert_triggers", "parting", "stamped_evidence"]

warnings.warn("seamfast.evidence is seamfast.audits", DeprecationWarning, stacklevel=2)
