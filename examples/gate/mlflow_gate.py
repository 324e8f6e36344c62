"""The intake gate in front of an MLflow model registry.

The gate runs on a registered version and writes the outcome to its tags. Only on a pass does it register the sanitized
model as the next version and set the alias to it. So ``models:/NAME@gated`` is always a model that passed, never the
received one.

    client = MlflowClient()
    gate_version(client, "digits", 7, data="clean", policy="policy.toml", out="verdicts/digits-7", experiment_id="3")

MLflow moves files and writes tags here. It never loads a model, which would unpickle it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import mlflow
from mlflow import MlflowClient

import seamfast

LONGEST_TAG = 1000


def gate_version(
    client: MlflowClient,
    name: str,
    version: int | str,
    *,
    data: str | os.PathLike[str],
    policy: str | os.PathLike[str],
    out: str | os.PathLike[str],
    experiment_id: str,
    alias: str = "gated",
) -> seamfast.GateResult:
    """``seamfast.gate`` on the files of a registered version; the verdict as tags and a run, and on a pass as an alias.

    Args:
        client: of the tracking server and the registry.
        name, version: of the model, registered with its files as they are (``model.safetensors`` and ``model.json``).
        data, policy: clean data and the policy, from a place that those who register models cannot write to.
        out: a folder that does not exist yet, for the documents and, on a pass, ``sanitized/``.
        experiment_id: of the run that keeps them.
        alias: for the sanitized version. Without a pass it keeps its version.

    Returns:
        GateResult of the gate, with ``exit_code`` 0 on a pass alone.
    """
    version = str(version)
    out = Path(out)
    # First, so that a run that stops early does not leave the verdict of an earlier one.
    client.set_model_version_tag(name, version, "seamfast.outcome", "incomplete")
    with tempfile.TemporaryDirectory() as place:
        received = mlflow.artifacts.download_artifacts(
            artifact_uri=client.get_model_version_download_uri(name, version),
            dst_path=place,
            tracking_uri=client.tracking_uri,
        )
        result = seamfast.gate(received, data, policy=policy, out=out)

    run = client.create_run(experiment_id, run_name=f"gate {name} {version}")
    for document in sorted(path for path in out.iterdir() if path.is_file()):
        client.log_artifact(run.info.run_id, str(document), "gate")
    tags = {
        "seamfast.outcome": result.outcome,
        "seamfast.reasons": "; ".join(result.report["verdict"]["reasons"])[:LONGEST_TAG],
        "seamfast.policy_sha256": result.report["policy"]["sha256"],
        "seamfast.run_id": run.info.run_id,
    }
    if result.exit_code == 0:
        client.log_artifacts(run.info.run_id, str(out / "sanitized"), "sanitized")
        passed = client.create_model_version(
            name,
            f"{run.info.artifact_uri}/sanitized",
            run_id=run.info.run_id,
            tags={**tags, "seamfast.received_version": version},
        )
        client.set_registered_model_alias(name, alias, str(passed.version))
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_terminated(run.info.run_id)
    return result
