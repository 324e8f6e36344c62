"""A stranger's tokenizer: what is read is what the library reads, and all else is refused."""

from __future__ import annotations

import copy
import functools
import json
import sys
from typing import Any

import pytest

from seamfast.errors import BackendUnavailableError
from seamfast.intake import tokenizer as module
from seamfast.intake.refusal import RefusedError
from seamfast.intake.tokenizer import read_tokenizer, read_tokenizer_file
from tests.hostile import tokenizer_files
from tests.hostile.case import refuses
from tests.hostile.tokenizer_files import WORDS, changed, honest, raw

tokenizers = pytest.importorskip("tokenizers", reason="needs seamfast[text]")
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

TEXTS = [
    "good film, it 's fine",
    "bad movies in 1990 , \u00e9t\u00e9",
    "a \u6f22\u5b57 film [MASK] <mask> \U0001f600 x",
    " ",
]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def trained(model: Any, trainer: Any, **parts: Any) -> Any:
    made = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    made.train_from_iterator(TEXTS * 5, trainer)
    return made


@functools.cache  # training breaks ties by chance
def bert() -> Any:
    made = trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=100, special_tokens=BERT, show_progress=False),
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )
    ends = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    return made


@functools.cache
def roberta() -> Any:
    made = trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=300, special_tokens=ROBERTA, initial_alphabet=ALPHABET, show_progress=False),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
        post_processor=processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False),
    )
    made.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    return made


@functools.cache
def gpt2() -> Any:
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=ALPHABET, show_progress=False
    )
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained(models.BPE(), trainer, pre_tokenizer=level, decoder=decoders.ByteLevel())


@functools.cache
def unigram() -> Any:
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<unk>", "<pad>"], unk_token="<unk>", show_progress=False
    )
    steps = [normalizers.NFKC(), normalizers.Replace("``", '"'), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    return trained(
        models.Unigram(), trainer, normalizer=normalizers.Sequence(steps), pre_tokenizer=pre_tokenizers.Metaspace()
    )


@functools.cache
def words() -> Any:
    trainer = trainers.WordLevelTrainer(special_tokens=BERT, show_progress=False)
    steps = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    return trained(
        models.WordLevel(unk_token="[UNK]"), trainer, normalizer=normalizers.Lowercase(), pre_tokenizer=steps
    )


def documents(tokenizer: Any, **config: Any) -> dict[str, bytes]:
    config_file = {"tokenizer_config.json": json.dumps(config).encode()} if config else {}
    return {"tokenizer.json": tokenizer.to_str().encode(), **config_file}


def same(one: Any, other: Any) -> None:
    assert [one.encode(text).ids for text in TEXTS] == [other.encode(text).ids for text in TEXTS]
    assert one.get_vocab() == other.get_vocab()
    ids = other.encode(TEXTS[0]).ids
    assert one.decode(ids) == other.decode(ids)


@pytest.mark.parametrize("make", [bert, roberta, gpt2, unigram, words])
def test_what_is_read_encodes_as_what_was_written(make):
    tokenizer = make()
    same(read_tokenizer(documents(tokenizer)), tokenizer)


def test_truncation_and_padding_are_dropped():
    tokenizer = copy.deepcopy(bert())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    read = read_tokenizer(documents(tokenizer))
    assert (read.truncation, read.padding) == (None, None)
    assert len(read.encode(TEXTS[0])) > 4


def test_ids_that_stand_for_no_text():
    read = read_tokenizer_file(documents(bert(), model_max_length=512))
    assert (read.pad, read.mask, read.special, read.max_length) == (0, 4, (0, 1, 2, 3, 4), 512)
    read = read_tokenizer_file(documents(roberta(), model_max_length=10**30))
    assert (read.pad, read.mask, read.special, read.max_length) == (1, 4, (0, 1, 2, 3, 4), None)
    read = read_tokenizer_file(documents(gpt2()))
    assert (read.pad, read.mask, read.special) == (None, None, (0,))
    read = read_tokenizer_file(documents(gpt2(), pad_token={"content": "<|endoftext|>"}, mask_token="!"))
    assert (read.pad, read.mask) == (0, read.tokenizer.token_to_id("!"))
    assert read.mask in read.special
    plain = copy.deepcopy(bert())
    plain.enable_padding(pad_id=5, pad_token=plain.id_to_token(5))  # what the file pads with, if nothing else says it
    assert read_tokenizer_file(documents(plain)).pad == 5
    # Ids of the post-processor alone, without an added token.
    bare = json.loads(changed("added_tokens", to=[])["tokenizer.json"])
    assert read_tokenizer_file(raw(json.dumps(bare))).special == (0, 2, 3, 4)


def test_code_that_settings_name_is_not_looked_at(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "evil.Evil", "chat_template": "{{"}
    same(read_tokenizer(documents(bert(), **config)), bert())
    assert "evil" not in sys.modules


def test_tokens_that_the_model_does_not_have():
    tokenizer = copy.deepcopy(bert())
    n = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["filmstrip", tokenizers.AddedToken("<new>", single_word=True)])
    read = read_tokenizer(documents(tokenizer))
    same(read, tokenizer)
    assert read.token_to_id("<new>") == n + 1


def test_models_without_a_type_are_told_apart():
    for make in (bert, gpt2, unigram, words):
        document = json.loads(make().to_str())
        del document["model"]["type"]
        if make is gpt2:
            document["model"] |= {"unk_token": "", "continuing_subword_prefix": "", "end_of_word_suffix": ""}
            document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
        same(read_tokenizer(raw(json.dumps(document))), make())


# Without a tokenizer.json.


