"""``label_forgetting``: both figures against dense kernels, samples and bounds, what is left out and why."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from seamfast import CleanSet
from seamfast.audits import AUDITS, label_forgetting, sequela
from seamfast.audits.label_forgetting import LabelForgetting, _halves
from seamfast.audits.ntk import drift, label_targets
from seamfast.engine.model import digest
from seamfast.errors import InputError, ModelError

MODULE = sys.modules["seamfast.audits.label_forgetting"]
NOTHING = {"value": None, "low": None, "high": None, "n": 0}


def features(n: int, *, num_classes: int = 3, seed: int = 0) -> CleanSet:
    """The class is where one of the first numbers is large."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % num_classes
    return CleanSet(torch.randn(n, 5, generator=generator) + 3 * F.one_hot(labels, 5), labels)


def net(num_classes: int = 3) -> nn.Module:
    """Right on most features; without that, the targets would be flat and all labels the same."""
    data = features(60, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(0.5), nn.Linear(7, num_classes)).double()
    with torch.no_grad():
        hidden = torch.tanh(model[0](data.inputs.double()))  # type: ignore[union-attr]
        found = torch.linalg.lstsq(hidden, 3 * F.one_hot(data.labels, num_classes).double()).solution
        model[3].weight.copy_(found.T.round(decimals=6))  # type: ignore[union-attr, operator]  # the last bits vary
    return model


def logits_and_jacobian(model: nn.Module, inputs: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """``(N, C)`` and ``(N * C, P)``, by one backward pass for each row."""
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if name in names}
    logits = functional_call(model, weights, (inputs.double(),))
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(one, list(weights.values()), retain_graph=True)])
        for one in logits.flatten()
    ]
    return logits.detach(), torch.stack(rows)


def stepped(model: nn.Module, data: CleanSet, names: tuple[str, ...], n_draws: int, seed: int) -> tuple[float, float]:
    """The share by 20 steps of gradient descent on the linearized model, and that of the first draw."""
    train, probes = (data.subset(part) for part in _halves(data, seed))
    first, train_rows = logits_and_jacobian(model, train.inputs, names)  # type: ignore[arg-type]
    logits, probe_rows = logits_and_jacobian(model, probes.inputs, names)  # type: ignore[arg-type]
    rate = 1 / float(torch.linalg.eigvalsh(train_rows @ train_rows.T)[-1])
    shares = []
    for draw in range(n_draws):
        targets = label_targets(first, train.labels, "uniform", seed=seed + draw).flatten()
        moved = torch.zeros(train_rows.shape[1], dtype=torch.float64)
        for _ in range(20):
            moved += rate * train_rows.T @ (targets - first.flatten() - train_rows @ moved)
        size = (logits - logits.mean(1, keepdim=True)).square().sum()
        shares.append(float((probe_rows @ moved).square().sum() / size))
    return sum(shares) / n_draws, shares[0]


@pytest.fixture
def found() -> LabelForgetting:
    return label_forgetting(net(), features(24), seed=5)


def test_the_shares_are_those_of_steps_on_the_linearized_model(found: LabelForgetting) -> None:
    model, data = net().eval(), features(24)
    everything = tuple(name for name, _ in model.named_parameters())
    of_all, of_first = stepped(model, data, everything, 3, 5)
    assert found.exact is not None
    assert found.exact.share.value == pytest.approx(of_all, rel=1e-2)  # as many products as a third of the dimensions
    assert abs(of_all / of_first - 1) > 0.02
    assert found.last_layer is not None
    assert found.last_layer.share.value == pytest.approx(stepped(model, data, ("3.weight", "3.bias"), 3, 5)[0])
    assert found.steps == 20
    assert found.left_out == {}


def test_few_products_suffice(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet, monkeypatch: Any) -> None:
    found = label_forgetting(tiny_model(), tiny_data)
    monkeypatch.setattr(MODULE, "_MOST_PRODUCTS", 500)
    monkeypatch.setattr(MODULE, "_TOLERANCE", 1e-6)
    exact = label_forgetting(tiny_model(), tiny_data)
    assert found.exact is not None
    assert exact.exact is not None
    assert found.exact.n_products <= 18 < exact.exact.n_products
    assert found.exact.share.value == pytest.approx(exact.exact.share.value, rel=0.01)


def test_halves_are_disjoint_and_begin_with_all_classes() -> None:
    data = CleanSet(torch.randn(150, 5), torch.tensor([0] * 100 + [1] * 25 + [2] * 25))
    train, probes = _halves(data, seed=1)
    assert sorted(torch.cat([train, probes]).tolist()) == list(range(150))
    for half in (train, probes):
        counts = torch.bincount(data.labels[half[:16]], minlength=3).tolist()
        assert counts[0] in (10, 11, 12)
        assert min(counts) >= 2
    assert _halves(data, seed=1)[0].tolist() == train.tolist()
    assert sorted(_halves(data, seed=5)[0].tolist()) != sorted(train.tolist())


def test_copies_of_a_sample_are_in_one_half() -> None:
    data = features(12)
    twice = data.followed_by(data)
    train, probes = _halves(twice, seed=0)
    assert {i % 12 for i in train.tolist()} & {i % 12 for i in probes.tolist()} == set()


