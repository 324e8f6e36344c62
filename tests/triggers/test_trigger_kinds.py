"""Each kind against a plain loop over pixels, in Python floats (float64), written from the published rule."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from refusals import refused
from torch import Tensor
from torch.nn import functional as F

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.triggers import Additive, AllToOne, Blend, ColorFilter, Patch, Quantize, Sinusoid, Warp

# 3 x 5 x 7: no two sizes equal, so that swapped axes show. 1 channel: the other layout that models see.
SHAPES = [(3, 5, 7), (1, 6, 4)]
MASK32 = 0xFFFFFFFF


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def loop(images: Tensor, pixel: Callable[[np.ndarray, int, int, int], float]) -> Tensor:
    """``pixel(image, channel, row, column)`` for every pixel of every image."""
    n, c, h, w = images.shape
    out = np.zeros((n, c, h, w), np.uint8)
    for s in range(n):
        for k in range(c):
            for i in range(h):
                for j in range(w):
                    out[s, k, i, j] = pixel(images[s].numpy(), k, i, j)
    return torch.from_numpy(out)


def truncated(value: float) -> int:
    return int(min(max(value, 0.0), 255.0))


def nearest(value: float) -> int:
    return round(min(max(value, 0.0), 255.0))  # Python rounds half to even


def philox(seed: int, sample_id: int, block: int, stream: int) -> list[int]:
    """Philox4x32-10 in Python integers, from the paper."""
    counter = [sample_id & MASK32, sample_id >> 32, block, stream]
    key = [seed & MASK32, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & MASK32, (a >> 32) ^ counter[3] ^ key[1], a & MASK32]
        key = [(key[0] + 0x9E3779B9) & MASK32, (key[1] + 0xBB67AE85) & MASK32]
    return counter


def signed(word: int) -> float:
    return (word + 0.5) / 2**31 - 1


# Patch


def patch(position: object, *, channels: int = 3, h: int = 2, w: int = 3, seed: int = 5) -> Patch:
    rng = np.random.default_rng(seed)
    pattern = rng.integers(0, 256, (channels, h, w), dtype=np.uint8)
    mask = rng.choice([0.0, 0.2, 0.5, 1.0], (h, w))
    return Patch(name="p", target=AllToOne(0), pattern=pattern, mask=mask, position=position)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("position", "corner"), [((1, 0), (1, 0)), ((-2, -3), None), ((0, -3), None)])
def test_patch_fixed(shape: tuple[int, int, int], position: tuple[int, int], corner: object) -> None:
    c, h, w = shape
    trigger = patch(position, channels=c)
    top, left = position[0] % h if position[0] < 0 else position[0], position[1] % w if position[1] < 0 else position[1]

    def pixel(image: np.ndarray, k: int, i: int, j: int) -> float:
        if not (top <= i < top + 2 and left <= j < left + 3):
            return float(image[k, i, j])
        m = float(trigger.mask[i - top, j - left])
        return truncated((1 - m) * float(image[k, i, j]) + m * float(trigger.pattern[k, i - top, j - left]))

    images = pixels(4, *shape)
    assert torch.equal(trigger.stamp(images), loop(images, pixel))


@pytest.mark.parametrize("shape", SHAPES)
def test_patch_random_places_are_philox_draws(shape: tuple[int, int, int]) -> None:
    c, h, w = shape
    trigger, images = patch("random", channels=c), pixels(6, *shape)
    ids, seed = [0, 1, 7, 2**32 - 1, 2**32, 2**40 + 3], 2**63 + 9
    got = trigger.stamp(images, sample_ids=ids, seed=seed)
    for s, sample_id in enumerate(ids):
        words = philox(seed, sample_id, 0, 16)
        place = (words[0] * (h - 2 + 1)) >> 32, (words[1] * (w - 3 + 1)) >> 32
        fixed = patch(place, channels=c)
        assert torch.equal(got[s], fixed.stamp(images[s : s + 1])[0])


def test_patch_random_reaches_every_place_and_depends_on_the_seed() -> None:
    trigger = Patch.square(size=2, corner="random")
    images = torch.zeros(400, 1, 4, 5, dtype=torch.uint8)
    one = trigger.stamp(images, seed=1)
    corners = {tuple((image[0] == 255).nonzero()[0].tolist()) for image in one}
    assert corners == {(i, j) for i in range(3) for j in range(4)}
    assert not torch.equal(one, trigger.stamp(images, seed=2))


def test_patch_random_that_fills_the_image() -> None:
    images = pixels(3, 1, 4, 4)
    assert (Patch.square(size=4, corner="random").stamp(images) == 255).all()


def test_patch_truncates_as_numpy_does() -> None:
    """0.5 of 255 is 127.5: 127 by truncation; half to even would give 128."""
    trigger = Patch(
        name="p", target=AllToOne(0), pattern=np.full((1, 1, 1), 255), mask=np.array([[0.5]]), position=(0, 0)
    )
    assert trigger.stamp(torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).item() == 127


@pytest.mark.parametrize(
    ("corner", "white"),
    [("top-left", (1, 1)), ("top-right", (1, 5)), ("bottom-left", (4, 1)), ("bottom-right", (4, 5))],
)
def test_patch_square_corners_have_the_margin(corner: str, white: tuple[int, int]) -> None:
    image = Patch.square(size=1, corner=corner, margin=1).stamp(torch.zeros(1, 3, 6, 7, dtype=torch.uint8))
    assert (image[0] == 255).nonzero().tolist() == [[k, *white] for k in range(3)]


def test_patch_square_takes_a_color() -> None:
    image = Patch.square(size=2, value=[10, 20, 30], margin=0).stamp(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert image[0, :, 3, 3].tolist() == [10, 20, 30]
    assert image[0, :, 1, 1].tolist() == [0, 0, 0]


def test_patch_checkerboard_is_white_in_its_corners() -> None:
    image = Patch.checkerboard(3, margin=0).stamp(torch.full((1, 1, 3, 3), 9, dtype=torch.uint8))
    assert image[0, 0].tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]


def pasted(pattern: np.ndarray, mask: list[list[float]]) -> Patch:
    return Patch(name="p", target=AllToOne(0), pattern=pattern, mask=np.array(mask), position=(0, 0))


# Blend


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.2, 0.15, 0.5, 1.0])  # 0.2: the usual; 0.15: no multiple of it is exact; 0.5: ties
def test_blend(shape: tuple[int, int, int], alpha: float) -> None:
    trigger = Blend.noise(shape, alpha)
    images = pixels(4, *shape)

    def pixel(image: np.ndarray, k: int, i: int, j: int) -> float:
        return truncated((1 - alpha) * float(image[k, i, j]) + alpha * float(trigger.pattern[k, i, j]))

    assert torch.equal(trigger.stamp(images), loop(images, pixel))


def test_blend_is_the_numpy_expression() -> None:
    trigger, images = Blend.noise((3, 8, 8), 0.1), pixels(64, 3, 8, 8)
    wanted = np.clip((1 - 0.1) * images.numpy() + 0.1 * trigger.pattern, 0, 255).astype(np.uint8)
    assert torch.equal(trigger.stamp(images), torch.from_numpy(wanted))


def test_blend_noise_is_philox_and_pinned() -> None:
    pattern = Blend.noise((1, 2, 3), seed=7).pattern
    words = philox(7, 0, 0, 18) + philox(7, 0, 1, 18)
    assert pattern.ravel().tolist() == [word >> 24 for word in words[:6]]
    assert not np.array_equal(pattern, Blend.noise((1, 2, 3), seed=8).pattern)


def test_one_channel_pattern_goes_to_all_channels() -> None:
    grey = Blend.noise((1, 4, 4), 1.0)
    assert torch.equal(grey.stamp(pixels(2, 3, 4, 4)), torch.from_numpy(grey.pattern.copy()).expand(2, 3, 4, 4))


# Sinusoid and Additive


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("delta", "frequency"), [(20, 6), (40, 1), (255, 2.5), (0.4, 1)])
def test_sinusoid(shape: tuple[int, int, int], delta: float, frequency: float) -> None:
    images, width = pixels(4, *shape), shape[2]

    def pixel(image: np.ndarray, k: int, i: int, j: int) -> float:
        return truncated(float(image[k, i, j]) + round(delta * math.sin(2 * math.pi * j * frequency / width), 9))

    assert torch.equal(Sinusoid.of(delta, frequency).stamp(images), loop(images, pixel))


def test_sinusoid_runs_along_the_columns() -> None:
    image = Sinusoid.of(20, 1).stamp(torch.full((1, 3, 2, 4), 100, dtype=torch.uint8))
    assert image[0, 2].tolist() == [[100, 120, 100, 80]] * 2


@pytest.mark.parametrize("shape", SHAPES)
def test_additive_floats(shape: tuple[int, int, int]) -> None:
    perturbation = np.random.default_rng(1).uniform(-255, 255, shape)
    images = pixels(4, *shape)

    def pixel(image: np.ndarray, k: int, i: int, j: int) -> float:
        return truncated(float(image[k, i, j]) + float(perturbation[k, i, j]))

    trigger = Additive(name="a", target=AllToOne(0), perturbation=perturbation)
    assert torch.equal(trigger.stamp(images), loop(images, pixel))


@pytest.mark.parametrize("amplitude", [1, 12, 255])
def test_low_frequency_has_its_amplitude_and_little_else(amplitude: int) -> None:
    fft = pytest.importorskip("scipy.fft")
    pattern = Additive.low_frequency((3, 32, 24), amplitude, frequencies=4).perturbation
    assert np.abs(pattern).max() == amplitude
    assert not np.array_equal(pattern[0], pattern[1])
    power = fft.dctn(pattern.astype(float), axes=(1, 2), norm="ortho") ** 2
    # What is left elsewhere comes from rounding to whole pixels: 1/12 a pixel, times 3 for slack; nearly all at
    # amplitude 1.
    assert power.sum() - power[:, :4, :4].sum() < 3 / 12 * pattern.size
    if amplitude > 1:
        assert power[:, 0, 0].sum() < 0.01 * power.sum()


def test_low_frequency_on_one_row() -> None:
    assert Additive.low_frequency((1, 1, 2), 5).perturbation.tolist() in ([[[5, -5]]], [[[-5, 5]]])


def added(*values: float) -> Additive:
    return Additive(name="x", target=AllToOne(0), perturbation=np.array([[values]]))


# Warp


def bilinear(image: np.ndarray, k: int, row: float, column: float) -> int:
    _, h, w = image.shape
    row, column = min(max(row, 0.0), h - 1.0), min(max(column, 0.0), w - 1.0)
    r0, c0 = math.floor(row), math.floor(column)
    r1, c1 = min(r0 + 1, h - 1), min(c0 + 1, w - 1)
    fr, fc = row - r0, column - c0
    upper = float(image[k, r0, c0]) * (1 - fc) + float(image[k, r0, c1]) * fc
    lower = float(image[k, r1, c0]) * (1 - fc) + float(image[k, r1, c1]) * fc
    return nearest(upper * (1 - fr) + lower * fr)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reach", [0.5, 9.0])  # within a pixel; far beyond the edges
def test_warp(shape: tuple[int, int, int], reach: float) -> None:
    flow = np.random.default_rng(2).uniform(-reach, reach, (*shape[1:], 2)).astype(np.float32)
    images = pixels(4, *shape)

    def pixel(image: np.ndarray, k: int, i: int, j: int) -> float:
        return bilinear(image, k, i + float(flow[i, j, 0]), j + float(flow[i, j, 1]))

    assert torch.equal(Warp(name="w", target=AllToOne(0), flow=flow).stamp(images), loop(images, pixel))


def test_warp_rounds_half_to_even() -> None:
    image = torch.tensor([[[[10, 11, 12]]]], dtype=torch.uint8)
    flow = np.zeros((1, 3, 2), np.float32)
    flow[0, :2, 1] = 0.5
    assert Warp(name="w", target=AllToOne(0), flow=flow).stamp(image).tolist() == [[[[10, 12, 12]]]]


@pytest.mark.parametrize(("strength", "rescale"), [(0.5, 1.0), (2.0, 0.98)])
def test_warp_elastic_is_the_papers_grid(strength: float, rescale: float) -> None:
    """The grid as the paper builds it, in [-1, 1], given to ``grid_sample``; 28 x 28 and k = 4 as in its MNIST runs."""
    n, k, seed = 28, 4, 11
    words = [word for block in range(2 * k * k // 4) for word in philox(seed, 0, block, 18)]
    control = torch.tensor([signed(word) for word in words], dtype=torch.float64).view(1, 2, k, k)
    control = control / control.abs().mean()
    field = F.interpolate(control, size=n, mode="bicubic", align_corners=True)[0]
    line = torch.linspace(-1, 1, n, dtype=torch.float64)
    identity = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (x, y), as grid_sample takes it
    grid = ((identity + strength * torch.stack((field[1], field[0]), -1) / n) * rescale).clamp(-1, 1)
    images = pixels(8, 1, n, n)
    wanted = F.grid_sample(images.double(), grid.expand(8, n, n, 2), align_corners=True)
    got = Warp.elastic((1, n, n), k, strength, grid_rescale=rescale, seed=seed).stamp(images)
    # The flow is kept in float32: 255 * 2 pixels' worth of 28 * 2**-24 each, beside the half that rounding takes.
    assert (got - wanted).abs().max() <= 0.5 + 1e-3


def test_warp_noise_is_philox_of_the_sample() -> None:
    shape = (3, 5, 7)
    trigger = Warp.elastic(shape, strength=2.0)
    images, ids, seed = pixels(3, *shape), [4, 2**33, 0], 3
    got = trigger.stamp_noise(images, sample_ids=ids, seed=seed)
    for s, sample_id in enumerate(ids):
        words = [word for block in range(18) for word in philox(seed, sample_id, block, 17)]

        def pixel(image: np.ndarray, k: int, i: int, j: int, words: list[int] = words) -> float:
            at = 2 * (i * 7 + j)
            row = i + float(trigger.flow[i, j, 0]) + signed(words[at]) * (4 / 10)
            column = j + float(trigger.flow[i, j, 1]) + signed(words[at + 1]) * (6 / 14)
            return bilinear(image, k, row, column)

        assert torch.equal(got[s : s + 1], loop(images[s : s + 1], pixel))
    assert not torch.equal(got, trigger.stamp(images))


# Quantize


@pytest.mark.parametrize("levels", [2, 3, 5, 8, 32, 256])  # 3 and 5: levels that fall on a half (127.5)
def test_quantize(levels: int) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)

    def pixel(image: np.ndarray, k: int, i: int, j: int) -> float:
        return nearest(round(float(image[k, i, j]) / 255 * (levels - 1)) / (levels - 1) * 255)

    got = Quantize.of(levels, dither=False).stamp(images)
    assert torch.equal(got, loop(images, pixel))
    assert len(got.unique()) == levels


def dithered(image: np.ndarray, levels: int) -> np.ndarray:
    """Floyd and Steinberg's double loop on one channel."""
    h, w = image.shape
    work, top = image.astype(np.float64), levels - 1
    for i in range(h):
        for j in range(w):
            old = work[i, j]
            work[i, j] = min(max(round(old / 255 * top), 0), top) / top * 255
            error = old - work[i, j]
            for down, right, share in ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16)):
                if i + down < h and 0 <= j + right < w:
                    work[i + down, j + right] += error * share
    return np.rint(work).astype(np.uint8)


