"""What ``--allow-pickle`` takes out of a pickle, and all that it refuses: before the pickle is read, or while it is."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile.pickles import CALLING, CANARY, CASES, GOOD, STORAGES, Member, archive, dict_of, tensor, torch_zip, whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from seamfast.errors import ConfigError
from seamfast.intake import pickles
from seamfast.intake.pickles import Converted, convert_pickle
from seamfast.intake.refusal import RefusedError
from tests.gating.golden_files import check_messages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pickles are converted on Linux only")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file of one tensor, ``w``."""
    path = tmp_path / "model.pt"
    path.write_bytes(torch_zip(GOOD))
    return path


@pytest.fixture
def childless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process may be started."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the reading process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture
def child(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a shell script in the place of the reading process; it gets ``$ARCHIVE`` and ``$OUT``."""
    folder = tmp_path_factory.mktemp("child")

    def become(script: str) -> Path:
        program = folder / "python"
        program.write_text(f'#!/bin/sh\nARCHIVE="$4"\nOUT="$5"\nNOTES={folder}\n{script}\n')
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))
        return folder

    return become


def refused(path: Path, code: str, message: str, **limits: Any) -> None:
    """Refused by code and message, nothing left behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(RefusedError, match=message) as caught:
        convert_pickle(path, path.parent / "out.safetensors", **limits)
    assert caught.value.code == code, str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert sorted(path.parent.iterdir()) == before


PATIENT = 240.0  # seconds: torch alone takes many of them to be imported where a machine is busy


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


# What is taken.


def test_state_dict_comes_out_to_the_bit(tmp_path: Path) -> None:
    path, out = tmp_path / "modèle.pt", tmp_path / "out.safetensors"
    tied = torch.randn(4, 3)
    state = {
        **nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(),  # F32, I64, a scalar
        **{str(d): (8 * torch.rand(3, 2)).to(d) for d in (torch.float64, torch.float16, torch.bfloat16)},
        **{str(d): torch.tensor([[-1, 2], [3, 4]]).to(d) for d in (torch.int32, torch.int16, torch.int8, torch.uint8)},
        "bool": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.randn(2)),
        "transposed": tied.T,
        "tied": tied,
        "tied.part": tied[1:3, ::2],
        "not finite": torch.tensor([float("nan"), float("inf")]),
        "größe": torch.ones(1, 1, 1),
    }
    torch.save(state, path)
    content = path.read_bytes()
    converted = convert_pickle(path, out, time_limit_s=PATIENT)
    assert converted == Converted(hashlib.sha256(content).hexdigest(), len(content), len(state))
    found = load_file(out)
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(bits(found[name]), bits(value)), name
    assert path.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


def test_state_dict_within_a_checkpoint_is_taken(tmp_path: Path) -> None:
    path, out = tmp_path / "model.pt", tmp_path / "out.safetensors"
    out.write_bytes(b"of an earlier run")
    state = collections.OrderedDict(w=torch.ones(2), b=torch.zeros(1))
    torch.save({"epoch": 3, "accuracy": 0.5, "name": "x", "best": None, "done": True, "state_dict": state}, path)
    assert convert_pickle(path, out, time_limit_s=PATIENT).n_tensors == 2
    assert {name: value.tolist() for name, value in load_file(out).items()} == {"w": [1.0, 1.0], "b": [0.0]}


# What is refused before any process is started.


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("childless")
def test_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    path = CASES[name].make(tmp_path)
    refused(path, CASES[name].code, rf"^{re.escape(path.name)}[: ]")
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", CALLING)
def test_canaries_speak_of_the_canary(name: str, tmp_path: Path) -> None:
    # Else nothing that they did could be seen.
    assert b"/canary" in CALLING[name][0](str(tmp_path / CANARY)) or name == "STACK_GLOBAL of nothing"


@pytest.mark.usefixtures("childless")
def test_messages_say_what_was_found(tmp_path: Path) -> None:
    def converted(name: str) -> object:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return convert_pickle(CASES[name].make(folder), folder / "out.safetensors")

    names = [
        *("another archive in front, in the zip", "a bomb, in the zip", "encrypted, in the zip"),
        *("a symbolic link, in the zip", "a top folder that is the one above, in the zip"),
        *("two folders, in the zip", "a descriptor that is not there, in the zip"),
        *("a directory as long as the file, in the zip", "posix.system, protocol 2 in model.pt"),
        *("posix.system, protocol 5, framed in model.pt", "STACK_GLOBAL by way of the memo in model.pt"),
        *("an escape in a name in model.pt", "a name with terminal escapes in model.pt", "INST in model.pt"),
        *("EXT1 in model.pt", "behind STOP in model.pt", "posix.system, protocol 2 in legacy.pth"),
        *("posix.system, protocol 2 in model.safetensors", "code, in the zip"),
        *("data.pkl twice, the last evil, in the zip", "an optimizer beside it in model.pt"),
        "a terabyte of one element in model.pt",
    ]
    numbers = r"(?<=INST at byte )\d+|(?<=followed by )\d+|(?<=has )\d+(?= bytes between)"  # of the folder's length
    check_messages("pickles.txt", RefusedError, converted, names, numbers)


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("_MAX_FILE_BYTES", 100, r"has \d+ bytes; expected at most 100$"),
        ("_MAX_PICKLE_BYTES", 100, r"data\.pkl has 200 bytes; expected at most 100$"),
        ("_MAX_OPCODES", 10, r"data\.pkl has more than 10 opcodes; expected fewer$"),
    ],
)
@pytest.mark.usefixtures("childless")
def test_sizes_are_bounded(limit: str, value: int, message: str, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, limit, value)
    refused(good, "pickle-limits", message)


