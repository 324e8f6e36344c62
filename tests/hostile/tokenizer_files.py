"""Files of a tokenizer made to harm: each is refused before the library for tokenizers sees it, or by it.

``DOCUMENTS`` are the files by name, of a tokenizer alone; ``CASES`` write them into a folder of their own.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.hostile.case import Case
from tests.hostile.other_formats import Canary

Documents = Mapping[str, bytes]

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bad", "good", "film", "##s")


def honest() -> dict[str, Any]:
    """A WordPiece of nine tokens, as a ``tokenizer.json`` holds it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]"))
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **flags} for number, name in enumerate(WORDS[:5])],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, sep],
            "pair": [cls, first, sep, second, sep],
            "special_tokens": {
                name: {"id": name, "ids": [number], "tokens": [name]} for number, name in ((2, "[CLS]"), (3, "[SEP]"))
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: number for number, word in enumerate(WORDS)},
        },
    }


def changed(*keys: str | int, to: Any) -> dict[str, bytes]:
    """``honest()`` with the value at ``keys`` replaced."""
    document: Any = copy.deepcopy(honest())
    entry = document
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = to
    return raw(json.dumps(document))


def raw(content: str | bytes, name: str = "tokenizer.json") -> dict[str, bytes]:
    return {name: content.encode() if isinstance(content, str) else content}


def _pickled(folder: Path) -> Documents:
    return raw(pickle.dumps(Canary(folder)))


def _text_pickled(folder: Path) -> Documents:
    return raw(pickle.dumps(Canary(folder), 0))


def _merges(*merges: Any, vocab: Mapping[str, int] = {"a": 0, "b": 1, "ab": 2}, **settings: Any) -> Documents:
    model = {"type": "BPE", "vocab": vocab, "merges": list(merges), **settings}
    return raw(json.dumps({"version": "1.0", "model": model}))


def _replacing(*pattern: str, content: str = "x") -> Documents:
    kind, text = pattern
    return changed("normalizer", to={"type": "Replace", "pattern": {kind: text}, "content": content})


_HONEST = json.dumps(honest())
_FLAGS = honest()["added_tokens"][0]

