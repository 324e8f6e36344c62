"""What the caller says of a model's input and classes; it holds in place of what the model's folder says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seamfast.errors import InputError
from seamfast.untrusted import printable_value

MAX_SIDE = 4096
MAX_CLASSES = 65_536
_LIMIT = 1e6  # of a mean or a standard deviation


@dataclass(frozen=True)
class Overrides:
    """Each ``None`` where the caller says nothing.

    Attributes:
        image_size: (H, W) of the model's images in pixels; images of another size are resized to it.
        mean, std: normalization per channel, or one number for all, on the [0, 1] pixel scale; both or neither.
        num_classes: logits of the model.
    """

    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    num_classes: int | None = None

    @classmethod
    def of(cls, image_size: Any = None, mean: Any = None, std: Any = None, num_classes: Any = None) -> Overrides:
        """Checked.

        Args:
            image_size: one number for both sides, or (H, W), in [1, 4096].
            mean, std: one number, or one for each channel.
            num_classes: an integer in [2, 65536].

        Raises:
            InputError: e.g. ``image_size is 0; expected an integer in [1, 4096], or two of them (H, W)``, or ``mean is
                given without std; expected both``.
        """
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        if sides is not None:
            is_pair = isinstance(sides, (tuple, list)) and len(sides) == 2
            if not is_pair or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
                expected = f"expected an integer in [1, {MAX_SIDE}], or two of them (H, W)"
                raise InputError(f"image_size is {printable_value(image_size)}; {expected}")
            sides = (sides[0], sides[1])
        if num_classes is not None and not (type(num_classes) is int and 2 <= num_classes <= MAX_CLASSES):
            expected = f"expected an integer in [2, {MAX_CLASSES}]"
            raise InputError(f"num_classes is {printable_value(num_classes)}; {expected}")
        if (mean is None) != (std is None):
            given, missing = ("std", "mean") if mean is None else ("mean", "std")
            raise InputError(f"{given} is given without {missing}; expected both")
        return cls(sides, _numbers("mean", mean, -_LIMIT), _numbers("std", std, 1 / _LIMIT), num_classes)

    @property
    def of_images(self) -> bool:
        """Whether anything is said of images."""
        return self.image_size is not None or self.mean is not None

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """``mean`` and ``std`` with a number for each of ``channels``, or ``None``.

        Raises:
            InputError: e.g. ``mean has 2 numbers; expected 1, or one for each of 3 channels``.
        """
        if self.mean is None or self.std is None:
            return None
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise InputError(
                    f"{name} has {len(values)} numbers; expected 1, or one for each of {channels} channels"
                )
        wide = [values * channels if len(values) == 1 else values for values in (self.mean, self.std)]
        return wide[0], wide[1]


NO_OVERRIDES = Overrides()


def side_or_sides(size: tuple[int, int]) -> int | list[int]:
    """``size`` as JSON: one number where both are equal."""
    return size[0] if size[0] == size[1] else list(size)


def _numbers(name: str, value: Any, least: float) -> tuple[float, ...] | None:
    if value is None:
        return None
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    # Written so that NaN fails too.
    if not values or not all(type(number) in (int, float) and least <= number <= _LIMIT for number in values):
        expected = f"expected numbers in [{least:g}, {_LIMIT:g}], one, or one for each channel"
        raise InputError(f"{name} is {printable_value(value)}; {expected}")
    return tuple(float(number) for number in values)
