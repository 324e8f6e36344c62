"""Samples that come out differently each time: found out, read anew, and what of them must stay."""

from __future__ import annotations

import multiprocessing
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler

from seamfast import CleanSet
from seamfast.data import as_clean_set
from seamfast.data.rereading import AugmentingSet
from seamfast.data.resident import Resident
from seamfast.engine.subject import as_called
from seamfast.errors import InputError, ShapeError
from seamfast.modalities import Augmentation

N = 23
CPU = torch.device("cpu")


class Drawing(Dataset[Any]):
    """Sample ``i`` is ``[i, i + noise]``, of class ``i % 3``."""

    def __init__(self, noise: Callable[[], float] = lambda: 0.0, n: int = N) -> None:
        self.noise, self.n, self.read = noise, n, list[int]()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(int(index))
        return torch.tensor([float(index), index + self.noise()]), index % 3


def torch_noise() -> float:
    return float(torch.rand(()))


def numpy_noise() -> float:
    return float(np.random.rand())  # noqa: NPY002 - what users' code does


NOISES = {"torch": torch_noise, "numpy": numpy_noise, "python": random.random}


def seed_alike(worker: int) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


def raises(message: str, kind: type[Exception] = InputError) -> Any:
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def augmenting(data: Any, augments: bool | None = None) -> AugmentingSet:
    samples = as_clean_set(data, augments=augments)
    assert isinstance(samples, AugmentingSet)
    return samples


def read_once(data: Any, augments: bool | None = None) -> CleanSet:
    samples = as_clean_set(data, augments=augments)
    assert type(samples) is CleanSet
    return samples


def fresh(samples: AugmentingSet, rows: Sequence[Sequence[int]]) -> list[Any]:
    with closing(samples.fresh(torch.tensor(row) for row in rows)) as batches:
        got = list(batches)
    assert [indices.tolist() for indices, _ in got] == [list(row) for row in rows]
    return [inputs for _, inputs in got]


# Found out.


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_draws_are_found_out(noise: str, batch_size: int) -> None:
    data = Drawing(NOISES[noise])
    for source in (
        data,
        DataLoader(data, batch_size=batch_size),
        DataLoader(data, batch_size=batch_size, shuffle=True),
    ):
        samples = augmenting(source)
        assert isinstance(samples.inputs, Tensor)
        assert samples.inputs[:, 0].tolist() == list(range(N))  # as the dataset has them
        assert samples.labels.tolist() == [i % 3 for i in range(N)]


@pytest.mark.parametrize(("noise", "batch_size"), [("torch", 5), ("numpy", 64), ("python", 5)])
def test_draws_are_found_out_in_workers_that_are_seeded_alike(noise: str, batch_size: int) -> None:
    """Of 64 a batch, each of the two workers reads the same samples, and draws them from the same seed."""
    options: dict[str, Any] = {"num_workers": 2, "worker_init_fn": seed_alike}
    augmenting(DataLoader(Drawing(NOISES[noise]), batch_size=batch_size, **options))
    assert multiprocessing.active_children() == []


def test_draws_in_a_part_of_the_set_are_found_out() -> None:
    augmenting(ConcatDataset([Drawing(n=500), Drawing(torch_noise, n=100)]))


def test_no_draws_are_found_in_workers_either() -> None:
    """Where each is prepared as the caller's are."""
    prepared = []
    data = Drawing(lambda: len(prepared) / 4)
    samples = read_once(DataLoader(data, batch_size=5, num_workers=2, worker_init_fn=prepared.append, shuffle=True))
    assert isinstance(samples.inputs, Tensor)
    assert samples.inputs.tolist() == [[i, i + 0.25] for i in range(N)]


@pytest.mark.parametrize(("n", "n_probed"), [(1, 1), (2, 2), (23, 23), (64, 64), (300, 64)])
def test_a_set_that_draws_nothing_is_read_once_and_a_part_of_it_twice(n: int, n_probed: int) -> None:
    data = Drawing(n=n)
    read_once(DataLoader(data, batch_size=16, shuffle=True))
    assert data.read[:n] == list(range(n))
    again = data.read[n:]
    assert len(set(again)) == len(again) == n_probed
    assert {0, n - 1} <= set(again)


@pytest.mark.parametrize("augments", [True, False])
def test_where_it_is_said_nothing_is_read_twice(augments: bool) -> None:
    for noise in (lambda: 0.0, torch_noise):
        data = Drawing(noise)
        samples = as_clean_set(DataLoader(data, batch_size=4), augments=augments)
        assert data.read == list(range(N))
        assert isinstance(samples, AugmentingSet) == augments
    assert type(as_clean_set(Drawing(torch_noise))) is CleanSet


