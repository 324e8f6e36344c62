"""``RunRecord``: the results of a run, and the report made of them."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy
import torch
from torch import nn

from seamfast._version import __version__
from seamfast.data.rereading import AugmentingSet
from seamfast.engine.events import HistoryPoint
from seamfast.engine.model import digest
from seamfast.engine.run import Run, n_lost_allowed
from seamfast.engine.subject import Subject
from seamfast.evaluate import Evaluation
from seamfast.methods import MethodConfig
from seamfast.metrics import Rate, fidelity, fidelity_nist
from seamfast.report import SCHEMA_VERSION, Report


@dataclass
class RunRecord:
    """The content of a report; the fields with defaults are set during the run.

    Attributes:
        given: the model as received.
        subject: the working copy and the samples.
        left_out: settings that do not apply to this kind of sample, with the reason.
        before, after: outcomes of the received and of the sanitized model on the held-out part.
        returns_probabilities: whether the outputs of the received model look like those of a softmax.
        stopped: why the run ended early, or ``None``.
        digest_after: of the returned model.
    """

    given: nn.Module
    method: str
    settings: MethodConfig
    subject: Subject
    run: Run
    history: list[HistoryPoint]
    left_out: tuple[str, ...]
    before: Evaluation | None = None
    after: Evaluation | None = None
    returns_probabilities: bool = False
    stopped: str | None = None
    digest_after: str | None = None
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def report(self) -> Report:
        """The report of the run so far. ``before`` must be set."""
        before, after = self.before, self.after
        assert before is not None
        accepted, reason = self._verdict(before, after)
        run, ledger, samples = self.run, self.run.ledger, self.subject.samples
        precision, total = run.compute.precision, round(run.clock.elapsed(), 3)
        trials = [asdict(trial) for trial in precision.trials]
        return Report(
            {
                "schema_version": SCHEMA_VERSION,
                "tool": {"name": "seamfast", "version": __version__},
                "created": self.created.isoformat(timespec="seconds"),
                "verdict": {"accepted": accepted, "reason": reason},
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
                    "n_samples": len(samples),
                    "num_classes": run.num_classes,
                    "class_counts": torch.bincount(samples.labels, minlength=run.num_classes).tolist(),
                    "n_forget": len(run.split.forget),
                    "n_recovery": len(run.split.recovery),
                    "n_holdout": len(run.split.holdout),
                    "reading": "every epoch" if isinstance(samples, AugmentingSet) else "once",
                },
                "holdout": comparison(before, after),
                "run": {
                    "device": str(run.device),
                    "precision": {"chosen": precision.name, "reason": precision.reason, "trials": trials},
                    "threads": {"chosen": run.compute.threads, "reason": run.compute.threads_reason},
                    "stepped": dict(ledger.stepped),
                    "n_attempts": run.attempt + 1,
                    "steps": dict(ledger.phase_steps),
                    "seconds": {
                        **{k: round(v, 3) for k, v in ledger.phase_seconds.items()},
                        "evaluations": round(ledger.evaluation_seconds, 3),
                        "total": total,
                    },
                    "time_ran_out": ledger.time_ran_out,
                    "stopped": self.stopped,
                },
                "history": [point.to_dict() for point in self.history],
                "machine": machine(),
                "warnings": self._warnings(before),
            }
        )

    def _verdict(self, before: Evaluation, after: Evaluation | None) -> tuple[bool, str]:
        """Whether the run ended, the received model beats chance and the loss is within budget; and the reason."""
        if self.stopped or after is None:
            return False, f"{self.stopped or 'the run did not end'}; the model is returned as received"
        n, chance = before.clean_accuracy.n_total, 1 / self.run.num_classes
        if before.clean_accuracy.low <= chance:
            return False, (
                f"the model as received is right on {before.clean_accuracy.n_hit} of {n} held-out samples, not "
                f"measurably more than guessing ({chance:.1%}): check normalization and class order, "
                "or give more clean data"
            )
        n_lost = before.clean_accuracy.n_hit - after.clean_accuracy.n_hit
        allowed = n_lost_allowed(n, self.settings.accuracy_budget)
        counts = (
            f"held-out accuracy {after.clean_accuracy.n_hit / n:.2%} after, {before.clean_accuracy.n_hit / n:.2%} "
            f"before (n = {n}): {max(n_lost, 0)} samples lost, {allowed} allowed by the budget of "
            f"{self.settings.accuracy_budget:.1%}"
        )
        if n_lost > allowed:
            return False, f"accuracy did not come back within its budget: {counts}"
        return True, f"accuracy is back within its budget: {counts}"

    def _warnings(self, before: Evaluation) -> list[str]:
        found: list[str] = []
        run, n, budget = self.run, len(self.run.split.holdout), self.settings.accuracy_budget
        if 0 < budget * n < 1:
            found.append(
                f"one of {n} held-out samples weighs {1 / n:.1%}, more than the accuracy budget of {budget:.1%}: "
                "one may be lost"
            )
        counts = torch.bincount(self.subject.samples.labels, minlength=run.num_classes)
        missing = (counts == 0).nonzero().flatten().tolist()
        if missing:
            names = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            found.append(f"no clean sample of {len(missing)} classes ({names}): nothing defends their accuracy")
        if run.ledger.time_ran_out:
            steps = ", ".join(f"{k} {v}" for k, v in run.ledger.phase_steps.items())
            found.append(f"the time budget of {run.clock.budget_s:g} s cut the run short; steps taken: {steps}")
        if self.left_out:
            kind, names = self.subject.samples.modality.name, ", ".join(self.left_out)
            found.append(f"samples of kind {kind!r} cannot have {names}: left out, a weaker cure")
        if self.returns_probabilities:
            found.append(
                "the model seems to return probabilities, not logits: take its last softmax off for a better cure"
            )
        return found


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


def rate_values(rate: Rate) -> dict[str, Any]:
    """A ``Rate`` as JSON values: counts, value, 95 % bounds."""
    return {"n_hit": rate.n_hit, "n_total": rate.n_total, "value": rate.value, "low": rate.low, "high": rate.high}


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
