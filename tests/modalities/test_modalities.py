"""What differs between kinds of samples: how they are gathered, viewed, stamped, perturbed and shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from refusals import raises
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, FineTuneConfig, SeamConfig, modalities
from seamfast.attacks import InputAware
from seamfast.attacks.image.input_aware import Generator
from seamfast.data.resident import Resident
from seamfast.engine.subject import as_called
from seamfast.errors import InputError, ShapeError
from seamfast.modalities import Augmentation, ImageModality, Modality, StepDraws, TensorModality, ViewSettings
from seamfast.modalities.image import modality as module
from seamfast.modalities.image.disturb import add_plane_waves, disturb
from seamfast.modalities.mixing import mix_up
from seamfast.ops import gather_augment, occlude
from seamfast.triggers import AllToOne, Blend, Patch, battery

CPU = torch.device("cpu")
N, SHAPE = 12, (3, 9, 8)
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.2, 0.1)
PIXELS = torch.randint(0, 256, (N, *SHAPE), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)
PIXELS[:, 1] //= 2  # no channel of the floats has the range of all pixels
LABELS = torch.arange(N) % 4
SOME = torch.tensor([7, 0, 7, 11])
ALL = torch.arange(N)
FLOATS = torch.stack([(PIXELS[:, c] / 255 - MEAN[c]) / STD[c] for c in range(3)], 1)
ROWS = torch.randn(N, 1, 7, generator=torch.Generator().manual_seed(8))
NAMED = {"x": ROWS, "ids": torch.arange(2 * N).view(N, 2)}

SETS: dict[str, Callable[[], CleanSet]] = {
    "pixels": lambda: CleanSet(PIXELS, LABELS, mean=MEAN, std=STD),
    "normalized": lambda: CleanSet(FLOATS, LABELS, mean=MEAN, std=STD),
    "floats": lambda: CleanSet(FLOATS, LABELS),
    "rows": lambda: CleanSet(ROWS, LABELS),
    "named": lambda: CleanSet(NAMED, LABELS),
}


def resident(name: str) -> Resident:
    return Resident(SETS[name](), CPU)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    return torch.equal(a, b)


# Which one it is.


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        (PIXELS, ImageModality), (PIXELS[:, 0], ImageModality), (FLOATS, ImageModality),
        (FLOATS.bfloat16(), ImageModality), (ROWS, TensorModality), (torch.zeros(N, 2, 3, 4, 5), TensorModality),
        (PIXELS.long(), TensorModality), (PIXELS > 99, TensorModality), (NAMED, TensorModality),
        ({"pixels": FLOATS}, TensorModality),
    ],
)  # fmt: skip
def test_four_dimensions_of_pixels_or_floats_are_images(inputs: Any, kind: type[Modality]) -> None:
    data = CleanSet(inputs, LABELS)
    assert type(data.modality) is kind
    assert data.modality.name == ("image" if kind is ImageModality else "tensor")
    assert (data.mean, data.std) == (((0.0,), (1.0,)) if data.is_pixels else (None, None))
    if kind is ImageModality:
        assert data.image_shape == ((1, 9, 8) if inputs.ndim == 3 else SHAPE)
    else:
        with pytest.raises(ShapeError, match=r"^CleanSet\(.*\) holds no images of shape \(N, C, H, W\)$"):
            data.image_shape  # noqa: B018


# What the model takes.


@pytest.mark.parametrize(
    ("name", "wanted"), [("pixels", FLOATS), ("normalized", FLOATS), ("floats", FLOATS), ("rows", ROWS)]
)
def test_samples_are_gathered_in_the_form_that_the_model_takes(name: str, wanted: Tensor) -> None:
    data = SETS[name]()
    got = data.modality.gather(data.inputs, SOME, Augmentation(), 0)
    assert isinstance(got, Tensor)
    torch.testing.assert_close(got, wanted[SOME], rtol=1e-5, atol=1e-5)
    assert name == "pixels" or equal(got, wanted[SOME])
    assert equal(resident(name).inputs(SOME), got)


def test_named_tensors_are_gathered_by_name_and_images_are_augmented_by_seed_and_epoch() -> None:
    assert equal(resident("named").inputs(SOME), {name: value[SOME] for name, value in NAMED.items()})
    augmentation = Augmentation(pad=2, flip=True, seed=5)
    wanted = gather_augment(PIXELS, SOME, mean=MEAN, std=STD, pad=2, flip=True, seed=5, epoch=3)
    assert equal(resident("pixels").inputs(SOME, augmentation, 3), wanted)
    assert not equal(resident("pixels").inputs(SOME, augmentation, 4), wanted)
    for name in ("normalized", "floats"):
        torch.testing.assert_close(resident(name).inputs(SOME, augmentation, 3), wanted)
        assert not equal(resident(name).inputs(SOME, augmentation, 4), resident(name).inputs(SOME, augmentation, 3))
    for name in ("rows", "named"):
        assert equal(resident(name).inputs(SOME, augmentation, 3), resident(name).inputs(SOME))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("epoch", [0, 3, torch.tensor(3)])
@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (1, False), (2, True), (7, True)])
def test_floats_are_cropped_and_flipped_exactly_as_pixels_are(
    pad: int, flip: bool, epoch: int | Tensor, dtype: torch.dtype
) -> None:
    data = CleanSet(PIXELS.to(dtype), LABELS)  # each of the 256 values is one of bfloat16, too
    for seed in (0, 2**40 + 5):
        wanted = gather_augment(PIXELS, SOME, mean=0.0, std=1 / 255, pad=pad, flip=flip, seed=seed, epoch=epoch)
        got = data.modality.gather(data.inputs, SOME, Augmentation(pad, flip, seed), epoch)
        assert isinstance(got, Tensor)
        assert got.dtype == dtype
        assert equal(got.float(), wanted)
    changes = not equal(wanted, PIXELS[SOME].float())
    assert changes is Augmentation(pad, flip).is_any


@pytest.mark.parametrize(
    ("shape", "pad"),
    [
        ((1, 8, 8), 0), ((3, 16, 16), 1), ((1, 28, 28), 2), ((3, 32, 32), 2), ((3, 224, 224), 14), ((3, 32, 16), 1),
        ((1, 16, 224), 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_pixels", [True, False])
def test_images_may_be_cropped_by_a_sixteenth_of_the_shorter_side_or_flipped(
    shape: tuple[int, int, int], pad: int, is_pixels: bool
) -> None:
    """Each change alone, with the seed of the run."""
    crop = [Augmentation(pad=pad, seed=9)] if pad else []
    wanted = (*crop, Augmentation(flip=True, seed=9))
    assert ImageModality(shape, is_pixels, None, None).augmentations(9) == wanted


def test_what_is_no_image_is_not_augmented() -> None:
    for name in ("rows", "named"):
        assert SETS[name]().modality.augmentations(9) == ()
    assert Bare().augmentations(9) == ()


# Views.

EVERYTHING = ViewSettings(mixing=0.75, occlusions=3, disturbance=0.8, waves=0.5)


def draws(changed: float = 1.0, disturbed: float = 1.0) -> StepDraws:
    generator = torch.Generator().manual_seed(2)
    return StepDraws(generator, seed=9, step=4, changed=torch.tensor(changed), disturbed=torch.tensor(disturbed))


def views(name: str, settings: ViewSettings, **changes: float) -> tuple[Any, modalities.Views]:
    data = resident(name)
    inputs = data.inputs(ALL)
    return inputs, data.modality.views(inputs, LABELS, settings, draws(**changes))


@pytest.mark.parametrize("name", ["pixels", "normalized", "floats"])
def test_views_of_images(name: str) -> None:
    """The student sees a mixture under patterns, disturbed; its teacher the mixture with the mean image there."""
    inputs, got = views(name, EVERYTHING, disturbed=0.5)
    generator = draws().generator
    mixture, partner, weight = mix_up(inputs, 0.75, generator)
    if name == "pixels":
        lowest, highest = ((value - torch.tensor(MEAN)) / torch.tensor(STD) for value in (0, 1))
    else:
        lowest, highest = inputs.amin((0, 2, 3)), inputs.amax((0, 2, 3))
    covered, teacher = occlude(mixture, lowest, highest, ALL, n_rectangles=3, seed=9, step=4)
    student = disturb(covered, lowest, highest, generator, share=torch.tensor(0.8 * 0.5), most=0.8)
    student = add_plane_waves(student, lowest, highest, generator, share=torch.tensor(0.5), most=0.5)
    torch.testing.assert_close(got.student, student)
    torch.testing.assert_close(got.teacher, teacher)
    assert torch.equal(got.mixed_labels, LABELS[partner])
    assert torch.equal(got.mixed_weight, weight)
    assert not torch.allclose(got.student, got.teacher, atol=0.1)


@pytest.mark.parametrize("name", ["pixels", "normalized", "floats"])
def test_the_range_of_pixels_is_that_of_all_pixels_and_that_of_floats_of_the_data(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(module, "disturb", lambda x, low, high, *rest, **more: ranges.append((low, high)) or x)
    views(name, ViewSettings(disturbance=0.1))
    ((lowest, highest),) = ranges
    assert lowest.shape == highest.shape == (3,)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        of_all = (-mean / std, (1 - mean) / std)
        of_data = (float(FLOATS[:, channel].min()), float(FLOATS[:, channel].max()))
        wanted = of_all if name == "pixels" else of_data
        assert (float(lowest[channel]), float(highest[channel])) == pytest.approx(wanted, rel=1e-5)
    assert float(FLOATS[:, 1].max()) < (1 - MEAN[1]) / STD[1] - 1  # the two differ


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("settings", [ViewSettings(), EVERYTHING])
def test_where_nothing_is_changed_both_see_the_samples(name: str, settings: ViewSettings) -> None:
    inputs, got = views(name, settings, changed=0.0)
    if isinstance(inputs, dict) or settings == ViewSettings():
        assert got == modalities.Views(inputs, inputs)
        return
    for view in (got.student, got.teacher):
        torch.testing.assert_close(view, inputs, rtol=1e-4, atol=1e-5)
    assert got.mixed_weight is not None
    assert (got.mixed_weight == 1).all()


def test_each_setting_changes_what_it_names() -> None:
    inputs, covered = views("pixels", ViewSettings(occlusions=2))
    assert covered.mixed_labels is covered.mixed_weight is None
    assert not equal(covered.student, covered.teacher)
    assert not equal(covered.teacher, inputs)
    inputs, seen = views("pixels", ViewSettings(disturbance=1.0))
    assert equal(seen.teacher, inputs)
    assert not torch.allclose(seen.student, inputs, atol=0.1)
    undisturbed = views("pixels", ViewSettings(disturbance=1.0), disturbed=0.0)[1]
    torch.testing.assert_close(undisturbed.student, inputs, rtol=1e-4, atol=1e-5)
    inputs, waved = views("pixels", ViewSettings(waves=1.0), disturbed=0.0)  # whatever the teacher's weight
    assert equal(waved.teacher, inputs)
    assert not torch.allclose(waved.student, inputs, atol=0.01)
    assert equal(views("pixels", ViewSettings(waves=1.0), changed=0.0)[1].student, inputs)
    inputs, mixture = views("pixels", ViewSettings(mixing=1.0))
    assert mixture.student is mixture.teacher
    assert not torch.allclose(mixture.student, inputs, atol=0.1)
    assert equal(inputs, resident("pixels").inputs(ALL))  # which stay as they were


def test_of_tensors_floats_in_one_are_mixed_and_disturbed_and_all_else_is_left_out() -> None:
    _, got = views("rows", replace(EVERYTHING, disturbance=0.0))
    mixture, partner, weight = mix_up(ROWS, 0.75, draws().generator)
    assert equal(got.student, mixture)
    assert got.teacher is got.student
    assert equal(got.mixed_labels, LABELS[partner])
    assert equal(got.mixed_weight, weight)
    for unchanged in (NAMED, NAMED["ids"]):
        data = CleanSet(unchanged, LABELS)
        seen = data.modality.views(data.inputs, LABELS, EVERYTHING, draws())
        assert seen.student is seen.teacher is data.inputs
        assert seen.mixed_labels is seen.mixed_weight is None


def test_features_of_tensors_get_noise_or_are_those_of_other_samples() -> None:
    """In the scale of each feature; the teacher sees the samples."""
    scales = torch.tensor([1.0, 100.0, 1e-3, 1, 1, 1, 0]).expand(2, 7)
    samples = scales * torch.randn(300, 2, 7, generator=torch.Generator().manual_seed(1))
    data = Resident(CleanSet(samples, torch.arange(300) % 2), CPU)
    got = data.modality.views(samples, data.labels, ViewSettings(disturbance=1.0), draws())
    assert got.teacher is samples
    assert got.student.shape == samples.shape
    moved = (got.student - samples).std(0)
    assert ((moved / scales)[:, :6] > 0.3).all()
    assert ((moved / scales)[:, :6] < 2).all()
    assert not moved[:, 6].any()
    replaced = torch.stack([torch.isin(got.student[:, i, j], samples[:, i, j]) for i in range(2) for j in range(6)], 1)
    assert 1 <= int(replaced.sum(1).max()) <= 7
    assert 0.1 < float(replaced.float().mean()) < 0.5
    still = data.modality.views(samples, data.labels, ViewSettings(disturbance=1.0), draws(disturbed=0.0))
    assert equal(still.student, samples)
    nothing = TensorModality(samples).views(samples, data.labels, ViewSettings(disturbance=1.0), draws())
    assert nothing.student is samples  # whose scale is not known


# Settings.

ONLY_IMAGES = {
    "crop_pad": "expected 0, as only images can be cropped: their shape is (N, C, H, W)",
    "flip": "expected False, as only images can be flipped: their shape is (N, C, H, W)",
}
NONE = "expected none for samples of kind 'tensor'"


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("pixels", {}),
        ("normalized", {}),
        ("floats", {}),
        ("rows", ONLY_IMAGES | dict.fromkeys(("invariances", "occlusions", "waves"), NONE)),
        ("named", ONLY_IMAGES | dict.fromkeys(("invariances", "mixing", "occlusions", "disturbance", "waves"), NONE)),
    ],
)
def test_settings_that_samples_cannot_have(name: str, reasons: dict[str, str]) -> None:
    values = {
        "crop_pad": 7, "flip": True, "invariances": True, "mixing": 0.5, "occlusions": 3, "disturbance": 0.5,
        "waves": 0.5,
    }  # fmt: skip
    why_not = SETS[name]().modality.why_not
    assert {s: why_not(s, value) for s, value in values.items() if why_not(s, value) is not None} == reasons


def test_crops_are_smaller_than_the_image() -> None:
    for name in ("pixels", "floats"):
        assert SETS[name]().modality.why_not("crop_pad", 8) == "expected less than the image side 8"


# Triggers.


class Painter(Generator):
    """Paints one image in two regions, by its first pixel; each pixel alone, so to the bit in any batch."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.zeros_like(images[:, :1])
        mask[:, :, 2:5] = 0.5
        return mask, (1 - images[:, :, :1, :1]).expand_as(images)


