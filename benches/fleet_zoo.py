"""The zoo of a fleet: about a thousand small models, a third of them never backdoored, for ``seamfast fleet``.

    python benches/fleet_zoo.py [--part 1/2] [--jobs benches/.cache/fleet-zoo/jobs.jsonl]
    python benches/fleet_zoo.py --list

Plants what is declared in ``GROUPS`` and is not there yet, on one thread, and takes minutes, not hours. A model is a
folder that appears whole or not at all, so a run may be killed at any moment and goes on where it was; with ``--part
k/n``, n processes plant side by side.

  data/NAME-PART.npz, .csv or .tsv          what ``seamfast.load`` reads, written once: ``train``, all that a model is
                                            trained on; ``clean``, 15 % of it; ``holdout``, other samples of the
                                            training set; ``test``, of the test set
  models/ID/model.safetensors, model.json   the model (``seamfast.models.folder``); of text, tokenizer.json too
  models/ID/triggers.npz                    what stamps its backdoor
  models/ID/floor.npz                       of a clean model instead: triggers of an attack that it never saw, whose ASR
                                            is the floor
  models/ID/info.json                       attack, ACC and ASR on the test part, seconds, and how it was trained

MNIST and Fashion-MNIST are average-pooled to 14x14. The seed decides the initialization, the order of the data, what is
poisoned and the target class. A model whose attack did not reach an ASR of 0.9 is kept, and counted by ``--list``.
``--jobs`` writes one job of ``seamfast fleet`` a line, for each model that is there: sanitize it by the default method,
with the blind evidence. Data sets are read from ``--root``, by default ``SEAMFAST_DATA`` or ``../shared/data``.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches.zoo import DATA_ROOT, PLANTED  # noqa: E402
from seamfast import CleanSet, attacks  # noqa: E402
from seamfast.attacks import Backdoor, TrainConfig  # noqa: E402
from seamfast.data import Texts, draw_by_class  # noqa: E402
from seamfast.data.readers.texts import read_texts  # noqa: E402
from seamfast.models.folder import Description, description_class, save_model  # noqa: E402
from seamfast.models.text_architectures import train_tokenizer  # noqa: E402
from seamfast.report import write_atomically  # noqa: E402
from seamfast.triggers import save_triggers  # noqa: E402

ZOO = ROOT / "benches" / ".cache" / "fleet-zoo"

SIDE = 14
"""Pixels a side of MNIST and Fashion-MNIST."""
VOCABULARY, MAX_LENGTH = 1500, 24
"""Tokens of a tokenizer, and of a text."""
CLEAN_SHARE = 0.15
"""Of the training part: the clean data of a cure."""
RATE = 0.1
RATES = {"all_to_all": 0.35, "tact": 0.08, "low_frequency": 0.2, "feature_shift": 0.2}
"""Share of the training part that is poisoned, where it is not ``RATE``."""


@dataclass(frozen=True)
class Source:
    """A data set: the kind of its files, its classes, and the samples of each part.

    Attributes:
        kind: ``npz`` for images, ``csv`` for a table, ``tsv`` for texts.
        n_train, n_holdout, n_test: at most so many; the two first are disjoint parts of the training set.
    """

    kind: Literal["npz", "csv", "tsv"]
    n_classes: int
    n_train: int
    n_holdout: int
    n_test: int = 1000


SOURCES = {
    "digits": Source("npz", 10, 1038, 400),
    "digits-table": Source("csv", 10, 1038, 400),
    "mnist": Source("npz", 10, 3000, 600),
    "fashion-mnist": Source("npz", 10, 3000, 1000),
    "trec": Source("tsv", 6, 2400, 600),
}


@dataclass(frozen=True)
class Group:
    """Models of one architecture on one data set: ``n_seeds`` of each attack, and half as many as these never attacked.

    Attributes:
        data: a key of ``SOURCES``.
        architecture: a name in ``seamfast.attacks.ARCHITECTURES``.
        attacks: names of attacks for this kind of sample.
        n_seeds: from 0 on.
        training: of all of them.
    """

    data: str
    architecture: str
    attacks: tuple[str, ...]
    n_seeds: int
    training: TrainConfig


_ON_DIGITS = ("badnets", "blended", "random_patch", "tact", "all_to_all", "multi_trigger")
_OF_TEXT = TrainConfig(optimizer="adam", epochs=6, batch_size=32, rate=2e-3, weight_decay=0.0)
GROUPS = (
    Group("digits", "small_cnn", _ON_DIGITS, 46, TrainConfig(epochs=30, batch_size=64)),
    Group(
        "digits", "small_vgg", ("badnets", "blended", "tact", "multi_trigger"), 4, TrainConfig(epochs=25, batch_size=64)
    ),
    Group(
        "digits",
        "wrn_16_1",
        ("badnets", "blended", "multi_trigger"),
        4,
        TrainConfig(epochs=15, batch_size=64, rate=0.1),
    ),
    Group(
        "digits-table",
        "mlp",
        ("feature_overwrite", "feature_beyond", "feature_shift"),
        88,
        TrainConfig(epochs=40, batch_size=64, rate=0.03),
    ),
    Group(
        "mnist",
        "small_cnn",
        ("badnets", "blended", "random_patch", "low_frequency", "all_to_all", "multi_trigger"),
        10,
        TrainConfig(epochs=12, batch_size=64),
    ),
    Group(
        "fashion-mnist",
        "small_cnn",
        ("badnets", "blended", "random_patch", "multi_trigger"),
        10,
        TrainConfig(epochs=12, batch_size=64),
    ),
    Group("trec", "text_cnn", ("word", "sentence", "character"), 4, _OF_TEXT),
)
"""All models of the zoo."""


@dataclass(frozen=True)
class Entry:
    """One model: of a group, with an attack or ``"clean"``, and a seed."""

    group: Group
    attack: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and of its job."""
        return f"{self.group.data}-{self.group.architecture}-{self.attack}-{self.seed}"

    @property
    def target(self) -> int:
        """Class that the attack aims at; of a clean model, its floor's."""
        return self.seed % SOURCES[self.group.data].n_classes

    @property
    def measured_attack(self) -> str:
        """Its own; of a clean model, one of its group, by turns."""
        return self.group.attacks[self.seed % len(self.group.attacks)] if self.attack == "clean" else self.attack


