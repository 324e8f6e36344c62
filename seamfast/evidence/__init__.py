"""Blind evidence on a model in memory: where stamped samples go, what triggers it has, where two models part.

Each looks for one kind of trace and can miss what leaves another; ``docs/evidence.md`` says what each can show.
"""

from seamfast.evidence.inversion import invert_triggers
from seamfast.evidence.parting import parting
from seamfast.evidence.stamped import stamped_evidence

__all__ = ["invert_triggers", "parting", "stamped_evidence"]
