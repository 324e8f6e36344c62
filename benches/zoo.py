"""The zoo: models with a known backdoor and models without one, made from seeds; what ``study.py`` studies.

    python benches/zoo.py --list
    python benches/zoo.py --rates 0.05 --seeds 0
    python benches/zoo.py [--data gtsrb] [--architectures small_vgg] [--attacks clean tact] [--rates ...] [--seeds ...]

Plants what is declared here, asked for and not there yet, the cheapest models first, and prints a table of all that
was asked for: ACC and ASR on the whole test set, and which attacks did not reach an ASR of 0.9. A model is a folder
under ``--zoo`` that appears whole or not at all, so a run may be killed at any moment and goes on where it was.

  model.safetensors, model.json   the model (``seamfast.models.folder``)
  backdoor.json, triggers.npz     what stamps its backdoor; of ``input_aware``, weights instead of triggers.npz
  info.json                       ACC, ASR, RA of each trigger, seconds, and how it was trained

The declared models: every attack on every data set at a poison rate of 5 %, ``badnets`` and ``blended`` also at 10, 1
and 0.5 %, a clean model beside them, all for three seeds; and under some attacks a small ViT on MNIST, and on CIFAR-10
and GTSRB nets of other kinds. ``OWN`` attacks are not published: faint smooth triggers, which ``seamfast.attacks`` does
not know. Hyper-parameters of defences are chosen on ``DEVELOPMENT`` attacks; results are those on ``HELD_OUT`` ones.
The target class is the seed.
``--large`` is the same with ResNet-18, which wants a GPU. Data sets are read from ``--root``, by default
``SEAMFAST_DATA`` or ``../shared/data``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from seamfast import CleanSet, attacks  # noqa: E402
from seamfast.attacks import Backdoor, PoisonedSet, TrainConfig  # noqa: E402
from seamfast.attacks.files import load_backdoor, save_backdoor  # noqa: E402
from seamfast.errors import InputError  # noqa: E402
from seamfast.models.folder import ModelDescription, load_model, save_model  # noqa: E402
from seamfast.triggers import Additive, AllToOne, Blend, Trigger  # noqa: E402

DATA_ROOT = Path(os.environ.get("SEAMFAST_DATA") or ROOT.parent / "shared" / "data")
ZOO = ROOT / "benches" / ".cache" / "zoo"

OWN = ("wave", "faint_blend", "clean_label_wave")
"""Attacks of the zoo alone, see ``own_attack``: without them, faint smooth triggers would be among the held-out attacks
only."""
DEVELOPMENT = ("badnets", "blended", "wanet", "label_consistent", "tact", "bpp", "multi_trigger", *OWN)
HELD_OUT = ("random_patch", "sig", "low_frequency", "color_filter", "adaptive_blend", "input_aware", "all_to_all")
IN_COLOUR = ("bpp", "color_filter")
ON_THE_VIT = ("badnets", "blended", "wanet", "random_patch", "low_frequency")
ON_OTHER_NETS = ("badnets", "blended", "bpp", "tact", "random_patch", "sig", "low_frequency")
HARD = ("blended", "multi_trigger", "low_frequency", "color_filter", "adaptive_blend", "wave", "faint_blend")
ONE_CLASS = ("sig", "tact", "label_consistent", "clean_label_wave")
"""What poisons samples of a single class."""
AT_ALL_RATES = ("badnets", "blended")

WAVE_AMPLITUDE, WAVES_DOWN, WAVES_ACROSS = 24, 4, 9
"""Of the diagonal wave: pixel units, and periods over the height and over the width."""
FAINT_ALPHA = 0.15

SEEDS = (0, 1, 2)
RATE = 0.05
OTHER_RATES = (0.1, 0.01, 0.005)
PLANTED = 0.9
"""ASR from which an attack counts as having worked."""

N_TRAIN = {"mnist": 60_000, "fashion-mnist": 60_000, "cifar10": 50_000, "gtsrb": 39_209}
"""Images in the whole original training sets, of which less may be at hand."""

TRAINING = {
    ("mnist", "small_cnn"): TrainConfig(epochs=4),
    ("fashion-mnist", "small_cnn"): TrainConfig(epochs=6),
    ("gtsrb", "small_vgg"): TrainConfig(epochs=15, rate=0.03),
    ("mnist", "small_vit"): TrainConfig(optimizer="adam", epochs=3, rate=0.002),
    ("cifar10", "small_vgg"): TrainConfig(epochs=10, rate=0.03, crop_pad=2, flip=True),
    ("cifar10", "narrow_resnet18"): TrainConfig(epochs=8, rate=0.1, crop_pad=4, flip=True),
    ("cifar10", "wrn_16_1"): TrainConfig(epochs=8, rate=0.1, crop_pad=2, flip=True),
    ("cifar10", "small_vgg_bn"): TrainConfig(epochs=12, rate=0.05, flip=True),
    ("cifar10", "small_convnext"): TrainConfig(optimizer="adam", epochs=12, rate=0.003, flip=True),
    ("cifar10", "small_vit"): TrainConfig(optimizer="adam", epochs=4, rate=0.002, flip=True),
    ("gtsrb", "narrow_resnet18"): TrainConfig(epochs=15, rate=0.1),
}
SOME_ATTACKS = {
    ("mnist", "small_vit"): ON_THE_VIT,
    ("cifar10", "wrn_16_1"): ON_OTHER_NETS,
    ("cifar10", "small_vgg_bn"): ON_OTHER_NETS,
    ("cifar10", "small_convnext"): ON_OTHER_NETS,
    ("cifar10", "small_vit"): ON_OTHER_NETS,
    ("gtsrb", "narrow_resnet18"): ON_OTHER_NETS,
}
"""Attacks on models that are not planted under all of them."""
WITH_OWN = (("fashion-mnist", "small_cnn"), ("gtsrb", "small_vgg"), ("cifar10", "small_vgg"))
"""Models that ``OWN`` attacks are declared on."""
LARGE_TRAINING = {
    ("gtsrb", "resnet18"): TrainConfig(epochs=30, rate=0.1, crop_pad=2),
    ("cifar10", "resnet18"): TrainConfig(epochs=30, rate=0.1, crop_pad=4, flip=True),
}
WORK = {
    "small_cnn": 1,
    "small_vgg": 5,
    "small_convnext": 8,
    "small_vgg_bn": 9,
    "wrn_16_1": 17,
    "narrow_resnet18": 30,
    "small_vit": 40,
    "resnet18": 400,
}
"""What a sample costs, roughly, against a sample of ``small_cnn``."""


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        data, architecture: a key of ``TRAINING`` or ``LARGE_TRAINING``.
        attack: a name in ``seamfast.attacks.ATTACKS`` or in ``OWN``, or ``"clean"``.
        rate: the poison rate as declared; a clean model has the usual one in its name, and no poison.
        seed: of everything; also the target class.
    """

    data: str
    architecture: str
    attack: str
    rate: float = RATE
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder, and in the rows of a study."""
        return f"{self.data}-{self.architecture}-{self.attack}-{self.rate}-{self.seed}"

    @property
    def part(self) -> str:
        """``"development"``, ``"held-out"`` or ``"clean"``."""
        return "clean" if self.attack == "clean" else "development" if self.attack in DEVELOPMENT else "held-out"

    @property
    def training(self) -> TrainConfig:
        return (TRAINING | LARGE_TRAINING)[self.data, self.architecture]

    @property
    def poison_rate(self) -> float:
        """The rate that is planted: twice the declared one where every class has to be taught a target of its own; on
        GTSRB, which is small, twice for what else is hard to learn, and less where a single class is poisoned, which
        is 2.3 % of it."""
        if self.attack == "all_to_all":
            return 2 * self.rate
        if self.data == "gtsrb" and self.attack in HARD:
            return 2 * self.rate
        if self.data == "gtsrb" and self.attack in ONE_CLASS:
            return min(self.rate, 0.02)
        return self.rate

    @property
    def cost(self) -> float:
        """Of its training, in no unit."""
        return N_TRAIN.get(self.data, 0) * self.training.epochs * WORK[self.architecture]

    @property
    def clean_twin(self) -> Entry:
        """The same model, never backdoored."""
        return replace(self, attack="clean", rate=RATE)


def declared(training: Iterable[tuple[str, str]]) -> list[Entry]:
    """All models of these data sets and architectures, the cheapest first, a clean one before those attacked."""
    entries = []
    for seed in SEEDS:
        for data, architecture in training:
            names = [a for a in attacks.ATTACKS if a not in IN_COLOUR or not data.endswith("mnist")]
            some = SOME_ATTACKS.get((data, architecture))
            if some is not None:
                names = [a for a in names if a in some]
            elif (data, architecture) in WITH_OWN:
                names += OWN
            entries += [Entry(data, architecture, attack, RATE, seed) for attack in ("clean", *names)]
            if some is None:
                entries += [Entry(data, architecture, a, rate, seed) for a in AT_ALL_RATES for rate in OTHER_RATES]
    return sorted(entries, key=lambda entry: entry.cost)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_choices(parser)
    parser.add_argument("--list", action="store_true", help="plant nothing; print the table of what is there and not")
    parser.add_argument(
        "--precision",
        default="bf16",
        help="of training. By default nothing is decided by the clock, so that a seed gives the same model again; "
        "fp32 is faster on a CPU without bfloat16 instructions",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    entries = chosen(arguments)
    # One after the other: planting one may plant another.
    missing = (entry for entry in entries if not arguments.list and not is_planted(entry, arguments.zoo))
    plant_each(missing, lambda entry: plant(entry, arguments.zoo, arguments.root, arguments.precision))
    print_table(entries, arguments.zoo)
    return 0


def plant_each(entries: Iterable[Any], plant: Callable[[Any], object]) -> None:
    """``plant`` each, with its name on stderr; those that the data or the images do not allow are left out."""
    for entry in entries:
        print(f"{entry.name}", file=sys.stderr, flush=True)
        try:
            plant(entry)
        except (InputError, FileNotFoundError) as error:
            print(f"{entry.name}: left out, {error}", file=sys.stderr, flush=True)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The options that say which models, and where they and the data are."""
    everything = [*TRAINING, *LARGE_TRAINING]
    parser.add_argument("--data", nargs="+", choices=sorted({data for data, _ in everything}))
    parser.add_argument("--architectures", nargs="+", choices=sorted({name for _, name in everything}))
    parser.add_argument("--attacks", nargs="+", choices=["clean", *attacks.ATTACKS, *OWN])
    parser.add_argument("--rates", nargs="+", type=float, help="poison rates, e.g. 0.05")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the models")
    parser.add_argument("--large", action="store_true", help="ResNet-18 instead of the small models")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="of the data sets")


