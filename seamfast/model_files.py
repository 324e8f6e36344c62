"""Deprecated name of ``seamfast.models.folder`` and ``seamfast.attacks.files``, accepted until 0.2.0."""

import warnings

from seamfast.attacks.files import load_backdoor, save_backdoor
from seamfast.models.folder import ModelDescription, load_model, save_model, save_weights

__all__ = ["ModelDescription", "load_backdoor", "load_model", "save_backdoor", "save_model", "save_weights"]

warnings.warn(
    "seamfast.model_files is seamfast.models.folder and seamfast.attacks.files", DeprecationWarning, stacklevel=2
)
