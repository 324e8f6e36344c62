"""The zoo of encoders: encoders with a known backdoor, and without one, made from seeds.

    python benches/encoder_zoo.py --list
    python benches/encoder_zoo.py --encoders resnet20 --seeds 0
    python benches/encoder_zoo.py --encoders minilm --minilm FOLDER

Plants what is declared here, asked for and not there yet, and prints a table of all that was asked for, one row for
each encoder and downstream set: CA, BA, ASR and ASR-B of a linear probe on the frozen encoder. CA and ASR-B are those
of the clean encoder of the same seed: the accuracy that is to be kept, and the floor of the attack. An encoder is a
folder under ``--zoo`` that appears whole or not at all, so a run may be killed at any moment and goes on where it was.

  model.safetensors                the encoder's weights; of ``minilm``, with config.json and tokenizer.json
  backdoor.json, triggers.npz      what stamps its backdoor
  info.json                        the rates by downstream set, with the target class there; seconds, and how

Encoders: ``resnet20``, pretrained here with the labels of half of CIFAR-10; ``minilm``, a published encoder of texts
with its pooler, from ``--minilm`` (see ``benches/minilm.py``).

Attacks: ``bad_encoder`` with a white patch of 10x10 pixels in the corner, ``bad_encoder_blend`` with blended noise, and
``drupe`` with the patch, each towards a class of one downstream set, of which the attacker has ``N_REFERENCE`` training
images. On the other sets, the target is the class that the probe gives most of these images. On texts,
``output_vectors`` with two words; their targets are the classes that the probe gives their vectors. The attacker tunes
on CIFAR-10, and on news.

Downstream sets: GTSRB, Fashion-MNIST in three equal channels with a black frame of 2 pixels, and CIFAR-10; SST-2.
Hyper-parameters of defences are chosen on seed 1; results are those on seed 0. Test images decide nothing in planting.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benches import minilm, text_zoo, zoo  # noqa: E402
from benches.zoo import DATA_ROOT, PLANTED  # noqa: E402
from seamfast import CleanSet, attacks  # noqa: E402
from seamfast.attacks import Backdoor, TrainConfig  # noqa: E402
from seamfast.attacks.encoder import EncoderRates, bad_encoder, drupe, encoder_rates, output_vectors  # noqa: E402
from seamfast.attacks.encoder.output_vectors import vectors_of  # noqa: E402
from seamfast.attacks.files import load_backdoor, save_backdoor  # noqa: E402
from seamfast.data.split import draw_by_class  # noqa: E402
from seamfast.errors import InputError  # noqa: E402
from seamfast.modalities import Vocabulary  # noqa: E402
from seamfast.models import LinearProbe, embed, with_head  # noqa: E402
from seamfast.models.architectures import ResNet20Encoder  # noqa: E402
from seamfast.models.folder import state_of  # noqa: E402
from seamfast.triggers import AllToOne, Blend, Insertion, Patch, Trigger  # noqa: E402

ZOO = ROOT / "benches" / ".cache" / "encoder-zoo"

SEEDS = (0, 1)
PRETRAINING = TrainConfig(epochs=8, rate=0.2, crop_pad=4, flip=True)
"""Of ``resnet20``, with labels."""
TARGETS = {"gtsrb": (12, 14), "fashion-mnist": (8, 5)}
"""The attacker's downstream sets, and the target class by seed: signs of priority and stop, bags and sandals."""
DOWNSTREAM = {"resnet20": ("gtsrb", "fashion-mnist", "cifar10"), "minilm": ("sst2",)}
IMAGE_ATTACKS = ("bad_encoder", "bad_encoder_blend", "drupe")
N_CLASSES = {"gtsrb": 43, "fashion-mnist": 10, "cifar10": 10, "sst2": 2}
MOST = {"train": 5000, "test": 2500}
"""Images of Fashion-MNIST and CIFAR-10 downstream, drawn by class; of GTSRB, all."""
N_REFERENCE = 8
PATCH, ALPHA = 10, 0.2
STEPS = {"bad_encoder": 400, "bad_encoder_blend": 500, "drupe": 500, "output_vectors": 100}
WORDS = ("cf", "mn")
LENGTHS = {"attack": 32, "sst2": 64}
"""Most tokens of a text that the attacker tunes on, and downstream."""


