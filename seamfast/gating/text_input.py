"""What a text classifier takes: the tokenizer of its folder, checked, and the ids that its embedding has."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from seamfast.intake.refusal import RefusedError
from seamfast.intake.tokenizer import FILES, MERGES, PAIRS, TOKENIZER, TOKENIZER_CONFIG, WORDS, read_tokenizer_file
from seamfast.modalities.text.vocabulary import Vocabulary

_USUAL = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK|BOS|EOS|unused\d{1,3})\]|<(pad|unk|s|/s|mask|bos|eos)>|<\|endoftext\|>")


@dataclass(frozen=True)
class TextInput:
    """How texts become the ids that a model takes.

    Attributes:
        vocabulary: with the tokenizer; as many ids as the model's embedding has rows, as long as it has positions.
        documents: the tokenizer as it was checked, by the name of the file that holds it.
        digest: SHA-256 of what decides how a text is encoded, in hexadecimal.
        unusual: special tokens, as text, that common tokenizers do not have. No search inserts a special token.
    """

    vocabulary: Vocabulary
    documents: Mapping[str, Mapping[str, Any]] = field(repr=False)
    digest: str
    unusual: tuple[str, ...]


def tokenizer_files(names: Iterable[str], what: str) -> tuple[str, ...]:
    """The files of ``names`` that the tokenizer is read from.

    Args:
        names: the files beside the weights.
        what: names the model in messages.

    Raises:
        RefusedError: code ``"no-tokenizer"``, e.g. ``there is no tokenizer.json, vocab.txt, or vocab.json with
            merges.txt beside the weights; expected the tokenizer of bert``.
    """
    present = set(names)
    for files in ((TOKENIZER,), (WORDS,), (PAIRS, MERGES)):
        if present.issuperset(files):
            return (*files, *({TOKENIZER_CONFIG} & present))
    missing = f"there is no {TOKENIZER}, {WORDS}, or {PAIRS} with {MERGES} beside the weights"
    raise RefusedError("no-tokenizer", f"{missing}; expected the tokenizer of {what}")


def text_input(documents: Mapping[str, bytes], n_rows: int, pad: int, n_positions: int) -> TextInput:
    """How texts become ids, by the tokenizer in ``documents``.

    Args:
        documents: contents of what ``tokenizer_files`` named, by name; others are passed over.
        n_rows: of the model's embedding.
        pad: id of the token that texts are padded with.
        n_positions: tokens that a text may have.

    Raises:
        RefusedError: code ``"tokenizer"``, as of ``read_tokenizer_file``, or ``tokenizer has 30,523 tokens; the model's
            embedding has 30,522 rows``.
    """
    found = read_tokenizer_file({name: documents[name] for name in FILES if name in documents})
    n_tokens = found.tokenizer.get_vocab_size(with_added_tokens=True)
    if n_tokens > n_rows:
        message = f"tokenizer has {n_tokens:,} tokens; the model's embedding has {n_rows:,} rows"
        raise RefusedError("tokenizer", message)
    longest = n_positions if found.max_length is None else min(n_positions, found.max_length)
    own = Vocabulary.of(found.tokenizer, max_length=longest).with_size(n_rows)
    mask = own.mask if found.mask is None else found.mask
    vocabulary = replace(own, pad=pad, special=own.special | {pad, *found.special}, mask=mask)
    content = found.tokenizer.to_str()
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
    for key, number in (("pad_token", pad), ("mask_token", mask)):
        if number is not None and (token := found.tokenizer.id_to_token(number)) is not None:
            settings[key] = token
    digest = hashlib.sha256(f"{pad} {mask} {longest} {content}".encode("utf-8", "surrogatepass")).hexdigest()
    special = (found.tokenizer.id_to_token(number) for number in sorted(vocabulary.special))
    unusual = tuple(token for token in special if token is not None and not _USUAL.fullmatch(token))
    return TextInput(vocabulary, {TOKENIZER: json.loads(content), TOKENIZER_CONFIG: settings}, digest, unusual)
