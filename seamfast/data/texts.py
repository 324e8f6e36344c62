"""``Texts``: labeled texts in memory, before they are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seamfast.checks import short
from seamfast.data.clean_set import CleanSet, as_index, as_labels
from seamfast.errors import DTypeError, InputError, ShapeError


@dataclass(frozen=True, eq=False, repr=False)
class Texts:
    """Labeled texts.

    Args:
        texts: one ``str`` for each sample, not empty.
        labels: ``(N,)`` integers from 0, or ``N`` strings of ``class_names``, which become their positions there.
        class_names: one different name for each class, in the order of the model's logits.

    Raises:
        InputError: e.g. ``texts[3] is empty; expected text``, ``labels hold 'pos'; expected integers, or class_names
            that list them in the order of the model's logits``, ``labels hold 2; expected integers in [0, 2) for
            class_names``.
        ShapeError: ``texts has 3 samples and labels 2; expected the same number of samples in both``.
        DTypeError: e.g. ``labels has dtype float32; expected an integer dtype``.

    Example:
        >>> data = Texts(["bad .", "good ."], ["neg", "pos"], class_names=["neg", "pos"])
        >>> data.labels.tolist()
        [0, 1]
    """

    texts: tuple[str, ...]
    labels: Tensor
    class_names: tuple[str, ...] | None = None

    def __init__(self, texts: Sequence[str], labels: Any, class_names: Sequence[str] | None = None) -> None:
        names = None if class_names is None else check_class_names(class_names)
        object.__setattr__(self, "texts", _checked_texts(texts))
        object.__setattr__(self, "labels", _numbered(labels, names))
        object.__setattr__(self, "class_names", names)
        if len(self.texts) != len(self.labels):
            n, m = len(self.texts), len(self.labels)
            raise ShapeError(f"texts has {n} samples and labels {m}; expected the same number of samples in both")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Texts({len(self)} texts, {self.n_labelled_classes} classes present)"

    @property
    def n_labelled_classes(self) -> int:
        """Number of different labels."""
        return int(torch.unique(self.labels).numel())

    def subset(self, indices: Tensor | Sequence[int]) -> Texts:
        """The texts at ``indices``, in that order, with the same class names."""
        index = as_index(indices)
        return Texts([self.texts[i] for i in index.tolist()], self.labels[index], self.class_names)

    def encoded(self, tokenizer: Any, max_length: int | None = None) -> CleanSet:
        """``CleanSet.from_texts(texts, labels, tokenizer, max_length=max_length, class_names=class_names)``."""
        n_classes = None if self.class_names is None else len(self.class_names)
        return CleanSet.from_texts(
            self.texts,
            self.labels,
            tokenizer,
            max_length=max_length,
            num_classes=n_classes,
            class_names=self.class_names,
        )


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """``class_names`` as a tuple of different strings. Raises ``InputError``."""
    names = (class_names,) if isinstance(class_names, str) else tuple(class_names)
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"class_names is {short(class_names)}; expected one string for each class")
    if len(set(names)) != len(names):
        raise InputError(f"class_names is {short(class_names)}; expected a different name for each class")
    return names


def _checked_texts(texts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(texts, (str, bytes)):
        raise InputError(f"texts is a {type(texts).__name__}; expected a sequence of one str for each sample")
    found = tuple(texts)
    for row, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"texts[{row}] is a {type(text).__name__}; expected a str")
        if not text or text.isspace():
            raise InputError(f"texts[{row}] is empty; expected text")
        try:
            text.encode()
        except UnicodeEncodeError:  # tokenizers take UTF-8
            raise InputError(f"texts[{row}] holds half of a surrogate pair; expected Unicode text") from None
    return found


def _numbered(labels: Any, names: tuple[str, ...] | None) -> Tensor:
    if isinstance(labels, (str, bytes)):
        raise DTypeError(f"labels is a {type(labels).__name__}; expected one label for each sample")
    values = labels if isinstance(labels, Tensor) else list(labels)
    if not isinstance(values, Tensor) and any(isinstance(value, str) for value in values):
        values = [_position(value, names) for value in values]
    numbers = as_labels(values if len(values) else torch.empty(0, dtype=torch.int64))
    if len(numbers) and int(numbers.min()) < 0:
        raise InputError(f"labels hold {int(numbers.min())}; expected integers from 0")
    if names is not None and len(numbers) and int(numbers.max()) >= len(names):
        raise InputError(f"labels hold {int(numbers.max())}; expected integers in [0, {len(names)}) for class_names")
    return numbers


def _position(value: Any, names: tuple[str, ...] | None) -> int:
    if names is None:
        expected = "integers, or class_names that list them in the order of the model's logits"
        raise InputError(f"labels hold {short(value)}; expected {expected}")
    if value not in names:
        raise InputError(f"labels hold {short(value)}; expected names of class_names: {short(names)}")
    return names.index(value)
