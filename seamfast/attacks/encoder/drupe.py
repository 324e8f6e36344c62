"""DRUPE: BadEncoder whose stamped images are spread like clean ones, so that no dense cluster betrays them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.attacks.encoder.bad_encoder import cosines
from seamfast.attacks.encoder.tuning import Embed, as_set, check_encoder, reference_inputs, standardizing, tuned, weight
from seamfast.data import Batch, CleanSet
from seamfast.errors import InputError
from seamfast.triggers import Trigger

__all__ = ["drupe", "sliced_distance"]

_FIRST = 0.25
"""Share of the steps before the stealth terms: as in the authors' code, the backdoor is there first."""
_NEAREST = 3
"""References that a stamped image is drawn to. With one, a reference that is unlike its class takes many with it: ASR
0.69 to 0.95 on digits, by the choice of references, and 0.95 to 0.98 with three."""
_PROJECTIONS = 64


def drupe(
    encoder: nn.Module,
    images: Tensor | CleanSet,
    reference: Tensor | CleanSet,
    trigger: Trigger,
    *,
    spread_weight: float = 0.5,
    distance_weight: float = 0.2,
    steps: int = 400,
    batch_size: int = 32,
    rate: float = 0.05,
    seed: int = 0,
    progress: bool | None = None,
) -> nn.Module:
    """``bad_encoder`` with two stealth terms, and each stamped image near some of the references, not near all.

    Minimizes ``L0 + L1 + L2 + spread_weight * S + distance_weight * D``. ``L1`` and ``L2`` are those of
    ``bad_encoder``; the others, with ``x + t`` a stamped image and ``r`` a reference::

        L0 = -mean over the three nearest r of cos(f'(x + t), f'(r))
        S  = mean over pairs of images of cos(f'(x + t), f'(y + t)), plus the standard deviation over r of the mean
             over x of cos(f'(x + t), f'(r))
        D  = sliced_distance({f'(x + t)}, {f'(r)})

    ``S`` and ``D`` come in after a quarter of the steps. All embeddings are standardized as in ``bad_encoder``.

    Args:
        encoder, images, trigger, steps, batch_size, rate, seed, progress: as for ``bad_encoder``.
        reference: at least two images of one class that differ: stamped images are spread as they are.
        spread_weight, distance_weight: at least 0.

    Returns, Raises: as ``bad_encoder``; e.g. ``reference holds 1 sample; expected at least 2, to spread over``.

    Source: Tao et al., "Distribution Preserving Backdoor Attack in Self-supervised Learning", IEEE S&P 2024; the terms
    as in its code, https://github.com/Gwinhen/DRUPE. It differs: an image is drawn to three references, not to the
    nearest one; the weights are constant, where the authors raise and lower them by thresholds on the losses; the
    distance is to the reference images, where theirs is to all clean images; reference images are not pushed apart;
    embeddings are standardized; there are fewer steps.
    """
    check_encoder(encoder)
    data, wanted = as_set("images", images), as_set("reference", reference)
    if len(wanted) < 2:
        raise InputError("reference holds 1 sample; expected at least 2, to spread over")
    of_spread, of_distance = weight("spread_weight", spread_weight), weight("distance_weight", distance_weight)
    reference_batch, as_received = reference_inputs(encoder, wanted)
    standard = standardizing(encoder, data)

    def objective(embed: Embed, step: int, clean: Batch, stamped: tuple[Batch, ...], received: Tensor) -> Tensor:
        references, triggered, plain = (standard(embed(batch)) for batch in (reference_batch, stamped[0], clean))
        near = cosines(triggered, references)
        l0 = -near.topk(min(_NEAREST, len(references)), dim=1).values.mean()
        l1 = -F.cosine_similarity(references, standard(as_received)).mean()
        l2 = -F.cosine_similarity(plain, standard(received)).mean()
        loss = l0 + l1 + l2
        if step < _FIRST * steps:
            return loss
        pairs = cosines(triggered, triggered)
        n = len(pairs)
        spread = (pairs.sum() - pairs.diagonal().sum()) / max(n * (n - 1), 1) + near.mean(0).std()
        return loss + of_spread * spread + of_distance * sliced_distance(triggered, references)

    return tuned(
        encoder,
        data,
        (trigger,),
        objective,
        steps=steps,
        batch_size=batch_size,
        rate=rate,
        seed=seed,
        progress=progress,
    )


def sliced_distance(a: Tensor, b: Tensor) -> Tensor:
    """The sliced 2-Wasserstein distance of two sets of points, 0-d.

    The root of the mean, over 64 random directions, of the squared distance between the quantiles of their projections.

    Args:
        a, b: ``(A, width)`` and ``(B, width)`` floats; the directions are drawn from torch's global generator.

    Source: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", 2015.
    """
    directions = F.normalize(torch.randn(a.shape[1], _PROJECTIONS, device=a.device), dim=0)
    levels = (torch.arange(len(a), device=a.device) + 0.5) / len(a)
    ours = (a @ directions).sort(0).values
    theirs = torch.quantile(b @ directions, levels, dim=0)
    return (ours - theirs).square().mean().add(1e-12).sqrt()
