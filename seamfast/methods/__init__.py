"""The methods by name. Each is one file of straight-line code over ``engine.run.Run``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seamfast.engine.run import Run
from seamfast.errors import ConfigError
from seamfast.methods.config import MethodConfig
from seamfast.methods.fine_tune import FineTuneConfig, fine_tune
from seamfast.methods.seam import SeamConfig, seam
from seamfast.methods.seam_authors import SeamAuthorsConfig, seam_authors
from seamfast.methods.seam_encoder import SeamEncoderConfig, seam_encoder
from seamfast.methods.super_fine_tune import SuperFineTuneConfig, super_fine_tune

__all__ = [
    "METHODS",
    "FineTuneConfig",
    "MethodConfig",
    "SeamAuthorsConfig",
    "SeamConfig",
    "SeamEncoderConfig",
    "SuperFineTuneConfig",
    "config_class",
    "run_method",
]

METHODS: dict[str, tuple[Callable[[Run, Any], None], type[MethodConfig]]] = {
    "seam": (seam, SeamConfig),
    "seam_authors": (seam_authors, SeamAuthorsConfig),
    "fine_tune": (fine_tune, FineTuneConfig),
    "super_fine_tune": (super_fine_tune, SuperFineTuneConfig),
}
_OF_ENCODERS: dict[str, tuple[Callable[[Run, Any], None], type[MethodConfig]]] = {
    "seam_encoder": (seam_encoder, SeamEncoderConfig)
}
"""Methods of ``sanitize_encoder``, whose runs have a ``ProbedEncoder``."""


def config_class(method: str) -> type[MethodConfig]:
    """The config dataclass of ``method``. Raises ``ConfigError``: ``method is 'sgd'; expected one of ...``."""
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    return METHODS[method][1]


def run_method(method: str, run: Run, config: MethodConfig) -> None:
    """Train ``run.model`` in place as ``method`` says, then prune it."""
    (METHODS | _OF_ENCODERS)[method][0](run, config)
    if config.prune:
        run.prune_unused()
