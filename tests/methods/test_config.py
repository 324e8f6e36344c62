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
from seamfast.methods import METHODS, MethodConfig, SeamAuthorsConfig, config_class
from seamfast.modalities import Modality

CLASSES = [config for _, config in METHODS.values()]
# Settings whose range the strategies below must keep; all others follow from their type.
IN_UNIT = {
    "accuracy_budget", "accuracy_limit", "allowance", "calibration", "distillation", "disturbance", "margin", "mixing",
    "plain_end", "waves",
}  # fmt: skip
BELOW_1 = {"momentum"}
WITHIN_0_AND_1 = {"holdout_fraction", "forget_fraction", "recover_until"}


def raises(message: str) -> Any:
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


def values_of(cls: type[MethodConfig]) -> st.SearchStrategy[dict[str, Any]]:
    """Some settings of ``cls``, all in range."""
    positive = st.floats(1e-30, 1e6)
    by_name: dict[str, st.SearchStrategy[Any]] = {
        "strengths": st.lists(positive | st.integers(1, 9), min_size=1, max_size=4).map(tuple),
        "occlusions": st.integers(0, 64),
        "recover_betas": st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
        "forget_growth": st.floats(1, 1.25),
        "forget_max_steps": st.integers(1, 60),  # at which such a growth is not a million yet
        "radius": st.floats(1e-30, 1000) | st.integers(1, 1000),
        "radius_limit": st.floats(1e-30, 1000) | st.integers(1, 1000),
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
    [*(c() for c in CLASSES), SeamAuthorsConfig.trojai(), SeamConfig.preset("thorough")],
)
def test_presets_and_defaults_survive_too(config: MethodConfig) -> None:
    assert type(config).from_toml(config.to_toml()) == config
    assert type(config).from_dict(config.to_dict()) == config


def test_a_dict_holds_all_settings_as_plain_values() -> None:
    values = SeamConfig(strengths=(1.0, 0.5)).to_dict()
    assert list(values) == [f.name for f in dataclasses.fields(SeamConfig)]
    assert values["strengths"] == [1.0, 0.5]
    assert values["radius"] is None
    assert {type(v) for v in values.values()} <= {int, float, bool, str, list, type(None)}


def test_toml_as_a_person_writes_it() -> None:
    text = """
    # gentle
    batch_size = 32
    strengths = [0.5, 0.25]
    flip = true
    radius = 0.9
    invariances = false
    dropout = true
    recover_easy_steps = 40
    allowance = 0
    """
    config = SeamConfig.from_toml(text)
    assert config == SeamConfig(
        batch_size=32, strengths=(0.5, 0.25), flip=True, radius=0.9, invariances=False, dropout=True,
        recover_easy_steps=40, allowance=0.0,
    )  # fmt: skip
    assert SeamConfig.from_toml("") == SeamConfig()
    assert "radius" not in SeamConfig().to_toml()
    assert "radius = 0.9\n" in config.to_toml()


def test_what_is_no_toml() -> None:
    with pytest.raises(ConfigError, match=r"^the config is not TOML: .+"):
        SeamConfig.from_toml("batch_size 32")


def test_unknown_settings_are_named_with_those_that_there_are() -> None:
    known = "accuracy_budget, accuracy_limit, batch_size, crop_pad, eval_every, flip, holdout_fraction, max_steps, "
    known += "momentum, prune, rate, weight_decay"
    with raises(f"FineTuneConfig has no learning_rate, steps; expected some of {known}"):
        FineTuneConfig.from_dict({"steps": 3, "rate": 0.1, "learning_rate": 0.1})
    with pytest.raises(ConfigError, match=r"^SeamConfig has no rate; expected some of "):
        SeamConfig.from_toml("rate = 0.1")


# Types.


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_is_checked_for_its_type(cls: type[MethodConfig]) -> None:
    for f in dataclasses.fields(cls):
        for wrong in (object(), "1", *([1] if f.type == "bool" else [True, math.nan])):
            with pytest.raises(ConfigError, match=f"^{f.name} is {re.escape(repr(wrong))}; expected "):
                cls(**{f.name: wrong})


def test_each_of_several_numbers_is_checked_and_integers_will_do_for_fractions() -> None:
    for wrong, wanted in (([1.0], "a tuple of numbers"), ((1.0, "0.5"), "tuple[float, ...]")):
        with raises(f"strengths is {wrong!r}; expected {wanted}"):
            SeamConfig(strengths=wrong)  # type: ignore[arg-type]
    with raises("forget_rate is 10000000000.0; expected at most 1e+09 in size"):
        SeamConfig(forget_rate=1e10)
    assert SeamConfig(forget_rate=1e9, strengths=(1, 0.5)) == SeamConfig(forget_rate=1e9, strengths=(1.0, 0.5))
    assert FineTuneConfig(rate=1, momentum=0).rate == 1


# Ranges.

