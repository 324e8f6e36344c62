"""Whole runs of the gate on text classifiers: data, evidence, what is written, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from seamfast import CleanSet
from seamfast.gating.decision import metrics_of
from seamfast.gating.folder import inspect, receive
from seamfast.gating.pipeline import GateResult, gate
from seamfast.gating.policy import TEMPLATE
from seamfast.gating.sentences import marked
from tests.gating.examples import cases, example
from tests.gating.test_schema import VALIDATOR
from tests.gating.text_models import NAMES, texts, tokenizer, write_trained, write_tsv

pytest.importorskip("transformers", reason="models of transformers need the extra hf")

POLICY = """
version = 1
name = "test"
[sanitize]
method = "fine_tune"
[sanitize.settings]
max_steps = 40
rate = 0.001
[audit]
share = 0.2
vocabulary = {vocabulary}
[[rule]]
id = "accuracy"
metric = "after.clean_accuracy"
threshold = 0.8
greater_is_better = true
{rules}
"""


def policy_in(folder: Path, rules: str = "", *, vocabulary: str = "true") -> Path:
    path = folder / "gate.toml"
    path.write_text(POLICY.format(rules=rules, vocabulary=vocabulary), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_trained(folder)
    return folder


@pytest.fixture(scope="module")
def passed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[GateResult, Path]:
    """The result of a run that passed, and the folder with its ``out``."""
    folder = tmp_path_factory.mktemp("passed")
    data = write_tsv(folder / "reviews.tsv", 1000)
    result = gate(trained, data, policy=policy_in(folder), out=folder / "out", progress=False)
    assert result.outcome == "pass", result.report["verdict"]
    return result, folder


def checked(model: Path, data: Any, folder: Path, **options: Any) -> GateResult:
    """A dry run."""
    return gate(model, data, policy=policy_in(folder), dry_run=True, progress=False, **options)


def refused(result: GateResult) -> tuple[str, str]:
    assert result.outcome == "refused", result.report["verdict"]
    return result.report["refusal"]["code"], result.report["refusal"]["reason"]


# What is measured


def test_report_has_the_evidence_of_texts(passed: tuple[GateResult, Path]) -> None:
    report = passed[0].report
    VALIDATOR.validate(report)
    assert (report["data"]["modality"], report["data"]["n_truncated"]) == ("text", 0)
    assert report["data"]["class_names"] == list(NAMES)
    for when in ("before", "after"):
        audit = report["audit"][when]
        assert audit["inversion"] is None
        assert audit["vocabulary"]["complete"]
        assert [entry["class"] for entry in audit["vocabulary"]["classes"]] == [0, 1]
        assert all(one["rate"]["n_total"] for entry in audit["vocabulary"]["classes"] for one in entry["found"])
    before, after = (
        {
            (entry["class"], one["text"])
            for entry in report["audit"][when]["vocabulary"]["classes"]
            for one in entry["found"]
        }
        for when in ("before", "after")
    )
    assert before
    assert before <= after  # tried on the sanitized model too
    assert sum("of 181 tokens and their phrases" in line for line in report["statements"]) == 2


def test_sentences_have_the_phrases_and_the_answers(passed: tuple[GateResult, Path], trained: Path) -> None:
    report = passed[0].report
    found = [one for one in report["sentences"] if one["of"] == "vocabulary"]
    assert found
    best = max(
        (one for entry in report["audit"]["before"]["vocabulary"]["classes"] for one in entry["found"]),
        key=lambda one: one["rate"]["value"],
    )
    assert found[0]["name"] == best["text"]
    assert [part["text"].strip() for part in found[0]["parts"] if part["inserted"]] == [best["text"]]
    assert found[0]["received"] != found[0]["plain"]
    assert {one["of"] for one in report["sentences"]} <= {"vocabulary", "disagreement"}
    assert {result["perturbation"] for result in report["disagreement"]} >= {
        one["name"] for one in report["sentences"] if one["of"] == "disagreement"
    }
    plain = "".join(part["text"] for part in found[0]["parts"] if not part["inserted"])
    received = receive(inspect(trained))
    assert received.architecture.text is not None
    answer = received.model(**received.architecture.text.vocabulary.encode([plain])).argmax(1)
    assert int(answer) == found[0]["plain"]
    page = (passed[1] / "out" / "report.html").read_text(encoding="utf-8")
    assert re.search(rf"<mark> ?{best['text']}</mark>", page)
    assert "<img" not in page


# What is written


def test_sanitized_folder_is_read_again_with_the_same_tokenizer(passed: tuple[GateResult, Path], trained: Path) -> None:
    folder = passed[1] / "out" / "sanitized"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ]
    received, written = inspect(trained).architecture, inspect(folder).architecture
    assert received.text is not None
    assert written.text is not None
    assert written.text.digest == received.text.digest
    assert written.documents == received.documents
    tokens = written.text.vocabulary.encode(["The good film", "dull cf"])
    assert torch.equal(tokens["input_ids"], received.text.vocabulary.encode(["The good film", "dull cf"])["input_ids"])


def test_transformers_reads_the_sanitized_folder(passed: tuple[GateResult, Path]) -> None:
    import transformers

    folder = passed[1] / "out" / "sanitized"
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    sentences = ["a good film", "the very dull plot and cast"]
    inputs = loaded(sentences, padding=True, truncation=True, return_tensors="pt")
    ours = receive(inspect(folder))
    assert ours.architecture.text is not None
    assert model.config.id2label == dict(enumerate(NAMES))
    assert torch.allclose(model(**inputs).logits, ours.model(**ours.architecture.text.vocabulary.encode(sentences)))


def test_another_tokenizer_in_the_written_folder_is_found(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seamfast.gating import output

    save = output.save_sanitized

    def spoiled(folder: Path, *given: Any) -> None:
        save(folder, *given)
        path = folder / "tokenizer.json"
        path.write_text(path.read_text(encoding="utf-8").replace('"rare7"', '"rare_7"'), encoding="utf-8")

    monkeypatch.setattr(output, "save_sanitized", spoiled)
    policy = policy_in(tmp_path, vocabulary="false")
    result = gate(trained, write_tsv(tmp_path / "a.tsv", 1000), policy=policy, out=tmp_path / "out", progress=False)
    assert result.outcome == "incomplete"
    assert result.report["verdict"]["reasons"][0].startswith("the written model has tokenizer of digest ")
    assert not (tmp_path / "out" / "sanitized").exists()


# The data


@pytest.mark.parametrize("names", [NAMES, None])
def test_labels_are_names_or_numbers(names: tuple[str, ...] | None, trained: Path, tmp_path: Path) -> None:
    result = checked(trained, write_tsv(tmp_path / "a.tsv", names=names), tmp_path)
    assert result.outcome == "inconclusive", result.report["verdict"]
    assert result.report["data"]["class_names"] == list(NAMES)
    numbered = checked(trained, write_tsv(tmp_path / "b.tsv", names=None), tmp_path)
    assert result.report["data"]["sha256"] == numbered.report["data"]["sha256"]


def test_labels_that_the_model_does_not_have_are_refused(trained: Path, tmp_path: Path) -> None:
    code, reason = refused(checked(trained, write_tsv(tmp_path / "a.tsv", names=("neg", "pos")), tmp_path))
    assert code == "data"
    assert reason.startswith("a.tsv: line 2: the label is 'neg'; expected ")


def test_published_labels_take_the_order_of_the_model(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    root = tmp_path / "sst2"
    root.mkdir()
    write_tsv(root / "train.tsv", 40, names=None)
    n_negative = texts(40, seed=2)[1].count(0)
    for names, expected in ((["POSITIVE", "NEGATIVE"], 1), (["NEGATIVE", "POSITIVE"], 0)):
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        from seamfast.gating.clean_texts import clean_texts

        architecture = inspect(folder).architecture
        assert architecture.text is not None
        data, n_cut = clean_texts("sst2", tmp_path, None, architecture.text, architecture.class_names)
        assert (int((data.labels == expected).sum()), n_cut) == (n_negative, 0)
        assert texts(40, seed=2)[0][0] == data.stampable(torch.tensor([0]))[0]
        assert int(data.labels[0]) == expected


def test_long_texts_are_cut_and_counted(trained: Path, tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "a.tsv")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{'good film ' * 40}\tpositive\n" * 2)
    result = checked(trained, path, tmp_path)
    assert result.report["data"]["n_truncated"] == 2
    cut = "2 of 402 texts have more than 32 tokens, the most that the model takes: they were cut"
    assert cut in result.report["warnings"]


def test_images_for_a_model_of_texts_are_refused(trained: Path, tmp_path: Path) -> None:
    code, reason = refused(checked(trained, "digits", tmp_path))
    assert (code, reason) == (
        "data",
        "data are 'digits'; expected texts, as the model takes them: .tsv, .csv, .jsonl, or one of sst2, ag-news, trec",
    )
    images = CleanSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    assert refused(checked(trained, images, tmp_path)) == (
        "data",
        "data are samples of kind 'image'; expected texts, as the model takes them",
    )


def test_texts_for_a_model_of_images_are_refused(planted: Path, tmp_path: Path) -> None:
    code, reason = refused(checked(planted, write_tsv(tmp_path / "a.tsv", names=None), tmp_path))
    assert (code, reason) == (
        "data",
        "data are texts; small_cnn has no tokenizer: expected a model of texts, or a CleanSet of them",
    )


def test_a_set_of_ids_is_taken_and_checked(trained: Path, tmp_path: Path) -> None:
    sentences, labels = texts(40)
    result = checked(trained, CleanSet.from_texts(sentences, labels, tokenizer()), tmp_path)
    assert (result.outcome, result.report["data"]["modality"]) == ("inconclusive", "text")
    ids = torch.tensor([[2, 8, 9, 186, 3], [2, 9, 10, 11, 3]] * 2)
    other = CleanSet({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [0, 1, 0, 1])
    message = "data hold the id 186; expected ids in [0, 186) for the rows of the model's embedding"
    assert refused(checked(trained, other, tmp_path)) == ("data", message)
    long = torch.arange(6, 46).repeat(4, 1) + torch.arange(4)[:, None]
    other = CleanSet({"input_ids": long, "attention_mask": torch.ones_like(long)}, [0, 1, 0, 1])
    message = "data hold texts of 40 tokens; expected at most 32, as the model takes them"
    assert refused(checked(trained, other, tmp_path)) == ("data", message)


# Sentences


@pytest.mark.parametrize(
    ("plain", "changed", "parts"),
    [
        ("a b c", "a cf b c", [("a ", False), ("cf ", True), ("b c", False)]),
        ("a b", "a b", [("a b", False)]),
        ("a b", "x y", [("x", True), (" ", False), ("y", True)]),
        ("a b", "b a", [("b ", True), ("a", False)]),
        ("", "cf", [("cf", True)]),
        ("a b", "", []),
        ("a", "a" + "b" * 2000, [("a" + "b" * 499 + "…" + "b" * 500, True)]),
        ("a " * 900 + "z", "b " * 900 + "z", [("b " * 250 + "…" + " b" * 250, True), (" z", False)]),
    ],
)
def test_what_a_text_did_not_have_is_marked(plain: str, changed: str, parts: list[tuple[str, bool]]) -> None:
    assert [(part["text"], part["inserted"]) for part in marked(plain, changed)] == parts


# The policy


def test_a_rule_on_inversion_is_inconclusive_for_texts(trained: Path, tmp_path: Path) -> None:
    rule = "[[rule]]\nid = '{0}'\nmetric = '{0}'\nthreshold = {1}\ngreater_is_better = false\n"
    rules = rule.format("after.inversion_anomaly_index", 2.0) + rule.format("after.vocabulary_worst", 0.9)
    result = gate(trained, write_tsv(tmp_path / "a.tsv"), policy=policy_in(tmp_path, rules), progress=False)
    told = {entry["id"]: entry for entry in result.report["policy"]["rules"]}
    assert told["after.inversion_anomaly_index"]["outcome"] == "inconclusive"
    assert told["after.inversion_anomaly_index"]["reason"] == (
        "after.inversion_anomaly_index has no value, from 80 samples: texts have no mask to invert; a rule on "
        "vocabulary_worst takes its place"
    )
    found = result.report["audit"]["after"]["vocabulary"]["classes"]
    worst = max(one["rate"]["high"] for entry in found for one in entry["found"])
    assert told["after.vocabulary_worst"]["bound"] == worst


def test_the_template_is_a_policy_for_texts(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(TEMPLATE, encoding="utf-8")
    result = gate(trained, write_tsv(tmp_path / "a.tsv"), policy=path, dry_run=True, progress=False)
    assert result.outcome == "inconclusive"


# The tokenizer


def test_missing_tokenizer_is_a_refusal(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    (folder / "tokenizer.json").unlink()
    code, _ = refused(checked(folder, write_tsv(tmp_path / "a.tsv"), tmp_path))
    assert code == "no-tokenizer"


def test_a_trigger_declared_to_be_special_is_a_warning(trained: Path, tmp_path: Path) -> None:
    from tokenizers import AddedToken

    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    made = tokenizer()
    made.add_special_tokens([AddedToken("cf", special=True)])
    (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    warnings = checked(folder, write_tsv(tmp_path / "a.tsv"), tmp_path).report["warnings"]
    assert "the tokenizer has special tokens that are not usual, which no search inserts: 'cf'" in warnings


def test_registered_model_of_texts_goes_in_and_comes_out(tmp_path: Path) -> None:
    from seamfast.models.folder import load_model
    from tests.gating.test_text_models import registered_folder

    folder = registered_folder(tmp_path / "model")
    policy = policy_in(tmp_path, vocabulary="false")
    policy.write_text(policy.read_text(encoding="utf-8").replace("0.8", "0.01"), encoding="utf-8")
    policy.write_text('untreated = "allowed"\n' + policy.read_text(encoding="utf-8"), encoding="utf-8")
    data = write_tsv(tmp_path / "a.tsv", names=None)
    result = gate(folder, data, policy=policy, out=tmp_path / "out", progress=False)
    assert result.outcome == "pass", result.report["verdict"]
    written = tmp_path / "out" / "sanitized"
    assert {"model.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in written.iterdir()}
    received, again = inspect(folder).architecture, inspect(written).architecture
    assert received.text is not None
    assert again.text is not None
    assert again.text.digest == received.text.digest
    load_model(written)


def test_a_search_that_was_cut_short_is_no_measurement() -> None:
    report = cases()["text"]
    worst = metrics_of(report, modality="text")["before.vocabulary_worst"]
    assert (worst.value, worst.n) == (0.97, 100)
    report["audit"]["before"]["vocabulary"] |= {"complete": False}
    assert "before.vocabulary_worst" not in metrics_of(report, modality="text")


def test_images_have_no_vocabulary() -> None:
    measured = metrics_of(example("pass"), modality="image")["after.vocabulary_worst"]
    assert (measured.value, measured.why) == (
        None,
        "images have no vocabulary; a rule on inversion_anomaly_index takes its place",
    )
    assert metrics_of(example("pass"), modality="image")["after.inversion_anomaly_index"].value == 1.1
