"""``sanitize``, end to end: what it promises, what it leaves alone, how it can end, and what it reports."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import seamfast
from seamfast import CleanSet, FineTuneConfig, Report, SeamConfig, SuperFineTuneConfig, attacks
from seamfast.data import draw_by_class, split_by_class
from seamfast.engine.model import digest
from seamfast.errors import SanitizeInterrupted
from seamfast.methods import SeamAuthorsConfig
from seamfast.modalities import TabularModality
from seamfast.report import schema
from seamfast.triggers import Patch

Make = Callable[[], nn.Module]
Enlarged = Callable[[CleanSet, int], CleanSet]

SHORT = SeamConfig(forget_max_steps=4, forget_eval_every=2, recover_max_steps=6, recover_eval_every=3, strengths=(1.0,))
METHODS: dict[str, Any] = {
    "seam": SHORT,
    "seam_authors": SeamAuthorsConfig(
        batch_size=64, crop_pad=0, flip=False, forget_fraction=1.0, forget_max_epochs=1, recover_max_epochs=2
    ),
    "fine_tune": FineTuneConfig(max_steps=5, eval_every=2),
    "super_fine_tune": SuperFineTuneConfig(forget_steps=3, recover_steps=3, eval_every=2),
}
STILL = 1e-12  # a rate at which nothing moves


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema(), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def normalized(data: CleanSet) -> Tensor:
    """The images as the model takes them."""
    return (data.inputs.float() / 255 - 0.4) / 0.25


# 1. The promise, on real data: a planted backdoor goes, the task stays. One seed, loose bounds.


@dataclass
class Digits:
    holdout: CleanSet
    test: CleanSet
    clean: CleanSet
    trigger: Patch
    planted: nn.Module
    innocent: nn.Module

    def rates(self, model: nn.Module) -> tuple[float, float]:
        """``(ACC, ASR)`` on the test set."""
        got = seamfast.evaluate(model, self.test, triggers=[self.trigger])
        assert got.clean_accuracy.value is not None
        assert got.worst_attack_success_rate is not None
        return got.clean_accuracy.value, got.worst_attack_success_rate


@pytest.fixture(scope="session")
def digits() -> Digits:
    seed, everything, trigger = 2, seamfast.load("digits"), Patch.square(3, target=0)
    unseen = seamfast.load("digits", split="test")

    def trained(data: CleanSet) -> nn.Module:
        torch.manual_seed(seed)
        model = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
        return attacks.train(model, data, attacks.TrainConfig(epochs=40, batch_size=64), seed=seed)

    return Digits(
        holdout=unseen.subset(range(0, len(unseen), 2)),
        test=unseen.subset(range(1, len(unseen), 2)),
        clean=everything.subset(draw_by_class(everything.labels, 0.05, seed=seed)),
        trigger=trigger,
        planted=trained(attacks.poison(everything, trigger, rate=0.05, seed=seed)),
        innocent=trained(everything),
    )


def test_a_planted_backdoor_goes_and_the_task_stays(digits: Digits) -> None:
    accuracy_before, success_before = digits.rates(digits.planted)
    assert accuracy_before > 0.95
    assert success_before >= 0.95
    assert len(digits.clean) <= 0.05 * 1438 + 10
    result = seamfast.sanitize(digits.planted, digits.clean, holdout=digits.holdout, seed=2)
    accuracy, success = digits.rates(result.model)
    assert success <= 0.10
    assert accuracy >= accuracy_before - 0.04
    assert result.accepted
    assert result.reason.startswith("accuracy is back within its budget: ")
    assert digits.rates(digits.planted) == (accuracy_before, success_before)


def test_fine_tuning_keeps_the_backdoor_though_accuracy_is_back(digits: Digits) -> None:
    """What sets the method apart: the verdict of both is the same, and only one of them removes anything."""
    result = seamfast.sanitize(digits.planted, digits.clean, method="fine_tune", holdout=digits.holdout, seed=2)
    accuracy, success = digits.rates(result.model)
    assert success > 0.5
    assert accuracy > 0.95
    assert result.accepted


def test_a_model_without_a_backdoor_stays_as_good(digits: Digits) -> None:
    before, _ = digits.rates(digits.innocent)
    clean = seamfast.load("digits").draw(0.1, seed=2)
    result = seamfast.sanitize(digits.innocent, clean, holdout=digits.holdout, seed=2, precision="fp32")
    after, _ = digits.rates(result.model)
    assert after >= before - 0.06  # 140 images of 8x8 pixels are little to hold the task with
    assert result.accepted


# 2. The held-out part is never trained on.


class Wrapped(nn.Module):
    """``inner``, and the number ``n`` of its forward passes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.n = inner, 0

    def forward(self, images: Tensor) -> Tensor:
        self.n += 1
        logits: Tensor = self.inner(images)
        return logits


