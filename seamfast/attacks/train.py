"""Training from scratch, on poisoned data or as the baseline for the time of a cure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.checks import MAX_THREADS, as_integer, check_declared
from seamfast.data import Batch, CleanSet
from seamfast.data.clean_set import check_clean_set
from seamfast.data.resident import Resident, wrap_around_batches
from seamfast.engine.events import progress_bar
from seamfast.engine.host import choose_threads, in_use, seeded
from seamfast.engine.model import logits_of, resolve_device
from seamfast.engine.optimizer import SGD, Adam, Optimizer
from seamfast.engine.precision import Precision, check_precision, choose_precision, step_seconds
from seamfast.engine.step import BatchPlan, TrainingBatch, TrainingStep, stepper
from seamfast.engine.subject import Subject, as_called
from seamfast.errors import ConfigError, InputError, ModelError
from seamfast.methods.schedules import cosine
from seamfast.modalities import Augmentation
from seamfast.ops import true_label_cross_entropy

Objective = Callable[[Callable[[Batch], Tensor], TrainingBatch], Tensor]
"""The loss of a batch, a 0-d tensor in nats, from a function that maps inputs to the model's float32 logits."""


def cross_entropy(logits: Callable[[Batch], Tensor], batch: TrainingBatch) -> Tensor:
    """The objective of plain training, a mean over the batch."""
    return true_label_cross_entropy(logits(batch.inputs), batch.labels)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of training: one cycle of warm-up and cosine.

    Attributes:
        optimizer: ``"sgd"``, with Nesterov momentum; or ``"adam"``, for transformers.
        epochs: passes over the data, at least 1.
        batch_size: samples a step, at least 1.
        rate: peak learning rate, above 0; Adam needs a lower one than SGD, for example 1e-3.
        momentum: of SGD, in [0, 1).
        weight_decay: at least 0.
        crop_pad, flip: augmentation, see ``seamfast.ops.gather_augment``.
    """

    optimizer: str = "sgd"
    epochs: int = 10
    batch_size: int = 128
    rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        for f in fields(self):
            check_declared(f.name, str(f.type), getattr(self, f.name))
        for name, ok, expected in (
            ("optimizer", self.optimizer in ("sgd", "adam"), "'sgd' or 'adam'"),
            ("epochs", self.epochs >= 1, "an integer of at least 1"),
            ("batch_size", self.batch_size >= 1, "an integer of at least 1"),
            ("rate", self.rate > 0, "a number above 0"),
            ("momentum", 0 <= self.momentum < 1, "a number in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("crop_pad", self.crop_pad >= 0, "an integer of at least 0"),
        ):
            if not ok:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")


def train(
    model: nn.Module,
    data: CleanSet,
    config: TrainConfig | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    progress: bool | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> nn.Module:
    """``model`` trained in place on all of ``data`` with cross-entropy, and returned in eval mode on ``device``.

    The weights are not initialized here: seed torch before building the model.

    Args:
        model: returns logits.
        data: clean or poisoned.
        config: ``None`` for the defaults.
        seed: an integer in ``[0, 2**63)``, for the order of the samples, augmentation and dropout.
        device: ``"auto"`` is the model's device, or CUDA if the model is on the CPU and CUDA is available.
        precision: as for ``seamfast.sanitize``; float32 by default, so that a seed gives the same model everywhere.
        threads: of PyTorch for this call; ``None``: its setting; 0: its setting, or 1 if a trial step is faster so.
        progress: show a progress bar on stderr; ``None``: if stderr is a terminal.
        on_epoch: called with the number of epochs done and the mean loss of the last one.

    Raises:
        InputError, ModelError: e.g. ``labels hold 10; expected integers in [0, 10) for the model's 10 logits``, or
            ``the loss became nan at step 12; try a lower rate than 0.5``.
    """
    options: dict[str, Any] = {"seed": seed, "device": device, "precision": precision, "threads": threads}
    options |= {"progress": progress, "on_epoch": on_epoch}
    return train_on(cross_entropy, model, data, config or TrainConfig(), **options)


def train_on(
    objective: Objective,
    model: nn.Module,
    data: CleanSet,
    config: TrainConfig,
    *,
    together_with: Callable[[Optimizer], Optimizer] = lambda optimizer: optimizer,
    seed: int,
    device: str | torch.device,
    precision: str,
    threads: int | None = None,
    progress: bool | None,
    on_epoch: Callable[[int, float], None],
) -> nn.Module:
    """``train`` with another loss.

    Args:
        objective: the loss.
        together_with: wraps the model's optimizer, and may add one for other weights.
        model, data, config, seed, device, precision, threads, progress, on_epoch: as for ``train``.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    check_clean_set("data", data)
    check_precision(precision)
    threads = None if threads is None else as_integer("threads", threads, 0, MAX_THREADS)
    target = resolve_device(device, model)
    model.to(target)
    resident = Resident(as_called(model, data), target)
    num_classes = Subject.of(model, resident).num_classes
    with seeded(seed, target), in_use():  # dropout draws from torch's global generators
        some = next(wrap_around_batches(torch.arange(len(data)), min(config.batch_size, len(data)), seed)).to(target)
        if threads:
            torch.set_num_threads(threads)
        with seeded(seed, target):
            inputs, labels = resident.inputs(some), resident.labels[some]
            if threads == 0 and target.type == "cpu":
                tried = copy.deepcopy(model).train()
                choose_threads(lambda: step_seconds(tried, Precision(), inputs, labels))
            chosen = choose_precision(model, inputs, labels, precision, num_classes)
        chosen.prepare(model)

        def logits(inputs: Batch) -> Tensor:
            with chosen.computing(resident.device):
                return logits_of(model, chosen.laid_out(inputs)).float()

        model.train()
        optimizer: Optimizer
        if config.optimizer == "adam":
            optimizer = Adam(model, weight_decay=config.weight_decay)
        else:
            optimizer = SGD(model, config.momentum, config.weight_decay, nesterov=config.momentum > 0)
        step = TrainingStep(model, resident, lambda batch: objective(logits, batch), together_with(optimizer))
        _take_steps(step, config, seed, progress, on_epoch)
    if chosen.channels_last:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()


def _take_steps(
    step: TrainingStep, config: TrainConfig, seed: int, progress: bool | None, on_epoch: Callable[[int, float], None]
) -> None:
    n = len(step.data)
    steps_per_epoch = max(n // config.batch_size, 1)
    n_steps = config.epochs * steps_per_epoch
    plan = BatchPlan(
        of=torch.arange(n),
        batch_size=min(config.batch_size, n),
        max_steps=n_steps,
        augmentation=Augmentation(config.crop_pad, config.flip, seed),
        order_seed=seed,
        first_epoch=0,
        lengths=step.data.lengths,
    )
    steps, _ = stepper(step, plan, [])
    with closing(steps), progress_bar("train", "step", n_steps, progress) as bar:
        for number in range(n_steps):
            steps.take(config.rate * cosine(number / n_steps, warmup=0.2))
            bar.update()
            if (number + 1) % steps_per_epoch == 0:
                bad = step.bad_step()
                if bad is not None:
                    raise ModelError(f"the loss became {bad[1]} at step {bad[0]}; try a lower rate than {config.rate}")
                on_epoch((number + 1) // steps_per_epoch, step.take_loss_sum() / steps_per_epoch)
