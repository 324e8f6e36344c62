"""Backdoors in the folders of models: what goes in comes out to the bit; what is spoilt is refused."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import Tensor

from seamfast.attacks import Backdoor, InputAware
from seamfast.attacks.files import load_backdoor, save_backdoor
from seamfast.attacks.image.input_aware import Generator
from seamfast.errors import DataFileError, InputError
from seamfast.triggers import AllToAll, AllToOne, Blend, Patch, save_triggers

TRIGGERS = (Patch.square(2, target=1), Blend.noise((1, 8, 8), 0.2, 1))


def aware() -> InputAware:
    return InputAware(name="input-aware", target=AllToOne(3), image_shape=(1, 8, 9), generator=Generator(1).eval())


def images() -> Tensor:
    return torch.randint(0, 256, (5, 1, 8, 9), dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an input-aware backdoor in it."""
    save_backdoor(tmp_path / "model", Backdoor("input_aware", (aware(),)))
    return tmp_path / "model"


def document(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "backdoor.json").read_text(encoding="utf-8"))
    return read


def describe(folder: Path, **changes: Any) -> None:
    (folder / "backdoor.json").write_text(json.dumps(document(folder) | changes), encoding="utf-8")


# What goes in comes out.


def test_triggers_round_trip(tmp_path: Path) -> None:
    backdoor = Backdoor("multi_trigger", TRIGGERS)
    save_backdoor(tmp_path / "new" / "model", backdoor)
    assert load_backdoor(tmp_path / "new" / "model") == backdoor
    names = sorted(path.name for path in (tmp_path / "new" / "model").iterdir())
    assert names == ["backdoor.json", "triggers.npz"]


