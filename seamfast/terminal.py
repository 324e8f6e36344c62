"""What goes to stdout and stderr, in whatever state they are."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys

_COMMAND = re.compile(":(?=:)|#(?=#)")


def define_streams() -> frozenset[int]:
    """Open what is closed of the descriptors 0, 1 and 2 on the null device, and return which were.

    Else the next file that is opened takes the number, and what is printed goes into it. stdout and stderr escape the
    characters that their encoding lacks.
    """
    closed = set()
    for descriptor, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.add(descriptor)
            opened = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    # Python has no object for a stream that was closed when it started.
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return frozenset(closed)


def printable(text: str) -> str:
    """``text`` without line breaks and terminal escapes, shown as Python writes them, and ``without_commands``."""
    return without_commands("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def without_commands(text: str) -> str:
    """``text`` in which no CI system finds a command: one colon of ``::`` and one ``#`` of ``##`` are escaped.

    GitHub Actions runs lines that begin with ``::name ...::`` and whatever follows ``##[``, Azure Pipelines what
    follows ``##vso[``, TeamCity ``##teamcity[``: also from a file name in a message.
    """
    return _COMMAND.sub(lambda match: rf"\x{ord(match[0]):02x}", text)


def say(text: str) -> None:
    """One line on stderr, if there is one. What it tells may come from a hostile file."""
    if sys.stderr is not None:  # print would take stdout in its place
        with contextlib.suppress(OSError, ValueError):  # broken, or closed by somebody else
            print(printable(text), file=sys.stderr, flush=True)


def say_out(text: str) -> None:
    """One line on stdout, in which a name from a hostile file may stand."""
    print(printable(text))


def write_out(text: str) -> bool:
    """Whether all of ``text`` went to stdout; after a failure, nothing more is tried there."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError):
        leave_stdout()
        return False
    return True


def leave_stdout() -> None:
    """Send what is still to be written to stdout nowhere: Python would try it again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
