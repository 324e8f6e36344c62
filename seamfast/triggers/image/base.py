"""``ImageTrigger``, the base of all triggers for images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seamfast.checks import Array, as_sample_ids, as_seed
from seamfast.errors import ShapeError
from seamfast.ops.trigger_table import Packed
from seamfast.triggers.base import Trigger
from seamfast.triggers.image.checks import ImageShape, as_image_shape, check_images


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ImageTrigger(Trigger):
    """A trigger of images: a change of ``uint8`` pixels, before any normalization.

    Each kind defines how its result is rounded to ``uint8``. Arithmetic on fractions is float64 with one rounding for
    each operation, so that ties are rounded alike on every device.

    Attributes:
        has_row: whether ``seamfast.ops.TriggerTable`` has a row for the kind; the others are stamped by ``stamp``.
    """

    has_row: ClassVar[bool] = True

    def stamp(self, images: Tensor, *, sample_ids: Tensor | Sequence[int] | None = None, seed: int = 0) -> Tensor:
        """The images with the trigger on them; the input is not changed.

        Args:
            images: ``(N, C, H, W)`` uint8 pixels, on any device.
            sample_ids, seed: as for :meth:`Trigger.stamp`.

        Returns:
            A new ``(N, C, H, W)`` uint8 tensor on the device of ``images``.

        Raises:
            DTypeError: ``images has dtype float32; expected uint8 pixels``.
            ShapeError: ``images has shape (3, 32, 32); expected (N, C, H, W)``; or the trigger does not fit, e.g.
                ``trigger 'x' patch is 9x9; images are 8x8``.

        Example:
            >>> import torch
            >>> from seamfast.triggers import Patch
            >>> Patch.square(size=1, margin=0).stamp(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
            tensor([[[[  0,   0],
                      [  0, 255]]]], dtype=torch.uint8)
        """
        return self._checked(self._stamp, images, sample_ids, seed)

    def check_fits(self, image_shape: Sequence[int]) -> None:
        """Raise if this trigger cannot be stamped on images of this shape.

        Args:
            image_shape: ``(C, H, W)`` of one image, each at least 1.

        Raises:
            ShapeError: e.g. ``trigger 'x' pattern has 3 channels; images have 1``.
        """
        self._check_fits(as_image_shape(image_shape))

    def packed(self, image_shape: Sequence[int]) -> Packed:
        """This trigger as a row of ``seamfast.ops.TriggerTable``, for images of ``(C, H, W)``.

        Raises:
            ShapeError: as :meth:`check_fits`.
        """
        shape = as_image_shape(image_shape)
        self._check_fits(shape)
        return self._packed(shape)

    def _check_fits(self, shape: ImageShape) -> None:
        """Raise ``ShapeError`` unless the trigger fits."""

    @abstractmethod
    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor: ...

    @abstractmethod
    def _packed(self, shape: ImageShape) -> Packed: ...

    def _checked(
        self,
        stamp: Callable[[Tensor, Tensor, int], Tensor],
        images: Tensor,
        sample_ids: Tensor | Sequence[int] | None,
        seed: int,
    ) -> Tensor:
        check_images(images)
        _, c, h, w = images.shape
        self.check_fits((c, h, w))
        ids = as_sample_ids(sample_ids, len(images), images.device)
        seed = as_seed(seed, 64)
        return stamp(images, ids, seed) if len(images) else images.clone()

    def _fits_channels(self, what: str, array: Array, shape: ImageShape) -> None:
        if len(array) not in (1, shape[0]):
            raise ShapeError(f"{self._who} {what} has {len(array)} channels; images have {shape[0]}")

    def _fits_size(self, what: str, size: tuple[int, ...], shape: ImageShape) -> None:
        if size != shape[1:]:
            raise ShapeError(f"{self._who} {what} is {size[0]}x{size[1]}; images are {shape[1]}x{shape[2]}")

    def _on(self, device: torch.device, key: str, make: Callable[[], Array]) -> Tensor:
        """``make()`` on ``device``, computed once for each ``key``; the key names all that the array depends on."""
        cache: dict[tuple[str, str], Tensor] = self.__dict__.setdefault("_tensors", {})
        tensor = cache.get((key, str(device)))
        if tensor is None:
            # A copy: torch warns about sharing read-only memory.
            tensor = cache[key, str(device)] = torch.tensor(make(), device=device)
        return tensor
