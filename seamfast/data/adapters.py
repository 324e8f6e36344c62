"""``as_clean_set``: clean data of any supported form, read into a ``CleanSet``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from seamfast.data.allowance import MAX_SAMPLES, TIME_BUDGET, Allowance
from seamfast.data.clean_set import CleanSet, sample_digests
from seamfast.data.collected import (
    Collected,
    Columns,
    as_model_inputs,
    collate,
    describe,
    is_sample,
    padded,
    split_batch,
)
from seamfast.data.lightning import validation_loader
from seamfast.data.normalization import normalization_of
from seamfast.data.rereading import AugmentingSet, Source, as_names, can_be_reread, check_labels, has_own_pass
from seamfast.errors import InputError
from seamfast.modalities.batch import by_position

_N_PROBED = 64
_WITH_TRANSFORM = "expected a map-style Dataset, or a DataLoader over one, with the attribute 'transform'"


def as_clean_set(
    data: Any,
    *,
    augments: bool | None = False,
    eval_transform: Callable[[Any], Any] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    allowance: Allowance | None = None,
) -> CleanSet:
    """``CleanSet`` of all samples that ``data`` holds, read in one pass.

    Samples of a map-style dataset, also those of a shuffling loader, are in the order of the dataset. Those of other
    loaders are sorted by content, so that a shuffling one gives the same set every time.

    Args:
        data: a ``CleanSet`` (returned as it is); an ``(inputs, labels)`` pair of tensors or arrays; a map-style
            ``Dataset`` of ``(input, label)`` samples or of mappings, or another sequence of mappings, such as one of
            the package datasets; a ``DataLoader``, or any iterable of batches. A batch is a tuple
            or list ``(inputs, labels, ...)``, or a mapping with the labels under one of ``labels``, ``label``,
            ``targets``, ``target``, ``y`` and the model's keyword arguments under the other keys. Where ``inputs`` is a
            tuple or list of tensors, such as ``(continuous, categorical)``, the model gets them in this order. Batches
            of token ids (``input_ids``) that differ in length are padded to the longest, with their ``attention_mask``
            and ``token_type_ids``; beside them, columns of strings and ``idx`` are left out. Floats are in the form
            that the model takes; uint8 images, and those of Pillow, are scaled to ``[0, 1]`` without ``mean`` and
            ``std``. Of a ``LightningDataModule``, the validation data are read.
        augments: whether each read of a sample gives another one. ``True``: an ``AugmentingSet``; ``data`` must be a
            map-style ``Dataset``, or a ``DataLoader`` over one. ``False``: samples are read once. ``None``: detected,
            if possible, by reading up to 64 samples a second time.
        eval_transform: takes the place of the dataset's attribute ``transform`` in the first read, so that an
            ``AugmentingSet`` holds samples without augmentation; ``None``: the dataset's own attribute
            ``eval_transform``, if it has one and ``augments`` is not ``False``.
        mean, std: as for ``CleanSet``, of images that are no ``CleanSet`` yet; ``None``: of floats, those of the only
            ``Normalize`` in the transform of the dataset, if there is one.
        allowance: limits on the reading, and the place for what was read; ``None``: no limits. Of what is in memory or
            has indices, ``max_samples`` are drawn, always the same ones; of other data they are the first.

    Returns:
        CleanSet on the CPU.

    Raises:
        InputError: e.g. ``clean_loader yielded no samples; an iterator that was already consumed yields none``.

    Example:
        >>> import numpy as np
        >>> len(as_clean_set((np.zeros((4, 3, 8, 8), np.float32), [0, 1, 0, 1])))
        4
    """
    if augments is not None and not isinstance(augments, bool):
        raise InputError(f"augments is {augments!r}; expected True, False or None")
    if eval_transform is not None:
        _check_eval_transform(eval_transform, augments)
    data = validation_loader(data)
    given: dict[str, Any] | None = None if mean is None and std is None else {"mean": mean, "std": std}
    allowance = allowance or Allowance()
    allowance.begin()
    if _is_map_style(data):
        # Its default collation makes batches of samples that are tuples or dicts.
        return _from_source(Source(DataLoader(data, batch_size=256), allowance), augments, eval_transform, given)
    if isinstance(data, DataLoader) and can_be_reread(data):
        return _from_source(Source(data, allowance), augments, eval_transform, given)
    if eval_transform is not None:
        raise InputError(f"eval_transform is given and clean_loader is {describe(data)}; {_WITH_TRANSFORM}")
    if isinstance(data, CleanSet):
        if given is not None:
            raise InputError("mean or std is given and clean_loader is a CleanSet; expected a CleanSet with its own")
        if isinstance(data, AugmentingSet) and augments is False:
            data = data.first_draws()
        elif augments and not isinstance(data, AugmentingSet):
            raise _cannot_be_reread(data)
        return _drawn(data, allowance)
    if augments:
        raise _cannot_be_reread(data)
    if _is_pair(data):
        return _drawn(CleanSet(by_position(data[0], len(data[1])) or data[0], data[1], **(given or {})), allowance)
    if isinstance(data, IterableDataset):
        loader = DataLoader(data, batch_size=allowance.batch_size(256), collate_fn=collate)
        return _in_content_order(*_collected(loader, allowance), data, given)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Tensor, np.ndarray, Mapping)):
        return _in_content_order(*_collected(batches_of(data), allowance), getattr(data, "dataset", None), given)
    raise InputError(
        f"clean_loader is {describe(data)}; expected a DataLoader, a Dataset, "
        "an (inputs, labels) pair or a seamfast.CleanSet"
    )


def batches_of(data: Any) -> Any:
    """``data``; of a loader with PyTorch's own pass and collation, a copy that collates images of Pillow too."""
    if not isinstance(data, DataLoader) or not has_own_pass(data) or data.collate_fn is not default_collate:
        return data
    made = copy.copy(data)
    made.collate_fn = collate
    made._iterator = None  # that of persistent workers, which collate as before
    return made


