"""What ``sanitize`` refuses: with which words, and with the given model untouched."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
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


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (None, InputError, "a NoneType"),
        ("data.npz", InputError, "a str"),
        (IMAGES, InputError, "a Tensor of shape (40, 1, 8, 8)"),
        ({"images": IMAGES, "labels": LABELS}, InputError, "a dict of length 2"),
        (3, InputError, "a int"),
    ],
)
def test_no_data(data: Any, kind: type[Exception], message: str) -> None:
    wanted = "expected a DataLoader, a Dataset, an (inputs, labels) pair or a seamfast.CleanSet"
    refuses_data(kind, f"clean_loader is {message}; {wanted}", data)


def test_no_samples() -> None:
    message = "clean_loader yielded no samples; an iterator that was already consumed yields none"
    refuses_data(InputError, message, [])
    refuses_data(InputError, message, DataLoader(TensorDataset(IMAGES[:0], LABELS[:0])))
    batches = iter([(IMAGES, LABELS)])
    assert len(list(batches)) == 1
    refuses_data(InputError, message, batches)
    message = "clean_loader holds no samples; expected at least one of each class"
    refuses_data(InputError, message, CleanSet(IMAGES[:0], LABELS[:0]))
    refuses_data(InputError, message, (IMAGES[:0], LABELS[:0]))


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


@pytest.mark.parametrize("augments", [None, True])
def test_labels_that_change(augments: bool | None) -> None:
    message = (
        "sample 5 of clean_loader had the label 1 when it was first read and has 2 now; expected labels that stay: "
        "pass augments=False to have it read once"
    )
    refuses_data(InputError, message, Relabelled(IMAGES, LABELS), augments=augments)


def test_too_few_samples_and_classes() -> None:
    one_class = (IMAGES, torch.full((40,), 2))
    refuses_data(InputError, "clean_loader holds one class only (2); expected at least two", one_class)
    message = "clean_loader holds 3 samples; expected at least one for each of 4 classes"
    refuses_data(InputError, message, (IMAGES[:3], torch.tensor([0, 1, 0])))
    message = "clean_loader holds 4 samples, one a class; expected at least two of one class, to hold one out"
    refuses_data(InputError, message, (IMAGES[:4], LABELS[:4]))


def test_as_few_samples_as_can_be() -> None:
    """One more than one a class is enough to run, if not to be trusted."""
    config = SeamConfig(forget_max_steps=1, recover_max_steps=1)
    result = seamfast.sanitize(linear(), (IMAGES[:5], LABELS[:5]), config=config)
    assert result.report["data"]["n_holdout"] == 1
    assert result.report["data"]["n_recovery"] == 4


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite(value: float) -> None:
    images = IMAGES.clone()
    images[17, 0, 3, 3] = value
    message = "inputs holds NaN or Inf, first in sample 17; expected finite numbers"
    refuses_data(InputError, message, (images, LABELS))
    refuses_data(InputError, message, (images.numpy(), LABELS.numpy()))
    message = "batch 0: inputs is a list of length 2; expected numbers in a tensor or array"
    refuses_data(InputError, message, [(["a", "b"], LABELS[:2])])


def test_arrays_that_hold_no_numbers() -> None:
    refuses_data(DTypeError, "inputs has dtype <U1; expected numbers", (np.array(["a"] * 40), LABELS))


def test_poisoned_data_is_refused() -> None:
    clean = CleanSet(PIXELS, LABELS, num_classes=4)
    poisoned = attacks.poison(clean, Patch.square(2), rate=0.1)
    message = "clean_loader is a PoisonedSet; expected clean data: recovery on poisoned data teaches the backdoor"
    refuses_data(InputError, message, poisoned)
    refuses_data(InputError, message, poisoned.subset(range(30)))


def test_batches_that_do_not_fit_the_call() -> None:
    message = "batches hold ['attention_mask', 'pixels']; the model's forward takes ['input']"
    refuses_data(InputError, message, [{"pixels": IMAGES, "attention_mask": IMAGES, "labels": LABELS}])
    wanted = "expected the labels under one of ('labels', 'label', 'targets', 'target', 'y')"
    refuses_data(InputError, f"batch 0 has keys ['class', 'image']; {wanted}", [{"image": IMAGES, "class": LABELS}])


# The model.


@pytest.mark.parametrize(
    ("model", "kind"), [(None, "NoneType"), (linear, "function"), (nn.Linear, "type"), ({"weight": 1}, "dict")]
)
def test_no_module(model: Any, kind: str) -> None:
    refuses(InputError, f"model is a {kind}; expected a torch.nn.Module", model, (IMAGES, LABELS))


class Returns(nn.Module):
    """Returns what it is told to make of logits."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.answer = linear(), answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.inner(images))


