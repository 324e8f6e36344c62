"""Groups in place of classes, and the probe that reads them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seamfast.engine.encoder import ProbedEncoder, embedding_of, grouped
from seamfast.errors import ModelError


class Answer:
    def __init__(self, **fields: Any) -> None:
        self.__dict__ |= fields


ROWS = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        ROWS,
        ROWS[:, :, None, None],
        {"embedding": ROWS, "pooler_output": -ROWS},
        Answer(pooler_output=ROWS, last_hidden_state=-ROWS),
        Answer(pooler_output=None, last_hidden_state=torch.stack([ROWS, -ROWS], 1)),
    ],
)
def test_what_an_encoder_may_return(output: Any) -> None:
    assert torch.equal(embedding_of(output), ROWS)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((ROWS,), "the encoder returned a tuple; expected embeddings: a tensor of shape (B, D), or an object or dict"),
        (
            Answer(pooler_output=None),
            "the encoder returned a Answer; expected embeddings: a tensor of shape (B, D), or",
        ),
        (torch.ones(2, 3, 4), "the encoder returned float32 of shape (2, 3, 4); expected floats of shape (B, D >= 2)"),
        (ROWS.long(), "the encoder returned int64 of shape (2, 3); expected floats of shape (B, D >= 2)"),
    ],
)
def test_other_outputs_are_refused(output: Any, message: str) -> None:
    with pytest.raises(ModelError, match=f"^{re.escape(message)}"):
        embedding_of(output)


def clouds(*sizes: int) -> torch.Tensor:
    """Points around corners that are 10 apart, in groups of these sizes."""
    generator = torch.Generator().manual_seed(0)
    corners = 10 * torch.eye(len(sizes))
    return torch.cat([corners[k] + torch.randn(n, len(sizes), generator=generator) for k, n in enumerate(sizes)])


def test_groups_are_clouds_numbered_by_size() -> None:
    groups = grouped(clouds(20, 50, 30), 3, seed=0)
    assert groups.tolist() == [2] * 20 + [0] * 50 + [1] * 30


def test_groups_are_the_same_for_a_seed_and_as_many_as_there_are_points() -> None:
    points = clouds(40, 40)
    assert torch.equal(grouped(points, 5, seed=3), grouped(points, 5, seed=3))
    assert int(grouped(points, 5, seed=3).max()) == 4
    assert grouped(torch.ones(6, 2), 4, seed=0).tolist() == [0] * 6
    assert set(grouped(torch.tensor([[0.0, 0], [0, 0], [1, 1]]), 3, seed=0).tolist()) == {0, 1}


def test_the_probe_is_ridge_regression() -> None:
    points = clouds(30, 30, 30)
    groups = torch.arange(90) // 30
    probed = ProbedEncoder(nn.Identity(), points, 3)
    rows = probed.standardized(points)
    assert rows.mean(0).abs().max() < 1e-5
    assert rows.std(0) == pytest.approx(torch.ones(3), abs=1e-5)
    probed.fit(rows, groups)
    answers = F.linear(rows, probed.weight, probed.bias).double()
    # The gradient of the sum of squares plus 0.001 N times the squared weights is 0.
    wanted = 10 * F.one_hot(groups, 3).double()
    centered = rows.double() - rows.double().mean(0)
    assert centered.T @ (answers - wanted) + 0.001 * 90 * probed.weight.double().T == pytest.approx(
        torch.zeros(3, 3).double(), abs=1e-3
    )
    assert (answers - wanted).sum(0) == pytest.approx(torch.zeros(3).double(), abs=1e-3)
    assert torch.equal(answers.argmax(1), groups)
    assert torch.equal(probed(points)["logits"], F.linear(rows, probed.weight, probed.bias))


def test_a_feature_that_never_changes_is_not_blown_up() -> None:
    points = torch.cat([clouds(20, 20), torch.full((40, 1), 3.0)], 1)
    assert ProbedEncoder(nn.Identity(), points, 2).standardized(points)[:, 2].abs().max() == 0


def test_the_probe_is_no_part_of_the_state() -> None:
    probed = ProbedEncoder(nn.Linear(3, 3), torch.randn(9, 3), 2)
    assert list(probed.state_dict()) == ["encoder.weight", "encoder.bias"]
    assert [name for name, _ in probed.named_parameters()] == ["encoder.weight", "encoder.bias"]
