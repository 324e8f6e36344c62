"""Stamps and digests of what a job reads: equal while nothing changes, another when anything does."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seamfast.errors import DataFileError
from seamfast.fleet import fingerprint
from seamfast.fleet.fingerprint import Inputs, canonical_digest, digest_of, stamp_of
from seamfast.fleet.jobs import Job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files, one of them in a folder of its own."""
    place = tmp_path / "model"
    (place / "inner").mkdir(parents=True)
    (place / "a").write_bytes(b"1")
    (place / "inner" / "b").write_bytes(b"22")
    return place


def rewrite(path: Path, content: bytes) -> None:
    """Other bytes at the same time as before."""
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "another size": lambda place: rewrite(place / "a", b"11"),
    "an empty file more": lambda place: (place / "c").touch(),
    "a file less": lambda place: (place / "inner" / "b").unlink(),
    "another name": lambda place: (place / "a").rename(place / "c"),
    "another folder": lambda place: (place / "inner").rename(place / "other"),
    "out of its folder": lambda place: (place / "inner" / "b").rename(place / "b"),
    "a link more": lambda place: (place / "c").symlink_to("a"),
    "a pipe more": lambda place: os.mkfifo(place / "c"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("look", [stamp_of, digest_of])
def test_what_changes_both(look: Callable[[Path], str], change: str, folder: Path) -> None:
    before = look(folder)
    assert look(folder) == before
    CHANGES[change](folder)
    assert look(folder) != before


def test_bytes_change_the_digest_and_times_the_stamp(folder: Path) -> None:
    stamp, digest = stamp_of(folder), digest_of(folder)
    rewrite(folder / "inner" / "b", b"33")
    assert stamp_of(folder) == stamp
    assert digest_of(folder) != digest
    rewrite(folder / "inner" / "b", b"22")
    os.utime(folder / "a", (1, 1))
    assert stamp_of(folder) != stamp
    assert digest_of(folder) == digest


def test_bytes_belong_to_their_file(folder: Path) -> None:
    before = digest_of(folder)
    rewrite(folder / "a", b"2")
    rewrite(folder / "inner" / "b", b"12")
    assert digest_of(folder) != before


def test_a_copy_elsewhere_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy" / "inner").mkdir(parents=True)
    (tmp_path / "copy" / "inner" / "b").write_bytes(b"22")
    (tmp_path / "copy" / "a").write_bytes(b"1")
    assert digest_of(tmp_path / "copy") == digest_of(folder)
    (tmp_path / "link").symlink_to(folder)  # where the operator points is followed
    assert digest_of(tmp_path / "link") == digest_of(folder)


def test_a_file_alone_is_told_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"x" * 3_000_000)
    before = digest_of(path), stamp_of(path)
    path.rename(tmp_path / "other.npz")
    assert (digest_of(tmp_path / "other.npz"), stamp_of(tmp_path / "other.npz")) == before
    rewrite(tmp_path / "other.npz", b"x" * 2_999_999 + b"y")
    assert digest_of(tmp_path / "other.npz") != before[0]


def test_nothing_blocks_or_is_followed(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "up").symlink_to(tmp_path)
    (folder / "nowhere").symlink_to("missing")
    os.mkfifo(tmp_path / "pipe")
    before = digest_of(folder), stamp_of(folder)
    (tmp_path / "beside").write_bytes(b"1")
    assert (digest_of(folder), stamp_of(folder)) == before
    assert digest_of(tmp_path / "pipe")
    assert digest_of("/dev/zero")


def test_a_pipe_in_place_of_a_file_between_two_looks_is_no_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat(folder / "a")
    (folder / "a").unlink()
    os.mkfifo(folder / "a")
    monkeypatch.setattr(fingerprint, "_files", lambda root: iter([("a", real)]))
    assert stat.S_ISREG(real.st_mode)
    with pytest.raises(DataFileError, match="model: is not a regular file; looked for a file to read"):
        digest_of(folder)


@pytest.mark.parametrize("name", [b"\xff.bin", b"a\nb", b"\\xff", "é".encode()])
def test_names_of_any_bytes_can_be_read(name: bytes, folder: Path) -> None:
    before = digest_of(folder)
    Path(os.fsdecode(bytes(folder) + b"/" + name)).write_bytes(b"1")
    first = digest_of(folder)
    assert first != before
    Path(os.fsdecode(bytes(folder) + b"/" + name)).write_bytes(b"2")
    assert digest_of(folder) != first
    assert stamp_of(folder)


def test_names_that_print_alike_are_told_apart(folder: Path) -> None:
    Path(os.fsdecode(bytes(folder) + b"/\xff")).touch()
    before = digest_of(folder)
    Path(os.fsdecode(bytes(folder) + b"/\xff")).rename(folder / "\\xff")
    assert digest_of(folder) != before


