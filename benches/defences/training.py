"""What the defences share: how they are called, the copy that they train, and the batches of an epoch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

import seamfast
from seamfast.data.resident import one_pass
from seamfast.engine.host import in_use, seeded
from seamfast.engine.model import logits_of
from seamfast.engine.precision import choose_precision
from seamfast.modalities import NO_AUGMENTATION, Augmentation, Batch, ImageModality
from seamfast.modalities.batch import call, map_tensors


@dataclass(frozen=True)
class Defended:
    """What a defence gives back.

    Attributes:
        model: the defended copy, in eval mode, on the received model's device.
        n_steps: optimizer steps; of every model that was trained on the way.
        seconds: of the whole defence.
    """

    model: nn.Module
    n_steps: int
    seconds: float


class Defence(Protocol):
    """One shape of call for all; see the package."""

    def __call__(
        self, model: nn.Module, clean: seamfast.CleanSet, *, seed: int, augment: tuple[int, bool]
    ) -> Defended: ...


class Training:
    """A defence at work, from its first second to its last; a context, within which torch's generators are seeded.

    Args:
        received: never modified.
        clean: uint8 pixels, texts or vectors; all of them are trained on.
        seed: of the order of the samples, augmentation, dropout and new weights.
        augment: ``(crop_pad, flip)``.
        batch_size: of all batches but the last of an epoch.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``, as for ``seamfast.sanitize``.

    Raises:
        ValueError: ``clean holds torch.float32; expected uint8 pixels``.
    """

    def __init__(
        self,
        received: nn.Module,
        clean: seamfast.CleanSet,
        *,
        seed: int,
        augment: tuple[int, bool],
        batch_size: int,
        precision: str,
    ) -> None:
        if isinstance(clean.modality, ImageModality) and not clean.modality.is_pixels:
            assert isinstance(clean.inputs, Tensor)
            raise ValueError(f"clean holds {clean.inputs.dtype}; expected uint8 pixels")
        self._begin = time.perf_counter()
        self._received = received
        self._clean = clean
        self._seed = seed
        self._augmentation = Augmentation(*augment, seed)
        self._batch_size = batch_size
        self._wanted = precision
        self.device = next(received.parameters()).device
        self._inputs = map_tensors(lambda value: value.to(self.device), clean.inputs)
        self._labels = clean.labels.to(self.device)
        self._lengths = clean.modality.lengths(clean.inputs)
        self._order = torch.Generator().manual_seed(seed)
        self._stack = ExitStack()
        self.num_classes = clean.num_classes or int(clean.labels.max()) + 1
        self.n_steps = 0
        self._received_accuracy: float | None = None

    def __enter__(self) -> Training:
        with ExitStack() as stack:
            stack.enter_context(seeded(self._seed, self.device))
            stack.enter_context(in_use())
            some = torch.arange(min(self._batch_size, len(self._labels)), device=self.device)
            with seeded(self._seed, self.device):  # what is tried may draw
                self.precision = choose_precision(
                    self._received, self._gathered(some, 0), self._labels[some], self._wanted, self.num_classes
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def copy(self) -> nn.Module:
        """A copy of the received model, all its weights trainable, in train mode."""
        model = copy.deepcopy(self._received).requires_grad_(True).train()
        model.zero_grad(set_to_none=True)
        self.precision.prepare(model)
        return model

    @property
    def pixel(self) -> Tensor:
        """``1 / std``, ``(1, C, 1, 1)`` or ``(1, 1, 1, 1)``: the change of an input as its pixel goes from 0 to 1."""
        assert self._clean.std is not None
        return 1 / torch.tensor(self._clean.std, device=self.device).view(1, -1, 1, 1)

    @property
    def steps_an_epoch(self) -> int:
        """``ceil(N / batch_size)``, less one where the last batch would be a single sample."""
        return len(one_pass(torch.arange(len(self._labels)), self._batch_size, torch.Generator()))

    def batches(self, epoch: int) -> Iterator[tuple[Batch, Tensor]]:
        """Every sample once, in a new order, under crops and flips of its own: ``(inputs, labels)`` for one step each.

        Texts of about one length come together, as where seamfast trains. The last batch of an epoch is smaller. A last
        batch of one sample, which BatchNorm could not train on, is left out.
        """
        samples = torch.arange(len(self._labels))
        for indices in one_pass(samples, self._batch_size, self._order, self._lengths):
            chosen = indices.to(self.device)
            self.n_steps += 1
            yield self._gathered(chosen, epoch, self._augmentation), self._labels[chosen]

    def as_they_are(self) -> Iterator[tuple[Batch, Tensor]]:
        """Every sample once, in order and not augmented, to look at: ``(inputs, labels)``."""
        for chosen in torch.arange(len(self._labels), device=self.device).split(512):
            yield self._gathered(chosen, 0), self._labels[chosen]

    def logits(self, model: nn.Module, inputs: Batch) -> Tensor:
        """Float32 logits, computed in the precision that was found."""
        with self.precision.computing(self.device):
            return logits_of(model, self.precision.laid_out(inputs)).float()

    def accuracy(self, model: nn.Module) -> float:
        """Of ``model``, in eval mode, on the clean budget as it is: a share in [0, 1]. Its mode is put back."""
        was_training = model.training
        model.eval()
        with torch.no_grad():
            n_right = sum((self.logits(model, x).argmax(1) == labels).sum() for x, labels in self.as_they_are())
        model.train(was_training)
        return int(n_right) / len(self._labels)

    def is_intact(self, model: nn.Module, share: float = 0.9) -> bool:
        """Whether ``model`` has at least ``share`` of the accuracy that the received model has on the clean budget."""
        if self._received_accuracy is None:
            self._received_accuracy = self.accuracy(self.copy())
        return self.accuracy(model) >= share * self._received_accuracy

    def finish(self, model: nn.Module) -> Defended:
        """``model``, which was trained here, as what the defence gives back.

        Raises:
            FloatingPointError: ``the weights hold NaN or Inf after 320 steps``.
        """
        if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
            raise FloatingPointError(f"the weights hold NaN or Inf after {self.n_steps} steps")
        model.zero_grad(set_to_none=True)
        for trained, given in zip(model.parameters(), self._received.parameters(), strict=True):
            trained.requires_grad_(given.requires_grad)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return Defended(model.eval(), self.n_steps, time.perf_counter() - self._begin)

    def _gathered(self, chosen: Tensor, epoch: int, augmentation: Augmentation = NO_AUGMENTATION) -> Batch:
        return self._clean.modality.gather(self._inputs, chosen, augmentation, epoch)


def best_attempt(training: Training, trained: Callable[[float], nn.Module], settings: tuple[float, ...]) -> nn.Module:
    """``trained`` at one setting after the other until it is intact; the most accurate on the clean budget."""
    attempts: list[nn.Module] = []
    for setting in settings:
        attempts.append(trained(setting))
        if training.is_intact(attempts[-1]):
            break
    return max(attempts, key=training.accuracy)


def tuned_with_new_head(
    training: Training,
    renew: Callable[[nn.Linear, Tensor], None],
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    epochs: int,
    rate: float,
    momentum: float | None,
) -> nn.Module:
    """A copy with a new head; after each step, the norm of the head's weight is the received one.

    Args:
        training: the defence at work.
        renew: ``renew(head, received)`` initializes the head; ``received`` is its weight as received.
        loss: ``loss(logits, labels, weight, received)``, with the weight of the head.
        epochs: the rate follows half a cosine over them, stepped once an epoch.
        rate: the highest.
        momentum: of SGD; ``None``: AdamW instead.
    """
    student = training.copy()
    head = find_head(student, map_tensors(lambda value: value[:2], next(training.as_they_are())[0]))
    received = head.weight.detach().clone()
    renew(head, received)
    optimizer: torch.optim.Optimizer
    if momentum is None:
        optimizer = torch.optim.AdamW(student.parameters(), rate, weight_decay=0.0)
    else:
        optimizer = torch.optim.SGD(student.parameters(), rate, momentum)
    for epoch in range(epochs):
        set_rate(optimizer, 0.5 * rate * (1 + math.cos(math.pi * epoch / epochs)))
        for inputs, labels in training.batches(epoch):
            optimizer.zero_grad()
            loss(training.logits(student, inputs), labels, head.weight, received).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            set_norm(head.weight, received.norm())
    return student


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def find_head(model: nn.Module, inputs: Batch) -> nn.Linear:
    """The linear layer that is called last; the mode of ``model`` is kept.

    Args:
        model: any.
        inputs: a few samples.

    Raises:
        ValueError: ``the model has no linear layer; expected one that gives its logits``.
    """
    called: list[nn.Linear] = []

    def note(module: nn.Module, _: object, __: object) -> None:
        assert isinstance(module, nn.Linear)
        called.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Linear)]
    was_training = model.training
    try:
        with torch.no_grad():
            call(model.eval(), inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if not called:
        raise ValueError("the model has no linear layer; expected one that gives its logits")
    return called[-1]


def set_norm(weight: Tensor, norm: Tensor) -> None:
    """Scale ``weight``, in place, to the l2 norm ``norm`` over all its elements."""
    with torch.no_grad():
        weight.mul_(norm / weight.norm())
