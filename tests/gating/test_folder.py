"""Model folders: a good one becomes the module that was saved; a hostile one is refused, nothing run or written."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from seamfast.gating import folder as folder_module
from seamfast.gating.folder import inspect, model_values, receive
from seamfast.intake.refusal import RefusedError
from seamfast.models.folder import ModelDescription, save_model
from tests.gating.golden_files import check_messages
from tests.hostile.case import Case, refuses
from tests.hostile.folders import CANARY, CASES

DESCRIPTION = ModelDescription("small_cnn", num_classes=4, in_channels=1, image_size=8, mean=(0.4,), std=(0.25,))
ARGUMENTS = {"num_classes": 4, "in_channels": 1, "image_size": 8}


@pytest.fixture
def model() -> nn.Module:
    return DESCRIPTION.build().eval()


@pytest.fixture
def saved(tmp_path: Path, model: nn.Module) -> Path:
    """A folder with a good model in it."""
    save_model(tmp_path / "model", model, DESCRIPTION)
    return tmp_path / "model"


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def tree(place: Path) -> dict[str, object]:
    """All that lies below a folder: name, kind, size and times, and the beginning of each file."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        content = b""
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                content = file.read(1 << 20)
        found[os.fsdecode(os.fsencode(path))] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


def roles(files: Any) -> dict[str, str]:
    return {file.name: file.role for file in files}


