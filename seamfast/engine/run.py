"""``Run``: the interface of a method to the working copy, its data, the clock, and the steps."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.acceptance import n_lost_allowed
from seamfast.data.rereading import AugmentingSet
from seamfast.data.split import Split
from seamfast.engine.compute import Compute
from seamfast.engine.counting import Counts, count_clean
from seamfast.engine.encoder import ProbedEncoder, embed
from seamfast.engine.events import Evaluated, HistoryPoint, listener
from seamfast.engine.host import seeded
from seamfast.engine.model import WorkingCopy, logits_of
from seamfast.engine.optimizer import Optimizer
from seamfast.engine.pattern_search import FoundPatterns, PatternSearch, with_patterns
from seamfast.engine.precision import Precision
from seamfast.engine.pruning import Group, held_within, parts_of
from seamfast.engine.step import BatchPlan, Loss, Stepper, TrainingBatch, TrainingStep, stepper
from seamfast.engine.subject import Subject
from seamfast.engine.token_rows import surplus_of_rows
from seamfast.engine.token_search import Around, FoundPhrase, SearchSettings, search_around, search_phrases, size_of
from seamfast.modalities import (
    NO_AUGMENTATION,
    Augmentation,
    Batch,
    ImageModality,
    StepDraws,
    TextModality,
    Views,
    ViewSettings,
)
from seamfast.modalities.batch import call

_EVALUATION_SHARE = 0.1
"""Share of the time of a phase that its evaluations may take."""
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_MOST_PRUNED_BY = 512
"""Samples that tell what is used."""
_MOST_LOST_BY_PRUNING = 0.003
"""Share of the samples, and change of the mean confidence."""
_FEWEST_WATCHED = 256
"""An accuracy near chance is measured to about 2 points with this many samples."""

_CALIBRATED_ON = 512
"""Views that tell how the received model's answers to changed samples fall on the classes."""

_INSERTED_FROM, _MOST_INSERTED = 4.0, 64
"""Tokens whose rows have this surplus or more are inserted in training; see ``surplus_of_rows``."""
_HELD_FROM = 6.0
"""Of those that no clean text has, all rows of this surplus or more are held: with a limit, decoys could fill it."""
_ANY_CLASS = -1

_SEARCH = SearchSettings(n_samples=32, n_scored=16, longest=4, stops_early=False, natural=2.0)
_MOST_AROUND, _LONGEST_AROUND, _LEAST_RATE_AROUND = 6, 8, 0.3
"""Tokens that stand out around which phrases are searched, tokens of the longest, and samples that one moves."""
_LEAST_RATE = 0.6
"""Share of the samples that a phrase moves; what moves fewer is not trained against: such are words of the task."""
_MOST_OF_LENGTH, _MOST_FOUND = 3, 128
"""Phrases that one search adds for a class and a length, and phrases in all."""
_SIZE_FACTOR, _SIZE_MARGIN = 1.2, 0.1
"""Classes are searched again up to this multiple of the smallest size and so much more; see ``size_of``."""


class RunStopped(Exception):
    """The run cannot go on; the message names the phase, the step and the reason."""


@dataclass(frozen=True)
class Step:
    """The next training step of a phase.

    Attributes:
        number: from 0, within the phase.
        fraction: in [0, 1): used part of the steps or of the time of the phase, whichever is larger. Schedules follow
            it, so a run with a time budget also ends with small rates.
        is_last: no further step fits into the phase.
        take: ``take(rate)``: forward, loss, backward and update, at this learning rate.
        shorten: ``shorten(n)``: the phase has only ``n`` steps, counted from its first.
    """

    number: int
    fraction: float
    is_last: bool
    take: Callable[[float], None]
    shorten: Callable[[int], None]


class Clock:
    """Seconds since the start.

    Attributes:
        deadline: seconds since the start after which no step is taken; infinite without a budget.
    """

    def __init__(self, budget_s: float | None) -> None:
        self.start = time.perf_counter()
        self.budget_s = budget_s
        self.deadline = math.inf if budget_s is None else budget_s

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def reserve(self, seconds: float) -> None:
        """Keep ``seconds`` of the budget free at the end."""
        self.deadline -= seconds


