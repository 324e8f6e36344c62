"""``seamfast gate`` as a command: what its process cannot reach, what ends it, and what is left when it has ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seamfast.gating.output import FILES
from seamfast.isolation import state
from seamfast.isolation.confine import available
from seamfast.isolation.folders import private_folder, why_unusable
from seamfast.isolation.limits import Limits, is_out_of_memory, machine_memory
from seamfast.models.folder import save_model
from tests.gating.conftest import DESCRIPTION, policy_in
from tests.gating.test_schema import VALIDATOR

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process of its own is for Linux")
needs_confinement = pytest.mark.skipif(
    not (available()["landlock_abi"] and available()["seccomp"]), reason="the system cannot confine a process here"
)
GATE = (sys.executable, "-m", "seamfast", "gate")


@dataclass
class Place:
    """A folder with a model and a policy; runs are started in ``here``, with ``tmp`` for temporary files."""

    here: Path
    tmp: Path

    def command(self, *more: object, model: str = "model", data: str = "digits") -> list[str]:
        return [*map(str, (*GATE, model, "--data", data, "--policy", "gate.toml", *more))]

    @property
    def options(self) -> dict[str, Any]:
        return {"cwd": self.here, "env": os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.tmp)}}

    def ran(self, *more: object, **names: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*more, **names), capture_output=True, text=True, **self.options)

    def module(self, name: str, source: str) -> list[str]:
        """Options that build by the function ``build`` of a module with this source."""
        (self.here / "code").mkdir(exist_ok=True)
        (self.here / "code" / f"{name}.py").write_text(textwrap.dedent(source))
        return ["--architecture", f"{name}:build", "--architecture-path", "code"]

    def left(self) -> set[str]:
        """What lies in either folder and was not there before."""
        return {path.name for path in (*self.here.iterdir(), *self.tmp.iterdir())} - {"model", "gate.toml", "code"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    here, tmp = tmp_path / "here", tmp_path / "tmp"
    here.mkdir()
    tmp.mkdir()
    save_model(here / "model", DESCRIPTION.build(), DESCRIPTION)
    policy_in(here)
    return Place(here, tmp)


SLEEPER = """
    import sys, time

    def build():
        print("building", file=sys.stderr, flush=True)
        time.sleep(600)
"""


@contextlib.contextmanager
def building(place: Place, *more: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has come to build the model, and stays there."""
    command = place.command("--out", "out", *place.module("sleeper", SLEEPER), *more)
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **place.options, **options)
    try:
        assert run.stderr is not None
        assert run.stderr.readline() == b"building\n"
        yield run
    finally:
        run.kill()
        run.communicate()


def children(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(entry.name))
    return found


