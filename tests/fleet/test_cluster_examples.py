"""The fleet on clusters: each example runs every shard once, retries no verdict, and grants no more than it needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes_jobs import action_on

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples" / "fleet"
DOCUMENT = ROOT / "docs" / "fleet-clusters.md"
INDEXED, KUBERAY = "kubernetes_indexed_job.yaml", "kuberay_job.yaml"

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# Writes its arguments, one a line, into a file of its own, and ends as it is told.
STUB = """#!/bin/sh
call=$(mktemp "$CALLS/{name}.XXXXXX")
printf '%s\\n' "$@" > "$call"
{answer}
exit "${{STATUS:-0}}"
"""
SLURM_ANSWERS = 'case "$*" in *--array*) echo "101;main" ;; *) echo 102 ;; esac'


@dataclass
class Node:
    """A machine whose ``seamfast`` and ``sbatch`` only write down how they were called."""

    place: Path
    read: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        for folder in ("bin", "calls"):
            (self.place / folder).mkdir()
        for name, answer in (("seamfast", ""), ("sbatch", SLURM_ANSWERS)):
            stub = self.place / "bin" / name
            stub.write_text(STUB.format(name=name, answer=answer), encoding="utf-8")
            stub.chmod(0o755)

    def run(self, *command: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``command`` with nothing in its environment but ``environment``."""
        path = f"{self.place / 'bin'}{os.pathsep}{os.environ['PATH']}"
        given = {"PATH": path, "CALLS": str(self.place / "calls"), "STATUS": str(status)} | environment
        return subprocess.run(command, cwd=self.place, env=given, capture_output=True, text=True)

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of ``name`` since the last time that this was asked."""
        new = set((self.place / "calls").glob(f"{name}.*")) - self.read
        self.read |= new
        return [path.read_text(encoding="utf-8").splitlines() for path in new]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def documents_of(name: str) -> list[Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML to read the example")
    return list(yaml.safe_load_all((EXAMPLES / name).read_text(encoding="utf-8")))


def of_kind(name: str, kind: str) -> list[Any]:
    return [document for document in documents_of(name) if document["kind"] == kind]


def value_behind(option: str, arguments: list[str]) -> str:
    return arguments[arguments.index(option) + 1]


# Slurm.

SLURM = EXAMPLES / "slurm_array.sh"


def submitted(node: Node, shards: int, *options: str) -> dict[str, list[str]]:
    """Submit a fleet; return the arguments of both calls of sbatch, by the role of the job."""
    (node.place / "jobs.jsonl").touch()
    done = node.run("bash", str(SLURM), "submit", str(shards), "jobs.jsonl", "results", *options)
    assert done.returncode == 0, done.stderr
    calls = node.calls("sbatch")
    assert len(calls) == 2
    return {call[call.index(str(SLURM)) + 1]: call for call in calls}


def array_of(last: int, count: int) -> dict[str, str]:
    return {"SLURM_ARRAY_TASK_MAX": str(last), "SLURM_ARRAY_TASK_COUNT": str(count)}


@needs_bash
def test_slurm_script_parses() -> None:
    done = subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_bash
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_slurm_array_runs_every_shard_once(shards: int, node: Node) -> None:
    call = submitted(node, shards, "--data", "clean data", "--seed", "3")["shard"]
    (array,) = (word for word in call if word.startswith("--array="))
    first, last = map(int, array.removeprefix("--array=").split("-"))
    for task in range(first, last + 1):
        variables = array_of(last, last - first + 1) | {"SLURM_ARRAY_TASK_ID": str(task)}
        done = node.run("bash", *call[call.index(str(SLURM)) :], SLURM_CPUS_PER_TASK="8", **variables)
        assert done.returncode == 0, done.stderr
    ran = node.calls("seamfast")
    assert sorted(value_behind("--shard", words) for words in ran) == [f"{k}/{shards}" for k in range(shards)]
    for words in ran:
        # Absolute, since a job need not start where it was submitted.
        assert words[:2] == ["fleet", str(node.place / "jobs.jsonl")]
        assert value_behind("--out", words) == str(node.place / "results")
        assert value_behind("--workers", words) == "8"
        assert words[-4:] == ["--data", "clean data", "--seed", "3"]


@needs_bash
@pytest.mark.parametrize("status", range(5))
def test_slurm_task_ends_in_the_code_of_its_shard(status: int, node: Node) -> None:
    variables = array_of(3, 4) | {"SLURM_ARRAY_TASK_ID": "2"}
    assert node.run("bash", str(SLURM), "shard", "j", "o", status=status, **variables).returncode == status
    assert node.run("bash", str(SLURM), "summary", "o", status=status).returncode == status


@needs_bash
@pytest.mark.parametrize(("last", "count"), [(5, 2), (4, 4), (6, 4)])  # such as of 3,5 or 0,5; of 1-4; of 0-6:2
def test_slurm_array_that_would_leave_jobs_out_is_refused(last: int, count: int, node: Node) -> None:
    variables = array_of(last, count) | {"SLURM_ARRAY_TASK_ID": str(last)}
    done = node.run("bash", str(SLURM), "shard", "j", "o", **variables)
    assert done.returncode == 4
    assert f"the array has {count} tasks, the last is {last}; expected 0 to {count - 1}" in done.stderr
    assert node.calls("seamfast") == []


@needs_bash
def test_slurm_summary_waits_for_all_shards_whatever_their_verdicts(node: Node) -> None:
    call = submitted(node, 3)["summary"]
    assert "--dependency=afterany:101" in call
    assert node.run("bash", *call[call.index(str(SLURM)) :]).returncode == 0
    assert node.calls("seamfast") == [["fleet", "status", str(node.place / "results")]]


@needs_bash
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("shard",),
        ("summary",),
        ("submit", "2", "jobs.jsonl"),
        ("submit", "0", "jobs.jsonl", "o"),
        ("submit", "x", "jobs.jsonl", "o"),
        ("submit", "2", "missing.jsonl", "o"),
        ("run", "2", "jobs.jsonl", "o"),
    ],
)
def test_slurm_script_refuses_wrong_arguments(arguments: tuple[str, ...], node: Node) -> None:
    (node.place / "jobs.jsonl").touch()
    done = node.run("bash", str(SLURM), *arguments)
    assert done.returncode == 4
    assert "expected submit SHARDS JOBS OUT [option ...]" in done.stderr
    assert node.calls("sbatch") == node.calls("seamfast") == []


def test_slurm_job_may_be_requeued() -> None:
    """The options stand where sbatch reads them: before the first command."""
    read = []
    for line in SLURM.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            break
        read += re.findall(r"^#SBATCH (.*)$", line)
    assert {"--requeue", "--open-mode=append"} <= set(read)  # the second keeps the log of the first start


# Verdicts are not failures, on Kubernetes and on Ray.


def shard_command() -> list[str]:
    (container,) = of_kind(INDEXED, "Job")[0]["spec"]["template"]["spec"]["containers"]
    return [*container["command"], *container["args"]]


def ray_command() -> list[str]:
    (script,) = of_kind(KUBERAY, "ConfigMap")[0]["data"].values()
    return ["sh", "-c", script]


@pytest.mark.parametrize("command", [shard_command, ray_command])
@pytest.mark.parametrize(
    ("status", "ends_in"), [(0, 0), (1, 0), (2, 2), (3, 0), (4, 4), (126, 126), (127, 127), (137, 137)]
)
def test_only_verdicts_are_turned_into_success(command: Any, status: int, ends_in: int, node: Node) -> None:
    done = node.run(*command(), status=status, JOB_COMPLETION_INDEX="0", SHARDS="8")
    assert done.returncode == ends_in
    assert f"exit code {status}\n" in done.stdout  # in the log it stays what it was
    assert len(node.calls("seamfast")) == 1


def test_indices_are_the_shards(node: Node) -> None:
    job = of_kind(INDEXED, "Job")[0]["spec"]
    assert job["completionMode"] == "Indexed"
    (container,) = job["template"]["spec"]["containers"]
    shards = {entry["name"]: entry["value"] for entry in container["env"]}["SHARDS"]
    for index in range(job["completions"]):
        assert node.run(*shard_command(), JOB_COMPLETION_INDEX=str(index), SHARDS=shards).returncode == 0
    ran = sorted(value_behind("--shard", words) for words in node.calls("seamfast"))
    assert ran == [f"{index}/{job['completions']}" for index in range(job["completions"])]


def test_index_is_tried_again_only_where_it_may_end_otherwise() -> None:
    job = of_kind(INDEXED, "Job")[0]
    assert [action_on(job, code) for code in (1, 3)] == ["FailIndex"] * 2
    assert [action_on(job, code) for code in (4, 126, 127)] == ["FailJob"] * 3
    assert [action_on(job, code) for code in (2, 137, 143)] == ["Count"] * 3  # what is left is run
    assert action_on(job, 137, disrupted=True) == "Ignore"
    assert 0 < job["spec"]["backoffLimitPerIndex"] <= 6
    assert job["spec"]["activeDeadlineSeconds"] > 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # else the policy is not looked at


def test_summary_decides_by_its_own_exit_code() -> None:
    shards, summary = of_kind(INDEXED, "Job")
    assert summary["spec"]["suspend"] is True  # until the shards have ended
    assert summary["spec"]["backoffLimit"] == 0
    (container,) = summary["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["seamfast", "fleet", "status", "/fleet/result"]
    assert "--out /fleet/result " in shard_command()[-1]
    assert container["image"] == shards["spec"]["template"]["spec"]["containers"][0]["image"]


# What pods may do.


def ray_templates() -> dict[str, Any]:
    spec = of_kind(KUBERAY, "RayJob")[0]["spec"]
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    head = spec["rayClusterSpec"]["headGroupSpec"]
    return {"head": head["template"], "worker": workers["template"], "submitter": spec["submitterPodTemplate"]}


def templates() -> dict[str, Any]:
    shards, summary = of_kind(INDEXED, "Job")
    return {"shard": shards["spec"]["template"], "summary": summary["spec"]["template"]} | ray_templates()


@pytest.mark.parametrize("name", ["shard", "summary", "head", "worker", "submitter"])
def test_pod_can_do_little(name: str) -> None:
    pod = templates()[name]["spec"]
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
    assert set(container["resources"]["limits"]) >= {"cpu", "memory", "ephemeral-storage"}
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable <= {"/fleet", "/tmp"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(volumes) == {mount["name"] for mount in container["volumeMounts"]}
    for source in {"registry", "clean"} & set(volumes):
        assert volumes[source]["persistentVolumeClaim"]["readOnly"] is True
    assert "sizeLimit" in volumes["tmp"]["emptyDir"]


def test_shards_have_no_network() -> None:
    (policy,) = of_kind(INDEXED, "NetworkPolicy")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for name in ("shard", "summary"):
        assert labels.items() <= templates()[name]["metadata"]["labels"].items()
    # Both directions are named and neither has a rule, so nothing is allowed.
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert set(policy["spec"]) == {"podSelector", "policyTypes"}


# Ray.


def test_ray_cluster_asks_for_a_token() -> None:
    cluster = of_kind(KUBERAY, "RayJob")[0]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
    for template in ray_templates().values():
        (container,) = template["spec"]["containers"]
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
        assert not [name for name in variables if name.startswith("RAY_AUTH")]  # the operator sets them, from a Secret


def test_ray_dashboard_is_not_exposed() -> None:
    cluster = of_kind(KUBERAY, "RayJob")[0]["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["enableIngress"] is False
    (policy,) = of_kind(KUBERAY, "NetworkPolicy")
    ours = {"podSelector": policy["spec"]["podSelector"]}
    for template in ray_templates().values():
        assert template["metadata"]["labels"] == ours["podSelector"]["matchLabels"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    inner, operator = policy["spec"]["ingress"]
    assert inner == {"from": [ours]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert [set(peer) for peer in operator["from"]] == [{"namespaceSelector", "podSelector"}]  # both, not either
    inner, names = policy["spec"]["egress"]
    assert inner == {"to": [ours]}
    assert {port["port"] for port in names["ports"]} == {53}


def test_ray_pods_see_the_same_files_in_the_same_version() -> None:
    pods = {name: template["spec"] for name, template in ray_templates().items()}
    assert len({pod["containers"][0]["image"] for pod in pods.values()}) == 1

    def seen(pod: dict[str, Any]) -> dict[str, str]:
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "emptyDir" not in v}
        return {m["mountPath"]: claims[m["name"]] for m in pod["containers"][0]["volumeMounts"] if m["name"] in claims}

    pods["head"]["volumes"] = [volume for volume in pods["head"]["volumes"] if "configMap" not in volume]
    assert seen(pods["head"]) == seen(pods["worker"])
    assert set(seen(pods["head"])) == {"/registry", "/clean", "/fleet"}


def test_ray_job_runs_the_script_that_it_mounts(node: Node) -> None:
    (script,) = of_kind(KUBERAY, "ConfigMap")
    (job,) = of_kind(KUBERAY, "RayJob")
    (name,) = script["data"]
    assert job["spec"]["entrypoint"] == f"sh /script/{name}"
    head = ray_templates()["head"]["spec"]
    (mounted,) = (volume for volume in head["volumes"] if "configMap" in volume)
    assert mounted["configMap"]["name"] == script["metadata"]["name"]
    assert {"name": mounted["name"], "mountPath": "/script", "readOnly": True} in head["containers"][0]["volumeMounts"]
    assert node.run(*ray_command()).returncode == 0
    (words,) = node.calls("seamfast")
    assert value_behind("--ray", words) == "auto"
    # A worker's share of a GPU for each of its processors, so that both run out together.
    (container,) = ray_templates()["worker"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert float(value_behind("--gpus-per-job", words)) * int(limits["cpu"]) == int(limits["nvidia.com/gpu"])
    # As many jobs as run at a time leave memory to Ray, whose resources limit nothing.
    job, worker = (int(text.rstrip("Gi")) for text in (value_behind("--max-memory", words), limits["memory"]))
    assert job * int(limits["cpu"]) <= 0.8 * worker


# Against the package.


@needs_bash
def test_commands_are_those_of_the_fleet(node: Node) -> None:
    options = pytest.importorskip("seamfast.fleet.options", reason="needs the fleet")
    node.run("bash", str(SLURM), "shard", "j", "o", SLURM_ARRAY_TASK_ID="0", **array_of(0, 1))
    node.run(*shard_command(), JOB_COMPLETION_INDEX="0", SHARDS="8")
    node.run(*ray_command())
    ran = node.calls("seamfast")
    assert len(ran) == 3
    shown = re.findall(r"^ *\$ (?:\w+=\S+ )?seamfast (fleet .*)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    ran += [line.split() for line in shown]
    ran += [job["spec"]["template"]["spec"]["containers"][0]["command"][1:] for job in of_kind(INDEXED, "Job")[1:]]
    assert sum(words[:2] == ["fleet", "status"] for words in ran) == 3
    for words in ran:  # the parsers end the process where an argument is wrong
        assert words[0] == "fleet"
        if words[1] == "status":
            options.status_parser().parse_args(words[2:])
        else:
            options.fleet_parser().parse_args(words[1:])


def test_jobs_of_the_example_are_jobs() -> None:
    jobs = pytest.importorskip("seamfast.fleet.jobs", reason="needs the fleet")
    found = list(jobs.Jobs(EXAMPLES / "jobs.jsonl", {}))
    assert [job.id for job in found] == ["a", "b", "c", "d"]
    assert [job.kind for job in found] == ["sanitize"] * 3 + ["gate"]
