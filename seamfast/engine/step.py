"""One training step as one object, and the two ways to take it: eagerly, or replayed as a CUDA graph.

A step is: gather and augment, forward, loss, backward, optimizer, counters. Its number, rate and counters are tensors
on the device, so that it can be captured once and replayed without Python, copies or waits; the host reads the counters
where it evaluates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn

from seamfast.data.clean_set import Batch
from seamfast.data.resident import Resident, wrap_around_batches
from seamfast.engine import graph
from seamfast.engine.optimizer import Optimizer
from seamfast.errors import ModelError

_ROWS = 256
"""How many batches' indices lie on the device at once for replays: the host waits for one copy in so many steps."""
_FEWEST_STEPS = 12
"""Capturing costs about as much as so many steps."""


@dataclass(frozen=True)
class TrainingBatch:
    """What a loss is computed on.

    Attributes:
        number: of the step within its phase, from 0: what draws are keyed by. A 0-d int64 tensor where the step is
            replayed.
        indices, labels: ``(B,)`` int64 on the device.
        inputs: the samples as the model takes them.
    """

    number: int | Tensor
    indices: Tensor
    labels: Tensor
    inputs: Batch


Loss = Callable[[TrainingBatch], Tensor]


@dataclass(frozen=True)
class Draws:
    """Which samples each step of a phase sees, and how they are augmented.

    Attributes:
        of: sample indices, int64, CPU.
        batch_size, max_steps: see ``Run.steps``.
        pad, flip: augmentation, for pixel sets.
        order_seed: of the order of the samples.
        seed: of the augmentation.
        first_epoch: number of the first pass over the samples: later attempts draw new augmentation.
    """

    of: Tensor
    batch_size: int
    max_steps: int
    pad: int
    flip: bool
    order_seed: int
    seed: int
    first_epoch: int

    @property
    def epoch_steps(self) -> int:
        return max(math.ceil(len(self.of) / self.batch_size), 1)

    def rows(self) -> Iterator[Tensor]:
        """The indices of each step."""
        return islice(wrap_around_batches(self.of, self.batch_size, self.order_seed), self.max_steps)

    def batches(self, data: Resident) -> Generator[tuple[Tensor, Batch], None, None]:
        """``(indices, inputs)`` of each step, on the device of ``data``; to be closed."""
        epochs = ((indices, self.first_epoch + n // self.epoch_steps) for n, indices in enumerate(self.rows()))
        return data.training_batches(epochs, pad=self.pad, flip=self.flip, seed=self.seed)


class TrainingStep:
    """The step itself, on one batch.

    Attributes:
        rate: float32 0-d on the device, of the next step.
        loss_sum: 0-d on the device, float64 where it has that, since the last ``take_loss_sum``.
    """

    def __init__(self, model: nn.Module, data: Resident, loss: Loss, optimizer: Optimizer) -> None:
        device = data.device
        self.model = model
        self.data = data
        self.optimizer = optimizer
        self.rate = torch.zeros((), device=device)
        self._loss = loss
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # which that has not
        self.loss_sum = torch.zeros((), dtype=self._dtype, device=device)
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._bad_value = torch.zeros((), dtype=self._dtype, device=device)

    @property
    def state(self) -> list[Tensor]:
        """All that a step changes, beside the model, grads, generators and ``loss_sum``."""
        return [*self.optimizer.state, self._bad_step, self._bad_value]

    def on(self, number: int | Tensor, indices: Tensor, inputs: Batch) -> None:
        """Forward, loss, backward, update, counters.

        Raises:
            ModelError: the loss does not depend on the weights.
        """
        loss = self._loss(TrainingBatch(number, indices, self.data.labels[indices], inputs))
        value = loss.detach().to(self._dtype)
        fresh = (self._bad_step < 0) & ~torch.isfinite(value)
        self._bad_step.copy_(torch.where(fresh, number, self._bad_step))
        self._bad_value.copy_(torch.where(fresh, value, self._bad_value))
        self.loss_sum += value
        if not loss.requires_grad:
            raise ModelError(
                "the model's logits carry no gradient; expected a model that can be trained, without no_grad or detach "
                "in its forward"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(self.rate)

    def set_rate(self, rate: float) -> None:
        """Written as an argument of a kernel: nothing is copied, nothing waits."""
        self.rate.fill_(rate)

    def bad_step(self) -> tuple[int, float] | None:
        """The first step whose loss was NaN or Inf, and that loss. Waits for the device."""
        number = int(self._bad_step)
        return None if number < 0 else (number, float(self._bad_value))

    def take_loss_sum(self) -> float:
        """``loss_sum``, which then begins anew. Waits for the device."""
        total = float(self.loss_sum)
        self.loss_sum.zero_()
        return total


class Stepper(Protocol):
    """A way to take the steps of a phase, one after the other."""

    step: TrainingStep

    def take(self, rate: float) -> None: ...

    def close(self) -> None: ...


class Eager:
    """Operation by operation, from Python."""

    def __init__(self, step: TrainingStep, draws: Draws) -> None:
        self.step = step
        self._batches = draws.batches(step.data)
        self._number = 0

    def take(self, rate: float) -> None:
        self.step.set_rate(rate)
        indices, inputs = next(self._batches)
        self.step.on(self._number, indices, inputs)
        self._number += 1

    def close(self) -> None:
        self._batches.close()


class Replayed:
    """The whole step as one graph.

    Where the samples lie on the device, the graph gathers them itself, by rows of indices that lie there too; else each
    batch is copied to where the graph reads it.

    Raises:
        graph.NotCaptured: the step cannot be captured, or what was captured does not do the same; the model, the
            optimizer and the generators are as they were.
    """

    def __init__(self, step: TrainingStep, draws: Draws, generators: list[torch.Generator]) -> None:
        self.step = step
        self._draws = draws
        device = step.data.device
        self._number = torch.zeros((), dtype=torch.int64, device=device)
        self._n_taken = 0
        self._batches: Generator[tuple[Tensor, Batch], None, None] | None = None
        if step.data.draws_at_home:
            self._rows = torch.zeros(min(_ROWS, draws.max_steps), draws.batch_size, dtype=torch.int64, device=device)
            self._drawn = draws.rows()
            self._fill_rows()
            body = self._gathering
        else:
            self._batches = draws.batches(step.data)
            self._pending: tuple[Tensor, Batch] | None = next(self._batches)
            self._indices, inputs = self._pending
            self._inputs = {k: v.clone() for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.clone()
            self._indices = self._indices.clone()
            body = self._given
        try:
            state = [*step.state, self._number]
            self._replay = graph.captured(body, step.model, state, step.loss_sum, step.set_rate, device, generators)
        except BaseException:
            self.close()
            raise

    def take(self, rate: float) -> None:
        self.step.set_rate(rate)
        if self._batches is not None:
            indices, inputs = self._pending or next(self._batches)
            self._pending = None
            self._indices.copy_(indices)
            static = dict(self._named(self._inputs))
            for name, value in self._named(inputs):
                static[name].copy_(value)
        elif self._n_taken and self._n_taken % len(self._rows) == 0:
            self._fill_rows()
        self._replay()
        self._n_taken += 1

    def close(self) -> None:
        if self._batches is not None:
            self._batches.close()

    def _gathering(self) -> None:
        row = torch.remainder(self._number, len(self._rows))
        indices = self._rows.index_select(0, row.view(1)).view(-1)
        draws = self._draws
        epoch = torch.div(self._number, draws.epoch_steps, rounding_mode="floor") + draws.first_epoch
        inputs = self.step.data.inputs(indices, pad=draws.pad, flip=draws.flip, seed=draws.seed, epoch=epoch)
        self.step.on(self._number, indices, inputs)
        self._number += 1

    def _given(self) -> None:
        self.step.on(self._number, self._indices, self._inputs)
        self._number += 1

    def _fill_rows(self) -> None:
        rows = list(islice(self._drawn, len(self._rows)))
        self._rows[: len(rows)].copy_(torch.stack(rows))

    @staticmethod
    def _named(inputs: Batch) -> list[tuple[str, Tensor]]:
        return list(inputs.items()) if isinstance(inputs, dict) else [("", inputs)]


def stepper(step: TrainingStep, draws: Draws, generators: list[torch.Generator]) -> tuple[Stepper, str]:
    """The fastest way that works, and which it is: ``"cuda graph"``, or ``"eager: "`` and why not the other."""
    why_not = graph.why_not(step.data.device)
    if why_not is None and draws.max_steps < _FEWEST_STEPS:
        why_not = f"{draws.max_steps} steps are fewer than capturing costs"
    if why_not is None:
        try:
            return Replayed(step, draws, generators), "cuda graph"
        except graph.NotCaptured as error:
            why_not = str(error)
    return Eager(step, draws), f"eager: {why_not}"
