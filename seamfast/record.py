"""``RunRecord``: what a run leaves behind, turned into its report."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy
import torch
from torch import nn

from seamfast._version import __version__
from seamfast.data import CleanSet, Split
from seamfast.data.rereading import AugmentingSet
from seamfast.engine.counting import Counts
from seamfast.engine.model import digest
from seamfast.engine.run import Run, n_lost_allowed
from seamfast.evaluate import Evaluation, as_evaluation
from seamfast.methods import MethodConfig
from seamfast.metrics import Rate, fidelity, fidelity_nist
from seamfast.report import SCHEMA_VERSION, Report


@dataclass
class RunRecord:
    """All that a report is made of; ``before``, ``after`` and ``stopped`` are filled in as the run goes on."""

    given: nn.Module
    method: str
    settings: MethodConfig
    samples: CleanSet
    split: Split
    run: Run
    time_budget_s: float | None
    before: Counts | None = None
    after: Counts | None = None
    stopped: str | None = None
    digest_after: str | None = None
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def report(self) -> Report:
        """The report of the run as far as it got; ``before`` must be known."""
        assert self.before is not None
        before = as_evaluation(self.before)
        after = None if self.after is None else as_evaluation(self.after)
        accepted, reason = self._verdict(before, after)
        run = self.run
        parameters = list(self.given.parameters())
        return Report(
            {
                "schema_version": SCHEMA_VERSION,
                "tool": {"name": "seamfast", "version": __version__},
                "created": self.created.isoformat(timespec="seconds"),
                "verdict": {"accepted": accepted, "reason": reason},
                "method": self.method,
                "config": self.settings.to_dict(),
                "seed": run.seed,
                "time_budget_s": self.time_budget_s,
                "model": {
                    "class": f"{type(self.given).__module__}.{type(self.given).__qualname__}",
                    "n_parameters": sum(p.numel() for p in parameters),
                    "digest_before": digest(self.given),
                    "digest_after": self.digest_after,
                    "returned": "received" if self.stopped else "sanitized",
                },
                "data": {
                    "n_samples": len(self.samples),
                    "num_classes": run.num_classes,
                    "class_counts": torch.bincount(self.samples.labels, minlength=run.num_classes).tolist(),
                    "n_forget": len(self.split.forget),
                    "n_recovery": len(self.split.recovery),
                    "n_holdout": len(self.split.holdout),
                    "reading": "every epoch" if isinstance(self.samples, AugmentingSet) else "once",
                },
                "holdout": comparison(before, after),
                "run": {
                    "device": str(run.device),
                    "precision": {
                        "chosen": run.precision.name,
                        "reason": run.precision.reason,
                        "trials": [asdict(trial) for trial in run.precision.trials],
                    },
                    "threads": {"chosen": run.threads, "reason": run.threads_reason},
                    "stepped": dict(run.stepped),
                    "n_attempts": run.attempt + 1,
                    "steps": dict(run.phase_steps),
                    "seconds": {
                        **{k: round(v, 3) for k, v in run.phase_seconds.items()},
                        "evaluations": round(run.evaluation_seconds, 3),
                        "total": round(run.clock.elapsed(), 3),
                    },
                    "time_ran_out": run.time_ran_out,
                    "stopped": self.stopped,
                },
                "history": [point.to_dict() for point in run.announcer.state.log_history],
                "machine": machine(),
                "warnings": self._warnings(before),
            }
        )

    def _verdict(self, before: Evaluation, after: Evaluation | None) -> tuple[bool, str]:
        """Whether to accept, and why: completed, a task to keep, and no more of it lost than the budget allows."""
        if self.stopped or after is None:
            return False, f"{self.stopped or 'the run did not end'}; the model is returned as received"
        n, chance = before.clean_accuracy.n_total, 1 / self.run.num_classes
        if before.clean_accuracy.low <= chance:
            return False, (
                f"the model as received is right on {before.clean_accuracy.n_hit} of {n} held-out samples, not "
                f"measurably more than guessing ({chance:.1%}): check normalisation and class order, "
                "or give more clean data"
            )
        n_lost = before.clean_accuracy.n_hit - after.clean_accuracy.n_hit
        allowed = n_lost_allowed(n, self.settings.accuracy_budget)
        told = (
            f"held-out accuracy {after.clean_accuracy.n_hit / n:.2%} after, {before.clean_accuracy.n_hit / n:.2%} "
            f"before (n = {n}): {max(n_lost, 0)} samples lost, {allowed} allowed by the budget of "
            f"{self.settings.accuracy_budget:.1%}"
        )
        if n_lost > allowed:
            return False, f"accuracy did not come back within its budget: {told}"
        return True, f"accuracy is back within its budget: {told}"

    def _warnings(self, before: Evaluation) -> list[str]:
        found = []
        n, budget = len(self.split.holdout), self.settings.accuracy_budget
        if 0 < budget * n < 1:
            found.append(
                f"one of {n} held-out samples weighs {1 / n:.1%}, more than the accuracy budget of {budget:.1%}: "
                "one may be lost"
            )
        counts = torch.bincount(self.samples.labels, minlength=self.run.num_classes)
        missing = (counts == 0).nonzero().flatten().tolist()
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            found.append(f"no clean sample of {len(missing)} classes ({shown}): nothing defends their accuracy")
        if self.run.time_ran_out:
            steps = ", ".join(f"{k} {v}" for k, v in self.run.phase_steps.items())
            found.append(f"the time budget of {self.run.clock.budget_s:g} s cut the run short; steps taken: {steps}")
        if getattr(self.settings, "occlusions", 0) and self.run.input_range() is None:
            found.append("the inputs are not images in one tensor: no patterns were pasted over them, a weaker cure")
        if self.run.returns_probabilities:
            found.append(
                "the model seems to return probabilities, not logits: take its last softmax off for a better cure"
            )
        return found


def comparison(before: Evaluation, after: Evaluation | None) -> dict[str, Any]:
    """Two evaluations of the same data as JSON values, with both Fidelities: the lowest over the triggers."""
    return {
        "before": evaluation_values(before),
        "after": None if after is None else evaluation_values(after),
        "fidelity": None if after is None else _fidelity(before, after),
        "fidelity_nist": None if after is None else _fidelity_nist(before, after),
    }


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
    """What ran this: versions, processor, threads, accelerator."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        # Not platform.platform(), which starts another program to ask.
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


def _rates(before: Evaluation, after: Evaluation) -> Sequence[tuple[float, float]]:
    pairs = zip(before.triggers, after.triggers, strict=True)
    values = [(b.attack_success_rate.value, a.attack_success_rate.value) for b, a in pairs]
    return [(b, a) for b, a in values if b is not None and a is not None]


def _fidelity(before: Evaluation, after: Evaluation) -> float | None:
    acc_before, acc_after = before.clean_accuracy.value, after.clean_accuracy.value
    rates = _rates(before, after)
    if acc_before is None or acc_after is None or not rates:
        return None
    return fidelity(acc_before=acc_before, acc_after=acc_after, asr_after=max(a for _, a in rates))


def _fidelity_nist(before: Evaluation, after: Evaluation) -> float | None:
    acc_before, acc_after = before.clean_accuracy.value, after.clean_accuracy.value
    if acc_before is None or acc_after is None:
        return None
    values = [
        fidelity_nist(acc_before=acc_before, acc_after=acc_after, asr_before=b, asr_after=a)
        for b, a in _rates(before, after)
    ]
    return min((v for v in values if v is not None), default=None)
