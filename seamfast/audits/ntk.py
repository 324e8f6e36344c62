"""Forgetting as the Neural Tangent Kernel predicts it: what training on some samples does to the logits of others.

Near the weights of a model its logits are linear in them: ``f(w + u) = f(w) + J u``. Training samples T with targets y
then moves the logits of samples S by the *drift* ``K_ST (K_TT + ridge I)^-1 (y - f(T))`` with the kernel ``K = J J.T``
over pairs of a sample and a class, and the forgetting of S is the square of its norm. Only ``ntk_matrix`` makes the
Jacobian: products ``K v`` are one backward pass and one forward pass with tangents, and systems are solved in the
Krylov space of such products.

Source: Bennani and Sugiyama, "Generalisation guarantees for continual learning with orthogonal gradient descent",
arXiv:2006.11942; Doan et al., "A theoretical analysis of catastrophic forgetting through the NTK overlap matrix",
arXiv:2010.04003; that random labels forget most: Zhu et al., "Selective amnesia", arXiv:2212.04687.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.audits.kernel_space import Descent, Drift, HeadSpace, Space, krylov_space
from seamfast.audits.ntk_overlap import Overlap, overlap
from seamfast.audits.ntk_subject import (
    BATCH,
    Differentiated,
    are_integers,
    as_targets,
    as_weights,
    described,
    named_probes,
)
from seamfast.checks import as_count, as_positive, as_seed, check_in_range, short
from seamfast.data import CleanSet
from seamfast.data.clean_set import check_clean_set
from seamfast.engine.events import progress_bar
from seamfast.engine.memory import check_memory
from seamfast.errors import InputError

__all__ = [
    "SCHEMES",
    "Drift",
    "Forgetting",
    "Overlap",
    "SchemeForgetting",
    "drift",
    "forgetting",
    "label_targets",
    "ntk_matrix",
    "ntk_vector_product",
    "overlap",
    "trained_drift",
]

KERNELS = ("exact", "last_layer")
SCHEMES = ("true", "wrong", "uniform", "max_entropy")
"""Labels to forget with: as they are; another class at random; any class at random; the same logit for all classes."""

_TOLERANCE = 0.01
"""Of residuals. The forgetting of four trained models was then within 0.7 % of that at 0.001."""
_MOST_PRODUCTS = 240
_CHUNK = 1 << 28
"""Bytes of the rows of two Jacobians that ``ntk_matrix`` holds."""


# ---- Products ----


def ntk_vector_product(
    model: nn.Module,
    inputs: Any,
    v: Tensor,
    *,
    others: Any = None,
    trainable: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
    device: str | torch.device = "auto",
) -> Tensor:
    """``(J_others @ (J.T @ v.flatten())).view(-1, C)``, where ``J`` is the Jacobian of ``model(inputs).flatten()``.

    Args:
        model: returns logits ``(B, C)``, each of its own sample; read in eval mode and left as it was. Computed in its
            dtype; a copy in float32 is used in place of one of fewer bits.
        inputs: ``N`` samples as the model takes them: a tensor, a mapping of tensors, or a ``CleanSet``.
        v: ``(N, C)`` floats.
        others: ``M`` samples; ``None``: ``inputs``.
        trainable: the parameters that ``J`` is of, as in ``sanitize``.
        batch_size: samples a pass, at least 1. It bounds the memory: less than four times the model, itself included,
            and the activations of a batch. A model of up to four million parameters is traced, which takes four more.
        device: ``"auto"`` is the model's own; for another one, a copy of the model is used.

    Returns:
        ``(M, C)``, in that dtype, on the device.

    Raises:
        InputError: e.g. ``v is float32 of shape (4, 3); expected floats of shape (4, 2)``.
        ModelError: e.g. ``no logit depends on the parameters by a gradient; expected a model that is not detached and
            does not run under torch.no_grad()``, or ``the logits of one sample differ by 0.1 between two batches;
            expected logits that depend on the sample and the weights alone, not on other samples, random numbers or
            in-place state``.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> ntk_vector_product(model, torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])).tolist()
        [[5.0, 0.0]]
    """
    subject = Differentiated.of(model, trainable, batch_size, device)
    outputs = subject.outputs("inputs", inputs)
    weights = as_weights("v", v, outputs)
    seen = outputs if others is None else subject.outputs("others", others)
    return seen.change(outputs.gradient(weights))


def ntk_matrix(
    model: nn.Module,
    inputs: Any,
    others: Any = None,
    *,
    trainable: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
    max_bytes: int = _CHUNK,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Tensor:
    """``J_inputs @ J_others.T``, whole: of few samples, as ``N * C`` backward passes are made.

    Args:
        model, trainable, batch_size, device: as for ``ntk_vector_product``.
        inputs, others: as for ``ntk_vector_product``; ``others=None``: ``inputs``.
        max_bytes: of the rows of Jacobians held at once. At least one row of each is.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        ``(N * C, M * C)``: rows by sample, then by class.

    Raises:
        InputError: e.g. ``a kernel of 100000 x 100000 needs 40.00 GB, and cpu has 3.21 GB free; expected fewer samples,
            or products with vectors``.
        ModelError: as ``ntk_vector_product``.
    """
    most = as_count("max_bytes", max_bytes)
    subject = Differentiated.of(model, trainable, batch_size, device)
    rows = subject.outputs("inputs", inputs)
    columns = rows if others is None else subject.outputs("others", others)
    size = max(most // (2 * rows.n_parameters * rows.values.element_size()), 1)
    n, m = rows.values.numel(), columns.values.numel()
    needed = n * m * rows.values.element_size()
    check_memory(f"a kernel of {n} x {m}", needed, rows.values.device, "fewer samples, or products with vectors")
    found = rows.values.new_empty(n, m)
    with progress_bar("kernel", "row", n, progress) as bar:
        for first in range(0, n, size):
            last = min(first + size, n)
            some = rows.jacobian_rows(first, last)
            # The kernel of a set with itself is symmetric: the blocks left of the diagonal are there.
            begin = first if columns is rows else 0
            for other in range(begin, m, size):
                end = min(other + size, m)
                these = some if columns is rows and other == first else columns.jacobian_rows(other, end)
                block = some @ these.T
                found[first:last, other:end] = block
                if columns is rows:
                    found[other:end, first:last] = block.T
            bar.update(last - first)
    return found


# ---- Drift ----


def drift(
    model: nn.Module,
    train_inputs: Any,
    targets: Tensor,
    probe_inputs: Any,
    *,
    ridge: float | None = None,
    steps: int | None = None,
    rate: float | None = None,
    tolerance: float = _TOLERANCE,
    max_products: int = _MOST_PRODUCTS,
    trainable: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Drift:
    """``K_ST @ torch.linalg.solve(K_TT + ridge * eye, (targets - f(T)).flatten())``, by products with vectors.

    With ``steps``, that of as many steps of gradient descent on ``0.5 * (targets - f(T)).square().sum()`` in place of
    training to the end: ``K_ST @ sum((eye - rate * K_TT) ** s for s in range(steps)) @ (rate * residual)``.

    Args:
        model, trainable, batch_size, device: as for ``ntk_vector_product``.
        train_inputs: T, ``N`` samples as the model takes them: a tensor, a mapping of tensors, or a ``CleanSet``.
        targets: ``(N, C)`` floats, the logits to train for; or ``(N,)`` integers in ``[0, C)``, which stand for
            ``one_hot(targets, C) - 1 / C``.
        probe_inputs: S, ``M`` samples.
        ridge: at least 0; ``None``: 1e-3 of the mean eigenvalue of ``K_TT``, as estimated by 8 vectors of signs. With
            0, ``torch.linalg.pinv(K_TT)`` takes the place of the inverse.
        steps: at least 1; ``None``: training to the end.
        rate: of each step, above 0; ``None``: one over the largest eigenvalue of ``K_TT``. With ``steps`` only.
        tolerance: of the residual, relative, above 0.
        max_products: with ``K_TT``, at least 1.
        seed: of the signs, in ``[0, 2**63)``.
        progress: show a progress bar; ``None``: where stderr is a terminal.

    Returns:
        Drift.

    Raises:
        InputError: e.g. ``targets is int64 of shape (3,); expected 4 integers in [0, 10), or floats of shape (4, 10)``,
            or ``rate is given without steps; expected both, or neither for training to the end``.
        ModelError: as ``ntk_vector_product``.

    Example:
        >>> model = torch.nn.Linear(1, 2, bias=False).double()
        >>> _ = model.weight.data.zero_()
        >>> one, two = torch.ones(1, 1).double(), torch.full((1, 1), 2.0).double()
        >>> drift(model, one, torch.tensor([0]), two, ridge=0.0).change.tolist()
        [[1.0, -1.0]]
    """
    system = Descent.of(ridge, steps, rate)
    tolerance, most, seed = as_positive("tolerance", tolerance), as_count("max_products", max_products), as_seed(seed)
    subject = Differentiated.of(model, trainable, batch_size, device)
    train = subject.outputs("train_inputs", train_inputs, repeated=True)
    wanted = as_targets(targets, train)
    probe = subject.outputs("probe_inputs", probe_inputs)
    with progress_bar("drift", "product", most, progress) as bar:
        space = krylov_space(
            train, (wanted - train.values.double().cpu())[None], system, tolerance, most, seed, bar.update
        )
        return space.drifts(system, {"probe": probe})["probe"][0]


def trained_drift(
    model: nn.Module,
    train_inputs: Any,
    targets: Tensor,
    probe_inputs: Any,
    *,
    steps: int,
    rate: float,
    trainable: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Tensor:
    """The drift that is: a copy of the model takes the steps, and its logits are compared.

    Each step is one of gradient descent on ``0.5 * (targets - f(T)).square().sum()`` over all samples, in eval mode.

    Args:
        model, train_inputs, targets, probe_inputs, trainable, batch_size, device, progress: as for ``drift``.
        steps: at least 1.
        rate: above 0.

    Returns:
        ``(M, C)`` float64 on the CPU: the change of the logits.

    Raises:
        InputError, ModelError: as ``drift``.
    """
    steps, rate = as_count("steps", steps), as_positive("rate", rate)
    subject = Differentiated.of(model, trainable, batch_size, device)
    if subject.model is model:
        subject = subject.copied()
    train = subject.outputs("train_inputs", train_inputs)
    wanted = as_targets(targets, train)
    before = subject.outputs("probe_inputs", probe_inputs).values.double().cpu()
    with progress_bar("train", "step", steps, progress) as bar:
        for _ in range(steps):
            residual = wanted.to(train.values) - train.values
            moved = train.gradient(residual)
            with torch.no_grad():
                for name, value in moved.items():
                    subject.model.get_parameter(name).add_(value, alpha=rate)
            del moved  # as large as the model: before the next one is made
            train = subject.outputs("train_inputs", train_inputs, checked=False)
            bar.update()
    return subject.outputs("probe_inputs", probe_inputs, checked=False).values.double().cpu() - before


def label_targets(logits: Tensor, labels: Tensor, scheme: str, *, seed: int = 0, scale: float | None = None) -> Tensor:
    """``logits.mean(1, True) + scale * (one_hot(drawn, C) - 1 / C)``, where ``drawn`` are labels by the scheme.

    The mean over the classes stays, as no answer depends on it. The scale is that of the logits, so that true labels
    are near to what the model gives already.

    Args:
        logits: ``(N, C)`` floats: the model's.
        labels: ``(N,)`` integers in ``[0, C)``: the true ones.
        scheme: one of ``SCHEMES``; ``"max_entropy"`` draws none, and its targets are the mean alone.
        seed: of the draw, in ``[0, 2**63)``.
        scale: above 0; ``None``: of least squares between the logits and the targets of the true labels, at least 1e-3.
            It is the mean of how far the true label's logit is above those of the other classes.

    Returns:
        ``(N, C)`` float64 on the CPU.

    Raises:
        InputError: e.g. ``scheme is 'random'; expected one of true, wrong, uniform, max_entropy``, or ``logits are
            float32 of shape (4,) and labels int64 of shape (4,); expected (N, C) floats and (N,) integers``.

    Example:
        >>> label_targets(torch.tensor([[3.0, 1.0]]), torch.tensor([1]), "true", scale=4.0).tolist()
        [[0.0, 4.0]]
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme is {short(scheme)}; expected one of {', '.join(SCHEMES)}")
    if (
        logits.ndim != 2
        or not logits.is_floating_point()
        or labels.shape != logits.shape[:1]
        or not are_integers(labels)
    ):
        raise InputError(
            f"logits are {described(logits)} and labels {described(labels)}; expected (N, C) floats and (N,) integers"
        )
    values, labels = logits.detach().double().cpu(), labels.cpu().long()
    n, num_classes = values.shape
    check_in_range("labels", labels, num_classes)
    mean = values.mean(1, keepdim=True)
    if scheme == "max_entropy":
        return mean.expand(n, num_classes).clone()

    def centered(drawn: Tensor) -> Tensor:
        return F.one_hot(drawn, num_classes).double() - 1 / num_classes

    if scale is None:
        # Least squares: a centered one-hot row has the square 1 - 1 / C.
        best = float(((values - mean) * centered(labels)).sum() / (n * (1 - 1 / num_classes)))
        scale = max(best, 1e-3)
    scale = as_positive("scale", scale)
    generator = torch.Generator().manual_seed(as_seed(seed))
    drawn = labels
    if scheme == "uniform":
        drawn = torch.randint(num_classes, (n,), generator=generator)
    elif scheme == "wrong":
        drawn = (labels + torch.randint(1, num_classes, (n,), generator=generator)) % num_classes
    return mean + scale * centered(drawn)