class WithBuffer(nn.Module):
    """Computes with a buffer that no file holds, and with a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("scale", torch.full((2,), 3.0), persistent=False)
        self.shift = torch.randn(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.linear(x) * self.scale + self.shift
        return scaled


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight


# What goes in comes out.


def test_model_comes_out_as_it_was_saved(saved: Path, model: nn.Module) -> None:
    received = receive(inspect(saved))
    assert not received.converted_from_pickle
    assert not any(module.training for module in received.model.modules())
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(received.model(images), model(images))
    received.model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in received.model.parameters())


def test_inspection_says_what_is_there(saved: Path) -> None:
    inspection = inspect(saved)
    assert roles(inspection.files) == {"model.json": "description", "model.safetensors": "weights"}
    assert [file.kind for file in inspection.files] == ["json", "safetensors"]
    assert [file.n_bytes for file in inspection.files] == [path.stat().st_size for path in sorted(saved.iterdir())]
    assert [file.sha256 is None for file in inspection.files] == [False, True]
    assert (inspection.n_parameters, inspection.n_bytes) == (13_316, 13_316 * 4)
    assert inspection.architecture.input_shape == (1, 8, 8)


def test_values_are_those_of_the_report(saved: Path) -> None:
    inspection = inspect(saved)
    values = model_values(inspection, receive(inspection))
    assert json.loads(json.dumps(values)) == values
    assert values == {
        "path": str(saved),
        "files": [
            {
                "name": path.name,
                "kind": "json" if path.suffix == ".json" else "safetensors",
                "n_bytes": path.stat().st_size,
                "sha256": folder_module.sha256(path.read_bytes()).hexdigest(),
                "role": "description" if path.suffix == ".json" else "weights",
            }
            for path in sorted(saved.iterdir())
        ],
        "architecture": {
            "source": "registered",
            "name": "small_cnn",
            "arguments": ARGUMENTS | {"mean": [0.4], "std": [0.25]},
        },
        "n_parameters": 13_316,
        "n_bytes": 53_264,
        "converted_from_pickle": False,
    }
    assert model_values(inspection)["files"][1]["sha256"] is None


def test_nothing_is_drawn_and_nothing_written(saved: Path, tmp_path: Path) -> None:
    state, before = torch.random.get_rng_state(), tree(tmp_path)
    receive(inspect(saved))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert tree(tmp_path) == before


def test_one_file_will_do_where_the_caller_names_the_architecture(saved: Path, model: nn.Module) -> None:
    renamed = weights(saved).rename(saved / "epoch-3.safetensors")
    (saved / "train.py").touch()  # beside it, and none of its business
    inspection = inspect(renamed, architecture="registered:small_cnn", arguments=ARGUMENTS)
    assert roles(inspection.files) == {"epoch-3.safetensors": "weights"}
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(receive(inspection).model(images), model(images))
    with pytest.raises(
        RefusedError,
        match=r"^there is no model\.json or config\.json beside the weights; expected one, or an architecture: r",
    ):
        inspect(renamed)


@pytest.mark.parametrize("linked", [".", "model.safetensors"])
def test_what_the_caller_names_may_be_a_link(linked: str, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved / linked)
    given = {} if linked == "." else {"architecture": "registered:small_cnn", "arguments": ARGUMENTS}
    assert inspect(tmp_path / "link", **given).path == str(tmp_path / "link")


def test_only_safetensors_file_is_taken_whatever_its_name(saved: Path) -> None:
    weights(saved).rename(saved / "weights.safetensors")
    assert receive(inspect(saved)).files[1].role == "weights"


def test_model_safetensors_goes_before_others(saved: Path) -> None:
    save_file({"x": torch.zeros(1)}, saved / "input_aware.safetensors")
    received = receive(inspect(saved))
    assert roles(received.files)["input_aware.safetensors"] == "ignored"
    assert [file.sha256 is None for file in received.files] == [True, False, False]


def test_shards_are_read_and_hashed_each(saved: Path, model: nn.Module) -> None:
    state = model.state_dict()
    weights(saved).unlink()
    parts = {"a.safetensors": list(state)[:3], "b.safetensors": list(state)[3:], "c.safetensors": []}
    for name, held in parts.items():
        (saved / name).write_bytes(save({key: state[key] for key in held}))
    index = {"weight_map": {key: name for name, held in parts.items() for key in held}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    received = receive(inspect(saved))
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(received.model(images), model(images))
    for file in received.files:  # the last shard is none: the index does not name it
        assert (file.sha256 is None) == (file.name == "c.safetensors") == (file.role == "ignored")


def test_what_no_file_holds_is_made_anew(tmp_path: Path) -> None:
    made = WithBuffer()
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    first, second = (receive(inspect(tmp_path, architecture=WithBuffer)).model for _ in range(2))
    assert torch.equal(first.linear.weight, made.linear.weight)
    assert torch.equal(first.scale, torch.full((2,), 3.0))
    assert torch.equal(first.shift, second.shift)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    made = Tied()
    state = {name: value.clone() for name, value in made.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    model = receive(inspect(tmp_path, architecture=Tied)).model
    assert model.first.weight is model.second.weight
    assert torch.equal(model.first.weight, made.first.weight)


def test_policies_in_the_folder_are_noted_and_not_read(saved: Path) -> None:
    for name in ("policy.toml", "gate.TOML", "sub/Policy.json"):
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text("version = 1\n", encoding="utf-8")
    inspection = inspect(saved)
    assert inspection.ignored_policies == ("gate.TOML", "policy.toml", "sub/Policy.json")
    assert all(file.role == "ignored" and file.sha256 is None for file in inspection.files if "model" not in file.name)


def test_what_other_tools_may_run_or_unpack_is_named_and_not_read(saved: Path) -> None:
    contents = {
        "tokenizer.tar": b"\0",
        "evil-1-py3-none-any.whl": b"PK\5\6" + bytes(18),
        "tf_model.h5": b"\x89HDF\r\n\x1a\n" + bytes(40),
        "old.pkl.gz": b"\x1f\x8b\x08" + bytes(20),
        "card.html": b"<html>",
        "logo.svg": b"<svg onload='alert(1)'/>",
        "pyproject.toml": b"[build-system]\n",
        "sub/lib.jar": b"PK\3\4",
        "README.md": b"# A model\n",
        "labels.txt": b"cat\n",
        ".gitattributes": b"*.bin filter=lfs\n",
    }
    for name, content in contents.items():
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_bytes(content)
    assert inspect(saved).not_read == tuple(sorted(set(contents) - {"README.md", "labels.txt", ".gitattributes"}))


def test_pickles_beside_the_weights_are_named_where_they_are_allowed(saved: Path, model: nn.Module) -> None:
    torch.save(model.state_dict(), saved / "model.pt")
    assert inspect(saved, allow_pickle=True).not_read == ("model.pt",)


def test_weights_and_descriptions_are_read(saved: Path) -> None:
    assert inspect(saved).not_read == ()


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        (".git/hooks/pre-commit", b"#!/bin/sh\n", r"\.git/hooks/pre-commit \(script\), \.git \(a repository\)"),
        ("a/.GIT/config", b"[core]\n\tfsmonitor = x\n", r"\.git \(a repository\)"),
        ("run", b"#!/usr/bin/env node\n", r"run \(script\)"),
        ("Makefile", b"all:\n", r"Makefile \(script\)"),
        ("start.ps1", b"", r"start\.ps1 \(script\)"),
        ("train.ipynb", b"{}", r"train\.ipynb \(script\)"),
        ("x.pth", b"import os\n", r"x\.pth \(python\)"),
    ],
)
def test_what_runs_beside_the_weights_is_refused(name: str, content: bytes, found: str, saved: Path) -> None:
    (saved / name).parent.mkdir(parents=True, exist_ok=True)
    (saved / name).write_bytes(content)
    with refuses("mixed-folder", rf"^model holds code beside the weights: {found}; expected a folder of data alone$"):
        inspect(saved, allow_pickle=True)


def test_a_file_under_many_names_is_looked_at_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []
    look = folder_module.look
    monkeypatch.setattr(folder_module, "look", lambda *args: looked_at.append(args) or look(*args))
    (saved / "0.zip").write_bytes(b"PK\5\6" + bytes(18))
    for number in range(1, 900):
        os.link(saved / "0.zip", saved / f"{number}.zip")
    assert len(inspect(saved).not_read) == 900
    assert len(looked_at) == 3


def test_many_files_that_take_long_to_tell_are_refused(saved: Path) -> None:
    entry = b"PK\1\2" + bytes(42)
    content = entry * 2000 + b"".join(
        b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 46, 46 * i, 0) for i in range(200)
    )
    for number in range(900):
        (saved / f"{number}.bin").write_bytes(content)
    with refuses("too-many-files", r"^telling what the files of the model are takes too much reading; expected fewer"):
        inspect(saved)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("running_var", -1e-3, r"1\.running_var of -0\.001"),
        ("num_batches_tracked", -1, r"1\.num_batches_tracked of -1"),
    ],
)
def test_statistics_that_no_training_leaves_are_refused(name: str, value: float, found: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))

    state = make().state_dict()
    state[f"1.{name}"].fill_(value)
    save_file(state, tmp_path / "model.safetensors")
    inspection = inspect(tmp_path, architecture=make)
    with refuses("value", rf"^model\.safetensors holds {found}; expected at least 0$"):
        receive(inspection)


def test_refusals_name_no_folder_of_this_machine(saved: Path, tmp_path: Path) -> None:
    (saved / "sub").mkdir()
    (saved / "sub" / "a.py").touch()
    for path, match in ((saved, "model holds code"), (tmp_path / "absent", "absent cannot be opened")):
        with pytest.raises(RefusedError, match=match) as caught:
            inspect(path)
        assert str(tmp_path) not in str(caught.value)


def test_model_that_is_too_large_is_refused_before_it_takes_memory(saved: Path) -> None:
    large = ARGUMENTS | {"image_size": 4096}
    with refuses("too-large", r"^small_cnn takes 8,589,\d{3},\d{3} bytes of weights; the limit is 4,294,"):
        inspect(saved, architecture="registered:small_cnn", arguments=large)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers_are_refused(number: str, saved: Path, model: nn.Module) -> None:
    with torch.no_grad():
        model[0].bias[3] = float(number)
    save_model(saved, model, DESCRIPTION)
    with refuses("non-finite", r"^model\.safetensors holds NaN or Inf in 0\.bias; expected finite weights$"):
        receive(inspect(saved))


def test_other_weights_than_the_architecture_has_are_refused(saved: Path) -> None:
    with pytest.raises(RefusedError, match=r"small_vit"):
        receive(inspect(saved, architecture="registered:small_vit", arguments=ARGUMENTS))


# Pickles


def test_pickle_is_taken_only_where_it_is_allowed(saved: Path, model: nn.Module) -> None:
    weights(saved).unlink()
    torch.save(model.state_dict(), saved / "model.pt")
    with refuses("torch-zip", r"^model\.pt is a zip of torch\.save around a pickle"):
        inspect(saved)
    inspection = inspect(saved, allow_pickle=True)
    assert roles(inspection.files) == {"model.json": "description", "model.pt": "weights"}
    received = receive(inspection)
    assert received.converted_from_pickle
    assert model_values(inspection, received)["converted_from_pickle"]
    assert received.files[1].sha256 == folder_module.sha256((saved / "model.pt").read_bytes()).hexdigest()
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(received.model(images), model(images))


def test_safetensors_go_before_pickles(saved: Path, model: nn.Module) -> None:
    torch.save(model.state_dict(), saved / "model.pt")
    with pytest.raises(
        RefusedError,
        match=r"^model holds code or pickles beside the weights: model\.pt \(torch-zip\); expected a folder of data al",
    ):
        inspect(saved)
    received = receive(inspect(saved, allow_pickle=True))
    assert not received.converted_from_pickle
    assert roles(received.files)["model.pt"] == "ignored"


def test_two_pickles_are_one_too_many(saved: Path, model: nn.Module) -> None:
    weights(saved).unlink()
    for name in ("a.pt", "b.pt"):
        torch.save(model.state_dict(), saved / name)
    with pytest.raises(RefusedError, match=r"^there are a\.pt, b\.pt; expected one file of weights$"):
        inspect(saved, allow_pickle=True)


def test_code_is_refused_even_where_pickles_are_allowed(saved: Path) -> None:
    (saved / "modeling.py").write_text("x = 1\n", encoding="utf-8")
    with refuses("mixed-folder", r"holds code beside the weights: modeling\.py \(python\)"):
        inspect(saved, allow_pickle=True)


# Hostile folders


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_hostile_folder_is_refused(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = case.make(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # the folder can be imported from where the command runs
    before = tree(tmp_path)
    with pytest.raises(RefusedError) as caught:
        inspect(path)
    assert caught.value.code == case.code, str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700
    assert tree(tmp_path) == before
    assert not (tmp_path / CANARY).exists()


def test_refusals_say_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def inspected(name: str) -> object:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        return inspect(CASES[name].make(place))

    monkeypatch.setattr(folder_module, "MAX_FILES", 30)
    names = [
        *("link out", "pipe", "name with a newline", "many files", "deep folders", "code in torch.py"),
        *("two weights", "no weights", "config with auto_map", "config with a key twice", "config with 1e309"),
        *("config with 201 layers", "config with many layers in stages", "config with text for a number"),
        *("config with a negative size", "config with doubtful classes", "config with many classes"),
        *("config 9 deep", "config of 100 MB", "config of a language model"),
    ]
    check_messages("folders.txt", RefusedError, inspected, names, rf"{tmp_path}/\d+/")


@pytest.mark.parametrize("entry", ["", ".", "sub"])
def test_run_from_within_the_folder_is_refused(entry: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "sub").mkdir()
    monkeypatch.chdir(saved)
    inspect(saved)  # harmless as long as Python does not import from there
    monkeypatch.setattr(sys, "path", [*sys.path, entry])
    with refuses("import-path", r"^Python imports modules from .*, which lies in the model's folder; "):
        inspect(".")


def test_an_editable_install_is_no_folder_to_import_from(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "__editable__.seamfast-0.finder.__path_hook__"

    class Finder:
        """As setuptools makes it: a hook that answers for one entry of ``sys.path``, which is no folder."""

        def __init__(self, entry: str) -> None:
            if entry != name:
                raise ImportError

        def find_spec(self, *_: object) -> None:
            return None

    monkeypatch.setattr(sys, "path_hooks", [*sys.path_hooks, Finder])
    monkeypatch.setattr(sys, "path", [*sys.path, name])
    monkeypatch.chdir(saved)
    monkeypatch.delitem(sys.path_importer_cache, name, raising=False)
    try:
        inspect(saved)
    finally:
        sys.path_importer_cache.pop(name, None)


# Between the two steps


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def touched_back(path: Path) -> None:
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def linked(path: Path) -> None:
    elsewhere = path.parent.parent / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("swap", [replaced, touched_back, linked, Path.unlink])
def test_swap_after_the_inspection_is_refused(name: str, swap: Callable[[Path], Any], saved: Path) -> None:
    inspection = inspect(saved)
    swap(saved / name)
    with refuses("changed", rf"^{name} changed while it was read; expected a file that stays as it is$"):
        receive(inspection)


def test_write_under_way_at_the_inspection_is_waited_for(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights(saved).touch()  # as the beginning of a write
    inspection = inspect(saved)
    waited: list[float] = []

    def meanwhile(seconds: float) -> None:
        waited.append(seconds)
        touched_back(weights(saved))

    monkeypatch.setattr(folder_module.time, "sleep", meanwhile)
    with refuses("changed", r"^model\.safetensors changed while it was read; expected a file that stays as it is$"):
        receive(inspection)
    assert 0 < waited[0] < 0.11


def test_no_size_makes_it_wait_longer(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(weights(saved), 1 << 40)
    inspection = inspect(saved)
    waited: list[float] = []
    monkeypatch.setattr(folder_module.time, "sleep", waited.append)
    with pytest.raises(RefusedError, match=r"has 1,099,511,627,776 bytes; expected at most"):
        receive(inspection)
    assert sum(waited) < 0.11


def test_files_at_rest_are_not_waited_for(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspection = inspect(saved)
    now = max(path.stat().st_ctime for path in saved.iterdir())
    monkeypatch.setattr(folder_module.time, "time", lambda: now + 0.2)
    monkeypatch.setattr(folder_module.time, "sleep", lambda seconds: pytest.fail("waits"))
    receive(inspection)


def test_swap_while_the_weights_are_read_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspection = inspect(saved)
    read = folder_module.read_tensors

    def read_other(path: Path, *args: Any, **options: Any) -> Any:
        shutil.copy(path, path.with_name("aside"))
        path.rename(path.with_name("first"))
        path.with_name("aside").rename(path)
        found = read(path, *args, **options)
        path.with_name("first").rename(path)  # and back again
        return found

    monkeypatch.setattr(folder_module, "read_tensors", read_other)
    with pytest.raises(RefusedError, match=r"^model\.safetensors changed while it was read"):
        receive(inspection)


def test_swap_of_the_folder_is_refused(saved: Path) -> None:
    inspection = inspect(saved)
    saved.rename(saved.with_name("first"))
    shutil.copytree(saved.with_name("first"), saved)
    with pytest.raises(RefusedError, match=r"changed while it was read"):
        receive(inspection)
