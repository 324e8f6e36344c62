"""The zoo and the study of ``benches/``: what is planted, which rows are run, and what the tables make of them."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benches import study, study_report, zoo
from benches.zoo import Entry
from seamfast import CleanSet, attacks
from seamfast.attacks import TrainConfig
from seamfast.engine.model import digest
from seamfast.errors import InputError
from seamfast.triggers import AllToOne

NOWHERE = Path("nowhere")  # digits come with scikit-learn
DIGITS = {("digits", "small_cnn"): TrainConfig(epochs=10, batch_size=64, rate=0.1)}
BADNETS = Entry("digits", "small_cnn", "badnets", 0.1)
QUICK, QUICK_NAME = '{"recover_max_steps": 5, "forget_max_steps": 5}', "seam, recover_max_steps=5, forget_max_steps=5"


@pytest.fixture
def of_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "TRAINING", DIGITS)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of two models of digits: badnets, and its clean twin."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "TRAINING", DIGITS)
        for entry in (BADNETS, BADNETS.clean_twin):
            zoo.plant(entry, folder, precision="fp32")
    return folder


# 1. What is declared.


def test_every_attack_is_in_one_half() -> None:
    assert Counter([*zoo.DEVELOPMENT, *zoo.HELD_OUT]) == Counter([*attacks.ATTACKS, *zoo.OWN])
    assert len(zoo.HELD_OUT) == 7
    assert {Entry("cifar10", "small_vgg", attack).part for attack in zoo.OWN} == {"development"}


def test_the_declared_models_are_counted_by_hand() -> None:
    """A seed: 12 attacks on grey data and 14 in color at 5 %, two of them at three rates more, and a clean model; of
    the ViT on MNIST five attacks and a clean model, of the five nets of other kinds seven and a clean one. Two models
    of grey data, three in color; one of grey data and two in color with three attacks more."""
    entries = zoo.declared(zoo.TRAINING)
    grey, color, vit, other = 12 + 2 * 3 + 1, 14 + 2 * 3 + 1, 5 + 1, 7 + 1
    assert len(entries) == 3 * (2 * grey + 3 * color + vit + 5 * other + 3 * 3)
    assert len({entry.name for entry in entries}) == len(entries)
    assert Counter(e.data for e in entries if e.part == "clean") == {
        "mnist": 6,
        "fashion-mnist": 3,
        "gtsrb": 6,
        "cifar10": 18,
    }
    assert {e.attack for e in entries if e.data == "gtsrb"} == {"clean", *attacks.ATTACKS, *zoo.OWN}
    assert not {e.attack for e in entries if e.data.endswith("mnist")} & {"bpp", "color_filter"}
    assert {e.rate for e in entries if e.attack == "badnets" and e.architecture == "small_cnn"} == {
        *(0.1, 0.05, 0.01, 0.005)
    }
    assert {e.rate for e in entries if e.attack not in ("badnets", "blended")} == {0.05}
    assert {(e.data, e.architecture) for e in entries if e.attack in zoo.OWN} == {
        ("fashion-mnist", "small_cnn"),
        ("gtsrb", "small_vgg"),
        ("cifar10", "small_vgg"),
    }


@pytest.mark.parametrize(
    ("data", "architecture"),
    [
        ("cifar10", "wrn_16_1"),
        ("cifar10", "small_vgg_bn"),
        ("cifar10", "small_convnext"),
        ("cifar10", "small_vit"),
        ("gtsrb", "narrow_resnet18"),
    ],
)
def test_nets_of_other_kinds_are_planted_under_some_attacks_at_one_rate(data: str, architecture: str) -> None:
    entries = [e for e in zoo.declared(zoo.TRAINING) if (e.data, e.architecture) == (data, architecture) and not e.seed]
    assert {e.attack for e in entries} == {
        *("clean", "badnets", "blended", "bpp", "tact", "random_patch", "sig", "low_frequency")
    }
    assert {e.rate for e in entries} == {0.05}
    assert all(e.cost > 0 for e in entries)


def test_every_declared_architecture_exists() -> None:
    assert {name for _, name in (*zoo.TRAINING, *zoo.LARGE_TRAINING)} == set(zoo.WORK) <= set(attacks.ARCHITECTURES)
    assert {*zoo.SOME_ATTACKS, *zoo.WITH_OWN} <= set(zoo.TRAINING)


def test_cheap_models_come_first_and_a_clean_one_before_those_that_need_it() -> None:
    entries = zoo.declared(zoo.TRAINING)
    assert entries == sorted(entries, key=lambda e: e.cost)
    assert (entries[0].data, entries[-1].architecture) == ("mnist", "narrow_resnet18")
    for entry in entries:
        assert entries.index(entry.clean_twin) <= entries.index(entry)


@pytest.mark.parametrize(
    ("data", "attack", "rate", "planted_rate"),
    [
        ("mnist", "badnets", 0.005, 0.005),
        ("mnist", "all_to_all", 0.05, 0.1),
        ("mnist", "sig", 0.05, 0.05),
        ("gtsrb", "sig", 0.05, 0.02),
        ("gtsrb", "label_consistent", 0.05, 0.02),
        ("gtsrb", "tact", 0.01, 0.01),
        ("cifar10", "wave", 0.05, 0.05),
        ("gtsrb", "wave", 0.05, 0.1),
        ("gtsrb", "faint_blend", 0.05, 0.1),
        ("cifar10", "clean_label_wave", 0.05, 0.05),
        ("gtsrb", "clean_label_wave", 0.05, 0.02),
    ],
)
def test_poison_rates_that_differ_from_the_declared_one(
    data: str, attack: str, rate: float, planted_rate: float
) -> None:
    assert Entry(data, "small_cnn", attack, rate).poison_rate == planted_rate


def test_the_name_is_that_of_the_folder() -> None:
    assert Entry("mnist", "small_vit", "badnets", 0.005, 2).name == "mnist-small_vit-badnets-0.005-2"


# 2. Planting.


def test_what_is_planted_is_what_is_read(planted: Path) -> None:
    model, backdoor = zoo.load(BADNETS, planted)
    assert backdoor is not None
    assert not model.training
    info = json.loads((planted / BADNETS.name / "info.json").read_text())
    found = zoo.measure(model, backdoor, zoo.read("digits", NOWHERE, "test"))
    assert (info["acc"], info["asr"]) == (found.clean_accuracy.value, found.worst_attack_success_rate)
    assert info["asr"] > 0.9 > info["ra"][0]
    assert info["poison_rate"] == 0.1
    assert zoo.load(BADNETS.clean_twin, planted)[1] is None


@pytest.mark.usefixtures("of_digits")
def test_a_seed_gives_the_same_model(planted: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)  # is the seed of another
    zoo.plant(BADNETS, tmp_path, precision="fp32")
    assert digest(zoo.load(BADNETS, tmp_path)[0]) == digest(zoo.load(BADNETS, planted)[0])


@pytest.mark.usefixtures("of_digits")
def test_a_kill_leaves_no_half_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "TRAINING", {("digits", "small_cnn"): TrainConfig(epochs=1)})

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zoo, "save_backdoor", interrupt)
        with pytest.raises(KeyboardInterrupt):
            zoo.plant(BADNETS, tmp_path, precision="fp32")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / BADNETS.name).mkdir()
    (tmp_path / BADNETS.name / "model.json").write_text("")  # without its info.json it is no model
    assert not zoo.is_planted(BADNETS, tmp_path)
    zoo.plant(BADNETS, tmp_path, precision="fp32")
    assert [path.name for path in tmp_path.iterdir()] == [BADNETS.name]
    zoo.load(BADNETS, tmp_path)


def test_attacks_against_a_clean_model_plant_it_and_those_without_a_table_are_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "TRAINING", {("digits", "small_cnn"): TrainConfig(epochs=1)})
    test_set = zoo.read("digits", NOWHERE, "test")
    for attack in ("label_consistent", "input_aware"):
        entry = Entry("digits", "small_cnn", attack)
        zoo.plant(entry, tmp_path, precision="fp32")
        model, backdoor = zoo.load(entry, tmp_path)
        assert zoo.measure(model, backdoor, test_set).worst_attack_success_rate is not None
    assert zoo.is_planted(Entry("digits", "small_cnn", "clean"), tmp_path)


@pytest.mark.parametrize("attack", zoo.OWN)
def test_attacks_of_the_zoo_alone_are_planted_and_read(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "TRAINING", {("digits", "small_cnn"): TrainConfig(epochs=1)})
    entry = Entry("digits", "small_cnn", attack, seed=3)
    zoo.plant(entry, tmp_path, precision="fp32")
    model, backdoor = zoo.load(entry, tmp_path)
    assert backdoor is not None
    test_set = zoo.read("digits", NOWHERE, "test")
    info = json.loads((tmp_path / entry.name / "info.json").read_text())
    assert zoo.measure(model, backdoor, test_set).worst_attack_success_rate == info["asr"]
    (trigger,) = backdoor.triggers
    assert (backdoor.attack, trigger.name, trigger.target) == (attack, attack, AllToOne(3))
    _, planted = zoo.own_attack(attack, zoo.read("digits", NOWHERE, "train"), 3, 0.05, 3)
    images = test_set.pixels(torch.arange(8))
    assert torch.equal(trigger.stamp(images), planted.stamp(images))
    assert not torch.equal(trigger.stamp(images), images)


@pytest.mark.parametrize("attack", zoo.OWN)
def test_what_attacks_of_the_zoo_alone_poison(attack: str, tiny_data: CleanSet) -> None:
    """Of 160 images, 16: of other classes than 2, which become it, or of class 2, which stay it."""
    poisoned, trigger = zoo.own_attack(attack, tiny_data, 2, 0.1, 5)
    changed = poisoned.poisoned
    assert int(changed.sum()) == 16
    assert (poisoned.labels[changed] == 2).all()
    assert ((tiny_data.labels[changed] == 2) == (attack == "clean_label_wave")).all()
    assert torch.equal(poisoned.labels[~changed], tiny_data.labels[~changed])
    some = changed.nonzero().flatten()
    assert torch.equal(poisoned.pixels(some), trigger.stamp(tiny_data.pixels(some)))
    again, _ = zoo.own_attack(attack, tiny_data, 2, 0.1, 5)
    assert torch.equal(again.poisoned, changed)


def test_the_wave_is_diagonal_and_within_its_amplitude() -> None:
    """On 32x32 pixels: nine periods along a row, four along a column, all channels alike."""
    wave = zoo.diagonal_wave((3, 32, 32), 0, "wave").perturbation.astype(float)
    assert wave.shape == (1, 32, 32)
    assert abs(wave).max() <= zoo.WAVE_AMPLITUDE
    strength = torch.fft.fft2(torch.from_numpy(wave[0])).abs()
    strongest = {tuple(place) for place in (strength > strength.max() / 2).nonzero().tolist()}
    assert strongest == {(4, 9), (28, 23)}


def test_the_smooth_colors_are_smooth_and_follow_the_seed() -> None:
    first, again, other = (zoo.smooth_colors((3, 32, 32), 0, seed).pattern.astype(int) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert first.shape == (3, 32, 32)
    for axis in (1, 2):  # of 8 pixels between two colors, which differ by 255 at most
        assert abs(np.diff(first, axis=axis)).max() <= 255 / 8 + 1
    assert first.std() > 30


@pytest.mark.usefixtures("of_digits")
def test_the_table_marks_what_is_missing_and_what_did_not_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for attack, asr in (("badnets", 0.95), ("sig", 0.89)):
        folder = tmp_path / Entry("digits", "small_cnn", attack).name
        folder.mkdir()
        (folder / "info.json").write_text(json.dumps({"acc": 0.5, "asr": asr, "ra": [0.0], "seconds": 3.4}))
    given = ["zoo.py", "--list", "--rates", "0.05", "--seeds", "0", "--attacks", "badnets", "sig", "clean"]
    monkeypatch.setattr(sys, "argv", [*given, "--zoo", str(tmp_path)])
    assert zoo.main() == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| digits | small_cnn | clean | clean |  | 0 |  |  |  | not planted |",
        "| digits | small_cnn | badnets | development | 5 % | 0 | 50.00% | 95.00% | 3 |  |",
        "| digits | small_cnn | sig | held-out | 5 % | 0 | 50.00% | 89.00% | 3 | ASR below 0.9 |",
    ]


# 3. Clean budgets.


@pytest.mark.parametrize(("budget", "a_class"), [(0.05, 4), (0.5, 40), (1, 1), (20, 20)])
def test_a_budget_is_a_share_of_the_whole_training_set_or_images_a_class(
    budget: float, a_class: int, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 320 images, half are there: 40 in each of 4 classes."""
    monkeypatch.setitem(zoo.N_TRAIN, "half", 320)
    part = zoo.clean_part("half", tiny_data, budget, 0)
    assert part.labels.bincount().tolist() == [a_class] * 4
    assert len({image.numpy().tobytes() for image in part.inputs}) == len(part)
    assert torch.equal(part.inputs, zoo.clean_part("half", tiny_data, budget, 0).inputs)


