"""FT-SAM: fine-tuning with adaptive sharpness-aware minimisation.

Source: Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023,
arXiv:2304.11823; the perturbation is that of Kwon et al., "ASAM", ICML 2021, arXiv:2102.11600.

A step takes the gradient ``g`` at the weights ``w``, climbs to ``w + e`` with

    e = rho * w**2 * g / norm(abs(w) * g),        so that norm(e / abs(w)) = rho,

takes the gradient there, goes back to ``w`` and updates with it: two passes forward and backward, one step of SGD.
BatchNorm's running statistics follow the first pass alone.

Settings: those of its authors' BackdoorBench (``config/defense/ft-sam``, ``defense/ft-sam.py``): 100 epochs of batches
of 256, SGD 0.01, momentum 0.9, weight decay 5e-4, ``rho`` 2 and labels smoothed by 0.1 for CIFAR-10; 50 epochs,
``rho`` 8 and no smoothing for GTSRB. Their smoothing leaves ``1 - s`` to the label and ``s / (C - 1)`` to each other
class. Their rate follows half a cosine down to 0 and half a cosine up again, 100 steps each (``CosineAnnealingLR`` with
``T_max`` 100, stepped once a batch): with 5 % of CIFAR-10 that is five periods of 200 steps. ``half_period=None``
gives one half cosine over the whole run instead.

Departs: theirs is for a ResNet-18 with BatchNorm, and such a ``rho`` can destroy a small network or one without. So an
attempt that ends below 0.9 of the received model's accuracy on the clean budget, or is below half of it after a fifth
of the epochs, is made again with the next of ``rhos``; the last stands, and all steps count. Crops reflect the image's
edges, theirs pad with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.defences.training import Defended, Training, set_rate


def ft_sam(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    epochs: int = 100,
    rhos: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25),
    label_smoothing: float = 0.1,
    batch_size: int = 256,
    rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    half_period: int | None = 100,
    precision: str = "auto",
) -> Defended:
    """FT-SAM, as in the head of this file; ``n_steps`` counts steps of two passes each."""
    with Training(model, clean, seed=seed, augment=augment, batch_size=batch_size, precision=precision) as training:
        # PyTorch's smoothing gives the label a share of what is spread, so a little more is spread.
        smoothing = label_smoothing * training.num_classes / (training.num_classes - 1)
        half = half_period or epochs * training.steps_an_epoch

        def trained(rho: float) -> nn.Module:
            student = training.copy()
            optimizer = torch.optim.SGD(student.parameters(), rate, momentum, weight_decay=weight_decay)
            step = 0
            for epoch in range(epochs):
                for inputs, labels in training.batches(epoch):

                    def loss(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
                        return F.cross_entropy(training.logits(student, inputs), labels, label_smoothing=smoothing)

                    set_rate(optimizer, 0.5 * rate * (1 + math.cos(math.pi * step / half)))
                    sam_step(student, loss, optimizer, rho)
                    step += 1
                if epoch + 1 == epochs // 5 and not training.is_intact(student, 0.5):
                    break
            return student

        for rho in rhos:
            student = trained(rho)
            if training.is_intact(student):
                break
        return training.finish(student)


def sam_step(model: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, rho: float) -> None:
    """One update of the weights at ``w`` with the gradient at ``w + perturbation``."""
    optimizer.zero_grad()
    loss().backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        before = [p.clone() for p in trained]
        for p, e in zip(trained, perturbation(trained, rho), strict=True):
            p.add_(e)
    optimizer.zero_grad()
    with running_statistics_kept(model):
        loss().backward()
    with torch.no_grad():
        for p, w in zip(trained, before, strict=True):
            p.copy_(w)
    optimizer.step()


def perturbation(weights: list[nn.Parameter], rho: float) -> list[Tensor]:
    """``rho * w**2 * g / norm(abs(w) * g)`` for each tensor of weights ``w`` with grads ``g``; the norm is over all."""
    grads = [w.grad for w in weights if w.grad is not None]
    with torch.no_grad():
        norm = torch.stack([(w * g).norm() for w, g in zip(weights, grads, strict=True)]).norm()
        return [rho * w.square() * g / (norm + 1e-12) for w, g in zip(weights, grads, strict=True)]


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """BatchNorm in train mode normalizes by the batch in here, and its running statistics stay as they are."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
