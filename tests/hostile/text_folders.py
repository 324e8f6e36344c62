"""Folders of text classifiers made to harm: what their descriptions say, and what their tokenizers hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.hostile.case import Case
from tests.hostile.folders import write_weights
from tests.hostile.tokenizer_files import DOCUMENTS, WORDS, Documents, honest, raw

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "id2label": {"0": "negative", "1": "positive"},
}
_GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
_OTHER_CODES = {
    **dict.fromkeys(("pickle called tokenizer.json", "pickle of text called tokenizer.json"), "mixed-folder"),
    "100 MB in one string": "config",
    "merges alone": "no-tokenizer",
}
"""Of files that are refused before they are read as a tokenizer."""


def _folder(config: Mapping[str, Any], documents: Callable[[Path], Documents], place: Path) -> Path:
    folder = place / "model"
    folder.mkdir()
    write_weights(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, content in documents(place).items():
        (folder / name).write_bytes(content)
    return folder


def _honest(place: Path) -> Documents:
    return raw(json.dumps(honest()))


def _config(**changes: Any) -> Callable[[Path], Path]:
    return partial(_folder, CONFIG | changes, _honest)


def _gpt2(**changes: Any) -> Callable[[Path], Path]:
    return partial(_folder, {"vocab_size": len(WORDS), **_GPT2, **changes}, _honest)


CASES: dict[str, Case] = {
    "text model without a tokenizer": Case(partial(_folder, CONFIG, lambda place: {}), "no-tokenizer"),
    "tokenizer of more tokens than rows": Case(_config(vocab_size=len(WORDS) - 1), "tokenizer"),
    "text config with auto_map": Case(_config(auto_map={"AutoModel": "modeling.Net"}), "remote-code"),
    "text config of several labels a text": Case(_config(problem_type="multi_label_classification"), "config"),
    "text config of a regression": Case(_config(problem_type="regression"), "config"),
    "text config of a billion tokens": Case(_config(vocab_size=10**9), "config"),
    "text config of a billion positions": Case(_config(max_position_embeddings=10**9), "config"),
    "text config of 7 positions": Case(_config(max_position_embeddings=7), "config"),
    "text config of 201 layers": Case(_config(num_hidden_layers=201), "config"),
    "text config of many layers in groups": Case(
        _config(model_type="albert", num_hidden_groups=100, inner_group_num=100), "config"
    ),
    "text config with a padding beyond the rows": Case(_config(pad_token_id=len(WORDS)), "config"),
    "GPT-2 without a padding": Case(_gpt2(), "config"),
    "GPT-2 of 201 layers": Case(_gpt2(pad_token_id=0, n_layer=201), "config"),
    "GPT-2 of a billion columns": Case(_gpt2(pad_token_id=0, n_embd=10**9), "config"),
    **{
        f"tokenizer: {name}": Case(partial(_folder, CONFIG, documents), _OTHER_CODES.get(name, "tokenizer"))
        for name, documents in DOCUMENTS.items()
    },
}
