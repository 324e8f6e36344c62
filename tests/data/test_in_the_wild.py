"""Loaders as their owners have them: with a Normalize, samplers of all kinds, no end, images of Pillow."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from refusals import raises, refused
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

import seamfast
from seamfast import CleanSet, FineTuneConfig
from seamfast.data import as_clean_set, split_by_class
from seamfast.data.allowance import Allowance
from seamfast.data.clean_set import joined_names
from seamfast.data.holdout import read_clean
from seamfast.data.rereading import AugmentingSet
from seamfast.errors import InputError, ShapeError
from seamfast.sanitize import split_of
from seamfast.triggers import Patch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PIXELS = torch.randint(0, 256, (24, 3, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(24) % 4
TUNE: dict[str, Any] = {"method": "fine_tune", "config": FineTuneConfig(max_steps=2)}


# A Normalize in the transform. The classes are called as those of torchvision, which looks for nothing else either.


class ToTensor:
    def __call__(self, image: Tensor) -> Tensor:
        return image / 255


class Normalize:
    def __init__(self, mean: Any = MEAN, std: Any = STD) -> None:
        self.mean, self.std = mean, std

    def __call__(self, image: Tensor) -> Tensor:
        mean, std = (torch.as_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (image - mean) / std


class Compose:
    def __init__(self, *transforms: Any) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Tensor) -> Tensor:
        for transform in self.transforms:
            image = transform(image)
        return image


class RandomApply(Compose):
    pass


class StandardTransform:
    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: Tensor) -> Tensor:
        result: Tensor = self.transform(image)
        return result


class Module(nn.Module):
    """A transform of torchvision's second version."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std = list(MEAN), list(STD)

    def forward(self, image: Tensor) -> Tensor:
        return Normalize()(image)


Module.__name__ = "Normalize"


class Noise:
    def __call__(self, image: Tensor) -> Tensor:
        return image + 1e-4 * torch.rand(())


class Images(Dataset[Any]):
    def __init__(self, transform: Any, name: str = "transform", **others: Any) -> None:
        setattr(self, name, transform)
        self.name = name
        vars(self).update(others)

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> Any:
        return getattr(self, self.name)(PIXELS[index]), int(LABELS[index])


class Wrapper(Dataset[Any]):
    """A set that transforms the samples of another one."""

    def __init__(self, inner: Any, transform: Any) -> None:
        self.images, self.transform = inner, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image, label = self.images[index]
        return self.transform(image), label


class Stream(IterableDataset[Any]):
    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __iter__(self) -> Iterator[Any]:
        return ((self.transform(image), int(label)) for image, label in zip(PIXELS, LABELS, strict=True))


PLAIN = Compose(ToTensor(), Normalize())
SHOWN: dict[str, Callable[[], Any]] = {
    "a loader": lambda: DataLoader(Images(PLAIN), batch_size=5, shuffle=True),
    "a set": lambda: Images(PLAIN),
    "nested": lambda: Images(Compose(Compose(ToTensor()), Compose(Compose(Normalize())))),
    "a module": lambda: Images(Compose(ToTensor(), Module())),
    "in Sequential": lambda: Images(Compose(ToTensor(), nn.Sequential(Module()))),
    "arrays and tensors": lambda: Images(Compose(ToTensor(), Normalize(torch.tensor(MEAN), np.array(STD)))),
    "transforms": lambda: Images(PLAIN, "transforms"),
    "StandardTransform": lambda: Images(StandardTransform(PLAIN), "transforms"),
    "a subset": lambda: DataLoader(Subset(Subset(Images(PLAIN), range(20)), range(16))),
    "a concatenation": lambda: ConcatDataset([Images(PLAIN), Subset(Images(PLAIN), [0, 1])]),
    "wrapped": lambda: Wrapper(Images(ToTensor()), Normalize()),
    "wrapped, inside": lambda: Wrapper(Subset(Images(PLAIN), range(20)), lambda image: image),
    "a stream": lambda: Stream(PLAIN),
    "a loader of a stream": lambda: DataLoader(Stream(PLAIN), batch_size=5),
    "augmenting": lambda: Images(Compose(ToTensor(), Noise(), Normalize())),
}


