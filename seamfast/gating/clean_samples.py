"""The operator's clean samples in the form that a model takes: encoded texts, or images, resized where asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from seamfast.data import CleanSet
from seamfast.data.readers import load
from seamfast.data.readers.load import holds_image_files
from seamfast.data.readers.texts import is_text_source
from seamfast.data.resizing import resized
from seamfast.errors import DataFileError
from seamfast.gating.architecture import Architecture
from seamfast.gating.clean_texts import clean_texts
from seamfast.intake.refusal import RefusedError
from seamfast.untrusted import ImageSizeError, printable, shown

THE_FLAG = "--image-size N, the size of the model's images"


def clean_samples(
    data: Any, root: Any, split: str | None, architecture: Architecture, *, max_bytes: int
) -> tuple[CleanSet, int | None]:
    """The samples as the model takes them, and of texts how many were cut.

    Gray image files are read as color where the model takes color.

    Args:
        data: a path or a name as for ``seamfast.load``, or a ``CleanSet``, which stays as it is.
        root, split: as for ``seamfast.load``.
        architecture: of the model.
        max_bytes: limit on the decoded samples; that of texts is their own.

    Raises:
        RefusedError: code ``"data"``: texts for a model of images, and as ``clean_texts``.
        DataFileError: of the reader, and e.g. ``data: the images are of several sizes (32x32, 48x40, ...); expected one
            size, or --image-size N``.
    """
    if architecture.text is not None:
        return clean_texts(data, root, split, architecture.text, architecture.class_names)
    if isinstance(data, CleanSet):
        return data, None
    if is_text_source(data):
        message = f"data are texts; {printable(architecture.name)} has no tokenizer: expected a model of texts, or a "
        raise RefusedError("data", f"{message}CleanSet of them")
    source, shape, size = os.fspath(data), architecture.input_shape, architecture.resize
    channels = 3 if shape is not None and shape[0] == 3 else None
    normalization: dict[str, Any] = {"mean": architecture.mean or (0.0,), "std": architecture.std or (1.0,)}
    how: dict[str, Any] = {"root": root, "split": split, "max_bytes": max_bytes}
    with naming_the_size(source):
        if holds_image_files(source):
            return load(source, **how, **normalization, size=size, channels=channels, sample_shape=shape), None
        if size is None:
            return load(source, **how, **normalization, sample_shape=shape), None
        samples = resized(load(source, **how), size, channels=channels, max_bytes=max_bytes, where=shown(source))
    return CleanSet(
        samples.inputs,
        samples.labels,
        num_classes=samples.num_classes,
        class_names=samples.class_names,
        **normalization,
    ), None


@contextmanager
def naming_the_size(source: str) -> Iterator[None]:
    """Where images have another size than the model's, or several, the error names ``--image-size``."""
    try:
        yield
    except ImageSizeError as error:
        if len(error.sizes) == 1:
            raise DataFileError(f"{error}, or {THE_FLAG}") from error
        sizes = ", ".join("x".join(map(str, size)) for size in error.sizes)
        message = f"{shown(source)}: the images are of several sizes ({sizes}, ...)"
        raise DataFileError(f"{message}; expected one size, or --image-size N") from error
