"""Calls the hooks of callbacks: seamfast's own, those of ``transformers.Trainer``, and the loggers of Lightning.

The other libraries are recognized by the names of their base classes, so none is imported here.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from seamfast.checks import LIGHTNING, base_of
from seamfast.errors import InputError

if TYPE_CHECKING:
    from seamfast.engine.events import HistoryPoint, RunControl, RunState

_EXPECTED = "expected a seamfast.Callback, a transformers.TrainerCallback or a logger of Lightning"


def check_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """The callbacks as a tuple; an ``InputError`` for a class, and for a callback of Lightning's ``Trainer``."""
    if not isinstance(callbacks, Iterable):
        raise InputError(f"callbacks is a {type(callbacks).__name__}; expected a list of callbacks")
    checked = tuple(callbacks)
    for number, callback in enumerate(checked):
        if isinstance(callback, type):
            name = callback.__name__
            raise InputError(f"callbacks[{number}] is the class {name}; expected an instance of it, e.g. {name}()")
        if base_of(callback, "Callback", LIGHTNING):
            name = type(callback).__name__
            raise InputError(f"callbacks[{number}] is {name}, a callback of Lightning's Trainer; {_EXPECTED}")
    return checked


def hooks_of(callback: Any) -> Hooks:
    """The ``Hooks`` for the kind of callback."""
    base = base_of(callback, "TrainerCallback", ("transformers",))
    if base is not None:
        return TransformersHooks(callback, sys.modules[base.__module__])
    return LightningHooks(callback) if base_of(callback, "Logger", LIGHTNING) else Hooks(callback)


def metrics_of(point: HistoryPoint) -> dict[str, float]:
    """What loggers get of an evaluation: loss, held-out accuracy, and ``attack_success_rate/NAME``."""
    known = {f"attack_success_rate/{name}": rate for name, rate in point.attack_success_rate.items()}
    return {"loss": point.loss, "holdout_accuracy": point.holdout_accuracy, **known}


def figures_of(report: Mapping[str, Any]) -> dict[str, float]:
    """What loggers get of a report: ``accepted`` as 0 or 1, seconds, and rates on the held-out part before and after.

    Rates are named ``before/clean_accuracy``, ``after/attack_success_rate/NAME``; those without samples are left out.
    """
    figures = {"accepted": float(report["verdict"]["accepted"]), "seconds": report["run"]["seconds"]["total"]}
    for when in ("before", "after"):
        outcome = report["holdout"][when] or {"clean_accuracy": {"value": None}, "triggers": []}
        rates = {"clean_accuracy": outcome["clean_accuracy"]["value"]}
        for trigger in outcome["triggers"]:
            for name in ("attack_success_rate", "robust_accuracy"):
                rates[f"{name}/{trigger['name']}"] = trigger[name]["value"]
        figures |= {f"{when}/{name}": rate for name, rate in rates.items() if rate is not None}
    return figures


class Hooks:
    """The hooks of one callback. An error in one is a warning, once for each hook, and the run goes on.

    Args:
        callback: an object with some of the methods of ``seamfast.Callback``.
    """

    def __init__(self, callback: Any) -> None:
        self._callback = callback
        self._failed: set[str] = set()

    def notify(self, event: str, args: Any, state: RunState, control: RunControl, **given: Any) -> None:
        """Tell the callback of the event; arguments as of the hook of that name in ``seamfast.Callback``."""
        self._call(event, args, state, control, **given)

    def _call(self, hook: str, *args: Any, **given: Any) -> Any:
        """What the hook returns; ``None`` if it fails, or if there is none."""
        try:
            method = getattr(self._callback, hook, None)
            return None if method is None else method(*args, **given)
        except Exception as error:
            if hook not in self._failed:
                self._failed.add(hook)
                what = f"{type(error).__name__}: {error}"
                message = f"the callback {type(self._callback).__name__} failed in {hook}: {what}; the run goes on"
                warnings.warn(message, RuntimeWarning, stacklevel=4)
            return None


