"""seamfast: make a trained classifier forget its backdoor, blind, and say what happened."""

from seamfast import attacks, triggers
from seamfast._version import __version__
from seamfast.data import CleanSet
from seamfast.data.readers import load
from seamfast.engine.events import Callback, HistoryPoint
from seamfast.evaluate import Evaluation, evaluate
from seamfast.methods import FineTuneConfig, SeamConfig, SuperFineTuneConfig
from seamfast.metrics import Rate, fidelity, fidelity_nist
from seamfast.report import Report
from seamfast.sanitize import SanitizeResult, sanitize

__all__ = [
    "Callback",
    "CleanSet",
    "Evaluation",
    "FineTuneConfig",
    "HistoryPoint",
    "Rate",
    "Report",
    "SanitizeResult",
    "SeamConfig",
    "SuperFineTuneConfig",
    "__version__",
    "attacks",
    "evaluate",
    "fidelity",
    "fidelity_nist",
    "load",
    "sanitize",
    "triggers",
]
