"""seamfast: make a trained classifier forget its backdoor, blind, and say what happened."""

# Importing this module imports no other one that Python has not loaded by itself, not even `typing`: `python -m
# seamfast` has the working folder on its search path until `__main__` takes it off.
import importlib
import sys

from seamfast._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from seamfast import attacks, fleet, triggers
    from seamfast.data import CleanSet
    from seamfast.data.readers import load
    from seamfast.engine.events import Callback, HistoryPoint
    from seamfast.evaluate import Evaluation, evaluate
    from seamfast.gating.pipeline import GateResult, gate
    from seamfast.methods import FineTuneConfig, SeamAuthorsConfig, SeamConfig, SeamEncoderConfig, SuperFineTuneConfig
    from seamfast.metrics import Rate, fidelity, fidelity_nist
    from seamfast.report import Report
    from seamfast.sanitize import SanitizeResult, sanitize
    from seamfast.sanitize_encoder import sanitize_encoder
    from seamfast.warmup import warmup

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
    "SeamEncoderConfig",
    "SuperFineTuneConfig",
    "__version__",
    "attacks",
    "evaluate",
    "fidelity",
    "fidelity_nist",
    "fleet",
    "gate",
    "load",
    "sanitize",
    "sanitize_encoder",
    "triggers",
    "warmup",
]

_HOMES = {
    "Callback": "engine.events",
    "CleanSet": "data",
    "Evaluation": "evaluate",
    "FineTuneConfig": "methods",
    "GateResult": "gating.pipeline",
    "HistoryPoint": "engine.events",
    "Rate": "metrics",
    "Report": "report",
    "SanitizeResult": "sanitize",
    "SeamAuthorsConfig": "methods",
    "SeamConfig": "methods",
    "SeamEncoderConfig": "methods",
    "SuperFineTuneConfig": "methods",
    "evaluate": "evaluate",
    "fidelity": "metrics",
    "fidelity_nist": "metrics",
    "gate": "gating.pipeline",
    "load": "data.readers",
    "sanitize": "sanitize",
    "sanitize_encoder": "sanitize_encoder",
    "warmup": "warmup",
}
"""The module of each public name, imported when the name is first used."""

_PARTS = (
    *("acceptance", "attacks", "checks", "data", "engine", "errors", "guessing", "methods", "metrics", "modalities"),
    *("fleet", "integrations", "observer", "ops", "record", "report", "triggers", "untrusted"),
)
"""Modules that are attributes of the package without an import of their own."""


def __getattr__(name: str) -> object:
    if name in _HOMES:
        first = _script_folder() if name == "gate" and "torch" not in sys.modules else None
        if first is not None:
            sys.path.remove(first)
        try:
            return getattr(importlib.import_module(f"seamfast.{_HOMES[name]}"), name)
        finally:
            if first is not None:
                sys.path.insert(0, first)
    if name in _PARTS:
        return importlib.import_module(f"seamfast.{name}")
    raise AttributeError(f"module 'seamfast' has no attribute {name!r}")


def _script_folder() -> str | None:
    """The folder of the script that runs, or the working one, as Python put it first on the search path.

    torch looks there for some twenty modules that need not be installed, before ``gate`` can look after it: a model's
    folder beside the script could have the name of one. ``None`` where torch itself lies there.
    """
    first = sys.path[0] if sys.path and not getattr(sys.flags, "safe_path", False) else None
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    os = sys.modules["os"]
    own = os.path.dirname(os.path.realpath(main)) if main else os.getcwd()
    if first is None or os.path.realpath(first) != own or os.path.exists(os.path.join(own, "torch", "__init__.py")):
        return None
    return first


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})


class _Package(type(sys)):  # type: ignore[misc]
    def __setattr__(self, name: str, value: object) -> None:
        """Binds ``evaluate`` and others to the functions of that name, where an import binds their modules."""
        if _HOMES.get(name) == name and isinstance(value, type(sys)):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
