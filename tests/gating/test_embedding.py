"""The gate in other people's pipelines: each example does what it says, and lets nothing through but a pass."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import seamfast
from seamfast import CleanSet
from seamfast.cli import main
from tests.gating.examples import EXIT_CODES, example
from tests.gating.workflows import run_job
from tests.kubernetes_jobs import action_on

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples" / "gate"
THREATS = ROOT / "docs" / "threat-model.md"
BLOCKING = (1, 2, 3, 4, 127, 137)


def loaded(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents_of(name: str) -> list[Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML to read the example")
    return list(yaml.safe_load_all((EXAMPLES / name).read_text(encoding="utf-8")))


# GitHub Actions.


@pytest.fixture
def workflow() -> dict[str, Any]:
    (document,) = documents_of("github-actions.yml")
    return document


STUB = """#!/bin/sh
# Writes what the gate writes, and ends as it is told.
echo "seamfast $*" >> "$CALLS"
while [ $# -gt 0 ]; do [ "$1" = --out ] && out=$2; shift; done
if [ "$STATUS" -lt 4 ]; then
  mkdir "$out"
  for name in report.json report.html report.sarif attestation.json bom.json; do echo '{}' > "$out/$name"; done
  echo "# Verdict: status $STATUS" > "$out/summary.md"
  [ "$STATUS" -ne 0 ] || { mkdir "$out/sanitized"; echo weights > "$out/sanitized/model.safetensors"; }
fi
exit "$STATUS"
"""


STUBS = {"seamfast": STUB, "pip": '#!/bin/sh\necho "pip $*" >> "$CALLS"\n'}


def test_workflow_lets_a_pass_through(workflow: dict[str, Any], tmp_path: Path) -> None:
    job = workflow["jobs"]["gate"]
    ran = run_job(job, 0, tmp_path, STUBS, job["env"])
    assert not ran.failed
    assert ran.uploads == ["gate-documents", "sanitized-model"]
    assert ran.summary == "# Verdict: status 0\n"
    assert ran.outputs == "has-findings=true\n"
    assert ran.calls.splitlines() == [
        "pip install --require-hashes -r trusted/intake/requirements.txt",
        "seamfast gate received/models/incoming --data trusted/intake/clean --policy trusted/intake/policy.toml "
        "--out gate-result",
    ]


@pytest.mark.parametrize("status", BLOCKING)
def test_workflow_blocks_all_else_and_still_reports(status: int, workflow: dict[str, Any], tmp_path: Path) -> None:
    job = workflow["jobs"]["gate"]
    ran = run_job(job, status, tmp_path, STUBS, job["env"])
    assert ran.failed
    assert ran.uploads == ["gate-documents"]
    written = status < 4  # a wrong command writes nothing
    assert ran.summary == (f"# Verdict: status {status}\n" if written else "")
    assert ran.outputs == ("has-findings=true\n" if written else "")


def test_workflow_pins_every_action(workflow: dict[str, Any]) -> None:
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert len(used) == 7
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40}", action), action
    # The version beside the digest is for people, so it must be the same wherever the digest is.
    text = (EXAMPLES / "github-actions.yml").read_text(encoding="utf-8")
    pins = set(re.findall(r"uses: (\S+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)$", text, re.MULTILINE))
    assert len(pins) == len(set(used))


def test_workflow_has_the_least_rights(workflow: dict[str, Any]) -> None:
    assert workflow[True] == {"pull_request": {"paths": ["models/**"]}}  # `on`, which is a boolean in YAML 1.1
    assert workflow["permissions"] == {}
    gate, findings = workflow["jobs"]["gate"], workflow["jobs"]["findings"]
    assert gate["permissions"] == {"contents": "read"}
    assert findings["permissions"] == {"actions": "read", "contents": "read", "security-events": "write"}
    # The job that may write runs nothing and checks nothing out.
    assert [step["uses"].split("@")[0] for step in findings["steps"]] == [
        "actions/download-artifact",
        "github/codeql-action/upload-sarif",
    ]
    assert "secrets." not in (EXAMPLES / "github-actions.yml").read_text(encoding="utf-8")
    checkouts = [step["with"] for step in gate["steps"] if "checkout" in step.get("uses", "")]
    assert [options["persist-credentials"] for options in checkouts] == [False, False]
    assert [(options["path"], options.get("ref")) for options in checkouts] == [
        ("trusted", "${{ github.event.pull_request.base.sha }}"),
        ("received", None),
    ]


def test_workflow_puts_nothing_of_the_change_into_a_shell(workflow: dict[str, Any]) -> None:
    scripts = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert len(scripts) == 3
    assert [script for script in scripts if "${{" in script] == []


# Kubernetes.


@pytest.fixture
def job() -> dict[str, Any]:
    return documents_of("kubernetes-job.yaml")[0]


def test_job_tries_again_only_what_may_end_otherwise(job: dict[str, Any]) -> None:
    assert action_on(job, 2) == "Count"
    assert [action_on(job, code) for code in (1, 3, 4, 127, 134, 137, 139, 255)] == ["FailJob"] * 8
    assert action_on(job, 137, disrupted=True) == "Ignore"
    assert 0 < job["spec"]["backoffLimit"] <= 6
    assert job["spec"]["activeDeadlineSeconds"] > 0  # nor for ever
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # else the policy is not looked at


def test_job_can_do_little(job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName", "initContainers"} & set(pod)
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/verdicts", "/tmp"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(volumes) == {mount["name"] for mount in container["volumeMounts"]}
    assert volumes["received"]["persistentVolumeClaim"]["readOnly"] is True
    assert volumes["clean"]["persistentVolumeClaim"]["readOnly"] is True
    assert "sizeLimit" in volumes["tmp"]["emptyDir"]


def test_job_has_no_network(job: dict[str, Any]) -> None:
    policy = documents_of("kubernetes-job.yaml")[1]
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    # Both directions are named and neither has a rule, so nothing is allowed.
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert set(policy["spec"]) == {"podSelector", "policyTypes"}


def test_attempts_of_a_job_write_into_folders_of_their_own(job: dict[str, Any]) -> None:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    arguments = container["args"]
    assert arguments[arguments.index("--out") + 1] == "/verdicts/$(POD_NAME)"
    (name,) = (entry for entry in container["env"] if entry["name"] == "POD_NAME")
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


# Whatever calls the command.


def test_examples_use_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gate", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    job_arguments = documents_of("kubernetes-job.yaml")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    texts = [" ".join(job_arguments)]
    for path in (EXAMPLES / "github-actions.yml", ROOT / "docs" / "embedding.md"):
        texts += re.findall(r"\bseamfast (gate .*--.*)", path.read_text(encoding="utf-8"))
    assert len(texts) >= 3
    for text in texts:
        used = set(re.findall(r"--[a-z][a-z-]*", text))
        assert {"--data", "--policy", "--out"} <= used, text
        assert used <= known, text


# MLflow.


def answering(outcome: str) -> Callable[..., seamfast.GateResult]:
    """A gate with a fixed outcome that writes what the gate writes."""

    def gate(model: str, data: Any, *, policy: Path, out: Path) -> seamfast.GateResult:
        assert (Path(model) / "model.safetensors").read_bytes() == b"as received"
        out.mkdir()
        report = example(outcome)
        (out / "report.json").write_text(json.dumps(report), encoding="utf-8")
        if outcome == "pass":
            (out / "sanitized").mkdir()
            (out / "sanitized" / "model.safetensors").write_bytes(b"sanitized")
        return seamfast.GateResult(outcome, EXIT_CODES[outcome], report)

    return gate


@dataclass
class Registry:
    """An MLflow server's files, and one version that someone registered."""

    client: Any
    experiment: str
    hook: ModuleType
    source: Path

    def register(self, name: str, source: Path | None = None) -> str:
        self.client.create_registered_model(name)
        return str(self.client.create_model_version(name, str(source or self.source)).version)

    def gate(self, name: str, version: str, out: Path, **options: Any) -> seamfast.GateResult:
        options = {"data": "d", "policy": "p", "experiment_id": self.experiment} | options
        result: seamfast.GateResult = self.hook.gate_version(self.client, name, version, out=out, **options)
        return result

    def tags(self, name: str, version: str) -> dict[str, str]:
        return dict(self.client.get_model_version(name, version).tags)

    def aliased(self, name: str) -> str | None:
        aliases = self.client.get_registered_model(name).aliases
        return str(aliases["gated"]) if "gated" in aliases else None


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):  # read when it is imported
            patch.setenv(name, "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        pytest.importorskip("mlflow", reason="needs MLflow: the extra test-mlflow")
        pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy for MLflow's store: the extra test-mlflow")
        from mlflow import MlflowClient

        place = tmp_path_factory.mktemp("mlflow")
        uri = f"sqlite:///{place}/registry.db"
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = client.create_experiment("intake", artifact_location=(place / "artifacts").as_uri())
        source = place / "received"
        source.mkdir()
        (source / "model.safetensors").write_bytes(b"as received")
        yield Registry(client, experiment, loaded("mlflow_gate"), source)


def with_mlflow(test: Callable[..., None]) -> Callable[..., None]:
    """MLflow and SQLAlchemy warn of each other, and making the store takes seconds."""
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore")(test))


@with_mlflow
@pytest.mark.parametrize("outcome", ["fail", "incomplete", "refused", "inconclusive"])
def test_registry_hook_sets_no_alias_unless_passed(
    outcome: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"model-{outcome}"
    version = registry.register(name)
    monkeypatch.setattr(seamfast, "gate", answering(outcome), raising=False)
    assert registry.gate(name, version, tmp_path / "out").exit_code == EXIT_CODES[outcome]
    assert registry.aliased(name) is None
    tags = registry.tags(name, version)
    assert tags["seamfast.outcome"] == outcome
    assert tags["seamfast.reasons"] == "; ".join(example(outcome)["verdict"]["reasons"])
    assert len(registry.client.search_model_versions(f"name = '{name}'")) == 1
    run = registry.client.get_run(tags["seamfast.run_id"])
    assert [found.path for found in registry.client.list_artifacts(run.info.run_id, "gate")] == ["gate/report.json"]
    assert registry.client.list_artifacts(run.info.run_id, "sanitized") == []


@with_mlflow
def test_registry_hook_gives_the_alias_to_what_passed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    version = registry.register("digits")
    for number, outcome in enumerate(["pass", "fail"]):  # a later failure takes nothing away, and changes nothing
        monkeypatch.setattr(seamfast, "gate", answering(outcome), raising=False)
        registry.gate("digits", version, tmp_path / f"out {number}")
        passed = registry.client.get_model_version_by_alias("digits", "gated")
        assert str(passed.version) == "2"
        assert version == "1"
        assert registry.tags("digits", "1")["seamfast.outcome"] == outcome
        assert passed.tags["seamfast.outcome"] == "pass"
        assert passed.tags["seamfast.received_version"] == "1"
        assert passed.tags["seamfast.policy_sha256"] == example()["policy"]["sha256"]
    got = mlflow.artifacts.download_artifacts(
        artifact_uri=registry.client.get_model_version_download_uri("digits", passed.version), dst_path=str(tmp_path)
    )
    assert (Path(got) / "model.safetensors").read_bytes() == b"sanitized"


@with_mlflow
def test_registry_hook_leaves_no_earlier_verdict_where_it_breaks_off(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.register("broken")
    registry.client.set_model_version_tag("broken", version, "seamfast.outcome", "pass")

    def breaks(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(seamfast, "gate", breaks, raising=False)
    with pytest.raises(MemoryError):
        registry.gate("broken", version, tmp_path / "out")
    assert registry.tags("broken", version) == {"seamfast.outcome": "incomplete"}
    assert registry.aliased("broken") is None


@with_mlflow
def test_registry_hook_with_the_gate_itself(
    registry: Registry, planted: Path, policy: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever the verdict on this model is, the alias goes with it."""
    version = registry.register("real", planted)
    result = registry.gate("real", version, tmp_path / "out", data=seamfast.load("digits"), policy=policy())
    assert result.outcome in ("pass", "fail"), result.report["verdict"]
    assert registry.tags("real", version)["seamfast.outcome"] == result.outcome
    assert registry.aliased("real") == ("2" if result.exit_code == 0 else None)


def test_registry_hook_never_loads_a_model() -> None:
    tree = ast.parse((EXAMPLES / "mlflow_gate.py").read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "download_artifacts" in used
    assert not {name for name in used if name.startswith("load") or name in ("pytorch", "pyfunc")}


# TrojAI.


class RoundSamples(Dataset[Any]):
    """Samples as the round's example reads them; ``label`` makes one of the class."""

    def __init__(self, data: CleanSet, label: Callable[[int], Any]) -> None:
        self._images, self._labels, self._label = data.normalize(data.inputs), data.labels, label

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any, str]:
        return self._images[index], self._label(int(self._labels[index])), f"{index}.png"


@pytest.mark.parametrize("label", [int, lambda n: {"clean_label": n, "poisoned_label": 0}], ids=["number", "mapping"])
def test_trojai_adapter_reads_the_rounds_samples(label: Callable[[int], Any], tiny_data: CleanSet) -> None:
    samples = loaded("trojai_mitigation").LabelledImages(RoundSamples(tiny_data, label))
    assert len(samples) == len(tiny_data)
    assert [samples[index][1] for index in range(len(samples))] == tiny_data.labels.tolist()
    assert torch.equal(samples[5][0], tiny_data.normalize(tiny_data.inputs)[5])


def test_trojai_adapter_returns_sanitized_weights(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet, enlarged: Callable[[CleanSet, int], CleanSet]
) -> None:
    tiny_data = enlarged(tiny_data, 2)
    model, received = tiny_model(), tiny_model().state_dict()
    state = loaded("trojai_mitigation").mitigate_model(model, RoundSamples(tiny_data, int), device="cpu", seed=1)
    assert all(torch.equal(value, received[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, received[name]) for name, value in state.items())
    repaired = tiny_model()
    repaired.load_state_dict(state)
    assert seamfast.evaluate(repaired, tiny_data).clean_accuracy.value > 0.9


def test_trojai_adapter_hands_back_what_it_got_where_the_cure_was_not_accepted(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    model, received = tiny_model(), tiny_model().state_dict()
    short = seamfast.SeamConfig(recover_max_steps=1, strengths=(1.0,), accuracy_budget=0.0)
    with pytest.warns(RuntimeWarning, match=r"^not accepted, so these are the weights as received: "):
        state = loaded("trojai_mitigation").mitigate_model(model, RoundSamples(tiny_data, int), config=short)
    assert all(torch.equal(value, received[name]) for name, value in state.items())
    assert list(state) == list(received)


@pytest.mark.parametrize("missing", [-1, None])
def test_trojai_adapter_wants_labels(missing: Any, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    message = rf"^sample \d+ has the label {missing}; expected its class: read it with require_label=True$"
    with pytest.raises(ValueError, match=message):
        loaded("trojai_mitigation").mitigate_model(tiny_model(), RoundSamples(tiny_data, lambda _: missing))


# The threat model.


def promises() -> list[tuple[str, list[str]]]:
    """Rows of the table of promises: what is promised, and the tests that hold it."""
    (section,) = re.findall(r"^## What is promised\n(.*?)^## ", THREATS.read_text(encoding="utf-8"), re.M | re.S)
    rows = [row.strip("|").split("|") for row in section.splitlines() if row.startswith("|")][2:]
    return [(promise.strip(), re.findall(r"`([^`]+)`", tests)) for promise, tests in rows]


def test_every_promise_names_tests_that_exist() -> None:
    rows = promises()
    assert len(rows) >= 8
    for promise, tests in rows:
        assert tests, f"{promise} names no test"
        for test in tests:
            path, _, name = test.partition("::")
            source = ROOT / "tests" / path
            assert source.is_file(), f"{promise} names {path}, which does not exist"
            nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
            defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
            assert name in defined, f"{promise} names {test}, which does not exist"
