"""Which module is built: what the caller names, or what a description selects from; never code from a model folder."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seamfast.errors import InputError, SeamfastError
from seamfast.gating.architecture import Architecture, parse_architecture
from seamfast.gating.config_json import parse_config
from seamfast.gating.folder import inspect, receive
from seamfast.gating.import_guard import nothing_imported_from
from seamfast.gating.overrides import Overrides
from seamfast.intake.refusal import RefusedError
from tests.gating.golden_files import check_messages
from tests.hostile.folders import CONFIG

ARGUMENTS = {"num_classes": 4, "in_channels": 1, "image_size": 8}
FORMS = r"expected registered:NAME, hf, timm:NAME, torchvision:NAME or MODULE:FUNCTION$"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model's folder, on a path that nothing is imported from."""
    folder = tmp_path / "given" / "model"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from, the operator's own; what is imported in the test is forgotten after it."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return folder


def resolve(spec: Any, arguments: dict[str, Any], place: Path, **documents: bytes) -> Architecture:
    return parse_architecture(spec, arguments).resolve(documents, place)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def net(width: int = 3, num_classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(width, num_classes))


# What the caller says


@pytest.mark.parametrize(
    ("spec", "source", "name"),
    [
        (None, None, ""),
        ("transformers", "transformers", ""),
        ("hf", "transformers", ""),
        ("registered:small_cnn", "registered", "small_cnn"),
        ("timm:resnet18", "timm", "resnet18"),
        ("torchvision:resnet18", "torchvision", "resnet18"),
        ("my_models:net", "callable", "my_models:net"),
        ("my.models:Net.small", "callable", "my.models:Net.small"),
        (net, "callable", f"{__name__}:net"),
    ],
)
def test_each_way_is_understood(spec: Any, source: str | None, name: str) -> None:
    choice = parse_architecture(spec, {})
    assert (choice.source, choice.name) == (source, name)


def test_other_words_are_refused() -> None:
    words = [
        *("", "resnet", "registered:", "timm:", "transformers:vit", "registered", "a b:c", "a:b:c", "../x:f"),
        *("torchvision", "torchvision:a.b", "hf:x"),
        *("/tmp/x.py:f", "os.:system", "a:__import__('os')", "\x1b[2J:f", 7),
    ]
    check_messages("architecture-words.txt", InputError, lambda word: parse_architecture(word, {}), words)


def test_timm_takes_plain_names_only() -> None:
    names = ["hf-hub:x/y", "hf_hub:x/y", "local-dir:/x", "resnet18.a1_in1k", "../x", "x" * 129]
    check_messages("timm-names.txt", InputError, lambda name: parse_architecture(f"timm:{name}", {}), names)


def test_arguments_are_data() -> None:
    wrong = [
        *({"a b": 1}, {"a": {}}, {"a": [[1]]}, {"a": float("nan")}, {"a": [1.0, float("inf")]}, {"a": 10**5000}),
        *({"a": "x" * 1001}, {"a": print}, {f"a{i}": i for i in range(65)}),
    ]
    check_messages("architecture-arguments.txt", InputError, lambda a: parse_architecture("a:b", a), wrong)


def test_folder_that_describes_its_model_takes_no_arguments() -> None:
    with pytest.raises(InputError, match=r"^arguments are width; expected none, as the folder describes the model$"):
        parse_architecture(None, {"width": 3})


# Registered


def test_registered_architecture_is_built(place: Path) -> None:
    architecture = resolve("registered:small_cnn", ARGUMENTS | {"std": [0.5]}, place)
    assert (architecture.source, architecture.name) == ("registered", "small_cnn")
    assert (architecture.input_shape, architecture.num_classes) == ((1, 8, 8), 4)
    assert (architecture.mean, architecture.std) == (None, (0.5,))
    assert architecture.build()(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in architecture.build().parameters())