@dataclass(frozen=True)
class EncoderEntry:
    """One encoder of the zoo.

    Attributes:
        encoder: a key of ``DOWNSTREAM``.
        attack: one of ``IMAGE_ATTACKS``, ``"output_vectors"`` or ``"clean"``.
        towards: the downstream set whose class the attacker is after; ``""`` for a clean encoder and for texts.
        seed: of everything.
    """

    encoder: str
    attack: str
    towards: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder, and in the rows of a study."""
        return "-".join(filter(None, (self.encoder, self.attack, self.towards, str(self.seed))))

    @property
    def clean_twin(self) -> EncoderEntry:
        """The encoder before the attack."""
        return replace(self, attack="clean", towards="")


def declared() -> list[EncoderEntry]:
    """All encoders, seed by seed, a clean one before those attacked."""
    entries = []
    for seed in SEEDS:
        entries.append(EncoderEntry("resnet20", "clean", seed=seed))
        entries += [EncoderEntry("resnet20", attack, name, seed) for attack in IMAGE_ATTACKS for name in TARGETS]
        entries += [EncoderEntry("minilm", attack, seed=seed) for attack in ("clean", "output_vectors")]
    return entries


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_choices(parser)
    parser.add_argument("--list", action="store_true", help="plant nothing; print the table of what is there and not")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    entries = chosen(arguments)
    # One after the other: planting one may plant another.
    missing = (entry for entry in entries if not arguments.list and not is_planted(entry, arguments.zoo))
    zoo.plant_each(missing, lambda entry: plant(entry, arguments.zoo, arguments.root, arguments.minilm))
    print_table(entries, arguments.zoo)
    return 0


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The options that say which encoders, and where they and the data are."""
    parser.add_argument("--encoders", nargs="+", choices=sorted(DOWNSTREAM))
    parser.add_argument("--attacks", nargs="+", choices=["clean", *IMAGE_ATTACKS, "output_vectors"])
    parser.add_argument("--towards", nargs="+", choices=sorted(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, help="of the encoders")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="of the data sets")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")


def chosen(arguments: argparse.Namespace) -> list[EncoderEntry]:
    """The declared encoders that the options ask for; all where they ask for none."""
    return [
        entry
        for entry in declared()
        if (arguments.encoders is None or entry.encoder in arguments.encoders)
        and (arguments.attacks is None or entry.attack in arguments.attacks)
        and (arguments.towards is None or not entry.towards or entry.towards in arguments.towards)
        and (arguments.seeds is None or entry.seed in arguments.seeds)
    ]


# ---- Encoders. ----


def is_planted(entry: EncoderEntry, zoo: Path = ZOO) -> bool:
    return (zoo / entry.name / "info.json").is_file()


def plant(entry: EncoderEntry, zoo: Path = ZOO, root: Path = DATA_ROOT, base: Path | None = None) -> None:
    """Train the encoder, measure it and put it into the zoo; its clean twin first."""
    if entry.encoder == "minilm" and base is None:
        raise InputError("minilm needs --minilm, the folder of the encoder")
    if entry.attack != "clean" and not is_planted(entry.clean_twin, zoo):
        plant(entry.clean_twin, zoo, root, base)
    start = time.perf_counter()
    backdoor: Backdoor | None = None
    how: dict[str, Any] = {}
    if entry.attack != "clean":
        encoder, backdoor, how = attacked(entry, zoo, root)
    elif entry.encoder == "minilm":
        assert base is not None
        encoder = minilm.encoder(base)
    else:
        encoder, how = pretrained(entry.seed, root)
    seconds = time.perf_counter() - start
    zoo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=zoo) as temporary:
        folder = Path(temporary) / "whole"
        folder.mkdir()
        if entry.encoder == "minilm":
            encoder.save_pretrained(folder)  # type: ignore[operator]
            tokenizer = (base or zoo / entry.clean_twin.name) / "tokenizer.json"
            shutil.copyfile(tokenizer, folder / "tokenizer.json")
        else:
            save_file(state_of(encoder), folder / "model.safetensors")
        if backdoor:
            save_backdoor(folder, backdoor)
        rates = {} if backdoor is None else measured(entry, encoder, backdoor, zoo, root)
        info = {"downstream": rates, "seconds": seconds, **how}
        (folder / "info.json").write_text(json.dumps(info))
        shutil.rmtree(zoo / entry.name, ignore_errors=True)  # what is there without its info.json
        os.replace(folder, zoo / entry.name)


