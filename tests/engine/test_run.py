"""What a run keeps of the working copy, and the accuracy that it reports as missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.acceptance import n_lost_allowed
from seamfast.data import split_by_class
from seamfast.data.resident import Resident
from seamfast.engine.model import WorkingCopy
from seamfast.engine.optimizer import SGD
from seamfast.engine.run import Clock, Run, offsets_of
from seamfast.engine.step import TrainingBatch
from seamfast.engine.subject import Subject
from seamfast.modalities import Augmentation
from seamfast.ops import gather_augment

CPU = torch.device("cpu")


@pytest.fixture
def begin(tiny_data: CleanSet, tiny_model: Callable[[], nn.Module]) -> Callable[..., Run]:
    """``begin(model)``: a run on ``tiny_data``, the model as received measured, its first attempt begun."""

    def made(model: nn.Module | None = None, seed: int = 7, data: CleanSet = tiny_data) -> Run:
        copied = WorkingCopy(tiny_model() if model is None else model, CPU)
        run = Run(
            copied,
            Subject.of(copied.model, Resident(data, CPU)),
            split_by_class(data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0),
            batch_size=16,
            augmentation=Augmentation(),
            seed=seed,
            clock=Clock(None),
            accuracy_budget=0.03,
        )
        run.measure_received()
        run.restart()
        return run

    return made


def train(run: Run, n_steps: int = 3) -> None:
    def loss(batch: TrainingBatch) -> Tensor:
        return F.cross_entropy(run.logits(batch.inputs), batch.labels)

    for step in run.steps("recover", loss, SGD(run.model), of=run.split.recovery, max_steps=n_steps):
        step.take(0.05)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


def always_class_0(run: Run) -> None:
    """A quarter of the held-out part is of class 0."""
    with torch.no_grad():
        run.model[-1].weight.zero_()  # type: ignore[index]
        run.model[-1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))  # type: ignore[index]


def test_weights_that_are_restored_are_all_as_they_were(begin: Callable[..., Run]) -> None:
    """Not only what was trained: BatchNorm's running statistics and its counts too."""
    run = begin()
    train(run)  # those kept in the middle of a run, not those received
    wanted = tensors(run.model)
    kept = run.weights()
    train(run)
    moved = {name for name, value in tensors(run.model).items() if not torch.equal(value, wanted[name])}
    assert moved >= set(wanted) - {"0.bias", "4.bias"}  # BatchNorm takes these off again: they get no gradient
    run.restore(kept)
    assert all(torch.equal(value, wanted[name]) for name, value in tensors(run.model).items())
    train(run)
    run.restore(kept)  # and once more: what was kept is a copy, which training does not reach
    assert all(torch.equal(value, wanted[name]) for name, value in tensors(run.model).items())


def test_weights_are_restored_into_the_same_tensors(begin: Callable[..., Run]) -> None:
    """An optimizer, or a captured step, goes on with the tensors that it was given."""
    run = begin()
    before = [*run.model.parameters(), *run.model.buffers()]
    run.restore(run.weights())
    assert all(a is b for a, b in zip((*run.model.parameters(), *run.model.buffers()), before, strict=True))


def test_buffers_outside_the_state_dict_are_restored_and_those_made_meanwhile_stay(begin: Callable[..., Run]) -> None:
    class Counts(nn.Module):
        """Has a state dict of more than tensors, a buffer that is not in it, and another from its first step on."""

        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 4)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def get_extra_state(self) -> str:
            return "of the model's own"

        def set_extra_state(self, state: str) -> None: ...

        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                self.calls += 1
                if not hasattr(self, "ones"):
                    self.register_buffer("ones", torch.ones(4))
                return self.head(images.flatten(1)) * self.ones  # type: ignore[no-any-return]
            return self.head(images.flatten(1))  # type: ignore[no-any-return]

    run = begin(Counts())
    kept = run.weights()
    assert set(kept) == {"head.weight", "head.bias", "calls"}
    train(run)
    assert run.model.calls == 3
    run.restore(kept)
    assert run.model.calls == 0
    assert torch.equal(run.model.ones, torch.ones(4))  # type: ignore[arg-type]


def test_what_was_counted_is_forgotten_with_the_weights_that_it_was_counted_on(begin: Callable[..., Run]) -> None:
    run = begin()
    kept = run.weights()
    always_class_0(run)
    assert not run.accuracy_is_back()
    counted = run.final_counts
    assert counted is not None
    assert counted.n_samples == len(run.split.holdout)
    run.restore(kept)
    assert run.final_counts is None
    assert run.accuracy_is_back()
    assert run.accuracy_missing() == 0


def test_the_accuracy_that_is_missing_is_that_received_less_that_counted_last(begin: Callable[..., Run]) -> None:
    run = begin()
    assert run.accuracy_received == 1
    always_class_0(run)
    run.accuracy_is_back()
    assert run.accuracy_missing() == 0.75


def test_accuracy_above_the_received_one_is_missing_less_than_nothing(
    begin: Callable[..., Run], tiny_model: Callable[[], nn.Module]
) -> None:
    model = tiny_model()
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([1e6, 0.0, 0.0, 0.0]))  # type: ignore[index]
    run = begin(model)
    assert run.accuracy_received == 0.25
    with torch.no_grad():
        for value, right in zip(run.model.parameters(), tiny_model().parameters(), strict=True):
            value.copy_(right)
    assert run.accuracy_is_back()
    assert run.accuracy_missing() == -0.75


def test_the_accuracy_is_not_known_to_be_missing_before_it_is_counted(begin: Callable[..., Run]) -> None:
    run = begin()
    run.accuracy_is_back()
    train(run, 1)
    assert run.final_counts is None


