"""``membership``: memorized samples stand out, unseen ones do not, references help, and what is refused."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seamfast import CleanSet, attacks
from seamfast.audits import Reference, membership, train_references
from seamfast.audits import membership_scores as scores
from seamfast.audits.separation import separation
from seamfast.errors import InputError, ModelError

Make = Callable[[], nn.Module]

TRAINING = attacks.TrainConfig(epochs=60, batch_size=32)


class Memory(nn.Module):
    """Sure of the label of each sample that it was given, and of nothing else."""

    def __init__(self, data: CleanSet) -> None:
        super().__init__()
        self.samples = nn.Parameter(data.normalize(data.pixels(torch.arange(len(data)))).flatten(1))
        self.register_buffer("labels", data.labels.clone())

    def forward(self, images: Tensor) -> Tensor:
        exact = "donot_use_mm_for_euclid_dist"
        distance, nearest = torch.cdist(images.flatten(1), self.samples, compute_mode=exact).min(1)
        sure = (distance < 1e-3).float() * 9 + torch.rand(len(images), generator=torch.Generator().manual_seed(0))
        return sure[:, None] * torch.nn.functional.one_hot(self.labels[nearest], 10)


class Nan(nn.Module):
    """Answers NaN to bright images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return torch.where(images.flatten(1).mean(1, keepdim=True) > 0.9, torch.nan, logits)


@pytest.fixture(scope="module")
def parts(digits: tuple[CleanSet, CleanSet]) -> tuple[CleanSet, CleanSet]:
    """150 members and 150 outsiders of one kind."""
    return digits[0].subset(range(150)), digits[0].subset(range(150, 300))


@pytest.fixture(scope="module")
def overfitted(parts: tuple[CleanSet, CleanSet]) -> nn.Module:
    return new_model(parts[0])


@pytest.fixture(scope="module")
def references(parts: tuple[CleanSet, CleanSet], overfitted: nn.Module) -> tuple[Reference, ...]:
    train = functools.partial(attacks.train, config=TRAINING, device="cpu")
    return train_references(overfitted, parts[0].followed_by(parts[1]), 8, train=train, seed=1)


def new_model(data: CleanSet) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
        return attacks.train(model, data, TRAINING, device="cpu")


def test_a_model_that_memorized_its_data_gives_it_away(parts: tuple[CleanSet, CleanSet]) -> None:
    found = membership(Memory(parts[0]), *parts, n_boot=50)
    assert list(found.attacks) == ["loss", "modified_entropy"]
    for separated in found.attacks.values():
        assert separated.auc.value > 0.999
        assert separated.balanced_accuracy.value > 0.97
        assert separated.tpr_at_1_percent is not None
        assert separated.tpr_at_1_percent.value > 0.99
        assert separated.tpr_at_0_1_percent is None
    assert found.member_accuracy.value == 1
    assert found.outsider_accuracy.n_total == 150


def test_a_trained_model_tells_its_data_from_others(parts: tuple[CleanSet, CleanSet], overfitted: nn.Module) -> None:
    found = membership(overfitted, *parts, n_boot=200)
    assert found.attacks["loss"].auc.low > 0.6
    assert found.attacks["modified_entropy"].auc.low > 0.6


def test_samples_that_no_model_was_trained_on_are_at_chance(
    digits: tuple[CleanSet, CleanSet], overfitted: nn.Module, references: tuple[Reference, ...]
) -> None:
    unseen = digits[0].subset(range(300, 1400, 2)), digits[0].subset(range(301, 1401, 2))
    found = membership(overfitted, *unseen, references=references, n_boot=200)
    assert list(found.attacks) == ["loss", "modified_entropy", "rmia", "lira_offline"]
    for separated in found.attacks.values():
        assert separated.auc.value == pytest.approx(0.5, abs=0.04)
        assert separated.auc.low < 0.5 < separated.auc.high


def test_references_make_the_attack_stronger(
    parts: tuple[CleanSet, CleanSet], overfitted: nn.Module, references: tuple[Reference, ...]
) -> None:
    found = membership(overfitted, *parts, references=references, n_boot=200)
    assert list(found.attacks) == ["loss", "modified_entropy", "rmia", "lira_offline", "lira_online"]
    alone = found.attacks["loss"].auc.value
    for name in ("rmia", "lira_online"):
        assert found.attacks[name].auc.value > alone + 0.02
    assert found.attacks["lira_offline"].auc.low > 0.6
    assert found.n_references == 8


