"""Samples that can be read again by index, and a set whose samples differ at each read."""

from __future__ import annotations

import copy
import math
import operator
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, default_collate

from seamfast.checks import dtype_name
from seamfast.data.allowance import Allowance
from seamfast.data.clean_set import CleanSet, as_index, as_inputs, first_not_finite
from seamfast.data.collected import Columns, as_model_inputs, collate, padded, split_batch
from seamfast.errors import InputError
from seamfast.modalities.batch import Batch, named_tensors

_MOST_PASSES = 100
"""Passes over a dataset, in batches of one, beyond which a sampler that has a length is taken for one without end."""


class Source:
    """The samples of a loader over a map-style dataset, by the indices of its sampler.

    The sampler is iterated once, so the samples are those of one pass of the loader, even if it draws or drops some.
    They are read with the loader's dataset, collation and workers, without pinned memory. The loader is not modified.

    Attributes:
        keys: indices into the dataset, one for each sample: ascending, or as drawn if they have no order.
        are_ordered: whether the keys are ascending.
        batch_size: of the loader.
        dataset: of the loader, or as ``with_transform`` made it.
        allowance: for whoever reads; of a sampler that need not end, as many keys are taken as there are samples.
    """

    def __init__(self, loader: DataLoader[Any], allowance: Allowance) -> None:
        self._loader = loader
        self.dataset: Any = loader.dataset
        self.allowance = allowance
        batches = list(_batches_of_keys(loader, allowance))
        self.batch_size = max(map(len, batches), default=1)
        self.keys: list[Any] = [key for batch in batches for key in batch]
        try:
            self.keys = sorted(self.keys, key=operator.index)
            self.are_ordered = True
        except TypeError:  # names, pairs or other keys
            self.are_ordered = False

    def with_transform(self, transform: Callable[[Any], Any] | None) -> Source | None:
        """The same samples, with ``transform`` in place of the dataset's own; see ``_transformed``."""
        dataset = _transformed(self.dataset, transform)
        if dataset is None:
            return None
        made = copy.copy(self)
        made.dataset = dataset
        return made

    def read(self, keys: Iterable[list[Any]]) -> Iterator[Any]:
        """A collated batch for each list of keys, in order. Workers end with the iterator."""
        loader = self._loader
        with_workers: dict[str, Any] = (
            {"prefetch_factor": loader.prefetch_factor, "multiprocessing_context": loader.multiprocessing_context}
            if loader.num_workers
            else {}
        )
        # Not the loader's own generator: seeds of workers come from torch's, which a run seeds and restores.
        rereading: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=keys,
            num_workers=loader.num_workers,
            collate_fn=collate if loader.collate_fn is default_collate else loader.collate_fn,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            **with_workers,
        )
        return iter(rereading)


def _batches_of_keys(loader: DataLoader[Any], allowance: Allowance) -> Iterator[list[Any]]:
    """Those of one pass of the sampler; of one without end, if there are limits, the first of them."""
    assert loader.batch_sampler is not None
    most = _most_keys(loader, allowance) if allowance.is_limited else math.inf
    n_keys = 0
    for batch in loader.batch_sampler:
        yield list(batch)
        n_keys += len(batch)
        if n_keys >= most:
            return


def _most_keys(loader: DataLoader[Any], allowance: Allowance) -> float:
    try:
        n_samples = len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:
        n_samples = 0
    enough = max(n_samples, allowance.max_samples or 0)
    try:
        drawn: float = len(loader)
    except (TypeError, NotImplementedError):
        drawn = math.inf
    return math.inf if not enough or drawn <= _MOST_PASSES * enough else enough


def _transformed(dataset: Any, transform: Callable[[Any], Any] | None) -> Any:
    """A shallow copy of the dataset with another ``transform``: ``transform``, or its own ``eval_transform``.

    Of a ``Subset`` or another set with the attribute ``dataset``, and of a ``ConcatDataset``, the inner ones are
    copied. ``None`` if one has no attribute ``transform``, or if there is nothing to set it to.
    """
    if hasattr(dataset, "transform"):
        chosen = transform if transform is not None else getattr(dataset, "eval_transform", None)
        changes: dict[str, Any] = {"transform": chosen}
    elif isinstance(dataset, ConcatDataset):
        changes = {"datasets": [_transformed(part, transform) for part in dataset.datasets]}
    elif isinstance(getattr(dataset, "dataset", None), Dataset):
        changes = {"dataset": _transformed(dataset.dataset, transform)}
    else:
        return None
    (found,) = changes.values()
    if found is None or (isinstance(found, list) and None in found):
        return None
    made = copy.copy(dataset)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def can_be_reread(loader: DataLoader[Any]) -> bool:
    """Whether samples have an index: a map-style dataset, batches collated from samples, PyTorch's own iterator."""
    return has_own_pass(loader) and loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset)


def has_own_pass(loader: DataLoader[Any]) -> bool:
    """Whether it iterates as PyTorch's loaders do."""
    return type(loader).__iter__ is DataLoader.__iter__ and type(loader)._get_iterator is DataLoader._get_iterator


def as_names(keys: Iterable[Any]) -> list[Hashable]:
    """The keys, with the text of those that cannot be compared by hash."""
    return [key if isinstance(key, Hashable) else repr(key) for key in keys]


