"""Lightning: its loggers as callbacks, ``LightningSanitizer``, and a ``LightningDataModule`` as clean data."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import seamfast
from seamfast import CleanSet
from seamfast.engine.model import digest
from seamfast.errors import InputError, SanitizeInterrupted
from tests.integrations.conftest import SHORT, Run, curve, scalars

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    lightning = pytest.importorskip("lightning.pytorch", reason="needs Lightning: the extra lightning")

# Of Lightning: few workers, deprecations in what it imports.
pytestmark = pytest.mark.filterwarnings("ignore")


class Interrupts(seamfast.Callback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


# Loggers.


def test_csv_logger(run: Run, tmp_path: Path) -> None:
    logger = lightning.loggers.CSVLogger(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = run(logger)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    assert {int(r["step"]): float(r["loss"]) for r in rows if r["loss"]} == pytest.approx(curve(result, "loss"))
    (last,) = [row for row in rows if row["accepted"]]
    after = result.report["holdout"]["after"]["clean_accuracy"]["value"]
    assert float(last["accepted"]) == float(result.accepted)
    assert float(last["after/clean_accuracy"]) == pytest.approx(after)
    assert "batch_size: 128" in (Path(logger.log_dir) / "hparams.yaml").read_text()


def test_tensorboard_logger(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: the extra tensorboard")
    logger = lightning.loggers.TensorBoardLogger(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = run(logger)
    found = scalars(Path(logger.log_dir))
    assert found["holdout_accuracy"] == pytest.approx(curve(result, "holdout_accuracy"), rel=1e-6)
    assert found["accepted"] == {10: float(result.accepted)}


class Noted(lightning.loggers.logger.Logger):
    """Notes its calls, and fails in those of the name ``fails_in``."""

    name, version = "noted", 0

    def __init__(self, fails_in: str = "") -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []
        self._fails_in = fails_in

    def _note(self, method: str, what: Any) -> None:
        self.calls.append((method, what))
        if method == self._fails_in:
            raise OSError("no space")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._note("log_hyperparams", params)

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self._note("log_metrics", step)

    def save(self) -> None:
        self._note("save", None)

    def finalize(self, status: str) -> None:
        self._note("finalize", status)


def test_a_logger_is_called_as_by_a_trainer(run: Run) -> None:
    logger = Noted()
    result = run(logger)
    steps = [("log_metrics", step) for step in [*curve(result, "loss"), 10]]
    begin, end = ("log_hyperparams", result.report["config"]), [("save", None), ("finalize", "success")]
    assert logger.calls == [begin, *steps, *end]


def test_a_logger_hears_of_a_run_that_is_interrupted(run: Run) -> None:
    logger = Noted()
    with pytest.raises(SanitizeInterrupted):
        run(logger, Interrupts())
    assert logger.calls[-1] == ("finalize", "failed")


@pytest.mark.parametrize("method", ["log_hyperparams", "log_metrics", "save", "finalize"])
def test_a_logger_that_fails_costs_nothing(method: str, run: Run) -> None:
    with pytest.warns(RuntimeWarning, match=f"^the callback Noted failed in {method}: OSError: no space; the run goes"):
        result = run(Noted(method))
    assert result.report["run"]["stopped"] is None


def test_a_callback_of_lightnings_trainer_is_refused(run: Run) -> None:
    message = r"^callbacks\[0\] is Timer, a callback of Lightning's Trainer; expected a seamfast\.Callback, a transf"
    with pytest.raises(InputError, match=message):
        run(lightning.callbacks.Timer())


# The end of a fit.


class Module(lightning.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Any:
        return self.net(images)

    def training_step(self, batch: Any, index: int) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


def trainer(*callbacks: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(max_steps=2, accelerator="cpu", callbacks=list(callbacks), **quiet)


@pytest.fixture
def floats(tiny_data: CleanSet) -> TensorDataset:
    """The tiny set, as the tiny model takes it."""
    return TensorDataset(tiny_data.normalize(tiny_data.inputs), tiny_data.labels)


def test_the_end_of_a_fit(tiny_model: Callable[[], nn.Module], floats: TensorDataset) -> None:
    callback = seamfast.integrations.LightningSanitizer(floats, config=SHORT, seed=5)
    assert callback.result is None
    module = Module(tiny_model())
    received = digest(module)
    fitted = trainer(callback)
    fitted.fit(module, DataLoader(floats, batch_size=32))
    result = callback.result
    assert result is not None
    assert received != result.report["model"]["digest_before"] == digest(module) != digest(result.model)
    assert result.report["seed"] == 5
    assert type(result.model) is Module
    assert module.trainer is fitted
    assert not result.model._trainer  # the copy does not keep the trainer and its data alive


def test_an_error_at_the_end_of_a_fit_is_no_silence(tiny_model: Callable[[], nn.Module], floats: TensorDataset) -> None:
    callback = seamfast.integrations.LightningSanitizer((torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(InputError, match="one class only"):
        trainer(callback).fit(Module(tiny_model()), DataLoader(floats, batch_size=32))
    assert callback.result is None


def test_options_are_checked_before_the_fit() -> None:
    with pytest.raises(InputError, match=r"^sanitize has no epochs; expected some of audits, augments, "):
        seamfast.integrations.LightningSanitizer([], epochs=3)


# Clean data.


class Images(lightning.LightningDataModule):
    """The samples at even places are for training, those at odd ones for validation; made by ``setup``."""

    def __init__(self, floats: TensorDataset, n_loaders: int = 0) -> None:
        super().__init__()
        self.floats, self.n_loaders, self.stages = floats, n_loaders, []

    def prepare_data(self) -> None:
        raise AssertionError("may download")

    def setup(self, stage: str) -> None:
        self.stages.append(stage)
        self.train, self.val = (torch.utils.data.Subset(self.floats, range(i, 160, 2)) for i in (0, 1))

    def train_dataloader(self) -> Any:
        raise AssertionError("may be poisoned")

    def val_dataloader(self) -> Any:
        loader = DataLoader(self.val, batch_size=32)
        return [loader] * self.n_loaders if self.n_loaders else loader


@pytest.mark.parametrize("n_loaders", [0, 1])
@pytest.mark.parametrize("is_set_up", [False, True])
def test_the_validation_data_of_a_data_module_are_the_clean_data(
    is_set_up: bool, n_loaders: int, tiny_model: Callable[[], nn.Module], floats: TensorDataset
) -> None:
    data = Images(floats, n_loaders)
    if is_set_up:
        data.setup("fit")
    options: dict[str, Any] = {"config": SHORT, "deterministic": True, "threads": 1}
    result = seamfast.sanitize(tiny_model(), data, **options)
    assert data.stages == ["fit"]  # once: another call may split anew
    images, labels = floats.tensors
    expected = seamfast.sanitize(tiny_model(), TensorDataset(images[1::2], labels[1::2]), **options)
    assert result.report["model"]["digest_after"] == expected.report["model"]["digest_after"]
    assert str(seamfast.evaluate(tiny_model(), data)) == str(
        seamfast.evaluate(tiny_model(), (images[1::2], labels[1::2]))
    )


def test_a_data_module_as_what_is_held_out(tiny_model: Callable[[], nn.Module], floats: TensorDataset) -> None:
    images, labels = floats.tensors
    result = seamfast.sanitize(tiny_model(), (images[::2], labels[::2]), holdout=Images(floats), config=SHORT)
    assert (result.report["data"]["holdout_source"], result.report["data"]["n_holdout"]) == ("given", 80)


def test_data_modules_that_are_refused(tiny_model: Callable[[], nn.Module], floats: TensorDataset) -> None:
    with pytest.raises(InputError, match=r"^clean_loader is a LightningDataModule with 2 validation loaders; expected"):
        seamfast.sanitize(tiny_model(), Images(floats, 2))
    message = r"^clean_loader is a LightningDataModule that gives no validation loader \(\w+: .*\); expected one, or"
    with pytest.raises(InputError, match=message):
        seamfast.sanitize(tiny_model(), lightning.LightningDataModule())
    with pytest.raises(InputError, match=message.replace("clean_loader", "holdout")):
        seamfast.sanitize(tiny_model(), floats, holdout=lightning.LightningDataModule())
