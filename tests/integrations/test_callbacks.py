"""Callbacks of ``transformers`` in a run: stock ones, broken ones, such that stop it; and what is refused."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import seamfast
from seamfast import CleanSet
from seamfast.engine.model import digest
from seamfast.errors import InputError, SanitizeInterrupted
from tests.integrations.conftest import SHORT, Run, curve, scalars

transformers = pytest.importorskip("transformers", reason="needs transformers: the extra hf")

HOOKS = ["on_train_begin", "on_step_begin", "on_step_end", "on_evaluate", "on_log", "on_train_end"]


class Notes(transformers.TrainerCallback):
    """Notes what each hook gets."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, dict[str, Any]]] = []


class Raises(transformers.TrainerCallback):
    """Raises in every hook."""


def _note(hook: str) -> Callable[..., None]:
    def note(self: Notes, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert isinstance(state, transformers.TrainerState)
        assert isinstance(control, transformers.TrainerControl)
        self.seen.append((hook, state.global_step, kwargs | {"args": args, "state": state}))

    return note


def _raise(hook: str) -> Callable[..., None]:
    def fail(self: Raises, *args: Any, **kwargs: Any) -> None:
        raise TypeError(f"{hook} is broken")

    return fail


for hook in HOOKS:
    setattr(Notes, hook, _note(hook))
    setattr(Raises, hook, _raise(hook))


def test_a_trainer_callback_is_called_as_by_a_trainer(run: Run) -> None:
    notes = Notes()
    result = run(notes)
    names = [hook for hook, _, _ in notes.seen]
    assert names[0] == "on_train_begin"
    assert names[-2:] == ["on_log", "on_train_end"]
    assert names.count("on_train_begin") == names.count("on_train_end") == 1
    assert names.count("on_step_begin") == names.count("on_step_end") == 10
    logged = [(step, kwargs["logs"]) for hook, step, kwargs in notes.seen if hook == "on_log"]
    assert [step for step, _ in logged] == [*curve(result, "loss"), 10]
    for (_, logs), point in zip(logged, result.history, strict=False):
        ((trigger, rate),) = point.attack_success_rate.items()
        assert logs == {
            "loss": point.loss,
            "eval_holdout_accuracy": point.holdout_accuracy,
            f"eval_attack_success_rate/{trigger}": rate,
        }
    assert [kwargs["metrics"] for hook, _, kwargs in notes.seen if hook == "on_evaluate"] == [v for _, v in logged[:-1]]
    last, final = logged[-1][1], notes.seen[-1][2]
    assert last["eval_accepted"] == float(result.accepted)
    assert last["eval_after/clean_accuracy"] == result.report["holdout"]["after"]["clean_accuracy"]["value"]
    assert final["model"] is result.model
    assert final["args"].batch_size == SHORT.batch_size
    assert json.loads(final["args"].to_json_string()) == final["args"].to_dict() == result.report["config"]
    assert [entry["step"] for entry in final["state"].log_history] == [*curve(result, "loss"), 10]
    assert final["state"].max_steps >= 10


def test_what_a_callback_takes_out_of_its_logs_the_next_one_gets(run: Run) -> None:
    class Takes(transformers.TrainerCallback):
        def on_log(self, *args: Any, logs: Any, **kwargs: Any) -> None:
            logs.clear()

    notes = Notes()
    run(Takes(), notes)
    assert all(kwargs["logs"] for hook, _, kwargs in notes.seen if hook == "on_log")
    assert all("loss" in entry for entry in notes.seen[-1][2]["state"].log_history[:-1])


@pytest.mark.parametrize("kind", ["of transformers", "own"])
def test_a_callback_that_raises_in_every_hook_costs_nothing(kind: str, run: Run) -> None:
    callback: Any = Raises()
    hooks = HOOKS
    if kind == "own":
        hooks = [*(name for name in HOOKS if name != "on_log"), "on_run_end"]
        callback = type("Raises", (seamfast.Callback,), {hook: _raise(hook) for hook in hooks})()
    options: dict[str, Any] = {"deterministic": True, "threads": 1}
    expected = run(**options)
    with pytest.warns(RuntimeWarning) as warned:
        result = run(callback, **options)
    messages = sorted(str(w.message) for w in warned)
    assert messages == sorted(
        f"the callback Raises failed in {h}: TypeError: {h} is broken; the run goes on" for h in hooks
    )
    assert result.report["model"]["digest_after"] == expected.report["model"]["digest_after"]
    assert result.report["run"]["stopped"] is None


@pytest.mark.parametrize("way", ["sets it", "returns it", "sets it and fails"])
def test_a_trainer_callback_stops_the_run(way: str, run: Run) -> None:
    class Stops(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step < 3:
                return None
            if way == "returns it":
                return transformers.TrainerControl(should_training_stop=True)
            control.should_training_stop = True
            if way == "sets it and fails":
                raise ValueError("after that")
            return None

    notes = Notes()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = run(Stops(), notes)
    assert len(warned) == (way == "sets it and fails")
    assert "stopped by a callback in the" in result.reason
    assert sum(result.report["run"]["steps"].values()) == 3
    assert [hook for hook, _, _ in notes.seen][-2:] == ["on_log", "on_train_end"]


def test_an_interrupt_in_a_trainer_callback_goes_through_and_its_training_ends(run: Run) -> None:
    class Interrupts(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    notes = Notes()
    with pytest.raises(SanitizeInterrupted) as interrupted:
        run(notes, Interrupts())
    assert interrupted.value.report is not None
    assert notes.seen[-1][0] == "on_train_end"


def test_a_model_that_guesses_is_logged_too(tiny_data: CleanSet) -> None:
    notes = Notes()
    guesses = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    result = seamfast.sanitize(guesses, tiny_data, config=SHORT, callbacks=[notes])
    assert result.accepted is False
    assert [hook for hook, _, _ in notes.seen] == ["on_train_begin", "on_log", "on_train_end"]
    assert notes.seen[1][2]["logs"]["eval_accepted"] == 0.0


def test_no_hook_is_called_for_data_that_are_refused(tiny_data: CleanSet, run: Run) -> None:
    notes = Notes()
    with pytest.raises(InputError):
        run(notes, triggers=[seamfast.triggers.Patch.square(2, target=7)])
    assert notes.seen == []


# Stock callbacks.


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("writes_to", ["a writer", "the folder of the environment"])
def test_stock_callback_of_tensorboard(
    writes_to: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: the extra tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    writer = SummaryWriter(str(tmp_path)) if writes_to == "a writer" else None
    result = run(transformers.integrations.TensorBoardCallback(writer))
    found = scalars(tmp_path)
    assert found["train/loss"] == pytest.approx(curve(result, "loss"), rel=1e-6)
    assert found["eval/holdout_accuracy"] == pytest.approx(curve(result, "holdout_accuracy"), rel=1e-6)
    assert found["eval/accepted"] == {10: float(result.accepted)}


def test_stock_callback_of_wandb(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the package, with what the stock callback calls of it."""
    sent: list[dict[str, float]] = []
    started: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.run = None

    def init(**options: Any) -> None:
        started.append(options)
        wandb.run = types.SimpleNamespace(summary={}, _label=lambda code: None, id="1", name=None)

    class Config(dict):
        def update(self, values: Any, allow_val_change: bool) -> None:
            config.update(values)

    wandb.init, wandb.config, wandb.log = init, Config(), sent.append
    util = types.ModuleType("wandb.sdk.lib.config_util")
    util.ConfigError = type("ConfigError", (Exception,), {})
    for name in ("wandb.sdk", "wandb.sdk.lib"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, util.__name__, util)
    stock = sys.modules["transformers.integrations.integration_utils"]
    monkeypatch.setattr(stock, "is_wandb_available", lambda: True)
    result = run(stock.WandbCallback())
    assert len(started) == 1
    assert config == result.report["config"]
    assert [v["train/global_step"] for v in sent] == [*curve(result, "loss"), 10]
    assert [v["train/loss"] for v in sent[:-1]] == list(curve(result, "loss").values())
    assert sent[-1]["eval/accepted"] == float(result.accepted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_stock_callback_of_mlflow(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "true")
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow: the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy for MLflow's store: the extra mlflow")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri("sqlite:///runs.db")
    try:
        result = run(transformers.integrations.MLflowCallback())
        assert mlflow.active_run() is None
        (found,) = mlflow.MlflowClient().search_runs(["0"])
        assert found.info.status == "FINISHED"
        assert found.data.params["batch_size"] == "128"
        assert found.data.metrics["eval_accepted"] == float(result.accepted)
        points = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
        assert {p.step: p.value for p in points} == pytest.approx(curve(result, "loss"))
    finally:
        mlflow.set_tracking_uri(before)


def test_stock_callbacks_that_print(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run(transformers.PrinterCallback(), transformers.ProgressCallback())
    assert "'eval_holdout_accuracy'" in capsys.readouterr().out


# Refused.


def test_a_class_is_refused(run: Run) -> None:
    with pytest.raises(
        InputError, match=r"^callbacks\[1\] is the class Notes; expected an instance of it, e.g. Notes\(\)$"
    ):
        run(seamfast.Callback(), Notes)


def test_callbacks_may_come_from_a_generator(run: Run) -> None:
    notes = Notes()
    run(callbacks=(callback for callback in [notes]))
    assert notes.seen[-1][0] == "on_train_end"


def test_end_of_a_trainers_training(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs accelerate, for transformers.Trainer")

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_model()

        def forward(self, inputs: Any, labels: Any = None) -> dict[str, Any]:
            logits = self.net(inputs)
            loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
            return {**loss, "logits": logits}

    inputs = tiny_data.normalize(tiny_data.inputs)
    rows = [{"inputs": x, "labels": int(y)} for x, y in zip(inputs, tiny_data.labels, strict=True)]
    callback = seamfast.integrations.trainer_sanitizer(rows, config=SHORT, seed=5)
    assert callback.result is None
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    model = WithLoss()
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
    trainer.train()
    assert callback.result.report["seed"] == 5
    assert callback.result.model is not model
    assert callback.result.report["model"]["digest_before"] == digest(model)
    assert callback.result.report["run"]["stopped"] is None


def test_options_of_the_end_of_a_training_are_checked_before_it() -> None:
    sanitizer = seamfast.integrations.trainer_sanitizer
    with pytest.raises(InputError, match=r"^clean_data is None; expected data as for seamfast\.sanitize$"):
        sanitizer(None)
    with pytest.raises(InputError, match=r"^sanitize has no epochs, steps; expected some of audits, augments, "):
        sanitizer([], steps=3, epochs=2)
    with pytest.raises(InputError, match=r"^callbacks\[0\] is the class Notes"):
        sanitizer([], callbacks=[Notes])
