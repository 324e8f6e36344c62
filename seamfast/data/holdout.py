"""``HeldOut``: where the held-out samples of a run come from, and the join of samples that a caller holds out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from seamfast.checks import dtype_name
from seamfast.data.adapters import as_clean_set
from seamfast.data.allowance import Allowance
from seamfast.data.clean_set import CleanSet
from seamfast.data.poisoned_set import PoisonedSet
from seamfast.data.rereading import AugmentingSet
from seamfast.errors import InputError
from seamfast.modalities.batch import named_tensors


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples of a run.

    Attributes:
        source: ``"given"`` by the caller, or ``"split"`` from the clean data.
        reads_agree: whether each is the same every time it is read; ``None``: not tested.
        n_given: of them given by the caller: the last of the run's samples.
        n_shared: samples of the clean data that are held out too, and therefore not trained on.
        n_repeated: samples of the clean data that repeat others, with which they are on one side of the split.
        origins: ``CleanSet.origins`` of the clean data as read, by which they are split; ``None``: not known.
    """

    source: str
    reads_agree: bool | None
    n_given: int = 0
    n_shared: int = 0
    n_repeated: int = 0
    origins: Sequence[Hashable] | None = field(default=None, compare=False, repr=False)


def read_clean(
    clean_loader: Any,
    holdout: Any,
    *,
    augments: bool | None,
    eval_transform: Callable[[Any], Any] | None,
    allowances: Sequence[Allowance | None] = (None, None),
) -> tuple[CleanSet, HeldOut]:
    """The samples of a run, those of ``holdout`` last.

    Args:
        clean_loader, augments: as for ``as_clean_set``.
        holdout: ``None``, or data in any form that ``clean_loader`` takes.
        eval_transform: for the reading of what is held out: ``holdout``, or else ``clean_loader``.
        allowances: of ``clean_loader`` and of ``holdout``.

    Raises:
        InputError: the data cannot be used; the message names the argument.
    """
    if holdout is None:
        samples = as_clean_set(clean_loader, augments=augments, eval_transform=eval_transform, allowance=allowances[0])
        origins = _checked("clean_loader", samples, allowances[0]).origins()
        n_repeated = len(samples) - len(set(origins))
        return samples, HeldOut("split", samples.reads_agree, n_repeated=n_repeated, origins=origins)
    samples = as_clean_set(clean_loader, augments=augments, allowance=allowances[0])
    _checked("clean_loader", samples, allowances[0])
    try:
        held = as_clean_set(holdout, augments=None, eval_transform=eval_transform, allowance=allowances[1])
    except InputError as error:
        raise type(error)(str(error).replace("clean_loader", "holdout")) from error
    _checked("holdout", held, allowances[1])
    if held is not holdout and held.mean is not None and samples.mean is None and _kind(held) == _kind(samples):
        # Found in the transform of its dataset. Both have the same one, but not both need show it.
        samples = samples if samples is not clean_loader else samples.subset(range(len(samples)))
        samples.modality = held.modality
    return _joined(samples, held)


def _joined(samples: CleanSet, held: CleanSet) -> tuple[CleanSet, HeldOut]:
    _check_kind(samples, held)
    reads_agree = held.reads_agree
    if isinstance(held, AugmentingSet):
        held = held.first_draws()
    first = {name: i for i, name in reversed(list(enumerate(held.identities())))}
    held = held.subset(sorted(first.values()))  # repeated samples would seem to say more than they do
    origins, apart = samples.origins(), set(held.contents())
    kept = [i for i, name in enumerate(samples.contents()) if name not in apart]
    n_shared, n_repeated = len(samples) - len(kept), len(kept) - len({origins[i] for i in kept})
    if n_shared:
        samples = samples.subset(kept)
        if len(torch.unique(samples.labels)) < 2:
            raise InputError(
                f"holdout holds {n_shared} of the samples of clean_loader, and {len(kept)} are left to train on; "
                "expected other samples"
            )
    return samples.followed_by(held), HeldOut("given", reads_agree, len(held), n_shared, n_repeated)


def _checked(name: str, samples: CleanSet, allowance: Allowance | None) -> CleanSet:
    if isinstance(samples, PoisonedSet):
        why = "recovery on poisoned data teaches the backdoor" if name == "clean_loader" else "it decides"
        raise InputError(f"{name} is a PoisonedSet; expected clean data: {why}")
    if not len(samples):
        expected = "at least one of each class" if name == "clean_loader" else "at least one"
        raise InputError(f"{name} holds no samples; expected {expected}")
    present = torch.unique(samples.labels).tolist()
    if name == "clean_loader" and len(present) < 2:
        stopped = allowance.stopped if allowance is not None else None
        part = f" in the {len(samples)} samples that {stopped} left time or room for" if stopped else ""
        raise InputError(f"clean_loader holds one class only ({present[0]}){part}; expected at least two")
    return samples


def _check_kind(samples: CleanSet, held: CleanSet) -> None:
    """Raise unless both have the same tensors and the same normalization."""
    expected, got = _kind(samples), _kind(held)
    if got != expected:
        raise InputError(f"holdout holds samples of {got}; expected {expected} as in clean_loader")
    for name in ("mean", "std"):
        one, other = getattr(samples, name), getattr(held, name)
        if other is not None and one != other:
            raise InputError(f"holdout has {name} {other}; expected {one} as of clean_loader")


def _kind(samples: CleanSet) -> str:
    tensors = sorted((str(name), value) for name, value in named_tensors(samples.inputs).items())
    return ", ".join(f"{name} {tuple(value.shape[1:])} {dtype_name(value.dtype)}" for name, value in tensors)
