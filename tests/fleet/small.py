"""Small models for fleets, jobs that take a fraction of a second or hours, and what a fleet leaves."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import seamfast
from seamfast import attacks
from seamfast.attacks import TrainConfig
from seamfast.fleet.store import JOBS, STAGING, read_job, rows
from seamfast.models.folder import ModelDescription, TabularDescription, TextDescription, save_model
from seamfast.triggers import Patch, save_triggers
from tests.gating import text_models

SHORT = {"forget_max_steps": 10, "recover_max_steps": 10, "recover_easy_steps": 5}
"""Settings of ``seam`` for a job of less than half a second."""
LONG = {**SHORT, "recover_max_steps": 10**7, "recover_easy_steps": 10**7}
"""And for one that does not end in the course of a test."""
TRIGGER = Patch.square(size=3, target=0)
VARIES = ("seconds", "peak_memory_bytes", "attempts", "model")
"""What of a row does not depend on the job alone."""


def write_images(folder: Path, n: int) -> Path:
    """``n`` models of digits with a backdoor, ``m0``, ``m1``, ..., and the trigger in ``triggers.npz`` beside them."""
    data = seamfast.load("digits")
    poisoned = attacks.poison(data, TRIGGER, 0.05)
    for number in range(n):
        torch.manual_seed(number)
        description = ModelDescription.of("small_cnn", data)
        model = description.build()
        attacks.train(model, poisoned, TrainConfig(epochs=8, batch_size=64), seed=number, precision="fp32")
        save_model(folder / f"m{number}", model, description)
    save_triggers(folder.parent / "triggers.npz", [TRIGGER])
    return folder


def write_table(folder: Path) -> Path:
    """A model of rows of six numbers, and the rows in ``rows.csv`` beside it."""
    values = np.random.default_rng(0).normal(size=(400, 6))
    lines = (",".join([*(f"{value:.4f}" for value in row), f"{int(row[0] + row[1] > 0)}\n"]) for row in values)
    table = folder.with_name("rows.csv")
    table.write_text("a,b,c,d,e,f,label\n" + "".join(lines), encoding="utf-8")
    data = seamfast.load(table)
    description = TabularDescription("mlp", num_classes=2, n_columns=6)
    model = description.build()
    attacks.train(model, data, TrainConfig(epochs=20, batch_size=64), seed=0, precision="fp32")
    save_model(folder, model, description)
    return folder


def write_text(folder: Path) -> Path:
    """A model of texts with its tokenizer, and the texts in ``texts.tsv`` beside it."""
    table = text_models.write_tsv(folder.with_name("texts.tsv"), names=None)
    data = seamfast.load(table, tokenizer=(words := text_models.tokenizer()), max_length=16)
    description = TextDescription("text_cnn", 2, words.get_vocab_size(), max_length=16, tokenizer=words)
    model = description.build()
    attacks.train(model, data, TrainConfig(epochs=6, batch_size=32), seed=0, precision="fp32")
    save_model(folder, model, description)
    return folder


def write_jobs(path: Path, jobs: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    return path


def lasting(row: dict[str, Any]) -> dict[str, Any]:
    """``row`` without what ``VARIES``."""
    return {name: value for name, value in row.items() if name not in VARIES}


def results(out: Path) -> dict[str, tuple[dict[str, Any], bytes | None]]:
    """By id: the ``lasting`` row, and the bytes of the sanitized model."""
    found = {}
    for row in rows(out):
        weights = out / JOBS / row["id"] / "model.safetensors"
        found[row["id"]] = lasting(row), weights.read_bytes() if weights.exists() else None
    return found


def half_written(out: Path) -> list[str]:
    """The folders of jobs that are not whole."""
    broken = []
    for folder in (out / JOBS).iterdir():
        document = read_job(folder)
        if document is None:
            broken.append(folder.name)
            continue
        row = document["row"]
        wanted = [] if row["report"] is None else [out / row["report"]]
        if row["outcome"] == "accepted":
            wanted += [folder / "model.safetensors", folder / "model.json"]
        if not all(path.is_file() for path in wanted):
            broken.append(folder.name)
    return broken


def staged(out: Path) -> list[str]:
    """What lies in the staging folder but for the locks of calls."""
    return [name for name in os.listdir(out / STAGING) if not name.startswith("lock")]


def events(out: Path, *kinds: str) -> list[dict[str, Any]]:
    """The events of some kinds in the manifests."""
    found: list[dict[str, Any]] = []
    for manifest in sorted(out.glob("manifest*.jsonl")):
        for line in manifest.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a kill can tear one
                found.append(json.loads(line))
    return [event for event in found if event["event"] in kinds]


# Processes, found by the fleet's folder in the command of a worker, which its children have too.


def processes(out: Path) -> dict[int, int]:
    """The workers of the fleet in ``out`` and their children that run: the number of each, and its parent's."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended
            command = Path("/proc", entry, "cmdline").read_bytes()
            state, parent = Path("/proc", entry, "stat").read_text(encoding="ascii").rpartition(")")[2].split()[:2]
            if b"seamfast.fleet.nursery" in command and str(out).encode() in command and state not in "ZX":
                found[int(entry)] = int(parent)
    return found


def workers(out: Path) -> list[int]:
    """The numbers of the worker processes."""
    known = processes(out)
    return [pid for pid, parent in known.items() if parent not in known]


def children(out: Path) -> list[int]:
    """The numbers of the processes of jobs."""
    known = processes(out)
    return [pid for pid, parent in known.items() if parent in known]


def awaited(found: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The first value of ``found()`` that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.005)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def gone(out: Path, seconds: float = 10.0) -> None:
    """Wait until no process of the fleet is left."""
    awaited(lambda: not processes(out), f"the end of all processes; there are {processes(out)}", seconds)


@contextlib.contextmanager
def none_left(out: Path) -> Iterator[None]:
    """Whatever happens, no process of the fleet outlives this."""
    try:
        yield
    finally:
        for pid in processes(out):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
