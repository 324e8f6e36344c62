"""``Trigger``, the contract of all triggers: name, label map, frozen fields, equality and copies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from seamfast.checks import Array, as_array, check_name, immutable, number_or_none, short
from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.triggers.label_maps import LabelMap


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Trigger(ABC):
    """A backdoor trigger: how to change a sample, and which label the attack aims at.

    Each kind is one frozen dataclass; its fields are numbers, strings and read-only NumPy arrays, so a trigger can be
    compared, saved and sent to another process. ``triggers/image`` holds the kinds for images, ``triggers/text`` those
    for text.

    Args:
        name: its name in reports: 1 to 128 printable characters.
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

    @abstractmethod
    def stamp(self, samples: Any, *, sample_ids: Tensor | Sequence[int] | None = None, seed: int = 0) -> Any:
        """New samples with the trigger on them; the input is not changed.

        Args:
            samples: ``N`` samples, as ``Modality.stampable`` returns them.
            sample_ids: ``(N,)`` integers from 0 that identify the samples; default ``0 .. N-1``. Random draws depend
                on ``(seed, sample id)`` alone, so the result for a sample does not depend on its batch.
            seed: an integer in ``[0, 2**64)``.
        """

    @abstractmethod
    def check_fits(self, sample_shape: Sequence[int]) -> None:
        """Raise ``ShapeError`` if this trigger cannot be stamped on samples of this shape."""

    def _validate(self) -> None:  # noqa: B027 - a kind may have nothing to check
        """Check the fields of the kind; the arrays are already frozen and in range."""

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
        # Copies go through the constructor: it checks the fields and makes the arrays read-only; caches are not copied.
        return _rebuild, (type(self), {f.name: getattr(self, f.name) for f in fields(self)})

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _frozen(
        self, value: Any, field: str, dtype: type[np.generic], ndim: int, low: float, high: float, floor: bool = False
    ) -> Array:
        """The field as the read-only array that its metadata describes."""
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
        number = number_or_none(getattr(self, field))
        if number is None or not (low < number if above else low <= number) or number > high:
            span = f"{'(' if above else '['}{low:g}, {high:g}]"
            raise InputError(f"{self._who} {field} is {short(getattr(self, field))}; expected a number in {span}")
        self._set(field, number)


def _same(a: Any, b: Any) -> bool:
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)


def _rebuild(cls: type[Trigger], values: dict[str, Any]) -> Trigger:
    return cls(**values)