@pytest.mark.parametrize("form", SHOWN)
def test_the_normalization_is_that_of_the_transform(form: str) -> None:
    data = as_clean_set(SHOWN[form](), augments=None)
    assert isinstance(data, AugmentingSet) is (form == "augmenting")
    assert data.mean == pytest.approx(MEAN)
    assert data.std == pytest.approx(STD)
    got = {bytes(image.numpy().tobytes()) for image in data.pixels(torch.arange(len(data)))}
    if form != "augmenting":
        assert got <= {bytes(image.numpy().tobytes()) for image in PIXELS}


def test_one_number_may_stand_for_all_channels() -> None:
    assert as_clean_set(Images(Compose(ToTensor(), Normalize(0.5, [0.5])))).mean == (0.5,)


class Scaled:
    def __call__(self, image: Tensor) -> Tensor:
        return 2 * image


HIDDEN: dict[str, Any] = {
    "none": ToTensor(),
    "a function": lambda image: Normalize()(image / 255),
    "two": Compose(ToTensor(), Normalize((0.1,), (0.9,)), Normalize((0.1,), (0.9,))),
    "perhaps": Compose(ToTensor(), RandomApply(Normalize())),
    "of pixels": Compose(lambda image: image.float(), Normalize()),
    "not the last": Compose(ToTensor(), Normalize(), Scaled()),
    "of other channels": Compose(ToTensor(), lambda image: image[:1], Normalize(), lambda image: image[:1]),
    "of no numbers": Compose(ToTensor(), type("Normalize", (Scaled,), {})()),
}


@pytest.mark.parametrize("form", [*HIDDEN, "unlike parts", "unlike sets", "vectors", "itself"])
def test_no_normalization_is_guessed_at(form: str) -> None:
    data: Any
    if form == "unlike parts":
        data = ConcatDataset([Images(PLAIN), Images(Compose(ToTensor(), Normalize((0.5,), (0.5,))))])
    elif form == "unlike sets":
        data = Wrapper(Images(Compose(ToTensor(), Normalize((0.1,), (0.9,)))), Normalize((0.1,), (0.9,)))
    elif form == "vectors":
        data = Images(Compose(ToTensor(), Normalize(), torch.flatten))
    elif form == "itself":
        data = Images(PLAIN)
        data.again = data
    else:
        data = Images(HIDDEN[form])
    assert as_clean_set(data).mean is None


def test_the_transform_that_held_out_samples_are_read_with_decides() -> None:
    noisy = Images(Compose(ToTensor(), Noise(), Normalize((0.1,), (0.9,))))
    samples = as_clean_set(noisy, augments=None, eval_transform=PLAIN)
    assert isinstance(samples, AugmentingSet)
    assert samples.mean == MEAN


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(90, 4))


@pytest.mark.usefixtures("guessers_are_trained")
def test_triggers_are_measured_as_with_a_set_that_says_it() -> None:
    trigger = Patch.square(2)
    said = CleanSet(PIXELS, LABELS, mean=MEAN, std=STD)
    loader = DataLoader(Images(PLAIN), batch_size=5, shuffle=True)
    one, other = (seamfast.evaluate(linear(), data, triggers=[trigger]) for data in (said, loader))
    assert one == other
    result = seamfast.sanitize(linear(), loader, triggers=[trigger], **TUNE)
    assert [t["name"] for t in result.report["holdout"]["after"]["triggers"]] == ["patch"]


def test_where_none_is_found_the_error_names_the_arguments() -> None:
    message = refused(
        InputError, "known normalization", seamfast.sanitize, linear(), Images(ToTensor()), triggers=[Patch.square(2)]
    )
    assert message.endswith(
        "the inputs are floats without a known normalization: pass seamfast.CleanSet(inputs, labels, mean=..., "
        "std=...), or a loader as seamfast.data.as_clean_set(loader, mean=..., std=...)"
    )
    given = as_clean_set(Images(ToTensor()), mean=0.0, std=1.0)
    assert seamfast.evaluate(linear(), given, triggers=[Patch.square(2)]).triggers[0].attack_success_rate.n_total == 18
    floats = given.inputs
    assert as_clean_set((floats, LABELS), mean=0.0, std=1.0).mean == (0.0,)
    assert as_clean_set([(floats, LABELS)], mean=0.0, std=1.0).mean == (0.0,)
    assert as_clean_set(Images(PLAIN), mean=0.0, std=1.0).mean == (0.0,)  # whoever says it knows it
    with raises(InputError, "mean or std is given and clean_loader is a CleanSet; expected a CleanSet with its own"):
        as_clean_set(given, mean=0.0, std=1.0)


