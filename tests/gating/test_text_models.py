"""Text classifiers of transformers, described by a config and a tokenizer that are data: what is built, what is
refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seamfast.gating.folder import inspect, receive
from seamfast.intake.refusal import RefusedError
from tests.gating.golden_files import check_messages
from tests.gating.text_models import NAMES, SMALL, config, texts, tokenizer, vocabulary, write_folder
from tests.hostile import text_folders
from tests.hostile.case import refuses

transformers = pytest.importorskip("transformers", reason="models of transformers need the extra hf")
PREFIXES = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta", "gpt2": "GPT2"}
PREFIXES |= {"electra": "Electra", "albert": "Albert"}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize("model_type", SMALL)
@pytest.mark.usefixtures("offline")
def test_model_saved_by_transformers_gives_the_same_logits(model_type: str, tmp_path: Path) -> None:
    settings = {key: value for key, value in config(model_type).items() if key != "model_type"}
    names = {int(label): name for label, name in settings.pop("id2label").items()}
    wanted = getattr(transformers, f"{PREFIXES[model_type]}Config")(id2label=names, **settings)
    model = getattr(transformers, f"{PREFIXES[model_type]}ForSequenceClassification")(wanted).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer().to_str(), encoding="utf-8")
    inspection = inspect(tmp_path)
    architecture = inspection.architecture
    assert (architecture.source, architecture.name, architecture.class_names) == ("transformers", model_type, NAMES)
    assert architecture.text is not None
    assert architecture.text.vocabulary.size == len(vocabulary())
    assert architecture.text.vocabulary.max_length == (30 if model_type == "roberta" else 32)
    assert [file.role for file in inspection.files] == ["description", "weights", "description"]
    json.dumps(dict(architecture.arguments))
    received = receive(inspection)
    inputs = architecture.text.vocabulary.encode(texts(5)[0])
    with torch.no_grad():
        assert torch.equal(received.model(**inputs), model(**inputs).logits)
    assert architecture.names_in_file(received.model).keys() == received.model.state_dict().keys()


@pytest.mark.usefixtures("offline")
def test_other_keys_have_no_effect(tmp_path: Path) -> None:
    plain = inspect(write_folder(tmp_path / "plain")).architecture
    odd = inspect(
        write_folder(
            tmp_path / "odd",
            config(
                _attn_implementation="someone/kernels",
                attn_implementation="someone/kernels",
                quantization_config={"quant_method": "x"},
                is_decoder=True,
                add_cross_attention=True,
                use_cache=True,
                bos_token_id=7,
                tokenizer_class="SomeCode",
            ),
        )
    ).architecture
    assert replace(odd, place=plain.place) == plain
    inputs = plain.text.vocabulary.encode(["a good film"])  # type: ignore[union-attr]
    assert torch.equal(odd.build().eval()(**inputs), plain.build().eval()(**inputs))


def test_wrong_configs_are_refused(tmp_path: Path) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        *(("bert", {"problem_type": problem}) for problem in ("multi_label_classification", "regression", 1)),
        *(("bert", {"vocab_size": size}) for size in (0, 2**20 + 1, "30522", 1.5, len(vocabulary()) - 1)),
        *(("bert", {"pad_token_id": pad}) for pad in (None, -1, len(vocabulary()), "x", True)),
        *(("bert", {"max_position_embeddings": n}) for n in (0, 7, 8193)),
        *(("bert", {"num_hidden_layers": 201}), ("bert", {"type_vocab_size": 0}), ("bert", {"hidden_act": 7})),
        ("bert", {"auto_map": {"AutoModel": "x.Y"}}),
        ("bert", {"hidden_size": 16_384, "num_hidden_layers": 24, "intermediate_size": 65_536}),
        ("roberta", {"max_position_embeddings": 9}),
        *(("gpt2", {"pad_token_id": None}), ("gpt2", {"n_layer": 201}), ("gpt2", {"n_positions": 7})),
        *(("gpt2", {"n_embd": 10**9}), ("distilbert", {"n_layers": 201}), ("distilbert", {"dim": 0})),
        ("albert", {"num_hidden_groups": 100, "inner_group_num": 100}),
    ]
    numbers = iter(range(len(wrong)))

    def built(case: tuple[str, dict[str, Any]]) -> object:
        return inspect(write_folder(tmp_path / str(next(numbers)), config(case[0], **case[1])))

    check_messages("text-config-json.txt", RefusedError, built, wrong)


# The tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


def test_model_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    message = (
        r"^there is no tokenizer\.json, vocab\.txt, or vocab\.json with merges\.txt beside the weights; "
        r"expected the tokenizer of bert$"
    )
    (folder / "vocab.json").write_text("{}")  # not enough by itself
    with pytest.raises(RefusedError, match=message) as caught:
        inspect(folder)
    assert caught.value.code == "no-tokenizer"


def test_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(folder: Path) -> None:
    made = tokenizer()
    made.add_tokens(["one-more"])
    (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    n = len(vocabulary())
    with pytest.raises(RefusedError, match=rf"^tokenizer has {n + 1} tokens; the model's embedding has {n} rows$"):
        inspect(folder)


def test_more_rows_than_tokens_are_fine(tmp_path: Path) -> None:
    text = inspect(write_folder(tmp_path, config(vocab_size=256))).architecture.text
    assert text is not None
    assert text.vocabulary.size == 256
    assert int(text.vocabulary.insertable.max()) == len(vocabulary()) - 1


def test_vocab_txt_is_read_where_there_is_no_tokenizer_json(folder: Path) -> None:
    texts_ = ["a good film", "The DULL plot"]
    with_json = inspect(folder).architecture.text
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 20}))
    inspection = inspect(folder)
    text = inspection.architecture.text
    assert with_json is not None
    assert text is not None
    assert torch.equal(text.vocabulary.encode(texts_)["input_ids"], with_json.vocabulary.encode(texts_)["input_ids"])
    assert text.vocabulary.max_length == 20
    roles = {file.name: file.role for file in inspection.files}
    assert roles["vocab.txt"] == roles["tokenizer_config.json"] == "description"


def test_image_model_leaves_a_tokenizer_alone(tmp_path: Path) -> None:
    from tests.hostile.folders import CONFIG

    inspection = inspect(write_folder(tmp_path, CONFIG))
    assert inspection.architecture.text is None
    assert {file.name: file.role for file in inspection.files}["tokenizer.json"] == "ignored"


def test_hostile_tokenizer_is_refused(folder: Path) -> None:
    document = json.loads(tokenizer().to_str())
    document["normalizer"] = {"type": "Custom"}
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RefusedError) as caught:
        inspect(folder)
    assert caught.value.code == "tokenizer"


def test_huge_tokenizer_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(RefusedError, match=r"^tokenizer\.json has 1,073,741,824 bytes; expected at most "):
        inspect(folder)


def test_tokenizer_that_changes_after_the_inspection_is_refused(tmp_path: Path) -> None:
    from tests.gating.text_models import write_trained

    write_trained(tmp_path, steps=1)
    inspection = inspect(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(content.replace("rare1", "rare_"), encoding="utf-8")
    with pytest.raises(RefusedError, match=r"^tokenizer\.json changed while it was read") as caught:
        receive(inspection)
    assert caught.value.code == "changed"


def test_unusual_special_tokens_are_named(folder: Path) -> None:
    from tokenizers import AddedToken

    found: Callable[[], Any] = lambda: inspect(folder).architecture.text  # noqa: E731
    assert found().unusual == ()
    made = tokenizer()
    made.add_special_tokens([AddedToken("cf", special=True)])  # no search would insert it
    (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    assert found().unusual == ("cf",)
    assert 5 not in found().vocabulary.insertable


# Folders made to harm


@pytest.mark.parametrize("name", text_folders.CASES)
@pytest.mark.usefixtures("offline")
def test_hostile_folders_are_refused(name: str, tmp_path: Path) -> None:
    case = text_folders.CASES[name]
    with refuses(case.code, "."):
        inspect(case.make(tmp_path))


# Registered architectures


def registered_folder(folder: Path) -> Path:
    from seamfast.models.folder import TextDescription, save_model

    description = TextDescription("text_transformer", 2, len(vocabulary()), 32, tokenizer=tokenizer())
    save_model(folder, description.build(), description)
    return folder


def test_registered_model_of_texts_is_read(tmp_path: Path) -> None:
    inspection = inspect(registered_folder(tmp_path))
    architecture = inspection.architecture
    assert (architecture.source, architecture.name, architecture.num_classes) == ("registered", "text_transformer", 2)
    assert architecture.text is not None
    assert (architecture.text.vocabulary.size, architecture.text.vocabulary.max_length) == (len(vocabulary()), 32)
    assert {file.role for file in inspection.files} == {"description", "weights"}
    logits = receive(inspection).model(**architecture.text.vocabulary.encode(["a good film", "dull"]))
    assert logits.shape == (2, 2)


def test_registered_model_of_texts_needs_its_tokenizer(tmp_path: Path) -> None:
    (registered_folder(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(RefusedError, match=r"expected the tokenizer of text_transformer$"):
        inspect(tmp_path)
    arguments = {"num_classes": 2, "vocab_size": len(vocabulary()), "max_length": 32}
    with pytest.raises(RefusedError, match=r"expected the tokenizer of text_transformer$"):
        inspect(tmp_path, architecture="registered:text_transformer", arguments=arguments)