def worker_of(run: subprocess.Popen[bytes]) -> int:
    (worker,) = (
        child for child in children(run.pid) if b"seamfast.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    return worker


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


# Code in a model's folder.

# Modules that torch or the command line may look for, by names that a supplier can give to a folder.
NAMES = ("opt_einsum", "pandas", "psutil", "cuda", "numba", "scipy", "argparse", "subprocess", "typing", "json")
# It takes itself away, so that what is inspected later is a folder of data.
LEAVES_A_MARK = "import os, pathlib\npathlib.Path({mark!r}).touch()\nos.unlink(__file__)\n"


@pytest.mark.parametrize("name", ["opt_einsum", "typing"])
def test_module_in_the_working_folder_is_not_imported(name: str, place: Place) -> None:
    for other in NAMES:
        shutil.copytree(place.here / "model", place.here / other)
        mark = place.here / f"{other} ran"
        (place.here / other / "__init__.py").write_text(LEAVES_A_MARK.format(mark=str(mark)))
    done = place.ran("--json", model=name)
    assert [entry for entry in os.listdir(place.here) if entry.endswith(" ran")] == []
    report = json.loads(done.stdout)
    assert (done.returncode, report["refusal"]["code"]) == (3, "mixed-folder")
    assert "Traceback" not in done.stderr


def test_module_in_the_working_folder_is_not_imported_by_other_commands(place: Place) -> None:
    for name in NAMES:
        (place.here / name).mkdir()
        (place.here / name / "__init__.py").write_text("raise RuntimeError('imported')")
    command = [sys.executable, "-m", "seamfast", "evaluate", "none", "--data", "digits"]
    done = subprocess.run(command, capture_output=True, text=True, **place.options)
    assert done.returncode == 3
    assert done.stderr.startswith("seamfast: RefusedError: none/model.json: no such file")


@pytest.mark.parametrize(
    ("before", "code", "has_run"), [("", "mixed-folder", False), ("import torch\n", "remote-code", True)]
)
def test_module_beside_the_script_is_not_imported(before: str, code: str, has_run: bool, place: Place) -> None:
    """A call from Python: what ran before it, as the script imported torch itself, is no pass."""
    shutil.copytree(place.here / "model", place.here / "opt_einsum")
    mark = place.here / "ran"
    (place.here / "opt_einsum" / "__init__.py").write_text(LEAVES_A_MARK.format(mark=str(mark)))
    script = place.here / "script.py"
    script.write_text(
        f"{before}import seamfast\n"
        "result = seamfast.gate('opt_einsum', 'digits', policy='gate.toml', dry_run=True)\n"
        "print(result.report['refusal']['code'], result.exit_code, result.report['isolation']['isolated'])\n"
    )
    done = subprocess.run([sys.executable, script.name], capture_output=True, text=True, **place.options)
    assert done.stdout == f"{code} 3 False\n", done.stderr
    assert mark.exists() is has_run


def test_module_on_the_search_path_of_the_environment_is_not_imported(place: Place) -> None:
    (place.here / "hooks").mkdir()
    for name in ("opt_einsum", "pandas", "usercustomize"):
        (place.here / "hooks" / f"{name}.py").write_text("print('imported', flush=True)")
    hooked = os.pathsep.join([str(place.here / "hooks"), os.environ.get("PYTHONPATH", "")])
    options = place.options
    options["env"] |= {"PYTHONPATH": hooked}
    done = subprocess.run(place.command("--dry-run", "--json"), capture_output=True, text=True, **options)
    assert json.loads(done.stdout)["verdict"]["outcome"] == "inconclusive"
    assert "imported" not in done.stderr


# What the operator's own code cannot do.

TRIES = """
    import json, os, signal, socket, sys, tempfile, time
    import seamfast

    def tried(name, act):
        try:
            act()
        except OSError as error:
            print(name, error.errno, file=sys.stderr, flush=True)
        else:
            print(name, "done", file=sys.stderr, flush=True)

    def survive():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print("survivor", os.getpid(), file=sys.stderr, flush=True)
                time.sleep(600)
            os._exit(0)
        os.wait()

    def build(**arguments):
        print("printed")
        if "survivor" not in globals():
            globals()["survivor"] = True
            tried("write", lambda: open("written", "w"))
            tried("append", lambda: open("gate.toml", "a"))
            tried("truncate", lambda: os.truncate("gate.toml", 0))
            tried("remove", lambda: os.unlink("gate.toml"))
            tried("rename", lambda: os.rename("gate.toml", "other"))
            tried("mkdir", lambda: os.mkdir("made"))
            tried("symlink", lambda: os.symlink("gate.toml", "link"))
            tried("hardlink", lambda: os.link("gate.toml", os.path.join(tempfile.gettempdir(), "link")))
            tried("chmod", lambda: os.chmod("gate.toml", 0o777))
            tried("utime", lambda: os.utime("gate.toml"))
            tried("own memory", lambda: open("/proc/self/mem", "r+b"))
            tried("tcp", lambda: socket.socket().connect(("127.0.0.1", 9)))
            tried("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            tried("ipv6", lambda: socket.socket(socket.AF_INET6))
            tried("unix", lambda: socket.socket(socket.AF_UNIX).connect("/run/nobody"))
            tried("datagram", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            tried("signal", lambda: os.kill(os.getppid(), signal.SIGCONT))
            tried("temporary", lambda: open(os.path.join(tempfile.gettempdir(), "own"), "w"))
            tried("null", lambda: open(os.devnull, "w"))
            survive()
            print("variables", json.dumps(sorted(os.environ)), file=sys.stderr, flush=True)
        return seamfast.attacks.build("small_cnn", **arguments)
"""
BUILD = [f"--argument={k}={v}" for k, v in (("num_classes", 10), ("in_channels", 1), ("image_size", 8))]


@needs_confinement
def test_code_of_the_operator_is_confined(place: Place) -> None:
    before = (place.here / "gate.toml").read_bytes()
    options = place.options
    hooks = ("LD_PRELOAD", "PYTHONSTARTUP", "TORCH_EXTENSIONS_DIR", "OMP_TOOL_LIBRARIES", "AWS_SECRET_ACCESS_KEY")
    options["env"] |= dict.fromkeys(hooks, "")
    command = place.command("--dry-run", "--json", *place.module("tries", TRIES), *BUILD)
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert "Warning" not in done.stderr
    report = json.loads(done.stdout)  # what the code prints is no part of the document
    assert "printed\n" in done.stderr
    assert (done.returncode, report["verdict"]["outcome"]) == (3, "inconclusive"), done.stderr
    lines = done.stderr.replace("own memory", "memory").splitlines()
    said = dict(line.split(maxsplit=1) for line in lines if " " in line)
    assert {said.pop("temporary"), said.pop("null")} == {"done"}
    variables = {*json.loads(said.pop("variables"))}
    assert not {*hooks} & variables
    assert "TOKENIZERS_PARALLELISM" in variables  # tokenizers starts a thread for each processor otherwise
    survivor = int(said.pop("survivor"))
    assert not is_running(survivor)
    assert {name: int(number) in (1, 13, 18) for name, number in said.items()} == dict.fromkeys(said, True)
    assert len(said) == 17
    assert (place.here / "gate.toml").read_bytes() == before
    assert place.left() == set()
    assert report["isolation"] == {
        "isolated": True,
        "landlock_abi": available()["landlock_abi"],
        "seccomp": True,
        "limits": Limits.of(None, 21_600).to_dict(),
    }
    assert report["warnings"] == []


def test_what_does_not_hold_is_a_warning(place: Place) -> None:
    """As where the extension is missing, in a copy without it."""
    package = Path(sys.modules["seamfast"].__file__ or "").parent
    ignored = shutil.ignore_patterns("__pycache__", "_confine*.so", "_native*.so")
    shutil.copytree(package, place.tmp / "copy" / "seamfast", ignore=ignored)
    # What makes an editable installation importable would find the extension beside the sources.
    (place.tmp / "copy" / "seamfast" / "_confine.py").write_text("raise ImportError")
    options = place.options
    options["env"] |= {"PYTHONPATH": str(place.tmp / "copy")}
    done = subprocess.run(place.command("--dry-run", "--json"), capture_output=True, text=True, **options)
    report = json.loads(done.stdout)
    VALIDATOR.validate(report)
    assert report["isolation"] | {"limits": None} == {
        "isolated": True, "landlock_abi": None, "seccomp": False, "limits": None,
    }  # fmt: skip
    expected = "the run was not confined by the system: seamfast is installed without its extension _confine"
    assert report["warnings"] == [expected]


@pytest.mark.parametrize("ending", ["raise SystemExit(0)", "import os; os._exit(0)", "import os; os.abort()"])
def test_code_that_ends_the_process_is_no_verdict(ending: str, place: Place) -> None:
    done = place.ran("--out", "out", "--json", *place.module("ends", f"def build(): {ending}"))
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]["outcome"]) == (2, "incomplete")
    assert json.loads((place.here / "out" / "report.json").read_text()) == report
    VALIDATOR.validate(report)


