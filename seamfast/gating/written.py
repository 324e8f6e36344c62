"""Written = measured: the sanitized folder is loaded again from disk and held against the model that was audited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.data import CleanSet
from seamfast.engine.host import seeded
from seamfast.engine.model import device_of, digest, evaluating
from seamfast.engine.subject import answers_of, place
from seamfast.errors import InputError, SeamfastError
from seamfast.gating.architecture import Architecture
from seamfast.gating.folder import inspect, receive
from seamfast.gating.overrides import NO_OVERRIDES, Overrides

TOLERANCE = 1e-3
"""Greatest difference of a logit, as a share of the largest one of its model."""


class NotAsMeasuredError(SeamfastError):
    """The model in the written folder, or its state, is not the one that was measured."""


def outputs(model: nn.Module, data: CleanSet, *, seed: int) -> Tensor:
    """``(N, C)`` float32 logits on the CPU, in eval mode; of a model that draws there too, with draws of ``seed``."""
    subject = place(model, data, "auto")
    parts = torch.split(torch.arange(len(subject.data)), 512)
    with (
        seeded(seed, subject.device),
        evaluating(subject.model),
        closing(subject.data.batches((part, 0) for part in parts)) as batches,
    ):
        return torch.cat([subject.logits(inputs).float().cpu() for _, inputs in batches])


def check_written(
    folder: Path,
    audited: nn.Module,
    received: Architecture,
    data: CleanSet,
    measured: Tensor,
    state: str,
    *,
    architecture: str | Callable[..., object] | None,
    arguments: Mapping[str, Any] | None,
    overrides: Overrides = NO_OVERRIDES,
    seed: int,
) -> None:
    """Load ``folder`` as any untrusted one, and compare: its state, how it takes its samples, and its outputs.

    Args:
        folder: as written, by the names that it will keep.
        audited: the model that was audited.
        received: what the model as received was built by.
        data: the audit part.
        measured: ``outputs(audited, data, seed=seed)``, before the audit.
        state: digest of the sanitized model, before the audit.
        architecture, arguments, overrides: as the caller gave them to the gate.
        seed: of ``measured``.

    Raises:
        NotAsMeasuredError: e.g. ``the written model answers 3 of 500 audit samples differently from the one that was
            audited; expected the same answers``.
    """
    if digest(audited) != state:
        message = "the state of the sanitized model changed while it was audited: it depends on how often it is called"
        raise NotAsMeasuredError(f"{message}; expected an architecture whose state stays in eval mode")
    if received.source == "registered" or received.documents:  # its own description must suffice
        architecture, arguments, overrides = None, None, NO_OVERRIDES
    try:
        found = receive(inspect(folder, architecture=architecture, arguments=arguments, overrides=overrides))
    except InputError as error:
        raise NotAsMeasuredError(f"the written model cannot be loaded again: {error}") from error
    if digest(found.model) != state:
        message = "the written weights are not those that were audited; expected the same digest of the state"
        raise NotAsMeasuredError(message)
    before, after = (_described(chosen) for chosen in (received, found.architecture))
    for name, value in after.items():
        if value != before[name]:
            message = f"the written model has {name} {value}; expected {before[name]}, as it was audited"
            raise NotAsMeasuredError(message)
    again = outputs(found.model.to(device_of(audited)), data, seed=seed)
    n_other = int((answers_of(again) != answers_of(measured)).sum())
    if n_other:
        message = f"the written model answers {n_other} of {len(measured)} audit samples differently from the one that"
        raise NotAsMeasuredError(f"{message} was audited; expected the same answers")
    scale = measured.nan_to_num(0, 0, 0).abs().max()
    if not torch.isclose(again, measured, rtol=0, atol=TOLERANCE * float(scale), equal_nan=True).all():
        largest = float((again - measured).abs().nan_to_num().max())
        message = f"logits of the written model differ by {largest:.3g} from those that were audited"
        raise NotAsMeasuredError(f"{message}; expected at most {TOLERANCE:g} of the largest, {float(scale):.3g}")


def _described(chosen: Architecture) -> dict[str, Any]:
    """What a folder says of a model's samples and classes."""
    return {
        "tokenizer of digest": None if chosen.text is None else chosen.text.digest,
        "input shape": chosen.input_shape,
        "classes": chosen.num_classes,
        "mean": chosen.mean or (0.0,),
        "std": chosen.std or (1.0,),
        "class names": chosen.class_names,
    }
