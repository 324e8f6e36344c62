from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import seamfast
from seamfast import CleanSet, HistoryPoint, SeamConfig
from seamfast.engine.events import CallbackHandler, Evaluated, RunListener, listener, listening
from seamfast.engine.precision import Precision
from seamfast.errors import SanitizeInterrupted

EVENTS = ["on_train_begin", "on_step_begin", "on_step_end", "on_evaluate", "on_train_end"]
POINT = HistoryPoint("forget", 0, 5, 1.25, 2.0, 0.5)
EVALUATED = Evaluated(POINT, torch.arange(3), Precision())
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


def handler(*callbacks: Any, progress: bool | None = False) -> CallbackHandler:
    return CallbackHandler(callbacks, "config", "model", progress)


def test_each_callback_gets_each_event_in_order_with_args_state_control_and_model() -> None:
    log: list[Any] = []
    one, other = Recorder("one", log), Recorder("other", log)
    of = handler(one, object(), seamfast.Callback(), other)  # a callback may have some of the methods, or none
    for event in EVENTS:
        of.notify(event)
    assert log == [(name, event) for event in EVENTS for name in ("one", "other")]
    for event, args, state, control, kwargs in one.seen:
        assert (args, kwargs) == ("config", {"model": "model"}), event
        assert state is of.state
        assert control is of.control


def test_the_events_are_named_and_called_as_in_transformers() -> None:
    """``TrainerCallback``'s names, and one more; ``(args, state, control, **kwargs)`` by position."""
    assert [name for name in vars(seamfast.Callback) if name.startswith("on_")] == [*EVENTS, "on_run_end"]
    for event in [*EVENTS, "on_run_end"]:
        kinds = [
            (p.name, p.kind.name) for p in inspect.signature(getattr(seamfast.Callback, event)).parameters.values()
        ]
        named = [(name, "POSITIONAL_OR_KEYWORD") for name in ("self", "args", "state", "control")]
        assert kinds == [*named, ("kwargs", "VAR_KEYWORD")]


