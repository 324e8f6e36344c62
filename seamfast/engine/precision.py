"""Number format and memory layout of a run, chosen by trials on a copy of the model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.engine.host import seeded
from seamfast.engine.layers import faster_layers
from seamfast.engine.model import logits_of
from seamfast.errors import InputError
from seamfast.modalities.batch import Batch, channels_last, has_channels, named_tensors

PRECISIONS = ("auto", "fp32", "bf16")

_MOST_TIMED, _WORTH_TIMING_S = 5, 0.02
"""Limits on the timed steps of a candidate: their number, and their total seconds."""
_COMPARED = 1 << 20
"""Elements of each tensor's gradient that are compared."""
_GAIN_OF_LAYOUT = 1.05
_GAIN_OF_BF16 = 1.2
"""Least gains in speed for channels last and for bfloat16, which rounds."""
_AGREEMENT = 0.95
"""Least cosine between the gradients of a candidate and those of float32."""


@dataclass(frozen=True)
class Trial:
    """One candidate: seconds of a training step, cosine of its gradients and float32's, or its error."""

    name: str
    step_seconds: float | None
    agreement: float | None
    error: str | None = None


@dataclass(frozen=True)
class Precision:
    """Number format and memory layout.

    Attributes:
        bf16: the model's forward passes run under ``torch.autocast`` to bfloat16; weights and losses stay float32.
        channels_last: images and kernels are in ``torch.channels_last``.
        reason: of the choice, in one sentence.
        trials: of the choice.
    """

    bf16: bool = False
    channels_last: bool = False
    reason: str = "float32 was asked for"
    trials: tuple[Trial, ...] = ()

    @property
    def name(self) -> str:
        return _name(self.bf16, self.channels_last)

    def laid_out(self, inputs: Batch) -> Batch:
        """``inputs`` in the layout; unchanged if they have no channels."""
        return channels_last(inputs) if self.channels_last else inputs

    def prepare(self, model: nn.Module) -> None:
        """Convert the model's kernels to the layout, in place."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @contextmanager
    def computing(self, device: torch.device, *, compiled: bool = False) -> Iterator[None]:
        """Run forward passes in the number format, and with the faster layers unless they are compiled."""
        # Cached casts cannot be captured; on a CPU they save one for each weight that is used twice in a forward pass.
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=device.type != "cuda")
        with autocast, nullcontext() if compiled else faster_layers(device):
            yield


def check_precision(requested: object) -> None:
    """Raise ``InputError`` unless ``requested`` is one of ``PRECISIONS``."""
    if requested not in PRECISIONS:
        raise InputError(f"precision is {requested!r}; expected one of {', '.join(PRECISIONS)}")


_chosen: dict[object, Precision] = {}


def choose_precision(
    model: nn.Module, inputs: Batch, labels: Tensor, requested: str, num_classes: int, limit_s: float = math.inf
) -> Precision:
    """The fastest of float32 and bfloat16, contiguous and channels last, whose gradients agree with float32's.

    Each candidate takes a few training steps (two for a large model) on a copy of the model. Labels are shifted by one
    class, as in a forgetting step: with the true labels, a trained model's gradients are too small to compare. bfloat16
    is tried only if the processor has instructions for it, and chosen only if it is at least 1.2 times as fast. The
    choice is kept in the process for models of the same structure and batches of the same shape.

    Args:
        model: float32, on the device; not modified.
        inputs: a typical batch of the run.
        labels: ``(B,)`` int64 on the device.
        requested: ``"auto"``; ``"fp32"``: no trials; ``"bf16"``: at any speed, if its gradients agree.
        num_classes: of the model.
        limit_s: approximate limit on the trials, in seconds; float32 if its steps alone take a quarter of it.
    """
    if requested == "fp32":
        return Precision()
    key = _key(model, inputs, requested)
    if key in _chosen:
        return _chosen[key]
    begin = time.perf_counter()
    wrong = (labels + 1) % num_classes
    trials: list[Trial] = []
    exact = _try(model, Precision(), inputs, wrong, None, trials)
    if exact is None:  # the run itself raises a better error
        return _decided(Precision(), trials, "float32 could not be tried")
    if 4 * (time.perf_counter() - begin) > limit_s:
        return _decided(Precision(), trials, "the time budget left no time to try anything but float32")
    _chosen[key] = _fastest(model, inputs, wrong, requested, exact, trials)
    return _chosen[key]


def _fastest(
    model: nn.Module, inputs: Batch, wrong: Tensor, requested: str, exact: list[Tensor], trials: list[Trial]
) -> Precision:
    device = wrong.device
    best, best_s = Precision(), trials[0].step_seconds or math.inf
    in_both_layouts = has_channels(inputs) and any(isinstance(m, nn.Conv2d) for m in model.modules())
    if in_both_layouts:
        candidate = Precision(channels_last=True)
        _try(model, candidate, inputs, wrong, exact, trials)
        if _agrees(trials[-1]) and _gain(best_s, trials[-1]) >= _GAIN_OF_LAYOUT:
            best, best_s = candidate, trials[-1].step_seconds or math.inf

    why_not = _why_no_bf16(device)
    if why_not is not None:
        return _decided(best, trials, f"bfloat16 was not tried: {why_not}")
    # bfloat16 may be fast in channels last only, even if float32 gains little from it: both layouts are tried.
    layouts = [best.channels_last] if best.channels_last or not in_both_layouts else [False, True]
    candidates = [Precision(bf16=True, channels_last=layout) for layout in layouts]
    for candidate in candidates:
        _try(model, candidate, inputs, wrong, exact, trials)
    tried = list(zip(candidates, trials[-len(candidates) :], strict=True))
    agreeing = [pair for pair in tried if _agrees(pair[1])]
    if not agreeing:
        trial = trials[-1]
        problem = trial.error or f"its gradients agree with float32's to a cosine of {trial.agreement:.3f} only"
        return _decided(best, trials, f"bfloat16 was turned down: {problem}")
    candidate, trial = min(agreeing, key=lambda pair: pair[1].step_seconds or math.inf)
    gain = _gain(best_s, trial)
    if requested == "bf16":
        return _decided(candidate, trials, f"bfloat16 was asked for; {gain:.2f} times as fast as float32")
    if gain < _GAIN_OF_BF16:
        return _decided(best, trials, f"bfloat16 is {gain:.2f} times as fast as float32, below {_GAIN_OF_BF16}")
    return _decided(candidate, trials, f"bfloat16 is {gain:.2f} times as fast as float32")


def step_seconds(model: nn.Module, candidate: Precision, inputs: Batch, labels: Tensor) -> float:
    """Seconds of the forward and backward pass of a training step; the grads are kept."""
    begin = _now(labels.device)
    model.zero_grad(set_to_none=True)
    with candidate.computing(labels.device):
        logits = logits_of(model, inputs)
    F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    return _now(labels.device) - begin


def _try(
    model: nn.Module,
    candidate: Precision,
    inputs: Batch,
    labels: Tensor,
    exact: list[Tensor] | None,
    trials: list[Trial],
) -> list[Tensor] | None:
    """Take a step for one-time costs, then time some; append the trial to ``trials`` and return the gradients."""
    try:
        trained = copy.deepcopy(model)
        candidate.prepare(trained)
        trained.train()
        laid_out = candidate.laid_out(inputs)
        step_seconds(trained, candidate, laid_out, labels)
        seconds, spent = math.inf, 0.0
        # One step of a large model suffices; short steps vary with other load, so the fastest of several is taken.
        for _ in range(_MOST_TIMED):
            if spent >= _WORTH_TIMING_S:
                break
            with seeded(0, labels.device):  # the same dropout for all candidates, so that gradients can agree
                taken = step_seconds(trained, candidate, laid_out, labels)
            seconds, spent = min(seconds, taken), spent + taken
        # A part of a large tensor suffices, and saves memory until the last trial.
        grads = [p.grad.reshape(-1)[:_COMPARED].clone() for p in trained.parameters() if p.grad is not None]
    except Exception as error:  # e.g. an operation without a kernel for the format, or too little memory
        trials.append(
            Trial(candidate.name, None, None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        )
        return None
    agreement = _cosine(grads, grads if exact is None else exact)
    if math.isfinite(agreement):
        trials.append(Trial(candidate.name, seconds, agreement))
    else:
        trials.append(Trial(candidate.name, seconds, None, "its gradients are not finite"))
    return grads


def _cosine(grads: list[Tensor], others: list[Tensor]) -> float:
    """``cosine_similarity`` of the concatenated tensors."""

    def dot(some: list[Tensor], more: list[Tensor]) -> Tensor:
        products = [torch.dot(a, b).double() for a, b in zip(some, more, strict=True)]
        return torch.stack(products).sum() if products else torch.zeros(())

    if [grad.shape for grad in grads] != [other.shape for other in others]:
        return 0.0
    norms = (dot(grads, grads) * dot(others, others)).sqrt()
    return float(dot(grads, others) / norms) if norms != 0 else 0.0


def _agrees(trial: Trial) -> bool:
    return trial.agreement is not None and trial.agreement >= _AGREEMENT  # False for NaN


def _gain(best_s: float, trial: Trial) -> float:
    return 0.0 if trial.step_seconds is None else best_s / max(trial.step_seconds, 1e-9)


def _decided(precision: Precision, trials: list[Trial], reason: str) -> Precision:
    return Precision(precision.bf16, precision.channels_last, reason, tuple(trials))


def _why_no_bf16(device: torch.device) -> str | None:
    """Why bfloat16 would be slow, or ``None``: without instructions for it a CPU takes many times as long."""
    if device.type == "cpu":
        supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return None if supported else "the processor has no instructions for it"
    if device.type == "cuda":
        return None if torch.cuda.get_device_capability(device) >= (8, 0) else "the GPU has no instructions for it"
    return f"it is not known to be fast on {device.type}"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _name(bf16: bool, channels_last: bool) -> str:
    return ("bf16" if bf16 else "fp32") + (" channels_last" if channels_last else "")


def _key(model: nn.Module, inputs: Batch, requested: str) -> object:
    """The key of a choice: structure, shapes and threads, not weights."""
    structure = tuple((name, type(module)) for name, module in model.named_modules())
    shapes = tuple((name, tuple(p.shape), p.device, p.requires_grad) for name, p in model.named_parameters())
    sizes = tuple((name, tuple(value.shape), value.dtype) for name, value in named_tensors(inputs).items())
    return structure, shapes, sizes, requested, torch.get_num_threads()
