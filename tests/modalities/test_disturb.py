"""Images bent, in other tones, under a veil or a wave: what each kind does, to how many images, and what not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seamfast.modalities.image import disturb as module
from seamfast.modalities.image.disturb import add_plane_waves, disturb

KINDS = {"bend": "_BEND", "tone": "_TONE", "veil": "_VEIL"}
LOW, HIGH = torch.tensor([-2.0, 0.0, 10.0]), torch.tensor([3.0, 1.0, 10.5])


def alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one kind."""
    for name, constant in KINDS.items():
        if name != kind:
            monkeypatch.setattr(module, constant, 0.0)


def images(n: int = 64, channels: int = 3, height: int = 12, width: int = 12) -> Tensor:
    """Noise over all of the range."""
    u = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(9))
    low, high = (ends[:channels].view(1, -1, 1, 1) for ends in (LOW, HIGH))
    return low + (high - low) * u


def disturbed(x: Tensor, share: float = 1.0, seed: int = 0) -> Tensor:
    n_channels = x.shape[1]
    generator = torch.Generator().manual_seed(seed)
    return disturb(x, LOW[:n_channels], HIGH[:n_channels], generator, share=torch.tensor(share))


def changed(x: Tensor, share: float) -> Tensor:
    """Which images came out otherwise than rounding explains."""
    reach = (HIGH - LOW)[: x.shape[1]].view(1, -1, 1, 1)
    return ((disturbed(x, share) - x).abs() / reach).flatten(1).amax(1) > 1e-4


def about(share: float, n: int) -> float:
    """``pytest.approx`` of a share of ``n``: five standard errors, and a hundredth whose strength is next to none."""
    return pytest.approx(share, abs=5 * (share * (1 - share) / n) ** 0.5 + 0.01)  # type: ignore[no-any-return]


# All kinds at once.


def test_the_generator_alone_decides() -> None:
    one = disturbed(images(), 0.5, seed=3)
    torch.rand(7)
    assert torch.equal(one, disturbed(images(), 0.5, seed=3))
    assert not torch.equal(one, disturbed(images(), 0.5, seed=4))
    generator = torch.Generator().manual_seed(3)
    first, second = (disturb(images(), LOW, HIGH, generator, share=torch.tensor(0.5)) for _ in range(2))
    assert torch.equal(first, one)
    assert not torch.equal(second, one)  # a step later it draws anew


