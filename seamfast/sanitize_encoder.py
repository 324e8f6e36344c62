"""``sanitize_encoder``: ``sanitize`` of a module that returns embeddings, on samples without labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.checks import as_seed, check_time_budget
from seamfast.data import CleanSet
from seamfast.data.adapters import as_clean_set
from seamfast.data.holdout import HeldOut
from seamfast.data.unlabelled import as_unlabelled
from seamfast.engine.encoder import ProbedEncoder, grouped
from seamfast.engine.host import in_use, seeded
from seamfast.engine.model import WorkingCopy, device_of, digest, resolve_device
from seamfast.engine.run import Clock
from seamfast.engine.subject import as_called
from seamfast.engine.trainable import choose_trainable
from seamfast.errors import ConfigError, InputError, ModelError
from seamfast.methods import SeamEncoderConfig
from seamfast.metrics import Rate, rate_values
from seamfast.models.linear_probe import embed
from seamfast.report import Report
from seamfast.sanitize import SanitizeResult, sanitize, split_of

_SAMPLES_A_GROUP = 10
"""At least, on average: fewer say little of a group in the held-out part."""
_NEIGHBORS = 5
"""Or as many as the class has that has the fewest, less one."""
_FEWEST_SAMPLES = 20
_LOW = 0.05
"""Quantile of the agreement that the report holds beside the mean."""
_LEAST_S = 1e-3
"""Of a time budget that is used up before the first step."""


def sanitize_encoder(
    encoder: nn.Module,
    unlabelled: Any,
    *,
    labelled: Any = None,
    config: SeamEncoderConfig | None = None,
    trainable: str | Sequence[str] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    threads: int | None = None,
    deterministic: bool = False,
    compile: bool = False,
    time_budget_s: float | None = None,
    progress: bool | None = None,
    callbacks: Iterable[Any] = (),
) -> SanitizeResult:
    """``copy.deepcopy(encoder)``, trained to forget any backdoor and then to agree with itself as received, where no
    pattern lies on the input.

    The samples are divided into groups by their embeddings as received, and a linear probe of the groups, fitted to the
    embeddings before and again after, measures what a classifier on top of the encoder can lose: its accuracy on a
    fifth of the samples, which is held out, decides as that of a classifier does in ``sanitize``. No label is needed,
    and no downstream task.

    Args:
        encoder: any ``nn.Module`` that returns embeddings ``(B, D)``: a tensor, or an object or dict with
            ``embedding``, ``pooler_output`` or ``last_hidden_state``, of which the first token counts. Not modified.
        unlabelled: clean samples of the kind that the encoder was trained on, at least 20: a tensor, array or mapping
            of them, a ``Dataset``, a ``DataLoader``, or a ``seamfast.CleanSet``, whose labels are not read. Uint8
            images with their normalization come in a ``CleanSet``.
        labelled: a few labeled samples of a downstream task, in any form that ``sanitize`` takes. Nothing is trained on
            them: the accuracy of their nearest neighbors, before and after, is in the report.
        config: ``None``: the defaults for the kind of sample.
        trainable, seed, device, precision, threads, deterministic, compile, time_budget_s, progress, callbacks: as of
            ``sanitize``.

    Returns:
        SanitizeResult: ``.model`` is the sanitized encoder; check ``.accepted`` before using it. The outcomes in the
        report are those of the probe; its section ``encoder`` has the agreement of the embeddings.

    Raises:
        InputError, ConfigError, ModelError: the encoder or the data cannot be used; the message names the value
            received and the value expected. Nothing has been changed.
        SanitizeInterrupted: on Ctrl-C.

    Example:
        >>> import torch, seamfast
        >>> images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8))
        >>> result = seamfast.sanitize_encoder(encoder, images, seed=0)
        >>> result.model(images).shape, result.report["encoder"]["dimension"]
        (torch.Size([64, 8]), 8)
    """
    if not isinstance(encoder, nn.Module):
        raise InputError(f"encoder is a {type(encoder).__name__}; expected a torch.nn.Module")
    if config is not None and not isinstance(config, SeamEncoderConfig):
        raise ConfigError(f"config is a {type(config).__name__}; expected a SeamEncoderConfig")
    check_time_budget(time_budget_s)
    choose_trainable(encoder, trainable)
    clock, seed, target = Clock(time_budget_s), as_seed(seed), resolve_device(device, encoder)
    with seeded(seed, target), torch.inference_mode(False), in_use():
        samples = as_called(encoder, as_unlabelled(unlabelled))
        settings = config or SeamEncoderConfig.of(samples.modality)
        if len(samples) < _FEWEST_SAMPLES:
            raise InputError(f"unlabelled holds {len(samples)} samples; expected at least {_FEWEST_SAMPLES}")
        few = None if labelled is None else _labeled(encoder, labelled)
        probed, samples, held_out = _probed(encoder, samples, settings, seed, target)
    result = sanitize(
        probed,
        samples,
        method="seam_encoder",
        config=settings,
        trainable=_under_probe(trainable),
        seed=seed,
        device=target,
        precision=precision,
        threads=threads,
        deterministic=deterministic,
        compile=compile,
        time_budget_s=None if time_budget_s is None else max(clock.deadline - clock.elapsed(), _LEAST_S),
        progress=progress,
        callbacks=callbacks,
    )
    returned = result.model
    assert isinstance(returned, ProbedEncoder)
    with seeded(seed, target), in_use():
        held = samples.subset(held_out)
        compared = {**_agreement(probed, returned, held), "neighbors": few and _of_neighbors(probed, returned, few)}
    report = Report(result.report)
    report["time_budget_s"] = time_budget_s
    report["model"] = report["model"] | {
        "class": f"{type(encoder).__module__}.{type(encoder).__qualname__}",
        "digest_before": digest(encoder),
        "digest_after": digest(returned.encoder),
    }
    report["encoder"] = {"dimension": len(probed.center), "n_groups": len(probed.bias), **compared}
    return SanitizeResult(returned.encoder, report, result.history, result.accepted, result.recovery)


def _under_probe(trainable: str | Sequence[str] | None) -> str | list[str] | None:
    """Names and patterns of the encoder's parameters as those of a ``ProbedEncoder``."""
    if trainable is None or isinstance(trainable, str):
        return trainable
    return [f"encoder.{pattern}" for pattern in trainable]