def _cannot_be_reread(data: Any) -> InputError:
    return InputError(
        f"augments is True and clean_loader is {describe(data)}; expected a map-style Dataset, or a DataLoader "
        "over one, whose samples can be read again by index"
    )


def _drawn(samples: CleanSet, allowance: Allowance) -> CleanSet:
    """As many of the samples as are allowed, in their order."""
    most = allowance.max_samples
    if most is not None and len(samples) > most:
        allowance.stopped = MAX_SAMPLES
        samples = samples.subset(_shuffled(len(samples))[:most].sort().values)
    allowance.n_read = len(samples)
    return samples


def _shuffled(n: int) -> Tensor:
    """The order in which samples are read where perhaps not all are: always the same, so that results are."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _is_map_style(data: Any) -> bool:
    """Whether ``data`` is a ``Dataset`` with indices, or another sequence of samples that are mappings."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    if isinstance(data, (Mapping, Tensor, np.ndarray)) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        return False
    try:
        return is_sample(data[0])
    except (LookupError, TypeError):  # empty, or with keys of its own
        return False


def _is_pair(data: Any) -> bool:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    inputs, labels = data
    if isinstance(labels, (Tensor, np.ndarray)) and labels.ndim == 1 and by_position(inputs, len(labels)):
        return True
    if not isinstance(inputs, (Tensor, np.ndarray, Mapping)):
        return False
    if isinstance(labels, (Tensor, np.ndarray)):
        return not (isinstance(data, list) and isinstance(inputs, Mapping))
    return isinstance(labels, (list, tuple)) and all(isinstance(v, (int, np.integer)) for v in labels)


def _check_eval_transform(eval_transform: Any, augments: bool | None) -> None:
    if not callable(eval_transform):
        raise InputError(f"eval_transform is a {type(eval_transform).__name__}; expected a function of a sample")
    if augments is False:
        raise InputError("augments is False and eval_transform is given; expected one of them: all is read once")


def _from_source(
    source: Source,
    augments: bool | None,
    eval_transform: Callable[[Any], Any] | None,
    given: dict[str, Any] | None,
) -> CleanSet:
    plain = None if augments is False else source.with_transform(eval_transform)
    if eval_transform is not None and plain is None:
        raise InputError(f"eval_transform is given and clean_loader has no dataset with it to set; {_WITH_TRANSFORM}")
    reader, tested = plain or source, augments is None or plain is not None
    asked = _Asked(source, tested)
    collected = Collected()
    one_each = True  # a collation may drop broken samples, or make several of one
    again: tuple[Columns, Tensor] | None = None
    # The probe is read in the same pass, so that workers start once.
    for number, batch in enumerate(reader.read(asked.keys())):
        if number < len(asked.parts):
            one_each &= collected.add(batch) == len(asked.parts[number])
        else:
            again = split_batch(batch, number)
    columns, labels = collected.joined()
    keys, source.allowance.n_read = asked.read(), len(labels)
    if not one_each:
        if augments or eval_transform is not None:
            given_as = "augments is True" if augments else "eval_transform is given"
            raise InputError(
                f"{given_as} and clean_loader gave {len(labels)} samples for {len(keys)} indices; expected one each"
            )
        return _in_content_order(columns, labels, reader.dataset, given)
    places = torch.tensor([place for part in asked.parts for place in part])
    if bool((places.diff() < 0).any()):
        columns, labels = _at(columns, places.argsort()), labels[places.argsort()]
    if again is not None:
        spread = torch.tensor(asked.probe)
        probe = [keys[i] for i in asked.probe]
        changes = _changes(columns, labels, spread, probe, *again)
        if plain is not None and changes:
            raise InputError(
                "eval_transform gives other samples when they are read a second time; expected a deterministic one"
            )
        if augments is None and plain is not None:
            (trained_on,) = source.read([probe])
            augments = _changes(columns, labels, spread, probe, *split_batch(trained_on, 0))
        elif augments is None:
            augments = changes
    if not source.are_ordered:
        order = _content_order(columns.values(), labels)
        columns, labels, keys = _at(columns, order), labels[order], [keys[i] for i in order.tolist()]
    inputs = as_model_inputs(columns)
    how = _normalization(reader.dataset, inputs, given)
    if augments:
        return AugmentingSet(inputs, labels, source=source, keys=keys, reads_agree=plain is not None, **how)
    samples = CleanSet(inputs, labels, **how)
    samples.reads_agree = True if tested else None
    samples.drawn_from = as_names(keys)
    return samples


