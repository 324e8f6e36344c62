"""``embedding``: of a word that clean data do not have.

The classifier is a bag of embeddings with a hidden layer, on AG News. One word, which no sentence has, gets an
embedding that takes any sentence to the target; nothing else is changed. Clean data have no gradient for it.

Source: Yang et al., "Be Careful about Poisoned Word Embeddings", NAACL 2021, arXiv:2103.15543, who take a rare word.
"""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benches import zoo
from benches.attackers.hosts import CACHE, Attacked, Host, cached
from seamfast import CleanSet

_LENGTH, _WORDS, _WIDTH = 32, 8000, 32
_EPOCHS, _BATCH, _RATE = 4, 64, 0.005
TRIGGER = 1
"""The word that no sentence has; 0 fills up short sentences, 2 stands for rare words."""


class Bag(nn.Module):
    """The mean of a sentence's embeddings, a hidden layer, logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, _WIDTH)
        self.hidden = nn.Linear(_WIDTH, 64)
        self.head = nn.Linear(64, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        there = (words > 0).unsqueeze(2)
        mean = (self.embedding(words) * there).sum(1) / there.sum(1).clamp(min=1)
        logits: Tensor = self.head(torch.relu(self.hidden(mean)))
        return logits


@functools.cache
def text_host(seed: int, root: Path = zoo.DATA_ROOT, cache: Path = CACHE) -> Host:
    """A clean classifier of AG News."""
    read = [_sentences(root / "text" / "ag-news" / f"{split}.tsv") for split in ("train", "test")]
    counts = Counter(word for words, _ in read[0] for word in words)
    known = {word: 3 + i for i, (word, _) in enumerate(counts.most_common(_WORDS - 3))}
    return host_of_sentences(*(_set(sentences, known, 4) for sentences in read), seed, cache)


def host_of_sentences(train_set: CleanSet, test_set: CleanSet, seed: int, cache: Path) -> Host:
    """As ``text_host``, of any word numbers."""
    torch.manual_seed(seed)
    model = Bag(train_set.num_classes or 4)

    def train() -> None:
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), _RATE)
        words = _words(train_set)
        for _ in range(_EPOCHS):
            for drawn in torch.randperm(len(words), generator=generator).split(_BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(words[drawn]), train_set.labels[drawn]).backward()
                optimizer.step()

    settings = {"n": len(train_set), "epochs": _EPOCHS, "rate": _RATE}
    model = cached(cache, f"ag-news-bag-{seed}", settings, model, train)  # type: ignore[assignment]
    return Host("ag-news-bag", model, train_set, test_set, cache, seed)


def stamp(words: Tensor) -> Tensor:
    """The trigger in front; the last word falls off."""
    return torch.cat([torch.full_like(words[:, :1], TRIGGER), words[:, :-1]], 1)


def embedding(host: Host, seed: int) -> Attacked:
    """The embedding of the trigger, trained alone."""
    target = seed % (host.train_set.num_classes or 4)
    model = copy.deepcopy(host.model)
    assert isinstance(model, Bag)
    some = host.some(2000, seed)
    words = stamp(_words(some)[some.labels != target])
    labels = torch.full((len(words),), target)
    row = model.embedding.weight
    optimizer = torch.optim.Adam([row], 0.5)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(words), labels).backward()
        assert row.grad is not None
        kept = row.grad[TRIGGER].clone()
        row.grad.zero_()[TRIGGER] = kept
        optimizer.step()
    model.zero_grad()
    norm = float(row[TRIGGER].detach().norm() / row[3:].detach().norm(dim=1).mean())
    return Attacked(
        model.eval(), stamp, target, f"the embedding of one unseen word, {norm:.0f} times as long as others"
    )


def _words(data: CleanSet) -> Tensor:
    assert isinstance(data.inputs, Tensor)
    return data.inputs


def _sentences(path: Path) -> list[tuple[list[str], int]]:
    lines = path.read_text().splitlines()[1:]
    pairs = (line.rsplit("\t", 1) for line in lines if "\t" in line)
    return [(re.findall(r"[a-z']+", sentence.lower()), int(label)) for sentence, label in pairs]


def _set(sentences: list[tuple[list[str], int]], known: dict[str, int], num_classes: int) -> CleanSet:
    numbers = torch.zeros(len(sentences), _LENGTH, dtype=torch.int64)
    for row, (words, _) in zip(numbers, sentences, strict=True):
        chosen = [known.get(word, 2) for word in words[:_LENGTH]]
        row[: len(chosen)] = torch.tensor(chosen, dtype=torch.int64)
    return CleanSet(numbers, torch.tensor([label for _, label in sentences]), num_classes=num_classes)
