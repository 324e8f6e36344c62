from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seamfast.engine.trainable import changed_frozen, check_trainable, choose_trainable, has_adapters
from seamfast.errors import ConfigError


class Layers(nn.Module):
    """``encoder`` and ``head``, ``norm`` between them; ``alias`` shares the weight of ``head``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False))
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)
        self.alias = nn.Linear(4, 2, bias=False)
        self.alias.weight = self.head.weight
        self.register_buffer("seen", torch.zeros(()))


ENCODER, NORM, HEAD = {"encoder.0.weight", "encoder.0.bias"}, {"norm.weight", "norm.bias"}, {"head.weight", "head.bias"}


def frozen(model: nn.Module, *beginnings: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(beginnings))
    return model


def refused(model: nn.Module, requested: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        choose_trainable(model, requested)
    return str(caught.value)


def test_all_takes_frozen_ones_and_fixes_no_buffer() -> None:
    chosen = choose_trainable(frozen(Layers(), "encoder", "norm"), "all")
    assert (chosen.mode, chosen.names, chosen.fixed) == ("all", ENCODER | NORM | HEAD, ())


def test_as_given_takes_what_requires_grad() -> None:
    chosen = choose_trainable(frozen(Layers(), "encoder", "norm"), "as_given")
    assert (chosen.mode, chosen.names) == ("as_given", HEAD)


@pytest.mark.parametrize(
    ("trained", "fixed"),
    [
        (["head.*"], ("encoder.1", "norm")),
        (["encoder.*"], ("norm",)),  # a norm without parameters counts with the encoder around it
        (["norm.bias"], ("encoder.1",)),
        (["*"], ()),
    ],
)
def test_buffers_stay_where_no_parameter_is_trained(trained: list[str], fixed: tuple[str, ...]) -> None:
    assert choose_trainable(Layers(), trained).fixed == fixed


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["head.weight"], {"head.weight"}),
        (("encoder.*", "head.bias"), ENCODER | {"head.bias"}),
        (["alias.*"], {"head.weight"}),  # the other name of a shared tensor
        (["*.bias"], {"encoder.0.bias", "norm.bias", "head.bias"}),
    ],
)
def test_names_and_patterns(patterns: Any, names: set[str]) -> None:
    chosen = choose_trainable(Layers(), patterns)
    assert (chosen.mode, chosen.names) == ("named", names)


def test_a_pattern_that_matches_nothing() -> None:
    message = (
        "trainable holds 'Head.*', which matches no parameter; expected names or patterns of names such as "
        "'encoder.0.weight', 'encoder.0.bias', 'norm.weight'"
    )
    assert refused(Layers(), ["head.*", "Head.*"]) == message


def test_as_given_where_all_are_frozen() -> None:
    message = (
        "trainable is 'as_given', but no parameter of the model requires grad; expected one that does, or 'all', or "
        "names"
    )
    assert refused(Layers().requires_grad_(False), "as_given") == message


@pytest.mark.parametrize("requested", ["head", "", b"all", [], (), [3], ["head.*", None], 3, {"head.*"}, torch.ones(2)])
def test_other_values(requested: Any) -> None:
    with pytest.raises(ConfigError, match=f"^trainable is {re.escape(repr(requested))}; expected None, 'all', 'as_g"):
        check_trainable(requested)


class Low(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_parameter(name, nn.Parameter(torch.ones(2)))


@pytest.mark.parametrize("name", ["lora_A", "lora_B", "ia3_l", "prompt_encoder", "vera_lambda_b"])
def test_adapters_are_known_by_their_names(name: str) -> None:
    assert has_adapters(Low(name))
    assert not has_adapters(Low(f"x{name}"))


@pytest.mark.parametrize("name", ["adapter", "adapters", "down_adapter"])
def test_the_word_adapter_counts_anywhere_in_a_name(name: str) -> None:
    assert has_adapters(Low(name))
    assert not has_adapters(Low("adapt"))


def test_adapters_are_known_by_the_package_of_a_module() -> None:
    tuned = type("Tuned", (nn.Linear,), {"__module__": "peft.tuners.other"})
    other = type("Tuned", (nn.Linear,), {"__module__": "peftly"})
    assert has_adapters(nn.Sequential(tuned(2, 2)))
    assert not has_adapters(nn.Sequential(other(2, 2)))


def test_without_a_request_adapters_and_some_frozen_ones_decide() -> None:
    assert choose_trainable(frozen(Low("lora_A"), "linear"), None).mode == "as_given"
    assert choose_trainable(Low("lora_A"), None).mode == "all"
    assert choose_trainable(Low("lora_A").requires_grad_(False), None).mode == "all"
    assert choose_trainable(frozen(Low("scale"), "linear"), None).mode == "all"


def test_integers_are_never_trained() -> None:
    model = Low("lora_A")
    model.packed = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    assert choose_trainable(model, None).names == choose_trainable(frozen(model, "linear", "packed"), None).names | {
        "linear.weight",
        "linear.bias",
    }
    assert "which matches no parameter" in refused(model, ["packed"])


def test_changed_frozen_names_what_was_frozen_and_differs() -> None:
    given = frozen(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "0")
    returned = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    returned.load_state_dict(given.state_dict())
    assert changed_frozen(given, returned) == []
    with torch.no_grad():
        for parameter in (returned[0].bias, returned[1].weight):
            parameter += torch.tensor(1e-7)
    assert changed_frozen(given, returned) == ["0.bias"]


def test_a_parameter_of_the_model_itself_and_its_buffer() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.head = nn.Linear(2, 2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.scale)

    assert choose_trainable(Own(), ["head.*"]).fixed == ()  # the model has a trained parameter
    assert choose_trainable(nn.Sequential(Own(), nn.Linear(2, 2)), ["1.*"]).fixed == ("0",)
