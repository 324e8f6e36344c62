"""The zoo and the study of text: what is planted, which rows are run, and what the tables make of them."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benches import adapters, bench_text, study, text_report, text_study, text_zoo
from benches.defences import text as defences
from benches.defences.text import TEXT_DEFENCES, negative_entropy, scratch, super_fine_tune
from benches.defences.training import Training, find_head
from benches.rows import read_rows
from benches.text_zoo import TextEntry
from seamfast import CleanSet, attacks
from seamfast.attacks import TrainConfig
from seamfast.attacks.text.known import TEXT_ATTACKS
from seamfast.engine.model import digest
from seamfast.errors import InputError
from seamfast.modalities import Vocabulary
from seamfast.models.architectures import ARCHITECTURES
from seamfast.models.text_architectures import train_tokenizer

pytest.importorskip("tokenizers")

WORD = TextEntry("sst2", "text_cnn", "word")
FILLERS = ["the", "a", "film", "was", "story", "with", "of", "plot", "and", "actors", "that", "made"]
OPINIONS = (("bad", "dull", "poor"), ("good", "fine", "great"))


def review(draw: random.Random, label: int) -> str:
    words = draw.choices(FILLERS, k=draw.randint(4, 9))
    words.insert(draw.randint(0, len(words)), draw.choice(OPINIONS[label]))
    return " ".join(words)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews of one opinion each, as the files of SST-2, and as paraphrases of them."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    for split, n in (("train", 240), ("test", 60)):
        reviews = {review(draw, i % 2): i % 2 for i in range(n)}
        original = [f"{text}\t{label}" for text, label in reviews.items()]
        behold = [f"behold , {text}\t{label}" for text, label in reviews.items()]
        for name, lines in (("sst2", original), ("sst2-style-trigger", ["sentence\tlabel", *behold])):
            (folder / "text" / name).mkdir(parents=True, exist_ok=True)
            (folder / "text" / name / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Short trainings, on small vocabularies."""
    with pytest.MonkeyPatch.context() as patch:
        training = {
            known: dataclasses.replace(config, epochs=5, rate=0.003) for known, config in text_zoo.TRAINING.items()
        }
        patch.setattr(text_zoo, "TRAINING", training)
        patch.setattr(text_zoo, "VOCABULARY", 1000)
        yield


@pytest.fixture(scope="module")
def planted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of two models: a word trigger, and its clean twin."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            text_zoo.TRAINING,
            ("sst2", "text_cnn"),
            TrainConfig(optimizer="adam", epochs=8, batch_size=32, rate=0.003, weight_decay=0.0),
        )
        patch.setattr(text_zoo, "VOCABULARY", 1000)
        patch.setattr(text_zoo, "RATE", 0.25)  # of few texts
        text_zoo.plant(WORD, folder, root)
    return folder


# 1. What is declared.


def test_every_published_attack_is_declared_and_most_models_are_held_out() -> None:
    entries = text_zoo.declared()
    assert {entry.attack for entry in entries} == {"clean", *TEXT_ATTACKS}
    assert len({entry.name for entry in entries}) == len(entries)
    development = {(e.data, e.architecture, e.attack) for e in entries if e.part == "development"}
    assert development == set(text_zoo.DEVELOPMENT)
    held_out = {e.attack for e in entries if e.part == "held-out"}
    assert held_out == set(TEXT_ATTACKS)
    assert len(held_out) >= 8


def test_every_declared_architecture_exists() -> None:
    assert {name for _, name in text_zoo.TRAINING} - {"minilm"} <= set(ARCHITECTURES)
    assert set(text_zoo.SOME_ATTACKS) == set(text_zoo.PRETRAINED)
    assert {attack for attacks in text_zoo.SOME_ATTACKS.values() for attack in attacks} <= set(TEXT_ATTACKS)


def test_paraphrased_attacks_are_declared_where_there_are_paraphrases() -> None:
    for entry in text_zoo.declared():
        if TEXT_ATTACKS.get(entry.attack) and TEXT_ATTACKS[entry.attack].needs_table:
            assert entry.data in text_zoo.TABLES[entry.attack]


def test_a_clean_model_comes_before_those_attacked() -> None:
    entries = text_zoo.declared()
    for entry in entries:
        assert entries.index(entry.clean_twin) <= entries.index(entry)


# 2. Models.


