"""The process in which ``seamfast gate`` runs: isolated Python, limited and confined before torch is imported."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from typing import Any, NoReturn

from seamfast.isolation import state
from seamfast.isolation.confine import confine, die_with_parent
from seamfast.isolation.limits import Limits

RESULT = "result.json"


def main() -> NoReturn:
    """Run the command that ``sys.argv`` holds behind a description of how, and leave the answer in a file.

    The file is ``{"code": ..., "text": ...}``: the exit code and what goes to stdout; or ``{"failed": ...}``, why there
    is neither. It appears whole or not at all, and the exit status says nothing.
    """
    how, arguments = json.loads(sys.argv[3]), sys.argv[4:]
    answer: dict[str, Any]
    try:
        _isolate(how)
        answer = _run(how, arguments)
    except BaseException as error:  # whatever an import under a limit brings up
        answer = {"failed": f"could not complete: {state.explained(error)}"}
    try:
        partial = os.path.join(how["private"], f"{RESULT}.partial")
        with open(partial, "w", encoding="ascii") as file:
            json.dump(answer, file)
        os.rename(partial, os.path.join(how["private"], RESULT))
        sys.stderr.flush()
    finally:
        os._exit(0)  # whatever threads are left of the operator's code


def _isolate(how: dict[str, Any]) -> None:
    die_with_parent(how["parent"])
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    limits = Limits(**how["limits"])
    limits.apply()
    state.current.isolated, state.current.limits = True, limits
    folders = [how["private"], *([] if how["staging"] is None else [how["staging"]])]
    confine(folders, cuda=how["cuda"], isolation=state.current)
    sys.path += how["path"]


def _run(how: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    from seamfast import cli

    staging = how["staging"]
    out = None if staging is None else os.path.join(staging, "out")
    document = io.StringIO()
    with contextlib.redirect_stdout(document):
        code = cli.main(["gate", *arguments], staged=out, stopped=how["stopped"], signed_by=how["signed_by"])
    return {"code": code, "text": document.getvalue()}