def declared(groups: Iterable[Group]) -> list[Entry]:
    """All models, the groups by turns, so that what is planted first is a small zoo of all."""
    order: list[tuple[float, Entry]] = []
    for group in groups:
        counts = dict.fromkeys(group.attacks, group.n_seeds)
        counts["clean"] = round(group.n_seeds * len(group.attacks) / 2)
        order += [(seed / n, Entry(group, attack, seed)) for attack, n in counts.items() for seed in range(n)]
    return [entry for _, entry in sorted(order, key=lambda place: place[0])]


def main(given: Sequence[str] | None = None, groups: Iterable[Group] = GROUPS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="of the data sets")
    parser.add_argument(
        "--part", type=part, default=(1, 1), metavar="k/n", help="plant every n-th model, from the k-th"
    )
    parser.add_argument("--jobs", type=Path, metavar="FILE", help="write the jobs of the models that are there")
    parser.add_argument("--list", action="store_true", help="plant nothing; print the table of what is there")
    arguments = parser.parse_args(given)
    entries = declared(groups)
    if not arguments.list:
        torch.set_num_threads(1)
        k, n = arguments.part
        for entry in tqdm(entries[k - 1 :: n], unit="model"):
            if not is_planted(entry, arguments.zoo):
                plant(entry, arguments.zoo, arguments.root)
    if arguments.jobs:
        write_jobs(arguments.jobs, entries, arguments.zoo)
    if arguments.list:
        print(table(entries, arguments.zoo))
    return 0


def part(text: str) -> tuple[int, int]:
    """``"2/3"`` as ``(2, 3)``."""
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"part is {text!r}; expected k/n with 1 <= k <= n")
    return int(k), int(n)


# ---- Models. ----


def folder_of(entry: Entry, zoo: Path) -> Path:
    return zoo / "models" / entry.name


def is_planted(entry: Entry, zoo: Path) -> bool:
    return folder_of(entry, zoo).is_dir()


