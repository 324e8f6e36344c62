"""The gate in a container: its image holds little, its run can do little, and its exit code goes through."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from seamfast.cli import main
from tests.gating.workflows import Ran, run_job

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples" / "gate"

NARROW = {"--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"}
GATE = ["gate", "/received", "--data", "/intake/clean", "--policy", "/intake/policy.toml", "--out", "/verdicts/verdict"]
DIGEST = "seamfast-gate@sha256:" + "0" * 64


# The image.


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, the name in capitals and the rest."""
    text = (EXAMPLES / "Containerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    found: list[list[tuple[str, str]]] = [[]]
    for line in filter(None, lines):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, " ".join(rest.split())))
    return found


def values(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in stage if instruction == name]


def test_image_is_built_in_a_stage_of_its_own(stages: list[list[tuple[str, str]]]) -> None:
    (_, build, final) = stages
    assert values(build, "FROM") == ["${BASE} AS build"]
    assert values(final, "FROM") == ["${BASE}"]
    assert values(final, "COPY") == ["--from=build /opt/seamfast /opt/seamfast"]
    assert not values(final, "RUN")  # so no compiler, no shell's leftovers, and no network
    assert not {"ADD", "VOLUME", "EXPOSE"} & {name for stage in stages for name, _ in stage}


def test_image_runs_the_gate_as_nobody(stages: list[list[tuple[str, str]]]) -> None:
    final = stages[-1]
    (user,) = values(final, "USER")
    assert all(int(part) > 0 for part in user.split(":"))  # by number: Kubernetes' runAsNonRoot cannot read names
    assert final[-2:] == [("ENTRYPOINT", '["seamfast"]'), ("CMD", '["gate", "--help"]')]
    assert "HOME=/tmp" in values(final, "ENV")[0]  # the root is read-only


def test_image_is_built_from_files_that_are_there(stages: list[list[tuple[str, str]]]) -> None:
    sources = [source for line in values(stages[1], "COPY") for source in line.split()[:-1]]
    assert {"csrc", "seamfast", "pyproject.toml", "setup.py", "constraints.txt"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_command_of_the_container_is_one_of_the_gate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gate", "--help"])
    assert set(re.findall(r"--[a-z-]+", " ".join(GATE))) <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


# Its run, by the script.

ENGINE = """#!/bin/sh
for argument in "$@"; do echo "$argument" >> "$CALLS"; done
exit "$STATUS"
"""


def run_script(place: Path, status: int, *arguments: str) -> tuple[int, list[str], str]:
    engine, calls = place / "engine", place / "calls"
    engine.write_text(ENGINE, encoding="utf-8")
    engine.chmod(0o755)
    calls.touch()
    environment = os.environ | {"ENGINE": str(engine), "CALLS": str(calls), "STATUS": str(status)}
    done = subprocess.run(
        [str(EXAMPLES / "container.sh"), *arguments], cwd=place, env=environment, capture_output=True, text=True
    )
    return done.returncode, calls.read_text(encoding="utf-8").splitlines(), done.stderr


@pytest.fixture
def places(tmp_path: Path) -> Path:
    for name in ("model", "intake", "verdicts"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4, 125, 137])
def test_script_hands_the_exit_code_on(status: int, places: Path) -> None:
    assert run_script(places, status, DIGEST, "model", "intake", "verdicts")[0] == status


def test_script_lets_the_container_do_little(places: Path) -> None:
    _, call, _ = run_script(places, 0, DIGEST, "model", "intake", "verdicts")
    options, command = call[1 : call.index(DIGEST)], call[call.index(DIGEST) + 1 :]
    assert call[0] == "run"
    assert command == GATE
    assert set(options) >= NARROW
    assert {option.partition("=")[0] for option in options} >= {"--memory", "--cpus", "--pids-limit"}
    (user,) = (option.removeprefix("--user=") for option in options if option.startswith("--user="))
    assert all(int(part) > 0 for part in user.split(":"))  # nor if root calls
    volumes = [option.removeprefix("--volume=") for option in options if option.startswith("--volume=")]
    assert volumes == [f"{places}/model:/received:ro", f"{places}/intake:/intake:ro", f"{places}/verdicts:/verdicts"]
    assert not {"--privileged", "--env", "-e", "-v", "--mount"} & set(options)


def test_script_starts_nothing_without_its_arguments(places: Path) -> None:
    assert run_script(places, 0, DIGEST, "model") == (
        4,
        [],
        "container.sh takes IMAGE MODEL INTAKE VERDICTS; got 2 arguments\n",
    )
    status, calls, errors = run_script(places, 0, DIGEST, "absent", "intake", "verdicts")
    assert status != 0
    assert calls == []
    assert "absent" in errors


