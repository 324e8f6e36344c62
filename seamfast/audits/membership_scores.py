"""Scores of membership inference as functions of logits: the higher, the likelier was the sample trained on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seamfast.checks import check_in_range, check_vector, dtype_name
from seamfast.errors import DTypeError, InputError, ShapeError

__all__ = ["confidences", "lira_offline", "lira_online", "modified_entropy", "rmia"]

_LEAST_VARIANCE = 1e-12
"""Of LiRA's Gaussians: references that agree to the last bit would divide by zero."""


def confidences(logits: Tensor, labels: Tensor) -> Tensor:
    """``log(p / (1 - p))`` for the probability ``p = logits.softmax(1)[i, labels[i]]`` of the true class.

    Computed as the true logit minus the ``logsumexp`` of the others, so that it tells probabilities apart that round to
    1. It is a decreasing function of the cross-entropy, ``F.softplus(-confidences)``: as a score it is the loss
    threshold.

    Args:
        logits: ``(N, C)`` finite floats, C at least 2.
        labels: ``(N,)`` int64 in ``[0, C)``.

    Returns:
        ``(N,)`` float64.

    Raises:
        InputError: e.g. ``logits hold NaN or Inf, first in row 3; expected finite numbers``.

    Source: the loss as a score: S. Yeom et al., Privacy risk in machine learning, CSF 2018, arXiv:1709.01604; the
        logit scaling: N. Carlini et al., Membership inference attacks from first principles, IEEE S&P 2022,
        arXiv:2112.03570.

    Example:
        >>> confidences(torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1])).tolist()
        [2.0, -2.0]
    """
    logits = _checked(logits, labels)
    true = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -math.inf)
    return true - others.logsumexp(1)


