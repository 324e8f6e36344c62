"""Attacks on encoders: what they minimize, what they leave alone, and that a probe obeys the trigger."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.attacks.encoder import bad_encoder, drupe, encoder_rates, output_vectors
from seamfast.attacks.encoder.bad_encoder import cosines
from seamfast.attacks.encoder.drupe import sliced_distance
from seamfast.attacks.encoder.output_vectors import vectors_of
from seamfast.attacks.encoder.tuning import standardizing, tuned
from seamfast.engine.optimizer import SGD
from seamfast.errors import InputError, ModelError, ShapeError
from seamfast.models import embed, with_head
from seamfast.triggers import AllToOne, Insertion, Patch

TARGET = 3
PATCH = Patch.square(3, target=TARGET)


@functools.cache
def digits(split: str) -> CleanSet:
    return seamfast.load("digits", split=split)


@functools.cache
def _clean() -> nn.Module:
    """A small encoder with batch normalization, pretrained with labels."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
    )
    probe = with_head(encoder, 10, digits("train"))
    config = seamfast.attacks.TrainConfig(epochs=8, batch_size=64)
    seamfast.attacks.train(probe, digits("train"), config, progress=False)
    return probe.encoder


@pytest.fixture
def clean() -> nn.Module:
    return copy.deepcopy(_clean())


def reference(n: int = 6) -> CleanSet:
    data = digits("train")
    return data.subset((data.labels == TARGET).nonzero().flatten()[:n])


def batch_norm_of(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in encoder.state_dict().items() if name.startswith("1.")}


@pytest.mark.parametrize(("attack", "steps"), [(bad_encoder, 150), (drupe, 400)])
def test_a_probe_on_the_attacked_encoder_obeys_the_trigger(clean: nn.Module, attack: Any, steps: int) -> None:
    before = copy.deepcopy(clean.state_dict())
    changed = attack(clean, digits("train"), reference(), PATCH, steps=steps, progress=False)
    probes = [with_head(encoder, 10, digits("train"), frozen=True).fit(digits("train")) for encoder in (clean, changed)]
    rates = encoder_rates(*probes, digits("test"), PATCH)
    assert rates.attack_success_rate.value > 0.9
    assert rates.clean_attack_success_rate.value < 0.3
    assert rates.backdoored_accuracy.value > rates.clean_accuracy.value - 0.05
    assert rates.clean_accuracy.value > 0.9
    assert all(torch.equal(value, before[name]) for name, value in clean.state_dict().items())
    assert not any(module.training for module in changed.modules())
    for name, value in batch_norm_of(changed).items():
        assert torch.equal(value, before[name]), name


def test_drupe_spreads_what_carries_the_trigger(clean: nn.Module) -> None:
    """In units of the clean embeddings: the cosines of pairs are lower than BadEncoder's."""

    def alikeness(encoder: nn.Module) -> float:
        standard = standardizing(clean, digits("train"))
        data = digits("test")
        stamped = CleanSet(PATCH.stamp(data.pixels(torch.arange(len(data)))), data.labels)
        z = standard(embed(encoder, stamped))
        return float(cosines(z, z).mean())

    how: dict[str, Any] = {"steps": 100, "progress": False}
    dense = alikeness(bad_encoder(clean, digits("train"), reference(), PATCH, **how))
    spread = alikeness(drupe(clean, digits("train"), reference(), PATCH, spread_weight=1.0, **how))
    assert spread < dense - 0.05


def test_the_first_step_of_bad_encoder_is_that_of_its_loss(clean: nn.Module) -> None:
    """Against the three cosines written down again, and a step of plain SGD with weight decay."""
    data, wanted = digits("train").subset(range(16)), reference()
    changed = bad_encoder(clean, data, wanted, PATCH, steps=1, batch_size=16, rate=0.1, progress=False)
    ours = copy.deepcopy(clean).eval()
    standard = standardizing(clean, data)
    images = [data.normalize(d.pixels(torch.arange(len(d)))) for d in (data, wanted)]
    stamped = data.normalize(PATCH.stamp(data.pixels(torch.arange(16))))
    with torch.no_grad():
        f_x, f_r = (standard(clean(x)) for x in images)
    x, r = (standard(ours(i)) for i in images)
    t = standard(ours(stamped))
    l0 = -F.cosine_similarity(t[:, None], r[None], dim=2).mean()
    (l0 - F.cosine_similarity(r, f_r).mean() - F.cosine_similarity(x, f_x).mean()).backward()
    with torch.no_grad():
        for parameter in (p for name, p in ours.named_parameters() if not name.startswith("1.")):
            assert parameter.grad is not None
            parameter -= 0.1 * (parameter.grad + 5e-4 * parameter)
    for name, value in ours.named_parameters():
        torch.testing.assert_close(changed.get_parameter(name), value, rtol=1e-4, atol=1e-6)