def test_nothing_happens_where_the_share_is_none() -> None:
    x = images()
    assert (disturbed(x, 0.0) - x).abs().amax() < 1e-5
    assert not changed(x, 0.0).any()
    assert changed(x, 1.0).float().mean() > 0.99


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_images_given_stay_as_they_are(share: float) -> None:
    x = images()
    got = disturbed(x, share)
    assert torch.equal(x, images())
    got.zero_()
    assert torch.equal(x, images())
    assert got.dtype == torch.float32
    assert got.shape == x.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_what_comes_out_lies_in_the_range_of_the_data(channels: int) -> None:
    got = disturbed(images(500, channels))
    for channel in range(channels):
        slack = 1e-5 * float(HIGH[channel].abs() + 1)
        assert float(got[:, channel].min()) >= float(LOW[channel]) - slack
        assert float(got[:, channel].max()) <= float(HIGH[channel]) + slack


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_kinds_are_drawn_apart(share: float) -> None:
    n = 1500
    assert float(changed(images(n, 1, 6, 6), share).float().mean()) == about(1 - (1 - share) ** 3, n)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_each_kind_happens_to_its_share_of_the_images(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(kind, monkeypatch)
    n = 1500
    assert float(changed(images(n, 1, 6, 6), share).float().mean()) == about(share, n)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (5, 17), (1, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size(shape: tuple[int, int], channels: int) -> None:
    x = images(40, channels, *shape)
    got = disturbed(x)
    assert got.shape == x.shape
    assert torch.isfinite(got).all()
    assert (got - x).flatten(1).abs().amax(1).gt(1e-5).float().mean() > 0.9
    assert (disturbed(x, 0.0) - x).abs().amax() < 1e-5


def test_the_layout_in_memory_does_not_matter() -> None:
    x = images(16)
    wanted = disturbed(x)
    wide = torch.empty(16, 3, 12, 30)
    wide[..., 3:27:2] = x
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    for same in (x.to(memory_format=torch.channels_last), wide[..., 3:27:2], turned):
        assert torch.equal(same, x)
        torch.testing.assert_close(disturbed(same), wanted, rtol=1e-5, atol=1e-5)
    row = x[:1].expand(16, -1, -1, -1)  # one image, 16 times: in one place in memory
    torch.testing.assert_close(disturbed(row), disturbed(row.contiguous()), rtol=1e-5, atol=1e-5)


def test_a_channel_that_is_constant_stays_so() -> None:
    """Its range is a point: what a tone or a veil has of it is nothing, and rounding must not be taken for contrast."""
    x = images(200, 2)
    x[:, 1] = 255.3
    low, high = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    got = disturb(x, low, high, torch.Generator().manual_seed(0), share=torch.tensor(1.0))
    assert (got[:, 1] - 255.3).abs().amax() < 1e-3
    assert (got[:, 0] - x[:, 0]).abs().amax() > 0.1


# Tone.


def test_a_tone_is_one_curve_for_each_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    alone("tone", monkeypatch)
    x = images(400)
    level = ((x.double() - LOW.view(1, -1, 1, 1)) / (HIGH - LOW).view(1, -1, 1, 1)).flatten(2)
    got = ((disturbed(x).double() - LOW.view(1, -1, 1, 1)) / (HIGH - LOW).view(1, -1, 1, 1)).flatten(2)
    bump = level * (1 - level)
    bow = ((got - level) * bump).sum(2, keepdim=True) / bump.square().sum(2, keepdim=True)  # by least squares
    assert (got - (level + bow * bump)).abs().amax() < 1e-4
    bow = bow.squeeze(2)
    assert 0.7 < float(bow.abs().amax()) < 0.9
    assert abs(float(bow.mean())) < 0.05  # brighter as often as darker
    assert (bow[:, 0] - bow[:, 1]).abs().mean() > 0.05  # the channels apart
    assert (bow[:, 1] - bow[:, 2]).abs().mean() > 0.05


def test_a_tone_leaves_alone_what_lies_outside_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are read anew may go a little beyond the range of those that were read first."""
    alone("tone", monkeypatch)
    x = images(100)
    x[:, :, 0] = (HIGH + 5).view(1, 3, 1)
    x[:, :, 1] = (LOW - 5).view(1, 3, 1)
    got = disturbed(x)
    torch.testing.assert_close(got[:, :, :2], x[:, :, :2], rtol=1e-5, atol=1e-5)
    assert changed(x, 1.0).float().mean() > 0.98


# Veil.


def veils(n: int, channels: int, monkeypatch: pytest.MonkeyPatch, size: int = 16) -> tuple[Tensor, Tensor]:
    """The share of the waves in each image ``(n,)``, and the waves where they are seen, on the scale of the range."""
    alone("veil", monkeypatch)
    low, high = torch.zeros(channels), torch.ones(channels)
    blank = torch.zeros(n, channels, size, size)
    on_black, on_white = (
        disturb(x, low, high, torch.Generator().manual_seed(1), share=torch.tensor(1.0)).double()
        for x in (blank, blank + 1)
    )
    weight = 1 - (on_white - on_black)  # of black and white, what is left of their difference
    assert (weight - weight[:, :1, :1, :1]).abs().amax() < 1e-5  # the same all over an image
    weight = weight[:, 0, 0, 0]
    seen = weight > 0.02
    return weight, on_black[seen] / weight[seen].view(-1, 1, 1, 1)


def test_a_veil_is_a_share_of_waves_and_a_share_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, waves = veils(500, 1, monkeypatch)
    assert float(weight.min()) > -1e-5
    assert 0.38 < float(weight.max()) < 0.4
    assert float(weight.mean()) == pytest.approx(0.2, abs=5 * 0.4 * 12**-0.5 / 500**0.5)
    assert float(waves.min()) >= -1e-4
    assert float(waves.max()) <= 1 + 1e-4
    assert float(waves.mean()) == pytest.approx(0.5, abs=0.02)
    assert waves.flatten(1).std(1).min() > 0.15


def test_a_veil_is_grey_or_colored(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = veils(400, 3, monkeypatch)[1]
    grey = (waves - waves[:, :1]).flatten(1).abs().amax(1) < 1e-3
    assert float(grey.double().mean()) == about(0.5, len(waves))


def test_veils_go_from_broad_blots_to_single_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """How unlike neighbours are, against how unlike any two pixels are: near 0 for a blot, 1 for noise."""
    waves = veils(400, 1, monkeypatch)[1]
    rough = (waves.diff(dim=3).square().mean((1, 2, 3)) / (2 * waves.var((1, 2, 3)))).sqrt()
    assert float(rough.min()) < 0.2
    assert float(rough.max()) > 0.8
    for lower in (0.2, 0.4, 0.6):  # and in between, not one or the other
        assert ((rough > lower) & (rough < lower + 0.2)).float().mean() > 0.03


# Bend.


def test_a_bend_moves_pixels_along_a_smooth_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """On images whose value is their row, and their column, what is added is how far away the pixel came from."""
    alone("bend", monkeypatch)
    size, n = 48, 300
    at = torch.arange(size, dtype=torch.float32)
    x = torch.stack([at.view(-1, 1).expand(size, size), at.expand(size, size)]).repeat(n, 1, 1, 1)
    generator = torch.Generator().manual_seed(2)
    got = disturb(x, torch.zeros(2), torch.full((2,), size - 1.0), generator, share=torch.tensor(1.0))
    moved = (got - x).double()[:, :, 6:-6, 6:-6]  # at the border there is nothing more to come from
    length = moved.square().mean((1, 2, 3)).sqrt()
    assert 1.2 < float(length.max()) < 1.9  # 1.5 over all of the image; within it, a little more or less
    assert float(length.mean()) == pytest.approx(0.75, abs=0.15)
    steps = moved.diff(dim=3).square().mean((1, 2, 3)).sqrt()
    assert (steps < 4 * torch.pi / size * 1.2 * length + 1e-4).all()  # at most 4 half periods an image
    assert (moved.flatten(2).std(2).amax(1) > 0.3 * length).float().mean() > 0.9  # bent, not only shifted
    mean = moved.mean((0, 2, 3))
    assert mean.abs().max() < 0.2  # no direction is preferred


def test_a_bend_makes_no_new_values(monkeypatch: pytest.MonkeyPatch) -> None:
    alone("bend", monkeypatch)
    flat = torch.full((50, 3, 9, 9), 0.25) + LOW.view(1, 3, 1, 1)
    torch.testing.assert_close(disturbed(flat), flat, rtol=1e-5, atol=1e-5)  # beyond the border lies the border


@pytest.mark.parametrize("change", [disturb, add_plane_waves])
def test_at_most_so_many_images_change_each_of_them_as_likely(change: Callable[..., Tensor]) -> None:
    x = images(10)
    counts = torch.zeros(10)
    kinds = 3 if change is disturb else 1
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        moved = (change(x, LOW, HIGH, generator, share=torch.tensor(0.25), most=0.25) - x).abs().flatten(1).amax(
            1
        ) > 1e-4
        assert moved.sum() <= 3 * kinds  # rounded up
        counts += moved
    assert counts.sum() / (200 * 10) == pytest.approx(1 - 0.75**kinds, abs=0.07 if kinds > 1 else 0.03)
    assert counts.min() > 0.6 * counts.mean()
    assert counts.max() < 1.5 * counts.mean()
    with_none = change(x, LOW, HIGH, torch.Generator().manual_seed(0), share=torch.tensor(0.0), most=0.25)
    torch.testing.assert_close(with_none, x, rtol=1e-5, atol=1e-4)


# Plane waves.


def waves(n: int = 512, share: float = 1.0, channels: int = 3, side: int = 32) -> Tensor:
    """What is added to images, as a share of the range of each channel."""
    x = torch.zeros(n, channels, side, side)
    low, high = LOW[:channels], HIGH[:channels]
    added = add_plane_waves(x, low, high, torch.Generator().manual_seed(1), share=torch.tensor(share)) - x
    return added / (high - low).view(1, -1, 1, 1)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_waves_are_added_to_their_share_of_the_images(share: float) -> None:
    assert waves(share=share).flatten(1).abs().amax(1).gt(1e-5).float().mean().item() == about(share, 512)


def test_the_images_under_waves_stay_as_they_were_and_the_generator_alone_decides() -> None:
    x = images()
    before = x.clone()
    one, same, other = (
        add_plane_waves(x, LOW, HIGH, torch.Generator().manual_seed(seed), share=torch.tensor(0.5))
        for seed in (3, 3, 4)
    )
    assert torch.equal(x, before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_wave_has_one_frequency_and_an_amplitude_of_up_to_fifteen_hundredths() -> None:
    """A sine keeps ``f(i + 1) + f(i - 1) = 2 cos(w) f(i)`` along each axis, with one ``w`` for all places."""
    added = waves().double()
    assert added.abs().amax() <= 0.15 + 1e-6
    assert added.abs().amax() > 0.14
    for axis in (2, 3):
        size = added.shape[axis] - 2
        middle, both = added.narrow(axis, 1, size), added.narrow(axis, 0, size) + added.narrow(axis, 2, size)
        ratio = (both * middle).sum((1, 2, 3), keepdim=True) / middle.square().sum((1, 2, 3), keepdim=True)
        assert (both - ratio * middle).abs().amax() < 1e-4


def test_wavelengths_go_from_two_pixels_to_twice_the_edge_in_octaves() -> None:
    added = waves(4096, channels=1).double()[:, 0]
    cosines = []
    for axis in (1, 2):
        size = added.shape[axis] - 2
        middle, both = added.narrow(axis, 1, size), added.narrow(axis, 0, size) + added.narrow(axis, 2, size)
        cosines.append((both * middle).sum((1, 2)) / middle.square().sum((1, 2)) / 2)
    cycles = sum(c.clamp(-1, 1).acos().square() for c in cosines).sqrt() / (2 * torch.pi)  # type: ignore[union-attr]
    octaves = (cycles * 64).log2() / 5  # of 1/64 to 1/2 a pixel
    quartiles = octaves[octaves.isfinite()].quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert quartiles.tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.05)


def test_most_waves_are_grey() -> None:
    added = waves(2048)
    spread = (added.amax(1) - added.amin(1)).flatten(1).amax(1)
    assert (spread < 1e-5).float().mean().item() == about(0.7, 2048)
