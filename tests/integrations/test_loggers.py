"""``TensorBoardLogger`` and ``MLflowLogger``: what they write of a run, how it ends there, and a missing package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import seamfast
from seamfast import CleanSet, Report
from seamfast.errors import InputError, SanitizeInterrupted
from seamfast.integrations import MLflowLogger, TensorBoardLogger
from tests.integrations.conftest import SHORT, Run, curve, scalars


class Interrupts(seamfast.Callback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


# TensorBoard.


@pytest.mark.parametrize("given", ["folder", "writer"])
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_run_in_tensorboard(given: str, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: the extra tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path)) if given == "writer" else None
    result = run(TensorBoardLogger(writer or tmp_path))
    found = scalars(tmp_path)
    assert found["loss"] == pytest.approx(curve(result, "loss"), rel=1e-6)
    assert found["holdout_accuracy"] == pytest.approx(curve(result, "holdout_accuracy"), rel=1e-6)
    (trigger,) = result.history[0].attack_success_rate
    rates = {p.step: p.attack_success_rate[trigger] for p in result.history}
    assert found[f"attack_success_rate/{trigger}"] == pytest.approx(rates, rel=1e-6)
    assert found["accepted"] == {10: float(result.accepted)}
    for when in ("before", "after"):
        outcome = result.report["holdout"][when]
        rate = outcome["triggers"][0]["attack_success_rate"]["value"]
        assert found[f"{when}/attack_success_rate/{trigger}"] == pytest.approx({10: rate}, rel=1e-6)
    if writer is not None:
        writer.add_scalar("after it", 1.0, 0)  # it is still open
        writer.close()
        assert scalars(tmp_path)["after it"] == {0: 1.0}
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_the_report_in_tensorboard_of_a_second_run_too(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    for seed in (3, 4):
        result = run(logger, seed=seed)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    texts = {
        tag: [e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]
    }
    assert len(texts["report/text_summary"]) == 2
    indented = texts["report/text_summary"][1].splitlines()
    assert Report.from_json("\n".join(line[4:] for line in indented)) == result.report
    assert texts["verdict/text_summary"][1] == f"{result.outcome}: {result.reason}"
    assert "    batch_size = 128" in texts["config/text_summary"][0].splitlines()


def test_what_is_no_writer_is_refused() -> None:
    with pytest.raises(InputError, match=r"^writer is a int; expected a folder or a SummaryWriter$"):
        TensorBoardLogger(3)


# MLflow.


def with_mlflow(test: Callable[..., None]) -> Callable[..., None]:
    """MLflow and SQLAlchemy warn of each other, and making the store takes seconds."""
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore")(test))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("mlflow", reason="needs MLflow: the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy for MLflow's store: the extra mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db"


@pytest.fixture
def client(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a store whose experiment "cures" keeps its artifacts in the temporary folder."""
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return MlflowClient(store)


@with_mlflow
def test_a_run_in_mlflow(run: Run, store: str, client: Any, tmp_path: Path) -> None:
    import mlflow

    active, uri = mlflow.active_run(), mlflow.get_tracking_uri()
    logger = MLflowLogger(store, experiment="cures", run_name="first")
    assert logger.run_id is None
    result = run(logger, seed=7)
    found = client.get_run(logger.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "first")
    assert client.get_experiment(found.info.experiment_id).name == "cures"
    assert found.data.params == {name: str(value) for name, value in result.report["config"].items()}
    for name in ("loss", "holdout_accuracy"):
        points = client.get_metric_history(logger.run_id, name)
        assert {p.step: p.value for p in points} == pytest.approx(curve(result, name))
    assert found.data.metrics["accepted"] == float(result.accepted)
    after = result.report["holdout"]["after"]["clean_accuracy"]["value"]
    assert found.data.metrics["after/clean_accuracy"] == pytest.approx(after)
    tags = {name: found.data.tags[f"seamfast.{name}"] for name in ("outcome", "method", "seed")}
    assert tags == {"outcome": result.outcome, "method": "seam", "seed": "7"}
    client.download_artifacts(logger.run_id, "report.json", str(tmp_path))
    assert Report.load(tmp_path / "report.json") == result.report
    first = logger.run_id
    run(logger)  # a run of its own
    assert logger.run_id != first
    assert client.get_run(first).info.experiment_id == client.get_run(logger.run_id).info.experiment_id
    assert (mlflow.active_run(), mlflow.get_tracking_uri()) == (active, uri)