def _probed(
    encoder: nn.Module, samples: CleanSet, settings: SeamEncoderConfig, seed: int, device: torch.device
) -> tuple[ProbedEncoder, CleanSet, Tensor]:
    """The encoder under a probe of the groups of its samples, fitted to the recovery part; the samples with their
    groups as labels; and the indices of those that will be held out."""
    embeddings = embed(WorkingCopy(encoder, device).model, samples)
    if not bool(torch.isfinite(embeddings).all()):
        raise ModelError("the encoder returned NaN or Inf on clean data; expected finite embeddings")
    standardized = ProbedEncoder(encoder, embeddings, 2).standardized(embeddings)
    groups = grouped(standardized, min(settings.n_groups, len(samples) // _SAMPLES_A_GROUP), seed).cpu()
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        raise ModelError("the encoder gives all samples one embedding; expected different ones")
    samples = CleanSet(samples.inputs, groups, num_classes=n_groups, modality=samples.modality)
    split = split_of(samples, HeldOut("split", True), settings, seed)
    home = device_of(encoder)
    probed = ProbedEncoder(encoder, embeddings.to(home), n_groups)
    probed.fit(standardized[split.recovery.to(device)].to(home), groups[split.recovery].to(home))
    probed.training = encoder.training  # not train(), which sets that of all modules
    return probed, samples, split.holdout


def _labeled(encoder: nn.Module, labelled: Any) -> CleanSet:
    """The labeled samples as the encoder takes them."""
    try:
        samples = as_clean_set(labelled)
    except InputError as error:
        raise type(error)(str(error).replace("clean_loader", "labelled")) from error
    n_each = samples.labels.bincount()
    n_each = n_each[n_each > 0]
    if len(n_each) < 2 or int(n_each.min()) < 2:
        raise InputError(
            f"labelled holds {len(n_each)} classes, {int(n_each.min()) if len(n_each) else 0} samples of the smallest; "
            "expected at least two of each of two"
        )
    return as_called(encoder, samples)


def _agreement(received: ProbedEncoder, returned: ProbedEncoder, held: CleanSet) -> dict[str, Any]:
    """Of the embeddings of held-out samples; and what the probe of the received encoder makes of those returned."""
    before, after = embed(received, held).cpu(), embed(returned, held).cpu()
    cosines = F.cosine_similarity(before, after, dim=1)
    weight, bias = received.weight.float().cpu(), received.bias.float().cpu()
    n_right = int((F.linear(after, weight, bias).argmax(1) == held.labels).sum())
    return {
        "agreement": {"mean": float(cosines.mean()), "low": float(cosines.quantile(_LOW)), "n": len(held)},
        "accuracy_of_received_probe": rate_values(Rate(n_right, len(held))),
    }


def _of_neighbors(received: ProbedEncoder, returned: ProbedEncoder, few: CleanSet) -> dict[str, Any]:
    """How many labeled samples have the label of most of their nearest neighbors, before and after."""
    n_each = few.labels.bincount()
    k = min(_NEIGHBORS, int(n_each[n_each > 0].min()) - 1)
    values: dict[str, Any] = {"k": k}
    for name, encoder in (("before", received), ("after", returned)):
        rows = F.normalize(embed(encoder, few).cpu())
        similarity = (rows @ rows.T).fill_diagonal_(-torch.inf)
        votes = F.one_hot(few.labels[similarity.topk(k, dim=1).indices], len(n_each)).sum(1)
        values[name] = rate_values(Rate(int((votes.argmax(1) == few.labels).sum()), len(few)))
    return values
