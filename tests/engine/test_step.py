"""The training step and its two ways: the ladder is walked on the CPU, with a capture that stands in for CUDA's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, SeamConfig
from seamfast.data.resident import Resident
from seamfast.engine import graph, step
from seamfast.engine.optimizer import SGD, Adam, RelativeAdam
from seamfast.engine.step import BatchPlan, Eager, Replayed, TrainingBatch, TrainingStep, stepper
from seamfast.modalities import NO_AUGMENTATION, Augmentation

Make = Callable[[], nn.Module]

CPU = torch.device("cpu")
N_STEPS = 14
SEAM = SeamConfig(forget_max_steps=13, forget_eval_every=5, recover_max_steps=15, recover_eval_every=6, crop_pad=1)


AUGMENTATION = Augmentation(pad=1, flip=True, seed=4)
PLAN = BatchPlan(
    of=torch.arange(40), batch_size=16, max_steps=N_STEPS, augmentation=AUGMENTATION, order_seed=3, first_epoch=2
)


def training_step(model: nn.Module, data: CleanSet, seen: list[TrainingBatch] | None = None) -> TrainingStep:
    def loss(batch: TrainingBatch) -> Tensor:
        if seen is not None:
            number = batch.number.clone() if isinstance(batch.number, Tensor) else batch.number
            seen.append(TrainingBatch(number, batch.indices.clone(), batch.labels, copy.deepcopy(batch.inputs)))
        return F.cross_entropy(model(batch.inputs), batch.labels)

    return TrainingStep(model.train(), Resident(data, CPU), loss, RelativeAdam(model))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in model.state_dict().values()])


def run(taken: Any, n_steps: int = N_STEPS) -> None:
    for number in range(n_steps):
        taken.take(0.01 + 0.001 * number)
    taken.close()


Body = Callable[[], None]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``captures(replay_of)``: the CPU gets graphs; what a capture of ``body`` replays is ``replay_of(body)``."""

    def allow(replay_of: Callable[[Body], Body] = lambda body: body) -> None:
        monkeypatch.setattr(graph, "why_not", lambda device: None)
        monkeypatch.setattr(graph, "_captured", lambda body, device, generators: replay_of(body))

    return allow


def test_the_batches_of_a_phase_are_wrap_around_passes(tiny_data: CleanSet, tiny_model: Make) -> None:
    seen: list[TrainingBatch] = []
    run(Eager(training_step(tiny_model(), tiny_data, seen), PLAN))
    data = Resident(tiny_data, CPU)
    first_pass = torch.cat([batch.indices for batch in seen])[:40]
    assert torch.equal(first_pass.sort().values, torch.arange(40))
    for number, batch in enumerate(seen):
        assert batch.number == number
        epoch = 2 + number // 3  # 40 samples in batches of 16
        assert torch.equal(batch.inputs, data.inputs(batch.indices, AUGMENTATION, epoch))
        assert torch.equal(batch.labels, tiny_data.labels[batch.indices])


@pytest.mark.parametrize("rows", [256, 4])
@pytest.mark.parametrize("on_device", [True, False])
def test_replays_see_and_do_what_eager_steps_do(
    tiny_data: CleanSet,
    tiny_model: Make,
    captures: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    on_device: bool,
) -> None:
    captures()
    monkeypatch.setattr(step, "_ROWS", rows)
    monkeypatch.setattr(Resident, "gathers_on_device", on_device)
    models, seen = (tiny_model(), tiny_model()), ([], [])
    eager = training_step(models[0], tiny_data, seen[0])
    replayed = training_step(models[1], tiny_data, seen[1])
    taken, how = stepper(replayed, PLAN, [])
    assert how == "cuda graph"
    assert torch.equal(weights(models[0]), weights(models[1])), "the trial has left something"
    seen[1].clear()
    run(Eager(eager, PLAN))
    run(taken)
    for a, b in zip(*seen, strict=True):
        assert int(b.number) == a.number
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.inputs, b.inputs)
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert eager.take_loss_sum() == replayed.take_loss_sum() > 0
    assert eager.take_loss_sum() == 0


