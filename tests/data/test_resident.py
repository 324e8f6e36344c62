from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice, repeat

import pytest
import torch
from torch import Tensor

from seamfast import CleanSet
from seamfast.data.resident import Resident, _storage_device, wrap_around_batches
from seamfast.modalities import Augmentation
from seamfast.triggers import Patch

CPU = torch.device("cpu")
LABELS = torch.arange(12) % 3
IMAGES = torch.randint(0, 256, (12, 3, 6, 5), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)
SOME = torch.tensor([7, 0, 7, 11])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_pixels_arrive_normalized_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    """A clean batch holds the bits that ``CleanSet.normalize`` makes of stamped pixels."""
    samples = CleanSet(IMAGES, LABELS, mean=(0.49, 0.48, 0.44), std=(0.24, 0.25, 0.26))
    data = Resident(samples, CPU, dtype)
    got = data.inputs(SOME)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == dtype
    assert torch.equal(got, samples.normalize(samples.pixels(SOME), dtype))


def test_floats_arrive_as_given() -> None:
    values = torch.randn(12, 7)
    got = Resident(CleanSet(values, LABELS), CPU, torch.float64).inputs(SOME)
    assert isinstance(got, torch.Tensor)
    assert torch.equal(got, values[SOME].double())


def test_named_inputs_arrive_by_name_and_integers_stay_integers() -> None:
    samples = CleanSet({"ids": torch.arange(12), "x": torch.randn(12, 2)}, LABELS)
    got = Resident(samples, CPU, torch.bfloat16).inputs(SOME)
    assert isinstance(got, dict)
    assert got["ids"].tolist() == SOME.tolist()
    assert {k: v.dtype for k, v in got.items()} == {"ids": torch.int64, "x": torch.bfloat16}


def test_augmentation_depends_on_seed_epoch_and_sample_alone() -> None:
    data = Resident(CleanSet(IMAGES, LABELS), CPU)

    def batch(indices: list[int], seed: int = 1, epoch: int = 2) -> torch.Tensor:
        got = data.inputs(torch.tensor(indices), Augmentation(pad=2, flip=True, seed=seed), epoch)
        assert isinstance(got, torch.Tensor)
        return got

    every = list(range(12))
    assert torch.equal(batch(every)[[3, 9]], batch([3, 9]))
    assert not torch.equal(batch(every), batch(every, epoch=3))
    assert not torch.equal(batch(every), batch(every, seed=2))
    assert not torch.equal(batch(every), data.inputs(torch.arange(12)))


# Batches one after another.

INPUTS = [IMAGES, torch.randn(12, 7), {"ids": torch.arange(12), "x": torch.randn(12, 2)}]
TRIGGERS = [Patch.square(size=2, corner="random"), Patch.square(size=3)]
IDS = torch.tensor([1, -1, 0, 1])


def drawn() -> Iterator[tuple[Tensor, int]]:
    yield SOME, 3
    yield SOME[:3], 4


def threads_of_batches(data: Resident) -> int:
    """How many threads there are more while batches are made than before."""
    before = threading.active_count()
    endless = data.batches(repeat((SOME, 0))), data.stamped_batches(repeat((SOME, IDS)), TRIGGERS)
    with closing(endless[0]) as batches, closing(endless[1]) as stamped:
        next(batches), next(stamped)
        return threading.active_count() - before


def check_batches(data: Resident) -> None:
    """They are what the set gives one by one, on the device."""
    augmentation = Augmentation(pad=2, flip=True, seed=8)
    with closing(data.batches(drawn(), augmentation)) as batches:
        got = list(batches)
    assert len(got) == 2
    for (indices, inputs), (chosen, epoch) in zip(got, drawn(), strict=True):
        assert indices.device == data.device
        assert indices.tolist() == chosen.tolist()
        wanted = data.inputs(chosen, augmentation, epoch)
        assert isinstance(inputs, dict) == isinstance(wanted, dict)
        several = (inputs, wanted) if isinstance(inputs, dict) else ({"": inputs}, {"": wanted})
        assert several[0].keys() == several[1].keys()
        for one, other in zip(*(named.values() for named in several), strict=True):
            assert one.device == data.device
            assert torch.equal(one, other)
    if not data.samples.is_pixels:
        return
    with closing(data.stamped_batches([(SOME, IDS), (SOME[1:], IDS[1:])], TRIGGERS, seed=3)) as stamped:
        under_triggers = list(stamped)
    assert [(indices.tolist(), ids.tolist()) for indices, ids, _ in under_triggers] == [
        (SOME.tolist(), IDS.tolist()),
        (SOME[1:].tolist(), IDS[1:].tolist()),
    ]
    for indices, ids, images in under_triggers:
        assert {indices.device, ids.device, images.device} == {data.device}
        for index, number, image in zip(indices.tolist(), ids.tolist(), images.cpu(), strict=True):
            pixels = IMAGES[index : index + 1]
            if number >= 0:
                pixels = TRIGGERS[number].stamp(pixels, sample_ids=[index], seed=3)
            assert torch.equal(image, data.samples.normalize(pixels)[0])