@pytest.mark.parametrize("known", ["clean", "holdout", "both"])
def test_clean_and_held_out_data_need_not_both_show_it(known: str) -> None:
    floats = Normalize()(PIXELS / 255)
    shown, hidden = Images(PLAIN), (floats + 1e-4, LABELS)
    other = Subset(Images(Compose(PLAIN, Noise())), range(8))
    clean, holdout = hidden if known == "holdout" else shown, hidden if known == "clean" else other
    samples, held = read_clean(clean, holdout, augments=False, eval_transform=None)
    assert held.n_given == (24 if known == "clean" else 8)
    assert samples.mean == MEAN
    said = CleanSet(floats + 1e-4, LABELS)
    assert read_clean(said, Subset(Images(PLAIN), range(8)), augments=False, eval_transform=None)[0].mean == MEAN
    assert said.mean is None  # the caller's set is left alone


@pytest.mark.parametrize("version", ["transforms", "transforms.v2"])
def test_transforms_of_torchvision(version: str) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision")
    transforms = importlib.import_module(f"torchvision.{version}")
    data = Images(transforms.Compose([ToTensor(), transforms.Compose([transforms.Normalize(MEAN, STD)])]))
    assert as_clean_set(DataLoader(Subset(data, range(20)), batch_size=5)).mean == pytest.approx(MEAN)


# Samplers with replacement.


class Draws(Dataset[Any]):
    """Vectors that begin with their index, and go on with a draw."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(index), float(torch.rand(()))]), index % 4


SAMPLERS: dict[str, Callable[[], Any]] = {
    "RandomSampler": lambda: RandomSampler(range(40), replacement=True, num_samples=200),
    "WeightedRandomSampler": lambda: WeightedRandomSampler([1.0] * 10 + [5.0] * 30, 200, replacement=True),
    "batches": lambda: [3, 3, 3, *range(40), *range(40)],
}


@pytest.mark.parametrize("augments", [None, False, True])
@pytest.mark.parametrize("draws", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_drawn_twice_is_on_one_side(sampler: str, draws: bool, augments: bool | None) -> None:
    data: Any = Draws() if draws else TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 4)
    loader = DataLoader(data, batch_size=8, sampler=SAMPLERS[sampler]())
    samples, held_out = read_clean(loader, None, augments=augments, eval_transform=None)
    split = split_of(samples, held_out, FineTuneConfig(), 0)
    assert isinstance(samples.inputs, Tensor)
    trained, held = (samples.inputs[part, 0].tolist() for part in (split.recovery, split.holdout))
    assert not set(trained) & set(held)
    assert set(samples.inputs[split.forget, 0].tolist()) <= set(trained)
    assert len(held) == len(set(held)) > 4
    assert held_out.n_repeated == len(samples) - len(set(samples.inputs[:, 0].tolist())) > 40


def test_images_with_two_labels_are_on_one_side() -> None:
    images = torch.arange(60).view(-1, 1)
    inputs, labels = images.repeat(3, 1), torch.cat([images[:, 0] % 3, images[:, 0] % 3, (images[:, 0] + 1) % 3])
    samples, held_out = read_clean((inputs, labels), None, augments=None, eval_transform=None)
    assert held_out.n_repeated == 120
    for seed in range(5):
        split = split_of(samples, held_out, FineTuneConfig(), seed)
        trained, held = (inputs[part, 0].tolist() for part in (split.recovery, split.holdout))
        assert not set(trained) & set(held)
        assert len(held) == len(set(held)) == 12
        assert len(trained) == 3 * 48
        assert torch.bincount(labels[split.holdout]).tolist() == [4, 4, 4]


def test_an_image_that_is_held_out_is_not_trained_on_under_another_label() -> None:
    inputs = torch.arange(20.0)[:, None]
    clean, held = (inputs, torch.arange(20) % 2), (inputs[:5], 1 - torch.arange(5) % 2)
    samples, held_out = read_clean(clean, held, augments=None, eval_transform=None)
    assert (held_out.n_shared, held_out.n_given, len(samples)) == (5, 5, 20)


def test_names_of_two_kinds_join_in_chains() -> None:
    names = [*"abcaxyz"], [1, 2, 2, 3, 3, 5, 6]
    labels = torch.zeros(7, dtype=torch.int64)
    groups = joined_names(*names)
    assert [groups.index(name) for name in groups] == [0, 1, 1, 0, 0, 5, 6]
    split = split_by_class(labels, holdout_fraction=0.5, forget_fraction=1.0, seed=0, identities=groups)
    assert len(split.holdout) == 2  # of four groups


@pytest.mark.usefixtures("guessers_are_trained")
def test_the_report_counts_what_repeats() -> None:
    data = TensorDataset(torch.randn(40, 90), torch.arange(40) % 4)
    loader = DataLoader(data, batch_size=8, sampler=[*range(40), *range(12)])
    report = seamfast.sanitize(linear(), loader, **TUNE).report
    assert (report["data"]["n_read"], report["data"]["n_samples"], report["data"]["n_repeated"]) == (52, 52, 12)
    assert report["data"]["reading_stopped"] is None
    told = "12 of 52 samples of clean_loader repeat others: they are trained on, and held out once"
    assert told in report["warnings"]


# Data without end, and limits.


class Endless(IterableDataset[Any]):
    def __init__(self, seconds: float = 0.0, seed: int = 0) -> None:
        self.seconds, self.seed = seconds, seed
        self.n_given = 0

    def __iter__(self) -> Iterator[Any]:
        draw = torch.Generator().manual_seed(self.seed)
        while True:
            time.sleep(self.seconds)
            self.n_given += 1
            yield torch.randn(90, generator=draw), self.n_given % 4


class Forever(Sampler[int]):
    """Random indices without end, and without a length."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.n).tolist()