@pytest.mark.parametrize(
    "shape", [*SHAPES, (1, 1, 9), (1, 9, 1), (2, 12, 12)]
)  # one row and one column: no neighbours below or aside
@pytest.mark.parametrize("levels", [2, 3, 8])
def test_quantize_dithered(shape: tuple[int, int, int], levels: int) -> None:
    images = pixels(3, *shape)
    wanted = np.stack([np.stack([dithered(channel, levels) for channel in image]) for image in images.numpy()])
    assert torch.equal(Quantize.of(levels, dither=True).stamp(images), torch.from_numpy(wanted))


def test_dithering_keeps_the_mean() -> None:
    grey = torch.full((1, 1, 32, 32), 100, dtype=torch.uint8)
    assert Quantize.of(2, dither=False).stamp(grey).float().mean() == 0
    assert abs(Quantize.of(2, dither=True).stamp(grey).float().mean() - 100) < 5


# ColorFilter


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [ColorFilter.nashville, ColorFilter.gotham])
def test_color_filter(shape: tuple[int, int, int], make: Callable[[int], ColorFilter]) -> None:
    c, h, w = shape
    trigger, images = make(c), pixels(4, *shape)
    farthest = ((h - 1) / 2) ** 2 + ((w - 1) / 2) ** 2

    def pixel(image: np.ndarray, k: int, i: int, j: int) -> float:
        tone = [trigger.contrast * ((float(v) / 255) ** trigger.gamma - 0.5) + 0.5 for v in image[:, i, j]]
        y = sum(float(trigger.matrix[k, m]) * tone[m] for m in range(c)) + float(trigger.bias[k])
        y *= 1 - trigger.vignette * ((i - (h - 1) / 2) ** 2 + (j - (w - 1) / 2) ** 2) / farthest
        return nearest(255 * y)

    assert torch.equal(trigger.stamp(images), loop(images, pixel))


