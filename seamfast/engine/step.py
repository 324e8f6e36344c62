"""One training step, and the two ways to take it: eagerly, or replayed as a CUDA graph.

A step is: gather and augment, forward, loss, backward, optimizer, counters. Its number, rate and counters are tensors
on the device, so that it can be captured once and replayed without Python, copies or waits; the host reads the counters
when it evaluates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from seamfast.data.resident import Resident, wrap_around_batches
from seamfast.engine import graph
from seamfast.engine.optimizer import Optimizer
from seamfast.errors import ModelError
from seamfast.modalities import Augmentation, Batch
from seamfast.modalities.batch import map_tensors, named_tensors

_ROWS = 256
"""Batches whose indices are copied to the device together, for replays."""
_FEWEST_STEPS = 12
"""Capturing takes about as long as this many steps."""


@dataclass(frozen=True)
class TrainingBatch:
    """The argument of a loss.

    Attributes:
        number: of the step within its phase, from 0: the key of draws. A 0-d int64 tensor in a replayed step.
        indices, labels: ``(B,)`` int64 on the device.
        inputs: the samples as the model takes them.
    """

    number: int | Tensor
    indices: Tensor
    labels: Tensor
    inputs: Batch

    @property
    def is_replayed(self) -> bool:
        """Whether the loss is being captured: later steps repeat its operations, whatever Python decides now."""
        return isinstance(self.number, Tensor)


Loss = Callable[[TrainingBatch], Tensor]


@dataclass(frozen=True)
class BatchPlan:
    """The samples of each step of a phase, and their augmentation.

    Attributes:
        of: sample indices, int64, CPU.
        batch_size, max_steps: see ``Run.steps``.
        augmentation: of the samples.
        order_seed: of the order of the samples.
        first_epoch: number of the first pass over the samples; others in later attempts, for new augmentation.
        lengths: of all samples, to group them by; see ``wrap_around_batches``.
    """

    of: Tensor
    batch_size: int
    max_steps: int
    augmentation: Augmentation
    order_seed: int
    first_epoch: int
    lengths: Tensor | None = None

    @property
    def epoch_steps(self) -> int:
        return max(math.ceil(len(self.of) / self.batch_size), 1)

    def rows(self) -> Iterator[Tensor]:
        """The indices of each step."""
        return islice(wrap_around_batches(self.of, self.batch_size, self.order_seed, self.lengths), self.max_steps)

    def batches(self, data: Resident) -> Generator[tuple[Tensor, Batch], None, None]:
        """``(indices, inputs)`` of each step, on the device of ``data``; to be closed."""
        epochs = ((indices, self.first_epoch + n // self.epoch_steps) for n, indices in enumerate(self.rows()))
        return data.training_batches(epochs, self.augmentation)


class TrainingStep:
    """One training step on a batch.

    Attributes:
        rate: float32 0-d on the device, of the next step.
        loss_sum: 0-d on the device, float64 (float32 on MPS): losses since the last ``take_loss_sum``.
        used: names of the parameters that the loss of some step depended on.
    """

    def __init__(self, model: nn.Module, data: Resident, loss: Loss, optimizer: Optimizer) -> None:
        device = data.device
        self.model = model
        self.data = data
        self.optimizer = optimizer
        self.rate = torch.zeros((), device=device)
        self.used: set[str] = set()
        self._parameters = list(model.named_parameters())
        self._loss = loss
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.loss_sum = torch.zeros((), dtype=self._dtype, device=device)
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._bad_value = torch.zeros((), dtype=self._dtype, device=device)

    @property
    def state(self) -> list[Tensor]:
        """All tensors that a step changes, except the model, grads, generators and ``loss_sum``."""
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
        self.used.update(name for name, p in self._parameters if p.grad is not None)
        self.optimizer.step(self.rate)

    def set_rate(self, rate: float) -> None:
        """Set ``rate`` by a kernel argument, without a copy or a sync."""
        self.rate.fill_(rate)

    def bad_step(self) -> tuple[int, float] | None:
        """The first step whose loss was NaN or Inf, and that loss. Synchronizes."""
        number = int(self._bad_step)
        return None if number < 0 else (number, float(self._bad_value))

    def take_loss_sum(self) -> float:
        """``loss_sum``, which is then reset to 0. Synchronizes."""
        total = float(self.loss_sum)
        self.loss_sum.zero_()
        return total


class Eager:
    """Takes steps operation by operation, from Python."""

    def __init__(self, step: TrainingStep, plan: BatchPlan) -> None:
        self.step = step
        self._batches = plan.batches(step.data)
        self._number = 0

    def take(self, rate: float) -> None:
        self.step.set_rate(rate)
        indices, inputs = next(self._batches)
        self.step.on(self._number, indices, inputs)
        self._number += 1

    def close(self) -> None:
        self._batches.close()


class Replayed:
    """Replays the whole step as one graph.

    The graph gathers samples on the device by rows of indices there; other batches are copied to its inputs.

    Raises:
        graph.NotCaptured: the step cannot be captured, or replays differ from it; the model, the optimizer and the
            generators are restored.
    """

    def __init__(self, step: TrainingStep, plan: BatchPlan, generators: list[torch.Generator]) -> None:
        self.step = step
        self._plan = plan
        device = step.data.device
        self._number = torch.zeros((), dtype=torch.int64, device=device)
        self._n_taken = 0
        self._batches: Generator[tuple[Tensor, Batch], None, None] | None = None
        if step.data.gathers_on_device:
            self._rows = torch.zeros(min(_ROWS, plan.max_steps), plan.batch_size, dtype=torch.int64, device=device)
            self._drawn = plan.rows()
            self._fill_rows()
            body = self._gathering
        else:
            self._batches = plan.batches(step.data)
            self._pending: tuple[Tensor, Batch] | None = next(self._batches)
            self._indices, inputs = self._pending
            self._inputs = map_tensors(torch.clone, inputs)
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
            static = named_tensors(self._inputs)
            for name, value in named_tensors(inputs).items():
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
        plan = self._plan
        epoch = torch.div(self._number, plan.epoch_steps, rounding_mode="floor") + plan.first_epoch
        inputs = self.step.data.inputs(indices, plan.augmentation, epoch)
        self.step.on(self._number, indices, inputs)
        self._number += 1

    def _given(self) -> None:
        self.step.on(self._number, self._indices, self._inputs)
        self._number += 1

    def _fill_rows(self) -> None:
        rows = list(islice(self._drawn, len(self._rows)))
        self._rows[: len(rows)].copy_(torch.stack(rows))


Stepper = Eager | Replayed
"""Takes the steps of a phase, one after the other."""


def stepper(step: TrainingStep, plan: BatchPlan, generators: list[torch.Generator]) -> tuple[Stepper, str]:
    """The faster stepper that works, and its name: ``"cuda graph"``, or ``"eager: "`` with the reason."""
    why_not = graph.why_not(step.data.device)
    if why_not is None and plan.max_steps < _FEWEST_STEPS:
        why_not = f"{plan.max_steps} steps are fewer than capturing costs"
    if why_not is None:
        try:
            return Replayed(step, plan, generators), "cuda graph"
        except graph.NotCaptured as error:
            why_not = str(error)
    return Eager(step, plan), f"eager: {why_not}"
