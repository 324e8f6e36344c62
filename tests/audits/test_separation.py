"""``separation``: the figures by hand and by scikit-learn, ties, bounds, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from seamfast.audits.separation import Estimate, separation
from seamfast.errors import DTypeError, InputError


def drawn(n: int, shift: float = 0.0, *, seed: int, decimals: int | None = None) -> Tensor:
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    return values if decimals is None else values.round(decimals=decimals)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_auc_counts_pairs_and_half_of_the_ties() -> None:
    # Of six pairs, five are in order and (2, 2) is a tie.
    assert separation(vector(2, 3, 4), vector(1, 2)).auc.value == pytest.approx(5.5 / 6)
    assert separation(vector(1, 1, 1), vector(1, 1)).auc.value == 0.5
    assert separation(vector(0, 0), vector(1, 2)).auc.value == 0


def test_equal_sets_are_at_chance() -> None:
    scores = drawn(2000, seed=0)
    found = separation(scores, scores)
    assert found.auc.value == pytest.approx(0.5, abs=1e-12)
    assert found.auc.low < 0.5 < found.auc.high
    assert found.balanced_accuracy.value == pytest.approx(0.5, abs=0.02)
    assert found.tpr_at_1_percent is not None
    assert found.tpr_at_1_percent.value == 0.01


@pytest.mark.parametrize("decimals", [None, 1])
def test_auc_and_tpr_are_those_of_scikit_learn(decimals: int | None) -> None:
    members, outsiders = drawn(700, 0.7, seed=1, decimals=decimals), drawn(1300, seed=2, decimals=decimals)
    found = separation(members, outsiders, n_boot=20)
    labels, scores = torch.cat([torch.ones(700), torch.zeros(1300)]).numpy(), torch.cat([members, outsiders]).numpy()
    assert found.auc.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert found.tpr_at_1_percent is not None
    assert found.tpr_at_1_percent.value == pytest.approx(tpr[fpr <= 0.01].max(), abs=1e-12)
    assert found.tpr_at_0_1_percent is not None
    assert found.tpr_at_0_1_percent.value == pytest.approx(tpr[fpr <= 0.001].max(), abs=1e-12)


def test_separate_sets_are_told_apart_without_fail() -> None:
    found = separation(drawn(300, 100, seed=1), drawn(1000, seed=2))
    assert found.auc == Estimate(1, 1, 1)
    assert found.balanced_accuracy.value > 0.99
    assert found.tpr_at_1_percent == Estimate(1, 1, 1)
    assert found.tpr_at_0_1_percent == Estimate(1, 1, 1)


@pytest.mark.parametrize(("n", "one", "tenth"), [(99, False, False), (100, True, False), (999, True, False)])
def test_no_tpr_where_the_outsiders_cannot_resolve_the_fpr(n: int, one: bool, tenth: bool) -> None:
    found = separation(drawn(50, 1, seed=1), drawn(n, seed=2), n_boot=5)
    assert (found.tpr_at_1_percent is not None, found.tpr_at_0_1_percent is not None) == (one, tenth)
    assert (found.to_dict()["tpr_at_1_percent"] is not None) == one
    assert found.to_dict()["tpr_at_0_1_percent"] is None


def test_one_false_positive_of_a_hundred_is_one_percent() -> None:
    # The highest outsider scores above all members but one; the second above half of them.
    outsiders = torch.cat([torch.zeros(98, dtype=torch.float64), vector(5.5, 8.5)])
    found = separation(torch.arange(10, dtype=torch.float64), outsiders)
    assert found.tpr_at_1_percent is not None
    assert found.tpr_at_1_percent.value == pytest.approx(0.4)


def test_the_threshold_is_not_measured_where_it_was_chosen() -> None:
    # On noise, the best threshold looks better than chance; measured on other samples it is not, on average.
    chosen = [separation(drawn(30, seed=2 * s), drawn(30, seed=2 * s + 1), n_boot=1) for s in range(400)]
    mean = sum(found.balanced_accuracy.value for found in chosen) / 400
    assert mean == pytest.approx(0.5, abs=0.012)  # a standard error is 0.003; chosen where measured: 0.59


def test_bounds_cover_the_true_auc_as_often_as_they_say() -> None:
    # Normal scores a distance d apart have an AUC of Phi(d / sqrt(2)).
    true = float(torch.special.ndtr(vector(0.7 / 2**0.5))[0])
    found = [separation(drawn(80, 0.7, seed=s), drawn(120, seed=10_000 + s), n_boot=200).auc for s in range(200)]
    n_covered = sum(bounds.low <= true <= bounds.high for bounds in found)
    assert 180 <= n_covered <= 199
    narrow = separation(drawn(80, 0.7, seed=0), drawn(120, seed=1), level=0.5).auc
    wide = separation(drawn(80, 0.7, seed=0), drawn(120, seed=1)).auc
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_one_seed_gives_one_result() -> None:
    members, outsiders = drawn(50, 0.3, seed=1), drawn(60, seed=2)
    first, second, third = (separation(members, outsiders, seed=s) for s in (4, 4, 5))
    assert first.to_dict() == second.to_dict()
    assert torch.equal(first.replicates[:2], second.replicates[:2])
    assert first.auc.value == third.auc.value
    assert not torch.equal(first.replicates[0], third.replicates[0])


def test_a_difference_has_narrower_bounds_than_its_terms() -> None:
    members, outsiders = drawn(200, 0.5, seed=1), drawn(200, seed=2)
    before = separation(members, outsiders)
    after = separation(members + 0.05 * drawn(200, seed=3), outsiders + 0.05 * drawn(200, seed=4))
    change = after.minus(before)
    assert change.auc.value == pytest.approx(after.auc.value - before.auc.value)
    assert change.auc.high - change.auc.low < (before.auc.high - before.auc.low) / 4
    assert before.minus(before).auc == Estimate(0, 0, 0)
    with pytest.raises(InputError, match=re.escape("other has 10 replicates; expected 1000")):
        before.minus(separation(members, outsiders, n_boot=10))


def test_what_cannot_be_separated_is_refused() -> None:
    two = vector(1, 2)
    with pytest.raises(InputError, match=re.escape("members hold 1 score; expected at least 2")):
        separation(vector(1), two)
    with pytest.raises(InputError, match=re.escape("outsiders hold 0 scores; expected at least 2")):
        separation(two, vector())
    with pytest.raises(InputError, match=re.escape("outsiders hold NaN, first at position 1; expected numbers")):
        separation(two, vector(1, float("nan")))
    with pytest.raises(DTypeError, match=re.escape("members has dtype float32; expected float64")):
        separation(two.float(), two)
    with pytest.raises(InputError, match=re.escape("n_boot is 0; expected an integer of at least 1")):
        separation(two, two, n_boot=0)
