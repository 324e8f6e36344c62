"""``as_clean_set``: clean data of any supported form, read into a ``CleanSet``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

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
from seamfast.data.rereading import AugmentingSet, Source, can_be_reread, check_labels
from seamfast.errors import InputError
from seamfast.modalities.batch import by_position

_N_PROBED = 64
_WITH_TRANSFORM = "expected a map-style Dataset, or a DataLoader over one, with the attribute 'transform'"


def as_clean_set(
    data: Any, *, augments: bool | None = False, eval_transform: Callable[[Any], Any] | None = None
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
            that the model takes; uint8 images are scaled to ``[0, 1]`` (for another normalization, pass a
            ``CleanSet``). Of a ``LightningDataModule``, the validation data are read.
        augments: whether each read of a sample gives another one. ``True``: an ``AugmentingSet``; ``data`` must be a
            map-style ``Dataset``, or a ``DataLoader`` over one. ``False``: samples are read once. ``None``: detected,
            if possible, by reading up to 64 samples a second time.
        eval_transform: takes the place of the dataset's attribute ``transform`` in the first read, so that an
            ``AugmentingSet`` holds samples without augmentation; ``None``: the dataset's own attribute
            ``eval_transform``, if it has one and ``augments`` is not ``False``.

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
    if _is_map_style(data):
        # Its default collation makes batches of samples that are tuples or dicts.
        return _from_source(Source(DataLoader(data, batch_size=256)), augments, eval_transform)
    if isinstance(data, DataLoader) and can_be_reread(data):
        return _from_source(Source(data), augments, eval_transform)
    if eval_transform is not None:
        raise InputError(f"eval_transform is given and clean_loader is {describe(data)}; {_WITH_TRANSFORM}")
    if isinstance(data, AugmentingSet):
        return data if augments is not False else data.first_draws()
    if augments:
        raise InputError(
            f"augments is True and clean_loader is {describe(data)}; expected a map-style Dataset, or a DataLoader "
            "over one, whose samples can be read again by index"
        )
    if isinstance(data, CleanSet):
        return data
    if _is_pair(data):
        return CleanSet(by_position(data[0], len(data[1])) or data[0], data[1])
    if isinstance(data, IterableDataset):
        return _in_content_order(*_collected(DataLoader(data, batch_size=256, collate_fn=collate)))
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Tensor, np.ndarray, Mapping)):
        return _in_content_order(*_collected(data))
    raise InputError(
        f"clean_loader is {describe(data)}; expected a DataLoader, a Dataset, "
        "an (inputs, labels) pair or a seamfast.CleanSet"
    )


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


def _from_source(source: Source, augments: bool | None, eval_transform: Callable[[Any], Any] | None) -> CleanSet:
    keys, size = source.keys, source.batch_size
    plain = None if augments is False else source.with_transform(eval_transform)
    if eval_transform is not None and plain is None:
        raise InputError(f"eval_transform is given and clean_loader has no dataset with it to set; {_WITH_TRANSFORM}")
    requested = [keys[i : i + size] for i in range(0, len(keys), size)]
    # The probe is read in the same pass, so that workers start once, and backwards, so that of two workers with equal
    # seeds, the second does not repeat the draws of the first for the same samples.
    steps = min(len(keys), _N_PROBED) - 1
    spread = torch.tensor([i * (len(keys) - 1) // max(steps, 1) for i in range(steps, -1, -1)], dtype=torch.int64)
    tested = bool(keys) and (augments is None or plain is not None)
    probe = [[keys[i] for i in spread.tolist()]] if tested else []
    batches = (source if plain is None else plain).read([*requested, *probe])
    collected = Collected()
    one_each = True  # a collation may drop broken samples, or make several of one
    for expected in requested:
        one_each &= collected.add(next(batches)) == len(expected)
    columns, labels = collected.joined()
    if not one_each:
        if augments or eval_transform is not None:
            given = "augments is True" if augments else "eval_transform is given"
            raise InputError(
                f"{given} and clean_loader gave {len(labels)} samples for {len(keys)} indices; expected one each"
            )
        return _in_content_order(columns, labels)
    if probe:
        again, labels_again = split_batch(next(batches), len(requested))
        changes = _changes(columns, labels, spread, probe[0], again, labels_again)
        if plain is not None and changes:
            raise InputError(
                "eval_transform gives other samples when they are read a second time; expected a deterministic one"
            )
        if augments is None and plain is not None:
            (trained_on,) = source.read(probe)
            augments = _changes(columns, labels, spread, probe[0], *split_batch(trained_on, 0))
        elif augments is None:
            augments = changes
    if not source.are_ordered:
        order = _content_order(columns.values(), labels)
        columns, labels, keys = _at(columns, order), labels[order], [keys[i] for i in order.tolist()]
    if augments:
        return AugmentingSet(as_model_inputs(columns), labels, source=source, keys=keys, reads_agree=plain is not None)
    samples = CleanSet(as_model_inputs(columns), labels)
    samples.reads_agree = True if tested else None
    return samples


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


def _collected(batches: Iterable[Any]) -> tuple[Columns, Tensor]:
    collected = Collected()
    for batch in batches:
        collected.add(batch)
    return collected.joined()


def _in_content_order(columns: Columns, labels: Tensor) -> CleanSet:
    order = _content_order(columns.values(), labels)
    samples = CleanSet(as_model_inputs(_at(columns, order)), labels[order])
    samples.reads_agree = None
    return samples


def _at(columns: Columns, indices: Tensor) -> Columns:
    return {name: value[indices] for name, value in columns.items()}


def _content_order(columns: Iterable[Tensor], labels: Tensor) -> Tensor:
    """The order of the digests of the samples, which does not depend on how a loader shuffles."""
    keys: list[Any] = sample_digests(columns, labels)
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64)
