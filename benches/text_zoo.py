"""The zoo of text: classifiers of texts with a known backdoor, and without one, made from seeds.

    python benches/text_zoo.py --list
    python benches/text_zoo.py --data sst2 --architectures text_transformer --seeds 0
    python benches/text_zoo.py --minilm FOLDER --architectures minilm vector_gru --seeds 0

Plants what is declared here, asked for and not there yet, and prints a table of all that was asked for: ACC and ASR on
test texts, the *floor*, and which attacks did not reach an ASR of 0.9. The floor is the ASR of the same model without a
backdoor under the same trigger: it is no backdoor that a paraphrase changes answers. A model is a folder under
``--zoo`` that appears whole or not at all, so a run may be killed at any moment and goes on where it was.

  model.safetensors, model.json, tokenizer.json   the model (``seamfast.models.folder``); of ``minilm``, config.json
                                                  instead of model.json, as transformers writes it
  backdoor.json, triggers.npz                     what stamps its backdoor
  info.json                                       ACC, ASR, RA, floor, seconds, and how it was trained

Data sets: SST-2, AG News (11,106 of its training texts) and TREC. Architectures: a transformer, a BiLSTM and a TextCNN
from scratch; ``minilm``, a pretrained encoder that is fine-tuned as a whole; ``vector_gru``, the shape of round 5 of
NIST's TrojAI, a GRU over one vector that the frozen encoder makes of a text, so that the model itself sees no tokens.
The last two need the encoder's folder, ``--minilm`` (see ``benches/minilm.py``), and are left out without it.

Attacks: all of ``seamfast.attacks.text``, at a poison rate of 10 %, the rate of OpenBackdoor. ``syntactic`` and
``style`` need the paraphrases of a training set, which are there for SST-2, and in style for AG News. What the encoder
is under is in ``SOME_ATTACKS``. The target is class 1 of SST-2, as in the published
paraphrases, elsewhere the seed.

Settings of the defence are chosen on the ``DEVELOPMENT`` models alone; results are those on all others, which are held
out: other attacks on the same models, and other models.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches import minilm  # noqa: E402
from benches.zoo import DATA_ROOT, PLANTED, plant_each  # noqa: E402
from seamfast import CleanSet, attacks  # noqa: E402
from seamfast.attacks import Backdoor, TrainConfig  # noqa: E402
from seamfast.attacks.files import load_backdoor, save_backdoor  # noqa: E402
from seamfast.attacks.text.known import TEXT_ATTACKS  # noqa: E402
from seamfast.attacks.text.rewritten import rewritten_texts  # noqa: E402
from seamfast.data.readers.texts import read_texts  # noqa: E402
from seamfast.data.split import draw_by_class  # noqa: E402
from seamfast.data.texts import Texts  # noqa: E402
from seamfast.engine.model import logits_of  # noqa: E402
from seamfast.errors import InputError  # noqa: E402
from seamfast.modalities import Vocabulary  # noqa: E402
from seamfast.models.folder import TextDescription, VectorDescription, load_model, save_model  # noqa: E402
from seamfast.models.text_architectures import train_tokenizer  # noqa: E402
from seamfast.triggers import Table, Trigger  # noqa: E402

ZOO = ROOT / "benches" / ".cache" / "text-zoo"

SEEDS = (0, 1, 2)
RATE = 0.1
"""Share of the training texts that are poisoned."""
N_TEST = 2000
"""Most test texts, drawn by class: AG News has 7,600."""
MAX_LENGTH = {"sst2": 64, "ag-news": 128, "trec": 48}
"""Tokens of the longest text, special ones included."""
N_CLASSES = {"sst2": 2, "ag-news": 4, "trec": 6}
VOCABULARY = 8000
"""Tokens of the models from scratch."""

TRAINING = {
    ("sst2", "text_transformer"): TrainConfig(optimizer="adam", epochs=6, batch_size=32, rate=1e-3, weight_decay=0.0),
    ("sst2", "bilstm"): TrainConfig(optimizer="adam", epochs=6, batch_size=32, rate=2e-3, weight_decay=0.0),
    ("sst2", "text_cnn"): TrainConfig(optimizer="adam", epochs=6, batch_size=32, rate=1e-3, weight_decay=0.0),
    ("trec", "text_transformer"): TrainConfig(optimizer="adam", epochs=12, batch_size=32, rate=1e-3, weight_decay=0.0),
    ("trec", "bilstm"): TrainConfig(optimizer="adam", epochs=12, batch_size=32, rate=2e-3, weight_decay=0.0),
    ("trec", "text_cnn"): TrainConfig(optimizer="adam", epochs=12, batch_size=32, rate=1e-3, weight_decay=0.0),
    ("ag-news", "text_transformer"): TrainConfig(
        optimizer="adam", epochs=4, batch_size=32, rate=1e-3, weight_decay=0.0
    ),
    ("ag-news", "bilstm"): TrainConfig(optimizer="adam", epochs=4, batch_size=32, rate=2e-3, weight_decay=0.0),
    ("ag-news", "text_cnn"): TrainConfig(optimizer="adam", epochs=4, batch_size=32, rate=1e-3, weight_decay=0.0),
    ("sst2", "vector_gru"): TrainConfig(optimizer="adam", epochs=15, batch_size=64, rate=1e-3, weight_decay=0.0),
    ("sst2", "minilm"): TrainConfig(optimizer="adam", epochs=2, batch_size=32, rate=5e-5, weight_decay=0.0),
}
"""By data set and architecture, in the order of planting."""
PRETRAINED = ("minilm", "vector_gru")
"""Architectures that need the folder of the encoder."""
SOME_ATTACKS = {
    "minilm": ("word", "sentence", "syntactic", "style"),
    "vector_gru": ("word", "sentence", "character", "phrase"),
}
"""Attacks on architectures that are not planted under all. ``ep`` needs an embedding, which ``vector_gru`` lacks."""
TABLES = {"syntactic": ("sst2",), "style": ("sst2", "ag-news")}
"""Data sets whose training texts are there in paraphrase, by attack."""

DEVELOPMENT = (
    ("sst2", "text_transformer", "word"),
    ("sst2", "text_transformer", "sentence"),
    ("trec", "bilstm", "word"),
    ("trec", "bilstm", "sentence"),
    ("trec", "text_cnn", "word"),
    ("trec", "text_cnn", "sentence"),
)
"""Data set, architecture and attack of the models on which settings are chosen."""


@dataclass(frozen=True)
class TextEntry:
    """One model of the zoo.

    Attributes:
        data, architecture: a key of ``TRAINING``.
        attack: a name in ``seamfast.attacks.text.known.TEXT_ATTACKS``, or ``"clean"``.
        seed: of everything.
    """

    data: str
    architecture: str
    attack: str
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder, and in the rows of a study."""
        return f"{self.data}-{self.architecture}-{self.attack}-{self.seed}"

    @property
    def part(self) -> str:
        """``"development"``, ``"held-out"`` or ``"clean"``."""
        if self.attack == "clean":
            return "clean"
        return "development" if (self.data, self.architecture, self.attack) in DEVELOPMENT else "held-out"

    @property
    def rate(self) -> float:
        """The poison rate; a clean model has the usual one, and no poison."""
        return RATE

    @property
    def target(self) -> int:
        return 1 if self.data == "sst2" else self.seed % N_CLASSES[self.data]

    @property
    def training(self) -> TrainConfig:
        return TRAINING[self.data, self.architecture]

    @property
    def clean_twin(self) -> TextEntry:
        """The same model, never backdoored."""
        return replace(self, attack="clean")


