from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from refusals import refused
from torch import nn

import seamfast
from seamfast import (
    Callback,
    CleanSet,
    FineTuneConfig,
    Report,
    SeamAuthorsConfig,
    SeamConfig,
    SuperFineTuneConfig,
)
from seamfast.data import split_by_class
from seamfast.errors import SanitizeInterrupted
from seamfast.record import comparison
from seamfast.report import schema
from seamfast.triggers import AllToAll, Patch, SourceSpecific

SHORT = SeamConfig(forget_max_steps=4, recover_max_steps=6, recover_eval_every=3, strengths=(1.0, 0.5), batch_size=32)
PATCHES = (Patch.square(2), Patch.square(2, target=AllToAll(), name="all"))


class InterruptAt(Callback):
    """Ctrl-C at the n-th training step, from 0."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > self.step:
            raise KeyboardInterrupt


class StopAtOnce(Callback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


class InterruptAtOnce(Callback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def report(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> Report:
    return seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, triggers=PATCHES).report


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema(), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


# The reports of real runs, of every kind, follow the schema.

RUNS: dict[str, dict[str, Any]] = {
    "with triggers": {"triggers": PATCHES},
    "without triggers": {},
    "trigger without eligible samples": {"triggers": (Patch.square(2, target=SourceSpecific(3, 0)),)},
    "time budget": {"time_budget_s": 60, "seed": 2**63 - 1},
    "fine_tune": {"method": "fine_tune", "config": FineTuneConfig(max_steps=3)},
    "super_fine_tune": {"method": "super_fine_tune", "config": SuperFineTuneConfig(forget_steps=2, recover_steps=2)},
    "authors' settings": {
        "method": "seam_authors",
        "config": SeamAuthorsConfig.trojai(forget_max_epochs=1, recover_max_epochs=1),
    },
    "stopped": {"callbacks": [StopAtOnce()], "triggers": PATCHES},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_real_report_follows_its_schema(
    options: dict[str, Any], tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    data = tiny_data
    if options.get("triggers") and isinstance(options["triggers"][0].target, SourceSpecific):
        data = data.subset((data.labels != 3).nonzero().flatten())
    result = seamfast.sanitize(tiny_model(), data, **{"config": SHORT} | options)
    validator().validate(result.report)
    assert Report.from_json(result.report.to_json()) == result.report


def test_a_report_that_was_not_accepted_follows_the_schema(tiny_data: CleanSet) -> None:
    guessing = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.zeros_(guessing[1].weight)
    result = seamfast.sanitize(guessing, tiny_data, config=SHORT)
    assert not result.accepted
    assert result.report["verdict"]["accepted"] is False
    validator().validate(result.report)


@pytest.mark.parametrize("callback", [InterruptAt(0), InterruptAt(5), InterruptAtOnce()])
def test_a_partial_report_follows_the_schema(
    callback: Callback, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    with pytest.raises(SanitizeInterrupted) as stop:
        seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, triggers=PATCHES, callbacks=[callback])
    report = stop.value.report
    assert isinstance(report, Report)
    validator().validate(report)
    assert report["holdout"]["after"] is None
    assert report["model"]["digest_after"] is None
    assert report["verdict"]["accepted"] is False
    assert report["run"]["stopped"]


def test_the_part_on_test_data_is_optional_and_of_the_form_of_the_holdout_part(
    report: Report, tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    assert "test" not in report
    evaluation = seamfast.evaluate(tiny_model(), tiny_data, triggers=PATCHES)
    report["test"] = comparison(evaluation, evaluation)
    validator().validate(report)
    del report["test"]["fidelity"]
    assert not validator().is_valid(report)


# What is no report does not.


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value in a document and where it is."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def test_no_property_may_be_missing(report: Report) -> None:
    n_tried = 0
    for path, value in places(report):
        if not isinstance(value, dict) or path[:1] == ("config",) or path[-1:] == ("attack_success_rate",):
            continue
        if path in (("run", "steps"), ("run", "stepped"), ("run", "seconds"), ("run", "pruned")):
            continue  # a phase may not have run, a parameter may be all there
        for key in value:
            mutated = copy.deepcopy(report)
            del at(mutated, path)[key]
            assert not validator().is_valid(mutated), (path, key)
            n_tried += 1
    assert n_tried > 60
    for path in (("run", "seconds", "total"), ("config", "batch_size")):
        mutated = copy.deepcopy(report)
        del at(mutated, path[:-1])[path[-1]]
        assert not validator().is_valid(mutated), path


def test_no_property_may_be_added(report: Report) -> None:
    n_tried = 0
    for path, value in places(report):
        if isinstance(value, dict) and path != ("config",):
            mutated = copy.deepcopy(report)
            at(mutated, path)["extra"] = "more"
            assert not validator().is_valid(mutated), path
            n_tried += 1
    assert n_tried > 15


NULLABLE = {
    "time_budget_s", "digest_after", "after", "fidelity", "fidelity_nist", "stopped", "value", "n_cpus", "accelerator",
    "agreement", "error", "step_seconds", "accuracy_lost", "passed",
}  # fmt: skip
MAY_BE_NEGATIVE = {"fidelity", "fidelity_nist", "loss"}


@pytest.mark.parametrize("wrong", ["NaN", True, -1.5, None, [], {}], ids=repr)
def test_no_value_may_be_of_another_type_or_range(report: Report, wrong: Any) -> None:
    settings = schema()["properties"]["config"]["properties"]
    n_tried = 0
    assert not validator().is_valid(wrong)
    for path, value in places(report):
        if not path or (path[0] == "config" and path[-1] not in settings and len(path) > 1):
            continue
        key, number = path[-1], type(value) in (int, float)
        if type(wrong) is type(value) and not number:
            continue
        if (number and wrong == -1.5 and key in MAY_BE_NEGATIVE) or (key in NULLABLE and None in (wrong, value)):
            continue
        mutated = copy.deepcopy(report)
        at(mutated, path[:-1])[key] = wrong
        assert not validator().is_valid(mutated), (path, value, wrong)
        n_tried += 1
    assert n_tried > 100


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("created",), "yesterday"),
        (("method",), "sgd"),
        (("seed",), 2**63),
        (("time_budget_s",), 0),
        (("model", "digest_after"), "sha256:123"),
        (("model", "returned"), "both"),
        (("data", "num_classes"), 1),
        (("data", "class_counts"), [160]),
        (("holdout", "before", "class_accuracy"), []),
        (("holdout", "before", "clean_accuracy", "high"), 1.01),
        (("history", 0, "phase"), "evaluate"),
        (("run", "steps"), {"warm-up": 3}),
        (("schema_version",), 1),
    ],
    ids=str,
)
def test_no_value_may_leave_its_range(report: Report, path: tuple[Any, ...], wrong: Any) -> None:
    at(report, path[:-1])[path[-1]] = wrong
    assert not validator().is_valid(report)


def test_the_schema_is_sound_and_every_property_described() -> None:
    document = schema()
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(dict(document))
    n_objects = 0
    for path, node in places(dict(document)):
        if isinstance(node, dict) and "properties" in node and path[-1:] != ("properties",):
            n_objects += 1
            for name, inner in node["properties"].items():
                assert inner.get("description", "").endswith("."), (path, name)
            assert "additionalProperties" in node, path
            assert node["additionalProperties"] is False or path == ("properties", "config")
    assert n_objects > 10


# Strict JSON, to and fro.


def test_a_report_survives_text_and_file(report: Report, tmp_path: Path) -> None:
    report["warnings"] = ["ÄÖ→ \u2028 \U0001f600"]
    path = tmp_path / "new" / "folder" / "report.json"
    report.save(path)
    assert Report.load(path) == report
    assert Report.load(str(path)) == report
    assert json.loads(path.read_text(encoding="utf-8")) == report
    assert report.to_json().endswith("}\n")
    assert isinstance(Report.load(path), Report)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_nan_is_written(value: float, tmp_path: Path) -> None:
    report = Report(schema_version=2, history=[{"loss": value}])
    refused(ValueError, "not JSON compliant", report.to_json)
    refused(ValueError, "not JSON compliant", report.save, tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 2, "x": NaN}', "the report holds NaN; expected strict JSON"),
        ('{"schema_version": 2, "x": [Infinity]}', "the report holds Infinity; expected strict JSON"),
        ('{"schema_version": 2, "x": -Infinity}', "the report holds -Infinity; expected strict JSON"),
        ('{"schema_version": 2, "x": 1e999}', "the report holds 1e999; expected strict JSON"),
        ('{"schema_version": 2, "x": -1e999}', "the report holds -1e999; expected strict JSON"),
        ('{"schema_version": 2, "schema_version": 2}', "the report holds a key twice; expected strict JSON"),
        ('{"schema_version": 2, "x": {"a": 1, "b": 2, "a": 3}}', "the report holds a key twice; expected strict JSON"),
        ("{}", "the report has schema_version None; expected 2"),
        ('{"schema_version": 1}', "the report has schema_version 1; expected 2"),
        ('{"schema_version": "1"}', "the report has schema_version '1'; expected 2"),
        ('{"schema_version": true}', "the report has schema_version True; expected 2"),
        ('{"schema_version": 2.0}', "the report has schema_version 2.0; expected 2"),
        ("[]", "the report has schema_version 'list'; expected 2"),
        ('{"schema_version": 2, "x": ' + "[" * 100_000, "the report is nested too deeply; expected a report"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(text: str, message: str, tmp_path: Path) -> None:
    refused(ValueError, f"^{re.escape(message)}$", Report.from_json, text)
    path = tmp_path / "report.json"
    path.write_text(text)
    refused(ValueError, f"^{re.escape(message)}$", Report.load, path)


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 2} {}', "{'schema_version': 1}", "\ufeff{}"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Report.from_json(text)


# Whole or not at all.


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    old, new = Report(schema_version=2, x="old"), Report(schema_version=2, x="new")
    old.save(path)

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        refused(OSError, "disk full", new.save, path)
    assert Report.load(path) == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    new.save(path)
    assert Report.load(path) == new
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_the_new_file_is_whole_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, seen = Report(schema_version=2, x="y" * 100_000), []
    replace = os.replace

    def look(source: Any, target: Any) -> None:
        seen.append((Path(source).parent == Path(target).parent, Report.load(source)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    report.save(tmp_path / "report.json")
    assert seen == [(True, report)]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_is_respected(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        Report(schema_version=2).save(tmp_path / "report.json")
    finally:
        os.umask(before)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o666 & ~umask


# A gate reads reports where no torch is installed.


ALONE = """
import importlib.util, sys
module, path, report = sys.argv[1:]
spec = importlib.util.spec_from_file_location("alone", path)
alone = sys.modules["alone"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(alone)
if module == "report":
    assert alone.Report.load(report)["tool"]["name"] == "seamfast"
    assert alone.schema()["properties"]["schema_version"]["const"] == alone.SCHEMA_VERSION
if module == "metrics":
    assert alone.Rate(1, 2).value == 0.5
assert not {"torch", "numpy", "seamfast"} & set(sys.modules)
"""


@pytest.mark.parametrize("module", ["errors", "metrics", "report"])
def test_reading_a_report_needs_the_standard_library_only(module: str, report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    path = Path(seamfast.__file__).parent / f"{module}.py"
    command = [sys.executable, "-I", "-S", "-c", ALONE, module, str(path), str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True)  # -I -S: no site-packages, no environment
    assert done.returncode == 0, done.stderr


# What a report says is so.


def test_a_report_says_what_was_done(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    model = tiny_model()
    result = seamfast.sanitize(model, tiny_data, config=SHORT, triggers=PATCHES, seed=7)
    report = result.report
    assert report["seed"] == 7
    assert report["verdict"]["accepted"] is result.accepted
    assert report["config"] == SHORT.to_dict()
    assert SeamConfig.from_dict(report["config"]) == SHORT
    assert report["data"] == {
        "n_read": 160, "reading_stopped": None, "n_samples": 160, "n_repeated": 0, "num_classes": 4,
        "class_counts": [40] * 4, "n_forget": 128, "n_recovery": 128, "n_holdout": 32,
        "holdout_source": "split", "reading": "once",
    }  # fmt: skip
    assert report["model"]["n_parameters"] == sum(p.numel() for p in model.parameters())
    assert report["model"]["class"] == "torch.nn.modules.container.Sequential"
    assert report["model"]["digest_before"] != report["model"]["digest_after"]
    assert report["model"]["returned"] == "sanitized"
    assert [point["holdout_accuracy"] for point in report["history"]] == [p.holdout_accuracy for p in result.history]
    before = report["holdout"]["before"]
    assert before["clean_accuracy"]["n_total"] == 32
    assert [t["name"] for t in before["triggers"]] == ["patch", "all"]
    assert [t["attack_success_rate"]["n_total"] for t in before["triggers"]] == [24, 32]
    assert report["machine"]["torch"] == torch.__version__


def test_a_report_holds_plain_values_only(report: Report) -> None:
    plain = (dict, list, str, int, float, bool, type(None))
    assert [path for path, value in places(report) if path and type(value) not in plain] == []


# What its figures are of: the model that is returned, and the trigger that works best on it.

HOW: dict[str, Any] = {"precision": "fp32", "threads": 1, "deterministic": True, "progress": False}


def test_accuracy_after_is_that_of_the_rounded_weights() -> None:
    """Of a bfloat16 model: the rounding moves some of 2,000 samples to another class."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 16, generator=draw)
    model = nn.Linear(16, 8).to(torch.bfloat16)
    labels = model(inputs.to(torch.bfloat16)).argmax(1)
    config = SeamConfig(forget_max_steps=0, radius=0.3, recover_max_steps=10, holdout_fraction=0.5, accuracy_budget=1.0)
    result = seamfast.sanitize(model, (inputs, labels), config=config, **HOW)
    assert result.model.weight.dtype == torch.bfloat16
    held_out = split_by_class(labels, holdout_fraction=0.5, forget_fraction=1.0, seed=0).holdout
    right = result.model.float()(inputs[held_out]).argmax(1) == labels[held_out]
    wanted = labels[held_out][right].bincount(minlength=8).tolist()
    found = result.report["holdout"]["after"]["class_accuracy"]
    assert [rate["n_hit"] for rate in found] == wanted


def test_both_fidelities_are_the_lowest_over_the_triggers(
    tiny_data: CleanSet, tiny_model: Callable[[], nn.Module]
) -> None:
    """Class 3 is a bright bottom-right quadrant: a white one moves samples of a clean model there, one pixel none."""
    triggers = [Patch.square(size, target=3, margin=0, name=f"{size} pixels") for size in (4, 1)]
    config = FineTuneConfig(max_steps=2)
    result = seamfast.sanitize(tiny_model(), tiny_data, method="fine_tune", config=config, triggers=triggers, **HOW)
    report = result.report
    before, after = (report["holdout"][when] for when in ("before", "after"))
    rates = [[t["attack_success_rate"]["value"] for t in part["triggers"]] for part in (before, after)]
    assert rates[1][0] > rates[1][1]
    kept = after["clean_accuracy"]["value"] / before["clean_accuracy"]["value"]
    lost = max(rates[1]) / before["clean_accuracy"]["value"]
    assert report["holdout"]["fidelity"] == pytest.approx(kept - lost)
    nist = [(b - a) / b * kept for b, a in zip(*rates, strict=True) if b]
    assert report["holdout"]["fidelity_nist"] == pytest.approx(min(nist))