# Limits.


def reason(place: Place, *more: object) -> str:
    """Why a run was incomplete, by the report that it wrote."""
    done = place.ran("--out", "out", *more)
    report = json.loads((place.here / "out" / "report.json").read_text())
    assert (done.returncode, report["verdict"]["outcome"]) == (2, "incomplete"), done.stderr
    VALIDATOR.validate(report)
    assert place.left() == {"out"}
    (found,) = report["verdict"]["reasons"]
    assert f"  {found}\n" in done.stdout
    return str(found)


def test_too_little_memory_to_import_torch_is_incomplete(place: Place) -> None:
    assert "the memory limit is 31,457,280 bytes; --max-memory sets it" in reason(place, "--max-memory", "30M")


GREEDY = """
    import torch

    def build():
        return torch.nn.Linear(1 << 17, 1 << 15, device="cpu")
"""


def test_memory_beyond_the_limit_is_incomplete(place: Place) -> None:
    found = reason(place, "--max-memory", "4G", *place.module("greedy", GREEDY))
    assert "the memory limit is 4,294,967,296 bytes; --max-memory sets it" in found


def test_time_beyond_the_limit_is_incomplete(place: Place) -> None:
    found = reason(place, "--max-time", "4", *place.module("sleeper", SLEEPER))
    assert found == "did not end within 4 s, the limit that --max-time sets"


def test_a_file_beyond_the_limit_is_named() -> None:
    limits = Limits(1 << 30, 60.0, 120)
    assert limits.reached(OSError(27, "File too large")) == "the limit on a file is 17,179,869,184 bytes"
    assert limits.reached(OSError(24, "Too many open files")) == "the limit on open files is 4,096"
    assert limits.reached(RuntimeError("DefaultCPUAllocator: can't allocate memory")) is not None
    assert limits.reached(ValueError("other")) is None
    assert not is_out_of_memory(RuntimeError("other"))
    assert state.explained(MemoryError("4 GiB")) == "MemoryError: 4 GiB"  # no limits here


