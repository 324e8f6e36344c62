"""What a run draws is keyed by purpose and attempt, and what it counts shifts no draw; how many samples it may lose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seamfast import CleanSet, SeamConfig
from seamfast.data import split_by_class
from seamfast.data.resident import Resident
from seamfast.engine.events import Announcer
from seamfast.engine.model import WorkingCopy
from seamfast.engine.run import Clock, Run, n_lost_allowed

CPU = torch.device("cpu")


class Drawing(nn.Module):
    """Draws in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)) + torch.rand(4)  # type: ignore[no-any-return]


@pytest.fixture
def begin(tiny_data: CleanSet) -> Callable[[int], Run]:
    """``begin(seed)``: a run that has begun its first attempt."""

    def made(seed: int) -> Run:
        copied = WorkingCopy(Drawing(), CPU)
        run = Run(
            copied,
            Resident(tiny_data, CPU),
            split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=seed),
            num_classes=4,
            seed=seed,
            clock=Clock(None),
            announcer=Announcer([], SeamConfig(), copied.model, False),
            accuracy_budget=0.03,
        )
        run.restart()
        return run

    return made


def test_each_purpose_and_each_attempt_draws_numbers_of_its_own(begin: Callable[[int], Run]) -> None:
    streams = []
    for seed in (0, 7):
        run = begin(seed)
        for _ in range(2):
            streams += [run.stream_seed("forget"), run.stream_seed("recover")]
            run.restart()
    assert len(set(streams)) == len(streams)
    assert all(0 <= stream < 2**63 for stream in streams)


def test_counting_shifts_no_draw_of_a_model_that_draws_in_eval_mode(begin: Callable[[int], Run]) -> None:
    run = begin(7)
    before = torch.get_rng_state()
    counts = run.count()
    assert torch.equal(torch.get_rng_state(), before)
    assert run.count() == counts


@pytest.mark.parametrize(
    ("n", "budget", "expected"),
    [(100, 0.03, 3), (99, 0.03, 2), (100, 0.0, 0), (10, 0.03, 1), (100, 0.29, 29), (5, 1.0, 5)],
)
def test_the_samples_that_may_be_lost(n: int, budget: float, expected: int) -> None:
    """The budget's share, rounded down, but one where that is none and the budget is not 0."""
    assert n_lost_allowed(n, budget) == expected
