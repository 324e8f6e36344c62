"""``sanitize``: forget, recover, evaluate, report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seamfast.acceptance import PairedOutcomes
from seamfast.checks import as_seed, as_threads, check_flag, check_time_budget
from seamfast.data import CleanSet, split_by_class
from seamfast.data.allowance import Allowance
from seamfast.data.holdout import HeldOut, read_clean
from seamfast.data.resident import Resident, wrap_around_batches
from seamfast.data.split import Split, split_before
from seamfast.engine.callbacks import check_callbacks
from seamfast.engine.compute import choose_compute
from seamfast.engine.counting import Counts
from seamfast.engine.encoder import ProbedEncoder
from seamfast.engine.events import CallbackHandler, HistoryPoint, listening
from seamfast.engine.host import in_use, seeded
from seamfast.engine.model import WorkingCopy, digest, resolve_device
from seamfast.engine.precision import Precision, check_precision
from seamfast.engine.run import Clock, Run, RunStopped
from seamfast.engine.subject import Subject, as_called
from seamfast.engine.trainable import changed_frozen, check_trainable, choose_trainable
from seamfast.errors import ConfigError, InputError, SanitizeInterrupted
from seamfast.evaluate import as_evaluation
from seamfast.guessing import accuracy_of_guessing, is_better_than_guessing, likely_cause
from seamfast.methods import MethodConfig, SeamAuthorsConfig, SeamConfig, SeamEncoderConfig, config_class, run_method
from seamfast.observer import TriggerObserver
from seamfast.record import RunRecord
from seamfast.report import Report
from seamfast.triggers import Trigger

if TYPE_CHECKING:
    from seamfast.audits.sequela import Given, Sequela

_FEW_SAMPLES = 64
"""Enough to tell a good model from guessing at next to no cost."""

_READING_SHARE = 0.25
"""Of a time budget, for reading: with half of it, too few recovery steps were left to accept the result."""


@dataclass(frozen=True)
class SanitizeResult:
    """What ``sanitize`` returns.

    Attributes:
        model: the sanitized copy, in the dtype, device, mode and trainability of the given model; a copy of the model
            as received if the run ended early (NaN, a callback, the time budget).
        report: see ``seamfast.report``.
        history: held-out accuracy and loss over the steps.
        accepted: whether every check of the report passed. Check this first.
        recovery: int64 indices of the samples that were trained on, among those of the clean data that are not in
            ``holdout``: the ``clean`` members of ``seamfast.audits.sequela``.
    """

    model: nn.Module
    report: Report
    history: tuple[HistoryPoint, ...]
    accepted: bool
    recovery: Tensor

    @property
    def outcome(self) -> str:
        """``"accepted"``; ``"undecided"``: the held-out samples cannot tell; ``"refused"``: the result is bad."""
        return str(self.report["verdict"]["outcome"])

    @property
    def reason(self) -> str:
        """Why the result was accepted or not, in one sentence."""
        return str(self.report["verdict"]["reason"])


def sanitize(
    model: nn.Module,
    clean_loader: Any,
    *,
    method: str = "seam",
    config: MethodConfig | None = None,
    preset: str | None = None,
    triggers: Sequence[Trigger] = (),
    holdout: Any = None,
    trainable: str | Sequence[str] | None = None,
    augments: bool | None = None,
    eval_transform: Callable[[Any], Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    threads: int | None = None,
    deterministic: bool = False,
    compile: bool = False,
    time_budget_s: float | None = None,
    max_samples: int | None = None,
    audits: Sequence[str] = (),
    progress: bool | None = None,
    callbacks: Iterable[Any] = (),
) -> SanitizeResult:
    """``copy.deepcopy(model)``, trained to forget any backdoor and then retrained for its task on clean data.

    The clean data are split within each class into a training part and a held-out part, or all of them are trained on
    and ``holdout`` is held out. When to stop, how strongly to forget and whether to accept are decided on held-out
    samples alone. Known ``triggers`` are measured for the report and do not influence the run.

    A result is accepted if the model as received is better than guessing (else it is returned at once), the run was
    completed, at least half of its recovery steps were taken, the held-out samples are not augmented, the accuracy lost
    on them is within ``accuracy_budget``, and its one-sided 95 % upper bound within ``accuracy_limit``: see
    ``MethodConfig``. Few held-out samples cannot show this: of fewer than 49, none is enough by default.

    Args:
        model: any ``nn.Module`` that returns logits ``(B, C)``: a tensor, an object or dict with ``logits``, or a tuple
            such as ``(loss, logits)``. Its ``forward`` may take labels if it does not need them. Not modified: its
            weights, grads, mode, hooks and device stay as they are.
        clean_loader: a ``DataLoader``, a ``Dataset``, an ``(inputs, labels)`` pair of tensors or arrays, a
            ``seamfast.CleanSet``, or a ``LightningDataModule``, of which the validation data are taken. Inputs as the
            model takes them (e.g. normalized floats), or uint8 images with their normalization in a ``CleanSet``.
            Labels: integers in ``[0, C)``.
        method: ``"seam"``, ``"seam_authors"``, ``"fine_tune"`` or ``"super_fine_tune"``.
        config: of the method; ``None``: its defaults, of ``"seam"`` those for the kind of sample.
        preset: of ``"seam"``, instead of a config: ``"fast"``, ``"balanced"`` (the defaults) or ``"thorough"``; see
            ``seamfast.SeamConfig.preset``.
        triggers: known triggers to measure on the held-out part before, during and after.
        holdout: samples that the training of ``model`` did not see, in any form that ``clean_loader`` takes, of the
            same kind and normalization. They are never trained on: samples of ``clean_loader`` that are among them are
            left out. ``None``: a fifth of each class of ``clean_loader`` is held out.
        trainable: the parameters that are trained and pruned. ``"all"``: all of floating-point numbers, also those that
            do not require grad. ``"as_given"``: those that require grad. A list: those of these names, or of names that
            match these patterns (``"*.lora_*"``), as in ``named_parameters``. ``None``: ``"as_given"`` for a model with
            adapters (LoRA, IA3, a module of PEFT) some of whose parameters are frozen and some are not, else ``"all"``.
            The other parameters keep every bit, and so do the buffers of modules without a trained parameter, such as
            the running statistics of a frozen BatchNorm, which normalizes by them in training too. The report counts
            the parameters that were frozen as given and were changed.
        augments: whether each read of ``clean_loader`` gives different samples. ``True``: training reads them again,
            which requires a map-style ``Dataset`` or a ``DataLoader`` over one; held-out samples stay as first read.
            ``False``: all are read once. ``None``: detected by reading up to 64 samples twice. ``seed`` seeds torch's
            generators; seeding NumPy's and Python's outside of workers is up to the caller.
        eval_transform: of data that augment: a deterministic transform that takes the place of the dataset's attribute
            ``transform`` when held-out samples are read, of ``holdout`` if it is given. ``None``: the attribute
            ``eval_transform`` of the dataset, if there is one. Without either, nothing is accepted on augmented
            held-out samples.
        seed: an integer in ``[0, 2**63)``; same seed, data, machine and precision: same weights on a CPU.
        device: a torch device, or ``"auto"``: the model's, or CUDA if the model is on the CPU and there is one.
        precision: ``"auto"``: the fastest of float32 and bfloat16, in either memory layout, in a few training steps on
            a copy, provided that its gradients agree with float32's; the report holds the choice and the reason.
            ``"fp32"``: float32 without trials. ``"bf16"``: bfloat16 if its gradients agree. Weights are always
            float32, and the reported outcomes are measured in float32.
        threads: of PyTorch and of the C++ kernels, at least 1, for this call; ``None``: as many as PyTorch is set to,
            or one if a trial step is faster with it. PyTorch's own setting is restored.
        deterministic: choose nothing by timing (float32 and PyTorch's threads by default) and use PyTorch's
            deterministic algorithms: same seed, same machine, same weights to the bit. On CUDA, PyTorch raises if it
            has no such algorithm, and requires ``CUBLAS_WORKSPACE_CONFIG``.
        compile: run the model through ``torch.compile``, which takes half a minute or more before the first step.
        time_budget_s: seconds for the whole call; schedules are shortened to fit. A quarter of it is for reading, an
            eighth each where ``holdout`` is given: after that no further batch is asked for, and the run has what was
            read. ``None``: no limit; data without end are then read until memory is full, or ``max_samples``.
        max_samples: samples that are read of ``clean_loader``, and of ``holdout``, at most. Of data with indices or in
            memory so many are drawn, always the same ones; of a stream they are the first. ``None``: all.
        audits: names in ``seamfast.audits.AUDITS``, for the report: how the cure changed the weakness to other attacks,
            by ``seamfast.audits.sequela`` on the held-out part, after the cure. Its ``clean`` members are the recovery
            part; the training data of ``model`` are not known here. ``triggers`` are those of ``"reactivation"``. They
            take what the cure leaves of ``time_budget_s``; one that this does not suffice for, or that fails, is left
            out, with a warning.
        progress: show a progress bar on stderr; ``None``: if that is a terminal.
        callbacks: objects with some of the methods of ``seamfast.Callback``, callbacks of ``transformers.Trainer``, and
            loggers of Lightning. An error in one is a warning, and the run goes on.

    Returns:
        SanitizeResult: check ``.accepted`` before using ``.model``.

    Raises:
        InputError, ConfigError, ModelError: the model or the data cannot be used; the message names the value received
            and the value expected. Nothing has been changed.
        SanitizeInterrupted: on Ctrl-C; a ``KeyboardInterrupt`` whose ``.report`` holds the partial report.

    Example:
        >>> import torch, seamfast
        >>> inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> labels = (inputs.sum(1) > 0).long()
        >>> model = torch.nn.Linear(4, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 4))
        >>> result = seamfast.sanitize(model, (inputs, labels))
        >>> result.report["data"]["n_holdout"], result.outcome
        (13, 'undecided')
    """
    clock = Clock(time_budget_s)
    method, settings = _check_arguments(model, method, config, preset, triggers)
    callbacks = check_callbacks(callbacks)
    check_time_budget(time_budget_s)
    check_precision(precision)
    threads, seed = as_threads(threads), as_seed(seed)
    check_flag("deterministic", deterministic)
    check_flag("compile", compile)
    check_trainable(trainable)
    reading_s = None if time_budget_s is None else time_budget_s * _READING_SHARE / (1 if holdout is None else 2)
    allowances = Allowance(max_samples, reading_s), Allowance(max_samples, reading_s)
    trained = choose_trainable(model, trainable)
    target = resolve_device(device, model)
    # Dropout and loaders draw from torch's global generators. Grads are needed even if the caller disabled them.
    with seeded(seed, target), torch.inference_mode(False), in_use(), ExitStack() as ending:
        read, held_out = read_clean(
            clean_loader, holdout, augments=augments, eval_transform=eval_transform, allowances=allowances
        )
        samples = as_called(model, read)
        copied = WorkingCopy(model, target, trained)
        subject = Subject.of(copied.model, Resident(samples, target))
        n_clean = len(samples) - held_out.n_given
        if n_clean < subject.num_classes:
            raise InputError(
                f"clean_loader holds {n_clean} samples; expected at least one for each of {subject.num_classes} classes"
            )
        subject.check_triggers(triggers)
        if config is None and isinstance(settings, SeamConfig):
            settings = SeamConfig.preset(preset or "balanced", samples.modality)
        left_out = settings.check_modality(samples.modality)
        split = split_of(samples, held_out, settings, seed)
        if not len(split.holdout):
            raise InputError(
                f"clean_loader holds {n_clean} samples, no two different ones of a class; expected two, to hold one out"
            )

        asked = _asked_audits(audits, samples, split, triggers, seed, target, progress) if audits else None
        observer = TriggerObserver(subject, triggers, split.holdout, seed)
        handler = CallbackHandler(callbacks, settings, copied.model, progress, observer.rates)
        ending.enter_context(handler)
        augmentation = settings.augmentation(seed)
        run = Run(
            copied,
            subject,
            split,
            batch_size=settings.batch_size,
            augmentation=augmentation,
            seed=seed,
            clock=clock,
            accuracy_budget=settings.accuracy_budget,
        )
        record = RunRecord(
            model, method, settings, subject, run, handler.state.log_history, held_out, left_out, allowances
        )
        try:
            record.guesses = _why_it_guesses(run)
            if record.guesses is not None:
                record.before = as_evaluation(run.measure_received(), observer.counts(Precision()))
                raise RunStopped(record.guesses)
            run.compute = choose_compute(
                subject,
                next(wrap_around_batches(split.recovery, settings.batch_size, seed)),
                augmentation,
                threads=threads,
                precision=precision,
                deterministic=deterministic,
                compiles=compile,
                seed=seed,
                limit_s=(clock.deadline - clock.elapsed()) / 10,
            )
            in_float32 = Precision(channels_last=run.compute.precision.channels_last)
            begin = clock.elapsed()
            record.returns_probabilities = subject.returns_probabilities(split.holdout[:64])
            received = run.measure_received()
            record.before = as_evaluation(received, observer.counts(in_float32))
            record.confidence = received.confidence
            # For the same measurement at the end, and for what pruning takes before it.
            n_passes = 1.5 + (run.passes_of_pruning() if settings.prune else 0.0)
            clock.reserve(n_passes * (clock.elapsed() - begin))
            with listening(handler):
                handler.notify("on_train_begin")
                run_method(method, run, settings)
            # Measure the weights as they are returned: rounded to the given dtypes.
            rounded = copied.round_to_given_dtypes()
            counts = run.count() if rounded or run.final_counts is None else run.final_counts
            record.after = as_evaluation(counts, observer.counts(in_float32))
            record.pairs = _paired(received, counts)
            if record.after.n_nan:
                raise RunStopped("the sanitized model returned NaN on held-out data")
        except RunStopped as stop:
            record.stopped = str(stop)
            record.after = record.before
        except KeyboardInterrupt as interrupt:
            state = handler.state
            record.stopped = f"interrupted in the {state.phase or 'first'} phase at step {state.global_step}"
            raise SanitizeInterrupted(record.stopped, record.report() if record.before else None) from interrupt
        finally:
            handler.close()
        returned = copied.finish() if record.stopped is None else _copy_of(model)
        record.digest_after = digest(returned)
        record.frozen_changed = changed_frozen(model, returned)
        if asked is not None:
            begin = clock.elapsed()
            try:
                record.sequela = _audited(model, returned, *asked, record.stopped, clock)
            except KeyboardInterrupt as interrupt:
                raise SanitizeInterrupted("interrupted in the audits", record.report()) from interrupt
            record.audit_seconds = clock.elapsed() - begin
        report = record.report()
        accepted = bool(report["verdict"]["accepted"])
        handler.finish(returned, report)
        return SanitizeResult(returned, report, tuple(handler.state.log_history), accepted, split.recovery)


def _asked_audits(
    audits: Sequence[str],
    samples: CleanSet,
    split: Split,
    triggers: Sequence[Trigger],
    seed: int,
    device: torch.device,
    progress: bool | None,
) -> tuple[tuple[str, ...], Given]:
    """Names, and what there is: outsiders are the held-out part, and the recovery part is what the cure trains on."""
    from seamfast.audits.sequela import Given, check_audits  # most runs have none

    held_out, recovery = samples.subset(split.holdout), samples.subset(split.recovery)
    given = Given(held_out, None, recovery, tuple(triggers), seed=seed, device=device, progress=progress)
    return check_audits(audits, given), given


def _audited(
    received: nn.Module, sanitized: nn.Module, names: Sequence[str], given: Given, stopped: str | None, clock: Clock
) -> Sequela:
    from seamfast.audits.sequela import Sequela, sequela_of

    if stopped is not None:
        left_out = dict.fromkeys(names, f"the model is returned as received: {stopped}")
        return Sequela({}, left_out, len(given.data), given.level, given.seed)
    time_left = None if clock.budget_s is None else clock.budget_s - clock.elapsed()
    # A failure must not cost the model that was sanitized.
    return sequela_of(received, sanitized, names, given, time_left, raises=False)


def split_of(samples: CleanSet, held_out: HeldOut, settings: MethodConfig, seed: int) -> Split:
    """The parts of a run: the samples that the caller held out, or a share of each class."""
    drawn: dict[str, Any] = {"forget_fraction": settings.forgotten_share, "seed": seed}
    if held_out.n_given:
        return split_before(samples.labels, held_out.n_given, **drawn)
    identities = samples.identities() if held_out.origins is None else held_out.origins
    return split_by_class(samples.labels, holdout_fraction=settings.holdout_fraction, identities=identities, **drawn)


def _why_it_guesses(run: Run) -> str | None:
    """Why the model as received cannot be told from guessing on the clean samples; ``None`` if it can be."""
    # As few samples as show it: first some of the held-out ones, at last all.
    split, order = run.split, torch.Generator().manual_seed(run.seed)
    few = split.holdout[torch.randperm(len(split.holdout), generator=order)[:_FEW_SAMPLES]]
    for samples in (few, split.holdout, torch.cat([split.recovery, split.holdout])):
        counts = run.count(of=samples)
        if is_better_than_guessing(counts):
            return None
    return (
        f"the model as received is right on {counts.n_correct} of {counts.n_samples} clean samples, not measurably "
        f"more than guessing ({accuracy_of_guessing(counts):.1%}): {likely_cause(counts)}"
    )


def _paired(before: Counts, after: Counts) -> PairedOutcomes:
    first, second = before.correct, after.correct
    return PairedOutcomes(len(first), n_lost=int((first & ~second).sum()), n_gained=int((~first & second).sum()))


def _copy_of(model: nn.Module) -> nn.Module:
    """A deep copy without grads. A working copy would round float64 weights to float32."""
    received = copy.deepcopy(model)
    received.zero_grad()
    return received


def _check_arguments(model: Any, method: Any, config: Any, preset: Any, triggers: Any) -> tuple[str, MethodConfig]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if method == "seam" and isinstance(config, SeamAuthorsConfig):  # until 0.2.0, such configs were given to "seam"
        method = "seam_authors"
    expected = SeamEncoderConfig if isinstance(model, ProbedEncoder) else config_class(method)
    if config is not None and not isinstance(config, expected):
        raise ConfigError(f"config is a {type(config).__name__}; expected {expected.__name__} for method {method!r}")
    if preset is not None:
        if config is not None:
            raise ConfigError(f"preset is {preset!r} and a config is given; expected one of them")
        if expected is not SeamConfig:
            raise ConfigError(f"preset is {preset!r}; expected None for method {method!r}")
        config = SeamConfig.preset(preset)
    if not isinstance(triggers, Sequence):
        raise InputError(f"triggers is a {type(triggers).__name__}; expected a list of triggers")
    return method, config if config is not None else expected()
