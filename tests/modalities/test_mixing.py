from __future__ import annotations

import pytest
import torch

from seamfast.modalities.mixing import mix_up

N = 400


def batch(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Sample ``i`` is full of the number ``i``, so that a mixed value shows its parents."""
    return torch.arange(N, dtype=dtype).view(N, 1, 1, 1).repeat(1, 3, 2, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_sample_is_its_parents_by_weight(share: float) -> None:
    inputs, partner, weight = mix_up(batch(torch.float64), share, generator())
    assert torch.equal(inputs, inputs[:, :1, :1, :1].expand_as(inputs))
    for i in range(N):
        w = float(weight[i])
        assert abs(float(inputs[i, 0, 0, 0]) - (w * i + (1 - w) * int(partner[i]))) < 1e-4
    assert sorted(partner.tolist()) == list(range(N))
    assert weight.dtype == torch.float32
    assert float(weight.min()) >= 0
    assert float(weight.max()) <= 1


def test_weights_are_uniform() -> None:
    weight = mix_up(batch(), 1.0, generator())[2]
    assert abs(float(weight.mean()) - 0.5) < 5 * 12**-0.5 / N**0.5  # five standard errors
    assert float(weight.min()) < 0.05
    assert float(weight.max()) > 0.95


def test_share_is_the_share_that_is_mixed() -> None:
    inputs = batch()
    same, _, weight = mix_up(inputs, 0.0, generator())
    assert torch.equal(same, inputs)
    assert torch.equal(weight, torch.ones(N))
    for share in (0.25, 0.75):
        mixed, _, weight = mix_up(inputs, share, generator(1))
        n_mixed = int((mixed != inputs).flatten(1).any(1).sum())
        assert abs(n_mixed - share * N) < 5 * (share * (1 - share) * N) ** 0.5 + 3  # a sample may be its own partner
        assert abs(int((weight < 1).sum()) - share * N) < 5 * (share * (1 - share) * N) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_stays_and_the_input_too(dtype: torch.dtype) -> None:
    inputs = batch(dtype)
    before = inputs.clone()
    mixed = mix_up(inputs, 1.0, generator())[0]
    assert mixed.dtype == dtype
    assert torch.equal(inputs, before)
    assert mixed.data_ptr() != inputs.data_ptr()


def test_the_generator_alone_decides() -> None:
    one = mix_up(batch(), 0.5, generator(3))
    torch.rand(7)
    again, other = mix_up(batch(), 0.5, generator(3)), mix_up(batch(), 0.5, generator(4))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])


def test_rows_of_any_shape() -> None:
    assert mix_up(torch.randn(6, 9), 1.0, generator())[0].shape == (6, 9)
