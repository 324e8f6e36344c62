"""What ``sanitize`` refuses: with which words, and with the given model untouched."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import seamfast
from seamfast import CleanSet, FineTuneConfig, SeamConfig, attacks
from seamfast.errors import ConfigError, DTypeError, InputError, ModelError, SeamfastError, ShapeError
from seamfast.triggers import AllToAll, Patch

IMAGES, LABELS = torch.rand(40, 1, 8, 8), torch.arange(40) % 4
PIXELS = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
SHORT = SeamConfig(forget_max_steps=1, recover_max_steps=1)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def refuses(kind: type[Exception], message: str, *arguments: Any, **options: Any) -> None:
    """``sanitize`` raises exactly ``kind`` with exactly ``message``, and leaves torch's generator alone."""
    state = torch.get_rng_state()
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as caught:
        seamfast.sanitize(*arguments, **options)
    assert caught.type is kind
    assert isinstance(caught.value, (SeamfastError, ValueError))
    assert torch.equal(torch.get_rng_state(), state)


def refuses_data(kind: type[Exception], message: str, data: Any, **options: Any) -> None:
    """The same, with a good model, which stays as it is."""
    model = linear().train()
    model[1].bias.requires_grad_(False)
    model[1].weight.grad = torch.ones(4, 64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    refuses(kind, message, model, data, **options)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model[1].weight.grad, torch.ones(4, 64))
    assert [m.training for m in model.modules()] == [True] * 3
    assert [p.requires_grad for p in model.parameters()] == [True, False]


# The data.


def with_value(value: float) -> Tensor:
    images = IMAGES.clone()
    images[17, 0, 3, 3] = value
    return images


def poisoned() -> attacks.PoisonedSet:
    return attacks.poison(CleanSet(PIXELS, LABELS, num_classes=4), Patch.square(2), rate=0.1)


def consumed() -> Any:
    batches = iter([(IMAGES, LABELS)])
    assert len(list(batches)) == 1
    return batches


NO_DATA = "expected a DataLoader, a Dataset, an (inputs, labels) pair or a seamfast.CleanSet"
NO_SAMPLES = "clean_loader yielded no samples; an iterator that was already consumed yields none"
EMPTY = "clean_loader holds no samples; expected at least one of each class"
NOT_FINITE = "inputs holds NaN or Inf, first in sample 17; expected finite numbers"
POISONED = "clean_loader is a PoisonedSet; expected clean data: recovery on poisoned data teaches the backdoor"


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (None, InputError, f"clean_loader is a NoneType; {NO_DATA}"),
        ("data.npz", InputError, f"clean_loader is a str; {NO_DATA}"),
        (IMAGES, InputError, f"clean_loader is a Tensor of shape (40, 1, 8, 8); {NO_DATA}"),
        ({"images": IMAGES, "labels": LABELS}, InputError, f"clean_loader is a dict of length 2; {NO_DATA}"),
        (3, InputError, f"clean_loader is a int; {NO_DATA}"),
        ([], InputError, NO_SAMPLES),
        (DataLoader(TensorDataset(IMAGES[:0], LABELS[:0])), InputError, NO_SAMPLES),
        (consumed(), InputError, NO_SAMPLES),
        (CleanSet(IMAGES[:0], LABELS[:0]), InputError, EMPTY),
        ((IMAGES[:0], LABELS[:0]), InputError, EMPTY),
        (
            (IMAGES, torch.full((40,), 2)), InputError,
            "clean_loader holds one class only (2); expected at least two",
        ),
        (
            (IMAGES[:3], torch.tensor([0, 1, 0])), InputError,
            "clean_loader holds 3 samples; expected at least one for each of 4 classes",
        ),
        (
            (IMAGES[:4], LABELS[:4]), InputError,
            "clean_loader holds 4 samples, no two different ones of a class; expected two, to hold one out",
        ),
        ((with_value(math.nan), LABELS), InputError, NOT_FINITE),
        ((with_value(math.inf), LABELS), InputError, NOT_FINITE),
        ((with_value(-math.inf).numpy(), LABELS.numpy()), InputError, NOT_FINITE),
        (
            [(["a", "b"], LABELS[:2])], InputError,
            "batch 0: inputs is a list of length 2; expected numbers in a tensor or array",
        ),
        ((np.array(["a"] * 40), LABELS), DTypeError, "inputs has dtype <U1; expected numbers"),
        (poisoned(), InputError, POISONED),
        (poisoned().subset(range(30)), InputError, POISONED),
        (
            [{"pixels": IMAGES, "attention_mask": IMAGES, "labels": LABELS}], InputError,
            "batches hold ['attention_mask', 'pixels']; the model's forward takes ['input']",
        ),
        (
            [{"image": IMAGES, "class": LABELS}], InputError,
            "batch 0 has keys ['class', 'image']; expected the labels under one of ('labels', 'label', 'targets', "
            "'target', 'y')",
        ),
    ],
)  # fmt: skip
def test_data(data: Any, kind: type[Exception], message: str) -> None:
    refuses_data(kind, message, data)


