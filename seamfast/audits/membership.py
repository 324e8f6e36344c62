"""``membership``: how well an attacker can tell what a model was trained on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.audits import membership_scores as scores
from seamfast.audits.separation import Separation, separation
from seamfast.checks import as_count, as_level, as_seed, short
from seamfast.data import CleanSet
from seamfast.engine.counting import OnBatch
from seamfast.engine.events import progress_bar
from seamfast.engine.model import evaluating
from seamfast.engine.subject import place
from seamfast.errors import InputError, ModelError
from seamfast.metrics import Rate

__all__ = ["ATTACKS", "Membership", "Reference", "membership"]

ATTACKS = ("loss", "modified_entropy", "rmia", "lira_offline", "lira_online")
"""By name; those after the first two need references."""

_ALONE = ATTACKS[:2]


@dataclass(frozen=True, eq=False)
class Reference:
    """A model trained as the audited one might have been, on known samples.

    Attributes:
        model: returns logits of the same classes.
        trained_on: its training data; ``None`` for a model that has seen neither members nor outsiders. Samples are
            recognized by their bytes and label, so they must be stored as the members and outsiders are.
    """

    model: nn.Module
    trained_on: CleanSet | None = None


@dataclass(frozen=True, eq=False)
class Membership:
    """How well members can be told from outsiders by a model's logits.

    Attributes:
        attacks: by name of attack, how well its scores separate them.
        member_accuracy, outsider_accuracy: of the model.
        n_shared: outsiders that are members too, by their bytes and label; each moves the figures towards chance.
        n_references: models that the attacks had.
        n_boot, level, seed: as given.
        samples: SHA-256 of members and of outsiders.
    """

    attacks: Mapping[str, Separation]
    member_accuracy: Rate
    outsider_accuracy: Rate
    n_shared: int
    n_references: int
    n_boot: int
    level: float
    seed: int
    samples: tuple[str, str] = field(repr=False)

    def change_from(self, before: Membership) -> dict[str, Separation]:
        """By name of attack, each figure minus that of ``before``, with bounds of the difference.

        Both are resampled alike, so what they owe to the choice of samples cancels out.

        Args:
            before: of another model, with the same samples, ``n_boot``, ``level`` and ``seed``. Attacks of one alone
                are left out.

        Raises:
            InputError: e.g. ``seed is 0 before and 1 now; expected the same``.
        """
        for name in ("samples", "n_boot", "level", "seed"):
            then, now = getattr(before, name), getattr(self, name)
            if then != now and name == "samples":
                raise InputError("members or outsiders differ before and now; expected the same samples")
            if then != now:
                raise InputError(f"{name} is {then} before and {now} now; expected the same")
        both = [name for name in self.attacks if name in before.attacks]
        return {name: self.attacks[name].minus(before.attacks[name]) for name in both}

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``None`` for a figure that there are too few outsiders for."""
        return {
            "attacks": {name: found.to_dict() for name, found in self.attacks.items()},
            "member_accuracy": self.member_accuracy.value,
            "outsider_accuracy": self.outsider_accuracy.value,
            "n_members": self.member_accuracy.n_total,
            "n_outsiders": self.outsider_accuracy.n_total,
            "n_shared": self.n_shared,
            "n_references": self.n_references,
            "n_boot": self.n_boot,
            "level": self.level,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        lines = [f"accuracy of members {self.member_accuracy}, of outsiders {self.outsider_accuracy}"]
        return "\n".join(lines + [f"{name:<17} {found}" for name, found in self.attacks.items()])


def membership(
    model: nn.Module,
    members: CleanSet,
    outsiders: CleanSet,
    *,
    references: Sequence[Reference] = (),
    attacks: Sequence[str] | None = None,
    n_boot: int = 1000,
    level: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Membership:
    """``separation(score(model, members), score(model, outsiders))`` for each attack's ``score``.

    The attacks, one threshold for all samples each, are functions of ``seamfast.audits.membership_scores``:

    - ``"loss"``: low cross-entropy (``confidences``);
    - ``"modified_entropy"``: low modified entropy;
    - ``"rmia"``: the true class's probability, divided by what it is on average over models, half of which were trained
      on the sample, as guessed from references that were not; ``a`` is 0.3, ``gamma`` 1, the population the outsiders;
    - ``"lira_offline"``: how far the confidence exceeds that of references not trained on the sample;
    - ``"lira_online"``: the ratio of its likelihoods under references trained on the sample and others.

    The model is used in eval mode and left as it was.

    Args:
        model: returns logits ``(B, C)``.
        members: what the model was trained on, or is thought to be; at least 2 samples.
        outsiders: samples of the same kind that it was not trained on; at least 2. With fewer than 1,000 there is no
            TPR at 0.1 % FPR, with fewer than 100 none at 1 %.
        references: models trained alike; ``train_references`` trains some.
        attacks: names in ``ATTACKS``. ``None``: those that the references allow, which is ``"lira_online"`` with at
            least two references trained on each member and outsider, and two not.
        n_boot: sets drawn for the bounds, at least 1.
        level: of the bounds, in (0, 1); they hold for each figure by itself.
        batch_size: samples a forward pass, 1 or more.
        seed: of the bounds and of the halves for the balanced accuracy, in ``[0, 2**63)``.
        device: ``"auto"`` is the model's own; a model that is not there is copied there.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Raises:
        InputError, ModelError: e.g. ``attacks hold 'rmia' and references none; expected at least one reference``, or
            ``the logits for sample 3 of members hold NaN or Inf; expected finite numbers``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = CleanSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> found = membership(model, data, data, n_boot=10)
        >>> found.attacks["loss"].auc.value, found.n_shared
        (0.5, 4)
    """
    n_boot, level, seed = as_count("n_boot", n_boot), as_level(level), as_seed(seed)
    batch_size = as_count("batch_size", batch_size)
    for name, data in (("members", members), ("outsiders", outsiders)):
        if not isinstance(data, CleanSet):
            raise InputError(f"{name} is a {type(data).__name__}; expected a seamfast.CleanSet")
        if len(data) < 2:
            raise InputError(f"{name} hold {len(data)} sample{'s' * (len(data) != 1)}; expected at least 2")
    for reference in references:
        if not isinstance(reference, Reference):
            raise InputError(f"references hold a {type(reference).__name__}; expected seamfast.audits.Reference")
    names = _attack_names(attacks)
    if names is not None and set(names) <= set(_ALONE):
        references = ()
    if names is not None and not references:
        for name in names:
            if name not in _ALONE:
                raise InputError(f"attacks hold {name!r} and references none; expected at least one reference")
    inside, outside = members.identities(), outsiders.identities()
    trained_on = _trained_on(references, [*inside, *outside])
    if names is None:
        names = _allowed(trained_on)

    n_samples = (1 + len(references)) * (len(members) + len(outsiders))
    with progress_bar("membership", "sample", n_samples, progress) as bar:
        target = _answers(model, members, outsiders, device, batch_size, "", bar.update)
        others = [
            _answers(r.model, members, outsiders, target.device, batch_size, f"reference {number}: ", bar.update)
            for number, r in enumerate(references)
        ]
    for number, other in enumerate(others):
        if other.num_classes != target.num_classes:
            counts = f"reference {number} returns {other.num_classes} logits and the model {target.num_classes}"
            raise InputError(f"{counts}; expected the same classes")

    n_members = len(members)
    found = {}
    for name in names:
        values = _scores(name, target, others, trained_on, n_members)
        found[name] = separation(values[:n_members], values[n_members:], n_boot=n_boot, level=level, seed=seed)
    shared = set(inside)
    return Membership(
        attacks=found,
        member_accuracy=Rate(int(target.right[:n_members].sum()), n_members),
        outsider_accuracy=Rate(int(target.right[n_members:].sum()), len(outsiders)),
        n_shared=sum(identity in shared for identity in outside),
        n_references=len(references),
        n_boot=n_boot,
        level=level,
        seed=seed,
        samples=(members.sha256(), outsiders.sha256()),
    )


@dataclass(frozen=True, eq=False)
class _Answers:
    """What the attacks use of a model's logits for members and then outsiders; ``(N,)`` each, on the CPU."""

    confidences: Tensor
    modified_entropy: Tensor
    right: Tensor
    num_classes: int
    device: torch.device


def _answers(
    model: nn.Module,
    members: CleanSet,
    outsiders: CleanSet,
    device: str | torch.device,
    batch_size: int,
    whose: str,
    advance: OnBatch,
) -> _Answers:
    confidences, entropies, right = [], [], []
    for name, data in (("members", members), ("outsiders", outsiders)):
        subject = place(model, data, device)
        parts = torch.split(torch.arange(len(data)), batch_size)
        with evaluating(subject.model), closing(subject.data.batches((part, 0) for part in parts)) as batches:
            for indices, inputs in batches:
                logits, labels = subject.logits(inputs).double().cpu(), data.labels[indices.cpu()]
                wrong = ~logits.isfinite().all(1)
                if wrong.any():
                    sample = int(indices[int(wrong.nonzero()[0])])
                    message = f"the logits for sample {sample} of {name} hold NaN or Inf; expected finite numbers"
                    raise ModelError(whose + message)
                confidences.append(scores.confidences(logits, labels))
                entropies.append(scores.modified_entropy(logits, labels))
                right.append(logits.argmax(1) == labels)
                advance(len(indices))
    return _Answers(torch.cat(confidences), torch.cat(entropies), torch.cat(right), subject.num_classes, subject.device)


def _scores(name: str, target: _Answers, others: Sequence[_Answers], trained_on: Tensor, n_members: int) -> Tensor:
    """``(N,)`` float64 of the attack ``name``."""
    if name == "loss":
        return target.confidences
    if name == "modified_entropy":
        return target.modified_entropy
    references = torch.stack([other.confidences for other in others])
    if name == "rmia":
        population = torch.arange(len(target.confidences)) >= n_members
        return scores.rmia(target.confidences, references, trained_on, population)
    lira = scores.lira_offline if name == "lira_offline" else scores.lira_online
    return lira(target.confidences, references, trained_on)


def _trained_on(references: Sequence[Reference], identities: Sequence[Hashable]) -> Tensor:
    """``(R, N)`` bool: whether each reference was trained on each sample."""
    rows = []
    for reference in references:
        known = set() if reference.trained_on is None else set(reference.trained_on.identities())
        rows.append(torch.tensor([identity in known for identity in identities]))
    return torch.stack(rows) if rows else torch.zeros(0, len(identities), dtype=torch.bool)


def _attack_names(attacks: Sequence[str] | None) -> tuple[str, ...] | None:
    if attacks is None:
        return None
    if isinstance(attacks, str) or not attacks:
        raise InputError(f"attacks is {short(attacks)}; expected names in {', '.join(ATTACKS)}")
    for name in attacks:
        if name not in ATTACKS:
            raise InputError(f"attacks hold {short(name)}; expected names in {', '.join(ATTACKS)}")
    return tuple(dict.fromkeys(attacks))


def _allowed(trained_on: Tensor) -> tuple[str, ...]:
    """The attacks that references with this training data allow; a sample that all of them saw is an error later."""
    if not len(trained_on):
        return _ALONE
    n_inside, n_outside = trained_on.sum(0), (~trained_on).sum(0)
    return ATTACKS if bool((n_inside >= 2).all() and (n_outside >= 2).all()) else ATTACKS[:-1]