def test_what_a_callback_sets_is_what_the_run_reads() -> None:
    class Stop(seamfast.Callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    of = handler(Stop())
    of.begin_step()
    assert [of.end_step(1, 0.1), of.end_step(2, 0.2)] == [False, True]
    assert (of.state.global_step, of.state.seconds) == (2, 0.2)


@pytest.mark.parametrize("error", [ZeroDivisionError("in a hook"), KeyboardInterrupt("in a hook")])
def test_an_error_in_a_hook_is_a_warning_and_an_interrupt_comes_through_and_the_bar_goes_all_the_same(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(seamfast.Callback):
        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            raise error

        on_train_end = on_evaluate

    def fails(hook: str) -> Any:
        if isinstance(error, KeyboardInterrupt):
            return pytest.raises(KeyboardInterrupt, match=r"^in a hook$")
        message = rf"^the callback Broken failed in {hook}: ZeroDivisionError: in a hook; the run goes on$"
        return pytest.warns(RuntimeWarning, match=message)

    of = handler(Broken(), progress=True)
    with fails("on_evaluate"):
        of.evaluated(EVALUATED)
    assert of.state.log_history == [POINT]
    with fails("on_train_end"):
        of.close()
    capsys.readouterr()
    of.plan(3)
    assert capsys.readouterr().err == ""


def test_an_error_is_a_warning_once_for_each_callback_and_hook_and_the_others_are_called() -> None:
    class Broken(seamfast.Callback):
        n_calls = 0

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.n_calls += 1
            raise ValueError("no space")

        on_step_begin = on_step_end

    one, other, recorder = Broken(), Broken(), Recorder()
    of = handler(one, other, recorder)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            of.notify("on_step_begin")
            of.notify("on_step_end")
    hooks = [str(w.message).split(": ")[0] for w in warned]
    assert hooks == [f"the callback Broken failed in {hook}" for hook in ("on_step_begin",) * 2 + ("on_step_end",) * 2]
    assert (one.n_calls, other.n_calls, len(recorder.log)) == (6, 6, 6)  # it may work the next time


def test_the_end_of_a_run_is_told_with_its_report_or_its_error() -> None:
    recorder = Recorder()
    with handler(recorder) as of:
        of.finish("returned", seamfast.Report(seed=3))
    error = SanitizeInterrupted("by hand", seamfast.Report(seed=4))
    with pytest.raises(SanitizeInterrupted), handler(recorder):
        raise error
    with pytest.raises(KeyError), handler(recorder):
        raise KeyError
    kwargs = [kwargs for _, _, _, _, kwargs in recorder.seen]
    assert kwargs[0] == {"model": "returned", "report": {"seed": 3}, "error": None}
    assert kwargs[1] == {"model": "model", "report": {"seed": 4}, "error": error}
    assert (kwargs[2]["report"], type(kwargs[2]["error"])) == (None, KeyError)


def test_an_interrupt_at_the_end_of_a_run_has_its_report() -> None:
    class Interrupts(seamfast.Callback):
        def on_run_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(SanitizeInterrupted, match="in a callback") as interrupted, handler(Interrupts()) as of:
        of.finish("returned", seamfast.Report(seed=3))
    assert interrupted.value.report == {"seed": 3}


def test_attempts_phases_and_plans_are_in_the_state() -> None:
    of = handler()
    of.begin_attempt(2)
    of.begin_phase("forget", 40)
    of.begin_phase("recover", 300)
    of.plan(-25)
    assert (of.state.attempt, of.state.phase, of.state.max_steps) == (2, "recover", 315)


def test_an_evaluation_is_written_to_the_history_with_what_the_observer_measures() -> None:
    asked: list[Evaluated] = []
    recorder = Recorder()
    of = CallbackHandler([recorder], "config", "model", False, lambda e: asked.append(e) or {"patch": 1.0})
    of.evaluated(EVALUATED)
    assert asked == [EVALUATED]
    assert of.state.log_history == [replace(POINT, attack_success_rate={"patch": 1.0})]
    assert of.state.seconds == POINT.seconds
    assert recorder.log == ["on_evaluate"]
    assert POINT.attack_success_rate == {}  # what the run made stays as it was


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])  # stderr is no terminal
def test_the_progress_bar_goes_to_stderr_if_asked_for(
    progress: bool | None, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    of = handler(progress=progress)
    of.begin_phase("forget", 3)
    of.end_step(1, 0.5)
    of.evaluated(EVALUATED)
    of.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("holdout_accuracy=0.500" in captured.err, "1/3" in captured.err, bool(captured.err)) == (shown,) * 3


def test_a_history_point_as_a_dict() -> None:
    assert replace(POINT, attack_success_rate={"patch": 1.0}).to_dict() == {
        "phase": "forget", "attempt": 0, "step": 5, "seconds": 1.25, "loss": 2.0, "holdout_accuracy": 0.5,
        "attack_success_rate": {"patch": 1.0},
    }  # fmt: skip


def test_events_go_to_the_innermost_listener_and_to_no_other_once_it_is_left() -> None:
    outer, inner = RunListener(), handler()
    at_rest = listener()
    with listening(outer):
        with suppress(KeyError), listening(inner):
            assert listener() is inner
            raise KeyError
        assert listener() is outer
    assert listener() is at_rest
    assert type(at_rest) is RunListener
    assert at_rest.end_step(1, 0.5) is False


# In a real run.


def test_a_run_sends_its_events_in_order(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    recorder = Recorder()
    result = seamfast.sanitize(tiny_model(), tiny_data, config=CONFIG, callbacks=[recorder])
    log = recorder.log
    assert log[0] == "on_train_begin"
    assert log[-2:] == ["on_train_end", "on_run_end"]
    assert log.count("on_train_begin") == log.count("on_train_end") == log.count("on_run_end") == 1
    assert set(log[1:-2]) == {"on_step_begin", "on_evaluate", "on_step_end"}
    # Steps follow each other; an evaluation comes after one, as in transformers.
    letters = {"on_step_begin": "b", "on_evaluate": "v", "on_step_end": "e"}
    assert re.fullmatch("(bev?){10}", "".join(letters[event] for event in log[1:-2]))
    assert log.count("on_evaluate") == len(result.history)
    _, args, state, control, kwargs = recorder.seen[-1]
    assert args == CONFIG
    assert state.log_history == list(result.history)
    assert control.should_training_stop is False
    assert kwargs["model"] is result.model
    assert kwargs["report"] is result.report
    assert kwargs["error"] is None
    assert recorder.seen[-2][4] == {"model": result.model}
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


def test_a_run_that_a_callback_stops_gives_the_model_back_as_received(
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
