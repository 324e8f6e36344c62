"""``MLflowLogger``: a run in MLflow. Needs mlflow or mlflow-skinny."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any

from seamfast.engine.callbacks import figures_of, metrics_of
from seamfast.engine.events import Callback, RunControl, RunState
from seamfast.errors import InputError

_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)
_LONGEST_VALUE = 500
"""Of params and tags, which older servers cut or refuse beyond it."""


class MLflowLogger(Callback):
    """Makes a run in MLflow of each call of ``sanitize``: settings, metrics by step, verdict, ``report.json``.

    It uses a client of its own: the active run and the tracking URI of the process stay as they are. It connects to
    the ``tracking_uri`` alone; MLflow's telemetry is off, unless MLflow was imported before.

    Args:
        tracking_uri: e.g. ``"sqlite:///runs.db"`` or ``"https://mlflow.example.com"``.
        experiment: its name; made if it is not there.
        run_name: of the run; ``None``: one that MLflow makes up.

    Attributes:
        run_id: of the last run; ``None`` before the first.

    Raises:
        InputError: ``tracking_uri is None; expected the URI of a tracking server or store``; ``MLflowLogger needs
            MLflow: pip install "seamfast[mlflow]"``.
    """

    def __init__(self, tracking_uri: str, *, experiment: str = "seamfast", run_name: str | None = None) -> None:
        if not isinstance(tracking_uri, str) or not tracking_uri:
            raise InputError(f"tracking_uri is {tracking_uri!r}; expected the URI of a tracking server or store")
        self._mlflow = _imported()
        self._client = self._mlflow.MlflowClient(tracking_uri)
        self._experiment = experiment
        self._run_name = run_name
        self._has_begun = False
        self.run_id: str | None = None

    def on_train_begin(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None:
        self._begin(args)

    def on_evaluate(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None:
        point = state.log_history[-1]
        self._log(metrics_of(point), point.step)

    def on_run_end(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None:
        report, error = kwargs["report"], kwargs["error"]
        if report is not None:
            self._begin(args)
            self._log(figures_of(report), state.global_step)
            tags = {"method": report["method"], "seed": report["seed"]}
            tags |= {name: report["verdict"][name] for name in ("outcome", "reason")}
            for name, value in tags.items():
                self._client.set_tag(self.run_id, f"seamfast.{name}", str(value)[:_LONGEST_VALUE])
            self._client.log_text(self.run_id, report.to_json(), "report.json")
        if self._has_begun:
            stopped = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self._client.set_terminated(self.run_id, "FINISHED" if error is None else stopped)
            self._has_begun = False

    def _begin(self, args: Any) -> None:
        if self._has_begun:
            return
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        self.run_id = self._client.create_run(experiment, run_name=self._run_name).info.run_id
        self._has_begun = True
        settings = args.to_dict().items()
        params = [self._mlflow.entities.Param(name, str(value)[:_LONGEST_VALUE]) for name, value in settings]
        self._client.log_batch(self.run_id, params=params)

    def _log(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        metrics = [metric(_NOT_IN_NAMES.sub("_", name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)


def _imported() -> Any:
    """The module ``mlflow``, which decides when it is imported whether it sends telemetry."""
    switch = "MLFLOW_DISABLE_TELEMETRY"
    before = os.environ.get(switch)
    if "mlflow" not in sys.modules:
        os.environ[switch] = "true"
    try:
        import mlflow
        import mlflow.entities
    except ModuleNotFoundError as error:
        raise InputError('MLflowLogger needs MLflow: pip install "seamfast[mlflow]"') from error
    finally:
        if before is None:
            os.environ.pop(switch, None)
        else:
            os.environ[switch] = before
    return mlflow