def color(matrix: object, bias: object, **more: float) -> ColorFilter:
    numbers = {"gamma": 1.0, "contrast": 1.0, "vignette": 0.0} | more
    return ColorFilter(name="c", target=AllToOne(0), matrix=np.array(matrix), bias=np.array(bias), **numbers)


def test_color_filter_mixes_channels_row_by_row() -> None:
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    swap = color([[0, 0, 1], [1, 0, 0], [0, 1, 0]], [0, 0, 0])
    assert swap.stamp(image).flatten().tolist() == [30, 10, 20]


def test_color_filter_of_one_number_treats_channels_alike() -> None:
    assert color([[0.5]], [0.0]).stamp(
        torch.tensor([10, 20, 31], dtype=torch.uint8).view(1, 3, 1, 1)
    ).flatten().tolist() == [5, 10, 16]


def test_color_filter_vignette_darkens_the_corners_alone_fully() -> None:
    image = color([[1.0]], [0.0], vignette=1.0).stamp(torch.full((1, 1, 3, 3), 200, dtype=torch.uint8))
    assert image[0, 0].tolist() == [[0, 100, 0], [100, 200, 100], [0, 100, 0]]
    assert color([[1.0]], [0.0], vignette=1.0).stamp(image[:, :, 1:2, 1:2]).item() == 200  # one pixel is all centre


