"""Weaknesses of one model that a cure may change: calibration, accuracy by class, accuracy under small changes.

Each result holds what it needs to be compared with that of another model on the same samples: ``changes_of`` gives the
differences, sample by sample, with their bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.audits.bootstrap import percentile_bounds
from seamfast.checks import as_count, as_level, as_seed, number_or_none
from seamfast.data import CleanSet
from seamfast.engine.events import progress_bar
from seamfast.engine.model import evaluating
from seamfast.engine.subject import Subject, finite_answers, place
from seamfast.errors import InputError, ModelError
from seamfast.metrics import Bounded, Figure, Rate, paired_difference
from seamfast.modalities.base import OF_FEATURES, Adjustable

__all__ = [
    "AdversarialAccuracy",
    "AdversarialLevel",
    "Calibration",
    "CalibrationBin",
    "ClassAccuracy",
    "adversarial_accuracy",
    "calibration",
    "class_accuracy",
]

_N_BINS = 15
_EPS_OF_PIXELS = (2 / 255, 8 / 255)
_EPS_OF_FEATURES = (0.03, 0.125)
"""In standard deviations; 2/255 and 8/255 are as much of those of CIFAR-10, about 0.25."""
_STEP = 2.5
"""Of a step, times eps over the number of steps: it can reach any point of the range. Source: Madry et al."""
_RESAMPLED = 1 << 22
"""Numbers drawn at once."""


# ---- Calibration ----


@dataclass(frozen=True)
class CalibrationBin:
    """Samples of about one confidence: how many, the mean confidence, the share that is right."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far the confidence of a model can be relied on.

    Attributes:
        ece: expected calibration error, ``sum(n_bin / n * abs(confidence - accuracy))`` over bins of equal mass, in
            [0, 1]. It is too high on few samples, by about ``0.8 * sqrt(n_bins * p * (1 - p) / n)`` of a model that is
            calibrated and right at the rate ``p``. The lower bound takes off the errors of all bins that resampling
            makes, added up; the upper one is that of the percentile bootstrap, which the bias moves up.
        brier: ``((softmax - one_hot) ** 2).sum(1).mean()``, in [0, 2].
        nll: ``cross_entropy(logits, labels)`` in nats.
        confidence: mean of ``softmax.amax(1)``.
        accuracy: over all samples.
        bins: by rising confidence; those without samples are left out.
    """

    ece: Figure
    brier: Figure
    nll: Figure
    confidence: float
    accuracy: Rate
    bins: tuple[CalibrationBin, ...]
    _drawn: Tensor = field(repr=False)  # (n_boot, 3) float64: ece, brier and nll of each resample
    _level: float = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the resamples, as JSON values."""
        return {
            **{name: figure.to_dict() for name, figure in self.figures().items()},
            "confidence": self.confidence,
            "accuracy": Figure.of(self.accuracy).to_dict(),
            "bins": [{"n": one.n, "confidence": one.confidence, "accuracy": one.accuracy} for one in self.bins],
        }

    def figures(self) -> dict[str, Figure]:
        """The numbers to compare models by."""
        return {"ece": self.ece, "brier": self.brier, "nll": self.nll}

    def changes_to(self, after: Calibration) -> dict[str, Figure]:
        """``after - self`` of each figure, on the same samples and resamples."""
        if self.ece.n != after.ece.n or self._drawn.shape != after._drawn.shape:
            raise _of_other_samples(self.ece.n, after.ece.n)
        differences = (after._drawn - self._drawn).T
        found = {}
        for (name, before), drawn in zip(self.figures().items(), differences, strict=True):
            now = after.figures()[name].value
            assert before.value is not None
            assert now is not None
            value = now - before.value
            low, high = percentile_bounds(drawn, self._level)
            found[name] = Figure(value, min(low, value), max(high, value), before.n)
        return found


