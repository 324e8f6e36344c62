"""A ``CleanSet`` on the run's device, ready to be cut into batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from seamfast.data.clean_set import Batch, CleanSet
from seamfast.ops import TriggerTable, gather_augment, stamp_trigger


class Resident:
    """The samples of a ``CleanSet`` on ``device``, gathered by index in the form that the model takes.

    Attributes:
        samples: the set, on the CPU.
        dtype: of floating-point inputs.
        labels: ``(N,)`` int64 on the device.
        lowest, highest: ``(1, C, 1, 1)`` the range of the inputs for each channel, for images; else ``None``.
    """

    def __init__(self, samples: CleanSet, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.samples = samples
        self.device = device
        self.dtype = dtype
        self.labels = samples.labels.to(device)
        self._inputs = (
            {name: _on(value, device, dtype) for name, value in samples.inputs.items()}
            if isinstance(samples.inputs, dict)
            else _on(samples.inputs, device, dtype)
        )
        self.lowest, self.highest = self._range()

    def __len__(self) -> int:
        return len(self.samples)

    def inputs(self, indices: Tensor, *, pad: int = 0, flip: bool = False, seed: int = 0, epoch: int = 0) -> Batch:
        """The samples at ``indices`` (int64, on the device). ``pad`` and ``flip`` need a set of pixels."""
        if isinstance(self._inputs, dict):
            return {name: value[indices] for name, value in self._inputs.items()}
        if not self.samples.is_pixels:
            return self._inputs[indices]
        mean, std = self.samples.mean, self.samples.std
        assert mean is not None
        assert std is not None
        images = gather_augment(self._inputs, indices, mean=mean, std=std, pad=pad, flip=flip, seed=seed, epoch=epoch)
        return images.to(self.dtype)

    def stamped(self, indices: Tensor, triggers: TriggerTable, trigger_ids: Tensor, *, seed: int = 0) -> Tensor:
        """The samples at ``indices`` under triggers, as the model takes them; ``trigger_ids`` says which, -1 none.

        Args:
            indices: ``(B,)`` int64 on the device.
            triggers: for the shape of the images.
            trigger_ids: ``(B,)`` int64 on the device.
            seed: of random places.
        """
        images, places = self._inputs, indices
        if not self.samples.is_pixels:  # pixels are recovered from floats
            images = self.samples.pixels(indices).to(self.device)
            places = torch.arange(len(indices), device=self.device)
        assert isinstance(images, Tensor)
        mean, std = self.samples.mean, self.samples.std
        assert mean is not None
        assert std is not None
        batch = stamp_trigger(
            images,
            places,
            triggers.to(images.device),
            trigger_ids,
            mean=mean,
            std=std,
            sample_ids=indices,
            seed=seed,
        )
        return batch.to(self.dtype)

    def _range(self) -> tuple[Tensor | None, Tensor | None]:
        value = self._inputs
        if isinstance(value, dict) or value.ndim != 4 or not len(value):
            return None, None
        if self.samples.is_pixels:
            ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, value.shape[1], 1, 1)
            both = self.samples.normalize(ends).to(self.device)
            return both[:1], both[1:]
        return value.amin((0, 2, 3), keepdim=True), value.amax((0, 2, 3), keepdim=True)


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


def _on(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)
