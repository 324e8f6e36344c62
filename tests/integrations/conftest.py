from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import seamfast
from seamfast import CleanSet, SanitizeResult, SeamConfig

SHORT = SeamConfig(
    forget_rate=1e-6, forget_max_steps=4, forget_eval_every=2, recover_max_steps=6, recover_eval_every=3,
    strengths=(1.0,),
)  # fmt: skip

Run = Callable[..., SanitizeResult]


@pytest.fixture
def run(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> Run:
    """``run(callback, ...)``: a short run with these callbacks and a known trigger."""

    def sanitized(*callbacks: Any, **options: Any) -> SanitizeResult:
        trigger = seamfast.triggers.Patch.square(2, target=0)
        arguments: dict[str, Any] = {"config": SHORT, "triggers": [trigger], "callbacks": callbacks, **options}
        return seamfast.sanitize(tiny_model(), tiny_data, **arguments)

    return sanitized


def curve(result: SanitizeResult, name: str) -> dict[int, float]:
    """Of the history, by step: ``"loss"`` or ``"holdout_accuracy"``."""
    return {point.step: getattr(point, name) for point in result.history}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """All scalars in a folder of TensorBoard's, by tag and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
