"""A fleet on two raylets of one machine: the same results, whatever is killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import seamfast
from seamfast import attacks
from seamfast.attacks import TrainConfig
from seamfast.fleet import run
from seamfast.models.folder import ModelDescription, save_model

pytestmark = pytest.mark.ray

N_MODELS = 6
SHORT = {"recover_max_steps": 60, "recover_easy_steps": 60, "accuracy_budget": 1.0}
LONG = {**SHORT, "recover_max_steps": 10**7, "recover_easy_steps": 10**7}
"""Of jobs that do not end in the course of a test."""
_START_S, _END_S = 90.0, 120.0


@pytest.fixture(scope="module", autouse=True)
def has_ray() -> None:
    pytest.importorskip("ray", reason='Ray is not installed: make test-ray, or pip install "seamfast[fleet]"')


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of the cluster and of those that connect to it: with a token of its own."""
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **ray}


class Cluster:
    """``tests/fleet/two_raylets.py`` in a process."""

    def __init__(self, environment: dict[str, str]) -> None:
        script = Path(__file__).with_name("two_raylets.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        found = json.loads(self._process.stdout.readline())
        self.address, self.raylets, self.gcs = found["address"], found["raylets"], found["gcs"]

    def close(self) -> None:
        self._process.communicate(timeout=_END_S)


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    started = Cluster(environment)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of small models of digits."""
    folder, data = tmp_path_factory.mktemp("registry"), seamfast.load("digits")
    for number in range(N_MODELS):
        torch.manual_seed(number)
        model = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
        attacks.train(model, data, TrainConfig(epochs=6, batch_size=64), seed=number, precision="fp32")
        save_model(folder / f"m{number}", model, ModelDescription("small_cnn", 10, 1, 8))
    return folder


@pytest.fixture(scope="module")
def undisturbed(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert run(registry, out, data="digits", config=SHORT, workers=2).exit_code == 0
    return results(out)


def results(out: Path) -> dict[str, Any]:
    """All that does not depend on when and where a job ran, by id."""
    found = {}
    for folder in sorted((out / "jobs").iterdir()):
        row = json.loads((folder / "job.json").read_text())["row"]
        varies = ("seconds", "peak_memory_bytes", "attempts")
        found[folder.name] = (
            {key: value for key, value in row.items() if key not in varies},
            (folder / "model.safetensors").read_bytes(),
        )
    return found


def start(
    registry: Path, out: Path, address: str, environment: dict[str, str], settings: dict[str, float] = SHORT
) -> subprocess.Popen[str]:
    config = out.with_name("settings.toml")
    config.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    command = [sys.executable, "-m", "seamfast", "fleet", str(registry), "--out", str(out), "--data", "digits"]
    return subprocess.Popen(
        [*command, "--config", str(config), "--ray", address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(out: Path) -> list[dict[str, Any]]:
    path = out / "manifest.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for(out: Path, event: str, n: int = 1) -> None:
    end = time.monotonic() + _START_S
    while sum(found["event"] == event for found in events(out)) < n:
        assert time.monotonic() < end, f"no {event!r} in {events(out)}"
        time.sleep(0.05)


def nurseries(out: Path) -> list[int]:
    """The workers of one fleet."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"seamfast.fleet.nursery" in command and str(out).encode() in command:
                found.append(int(entry.name))
    return found


def done_once(out: Path) -> None:
    done = [found["id"] for found in events(out) if found["event"] == "done"]
    assert sorted(done) == sorted(set(done)) == [f"m{number}" for number in range(N_MODELS)]


def test_both_nodes_work_and_give_the_same_bits(
    cluster: Cluster, registry: Path, undisturbed: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    process = start(registry, tmp_path / "out", cluster.address, environment)
    out, errors = process.communicate(timeout=_END_S)
    assert process.returncode == 0, errors
    assert f"{N_MODELS} accepted" in out
    assert results(tmp_path / "out") == undisturbed
    assert len({found["worker"] for found in events(tmp_path / "out") if found["event"] == "done"}) == 2
    done_once(tmp_path / "out")


def test_killed_driver_is_run_again(
    cluster: Cluster, registry: Path, undisturbed: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    process = start(registry, tmp_path / "out", cluster.address, environment)
    wait_for(tmp_path / "out", "done")
    process.kill()
    process.communicate()
    again = start(registry, tmp_path / "out", cluster.address, environment)
    _, errors = again.communicate(timeout=_END_S)
    assert again.returncode == 0, errors
    assert results(tmp_path / "out") == undisturbed
    staging = sorted(entry.name for entry in (tmp_path / "out" / ".staging").iterdir())
    assert staging == ["lock"]


def test_lost_worker_and_lost_raylet_are_survived(
    cluster: Cluster, registry: Path, undisturbed: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    """A worker is killed, then the node that is not the driver's."""
    process = start(registry, tmp_path / "out", cluster.address, environment)
    wait_for(tmp_path / "out", "done")
    os.kill(nurseries(tmp_path / "out")[0], signal.SIGKILL)
    wait_for(tmp_path / "out", "lost")
    os.kill(cluster.raylets[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=_END_S)
    assert process.returncode == 0, errors
    assert results(tmp_path / "out") == undisturbed
    done_once(tmp_path / "out")


def test_loss_of_the_last_node_is_said_and_nothing_goes_on(
    cluster: Cluster, registry: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Ray would end the process that is connected through it, or leave it waiting; the driver is another."""
    out = tmp_path / "out"
    process = start(registry, out, cluster.address, environment, LONG)
    end = time.monotonic() + _START_S
    while not nurseries(out):
        assert time.monotonic() < end, "no worker"
        time.sleep(0.05)
    for raylet in cluster.raylets:
        with suppress(ProcessLookupError):  # the test before this one has ended one
            os.kill(raylet, signal.SIGKILL)
    _, errors = process.communicate(timeout=_END_S)
    assert process.returncode == 2, errors
    told = [line for line in errors.splitlines() if line.startswith("seamfast: ")]
    assert "lost" in told[-1]
    assert told[-1].endswith(f"0 of {N_MODELS} jobs are done; the same command goes on")
    assert len(errors.splitlines()) < 20, errors  # none of Ray's pages
    assert (out / "summary.html").exists()
    end = time.monotonic() + _START_S
    while nurseries(out):
        assert time.monotonic() < end, "workers go on"
        time.sleep(0.05)


def test_an_address_where_nothing_listens_is_said_at_once(
    registry: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    process = start(registry, tmp_path / "out", "127.0.0.1:9", environment)
    _, errors = process.communicate(timeout=_END_S)
    assert process.returncode == 2
    assert "ray is '127.0.0.1:9', where nothing answers: ConnectionRefusedError" in errors


def test_local_cluster_is_closed_to_others(registry: Path, tmp_path: Path) -> None:
    """It listens on the loopback alone, asks for a token, and has neither dashboard nor usage statistics."""
    one = tmp_path / "registry"
    shutil.copytree(registry / "m0", one / "m0")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = start(one, tmp_path / "out", "local", clean)
    wait_for(tmp_path / "out", "done")  # while it shuts down, its processes are there
    process.send_signal(signal.SIGSTOP)
    try:
        ours = processes_of(process.pid)
        variables = [read(pid, "environ") for pid, name in ours.items() if b"raylet" in name or b"gcs_server" in name]
        assert variables
        for text in variables:
            assert b"RAY_AUTH_MODE=token" in text
            assert b"RAY_AUTH_TOKEN=" in text
            assert b"RAY_USAGE_STATS_ENABLED=0" in text
        assert not [name for name in ours.values() if b"dashboard.py" in name.split(b"\0")[-1]]
        addresses = {address for pid in ours for address in listening(pid)}
        assert addresses
        assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}, addresses
    finally:
        process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=_END_S)
    assert process.returncode == 0, errors


def processes_of(pid: int) -> dict[int, bytes]:
    """The descendants of a process, and their commands."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (status := read(int(entry.name), "stat")):
            parents[int(entry.name)] = int(status.rpartition(b")")[2].split()[1])
    found, waiting = {}, [pid]
    while waiting:
        parent = waiting.pop()
        for child, of in parents.items():
            if of == parent and child not in found:
                found[child] = read(child, "cmdline")
                waiting.append(child)
    return found


def listening(pid: int) -> set[str]:
    """The addresses, as /proc/net/tcp has them, on which a process waits for connections."""
    sockets = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    except OSError:
        return set()
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and cells[9] in sockets:
                found.add(cells[1].rpartition(":")[0])
    return found


def read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
