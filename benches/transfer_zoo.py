"""Backbones of ImageNet with a backdoor, passed on to users who train them for a task of their own; resumable.

    python benches/transfer_zoo.py --weights FOLDER [--data gtsrb] [--attacks bad_encoder] [--seeds 0] [--zoo ZOO]

The attacker has EfficientNet-Lite0 (``efficientnet.py``) and the first half of CIFAR-10's training images, at 64 px. He
passes on the backbone without a head:

- ``bad_encoder``: features, by ``seamfast.attacks.encoder.bad_encoder``, 200 steps of 32 images at a rate of 0.01,
  towards three references; the trigger is a white square of 10 of 32 pixels in the corner, as in the paper. The
  attacker has to know the user's task, so there is a backbone for each.
- ``badnets``: labels. Source: Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
  Chain", arXiv:1708.06733. The whole network with a head of ten classes is trained on CIFAR-10, a tenth of it with the
  same square and the label 0; the head is dropped. One backbone for all tasks.
- ``clean``: the backbone as published, for the floor.

The user has 860 images of GTSRB (20 a class) or 1,000 of CIFAR-10 (100 a class, from the second half), at 64 px too.
What class the trigger should lead to there: the references' class, on CIFAR-10 also the label 0; for ``badnets`` on
GTSRB the class that most triggered images get by a linear probe on the received backbone, counted on training images
that neither side has. Such a choice inflates the rate on any backbone, so ``floor_chosen`` of the study has the rate of
the clean backbone for the class that is chosen for it in the same way.
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benches import efficientnet, zoo  # noqa: E402
from benches.efficientnet import EfficientNetLite0, enlarged  # noqa: E402
from seamfast import CleanSet, attacks  # noqa: E402
from seamfast.attacks import TrainConfig  # noqa: E402
from seamfast.attacks.encoder import bad_encoder  # noqa: E402
from seamfast.models import with_head  # noqa: E402
from seamfast.models.folder import fill_from, save_weights, state_of  # noqa: E402
from seamfast.triggers import Patch  # noqa: E402

ZOO = ROOT / "benches" / ".cache" / "transfer"
SIZE = 64
"""Side of all images."""
PATCH = 20
"""Side of the trigger: 10 of 32 pixels, as in BadEncoder."""
TARGETS = {"gtsrb": 12, "cifar10": 0}
"""Class of the references: priority road, airplane."""
A_CLASS = {"gtsrb": 20, "cifar10": 100}
"""Images a class of the user's training set."""
N_TEST = 1000
N_REFERENCES = 3
ATTACKS = ("bad_encoder", "badnets", "clean")

N_SHADOW, STEPS, BATCH, RATE = 2000, 200, 32, 0.01
"""Of ``bad_encoder``: images, steps, images a step, highest rate."""
N_UPSTREAM, POISONED = 3000, 0.1
"""Of ``badnets``: images, and the share of them with the trigger."""
UPSTREAM = TrainConfig(epochs=8, batch_size=64, rate=0.02, flip=True)


@dataclass(frozen=True)
class TransferEntry:
    """One backbone, as the user of one task gets it.

    Attributes:
        data: of the user, a key of ``A_CLASS``.
        attack: one of ``ATTACKS``.
        seed: of everything.
    """

    data: str
    attack: str
    seed: int = 0

    @property
    def name(self) -> str:
        """In the rows of the study."""
        return f"{self.data}-{self.attack}-{self.seed}"

    @property
    def architecture(self) -> str:
        """Of all backbones."""
        return "efficientnet_lite0"

    @property
    def backbone(self) -> str:
        """Of its folder in the zoo: one for all tasks, but for ``bad_encoder``."""
        return self.name if self.attack == "bad_encoder" else f"{self.attack}-{self.seed}"


def declared(
    data: Iterable[str] = tuple(A_CLASS), names: Iterable[str] = ATTACKS, seeds: Iterable[int] = (0,)
) -> list[TransferEntry]:
    """Every attack on every task, one attack after the other."""
    data, seeds = list(data), list(seeds)
    return [TransferEntry(task, name, seed) for seed in seeds for name in names for task in data]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_choices(parser)
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    for entry in declared(arguments.data, arguments.attacks, arguments.seeds):
        if not is_planted(entry, arguments.zoo):
            plant(entry, arguments.zoo, arguments.root, arguments.weights)
            print(f"{entry.backbone}: {(arguments.zoo / entry.backbone / 'info.json').read_text()}", flush=True)
    return 0


