"""A folder that the gate writes is read by the gate again, with the same accuracy, preprocessing and class names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seamfast
from seamfast import attacks
from seamfast.attacks import TrainConfig
from seamfast.gating.config_json import parse_config, preprocessing, preprocessor_document
from seamfast.gating.folder import inspect, receive
from seamfast.gating.pipeline import gate
from seamfast.models.folder import save_weights
from tests.gating.conftest import TRIGGER
from tests.gating.test_schema import VALIDATOR

CONFIG = {
    "model_type": "resnet",
    "num_channels": 3,
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "downsample_in_first_stage": False,
    "id2label": {str(label): f"digit ‘{label}’" for label in range(10)},
}
PREPROCESSOR = {
    "image_mean": [0.7, 0.5, 0.3],
    "image_std": [0.1, 0.2, 0.3],
    "size": {"height": 8, "width": 8},
    "do_center_crop": False,
    "resample": 3,
    "rescale_factor": 0.1,
    "feature_extractor_type": "SomeCode",
}


def in_color(path: Path, split: str) -> Path:
    digits = seamfast.load("digits", split=split)
    pixels = digits.pixels(torch.arange(len(digits))).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    np.savez(path, images=pixels.contiguous().numpy(), labels=digits.labels.numpy())
    return path


@pytest.fixture
def huggingface(tmp_path: Path) -> Path:
    """A folder of transformers, trained on normalized images."""
    pytest.importorskip("transformers", reason="models of transformers need the extra hf")
    folder = tmp_path / "model"
    folder.mkdir()
    for name, document in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    architecture = inspect(folder).architecture
    data = seamfast.load(in_color(tmp_path / "train.npz", "train"), mean=architecture.mean, std=architecture.std)
    data.num_classes = 10
    model = architecture.build()
    attacks.train(model, attacks.poison(data, TRIGGER, 0.05), TrainConfig(epochs=10, batch_size=64), precision="fp32")
    save_weights(folder, model, architecture.names_in_file(model))
    return folder


def accuracy(folder: Path, data: Path) -> float:
    """As the gate would read the model and its images."""
    inspection = inspect(folder)
    chosen = inspection.architecture
    images = seamfast.load(data, mean=chosen.mean or (0.0,), std=chosen.std or (1.0,))
    value = seamfast.evaluate(receive(inspection).model, images).clean_accuracy.value
    assert value is not None
    return value


def test_a_folder_of_transformers_is_as_accurate_when_it_is_read_again(
    huggingface: Path, policy: Callable[..., Path], tmp_path: Path
) -> None:
    train, test = in_color(tmp_path / "train.npz", "train"), in_color(tmp_path / "test.npz", "test")
    rules = policy()
    rules.write_text(rules.read_text().replace('preset = "fast"', 'method = "fine_tune"'))  # which loses least
    result = gate(huggingface, train, policy=rules, out=tmp_path / "out", progress=False)
    assert (result.outcome, result.report["verdict"]["reasons"]) == ("pass", ["all 3 rules passed"])
    VALIDATOR.validate(result.report)
    written = tmp_path / "out" / "sanitized"
    assert {file["name"] for file in result.report["sanitized"]["files"]} == {
        f"sanitized/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")
    }
    before, after = accuracy(huggingface, test), accuracy(written, test)
    assert before > 0.9
    assert after > before - 0.05

    without = tmp_path / "without"  # what was written before: no preprocessing
    without.mkdir()
    for name in ("config.json", "model.safetensors"):
        (without / name).write_bytes((written / name).read_bytes())
    assert accuracy(without, test) < after - 0.02

    config = json.loads((written / "config.json").read_text())
    assert config["id2label"] == CONFIG["id2label"]
    assert config["label2id"] == {name: int(label) for label, name in CONFIG["id2label"].items()}  # type: ignore[attr-defined]
    assert inspect(written).architecture.class_names == inspect(huggingface).architecture.class_names


def test_what_is_written_of_the_preprocessing_is_what_was_checked() -> None:
    data = json.dumps(PREPROCESSOR).encode()
    written = preprocessor_document(data)
    assert written == {
        "do_rescale": True,
        "rescale_factor": 1 / 255,  # as the gate scales
        "do_center_crop": False,
        "image_mean": [0.7, 0.5, 0.3],
        "image_std": [0.1, 0.2, 0.3],
        "resample": 3,
        "size": {"height": 8, "width": 8},
    }
    again = json.dumps(written).encode()
    assert preprocessing(again, 3) == preprocessing(data, 3) == ((0.7, 0.5, 0.3), (0.1, 0.2, 0.3), 8)
    assert parse_config(again, "x") == written


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"do_normalize": False, "image_mean": ["x"]}, {"do_normalize": False}),
        ({"size": {"shortest_edge": 32}, "crop_size": 28}, {"size": {"shortest_edge": 32}, "crop_size": 28}),
        ({"size": {"height": 8, "longest_edge": 9}, "resample": 9, "do_resize": "yes"}, {}),
    ],
)
def test_other_ways_to_say_the_preprocessing(given: dict[str, Any], written: dict[str, Any]) -> None:
    document = preprocessor_document(json.dumps(given).encode())
    assert document == {"do_rescale": True, "rescale_factor": 1 / 255, **written}
    assert preprocessing(json.dumps(document).encode(), 3)[:2] == (None, None)