@pytest.mark.usefixtures("childless")
def test_members_are_bounded(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MAX_MEMBERS", 2)
    refused(good, "pickle-zip", r"has 3 members; expected at most 2$")


@pytest.mark.usefixtures("childless")
def test_older_torch_is_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    refused(good, "torch-too-old", r"^torch is 2\.9\.1\+cpu; expected 2\.10 or later, to read a pickle with$")


@pytest.mark.usefixtures("childless")
def test_other_platforms_are_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    refused(good, "pickle", r"^the platform is win32; expected linux, where the process that reads is confined$")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"time_limit_s": 0}, r"^time_limit_s is 0; expected a number of seconds above 0$"),
        ({"time_limit_s": float("nan")}, r"^time_limit_s is nan; expected a number of seconds above 0$"),
        ({"memory_limit_bytes": 0}, r"^memory_limit_bytes is 0; expected a number of bytes above 0, or None$"),
    ],
)
def test_limits_must_be_limits(limits: dict[str, Any], message: str, good: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        convert_pickle(good, good.parent / "out.safetensors", **limits)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("real") / "model.pt"
    torch.save(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict(), path)
    return path.read_bytes()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.usefixtures("childless")
def test_any_byte_changed_is_refused_or_harmless(data: st.DataObject, real: bytes, tmp_path: Path) -> None:
    content = bytearray(real)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    # Nothing else than these two: what is harmless (a name or a version, say, that may be another) would be read.
    with pytest.raises((RefusedError, AssertionError), match=r"model\.pt|^the reading process was started$") as caught:
        convert_pickle(path, tmp_path / "out.safetensors")
    assert str(caught.value).isprintable()


# What the reading process is given, and how far it is believed.


def test_process_gets_an_archive_of_what_was_checked_alone(tmp_path: Path, child: Callable[[str], Path]) -> None:
    notes = child('cp "$ARCHIVE" $NOTES/archive.pt\nenv | cut -d= -f1 > $NOTES/env\necho "$@" > $NOTES/args\nexit 1')
    path = tmp_path / "model.pt"
    path.write_bytes(archive([Member("x y/data.pkl", GOOD), Member("x y/data/0", STORAGES["0"])]))
    refused(path, "pickle", r"model\.pt: could not be read: no account of it \(exit status 1\)$")
    with zipfile.ZipFile(notes / "archive.pt") as given:
        names = ["archive/data.pkl", "archive/byteorder", "archive/version", "archive/data/0"]
        assert given.namelist() == names
        assert given.read("archive/data.pkl") == GOOD
        assert given.read("archive/data/0") == STORAGES["0"]
    shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    named = set((notes / "env").read_text().split()) - shell
    assert named == {"PATH", "HOME", "TMPDIR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}
    assert (notes / "args").read_text().startswith("-I -B ")


def test_file_that_changes_after_it_was_copied_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(torch_zip(GOOD))
    check = pickles._check_beginning

    def swap(*args: Any) -> None:
        check(*args)
        path.write_bytes(CALLING["os.system"][0](str(tmp_path / CANARY)))

    monkeypatch.setattr(pickles, "_check_beginning", swap)
    converted = convert_pickle(path, tmp_path / "out.safetensors", time_limit_s=PATIENT)
    assert converted.sha256 == hashlib.sha256(torch_zip(GOOD)).hexdigest()
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("exit 0", "not-a-file", r"gave something else than its pickle describes: .*no such file"),
        ('ln -s /etc/passwd "$OUT"', "symlink", r"gave something else than its pickle describes: .*is a symbolic link"),
        ('echo hello > "$OUT"', "header", r"gave something else than its pickle describes: .*not a whole safetensors"),
        ('cp "$ARCHIVE" "$OUT"', "too-large|header", r"gave something else than its pickle describes: "),
        ("printf '\\033[2J'; exit 1", "pickle", r"could not be read: no account of it \(exit status 1\)$"),
        ("echo '[]'; exit 1", "pickle", r"could not be read: no account of it"),
        (r"""echo '{"code": "pass", "reason": "\u001b[2J"}'; exit 1""", "pickle", r"could not be read: '\\x1b\[2J'$"),
        ('echo \'{"code": "pickle-limits", "reason": "x"}\'; exit 1', "pickle-limits", r"could not be read: x$"),
        ("kill -SEGV $$", "pickle", r"the process that read it was ended by SIGSEGV$"),
        ("kill -XCPU $$", "pickle-limits", r"the process that read it was ended by SIGXCPU$"),
    ],
)
def test_process_is_not_believed(
    script: str, code: str, message: str, good: Path, child: Callable[[str], Path]
) -> None:
    child(script)
    with pytest.raises(RefusedError, match=message) as caught:
        convert_pickle(good, good.parent / "out.safetensors")
    assert caught.value.code in code.split("|")
    assert str(caught.value).isprintable()
    assert os.listdir(good.parent) == ["model.pt"]


