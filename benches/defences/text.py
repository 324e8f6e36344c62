"""Defences of others for classifiers of texts, and of vectors that an encoder makes of them; called as those of images.

    defended = TEXT_DEFENCES["meft"](model, clean, seed=0, augment=(0, False))

All but ``seam_authors`` train all weights on the whole clean budget with AdamW, batches of 32, weight decay 0.01
(of matrices alone), a tenth of warm-up, then down to 0 on a straight line, gradients clipped at norm 1, dropout on,
for ``EPOCHS``, at least ``LEAST_STEPS``. That is the recipe of Mosbach et al. for few texts (arXiv:2006.04884: small
rate, warm-up, 20 epochs). The peak rate (``usual_rate``) is theirs, 2e-5, for a pretrained encoder, which is also that
of OpenBackdoor. Models from scratch are hardly moved by it, so they get 5e-4, which SEAM's authors' scripts for TrojAI
have for such heads.

``fine_tune``: that, with cross-entropy.

``super_fine_tune``: cycles of the rate, first high, then low. Source: Sha et al., arXiv:2212.09067. By a guide to it,
its peaks for SGD are ten times and a tenth of the usual 0.01, from a base of 0.03 of it; here the same shares of
``usual_rate``, two triangles a phase, half of the steps in each.

``meft``: maximum entropy, then cross-entropy. Source: Liu et al., "Maximum Entropy Loss, the Silver Bullet Targeting
Backdoor Attacks in Pre-trained Language Models", ACL Findings 2023, whose loss is the sum of ``p log p`` over the
answers, as PURE's code has it, too (xingyizhao/PURE). Not certain: their numbers of steps; here ``EPOCHS / 2`` of the
first at a constant rate, then ``EPOCHS`` of the second.

``seam_authors``: ``seamfast.sanitize(..., method="seam_authors")`` with the settings of the authors' TrojAI scripts
(TDteach/SEAM, ``trojan_example_r5.py``): Adam 5e-4, random labels over all classes, all clean data in both steps. For
a pretrained encoder, theirs is frozen and a head alone is trained; one that is trained as a whole gets 2e-5 here, as
5e-4 leaves no task at all. At most 30 epochs of recovery instead of 300.

``d3``: as for images (``benches/defences/d3.py``), but with AdamW in place of SGD, batches of 32 and ``EPOCHS`` epochs
at five times ``usual_rate``, since the head is new.

``fst``: as for images (``benches/defences/fst.py``), with the same change.

``scratch``: the architecture with new weights, trained on the clean budget alone at 1e-3 for 600 steps; what the budget
is worth by itself. Not for pretrained encoders, which cannot be trained from so little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.defences.d3 import d3 as d3_of_images
from benches.defences.fst import fst as fst_of_images
from benches.defences.own import no_defence
from benches.defences.scratch import redraw
from benches.defences.training import Defence, Defended, Training, set_rate
from seamfast import SeamAuthorsConfig
from seamfast.methods.schedules import triangle

BATCH = 32
EPOCHS = 20
LEAST_STEPS = 200
WEIGHT_DECAY = 0.01
WARMUP = 0.1
PRETRAINED_RATE, SCRATCH_RATE = 2e-5, 5e-4

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, labels)``."""


def is_pretrained(model: nn.Module) -> bool:
    """Whether the model is one of transformers', which are not trained from scratch."""
    return hasattr(model, "config")


def usual_rate(model: nn.Module) -> float:
    """The peak rate of fine-tuning; see the head of this file."""
    return PRETRAINED_RATE if is_pretrained(model) else SCRATCH_RATE


def fine_tune(
    model: nn.Module, clean: seamfast.CleanSet, *, seed: int, augment: tuple[int, bool], precision: str = "auto"
) -> Defended:
    """Fine-tuning, as in the head of this file."""
    with _training(model, clean, seed, augment, precision) as training:
        student = training.copy()
        _trained(training, student, F.cross_entropy, epochs_of(training), _rise_and_fall(usual_rate(model)))
        return training.finish(student)


def super_fine_tune(
    model: nn.Module, clean: seamfast.CleanSet, *, seed: int, augment: tuple[int, bool], precision: str = "auto"
) -> Defended:
    """Super-fine-tuning, as in the head of this file."""
    usual = usual_rate(model)

    def rate(fraction: float) -> float:
        peak = 10 * usual if fraction < 0.5 else 0.1 * usual
        return 0.03 * usual + (peak - 0.03 * usual) * triangle(2 * fraction % 1, 2)

    with _training(model, clean, seed, augment, precision) as training:
        student = training.copy()
        _trained(training, student, F.cross_entropy, 2 * epochs_of(training), rate)
        return training.finish(student)


