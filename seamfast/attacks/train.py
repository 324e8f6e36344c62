"""Training from scratch: what plants a backdoor in poisoned data, and the baseline that a cure is timed against."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from tqdm import tqdm

from seamfast.data import Batch, CleanSet
from seamfast.data.resident import Resident, wrap_around_batches
from seamfast.engine.host import in_use, seeded
from seamfast.engine.model import logits_of, resolve_device
from seamfast.engine.optimizer import SGD, Adam, Optimizer
from seamfast.engine.precision import Precision, check_precision, choose_precision
from seamfast.engine.step import Draws, TrainingBatch, TrainingStep, stepper
from seamfast.errors import ConfigError, InputError, ModelError
from seamfast.evaluate import probe_logits
from seamfast.methods.config import check_type
from seamfast.methods.schedules import cosine
from seamfast.ops import true_label_cross_entropy

Objective = Callable[[Callable[[Batch], Tensor], TrainingBatch], Tensor]
"""The loss of a batch, in nats: a 0-d tensor. It is given the model's float32 logits as a function of the inputs."""


def cross_entropy(logits: Callable[[Batch], Tensor], batch: TrainingBatch) -> Tensor:
    """The mean over the batch: the objective of plain training."""
    return true_label_cross_entropy(logits(batch.inputs), batch.labels)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of training: one cycle of warm-up and cosine.

    Attributes:
        optimizer: ``"sgd"``, with Nesterov momentum; or ``"adam"``, for transformers.
        epochs: passes over the data, at least 1.
        batch_size: samples a step, at least 1.
        rate: peak learning rate, above 0; Adam wants less than SGD, 1e-3 say.
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
            check_type(f.name, str(f.type), getattr(self, f.name))
        for name, ok, wanted in (
            ("optimizer", self.optimizer in ("sgd", "adam"), "'sgd' or 'adam'"),
            ("epochs", self.epochs >= 1, "an integer of at least 1"),
            ("batch_size", self.batch_size >= 1, "an integer of at least 1"),
            ("rate", self.rate > 0, "a number above 0"),
            ("momentum", 0 <= self.momentum < 1, "a number in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("crop_pad", self.crop_pad >= 0, "an integer of at least 0"),
        ):
            if not ok:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {wanted}")


def train(
    model: nn.Module,
    data: CleanSet,
    config: TrainConfig | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    progress: bool | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> nn.Module:
    """``model`` trained in place on all of ``data`` with cross-entropy, and returned in eval mode on ``device``.

    The weights start as they are: seed torch before building the model.

    Args:
        model: returns logits.
        data: clean or poisoned.
        config: ``None`` for the defaults.
        seed: an integer in ``[0, 2**63)``: order of the samples, augmentation, dropout.
        device: ``"auto"``: where the model is, or CUDA if it is on the CPU and there is one.
        precision: as for ``seamfast.sanitize``; float32 by default, so that a seed gives the same model everywhere.
        progress: show a progress bar on stderr; ``None``: where that is a terminal.
        on_epoch: called with the number of epochs done and the mean loss of the last.

    Raises:
        InputError, ModelError: e.g. ``labels hold 10; expected integers in [0, 10) for the model's 10 logits``, or
            ``the loss became nan at step 12; try a lower rate than 0.5``.
    """
    config = config or TrainConfig()
    return train_on(
        cross_entropy,
        model,
        data,
        config,
        seed=seed,
        device=device,
        precision=precision,
        progress=progress,
        on_epoch=on_epoch,
    )


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
    progress: bool | None,
    on_epoch: Callable[[int, float], None],
) -> nn.Module:
    """``train`` with another loss.

    Args:
        objective: the loss.
        together_with: makes of the model's optimizer the one that is used, which may train other weights too.
        model, data, config, seed, device, precision, progress, on_epoch: as for ``train``.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(data, CleanSet):
        raise InputError(f"data is a {type(data).__name__}; expected a seamfast.CleanSet")
    if not len(data):
        raise InputError("data holds no samples; expected at least one")
    check_precision(precision)
    target = resolve_device(device, model)
    model.to(target)
    resident = Resident(data, target)
    num_classes = probe_logits(model, resident)
    with seeded(seed, target), in_use():  # dropout draws from torch's global generators
        some = next(wrap_around_batches(torch.arange(len(data)), min(config.batch_size, len(data)), seed)).to(target)
        with seeded(seed, target):
            chosen = choose_precision(model, resident.inputs(some), resident.labels[some], precision, num_classes)
        chosen.prepare(model)
        _train(
            objective,
            model,
            resident,
            config,
            chosen,
            together_with=together_with,
            seed=seed,
            progress=progress,
            on_epoch=on_epoch,
        )
    if chosen.channels_last:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()


def _train(
    objective: Objective,
    model: nn.Module,
    resident: Resident,
    config: TrainConfig,
    precision: Precision,
    *,
    together_with: Callable[[Optimizer], Optimizer],
    seed: int,
    progress: bool | None,
    on_epoch: Callable[[int, float], None],
) -> None:
    def logits(inputs: Batch) -> Tensor:
        with precision.computing(resident.device):
            return logits_of(model, precision.laid_out(inputs)).float()

    def loss(batch: TrainingBatch) -> Tensor:
        return objective(logits, batch)

    model.train()
    optimizer: Optimizer
    if config.optimizer == "adam":
        optimizer = Adam(model, weight_decay=config.weight_decay)
    else:
        optimizer = SGD(model, config.momentum, config.weight_decay, nesterov=config.momentum > 0)
    optimizer = together_with(optimizer)
    batch_size = min(config.batch_size, len(resident))
    steps_an_epoch = max(len(resident) // config.batch_size, 1)
    n_steps = config.epochs * steps_an_epoch
    draws = Draws(
        of=torch.arange(len(resident)),
        batch_size=batch_size,
        max_steps=n_steps,
        pad=config.crop_pad,
        flip=config.flip,
        order_seed=seed,
        seed=seed,
        first_epoch=0,
    )
    steps, _ = stepper(TrainingStep(model, resident, loss, optimizer), draws, [])
    shown = sys.stderr.isatty() if progress is None else progress
    with closing(steps), tqdm(total=n_steps, desc="train", unit="step", disable=not shown, leave=False) as bar:
        for step in range(n_steps):
            steps.take(config.rate * cosine(step / n_steps, warmup=0.2))
            bar.update()
            if (step + 1) % steps_an_epoch == 0:
                bad = steps.step.bad_step()
                if bad is not None:
                    raise ModelError(f"the loss became {bad[1]} at step {bad[0]}; try a lower rate than {config.rate}")
                on_epoch((step + 1) // steps_an_epoch, steps.step.take_loss_sum() / steps_an_epoch)
