"""What the end of a training needs: options that ``sanitize`` takes, checked before the training."""

from __future__ import annotations

import inspect
from typing import Any

from seamfast.engine.callbacks import check_callbacks
from seamfast.errors import InputError
from seamfast.sanitize import sanitize


def check_options(clean_data: Any, options: dict[str, Any]) -> None:
    """Raise an ``InputError`` unless ``sanitize(model, clean_data, **options)`` is a call that ``sanitize`` takes."""
    if clean_data is None:
        raise InputError("clean_data is None; expected data as for seamfast.sanitize")
    known = set(inspect.signature(sanitize).parameters) - {"model", "clean_loader"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(f"sanitize has no {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    if "callbacks" in options:
        options["callbacks"] = check_callbacks(options["callbacks"])