def test_the_loader_and_its_generator_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(Drawing(torch_noise), batch_size=4, generator=generator)
    state = generator.get_state()
    samples = augmenting(loader)
    fresh(samples, [[1, 2]])
    assert torch.equal(generator.get_state(), state)


# Read anew.


@pytest.mark.parametrize("keep", [lambda data: data, lambda data: Subset(data, [7, 3, 7, 11])])
def test_every_batch_is_drawn_anew_when_it_is_asked_for(keep: Callable[[Any], Any]) -> None:
    data = Drawing(torch_noise)
    samples = augmenting(keep(data))
    assert isinstance(samples.inputs, Tensor)
    first = samples.inputs.clone()
    data.read.clear()
    with closing(samples.fresh(torch.tensor(row) for row in ([2, 0, 2], [2, 1]))) as batches:
        assert data.read == []
        _, one = next(batches)
        assert data.read == [int(first[i, 0]) for i in (2, 0, 2)]
        _, other = next(batches)
    assert isinstance(one, Tensor)
    assert isinstance(other, Tensor)
    assert torch.equal(one[:, 0], first[[2, 0, 2], 0])
    assert torch.equal(other[:, 0], first[[2, 1], 0])
    assert len({float(x) for x in (*one[[0, 2], 1], other[0, 1], first[2, 1])}) == 4
    assert torch.equal(samples.inputs, first)  # what is held out is measured on


def test_workers_draw_for_the_same_order_and_by_torchs_seed_alone() -> None:
    rows = [[5, 1], [0, 22, 3], [1, 5], [9]]

    def drawn(seed: int) -> list[Any]:
        torch.manual_seed(seed)
        random.seed(seed + 1)
        loader = DataLoader(Drawing(lambda: torch_noise() + numpy_noise() + random.random()), num_workers=2)
        return fresh(augmenting(loader, augments=True), rows)

    got, again, other = drawn(0), drawn(0), drawn(1)
    assert [batch[:, 0].tolist() for batch in got] == rows
    assert all(map(torch.equal, got, again))
    assert not any(map(torch.equal, got, other))


def test_workers_end_when_no_more_is_asked_for() -> None:
    samples = augmenting(DataLoader(Drawing(), num_workers=2), augments=True)
    assert multiprocessing.active_children() == []
    batches = samples.fresh(torch.tensor([i % N]) for i in range(1000))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_part_draws_anew_too() -> None:
    samples = augmenting(Drawing(torch_noise)).subset([4, 8, 15]).subset([2, 0])
    (inputs,) = fresh(samples, [[1, 0, 1]])
    assert inputs[:, 0].tolist() == [4, 15, 4]
    assert isinstance(samples.draw(0.5), AugmentingSet)
    plain = samples.first_draws()
    assert type(plain) is CleanSet
    assert torch.equal(plain.inputs, samples.inputs)


@pytest.mark.parametrize("sampler", [[9, 4, 4, 0], SubsetRandomSampler([9, 4, 4, 0]), torch.tensor([9, 4, 4, 0])])
def test_samples_of_a_sampler_are_drawn_anew_under_their_own_index(sampler: Any) -> None:
    samples = augmenting(DataLoader(Drawing(torch_noise), sampler=sampler))
    assert isinstance(samples.inputs, Tensor)
    assert samples.inputs[:, 0].tolist() == [0, 4, 4, 9]
    assert fresh(samples, [[3, 0, 1]])[0][:, 0].tolist() == [9, 0, 4]


class ByName(Dataset[Any]):
    def __getitem__(self, name: str) -> tuple[Tensor, int]:
        return torch.tensor([float(ord(name)), torch_noise()]), ord(name) % 3


def test_names_are_indices_too() -> None:
    names = "hgfedcba"
    samples = augmenting(DataLoader(ByName(), sampler=list(names)))
    assert isinstance(samples.inputs, Tensor)
    assert sorted(map(chr, samples.inputs[:, 0].int())) == sorted(names)
    assert torch.equal(samples.inputs[:, 0] % 3, samples.labels)
    (inputs,) = fresh(samples, [[1, 2, 0, 7]])
    assert torch.equal(inputs[:, 0], samples.inputs[[1, 2, 0, 7], 0])


# In the form that a model takes.