class NoisyAlways(Wrapped):
    """Draws in eval mode too, as models do that average over dropout."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(images, 0.1, training=True))


@pytest.mark.parametrize("method", METHODS)
def test_what_the_held_out_images_show_changes_no_weight(method: str, tiny_model: Make, tiny_data: CleanSet) -> None:
    """Schedules of fixed length and no pruning, so that answers on the held-out part steer nothing."""
    config = replace(METHODS[method], prune=False)
    if method == "seam":
        config = replace(SHORT, forget_until=0.0, radius=0.3, margin=0.0, invariances=False, prune=False)
    split = split_by_class(tiny_data.labels, holdout_fraction=config.holdout_fraction, forget_fraction=1.0, seed=0)
    images = tiny_data.inputs.clone()
    images[split.holdout] = 255 - images[split.holdout].flip(0)
    other = CleanSet(images, tiny_data.labels, mean=0.4, std=0.25, num_classes=4)
    one = seamfast.sanitize(tiny_model(), tiny_data, method=method, config=config)
    two = seamfast.sanitize(tiny_model(), other, method=method, config=config)
    assert digest(one.model) == digest(two.model)
    assert one.report["holdout"]["before"] != two.report["holdout"]["before"]  # it was the held-out part


class Tagged(nn.Module):
    """Notes which images it sees in train mode and in eval mode: each has a grey of its own.

    Patterns never cover half of an image, so the commonest pixel value is that of an image of the batch.
    """

    seen: dict[bool, set[int]]

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 4)
        self.seen = {True: set(), False: set()}

    def __deepcopy__(self, memo: Any) -> Tagged:
        made = Tagged()
        made.load_state_dict(self.state_dict())
        made.seen = self.seen  # shared: the notes of the copies are what the test reads
        return made

    def forward(self, images: Tensor) -> Tensor:
        tags = (images.flatten(1) * 255).round().int().mode(1).values
        self.seen[self.training] |= set(tags.tolist())
        logits: Tensor = self.head(images.mean((1, 2, 3))[:, None])
        return logits


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize(("method", "occlusions"), [("seam", 0), ("seam", 3), ("fine_tune", 0), ("super_fine_tune", 0)])
def test_no_held_out_image_is_ever_trained_on(method: str, occlusions: int) -> None:
    data = CleanSet(torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 32, 32), torch.arange(200) % 4)
    config: Any = {
        "seam": SeamConfig(
            forget_max_steps=10, recover_max_steps=20, batch_size=32, occlusions=occlusions, mixing=0.0,
            distillation=0.0, disturbance=0.0, waves=0.0, strengths=(1.0, 0.5),
        ),
        "fine_tune": FineTuneConfig(max_steps=20, batch_size=32),
        "super_fine_tune": SuperFineTuneConfig(forget_steps=10, recover_steps=10, batch_size=32),
    }[method]  # fmt: skip
    model = Tagged()
    result = seamfast.sanitize(model, data, method=method, config=config)
    split = split_by_class(data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    assert model.seen[True] == set(split.recovery.tolist())  # all of the recovery part, and nothing else
    assert not model.seen[True] & set(split.holdout.tolist())
    assert set(split.holdout.tolist()) <= model.seen[False]
    assert result.report["data"]["n_holdout"] == len(split.holdout) == 40


# 3. The given model stays as it is, however the run ends.


@dataclass
class Snapshot:
    """All that a caller can see of a model."""

    tensors: dict[str, tuple[torch.dtype, torch.device, bytes]]
    pointers: list[int]
    grads: list[tuple[int, bytes] | None]
    trainable: list[bool]
    modes: list[bool]
    hooks: list[list[int]]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        def raw(tensor: Tensor) -> bytes:
            return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

        parameters = list(model.parameters())
        tensors = [*model.named_parameters(), *model.named_buffers()]
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        return cls(
            tensors={name: (t.dtype, t.device, raw(t)) for name, t in tensors},
            pointers=[t.data_ptr() for _, t in tensors],
            grads=[None if p.grad is None else (p.grad.data_ptr(), raw(p.grad)) for p in parameters],
            trainable=[p.requires_grad for p in parameters],
            modes=[m.training for m in model.modules()],
            hooks=[[id(hook) for hook in getattr(m, kind).values()] for m in model.modules() for kind in kinds],
        )


class NanAfter(Wrapped):
    """Returns NaN from its k-th forward pass in train mode on."""

    def __init__(self, inner: nn.Module, k: int) -> None:
        super().__init__(inner)
        self.k = k

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        self.n -= not self.training
        return logits * math.nan if self.n > self.k else logits


class InterruptAfter(NanAfter):
    """Ctrl-C in its k-th forward pass, of any mode."""

    def forward(self, images: Tensor) -> Tensor:
        if self.n >= self.k:
            raise KeyboardInterrupt
        return Wrapped.forward(self, images)


class At(seamfast.Callback):
    """Does something at one event of one step."""

    def __init__(self, step: int, action: Callable[[Any], None], event: str = "on_step_end") -> None:
        def hook(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                action(control)

        setattr(self, event, hook)


def interrupt(control: Any) -> None:
    raise KeyboardInterrupt


def stop(control: Any) -> None:
    control.should_training_stop = True


def well_used(model: nn.Module) -> nn.Module:
    """With grads, frozen parameters, mixed modes and hooks."""
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    model[9].weight.grad = torch.full_like(model[9].weight, 3.0)
    model[2].register_forward_hook(lambda *args: None)
    model[3].register_forward_pre_hook(lambda *args: None)
    model[9].register_full_backward_hook(lambda *args: None)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_the_given_model_stays_as_it_is(method: str, dtype: torch.dtype, tiny_model: Make, tiny_data: CleanSet) -> None:
    model = well_used(tiny_model()).to(dtype)
    before = Snapshot.of(model)
    assert sum(map(len, before.hooks)) == 3
    result = seamfast.sanitize(model, tiny_data, method=method, config=METHODS[method], triggers=[Patch.square(2)])
    assert Snapshot.of(model) == before
    assert digest(result.model) != digest(model)
    assert not {t.data_ptr() for t in result.model.state_dict().values()} & set(before.pointers)


@pytest.mark.parametrize("ending", ["nan", "stopped", "interrupted", "broken"])
def test_the_given_model_stays_as_it_is_however_the_run_ends(
    ending: str, tiny_model: Make, tiny_data: CleanSet
) -> None:
    def fail(control: Any) -> None:
        raise SystemExit  # another exception would be a warning

    model = well_used(tiny_model())
    if ending == "nan":
        model = NanAfter(model, 5).train()
    before = Snapshot.of(model)
    actions = {"stopped": stop, "interrupted": interrupt, "broken": fail}
    callbacks = [At(5, actions[ending])] if ending in actions else []
    try:
        result = seamfast.sanitize(model, tiny_data, config=SHORT, callbacks=callbacks)
        assert ending in ("nan", "stopped")
        assert result.model is not model
        assert Snapshot.of(result.model).modes == before.modes
        assert Snapshot.of(result.model).trainable == before.trainable
    except KeyboardInterrupt:
        assert ending == "interrupted"
    except SystemExit:
        assert ending == "broken"
    assert Snapshot.of(model) == before


# 4. Determinism.


class Dropped(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize(("method", "augments"), [*((method, False) for method in METHODS), ("seam", True)])
def test_the_seed_decides_alone_with_dropout_too(method: str, augments: bool, tiny_data: CleanSet) -> None:
    model = NoisyAlways(Dropped()) if augments else Dropped()

    def run(seed: int) -> str:
        data = Augmenting(tiny_data) if augments else tiny_data
        return digest(seamfast.sanitize(model, data, method=method, config=METHODS[method], seed=seed).model)

    first = run(7)
    torch.rand(13)  # whatever else draws from torch's generator
    assert run(7) == first
    assert run(8) != first


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize("ending", ["returned", "raised"])
def test_torchs_generator_is_left_where_it_was(ending: str, tiny_data: CleanSet) -> None:
    """Though dropout draws from it, and the loader that shuffles."""
    loader = DataLoader(TensorDataset(normalized(tiny_data), tiny_data.labels), 32, shuffle=True)
    model, state = Dropped(), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt) if ending == "raised" else nullcontext():
        seamfast.sanitize(model, loader, config=SHORT, callbacks=[At(3, interrupt)] if ending == "raised" else [])
    assert torch.equal(torch.get_rng_state(), state)


def test_measuring_more_often_changes_no_weight(tiny_data: CleanSet) -> None:
    """Also with a model that draws whenever it is called."""
    torch.manual_seed(1)
    model = NoisyAlways(Dropped())
    digests = {
        digest(seamfast.sanitize(model, tiny_data, method="fine_tune", config=config).model)
        for config in (FineTuneConfig(max_steps=6, eval_every=n) for n in (1, 4, 6))
    }
    assert len(digests) == 1


class Augmenting(Dataset[Any]):
    """``tiny_data`` as the model takes it, with noise of torch's on it, and a list of what was asked for."""

    def __init__(self, data: CleanSet, amount: float = 0.5) -> None:
        self.inputs, self.labels, self.amount = normalized(data), data.labels, amount
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read.append(index)
        return self.inputs[index] + self.amount * torch.randn(1, 8, 8), self.labels[index]


