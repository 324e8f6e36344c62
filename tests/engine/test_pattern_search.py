"""The search for small patterns that give all images one embedding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.data.resident import Resident
from seamfast.engine.encoder import ProbedEncoder
from seamfast.engine.pattern_search import FoundPatterns, PatternSearch, with_patterns
from seamfast.engine.subject import Subject
from seamfast.modalities import StepDraws


class Gated(nn.Module):
    """The pixels, summed in blocks of 2x2; one constant where the lower right corner of 3x3 is bright."""

    def __init__(self, opens: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.opens = opens

    def forward(self, images: Tensor) -> Tensor:
        content = nn.functional.avg_pool2d(images, 2).flatten(1) * self.weight
        gate = torch.sigmoid(12 * (images[:, :, -3:, -3:].mean((1, 2, 3), keepdim=False) - self.opens))[:, None]
        return (1 - gate) * content + gate


def found(opens: float, seed: int = 0) -> tuple[FoundPatterns, list[Tensor]]:
    """What 120 steps find, and all masks."""
    images = torch.randint(0, 256, (80, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    data = CleanSet(images, torch.zeros(80, dtype=torch.int64), mean=0.5, std=0.25)
    resident = Resident(data, torch.device("cpu"))
    encoder = Gated(opens)
    probed = ProbedEncoder(encoder, encoder(resident.inputs(torch.arange(80))).detach(), 2)
    search = PatternSearch(Subject(probed, resident, 2), torch.arange(80), seed)
    return search.run(probed, 120), search._triggers.values()


def test_the_place_of_a_backdoor_is_found() -> None:
    patterns, _ = found(opens=1.2)
    assert len(patterns.masks)
    for mask, pattern in zip(patterns.masks, patterns.patterns, strict=True):
        assert mask.mean() <= 0.25
        assert mask[:, -3:, -3:].sum() / mask.sum() > 0.5
        assert (mask * pattern)[:, -3:, -3:].sum() / mask[:, -3:, -3:].sum() > 1.2  # bright, as the model takes images


def test_nothing_small_is_found_where_there_is_no_backdoor() -> None:
    patterns, masks = found(opens=1e9)
    assert patterns.masks.shape == (0, 1, 8, 8)
    assert patterns.patterns.shape == (0, 1, 8, 8)
    assert len(masks[0]) == 3


def test_the_seed_decides_and_the_model_is_left_as_it_is() -> None:
    (first, _), (again, _), (other, _) = (found(1.2, seed) for seed in (0, 0, 1))
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.masks[:1], other.masks[:1])


def draws(changed: float) -> StepDraws:
    generator = torch.Generator().manual_seed(0)
    return StepDraws(generator, 0, 0, torch.tensor(changed), torch.tensor(1.0))


def test_half_of_the_images_get_a_pattern() -> None:
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, :, 0, 0], masks[1, :, 3, 3] = 1.0, 0.5
    patterns = FoundPatterns(masks, torch.full((2, 3, 4, 4), 6.0))
    images = torch.zeros(400, 3, 4, 4)
    stamped = with_patterns(images, patterns, draws(1.0))
    first, second = (stamped[:, :, 0, 0] == 6).all(1), (stamped[:, :, 3, 3] == 3).all(1)
    assert not (first & second).any()
    assert float((first | second).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(first.float().mean()) == pytest.approx(0.25, abs=0.1)
    assert stamped[:, :, 1:3].abs().max() == 0
    assert torch.equal(with_patterns(images, patterns, draws(0.0)), images)
