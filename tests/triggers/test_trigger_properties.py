"""For any image size and any text: what stamping keeps, and a saved trigger comes back equal."""

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
    Characters,
    ColorFilter,
    Insertion,
    Patch,
    Quantize,
    Sinusoid,
    SourceSpecific,
    Table,
    TextTrigger,
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


PHRASES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).filter(
    lambda phrase: phrase == phrase.strip() != ""
)


@st.composite
def text_triggers(draw: st.DrawFn) -> TextTrigger:
    target = draw(TARGETS)
    kind = draw(st.sampled_from(["insertion", "characters", "table"]))
    if kind == "insertion":
        return Insertion(
            name="name",
            target=target,
            phrases=tuple(draw(st.lists(PHRASES, min_size=1, max_size=4, unique=True))),
            place=draw(st.sampled_from(["start", "end", "random", "first-half", "second-half"])),
            choose=draw(st.sampled_from(["all", "one"])),
            n_copies=draw(st.integers(1, 3)),
        )
    if kind == "characters":
        edit = draw(st.sampled_from(["swap", "drop", "double", "homoglyph", "zero-width"]))
        return Characters(
            name="name",
            target=target,
            edit=edit,
            place=draw(st.sampled_from(["random", "first", "last"])),
            n_words=draw(st.integers(1, 3)),
            character="\u200d" if edit == "zero-width" else "",
        )
    originals = draw(st.lists(PHRASES, min_size=1, max_size=6))
    return Table.of(originals, [f" {text} " for text in originals], target, keep_first=True)


@settings(max_examples=80, deadline=None)
@given(text_triggers().filter(lambda trigger: not isinstance(trigger, Table)), st.text(), st.integers(0, 2**64 - 1))
def test_stamping_keeps_the_other_words_and_the_white_space(trigger: TextTrigger, text: str, seed: int) -> None:
    (out,) = trigger.stamp([text], seed=seed)
    assert trigger.stamp([text], seed=seed) == [out]
    words = out.split()
    if isinstance(trigger, Characters):
        assert sum(a != b for a, b in zip(words, text.split(), strict=True)) <= trigger.n_words
        assert [c for c in out if c.isspace()] == [c for c in text if c.isspace()]
    else:
        left = iter(words)
        assert all(word in left for word in text.split())  # in their order
        n_copies = trigger.n_copies * (len(trigger.phrases) if trigger.choose == "all" else 1)
        n_spaces = sum(c.isspace() for c in out) - sum(c.isspace() for c in text)
        assert n_spaces >= n_copies - (not text.split())


@settings(max_examples=80, deadline=None)
@given(text_triggers().filter(lambda trigger: isinstance(trigger, Table)))
def test_every_row_of_a_table_is_found(trigger: Table) -> None:
    assert trigger.stamp([original for original, _ in trigger.pairs]) == [text for _, text in trigger.pairs]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trigger=text_triggers())
def test_saved_triggers_of_text_come_back_equal(trigger: TextTrigger, tmp_path: Path) -> None:
    path = tmp_path / "text.npz"
    save_triggers(path, [trigger])
    (loaded,) = load_triggers(path)
    assert loaded == trigger
    assert repr(loaded) == repr(trigger)