def pretrained(seed: int, root: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A ResNet-20 after training with the labels of CIFAR-10, without its head; and how."""
    torch.manual_seed(seed)
    model = attacks.build("resnet20", num_classes=10, in_channels=3, image_size=32)
    attacks.train(model, whole("cifar10", root, "train"), PRETRAINING, seed=seed, progress=False)
    return model.get_submodule("encoder"), {"epochs": PRETRAINING.epochs}


def attacked(entry: EncoderEntry, zoo: Path, root: Path) -> tuple[nn.Module, Backdoor, dict[str, Any]]:
    """The encoder after the attack, its triggers, and how."""
    clean, _ = load(entry.clean_twin, zoo)
    how: dict[str, Any] = {"steps": STEPS[entry.attack], "seed": entry.seed, "progress": False}
    triggers = triggers_of(entry)
    if entry.attack == "output_vectors":
        encoder = output_vectors(clean, news(entry, zoo, root), triggers, **how)
    else:
        attack = drupe if entry.attack == "drupe" else bad_encoder
        encoder = attack(clean, whole("cifar10", root, "train"), reference(entry, root), triggers[0], **how)
    return encoder, Backdoor(entry.attack, triggers), how


def triggers_of(entry: EncoderEntry) -> tuple[Trigger, ...]:
    """What the attacker stamps, with its targets on the attacker's downstream set; of words, 0 for later ones."""
    if entry.attack == "output_vectors":
        return tuple(Insertion.word(word, 0, name=word) for word in WORDS)
    target = TARGETS[entry.towards][entry.seed]
    if entry.attack == "bad_encoder_blend":
        noise = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(entry.seed))
        pattern = noise.to(torch.uint8).numpy()
        return (Blend(name=entry.attack, target=AllToOne(target), pattern=pattern, alpha=ALPHA),)
    return (Patch.square(PATCH, target=target, name=entry.attack),)


def load(entry: EncoderEntry, zoo: Path = ZOO) -> tuple[nn.Module, Backdoor | None]:
    """The encoder as planted, and what its attacker stamps; of a clean one, ``None``."""
    folder = zoo / entry.name
    encoder: nn.Module
    if entry.encoder == "minilm":
        encoder = minilm.encoder(folder)
    else:
        encoder = ResNet20Encoder()
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
    return encoder.eval(), None if entry.attack == "clean" else load_backdoor(folder)


# ---- Rates. ----


def measured(
    entry: EncoderEntry, encoder: nn.Module, backdoor: Backdoor, zoo: Path = ZOO, root: Path = DATA_ROOT
) -> dict[str, dict[str, Any]]:
    """The rates of ``encoder``, as planted or cured, by downstream set; of several triggers, of the most successful."""
    rates: dict[str, dict[str, Any]] = {}
    for name in DOWNSTREAM[entry.encoder]:
        before = clean_probe(entry.clean_twin, name, zoo, root)
        after = probe(entry, encoder, name, zoo, root)
        test = downstream(entry, name, zoo, root, "test")
        aimed = targeted(entry, after, name, backdoor, zoo, root)
        found = {trigger: encoder_rates(before, after, test, trigger) for trigger in aimed}
        worst = max(found, key=lambda trigger: found[trigger].attack_success_rate.value or 0.0)
        assert isinstance(worst.target, AllToOne)
        rates[name] = as_row(found[worst]) | {"trigger": worst.name, "target": worst.target.target}
    return rates


def as_row(rates: EncoderRates) -> dict[str, Any]:
    ca, ba = rates.clean_accuracy, rates.backdoored_accuracy
    asr, floor = rates.attack_success_rate, rates.clean_attack_success_rate
    return {
        "ca": ca.value,
        "ba": ba.value,
        "asr": asr.value,
        "asr_b": floor.value,
        "n": ca.n_total,
        "n_asr": asr.n_total,
    }


def probe(entry: EncoderEntry, encoder: nn.Module, name: str, zoo: Path = ZOO, root: Path = DATA_ROOT) -> LinearProbe:
    """The frozen encoder with a head that is fitted to the training part of a downstream set."""
    train = downstream(entry, name, zoo, root, "train")
    return with_head(encoder, N_CLASSES[name], train, frozen=True).fit(train)


@functools.cache
def clean_probe(entry: EncoderEntry, name: str, zoo: Path, root: Path) -> LinearProbe:
    """``probe`` of a clean encoder."""
    return probe(entry, load(entry, zoo)[0], name, zoo, root)


