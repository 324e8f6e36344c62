"""No module is imported from the model's folder: neither by Python's search path nor by what an import leads to."""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import pkgutil
import sys
import zipimport
from collections.abc import Iterator, Sequence
from types import ModuleType

from seamfast.intake.refusal import RefusedError
from seamfast.isolation.folders import lies_in
from seamfast.untrusted import printable


def refuse_import_path(place: str | os.PathLike[str]) -> None:
    """Raise ``RefusedError`` where Python looks for modules in the model's folder, as it does in the working one.

    What Python imported from there before this call has run already.
    """
    for entry in sys.path:
        # An editable install adds a name that looks like a file of the working folder; a hook of its own resolves it.
        importer = pkgutil.get_importer(entry)
        is_place = importer is None or isinstance(importer, (importlib.machinery.FileFinder, zipimport.zipimporter))
        if is_place and lies_in(entry, place):
            raise RefusedError(
                "import-path",
                f"Python imports modules from {printable(entry or os.getcwd())}, which lies in the model's folder; "
                "expected to be run from elsewhere",
            )


def refuse_imported(place: str) -> None:
    """Raise ``RefusedError`` where a module was imported from ``place``, whose code has run then."""
    known: dict[str, bool] = {}  # thousands of modules lie in some hundred folders
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        if isinstance(spec, importlib.machinery.ModuleSpec):
            refuse_spec(spec, place, known)


@contextlib.contextmanager
def nothing_imported_from(place: str) -> Iterator[None]:
    """While this lasts, importing anything from ``place`` raises ``RefusedError``, however it comes about."""
    guard = _Guard(place)
    sys.meta_path.insert(0, guard)
    try:
        yield
    finally:
        sys.meta_path.remove(guard)


class _Guard:
    """A finder that checks what the other finders return before any of it runs."""

    def __init__(self, place: str) -> None:
        self.place = place

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        for finder in list(sys.meta_path):
            if isinstance(finder, _Guard):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                refuse_spec(spec, self.place)
                return spec
        return None


def refuse_spec(spec: importlib.machinery.ModuleSpec, place: str, known: dict[str, bool] | None = None) -> None:
    """Raise ``RefusedError`` where a module lies in ``place``; ``known`` holds which folders do, and is added to."""
    known = {} if known is None else known
    origin = [spec.origin] if spec.origin and spec.has_location else []
    for path in (*origin, *(spec.submodule_search_locations or [])):
        # A file that is no link lies where its folder does.
        looked_at = os.path.dirname(path) if path in origin and not os.path.islink(path) else path
        if looked_at not in known:
            known[looked_at] = lies_in(looked_at, place)
        if known[looked_at]:
            raise RefusedError(
                "remote-code",
                f"the module {printable(spec.name)} would be imported from {printable(path)}, which lies in the "
                "model's folder; expected code from elsewhere",
            )
