"""``CleanSet``: labelled samples held in memory, as uint8 pixels or as the model takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seamfast.data.split import draw_by_class
from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.ops.normalization import normalization

Batch = Tensor | dict[str, Tensor]
"""What one forward pass takes: a tensor (called by position) or named tensors (called by keyword)."""


class CleanSet:
    """Labelled samples, resident in memory.

    Two forms. *Pixels*: ``uint8`` images, normalised as ``(pixels / 255 - mean) / std`` on the way to the model, so
    that triggers can be stamped and crops and flips drawn in pixel space. *As given*: floats (or named tensors) in the
    form that the model takes; with ``mean`` and ``std`` the pixels can be recovered, so triggers work on these too.

    Args:
        inputs: ``(N, C, H, W)``, ``(N, H, W)`` or ``(N, H, W, C)`` uint8 pixels, 1 or 3 channels; or ``(N, ...)``
            floats; or a mapping of names to ``(N, ...)`` tensors, which the model gets as keyword arguments. Tensors
            or NumPy arrays.
        labels: ``(N,)`` integers in ``[0, num_classes)``.
        mean, std: per channel (or one number for all), in units of the ``[0, 1]`` pixel scale. Default for uint8: 0
            and 1.
        num_classes: at least ``max(labels) + 1``; ``None`` leaves it to the model's logits.
        class_names: one name a class, for tables and plots.

    Raises:
        ShapeError, DTypeError, InputError: e.g. ``labels has shape (8, 1); expected (N,) = (8,)``.

    Example:
        >>> import torch
        >>> data = CleanSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> len(data), data.image_shape
        (4, (1, 8, 8))
    """

    def __init__(
        self,
        inputs: Any,
        labels: Any,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.inputs: Batch = as_inputs(inputs)
        self.labels: Tensor = as_labels(labels)
        n = len(self.labels)
        for name, value in _named(self.inputs):
            if value.ndim == 0 or len(value) != n:
                got = tuple(value.shape)
                raise ShapeError(
                    f"{name} has shape {got} and labels ({n},); expected the same number of samples in both"
                )
            if value.is_floating_point() and not torch.isfinite(value).all():
                row = int((~torch.isfinite(value.reshape(n, -1)).all(1)).nonzero()[0])
                raise InputError(f"{name} holds NaN or Inf, first in sample {row}; expected finite numbers")
        if n and int(self.labels.min()) < 0:
            raise InputError(f"labels hold {int(self.labels.min())}; expected integers from 0")
        largest = int(self.labels.max()) if n else -1
        if num_classes is not None and largest >= num_classes:
            raise InputError(
                f"labels hold {largest}; expected integers in [0, {num_classes}) for num_classes={num_classes}"
            )
        if class_names is not None and num_classes is not None and len(class_names) != num_classes:
            raise InputError(f"class_names has {len(class_names)} names; expected num_classes={num_classes}")
        if class_names is not None and largest >= len(class_names):
            raise InputError(f"class_names has {len(class_names)} names; expected one for each label up to {largest}")
        self.num_classes = num_classes
        self.class_names = tuple(class_names) if class_names is not None else None
        self.mean, self.std = _normalization(self.inputs, mean, std)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        what = ", ".join(
            f"{name} {tuple(v.shape)} {str(v.dtype).removeprefix('torch.')}" for name, v in _named(self.inputs)
        )
        return f"CleanSet({what}, {self.n_labelled_classes} classes present)"

    @property
    def n_labelled_classes(self) -> int:
        """How many different labels occur."""
        return int(torch.unique(self.labels).numel())

    @property
    def is_pixels(self) -> bool:
        """Whether the samples are stored as uint8 images."""
        return isinstance(self.inputs, Tensor) and self.inputs.dtype == torch.uint8

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image. Raises ``ShapeError`` where the samples are not images."""
        if not isinstance(self.inputs, Tensor) or self.inputs.ndim != 4:
            raise ShapeError(f"{self!r} holds no images of shape (N, C, H, W)")
        _, c, h, w = self.inputs.shape
        return c, h, w

    def subset(self, indices: Tensor | Sequence[int]) -> CleanSet:
        """The samples at ``indices``, in that order, with everything else kept."""
        index = as_index(indices)
        inputs = {k: v[index] for k, v in self.inputs.items()} if isinstance(self.inputs, dict) else self.inputs[index]
        return CleanSet(
            inputs,
            self.labels[index],
            mean=self.mean,
            std=self.std,
            num_classes=self.num_classes,
            class_names=self.class_names,
        )

    def draw(self, fraction: float, *, seed: int = 0) -> CleanSet:
        """A random ``fraction`` of each class, in (0, 1], at least one sample of each: a clean budget."""
        return self.subset(draw_by_class(self.labels, fraction, seed=seed))

    def pixels(self, indices: Tensor) -> Tensor:
        """``(N, C, H, W)`` uint8 images at ``indices``: stored, or recovered from floats by ``mean`` and ``std``."""
        images = self.inputs
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise InputError(f"triggers are stamped on images of shape (N, C, H, W); got {self!r}")
        if images.dtype == torch.uint8:
            return images[indices.to(images.device)]
        if self.mean is None or self.std is None:
            raise InputError(
                "triggers are stamped in pixel space, before normalisation; the inputs are floats without a known "
                "normalisation: pass seamfast.CleanSet(inputs, labels, mean=..., std=...)"
            )
        chosen = images[indices.to(images.device)].float()
        mean, std = (_per_channel(v, chosen.device) for v in (self.mean, self.std))
        return ((chosen * std + mean) * 255).round_().clamp_(0, 255).to(torch.uint8)

    def normalize(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(pixels / 255 - mean) / std``: uint8 images to what the model takes, to the bit as ``gather_augment`` does.

        ``mean`` and ``std`` must be known.
        """
        assert self.mean is not None, "normalization unknown"
        assert self.std is not None
        channels = pixels.shape[1]
        table = normalization(self.mean, self.std, channels).table(torch.float32, pixels.device)
        return table[torch.arange(channels, device=pixels.device)[:, None, None], pixels.long()].to(dtype)


def as_labels(labels: Any, name: str = "labels") -> Tensor:
    """``labels`` as an int64 vector, or a ``ShapeError`` or ``DTypeError`` that names what it was."""
    value = labels.detach() if isinstance(labels, Tensor) else from_array(labels, name)
    if value.ndim != 1:
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; expected (N,) = ({len(value) if value.ndim else 1},)")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise DTypeError(f"{name} has dtype {str(value.dtype).removeprefix('torch.')}; expected an integer dtype")
    return value.to("cpu", torch.int64)


def as_index(indices: Tensor | Sequence[int]) -> Tensor:
    """``indices`` as an int64 vector. A mask of bools is refused: cast to int64, it would pick samples 0 and 1."""
    return as_labels(indices if len(indices) else torch.empty(0, dtype=torch.int64), "indices")


def from_array(value: Any, name: str) -> Tensor:
    """``torch.from_numpy(np.asarray(value))`` that also takes read-only, strided and byte-swapped arrays: copied."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{name} has rows of different lengths; expected one array") from error
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"{name} has dtype {array.dtype}; expected numbers")
    # Torch knows native byte order only, and nothing wider than float64.
    wanted = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    if array.dtype != wanted or not (array.flags.writeable and array.flags.c_contiguous):
        # Torch warns about read-only memory, and views of it could be written through.
        array = array.astype(wanted, order="C")
    return torch.from_numpy(array)


