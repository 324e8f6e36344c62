"""``sanitize``: the one file that knows the order forget, recover, evaluate, report."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from seamfast.data import CleanSet, PoisonedSet, as_clean_set, split_by_class
from seamfast.data.resident import Resident
from seamfast.engine.events import Announcer, HistoryPoint
from seamfast.engine.host import in_use, seeded
from seamfast.engine.model import WorkingCopy, digest, resolve_device
from seamfast.engine.precision import check_precision
from seamfast.engine.run import Clock, Run, RunStopped
from seamfast.errors import ConfigError, InputError, SanitizeInterrupted
from seamfast.evaluate import as_called, check_triggers, probe_logits
from seamfast.methods import MethodConfig, SeamConfig, config_class, run_method
from seamfast.ops._check import MAX_THREADS
from seamfast.record import RunRecord
from seamfast.report import Report
from seamfast.triggers import Trigger
from seamfast.triggers.checks import as_integer


@dataclass(frozen=True)
class SanitizeResult:
    """What ``sanitize`` returns.

    Attributes:
        model: the sanitised copy, in the dtype, device, mode and trainability of the given model. Where the run broke
            off (NaN, a callback, the time budget), a copy of the model as received.
        report: see ``seamfast.report``.
        history: held-out accuracy and loss over the steps.
        accepted: whether the run was completed and held-out accuracy is back within its budget. Act on this first.
    """

    model: nn.Module
    report: Report
    history: tuple[HistoryPoint, ...]
    accepted: bool

    @property
    def reason(self) -> str:
        """Why the result was accepted, or not, in one sentence."""
        return str(self.report["verdict"]["reason"])


def sanitize(
    model: nn.Module,
    clean_loader: Any,
    *,
    method: str = "seam",
    config: MethodConfig | None = None,
    preset: str | None = None,
    triggers: Sequence[Trigger] = (),
    augments: bool | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    threads: int | None = None,
    deterministic: bool = False,
    compile: bool = False,
    time_budget_s: float | None = None,
    progress: bool | None = None,
    callbacks: Iterable[Any] = (),
) -> SanitizeResult:
    """``copy.deepcopy(model)``, made to forget any backdoor and then trained back to its task on clean data. Blind.

    The clean data is split, class by class, into a part to train on and a held-out part; when to stop, how hard to
    push and whether to accept are decided on the held-out part alone. Known ``triggers`` are measured for the report,
    and change nothing.

    Args:
        model: any ``nn.Module`` that returns logits ``(B, C)``: a tensor, or an object or dict with ``logits``. Read
            only: its weights, grads, mode, hooks and device stay as they are.
        clean_loader: a ``DataLoader``, a ``Dataset``, an ``(inputs, labels)`` pair of tensors or arrays, or a
            ``seamfast.CleanSet``. Inputs in the form the model takes (floats already normalised are fine), or uint8
            images with their normalisation in a ``CleanSet``. Labels: integers in ``[0, C)``.
        method: ``"seam"``, ``"fine_tune"`` or ``"super_fine_tune"``.
        config: of the method; ``None`` for its defaults.
        preset: of ``"seam"``, in place of a config: ``"fast"``, ``"balanced"`` (its defaults) or ``"thorough"``; see
            ``seamfast.SeamConfig.preset``.
        triggers: known triggers to measure on the held-out part before, during and after.
        augments: whether samples of ``clean_loader`` come out differently each time that they are read. ``True``: they
            are read anew whenever training comes to them, for which it must be a map-style ``Dataset``, or a
            ``DataLoader`` over one; what is held out stays as it was first read. ``False``: all are read once.
            ``None``: found out, by reading up to 64 samples twice. What they draw from torch's generator ``seed``
            decides; NumPy's and Python's are the caller's to seed, but in workers.
        seed: an integer in ``[0, 2**63)``; same seed, data, machine and precision: same weights on a CPU.
        device: ``"auto"``: where the model is, or CUDA if it is on the CPU and there is one; or a torch device.
        precision: ``"auto"``: the fastest of float32 and bfloat16, in either memory layout, as a few training steps
            of each on a copy show, where its gradients agree with float32's; the report says which and why. ``"fp32"``:
            plain float32, nothing tried. ``"bf16"``: bfloat16 if its gradients agree. Weights are float32 throughout,
            and what the report says of the model is measured in float32.
        threads: of PyTorch and of the C++ kernels, at least 1, for this call; ``None``: as many as PyTorch is set to,
            or one where a trial step is faster so, as beside other load. PyTorch's own setting is put back.
        deterministic: decide nothing by the clock (float32 unless ``precision`` says otherwise, PyTorch's threads
            unless ``threads`` does) and use PyTorch's deterministic algorithms: same seed, same machine, same weights
            to the bit. On CUDA, PyTorch raises where it has none, and wants ``CUBLAS_WORKSPACE_CONFIG`` set.
        compile: run the model's forward and backward passes through ``torch.compile``. That takes half a minute and
            more before the first step, longer than most runs.
        time_budget_s: seconds for the whole call; schedules are shortened to fit. ``None``: no limit.
        progress: show a progress bar on stderr; ``None``: where that is a terminal.
        callbacks: objects with some of the methods of ``seamfast.Callback``.

    Returns:
        SanitizeResult: check ``.accepted`` before ``.model`` is used.

    Raises:
        InputError, ConfigError, ModelError: the model or the data cannot be used; the message names the value got and
            the value wanted. Nothing has been changed.
        SanitizeInterrupted: on Ctrl-C; a ``KeyboardInterrupt`` whose ``.report`` holds the partial report.

    Example:
        >>> import torch, seamfast
        >>> inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> labels = (inputs.sum(1) > 0).long()
        >>> result = seamfast.sanitize(torch.nn.Linear(4, 2), (inputs, labels))
        >>> result.report["data"]["n_holdout"]
        13
    """
    clock = Clock(time_budget_s)
    settings = _check_arguments(model, method, config, preset, triggers, time_budget_s, callbacks)
    check_precision(precision)
    threads = _check_threads(threads)
    for name, value in (("deterministic", deterministic), ("compile", compile)):
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; expected True or False")
    seed = _check_seed(seed)
    target = resolve_device(device, model)
    # Seeded, as dropout, and loaders that shuffle or augment, draw from torch's global generators; and with grads,
    # also where the caller has turned them off.
    with seeded(seed, target), torch.inference_mode(False), in_use():
        samples = _check_samples(as_clean_set(clean_loader, augments=augments))
        samples = as_called(model, samples)
        copied = WorkingCopy(model, target)
        data = Resident(samples, target)
        num_classes = probe_logits(copied.model, data)
        if len(samples) < num_classes:
            raise InputError(
                f"clean_loader holds {len(samples)} samples; expected at least one for each of {num_classes} classes"
            )
        check_triggers(triggers, samples, num_classes)
        _check_augmentation(settings, samples)
        split = split_by_class(
            samples.labels,
            holdout_fraction=settings.holdout_fraction,
            forget_fraction=getattr(settings, "forget_fraction", 1.0),
            seed=seed,
        )
        if not len(split.holdout):
            raise InputError(
                f"clean_loader holds {len(samples)} samples, one a class; expected at least two of one class, "
                "to hold one out"
            )

        announcer = Announcer(callbacks, settings, copied.model, progress)
        run = Run(
            copied,
            data,
            split,
            num_classes=num_classes,
            seed=seed,
            clock=clock,
            announcer=announcer,
            accuracy_budget=settings.accuracy_budget,
            triggers=triggers,
            compiles=compile,
        )
        record = RunRecord(model, method, settings, samples, split, run, time_budget_s)
        try:
            run.settle(
                threads=threads,
                precision=precision,
                deterministic=deterministic,
                batch_size=settings.batch_size,
                pad=settings.crop_pad,
                flip=settings.flip,
            )
            record.before = run.measure_received()
            announcer.tell("on_train_begin")
            run_method(method, run, settings)
            # In the dtypes in which the model is handed back: what is measured is what is returned.
            rounded = copied.round_to_given_dtypes()
            record.after = run.count(triggers) if rounded or run.final_counts is None else run.final_counts
            if record.after.n_nan:
                raise RunStopped("the sanitised model returned NaN on held-out data")
        except RunStopped as stop:
            record.stopped = str(stop)
            record.after = record.before
        except KeyboardInterrupt as interrupt:
            state = announcer.state
            record.stopped = f"interrupted in the {state.phase or 'first'} phase at step {state.global_step}"
            raise SanitizeInterrupted(record.stopped, record.report() if record.before else None) from interrupt
        finally:
            announcer.tell("on_train_end")
        returned = copied.finish() if record.stopped is None else _copy_of(model)
        record.digest_after = digest(returned)
        report = record.report()
        return SanitizeResult(returned, report, tuple(announcer.state.log_history), bool(report["verdict"]["accepted"]))


def _copy_of(model: nn.Module) -> nn.Module:
    """A deep copy without grads: to the bit, where the float32 of a working copy would round float64 weights."""
    received = copy.deepcopy(model)
    received.zero_grad(set_to_none=True)
    return received


def _check_arguments(
    model: Any, method: Any, config: Any, preset: Any, triggers: Any, time_budget_s: Any, callbacks: Any
) -> MethodConfig:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    wanted = config_class(method)
    if config is not None and not isinstance(config, wanted):
        raise ConfigError(f"config is a {type(config).__name__}; expected {wanted.__name__} for method {method!r}")
    if preset is not None:
        if config is not None:
            raise ConfigError(f"preset is {preset!r} and a config is given; expected one of them")
        if wanted is not SeamConfig:
            raise ConfigError(f"preset is {preset!r}; expected None for method {method!r}")
        config = SeamConfig.preset(preset)
    if not isinstance(triggers, Sequence):
        raise InputError(f"triggers is a {type(triggers).__name__}; expected a list of triggers")
    if not isinstance(callbacks, Iterable):
        raise InputError(f"callbacks is a {type(callbacks).__name__}; expected a list of callbacks")
    is_number = isinstance(time_budget_s, (int, float)) and not isinstance(time_budget_s, bool)
    if time_budget_s is not None and not (is_number and 0 < time_budget_s < float("inf")):
        raise InputError(f"time_budget_s is {time_budget_s!r}; expected a number of seconds above 0, or None")
    return config if config is not None else wanted()


def _check_seed(seed: Any) -> int:
    number = as_integer(seed)
    if number is None or not 0 <= number < 2**63:
        raise InputError(f"seed is {seed!r}; expected an integer in [0, 2**63)")
    return number


def _check_threads(threads: Any) -> int | None:
    number = as_integer(threads)
    if threads is not None and (number is None or not 1 <= number <= MAX_THREADS):
        raise InputError(f"threads is {threads!r}; expected an integer in [1, {MAX_THREADS}], or None")
    return number


def _check_samples(samples: CleanSet) -> CleanSet:
    if isinstance(samples, PoisonedSet):
        raise InputError(
            "clean_loader is a PoisonedSet; expected clean data: recovery on poisoned data teaches the backdoor"
        )
    if not len(samples):
        raise InputError("clean_loader holds no samples; expected at least one of each class")
    present = torch.unique(samples.labels).tolist()
    if len(present) < 2:
        raise InputError(f"clean_loader holds one class only ({present[0]}); expected at least two")
    return samples


def _check_augmentation(settings: MethodConfig, samples: CleanSet) -> None:
    if not samples.is_pixels and (settings.crop_pad or settings.flip):
        raise ConfigError(
            f"crop_pad is {settings.crop_pad} and flip {settings.flip}, which need uint8 pixels; the inputs are not: "
            "pass a seamfast.CleanSet of uint8 images, or set crop_pad=0 and flip=False"
        )
    if settings.crop_pad and settings.crop_pad >= min(samples.image_shape[1:]):
        raise ConfigError(
            f"crop_pad is {settings.crop_pad}; expected less than the image side {min(samples.image_shape[1:])}"
        )