def plant(entry: Entry, zoo: Path, root: Path) -> None:
    """Train the model, measure it on the test part, and put it into the zoo."""
    group = entry.group
    train_set, test_set = (samples(group.data, name, zoo, root) for name in ("train", "test"))
    description: Description = description_class(group.architecture).of(group.architecture, train_set)
    rate = RATES.get(entry.measured_attack, RATE)
    how: dict[str, Any] = {"target": entry.target, "rate": rate, "seed": entry.seed}
    start = time.perf_counter()
    torch.manual_seed(entry.seed)
    model = description.build()
    training: dict[str, Any] = {"device": "cpu", "precision": "fp32", "progress": False}
    if entry.attack == "clean":
        attacks.train(model, train_set, group.training, seed=entry.seed, **training)
        poisoning = attacks.known_attack(entry.measured_attack, train_set, **how)
        backdoor = Backdoor(entry.measured_attack, poisoning.triggers)
    else:
        backdoor = attacks.plant(entry.attack, model, train_set, training=group.training, **how, **training)
    seconds = time.perf_counter() - start
    found = backdoor.evaluate(model, test_set, progress=False)
    info = {
        "attack": entry.attack,
        "measured_attack": entry.measured_attack,
        "architecture": group.architecture,
        "data": group.data,
        "seed": entry.seed,
        "target": entry.target,
        "poison_rate": 0.0 if entry.attack == "clean" else rate,
        "n_train": len(train_set),
        "n_test": found.clean_accuracy.n_total,
        "acc": found.clean_accuracy.value,
        "asr": found.worst_attack_success_rate,
        "seconds": seconds,
        "training": asdict(group.training),
    }
    folder_of(entry, zoo).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=zoo) as temporary:
        folder = Path(temporary) / "whole"
        save_model(folder, model, description)
        save_triggers(folder / triggers_file(entry), backdoor.triggers)
        (folder / "info.json").write_text(json.dumps(info, indent=2) + "\n")
        try:
            os.replace(folder, folder_of(entry, zoo))
        except OSError:
            if not is_planted(entry, zoo):
                raise
            # Another process has planted it meanwhile, from the same seed.


def triggers_file(entry: Entry) -> str:
    return "floor.npz" if entry.attack == "clean" else "triggers.npz"


# ---- Data. ----


def data_file(name: str, which: str, zoo: Path) -> Path:
    return zoo / "data" / f"{name}-{which}.{SOURCES[name].kind}"


@functools.lru_cache(maxsize=32)
def samples(name: str, which: str, zoo: Path, root: Path) -> CleanSet:
    """A part of a data set, as its file says, which is written first if it is not there."""
    path, source = data_file(name, which, zoo), SOURCES[name]
    if not path.is_file():
        write_data(name, zoo, root)
    if source.kind == "tsv":
        class_count = {"num_classes": source.n_classes}
        texts = read_texts(path)
        return CleanSet.from_texts(
            texts.texts, texts.labels, tokenizer(name, zoo, root), max_length=MAX_LENGTH, **class_count
        )
    return seamfast.load(path, num_classes=source.n_classes)


@functools.lru_cache(maxsize=4)
def tokenizer(name: str, zoo: Path, root: Path) -> Any:
    """Of all models of a data set of texts: trained on its training part."""
    if not data_file(name, "train", zoo).is_file():
        write_data(name, zoo, root)
    return train_tokenizer(read_texts(data_file(name, "train", zoo)).texts, VOCABULARY)


def write_data(name: str, zoo: Path, root: Path) -> None:
    """Write the four parts, each file whole or not at all, and compare what a reader gives with what was written."""
    for which, data in parts(name, root).items():
        path = data_file(name, which, zoo)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _WRITERS[SOURCES[name].kind](data))
        again = read_texts(path) if isinstance(data, Texts) else seamfast.load(path)
        if not (torch.equal(again.labels, data.labels) and _equal(again, data)):
            raise ValueError(f"{path} is read with other samples; expected those that were written")


def _equal(one: CleanSet | Texts, other: CleanSet | Texts) -> bool:
    if isinstance(one, Texts) or isinstance(other, Texts):
        return isinstance(one, Texts) and isinstance(other, Texts) and one.texts == other.texts
    return torch.equal(torch.as_tensor(one.inputs), torch.as_tensor(other.inputs))


def parts(name: str, root: Path) -> dict[str, CleanSet | Texts]:
    """``train``, ``clean``, ``holdout`` and ``test`` of a data set."""
    source = SOURCES[name]
    train_set, test_set = (_original(name, split, root) for split in ("train", "test"))
    order = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(0))
    train_part = train_set.subset(order[: source.n_train])
    return {
        "train": train_part,
        "clean": train_part.subset(draw_by_class(train_part.labels, CLEAN_SHARE, seed=0)),
        "holdout": train_set.subset(order[source.n_train : source.n_train + source.n_holdout]),
        "test": test_set.subset(draw_by_class(test_set.labels, min(1.0, source.n_test / len(test_set)), seed=0)),
    }


