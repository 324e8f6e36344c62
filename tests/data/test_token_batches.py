"""Token ids of different lengths: batches of usual collators, unpadded samples, sets of Hugging Face."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from refusals import raises
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from seamfast import CleanSet
from seamfast.data import as_clean_set
from seamfast.data.rereading import AugmentingSet
from seamfast.errors import ShapeError

PAD = 9
IDS = [[1 + (i + j) % 8 for j in range(1 + i * 3 % 7)] for i in range(12)]
LABELS = [i % 2 for i in range(12)]
SAMPLES = [{"input_ids": ids, "attention_mask": [1] * len(ids), "label": y} for ids, y in zip(IDS, LABELS, strict=True)]
LONGEST = max(map(len, IDS))


def dynamic(samples: list[dict[str, Any]], *, on_left: bool = False) -> dict[str, Tensor]:
    """A collation as that of transformers: to the longest of the batch, labels under ``labels``."""
    length = max(len(sample["input_ids"]) for sample in samples)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "token_type_ids": []}
    for sample in samples:
        n, missing = len(sample["input_ids"]), length - len(sample["input_ids"])
        for name, values, filler in (
            ("input_ids", sample["input_ids"], PAD),
            ("attention_mask", [1] * n, 0),
            ("token_type_ids", [1] * n, 0),
        ):
            more = [filler] * missing
            rows[name].append(more + values if on_left else values + more)
    return {name: torch.tensor(v) for name, v in rows.items()} | {"labels": torch.tensor([s["label"] for s in samples])}


def expected(pad: int, *, on_left: bool = False) -> dict[tuple[int, ...], int]:
    """Ids and mask of each sample, padded to the longest."""
    made = {}
    for ids, label in zip(IDS, LABELS, strict=True):
        row, mask = ids, [1] * len(ids)
        missing = LONGEST - len(ids)
        row, mask = (
            ([pad] * missing + row, [0] * missing + mask) if on_left else (row + [pad] * missing, mask + [0] * missing)
        )
        made[tuple(row + mask)] = label
    return made


def found(data: CleanSet) -> dict[tuple[int, ...], int]:
    assert isinstance(data.inputs, dict)
    both = torch.cat([data.inputs["input_ids"], data.inputs["attention_mask"]], dim=1)
    assert len(data) == len(IDS)
    return {tuple(row): label for row, label in zip(both.tolist(), data.labels.tolist(), strict=True)}


class Samples(Dataset[dict[str, Any]]):
    def __init__(self, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> None:
        self.change = change

    def __len__(self) -> int:
        return len(SAMPLES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.change(SAMPLES[index])


class Stream(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(dict, SAMPLES)


class Columns:
    """As a ``datasets.Dataset``: rows by index, columns by name, several rows as a mapping to lists."""

    column_names = ("sentence", "label", "idx", "input_ids", "attention_mask")

    def __len__(self) -> int:
        return len(SAMPLES)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return [row[key] for row in self]
        if isinstance(key, (int, np.integer)):
            if not 0 <= key < len(self):
                raise IndexError
            return {"sentence": f"text {key}", "idx": int(key), **SAMPLES[key]}
        rows = [self[i] for i in (range(*key.indices(len(self))) if isinstance(key, slice) else key)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        return [self[i] for i in keys]


def batches(*sizes: int, on_left: bool = False) -> list[dict[str, Tensor]]:
    made, at = [], 0
    for size in sizes:
        made.append(dynamic(SAMPLES[at : at + size], on_left=on_left))
        at += size
    return made


@pytest.mark.parametrize("on_left", [False, True])
def test_batches_are_padded_to_the_longest_on_their_side(on_left):
    data = as_clean_set(batches(5, 4, 3, on_left=on_left))
    assert found(data) == expected(PAD, on_left=on_left)
    types = data.inputs["token_type_ids"]
    assert torch.equal(types, data.inputs["attention_mask"])
    assert {value.dtype for value in data.inputs.values()} == {torch.int64}


def test_order_of_the_samples_does_not_matter():
    one = as_clean_set(batches(5, 4, 3))
    other = as_clean_set(batches(2, 6, 4)[::-1])
    assert one.sha256() == other.sha256()


def test_shuffled_loader_of_transformers_style():
    loader = DataLoader(Samples(), batch_size=5, shuffle=True, collate_fn=dynamic)
    data = as_clean_set(loader, augments=None)
    assert found(data) == expected(PAD)
    assert data.labels.tolist() == LABELS  # in the order of the dataset
    assert data.reads_agree is True  # read twice, with other padding


def test_padding_is_zero_where_no_batch_shows_it():
    assert found(as_clean_set(batches(*[1] * 12))) == expected(0)
    without = [{k: v for k, v in batch.items() if k != "attention_mask"} for batch in batches(*[1] * 12)]
    data = as_clean_set(without)
    assert {tuple(row) for row in data.inputs["input_ids"].tolist()} == {tuple(r[:LONGEST]) for r in expected(0)}


def test_a_text_of_no_token_has_no_side():
    empty = {
        "input_ids": torch.tensor([[PAD, PAD]]),
        "attention_mask": torch.tensor([[0, 0]]),
        "label": torch.tensor([0]),
    }
    data = as_clean_set(
        [*batches(6, 6, on_left=True), empty | {"token_type_ids": torch.zeros(1, 2, dtype=torch.int64)}][::-1]
    )
    mask = data.inputs["attention_mask"]
    assert mask.sum() == sum(map(len, IDS))
    assert mask[mask.any(1)][:, -1].all()


@pytest.mark.parametrize(
    ("data", "in_order"),
    [
        (Samples(), True),
        (Samples(lambda sample: {name: torch.tensor(value) for name, value in sample.items()}), True),
        (Samples(lambda sample: {name: np.array(value) for name, value in sample.items()}), True),
        (Samples(lambda sample: UserDict(sample, sentence="a text", idx=3, tokens=["a", "b"])), True),
        (Columns(), True),
        (SAMPLES, True),
        (DataLoader(Samples(), batch_size=5, shuffle=True), True),
        (DataLoader(Columns(), batch_size=5, shuffle=True), True),
        (Stream(), False),
        ([Columns()[at : at + 5] for at in (0, 5, 10)], False),
        ([({"input_ids": Columns()["input_ids"], "attention_mask": Columns()["attention_mask"]}, LABELS)], False),
    ],
    ids=[
        "lists",
        "tensors",
        "arrays",
        "UserDict",
        "columns",
        "list",
        "loader",
        "columns loader",
        "stream",
        "slices",
        "pairs",
    ],
)
def test_unpadded_samples_are_padded(data, in_order):
    read = as_clean_set(data, augments=None if in_order else False)
    assert found(read) == expected(0)
    assert set(read.inputs) == {"input_ids", "attention_mask"}
    assert not in_order or (read.labels.tolist() == LABELS and read.reads_agree is True)


def test_workers_collate_too():
    assert found(as_clean_set(DataLoader(Samples(), batch_size=5, num_workers=1))) == expected(0)


def test_dataset_of_hugging_face():
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    rows = [sample | {"sentence": "a text", "idx": i} for i, sample in enumerate(SAMPLES)]
    assert found(as_clean_set(datasets.Dataset.from_list(rows))) == expected(0)


def test_batch_encoding():
    transformers = pytest.importorskip("transformers", reason="needs seamfast[hf]")
    made = [transformers.BatchEncoding(dict(batch)) for batch in batches(5, 4, 3)]
    assert found(as_clean_set(made)) == expected(PAD)
    collator = pytest.importorskip("transformers.data.data_collator").DefaultDataCollator()
    equal = [s for s in SAMPLES if len(s["input_ids"]) == LONGEST]
    assert len(as_clean_set(DataLoader(equal, batch_size=2, collate_fn=collator))) == len(equal)


# Samples that change.


def _dropping(sample: dict[str, Any]) -> dict[str, Any]:
    """Changes a token at random, and no length."""
    ids = list(sample["input_ids"])
    ids[int(torch.randint(len(ids), ()))] = 100 + int(torch.randint(10**6, ()))
    return {**sample, "input_ids": ids}


@pytest.mark.parametrize("collation", [None, dynamic])
def test_padding_is_no_augmentation_and_changed_tokens_are(collation):
    make = partial(DataLoader, batch_size=5, collate_fn=collation)
    assert not isinstance(as_clean_set(make(Samples()), augments=None), AugmentingSet)
    data = as_clean_set(make(Samples(_dropping)), augments=None)
    assert isinstance(data, AugmentingSet)
    ((_, inputs),) = data.fresh([torch.tensor([0, 7])])  # short ones, as long as the others all the same
    assert inputs["input_ids"].shape == (2, LONGEST)
    assert torch.equal(inputs["attention_mask"], data.inputs["attention_mask"][[0, 7]])


# What does not fit together.


def test_refusals():
    first, *others = batches(5, 4, 3)
    with raises(ShapeError, "batch 0: attention_mask has shape (5, 2) and input_ids (5, 7); expected the same"):
        as_clean_set([first | {"attention_mask": first["attention_mask"][:, :2]}, *others])
    with raises(ShapeError, "batch 1 holds samples of shape (2,); expected (3,) as in the first batch"):
        as_clean_set([b | {"extra": torch.zeros(len(b["labels"]), 3 - i)} for i, b in enumerate((first, others[0]))])
    uneven = [{**SAMPLES[0], "attention_mask": [1, 1, 1]}, SAMPLES[1]]
    with raises(ShapeError, "batch 0: attention_mask has 3 numbers and input_ids 1 in one sample; expected the same"):
        as_clean_set(uneven)
    short = {"input_ids": IDS[:2], "attention_mask": [[1]], "label": [0, 1]}
    with raises(
        ShapeError, "batch 0: rows are 2 of input_ids, 1 of attention_mask; expected the same number of samples in all"
    ):
        as_clean_set([short])
    with raises(ShapeError, "batch 1 holds samples of shape (3,); expected (2,) as in the first batch"):
        as_clean_set([(torch.zeros(1, 2), [0]), (torch.zeros(1, 3), [1])])  # no ids of tokens: as before