def test_what_cannot_be_read_is_an_error_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for look in (stamp_of, digest_of):
        with pytest.raises(DataFileError, match=r"^'missing' cannot be looked into \(No such file or directory\); exp"):
            look(tmp_path / "missing")
        with pytest.raises(DataFileError, match="cannot be looked into"):
            look(folder / "a" / "below")
    monkeypatch.setattr(fingerprint, "_MOST_FILES", 2)
    with pytest.raises(DataFileError, match="model holds more than 2 files; expected fewer"):
        stamp_of(folder)

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataFileError, match=r"'model' cannot be looked into \(Permission denied\)"):
        stamp_of(folder)


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened to be hashed."""
    found: list[str] = []
    real = fingerprint.open_regular

    def noted(path: Any, *more: Any, **options: Any) -> Any:
        found.append(os.path.basename(path))
        return real(path, *more, **options)

    monkeypatch.setattr(fingerprint, "open_regular", noted)
    return found


def test_inputs_are_read_once_until_they_change(folder: Path, tmp_path: Path, n_read: list[str]) -> None:
    inputs, known = Inputs(tmp_path / "inputs.json"), digest_of(folder)
    n_read.clear()
    assert inputs.digest(str(folder)) == inputs.digest(str(folder)) == known
    assert Inputs(tmp_path / "inputs.json").digest(str(folder)) == known
    assert sorted(n_read) == ["a", "b"]
    os.utime(folder / "a", (1, 1))
    assert Inputs(tmp_path / "inputs.json").digest(str(folder)) == known
    assert len(n_read) == 4
    (folder / "a").write_bytes(b"another")
    assert inputs.digest(str(folder)) == known  # of the call: all of its jobs have the same
    assert Inputs(tmp_path / "inputs.json").digest(str(folder)) != known
    assert len(n_read) == 6


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b"null", b'{"/x": 1, "/y": ["a"]}', b"\xff"])
def test_digests_that_cannot_be_read_are_computed_anew(left: bytes, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_bytes(left)
    assert Inputs(tmp_path / "inputs.json").digest(str(folder)) == digest_of(folder)


def test_names_and_what_is_not_there_are_their_own_digest(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that happens to have the name of a data set, where the command is run, says nothing about it."""
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "digits")
    inputs = Inputs(tmp_path / "inputs.json")
    assert inputs.digest("digits") == "name:digits"
    assert inputs.digest(str(tmp_path / "missing")) == f"name:{tmp_path / 'missing'}"
    assert not (tmp_path / "inputs.json").exists()


def test_data_that_cannot_be_read_are_the_jobs_to_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "_MOST_FILES", 1)
        assert Inputs(tmp_path / "inputs.json").digest(str(folder)) == f"name:{folder}"
    assert Inputs(tmp_path / "inputs.json").digest(str(folder)) == digest_of(folder)


def test_each_setting_of_a_job_counts(folder: Path, tmp_path: Path) -> None:
    inputs = Inputs(tmp_path / "inputs.json")
    other, policy = tmp_path / "other.npz", tmp_path / "policy.toml"
    other.write_bytes(b"1")
    policy.write_bytes(b"1")

    def of(**settings: Any) -> dict[str, str]:
        return Inputs(tmp_path / "inputs.json").of_job(Job("x", {"model": "/m", "data": "digits", **settings}))

    plain = of()
    assert plain == of(model="/elsewhere")  # whose bytes are looked at apart
    for name in ("data", "holdout", "test", "root", "triggers"):
        changed = of(**{name: str(other)})
        assert changed["data"] != plain["data"]
        assert changed["config"] == plain["config"]
    assert of(holdout=str(other))["data"] != of(test=str(other))["data"]
    for settings in ({"seed": 1}, {"split": "test"}, {"config": {"x": 1}}, {"evidence": False}, {"device": "cpu"}):
        changed = of(**settings)
        assert changed["config"] != plain["config"]
        assert changed["data"] == plain["data"]
    before = of(policy=str(policy))
    os.rename(policy, tmp_path / "moved.toml")
    assert of(policy=str(tmp_path / "moved.toml")) == before
    (tmp_path / "moved.toml").write_bytes(b"22")
    assert of(policy=str(tmp_path / "moved.toml")) != before
    assert inputs.of_job(Job("another id", {"model": "/m", "data": "digits"})) == plain


def test_the_order_of_settings_does_not_count() -> None:
    assert canonical_digest({"a": 1, "b": {"c": 2, "d": 3}}) == canonical_digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert canonical_digest({"a": 1}) != canonical_digest({"a": "1"})