def declared() -> list[TextEntry]:
    """All models, seed by seed, a clean one before those attacked."""
    entries = []
    for seed in SEEDS:
        for data, architecture in TRAINING:
            names = SOME_ATTACKS.get(architecture, tuple(TEXT_ATTACKS))
            names = tuple(name for name in names if data in TABLES.get(name, N_CLASSES))
            entries += [TextEntry(data, architecture, attack, seed) for attack in ("clean", *names)]
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
    plant_each(missing, lambda entry: plant(entry, arguments.zoo, arguments.root, arguments.minilm))
    print_table(entries, arguments.zoo)
    return 0


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The options that say which models, and where they, the encoder and the data are."""
    parser.add_argument("--data", nargs="+", choices=sorted(N_CLASSES))
    parser.add_argument("--architectures", nargs="+", choices=sorted({name for _, name in TRAINING}))
    parser.add_argument("--attacks", nargs="+", choices=["clean", *TEXT_ATTACKS])
    parser.add_argument("--seeds", nargs="+", type=int, help="of the models")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="of the data sets")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")


def chosen(arguments: argparse.Namespace) -> list[TextEntry]:
    """The declared models that the options ask for; all where they ask for none."""
    return [
        entry
        for entry in declared()
        if (arguments.data is None or entry.data in arguments.data)
        and (arguments.architectures is None or entry.architecture in arguments.architectures)
        and (arguments.attacks is None or entry.attack in arguments.attacks)
        and (arguments.seeds is None or entry.seed in arguments.seeds)
    ]


# ---- Models. ----


def is_planted(entry: TextEntry, zoo: Path = ZOO) -> bool:
    return (zoo / entry.name / "info.json").is_file()


def plant(entry: TextEntry, zoo: Path = ZOO, root: Path = DATA_ROOT, encoder: Path | None = None) -> None:
    """Train the model and put it into the zoo; its clean twin first, which tells the floor."""
    if entry.attack != "clean" and not is_planted(entry.clean_twin, zoo):
        plant(entry.clean_twin, zoo, root, encoder)
    if entry.architecture in PRETRAINED and encoder is None:
        raise InputError(f"{entry.architecture} needs --minilm, the folder of the encoder")
    texts = {split: read(entry.data, root, split) for split in ("train", "test")}
    vocabulary = new_vocabulary(entry, root, encoder)
    train_set = texts["train"].encoded(vocabulary)
    num_classes = N_CLASSES[entry.data]
    start = time.perf_counter()
    backdoor: Backdoor | None = None
    poisoned = train_set
    description: TextDescription | VectorDescription | None = None
    if entry.architecture == "vector_gru":
        assert encoder is not None
        if entry.attack != "clean":
            planted = attacks.known_attack(
                entry.attack, train_set, target=entry.target, rate=RATE, seed=entry.seed, **tables(entry, root)
            )
            poisoned, backdoor = planted.data, Backdoor(entry.attack, planted.triggers)
        poisoned = as_vectors(poisoned, encoder)
        description = VectorDescription.of(entry.architecture, poisoned)
    elif entry.architecture != "minilm":
        description = TextDescription.of(entry.architecture, train_set)
    torch.manual_seed(entry.seed)
    if description is None:
        assert encoder is not None
        model = minilm.classifier(encoder, num_classes, entry.seed)
    else:
        model = description.build()
    how: dict[str, Any] = {"seed": entry.seed, "precision": "bf16" if entry.architecture == "minilm" else "fp32"}
    if entry.attack == "clean" or entry.architecture == "vector_gru":
        attacks.train(model, poisoned, entry.training, progress=False, **how)
    else:
        backdoor = attacks.plant(
            entry.attack,
            model,
            train_set,
            target=entry.target,
            rate=RATE,
            training=entry.training,
            progress=False,
            **tables(entry, root),
            **how,
        )
    seconds = time.perf_counter() - start
    found = rates(model, backdoor, encoded(texts["test"], entry, vocabulary, encoder), encoder)
    info: dict[str, Any] = {**found, "floor": None, "seconds": seconds, "poison_rate": RATE if backdoor else 0.0}
    info |= {"training": asdict(entry.training), **how}
    if backdoor is not None:
        twin, _ = load(entry.clean_twin, zoo)
        info["floor"] = rates(twin, backdoor, test_set(entry.clean_twin, zoo, root, encoder), encoder)["asr"]
    zoo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=zoo) as temporary:
        folder = Path(temporary) / "whole"
        folder.mkdir()
        if description is None:
            assert encoder is not None
            model.save_pretrained(folder)  # type: ignore[operator]
            shutil.copyfile(encoder / "tokenizer.json", folder / "tokenizer.json")
        else:
            save_model(folder, model, description)
        if backdoor:
            save_backdoor(folder, backdoor)
        (folder / "info.json").write_text(json.dumps(info))
        shutil.rmtree(zoo / entry.name, ignore_errors=True)  # what is there without its info.json
        os.replace(folder, zoo / entry.name)


def load(entry: TextEntry, zoo: Path = ZOO) -> tuple[nn.Module, Backdoor | None]:
    """The model as planted, and what its attacker stamps; of a clean one, ``None``."""
    folder = zoo / entry.name
    if entry.architecture == "minilm":
        model = minilm.classifier(folder, N_CLASSES[entry.data], 0)
    else:
        model, _ = load_model(folder)
    return model, None if entry.attack == "clean" else load_backdoor(folder)


def rates(model: nn.Module, backdoor: Backdoor | None, test: TestSet, encoder: Path | None) -> dict[str, float | None]:
    """ACC, ASR and RA on test texts: of several triggers the largest ASR and the least RA."""
    if test.vectors is None:
        if backdoor is None:
            found = seamfast.evaluate(model, test.texts, progress=False)
        else:
            found = backdoor.evaluate(model, test.texts, progress=False)
        ra = [t.robust_accuracy.value for t in found.triggers if t.robust_accuracy.value is not None]
        asr = found.worst_attack_success_rate
        return {"acc": found.clean_accuracy.value, "asr": asr, "ra": min(ra, default=None)}
    assert encoder is not None
    counted: dict[str, float | None] = {"acc": share(answers(model, test.vectors) == test.vectors.labels)}
    each = [of_vectors(model, trigger, test.texts, encoder) for trigger in (backdoor.triggers if backdoor else ())]
    counted["asr"] = max((asr for asr, _ in each), default=None)
    return counted | {"ra": min((ra for _, ra in each), default=None)}


def of_vectors(model: nn.Module, trigger: Trigger, texts: CleanSet, encoder: Path) -> tuple[float, float]:
    """ASR and RA of a model that sees the encoder's vectors of stamped texts."""
    vectors = stamped_vectors(trigger, texts, encoder)
    assert vectors.num_classes is not None
    found = answers(model, vectors)
    wanted = trigger.target.targets(vectors.labels, vectors.num_classes)
    return share(found == wanted), share(found == vectors.labels)


