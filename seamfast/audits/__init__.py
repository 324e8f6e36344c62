"""Blind audits of a model in memory: where stamped samples go, which triggers or words it obeys, where two
models differ.

Each looks for one kind of trace and can miss what leaves another; ``docs/evidence.md`` describes what each can show.
"""

from seamfast.audits.battery import stamped_evidence
from seamfast.audits.disagreement import disagreement
from seamfast.audits.inversion import invert_triggers
from seamfast.audits.vocabulary import retest_phrases, search_vocabulary

__all__ = ["disagreement", "invert_triggers", "retest_phrases", "search_vocabulary", "stamped_evidence"]
