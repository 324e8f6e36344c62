"""The list of jobs: folders or JSON lines, read strictly, shared out by id."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import seamfast
from seamfast.errors import DataFileError, InputError
from seamfast.fleet.jobs import DATA_SETS, Jobs, check_settings, check_shard

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
    assert re.fullmatch(r"a-[0-9a-f]{10}", alone.id)
    (odd,) = Jobs(lines(tmp_path / "4.jsonl", {"model": "in/..", "data": "digits"}), DEFAULTS)
    assert re.fullmatch(r"model-[0-9a-f]{10}", odd.id)
    other = [{"model": "x/a"}, {"model": "a", "data": "mnist"}, {"model": "a", "policy": "p"}, {"model": "a"}]
    assert len({job.id for job in Jobs(lines(tmp_path / "5.jsonl", *other), DEFAULTS)} | {alone.id}) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"model": "a", "modle": "b"}, "line 1: unknown key 'modle'; did you mean 'model'?"),
        ({"data": "digits"}, "line 1: has no 'model'; expected a path"),
        ({"model": "a", "seed": -1}, r"line 1: seed is -1; expected an integer in \[0, 2\*\*63\)"),
        ({"model": "a", "seed": True}, "line 1: seed is True; expected an integer"),
        ({"model": "a", "fraction": "1"}, "line 1: fraction is '1'; expected a number"),
        ({"model": "a", "config": [1]}, r"line 1: config is \[1\]; expected an object of JSON values"),
        ({"model": "a", "audits": "ntk"}, "line 1: audits is 'ntk'; expected a list of names"),
        ({"model": ""}, "line 1: model is ''; expected text"),
        ({"model": "a\0b"}, "line 1: model is .*; expected text"),
        ({"model": "a\ud800"}, r"line 1: model is 'a\\ud800'; expected text"),
        ({"model": None}, "line 1: model is None; expected text"),
        ({"model": "a", "seed": 2**63}, "line 1: seed is 9223372036854775808; expected an integer"),
        ({"model": "a", "seed": 1.0}, "line 1: seed is 1.0; expected an integer"),
        ({"model": "a", "evidence": 1}, "line 1: evidence is 1; expected true or false"),
        ({"model": "a", "trainable": ["head", 1]}, r"line 1: trainable is \['head', 1\]; expected a list of names"),
        ({"model": "a", "zzzzzz": 1}, "line 1: unknown key 'zzzzzz'; expected id, allow_pickle, architecture, "),
        ({"model": "a", "ID": "x"}, "line 1: unknown key 'ID'; "),
        ('{"model": "a", "fraction": 1e999}', "line 1: fraction is inf; expected a number"),
        (
            '{"model": "a", "config": {"rate": 1e999}}',
            "line 1: config is {'rate': inf}; expected an object of JSON val",
        ),
        ('{"model": "a", "config": {"x": 1, "x": 2}}', "line 1: is not strict JSON .*a key is there twice"),
        ({"model": "a", "id": 7}, "line 1: id is 7; expected 1 to 128 letters, digits"),
        ({"model": "a", "id": ".hidden"}, "line 1: id is '.hidden'; expected 1 to 128 letters, digits"),
        ({"model": "a", "id": "x\n"}, r"line 1: id is 'x\\n'; expected 1 to 128 letters, digits"),
        ({"model": "a", "id": "../x"}, "line 1: id is '../x'; expected 1 to 128 letters, digits"),
        ({"model": "a", "id": "x" * 129}, "line 1: id is .*; expected 1 to 128 letters, digits"),
        ({"model": "a", "policy": "p", "method": "seam"}, "line 1: has 'method', but a job with a policy is a gate"),
        ({"model": "a", "allow_pickle": True}, "line 1: has 'allow_pickle', but a job without a policy is no gate"),
        ('{"model": "a", "model": "b"}', "line 1: is not strict JSON"),
        ('{"model": "a", "fraction": NaN}', "line 1: is not strict JSON .*NaN is no number"),
        ("[" * 30_000, "line 1: is not strict JSON"),
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
    with pytest.raises(
        InputError, match="missing: no such file; looked for a folder of models, or a file of JSON lines"
    ):
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


@pytest.mark.parametrize("shard", ["2/2", "-1/2", "1", "a/b", "0/0", "1/2/3", "/", "", "\u0661/2", 1, (0, 2)])
def test_wrong_shards_are_refused(shard: Any) -> None:
    """The empty text is what a variable that nobody set becomes."""
    with pytest.raises(InputError, match=f"shard is {re.escape(repr(shard))}; expected k/n with k from 0 to n - 1"):
        check_shard(shard)


def test_shards_are_numbers_from_0() -> None:
    assert check_shard(None) == (0, 1)
    assert check_shard("0/1") == (0, 1)
    assert check_shard("7/8") == (7, 8)


def test_a_job_that_was_added_moves_no_other(tmp_path: Path) -> None:
    def part(*names: str) -> list[str]:
        jobs = lines(tmp_path / "jobs.jsonl", *({"id": name, "model": name} for name in names))
        return [job.id for job in Jobs(jobs, DEFAULTS, (0, 2))]

    assert [name for name in part("a", "new", "b", "c", "d") if name != "new"] == part("a", "b", "c", "d")


def test_a_shard_may_have_no_jobs_but_its_source_is_read_whole(tmp_path: Path) -> None:
    source = lines(tmp_path / "jobs.jsonl", {"id": "one", "model": "a"})
    assert sorted(len(Jobs(source, DEFAULTS, (k, 3))) for k in range(3)) == [0, 0, 1]
    lines(source, {"id": "one", "model": "a"}, {"id": "one", "model": "b"})
    for k in range(3):
        with pytest.raises(InputError, match="line 2: id 'one' is that of line 1"):
            Jobs(source, DEFAULTS, (k, 3))


def test_folders_are_shared_out_by_id(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"m {number}").mkdir()
    parts = [{job.id: job.settings["model"] for job in Jobs(tmp_path, DEFAULTS, (k, 3))} for k in range(3)]
    whole = {job.id: job.settings["model"] for job in Jobs(tmp_path, DEFAULTS)}
    assert {name: model for part in parts for name, model in part.items()} == whole
    assert sum(map(len, parts)) == 20


def test_odd_names_of_folders_become_ids(tmp_path: Path) -> None:
    names = ["-dash", "ümlaut", "a b", "a\tb", "a_b", ".".join("x" * 100), "~", os.fsdecode(b"\xff")]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a b")
    (tmp_path / "loop").symlink_to("loop")
    jobs = list(Jobs(tmp_path, DEFAULTS))
    assert sorted(os.path.basename(job.settings["model"]) for job in jobs) == sorted([*names, "link"])
    ids = [job.id for job in jobs]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) for name in ids)
    assert "a_b" in ids
    assert [job.id for job in Jobs(tmp_path, DEFAULTS)] == ids


def test_a_folder_with_the_id_of_another_is_refused(tmp_path: Path) -> None:
    """Who may add folders could otherwise have a result replaced by that of theirs."""
    (tmp_path / "a b").mkdir()
    (job,) = Jobs(tmp_path, DEFAULTS)
    (tmp_path / job.id).mkdir()
    with pytest.raises(InputError, match=f"holds 'a b' and '{job.id}'; expected one of them"):
        Jobs(tmp_path, DEFAULTS)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"policy": "/p.toml", "evidence": True}, "has 'evidence', but a job with a policy is a gate; expected allow_"),
        ({"architecture": "timm:x"}, "has 'architecture', but a job without a policy is no gate; expected audits, "),
    ],
)
def test_settings_that_no_folder_can_take_are_refused(defaults: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match=f"the fleet's settings: {message}"):
        Jobs(tmp_path / "models", {**DEFAULTS, **defaults})
    kinds = [{"id": "s", "model": "a", "preset": "fast"}, {"id": "g", "model": "a", "policy": "q.toml"}]
    both = Jobs(lines(tmp_path / "jobs.jsonl", *kinds), {**DEFAULTS, **defaults})  # of two kinds
    assert [job.kind for job in both] == ["sanitize", "gate"]


def test_a_policy_of_the_fleet_is_for_jobs_that_can_be_gates(tmp_path: Path) -> None:
    defaults = {**DEFAULTS, "policy": "/fleet.toml", "preset": "fast"}
    jobs = [{"id": "gate", "model": "a"}, {"id": "own", "model": "a", "method": "seam"}]
    gate, own = Jobs(lines(tmp_path / "jobs.jsonl", *jobs), defaults)
    assert (gate.kind, own.kind) == ("gate", "sanitize")
    assert gate.settings == {**DEFAULTS, "model": str(tmp_path / "a"), "policy": "/fleet.toml"}
    assert own.settings == {**DEFAULTS, "model": str(tmp_path / "a"), "preset": "fast", "method": "seam"}


def test_names_of_data_sets_stay_and_all_else_is_a_path(tmp_path: Path) -> None:
    names = {"data": "mnist-5k", "holdout": "digits", "test": "trec"}
    places = {"data": "clean", "holdout": "../held/out", "test": "test.csv"}
    jobs = [{"id": "n", "model": "digits", **names}, {"id": "p", "model": "m", **places, "triggers": "t", "root": "."}]
    (tmp_path / "digits").mkdir()
    named, placed = Jobs(lines(tmp_path / "in.jsonl", *jobs), DEFAULTS)
    assert named.settings == {"seed": 0, "model": str(tmp_path / "digits"), **names}
    assert placed.settings == {
        "seed": 0,
        "model": str(tmp_path / "m"),
        "data": str(tmp_path / "clean"),
        "holdout": str(tmp_path.parent / "held/out"),
        "test": str(tmp_path / "test.csv"),
        "triggers": str(tmp_path / "t"),
        "root": str(tmp_path),
    }


def test_data_sets_are_those_that_load_knows(tmp_path: Path) -> None:
    with pytest.raises(DataFileError) as caught:
        seamfast.load(tmp_path / "missing")
    known = re.search(r"neither a known data set \((.*)\)", str(caught.value))
    assert known is not None
    assert sorted(DATA_SETS) == sorted(known[1].split(", "))


@pytest.mark.parametrize(
    "config", [{"x": datetime.date(2020, 1, 1)}, {"x": math.nan}, {"x": (1, 2)}, {1: "x"}, {"x": {"y": object()}}]
)
def test_settings_of_the_fleet_are_json_values(config: dict[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the fleet: config is \{.*\}; expected an object of JSON values"):
        check_settings({"config": config}, "the fleet")
    check_settings({"config": {"x": [1, 2.5, None, {"y": "z"}]}}, "the fleet")


def test_a_list_that_cannot_be_read_again_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is not a regular file; looked for a folder of models, or a file of"):
        Jobs(tmp_path / "pipe", DEFAULTS)


def test_lines_of_the_longest_kind_blank_lines_and_other_ends(tmp_path: Path) -> None:
    longest = json.dumps({"id": "long", "model": "a"})
    longest = longest[:-1] + " " * (65_535 - len(longest)) + "}"
    source = tmp_path / "jobs.jsonl"
    source.write_bytes(
        b"\xef\xbb\xbf"
        + longest.encode()[:60]
        + longest.encode()[63:]
        + b'\n\n  \t\r\n{"id": "crlf", "model": "b"}\r\n'
        + b" " * 200_000
        + b'\n{"id": "last", "model": "c"}'
    )
    jobs = Jobs(source, DEFAULTS)
    assert [job.id for job in jobs] == ["long", "crlf", "last"]
    assert jobs[2].settings["model"] == str(tmp_path / "c")
    assert jobs[0].id == "long"
    source.write_text("\n\n" + longest[:-1] + "  }\n")
    with pytest.raises(InputError, match=r"jobs\.jsonl, line 3: is longer than 65,536 bytes; expected one JSON object"):
        Jobs(source, DEFAULTS)


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
