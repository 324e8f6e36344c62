from __future__ import annotations

import re
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from refusals import raises
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from seamfast import CleanSet
from seamfast.data import as_clean_set
from seamfast.errors import DTypeError, InputError, ShapeError

N = 23
INPUTS = torch.randn(N, 3, 4, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(N) % 4
BATCHES = list(zip(INPUTS.split(5), LABELS.split(5), strict=True))  # the last one has 3


class Tuples(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= N:
            raise IndexError
        return INPUTS[index], int(LABELS[index])


class Dicts(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": INPUTS[index], "label": int(LABELS[index]), "mask": torch.tensor([index, 1])}


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((INPUTS[i], int(LABELS[i])) for i in range(N))


def rows(data: CleanSet) -> list[tuple[list[float], int]]:
    """The samples as a sorted list, so that only their order is left open."""
    assert isinstance(data.inputs, Tensor)
    return sorted(zip(data.inputs.flatten(1).tolist(), data.labels.tolist(), strict=True))


ALL = rows(CleanSet(INPUTS, LABELS))


def same(a: CleanSet, b: CleanSet) -> bool:
    assert isinstance(a.inputs, Tensor)
    assert isinstance(b.inputs, Tensor)
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (INPUTS, LABELS),
        lambda: [INPUTS, LABELS],
        lambda: (INPUTS.numpy(), LABELS.tolist()),
        Tuples,
        lambda: TensorDataset(INPUTS, LABELS),
        Stream,
        lambda: DataLoader(Tuples(), batch_size=4),
        lambda: DataLoader(Tuples(), batch_size=4, shuffle=True),
        lambda: BATCHES,
        lambda: tuple(BATCHES),
        lambda: (batch for batch in BATCHES),
        lambda: [[x, y, "anything else"] for x, y in BATCHES],
        lambda: [(x.numpy(), y.tolist()) for x, y in BATCHES],
        lambda: [*BATCHES[:2], (INPUTS[10:], LABELS[10:])],
    ],
    ids=[
        "pair", "list-pair", "array-and-list", "Dataset", "TensorDataset", "IterableDataset", "DataLoader",
        "DataLoader-shuffling", "list", "tuple", "generator", "longer-batches", "arrays", "uneven-batches",
    ],
)  # fmt: skip
def test_every_source_gives_all_samples_with_their_labels(make: Callable[[], Any]) -> None:
    assert rows(as_clean_set(make())) == ALL


def test_a_clean_set_is_returned_as_it_is() -> None:
    data = CleanSet(INPUTS, LABELS)
    assert as_clean_set(data) is data


def test_pairs_and_datasets_keep_their_order() -> None:
    for data in ((INPUTS, LABELS), Tuples()):
        assert same(as_clean_set(data), CleanSet(INPUTS, LABELS))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, N])
def test_the_order_in_which_a_loader_draws_does_not_matter(shuffle: bool, batch_size: int) -> None:
    wanted = CleanSet(INPUTS, LABELS)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(Tuples(), batch_size=batch_size, shuffle=shuffle, generator=generator)
        assert same(as_clean_set(loader), wanted)


def test_the_order_of_batches_without_indices_does_not_matter() -> None:
    wanted = as_clean_set(BATCHES)
    assert same(as_clean_set(BATCHES[::-1]), wanted)
    for batch_size in (1, 7, N):
        assert same(as_clean_set(DataLoader(Stream(), batch_size=batch_size)), wanted)


class Backwards(DataLoader[Any]):
    """A loader with a pass of its own."""

    def __iter__(self) -> Any:
        return iter([(inputs.flip(0), labels.flip(0)) for inputs, labels in list(super().__iter__())[::-1]])


def test_a_loader_with_a_pass_of_its_own_is_read_by_it() -> None:
    assert same(as_clean_set(Backwards(Tuples(), batch_size=5)), as_clean_set(BATCHES))
    assert not same(as_clean_set(BATCHES), CleanSet(INPUTS, LABELS))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"sampler": [5, 2, 2, 9]}, [2, 2, 5, 9]),
        ({"sampler": SubsetRandomSampler([8, 3, 1])}, [1, 3, 8]),
        ({"sampler": torch.tensor([4, 0, 22])}, [0, 4, 22]),
        ({"batch_sampler": [[7, 6], [1], [0, 3]]}, [0, 1, 3, 6, 7]),
    ],
)
def test_samplers_say_which_samples(options: dict[str, Any], wanted: list[int]) -> None:
    assert same(as_clean_set(DataLoader(Tuples(), **options)), CleanSet(INPUTS, LABELS).subset(wanted))


