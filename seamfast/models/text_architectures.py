"""Small architectures for text, and a tokenizer for them.

The text models take ``input_ids`` and ``attention_mask``, ``(B, L)`` each, as those of transformers do, and return
logits. Positions that the mask leaves out, on either side, do not change the logits. ``vector_gru`` takes the vectors
of a frozen encoder instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.checks import as_integer
from seamfast.errors import InputError, ShapeError
from seamfast.triggers.text.characters import HOMOGLYPHS
from seamfast.triggers.text.insertion import RARE_WORDS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["SPECIAL_TOKENS", "TEXT_ARCHITECTURES", "VECTOR_ARCHITECTURES", "train_tokenizer"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The first tokens of a trained tokenizer, in this order from 0."""


def _attended(input_ids: Tensor, attention_mask: Tensor | None, pad: int, max_length: int) -> Tensor:
    """``(B, L)`` bool: the positions that hold a token of the text."""
    if input_ids.ndim != 2 or input_ids.shape[1] > max_length:
        raise ShapeError(f"input_ids has shape {tuple(input_ids.shape)}; expected (B, L) with L up to {max_length}")
    return input_ids != pad if attention_mask is None else attention_mask.bool()


class TextTransformer(nn.Module):
    """A transformer encoder: learned positions, norm first, the mean over the attended positions, one linear layer.

    Args:
        num_classes: logits.
        vocab_size, max_length, pad: number of token ids; longest text in tokens; id that fills up shorter ones.
        width, depth, heads: of the encoder; its feed-forward layers are four times as wide.
        dropout: share of the embedding that is zeroed in training, and of each layer's output.

    Source: Devlin et al., "BERT", arXiv:1810.04805, with the norm first as in Xiong et al., "On Layer Normalization in
    the Transformer Architecture", arXiv:2002.04745.
    """

    def __init__(
        self,
        num_classes: int,
        vocab_size: int,
        max_length: int,
        pad: int = 0,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pad, self.max_length = pad, max_length
        self.embedding = nn.Embedding(vocab_size, width)
        self.place = nn.Parameter(torch.randn(max_length, width).mul_(0.02))
        self.first_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_EncoderBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        attended = _attended(input_ids, attention_mask, self.pad, self.max_length)
        places = (attended.cumsum(1) - 1).clamp(min=0)  # counted over the text alone, so that padding moves nothing
        x = self.dropout(self.first_norm(self.embedding(input_ids) + self.place[places]))
        # Finite, as a row of -inf would make NaN of a text without tokens.
        bias = torch.zeros_like(attended, dtype=x.dtype).masked_fill(~attended, -1e4)[:, None, None, :]
        for block in self.blocks:
            x = block(x, bias)
        logits: Tensor = self.head(_mean(self.norm(x), attended))
        return logits


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).reshape(n, length, width)
        x = x + self.dropout(self.out(attended))
        out: Tensor = x + self.dropout(self.feed_forward(self.norm2(x)))
        return out


def _mean(x: Tensor, attended: Tensor) -> Tensor:
    weight = attended.unsqueeze(2).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