class AtBegin:
    """Counts what was read before the first step."""

    def __init__(self, data: Augmenting) -> None:
        self.data, self.n_read = data, 0

    def on_train_begin(self, settings: Any, state: Any, control: Any, **others: Any) -> None:
        self.n_read = len(self.data.read)


@pytest.mark.parametrize("method", METHODS)
def test_a_loader_that_augments_is_read_anew_for_every_step_and_never_for_the_held_out_part(
    method: str, tiny_model: Make, tiny_data: CleanSet
) -> None:
    data = Augmenting(tiny_data)
    loader, at_begin = DataLoader(data, batch_size=32, shuffle=True), AtBegin(data)
    options: dict[str, Any] = {"method": method, "config": METHODS[method], "callbacks": [at_begin], "seed": 3}
    result = seamfast.sanitize(tiny_model(), loader, **options)
    report = result.report
    validator().validate(report)
    assert report["data"]["reading"] == "every epoch"
    assert at_begin.n_read == 160 + 64
    trained_on = data.read[at_begin.n_read :]
    assert len(trained_on) == sum(report["run"]["steps"].values()) * options["config"].batch_size
    held_out = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=3).holdout.tolist()
    assert not set(trained_on) & set(held_out)
    assert digest(seamfast.sanitize(tiny_model(), loader, **options).model) == digest(result.model)

    frozen = seamfast.sanitize(tiny_model(), loader, augments=False, **options)
    assert frozen.report["data"]["reading"] == "once"
    assert digest(frozen.model) != digest(result.model)


@pytest.mark.parametrize(("augments", "n_read"), [(None, 160 + 64), (False, 160)])
def test_a_loader_that_does_not_augment_is_read_once(
    augments: bool | None, n_read: int, tiny_model: Make, tiny_data: CleanSet
) -> None:
    data = Augmenting(tiny_data, amount=0.0)
    result = seamfast.sanitize(tiny_model(), DataLoader(data, batch_size=32), config=SHORT, augments=augments)
    assert result.report["data"]["reading"] == "once"
    assert len(data.read) == n_read
    again = Augmenting(tiny_data, amount=0.0)
    forced = seamfast.sanitize(tiny_model(), again, config=SHORT, augments=True)
    assert forced.report["data"]["reading"] == "every epoch"
    assert digest(forced.model) == digest(result.model)  # the same samples, whichever way they come
    data.read.clear()
    seamfast.evaluate(tiny_model(), data)
    assert data.read == list(range(160))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grads_may_be_off_where_it_is_called(mode: Any, tiny_model: Make, tiny_data: CleanSet) -> None:
    wanted = seamfast.sanitize(tiny_model(), tiny_data, config=SHORT).model
    model = tiny_model()
    with mode():
        got = seamfast.sanitize(model, tiny_data, config=SHORT).model
        assert not torch.is_grad_enabled()
    assert digest(got) == digest(wanted)
    assert not any(p.is_inference() for p in got.parameters())


# 5. The forms of the data.