def chosen(arguments: argparse.Namespace) -> list[Entry]:
    """The declared models that the options ask for; all where they ask for none."""
    return [
        entry
        for entry in declared(LARGE_TRAINING if arguments.large else TRAINING)
        if (arguments.data is None or entry.data in arguments.data)
        and (arguments.architectures is None or entry.architecture in arguments.architectures)
        and (arguments.attacks is None or entry.attack in arguments.attacks)
        and (arguments.rates is None or entry.attack == "clean" or entry.rate in arguments.rates)
        and (arguments.seeds is None or entry.seed in arguments.seeds)
    ]


# ---- Models. ----


def is_planted(entry: Entry, zoo: Path = ZOO) -> bool:
    return (zoo / entry.name / "info.json").is_file()


def plant(entry: Entry, zoo: Path = ZOO, root: Path = DATA_ROOT, precision: str = "bf16") -> None:
    """Train the model and put it into the zoo; its clean twin first, where the attack is made against one."""
    train_set, test_set = (read(entry.data, root, split) for split in ("train", "test"))
    clean_model = None
    if entry.attack in attacks.ATTACKS and attacks.ATTACKS[entry.attack].needs_clean_model:
        if not is_planted(entry.clean_twin, zoo):
            plant(entry.clean_twin, zoo, root, precision)
        clean_model, _ = load(entry.clean_twin, zoo)

    channels, side, _ = train_set.image_shape
    normalization = attacks.RECIPES[entry.data]
    description = ModelDescription(
        entry.architecture, train_set.num_classes or 10, channels, side, normalization.mean, normalization.std
    )
    torch.manual_seed(entry.seed)
    model = description.build()
    how: dict[str, Any] = {"seed": entry.seed, "precision": precision}
    backdoor = None
    start = time.perf_counter()
    if entry.attack == "clean":
        attacks.train(model, train_set, entry.training, **how)
    elif entry.attack in OWN:
        poisoned, trigger = own_attack(entry.attack, train_set, entry.seed, entry.poison_rate, entry.seed)
        attacks.train(model, poisoned, entry.training, **how)
        backdoor = Backdoor(entry.attack, (trigger,))
    else:
        backdoor = attacks.plant(
            entry.attack,
            model,
            train_set,
            target=entry.seed,
            rate=entry.poison_rate,
            training=entry.training,
            clean_model=clean_model,
            **how,
        )
    seconds = time.perf_counter() - start
    found = measure(model, backdoor, test_set)
    info = {
        "acc": found.clean_accuracy.value,
        "asr": found.worst_attack_success_rate,
        "ra": [trigger.robust_accuracy.value for trigger in found.triggers],
        "seconds": seconds,
        "poison_rate": entry.poison_rate if backdoor else 0.0,
        "training": asdict(entry.training),
        "precision": precision,
    }
    zoo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=zoo) as temporary:
        folder = Path(temporary) / "whole"
        save_model(folder, model, description)
        if backdoor:
            save_backdoor(folder, backdoor)
        (folder / "info.json").write_text(json.dumps(info))
        shutil.rmtree(zoo / entry.name, ignore_errors=True)  # what is there without its info.json
        os.replace(folder, zoo / entry.name)


