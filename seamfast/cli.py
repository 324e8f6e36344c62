"""The command line: a thin layer over the public API. Documents go to stdout, progress and errors to stderr.

Exit codes: 0 done (``sanitize``: accepted) · 1 not accepted · 2 could not complete · 3 input refused · 4 usage.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from seamfast import ops
from seamfast._version import __version__
from seamfast.attacks import ARCHITECTURES, TrainConfig, poison, train
from seamfast.data import CleanSet, draw_by_class
from seamfast.data.readers import load
from seamfast.errors import SanitizeInterrupted, SeamfastError
from seamfast.evaluate import Evaluation, evaluate
from seamfast.methods import METHODS, MethodConfig, config_class
from seamfast.model_files import ModelDescription, load_model, save_model
from seamfast.record import comparison, evaluation_values, machine
from seamfast.sanitize import SanitizeResult, sanitize
from seamfast.triggers import Patch, Trigger, load_triggers, save_triggers

EXIT_OK, EXIT_NOT_ACCEPTED, EXIT_INCOMPLETE, EXIT_REFUSED, EXIT_USAGE = range(5)


@dataclass(frozen=True)
class _Recipe:
    """How ``plant`` and ``demo`` train on a data set."""

    architecture: str
    training: TrainConfig
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


_RECIPES = {
    "digits": _Recipe("small_cnn", TrainConfig(epochs=40, batch_size=64)),
    "mnist": _Recipe("small_cnn", TrainConfig(epochs=6)),
    "fashion-mnist": _Recipe("small_cnn", TrainConfig(epochs=8)),
    "cifar10": _Recipe(
        "narrow_resnet18",
        TrainConfig(epochs=20, rate=0.1, crop_pad=4, flip=True),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
    ),
}
_OTHER_RECIPE = _Recipe("small_cnn", TrainConfig(epochs=10))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except SanitizeInterrupted as stop:
        print(f"seamfast: {stop}", file=sys.stderr)
        if stop.report is not None and getattr(arguments, "out", None):
            path = Path(arguments.out) / "report.json"
            stop.report.save(path)
            print(f"seamfast: partial report in {path}", file=sys.stderr)
        return EXIT_INCOMPLETE
    except KeyboardInterrupt:
        print("seamfast: interrupted", file=sys.stderr)
        return EXIT_INCOMPLETE
    except SeamfastError as error:
        print(f"seamfast: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except (OSError, MemoryError) as error:
        print(f"seamfast: could not complete: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_INCOMPLETE
    return code


# The commands


def _demo(arguments: argparse.Namespace) -> int:
    say = _teller(arguments)
    out = Path(arguments.out)
    planted = _plant_model(arguments, say)
    trigger, test_set = planted.trigger, planted.test_set
    clean = planted.train_set.subset(draw_by_class(planted.train_set.labels, arguments.fraction, seed=arguments.seed))
    say(f"sanitising blind with {len(clean)} clean images ({arguments.fraction:.1%} of the training set) ...")
    started = time.perf_counter()
    # The trigger is only measured, for the picture's curve: it changes nothing.
    result = sanitize(planted.model, clean, triggers=[trigger], seed=arguments.seed, device=arguments.device)
    seconds = time.perf_counter() - started
    before = evaluate(planted.model, test_set, triggers=[trigger], device=arguments.device)
    after = evaluate(result.model, test_set, triggers=[trigger], device=arguments.device)
    result.report["test"] = comparison(before, after)
    result.report.save(out / "report.json")
    save_model(out / "sanitized", result.model, planted.description)
    files = ["report.json", "sanitized/"]
    if importlib.util.find_spec("matplotlib"):
        from seamfast.plot import save_picture

        save_picture(out / "demo.png", planted.model, result.model, test_set, trigger, result.history)
        files.append("demo.png")
    ratio = planted.seconds / seconds
    if arguments.json:
        print(json.dumps({**result.report, "demo": {"train_s": planted.seconds, "sanitize_s": seconds}}, indent=2))
        return _exit_code(result)
    _print_before_after(before, after, result)
    print(
        f"\nsanitised in {seconds:.2f} s; training such a model from scratch took {planted.seconds:.2f} s: {ratio:.1f}x"
    )
    print(f"accepted: {result.accepted} ({result.reason})")
    _print_warnings(result)
    print(f"written to {out}/: {', '.join(files)}")
    return _exit_code(result)


def _plant(arguments: argparse.Namespace) -> int:
    planted = _plant_model(arguments, _teller(arguments))
    out = Path(arguments.out)
    evaluation = evaluate(planted.model, planted.test_set, triggers=[planted.trigger], device=arguments.device)
    save_model(out, planted.model, planted.description)
    save_triggers(out / "triggers.npz", [planted.trigger])
    if arguments.json:
        print(json.dumps({"test": evaluation_values(evaluation), "train_s": planted.seconds}, indent=2))
    else:
        print(f"on {len(planted.test_set)} test images:\n{evaluation}")
        print(f"written to {out}/: model.safetensors, model.json, triggers.npz")
    return EXIT_OK


def _sanitize(arguments: argparse.Namespace) -> int:
    say = _teller(arguments)
    config = _read_config(arguments)
    model, description = load_model(arguments.model)
    triggers = load_triggers(arguments.triggers) if arguments.triggers else ()
    data = _load_data(arguments, description, "train")
    if arguments.fraction < 1:
        data = data.subset(draw_by_class(data.labels, arguments.fraction, seed=arguments.seed))
    say(f"sanitising {arguments.model} with {len(data)} clean images ...")
    result = sanitize(
        model,
        data,
        method=arguments.method,
        config=config,
        triggers=triggers,
        seed=arguments.seed,
        device=arguments.device,
        time_budget_s=arguments.time_budget,
    )
    if arguments.out:
        out = Path(arguments.out)
        result.report.save(out / "report.json")
        # A model that was not accepted is not written: a pipeline that looks for the file alone must not find it.
        if result.accepted:
            save_model(out, result.model, description)
    if arguments.json:
        print(result.report.to_json(), end="")
    else:
        holdout = result.report["holdout"]
        for when in ("before", "after"):
            rate = holdout[when]["clean_accuracy"]
            line = f"held-out accuracy {when:<7} {rate['value']:.4f} [{rate['low']:.4f}, {rate['high']:.4f}]"
            rates = [f"ASR {t['name']} {t['attack_success_rate']['value']:.4f}" for t in holdout[when]["triggers"]]
            print("  ".join([line, *rates]))
        run = result.report["run"]
        print(f"steps {run['steps']}, {run['seconds']['total']:.2f} s")
        print(f"accepted: {result.accepted} ({result.reason})")
        _print_warnings(result)
        if arguments.out:
            print(
                f"written to {arguments.out}/: report.json"
                + (", model.safetensors, model.json" if result.accepted else "")
            )
    return _exit_code(result)


def _evaluate(arguments: argparse.Namespace) -> int:
    model, description = load_model(arguments.model)
    triggers = load_triggers(arguments.triggers) if arguments.triggers else ()
    data = _load_data(arguments, description, "test")
    evaluation = evaluate(model, data, triggers=triggers, device=arguments.device)
    if arguments.json:
        print(json.dumps(evaluation_values(evaluation), indent=2))
    else:
        print(f"on {len(data)} images:\n{evaluation}")
    return EXIT_OK


def _doctor(arguments: argparse.Namespace) -> int:
    versions = {"seamfast": __version__, **machine()}
    extras = {
        "safetensors": ("safetensors", "model folders"),
        "pillow": ("PIL", "image folders and zips: seamfast[images]"),
        "matplotlib": ("matplotlib", "pictures: seamfast[plot]"),
        "scikit-learn": ("sklearn", "the digits of the demo: seamfast[demo]"),
        "triton": ("triton", "GPU kernels: seamfast[triton]"),
    }
    packages = {
        name: {"present": importlib.util.find_spec(module) is not None, "for": use}
        for name, (module, use) in extras.items()
    }
    rows = ops.backends()
    if arguments.json:
        print(json.dumps({"versions": versions, "packages": packages, "backends": rows}, indent=2))
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
    print(f"\n{'op':<16} {'backend':<10} available")
    for entry in rows:
        state = "yes" if entry["available"] else f"no: {entry['reason']}"
        detail = f"  ({entry['isa']}, {entry['threads']} threads)" if entry["available"] and entry.get("isa") else ""
        print(f"{entry['op']:<16} {entry['backend']:<10} {state}{detail}")
    return EXIT_OK


# What they share


@dataclass(frozen=True)
class _Planted:
    model: torch.nn.Module
    description: ModelDescription
    trigger: Trigger
    train_set: CleanSet
    test_set: CleanSet
    seconds: float


def _plant_model(arguments: argparse.Namespace, say: Any) -> _Planted:
    recipe = _RECIPES.get(arguments.data, _OTHER_RECIPE)
    options: dict[str, Any] = {"mean": recipe.mean, "std": recipe.std}
    if arguments.root is not None:
        options["root"] = arguments.root
    train_set = load(arguments.data, split="train", **options)
    test_set = load(arguments.data, split="test", **options)
    channels, height, _ = train_set.image_shape
    description = ModelDescription(
        architecture=arguments.architecture or recipe.architecture,
        num_classes=train_set.num_classes or int(train_set.labels.max()) + 1,
        in_channels=channels,
        image_size=height,
        mean=recipe.mean,
        std=recipe.std,
    )
    description.check_images(train_set)
    trigger = Patch.square(size=3, target=arguments.target)
    poisoned = poison(train_set, trigger, arguments.rate, seed=arguments.seed)
    epochs = arguments.epochs or recipe.training.epochs
    training = TrainConfig(**{**vars(recipe.training), "epochs": epochs})
    say(
        f"planting a backdoor: {description.architecture} on {len(train_set)} images for {epochs} epochs, "
        f"{int(poisoned.poisoned.sum())} of them with a 3x3 patch and label {arguments.target} ..."
    )
    torch.manual_seed(arguments.seed)
    started = time.perf_counter()
    model = train(description.build(), poisoned, training, seed=arguments.seed, device=arguments.device)
    return _Planted(model, description, trigger, train_set, test_set, time.perf_counter() - started)


def _load_data(arguments: argparse.Namespace, description: ModelDescription, split: str) -> CleanSet:
    options: dict[str, Any] = {"mean": description.mean, "std": description.std}
    if arguments.root is not None:
        options["root"] = arguments.root
    # A file or folder holds one set unless the caller says otherwise; the named sets have two.
    by_name = arguments.data in _RECIPES
    data = load(arguments.data, split=arguments.split or (split if by_name else None), **options)
    description.check_images(data)
    return data


def _read_config(arguments: argparse.Namespace) -> MethodConfig | None:
    if not arguments.config:
        return None
    return config_class(arguments.method).from_toml(Path(arguments.config).read_text(encoding="utf-8"))


def _teller(arguments: argparse.Namespace) -> Any:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    return say


def _exit_code(result: SanitizeResult) -> int:
    return EXIT_OK if result.accepted else EXIT_NOT_ACCEPTED


def _print_before_after(before: Evaluation, after: Evaluation, result: SanitizeResult) -> None:
    test = result.report["test"]
    print(f"\n{'on the test set':<22}{'as received':>14}{'sanitised':>14}")
    rows = [("clean accuracy (ACC)", before.clean_accuracy.value, after.clean_accuracy.value)]
    for b, a in zip(before.triggers, after.triggers, strict=True):
        rows.append((f"ASR, {b.name}", b.attack_success_rate.value, a.attack_success_rate.value))
        rows.append((f"RA, {b.name}", b.robust_accuracy.value, a.robust_accuracy.value))
    for name, first, second in rows:
        print(f"{name:<22}{_percent(first):>14}{_percent(second):>14}")
    for name in ("fidelity", "fidelity_nist"):
        print(f"{name:<22}{'':>14}{_percent(test[name]):>14}")


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2%}"


def _print_warnings(result: SanitizeResult) -> None:
    for warning in result.report["warnings"]:
        print(f"warning: {warning}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="seamfast", description="Make a trained classifier forget its backdoor, blind.", epilog=__doc__
    )
    parser.add_argument(
        "--version", action="version", version=f"seamfast {__version__} (Python {platform.python_version()})"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        return sub

    def data_options(sub: argparse.ArgumentParser, default: str | None) -> None:
        sub.add_argument(
            "--data",
            default=default,
            required=default is None,
            help="digits, mnist, fashion-mnist, cifar10, or a path: .npz, .zip, folder of class folders"
            + _default(default),
        )
        sub.add_argument("--root", help="folder that holds the files of a data set given by name")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda:0 (default: auto)")
        sub.add_argument("--seed", type=_at_least(0), default=0, help="default: 0")

    def plant_options(sub: argparse.ArgumentParser) -> None:
        data_options(sub, "digits")
        sub.add_argument("--architecture", choices=sorted(ARCHITECTURES), help="default: by data set")
        sub.add_argument("--epochs", type=_at_least(1), help="default: by data set")
        sub.add_argument("--rate", type=_fraction, default=0.05, help="share of poisoned samples (default: 0.05)")
        sub.add_argument("--target", type=_at_least(0), default=0, help="the attacker's class (default: 0)")

    demo = command("demo", _demo, "plant a backdoor, sanitise blind, print before and after")
    plant_options(demo)
    demo.add_argument("--fraction", type=_fraction, default=0.05, help="share of clean training data (default: 0.05)")
    demo.add_argument(
        "--out", default="seamfast-demo", help="folder for report.json and demo.png (default: seamfast-demo)"
    )

    plant = command("plant", _plant, "train a model with a backdoor in it, to test a gate")
    plant_options(plant)
    plant.add_argument("--out", required=True, help="folder for model.safetensors, model.json and triggers.npz")

    cure = command("sanitize", _sanitize, "sanitise a model folder with clean data")
    cure.add_argument("model", help="folder with model.safetensors and model.json")
    data_options(cure, None)
    cure.add_argument("--split", help="part of the data set to use (default: train)")
    cure.add_argument("--fraction", type=_fraction, default=1.0, help="share of the data to use, by class (default: 1)")
    cure.add_argument("--method", choices=sorted(METHODS), default="seam", help="default: seam")
    cure.add_argument("--config", help="TOML file with settings of the method")
    cure.add_argument("--triggers", help="npz of known triggers: measured for the report, never used")
    cure.add_argument("--time-budget", type=_seconds, help="seconds for the run")
    cure.add_argument("--out", help="folder for report.json and, if accepted, the model")

    look = command("evaluate", _evaluate, "clean accuracy, and ASR and RA of known triggers")
    look.add_argument("model", help="folder with model.safetensors and model.json")
    data_options(look, None)
    look.add_argument("--split", help="part of the data set to use (default: test)")
    look.add_argument("--triggers", help="npz of triggers")

    command("doctor", _doctor, "versions, devices, backends, and why one is missing")
    return parser


def _default(value: str | None) -> str:
    return "" if value is None else f" (default: {value})"


def _at_least(least: int) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small; expected an integer of at least {least}")
        return value

    return parse


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is out of range; expected a number in (0, 1]")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is out of range; expected seconds above 0")
    return value