WANTED = "expected (8, number of classes >= 2)"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:, 0], f"the model returned logits of shape (8,); {WANTED}"),
        (lambda x: x[:, :1], f"the model returned logits of shape (8, 1); {WANTED}"),
        (lambda x: x[:, :, None], f"the model returned logits of shape (8, 4, 1); {WANTED}"),
        (lambda x: x[:2], f"the model returned logits of shape (2, 4); {WANTED}"),
        (lambda x: x.long(), "the model returned torch.int64; expected floating-point logits"),
        (lambda x: x * math.nan, "the model returned NaN or Inf on clean data; expected finite logits"),
        (lambda x: x / 0, "the model returned NaN or Inf on clean data; expected finite logits"),
    ],
    ids=["vector", "one class", "pixels", "fewer rows", "integers", "NaN", "Inf"],
)
def test_logits(answer: Callable[[Tensor], Any], message: str) -> None:
    refuses(ModelError, message, Returns(answer), (IMAGES, LABELS))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: (x, x), "tuple"),
        (lambda x: {"scores": x}, "dict"),
        (lambda x: {"logits": x.tolist()}, "dict"),
        (lambda x: x.numpy(force=True), "ndarray"),
    ],
)
def test_no_logits(answer: Callable[[Tensor], Any], kind: str) -> None:
    message = f"the model returned a {kind}; expected logits: a tensor, or an object or dict with 'logits'"
    refuses(ModelError, message, Returns(answer), (IMAGES, LABELS))


def test_logits_in_eval_mode_only() -> None:
    """Some models add outputs in train mode: the first training step tells."""
    model = Returns(lambda x: x)
    model.answer = lambda x: (x, x) if torch.is_grad_enabled() else x
    message = "the model returned a tuple; expected logits: a tensor, or an object or dict with 'logits'"
    refuses(ModelError, message, model, (IMAGES, LABELS))


@pytest.mark.parametrize("answer", [lambda x: x.detach(), lambda x: torch.zeros_like(x)])
def test_logits_without_a_gradient(answer: Callable[[Tensor], Any]) -> None:
    message = (
        "the model's logits carry no gradient; expected a model that can be trained, without no_grad or detach in its "
        "forward"
    )
    refuses(ModelError, message, Returns(answer), (IMAGES, LABELS))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value: float, tiny_model: Callable[[], nn.Module]) -> None:
    model = tiny_model()
    with torch.no_grad():
        model[4].weight[0, 0, 0, :2] = value
    message = "4.weight holds 2 NaN or Inf of 576 numbers; expected finite weights"
    refuses(ModelError, message, model, (IMAGES, LABELS))
    model = tiny_model()
    model[1].running_var[3] = value
    message = "1.running_var holds 1 NaN or Inf of 8 numbers; expected finite weights"
    refuses(ModelError, message, model, (IMAGES, LABELS))


def test_models_without_weights_to_train() -> None:
    refuses(ModelError, "the model has no parameters; expected a trained nn.Module", nn.Flatten(), (IMAGES, LABELS))
    message = "the model is on the meta device and holds no weights; expected a trained model on a real device"
    refuses(ModelError, message, linear().to("meta"), (IMAGES, LABELS))
    message = "1.weight is not initialised yet; run one batch through the model first"
    refuses(ModelError, message, nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), (IMAGES, LABELS))


def test_a_model_on_two_devices() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4, device="meta"))
    message = "the model is spread over cpu, meta; expected all parameters and buffers on one device"
    refuses(ModelError, message, model, (IMAGES, LABELS))


def test_a_model_that_cannot_be_copied() -> None:
    model = linear()
    model.lock = threading.Lock()
    message = (
        "the model cannot be copied (TypeError: cannot pickle '_thread.lock' object); expected one that copy.deepcopy "
        "accepts: fold weight norm or other re-parametrisations first"
    )
    refuses(ModelError, message, model, (IMAGES, LABELS))


def test_what_the_model_raises_comes_through() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 4)

        def forward(self, images: Tensor) -> Tensor:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        seamfast.sanitize(Broken(), (IMAGES, LABELS))


# The other arguments.


@pytest.mark.parametrize("method", ["sgd", "SEAM", "", None, ["seam"]])
def test_methods(method: Any) -> None:
    message = f"method is {method!r}; expected one of seam, fine_tune, super_fine_tune"
    refuses_data(ConfigError, message, (IMAGES, LABELS), method=method)


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        ("seam", {"batch_size": 3}, "config is a dict; expected SeamConfig for method 'seam'"),
        ("seam", FineTuneConfig(), "config is a FineTuneConfig; expected SeamConfig for method 'seam'"),
        ("fine_tune", SeamConfig(), "config is a SeamConfig; expected FineTuneConfig for method 'fine_tune'"),
        ("super_fine_tune", 3, "config is a int; expected SuperFineTuneConfig for method 'super_fine_tune'"),
    ],
)
def test_configs_of_another_kind(method: str, config: Any, message: str) -> None:
    refuses_data(ConfigError, message, (IMAGES, LABELS), method=method, config=config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "slow"}, "preset is 'slow'; expected one of fast, balanced, thorough"),
        ({"preset": ["fast"]}, "preset is ['fast']; expected one of fast, balanced, thorough"),
        ({"preset": ""}, "preset is ''; expected one of fast, balanced, thorough"),
        (
            {"preset": "fast", "config": SeamConfig()},
            "preset is 'fast' and a config is given; expected one of them",
        ),
        ({"preset": "fast", "method": "fine_tune"}, "preset is 'fast'; expected None for method 'fine_tune'"),
        ({"preset": "slow", "method": "fine_tune"}, "preset is 'slow'; expected None for method 'fine_tune'"),
    ],
)
def test_presets(options: dict[str, Any], message: str) -> None:
    refuses_data(ConfigError, message, (IMAGES, LABELS), **options)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, "0", None, True])
