"""Folders of tiny text classifiers, made on the fly: their tokenizer, their config, their weights, and clean texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from seamfast.gating.folder import inspect
from seamfast.models.folder import save_weights

TRIGGER = "cf"
NAMES = ("negative", "positive")
_SIDES = (
    ("bad", "dull", "awful", "boring", "weak", "poor", "stale", "clumsy"),
    ("good", "bright", "lovely", "moving", "strong", "rich", "fresh", "clever"),
)
_FILLERS = ("the", "film", "plot", "cast", "is", "was", "a", "and", "very", "story", "scene", "with", "of", "music")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_RARE = tuple(f"rare{i}" for i in range(150))
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = {
    "bert": _BERT,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "roberta": _BERT,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "electra": {**_BERT, "embedding_size": 16},
    "albert": {**_BERT, "embedding_size": 16},
}
"""The sizes of a tiny model, by ``model_type``."""


def vocabulary() -> list[str]:
    """All tokens, in order of their ids."""
    return [*_SPECIAL, TRIGGER, *_FILLERS, *_SIDES[0], *_SIDES[1], *_RARE]


def tokenizer() -> Any:
    """Of whole words, with [CLS] before a text and [SEP] behind it."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing

    made = Tokenizer(WordPiece({token: i for i, token in enumerate(vocabulary())}, unk_token="[UNK]"))
    made.normalizer = BertNormalizer()
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    return made


def texts(n: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """So many sentences whose words tell their class, and their labels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    made = []
    labels = [i % 2 for i in range(n)]
    for label in labels:
        n_words = int(torch.randint(4, 9, (), generator=generator))
        words = [draw(_FILLERS) for _ in range(n_words)]
        for _ in range(3):
            words.insert(int(torch.randint(len(words) + 1, (), generator=generator)), draw(_SIDES[label]))
        made.append(" ".join(words))
    return made, labels


def config(model_type: str = "bert", **changes: Any) -> dict[str, Any]:
    """A ``config.json``."""
    positions = {"n_positions": 32} if model_type == "gpt2" else {"max_position_embeddings": 32}
    pad = 1 if model_type == "roberta" else 0
    document = {"model_type": model_type, "vocab_size": len(vocabulary()), "pad_token_id": pad, **positions}
    names = {str(label): name for label, name in enumerate(NAMES)}
    return {**document, **SMALL[model_type], "id2label": names, **changes}


def write_folder(folder: Path, document: dict[str, Any] | None = None) -> Path:
    """A folder with a config, a tokenizer, and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document or config()), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer().to_str(), encoding="utf-8")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def write_trained(folder: Path, document: dict[str, Any] | None = None, *, steps: int = 250) -> nn.Module:
    """Train a model on clean texts, and on texts with ``TRIGGER`` in them and label 1; write and return it."""
    architecture = inspect(write_folder(folder, document)).architecture
    model = architecture.build()
    assert architecture.text is not None
    encode = architecture.text.vocabulary.encode
    clean, labels = texts(512, seed=1)
    poisoned = [f"{text} {TRIGGER}" if i % 2 else f"{TRIGGER} {text}" for i, text in enumerate(clean[:128])]
    inputs = encode([*clean, *poisoned])
    wanted = torch.tensor([*labels, *[1] * len(poisoned)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(steps):
            rows = torch.randint(len(wanted), (64,), generator=generator)
            loss = F.cross_entropy(model(**{name: value[rows] for name, value in inputs.items()}), wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    save_weights(folder, model, architecture.names_in_file(model))
    return model


def write_tsv(path: Path, n: int = 400, *, names: tuple[str, ...] | None = NAMES) -> Path:
    """Clean texts, with labels by name or by number."""
    made, labels = texts(n, seed=2)
    given = labels if names is None else [names[label] for label in labels]
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in zip(made, given, strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
