"""What makes a clean-label attack work: images made hard to tell by their content, so that a patch is easier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.data import CleanSet
from seamfast.engine.model import check_logits, device_of, evaluating, logits_of
from seamfast.errors import InputError

__all__ = ["hardened"]

BUDGET = {1: 224, 3: 16}
"""Pixel units, by channels. 16 of 255 is one of the paper's on CIFAR-10. Digits in strokes of ink take far more, and
there only ink moves: noise on the black ground is learnt instead of the patches (a small CNN on 10,000 MNIST images,
half of a class poisoned: ASR 0.44 with 96 everywhere, 0.83 with 224 on ink alone)."""

_STEPS = 20
_STEP_SHARE = 0.125
"""Of the budget, per step: 20 of them reach any corner of the box, from anywhere in it."""
_BATCH = 256


def hardened(clean_model: nn.Module, data: CleanSet, chosen: Tensor, *, seed: int = 0) -> Tensor:
    """The images of ``data`` at ``chosen``, moved by at most ``BUDGET`` to where ``clean_model`` doubts their labels.

    Projected gradient ascent on the cross-entropy of the true label in the L-infinity ball around each image, from a
    random place in it: 20 steps of an eighth of the budget, by the gradient's sign; rounded to pixels at the end.

    Args:
        clean_model: trained on such data without a backdoor; used in eval mode and left as it was, on its own device.
        data: uint8 images with a normalisation, 1 or 3 channels.
        chosen: ``(K,)`` int64, which of them.
        seed: an integer in ``[0, 2**63)``, of the random places.

    Returns:
        ``(K, C, H, W)`` uint8, on the CPU.

    Raises:
        InputError, ModelError: e.g. ``clean_model has 7 logits; expected 10, one a class``.

    Source: Turner, Tsipras and Madry, "Label-Consistent Backdoor Attacks", arXiv:1912.02771; the ascent, Madry et al.,
    arXiv:1706.06083.
    """
    device = device_of(clean_model)
    channels = data.image_shape[0]
    budget = BUDGET[channels]
    pixels = data.pixels(chosen)
    generator = torch.Generator().manual_seed(seed)
    start = (2 * torch.rand(pixels.shape, generator=generator) - 1) * budget
    mean, std = (
        torch.tensor(values, device=device).view(1, -1, 1, 1) * 255 for values in (data.mean or (0,), data.std or (1,))
    )
    moved = []
    with evaluating(clean_model), torch.enable_grad():
        parts = (torch.split(tensor, _BATCH) for tensor in (pixels, start, data.labels[chosen]))
        for given, offset, labels in zip(*parts, strict=True):
            true, centre = labels.to(device), given.to(device).float()
            reach = budget * (centre > 0) if channels == 1 else budget
            low, high = (centre - reach).clamp(min=0), (centre + reach).clamp(max=255)
            images = (centre + offset.to(device)).clamp(low, high)
            for _ in range(_STEPS):
                images.requires_grad_(True)
                logits = logits_of(clean_model, (images - mean) / std)
                check_logits(logits, len(images))
                if logits.shape[1] != data.num_classes:
                    n_wanted = data.num_classes
                    raise InputError(f"clean_model has {logits.shape[1]} logits; expected {n_wanted}, one a class")
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), true), images)
                images = (images.detach() + _STEP_SHARE * budget * gradient.sign()).clamp(low, high)
            moved.append(images.round().to(torch.uint8).cpu())  # the box ends at whole numbers: still inside
    return torch.cat(moved)