def test_data_that_cannot_be_read_again() -> None:
    refuses_data(InputError, "augments is 1; expected True, False or None", (IMAGES, LABELS), augments=1)
    message = (
        "augments is True and clean_loader is a tuple of length 2; expected a map-style Dataset, or a DataLoader over "
        "one, whose samples can be read again by index"
    )
    refuses_data(InputError, message, (IMAGES, LABELS), augments=True)


class Relabelled(TensorDataset):
    """Sample 5 is of class 1 when it is first read, and of class 2 from then on."""

    reads = 0

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.reads += index == 5
        return (self.tensors[0][index], self.tensors[1][index] + (index == 5 and self.reads > 1))


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize("augments", [None, True])
def test_labels_that_change(augments: bool | None) -> None:
    message = (
        "sample 5 of clean_loader had the label 1 when it was first read and has 2 now; expected labels that stay: "
        "pass augments=False to have it read once"
    )
    refuses_data(InputError, message, Relabelled(IMAGES, LABELS), augments=augments)


def test_as_few_samples_as_can_be() -> None:
    """One more than one a class is enough to run, if not to be trusted."""
    data = seamfast.sanitize(linear(), (IMAGES[:5], LABELS[:5]), config=SHORT).report["data"]
    assert (data["n_holdout"], data["n_recovery"]) == (1, 4)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (torch.where(LABELS == 3, 7, LABELS), InputError, "labels hold 7; expected integers in [0, 4) for the model's "
         "4 logits"),
        (LABELS - 1, InputError, "labels hold -1; expected integers from 0"),
        (LABELS.float(), DTypeError, "labels has dtype float32; expected an integer dtype"),
        (LABELS > 1, DTypeError, "labels has dtype bool; expected an integer dtype"),
        (LABELS[:, None], ShapeError, "labels has shape (40, 1); expected (N,) = (40,)"),
        (nn.functional.one_hot(LABELS), ShapeError, "labels has shape (40, 4); expected (N,) = (40,)"),
        (LABELS[:39], ShapeError, "inputs has shape (40, 1, 8, 8) and labels (39,); expected the same number of "
         "samples in both"),
    ],
    ids=["too large", "negative", "floats", "bools", "columns", "one-hot", "too few"],
)  # fmt: skip
def test_labels(labels: Tensor, kind: type[Exception], message: str) -> None:
    refuses_data(kind, message, (IMAGES, labels))


# The model.


class Returns(nn.Module):
    """Returns what it is given to make of logits."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.answer = linear(), answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.inner(images))


def spoilt(index: int, name: str, where: Any, value: float) -> nn.Module:
    """A normalized linear model with some numbers that are not finite."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4))
    with torch.no_grad():
        getattr(model[index], name)[where] = value
    return model


def locked() -> nn.Module:
    model = linear()
    model.lock = threading.Lock()
    return model


