"""``Resident``: a ``CleanSet`` in the memory of a run, and its batches on the run's device."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

import torch
from torch import Tensor

from seamfast.data.clean_set import CleanSet
from seamfast.data.prefetch import prefetch
from seamfast.data.rereading import AugmentingSet
from seamfast.modalities import NO_AUGMENTATION, Augmentation, Batch
from seamfast.modalities.batch import map_tensors, named_tensors, to_device
from seamfast.triggers.base import Trigger

T = TypeVar("T", bound=tuple[object, ...])

_GROUPED = 4
"""Batches that are sorted by length together. In more of them, each would see the same samples in every epoch."""


class Resident:
    """The samples of a ``CleanSet``, gathered by index into batches on ``device``, in the form that the model takes.

    The samples are stored there too, unless it is a CUDA device and they take more than half of its free memory; then
    they stay on the CPU, and a thread makes their batches ahead. If model and samples are on one device, there is no
    thread: on a CPU, gathering takes 1 to 4 % of the training of a small CNN, and a thread gained nothing.

    Attributes:
        samples: the set, on the CPU.
        device: of the batches.
        storage_device: of the samples: ``device`` or the CPU.
        dtype: of floating-point inputs.
        labels: ``(N,)`` int64 on the device.
        modality: of the samples, fitted to them.
    """

    def __init__(self, samples: CleanSet, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.samples = samples
        self.device = device
        self.storage_device = _storage_device(samples, device)
        self.dtype = dtype
        self.labels = samples.labels.to(device)
        self._inputs = to_device(samples.inputs, self.storage_device, dtype)
        # Pixels are recovered from the samples as given, not from floats of fewer bits.
        self._stamped_from = self._inputs if samples.modality.stores_stampable else samples.inputs
        self.modality = samples.modality.fitted(self._inputs, device)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> Tensor | None:
        """``(N,)`` int64, CPU: of the samples, where they differ; see ``Modality.lengths``."""
        return self.modality.lengths(self.samples.inputs)

    @property
    def gathers_on_device(self) -> bool:
        """Whether batches for training are gathered on the device, from samples that are stored there."""
        return self.storage_device == self.device and not isinstance(self.samples, AugmentingSet)

    def inputs(self, indices: Tensor, augmentation: Augmentation = NO_AUGMENTATION, epoch: int | Tensor = 0) -> Batch:
        """The samples at ``indices`` (int64), on the device."""
        batch = self._gathered(self._inputs, indices.to(self.storage_device), augmentation, epoch)
        return to_device(batch, self.device)

    def stampable(self, indices: Tensor) -> Any:
        """The samples at ``indices`` (int64, CPU), on the device, in the form on which triggers are stamped."""
        samples = self.samples.stampable(indices)
        return to_device(samples, self.device) if isinstance(samples, (Tensor, dict)) else samples

    def batches(
        self, drawn: Iterable[tuple[Tensor, int]], augmentation: Augmentation = NO_AUGMENTATION
    ) -> Generator[tuple[Tensor, Batch], None, None]:
        """``(indices, inputs(indices, augmentation, epoch))`` on the device for each pair in ``drawn``; to be closed.

        Args:
            drawn: ``(indices, epoch)``: ``(B,)`` int64 on the CPU, and at least 0. May be iterated on a thread.
            augmentation: of the samples.
        """

        def gathered() -> Generator[tuple[Tensor, Batch], None, None]:
            for indices, epoch in drawn:
                chosen = indices.to(self.storage_device)
                yield chosen, self._gathered(self._inputs, chosen, augmentation, epoch)

        return self._sent(gathered())

    def training_batches(
        self, drawn: Iterable[tuple[Tensor, int]], augmentation: Augmentation
    ) -> Generator[tuple[Tensor, Batch], None, None]:
        """``batches``, with samples that are read again if the caller's loader augments; to be closed."""
        if isinstance(self.samples, AugmentingSet):
            return self._read_anew(self.samples, drawn, augmentation)
        return self.batches(drawn, augmentation)

    def _read_anew(
        self, samples: AugmentingSet, drawn: Iterable[tuple[Tensor, int]], augmentation: Augmentation
    ) -> Generator[tuple[Tensor, Batch], None, None]:
        # Not on a thread: the caller's code may draw from global generators, as the model does.
        first = -1

        def indices_alone() -> Iterator[Tensor]:
            nonlocal first
            for indices, epoch in drawn:
                first = epoch if first < 0 else first
                yield indices

        with closing(samples.fresh(indices_alone())) as fresh:
            for number, (indices, inputs) in enumerate(fresh):
                # Crops and flips are keyed by position in the batch here, so each batch counts as an epoch.
                places = torch.arange(len(indices), device=self.device)
                stored = to_device(inputs, self.device, self.dtype)
                yield indices.to(self.device), self._gathered(stored, places, augmentation, first + number)

    def stamped_batches(
        self, drawn: Iterable[tuple[Tensor, Tensor]], triggers: Sequence[Trigger], *, seed: int = 0
    ) -> Generator[tuple[Tensor, Tensor, Batch], None, None]:
        """``(indices, trigger_ids, inputs)`` on the device for each pair in ``drawn``; to be closed.

        Args:
            drawn: ``(indices, trigger_ids)``: two ``(B,)`` int64 on the CPU; an id of -1 is no trigger. May be iterated
                on a thread.
            triggers: must fit the samples.
            seed: of random positions.
        """
        stamper = self.modality.stamper(triggers, self.storage_device)

        def stamped() -> Generator[tuple[Tensor, Tensor, Batch], None, None]:
            for indices, trigger_ids in drawn:
                chosen, ids = indices.to(self.storage_device), trigger_ids.to(self.storage_device)
                batch = stamper(self._stamped_from, chosen, ids, seed)
                yield chosen, ids, to_device(batch, self.storage_device, self.dtype)

        return self._sent(stamped())

    def _sent(self, batches: Generator[T, None, None]) -> Generator[T, None, None]:
        """Send batches from the storage device to the device."""
        return batches if self.storage_device == self.device else prefetch(batches, device=self.device)

    def _gathered(self, inputs: Batch, indices: Tensor, augmentation: Augmentation, epoch: int | Tensor) -> Batch:
        """The ``inputs`` at ``indices``, on their device, in ``dtype``."""
        batch = self.modality.gather(inputs, indices, augmentation, epoch)
        return map_tensors(lambda value: value.to(self.dtype) if value.is_floating_point() else value, batch)