def calibration(
    model: nn.Module,
    data: CleanSet,
    *,
    n_bins: int = _N_BINS,
    n_boot: int = 1000,
    level: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Calibration:
    """Expected calibration error, Brier score and negative log-likelihood of ``softmax(model(inputs))``.

    Args:
        model: returns logits ``(B, C)``; it is used in eval mode and left as it was.
        data: samples that the model was not trained on, or the errors are too small.
        n_bins: bins of equal mass, at least 1; samples of equal confidence share one.
        n_boot: resamples of the samples for the bounds, at least 1.
        level: of the bounds, in (0, 1).
        batch_size: samples a forward pass, at least 1.
        seed: of the resamples, in ``[0, 2**63)``: same seed and samples, same resamples, so that two models compare.
        device: ``"auto"`` is the model's own; for another one, a copy of the model is used.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        Calibration.

    Raises:
        InputError: e.g. ``n_bins is 0; expected an integer of at least 1``.
        ModelError: e.g. ``the model returned NaN or Inf on 3 of 100 samples; expected finite logits``.

    Source: M. P. Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015; bins of
        equal mass: K. Nguyen and B. O'Connor, Posterior calibration and exploratory analysis for natural language
        processing models, EMNLP 2015; G. W. Brier, Verification of forecasts expressed in terms of probability, 1950.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.weight.data.zero_(), model.bias.data.zero_()
        >>> data = CleanSet(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))
        >>> found = calibration(model, data)
        >>> found.ece.value, found.brier.value, round(found.nll.value, 4)
        (0.0, 0.5, 0.6931)
    """
    n_bins, n_boot = as_count("n_bins", n_bins), as_count("n_boot", n_boot)
    level, batch_size, seed = as_level(level), as_count("batch_size", batch_size), as_seed(seed)
    subject = place(model, data, device)
    log_probabilities = _logits(subject, batch_size, "calibration", progress).double().log_softmax(1)
    labels, probabilities = data.labels, log_probabilities.exp()
    n = len(labels)
    confidence, answers = probabilities.max(1)
    right = (answers == labels).double()
    rows = torch.arange(n)
    wanted = probabilities.clone()
    wanted[rows, labels] -= 1
    brier, nll = wanted.square().sum(1), -log_probabilities[rows, labels]
    # The bin of its first equal, so that the order of equal ones does not matter.
    ranks = torch.searchsorted(confidence.sort().values, confidence)
    of_bin = ranks * n_bins // n
    gap = confidence - right
    counts = of_bin.bincount(minlength=n_bins)
    sums = torch.stack([torch.zeros(n_bins).double().index_add(0, of_bin, value) for value in (confidence, right)])
    bins = tuple(
        CalibrationBin(count, total / count, hits / count)
        for count, total, hits in zip(counts.tolist(), *sums.tolist(), strict=True)
        if count
    )
    drawn, strayed = _resampled(gap, of_bin, brier, nll, n_bins, n_boot, seed)
    ece = float((sums[0] - sums[1]).abs().sum() / n)
    low, high = ece - percentile_bounds(strayed, level)[1], percentile_bounds(drawn[:, 0], level)[1]
    bounded = Figure(ece, max(low, 0.0), max(high, ece), n)
    return Calibration(
        bounded,
        _mean(brier, drawn[:, 1], level),
        _mean(nll, drawn[:, 2], level),
        float(confidence.mean()),
        Bounded.exact(int(right.sum()), n, level=level),
        bins,
        drawn,
        level,
    )


def _resampled(
    gap: Tensor, of_bin: Tensor, brier: Tensor, nll: Tensor, n_bins: int, n_boot: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Of samples drawn with replacement, where the bins stay: ``(n_boot, 3)`` ece, brier and nll, and ``(n_boot,)`` how
    far the gaps of all bins are off those of the samples; float64."""
    n, found, strayed = len(gap), list[Tensor](), list[Tensor]()
    given = torch.zeros(n_bins).double().index_add_(0, of_bin, gap)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, n_boot, most := max(_RESAMPLED // n, 1)):
        rows = torch.randint(n, (min(most, n_boot - first), n), generator=generator)
        gaps = torch.zeros(len(rows), n_bins).double().scatter_add_(1, of_bin[rows], gap[rows])
        found.append(torch.stack([gaps.abs().sum(1) / n, brier[rows].mean(1), nll[rows].mean(1)], 1))
        strayed.append((gaps - given).abs().sum(1) / n)
    return torch.cat(found), torch.cat(strayed)


def _mean(values: Tensor, drawn: Tensor, level: float) -> Figure:
    value = float(values.mean())
    low, high = percentile_bounds(drawn, level)
    return Figure(value, min(low, value), max(high, value), len(values))


# ---- Accuracy by class ----


@dataclass(frozen=True, eq=False)
class ClassAccuracy:
    """Accuracy, and that of each class.

    Attributes:
        accuracy: over all samples.
        classes: for each class, in order; one without samples has ``n_total`` 0. Their bounds hold for all at once.
    """

    accuracy: Rate
    classes: tuple[Rate, ...]
    _right: Tensor = field(repr=False)  # (N,) bool
    _labels: Tensor = field(repr=False)
    _level: float = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The rates as JSON values."""
        return {
            "accuracy": Figure.of(self.accuracy).to_dict(),
            "classes": [Figure.of(rate).to_dict() for rate in self.classes],
        }

    def figures(self) -> dict[str, Figure]:
        """The numbers to compare models by: accuracy, and the lowest of a class with the bounds of the lowest."""
        known = [Figure.of(rate) for rate in self.classes if rate.n_total]
        worst = min(known, key=lambda figure: (figure.value, figure.low))
        lows, highs = ([getattr(figure, end) for figure in known] for end in ("low", "high"))
        lowest = Figure(worst.value, min(lows), min(highs), worst.n)
        return {"accuracy": Figure.of(self.accuracy), "lowest_class_accuracy": lowest}

    def changes_to(self, after: ClassAccuracy) -> dict[str, Figure]:
        """``after - self`` of each figure; of the lowest of a class, without bounds, as it may be of another class.

        ``largest_class_drop`` is the largest of ``class_drops``, with the bounds of the largest.
        """
        lost = _paired(self._right, after._right, self._level)
        figures = self.figures(), after.figures()
        first, second = (figure["lowest_class_accuracy"].value or 0.0 for figure in figures)
        assert lost.value is not None
        assert lost.low is not None
        assert lost.high is not None
        known = [drop for drop in self.class_drops(after) if drop.value is not None]
        worst = max(known, key=lambda drop: (drop.value, drop.high))
        lows, highs = ([getattr(drop, end) for drop in known] for end in ("low", "high"))
        return {
            "accuracy": Figure(-lost.value, -lost.high, -lost.low, lost.n),
            "lowest_class_accuracy": Figure(second - first, None, None, figures[1]["lowest_class_accuracy"].n),
            "largest_class_drop": Figure(worst.value, max(lows), max(highs), worst.n),
        }

    def class_drops(self, after: ClassAccuracy) -> tuple[Figure, ...]:
        """Accuracy lost of each class, sample by sample; the bounds hold for all classes at once."""
        if len(self._right) != len(after._right):
            raise _of_other_samples(len(self._right), len(after._right))
        n_looks = max(sum(rate.n_total > 0 for rate in self.classes), 1)
        rows = [self._labels == label for label in range(len(self.classes))]
        return tuple(_paired(self._right[row], after._right[row], self._level, n_looks) for row in rows)


def class_accuracy(
    model: nn.Module,
    data: CleanSet,
    *,
    level: float = 0.95,
    batch_size: int = 512,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> ClassAccuracy:
    """``(model(inputs).argmax(1) == labels)[labels == c].mean()`` for each class ``c``.

    A row of logits with NaN or Inf is wrong.

    Args:
        model: returns logits ``(B, C)``; it is used in eval mode and left as it was.
        data: labeled samples.
        level: of the bounds, in (0, 1), for all classes at once.
        batch_size: samples a forward pass, at least 1.
        device: ``"auto"`` is the model's own; for another one, a copy of the model is used.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        ClassAccuracy.

    Raises:
        InputError: e.g. ``labels hold 10; expected integers in [0, 10) for the model's 10 logits``.

    Example:
        >>> model = torch.nn.Linear(1, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[-1.0], [1.0]])), model.bias.data.zero_()
        >>> found = class_accuracy(model, CleanSet(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 1, 0])))
        >>> [rate.value for rate in found.classes]
        [0.0, 1.0]
    """
    level, batch_size = as_level(level), as_count("batch_size", batch_size)
    subject = place(model, data, device)
    right = finite_answers(_logits(subject, batch_size, "classes", progress, finite=False)) == data.labels
    totals = data.labels.bincount(minlength=subject.num_classes).tolist()
    hits = data.labels[right].bincount(minlength=subject.num_classes).tolist()
    n_looks = sum(total > 0 for total in totals)
    rates = [Bounded.exact(k, n, level=level, n_looks=n_looks) for k, n in zip(hits, totals, strict=True)]
    accuracy = Bounded.exact(int(right.sum()), len(right), level=level)
    return ClassAccuracy(accuracy, tuple(rates), right, data.labels, level)


# ---- Accuracy under small changes ----


@dataclass(frozen=True)
class AdversarialLevel:
    """Accuracy under changes of one size.

    Attributes:
        eps: largest change of a number, in units of ``AdversarialAccuracy.unit``.
        rate: of all samples that were tried: right as they are and at each step of the search.
    """

    eps: float
    rate: Bounded


@dataclass(frozen=True, eq=False)
class AdversarialAccuracy:
    """Accuracy under changes that were searched for to make the model wrong.

    It is an upper bound of the true one: a stronger search may find more.

    Attributes:
        levels: one for each ``eps``, in the order given; their bounds hold for all at once.
        clean: of the same samples, as they are.
        unit: of ``eps``: ``"pixel"``, in [0, 1], or ``"standard deviation of the feature"``.
        n_steps: of the search.
    """

    levels: tuple[AdversarialLevel, ...]
    clean: Rate
    unit: str
    n_steps: int
    _right: Tensor = field(repr=False)  # (E, N) bool
    _level: float = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The rates as JSON values."""
        return {
            "unit": self.unit,
            "n_steps": self.n_steps,
            "clean": Figure.of(self.clean).to_dict(),
            "levels": [{"eps": one.eps, "rate": Figure.of(one.rate).to_dict()} for one in self.levels],
        }

    def figures(self) -> dict[str, Figure]:
        """The numbers to compare models by: the accuracy at each eps."""
        return {f"accuracy_at_{self._name(one.eps)}": Figure.of(one.rate) for one in self.levels}

    def changes_to(self, after: AdversarialAccuracy) -> dict[str, Figure]:
        """``after - self`` of each figure, sample by sample; the bounds hold for all at once."""
        if self._right.shape != after._right.shape:
            raise _of_other_samples(self._right.shape[1], after._right.shape[1])
        found = {}
        for name, first, second in zip(self.figures(), self._right, after._right, strict=True):
            gained = _paired(second, first, self._level, len(self.levels))
            found[name] = gained
        return found

    def _name(self, eps: float) -> str:
        return f"{eps * 255:.3g}/255" if self.unit == "pixel" else f"{eps:.3g}_std"


def adversarial_accuracy(
    model: nn.Module,
    data: CleanSet,
    *,
    eps: Sequence[float] | None = None,
    n_steps: int = 10,
    n_samples: int | None = 500,
    level: float = 0.95,
    batch_size: int = 128,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> AdversarialAccuracy:
    """Accuracy under projected gradient descent within ``eps`` of each number (PGD, L-infinity).

    From a random start, ``x = clip(x + 2.5 * eps / n_steps * sign(grad(cross_entropy)), x0 - eps, x0 + eps)``, within
    the range of the samples. A sample counts if it is right as it is, at the start and after each step; with NaN or
    Inf, it is not right. Images change in pixel space, [0, 1], before normalization; tables, plain floats and images
    without a known normalization change in units of each feature's standard deviation in ``data``, within its range
    there, and categories stay. Texts have no floats.

    Args:
        model: returns logits ``(B, C)`` that can be differentiated by its inputs; it is used in eval mode and left as
            it was.
        data: labeled samples.
        eps: one or more numbers above 0; ``None``: 2/255 and 8/255 of pixels, else 0.03 and 0.125.
        n_steps: of each search, at least 1.
        n_samples: draw as many of the samples by ``seed``; ``None``: all.
        level: of the bounds, in (0, 1), for all ``eps`` at once.
        batch_size: samples a forward pass, at least 1.
        seed: of the random starts, in ``[0, 2**63)``: the same for each model.
        device: ``"auto"`` is the model's own; for another one, a copy of the model is used.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        AdversarialAccuracy.

    Raises:
        InputError: e.g. ``samples of kind 'text' hold no floats; expected images or floats, which can change a
            little``.
        ModelError: ``the model's logits have no gradient; expected a model that can be differentiated``.

    Source: A. Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> data = CleanSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> found = adversarial_accuracy(model, data)
        >>> [one.eps for one in found.levels] == [2 / 255, 8 / 255], found.clean.n_total
        (True, 3)
    """
    sizes = None if eps is None else _as_eps(eps)
    n_steps, level = as_count("n_steps", n_steps), as_level(level)
    most = None if n_samples is None else as_count("n_samples", n_samples)
    batch_size, seed = as_count("batch_size", batch_size), as_seed(seed)
    subject = place(model, data, device)
    check_adjustable(subject.samples)
    unit = _adjustable(subject, torch.arange(1)).unit
    if sizes is None:
        sizes = _EPS_OF_FEATURES if unit == OF_FEATURES else _EPS_OF_PIXELS
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)[:most].sort().values
    rows: list[list[Tensor]] = []
    n_passes = (n_steps + 1) * len(sizes) * len(order)
    with progress_bar("adversarial", "pass", n_passes, progress) as bar, evaluating(subject.model):
        for part in torch.split(order, batch_size):
            samples = _adjustable(subject, part)
            labels = subject.data.labels[part.to(subject.device)]
            right = finite_answers(subject.logits(samples.as_inputs(samples.values)))
            found = [right == labels]
            for size in sizes:
                held = _held(subject, samples, labels, found[0].clone(), size, n_steps, generator, bar.update)
                found.append(held)
            rows.append([row.cpu() for row in found])
    clean, *held_at = (torch.cat(parts) for parts in zip(*rows, strict=True))
    stacked, n = torch.stack(held_at), len(order)
    rates = [Bounded.exact(k, n, level=level, n_looks=len(sizes)) for k in stacked.sum(1).tolist()]
    return AdversarialAccuracy(
        tuple(AdversarialLevel(size, rate) for size, rate in zip(sizes, rates, strict=True)),
        Bounded.exact(int(clean.sum()), n, level=level),
        unit,
        n_steps,
        stacked,
        level,
    )


def check_adjustable(data: CleanSet) -> None:
    """Raise unless the samples hold floats that can change."""
    if data.modality.adjustable(data.inputs, torch.arange(1), torch.float32, torch.device("cpu")) is None:
        kind = f"samples of kind {data.modality.name!r} hold no floats"
        raise InputError(f"{kind}; expected images or floats, which can change a little")


def _adjustable(subject: Subject, indices: Tensor) -> Adjustable:
    samples, data = subject.samples, subject.data
    found = samples.modality.adjustable(samples.inputs, indices, data.dtype, data.device)
    assert found is not None
    return found


def _held(
    subject: Subject,
    samples: Adjustable,
    labels: Tensor,
    right: Tensor,
    eps: float,
    n_steps: int,
    generator: torch.Generator,
    on_pass: Callable[[int], Any],
) -> Tensor:
    """Which of ``right`` stay right, ``(B,)`` bool: at a random start within ``eps``, and after each step from it."""
    given = samples.values
    reach = {name: eps * samples.scale[name] for name in given}
    low = {name: torch.maximum(value - reach[name], samples.lowest[name]) for name, value in given.items()}
    high = {name: torch.minimum(value + reach[name], samples.highest[name]) for name, value in given.items()}

    def within(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.clamp(low[name], high[name]) for name, value in values.items()}

    starts = {}
    for name, value in given.items():
        # On the CPU, and for all samples, right or wrong: each model gets the same.
        drawn = torch.rand(value.shape, generator=generator).to(value.device)
        starts[name] = value + reach[name] * (2 * drawn - 1)
    values = within(starts)
    for step in range(n_steps + 1):
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            logits = subject.logits(samples.as_inputs(leaves)).float()
            if not logits.requires_grad:
                raise ModelError("the model's logits have no gradient; expected a model that can be differentiated")
            right &= finite_answers(logits) == labels
            on_pass(len(labels))
            if step == n_steps:
                break
            loss = F.cross_entropy(logits, labels, reduction="sum")
            # Of these alone: the model's own gradients stay as they are.
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        moved = {
            name: value if gradient is None else value + _STEP * reach[name] / n_steps * gradient.nan_to_num().sign()
            for (name, value), gradient in zip(values.items(), gradients, strict=True)
        }
        values = within(moved)
    return right


def _as_eps(eps: Any) -> tuple[float, ...]:
    if isinstance(eps, (str, bytes)) or not isinstance(eps, Sequence) or not eps:
        raise InputError(f"eps is {eps!r}; expected one or more numbers above 0")
    numbers = [number_or_none(one) for one in eps]
    if any(number is None or number <= 0 for number in numbers):
        raise InputError(f"eps is {eps!r}; expected one or more numbers above 0")
    return tuple(number for number in numbers if number is not None)


# ---- What they share ----


def _logits(subject: Subject, batch_size: int, name: str, progress: bool | None, *, finite: bool = True) -> Tensor:
    """``(N, C)`` of all samples, on the CPU; raises where one is not finite, if ``finite``."""
    n, found = len(subject.data), []
    parts = torch.split(torch.arange(n), batch_size)
    with (
        progress_bar(name, "sample", n, progress) as bar,
        evaluating(subject.model),
        closing(subject.data.batches((part, 0) for part in parts)) as batches,
    ):
        for part, inputs in batches:
            found.append(subject.logits(inputs).cpu())
            bar.update(len(part))
    logits = torch.cat(found)
    n_lost = int((~logits.isfinite().all(1)).sum())
    if finite and n_lost:
        raise ModelError(f"the model returned NaN or Inf on {n_lost} of {n} samples; expected finite logits")
    return logits


def _paired(before: Tensor, after: Tensor, level: float, n_looks: int = 1) -> Figure:
    """The share of ``before`` that is lost in ``after``, both ``(N,)`` bool."""
    if len(before) != len(after):
        raise _of_other_samples(len(before), len(after))
    n_lost, n_gained = int((before & ~after).sum()), int((~before & after).sum())
    return paired_difference(n_lost, n_gained, len(before), level=level, n_looks=n_looks)


def _of_other_samples(n_before: int, n_after: int) -> InputError:
    return InputError(f"the results are of {n_before} and {n_after} samples; expected the same samples")