NO_LOGITS = (
    "expected logits: a tensor, an object or dict with 'logits', or a tuple with one (B, C) tensor, such as "
    "(loss, logits)"
)
NOT_FINITE_LOGITS = "the model returned NaN or Inf on clean data; expected finite logits"
NO_GRADIENT = (
    "the model's logits carry no gradient; expected a model that can be trained, without no_grad or detach in its "
    "forward"
)
FINITE = "expected finite weights"


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        *(
            (Returns(answer), f"the model returned logits of shape {shape}; expected (8, number of classes >= 2)")
            for answer, shape in (
                (lambda x: x[:, 0], (8,)), (lambda x: x[:, :1], (8, 1)), (lambda x: x[:, :, None], (8, 4, 1)),
                (lambda x: x[:2], (2, 4)),
            )
        ),
        *(
            (Returns(answer), f"the model returned a {kind}; {NO_LOGITS}")
            for answer, kind in (
                (lambda x: None, "NoneType"), (lambda x: (x, x), "tuple"), (lambda x: {"scores": x}, "dict"),
                (lambda x: {"logits": x.tolist()}, "dict"), (lambda x: x.numpy(force=True), "ndarray"),
                # Some models add outputs in train mode: the first training step shows it.
                (lambda x: (x, x) if torch.is_grad_enabled() else x, "tuple"),
            )
        ),
        (Returns(lambda x: x.long()), "the model returned torch.int64; expected floating-point logits"),
        (Returns(lambda x: x * math.nan), NOT_FINITE_LOGITS),
        (Returns(lambda x: x / 0), NOT_FINITE_LOGITS),
        (Returns(lambda x: x.detach()), NO_GRADIENT),
        (Returns(lambda x: torch.zeros_like(x)), NO_GRADIENT),
        (spoilt(0, "weight", (0, 0, 0, slice(2)), math.nan), "0.weight holds 2 NaN or Inf of 72 numbers; " + FINITE),
        (spoilt(1, "running_var", 3, math.inf), "1.running_var holds 1 NaN or Inf of 8 numbers; " + FINITE),
        (nn.Flatten(), "the model has no parameters; expected a trained nn.Module"),
        (
            linear().to("meta"),
            "the model is on the meta device and holds no weights; expected a trained model on a real device",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
            "1.weight is not initialized yet; run one batch through the model first",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4, device="meta")),
            "the model is spread over cpu, meta; expected all parameters and buffers on one device",
        ),
        (
            locked(),
            "the model cannot be copied (TypeError: cannot pickle '_thread.lock' object); expected one that "
            "copy.deepcopy accepts: fold weight norm or other re-parametrisations first",
        ),
    ],
)  # fmt: skip
def test_models(model: nn.Module, message: str) -> None:
    refuses(ModelError, message, model, (IMAGES, LABELS))


@pytest.mark.parametrize(
    ("model", "kind"), [(None, "NoneType"), (linear, "function"), (nn.Linear, "type"), ({"weight": 1}, "dict")]
)
def test_no_module(model: Any, kind: str) -> None:
    refuses(InputError, f"model is a {kind}; expected a torch.nn.Module", model, (IMAGES, LABELS))


