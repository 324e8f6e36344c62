"""Where policy, data, output and model lie: none of the others in the model's folder, and none of it told to others."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath

from seamfast.errors import InputError
from seamfast.isolation.folders import lies_in
from seamfast.untrusted import PathLike, printable

_HALF = 100  # characters of a long path that ``printable`` leaves at its beginning


def check_places(model: PathLike, others: Mapping[str, PathLike | None], out: PathLike | None) -> None:
    """Raise ``InputError`` where one of ``others`` or ``out`` lies in the model's folder, or that folder in ``out``.

    All links on the way are followed, and none of them may lie in the model's folder either: its sender would choose
    where they lead.

    Args:
        model: a folder, or a file, which is then the only one that belongs to the model.
        others: paths by the name of their argument; what is not there is passed over.
        out: may not exist yet.

    Raises:
        InputError: e.g. ``policy is 'model/policy.toml', which lies in the model's folder; expected another place``.
    """
    for name, path in {**others, "out": out}.items():
        if path is not None and lies_in(path, model):
            message = f"{name} is {printable(path)!r}, which lies in the model's folder; expected another place"
            raise InputError(message)
    if out is not None and lies_in(os.path.realpath(model), out):
        raise InputError(
            f"model is {printable(model)!r}, which lies in out, {printable(out)!r}; expected another place"
        )


class Shortened:
    """Messages without the absolute paths of this machine: a report goes to others.

    What lies in a folder that the caller gave keeps its path below it; the folder itself keeps its name.

    Args:
        given: paths as the caller gave them; ``None`` is passed over.
    """

    def __init__(self, *given: PathLike | None) -> None:
        paths = [os.fspath(path) for path in given if path is not None]
        paths += [os.path.dirname(os.path.abspath(path)) for path in paths]
        paths += [os.getcwd(), sys.prefix, os.path.expanduser("~")]
        # Not tempfile.gettempdir, which finds its answer by writing files.
        paths += ["/tmp", "/var/tmp", *(os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name))]
        known = {form(path) for path in paths for form in (os.path.abspath, os.path.realpath)} - {"/"}
        written = {path for plain in known for path in (plain, ascii(plain)[1:-1])}  # as ``printable`` writes them
        longest_first = "|".join(map(re.escape, sorted(written, key=len, reverse=True)))
        self._path = re.compile(rf"(?<![\w.\-/])({longest_first})(/(?=[^\s'\"])|(?![\w.\-]))")
        cut = {path[:_HALF] for path in written if len(path) > _HALF}
        self._cut = re.compile("|".join(map(re.escape, cut)) or "$^")

    def __call__(self, text: str) -> str:
        """``text`` with these paths shortened."""
        return self._cut.sub("", self._path.sub(_name, text))


def _name(match: re.Match[str]) -> str:
    return "" if match[2] else PurePosixPath(match[1]).name
