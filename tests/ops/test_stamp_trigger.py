"""Stamping on every backend: the same bits as the triggers' own definition, whatever the batch, layout or thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from checks import check_batch
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.ops import TriggerTable, cpp, stamp_trigger
from seamfast.ops.arguments import StampArguments
from seamfast.ops.normalization import normalization
from seamfast.ops.trigger_table import Kind
from seamfast.triggers import Additive, AllToOne, Blend, ColorFilter, Patch, Quantize, Sinusoid, Trigger, Warp, battery

MEAN, STD = (0.5, 0.4, 0.3, 0.2), (0.2, 0.25, 0.3, 0.35)
PIXELS: dict[str, Any] = {"mean": 0.0, "std": 1 / 255}  # in float32, the pixel's number itself


def images(n: int, c: int, h: int, w: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def triggers_for(c: int, h: int, w: int) -> list[Trigger]:
    """One or two of each kind, sized to the images."""
    rng = np.random.default_rng(0)
    ph, pw = min(3, h), min(2, w)
    target = AllToOne(0)
    shape = (c, h, w)
    identity, mixing = np.eye(c), rng.uniform(-0.5, 0.9, (c, c))
    patch = {"target": target, "pattern": rng.integers(0, 256, (c, ph, pw))}
    return [
        Patch(name="fixed", mask=np.ones((ph, pw)), position=(0, 0), **patch),
        Patch(name="soft", mask=rng.uniform(0, 1, (ph, pw)), position=(-ph, -pw), **patch),
        Patch(name="grey, anywhere", target=target, pattern=[[[255]]], mask=[[1.0]], position="random"),
        Patch(name="soft, anywhere", mask=rng.uniform(0, 1, (ph, pw)), position="random", **patch),
        Blend.noise(shape, 0.3, target),
        Sinusoid.of(20, 1.5, target),
        Additive(name="additive", target=target, perturbation=rng.integers(-255, 256, shape)),
        Warp(name="warp", target=target, flow=rng.uniform(-2, 2, (h, w, 2))),
        Quantize.of(5, dither=False, target=target, name="quantize"),
        Quantize.of(3, dither=True, target=target, name="dither"),
        ColorFilter(
            name="grey filter", target=target, matrix=[[0.9]], bias=[0.05], gamma=0.8, contrast=1.2, vignette=0.4
        ),
        ColorFilter(
            name="filter",
            target=target,
            matrix=identity,
            bias=rng.uniform(-0.1, 0.1, c),
            gamma=1.3,
            contrast=1.1,
            vignette=0.0,
        ),
        ColorFilter(
            name="mixing filter", target=target, matrix=mixing, bias=np.zeros(c), gamma=1.0, contrast=1.0, vignette=1.0
        ),
    ]


def stamp(
    backend: Backend, data: Tensor, indices: Tensor, triggers: Sequence[Trigger], ids: Tensor | int, **more: Any
) -> Tensor:
    table = TriggerTable.of(triggers, data.shape[1:], backend.device)
    on = ids.to(backend.device) if isinstance(ids, Tensor) else ids
    arguments = {**PIXELS, **more, "backend": backend.name}
    if "sample_ids" in arguments:
        arguments["sample_ids"] = arguments["sample_ids"].to(backend.device)
    return stamp_trigger(data.to(backend.device), indices.to(backend.device), table, on, **arguments)


def by_definition(data: Tensor, indices: Tensor, triggers: Sequence[Trigger], ids: Tensor, seed: int = 0) -> Tensor:
    """``Trigger.stamp``, image by image."""
    rows = []
    for index, number in zip(indices.tolist(), ids.tolist(), strict=True):
        image = data[index : index + 1]
        rows.append(image if number < 0 else triggers[number].stamp(image, sample_ids=[index], seed=seed))
    return torch.cat([torch.empty(0, *data.shape[1:], dtype=torch.uint8), *rows]).float()


SHAPES = [
    (1, 8, 8),  # digits
    (3, 9, 11),  # odd, and more than one block of a warp
    (2, 1, 1),  # a single pixel: every neighbour is missing
    (4, 5, 7),  # the most channels
    (1, 1, 6),  # one row
    (3, 32, 32),  # CIFAR-10: several blocks of a Triton program
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_is_its_definition(backend: Backend, shape: tuple[int, int, int]) -> None:
    if backend.is_slow and shape == (3, 32, 32):
        pytest.skip("dithering so many pixels takes the interpreter long; see the test below")
    triggers = triggers_for(*shape)
    data = images(5, *shape)
    data[0], data[1] = 0, 255
    ids = torch.arange(3 * (len(triggers) + 1)) % (len(triggers) + 1) - 1
    indices = torch.arange(len(ids)) % 5
    got = stamp(backend, data, indices, triggers, ids, seed=2**63 + 9).cpu()
    want = by_definition(data, indices, triggers, ids, seed=2**63 + 9)
    for number in range(-1, len(triggers)):
        name = triggers[number].name if number >= 0 else "none"
        assert torch.equal(got[ids == number], want[ids == number]), name


def test_an_image_of_several_blocks(backend: Backend) -> None:
    triggers = [t for t in triggers_for(3, 32, 32) if t.name != "dither"]
    data, ids = images(2, 3, 32, 32), torch.arange(len(triggers))
    indices = ids % 2
    check_batch(stamp(backend, data, indices, triggers, ids), by_definition(data, indices, triggers, ids))


def test_the_battery(backend: Backend) -> None:
    triggers = battery((3, 8, 8), 10)
    data, ids = images(2, 3, 8, 8), torch.arange(len(triggers))
    check_batch(stamp(backend, data, ids % 2, triggers, ids), by_definition(data, ids % 2, triggers, ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_dtypes_and_layouts(backend: Backend, dtype: torch.dtype, channels_last: bool) -> None:
    for c in (1, 3) if backend.is_slow else (1, 2, 3, 4):
        triggers = triggers_for(c, 6, 7)
        data = images(3, c, 6, 7)
        ids = torch.arange(len(triggers) + 1) - 1
        form: dict[str, Any] = {"mean": MEAN[:c], "std": STD[:c], "dtype": dtype, "channels_last": channels_last}
        got = stamp(backend, data, ids % 3, triggers, ids, **form)
        pixels = by_definition(data, ids % 3, triggers, ids).long()
        table = normalization(MEAN[:c], STD[:c], c).table(dtype, torch.device("cpu"))
        want = table[torch.arange(c)[:, None, None], pixels]
        check_batch(got, want.contiguous(memory_format=torch.channels_last) if channels_last else want)


@pytest.mark.parametrize("n", [0, 1, 7, 128])  # nothing, one, less than a pool's pieces, an evaluation's batch
def test_an_image_depends_on_itself_alone(backend: Backend, n: int) -> None:
    triggers = [t for t in triggers_for(1, 8, 8) if t.name != "dither" or n < 20]
    data = images(10, 1, 8, 8)
    generator = torch.Generator().manual_seed(n)
    indices = torch.randint(0, 10, (n,), generator=generator)
    ids = torch.randint(-1, len(triggers), (n,), generator=generator)
    whole = stamp(backend, data, indices, triggers, ids, seed=4)
    check_batch(whole, by_definition(data, indices, triggers, ids, seed=4))
    order = torch.randperm(n)
    check_batch(stamp(backend, data, indices[order], triggers, ids[order], seed=4), whole[order.to(whole.device)])


def test_places_follow_the_sample_and_the_seed(backend: Backend) -> None:
    triggers = [t for t in triggers_for(1, 8, 8) if "anywhere" in t.name]
    data, n = images(1, 1, 8, 8), 40
    zeros, ids = torch.zeros(n, dtype=torch.int64), torch.arange(n) % 2
    samples = torch.arange(n) * 2**33
    for seed in (0, 2**64 - 1):
        want = torch.cat(
            [triggers[int(ids[i])].stamp(data, sample_ids=samples[i : i + 1], seed=seed).float() for i in range(n)]
        )
        got = stamp(backend, data, zeros, triggers, ids, sample_ids=samples, seed=seed)
        check_batch(got, want)
        counter = torch.tensor(seed - 2**64 * (seed >> 63), device=backend.device)
        check_batch(stamp(backend, data, zeros, triggers, ids, sample_ids=samples, seed=counter), want)
    assert len({tuple(row.flatten().tolist()) for row in got.cpu()}) > 10


def test_no_triggers_at_all(backend: Backend) -> None:
    data = images(3, 1, 8, 8)
    check_batch(stamp(backend, data, torch.tensor([2, 0]), [], -1), data[[2, 0]].float())


def test_a_single_trigger_needs_no_table() -> None:
    data, trigger = images(2, 1, 8, 8), triggers_for(1, 8, 8)[0]
    got = stamp_trigger(data, torch.arange(2), trigger, **PIXELS)
    assert torch.equal(got, trigger.stamp(data).float())


def test_threads_and_isa_change_no_bit(native: Any) -> None:
    triggers, data, n = triggers_for(3, 32, 32), images(10, 3, 32, 32), 150
    table = TriggerTable.of(triggers, (3, 32, 32))
    ids, indices = torch.arange(n) % (len(triggers) + 1) - 1, torch.arange(n) % 10
    parts = (table.rows, table.device_rows, table.numbers)
    args = StampArguments(data, indices, ids, indices, *parts, MEAN[:3], STD[:3], 1, torch.float32, False, "cpp", 1)
    for dtype in (torch.float32, torch.bfloat16):
        found = [
            cpp.stamp_trigger(args._replace(dtype=dtype, threads=threads), isa)
            for threads in (1, 4)
            for isa in native.isas()
        ]
        for batch in found[1:]:
            check_batch(batch, found[0])


@pytest.mark.slow
def test_offsets_past_2_to_the_31(native: Any) -> None:
    """800,000 images of 3x32x32 are 2.46e9 bytes, of which two are touched."""
    try:
        data = torch.empty(800_000, 3, 32, 32, dtype=torch.uint8)
    except (RuntimeError, MemoryError):
        pytest.skip("needs 2.5 GB of memory")
    data[-1] = images(1, 3, 32, 32)[0]
    cpu = Backend("cpp", torch.device("cpu"))
    got = stamp(cpu, data, torch.tensor([799_999]), triggers_for(3, 32, 32), 1)
    check_batch(got, triggers_for(3, 32, 32)[1].stamp(data[-1:]).float())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    c=st.integers(1, 4),
    h=st.integers(1, 20),
    w=st.integers(1, 40),
    n=st.integers(0, 20),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_shape(native: Any, c: int, h: int, w: int, n: int, seed: int) -> None:
    triggers, data = triggers_for(c, h, w), images(3, c, h, w, seed % 1000)
    generator = torch.Generator().manual_seed(seed % 1000)
    indices = torch.randint(0, 3, (n,), generator=generator)
    ids = torch.randint(-1, len(triggers), (n,), generator=generator)
    cpu = torch.device("cpu")
    want = by_definition(data, indices, triggers, ids, seed=seed)
    for name in ("reference", "cpp"):
        check_batch(stamp(Backend(name, cpu), data, indices, triggers, ids, seed=seed), want)


# ---- The table ----


def test_rows_and_numbers_of_the_table() -> None:
    triggers = triggers_for(3, 6, 7)
    table = TriggerTable.of(triggers, (3, 6, 7))
    assert len(table) == len(triggers)
    assert table.numbers.dtype == torch.float64
    assert bool((table.rows[:, 1] % 8 == 0).all())  # where a row's numbers begin
    assert [Kind(kind).name for kind in table.rows[:, 0].tolist()] == [
        *["PASTE"] * 5, "OFFSET", "OFFSET", "WARP", "LOOK_UP", "DITHER", "FILTER", "FILTER", "FILTER"
    ]  # fmt: skip
    assert table.rows[1].tolist()[2:] == [3, 3, 2, 3, 5, 0]
    assert table.rows[2].tolist()[2:] == [1, 1, 1, -1, -1, 0]
    assert int(table.rows[9, 7]) == 3


def test_triggers_that_do_not_fit_raise() -> None:
    with pytest.raises(ShapeError, match=r"^trigger 'x' patch is 9x9; images are 8x8$"):
        TriggerTable.of([Patch.square(size=9, name="x")], (1, 8, 8))
    with pytest.raises(ShapeError, match=r"^image shape is \(8, 8\); expected \(C, H, W\), each at least 1$"):
        TriggerTable.of([], (8, 8))
    with pytest.raises(InputError, match=r"^triggers hold a str; expected seamfast\.triggers\.Trigger$"):
        TriggerTable.of(["patch"], (1, 8, 8))  # type: ignore[list-item]


# ---- Invalid arguments ----

TABLE = TriggerTable.of(triggers_for(1, 8, 8)[:2], (1, 8, 8))
GOOD: dict[str, Any] = {
    "images": torch.zeros(3, 1, 8, 8, dtype=torch.uint8),
    "indices": torch.arange(3),
    "triggers": TABLE,
    "trigger_ids": torch.tensor([-1, 0, 1]),
    **PIXELS,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(3, 1, 8, 8)}, DTypeError, "images has dtype float32; expected uint8"),
        (
            {"images": torch.zeros(1, 8, 8, dtype=torch.uint8)},
            ShapeError,
            "images has shape (1, 8, 8); expected (N, C, H, W)",
        ),
        (
            {"images": torch.zeros(3, 5, 8, 8, dtype=torch.uint8)},
            ShapeError,
            "images has shape (3, 5, 8, 8); expected (N, C, H, W) with C in [1, 4] and at least one pixel",
        ),
        (
            {"images": torch.zeros(3, 1, 9, 8, dtype=torch.uint8)},
            ShapeError,
            "the trigger table is for images of (1, 8, 8); these are (1, 9, 8)",
        ),
        (
            {"images": torch.zeros(3, 1, 8, 16, dtype=torch.uint8)[..., ::2]},
            InputError,
            "images has strides (128, 128, 16, 2); expected a contiguous tensor",
        ),
        ({"indices": torch.arange(3).int()}, DTypeError, "indices has dtype int32; expected int64"),
        ({"indices": torch.tensor([0, 3, 1])}, InputError, "indices hold 3 at position 1; expected integers in [0, 3)"),
        (
            {"trigger_ids": torch.tensor([0, 1, 2])},
            InputError,
            "trigger_ids hold 2 at position 2; expected integers in [-1, 2)",
        ),
        (
            {"trigger_ids": torch.tensor([-2, 1, 0])},
            InputError,
            "trigger_ids hold -2 at position 0; expected integers in [-1, 2)",
        ),
        ({"trigger_ids": 2}, InputError, "trigger_ids is 2; expected an integer in [-1, 1] or a tensor of such"),
        ({"sample_ids": torch.arange(2)}, ShapeError, "sample_ids has shape (2,); expected (N,) = (3,)"),
        (
            {"seed": 2**64},
            InputError,
            "seed is 18446744073709551616; expected an integer in [0, 18446744073709551615] or an int64 0-d tensor",
        ),
        (
            {"dtype": torch.float64},
            DTypeError,
            "dtype is torch.float64; expected one of torch.float32, torch.bfloat16, torch.float16",
        ),
        ({"mean": (0.0, 0.0)}, InputError, "mean has 2 numbers; expected 1 or one for each of 1 channels"),
        ({"std": 0.0}, InputError, "std is (0.0,); expected finite numbers above 0"),
        ({"channels_last": 1}, InputError, "channels_last is 1; expected True or False"),
        ({"triggers": TABLE.to("meta")}, InputError, "the trigger table is on meta; expected cpu"),
    ],
)
def test_invalid_arguments_raise(native: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    for name in ("reference", "cpp"):
        with pytest.raises(error) as caught:
            stamp_trigger(**{**GOOD, "backend": name, **change})
        assert str(caught.value) == message


def test_images_out_of_range_are_nan_on_a_gpu(backend: Backend) -> None:
    if backend.name not in ("triton", "cuda"):
        pytest.skip("it raises here, or fails an assertion on the device")
    data, triggers = images(3, 1, 8, 8), triggers_for(1, 8, 8)[:2]
    got = stamp(backend, data, torch.tensor([0, 3, 1, -1]), triggers, torch.tensor([0, 0, 2, 1])).cpu()
    assert got.isnan().flatten(1).all(1).tolist() == [False, True, True, True]
    check_batch(got[:1], by_definition(data, torch.tensor([0]), triggers, torch.tensor([0])))
