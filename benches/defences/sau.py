"""SAU, shared adversarial unlearning: what fools the received model and the student alike may not fool the student.

Source: Wei et al., "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared Adversarial Examples",
NeurIPS 2023, arXiv:2307.10562.

For each batch, a perturbation of each image is sought that turns the answers of both models, and to the same class. It
starts at the bound and makes steps of its gradient's sign, down on

    0.01 * (- mean of both models' cross-entropy) + js(p_student, p_received);

a model's cross-entropy counts where its answer has not turned yet, the Jensen-Shannon divergence where the answers have
not both turned to one class. Once all have, it ends. The student then makes a step on

    cross-entropy(clean) + mean over the batch of [the received model is fooled] * -log(1 - p_student(what it says)),

where the received model counts as fooled if its answer to the perturbed image is neither the label nor its answer to
the image.

Settings: those of its authors' BackdoorBench (``config/defense/sau``, ``defense/sau.py``), the same for CIFAR-10 and
GTSRB: 100 epochs of batches of 256, Adam 1e-4 without weight decay and at a constant rate (a cosine is configured, but
never stepped), five steps of 0.2, a bound of 0.2 for each pixel of [0, 1]; perturbed images are not clamped. Both
models are in eval mode, so BatchNorm's running statistics stay, and images are not augmented. As there, ``p_student``
below 1e-3 has no gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.defences.training import Defended, Training


def sau(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    epochs: int = 100,
    adversarial: float = 0.01,
    bound: float = 0.2,
    stride: float = 0.2,
    strides: int = 5,
    batch_size: int = 256,
    rate: float = 1e-4,
    precision: str = "auto",
) -> Defended:
    """SAU, as in the head of this file; ``augment`` is not used, ``n_steps`` counts the student's steps."""
    with Training(model, clean, seed=seed, augment=(0, False), batch_size=batch_size, precision=precision) as training:
        student = training.copy().eval()
        received = training.copy().eval().requires_grad_(False)
        optimizer = torch.optim.Adam(student.parameters(), rate)
        for epoch in range(epochs):
            for inputs, labels in training.batches(epoch):
                with torch.no_grad():
                    said = [training.logits(m, inputs).argmax(1) for m in (student, received)]
                d = torch.full_like(inputs, bound)
                for _ in range(strides):
                    d.requires_grad_(True)
                    perturbed = inputs + d * training.pixel
                    answers = [training.logits(m, perturbed) for m in (student, received)]
                    loss, all_shared = sharing_loss(answers, said, labels, adversarial)
                    (gradient,) = torch.autograd.grad(loss, d)
                    d = (d.detach() - stride * gradient.sign()).clamp(-bound, bound)
                    if all_shared:
                        break
                perturbed = inputs + d * training.pixel
                with torch.no_grad():
                    fooled_to = training.logits(received, perturbed).argmax(1)
                fooled = (fooled_to != labels) & (fooled_to != said[1])
                optimizer.zero_grad()
                logits, answer = training.logits(student, torch.cat([inputs, perturbed])).split(len(labels))
                (F.cross_entropy(logits, labels) + unlearning_loss(answer, fooled_to, fooled)).backward()
                optimizer.step()
        return training.finish(student)


def sharing_loss(answers: list[Tensor], said: list[Tensor], labels: Tensor, adversarial: float) -> tuple[Tensor, bool]:
    """What the perturbation descends; see the head of this file.

    Args:
        answers: ``(N, C)`` logits of the two models for the perturbed images.
        said: ``(N,)`` the classes that they give to the images as they are.
        labels: ``(N,)``.
        adversarial: the weight of the cross-entropies.

    Returns:
        The loss, and whether all answers have turned and agree.
    """
    turned = [a.argmax(1) != s for a, s in zip(answers, said, strict=True)]
    wrong = torch.stack(
        [(F.cross_entropy(a, labels, reduction="none") * ~t).mean() for a, t in zip(answers, turned, strict=True)]
    )
    p, q = (a.softmax(1).clamp(min=1e-8) for a in answers)
    middle = (p + q) / 2
    js = 0.5 * (p * (p / middle).log() + q * (q / middle).log()).sum(1)
    shared = turned[0] & turned[1] & (answers[0].argmax(1) == answers[1].argmax(1))
    return (js * ~shared).mean() - adversarial * wrong.mean(), bool(shared.all())


def unlearning_loss(answer: Tensor, fooled_to: Tensor, fooled: Tensor) -> Tensor:
    """``(fooled * -log(1 - softmax(answer)[fooled_to])).mean()``.

    Args:
        answer: ``(N, C)`` the student's logits for the perturbed images.
        fooled_to: ``(N,)`` the received model's classes for them.
        fooled: ``(N,)`` bool: which of them count.
    """
    others = answer.softmax(1).scatter(1, fooled_to[:, None], 0.0).sum(1)
    return (fooled * -(1e-6 + others.clamp(max=0.999)).log()).mean()
