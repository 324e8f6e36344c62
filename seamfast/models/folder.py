"""Models as folders: ``model.safetensors`` for the weights, ``model.json`` for what to build. No pickle, no code."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from seamfast.data.clean_set import CleanSet
from seamfast.errors import DataFileError, InputError
from seamfast.intake.tensors import expected_of, fill, open_untrusted, read_tensors, unique_keys
from seamfast.models.architectures import IMAGE_ARCHITECTURES, build
from seamfast.report import write_atomically
from seamfast.untrusted import file_size, printable, printable_value, shown

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT = "seamfast-model"
LARGEST = 4096  # classes, channels or pixels a side
_MAX_DESCRIPTION_BYTES = 64 << 10
_MAX_WEIGHT_BYTES = 1 << 30  # a ResNet-18 has 45 million


@dataclass(frozen=True)
class ModelDescription:
    """What must be known to rebuild a model and to feed it.

    Attributes:
        architecture: a name in ``seamfast.attacks.ARCHITECTURES``.
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
        if not isinstance(self.architecture, str) or self.architecture not in IMAGE_ARCHITECTURES:
            names = ", ".join(IMAGE_ARCHITECTURES)
            raise InputError(f"architecture is {printable_value(self.architecture)}; expected one of {names}")
        for name, least in (("num_classes", 2), ("in_channels", 1), ("image_size", 8)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= LARGEST:  # type(), since bool is an int too
                raise InputError(f"{name} is {printable_value(value)}; expected an integer in [{least}, {LARGEST}]")
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
        return build(
            self.architecture,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            image_size=self.image_size,
        )

    def check_images(self, data: CleanSet) -> None:
        """Raise ``InputError`` unless the images of ``data`` are what the model takes."""
        wanted = (self.in_channels, self.image_size, self.image_size)
        if data.sample_shape != wanted:
            raise InputError(
                f"the images are {data.sample_shape}; expected {wanted} (C, H, W), as the model takes them"
            )


def save_model(folder: str | os.PathLike[str], model: nn.Module, description: ModelDescription) -> None:
    """Write the weights and the description into ``folder``, each file whole or not at all."""
    document = {"format": FORMAT, "version": 1, **asdict(description)}
    write_atomically(Path(folder) / WEIGHTS, to_safetensors(state_of(model)))
    write_atomically(Path(folder) / DESCRIPTION, (json.dumps(document, indent=2) + "\n").encode())


def save_weights(folder: str | os.PathLike[str], model: nn.Module, names: Mapping[str, str]) -> None:
    """Write the weights alone into ``folder``, whole or not at all; ``names`` says what the file calls each of them."""
    state = {
        names[name]: tensor.clone() for name, tensor in state_of(model).items()
    }  # safetensors refuses shared memory
    write_atomically(Path(folder) / WEIGHTS, to_safetensors(state))


def load_model(folder: str | os.PathLike[str]) -> tuple[nn.Module, ModelDescription]:
    """The model in ``folder``, in eval mode, built by name and filled with tensors: no code and no pickle is ever read.

    The files may be hostile. Each is opened once, and must be a regular file: no symbolic link, no pipe. The
    architecture is built without memory first; a file larger than it needs is not read, and names, shapes and dtypes
    are compared with it before any weight is used. Weights may be NaN: ``sanitize`` refuses such, ``evaluate`` counts.

    Raises:
        DataFileError: e.g. ``model.safetensors holds head.weight of shape (10, 64); small_cnn expects (10, 32)``.
    """
    description = _read_description(Path(folder) / DESCRIPTION)
    with torch.device("meta"):
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


def _read_description(path: Path) -> ModelDescription:
    where = shown(path)
    fields = described_fields(read_document(path, "the description of a model"), where)
    for name in ("mean", "std"):
        if not isinstance(fields[name], list):
            raise DataFileError(f"{where}: {name} is {printable_value(fields[name])}; expected a list of numbers")
        fields[name] = tuple(fields[name])
    try:
        return ModelDescription(**fields)
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
