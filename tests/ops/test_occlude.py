"""``occlude`` on every backend: what is covered, by what, how often; and that all give the same bits."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from checks import captured, check_batch
from conftest import Backend
from hypothesis import strategies as st
from torch import Tensor

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.ops import occlude

LOW, HIGH = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-2.0, -1.0, 0.0], [2.0, 3.0, 1.0]))


def occluded_by(backend: Backend, images: Tensor, seed: int = 0, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Both results, on the CPU, with a range of as many channels as there are."""
    channels, on = images.shape[1], backend.device
    low, high = (value.flatten()[torch.arange(channels) % 3].to(on) for value in (LOW, HIGH))
    ids = torch.arange(len(images), device=on)
    both = occlude(images.to(on), low, high, ids, seed=seed, backend=backend.name, **arguments)
    return both[0].cpu(), both[1].cpu()


def images(n: int = 64, height: int = 12, width: int = 10) -> torch.Tensor:
    return LOW + (HIGH - LOW) * torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(9))


def needs_many(backend: Backend) -> None:
    """Skip where so many images take minutes."""
    if backend.is_slow:
        pytest.skip("too slow here; another test compares its bits with the reference's")


def marks(n: int, side: int, channels: int = 3) -> torch.Tensor:
    """Images filled with numbers outside of the range, one an image, so that pasted pixels can be found."""
    return 10.0 + torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, channels, side, side)


def covered(backend: Backend, n: int, side: int, largest: float = 0.4) -> torch.Tensor:
    """``(n, side, side)``: where the one rectangle of each image lies, found by the mean image (whose mark is .5)."""
    n += n % 2
    given = marks(n, side, channels=1)
    _, neutral = occluded_by(backend, given, n_rectangles=1, largest=largest)
    return (neutral != given).any(1)


def test_no_rectangles_change_nothing(backend: Backend) -> None:
    given = images(5)
    for got in occluded_by(backend, given, n_rectangles=0):
        assert torch.equal(got, given)


@pytest.mark.parametrize("n_rectangles", [1, 3, 6])
def test_values_stay_in_range_and_the_input_unchanged(backend: Backend, n_rectangles: int) -> None:
    given = images(8 if backend.is_slow else 64)
    before = given.clone()
    for got in occluded_by(backend, given, n_rectangles=n_rectangles):
        assert (got.shape, got.dtype) == (given.shape, given.dtype)
        assert (got >= LOW - 1e-6).all()
        assert (got <= HIGH + 1e-6).all()
        assert not torch.equal(got, given)
    assert torch.equal(given, before)


@pytest.mark.parametrize("n_rectangles", [1, 4])
def test_both_hide_the_same_part_one_under_the_mean_image(backend: Backend, n_rectangles: int) -> None:
    needs_many(backend)
    given = images()
    occluded, neutral = occluded_by(backend, given, n_rectangles=n_rectangles)
    hidden = (neutral != given).any(1, keepdim=True)
    assert 0 < hidden.double().mean() < 1
    assert torch.equal(neutral, torch.where(hidden, given.mean(0, keepdim=True), given))
    assert torch.equal(occluded.masked_fill(hidden, 0), given.masked_fill(hidden, 0))
    # What another image shows there is the image itself once in 64 times, for a quarter of the rectangles.
    assert ((occluded == given).all(1, keepdim=True) & hidden).sum() < 0.02 * hidden.sum()


def test_the_hidden_part_is_one_rectangle_inside_the_image(backend: Backend) -> None:
    needs_many(backend)
    side = 12
    for mask in covered(backend, 2000, side, largest=0.4):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert 1 <= len(rows) == int(rows[-1] - rows[0]) + 1 <= 1 + 0.4 * side
        assert 1 <= len(columns) == int(columns[-1] - columns[0]) + 1 <= 1 + 0.4 * side
        assert int(mask.sum()) == len(rows) * len(columns)


def test_sides_follow_their_formula(backend: Backend) -> None:
    """``1 + floor(largest * side * u ** 1.5)``: how often each length occurs, for height and width."""
    needs_many(backend)
    n, side, largest = 10_000, 20, 0.4
    masks = covered(backend, n, side, largest)
    length = torch.arange(1, 9, dtype=torch.float64)
    odds = (length / 8) ** (2 / 3) - ((length - 1) / 8) ** (2 / 3)
    for lengths in (masks.any(2).sum(1), masks.any(1).sum(1)):
        got = torch.bincount(lengths, minlength=10).double() / n
        assert got[0] == got[9] == 0
        assert ((got[1:9] - odds).abs() < 5 * (odds * (1 - odds) / n).sqrt()).all()


