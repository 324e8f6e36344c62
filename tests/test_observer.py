"""Known triggers are measured in the course of a run, and nothing of it can be reached from what a method is given."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, FineTuneConfig, HistoryPoint, SeamConfig, SuperFineTuneConfig, methods
from seamfast.data.resident import Resident
from seamfast.engine.counting import TriggerCounts, count_triggered
from seamfast.engine.events import CallbackHandler, Evaluated, listener
from seamfast.engine.model import digest
from seamfast.engine.optimizer import SGD
from seamfast.engine.precision import Precision
from seamfast.engine.run import Run
from seamfast.engine.step import TrainingBatch
from seamfast.engine.subject import Subject
from seamfast.methods import SeamAuthorsConfig
from seamfast.observer import TriggerObserver
from seamfast.triggers import Patch, SourceSpecific, Trigger

Make = Callable[[], nn.Module]

TRIGGERS = [Patch.square(2), Patch.square(3, corner="random", target=1, name="anywhere")]
POINT = HistoryPoint("forget", 0, 1, 0.0, 0.0, 0.5)
METHODS: dict[str, Any] = {
    "seam": SeamConfig(forget_max_steps=4, recover_max_steps=6, recover_eval_every=3),
    "seam_authors": SeamAuthorsConfig(batch_size=600, forget_fraction=0.5, forget_max_epochs=2, recover_max_epochs=2),
    "fine_tune": FineTuneConfig(max_steps=5, eval_every=2),
    "super_fine_tune": SuperFineTuneConfig(forget_steps=3, recover_steps=3, eval_every=2),
}


# Nothing leads from a run to a trigger.


def neighbours(thing: Any) -> Iterator[Any]:
    """What can be reached from ``thing`` in one step, without asking the interpreter for its frames or globals."""
    if isinstance(thing, Mapping):
        yield from (*thing.keys(), *thing.values())
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, types.MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, types.FunctionType):
        yield from (thing.__defaults__, thing.__kwdefaults__)
        yield from (cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType())
    elif isinstance(thing, types.GeneratorType):
        yield from (thing.gi_frame.f_locals if thing.gi_frame else {}, thing.gi_yieldfrom)
    elif isinstance(thing, weakref.ref):
        yield thing()
    yield getattr(thing, "__dict__", None)
    if isinstance(thing, (Tensor, types.FunctionType)):  # whose properties are tensors, and globals
        return
    for name in dir(type(thing)):
        if isinstance(
            inspect.getattr_static(type(thing), name),
            (property, functools.cached_property, types.MemberDescriptorType),  # the last one: of __slots__
        ):
            try:
                yield getattr(thing, name)
            except Exception:  # an empty slot, or a property that cannot be had now
                continue


def reachable(root: Any) -> Iterator[Any]:
    """All that attributes, slots, properties, containers, closures and bound objects lead to; no modules, no types."""
    seen: dict[int, Any] = {}  # holds what it has seen, so that no id is used twice
    left = [root]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, (types.ModuleType, type, str, bytes, int, float)):
            continue
        seen[id(thing)] = thing
        yield thing
        left.extend(neighbours(thing))


def secrets(root: Any) -> set[str]:
    """Of what ``root`` leads to, the kinds that hold something of triggers."""
    kinds = Trigger, TriggerCounts, TriggerObserver, CallbackHandler
    found = {kind.__name__ for thing in reachable(root) for kind in kinds if isinstance(thing, kind)}
    rated = any(isinstance(thing, HistoryPoint) and thing.attack_success_rate for thing in reachable(root))
    return found | ({"HistoryPoint"} if rated else set())


Look = Callable[[Run], None]


@pytest.fixture
def looking(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Make, tiny_data: CleanSet
) -> Callable[[Look], seamfast.SanitizeResult]:
    """``looking(look)``: a run with known triggers, of a method that calls ``look(run)`` after each of three steps."""

    def sanitized(look: Look) -> seamfast.SanitizeResult:
        def method(run: Run, config: FineTuneConfig) -> None:
            run.restart()

            def loss(batch: TrainingBatch) -> Tensor:
                return F.cross_entropy(run.logits(batch.inputs) + run.received_logits(batch.inputs), batch.labels)

            for step in run.steps("recover", loss, SGD(run.model), of=run.split.recovery, max_steps=3):
                step.take(1e-3)
                run.evaluate_holdout()
                assert run.accuracy_is_back()
                look(run)
            run.restore(run.weights())
            look(run)

        monkeypatch.setitem(methods.METHODS, "looks", (method, FineTuneConfig))
        result = seamfast.sanitize(tiny_model(), tiny_data, method="looks", triggers=TRIGGERS, callbacks=[object()])
        assert result.report["run"]["stopped"] is None
        assert [set(p.attack_success_rate) for p in result.history] == [{"patch", "anywhere"}] * 3
        return result

    return sanitized


def test_a_method_cannot_peek(looking: Callable[[Look], seamfast.SanitizeResult]) -> None:
    found: list[set[str]] = []
    sizes: list[int] = []

    def look(run: Run) -> None:
        found.append(secrets(run))
        kinds = {type(thing) for thing in reachable(run)}
        assert {CleanSet, Resident, Subject} <= kinds  # the walk goes on behind private names
        sizes.append(sum(1 for _ in reachable(run)))

    looking(look)
    assert found == [set()] * 4
    assert min(sizes) > 100


def test_the_walk_finds_what_a_run_would_hold(looking: Callable[[Look], seamfast.SanitizeResult]) -> None:
    """Of a listener that is kept, all that knows of triggers."""
    found: list[set[str]] = []

    def look(run: Run) -> None:
        run._kept = listener()  # type: ignore[attr-defined]
        found.append(secrets(run))
        del run._kept  # type: ignore[attr-defined]

    looking(look)
    assert found == [{"Trigger", "TriggerObserver", "CallbackHandler", "HistoryPoint"}] * 4


class Slotted:
    __slots__ = ("empty", "held")

    def __init__(self, held: Any) -> None:
        self.held = held


@dataclass(eq=False)
class Holder:
    held: Any

    def method(self) -> None: ...


def as_property(held: Any) -> Any:
    return type("Property", (), {"held": property(lambda self: held)})()


def closure(held: Any) -> Callable[[], Any]:
    return lambda: held


def default(held: Any) -> Callable[[], Any]:
    return lambda value=held: value


def generator(held: Any) -> Iterator[Any]:
    def endless() -> Iterator[Any]:
        while True:
            yield len([held])

    made = endless()
    next(made)
    return made


@pytest.mark.parametrize(
    "hold",
    [
        Holder, Slotted, as_property, closure, default, generator, lambda held: Holder(held).method,
        lambda held: functools.partial(print, held), lambda held: functools.partial(print, end=held),
        lambda held: {Holder(held): 0}, lambda held: {0: [held]}, lambda held: frozenset({(Holder(held),)}),
        lambda held: setattr(module := nn.Linear(1, 1), "held", held) or nn.Sequential(module),
        lambda held: setattr(tensor := torch.zeros(1), "held", held) or tensor,
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("secret", "name"),
    [
        (TRIGGERS[0], "Trigger"),
        (TriggerCounts("patch", 4, 3, 1, 0), "TriggerCounts"),
        (HistoryPoint("forget", 0, 1, 0.0, 0.0, 0.5, {"patch": 1.0}), "HistoryPoint"),
        (POINT, None),
    ],
)
def test_the_walk_finds_what_is_hidden(hold: Callable[[Any], Any], secret: Any, name: str | None) -> None:
    assert secrets([hold(secret)]) == ({name} if name else set())


# Known triggers change no bit.


class NoisyAlways(nn.Module):
    """Draws in eval mode too, as models do that average over dropout."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(F.dropout(images, 0.1, training=True))
        return logits


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_known_triggers_change_no_bit_of_the_weights(
    method: str, noisy: bool, tiny_model: Make, tiny_data: CleanSet, enlarged: Callable[[CleanSet, int], CleanSet]
) -> None:
    assert METHODS.keys() == methods.METHODS.keys()
    model = NoisyAlways(tiny_model()) if noisy else tiny_model()
    data = enlarged(tiny_data, 9)
    options: dict[str, Any] = {"precision": "fp32", "threads": 1, "deterministic": True}
    blind, observed = (
        seamfast.sanitize(model, data, method=method, config=METHODS[method], triggers=triggers, **options)
        for triggers in ([], TRIGGERS)
    )
    assert observed.report["data"]["n_holdout"] == 288
    assert digest(observed.model) == digest(blind.model) != digest(model)
    for one, other in zip(observed.history, blind.history, strict=True):
        assert one.attack_success_rate.keys() == {"patch", "anywhere"}
        assert other.attack_success_rate == {}
        assert (one.loss, one.holdout_accuracy, one.step) == (other.loss, other.holdout_accuracy, other.step)
    for when in ("before", "after"):
        assert [t["name"] for t in observed.report["holdout"][when]["triggers"]] == ["patch", "anywhere"]
        assert blind.report["holdout"][when]["triggers"] == []
        assert observed.report["holdout"][when]["clean_accuracy"] == blind.report["holdout"][when]["clean_accuracy"]