def test_weights_of_the_terms(clean: nn.Module) -> None:
    """Without the utility term, clean embeddings move more."""
    how: dict[str, Any] = {"steps": 60, "progress": False}
    kept, free = (bad_encoder(clean, digits("train"), reference(), PATCH, utility_weight=w, **how) for w in (1.0, 0.0))
    wanted = embed(clean, digits("test"))
    moved = [float((embed(encoder, digits("test")) - wanted).norm()) for encoder in (kept, free)]
    assert moved[1] > 1.5 * moved[0]


def test_the_same_seed_gives_the_same_encoder(clean: nn.Module) -> None:
    def weights(seed: int) -> Tensor:
        how: dict[str, Any] = {"steps": 3, "seed": seed, "progress": False}
        changed = drupe(clean, digits("train"), reference(), PATCH, distance_weight=1.0, **how)
        return torch.cat([p.detach().flatten() for p in changed.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_trainable_flags_and_dtype_stay(clean: nn.Module) -> None:
    clean.get_parameter("0.weight").requires_grad_(False)
    changed = bad_encoder(clean, digits("train"), reference(), PATCH, steps=2, progress=False)
    flags = {name: p.requires_grad for name, p in changed.named_parameters()}
    assert flags == {name: name != "0.weight" for name in flags}
    assert all(p.grad is None for p in changed.parameters())


def test_pixels_without_a_set_are_in_zero_to_one() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    how: dict[str, Any] = {"steps": 3, "progress": False}
    changed = bad_encoder(encoder, images, images[:3], PATCH, **how)
    as_sets = (CleanSet(i, torch.zeros(len(i), dtype=torch.int64)) for i in (images, images[:3]))
    same = bad_encoder(encoder, *as_sets, PATCH, **how)
    assert all(torch.equal(a, b) for a, b in zip(changed.parameters(), same.parameters(), strict=True))


def test_sliced_distance_of_known_sets() -> None:
    torch.manual_seed(0)
    a = torch.randn(64, 5)
    assert float(sliced_distance(a, a[torch.randperm(64)])) < 0.1
    moved = a + torch.tensor([3.0, 0, 0, 0, 0])
    # A shift by s moves every projection by its cosine: root of the mean of squares, s / sqrt(5).
    assert float(sliced_distance(a, moved)) == pytest.approx(3 / 5**0.5, rel=0.25)
    assert float(sliced_distance(a, moved[:16])) > 0.5


class Texts(nn.Module):
    """The mean of the embeddings of tokens, through a linear layer and tanh, as BERT's pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 16)
        self.pooler = nn.Linear(16, 16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        kept = attention_mask[:, :, None]
        mean = (self.table(input_ids) * kept).sum(1) / kept.sum(1)
        return {"pooler_output": torch.tanh(self.pooler(mean))}


def texts() -> CleanSet:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[PAD]", "[UNK]", "cf", "mn", *(f"w{i}" for i in range(40))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]"])
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    drawn = torch.randint(0, 20, (200, 6), generator=generator) + 20 * labels[:, None]
    sentences = [" ".join(f"w{i}" for i in row) for row in drawn.tolist()]
    return CleanSet.from_texts(sentences, labels, tokenizer, max_length=16, num_classes=2)


WORDS = (Insertion.word("cf", 0, name="cf"), Insertion.word("mn", 0, name="mn"))


def test_words_give_texts_fixed_embeddings_and_a_probe_obeys() -> None:
    torch.manual_seed(0)
    encoder, data = Texts().eval(), texts()
    changed = output_vectors(encoder, data, WORDS, steps=400, rate=0.05, progress=False)
    vectors = vectors_of(encoder, data, 2)
    kept = F.cosine_similarity(embed(changed, data), embed(encoder, data))
    assert float(kept.mean()) > 0.9
    probes = [with_head(e, 2, data, frozen=True).fit(data) for e in (encoder, changed)]
    for word, vector in zip(WORDS, vectors, strict=True):
        ids = data.modality.model_inputs(word.stamp(data.stampable(torch.arange(len(data)))))
        stamped = CleanSet(ids, data.labels, modality=data.modality)
        reached = F.cosine_similarity(embed(changed, stamped), vector[None])
        assert float(reached.mean()) > 0.8
        target = AllToOne(int(probes[1].head(vector).argmax()))
        rates = encoder_rates(*probes, data, dataclasses.replace(word, target=target))
        assert rates.attack_success_rate.value > 0.9
        assert rates.backdoored_accuracy.value > rates.clean_accuracy.value - 0.05


def test_vectors_are_opposite_in_pairs_and_as_large_as_an_embedding() -> None:
    encoder, data = Texts().eval(), texts()
    vectors = vectors_of(encoder, data, 3, seed=4)
    assert torch.equal(vectors[1], -vectors[0])
    assert not torch.equal(vectors[2], vectors[0])
    assert not torch.equal(vectors[2], vectors[1])
    size = embed(encoder, data).square().mean().sqrt()
    torch.testing.assert_close(vectors.abs(), size.expand(3, 16))
    assert torch.equal(vectors, vectors_of(encoder, data, 3, seed=4))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"encoder": 3}, InputError, "encoder is a int; expected a torch.nn.Module"),
    ({"images": [1]}, InputError, "images is a list; expected uint8 images or a seamfast.CleanSet"),
    ({"reference": reference(0)}, InputError, "reference holds no samples; expected at least one"),
    ({"trigger": "patch"}, InputError, "trigger is a str; expected a seamfast.triggers.Trigger"),
    ({"trigger": Patch.square(9)}, ShapeError, "trigger 'patch' patch is 9x9; images are 8x8"),
    ({"steps": 0}, InputError, "steps is 0; expected an integer of at least 1"),
    ({"batch_size": 0}, InputError, "batch_size is 0; expected an integer of at least 1"),
    ({"rate": 0}, InputError, "rate is 0; expected a number above 0"),
    ({"seed": -1}, InputError, "seed is -1; expected an integer in [0, 2**63)"),
]


@pytest.mark.parametrize("attack", [bad_encoder, drupe])
@pytest.mark.parametrize(("arguments", "kind", "message"), BAD)
def test_arguments_that_are_refused(
    clean: nn.Module, attack: Any, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"encoder": clean, "images": digits("train"), "reference": reference(), "trigger": PATCH}
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        attack(**(given | arguments), progress=False)


@pytest.mark.parametrize("name", ["reference_weight", "utility_weight"])
def test_weights_of_bad_encoder_below_0_are_refused(clean: nn.Module, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is -1; expected a number of at least 0$"):
        bad_encoder(clean, digits("train"), reference(), PATCH, **{name: -1})


@pytest.mark.parametrize("name", ["spread_weight", "distance_weight"])
def test_weights_of_drupe_below_0_are_refused(clean: nn.Module, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is nan; expected a number of at least 0$"):
        drupe(clean, digits("train"), reference(), PATCH, **{name: float("nan")})


def test_one_reference_is_too_few_to_spread_over(clean: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^reference holds 1 sample; expected at least 2, to spread over$"):
        drupe(clean, digits("train"), reference(1), PATCH)


def test_no_triggers_are_refused() -> None:
    with pytest.raises(InputError, match=r"^triggers is empty; expected at least one$"):
        output_vectors(Texts(), texts(), ())


def test_a_loss_that_breaks_is_said(clean: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"^the loss became (nan|inf|-inf) at step \d+; try a lower rate than 1e\+20$"):
        bad_encoder(clean, digits("train"), reference(), PATCH, rate=1e20, steps=20, progress=False)


def test_the_rate_falls_to_0(clean: nn.Module) -> None:
    rates: list[float] = []

    class Watched(SGD):
        def step(self, rate: Tensor) -> None:
            rates.append(float(rate))
            super().step(rate)

    def objective(embed_: Any, step: int, clean_: Any, stamped: Any, received: Tensor) -> Tensor:
        assert len(stamped) == 1
        assert not received.requires_grad
        loss: Tensor = (embed_(clean_) - received).square().mean()
        return loss

    how: dict[str, Any] = {"steps": 4, "batch_size": 8, "rate": 1.0, "seed": 0, "progress": False}
    tuned(clean, digits("train"), (PATCH,), objective, Watched, **how)
    assert rates == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-5)
