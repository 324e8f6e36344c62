from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import seamfast
from seamfast import CleanSet, HistoryPoint, SeamConfig
from seamfast.engine.events import Announcer

EVENTS = ["on_train_begin", "on_step_begin", "on_step_end", "on_evaluate", "on_train_end"]
POINT = HistoryPoint("forget", 0, 5, 1.25, 2.0, 0.5, {"patch": 1.0})
CONFIG = SeamConfig(
    forget_rate=1e-6,  # too small to end the phase early
    forget_max_steps=4,
    forget_eval_every=2,
    recover_max_steps=6,
    recover_eval_every=3,
    strengths=(1.0,),
)


class Recorder:
    """Notes every event; no ``Callback``, but with its methods."""

    def __init__(self, name: str = "", log: list[Any] | None = None) -> None:
        self.name = name
        self.log: list[Any] = [] if log is None else log
        self.seen: list[tuple[Any, ...]] = []

    def __getattr__(self, event: str) -> Any:
        if not event.startswith("on_"):
            raise AttributeError(event)

        def note(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.log.append((self.name, event) if self.name else event)
            self.seen.append((event, args, state, control, kwargs))

        return note


def announcer(*callbacks: Any, progress: bool | None = False) -> Announcer:
    return Announcer(callbacks, "config", "model", progress)


def test_each_callback_gets_each_event_in_order_with_args_state_control_and_model() -> None:
    log: list[Any] = []
    one, other = Recorder("one", log), Recorder("other", log)
    told = announcer(one, other)
    told.state.log_history.append(POINT)
    for event in EVENTS:
        told.tell(event)
    assert log == [(name, event) for event in EVENTS for name in ("one", "other")]
    for event, args, state, control, kwargs in one.seen:
        assert (args, kwargs) == ("config", {"model": "model"}), event
        assert state is told.state
        assert control is told.control


def test_a_callback_may_have_some_of_the_methods_only() -> None:
    class One:
        count = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.count += 1

    one = One()
    told = announcer(one, object(), seamfast.Callback())
    told.state.log_history.append(POINT)
    for event in EVENTS:
        told.tell(event)
    assert one.count == 1


def test_the_events_are_named_and_called_as_in_transformers() -> None:
    """``TrainerCallback``'s names, and ``(args, state, control, **kwargs)`` by position."""
    assert [name for name in vars(seamfast.Callback) if name.startswith("on_")] == EVENTS
    for event in EVENTS:
        kinds = [
            (p.name, p.kind.name) for p in inspect.signature(getattr(seamfast.Callback, event)).parameters.values()
        ]
        named = [(name, "POSITIONAL_OR_KEYWORD") for name in ("self", "args", "state", "control")]
        assert kinds == [*named, ("kwargs", "VAR_KEYWORD")]


def test_what_a_callback_sets_is_what_the_run_reads() -> None:
    class Stop(seamfast.Callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    told = announcer(Stop())
    assert told.control.should_training_stop is False
    told.tell("on_step_begin")
    assert told.control.should_training_stop is False
    told.tell("on_step_end")
    assert told.control.should_training_stop is True


def test_what_a_callback_raises_comes_through() -> None:
    class Broken(seamfast.Callback):
        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    told = announcer(Broken())
    told.state.log_history.append(POINT)
    with pytest.raises(ZeroDivisionError):
        told.tell("on_evaluate")


def test_plans_add_up() -> None:
    told = announcer()
    told.plan(40)
    told.plan(300)
    told.skip(25)
    assert told.state.max_steps == 315


def test_the_progress_bar_goes_to_stderr_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for progress, shown in ((True, True), (False, False), (None, False)):  # None: captured stderr is no terminal
        told = announcer(progress=progress)
        told.plan(3)
        told.state.log_history.append(POINT)
        for event in EVENTS:
            told.tell(event)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert bool(captured.err) is shown
        if shown:
            assert "holdout_accuracy=0.500" in captured.err
            assert "1/3" in captured.err


def test_a_history_point_as_a_dict() -> None:
    assert POINT.to_dict() == {
        "phase": "forget", "attempt": 0, "step": 5, "seconds": 1.25, "loss": 2.0, "holdout_accuracy": 0.5,
        "attack_success_rate": {"patch": 1.0},
    }  # fmt: skip


# In a real run.


def test_a_run_tells_its_events_in_order(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    recorder = Recorder()
    result = seamfast.sanitize(tiny_model(), tiny_data, config=CONFIG, callbacks=[recorder])
    log = recorder.log
    assert log[0] == "on_train_begin"
    assert log[-1] == "on_train_end"
    assert log.count("on_train_begin") == log.count("on_train_end") == 1
    assert set(log[1:-1]) == {"on_step_begin", "on_evaluate", "on_step_end"}
    # Steps follow each other; an evaluation comes after one, as in transformers.
    letters = {"on_step_begin": "b", "on_evaluate": "v", "on_step_end": "e"}
    assert re.fullmatch("(bev?){10}", "".join(letters[event] for event in log[1:-1]))
    assert log.count("on_evaluate") == len(result.history)
    _, args, state, control, kwargs = recorder.seen[-1]
    assert args == CONFIG
    assert state.log_history == list(result.history)
    assert control.should_training_stop is False
    assert kwargs["model"] is result.model
    points = [(p.phase, p.attempt) for p in result.history]
    assert points[0] == ("forget", 0)
    assert points[-1] == ("recover", 0)


def test_every_step_that_begins_ends_and_is_counted_though_a_phase_ends_early(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    recorder = Recorder()
    early = SeamConfig(
        forget_rate=0.5, forget_max_steps=40, forget_eval_every=2, recover_max_steps=4, recover_eval_every=1,
        strengths=(1.0,),
    )  # fmt: skip
    result = seamfast.sanitize(tiny_model(), tiny_data, config=early, callbacks=[recorder])
    steps = result.report["run"]["steps"]
    assert steps["forget"] < 40
    assert recorder.log.count("on_step_begin") == recorder.log.count("on_step_end") == sum(steps.values())
    assert steps["forget"] % 2 == 0
    numbers = [p.step for p in result.history]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == sum(steps.values())


def test_a_run_that_is_told_to_stop_gives_the_model_back_as_received(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    class StopAt(seamfast.Callback):
        def __init__(self, step: int) -> None:
            self.step, self.ended = step, 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= self.step

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.ended += 1

    for step in (1, 3):
        callback = StopAt(step)
        result = seamfast.sanitize(tiny_model(), tiny_data, config=CONFIG, callbacks=[callback])
        assert callback.ended == 1
        assert result.accepted is False
        assert "stopped by a callback in the" in result.reason
        assert sum(result.report["run"]["steps"].values()) == step
        assert result.report["model"]["returned"] == "received"
        assert result.report["model"]["digest_after"] == result.report["model"]["digest_before"]
