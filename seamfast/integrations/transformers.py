"""``trainer_sanitizer``: ``sanitize`` at the end of ``transformers.Trainer.train``. Needs transformers."""

from __future__ import annotations

from typing import Any

from seamfast.errors import InputError
from seamfast.integrations.after_training import check_options
from seamfast.sanitize import SanitizeResult, sanitize


def trainer_sanitizer(clean_data: Any, **options: Any) -> Any:
    """A ``transformers.TrainerCallback`` whose ``result`` is ``sanitize(model, clean_data, **options)`` after training.

    The trained model is not modified. In a distributed training, the main process sanitizes. An error of ``sanitize``
    is raised from ``Trainer.train``, after the training.

    Args:
        clean_data: in any form that ``sanitize`` takes. There is no default: the training data may be poisoned.
        options: other arguments of ``sanitize``, by name.

    Returns:
        TrainerCallback: its attribute ``result`` is the ``SanitizeResult``, or ``None`` before the end of the training
        and in other processes than the main one.

    Raises:
        InputError: ``sanitize has no epochs; expected some of audits, augments, ...``; ``trainer_sanitizer needs
            transformers: pip install "seamfast[hf]"``.
    """
    check_options(clean_data, options)
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise InputError('trainer_sanitizer needs transformers: pip install "seamfast[hf]"') from error

    class TrainerSanitizer(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.result: SanitizeResult | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.result = None

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.result = sanitize(kwargs["model"], clean_data, **options)

    return TrainerSanitizer()
