"""What the tests of whole runs share: a model with a backdoor, policies that take seconds, and one run that passed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import seamfast
from seamfast import attacks
from seamfast.attacks import TrainConfig
from seamfast.gating import pipeline
from seamfast.gating.pipeline import GateResult, gate
from seamfast.models.folder import ModelDescription, save_model
from seamfast.sanitize import SanitizeResult
from seamfast.triggers import Patch

DESCRIPTION = ModelDescription("small_cnn", 10, 1, 8)
TRIGGER = Patch.square(size=3, target=0)
POLICY = """
version = 1
name = "test"
[sanitize]
preset = "fast"
[audit]
inversion = {inversion}
inversion_steps = 10
[[rule]]
id = "accuracy"
metric = "after.clean_accuracy"
threshold = {accuracy}
greater_is_better = true
min_samples = {least}
[[rule]]
id = "sanitized"
metric = "sanitize.accepted"
threshold = true
greater_is_better = true
"""


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; its backdoor is a white patch."""
    data = seamfast.load("digits", split="train")
    torch.manual_seed(0)
    model = DESCRIPTION.build()
    attacks.train(model, attacks.poison(data, TRIGGER, 0.05), TrainConfig(epochs=12, batch_size=64), precision="fp32")
    folder = tmp_path_factory.mktemp("planted")
    save_model(folder, model, DESCRIPTION)
    return folder


def policy_in(
    folder: Path, *, accuracy: float = 0.8, least: int = 100, inversion: bool = False, name: str = "gate.toml"
) -> Path:
    """The file of a policy that takes seconds."""
    path = folder / name
    path.write_text(POLICY.format(accuracy=accuracy, least=least, inversion=str(inversion).lower()))
    return path


@pytest.fixture
def policy(tmp_path: Path) -> Callable[..., Path]:
    """``policy_in`` of the test's own folder."""
    return partial(policy_in, tmp_path)


@pytest.fixture(scope="session")
def passed(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[GateResult, Path]:
    """The result of a run that passed, and the folder with its ``gate.toml`` and ``out``."""
    folder = tmp_path_factory.mktemp("passed")
    return gate(planted, "digits", policy=policy_in(folder), out=folder / "out", progress=False), folder


@pytest.fixture(scope="session")
def _first() -> list[SanitizeResult]:
    return []


@pytest.fixture
def sanitized_once(_first: list[SanitizeResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on ``planted`` take the result of the first sanitization, for tests of what comes before or after it."""
    sanitize = pipeline.sanitize

    def once(*given: Any, **options: Any) -> SanitizeResult:
        if not _first:
            _first.append(sanitize(*given, **options))
        return _first[0]

    monkeypatch.setattr(pipeline, "sanitize", once)


@pytest.fixture
def own_sigint() -> Iterator[None]:
    """Python's handler, also where SIGINT is ignored, as under nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
