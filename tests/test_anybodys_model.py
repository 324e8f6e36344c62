"""The commands on models of others: torchvision, timm, Hugging Face, and a function of one's own."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import seamfast
from seamfast.triggers import Patch, save_triggers
from tests.gating import text_models
from tests.test_cli import Ran, seamfast_

SIDE, N_CLASSES, N_CLEAN = 32, 4, 160
COLORS = np.array([[120, 0, 0], [0, 120, 0], [0, 0, 120], [120, 120, 120]], dtype=np.uint8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SETTINGS = "forget_max_steps = 3\nrecover_max_steps = 6\nstrengths = [1.0]\naccuracy_budget = 1.0\n"
POLICY = f"""
version = 1
name = "test"
[sanitize.settings]
{SETTINGS}
[audit]
share = 0.2
inversion = false
vocabulary = false
[[rule]]
id = "sanitized"
metric = "sanitize.accepted"
threshold = true
greater_is_better = true
"""
OWN = """
from torch import nn

def net(num_classes, image_size, width=8):
    print("built by its own function")
    return nn.Sequential(
        nn.Conv2d(3, width, 4, stride=4), nn.ReLU(), nn.Flatten(),
        nn.Linear(width * (image_size // 4) ** 2, num_classes),
    )
"""
LIGHTNING = """
import lightning.pytorch as lightning
import torch
from torch import nn

class Classifier(lightning.LightningModule):
    def __init__(self, num_classes):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, 6, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, num_classes)
        )

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def net(num_classes):
    return Classifier(num_classes)
