"""``train_references``: models like a given one, each trained on a known half of the data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from seamfast.audits.membership import Reference
from seamfast.checks import as_integer, as_seed
from seamfast.data import CleanSet
from seamfast.engine.host import seeded
from seamfast.engine.model import device_of
from seamfast.errors import InputError, ModelError

__all__ = ["train_references"]

_MOST = 1024


class Train(Protocol):
    """Trains ``model`` on ``data`` in place, as ``seamfast.attacks.train`` does."""

    def __call__(self, model: nn.Module, data: CleanSet, /, *, seed: int) -> object: ...


def train_references(
    model: nn.Module, data: CleanSet, n: int = 4, *, train: Train, seed: int = 0
) -> tuple[Reference, ...]:
    """``n`` copies of ``model`` with new weights, each trained on a random part of ``data``.

    Each sample is in the training data of exactly ``n // 2`` references. For ``membership``, ``data`` should hold the
    members and the outsiders, ``members.followed_by(outsiders)``: then both have as many references that were not
    trained on them.

    Args:
        model: gives the architecture; it is not changed. Each of its modules with parameters or buffers of its own must
            have ``reset_parameters``, as those of torch do.
        data: at least 2 samples.
        n: at least 2; with 4 or more, ``"lira_online"`` is possible.
        train: called with a model, its data and a seed; for example ``seamfast.attacks.train``, or with settings
            ``functools.partial(seamfast.attacks.train, config=seamfast.attacks.TrainConfig(epochs=20))``. It should
            train as the audited model was trained.
        seed: of parts, weights and training, in ``[0, 2**63)``.

    Raises:
        InputError, ModelError: e.g. ``encoder is a Positions with weights and no reset_parameters; expected modules
            that can be initialized anew``.

    Source: the parts: N. Carlini et al., Membership inference attacks from first principles, IEEE S&P 2022,
        arXiv:2112.03570.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = CleanSet(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 0, 1]))
        >>> references = train_references(model, data, 2, train=lambda model, data, *, seed: None)
        >>> sum(len(reference.trained_on) for reference in references)
        6
    """
    if not isinstance(data, CleanSet):
        raise InputError(f"data is a {type(data).__name__}; expected a seamfast.CleanSet")
    if len(data) < 2:
        raise InputError(f"data hold {len(data)} sample{'s' * (len(data) != 1)}; expected at least 2")
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    n, seed = as_integer("n", n, 2, _MOST), as_seed(seed)
    _check_can_reset(model)
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    # For each sample a random order of the references; the first half of them get it.
    order = torch.rand(n, len(data), generator=generator).argsort(0).argsort(0)
    references = []
    for number in range(n):
        part = data.subset((order[number] < n // 2).nonzero()[:, 0])
        if not len(part):
            raise InputError(f"data holds {len(data)} samples, of which reference {number} gets none; expected more")
        fresh = copy.deepcopy(model)
        own_seed = (seed + number) % 2**63
        with seeded(own_seed, device):
            _reset(fresh)
        train(fresh, part, seed=own_seed)
        references.append(Reference(fresh.eval(), part))
    return tuple(references)


def _check_can_reset(model: nn.Module) -> None:
    for name, module in model.named_modules():
        own: list[Tensor] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and not _resets(module):
            raise ModelError(
                f"{name or 'the model'} is a {type(module).__name__} with weights and no reset_parameters; "
                "expected modules that can be initialized anew"
            )


def _reset(model: nn.Module) -> None:
    for module in model.modules():
        for reset in _resets(module):
            reset()


def _resets(module: nn.Module) -> list[Callable[[], object]]:
    """Its own method of initialization; that of ``nn.MultiheadAttention`` is private."""
    methods = (getattr(module, name, None) for name in ("reset_parameters", "_reset_parameters"))
    return [method for method in methods if callable(method)][:1]
