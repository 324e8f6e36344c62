"""Two runs of the gate give one report, byte for byte but for times, also under load; and nothing is timed."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seamfast.engine import compute
from seamfast.gating import audit, pipeline
from seamfast.gating.pipeline import gate
from seamfast.gating.policy import AuditSettings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "gate-report.md").read_text(encoding="utf-8")
MAY_DIFFER = [
    ("created",),
    ("seconds",),
    ("peak_memory_bytes",),
    ("sanitize", "created"),
    ("sanitize", "run", "seconds"),
    ("sanitize", "history", "*", "seconds"),
]


def without_times(document: Any, path: tuple[str, ...] = ()) -> Any:
    if path in MAY_DIFFER:
        return "..."
    if isinstance(document, dict):
        return {key: without_times(value, (*path, key)) for key, value in document.items()}
    return [without_times(value, (*path, "*")) for value in document] if isinstance(document, list) else document


@pytest.fixture
def load() -> Iterator[None]:
    """A busy thread of this process, and a busy process for each processor."""
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin)
    spinning = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(spinning) for _ in range(os.cpu_count() or 1)]
    thread.start()
    yield
    done.set()
    thread.join()
    for process in processes:
        process.kill()
        process.wait()


def ran(planted: Path, policy: Callable[..., Path], out: Path) -> dict[str, Any]:
    return gate(planted, "digits", policy=policy(inversion=True), out=out, progress=False).report


@pytest.mark.slow
def test_two_runs_give_one_report_one_of_them_under_load(
    planted: Path, policy: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = ran(planted, policy, tmp_path / "first")
    request.getfixturevalue("load")
    second = ran(planted, policy, tmp_path / "second")
    assert first["verdict"]["outcome"] == "pass"
    assert json.dumps(without_times(first)) == json.dumps(without_times(second))
    assert first["created"]
    for name in ("model.safetensors", "model.json"):
        files = [tmp_path / which / "sanitized" / name for which in ("first", "second")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.gpu
def test_two_runs_on_a_gpu_give_one_report(planted: Path, policy: Callable[..., Path]) -> None:
    first, second = (gate(planted, "digits", policy=policy(), device="cuda", progress=False).report for _ in range(2))
    assert first["verdict"]["outcome"] == "pass"
    assert json.dumps(without_times(first)) == json.dumps(without_times(second))


def test_nothing_is_chosen_by_timing(
    planted: Path, policy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: object, **__: object) -> None:
        raise AssertionError("something was timed to choose by")

    for name in ("step_seconds", "choose_threads"):
        monkeypatch.setattr(compute, name, timed)
    run = ran(planted, policy, tmp_path / "out")["sanitize"]["run"]
    assert (run["precision"]["chosen"], run["precision"]["trials"]) == ("fp32", [])
    assert run["threads"]["reason"] == "as many as PyTorch has"
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_inversion_that_ran_out_of_time_gives_no_number(
    planted: Path, policy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = policy(inversion=True)
    index = (
        '[[rule]]\nid = "index"\nmetric = "after.inversion_anomaly_index"\nthreshold = 99\ngreater_is_better = false\n'
    )
    rules.write_text(rules.read_text().replace("inversion_steps = 10", "inversion_time_budget_s = 1e-6") + index)
    result = gate(planted, "digits", policy=rules, progress=False)
    assert (result.outcome, result.exit_code) == ("inconclusive", 3)
    assert "index: after.inversion_anomaly_index was not measured" in result.report["verdict"]["reasons"]
    nothing = {"anomaly_index": None, "suspect": None, "threshold": 2.0, "steps": 0, "classes": [], "complete": False}
    assert result.report["audit"]["after"]["inversion"] == nothing
    statement = (
        "sanitized model: trigger inversion was cut short, by its time budget or by gradients of NaN, and says nothing"
    )
    assert statement in result.report["statements"]


def test_an_inversion_takes_the_steps_of_the_policy(
    planted: Path, policy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "sanitize", None)
    seen = []
    real = audit.invert_triggers
    monkeypatch.setattr(audit, "invert_triggers", lambda *a, **k: seen.append(k) or real(*a, **k))
    report = gate(planted, "digits", policy=policy(inversion=True), progress=False).report
    inversion = report["audit"]["before"]["inversion"]
    assert (inversion["steps"], inversion["complete"], len(inversion["classes"])) == (10, True, 10)
    assert [(call["steps"], call["time_budget_s"]) for call in seen] == [(10, None)]


def test_the_document_names_what_may_differ() -> None:
    (listed,) = re.findall(r"^Two runs .*?:\n((?:- .*\n)+)", DOCUMENT, re.MULTILINE)
    assert [tuple(key.split(".")) for key in re.findall(r"`([^`]+)`", listed)] == MAY_DIFFER
    assert without_times(copy.deepcopy({"created": 1, "sanitize": {"history": [{"seconds": 1, "step": 2}]}})) == {
        "created": "...",
        "sanitize": {"history": [{"seconds": "...", "step": 2}]},
    }


@pytest.mark.parametrize(("num_classes", "steps"), [(2, 300), (10, 300), (20, 150), (43, 69), (1000, 60)])
def test_an_inversion_of_many_classes_takes_fewer_steps_for_each(num_classes: int, steps: int) -> None:
    assert AuditSettings().steps_for(num_classes) == steps
    assert AuditSettings(inversion_steps=7).steps_for(num_classes) == 7