class Images(Dataset[Any]):
    """Constant images whose value is the index, plus noise in the lowest bit."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.full((6, 5, 3), 2 * index, dtype=torch.uint8)
        image[:, 2:] += 100
        return image + int(torch.randint(2, ())), index % 3


def training_batches(samples: CleanSet, dtype: torch.dtype = torch.float32, **augmentation: Any) -> list[Any]:
    drawn = [(torch.tensor([i, (i + 7) % N, i]), i // 3) for i in range(6)]
    with closing(Resident(samples, CPU, dtype).training_batches(drawn, Augmentation(**augmentation))) as batches:
        got = list(batches)
    for (indices, _), (wanted, _) in zip(got, drawn, strict=True):
        assert torch.equal(indices, wanted)
    return [inputs for _, inputs in got]


def test_pixels_are_normalized_as_those_that_are_read_once() -> None:
    samples = augmenting(Images())
    assert samples.image_shape == (3, 6, 5)
    for i, inputs in enumerate(training_batches(samples, torch.bfloat16)):
        assert inputs.dtype == torch.bfloat16
        assert inputs.shape == (3, 3, 6, 5)
        for value, index in zip(inputs[:, 0, 0, 0].tolist(), (i, (i + 7) % N, i), strict=True):
            assert value in (torch.tensor([2 * index, 2 * index + 1]) / 255).bfloat16().tolist()


def test_crops_and_flips_are_drawn_on_top_of_it() -> None:
    samples = augmenting(Images(), augments=True)

    def flips(seed: int) -> list[list[bool]]:
        return [(x[:, 0, 0, 0] > 0.3).tolist() for x in training_batches(samples, flip=True, seed=seed)]

    assert flips(0) == flips(0)
    assert flips(0) != flips(1)
    assert len({str(row) for row in flips(0)}) > 2  # not by epoch or place alone
    assert not torch.equal(*(training_batches(samples, pad=2, seed=seed)[0] for seed in (0, 1)))


def test_floats_and_named_inputs_arrive_in_the_dtype_asked_for() -> None:
    floats = augmenting(Drawing(torch_noise))
    assert {x.dtype for x in training_batches(floats, torch.float64)} == {torch.float64}

    def collate(samples: list[tuple[Tensor, int]]) -> dict[str, Any]:
        x, y = torch.utils.data.default_collate(samples)
        return {"x": x, "ids": x[:, 0].long(), "labels": y}

    named = augmenting(DataLoader(Drawing(torch_noise), collate_fn=collate))
    for inputs in training_batches(named, torch.bfloat16):
        assert {k: v.dtype for k, v in inputs.items()} == {"x": torch.bfloat16, "ids": torch.int64}
        assert torch.equal(inputs["x"][:, 0], inputs["ids"].bfloat16())


def test_a_set_that_is_read_once_trains_on_what_was_read() -> None:
    data = Drawing(torch_noise)
    samples = read_once(data, augments=False)
    data.read.clear()
    assert isinstance(samples.inputs, Tensor)
    assert torch.equal(training_batches(samples)[0], samples.inputs[[0, 7, 0]])
    assert data.read == []
    assert Resident(samples, CPU).gathers_on_device
    assert not Resident(augmenting(data), CPU).gathers_on_device


@pytest.mark.gpu
def test_fresh_batches_on_a_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    for samples in (augmenting(Images()), augmenting(Drawing(torch_noise))):
        batches = []
        for target in (CPU, device):
            torch.manual_seed(6)
            drawn = [(torch.tensor([3, 1, 3]), 0), (torch.tensor([2, 9, 4]), 0)]
            augmentation = Augmentation(flip=samples.is_pixels)
            with closing(Resident(samples, target).training_batches(drawn, augmentation)) as made:
                batches.append(list(made))
        for (indices, inputs), (wanted, same) in zip(batches[1], batches[0], strict=True):
            assert isinstance(inputs, Tensor)
            assert isinstance(same, Tensor)
            assert {indices.device, inputs.device} == {device}
            assert torch.equal(indices.cpu(), wanted)
            assert torch.equal(inputs.cpu(), same)


class Dicts(Drawing):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return {"pixel_values": x, "labels": y}


def test_fresh_inputs_are_made_to_fit_the_call() -> None:
    samples = augmenting(Dicts(torch_noise))
    assert isinstance(samples.inputs, dict)
    fitted = as_called(nn.Linear(2, 3), samples)
    assert isinstance(fitted, AugmentingSet)
    assert isinstance(fitted.inputs, Tensor)
    (inputs,) = fresh(fitted.subset([6, 5]), [[1]])
    assert inputs[:, 0].tolist() == [5]


# What must stay.


class Relabelling(Drawing):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        first = index not in self.read
        x, y = super().__getitem__(index)
        return x, y if first or index != 11 else 1


STAY = (
    "sample 11 of clean_loader had the label 2 when it was first read and has 1 now; expected labels that stay: "
    "pass augments=False to have it read once"
)


def test_labels_that_change_are_refused() -> None:
    with raises(STAY):
        as_clean_set(Relabelling(), augments=None)
    samples = augmenting(Relabelling(), augments=True)
    fresh(samples, [[10, 12]])
    with raises(STAY):
        fresh(samples, [[10, 12], [3, 11]])
    assert read_once(Relabelling(), augments=False).labels[11] == 2


class Later(Drawing):
    """Other samples after the first read."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def __getitem__(self, index: int) -> Any:
        first = index not in self.read
        x, y = super().__getitem__(index)
        return (x, y) if first else (self.change(x), y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:1], "clean_loader gives inputs of (1,) float32; expected (2,) float32 as on the first read"),
        (lambda x: x.long(), "clean_loader gives inputs of (2,) int64; expected (2,) float32 as on the first read"),
        (lambda x: {"x": x}, "clean_loader gives ['x']; expected ['inputs'] as on the first read"),
        (
            lambda x: x / (x[0] != 11),
            "inputs holds NaN or Inf in sample 11 of clean_loader; expected finite numbers",
        ),
    ],
)
def test_samples_of_another_form_are_refused(change: Callable[[Tensor], Any], message: str) -> None:
    samples = augmenting(Later(change), augments=True)
    with raises(message):
        fresh(samples, [[12, 11]])