def test_word_list_is_that_of_bert():
    tokenizer = bert()
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    lines = "\r\n".join(token for token, _ in vocab) + "\r\n"
    read = read_tokenizer_file(raw(lines, "vocab.txt"))
    same(read.tokenizer, tokenizer)
    assert (read.pad, read.mask, read.special) == (0, 4, (0, 1, 2, 3, 4))
    config = raw(json.dumps({"do_lower_case": False, "cls_token": "good"}), "tokenizer_config.json")
    cased = read_tokenizer(raw("\n".join(WORDS), "vocab.txt") | config)
    assert cased.encode("Good films").tokens == ["good", "[UNK]", "film", "##s", "[SEP]"]


def test_pairs_and_merges_are_those_of_roberta_and_gpt2():
    for make in (roberta, gpt2):
        tokenizer = make()
        model = json.loads(tokenizer.to_str())["model"]
        merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n"
        files = raw(json.dumps(model["vocab"]), "vocab.json") | raw(merges, "merges.txt")
        same(read_tokenizer(files), tokenizer)
        spaced = read_tokenizer(files | raw('{"add_prefix_space": true}', "tokenizer_config.json"))
        assert spaced.encode("good").tokens[make is roberta].startswith("\u0120")


def test_tokenizer_json_comes_first():
    files = documents(bert()) | raw("no word list", "vocab.txt")
    same(read_tokenizer(files), bert())


# Refusals.


@pytest.mark.parametrize("name", tokenizer_files.CASES)
def test_hostile_files_are_refused_before_the_library_sees_them(name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_built", lambda *_: pytest.fail("the library was called"))
    case = tokenizer_files.CASES[name]
    folder = case.make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with refuses(case.code, r"tokenizer|vocab|merges"):
        read_tokenizer({path.name: path.read_bytes() for path in folder.iterdir()})
    assert sorted(tmp_path.rglob("*")) == before


def message(files: dict[str, bytes]) -> str:
    with pytest.raises(RefusedError) as caught:
        read_tokenizer(files)
    assert caught.value.code == "tokenizer"
    return str(caught.value)


def test_messages():
    assert message({}) == "found no files; expected tokenizer.json, vocab.txt, or vocab.json and merges.txt"
    assert message(raw("{}", "x")) == "found x; expected tokenizer.json, vocab.txt, or vocab.json and merges.txt"
    assert message(raw('{"a":1,"a":2}')) == "tokenizer.json is not strict JSON: it holds a key twice"
    assert message(raw("{}")) == "tokenizer.json: model is None; expected an object with a type"
    assert message(raw(b"\xef\xbb\xbf{}")).startswith("tokenizer.json is not strict JSON: Unexpected UTF-8 BOM")
    assert message(changed("model", "vocab", "bad", to=7)) == (
        "tokenizer.json: token 'film' has the id 7; expected each of 0 to 8 once"
    )
    assert message(changed("normalizer", "type", to="Custom")).startswith(
        "tokenizer.json: normalizer is of the type 'Custom'; expected BertNormalizer, Lowercase, "
    )
    assert message(changed("normalizer", "lowercase", to="no")) == (
        "tokenizer.json: normalizer BertNormalizer: lowercase is 'no'; expected true or false"
    )
    assert message(changed("normalizer", to={"type": "NFC", "form": 1})) == (
        "tokenizer.json: normalizer NFC holds 'form'; expected its type alone"
    )
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
    assert message(changed("pre_tokenizer", to=split)) == (
        "tokenizer.json: pre_tokenizer Split: pattern is {'Regex': '(a+)+$'}; expected a published pattern, since "
        "others may take exponential time"
    )
    assert message(changed("model", "unk_token", to="x")) == (
        "tokenizer.json: model: unk_token is 'x'; expected a token of the vocabulary"
    )
    assert message(raw("{}", "vocab.json") | raw("", "merges.txt")) == (
        "vocab.json: the vocabulary has 0 tokens; expected 1 to 1,000,000"
    )
    assert message(raw("[UNK]\n[CLS]\n", "vocab.txt")) == "vocab.txt: holds no '[SEP]'; expected it as the sep_token"


def test_what_the_library_raises_is_a_refusal(monkeypatch):
    class PanicException(BaseException):
        pass

    for error in (PanicException("index out of bounds"), ValueError("no \x1b[2J model"), RuntimeError("x")):

        class Broken:
            @staticmethod
            def from_str(_text: str, error: BaseException = error) -> None:
                raise error

        monkeypatch.setattr(tokenizers, "Tokenizer", Broken)
        with refuses("tokenizer", "tokenizer.json is no tokenizer that can be used: "):
            read_tokenizer(raw(json.dumps(honest())))
    monkeypatch.setattr(Broken, "from_str", staticmethod(lambda _text: (_ for _ in ()).throw(KeyboardInterrupt)))
    with pytest.raises(KeyboardInterrupt):
        read_tokenizer(raw(json.dumps(honest())))


def test_a_tokenizer_that_reads_as_another_is_refused(monkeypatch):
    swapped = {word: number for number, word in enumerate((*WORDS[:7], *WORDS[:6:-1]))}
    others = (words(), tokenizers.Tokenizer.from_str(changed("model", "vocab", to=swapped)["tokenizer.json"].decode()))
    for other in others:

        class Other:
            @staticmethod
            def from_str(_text: str, other: Any = other) -> Any:
                return other

        monkeypatch.setattr(tokenizers, "Tokenizer", Other)
        with refuses("tokenizer", "tokens are left of 9, or have other ids; expected those of the file"):
            read_tokenizer(raw(json.dumps(honest())))


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendUnavailableError, match=r"needs the package tokenizers: pip install seamfast\[text\]"):
        read_tokenizer(raw(json.dumps(honest())))