class Pairs(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


class Named(nn.Module):
    """Called as image models of Hugging Face are, and answering as they do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: Tensor, output_attentions: bool = False) -> Any:
        assert pixel_values.ndim == 4
        return SimpleNamespace(loss=None, logits=self.inner(pixel_values))


def batches(data: CleanSet, size: int = 48) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(normalized(data).split(size), data.labels.split(size), strict=True)


def named_batches(data: CleanSet, name: str) -> list[dict[str, Tensor]]:
    return [{name: x, "labels": y} for x, y in batches(data)]


FORMS: dict[str, Callable[[CleanSet], Any]] = {
    "CleanSet of floats": lambda d: CleanSet(normalized(d), d.labels, mean=0.4, std=0.25),
    "pair of tensors": lambda d: (normalized(d), d.labels),
    "pair of arrays": lambda d: (normalized(d).numpy(), d.labels.numpy()),
    "arrays of other dtypes": lambda d: (normalized(d).double().numpy(), d.labels.numpy().astype("uint8")),
    "Dataset": lambda d: Pairs(normalized(d), d.labels),
    "DataLoader": lambda d: DataLoader(Pairs(normalized(d), d.labels), batch_size=32),
    "larger batch than the set": lambda d: DataLoader(Pairs(normalized(d), d.labels), batch_size=5000),
    "shuffling": lambda d: DataLoader(Pairs(normalized(d), d.labels), batch_size=32, shuffle=True),
    "shuffling small batches": lambda d: DataLoader(TensorDataset(normalized(d), d.labels), 7, shuffle=True),
}
ITERABLES: dict[str, Callable[[CleanSet], Any]] = {
    "list of tuples": lambda d: list(batches(d)),
    "list of lists": lambda d: [list(batch) for batch in batches(d)],
    "generator": lambda d: batches(d),
    "batches named otherwise": lambda d: named_batches(d, "img"),
}


@pytest.mark.parametrize("forms", [FORMS, ITERABLES], ids=["ordered", "iterables"])
def test_the_form_of_the_data_does_not_matter(
    forms: dict[str, Callable[[CleanSet], Any]], tiny_model: Make, tiny_data: CleanSet
) -> None:
    results = {name: seamfast.sanitize(tiny_model(), form(tiny_data), config=SHORT) for name, form in forms.items()}
    assert {len(r.model.state_dict()) for r in results.values()} == {16}
    digests = {name: digest(r.model) for name, r in results.items()}
    assert len(set(digests.values())) == 1, digests
    assert {r.report["data"]["n_samples"] for r in results.values()} == {160}


def test_pixels_in_a_clean_set(tiny_model: Make, tiny_data: CleanSet) -> None:
    config = replace(SHORT, crop_pad=1, flip=True)
    result = seamfast.sanitize(tiny_model(), tiny_data, config=config)
    assert result.report["run"]["stopped"] is None
    assert result.report["holdout"]["before"]["clean_accuracy"]["value"] > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_batches_as_an_image_model_of_hugging_face_takes_them(
    method: str, tiny_model: Make, tiny_data: CleanSet
) -> None:
    result = seamfast.sanitize(
        Named(tiny_model()), named_batches(tiny_data, "pixel_values"), method=method, config=METHODS[method]
    )
    assert result.report["run"]["stopped"] is None
    assert result.report["holdout"]["before"]["clean_accuracy"]["value"] > 0.9
    logits = result.model(pixel_values=normalized(tiny_data)[:3]).logits
    assert logits.shape == (3, 4)


@pytest.mark.usefixtures("guessers_are_trained")
def test_several_named_inputs(tiny_data: CleanSet) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.EmbeddingBag(10, 8), nn.Linear(8, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.words(input_ids * attention_mask))}

    ids = torch.randint(1, 10, (60, 5))
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": (ids[:, 0] > 5).long()}]
    result = seamfast.sanitize(Two(), data, config=SHORT)
    assert result.report["run"]["stopped"] is None
    assert digest(result.model) != result.report["model"]["digest_before"]


@pytest.mark.parametrize(("shape", "studied"), [((1, 8, 8), True), ((8, 8), False), ((1, 1, 8, 8), False)])
def test_where_no_study_stands_behind_the_cure_the_verdict_says_so(
    tiny_model: Make, tiny_data: CleanSet, enlarged: Enlarged, shape: tuple[int, ...], studied: bool
) -> None:
    """Acceptance is about accuracy alone, and must not be read as more."""
    note = (
        "the checks are about accuracy alone, and no study has measured the cure on samples of kind 'tensor': nothing "
        "is known about backdoors that it leaves in such models"
    )
    data = enlarged(tiny_data, 4)
    inputs = normalized(data).reshape(len(data), *shape)
    model = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 8, 8)), tiny_model())
    result = seamfast.sanitize(model, (inputs, data.labels), method="fine_tune", config=METHODS["fine_tune"])
    assert result.accepted, result.reason
    assert result.reason.endswith(f"; {note}") is not studied
    assert (note in result.report["warnings"]) is not studied
    assert ("study" in str(result.report)) is not studied


def test_of_tables_the_verdict_says_what_the_study_found_left(
    tiny_model: Make, tiny_data: CleanSet, enlarged: Enlarged
) -> None:
    data = enlarged(tiny_data, 4)
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), tiny_model())
    rows = normalized(data).reshape(len(data), 64)
    result = seamfast.sanitize(model, (rows, data.labels), method="fine_tune", config=METHODS["fine_tune"])
    note = (
        "the checks are about accuracy alone, and in the study of samples of kind 'tabular' the cure left backdoors in "
        f"some: {TabularModality.remains}"
    )
    assert result.accepted, result.reason
    assert result.reason.endswith(f"; {note}")
    assert note in result.report["warnings"]


def test_inputs_without_patterns_are_warned_of(tiny_data: CleanSet) -> None:
    """Patterns need images or columns; without them the cure is weaker, and a reader must know."""
    prefix, end = "samples of kind 'tensor' cannot have ", ": left out, a weaker cure"
    images, flat = normalized(tiny_data), normalized(tiny_data).flatten(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    for method, config, inputs, left_out in (
        ("seam", SHORT, flat, ["invariances", "occlusions", "waves"]),
        ("seam", replace(SHORT, invariances=False, occlusions=0), flat, ["waves"]),
        ("seam", replace(SHORT, invariances=False, occlusions=0, waves=0.0), flat, []),
        ("seam", SHORT, images, []),
        ("fine_tune", METHODS["fine_tune"], flat, []),
    ):
        report = seamfast.sanitize(model, (inputs, tiny_data.labels), method=method, config=config).report
        wanted = [prefix + ", ".join(left_out) + end] if left_out else []
        assert [w for w in report["warnings"] if w.startswith(prefix)] == wanted


def test_fewer_samples_than_a_batch(tiny_model: Make, tiny_data: CleanSet) -> None:
    few = tiny_data.subset(range(8))
    result = seamfast.sanitize(tiny_model(), few, config=SHORT)
    data = result.report["data"]
    assert (data["n_holdout"], data["n_recovery"], data["n_forget"]) == (4, 4, 4)
    assert result.report["run"]["steps"]["recover"] == 6


# 6. How a run can end.


@pytest.mark.parametrize(
    ("ending", "why", "steps"),
    [
        *((("nan", n), f"the loss became nan in the forget phase at step {n}", n) for n in (0, 2)),
        *((("nan", n), f"the loss became nan in the recover phase at step {n}", n) for n in (4, 9)),
        *((("stop", n), f"stopped by a callback in the forget phase after step {n}", n) for n in (1, 3)),
        (("stop", 7), "stopped by a callback in the recover phase after step 7", 7),
        (("time", 1e-6), "the time budget of 1e-06 s was used up before the forget phase began", 0),
    ],
)
def test_a_run_that_breaks_off_gives_the_model_back_as_received(
    ending: tuple[str, Any], why: str, steps: int, tiny_model: Make, tiny_data: CleanSet
) -> None:
    config = SeamConfig(forget_rate=STILL, forget_max_steps=4, recover_max_steps=6, strengths=(1.0, 0.5))
    kind, at = ending
    given = NanAfter(tiny_model(), at) if kind == "nan" else tiny_model()
    callbacks, budget = [At(at, stop)] if kind == "stop" else [], at if kind == "time" else None
    result = seamfast.sanitize(given, tiny_data, config=config, callbacks=callbacks, time_budget_s=budget)
    report = result.report
    validator().validate(report)
    assert not result.accepted
    assert result.reason == f"{why}; the model is returned as received"
    assert report["run"]["stopped"] == why
    assert report["model"]["returned"] == "received"
    assert digest(result.model) == digest(given) == report["model"]["digest_after"]
    assert report["holdout"]["after"] == report["holdout"]["before"]
    assert sum(report["run"]["steps"].values()) == steps
    assert report["run"]["n_attempts"] == 1
    assert report["time_budget_s"] == budget
    assert kind != "time" or result.history == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_returned_as_received_is_so_to_the_bit(
    dtype: torch.dtype, tiny_model: Make, tiny_data: CleanSet
) -> None:
    model = tiny_model().to(dtype)
    with torch.no_grad():
        model[9].bias += 1e-12  # beyond float32
    model[9].bias.grad = torch.ones_like(model[9].bias)
    result = seamfast.sanitize(model, tiny_data, config=SHORT, callbacks=[At(3, stop)])
    assert digest(result.model) == digest(model)
    assert result.model is not model
    assert all(p.grad is None for p in result.model.parameters())


def test_nan_after_the_last_step_is_not_returned(tiny_model: Make, tiny_data: CleanSet) -> None:
    """Weights can turn bad in the last update, when no loss comes after it."""

    class Poison(seamfast.Callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                nn.init.constant_(kwargs["model"][9].bias, math.nan)

    model = tiny_model()
    result = seamfast.sanitize(model, tiny_data, method="fine_tune", config=METHODS["fine_tune"], callbacks=[Poison()])
    assert result.reason == "the sanitized model returned NaN on held-out data; the model is returned as received"
    assert not result.accepted
    assert digest(result.model) == digest(model)


@pytest.mark.parametrize("event", ["on_step_end", "on_step_begin", "on_evaluate"])
def test_ctrl_c_in_a_callback(event: str, tiny_model: Make, tiny_data: CleanSet) -> None:
    config = SeamConfig(forget_rate=STILL, forget_max_steps=4, recover_max_steps=6)
    with pytest.raises(SanitizeInterrupted) as caught:
        seamfast.sanitize(tiny_model(), tiny_data, config=config, callbacks=[At(2, interrupt, event)])
    assert isinstance(caught.value, KeyboardInterrupt)
    assert not isinstance(caught.value, Exception)  # "except Exception" must not swallow it
    assert str(caught.value) == "interrupted in the forget phase at step 2"
    report = caught.value.report
    assert isinstance(report, Report)
    validator().validate(report)
    assert report["run"]["stopped"] == "interrupted in the forget phase at step 2"
    assert report["run"]["steps"] == {"forget": 2}
    assert report["holdout"]["before"]["clean_accuracy"]["n_total"] == 32
    assert report["holdout"]["after"] is None
    assert report["verdict"]["accepted"] is False
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("k", "message"), [(1, "interrupted in the first phase at step 0"), (6, "interrupted in the ")]
)
def test_ctrl_c_in_the_model(k: int, message: str, tiny_model: Make, tiny_data: CleanSet) -> None:
    """Ctrl-C may come at any moment: also before there is anything to report."""
    model = InterruptAfter(tiny_model(), k)
    before = Snapshot.of(model)
    with pytest.raises(SanitizeInterrupted, match=f"^{message}") as caught:
        seamfast.sanitize(model, tiny_data, config=SHORT, precision="fp32")  # found by no trial, which is a pass too
    assert Snapshot.of(model) == before
    assert model.n == 0
    if k == 1:
        assert caught.value.report is None
    else:
        validator().validate(caught.value.report)


class Slow(Wrapped):
    """Takes ``pause_s`` more for each forward pass."""

    pause_s = 0.0

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.pause_s)
        return super().forward(images)


class Moves(seamfast.Callback):
    """How far each step of the recovery moves the last layer, and the longest time from one step to the next."""

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self.longest_s = 0.0
        self._time = time.perf_counter()
        self._weight: Tensor | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        weight, now = list(kwargs["model"].parameters())[-2].detach().clone(), time.perf_counter()
        if state.phase == "recover" and self._weight is not None:
            self.lengths.append(float((weight - self._weight).norm()))
        self.longest_s = max(self.longest_s, now - self._time)
        self._weight, self._time = weight, now


def test_a_time_budget_is_kept_and_the_schedule_runs_to_its_end(tiny_model: Make, tiny_data: CleanSet) -> None:
    """Hundreds of steps of at least 20 ms would take many times as long."""
    budget, moves = 1.5, Moves()
    begin = time.perf_counter()
    model = Slow(tiny_model())
    model.pause_s = 0.01
    result = seamfast.sanitize(model, tiny_data, time_budget_s=budget, callbacks=[moves])
    took = time.perf_counter() - begin
    reserve = 3 * moves.longest_s  # a step and an evaluation; a machine with other work may be slow at any of them
    assert took < budget + reserve
    assert took > 0.8 * budget - reserve  # it uses what it may
    report = result.report
    assert report["run"]["time_ran_out"] is True
    assert report["run"]["steps"]["recover"] < SeamConfig().recover_max_steps / 2
    assert report["run"]["stopped"] is None
    assert report["run"]["seconds"]["total"] <= took + 0.001
    assert report["run"]["seconds"]["forget"] < 0.5 * budget + reserve  # recovery has the most of it
    steps = ", ".join(f"{k} {v}" for k, v in report["run"]["steps"].items())
    assert f"the time budget of 1.5 s cut the run short; steps taken: {steps}" in report["warnings"]
    # The rates follow the time: the last step is a small one, though the schedule was planned for many more.
    assert moves.lengths[-1] < (0.2 + reserve / budget) * max(moves.lengths)
    validator().validate(report)


@pytest.mark.parametrize("preset", ["fast", "balanced", "thorough", None])
def test_a_preset_is_a_config_by_name(preset: str | None, tiny_model: Make, tiny_data: CleanSet) -> None:
    result = seamfast.sanitize(tiny_model(), tiny_data, preset=preset, callbacks=[At(1, stop)])
    assert result.report["config"] == SeamConfig.preset(preset or "balanced").to_dict()
    assert result.report["method"] == "seam"


def test_a_generous_time_budget_changes_nothing(tiny_model: Make, tiny_data: CleanSet) -> None:
    free = seamfast.sanitize(tiny_model(), tiny_data, config=SHORT)
    bound = seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, time_budget_s=3600)
    assert digest(free.model) == digest(bound.model)
    assert bound.report["run"]["time_ran_out"] is False
    assert free.report["time_budget_s"] is None


def test_accuracy_that_does_not_come_back_is_not_accepted(tiny_model: Make, tiny_data: CleanSet) -> None:
    config = SeamConfig(
        forget_rate=1.0, forget_max_steps=3, recover_rate=STILL, recover_max_steps=2, strengths=(1.0, 0.9, 0.8)
    )
    result = seamfast.sanitize(tiny_model(), tiny_data, config=config)
    assert not result.accepted
    before, after = (result.report["holdout"][when]["clean_accuracy"]["n_hit"] for when in ("before", "after"))
    assert before - after > 5
    assert result.reason.startswith(
        f"accuracy did not come back within its budget: held-out accuracy {after / 32:.2%} after, {before / 32:.2%} "
        f"before (n = 32): {before - after} samples lost, 1 allowed by the budget of 3.0%; the model as received is "
        "right on 100.0% of them at a mean confidence of "
    )
    assert result.report["run"]["n_attempts"] == 2  # the second helped nothing, and a third one was not tried
    assert result.report["model"]["returned"] == "sanitized"
    assert result.report["run"]["stopped"] is None


@pytest.mark.parametrize(
    ("lost", "budget", "is_back"), [(3, 0.1, True), (4, 0.1, False), (1, 0.01, True), (1, 0, False)]
)
def test_as_many_samples_may_be_lost_as_the_budget_says(lost: int, budget: float, is_back: bool) -> None:
    """32 held-out samples; a tenth is 3. Where one sample weighs more than the budget, one may be lost."""

    class Table(nn.Module):
        """Knows each image by its grey, and has a logit for it."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(10 * torch.eye(4)[torch.arange(160) % 4])

        def forward(self, images: Tensor) -> Tensor:
            return self.table[(images[:, 0, 0, 0] * 255).round().long().clamp(0, 159)]

    class Lose(seamfast.Callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                kwargs["model"].table[held_out[:lost]] *= -1

    images = torch.arange(160, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data = CleanSet(images, torch.arange(160) % 4)
    held_out = split_by_class(data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0).holdout
    config = FineTuneConfig(max_steps=1, rate=STILL, accuracy_budget=budget, accuracy_limit=1.0)
    result = seamfast.sanitize(Table(), data, method="fine_tune", config=config, callbacks=[Lose()])
    assert result.report["holdout"]["after"]["clean_accuracy"]["n_hit"] == 32 - lost
    assert result.accepted is is_back
    assert result.accepted is result.report["verdict"]["accepted"]
    allowed = {0.1: 3, 0.01: 1, 0: 0}[budget]
    assert f"{lost} samples lost, {allowed} allowed by the budget of {budget:.1%}" in result.reason


def test_a_model_that_guesses_is_not_accepted(tiny_model: Make, tiny_data: CleanSet) -> None:
    """By its weights, or for the wrong normalization."""
    guessing = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.zeros_(guessing[1].weight)
    nn.init.zeros_(guessing[1].bias)
    wrong = CleanSet(tiny_data.inputs, tiny_data.labels, mean=60.0, std=0.25)
    for model, data in ((guessing, tiny_data), (tiny_model(), wrong)):
        result = seamfast.sanitize(model, data, config=SHORT)
        assert not result.accepted
        assert result.reason == (
            "the model as received is right on 40 of 160 clean samples, not measurably more than guessing (25.0%): "
            "class 0 takes 100% of the predictions: check the normalization; the model is returned as received"
        )


# 7. What acceptance rests on.


def outcomes(result: seamfast.SanitizeResult) -> dict[str, bool | None]:
    return {check["name"]: check["passed"] for check in result.report["verdict"]["checks"]}


PASSED = {
    "better than guessing": True,
    "completed": True,
    "recovery not cut short": True,
    "held-out samples not augmented": True,
    "accuracy within its budget": True,
    "bound on the loss within its limit": True,
}
GENTLE = FineTuneConfig(max_steps=10, rate=1e-4)


def test_held_out_samples_from_outside_decide(tiny_model: Make, tiny_data: CleanSet, enlarged: Enlarged) -> None:
    """All of the clean data are trained on; the held-out samples are only ever asked in eval mode."""
    holdout = enlarged(tiny_data, 1)
    result = seamfast.sanitize(tiny_model(), tiny_data, method="fine_tune", config=GENTLE, holdout=holdout)
    report = result.report
    validator().validate(report)
    assert (result.outcome, result.accepted) == ("accepted", True)
    assert outcomes(result) == PASSED
    data = report["data"]
    assert (data["n_samples"], data["n_recovery"], data["n_forget"], data["n_holdout"]) == (160, 160, 160, 160)
    assert (data["holdout_source"], data["class_counts"]) == ("given", [40] * 4)
    assert report["verdict"]["rests_on"] == "the 160 samples of holdout=, none of them trained on in this run"
    wanted = seamfast.evaluate(result.model, holdout).clean_accuracy
    assert report["holdout"]["after"]["clean_accuracy"]["n_hit"] == wanted.n_hit
    lost = report["verdict"]["accuracy_lost"]
    assert (lost["n_total"], lost["n_lost"]) == (160, 0)
    assert report["warnings"] == []


def test_no_sample_that_is_held_out_is_trained_on() -> None:
    images = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)
    labels = (torch.arange(200) >= 100).long()
    model = Tagged()
    with torch.no_grad():  # bright images are of class 1
        model.head.weight.copy_(torch.tensor([[-9.0], [9.0], [0.0], [0.0]]))
        model.head.bias.copy_(torch.tensor([3.5, -3.5, -9.0, -9.0]))
    shared = torch.arange(0, 200, 3)
    result = seamfast.sanitize(
        model, (images, labels), holdout=(images[shared], labels[shared]), method="fine_tune",
        config=FineTuneConfig(max_steps=20, batch_size=32),
    )  # fmt: skip
    assert model.seen[True] == set(range(200)) - set(shared.tolist())
    assert set(shared.tolist()) <= model.seen[False]
    assert (result.report["data"]["n_samples"], result.report["data"]["n_holdout"]) == (133, 67)
    assert "67 samples of clean_loader are in holdout too: not trained on" in result.report["warnings"]


def test_too_few_held_out_samples_leave_it_undecided(tiny_model: Make, tiny_data: CleanSet) -> None:
    result = seamfast.sanitize(tiny_model(), tiny_data, method="fine_tune", config=GENTLE)
    assert (result.outcome, result.accepted) == ("undecided", False)
    assert outcomes(result) == PASSED | {"bound on the loss within its limit": False}
    assert result.reason.startswith(
        "32 held-out samples cannot tell a loss within the limit of 6.0% from a larger one: "
    )
    assert "about 49 samples would: give more clean data, or holdout=; the model as received" in result.reason
    assert "split by class and not trained on in this run; if the model" in result.report["verdict"]["rests_on"]
    wide = replace(GENTLE, accuracy_limit=0.09)
    assert seamfast.sanitize(tiny_model(), tiny_data, method="fine_tune", config=wide).accepted


def test_repeated_samples_are_counted_once(tiny_model: Make, tiny_data: CleanSet) -> None:
    """Though there are 1,600 samples, 32 are held out: as little can be told as of the 160 that differ."""
    repeated = tiny_data.subset(torch.arange(160).repeat(10))
    result = seamfast.sanitize(tiny_model(), repeated, method="fine_tune", config=GENTLE)
    data = result.report["data"]
    assert (data["n_samples"], data["n_recovery"], data["n_holdout"]) == (1600, 1280, 32)
    assert result.outcome == "undecided"
    told = "1,440 of 1,600 samples of clean_loader repeat others: they are trained on, and held out once"
    assert told in result.report["warnings"]
    few = tiny_data.subset([*range(128), *range(28)])
    given = seamfast.sanitize(
        tiny_model(), few, holdout=tiny_data.subset(range(128, 160)), method="fine_tune", config=GENTLE
    )
    assert (
        "28 of 156 samples of clean_loader repeat others: they are trained on, and held out once"
        in (given.report["warnings"])
    )


class Transformed(Dataset[Any]):
    """``tiny_data`` as image sets have it: each image passes through ``transform``."""

    def __init__(self, data: CleanSet, transform: Callable[[Tensor], Tensor]) -> None:
        self.inputs, self.labels, self.transform = normalized(data), data.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.inputs[index]), self.labels[index]


def test_nothing_is_accepted_on_held_out_samples_that_are_augmented(
    tiny_model: Make, tiny_data: CleanSet, enlarged: Enlarged
) -> None:
    data = enlarged(tiny_data, 2)
    augmented = Transformed(data, lambda image: image + 0.1 * torch.randn(1, 8, 8))
    options: dict[str, Any] = {"method": "fine_tune", "config": GENTLE}
    refused = seamfast.sanitize(tiny_model(), augmented, **options)
    assert (refused.outcome, refused.accepted) == ("undecided", False)
    assert outcomes(refused) == PASSED | {"held-out samples not augmented": False}
    assert refused.reason == (
        "clean_loader augments, so its held-out samples are draws and say little of the model: give eval_transform= or "
        "holdout=, or let the dataset have an attribute eval_transform"
    )
    assert refused.reason in refused.report["warnings"]

    plain = seamfast.sanitize(tiny_model(), augmented, eval_transform=lambda image: image, **options)
    assert plain.accepted
    assert plain.report["data"]["reading"] == "every epoch"
    held_out = split_by_class(data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0).holdout
    wanted = seamfast.evaluate(plain.model, (augmented.inputs[held_out], data.labels[held_out])).clean_accuracy
    assert plain.report["holdout"]["after"]["clean_accuracy"]["n_hit"] == wanted.n_hit

    given = seamfast.sanitize(tiny_model(), augmented, holdout=(normalized(tiny_data), tiny_data.labels), **options)
    assert given.accepted
    assert given.report["data"]["reading"] == "every epoch"


def test_a_run_that_the_clock_cut_short_is_not_accepted(
    tiny_model: Make, tiny_data: CleanSet, enlarged: Enlarged
) -> None:
    """At 10 ms a step or more, a second ends recovery far from its end; nothing else is wrong with it."""
    slow = Slow(tiny_model())
    slow.pause_s = 0.01
    config = FineTuneConfig(max_steps=10_000, rate=1e-5, eval_every=10_000)
    result = seamfast.sanitize(
        slow,
        enlarged(tiny_data, 2),
        method="fine_tune",
        config=config,
        time_budget_s=1.0,
        precision="fp32",
    )
    assert result.report["run"]["time_ran_out"]
    assert (result.outcome, result.accepted) == ("refused", False)
    assert outcomes(result) == PASSED | {"recovery not cut short": False}
    assert re.fullmatch(
        r"the time budget cut recovery short: \d% of the recovery steps were taken; at least 50% are needed",
        result.reason,
    )


# 8. The report.


class CountSteps(seamfast.Callback):
    def __init__(self) -> None:
        self.by_phase: dict[str, int] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.by_phase[state.phase] = self.by_phase.get(state.phase, 0) + 1


@pytest.mark.parametrize("method", METHODS)
def test_the_report_holds_what_was_done(method: str, tiny_model: Make, tiny_data: CleanSet) -> None:
    model, counter, trigger = tiny_model(), CountSteps(), Patch.square(2)
    begin = time.perf_counter()
    result = seamfast.sanitize(
        model, tiny_data, method=method, config=METHODS[method], triggers=[trigger], callbacks=[counter], seed=11
    )
    took = time.perf_counter() - begin
    report = result.report
    validator().validate(report)
    assert Report.from_json(report.to_json()) == report
    assert (report["method"], report["seed"], report["config"]) == (method, 11, METHODS[method].to_dict())
    assert report["model"]["digest_before"] == digest(model)
    assert report["model"]["digest_after"] == digest(result.model) != digest(model)
    assert report["model"]["returned"] == "sanitized"
    assert report["model"]["n_parameters"] == sum(p.numel() for p in model.parameters())
    assert report["model"]["class"] == "torch.nn.modules.container.Sequential"

    data = report["data"]
    assert data["n_recovery"] + data["n_holdout"] == data["n_samples"] == 160
    assert (data["n_holdout"], data["num_classes"], data["class_counts"]) == (32, 4, [40] * 4)
    assert data["n_forget"] == data["n_recovery"]

    assert report["run"]["steps"] == counter.by_phase
    seconds = report["run"]["seconds"]
    assert seconds.keys() == counter.by_phase.keys() | {"evaluations", "total"}
    assert 0 < seconds["evaluations"] < seconds["total"]
    assert sum(seconds[phase] for phase in counter.by_phase) <= seconds["total"] + 0.002
    assert seconds["total"] <= took + 0.001
    assert all(v > 0 for v in seconds.values())

    assert [p.to_dict() for p in result.history] == report["history"]
    for earlier, later in pairwise(result.history):
        assert earlier.step < later.step
        assert earlier.seconds <= later.seconds
        assert earlier.attempt <= later.attempt
    assert result.history[-1].step == sum(counter.by_phase.values())

    # Before and after are what ``evaluate`` measures of the two models on the held-out samples.
    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=11)
    held_out = tiny_data.subset(split.holdout)
    for when, judged in (("before", model), ("after", result.model)):
        wanted = seamfast.evaluate(judged, held_out, triggers=[trigger])
        got = report["holdout"][when]
        assert got["clean_accuracy"]["n_hit"] == wanted.clean_accuracy.n_hit
        assert got["triggers"][0]["attack_success_rate"]["n_hit"] == wanted.triggers[0].n_hit
        assert got["triggers"][0]["attack_success_rate"]["n_total"] == wanted.triggers[0].n_eligible == 24
    assert result.history[-1].holdout_accuracy == report["holdout"]["after"]["clean_accuracy"]["value"]


