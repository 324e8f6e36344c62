"""Kinds of samples, and all code that depends on the kind."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.modalities.base import NO_AUGMENTATION, Augmentation, Modality, StepDraws, Views, ViewSettings
from seamfast.modalities.batch import Batch
from seamfast.modalities.image.modality import ImageModality
from seamfast.modalities.tabular import TabularModality, is_tabular
from seamfast.modalities.tensor import TensorModality
from seamfast.modalities.text.modality import IDS, MASK, TextModality, is_text
from seamfast.modalities.text.vocabulary import Vocabulary

__all__ = [
    "NO_AUGMENTATION",
    "Augmentation",
    "Batch",
    "ImageModality",
    "Modality",
    "StepDraws",
    "TabularModality",
    "TensorModality",
    "TextModality",
    "ViewSettings",
    "Views",
    "Vocabulary",
    "modality_of",
]


def modality_of(inputs: Batch, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Modality:
    """``ImageModality`` of ``(N, C, H, W)`` pixels or floats, ``TextModality`` of named ``input_ids``,
    ``TabularModality`` of columns ``(N, F)`` with floats among them, else ``TensorModality``."""
    if isinstance(inputs, dict) and is_text(inputs):
        return TextModality(Vocabulary.of_ids(inputs[IDS], inputs.get(MASK)))
    if is_tabular(inputs):
        return TabularModality(inputs)
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        return TensorModality(inputs)
    is_pixels = inputs.dtype == torch.uint8
    if not is_pixels and not inputs.is_floating_point():
        return TensorModality(inputs)
    _, c, h, w = inputs.shape
    return ImageModality((c, h, w), is_pixels, mean, std)
