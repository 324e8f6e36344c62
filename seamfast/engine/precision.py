"""Which number format and memory layout a run computes in: tried on a copy of the model, not guessed."""

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

from seamfast.data.clean_set import Batch
from seamfast.engine.host import seeded
from seamfast.engine.layers import faster_layers
from seamfast.engine.model import logits_of
from seamfast.errors import InputError

PRECISIONS = ("auto", "fp32", "bf16")

_MOST_TIMED, _WORTH_TIMING_S = 5, 0.02
"""How many steps a candidate is timed for, unless it took so long already."""
_COMPARED = 1 << 20
"""Elements of each tensor's gradient that are compared."""
_GAIN_OF_LAYOUT = 1.05
_GAIN_OF_BF16 = 1.2
"""How many times as fast bfloat16 must be to be worth its rounding."""
_AGREEMENT = 0.95
"""Least cosine between the gradients of a candidate and those of float32."""


@dataclass(frozen=True)
class Trial:
    """One candidate: seconds of a training step, cosine of its gradients and float32's, or why it failed."""

    name: str
    step_seconds: float | None
    agreement: float | None
    error: str | None = None


@dataclass(frozen=True)
class Precision:
    """How a run computes.

    Attributes:
        bf16: the model's forward passes under ``torch.autocast`` to bfloat16; weights and losses stay float32.
        channels_last: images and kernels lie in memory channel by channel of a pixel, not plane by plane.
        reason: why so, in one sentence.
        trials: what was tried; empty where nothing was.
    """

    bf16: bool = False
    channels_last: bool = False
    reason: str = "float32 was asked for"
    trials: tuple[Trial, ...] = ()

    @property
    def name(self) -> str:
        return _name(self.bf16, self.channels_last)

    def laid_out(self, inputs: Batch) -> Batch:
        """``inputs`` in the layout; other than images they stay as they are."""
        if not self.channels_last or not isinstance(inputs, Tensor) or inputs.ndim != 4:
            return inputs
        return inputs.contiguous(memory_format=torch.channels_last)

    def prepare(self, model: nn.Module) -> None:
        """Lay the model's kernels out, in place."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @contextmanager
    def computing(self, device: torch.device, *, compiled: bool = False) -> Iterator[None]:
        """Forward passes in here are in the number format, and use the faster layers unless they are compiled."""
        # Casts that are kept for the next use of a weight cannot be captured; on a CPU they save one where it comes
        # twice in a forward pass.
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=device.type != "cuda")
        with autocast, nullcontext() if compiled else faster_layers(device):
            yield


def check_precision(wanted: object) -> None:
    """Raise ``InputError`` unless ``wanted`` is one of ``PRECISIONS``."""
    if wanted not in PRECISIONS:
        raise InputError(f"precision is {wanted!r}; expected one of {', '.join(PRECISIONS)}")


_chosen: dict[object, Precision] = {}


def choose_precision(
    model: nn.Module, inputs: Batch, labels: Tensor, wanted: str, num_classes: int, limit_s: float = math.inf
) -> Precision:
    """The fastest of float32 and bfloat16, plane by plane and channels last, whose gradients agree with float32's.

    A few training steps of each candidate, two of a large model, are run on a copy of the model, on labels moved by one
    class, as a forgetting step has them: on its own labels a trained model's gradients are too small to compare.
    bfloat16 is tried only where the processor computes in it, and kept only where it is at least 1.2 times as fast. The
    choice is kept for models of the same structure and batches of the same shape, for as long as the process lives.

    Args:
        model: float32, on the device; not modified.
        inputs: a batch as the run will have them.
        labels: ``(B,)`` int64 on the device.
        wanted: ``"auto"``; ``"fp32"``: nothing is tried; ``"bf16"``: whatever its gain, as long as gradients agree.
        num_classes: of the model.
        limit_s: seconds that trying may take, roughly: where float32's steps alone take a quarter, it is float32.
    """
    if wanted == "fp32":
        return Precision()
    key = _key(model, inputs, wanted)
    if key in _chosen:
        return _chosen[key]
    begin = time.perf_counter()
    wrong = (labels + 1) % num_classes
    trials: list[Trial] = []
    exact = _try(model, Precision(), inputs, wrong, None, trials)
    if exact is None:  # the run itself will say it better
        return _decided(Precision(), trials, "float32 could not be tried")
    if 4 * (time.perf_counter() - begin) > limit_s:
        return _decided(Precision(), trials, "the time budget left no time to try anything but float32")
    _chosen[key] = _fastest(model, inputs, wrong, wanted, exact, trials)
    return _chosen[key]


def _fastest(
    model: nn.Module, inputs: Batch, wrong: Tensor, wanted: str, exact: list[Tensor], trials: list[Trial]
) -> Precision:
    device = wrong.device
    best, best_s = Precision(), trials[0].step_seconds or math.inf
    in_both_layouts = (
        isinstance(inputs, Tensor) and inputs.ndim == 4 and any(isinstance(m, nn.Conv2d) for m in model.modules())
    )
    if in_both_layouts:
        candidate = Precision(channels_last=True)
        _try(model, candidate, inputs, wrong, exact, trials)
        if _agrees(trials[-1]) and _gain(best_s, trials[-1]) >= _GAIN_OF_LAYOUT:
            best, best_s = candidate, trials[-1].step_seconds or math.inf

    why_not = _why_no_bf16(device)
    if why_not is not None:
        return _decided(best, trials, f"bfloat16 was not tried: {why_not}")
    # A layout that gains float32 little may be all that makes bfloat16 fast, so where it lost, both are tried.
    layouts = [best.channels_last] if best.channels_last or not in_both_layouts else [False, True]
    candidates = [Precision(bf16=True, channels_last=layout) for layout in layouts]
    for candidate in candidates:
        _try(model, candidate, inputs, wrong, exact, trials)
    tried = list(zip(candidates, trials[-len(candidates) :], strict=True))
    agreeing = [pair for pair in tried if _agrees(pair[1])]
    if not agreeing:
        trial = trials[-1]
        said = trial.error or f"its gradients agree with float32's to a cosine of {trial.agreement:.3f} only"
        return _decided(best, trials, f"bfloat16 was turned down: {said}")
    candidate, trial = min(agreeing, key=lambda pair: pair[1].step_seconds or math.inf)
    gain = _gain(best_s, trial)
    if wanted == "bf16":
        return _decided(candidate, trials, f"bfloat16 was asked for; {gain:.2f} times as fast as float32")
    if gain < _GAIN_OF_BF16:
        return _decided(best, trials, f"bfloat16 is {gain:.2f} times as fast as float32, below {_GAIN_OF_BF16}")
    return _decided(candidate, trials, f"bfloat16 is {gain:.2f} times as fast as float32")


def step_seconds(model: nn.Module, candidate: Precision, inputs: Batch, labels: Tensor) -> float:
    """Forward and backward of a training step; the grads stay."""
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
    """A step that pays for what is made once, then some that are timed. The gradients come back."""
    try:
        trained = copy.deepcopy(model)
        candidate.prepare(trained)
        trained.train()
        seen = candidate.laid_out(inputs)
        step_seconds(trained, candidate, seen, labels)
        seconds, spent = math.inf, 0.0
        # One step of a large model says enough; of milliseconds, the quickest of several: others compute here too.
        for _ in range(_MOST_TIMED):
            if spent >= _WORTH_TIMING_S:
                break
            with seeded(0, labels.device):  # the same dropout for all, or gradients could not agree
                taken = step_seconds(trained, candidate, seen, labels)
            seconds, spent = min(seconds, taken), spent + taken
        # Of a large tensor a part tells as much, and does not hold a copy of the model's size until the last trial.
        grads = [p.grad.reshape(-1)[:_COMPARED].clone() for p in trained.parameters() if p.grad is not None]
    except Exception as error:  # an operation that has no kernel for it, or memory that does not suffice
        trials.append(
            Trial(candidate.name, None, None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        )
        return None
    agreement = _cosine(grads, grads if exact is None else exact)
    if not math.isfinite(agreement):
        trials.append(Trial(candidate.name, seconds, None, "its gradients are not finite"))
    else:
        trials.append(Trial(candidate.name, seconds, agreement))
    return grads


def _cosine(grads: list[Tensor], others: list[Tensor]) -> float:
    """``cosine_similarity`` of vectors, all of them as one."""

    def dot(some: list[Tensor], more: list[Tensor]) -> Tensor:
        products = [torch.dot(a, b).double() for a, b in zip(some, more, strict=True)]
        return torch.stack(products).sum() if products else torch.zeros(())

    if [grad.shape for grad in grads] != [other.shape for other in others]:
        return 0.0
    norms = (dot(grads, grads) * dot(others, others)).sqrt()
    return float(dot(grads, others) / norms) if norms != 0 else 0.0


def _agrees(trial: Trial) -> bool:
    return trial.agreement is not None and trial.agreement >= _AGREEMENT  # NaN is not


def _gain(best_s: float, trial: Trial) -> float:
    return 0.0 if trial.step_seconds is None else best_s / max(trial.step_seconds, 1e-9)


def _decided(precision: Precision, trials: list[Trial], reason: str) -> Precision:
    return Precision(precision.bf16, precision.channels_last, reason, tuple(trials))


def _why_no_bf16(device: torch.device) -> str | None:
    """Why bfloat16 would be slow, or ``None``: without instructions for it a CPU takes many times as long."""
    if device.type == "cpu":
        knows = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return None if knows else "the processor has no instructions for it"
    if device.type == "cuda":
        return None if torch.cuda.get_device_capability(device) >= (8, 0) else "the GPU has no instructions for it"
    return f"it is not known to be fast on {device.type}"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _name(bf16: bool, channels_last: bool) -> str:
    return ("bf16" if bf16 else "fp32") + (" channels_last" if channels_last else "")


def _key(model: nn.Module, inputs: Batch, wanted: str) -> object:
    """What the choice depends on: structure and shapes, not weights; the machine stays the same within a process."""
    structure = tuple((name, type(module)) for name, module in model.named_modules())
    shapes = tuple((name, tuple(p.shape), p.device) for name, p in model.named_parameters())
    batch = inputs.items() if isinstance(inputs, dict) else [("", inputs)]
    sizes = tuple((name, tuple(value.shape), value.dtype) for name, value in batch)
    return structure, shapes, sizes, wanted, torch.get_num_threads()