@with_mlflow
def test_a_run_that_is_interrupted_and_one_that_guesses_in_mlflow(
    run: Run, store: str, client: Any, tiny_data: CleanSet, tmp_path: Path
) -> None:
    logger = MLflowLogger(store)
    with pytest.raises(SanitizeInterrupted) as interrupted:
        run(logger, Interrupts())
    assert client.get_run(logger.run_id).info.status == "KILLED"
    client.download_artifacts(logger.run_id, "report.json", str(tmp_path))
    assert Report.load(tmp_path / "report.json") == interrupted.value.report
    guesses = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    seamfast.sanitize(guesses, tiny_data, config=SHORT, callbacks=[logger])
    found = client.get_run(logger.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["accepted"] == 0.0


@with_mlflow
def test_names_of_triggers_that_mlflow_does_not_take(run: Run, store: str, client: Any) -> None:
    trigger = seamfast.triggers.Patch.square(2, target=0, name="a (white) patch!")
    logger = MLflowLogger(store)
    run(logger, triggers=[trigger])
    assert "attack_success_rate/a _white_ patch_" in client.get_run(logger.run_id).data.metrics


@with_mlflow
def test_a_server_that_fails_costs_nothing(run: Run, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise mlflow.MlflowException("no answer")

    logger = MLflowLogger(store)
    monkeypatch.setattr(mlflow.MlflowClient, "create_run", fail)
    with pytest.warns(
        RuntimeWarning, match="^the callback MLflowLogger failed in on_train_begin: MlflowException: no a"
    ):
        result = run(logger)
    assert result.report["run"]["stopped"] is None


@pytest.mark.parametrize("uri", [None, ""])
def test_a_tracking_uri_is_needed(uri: Any) -> None:
    with pytest.raises(InputError, match=r"^tracking_uri is (None|''); expected the URI of a tracking server or st"):
        MLflowLogger(uri)


TELEMETRY = """
import os, socket, sys, warnings
warnings.simplefilter("ignore")
for name in [n for n in os.environ if n.startswith("MLFLOW") or n in ("CI", "DO_NOT_TRACK", "PYTEST_CURRENT_TEST")]:
    del os.environ[name]
called = []
sys.addaudithook(lambda event, args: called.append(args) if event in ("socket.connect", "socket.getaddrinfo") else None)
from seamfast.integrations import MLflowLogger
MLflowLogger("sqlite:///runs.db")
from mlflow.telemetry import get_telemetry_client
print(get_telemetry_client(), "MLFLOW_DISABLE_TELEMETRY" in os.environ, called)
"""


@pytest.mark.slow
def test_mlflow_sends_no_telemetry(store: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", TELEMETRY], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "None False []\n"), done.stderr


# Without the packages.


@pytest.mark.parametrize(
    ("make", "packages", "message"),
    [
        (
            lambda: TensorBoardLogger("logs"),
            ["torch.utils.tensorboard", "tensorboardX"],
            'TensorBoardLogger needs TensorBoard: pip install "seamfast[tensorboard]"',
        ),
        (lambda: MLflowLogger("uri"), ["mlflow"], 'MLflowLogger needs MLflow: pip install "seamfast[mlflow]"'),
        (
            lambda: seamfast.integrations.LightningSanitizer([]),
            ["seamfast.integrations.lightning"],
            'LightningSanitizer needs Lightning: pip install "seamfast[lightning]"',
        ),
        (
            lambda: seamfast.integrations.trainer_sanitizer([]),
            ["transformers"],
            'trainer_sanitizer needs transformers: pip install "seamfast[hf]"',
        ),
    ],
    ids=["tensorboard", "mlflow", "lightning", "transformers"],
)
def test_a_missing_package_is_named_with_its_extra(
    make: Callable[[], Any], packages: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    with pytest.raises(InputError) as refused:
        make()
    assert str(refused.value) == message


def test_integrations_load_no_optional_package() -> None:
    script = "import sys; import seamfast.integrations; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    optional = {"lightning", "pytorch_lightning", "mlflow", "tensorboard", "tensorboardX", "transformers"}
    assert optional & set(done.stdout.split()) == set()
