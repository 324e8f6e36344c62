"""Samples that a caller holds out, and those of data that augment."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from seamfast import CleanSet
from seamfast.data import PoisonedSet, as_clean_set
from seamfast.data.holdout import HeldOut, read_clean
from seamfast.data.rereading import AugmentingSet
from seamfast.errors import InputError

INPUTS = torch.arange(24.0).view(12, 2)
LABELS = torch.arange(12) % 3
CLEAN, HELD = (INPUTS[:8], LABELS[:8]), (INPUTS[8:], LABELS[8:])


def raises(message: str) -> Any:
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def read(
    clean: Any, holdout: Any = None, *, augments: bool | None = None, eval_transform: Any = None
) -> tuple[CleanSet, HeldOut]:
    return read_clean(clean, holdout, augments=augments, eval_transform=eval_transform)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(*HELD, strict=True))


FORMS: dict[str, Callable[[], Any]] = {
    "CleanSet": lambda: CleanSet(*HELD),
    "tensors": lambda: HELD,
    "arrays": lambda: (HELD[0].numpy(), HELD[1].tolist()),
    "Dataset": lambda: TensorDataset(*HELD),
    "DataLoader": lambda: DataLoader(TensorDataset(*HELD), batch_size=3, shuffle=True),
    "IterableDataset": Stream,
    "batches": lambda: [(HELD[0][:1], HELD[1][:1]), (HELD[0][1:], HELD[1][1:])],
    "generator": lambda: (batch for batch in [HELD]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_clean_data_take(form: str) -> None:
    samples, held_out = read(CLEAN, FORMS[form]())
    assert isinstance(samples.inputs, Tensor)
    assert torch.equal(samples.inputs[:8], INPUTS[:8])
    assert sorted(samples.inputs[8:, 0].tolist()) == INPUTS[8:, 0].tolist()
    assert samples.labels[:8].tolist() == LABELS[:8].tolist()
    known = form not in ("IterableDataset", "batches", "generator")
    assert held_out == HeldOut("given", True if known else None, n_given=4)


def test_without_holdout_the_samples_are_the_clean_ones() -> None:
    data = CleanSet(*CLEAN)
    samples, held_out = read(data)
    assert samples is data
    assert held_out == HeldOut("split", True)


def test_named_inputs_and_the_description_of_the_clean_data() -> None:
    clean = CleanSet({"x": INPUTS[:8]}, LABELS[:8], num_classes=3, class_names="abc")
    samples, _ = read(clean, ({"x": HELD[0]}, HELD[1]))
    assert isinstance(samples.inputs, dict)
    assert torch.equal(samples.inputs["x"], INPUTS)
    assert (samples.num_classes, samples.class_names) == (3, ("a", "b", "c"))


def test_what_is_held_out_is_not_trained_on_and_counted_once() -> None:
    rows = [2, 9, 9, 5, 2]
    samples, held_out = read((INPUTS, LABELS), (INPUTS[rows], LABELS[rows]))
    assert held_out == HeldOut("given", True, n_given=3, n_shared=3)
    assert isinstance(samples.inputs, Tensor)
    assert (samples.inputs[:9, 0] / 2).tolist() == [i for i in range(12) if i not in rows]
    assert (samples.inputs[9:, 0] / 2).tolist() == [2, 9, 5]


def test_holding_out_all_of_the_clean_data() -> None:
    with raises("holdout holds 8 of the samples of clean_loader, and 0 are left to train on; expected other samples"):
        read(CLEAN, (INPUTS, LABELS))


PIXELS = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, 2, 2)


@pytest.mark.parametrize(
    ("clean", "holdout", "message"),
    [
        (
            CLEAN,
            (INPUTS[8:, :1], LABELS[8:]),
            "holdout holds samples of inputs (1,) float32; expected inputs (2,) float32 as in clean_loader",
        ),
        (
            CLEAN,
            (INPUTS[8:].int(), LABELS[8:]),
            "holdout holds samples of inputs (2,) int32; expected inputs (2,) float32 as in clean_loader",
        ),
        (
            CLEAN,
            ({"x": INPUTS}, LABELS),
            "holdout holds samples of x (2,) float32; expected inputs (2,) float32 as in clean_loader",
        ),
        (
            CleanSet(PIXELS[:8], LABELS[:8], mean=0.5, std=0.5),
            (PIXELS[8:], LABELS[8:]),
            "holdout has mean (0.0,); expected (0.5,) as of clean_loader",
        ),
        (
            CLEAN,
            "digits",
            "holdout is a str; expected a DataLoader, a Dataset, an (inputs, labels) pair or a seamfast.CleanSet",
        ),
        (CLEAN, (INPUTS[:0], LABELS[:0]), "holdout holds no samples; expected at least one"),
        (
            CLEAN,
            PoisonedSet(INPUTS, LABELS, poisoned=LABELS > 1),
            "holdout is a PoisonedSet; expected clean data: it decides",
        ),
        (
            CleanSet(*CLEAN, num_classes=3),
            (INPUTS[8:], LABELS[8:] + 1),
            "labels hold 3; expected integers in [0, 3) for num_classes=3",
        ),
    ],
)
def test_data_that_cannot_be_held_out(clean: Any, holdout: Any, message: str) -> None:
    with raises(message):
        read(clean, holdout)


# Data that augment.


def noisy(sample: Tensor) -> Tensor:
    return sample + torch.rand(2)


def plain(sample: Tensor) -> Tensor:
    return sample * 10


class Images(Dataset[Any]):
    """As the image sets of torchvision: samples pass through ``transform``."""

    def __init__(self, transform: Any = noisy, n: int = 12) -> None:
        self.transform, self.n = transform, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(INPUTS[index]), index % 3


class WithOwn(Images):
    eval_transform = staticmethod(plain)


WRAPPED: dict[str, Callable[[Images], Any]] = {
    "Dataset": lambda data: data,
    "DataLoader": lambda data: DataLoader(data, batch_size=5, shuffle=True),
    "Subset": lambda data: Subset(data, range(12)),
    "ConcatDataset": lambda data: DataLoader(ConcatDataset([Subset(data, range(5)), Subset(data, range(5, 12))])),
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("augments", [None, True])
@pytest.mark.parametrize("form", WRAPPED)
def test_the_first_read_is_that_of_the_deterministic_transform(form: str, augments: bool | None, own: bool) -> None:
    data = WithOwn() if own else Images()
    samples, held_out = read(WRAPPED[form](data), augments=augments, eval_transform=None if own else plain)
    assert held_out == HeldOut("split", True)
    assert isinstance(samples, AugmentingSet)
    assert torch.equal(samples.inputs, INPUTS * 10)  # type: ignore[arg-type]
    (_, fresh), *_ = samples.fresh([torch.arange(12)])
    assert isinstance(fresh, Tensor)
    assert ((fresh - INPUTS) > 0).any()  # training still sees the draws
    assert ((fresh - INPUTS) < 1).all()
    assert data.transform is noisy  # the caller's set stays as it is


def test_without_one_the_draws_are_known_as_draws() -> None:
    samples, held_out = read(Images())
    assert isinstance(samples, AugmentingSet)
    assert held_out == HeldOut("split", False)
    assert not torch.equal(samples.inputs, INPUTS)  # type: ignore[arg-type]


def test_a_set_that_does_not_augment_needs_none() -> None:
    data = WithOwn(transform=plain)
    samples, held_out = read(data)
    assert type(samples) is CleanSet
    assert held_out == HeldOut("split", True)


def test_whether_data_augment_is_unknown_where_they_are_read_once() -> None:
    assert read(Images(), augments=False)[1] == HeldOut("split", None)
    assert read(Stream())[1] == HeldOut("split", None)


def test_the_transform_is_for_what_is_held_out() -> None:
    samples, held_out = read(CLEAN, Subset(Images(), range(8, 12)), eval_transform=plain)
    assert held_out == HeldOut("given", True, n_given=4)
    assert torch.equal(samples.inputs[8:], INPUTS[8:] * 10)  # type: ignore[index]
    assert read(CLEAN, Subset(Images(), range(8, 12)))[1].reads_agree is False


def test_training_samples_that_augment_with_a_holdout() -> None:
    samples, held_out = read(Subset(Images(), range(8)), HELD)
    assert held_out == HeldOut("given", True, n_given=4)
    assert isinstance(samples, AugmentingSet)
    (_, fresh), *_ = samples.fresh([torch.arange(8)])
    assert not torch.equal(fresh, samples.inputs[:8])  # type: ignore[arg-type, index]
    assert torch.equal(samples.inputs[8:], HELD[0])  # type: ignore[index]


WANTED = "expected a map-style Dataset, or a DataLoader over one, with the attribute 'transform'"


@pytest.mark.parametrize(
    ("data", "eval_transform", "augments", "message"),
    [
        (CLEAN, plain, None, f"eval_transform is given and clean_loader is a tuple of length 2; {WANTED}"),
        (
            TensorDataset(*CLEAN),
            plain,
            None,
            f"eval_transform is given and clean_loader has no dataset with it to set; {WANTED}",
        ),
        (Images(), "plain", None, "eval_transform is a str; expected a function of a sample"),
        (
            Images(),
            plain,
            False,
            "augments is False and eval_transform is given; expected one of them: all is read once",
        ),
        (
            Images(),
            noisy,
            None,
            "eval_transform gives other samples when they are read a second time; expected a deterministic one",
        ),
    ],
)
def test_transforms_that_cannot_be_used(data: Any, eval_transform: Any, augments: bool | None, message: str) -> None:
    with raises(message):
        read(data, eval_transform=eval_transform, augments=augments)


# Which samples are the same.


def test_samples_with_the_same_bytes_and_label_are_the_same() -> None:
    values = {"a": torch.tensor([[1.0], [1.0], [1.0], [2.0]]), "b": torch.tensor([5, 5, 6, 5])}
    names = CleanSet(values, torch.tensor([0, 0, 0, 0])).identities()
    assert [names.index(name) for name in names] == [0, 0, 2, 3]
    names = CleanSet(np.zeros((3, 2), np.float32), torch.tensor([0, 1, 0])).identities()
    assert [names.index(name) for name in names] == [0, 1, 0]


def test_draws_of_the_same_index_are_the_same() -> None:
    sampler = [0, 3, 3, 1, 0, 2]
    drawn = as_clean_set(DataLoader(Images(), batch_size=2, sampler=sampler), augments=None)
    assert drawn.identities() == [0, 0, 1, 2, 3, 3]
    known = as_clean_set(DataLoader(Images(), batch_size=2, sampler=sampler), augments=None, eval_transform=plain)
    names = known.identities()
    assert [names.index(name) for name in names] == [0, 0, 2, 3, 4, 4]