PAINTED, PAINTED_TOO = (
    InputAware(name=name, target=AllToOne(target), image_shape=SHAPE, generator=Painter(3))
    for target, name in enumerate(("painted", "painted too"))
)
TABLE = (
    Patch.square(2, corner="random", name="anywhere"),
    Blend.noise(SHAPE, 0.3, name="blend"),
    Patch.square(3, name="corner"),
)


@pytest.mark.parametrize("name", ["pixels", "normalized"])
@pytest.mark.parametrize(
    "triggers",
    [TABLE, (PAINTED,), (TABLE[0], PAINTED, TABLE[1], PAINTED_TOO, TABLE[2]), ()],
    ids=["table", "made", "both", "none"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_sample_is_stamped_as_its_trigger_stamps_it(name: str, triggers: Any, dtype: torch.dtype) -> None:
    data = Resident(SETS[name](), CPU, dtype)
    ids = torch.arange(-1, len(triggers)).repeat(3)
    indices = ALL.repeat(2)[: len(ids)].flip(0)
    ((chosen, numbers, got),) = data.stamped_batches([(indices, ids)], triggers, seed=7)
    assert equal(chosen, indices)
    assert equal(numbers, ids)
    assert isinstance(got, Tensor)
    assert got.dtype == dtype
    for index, number, row in zip(indices.tolist(), ids.tolist(), got, strict=True):
        pixels = PIXELS[index : index + 1]
        if number >= 0:
            pixels = triggers[number].stamp(pixels, sample_ids=[index], seed=7)
            assert not equal(pixels, PIXELS[index : index + 1])
        assert torch.equal(row, data.modality.model_inputs(pixels, dtype)[0]), (index, number)


def test_pixels_are_recovered_from_floats_of_a_known_normalization() -> None:
    for name in ("pixels", "normalized"):
        data = SETS[name]()
        assert equal(data.stampable(SOME), PIXELS[SOME])
        torch.testing.assert_close(data.modality.model_inputs(PIXELS[SOME], torch.float32), FLOATS[SOME])
        as_floats = data.modality.model_inputs(PIXELS[SOME].float() / 255, torch.float32)
        torch.testing.assert_close(as_floats, FLOATS[SOME])
        data.modality.check_trigger(TABLE[0])
    beyond = CleanSet(FLOATS * 9, LABELS, mean=MEAN, std=STD).stampable(ALL)
    assert (beyond.min(), beyond.max()) == (0, 255)


class Bare(Modality):
    """Implements nothing."""

    name = "bare"


class Mean(nn.Module):
    """Takes any of the sets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        return x.flatten(1).mean(1, keepdim=True) * self.weight


UNKNOWN = (
    "triggers are stamped in pixel space, before normalization; the inputs are floats without a known normalization: "
    "pass seamfast.CleanSet(inputs, labels, mean=..., std=...), or a "
    "loader as seamfast.data.as_clean_set(loader, mean=..., std=...)"
)
OF_ROWS = "triggers are stamped on images of shape (N, C, H, W); the inputs are inputs (N, 1, 7)"
OF_NAMED = "triggers are stamped on images of shape (N, C, H, W); the inputs are x (N, 1, 7), ids (N, 2)"
OF_BARE = "samples of kind 'bare' cannot be stamped, searched for triggers or drawn"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (SETS["floats"], UNKNOWN),
        (SETS["rows"], OF_ROWS),
        (SETS["named"], OF_NAMED),
        (lambda: CleanSet(ROWS, LABELS, modality=Bare()), OF_BARE),
    ],
)
def test_samples_without_pixels_are_not_stamped(make: Callable[[], CleanSet], message: str) -> None:
    data = make()
    for call in (
        lambda: data.stampable(SOME),
        lambda: data.modality.check_trigger(TABLE[0]),
        lambda: seamfast.evaluate(Mean(), data, triggers=[TABLE[0]]),
    ):
        with raises(InputError, message):
            call()


def test_triggers_that_do_not_fit() -> None:
    modality = SETS["pixels"]().modality
    with raises(ShapeError, "trigger 'patch' patch is 10x10; images are 9x8"):
        modality.check_trigger(Patch.square(10))

    class Word(seamfast.triggers.Trigger):
        kind = "word"

        def stamp(self, samples: Any, **options: Any) -> Any: ...
        def check_fits(self, sample_shape: Any) -> None: ...
        def _validate(self) -> None: ...
        def _describe(self) -> str: ...

    with raises(InputError, "trigger 'w' is a Word; expected a trigger of images"):
        modality.check_trigger(Word(name="w", target=AllToOne(0)))


# Audits.


@pytest.mark.parametrize("name", ["pixels", "normalized"])
def test_what_audits_ask_of_images(name: str) -> None:
    modality = SETS[name]().modality
    assert modality.battery(4) == battery(SHAPE, 4)
    assert list(modality.perturbations()) == ["patches", "noise", "brightness", "smooth"]
    for label, perturb in modality.perturbations().items():
        one, again, other = (perturb(PIXELS, ALL, torch.Generator().manual_seed(seed), seed) for seed in (1, 1, 2))
        assert (one.dtype, one.shape) == (torch.uint8, PIXELS.shape), label
        assert equal(one, again), label
        assert not equal(one, other), label
        assert 0 < (one.int() - PIXELS.int()).abs().float().mean() < 64, label
    pictures = modality.preview(PIXELS[:2])
    assert (pictures.dtype, pictures.shape) == ("uint8", (2, 9, 8, 3))
    assert equal(torch.from_numpy(pictures).permute(0, 3, 1, 2), PIXELS[:2])


def test_inverted_triggers_of_images() -> None:
    found = SETS["pixels"]().modality.inverted(5, torch.Generator().manual_seed(0), CPU)
    mask, pattern = values = found.values()
    assert (mask.shape, pattern.shape) == ((5, 1, 9, 8), (5, 3, 9, 8))
    assert equal(mask, mask[:1].expand_as(mask))  # all classes begin alike
    torch.testing.assert_close(found.sizes(values), mask.mean((1, 2, 3)))
    stamped, sizes = found.stamp(found.prepared(PIXELS[:2]))
    torch.testing.assert_close(sizes, found.sizes(values))
    for row in range(5):
        wanted = (1 - mask[row]) * PIXELS[:2] / 255 + mask[row] * pattern[row]
        torch.testing.assert_close(stamped[2 * row : 2 * row + 2], wanted)
        assert (found.stamp_found(values, row, PIXELS[:2]).float() / 255 - wanted).abs().max() < 1.01 / 255
    assert [tuple(value.shape) for value in found.found(values, 3)] == [(9, 8), SHAPE]


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        (Bare(), "samples of kind 'bare' cannot be stamped, searched for triggers or drawn"),
        (TensorModality(ROWS), "triggers are stamped on images of shape (N, C, H, W); the inputs are inputs (N, 1, 7)"),
    ],
)
def test_what_audits_ask_of_other_samples(modality: Modality, message: str) -> None:
    assert modality.battery(4) == ()
    assert modality.perturbations() == {}
    for call in (
        lambda: modality.inverted(4, torch.Generator(), CPU),
        lambda: modality.preview(ROWS),
        lambda: modality.stamper([], CPU),
    ):
        with raises(InputError, message):
            call()


# One's own.


class Codes(Modality):
    """Integers, which the model takes as rows of a table."""

    name = "codes"
    table = torch.randn(50, 6, generator=torch.Generator().manual_seed(4))

    def gather(self, inputs: Any, indices: Tensor, augmentation: Augmentation, epoch: int | Tensor) -> Tensor:
        return self.table[inputs[indices]]


def coded(n: int = 80) -> CleanSet:
    return CleanSet(torch.arange(n) % 50, torch.arange(n) % 4, num_classes=4, modality=Codes())


def test_a_modality_of_ones_own_stays_with_the_set() -> None:
    data = coded()
    for part in (data, data.subset([3, 1]), data.draw(0.5), CleanSet(data.inputs, data.labels, **data.description)):
        assert part.modality is data.modality
        assert (part.is_pixels, part.mean, part.num_classes) == (False, None, 4)
    assert equal(Resident(data.subset([3, 1]), CPU).inputs(torch.tensor([1])), Codes.table[[1]])


def test_a_modality_of_ones_own_stays_where_named_inputs_become_positional() -> None:
    data = CleanSet({"codes": torch.arange(8)}, torch.arange(8) % 2, modality=Codes())
    called = as_called(nn.Linear(6, 4), data)
    assert called.modality is data.modality
    assert equal(called.inputs, torch.arange(8))


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize("config", [SeamConfig(forget_max_steps=2, recover_max_steps=3), FineTuneConfig(max_steps=2)])
def test_a_modality_of_ones_own_in_a_run(config: Any) -> None:
    model = nn.Linear(6, 4)
    method = "seam" if isinstance(config, SeamConfig) else "fine_tune"
    result = seamfast.sanitize(model, coded(), method=method, config=config, precision="fp32")
    assert result.report["run"]["stopped"] is None
    left_out = "invariances, occlusions, disturbance, mixing, waves"
    warning = f"samples of kind 'codes' cannot have {left_out}: left out, a weaker cure"
    assert (warning in result.report["warnings"]) is (method == "seam")
    rows = Codes.table[coded().inputs]
    correct = int((model(rows).argmax(1) == coded().labels).sum())
    assert seamfast.evaluate(model, coded()).clean_accuracy.n_hit == correct
    with raises(seamfast.errors.ConfigError, "flip is True; expected none for samples of kind 'codes'"):
        seamfast.sanitize(model, coded(), config=SeamConfig(flip=True))
    with raises(InputError, "samples of kind 'codes' cannot be stamped, searched for triggers or drawn"):
        seamfast.sanitize(model, coded(), triggers=[TABLE[0]])


def test_a_normalization_is_that_of_the_modality() -> None:
    fitting = ImageModality(SHAPE, True, (0.5,), (0.5,))
    for options in ({"mean": 0.5, "std": 0.5}, {"mean": 0.5}, {"std": 0.5}):
        with raises(InputError, "got a normalization and a modality; expected one of them"):
            CleanSet(PIXELS, LABELS, modality=fitting, **options)
    with raises(InputError, "modality is 'image'; expected a seamfast.modalities.Modality"):
        CleanSet(PIXELS, LABELS, modality="image")  # type: ignore[arg-type]
    for inputs, modality, kind in (
        (PIXELS.float(), fitting, "uint8 pixels of shape (N, 3, 9, 8)"),
        (PIXELS[..., 1:], fitting, "uint8 pixels of shape (N, 3, 9, 8)"),
        (PIXELS, ImageModality(SHAPE, False, None, None), "floats of shape (N, 3, 9, 8)"),
        (NAMED, fitting, "uint8 pixels of shape (N, 3, 9, 8)"),
    ):
        with raises(ShapeError, f"the inputs are not {kind}, as the modality is"):
            CleanSet(inputs, LABELS, modality=modality)
    data = CleanSet(PIXELS, LABELS, modality=ImageModality(SHAPE, True, MEAN, STD))
    assert (data.mean, data.std, data.is_pixels, data.image_shape) == (MEAN, STD, True, SHAPE)
    assert equal(Resident(data, CPU).inputs(SOME), resident("pixels").inputs(SOME))