def test_what_the_model_raises_comes_through() -> None:
    def broken(logits: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        seamfast.sanitize(Returns(broken), (IMAGES, LABELS))


# The other arguments.

METHODS = "expected one of seam, seam_authors, fine_tune, super_fine_tune"
PRESETS = "expected one of fast, balanced, thorough"
DEVICES = "expected 'auto' or a torch device such as 'cpu' or 'cuda:0'"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        *(
            ({"method": method}, ConfigError, f"method is {method!r}; {METHODS}")
            for method in ("sgd", "SEAM", "", None, ["seam"])
        ),
        *(
            ({"method": m, "config": config}, ConfigError, f"config is a {got}; expected {wanted} for method {m!r}")
            for m, config, got, wanted in (
                ("seam", {"batch_size": 3}, "dict", "SeamConfig"),
                ("seam", FineTuneConfig(), "FineTuneConfig", "SeamConfig"),
                ("fine_tune", SeamConfig(), "SeamConfig", "FineTuneConfig"),
                ("super_fine_tune", 3, "int", "SuperFineTuneConfig"),
            )
        ),
        *(({"preset": p}, ConfigError, f"preset is {p!r}; {PRESETS}") for p in ("slow", ["fast"], "")),
        (
            {"preset": "fast", "config": SeamConfig()}, ConfigError,
            "preset is 'fast' and a config is given; expected one of them",
        ),
        *(
            (
                {"preset": preset, "method": "fine_tune"}, ConfigError,
                f"preset is {preset!r}; expected None for method 'fine_tune'",
            )
            for preset in ("fast", "slow")
        ),
        ({"seed": -1}, InputError, "seed is -1; expected an integer in [0, 2**63)"),
        (
            {"time_budget_s": 0}, InputError, "time_budget_s is 0; expected a number of seconds above 0, or None",
        ),
        *(
            ({"threads": threads}, InputError, f"threads is {threads!r}; expected an integer in [1, 1024], or None")
            for threads in (0, True)
        ),
        *(
            ({name: 1}, InputError, f"{name} is 1; expected True or False") for name in ("deterministic", "compile")
        ),
        *(
            ({"device": device}, InputError, f"device is {device!r}; {DEVICES}")
            for device in ("gpu", "", "cpu:x", 3.5, ["cpu"])
        ),
        ({"callbacks": seamfast.Callback()}, InputError, "callbacks is a Callback; expected a list of callbacks"),
        (
            {"config": SeamConfig(crop_pad=8)}, ConfigError, "crop_pad is 8; expected less than the image side 8",
        ),
        (
            {"triggers": [Patch.square(2)]}, InputError,
            "triggers are stamped in pixel space, before normalization; the inputs are floats without a known "
            "normalization: pass seamfast.CleanSet(inputs, labels, mean=..., std=...), or a "
"loader as seamfast.data.as_clean_set(loader, mean=..., std=...)",
        ),
    ],
)  # fmt: skip
def test_options(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    refuses_data(kind, message, (IMAGES, LABELS), **options)


@pytest.mark.parametrize(("name", "value", "done"), [("crop_pad", 2, "cropped"), ("flip", True, "flipped")])
def test_what_is_no_image_is_neither_cropped_nor_flipped(name: str, value: Any, done: str) -> None:
    message = f"{name} is {value}; expected {type(value)()}, as only images can be {done}: their shape is (N, C, H, W)"
    refuses_data(ConfigError, message, (IMAGES.flatten(1), LABELS), config=SeamConfig(**{name: value}))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"triggers": [Patch.square(2), Patch.square(9, margin=0, name="big")]}, ShapeError,
            "trigger 'big' patch is 9x9; images are 8x8",
        ),
        ({"triggers": ["patch"]}, InputError, "triggers hold a str; expected seamfast.triggers.Trigger"),
        ({"triggers": Patch.square(2)}, InputError, "triggers is a Patch; expected a list of triggers"),
        (
            {"triggers": [Patch.square(2, target=4)]}, InputError,
            "AllToOne target is 4; expected a class in [0, 4) for num_classes=4",
        ),
        (
            {"triggers": [Patch.square(2, target=AllToAll(4))]}, InputError,
            "AllToAll shift is 4; expected no multiple of num_classes=4",
        ),
        (
            {"triggers": [Patch.square(2), Patch.square(3)]}, InputError,
            "trigger names patch occur more than once; expected different names",
        ),
        ({"config": SeamConfig(crop_pad=8)}, ConfigError, "crop_pad is 8; expected less than the image side 8"),
    ],
)  # fmt: skip
def test_options_with_pixels(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    refuses_data(kind, message, CleanSet(PIXELS, LABELS), **options)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, np.int64(5)])
def test_seeds_that_work(seed: Any) -> None:
    report = seamfast.sanitize(linear(), (IMAGES, LABELS), config=SHORT, seed=seed).report
    assert report["seed"] == seed
    assert type(report["seed"]) is int  # JSON knows no other


@pytest.mark.usefixtures("guessers_are_trained")
def test_the_largest_crop() -> None:
    pixels = PIXELS + torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1)
    run = seamfast.sanitize(linear(), CleanSet(pixels, LABELS), config=replace(SHORT, crop_pad=7)).report["run"]
    assert run["stopped"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_where_there_is_none(device: Any) -> None:
    message = f"device is {str(device)!r}, but torch sees no CUDA device here; expected 'auto' or 'cpu'"
    refuses_data(InputError, message, (IMAGES, LABELS), device=device)


def test_settings_go_by_name() -> None:
    with pytest.raises(TypeError):
        seamfast.sanitize(linear(), (IMAGES, LABELS), "seam")  # type: ignore[misc]
