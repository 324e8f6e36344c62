"""Audits of a model in memory.

Blind ones: where stamped samples go, which triggers or words it obeys, where two models differ. Each looks for one kind
of trace and can miss what leaves another; ``docs/evidence.md`` describes what each can show. And what a cure leaves
behind: whether an attacker brings an old backdoor back, or a new one in.
"""

from seamfast.audits.battery import stamped_evidence
from seamfast.audits.disagreement import disagreement
from seamfast.audits.inversion import invert_triggers
from seamfast.audits.reactivation import Reactivation, reactivation
from seamfast.audits.reinjection import Reinjection, reinjection
from seamfast.audits.vocabulary import retest_phrases, search_vocabulary

__all__ = [
    "Reactivation",
    "Reinjection",
    "disagreement",
    "invert_triggers",
    "reactivation",
    "reinjection",
    "retest_phrases",
    "search_vocabulary",
    "stamped_evidence",
]
