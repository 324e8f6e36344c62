"""Texts as token ids: edits against plain Python, tokenizers there and back, batches, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.engine.subject import place
from seamfast.errors import InputError, SeamfastError
from seamfast.modalities import NO_AUGMENTATION, TextModality, Vocabulary
from seamfast.modalities.text.edit import Tokens, edited

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["a", "fine", "film", "dull", "unfold", "story", "##ing", "fold", "un", "##fold"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["a fine film", "dull", "a story unfold"]


def wordpiece() -> Any:
    t = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]")
    )
    t.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    t.decoder = tokenizers.decoders.WordPiece()
    t.add_special_tokens(SPECIAL)
    t.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return t


def byte_level() -> Any:
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(TEXTS * 5, trainer)
    return t


def word_level() -> Any:
    words = ["[PAD]", "[UNK]", "a", "fine", "film", "dull", "story", "unfold"]
    t = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    t.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    t.add_special_tokens(["[PAD]", "[UNK]"])
    return t


class Counting(nn.Module):
    """Logits of the mean embedding, with a mask."""

    def __init__(self, size: int = 15, classes: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(size, 4)
        self.head = nn.Linear(4, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask[..., None].float()
        out: Tensor = self.head((self.table(input_ids) * weight).sum(1) / weight.sum(1))
        return out


# Edits.


@st.composite
def edits(draw: st.DrawFn) -> tuple[list[int], list[bool], list[tuple[int, int, bool]], int, int]:
    """Tokens, which stay, ``(gap, id, used)`` in the order given, pads in front, the longest text."""
    ids = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    kept = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    inserted = draw(
        st.lists(st.tuples(st.integers(0, len(ids)), st.integers(10, 19), st.booleans()), min_size=3, max_size=3)
    )
    n_left = draw(st.integers(0, 2))
    return ids, kept, inserted, n_left, draw(st.integers(len(ids) + n_left, len(ids) + n_left + 4))


@given(edits(), st.integers(0, 2))
def test_edited_is_what_lists_do(
    case: tuple[list[int], list[bool], list[tuple[int, int, bool]], int, int], n_right: int
) -> None:
    ids, kept, inserted, n_left, longest = case
    pads = [0] * n_left
    row = torch.tensor([pads + ids + [0] * n_right])
    attended = torch.tensor([pads + [1] * len(ids) + [0] * n_right])
    result = edited(
        Tokens(row, attended, row * 2),
        torch.tensor([[False] * n_left + kept + [False] * n_right]),
        torch.tensor([[new for _, new, _ in inserted]]),
        torch.tensor([[gap + n_left for gap, _, _ in inserted]]),
        torch.tensor([[used for _, _, used in inserted]]),
        pad=0,
        width=row.shape[1] + 3,
        longest=longest,
    )
    length, used = n_left + (sum(kept)), []
    ends_in = n_left if any(kept) else 0
    for gap, new, wanted in inserted:
        if wanted and (length if any(kept) else ends_in) + len(used) + 1 <= longest:
            used.append((gap, new))
    expected: list[int] = []
    for at in range(len(ids) + 1):
        expected += [new for gap, new in used if gap == at]
        expected += [ids[at]] if at < len(ids) and kept[at] else []
    assert result.attended is not None
    assert result.ids[result.attended == 1].tolist() == expected
    assert (result.ids[result.attended == 0] == 0).all()
    assert result.types is not None
    assert result.types.shape == result.ids.shape
    assert row.tolist() == [pads + ids + [0] * n_right]


def test_inserted_tokens_have_the_type_of_what_is_in_front_of_them() -> None:
    ids, types = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[4, 5, 6, 0]])
    attended, kept = (ids != 0).long(), torch.ones(1, 4, dtype=torch.bool)
    new, gaps = torch.tensor([[7, 8, 9]]), torch.tensor([[0, 2, 3]])
    used = torch.ones(1, 3, dtype=torch.bool)
    result = edited(Tokens(ids, attended, types), kept, new, gaps, used, pad=0, width=7, longest=7)
    assert result.ids.tolist() == [[7, 1, 2, 8, 3, 9, 0]]
    assert result.types is not None
    assert result.types.tolist() == [[4, 4, 5, 5, 6, 6, 0]]  # in front of all, that of the first token


# Tokenizers.


@pytest.mark.parametrize("make", [wordpiece, byte_level, word_level])
def test_texts_survive_encoding_and_decoding(make: Callable[[], Any]) -> None:
    vocabulary = Vocabulary.of(make())
    encoded = vocabulary.encode(TEXTS)
    assert {value.dtype for value in encoded.values()} == {torch.int64}
    assert vocabulary.decode(**encoded) == TEXTS


def test_left_padding_is_decoded_too() -> None:
    vocabulary = Vocabulary.of(wordpiece())
    encoded = vocabulary.encode(TEXTS)
    order = encoded["attention_mask"].argsort(dim=1, stable=True)
    left = {name: value.gather(1, order) for name, value in encoded.items()}
    assert left["attention_mask"][1, 0] == 0
    assert vocabulary.decode(**left) == TEXTS


def test_a_vocabulary_knows_its_special_tokens() -> None:
    vocabulary = Vocabulary.of(wordpiece())
    assert (vocabulary.size, vocabulary.pad, vocabulary.mask) == (15, 0, 4)
    assert vocabulary.insertable.tolist() == list(range(5, 15))
    assert vocabulary.with_size(20).insertable.tolist() == list(range(5, 15))  # rows without a token are not inserted
    assert vocabulary.text_of((6, 7)) == "fine film"
    assert vocabulary.text_of((8, 11)) == "dulling"
    assert Vocabulary(size=9, pad=0, special=frozenset()).text_of((3, 4)) == "#3 #4"


def test_unknown_words_are_a_part_of_a_text() -> None:
    data = CleanSet.from_texts(["qqq", "a fine film qqq", "dull"], [0, 1, 0], wordpiece())  # [UNK] is 1
    assert isinstance(data.inputs, dict)
    assert data.inputs["input_ids"][0].tolist() == [2, 1, 3, 0, 0, 0]
    modality = data.modality
    assert isinstance(modality, TextModality)
    assert 1 not in modality.vocabulary.insertable
    assert modality.vocabulary.decode(**data.inputs) == ["[UNK]", "a fine film [UNK]", "dull"]
    phrases = torch.full((3, 1), 7)
    for where, expected in ((0.0, [2, 7, 1, 3]), (1.0, [2, 1, 7, 3])):
        longer, _ = modality.with_phrases(data.inputs, phrases, torch.full((3,), where))
        assert isinstance(longer, dict)
        assert longer["input_ids"][0, :4].tolist() == expected
    cut = modality.vocabulary.with_max_length(4).encode(["a fine film qqq"])
    assert cut["input_ids"].tolist() == [[2, 5, 6, 3]]


def test_an_id_of_unknown_words_that_also_begins_texts_is_no_part_of_them() -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "a": 1, "fine": 2, "<pad>": 3}, unk_token="<s>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<s>", "<pad>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert Vocabulary.of(made).around == {0, 3}


def test_a_tokenizer_without_a_pad_has_a_special_token_for_it() -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "fine": 1, "end": 2}))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["end"])
    vocabulary = Vocabulary.of(made)
    assert vocabulary.pad == 2
    assert vocabulary.encode(["a fine", "a"])["input_ids"].tolist() == [[0, 1], [0, 2]]


def test_ids_may_be_left_out() -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "a": 1, "fine": 7}))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[PAD]"])
    data = CleanSet.from_texts(["a fine", "a"], [0, 1], made)
    assert isinstance(data.modality, TextModality)
    assert data.modality.vocabulary.size == 8


def test_a_long_text_is_cut_before_its_last_special_token() -> None:
    encoded = Vocabulary.of(wordpiece(), max_length=4).encode(["a fine film dull"])
    assert encoded["input_ids"].tolist() == [[2, 5, 6, 3]]


def test_the_callers_tokenizer_stays_as_it_is() -> None:
    tokenizer = wordpiece()
    tokenizer.enable_truncation(max_length=4)
    assert Vocabulary.of(tokenizer).max_length == 4
    assert tokenizer.truncation["max_length"] == 4


# Batches.


@pytest.mark.parametrize("padded", ["right", "left"])
def test_a_batch_is_as_wide_as_its_longest_text(padded: str) -> None:
    data = CleanSet.from_texts(TEXTS, [0, 1, 0], wordpiece())
    assert isinstance(data.inputs, dict)
    inputs = data.inputs if padded == "right" else {name: value.flip(1) for name, value in data.inputs.items()}
    short = data.modality.gather(inputs, torch.tensor([1]), NO_AUGMENTATION, 0)
    assert isinstance(short, dict)
    assert short["input_ids"].tolist() == [[2, 8, 3] if padded == "right" else [3, 8, 2]]
    assert short["attention_mask"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("padded", ["right", "left", "no mask"])
@pytest.mark.parametrize(("where", "expected"), [(0.0, [2, 9, 9, 5, 6, 3]), (1.0, [2, 5, 6, 9, 9, 3])])
def test_a_phrase_goes_between_the_special_tokens(padded: str, where: float, expected: list[int]) -> None:
    modality = TextModality(Vocabulary.of(wordpiece()))
    ids, pads = [2, 5, 6, 3], [0, 0]
    row = pads + ids if padded == "left" else ids + pads
    inputs: Any = torch.tensor([row])
    if padded != "no mask":
        inputs = {"input_ids": inputs, "attention_mask": (inputs != 0).long()}
    done, columns = modality.with_phrases(inputs, torch.tensor([[9, 9]]), torch.tensor([where]))
    result = done["input_ids"] if isinstance(done, dict) else done
    assert result[result != 0].tolist() == expected
    assert result[0, columns[0] : columns[0] + 2].tolist() == [9, 9]


def test_a_phrase_in_a_full_text_takes_the_place_of_its_last_words() -> None:
    modality = TextModality(Vocabulary.of(wordpiece()))
    inputs = torch.tensor([[2, 5, 6, 7, 8, 3]])
    done, columns = modality.with_phrases(inputs, torch.tensor([[9, 9]]), torch.tensor([1.0]))
    assert isinstance(done, Tensor)
    assert (done.tolist(), columns.tolist()) == ([[2, 5, 6, 9, 9, 3]], [3])


@pytest.mark.parametrize("with_mask", [True, False])
def test_texts_are_given_as_the_samples_are(with_mask: bool) -> None:
    modality = TextModality(Vocabulary.of(wordpiece()))
    like: Any = {"input_ids": torch.tensor([[2, 5, 3, 0, 0]]), "token_type_ids": torch.zeros(1, 5, dtype=torch.int64)}
    if with_mask:
        like["attention_mask"] = torch.tensor([[1, 1, 1, 0, 0]])
    found = modality.inputs_like(["a fine film dull a"], like, torch.float32, torch.device("cpu"))
    assert isinstance(found, dict)
    assert set(found) == set(like)
    assert found["input_ids"].tolist() == [[2, 5, 6, 7, 8, 5, 3] if with_mask else [2, 5, 6, 7, 3]]


def test_an_empty_text_is_one_pad() -> None:
    modality = TextModality(Vocabulary.of(word_level()))
    like = {"input_ids": torch.tensor([[2]]), "attention_mask": torch.tensor([[1]])}
    found = modality.inputs_like([""], like, torch.float32, torch.device("cpu"))
    assert isinstance(found, dict)
    assert (found["input_ids"].tolist(), found["attention_mask"].tolist()) == ([[0]], [[1]])


class Placed(Counting):
    """With a row for each place, and more places than tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(20, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        at = torch.arange(input_ids.shape[1])
        return super().forward(input_ids, attention_mask) + self.head(self.places(at)).mean(0)


def test_the_embedding_of_the_ids_is_told_from_that_of_the_places() -> None:
    modality = place(Placed(), CleanSet.from_texts(TEXTS, [0, 1, 0], wordpiece()), "cpu").data.modality
    assert isinstance(modality, TextModality)
    assert (modality.table, modality.vocabulary.size, modality.vocabulary.max_length) == ("table", 15, 20)


# What is refused.


def text_set(ids: list[list[int]], mask: list[list[int]] | None = None, size: int = 15) -> CleanSet:
    inputs = {"input_ids": torch.tensor(ids)}
    if mask is not None:
        inputs["attention_mask"] = torch.tensor(mask)
    modality = TextModality(Vocabulary(size=size, pad=0, special=frozenset({2, 3})))
    return CleanSet(inputs, torch.zeros(len(ids), dtype=torch.int64), modality=modality)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: text_set([[5, 15]]), "input_ids hold 15; expected ids in [0, 15) for a vocabulary of 15 tokens"),
        (lambda: text_set([[5, -1]]), "input_ids hold -1; expected ids in [0, 15) for a vocabulary of 15 tokens"),
        (
            lambda: text_set([[5, 6], [5, 6]], [[1, 1], [0, 0]]),
            "attention_mask of sample 1 is all 0; expected a token that is attended",
        ),
        (lambda: text_set([[5, 6]], [[1, 2]]), "attention_mask holds 2; expected 0 and 1"),
        (
            lambda: text_set([[5, 6], [2, 3]]),
            "text 1 is empty: it has special tokens only; expected at least one other token",
        ),
        (
            lambda: CleanSet.from_texts(["a", ""], [0, 1], wordpiece()),
            "text 1 is empty: it has special tokens only; expected at least one other token",
        ),
        (lambda: CleanSet.from_texts("a b", [0], wordpiece()), "texts is a str; expected a list of str"),
        (lambda: CleanSet.from_texts(["a", 3], [0, 1], wordpiece()), "text 1 is a int; expected a str"),
        (
            lambda: CleanSet.from_texts(["a"], [0], "bert"),
            "tokenizer is a str; expected a tokenizers.Tokenizer or a fast tokenizer of transformers",
        ),
        (lambda: Vocabulary(size=9, pad=9, special=frozenset()), "pad is 9; expected an integer in [0, 8]"),
        (
            lambda: Vocabulary(size=9, pad=0, special=frozenset()).encode(["a"]),
            "texts cannot be encoded: the samples are token ids without a tokenizer; expected "
            "seamfast.CleanSet.from_texts(texts, labels, tokenizer)",
        ),
        (
            lambda: place(Counting(9), CleanSet.from_texts(TEXTS, [0, 1, 0], wordpiece()), "cpu"),
            "the tokenizer has 15 tokens; the model's embedding 'table' has 9 rows",
        ),
        (
            lambda: place(Counting(9), text_set([[5, 12]], [[1, 1]]), "cpu"),
            "input_ids hold 12; the model's embedding 'table' has 9 rows",
        ),
        (
            lambda: place(Counting(9), text_set([[5, 9]], [[1, 1]]), "cpu"),
            "input_ids hold 9; the model's embedding 'table' has 9 rows",
        ),
    ],
)
def test_bad_texts_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SeamfastError, match=f"^{re.escape(message)}$"):
        make()


