"""The list of jobs: folders or JSON lines, read strictly, shared out by id."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from seamfast.errors import InputError
from seamfast.fleet.jobs import Jobs, check_shard

DEFAULTS = {"data": "digits", "seed": 0}


def lines(path: Path, *jobs: Any) -> Path:
    path.write_text("".join(f"{job if isinstance(job, str) else json.dumps(job)}\n" for job in jobs), encoding="utf-8")
    return path


def test_folders_are_jobs_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "with space", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    found = list(Jobs(tmp_path, DEFAULTS))
    assert [Path(job.settings["model"]).name for job in found] == ["a", "b", "with space"]
    assert [job.id for job in found][:2] == ["a", "b"]
    assert found[2].id.startswith("with_space-")
    assert {job.kind for job in found} == {"sanitize"}
    assert {job.kind for job in Jobs(tmp_path, {**DEFAULTS, "policy": "/p.toml"})} == {"gate"}


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "config.json"])
def test_folder_of_one_model_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="is the folder of one model; expected a folder of such folders"):
        Jobs(tmp_path, DEFAULTS)


def test_lines_have_defaults_kinds_and_absolute_paths(tmp_path: Path) -> None:
    source = lines(
        tmp_path / "jobs.jsonl",
        {"id": "one", "model": "in/a", "data": "clean.npz", "seed": 7},
        "",
        {"id": "two", "model": "/in/b", "policy": "gate.toml"},
        {"id": "three", "model": "c", "data": "mnist", "root": "sets"},
    )
    one, two, three = Jobs(source, {**DEFAULTS, "method": "fine_tune", "evidence": True})
    assert one.settings == {
        "model": str(tmp_path / "in/a"),
        "data": str(tmp_path / "clean.npz"),
        "seed": 7,
        "method": "fine_tune",
        "evidence": True,
    }
    assert two.kind == "gate"
    assert two.settings == {"model": "/in/b", "policy": str(tmp_path / "gate.toml"), **DEFAULTS}
    assert three.settings["data"] == "mnist"
    assert three.settings["root"] == str(tmp_path / "sets")


def test_default_id_is_the_jobs_own(tmp_path: Path) -> None:
    """It does not depend on other lines, nor on their order, but on what the job is."""
    job, other = {"model": "in/a", "data": "digits"}, {"model": "in/b", "data": "digits"}
    (alone,) = Jobs(lines(tmp_path / "1.jsonl", job), DEFAULTS)
    _, after = Jobs(lines(tmp_path / "2.jsonl", other, job), DEFAULTS)
    (seeded,) = Jobs(lines(tmp_path / "3.jsonl", {**job, "seed": 1}), DEFAULTS)
    assert alone.id == after.id
    assert alone.id != seeded.id
    assert alone.id.startswith("a-")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"model": "a", "modle": "b"}, "line 1: unknown key 'modle'; did you mean 'model'?"),
        ({"data": "digits"}, "line 1: has no 'model'; expected a path"),
        ({"model": "a", "seed": -1}, r"line 1: seed is -1; expected an integer in \[0, 2\*\*63\)"),
        ({"model": "a", "seed": True}, "line 1: seed is True; expected an integer"),
        ({"model": "a", "fraction": "1"}, "line 1: fraction is '1'; expected a number"),
        ({"model": "a", "config": [1]}, r"line 1: config is \[1\]; expected an object of settings"),
        ({"model": "a", "audits": "ntk"}, "line 1: audits is 'ntk'; expected a list of names"),
        ({"model": ""}, "line 1: model is ''; expected text"),
        ({"model": "a\0b"}, "line 1: model is .*; expected text"),
        ({"model": "a", "id": "../x"}, "line 1: id is '../x'; expected 1 to 128 letters, digits"),
        ({"model": "a", "id": "x" * 129}, "line 1: id is .*; expected 1 to 128 letters, digits"),
        ({"model": "a", "policy": "p", "method": "seam"}, "line 1: has 'method', but a job with a policy is a gate"),
        ({"model": "a", "allow_pickle": True}, "line 1: has 'allow_pickle', but a job without a policy is no gate"),
        ('{"model": "a", "model": "b"}', "line 1: is not strict JSON"),
        ('{"model": "a", "fraction": NaN}', "line 1: is not strict JSON"),
        ("[1]", r"line 1: is \[1\]; expected a JSON object"),
        ("{", "line 1: is not strict JSON"),
        (json.dumps({"model": "a" * 70_000}), "line 1: is longer than 65,536 bytes"),
    ],
)
def test_wrong_lines_are_refused_by_number(line: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Jobs(lines(tmp_path / "jobs.jsonl", line), DEFAULTS)


def test_doubled_id_names_both_lines(tmp_path: Path) -> None:
    source = lines(
        tmp_path / "j.jsonl", {"id": "x", "model": "a"}, {"id": "y", "model": "a"}, {"id": "x", "model": "b"}
    )
    with pytest.raises(InputError, match="line 3: id 'x' is that of line 1; expected one of its own"):
        Jobs(source, DEFAULTS)


def test_no_data_no_jobs_and_no_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1: has no data; expected 'data' in the job"):
        Jobs(lines(tmp_path / "a.jsonl", {"model": "a"}), {"seed": 0})
    with pytest.raises(InputError, match="holds no jobs; expected one JSON object a line"):
        Jobs(lines(tmp_path / "b.jsonl", ""), DEFAULTS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no folders; expected one for each model"):
        Jobs(tmp_path / "empty", DEFAULTS)
    with pytest.raises(InputError, match="cannot be read"):
        Jobs(tmp_path / "missing", DEFAULTS)
    with pytest.raises(InputError, match="the fleet's settings: unknown key 'sead'; did you mean 'seed'"):
        Jobs(tmp_path, {"sead": 1})


@pytest.mark.parametrize("n", [1, 2, 7])
def test_shards_divide_the_jobs_by_id(n: int, tmp_path: Path) -> None:
    jobs = [{"id": f"job-{number}", "model": "a"} for number in range(50)]
    source, again = lines(tmp_path / "a.jsonl", *jobs), lines(tmp_path / "b.jsonl", *jobs[::-1])
    parts = [{job.id for job in Jobs(source, DEFAULTS, (k, n))} for k in range(n)]
    assert sorted(job for part in parts for job in part) == sorted(job["id"] for job in jobs)
    assert all(parts)
    assert parts == [{job.id for job in Jobs(again, DEFAULTS, (k, n))} for k in range(n)]


@pytest.mark.parametrize("shard", ["2/2", "-1/2", "1", "a/b", "0/0", "1/2/3", ""])
def test_wrong_shards_are_refused(shard: str) -> None:
    with pytest.raises(InputError, match="expected k/n with k from 0 to n - 1"):
        check_shard(shard or "/")


def test_memory_is_a_few_bytes_a_job(tmp_path: Path) -> None:
    job = {"model": "m" * 200, "data": "d" * 200}
    source = lines(tmp_path / "jobs.jsonl", *({**job, "id": f"job-{number}"} for number in range(20_000)))
    tracemalloc.start()
    try:
        jobs = Jobs(source, DEFAULTS)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(jobs) == 20_000
    assert held / len(jobs) < 50
