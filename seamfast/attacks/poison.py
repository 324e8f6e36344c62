"""Poisoning training data."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.data import CleanSet, PoisonedSet
from seamfast.errors import InputError
from seamfast.triggers import AllToOne, SourceSpecific, Trigger

__all__ = ["PoisonedSet", "poison"]


def poison(
    dataset: CleanSet,
    trigger: Trigger,
    rate: float,
    *,
    clean_label: bool = False,
    cover_rate: float = 0.0,
    seed: int = 0,
) -> PoisonedSet:
    """``dataset`` with the trigger stamped on ``round(rate * N)`` samples, which get the label that the attacker wants.

    Args:
        dataset: uint8 images, with ``num_classes`` given.
        trigger: its label map says which samples can be poisoned (the eligible ones) and what they become.
        rate: share of the *whole* set that is poisoned, in [0, 1].
        clean_label: stamp samples that already are of the target class and keep their labels (needs an ``AllToOne``
            map): no label is wrong, so that looking through the data finds nothing.
        cover_rate: share of the whole set that is stamped and keeps its label, in [0, 1]: teaches a source-specific
            backdoor (TaCT) to fire for its sources only; needs a ``SourceSpecific`` map.
        seed: an integer in ``[0, 2**63)``, for the choice of samples and for triggers at random positions.

    Returns:
        PoisonedSet of new pixels; ``.poisoned`` marks the stamped samples: cover samples too, and those that were
        stamped already where ``dataset`` is a ``PoisonedSet``.

    Raises:
        InputError: e.g. ``rate is 1.5; expected a number in [0, 1]``, or
            ``rate 0.5 asks for 50 poisoned samples; only 10 of 100 can be``.

    Source: dirty label, Gu et al., "BadNets", arXiv:1708.06733; clean label, Barni et al., arXiv:1902.11237; cover
    samples, Tang et al., "Demon in the Variant", arXiv:1908.00686.

    Example:
        >>> import torch
        >>> from seamfast.triggers import Patch
        >>> data = CleanSet(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10) % 2, num_classes=2)
        >>> poisoned = poison(data, Patch.square(size=2, target=0), rate=0.2)
        >>> int(poisoned.poisoned.sum()), int((poisoned.labels == 0).sum())
        (2, 7)
    """
    if not isinstance(dataset, CleanSet):
        raise InputError(f"dataset is a {type(dataset).__name__}; expected a seamfast.CleanSet of uint8 images")
    if not isinstance(trigger, Trigger):
        raise InputError(f"trigger is a {type(trigger).__name__}; expected a seamfast.triggers.Trigger")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed!r}; expected an integer in [0, 2**63)")
    for name, value in (("rate", rate), ("cover_rate", cover_rate)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InputError(f"{name} is {value!r}; expected a number in [0, 1]")
    if not dataset.is_pixels:
        raise InputError(f"dataset is {dataset!r}; expected uint8 images: triggers are stamped in pixel space")
    if dataset.num_classes is None:
        raise InputError("dataset.num_classes is None; expected a number: which classes there are decides the targets")
    if clean_label and not isinstance(trigger.target, AllToOne):
        raise InputError(f"clean_label needs a trigger with an AllToOne map; {trigger.name!r} has {trigger.target}")
    if cover_rate and not isinstance(trigger.target, SourceSpecific):
        raise InputError(f"cover_rate needs a trigger with a SourceSpecific map; {trigger.name!r} has {trigger.target}")
    labels = dataset.labels
    eligible = trigger.target.eligible(labels, dataset.num_classes)
    generator = torch.Generator().manual_seed(seed)
    chosen = choose(
        ~eligible if clean_label else eligible, round(rate * len(labels)), f"rate {rate}", "poisoned", generator
    )
    cover = choose(~eligible, round(cover_rate * len(labels)), f"cover_rate {cover_rate}", "cover", generator)

    stamped = torch.cat([chosen, cover])
    new_labels = labels.clone()
    new_labels[chosen] = trigger.target.targets(labels[chosen], dataset.num_classes)
    return stamped_set(
        dataset, stamped, trigger.stamp(dataset.pixels(stamped), sample_ids=stamped, seed=seed), new_labels
    )


def choose(allowed: Tensor, n: int, asked: str, what: str, generator: torch.Generator) -> Tensor:
    """Indices of ``n`` samples at random of those ``allowed``, ``(N,)`` bool. Raises as ``check_enough``."""
    check_enough(allowed, n, asked, what)
    candidates = allowed.nonzero().flatten()
    return candidates[torch.randperm(len(candidates), generator=generator)[:n]]


def check_enough(allowed: Tensor, n: int, asked: str, what: str) -> None:
    """Raise unless ``n`` are ``allowed``: ``rate 0.5 asks for 50 poisoned samples; only 10 of 100 can be``."""
    n_allowed = int(allowed.sum())
    if n > n_allowed:
        raise InputError(f"{asked} asks for {n} {what} samples; only {n_allowed} of {len(allowed)} can be")


def stamped_set(data: CleanSet, chosen: Tensor, stamped: Tensor, labels: Tensor) -> PoisonedSet:
    """``data`` with ``stamped`` for the images at ``chosen``, which are marked, and ``labels`` for its labels."""
    images = data.pixels(torch.arange(len(data)))  # a copy
    images[chosen] = stamped
    poisoned = torch.zeros(len(data), dtype=torch.bool)
    poisoned[chosen] = True
    if isinstance(data, PoisonedSet):  # a second trigger: what carries the first one stays marked
        poisoned |= data.poisoned
    return PoisonedSet(
        images,
        labels.clone(),
        poisoned=poisoned,
        mean=data.mean,
        std=data.std,
        num_classes=data.num_classes,
        class_names=data.class_names,
    )