def test_the_figures_are_those_of_the_scores_by_hand(
    parts: tuple[CleanSet, CleanSet], overfitted: nn.Module, references: tuple[Reference, ...]
) -> None:
    both = parts[0].followed_by(parts[1])
    images = both.normalize(both.pixels(torch.arange(len(both))))
    with torch.no_grad():
        answers = [model(images) for model in (overfitted, *(reference.model for reference in references))]
    target, *others = (scores.confidences(logits, both.labels) for logits in answers)
    known = [set(reference.trained_on.identities()) for reference in references if reference.trained_on is not None]
    seen = torch.tensor([[identity in samples for identity in both.identities()] for samples in known])
    expected = {
        "loss": target,
        "modified_entropy": scores.modified_entropy(answers[0], both.labels),
        "rmia": scores.rmia(target, torch.stack(others), seen, torch.arange(len(both)) >= len(parts[0])),
        "lira_offline": scores.lira_offline(target, torch.stack(others), seen),
        "lira_online": scores.lira_online(target, torch.stack(others), seen),
    }
    found = membership(overfitted, *parts, references=references, n_boot=3, batch_size=len(parts[0])).attacks
    for name, values in expected.items():
        by_hand = separation(values[: len(parts[0])], values[len(parts[0]) :], n_boot=3)
        torch.testing.assert_close(found[name].values, by_hand.values, equal_nan=True, rtol=0, atol=2e-4)


def test_a_reference_counts_for_samples_that_it_was_not_trained_on(parts: tuple[CleanSet, CleanSet]) -> None:
    # One knows the members and one nothing. Held to the second alone, members stand out; held to the first, they do
    # not: their confidence is what it is without training on them.
    members, outsiders = parts
    target, blank = Memory(members), Memory(outsiders.subset([0]))
    known, unknown = Reference(Memory(members), members), Reference(Memory(members))
    options = {"attacks": ["lira_offline"], "n_boot": 5}
    found = membership(target, *parts, references=[known, Reference(blank)], **options)
    assert found.attacks["lira_offline"].auc.value > 0.99
    found = membership(target, *parts, references=[unknown], **options)
    assert found.attacks["lira_offline"].auc.value == 0.5


def test_a_cure_changes_membership_with_bounds(parts: tuple[CleanSet, CleanSet], overfitted: nn.Module) -> None:
    other = new_model(parts[1].subset(range(75)))
    before, after = membership(overfitted, *parts), membership(other, *parts)
    change = after.change_from(before)
    assert list(change) == ["loss", "modified_entropy"]
    assert change["loss"].auc.high < -0.1
    expected = after.attacks["loss"].auc.value - before.attacks["loss"].auc.value
    assert change["loss"].auc.value == pytest.approx(expected)
    assert list(after.change_from(membership(overfitted, *parts, attacks=["loss"]))) == ["loss"]


def test_a_change_is_that_of_the_same_samples_drawn_alike(
    parts: tuple[CleanSet, CleanSet], overfitted: nn.Module
) -> None:
    first = membership(overfitted, *parts, n_boot=5)
    other = membership(overfitted, *parts, n_boot=5, seed=1)
    with pytest.raises(InputError, match=re.escape("seed is 0 before and 1 now; expected the same")):
        other.change_from(first)
    other = membership(overfitted, parts[0].subset(range(149, -1, -1)), parts[1], n_boot=5)
    message = "members or outsiders differ before and now; expected the same samples"
    with pytest.raises(InputError, match=re.escape(message)):
        other.change_from(first)


def test_batches_and_mode_change_nothing(parts: tuple[CleanSet, CleanSet], overfitted: nn.Module) -> None:
    overfitted.train()
    weights = {name: value.clone() for name, value in overfitted.state_dict().items()}
    whole, split = (membership(overfitted, *parts, n_boot=5, batch_size=size) for size in (512, 7))
    assert overfitted.training
    overfitted.eval()
    assert all(torch.equal(value, weights[name]) for name, value in overfitted.state_dict().items())
    assert whole.attacks["loss"].auc.value == pytest.approx(split.attacks["loss"].auc.value, abs=1e-3)
    assert whole.to_dict() == membership(overfitted, *parts, n_boot=5).to_dict()


def test_the_result_is_json(parts: tuple[CleanSet, CleanSet], overfitted: nn.Module) -> None:
    found = membership(overfitted, parts[0], parts[1].followed_by(parts[0].subset([0, 1])), n_boot=5)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(values) == {
        *("attacks", "member_accuracy", "outsider_accuracy", "n_members", "n_outsiders", "n_shared", "n_references"),
        *("n_boot", "level", "seed"),
    }
    assert (values["n_members"], values["n_outsiders"], values["n_shared"]) == (150, 152, 2)
    loss = values["attacks"]["loss"]
    assert set(loss) == {"auc", "balanced_accuracy", "tpr_at_1_percent", "tpr_at_0_1_percent"}
    assert loss["auc"] == found.attacks["loss"].auc.to_dict()
    assert loss["tpr_at_0_1_percent"] is None
    assert "accuracy of members 1.0000" in str(found)
    assert "modified_entropy  AUC 0." in str(found)


