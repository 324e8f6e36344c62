"""``open_model``: a folder with a model of any kind, for the commands ``sanitize``, ``evaluate`` and ``audit``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from seamfast.data import CleanSet
from seamfast.data.readers import load
from seamfast.errors import DataFileError, InputError
from seamfast.gating.clean_samples import THE_FLAG, clean_samples, naming_the_size
from seamfast.gating.config_json import CONFIG
from seamfast.gating.folder import INDEX, Received, inspect, receive
from seamfast.gating.output import save_sanitized
from seamfast.gating.overrides import NO_OVERRIDES, Overrides
from seamfast.intake.tokenizer import TOKENIZER
from seamfast.models.folder import (
    DESCRIPTION,
    WEIGHTS,
    Description,
    ModelDescription,
    TextDescription,
    load_model,
    save_model,
)
from seamfast.untrusted import MAX_BYTES


@dataclass(frozen=True)
class OpenedModel:
    """A model in memory, and how its samples are read and it is written again.

    Attributes:
        model: in eval mode, on the CPU.
        described: by ``model.json`` alone, where nothing else is said; or else, by what it was built.
    """

    model: nn.Module
    described: Description | Received

    @property
    def num_classes(self) -> int | None:
        """Logits of the model, or ``None`` where unknown."""
        described = self.described
        return described.architecture.num_classes if isinstance(described, Received) else described.num_classes

    @property
    def normalization(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Mean and standard deviation of images, each ``None`` where there is none."""
        described = self.described
        place = described.architecture if isinstance(described, Received) else described
        return getattr(place, "mean", None), getattr(place, "std", None)

    def samples(self, data: str, *, root: str | None = None, split: str | None = None) -> CleanSet:
        """Clean samples as the model takes them.

        Args:
            data, root, split: as for ``seamfast.load``.

        Raises:
            InputError: they are not what the model takes; of images of another size, the message names
                ``--image-size``.
        """
        described = self.described
        if isinstance(described, Received):
            chosen = described.architecture
            samples, _ = clean_samples(data, root, split, chosen, max_bytes=MAX_BYTES)
            if chosen.num_classes is not None and int(samples.labels.max()) >= chosen.num_classes:
                found = f"labels hold {int(samples.labels.max())}"
                raise DataFileError(f"{found}; expected integers in [0, {chosen.num_classes}) for the model's classes")
            return samples
        how: dict[str, Any] = {}
        if isinstance(described, TextDescription):
            how = {"tokenizer": described.tokenizer, "max_length": described.max_length}
        elif isinstance(described, ModelDescription):
            how = {"mean": described.mean, "std": described.std}
        if root is not None:
            how["root"] = root
        with naming_the_size(data):
            samples = load(data, split=split, **how)
            _check(described, samples)
        return samples

    def save(self, folder: Path, model: nn.Module) -> list[str]:
        """Write ``model``, a changed copy of this one, into ``folder``, to be opened likewise; names of the files."""
        if isinstance(self.described, Received):
            return save_sanitized(folder, self.described, model)
        save_model(folder, model, self.described)
        return description_files(self.described)


def open_model(
    folder: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    overrides: Overrides = NO_OVERRIDES,
) -> OpenedModel:
    """The model in ``folder``, built as the caller says or as the folder's description selects.

    A folder with ``model.json``, where the caller says nothing, is read by ``load_model``; any other as the gate reads
    it: its files are checked, nothing in it is run.

    Args:
        folder: with ``model.safetensors``.
        architecture, arguments, overrides: as for ``seamfast.gating.architecture.parse_architecture``.

    Raises:
        InputError: of the options.
        DataFileError: of the files.
    """
    nothing_is_said = architecture is None and not arguments and overrides == NO_OVERRIDES
    is_other = any(os.path.lexists(Path(folder) / name) for name in (WEIGHTS, INDEX, CONFIG))
    if nothing_is_said and (os.path.lexists(Path(folder) / DESCRIPTION) or not is_other):
        return OpenedModel(*load_model(folder))
    received = receive(inspect(folder, architecture=architecture, arguments=arguments, overrides=overrides))
    return OpenedModel(received.model, received)


def description_files(description: Description) -> list[str]:
    """Names of the files that ``save_model`` writes."""
    has_tokenizer = isinstance(description, TextDescription) and description.tokenizer is not None
    return [WEIGHTS, DESCRIPTION, *([TOKENIZER] if has_tokenizer else [])]


def _check(description: Description, samples: CleanSet) -> None:
    shape = samples.sample_shape
    if isinstance(description, ModelDescription) and shape is not None and len(shape) == 3:
        wanted = (description.in_channels, description.image_size, description.image_size)
        if shape[1:] != wanted[1:]:
            message = f"the images are {shape}; expected {wanted} (C, H, W), as the model takes them"
            raise InputError(f"{message}, or {THE_FLAG}")
    description.check_data(samples)