# ---- Forgetting ----


@dataclass(frozen=True)
class SchemeForgetting:
    """Of one scheme of labels and one set of probes; means over the draws.

    Attributes:
        to_the_end: mean over the samples of the squared drift of training to the end.
        by_steps: the same by number of steps.
        share: ``to_the_end`` over the mean of the squared logits, centered: about how much of them goes.
        share_of_answers_changed: of training to the end.
        drifts: of each draw.
    """

    to_the_end: float
    by_steps: Mapping[int, float]
    share: float
    share_of_answers_changed: float
    drifts: tuple[Drift, ...] = field(repr=False)


@dataclass(frozen=True)
class Forgetting:
    """What training on labels of each scheme is predicted to do to each set of probes.

    Attributes:
        schemes: by scheme, then by name of the probes.
        ridge, largest_eigenvalue, n_products, residual: as of ``Drift``.
        rate: of the steps: one over the largest eigenvalue.
        n_train: samples.
    """

    schemes: Mapping[str, Mapping[str, SchemeForgetting]]
    ridge: float
    largest_eigenvalue: float
    n_products: int
    residual: float
    rate: float
    n_train: int


def forgetting(
    model: nn.Module,
    train: CleanSet,
    probes: Any,
    *,
    kernel: str = "exact",
    schemes: Sequence[str] = SCHEMES,
    n_draws: int = 1,
    steps: Sequence[int] = (1, 5, 20),
    scale: float | None = None,
    ridge: float | None = None,
    tolerance: float = _TOLERANCE,
    max_products: int = _MOST_PRODUCTS,
    trainable: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Forgetting:
    """The drift of each probe under each scheme of labels; all are solved in one space.

    Args:
        model, trainable, batch_size, device: as for ``ntk_vector_product``.
        train: labeled samples, a few dozen: time grows with their number times that of the products.
        probes: samples as the model takes them, or a mapping of names to such, e.g. of clean and triggered ones. A
            mapping that has the name of a parameter of the model's forward is one set of samples.
        kernel: ``"exact"``, of all parameters in ``trainable``; or ``"last_layer"``, of the last linear layer alone:
            ``(h @ h.T + 1) (x) eye(C)`` of its inputs ``h``, which takes one forward pass.
        schemes: some of ``SCHEMES``.
        n_draws: of random labels, at least 1.
        steps: numbers of steps, at least 1 each, for ``by_steps``.
        scale: of the targets; see ``label_targets``.
        ridge, tolerance, max_products, progress: as for ``drift``.
        seed: of labels and signs, in ``[0, 2**63)``.

    Returns:
        Forgetting.

    Raises:
        InputError, ModelError: as ``drift``.

    Example:
        >>> import seamfast
        >>> digits = seamfast.load("digits", split="test")
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> found = forgetting(model, digits.subset(range(20)), digits.subset(range(20, 40)))
        >>> sorted(found.schemes["wrong"])
        ['probes']
    """
    n_draws = as_count("n_draws", n_draws)
    if kernel not in KERNELS:
        raise InputError(f"kernel is {short(kernel)}; expected one of {', '.join(KERNELS)}")
    for scheme in schemes:
        if scheme not in SCHEMES:
            raise InputError(f"schemes hold {short(scheme)}; expected names in {', '.join(SCHEMES)}")
    if not schemes:
        raise InputError(f"schemes are empty; expected names in {', '.join(SCHEMES)}")
    counts = [as_count("steps", count) for count in steps]
    check_clean_set("train", train)
    system = Descent.of(ridge, None, None)
    tolerance, most, seed = as_positive("tolerance", tolerance), as_count("max_products", max_products), as_seed(seed)
    subject = Differentiated.of(model, trainable, batch_size, device)
    outputs = subject.outputs("train", train, repeated=kernel == "exact")
    if int(train.labels.max()) >= outputs.num_classes:
        largest, n = int(train.labels.max()), outputs.num_classes
        raise InputError(f"labels hold {largest}; expected integers in [0, {n}) for the model's {n} logits")
    seen = {name: subject.outputs(f"probes[{name!r}]", one) for name, one in named_probes(model, probes).items()}
    draws = {scheme: n_draws if scheme in ("wrong", "uniform") else 1 for scheme in schemes}
    targets = [
        label_targets(outputs.values, train.labels, scheme, seed=seed + draw, scale=scale)
        for scheme, n in draws.items()
        for draw in range(n)
    ]
    with progress_bar("forgetting", "product", most, progress) as bar:
        residuals = torch.stack(targets) - outputs.values.double().cpu()
        space: Space
        if kernel == "last_layer":
            space = HeadSpace.of(outputs, residuals, system)
        else:
            space = krylov_space(outputs, residuals, system, tolerance, most, seed, bar.update)
        descents = {count: Descent(None, count, space.default_rate) for count in counts}
        ends = space.drifts(system, seen)
        early = {count: space.drifts(descent, seen) for count, descent in descents.items()}
    found: dict[str, dict[str, SchemeForgetting]] = {}
    first = 0
    for scheme, n in draws.items():
        of_scheme = slice(first, first + n)
        found[scheme] = {
            name: _of_scheme(ends[name][of_scheme], {count: d[name][of_scheme] for count, d in early.items()})
            for name in seen
        }
        first += n
    return Forgetting(
        found,
        space.ridge,
        space.largest_eigenvalue,
        space.n_products,
        space.residual,
        space.default_rate,
        len(train),
    )


def _of_scheme(ends: Sequence[Drift], early: Mapping[int, Sequence[Drift]]) -> SchemeForgetting:
    def mean(drifts: Sequence[Drift]) -> float:
        return sum(one.forgetting / len(one.logits) for one in drifts) / len(drifts)

    logits = ends[0].logits
    size = float((logits - logits.mean(1, keepdim=True)).square().sum(1).mean())
    at_end = mean(ends)
    changed = sum(one.share_of_answers_changed for one in ends) / len(ends)
    by_steps = {count: mean(drifts) for count, drifts in early.items()}
    return SchemeForgetting(at_end, by_steps, at_end / max(size, 1e-30), changed, tuple(ends))
