"""``LightningSanitizer``: ``sanitize`` at the end of ``Trainer.fit``. Needs Lightning."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    from pytorch_lightning import Callback

from seamfast.integrations.after_training import check_options
from seamfast.sanitize import SanitizeResult, sanitize


class LightningSanitizer(Callback):  # type: ignore[misc]
    """``result = sanitize(module, clean_data, **options)`` when ``Trainer.fit`` ends.

    The trained module is not modified. In a distributed training, the process of rank 0 sanitizes. An error of
    ``sanitize`` is raised from ``fit``, after the training.

    Args:
        clean_data: in any form that ``sanitize`` takes. There is no default: the training data may be poisoned.
        options: other arguments of ``sanitize``, by name.

    Attributes:
        result: ``None`` before the end of ``fit``, and on other ranks than 0.

    Raises:
        InputError: ``sanitize has no epochs; expected some of audits, augments, ...``.
    """

    def __init__(self, clean_data: Any, **options: Any) -> None:
        super().__init__()
        check_options(clean_data, options)
        self._clean_data = clean_data
        self._options = options
        self.result: SanitizeResult | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.result = None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.result = sanitize(pl_module, self._clean_data, **self._options)
