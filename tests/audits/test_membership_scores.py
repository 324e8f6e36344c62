"""The scores of membership attacks: hand values, the formulas of the papers, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor

from seamfast.audits.membership_scores import confidences, lira_offline, lira_online, modified_entropy, rmia
from seamfast.errors import DTypeError, InputError, ShapeError


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(40) % 5


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logit(*p: float) -> Tensor:
    return torch.logit(vector(*p))


def test_confidence_is_the_logit_of_the_probability(logits: Tensor, labels: Tensor) -> None:
    p = logits.double().softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(confidences(logits, labels), (p / (1 - p)).log())
    loss = F.cross_entropy(logits.double(), labels, reduction="none")
    torch.testing.assert_close(F.softplus(-confidences(logits, labels)), loss)


def test_sure_answers_stay_apart_where_their_probabilities_round_to_one() -> None:
    sure = torch.tensor([[60.0, 0.0], [80.0, 0.0], [-80.0, 0.0]])
    assert confidences(sure, torch.zeros(3, dtype=torch.int64)).tolist() == [60, 80, -80]
    entropy = modified_entropy(sure, torch.zeros(3, dtype=torch.int64))
    assert entropy.isfinite().all()
    assert 0 > entropy[1] > entropy[0] > entropy[2]
    assert entropy[0] == pytest.approx(-2 * math.exp(-120), rel=1e-9, abs=0)
    assert entropy[2] == pytest.approx(-160)  # 1 * log(p[0]) + 1 * log(1 - p[1]), either -80


def test_modified_entropy_by_hand() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1]])
    right, wrong = (modified_entropy(p.log(), torch.tensor([y])).item() for y in (0, 2))
    assert right == pytest.approx(0.3 * math.log(0.7) + 0.2 * math.log(0.8) + 0.1 * math.log(0.9), rel=1e-6)
    assert wrong == pytest.approx(0.9 * math.log(0.1) + 0.7 * math.log(0.3) + 0.2 * math.log(0.8), rel=1e-6)


def test_modified_entropy_is_the_formula(logits: Tensor, labels: Tensor) -> None:
    p = logits.double().softmax(1)
    own = F.one_hot(labels, 5).bool()
    expected = torch.where(own, (1 - p) * p.log(), p * (1 - p).log()).sum(1)
    torch.testing.assert_close(modified_entropy(logits, labels), expected)


def test_rmia_by_hand() -> None:
    # p of the target, and of three references; the first was trained on sample 0.
    target = logit(0.9, 0.6, 0.5, 0.2)
    references = torch.stack([logit(0.99, 0.5, 0.5, 0.2), logit(0.4, 0.5, 0.5, 0.3), logit(0.6, 0.8, 0.5, 0.4)])
    trained_on = torch.zeros(3, 4, dtype=torch.bool)
    trained_on[0, 0] = True
    outsiders = torch.tensor([False, False, True, True])
    # With a = 0.3, mean_p is 0.65 * out + 0.35; out is 0.5, 0.6, 0.5, 0.3, and the ratios:
    ratios = [0.9 / 0.675, 0.6 / 0.74, 0.5 / 0.675, 0.2 / 0.545]
    assert ratios == pytest.approx([1.333, 0.811, 0.741, 0.367], abs=1e-3)
    assert rmia(target, references, trained_on, outsiders).tolist() == [1, 1, 0.5, 0]
    # gamma = 2: only ratios of more than 0.734 and 1.481 count; 0.741 is twice 0.367, just.
    assert rmia(target, references, trained_on, outsiders, gamma=2).tolist() == [0.5, 0.5, 0.5, 0]
    # a = 1: mean_p is out, and the ratios are 1.8, 1, 1 and 0.667: ties count for nobody.
    assert rmia(target, references, trained_on, outsiders, a=1).tolist() == [1, 0.5, 0.5, 0]
    # 1.8 / 2.5 is more than 0.667; with the reference that was trained on sample 0, it would be 1.357 / 2.5.
    assert rmia(target, references, trained_on, outsiders, a=1, gamma=2.5).tolist() == [0.5, 0, 0, 0]


def test_lira_offline_is_the_distance_to_the_references_that_did_not_see_the_sample() -> None:
    references = torch.stack([vector(1, 5), vector(3, 7), vector(100, 9)])
    trained_on = torch.tensor([[False, False], [False, False], [True, False]])
    assert lira_offline(vector(4, 8), references, trained_on).tolist() == [2, 1]


def test_lira_online_is_the_ratio_of_two_normal_densities() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, generator=generator, dtype=torch.float64)
    references = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    trained_on = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 1], [0, 1, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1], [0] * 6])
    used = trained_on.bool()
    means, deviations = [], []
    for side in (used, ~used):
        groups = [references[side[:, i], i] for i in range(6)]
        means.append([float(g.mean()) for g in groups])
        squares = sum(float(((g - g.mean()) ** 2).sum()) for g in groups)
        deviations.append(math.sqrt(squares / sum(len(g) - 1 for g in groups)))
    expected = norm.logpdf(target, means[0], deviations[0]) - norm.logpdf(target, means[1], deviations[1])
    torch.testing.assert_close(lira_online(target, references, used), torch.from_numpy(expected))


def test_references_that_agree_to_the_bit_give_finite_ratios() -> None:
    used = torch.tensor([[True], [True], [False], [False]])
    assert lira_online(vector(1.0), torch.ones(4, 1, dtype=torch.float64), used).isfinite().all()


@pytest.mark.parametrize("function", [confidences, modified_entropy])
def test_logits_that_cannot_be_scored_are_refused(function, logits: Tensor, labels: Tensor) -> None:  # type: ignore[no-untyped-def]
    logits[3, 2] = math.nan
    with pytest.raises(InputError, match=re.escape("logits hold NaN or Inf, first in row 3; expected finite numbers")):
        function(logits, labels)
    with pytest.raises(ShapeError, match=re.escape("logits has shape (40, 1); expected (N, C) with C of at least 2")):
        function(logits[:, :1], labels)
    with pytest.raises(DTypeError, match=re.escape("logits has dtype int64; expected floats")):
        function(torch.zeros(40, 5, dtype=torch.int64), labels)
    with pytest.raises(InputError, match=re.escape("labels hold 5 at position 0; expected integers in [0, 5)")):
        function(torch.zeros(40, 5), labels + 5)
    with pytest.raises(ShapeError, match=re.escape("labels has shape (39,); expected (N,) = (40,)")):
        function(torch.zeros(40, 5), labels[1:])


def test_samples_without_the_references_they_need_are_refused() -> None:
    target, references = vector(0, 0), torch.zeros(4, 2, dtype=torch.float64)
    used = torch.tensor([[True, True], [True, True], [False, True], [False, True]])
    population = torch.tensor([True, False])
    message = "sample 1 is in the training data of all 4 references; expected 1 or more that it is not in"
    for score in (lambda: rmia(target, references, used, population), lambda: lira_offline(target, references, used)):
        with pytest.raises(InputError, match=re.escape(message)):
            score()
    message = "sample 1 is in the training data of all 4 references; expected 2 or more that it is not in"
    with pytest.raises(InputError, match=re.escape(message)):
        lira_online(target, references, used)
    message = "sample 1 is outside the training data of all 4 references; expected 2 or more that it is in"
    with pytest.raises(InputError, match=re.escape(message)):
        lira_online(target, references, ~used)
    used = torch.tensor([[True, True], [False, True], [False, False], [False, False]])
    message = "sample 0 is outside the training data of 3 of 4 references; expected 2 or more that it is in"
    with pytest.raises(InputError, match=re.escape(message)):
        lira_online(target, references, used)


def test_other_arguments_that_do_not_fit_are_refused() -> None:
    target, references = vector(0, 0), torch.zeros(4, 2, dtype=torch.float64)
    used, population = torch.zeros(4, 2, dtype=torch.bool), torch.tensor([True, False])
    for arguments, options, message in (
        (
            (target, references[:, :1], used, population),
            {},
            "references has shape (4, 1); expected (R, 2)",
        ),
        ((target, references[:0], used, population), {}, "references has shape (0, 2); expected (R, 2), R at least 1"),
        ((target, references, used[:1], population), {}, "trained_on has shape (1, 2); expected that of references"),
        ((target, references.float(), used, population), {}, "references has dtype float32; expected float64"),
        ((target, references, used.long(), population), {}, "trained_on has dtype int64; expected bool"),
        ((target, references, used, population[:1]), {}, "population has shape (1,); expected (N,) = (2,)"),
        ((target, references, used, population & False), {}, "population holds no samples; expected at least one"),
        ((target, references, used, population), {"a": 1.5}, "a is 1.5; expected a number in [0, 1]"),
        ((target, references, used, population), {"gamma": 0.5}, "gamma is 0.5; expected a number of at least 1"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            rmia(*arguments, **options)