def meft(
    model: nn.Module, clean: seamfast.CleanSet, *, seed: int, augment: tuple[int, bool], precision: str = "auto"
) -> Defended:
    """Maximum entropy, then fine-tuning, as in the head of this file."""
    usual = usual_rate(model)
    with _training(model, clean, seed, augment, precision) as training:
        student = training.copy()
        epochs = epochs_of(training)
        _trained(training, student, negative_entropy, math.ceil(epochs / 2), lambda fraction: usual)
        _trained(training, student, F.cross_entropy, epochs, _rise_and_fall(usual))
        return training.finish(student)


def negative_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``(p * log(p)).sum(1).mean()`` of the answers ``p``; labels do not matter."""
    log_shares = F.log_softmax(logits, 1)
    return (log_shares.exp() * log_shares).sum(1).mean()


def seam_authors(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    epochs: int = 30,
    precision: str = "auto",
) -> Defended:
    """The authors' SEAM, as in the head of this file."""
    changes: dict[str, Any] = {"recover_max_epochs": epochs, "prune": False}
    if is_pretrained(model):
        changes |= {"forget_rate": PRETRAINED_RATE, "recover_rate": PRETRAINED_RATE}
    config = SeamAuthorsConfig.trojai(**changes)
    begin = time.perf_counter()
    how: dict[str, Any] = {"seed": seed, "precision": precision, "progress": False}
    result = seamfast.sanitize(model, clean, method="seam_authors", config=config, **how)
    n_steps = sum(result.report["run"]["steps"].values())
    return Defended(result.model.eval(), n_steps, time.perf_counter() - begin)


def _with_new_head(defend: Callable[..., Defended]) -> Defence:
    """``d3`` or ``fst`` of images with the changes for texts."""

    def defended(
        model: nn.Module, clean: seamfast.CleanSet, *, seed: int, augment: tuple[int, bool], precision: str = "auto"
    ) -> Defended:
        epochs = max(EPOCHS, math.ceil(LEAST_STEPS / math.ceil(len(clean) / BATCH)))
        how: dict[str, Any] = {"rate": 5 * usual_rate(model), "momentum": None, "batch_size": BATCH}
        return defend(model, clean, seed=seed, augment=augment, epochs=epochs, precision=precision, **how)

    return defended


def scratch(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    n_steps: int = 600,
    precision: str = "auto",
) -> Defended:
    """New weights, as in the head of this file.

    Raises:
        ValueError: ``the model is pretrained; expected one that can be trained from scratch``.
    """
    if is_pretrained(model):
        raise ValueError("the model is pretrained; expected one that can be trained from scratch")
    with _training(model, clean, seed, augment, precision) as training:
        new = training.copy()
        redraw(new)
        for module in new.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        epochs = math.ceil(n_steps / training.steps_an_epoch)
        _trained(training, new, F.cross_entropy, epochs, _rise_and_fall(1e-3))
        return training.finish(new)


def _training(
    model: nn.Module, clean: seamfast.CleanSet, seed: int, augment: tuple[int, bool], precision: str
) -> Training:
    return Training(model, clean, seed=seed, augment=augment, batch_size=BATCH, precision=precision)


def epochs_of(training: Training) -> int:
    """``EPOCHS``, or as many as ``LEAST_STEPS`` need."""
    return max(EPOCHS, math.ceil(LEAST_STEPS / training.steps_an_epoch))


def _rise_and_fall(peak: float) -> Callable[[float], float]:
    return lambda fraction: peak * min((fraction + 1e-3) / WARMUP, (1 - fraction) / (1 - WARMUP))


def _trained(training: Training, student: nn.Module, loss: Loss, epochs: int, rate: Callable[[float], float]) -> None:
    """Train ``student`` in place; ``rate`` is a function of the share of steps that are done."""
    decayed = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1.0)
    n_steps, step = epochs * training.steps_an_epoch, 0
    for epoch in range(epochs):
        for inputs, labels in training.batches(epoch):
            set_rate(optimizer, rate(step / n_steps))
            optimizer.zero_grad()
            loss(training.logits(student, inputs), labels).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            step += 1


TEXT_DEFENCES: dict[str, Defence] = {
    "no_defence": no_defence,
    "fine_tune": fine_tune,
    "super_fine_tune": super_fine_tune,
    "seam_authors": seam_authors,
    "meft": meft,
    "d3": _with_new_head(d3_of_images),
    "fst": _with_new_head(fst_of_images),
    "scratch": scratch,
}
"""By name."""