# What the observer measures.


def observer(model: nn.Module, data: CleanSet, triggers: Iterable[Trigger], seed: int = 0) -> TriggerObserver:
    subject = Subject.of(model, Resident(data, torch.device("cpu")))
    return TriggerObserver(subject, list(triggers), torch.arange(len(data)), seed)


@pytest.mark.parametrize(
    ("n_samples", "n_triggers", "n_measured"),
    [(1000, 2, 333), (1000, 1, 500), (600, 2, 256), (100, 2, 100), (1000, 0, None)],
)
def test_rates_are_those_of_a_slice_that_costs_no_more_than_the_evaluation(
    n_samples: int, n_triggers: int, n_measured: int | None, tiny_model: Make, noisy_data: CleanSet
) -> None:
    data, triggers = noisy_data.subset(torch.arange(160).repeat(7)), TRIGGERS[:n_triggers]
    watched = observer(tiny_model(), data, triggers, seed=4)
    samples = torch.randperm(len(data))[:n_samples]
    state = torch.get_rng_state()
    rates = watched.rates(Evaluated(POINT, samples, Precision()))
    assert torch.equal(torch.get_rng_state(), state)
    if n_measured is None:
        assert rates == {}
        return
    subject = Subject.of(tiny_model(), Resident(data, torch.device("cpu")))
    wanted = count_triggered(subject, samples[:n_measured], triggers, seed=4)
    assert rates == {t.name: t.n_hit / t.n_eligible for t in wanted}


def test_counts_are_those_of_the_held_out_part(tiny_model: Make, noisy_data: CleanSet) -> None:
    watched = observer(tiny_model(), noisy_data, TRIGGERS)
    of_all = seamfast.evaluate(tiny_model(), noisy_data, triggers=TRIGGERS)
    got = watched.counts(Precision())
    assert [(t.n_hit, t.n_eligible) for t in got] == [(t.n_hit, t.n_eligible) for t in of_all.triggers]
    # The first eight labels are 1, 1, 2, 3, 0, 1, 2, 3.
    assert [t.n_eligible for t in watched.counts(Precision(), torch.arange(8))] == [7, 5]


def test_a_trigger_without_eligible_samples_has_no_rate(tiny_model: Make, tiny_data: CleanSet) -> None:
    of_class_3 = Patch.square(2, target=SourceSpecific((3,), 0), name="of 3")
    samples = (tiny_data.labels < 3).nonzero().flatten()
    watched = observer(tiny_model(), tiny_data, [TRIGGERS[0], of_class_3])
    assert watched.rates(Evaluated(POINT, samples, Precision())).keys() == {"patch"}
