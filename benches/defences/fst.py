"""FST, feature shift tuning: fine-tuning away from the received head, so that the features have to move.

Source: Min et al., "Towards Stable Backdoor Purification through Feature Shift Tuning", NeurIPS 2023,
arXiv:2310.01875.

The head, the last linear layer, is drawn anew. With ``w0`` the received and ``w`` the present weight of the head, all
weights of the model minimize

    cross-entropy + alpha * sum(w * w0)        under        norm(w) = norm(w0),

by scaling ``w`` to the norm of ``w0`` after each step.

Settings: those of the paper and the authors' code (AISafety-HKUST/stable_backdoor_purification, ``fine_tune/fst.py``):
SGD 0.01, momentum 0.9, no weight decay, batches of 128, half a cosine, one value an epoch; 10 epochs and ``alpha`` 0.2
for CIFAR-10, 15 epochs and 0.1 for GTSRB. Weight and bias of the head are drawn from the uniform distribution on
``+-1 / sqrt(in_features)``; the first batch sees the weight at the norm that it was drawn with.

Departs: theirs is for networks with BatchNorm, and can cost a small one without much of its task. So an attempt that
ends below 0.9 of the received model's accuracy on the clean budget is made again with the next of ``alphas``, all of
which are the paper's (0.001 is for CIFAR-100); the most accurate there stands, and all steps count. Crops reflect the
image's edges, theirs pad with zeros. MNIST and Fashion-MNIST, which the paper does not have, get the settings for
CIFAR-10.
"""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.defences.training import Defended, Training, best_attempt, tuned_with_new_head


def fst(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    epochs: int = 10,
    alphas: tuple[float, ...] = (0.2, 0.1, 0.001),
    batch_size: int = 128,
    rate: float = 0.01,
    momentum: float | None = 0.9,
    precision: str = "auto",
) -> Defended:
    """FST, as in the head of this file."""
    with Training(model, clean, seed=seed, augment=augment, batch_size=batch_size, precision=precision) as training:

        def renew(head: nn.Linear, received: Tensor) -> None:
            bound = 1 / math.sqrt(head.in_features)
            for drawn in head.parameters():
                nn.init.uniform_(drawn, -bound, bound)

        def trained(alpha: float) -> nn.Module:
            loss = partial(fst_loss, alpha=alpha)
            return tuned_with_new_head(training, renew, loss, epochs=epochs, rate=rate, momentum=momentum)

        return training.finish(best_attempt(training, trained, alphas))


def fst_loss(logits: Tensor, labels: Tensor, weight: Tensor, received: Tensor, alpha: float) -> Tensor:
    """``cross_entropy(logits, labels) + alpha * (weight * received).sum()``."""
    return F.cross_entropy(logits, labels) + alpha * (weight * received).sum()
