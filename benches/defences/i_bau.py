"""I-BAU: one perturbation that fools the model on all images, unlearned by an implicit hypergradient.

Source: Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022, arXiv:2110.03735; the
fixed-point iteration is that of Grazzi et al., "On the Iteration Complexity of Hypergradient Computation", ICML 2020,
arXiv:2006.16218.

The defence is ``min over w of max over d of the loss of x + d at w``, with ``norm(d) <= 10``. A round finds ``d``,
starting at 0, by one step of gradient descent for each batch on

    inner(d, w) = 0.001 * norm(d)**2 - cross-entropy(model(x + d), what the model says of x),

and then makes one step of Adam for each batch on ``outer(d, w)``, the cross-entropy of a batch of which a hundredth is
perturbed. Since ``d`` depends on ``w``, its gradient is

    d outer / d w + (d step / d w)' v,        v = sum over k < K of ((d step / d d)')**k (d outer / d d),

where ``step(d, w) = d - 0.1 * d inner / d d`` on the first batch with its labels: what ``K`` terms of the implicit
function theorem's inverse give.

Settings: those of the authors' code (YiZeng623/I-BAU, ``defense.py``): 5 rounds, batches of 100, ``K`` 5, Adam 1e-3
without weight decay, inner rate 10, the hundredth and the 0.001 above; perturbed images are not clamped, the model is
in eval mode throughout, so BatchNorm's running statistics stay, and images are not augmented. ``d`` is in pixels of
[0, 1], as their inputs are. The bound of 10 is the paper's and that of the authors' notebooks; in ``defense.py`` it is
commented out.

Departs: batches are drawn anew each round, theirs stay. At least one image of a batch is perturbed, since a hundredth
of a smaller one is none. The hypergradient is computed in float32, for its second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import seamfast
from benches.defences.training import Defended, Training

Batch = tuple[Tensor, Tensor]


def i_bau(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    rounds: int = 5,
    n_terms: int = 5,
    bound: float = 10.0,
    inner_rate: float = 10.0,
    step_rate: float = 0.1,
    share: float = 0.01,
    batch_size: int = 100,
    rate: float = 1e-3,
    precision: str = "auto",
) -> Defended:
    """I-BAU, as in the head of this file; ``augment`` is not used, ``n_steps`` counts the steps of Adam."""
    with Training(model, clean, seed=seed, augment=(0, False), batch_size=batch_size, precision=precision) as training:
        student = training.copy().eval()
        weights = list(student.parameters())
        optimizer = torch.optim.Adam(weights, rate)
        for number in range(rounds):
            batches = list(training.batches(number))
            found = universal_perturbation(training, student, batches, inner_rate, bound)
            for inputs, labels in batches:
                chosen = torch.randperm(len(labels))[: max(1, int(share * len(labels)))].to(training.device)

                def outer(d: Tensor, inputs: Tensor = inputs, labels: Tensor = labels, at: Tensor = chosen) -> Tensor:
                    added = (d * training.pixel).expand(len(at), *inputs.shape[1:])
                    return F.cross_entropy(student(inputs.index_add(0, at, added)), labels)

                def step(d: Tensor, inputs: Tensor = batches[0][0], labels: Tensor = batches[0][1]) -> Tensor:
                    loss = inner_loss(student(inputs + d * training.pixel), labels, d)
                    (gradient,) = torch.autograd.grad(loss, d, create_graph=True)
                    return d - step_rate * gradient

                with sdpa_kernel(SDPBackend.MATH):  # of attention's kernels the one that is differentiable twice
                    gradients = hypergradient(found, weights, step, outer, n_terms)
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.grad = gradient
                optimizer.step()
        return training.finish(student)


def inner_loss(logits: Tensor, labels: Tensor, perturbation: Tensor) -> Tensor:
    """``0.001 * perturbation.square().sum() - cross_entropy(logits, labels)``."""
    return 0.001 * perturbation.square().sum() - F.cross_entropy(logits, labels)


def universal_perturbation(
    training: Training, model: nn.Module, batches: Sequence[Batch], rate: float, bound: float
) -> Tensor:
    """``(1, C, H, W)`` in pixels: one step of gradient descent on the inner loss for each batch, then scaled to fit.

    Args:
        training: of ``model``.
        model: in eval mode.
        batches: inputs and labels, which are not looked at.
        rate: of the steps.
        bound: of the l2 norm.
    """
    found = torch.zeros_like(batches[0][0][:1])
    for inputs, _ in batches:
        with torch.no_grad():
            said = training.logits(model, inputs).argmax(1)
        found.requires_grad_(True)
        loss = inner_loss(training.logits(model, inputs + found * training.pixel), said, found)
        (gradient,) = torch.autograd.grad(loss, found)
        found = found.detach() - rate * gradient
    norm: Tensor = found.norm()
    return found * (bound / norm).clamp(max=1)


def hypergradient(
    at: Tensor,
    weights: list[nn.Parameter],
    step: Callable[[Tensor], Tensor],
    outer: Callable[[Tensor], Tensor],
    n_terms: int,
) -> list[Tensor]:
    """The gradient of ``outer`` by ``weights`` where ``at`` is a fixed point of ``step`` that moves with them.

    Args:
        at: the fixed point.
        weights: on which ``step`` and ``outer`` depend.
        step: differentiable in its argument and in ``weights``.
        outer: a scalar of the fixed point and ``weights``.
        n_terms: of the series for the inverse in the implicit function theorem.

    Returns:
        A tensor for each of ``weights``.
    """
    at = at.detach().requires_grad_(True)
    by_point, *direct = _gradients(outer(at), [at, *weights])
    stepped = step(at)
    v = by_point
    for _ in range(n_terms - 1):
        (further,) = torch.autograd.grad(stepped, at, v, retain_graph=True)
        v = by_point + further
    through = _gradients(stepped, weights, v)
    return [d + t for d, t in zip(direct, through, strict=True)]


def _gradients(of: Tensor, by: Sequence[Tensor], v: Tensor | None = None) -> list[Tensor]:
    """Zeros where ``of`` does not depend on a tensor."""
    found = torch.autograd.grad(of, by, v, allow_unused=True)
    return [torch.zeros_like(b) if g is None else g for g, b in zip(found, by, strict=True)]