@pytest.mark.parametrize(("budget", "said"), [(0.6, "0.6"), (41, "41 images a class")])
def test_a_budget_beyond_what_is_there_is_refused(
    budget: float, said: str, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(zoo.N_TRAIN, "half", 320)
    with pytest.raises(InputError) as caught:
        zoo.clean_part("half", tiny_data, budget, 0)
    assert str(caught.value) == f"a budget of {said} of half is more than is there"


# 4. Runs.


def asked(planted: Path, out: Path, *more: str) -> list[str]:
    return ["--zoo", str(planted), "--out", str(out), "--attacks", "badnets", "--rates", "0.1", "--seeds", "0", *more]


@pytest.mark.usefixtures("of_digits")
def test_a_run_goes_on_where_it_was(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "study.jsonl"
    arguments = asked(planted, out, "--methods", "no_defence", "--ablation", QUICK)
    assert study.main(arguments) == 0
    untouched, treated = study.read_rows(out)

    assert (untouched["method"], treated["method"]) == ("no_defence", QUICK_NAME)
    assert (untouched["part"], untouched["budget"], untouched["n_clean"]) == ("development", 0.05, 70)
    info = json.loads((planted / BADNETS.name / "info.json").read_text())
    for rate in ("acc", "asr"):
        assert untouched[f"{rate}_before"] == untouched[f"{rate}_after"] == treated[f"{rate}_before"] == info[rate]
    assert untouched["fidelity"] == pytest.approx((info["acc"] - info["asr"]) / info["acc"])
    assert untouched["fidelity_nist"] == 0
    assert (untouched["steps"], untouched["accepted"]) == (0, None)
    assert treated["steps"] >= treated["n_attempts"] * 5 > 0
    assert isinstance(treated["accepted"], bool)
    assert treated["row_seconds"] >= treated["seconds"]

    whole = out.read_bytes()
    study.main(arguments)
    assert out.read_bytes() == whole

    out.write_bytes(whole[:-20])  # a kill in the middle of the second row
    study.main(arguments)
    assert [row["method"] for row in study.read_rows(out)] == ["no_defence", QUICK_NAME]
    assert out.read_bytes().startswith(whole[:-20] + b"\n")

    capsys.readouterr()
    study.main([*arguments, "--seeds", "0", "1"])
    assert capsys.readouterr().err == "1 models are not planted and left out: digits-small_cnn-badnets-0.1-1\n"


@pytest.mark.usefixtures("of_digits")
def test_what_a_method_gives_back_is_what_is_measured(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A perfect defence: it knows the clean twin."""
    given: list[Any] = []

    def know(model: nn.Module, clean: CleanSet, *more: Any) -> study.Treated:
        given.append((len(clean), *more))
        return study.Treated(zoo.load(BADNETS.clean_twin, planted)[0], 7, 0.5, True, 2)

    monkeypatch.setitem(study.METHODS, "nad", know)
    study.main(asked(planted, tmp_path / "rows", "--methods", "nad", "--budgets", "3", "--defence-seeds", "5"))
    (row,) = study.read_rows(tmp_path / "rows")
    before, twin = (
        json.loads((planted / entry.name / "info.json").read_text()) for entry in (BADNETS, BADNETS.clean_twin)
    )
    assert given == [(30, "digits", (0, False), 5)]
    assert (row["acc_before"], row["asr_before"], row["ra_before"]) == (before["acc"], before["asr"], before["ra"][0])
    assert row["acc_after"] == twin["acc"]
    assert row["asr_after"] < 0.2 < 0.6 < row["ra_after"]
    assert row["fidelity"] == pytest.approx((twin["acc"] - row["asr_after"]) / before["acc"])
    assert row["fidelity_nist"] == pytest.approx((1 - row["asr_after"] / before["asr"]) * twin["acc"] / before["acc"])
    assert [row[name] for name in ("steps", "seconds", "accepted", "n_attempts", "n_clean")] == [7, 0.5, True, 2, 30]


@pytest.mark.usefixtures("of_digits")
def test_re_activation_brings_back_what_was_never_gone(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.jsonl"
    study.main(asked(planted, out, "--methods", "no_defence"))
    study.main(asked(planted, out, "--methods", "no_defence", "--reactivate"))
    study.main(asked(planted, out, "--methods", "no_defence", "--reactivate"))
    first, second = study.read_rows(out)  # done again, once
    assert "asr_reactivated" not in first
    assert second["asr_reactivated"] > 0.9
    assert second["asr_clean_twin"] < 0.2
    assert 0 <= second["asr_clean_twin_reactivated"] < second["asr_reactivated"]
    assert list(study.latest([first, second]).values()) == [second]


@pytest.mark.usefixtures("of_digits")
def test_no_more_is_begun_when_the_minutes_are_over(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.jsonl"
    arguments = asked(planted, out, "--methods", "no_defence", "--defence-seeds", "0", "1", "--minutes", "0")
    for n_rows in (1, 2, 2):  # one each time, so that every slice comes on
        study.main(arguments)
        assert len(study.read_rows(out)) == n_rows


@pytest.mark.usefixtures("of_digits")
def test_a_method_that_fails_has_a_row_that_says_so(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> study.Treated:
        raise FloatingPointError("the weights hold NaN or Inf after 3 steps")

    monkeypatch.setitem(study.METHODS, "nad", fail)
    out = tmp_path / "study.jsonl"
    study.main(asked(planted, out, "--methods", "nad"))
    study.main(asked(planted, out, "--methods", "nad"))
    (row,) = study.read_rows(out)
    assert row["failed"] == "the weights hold NaN or Inf after 3 steps"
    assert "acc_after" not in row


@pytest.mark.usefixtures("of_digits")
def test_a_budget_of_one_image_a_class_is_left_out(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study.jsonl"
    study.main(asked(planted, out, "--methods", "no_defence", "--budgets", "1"))
    assert not out.exists()
    assert capsys.readouterr().err == (
        f"{BADNETS.name}: left out, a budget of 1 of digits is fewer than two images of some class\n"
    )


@pytest.mark.usefixtures("of_digits")
def test_unseen_clean_data_is_one_half_of_the_test_set_and_the_other_half_measures(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: list[study.Case | None] = []
    prepare = study.prepare
    monkeypatch.setattr(study, "prepare", lambda *given: cases.append(prepare(*given)) or cases[-1])
    study.main(asked(planted, tmp_path / "study.jsonl", "--methods", "no_defence", "--budgets", "10", "--unseen"))
    (case,) = cases
    assert case is not None
    test = zoo.read("digits", zoo.DATA_ROOT, "test")
    assert abs(2 * len(case.test_set) - len(test)) <= 10  # one a class, of odd ones
    whole, clean, measured = (
        {image.numpy().tobytes() for image in part.inputs} for part in (test, case.clean, case.test_set)
    )
    assert clean | measured <= whole
    assert not clean & measured


def test_an_unknown_method_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(["--methods", "prayer", "--out", str(tmp_path / "study.jsonl")])
    assert "there is no method prayer; expected some of seam (balanced), seam (fast), " in capsys.readouterr().err


def test_shards_divide_the_core_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "is_planted", lambda *_: True)
    seen: list[list[study.Job]] = []
    monkeypatch.setattr(study, "run", lambda todo, *_: seen.append(todo))
    for shard in ("1/1", "1/2", "2/2"):
        study.main(["--core", "--shard", shard, "--out", "nothing"])
    everything, *halves = ({job.key for job in jobs} for jobs in seen)
    assert halves[0] | halves[1] == everything
    assert not halves[0] & halves[1]
    assert len(everything) == (12 + 1) * 13 + (14 + 3 + 1) * 13 + (14 + 1) * 4
    assert {job.entry.attack for job in seen[0]} == {"clean", *attacks.ATTACKS, *zoo.OWN}
    assert {(job.entry.rate, job.entry.seed, job.budget, job.seed) for job in seen[0]} == {(0.05, 0, 0.05, 0)}


def test_what_is_left_is_told_from_the_rows() -> None:
    rows = [
        {"data": "mnist", "architecture": "small_cnn", "method": "nad", "row_seconds": seconds} for seconds in (1, 2, 9)
    ]
    job = study.Job(Entry("mnist", "small_cnn", "sig"), "nad", 0.05, 0)
    other = study.Job(Entry("mnist", "small_cnn", "sig"), "ft_sam", 0.05, 0)
    assert study.expected_seconds([job, job], rows) == 4
    assert study.expected_seconds([job, other], rows) == 6
    assert study.expected_seconds([other], []) == 0


def test_a_defence_is_called_by_its_settings_for_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ft_sam", "ft_sam_gtsrb"):
        done = study.Treated(nn.Flatten(), len(name), 0.5)
        monkeypatch.setitem(study.DEFENCES, name, lambda *_, done=done, **__: done)
    n_steps = [study.METHODS["ft_sam"](None, None, data, (0, False), 0).n_steps for data in ("mnist", "gtsrb")]
    assert n_steps == [len("ft_sam"), len("ft_sam_gtsrb")]
    assert "ft_sam_gtsrb" not in study.METHODS


# 5. The report.


def row(**changes: Any) -> dict[str, Any]:
    """One of a cure that took the ASR from 100 to 10 % and the ACC from 80 to 76 %."""
    entry = {"data": "mnist", "architecture": "small_cnn", "attack": "sig", "rate": 0.05, "part": "held-out"}
    rates = {
        "acc_before": 0.8,
        "asr_before": 1.0,
        "ra_before": 0.0,
        "acc_after": 0.76,
        "asr_after": 0.1,
        "ra_after": 0.7,
    }
    found = {"fidelity": 0.825, "fidelity_nist": 0.855, "steps": 300, "seconds": 3.0, "accepted": True, "n_attempts": 1}
    made = {"method": "seam (balanced)", "budget": 0.05, "seed": 0, "model_seed": 0, "n_clean": 3000, "n_test": 10_000}
    whole = {**entry, **made, **rates, **found, "row_seconds": 4.0, "machine": {}, "commit": "abc", **changes}
    return {"entry": f"{whole['data']}-{whole['attack']}-{whole['rate']}", **whole}


def test_the_summary_is_the_arithmetic_of_its_rows() -> None:
    better = row(acc_after=0.8, asr_after=0.02, fidelity=0.975, fidelity_nist=0.98, steps=100, seconds=1.0)
    worse = row(acc_after=0.7, asr_after=0.3, fidelity=0.5, fidelity_nist=0.6125, seconds=2.0, accepted=False)
    failed = row(failed="NaN")
    found = study_report.summary([row(), better, worse, failed])
    assert found == {
        "n": 3,
        "n_failed": 1,
        "accepted": 2,
        "judged": 3,
        "asr_mean": pytest.approx((0.1 + 0.02 + 0.3) / 3),
        "asr_worst": 0.3,
        "acc_lost": pytest.approx((4 + 0 + 10) / 3),
        "fidelity": pytest.approx((0.825 + 0.975 + 0.5) / 3),
        "fidelity_nist": pytest.approx((0.855 + 0.98 + 0.6125) / 3),
        "steps": pytest.approx(700 / 3),
        "seconds": 2.0,
    }


ROWS = [
    row(),
    row(attack="all_to_all", asr_after=0.2, fidelity=0.7, steps=100),
    row(attack="badnets", part="development", asr_after=0.5, fidelity=0.325, steps=9),
    row(method="nad", accepted=None, failed="NaN"),
    row(method="nad", attack="all_to_all", accepted=None, asr_after=0.4, fidelity=0.45, steps=1500, seconds=20.0),
    row(attack="wanet", part="development", asr_before=0.5, asr_after=0.99),  # did not work
    row(attack="blended", part="development", rate=0.01, asr_after=0.98),  # another rate
    row(attack="clean", part="clean", asr_before=None, asr_after=None, fidelity=None, fidelity_nist=0.95),
    row(budget=20.0, asr_after=0.6, asr_reactivated=0.75, asr_clean_twin=0.01, asr_clean_twin_reactivated=0.05),
]


def test_the_page_has_what_the_rows_say() -> None:
    lines = study_report.page(ROWS).splitlines()
    for wanted in (
        "| held-out | seam (balanced) | 2 | 15.00% | 20.00% | 4.00 points | 0.762 | 0.762 | 0.855 | 200 | 3.0 | 2/2 |",
        "| held-out | nad | 1 (1 failed) | 40.00% | 40.00% | 4.00 points | 0.450 | 0.700 | 0.855 | 1,500 | 20.0 |  |",
        "| development | seam (balanced) | 1 | 50.00% | 50.00% | 4.00 points | 0.325 | 0.325 | 0.855 | 9 | 3.0 | 1/1 |",
        "| held-out | sig | 100.0% | 10.0%, 4.0 |  |",
        "| held-out | all_to_all | 100.0% | 20.0%, 4.0 | 40.0%, 4.0 |",
        "| mnist | small_cnn | wanet | 0.05 | 50.0% | 99.0%, 4.0 |",
        "| blended | 0.01 | 100.0% | 98.0%, 4.0 |",
        "| seam (balanced) | 1 | 4.00 | 4.00 | 1/1 |",
        "| held-out | seam (balanced) | 1 | 60.00% | 75.00% | 1.00% | 5.00% |",
    ):
        assert lines.count(wanted) == 1, wanted
    heads = [line for line in lines if line.startswith("## ")]
    assert heads == ["## Clean data: 5 % of the training set", "## Clean data: 20 a class"]


def test_other_nets_have_lines_of_their_own_and_change_no_mean() -> None:
    lines = study_report.page([*ROWS, row(architecture="small_convnext", asr_after=0.9, fidelity=-0.2)]).splitlines()
    assert "| mnist | small_convnext | 100.0% | 90.0%, 4.0 |  |" in lines
    same = (
        "| held-out | seam (balanced) | 2 | 15.00% | 20.00% | 4.00 points | 0.762 | 0.762 | 0.855 | 200 | 3.0 | 2/2 |"
    )
    assert lines.count(same) == 1


def test_acceptance_is_shown_beside_what_was_lost_and_unseen_rows_count_nowhere_else() -> None:
    unseen = [
        row(unseen=True, acc_after=0.79, accepted=True),
        row(unseen=True, acc_after=0.79, accepted=False, attack="all_to_all"),
        row(unseen=True, acc_after=0.7, accepted=True, attack="badnets"),
    ]
    lines = study_report.page([*ROWS, *unseen]).splitlines()
    assert "| of the training set | 5 % | 0/0 | 5/5 | 0/0 |" in lines  # one of another rate is left out
    assert "| unseen | 5 % | 1/2 | 0/0 | 1/1 |" in lines
    without = study_report.page(ROWS).splitlines()
    assert lines[: lines.index("## Acceptance")][5:] == without[5:]  # but for the number of rows
    assert "## Acceptance" not in without


def test_a_row_of_unseen_data_is_another_job() -> None:
    assert len(study.latest([row(), row(unseen=True), row(unseen=False)])) == 2


def test_the_report_is_made_of_the_rows_alone(tmp_path: Path) -> None:
    out = tmp_path / "study.jsonl"
    for one in reversed(ROWS):
        study.append_row(out, one)
    study.append_row(out, ROWS[0])  # the same job again: counts once
    made = []
    for name in ("first", "second"):
        assert study.main(["--report", "--out", str(out), "--docs", str(tmp_path / name)]) == 0
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    assert sorted(made[0]) == ["study-attacks.svg", "study-budgets.svg", "study-tradeoff.svg", "study.md"]
    assert made[0]["study.md"].decode() == study_report.page(ROWS)
    for name, words in (
        ("study-attacks.svg", {"all to all", "sig", "seam (balanced)", "nad", "ASR, %", "20", "40"}),
        ("study-tradeoff.svg", {"held-out attacks", "development attacks", "accuracy lost, points", "ASR, %", "nad"}),
        ("study-budgets.svg", {"5 %", "20 a class", "Fidelity", "clean data", "seam (balanced)"}),
    ):
        texts = {element.text for element in ElementTree.fromstring(made[0][name]).iter() if element.text}
        assert words <= texts, words - texts


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    study.main(["--report", "--out", str(tmp_path / "none.jsonl"), "--docs", str(tmp_path)])
    assert "0 rows; commits ." in (tmp_path / "study.md").read_text()