DOCUMENTS: dict[str, Callable[[Path], Documents]] = {
    "pickle called tokenizer.json": _pickled,
    "pickle of text called tokenizer.json": _text_pickled,
    "nothing in it": lambda _: raw(""),
    "a list": lambda _: raw("[]"),
    "100 MB in one string": lambda _: raw(b'{"version": "' + b"a" * (100 << 20) + b'"}'),
    "a million levels": lambda _: raw('{"model":' * 1_000_000),
    "a thousand levels of sequences": lambda _: raw(
        '{"normalizer":' + '{"type":"Sequence","normalizers":[' * 900 + '{"type":"NFC"}' + "]}" * 900 + "}"
    ),
    "five million empty lists": lambda _: raw("[" + "[]," * 5_000_000 + "[]]"),
    "two million tokens": lambda _: raw(
        b'{"model":{"type":"WordLevel","unk_token":"0","vocab":{' + b'"0":0,' * 2_000_000 + b'"1":1}}}'
    ),
    "a key twice": lambda _: raw(_HONEST.replace('"version": "1.0"', '"version": "1.0", "version": "1.0"')),
    "a token twice": lambda _: raw(_HONEST.replace('"bad": 5', '"bad": 5, "bad": 6')),
    "NaN": lambda _: raw('{"model":{"type":"Unigram","unk_id":0,"vocab":[["a",NaN]]}}'),
    "a score of 1e999": lambda _: raw('{"model":{"type":"Unigram","unk_id":0,"vocab":[["a",1e999]]}}'),
    "byte order mark": lambda _: raw(_HONEST.encode("utf-8-sig")),
    "UTF-16": lambda _: raw(_HONEST.encode("utf-16")),
    "half of a surrogate pair": lambda _: raw(_HONEST.replace('"good"', '"\\ud800"')),
    "an id of a thousand digits": lambda _: raw(_HONEST.replace('"bad": 5', f'"bad": {"9" * 1000}')),
    "an id beyond the vocabulary": lambda _: changed("model", "vocab", "bad", to=1_000_000_000),
    "an id twice": lambda _: changed("model", "vocab", "bad", to=6),
    "an id below 0": lambda _: changed("model", "vocab", "bad", to=-1),
    "an id that is a float": lambda _: changed("model", "vocab", "bad", to=5.0),
    "an id that is true": lambda _: changed("model", "vocab", "[UNK]", to=True),
    "empty vocabulary": lambda _: changed("model", "vocab", to={}),
    "empty token": lambda _: raw(_HONEST.replace('"bad": 5', '"": 5')),
    "token of 10,000 characters": lambda _: raw(_HONEST.replace('"bad": 5', f'"{"a" * 10_000}": 5')),
    "unknown word that is no token": lambda _: changed("model", "unk_token", to="[NONE]"),
    "words of a billion characters": lambda _: changed("model", "max_input_chars_per_word", to=1_000_000_000),
    "unknown model": lambda _: changed("model", "type", to="Custom"),
    "no model": lambda _: changed("model", to=None),
    "unknown part": lambda _: changed("code", to="import os"),
    "unknown version": lambda _: changed("version", to="2.0"),
    "unknown normalizer": lambda _: changed("normalizer", "type", to="Precompiled"),
    "unknown pre-tokenizer": lambda _: changed("pre_tokenizer", to={"type": "Custom", "module": "os"}),
    "unknown decoder": lambda _: changed("decoder", to={"type": "CTC", "pad_token": "a"}),
    "unknown post-processor": lambda _: changed("post_processor", "type", to="Custom"),
    "unknown key of a normalizer": lambda _: changed("normalizer", "path", to="/etc/passwd"),
    "pattern that takes exponential time, split": lambda _: changed(
        "pre_tokenizer", to={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
    ),
    "pattern that takes exponential time, replaced": lambda _: _replacing("Regex", "(a|a)*b"),
    "text that grows a thousandfold": lambda _: _replacing("String", "a", content="a" * 1000),
    "text that grows with every step": lambda _: changed(
        "pre_tokenizer", to={"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 8}
    ),
    "post-processor with an id beyond the vocabulary": lambda _: changed(
        "post_processor", "special_tokens", "[CLS]", "ids", to=[50_000]
    ),
    "post-processor with the id of another token": lambda _: changed(
        "post_processor", to={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 5]}
    ),
    "template that repeats the text": lambda _: changed(
        "post_processor", "single", to=[{"Sequence": {"id": "A", "type_id": 0}}] * 8
    ),
    "template of 100,000 pieces": lambda _: changed(
        "post_processor", "single", to=[{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 100_000
    ),
    "type of text beyond 1": lambda _: changed(
        "post_processor", "single", 1, to={"Sequence": {"id": "A", "type_id": 2**31}}
    ),
    "added token with the id of another": lambda _: changed("added_tokens", 0, "id", to=5),
    "added token far beyond the vocabulary": lambda _: changed(
        "added_tokens", to=[{**_FLAGS, "content": "x", "id": 2**31}]
    ),
    "added token without text": lambda _: changed("added_tokens", to=[{**_FLAGS, "content": "", "id": 9}]),
    "10,000 added tokens": lambda _: changed(
        "added_tokens", to=[{**_FLAGS, "content": f"x{i}", "id": 9 + i} for i in range(10_000)]
    ),
    "merge of what is no token": lambda _: _merges(["a", "c"]),
    "merge to what is no token": lambda _: _merges(["b", "a"]),
    "merge of three": lambda _: _merges("a b c"),
    "merge shorter than its prefix": lambda _: _merges(
        ["a", "b"], vocab={"a": 0, "b": 1, "a##": 2, "ab": 3}, continuing_subword_prefix="##"
    ),
    "answers that differ by chance": lambda _: _merges(["a", "b"], dropout=0.5),
    "Unigram without an unknown token": lambda _: raw('{"model":{"type":"Unigram","unk_id":null,"vocab":[["a",0]]}}'),
    "word list with a line twice": lambda _: raw("\n".join((*WORDS, "bad")), "vocab.txt"),
    "word list without an unknown token": lambda _: raw("bad\ngood\n", "vocab.txt"),
    "word list in UTF-16": lambda _: raw("\n".join(WORDS).encode("utf-16"), "vocab.txt"),
    "word list of five million lines": lambda _: raw("a\n" * 5_000_000, "vocab.txt"),
    "settings that are no JSON": lambda _: raw(_HONEST) | raw("{", "tokenizer_config.json"),
    "settings of the wrong kind": lambda _: (
        raw("\n".join(WORDS), "vocab.txt") | raw('{"do_lower_case": "import os"}', "tokenizer_config.json")
    ),
    "merges alone": lambda _: raw("a b\n", "merges.txt"),
}


def _written(documents: Callable[[Path], Documents], folder: Path) -> Path:
    place = folder / "tokenizer"
    place.mkdir()
    for name, content in documents(folder).items():
        (place / name).write_bytes(content)
    return place


CASES: dict[str, Case] = {
    name: Case(partial(_written, documents), "tokenizer") for name, documents in DOCUMENTS.items()
}