def test_default_memory_is_that_of_the_machine() -> None:
    memory = machine_memory()
    assert memory is not None
    assert 0 < memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("option", "value"), [("--max-memory", v) for v in ("0", "x", "-1", "1.5G", "8GB")] + [("--max-time", "0")]
)
def test_wrong_limits_are_usage(option: str, value: str, place: Place) -> None:
    done = place.ran(option, value)
    assert (done.returncode, done.stdout) == (4, "")
    assert repr(value) in done.stderr


# What is found before anything runs.


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--out", "model/out"), "out is 'model/out', which lies in the model's folder; expected a folder elsewhere"),
        (("--out", "model/way/out"), "out is 'model/way/out', which lies in the model's folder; expected a folder "
                                     "elsewhere"),
        (("--out", "full"), "out is 'full', which is not empty; expected a folder that does not exist yet"),
        (("--out", "file/out"), "out is 'file/out', beside which nothing can be written (Not a directory); expected "
                                "a folder that does not exist yet in one that can be written to"),
        (("--dry-run", "--out", "full"), "out is 'full', which is not empty; expected a folder that does not exist "
                                         "yet"),
        (("--architecture-path", "none"), "architecture-path is 'none'; expected a folder"),
        (("--architecture-path", "model"), "architecture-path is 'model', which lies in the model's folder; expected "
                                           "code from elsewhere"),
    ],
)  # fmt: skip
def test_paths_that_cannot_be_used_are_usage(more: tuple[str, ...], message: str, place: Place) -> None:
    (place.here / "full").mkdir()
    (place.here / "full" / "file").touch()
    (place.here / "file").touch()
    (place.here / "model" / "way").symlink_to(place.here)  # whoever fills the model's folder chooses where it leads
    done = place.ran(*more)
    assert (done.returncode, done.stdout, done.stderr) == (4, "", f"seamfast: {message}\n")
    assert place.left() == {"full", "file"}


def test_out_where_a_file_system_is_mounted_is_usage() -> None:
    if os.path.ismount("/dev/shm") and not os.listdir("/dev/shm"):
        assert "where a file system is mounted" in (why_unusable("model", "/dev/shm", ()) or "")


def test_folders_that_out_lies_in_are_made_and_go_where_nothing_is_written(place: Place) -> None:
    wrong = place.ran("--out", "a/b/out", "--seed", "x")
    assert wrong.returncode == 4
    (place.here / "gate.toml").write_text("version = 1\n")
    assert place.ran("--out", "a/b/out").returncode == 4
    assert place.left() == set()
    policy_in(place.here)
    assert place.ran("--out", "a/b/out", model="none").returncode == 3
    assert {path.name for path in (place.here / "a" / "b" / "out").iterdir()} == {*FILES} - {"attestation.json"}
    assert [path.name for path in (place.here / "a" / "b").iterdir()] == ["out"]


# stdout and stderr in any state.


