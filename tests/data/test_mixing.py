from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seamfast.data.mixing import mix_up

N, C = 400, 5


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample ``i`` is full of the number ``i``, so that a mixed value tells its parents' sum."""
    inputs = torch.arange(N, dtype=dtype).view(N, 1, 1, 1).repeat(1, 3, 2, 2)
    return inputs, F.one_hot(torch.arange(N) % C, C).to(dtype)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_targets_stay_probabilities_and_inputs_in_range(share: float) -> None:
    inputs, targets = mix_up(*batch(), share, generator())
    assert torch.allclose(targets.sum(1), torch.ones(N))
    assert targets.min() >= 0
    assert inputs.min() >= 0
    assert inputs.max() <= N - 1


def test_a_sample_and_its_target_are_mixed_alike() -> None:
    """Two parents a sample, one weight for all its pixels and for its target: checked by a loop of its own."""
    whole, labels = batch(torch.float64)
    inputs, targets = mix_up(whole, labels, 1.0, generator())
    assert torch.equal(inputs, inputs[:, :1, :1, :1].expand_as(inputs))
    partners, weights = [], []
    for i in range(N):
        value = float(inputs[i, 0, 0, 0])
        found = []
        for j in range(N):
            if j % C == i % C:
                continue  # the target then tells nothing about the weight
            weight = float(targets[i, i % C])
            if abs(weight * i + (1 - weight) * j - value) < 1e-6 and abs(float(targets[i, j % C]) - 1 + weight) < 1e-6:
                found.append((j, weight))
        if float(targets[i].max()) < 1:
            assert len(found) == 1, i
            partners.append(found[0][0])
            weights.append(found[0][1])
    assert len(partners) > 0.7 * N
    assert len(set(partners)) == len(partners)  # a permutation: nobody is a partner twice
    mean = sum(weights) / len(weights)
    assert abs(mean - 0.5) < 5 * 12**-0.5 / len(weights) ** 0.5  # five standard errors of a uniform weight
    assert min(weights) < 0.05
    assert max(weights) > 0.95


def test_share_is_the_share_that_is_mixed() -> None:
    inputs, targets = batch()
    same = mix_up(inputs, targets, 0.0, generator())
    assert torch.equal(same[0], inputs)
    assert torch.equal(same[1], targets)
    for share in (0.25, 0.75):
        mixed, _ = mix_up(inputs, targets, share, generator(1))
        n_mixed = int((mixed != inputs).flatten(1).any(1).sum())
        assert abs(n_mixed - share * N) < 5 * (share * (1 - share) * N) ** 0.5 + 3
    # + 3: a sample may be its own partner


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_stays_and_the_input_too(dtype: torch.dtype) -> None:
    inputs, targets = batch(dtype)
    before = inputs.clone(), targets.clone()
    mixed, mixed_targets = mix_up(inputs, targets, 1.0, generator())
    assert (mixed.dtype, mixed_targets.dtype) == (dtype, dtype)
    assert torch.equal(inputs, before[0])
    assert torch.equal(targets, before[1])
    assert mixed.data_ptr() != inputs.data_ptr()


def test_the_generator_alone_decides() -> None:
    one = mix_up(*batch(), 0.5, generator(3))
    torch.rand(7)
    again, other = mix_up(*batch(), 0.5, generator(3)), mix_up(*batch(), 0.5, generator(4))
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other[0])


def test_rows_of_any_shape() -> None:
    flat, targets = mix_up(torch.randn(6, 9), torch.full((6, C), 1 / C), 1.0, generator())
    assert flat.shape == (6, 9)
    assert torch.allclose(targets, torch.full((6, C), 1 / C))
