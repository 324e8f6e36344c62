"""Jobs of GitHub Actions, run step by step with stubs in place of other programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Ran:
    """A job as the runner would have run it."""

    failed: bool = False
    uploads: list[str] = field(default_factory=list)
    calls: str = ""
    summary: str = ""
    outputs: str = ""


def run_job(job: dict[str, Any], status: int, place: Path, stubs: Mapping[str, str], env: Mapping[str, str]) -> Ran:
    """The steps of a job in order, in ``place/work``. A failed step leaves out all without an ``if`` that says
    otherwise, as the runner does.

    Args:
        status: in the variable ``STATUS``, with which a stub may end.
        stubs: shell scripts by the name of the program; what they append to ``$CALLS`` is the result's ``calls``.
        env: the job's variables, without expressions.
    """
    commands, work = place / "bin", place / "work"
    commands.mkdir()
    for name, body in stubs.items():
        (commands / name).write_text(body, encoding="utf-8")
        (commands / name).chmod(0o755)
    files = {name: place / name for name in ("CALLS", "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    for path in files.values():
        path.touch()
    work.mkdir(exist_ok=True)
    ran = Ran()
    for step in job["steps"]:
        if not {None: not ran.failed, "success()": not ran.failed, "always()": True}[step.get("if")]:
            continue
        if "run" in step:
            done = subprocess.run(
                ["bash", "-e", "-c", step["run"]],  # as the runner calls it
                cwd=work,
                env={"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "STATUS": str(status)}
                | {name: str(path) for name, path in files.items()}
                | dict(env),
                capture_output=True,
                text=True,
            )
            ran.failed |= done.returncode != 0
        elif "upload-artifact" in step["uses"]:
            ran.uploads.append(step["with"]["name"])
    ran.calls, ran.summary, ran.outputs = (path.read_text(encoding="utf-8") for path in files.values())
    return ran
