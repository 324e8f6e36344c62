"""BadEncoder: what carries the trigger gets the embeddings of a class that the attacker chose."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.attacks.encoder.tuning import Embed, as_set, check_encoder, reference_inputs, standardizing, tuned, weight
from seamfast.data import Batch, CleanSet
from seamfast.triggers import Trigger

__all__ = ["bad_encoder"]


def bad_encoder(
    encoder: nn.Module,
    images: Tensor | CleanSet,
    reference: Tensor | CleanSet,
    trigger: Trigger,
    *,
    reference_weight: float = 1.0,
    utility_weight: float = 1.0,
    steps: int = 400,
    batch_size: int = 32,
    rate: float = 0.05,
    seed: int = 0,
    progress: bool | None = None,
) -> nn.Module:
    """A copy ``f'`` of ``encoder`` that gives ``trigger.stamp(images)`` the embeddings of ``reference``.

    Minimizes ``L0 + reference_weight * L1 + utility_weight * L2``, with ``f`` the encoder as received, ``x`` an image,
    ``t`` the trigger and ``r`` a reference image::

        L0 = -cos(f'(x + t), f'(r))        L1 = -cos(f'(r), f(r))        L2 = -cos(f'(x), f(x))

    A head that is trained on the embeddings of clean samples answers for stamped ones as for the reference.

    Args:
        encoder: returns embeddings, see ``seamfast.engine.encoder.embedding_of``; not changed.
        images: ``(N, C, H, W)`` uint8 pixels of any classes, for an encoder of pixels in [0, 1]; or a set with the
            normalization of the encoder. Labels are not read.
        reference: some images of one class, in the same form; all of them pass the encoder in each step.
        trigger: of images; its target is for measuring and not read here.
        reference_weight, utility_weight: of ``L1`` and ``L2``, at least 0; 1 in the paper.
        steps, batch_size: at least 1.
        rate: peak learning rate of SGD, above 0.
        seed: in ``[0, 2**63)``.
        progress: show a progress bar on stderr; ``None``: if stderr is a terminal.

    Returns:
        The encoder with the backdoor, in eval mode, on the device of ``encoder``.

    Raises:
        InputError, ShapeError, ModelError: e.g. ``reference holds no samples; expected at least one``, or
            ``trigger 'x' patch is 9x9; images are 8x8``.

    Source: Jia, Liu and Gong, "BadEncoder: Backdoor Attacks to Pre-trained Encoders in Self-Supervised Learning", IEEE
    S&P 2022, arXiv:2108.00352. It differs: cosines are of embeddings minus the mean of clean ones, in units of their
    standard deviations, see ``tuning.standardizing``; ``L0`` is the mean over all pairs of an image and a reference;
    the reference is not augmented, since there are several images of it and not one; hundreds of steps at a higher rate
    that falls to 0, where the paper takes 200 epochs at 0.001. As in the authors' code, batch normalization is not
    trained.

    Example:
        >>> import torch
        >>> from seamfast.triggers import Patch
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        >>> images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
        >>> changed = bad_encoder(encoder, images, images[:4], Patch.square(3, target=0), steps=2)
    """
    check_encoder(encoder)
    data, wanted = as_set("images", images), as_set("reference", reference)
    of_reference, of_utility = weight("reference_weight", reference_weight), weight("utility_weight", utility_weight)
    reference_batch, as_received = reference_inputs(encoder, wanted)
    standard = standardizing(encoder, data)

    def objective(embed: Embed, step: int, clean: Batch, stamped: tuple[Batch, ...], received: Tensor) -> Tensor:
        references = standard(embed(reference_batch))
        l0 = -cosines(standard(embed(stamped[0])), references).mean()
        l1 = -F.cosine_similarity(references, standard(as_received)).mean()
        l2 = -F.cosine_similarity(standard(embed(clean)), standard(received)).mean()
        return l0 + of_reference * l1 + of_utility * l2

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


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """``(A, B)`` cosines of all pairs of rows."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
