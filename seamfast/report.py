"""The report of a run: a strict JSON document, versioned by ``schema/report-v2.json``. Standard library only."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

SCHEMA_VERSION = 2


class Report(dict[str, Any]):
    """The report as plain dicts, lists, strings, numbers, booleans and ``None``; never NaN or Inf.

    The keys and their meaning are in ``seamfast/schema/report-v2.json``.
    """

    def to_json(self) -> str:
        """Strict JSON, indented, with a newline at the end. Raises ``ValueError`` on NaN or Inf."""
        return json.dumps(self, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_json()`` to ``path`` atomically."""
        write_atomically(Path(path), self.to_json().encode())

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read strict JSON. Raises ``ValueError`` on NaN, Inf, duplicate keys or another schema version."""
        try:
            value = json.loads(
                text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_refuse_doubled
            )
        except RecursionError:
            raise ValueError("the report is nested too deeply; expected a report") from None
        found = value.get("schema_version") if isinstance(value, dict) else type(value).__name__
        if type(found) is not int or found != SCHEMA_VERSION:
            raise ValueError(f"the report has schema_version {found!r}; expected {SCHEMA_VERSION}")
        return cls(value)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """``from_json`` of a file."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def schema() -> Mapping[str, Any]:
    """The JSON Schema (draft 2020-12) that every report follows."""
    path = Path(__file__).parent / "schema" / f"report-v{SCHEMA_VERSION}.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_atomically(path: Path, data: bytes) -> None:
    """``whole_file(path)``, with ``data`` in it."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file in the same folder; at the end, it is flushed to disk and renamed over ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # minus the umask
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_constant(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the report holds {name}; expected strict JSON")


def _refuse_doubled(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the report holds a key twice; expected strict JSON")
    return result
