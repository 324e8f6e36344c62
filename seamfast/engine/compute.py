"""How a run computes: threads, number format and memory layout, chosen by trials on its model and batches."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seamfast.engine.host import choose_threads, seeded, set_deterministic
from seamfast.engine.precision import Precision, choose_precision, step_seconds
from seamfast.engine.subject import Subject
from seamfast.modalities import Augmentation


@dataclass(frozen=True)
class Compute:
    """The precision and threads of a run.

    Attributes:
        precision: number format and memory layout.
        threads, threads_reason: number of PyTorch's threads, and the reason for it.
        compiles: whether forward passes of training go through ``torch.compile``.
    """

    precision: Precision = field(default_factory=Precision)
    threads: int = field(default_factory=torch.get_num_threads)
    threads_reason: str = "as many as PyTorch has"
    compiles: bool = False


def choose_compute(
    subject: Subject,
    indices: Tensor,
    augmentation: Augmentation,
    *,
    threads: int | None,
    precision: str,
    deterministic: bool,
    compiles: bool,
    seed: int,
    limit_s: float = math.inf,
) -> Compute:
    """The fastest way to train ``subject.model``; sets PyTorch's threads and the memory layout of the model.

    Args:
        subject: the model and the samples.
        indices: ``(B,)`` int64, CPU: a typical batch of the run.
        augmentation: of the batch.
        threads: ``None``: one, or as many as PyTorch has, whichever is faster.
        precision: see ``engine.precision``.
        deterministic: choose nothing by timing, and use PyTorch's deterministic algorithms.
        compiles: see ``Compute``.
        seed: of the model's draws in the trials.
        limit_s: approximate limit on the trials, in seconds.
    """
    reason = Compute().threads_reason
    if deterministic:
        set_deterministic("error", compiles=compiles)
    if threads is not None:
        torch.set_num_threads(threads)
        reason = f"{threads} were asked for"
    with seeded(seed, subject.device):  # a model may draw; trials must not shift the draws of the run
        chosen = indices.to(subject.device)
        inputs, labels = subject.data.inputs(chosen, augmentation), subject.data.labels[chosen]
        if threads is None and not deterministic and subject.device.type == "cpu":
            tried = copy.deepcopy(subject.model).train()
            with suppress(Exception):  # the run raises the same error with a better message
                reason = choose_threads(lambda: step_seconds(tried, Precision(), inputs, labels), limit_s)
        if deterministic and precision == "auto":
            found = Precision(reason="float32, as nothing is chosen by timing in deterministic mode")
        else:
            found = choose_precision(subject.model, inputs, labels, precision, subject.num_classes, limit_s)
    found.prepare(subject.model)
    return Compute(found, torch.get_num_threads(), reason, compiles)