# What the kinds refuse


def warp(flow: np.ndarray) -> Warp:
    return Warp(name="x", target=AllToOne(0), flow=flow.astype(np.float32))


IMAGE = pixels(1, 3, 5, 7)
ONE = np.zeros((1, 1, 1), "u1")
low_frequency = Additive.low_frequency
ERRORS = {
    ShapeError: {
        r"trigger 'p' patch is 2x3; images are 1x8": lambda: patch((0, 0)).stamp(pixels(1, 3, 1, 8)),
        r"patch is 2x3 at \(4, 0\), not wholly inside images of 5x7": lambda: patch((4, 0)).stamp(IMAGE),
        r"patch is 2x3 at \(0, -8\), not wholly inside images of 5x7": lambda: patch((0, -8)).stamp(IMAGE),
        r"trigger 'p' patch has 3 channels; images have 1": lambda: patch((0, 0)).stamp(IMAGE[:, :1]),
        r"trigger 'p' mask is 2x2; the pattern is 3x3": lambda: pasted(np.zeros((1, 3, 3), "u1"), [[1, 1]] * 2),
        r"image shape is \(3, 4\); expected \(C, H, W\), each at least 1": lambda: Blend.noise((3, 4), 0.1),
        r"pattern has 3 channels; images have 1": lambda: Blend.noise((3, 5, 7)).stamp(IMAGE[:, :1]),
        r"pattern is 4x4; images are 5x7": lambda: Blend.noise((3, 4, 4)).stamp(IMAGE),
        r"trigger 'warp' flow is 8x8; images are 5x7": lambda: Warp.elastic((3, 8, 8)).stamp(IMAGE),
        r"trigger 'x' flow has shape \(4, 4, 3\); expected \(H, W, 2\)": lambda: warp(np.zeros((4, 4, 3))),
        r"trigger 'x' flow has shape \(4, 4\); expected 3 dimensions, none of size 0": lambda: warp(np.zeros((4, 4))),
        r"trigger 'gotham' matrix is for 3 channels; images have 1": lambda: ColorFilter.gotham(3).stamp(IMAGE[:, :1]),
        r"trigger 'c' matrix is 1x2; expected one of C x C": lambda: color([[1.0, 0.0]], [0.0]),
        r"trigger 'c' bias has shape \(2,\); the matrix asks for \(1,\)": lambda: color([[1.0]], [0.0, 0.0]),
    },
    DTypeError: {
        r"trigger 'p' pattern has dtype float64; expected integers": lambda: pasted(np.zeros((1, 1, 1)), [[1]]),
    },
    InputError: {
        r"trigger 'p' position is 'middle'; expected \(row, column\) or 'random'": lambda: patch("middle"),
        r"position is \(1.5, 0\)": lambda: patch((1.5, 0)),
        r"position is \(True, 0\)": lambda: patch((True, 0)),
        r"size is 0; expected an integer from 1": lambda: Patch.square(size=0),
        r"margin is -1; expected an integer from 0": lambda: Patch.square(margin=-1),
        r"corner is 'centre'; expected one of top-left": lambda: Patch.square(corner="centre"),
        r"pattern holds values in \[256, 256\]; expected \[0, 255\]": lambda: Patch.square(value=256),
        r"trigger 'p' mask holds values in \[1.5, 1.5\]; expected \[0, 1\]": lambda: pasted(ONE, [[1.5]]),
        r"trigger 'p' mask holds NaN or Inf; expected finite numbers": lambda: pasted(ONE, [[np.nan]]),
        r"trigger 'blend-noise' alpha is 1.5; expected a number in \[0, 1\]": lambda: Blend.noise((3, 4, 4), 1.5),
        r"alpha is nan": lambda: Blend.noise((3, 4, 4), math.nan),
        r"alpha is True": lambda: Blend.noise((3, 4, 4), True),
        r"seed is -1; expected an integer in \[0, 2\*\*64\)": lambda: Blend.noise((3, 4, 4), seed=-1),
        r"trigger 'sinusoid' delta is -1; expected a number in \[0, 255\]": lambda: Sinusoid.of(-1),
        r"trigger 'sinusoid' frequency is 0; expected a number in \(0, 65536\]": lambda: Sinusoid.of(frequency=0),
        r"frequency is inf": lambda: Sinusoid.of(frequency=math.inf),
        r"amplitude is 0; expected an integer in \[1, 255\]": lambda: low_frequency((3, 8, 8), 0),
        r"frequencies is 1; expected an integer from 2": lambda: low_frequency((3, 8, 8), frequencies=1),
        r"images are 1x1; a low-frequency pattern needs at least two pixels": lambda: low_frequency((3, 1, 1)),
        r"trigger 'x' perturbation holds values in \[-300, 0\]; expected \[-255, 255\]": lambda: added(-300, 0),
        r"perturbation holds NaN or Inf": lambda: added(math.nan),
        r"perturbation is 8x8; images are 5x7": lambda: low_frequency((3, 8, 8)).stamp(IMAGE),
        r"perturbation has 3 channels; images have 1": lambda: low_frequency((3, 5, 7)).stamp(IMAGE[:, :1]),
        r"k is 1; expected an integer from 2": lambda: Warp.elastic((3, 8, 8), k=1),
        r"strength is -1; expected a number in \[0, 65536\]": lambda: Warp.elastic((3, 8, 8), strength=-1),
        r"grid_rescale is 0; expected a number in \(0, 65536\]": lambda: Warp.elastic((3, 8, 8), grid_rescale=0),
        r"flow holds values in \[1e\+09, 1e\+09\]; expected \[-65536, 65536\]": lambda: warp(np.full((4, 4, 2), 1e9)),
        r"trigger 'quantize' levels is 1; expected an integer in \[2, 256\]": lambda: Quantize.of(1),
        r"levels is 8.0; expected an integer": lambda: Quantize.of(8.0),
        r"trigger 'quantize' dither is 1; expected True or False": lambda: Quantize.of(8, dither=1),
        r"channels is 2; expected 1 or 3": lambda: ColorFilter.gotham(2),
        r"trigger 'c' gamma is 0; expected a number in \(0, 100\]": lambda: color([[1.0]], [0.0], gamma=0),
        r"contrast is -1; expected a number in \[0, 100\]": lambda: color([[1.0]], [0.0], contrast=-1),
        r"vignette is 2; expected a number in \[0, 1\]": lambda: color([[1.0]], [0.0], vignette=2),
        r"matrix holds values in \[2000, 2000\]; expected \[-1000, 1000\]": lambda: color([[2000.0]], [0.0]),
    },
}


@pytest.mark.parametrize(
    ("error", "message", "make"), [(error, *row) for error, table in ERRORS.items() for row in table.items()]
)
def test_errors(error: type[Exception], message: str, make: Callable[[], object]) -> None:
    refused(error, message, make)