def redirected(place: Place, how: str, *more: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A run whose shell command ends so."""
    options = place.options
    options["env"] |= variables
    command = ["/bin/sh", "-c", f'"$@" {how}', "sh", *place.command(*more, model="none")]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.parametrize("how", [">&-", ">/dev/full", "0<&- >&- 2>&-", "2>&-", "2>/dev/full", "</dev/null"])
def test_with_out_the_exit_code_is_the_verdict(how: str, place: Place) -> None:
    done = redirected(place, how, "--out", "out", "--json")
    assert done.returncode == 3
    report = json.loads((place.here / "out" / "report.json").read_text())
    assert report["verdict"]["outcome"] == "refused"
    if ">&-" not in how.split("2")[0] and ">/dev/full" not in how.split("2")[0]:
        assert json.loads(done.stdout) == report
    assert "Traceback" not in done.stdout + done.stderr
    assert {path.name for path in (place.here / "out").iterdir()} == {*FILES} - {"attestation.json"}


@pytest.mark.parametrize("how", [">&-", ">/dev/full"])
def test_a_report_that_goes_nowhere_is_incomplete(how: str, place: Place) -> None:
    done = redirected(place, how)
    assert done.returncode == 2
    expected = "the report cannot be written to stdout, and there is no --out"
    assert done.stderr == f"seamfast: could not complete: {expected}\n"


def test_what_the_encoding_lacks_is_escaped(place: Place) -> None:
    shutil.copytree(place.here / "model", place.here / "模型")
    options = place.options
    options["env"] |= {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(place.command("--out", "模型 out", model="none 模型"), capture_output=True, **options)
    assert done.returncode == 3
    assert rb"written to \u6a21\u578b out/" in done.stdout
    assert b"Traceback" not in done.stderr


# What ends a run from outside.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_in_2_and_leave_nothing(number: signal.Signals, place: Place) -> None:
    def heed() -> None:  # also where the tests themselves run under nohup
        signal.signal(number, signal.SIG_DFL)

    with building(place, preexec_fn=heed) as run:
        worker = worker_of(run)
        run.send_signal(number)
        out, err = run.communicate()
    assert (run.returncode, out, err) == (2, b"", b"seamfast: interrupted\n")
    assert not is_running(worker)
    assert place.left() == set()


def test_signals_that_are_ignored_stay_so(place: Place) -> None:
    """As under nohup."""

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with building(place, preexec_fn=ignore) as run:
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert run.poll() is None
        run.send_signal(signal.SIGTERM)
        run.communicate()
    assert run.returncode == 2


def test_worker_that_is_killed_is_reported(place: Place) -> None:
    with building(place) as run:
        os.kill(worker_of(run), signal.SIGKILL)
        out, err = run.communicate()
    assert run.returncode == 2
    expected = "the process of the run was ended by SIGKILL, as the system does where memory runs out"
    assert f"  {expected}\n" in out.decode()
    assert f"seamfast: {expected}\n" in err.decode()
    report = json.loads((place.here / "out" / "report.json").read_text())
    VALIDATOR.validate(report)
    assert report["verdict"]["reasons"] == [expected]
    assert place.left() == {"out"}


def test_supervisor_that_is_killed_leaves_nothing(place: Place) -> None:
    with building(place) as run:
        worker = worker_of(run)
        assert place.left() != set()
        run.kill()
        run.communicate()
    assert eventually(lambda: not is_running(worker) and place.left() == set()), place.left()


def test_what_all_killed_together_leave_goes_with_the_next_run(place: Place) -> None:
    with building(place) as run:
        for process in (*children(run.pid), run.pid):
            os.kill(process, signal.SIGSTOP)  # none of them has time to clean up
        for process in (*children(run.pid), run.pid):
            os.kill(process, signal.SIGKILL)
        run.communicate()
    left = place.left()
    assert {re.sub(r"[0-9a-f]{16}$", "HEX", name) for name in left} == {".out.HEX", "seamfast-gate.HEX"}
    mine = place.here / ".out.0123456789abcdeX"
    mine.mkdir()
    assert place.ran("--out", "out", model="none").returncode == 3
    assert place.left() == {"out", mine.name}


def test_folder_in_use_stays(tmp_path: Path) -> None:
    with private_folder(tmp_path, "x") as (first, _):
        with private_folder(tmp_path, "x") as (second, _):
            assert first.is_dir()
            assert (first.stat().st_mode & 0o777, first != second) == (0o700, True)
        assert first.is_dir()
        assert not second.exists()
    (tmp_path / f"x.{'0' * 16}").mkdir()
    (tmp_path / f"x.{'1' * 16}").symlink_to(tmp_path)
    (tmp_path / f"x.{'2' * 16}").mkdir()
    (tmp_path / f"x.{'2' * 16}" / "file").touch()
    with private_folder(tmp_path, "x"):
        # A link and a folder without a lock are not of a run.
        assert {path.name for path in tmp_path.iterdir()} >= {f"x.{'1' * 16}", f"x.{'2' * 16}"}
        assert not (tmp_path / f"x.{'0' * 16}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.05, 0.4, 1.1, 1.9, 3.0])
@pytest.mark.parametrize("who", ["supervisor", "worker"])
def test_killed_at_any_moment_nothing_is_half_written(seconds: float, who: str, place: Place) -> None:
    run = subprocess.Popen(
        place.command("--out", "out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **place.options
    )
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError, ValueError):
        os.kill(run.pid if who == "supervisor" else worker_of(run), signal.SIGKILL)
    code = run.wait()
    assert eventually(lambda: place.left() <= {"out"}), place.left()
    if place.left():
        report = json.loads((place.here / "out" / "report.json").read_text())
        VALIDATOR.validate(report)
        assert code in (report["verdict"]["exit_code"], -signal.SIGKILL)
        assert {*FILES} - {"attestation.json"} <= {path.name for path in (place.here / "out").iterdir()}
    else:
        assert code == -signal.SIGKILL
