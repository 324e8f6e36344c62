from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reader_files import allocating_at_most, image_bytes, write_zip
from refusals import refused
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import seamfast
from seamfast import CleanSet, FineTuneConfig
from seamfast.data.readers import _store, read_image_folder, read_image_zip
from seamfast.data.readers._store import check_memory_budget, pixel_store
from seamfast.errors import DataFileError, InputError
from seamfast.triggers import Patch

MIB = 1 << 20
N, SHAPE = 70, (3, 8, 8)
N_BYTES = N * 3 * 8 * 8
Read = Callable[..., CleanSet]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """More than a thread takes at a time, in four classes."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    return {f"c{k % 4}/{k:03}.png": image_bytes(image) for k, image in enumerate(images)}


@pytest.fixture(params=["folder", "zip"])
def read(request: pytest.FixtureRequest, tmp_path: Path, files: dict[str, bytes]) -> Read:
    """One of the two readers, on the same images."""
    if request.param == "zip":
        path = write_zip(tmp_path / "images.zip", files)
        return lambda **options: read_image_zip(path, **options)
    for name, data in files.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    return lambda **options: read_image_folder(tmp_path / "images", **options)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)  # what was found out before
    return place


def mapped_files() -> list[tuple[int, int, str]]:
    """Start, end and file of the mappings of this process."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    ends = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    return [(*end, line[5]) for end, line in zip(ends, lines, strict=True) if len(line) == 6]


def file_behind(pixels: Tensor) -> str:
    return next((name for start, end, name in mapped_files() if start <= pixels.data_ptr() < end and "/" in name), "")


def is_mapped_from(pixels: Tensor, folder: Path) -> bool:
    return file_behind(pixels).startswith(f"{folder}/") and file_behind(pixels).endswith(" (deleted)")


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"size": (5, 9), "channels": 1}])
def test_mapped_pixels_are_those_in_memory(read: Read, folder: Path, threads: int, options: dict[str, Any]) -> None:
    inside = read(**options, threads=1)
    outside = read(**options, threads=threads, memory_budget=0)
    assert is_mapped_from(outside.inputs, folder)
    assert torch.equal(inside.inputs, outside.inputs)
    assert torch.equal(inside.labels, outside.labels)
    assert inside.class_names == outside.class_names


def test_the_budget_is_what_may_lie_in_memory(read: Read, folder: Path) -> None:
    assert file_behind(read(memory_budget=N_BYTES).inputs) == ""
    assert is_mapped_from(read(memory_budget=N_BYTES - 1).inputs, folder)
    assert file_behind(read().inputs) == ""


def test_pixels_are_decoded_into_the_mapping_itself(folder: Path, tmp_path: Path) -> None:
    """Nothing of the size of the set is allocated on the way."""
    picture = image_bytes(np.zeros((256, 256, 3), np.uint8))
    path = write_zip(tmp_path / "large.zip", {f"a/{k:03}.png": picture for k in range(100)})
    with allocating_at_most(4 * MIB):
        data = read_image_zip(path, memory_budget=0, threads=2)
    assert data.inputs.numel() == 100 * 3 * 256 * 256


def test_the_file_has_no_name_and_goes_with_the_pixels(read: Read, folder: Path) -> None:
    data = read(memory_budget=0)
    assert os.listdir(folder) == []
    row = data.inputs[-1]
    wanted = row.clone()
    del data
    gc.collect()
    assert is_mapped_from(row, folder)  # a view is enough to keep it
    assert torch.equal(row, wanted)
    del row
    gc.collect()
    assert [name for _, _, name in mapped_files() if str(folder) in name] == []
    assert [link for link in open_files() if str(folder) in link] == []


def open_files() -> list[str]:
    return [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]


