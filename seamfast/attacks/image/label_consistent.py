"""Adversarial images for the clean-label attack: their content is hard to classify, so a model learns the patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.data import CleanSet
from seamfast.engine.model import check_logits, device_of, evaluating, logits_of
from seamfast.errors import InputError

BUDGET = {1: 224, 3: 16}
"""In pixel units, by number of channels. 16 of 255 is a setting of the paper on CIFAR-10. Drawn digits need far more,
and only their non-black pixels are changed: a model learns noise on the black background instead of the patches (a
small CNN on 10,000 MNIST images, half of a class poisoned: ASR 0.44 with 96 everywhere, 0.83 with 224 on the digit)."""

_STEPS, _STEP_SHARE = 20, 0.125
"""Steps, and the share of the budget for each: any corner of the box can be reached from any point in it."""
_BATCH = 256


def hardened(clean_model: nn.Module, data: CleanSet, chosen: Tensor, *, seed: int = 0) -> Tensor:
    """The images of ``data`` at ``chosen``, changed by at most ``BUDGET`` so that ``clean_model`` misclassifies them.

    Projected gradient ascent on the cross-entropy of the true label in the L-infinity ball around each image, from a
    random point in it: 20 steps of an eighth of the budget along the gradient's sign, rounded to pixels at the end.

    Args:
        clean_model: trained on such data without a backdoor; used in eval mode on its device, and not changed.
        data: uint8 images with a normalization, 1 or 3 channels.
        chosen: ``(K,)`` int64 indices.
        seed: an integer in ``[0, 2**63)``, for the random points.

    Returns:
        ``(K, C, H, W)`` uint8, on the CPU.

    Raises:
        InputError, ModelError: e.g. ``clean_model has 7 logits; expected 10, one a class``.

    Source: Turner, Tsipras and Madry, "Label-Consistent Backdoor Attacks", arXiv:1912.02771; the ascent, Madry et al.,
    arXiv:1706.06083.
    """
    device = device_of(clean_model)
    budget = BUDGET[data.image_shape[0]]
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
            true, center = labels.to(device), given.to(device).float()
            reach = budget * (center > 0) if given.shape[1] == 1 else budget
            low, high = (center - reach).clamp(min=0), (center + reach).clamp(max=255)
            images = (center + offset.to(device)).clamp(low, high)
            for _ in range(_STEPS):
                images.requires_grad_(True)
                logits = logits_of(clean_model, (images - mean) / std)
                check_logits(logits, len(images))
                if logits.shape[1] != data.num_classes:
                    n = data.num_classes
                    raise InputError(f"clean_model has {logits.shape[1]} logits; expected {n}, one a class")
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), true), images)
                images = (images.detach() + _STEP_SHARE * budget * gradient.sign()).clamp(low, high)
            moved.append(images.round().to(torch.uint8).cpu())  # stays in the box, whose bounds are integers
    return torch.cat(moved)
