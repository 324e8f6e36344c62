"""``warmup``: loads, compiles and chooses ahead of the first run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from seamfast.checks import integer_or_none
from seamfast.data import CleanSet
from seamfast.engine.model import resolve_device
from seamfast.errors import InputError
from seamfast.methods import MethodConfig, config_class
from seamfast.ops.dispatch import resolve
from seamfast.sanitize import sanitize
from seamfast.triggers.image.checks import as_image_shape

_N_STEPS_ON_CUDA = 32  # of each phase: enough for a step to be captured; elsewhere one step is enough
_N_IMAGES = 512


def warmup(
    model: nn.Module | None = None,
    clean_loader: Any = None,
    *,
    image_shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 10,
    device: str | torch.device = "auto",
    **options: Any,
) -> dict[str, float]:
    """A short ``sanitize`` whose result is discarded; its compiled kernels and choices are kept.

    Compiled Triton kernels are kept in Triton's cache on disk, also for later processes. The compiled extension, the
    CUDA context, handles and workspaces, and the choice of precision are kept until the process ends. Repeated calls
    are harmless.

    With the model and the data of the later run, everything is prepared. Without them, a small model and noise are
    used: this prepares the device and the kernels for such images and classes, but not choices that depend on the
    model, such as the precision.

    Args:
        model, clean_loader: as for ``sanitize``; both or neither. The model is only read; the loader is read once.
        image_shape: ``(C, H, W)`` of the images, 1 or 3 channels, if no data are given.
        num_classes: at least 2, if no data are given.
        device: as for ``sanitize``.
        options: other arguments of ``sanitize``, as in the later run; ``callbacks`` and ``time_budget_s`` are ignored.

    Returns:
        Seconds of each stage: ``"ops"``, the backend of the operations; ``"device"``, its context; ``"run"``, the rest,
        with the short run itself.

    Raises:
        InputError, ConfigError, ModelError: as ``sanitize``, and e.g. ``model is given without clean_loader; expected
            both or neither``, ``num_classes is 1; expected an integer of at least 2``.

    Example:
        >>> import seamfast
        >>> sorted(seamfast.warmup(image_shape=(1, 8, 8), device="cpu"))
        ['device', 'ops', 'run']
    """
    if (model is None) != (clean_loader is None):
        given, missing = ("model", "clean_loader") if clean_loader is None else ("clean_loader", "model")
        raise InputError(f"{given} is given without {missing}; expected both or neither")
    if model is None:
        model, clean_loader = _stand_ins(image_shape, num_classes)
    target = resolve_device(device, model)
    config = options.get("config") or config_class(options.get("method", "seam"))()
    if isinstance(config, MethodConfig):  # else sanitize raises
        config = config.shortened(_N_STEPS_ON_CUDA if target.type == "cuda" else 1)
    run = {**options, "config": config, "device": target, "progress": False, "callbacks": (), "time_budget_s": None}
    return {
        "ops": _seconds(lambda: resolve("cross_entropy", "auto", target)),
        "device": _seconds(lambda: torch.zeros((), device=target).item()),
        "run": _seconds(lambda: sanitize(model, clean_loader, **run)),
    }


def _stand_ins(image_shape: Sequence[int], num_classes: int) -> tuple[nn.Module, CleanSet]:
    """A small model, and noise in two classes."""
    if not isinstance(image_shape, Sequence):
        raise InputError(f"image_shape is {image_shape!r}; expected (C, H, W)")
    shape = as_image_shape(image_shape)
    n_classes = integer_or_none(num_classes)
    if n_classes is None or n_classes < 2:
        raise InputError(f"num_classes is {num_classes!r}; expected an integer of at least 2")
    n = max(_N_IMAGES, n_classes)  # a run requires as many samples as classes
    images = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        head = nn.Linear(8, n_classes)
        model = nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            head,
        )
    samples = CleanSet(images, torch.zeros(n, dtype=torch.int64))
    # Labels are what the model answers, half of them each, since a model that guesses is refused before its run.
    with torch.no_grad():
        model.eval()
        head.bias[2:] = -1e3
        logits = model(samples.normalize(images))
        head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
        samples.labels = model(samples.normalize(images)).argmax(1)
        model.train()
    return model, samples


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