def test_the_seconds_of_a_phase_are_those_of_its_steps(tiny_model: Make, tiny_data: CleanSet) -> None:
    """Slow in forgetting only: 8 steps and one evaluation of 30 ms, then 10 steps of next to nothing."""

    class Wake(seamfast.Callback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["model"].pause_s = 0.03 if state.phase == "forget" else 0.0

    config = SeamConfig(
        forget_rate=STILL, forget_max_steps=8, recover_max_steps=10, strengths=(1.0,), distillation=0.0,
        forget_eval_every=99, recover_eval_every=99,
    )  # fmt: skip
    result = seamfast.sanitize(Slow(tiny_model()), tiny_data, config=config, callbacks=[Wake()])
    seconds = result.report["run"]["seconds"]
    assert 9 * 0.03 <= seconds["forget"] <= seconds["total"]
    assert seconds["recover"] <= seconds["total"] - seconds["forget"] + 0.002
    assert seconds["recover"] < seconds["forget"]
    assert result.history[0].seconds >= 9 * 0.03


def test_the_forget_fraction_is_reported(tiny_model: Make, tiny_data: CleanSet) -> None:
    config = replace(METHODS["seam_authors"], forget_fraction=0.25, holdout_fraction=0.5)
    data = seamfast.sanitize(tiny_model(), tiny_data, method="seam_authors", config=config).report["data"]
    assert (data["n_holdout"], data["n_recovery"], data["n_forget"]) == (80, 80, 20)


def test_the_loss_of_a_point_is_the_mean_since_the_last_one(tiny_model: Make, tiny_data: CleanSet) -> None:
    def losses(eval_every: int) -> list[float]:
        config = FineTuneConfig(max_steps=6, eval_every=eval_every)
        return [p.loss for p in seamfast.sanitize(tiny_model(), tiny_data, method="fine_tune", config=config).history]

    single = losses(1)
    assert len(set(single)) == 6
    assert losses(4) == pytest.approx([sum(single[:4]) / 4, sum(single[4:]) / 2])


def test_missing_classes_and_a_coarse_held_out_part_are_warned_of(
    tiny_model: Make, tiny_data: CleanSet, enlarged: Enlarged
) -> None:
    part = tiny_data.subset(((tiny_data.labels == 0) | (tiny_data.labels == 2)).nonzero().flatten()[:40])
    result = seamfast.sanitize(tiny_model(), part, config=SHORT)
    assert result.report["warnings"] == [
        "one of 8 held-out samples weighs 12.5%, more than the accuracy budget of 3.0%: one may be lost",
        "no clean sample of 2 classes (1, 3): nothing defends their accuracy",
    ]
    assert result.report["data"]["class_counts"] == [20, 0, 20, 0]
    assert result.report["holdout"]["before"]["class_accuracy"][1]["n_total"] == 0
    assert seamfast.sanitize(tiny_model(), enlarged(tiny_data, 2), config=SHORT).report["warnings"] == []


def test_a_long_list_of_missing_classes_is_cut(tiny_data: CleanSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 30))
    warnings = seamfast.sanitize(model, tiny_data, config=SHORT).report["warnings"]
    assert (
        "no clean sample of 26 classes (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, ...): nothing defends their accuracy"
        in warnings
    )