def test_named_inputs_are_replayed_too(captures: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            logits: Tensor = self.head(a + b)
            return logits

    captures()
    for on_device in (True, False):
        monkeypatch.setattr(Resident, "gathers_on_device", on_device)
        data = CleanSet({"a": torch.randn(40, 3), "b": torch.randn(40, 3)}, torch.arange(40) % 2)
        made = []
        for way in (Eager, Replayed):
            torch.manual_seed(0)
            model = Sum()

            def loss(batch: TrainingBatch, model: nn.Module = model) -> Tensor:
                return F.cross_entropy(model(**batch.inputs), batch.labels)

            one = TrainingStep(model, Resident(data, CPU), loss, SGD(model))
            run(way(one, replace(PLAN, augmentation=NO_AUGMENTATION), *([[]] if way is Replayed else [])))
            made.append(weights(model))
        assert torch.equal(*made)


def frozen(body: Body) -> Body:
    return lambda: None


def other_batch(body: Body) -> Body:
    """A capture that goes on reading the first batch: the second replay sees it again."""
    owner = body.__self__  # type: ignore[attr-defined]

    def replay() -> None:
        owner._number.zero_()
        body()

    return replay


def refuses(body: Body) -> Body:
    raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


@pytest.mark.parametrize(
    ("replay_of", "why"),
    [
        (frozen, "two replays differ from two eager steps: their losses add up to 0 instead of "),
        (other_batch, "two replays differ from two eager steps: "),
        (refuses, "the step cannot be captured (RuntimeError: operation not permitted when stream is capturing)"),
    ],
)
def test_what_cannot_be_trusted_runs_eagerly_and_the_reason_is_given(
    tiny_data: CleanSet, tiny_model: Make, captures: Callable[..., None], replay_of: Callable[[Body], Body], why: str
) -> None:
    plain, tried = tiny_model(), tiny_model()
    run(Eager(training_step(plain, tiny_data), PLAN))
    captures(replay_of)
    before = torch.get_rng_state()
    taken, how = stepper(training_step(tried, tiny_data), PLAN, [])
    assert isinstance(taken, Eager)
    assert how.startswith("eager: " + why)
    assert torch.equal(torch.get_rng_state(), before)
    run(taken)
    assert torch.equal(weights(plain), weights(tried))


def test_a_model_that_replaces_its_buffers_runs_eagerly(tiny_data: CleanSet, captures: Callable[..., None]) -> None:
    class Replaces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 4)
            self.register_buffer("scale", torch.ones(()))

        def forward(self, images: Tensor) -> Tensor:
            self.scale = 0.9 * self.scale
            logits: Tensor = self.head(images.flatten(1)) * self.scale
            return logits

    torch.manual_seed(0)
    plain = Replaces()
    tried = copy.deepcopy(plain)
    run(Eager(training_step(plain, tiny_data), PLAN))
    captures()
    taken, how = stepper(training_step(tried, tiny_data), PLAN, [])
    assert how == "eager: the model puts another tensor in place of scale at each step"
    run(taken)
    assert torch.equal(weights(plain), weights(tried))


def test_few_steps_are_not_captured(tiny_data: CleanSet, tiny_model: Make, captures: Callable[..., None]) -> None:
    captures(refuses)
    _, how = stepper(training_step(tiny_model(), tiny_data), replace(PLAN, max_steps=11), [])
    assert how == "eager: 11 steps are fewer than capturing costs"


def test_a_processor_has_no_graphs(tiny_data: CleanSet, tiny_model: Make) -> None:
    taken, how = stepper(training_step(tiny_model(), tiny_data), PLAN, [])
    assert isinstance(taken, Eager)
    assert how == "eager: cpu has no graphs to replay"


class Drops(nn.Module):
    """Draws in train mode, as dropout does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(self.dropout(images))
        return logits


def test_sanitize_replayed_gives_the_weights_of_sanitize_eager(
    tiny_data: CleanSet, tiny_model: Make, captures: Callable[..., None]
) -> None:
    """Forgetting and recovery, mixing, patterns, distillation, dropout: nothing is shifted by the trial, or frozen."""
    model = Drops(tiny_model())
    plain = seamfast.sanitize(model, tiny_data, config=SEAM, precision="fp32")
    assert plain.report["run"]["stepped"] == dict.fromkeys(("forget", "recover"), "eager: cpu has no graphs to replay")
    captures()
    replayed = seamfast.sanitize(model, tiny_data, config=SEAM, precision="fp32")
    assert replayed.report["run"]["stepped"] == {"forget": "cuda graph", "recover": "cuda graph"}
    assert replayed.report["model"]["digest_after"] == plain.report["model"]["digest_after"]
    assert [p.loss for p in replayed.history] == [p.loss for p in plain.history]


@pytest.mark.parametrize("make", [RelativeAdam, Adam, SGD])
def test_everything_that_a_step_changes_is_in_the_state(tiny_data: CleanSet, tiny_model: Make, make: Any) -> None:
    """Restore model and state, and the same steps come out again."""
    model = tiny_model().train()
    optimizer = make(model)

    def loss(batch: TrainingBatch) -> Tensor:
        return F.cross_entropy(model(batch.inputs), batch.labels)

    one = TrainingStep(model, Resident(tiny_data, CPU), loss, optimizer)
    everything = [*model.parameters(), *model.buffers(), *one.state]
    run(Eager(one, PLAN), 3)
    kept = [value.detach().clone() for value in everything]
    outcomes = []
    for _ in range(2):
        run(Eager(one, PLAN), 3)
        outcomes.append(weights(model))
        with torch.no_grad():
            for value, old in zip(everything, kept, strict=True):
                value.copy_(old)
    assert torch.equal(*outcomes)


@pytest.mark.gpu
def test_a_step_is_captured_on_a_device(tiny_data: CleanSet, tiny_model: Make) -> None:
    device = torch.device("cuda")
    made = []
    for replay in (False, True):
        model = tiny_model().to(device).train()
        generator = torch.Generator(device=device).manual_seed(1)

        def loss(batch: TrainingBatch, model: nn.Module = model, generator: torch.Generator = generator) -> Tensor:
            assert isinstance(batch.inputs, Tensor)
            noise = torch.rand(batch.inputs.shape, generator=generator, device=device)
            return F.cross_entropy(model(F.dropout(batch.inputs + noise, 0.2)), batch.labels)

        torch.cuda.manual_seed(2)
        one = TrainingStep(model, Resident(tiny_data, device), loss, RelativeAdam(model))
        if replay:
            run(Replayed(one, PLAN, [generator]))
        else:
            run(Eager(one, PLAN))
        made.append(weights(model).cpu())
    torch.testing.assert_close(made[1], made[0], rtol=1e-3, atol=1e-3)
