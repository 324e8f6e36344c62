"""``RefusedError``: an input that is not read any further, and why."""

from __future__ import annotations

from seamfast.errors import DataFileError


class RefusedError(DataFileError):
    """A file is refused; ``code`` says why in a word that programs can act on, the message in one that people can.

    Args:
        code: in kebab-case, such as ``"pickle"``, ``"symlink"`` or ``"header"``.
        message: what was found and what was expected; names in it are already fit for a terminal.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
