"""Super-fine-tuning against a loop of its own, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seamfast
from seamfast import CleanSet, SuperFineTuneConfig
from seamfast.data import split_by_class
from seamfast.errors import ConfigError


def test_against_a_loop_in_plain_pytorch(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    config = SuperFineTuneConfig(
        base_rate=1e-3, forget_rate=0.08, recover_rate=0.02, momentum=0.5, weight_decay=1e-2, forget_steps=8,
        recover_steps=4, n_cycles=2, batch_size=128,
    )  # fmt: skip
    got = seamfast.sanitize(tiny_model(), tiny_data, method="super_fine_tune", config=config, precision="fp32").model

    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    inputs = (tiny_data.inputs[split.recovery].float() / 255 - 0.4) / 0.25  # every batch is the whole recovery part
    labels = tiny_data.labels[split.recovery]
    wanted = tiny_model().train()
    optimizer = torch.optim.SGD(wanted.parameters(), lr=1.0, momentum=0.5, weight_decay=1e-2)
    # Two triangles of four steps up to 0.08, then two of two steps up to 0.02.
    high, low = [0.0, 0.5, 1.0, 0.5] * 2, [0.0, 1.0] * 2
    for rate in [1e-3 + (0.08 - 1e-3) * h for h in high] + [1e-3 + (0.02 - 1e-3) * h for h in low]:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(wanted(inputs), labels).backward()
        optimizer.step()
    torch.testing.assert_close(got.state_dict(), wanted.state_dict(), rtol=2e-3, atol=2e-5)
    assert (wanted[9].weight - tiny_model()[9].weight).abs().max() > 1e-3


def test_two_phases_and_their_evaluations(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    config = SuperFineTuneConfig(forget_steps=5, recover_steps=4, eval_every=2, n_cycles=1)
    result = seamfast.sanitize(tiny_model(), tiny_data, method="super_fine_tune", config=config)
    points = [("forget", 2), ("forget", 4), ("forget", 5), ("recover", 7), ("recover", 9)]
    assert [(p.phase, p.step) for p in result.history] == points
    assert result.report["run"]["steps"] == {"forget": 5, "recover": 4}
    assert result.report["run"]["n_attempts"] == 1


def test_the_defaults_keep_the_published_ratio_of_the_peaks() -> None:
    config = SuperFineTuneConfig()
    assert config.forget_rate / config.recover_rate == pytest.approx(100)
    assert config.forget_steps == config.recover_steps


def test_transfer_takes_three_epochs_a_phase_where_that_is_more() -> None:
    config = SuperFineTuneConfig.transfer(50_000, batch_size=100)
    assert config == SuperFineTuneConfig(forget_steps=1500, recover_steps=1500, batch_size=100)
    assert SuperFineTuneConfig.transfer(8_534) == SuperFineTuneConfig(forget_steps=201, recover_steps=201)  # 200.02
    assert SuperFineTuneConfig.transfer(8_533) == SuperFineTuneConfig()  # 199.99
    assert SuperFineTuneConfig.transfer(50_000, forget_steps=7).forget_steps == 7


@pytest.mark.parametrize("n_training", [0, 1.5, True])
def test_transfer_needs_samples(n_training: int) -> None:
    with pytest.raises(ConfigError, match=rf"^n_training is {n_training!r}; expected an integer of at least 1$"):
        SuperFineTuneConfig.transfer(n_training)


def test_an_encoder_is_fine_tuned_at_one_rate(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    config = SuperFineTuneConfig.encoder(0.02, forget_steps=4, recover_steps=3, batch_size=128, prune=False)
    got = seamfast.sanitize(tiny_model(), tiny_data, method="super_fine_tune", config=config, precision="fp32").model

    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    inputs = (tiny_data.inputs[split.recovery].float() / 255 - 0.4) / 0.25
    wanted = tiny_model().train()
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for _ in range(7):
        optimizer.zero_grad()
        F.cross_entropy(wanted(inputs), tiny_data.labels[split.recovery]).backward()
        optimizer.step()
    torch.testing.assert_close(got.state_dict(), wanted.state_dict(), rtol=2e-3, atol=2e-5)


def test_the_rate_of_an_encoder_is_that_of_the_regime_unless_given() -> None:
    config = SuperFineTuneConfig.encoder()
    assert config.base_rate == config.forget_rate == config.recover_rate == SuperFineTuneConfig().base_rate
    with pytest.raises(ConfigError, match=r"^base_rate is 0; expected a number above 0$"):
        SuperFineTuneConfig.encoder(0)
