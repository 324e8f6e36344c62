"""What the machine formats speak of: the model's name, and which of its files are weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any


def model_name(report: Mapping[str, Any]) -> str:
    """The last part of the model's path, as the caller gave it; ``"model"`` where that says nothing, as in ``"."``."""
    name = PurePosixPath(report["model"]["path"]).name
    return name if name.strip(".") else "model"


def received_weights(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files that hold the weights as received, in the report's order."""
    return [file for file in report["model"]["files"] if file["role"] == "weights"]


def sanitized_weights(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files that hold the sanitized weights, none where nothing was written."""
    files = report["sanitized"]["files"] if report["sanitized"] is not None else []
    return [file for file in files if file["name"].endswith(".safetensors")]
