"""What can go wrong, by name. Every message says the value got and the value wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seamfast.report import Report

__all__ = [
    "BackendUnavailableError",
    "ConfigError",
    "DTypeError",
    "DataFileError",
    "InputError",
    "ModelError",
    "PolicyError",
    "SanitizeInterrupted",
    "SeamfastError",
    "ShapeError",
]


class SeamfastError(Exception):
    """Base of every error that seamfast raises on purpose."""


class InputError(SeamfastError, ValueError):
    """An argument or the data behind it cannot be used."""


class ShapeError(InputError):
    """A tensor has the wrong shape."""


class DTypeError(InputError, TypeError):
    """A tensor has the wrong dtype."""


class ConfigError(InputError):
    """A configuration value is out of range, or a key is unknown."""


class PolicyError(ConfigError):
    """A gate policy cannot be used: it is not strict TOML, or asks for what cannot be decided."""


class DataFileError(InputError):
    """A data file is truncated, lies about its size, or is of a kind that seamfast refuses."""


class ModelError(InputError):
    """The model cannot be sanitised as given: no parameters, no logits, weights that are not finite."""


class BackendUnavailableError(SeamfastError, RuntimeError):
    """A backend was named that cannot run here; the message says why."""


class SanitizeInterrupted(KeyboardInterrupt):
    """Ctrl-C during ``sanitize``: the given model is untouched.

    ``except KeyboardInterrupt as stop: stop.report`` holds the partial report (``None`` if nothing had run yet).
    """

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report