def wrap_around_batches(samples: Tensor, batch_size: int, seed: int, lengths: Tensor | None = None) -> Iterator[Tensor]:
    """Endless batches of ``batch_size`` from concatenated seeded ``randperm``s.

    Every sample is drawn once before any is drawn again, and every batch has the same size: there is no partial batch,
    and a set smaller than a batch is repeated in it. With ``lengths``, int64, CPU, of all samples, each four batches
    are sorted by it: a batch is as wide as its longest sample.
    """
    generator = torch.Generator().manual_seed(seed)
    order = samples[:0]
    while True:
        while len(order) < batch_size:
            drawn = samples[torch.randperm(len(samples), generator=generator)]
            if lengths is not None:
                drawn = _grouped(drawn, batch_size, lengths, generator)
            order = torch.cat([order, drawn])
        yield order[:batch_size]
        order = order[batch_size:]


def one_pass(
    samples: Tensor, batch_size: int, generator: torch.Generator, lengths: Tensor | None = None
) -> list[Tensor]:
    """Batches of ``batch_size`` of one ``randperm`` of the samples: each once, the last batch smaller.

    A last batch of one sample, which BatchNorm could not train on, is left out. ``lengths`` is as for
    ``wrap_around_batches``.
    """
    drawn = samples[torch.randperm(len(samples), generator=generator)]
    if lengths is not None:
        drawn = _grouped(drawn, batch_size, lengths, generator)
    batches = list(torch.split(drawn, batch_size))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def _grouped(drawn: Tensor, batch_size: int, lengths: Tensor, generator: torch.Generator) -> Tensor:
    """Samples of about one length side by side, in a random order of batches."""
    batches: list[Tensor] = []
    for part in torch.split(drawn, _GROUPED * batch_size):
        batches += torch.split(part[lengths[part].argsort(stable=True)], batch_size)
    order = torch.randperm(len(batches), generator=generator).tolist()
    return torch.cat([batches[i] for i in sorted(order, key=lambda i: (len(batches[i]) < batch_size, order[i]))])


def _storage_device(samples: CleanSet, device: torch.device) -> torch.device:
    """``device``, if the samples leave half of its free memory to the model; else the CPU."""
    if device.type != "cuda":
        return device
    n_bytes = sum(value.numel() * value.element_size() for value in named_tensors(samples.inputs).values())
    return device if n_bytes <= torch.cuda.mem_get_info(device)[0] // 2 else torch.device("cpu")