@pytest.mark.parametrize(
    ("options", "n", "repeats"),
    [
        ({"sampler": WeightedRandomSampler([1.0] * 3 + [0.0] * (N - 3), 12)}, 12, True),
        ({"shuffle": True, "drop_last": True}, 20, False),
    ],
)
def test_samples_drawn_or_dropped_at_random_are_those_of_one_pass(
    options: dict[str, Any], n: int, repeats: bool
) -> None:
    loader = DataLoader(Tuples(), batch_size=5, **options)
    got = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        got.append(as_clean_set(loader))
    assert same(got[0], got[1])
    assert not same(got[0], got[2])
    for data in got:
        assert len(data) == n
        assert all(row in ALL for row in rows(data))
        assert (len({str(row) for row in rows(data)}) < n) == repeats


def test_equal_inputs_are_ordered_by_their_labels() -> None:
    inputs = torch.zeros(6, 2)
    one, other = (as_clean_set([(inputs, torch.tensor(y))]) for y in ([0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]))
    assert same(one, other)


def test_the_order_of_named_inputs_follows_all_of_them() -> None:
    def loader(order: list[int]) -> list[dict[str, Tensor]]:
        return [{"a": torch.zeros(4, 1), "b": torch.arange(4)[order], "labels": torch.zeros(4, dtype=torch.long)}]

    one, other = as_clean_set(loader([0, 1, 2, 3])), as_clean_set(loader([3, 1, 0, 2]))
    assert isinstance(one.inputs, dict)
    assert isinstance(other.inputs, dict)
    assert torch.equal(one.inputs["b"], other.inputs["b"])


def test_a_loader_that_drops_its_last_batch_gives_the_rest() -> None:
    data = as_clean_set(DataLoader(Tuples(), batch_size=5, drop_last=True))
    assert rows(data) == rows(CleanSet(INPUTS[:20], LABELS[:20]))


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings_find_their_labels(key: str, kind: Callable[[dict[str, Any]], Any]) -> None:
    ids = torch.arange(N)
    batches = [kind({"x": INPUTS[i], "ids": ids[i], key: LABELS[i]}) for i in ids.split(5)]
    data = as_clean_set(batches)
    assert isinstance(data.inputs, dict)
    assert list(data.inputs) == ["x", "ids"]
    order = data.inputs["ids"]
    assert order.sort().values.tolist() == list(range(N))
    assert torch.equal(data.inputs["x"], INPUTS[order])
    assert torch.equal(data.labels, LABELS[order])


def test_a_dataset_of_dicts_keeps_its_order() -> None:
    data = as_clean_set(Dicts())
    assert isinstance(data.inputs, dict)
    assert torch.equal(data.inputs["x"], INPUTS)
    assert data.inputs["mask"][:, 0].tolist() == list(range(N))
    assert torch.equal(data.labels, LABELS)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_named_inputs_beside_their_labels(kind: Callable[[dict[str, Any]], Any]) -> None:
    batches = [(kind({"x": x, "twice": 2 * x}), y) for x, y in BATCHES]
    data = as_clean_set(batches)
    assert isinstance(data.inputs, dict)
    assert torch.equal(data.inputs["twice"], 2 * data.inputs["x"])
    assert rows(CleanSet(data.inputs["x"], data.labels)) == ALL
    pair = as_clean_set((kind({"x": INPUTS}), LABELS))
    assert isinstance(pair.inputs, dict)
    assert torch.equal(pair.inputs["x"], INPUTS)


def test_pixels_from_a_loader_are_pixels() -> None:
    images = torch.randint(0, 256, (N, 8, 8, 3), dtype=torch.uint8)
    data = as_clean_set(DataLoader(TensorDataset(images, LABELS), batch_size=4))
    assert data.is_pixels
    assert data.image_shape == (3, 8, 8)
    assert (data.mean, data.std) == ((0.0,), (1.0,))


def test_a_loader_may_fill_the_same_array_again() -> None:
    def refilling() -> Iterator[tuple[Any, Any]]:
        buffer = np.empty((1, 2), np.float32)
        for i in range(4):
            buffer[:] = i
            yield buffer, [i]

    data = as_clean_set(refilling())
    assert isinstance(data.inputs, Tensor)
    assert torch.equal(data.inputs, data.labels[:, None].expand(4, 2).float())


def test_gradients_stay_behind() -> None:
    data = as_clean_set([(INPUTS.clone().requires_grad_(), LABELS)])
    assert isinstance(data.inputs, Tensor)
    assert not data.inputs.requires_grad