def as_inputs(inputs: Any) -> Batch:
    """``inputs`` in the form in which a ``CleanSet`` holds them, or an error that names what they were."""
    if isinstance(inputs, Mapping):
        if not inputs:
            raise InputError("inputs is an empty mapping; expected at least one named tensor")
        return {str(k): _as_tensor(v, str(k)) for k, v in inputs.items()}
    value = _as_tensor(inputs, "inputs")
    return _as_nchw(value) if value.dtype == torch.uint8 else value


def _as_tensor(value: Any, name: str) -> Tensor:
    tensor = value.detach() if isinstance(value, Tensor) else from_array(value, name)
    if tensor.is_complex():
        raise DTypeError(f"{name} has dtype {tensor.dtype}; expected real numbers")
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _as_nchw(images: Tensor) -> Tensor:
    if images.ndim == 3:
        return images.unsqueeze(1).contiguous()
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images.contiguous()
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()
    raise ShapeError(
        f"uint8 images have shape {tuple(images.shape)}; expected (N, C, H, W), (N, H, W, C) or "
        "(N, H, W) with 1 or 3 channels"
    )


def _named(inputs: Batch) -> list[tuple[str, Tensor]]:
    return list(inputs.items()) if isinstance(inputs, dict) else [("inputs", inputs)]


def _normalization(
    inputs: Batch, mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if (mean is None) != (std is None):
        raise InputError(f"got mean={mean} and std={std}; expected both or neither")
    pixels = isinstance(inputs, Tensor) and inputs.dtype == torch.uint8
    if mean is None or std is None:
        return ((0.0,), (1.0,)) if pixels else (None, None)
    if isinstance(inputs, dict) or inputs.ndim != 4:
        raise InputError("mean and std need images of shape (N, C, H, W)")
    channels = inputs.shape[1]
    means, stds = (tuple(float(x) for x in np.atleast_1d(np.asarray(v, dtype=np.float64))) for v in (mean, std))
    for name, value in (("mean", means), ("std", stds)):
        if len(value) not in (1, channels):
            raise InputError(f"{name} has {len(value)} numbers; expected 1 or one for each of {channels} channels")
        if not np.isfinite(value).all():
            raise InputError(f"{name} is {value}; expected finite numbers")
    if min(stds) <= 0:
        raise InputError(f"std is {stds}; expected numbers above 0")
    return means, stds


def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, -1, 1, 1)
