"""Clean data of a machine: read once, mapped by all, equal to ``seamfast.load``, and gone with the last process."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seamfast
from seamfast import CleanSet
from seamfast.errors import DataFileError, InputError
from seamfast.fleet import clean_data
from seamfast.fleet.clean_data import CleanData
from seamfast.models.folder import Description, ModelDescription, TabularDescription, TextDescription
from tests.gating import text_models

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a fleet is for Linux"),
    pytest.mark.usefixtures("temporary"),
]
IMAGES = ModelDescription("small_cnn", 10, 1, 8, mean=(0.3,), std=(0.4,))
KEY = "0123456789abcdef" * 4


@pytest.fixture
def opened() -> Iterator[Callable[[], CleanData]]:
    """``opened()``: the clean data of one fleet, as one of its workers has them."""
    made: list[CleanData] = []

    def another() -> CleanData:
        made.append(CleanData(KEY))
        return made[-1]

    yield another
    for one in made:
        one.close()


@pytest.fixture
def n_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were read, as they are read."""
    found: list[str] = []

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        def reader(source: str, **how: Any) -> Any:
            found.append(source)
            return read(source, **how)

        return reader

    for name in ("load", "read_texts"):
        monkeypatch.setattr(clean_data, name, counted(getattr(clean_data, name)))
    return found


def assert_equal(found: CleanSet, wanted: CleanSet) -> None:
    assert isinstance(wanted.inputs, torch.Tensor) == isinstance(found.inputs, torch.Tensor)
    if isinstance(wanted.inputs, torch.Tensor):
        pairs = [(found.inputs, wanted.inputs)]
    else:
        assert list(found.inputs) == list(wanted.inputs)
        pairs = [(found.inputs[name], wanted.inputs[name]) for name in wanted.inputs]
    for one, other in (*pairs, (found.labels, wanted.labels)):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert type(found.modality) is type(wanted.modality)
    assert vars(found.modality) == vars(wanted.modality)
    for one in (found, wanted):
        assert one.description["modality"] is one.modality
    assert {**found.description, "modality": None} == {**wanted.description, "modality": None}


def test_images_have_the_normalization_of_the_model(opened: Callable[[], CleanData]) -> None:
    for split in ("train", "test"):
        found, wanted = (
            opened().get("digits", None, split, IMAGES),
            seamfast.load("digits", split=split, mean=(0.3,), std=(0.4,)),
        )
        assert_equal(found, wanted)
        assert torch.equal(found.normalize(found.inputs), wanted.normalize(wanted.inputs))


def test_two_models_with_their_own_normalization_share_the_pixels(
    opened: Callable[[], CleanData], n_loads: list[str]
) -> None:
    data = opened()
    first = data.get("digits", None, "test", IMAGES)
    second = data.get("digits", None, "test", ModelDescription("small_cnn", 10, 1, 8, mean=(0.0,), std=(1.0,)))
    assert (first.mean, second.mean) == ((0.3,), (0.0,))
    assert torch.equal(first.inputs, second.inputs)
    assert n_loads == ["digits"]


@pytest.mark.parametrize("source", ["digits-table", "breast-cancer"])
def test_rows_of_floats(source: str, opened: Callable[[], CleanData]) -> None:
    wanted = seamfast.load(source, split="test")
    assert wanted.sample_shape is not None
    found = opened().get(source, None, "test", TabularDescription("mlp", 10, *wanted.sample_shape))
    assert_equal(found, wanted)