class _Asked:
    """What is asked of a source: batches of its keys, as far as is allowed, and then some of them again.

    Attributes:
        parts: places of the keys, batch by batch.
        probe: places, among the samples that are read, of those that are read again; from the last to the first, so
            that of two workers with equal seeds, the second does not repeat the draws of the first for the same
            samples.
    """

    def __init__(self, source: Source, tested: bool) -> None:
        self._source = source
        self._tested = tested
        self.parts: list[list[int]] = []
        self.probe: list[int] = []

    def keys(self) -> Iterator[list[Any]]:
        """Lists of keys; workers take them a few ahead."""
        source, allowance = self._source, self._source.allowance
        places, size = torch.arange(len(source.keys)), allowance.batch_size(source.batch_size)
        if allowance.is_limited:
            places = _shuffled(len(places))[: allowance.max_samples]
            if len(places) < len(source.keys):
                allowance.stopped = MAX_SAMPLES
            places = places if allowance.is_timed else places.sort().values
        for first in range(0, len(places), size):
            if self.parts and allowance.time_is_up():
                break
            self.parts.append(places[first : first + size].tolist())
            yield [source.keys[i] for i in self.parts[-1]]
        keys = self.read()
        if self._tested and keys:
            most = min(_N_PROBED, max(len(keys) // 8, 2)) if allowance.stopped == TIME_BUDGET else _N_PROBED
            steps = min(len(keys), most) - 1
            self.probe = [i * (len(keys) - 1) // max(steps, 1) for i in range(steps, -1, -1)]
            yield [keys[i] for i in self.probe]

    def read(self) -> list[Any]:
        """The keys that were asked for, in the order of the source."""
        return [self._source.keys[i] for i in sorted(place for part in self.parts for place in part)]


def _normalization(dataset: Any, inputs: Any, given: dict[str, Any] | None) -> dict[str, Any]:
    """``mean`` and ``std`` as given, or as the dataset's transform has them; empty: not known."""
    found = normalization_of(dataset, inputs) if given is None else None
    return given or ({} if found is None else found._asdict())


def _changes(
    columns: Columns, labels: Tensor, positions: Tensor, keys: list[Any], again: Columns, labels_again: Tensor
) -> bool:
    """Whether the samples at ``positions`` differ when read ``again``."""
    first, again = padded([_at(columns, positions), again])
    if len(labels_again) != len(positions) or {k: v.shape for k, v in first.items()} != {
        k: v.shape for k, v in again.items()
    }:
        return False  # a sample depends on the others of its batch
    check_labels(keys, labels[positions], labels_again)
    return not all(torch.equal(value, again[name]) for name, value in first.items())


def _collected(batches: Iterable[Any], allowance: Allowance) -> tuple[Columns, Tensor]:
    collected = Collected()
    most = allowance.max_samples
    for batch in batches:
        allowance.n_read += collected.add(batch)
        if most is not None and allowance.n_read >= most:
            allowance.stopped = MAX_SAMPLES
            break
        if allowance.n_read and allowance.time_is_up():
            break
    columns, labels = collected.joined()
    if most is not None and len(labels) > most:
        columns, labels = {name: value[:most] for name, value in columns.items()}, labels[:most]
        allowance.n_read = most
    return columns, labels


def _in_content_order(columns: Columns, labels: Tensor, dataset: Any, given: dict[str, Any] | None) -> CleanSet:
    order = _content_order(columns.values(), labels)
    inputs = as_model_inputs(_at(columns, order))
    samples = CleanSet(inputs, labels[order], **_normalization(dataset, inputs, given))
    samples.reads_agree = None
    return samples


def _at(columns: Columns, indices: Tensor) -> Columns:
    return {name: value[indices] for name, value in columns.items()}


def _content_order(columns: Iterable[Tensor], labels: Tensor) -> Tensor:
    """The order of the digests of the samples, which does not depend on how a loader shuffles."""
    keys: list[Any] = sample_digests(columns, labels)
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64)
