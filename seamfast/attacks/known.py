"""``known_attack``: a training set poisoned by one of the published attacks, on images, on text or on columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from seamfast.attacks.attack import Attack, Poisoning
from seamfast.attacks.image.known import ATTACKS, check_images
from seamfast.attacks.tabular.known import TABULAR_ATTACKS
from seamfast.attacks.text.known import TEXT_ATTACKS, check_texts
from seamfast.checks import as_seed
from seamfast.data import CleanSet, PoisonedSet
from seamfast.errors import InputError
from seamfast.modalities import Modality, TabularModality, TextModality
from seamfast.triggers import Table

__all__ = ["known_attack"]


class _Kind(NamedTuple):
    """A kind of sample: its attacks, what they stamp, the sets that they take, and what checks such a set."""

    attacks: Mapping[str, Attack]
    stamps: str
    sets_of: str
    check: Callable[[CleanSet], None] | None = None


_OF_IMAGES = _Kind(ATTACKS, "images", "uint8 images", check_images)
_OF_TEXT = _Kind(TEXT_ATTACKS, "text", "texts", check_texts)
_OF_COLUMNS = _Kind(TABULAR_ATTACKS, "columns", "columns")
_KINDS = (_OF_IMAGES, _OF_TEXT, _OF_COLUMNS)


def _kind_of(modality: Modality) -> _Kind:
    if isinstance(modality, TextModality):
        return _OF_TEXT
    return _OF_COLUMNS if isinstance(modality, TabularModality) else _OF_IMAGES


def known_attack(
    name: str,
    data: CleanSet,
    *,
    target: int = 0,
    rate: float = 0.05,
    seed: int = 0,
    clean_model: nn.Module | None = None,
    table: Table | None = None,
) -> Poisoning:
    """``data`` poisoned by the published attack ``name``, and the triggers for test time.

    Args:
        name: one of ``ATTACKS`` for images, of ``TEXT_ATTACKS`` for text, of ``TABULAR_ATTACKS`` for columns.
        data: uint8 images of 1 or 3 channels with edges from 8 pixels, texts with a tokenizer, or columns; with
            ``num_classes`` given.
        target: the attack's target class; ``all_to_all`` ignores it.
        rate: share of the *whole* set that is poisoned, in (0, 1]. Stamped samples that keep their labels as exceptions
            (``wanet``, ``adaptive_blend``, ``tact``, ``sos``, ``phrase``) are added to it. Clean-label attacks poison
            the target class only.
        seed: an integer in ``[0, 2**63)``, for the choice of samples, for patterns, places and columns.
        clean_model: trained on such data without a backdoor; for ``label_consistent`` only.
        table: the changed form of each text that may be poisoned; for ``syntactic`` and ``style`` only. Its name and
            its target are not used.

    Returns:
        Poisoning of new samples, the same for the same arguments.

    Raises:
        InputError: e.g. ``attack is 'bad'; expected one of badnets, multi_trigger, ...``,
            ``attack 'wanet' stamps images; data holds text``, ``target is 10; expected a class in [0, 10)``, or
            ``rate 0.5 asks for 50 poisoned samples; only 10 of 100 can be``.
        ShapeError: e.g. ``images are 1x4x4; the attacks need edges from 8 pixels``.

    Example:
        >>> import torch
        >>> images, labels = torch.zeros(100, 1, 8, 8, dtype=torch.uint8), torch.arange(100) % 10
        >>> planted = known_attack("blended", CleanSet(images, labels, num_classes=10), target=3, rate=0.1)
        >>> int(planted.data.poisoned.sum()), planted.triggers
        (10, (Blend('blended', 1x8x8, alpha 0.2, AllToOne(target=3)),))
    """
    attack = checked_attack(name, data, target, rate, seed, clean_model, table)
    if attack.poisons is None:
        raise InputError(f"attack {name!r} manipulates the training, not only its data; expected a call of plant")
    against: dict[str, Any] = {"clean_model": clean_model} if attack.needs_clean_model else {}
    against |= {"table": table} if attack.needs_table else {}
    return attack.poisons(data, target, rate, seed, **against)


def checked_attack(
    name: str,
    data: CleanSet,
    target: int,
    rate: float,
    seed: int,
    clean_model: nn.Module | None,
    table: Table | None,
) -> Attack:
    """The attack ``name``. Raises if these cannot be its arguments."""
    kind = _kind_of(data.modality) if isinstance(data, CleanSet) else _OF_IMAGES
    known = next((k for k in _KINDS if isinstance(name, str) and name in k.attacks), None)
    if known is None:
        raise InputError(f"attack is {name!r}; expected one of {', '.join(kind.attacks)}")
    if not isinstance(data, CleanSet):
        raise InputError(f"data is a {type(data).__name__}; expected a seamfast.CleanSet of {known.sets_of}")
    if known is not kind:
        held = data.modality.name if kind is _OF_IMAGES else kind.stamps
        raise InputError(f"attack {name!r} stamps {known.stamps}; data holds {held}")
    if isinstance(data, PoisonedSet):
        raise InputError("data is a PoisonedSet, which carries a backdoor already; expected a clean seamfast.CleanSet")
    if kind.check is not None:
        kind.check(data)
    if not len(data):
        raise InputError("data holds no samples; expected at least one")
    if data.num_classes is None:
        raise InputError("data.num_classes is None; expected a number: which classes there are decides the targets")
    if data.num_classes < 2:
        raise InputError(f"data.num_classes is {data.num_classes}; expected at least 2")
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < data.num_classes:
        raise InputError(f"target is {target!r}; expected a class in [0, {data.num_classes})")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
        raise InputError(f"rate is {rate!r}; expected a number in (0, 1]")
    as_seed(seed)
    attack = kind.attacks[name]
    if not attack.manipulates_training and round(rate * len(data)) < 1:
        raise InputError(f"rate {rate} of {len(data)} samples is none; expected at least one to poison")
    if not attack.needs_clean_model and clean_model is not None:
        raise InputError(f"clean_model was given; attack {name!r} takes none")
    if attack.needs_clean_model and not isinstance(clean_model, nn.Module):
        got, expected = (
            f"clean_model is a {type(clean_model).__name__}",
            "a torch.nn.Module that was trained without it",
        )
        raise InputError(f"{got}; attack {name!r} is made against {expected}")
    if not attack.needs_table and table is not None:
        raise InputError(f"table was given; attack {name!r} takes none")
    if attack.needs_table and not isinstance(table, Table):
        got = f"table is a {type(table).__name__}"
        raise InputError(f"{got}; attack {name!r} takes its texts from a seamfast.triggers.Table")
    return attack
