"""``Vocabulary``: the token ids of a text classifier, and the tokenizer that makes them, if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from seamfast.checks import as_integer, short
from seamfast.errors import InputError, ShapeError
from seamfast.intake.tokenizer import MASK_TOKENS, PAD_TOKENS

_MOST_TOKENS = 10_000_000
_SPECIAL_NAMES = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
_DEFAULT_LENGTH = 512
_UNKNOWN_TOKENS = ("[UNK]", "<unk>")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Token ids, and which of them have a meaning of their own.

    Args:
        size: number of ids, at least 2: they are ``0 .. size - 1``.
        pad: the id that fills up short samples.
        special: ids that are never inserted, changed or removed, such as ``[CLS]``; ``pad`` is one of them.
        mask: the id that can stand for any token; ``None``: there is none.
        max_length: tokens of the longest sample, special ones included, at least 3.
        tokenizer: a ``tokenizers.Tokenizer``, without truncation and padding of its own; ``None``: the samples are
            known as ids only.

    Raises:
        InputError: e.g. ``pad is 30522; expected an integer in [0, 30521]``.
    """

    size: int
    pad: int
    special: frozenset[int]
    mask: int | None = None
    max_length: int = _DEFAULT_LENGTH
    tokenizer: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        as_integer("size", self.size, 2, _MOST_TOKENS)
        as_integer("max_length", self.max_length, 3, _MOST_TOKENS)
        for name, value in (("pad", self.pad), ("mask", self.mask)):
            if value is not None:
                as_integer(name, value, 0, self.size - 1)
        for value in self.special:
            as_integer("special", value, 0, self.size - 1)
        marked = {self.pad} if self.mask is None else {self.pad, self.mask}
        object.__setattr__(self, "special", frozenset(self.special) | marked)
        if len(self.special) >= self.size:
            raise InputError(f"all {self.size} ids are special; expected some that are not")

    @classmethod
    def of(cls, tokenizer: Any, *, max_length: int | None = None) -> Vocabulary:
        """The vocabulary of a tokenizer. One without a pad, such as GPT-2's, pads with a special token of its own.

        Args:
            tokenizer: a ``tokenizers.Tokenizer``, or a fast tokenizer of ``transformers``.
            max_length: ``None``: the tokenizer's own limit, at most 512.

        Raises:
            InputError: e.g. ``tokenizer is a BertTokenizer; expected a tokenizers.Tokenizer or a fast tokenizer``.
        """
        inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not all(callable(getattr(inner, name, None)) for name in ("encode_batch", "decode_batch", "id_to_token")):
            raise InputError(
                f"tokenizer is a {type(tokenizer).__name__}; expected a tokenizers.Tokenizer or a fast tokenizer of "
                "transformers"
            )
        inner = type(inner).from_str(inner.to_str())  # its own: truncation and padding are state of the caller's
        added = {int(id): token.content for id, token in inner.get_added_tokens_decoder().items() if token.special}
        named = {name: getattr(tokenizer, name, None) for name in _SPECIAL_NAMES}
        pad, mask = named["pad_token_id"], named["mask_token_id"]
        if pad is None:
            declared = inner.padding["pad_id"] if inner.padding else None
            pad = next((id for id, token in added.items() if token in PAD_TOKENS), declared)
        if mask is None:
            mask = next((id for id, token in added.items() if token in MASK_TOKENS), None)
        longest = inner.truncation["max_length"] if inner.truncation else _DEFAULT_LENGTH
        own = getattr(tokenizer, "model_max_length", None)
        if isinstance(own, int):
            longest = min(longest, own)
        inner.no_truncation()
        inner.no_padding()
        special = {id for id in named.values() if id is not None} | set(added)
        return cls(
            size=n_ids(inner),
            pad=min(added, default=0) if pad is None else pad,
            special=frozenset(special),
            mask=mask,
            max_length=min(longest, _DEFAULT_LENGTH) if max_length is None else max_length,
            tokenizer=inner,
        )

    @classmethod
    def of_ids(cls, input_ids: Tensor, attention_mask: Tensor | None) -> Vocabulary:
        """The vocabulary that samples of unknown origin show; ``size`` is that of the largest id,
        ``max_length`` that of the longest sample: a model may take no longer ones.

        Special are the pad, which stands where nothing is attended, and ids that all samples begin or end with.

        Args:
            input_ids: ``(N, L)`` integers.
            attention_mask: ``(N, L)``, 1 where attended; ``None``: everywhere.
        """
        size = max(int(input_ids.max()) + 1 if input_ids.numel() else 2, 2)
        special = set()
        pad = 0
        if attention_mask is not None and bool((attention_mask == 0).any()):
            pad = int(input_ids[attention_mask == 0].mode().values)
        special.add(pad)
        if len(input_ids) > 1:
            first, last = ends_of(input_ids, attention_mask, frozenset((pad,)))
            rows = torch.arange(len(input_ids))
            for ids in (input_ids[rows, first], input_ids[rows, (last - 1).clamp(min=0)]):
                if bool((ids == ids[0]).all()):
                    special.add(int(ids[0]))
        return cls(size=size, pad=pad, special=frozenset(special), max_length=max(input_ids.shape[1], 3))

    def with_size(self, size: int) -> Vocabulary:
        """The same with so many ids, as the model's embedding has."""
        return replace(self, size=size)

    def with_max_length(self, max_length: int) -> Vocabulary:
        """The same with another longest sample."""
        return replace(self, max_length=max_length)

    @cached_property
    def insertable(self) -> Tensor:
        """``(A,)`` int64, CPU: the ids that are not special and that the tokenizer has."""
        known = self.size if self.tokenizer is None else min(self.size, n_ids(self.tokenizer))
        allowed = torch.ones(known, dtype=torch.bool)
        allowed[[id for id in self.special if id < known]] = False
        return allowed.nonzero().flatten()

    @cached_property
    def around(self) -> frozenset[int]:
        """The special ids that are no part of a text: all but that of unknown words, which the tokenizer tells."""
        if self.tokenizer is None:
            return self.special
        known = getattr(self.tokenizer.model, "unk_token", None)
        names = [known] if known else [*_UNKNOWN_TOKENS]
        unknown = {id for name in names if (id := self.tokenizer.token_to_id(name)) is not None}
        # Some tokenizers have one id for all purposes.
        return self.special - (unknown - {self.pad, self.mask, *self.tokenizer.encode("").ids})

    @cached_property
    def is_special(self) -> Tensor:
        """``(size,)`` bool, CPU."""
        marked = torch.zeros(self.size, dtype=torch.bool)
        marked[list(self.special)] = True
        return marked

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` of texts, ``(N, L)`` int64: padded on the right to the longest.

        Texts of more than ``max_length`` tokens are cut; what follows a text, such as ``[SEP]``, stays.
        """
        tokenizer = self._tokenizer("encoded")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {number} is a {type(text).__name__}; expected a str")
        rows = [self._cut(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
        length = max((len(row) for row in rows), default=1) or 1
        ids = torch.full((len(rows), length), self.pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[number, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_length:
            return ids
        n_end = next((n for n, id in enumerate(reversed(ids)) if id not in self.around), 0)
        return ids[: self.max_length - n_end] + ids[len(ids) - n_end :]

    def decode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[str]:
        """The texts of ``(N, L)`` ids, without the special tokens around them."""
        tokenizer = self._tokenizer("decoded")
        first, last = ends_of(input_ids, attention_mask, self.around)
        rows = [
            row[begin:end] for row, begin, end in zip(input_ids.tolist(), first.tolist(), last.tolist(), strict=True)
        ]
        texts: list[str] = tokenizer.decode_batch(rows, skip_special_tokens=False)
        return texts

    def text_of(self, ids: Sequence[int]) -> str:
        """A few tokens as text, for reports; ``#17`` for each id where there is no tokenizer."""
        if self.tokenizer is None:
            return " ".join(f"#{id}" for id in ids)
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False)).strip() or " ".join(
            short(self.tokenizer.id_to_token(id)) for id in ids
        )

    def _tokenizer(self, what: str) -> Any:
        if self.tokenizer is None:
            raise InputError(
                f"texts cannot be {what}: the samples are token ids without a tokenizer; expected "
                "seamfast.CleanSet.from_texts(texts, labels, tokenizer)"
            )
        return self.tokenizer


def n_ids(tokenizer: Any) -> int:
    """The largest id of a tokenizer, and one: more than its tokens where it leaves ids out."""
    return max(tokenizer.get_vocab().values(), default=0) + 1


def ends_of(input_ids: Tensor, attention_mask: Tensor | None, special: frozenset[int]) -> tuple[Tensor, Tensor]:
    """``(N,)`` int64 both: the first token that is attended and not special, and one past the last such.

    A sample without one has its end of attention, or 0, as both.
    """
    if input_ids.ndim != 2:
        raise ShapeError(f"input_ids has shape {tuple(input_ids.shape)}; expected (N, L)")
    inside = ~torch.isin(input_ids, torch.tensor(sorted(special), device=input_ids.device))
    if attention_mask is not None:
        inside &= attention_mask > 0
    places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    last = (inside * places).amax(1)
    first = torch.where(inside, places - 1, input_ids.shape[1]).amin(1)
    return torch.minimum(first, last), last