def modified_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``(1 - p[y]) * log(p[y]) + sum of p[i] * log(1 - p[i]) over i != y``, for ``p`` the softmax and ``y`` the label.

    That is the modified entropy with its sign changed: 0 for a sure and right answer, lower for others. One threshold
    serves for all classes; the paper has one for each.

    Args, Raises: as for ``confidences``.

    Returns:
        ``(N,)`` float64, at most 0.

    Source: L. Song and P. Mittal, Systematic evaluation of privacy risks of machine learning models, USENIX Security
        2021, arXiv:2003.10595, equation 7.
    """
    logits = _checked(logits, labels)
    log_p = logits.log_softmax(1)
    top = logits.argmax(1, keepdim=True)
    # Of the largest probability the complement is summed, as 1 - p may round to 0; the others are at most 1/2.
    rest = logits.scatter(1, top, -math.inf).logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
    log_complement = torch.log1p(-log_p.exp().clamp(max=0.5)).scatter(1, top, rest)
    terms = log_p.exp() * log_complement
    true = labels[:, None]
    own = log_complement.gather(1, true).exp() * log_p.gather(1, true)
    return (terms.sum(1, keepdim=True) - terms.gather(1, true) + own)[:, 0].clamp(max=0)


def rmia(
    target: Tensor,
    references: Tensor,
    trained_on: Tensor,
    population: Tensor,
    *,
    a: float = 0.3,
    gamma: float = 1.0,
) -> Tensor:
    """Share of the population ``z`` with ``ratio(x) / ratio(z) > gamma``, where ``ratio(x) = p(x) / mean_p(x)``.

    ``p`` is the target's probability of the true class. ``mean_p``, that of models in general, half of which were
    trained on ``x``, is approximated offline: with ``out(x)`` the mean over the references that were not trained on
    ``x``, ``mean_p = ((1 + a) * out + (1 - a)) / 2``. As ``ratio`` does not depend on ``z``, the score is an increasing
    function of it; with ``gamma=1`` and the outsiders as the population, no two samples of which one is an outsider
    change their order, and the AUC is that of ``ratio``.

    Args:
        target: ``(N,)`` float64, ``confidences`` of the model.
        references: ``(R, N)`` float64, those of R models.
        trained_on: ``(R, N)`` bool, whether each reference was trained on each sample.
        population: ``(N,)`` bool, which samples are ``z``; at least one.
        a: in [0, 1]: by how much the training on a sample is taken to raise its probability: to ``1 - a + a * out``.
        gamma: at least 1.

    Returns:
        ``(N,)`` float64 in [0, 1].

    Raises:
        InputError: e.g. ``sample 3 is in the training data of all 4 references; expected 1 or more that it is not in``.

    Source: S. Zarifzadeh et al., Low-cost high-power membership inference attacks, ICML 2024, arXiv:2312.03262. ``a``
        and ``gamma`` are the defaults of the authors' code, github.com/privacytrustlab/ml_privacy_meter,
        ``modules/mia/attacks/rmia.py``.
    """
    _check_references(target, references, trained_on)
    check_vector("population", population, torch.bool, len(target))
    if not population.any():
        raise InputError("population holds no samples; expected at least one")
    if not 0 <= a <= 1:
        raise InputError(f"a is {a!r}; expected a number in [0, 1]")
    if not gamma >= 1:
        raise InputError(f"gamma is {gamma!r}; expected a number of at least 1")
    outside = ~trained_on
    _check_number(outside, 1, "in the training data of", "it is not in")
    # In terms of 1 - p, so that the logarithms near p = 1 keep their digits.
    missing = (torch.sigmoid(-references) * outside).sum(0) / outside.sum(0)
    ratio = F.logsigmoid(target) - torch.log1p(-(1 + a) / 2 * missing)
    ordered = ratio[population].sort().values
    return torch.searchsorted(ordered, ratio - math.log(gamma)).double() / len(ordered)


def lira_offline(target: Tensor, references: Tensor, trained_on: Tensor) -> Tensor:
    """``target - mean_out``, where ``mean_out`` is the mean over the references not trained on the sample.

    With one variance for all samples, as few references demand, this orders samples as the one-sided likelihood ratio
    ``Phi((target - mean_out) / sigma)`` does.

    Args:
        target, references, trained_on: as for ``rmia``.

    Returns:
        ``(N,)`` float64.

    Raises:
        InputError: as for ``rmia``.

    Source: N. Carlini et al., Membership inference attacks from first principles, IEEE S&P 2022, arXiv:2112.03570.
    """
    _check_references(target, references, trained_on)
    outside = ~trained_on
    _check_number(outside, 1, "in the training data of", "it is not in")
    return target - (references * outside).sum(0) / outside.sum(0)


def lira_online(target: Tensor, references: Tensor, trained_on: Tensor) -> Tensor:
    """``log N(target; mean_in, var_in) - log N(target; mean_out, var_out)``.

    The means are those of the sample's references trained on it and not; each variance is pooled within samples: the
    squared distances to the means, summed over all samples and divided by their degrees of freedom.

    Args:
        target, references, trained_on: as for ``rmia``.

    Returns:
        ``(N,)`` float64.

    Raises:
        InputError: e.g. ``sample 0 is not in the training data of all 4 references; expected 2 or more that it is in``.

    Source: as for ``lira_offline``; there the variance for few references is that of all samples together.
    """
    _check_references(target, references, trained_on)
    _check_number(~trained_on, 2, "in the training data of", "it is not in")
    _check_number(trained_on, 2, "outside the training data of", "it is in")
    return _log_density(target, references, trained_on) - _log_density(target, references, ~trained_on)


def _log_density(target: Tensor, references: Tensor, used: Tensor) -> Tensor:
    """Of a Gaussian for each sample, fitted to the ``used`` references, without the term that all of them share."""
    n = used.sum(0)
    mean = (references * used).sum(0) / n
    variance = (((references - mean) * used) ** 2).sum() / (n - 1).sum()
    variance = variance.clamp(min=_LEAST_VARIANCE)
    return -((target - mean) ** 2) / (2 * variance) - variance.log() / 2


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    """``logits`` as float64."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ShapeError(f"logits has shape {tuple(logits.shape)}; expected (N, C) with C of at least 2")
    if not logits.is_floating_point():
        raise DTypeError(f"logits has dtype {dtype_name(logits.dtype)}; expected floats")
    check_vector("labels", labels, torch.int64, len(logits))
    check_in_range("labels", labels, logits.shape[1])
    wrong = ~logits.isfinite().all(1)
    if wrong.any():
        raise InputError(f"logits hold NaN or Inf, first in row {int(wrong.nonzero()[0])}; expected finite numbers")
    return logits.double()


def _check_references(target: Tensor, references: Tensor, trained_on: Tensor) -> None:
    check_vector("target", target, torch.float64)
    if references.ndim != 2 or references.shape[1] != len(target) or not len(references):
        raise ShapeError(f"references has shape {tuple(references.shape)}; expected (R, {len(target)}), R at least 1")
    if trained_on.shape != references.shape:
        got, expected = tuple(trained_on.shape), tuple(references.shape)
        raise ShapeError(f"trained_on has shape {got}; expected that of references, {expected}")
    for name, value, dtype in (("references", references, torch.float64), ("trained_on", trained_on, torch.bool)):
        if value.dtype != dtype:
            raise DTypeError(f"{name} has dtype {dtype_name(value.dtype)}; expected {dtype_name(dtype)}")


def _check_number(used: Tensor, least: int, of_others: str, wanted: str) -> None:
    """Raise unless each sample has ``least`` references or more that are ``used``."""
    n = used.sum(0)
    wrong = n < least
    if wrong.any():
        sample = int(wrong.nonzero()[0])
        n_others, n_all = len(used) - int(n[sample]), len(used)
        which = f"all {n_all} references" if n_others == n_all else f"{n_others} of {n_all} references"
        raise InputError(f"sample {sample} is {of_others} {which}; expected {least} or more that {wanted}")
