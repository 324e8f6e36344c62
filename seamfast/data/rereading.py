"""Samples that can be read again, by index, and a set of those that come out differently each time."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from seamfast.data.clean_set import Batch, CleanSet, as_index, as_inputs
from seamfast.data.collected import as_model_inputs, split_batch
from seamfast.errors import InputError


class Source:
    """The samples of a loader over a map-style dataset, each under the index that the loader's sampler gives it.

    The sampler is asked once, so the samples are those of one pass of the loader, also where it draws or drops some.
    They are read as the loader reads them: its dataset, collation and workers, but no pinned memory. The loader itself
    is left alone.

    Attributes:
        keys: what the dataset is asked for, one a sample: ascending, or as drawn where they have no order.
        are_ordered: whether they have one.
        batch_size: the loader's.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        assert loader.batch_sampler is not None
        batches = [list(batch) for batch in loader.batch_sampler]
        self.batch_size = max(map(len, batches), default=1)
        self.keys: list[Any] = [key for batch in batches for key in batch]
        try:
            self.keys = sorted(self.keys, key=operator.index)
            self.are_ordered = True
        except TypeError:  # names, pairs, whatever else the dataset takes
            self.are_ordered = False

    def read(self, wanted: Iterable[list[Any]]) -> Iterator[Any]:
        """A collated batch for each list of keys, in their order. Workers end when the iterator is let go."""
        loader = self._loader
        with_workers: dict[str, Any] = (
            {"prefetch_factor": loader.prefetch_factor, "multiprocessing_context": loader.multiprocessing_context}
            if loader.num_workers
            else {}
        )
        # Not the loader's own generator: seeds of workers come from torch's, which a run seeds and puts back.
        ours: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=wanted,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            **with_workers,
        )
        return iter(ours)


def can_be_reread(loader: DataLoader[Any]) -> bool:
    """Whether its samples go by an index: a map-style dataset, batches collated from samples, PyTorch's own pass."""
    own_pass = type(loader).__iter__ is DataLoader.__iter__ and type(loader)._get_iterator is DataLoader._get_iterator
    return own_pass and loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset)


class AugmentingSet(CleanSet):
    """A ``CleanSet`` that holds the first draw of each sample, and whose ``fresh`` draws them anew.

    Parts of it draw anew too; ``first_draws`` is the set without that.

    Args:
        inputs, labels, others: as for ``CleanSet``; the first draws.
        source: of the samples.
        keys: of the samples in it, one each.
        fit: what inputs go through after they are read: the first draws have gone through it already.
    """

    def __init__(
        self,
        inputs: Any,
        labels: Any,
        *,
        source: Source,
        keys: Sequence[Any],
        fit: Callable[[Batch], Batch] = lambda inputs: inputs,
        **others: Any,
    ) -> None:
        super().__init__(inputs, labels, **others)
        self._source = source
        self._keys = keys
        self._fit = fit

    def subset(self, indices: Tensor | Sequence[int]) -> AugmentingSet:
        """As ``CleanSet.subset``: a part draws anew too."""
        part = super().subset(indices)
        return AugmentingSet(
            part.inputs,
            part.labels,
            source=self._source,
            keys=[self._keys[i] for i in as_index(indices).tolist()],
            fit=self._fit,
            mean=part.mean,
            std=part.std,
            num_classes=part.num_classes,
            class_names=part.class_names,
        )

    def fitted(self, fit: Callable[[Batch], Batch]) -> AugmentingSet:
        """The set with all inputs put through ``fit``, now and whenever they are read."""
        earlier = self._fit
        return AugmentingSet(
            fit(self.inputs),
            self.labels,
            source=self._source,
            keys=self._keys,
            fit=lambda inputs: fit(earlier(inputs)),
            num_classes=self.num_classes,
            class_names=self.class_names,
        )

    def first_draws(self) -> CleanSet:
        """What it holds, for good."""
        return CleanSet(
            self.inputs,
            self.labels,
            mean=self.mean,
            std=self.std,
            num_classes=self.num_classes,
            class_names=self.class_names,
        )

    def fresh(self, drawn: Iterable[Tensor]) -> Generator[tuple[Tensor, Batch], None, None]:
        """``(indices, inputs)`` for each ``indices``, ``(B,)`` int64 in [0, N): drawn at that moment; to be closed.

        Draws in the calling process where the loader has no workers; else workers draw a few batches ahead, and so is
        ``drawn`` iterated.

        Raises:
            InputError: a sample has another label, shape or dtype than on the first read, or holds NaN or Inf.
        """
        underway: deque[Tensor] = deque()

        def wanted() -> Iterator[list[Any]]:
            for indices in drawn:
                underway.append(indices)
                yield [self._keys[i] for i in indices.tolist()]

        for number, batch in enumerate(self._source.read(wanted())):
            indices = underway.popleft()
            columns, labels = split_batch(batch, number)
            if len(labels) != len(indices):
                raise InputError(
                    f"clean_loader gave {len(labels)} samples for {len(indices)} indices; expected one each: "
                    "pass augments=False to have it read once"
                )
            check_labels([self._keys[i] for i in indices.tolist()], self.labels[indices], labels)
            inputs = as_inputs(self._fit(as_inputs(as_model_inputs(columns))))
            self._check(inputs, indices)
            yield indices, inputs

    def _check(self, inputs: Batch, indices: Tensor) -> None:
        first, now = (v if isinstance(v, dict) else {"inputs": v} for v in (self.inputs, inputs))
        if first.keys() != now.keys():
            raise InputError(f"clean_loader gives {sorted(now)}; expected {sorted(first)} as on the first read")
        for name, value in now.items():
            got, wanted = (f"{tuple(v.shape[1:])} {str(v.dtype).removeprefix('torch.')}" for v in (value, first[name]))
            if got != wanted:
                raise InputError(f"clean_loader gives {name} of {got}; expected {wanted} as on the first read")
            if value.is_floating_point() and not torch.isfinite(value).all():
                row = int((~torch.isfinite(value.reshape(len(value), -1)).all(1)).nonzero()[0])
                key = _shown(self._keys[int(indices[row])])
                raise InputError(f"{name} holds NaN or Inf in sample {key} of clean_loader; expected finite numbers")


def check_labels(keys: Sequence[Any], first: Tensor, now: Tensor) -> None:
    """Raise where a sample has another label than when it was first read."""
    if torch.equal(first, now):
        return
    row = int((first != now).nonzero()[0])
    raise InputError(
        f"sample {_shown(keys[row])} of clean_loader had the label {int(first[row])} when it was first read and has "
        f"{int(now[row])} now; expected labels that stay: pass augments=False to have it read once"
    )


def _shown(key: Any) -> str:
    """A key for a message: the number, where it is one."""
    try:
        return str(operator.index(key))
    except TypeError:
        return repr(key)
