"""A ``CleanSet`` where a run can reach it, ready to be cut into batches on the run's device."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor

from seamfast.data.clean_set import Batch, CleanSet
from seamfast.data.prefetch import prefetch
from seamfast.data.rereading import AugmentingSet
from seamfast.ops import TriggerTable, gather_augment, stamp_trigger

T = TypeVar("T", bound=tuple[object, ...])


class Resident:
    """The samples of a ``CleanSet``, gathered by index in the form that the model takes: batches on ``device``.

    The samples lie there too, unless that is a CUDA device and they take more than half of the memory that is free on
    it; then they stay on the CPU, and a thread makes their batches ahead. Where model and samples are on one device
    there is no thread: on a CPU, gathering takes 1 to 4 % of the training of a small CNN, and a thread gained nothing.

    Attributes:
        samples: the set, on the CPU.
        device: where the batches go.
        home: where the samples lie: ``device`` or the CPU.
        dtype: of floating-point inputs.
        labels: ``(N,)`` int64 on the device.
        lowest, highest: ``(1, C, 1, 1)`` the range of the inputs for each channel, for images; else ``None``.
    """

    def __init__(self, samples: CleanSet, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.samples = samples
        self.device = device
        self.home = _home(samples, device)
        self.dtype = dtype
        self.labels = samples.labels.to(device)
        self._inputs = (
            {name: _on(value, self.home, dtype) for name, value in samples.inputs.items()}
            if isinstance(samples.inputs, dict)
            else _on(samples.inputs, self.home, dtype)
        )
        self.lowest, self.highest = self._range()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def draws_at_home(self) -> bool:
        """Whether batches for training are gathered on the device itself, from samples that lie there."""
        return self.home == self.device and not isinstance(self.samples, AugmentingSet)

    def inputs(
        self, indices: Tensor, *, pad: int = 0, flip: bool = False, seed: int = 0, epoch: int | Tensor = 0
    ) -> Batch:
        """The samples at ``indices`` (int64), on the device. ``pad`` and ``flip`` need a set of pixels."""
        batch = self._gathered(indices.to(self.home), pad, flip, seed, epoch)
        if isinstance(batch, dict):
            return {name: value.to(self.device) for name, value in batch.items()}
        return batch.to(self.device)

    def batches(
        self, drawn: Iterable[tuple[Tensor, int]], *, pad: int = 0, flip: bool = False, seed: int = 0
    ) -> Generator[tuple[Tensor, Batch], None, None]:
        """``(indices, inputs(indices, epoch=epoch))`` on the device for each ``(indices, epoch)``; to be closed.

        Args:
            drawn: ``(B,)`` int64 on the CPU, and the number of the pass, at least 0. May be iterated on a thread.
            pad, flip, seed: as for ``inputs``.
        """

        def made() -> Generator[tuple[Tensor, Batch], None, None]:
            for indices, epoch in drawn:
                chosen = indices.to(self.home)
                yield chosen, self._gathered(chosen, pad, flip, seed, epoch)

        return self._sent(made())

    def training_batches(
        self, drawn: Iterable[tuple[Tensor, int]], *, pad: int = 0, flip: bool = False, seed: int = 0
    ) -> Generator[tuple[Tensor, Batch], None, None]:
        """``batches``, of samples drawn anew where the caller's loader augments; to be closed."""
        if isinstance(self.samples, AugmentingSet):
            return self._drawn_anew(self.samples, drawn, pad, flip, seed)
        return self.batches(drawn, pad=pad, flip=flip, seed=seed)

    def _drawn_anew(
        self, samples: AugmentingSet, drawn: Iterable[tuple[Tensor, int]], pad: int, flip: bool, seed: int
    ) -> Generator[tuple[Tensor, Batch], None, None]:
        # On no thread of ours: the caller's code may draw from global generators, as the model does.
        first = -1

        def indices_alone() -> Iterator[Tensor]:
            nonlocal first
            for indices, epoch in drawn:
                first = epoch if first < 0 else first
                yield indices

        with closing(samples.fresh(indices_alone())) as fresh:
            for number, (indices, inputs) in enumerate(fresh):
                if isinstance(inputs, dict):
                    batch: Batch = {name: _on(value, self.device, self.dtype) for name, value in inputs.items()}
                elif samples.is_pixels:
                    # Crops and flips go by place in the batch here, so each batch counts as an epoch of its own.
                    rows = torch.arange(len(inputs), device=self.device)
                    batch = self._normalized(inputs.to(self.device), rows, pad, flip, seed, first + number)
                else:
                    batch = _on(inputs, self.device, self.dtype)
                yield indices.to(self.device), batch

    def stamped_batches(
        self, drawn: Iterable[tuple[Tensor, Tensor]], triggers: TriggerTable, *, seed: int = 0
    ) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """``(indices, trigger_ids, images)`` on the device for each ``(indices, trigger_ids)``; to be closed.

        The images are the samples at the indices, as the model takes them, under the triggers that the ids name, -1
        being none.

        Args:
            drawn: two ``(B,)`` int64 on the CPU. May be iterated on a thread.
            triggers: for the shape of the images.
            seed: of random places.
        """
        table = triggers.to(self.home)

        def made() -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
            for indices, trigger_ids in drawn:
                chosen, ids = indices.to(self.home), trigger_ids.to(self.home)
                yield chosen, ids, self._stamped(chosen, table, ids, seed)

        return self._sent(made())

    def _sent(self, made: Generator[T, None, None]) -> Generator[T, None, None]:
        """The batches of ``made``, which makes them at home, on the device."""
        return made if self.home == self.device else prefetch(made, device=self.device)

    def _gathered(self, indices: Tensor, pad: int, flip: bool, seed: int, epoch: int | Tensor) -> Batch:
        """``inputs``, all at home."""
        if isinstance(self._inputs, dict):
            return {name: value[indices] for name, value in self._inputs.items()}
        if not self.samples.is_pixels:
            return self._inputs[indices]
        return self._normalized(self._inputs, indices, pad, flip, seed, epoch)

    def _normalized(
        self, pixels: Tensor, indices: Tensor, pad: int, flip: bool, seed: int, epoch: int | Tensor
    ) -> Tensor:
        mean, std = self.samples.mean, self.samples.std
        assert mean is not None
        assert std is not None
        images = gather_augment(pixels, indices, mean=mean, std=std, pad=pad, flip=flip, seed=seed, epoch=epoch)
        return images.to(self.dtype)

    def _stamped(self, indices: Tensor, triggers: TriggerTable, trigger_ids: Tensor, seed: int) -> Tensor:
        """One of ``stamped_batches``, all at home."""
        images, places = self._inputs, indices
        if not self.samples.is_pixels:  # pixels are recovered from floats
            images = self.samples.pixels(indices).to(self.home)
            places = torch.arange(len(indices), device=self.home)
        assert isinstance(images, Tensor)
        mean, std = self.samples.mean, self.samples.std
        assert mean is not None
        assert std is not None
        batch = stamp_trigger(images, places, triggers, trigger_ids, mean=mean, std=std, sample_ids=indices, seed=seed)
        return batch.to(self.dtype)

    def _range(self) -> tuple[Tensor | None, Tensor | None]:
        value = self._inputs
        if isinstance(value, dict) or value.ndim != 4 or not len(value):
            return None, None
        if self.samples.is_pixels:
            ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, value.shape[1], 1, 1)
            both = self.samples.normalize(ends)
        else:
            both = torch.cat([value.amin((0, 2, 3), keepdim=True), value.amax((0, 2, 3), keepdim=True)])
        both = both.to(self.device)
        return both[:1], both[1:]


def wrap_around_batches(samples: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of ``batch_size`` from one seeded ``randperm`` after another, laid end to end.

    Every sample is drawn once before any is drawn again, and every batch has the same size: no partial last batch, and
    a set smaller than a batch comes more than once in it, each time under draws of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    order = samples[:0]
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, samples[torch.randperm(len(samples), generator=generator)]])
        yield order[:batch_size]
        order = order[batch_size:]


def _home(samples: CleanSet, device: torch.device) -> torch.device:
    """Where to keep the samples of a run: on its device, if they leave half of the memory there to the model."""
    if device.type != "cuda":
        return device
    values = samples.inputs.values() if isinstance(samples.inputs, dict) else [samples.inputs]
    n_bytes = sum(value.numel() * value.element_size() for value in values)
    return device if n_bytes <= torch.cuda.mem_get_info(device)[0] // 2 else torch.device("cpu")


def _on(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)