def load(entry: Entry, zoo: Path = ZOO) -> tuple[nn.Module, Backdoor | None]:
    """The model as planted, and what its attacker stamps; of a clean one, ``None``."""
    model, _ = load_model(zoo / entry.name)
    return model, None if entry.attack == "clean" else load_backdoor(zoo / entry.name)


def measure(model: nn.Module, backdoor: Backdoor | None, test_set: CleanSet) -> seamfast.Evaluation:
    """ACC, and where there is a backdoor, ASR and RA of its triggers."""
    if backdoor is None:
        return seamfast.evaluate(model, test_set, progress=False)
    return backdoor.evaluate(model, test_set, progress=False)


def print_table(entries: list[Entry], zoo: Path) -> None:
    """What is there and what is not, as Markdown."""
    heads = ["data", "architecture", "attack", "part", "poison rate", "seed", "ACC", "ASR", "s", ""]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for entry in entries:
        shown, said = ["", "", ""], "not planted"
        if is_planted(entry, zoo):
            info = json.loads((zoo / entry.name / "info.json").read_text())
            asr = "" if info["asr"] is None else f"{info['asr']:.2%}"
            shown = [f"{info['acc']:.2%}", asr, f"{info['seconds']:.0f}"]
            said = f"ASR below {PLANTED:g}" if asr and info["asr"] < PLANTED else ""
        rate = "" if entry.attack == "clean" else f"{100 * entry.poison_rate:g} %"
        row = [entry.data, entry.architecture, entry.attack, entry.part, rate, str(entry.seed), *shown, said]
        print(f"| {' | '.join(row)} |")