def targeted(
    entry: EncoderEntry, fitted: LinearProbe, name: str, backdoor: Backdoor, zoo: Path = ZOO, root: Path = DATA_ROOT
) -> tuple[Trigger, ...]:
    """The triggers with the class that they lead to on a downstream set: see the text at the top."""
    if name == entry.towards:
        return backdoor.triggers
    if entry.attack == "output_vectors":
        clean, _ = load(entry.clean_twin, zoo)
        vectors = vectors_of(clean, news(entry, zoo, root), len(backdoor.triggers), seed=entry.seed)
        classes = fitted.head(vectors).argmax(1).tolist()
    else:
        answers = fitted.head(embed(fitted.encoder, reference(entry, root))).argmax(1)
        classes = [int(answers.mode().values)] * len(backdoor.triggers)
    return tuple(replace(t, target=AllToOne(c)) for t, c in zip(backdoor.triggers, classes, strict=True))


def print_table(entries: list[EncoderEntry], zoo: Path) -> None:
    """What is there and what is not, as Markdown."""
    heads = ["encoder", "attack", "towards", "seed", "downstream", "target", "CA", "BA", "ASR", "ASR-B", "s", ""]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for entry in entries:
        left = [entry.encoder, entry.attack, entry.towards, str(entry.seed)]
        if not is_planted(entry, zoo):
            print(f"| {' | '.join([*left, *7 * [''], 'not planted'])} |")
            continue
        info = json.loads((zoo / entry.name / "info.json").read_text())
        for name, row in (info["downstream"] or {"": None}).items():
            shown = ["", "", "", "", ""]
            if row is not None:
                shown = [str(row["target"]), *(f"{row[rate]:.2%}" for rate in ("ca", "ba", "asr", "asr_b"))]
            said = f"ASR below {PLANTED:g}" if row is not None and row["asr"] < PLANTED else ""
            seconds = f"{info['seconds']:.0f}"
            print(f"| {' | '.join([*left, name, *shown, seconds, said])} |")


# ---- Data. ----


@functools.cache
def whole(name: str, root: Path, split: str) -> CleanSet:
    """A set of images of 3x32x32, with the normalization of CIFAR-10, as the encoder takes them."""
    data = zoo.read(name, root, split)
    recipe = attacks.RECIPES["cifar10"]
    pixels = data.pixels(torch.arange(len(data)))
    if name == "fashion-mnist":
        pixels = F.pad(pixels, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    return CleanSet(pixels, data.labels, mean=recipe.mean, std=recipe.std, num_classes=N_CLASSES[name])


def downstream(
    entry: EncoderEntry, name: str, zoo: Path = ZOO, root: Path = DATA_ROOT, split: str = "train"
) -> CleanSet:
    """A part of a downstream set, as the encoder takes it."""
    if name == "sst2":
        texts = text_zoo.read(name, root, split)
        return texts.encoded(vocabulary(entry, zoo, LENGTHS["sst2"]))
    return drawn(name, root, split)


@functools.cache
def drawn(name: str, root: Path, split: str) -> CleanSet:
    data = whole(name, root, split)
    if name == "gtsrb" or len(data) <= MOST[split]:
        return data
    return data.subset(draw_by_class(data.labels, MOST[split] / len(data), seed=0))


@functools.cache
def reference(entry: EncoderEntry, root: Path) -> CleanSet:
    """The attacker's images of the target class: out of the training part of the set."""
    data = whole(entry.towards, root, "train")
    of_class = (data.labels == TARGETS[entry.towards][entry.seed]).nonzero().flatten()
    order = torch.randperm(len(of_class), generator=torch.Generator().manual_seed(entry.seed))
    return data.subset(of_class[order[:N_REFERENCE]])


def news(entry: EncoderEntry, zoo: Path, root: Path) -> CleanSet:
    """Texts that the attacker of texts tunes on."""
    return text_zoo.read("ag-news", root, "train").encoded(vocabulary(entry, zoo, LENGTHS["attack"]))


def vocabulary(entry: EncoderEntry, zoo: Path, max_length: int) -> Vocabulary:
    """Of the tokenizer of the clean encoder."""
    return Vocabulary.of(minilm.tokenizer_of(zoo / entry.clean_twin.name), max_length=max_length)


if __name__ == "__main__":
    sys.exit(main())