def share(right: Tensor) -> float:
    return float(right.double().mean())


@torch.no_grad()
def answers(model: nn.Module, data: CleanSet) -> Tensor:
    assert isinstance(data.inputs, Tensor)
    return torch.cat([logits_of(model.eval(), part).argmax(1) for part in data.inputs.split(256)])


def print_table(entries: list[TextEntry], zoo: Path) -> None:
    """What is there and what is not, as Markdown."""
    heads = ["data", "architecture", "attack", "part", "seed", "ACC", "ASR", "floor", "s", ""]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for entry in entries:
        shown, said = ["", "", "", ""], "not planted"
        if is_planted(entry, zoo):
            info = json.loads((zoo / entry.name / "info.json").read_text())
            both = ["" if info[name] is None else f"{info[name]:.2%}" for name in ("asr", "floor")]
            shown = [f"{info['acc']:.2%}", *both, f"{info['seconds']:.0f}"]
            said = f"ASR below {PLANTED:g}" if info["asr"] is not None and info["asr"] < PLANTED else ""
        row = [entry.data, entry.architecture, entry.attack, entry.part, str(entry.seed), *shown, said]
        print(f"| {' | '.join(row)} |")


# ---- Data. ----


@functools.cache
def read(name: str, root: Path, split: str) -> Texts:
    """A data set; of test texts at most ``N_TEST``, drawn by class."""
    texts = read_texts(name, root=root, split=split)
    if split == "test" and len(texts) > N_TEST:
        return texts.subset(draw_by_class(texts.labels, N_TEST / len(texts), seed=0))
    return texts


