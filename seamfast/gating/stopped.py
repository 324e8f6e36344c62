"""The report on a run of the gate that somebody else had to end."""

from __future__ import annotations

import os
from pathlib import Path

from seamfast.gating.output import Staging
from seamfast.gating.pipeline import GateResult
from seamfast.gating.policy import read_policy
from seamfast.gating.report import GateRun, gate_report


def stopped_report(
    model: str | os.PathLike[str],
    reason: str,
    *,
    policy: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> GateResult:
    """The result ``"incomplete"`` of a run that ended for ``reason``; nothing of the model is read.

    Args:
        model, policy, out, seed: as for ``gate``.
        reason: in one sentence.

    Raises:
        PolicyError: the policy cannot be used.
    """
    rules = read_policy(policy)
    run = GateRun(Path(model), rules, seed, warnings=list(rules.warnings), stopped=reason)
    report = gate_report(run)
    with Staging(None if out is None else Path(out)) as staging:
        staging.finish(report, {})
    verdict = report["verdict"]
    return GateResult(verdict["outcome"], verdict["exit_code"], report)
