"""As most training code is: a ``DataLoader`` with 2 workers, transforms image by image, float32, ``.item()`` a batch.

Each image goes through PIL, ``ToTensor`` and ``Normalize`` (and ``RandomCrop`` with reflected edges and
``RandomHorizontalFlip`` where the schedule augments), written as torchvision runs them; batches are collated by the
loader, shuffled anew each epoch. Each step adds its loss and its number of correct predictions to Python numbers with
``.item()``. Each evaluation is a pass over a loader of held-out samples with ``.item()`` a batch, as often and of as
many samples as the schedule says. The workers have cores of their own, if there are any; the model has one thread.

With ``SeamAuthorsConfig()`` it is the authors' public loop: batch 32, Adam, no distillation, no patterns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benches.baselines.schedule import Schedule, ends_of, frozen, loss_of


class Transformed(Dataset[tuple[Tensor, int]]):
    """One image at a time."""

    def __init__(self, schedule: Schedule, indices: Tensor, augments: bool) -> None:
        clean = schedule.clean
        assert isinstance(clean.inputs, Tensor)
        self.pixels = clean.inputs[indices].permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = clean.labels[indices].tolist()
        assert clean.mean is not None
        assert clean.std is not None
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (clean.mean, clean.std))
        self.pad, self.flips = (schedule.config.crop_pad, schedule.config.flip) if augments else (0, False)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        array = self.pixels[index]
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        if self.pad:
            edges = ((self.pad, self.pad), (self.pad, self.pad), (0, 0))[: np.asarray(image).ndim]
            padded = Image.fromarray(np.pad(np.asarray(image), edges, mode="reflect"))
            down, right = torch.randint(0, 2 * self.pad + 1, (2,)).tolist()
            image = padded.crop((right, down, right + image.width, down + image.height))
        if self.flips and torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        values = np.array(image, copy=True)
        values = values[..., None] if values.ndim == 2 else values
        tensor = torch.from_numpy(values).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return tensor.sub_(self.mean).div_(self.std), self.labels[index]


def run(schedule: Schedule, model: nn.Module) -> nn.Module:
    device = next(model.parameters()).device
    split, batch_size = schedule.split(), schedule.config.batch_size
    trained, teacher = copy.deepcopy(model), frozen(model)
    classes = int(schedule.clean.labels.max()) + 1
    ends = ends_of(schedule.clean, device)
    generator = torch.Generator(device).manual_seed(schedule.seed)

    def loader(indices: Tensor, trains: bool) -> Any:
        if trains:  # a smaller set comes more than once in a batch
            indices = indices.repeat(-(-batch_size // len(indices)))
        return DataLoader(
            Transformed(schedule, indices, trains),
            batch_size=batch_size if trains else 128,
            shuffle=trains,
            drop_last=trains,
            num_workers=2,
            pin_memory=device.type == "cuda",
            persistent_workers=True,
            worker_init_fn=lambda _: torch.set_num_threads(1),
        )

    teacher_weight, changes = torch.ones((), device=device), torch.ones((), device=device)
    received = accuracy(trained, loader(split.holdout, False), device)
    for phase, part in (("forget", split.forget), ("recover", split.recovery)):
        optimizer = schedule.optimizer(trained, phase)
        batches, held_out = endless(loader(part, True)), loader(schedule.watched(split, phase), False)
        total_loss, n_correct = 0.0, 0
        for step in range(schedule.steps(phase)):
            trained.train()
            inputs, labels = (value.to(device, non_blocking=True) for value in next(batches))
            outputs: list[Tensor] = []

            def student(x: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
                outputs.append(trained(x))
                return outputs[-1]

            changes.fill_(schedule.changes(phase, step))
            loss = loss_of(
                schedule, phase, inputs, labels, student, teacher, ends, generator, classes, teacher_weight, changes
            )
            loss.backward()
            optimizer.step(schedule.rate(phase, step))
            total_loss += loss.item()
            n_correct += (outputs[-1].argmax(1) == labels).sum().item()
            if schedule.evaluates_after(phase, step):
                now = accuracy(trained, held_out, device)
                if phase == "recover":
                    teacher_weight.fill_(schedule.teacher_weight(received - now, len(split.holdout)))
    return trained


def endless(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def accuracy(model: nn.Module, loader: Any, device: torch.device) -> float:
    model.eval()
    n_correct = n = 0
    with torch.no_grad():
        for inputs, labels in loader:
            inputs, labels = (value.to(device, non_blocking=True) for value in (inputs, labels))
            n_correct += (model(inputs).argmax(1) == labels).sum().item()
            n += len(labels)
    return n_correct / n
