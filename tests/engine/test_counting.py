from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.data.resident import Resident
from seamfast.engine.counting import Counts, TriggerCounts, count_clean, count_triggered
from seamfast.engine.subject import Subject
from seamfast.triggers import AllToAll, Patch, SourceSpecific, Trigger
from seamfast.triggers.label_maps import LabelMap

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


def subject(logits: Tensor, labels: list[int], device: torch.device = CPU) -> Subject:
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels))
    return Subject(Table(logits).to(device), Resident(CleanSet(images, labels), device), logits.shape[1])


def table(clean: list[int], stamped: list[int] | None = None, num_classes: int = 3) -> Tensor:
    """One-hot logits for the given classes; -1 is a row with one NaN."""
    logits = torch.zeros(200, num_classes)
    for offset, classes in ((0, clean), (100, stamped or [])):
        for i, wanted in enumerate(classes):
            logits[offset + i, wanted] = float("nan") if wanted < 0 else 1.0
    return logits


def corner(target: int | LabelMap, name: str = "corner") -> Patch:
    return Patch.square(size=1, margin=0, target=target, name=name)


def counted(
    of: Subject, indices: Sequence[int], *triggers: Trigger, batch_size: int | None = None
) -> tuple[Counts, tuple[TriggerCounts, ...]]:
    chosen = torch.tensor(indices, dtype=torch.int64)
    return (
        count_clean(of, chosen, batch_size=batch_size),
        count_triggered(of, chosen, triggers, seed=0, batch_size=batch_size),
    )


def test_counts_by_hand() -> None:
    of = subject(table([0, 1, 1, 1, 0, 2], [2, 0, 2, 1, 2, -1]), [0, 0, 1, 1, 2, 2])
    triggers = corner(2, "to 2"), corner(AllToAll(), "next"), corner(SourceSpecific((1,), 2), "1 to 2")
    clean, triggered = counted(of, range(6), *triggers)
    assert clean == Counts((1, 2, 1), (2, 2, 2), n_nan=0)
    assert (clean.n_correct, clean.n_samples, clean.accuracy) == (4, 6, 4 / 6)
    assert triggered == (
        TriggerCounts("to 2", n_eligible=4, n_hit=2, n_restored=2, n_nan=0),
        TriggerCounts("next", n_eligible=6, n_hit=1, n_restored=3, n_nan=1),
        TriggerCounts("1 to 2", n_eligible=2, n_hit=1, n_restored=1, n_nan=0),
    )
    assert counted(of, range(6), *triggers, batch_size=5) == (clean, triggered)


def test_only_the_samples_asked_for_count() -> None:
    clean, (triggered,) = counted(subject(table([0, 1, 1, 1], [2, 2, 2, 2]), [0, 0, 1, 2]), [3, 0], corner(2))
    assert clean == Counts((1, 0, 0), (1, 0, 1), n_nan=0)
    assert (triggered.n_eligible, triggered.n_hit) == (1, 1)


def test_ties_go_to_the_first_class() -> None:
    logits = torch.zeros(200, 3)
    logits[1] = torch.tensor([0.0, 1.0, 1.0])
    logits[2] = -float("inf")
    assert counted(subject(logits, [0, 1, 0, 2]), range(4))[0].class_correct == (2, 1, 0)


def test_rows_with_nan_are_wrong_whatever_else_they_hold() -> None:
    """NaN is the largest number to ``argmax``: in the true class's place it would count as right."""
    logits = torch.zeros(200, 3)
    logits[0, 0] = logits[1, 2] = logits[102, 2] = logits[103, 0] = float("nan")
    logits[1, 1], logits[2, 1], logits[3, 2], logits[100, 1] = 5.0, 1.0, 1.0, 1.0
    clean, triggered = counted(subject(logits, [0, 1, 1, 1]), range(4), corner(2))
    assert clean == Counts((0, 1, 0), (1, 3, 0), n_nan=2)
    assert triggered == (TriggerCounts("corner", n_eligible=4, n_hit=0, n_restored=0, n_nan=2),)


def test_samples_whose_label_a_trigger_keeps_are_not_run_through_the_model() -> None:
    of = subject(table([0, 1, 2, 0, 1, 2]), [0, 1, 2, 0, 1, 2])
    chosen, seen, trigger = torch.arange(6), list[int](), corner(SourceSpecific((1,), 0))
    count_clean(of, chosen, batch_size=3, on_batch=seen.append)
    count_triggered(of, chosen, [trigger], seed=0, batch_size=3, on_batch=seen.append)
    assert of.model.calls == seen == [3, 3, 2]


def test_batches_mix_triggers_so_that_all_but_the_last_are_full() -> None:
    of = subject(table([0, 1, 2, 0, 1, 2]), [0, 1, 2, 0, 1, 2])
    count_triggered(of, torch.arange(6), [corner(k, f"to {k}") for k in range(3)], seed=0, batch_size=5)
    assert of.model.calls == [5, 5, 2]


def test_no_samples_no_triggers_and_a_trigger_that_fits_none() -> None:
    of, trigger = subject(table([0, 1], num_classes=5), [0, 1]), corner(SourceSpecific((2,), 0), "of 2")
    none = TriggerCounts("of 2", n_eligible=0, n_hit=0, n_restored=0, n_nan=0)
    assert counted(of, range(2), trigger) == (Counts((1, 1, 0, 0, 0), (1, 1, 0, 0, 0), n_nan=0), (none,))
    assert counted(of, [], trigger) == (Counts((0,) * 5, (0,) * 5, n_nan=0), (none,))
    assert counted(of, range(2))[1] == ()


@pytest.mark.gpu
def test_on_a_device_the_counts_are_those_of_the_cpu() -> None:
    """One-hot logits: nothing for another order of summation to change."""
    logits, labels = table([0, 1, 1, 1, 0, 2], [2, 0, 2, 1, 2, -1]), [0, 0, 1, 1, 2, 2]
    counts = [
        counted(subject(logits, labels, torch.device(device)), range(6), corner(2), batch_size=4)
        for device in ("cpu", "cuda")
    ]
    assert counts[0] == counts[1]
