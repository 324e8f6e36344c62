"""Loggers of runs, and the end of a training in Lightning and in ``transformers``. Optional packages load when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seamfast.errors import InputError
from seamfast.integrations.mlflow import MLflowLogger
from seamfast.integrations.tensorboard import TensorBoardLogger
from seamfast.integrations.transformers import trainer_sanitizer

if TYPE_CHECKING:
    from seamfast.integrations.lightning import LightningSanitizer

__all__ = ["LightningSanitizer", "MLflowLogger", "TensorBoardLogger", "trainer_sanitizer"]


def __getattr__(name: str) -> Any:
    if name != "LightningSanitizer":
        raise AttributeError(f"module 'seamfast.integrations' has no attribute {name!r}")
    try:
        from seamfast.integrations.lightning import LightningSanitizer  # whose base class is Lightning's
    except ModuleNotFoundError as error:
        raise InputError('LightningSanitizer needs Lightning: pip install "seamfast[lightning]"') from error
    return LightningSanitizer


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