STEPS, POSITIVE, NOT_NEGATIVE = "an integer of at least 1", "a number above 0", "at least 0"
RANGES: list[tuple[type[MethodConfig], str, list[Any], list[Any], str]] = [
    # class, setting, too far, just within, wanted
    *((cls, "batch_size", [0, -1], [1], STEPS) for cls in CLASSES),
    *((cls, "holdout_fraction", [0, 1, -0.1, 1.5], [1e-9, 0.999], "a number in (0, 1)") for cls in CLASSES),
    *((cls, "accuracy_budget", [-0.01, 1.01], [0, 1], "a number in [0, 1]") for cls in CLASSES),
    *((cls, "accuracy_limit", [-0.01, 1.01], [0, 1], "a number in [0, 1]") for cls in CLASSES),
    *((cls, "crop_pad", [-1], [0], "an integer of at least 0") for cls in CLASSES),
    (SeamConfig, "strengths", [(), (1.0, 0), (-1.0,)], [(1e-9,)], "at least one number, all above 0"),
    (SeamAuthorsConfig, "forget_fraction", [0, 1.01], [1, 1e-9], "a number in (0, 1]"),
    *(
        (cls, f"{phase}_rate", [0, -1.0], [1e-9], POSITIVE)
        for cls in (SeamConfig, SeamAuthorsConfig)
        for phase in ("forget", "recover")
    ),
    (SeamConfig, "forget_until", [-1e-9], [0], NOT_NEGATIVE),
    (SeamAuthorsConfig, "forget_until", [0, -1.0], [1e-9], POSITIVE),
    (SeamConfig, "temperature", [0, -2], [1e-9], POSITIVE),
    *((SeamAuthorsConfig, f"{phase}_weight_decay", [-1e-9], [0], NOT_NEGATIVE) for phase in ("forget", "recover")),
    (SeamConfig, "forget_max_steps", [-1], [1], NOT_NEGATIVE),
    (SeamConfig, "forget_growth", [0.99, 2.01, 0, -1.5], [1, 1.4], "a number in [1, 2]"),
    (SeamConfig, "radius", [0, -0.1, 1000.1], [1e-9, 1000, None], "None or a number in (0, 1000]"),
    (SeamConfig, "radius_limit", [0, -0.1, 1000.1], [1e-9, 1000, None], "None or a number in (0, 1000]"),
    (SeamConfig, "occlusions", [-1, 65], [0, 64], "an integer in [0, 64]"),
    (SeamConfig, "searches", [-1], [0, 12], "an integer of at least 0"),
    *((SeamConfig, f"{phase}_eval_every", [0], [1], STEPS) for phase in ("forget", "recover")),
    *(
        (SeamAuthorsConfig, f"{phase}_{what}", [0], [1], STEPS)
        for phase in ("forget", "recover")
        for what in ("patience", "max_epochs")
    ),
    *((SeamConfig, f"recover_{which}_steps", [0, -1], [1, 10**6], STEPS) for which in ("max", "easy")),
    (
        SeamAuthorsConfig,
        "recover_betas",
        [(0.9,), (0.9, 0.9, 0.9), (1, 0.5), (0.5, -0.1)],
        [(0, 0)],
        "two numbers in [0, 1)",
    ),
    (SeamAuthorsConfig, "recover_until", [0, 1], [0.999, 1e-9], "a number in (0, 1)"),
    *(
        (SeamConfig, name, [-0.1, 1.1], [0, 1], "a number in [0, 1]")
        for name in (
            "distillation",
            "calibration",
            "allowance",
            "margin",
            "mixing",
            "disturbance",
            "waves",
            "plain_end",
        )
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


@pytest.mark.parametrize(("growth", "steps"), [(2, 19), (1.2, 75), (1.4, 41)])
def test_rates_grow_to_a_million_times_at_most(growth: float, steps: int) -> None:
    assert growth**steps <= 1e6 < growth ** (steps + 1)
    assert SeamConfig(forget_growth=growth, forget_max_steps=steps).forget_max_steps == steps
    with raises(f"forget_growth is {growth}; expected a growth of at most a million over forget_max_steps"):
        SeamConfig(forget_growth=growth, forget_max_steps=steps + 1)
    assert SeamConfig(forget_growth=1, forget_max_steps=2**40).forget_growth == 1


def test_without_forgetting_a_radius_is_needed() -> None:
    with raises("forget_max_steps is 0; expected at least 1, or a radius"):
        SeamConfig(forget_max_steps=0)
    assert SeamConfig(forget_max_steps=0, radius=0.1).radius == 0.1


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
    assert fast == dataclasses.replace(balanced, recover_max_steps=100, mixing=0.0)
    assert thorough == dataclasses.replace(
        balanced, recover_max_steps=900, recover_easy_steps=180, strengths=(1.0, 0.5)
    )
    assert fast.recover_max_steps < balanced.recover_max_steps < thorough.recover_max_steps


@pytest.mark.parametrize("wrong", ["slow", "Fast", "", "authors_cifar10", None, 1, ["fast"]])
def test_unknown_presets_are_refused_with_those_that_there_are(wrong: Any) -> None:
    with raises(f"preset is {wrong!r}; expected one of fast, balanced, thorough"):
        SeamConfig.preset(wrong)


# Settings of older files.

OLD = {
    "optimizer": ("relative_adam", "adam"), "forget_fraction": (1.0, 0.01), "forget_weight_decay": (0.0, 5e-5),
    "forget_patience": (1, 10), "exclude_true": (True, False), "recover_weight_decay": (0.0, 5e-5),
    "recover_betas": ([0.9, 0.99], [0.5, 0.9]), "recover_schedule": ("cosine", "constant"),
    "recover_until": (None, 0.92), "recover_patience": (10, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_a_setting_that_seam_had_is_accepted_with_the_value_that_it_used(name: str) -> None:
    used, other = OLD[name]
    with pytest.warns(DeprecationWarning, match=f"^seam no longer has {name}; remove them$"):
        assert SeamConfig.from_dict({name: used, "batch_size": 32}) == SeamConfig(batch_size=32)
    with raises(f"{name} is {other!r}; expected {used!r}: other values are settings of 'seam_authors'"):
        SeamConfig.from_dict({name: other})
    with pytest.raises(TypeError):
        SeamConfig(**{name: used})


def test_a_file_of_all_settings_that_seam_had_is_read() -> None:
    text = SeamConfig(flip=True).to_toml() + "".join(
        f"{name} = {json.dumps(used)}\n" for name, (used, _) in OLD.items() if used is not None
    )
    with pytest.warns(DeprecationWarning, match=r"^seam no longer has optimizer, .*recover_patience; remove them$"):
        assert SeamConfig.from_toml(text) == SeamConfig(flip=True)


@pytest.mark.parametrize(("name", "made"), [("cifar10", SeamAuthorsConfig), ("trojai", SeamAuthorsConfig.trojai)])
def test_the_authors_settings_of_seam_are_those_of_the_method_of_their_own(name: str, made: Any) -> None:
    instead = f"SeamAuthorsConfig{'.trojai' if name == 'trojai' else ''}()"
    message = f"the authors' settings are a method of their own: use method='seam_authors' with {instead}"
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(message)}$"):
        assert getattr(SeamConfig, f"authors_{name}")(n_recovery=100, batch_size=16) == made(batch_size=16)


# How a setting depends on the samples.


class Picky(Modality):
    """Cannot have the settings that are named."""

    name = "picky"

    def __init__(self, *without: str) -> None:
        self.without = without

    def why_not(self, setting: str, value: Any) -> str | None:
        return f"there is no {setting}" if setting in self.without else None


def test_what_samples_cannot_have_is_left_out_if_optional_and_refused_if_required() -> None:
    every = Picky(*(f.name for f in dataclasses.fields(SeamConfig)))
    assert SeamConfig().check_modality(every) == ("invariances", "occlusions", "disturbance", "mixing", "waves")
    none = SeamConfig(invariances=False, mixing=0.0, occlusions=0, disturbance=0.0, waves=0.0)
    assert none.check_modality(every) == ()
    assert SeamConfig().check_modality(Picky("mixing")) == ("mixing",)
    for cls in CLASSES:
        for name, value in (("crop_pad", 4), ("flip", True)):
            with raises(f"{name} is {value!r}; there is no {name}"):
                dataclasses.replace(cls(), **{name: value}).check_modality(Picky(name))
        assert cls(crop_pad=0, flip=False).check_modality(Picky("crop_pad", "flip")) == ()


@pytest.mark.parametrize(
    ("config", "short"),
    [
        (
            SeamConfig(strengths=(1.0, 0.5)),
            SeamConfig(forget_max_steps=3, recover_max_steps=3, recover_easy_steps=3),
        ),
        (
            SeamConfig(forget_max_steps=2, recover_easy_steps=1),
            SeamConfig(forget_max_steps=2, recover_max_steps=3, recover_easy_steps=1),
        ),
        (SeamAuthorsConfig(), SeamAuthorsConfig(forget_max_epochs=1, recover_max_epochs=1)),
        (FineTuneConfig(rate=0.5), FineTuneConfig(rate=0.5, max_steps=3)),
        (SuperFineTuneConfig(), SuperFineTuneConfig(forget_steps=3, recover_steps=3)),
    ],
)
def test_a_short_run_is_one_attempt_of_few_steps(config: MethodConfig, short: MethodConfig) -> None:
    assert config.shortened(3) == short


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
    assert [config_class(name) for name in ("seam", "seam_authors", "fine_tune", "super_fine_tune")] == CLASSES
    for wrong in ("sgd", "SEAM", "", None, ["seam"]):
        with raises(f"method is {wrong!r}; expected one of seam, seam_authors, fine_tune, super_fine_tune"):
            config_class(wrong)  # type: ignore[arg-type]