def test_bounds_hold_the_value_and_narrow_with_the_samples() -> None:
    few, many = (label_forgetting(net(), features(n), n_draws=8) for n in (30, 240))
    widths = []
    for one in (few, many):
        assert one.last_layer is not None
        share = one.last_layer.share
        assert share.low <= share.value <= share.high
        widths.append((share.high - share.low) / share.value)
    assert widths[1] < 0.6 * widths[0]
    assert few.last_layer is not None
    assert (few.last_layer.n_train, few.last_layer.share.n, few.last_layer.n_draws) == (15, 15, 8)
    assert many.last_layer is not None
    assert many.exact is not None
    assert (many.last_layer.n_train, many.last_layer.share.n) == (120, 120)
    assert (many.exact.n_train, many.exact.share.n) == (16, 64)
    narrow = label_forgetting(net(), features(30), n_draws=8, level=0.5)
    assert narrow.last_layer is not None
    assert narrow.last_layer.share.high < few.last_layer.share.high


def test_the_bounds_are_of_samples_and_of_draws() -> None:
    """Samples that all move alike have no width, but for the draws."""
    inputs = torch.ones(40, 5) + 1e-5 * torch.arange(40)[:, None]
    data = CleanSet(inputs, torch.zeros(40, dtype=torch.int64), num_classes=3)
    one, several = (label_forgetting(net(), data, n_draws=n).last_layer for n in (1, 6))
    assert one is not None
    assert several is not None
    assert one.share.high - one.share.low < 0.001 < 0.05 < several.share.high - several.share.low


def test_changes_are_paired_and_after_less_before() -> None:
    model, other = net(), net()
    with torch.no_grad():
        other[0].weight.mul_(1.2)  # type: ignore[index, operator, union-attr]
    before, after = (label_forgetting(one, features(100)) for one in (model, other))
    for name, change in before.changes_to(after).items():
        first, second = before.figures()[name], after.figures()[name]
        assert change.value == pytest.approx(second.value - first.value)  # type: ignore[operator]
        assert change.low < change.value < change.high  # type: ignore[operator]
        assert change.high - change.low < 0.7 * (second.high - second.low + first.high - first.low)  # type: ignore[operator]
    assert {(change.value, change.low, change.high) for change in before.changes_to(before).values()} == {(0, 0, 0)}
    with pytest.raises(InputError, match=r"^the results are of 49 and 15 samples; expected the same samples$"):
        before.changes_to(label_forgetting(model, features(30)))


class Times(nn.Module):
    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.model(inputs)
        return logits


def test_logits_times_a_number_have_the_same_shares(found: LabelForgetting) -> None:
    larger = label_forgetting(Times(net(), 10.0), features(24), seed=5)
    assert found.exact is not None
    assert larger.figures()["exact_share"].value == pytest.approx(found.exact.share.value)
    model = net()
    with torch.no_grad():
        for parameter in model[3].parameters():  # type: ignore[index, union-attr]
            parameter.mul_(10)
    larger = label_forgetting(model, features(24), seed=5)
    assert found.last_layer is not None
    assert larger.figures()["last_layer_share"].value == pytest.approx(found.last_layer.share.value)


def test_it_is_strict_json_and_by_the_seed(found: LabelForgetting) -> None:
    values = found.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert list(values) == ["steps", "last_layer", "exact", "left_out"]
    assert list(values["exact"]) == ["share", "n_train", "n_draws", "n_products", "residual"]
    assert label_forgetting(net(), features(24), seed=5).to_dict() == values
    assert label_forgetting(net(), features(24), seed=2**63 - 1).to_dict() != values


