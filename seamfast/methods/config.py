"""What all method configs share: validation, and the way to and from dicts and TOML."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from seamfast.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - CI runs 3.11
    import tomli as tomllib

C = TypeVar("C", bound="MethodConfig")

_LARGEST = 1e9
"""Of any fraction: products of several must stay within float32."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings that every method has.

    Attributes:
        batch_size: samples a step, 1 or more; a smaller set comes more than once in it.
        holdout_fraction: share of each class that is never trained on and decides when to stop, in (0, 1).
        accuracy_budget: how far held-out accuracy may end below that of the model as received, in [0, 1]. Where one
            held-out sample weighs more than the budget, one sample may be lost.
        crop_pad: reflect-pad by so many pixels and crop at random; 0 for none. Needs a set of uint8 pixels.
        flip: mirror left and right at random. Needs a set of uint8 pixels.
    """

    batch_size: int = 128
    holdout_fraction: float = 0.2
    accuracy_budget: float = 0.03
    crop_pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        # Types first: a config may come from a file, where "0.1" and true are easily written for 0.1 and 1.
        for f in fields(self):
            check_type(f.name, str(f.type), getattr(self, f.name))
        self.check("batch_size", self.batch_size >= 1, "an integer of at least 1")
        self.check("holdout_fraction", 0 < self.holdout_fraction < 1, "a number in (0, 1)")
        self.check("accuracy_budget", 0 <= self.accuracy_budget <= 1, "a number in [0, 1]")
        self.check("crop_pad", self.crop_pad >= 0, "an integer of at least 0")

    def check(self, name: str, ok: bool, expected: str) -> None:
        """Raise ``ConfigError`` unless ``ok``: ``batch_size is 0; expected an integer of at least 1``."""
        if not ok:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    def to_dict(self) -> dict[str, Any]:
        """All fields by name; tuples as lists, so that it is what JSON and TOML give back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """The config with these fields; the others keep their defaults. Unknown names are a ``ConfigError``."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"{cls.__name__} has no {', '.join(unknown)}; expected some of {', '.join(sorted(known))}"
            )
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)

    def to_toml(self) -> str:
        """The fields as TOML, one a line; a field that is ``None`` is left out, as TOML has no null."""
        # JSON writes numbers, strings, booleans and arrays of them as TOML does.
        return "".join(f"{k} = {json.dumps(v)}\n" for k, v in self.to_dict().items() if v is not None)

    @classmethod
    def from_toml(cls: type[C], text: str) -> C:
        """``from_dict`` of a TOML document."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"the config is not TOML: {error}") from error
        return cls.from_dict(values)


def check_type(name: str, declared: str, value: Any) -> None:
    """Raise ``ConfigError`` unless ``value`` is as declared.

    ``declared`` is the annotation's text: ``int``, ``float``, ``bool``, ``str``, ``tuple[float, ...]``.
    """
    kind = declared.removesuffix(" | None")
    if value is None and kind != declared:
        return
    values = value if kind.startswith("tuple") else (value,)
    if kind.startswith("tuple") and not isinstance(value, tuple):
        raise ConfigError(f"{name} is {value!r}; expected a tuple of numbers")
    inner = kind[len("tuple[") :].split(",")[0] if kind.startswith("tuple") else kind
    for item in values:
        wrong_bool = isinstance(item, bool) != (inner == "bool")
        accepted: tuple[type, ...] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[inner]
        if wrong_bool or not isinstance(item, accepted) or (isinstance(item, float) and not abs(item) < float("inf")):
            raise ConfigError(f"{name} is {value!r}; expected {declared}")
        if inner == "float" and isinstance(item, (int, float)) and abs(item) > _LARGEST:
            raise ConfigError(f"{name} is {value!r}; expected at most {_LARGEST:g} in size")
