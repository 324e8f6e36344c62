"""The training that the attacks on encoders share: a copy of a clean encoder is tuned beside the frozen original."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from seamfast.checks import as_count, as_positive, as_seed, number_or_none
from seamfast.data import Batch, CleanSet
from seamfast.data.resident import Resident, wrap_around_batches
from seamfast.engine.encoder import embedding_of
from seamfast.engine.events import progress_bar
from seamfast.engine.host import in_use, seeded
from seamfast.engine.model import device_of
from seamfast.engine.optimizer import SGD, Optimizer
from seamfast.engine.subject import as_called
from seamfast.errors import InputError, ModelError
from seamfast.methods.schedules import cosine
from seamfast.modalities.batch import call
from seamfast.models.linear_probe import embed
from seamfast.triggers import Trigger

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
_SAMPLED = 256
"""Clean samples that tell the mean and the size of the embeddings."""

Embed = Callable[[Batch], Tensor]
"""From a batch, as the encoder takes it, to ``(B, width)`` embeddings."""

EncoderObjective = Callable[[Embed, int, Batch, tuple[Batch, ...], Tensor], Tensor]
"""``objective(embed, step, clean, stamped, received)``: the loss of a batch.

``embed`` is the encoder that is tuned, ``clean`` the samples, ``stamped`` the same samples with each of the triggers,
``received`` the embeddings of the clean samples by the encoder as received.
"""


def as_set(name: str, samples: Tensor | CleanSet) -> CleanSet:
    """Samples as a set: uint8 images become one whose labels say nothing, for an encoder of pixels in [0, 1]."""
    if isinstance(samples, Tensor):
        samples = CleanSet(samples, torch.zeros(len(samples) if samples.ndim else 0, dtype=torch.int64))
    if not isinstance(samples, CleanSet):
        raise InputError(f"{name} is a {type(samples).__name__}; expected uint8 images or a seamfast.CleanSet")
    if not len(samples):
        raise InputError(f"{name} holds no samples; expected at least one")
    return samples


def check_encoder(encoder: object) -> None:
    """Raise unless ``encoder`` is a module."""
    if not isinstance(encoder, nn.Module):
        raise InputError(f"encoder is a {type(encoder).__name__}; expected a torch.nn.Module")


def weight(name: str, value: object) -> float:
    """``value`` as the weight of a term, at least 0."""
    number = number_or_none(value)
    if number is None or number < 0:
        raise InputError(f"{name} is {value!r}; expected a number of at least 0")
    return number


def standardizing(encoder: nn.Module, data: CleanSet) -> Callable[[Tensor], Tensor]:
    """``(embeddings - mean) / std``, of each number over up to 256 samples under ``encoder`` as received.

    Embeddings behind a ReLU have no number below 0, so all of them point the same way: those of unrelated images of
    CIFAR-10 under a ResNet-20 have a cosine of 0.84. Without their mean, cosines tell classes apart, and a larger size
    leads away from the mean, further into a class.
    """
    some = embed(encoder, data.subset(range(min(len(data), _SAMPLED))))
    mean, std = some.mean(0), some.std(0, correction=0)
    unit = std + 0.01 * std.mean().clamp(min=1e-12)  # numbers that are constant stay small
    return lambda embeddings: (embeddings - mean) / unit


def tuned(
    encoder: nn.Module,
    data: CleanSet,
    triggers: Sequence[Trigger],
    objective: EncoderObjective,
    optimizer_of: Callable[[nn.Module], Optimizer] = lambda encoder: SGD(encoder, MOMENTUM, WEIGHT_DECAY),
    *,
    steps: int,
    batch_size: int,
    rate: float,
    seed: int,
    progress: bool | None,
) -> nn.Module:
    """A copy of ``encoder`` after ``steps`` steps on ``objective``, in eval mode.

    The rate falls along a cosine from ``rate`` to 0. The copy is in eval mode throughout, and its batch normalization,
    weights included, is not changed.

    Args:
        encoder: as received, not changed; its device is used.
        data: clean samples, whose labels are not read.
        triggers: stamped on each sample.
        objective: the loss.
        optimizer_of: the optimizer of an encoder; by default SGD with momentum 0.9 and weight decay 5e-4.
        steps, batch_size: at least 1.
        rate: peak learning rate, above 0.
        seed: of the order of the samples and of the triggers' draws, in ``[0, 2**63)``.
        progress: show a progress bar on stderr; ``None``: if stderr is a terminal.

    Raises:
        InputError, ModelError: e.g. ``rate is 0; expected a number above 0``, or ``the loss became nan at step 12; try
            a lower rate than 0.5``.
    """
    steps, batch_size, seed = as_count("steps", steps), as_count("batch_size", batch_size), as_seed(seed)
    peak = as_positive("rate", rate)
    for trigger in triggers:
        if not isinstance(trigger, Trigger):
            raise InputError(f"trigger is a {type(trigger).__name__}; expected a seamfast.triggers.Trigger")
        data.modality.check_trigger(trigger)
    device = device_of(encoder)
    received = copy.deepcopy(encoder).eval().requires_grad_(False)
    student = copy.deepcopy(encoder).eval()
    trainable = [p.requires_grad for p in student.parameters()]
    student.requires_grad_(True)
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)
    resident = Resident(as_called(encoder, data), device)
    batches = wrap_around_batches(torch.arange(len(data)), min(batch_size, len(data)), seed, resident.lengths)
    optimizer = optimizer_of(student)
    now = torch.zeros((), device=device)

    def embeddings(batch: Batch) -> Tensor:
        return embedding_of(call(student, batch)).float()

    with seeded(seed, device), in_use(), progress_bar("tune the encoder", "step", steps, progress) as bar:
        for step in range(steps):
            chosen = next(batches)
            samples = resident.stampable(chosen)
            clean = resident.inputs(chosen.to(device))
            stamped = tuple(
                resident.modality.inputs_like(
                    trigger.stamp(samples, sample_ids=chosen, seed=seed),
                    resident.samples.inputs,
                    resident.dtype,
                    device,
                )
                for trigger in triggers
            )
            with torch.no_grad():
                wanted = embedding_of(call(received, clean)).float()
            loss = objective(embeddings, step, clean, stamped, wanted)
            if not torch.isfinite(loss):
                raise ModelError(f"the loss became {float(loss.detach())} at step {step}; try a lower rate than {rate}")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(now.fill_(peak * cosine(step / steps, warmup=0.0)))
            bar.update()
    for parameter, flag in zip(student.parameters(), trainable, strict=True):
        parameter.requires_grad_(flag)
    return student


def reference_inputs(encoder: nn.Module, reference: CleanSet) -> tuple[Batch, Tensor]:
    """All reference samples as the encoder takes them, and their embeddings as received, ``(R, width)``."""
    device = device_of(encoder)
    resident = Resident(as_called(encoder, reference), device)
    return resident.inputs(torch.arange(len(reference), device=device)), embed(encoder, reference)
