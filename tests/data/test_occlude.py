from __future__ import annotations

import pytest
import torch

from seamfast.data.occlude import occlude

LOW, HIGH = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-2.0, -1.0, 0.0], [2.0, 3.0, 1.0]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 64, height: int = 12, width: int = 10) -> torch.Tensor:
    return LOW + (HIGH - LOW) * torch.rand(n, 3, height, width, generator=generator(9))


def changed(n: int, side: int, seed: int = 0, **options: float) -> torch.Tensor:
    """``(n, side, side)``: where a rectangle lies. Inputs outside of the range tell, for no filling equals them...
    but what another image shows: so each has a number of its own."""
    marks = 10.0 + torch.arange(n, dtype=torch.float64).view(n, 1, 1, 1).expand(n, 3, side, side)
    out = occlude(marks, LOW.double(), HIGH.double(), generator(seed), n_rectangles=1, **options)  # type: ignore[arg-type]
    return (out != marks).any(1)


def test_no_rectangles_change_nothing() -> None:
    given = images()
    assert torch.equal(occlude(given, LOW, HIGH, generator(), n_rectangles=0), given)


@pytest.mark.parametrize("n_rectangles", [1, 3, 6])
def test_values_stay_in_range_and_the_input_as_it_was(n_rectangles: int) -> None:
    given = images()
    before = given.clone()
    out = occlude(given, LOW, HIGH, generator(), n_rectangles=n_rectangles)
    assert torch.equal(given, before)
    assert out.shape == given.shape
    assert out.dtype == given.dtype
    assert (out >= LOW - 1e-6).all()
    assert (out <= HIGH + 1e-6).all()
    assert not torch.equal(out, given)


def test_every_place_is_covered_as_often() -> None:
    """Corners too, for rectangles may hang over the border. How often follows from the distribution of the sides."""
    n, side, largest = 60_000, 6, 0.5
    share = changed(n, side, largest=largest).double().mean(0)
    length = torch.arange(1, 4, dtype=torch.float64)
    odds = (length / 3) ** (2 / 3) - ((length - 1) / 3) ** (2 / 3)  # of 1 + floor(3 * u ** 1.5)
    wanted = float((odds * length / (side + length)).sum()) ** 2
    # Five standard errors; an image that is its own partner shows nothing, which is far less than that.
    assert (share - wanted).abs().max() < 5 * (wanted * (1 - wanted) / n) ** 0.5


def test_what_is_covered_is_one_rectangle_of_the_sides_allowed() -> None:
    side, largest = 12, 0.4
    for mask in changed(2000, side, largest=largest):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if len(rows):
            assert int(rows[-1] - rows[0]) + 1 == len(rows) <= 1 + largest * side
            assert int(columns[-1] - columns[0]) + 1 == len(columns) <= 1 + largest * side
            assert int(mask.sum()) == len(rows) * len(columns)


def test_largest_at_its_ends() -> None:
    assert changed(500, 8, largest=0.0).flatten(1).sum(1).max() == 1
    assert changed(3000, 8, largest=1.0).flatten(1).sum(1).max() > 0.7 * 64


def test_the_four_fillings_come_equally_often() -> None:
    n, side = 8000, 8
    marks = 10.0 + torch.arange(n).view(n, 1, 1, 1).expand(n, 3, side, side)
    out = occlude(marks, LOW, HIGH, generator(1), n_rectangles=1, largest=1.0)
    kinds = {"other image": 0, "extreme": 0, "noise": 0, "color": 0}
    for one, given in zip(out, marks, strict=True):
        inside = (one != given).any(0)
        if inside.sum() < 12:
            continue  # too small to tell noise from one colour
        filling = one[:, inside]
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
    """CutMix: what is pasted comes from the same place of the other image, and from the image as given."""
    n, side = 500, 6
    given = torch.arange(n * side * side, dtype=torch.float64).view(n, 1, side, side) + 10
    out = occlude(given, LOW[:, :1].double(), HIGH[:, :1].double(), generator(2), n_rectangles=3)
    place = torch.arange(side * side).view(1, 1, side, side)
    from_images = out >= 10
    origin = ((out - 10).long() - place) % (side * side)
    assert (origin[from_images] == 0).all()
    assert (from_images & (out != given)).any()


def test_the_generator_alone_decides() -> None:
    given = images()
    one = occlude(given, LOW, HIGH, generator(3))
    torch.rand(5)
    assert torch.equal(one, occlude(given, LOW, HIGH, generator(3)))
    assert not torch.equal(one, occlude(given, LOW, HIGH, generator(4)))


def test_every_image_gets_draws_of_its_own() -> None:
    out = changed(50, 12, largest=0.4)
    assert len({tuple(mask.flatten().tolist()) for mask in out}) > 30