class AugmentingSet(CleanSet):
    """A ``CleanSet`` of the first draw of each sample, whose ``fresh`` reads the samples again.

    Args:
        inputs, labels, others: as for ``CleanSet``; the first draws, after ``fit``.
        source: of the samples.
        keys: of the samples in the source, one for each.
        fit: applied to inputs after each read.
        reads_agree: whether the samples are as a deterministic transform gives them, and not a first draw.
    """

    def __init__(
        self,
        inputs: Any,
        labels: Any,
        *,
        source: Source,
        keys: Sequence[Any],
        fit: Callable[[Batch], Batch] = lambda inputs: inputs,
        reads_agree: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(inputs, labels, **others)
        self.reads_agree = reads_agree
        self._source = source
        self._keys = keys
        self._fit = fit

    def subset(self, indices: Tensor | Sequence[int]) -> AugmentingSet:
        """As ``CleanSet.subset``, with ``fresh`` samples."""
        part = super().subset(indices)
        keys = [self._keys[i] for i in as_index(indices).tolist()]
        return AugmentingSet(part.inputs, part.labels, keys=keys, **self._rereading, **self.description)

    def followed_by(self, others: CleanSet) -> AugmentingSet:
        """As ``CleanSet.followed_by``; the ``others`` are not read again."""
        return AugmentingSet(
            self.modality.joined(self.inputs, others.inputs),
            torch.cat([self.labels, others.labels]),
            keys=[*self._keys, *[None] * len(others)],
            **self._rereading,
            **self.description,
        )

    def fitted(self, fit: Callable[[Batch], Batch]) -> AugmentingSet:
        """The set with ``fit`` applied to all inputs, also after each read."""
        earlier = self._fit
        return AugmentingSet(
            fit(self.inputs),
            self.labels,
            keys=self._keys,
            **self._rereading | {"fit": lambda inputs: fit(earlier(inputs))},
            num_classes=self.num_classes,
            class_names=self.class_names,
        )

    @property
    def _rereading(self) -> dict[str, Any]:
        return {"source": self._source, "fit": self._fit, "reads_agree": bool(self.reads_agree)}

    def identities(self) -> list[Hashable]:
        """As ``CleanSet.identities``; of samples that were drawn, equal if they have the same index in the dataset."""
        if self.reads_agree:
            return super().identities()
        return as_names(self._keys)

    def origins(self) -> list[Hashable]:
        """As ``CleanSet.origins``; of samples that were drawn, ``identities``."""
        return super().origins() if self.reads_agree else self.identities()

    def first_draws(self) -> CleanSet:
        """The samples as first read, as a plain ``CleanSet``."""
        samples = CleanSet(self.inputs, self.labels, **self.description)
        samples.reads_agree = self.reads_agree
        return samples

    def fresh(self, drawn: Iterable[Tensor]) -> Generator[tuple[Tensor, Batch], None, None]:
        """``(indices, inputs)``, read again, for each ``indices``, ``(B,)`` int64 in [0, N); to be closed.

        Reads in the calling process if the loader has no workers; else workers read, and iterate ``drawn``, a few
        batches ahead.

        Raises:
            InputError: a sample has another label, shape or dtype than on the first read, or holds NaN or Inf.
        """
        pending: deque[Tensor] = deque()

        def keys() -> Iterator[list[Any]]:
            for indices in drawn:
                pending.append(indices)
                yield [self._keys[i] for i in indices.tolist()]

        for number, batch in enumerate(self._source.read(keys())):
            indices = pending.popleft()
            columns, labels = split_batch(batch, number)
            if len(labels) != len(indices):
                raise InputError(
                    f"clean_loader gave {len(labels)} samples for {len(indices)} indices; expected one each: "
                    "pass augments=False to have it read once"
                )
            check_labels([self._keys[i] for i in indices.tolist()], self.labels[indices], labels)
            if isinstance(self.inputs, dict):
                first: Columns = {name: value[:1] for name, value in self.inputs.items() if name in columns}
                columns = padded([columns, first])[0]
            inputs = as_inputs(self._fit(as_inputs(as_model_inputs(columns))))
            self._check(inputs, indices)
            yield indices, inputs

    def _check(self, inputs: Batch, indices: Tensor) -> None:
        first, now = named_tensors(self.inputs), named_tensors(inputs)
        if first.keys() != now.keys():
            raise InputError(f"clean_loader gives {sorted(now)}; expected {sorted(first)} as on the first read")
        for name, value in now.items():
            got, expected = (f"{tuple(v.shape[1:])} {dtype_name(v.dtype)}" for v in (value, first[name]))
            if got != expected:
                raise InputError(f"clean_loader gives {name} of {got}; expected {expected} as on the first read")
            if (row := first_not_finite(value)) is not None:
                key = _key_text(self._keys[int(indices[row])])
                raise InputError(f"{name} holds NaN or Inf in sample {key} of clean_loader; expected finite numbers")


def check_labels(keys: Sequence[Any], first: Tensor, now: Tensor) -> None:
    """Raise if a sample has another label than on the first read."""
    if torch.equal(first, now):
        return
    row = int((first != now).nonzero()[0])
    raise InputError(
        f"sample {_key_text(keys[row])} of clean_loader had the label {int(first[row])} when it was first read and has "
        f"{int(now[row])} now; expected labels that stay: pass augments=False to have it read once"
    )


def _key_text(key: Any) -> str:
    """A key for an error message: its number, if it is an integer."""
    try:
        return str(operator.index(key))
    except TypeError:
        return repr(key)
