"""Pictures of a run: samples with the model's answers before and after, and the curve over the steps."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seamfast.checks import as_count
from seamfast.data import CleanSet
from seamfast.engine.events import HistoryPoint
from seamfast.engine.model import evaluating
from seamfast.engine.subject import Subject, place
from seamfast.errors import InputError
from seamfast.report import write_atomically
from seamfast.triggers import Trigger

# Okabe and Ito's colors, which differ for color-blind eyes, in print and on screens.
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#808080"
_LINES = (_VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_ANSWERS = {"right": _BLUE, "what the attacker wants": _VERMILION, "wrong otherwise": _GREY}


def save_picture(
    path: str | os.PathLike[str],
    before: nn.Module,
    after: nn.Module,
    data: CleanSet,
    trigger: Trigger,
    history: Sequence[HistoryPoint],
    *,
    n_samples: int = 6,
    seed: int = 0,
) -> None:
    """A PNG: clean and triggered samples with both models' answers, above held-out accuracy and ASR over the steps.

    Args:
        path: where to write.
        before, after: the model as received and as sanitized.
        data: uint8 images, or floats whose pixels can be recovered; the first eligible samples are shown.
        trigger: stamped on the samples of the second row.
        history: ``SanitizeResult.history``.
        n_samples: columns, at least 1.
        seed: for a trigger at random positions.

    Raises:
        InputError: ``the picture needs matplotlib: pip install "seamfast[plot]"``, ``n_samples is 0; expected an
            integer of at least 1``, ``data holds no sample that the trigger 'patch' is meant to move; expected
            one``.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('the picture needs matplotlib: pip install "seamfast[plot]"') from error
    as_count("n_samples", n_samples)
    num_classes = data.num_classes or int(data.labels.max()) + 1
    chosen = trigger.target.eligible(data.labels, num_classes).nonzero().flatten()[:n_samples]
    if not len(chosen):
        raise InputError(f"data holds no sample that the trigger {trigger.name!r} is meant to move; expected one")

    # Names are names, not formulas: a "$" in one is a "$".
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=(max(1.6 * len(chosen), 8), 8.5), layout="constrained")
        FigureCanvasAgg(figure)
        top, bottom = np.ravel(figure.subfigures(2, 1, squeeze=False, height_ratios=[1.5, 1]))
        _draw_samples(top, before, after, data, trigger, chosen, num_classes, seed)
        _draw_curve(bottom.subplots(), history)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
    write_atomically(Path(path), buffer.getvalue())


def _draw_samples(
    figure: Any,
    before: nn.Module,
    after: nn.Module,
    data: CleanSet,
    trigger: Trigger,
    chosen: torch.Tensor,
    num_classes: int,
    seed: int,
) -> None:
    from matplotlib.patches import Patch as Swatch

    clean = data.stampable(chosen)
    subjects = [place(model, data, "auto") for model in (before, after)]
    stamped = trigger.stamp(clean, sample_ids=chosen, seed=seed)
    labels, wanted = (
        v.tolist() for v in (data.labels[chosen], trigger.target.targets(data.labels[chosen], num_classes))
    )
    axes = figure.subplots(2, len(chosen), squeeze=False)
    for row, images in enumerate((clean, stamped)):
        received, sanitized = (_answers(subject, images) for subject in subjects)
        pictures = data.modality.preview(images)
        for column, axis in enumerate(axes[row]):
            picture = pictures[column]
            axis.imshow(np.squeeze(picture, 2) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            answer = sanitized[column]
            kind = "right" if answer == labels[column] else "what the attacker wants"
            if answer not in (labels[column], wanted[column]):
                kind = "wrong otherwise"
            for side in axis.spines.values():
                side.set(color=_ANSWERS[kind], linewidth=2.5)
            names = _name(data, received[column]), _name(data, answer)
            space = "\n" if sum(map(len, names)) > 16 else " "
            axis.set_xlabel(f"{names[0]}{space}→ {names[1]}", fontsize=9, color=_ANSWERS[kind])
            if row == 0:
                axis.set_title(_name(data, labels[column]), fontsize=9)
        axes[row, 0].set_ylabel("clean" if row == 0 else f"trigger: {_short(trigger.name, 20)}", fontsize=9)
    figure.suptitle("above: the true class; below: the answer as received → sanitized", fontsize=10)
    figure.legend(
        handles=[Swatch(color=color, label=kind) for kind, color in _ANSWERS.items()],
        title="the sanitized model's answer is",
        loc="outside lower center",
        ncols=len(_ANSWERS),
        fontsize=8,
        title_fontsize=8,
        frameon=False,
    )


def _draw_curve(axis: Any, history: Sequence[HistoryPoint]) -> None:
    start = 0
    for attempt, points in _attempts(history):
        forgotten = max((p.step for p in points if p.phase == "forget"), default=start)
        if forgotten > start:
            axis.axvspan(start, forgotten, color="0.88", lw=0, label=None if attempt else "forget step")
        if attempt:
            axis.axvline(start, color="0.3", lw=0.8, ls=":")
            axis.text(start, 1.01, f" try {attempt + 1}", fontsize=8, color="0.3", va="bottom")
        start = points[-1].step
    _draw_line(axis, history, None, "clean accuracy", "o-", _BLUE)
    for i, name in enumerate(sorted({name for point in history for name in point.attack_success_rate})):
        style = ("s--", "^-.", "D:")[i // len(_LINES) % 3]
        _draw_line(axis, history, name, f"ASR, {_short(name, 24)}", style, _LINES[i % len(_LINES)])
    axis.set(ylim=(-0.03, 1.1), xlabel="training steps", ylabel="share of held-out data")
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.grid(axis="y", color="0.9", lw=0.6)
    axis.set_axisbelow(True)
    if not history:
        axis.text(0.5, 0.5, "no step was evaluated", transform=axis.transAxes, ha="center", color="0.3")
        return
    # Above the axes, where it hides no line.
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=5, fontsize=8, frameon=False, borderpad=0)


def _draw_line(
    axis: Any, history: Sequence[HistoryPoint], trigger: str | None, label: str, style: str, color: str
) -> None:
    """One line an attempt: each begins at the weights as received, not where the last one ended."""
    for attempt, points in _attempts(history):
        known = [p for p in points if trigger is None or trigger in p.attack_success_rate]
        values = [p.holdout_accuracy if trigger is None else p.attack_success_rate[trigger] for p in known]
        shown = None if attempt != history[0].attempt else label
        axis.plot([p.step for p in known], values, style, ms=3.5, lw=1.5, color=color, label=shown)


def _attempts(history: Sequence[HistoryPoint]) -> Iterator[tuple[int, list[HistoryPoint]]]:
    return ((attempt, list(points)) for attempt, points in groupby(history, key=lambda point: point.attempt))


def _answers(subject: Subject, samples: Any) -> list[int]:
    with evaluating(subject.model):
        answers: list[int] = subject.answers(subject.inputs(samples.to(subject.device))).tolist()
    return answers


def _name(data: CleanSet, label: int) -> str:
    return _short(data.class_names[label], 16) if data.class_names and label < len(data.class_names) else str(label)


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
