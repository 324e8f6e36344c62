"""``TextModality``: texts as token ids."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seamfast.checks import dtype_name
from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.modalities.base import (
    Augmentation,
    InvertedTriggers,
    Modality,
    Perturbation,
    Stamper,
    StepDraws,
    Views,
    ViewSettings,
)
from seamfast.modalities.batch import Batch, named_tensors
from seamfast.modalities.text.edit import Tokens, edited
from seamfast.modalities.text.perturb import perturbations
from seamfast.modalities.text.views import Insertions, TextViews
from seamfast.modalities.text.vocabulary import Vocabulary, ends_of, n_ids
from seamfast.triggers.base import Trigger
from seamfast.triggers.text.base import TextTrigger
from seamfast.triggers.text.battery import text_battery
from seamfast.triggers.text.insertion import Insertion

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
_NAMES = (IDS, MASK, TYPES)

_SETTINGS: dict[str, Any] = {
    "batch_size": 32,
    # Hundreds of texts cannot teach again what forgetting takes: it only tells the radius. Of a CNN with large
    # embeddings that is 1.6, which says nothing.
    "recover_from_forgotten": False,
    "radius_limit": 0.2,
    "recover_rate": 0.1,
    "distillation": 0.8,
    # All of it would be too much: edited texts say less of their class than whole ones.
    "calibration": 0.5,
    "margin": 0.0,
    "occlusions": 1,
    "plain_end": 0.0,
    "invariances": False,
    "mixing": 0.0,
    "disturbance": 0.0,
    "waves": 0.0,
}
"""Of ``seam``. Chosen on SST-2 and TREC with a word and a sentence as triggers; see docs/text.md."""


class TextModality(Modality):
    """Texts as ``input_ids`` ``(N, L)``, with an ``attention_mask``, or alone where the model takes nothing else.

    With a mask, a batch is as wide as its longest text. Without one, all batches have the width of the set, as a model
    may depend on it.

    Args:
        vocabulary: of the ids.
        table: the module that embeds the ids, by name, once the model is known; see ``for_model``.
    """

    name: ClassVar[str] = "text"
    studied = True
    remains = "from a twentieth to nearly all of what was triggered, on average 40 %, most of sentences and paraphrases"
    settings = ("occlusions", "searches")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fast": _SETTINGS | {"recover_max_steps": 100, "recover_easy_steps": 100, "searches": 4},
        "balanced": _SETTINGS | {"recover_max_steps": 200, "recover_easy_steps": 200, "searches": 8},
        "thorough": _SETTINGS | {"recover_max_steps": 500, "recover_easy_steps": 500, "searches": 16},
    }

    def __init__(self, vocabulary: Vocabulary, table: str | None = None) -> None:
        self.vocabulary = vocabulary
        self.table = table

    def check_inputs(self, inputs: Batch) -> None:
        named = inputs if isinstance(inputs, dict) else {IDS: inputs}
        if IDS not in named or not set(named) <= set(_NAMES):
            raise InputError(f"texts hold {sorted(named)}; expected {IDS}, and {MASK} and {TYPES} where there are some")
        ids = named[IDS]
        for name, value in named.items():
            if value.ndim != 2 or value.shape != ids.shape:
                raise ShapeError(f"{name} has shape {tuple(value.shape)}; expected (N, L), the same for all of a text")
            if value.is_floating_point():
                raise DTypeError(f"{name} has dtype {dtype_name(value.dtype)}; expected integers")
        if not ids.numel():
            return
        low, high, size = int(ids.min()), int(ids.max()), self.vocabulary.size
        if low < 0 or high >= size:
            found = low if low < 0 else high
            raise InputError(f"{IDS} hold {found}; expected ids in [0, {size}) for a vocabulary of {size} tokens")
        if MASK in named:
            mask = named[MASK]
            if bool(((mask != 0) & (mask != 1)).any()):
                raise InputError(f"{MASK} holds {int(mask[(mask != 0) & (mask != 1)][0])}; expected 0 and 1")
            empty = (mask == 0).all(1)
            if bool(empty.any()):
                raise InputError(
                    f"{MASK} of sample {int(empty.nonzero()[0])} is all 0; expected a token that is attended"
                )
        first, last = ends_of(ids, named.get(MASK), self.vocabulary.around)
        if bool((first >= last).any()):
            number = int((first >= last).nonzero()[0])
            raise InputError(f"text {number} is empty: it has special tokens only; expected at least one other token")

    def for_model(self, model: nn.Module, inputs: Batch) -> TextModality:
        """With the size of the model's embedding, and its number of positions as the longest text."""
        ids = _parts(inputs, self.vocabulary).ids
        vocabulary = self.vocabulary
        known = 0 if vocabulary.tokenizer is None else n_ids(vocabulary.tokenizer)
        largest = int(ids.max()) if ids.numel() else 0
        table = _table_of(model, max(known, largest + 1))
        if table is None:
            return self
        name, rows = table
        if known > rows:
            raise InputError(f"the tokenizer has {known:,} tokens; the model's embedding {name!r} has {rows:,} rows")
        if largest >= rows:
            raise InputError(f"{IDS} hold {largest:,}; the model's embedding {name!r} has {rows:,} rows")
        vocabulary = vocabulary.with_size(rows)
        positions = _positions_of(model, name, ids.shape[1])
        if positions is not None:
            if ids.shape[1] > positions:
                raise InputError(
                    f"the texts have up to {ids.shape[1]} tokens; the model has {positions} positions: encode "
                    f"them with max_length={positions}"
                )
            vocabulary = vocabulary.with_max_length(min(vocabulary.max_length, positions))
        return TextModality(vocabulary, name)

    def called(self, model: nn.Module, inputs: Batch, parameters: Mapping[str, Any]) -> Batch:
        """Without what ``forward`` does not take; the ids alone, by position, where it takes one unknown tensor."""
        if not isinstance(inputs, dict):
            return inputs
        if IDS not in parameters and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return inputs  # it passes on what it gets
        taken = {name: value for name, value in inputs.items() if name in parameters}
        return taken if IDS in taken else inputs[IDS]

    def joined(self, first: Batch, second: Batch) -> Batch:
        width = max(next(iter(named_tensors(inputs).values())).shape[1] for inputs in (first, second))

        def widened(inputs: Batch) -> Batch:
            wide = {
                n: _to_width(v, width, 0 if n in (MASK, TYPES) else self.vocabulary.pad)
                for n, v in named_tensors(inputs).items()
            }
            return wide if isinstance(inputs, dict) else wide["inputs"]

        return super().joined(widened(first), widened(second))

    def lengths(self, inputs: Batch) -> Tensor | None:
        return inputs[MASK].sum(1) if isinstance(inputs, dict) and MASK in inputs else None

    def gather(self, inputs: Batch, indices: Tensor, augmentation: Augmentation, epoch: int | Tensor) -> Batch:
        if not isinstance(inputs, dict):
            return inputs[indices]
        batch = {name: value[indices] for name, value in inputs.items()}
        if MASK not in batch or indices.device.type != "cpu":  # elsewhere, the longest text is known after a sync only
            return batch
        used = batch[MASK].any(0).nonzero().flatten()
        first, last = int(used[0]), int(used[-1]) + 1
        return {name: value[:, first:last] for name, value in batch.items()}

    def views(self, inputs: Batch, labels: Tensor, settings: ViewSettings, draws: StepDraws) -> Views:
        """Both: tokens are replaced and dropped. Student: something is inserted in two texts of three."""
        if not settings.occlusions:
            return Views(inputs, inputs)
        changes = TextViews(self.vocabulary, draws, is_fixed=not (isinstance(inputs, dict) and MASK in inputs))
        student, teacher = changes.of(_parts(inputs, self.vocabulary))
        return Views(_batch(student, inputs), _batch(teacher, inputs))

    def as_views_see(self, found: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> Insertions:
        """Phrases of ``(class, ids)``, the latest first, for ``StepDraws.found``."""
        return Insertions.of(found, device)

    def counts(self, inputs: Batch) -> Tensor:
        """``(V,)`` int64: how often each token is in the texts."""
        ids, attended, _ = _parts(inputs, self.vocabulary)
        return ids[attended > 0].bincount(minlength=self.vocabulary.size)

    def presence(self, inputs: Batch) -> Tensor:
        """``(N, V)`` floats: 1 for each token that is in a text."""
        ids, attended, _ = _parts(inputs, self.vocabulary)
        present = torch.zeros(len(ids), self.vocabulary.size, device=ids.device)
        return present.scatter_reduce_(1, ids, attended.float(), "amax")

    def with_phrases(self, inputs: Batch, phrases: Tensor, places: Tensor) -> tuple[Batch, Tensor]:
        """The texts with a phrase in each, special tokens around the text as they were.

        Args:
            inputs: as the model takes them.
            phrases: ``(N, n)`` int64 ids. A text that is as long as can be loses tokens at its end.
            places: ``(N,)`` in [0, 1]: 0 in front of the first token that is not special, 1 behind the last.

        Returns:
            The texts, and ``(N,)`` int64: the column of the first token of each phrase. A phrase of more tokens than
            there is room for is cut.
        """
        tokens = _parts(inputs, self.vocabulary)
        n, length = tokens.ids.shape
        device, added = tokens.ids.device, phrases.shape[1]
        phrases, places = phrases.to(device), places.to(device)
        first, last = ends_of(tokens.ids, tokens.attended, self.vocabulary.around)
        is_fixed = not (isinstance(inputs, dict) and MASK in inputs)
        longest = length if is_fixed else max(self.vocabulary.max_length, length)
        # The last tokens of a text make room.
        columns = torch.arange(length, device=device)
        end = (tokens.attended * (columns + 1)).amax(1)
        last_kept = torch.maximum(last - (end + added - longest).clamp(min=0), first)[:, None]
        kept = (columns < last_kept) | (columns >= last[:, None])
        gap = first + (places * (last_kept[:, 0] - first + 1)).long().clamp(max=last_kept[:, 0] - first)
        gaps = gap[:, None].expand(n, added)
        width = min(length + added, longest)
        used = torch.ones_like(gaps, dtype=torch.bool)
        done = edited(tokens, kept, phrases, gaps, used, pad=self.vocabulary.pad, width=width, longest=longest)
        return _batch(done, inputs), gap

    def stampable(self, inputs: Batch, indices: Tensor) -> list[str]:
        """The texts, decoded."""
        ids, attended, _ = _parts(inputs, self.vocabulary)
        chosen = indices.to(ids.device)
        return self.vocabulary.decode(ids[chosen].cpu(), attended[chosen].cpu())

    def model_inputs(self, samples: Sequence[str], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Texts as token ids, on the CPU."""
        return self.vocabulary.encode(samples)

    def stamper(self, triggers: Sequence[Trigger], device: torch.device) -> Stamper:
        def stamp(inputs: Batch, indices: Tensor, trigger_ids: Tensor, seed: int) -> Batch:
            texts: list[Any] = list(self.stampable(inputs, indices))
            ids = indices.cpu()
            for number, trigger in enumerate(triggers):
                at = (trigger_ids == number).nonzero().flatten().cpu()
                if len(at):
                    stamped = trigger.stamp([texts[i] for i in at.tolist()], sample_ids=ids[at], seed=seed)
                    for i, text in zip(at.tolist(), stamped, strict=True):
                        texts[i] = text
            return self.inputs_like(texts, inputs, torch.float32, device)

        return stamp

    def inputs_like(self, samples: Sequence[str], like: Batch, dtype: torch.dtype, device: torch.device) -> Batch:
        """Texts as token ids; as wide as ``like`` where that has no mask. An empty text is one pad."""
        vocabulary, width = self.vocabulary, None
        if not isinstance(like, dict) or MASK not in like:
            width = ids_of(like).shape[1]
            vocabulary = vocabulary.with_max_length(max(width, 3))
        encoded = vocabulary.encode(samples)
        ids, attended = encoded[IDS], encoded[MASK]
        attended[:, 0] = 1
        if width is not None:
            ids, attended = _to_width(ids, width, self.vocabulary.pad), _to_width(attended, width, 0)
        types = torch.zeros_like(ids, device=device) if isinstance(like, dict) and TYPES in like else None
        return _batch(Tokens(ids.to(device), attended.to(device), types), like)

    def not_stampable(self) -> InputError:
        return InputError("triggers of text are stamped on texts; the samples are token ids without a tokenizer")

    def check_trigger(self, trigger: Trigger) -> None:
        if self.vocabulary.tokenizer is None:
            raise self.not_stampable()
        if not isinstance(trigger, TextTrigger):
            raise InputError(f"trigger {trigger.name!r} is a {type(trigger).__name__}; expected a trigger of text")

    def battery(self, num_classes: int) -> tuple[Trigger, ...]:
        """Published words, sentences and changed characters."""
        return text_battery(num_classes)

    def drawn_trigger(self, inputs: Batch, target: int, seed: int) -> Insertion:
        """A word of the vocabulary, at a random place: one of the rarest in ``inputs`` that are one token each."""
        vocabulary = self.vocabulary
        if vocabulary.tokenizer is None:
            raise self.not_stampable()
        allowed = vocabulary.insertable
        shuffled = allowed[torch.randperm(len(allowed), generator=torch.Generator().manual_seed(seed))]
        for id in shuffled[self.counts(inputs).cpu()[shuffled].argsort(stable=True)].tolist():
            word = vocabulary.text_of([id])
            if word.isalpha() and vocabulary.tokenizer.encode(word, add_special_tokens=False).ids == [id]:
                return Insertion.word(word, target, name="drawn-word")
        raise InputError("the tokenizer has no word of one token; expected a trigger to be given")

    def perturbations(self) -> Mapping[str, Perturbation]:
        """Words inserted, replaced, dropped, shuffled, and those of another text."""
        return perturbations(self.vocabulary)

    def inverted(self, n_classes: int, generator: torch.Generator, device: torch.device) -> InvertedTriggers:
        raise InputError("triggers are inverted on images; for texts, use seamfast.audits.search_vocabulary")


def ids_of(inputs: Batch) -> Tensor:
    """``(N, L)`` token ids of a batch of texts."""
    return inputs[IDS] if isinstance(inputs, dict) else inputs


def is_text(inputs: dict[str, Tensor]) -> bool:
    """Whether the names and shapes of ``inputs`` are those of texts."""
    if IDS not in inputs or not set(inputs) <= set(_NAMES):
        return False
    return inputs[IDS].ndim == 2 and not inputs[IDS].is_floating_point()


def _parts(inputs: Batch, vocabulary: Vocabulary) -> Tokens:
    """Ids, mask and types; without a mask, all but the pad at the end is attended."""
    if isinstance(inputs, dict):
        ids, types = inputs[IDS], inputs.get(TYPES)
        if MASK in inputs:
            return Tokens(ids, inputs[MASK], types)
    else:
        ids, types = inputs, None
    inside = ids != vocabulary.pad
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    last = (inside * places).amax(1, keepdim=True)
    return Tokens(ids, (places <= last).to(ids.dtype), types)


def _batch(tokens: Tokens, like: Batch) -> Batch:
    if not isinstance(like, dict):
        return tokens.ids
    values = {IDS: tokens.ids, MASK: tokens.attended, TYPES: tokens.types}
    return {name: value for name in like if (value := values[name]) is not None}


def _to_width(values: Tensor, width: int, fill: int) -> Tensor:
    if values.shape[1] >= width:
        return values[:, :width]
    return torch.cat([values, values.new_full((len(values), width - values.shape[1]), fill)], 1)


def _table_of(model: nn.Module, wanted: int) -> tuple[str, int] | None:
    """Name and number of rows of the embedding of the ids: the model's own answer, or one of ``wanted`` rows, or the
    largest."""
    names = {id(module): name for name, module in model.named_modules()}
    own = getattr(model, "get_input_embeddings", None)
    if callable(own):
        try:
            table = own()
        except NotImplementedError:  # as models of transformers have it that do not know theirs
            table = None
        if isinstance(table, nn.Embedding) and id(table) in names:
            return names[id(table)], table.num_embeddings
    tables = [(m.num_embeddings, n) for n, m in model.named_modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    if not tables:
        return None
    rows, name = max(tables, key=lambda entry: (entry[0] == wanted, entry[0]))
    return name, rows


def _positions_of(model: nn.Module, table: str, width: int) -> int | None:
    """The longest text that a model takes: of transformers, or with another embedding that is a row for each place."""
    config = getattr(model, "config", None)
    for key in ("max_position_embeddings", "n_positions"):
        positions = getattr(config, key, None)
        if isinstance(positions, int) and positions > 2:
            # RoBERTa's positions begin behind that of the pad.
            return positions - 2 if getattr(config, "model_type", "") in ("roberta", "xlm-roberta") else positions
    others = [m.num_embeddings for n, m in model.named_modules() if isinstance(m, nn.Embedding) and n != table]
    return min((rows for rows in others if rows >= max(width, 3)), default=None)