@pytest.mark.parametrize("inputs", INPUTS, ids=["pixels", "floats", "named"])
def test_batches_are_the_samples_one_after_another(inputs: Tensor | dict[str, Tensor]) -> None:
    check_batches(Resident(CleanSet(inputs, LABELS), CPU))


def test_no_thread_where_the_samples_are_on_the_device() -> None:
    data = Resident(CleanSet(IMAGES, LABELS), CPU)
    assert data.storage_device == CPU
    assert threads_of_batches(data) == 0


def test_threads_where_the_samples_are_elsewhere() -> None:
    """On a device without memory: only what is sent there is known, not its values."""
    data = Resident(CleanSet(IMAGES, LABELS), CPU)
    data.device = torch.device("meta")
    assert threads_of_batches(data) == 2
    with closing(data.batches(drawn())) as batches:
        sent = [(indices.device.type, inputs.device.type, tuple(inputs.shape)) for indices, inputs in batches]
    assert sent == [("meta", "meta", (4, 3, 6, 5)), ("meta", "meta", (3, 3, 6, 5))]
    assert data.inputs(SOME).device.type == "meta"


@pytest.mark.parametrize(("free", "there"), [(2160, True), (2159, False)])
def test_samples_are_on_the_gpu_if_they_take_at_most_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int, there: bool
) -> None:
    gpu = torch.device("cuda", 1)
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (asked.append(device), (free, 10**9))[1])
    assert _storage_device(CleanSet(IMAGES, LABELS), gpu) == (gpu if there else CPU)
    assert _storage_device(CleanSet({"a": IMAGES.float()[:, :1, :5, :3], "b": torch.zeros(12, 30)}, LABELS), gpu) == CPU
    assert asked == [gpu, gpu]


@pytest.mark.gpu
@pytest.mark.parametrize("inputs", INPUTS, ids=["pixels", "floats", "named"])
@pytest.mark.parametrize("fits", [True, False])
def test_batches_on_a_gpu(monkeypatch: pytest.MonkeyPatch, inputs: Tensor | dict[str, Tensor], fits: bool) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    if not fits:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    data = Resident(CleanSet(inputs, LABELS), device)
    assert data.storage_device == (device if fits else CPU)
    check_batches(data)
    if data.samples.is_pixels:  # both ways the same bits
        on_cpu, augmentation = Resident(data.samples, CPU), Augmentation(pad=2, flip=True)
        for (_, got), (_, wanted) in zip(
            data.batches(drawn(), augmentation), on_cpu.batches(drawn(), augmentation), strict=True
        ):
            assert torch.equal(got.cpu(), wanted)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 7, 10])
def test_wrap_around_batches_draw_all_samples_once_before_any_twice(batch_size: int) -> None:
    samples = torch.tensor([2, 3, 5, 7, 11, 13, 17, 19, 23, 29])
    batches = list(islice(wrap_around_batches(samples, batch_size, seed=3), 40))
    assert {len(b) for b in batches} == {batch_size}
    drawn = torch.cat(batches)
    rounds = drawn[: len(drawn) // 10 * 10].view(-1, 10)
    assert torch.equal(rounds.sort(1).values, samples.expand_as(rounds))
    assert len({tuple(r.tolist()) for r in rounds}) == len(rounds)  # each in an order of its own


def test_wrap_around_batches_of_few_samples_and_seeds() -> None:
    few = torch.tensor([4, 5, 6])
    batches = list(islice(wrap_around_batches(few, 7, seed=0), 3))
    assert [len(b) for b in batches] == [7, 7, 7]
    assert torch.equal(torch.cat(batches).view(-1, 3).sort(1).values, few.expand(7, 3))  # all before any again

    def first(seed: int) -> list[list[int]]:
        return [b.tolist() for b in islice(wrap_around_batches(torch.arange(30), 8, seed), 6)]

    assert first(1) == first(1)
    assert first(1) != first(2)
