"""Free memory: where it is read, and how its lack is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from refusals import raises

from seamfast.engine import memory
from seamfast.errors import InputError

CPU = torch.device("cpu")


def test_free_memory_of_a_cpu_is_what_linux_calls_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "_OF_SYSTEM", table)
    assert memory.free_bytes(CPU) is None
    table.write_text("MemTotal:  8000 kB\nMemFree:  1000 kB\nMemAvailable:    3000 kB\n", encoding="ascii")
    assert memory.free_bytes(CPU) == 3000 * 1024
    table.write_text("MemTotal:  8000 kB\n", encoding="ascii")
    assert memory.free_bytes(CPU) is None


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="the system has no /proc/meminfo")
def test_this_machine_has_some_memory() -> None:
    free = memory.free_bytes(CPU)
    assert free is not None
    assert free > 1 << 20


def test_free_memory_of_cuda_is_what_the_device_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index, 10**9))
    assert memory.free_bytes(torch.device("cuda:3")) == 3
    assert memory.free_bytes(torch.device("meta")) is None


@pytest.mark.parametrize(
    ("needed", "free", "said"),
    [
        (80 * 10**9, 3_210_000_000, "80.00 GB, and cpu has 3.21 GB free"),
        (2_500_000, 999, "2.50 MB, and cpu has 999 bytes free"),
        (1500, 0, "1.50 kB, and cpu has 0 bytes free"),
    ],
)
def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, needed: int, free: int, said: str) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    with raises(InputError, f"the kernel needs {said}; expected fewer samples"):
        memory.check_memory("the kernel", needed, CPU, "fewer samples")
    memory.check_memory("the kernel", free, CPU, "fewer samples")
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    memory.check_memory("the kernel", needed, CPU, "fewer samples")
