"""The checks of the tests can fail: each fault planted here fails one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checks import check_batch, check_count, check_labels, check_loss, check_outcomes
from conftest import Backend
from test_stamp_trigger import by_definition, images, stamp, triggers_for
from torch import Tensor

from seamfast.ops import cpp, random_label_loss_and_count, random_labels, reference
from seamfast.ops.arguments import CountArguments, CrossEntropyArguments, StampArguments

CPU = Backend("reference", torch.device("cpu"))
N, CLASSES = 65, 10
LABELS, IDS = torch.arange(N) % CLASSES, torch.arange(N)
LOGITS = torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(0)).round()

Loss = Callable[[CrossEntropyArguments], tuple[Tensor, Tensor, Tensor]]
TRUE_LOSS: Loss = reference.cross_entropy


def labels_off_by_one(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    return TRUE_LOSS(args._replace(step=args.step + 1))


def last_row_dropped(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    loss, grad, n_correct = TRUE_LOSS(args)
    grad[-1] = 0
    return loss, grad, n_correct


def one_nan(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    loss, grad, n_correct = TRUE_LOSS(args)
    grad[3, 3] = float("nan")
    return loss, grad, n_correct


def loss_slightly_off(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    loss, grad, n_correct = TRUE_LOSS(args)
    return loss * (1 + 1e-5), grad, n_correct


def gradient_slightly_off(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    loss, grad, n_correct = TRUE_LOSS(args)
    return loss, grad * (1 + 1e-5), n_correct


def ties_to_the_last(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    loss, grad, _ = TRUE_LOSS(args)
    last = CLASSES - 1 - args.logits.flip(1).argmax(1)
    return loss, grad, (last == args.labels).sum()


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
def test_a_wrong_loss_is_detected(monkeypatch: pytest.MonkeyPatch, fault: Loss) -> None:
    judge()
    monkeypatch.setattr(reference, "cross_entropy", fault)
    with pytest.raises(AssertionError):
        judge()


def test_wrong_counters_are_detected() -> None:
    logits, ids = LOGITS.clone(), torch.arange(N) % 3 - 1
    logits[4, 2] = float("nan")
    targets = torch.zeros(2, CLASSES, dtype=torch.int64)
    found = torch.zeros(3, 6, dtype=torch.int64), torch.zeros(3, CLASSES, dtype=torch.int64)
    reference.count_outcomes(CountArguments(*found, logits, LABELS, ids, targets, "reference", 0))
    check_outcomes(logits, LABELS, targets, ids, found)
    for which in range(2):
        wrong = found[0].clone(), found[1].clone()
        wrong[which].view(-1)[0] += 1
        with pytest.raises(AssertionError):
            check_outcomes(logits, LABELS, targets, ids, wrong)


TRUE_STAMP = reference.stamp_trigger


def unstamped_pixel(args: StampArguments) -> Tensor:
    out = TRUE_STAMP(args)
    out[1, 0, 0, 0] = args.images[args.indices[1], 0, 0, 0]
    return out


def patch_off_by_one(args: StampArguments) -> Tensor:
    rows = args.rows.clone()
    rows[0, 6] += 1
    return TRUE_STAMP(args._replace(rows=rows))


def last_image_plain(args: StampArguments) -> Tensor:
    return TRUE_STAMP(args._replace(trigger_ids=torch.cat([args.trigger_ids[:-1], torch.tensor([-1])])))


def a_nan(args: StampArguments) -> Tensor:
    out = TRUE_STAMP(args)
    out[0, 0, 3, 3] = float("nan")
    return out


def rounded_up(args: StampArguments) -> Tensor:
    return TRUE_STAMP(args._replace(mean=tuple(mean - 4e-9 for mean in args.mean)))


@pytest.mark.parametrize("fault", [unstamped_pixel, patch_off_by_one, last_image_plain, a_nan, rounded_up])
def test_a_wrong_stamp_is_detected(monkeypatch: pytest.MonkeyPatch, fault: Callable[[StampArguments], Tensor]) -> None:
    triggers, data = triggers_for(1, 8, 8)[:2], images(3, 1, 8, 8)
    ids, indices = torch.tensor([-1, 0, 1]), torch.arange(3)

    def judge_stamp() -> None:
        check_batch(stamp(CPU, data, indices, triggers, ids), by_definition(data, indices, triggers, ids))

    judge_stamp()
    monkeypatch.setattr(reference, "stamp_trigger", fault)
    with pytest.raises(AssertionError):
        judge_stamp()


def test_the_backends_are_different_functions() -> None:
    """Otherwise comparing them would test nothing."""
    for op in ("cross_entropy", "stamp_trigger", "count_outcomes", "gather_augment", "occlude"):
        assert getattr(reference, op) is not getattr(cpp, op)