def test_a_csv_of_numbers_is_a_table(opened: Callable[[], CleanData], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,label\n" + "0.5,1.25,0\n-1.5,2,1\n" * 20)
    found = opened().get(str(tmp_path / "rows.csv"), None, None, TabularDescription("mlp", 2, 2))
    assert_equal(found, seamfast.load(tmp_path / "rows.csv"))


def test_texts_are_encoded_by_the_tokenizer_of_the_model(
    opened: Callable[[], CleanData], tmp_path: Path, n_loads: list[str]
) -> None:
    source = str(text_models.write_tsv(tmp_path / "texts.tsv", names=None))
    words = text_models.tokenizer()
    data = opened()
    data.share(source, None, None)
    for length in (16, 6):
        description = TextDescription("text_cnn", 2, words.get_vocab_size(), length, tokenizer=words)
        found = data.get(source, None, None, description)
        wanted = seamfast.load(source, tokenizer=words, max_length=length)
        assert torch.equal(found.labels, wanted.labels)
        assert isinstance(found.inputs, dict)
        assert isinstance(wanted.inputs, dict)
        assert found.inputs.keys() == wanted.inputs.keys()
        for name, value in wanted.inputs.items():
            assert torch.equal(found.inputs[name], value)
    assert n_loads == [source]


@pytest.mark.parametrize(
    ("source", "description", "message"),
    [
        ("digits", ModelDescription("small_cnn", 10, 3, 8), r"the images are \(1, 8, 8\); expected \(3, 8, 8\)"),
        ("digits-table", TabularDescription("mlp", 10, 7), r"the samples are \(64,\); expected \(7,\)"),
        ("texts.tsv", IMAGES, "data are texts; small_cnn takes none"),
        ("texts.tsv", TextDescription("text_cnn", 2, 9, 9), "text_cnn has no tokenizer; expected one, to encode texts"),
    ],
)
def test_data_that_do_not_fit_are_an_error(
    source: str, description: Description, message: str, opened: Callable[[], CleanData], tmp_path: Path
) -> None:
    text_models.write_tsv(tmp_path / "texts.tsv", names=None)
    given = str(tmp_path / source) if "." in source else source
    with pytest.raises(InputError, match=message):
        opened().get(given, None, None, description)


def test_data_that_cannot_be_read_are_an_error_each_time(opened: Callable[[], CleanData], tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4")
    data = opened()
    for _ in range(2):
        with pytest.raises(DataFileError):
            data.share(str(tmp_path / "broken.npz"), None, None)
    images = seamfast.load("digits", split="test")
    np.savez(tmp_path / "broken.npz", images=images.inputs[:, 0].numpy(), labels=images.labels.numpy())
    assert len(data.get(str(tmp_path / "broken.npz"), None, None, IMAGES)) == 359


# Read once, and mapped


def test_two_workers_read_a_set_once(opened: Callable[[], CleanData], n_loads: list[str]) -> None:
    first, second = opened(), opened()
    assert first.folder == second.folder
    first.share("digits", None, "test")
    second.share("digits", None, "test")
    second.get("digits", None, "test", IMAGES)
    assert n_loads == ["digits"]
    second.share("digits", None, "train")
    assert n_loads == ["digits", "digits"]


def test_the_samples_are_mapped_and_count_for_no_limit_on_memory(opened: Callable[[], CleanData]) -> None:
    data = opened()
    found = data.get("digits", None, "test", IMAGES)
    address = found.inputs.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_, path = line.split()
        first, last = (int(end, 16) for end in place.split("-"))
        if first <= address < last:
            assert rights == "r--s"  # Linux counts private pages that can be written to, whether they are or not
            assert Path(path).is_relative_to(data.folder)
            break
    else:
        pytest.fail("the samples lie nowhere")


def test_a_file_that_changed_is_read_anew_by_workers_that_come_later(
    opened: Callable[[], CleanData], tmp_path: Path, n_loads: list[str]
) -> None:
    source, images = str(tmp_path / "clean.npz"), seamfast.load("digits", split="test")

    def write(n: int) -> None:
        np.savez(source, images=images.inputs[:n, 0].numpy(), labels=images.labels[:n].numpy())

    write(359)
    first = opened()
    first.share(source, None, None)
    write(200)
    later = opened()
    assert len(later.get(source, None, None, IMAGES)) == 200
    assert len(first.get(source, None, None, IMAGES)) == 359
    assert len(opened().get(source, None, None, IMAGES)) == 200
    assert n_loads == [source, source]


def test_a_set_that_a_killed_worker_had_begun_is_written_anew(opened: Callable[[], CleanData]) -> None:
    data = opened()
    data.share("digits", None, "test")
    (index,) = data.folder.glob("*/set.json")
    index.unlink()
    for path in index.parent.iterdir():
        path.write_bytes(b"half")
    assert_equal(
        data.get("digits", None, "test", IMAGES), seamfast.load("digits", split="test", mean=(0.3,), std=(0.4,))
    )


def test_one_worker_waits_while_another_reads(opened: Callable[[], CleanData]) -> None:
    data = opened()
    source = "import sys, tempfile; tempfile.tempdir = sys.argv[1]; from seamfast.fleet.clean_data import CleanData"
    source += "; data = CleanData(sys.argv[2]); print(1, flush=True); data.share('digits', None, 'test'); data.close()"
    data.share("digits", None, "test")
    (index,) = data.folder.glob("*/set.json")
    away = index.rename(data.folder / "away")
    (lock,) = data.folder.glob("*.lock")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        command = [sys.executable, "-c", source, tempfile.gettempdir(), KEY]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "1\n"
            time.sleep(0.5)
            assert process.poll() is None
            assert not index.exists()
            written = away.rename(index).stat()
            fcntl.flock(held, fcntl.LOCK_UN)
            assert process.wait(30) == 0
    assert index.stat().st_ino == written.st_ino  # it found the set there, and read nothing
    assert len(data.get("digits", None, "test", IMAGES)) == 359


# The folder


def test_the_folder_is_of_this_user_alone_and_goes_with_the_last(temporary: Path) -> None:
    first, second = CleanData(KEY), CleanData(KEY)
    assert first.folder.parent == temporary
    assert first.folder.stat().st_mode & 0o777 == 0o700
    assert re.fullmatch(rf"seamfast-fleet-{os.getuid()}-[0-9a-f]{{16}}", first.folder.name)
    first.close()
    assert second.folder.is_dir()
    second.share("digits", None, "test")
    second.close()
    assert os.listdir(temporary) == []


@pytest.mark.parametrize("kind", ["open", "file", "link"])
def test_what_is_not_this_users_own_is_refused(kind: str, temporary: Path, tmp_path: Path) -> None:
    place = temporary / f"seamfast-fleet-{os.getuid()}-{KEY[:16]}"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if kind == "open":
        place.mkdir()
        (place / "of another").write_text("")
        place.chmod(0o770)
    elif kind == "file":
        place.write_text("")
    else:
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"is not a folder of this user alone; expected to make one, see TMPDIR"):
        CleanData(KEY)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_folder_of_another_user_is_refused(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = temporary / f"seamfast-fleet-{os.getuid()}-{KEY[:16]}"
    place.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    with pytest.raises(InputError, match="is not a folder of this user alone"):
        CleanData(KEY)


def test_a_lock_that_is_a_link_is_not_followed(temporary: Path, tmp_path: Path) -> None:
    place = temporary / f"seamfast-fleet-{os.getuid()}-{KEY[:16]}"
    place.mkdir(mode=0o700)
    (place / "lock").symlink_to(tmp_path / "made")
    with pytest.raises(OSError):
        CleanData(KEY)
    assert not (tmp_path / "made").exists()


def test_folders_that_killed_workers_left_are_removed_and_those_in_use_are_kept(
    temporary: Path, opened: Callable[[], CleanData]
) -> None:
    source = "import sys, tempfile; tempfile.tempdir = sys.argv[1]; from seamfast.fleet.clean_data import CleanData"
    source += "; data = CleanData(sys.argv[2]); data.share('digits', None, 'test'); print(1, flush=True); input()"
    other = "f" * 64
    command = [sys.executable, "-c", source, str(temporary), other]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        data = opened()
        assert sorted(path.name[-16:] for path in temporary.iterdir()) == [KEY[:16], other[:16]]
        process.kill()
    (foreign,) = (temporary / name for name in [f"seamfast-fleet-{os.getuid() + 1}-{'e' * 16}"])
    foreign.mkdir(mode=0o700)
    (foreign / "lock").write_text("")
    (temporary / f"seamfast-fleet-{os.getuid()}-{'d' * 16}").mkdir(mode=0o700)  # a kill came before its lock
    (temporary / "something").mkdir()
    opened()
    assert sorted(temporary.iterdir()) == sorted([data.folder, foreign, temporary / "something"])


@pytest.mark.parametrize("when", ["os.lstat", "os.open", "fcntl.flock"])
def test_a_folder_that_is_removed_at_the_same_time_is_made_again(
    when: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = temporary / f"seamfast-fleet-{os.getuid()}-{KEY[:16]}"
    call, raced = {"os.lstat": os.lstat, "os.open": os.open, "fcntl.flock": fcntl.flock}[when], []

    def race(*given: Any, **how: Any) -> Any:
        if not raced and place.is_dir():  # another process, which is the last one, removes it meanwhile
            raced.append(given)
            (place / "lock").unlink(missing_ok=True)
            place.rmdir()
        return call(*given, **how)

    monkeypatch.setattr(when, race)
    data = CleanData(KEY)
    assert raced
    assert (place / "lock").exists()
    data.share("digits", None, "test")
    data.close()
    assert os.listdir(temporary) == []
