"""Pictures of a run: samples with the model's answers before and after, and the curve over the steps."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seamfast.data import CleanSet
from seamfast.engine.events import HistoryPoint
from seamfast.engine.model import evaluating, logits_of
from seamfast.errors import InputError
from seamfast.report import write_atomically
from seamfast.triggers import Trigger


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
        before, after: the model as received and as sanitised.
        data: uint8 images; the first eligible samples are shown.
        trigger: stamped on the samples of the second row.
        history: ``SanitizeResult.history``.
        n_samples: columns, at least 1.
        seed: for a trigger at random positions.

    Raises:
        InputError: ``the picture needs matplotlib: pip install "seamfast[plot]"``.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('the picture needs matplotlib: pip install "seamfast[plot]"') from error
    num_classes = data.num_classes or int(data.labels.max()) + 1
    chosen = trigger.target.eligible(data.labels, num_classes).nonzero().flatten()[:n_samples]
    clean = data.pixels(chosen)
    stamped = trigger.stamp(clean, sample_ids=chosen, seed=seed)
    labels, wanted = data.labels[chosen], trigger.target.targets(data.labels[chosen], num_classes)

    figure = Figure(figsize=(max(1.6 * len(chosen), 7), 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    rows, curve = parts
    axes = rows.subplots(2, len(chosen), squeeze=False)
    for row, (images, name) in enumerate(((clean, "clean"), (stamped, f"trigger: {trigger.name}"))):
        answers = [_predict(model, data, images) for model in (before, after)]
        for column in range(len(chosen)):
            axis = axes[row, column]
            picture = images[column].permute(1, 2, 0).numpy()
            axis.imshow(np.squeeze(picture), cmap="gray" if picture.shape[2] == 1 else None, vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            first, second = (_name(data, int(a[column])) for a in answers)
            right = [int(a[column]) == int(labels[column]) for a in answers]
            hit = int(answers[1][column]) == int(wanted[column])
            color = "tab:green" if right[1] else ("tab:red" if hit else "tab:orange")
            axis.set_title(f"{first} → {second}", fontsize=9, color=color)
            if row == 0:
                axis.set_xlabel(f"is {_name(data, int(labels[column]))}", fontsize=8)
        axes[row, 0].set_ylabel(name, fontsize=9)
    rows.suptitle("the model's answers, as received → sanitised", fontsize=10)
    _draw_curve(curve.subplots(), history)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_atomically(Path(path), buffer.getvalue())


def _draw_curve(axis: Any, history: Sequence[HistoryPoint]) -> None:
    steps = [point.step for point in history]
    axis.plot(
        steps, [point.holdout_accuracy for point in history], "o-", ms=3, color="tab:blue", label="clean accuracy"
    )
    names = sorted({name for point in history for name in point.attack_success_rate})
    for name, color in zip(names, ("tab:red", "tab:orange", "tab:purple", "tab:brown"), strict=False):
        known = [(p.step, p.attack_success_rate[name]) for p in history if name in p.attack_success_rate]
        axis.plot(*zip(*known, strict=True), "s--", ms=3, color=color, label=f"ASR, {name}")
    for first, second in pairwise(history):
        if second.attempt != first.attempt:
            axis.axvline((first.step + second.step) / 2, color="black", lw=0.8)
    forgotten = [point.step for point in history if point.phase == "forget"]
    if forgotten:
        axis.axvspan(0, max(p.step for p in history if p.phase == "forget" and p.attempt == 0), color="0.92", lw=0)
        axis.text(0, 1.02, "forget", fontsize=8, color="0.4")
    axis.set_ylim(-0.03, 1.08)
    axis.set_xlabel("training steps")
    axis.set_ylabel("on held-out data")
    axis.legend(loc="center right", fontsize=8)


def _predict(model: nn.Module, data: CleanSet, pixels: torch.Tensor) -> list[int]:
    parameter = next(model.parameters())
    with evaluating(model):
        logits = logits_of(model, data.normalize(pixels.to(parameter.device), parameter.dtype))
    classes: list[int] = logits.argmax(1).tolist()
    return classes


def _name(data: CleanSet, label: int) -> str:
    return data.class_names[label] if data.class_names and label < len(data.class_names) else str(label)