def test_borders_are_covered_more_than_the_centre_and_corners_more_than_borders(backend: Backend) -> None:
    needs_many(backend)
    share = covered(backend, 15_000, 32).double().mean(0)
    low, middle, high = slice(0, 4), slice(14, 18), slice(28, 32)
    centre = share[middle, middle].mean()
    for side in (low, high):
        assert share[side, middle].mean() > 1.1 * centre
        assert share[middle, side].mean() > 1.1 * centre
    for corner in ((low, low), (low, high), (high, low), (high, high)):
        assert share[corner].mean() > 1.3 * centre
    assert share.min() > 0.5 * centre  # no place is safe


@pytest.mark.parametrize(("largest", "wanted"), [(0.0, 1), (1.0, 64)])
def test_largest_at_its_ends(backend: Backend, largest: float, wanted: int) -> None:
    needs_many(backend)
    sizes = covered(backend, 3000, 8, largest).flatten(1).sum(1)
    assert sizes.min() == 1
    assert sizes.max() == wanted


def test_the_four_fillings_come_equally_often(backend: Backend) -> None:
    needs_many(backend)
    n, side = 4000, 8
    given = marks(n, side)
    occluded, neutral = occluded_by(backend, given, 1, n_rectangles=1, largest=1.0)
    kinds = {"other image": 0, "extreme": 0, "noise": 0, "color": 0}
    for one, mask in zip(occluded, (neutral != given).any(1), strict=True):
        if mask.sum() < 12:
            continue  # too small to tell noise from one color
        filling = one[:, mask]
        at_ends = bool(((filling == LOW[0, :, :, 0]) | (filling == HIGH[0, :, :, 0])).all())
        uniform = bool((filling == filling[:, :1]).all())
        if (filling >= 10).all():
            kinds["other image"] += 1
        elif uniform:
            kinds["extreme" if at_ends else "color"] += 1
        else:
            assert at_ends
            kinds["noise"] += 1
    total = sum(kinds.values())
    assert total > 1000
    for kind, count in kinds.items():
        assert abs(count - total / 4) < 5 * (total * 3 / 16) ** 0.5, (kind, kinds)


def test_another_image_shows_its_own_pixels(backend: Backend) -> None:
    """CutMix: what is pasted comes from the same place of the other image."""
    n, side = 20 if backend.is_slow else 500, 6
    given = torch.arange(n * side * side, dtype=torch.float32).view(n, 1, side, side) + 10
    occluded, _ = occluded_by(backend, given, 2, n_rectangles=3)
    place = torch.arange(side * side).view(1, 1, side, side)
    from_images = occluded >= 10
    origin = ((occluded - 10).long() - place) % (side * side)
    assert (origin[from_images] == 0).all()
    assert (from_images & (occluded != given)).any()


def test_draws_depend_on_seed_step_and_sample_id_alone(backend: Backend) -> None:
    data = images(5 if backend.is_slow else 64)
    one = occluded_by(backend, data, 3, step=5)
    for same in (
        occluded_by(backend, data, 3, step=5),
        occluded_by(backend, data, 3, step=torch.tensor(5).to(backend.device)),
    ):
        for a, b in zip(one, same, strict=True):
            check_batch(a, b)
    for other in (occluded_by(backend, data, 4, step=5), occluded_by(backend, data, 3, step=6)):
        assert not torch.equal(one[0], other[0])
        assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("channels_last", [False, True])
