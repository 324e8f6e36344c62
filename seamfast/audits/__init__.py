"""Audits of a model in memory.

Blind ones look for a backdoor: where stamped samples go, which triggers or words the model obeys, where two models
differ. Each looks for one kind of trace and can miss what leaves another; ``docs/evidence.md`` describes what each can
show. The others measure other weaknesses, which a cure may change; ``docs/sequela.md`` describes them.
``seamfast.audits.ntk``, imported by its name, predicts what training makes a model forget.
"""

from seamfast.audits.battery import stamped_evidence
from seamfast.audits.disagreement import disagreement
from seamfast.audits.inversion import invert_triggers
from seamfast.audits.label_forgetting import LabelForgetting, label_forgetting
from seamfast.audits.membership import Membership, Reference, membership
from seamfast.audits.reactivation import Reactivation, reactivation
from seamfast.audits.references import train_references
from seamfast.audits.reinjection import Reinjection, reinjection
from seamfast.audits.sequela import AUDITS, Sequela, sequela
from seamfast.audits.vocabulary import retest_phrases, search_vocabulary
from seamfast.audits.weaknesses import adversarial_accuracy, calibration, class_accuracy

__all__ = [
    "AUDITS",
    "LabelForgetting",
    "Membership",
    "Reactivation",
    "Reference",
    "Reinjection",
    "Sequela",
    "adversarial_accuracy",
    "calibration",
    "class_accuracy",
    "disagreement",
    "invert_triggers",
    "label_forgetting",
    "membership",
    "reactivation",
    "reinjection",
    "retest_phrases",
    "search_vocabulary",
    "sequela",
    "stamped_evidence",
    "train_references",
]