class Long(Forever):
    def __len__(self) -> int:
        return 2**31


class Slow(Dataset[Any]):
    """Sorted by class, as folders are."""

    def __init__(self, n: int, seconds: float = 0.0) -> None:
        self.n, self.seconds, self.read = n, seconds, list[int]()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        self.read.append(index)
        return torch.full((90,), float(index)), index * 4 // self.n


def test_a_stream_without_end_is_read_up_to_a_number() -> None:
    for data in (Endless(), DataLoader(Endless(), batch_size=7), iter(DataLoader(Endless(), batch_size=7))):
        allowance = Allowance(30)
        samples = as_clean_set(data, allowance=allowance)
        assert len(samples) == allowance.n_read == 30
        assert allowance.stopped == "max_samples"
    first = as_clean_set(DataLoader(Endless(), batch_size=30), allowance=Allowance(30))
    assert torch.equal(first.inputs, samples.inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [Forever, Long])
def test_a_sampler_without_end_is_followed_for_one_pass(sampler: Any) -> None:
    data = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 4)
    for limits, n in (((25, None), 25), ((None, 1000.0), 40), ((100, None), 100)):
        allowance = Allowance(*limits)
        samples = as_clean_set(DataLoader(data, batch_size=8, sampler=sampler(40)), allowance=allowance)
        assert len(samples) == allowance.n_read == n
        assert allowance.stopped == ("max_samples" if n != 40 else None)


