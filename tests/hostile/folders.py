"""Model folders made to harm: what is in them, and what their descriptions say."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from tests.hostile.case import Case

CANARY = "canary"  # appears beside the folder if anything in it is run

_RUNS = f"import pathlib; pathlib.Path(__file__).resolve().parents[{{}}].joinpath({CANARY!r}).write_text('run')\n"
CONFIG: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "id2label": {"0": "cat", "1": "dog"},
}


def write_weights(path: Path) -> None:
    path.write_bytes(save({"weight": torch.zeros(2, 2)}))


def _folder(place: Path) -> Path:
    folder = place / "model"
    folder.mkdir()
    write_weights(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


def _with(spoil: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        folder = _folder(place)
        spoil(folder)
        return folder

    return make


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return _with(spoil)


def _code(name: str) -> Callable[[Path], Path]:
    return _file(name, _RUNS.format(len(Path(name).parts)).encode())


def _link(name: str, target: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return _with(spoil)


def _named(name: bytes) -> Callable[[Path], Path]:
    return _with(lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"{}"))


def _node(name: str, kind: int) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mknod(folder / name, kind | 0o600)

    return _with(spoil)


def _config(**changes: Any) -> Callable[[Path], Path]:
    return _file("config.json", json.dumps(CONFIG | changes).encode())


def _config_text(text: str) -> Callable[[Path], Path]:
    return _file("config.json", text.encode())


def _cut(*names: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return _with(spoil)


def _weights_called(*names: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            write_weights(folder / name)

    return _with(spoil)


def _many(folder: Path) -> None:
    for i in range(1001):
        (folder / f"{i}.txt").touch()


def _deep(folder: Path) -> None:
    (folder / "/".join("d" * 12)).mkdir(parents=True)


def _deep_json(depth: int) -> str:
    return json.dumps(CONFIG)[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"


def _sparse(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(100 << 20)


def _zip_like(folder: Path) -> None:
    """Nine hundred files, each of which may be several archives."""
    entries, end = (b"PK\1\2" + bytes(42)) * 2000, struct.Struct("<4sHHHHIIH")
    content = entries + b"".join(end.pack(b"PK\5\6", 0, 0, 1, 1, 46, 46 * i, 0) for i in range(200))
    for i in range(900):
        (folder / f"{i}.bin").write_bytes(content)


def _renamed_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [0.0]}))


def _only_torch_zip(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2, 2)}, folder / "pytorch_model.bin")


# What `inspect` refuses, each without an architecture from the caller.
CASES: dict[str, Case] = {
    # Links
    "link out": Case(_link("passwd", "/etc/passwd"), "symlink"),
    "link to weights": Case(_link("model.safetensors", "../elsewhere.safetensors"), "symlink"),
    "link to config": Case(_link("config.json", "/dev/zero"), "symlink"),
    "link within": Case(_link("copy.safetensors", "model.safetensors"), "symlink"),
    "link to nothing": Case(_link("x", "nothing"), "symlink"),
    "link to itself": Case(_link("x", "x"), "symlink"),
    "link to the folder": Case(_link("x", "."), "symlink"),
    "link to the root": Case(_link("x", "/"), "symlink"),
    "link called like a policy": Case(_link("policy.toml", "/etc/hostname"), "symlink"),
    # What is no file
    "pipe": Case(_node("pipe", stat.S_IFIFO), "not-a-file"),
    "pipe for weights": Case(_node("model.safetensors", stat.S_IFIFO), "not-a-file"),
    "pipe for config": Case(_node("config.json", stat.S_IFIFO), "not-a-file"),
    "socket": Case(_node("socket", stat.S_IFSOCK), "not-a-file"),
    "device": Case(lambda place: Path("/dev/zero"), "not-a-file"),
    "nothing": Case(lambda place: place / "nothing", "not-found"),
    "folder for weights": Case(
        _with(lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir())),
        "no-weights",
    ),
    # Names and numbers of files
    "many files": Case(_with(_many), "too-many-files"),
    "deep folders": Case(_with(_deep), "too-many-files"),
    "name with an escape": Case(_named(b"\x1b[2J\x1b]0;owned\x07"), "file-name"),
    "name with a newline": Case(_named(b"a\n::error::b"), "file-name"),
    "name that is not UTF-8": Case(_named(b"\xff\xfe"), "file-name"),
    "name that turns text around": Case(_named("\u202egnp.exe".encode()), "file-name"),
    "name of 255 bytes": Case(_named(b"\x1b" * 255), "file-name"),
    "folder with such a name": Case(_with(lambda folder: (folder / "\x1b[31m").mkdir()), "file-name"),
    # Code
    **{
        f"code in {name}": Case(_code(name), "mixed-folder")
        for name in ("sitecustomize.py", "usercustomize.py", "conftest.py", "torch.py", "torch/__init__.py")
    },
    "code in __init__.py": Case(_code("__init__.py"), "mixed-folder"),
    "code, hidden and deep": Case(_code(".a/b/c/transformers.py"), "mixed-folder"),
    "hook of a repository": Case(_file(".git/hooks/post-checkout", b"#!/bin/sh\nmkdir canary\n"), "mixed-folder"),
    "settings of a repository": Case(_file(".git/config", b"[core]\n\tfsmonitor = mkdir canary\n"), "mixed-folder"),
    **{
        f"script called {name}": Case(_file(name, b"mkdir canary\n"), "mixed-folder")
        for name in ("run.sh", "run.bat", "run.ps1", "index.js", "init.lua", "Makefile", ".envrc", "train.ipynb")
    },
    "script without a suffix": Case(_file("run", b"#!/usr/bin/env node\n"), "mixed-folder"),
    "path configuration": Case(_file("a.pth", b"import os; os.mkdir('canary')\n"), "mixed-folder"),
    "many files that may be archives": Case(_with(_zip_like), "too-many-files"),
    "machine code": Case(_file("_C.so", b"\x7fELF\x02\x01\x01" + bytes(64)), "mixed-folder"),
    "pickle beside": Case(_file("optimizer.pt", pickle.dumps({"a": [1.0]})), "mixed-folder"),
    "pickle below": Case(_file("old/scaler.pkl", pickle.dumps({"a": [1.0]})), "mixed-folder"),
    # Weights
    "renamed pickle": Case(_with(_renamed_pickle), "pickle"),
    "torch.save": Case(_with(_only_torch_zip), "torch-zip"),
    "no weights": Case(_cut("model.safetensors"), "no-weights"),
    "nothing in it": Case(_cut("model.safetensors", "config.json"), "no-weights"),
    "no description": Case(_cut("config.json"), "no-architecture"),
    "two weights": Case(_weights_called("a.safetensors", "b.safetensors"), "ambiguous"),
    "weights and an index": Case(_file("model.safetensors.index.json", b'{"weight_map": {}}'), "ambiguous"),
    # config.json
    **{
        f"config with {key}": Case(_config(**{key: value}), "remote-code")
        for key, value in (
            ("auto_map", {"AutoModelForImageClassification": "modeling.Net"}),
            ("custom_pipelines", {"x": {"impl": "x.X"}}),
            ("custom_pipeline", "x"),
            ("trust_remote_code", True),
        )
    },
    "config with auto_map inside": Case(_config(vision_config={"a": [{"auto_map": {}}]}), "remote-code"),
    "config of a language model": Case(_config(model_type="llama"), "config"),
    "config of remote timm": Case(_config(model_type="timm_wrapper", architecture="hf-hub:x/y"), "config"),
    "config without model_type": Case(_config_text("{}"), "config"),
    "config with a list for model_type": Case(_config(model_type=["vit"]), "config"),
    "config with escapes": Case(_config(model_type="\x1b[2J"), "config"),
    "config with many layers": Case(_config(num_hidden_layers=10**6), "config"),
    "config with 201 layers": Case(_config(num_hidden_layers=201), "config"),
    "config with many layers in stages": Case(_config(model_type="resnet", depths=[60] * 4), "config"),
    "config with many layers by a factor": Case(_config(model_type="efficientnet", depth_coefficient=15), "config"),
    "config with wide layers": Case(_config(hidden_size=16_385), "config"),
    "config with large images": Case(_config(image_size=4097), "config"),
    "config with large images on one side": Case(_config(image_size=[16, 10**9]), "config"),
    "config with many classes": Case(_config(id2label=None, num_labels=65_537), "config"),
    "config with doubtful classes": Case(_config(num_labels=3), "config"),
    "config with classes by name": Case(_config(id2label={"cat": 0, "dog": 1}), "config"),
    "config with a negative size": Case(_config(hidden_size=-32), "config"),
    "config with no size": Case(_config(patch_size=0), "config"),
    "config with text for a number": Case(_config(hidden_size="32"), "config"),
    "config with true for a number": Case(_config(num_hidden_layers=True), "config"),
    "config with a fraction": Case(_config(hidden_size=32.5), "config"),
    "config with an object for a number": Case(_config(hidden_size={"a": 1}), "config"),
    "config with a huge integer": Case(_config(hidden_size=10**4000), "config"),
    "config with a longer integer": Case(_config_text('{"model_type": ' + "1" * 5000 + "}"), "config"),
    "config with 1e309": Case(_config_text(json.dumps(CONFIG)[:-1] + ', "x": 1e309}'), "config"),
    "config with NaN": Case(_config_text(json.dumps(CONFIG)[:-1] + ', "x": NaN}'), "config"),
    "config with a key twice": Case(_config_text(json.dumps(CONFIG)[:-1] + ', "hidden_size": 8}'), "config"),
    "config 9 deep": Case(_config_text(_deep_json(8)), "config"),
    "config 100,000 deep": Case(_config_text(_deep_json(100_000)), "config"),
    "config of 100 MB": Case(_with(_sparse), "config"),
    "config that is a list": Case(_config_text("[]"), "config"),
    "config cut short": Case(_config_text(json.dumps(CONFIG)[:-1]), "config"),
    "config that is not UTF-8": Case(_file("config.json", b"\xff\xfe{}"), "config"),
    "config with half a surrogate": Case(_config_text('{"model_type": "\\ud800"}'), "config"),
}
