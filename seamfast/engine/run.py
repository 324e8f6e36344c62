"""One treatment in progress: the working copy, its data, the clock, and the steps that methods are written in."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.data.clean_set import Batch
from seamfast.data.resident import Resident, wrap_around_batches
from seamfast.data.split import Split
from seamfast.engine.counting import Counts, measure
from seamfast.engine.events import Announcer, HistoryPoint
from seamfast.engine.host import choose_threads, seeded
from seamfast.engine.model import WorkingCopy, evaluating, logits_of
from seamfast.engine.optimizer import Optimizer
from seamfast.engine.precision import Precision, choose_precision, step_seconds
from seamfast.engine.step import Draws, Loss, Stepper, TrainingStep, stepper
from seamfast.triggers import Trigger

_EVALUATION_SHARE = 0.1
"""Of the time of a phase, what its evaluations may take."""
_FEWEST_WATCHED = 256
"""An accuracy near chance is then known to about 2 points."""


class RunStopped(Exception):
    """The run cannot go on; the message says at which phase and step, and why."""


@dataclass(frozen=True)
class Step:
    """One training step that is due: how far through the phase, and the way to take it.

    Attributes:
        number: from 0, within the phase.
        fraction: in [0, 1): steps or time used up of what the phase may take, whichever is more. Schedules follow it,
            so a run with a time budget still ends with small rates.
        is_last: no further step fits into the phase.
        take: ``take(rate)``: forward, loss, backward and update, at this learning rate.
    """

    number: int
    fraction: float
    is_last: bool
    take: Callable[[float], None]


class Clock:
    """Seconds since the start, and until the deadline."""

    def __init__(self, budget_s: float | None) -> None:
        self.start = time.perf_counter()
        self.budget_s = budget_s

    def elapsed(self) -> float:
        return time.perf_counter() - self.start


class Run:
    """What a method needs, and nothing that it must not see: no test data, no triggered data.

    Attributes:
        model: the working copy, trained in place.
        num_classes, seed, split, device: as of the run.
        precision: what it computes in; plain float32 until ``settle``.
        threads, threads_reason: how many PyTorch computes with, and why.
        clock: seconds since the call, and its time budget.
        attempt: how often ``restart`` was called, less one.
        phase_steps: steps taken, by phase, all attempts counted.
        phase_seconds: likewise.
        evaluation_seconds: of them, what evaluations took.
        stepped: how the steps were taken, by phase: ``"cuda graph"``, or ``"eager: "`` and why.
        accuracy_received: held-out accuracy of the model as received, in [0, 1].
        final_counts: outcomes on the held-out part in float32 since the last step, if they were counted.
        time_ran_out: whether the time budget cut a phase short.
        returns_probabilities: whether the model as received seems to end in a softmax.
    """

    def __init__(
        self,
        copied: WorkingCopy,
        data: Resident,
        split: Split,
        *,
        num_classes: int,
        seed: int,
        clock: Clock,
        announcer: Announcer,
        accuracy_budget: float,
        triggers: Sequence[Trigger] = (),
        compiles: bool = False,
    ) -> None:
        self.model = copied.model
        self.precision = Precision()
        self.threads = torch.get_num_threads()
        self.threads_reason = "as many as PyTorch has"
        self.num_classes = num_classes
        self.seed = seed
        self.split = split
        self.device = data.device
        self.attempt = -1
        self.phase_steps: dict[str, int] = {}
        self.phase_seconds: dict[str, float] = {}
        self.evaluation_seconds = 0.0
        self.stepped: dict[str, str] = {}
        self.accuracy_received = math.nan
        self.final_counts: Counts | None = None
        self.time_ran_out = False
        self.returns_probabilities = False
        self.announcer = announcer
        self._copy = copied
        self._compiles = compiles
        self._student = self._compiled(self.model)
        self._data = data
        self.clock = clock
        self._deadline = math.inf if clock.budget_s is None else clock.budget_s
        self._accuracy_budget = accuracy_budget
        self._triggers = triggers
        self._generators: dict[str, torch.Generator] = {}
        self._stepper: Stepper | None = None
        order = torch.Generator().manual_seed(seed)
        self._watched = split.holdout[torch.randperm(len(split.holdout), generator=order)]
        self._n_unread = 0
        self._batch_size = 0
        self._phase_start = 0
        self._mark = 0.0
        self._teacher: nn.Module | None = None

    def measure_received(self) -> Counts:
        """Count the outcomes of the model as received, on the held-out part; what that took is kept free at the end."""
        begin = self.clock.elapsed()
        with evaluating(self.model):
            outputs = logits_of(self.model, self._data.inputs(self.split.holdout[:64].to(self.device))).float()
        self.returns_probabilities = bool(
            (outputs >= 0).all() and torch.isclose(outputs.sum(1), outputs.new_ones(())).all()
        )
        counts = self.count(self._triggers)
        self.accuracy_received = counts.n_correct / counts.n_samples
        if self.clock.budget_s is not None:
            self._deadline = self.clock.budget_s - 1.5 * (self.clock.elapsed() - begin)
        return counts

    def settle(
        self, *, threads: int | None, precision: str, deterministic: bool, batch_size: int, pad: int, flip: bool
    ) -> None:
        """Decide, on such batches, how the run computes from here on: threads, number format, layout.

        Args:
            threads: ``None``: one, or as many as PyTorch has, whichever is faster.
            precision: see ``engine.precision``.
            deterministic: decide nothing by the clock.
            batch_size, pad, flip: of the batches.
        """
        if deterministic:
            torch.use_deterministic_algorithms(True)
        if threads is not None:
            torch.set_num_threads(threads)
            self.threads_reason = f"{threads} were asked for"
        indices = next(wrap_around_batches(self.split.recovery, batch_size, self.seed)).to(self.device)
        with seeded(self.seed, self.device):  # a model may draw; what is tried must not shift the draws of the run
            inputs = self._data.inputs(indices, pad=pad, flip=flip, seed=self.seed)
            labels = self._data.labels[indices]
            limit_s = (self._deadline - self.clock.elapsed()) / 10
            if threads is None and not deterministic and self.device.type == "cpu":
                tried = copy.deepcopy(self.model).train()
                with suppress(Exception):  # what fails here will fail in the run, and say so better
                    self.threads_reason = choose_threads(
                        lambda: step_seconds(tried, self.precision, inputs, labels), limit_s
                    )
            if deterministic and precision == "auto":
                self.precision = Precision(reason="float32, as nothing is chosen by timing in deterministic mode")
            else:
                self.precision = choose_precision(self.model, inputs, labels, precision, self.num_classes, limit_s)
        self.precision.prepare(self.model)
        self.threads = torch.get_num_threads()

    # What a method calls, in the order in which it calls it.

    def restart(self) -> None:
        """Put the weights as received back and begin a new attempt."""
        self.attempt += 1
        self.announcer.state.attempt = self.attempt
        self._copy.reset()

    def steps(
        self,
        phase: str,
        loss: Loss,
        optimizer: Optimizer,
        *,
        of: Tensor,
        batch_size: int,
        max_steps: int,
        pad: int = 0,
        flip: bool = False,
        time_share: float = 1.0,
    ) -> Iterator[Step]:
        """Up to ``max_steps`` steps on batches of the samples ``of``, each to be taken, the model in train mode.

        Ends early with the time budget.

        Args:
            phase: ``"forget"`` or ``"recover"``.
            loss: of a batch, in nats: a 0-d tensor. It may be captured and replayed: what changes from step to step
                comes from the batch and from ``generator``, not from Python.
            optimizer: of the weights of ``model``.
            of: sample indices, int64, CPU.
            batch_size: of every batch; where there are fewer samples, they come more than once.
            pad, flip: augmentation, for pixel sets.
            time_share: of the time that is left, the share that this phase may take, in (0, 1].

        Raises:
            RunStopped: the loss became NaN or Inf, or a callback asked to stop.
            ModelError: the loss does not depend on the weights.
        """
        state = self.announcer.state
        begin = self._mark = self.clock.elapsed()
        if begin >= self._deadline:
            raise RunStopped(f"the time budget of {self.clock.budget_s:g} s was used up before the {phase} phase began")
        limit = begin + (self._deadline - begin) * time_share
        state.phase = phase
        self._batch_size = batch_size
        self.final_counts = None
        first = self._phase_start = state.global_step
        self.announcer.plan(max_steps)
        self.model.train()
        draws = Draws(
            of=of,
            batch_size=batch_size,
            max_steps=max_steps,
            pad=pad,
            flip=flip,
            order_seed=self.stream_seed(phase),
            seed=self.seed,
            first_epoch=self.attempt * max_steps,
        )
        step = TrainingStep(self.model, self._data, loss, optimizer)
        self._stepper, self.stepped[phase] = stepper(step, draws, list(self._generators.values()))
        longest = 0.0
        try:
            for number in range(max_steps):
                before = self.clock.elapsed()
                # 0 at the first step, as without a budget: one that is not reached changes no bit.
                used = (before - begin) / (limit - begin) if number and limit < math.inf else 0.0
                # One more step of the longest kind seen so far, evaluation included, would overrun the budget.
                out_of_time = before + 2 * longest > limit
                self.announcer.tell("on_step_begin")
                yield Step(
                    number=number,
                    fraction=min(max(number / max_steps, used), 1.0),
                    is_last=out_of_time or number == max_steps - 1,
                    take=self._take,
                )
                longest = max(longest, self.clock.elapsed() - before)
                if out_of_time and number < max_steps - 1:
                    self.time_ran_out = True
                    return
        finally:
            self._stepper.close()
            self._stepper = None  # and with it the optimizer's state: the next phase makes its own
            self.announcer.skip(max_steps - (state.global_step - first))

    def _take(self, rate: float) -> None:
        """The step that is due, and what follows from it."""
        assert self._stepper is not None
        self._stepper.take(rate)
        if self.device.type != "cuda":  # there it would wait for the device, and is seen when evaluating
            self._check_loss()
        elif self.clock.budget_s is not None:
            torch.cuda.synchronize(self.device)  # what is only queued takes no time yet
        state = self.announcer.state
        self._n_unread += 1
        self.phase_steps[state.phase] = self.phase_steps.get(state.phase, 0) + 1
        state.global_step += 1
        self._pass_time()
        self.announcer.tell("on_step_end")
        if self.announcer.control.should_training_stop:
            raise RunStopped(f"stopped by a callback in the {state.phase} phase after step {state.global_step}")

    def _check_loss(self) -> None:
        assert self._stepper is not None
        bad = self._stepper.step.bad_step()
        if bad is not None:
            number, value = bad
            phase = self.announcer.state.phase
            raise RunStopped(f"the loss became {value} in the {phase} phase at step {self._phase_start + number}")

    def logits(self, inputs: Batch) -> Tensor:
        """Float32 logits of the working copy, computed in the run's precision."""
        with self.precision.computing(self.device, compiled=self._compiles):
            return logits_of(self._student, self.precision.laid_out(inputs)).float()

    def received_logits(self, inputs: Batch) -> Tensor:
        """Float32 logits of the model as received, in eval mode, without grads: what distillation aims at."""
        if self._teacher is None:
            self._teacher = self._copy.frozen_received()
            self.precision.prepare(self._teacher)
            self._teacher = self._compiled(self._teacher)
        with torch.no_grad(), self.precision.computing(self.device, compiled=self._compiles):
            return logits_of(self._teacher, self.precision.laid_out(inputs)).float()

    def _compiled(self, model: nn.Module) -> nn.Module:
        return torch.compile(model) if self._compiles else model  # type: ignore[return-value]

    def input_range(self) -> tuple[Tensor, Tensor] | None:
        """``(lowest, highest)`` of the inputs for each channel; ``None`` where the inputs are not images."""
        lowest, highest = self._data.lowest, self._data.highest
        return None if lowest is None or highest is None else (lowest, highest)

    def generator(self, purpose: str) -> torch.Generator:
        """A seeded generator on the device, of its own for each purpose and attempt."""
        made = torch.Generator(device=self.device).manual_seed(self.stream_seed(purpose))
        self._generators[purpose] = made
        return made

    def evaluate_holdout(self) -> float:
        """Held-out accuracy in [0, 1], written to the history with the mean loss since the last time.

        Of a large held-out part, a slice is counted, always the same samples first: as many as cost a tenth of the
        steps since the last time.
        """
        assert self._stepper is not None
        begin = self.clock.elapsed()
        self._check_loss()
        # A forward pass is a third of a step; each known trigger is a pass of its own.
        affordable = _EVALUATION_SHARE * 3 * self._n_unread * self._batch_size / (1 + len(self._triggers))
        watched = self._watched[: max(int(affordable), _FEWEST_WATCHED)]
        counts = self.count(self._triggers, self.precision, watched)
        accuracy = counts.n_correct / counts.n_samples
        state = self.announcer.state
        rates = {t.name: t.n_hit / t.n_eligible for t in counts.triggers if t.n_eligible}
        loss = self._stepper.step.take_loss_sum() / max(self._n_unread, 1)
        self._n_unread = 0
        self._pass_time()
        self.evaluation_seconds += self.clock.elapsed() - begin
        point = HistoryPoint(state.phase, self.attempt, state.global_step, state.seconds, loss, accuracy, rates)
        state.log_history.append(point)
        self.announcer.tell("on_evaluate")
        return accuracy

    @property
    def halfway_to_guessing(self) -> float:
        """The middle between the received accuracy and that of guessing, in [0, 1]."""
        return (self.accuracy_received + 1 / self.num_classes) / 2

    def accuracy_is_back(self) -> bool:
        """Whether accuracy on all of the held-out part, in float32, lies within the budget below the one as received.

        What was counted is kept as ``final_counts``.
        """
        self.final_counts = self.count(self._triggers)
        n = len(self.split.holdout)
        n_lost = round(self.accuracy_received * n) - self.final_counts.n_correct
        return n_lost <= n_lost_allowed(n, self._accuracy_budget)

    def accuracy_missing(self) -> float:
        """By how much held-out accuracy lies below the one as received, in [-1, 1]: negative where it rose.

        To be asked after ``accuracy_is_back``, which counts.
        """
        assert self.final_counts is not None
        return self.accuracy_received - self.final_counts.n_correct / self.final_counts.n_samples

    def weights(self) -> dict[str, Tensor]:
        """A copy of all parameters and buffers as they are now, by name."""
        return self._copy.weights()

    def put_back(self, kept: dict[str, Tensor]) -> None:
        """Make the parameters and buffers those of ``kept = weights()``; what was counted since does not hold then."""
        self._copy.put_back(kept)
        self.final_counts = None

    def time_for_another_attempt(self) -> bool:
        """Whether the time budget leaves at least what the attempts so far took on average."""
        elapsed = self.clock.elapsed()
        return elapsed + sum(self.phase_seconds.values()) / (self.attempt + 1) <= self._deadline

    def count(
        self, triggers: Sequence[Trigger] = (), precision: Precision | None = None, of: Tensor | None = None
    ) -> Counts:
        """Outcome counters of the working copy, on the held-out part and in float32 unless told otherwise."""
        # A model may draw in eval mode too; what is counted must not shift the draws of the training steps.
        with seeded(self.seed, self.device):
            return measure(
                self.model,
                self._data,
                self.split.holdout if of is None else of,
                num_classes=self.num_classes,
                triggers=triggers,
                seed=self.seed,
                precision=precision or Precision(channels_last=self.precision.channels_last),
            )

    def _pass_time(self) -> None:
        """Add the seconds since the last call to the phase."""
        state = self.announcer.state
        state.seconds = self.clock.elapsed()
        self.phase_seconds[state.phase] = self.phase_seconds.get(state.phase, 0.0) + state.seconds - self._mark
        self._mark = state.seconds

    def stream_seed(self, purpose: str) -> int:
        """A 63-bit seed of its own for each purpose and attempt."""
        tag = int.from_bytes(purpose.encode()[:8].ljust(8, b"\0"), "little")
        return (self.seed * 0x9E3779B97F4A7C15 + tag * 0xC2B2AE3D27D4EB4F + self.attempt + 1) % 2**63


def n_lost_allowed(n_holdout: int, accuracy_budget: float) -> int:
    """How many fewer held-out samples may be right: ``floor(budget * n)``, but one where that is none."""
    return max(math.floor(accuracy_budget * n_holdout + 1e-9), 1 if accuracy_budget > 0 else 0)


def distillation_loss(logits: Tensor, received: Tensor, temperature: float) -> Tensor:
    """``T**2 * KL(softmax(received / T) || softmax(logits / T))``, mean over the batch, in nats.

    Source: Hinton et al., "Distilling the knowledge in a neural network", arXiv:1503.02531.
    """
    wanted = F.log_softmax(received / temperature, 1)
    got = F.log_softmax(logits / temperature, 1)
    return temperature**2 * F.kl_div(got, wanted, reduction="batchmean", log_target=True)