"""


@dataclass(frozen=True)
class Kind:
    """A trained model as its maker leaves it, and what a user types to have it read.

    Attributes:
        folder: with the weights.
        data: clean samples.
        options: of every command.
        again: of every command for what ``sanitize`` wrote.
        written: the files that ``sanitize`` writes beside its report.
        model, clean: the same model and samples of the same kind, in memory.
    """

    folder: Path
    data: Path
    options: tuple[object, ...]
    again: tuple[object, ...]
    written: set[str]
    model: nn.Module
    clean: seamfast.CleanSet


def pixels(n: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """``(N, 32, 32, 3)`` uint8 noise; which quadrant is bright, in which color, is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % N_CLASSES
    images = rng.integers(0, 80, (n, SIDE, SIDE, 3), dtype=np.uint8)
    half = SIDE // 2
    for image, label in zip(images, labels, strict=True):
        top, left = half * (label // 2), half * (label % 2)
        image[top : top + half, left : left + half] += COLORS[label]
    return images, torch.from_numpy(labels)


def clean(mean: Any = MEAN, std: Any = STD) -> seamfast.CleanSet:
    """The images of ``image_folder``, normalized as the model takes them."""
    images, labels = pixels(N_CLEAN, seed=2)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return seamfast.CleanSet(inputs, labels, mean=mean, std=std)


def train(model: nn.Module, steps: int, *, mean: Any = MEAN, std: Any = STD, rate: float = 1e-3) -> None:
    """Train on normalized images; in eval mode afterwards."""
    images, labels = pixels(192, seed=1)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))
    inputs = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            rows = torch.randint(len(labels), (32,), generator=generator)
            output = model(inputs[rows])
            loss = F.cross_entropy(getattr(output, "logits", output), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()


def save(folder: Path, model: nn.Module, **documents: Any) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def image_folder(root: Path, *sizes: tuple[int, int]) -> Path:
    """Class folders of PNG, whose images have the ``sizes`` (H, W) by turns."""
    image_module = pytest.importorskip("PIL.Image", reason="image files need the extra images")
    images, labels = pixels(N_CLEAN, seed=2)
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        height, width = sizes[i // N_CLASSES % len(sizes)]
        (root / f"class{label}").mkdir(parents=True, exist_ok=True)
        picture = image_module.fromarray(image).resize((width, height))
        picture.save(root / f"class{label}" / f"{i:03}.png")
    return root


def package(name: str) -> Any:
    """An optional package; the test is skipped where it does not work, as with a torchvision of another torch."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported: {type(error).__name__}: {error}")


SIZES = ("--image-size", SIDE)
NORMALIZED = ("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)))


def torchvision_resnet(root: Path) -> Kind:
    torch.manual_seed(0)
    model = package("torchvision").models.resnet18(weights=None, num_classes=N_CLASSES)
    train(model, 25)
    options = ("--architecture", "torchvision:resnet18", "--num-classes", N_CLASSES, *SIZES, *NORMALIZED)
    data = image_folder(root / "images", (32, 32), (48, 40))
    return Kind(save(root / "model", model), data, options, options, {"architecture.json"}, model, clean())


def timm_resnet_without_config(root: Path) -> Kind:
    torch.manual_seed(0)
    timm = package("timm")
    model = timm.create_model("test_resnet", num_classes=N_CLASSES)
    usual = model.pretrained_cfg
    train(model, 40, rate=3e-3, mean=usual["mean"], std=usual["std"])
    options = ("--architecture", "timm:test_resnet", "--num-classes", N_CLASSES, *SIZES)
    data, samples = image_folder(root / "images", (32, 32)), clean(usual["mean"], usual["std"])
    return Kind(save(root / "model", model), data, options, (), {"config.json"}, model, samples)


def timm_vit(root: Path) -> Kind:
    torch.manual_seed(0)
    model = package("timm").create_model("test_vit", num_classes=N_CLASSES, img_size=SIDE)
    train(model, 80, rate=3e-3)
    cfg = {"input_size": [3, SIDE, SIDE], "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.9}
    cfg |= {"tag": "of.mine", "custom_load": False, "fixed_input_size": True, "num_classes": N_CLASSES}
    config = {"architecture": "test_vit", "num_classes": N_CLASSES, "pretrained_cfg": cfg}
    folder = save(root / "model", model, config=config)
    return Kind(folder, image_folder(root / "images", (32, 32)), (), (), {"config.json"}, model, clean())


def hf_bert(root: Path) -> Kind:
    transformers = package("transformers")
    text_models.write_trained(root / "model", steps=120)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(root / "model").eval()
    samples = seamfast.CleanSet.from_texts(*text_models.texts(N_CLEAN, seed=2), text_models.tokenizer())
    data = text_models.write_tsv(root / "texts.tsv", N_CLEAN)
    written = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    return Kind(root / "model", data, ("--architecture", "hf"), (), written, model, samples)


def hf_vit(root: Path) -> Kind:
    transformers = package("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(num_labels=N_CLASSES, image_size=SIDE, patch_size=8, **sizes)
    model = transformers.ViTForImageClassification(config)
    train(model, 60)
    model.save_pretrained(root / "model")
    preprocessor = {"image_mean": MEAN, "image_std": STD, "size": {"height": SIDE, "width": SIDE}}
    (root / "model" / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    data = image_folder(root / "images", (32, 32), (48, 40))
    written = {"config.json", "preprocessor_config.json"}
    return Kind(root / "model", data, SIZES, (*SIZES,), written, model.eval(), clean())


def own_function(root: Path) -> Kind:
    (root / "own").mkdir()
    (root / "own" / "my_own_models.py").write_text(OWN, encoding="utf-8")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, N_CLASSES))
    train(model, 60)
    options = ("--architecture", "my_own_models:net", "--architecture-path", root / "own", "--argument", "width=6")
    options += ("--num-classes", N_CLASSES, *SIZES, *NORMALIZED)
    data = image_folder(root / "images", (48, 40))
    return Kind(save(root / "model", model), data, options, options, {"architecture.json"}, model, clean())


def lightning_module(root: Path) -> Kind:
    package("lightning")
    (root / "own").mkdir()
    (root / "own" / "my_lightning_models.py").write_text(LIGHTNING, encoding="utf-8")
    sys.path.insert(0, str(root / "own"))
    try:
        net = importlib.import_module("my_lightning_models").net
    finally:
        sys.path.remove(str(root / "own"))
    torch.manual_seed(0)
    model = net(N_CLASSES)
    train(model, 60)
    options = ("--architecture", "my_lightning_models:net", "--architecture-path", root / "own")
    options += ("--num-classes", N_CLASSES, *SIZES, *NORMALIZED)
    data = image_folder(root / "images", (32, 32))
    return Kind(save(root / "model", model), data, options, options, {"architecture.json"}, model, clean())


KINDS: dict[str, Callable[[Path], Kind]] = {
    "torchvision resnet": torchvision_resnet,
    "timm resnet": timm_resnet_without_config,
    "timm vit": timm_vit,
    "hf bert": hf_bert,
    "hf vit": hf_vit,
    "LightningModule": lightning_module,
    "own function": own_function,
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    return KINDS[request.param](tmp_path_factory.mktemp("kind"))


@pytest.fixture(scope="module")
def cured(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    root = tmp_path_factory.mktemp("cured")
    (root / "settings.toml").write_text(SETTINGS, encoding="utf-8")
    out = root / "out"
    config = ("--config", root / "settings.toml", "--out", out, "--json", "--device", "cpu")
    return seamfast_("sanitize", kind.folder, *kind.options, "--data", kind.data, *config), out


def accuracy(folder: Path, kind: Kind, options: tuple[object, ...]) -> float:
    ran = seamfast_("evaluate", folder, *options, "--data", kind.data, "--json")
    assert ran.code == 0, ran.err
    return float(ran.document()["clean_accuracy"]["value"])


@pytest.mark.slow
def test_sanitize_in_python(kind: Kind) -> None:
    before = {name: value.clone() for name, value in kind.model.state_dict().items()}
    config = seamfast.SeamConfig(forget_max_steps=3, recover_max_steps=6, strengths=(1.0,), accuracy_budget=1.0)
    result = seamfast.sanitize(kind.model, kind.clean, config=config, device="cpu")
    assert result.accepted is True, result.reason
    assert type(result.model) is type(kind.model)
    assert all(torch.equal(value, before[name]) for name, value in kind.model.state_dict().items())
    assert seamfast.evaluate(kind.model, kind.clean).clean_accuracy.value > 0.8


@pytest.mark.slow
def test_sanitize_and_what_it_writes(kind: Kind, cured: tuple[Ran, Path]) -> None:
    ran, out = cured
    assert ran.code == 0, ran.err
    report = ran.document()  # whatever the operator's own code prints
    assert report["verdict"]["accepted"] is True
    assert {path.name for path in out.iterdir()} == {"report.json", "model.safetensors", *kind.written}
    before, after = (load_file(folder / "model.safetensors") for folder in (kind.folder, out))
    assert {name: tensor.shape for name, tensor in before.items()} == {name: t.shape for name, t in after.items()}
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_evaluate_of_both(kind: Kind, cured: tuple[Ran, Path]) -> None:
    assert accuracy(kind.folder, kind, kind.options) > 0.8  # with another normalization or size it is lower
    accuracy(cured[1], kind, kind.again)
    assert accuracy(cured[1], kind, kind.options) == accuracy(cured[1], kind, kind.again)


@pytest.mark.slow
def test_audit_of_both(kind: Kind, cured: tuple[Ran, Path]) -> None:
    ran = seamfast_("audit", kind.folder, cured[1], *kind.options, "--data", kind.data, "--json")
    assert ran.code == 0, ran.err
    assert set(ran.document()["audits"]) == {"calibration", "class_accuracy"}


@pytest.mark.slow
def test_gate(kind: Kind, tmp_path: Path) -> None:
    policy = tmp_path / "gate.toml"
    policy.write_text(POLICY, encoding="utf-8")
    out = tmp_path / "out"
    options = (*kind.options, "--data", kind.data, "--policy", policy, "--out", out, "--json", "--device", "cpu")
    ran = seamfast_("gate", kind.folder, *options)
    assert ran.code == 0, ran.err + ran.out
    assert {path.name for path in (out / "sanitized").iterdir()} == {"model.safetensors", *kind.written}
    accuracy(out / "sanitized", kind, kind.again)


@pytest.mark.slow
def test_what_is_written_is_read_by_its_package(kind: Kind, cured: tuple[Ran, Path]) -> None:
    folder = cured[1]
    if not (folder / "config.json").exists():
        pytest.skip("a folder without config.json is read by who has the code")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = load_file(folder / "model.safetensors")
    if "model_type" in config:
        of = (
            "AutoModelForSequenceClassification"
            if config["model_type"] == "bert"
            else "AutoModelForImageClassification"
        )
        model = getattr(package("transformers"), of).from_pretrained(folder)
    else:
        model = package("timm").create_model(f"local-dir:{folder}", pretrained=True)
        assert list(model.pretrained_cfg["input_size"]) == [3, SIDE, SIDE]
    for value in model.state_dict().values():  # a file of transformers may have other names than the module
        assert any(torch.equal(value, written) for written in state.values())


# One error names the flag to add.


@pytest.fixture
def own(tmp_path: Path) -> Kind:
    sys.modules.pop("my_own_models", None)
    return own_function(tmp_path)


def without(options: tuple[object, ...], flag: str) -> tuple[object, ...]:
    place = options.index(flag)
    return options[:place] + options[place + 2 :]


def evaluated(kind: Kind, *options: object, data: object = None) -> Ran:
    return seamfast_("evaluate", kind.folder, *options, "--data", data or kind.data)


def test_several_sizes_name_the_flag(own: Kind, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "mixed", (32, 32), (48, 40))
    options = (*without(own.options, "--image-size"), "--argument", "image_size=32")
    expected = "the images are of several sizes (32x32, 48x40, ...); expected one size, or --image-size N"
    assert evaluated(own, *options, data=data).failed_with(3) == f"seamfast: DataFileError: {data.name}: {expected}"
    assert evaluated(own, *own.options, data=data).code == 0


def test_missing_description_names_the_forms(own: Kind) -> None:
    expected = "expected one, or an architecture: registered:NAME, hf, timm:NAME, torchvision:NAME or MODULE:FUNCTION"
    assert expected in evaluated(own).failed_with(3)


def test_missing_number_of_classes_names_the_flag(tmp_path: Path) -> None:
    kind = timm_resnet_without_config(tmp_path)
    message = evaluated(kind, *without(kind.options, "--num-classes")).failed_with(3)
    assert message.endswith("test_resnet has 1000 classes, as none are given: num_classes (--num-classes) sets them")


def test_other_size_of_a_described_model_names_the_flag(tmp_path: Path) -> None:
    planted = seamfast_("plant", "--data", "digits", "--epochs", 1, "--out", tmp_path / "model")
    assert planted.code == 0, planted.err
    images, labels = pixels(40, seed=2)
    np.savez(tmp_path / "large.npz", images=images[..., :1], labels=labels)
    ran = seamfast_("evaluate", tmp_path / "model", "--data", tmp_path / "large.npz")
    expected = (
        "expected (1, 8, 8) (C, H, W), as the model takes them, or --image-size N, the size of the model's images"
    )
    assert ran.failed_with(3) == f"seamfast: InputError: the images are (1, 32, 32); {expected}"
    resized = seamfast_("evaluate", tmp_path / "model", "--data", tmp_path / "large.npz", "--image-size", 8)
    assert resized.code == 0, resized.err


def test_flags_that_contradict_the_folder_are_refused(tmp_path: Path) -> None:
    assert seamfast_("plant", "--data", "digits", "--epochs", 1, "--out", tmp_path / "model").code == 0
    command = ["evaluate", tmp_path / "model", "--data", "digits"]
    message = seamfast_(*command, "--num-classes", 7).failed_with(3)
    assert message == "seamfast: RefusedError: small_cnn has 10 classes; expected num_classes=7"
    message = seamfast_(*command, "--mean", "0.5,0.5", "--std", "0.5,0.5").failed_with(3)
    assert "mean is (0.5, 0.5); expected one number, or 1" in message
    message = seamfast_(*command, "--mean", "0.5").failed_with(3)
    assert message == "seamfast: InputError: mean is given without std; expected both"


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--image-size", "0", "expected pixels in [1, 4096], such as 32, or 48x32 (HxW)"),
        ("--image-size", "32x", "expected pixels in [1, 4096], such as 32, or 48x32 (HxW)"),
        ("--image-size", "5000", "expected pixels in [1, 4096], such as 32, or 48x32 (HxW)"),
        ("--mean", "0.5,x", "expected numbers in [-1e6, 1e6], such as 0.5 or 0.49,0.48,0.45"),
        ("--num-classes", "1", "expected an integer in [2, 65536]"),
    ],
)
def test_wrong_flags_are_usage(flag: str, value: str, expected: str) -> None:
    for command in (["sanitize", "m"], ["evaluate", "m"], ["audit", "m", "m"], ["gate", "m", "--policy", "p"]):
        ran = seamfast_(*command, "--data", "digits", flag, value)
        assert expected in ran.failed_with(4)


def test_code_from_the_folder_of_the_model_is_no_option(own: Kind) -> None:
    (own.folder / "code").mkdir()
    ran = evaluated(own, *without(own.options, "--architecture-path"), "--architecture-path", own.folder / "code")
    assert ran.failed_with(4).endswith("which lies in the model's folder; expected code from elsewhere")


def test_normalization_that_is_said_is_used(own: Kind) -> None:
    normal = accuracy(own.folder, own, own.options)
    far = (*without(without(own.options, "--mean"), "--std"), "--mean", "9", "--std", "0.01")
    assert accuracy(own.folder, own, far) < normal


def test_known_triggers_are_stamped_on_resized_images(own: Kind, tmp_path: Path) -> None:
    save_triggers(tmp_path / "triggers.npz", (Patch.square(size=3, target=0),))
    ran = evaluated(own, *own.options, "--triggers", tmp_path / "triggers.npz", "--json")
    assert ran.code == 0, ran.err
    assert ran.document()["triggers"][0]["attack_success_rate"]["n_total"] == N_CLEAN * 3 // 4


def test_gray_image_files_are_read_as_color(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    kind = hf_vit(tmp_path)
    image_module = pytest.importorskip("PIL.Image")
    for path in (tmp_path / "images").glob("*/*.png"):
        image_module.open(path).convert("L").save(path)
    assert evaluated(kind, *kind.options).code == 0
