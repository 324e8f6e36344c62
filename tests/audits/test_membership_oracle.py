"""``membership`` against the attacks of the adversarial-robustness-toolbox, on the same model and samples.

pip install -c constraints.txt -e '.[oracle]' && python -m pytest tests/audits/test_membership_oracle.py
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seamfast import CleanSet, attacks
from seamfast.audits import membership, train_references

inference = pytest.importorskip("art.attacks.inference.membership_inference", reason="needs the group 'oracle'")
classification = pytest.importorskip("art.estimators.classification")

N = 400
TRAINING = attacks.TrainConfig(epochs=60, batch_size=32)


@pytest.fixture(scope="module")
def parts(digits: tuple[CleanSet, CleanSet]) -> tuple[CleanSet, CleanSet]:
    return digits[0].subset(range(N)), digits[0].subset(range(N, 2 * N))


@pytest.fixture(scope="module")
def model(parts: tuple[CleanSet, CleanSet]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
        return attacks.train(built, parts[0], TRAINING, device="cpu")


def classifier(model: nn.Module) -> Any:
    loss = nn.CrossEntropyLoss(reduction="none")
    return classification.PyTorchClassifier(model, loss=loss, input_shape=(1, 8, 8), nb_classes=10)


def arrays(data: CleanSet) -> tuple[np.ndarray, np.ndarray]:
    return data.normalize(data.pixels(torch.arange(len(data)))).numpy(), data.labels.numpy()


def test_the_rule_of_right_answers_is_the_gap_of_the_accuracies(
    parts: tuple[CleanSet, CleanSet], model: nn.Module
) -> None:
    attack = inference.MembershipInferenceBlackBoxRuleBased(classifier(model))
    inside, outside = (attack.infer(*arrays(part)).mean() for part in parts)
    found = membership(model, *parts, n_boot=5)
    assert (found.member_accuracy.value, found.outsider_accuracy.value) == pytest.approx((inside, outside))
    # The loss knows how sure a right answer is, too: it is no weaker than the rule.
    assert found.attacks["loss"].balanced_accuracy.value > (1 + inside - outside) / 2 - 0.02


def test_an_attack_trained_on_losses_is_as_accurate_as_their_best_threshold(
    parts: tuple[CleanSet, CleanSet], model: nn.Module
) -> None:
    halves = [[part.subset(range(first, N, 2)) for part in parts] for first in (0, 1)]
    accuracies = []
    for fitted, attacked in (halves, halves[::-1]):
        attack = inference.MembershipInferenceBlackBox(classifier(model), input_type="loss", attack_model_type="dt")
        attack.attack_model.set_params(max_depth=1, random_state=0)  # one threshold
        (x, y), (other_x, other_y) = (arrays(part) for part in fitted)
        attack.fit(x, y, other_x, other_y)
        inside, outside = (attack.infer(*arrays(part)).mean() for part in attacked)
        accuracies.append((1 + inside - outside) / 2)
    own = membership(model, *parts, n_boot=5).attacks["loss"].balanced_accuracy.value
    assert own == pytest.approx(sum(accuracies) / 2, abs=0.04)


def test_an_attack_trained_on_shadow_models_is_no_better_than_one_with_references(
    parts: tuple[CleanSet, CleanSet], model: nn.Module
) -> None:
    train = functools.partial(attacks.train, config=TRAINING, device="cpu")
    pool = parts[0].followed_by(parts[1])
    references = train_references(model, pool, 4, train=train, seed=1)
    logits: dict[bool, list[Tensor]] = {True: [], False: []}
    labels: dict[bool, list[Tensor]] = {True: [], False: []}
    with torch.no_grad():
        for reference in references:
            assert reference.trained_on is not None
            known = set(reference.trained_on.identities())
            used = torch.tensor([identity in known for identity in pool.identities()])
            answers = reference.model(torch.from_numpy(arrays(pool)[0]))
            for member in (True, False):
                logits[member].append(answers[used == member])
                labels[member].append(pool.labels[used == member])
        of_target = [model(torch.from_numpy(arrays(part)[0])) for part in parts]
    attack = inference.MembershipInferenceBlackBox(classifier(model), attack_model_type="rf")
    attack.attack_model.set_params(random_state=0)
    attack.fit(
        y=torch.cat(labels[True]).numpy(),
        test_y=torch.cat(labels[False]).numpy(),
        pred=torch.cat(logits[True]).numpy(),
        test_pred=torch.cat(logits[False]).numpy(),
    )
    inside, outside = (
        attack.infer(None, part.labels.numpy(), pred=answers.numpy()).mean()
        for part, answers in zip(parts, of_target, strict=True)
    )
    own = membership(model, *parts, references=references, n_boot=5)
    best = max(found.balanced_accuracy.value for found in own.attacks.values())
    assert best > (1 + inside - outside) / 2 - 0.02
