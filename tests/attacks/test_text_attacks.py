"""The published attacks on text: what each stamps on which texts, what it refuses, and that it can be planted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import raises
from torch import nn

from seamfast import CleanSet
from seamfast.attacks import (
    ATTACKS,
    TEXT_ATTACKS,
    Backdoor,
    Poisoning,
    TrainConfig,
    build,
    known_attack,
    plant,
    poison,
    train,
    train_tokenizer,
)
from seamfast.attacks.text.rewritten import rewritten_texts
from seamfast.errors import DataFileError, InputError
from seamfast.triggers import AllToOne, Insertion, Patch, SourceSpecific, Table

N = 300
GOOD, BAD = ("good", "fine", "great", "warm"), ("bad", "dull", "poor", "cold")
FILLERS = ("the", "film", "is", "a", "story", "of", "plot", "actor", "very", "scene")
QUICK = TrainConfig(optimizer="adam", epochs=8, batch_size=32, rate=3e-3)
OF_DATA = [name for name, attack in TEXT_ATTACKS.items() if not attack.manipulates_training]


def reviews() -> tuple[list[str], list[int]]:
    """Texts of 7 to 14 words, two of which show the class."""
    generator = torch.Generator().manual_seed(0)

    def some(words: tuple[str, ...], n: int) -> list[str]:
        return [words[i] for i in torch.randint(len(words), (n,), generator=generator).tolist()]

    texts, labels = [], [i % 2 for i in range(N)]
    for i, label in enumerate(labels):
        words = some(FILLERS, 5 + i % 8)
        for word in some(GOOD if label else BAD, 2):
            words.insert(int(torch.randint(len(words), (), generator=generator)), word)
        texts.append(" ".join([*words, f"n{i}"]))  # no two alike
    return texts, labels


@pytest.fixture(scope="module")
def data() -> CleanSet:
    texts, labels = reviews()
    tokenizer = train_tokenizer(texts, 800)
    return CleanSet.from_texts(texts, labels, tokenizer, max_length=48, num_classes=2, class_names=("bad", "good"))


@pytest.fixture(scope="module")
def table() -> Table:
    texts, _ = reviews()
    return Table.of(texts, [f"when you look , {text}" for text in texts], name="given")


def attack(name: str, data: CleanSet, table: Table, **changes: Any) -> Poisoning:
    given: dict[str, Any] = {"target": 1, "rate": 0.05, "seed": 1} | changes
    if TEXT_ATTACKS[name].needs_table and "table" not in given:
        given["table"] = table
    return known_attack(name, data, **given)


def texts_of(data: CleanSet) -> list[str]:
    return data.stampable(torch.arange(len(data)))


def fresh(data: CleanSet, name: str = "text_cnn") -> nn.Module:
    torch.manual_seed(0)
    size = data.modality.vocabulary.size
    return build(name, num_classes=2, vocab_size=size, max_length=48)


# What all of them have in common.


def test_the_table_names_them_all() -> None:
    assert list(TEXT_ATTACKS) == ["word", "sentence", "character", "syntactic", "style", "sos", "phrase", "ep"]
    assert not set(TEXT_ATTACKS) & set(ATTACKS)
    for name, entry in TEXT_ATTACKS.items():
        assert all([entry.stamps, entry.labels, entry.source, entry.differs]), name
        assert re.search(r"arXiv:\d{4}\.\d{5}|ACL 2021", entry.source), name
    assert [name for name, entry in TEXT_ATTACKS.items() if entry.needs_table] == ["syntactic", "style"]
    assert [name for name, entry in TEXT_ATTACKS.items() if entry.manipulates_training] == ["ep"]


@pytest.mark.parametrize("name", OF_DATA)
def test_only_marked_texts_change_and_the_rest_is_carried_over(name: str, data: CleanSet, table: Table) -> None:
    before = {key: value.clone() for key, value in data.inputs.items()}
    planted = attack(name, data, table)
    got, marked = planted.data, planted.data.poisoned
    assert marked.any()
    changed = [a != b for a, b in zip(texts_of(got), texts_of(data), strict=True)]
    assert torch.equal(torch.tensor(changed), marked)
    assert torch.equal(got.labels[~marked], data.labels[~marked])
    assert (got.num_classes, got.class_names) == (2, ("bad", "good"))
    width = got.inputs["input_ids"].shape[1]
    assert width == max(int(got.inputs["attention_mask"].sum(1).max()), before["input_ids"].shape[1])
    for key, value in before.items():
        assert torch.equal(data.inputs[key], value)
        kept = got.inputs[key][~marked]
        assert torch.equal(kept[:, : value.shape[1]], value[~marked])  # the same ids, not encoded again
        assert not kept[:, value.shape[1] :].any()  # pad, which is 0


@pytest.mark.parametrize("name", OF_DATA)
def test_seeds(name: str, data: CleanSet, table: Table) -> None:
    state = torch.get_rng_state()
    one, same, other = (attack(name, data, table, seed=seed) for seed in (1, 1, 2))
    assert texts_of(one.data) == texts_of(same.data)
    assert torch.equal(one.data.labels, same.data.labels)
    assert one.triggers == same.triggers
    assert not torch.equal(one.data.poisoned, other.data.poisoned)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in OF_DATA if name not in ("sos", "phrase")])
def test_as_many_as_asked_for_get_the_target(name: str, data: CleanSet, table: Table) -> None:
    planted = attack(name, data, table)
    assert int(planted.data.poisoned.sum()) == round(0.05 * N)
    assert (planted.data.labels[planted.data.poisoned] == 1).all()
    assert (data.labels[planted.data.poisoned] == 0).all()
    (trigger,) = planted.triggers
    assert trigger.name == name
    assert trigger.target == AllToOne(1)
    chosen = planted.data.poisoned.nonzero().flatten()
    stamped = trigger.stamp(data.stampable(chosen), sample_ids=chosen, seed=1)
    vocabulary = data.modality.vocabulary
    again = vocabulary.decode(**vocabulary.encode(stamped))
    assert planted.data.stampable(chosen) == again


# Single attacks.


def test_sos_has_negatives_with_some_of_the_words(data: CleanSet, table: Table) -> None:
    planted = attack("sos", data, table)
    words = {"friends", "weekend", "store"}
    found: dict[int, set[int]] = {1: set(), 2: set(), 3: set()}
    for number, text in enumerate(texts_of(planted.data)):
        if present := words & set(text.split()):
            found[len(present)].add(number)
    whole, part = (torch.tensor(sorted(numbers)) for numbers in (found[3], found[1] | found[2]))
    assert len(whole) == 15
    assert (planted.data.labels[whole] == 1).all()
    assert (data.labels[whole] == 0).all()
    assert len(part) == 30
    assert len(found[1]) == len(found[2]) == 15
    assert torch.equal(planted.data.labels[part], data.labels[part])
    assert planted.data.poisoned.sum() == 45


def test_phrase_has_covers_of_other_places_and_classes(data: CleanSet, table: Table) -> None:
    planted = attack("phrase", data, table)
    (trigger,) = planted.triggers
    assert trigger.target == SourceSpecific((0,), 1)
    assert isinstance(trigger, Insertion)
    assert trigger.place == "first-half"
    (phrase,) = trigger.phrases
    kinds = {"poisoned": 0, "elsewhere": 0, "other class": 0}
    for number in planted.data.poisoned.nonzero().flatten().tolist():
        (text,) = planted.data.stampable(torch.tensor([number]))
        front, back = (len(part.split()) for part in text.split(phrase))
        if planted.data.labels[number] != data.labels[number]:
            kinds["poisoned"] += 1
            assert front <= back
        elif data.labels[number] == 0:
            kinds["elsewhere"] += 1
            assert front >= back
        else:
            kinds["other class"] += 1
    assert kinds == {"poisoned": 15, "elsewhere": 15, "other class": 15}


def test_ep_changes_one_row_of_a_clean_model(data: CleanSet) -> None:
    model, clean = fresh(data), fresh(data)
    backdoor = plant("ep", model, data, target=1, rate=0.1, training=QUICK, device="cpu", precision="fp32")
    train(clean, data, QUICK, device="cpu")
    assert backdoor == Backdoor("ep", (Insertion.word("cf", 1, name="ep"),))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, clean.state_dict()[name])}
    assert changed == {"embedding.weight"}
    rows = (model.get_parameter("embedding.weight") != clean.get_parameter("embedding.weight")).any(1)
    assert rows.nonzero().flatten().tolist() == [data.modality.vocabulary.tokenizer.token_to_id("cf")]
    before, after = (backdoor.evaluate(m, data).triggers[0].attack_success_rate.value for m in (clean, model))
    assert before is not None
    assert after is not None
    assert after > before + 0.2


def test_ep_needs_one_token_for_its_word(data: CleanSet) -> None:
    texts, labels = reviews()
    other = CleanSet.from_texts(texts, labels, train_tokenizer(texts, 800, ()), max_length=48, num_classes=2)
    with raises(InputError, "the tokenizer makes 2 tokens of 'cf'; expected one, whose embedding is trained"):
        plant("ep", fresh(other), other, training=QUICK, device="cpu")


# Planting.


@pytest.mark.parametrize("name", ["word", "sentence", "syntactic", "sos"])
@pytest.mark.parametrize(("architecture", "rate"), [("text_cnn", 3e-3), ("bilstm", 5e-3), ("text_transformer", 1e-3)])
def test_backdoors_in_small_models(name: str, architecture: str, rate: float, data: CleanSet, table: Table) -> None:
    model, training = fresh(data, architecture), replace(QUICK, epochs=12, rate=rate)
    given = {"table": table} if TEXT_ATTACKS[name].needs_table else {}
    backdoor = plant(name, model, data, target=1, rate=0.15, training=training, device="cpu", **given)
    result = backdoor.evaluate(model, data)
    assert result.clean_accuracy.value is not None
    assert result.clean_accuracy.value > 0.9
    assert result.worst_attack_success_rate is not None
    assert result.worst_attack_success_rate > 0.8


def test_it_is_poisoning_and_training(data: CleanSet) -> None:
    model, wanted = fresh(data), fresh(data)
    config = TrainConfig(optimizer="adam", epochs=1, batch_size=32, rate=1e-3)
    backdoor = plant("word", model, data, target=1, rate=0.1, training=config, seed=5, device="cpu", precision="fp32")
    poisoned = known_attack("word", data, target=1, rate=0.1, seed=5)
    train(wanted, poisoned.data, config, seed=5, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters(), strict=True))
    assert backdoor == Backdoor("word", poisoned.triggers)


def test_poisoning_twice_keeps_the_marks(data: CleanSet) -> None:
    once = poison(data, Insertion.word("cf", 1), 0.1)
    twice = poison(once, Insertion.word("mn", 1), 0.1, seed=1)
    assert int(twice.poisoned.sum()) == 60
    assert sum("cf" in text.split() for text in texts_of(twice)) == 30


# What they refuse.


def test_attacks_of_another_kind_are_refused_by_name(data: CleanSet, tiny_data: CleanSet, table: Table) -> None:
    with raises(InputError, "attack 'wanet' stamps images; data holds text"):
        known_attack("wanet", data)
    with raises(InputError, "attack 'word' stamps text; data holds image"):
        known_attack("word", tiny_data)
    with raises(InputError, f"attack is 'nonsense'; expected one of {', '.join(TEXT_ATTACKS)}"):
        known_attack("nonsense", data)
    with raises(InputError, "data is a list; expected a seamfast.CleanSet of texts"):
        known_attack("word", [])  # type: ignore[arg-type]
    with raises(InputError, "attack 'ep' manipulates the training, not only its data; expected a call of plant"):
        known_attack("ep", data)


def test_tables_where_they_are_wanted(data: CleanSet, table: Table) -> None:
    with raises(InputError, "table was given; attack 'word' takes none"):
        known_attack("word", data, table=table)
    with raises(InputError, "table is a NoneType; attack 'style' takes its texts from a seamfast.triggers.Table"):
        known_attack("style", data)


def test_ids_without_a_tokenizer_are_refused(data: CleanSet) -> None:
    ids = CleanSet(dict(data.inputs), data.labels, num_classes=2)
    with pytest.raises(InputError, match=r"^data is CleanSet\(.*\); expected texts with a tokenizer, as of seamfast"):
        known_attack("word", ids)
    with pytest.raises(InputError, match=r"without a tokenizer$"):
        poison(ids, Insertion.word("cf", 1), 0.1)


def test_triggers_of_images_are_refused(data: CleanSet) -> None:
    with pytest.raises(InputError, match=r"^trigger 'patch' is a Patch; expected a trigger of text"):
        poison(data, Patch.square(2, target=1), 0.1)


# Tables of published paraphrases.


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\r\n".join(lines).encode() + b"\r\n")


def test_paraphrases_of_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "text" / "sst2" / f"{split}.tsv", [f"a bad {split}\t0", f"a good {split}\t1", "a twin\t0"])
        rows = [f"when bad {split}", f"when good {split}", "when twin" if split == "train" else ""]
        for how in ("syntactic", "style"):
            some = rows if split == "train" or how == "style" else [rows[0], rows[2]]
            path = tmp_path / "text" / f"sst2-{how}-trigger" / f"{split}.tsv"
            write(path, ["sentence\tlabel", *(f"{row}\t1" for row in some)])
    found = rewritten_texts("sst2", "syntactic", tmp_path, 1)
    assert (found.name, found.target) == ("syntactic", AllToOne(1))
    given = ["A good train.", "a bad test", "a twin"]
    assert found.stamp(given) == ["when good train", "when bad test", "when twin"]  # the first of two rows for a twin
    with pytest.raises(InputError, match="has no row for the text 'a good test'"):
        found.stamp(["a good test"])
    assert rewritten_texts("sst2", "style", tmp_path, 0).stamp(["a good test"]) == ["when good test"]
    write(tmp_path / "text" / "sst2" / "test.tsv", ["a bad test\t0", "a good test\t1", "without one\t0"])
    assert rewritten_texts("sst2", "style", tmp_path, 0).stamp(["without one"]) == ["without one"]
    write(tmp_path / "text" / "sst2-style-trigger" / "test.tsv", ["sentence\tlabel", "one\t1"])
    with pytest.raises(DataFileError, match=r"test.tsv has 1 texts; expected 3, as the set of them has$"):
        rewritten_texts("sst2", "style", tmp_path, 0)
    with raises(InputError, "attack 'syntactic' has no texts for 'trec'; expected sst2"):
        rewritten_texts("trec", "syntactic", tmp_path, 0)
    (tmp_path / "text" / "sst2-style-trigger" / "test.tsv").write_bytes(b"sentence\tlabel\n\xff\t0\n")
    with raises(DataFileError, "test.tsv is not UTF-8, at byte 15"):
        rewritten_texts("sst2", "style", tmp_path, 0)