@pytest.mark.parametrize("form", ["set", "loader", "pair", "CleanSet", "augmenting"])
def test_of_what_has_indices_samples_of_all_classes_are_drawn(form: str) -> None:
    n = 400
    inputs, labels = torch.arange(float(n))[:, None], torch.arange(n) * 4 // n
    data: Any = {
        "set": TensorDataset(inputs, labels),
        "loader": DataLoader(TensorDataset(inputs, labels), batch_size=16),
        "pair": (inputs, labels),
        "CleanSet": CleanSet(inputs, labels),
        "augmenting": as_clean_set(Slow(n), augments=True),
    }[form]
    allowance = Allowance(60)
    samples = as_clean_set(data, augments=None, allowance=allowance)
    assert len(samples) == allowance.n_read == 60
    assert allowance.stopped == "max_samples"
    assert int(samples.labels.bincount().min()) > 5
    assert isinstance(samples.inputs, Tensor)
    order = samples.inputs[:, 0]
    assert torch.equal(order, order.sort().values)
    again = as_clean_set(data, augments=None, allowance=Allowance(60))
    assert torch.equal(again.inputs, samples.inputs)  # type: ignore[arg-type]


def test_no_more_is_read_than_is_allowed() -> None:
    data = Slow(400)
    as_clean_set(data, allowance=Allowance(60))
    assert len(data.read) == len(set(data.read)) == 60
    enough = Allowance(400)
    assert len(as_clean_set(data, allowance=enough)) == 400
    assert enough.stopped is None


