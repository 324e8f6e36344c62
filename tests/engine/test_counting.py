from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.data.resident import Resident
from seamfast.engine.counting import measure
from seamfast.triggers import AllToAll, Patch, SourceSpecific

CPU = torch.device("cpu")


class Table(nn.Module):
    """Gives sample ``i`` the logits ``table[i]``; pixel (0, 0) holds ``i``, and a white last pixel adds 100."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        pixels = (images.flatten(1) * 255).round().long()
        return self.table[pixels[:, 0] + 100 * (pixels[:, -1] == 255)]


def data(labels: list[int]) -> Resident:
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels))
    return Resident(CleanSet(images, labels), CPU)


def table(clean: list[int], stamped: list[int] | None = None, num_classes: int = 3) -> Tensor:
    """One-hot logits for the classes wanted; -1 asks for a row with one NaN."""
    logits = torch.zeros(200, num_classes)
    for offset, classes in ((0, clean), (100, stamped or [])):
        for i, wanted in enumerate(classes):
            logits[offset + i, wanted] = float("nan") if wanted < 0 else 1.0
    return logits


CORNER = {"size": 1, "margin": 0}


def test_counts_by_hand() -> None:
    labels = [0, 0, 1, 1, 2, 2]
    model = Table(table([0, 1, 1, 1, 0, 2], [2, 0, 2, 1, 2, 2]))
    triggers = [
        Patch.square(**CORNER, target=2, name="to 2"),
        Patch.square(**CORNER, target=AllToAll(), name="next"),
        Patch.square(**CORNER, target=SourceSpecific((1,), 2), name="1 to 2"),
    ]
    counts = measure(model, data(labels), torch.arange(6), num_classes=3, triggers=triggers)
    assert counts.class_correct == (1, 2, 1)
    assert counts.class_total == (2, 2, 2)
    assert (counts.n_correct, counts.n_samples, counts.n_nan) == (4, 6, 0)
    assert [(t.name, t.n_eligible, t.n_hit, t.n_restored) for t in counts.triggers] == [
        ("to 2", 4, 2, 2),
        ("next", 6, 1, 4),
        ("1 to 2", 2, 1, 1),
    ]


def test_only_the_samples_asked_for_count() -> None:
    model = Table(table([0, 1, 1, 1], [2, 2, 2, 2]))
    counts = measure(
        model, data([0, 0, 1, 2]), torch.tensor([3, 0]), num_classes=3, triggers=[Patch.square(**CORNER, target=2)]
    )
    assert counts.class_total == (1, 0, 1)
    assert counts.class_correct == (1, 0, 0)
    assert (counts.triggers[0].n_eligible, counts.triggers[0].n_hit) == (1, 1)


def test_ties_go_to_the_first_class() -> None:
    logits = torch.zeros(200, 3)
    logits[1] = torch.tensor([0.0, 1.0, 1.0])
    logits[2] = -float("inf")
    counts = measure(Table(logits), data([0, 1, 0, 2]), torch.arange(4), num_classes=3)
    assert counts.class_correct == (2, 1, 0)


def test_rows_with_nan_are_wrong_whatever_else_they_hold() -> None:
    """NaN is the largest number to ``argmax``: in the true class's place it would count as right."""
    logits = torch.zeros(200, 3)
    logits[0, 0] = logits[1, 2] = logits[102, 2] = logits[103, 0] = float("nan")
    logits[1, 1], logits[2, 1], logits[3, 2], logits[100, 1] = 5.0, 1.0, 1.0, 1.0
    trigger = Patch.square(**CORNER, target=2)
    counts = measure(Table(logits), data([0, 1, 1, 1]), torch.arange(4), num_classes=3, triggers=[trigger])
    assert counts.class_correct == (0, 1, 0)
    assert counts.n_nan == 4
    assert (counts.triggers[0].n_eligible, counts.triggers[0].n_hit, counts.triggers[0].n_restored) == (4, 0, 0)


def test_classes_without_samples_have_none() -> None:
    counts = measure(Table(table([0, 1], num_classes=5)), data([0, 1]), torch.arange(2), num_classes=5)
    assert counts.class_total == (1, 1, 0, 0, 0)


def test_samples_of_the_target_class_are_not_run_through_the_model() -> None:
    model = Table(table([0, 1, 2, 0, 1, 2]))
    seen: list[tuple[int, int]] = []
    trigger = Patch.square(**CORNER, target=SourceSpecific((1,), 0))
    batches = measure(
        model,
        data([0, 1, 2, 0, 1, 2]),
        torch.arange(6),
        num_classes=3,
        triggers=[trigger],
        batch_size=3,
        on_batch=lambda done, total: seen.append((done, total)),
    )
    assert model.calls == [3, 3, 2]
    assert seen == [(3, 8), (3, 8), (2, 8)]
    assert batches.n_samples == 6


def test_no_samples_and_a_trigger_that_fits_none() -> None:
    trigger = Patch.square(**CORNER, target=SourceSpecific((2,), 0))
    model = Table(table([0, 1]))
    counts = measure(model, data([0, 1]), torch.arange(2), num_classes=3, triggers=[trigger])
    assert (counts.triggers[0].n_eligible, counts.triggers[0].n_hit) == (0, 0)
    none = measure(model, data([0, 1]), torch.arange(0), num_classes=3, triggers=[trigger])
    assert (none.n_samples, none.n_correct) == (0, 0)


@pytest.mark.gpu
def test_on_a_device_the_counts_are_those_of_the_cpu() -> None:
    """One-hot logits: nothing for another order of summation to change."""
    logits = table([0, 1, 1, 1, 0, 2], [2, 0, 2, 1, 2, -1])
    trigger = Patch.square(**CORNER, target=2)
    counts = []
    for device in (CPU, torch.device("cuda")):
        resident = Resident(data([0, 0, 1, 1, 2, 2]).samples, device)
        model = Table(logits).to(device)
        counts.append(measure(model, resident, torch.arange(6), num_classes=3, triggers=[trigger], batch_size=4))
    assert counts[0] == counts[1]