def test_the_result_is_frozen(tiny_model: Make, tiny_data: CleanSet) -> None:
    result = seamfast.sanitize(tiny_model(), tiny_data, config=SHORT)
    with pytest.raises(AttributeError):
        result.accepted = True  # type: ignore[misc]
    assert result.reason == result.report["verdict"]["reason"]
    assert copy.copy(result).accepted is result.accepted


def test_a_large_held_out_part_is_counted_whole_only_before_and_after(
    tiny_model: Make, tiny_data: CleanSet, enlarged: Enlarged
) -> None:
    """In between a slice that costs little beside the steps since the last time: the same samples each time."""
    evaluated: list[int] = []

    class Watches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model()

        def forward(self, images: Tensor) -> Tensor:
            if not self.training:
                evaluated.append(len(images))
            logits: Tensor = self.inner(images)
            return logits

    class At(seamfast.Callback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append(sum(evaluated))

    marks: list[int] = []
    large = enlarged(tiny_data, 50)  # 1600 held out
    config = FineTuneConfig(max_steps=25, eval_every=5, batch_size=256, rate=1e-4)
    result = seamfast.sanitize(Watches(), large, method="fine_tune", config=config, precision="fp32", callbacks=[At()])
    assert result.report["data"]["n_holdout"] == 1600
    slices = [after - before for before, after in pairwise(marks)]
    assert slices == [384] * 4  # 10 % of 5 steps of 256 samples, a forward pass being a third of a step
    assert marks[0] >= 1600 + 384
    assert sum(evaluated) - marks[-1] == 512 + 1600  # the former to find what is not used: nothing, so it is not pruned
    assert result.report["holdout"]["after"]["clean_accuracy"]["n_total"] == 1600


# Clean data that the model was trained on.


class Sure(nn.Module):
    """Right on samples that are marked by their first number, with the largest logit ``scale``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.head = scale, nn.Linear(4, 4)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(4))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.head(x)
        return logits


@pytest.mark.parametrize(("scale", "given", "named"), [(1.0, False, True), (40.0, False, False), (1.0, True, False)])
def test_a_model_that_is_less_sure_than_right_may_have_seen_the_clean_data(
    scale: float, given: bool, named: bool
) -> None:
    """One in ten is wrong. With logits of 1, the model is 48 % sure; with 40, all but certain."""
    labels = torch.arange(200) % 4
    answers = torch.where(torch.arange(200) % 10 == 0, (labels + 1) % 4, labels)
    inputs = torch.eye(4)[answers] + torch.linspace(0, 1e-3, 200)[:, None]
    options: dict[str, Any] = {"holdout": (inputs + 2e-3, labels)} if given else {}
    config = FineTuneConfig(max_steps=1, rate=1e-9, accuracy_budget=0.0, accuracy_limit=0.0)
    result = seamfast.sanitize(
        Sure(scale), (inputs, labels), method="fine_tune", config=config, precision="fp32", **options
    )
    assert not result.accepted
    assert (
        "usual on data that it was trained on; if it was, the loss is overestimated: give holdout=" in result.reason
    ) is named