def halved(samples: list[Any]) -> Any:
    return torch.utils.data.default_collate(samples[: (len(samples) + 1) // 2])


def test_samples_that_a_collation_drops() -> None:
    loader = DataLoader(Drawing(torch_noise), batch_size=4, collate_fn=halved)
    assert len(read_once(loader)) == 12
    with raises("augments is True and clean_loader gave 12 samples for 23 indices; expected one each"):
        as_clean_set(loader, augments=True)
    one_by_one = augmenting(DataLoader(Drawing(torch_noise), batch_size=1, collate_fn=halved), augments=True)
    with raises(
        "clean_loader gave 2 samples for 4 indices; expected one each: pass augments=False to have it read once"
    ):
        fresh(one_by_one, [[1, 2, 3, 4]])


class Lengths(Drawing):
    """Sample ``i`` has ``lengths[i]`` numbers."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__(n=len(lengths))
        self.lengths = lengths

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.ones(self.lengths[index]), index % 3


def padded(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    inputs = nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True)
    return inputs, torch.tensor([y for _, y in samples])


def test_samples_padded_to_the_longest_of_their_batch_are_read_once() -> None:
    # Not among those that are read twice is the one long sample.
    samples = read_once(DataLoader(Lengths([5, 5, 9] + [5] * 97), batch_size=100, collate_fn=padded))
    assert isinstance(samples.inputs, Tensor)
    assert samples.inputs.shape == (100, 9)


# What cannot be read again.


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.rand(2), i % 3) for i in range(N)])


class OwnPass(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.rand(4, 2), torch.arange(4))])


WHOLE_BATCHES = [(torch.rand(5, 2), torch.arange(5)) for _ in range(2)]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: iter(WHOLE_BATCHES), "a list_iterator"),
        (lambda: WHOLE_BATCHES, "a list of length 2"),
        (lambda: (torch.rand(4, 2), torch.arange(4)), "a tuple of length 2"),
        (lambda: CleanSet(torch.rand(4, 2), torch.arange(4)), "a CleanSet"),
        (Stream, "a Stream"),
        (lambda: DataLoader(Stream(), batch_size=4), "a DataLoader"),
        (lambda: OwnPass(Drawing()), "a OwnPass"),
        (lambda: DataLoader(WHOLE_BATCHES, batch_size=None), "a DataLoader"),  # type: ignore[arg-type]
    ],
)
def test_what_has_no_indices_is_read_once(make: Callable[[], Any], what: str) -> None:
    read_once(make())
    with raises(
        f"augments is True and clean_loader is {what}; expected a map-style Dataset, or a DataLoader over one, whose "
        "samples can be read again by index"
    ):
        as_clean_set(make(), augments=True)


def test_an_augmenting_set_stays_one_unless_it_is_to_be_read_once() -> None:
    samples = augmenting(Drawing(torch_noise))
    assert as_clean_set(samples, augments=None) is samples
    assert as_clean_set(samples, augments=True) is samples
    assert torch.equal(read_once(samples, augments=False).inputs, samples.inputs)


@pytest.mark.parametrize("augments", ["yes", 1, 0.0])
def test_augments_is_a_truth_value(augments: Any) -> None:
    with raises(f"augments is {augments!r}; expected True, False or None"):
        as_clean_set(Drawing(), augments=augments)


def test_a_batch_of_another_length_is_named() -> None:
    with raises("batch 2 holds samples of shape (7,); expected (4,) as in the first batch", ShapeError):
        as_clean_set(DataLoader(Lengths([4] * 8 + [7]), batch_size=4, collate_fn=padded))
