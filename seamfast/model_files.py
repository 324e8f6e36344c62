"""Models as folders: ``model.safetensors`` for the weights, ``model.json`` for what to build. No pickle, no code."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from seamfast.attacks.models import build
from seamfast.data.clean_set import CleanSet
from seamfast.errors import DataFileError, InputError
from seamfast.report import write_atomically

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_MAX_DESCRIPTION_BYTES = 64 * 1024
_FORMAT = "seamfast-model"


@dataclass(frozen=True)
class ModelDescription:
    """What must be known to rebuild a model and to feed it.

    Attributes:
        architecture: a name in ``seamfast.attacks.ARCHITECTURES``.
        num_classes, in_channels, image_size: its arguments.
        mean, std: normalisation of the images, per channel or one number for all, on the [0, 1] pixel scale.
    """

    architecture: str
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

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
        if data.image_shape != wanted:
            raise InputError(f"the images are {data.image_shape}; expected {wanted} (C, H, W), as the model takes them")


def save_model(folder: str | os.PathLike[str], model: nn.Module, description: ModelDescription) -> None:
    """Write the weights and the description into ``folder``, each file whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    document = {"format": _FORMAT, "version": 1, **asdict(description)}
    write_atomically(Path(folder) / WEIGHTS, to_safetensors(state))
    write_atomically(Path(folder) / DESCRIPTION, (json.dumps(document, indent=2) + "\n").encode())


def load_model(folder: str | os.PathLike[str]) -> tuple[nn.Module, ModelDescription]:
    """The model in ``folder``, built by name and filled with tensors: no code and no pickle is ever read from there.

    Names, shapes and dtypes are compared with the architecture's, built without memory, before any weight is read.

    Raises:
        DataFileError: e.g. ``model.safetensors holds head.weight of shape (10, 64); small_cnn expects (10, 32)``.
    """
    root = Path(folder)
    description = _read_description(root / DESCRIPTION)
    with torch.device("meta"):
        expected = description.build().state_dict()
    path = root / WEIGHTS
    if not path.is_file():
        raise DataFileError(f"{path} is not a file; expected the weights as safetensors: other formats are refused")
    try:
        with safe_open(str(path), framework="pt") as file:
            _compare(file, expected, description.architecture)
            state = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as error:
        raise DataFileError(f"{path} is not a whole safetensors file: {error}") from error
    model = description.build()
    model.load_state_dict(state)
    return model.eval(), description


def _compare(file: Any, expected: dict[str, torch.Tensor], architecture: str) -> None:
    found = set(file.keys())
    for what, names in (("lacks", set(expected) - found), ("holds besides", found - set(expected))):
        if names:
            raise DataFileError(
                f"{WEIGHTS} {what} {', '.join(sorted(names)[:5])!r}, for the architecture {architecture}"
            )
    for name, tensor in expected.items():
        piece = file.get_slice(name)
        shape, dtype = tuple(piece.get_shape()), piece.get_dtype()
        if shape != tuple(tensor.shape):
            raise DataFileError(
                f"{WEIGHTS} holds {name} of shape {shape}; {architecture} expects {tuple(tensor.shape)}"
            )
        if dtype != ("F32" if tensor.is_floating_point() else "I64"):
            raise DataFileError(f"{WEIGHTS} holds {name} as {dtype}; expected {tensor.dtype}")


def _read_description(path: Path) -> ModelDescription:
    try:
        if path.stat().st_size > _MAX_DESCRIPTION_BYTES:
            raise DataFileError(f"{path} has {path.stat().st_size} bytes; expected at most {_MAX_DESCRIPTION_BYTES}")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataFileError(f"{path} cannot be read ({error.strerror}); expected a model folder") from error
    except (ValueError, RecursionError) as error:
        raise DataFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT or document.get("version") != 1:
        raise DataFileError(f"{path} is not a description of format {_FORMAT!r}, version 1")
    fields = {k: v for k, v in document.items() if k not in ("format", "version")}
    known = set(ModelDescription.__dataclass_fields__)
    if set(fields) != known:
        raise DataFileError(f"{path} has the keys {sorted(fields)}; expected {sorted(known)}")
    for name in ("mean", "std"):
        value = fields[name]
        if not isinstance(value, list) or not all(type(v) in (int, float) and abs(v) < 1e6 for v in value):
            raise DataFileError(f"{path}: {name} is {str(value)[:80]!r}; expected a list of numbers")
        fields[name] = tuple(float(v) for v in value)
    if not isinstance(fields["architecture"], str):
        raise DataFileError(f"{path}: architecture is {str(fields['architecture'])[:80]!r}; expected a name")
    if any(type(fields[n]) is int and fields[n] > 4096 for n in ("image_size", "num_classes", "in_channels")):
        raise DataFileError(f"{path}: image_size, num_classes or in_channels is above 4096")
    return ModelDescription(**fields)
