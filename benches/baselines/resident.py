"""As a good engineer writes it in an afternoon: data resident and normalized once, the fastest format, few syncs.

The clean set lies in memory as float32, normalized, channels last where that is the model's layout; a batch is an
``index_select`` by a random permutation (augmentation by reflected padding, slicing and flipping a batch, where the
schedule has it). Number format and layout are what seamfast's probe found for this model, handed over for free. No
``.item()`` but one an evaluation; evaluation in batches of 512. With ``compiles``, student and teacher go through
``torch.compile`` (default mode).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benches.baselines.schedule import Schedule, ends_of, frozen, loss_of
from seamfast.engine.precision import Precision


def run(schedule: Schedule, model: nn.Module, precision: Precision, compiles: bool = False) -> nn.Module:
    device = next(model.parameters()).device
    split, c = schedule.split(), schedule.config
    clean = schedule.clean
    assert isinstance(clean.inputs, Tensor)
    images = precision.laid_out(clean.normalize(clean.inputs).to(device))
    assert isinstance(images, Tensor)
    trained, teacher = copy.deepcopy(model), frozen(model)
    for net in (trained, teacher):
        precision.prepare(net)
    student_, teacher_ = (torch.compile(net) if compiles else net for net in (trained, teacher))
    classes = int(clean.labels.max()) + 1
    ends, generator = ends_of(clean, device), torch.Generator(device).manual_seed(schedule.seed)
    all_labels = clean.labels.to(device)

    def forward(net: nn.Module) -> object:
        def call(x: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision.bf16):
                return net(precision.laid_out(x)).float()

        return call

    def accuracy(part: Tensor) -> float:
        trained.eval()
        with torch.no_grad():
            right = [
                (forward(trained)(images[some]).argmax(1) == all_labels[some]).sum()
                for some in part.to(device).split(512)
            ]
        return float(torch.stack(right).sum()) / len(part)

    teacher_weight, changes = torch.ones((), device=device), torch.ones((), device=device)
    received = accuracy(split.holdout)
    for phase, part in (("forget", split.forget), ("recover", split.recovery)):
        optimizer = schedule.optimizer(trained, phase)
        batches, watched = endless(part.to(device), c.batch_size), schedule.watched(split, phase)
        for step in range(schedule.steps(phase)):
            trained.train()
            chosen = next(batches)
            inputs = augmented(images[chosen], c.crop_pad, c.flip)
            labels = all_labels[chosen]
            student, asked = forward(student_), forward(teacher_)
            changes.fill_(schedule.changes(phase, step))
            loss = loss_of(
                schedule, phase, inputs, labels, student, asked, ends, generator, classes, teacher_weight, changes
            )
            loss.backward()
            optimizer.step(schedule.rate(phase, step))
            if schedule.evaluates_after(phase, step):
                now = accuracy(watched)
                if phase == "recover":
                    teacher_weight.fill_(schedule.teacher_weight(received - now, len(split.holdout)))
    return trained.to(memory_format=torch.contiguous_format)


def endless(part: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Batches of random permutations, one after the other: a smaller set comes more than once in a batch."""
    order = part[:0]
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, part[torch.randperm(len(part), device=part.device)]])
        yield order[:batch_size]
        order = order[batch_size:]


def augmented(images: Tensor, pad: int, flips: bool) -> Tensor:
    """One crop and one flip for the whole batch: cheaper than one an image, as many do it."""
    if pad:
        height, width = images.shape[2:]
        down, right = torch.randint(0, 2 * pad + 1, (2,)).tolist()
        padded = torch.nn.functional.pad(images, (pad,) * 4, mode="reflect")
        images = padded[:, :, down : down + height, right : right + width]
    return images.flip(3) if flips and torch.rand(()) < 0.5 else images
