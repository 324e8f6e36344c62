"""``gather_augment``: against a loop in NumPy, and every C++ instruction set against the reference, bit for bit."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from checks import captured
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seamfast.errors import BackendUnavailableError, DTypeError, InputError, ShapeError
from seamfast.ops import cpp, gather_augment, reference
from seamfast.ops.arguments import GatherArguments
from seamfast.ops.normalization import DTYPES

MEAN, STD = (0.4914, 0.4822, 0.4465, 0.5), (0.2470, 0.2435, 0.2616, 0.25)
PIXELS = {"mean": 0.0, "std": 1 / 255}  # normalizes a pixel to itself


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["reference", "cpp"])
def by(request: pytest.FixtureRequest) -> str:
    """Each of the CPU's backends in turn."""
    if request.param == "cpp":
        request.getfixturevalue("native")
    return str(request.param)


def some_indices(batch: int, count: int) -> Tensor:
    return torch.randint(0, count, (batch,), generator=torch.Generator().manual_seed(batch))


# ---- Against an independent definition -----------------------------------------------------------


def philox_words(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011), in Python's integers."""
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second % 2**32,
            (first >> 32) ^ counter[3] ^ key[1],
            first % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def loop(images: Tensor, indices: Tensor, pad: int, flip: bool, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """One sample after another, with ``np.pad``, slices and float64."""
    _, channels, height, width = images.shape
    mean, std = (np.array(values[:channels])[:, None, None] for values in (MEAN, STD))
    batch = np.empty((len(indices), channels, height, width), dtype=np.float32)
    for row, index in enumerate(indices.tolist()):
        image = images[index].numpy()
        words = philox_words([index % 2**32, index >> 32, epoch, 1], [seed % 2**32, seed >> 32])
        if pad:
            down, right = (word * (2 * pad + 1) // 2**32 for word in words[:2])
            image = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
            image = image[:, down : down + height, right : right + width]
        if flip and words[2] >= 2**31:
            image = image[:, :, ::-1]
        batch[row] = ((image / 255 - mean) / std).astype(np.float32)
    return batch


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 4])  # none; the smallest; the usual
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 9, 5)])  # CIFAR; tall, barely above 2 x pad
def test_is_the_per_sample_loop(by: str, flip: bool, pad: int, channels: int, height: int, width: int) -> None:
    images, indices = noise(20, channels, height, width), some_indices(65, 20)
    got = gather_augment(
        images,
        indices,
        mean=MEAN[:channels],
        std=STD[:channels],
        pad=pad,
        flip=flip,
        seed=2**40 + 3,
        epoch=11,
        backend=by,
    )
    np.testing.assert_array_equal(got.numpy(), loop(images, indices, pad, flip, 2**40 + 3, 11))