@dataclass(frozen=True)
class Pruned:
    """Parts of a layer that are held at a constant; see ``engine.pruning.Group``.

    Attributes:
        layer: name of the module.
        kind: ``"units"``, ``"inputs"``, ``"rows"`` or ``"layers"``.
        n: so many of them...
        n_all: ...out of so many.
    """

    layer: str
    kind: str
    n: int
    n_all: int


@dataclass
class Ledger:
    """Steps and times of a run, for its report.

    Attributes:
        n_steps: steps taken, all attempts counted.
        phase_steps, phase_seconds: steps and seconds by phase, evaluations included.
        evaluation_seconds: the part of evaluations.
        stepped: how the steps were taken, by phase: ``"cuda graph"``, or ``"eager: "`` and the reason.
        time_ran_out: whether the time budget cut a phase short.
        share_taken: by phase, in its last attempt: 1, or the share of its steps after which the time budget cut it
            short. A method that ends a phase early does not cut it short.
        pruned: what ``prune_unused`` held.
        outlying: ids of the tokens that clean texts lack and whose rows, as received, are much larger than those of
            other such tokens, by falling surplus.
        found: phrases that searches found, the latest first.
        n_searches, search_seconds: of the searches.
    """

    n_steps: int = 0
    phase_steps: dict[str, int] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    evaluation_seconds: float = 0.0
    stepped: dict[str, str] = field(default_factory=dict)
    time_ran_out: bool = False
    share_taken: dict[str, float] = field(default_factory=dict)
    pruned: list[Pruned] = field(default_factory=list)
    outlying: list[int] = field(default_factory=list)
    found: list[FoundPhrase] = field(default_factory=list)
    n_searches: int = 0
    search_seconds: float = 0.0


@dataclass
class _Phase:
    """The phase in progress."""

    name: str
    generator: torch.Generator
    first_step: int
    mark: float
    n_unread: int = 0
    stepper: Stepper = field(init=False)