def test_results_have_the_memory_format_of_the_images(backend: Backend, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    data = images(9)
    plain = occluded_by(backend, data)
    for got, want in zip(occluded_by(backend, data.contiguous(memory_format=layout)), plain, strict=True):
        assert got.is_contiguous(memory_format=layout)
        torch.testing.assert_close(got.contiguous(), want)  # the mean image is summed in another order


def test_an_empty_batch(backend: Backend) -> None:
    assert [x.shape for x in occluded_by(backend, images(0))] == [(0, 3, 12, 10)] * 2


def test_every_image_has_its_own_draws(backend: Backend) -> None:
    assert len({tuple(mask.flatten().tolist()) for mask in covered(backend, 50, 12)}) > 40


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (4, 3, 12, 10),
        (2, 3, 32, 32),  # more pixels than a program of a GPU takes
        (3, 5, 9, 16),  # more channels than a draw has words
        (3, 1, 5, 1),
    ],
)
@pytest.mark.parametrize("on_device", [False, True])
def test_the_bits_are_those_of_the_reference(
    backend: Backend, shape: tuple[int, int, int, int], channels_last: bool, on_device: bool
) -> None:
    if (backend.name, backend.device.type) == ("reference", "cpu"):
        pytest.skip("the others are compared with it")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    data = torch.rand(shape, generator=torch.Generator().manual_seed(4)).contiguous(memory_format=layout)
    low, high = -torch.rand(shape[1]), torch.rand(shape[1])
    ids = torch.arange(shape[0]) * 2**33 - 5
    settings: Any = {"n_rectangles": 6, "largest": 0.7, "seed": 2**64 - 3, "step": 2**32 - 2}
    want, _ = occlude(data, low, high, ids, **settings, backend="reference")
    if on_device:  # the same counters, in 64 bits with a sign
        settings |= {name: torch.tensor(value).to(backend.device) for name, value in (("seed", -3), ("step", -2))}
    arguments = [value.to(backend.device) for value in (data, low, high, ids)]
    occluded, neutral = occlude(*arguments, **settings, backend=backend.name)
    check_batch(occluded, want)
    # The mean image is computed on the device, which may sum in another order.
    check_batch(neutral, occlude(*arguments, **settings, backend="reference")[1])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_a_captured_call_reads_its_counters_at_each_replay(name: str) -> None:
    device = torch.device("cuda")
    data, low, high = (value.to(device) for value in (images(9), LOW.flatten(), HIGH.flatten()))
    ids, seed, step = (torch.tensor(value, device=device) for value in (range(9), 7, 0))

    def one() -> tuple[Tensor, Tensor]:
        both = occlude(data, low, high, ids, seed=seed, step=step, backend=name)
        step.add_(1)
        return both

    graph, outputs = captured(one)
    seen = []
    for number in range(3):
        step.fill_(number)
        graph.replay()
        got = [value.clone() for value in outputs]
        step.fill_(number)
        for value, want in zip(got, one(), strict=True):
            check_batch(value, want)
        seen.append(got[0])
    assert not torch.equal(seen[0], seen[1])


@hypothesis.given(
    c=st.integers(1, 6), h=st.integers(1, 20), w=st.integers(1, 20), n=st.integers(1, 9), r=st.integers(0, 5),
    largest=st.floats(0, 1), seed=st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_cpp_is_the_reference(native: Any, c: int, h: int, w: int, n: int, r: int, largest: float, seed: int) -> None:
    data = torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(h))
    low, high, ids = -torch.rand(c), torch.rand(c), torch.arange(n) * 2**33 - 5
    settings: Any = {"n_rectangles": r, "largest": largest, "seed": seed, "step": 2**32 - 1}
    got = occlude(data, low, high, ids, **settings, backend="cpp", threads=2)
    want = occlude(data, low, high, ids, **settings, backend="reference")
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_threads_change_no_bit(native: Any) -> None:
    data, ids = torch.rand(300, 3, 32, 32), torch.arange(300)
    one, four = (occlude(data, torch.zeros(3), torch.ones(3), ids, backend="cpp", threads=t) for t in (1, 4))
    assert torch.equal(one[0], four[0])
    assert torch.equal(one[1], four[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(3, 8, 8)}, ShapeError, "images has shape (3, 8, 8); expected (N, C, H, W)"),
        ({"images": torch.zeros(2, 3, 8, 8).double()}, DTypeError, "images has dtype float64; expected float32"),
        ({"lowest": torch.zeros(2)}, ShapeError, "lowest has shape (2,); expected (N,) = (3,)"),
        ({"sample_ids": torch.arange(3)}, ShapeError, "sample_ids has shape (3,); expected (N,) = (2,)"),
        ({"n_rectangles": 65}, InputError, "n_rectangles is 65; expected an integer in [0, 64]"),
        ({"largest": 1.5}, InputError, "largest is 1.5; expected a number in [0, 1]"),
        ({"largest": float("nan")}, InputError, "largest is nan; expected a number in [0, 1]"),
        ({"seed": -1}, InputError, f"seed is -1; expected an integer in [0, {2**64 - 1}] or an int64 0-d tensor"),
    ],
)
def test_invalid_arguments_raise(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"images": torch.zeros(2, 3, 8, 8), "lowest": torch.zeros(3), "highest": torch.ones(3)}
    with pytest.raises(error) as caught:
        occlude(**{**arguments, "sample_ids": torch.arange(2), **change})
    assert str(caught.value) == message
