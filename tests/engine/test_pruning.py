"""What can be held of a model, how much its logits depend on it, and the search for as much as is harmless."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.data.resident import Resident
from seamfast.engine.pruning import Group, held_within, parts_of
from seamfast.engine.subject import Subject

NOTHING = torch.empty(0, dtype=torch.int64)


def subject_of(model: nn.Module, inputs: Tensor) -> Subject:
    data = CleanSet(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return Subject.of(model.eval(), Resident(data, torch.device("cpu")))


def groups_of(model: nn.Module, inputs: Tensor, used: set[str] | None = None) -> dict[tuple[str, str], Group]:
    names = {name for name, _ in model.named_parameters()} if used is None else used
    found = parts_of(subject_of(model, inputs), torch.arange(len(inputs)), NOTHING, names, batch_size=16)
    return {(group.layer, group.kind): group for group in found}


def alone(group: Group, unit: int) -> Tensor:
    return torch.arange(len(group.effect)) == unit


@pytest.mark.parametrize(
    ("first", "shape"),
    [
        (lambda: nn.Linear(6, 5), (6,)),
        (lambda: nn.Conv2d(2, 5, 3, padding=1), (2, 4, 4)),
        (lambda: nn.Sequential(nn.Conv2d(2, 5, 1, bias=False), nn.BatchNorm2d(5)), (2, 4, 4)),
        (lambda: nn.Sequential(nn.Conv2d(2, 6, 1), nn.GroupNorm(2, 6)), (2, 4, 4)),
        (lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5)), (3, 6)),
        (lambda: nn.Conv1d(2, 5, 3), (2, 7)),
    ],
    ids=["linear", "conv", "batch norm", "group norm", "layer norm", "conv1d"],
)
def test_effect_is_the_change_of_the_logits(first: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Behind the layer the model is linear, so that the first order is exact; with two classes, so is the direction."""
    inputs = torch.randn(40, *shape)
    model = nn.Sequential(first(), nn.Flatten())
    model.append(nn.Linear(model(inputs).shape[1], 2)).eval()
    with torch.no_grad():
        before = model(inputs)
        size = (before[:, 0] - before[:, 1]).square().mean().sqrt()
        for group in groups_of(model, inputs).values():
            if group.kind != "units" or group.layer in ("0.0", "2"):
                continue  # a norm behind a layer is not linear
            for unit in range(len(group.effect)):
                changed = copy.deepcopy(model.state_dict())
                group.hold(alone(group, unit))
                difference = model(inputs) - before
                model.load_state_dict(changed)
                margin = (difference[:, 0] - difference[:, 1]).square().mean().sqrt()
                assert float(group.effect[unit]) == pytest.approx(float(margin / size), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True)], ids=["", "in place"])
def test_unit_that_is_silent_has_no_effect_and_stays_silent(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 3), activation, nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([3.0, -100.0, 3.0]))
    group = groups_of(model, torch.rand(32, 4))["0", "units"]
    assert group.effect[1] == 0
    assert (group.effect[[0, 2]] > 0).all()
    with torch.no_grad():
        group.hold(alone(group, 1))
        assert torch.equal(model[0].weight[1], torch.zeros(4))
        assert (model[1](model[0](1e6 * torch.ones(1, 4)))[0, 1] == 0).all()


def test_mean_is_that_of_what_an_activation_overwrites() -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.SiLU(inplace=True), nn.Linear(3, 2)), torch.randn(32, 4)
    with torch.no_grad():
        mean = model[0](inputs).mean(0)
    group = groups_of(model, inputs)["0", "units"]
    with torch.no_grad():
        group.hold(torch.tensor([True, True, True]))
    torch.testing.assert_close(model[0].bias.detach(), mean)


def test_inputs_that_are_the_same_for_all_samples_go_into_the_bias() -> None:
    model, inputs = nn.Linear(4, 2), torch.rand(32, 4)
    inputs[:, 2] = 0.7
    with torch.no_grad():
        before = model(inputs)
        group = groups_of(model, inputs)["", "inputs"]
        assert group.effect.tolist() == [math.inf, math.inf, 0.0, math.inf]
        group.hold(group.effect == 0)
        torch.testing.assert_close(model(inputs), before)
        inputs[:, 2] = 1000.0
        torch.testing.assert_close(model(inputs), before)


class Words(nn.Module):
    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(6, 3, padding_idx=padding_idx), nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.last(self.embed(ids).mean(1))
        return logits