@pytest.mark.parametrize(("times", "n_counted"), [(1, 32), (10, 256)])
def test_the_accuracy_as_received_is_that_on_the_samples_last_evaluated(
    times: int,
    n_counted: int,
    begin: Callable[..., Run],
    tiny_data: CleanSet,
    enlarged: Callable[[CleanSet, int], CleanSet],
) -> None:
    data = enlarged(tiny_data, times)
    labels = torch.where(torch.arange(len(data)) % 3 > 0, data.labels, (data.labels + 1) % 4)  # wrong on a third
    run = begin(data=CleanSet(data.inputs, labels, mean=0.4, std=0.25))

    def loss(batch: TrainingBatch) -> Tensor:
        return F.cross_entropy(run.logits(batch.inputs), batch.labels)

    found: list[tuple[float, tuple[int, float]]] = []
    for step in run.steps("recover", loss, SGD(run.model), of=run.split.recovery, max_steps=1):
        found.append((run.evaluate_holdout(), run.last_evaluated()))  # before anything has moved
        step.take(0.0)
    ((accuracy, (n, received)),) = found
    assert n == n_counted
    assert received == pytest.approx(accuracy, abs=1e-6)
    assert len(run.split.holdout) == 32 * times


# What it is invariant to.


@pytest.mark.parametrize("augmentation", [Augmentation(pad=3, seed=7), Augmentation(flip=True, seed=7)])
@pytest.mark.parametrize("times", [1, 10])
def test_the_share_lost_under_an_augmentation_is_that_of_up_to_256_samples(
    augmentation: Augmentation,
    times: int,
    begin: Callable[..., Run],
    tiny_data: CleanSet,
    tiny_model: Callable[[], nn.Module],
    enlarged: Callable[[CleanSet, int], CleanSet],
) -> None:
    data, model = enlarged(tiny_data, times), tiny_model()
    labels = torch.where(torch.arange(len(data)) % 7 > 0, data.labels, (data.labels + 1) % 4)
    data = CleanSet(data.inputs, labels, mean=0.4, std=0.25)
    run = begin(model, data=data)
    assert 0.7 < run.accuracy_received < 1  # wrong on some as they are
    held_out = run.split.holdout
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(7))
    watched = torch.cat([held_out[order], run.split.recovery])[:256]  # of few held-out ones, others too
    n_counted = len(watched)

    def n_right(how: Augmentation) -> int:
        options = {"pad": how.pad, "flip": how.flip, "seed": how.seed}
        images = gather_augment(data.inputs, watched, mean=0.4, std=0.25, **options)
        return int((model.eval()(images).argmax(1) == data.labels[watched]).sum())

    lost = n_right(Augmentation()) - n_right(augmentation)
    assert lost > 0
    assert run.share_lost_under(augmentation) == lost / n_counted
    assert run.share_lost_under(Augmentation()) == 0
    assert run.augmentation == Augmentation()  # it was tried, and no more


def test_the_augmentations_to_try_are_those_of_the_samples_with_the_seed_of_the_run(
    begin: Callable[..., Run], tiny_data: CleanSet
) -> None:
    wide = tiny_data.inputs.repeat(1, 1, 2, 2)  # type: ignore[union-attr]
    data = CleanSet(wide, tiny_data.labels, mean=0.4, std=0.25)
    run = begin(nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), seed=11, data=data)
    assert run.candidate_augmentations() == (Augmentation(pad=1, seed=11), Augmentation(flip=True, seed=11))


# What it draws, and what it may lose.


class Drawing(nn.Module):
    """Draws in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)) + torch.rand(4)  # type: ignore[no-any-return]


def test_each_phase_and_each_attempt_draws_numbers_of_its_own(begin: Callable[..., Run]) -> None:
    streams = []
    for seed in (0, 7):
        run = begin(seed=seed)
        for _ in range(2):
            streams += [run._stream_seed("forget"), run._stream_seed("recover")]
            run.restart()
    assert len(set(streams)) == len(streams)
    assert all(0 <= stream < 2**63 for stream in streams)


def test_counting_shifts_no_draw_of_a_model_that_draws_in_eval_mode(begin: Callable[..., Run]) -> None:
    run = begin(Drawing())
    before = torch.get_rng_state()
    counts = run.count()
    assert torch.equal(torch.get_rng_state(), before)
    assert run.count() == counts


@pytest.mark.parametrize(
    ("n", "budget", "expected"),
    [(100, 0.03, 3), (99, 0.03, 2), (100, 0.0, 0), (10, 0.03, 1), (100, 0.29, 29), (5, 1.0, 5)],
)
def test_the_samples_that_may_be_lost(n: int, budget: float, expected: int) -> None:
    """The budget's share, rounded down, but one where that is none and the budget is not 0."""
    assert n_lost_allowed(n, budget) == expected


def test_offsets_make_the_mean_answers_those_wanted() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(500, 3, generator=generator) + torch.tensor([3.0, 0.0, -2.0])
    shares = torch.tensor([0.2, 0.3, 0.5])
    offsets = offsets_of(logits, shares)
    torch.testing.assert_close((logits + offsets).softmax(1).mean(0), shares, rtol=0, atol=1e-4)
    assert abs(float(offsets.mean())) < 1e-6
    bad = torch.cat([logits, torch.full((5, 3), torch.nan)])
    torch.testing.assert_close(offsets_of(bad, shares), offsets)
    assert offsets_of(bad[500:], shares).tolist() == [0.0, 0.0, 0.0]
