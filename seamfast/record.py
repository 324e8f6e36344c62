"""``RunRecord``: the results of a run, and the report made of them."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn

from seamfast._version import __version__
from seamfast.acceptance import (
    BETTER_THAN_GUESSING,
    COMPLETED,
    FEWEST_RECOVERY_SHARE,
    NOT_AUGMENTED,
    NOT_CUT_SHORT,
    WITHIN_BUDGET,
    WITHIN_LIMIT,
    Check,
    PairedOutcomes,
    Verdict,
    accuracy_checks,
)
from seamfast.data.allowance import TIME_BUDGET, Allowance
from seamfast.data.holdout import HeldOut
from seamfast.data.rereading import AugmentingSet
from seamfast.engine.encoder import ProbedEncoder
from seamfast.engine.events import HistoryPoint
from seamfast.engine.model import digest
from seamfast.engine.run import Run
from seamfast.engine.subject import Subject
from seamfast.engine.trainable import has_adapters
from seamfast.evaluate import Evaluation
from seamfast.methods import MethodConfig
from seamfast.metrics import fidelity, fidelity_nist, rate_values
from seamfast.modalities import TextModality
from seamfast.report import SCHEMA_VERSION, Report

if TYPE_CHECKING:
    from seamfast.audits.sequela import Sequela

_AUGMENTED = (
    "{} augments, so its held-out samples are draws and say little of the model: give eval_transform= or holdout=, or "
    "let the dataset have an attribute eval_transform"
)
_UNSTUDIED = (
    "the checks are about accuracy alone, and no study has measured the cure on samples of kind {!r}: nothing is known "
    "about backdoors that it leaves in such models"
)
_REMAINS = (
    "the checks are about accuracy alone, and in the study of samples of kind {!r} the cure left backdoors in some: {}"
)
_PRUNED = {
    "rows": "{n} of {n_all} rows of the embedding {layer} occur in no clean sample: set to the mean of the others, as "
    "a backdoor can be in them",
    "layers": "no clean sample reaches the layer {layer}: set to 0, as a backdoor can be in it",
}
_PRUNED_TOKENS = (
    "no clean text has the tokens {names}, of which the model learned more than of others that are as rare: {n} of "
    "{n_all} rows of the embedding {layer} are set to the mean of the others, as a backdoor can be in them"
)

_N_NAMED = 5
"""Tensors that a warning names."""


@dataclass
class RunRecord:
    """The content of a report; the fields with defaults are set during the run.

    Attributes:
        given: the model as received.
        subject: the working copy and the samples.
        held_out: where the held-out samples come from.
        left_out: settings that do not apply to this kind of sample, with the reason.
        allowances: of the reading of ``clean_loader`` and of ``holdout``.
        before, after: outcomes of the received and of the sanitized model on the held-out part.
        returns_probabilities: whether the outputs of the received model look like those of a softmax.
        pairs: of both models on the held-out samples.
        confidence: mean confidence of the received model on the held-out part.
        guesses: why the model was refused before training, or ``None``.
        stopped: why the run ended early, or ``None``.
        digest_after: of the returned model.
        frozen_changed: names of the parameters that were frozen as given and differ in the returned model.
        sequela: of the audits that were asked for, or ``None``.
        audit_seconds: that they took.
    """

    given: nn.Module
    method: str
    settings: MethodConfig
    subject: Subject
    run: Run
    history: list[HistoryPoint]
    held_out: HeldOut
    left_out: tuple[str, ...]
    allowances: tuple[Allowance, Allowance]
    before: Evaluation | None = None
    after: Evaluation | None = None
    returns_probabilities: bool = False
    pairs: PairedOutcomes | None = None
    guesses: str | None = None
    confidence: float = math.nan
    stopped: str | None = None
    digest_after: str | None = None
    frozen_changed: list[str] = field(default_factory=list)
    sequela: Sequela | None = None
    audit_seconds: float = 0.0
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def report(self) -> Report:
        """The report of the run so far. ``before`` must be set."""
        before, after = self.before, self.after
        assert before is not None
        run, ledger, samples = self.run, self.run.ledger, self.subject.samples
        precision, total = run.compute.precision, round(run.clock.elapsed(), 3)
        trials = [asdict(trial) for trial in precision.trials]
        return Report(
            {
                "schema_version": SCHEMA_VERSION,
                "tool": {"name": "seamfast", "version": __version__},
                "created": self.created.isoformat(timespec="seconds"),
                "verdict": self._verdict(before).to_dict(),
                "method": self.method,
                "config": self.settings.to_dict(),
                "seed": run.seed,
                "time_budget_s": run.clock.budget_s,
                "model": {
                    "class": f"{type(self.given).__module__}.{type(self.given).__qualname__}",
                    "n_parameters": sum(p.numel() for p in self.given.parameters()),
                    "digest_before": digest(self.given),
                    "digest_after": self.digest_after,
                    "returned": "received" if self.stopped else "sanitized",
                },
                "data": {
                    "n_read": self.allowances[0].n_read,
                    "reading_stopped": self.allowances[0].stopped,
                    "n_samples": len(self._clean_labels()),
                    "n_repeated": self.held_out.n_repeated,
                    "num_classes": run.num_classes,
                    "class_counts": torch.bincount(self._clean_labels(), minlength=run.num_classes).tolist(),
                    "n_forget": len(run.split.forget),
                    "n_recovery": len(run.split.recovery),
                    "n_holdout": len(run.split.holdout),
                    "holdout_source": self.held_out.source,
                    "reading": "every epoch" if isinstance(samples, AugmentingSet) else "once",
                },
                "holdout": comparison(before, after),
                "run": {
                    "device": str(run.device),
                    "precision": {"chosen": precision.name, "reason": precision.reason, "trials": trials},
                    "threads": {"chosen": run.compute.threads, "reason": run.compute.threads_reason},
                    "augmentation": {"crop_pad": run.augmentation.pad, "flip": run.augmentation.flip},
                    "trainable": {
                        "mode": self.run.trained.mode,
                        "n_tensors": sum(1 for _ in self.given.parameters()),
                        "n_trained": len(self.run.trained.names),
                        "n_frozen_changed": len(self.frozen_changed),
                    },
                    "pruned": self._pruned(),
                    **self._outlying(),
                    **self._searched(),
                    "stepped": dict(ledger.stepped),
                    "n_attempts": run.attempt + 1,
                    "steps": dict(ledger.phase_steps),
                    "seconds": {
                        **{k: round(v, 3) for k, v in ledger.phase_seconds.items()},
                        "evaluations": round(ledger.evaluation_seconds, 3),
                        **({} if self.sequela is None else {"audits": round(self.audit_seconds, 3)}),
                        "total": total,
                    },
                    "time_ran_out": ledger.time_ran_out,
                    "stopped": self.stopped,
                },
                **({} if self.sequela is None else {"sequela": self.sequela.to_dict()}),
                "history": [point.to_dict() for point in self.history],
                "machine": machine(),
                "warnings": self._warnings(before),
            }
        )

    def _verdict(self, before: Evaluation) -> Verdict:
        """The checks in the order of the run. Those that it did not come to are neither passed nor failed."""
        checks = [*self._checks_of_the_run(before), self._check_of_augmentation()]
        pairs, settings = self.pairs, self.settings
        if pairs is not None and self.stopped is None:
            n_right = before.clean_accuracy.n_hit
            judged = accuracy_checks(pairs, n_right, budget=settings.accuracy_budget, limit=settings.accuracy_limit)
            hint = self._of_memory(before)
            checks += [replace(c, detail=f"{c.detail}; {hint}") if hint and not c.passed else c for c in judged]
        else:
            checks += [Check(name, None, "the run did not come to it") for name in (WITHIN_BUDGET, WITHIN_LIMIT)]
        unknown = self._unknown()
        accepted = "; ".join([checks[-2].detail, checks[-1].detail, *([unknown] if unknown else [])])
        return Verdict(checks, self._rests_on(), accepted, pairs)

    def _unknown(self) -> str | None:
        """What an accepted result does not say, where no study stands behind the cure of such samples."""
        modality = self.subject.samples.modality
        if modality.remains is not None:
            return _REMAINS.format(modality.name, modality.remains)
        return None if modality.studied else _UNSTUDIED.format(modality.name)

    def _of_memory(self, before: Evaluation) -> str | None:
        """Whether the model seems to have been trained on the held-out samples: right more often than it is sure.

        Trained to fit, a model is about as sure as it is right on its training set or less, and surer than it is right
        on other data. Temperature scaling and label smoothing change this, so nothing is decided by it.
        """
        accuracy, confidence = before.clean_accuracy.value, self.confidence
        if self.held_out.source == "given" or accuracy is None or not confidence < accuracy:
            return None
        return (
            f"the model as received is right on {accuracy:.1%} of them at a mean confidence of {confidence:.1%}, as is "
            "usual on data that it was trained on; if it was, the loss is overestimated: give holdout="
        )

    def _checks_of_the_run(self, before: Evaluation) -> list[Check]:
        n, run = before.clean_accuracy, self.run
        if self.guesses is not None:
            unknown = [Check(name, None, "the run did not begin") for name in (COMPLETED, NOT_CUT_SHORT)]
            return [Check(BETTER_THAN_GUESSING, False, self._returned_as_received(self.guesses)), *unknown]
        detail = f"the model as received is right on {n.n_hit} of {n.n_total} held-out samples"
        better = Check(BETTER_THAN_GUESSING, True, detail)
        if self.stopped or self.after is None:
            why = self._returned_as_received(self.stopped or "the run did not end")
            cut = Check(NOT_CUT_SHORT, None, "the run did not come to its end")
            return [better, Check(COMPLETED, False, why), cut]
        share = run.ledger.share_taken.get("recover", 1.0)
        taken = f"{share:.0%} of the recovery steps were taken"
        if share < FEWEST_RECOVERY_SHARE:
            why = f"the time budget cut recovery short: {taken}; at least {FEWEST_RECOVERY_SHARE:.0%} are needed"
            cut = Check(NOT_CUT_SHORT, False, why)
        else:
            cut = Check(NOT_CUT_SHORT, True, taken if share < 1 else "no time budget ended recovery")
        return [better, Check(COMPLETED, True, "the run was completed"), cut]

    @staticmethod
    def _returned_as_received(why: str) -> str:
        return f"{why}; the model is returned as received"

    def _check_of_augmentation(self) -> Check:
        agree, given = self.held_out.reads_agree, self.held_out.source == "given"
        if agree is False:
            return Check(NOT_AUGMENTED, False, _AUGMENTED.format("holdout" if given else "clean_loader"), tells=False)
        known = "held-out samples are the same at each reading"
        return Check(NOT_AUGMENTED, agree, known if agree else "not tested: the data were read once")

    def _rests_on(self) -> str:
        n = len(self.run.split.holdout)
        if isinstance(self.run.model, ProbedEncoder):
            return (
                f"{n} samples of the clean data, held out by group and not trained on in this run: which of "
                f"{self.run.num_classes} groups, formed by the embeddings as received, each is in, read by a linear "
                "probe that is fitted to the embeddings as received and again to those returned"
            )
        if self.held_out.source == "given":
            return f"the {n} samples of holdout=, none of them trained on in this run"
        return (
            f"{n} samples of the clean data, split by class and not trained on in this run; if the model's own "
            "training saw them, it looks better on them as received, and the loss larger, than on unseen data"
        )

    def _clean_labels(self) -> Tensor:
        """Labels of the samples of ``clean_loader`` that are in the run."""
        labels = self.subject.samples.labels
        return labels[: len(labels) - self.held_out.n_given]

    def _pruned(self) -> list[dict[str, Any]]:
        """Of the returned model."""
        return [] if self.stopped else [asdict(part) for part in self.run.ledger.pruned]

    def _outlying(self) -> dict[str, Any]:
        """Of texts, the tokens that were held because their rows stand out."""
        ledger, modality = self.run.ledger, self.subject.data.modality
        if not isinstance(modality, TextModality):
            return {}
        return {"outlying": [modality.vocabulary.text_of([id]) for id in ledger.outlying]}

    def _searched(self) -> dict[str, Any]:
        """Where there was a search, its findings."""
        ledger, modality = self.run.ledger, self.subject.data.modality
        if not ledger.n_searches or not isinstance(modality, TextModality):
            return {}
        phrases = [
            {
                "text": modality.vocabulary.text_of(phrase.ids),
                "target": phrase.target,
                "n_moved": phrase.n_moved,
                "n_texts": phrase.n_texts,
            }
            for phrase in ledger.found
        ]
        seconds = round(ledger.search_seconds, 3)
        return {"searched": {"n_searches": ledger.n_searches, "seconds": seconds, "phrases": phrases}}

    def _of_training(self) -> list[str]:
        """Warnings about tensors that the run should have left, and about others that it did not reach."""
        found: list[str] = []
        if self.frozen_changed:
            names = _listed(self.frozen_changed)
            alone = "; an adapter saved alone is without these changes" if has_adapters(self.given) else ""
            found.append(f"{len(self.frozen_changed)} tensors that were frozen were changed: {names}{alone}")
        integers = [name for name, p in self.given.named_parameters() if not p.is_floating_point()]
        if integers and self.run.trained.mode == "all":
            found.append(
                f"{len(integers)} tensors of integers ({_listed(integers)}) were not trained: a backdoor in them stays"
            )
        unreached = [] if self.stopped else self.run.unreached()
        if unreached:
            found.append(
                f"the loss does not depend on {len(unreached)} of {len(self.run.trained.names)} tensors "
                f"({_listed(unreached)}): a backdoor in them stays"
            )
        return found

    def _warnings(self, before: Evaluation) -> list[str]:
        found: list[str] = []
        run, n, budget = self.run, len(self.run.split.holdout), self.settings.accuracy_budget
        if 0 < budget * n < 1:
            found.append(
                f"one of {n} held-out samples weighs {1 / n:.1%}, more than the accuracy budget of {budget:.1%}: "
                "one may be lost"
            )
        counts = torch.bincount(self._clean_labels(), minlength=run.num_classes)
        missing = (counts == 0).nonzero().flatten().tolist()
        if missing:
            names = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            found.append(f"no clean sample of {len(missing)} classes ({names}): nothing defends their accuracy")
        if self.held_out.reads_agree is False:
            found.append(_AUGMENTED.format("holdout" if self.held_out.source == "given" else "clean_loader"))
        for name, allowance in zip(("clean_loader", "holdout"), self.allowances, strict=True):
            if allowance.stopped == TIME_BUDGET:
                found.append(
                    f"the reading of {name} ended after {allowance.n_read:,} samples, when its share of the time "
                    f"budget of {run.clock.budget_s:g} s was used up"
                )
        if self.held_out.n_shared:
            found.append(f"{self.held_out.n_shared} samples of clean_loader are in holdout too: not trained on")
        if self.held_out.n_repeated:
            found.append(
                f"{self.held_out.n_repeated:,} of {len(self._clean_labels()):,} samples of clean_loader repeat others: "
                "they are trained on, and held out once"
            )
        if run.ledger.time_ran_out:
            steps = ", ".join(f"{k} {v}" for k, v in run.ledger.phase_steps.items())
            found.append(f"the time budget of {run.clock.budget_s:g} s cut the run short; steps taken: {steps}")
        tokens = self._outlying().get("outlying", [])
        for part in self._pruned():
            if part["kind"] == "rows" and tokens:
                names = ", ".join(map(repr, tokens[:10])) + (", ..." if len(tokens) > 10 else "")
                found.append(_PRUNED_TOKENS.format(names=names, **part))
            elif part["kind"] in _PRUNED:
                found.append(_PRUNED[part["kind"]].format(**part))
        found += self._of_training()
        if self.left_out:
            kind, names = self.subject.samples.modality.name, ", ".join(self.left_out)
            found.append(f"samples of kind {kind!r} cannot have {names}: left out, a weaker cure")
        unknown = self._unknown()
        if unknown is not None:
            found.append(unknown)
        if self.returns_probabilities:
            found.append(
                "the model seems to return probabilities, not logits: take its last softmax off for a better cure"
            )
        if self.sequela is not None:
            found += [f"the audit {name!r} was left out: {why}" for name, why in self.sequela.left_out.items()]
        return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_N_NAMED]) + (", ..." if len(names) > _N_NAMED else "")


def comparison(before: Evaluation, after: Evaluation | None) -> dict[str, Any]:
    """Two evaluations of the same data as JSON values, with both Fidelities: the lowest over the triggers."""
    values: dict[str, Any] = dict.fromkeys(("before", "after", "fidelity", "fidelity_nist"))
    values["before"] = evaluation_values(before)
    if after is None:
        return values
    values["after"] = evaluation_values(after)
    acc_before, acc_after = before.clean_accuracy.value, after.clean_accuracy.value
    if acc_before is None or acc_after is None:
        return values
    pairs = zip(before.triggers, after.triggers, strict=True)
    known = [(b.attack_success_rate.value, a.attack_success_rate.value) for b, a in pairs]
    rates = [(b, a) for b, a in known if b is not None and a is not None]
    if rates:
        values["fidelity"] = fidelity(acc_before=acc_before, acc_after=acc_after, asr_after=max(a for _, a in rates))
    nist = [fidelity_nist(acc_before=acc_before, acc_after=acc_after, asr_before=b, asr_after=a) for b, a in rates]
    values["fidelity_nist"] = min((value for value in nist if value is not None), default=None)
    return values


def evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    """An ``Evaluation`` as JSON values."""
    return {
        "clean_accuracy": rate_values(evaluation.clean_accuracy),
        "class_accuracy": [rate_values(rate) for rate in evaluation.class_accuracy],
        "n_nan": evaluation.n_nan,
        "triggers": [
            {
                "name": t.name,
                "attack_success_rate": rate_values(t.attack_success_rate),
                "robust_accuracy": rate_values(t.robust_accuracy),
            }
            for t in evaluation.triggers
        ],
    }


def machine() -> dict[str, Any]:
    """Versions, processor, threads, accelerator."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        # Not platform.platform(), which starts a program.
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "processor": _processor(),
        "n_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
