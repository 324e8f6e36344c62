"""Audits of a model in memory: where stamped samples go, which triggers or words it obeys, where two models differ,
and whether its training data can be told from other samples.

Each looks for one kind of trace and can miss what leaves another; ``docs/evidence.md`` describes what each of the blind
ones can show, ``docs/sequela.md`` what ``membership`` measures.
"""

from seamfast.audits.battery import stamped_evidence
from seamfast.audits.disagreement import disagreement
from seamfast.audits.inversion import invert_triggers
from seamfast.audits.membership import Membership, Reference, membership
from seamfast.audits.references import train_references
from seamfast.audits.vocabulary import retest_phrases, search_vocabulary

__all__ = [
    "Membership",
    "Reference",
    "disagreement",
    "invert_triggers",
    "membership",
    "retest_phrases",
    "search_vocabulary",
    "stamped_evidence",
    "train_references",
]