def test_the_model_is_left_as_it_was() -> None:
    model = net()
    before, state = digest(model), torch.random.get_rng_state()
    label_forgetting(model, features(24))
    assert digest(model) == before
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 6), nn.Linear(6, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.head((self.words(input_ids) * attention_mask[..., None]).mean(1))
        return logits


def test_texts_have_both_figures() -> None:
    tokens = torch.randint(20, (40, 7), generator=torch.Generator().manual_seed(0))
    data = CleanSet({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, torch.arange(40) % 2)
    found = label_forgetting(Reader(), data)
    assert found.left_out == {}
    assert all(figure.value is not None and figure.value > 0 for figure in found.figures().values())


# ---- What is left out ----


class Scaled(nn.Module):
    """A model without a linear layer at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double())

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


class Detached(Scaled):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).detach()


def test_a_model_without_a_linear_head_has_the_exact_figure_alone() -> None:
    found = label_forgetting(Scaled(), features(24))
    assert found.last_layer is None
    assert found.exact is not None
    assert list(found.left_out) == ["last_layer"]
    assert found.left_out["last_layer"].startswith("the model has no linear layer ")
    figures = found.figures()
    assert figures["last_layer_share"].to_dict() == NOTHING
    assert figures["exact_share"] == found.exact.share
    changes = found.changes_to(label_forgetting(net(), features(24)))
    assert changes["last_layer_share"].value is None
    assert changes["exact_share"].value is not None


def test_a_linear_head_that_gets_zeros_has_the_exact_figure_alone() -> None:
    """Its kernel is zero, that of the layer before is not; as the logits are zero, there is no share of them."""
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
    found = label_forgetting(model, features(24))
    why = "the kernel of the training samples is zero; expected logits that depend on the parameters"
    assert (found.last_layer, found.left_out) == (None, {"last_layer": why})
    assert found.exact is not None
    assert found.exact.share.value is None


def test_a_model_without_derivatives_has_none_of_both() -> None:
    with pytest.raises(ModelError, match=r"^no logit depends on the parameters by a gradient"):
        label_forgetting(Detached(), features(24))
    with pytest.raises(ModelError, match=r"^no logit depends on the parameters by a gradient"):
        sequela(Detached(), Detached(), features(24), audits=["ntk"])


class Rooted(nn.Module):
    """The gradient of a root is not finite at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.factor = nn.Linear(5, 3), nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(inputs + (self.factor * inputs[:, :1].clamp(min=0)).sqrt())
        return logits


def test_the_exact_figure_is_left_out_where_a_gradient_is_not_finite() -> None:
    inputs = features(24).inputs.abs()  # type: ignore[union-attr]
    train, _ = _halves(CleanSet(inputs, features(24).labels), seed=0)
    inputs[train[-1], 0] = 0  # the model's first two samples are looked at before
    found = label_forgetting(Rooted().double(), CleanSet(inputs, features(24).labels))
    wanted = "the gradient of some logits holds NaN or Inf; expected finite gradients"
    assert found.left_out == {"exact": wanted}
    samples = inputs[train]
    with pytest.raises(ModelError, match=f"^{wanted}$"):
        drift(Rooted().double(), samples, torch.zeros(len(samples), dtype=torch.int64), samples)
    assert found.last_layer is not None


def test_the_exact_figure_is_left_out_where_it_costs_too_much(monkeypatch: Any) -> None:
    n = sum(p.numel() for p in net().parameters()) * 24 * 18
    monkeypatch.setattr(MODULE, "_MOST_WORK", n - 1)
    found = label_forgetting(net(), features(24))
    assert found.exact is None
    assert found.last_layer is not None
    why = "parameters times samples times products are 2.9e+04; expected at most 2.9e+04"
    assert found.left_out == {"exact": why}
    assert found.to_dict()["exact"] is None
    monkeypatch.setattr(MODULE, "_MOST_WORK", n)
    assert label_forgetting(net(), features(24)).exact is not None


def test_the_exact_figure_is_given_up_where_the_time_ends(monkeypatch: Any) -> None:
    """Each look at the clock is a second."""
    seconds = iter(range(1000))
    monkeypatch.setattr(MODULE, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    found = label_forgetting(net(), features(24), time_budget_s=3.5)
    assert found.exact is None
    assert found.last_layer is not None
    assert found.left_out == {"exact": "the time budget did not suffice"}
    assert next(seconds) == 5
    assert label_forgetting(net(), features(24), time_budget_s=100).exact is not None


def test_logits_that_are_the_same_for_all_classes_have_no_share() -> None:
    model = net()
    with torch.no_grad():
        for parameter in model[3].parameters():  # type: ignore[index, union-attr]
            parameter.zero_()
    found = label_forgetting(model, features(24))
    assert {figure.value for figure in found.figures().values()} == {None}
    assert {change.value for change in found.changes_to(found).values()} == {None}
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_draws": 0}, "n_draws is 0; expected an integer of at least 1"),
        ({"n_boot": 0}, "n_boot is 0; expected an integer of at least 1"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1"),
        ({"level": 1}, "level is 1; expected a number in (0, 1)"),
        ({"seed": -1}, "seed is -1; expected an integer in [0, 2**63)"),
        ({"time_budget_s": 0}, "time_budget_s is 0; expected a number of seconds above 0, or None"),
        ({"data": 3}, "data is a int; expected a seamfast.CleanSet"),
        (
            {"data": features(3)},
            "data hold 3 samples, no two different ones of a class; expected two, to probe one",
        ),
        ({"data": features(24, num_classes=4)}, "labels hold 3 at position "),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    data = options.pop("data", features(24))
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        label_forgetting(net(), data, **options)


# ---- In the report ----


def test_the_row_is_the_audit_of_both_models(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    received, sanitized = tiny_model(), tiny_model()
    with torch.no_grad():
        sanitized[-1].weight.mul_(0.5)  # type: ignore[index, operator, union-attr]
    found = sequela(received, sanitized, tiny_data, audits=["ntk"], seed=4, level=0.9).audits["ntk"]
    before, after = (label_forgetting(one, tiny_data, seed=4, level=0.9) for one in (received, sanitized))
    assert (found.before.to_dict(), found.after.to_dict()) == (before.to_dict(), after.to_dict())
    assert [change.name for change in found.changes] == ["last_layer_share", "exact_share"]
    assert {change.name: change.change for change in found.changes} == before.changes_to(after)
    assert AUDITS["ntk"].needs == ()