def test_nothing_stays_where_decoding_fails(folder: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    path = write_zip(tmp_path / "bad.zip", files | {"c3/zzz.png": b"bad"})
    refused(DataFileError, r"c3/zzz\.png: is not a JPEG or PNG image", read_image_zip, path, memory_budget=0)
    gc.collect()
    assert os.listdir(folder) == []
    assert [name for _, _, name in mapped_files() if str(folder) in name] == []


KILLED = """
import os, signal
from seamfast.data.readers._store import pixel_store
pixels = pixel_store((1000, 1000), 0, "images")
pixels[:] = 1
print(open("/proc/self/maps").read().count(os.environ["TMPDIR"]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_stays_where_the_process_is_killed(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1\n"), done.stderr
    assert os.listdir(folder) == []


def test_a_mapped_set_does_all_that_another_does(read: Read, tiny_model: Callable[[], nn.Module]) -> None:
    inside, outside = (read(channels=1, mean=0.4, std=0.25, memory_budget=budget) for budget in (None, 0))
    trigger = Patch.square(size=2, target=0)
    model = tiny_model()

    def outcomes(data: CleanSet) -> list[Any]:
        loader = DataLoader(TensorDataset(data.inputs, data.labels), batch_size=16)
        poisoned = seamfast.attacks.poison(data, trigger, rate=0.2)
        return [
            seamfast.evaluate(model, data, triggers=[trigger]),
            seamfast.evaluate(model, poisoned),
            data.draw(0.5).inputs.tolist(),
            torch.cat([images for images, _ in loader]).tolist(),
        ]

    assert outcomes(inside) == outcomes(outside)
    config = FineTuneConfig(max_steps=5, batch_size=16, crop_pad=1, flip=True)
    cured = [seamfast.sanitize(model, data, method="fine_tune", config=config) for data in (inside, outside)]
    weights = [result.model.state_dict() for result in cured]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_load_takes_the_budget(tmp_path: Path, folder: Path, files: dict[str, bytes]) -> None:
    path = write_zip(tmp_path / "images.zip", files)
    assert is_mapped_from(seamfast.load(path, memory_budget=0).inputs, folder)


# Where there is no room.


def test_a_disk_too_small_is_found_before_decoding(read: Read, folder: Path) -> None:
    message = (
        r"images(\.zip)?: would take 210,000,000,000,000 bytes, more than memory_budget=9, so a file in the "
        r"temporary folder, "
        r"which has [\d,]+ bytes free \(No space left on device\); name another in TMPDIR$"
    )
    with allocating_at_most(4 * MIB):
        refused(DataFileError, message, read, size=(10**6, 10**6), max_bytes=10**15, memory_budget=9)
    assert os.listdir(folder) == []


def test_a_file_that_may_not_be_so_large_is_no_signal(folder: Path) -> None:
    """All of it is allocated at once: later, a write to a page without a block would end the process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        with pytest.raises(
            DataFileError, match=r"^images: would take 1,048,577 bytes, .* \(File too large\); name another in"
        ):
            pixel_store((MIB + 1,), 0, "images")
        pixel_store((MIB,), 0, "images")[:] = 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(folder) == []


def test_blocks_are_there_before_they_are_written(folder: Path) -> None:
    pixels = pixel_store((8 * MIB,), 0, "images")
    (name,) = {link for link in open_files() if link.startswith(f"{folder}/")}
    (number,) = [
        link for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link) and os.readlink(link) == name
    ]
    assert os.stat(number).st_blocks * 512 >= 8 * MIB
    assert pixels.flags.writeable


def test_without_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    message = (
        r"^images: would take 8 bytes, more than memory_budget=0, so a file in a temporary folder "
        r"\(No such file or directory\); "
    )
    refused(DataFileError, message + "name one in TMPDIR$", pixel_store, (8,), 0, "images")


# The budget.


@pytest.mark.parametrize("budget", [-1, 1.5, True, "8"])
def test_bad_budgets(read: Read, budget: Any) -> None:
    message = f"memory_budget is {budget!r}; expected None or an integer of at least 0, in bytes"
    refused(InputError, message, read, memory_budget=budget)


def test_default_budget_is_half_of_the_memory_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limits, wanted in (([], machine // 2), ([machine * 9], machine // 2), ([7000, 9000], 3500)):
        monkeypatch.setattr(_store, "_control_group_limits", lambda limits=limits: limits)
        assert check_memory_budget(None) == wanted
        assert check_memory_budget(12) == 12


@pytest.mark.parametrize(
    ("own", "limits", "wanted"),
    [
        ("0::/user/job\n", {"user/job/memory.max": "900", "user/memory.max": "800", "memory.max": "max"}, [900, 800]),
        ("0::/\n", {"memory.max": "700"}, [700]),  # in a container
        (
            "4:cpu:/a\n3:cpuset,memory:/a\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "600", "cpu/a/memory.max": "1"},
            [600],
        ),
        ("3:memory:/out/of/sight\n", {"memory/memory.limit_in_bytes": "500"}, [500]),
        ("0::/../other\n", {"memory.max": "400"}, [400]),
        ("0::/\n", {}, []),
        ("", {}, []),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, own: str, limits: dict[str, str], wanted: list[int]) -> None:
    root = tmp_path / "sys" / "root"
    for name, text in limits.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    (tmp_path / "memory.max").write_text("1\n")  # above the root, where nothing is looked for
    (tmp_path / "own").write_text(own)
    assert _store._control_group_limits(tmp_path / "own", root) == wanted


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert _store._control_group_limits(tmp_path / "absent", tmp_path) == []
