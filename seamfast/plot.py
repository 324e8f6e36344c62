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
from seamfast.modalities import TextModality
from seamfast.modalities.batch import map_tensors
from seamfast.report import write_atomically
from seamfast.triggers import Trigger

# Okabe and Ito's colors, which differ for color-blind eyes, in print and on screens.
_BLUE, _VERMILION, _GREY, _INK = "#0072B2", "#D55E00", "#808080", "#333333"
_LINES = (_VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_ANSWERS = {"right": _BLUE, "what the attacker wants": _VERMILION, "wrong otherwise": _GREY}

_MOST_TEXTS = 7


def save_picture(
    path: str | os.PathLike[str],
    before: nn.Module,
    after: nn.Module,
    data: CleanSet,
    trigger: Trigger,
    history: Sequence[HistoryPoint],
    *,
    title: str | None = None,
    n_samples: int = 6,
    seed: int = 0,
) -> None:
    """A PNG: triggered samples with both models' answers, above held-out accuracy and ASR over the steps.

    Args:
        path: where to write.
        before, after: the model as received and as sanitized.
        data: uint8 images, floats whose pixels can be recovered, or texts; the first eligible samples of each class are
            shown, class by class in turn.
        trigger: stamped on the samples.
        history: ``SanitizeResult.history``; a point at step 0 shows the model as received.
        title: printed on top.
        n_samples: columns of images or rows of texts, at least 1; of texts, at most 7 are shown.
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
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise InputError('the picture needs matplotlib: pip install "seamfast[plot]"') from error
    as_count("n_samples", n_samples)
    num_classes = data.num_classes or int(data.labels.max()) + 1
    eligible = trigger.target.eligible(data.labels, num_classes).nonzero().flatten()
    if not len(eligible):
        raise InputError(f"data holds no sample that the trigger {trigger.name!r} is meant to move; expected one")
    chosen = eligible[_in_turn(data.labels[eligible])][:n_samples]

    # Names are names, not formulas: a "$" in one is a "$".
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        figure = Figure(
            figsize=(max(1.25 * len(chosen), 11), 7.2), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
        )
        FigureCanvasAgg(figure)
        top, bottom = np.ravel(figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.25]))
        draw = _draw_texts if isinstance(data.modality, TextModality) else _draw_samples
        draw(top, before, after, data, trigger, chosen, num_classes, seed)
        _draw_curve(bottom.subplots(), history)
        if title is not None:
            figure.suptitle(title, fontsize=17, fontweight="bold", color=_INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi="figure", format="png")
    write_atomically(Path(path), buffer.getvalue())


def _in_turn(labels: torch.Tensor) -> torch.Tensor:
    """An order of the samples: the first of each class, then the second of each, and so on."""
    rank = torch.zeros_like(labels)
    for label in torch.unique(labels).tolist():
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    by_class = labels.argsort(stable=True)
    return by_class[rank[by_class].argsort(stable=True)]


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
    stamped = trigger.stamp(data.stampable(chosen), sample_ids=chosen, seed=seed)
    received, sanitized = (_answers(place(model, data, "auto"), stamped) for model in (before, after))
    labels = data.labels[chosen]
    wanted = trigger.target.targets(labels, num_classes).tolist()
    rows = ("true class", labels.tolist()), ("as received", received), ("sanitized", sanitized)
    heights = (1, 14), (0, -16), (0, -40)  # a share of the picture's height, and points
    size = min(17, 150 / max(len(_name(data, label)) for _, answers in rows for label in answers))
    axes = figure.subplots(1, len(chosen), squeeze=False)[0]
    for column, (axis, picture) in enumerate(zip(axes, data.modality.preview(stamped), strict=True)):
        axis.imshow(np.squeeze(picture, 2) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        for side in axis.spines.values():
            side.set_visible(False)
        true = int(labels[column])
        for (heading, answers), (share, points) in zip(rows, heights, strict=True):
            answer, style = answers[column], {"color": _INK}
            if heading != "true class":
                style = _style(answer, true, wanted[column])
            place_at = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center"}
            axis.annotate(
                _name(data, answer), (0.5, share), (0, points), ha="center", fontsize=size, **style, **place_at
            )
            if column == 0:
                axis.annotate(heading, (0, share), (-12, points), ha="right", fontsize=12, color=_INK, **place_at)
    stamp = f"trigger:\n{_short(trigger.name, 14)}"
    axes[0].annotate(stamp, (0, 0.5), (-12, 0), ha="right", fontsize=12, color=_INK, **place_at)
    _explain_colors(figure)


def _draw_texts(
    figure: Any,
    before: nn.Module,
    after: nn.Module,
    data: CleanSet,
    trigger: Trigger,
    chosen: torch.Tensor,
    num_classes: int,
    seed: int,
) -> None:
    """One row a text: its begin, its class, both answers."""
    chosen = chosen[:_MOST_TEXTS]
    stamped = trigger.stamp(data.stampable(chosen), sample_ids=chosen, seed=seed)
    received, sanitized = (_answers(place(model, data, "auto"), stamped) for model in (before, after))
    labels = data.labels[chosen]
    wanted = trigger.target.targets(labels, num_classes).tolist()
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set(xlim=(0, 1), ylim=(len(chosen), -2))
    columns = (0, 0.7, 0.8, 0.9)
    headings = (f"trigger: {_short(trigger.name, 40)}", "true class", "as received", "sanitized")
    for left, heading in zip(columns, headings, strict=True):
        axis.text(left, -1.2, heading, fontsize=11, color=_INK)
    for row, text in enumerate(stamped):
        axis.text(0, row, _short(text, 88), fontsize=10, color=_INK)
        true = int(labels[row])
        for left, answer in zip(columns[1:], (true, received[row], sanitized[row]), strict=True):
            style = {"color": _INK} if left == columns[1] else _style(answer, true, wanted[row])
            axis.text(left, row, _name(data, answer), fontsize=10, **style)
    _explain_colors(figure)


def _style(answer: int, true: int, wanted: int) -> dict[str, str]:
    kind = "right" if answer == true else "what the attacker wants"
    if answer not in (true, wanted):
        kind = "wrong otherwise"
    return {"color": _ANSWERS[kind], "weight": "bold"}


def _explain_colors(figure: Any) -> None:
    from matplotlib.patches import Patch as Swatch

    figure.legend(
        handles=[Swatch(color=color, label=kind) for kind, color in _ANSWERS.items()],
        loc="outside lower center",
        ncols=len(_ANSWERS),
        fontsize=11,
        labelcolor=_INK,
        frameon=False,
    )


def _draw_curve(axis: Any, history: Sequence[HistoryPoint]) -> None:
    start = 0
    for attempt, points in _attempts(history):
        forgotten = max((p.step for p in points if p.phase == "forget"), default=start)
        if forgotten > start:
            axis.axvspan(start, forgotten, color="0.92", lw=0, label=None if attempt else "forgetting")
        if attempt:
            axis.axvline(start, color="0.3", lw=0.8, ls=":")
            axis.text(start, 1.01, f" try {attempt + 1}", fontsize=10, color=_INK, va="bottom")
        start = points[-1].step
    _draw_line(axis, history, None, "clean accuracy", "o-", _BLUE)
    names = sorted({name for point in history for name in point.attack_success_rate})
    for i, name in enumerate(names):
        style = ("s--", "^-.", "D:")[i // len(_LINES) % 3]
        _draw_line(axis, history, name, f"attack success, {_short(name, 24)}", style, _LINES[i % len(_LINES)])
    axis.set(ylim=(-0.03, 1.1), yticks=np.linspace(0, 1, 5))
    axis.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"])
    axis.set_xlabel("training steps", fontsize=12, color=_INK)
    axis.set_ylabel("of held-out data", fontsize=12, color=_INK)
    axis.tick_params(labelsize=12, labelcolor=_INK, length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.grid(axis="y", color="0.88", lw=0.8)
    axis.set_axisbelow(True)
    if not history:
        axis.text(0.5, 0.5, "no step was evaluated", transform=axis.transAxes, ha="center", fontsize=12, color=_INK)
        return
    # Above the axes, where it hides no line.
    few = len(names) <= 2 and max(map(len, names), default=0) <= 24
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.02),
        ncols=3 if few else 4,
        fontsize=12 if few else 8,
        labelcolor=_INK,
        frameon=False,
        borderpad=0,
    )


def _draw_line(
    axis: Any, history: Sequence[HistoryPoint], trigger: str | None, label: str, style: str, color: str
) -> None:
    """One line an attempt: each begins at the weights as received, not where the last one ended."""
    for attempt, points in _attempts(history):
        known = [p for p in points if trigger is None or trigger in p.attack_success_rate]
        values = [p.holdout_accuracy if trigger is None else p.attack_success_rate[trigger] for p in known]
        shown = None if attempt != history[0].attempt else label
        axis.plot([p.step for p in known], values, style, ms=4.5, lw=2.5, color=color, label=shown)


def _attempts(history: Sequence[HistoryPoint]) -> Iterator[tuple[int, list[HistoryPoint]]]:
    return ((attempt, list(points)) for attempt, points in groupby(history, key=lambda point: point.attempt))


def _answers(subject: Subject, samples: Any) -> list[int]:
    with evaluating(subject.model):
        there = samples.to(subject.device) if isinstance(samples, torch.Tensor) else samples
        inputs = map_tensors(lambda value: value.to(subject.device), subject.inputs(there))
        answers: list[int] = subject.answers(inputs).tolist()
    return answers


def _name(data: CleanSet, label: int) -> str:
    return _short(data.class_names[label], 16) if data.class_names and label < len(data.class_names) else str(label)


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
