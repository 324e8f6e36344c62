"""A process that is told lines of JSON, and answers in such; and the one that is connected to Ray, as the driver sees
it."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seamfast.errors import InputError
from seamfast.fleet.process import JsonProcess, ProcessLost
from seamfast.fleet.ray_workers import RayWorkers
from seamfast.fleet.schedule import WorkersLost

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def started(code: str) -> JsonProcess:
    return JsonProcess("the echo", [sys.executable, "-I", "-c", code], os.environ)


@pytest.fixture
def echo() -> Iterator[JsonProcess]:
    process = started(ECHO)
    yield process
    process.close(10.0)


def test_lines_come_back_whole_and_in_order(echo: JsonProcess) -> None:
    messages = [{"n": n, "text": "é\n" * 5000} for n in range(5)]
    for message in messages[:3]:
        echo.tell(message)
    assert [echo.hear(10.0) for _ in range(3)] == messages[:3]
    assert echo.hear(0.0) is None
    echo.tell(messages[3])
    assert echo.hear(10.0) == messages[3]


def test_two_lines_of_one_write_are_two_answers() -> None:
    process = started('import os\nos.write(1, b\'{"n": 1}\\n{"n": 2}\\n{"n"\')\nos.write(1, b\': 3}\\n\')')
    assert [process.hear(10.0) for _ in range(3)] == [{"n": 1}, {"n": 2}, {"n": 3}]
    process.close(10.0)


@pytest.mark.timeout(60)
def test_a_line_that_never_ends_is_not_waited_for() -> None:
    process = started("import os, time\nwhile True:\n os.write(1, b'1')\n time.sleep(0.02)")
    assert process.hear(2.0) is None
    process.close(0.0)


def test_descriptors_above_1023_are_waited_for() -> None:
    """``select`` has no more."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 1200:
        pytest.skip(f"this machine allows {before[1]} descriptors; expected 1,200")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1200, before[1]))
    taken = []
    try:
        while not taken or taken[-1] < 1030:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        process = started(ECHO)
        process.tell({"n": 1})
        assert process.hear(10.0) == {"n": 1}
        process.close(10.0)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.exit(7)", "the echo ended with status 7"),
        ("import os; os.kill(os.getpid(), 9)", "the echo ended with status -9"),
        ("print('x')", "the echo answered with what is not JSON"),
        ("print('[1]')", "the echo answered with what is not an object"),
        ("import os\nwhile True: os.write(1, b'1' * 65536)", "the echo answered with more than 4,194,304 bytes"),
    ],
)
def test_what_is_no_answer_is_a_lost_process(code: str, why: str) -> None:
    process = started(code)
    try:
        with pytest.raises(ProcessLost) as raised:
            process.hear(30.0)
        assert str(raised.value) == why
    finally:
        process.close(0.0)


def test_a_process_that_has_left_is_told_nothing(echo: JsonProcess) -> None:
    echo.leave()
    with pytest.raises(ProcessLost, match="the echo takes nothing more"):
        echo.tell({})


def test_closing_ends_what_does_not_leave(tmp_path: Path) -> None:
    process = started("import signal, time\nprint('{}', flush=True)\nwhile True: time.sleep(1)")
    assert process.hear(10.0) == {}
    process.close(0.1)
    assert not process.is_running()


# The driver, and what stands in for the process that is connected.


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``RayWorkers`` whose process runs some other code."""
    module = importlib.import_module("seamfast.fleet.ray_workers")
    made: list[RayWorkers] = []

    def as_if(code: str) -> RayWorkers:
        monkeypatch.setattr(module, "command", lambda *_: [sys.executable, "-I", "-c", code])
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name)
        made.append(RayWorkers("HOST:1", {}, None, 0.0))
        return made[-1]

    yield as_if
    for workers in made:
        workers.close()


def names_after(workers: RayWorkers, seconds: float = 10.0) -> list[str]:
    end = time.monotonic() + seconds
    while not workers.names() and time.monotonic() < end:
        workers.wait(0.05)
    return workers.names()


def test_answers_and_names_are_passed_on(connection: Any) -> None:
    workers = connection(
        "import json, sys\nprint(json.dumps({'names': ['0']}), flush=True)\nfor line in sys.stdin:\n"
        " told = json.loads(line)\n"
        " print(json.dumps({'worker': told['worker'], 'number': told['number'], 'answer': told['task']}), flush=True)"
    )
    assert names_after(workers) == ["0"]
    workers.submit("0", 5, {"id": "a"})
    assert workers.wait(10.0) == [("0", 5, {"id": "a"})]
    assert workers.wait(0.0) == []


def test_a_connection_that_ends_or_says_why_is_lost_workers(connection: Any) -> None:
    """As Ray ends a process whose raylet is lost: by a signal."""
    with pytest.raises(WorkersLost, match=r"the Ray cluster was lost: the process .* ended with status -6"):
        connection("import os; os.abort()").wait(10.0)
    with pytest.raises(WorkersLost, match=r"^it was so$"):
        connection('print(\'{"lost": "it was so"}\')').wait(10.0)


def test_a_silent_connection_is_given_up(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("seamfast.fleet.ray_workers")
    workers = connection('import time\nprint(\'{"names": ["0"]}\', flush=True)\ntime.sleep(1000)')
    assert names_after(workers) == ["0"]
    monkeypatch.setattr(module, "_LEAVE_S", 0.0)
    monkeypatch.setattr(module, "_SILENT_S", 0.2)
    time.sleep(0.3)
    with pytest.raises(WorkersLost, match="the Ray cluster does not answer"):
        workers.wait(0.1)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("seamfast.fleet.ray_workers")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as raised:
        RayWorkers("auto", {}, None, 0.0)
    assert str(raised.value) == "ray is 'auto', and Ray is not installed; expected pip install \"seamfast[fleet]\""


# The actors, on what stands in for Ray.


class Lost(Exception):
    """As Ray's own."""


