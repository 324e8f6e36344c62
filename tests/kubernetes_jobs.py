"""What Kubernetes does about the pods of a Job, from its manifest alone."""

from __future__ import annotations

from typing import Any


def action_on(job: dict[str, Any], code: int, *, disrupted: bool = False) -> str:
    """What the Job controller does about a pod whose container ended so: the first rule that fits."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if "onPodConditions" in rule:
            fits = disrupted and {"type": "DisruptionTarget", "status": "True"} in rule["onPodConditions"]
        else:
            wanted = rule["onExitCodes"]
            assert wanted["containerName"] == job["spec"]["template"]["spec"]["containers"][0]["name"]
            fits = (code in wanted["values"]) == (wanted["operator"] == "In")
        if fits:
            return str(rule["action"])
    return "Count"
