"""The exceptions. Every message names the value received and the value expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seamfast.report import Report


class SeamfastError(Exception):
    """Base of all errors that seamfast raises deliberately."""


class InputError(SeamfastError, ValueError):
    """An argument or the data behind it cannot be used."""


class ShapeError(InputError):
    """A tensor has the wrong shape."""


class DTypeError(InputError, TypeError):
    """A tensor has the wrong dtype."""


class ConfigError(InputError):
    """A configuration value is out of range, or a key is unknown."""


class PolicyError(ConfigError):
    """A gate policy is not strict TOML, or has a rule that cannot be decided."""


class DataFileError(InputError):
    """A data file is truncated, declares a wrong size, or has an unsupported format."""


class ModelError(InputError):
    """The model cannot be sanitized as given: no parameters, no logits, weights that are not finite."""


class BackendUnavailableError(SeamfastError, RuntimeError):
    """The requested backend cannot run here; the message names the reason."""


class SanitizeInterrupted(KeyboardInterrupt):
    """Ctrl-C during ``sanitize``. The given model is unchanged.

    ``report`` holds the partial report, or ``None`` if nothing had run yet.
    """

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report
