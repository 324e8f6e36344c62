"""The architectures for text, and the tokenizer that is trained for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seamfast.errors import InputError, ShapeError
from seamfast.models.architectures import build
from seamfast.models.text_architectures import SPECIAL_TOKENS, TEXT_ARCHITECTURES, train_tokenizer
from seamfast.triggers import Characters
from seamfast.triggers.text.insertion import RARE_WORDS

NAMES = sorted(TEXT_ARCHITECTURES)
TEXTS = ["A stirring, funny film.", "the unwatchable sequel of a film", "unwatchable and unfunny: café"] * 3


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, num_classes=3, vocab_size=50, max_length=16).eval()


def padded(texts: list[list[int]], length: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    ids, mask = torch.randint(1, 50, (len(texts), length)), torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in enumerate(texts):
        place = slice(length - len(text), length) if left else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return ids, mask


@pytest.mark.parametrize("name", NAMES)
def test_ids_in_logits_out(name: str) -> None:
    model = model_of(name).train()
    logits = model(torch.arange(1, 33).view(4, 8))
    assert logits.shape == (4, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(name: str, left: bool) -> None:
    """Alone or in a batch of longer texts, and whatever the ids at masked positions are."""
    model, texts = model_of(name), [[7], [3, 9, 4], [5, 6, 7, 8, 9, 10, 11]]
    alone = torch.cat([model(torch.tensor([text])) for text in texts])
    for length in (7, 12, 16):
        torch.testing.assert_close(model(*padded(texts, length, left=left)), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_mask_the_pad_id_is_padding(name: str) -> None:
    model = model_of(name)
    ids = torch.tensor([[3, 9, 4, 0, 0], [5, 6, 7, 8, 9]])
    torch.testing.assert_close(model(ids), model(ids, (ids != 0).long()), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_attended_token_and_their_order_count(name: str) -> None:
    model, ids = model_of(name), torch.tensor([[3, 9, 4, 12, 30, 31]])
    logits = model(ids)
    for place in range(ids.shape[1]):
        changed = ids.clone()
        changed[0, place] = 44
        # A maximum over time hides some single tokens of an untrained model from some, not from all, of its features.
        assert not torch.equal(model(changed), logits), place
    assert not torch.allclose(model(ids.flip(1)), logits, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_of_zeros_gives_finite_logits_that_no_token_changes(name: str) -> None:
    model, mask = model_of(name), torch.zeros(2, 5, dtype=torch.int64)
    first, second = (model(torch.full((2, 5), token), mask) for token in (3, 4))
    assert torch.isfinite(first).all()
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_texts_that_are_too_long_are_refused(name: str) -> None:
    with pytest.raises(ShapeError, match=r"^input_ids has shape \(2, 17\); expected \(B, L\) with L up to 16$"):
        model_of(name)(torch.ones(2, 17, dtype=torch.int64))


def test_the_lstm_reads_in_both_directions() -> None:
    """Against PyTorch's own two-way LSTM with the same weights."""
    model = model_of("bilstm")
    wanted = nn.LSTM(128, 64, batch_first=True, bidirectional=True)
    ours = model.state_dict()
    for suffix, own in (("", "ahead"), ("_reverse", "back")):
        for what in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(wanted, f"{what}_l0{suffix}").data.copy_(ours[f"{own}.{what}_l0"])
    ids = torch.tensor([[3, 9, 4, 12, 30, 31]])
    states, _ = wanted(model.get_submodule("embedding")(ids))
    torch.testing.assert_close(model(ids), model.get_submodule("head")(states.amax(1)))


def test_the_size_of_the_transformer() -> None:
    model = build("text_transformer", num_classes=2, vocab_size=8000, max_length=128)
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 2_000_000


def test_a_gru_over_one_vector() -> None:
    model = build("vector_gru", num_classes=2, n_features=768)
    logits = model(torch.randn(5, 1, 768))
    assert logits.shape == (5, 2)
    logits.square().sum().backward()
    recurrent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert all("weight_hh" in name for name in recurrent)  # of one step, nothing recurs


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("bilstm", {"in_channels": 1, "image_size": 8}, "sizes are in_channels, image_size; expected vocab_size, max_"),
        ("small_cnn", {"vocab_size": 9, "max_length": 9}, "sizes are vocab_size, max_length; expected in_channels, im"),
        ("vector_gru", {}, "sizes are none; expected n_features for 'vector_gru'"),
        ("text_cnn", {"vocab_size": 9, "max_length": 3}, "max_length is 3; expected an integer from 4"),
        ("text_cnn", {"vocab_size": 9, "max_length": 9, "pad": 9}, "pad is 9; expected a token id in [0, 9)"),
    ],
)
def test_sizes_tell_the_kinds_apart(name: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as error:
        build(name, num_classes=2, **sizes)
    assert str(error.value).startswith(message)


# The tokenizer


def test_no_word_of_the_texts_is_unknown_and_rare_words_are_whole() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    assert tokenizer.get_vocab_size() <= 300
    assert [tokenizer.id_to_token(i) for i in range(5)] == list(SPECIAL_TOKENS)
    for text in (*TEXTS, "FILMS, un-funnier", *Characters.homoglyph().stamp(["a hoax", "Was it did"], seed=3)):
        assert "[UNK]" not in tokenizer.encode(text).tokens, text
    for word in RARE_WORDS:
        assert tokenizer.encode(word).tokens == ["[CLS]", word, "[SEP]"]
    assert tokenizer.encode("A Film").tokens == ["[CLS]", "a", "film", "[SEP]"]
    assert tokenizer.decode(tokenizer.encode("the unwatchable sequel").ids) == "the unwatchable sequel"


def test_the_same_texts_give_the_same_tokens_in_any_order() -> None:
    first, second = train_tokenizer(TEXTS, 300), train_tokenizer(TEXTS[::-1], 300)
    assert first.to_str() == second.to_str()


def test_frequent_words_and_ends_of_rarer_ones_are_tokens() -> None:
    texts = ["frequent " * 9, "watching", "going", "showing"]
    base = train_tokenizer([], 5000).get_vocab_size()
    tokens = train_tokenizer(texts, base + 9).get_vocab()
    assert "frequent" in tokens
    tokens = train_tokenizer(texts, base + 2).get_vocab()
    assert "frequent" in tokens
    assert "##ing" in tokens  # of three words
    assert "watching" not in tokens


def test_what_a_tokenizer_cannot_be_trained_with_is_refused() -> None:
    with pytest.raises(InputError, match=r"^vocab_size is 20; expected at least \d+, for the characters of the texts$"):
        train_tokenizer(TEXTS, 20)
    with pytest.raises(InputError, match=r"^extra word is 'New York'; expected one lower-case word$"):
        train_tokenizer(TEXTS, 300, ("New York",))
