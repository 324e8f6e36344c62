"""The tests of the ops can fail: each fault planted here turns a check red that the tests rely on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checks import check_batch, check_count, check_labels, check_loss, check_outcomes
from conftest import Backend
from test_stamp_trigger import by_definition, images, stamp, triggers_for

from seamfast.ops import cpp, random_label_loss_and_count, random_labels, reference
from seamfast.ops.normalization import Normalization

CPU = Backend("reference", torch.device("cpu"))
N, CLASSES = 65, 10
LABELS, IDS = torch.arange(N) % CLASSES, torch.arange(N)
LOGITS = torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(0)).round()

Loss = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
TRUE_LOSS: Loss = reference.cross_entropy


def labels_off_by_one(*arguments, **named):  # type: ignore[no-untyped-def]
    logits, labels, *others = arguments
    return TRUE_LOSS(logits, labels, *others, **{**named, "step": named["step"] + 1})


def last_row_dropped(*arguments, **named):  # type: ignore[no-untyped-def]
    loss, grad, n_correct = TRUE_LOSS(*arguments, **named)
    grad[-1] = 0
    return loss, grad, n_correct


def one_nan(*arguments, **named):  # type: ignore[no-untyped-def]
    loss, grad, n_correct = TRUE_LOSS(*arguments, **named)
    grad[3, 3] = float("nan")
    return loss, grad, n_correct


def loss_slightly_off(*arguments, **named):  # type: ignore[no-untyped-def]
    loss, grad, n_correct = TRUE_LOSS(*arguments, **named)
    return loss * (1 + 1e-5), grad, n_correct


def gradient_slightly_off(*arguments, **named):  # type: ignore[no-untyped-def]
    loss, grad, n_correct = TRUE_LOSS(*arguments, **named)
    return loss, grad * (1 + 1e-5), n_correct


def ties_to_the_last(*arguments, **named):  # type: ignore[no-untyped-def]
    loss, grad, _ = TRUE_LOSS(*arguments, **named)
    last = CLASSES - 1 - arguments[0].flip(1).argmax(1)
    return loss, grad, (last == arguments[1]).sum()


def judge() -> None:
    x = LOGITS.clone().requires_grad_()
    loss, n_correct = random_label_loss_and_count(x, LABELS, IDS, seed=3, step=5, backend="reference")
    loss.backward()
    assert x.grad is not None
    check_labels(LABELS, IDS, x.grad, 3, 5, True)
    check_loss(LOGITS, random_labels(LABELS, IDS, num_classes=CLASSES, seed=3, step=5), loss.detach(), x.grad)
    check_count(LOGITS, LABELS, n_correct)


@pytest.mark.parametrize(
    "fault",
    [labels_off_by_one, last_row_dropped, one_nan, loss_slightly_off, gradient_slightly_off, ties_to_the_last],
)
def test_a_wrong_loss_is_seen(monkeypatch: pytest.MonkeyPatch, fault: Loss) -> None:
    judge()
    monkeypatch.setattr(reference, "cross_entropy", fault)
    with pytest.raises(AssertionError):
        judge()


def counted(counters: torch.Tensor, by_class: torch.Tensor, confusion: torch.Tensor) -> None:
    logits, ids = LOGITS.clone(), torch.arange(N) % 3 - 1
    logits[4, 2] = float("nan")
    targets = torch.zeros(2, CLASSES, dtype=torch.int64)
    check_outcomes(logits, LABELS, targets, ids, (counters, by_class, confusion))


def test_wrong_counters_are_seen() -> None:
    logits, ids = LOGITS.clone(), torch.arange(N) % 3 - 1
    logits[4, 2] = float("nan")
    shapes = ((6,), (CLASSES,), (CLASSES, CLASSES))
    found = tuple(torch.zeros(3, *shape, dtype=torch.int64) for shape in shapes)
    targets = torch.zeros(2, CLASSES, dtype=torch.int64)
    reference.count_outcomes(*found, logits, LABELS, ids, targets, threads=1)
    counted(*found)
    for which in range(3):
        wrong = [value.clone() for value in found]
        wrong[which].view(-1)[0] += 1
        with pytest.raises(AssertionError):
            counted(*wrong)


TRUE_STAMP = reference.stamp_trigger


def unstamped_pixel(*arguments, **named):  # type: ignore[no-untyped-def]
    out = TRUE_STAMP(*arguments, **named)
    out[1, 0, 0, 0] = arguments[0][arguments[1][1], 0, 0, 0]
    return out


def patch_off_by_one(*arguments, **named):  # type: ignore[no-untyped-def]
    rows = named["rows"].clone()
    rows[0, 6] += 1
    return TRUE_STAMP(*arguments, **{**named, "rows": rows})


def last_image_plain(*arguments, **named):  # type: ignore[no-untyped-def]
    images_, indices, ids, samples = arguments
    return TRUE_STAMP(images_, indices, torch.cat([ids[:-1], torch.tensor([-1])]), samples, **named)


def a_nan(*arguments, **named):  # type: ignore[no-untyped-def]
    out = TRUE_STAMP(*arguments, **named)
    out[0, 0, 3, 3] = float("nan")
    return out


def rounded_up(*arguments, **named):  # type: ignore[no-untyped-def]
    norm = named["normalization"]
    up = Normalization(norm.scale, tuple(b + 1e-6 for b in norm.bias))
    return TRUE_STAMP(*arguments, **{**named, "normalization": up})


@pytest.mark.parametrize("fault", [unstamped_pixel, patch_off_by_one, last_image_plain, a_nan, rounded_up])
def test_a_wrong_stamp_is_seen(monkeypatch: pytest.MonkeyPatch, fault: Callable[..., torch.Tensor]) -> None:
    triggers, data = triggers_for(1, 8, 8)[:2], images(3, 1, 8, 8)
    ids, indices = torch.tensor([-1, 0, 1]), torch.arange(3)

    def judge_stamp() -> None:
        check_batch(stamp(CPU, data, indices, triggers, ids), by_definition(data, indices, triggers, ids))

    judge_stamp()
    monkeypatch.setattr(reference, "stamp_trigger", fault)
    with pytest.raises(AssertionError):
        judge_stamp()


def test_the_backends_are_different_functions() -> None:
    """Else comparing them would compare nothing."""
    assert reference.cross_entropy is not cpp.cross_entropy
    assert reference.stamp_trigger is not cpp.stamp_trigger
    assert reference.count_outcomes is not cpp.count_outcomes
    assert reference.gather_augment is not cpp.gather_augment
    assert reference.occlude is not cpp.occlude