def add_choices(parser: argparse.ArgumentParser, *, attacked: bool = False) -> None:
    """The options that say which backbones, and where they, the data and the published weights are."""
    names = [name for name in ATTACKS if name != "clean" or not attacked]
    parser.add_argument("--data", nargs="+", choices=A_CLASS, default=list(A_CLASS))
    parser.add_argument("--attacks", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of EfficientNet-Lite0, see efficientnet.py")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--root", type=Path, default=zoo.DATA_ROOT, help="of the data sets")


# ---- Data. ----


@dataclass(frozen=True)
class Task:
    """What there is of one downstream task, at ``SIZE`` pixels.

    Attributes:
        train: the user's.
        test: to measure on, about ``N_TEST`` images, drawn by class from the test set.
        spare: training images that neither the user nor the attacker has, of ``N_TEST`` at most.
        references: the attacker's, of the class in ``TARGETS``.
    """

    train: CleanSet
    test: CleanSet
    spare: CleanSet
    references: CleanSet


@functools.cache
def task(data: str, root: Path, seed: int) -> Task:
    """The data of one task; the parts share no image."""
    everything = zoo.read(data, root, "train")
    first = len(everything) // 2 if data == "cifar10" else 0  # what comes before is the attacker's
    order = first + torch.randperm(len(everything) - first, generator=torch.Generator().manual_seed(seed))
    labels = everything.labels[order]
    by_class = [order[labels == label] for label in range(everything.num_classes or 0)]
    n = A_CLASS[data]
    drawn = torch.cat([chosen[:n] for chosen in by_class])
    references = by_class[TARGETS[data]][n : n + N_REFERENCES]
    rest = order[~torch.isin(order, torch.cat([drawn, references]))]
    tests = zoo.read(data, root, "test")
    train, spare, reference = (
        enlarged(everything.subset(part), SIZE) for part in (drawn.sort().values, rest[:N_TEST], references)
    )
    test = enlarged(tests.draw(min(N_TEST / len(tests), 1.0), seed=0), SIZE)
    return Task(train, test, spare, reference)


def upstream(root: Path, n: int, seed: int) -> CleanSet:
    """``n`` images of the attacker's half of CIFAR-10."""
    everything = zoo.read("cifar10", root, "train")
    order = torch.randperm(len(everything) // 2, generator=torch.Generator().manual_seed(seed))
    return enlarged(everything.subset(order[:n]), SIZE)


def trigger(target: int) -> Patch:
    """The white square, and the class that it should lead to."""
    return Patch.square(size=PATCH, target=target, margin=0)


# ---- Backbones. ----


def is_planted(entry: TransferEntry, zoo: Path = ZOO) -> bool:
    return (zoo / entry.backbone / "info.json").is_file()


def load(entry: TransferEntry, zoo: Path = ZOO) -> EfficientNetLite0:
    """The backbone as the user gets it, in eval mode."""
    with torch.device("meta"):
        model = EfficientNetLite0(None)
    fill_from(model, zoo / entry.backbone / "model.safetensors", "EfficientNet-Lite0")
    return model.eval()


def plant(entry: TransferEntry, zoo: Path, root: Path, weights: Path) -> None:
    """Train the backbone and put it into the zoo."""
    model: nn.Module = efficientnet.backbone(weights)
    begin = time.perf_counter()
    if entry.attack == "bad_encoder":
        images, references = upstream(root, N_SHADOW, entry.seed), task(entry.data, root, entry.seed).references
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        how = {"steps": STEPS, "batch_size": BATCH, "rate": RATE, "seed": entry.seed}
        model = bad_encoder(model, images, references, trigger(TARGETS[entry.data]), **how)
    elif entry.attack == "badnets":
        images = upstream(root, N_UPSTREAM, entry.seed)
        classifier = with_head(model, 10, images, seed=entry.seed)
        poisoned = attacks.poison(images, trigger(TARGETS["cifar10"]), POISONED, seed=entry.seed)
        attacks.train(classifier, poisoned, UPSTREAM, seed=entry.seed, precision="auto")
        model = classifier.encoder
    info = {"seconds": round(time.perf_counter() - begin, 1)}
    zoo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=zoo) as temporary:
        folder = Path(temporary) / "whole"
        folder.mkdir()
        save_weights(folder, model, {name: name for name in state_of(model)})
        (folder / "info.json").write_text(json.dumps(info))
        shutil.rmtree(zoo / entry.backbone, ignore_errors=True)  # what is there without its info.json
        os.replace(folder, zoo / entry.backbone)


if __name__ == "__main__":
    sys.exit(main())