NO_SAMPLES = "clean_loader yielded no samples; an iterator that was already consumed yields none"


@pytest.mark.parametrize(
    "make",
    [
        list,
        lambda: iter(()),
        lambda: DataLoader(Tuples(), batch_size=30, drop_last=True),
        lambda: [(INPUTS[:0], LABELS[:0])],
    ],
)
def test_no_samples(make: Callable[[], Any]) -> None:
    with raises(InputError, NO_SAMPLES):
        as_clean_set(make())


def test_a_consumed_generator_is_not_an_empty_set() -> None:
    batches = iter(BATCHES)
    assert len(as_clean_set(batches)) == N
    with raises(InputError, NO_SAMPLES):
        as_clean_set(batches)


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("a Tensor of shape (23, 3, 4)", INPUTS),
        ("a ndarray of shape (23, 3, 4)", INPUTS.numpy()),
        ("a dict of length 2", {"x": INPUTS, "labels": LABELS}),
        ("a UserDict of length 2", UserDict({"x": INPUTS, "labels": LABELS})),
        ("a str", "data/"),
        ("a bytes", b"data/"),
        ("a NoneType", None),
        ("a int", 3),
    ],
)
def test_what_holds_no_batches_is_named(what: str, data: Any) -> None:
    expected = "expected a DataLoader, a Dataset, an (inputs, labels) pair or a seamfast.CleanSet"
    with raises(InputError, f"clean_loader is {what}; {expected}"):
        as_clean_set(data)


X, Y = INPUTS[:5], LABELS[:5]


@pytest.mark.parametrize(
    ("kind", "message", "second"),
    [
        (InputError, "batch 1 is a Tensor of shape (5, 3, 4); expected (inputs, labels) or a mapping with labels", X),
        (InputError, "batch 1 is a list of length 1; expected (inputs, labels) or a mapping with labels", [X]),
        (InputError, "batch 1 is a NoneType; expected (inputs, labels) or a mapping with labels", None),
        (
            InputError,
            "batch 1 has keys ['a', 'x']; expected the labels under one of ('labels', 'label', 'targets', 'target', "
            "'y')",
            {"x": X, "a": Y},
        ),
        (InputError, "batch 1 has labels only; expected inputs beside 'y'", {"y": Y}),
        (InputError, "batch 1 holds ['x']; expected ['unnamed inputs'] as in the first batch", {"x": X, "y": Y}),
        (
            InputError,
            "batch 1: inputs is a list of length 5; expected numbers in a tensor or array",
            (["a"] * 5, Y),
        ),
        (
            InputError,
            "batch 1: inputs is a list of length 2; expected numbers in a tensor or array",
            ([[1.0], [2.0, 3.0]], [0, 1]),
        ),
        (
            ShapeError,
            "batch 1: inputs has shape (5, 3, 4) and labels (4,); expected the same number of samples in both",
            (X, Y[:4]),
        ),
        (
            ShapeError,
            "batch 1 holds samples of shape (3, 3); expected (3, 4) as in the first batch",
            (X[:, :, :3], Y),
        ),
        (ShapeError, "labels has shape (5, 4); expected (N,) = (5,)", (X, torch.zeros(5, 4))),
        (ShapeError, "labels has shape (); expected (N,) = (1,)", (X[0], 3)),
        (DTypeError, "labels has dtype float32; expected an integer dtype", (X, Y.float())),
        (DTypeError, "labels has dtype <U1; expected numbers", (X, list("abcde"))),
        (InputError, "labels hold -1; expected integers from 0", (X, Y - 1)),
        (InputError, "inputs holds NaN or Inf, first in sample", (X * float("nan"), Y)),
    ],
)
def test_a_batch_that_cannot_be_used_is_named(kind: type[Exception], message: str, second: Any) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        as_clean_set([(X, Y), second])


def test_single_samples_are_no_batches() -> None:
    with raises(ShapeError, "labels has shape (); expected (N,) = (1,)"):
        as_clean_set(DataLoader(Tuples(), batch_size=None))


def test_what_a_loader_raises_comes_through() -> None:
    class BrokenError(Exception):
        pass

    def broken() -> Iterator[Any]:
        yield X, Y
        raise BrokenError("disk on fire")

    class BrokenSet(Tuples):
        def __getitem__(self, index: int) -> Any:
            raise BrokenError("disk on fire")

    for data in (broken(), BrokenSet(), DataLoader(BrokenSet())):
        with pytest.raises(BrokenError, match="disk on fire"):
            as_clean_set(data)