@pytest.mark.parametrize("augments", [None, False])
@pytest.mark.parametrize("n_workers", [0, 1])
def test_time_ends_the_reading_of_a_set_and_leaves_samples_of_all_classes(
    n_workers: int, augments: bool | None
) -> None:
    loader = DataLoader(Slow(20_000, 0.002), batch_size=64, num_workers=n_workers)
    allowance, begin = Allowance(seconds=0.5), time.perf_counter()
    samples = as_clean_set(loader, augments=augments, allowance=allowance)
    assert time.perf_counter() - begin < 30  # of 40 s and more
    assert allowance.stopped == "time_budget_s"
    assert 16 <= len(samples) == allowance.n_read < 15_000
    assert samples.n_labelled_classes == 4
    assert isinstance(samples.inputs, Tensor)
    assert torch.equal(samples.inputs[:, 0].long() * 4 // 20_000, samples.labels)
    assert torch.equal(samples.inputs[:, 0], samples.inputs[:, 0].sort().values)


def test_time_that_suffices_changes_nothing() -> None:
    data = TensorDataset(torch.randn(100, 5), torch.arange(100) % 4)
    one, other = (as_clean_set(data, augments=None, allowance=Allowance(seconds=s)) for s in (None, 1000.0))
    assert torch.equal(one.inputs, other.inputs)  # type: ignore[arg-type]
    assert one.reads_agree is other.reads_agree is True


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize("form", ["stream", "loader"])
def test_a_time_budget_holds_while_reading(form: str) -> None:
    data: Any = Endless(0.002) if form == "stream" else DataLoader(Endless(0.002), batch_size=8)
    begin = time.perf_counter()
    report = seamfast.sanitize(linear(), data, time_budget_s=1.0, **TUNE).report
    assert time.perf_counter() - begin < 30  # it has no end
    assert report["data"]["reading_stopped"] == "time_budget_s"
    n = report["data"]["n_read"]
    assert 8 <= n == report["data"]["n_samples"]
    told = (
        f"the reading of clean_loader ended after {n:,} samples, when its share of the time budget of 1 s was used up"
    )
    assert told in report["warnings"]
    jsonschema.validate(report, seamfast.report.schema())


@pytest.mark.usefixtures("guessers_are_trained")
def test_a_number_of_samples_holds_for_held_out_data_too() -> None:
    report = seamfast.sanitize(linear(), Endless(), holdout=Endless(seed=1), max_samples=40, **TUNE).report
    assert report["data"]["reading_stopped"] == "max_samples"
    assert report["data"]["n_read"] == 40
    assert report["data"]["n_holdout"] == 40


@pytest.mark.parametrize("value", [0, -3, 1.5, "many", True])
def test_what_is_no_number_of_samples(value: Any) -> None:
    with raises(InputError, f"max_samples is {value!r}; expected an integer of at least 1"):
        seamfast.sanitize(linear(), (torch.randn(40, 90), LABELS), max_samples=value)


def test_a_limit_that_leaves_one_class_is_named() -> None:
    found = "clean_loader holds one class only (0) in the 3 samples that max_samples left time or room for"
    with raises(InputError, f"{found}; expected at least two"):
        seamfast.sanitize(linear(), [(torch.randn(40, 90), torch.arange(40) // 10)], max_samples=3)


# Images of Pillow.


def pillow() -> Any:
    return pytest.importorskip("PIL.Image", reason="needs Pillow")


def picture(index: int, mode: str = "RGB", size: tuple[int, int] = (5, 6)) -> Any:
    image = pillow().fromarray(PIXELS[index].permute(1, 2, 0).numpy())
    return image.convert(mode).resize(size) if (mode, size) != ("RGB", (5, 6)) else image


class Pictures(Dataset[Any]):
    def __init__(self, change: Callable[[int, Any], Any] = lambda index, image: image, named: bool = False) -> None:
        self.change, self.named = change, named

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> Any:
        image, label = self.change(index, picture(index)), int(LABELS[index])
        return {"image": image, "label": label} if self.named else (image, label)


class PictureStream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(map(Pictures().__getitem__, range(len(PIXELS))))


@pytest.mark.parametrize(
    "make",
    [
        Pictures, lambda: DataLoader(Pictures(), batch_size=5, shuffle=True), PictureStream,
        lambda: DataLoader(PictureStream(), batch_size=5),
        lambda: DataLoader(PictureStream(), batch_size=5, num_workers=1, persistent_workers=True),
    ],
)  # fmt: skip
def test_pictures_are_pixels(make: Callable[[], Any]) -> None:
    data = as_clean_set(make(), augments=None, mean=MEAN, std=STD)
    assert data.is_pixels
    assert data.mean == MEAN
    assert isinstance(data.inputs, Tensor)
    got = {(image.numpy().tobytes(), int(y)) for image, y in zip(data.inputs, data.labels, strict=True)}
    assert got == {(image.numpy().tobytes(), int(y)) for image, y in zip(PIXELS, LABELS, strict=True)}


def test_pictures_without_color_have_one_channel() -> None:
    assert as_clean_set(Pictures(lambda index, image: image.convert("L"))).image_shape == (1, 6, 5)


@pytest.mark.usefixtures("guessers_are_trained")
def test_pictures_by_name_and_in_training() -> None:
    for data in (Pictures(), Pictures(named=True), [Pictures(named=True)[i] for i in range(24)]):
        report = seamfast.sanitize(linear(), data, triggers=[Patch.square(2)], **TUNE).report
        assert report["data"]["n_samples"] == 24
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(90, 8))
    for data in (Pictures(), DataLoader(Pictures(), batch_size=5)):
        seamfast.sanitize_encoder(encoder, data, time_budget_s=0.2)


def test_pictures_that_augment() -> None:
    def noisy(index: int, image: Any) -> Any:
        return pillow().fromarray(np.asarray(image) // 2 + np.uint8(torch.randint(99, ())))

    data = as_clean_set(Pictures(noisy), augments=None)
    assert isinstance(data, AugmentingSet)
    ((_, inputs),) = data.fresh([torch.tensor([3, 1])])
    assert isinstance(inputs, Tensor)
    assert (inputs.dtype, inputs.shape) == (torch.uint8, (2, 3, 6, 5))


def test_pictures_of_several_sizes() -> None:
    data = Pictures(lambda index, image: image.resize((7, 6)) if index == 3 else image)
    message = (
        "clean_loader gives PIL images of 7 x 6 and of 5 x 6 pixels; expected one size: let the transform of the "
        "dataset resize or crop them, as in training"
    )
    for given in (data, DataLoader(data, batch_size=8)):
        with raises(ShapeError, message):
            as_clean_set(given)


@pytest.mark.parametrize("mode", ["P", "RGBA", "1", "CMYK", "I;16"])
def test_pictures_of_other_modes(mode: str) -> None:
    def changed(index: int, image: Any) -> Any:
        return pillow().new(mode, image.size) if mode == "I;16" else image.convert(mode)

    message = (
        f"clean_loader gives a PIL image of mode {mode!r}; expected mode 'RGB' or 'L': let the transform of the "
        'dataset begin with image.convert("RGB"), as in training'
    )
    with raises(InputError, message):
        as_clean_set(Pictures(changed))