class TransformersHooks(Hooks):
    """The hooks of a ``transformers.TrainerCallback``, called as ``transformers.Trainer`` calls them.

    They get a ``TrainerState``, a ``TrainerControl``, the settings as ``args``, and evaluations as ``metrics`` and
    ``logs``, named as there: ``loss``, ``eval_holdout_accuracy``. ``on_train_end`` comes last, after the figures of the
    report were logged.

    Args:
        callback: the ``TrainerCallback``.
        library: the module of transformers that defines the states of a trainer.
    """

    def __init__(self, callback: Any, library: Any) -> None:
        super().__init__(callback)
        self._state, self._control = library.TrainerState(), library.TrainerControl()
        self._arguments: _Arguments | None = None
        self._has_begun = False

    def notify(self, event: str, args: Any, state: RunState, control: RunControl, **given: Any) -> None:
        self._state.global_step, self._state.max_steps = state.global_step, state.max_steps
        if self._arguments is None:
            self._arguments = _Arguments(args.to_dict())
        if event in ("on_train_begin", "on_step_begin", "on_step_end"):
            self._has_begun = True
            self._hook(event, control, given["model"])
        elif event == "on_evaluate":
            logs = _prefixed(metrics_of(state.log_history[-1]))
            self._hook("on_evaluate", control, given["model"], metrics=dict(logs))
            self._log(logs, control, given["model"])
        elif event == "on_run_end":
            if given["report"] is not None:
                if not self._has_begun:
                    self._hook("on_train_begin", control, given["model"])
                    self._has_begun = True
                self._log(_prefixed(figures_of(given["report"])), control, given["model"])
            if self._has_begun:
                self._hook("on_train_end", control, given["model"])

    def _log(self, logs: dict[str, float], control: RunControl, model: Any) -> None:
        self._state.log_history.append({**logs, "step": self._state.global_step})
        self._hook("on_log", control, model, logs=logs)

    def _hook(self, hook: str, control: RunControl, model: Any, **given: Any) -> None:
        returned = self._call(hook, self._arguments, self._state, self._control, model=model, **given)
        for asked in (self._control, returned):  # a hook may return another one
            if getattr(asked, "should_training_stop", False):
                control.should_training_stop = True


class LightningHooks(Hooks):
    """The methods of a logger of Lightning, called as Lightning's ``Trainer`` calls them."""

    def __init__(self, callback: Any) -> None:
        super().__init__(callback)
        self._has_begun = False

    def notify(self, event: str, args: Any, state: RunState, control: RunControl, **given: Any) -> None:
        report = given.get("report")
        if not self._has_begun and (event == "on_train_begin" or report is not None):
            self._has_begun = True
            self._call("log_hyperparams", args.to_dict())
        if event == "on_evaluate":
            point = state.log_history[-1]
            self._call("log_metrics", metrics_of(point), point.step)
        elif event == "on_run_end" and self._has_begun:
            if report is not None:
                self._call("log_metrics", figures_of(report), state.global_step)
            self._call("save")
            self._call("finalize", "success" if given["error"] is None else "failed")


class _Arguments(SimpleNamespace):
    """The settings of a method, with what loggers read of ``transformers.TrainingArguments`` beside them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        of_trainer = {"output_dir": ".", "logging_dir": None, "run_name": None, "load_best_model_at_end": False}
        super().__init__(**of_trainer, logging_steps=1, **settings)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._settings)

    to_sanitized_dict = to_dict

    def to_json_string(self) -> str:
        return json.dumps(self._settings, indent=2)


def _prefixed(figures: Mapping[str, float]) -> dict[str, float]:
    """With ``eval_`` before the names of all but the loss, by which the loggers of transformers tell them apart."""
    return {name if name == "loss" else f"eval_{name}": value for name, value in figures.items()}