def test_other_tensors_than_those_described_are_refused(good: Path, child: Callable[[str], Path]) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    folder = child('cp $NOTES/other "$OUT"')
    (folder / "other").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    refused(good, "shape", r"gave something else than its pickle describes: .*expects \(2,\)$")


def test_process_that_takes_too_long_is_ended_with_its_children(good: Path, child: Callable[[str], Path]) -> None:
    folder = child("sleep 300 & echo $! > $NOTES/pid\nwait")
    refused(good, "pickle-limits", r"model\.pt: was not read within time_limit_s=1 seconds$", time_limit_s=1)
    pid = int((folder / "pid").read_text())
    for _ in range(200):
        if not is_running(pid):
            return
        time.sleep(0.05)
    raise AssertionError("the process that it started still runs")


STARTS = """
import subprocess, sys
from pathlib import Path
from seamfast.intake import pickles

start = subprocess.Popen

def noted(*arguments, **options):
    process = start(*arguments, **options)
    print(process.pid, flush=True)
    return process

subprocess.Popen = noted
pickles._run_child(Path(sys.argv[1]), [f"{sys.argv[1]}/archive", f"{sys.argv[1]}/out", 1 << 30, 1 << 20, 600], 600)
"""


@pytest.mark.parametrize("after_s", [0.05, 4.0])
def test_process_ends_with_the_one_that_started_it(after_s: float, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "archive")  # to which nobody writes: the process would wait for ever
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(after_s)
        assert is_running(pid)
        parent.kill()
    end = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    if is_running(pid):
        os.kill(pid, signal.SIGKILL)
        raise AssertionError("the process that reads outlived the one that started it")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"  # dead, and nobody here to bury it
    except OSError:
        return False


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(12 << 20)}, path)
    refused(path, "pickle-limits", r"could not be read: .*memory", memory_limit_bytes=32 << 20, time_limit_s=PATIENT)


# The reading process alone: nothing in front of it has been checked.

ALONE = """
import importlib.util, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("child", sys.argv[1])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
child.confine(1 << 28, 1 << 16, 600)
for path in map(Path, sys.argv[2:]):
    try:
        child.convert(str(path), str(path.with_suffix(".safetensors")))
        print(path.stem, "taken")
    except Exception as error:
        print(path.stem, type(error).__name__)

def says(name, act):
    try:
        act()
        print(name, "done")
    except BaseException as error:
        print(name, type(error).__name__)

def allocate():
    bytearray(1 << 29)

def write():
    with open("large", "wb") as file:
        file.write(bytes(1 << 17))

def open_many():
    files = [open(os.devnull) for _ in range(64)]

import pickle, signal, socket, subprocess
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
says("memory", allocate)
says("file", write)
says("files", open_many)
says("system", lambda: os.system("true"))
says("fork", lambda: os.fork() or os._exit(0))
says("program", lambda: subprocess.run(["true"]))
says("socket", lambda: socket.socket())
says("unpickling", lambda: pickle.loads(b"cos\\ngetcwd\\n)R."))
"""


def test_process_alone_refuses_what_calls_and_is_confined(tmp_path: Path) -> None:
    paths = {}
    for i, (name, (pickled, _)) in enumerate(CALLING.items()):
        if name == "a name of a megabyte":
            continue  # torch takes hours over its message: what the time limit is for, were it let through
        paths[name] = tmp_path / f"{i}.pt"
        paths[name].write_bytes(torch_zip(pickled(str(tmp_path / CANARY))))
    (tmp_path / "good.pt").write_bytes(torch_zip(GOOD))
    (tmp_path / "list.pt").write_bytes(torch_zip(whole(dict_of(w=tensor(), x=b"K\x01"))))
    program = Path(pickles.__file__).with_name("_pickle_child.py")
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            ALONE,
            *map(str, [program, *paths.values(), tmp_path / "good.pt", tmp_path / "list.pt"]),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert not (tmp_path / CANARY).exists()
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said["good"] == "taken", done.stderr
    assert said["list"] == "NotAStateDict"
    # torch ignores what is behind STOP, and lets an OrderedDict have attributes; it takes no global but its own.
    taken = [name for name, path in paths.items() if said[path.stem] == "taken"]
    assert [name for name in taken if CALLING[name][1] == "pickle-global"] == []
    assert {name: said[name] for name in ("memory", "file", "files")} == {
        "memory": "MemoryError",
        "file": "OSError",
        "files": "OSError",
    }
    for name in ("system", "fork", "program", "socket", "unpickling"):
        assert said[name] == "PermissionError", name