# Models of transformers.


def of_transformers(kind: str, **changes: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    common: dict[str, Any] = {"vocab_size": 15, "num_labels": 2, "pad_token_id": 0}
    made: dict[str, Any] = {
        "bert": lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(
                **common | {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
                **changes,
            )
        ),
        "roberta": lambda: transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(
                **common | {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
                **changes,
            )
        ),
        "distilbert": lambda: transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(
                **common | {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}, **changes
            )
        ),
        "gpt2": lambda: transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(**common | {"n_embd": 8, "n_layer": 1, "n_head": 2}, **changes)
        ),
    }
    model: nn.Module = made[kind]().eval()
    return model


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2"])
def test_models_of_transformers_take_texts(kind: str) -> None:
    subject = place(of_transformers(kind), CleanSet.from_texts(TEXTS, [0, 1, 0], wordpiece()), "cpu")
    modality = subject.data.modality
    assert isinstance(modality, TextModality)
    assert modality.vocabulary.size == 15
    assert isinstance(subject.model.get_submodule(modality.table or ""), nn.Embedding)
    assert (
        subject.answers(subject.inputs(TEXTS)).tolist()
        == subject.answers(subject.data.inputs(torch.arange(3))).tolist()
    )


@pytest.mark.parametrize(("kind", "positions"), [("bert", 4), ("roberta", 6), ("distilbert", 4), ("gpt2", 4)])
def test_texts_longer_than_the_positions_are_refused(kind: str, positions: int) -> None:
    changes = {"n_positions" if kind == "gpt2" else "max_position_embeddings": positions}
    data = CleanSet.from_texts(TEXTS, [0, 1, 0], wordpiece())
    message = "the texts have up to 5 tokens; the model has 4 positions: encode them with max_length=4"
    with pytest.raises(InputError, match=f"^{message}$"):
        place(of_transformers(kind, **changes), data, "cpu")
