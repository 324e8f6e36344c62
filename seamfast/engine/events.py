"""What a run tells the outside: callbacks with Hugging Face's event names, a progress bar, the history."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

_EVENTS = ("on_train_begin", "on_step_begin", "on_step_end", "on_evaluate", "on_train_end")


@dataclass(frozen=True)
class HistoryPoint:
    """What was measured at one moment of a run.

    Attributes:
        phase: ``"forget"`` or ``"recover"``.
        attempt: from 0; a method that retries more gently counts up.
        step: training steps since the start of the run, all attempts counted.
        seconds: since the start of the run.
        loss: mean training loss since the last point, in nats.
        holdout_accuracy: on the held-out part, in [0, 1].
        attack_success_rate: by name of trigger, on the held-out part, for the triggers that the caller knows. Never
            read by the method: only drawn and reported.
    """

    phase: str
    attempt: int
    step: int
    seconds: float
    loss: float
    holdout_accuracy: float
    attack_success_rate: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class RunState:
    """What a callback may read: how far the run is, in which phase, and the history so far."""

    phase: str = ""
    attempt: int = 0
    global_step: int = 0
    max_steps: int = 0
    seconds: float = 0.0
    log_history: list[HistoryPoint] = field(default_factory=list)


@dataclass
class RunControl:
    """What a callback may set: ``control.should_training_stop = True`` ends the run at the next step boundary."""

    should_training_stop: bool = False


class Callback:
    """Hooks into a run, named as in ``transformers.TrainerCallback``; override what you need.

    Each gets ``(args, state, control, **kwargs)``: the method's config, ``RunState``, ``RunControl`` and ``model``,
    the copy in work. Any object with some of these methods will do.
    """

    def on_train_begin(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...
    def on_step_begin(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...
    def on_step_end(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...
    def on_evaluate(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...
    def on_train_end(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...


class Announcer:
    """Calls the callbacks and moves the progress bar. ``progress=None`` shows the bar where stderr is a terminal."""

    def __init__(self, callbacks: Iterable[Any], args: Any, model: Any, progress: bool | None) -> None:
        self.state = RunState()
        self.control = RunControl()
        self._callbacks = tuple(callbacks)
        self._args = args
        self._model = model
        self._bar: tqdm[Any] = tqdm(
            desc="sanitize",
            unit="step",
            disable=not (sys.stderr.isatty() if progress is None else progress),
            leave=False,
        )

    def plan(self, n_steps: int) -> None:
        """``n_steps`` more may come."""
        self.state.max_steps += n_steps
        self._bar.total = self.state.max_steps
        self._bar.refresh()

    def skip(self, n_steps: int) -> None:
        """``n_steps`` of the plan will not come after all."""
        self.plan(-n_steps)

    def tell(self, event: str) -> None:
        assert event in _EVENTS, event
        for callback in self._callbacks:
            hook = getattr(callback, event, None)
            if hook is not None:
                hook(self._args, self.state, self.control, model=self._model)
        if event == "on_step_end":
            self._bar.update()
        elif event == "on_evaluate":
            last = self.state.log_history[-1]
            self._bar.set_postfix(
                phase=last.phase, holdout_accuracy=f"{last.holdout_accuracy:.3f}", loss=f"{last.loss:.3f}"
            )
        elif event == "on_train_end":
            self._bar.close()