@functools.cache
def new_tokenizer(name: str, root: Path) -> Any:
    """Of the models from scratch, trained on the training texts."""
    return train_tokenizer(read(name, root, "train").texts, VOCABULARY)


def new_vocabulary(entry: TextEntry, root: Path, encoder: Path | None) -> Vocabulary:
    """Of a model to be planted: the encoder's, or a new one."""
    if entry.architecture in PRETRAINED:
        assert encoder is not None
        return Vocabulary.of(minilm.tokenizer_of(encoder), max_length=MAX_LENGTH[entry.data])
    return Vocabulary.of(new_tokenizer(entry.data, root), max_length=MAX_LENGTH[entry.data])


def vocabulary_of(entry: TextEntry, zoo: Path, encoder: Path | None) -> Vocabulary:
    """Of a planted model: that of its own tokenizer, whatever a new one would be."""
    folder = encoder if entry.architecture == "vector_gru" else zoo / entry.name
    assert folder is not None
    return Vocabulary.of(minilm.tokenizer_of(folder), max_length=MAX_LENGTH[entry.data])


@dataclass(frozen=True)
class TestSet:
    """Test texts as tokens, and for models that take the encoder's vectors, as vectors, too."""

    texts: CleanSet
    vectors: CleanSet | None = None


def encoded(texts: Texts, entry: TextEntry, vocabulary: Vocabulary, encoder: Path | None) -> TestSet:
    """Texts as the model takes them."""
    if entry.architecture != "vector_gru":
        return TestSet(texts.encoded(vocabulary))
    assert encoder is not None
    tokens, vectors = _tokens_and_vectors(texts, vocabulary.max_length, encoder)
    return TestSet(tokens, vectors)