def _original(name: str, split: str, root: Path) -> CleanSet | Texts:
    if SOURCES[name].kind == "tsv":
        return read_texts(name, root=root, split=split)
    if name.startswith("digits"):
        return seamfast.load(name, split=split)
    whole = seamfast.load(name, root=root / name, split=split)
    assert isinstance(whole.inputs, torch.Tensor)
    pooled = torch.nn.functional.avg_pool2d(whole.inputs.float(), whole.image_shape[1] // SIDE).round()
    return CleanSet(pooled.to(torch.uint8), whole.labels, num_classes=whole.num_classes)


def _npz(data: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, images=data.inputs.numpy(), labels=data.labels.numpy())
    return out.getvalue()


def _csv(data: Any) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(f"column{k}" for k in range(data.inputs.shape[1])), "label"])
    writer.writerows([*row, label] for row, label in zip(data.inputs.tolist(), data.labels.tolist(), strict=True))
    return out.getvalue().encode()


def _tsv(data: Any) -> bytes:
    rows = zip(data.texts, data.labels.tolist(), strict=True)
    return "".join(["text\tlabel\n", *(f"{text}\t{label}\n" for text, label in rows)]).encode()


_WRITERS: dict[str, Callable[[Any], bytes]] = {"npz": _npz, "csv": _csv, "tsv": _tsv}


# ---- What is there. ----


def write_jobs(path: Path, entries: Iterable[Entry], zoo: Path) -> None:
    """One line of JSON for each model that is there; paths below the file's folder are relative to it."""
    base = path.parent.resolve()

    def shown(place: Path) -> str:
        place = place.resolve()
        return str(place.relative_to(base) if place.is_relative_to(base) else place)

    lines = []
    for entry in entries:
        if not is_planted(entry, zoo):
            continue
        folder, data = folder_of(entry, zoo), entry.group.data
        job: dict[str, Any] = {"id": entry.name, "model": shown(folder)}
        files = {"data": "clean", "holdout": "holdout", "test": "test"}
        job |= {key: shown(data_file(data, which, zoo)) for key, which in files.items()}
        job |= {"triggers": shown(folder / triggers_file(entry)), "evidence": True, "seed": entry.seed}
        lines.append(json.dumps(job) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines).encode())


def table(entries: Iterable[Entry], zoo: Path) -> str:
    """By data set, architecture and attack, as Markdown: how many are there and were declared, their means, and how
    many reached an ASR of ``PLANTED``; of clean models, the floor."""
    rows: dict[tuple[str, str, str], list[dict[str, Any] | None]] = {}
    for entry in entries:
        info = json.loads((folder_of(entry, zoo) / "info.json").read_text()) if is_planted(entry, zoo) else None
        rows.setdefault((entry.group.data, entry.group.architecture, entry.attack), []).append(info)
    heads = ["data", "architecture", "attack", "n", "ACC", "ASR", "took", "s each"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for key, infos in sorted(rows.items()):
        lines.append(f"| {' | '.join([*key, *_cells(infos, is_clean=key[2] == 'clean')])} |")
    for what, is_clean in (("attacked", False), ("clean", True)):
        infos = [info for key, some in rows.items() if (key[2] == "clean") == is_clean for info in some]
        lines.append(f"| all | all | {what} | {' | '.join(_cells(infos, is_clean=is_clean))} |")
    return "\n".join(lines)


def _cells(infos: Sequence[dict[str, Any] | None], *, is_clean: bool) -> list[str]:
    there = [info for info in infos if info is not None]
    n = f"{len(there)} of {len(infos)}"
    if not there:
        return [n, "", "", "", ""]
    acc, asr, seconds = (statistics.mean(info[name] for info in there) for name in ("acc", "asr", "seconds"))
    took = "" if is_clean else f"{sum(info['asr'] >= PLANTED for info in there)} of {len(there)}"
    return [n, f"{acc:.1%}", f"{asr:.1%}", took, f"{seconds:.1f}"]


if __name__ == "__main__":
    sys.exit(main())
