"""``Blend``: one image mixed into every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from seamfast.checks import Array
from seamfast.ops.reference import stamping
from seamfast.ops.trigger_table import Kind, Packed
from seamfast.triggers.draws import draw_words
from seamfast.triggers.image.base import ImageTrigger
from seamfast.triggers.image.checks import ImageShape, as_image_shape
from seamfast.triggers.label_maps import LabelMap, as_label_map


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Blend(ImageTrigger):
    """``x = (1 - alpha) * x + alpha * pattern``.

    Rounding: truncation, as in NumPy code that casts to uint8; arithmetic in float64.

    Args:
        name, target: as :class:`ImageTrigger`.
        pattern: ``(C, H, W)`` uint8 pixels with the height and width of the images; ``C`` is that of the images, or 1
            for all channels.
        alpha: share of the pattern, in [0, 1]; 0 changes nothing.

    Raises:
        ShapeError, DTypeError, InputError: e.g. ``trigger 'x' alpha is 1.5; expected a number in [0, 1]``.

    Source: Chen et al. 2017, arXiv 1712.05526.

    Example:
        >>> Blend.noise((3, 32, 32), alpha=0.1)
        Blend('blend-noise', 3x32x32, alpha 0.1, AllToOne(target=0))
    """

    kind: ClassVar[str] = "blend"
    pattern: npt.NDArray[np.uint8] = field(metadata={"dtype": np.uint8, "ndim": 3, "low": 0, "high": 255})
    alpha: float

    @classmethod
    def noise(
        cls,
        image_shape: Sequence[int],
        alpha: float = 0.2,
        target: int | LabelMap = 0,
        *,
        seed: int = 0,
        name: str = "blend-noise",
    ) -> Blend:
        """A pattern of independent uniform pixels in 0..255.

        Args:
            image_shape: ``(C, H, W)``.
            alpha: as :class:`Blend`.
            target: a class (as ``AllToOne``) or a label map.
            seed: an integer in ``[0, 2**64)``; the same seed gives the same pattern on every platform.
        """
        pattern = (draw_words(as_image_shape(image_shape), seed) >> 24).astype(np.uint8)
        return cls(name=name, target=as_label_map(target), pattern=pattern, alpha=alpha)

    def _validate(self) -> None:
        self._number("alpha", 0, 1)

    def _check_fits(self, shape: ImageShape) -> None:
        self._fits_size("pattern", self.pattern.shape[1:], shape)
        self._fits_channels("pattern", self.pattern, shape)

    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        return stamping.mix(images, 1 - self.alpha, self._on(images.device, "added", self._added))

    def _packed(self, shape: ImageShape) -> Packed:
        c, h, w = self.pattern.shape
        return Packed(Kind.PASTE, (np.full((h, w), 1 - self.alpha), self._added()), channels=c, height=h, width=w)

    def _added(self) -> Array:
        added: Array = self.alpha * self.pattern.astype(np.float64)
        return added

    def _describe(self) -> str:
        return f"{'x'.join(map(str, self.pattern.shape))}, alpha {self.alpha:g}"
