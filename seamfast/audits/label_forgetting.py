"""How much of a model's logits a few steps on random labels move, as the Neural Tangent Kernel predicts it.

The everyday form of ``seamfast.audits.ntk.forgetting``: of one model, by clean samples alone, at a small cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.audits.bootstrap import percentile_bounds
from seamfast.audits.kernel_space import Descent, Drift, HeadSpace, NotFiniteError, krylov_space
from seamfast.audits.ntk import label_targets
from seamfast.audits.ntk_subject import Differentiated
from seamfast.checks import as_count, as_level, as_seed, check_in_range, check_time_budget
from seamfast.data import CleanSet
from seamfast.data.clean_set import check_clean_set
from seamfast.data.split import split_by_class
from seamfast.engine.events import progress_bar
from seamfast.engine.tangent import Outputs
from seamfast.errors import InputError, ModelError
from seamfast.metrics import Figure

__all__ = ["LabelForgetting", "PredictedShare", "label_forgetting"]

_STEPS = 20
"""Training to the end needs several times the products with the exact kernel."""
_DESCENT = Descent(None, _STEPS, None)
_OF_LAST_LAYER = (128, 128)
_OF_ALL = (16, 64)
"""Most samples that are trained and probed. Of those trained, each product with the exact kernel takes all."""
_MOST_PRODUCTS = 18
_TOLERANCE = 0.01
_MOST_WORK = 10**11
"""Parameters, times samples, times products: 69 million parameters with all samples."""


@dataclass(frozen=True, eq=False)
class PredictedShare:
    """Of one kernel.

    Attributes:
        share: mean squared change of the logits over their mean square, both over the probes, the latter centered by
            sample. 1: the steps move the logits by as much as they are. ``None`` where all classes have the same
            logit. The bounds are those of the percentile bootstrap of probes and draws; they do not cover other
            training samples.
        n_train: samples that the labels are drawn for.
        n_draws: of their labels.
        n_products: with the exact kernel; 0 for that of the last layer.
        residual: of the system that the steps solve in part, relative. At 0.05, the share is within a percent of that
            by more products.
    """

    share: Figure
    n_train: int
    n_draws: int
    n_products: int
    residual: float
    _drawn: Tensor = field(repr=False)  # (n_boot,) float64: the share of each resample

    def to_dict(self) -> dict[str, Any]:
        """All but the resamples, as JSON values."""
        return {
            "share": self.share.to_dict(),
            "n_train": self.n_train,
            "n_draws": self.n_draws,
            "n_products": self.n_products,
            "residual": self.residual,
        }


@dataclass(frozen=True, eq=False)
class LabelForgetting:
    """What steps on random labels of some clean samples are predicted to do to the logits of others.

    Attributes:
        last_layer: by the kernel of the last linear layer; ``None`` where the model has none.
        exact: by the kernel of all parameters; ``None`` where it costs too much, or some gradient is not finite.
        left_out: why a figure is ``None``, by name.
        steps: of gradient descent on ``0.5 * (targets - f(T)).square().sum()``, at one over the largest eigenvalue.
    """

    last_layer: PredictedShare | None
    exact: PredictedShare | None
    left_out: dict[str, str]
    steps: int
    _level: float = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        kernels = {"last_layer": self.last_layer, "exact": self.exact}
        shares = {name: None if one is None else one.to_dict() for name, one in kernels.items()}
        return {"steps": self.steps, **shares, "left_out": dict(self.left_out)}

    def figures(self) -> dict[str, Figure]:
        """The numbers to compare models by; one that was left out has no value."""
        shares = {"last_layer_share": self.last_layer, "exact_share": self.exact}
        nothing = Figure(None, None, None, 0)
        return {name: nothing if one is None else one.share for name, one in shares.items()}

    def changes_to(self, after: LabelForgetting) -> dict[str, Figure]:
        """``after - self`` of each figure, on the same samples, labels and resamples.

        Raises:
            InputError: ``the results are of 64 and 32 samples; expected the same samples``.
        """
        kernels = ((self.last_layer, after.last_layer), (self.exact, after.exact))
        found = {}
        for (name, before), now, (first, second) in zip(
            self.figures().items(), after.figures().values(), kernels, strict=True
        ):
            found[name] = Figure(None, None, None, now.n)
            if first is None or second is None or before.value is None or now.value is None:
                continue
            if before.n != now.n or len(first._drawn) != len(second._drawn):
                raise InputError(f"the results are of {before.n} and {now.n} samples; expected the same samples")
            value = now.value - before.value
            low, high = percentile_bounds(second._drawn - first._drawn, self._level)
            found[name] = Figure(value, min(low, value), max(high, value), now.n)
        return found


def label_forgetting(
    model: nn.Module,
    data: CleanSet,
    *,
    n_draws: int = 3,
    n_boot: int = 1000,
    level: float = 0.95,
    time_budget_s: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> LabelForgetting:
    """``(found.change**2).sum() / (centered**2).sum()`` with ``found = drift(model, T, targets, S, steps=20)``.

    ``targets`` are ``label_targets(model(T), labels, "uniform")``, ``centered`` are the logits ``model(S)`` less their
    means by sample; see ``seamfast.audits.ntk``. So it is the share of the logits of S that 20 steps of training T on
    random labels are predicted to move.

    T and S are halves of each class. By the kernel of the last linear layer, T and S are up to 128 samples each; by
    the exact one, the first 16 and 64 of these. The exact figure is left out where parameters times samples times
    products exceed 1e11, which depends on no clock, or where ``time_budget_s`` ends.

    It is no sign of a backdoor: no sample is triggered, and a model without a backdoor has such a figure too.

    Args:
        model: returns logits ``(B, C)``; it is read in eval mode and left as it was.
        data: samples that the model was not trained on; two different ones of a class at least.
        n_draws: of uniform labels of T, at least 1.
        n_boot: resamples for the bounds, at least 1.
        level: of the bounds, in (0, 1).
        time_budget_s: seconds above 0, after which the exact figure is given up; ``None``: no limit.
        batch_size: samples a pass, at least 1.
        seed: of halves, labels and resamples, in ``[0, 2**63)``: same seed and samples, same ones, so that two models
            compare.
        device: ``"auto"`` is the model's own; for another one, a copy of the model is used.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        LabelForgetting.

    Raises:
        InputError: e.g. ``data hold 3 samples, no two different ones of a class; expected two, to probe one``.
        ModelError: the model has no derivatives by its parameters.

    Source: the drift: Doan et al., "A theoretical analysis of catastrophic forgetting through the NTK overlap matrix",
        arXiv:2010.04003; random labels as the means to forget: Zhu et al., "Selective amnesia", arXiv:2212.04687.

    Example:
        >>> import seamfast
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> found = label_forgetting(model, seamfast.load("digits", split="test").subset(range(200)))
        >>> found.exact.n_train, found.exact.share.n, found.left_out
        (16, 64, {})
    """
    begin = time.perf_counter()
    n_draws, n_boot, seed = as_count("n_draws", n_draws), as_count("n_boot", n_boot), as_seed(seed)
    level = as_level(level)
    check_time_budget(time_budget_s)
    end = math.inf if time_budget_s is None else begin + time_budget_s
    check_clean_set("data", data)
    subject = _Predicted(Differentiated.of(model, None, batch_size, device), n_draws, n_boot, level, seed)
    halves = _halves(data, seed)
    shares: dict[str, PredictedShare] = {}
    left_out: dict[str, str] = {}

    train, probes = (data.subset(part[:most]) for part, most in zip(halves, _OF_LAST_LAYER, strict=True))
    trained = subject.outputs(train)
    trained.check()
    try:
        head = HeadSpace.of(trained, subject.residuals(trained, train.labels), _DESCENT)
        drifts = head.drifts(_DESCENT, {"probes": subject.outputs(probes)})["probes"]
        shares["last_layer"] = subject.share(drifts, len(train))
    except ModelError as error:
        left_out["last_layer"] = str(error)

    train, probes = (data.subset(part[:most]) for part, most in zip(halves, _OF_ALL, strict=True))
    work = sum(p.numel() for p in trained.parameters.values()) * (len(train) + len(probes)) * _MOST_PRODUCTS
    if work > _MOST_WORK:
        left_out["exact"] = f"parameters times samples times products are {work:.1e}; expected at most {_MOST_WORK:.1e}"
        return LabelForgetting(shares.get("last_layer"), None, left_out, _STEPS, level)
    with progress_bar("forgetting", "product", _MOST_PRODUCTS, progress) as bar:
        try:
            trained = subject.outputs(train)
            wanted = subject.residuals(trained, train.labels)
            space = krylov_space(trained, wanted, _DESCENT, _TOLERANCE, _MOST_PRODUCTS, seed, _until(end, bar.update))
            drifts = space.drifts(_DESCENT, {"probes": subject.outputs(probes)})["probes"]
            shares["exact"] = subject.share(drifts, len(train))
        except _OutOfTimeError:
            left_out["exact"] = "the time budget did not suffice"
        except NotFiniteError as error:
            left_out["exact"] = str(error)
    return LabelForgetting(shares.get("last_layer"), shares.get("exact"), left_out, _STEPS, level)


@dataclass(frozen=True)
class _Predicted:
    """A model, on its device, and how its shares are taken."""

    subject: Differentiated
    n_draws: int
    n_boot: int
    level: float
    seed: int

    def outputs(self, samples: CleanSet) -> Outputs:
        return self.subject.outputs("data", samples, checked=False)

    def residuals(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """``(n_draws, N, C)``: of the logits to targets of uniform labels."""
        check_in_range("labels", labels, outputs.num_classes)
        seeds = ((self.seed + draw) % 2**63 for draw in range(self.n_draws))
        drawn = [label_targets(outputs.values, labels, "uniform", seed=seed) for seed in seeds]
        return torch.stack(drawn) - outputs.values.double().cpu()

    def share(self, drifts: Sequence[Drift], n_train: int) -> PredictedShare:
        """Of a drift for each draw."""
        moved = torch.stack([one.change.square().sum(1) for one in drifts])
        logits = drifts[0].logits
        size = (logits - logits.mean(1, keepdim=True)).square().sum(1)
        generator = torch.Generator().manual_seed(self.seed)
        samples = torch.randint(len(size), (self.n_boot, len(size)), generator=generator)
        draws = torch.randint(len(moved), (self.n_boot, len(moved)), generator=generator)
        drawn = moved[draws].mean(1).gather(1, samples).mean(1) / size[samples].mean(1)
        value = float(moved.mean() / size.mean())
        figure = Figure(None, None, None, len(size))
        if math.isfinite(value) and bool(torch.isfinite(drawn).all()):
            low, high = percentile_bounds(drawn, self.level)
            figure = Figure(value, min(low, value), max(high, value), len(size))
        return PredictedShare(figure, n_train, self.n_draws, drifts[0].n_products, drifts[0].residual, drawn)


class _OutOfTimeError(Exception):
    pass


def _until(end: float, update: Callable[[], Any]) -> Callable[[], None]:
    def updated() -> None:
        update()
        if time.perf_counter() >= end:
            raise _OutOfTimeError

    return updated


def _halves(data: CleanSet, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of T and of S, each in an order whose beginnings have about as much of each class as the whole."""
    split = split_by_class(
        data.labels, holdout_fraction=0.5, forget_fraction=1.0, seed=seed, identities=data.identities()
    )
    if not len(split.holdout):
        raise InputError(f"data hold {len(data)} samples, no two different ones of a class; expected two, to probe one")
    return _mixed(split.recovery, data.labels, seed), _mixed(split.holdout, data.labels, seed)


def _mixed(indices: Tensor, labels: Tensor, seed: int) -> Tensor:
    shuffled = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))]
    place = torch.empty(len(shuffled))
    for label in torch.unique(labels[shuffled]).tolist():
        of_class = labels[shuffled] == label
        n = int(of_class.sum())
        place[of_class] = (torch.arange(n) + 0.5) / n
    return shuffled[place.argsort(stable=True)]
