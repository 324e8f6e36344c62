from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seamfast import CleanSet
from seamfast.data import draw_by_class, split_by_class
from seamfast.data.split import split_before
from seamfast.errors import ConfigError

ORDER = torch.randperm(81, generator=torch.Generator().manual_seed(4))
LABELS = torch.tensor([0] * 50 + [1] * 20 + [3] * 10 + [7])[ORDER]


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    holdout_fraction=st.floats(0.01, 0.99),
    forget_fraction=st.floats(0.001, 1.0),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_parts_of_any_labels(labels: list[int], holdout_fraction: float, forget_fraction: float, seed: int) -> None:
    values = torch.tensor(labels)
    split = split_by_class(values, holdout_fraction=holdout_fraction, forget_fraction=forget_fraction, seed=seed)
    forget, recovery, holdout = (part.tolist() for part in (split.forget, split.recovery, split.holdout))
    for part in (forget, recovery, holdout):
        assert part == sorted(set(part))
    assert sorted(recovery + holdout) == list(range(len(labels)))
    assert set(forget) <= set(recovery)
    for label in set(labels):
        size = labels.count(label)
        held, kept, shown = (sum(labels[i] == label for i in part) for part in (holdout, recovery, forget))
        assert kept >= 1
        assert shown >= 1
        assert abs(shown - forget_fraction * kept) <= 1
        if size == 1:
            assert held == 0
        else:
            assert held >= 1
            assert abs(held - holdout_fraction * size) <= 1


@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=60),
    names=st.lists(st.integers(0, 9), min_size=60, max_size=60),
    seed=st.integers(0, 999),
)
def test_identical_samples_fall_on_one_side(labels: list[int], names: list[int], seed: int) -> None:
    identities = [*zip(labels, names, strict=False)]
    split = split_by_class(
        torch.tensor(labels), holdout_fraction=0.3, forget_fraction=0.5, seed=seed, identities=identities
    )
    recovery, holdout = split.recovery.tolist(), split.holdout.tolist()
    held = [identities[i] for i in holdout]
    assert len(set(held)) == len(held)
    assert not set(held) & {identities[i] for i in recovery}
    assert set(held) | {identities[i] for i in recovery} == set(identities)
    assert recovery == [i for i, name in enumerate(identities) if name not in held]
    assert set(split.forget.tolist()) <= set(recovery)
    for label in set(labels):
        size = len({name for name in identities if name[0] == label})
        n_held = sum(name[0] == label for name in held)
        assert n_held == (0 if size == 1 else min(max(round(0.3 * size), 1), size - 1))


def test_samples_that_all_differ_are_split_as_without_identities() -> None:
    options: dict[str, Any] = {"holdout_fraction": 0.2, "forget_fraction": 0.25, "seed": 5}
    one, other = split_by_class(LABELS, **options), split_by_class(LABELS, identities=range(81), **options)
    assert [part.tolist() for part in (one.forget, one.recovery, one.holdout)] == [
        part.tolist() for part in (other.forget, other.recovery, other.holdout)
    ]


def test_the_last_samples_can_be_held_out() -> None:
    split = split_before(LABELS, 11, forget_fraction=0.25, seed=0)
    assert split.holdout.tolist() == list(range(70, 81))
    assert split.recovery.tolist() == list(range(70))
    counts = torch.bincount(LABELS[:70], minlength=8)
    wanted = [max(round(0.25 * n), 1) if n else 0 for n in counts.tolist()]
    assert torch.bincount(LABELS[split.forget], minlength=8).tolist() == wanted
    with pytest.raises(ConfigError, match=r"^forget_fraction is 2; expected a number in \(0, 1\]$"):
        split_before(LABELS, 11, forget_fraction=2, seed=0)


def test_every_class_gives_its_share() -> None:
    split = split_by_class(LABELS, holdout_fraction=0.2, forget_fraction=0.25, seed=0)
    parts = (split.holdout, split.recovery, split.forget)
    counts = [torch.bincount(LABELS[part], minlength=8).tolist() for part in parts]
    assert counts == [[10, 4, 0, 2, 0, 0, 0, 0], [40, 16, 0, 8, 0, 0, 0, 1], [10, 4, 0, 2, 0, 0, 0, 1]]
    assert {part.dtype for part in parts} == {torch.int64}


def test_the_whole_recovery_part_may_be_shown() -> None:
    split = split_by_class(LABELS, holdout_fraction=0.2, forget_fraction=1, seed=0)
    assert torch.equal(split.forget, split.recovery)


def test_seeds() -> None:
    def parts(seed: int) -> list[list[int]]:
        split = split_by_class(LABELS, holdout_fraction=0.3, forget_fraction=0.5, seed=seed)
        return [split.forget.tolist(), split.recovery.tolist(), split.holdout.tolist()]

    assert parts(5) == parts(5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert parts(5) == parts(5)
    assert torch.equal(torch.get_rng_state(), state)  # draws from a generator of its own
    assert len({tuple(parts(seed)[2]) for seed in range(20)}) == 20


def test_every_sample_is_held_out_by_some_seed() -> None:
    """Not the first ones of each class: the draw reaches all but the single sample."""
    held = {
        i
        for seed in range(60)
        for i in split_by_class(LABELS, holdout_fraction=0.2, forget_fraction=1, seed=seed).holdout.tolist()
    }
    assert held == set(range(81)) - {int((LABELS == 7).nonzero())}


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan")])
def test_holdout_fractions_out_of_range(value: float) -> None:
    message = f"holdout_fraction is {value}; expected a number in (0, 1)"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        split_by_class(LABELS, holdout_fraction=value, forget_fraction=1, seed=0)


@pytest.mark.parametrize("value", [0, -0.1, 1.5, float("nan")])
def test_forget_fractions_out_of_range(value: float) -> None:
    message = f"forget_fraction is {value}; expected a number in (0, 1]"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        split_by_class(LABELS, holdout_fraction=0.2, forget_fraction=value, seed=0)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 1])
def test_a_draw_takes_its_share_of_every_class(fraction: float) -> None:
    drawn = draw_by_class(LABELS, fraction, seed=3)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    sizes, got = torch.bincount(LABELS, minlength=8).tolist(), torch.bincount(LABELS[drawn], minlength=8).tolist()
    assert got == [max(round(fraction * n), 1) if n else 0 for n in sizes]
    assert torch.equal(drawn, draw_by_class(LABELS, fraction, seed=3))
    if fraction < 1:
        assert len({tuple(draw_by_class(LABELS, fraction, seed=seed).tolist()) for seed in range(9)}) > 1


@pytest.mark.parametrize("value", [0, -0.1, 1.5, float("nan")])
def test_shares_to_draw_out_of_range(value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(f'fraction is {value}; expected a number in (0, 1]')}$"):
        draw_by_class(LABELS, value, seed=0)


def test_a_set_draws_a_clean_budget_of_its_own() -> None:
    data = CleanSet(torch.arange(81.0)[:, None], LABELS, num_classes=9)
    part = data.draw(0.2, seed=3)
    wanted = draw_by_class(LABELS, 0.2, seed=3)
    assert isinstance(part.inputs, torch.Tensor)
    assert part.inputs[:, 0].tolist() == wanted.tolist()
    assert torch.equal(part.labels, LABELS[wanted])
    assert part.num_classes == 9