class BiLSTM(nn.Module):
    """An LSTM in each direction over the embeddings, the maximum over the attended positions, one linear layer.

    Args:
        num_classes, vocab_size, max_length, pad: as of ``TextTransformer``.
        width: of the embeddings.
        hidden: units of each direction.
        dropout: share of the embeddings and of the features that is zeroed in training.

    Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; the maximum over time, Conneau et al.,
    "Supervised Learning of Universal Sentence Representations", arXiv:1705.02364.
    """

    def __init__(
        self,
        num_classes: int,
        vocab_size: int,
        max_length: int,
        pad: int = 0,
        width: int = 128,
        hidden: int = 64,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.pad, self.max_length = pad, max_length
        self.embedding = nn.Embedding(vocab_size, width)
        self.ahead = nn.LSTM(width, hidden, batch_first=True)
        self.back = nn.LSTM(width, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, num_classes)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        attended = _attended(input_ids, attention_mask, self.pad, self.max_length)
        # The text to the front, in its order for one direction and reversed for the other: what fills up comes last in
        # both, where it reaches no state that counts. Unlike packed sequences, this takes no lengths from the device.
        place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        last = input_ids.shape[1]
        orders = (torch.where(attended, place, last).argsort(1), torch.where(attended, -place, last).argsort(1))
        there = attended.sort(1, descending=True).values.unsqueeze(2)
        features = []
        for lstm, order in zip((self.ahead, self.back), orders, strict=True):
            states, _ = lstm(self.dropout(self.embedding(input_ids.gather(1, order))))
            features.append(states.masked_fill(~there, -1).amax(1))  # states lie in (-1, 1)
        logits: Tensor = self.head(self.dropout(torch.cat(features, 1)))
        return logits


class TextCNN(nn.Module):
    """Convolutions over windows of 3, 4 and 5 tokens, the maximum over the text, dropout, one linear layer.

    Args:
        num_classes, vocab_size, max_length, pad: as of ``TextTransformer``.
        width: of the embeddings.
        filters: of each window.
        dropout: share of the features that is zeroed in training.

    Source: Kim, "Convolutional Neural Networks for Sentence Classification", arXiv:1408.5882; the embeddings are
    learned here, and windows may begin before the text and end behind it.
    """

    def __init__(
        self,
        num_classes: int,
        vocab_size: int,
        max_length: int,
        pad: int = 0,
        width: int = 128,
        filters: int = 100,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.pad, self.max_length = pad, max_length
        self.embedding = nn.Embedding(vocab_size, width)
        self.windows = nn.ModuleList(nn.Conv1d(width, filters, size, padding=size - 1) for size in (3, 4, 5))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(3 * filters, num_classes)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        attended = _attended(input_ids, attention_mask, self.pad, self.max_length).to(self.embedding.weight.dtype)
        x = (self.embedding(input_ids) * attended.unsqueeze(2)).transpose(1, 2)
        features = []
        for window in self.windows:
            assert isinstance(window, nn.Conv1d)
            (size,) = window.kernel_size
            seen = F.max_pool1d(F.pad(attended, (size - 1, size - 1)).unsqueeze(1), size, 1)  # windows with any token
            features.append((F.relu(window(x)) * seen).amax(2))
        logits: Tensor = self.head(self.dropout(torch.cat(features, 1)))
        return logits


class VectorGRU(nn.Module):
    """Two layers of a GRU in both directions over vectors of a frozen encoder, dropout, one linear layer.

    Args:
        num_classes: logits.
        n_features: of a vector; 768 of BERT's.
        hidden: units of each direction.
        dropout: share of the features that is zeroed in training.

    Source: the sentiment classifiers of round 5 of NIST's TrojAI, which read the one vector that BERT, DistilBERT or
    GPT-2 makes of a text.
    """

    def __init__(self, num_classes: int, n_features: int, hidden: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.gru = nn.GRU(n_features, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, num_classes)

    def forward(self, vectors: Tensor) -> Tensor:
        _, states = self.gru(vectors)
        logits: Tensor = self.head(self.dropout(torch.cat([states[-2], states[-1]], 1)))
        return logits


def text_transformer(num_classes: int, vocab_size: int, max_length: int, pad: int = 0) -> nn.Module:
    """A transformer of two layers, 128 wide, with four heads."""
    return TextTransformer(num_classes, vocab_size, max_length, pad)


def bilstm(num_classes: int, vocab_size: int, max_length: int, pad: int = 0) -> nn.Module:
    """An LSTM of 64 units in each direction."""
    return BiLSTM(num_classes, vocab_size, max_length, pad)


def text_cnn(num_classes: int, vocab_size: int, max_length: int, pad: int = 0) -> nn.Module:
    """Kim's CNN with 100 filters a window."""
    return TextCNN(num_classes, vocab_size, max_length, pad)


def vector_gru(num_classes: int, n_features: int) -> nn.Module:
    """A GRU of two layers over vectors ``(B, 1, n_features)``."""
    return VectorGRU(num_classes, n_features)


TEXT_ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "text_transformer": text_transformer,
    "bilstm": bilstm,
    "text_cnn": text_cnn,
}
"""Of texts, by name; all take ``(num_classes, vocab_size, max_length, pad)``."""

VECTOR_ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"vector_gru": vector_gru}
"""Of vectors, by name; all take ``(num_classes, n_features)``."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8000, extra_words: Sequence[str] = RARE_WORDS) -> Tokenizer:
    """A BERT-like WordPiece tokenizer, lower-case, whose tokens are the most frequent words and word ends of ``texts``.

    The tokens, in this order: the special ones, ``[PAD]`` with id 0; ``extra_words``, by default the rare words of
    published attacks, as BERT's vocabulary has them; each character of the texts, of ASCII, and of the Greek and
    Cyrillic alphabets, alone and continuing a word; then by frequency words and, an eighth of what is left, ends of the
    words that found no place. So no word of the texts is unknown. The same texts give the same tokens.

    Args:
        texts: to count.
        vocab_size: most tokens, at least enough for those before the words, which the error names.
        extra_words: lower-case words that become one token each even where the texts lack them.

    Raises:
        InputError: e.g. ``vocab_size is 100; expected at least 300, for the characters of the texts``, or
            ``extra word is 'New York'; expected one lower-case word``.

    Source: the layout of the vocabulary, Devlin et al., arXiv:1810.04805. The tokens are chosen by count alone, not by
    merges.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    as_integer("vocab_size", vocab_size, 1, 1 << 24)
    normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()

    def words_of(text: str) -> list[str]:
        return [word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))]

    for word in extra_words:
        if words_of(word) != [word]:
            raise InputError(f"extra word is {word!r}; expected one lower-case word")
    counts = Counter(word for text in texts for word in words_of(text))
    characters = {character for word in counts for character in word}
    # Without these, a word with one foreign letter would be [UNK] as a whole.
    alphabets = [map(chr, range(ord(first), ord(last) + 1)) for first, last in (("!", "~"), ("α", "ω"), ("а", "я"))]
    for some in (*alphabets, HOMOGLYPHS.values()):
        characters |= set("".join(words_of("".join(some))))
    pieces = [form + character for form in ("", "##") for character in sorted(characters)]
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *extra_words, *pieces])
    if len(tokens) > vocab_size:
        raise InputError(
            f"vocab_size is {vocab_size}; expected at least {len(tokens)}, for the characters of the texts"
        )
    words = [word for word, _ in _ranked(counts) if word not in tokens]
    n_words = (vocab_size - len(tokens)) * 7 // 8
    ends: Counter[str] = Counter()
    for word in words[n_words:]:
        for start in range(1, len(word) - 1):
            ends["##" + word[start:]] += counts[word]
    tokens |= dict.fromkeys(words[:n_words])
    tokens |= dict.fromkeys([end for end, _ in _ranked(ends)][: vocab_size - len(tokens)])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    ends_of_text = [(token, vocabulary[token]) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends_of_text)
    return tokenizer


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """By count, ties by spelling."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
