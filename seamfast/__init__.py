"""seamfast: make a trained classifier forget its backdoor, blind, and say what happened."""

from typing import TYPE_CHECKING, Any

from seamfast import triggers
from seamfast._version import __version__
from seamfast.data import CleanSet
from seamfast.engine.events import Callback, HistoryPoint
from seamfast.evaluate import Evaluation, evaluate
from seamfast.methods import FineTuneConfig, SeamAuthorsConfig, SeamConfig, SuperFineTuneConfig
from seamfast.metrics import Rate, fidelity, fidelity_nist
from seamfast.report import Report
from seamfast.sanitize import SanitizeResult, sanitize
from seamfast.warmup import warmup

if TYPE_CHECKING:
    from seamfast import attacks
    from seamfast.data.readers import load
    from seamfast.gating.pipeline import GateResult, gate

__all__ = [
    "Callback",
    "CleanSet",
    "Evaluation",
    "FineTuneConfig",
    "GateResult",
    "HistoryPoint",
    "Rate",
    "Report",
    "SanitizeResult",
    "SeamAuthorsConfig",
    "SeamConfig",
    "SuperFineTuneConfig",
    "__version__",
    "attacks",
    "evaluate",
    "fidelity",
    "fidelity_nist",
    "gate",
    "load",
    "sanitize",
    "triggers",
    "warmup",
]


def __getattr__(name: str) -> Any:
    """``attacks``, ``load`` and the gate, which no run needs, imported when first used."""
    if name == "attacks":
        import seamfast.attacks

        return seamfast.attacks
    if name == "load":
        from seamfast.data.readers import load

        return load
    if name in ("gate", "GateResult"):
        from seamfast.gating import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'seamfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