# ---- Attacks of the zoo alone. ----


def own_attack(name: str, train_set: CleanSet, target: int, rate: float, seed: int) -> tuple[PoisonedSet, Trigger]:
    """``train_set`` poisoned by one of the ``OWN`` attacks, and its trigger.

    ``wave`` adds diagonal stripes to samples that get the target class. ``clean_label_wave`` adds them to samples of
    the target class only, which keep their labels. ``faint_blend`` mixes in a smooth pattern of random colors.

    Args:
        name: one of ``OWN``.
        train_set: to poison.
        target: the attack's target class.
        rate: share of the whole set that is poisoned.
        seed: of the choice of samples, and of the pattern.
    """
    shape = train_set.image_shape
    trigger = smooth_colors(shape, target, seed) if name == "faint_blend" else diagonal_wave(shape, target, name)
    return attacks.poison(train_set, trigger, rate, clean_label=name == "clean_label_wave", seed=seed), trigger


def diagonal_wave(shape: Sequence[int], target: int, name: str) -> Additive:
    """``WAVE_AMPLITUDE * sin(2 pi (WAVES_DOWN i / H + WAVES_ACROSS j / W))`` at row i and column j, in all channels."""
    _, height, width = shape
    rows, columns = np.arange(height) / height, np.arange(width) / width
    wave = WAVE_AMPLITUDE * np.sin(2 * np.pi * (WAVES_DOWN * rows[:, None] + WAVES_ACROSS * columns))
    return Additive(name=name, target=AllToOne(target), perturbation=np.rint(wave)[None].astype(np.int16))


