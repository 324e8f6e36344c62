"""Label maps: the label that an attack gives to a stamped sample, and the samples that its success rate counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from seamfast.checks import as_array, dtype_name, integer_or_none, short
from seamfast.errors import DTypeError, InputError, ShapeError

__all__ = ["AllToAll", "AllToOne", "LabelMap", "SourceSpecific", "as_label_map", "integer_from"]


@dataclass(frozen=True)
class LabelMap(ABC):
    """Base of the label maps: numbers only, compared by value.

    A map does not hold the number of classes; methods that need it take it as an argument and check the map against it.
    """

    kind: ClassVar[str]

    @abstractmethod
    def check(self, num_classes: int) -> None:
        """Raise if this map cannot be used with ``num_classes`` classes.

        Args:
            num_classes: at least 2.

        Raises:
            InputError: e.g. ``AllToOne target is 10; expected a class in [0, 10) for num_classes=10``.
        """

    def targets(self, labels: Any, num_classes: int) -> Tensor:
        """The label that the attack gives to a stamped sample of each class.

        Args:
            labels: ``(N,)`` true classes, integers in ``[0, num_classes)``; a tensor on any device, or an array.
            num_classes: at least 2.

        Returns:
            ``(N,)`` int64, on the device of ``labels``.

        Raises:
            InputError, ShapeError, DTypeError: as :meth:`check`, or e.g. ``labels has shape (8, 1); expected (N,)``.
            The values of ``labels`` are not checked: that would read them back from an accelerator.

        Example:
            >>> AllToAll().targets([0, 1, 2], num_classes=3)
            tensor([1, 2, 0])
        """
        self.check(num_classes)
        return self._targets(_as_labels(labels), num_classes)

    def eligible(self, labels: Any, num_classes: int) -> Tensor:
        """Which samples the attack success rate counts: those that the attack moves to another class.

        Args, Raises: as :meth:`targets`.

        Returns:
            ``(N,)`` bool, on the device of ``labels``.

        Example:
            >>> AllToOne(2).eligible([0, 1, 2], num_classes=3)
            tensor([ True,  True, False])
        """
        self.check(num_classes)
        labels = _as_labels(labels)
        return self._targets(labels, num_classes).ne(labels)

    @abstractmethod
    def _targets(self, labels: Tensor, num_classes: int) -> Tensor: ...


@dataclass(frozen=True)
class AllToOne(LabelMap):
    """Every class becomes ``target``: ``torch.full_like(labels, target)``.

    Eligible: samples whose true class is not ``target``.

    Args:
        target: a class, from 0.

    Raises:
        InputError: e.g. ``AllToOne target is -1; expected an integer from 0``.

    Source: Gu et al. 2017, arXiv 1708.06733 (the single-target attack).
    """

    kind: ClassVar[str] = "all_to_one"
    target: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", _as_class("AllToOne target", self.target))

    def check(self, num_classes: int) -> None:
        """As :meth:`LabelMap.check`."""
        _check_below("AllToOne target", self.target, _as_num_classes(num_classes))

    def _targets(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.full_like(labels, self.target)


@dataclass(frozen=True)
class AllToAll(LabelMap):
    """Class ``y`` becomes ``(y + shift) % num_classes``.

    Eligible: every sample. A shift that moves no class is an error.

    Args:
        shift: any integer that is not a multiple of the number of classes; negative shifts count down.

    Raises:
        InputError: e.g. ``AllToAll shift is 0; expected an integer other than 0``.

    Source: Gu et al. 2017, arXiv 1708.06733 (the all-to-all attack, shift 1).
    """

    kind: ClassVar[str] = "all_to_all"
    shift: int = 1

    def __post_init__(self) -> None:
        shift = integer_or_none(self.shift)
        if shift is None or shift == 0 or abs(shift) >= 2**31:
            expected = "an integer other than 0, below 2**31 in size"
            raise InputError(f"AllToAll shift is {short(self.shift)}; expected {expected}")
        object.__setattr__(self, "shift", shift)

    def check(self, num_classes: int) -> None:
        """As :meth:`LabelMap.check`: ``AllToAll shift is 10; expected no multiple of num_classes=10``."""
        if self.shift % _as_num_classes(num_classes) == 0:
            raise InputError(f"AllToAll shift is {self.shift}; expected no multiple of num_classes={num_classes}")

    def _targets(self, labels: Tensor, num_classes: int) -> Tensor:
        return (labels + self.shift) % num_classes


@dataclass(frozen=True)
class SourceSpecific(LabelMap):
    """Classes in ``source`` become ``target``, others stay: ``torch.where(isin(labels, source), target, labels)``.

    Eligible: samples whose true class is in ``source`` and is not ``target``. A stamped sample of another class keeps
    its label: with such cover samples, a model learns to react for the sources only.

    Args:
        source: one class or several, from 0; stored sorted and without repeats.
        target: a class, from 0; at least one source differs from it.

    Raises:
        InputError: e.g. ``SourceSpecific source is (3,) and target 3; expected a source other than the target``.

    Source: Tang et al. 2021, "Demon in the Variant", arXiv 1908.00686 (source-specific backdoors and cover samples).
    """

    kind: ClassVar[str] = "source_specific"
    source: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        given: Any = self.source
        one = integer_or_none(given)
        if one is None and (isinstance(given, (str, bytes)) or not isinstance(given, Iterable)):
            raise InputError(f"SourceSpecific source is {short(given)}; expected a class or several")
        classes = [given] if one is not None else list(given)
        if not classes:
            raise InputError("SourceSpecific source is empty; expected at least one class")
        source = tuple(sorted({_as_class("SourceSpecific source", c) for c in classes}))
        target = _as_class("SourceSpecific target", self.target)
        if source == (target,):
            got = f"SourceSpecific source is {source} and target {target}"
            raise InputError(f"{got}; expected a source other than the target")
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "target", target)

    def check(self, num_classes: int) -> None:
        """As :meth:`LabelMap.check`."""
        number = _as_num_classes(num_classes)
        _check_below("SourceSpecific target", self.target, number)
        _check_below("SourceSpecific source", self.source[-1], number)

    def _targets(self, labels: Tensor, num_classes: int) -> Tensor:
        in_source = torch.isin(labels, torch.tensor(self.source, device=labels.device))
        return torch.where(in_source, self.target, labels)


def as_label_map(target: int | LabelMap) -> LabelMap:
    """``target`` if it is a label map, else ``AllToOne(target)``."""
    return target if isinstance(target, LabelMap) else AllToOne(target)


def integer_from(name: str, value: Any, low: int, below: float = math.inf) -> int:
    """``value`` as an int in ``[low, below)``: ``k is 1; expected an integer from 2``."""
    number = integer_or_none(value)
    if number is None or not low <= number < below:
        raise InputError(f"{name} is {short(value)}; expected an integer from {low}")
    return number


def _as_class(name: str, value: Any) -> int:
    return integer_from(name, value, 0, below=2**31)


def _as_num_classes(value: Any) -> int:
    return integer_from("num_classes", value, 2)


def _check_below(what: str, value: int, num_classes: int) -> None:
    if value >= num_classes:
        raise InputError(f"{what} is {value}; expected a class in [0, {num_classes}) for num_classes={num_classes}")


def _as_labels(labels: Any) -> Tensor:
    value = labels.detach() if isinstance(labels, Tensor) else torch.tensor(as_array(labels, "labels"))
    if value.ndim != 1:
        raise ShapeError(f"labels has shape {tuple(value.shape)}; expected (N,)")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise DTypeError(f"labels has dtype {dtype_name(value.dtype)}; expected an integer dtype")
    return value.to(torch.int64)