class Run:
    """A run of a method. No attribute leads to test data, a trigger or an outcome of one: events go to
    ``engine.events.listener()``.

    Attributes:
        model: the working copy, trained in place.
        trained: the parameters to train.
        num_classes, seed, split, device: of the run.
        compute: threads, precision and layout; plain float32 until it is set.
        clock: seconds since the call, and its time budget.
        ledger: steps and times so far.
        attempt: number of calls of ``restart``, minus one.
        accuracy_received: held-out accuracy of the model as received, in [0, 1].
        augmentation: of the training samples; a method may replace it between phases.
        final_counts: outcomes on the held-out part in float32 since the last step, if they were counted.

    Args:
        working_copy, subject: the model, and the model with its data.
        split: of the samples.
        batch_size: samples per step; a smaller set is repeated.
        augmentation: of the training samples.
        seed, clock: of the run.
        accuracy_budget: see ``accuracy_is_back``.
    """

    def __init__(
        self,
        working_copy: WorkingCopy,
        subject: Subject,
        split: Split,
        *,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        clock: Clock,
        accuracy_budget: float,
    ) -> None:
        self.model = subject.model
        self.trained = working_copy.trained
        self.num_classes = subject.num_classes
        self.seed = seed
        self.split = split
        self.device = subject.device
        self.compute = Compute()
        self.clock = clock
        self.ledger = Ledger()
        self.attempt = -1
        self.accuracy_received = math.nan
        self.augmentation = augmentation
        self.final_counts: Counts | None = None
        self._working_copy = working_copy
        self._subject = subject
        self._batch_size = batch_size
        self._accuracy_budget = accuracy_budget
        self._student: nn.Module | None = None
        self._teacher: nn.Module | None = None
        self._phase: _Phase | None = None
        self._used: set[str] = set()
        order = torch.Generator().manual_seed(seed)
        self._watched_order = torch.randperm(len(split.holdout), generator=order)
        self._watched = split.holdout[self._watched_order]
        self._n_watched = len(split.holdout)
        self._right_as_received: Tensor | None = None
        self._n_right: int | None = None  # of those that augmentations are tried on
        self._one = torch.ones((), device=self.device)
        self._suspects: list[int] = []  # tokens
        self._found: Any = None
        self._searched: list[int] | None = None  # classes
        self._around: list[Around] = []
        self._pattern_search: PatternSearch | None = None
        self._patterns: FoundPatterns | None = None

    def measure_received(self) -> Counts:
        """Count the outcomes of the model as received, on the held-out part."""
        counts = self.count()
        self.accuracy_received = counts.accuracy
        self._right_as_received = counts.correct
        self._compare_rows()
        return counts

    # The methods below are in the order in which a method calls them.

    def candidate_augmentations(self) -> tuple[Augmentation, ...]:
        """Those of the modality, for ``share_lost_under``; none where the caller's loader augments."""
        data = self._subject.data
        if isinstance(data.samples, AugmentingSet) or data.modality.why_not("invariances", True):
            return ()
        return data.modality.augmentations(self.seed)

    def share_lost_under(self, augmentation: Augmentation) -> float:
        """Net share of up to 256 clean samples that the model, as received, is no longer right on when augmented.

        To be called before training. Held-out samples come first; where they are few, those of recovery follow.
        """
        few, precision = torch.cat([self._watched, self.split.recovery])[:_FEWEST_WATCHED], self.compute.precision
        if self._n_right is None:
            self._n_right = self.count(precision, few).n_correct
        return (self._n_right - self.count(precision, few, augmentation).n_correct) / len(few)

    def restart(self) -> None:
        """Restore the weights as received and begin a new attempt."""
        self.attempt += 1
        listener().begin_attempt(self.attempt)
        self._working_copy.reset()

    def steps(
        self,
        name: str,
        loss: Loss,
        optimizer: Optimizer,
        *,
        of: Tensor,
        max_steps: int,
        time_share: float = 1.0,
        dropout: bool = True,
    ) -> Iterator[Step]:
        """Up to ``max_steps`` steps on batches of the samples ``of``, to be taken by the caller, in train mode.

        Ends early if the time budget is used up.

        Args:
            name: of the phase: ``"forget"`` or ``"recover"``.
            loss: of a batch, in nats: a 0-d tensor. It may be captured and replayed, so values that change from step
                to step must come from the batch or from ``views``, not from Python.
            optimizer: of the weights of ``model``.
            of: sample indices, int64, CPU.
            max_steps: at least 1.
            time_share: share of the remaining time that this phase may take, in (0, 1].
            dropout: whether PyTorch's dropout modules drop; dropout inside of attention and recurrent modules always
                does.

        Raises:
            RunStopped: the loss became NaN or Inf, or a callback asked to stop.
            ModelError: the loss does not depend on the weights.
        """
        begin, deadline = self.clock.elapsed(), self.clock.deadline
        if begin >= deadline:
            raise RunStopped(f"the time budget of {self.clock.budget_s:g} s was used up before the {name} phase began")
        limit = begin + (deadline - begin) * time_share
        self.final_counts = None
        self.ledger.share_taken[name] = 1.0
        listener().begin_phase(name, max_steps)
        self._working_copy.train()
        if not dropout:
            for module in self.model.modules():
                if isinstance(module, _DROPOUTS):
                    module.eval()
        plan = BatchPlan(
            of=of,
            batch_size=self._batch_size,
            max_steps=max_steps,
            augmentation=self.augmentation,
            order_seed=self._stream_seed(name),
            first_epoch=self.attempt * max_steps,
            lengths=self._subject.data.lengths,
        )
        generator = torch.Generator(device=self.device).manual_seed(self._stream_seed(name))
        step = TrainingStep(self.model, self._subject.data, loss, optimizer)
        self._phase = phase = _Phase(
            name, generator, self.ledger.n_steps, begin
        )  # a capture calls the loss, which reads it
        phase.stepper, self.ledger.stepped[name] = stepper(step, plan, [generator])
        n_steps = max_steps

        def shorten(n: int) -> None:
            nonlocal n_steps
            assert number < n <= n_steps
            listener().plan(n - n_steps)
            n_steps = n

        longest, number = 0.0, 0
        try:
            while number < n_steps:
                before = self.clock.elapsed()
                # 0 at the first step, as without a budget: a budget that is not reached changes no bit.
                used = (before - begin) / (limit - begin) if number and limit < math.inf else 0.0
                # One more step as long as the longest so far, evaluation included, would exceed the budget.
                out_of_time = before + 2 * longest > limit
                listener().begin_step()
                yield Step(
                    number=number,
                    fraction=min(max(number / n_steps, used), 1.0),
                    is_last=out_of_time or number == n_steps - 1,
                    take=self._take,
                    shorten=shorten,
                )
                number += 1
                longest = max(longest, self.clock.elapsed() - before)
                if out_of_time and number < n_steps:
                    self.ledger.time_ran_out = True
                    self.ledger.share_taken[name] = number / n_steps
                    return
        finally:
            phase.stepper.close()
            self._used |= step.used
            self._phase = None  # frees the optimizer's state
            listener().plan(self.ledger.n_steps - phase.first_step - n_steps)

    def views(
        self,
        batch: TrainingBatch,
        settings: ViewSettings,
        *,
        changed: Tensor | None = None,
        disturbed: Tensor | None = None,
    ) -> Views:
        """The views of the student and its teacher, with draws of the phase, the attempt and the step.

        Args:
            batch: of the step.
            settings: of the views; settings that the modality does not support have no effect.
            changed, disturbed: 0-d on the device, see ``StepDraws``; ``None``: 1.
        """
        phase = self._phase
        assert phase is not None
        draws = StepDraws(
            generator=phase.generator,
            seed=self._stream_seed(phase.name),
            step=batch.number,
            changed=self._one if changed is None else changed,
            disturbed=self._one if disturbed is None else disturbed,
            found=self._found,
        )
        views = self._subject.data.modality.views(batch.inputs, batch.labels, settings, draws)
        if self._patterns is None or not len(self._patterns.masks):
            return views
        assert isinstance(views.student, Tensor)
        return views._replace(student=with_patterns(views.student, self._patterns, draws))

    def received_offsets(self, settings: ViewSettings) -> Tensor:
        """``(C,)`` float32 to add to ``received_logits``: then the answers to samples as the teacher sees them fall on
        the classes as the labels do, on average.

        To samples that are changed, a model with a backdoor gives its class more often. 512 views of recovery samples
        are looked at.
        """
        recovery = self._shuffled_recovery()
        indices = recovery.repeat(-(-_CALIBRATED_ON // len(recovery)))[:_CALIBRATED_ON]
        modality, data = self._subject.data.modality, self._subject.data
        generator = torch.Generator(device=self.device).manual_seed(self._stream_seed("offsets"))
        logits = []
        for number, part in enumerate(torch.split(indices, self._batch_size)):
            draws = StepDraws(
                generator, self._stream_seed("offsets"), number, changed=self._one, disturbed=0 * self._one
            )
            on_device = part.to(data.storage_device)
            views = modality.views(data.inputs(on_device), data.labels[on_device].to(self.device), settings, draws)
            logits.append(self.received_logits(views.teacher))
        # Every class counts one sample more: one without any has no logarithm.
        n_each = self._subject.samples.labels[indices].bincount(minlength=self.num_classes) + 1
        return offsets_of(torch.cat(logits).cpu(), n_each / n_each.sum()).to(self.device)

    def insert_outlying(self) -> None:
        """Have ``views`` insert tokens whose rows are larger than clean texts explain, where there are such."""
        if self._suspects:
            self._set_found()

    @property
    def can_search(self) -> bool:
        """Whether ``search`` can be called."""
        return not self._subject.data.modality.why_not("searches", 1)

    def search(self) -> None:
        """Search the working copy for phrases that take samples to another class; ``views`` inserts what it finds.

        The first search is of all classes; later ones are of those that it takes the fewest tokens to move samples to.
        Every model has such phrases, words of a class; those of a backdoor are shorter or move more. Phrases around the
        tokens of ``ledger.outlying`` get a token more by each search.
        """
        ledger = self.ledger
        begin, known = self.clock.elapsed(), ledger.found
        options: dict[str, Any] = {"seed": self.seed + ledger.n_searches}
        with seeded(self.seed, self.device):
            if ledger.outlying:
                self._around = search_around(
                    self._subject,
                    self.split.recovery,
                    ledger.outlying[:_MOST_AROUND],
                    longest=_LONGEST_AROUND,
                    settings=_SEARCH,
                    begun=self._around,
                    **options,
                )
            found = search_phrases(
                self._subject,
                self.split.recovery,
                settings=_SEARCH,
                classes=self._searched,
                known=known,
                **options,
            )
        if self._searched is None:
            by_class = [[phrase for phrase in found if phrase.target == c] for c in range(self.num_classes)]
            sizes = [size_of(phrases, _SEARCH.longest) for phrases in by_class]
            limit = _SIZE_FACTOR * min(sizes) + _SIZE_MARGIN
            self._searched = [c for c, size in enumerate(sizes) if size <= limit]
        around = [phrase for one in self._around for phrase in one.phrases]
        new = [phrase for phrase in around if phrase.rate >= _LEAST_RATE_AROUND]
        for c, n in itertools.product(self._searched, range(1, _SEARCH.longest + 1)):
            kind = [phrase for phrase in found if phrase.target == c and len(phrase.ids) == n]
            new += [phrase for phrase in kind if phrase.rate >= _LEAST_RATE][:_MOST_OF_LENGTH]
        ledger.found = list(dict.fromkeys([*new, *known]))[:_MOST_FOUND]
        ledger.n_searches += 1
        ledger.search_seconds += self.clock.elapsed() - begin
        if ledger.found:
            self._set_found()

    def logits(self, inputs: Batch) -> Tensor:
        """Float32 logits of the working copy, computed in the run's precision."""
        return self._logits(self._as_compiled(), inputs)

    def received_logits(self, inputs: Batch) -> Tensor:
        """Float32 logits of the model as received, in eval mode, without grads: the target of distillation."""
        with torch.no_grad():
            return self._logits(self._as_received(), inputs)

    def embeddings(self, inputs: Batch) -> Tensor:
        """``(B, D)`` float32, standardized, of the working copy, a ``ProbedEncoder``."""
        return self._embeddings(self._as_compiled(), inputs)

    def received_embeddings(self, inputs: Batch) -> Tensor:
        """``embeddings`` of the model as received, in eval mode, without grads."""
        with torch.no_grad():
            return self._embeddings(self._as_received(), inputs)

    def fit_probe(self) -> None:
        """Fit the probe of the working copy, a ``ProbedEncoder``, to what it makes of the recovery part as it is now;
        clears ``final_counts``."""
        assert isinstance(self.model, ProbedEncoder)
        of = self.split.recovery
        with seeded(self.seed, self.device):
            self.model.fit(embed(self._subject, of), self._subject.samples.labels[of].to(self.device))
        self.final_counts = None

    def search_patterns(self, n_steps: int) -> None:
        """Search the working copy, a ``ProbedEncoder``, for small patterns that give all images one embedding.

        ``views`` stamps them on half of the student's images. Nothing where images have no known normalization.
        """
        begin, data = self.clock.elapsed(), self._subject.data
        if not isinstance(data.modality, ImageModality) or data.modality.mean is None:
            return
        with seeded(self.seed, self.device):
            if self._pattern_search is None:
                self._pattern_search = PatternSearch(self._subject, self.split.recovery, self.seed)
            self._patterns = self._pattern_search.run(self.model, n_steps)
        self.ledger.n_searches += 1
        self.ledger.search_seconds += self.clock.elapsed() - begin

    def evaluate_holdout(self) -> float:
        """Held-out accuracy in [0, 1]; also written to the history, with the mean loss since the last evaluation.

        Counts a prefix of a large held-out part in a fixed order: as many samples as take a tenth of the time of the
        steps since the last evaluation.
        """
        phase = self._phase
        assert phase is not None
        begin = self.clock.elapsed()
        self._check_loss(phase)
        affordable = _EVALUATION_SHARE * 3 * phase.n_unread * self._batch_size  # a forward pass is a third of a step
        watched = self._watched[: max(int(affordable), _FEWEST_WATCHED)]
        self._n_watched = len(watched)
        precision = self.compute.precision
        accuracy = self.count(precision, watched).accuracy
        loss = phase.stepper.step.take_loss_sum() / max(phase.n_unread, 1)
        phase.n_unread = 0
        point = HistoryPoint(phase.name, self.attempt, self.ledger.n_steps, self._pass_time(phase), loss, accuracy)
        listener().evaluated(Evaluated(point, watched, precision))
        self._pass_time(phase)
        self.ledger.evaluation_seconds += self.clock.elapsed() - begin
        return accuracy

    def last_evaluated(self) -> tuple[int, float]:
        """Number of samples that the last ``evaluate_holdout`` counted, and the accuracy as received on these."""
        n = self._n_watched
        if n == len(self._watched) or self._right_as_received is None:
            return n, self.accuracy_received
        return n, float(self._right_as_received[self._watched_order[:n]].float().mean())

    @property
    def halfway_to_guessing(self) -> float:
        """The mean of the received accuracy and that of guessing, in [0, 1]."""
        return (self.accuracy_received + 1 / self.num_classes) / 2

    def accuracy_is_back(self) -> bool:
        """Whether float32 accuracy on the whole held-out part is within the accuracy budget; sets ``final_counts``."""
        self.final_counts = self.count()
        n = len(self.split.holdout)
        n_lost = round(self.accuracy_received * n) - self.final_counts.n_correct
        return n_lost <= n_lost_allowed(n, self._accuracy_budget)

    def accuracy_missing(self) -> float:
        """Received minus current held-out accuracy, in [-1, 1], as counted by the last ``accuracy_is_back``."""
        assert self.final_counts is not None
        return self.accuracy_received - self.final_counts.accuracy

    def passes_of_pruning(self) -> float:
        """The time of ``prune_unused``, in forward passes over the held-out part."""
        n_measured = min(len(self.split.recovery), _MOST_PRUNED_BY)
        return 2 + 3 * n_measured / len(self.split.holdout)  # forward and backward is three times forward

    def prune_unused(self) -> None:
        """Hold at a constant what no answer to a clean sample depends on, and list it in ``ledger.pruned``.

        It is found on up to 512 samples that the model was trained on. Held-out ones decide whether it does harm: at
        most 0.3 % may be lost, twice as many answers change, and the mean confidence shift by 0.003. See
        ``seamfast.engine.pruning``.
        """
        recovery = self._shuffled_recovery()
        few, others = recovery[:_MOST_PRUNED_BY], torch.cat([recovery[_MOST_PRUNED_BY:], self.split.holdout])
        groups = parts_of(self._subject, few, others, self._used)
        groups = [only for group in groups if (only := self._may_be_held(group)) is not None]
        before = self.final_counts = self.final_counts or self.count()

        def is_harmless() -> bool:
            self.final_counts = self.count()
            return _answers_stay(before, self.final_counts)

        held = held_within(groups, self.model, is_harmless)
        self.ledger.pruned = [Pruned(group.layer, group.kind, n, len(group.effect)) for group, n in held]

    def unreached(self) -> list[str]:
        """Names of the parameters to train that no loss depended on, but for those of layers that pruning cleared; none
        before the first step."""
        cleared = {part.layer for part in self.ledger.pruned if part.kind == "layers"}
        to_train = {name for name in self.trained.names if name.rpartition(".")[0] not in cleared}
        return [
            name
            for name, p in self.model.named_parameters()
            if self._used and p.numel() and name in to_train - self._used
        ]

    def weights(self) -> dict[str, Tensor]:
        """A copy of all parameters and buffers as they are now, by name."""
        return self._working_copy.weights()

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Set the parameters and buffers to ``kept = weights()``; clears ``final_counts``."""
        self._working_copy.restore(kept)
        self.final_counts = None

    def time_for_another_attempt(self) -> bool:
        """Whether the remaining time is at least the mean time of the attempts so far."""
        seconds = sum(self.ledger.phase_seconds.values())
        return self.clock.elapsed() + seconds / (self.attempt + 1) <= self.clock.deadline

    def count(
        self,
        precision: Precision | None = None,
        of: Tensor | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
    ) -> Counts:
        """Clean outcomes of the working copy, by default on the held-out part and in float32."""
        # A model may draw in eval mode too; counting must not shift the draws of the training steps.
        with seeded(self.seed, self.device):
            return count_clean(
                self._subject,
                self.split.holdout if of is None else of,
                precision=precision or Precision(channels_last=self.compute.precision.channels_last),
                augmentation=augmentation,
            )

    def _shuffled_recovery(self) -> Tensor:
        """The samples of recovery, in an order by the seed."""
        order = torch.randperm(len(self.split.recovery), generator=torch.Generator().manual_seed(self.seed))
        return self.split.recovery[order]

    def _compare_rows(self) -> None:
        """Find the tokens whose rows, as received, are larger than clean texts explain."""
        data = self._subject.data
        if not isinstance(data.modality, TextModality) or data.modality.table is None:
            return
        counts = torch.zeros(data.modality.vocabulary.size, dtype=torch.int64, device=self.device)
        for part in torch.split(torch.cat([self.split.recovery, self.split.holdout]), 256):
            counts += data.modality.counts(data.inputs(part.to(data.storage_device)))
        table = self.model.get_submodule(data.modality.table).weight
        assert isinstance(table, Tensor)
        allowed = data.modality.vocabulary.insertable.to(self.device)
        surplus = surplus_of_rows(table.detach(), counts, allowed[allowed < len(table)])
        order = surplus.argsort(descending=True, stable=True)
        self._suspects = order[surplus[order] >= _INSERTED_FROM][:_MOST_INSERTED].tolist()
        self.ledger.outlying = order[(surplus[order] >= _HELD_FROM) & (counts[order] == 0)].tolist()

    def _set_found(self) -> None:
        modality = self._subject.data.modality
        assert isinstance(modality, TextModality)
        suspects = self._suspects
        parts = [(_ANY_CLASS, suspects[i : i + _SEARCH.longest]) for i in range(0, len(suspects), _SEARCH.longest)]
        found = [(phrase.target, phrase.ids) for phrase in self.ledger.found]
        self._found = modality.as_views_see([*found, *parts], self.device)

    def _may_be_held(self, group: Group) -> Group | None:
        """Of the rows of tokens, those that stand out: clean texts are few, and most words of the task are in none."""
        modality = self._subject.data.modality
        if group.kind != "rows" or not isinstance(modality, TextModality) or modality.table is None:
            return group
        if group.layer != modality.table or not self.ledger.outlying:
            return None
        may = torch.zeros_like(group.effect, dtype=torch.bool)
        may[self.ledger.outlying] = True
        return replace(group, effect=torch.where(may, group.effect, math.inf))

    def _take(self, rate: float) -> None:
        """Take the next step, check its loss, and record it."""
        phase, ledger = self._phase, self.ledger
        assert phase is not None
        phase.stepper.take(rate)
        if self.device.type != "cuda":  # on CUDA it synchronizes, so evaluations check it
            self._check_loss(phase)
        elif self.clock.budget_s is not None:
            torch.cuda.synchronize(self.device)  # the clock must include queued work
        phase.n_unread += 1
        ledger.n_steps += 1
        ledger.phase_steps[phase.name] = ledger.phase_steps.get(phase.name, 0) + 1
        if listener().end_step(ledger.n_steps, self._pass_time(phase)):
            raise RunStopped(f"stopped by a callback in the {phase.name} phase after step {ledger.n_steps}")

    def _check_loss(self, phase: _Phase) -> None:
        bad = phase.stepper.step.bad_step()
        if bad is not None:
            number, value = bad
            raise RunStopped(f"the loss became {value} in the {phase.name} phase at step {phase.first_step + number}")

    def _logits(self, model: nn.Module, inputs: Batch) -> Tensor:
        precision = self.compute.precision
        with precision.computing(self.device, compiled=self.compute.compiles):
            return logits_of(model, precision.laid_out(inputs)).float()

    def _embeddings(self, model: nn.Module, inputs: Batch) -> Tensor:
        precision = self.compute.precision
        with precision.computing(self.device, compiled=self.compute.compiles):
            embeddings: Tensor = call(model, precision.laid_out(inputs))["embedding"]
            return embeddings.float()

    def _as_compiled(self) -> nn.Module:
        if self._student is None:
            self._student = self._compiled(self.model)
        return self._student

    def _as_received(self) -> nn.Module:
        if self._teacher is None:
            teacher = self._working_copy.frozen_received()
            self.compute.precision.prepare(teacher)
            self._teacher = self._compiled(teacher)
        return self._teacher

    def _compiled(self, model: nn.Module) -> nn.Module:
        return torch.compile(model) if self.compute.compiles else model  # type: ignore[return-value]

    def _pass_time(self, phase: _Phase) -> float:
        """Add the seconds since the last call to the phase; returns those since the start."""
        now = self.clock.elapsed()
        seconds = self.ledger.phase_seconds
        seconds[phase.name] = seconds.get(phase.name, 0.0) + now - phase.mark
        phase.mark = now
        return now

    def _stream_seed(self, purpose: str) -> int:
        """A 63-bit seed, different for each purpose and attempt."""
        tag = int.from_bytes(purpose.encode()[:8].ljust(8, b"\0"), "little")
        return (self.seed * 0x9E3779B97F4A7C15 + tag * 0xC2B2AE3D27D4EB4F + self.attempt + 1) % 2**63


def _answers_stay(before: Counts, after: Counts) -> bool:
    most = _MOST_LOST_BY_PRUNING * before.n_samples
    n_changed = int((before.answers != after.answers).sum())
    shift = abs(before.confidence - after.confidence)
    few_changes = n_changed <= 2 * most and before.n_correct - after.n_correct <= most
    return few_changes and shift <= _MOST_LOST_BY_PRUNING  # NaN is no small shift


def distillation_loss(logits: Tensor, received: Tensor, temperature: float) -> Tensor:
    """``T**2 * KL(softmax(received / T) || softmax(logits / T))``, mean over the batch, in nats.

    Source: Hinton et al., "Distilling the knowledge in a neural network", arXiv:1503.02531.
    """
    wanted = F.log_softmax(received / temperature, 1)
    got = F.log_softmax(logits / temperature, 1)
    return temperature**2 * F.kl_div(got, wanted, reduction="batchmean", log_target=True)


def offsets_of(logits: Tensor, shares: Tensor, n_rounds: int = 200) -> Tensor:
    """``(C,)`` offsets with ``softmax(logits + offsets, 1).mean(0) == shares``, of mean 0; all 0 without finite logits.

    Args:
        logits: ``(N, C)``.
        shares: ``(C,)``, above 0, of sum 1.
        n_rounds: of the iteration, in each of which the logarithm of what is missing is added.
    """
    logits = logits.double()
    logits = logits[logits.isfinite().all(1)]
    offsets = torch.zeros(logits.shape[1], dtype=torch.float64)
    for _ in range(n_rounds if len(logits) else 0):
        missing = shares.double().log() - F.softmax(logits + offsets, 1).mean(0).clamp(min=1e-12).log()
        offsets += missing
    return (offsets - offsets.mean()).float()
