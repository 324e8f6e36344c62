"""``CleanSet``: labeled samples in memory, with their modality."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seamfast.checks import dtype_name
from seamfast.data.split import draw_by_class
from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.modalities import Batch, ImageModality, Modality, TextModality, Vocabulary, modality_of
from seamfast.modalities.batch import map_tensors, named_tensors


class CleanSet:
    """Labeled samples in memory.

    *Pixels* are ``uint8`` images, normalized as ``(pixels / 255 - mean) / std`` for the model, so that triggers, crops
    and flips apply in pixel space. Floats and named tensors are in the form that the model takes; with ``mean`` and
    ``std``, their pixels can be recovered, so triggers apply to these too.

    Attributes:
        inputs, labels, num_classes, class_names: as given, in one form.
        modality: the kind of sample.
        reads_agree: whether a sample is the same each time it is read; ``None``: it was read once, and not tested.
        drawn_from: of samples of a loader, the index of each in the dataset; ``None``: not known.

    Args:
        inputs: ``(N, C, H, W)``, ``(N, H, W)`` or ``(N, H, W, C)`` uint8 pixels, 1 or 3 channels; or ``(N, ...)``
            floats; or a mapping of names to ``(N, ...)`` tensors, which the model gets as keyword arguments. Tensors
            or NumPy arrays.
        labels: ``(N,)`` integers in ``[0, num_classes)``.
        mean, std: per channel (or one number for all), in units of the ``[0, 1]`` pixel scale. Default for uint8: 0
            and 1.
        num_classes: at least ``max(labels) + 1``; ``None`` leaves it to the model's logits.
        class_names: one name for each class, for tables and plots.
        modality: the kind of sample; ``None``: images if ``inputs`` is ``(N, C, H, W)``, else plain tensors.

    Raises:
        ShapeError, DTypeError, InputError: e.g. ``labels has shape (8, 1); expected (N,) = (8,)``.

    Example:
        >>> import torch
        >>> data = CleanSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> len(data), data.image_shape
        (4, (1, 8, 8))
    """

    reads_agree: bool | None = True
    drawn_from: Sequence[Hashable] | None = None

    def __init__(
        self,
        inputs: Any,
        labels: Any,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        modality: Modality | None = None,
    ) -> None:
        self.inputs: Batch = as_inputs(inputs)
        self.labels: Tensor = as_labels(labels)
        n = len(self.labels)
        for name, value in named_tensors(self.inputs).items():
            if value.ndim == 0 or len(value) != n:
                got = tuple(value.shape)
                message = f"{name} has shape {got} and labels ({n},); expected the same number of samples in both"
                raise ShapeError(message)
            if (row := first_not_finite(value)) is not None:
                raise InputError(f"{name} holds NaN or Inf, first in sample {row}; expected finite numbers")
        if n and int(self.labels.min()) < 0:
            raise InputError(f"labels hold {int(self.labels.min())}; expected integers from 0")
        largest = int(self.labels.max()) if n else -1
        if num_classes is not None and largest >= num_classes:
            message = f"labels hold {largest}; expected integers in [0, {num_classes}) for num_classes={num_classes}"
            raise InputError(message)
        if class_names is not None and num_classes is not None and len(class_names) != num_classes:
            raise InputError(f"class_names has {len(class_names)} names; expected num_classes={num_classes}")
        if class_names is not None and largest >= len(class_names):
            raise InputError(f"class_names has {len(class_names)} names; expected one for each label up to {largest}")
        self.num_classes = num_classes
        self.class_names = tuple(class_names) if class_names is not None else None
        if modality is None:
            modality = modality_of(self.inputs, *_normalization(self.inputs, mean, std))
        elif not isinstance(modality, Modality):
            raise InputError(f"modality is {modality!r}; expected a seamfast.modalities.Modality")
        elif mean is not None or std is not None:
            raise InputError("got a normalization and a modality; expected one of them")
        modality.check_inputs(self.inputs)
        self.modality = modality

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        labels: Any,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> CleanSet:
        """Texts as ``input_ids`` and ``attention_mask``, ``(N, L)`` int64, padded to the longest.

        Args:
            texts: N strings, none of them empty.
            labels: as for the constructor.
            tokenizer: that of the model: a ``tokenizers.Tokenizer``, a fast tokenizer of ``transformers``, or a
                ``seamfast.modalities.Vocabulary`` that has one.
            max_length: tokens of the longest text, special ones included; longer texts are cut. ``None``: the
                tokenizer's own limit, at most 512.
            num_classes, class_names: as for the constructor.

        Raises:
            InputError: e.g. ``text 3 is empty: it has special tokens only; expected at least one other token``.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(f"texts is a {type(texts).__name__}; expected a list of str")
        vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.of(tokenizer, max_length=max_length)
        if isinstance(tokenizer, Vocabulary) and max_length is not None:
            vocabulary = vocabulary.with_max_length(max_length)
        inputs = vocabulary.encode(texts)
        modality = TextModality(vocabulary)
        return cls(inputs, labels, num_classes=num_classes, class_names=class_names, modality=modality)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        tensors = [f"{name} {tuple(v.shape)} {dtype_name(v.dtype)}" for name, v in named_tensors(self.inputs).items()]
        return f"CleanSet({', '.join(tensors)}, {self.n_labelled_classes} classes present)"

    @property
    def n_labelled_classes(self) -> int:
        """Number of different labels."""
        return int(torch.unique(self.labels).numel())

    @property
    def mean(self) -> tuple[float, ...] | None:
        """Mean of the normalization, if known."""
        return self.modality.mean

    @property
    def std(self) -> tuple[float, ...] | None:
        """Standard deviation of the normalization, if known."""
        return self.modality.std

    @property
    def is_pixels(self) -> bool:
        """Whether the samples are stored as uint8 images."""
        return isinstance(self.modality, ImageModality) and self.modality.is_pixels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image. Raises ``ShapeError`` if the samples are not images."""
        if not isinstance(self.modality, ImageModality):
            raise ShapeError(f"{self!r} holds no images of shape (N, C, H, W)")
        return self.modality.shape

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample, ``(C, H, W)`` of an image; ``None`` if a sample is several tensors."""
        return None if isinstance(self.inputs, dict) else tuple(self.inputs.shape[1:])

    @property
    def description(self) -> dict[str, Any]:
        """The other arguments of a part of the set: ``CleanSet(inputs, labels, **description)``."""
        return {"modality": self.modality, "num_classes": self.num_classes, "class_names": self.class_names}

    def subset(self, indices: Tensor | Sequence[int]) -> CleanSet:
        """The samples at ``indices``, in that order, with the same ``description``."""
        index = as_index(indices)
        return CleanSet(map_tensors(lambda value: value[index], self.inputs), self.labels[index], **self.description)

    def followed_by(self, others: CleanSet) -> CleanSet:
        """These samples, then the ``others``, of the same kind, with the ``description`` of this set."""
        return CleanSet(
            self.modality.joined(self.inputs, others.inputs),
            torch.cat([self.labels, others.labels]),
            **self.description,
        )

    def identities(self) -> list[Hashable]:
        """A value for each sample; those of two samples are equal if they have the same bytes and the same label."""
        return sample_digests(named_tensors(self.inputs).values(), self.labels)

    def contents(self) -> list[Hashable]:
        """A value for each sample; those of two samples are equal if they have the same bytes, of any labels."""
        return sample_digests(named_tensors(self.inputs).values(), torch.zeros_like(self.labels))

    def origins(self) -> list[Hashable]:
        """A value for each sample, equal for those with the same contents and for those drawn from the same index."""
        if self.drawn_from is None or len(set(self.drawn_from)) == len(self):
            return self.contents()
        return joined_names(self.contents(), self.drawn_from)

    def sha256(self) -> str:
        """The SHA-256 of all samples and labels in their order, in hexadecimal.

        Of each tensor by name, then of ``labels`` as int64: ``[name, dtype, shape]`` as JSON, a newline, the bytes. The
        name of a single tensor is ``inputs``.
        """
        digest = hashlib.sha256()
        for name, value in (*sorted(named_tensors(self.inputs).items()), ("labels", self.labels)):
            header = json.dumps([name, dtype_name(value.dtype), list(value.shape)])
            digest.update(f"{header}\n".encode())
            for part in torch.split(value, 4096):
                digest.update(part.contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def draw(self, fraction: float, *, seed: int = 0) -> CleanSet:
        """A random ``fraction`` of each class, in (0, 1], at least one sample of each: a clean budget."""
        return self.subset(draw_by_class(self.labels, fraction, seed=seed))

    def stampable(self, indices: Tensor) -> Any:
        """The samples at ``indices`` in the form on which triggers are stamped; of images, :meth:`pixels`."""
        return self.modality.stampable(self.inputs, indices)

    def pixels(self, indices: Tensor) -> Tensor:
        """``(N, C, H, W)`` uint8 images at ``indices``: stored, or recovered from floats by ``mean`` and ``std``."""
        if not isinstance(self.modality, ImageModality):
            raise InputError(f"triggers are stamped on images of shape (N, C, H, W); got {self!r}")
        return self.modality.stampable(self.inputs, indices)

    def normalize(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(pixels / 255 - mean) / std`` of uint8 images, to the bit as ``gather_augment``; both must be known."""
        assert isinstance(self.modality, ImageModality)
        return self.modality.model_inputs(pixels, dtype)


def check_clean_set(name: str, data: object) -> None:
    """Raise unless ``data`` is a set of at least one sample: ``test is a list; expected a seamfast.CleanSet``."""
    if not isinstance(data, CleanSet):
        raise InputError(f"{name} is a {type(data).__name__}; expected a seamfast.CleanSet")
    if not len(data):
        raise InputError(f"{name} holds no samples; expected at least one")


def sample_digests(columns: Iterable[Tensor], labels: Tensor) -> list[Hashable]:
    """``blake2b`` of the label and of the bytes of each sample in ``columns``, ``(N, ...)`` each, on the CPU."""
    digests = [hashlib.blake2b(y.to_bytes(8, "little", signed=True), digest_size=16) for y in labels.tolist()]
    for column in columns:
        flat = column.reshape(len(column), -1).contiguous()
        for digest, row in zip(digests, flat.view(torch.uint8).numpy() if flat.shape[1] else (), strict=False):
            digest.update(row.data)
    return [digest.digest() for digest in digests]


def joined_names(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[Hashable]:
    """A value for each place; those of two are equal if a chain of places with equal names, of either kind, joins them.

    Args:
        first, second: names of the places.
    """
    above = list(range(len(first)))

    def top(place: int) -> int:
        while above[place] != place:
            above[place] = place = above[above[place]]
        return place

    for names in (first, second):
        known: dict[Hashable, int] = {}
        for place, name in enumerate(names):
            above[top(place)] = top(known.setdefault(name, place))
    return [top(place) for place in range(len(first))]


def first_not_finite(value: Tensor) -> int | None:
    """The first row of floats that holds NaN or Inf, or ``None``."""
    if not value.is_floating_point() or torch.isfinite(value).all():
        return None
    return int((~torch.isfinite(value.reshape(len(value), -1)).all(1)).nonzero()[0])


def as_labels(labels: Any, name: str = "labels") -> Tensor:
    """``labels`` as an int64 vector on the CPU. Raises ``ShapeError`` or ``DTypeError``."""
    value = labels.detach() if isinstance(labels, Tensor) else from_array(labels, name)
    if value.ndim != 1:
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; expected (N,) = ({len(value) if value.ndim else 1},)")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise DTypeError(f"{name} has dtype {dtype_name(value.dtype)}; expected an integer dtype")
    return value.to("cpu", torch.int64)


def as_index(indices: Tensor | Sequence[int]) -> Tensor:
    """``indices`` as an int64 vector. A bool mask is refused: as int64, it would select samples 0 and 1."""
    return as_labels(indices if len(indices) else torch.empty(0, dtype=torch.int64), "indices")


def from_array(value: Any, name: str) -> Tensor:
    """``torch.from_numpy(np.asarray(value))``; read-only, strided and byte-swapped arrays are copied."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{name} has rows of different lengths; expected one array") from error
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"{name} has dtype {array.dtype}; expected numbers")
    # torch supports native byte order only, and nothing wider than float64.
    dtype = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    if array.dtype != dtype or not (array.flags.writeable and array.flags.c_contiguous):
        # torch warns about read-only memory, which a tensor could write to.
        array = array.astype(dtype, order="C")
    return torch.from_numpy(array)


def as_inputs(inputs: Any) -> Batch:
    """``inputs`` in the form that a ``CleanSet`` holds. Raises ``InputError``."""
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