def test_golden_crops() -> None:
    """Offsets and flips of the first samples. A change here changes every recorded run."""
    size, pad = 16, 4
    position = torch.arange(size * size, dtype=torch.uint8).view(1, 1, size, size).expand(6, -1, -1, -1).contiguous()
    crops = gather_augment(position, torch.arange(6), pad=pad, flip=True, **PIXELS, backend="reference").int()
    seen = []
    for crop in crops[:, 0]:
        middle, flipped = int(crop[8, 8]), bool(crop[8, 8] > crop[8, 9])
        seen.append((middle // size - 8 + pad, middle % size - (7 if flipped else 8) + pad, flipped))
    assert seen == [(1, 0, True), (8, 2, False), (0, 7, False), (5, 5, True), (0, 8, True), (4, 3, False)]


def test_without_pad_and_flip_is_a_gather() -> None:
    images, indices = noise(5, 3, 6, 7), torch.tensor([4, 0, 4])
    for seed in (0, 1):  # no draw is made
        got = gather_augment(images, indices, **PIXELS, seed=seed)
        assert torch.equal(got, images[indices].float())


@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_and_both_flips_occur_as_often(flip: bool) -> None:
    from scipy import stats

    count, size, pad = 20_000, 6, 1
    image = torch.arange(size * size, dtype=torch.uint8).view(1, 1, size, size)
    images = image.expand(count, -1, -1, -1).contiguous()
    crops = gather_augment(images, torch.arange(count), pad=pad, flip=flip, **PIXELS)
    _, counts = torch.unique(crops.view(count, -1), dim=0, return_counts=True)
    assert len(counts) == (2 * pad + 1) ** 2 * (2 if flip else 1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


# ---- C++ against the reference -------------------------------------------------------------------

SIZES = [
    (1, 1),  # one pixel: shorter than every vector
    (8, 8),  # a digit of scikit-learn; rows shorter than a flip's block of 16
    (28, 28),  # MNIST: rows are no multiple of 16
    (32, 32),  # CIFAR
    (33, 33),  # odd, planes are no multiple of any vector
    (224, 224),  # ImageNet: several bands of rows, the last one shorter
    (3, 5000),  # a row larger than a band
    (40, 5),  # rows much shorter than a vector
]


def check_each_isa(native: Any, *arguments: Any) -> None:
    """C++ gives the reference's bits and strides. ``arguments``: the record's, without backend and threads."""
    args = GatherArguments(*arguments, backend="cpp", threads=1)
    want = reference.gather_augment(args)
    for isa in native.isas():
        got = cpp.gather_augment(args, isa)
        assert got.dtype == want.dtype == args.dtype, (isa, arguments[2:])
        assert got.stride() == want.stride(), (isa, arguments[2:])
        assert same_bits(got, want), (isa, arguments[2:])


GRID = [
    (size, pad, channels)
    for size in SIZES
    for pad in (0, 1, 4)  # no crop; the smallest; the usual
    for channels in (1, 2, 3, 4)  # grey; color; and the others, each of which has an interleaving kernel of its own
    if pad < min(size) and (channels in (1, 3) or size == (33, 33))
]


@pytest.mark.parametrize(("size", "pad", "channels"), GRID, ids=str)
def test_cpp_gives_the_bits_of_the_reference(native: Any, size: tuple[int, int], pad: int, channels: int) -> None:
    height, width = size
    images = noise(9, channels, height, width)
    # empty; one and the pieces of an odd split; many (not at sizes where they would only cost time)
    batches = (0, 1, 7, 513) if height * width <= 33 * 33 and pad else (0, 1, 7)
    for batch, flip, dtype, channels_last in itertools.product(batches, (False, True), DTYPES, (False, True)):
        norm = MEAN[:channels], STD[:channels]
        check_each_isa(native, images, some_indices(batch, 9), *norm, pad, flip, 5, 2, dtype, channels_last)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """As ``torch.equal``, but -0 is not 0."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.view(bits), b.view(bits))


@settings(deadline=None)
@given(data=st.data())
def test_cpp_gives_the_bits_of_the_reference_at_any_shape(native: Any, data: st.DataObject) -> None:
    draw = data.draw
    channels, height, width = draw(st.integers(1, 4)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
    count, batch = draw(st.integers(1, 5)), draw(st.integers(0, 9))
    number = st.floats(-1000, 1000, allow_nan=False)
    mean = draw(st.lists(number, min_size=channels, max_size=channels))
    std = draw(st.lists(st.floats(1e-4, 1000), min_size=channels, max_size=channels))
    check_each_isa(
        native,
        noise(count, channels, height, width),
        some_indices(batch, count),
        mean,
        std,
        draw(st.integers(0, min(height, width) - 1)),
        draw(st.booleans()),
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.sampled_from(DTYPES)),
        draw(st.booleans()),
    )


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (0.0, 1.0),  # what uint8 data has by default
        (1e30, 1.0),  # all pixels are alike in float32
        (700.0, 1e-3),  # a mean so far off that the arithmetic of the fast path is not exact
        (0.5, 1e-38),  # close to the largest float32; infinite in float16
        (0.0, 1e36),  # subnormal in float32
        (0.3, 3e5),  # subnormal in float16
    ],
)
def test_extreme_normalizations_have_the_bits_of_the_reference(native: Any, mean: float, std: float) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    for dtype, channels_last in itertools.product(DTYPES, (False, True)):
        check_each_isa(native, images, torch.tensor([0, 1]), (mean,), (std,), 2, True, 0, 0, dtype, channels_last)


# ---- What the result does not depend on ----------------------------------------------------------


def test_a_sample_does_not_depend_on_its_batch(by: str) -> None:
    images = noise(64, 3, 32, 32)

    def batch(indices: Tensor, **arguments: Any) -> Tensor:
        return gather_augment(images, indices, mean=0.5, std=0.25, pad=4, flip=True, backend=by, **arguments)

    whole = batch(torch.arange(64))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(batch(order), whole[order])
    assert torch.equal(batch(torch.tensor([9, 9])), whole[[9, 9]])
    assert torch.equal(batch(torch.arange(128)[::2][:32]), whole[::2])  # strided indices
    assert not torch.equal(batch(torch.arange(64), epoch=1), whole)
    assert not torch.equal(batch(torch.arange(64), seed=1), whole)
    assert torch.equal(batch(torch.arange(64), epoch=torch.tensor(2**32 + 1)), batch(torch.arange(64), epoch=1))


def test_threads_do_not_change_the_result(native: Any) -> None:
    images, indices = noise(50, 3, 32, 32), some_indices(1000, 50)  # 12 MB: enough work for many threads

    def batch(threads: int) -> Tensor:
        return gather_augment(
            images, indices, mean=0.5, std=0.25, pad=4, flip=True, threads=threads, backend="cpp", seed=3
        )

    alone = batch(1)
    for threads in (0, 2, 3, 16, 1024):  # the default; few; uneven; more than CPUs; the most, more than pieces
        assert torch.equal(batch(threads), alone)


def test_concurrent_calls_give_the_same_bits(native: Any) -> None:
    images, indices = noise(50, 3, 32, 32), some_indices(600, 50)
    wants = [gather_augment(images, indices, mean=0.5, std=0.25, pad=4, seed=s, threads=1) for s in range(4)]
    wrong: list[int] = []

    def call(seed: int) -> None:
        for _ in range(10):
            got = gather_augment(images, indices, mean=0.5, std=0.25, pad=4, seed=seed, threads=3, backend="cpp")
            if not torch.equal(got, wants[seed]):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_runs_in_inference_mode() -> None:
    images, indices = noise(9, 3, 8, 8), torch.tensor([3, 1])
    with torch.inference_mode():
        got = gather_augment(images, indices, **PIXELS)
    assert torch.equal(got, images[indices].float())


# ---- Invalid arguments ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1, 10], "indices hold 10 at position 2; expected integers in [0, 10)"),
        ([0, -1, 99], "indices hold -1 at position 1; expected integers in [0, 10)"),
        ([2**62] * 3, f"indices hold {2**62} at position 0; expected integers in [0, 10)"),
        ([0, 0, -(2**63)], f"indices hold {-(2**63)} at position 2; expected integers in [0, 10)"),
    ],
)
def test_an_index_out_of_range_raises(by: str, indices: list[int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        gather_augment(noise(10, 3, 8, 8), torch.tensor(indices), **PIXELS, backend=by)
    assert str(caught.value) == message


def test_no_samples_and_no_batch(by: str) -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    for count in (0, 3):
        got = gather_augment(noise(count, 3, 8, 8), nothing, **PIXELS, pad=2, flip=True, backend=by)
        assert got.shape == (0, 3, 8, 8)
    with pytest.raises(InputError, match=r"^indices hold 0 at position 0; expected integers in \[0, 0\)$"):
        gather_augment(noise(0, 3, 8, 8), torch.tensor([0]), **PIXELS, backend=by)


IMAGES = noise(10, 3, 8, 8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": IMAGES.float()}, DTypeError, "images has dtype float32; expected uint8"),
        ({"images": IMAGES.numpy()}, DTypeError, "images is a ndarray; expected a torch.Tensor"),
        ({"images": IMAGES[0]}, ShapeError, "images has shape (3, 8, 8); expected (N, C, H, W)"),
        (
            {"images": noise(2, 5, 8, 8)},
            ShapeError,
            "images has shape (2, 5, 8, 8); expected (N, C, H, W) with C in [1, 4] and at least one pixel",
        ),
        (
            {"images": noise(2, 3, 0, 8)},
            ShapeError,
            "images has shape (2, 3, 0, 8); expected (N, C, H, W) with C in [1, 4] and at least one pixel",
        ),
        (
            {"images": IMAGES[:, :, ::2]},
            InputError,
            "images has strides (192, 64, 16, 1); expected a contiguous tensor",
        ),
        ({"indices": torch.arange(2, dtype=torch.int32)}, DTypeError, "indices has dtype int32; expected int64"),
        ({"indices": torch.tensor(1)}, ShapeError, "indices has shape (); expected (N,)"),
        ({"indices": torch.arange(2, device="meta")}, InputError, "indices is on meta; expected cpu"),
        (
            {"pad": 8},
            InputError,
            "pad is 8; expected an integer in [0, 7], below the smaller side of images of 8 x 8 pixels",
        ),
        (
            {"pad": -1},
            InputError,
            "pad is -1; expected an integer in [0, 7], below the smaller side of images of 8 x 8 pixels",
        ),
        ({"flip": "no"}, InputError, "flip is 'no'; expected True or False"),
        ({"channels_last": 1}, InputError, "channels_last is 1; expected True or False"),
        (
            {"seed": 2**64},
            InputError,
            f"seed is {2**64}; expected an integer in [0, {2**64 - 1}] or an int64 0-d tensor",
        ),
        (
            {"epoch": 1.0},
            InputError,
            "epoch is 1.0; expected an integer in [0, 4294967295] or an int64 0-d tensor",
        ),
        ({"threads": 1025}, InputError, "threads is 1025; expected an integer in [0, 1024]"),
        (
            {"dtype": torch.float64},
            DTypeError,
            "dtype is torch.float64; expected one of torch.float32, torch.bfloat16, torch.float16",
        ),
        ({"std": (0.1, 0.2)}, InputError, "std has 2 numbers; expected 1 or one for each of 3 channels"),
        ({"backend": "gpu"}, InputError, "backend is 'gpu'; expected one of auto, reference, cpp, triton, cuda"),
    ],
)
def test_invalid_arguments_raise(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"images": IMAGES, "indices": torch.tensor([0, 1]), "mean": 0.0, "std": 1.0, **change}
    with pytest.raises(error) as caught:
        gather_augment(**arguments)
    assert str(caught.value) == message


def test_cpp_by_name_raises_on_other_devices(native: Any) -> None:
    images = IMAGES.to("meta")
    with pytest.raises(BackendUnavailableError) as caught:
        gather_augment(images, torch.arange(2, device="meta"), **PIXELS, backend="cpp")
    assert str(caught.value) == "backend 'cpp' runs on cpu tensors; these are on meta"


# ---- On a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_bits_of_the_cpu_and_can_be_captured() -> None:
    images, indices, counter = noise(50, 3, 32, 32), some_indices(64, 50), torch.tensor(0).cuda()
    arguments: dict[str, Any] = {"mean": MEAN[:3], "std": STD[:3], "pad": 4, "flip": True, "seed": 6}
    on_device = images.cuda(), indices.cuda()

    def one() -> Tensor:
        batch = gather_augment(*on_device, **arguments, epoch=counter)
        counter.add_(1)
        return batch

    graph, got = captured(one)
    counter.zero_()
    for step in range(3):
        graph.replay()
        assert same_bits(got.cpu(), gather_augment(images, indices, **arguments, epoch=step))