def test_registered_arguments_are_checked(place: Path) -> None:
    wrong = [("vgg", {}), ("small_cnn", {"num_classes": 1}), ("small_cnn", {"width": 3}), ("small_cnn", {"std": 0.5})]
    check_messages(
        "registered-arguments.txt",
        InputError,
        lambda w: resolve(f"registered:{w[0]}", {} if w[1] is None else ARGUMENTS | w[1], place),
        [*wrong, ("small_cnn", None)],
    )


def test_same_weights_at_every_build_and_no_random_numbers_drawn(place: Path) -> None:
    architecture, state = resolve(net, {}, place), torch.random.get_rng_state()
    first, second = architecture.build(), architecture.build()
    assert torch.equal(first[1].weight, second[1].weight)  # type: ignore[index]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_own_description_is_checked(place: Path) -> None:
    document = {"format": "seamfast-model", "version": 1, "architecture": "small_cnn", **ARGUMENTS}
    document |= {"mean": [0.0], "std": [1.0]}

    def described(changes: dict[str, Any]) -> Architecture:
        return resolve(None, {}, place, **{"model.json": json.dumps(document | changes).encode()})

    assert described({}).name == "small_cnn"
    wrong = [
        *({"format": "other"}, {"version": True}, {"extra": 1}, {"mean": 0.5}, {"architecture": ["x"]}),
        {"image_size": 10**9},
    ]
    check_messages("model-json.txt", RefusedError, described, wrong)


# The operator's own function


def test_own_function_is_imported_and_called(own: Path, place: Path) -> None:
    lines = ["from torch import nn", "class Net:", "  @staticmethod", "  def of(width, num_classes=2):"]
    write(own / "nets" / "small.py", "\n".join([*lines, "    return nn.Linear(width, num_classes)", ""]))
    architecture = resolve("nets.small:Net.of", {"width": 3, "num_classes": 5}, place)
    assert (architecture.name, architecture.num_classes) == ("nets.small:Net.of", 5)
    assert architecture.arguments == {"width": 3, "num_classes": 5}
    assert architecture.build()(torch.zeros(1, 3)).shape == (1, 5)


def test_own_function_that_does_not_work_is_an_input_error(own: Path, place: Path) -> None:
    def built(source: str) -> object:
        write(own / "nets.py", source + "\n")
        sys.modules.pop("nets", None)
        importlib.invalidate_caches()
        shutil.rmtree(own / "__pycache__", ignore_errors=True)
        return resolve("nets:f", {}, place).build()

    sources = [
        *("f = 3", "", "1 / 0", "import no_such_module_at_all", "def f(): return {}"),
        *("def f(): raise KeyError('\\x1b')", "def f(width): pass"),
    ]
    check_messages("own-functions.txt", SeamfastError, built, sources)


RUNS = "import pathlib\npathlib.Path({!r}).write_text('run')\nfrom torch import nn\ndef f(): return nn.Linear(1, 1)\n"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def inside(name: str, place: Path) -> str:
    return (
        rf"^the module {name} would be imported from {place}.*, which lies in the model's folder; expected code from "
    )


@pytest.fixture
def refuses(place: Path, canary: Path, own: Path) -> Callable[..., None]:
    """``MODULE:f`` is refused, as the module named lies in the model's folder, where each file would run something."""

    def check(spec: str, module: str, *files: str) -> None:
        for name in files:
            write(place / name, RUNS.format(str(canary)))
        with pytest.raises(RefusedError, match=inside(module, place)) as caught:
            resolve(spec, {}, place).build()
        assert caught.value.code == "remote-code"
        assert not canary.exists()

    return check


def test_module_in_the_folder_is_never_imported(refuses: Callable[..., None], place: Path) -> None:
    sys.path.insert(0, str(place))  # as python -m does with the working directory; `own` restores it
    refuses("nets:f", "nets", "nets.py")


