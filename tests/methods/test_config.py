"""Method configs: what they refuse, and the way to dicts and TOML and back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamfast import FineTuneConfig, SeamConfig, SuperFineTuneConfig
from seamfast.errors import ConfigError, InputError
from seamfast.methods import METHODS, MethodConfig, config_class

CLASSES = [config for _, config in METHODS.values()]
# Settings whose range the strategies below must keep; all others follow from their type.
IN_UNIT = {"accuracy_budget", "distillation", "disturbance", "margin", "mixing", "plain_end"}
BELOW_1 = {"momentum"}
WITHIN_0_AND_1 = {"holdout_fraction", "forget_fraction", "recover_until"}


def raises(message: str) -> Any:
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


def values_of(cls: type[MethodConfig]) -> st.SearchStrategy[dict[str, Any]]:
    """Some settings of ``cls``, all in range."""
    positive = st.floats(1e-30, 1e6)
    by_name: dict[str, st.SearchStrategy[Any]] = {
        "optimizer": st.sampled_from(["adam", "relative_adam"]),
        "recover_schedule": st.sampled_from(["cosine", "constant"]),
        "strengths": st.lists(positive | st.integers(1, 9), min_size=1, max_size=4).map(tuple),
        "occlusions": st.integers(0, 64),
        "recover_betas": st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
        "forget_growth": st.floats(1, 1.25),
        "forget_max_steps": st.integers(1, 60),  # at which such a growth is not a million yet
        "radius": st.floats(1e-30, 1000) | st.integers(1, 1000),
    }
    for f in dataclasses.fields(cls):
        if f.name in by_name:
            pass
        elif f.name in IN_UNIT:
            by_name[f.name] = st.floats(0, 1)
        elif f.name in BELOW_1:
            by_name[f.name] = st.floats(0, 1, exclude_max=True)
        elif f.name in WITHIN_0_AND_1:
            by_name[f.name] = st.floats(0, 1, exclude_min=True, exclude_max=True)
        else:
            kinds = {"int": st.integers(1, 2**40), "float": positive | st.integers(1, 100), "bool": st.booleans()}
            by_name[f.name] = kinds[str(f.type).removesuffix(" | None")]
        if str(f.type).endswith("| None"):
            by_name[f.name] |= st.none()
    names = {f.name for f in dataclasses.fields(cls)}
    return st.fixed_dictionaries({}, optional={k: v for k, v in by_name.items() if k in names})


# To and fro.


@pytest.mark.parametrize("cls", CLASSES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_config_survives_a_dict_json_and_toml(cls: type[MethodConfig], data: st.DataObject) -> None:
    config = cls(**data.draw(values_of(cls)))
    assert cls.from_dict(config.to_dict()) == config
    assert cls.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
    assert cls.from_toml(config.to_toml()) == config


@pytest.mark.parametrize(
    "config",
    [SeamConfig.authors_cifar10(), SeamConfig.authors_trojai(), *(c() for c in CLASSES), SeamConfig.preset("thorough")],
)
def test_presets_and_defaults_survive_too(config: MethodConfig) -> None:
    assert type(config).from_toml(config.to_toml()) == config
    assert type(config).from_dict(config.to_dict()) == config


def test_a_dict_holds_all_settings_as_plain_values() -> None:
    values = SeamConfig(strengths=(1.0, 0.5)).to_dict()
    assert list(values) == [f.name for f in dataclasses.fields(SeamConfig)]
    assert values["strengths"] == [1.0, 0.5]
    assert values["recover_until"] is None
    assert {type(v) for v in values.values()} <= {int, float, bool, str, list, type(None)}


def test_toml_as_a_person_writes_it() -> None:
    text = """
    # gentle
    batch_size = 32
    strengths = [0.5, 0.25]
    flip = true
    recover_until = 0.9
    """
    config = SeamConfig.from_toml(text)
    assert config == SeamConfig(batch_size=32, strengths=(0.5, 0.25), flip=True, recover_until=0.9)
    assert SeamConfig.from_toml("") == SeamConfig()
    assert "recover_until" not in SeamConfig().to_toml()
    assert "recover_until = 0.9\n" in config.to_toml()


def test_what_is_no_toml() -> None:
    with pytest.raises(ConfigError, match=r"^the config is not TOML: .+"):
        SeamConfig.from_toml("batch_size 32")


def test_unknown_settings_are_named_with_those_that_there_are() -> None:
    known = "accuracy_budget, batch_size, crop_pad, eval_every, flip, holdout_fraction, max_steps, momentum, rate, "
    with raises(f"FineTuneConfig has no learning_rate, steps; expected some of {known}weight_decay"):
        FineTuneConfig.from_dict({"steps": 3, "rate": 0.1, "learning_rate": 0.1})
    with pytest.raises(ConfigError, match=r"^SeamConfig has no rate; expected some of "):
        SeamConfig.from_toml("rate = 0.1")


# Types.

COMMON = {
    "batch_size": "int", "holdout_fraction": "float", "accuracy_budget": "float", "crop_pad": "int", "flip": "bool"
}  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("batch_size", True),
        ("batch_size", 32.0),
        ("batch_size", "32"),
        ("batch_size", None),
        ("batch_size", [32]),
        ("holdout_fraction", "0.1"),
        ("holdout_fraction", True),
        ("holdout_fraction", math.nan),
        ("accuracy_budget", math.inf),
        ("accuracy_budget", False),
        ("crop_pad", 1.5),
        ("flip", 1),
        ("flip", "true"),
        ("flip", None),
    ],
)
def test_types_are_not_guessed(cls: type[MethodConfig], name: str, wrong: Any) -> None:
    with raises(f"{name} is {wrong!r}; expected {COMMON[name]}"):
        cls(**{name: wrong})


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_is_checked_for_its_type(cls: type[MethodConfig]) -> None:
    for f in dataclasses.fields(cls):
        with pytest.raises(ConfigError, match=f"^{f.name} is "):
            cls(**{f.name: object()})
        if f.type != "bool":
            with pytest.raises(ConfigError, match=f"^{f.name} is True; expected "):
                cls(**{f.name: True})


def test_integers_will_do_for_fractions() -> None:
    assert FineTuneConfig(rate=1, momentum=0).rate == 1
    assert SeamConfig(strengths=(1, 0.5)) == SeamConfig(strengths=(1.0, 0.5))


@pytest.mark.parametrize("wrong", [[1.0], 1.0, "1", None])
def test_several_numbers_come_as_a_tuple(wrong: Any) -> None:
    with raises(f"strengths is {wrong!r}; expected a tuple of numbers"):
        SeamConfig(strengths=wrong)


@pytest.mark.parametrize("wrong", [(1.0, "0.5"), (True,), (math.nan,)])
def test_each_of_several_numbers_is_checked(wrong: Any) -> None:
    with raises(f"strengths is {wrong!r}; expected tuple[float, ...]"):
        SeamConfig(strengths=wrong)


# Ranges.

STEPS, POSITIVE, NOT_NEGATIVE = "an integer of at least 1", "a number above 0", "at least 0"
RANGES: list[tuple[type[MethodConfig], str, list[Any], list[Any], str]] = [
    # class, setting, too far, just within, wanted
    *((cls, "batch_size", [0, -1], [1], STEPS) for cls in CLASSES),
    *((cls, "holdout_fraction", [0, 1, -0.1, 1.5], [1e-9, 0.999], "a number in (0, 1)") for cls in CLASSES),
    *((cls, "accuracy_budget", [-0.01, 1.01], [0, 1], "a number in [0, 1]") for cls in CLASSES),
    *((cls, "crop_pad", [-1], [0], "an integer of at least 0") for cls in CLASSES),
    (SeamConfig, "optimizer", ["sgd", ""], ["adam", "relative_adam"], "'relative_adam' or 'adam'"),
    (SeamConfig, "strengths", [(), (1.0, 0), (-1.0,)], [(1e-9,)], "at least one number, all above 0"),
    (SeamConfig, "forget_fraction", [0, 1.01], [1, 1e-9], "a number in (0, 1]"),
    *((SeamConfig, name, [0, -1.0], [1e-9], POSITIVE) for name in ("forget_rate", "recover_rate", "forget_until")),
    (SeamConfig, "temperature", [0, -2], [1e-9], POSITIVE),
    *((SeamConfig, f"{phase}_weight_decay", [-1e-9], [0], NOT_NEGATIVE) for phase in ("forget", "recover")),
    (SeamConfig, "forget_max_steps", [-1], [1], NOT_NEGATIVE),
    (SeamConfig, "forget_growth", [0.99, 2.01, 0, -1.5], [1, 1.4], "a number in [1, 2]"),
    (SeamConfig, "radius", [0, -0.1, 1000.1], [1e-9, 1000, None], "None or a number in (0, 1000]"),
    (SeamConfig, "occlusions", [-1, 65], [0, 64], "an integer in [0, 64]"),
    *((SeamConfig, f"{phase}_patience", [0], [1], STEPS) for phase in ("forget", "recover")),
    *((SeamConfig, f"{phase}_eval_every", [0], [1], STEPS) for phase in ("forget", "recover")),
    (SeamConfig, "recover_max_steps", [0], [1], STEPS),
    (SeamConfig, "recover_betas", [(0.9,), (0.9, 0.9, 0.9), (1, 0.5), (0.5, -0.1)], [(0, 0)], "two numbers in [0, 1)"),
    (SeamConfig, "recover_schedule", ["linear"], ["constant"], "'cosine' or 'constant'"),
    (SeamConfig, "recover_until", [0, 1], [0.999, None], "None or a number in (0, 1)"),
    *(
        (SeamConfig, name, [-0.1, 1.1], [0, 1], "a number in [0, 1]")
        for name in ("distillation", "margin", "mixing", "disturbance", "plain_end")
    ),
    (FineTuneConfig, "rate", [0, -1], [1e-9], POSITIVE),
    *((SuperFineTuneConfig, f"{name}_rate", [0], [1e-9], POSITIVE) for name in ("base", "forget", "recover")),
    *((cls, "momentum", [-0.1, 1], [0, 0.999], "a number in [0, 1)") for cls in (FineTuneConfig, SuperFineTuneConfig)),
    *((cls, "weight_decay", [-0.1], [0], NOT_NEGATIVE) for cls in (FineTuneConfig, SuperFineTuneConfig)),
    *((FineTuneConfig, name, [0], [1], STEPS) for name in ("max_steps", "eval_every")),
    *((SuperFineTuneConfig, f, [0], [1], STEPS) for f in ("forget_steps", "recover_steps", "n_cycles", "eval_every")),
]


@pytest.mark.parametrize(("cls", "name", "wrong", "right", "wanted"), RANGES, ids=lambda v: getattr(v, "__name__", v))
def test_ranges(cls: type[MethodConfig], name: str, wrong: list[Any], right: list[Any], wanted: str) -> None:
    for value in wrong:
        with raises(f"{name} is {value!r}; expected {wanted}"):
            cls(**{name: value})
    for value in right:
        assert getattr(cls(**{name: value}), name) == value


@pytest.mark.parametrize("wrong", [1e10, -1e300, 10**400])
def test_no_number_is_so_large_that_products_overflow(wrong: Any) -> None:
    with raises(f"forget_rate is {wrong!r}; expected at most 1e+09 in size"):
        SeamConfig(forget_rate=wrong)
    with raises(f"strengths is {(1.0, wrong)!r}; expected at most 1e+09 in size"):
        SeamConfig(strengths=(1.0, wrong))
    assert SeamConfig(forget_rate=1e9, strengths=(1e9,)).forget_rate == 1e9


@pytest.mark.parametrize(("growth", "steps"), [(2, 19), (1.2, 75), (1.4, 41)])
def test_rates_grow_to_a_million_times_at_most(growth: float, steps: int) -> None:
    assert growth**steps <= 1e6 < growth ** (steps + 1)
    assert SeamConfig(forget_growth=growth, forget_max_steps=steps).forget_max_steps == steps
    with raises(f"forget_growth is {growth}; expected a growth of at most a million over forget_max_steps"):
        SeamConfig(forget_growth=growth, forget_max_steps=steps + 1)
    assert SeamConfig(forget_growth=1, forget_max_steps=2**40).forget_growth == 1


def test_who_does_not_forget_gives_a_radius_where_one_is_needed() -> None:
    with raises("forget_max_steps is 0; expected at least 1, or a radius"):
        SeamConfig(forget_max_steps=0)
    assert SeamConfig(forget_max_steps=0, radius=0.1).radius == 0.1
    assert SeamConfig(forget_max_steps=0, optimizer="adam").radius is None


def test_every_setting_with_a_range_is_in_the_list_above() -> None:
    for cls in CLASSES:
        listed = {name for c, name, *_ in RANGES if c is cls}
        assert listed == {f.name for f in dataclasses.fields(cls) if f.type != "bool"}


def test_a_config_read_from_a_file_is_checked_alike() -> None:
    with raises("batch_size is 0; expected an integer of at least 1"):
        FineTuneConfig.from_toml("batch_size = 0")
    with raises("rate is '0.1'; expected float"):
        FineTuneConfig.from_dict({"rate": "0.1"})


# Presets.


def test_presets_by_name() -> None:
    fast, balanced, thorough = (SeamConfig.preset(name) for name in ("fast", "balanced", "thorough"))
    assert balanced == SeamConfig()
    assert balanced.strengths == (1.0,)
    assert fast == dataclasses.replace(balanced, recover_max_steps=100)
    assert thorough == dataclasses.replace(balanced, recover_max_steps=900, strengths=(1.0, 0.5))
    assert fast.recover_max_steps < balanced.recover_max_steps < thorough.recover_max_steps


@pytest.mark.parametrize("wrong", ["slow", "Fast", "", "authors_cifar10", None, 1, ["fast"]])
def test_unknown_presets_are_refused_with_those_that_there_are(wrong: Any) -> None:
    with raises(f"preset is {wrong!r}; expected one of fast, balanced, thorough"):
        SeamConfig.preset(wrong)


# What it is.


@pytest.mark.parametrize("cls", CLASSES)
def test_configs_are_frozen_and_compare_by_value(cls: type[MethodConfig]) -> None:
    config = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.batch_size = 3  # type: ignore[misc]
    assert config == cls()
    assert hash(config) == hash(cls())
    assert config != cls(batch_size=7)
    with pytest.raises(TypeError):
        cls(32)  # type: ignore[misc, call-arg]


def test_config_errors_are_input_errors_and_value_errors() -> None:
    with pytest.raises(InputError):
        SeamConfig(batch_size=0)
    with pytest.raises(ValueError):
        SeamConfig(batch_size=0)


def test_methods_by_name() -> None:
    assert [config_class(name) for name in ("seam", "fine_tune", "super_fine_tune")] == CLASSES
    for wrong in ("sgd", "SEAM", "", None, ["seam"]):
        with raises(f"method is {wrong!r}; expected one of seam, fine_tune, super_fine_tune"):
            config_class(wrong)  # type: ignore[arg-type]