def test_networks_round_trip(tmp_path: Path) -> None:
    given, shown = aware(), images()
    save_backdoor(tmp_path, Backdoor("input_aware", (given,)))
    state = torch.get_rng_state()
    loaded = load_backdoor(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.attack == "input_aware"
    (trigger,) = loaded.triggers
    assert isinstance(trigger, InputAware)
    assert (trigger.name, trigger.target, trigger.image_shape) == ("input-aware", AllToOne(3), (1, 8, 9))
    assert torch.equal(trigger.stamp(shown), given.stamp(shown))
    assert not trigger.generator.training
    assert not any(p.requires_grad for p in trigger.generator.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backdoor.json", "input_aware.safetensors"]
    assert document(tmp_path) == {
        "format": "seamfast-backdoor",
        "version": 1,
        "attack": "input_aware",
        "input_aware": {"name": "input-aware", "target": 3, "image_shape": [1, 8, 9]},
    }


def test_triggers_alone_will_do(tmp_path: Path) -> None:
    save_triggers(tmp_path / "triggers.npz", TRIGGERS)
    assert load_backdoor(tmp_path) == Backdoor("", TRIGGERS)


def test_the_last_one_saved_counts(folder: Path) -> None:
    save_backdoor(folder, Backdoor("badnets", TRIGGERS[:1]))
    assert load_backdoor(folder) == Backdoor("badnets", TRIGGERS[:1])


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot save an InputAware with other triggers; expected it alone$"):
        save_backdoor(tmp_path, Backdoor("", (*TRIGGERS, aware())))
    turning = InputAware(name="x", target=AllToAll(1), image_shape=(1, 8, 8), generator=Generator(1))
    with pytest.raises(InputError, match=r"^cannot save an InputAware of AllToAll\(shift=1\); expected an AllToOne$"):
        save_backdoor(tmp_path, Backdoor("", (turning,)))
    refused(InputError, r"^got 0 triggers; expected 1 to 1024$", save_backdoor, tmp_path, Backdoor("", ()))
    assert list(tmp_path.iterdir()) == []


# What is spoilt is refused.


def test_folders_without_one(tmp_path: Path) -> None:
    where = re.escape(str(tmp_path))
    with pytest.raises(DataFileError, match=f"^{where}: no such file; looked for backdoor.json or triggers.npz$"):
        load_backdoor(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "seamfast-model"}, r" is not a description of format 'seamfast-backdoor', version 1$"),
        ({"version": 2}, r" is not a description of format 'seamfast-backdoor', version 1$"),
        ({"more": 1}, r" has the keys \['attack', 'input_aware', 'more'\]; expected \['attack', 'input_aware'\]$"),
        ({"attack": 3}, r": attack is 3; expected a name$"),
        ({"attack": "\x1b[2J"}, r": attack is '\\x1b\[2J'; expected a name$"),
        ({"attack": "x" * 129}, r": attack is 'x+\.\.\.x+'; expected a name$"),
        ({"input_aware": []}, r": input_aware is \[\]; expected an object of \['image_shape', 'name', 'target'\]$"),
        ({"input_aware": {}}, r": input_aware is \{\}; expected an object of \['image_shape', 'name', 'target'\]$"),
    ],
)
def test_spoilt_descriptions_are_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    describe(folder, **changes)
    with pytest.raises(DataFileError, match=rf"^.*/backdoor\.json{message}") as caught:
        load_backdoor(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_shape", [1, 8], r"image_shape is \[1, 8\]; expected \[C, H, W\]$"),
        ("image_shape", [True, 8, 8], r"image_shape is \[True, 8, 8\]; expected \[C, H, W\]$"),
        ("image_shape", [0, 8, 8], r"image_shape is \[0, 8, 8\]; expected \[C, H, W\]$"),
        ("image_shape", [10**9, 8, 8], r"image_shape is \[1000000000, 8, 8\]; expected \[C, H, W\]$"),
        ("image_shape", [1, 7, 8], r"trigger 'input-aware' is for images of 1x7x8; expected 1 channels, .* from 8$"),
        ("name", "", r"trigger name is ''; expected 1 to 128 printable characters$"),
        ("name", "\x1b[2J", r"trigger name is '\\x1b\[2J'; expected 1 to 128 printable characters$"),
        ("target", -1, r"AllToOne target is -1; expected an integer from 0$"),
        ("target", "0", r"AllToOne target is '0'; expected an integer from 0$"),
    ],
)
def test_spoilt_values_are_refused(key: str, value: Any, message: str, folder: Path) -> None:
    describe(folder, input_aware=document(folder)["input_aware"] | {key: value})
    refused(DataFileError, rf"^.*/backdoor\.json: {message}", load_backdoor, folder)


NETWORK = r"input_aware\.safetensors"


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (None, NETWORK + r" lacks out\.bias, for the architecture input_aware"),
        (torch.zeros(4), NETWORK + r" holds out\.bias of shape \(4,\); input_aware expects \(2,\)"),
        (
            torch.full((2,), torch.nan),
            r".*/backdoor\.json: out\.bias holds 2 NaN or Inf of 2 numbers; expected finite weights",
        ),
    ],
    ids=["missing", "shape", "NaN"],
)
def test_spoilt_networks_are_refused(bias: Tensor | None, message: str, folder: Path) -> None:
    path = folder / "input_aware.safetensors"
    spoilt = load_file(path) | {"out.bias": bias}
    save_file({name: tensor for name, tensor in spoilt.items() if tensor is not None}, path)
    refused(DataFileError, f"^{message}$", load_backdoor, folder)


def test_a_pickle_for_a_network_is_refused(folder: Path) -> None:
    (folder / "input_aware.safetensors").write_bytes(pickle.dumps([0.0, 0.0]))
    refused(DataFileError, NETWORK + " is not a whole safetensors file", load_backdoor, folder)


@pytest.mark.parametrize("name", ["backdoor.json", "input_aware.safetensors"])
def test_symbolic_links_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(DataFileError, rf"{re.escape(name)} is a symbolic link; expected the file itself", load_backdoor, folder)