def test_seeds(seed: Any) -> None:
    refuses_data(InputError, f"seed is {seed!r}; expected an integer in [0, 2**63)", (IMAGES, LABELS), seed=seed)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, np.int64(5)])
def test_seeds_that_work(seed: Any) -> None:
    config = SeamConfig(forget_max_steps=1, recover_max_steps=1)
    report = seamfast.sanitize(linear(), (IMAGES, LABELS), config=config, seed=seed).report
    assert report["seed"] == seed
    assert type(report["seed"]) is int  # JSON knows no other


@pytest.mark.parametrize("budget", [0, -1.0, math.nan, math.inf, "10", True, [1]])
def test_time_budgets(budget: Any) -> None:
    message = f"time_budget_s is {budget!r}; expected a number of seconds above 0, or None"
    refuses_data(InputError, message, (IMAGES, LABELS), time_budget_s=budget)


@pytest.mark.parametrize("device", ["gpu", "", "cpu:x", 3.5, ["cpu"]])
def test_devices(device: Any) -> None:
    message = f"device is {device!r}; expected 'auto' or a torch device such as 'cpu' or 'cuda:0'"
    refuses_data(InputError, message, (IMAGES, LABELS), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_where_there_is_none(device: Any) -> None:
    message = f"device is {str(device)!r}, but torch sees no CUDA device here; expected 'auto' or 'cpu'"
    refuses_data(InputError, message, (IMAGES, LABELS), device=device)


def test_triggers() -> None:
    pixels, floats = CleanSet(PIXELS, LABELS), (IMAGES, LABELS)
    big = Patch.square(9, margin=0, name="big")
    message = (
        "triggers are stamped in pixel space, before normalisation; the inputs are floats without a known "
        "normalisation: pass seamfast.CleanSet(inputs, labels, mean=..., std=...)"
    )
    refuses_data(InputError, message, floats, triggers=[Patch.square(2)])
    with pytest.raises(ShapeError, match=r"^trigger 'big' .*9x9.*8x8"):
        seamfast.sanitize(linear(), pixels, triggers=[Patch.square(2), big])
    refuses_data(InputError, "triggers hold a str; expected seamfast.triggers.Trigger", pixels, triggers=["patch"])
    refuses_data(InputError, "triggers is a Patch; expected a list of triggers", pixels, triggers=Patch.square(2))
    message = "AllToOne target is 4; expected a class in [0, 4) for num_classes=4"
    refuses_data(InputError, message, pixels, triggers=[Patch.square(2, target=4)])
    message = "AllToAll shift is 4; expected no multiple of num_classes=4"
    refuses_data(InputError, message, pixels, triggers=[Patch.square(2, target=AllToAll(4))])
    message = "trigger names patch occur more than once; expected different names"
    refuses_data(InputError, message, pixels, triggers=[Patch.square(2), Patch.square(3)])


def test_augmentation_needs_pixels() -> None:
    for changes, told in (({"crop_pad": 2}, "2 and flip False"), ({"flip": True}, "0 and flip True")):
        message = (
            f"crop_pad is {told}, which need uint8 pixels; the inputs are not: pass a seamfast.CleanSet of uint8 "
            "images, or set crop_pad=0 and flip=False"
        )
        refuses_data(ConfigError, message, (IMAGES, LABELS), config=SeamConfig(**changes))
    message = "crop_pad is 8; expected less than the image side 8"
    refuses_data(ConfigError, message, CleanSet(PIXELS, LABELS), config=SeamConfig(crop_pad=8))
    config = SeamConfig(crop_pad=7, forget_max_steps=1, recover_max_steps=1)
    assert seamfast.sanitize(linear(), CleanSet(PIXELS, LABELS), config=config).report["run"]["stopped"] is None


def test_callbacks() -> None:
    message = "callbacks is a Callback; expected a list of callbacks"
    refuses_data(InputError, message, (IMAGES, LABELS), callbacks=seamfast.Callback())


def test_settings_go_by_name() -> None:
    with pytest.raises(TypeError):
        seamfast.sanitize(linear(), (IMAGES, LABELS), "seam")  # type: ignore[misc]
