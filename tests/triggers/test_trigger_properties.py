"""For any image size: stamping keeps shape, dtype and input, and a saved trigger comes back equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seamfast.triggers import (
    Additive,
    AllToAll,
    AllToOne,
    Blend,
    ColorFilter,
    Patch,
    Quantize,
    Sinusoid,
    SourceSpecific,
    Trigger,
    Warp,
    battery,
    load_triggers,
    save_triggers,
)

TARGETS = st.one_of(
    st.builds(AllToOne, st.integers(0, 9)),
    st.builds(AllToAll, st.integers(1, 9)),
    st.builds(SourceSpecific, st.lists(st.integers(0, 8), min_size=1).map(tuple), st.just(9)),
)
SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(8, 64), st.integers(8, 64))


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, int, int], Trigger]:
    """A shape and a trigger of any kind that fits it; arrays from a drawn seed, so that they stay cheap to make."""
    c, h, w = shape = draw(SHAPES)
    target = draw(TARGETS)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    name = draw(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20))
    given_name = name if name.isprintable() else "name"
    kind = draw(st.sampled_from(["patch", "blend", "sinusoid", "additive", "warp", "quantize", "filter"]))
    channels = draw(st.sampled_from(sorted({1, c})))
    if kind == "patch":
        ph, pw = draw(st.integers(1, h)), draw(st.integers(1, w))
        place = (draw(st.integers(-h, -ph)), draw(st.integers(0, w - pw)))
        return shape, Patch(
            name=given_name,
            target=target,
            pattern=rng.integers(0, 256, (channels, ph, pw), dtype=np.uint8),
            mask=rng.random((ph, pw)),
            position=draw(st.sampled_from([place, "random"])),
        )
    if kind == "blend":
        return shape, Blend.noise((channels, h, w), draw(st.floats(0, 1)), target, name=given_name)
    if kind == "sinusoid":
        return shape, Sinusoid.of(draw(st.floats(0, 255)), draw(st.floats(1e-3, 100)), target, name=given_name)
    if kind == "additive":
        values = rng.uniform(-255, 255, (channels, h, w))
        return shape, Additive(name=given_name, target=target, perturbation=values)
    if kind == "warp":
        k, strength = draw(st.integers(2, 8)), draw(st.floats(0, 50))
        return shape, Warp.elastic(shape, k, strength, target, grid_rescale=draw(st.floats(0.5, 1.5)), name=given_name)
    if kind == "quantize":
        dither = draw(st.booleans()) and h * w < 600  # the loop over lines is slow on large images
        return shape, Quantize.of(draw(st.integers(2, 256)), dither, target, name=given_name)
    return shape, ColorFilter(
        name=given_name,
        target=target,
        matrix=rng.uniform(-2, 2, (channels, channels)),
        bias=rng.uniform(-1, 1, channels),
        gamma=draw(st.floats(0.1, 10)),
        contrast=draw(st.floats(0, 10)),
        vignette=draw(st.floats(0, 1)),
    )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.integers(1, 3), st.integers(0, 2**64 - 1))
def test_stamping_keeps_shape_dtype_and_input(case: tuple[tuple[int, int, int], Trigger], n: int, seed: int) -> None:
    shape, trigger = case
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))
    before = images.clone()
    out = trigger.stamp(images, seed=seed)
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(out, trigger.stamp(images, seed=seed))
    # Wrapped pixels would show here: extremes must not come out at the other end of a small change.
    if isinstance(trigger, Blend) and trigger.alpha < 0.4:
        assert (out[images > 200] >= 100).all()
        assert (out[images < 50] <= 150).all()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SHAPES.filter(lambda shape: shape[1] * shape[2] < 1600))
def test_every_trigger_of_the_battery_does_something_at_every_size(shape: tuple[int, int, int]) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8))
    for trigger in battery(shape, 10):
        assert (trigger.stamp(images) != images).flatten(1).any(1).all(), trigger


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(case=cases())
def test_saved_triggers_come_back_equal(case: tuple[tuple[int, int, int], Trigger], tmp_path: Path) -> None:
    _, trigger = case
    path = tmp_path / "triggers.npz"
    save_triggers(path, [trigger])
    (loaded,) = load_triggers(path)
    assert loaded == trigger
    assert repr(loaded) == repr(trigger)
