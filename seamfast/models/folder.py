"""Models as folders: ``model.safetensors`` for the weights, ``model.json`` for what to build, and for text
``tokenizer.json``. No pickle, no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from seamfast.data.clean_set import CleanSet
from seamfast.errors import DataFileError, InputError
from seamfast.intake.tensors import expected_of, fill, open_untrusted, read_tensors, unique_keys
from seamfast.intake.tokenizer import MAX_BYTES as MAX_TOKENIZER_BYTES
from seamfast.intake.tokenizer import TOKENIZER, read_tokenizer
from seamfast.modalities import TabularModality, TextModality
from seamfast.modalities.text.modality import ids_of
from seamfast.models.architectures import ARCHITECTURES, IMAGE_ARCHITECTURES, build, sizes_of
from seamfast.models.meta import without_memory
from seamfast.models.tabular_architectures import TABULAR_ARCHITECTURES
from seamfast.models.text_architectures import TEXT_ARCHITECTURES, VECTOR_ARCHITECTURES
from seamfast.report import write_atomically
from seamfast.untrusted import file_size, printable, printable_value, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT = "seamfast-model"
LARGEST = 4096  # classes, channels, pixels a side, or tokens of a text
_LARGEST_VOCABULARY = 1_000_000
_MAX_DESCRIPTION_BYTES = 64 << 10
_MAX_WEIGHT_BYTES = 1 << 30  # a ResNet-18 has 45 million


@dataclass(frozen=True)
class ModelDescription:
    """What must be known to rebuild a model of images and to feed it.

    Attributes:
        architecture: a name in ``seamfast.models.architectures.IMAGE_ARCHITECTURES``.
        num_classes, in_channels, image_size: its arguments, at most 4096 each.
        mean, std: normalization of the images, per channel or one number for all, on the [0, 1] pixel scale.

    Raises:
        InputError: e.g. ``std is (0.0,); expected one number above 0, or 3``.
    """

    architecture: str
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        _check_sizes(self, IMAGE_ARCHITECTURES, LARGEST)
        for name, least_number, wanted in (("mean", -1e6, "number"), ("std", 1e-6, "number above 0")):
            values = getattr(self, name)
            known = isinstance(values, tuple) and len(values) in (1, self.in_channels)
            # Written so that NaN fails too.
            if not known or not all(type(v) in (int, float) and least_number <= v <= 1e6 for v in values):
                raise InputError(f"{name} is {printable_value(values)}; expected one {wanted}, or {self.in_channels}")

    @classmethod
    def of(cls, architecture: str, data: CleanSet) -> ModelDescription:
        """For the classes, the images and the normalization of ``data``, with ``num_classes`` given."""
        channels, height, _ = data.image_shape
        return cls(architecture, data.num_classes or 0, channels, height, data.mean or (0.0,), data.std or (1.0,))

    def build(self) -> nn.Module:
        """The architecture with untrained weights."""
        return _built(self)

    def check_data(self, data: CleanSet) -> None:
        """Raise ``InputError`` unless the images of ``data`` are what the model takes."""
        wanted = (self.in_channels, self.image_size, self.image_size)
        if data.sample_shape != wanted:
            raise InputError(
                f"the images are {data.sample_shape}; expected {wanted} (C, H, W), as the model takes them"
            )


@dataclass(frozen=True)
class TextDescription:
    """What must be known to rebuild a model of text and to feed it.

    Attributes:
        architecture: a name in ``seamfast.models.text_architectures.TEXT_ARCHITECTURES``.
        num_classes: logits, at most 4096.
        vocab_size, max_length: number of token ids and longest text in tokens, at most 1,000,000 and 4096.
        pad: the token id that fills up shorter texts.
        tokenizer: makes token ids of text; ``None`` where the folder has none. In a file of its own.

    Raises:
        InputError: e.g. ``tokenizer has 9000 tokens; expected at most vocab_size=8000``.
    """

    architecture: str
    num_classes: int
    vocab_size: int
    max_length: int
    pad: int = 0
    tokenizer: Tokenizer | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_sizes(self, TEXT_ARCHITECTURES, LARGEST, vocab_size=_LARGEST_VOCABULARY, pad=_LARGEST_VOCABULARY)
        if self.pad >= self.vocab_size:
            raise InputError(f"pad is {self.pad}; expected a token id in [0, {self.vocab_size})")
        if self.tokenizer is not None and (n_tokens := self.tokenizer.get_vocab_size()) > self.vocab_size:
            raise InputError(f"tokenizer has {n_tokens} tokens; expected at most vocab_size={self.vocab_size}")

    @classmethod
    def of(cls, architecture: str, data: CleanSet) -> TextDescription:
        """For the classes and the vocabulary of ``data``, with ``num_classes`` given."""
        if not isinstance(data.modality, TextModality):
            raise InputError(f"data is {data!r}; expected texts, as {architecture!r} takes them")
        vocabulary = data.modality.vocabulary
        sizes = (vocabulary.size, vocabulary.max_length, vocabulary.pad)
        return cls(architecture, data.num_classes or 0, *sizes, tokenizer=vocabulary.tokenizer)

    def build(self) -> nn.Module:
        """The architecture with untrained weights."""
        return _built(self)

    def check_data(self, data: CleanSet) -> None:
        """Raise ``InputError`` unless the token ids of ``data`` are what the model takes."""
        if not isinstance(data.modality, TextModality):
            raise InputError(f"data is {data!r}; expected texts, as the model takes them")
        ids = ids_of(data.inputs)
        largest, length = int(ids.max()) if ids.numel() else 0, ids.shape[1]
        if largest >= self.vocab_size:
            raise InputError(
                f"input_ids hold {largest}; expected token ids in [0, {self.vocab_size}), as the model has"
            )
        if length > self.max_length:
            raise InputError(f"input_ids have {length} positions; expected at most {self.max_length}, as the model has")


@dataclass(frozen=True)
class VectorDescription:
    """What must be known to rebuild a model of vectors.

    Attributes:
        architecture: a name in ``seamfast.models.text_architectures.VECTOR_ARCHITECTURES``.
        num_classes, n_features: its arguments, at most 4096 and 1,000,000.
    """

    architecture: str
    num_classes: int
    n_features: int

    def __post_init__(self) -> None:
        _check_sizes(self, VECTOR_ARCHITECTURES, LARGEST, n_features=_LARGEST_VOCABULARY)

    @classmethod
    def of(cls, architecture: str, data: CleanSet) -> VectorDescription:
        """For the classes and the vectors of ``data``, with ``num_classes`` given."""
        return cls(architecture, data.num_classes or 0, (data.sample_shape or (0,))[-1])

    def build(self) -> nn.Module:
        """The architecture with untrained weights."""
        return _built(self)

    def check_data(self, data: CleanSet) -> None:
        """Raise ``InputError`` unless the vectors of ``data`` are what the model takes."""
        shape = data.sample_shape
        if shape is None or len(shape) != 2 or shape[1] != self.n_features:
            raise InputError(f"the samples are {shape}; expected (L, {self.n_features}), as the model takes them")


@dataclass(frozen=True)
class TabularDescription:
    """What must be known to rebuild a model of rows of columns, all of floats.

    Attributes:
        architecture: a name in ``seamfast.models.tabular_architectures.TABULAR_ARCHITECTURES``.
        num_classes, n_columns: its arguments, at most 4096 and 1,000,000.
    """

    architecture: str
    num_classes: int
    n_columns: int

    def __post_init__(self) -> None:
        _check_sizes(self, TABULAR_ARCHITECTURES, LARGEST, n_columns=_LARGEST_VOCABULARY)

    @classmethod
    def of(cls, architecture: str, data: CleanSet) -> TabularDescription:
        """For the classes and the columns of ``data``, with ``num_classes`` given."""
        if not isinstance(data.modality, TabularModality) or data.sample_shape is None:
            raise InputError(f"data is {data!r}; expected rows of floats, as {architecture!r} takes them")
        return cls(architecture, data.num_classes or 0, data.sample_shape[0])

    def build(self) -> nn.Module:
        """The architecture with untrained weights."""
        return _built(self)

    def check_data(self, data: CleanSet) -> None:
        """Raise ``InputError`` unless the rows of ``data`` are what the model takes."""
        if data.sample_shape != (self.n_columns,):
            raise InputError(
                f"the samples are {data.sample_shape}; expected ({self.n_columns},), rows of {self.n_columns} columns, "
                "as the model takes them"
            )


Description = ModelDescription | TextDescription | VectorDescription | TabularDescription
"""What ``model.json`` holds."""


def description_class(
    architecture: object,
) -> type[ModelDescription] | type[TextDescription] | type[VectorDescription] | type[TabularDescription]:
    """The class that describes models of an architecture; ``ModelDescription`` for unknown ones, which it refuses."""
    if isinstance(architecture, str) and architecture in TEXT_ARCHITECTURES:
        return TextDescription
    if isinstance(architecture, str) and architecture in VECTOR_ARCHITECTURES:
        return VectorDescription
    if isinstance(architecture, str) and architecture in TABULAR_ARCHITECTURES:
        return TabularDescription
    return ModelDescription


def described_keys(of: type[Description]) -> list[str]:
    """The keys of ``model.json`` for a class of descriptions, without ``format`` and ``version``."""
    return [name for name in of.__dataclass_fields__ if name != "tokenizer"]


def _check_sizes(description: Description, known: Collection[str], largest: int, **larger: int) -> None:
    architecture = description.architecture
    if not isinstance(architecture, str) or architecture not in known:
        # A name of another kind is refused by the list of this kind, an unknown name by the list of all.
        is_name = isinstance(architecture, str) and architecture in ARCHITECTURES
        names = ", ".join(known if is_name else ARCHITECTURES)
        raise InputError(f"architecture is {printable_value(architecture)}; expected one of {names}")
    for name, least in sizes_of(architecture).items():
        value, most = getattr(description, name), larger.get(name, largest)
        if type(value) is not int or not least <= value <= most:  # type(), since bool is an int too
            raise InputError(f"{name} is {printable_value(value)}; expected an integer in [{least}, {most}]")


def _built(description: Description) -> nn.Module:
    sizes = {name: getattr(description, name) for name in sizes_of(description.architecture)}
    return build(description.architecture, **sizes)


def save_model(folder: str | os.PathLike[str], model: nn.Module, description: Description) -> None:
    """Write the weights, the description and its tokenizer into ``folder``, each file whole or not at all."""
    described = {key: getattr(description, key) for key in described_keys(type(description))}
    document = {"format": FORMAT, "version": 1, **described}
    write_atomically(Path(folder) / WEIGHTS, to_safetensors(state_of(model)))
    if isinstance(description, TextDescription) and description.tokenizer is not None:
        write_atomically(Path(folder) / TOKENIZER, description.tokenizer.to_str(pretty=True).encode())
    write_atomically(Path(folder) / DESCRIPTION, (json.dumps(document, indent=2) + "\n").encode())


def save_weights(folder: str | os.PathLike[str], model: nn.Module, names: Mapping[str, str]) -> None:
    """Write the weights alone into ``folder``, whole or not at all; ``names`` says what the file calls each of them."""
    state = {
        names[name]: tensor.clone() for name, tensor in state_of(model).items()
    }  # safetensors refuses shared memory
    write_atomically(Path(folder) / WEIGHTS, to_safetensors(state))


def load_model(folder: str | os.PathLike[str]) -> tuple[nn.Module, Description]:
    """The model in ``folder``, in eval mode, built by name and filled with tensors: no code and no pickle is ever read.

    The files may be hostile. Each is opened once, and must be a regular file: no symbolic link, no pipe. The
    architecture is built without memory first; a file larger than it needs is not read, and names, shapes and dtypes
    are compared with it before any weight is used. Weights may be NaN: ``sanitize`` refuses such, ``evaluate`` counts.

    Raises:
        DataFileError: e.g. ``model.safetensors holds head.weight of shape (10, 64); small_cnn expects (10, 32)``.
    """
    description = _read_description(Path(folder) / DESCRIPTION)
    with without_memory():
        model = description.build()
    fill_from(model, Path(folder) / WEIGHTS, description.architecture)
    return model.eval(), description


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, contiguous, as safetensors writes it."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def fill_from(model: nn.Module, path: Path, what: str) -> None:
    """Read the weights of ``model``, built without memory, from ``path``; ``what`` names it in messages."""
    expected = expected_of(model)
    n_bytes = sum(spec.n_bytes for spec in expected.values())
    if n_bytes > _MAX_WEIGHT_BYTES:
        raise DataFileError(
            f"{shown(path.parent / DESCRIPTION)} describes weights of {n_bytes:,} bytes; the limit is "
            f"{_MAX_WEIGHT_BYTES:,}"
        )
    fill(model, read_tensors(path, expected, what=what).state)


def _read_description(path: Path) -> Description:
    where = shown(path)
    described = read_document(path, "the description of a model")
    of = description_class(described.get("architecture") if isinstance(described, dict) else None)
    given = described_fields(described, where, keys=described_keys(of))
    for name in {"mean", "std"} & set(given):
        if not isinstance(given[name], list):
            raise DataFileError(f"{where}: {name} is {printable_value(given[name])}; expected a list of numbers")
        given[name] = tuple(given[name])
    if of is TextDescription and os.path.lexists(path.parent / TOKENIZER):
        document = _read(path.parent / TOKENIZER, "a tokenizer", MAX_TOKENIZER_BYTES)
        given["tokenizer"] = read_tokenizer({TOKENIZER: document})
    try:
        return of(**given)
    except InputError as error:
        raise DataFileError(f"{where}: {error}") from error


def described_fields(
    document: object, where: str, wanted: str = FORMAT, keys: Collection[str] = ModelDescription.__dataclass_fields__
) -> dict[str, Any]:
    """The fields of a document of the format ``wanted``, version 1: those ``keys`` and no others.

    Raises:
        DataFileError: e.g. ``model.json has the keys ['a']; expected ['architecture', 'image_size', ...]``.
    """
    kind = (document.get("format"), document.get("version")) if isinstance(document, dict) else ()
    if not isinstance(document, dict) or kind != (wanted, 1) or type(kind[1]) is not int:
        raise DataFileError(f"{where} is not a description of format {wanted!r}, version 1")
    fields = {k: v for k, v in document.items() if k not in ("format", "version")}
    if set(fields) != set(keys):
        raise DataFileError(f"{where} has the keys {printable_value(sorted(fields))}; expected {sorted(keys)}")
    return fields


def read_document(path: Path, looked_for: str) -> object:
    """What a JSON file holds."""
    text = _read(path, looked_for, _MAX_DESCRIPTION_BYTES)
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataFileError(f"{shown(path)} is not JSON: {printable(error)}") from error


def _read(path: Path, looked_for: str, max_bytes: int) -> bytes:
    """The bytes of a regular file that has at most ``max_bytes``."""
    with open_untrusted(path, looked_for) as file:
        if file_size(file) > max_bytes:
            raise DataFileError(f"{shown(path)} has {file_size(file):,} bytes; expected at most {max_bytes:,}")
        return file.read(max_bytes)
