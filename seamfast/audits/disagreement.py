"""``disagreement``: how often two models differ on clean samples under perturbations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seamfast.checks import as_count, as_level, as_seed
from seamfast.data import CleanSet
from seamfast.engine.events import progress_bar
from seamfast.engine.model import evaluating
from seamfast.engine.subject import UNANSWERED, Subject, place
from seamfast.errors import InputError
from seamfast.metrics import Bounded, Rate
from seamfast.modalities.batch import map_tensors

__all__ = ["Disagreement", "DisagreementExample", "disagreement"]

MOST_EXAMPLES = 16


@dataclass(frozen=True, eq=False)
class DisagreementExample:
    """A perturbed sample on which the models differ.

    Attributes:
        index: of the sample in the data.
        sample: as the models saw it, stampable; an image is ``(C, H, W)`` uint8, a text a ``str``.
        received, sanitized: their answers, classes; ``None`` where the logits hold NaN or Inf.
    """

    index: int
    sample: Any
    received: int | None
    sanitized: int | None


@dataclass(frozen=True, eq=False)
class Disagreement:
    """How often two models differ under one perturbation.

    Attributes:
        name: the perturbation's.
        rate: of the samples on which both agree as they are: both do not when perturbed. Its bounds are exact and hold
            for all perturbations at once.
        rate_clean: of all samples, as they are: both do not agree; the same for every perturbation.
        n_not_finite_received, n_not_finite_sanitized: perturbed samples, of all, for which the logits of this model
            hold NaN or Inf.
        examples: the first of the samples in ``rate``, at most 16.
    """

    name: str
    rate: Bounded
    rate_clean: Rate
    n_not_finite_received: int
    n_not_finite_sanitized: int
    examples: tuple[DisagreementExample, ...]


def disagreement(
    received: nn.Module,
    sanitized: nn.Module,
    data: CleanSet,
    *,
    level: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> tuple[Disagreement, ...]:
    """``(received(perturb(samples)) != sanitized(perturb(samples))).mean()`` over the samples on which both agree.

    Models agree on a sample if both give it the same class; two answers of NaN or Inf are no agreement. Perturbations
    are drawn for each sample from ``seed``; both models see the same samples. They are used in eval mode and left as
    they were.

    Args:
        received, sanitized: models that return logits ``(B, C)``, of the same classes.
        data: uint8 images, or floats with ``mean`` and ``std``, or texts with their tokenizer.
        level: of the bounds, in (0, 1).
        batch_size: samples a forward pass, 1 or more. A sample may get a part of another one of its batch.
        seed: in ``[0, 2**63)``.
        device: ``"auto"`` is where ``received`` is; a model that is not there is copied there.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        One result for each perturbation of this kind of sample, in their order.

    Raises:
        InputError, ModelError: e.g. ``received returns 10 logits and sanitized 12; expected the same classes``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = CleanSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> [(found.name, found.rate.n_hit) for found in disagreement(model, model, data)][:2]
        [('patches', 0), ('noise', 0)]
    """
    level, batch_size, seed = as_level(level), as_count("batch_size", batch_size), as_seed(seed)
    first = place(received, data, device)
    second = place(sanitized, data, first.device)
    first.data.stampable(torch.arange(1))  # raises where there is nothing to perturb
    if first.num_classes != second.num_classes:
        counts = f"received returns {first.num_classes} logits and sanitized {second.num_classes}"
        raise InputError(f"{counts}; expected the same classes")
    perturbations = first.data.modality.perturbations()
    parts = torch.split(torch.arange(len(data)), batch_size)
    with (
        progress_bar("disagreement", "sample", (1 + len(perturbations)) * len(data), progress) as bar,
        evaluating(first.model),
        evaluating(second.model),
    ):
        agreed = []
        for part in parts:
            answers = _answers(first, second, first.data.stampable(part))
            agreed.append(_agree(answers))
            bar.update(len(part))
        n_agreed = int(torch.cat(agreed).sum())
        found = []
        for name, perturb in perturbations.items():
            generator = torch.Generator(first.device).manual_seed(seed)
            n_hit, examples = torch.zeros((), dtype=torch.int64, device=first.device), list[DisagreementExample]()
            n_lost = torch.zeros(2, dtype=torch.int64, device=first.device)
            for part, alike in zip(parts, agreed, strict=True):
                samples = perturb(first.data.stampable(part), part.to(first.device), generator, seed)
                answers = _answers(first, second, samples)
                hit = alike & ~_agree(answers)
                n_hit += hit.sum()
                n_lost += (torch.stack(answers) == UNANSWERED).sum(1)
                if len(examples) < MOST_EXAMPLES:
                    examples += _examples(hit, part, samples, answers, MOST_EXAMPLES - len(examples))
                bar.update(len(part))
            rate = Bounded.exact(int(n_hit), n_agreed, level=level, n_looks=len(perturbations))
            rate_clean = Rate(len(data) - n_agreed, len(data))
            of_received, of_sanitized = n_lost.tolist()
            found.append(Disagreement(name, rate, rate_clean, of_received, of_sanitized, tuple(examples)))
    return tuple(found)


def _answers(first: Subject, second: Subject, samples: Any) -> tuple[Tensor, Tensor]:
    """Of both models, to the same stampable samples."""
    return first.answers(first.inputs(samples)), second.answers(second.inputs(samples))


def _agree(answers: tuple[Tensor, Tensor]) -> Tensor:
    """Where both are the same class."""
    return (answers[0] == answers[1]) & (answers[0] != UNANSWERED)


def _examples(
    hit: Tensor, part: Tensor, samples: Any, answers: tuple[Tensor, Tensor], most: int
) -> list[DisagreementExample]:
    """The first ``most`` of the batch ``part`` that are ``hit``."""
    rows = hit.nonzero().flatten()[:most]
    chosen = [_sample(samples, row) for row in rows.tolist()]
    both = [[None if a == UNANSWERED else a for a in answer[rows].tolist()] for answer in answers]
    return [DisagreementExample(*values) for values in zip(part[rows.cpu()].tolist(), chosen, *both, strict=True)]


def _sample(samples: Any, row: int) -> Any:
    """One of the stampable samples, on the CPU: a text, a tensor, or named ones."""
    return samples[row] if isinstance(samples, list) else map_tensors(lambda value: value[row].cpu(), samples)