# Its run, by the reusable workflow.


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML to read the example")
    document: dict[Any, Any] = yaml.safe_load((EXAMPLES / "reusable-workflow.yml").read_text(encoding="utf-8"))
    return document


DOCKER = """#!/bin/sh
for argument in "$@"; do echo "$argument" >> "$CALLS"; done
[ "$1" = run ] || exit 0
if [ "$STATUS" -lt 4 ]; then mkdir verdicts/verdict; echo "# Verdict: status $STATUS" > verdicts/verdict/summary.md; fi
[ "$STATUS" -ne 0 ] || mkdir verdicts/verdict/sanitized
exit "$STATUS"
"""


def run_gate(workflow: dict[Any, Any], status: int, place: Path, image: str = DIGEST, *, link: bool = False) -> Ran:
    """The steps of the job, with a stub in place of docker."""
    job, work = workflow["jobs"]["gate"], place / "work"
    (work / "trusted" / "intake").mkdir(parents=True)
    (work / "received" / "models").mkdir(parents=True)
    model = work / "received" / "models" / "incoming"
    model.symlink_to("/") if link else model.mkdir()
    inputs = {"image": image, "model": "models/incoming", "intake": "intake"}
    env = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], value)
        for name, value in job["env"].items()
    }
    return run_job(job, status, place, {"docker": DOCKER}, env)


def test_workflow_lets_a_pass_through(workflow: dict[Any, Any], tmp_path: Path) -> None:
    ran = run_gate(workflow, 0, tmp_path)
    assert not ran.failed
    assert ran.uploads == ["gate-documents", "sanitized-model"]
    assert ran.outputs == "exit-code=0\n"
    assert ran.summary == "# Verdict: status 0\n"
    call = ran.calls.splitlines()
    assert call[:3] == ["pull", "--quiet", DIGEST]
    assert set(call) >= NARROW
    assert call[-len(GATE) - 1 :] == [DIGEST, *GATE]
    assert f"--user={os.getuid()}:{os.getgid()}" in call
    work = tmp_path / "work"
    assert [argument for argument in call if argument.startswith("--volume")] == [
        f"--volume={work}/received/models/incoming:/received:ro",
        f"--volume={work}/trusted/intake:/intake:ro",
        f"--volume={work}/verdicts:/verdicts",
    ]


@pytest.mark.parametrize("status", [1, 2, 3, 4, 125, 137])
def test_workflow_blocks_all_else(status: int, workflow: dict[Any, Any], tmp_path: Path) -> None:
    ran = run_gate(workflow, status, tmp_path)
    assert ran.failed
    assert ran.uploads == ["gate-documents"]
    assert ran.outputs == f"exit-code={status}\n"


@pytest.mark.parametrize(
    "image", ["seamfast-gate", "seamfast-gate:latest", f"{DIGEST}0", "seamfast-gate@sha256:1; true"]
)
def test_workflow_takes_an_image_by_digest_only(image: str, workflow: dict[Any, Any], tmp_path: Path) -> None:
    ran = run_gate(workflow, 0, tmp_path, image)
    assert ran.failed
    assert ran.calls == ""


def test_workflow_mounts_no_folder_that_a_link_names(workflow: dict[Any, Any], tmp_path: Path) -> None:
    ran = run_gate(workflow, 0, tmp_path, link=True)
    assert ran.failed
    assert "run" not in ran.calls.splitlines()


def test_workflow_has_the_least_rights(workflow: dict[Any, Any]) -> None:
    (job,) = workflow["jobs"].values()
    assert workflow["permissions"] == {}
    assert job["permissions"] == {"contents": "read"}
    text = (EXAMPLES / "reusable-workflow.yml").read_text(encoding="utf-8")
    assert "secrets" not in text
    assert set(workflow[True]) == {"workflow_call"}  # `on`, which is a boolean in YAML 1.1
    assert [script for step in job["steps"] if "${{" in (script := step.get("run", ""))] == []
    checkouts = [step["with"] for step in job["steps"] if "checkout" in step.get("uses", "")]
    assert [(options["path"], options.get("ref")) for options in checkouts] == [
        ("trusted", "${{ github.event.pull_request.base.sha }}"),
        ("received", None),
    ]
    assert [options["persist-credentials"] for options in checkouts] == [False, False]


def test_workflows_pin_the_same_actions(workflow: dict[Any, Any]) -> None:
    pin = re.compile(r"uses: ([\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$", re.MULTILINE)
    own, other = (
        (EXAMPLES / name).read_text(encoding="utf-8") for name in ("reusable-workflow.yml", "github-actions.yml")
    )
    assert len(pin.findall(own)) == sum("uses" in step for step in workflow["jobs"]["gate"]["steps"])
    assert set(pin.findall(own)) <= set(pin.findall(other))