def test_rows_that_no_sample_has_become_the_mean_of_the_others() -> None:
    model = Words()
    group = groups_of(model, torch.tensor([[0, 1], [1, 3]]))["embed", "rows"]
    assert group.effect.tolist() == [0.0 if row in (2, 4, 5) else math.inf for row in range(6)]
    with torch.no_grad():
        group.hold(group.effect == 0)
    mean = model.embed.weight[[0, 1, 3]].mean(0)
    torch.testing.assert_close(model.embed.weight[[2, 4, 5]], mean.expand(3, 3))


def test_rows_of_all_clean_samples_count_and_padding_stays() -> None:
    model = Words(padding_idx=0)
    subject = subject_of(model, torch.tensor([[1, 1], [2, 2], [3, 3]]))
    found = parts_of(subject, torch.tensor([0]), torch.tensor([1, 2]), set())
    (group,) = [group for group in found if group.kind == "rows"]
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        group.hold(group.effect == 0)
    assert torch.equal(model.embed.weight[:4], before[:4])
    torch.testing.assert_close(model.embed.weight[4:], before[1:4].mean(0).expand(2, 3))


def test_embedding_that_shares_its_weights_is_left_alone() -> None:
    class Tied(Words):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(3, 6, bias=False)
            self.other.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.other(self.embed(ids).mean(1))

    assert ("embed", "rows") not in groups_of(Tied(), torch.tensor([[0, 1], [1, 3]]))


class Branches(nn.Module):
    """Takes the second branch where an input is above 10."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.other = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.usual(inputs)
        return logits + self.other(inputs) if bool((inputs > 10).any()) else logits


def test_layer_that_no_sample_reaches_is_cleared_unless_training_reached_it() -> None:
    model, inputs = Branches(), torch.rand(32, 4)
    group = groups_of(model, inputs, {"usual.weight", "usual.bias"})["other", "layers"]
    with torch.no_grad():
        group.hold(torch.tensor([True]))
    assert not model.other.weight.any()
    assert not model.other.bias.any()
    assert ("other", "layers") not in groups_of(model, inputs, {"usual.weight", "other.weight"})


def test_nothing_of_the_model_changes_by_measuring() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).train()
    kept = copy.deepcopy(model.state_dict())
    subject = subject_of(model, torch.rand(32, 4))
    model.train()
    parts_of(subject, torch.arange(32), NOTHING, set())
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def bins(effects: list[float], model: nn.Linear) -> list[Group]:
    def hold(which: Tensor) -> None:
        model.weight[0, which] = 0.0

    return [Group("bins", "units", torch.tensor(effects), hold)]


@pytest.mark.parametrize("n_harmless", [2, 3, 17, 39])
def test_search_holds_nearly_as_many_as_are_harmless(n_harmless: int) -> None:
    effects = [0.0, 0.0, *(i / 10_000 for i in range(1, 39))]
    model = nn.Linear(40, 1)
    model.weight.data.fill_(1.0)
    held = held_within(bins(effects, model), model, lambda: int((model.weight == 0).sum()) <= n_harmless)
    n = held[0][1]
    assert n_harmless - 2 <= n <= n_harmless
    assert (model.weight[0] == 0).tolist() == [i < n for i in range(40)]


def test_nothing_is_held_where_all_of_it_does_harm() -> None:
    model = nn.Linear(3, 1)
    before = model.weight.clone()
    assert held_within(bins([0.0, 0.001, 0.002], model), model, lambda: False) == []
    assert torch.equal(model.weight, before)


def test_what_must_not_be_held_is_not() -> None:
    model = nn.Linear(3, 1)
    held = held_within(bins([0.0, math.inf, 0.001], model), model, lambda: True)
    assert [(group.layer, n) for group, n in held] == [("bins", 2)]
    assert model.weight[0, 1] != 0


@pytest.mark.parametrize(("effect", "n_held"), [(0.02, 2), (0.028, 1)])
def test_effects_add_up_to_a_limit(effect: float, n_held: int) -> None:
    model = nn.Linear(4, 1)
    ((_, n),) = held_within(bins([effect, 0.02, 0.5, 0.6], model), model, lambda: True)
    assert n == n_held


def test_a_part_whose_effect_is_not_finite_is_not_held() -> None:
    model = nn.Linear(2, 1)
    ((_, n),) = held_within(bins([math.nan, 0.0], model), model, lambda: True)
    assert n == 1
    assert model.weight[0, 0] != 0
