"""Loss, gradient and count of a forgetting step in one pass, against eager PyTorch, one thread.

    python -m pytest benches/bench_cross_entropy.py --benchmark-only

Baseline: what the step is without the op: ``torch.randint`` for the labels, ``F.cross_entropy``, ``backward()``, and
``(logits.argmax(1) == labels).sum()``. Ours is the public function with ``backward()``, so autograd's own 10 to 20 us
count on both sides. The logits are float32 and a leaf.

"Match": the loss and the gradient on the labels that ours drew agree with ``F.cross_entropy`` to 1e-6 (relative to the
largest), and the counts are equal.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from seamfast.ops import cpp, random_label_loss_and_count, random_labels, true_label_loss_and_count

pytestmark = pytest.mark.skipif(cpp.why_unavailable() is not None, reason="seamfast._native is not built")

N = 512


@pytest.mark.parametrize(("classes", "target"), [(10, 3), (100, None), (1000, 1.5), (21843, None)])
def test_random_labels_against_eager(race: Any, classes: int, target: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N, classes, generator=generator).requires_grad_()
    labels = torch.randint(0, classes, (N,), generator=generator)
    ids = torch.arange(N)
    step = 0

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal step
        step += 1
        logits.grad = None
        loss, n_correct = random_label_loss_and_count(logits, labels, ids, seed=1, step=step, backend="cpp", threads=1)
        loss.backward()
        return loss, n_correct

    def eager() -> tuple[torch.Tensor, torch.Tensor]:
        logits.grad = None
        wrong = torch.randint(0, classes, (N,))
        loss = F.cross_entropy(logits, wrong)
        loss.backward()
        return loss, (logits.argmax(1) == labels).sum()

    loss, n_correct = ours()
    got = logits.grad.clone()
    drawn = random_labels(labels, ids, num_classes=classes, seed=1, step=step)
    logits.grad = None
    want = F.cross_entropy(logits, drawn)
    want.backward()
    match = bool((loss - want).abs() <= 1e-6 * want) and bool(
        (got - logits.grad).abs().max() <= 1e-6 * logits.grad.abs().max()
    )
    match = match and int(n_correct) == int((logits.argmax(1) == labels).sum())
    name = f"random-label loss+grad+count, {N} x {classes}"
    race(name, ours, "randint, cross_entropy, argmax, eager", eager, match=match, target=target)


@pytest.mark.parametrize("classes", [10, 1000])
def test_mixed_labels_against_eager(race: Any, classes: int) -> None:
    """The recovery step's: mixed targets, whose dense form eager PyTorch has to build."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N, classes, generator=generator).requires_grad_()
    labels, others = (torch.randint(0, classes, (N,), generator=generator) for _ in range(2))
    weight = torch.rand(N, generator=generator)

    def ours() -> torch.Tensor:
        logits.grad = None
        loss = true_label_loss_and_count(
            logits, labels, mixed_labels=others, mixed_weight=weight, backend="cpp", threads=1
        ).loss
        loss.backward()
        return loss

    def eager() -> torch.Tensor:
        logits.grad = None
        one, other = (F.one_hot(y, classes).float() for y in (labels, others))
        loss = F.cross_entropy(logits, torch.lerp(other, one, weight[:, None]))
        loss.backward()
        return loss

    match = bool((ours() - eager()).abs() <= 1e-5)
    race(
        f"mixed-label loss+grad+count, {N} x {classes}", ours, "one_hot, lerp, cross_entropy, eager", eager, match=match
    )