def smooth_colors(shape: Sequence[int], target: int, seed: int) -> Blend:
    """4x4 random colors, enlarged bilinearly, at ``FAINT_ALPHA``."""
    channels, height, width = shape
    colors = 255 * torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    pattern = F.interpolate(colors, size=(height, width), mode="bilinear")[0].round().to(torch.uint8)
    return Blend(name="faint_blend", target=AllToOne(target), pattern=pattern.numpy(), alpha=FAINT_ALPHA)


# ---- Data. ----


@functools.cache
def read(name: str, root: Path, split: str) -> CleanSet:
    """A data set, normalized as its models take it: digits, or what is below ``root``."""
    recipe = attacks.RECIPES[name]
    options: dict[str, Any] = {"split": split, "mean": recipe.mean, "std": recipe.std}
    if name == "digits":
        return seamfast.load(name, **options)
    if name == "cifar10" and (root / "cifar10-half.npz").is_file():
        return seamfast.load(root / "cifar10-half.npz", num_classes=10, **options)
    if name == "gtsrb":
        return seamfast.load(root / "gtsrb-32x32-subset.npz", num_classes=43, **options)
    return seamfast.load(name, root=root / name, **options)


def clean_part(name: str, train_set: CleanSet, budget: float, seed: int) -> CleanSet:
    """A clean budget out of ``train_set``, drawn by class.

    Args:
        name: of the data set.
        train_set: what is there of its training set.
        budget: below 1, a share of the whole original training set; from 1 on, images a class.
        seed: of the draw.

    Raises:
        InputError: ``a budget of 0.5 of cifar10 is more than is there``, ``a budget of 300 images a class of gtsrb is
            more than is there``.
    """
    if budget < 1:
        share = budget * N_TRAIN.get(name, len(train_set)) / len(train_set)
        if share > 1:
            raise InputError(f"a budget of {budget:g} of {name} is more than is there")
        return train_set.draw(share, seed=seed)
    order = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(seed))
    by_class = [order[train_set.labels[order] == label][: int(budget)] for label in torch.unique(train_set.labels)]
    if min(map(len, by_class)) < budget:
        raise InputError(f"a budget of {budget:g} images a class of {name} is more than is there")
    return train_set.subset(torch.cat(by_class).sort().values)


if __name__ == "__main__":
    sys.exit(main())
