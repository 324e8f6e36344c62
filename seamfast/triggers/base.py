"""``Trigger``: what all kinds share. Names, label maps, frozen arrays, the checks before stamping."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.ops.trigger_table import Packed
from seamfast.triggers.checks import (
    Array,
    ImageShape,
    as_array,
    as_image_shape,
    as_number,
    as_sample_ids,
    as_seed,
    check_images,
    check_name,
    immutable,
    short,
)
from seamfast.triggers.label_maps import LabelMap

__all__ = ["Trigger"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Trigger(ABC):
    """A backdoor trigger as data: how to change the pixels of an image, and which label the attacker then wants.

    There is one frozen dataclass a kind; its fields are numbers and read-only NumPy arrays, so a trigger can be
    compared, saved, sent to another process or laid out as a table for a kernel. Triggers work on ``uint8`` pixels,
    before any normalisation, and each kind pins how its result becomes ``uint8`` again. Arithmetic on fractions is
    float64, one rounding an operation, so that ties fall alike on every device.

    Args:
        name: how reports call it: 1 to 128 printable characters.
        target: the label map.
    """

    kind: ClassVar[str]
    name: str
    target: LabelMap

    def __post_init__(self) -> None:
        check_name(self.name)
        target: Any = self.target
        if not isinstance(target, LabelMap):
            raise InputError(f"{self._who} target is {short(target)}; expected a label map such as AllToOne(0)")
        for f in fields(self):
            if f.metadata:
                self._set(f.name, self._frozen(getattr(self, f.name), f.name, **f.metadata))
        self._validate()

    def stamp(self, images: Tensor, *, sample_ids: Tensor | Sequence[int] | None = None, seed: int = 0) -> Tensor:
        """The images with the trigger on them; the input is left as it is.

        Args:
            images: ``(N, C, H, W)`` uint8 pixels, on any device.
            sample_ids: ``(N,)`` integers from 0 that name the samples; default ``0 .. N-1``. Kinds that draw (a patch
                at a random place) draw by ``(seed, sample id)`` alone, so the result for a sample does not depend on
                the batch that it is in.
            seed: an integer in ``[0, 2**64)``.

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
        """Nothing, or an error that says why this trigger cannot be stamped on images of this shape.

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

    @abstractmethod
    def _validate(self) -> None:
        """Check the fields of the kind. The arrays are frozen already and in their range."""

    @abstractmethod
    def _check_fits(self, shape: ImageShape) -> None: ...

    @abstractmethod
    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor: ...

    @abstractmethod
    def _packed(self, shape: ImageShape) -> Packed: ...

    @abstractmethod
    def _describe(self) -> str: ...

    @property
    def _who(self) -> str:
        return f"trigger {self.name!r}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self._describe()}, {self.target})"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        return hash((type(self), self.name, self.target))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Copies go through the constructor: checked again, arrays read-only again, nothing cached carried along.
        return _rebuild, (type(self), {f.name: getattr(self, f.name) for f in fields(self)})

    # Below: what the kinds use.

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
        seed = as_seed(seed)
        return stamp(images, ids, seed) if len(images) else images.clone()

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _frozen(
        self, value: Any, field: str, dtype: type[np.generic], ndim: int, low: float, high: float, floor: bool = False
    ) -> Array:
        """The field as the read-only array that its metadata asks for."""
        what = f"{self._who} {field}"
        array = as_array(value, what)
        if array.ndim != ndim or array.size == 0:
            raise ShapeError(f"{what} has shape {array.shape}; expected {ndim} dimensions, none of size 0")
        fractions = array.dtype.kind == "f"
        if fractions and not np.isfinite(array).all():
            raise InputError(f"{what} holds NaN or Inf; expected finite numbers")
        if fractions and issubclass(dtype, np.integer):
            if not floor:
                raise DTypeError(f"{what} has dtype {array.dtype}; expected integers")
            array = np.floor(array)
        if array.min() < low or array.max() > high:
            raise InputError(f"{what} holds values in [{array.min():g}, {array.max():g}]; expected [{low:g}, {high:g}]")
        return immutable(array.astype(dtype))

    def _number(self, field: str, low: float, high: float, *, above: bool = False) -> None:
        """Make the field a float in ``[low, high]``, or in ``(low, high]`` if ``above``."""
        number = as_number(getattr(self, field))
        if number is None or not (low < number if above else low <= number) or number > high:
            span = f"{'(' if above else '['}{low:g}, {high:g}]"
            raise InputError(f"{self._who} {field} is {short(getattr(self, field))}; expected a number in {span}")
        self._set(field, number)

    def _fits_channels(self, what: str, channels: int, shape: ImageShape) -> None:
        if channels not in (1, shape[0]):
            raise ShapeError(f"{self._who} {what} has {channels} channels; images have {shape[0]}")

    def _fits_size(self, what: str, height: int, width: int, shape: ImageShape) -> None:
        if (height, width) != shape[1:]:
            raise ShapeError(f"{self._who} {what} is {height}x{width}; images are {shape[1]}x{shape[2]}")

    def _on(self, device: torch.device, key: str, make: Callable[[], Array]) -> Tensor:
        """The array that ``make`` gives, on ``device``; made once. ``key`` names it, with all that it depends on."""
        cache: dict[tuple[str, str], Tensor] = self.__dict__.setdefault("_tensors", {})
        tensor = cache.get((key, str(device)))
        if tensor is None:
            tensor = torch.tensor(make(), device=device)  # copies: torch warns about sharing read-only memory
            cache[key, str(device)] = tensor
        return tensor


def _same(a: Any, b: Any) -> bool:
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)


def _rebuild(cls: type[Trigger], values: dict[str, Any]) -> Trigger:
    return cls(**values)
