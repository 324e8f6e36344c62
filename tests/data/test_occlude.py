from __future__ import annotations

import pytest
import torch

from seamfast.data.occlude import occlude

LOW, HIGH = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-2.0, -1.0, 0.0], [2.0, 3.0, 1.0]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 64, height: int = 12, width: int = 10) -> torch.Tensor:
    return LOW + (HIGH - LOW) * torch.rand(n, 3, height, width, generator=generator(9))


def marks(n: int, side: int, channels: int = 3) -> torch.Tensor:
    """Images that are full of a number of their own, beyond the range: what is pasted over them shows."""
    return 10.0 + torch.arange(n, dtype=torch.float64).view(n, 1, 1, 1).expand(n, channels, side, side)


def covered(n: int, side: int, largest: float = 0.4) -> torch.Tensor:
    """``(n, side, side)``: where the one rectangle of each image lies, told by the mean image (whose mark is .5)."""
    n += n % 2
    given = marks(n, side, channels=1)
    _, neutral = occlude(given, LOW[:, :1], HIGH[:, :1], generator(), n_rectangles=1, largest=largest)
    return (neutral != given).any(1)


def test_no_rectangles_change_nothing() -> None:
    given = images()
    for got in occlude(given, LOW, HIGH, generator(), n_rectangles=0):
        assert torch.equal(got, given)


@pytest.mark.parametrize("n_rectangles", [1, 3, 6])
def test_values_stay_in_range_and_the_input_as_it_was(n_rectangles: int) -> None:
    given = images()
    before = given.clone()
    for got in occlude(given, LOW, HIGH, generator(), n_rectangles=n_rectangles):
        assert (got.shape, got.dtype) == (given.shape, given.dtype)
        assert (got >= LOW - 1e-6).all()
        assert (got <= HIGH + 1e-6).all()
        assert not torch.equal(got, given)
    assert torch.equal(given, before)


@pytest.mark.parametrize("n_rectangles", [1, 4])
def test_both_hide_the_same_part_one_under_the_mean_image(n_rectangles: int) -> None:
    given = images()
    occluded, neutral = occlude(given, LOW, HIGH, generator(), n_rectangles=n_rectangles)
    hidden = (neutral != given).any(1, keepdim=True)
    assert 0 < hidden.double().mean() < 1
    assert torch.equal(neutral, torch.where(hidden, given.mean(0, keepdim=True), given))
    assert torch.equal(occluded.masked_fill(hidden, 0), given.masked_fill(hidden, 0))
    # What another image shows there is the image itself once in 64 times, for a quarter of the rectangles.
    assert ((occluded == given).all(1, keepdim=True) & hidden).sum() < 0.02 * hidden.sum()


def test_what_is_hidden_is_one_rectangle_wholly_inside() -> None:
    side = 12
    for mask in covered(2000, side, largest=0.4):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert 1 <= len(rows) == int(rows[-1] - rows[0]) + 1 <= 1 + 0.4 * side
        assert 1 <= len(columns) == int(columns[-1] - columns[0]) + 1 <= 1 + 0.4 * side
        assert int(mask.sum()) == len(rows) * len(columns)


def test_sides_follow_their_formula() -> None:
    """``1 + floor(largest * side * u ** 1.5)``: how often each length comes, height and width alike."""
    n, side, largest = 10_000, 20, 0.4
    masks = covered(n, side, largest)
    length = torch.arange(1, 9, dtype=torch.float64)
    odds = (length / 8) ** (2 / 3) - ((length - 1) / 8) ** (2 / 3)
    for lengths in (masks.any(2).sum(1), masks.any(1).sum(1)):
        got = torch.bincount(lengths, minlength=10).double() / n
        assert got[0] == got[9] == 0
        assert ((got[1:9] - odds).abs() < 5 * (odds * (1 - odds) / n).sqrt()).all()


def test_borders_are_covered_more_than_the_centre_and_corners_more_than_borders() -> None:
    share = covered(15_000, 32).double().mean(0)
    low, middle, high = slice(0, 4), slice(14, 18), slice(28, 32)
    centre = share[middle, middle].mean()
    for side in (low, high):
        assert share[side, middle].mean() > 1.1 * centre
        assert share[middle, side].mean() > 1.1 * centre
    for corner in ((low, low), (low, high), (high, low), (high, high)):
        assert share[corner].mean() > 1.3 * centre
    assert share.min() > 0.5 * centre  # no place is safe


@pytest.mark.parametrize(("largest", "wanted"), [(0.0, 1), (1.0, 64)])
def test_largest_at_its_ends(largest: float, wanted: int) -> None:
    sizes = covered(3000, 8, largest).flatten(1).sum(1)
    assert sizes.min() == 1
    assert sizes.max() == wanted


def test_the_four_fillings_come_equally_often() -> None:
    n, side = 4000, 8
    given = marks(n, side)
    occluded, neutral = occlude(given, LOW, HIGH, generator(1), n_rectangles=1, largest=1.0)
    kinds = {"other image": 0, "extreme": 0, "noise": 0, "color": 0}
    for one, mask in zip(occluded, (neutral != given).any(1), strict=True):
        if mask.sum() < 12:
            continue  # too small to tell noise from one colour
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


def test_another_image_shows_its_own_pixels() -> None:
    """CutMix: what is pasted comes from the same place of the other image."""
    n, side = 500, 6
    given = torch.arange(n * side * side, dtype=torch.float64).view(n, 1, side, side) + 10
    occluded, _ = occlude(given, LOW[:, :1], HIGH[:, :1], generator(2), n_rectangles=3)
    place = torch.arange(side * side).view(1, 1, side, side)
    from_images = occluded >= 10
    origin = ((occluded - 10).long() - place) % (side * side)
    assert (origin[from_images] == 0).all()
    assert (from_images & (occluded != given)).any()


def test_the_generator_alone_decides() -> None:
    given = images()
    one = occlude(given, LOW, HIGH, generator(3))
    torch.rand(5)
    again, other = occlude(given, LOW, HIGH, generator(3)), occlude(given, LOW, HIGH, generator(4))
    for a, b, c in zip(one, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_every_image_gets_draws_of_its_own() -> None:
    assert len({tuple(mask.flatten().tolist()) for mask in covered(50, 12)}) > 40
