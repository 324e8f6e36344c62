"""``TensorBoardLogger``: a run in TensorBoard. Needs tensorboard or tensorboardX."""

from __future__ import annotations

import os
from typing import Any

from seamfast.engine.callbacks import figures_of, metrics_of
from seamfast.engine.events import Callback, RunControl, RunState
from seamfast.errors import InputError


class TensorBoardLogger(Callback):
    """Writes held-out accuracy, loss and attack success rates by step, and the report, for TensorBoard.

    Args:
        writer: a folder for the logs, made if it is not there; or a ``SummaryWriter``, which stays open.

    Raises:
        InputError: ``writer is an int; expected a folder or a SummaryWriter``; ``TensorBoardLogger needs TensorBoard:
            pip install "seamfast[tensorboard]"``.
    """

    def __init__(self, writer: Any) -> None:
        self._log_dir: str | None = None
        self._writer: Any = None
        if isinstance(writer, (str, os.PathLike)):
            self._log_dir = os.fspath(writer)
            _summary_writer()
        elif hasattr(writer, "add_scalar") and hasattr(writer, "add_text"):
            self._writer = writer
        else:
            raise InputError(f"writer is a {type(writer).__name__}; expected a folder or a SummaryWriter")
        self._has_begun = False

    def on_train_begin(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None:
        self._begin(args)

    def on_evaluate(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None:
        point = state.log_history[-1]
        for name, value in metrics_of(point).items():
            self._writer.add_scalar(name, value, point.step)

    def on_run_end(self, args: Any, state: RunState, control: RunControl, **kwargs: Any) -> None:
        report = kwargs["report"]
        if report is not None:
            self._begin(args)
            for name, value in figures_of(report).items():
                self._writer.add_scalar(name, value, state.global_step)
            self._writer.add_text("verdict", f"{report['verdict']['outcome']}: {report['verdict']['reason']}")
            self._writer.add_text("report", _as_code(report.to_json()))
        if self._has_begun:
            self._writer.flush()
            if self._log_dir is not None:
                self._writer.close()
                self._writer = None
            self._has_begun = False

    def _begin(self, args: Any) -> None:
        if self._has_begun:
            return
        if self._log_dir is not None:
            self._writer = _summary_writer()(log_dir=self._log_dir)
        self._has_begun = True
        self._writer.add_text("config", _as_code(args.to_toml()))


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter as Writer
    except ImportError:  # it needs the package tensorboard
        try:
            from tensorboardX import SummaryWriter as Writer  # type: ignore[no-redef]
        except ImportError as error:
            raise InputError('TensorBoardLogger needs TensorBoard: pip install "seamfast[tensorboard]"') from error
    return Writer


def _as_code(text: str) -> str:
    """As a code block of Markdown, which TensorBoard renders."""
    return "".join(f"    {line}\n" for line in text.splitlines())
