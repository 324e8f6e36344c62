"""What ``reactivation`` and ``reinjection`` share: stamped samples beside clean ones, and a copy of a model that an
attacker trains on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.data import CleanSet
from seamfast.data.resident import Resident
from seamfast.engine.counting import count_clean, count_triggered
from seamfast.engine.model import WorkingCopy, logits_of, resolve_device
from seamfast.engine.optimizer import SGD
from seamfast.engine.precision import check_precision, choose_precision
from seamfast.engine.subject import as_called, place
from seamfast.errors import InputError, ModelError
from seamfast.metrics import Rate
from seamfast.triggers import Trigger


def eligible_indices(trigger: Trigger, samples: CleanSet, order: Tensor, num_classes: int) -> Tensor:
    """The indices in ``order`` (int64, CPU) of samples whose label the trigger changes."""
    return order[trigger.target.eligible(samples.labels[order], num_classes)]


def with_stamped(
    data: CleanSet, source: CleanSet, parts: Sequence[tuple[Trigger, Tensor]], seed: int, num_classes: int
) -> CleanSet:
    """``data``, then the samples of ``source`` at the indices of each part, stamped and labeled by its trigger."""
    inputs, labels = data.inputs, [data.labels]
    for trigger, indices in parts:
        samples = trigger.stamp(source.stampable(indices), sample_ids=indices, seed=seed)
        if not data.modality.stores_stampable:
            samples = data.modality.inputs_like(samples, data.inputs, torch.float32, torch.device("cpu"))
        inputs = data.modality.joined(inputs, samples)
        labels.append(trigger.target.targets(source.labels[indices], num_classes))
    return CleanSet(inputs, torch.cat(labels), modality=data.modality, num_classes=num_classes)


class Attacker:
    """A model that an attacker trains: a float32 copy on ``device``, all weights trainable, and what it is tested on.

    Args:
        model: only read.
        test: what accuracies and success rates are measured on.
        device: as for ``seamfast.sanitize``.
        seed: of triggers at random places.
    """

    def __init__(self, model: nn.Module, test: CleanSet, device: str | torch.device, seed: int) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        self.device = resolve_device(device, model)
        self._copy = WorkingCopy(model, self.device)
        self._subject = place(self._copy.model, test, self.device)
        self.num_classes = self._subject.num_classes
        self._seed = seed
        self._triggers: tuple[Trigger, ...] = ()

    def will_stamp(self, triggers: Sequence[Trigger]) -> None:
        """Measure the success of ``triggers``, which must fit the test samples."""
        self._subject.check_triggers(triggers)
        self._triggers = tuple(triggers)

    def will_train_on(self, data: CleanSet, batch_size: int, precision: str) -> None:
        """Hold ``data`` ready; the precision is chosen by a batch of so many of its first samples."""
        check_precision(precision)
        self.data = Resident(as_called(self._copy.model, data), self.device)
        some = torch.arange(min(batch_size, len(data)), device=self.device)
        inputs, labels = self.data.inputs(some), self.data.labels[some]
        self._precision = choose_precision(self._copy.model, inputs, labels, precision, self.num_classes)
        self._precision.prepare(self._copy.model)

    def begin(self, rate: float, momentum: float) -> None:
        """The weights as received, and a new optimizer: SGD."""
        self._copy.reset()
        self._optimizer = SGD(self._copy.model.train(), momentum)
        self._rate = torch.tensor(rate, device=self.device)
        self._loss_sum = torch.zeros((), device=self.device)

    def step(self, indices: Tensor) -> None:
        """Cross-entropy on the samples at ``indices`` (int64, CPU) of the data, and one step of the optimizer.

        Raises:
            ModelError: the logits do not depend on the weights.
        """
        chosen = indices.to(self.device)
        with self._precision.computing(self.device):
            inputs = self._precision.laid_out(self.data.inputs(chosen))
            logits = logits_of(self._copy.model, inputs).float()
        if not logits.requires_grad:
            raise ModelError("the model's logits carry no gradient; expected a model that can be trained")
        loss = F.cross_entropy(logits, self.data.labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        self._loss_sum += loss.detach()
        self._optimizer.step(self._rate)

    def check_finite(self) -> None:
        """Raise if some loss since ``begin`` was NaN or Inf: NaN is no hit, so the success rate would be too low.

        Raises:
            ModelError: e.g. ``the loss became nan; try a lower rate than 0.01``.
        """
        total = float(self._loss_sum)
        if not math.isfinite(total):
            raise ModelError(f"the loss became {total}; try a lower rate than {float(self._rate):g}")

    def accuracy(self, indices: Tensor) -> Rate:
        """Clean accuracy on the test samples at ``indices`` (int64, CPU)."""
        counts = count_clean(self._subject, indices)
        return Rate(counts.n_correct, counts.n_samples)

    def success(self, indices: Tensor) -> tuple[Rate, ...]:
        """Attack success rate of each trigger on the eligible test samples at ``indices`` (int64, CPU)."""
        found = count_triggered(self._subject, indices, self._triggers, seed=self._seed)
        return tuple(Rate(trigger.n_hit, trigger.n_eligible) for trigger in found)
