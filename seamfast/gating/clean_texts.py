"""The operator's clean texts, encoded by the tokenizer of the model's folder, with labels as the model numbers them."""

from __future__ import annotations

import os
from typing import Any

import torch

from seamfast.data import CleanSet
from seamfast.data.readers.texts import is_text_source, read_texts
from seamfast.data.texts import Texts
from seamfast.gating.text_input import TextInput
from seamfast.intake.refusal import RefusedError
from seamfast.modalities import TextModality
from seamfast.modalities.batch import named_tensors
from seamfast.modalities.text.modality import IDS
from seamfast.untrusted import listed, printable

MAX_DATA_BYTES = 1 << 30
"""Limit on the decoded clean data that the gate reads: 1 GiB, some 7,000 color images of 224 x 224, or 100,000 texts of
512 tokens."""
_TOKEN_BYTES = 16  # an id and its mask
_ENCODED = 1024  # texts at a time


def clean_texts(
    data: Any, root: Any, split: str | None, text: TextInput, class_names: tuple[str, ...] | None
) -> tuple[CleanSet, int]:
    """The texts as the model takes them, and how many of them were cut.

    Labels that are strings become their positions in ``class_names``. A published set's own numbers do too, where its
    names are those of the model but for their case, in whatever order.

    Args:
        data: a path or a name as for ``read_texts``, or a ``CleanSet`` of ids.
        root, split: as for ``read_texts``.
        text: of the model.
        class_names: of the model.

    Raises:
        RefusedError: code ``"data"``, e.g. ``data hold the id 30522; expected ids in [0, 30522) for the rows of the
            model's embedding``.
        DataFileError: of ``read_texts``.
    """
    if isinstance(data, CleanSet):
        return _of_ids(data, text), 0
    if not is_text_source(data):
        expected = "expected texts, as the model takes them: .tsv, .csv, .jsonl, or one of sst2, ag-news, trec"
        raise RefusedError("data", f"data are {printable(os.fspath(data))!r}; {expected}")
    published = not os.path.splitext(os.fspath(data))[1]
    names = None if published else class_names
    texts = read_texts(data, root=root, split=split, class_names=names, max_bytes=MAX_DATA_BYTES)
    if published and class_names is not None:
        texts = _in_order_of(texts, class_names)
    vocabulary = text.vocabulary
    longest, n_cut = 0, 0
    for begin in range(0, len(texts), _ENCODED):
        encoded = vocabulary.tokenizer.encode_batch(list(texts.texts[begin : begin + _ENCODED]))
        lengths = [len(one.ids) for one in encoded]
        longest = max(longest, *lengths)
        n_cut += sum(length > vocabulary.max_length for length in lengths)
    n_bytes = _TOKEN_BYTES * len(texts) * min(longest, vocabulary.max_length)
    if n_bytes > MAX_DATA_BYTES:
        size = f"{len(texts):,} texts of up to {min(longest, vocabulary.max_length):,} tokens take {n_bytes:,} bytes"
        raise RefusedError("data", f"{size}; the limit is {MAX_DATA_BYTES:,}")
    return texts.encoded(vocabulary), n_cut


def _of_ids(data: CleanSet, text: TextInput) -> CleanSet:
    if not isinstance(data.modality, TextModality):
        message = f"data are samples of kind {data.modality.name!r}; expected texts, as the model takes them"
        raise RefusedError("data", message)
    named = named_tensors(data.inputs)
    ids = named.get(IDS, next(iter(named.values())))
    size, longest = text.vocabulary.size, text.vocabulary.max_length
    if int(ids.max()) >= size:
        expected = f"expected ids in [0, {size}) for the rows of the model's embedding"
        raise RefusedError("data", f"data hold the id {int(ids.max())}; {expected}")
    if ids.shape[1] > longest:
        message = f"data hold texts of {ids.shape[1]:,} tokens; expected at most {longest:,}, as the model takes them"
        raise RefusedError("data", message)
    return CleanSet(data.inputs, data.labels, **data.description | {"modality": TextModality(text.vocabulary)})


def _in_order_of(texts: Texts, class_names: tuple[str, ...]) -> Texts:
    """With the labels of the model's order, where the names are the same."""
    assert texts.class_names is not None
    given, wanted = ([name.casefold() for name in names] for names in (texts.class_names, class_names))
    if sorted(given) != sorted(wanted):
        if len(given) != len(wanted):
            found = f"data have {len(given)} classes ({listed(list(texts.class_names))}); the model has {len(wanted)}"
            raise RefusedError("data", f"{found}: expected as many")
        return texts
    order = torch.tensor([wanted.index(name) for name in given])
    return Texts(texts.texts, order[texts.labels], class_names)