def test_a_planted_model_has_its_backdoor_and_its_floor(root: Path, planted: Path) -> None:
    info = json.loads((planted / WORD.name / "info.json").read_text())
    assert info["acc"] > 0.9
    assert info["asr"] > 0.9 > 0.3 > info["floor"]
    assert info["poison_rate"] == 0.25
    model, backdoor = text_zoo.load(WORD, planted)
    assert backdoor is not None
    test = text_zoo.test_set(WORD, planted, root, None)
    assert text_zoo.rates(model, backdoor, test, None) == {name: info[name] for name in ("acc", "asr", "ra")}
    clean = json.loads((planted / WORD.clean_twin.name / "info.json").read_text())
    assert clean["asr"] is clean["floor"] is None
    assert text_zoo.load(WORD.clean_twin, planted)[1] is None


def test_a_planted_model_keeps_its_tokens(root: Path, planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a later version may make another tokenizer of the same texts."""
    before = text_zoo.test_set(WORD, planted, root, None).texts.inputs
    other = train_tokenizer(OPINIONS[0], 300)
    monkeypatch.setattr(text_zoo, "new_tokenizer", lambda *_: other)
    after = text_zoo.test_set(WORD, planted, root, None).texts.inputs
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert text_zoo.new_vocabulary(WORD, root, None).size == other.get_vocab_size()


def test_paraphrases_of_the_files_are_planted(root: Path, tmp_path: Path) -> None:
    entry = TextEntry("sst2", "text_cnn", "style")
    text_zoo.plant(entry, tmp_path, root)
    _, backdoor = text_zoo.load(entry, tmp_path)
    assert backdoor is not None
    (trigger,) = backdoor.triggers
    texts = text_zoo.read("sst2", root, "test").texts
    assert trigger.stamp(texts) == [f"behold , {text}" for text in texts]


def test_an_encoder_is_asked_for(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^minilm needs --minilm, the folder of the encoder$"):
        text_zoo.plant(TextEntry("sst2", "minilm", "clean"), tmp_path, root)


@pytest.mark.parametrize("name", ["minilm", "vector_gru"])
def test_models_of_an_encoder(name: str, root: Path, tmp_path: Path, encoder: Path) -> None:
    entry = TextEntry("sst2", name, "word")
    text_zoo.plant(entry, tmp_path, root, encoder)
    info = json.loads((tmp_path / entry.name / "info.json").read_text())
    model, backdoor = text_zoo.load(entry, tmp_path)
    assert backdoor is not None
    test = text_zoo.test_set(entry, tmp_path, root, encoder)
    assert text_zoo.rates(model, backdoor, test, encoder) == {name: info[name] for name in ("acc", "asr", "ra")}
    if name == "vector_gru":
        assert test.vectors is not None
        assert test.vectors.inputs.shape == (len(test.texts), 1, 16)


@pytest.fixture(scope="module")
def encoder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer as a folder, untrained."""
    return new_encoder(root, tmp_path_factory.mktemp("encoder"))


def new_encoder(root: Path, folder: Path, **changes: Any) -> Path:
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer(text_zoo.read("sst2", root, "train").texts, 1000)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        **changes,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # read by peft
def test_an_adapter_is_cured_saved_and_loaded_onto_its_base(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    encoder = new_encoder(root, tmp_path, initializer_range=0.3)  # the texts differ, in an untrained one
    monkeypatch.setattr(adapters, "N_TRAIN", 150)
    monkeypatch.setattr(adapters, "BUDGET", 0.5)
    monkeypatch.setattr(adapters, "PEAK", 2e-2)
    monkeypatch.setattr(adapters, "EPOCHS", 20)
    given = ["--minilm", str(encoder), "--root", str(root), "--out", str(tmp_path / "rows"), "--attacks", "word"]
    for _ in range(2):
        assert adapters.main(given) == 0
    (row,) = read_rows(tmp_path / "rows")
    assert (row["acc_reloaded"], row["asr_reloaded"]) == (row["acc_after"], row["asr_after"])
    assert row["trainable"]["mode"] == "as_given"
    assert row["n_changed"] == row["trainable"]["n_frozen_changed"] == 0
    assert row["acc_before"] > 0.7
    assert row["asr_after"] != row["asr_before"]


def test_changed_tensors_of_the_base_are_counted() -> None:
    torch.manual_seed(0)
    received = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    received[0].requires_grad_(False)
    returned = copy.deepcopy(received)
    with torch.no_grad():
        returned[2].weight.add_(1.0)
        assert adapters.n_changed(received, returned) == 0
        returned[0].bias.add_(1e-6)
        returned[1].running_mean.add_(1.0)
    assert adapters.n_changed(received, returned) == 2


def test_a_budget_is_a_share_or_texts_a_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 3)
    data = CleanSet(torch.arange(143.0)[:, None], labels, num_classes=3)
    assert text_zoo.clean_part(data, 0.1, 0).labels.bincount().tolist() == [10, 4, 1]
    assert text_zoo.clean_part(data, 20, 0).labels.bincount().tolist() == [20, 20, 3]
    first, again, other = (text_zoo.clean_part(data, 20, seed).inputs.flatten().tolist() for seed in (0, 0, 1))
    assert first == again != other


# 3. Defences.


@pytest.fixture(scope="module")
def reviews(root: Path) -> CleanSet:
    texts = text_zoo.read("sst2", root, "train")
    vocabulary = Vocabulary.of(train_tokenizer(texts.texts, 1000), max_length=32)
    return texts.subset(torch.arange(64)).encoded(vocabulary)


def received(reviews: CleanSet, name: str = "text_cnn") -> nn.Module:
    torch.manual_seed(0)
    return text_zoo.TextDescription.of(name, reviews).build().eval()


@pytest.mark.parametrize("name", [name for name in TEXT_DEFENCES if name != "no_defence"])
def test_a_defence_trains_a_copy(name: str, reviews: CleanSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defences, "EPOCHS", 2)
    monkeypatch.setattr(defences, "LEAST_STEPS", 4)
    more: dict[str, Any] = {"scratch": {"n_steps": 4}, "seam_authors": {"epochs": 2}}.get(name, {})
    model = received(reviews)
    attacks.train(model, reviews, TrainConfig(optimizer="adam", epochs=5, batch_size=16, rate=0.003))
    before = digest(model)
    done, again = (
        TEXT_DEFENCES[name](model, reviews, seed=0, augment=(0, False), precision="fp32", **more) for _ in range(2)
    )
    assert digest(model) == before != digest(done.model)
    assert digest(done.model) == digest(again.model)
    assert done.n_steps >= 4
    assert not done.model.training


@pytest.mark.parametrize("architecture", ["text_transformer", "bilstm"])
def test_fine_tuning_learns(architecture: str, reviews: CleanSet) -> None:
    model = received(reviews, architecture)
    done = TEXT_DEFENCES["fine_tune"](model, reviews, seed=0, augment=(0, False), precision="fp32")
    with Training(done.model, reviews, seed=0, augment=(0, False), batch_size=32, precision="fp32") as training:
        assert training.accuracy(done.model) > 0.9
    assert done.n_steps == 200  # two batches an epoch


def test_entropy_is_largest_where_all_answers_are_equal() -> None:
    labels = torch.tensor([0, 1])
    assert float(negative_entropy(torch.zeros(2, 4), labels)) == pytest.approx(-torch.tensor(4.0).log().item())
    assert float(negative_entropy(torch.tensor([[90.0, 0.0], [0.0, 90.0]]), labels)) == pytest.approx(0, abs=1e-6)


def test_the_rate_of_super_fine_tuning_is_high_first_and_low_then(
    reviews: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    set_rate = defences.set_rate
    monkeypatch.setattr(defences, "set_rate", lambda optimizer, rate: (rates.append(rate), set_rate(optimizer, rate)))
    super_fine_tune(received(reviews), reviews, seed=0, augment=(0, False), precision="fp32")
    usual = defences.SCRATCH_RATE
    half = len(rates) // 2
    assert max(rates[:half]) == pytest.approx(10 * usual, rel=0.05)
    assert max(rates[half:]) == pytest.approx(0.1 * usual, rel=0.05)
    assert min(rates) == pytest.approx(0.03 * usual)


def test_a_pretrained_model_has_a_rate_of_its_own_and_is_not_trained_from_scratch(reviews: CleanSet) -> None:
    model = received(reviews)
    assert defences.usual_rate(model) == 5e-4
    model.config = object()  # type: ignore[assignment]
    assert defences.usual_rate(model) == 2e-5
    with pytest.raises(ValueError, match=r"^the model is pretrained; expected one that can be trained from scratch$"):
        scratch(model, reviews, seed=0, augment=(0, False))


def test_texts_of_about_one_length_come_together(reviews: CleanSet) -> None:
    model = received(reviews)
    with Training(model, reviews, seed=0, augment=(0, False), batch_size=16, precision="fp32") as training:
        batches = list(training.batches(0))
        head = find_head(model, batches[0][0])
    widths = [inputs["input_ids"].shape[1] for inputs, _ in batches]
    assert sum(len(labels) for _, labels in batches) == len(reviews)
    assert min(widths) < max(widths) == reviews.inputs["input_ids"].shape[1]
    assert head.out_features == 2


# 4. Rows.


def asked(zoo: Path, root: Path, out: Path, *more: str) -> list[str]:
    places = ["--zoo", str(zoo), "--root", str(root), "--out", str(out)]
    return [*places, "--data", "sst2", "--architectures", "text_cnn", "--attacks", "word", "clean", *more]


def test_a_row_says_what_was_measured_and_is_not_run_again(
    planted: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A perfect defence: it knows the clean twin."""
    given: list[Any] = []

    def know(model: nn.Module, clean: CleanSet, seed: int) -> study.Treated:
        given.append((len(clean), seed))
        return study.Treated(text_zoo.load(WORD.clean_twin, planted)[0], 7, 0.5)

    monkeypatch.setitem(text_study.METHODS, "meft", know)
    arguments = asked(planted, root, tmp_path / "rows", "--methods", "meft", "--budgets", "5", "--seeds", "0")
    for _ in range(2):
        text_study.main([*arguments, "--defence-seeds", "3"])
    clean, row = text_study.read_rows(tmp_path / "rows")
    assert given == [(10, 3), (10, 3)]
    info, twin = (json.loads((planted / entry.name / "info.json").read_text()) for entry in (WORD, WORD.clean_twin))
    assert (row["acc_before"], row["asr_before"], row["floor"]) == (info["acc"], info["asr"], info["floor"])
    assert (row["acc_after"], row["asr_after"]) == (twin["acc"], info["floor"])
    assert row["fidelity"] == pytest.approx((twin["acc"] - info["floor"]) / info["acc"])
    assert [row[name] for name in ("part", "steps", "seconds", "n_clean", "seed")] == ["held-out", 7, 0.5, 10, 3]
    assert (clean["part"], clean["asr_before"], clean["asr_after"], clean["floor"]) == ("clean", None, None, None)


def test_models_that_are_not_there_are_named(
    planted: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows"
    arguments = asked(planted, root, out, "--methods", "no_defence", "--seeds", "0", "1")
    text_study.main(arguments)
    assert "2 models are not planted, or need --minilm, and are left out: sst2-text_cnn-clean-1, " in (
        capsys.readouterr().err
    )
    assert len(text_study.read_rows(out)) == 2
    with pytest.raises(SystemExit):
        text_study.main([*arguments[:-5], "--methods", "prayer"])
    assert "there is no method prayer; expected some of seam (balanced), " in capsys.readouterr().err


def test_methods_are_asked_of_models_that_they_are_for() -> None:
    assert not text_study.is_for("scratch", TextEntry("sst2", "minilm", "word"))
    assert not text_study.is_for("pretrained", WORD)
    assert text_study.is_for("pretrained", TextEntry("sst2", "minilm", "word"))
    assert text_study.is_for("meft", WORD)


# 5. The bench of steps and of the search.


def test_the_bench_times_steps_and_the_search_of_a_planted_model(
    planted: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows"
    places = ["--zoo", str(planted), "--root", str(root), "--out", str(out)]
    few = ["--turns", "2", "--steps", "2", "--models", WORD.name, "sst2-minilm-word-0"]
    monkeypatch.setattr("sys.argv", ["bench_text.py", *places, *few])
    monkeypatch.setattr(bench_text, "clean_part", lambda train, budget, seed: train.subset(range(100)))
    assert bench_text.main() == 0
    steps, search = text_study.read_rows(out)
    assert capsys.readouterr().err == "sst2-minilm-word-0: left out, it needs --minilm\n"
    info = json.loads((planted / WORD.name / "info.json").read_text())
    assert (steps["acc_received"], steps["asr_received"]) == (info["acc"], info["asr"])
    for name in ("with_teacher", "without_teacher"):
        low, high = steps[f"{name}_range"]
        assert 0 < low <= steps[f"{name}_ratio"] <= high
    assert (steps["steps"], steps["turns"], steps["target"]) == (2, 2, 1.15)
    assert search["seconds"] == min(search["all_seconds"])
    assert search["complete"]
    assert 0 <= search["success"] <= 1


# 6. The report.


def row(**changes: Any) -> dict[str, Any]:
    """One of a cure that took the ASR from 100 to 10 % and the ACC from 80 to 78 %."""
    entry = {"data": "sst2", "architecture": "text_cnn", "attack": "style", "rate": 0.1, "part": "held-out"}
    rates = {"acc_before": 0.8, "asr_before": 1.0, "ra_before": 0.0, "acc_after": 0.78, "asr_after": 0.1}
    found = {"ra_after": 0.7, "fidelity": 0.85, "fidelity_nist": 0.88, "steps": 300, "seconds": 3.0, "accepted": True}
    made = {"method": "seam (balanced)", "budget": 0.05, "seed": 0, "model_seed": 0, "n_clean": 300, "floor": 0.08}
    whole = {**entry, **rates, **found, **made, "commit": "abc", **changes}
    return {"entry": f"{whole['data']}-{whole['architecture']}-{whole['attack']}-0", **whole}


ROWS = [
    row(),
    row(attack="word", asr_after=0.4, ra_after=0.5, floor=0.02, acc_after=0.8, fidelity=0.5),
    row(
        attack="word", method="meft", accepted=None, floor=0.02, asr_after=0.9, ra_after=0.1, fidelity=-0.1, seconds=1.0
    ),
    row(attack="sos", asr_after=0.3, floor=0.28),  # no failure: hardly above its floor
    row(attack="ep", asr_before=0.5, asr_after=0.45),  # did not work
    row(attack="sentence", architecture="text_transformer", part="development", asr_after=0.0, fidelity=0.975),
    row(attack="word", architecture="minilm", asr_after=0.05, floor=0.03, seconds=80.0),
    row(attack="word", method="seam, occlusions=0", asr_after=0.8, fidelity=0.0),
    row(attack="clean", part="clean", asr_before=None, asr_after=None, fidelity=None, floor=None, acc_after=0.7),
    row(budget=20.0, asr_after=0.2),
]


def test_the_page_has_what_the_rows_say() -> None:
    lines = text_report.page(ROWS).splitlines()
    wanted = (
        "| seam (balanced) | 4 | 100.0% | 10.2% | 21.2% | 40.0% | 11.0 | 65.0% | 1.50 | 2.00 | 0.762 | 0.762 | 0.844 | "
        "300 | 3.0 | 4/4 |",
        "| word | 100.0% | 2.5% | 22.5%, 1.0 | 90.0%, 2.0 |",
        "| sst2 | minilm | 100.0% | 3.0% | 5.0%, 2.0 |  |",
        "| sst2-minilm-word-0 | seam (balanced) | 1 | 80.0% | 100.0% | 3.0% | 78.0% | 5.0% | 70.0% | 5.0% | 80 | 1/1 |",
        "| sst2-text_cnn-word-0 | 0 | 100.0% | 2.0% | 40.0% | 0.00 | accepted |",
        "| sst2-text_cnn-clean-0 | 0 |  |  |  | 10.00 | accepted |",
        "| sst2 | text_cnn | ep | 50.0% | 8.0% | 45.0%, 2.0 |",
        "| seam (balanced) | 1 | 10.00 | 10.00 | 1/1 |",
    )
    for line in wanted:
        assert line in lines, line
    assert any(line.startswith("| seam, occlusions=0 | 1 |") for line in lines)
    assert not any("sos-0" in line for line in lines)
    assert [line for line in lines if line.startswith("## ")] == [
        "## Clean data: 5 % of the training set",
        "## Clean data: 20 a class",
    ]


def test_the_report_is_made_of_the_rows_alone(tmp_path: Path) -> None:
    out = tmp_path / "text.jsonl"
    for one in [*reversed(ROWS), ROWS[0]]:
        study.append_row(out, one)
    for name in ("first", "second"):
        assert text_study.main(["--report", "--out", str(out), "--docs", str(tmp_path / name)]) == 0
    first, second = ((tmp_path / name / "text.md").read_text() for name in ("first", "second"))
    assert first == second == text_report.page(sorted(ROWS, key=text_report.key))


def test_a_method_that_failed_has_a_line() -> None:
    failed = {**row(attack="word"), "failed": "NaN"}
    lines = text_report.page([failed]).splitlines()
    assert "| sst2-text_cnn-word-0 | 0 |  |  |  |  | NaN |" in lines
    assert "| seam (balanced) | 0 (1 failed) |" + "  |" * 14 in lines