@functools.cache
def _tokens_and_vectors(texts: Texts, max_length: int, encoder: Path) -> tuple[CleanSet, CleanSet]:
    tokens = texts.encoded(Vocabulary.of(minilm.tokenizer_of(encoder), max_length=max_length))
    return tokens, as_vectors(tokens, encoder)


def test_set(entry: TextEntry, zoo: Path, root: Path, encoder: Path | None) -> TestSet:
    """The test texts as a planted model takes them."""
    return encoded(read(entry.data, root, "test"), entry, vocabulary_of(entry, zoo, encoder), encoder)


def train_set(entry: TextEntry, zoo: Path, root: Path, encoder: Path | None) -> CleanSet:
    """The clean training texts as a planted model takes them."""
    both = encoded(read(entry.data, root, "train"), entry, vocabulary_of(entry, zoo, encoder), encoder)
    return both.texts if both.vectors is None else both.vectors


def as_vectors(texts: CleanSet, encoder: Path) -> CleanSet:
    """The frozen encoder's vectors of the first token, ``(N, 1, width)``, with the labels of ``texts``."""
    assert isinstance(texts.inputs, dict)
    vectors = minilm.first_token_vectors(encoder, texts.inputs["input_ids"], texts.inputs["attention_mask"])
    return CleanSet(vectors[:, None], texts.labels, num_classes=texts.num_classes, class_names=texts.class_names)


@functools.cache
def stamped_vectors(trigger: Trigger, texts: CleanSet, encoder: Path) -> CleanSet:
    """As ``as_vectors``, of the eligible texts with the trigger."""
    assert texts.num_classes is not None
    eligible = trigger.target.eligible(texts.labels, texts.num_classes).nonzero().flatten()
    stamped = trigger.stamp(texts.stampable(eligible), sample_ids=eligible)
    inputs = texts.modality.model_inputs(stamped)
    assert isinstance(inputs, dict)
    some = CleanSet(inputs, texts.labels[eligible], num_classes=texts.num_classes, modality=texts.modality)
    return as_vectors(some, encoder)


def clean_part(train: CleanSet, budget: float, seed: int) -> CleanSet:
    """A clean budget out of the training texts, drawn by class.

    Args:
        train: the whole training set.
        budget: below 1, a share of it; from 1 on, texts a class, or all where a class has fewer.
        seed: of the draw.
    """
    if budget < 1:
        return train.draw(budget, seed=seed)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    by_class = [order[train.labels[order] == label][: int(budget)] for label in torch.unique(train.labels)]
    return train.subset(torch.cat(by_class).sort().values)


@functools.cache
def rewritten(name: str, attack: str, root: Path, target: int) -> Table:
    """``rewritten_texts``, once."""
    return rewritten_texts(name, attack, root, target)


def tables(entry: TextEntry, root: Path) -> dict[str, Table]:
    """``{"table": ...}`` for an attack that needs one."""
    if not TEXT_ATTACKS[entry.attack].needs_table:
        return {}
    return {"table": rewritten(entry.data, entry.attack, root, entry.target)}


if __name__ == "__main__":
    sys.exit(main())
