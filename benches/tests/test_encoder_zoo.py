"""The zoo of encoders: what is declared, what a planted encoder holds, and which rates are measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benches import encoder_zoo, zoo
from benches.encoder_zoo import EncoderEntry
from seamfast import CleanSet
from seamfast.attacks import TrainConfig
from seamfast.errors import InputError
from seamfast.triggers import AllToOne

BAD = EncoderEntry("resnet20", "bad_encoder", "gtsrb", 0)


def images(name: str, root: Path, split: str) -> CleanSet:
    """Noise on gray, whose brightness tells the class."""
    n_classes = encoder_zoo.N_CLASSES[name]
    channels, side = (1, 28) if name == "fashion-mnist" else (3, 32)
    n = 3 * n_classes if split == "train" else n_classes
    labels = torch.arange(n) % n_classes
    generator = torch.Generator().manual_seed(len(name) + len(split))
    noise = torch.randint(0, 30, (n, channels, side, side), generator=generator)
    pixels = noise + labels.view(-1, 1, 1, 1) * (220 // n_classes)
    return CleanSet(pixels.to(torch.uint8), labels, num_classes=n_classes)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    caches = [encoder_zoo.whole, encoder_zoo.drawn, encoder_zoo.reference, encoder_zoo.clean_probe]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "read", images)
        patch.setattr(encoder_zoo, "PRETRAINING", TrainConfig(epochs=1, batch_size=10))
        patch.setattr(encoder_zoo, "STEPS", dict.fromkeys(encoder_zoo.STEPS, 2))
        patch.setattr(encoder_zoo, "MOST", {"train": 20, "test": 10})
        yield
    for cached in caches:
        cached.cache_clear()


def test_what_is_declared() -> None:
    entries = encoder_zoo.declared()
    assert len({entry.name for entry in entries}) == len(entries)
    attacks = {(e.encoder, e.attack, e.towards, e.seed) for e in entries}
    for seed in (0, 1):
        assert ("resnet20", "clean", "", seed) in attacks
        assert ("minilm", "output_vectors", "", seed) in attacks
        for attack in ("bad_encoder", "bad_encoder_blend", "drupe"):
            assert {("resnet20", attack, towards, seed) for towards in ("gtsrb", "fashion-mnist")} <= attacks
    assert BAD.name == "resnet20-bad_encoder-gtsrb-0"
    assert BAD.clean_twin.name == "resnet20-clean-0"


def test_a_planted_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder_zoo.plant(BAD, tmp_path, tmp_path)
    assert encoder_zoo.is_planted(BAD.clean_twin, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [BAD.name, BAD.clean_twin.name]
    encoder, backdoor = encoder_zoo.load(BAD, tmp_path)
    clean, none = encoder_zoo.load(BAD.clean_twin, tmp_path)
    assert none is None
    assert backdoor is not None
    assert backdoor.attack == "bad_encoder"
    assert [t.target for t in backdoor.triggers] == [AllToOne(12)]
    weight = "blocks.0.conv1.weight"
    assert not torch.equal(encoder.get_parameter(weight), clean.get_parameter(weight))
    info = json.loads((tmp_path / BAD.name / "info.json").read_text())
    assert list(info["downstream"]) == ["gtsrb", "fashion-mnist", "cifar10"]
    assert info["downstream"]["gtsrb"]["target"] == 12
    assert info["downstream"]["fashion-mnist"]["n"] == 10
    assert info["downstream"] == encoder_zoo.measured(BAD, encoder, backdoor, tmp_path, tmp_path)

    missing = EncoderEntry("resnet20", "drupe", "gtsrb", 0)
    encoder_zoo.print_table([BAD.clean_twin, BAD, missing], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1 + 3 + 1
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert lines[-1].endswith("| not planted |")


def test_on_other_sets_the_target_is_the_class_of_the_reference(tmp_path: Path) -> None:
    encoder_zoo.plant(BAD, tmp_path, tmp_path)
    encoder, backdoor = encoder_zoo.load(BAD, tmp_path)
    assert backdoor is not None
    probe = encoder_zoo.probe(BAD, encoder, "cifar10", tmp_path, tmp_path)
    with torch.no_grad():
        probe.head.weight.zero_()
        probe.head.bias.copy_(torch.arange(10.0) == 7)
    (trigger,) = encoder_zoo.targeted(BAD, probe, "cifar10", backdoor, tmp_path, tmp_path)
    assert trigger.target == AllToOne(7)
    assert encoder_zoo.targeted(BAD, probe, "gtsrb", backdoor, tmp_path, tmp_path) == backdoor.triggers


def test_the_reference_is_of_the_target_class_and_of_the_training_part() -> None:
    reference = encoder_zoo.reference(BAD, Path())
    assert reference.labels.tolist() == [12] * 3
    pool = encoder_zoo.whole("gtsrb", Path(), "train")
    assert set(reference.identities()) <= set(pool.identities())


def test_fashion_has_three_equal_channels_and_a_frame() -> None:
    data = encoder_zoo.drawn("fashion-mnist", Path(), "train")
    assert data.inputs.shape == (20, 3, 32, 32)
    assert torch.equal(data.inputs[:, 0], data.inputs[:, 2])
    assert not data.inputs[:, :, :2].any()
    assert data.inputs[:, :, 2:-2, 2:-2].float().mean() > 50
    assert data.labels.bincount().tolist() == [2] * 10


def test_minilm_without_its_folder_is_left_out(tmp_path: Path) -> None:
    entry = EncoderEntry("minilm", "output_vectors")
    with pytest.raises(InputError, match=r"^minilm needs --minilm, the folder of the encoder$"):
        encoder_zoo.plant(entry, tmp_path, tmp_path)


def test_minilm_with_words(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cf", "mn", "good", "bad", "film", "news"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    base = tmp_path / "base"
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(base)
    (base / "tokenizer.json").write_text(tokenizer.to_str())
    for name, head in (("sst2", ""), ("ag-news", "sentence\tlabel\n")):
        (tmp_path / "text" / name).mkdir(parents=True)
        for split in ("train", "test"):
            lines = [f"{'good' if i % 2 else 'bad'} film news {'film ' * (i // 2)}\t{i % 2}" for i in range(20)]
            (tmp_path / "text" / name / f"{split}.tsv").write_text(head + "\n".join(lines) + "\n")
    entry, made = EncoderEntry("minilm", "output_vectors"), tmp_path / "zoo"
    encoder_zoo.plant(entry, made, tmp_path, base)
    encoder, backdoor = encoder_zoo.load(entry, made)
    assert backdoor is not None
    assert [trigger.name for trigger in backdoor.triggers] == ["cf", "mn"]
    info = json.loads((made / entry.name / "info.json").read_text())
    assert list(info["downstream"]) == ["sst2"]
    assert info["downstream"] == encoder_zoo.measured(entry, encoder, backdoor, made, tmp_path)
