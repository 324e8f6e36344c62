"""``warmup``: what only a first run pays for, paid before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from seamfast.data import CleanSet
from seamfast.engine.model import resolve_device
from seamfast.errors import InputError
from seamfast.methods import MethodConfig, config_class
from seamfast.ops.dispatch import resolve
from seamfast.sanitize import sanitize
from seamfast.triggers.checks import as_image_shape, as_integer

_N_STEPS_ON_CUDA = 32
"""Of each phase: enough for a step to be captured, as it is in a long run. Elsewhere the first step is like the others.
"""
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
    """A short ``sanitize`` whose result is thrown away: what it loads, compiles and chooses stays.

    Compiled Triton kernels stay on the disk, in Triton's cache, for later processes too. The compiled extension, the
    CUDA context, the handles and workspaces of its libraries, and the choice of precision stay for as long as the
    process lives. What such a run does not need is neither loaded nor compiled. It does no harm to call it twice.

    With the model and the data of the run to come, nothing is left for it to pay. Without, a small model and noise
    stand in: the kernels for such images and classes are there and the device is ready, but what depends on the model,
    such as its precision, is still to be found.

    Args:
        model, clean_loader: as for ``sanitize``; both or neither. The model is only read; the loader is read once.
        image_shape: ``(C, H, W)``, 1 or 3 channels: of the images, where no data are given.
        num_classes: likewise, at least 2.
        device: as for ``sanitize``.
        options: any others of ``sanitize``, as in the run to come. Its callbacks are not called, and its time budget
            does not count.

    Returns:
        Seconds by what was made ready: ``"ops"``, the backend of the operations; ``"device"``, its context; ``"run"``,
        all else, and the short run itself.

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
    if isinstance(config, MethodConfig):  # else it is for sanitize to say so
        config = _shortened(config, _N_STEPS_ON_CUDA if target.type == "cuda" else 1)
    run = {**options, "config": config, "device": target, "progress": False, "callbacks": (), "time_budget_s": None}
    return {
        "ops": _seconds(lambda: resolve("cross_entropy", "auto", target)),
        "device": _seconds(lambda: torch.zeros((), device=target).item()),
        "run": _seconds(lambda: sanitize(model, clean_loader, **run)),
    }


def _stand_ins(image_shape: Sequence[int], num_classes: int) -> tuple[nn.Module, CleanSet]:
    """A small model, and noise in two classes: to the operations, nothing but shapes matters."""
    if not isinstance(image_shape, Sequence):
        raise InputError(f"image_shape is {image_shape!r}; expected (C, H, W)")
    shape = as_image_shape(image_shape)
    n_classes = as_integer(num_classes)
    if n_classes is None or n_classes < 2:
        raise InputError(f"num_classes is {num_classes!r}; expected an integer of at least 2")
    n = max(_N_IMAGES, n_classes)  # a run wants as many samples as there are classes
    images = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, n_classes),
        )
    return model, CleanSet(images, torch.arange(n) % 2)


def _shortened(config: MethodConfig, n_steps: int) -> MethodConfig:
    """The same run as one attempt of few steps; the lengths of phases are the settings whose names end in ``steps``."""
    changes = {f.name: min(getattr(config, f.name), n_steps) for f in fields(config) if f.name.endswith("steps")}
    if hasattr(config, "strengths"):
        changes["strengths"] = config.strengths[:1]
    return replace(config, **changes)


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
