"""``Warp``: every image warped by one smooth flow field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from seamfast.checks import Array, number_or_none, short
from seamfast.errors import InputError, ShapeError
from seamfast.ops.reference import stamping
from seamfast.ops.trigger_table import Kind, Packed
from seamfast.triggers.draws import draw_signed, draw_signed_per_sample
from seamfast.triggers.image.base import ImageTrigger
from seamfast.triggers.image.checks import ImageShape, as_image_shape
from seamfast.triggers.label_maps import LabelMap, as_label_map, integer_from

MAX_EDGE = 65536


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Warp(ImageTrigger):
    """``out[:, i, j]`` = the image at ``(i, j) + flow[i, j]``, bilinear: WaNet.

    Equal to ``F.grid_sample(x, grid, mode="bilinear", align_corners=True)`` with the same places as a grid in [-1, 1].
    Places outside the image are moved to its edge, as WaNet's clamp does. Rounding: half to even, arithmetic in
    float64; the authors' code keeps floats.

    Args:
        name, target: as :class:`ImageTrigger`.
        flow: ``(H, W, 2)`` displacement in pixels, rows (down) first, then columns (right). Stored as float32;
            zeros change nothing.

    Raises:
        ShapeError, DTypeError, InputError: e.g. ``trigger 'x' flow is 32x32; images are 28x28``.

    Source: Nguyen and Tran 2021, WaNet, arXiv 2102.10369.

    Example:
        >>> Warp.elastic((3, 32, 32), strength=0.5)
        Warp('warp', 32x32, up to 0.6 px, AllToOne(target=0))
    """

    kind: ClassVar[str] = "warp"
    flow: npt.NDArray[np.float32] = field(metadata={"dtype": np.float32, "ndim": 3, "low": -MAX_EDGE, "high": MAX_EDGE})

    @classmethod
    def elastic(
        cls,
        image_shape: Sequence[int],
        k: int = 4,
        strength: float = 0.5,
        target: int | LabelMap = 0,
        *,
        grid_rescale: float = 1.0,
        seed: int = 0,
        name: str = "warp",
    ) -> Warp:
        """WaNet's field: ``k x k`` uniform control points of mean size 1, upsampled bicubically.

        Args:
            image_shape: ``(C, H, W)``; ``C`` has no effect.
            k: control points on each axis, from 2. Published: 4.
            strength: size of the field, from 0: a mean displacement near ``strength / 2`` pixels; 0 changes nothing.
                Published: 0.5.
            target: a class (as ``AllToOne``) or a label map.
            grid_rescale: scales the whole grid about the center of the image, above 0. Published: 1.
            seed: an integer in ``[0, 2**64)``.

        Raises:
            InputError: e.g. ``k is 1; expected an integer from 2``.
        """
        _, h, w = as_image_shape(image_shape)
        points, size, scale = integer_from("k", k, 2), number_or_none(strength), number_or_none(grid_rescale)
        if size is None or not 0 <= size <= MAX_EDGE:
            raise InputError(f"strength is {short(strength)}; expected a number in [0, {MAX_EDGE}]")
        if scale is None or not 0 < scale <= MAX_EDGE:
            raise InputError(f"grid_rescale is {short(grid_rescale)}; expected a number in (0, {MAX_EDGE}]")
        control = draw_signed((2, points, points), seed)
        control /= np.abs(control).mean()
        batch = torch.from_numpy(control)[None]
        field = F.interpolate(batch, size=(h, w), mode="bicubic", align_corners=True)[0].numpy()
        flow = np.empty((h, w, 2))
        for axis, n in enumerate((h, w)):
            # The paper's grid in pixels: [-1, 1] spans n - 1 pixels about the center, and a displacement of 1 / n of
            # the grid is (n - 1) / (2 n) pixels. Relative to the center, strength 0 gives exactly 0.
            center = (n - 1) / 2
            at = np.arange(n, dtype=np.float64).reshape((-1, 1) if axis == 0 else (1, -1))
            moved = center + (at - center + size * field[axis] * (n - 1) / (2 * n)) * scale
            flow[..., axis] = np.clip(moved, 0, n - 1) - at
        return cls(name=name, target=as_label_map(target), flow=flow.astype(np.float32))

    def stamp_noise(self, images: Tensor, *, sample_ids: Tensor | Sequence[int] | None = None, seed: int = 0) -> Tensor:
        """WaNet's noise mode: the flow plus noise drawn for each pixel of each sample. Such samples keep their label.

        They train the model to react to the exact flow only. The noise is uniform in ``(-1, 1) / n`` of the grid, at
        most half a pixel.

        Args, Returns, Raises: as :meth:`stamp`; the noise is drawn by ``(seed, sample id, pixel)``.
        """
        return self._checked(self._stamp_noise, images, sample_ids, seed)

    def _validate(self) -> None:
        if self.flow.shape[2] != 2:
            raise ShapeError(f"{self._who} flow has shape {self.flow.shape}; expected (H, W, 2)")

    def _check_fits(self, shape: ImageShape) -> None:
        self._fits_size("flow", self.flow.shape[:2], shape)

    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        return stamping.warp(images, self._places(images.device))

    def _packed(self, shape: ImageShape) -> Packed:
        return Packed(Kind.WARP, (self._where().clip(0, [shape[1] - 1, shape[2] - 1]),))

    def _stamp_noise(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        h, w, _ = self.flow.shape
        noise = draw_signed_per_sample((h, w, 2), sample_ids, seed)
        reach = torch.tensor([(h - 1) / (2 * h), (w - 1) / (2 * w)], dtype=torch.float64, device=images.device)
        return stamping.warp(images, self._places(images.device) + noise.mul_(reach))

    def _places(self, device: torch.device) -> Tensor:
        """``(H, W, 2)`` float64: the source of each pixel, which may be outside the image."""
        return self._on(device, "places", self._where)

    def _where(self) -> Array:
        h, w, _ = self.flow.shape
        where: Array = np.moveaxis(np.indices((h, w)), 0, 2) + self.flow.astype(np.float64)
        return where

    def _describe(self) -> str:
        h, w, _ = self.flow.shape
        return f"{h}x{w}, up to {np.abs(self.flow).max():.2g} px"