@pytest.mark.parametrize("entry", ["", "."])
def test_nor_through_the_working_directory(
    entry: str, refuses: Callable[..., None], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    sys.path.insert(0, entry)
    refuses("nets:f", "nets", "nets.py")


@pytest.mark.parametrize("spec", ["model:f", "model.nets:f"])
def test_nor_as_a_package(spec: str, refuses: Callable[..., None], place: Path) -> None:
    sys.path.insert(0, str(place.parent))
    refuses(spec, "model", "__init__.py", "nets.py")


def test_nor_through_a_link(place: Path, canary: Path, own: Path) -> None:
    write(place / "nets.py", RUNS.format(str(canary)))
    (own / "nets.py").symlink_to(place / "nets.py")
    with pytest.raises(RefusedError, match=r"^the module nets would be imported from .*/own/nets\.py, which lies in"):
        resolve("nets:f", {}, place)
    assert not canary.exists()


@pytest.mark.parametrize("source", ["def f():\n  import helper\n", "import helper\ndef f(): pass\n"])
def test_nor_by_what_the_function_imports(source: str, refuses: Callable[..., None], place: Path, own: Path) -> None:
    write(own / "nets.py", source)
    sys.path.append(str(place))
    refuses("nets:f", "helper", "helper.py")


def test_module_that_was_imported_from_the_folder_before_is_refused(place: Path, canary: Path, own: Path) -> None:
    write(place / "nets.py", RUNS.format(str(canary)))
    spec = importlib.util.spec_from_file_location("nets", place / "nets.py")
    assert spec is not None
    sys.modules["nets"] = importlib.util.module_from_spec(spec)
    with pytest.raises(RefusedError, match=inside("nets", place)):
        resolve("nets:f", {}, place)


def test_extra_is_not_taken_from_the_folder(place: Path, canary: Path, own: Path) -> None:
    for name in ("timm", "transformers"):
        write(place / f"{name}.py", RUNS.format(str(canary)))
        sys.modules.pop(name, None)
    sys.path.insert(0, str(place))
    with pytest.raises(RefusedError, match=inside("timm", place)):
        resolve("timm:resnet18", {}, place)
    with pytest.raises(RefusedError, match=inside("transformers", place)):
        resolve("transformers", {}, place, **{"config.json": json.dumps(CONFIG).encode()})
    assert not canary.exists()


def test_guard_is_gone_afterwards(place: Path, own: Path) -> None:
    write(place / "harmless_there.py", "")
    sys.path.insert(0, str(place))
    before = list(sys.meta_path)
    with pytest.raises(RefusedError), nothing_imported_from(str(place)):
        importlib.import_module("harmless_there")
    assert sys.meta_path == before
    importlib.import_module("harmless_there")


# timm


class SomeTimm(nn.Linear):
    pretrained_cfg = {"input_size": (3, 96, 64), "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}  # noqa: RUF012
    num_classes = 7


@pytest.fixture
def timm_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Stands in for timm; what it was asked to make."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        calls.append((name, options))
        return SomeTimm(2, 2)

    timm = types.ModuleType("timm")
    timm.__dict__.update(list_models=lambda: ["resnet18", "vit_small"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", timm)
    return calls


def test_timm_is_asked_for_no_weights(timm_calls: list[tuple[str, dict[str, Any]]], place: Path) -> None:
    architecture = resolve("timm:resnet18", {"num_classes": 7, "in_chans": 1}, place)
    assert (architecture.input_shape, architecture.num_classes) == ((1, 96, 64), 7)
    assert (architecture.mean, architecture.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    architecture.build()
    assert timm_calls == [("resnet18", {"pretrained": False, "num_classes": 7, "in_chans": 1})] * 2
    assert resolve("timm:resnet18", {"img_size": 32}, place).input_shape == (3, 32, 32)


def test_timm_is_asked_for_what_it_has(timm_calls: list[tuple[str, dict[str, Any]]], place: Path) -> None:
    with pytest.raises(InputError, match=r"^timm model is 'vgg'; expected a name of timm\.list_models\(\)$"):
        resolve("timm:vgg", {}, place)
    for name in ("pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"):
        with pytest.raises(InputError, match=rf"^arguments are {name}; expected some of num_classes, in_chans, "):
            resolve("timm:resnet18", {name: "x"}, place)
    assert timm_calls == []


def test_timm_that_is_missing_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        InputError,
        match=r"^timm:resnet18 needs the package timm, which cannot be imported \(ModuleNotFoundError: .*\); "
        r'expected it installed: pip install "seamfast\[timm\]"$',
    ):
        resolve("timm:resnet18", {}, place)


def test_real_timm_builds(place: Path) -> None:
    try:
        import timm  # noqa: F401
    except Exception as error:  # a torchvision that does not fit the torch raises a RuntimeError
        pytest.skip(f"timm cannot be imported: {error}")
    architecture = resolve("timm:resnet18", {"num_classes": 7}, place)
    assert (architecture.input_shape, architecture.num_classes) == ((3, 224, 224), 7)
    with torch.device("meta"):
        assert architecture.build().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


TIMM_CONFIG = {
    "architecture": "resnet18",
    "num_classes": 7,
    "pretrained_cfg": {
        "url": "x",
        "input_size": [1, 32, 32],
        "mean": [0.25],
        "std": [0.75],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "custom_load": "hub",
    },
    "model_args": {"drop_rate": 0.1},
}


def timm_json(**changes: Any) -> bytes:
    return json.dumps(TIMM_CONFIG | changes).encode()


@pytest.mark.parametrize("spec", [None, "timm:resnet18"])
def test_config_of_timm_is_read(spec: Any, timm_calls: list[tuple[str, dict[str, Any]]], place: Path) -> None:
    architecture = resolve(spec, {}, place, **{"config.json": timm_json()})
    assert (architecture.source, architecture.name) == ("timm", "resnet18")
    assert (architecture.input_shape, architecture.num_classes) == ((1, 32, 32), 7)
    assert (architecture.mean, architecture.std) == ((0.25,), (0.75,))
    assert timm_calls == [("resnet18", {"pretrained": False, "num_classes": 7, "in_chans": 1, "drop_rate": 0.1})]
    written = architecture.documents["config.json"]
    assert written["pretrained_cfg"]["crop_pct"] == 0.875
    assert "url" not in written["pretrained_cfg"]
    again = resolve(None, {}, place, **{"config.json": json.dumps(written).encode()})
    assert again == architecture


@pytest.mark.usefixtures("timm_calls")
def test_overrides_hold_in_place_of_the_config_of_timm(place: Path) -> None:
    given_ = Overrides.of(image_size=(48, 40), mean=0.5, std=[0.25])
    architecture = parse_architecture("timm:resnet18", {}, given_).resolve({"config.json": timm_json()}, place)
    assert (architecture.input_shape, architecture.resize) == ((1, 48, 40), (48, 40))
    assert (architecture.mean, architecture.std) == ((0.5,), (0.25,))


@pytest.mark.usefixtures("timm_calls")
def test_config_of_timm_is_checked(place: Path) -> None:
    usual = TIMM_CONFIG["pretrained_cfg"]
    assert isinstance(usual, dict)
    wrong = [
        *({"architecture": "hf-hub:x/y"}, {"architecture": "../x"}, {"num_classes": 10**6}, {"num_classes": "x"}),
        *({"pretrained_cfg": 7}, {"pretrained_cfg": usual | {"input_size": [1, 10**6, 8]}}),
        *({"pretrained_cfg": usual | {"mean": [0.5] * 3}}, {"pretrained_cfg": usual | {"std": [0]}}),
        *({"pretrained_cfg": usual | {"interpolation": "__import__('os')"}}, {"model_args": {"pretrained": True}}),
        *({"model_args": {"checkpoint_path": "x"}}, {"model_args": {"img_size": 10**6}}, {"auto_map": {}}),
    ]
    check_messages(
        "timm-config-json.txt",
        RefusedError,
        lambda changes: resolve(None, {}, place, **{"config.json": timm_json(**changes)}),
        wrong,
    )
    with pytest.raises(
        RefusedError, match=r"^config\.json: architecture is 'resnet18'; expected 'vit_small', as timm:"
    ):
        resolve("timm:vit_small", {}, place, **{"config.json": timm_json()})


# torchvision


@pytest.fixture
def torchvision_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Stands in for torchvision; what it was asked to make."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def get_model(name: str, **options: Any) -> nn.Module:
        calls.append((name, options))
        return nn.Linear(2, 2)

    models = types.ModuleType("torchvision.models")
    models.__dict__.update(list_models=lambda module: ["resnet18", "vit_b_16", "maxvit_t"], get_model=get_model)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return calls


SAID = Overrides.of(mean=0.5, std=(0.1, 0.2, 0.3))


def of_torchvision(name: str, place: Path, overrides: Overrides = SAID, **arguments: Any) -> Architecture:
    return parse_architecture(f"torchvision:{name}", arguments, overrides).resolve({}, place)


def test_torchvision_is_asked_for_no_weights(torchvision_calls: list[tuple[str, dict[str, Any]]], place: Path) -> None:
    architecture = of_torchvision("resnet18", place, Overrides.of(32, 0.5, 0.25, 7))
    assert (architecture.source, architecture.name, architecture.num_classes) == ("torchvision", "resnet18", 7)
    assert (architecture.input_shape, architecture.resize) == ((3, 32, 32), (32, 32))
    assert (architecture.mean, architecture.std) == ((0.5,) * 3, (0.25,) * 3)
    architecture.build()
    assert torchvision_calls == [("resnet18", {"weights": None, "num_classes": 7})]
    assert of_torchvision("resnet18", place).input_shape is None  # any size
    assert of_torchvision("resnet18", place).num_classes == 1000


def test_torchvision_is_told_the_size_where_it_is_fixed(
    torchvision_calls: list[tuple[str, dict[str, Any]]], place: Path
) -> None:
    assert of_torchvision("vit_b_16", place).input_shape == (3, 224, 224)
    for name in ("vit_b_16", "maxvit_t"):
        of_torchvision(name, place, Overrides.of(64, 0.5, 0.25)).build()
    assert [options for _, options in torchvision_calls] == [
        {"weights": None, "image_size": 64},
        {"weights": None, "input_size": [64, 64]},
    ]


def test_torchvision_is_asked_for_what_it_has(torchvision_calls: list[tuple[str, dict[str, Any]]], place: Path) -> None:
    with pytest.raises(
        InputError, match=r"^torchvision model is 'vgg'; expected a name of torchvision\.models\.list_m"
    ):
        of_torchvision("vgg", place)
    for name in ("weights", "weights_backbone", "pretrained", "progress"):
        with pytest.raises(InputError, match=rf"^arguments are {name}; expected none that load weights$"):
            of_torchvision("resnet18", place, **{name: "x"})
    with pytest.raises(
        InputError, match=r"^torchvision:resnet18 does not say how its images are normalized; expected "
    ):
        of_torchvision("resnet18", place, Overrides.of(num_classes=7))
    with pytest.raises(InputError, match=r"^mean has 2 numbers; expected 1, or one for each of 3 channels$"):
        of_torchvision("resnet18", place, Overrides.of(mean=(0.5, 0.5), std=1))
    assert torchvision_calls == []


# What the caller says of input and classes


def test_overrides_are_checked() -> None:
    wrong = [
        *((0,), (4097,), (32.0,), ((32,),), ((32, 0),), (None, 0.5), (None, None, 0.5), (None, 0.5, 0.0)),
        *((None, float("nan"), 1), (None, (), 1), (None, "1", 1), (None, None, None, 1), (None, None, None, True)),
    ]
    check_messages("overrides.txt", InputError, lambda values: Overrides.of(*values), wrong)


def test_own_function_is_given_what_it_has_parameters_for(place: Path) -> None:
    given_ = Overrides.of(16, 0.5, 0.25, 5)
    architecture = parse_architecture(net, {"width": 4}, given_).resolve({}, place)
    assert architecture.arguments == {"width": 4, "num_classes": 5}
    assert (architecture.mean, architecture.std, architecture.resize) == ((0.5,), (0.25,), (16, 16))


def test_size_of_a_model_that_takes_no_images_is_refused(place: Path) -> None:
    arguments = {"num_classes": 2, "n_columns": 4}
    with pytest.raises(InputError, match=r"^image_size is given, but .* takes no images; expected none$"):
        parse_architecture("registered:mlp", arguments, Overrides.of(8)).resolve({}, place)


# transformers

PREPROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "size": {"height": 32, "width": 32}}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)


TINY: dict[str, dict[str, Any]] = {
    "vit": CONFIG,
    "deit": CONFIG,
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": 16,
        "patch_size": 2,
        "window_size": 4,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "convnext": {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.25},
}
CLASSES = {"vit": "ViT", "deit": "DeiT", "swin": "Swin", "resnet": "ResNet", "convnext": "ConvNext"}


@pytest.mark.parametrize("model_type", TINY)
@pytest.mark.usefixtures("offline")
def test_model_saved_by_transformers_gives_the_same_logits(model_type: str, tmp_path: Path, transformers: Any) -> None:
    prefix = CLASSES.get(model_type, "MobileNetV2")
    settings = {key: value for key, value in TINY[model_type].items() if key not in ("model_type", "id2label")}
    config = getattr(transformers, f"{prefix}Config")(num_labels=5, **settings)
    model = getattr(transformers, f"{prefix}ForImageClassification")(config).eval()
    model.save_pretrained(tmp_path)
    write(tmp_path / "preprocessor_config.json", json.dumps(PREPROCESSOR))
    inspection = inspect(tmp_path)
    architecture = inspection.architecture
    side = settings.get("image_size", 32)
    assert (architecture.source, architecture.name) == ("transformers", model_type)
    assert (architecture.input_shape, architecture.num_classes) == ((3, side, side), 5)
    assert (architecture.mean, architecture.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    json.dumps(dict(architecture.arguments))
    images = torch.rand(2, 3, side, side)
    received = receive(inspection)
    with torch.no_grad():
        assert torch.equal(received.model(images), model(images).logits)
    with torch.no_grad():
        assert architecture.names_in_file(received.model).keys() == received.model.state_dict().keys()


@pytest.mark.usefixtures("offline", "transformers")
def test_other_keys_have_no_effect(place: Path) -> None:
    plain, odd = (
        resolve("transformers", {}, place, **{"config.json": json.dumps(CONFIG | extra).encode()})
        for extra in (
            {},
            {
                "_name_or_path": "someone/something",
                "_attn_implementation": "someone/kernels",
                "attn_implementation": "someone/kernels",
                "return_dict": False,
                "output_hidden_states": True,
                "quantization_config": {"quant_method": "x"},
                "forward": "x",
            },
        )
    )
    assert odd == plain
    model, images = odd.build().eval(), torch.rand(1, 3, 16, 16)
    assert torch.equal(model(images), plain.build().eval()(images))


@pytest.mark.usefixtures("offline", "transformers")
def test_settings_are_checked(place: Path) -> None:
    def built(changes: dict[str, Any]) -> object:
        return resolve("transformers", {}, place, **{"config.json": json.dumps(CONFIG | changes).encode()}).build()

    with pytest.raises(RefusedError, match=r"^architecture vit cannot be built: "):
        built({"hidden_act": "no_such"})
    wrong = [
        *({"hidden_act": "__import__('os')"}, {"hidden_act": 7}, {"qkv_bias": 1}, {"layer_norm_eps": -1e-6}),
        *({"intermediate_size": 65_537}, {"intermediate_size": [64]}, {"pooler_output_size": 70_000}),
        {"image_size": [16, 16, 16]},
    ]
    check_messages("config-json.txt", RefusedError, built, wrong)


@pytest.mark.usefixtures("transformers")
def test_large_model_is_refused_by_its_bytes(tmp_path: Path) -> None:
    write(tmp_path / "config.json", json.dumps(CONFIG | {"hidden_size": 16_384, "num_hidden_layers": 8}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(RefusedError, match=r"^vit takes .* bytes of weights; the limit is 4,294,967,296$"):
        inspect(tmp_path)


def preprocessed(changes: dict[str, Any], place: Path) -> Architecture:
    files = {"config.json": CONFIG, "preprocessor_config.json": PREPROCESSOR | changes}
    return resolve("transformers", {}, place, **{name: json.dumps(file).encode() for name, file in files.items()})


@pytest.mark.usefixtures("transformers")
def test_preprocessing_is_checked(place: Path) -> None:
    wrong = [
        *({"image_mean": [0.5]}, {"image_std": [0, 1, 1]}, {"image_std": "1"}, {"size": 10**9}),
        *({"size": {"height": "8", "width": "8"}}, {"auto_map": {"a": "b"}}),
    ]
    check_messages("preprocessor-config-json.txt", RefusedError, lambda c: preprocessed(c, place), wrong)


@pytest.mark.usefixtures("transformers")
def test_preprocessing_that_does_not_normalize_has_no_mean(place: Path) -> None:
    architecture = preprocessed({"do_normalize": False}, place)
    assert (architecture.mean, architecture.std) == (None, None)


@pytest.mark.usefixtures("transformers")
def test_overrides_hold_in_place_of_the_preprocessing(place: Path) -> None:
    files = {"config.json": CONFIG, "preprocessor_config.json": PREPROCESSOR | {"crop_size": 16}}
    documents = {name: json.dumps(file).encode() for name, file in files.items()}
    given_ = Overrides.of(32, 0.5, (0.1, 0.2, 0.25))
    architecture = parse_architecture("hf", {}, given_).resolve(documents, place)
    assert (architecture.input_shape, architecture.resize) == ((3, 32, 32), (32, 32))
    assert (architecture.mean, architecture.std) == ((0.5,) * 3, (0.1, 0.2, 0.25))
    written = {name: json.dumps(document).encode() for name, document in architecture.documents.items()}
    again = resolve(None, {}, place, **written)  # what is written says it by itself
    assert again.input_shape == architecture.input_shape
    assert (again.mean, again.std) == (architecture.mean, architecture.std)


def test_transformers_that_is_missing_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        InputError, match=r'^model_type vit needs the package transformers, .*; .*: pip install "seamfast\[hf\]"$'
    ):
        resolve("transformers", {}, place, **{"config.json": json.dumps(CONFIG).encode()})


# Any JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        document = parse_config(data, "x")
        text = ""
    except RefusedError as error:
        document, text = {}, str(error)
    assert isinstance(document, dict)
    assert text.isprintable()


@settings(max_examples=100, deadline=None)
@given(key=st.sampled_from(sorted(CONFIG)), value=JSON)
def test_any_value_is_taken_or_refused(key: str, value: Any, transformers: Any) -> None:
    data = json.dumps(CONFIG | {key: value}).encode()
    text = ""
    try:
        architecture = resolve("transformers", {}, Path("/nowhere"), **{"config.json": data})
        with torch.device("meta"):
            architecture.build()
    except RefusedError as error:
        text = str(error)
    assert text.isprintable()
    assert len(text) < 700
