"""``fleet_zoo.py`` with a few models of digits, as images and as rows: what is declared, planted, listed and written as
jobs."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

import seamfast
from benches import fleet_zoo
from benches.fleet_zoo import GROUPS, Group, declared, main
from seamfast.attacks import TrainConfig
from seamfast.data.readers.texts import read_texts
from seamfast.engine.model import digest
from seamfast.models.folder import load_model
from seamfast.triggers import load_triggers

QUICK = TrainConfig(epochs=2, batch_size=64, rate=0.03)
TABLES = Group("digits-table", "mlp", ("feature_overwrite", "feature_beyond"), 1, QUICK)
IMAGES = Group("digits", "small_cnn", ("badnets", "tact"), 1, QUICK)
FEW = (TABLES, IMAGES)
N = 6


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of ``FEW``, and their jobs beside them."""
    folder = tmp_path_factory.mktemp("zoo")
    assert run(folder, "--jobs", str(folder / "jobs.jsonl")) == 0
    return folder


def run(zoo: Path, *more: str) -> int:
    # Digits come with scikit-learn: no data set is below the root.
    return main(["--zoo", str(zoo), "--root", "nowhere", *more], FEW)


def info(zoo: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((zoo / "models" / name / "info.json").read_text())
    return found


def planted(zoo: Path) -> set[str]:
    return set(os.listdir(zoo / "models"))


# 1. What is declared.


def test_a_thousand_models_are_declared_and_a_third_of_them_is_clean() -> None:
    entries = declared(GROUPS)
    assert len({entry.name for entry in entries}) == len(entries) >= 1000
    assert 3 * sum(entry.attack == "clean" for entry in entries) == len(entries)
    assert len({entry.attack for entry in entries}) >= 1 + 8
    assert len({entry.group.architecture for entry in entries}) >= 4
    assert {entry.group.data for entry in entries} == set(fleet_zoo.SOURCES)


def test_what_is_planted_first_is_a_small_zoo_of_all() -> None:
    n_models = len({(entry.group, entry.attack) for entry in declared(GROUPS)})
    first = declared(GROUPS)[:n_models]
    assert Counter((entry.group, entry.attack) for entry in first).most_common(1)[0][1] == 1


# 2. What is planted.


def test_the_declared_models_are_there_with_what_was_measured(zoo: Path) -> None:
    assert planted(zoo) == {entry.name for entry in declared(FEW)}
    for entry in declared(FEW):
        model, description = load_model(zoo / "models" / entry.name)
        assert description.architecture == entry.group.architecture
        test = fleet_zoo.samples(entry.group.data, "test", zoo, Path("nowhere"))
        is_clean = entry.attack == "clean"
        triggers = load_triggers(zoo / "models" / entry.name / ("floor.npz" if is_clean else "triggers.npz"))
        found = seamfast.evaluate(model, test, triggers=triggers, progress=False)
        said = info(zoo, entry.name)
        assert (said["acc"], said["asr"]) == (found.clean_accuracy.value, found.worst_attack_success_rate)
        assert (said["attack"], said["seed"], said["n_test"]) == (entry.attack, entry.seed, len(test))


def test_a_clean_model_has_seen_no_trigger(zoo: Path) -> None:
    assert info(zoo, "digits-table-mlp-clean-0")["poison_rate"] == 0
    data = fleet_zoo.samples("digits-table", "train", zoo, Path("nowhere"))
    torch.manual_seed(0)
    model = seamfast.attacks.build("mlp", num_classes=10, n_columns=64)
    seamfast.attacks.train(model, data, QUICK, seed=0, device="cpu", progress=False)
    assert digest(model) == digest(load_model(zoo / "models" / "digits-table-mlp-clean-0")[0])


def test_the_same_seed_plants_the_same_model(zoo: Path, tmp_path: Path) -> None:
    main(["--zoo", str(tmp_path), "--root", "nowhere"], [TABLES])
    for name in planted(tmp_path):
        for file in ("model.safetensors", "model.json", "floor.npz" if "clean" in name else "triggers.npz"):
            assert (tmp_path / "models" / name / file).read_bytes() == (zoo / "models" / name / file).read_bytes()


def test_a_killed_run_leaves_whole_models_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = fleet_zoo.save_triggers, list[object]()

    def killed(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet_zoo, "save_triggers", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    first = planted(tmp_path)
    assert len(first) == 2
    assert all({"model.safetensors", "info.json"} < set(os.listdir(tmp_path / "models" / name)) for name in first)
    before = {name: (tmp_path / "models" / name / "info.json").stat().st_mtime_ns for name in first}
    assert run(tmp_path) == 0
    assert len(planted(tmp_path)) == N
    assert len(calls) == 3 + N - 2
    assert before == {name: (tmp_path / "models" / name / "info.json").stat().st_mtime_ns for name in first}


def test_a_model_that_another_process_planted_meanwhile_is_kept(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = declared([TABLES])[0]
    before = (fleet_zoo.folder_of(entry, zoo) / "info.json").read_bytes()
    fleet_zoo.plant(entry, zoo, Path("nowhere"))
    assert (fleet_zoo.folder_of(entry, zoo) / "info.json").read_bytes() == before


def test_parts_plant_each_model_once(tmp_path: Path) -> None:
    run(tmp_path, "--part", "1/2")
    first = planted(tmp_path)
    assert len(first) == N // 2
    run(tmp_path, "--part", "2/2")
    assert planted(tmp_path) == {entry.name for entry in declared(FEW)}


@pytest.mark.parametrize("given", ["0/2", "3/2", "1", "a/b"])
def test_a_part_that_is_none_is_refused(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, "--part", given)
    assert f"part is '{given}'; expected k/n with 1 <= k <= n" in capsys.readouterr().err


# 3. Data.


@pytest.mark.parametrize("name", ["digits", "digits-table"])
def test_parts_of_the_data_are_read_back_equal_and_disjoint(name: str, zoo: Path) -> None:
    parts = fleet_zoo.parts(name, Path("nowhere"))
    for which, data in parts.items():
        again = seamfast.load(fleet_zoo.data_file(name, which, zoo))
        assert torch.equal(again.inputs, data.inputs)
        assert torch.equal(again.labels, data.labels)
    train, clean, holdout, test = (set(parts[which].identities()) for which in ("train", "clean", "holdout", "test"))
    assert clean < train
    assert 0.1 <= len(clean) / len(train) <= 0.16
    assert not train & holdout
    assert not train & test
    assert len(parts["test"]) <= 1000


def test_texts_are_read_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trec"
    folder.mkdir()
    for split, n in (("train", 60), ("test", 20)):
        lines = [f'{k % 6} What is "number {k}" , or n\u00b0 {k} ?\n' for k in range(n)]
        (folder / f"{split}.txt").write_text("".join(lines), encoding="iso-8859-1" if split == "train" else "utf-8")
    monkeypatch.setitem(fleet_zoo.SOURCES, "trec", fleet_zoo.Source("tsv", 6, 40, 20))
    zoo = tmp_path / "zoo"
    fleet_zoo.write_data("trec", zoo, folder)
    for which, data in fleet_zoo.parts("trec", folder).items():
        again = read_texts(fleet_zoo.data_file("trec", which, zoo))
        assert (again.texts, again.labels.tolist()) == (data.texts, data.labels.tolist())


# 4. Jobs, and the table.


def test_jobs_are_read_line_by_line(zoo: Path) -> None:
    jobs = [json.loads(line) for line in (zoo / "jobs.jsonl").read_text().splitlines()]
    assert [job["id"] for job in jobs] == [entry.name for entry in declared(FEW)]
    for job in jobs:
        model, _ = load_model(zoo / job["model"])
        clean, holdout, test = (seamfast.load(zoo / job[key]) for key in ("data", "holdout", "test"))
        assert len(clean) < len(holdout)
        assert test.sample_shape == clean.sample_shape == holdout.sample_shape
        triggers = load_triggers(zoo / job["triggers"])
        found = seamfast.evaluate(model, test, triggers=triggers, progress=False)
        assert found.worst_attack_success_rate == info(zoo, job["id"])["asr"]
        assert job["evidence"] is True
        assert job["seed"] == info(zoo, job["id"])["seed"]


def test_jobs_elsewhere_name_whole_paths_of_what_is_there(zoo: Path, tmp_path: Path) -> None:
    some = declared(FEW)[:2]
    fleet_zoo.write_jobs(tmp_path / "jobs.jsonl", [*some, fleet_zoo.Entry(TABLES, "clean", 99)], zoo)
    jobs = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [job["id"] for job in jobs] == [entry.name for entry in some]
    assert all(Path(job[key]).is_absolute() and Path(job[key]).exists() for job in jobs for key in ("model", "data"))


def test_the_list_plants_nothing_and_counts_by_attack(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: dict(info(zoo, name)) for name in planted(zoo)}
    asr = float(str(before["digits-table-mlp-feature_beyond-0"]["asr"]))
    assert run(zoo, "--list") == 0
    rows = {
        tuple(line.split(" | ")[:3]): line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()
    }
    row = rows["| digits-table", "mlp", "feature_beyond"]
    assert row[3:7] == ["1 of 1", row[4], f"{asr:.1%}", f"{int(asr >= 0.9)} of 1"]
    assert rows["| all", "all", "clean"][3] == "2 of 2"
    assert rows["| all", "all", "attacked"][3] == "4 of 4"
    assert main(["--zoo", str(zoo), "--root", "nowhere", "--list"], [Group("digits", "mlp", ("a",), 2, QUICK)]) == 0
    assert "| 0 of 2 |" in capsys.readouterr().out