class FakeRay:
    """Actors that are objects, calls that are done at once or fail, and nodes as told."""

    class exceptions:
        RayError = Lost

    def __init__(self) -> None:
        self.alive = [{"NodeID": "here", "Alive": True, "Resources": {"CPU": 2.0}}]
        self.killed: list[Any] = []
        self.broken: set[str] = set()  # methods whose calls fail

    def remote(self, **options: Any) -> Any:
        def wrap(cls: type) -> Any:
            return FakeClass(self, cls)

        return wrap

    def get_runtime_context(self) -> Any:
        return self

    def get_node_id(self) -> str:
        return "here"

    def nodes(self) -> list[dict[str, Any]]:
        return self.alive

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: tuple[Any, ...]) -> Any:
        _, method, value = reference
        if method in self.broken:
            raise Lost(f"{method} failed\nat length")
        return value

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


class FakeClass:
    def __init__(self, ray: FakeRay, cls: type) -> None:
        self._ray, self._cls = ray, cls

    def remote(self, *arguments: Any) -> Any:
        return FakeActor(self._cls(*arguments))


class FakeActor:
    def __init__(self, actor: Any) -> None:
        self._actor, self._n = actor, 0

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> tuple[Any, ...]:
            self._n += 1
            return (id(self), self._n), method, getattr(self._actor, method)(*arguments)

        return type("Method", (), {"remote": staticmethod(remote)})


class Worker:
    def __init__(self, how: str, name: str) -> None:
        self.name = name

    def ready(self) -> bool:
        return True

    def run(self, task: str) -> str:
        return task

    def close(self) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setattr(importlib.import_module("seamfast.fleet.ray_actors"), "_LOOK_AROUND_S", 0.0)
    return FakeRay()


def actors(ray: FakeRay, n_workers: int | None = 1) -> Any:
    return importlib.import_module("seamfast.fleet.ray_actors").RayActors(ray, {}, n_workers, 0.0, print, actor=Worker)


def test_as_many_actors_as_live_nodes_have_room_for(fake: FakeRay) -> None:
    fake.alive.append({"NodeID": "there", "Alive": False, "Resources": {"CPU": 64.0}})
    pool = actors(fake, None)
    assert pool.names() == ["0", "1"]
    fake.alive[1]["Alive"] = True
    fake.alive[1]["Resources"] = {"CPU": 1.0}
    assert pool.names() == ["0", "1", "2"]


def test_the_loss_of_the_node_it_is_connected_through_ends_it(fake: FakeRay) -> None:
    pool = actors(fake)
    pool.names()
    fake.alive = [{**fake.alive[0], "Alive": False}, {"NodeID": "there", "Alive": True, "Resources": {"CPU": 1.0}}]
    with pytest.raises(WorkersLost, match="the Ray node that the fleet is connected through was lost"):
        pool.names()


def test_actors_that_fail_as_they_start_are_not_asked_for_without_end(fake: FakeRay) -> None:
    """Ten times in a row, that is."""
    fake.alive[0]["Resources"] = {"CPU": 1.0}
    pool = actors(fake, None)
    fake.broken.add("ready")
    for _ in range(6):
        assert pool.names() == []
    fake.broken.clear()
    assert pool.names() == ["6"]
    fake.alive[0]["Resources"] = {"CPU": 2.0}
    fake.broken.add("ready")
    for _ in range(9):
        assert pool.names() == ["6"]
    with pytest.raises(WorkersLost) as raised:
        pool.names()
    assert str(raised.value) == "actors of Ray cannot be started: Lost: ready failed"
    assert len(fake.killed) == 16


def test_tasks_of_a_lost_actor_are_lost_with_it_and_another_comes(fake: FakeRay) -> None:
    pool = actors(fake)
    assert pool.names() == ["0"]
    fake.broken.add("run")
    pool.submit("0", 1, {"id": "a"})
    pool.submit("0", 2, {"id": "b"})
    assert pool.wait(0.0) == [("0", 1, {"lost": "Lost: run failed", "worker": "0"})]
    pool.submit("0", 3, {"id": "c"})  # the driver does not know yet
    found = pool.wait(0.0)
    assert ("0", 3, {"lost": "its worker was lost before", "worker": "0"}) in found
    assert ("0", 2, {"lost": "Lost: run failed", "worker": "0"}) in found
    fake.broken.clear()
    assert pool.names() == ["1"]
    pool.submit("1", 1, {"id": "a"})
    assert pool.wait(0.0) == [("1", 1, {"id": "a"})]
