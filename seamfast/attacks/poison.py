"""Poisoning training data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seamfast.checks import as_rate, as_seed
from seamfast.data import CleanSet, PoisonedSet
from seamfast.errors import InputError
from seamfast.modalities import TextModality
from seamfast.modalities.batch import map_tensors, named_tensors
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
    """``dataset`` with the trigger stamped on ``round(rate * N)`` samples, which get the label of the trigger's map.

    Args:
        dataset: uint8 images, texts with a tokenizer, or columns, with ``num_classes`` given.
        trigger: its label map selects the samples that can be poisoned (the eligible ones) and their new labels.
        rate: share of the *whole* set that is poisoned, in [0, 1].
        clean_label: stamp samples of the target class and keep their labels, so that no label is wrong; needs an
            ``AllToOne`` map.
        cover_rate: share of the whole set that is stamped and keeps its label, in [0, 1], so that a source-specific
            backdoor (TaCT) reacts for its sources only; needs a ``SourceSpecific`` map.
        seed: an integer in ``[0, 2**63)``, for the choice of samples and for triggers at random positions.

    Returns:
        PoisonedSet of new samples; ``.poisoned`` marks the stamped samples, including cover samples and those that are
        marked in ``dataset``.

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
    seed, rate, cover_rate = as_seed(seed), as_rate("rate", rate), as_rate("cover_rate", cover_rate)
    if isinstance(dataset.modality, TextModality):
        dataset.modality.check_trigger(trigger)
    elif not dataset.modality.stores_stampable:
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
    candidates = ~eligible if clean_label else eligible
    chosen = choose(candidates, round(rate * len(labels)), f"rate {rate}", "poisoned", generator)
    cover = choose(~eligible, round(cover_rate * len(labels)), f"cover_rate {cover_rate}", "cover", generator)

    stamped = torch.cat([chosen, cover])
    new_labels = labels.clone()
    new_labels[chosen] = trigger.target.targets(labels[chosen], dataset.num_classes)
    samples = trigger.stamp(dataset.stampable(stamped), sample_ids=stamped, seed=seed)
    return stamped_set(dataset, stamped, samples, new_labels)


def choose(allowed: Tensor, n: int, setting: str, what: str, generator: torch.Generator) -> Tensor:
    """Indices of ``n`` random samples of those ``allowed``, ``(N,)`` bool. Raises as ``check_enough``."""
    check_enough(allowed, n, setting, what)
    candidates = allowed.nonzero().flatten()
    return candidates[torch.randperm(len(candidates), generator=generator)[:n]]


def check_enough(allowed: Tensor, n: int, setting: str, what: str) -> None:
    """Raise unless ``n`` are ``allowed``: ``rate 0.5 asks for 50 poisoned samples; only 10 of 100 can be``."""
    n_allowed = int(allowed.sum())
    if n > n_allowed:
        raise InputError(f"{setting} asks for {n} {what} samples; only {n_allowed} of {len(allowed)} can be")


def stamped_set(data: CleanSet, chosen: Tensor, stamped: Any, labels: Tensor) -> PoisonedSet:
    """``data`` with the samples ``stamped`` at ``chosen``, which are marked as poisoned, and with ``labels``.

    Texts are encoded again by their own tokenizer; all are padded to the longest.
    """
    poisoned = torch.zeros(len(data), dtype=torch.bool)
    poisoned[chosen] = True
    if isinstance(data, PoisonedSet):  # the samples with an earlier trigger stay marked
        poisoned |= data.poisoned
    inputs: Any
    if isinstance(data.modality, TextModality):
        new = data.modality.inputs_like(stamped, data.inputs, torch.float32, torch.device("cpu"))
        rows = torch.arange(len(data))
        rows[chosen] = torch.arange(len(data), len(data) + len(chosen))
        both = data.modality.joined(data.inputs, new) if len(chosen) else data.inputs
        inputs = map_tensors(lambda value: value[rows], both)
    else:
        inputs = data.stampable(torch.arange(len(data)))  # a copy
        new = named_tensors(stamped)
        for name, value in named_tensors(inputs).items():
            value[chosen] = new[name]
    return PoisonedSet(inputs, labels.clone(), poisoned=poisoned, **data.description)
