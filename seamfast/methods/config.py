"""Settings that all methods share: validation, the way to and from dicts and TOML, and what the engine asks of them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from seamfast.checks import check_declared
from seamfast.errors import ConfigError
from seamfast.modalities import Augmentation, Modality

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - CI runs 3.11
    import tomli as tomllib

C = TypeVar("C", bound="MethodConfig")

# What a setting is to the engine. REQUIRED: an error where a kind of sample cannot have it, as the caller asked for it.
# OPTIONAL: left out there, and named in the report. LENGTH: steps of a phase, which a short run cuts.
# EXTRA: followed where a kind of sample has it, and nothing is missing elsewhere.
REQUIRED, OPTIONAL, EXTRA, LENGTH = ({"role": role} for role in ("required", "optional", "extra", "length"))


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings that every method has.

    Attributes:
        batch_size: samples a step, 1 or more; a smaller set comes more than once in it.
        holdout_fraction: share of each class that is never trained on and decides when to stop, in (0, 1).
        accuracy_budget: how far held-out accuracy may end below that of the model as received, in [0, 1]. Where one
            held-out sample weighs more than the budget, one sample may be lost.
        accuracy_limit: how far the one-sided 95 % upper bound on that loss may reach, in [0, 1]; a larger
            ``accuracy_budget`` takes its place. A result that lost more is accepted with a probability of at most 5 %.
        crop_pad: reflect-pad images by so many pixels and crop at random; 0 for none.
        flip: mirror images left and right at random.
        prune: hold at a constant, in the end, what no answer to a clean sample depends on; see ``Run.prune_unused``.
    """

    batch_size: int = 128
    holdout_fraction: float = 0.2
    accuracy_budget: float = 0.03
    accuracy_limit: float = 0.06
    crop_pad: int = field(default=0, metadata=REQUIRED)
    flip: bool = field(default=False, metadata=REQUIRED)
    prune: bool = True

    def __post_init__(self) -> None:
        for f in fields(self):  # types first
            check_declared(f.name, str(f.type), getattr(self, f.name))
        self.check("batch_size", self.batch_size >= 1, "an integer of at least 1")
        self.check("holdout_fraction", 0 < self.holdout_fraction < 1, "a number in (0, 1)")
        self.check("accuracy_budget", 0 <= self.accuracy_budget <= 1, "a number in [0, 1]")
        self.check("accuracy_limit", 0 <= self.accuracy_limit <= 1, "a number in [0, 1]")
        self.check("crop_pad", self.crop_pad >= 0, "an integer of at least 0")

    def check(self, name: str, ok: bool, expected: str) -> None:
        """Raise ``ConfigError`` unless ``ok``: ``batch_size is 0; expected an integer of at least 1``."""
        if not ok:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    def check_each(self, names: tuple[str, ...], low: float, expected: str, *, above: bool = False) -> None:
        """``check`` that each field is at least ``low``, or above it."""
        for name in names:
            value = getattr(self, name)
            self.check(name, value > low if above else value >= low, expected)

    # What the engine asks.

    @property
    def forgotten_share(self) -> float:
        """Share of the recovery part that the forgetting step sees, in (0, 1]."""
        return 1.0

    def augmentation(self, seed: int) -> Augmentation:
        """Of the training samples."""
        return Augmentation(self.crop_pad, self.flip, seed)

    def check_modality(self, modality: Modality) -> tuple[str, ...]:
        """The optional settings that such samples cannot have: they are left out.

        Raises:
            ConfigError: for a required one: ``crop_pad is 8; expected less than the image side 8``.
        """
        left_out = []
        for f in fields(self):
            role, value = f.metadata.get("role"), getattr(self, f.name)
            reason = modality.why_not(f.name, value) if role in ("required", "optional") and value else None
            if reason is not None and role == "required":
                raise ConfigError(f"{f.name} is {value!r}; {reason}")
            left_out += [f.name] if reason is not None else []
        return tuple(left_out)

    def shortened(self: C, n_steps: int) -> C:
        """The same run as one attempt whose phases have at most ``n_steps``."""
        lengths = [f.name for f in fields(self) if f.metadata.get("role") == "length"]
        return replace(self, **{name: min(getattr(self, name), n_steps) for name in lengths})

    # To and from files.

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
