"""No defence, and methods of seamfast by their published or default settings, called as the other defences are.

``fine_tune``: 400 steps of SGD 0.01 (``FineTuneConfig``). ``super_fine_tune``: 400 steps in two phases
(``SuperFineTuneConfig``). ``authors_seam``: the settings of SEAM's public CIFAR-10 script, stopped blind, with a
hundredth of the recovery part to forget on, and at most 30 epochs of recovery instead of 300. All three hold a fifth of
the clean budget out, to stop and judge by; steps of all attempts count, and nothing is
pruned, as nothing is in the papers. What comes back is the treated model, accepted or not.
"""

from __future__ import annotations

import copy
import time
from typing import Any

from torch import nn

import seamfast
from benches.defences.training import Defended
from seamfast import FineTuneConfig, SeamAuthorsConfig, SuperFineTuneConfig


def no_defence(model: nn.Module, clean: seamfast.CleanSet, *, seed: int, augment: tuple[int, bool]) -> Defended:
    """A copy of the model as received."""
    begin = time.perf_counter()
    return Defended(copy.deepcopy(model).eval(), 0, time.perf_counter() - begin)


def fine_tune(
    model: nn.Module, clean: seamfast.CleanSet, *, seed: int, augment: tuple[int, bool], precision: str = "auto"
) -> Defended:
    """``seamfast.sanitize(..., method="fine_tune")`` as published, so without pruning."""
    config = FineTuneConfig(crop_pad=augment[0], flip=augment[1], prune=False)
    return _sanitized(model, clean, "fine_tune", config, seed, precision)


def super_fine_tune(
    model: nn.Module, clean: seamfast.CleanSet, *, seed: int, augment: tuple[int, bool], precision: str = "auto"
) -> Defended:
    """``seamfast.sanitize(..., method="super_fine_tune")`` as published, so without pruning."""
    config = SuperFineTuneConfig(crop_pad=augment[0], flip=augment[1], prune=False)
    return _sanitized(model, clean, "super_fine_tune", config, seed, precision)


def authors_seam(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    epochs: int = 30,
    precision: str = "auto",
) -> Defended:
    """``seamfast.sanitize(..., method="seam_authors")``, at most ``epochs`` epochs of recovery."""
    return _sanitized(model, clean, "seam_authors", authors_config(augment, epochs), seed, precision)


def authors_config(augment: tuple[int, bool], epochs: int = 30) -> SeamAuthorsConfig:
    """The authors' settings for CIFAR-10, with this augmentation and so many epochs of recovery at most."""
    return SeamAuthorsConfig(recover_max_epochs=epochs, crop_pad=augment[0], flip=augment[1], prune=False)


def _sanitized(
    model: nn.Module, clean: seamfast.CleanSet, method: str, config: Any, seed: int, precision: str
) -> Defended:
    begin = time.perf_counter()
    result = seamfast.sanitize(model, clean, method=method, config=config, seed=seed, precision=precision)
    n_steps = sum(result.report["run"]["steps"].values())
    return Defended(result.model.eval(), n_steps, time.perf_counter() - begin)
