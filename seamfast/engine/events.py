"""Events of a run: callbacks with Hugging Face's event names, a progress bar, the history."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from seamfast.engine.callbacks import hooks_of
from seamfast.engine.precision import Precision
from seamfast.errors import SanitizeInterrupted
from seamfast.report import Report


@dataclass(frozen=True)
class HistoryPoint:
    """Measurements at one moment of a run.

    Attributes:
        phase: ``"forget"`` or ``"recover"``.
        attempt: from 0; one more for each retry.
        step: training steps since the start of the run, all attempts counted.
        seconds: since the start of the run.
        loss: mean training loss since the last point, in nats.
        holdout_accuracy: on the held-out part, in [0, 1].
        attack_success_rate: by name of known trigger, on the held-out part; no method can read it.
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


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a run, as its listener receives it.

    Attributes:
        point: of the history, without attack success rates.
        samples: ``(N,)`` int64 indices of the counted samples, on the CPU.
        precision: of the forward passes.
    """

    point: HistoryPoint
    samples: Tensor
    precision: Precision


@dataclass
class RunState:
    """State of a run for its callbacks: progress, phase, and the history so far."""

    phase: str = ""
    attempt: int = 0
    global_step: int = 0
    max_steps: int = 0
    seconds: float = 0.0
    log_history: list[HistoryPoint] = field(default_factory=list)


@dataclass
class RunControl:
    """Control of a run for its callbacks: ``should_training_stop = True`` ends it at the next step boundary."""

    should_training_stop: bool = False


class Callback:
    """Hooks into a run, named as in ``transformers.TrainerCallback``; override any of them.

    Each receives ``(args, state, control, **kwargs)``: the method's config, ``RunState``, ``RunControl`` and ``model``,
    the working copy. Any object with some of these methods can be used instead. An exception in a hook is a
    ``RuntimeWarning``, once for each hook, and the run goes on.

    ``on_run_end`` comes last, also after an error, and receives in ``kwargs`` the ``report``, or ``None`` if the run
    came to none, the ``error`` that the run ends with, or ``None``, and as ``model`` the returned one, if there is one.
    """

    def on_train_begin(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...
    def on_step_begin(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...
    def on_step_end(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...
    def on_evaluate(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...
    def on_train_end(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...
    def on_run_end(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None: ...


class RunListener:
    """Receives the events of a run and ignores them."""

    def begin_attempt(self, attempt: int) -> None:
        """Before the weights as received are restored."""

    def begin_phase(self, phase: str, n_steps: int) -> None:
        """Before a phase of up to ``n_steps``."""

    def plan(self, n_steps: int) -> None:
        """Change the number of steps that may follow by ``n_steps``, which may be negative."""

    def begin_step(self) -> None:
        """Before a step."""

    def end_step(self, global_step: int, seconds: float) -> bool:
        """After a step; returns whether the run must stop."""
        return False

    def evaluated(self, evaluated: Evaluated) -> None:
        """After held-out accuracy was counted."""


_SILENT = RunListener()
_LISTENER: ContextVar[RunListener] = ContextVar("seamfast_run_listener", default=_SILENT)


def listener() -> RunListener:
    """The listener that receives the events of a run in this context; a run holds no reference to it."""
    return _LISTENER.get()


@contextmanager
def listening(to: RunListener) -> Iterator[None]:
    """Send the events of runs to the listener ``to``."""
    token = _LISTENER.set(to)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class CallbackHandler(RunListener):
    """Calls the callbacks, moves the progress bar and writes the history. Leaving it notifies ``on_run_end``.

    Args:
        callbacks: as for ``sanitize``.
        args, model: passed to callbacks: the method's config and the working copy.
        progress: ``None`` shows the bar if stderr is a terminal.
        observe: returns attack success rates by name of trigger, for the history only.
    """

    def __init__(
        self,
        callbacks: Iterable[Any],
        args: Any,
        model: Any,
        progress: bool | None,
        observe: Callable[[Evaluated], dict[str, float]] = lambda evaluated: {},
    ) -> None:
        self.state = RunState()
        self.control = RunControl()
        self._hooks = tuple(map(hooks_of, callbacks))
        self._args = args
        self._model = model
        self._report: Report | None = None
        self._observe = observe
        self._bar = progress_bar("sanitize", "step", 0, progress)

    def begin_attempt(self, attempt: int) -> None:
        self.state.attempt = attempt

    def begin_phase(self, phase: str, n_steps: int) -> None:
        self.state.phase = phase
        self.plan(n_steps)

    def plan(self, n_steps: int) -> None:
        self.state.max_steps += n_steps
        self._bar.total = self.state.max_steps
        self._bar.refresh()

    def begin_step(self) -> None:
        self.notify("on_step_begin")

    def end_step(self, global_step: int, seconds: float) -> bool:
        self.state.global_step, self.state.seconds = global_step, seconds
        self._bar.update()
        self.notify("on_step_end")
        return self.control.should_training_stop

    def evaluated(self, evaluated: Evaluated) -> None:
        point = replace(evaluated.point, attack_success_rate=self._observe(evaluated))
        self.state.seconds = point.seconds
        self.state.log_history.append(point)
        self._bar.set_postfix(
            phase=point.phase, holdout_accuracy=f"{point.holdout_accuracy:.3f}", loss=f"{point.loss:.3f}"
        )
        self.notify("on_evaluate")

    def notify(self, event: str, **given: Any) -> None:
        """Tell every callback of the event; ``given`` are further arguments of its hook."""
        for hooks in self._hooks:
            hooks.notify(event, self._args, self.state, self.control, model=self._model, **given)

    def close(self) -> None:
        """Notify ``on_train_end`` and remove the bar."""
        try:
            self.notify("on_train_end")
        finally:
            self._bar.close()

    def finish(self, model: Any, report: Report) -> None:
        """Set what ``on_run_end`` receives: the returned model and the report."""
        self._model, self._report = model, report

    def __enter__(self) -> CallbackHandler:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        report = self._report if error is None else getattr(error, "report", None)
        try:
            self.notify("on_run_end", report=report, error=error)
        except KeyboardInterrupt as interrupt:
            raise SanitizeInterrupted("interrupted in a callback at the end of the run", report) from interrupt


def progress_bar(name: str, unit: str, total: int, progress: bool | None) -> tqdm[Any]:
    """A bar on stderr, removed at its end; ``progress=None`` shows it if stderr is a terminal."""
    visible = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=total or None, desc=name, unit=unit, disable=not visible, leave=False)