def test_each_sample_is_in_half_of_the_references(
    parts: tuple[CleanSet, CleanSet], references: tuple[Reference, ...]
) -> None:
    data = parts[0].followed_by(parts[1])
    inside = [set(reference.trained_on.identities()) for reference in references if reference.trained_on is not None]
    assert len(inside) == 8
    assert all(sum(identity in known for known in inside) == 4 for identity in data.identities())
    assert len({frozenset(known) for known in inside}) == 8


def test_references_have_weights_of_their_own_and_a_seed_gives_the_same(
    parts: tuple[CleanSet, CleanSet], overfitted: nn.Module
) -> None:
    def untrained(seed: int) -> list[dict[str, Tensor]]:
        made = train_references(overfitted, parts[0], 2, train=lambda model, data, *, seed: None, seed=seed)
        return [reference.model.state_dict() for reference in made]

    first, again, other = untrained(3), untrained(3), untrained(9)
    given = overfitted.state_dict()
    assert all(torch.equal(value, again[0][name]) for name, value in first[0].items())
    convolution = next(name for name, value in given.items() if value.ndim == 4)
    for weights in (given, first[1], other[0]):
        assert not torch.equal(first[0][convolution], weights[convolution])
    # What BatchNorm counted on the members must not be passed on.
    assert all(not value.any() for name, value in first[0].items() if name.endswith("running_mean"))


def test_arguments_that_cannot_be_used_are_refused(parts: tuple[CleanSet, CleanSet], overfitted: nn.Module) -> None:
    members, outsiders = parts
    eleven = attacks.build("small_cnn", num_classes=11, in_channels=1, image_size=8)
    for arguments, options, message in (
        (({}, outsiders), {}, "members is a dict; expected a seamfast.CleanSet"),
        ((members, None), {}, "outsiders is a NoneType; expected a seamfast.CleanSet"),
        ((members.subset([0]), outsiders), {}, "members hold 1 sample; expected at least 2"),
        (parts, {"references": [overfitted]}, "references hold a "),
        (parts, {"attacks": "loss"}, "attacks is 'loss'; expected names in loss, modified_entropy, rmia"),
        (parts, {"attacks": []}, "attacks is []; expected names in loss"),
        (parts, {"attacks": ["lira"]}, "attacks hold 'lira'; expected names in loss"),
        (parts, {"attacks": ["loss", "rmia"]}, "attacks hold 'rmia' and references none; expected at least one"),
        (
            parts,
            {"references": [Reference(eleven)]},
            "reference 0 returns 11 logits and the model 10; expected",
        ),
        (
            parts,
            {"references": [Reference(overfitted, members)]},
            "sample 0 is in the training data of all 1",
        ),
        (parts, {"level": 95}, "level is 95; expected a number in (0, 1)"),
        (parts, {"n_boot": 0}, "n_boot is 0; expected an integer of at least 1"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            membership(overfitted, *arguments, **options)


def test_logits_of_nan_are_refused(parts: tuple[CleanSet, CleanSet], overfitted: nn.Module) -> None:
    members, outsiders = parts
    bright = outsiders.inputs.clone()
    bright[140] = 255
    outsiders = CleanSet(bright, outsiders.labels, **outsiders.description)
    message = "the logits for sample 140 of outsiders hold NaN or Inf; expected finite numbers"
    with pytest.raises(ModelError, match=f"^{re.escape(message)}"):
        membership(Nan(overfitted), members, outsiders, batch_size=64)
    with pytest.raises(ModelError, match=re.escape(f"reference 0: {message}")):
        membership(overfitted, members, outsiders, references=[Reference(Nan(overfitted))])


def test_references_that_cannot_be_trained_are_refused(parts: tuple[CleanSet, CleanSet], overfitted: nn.Module) -> None:
    def nothing(model: nn.Module, data: CleanSet, *, seed: int) -> None: ...

    message = "inner is a Memory with weights and no reset_parameters; expected modules that can be initialized anew"
    with pytest.raises(ModelError, match=re.escape(message)):
        train_references(Nan(Memory(parts[0])), parts[0], train=nothing)
    with pytest.raises(InputError, match=re.escape("n is 1; expected an integer in [2, 1024]")):
        train_references(overfitted, parts[0], 1, train=nothing)
    with pytest.raises(InputError, match=re.escape("data is a dict; expected a seamfast.CleanSet")):
        train_references(overfitted, {}, train=nothing)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=re.escape("data hold 1 sample; expected at least 2")):
        train_references(overfitted, parts[0].subset([0]), train=nothing)
