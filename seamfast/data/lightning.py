"""The clean data of a ``LightningDataModule``. Nothing of Lightning is imported."""

from __future__ import annotations

from typing import Any

from seamfast.checks import LIGHTNING, base_of
from seamfast.errors import InputError


def validation_loader(data: Any) -> Any:
    """``data.val_dataloader()`` of a ``LightningDataModule``; anything else as it is.

    A module that has no loader yet is set up for fitting. ``prepare_data``, which may download, is not called.

    Raises:
        InputError: ``clean_loader is a LightningDataModule with 2 validation loaders; expected one: pass the one to
            use``, or it gives none.
    """
    if base_of(data, "LightningDataModule", LIGHTNING) is None:
        return data
    try:
        try:
            loader = data.val_dataloader()
        except Exception:  # what setup() makes is missing
            data.setup("fit")
            loader = data.val_dataloader()
    except Exception as error:
        raise InputError(
            f"clean_loader is a LightningDataModule that gives no validation loader ({type(error).__name__}: {error}); "
            "expected one, or a DataLoader"
        ) from error
    loaders = list(loader) if isinstance(loader, (list, tuple)) else [loader]
    if len(loaders) != 1:
        raise InputError(
            f"clean_loader is a LightningDataModule with {len(loaders)} validation loaders; expected one: pass the one "
            "to use"
        )
    return loaders[0]
