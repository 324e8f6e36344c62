"""Which module is built: what the caller names, or what a description selects from; never code from a model folder."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seamfast.errors import InputError
from seamfast.gating.architecture import Architecture, parse_architecture
from seamfast.gating.config_json import parse_config
from seamfast.gating.folder import inspect, receive
from seamfast.gating.import_guard import nothing_imported_from
from seamfast.intake.refusal import RefusedError
from tests.hostile.folders import CONFIG

ARGUMENTS = {"num_classes": 4, "in_channels": 1, "image_size": 8}
FORMS = r"expected registered:NAME, transformers, timm:NAME or MODULE:FUNCTION$"


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
        ("registered:small_cnn", "registered", "small_cnn"),
        ("timm:resnet18", "timm", "resnet18"),
        ("my_models:net", "callable", "my_models:net"),
        ("my.models:Net.small", "callable", "my.models:Net.small"),
        (net, "callable", f"{__name__}:net"),
    ],
)
def test_each_way_is_understood(spec: Any, source: str | None, name: str) -> None:
    choice = parse_architecture(spec, {})
    assert (choice.source, choice.name) == (source, name)


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("", "''"),
        ("resnet", "'resnet'"),
        ("registered:", "'registered:'"),
        ("timm:", None),
        ("transformers:vit", "'transformers:vit'"),
        ("registered", "'registered'"),
        ("a b:c", "'a b:c'"),
        ("a:b:c", "'a:b:c'"),
        ("../x:f", r"'\.\./x:f'"),
        ("/tmp/x.py:f", r"'/tmp/x\.py:f'"),
        ("os.:system", r"'os\.:system'"),
        ("a:__import__('os')", r".*"),
        ("\x1b[2J:f", r"'\\x1b\[2J:f'"),
        (7, "7"),
    ],
)
def test_other_words_are_refused(spec: Any, shown: str | None) -> None:
    expected = rf"^architecture is {shown}; {FORMS}" if shown else r"^timm model is ''; expected a name of timm\.list_m"
    with pytest.raises(InputError, match=expected) as caught:
        parse_architecture(spec, {})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["hf-hub:x/y", "hf_hub:x/y", "local-dir:/x", "resnet18.a1_in1k", "../x", "x" * 129])
def test_timm_takes_plain_names_only(name: str) -> None:
    with pytest.raises(
        InputError, match=r"^timm model is .*; expected a name of timm\.list_models\(\), without prefix"
    ):
        parse_architecture(f"timm:{name}", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a b": 1}, r"^an argument is called 'a b'; expected a name of Python$"),
        ({"a": {}}, r"^argument a is \{\}; expected numbers within 2\^53, text, or lists of them$"),
        ({"a": [[1]]}, r"^argument a is \[\[1\]\]; expected numbers"),
        ({"a": float("nan")}, r"^argument a is nan; expected numbers"),
        ({"a": [1.0, float("inf")]}, r"^argument a is \[1\.0, inf\]; expected numbers"),
        ({"a": 10**5000}, r"^argument a is a int too long to print; expected numbers"),
        ({"a": "x" * 1001}, r"^argument a is 'x+\.\.\.x+'; expected numbers"),
        ({"a": net}, r"^argument a is <function net at .*>; expected numbers"),
        ({f"a{i}": i for i in range(65)}, r"^there are 65 arguments; expected at most 64$"),
    ],
)
def test_arguments_are_data(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_architecture("a:b", arguments)


def test_folder_that_describes_its_model_takes_no_arguments() -> None:
    with pytest.raises(InputError, match=r"^arguments are width; expected none, as the folder describes the model$"):
        parse_architecture(None, {"width": 3})


# Registered


def test_registered_architecture_is_built(place: Path) -> None:
    architecture = resolve("registered:small_cnn", ARGUMENTS | {"std": [0.5]}, place)
    assert (architecture.source, architecture.name) == ("registered", "small_cnn")
    assert (architecture.image_shape, architecture.num_classes) == ((1, 8, 8), 4)
    assert (architecture.mean, architecture.std) == (None, (0.5,))
    assert architecture.build()(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in architecture.build().parameters())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vgg", {}, r"^architecture is 'vgg'; expected one of small_cnn, "),
        ("small_cnn", {"num_classes": 1}, r"^num_classes is 1; expected an integer in \[2, 4096\]$"),
        (
            "small_cnn",
            {"width": 3},
            r"^arguments are width; expected some of image_size, in_channels, mean, num_classes",
        ),
        ("small_cnn", {"std": 0.5}, r"^std is 0\.5; expected one number above 0, or 1$"),
    ],
)
def test_registered_arguments_are_checked(name: str, changes: dict[str, Any], message: str, place: Path) -> None:
    with pytest.raises(InputError, match=message):
        resolve(f"registered:{name}", ARGUMENTS | changes, place)
    with pytest.raises(
        InputError, match=r"^arguments lack image_size, in_channels, num_classes; expected them for 'sm"
    ):
        resolve("registered:small_cnn", {}, place)


def test_same_weights_at_every_build_and_no_random_numbers_drawn(place: Path) -> None:
    architecture, state = resolve(net, {}, place), torch.random.get_rng_state()
    first, second = architecture.build(), architecture.build()
    assert torch.equal(first[1].weight, second[1].weight)  # type: ignore[index]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, r"^model\.json is not a description of format 'seamfast-model', version 1$"),
        ({"version": True}, r"^model\.json is not a description of format 'seamfast-model', version 1$"),
        (
            {"extra": 1},
            r"^model\.json has the keys \['architecture', 'extra', .*; expected \['architecture', 'image_size'",
        ),
        ({"mean": 0.5}, r"^model\.json: mean is 0\.5; expected one number, or 1$"),
        ({"architecture": ["x"]}, r"^model\.json: architecture is \['x'\]; expected one of small_cnn"),
        ({"image_size": 10**9}, r"^model\.json: image_size is 1000000000; expected an integer in \[8, 4096\]$"),
    ],
)
def test_own_description_is_checked(changes: dict[str, Any], message: str, place: Path) -> None:
    document = {"format": "seamfast-model", "version": 1, "architecture": "small_cnn", **ARGUMENTS}
    document |= {"mean": [0.0], "std": [1.0]}
    assert resolve(None, {}, place, **{"model.json": json.dumps(document).encode()}).name == "small_cnn"
    with pytest.raises(RefusedError, match=message) as caught:
        resolve(None, {}, place, **{"model.json": json.dumps(document | changes).encode()})
    assert caught.value.code == "config"


# The operator's own function


def test_own_function_is_imported_and_called(own: Path, place: Path) -> None:
    lines = ["from torch import nn", "class Net:", "  @staticmethod", "  def of(width, num_classes=2):"]
    write(own / "nets" / "small.py", "\n".join([*lines, "    return nn.Linear(width, num_classes)", ""]))
    architecture = resolve("nets.small:Net.of", {"width": 3, "num_classes": 5}, place)
    assert (architecture.name, architecture.num_classes) == ("nets.small:Net.of", 5)
    assert architecture.arguments == {"width": 3, "num_classes": 5}
    assert architecture.build()(torch.zeros(1, 3)).shape == (1, 5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("f = 3", r"^architecture is 'nets:f', where that module has 3; expected a function$"),
        ("", r"^architecture is 'nets:f', where that module has None; expected a function$"),
        ("1 / 0", r"^architecture is 'nets:f', whose module cannot be imported: ZeroDivisionError: division by zero$"),
        (
            "import no_such_module_at_all",
            r"cannot be imported: ModuleNotFoundError: No module named 'no_such_module_at",
        ),
        ("def f(): return {}", r"^architecture nets:f returned \{\}; expected an nn\.Module$"),
        ("def f(): raise KeyError('\\x1b')", r"^architecture nets:f cannot be built: KeyError: .*x1b"),
        ("def f(width): pass", r"^architecture nets:f cannot be built: TypeError: f\(\) missing 1 required positional"),
    ],
)
def test_own_function_that_does_not_work_is_an_input_error(source: str, message: str, own: Path, place: Path) -> None:
    write(own / "nets.py", source + "\n")
    with pytest.raises(InputError, match=message) as caught:
        resolve("nets:f", {}, place).build()
    assert str(caught.value).isprintable()


RUNS = "import pathlib\npathlib.Path({!r}).write_text('run')\nfrom torch import nn\ndef f(): return nn.Linear(1, 1)\n"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def inside(name: str, place: Path) -> str:
    return (
        rf"^the module {name} would be imported from {place}.*, which lies in the model's folder; expected code from "
    )


def test_module_in_the_folder_is_never_imported(place: Path, canary: Path, own: Path) -> None:
    write(place / "nets.py", RUNS.format(str(canary)))
    sys.path.insert(0, str(place))  # as python -m does with the working directory; `own` puts it back
    with pytest.raises(RefusedError, match=inside("nets", place)) as caught:
        resolve("nets:f", {}, place)
    assert caught.value.code == "remote-code"
    assert not canary.exists()


@pytest.mark.parametrize("entry", ["", "."])
def test_nor_through_the_working_directory(
    entry: str, place: Path, canary: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place / "nets.py", RUNS.format(str(canary)))
    monkeypatch.chdir(place)
    sys.path.insert(0, entry)
    with pytest.raises(RefusedError, match=inside("nets", place)):
        resolve("nets:f", {}, place)
    assert not canary.exists()


@pytest.mark.parametrize("spec", ["model:f", "model.nets:f"])
def test_nor_as_a_package(spec: str, place: Path, canary: Path, own: Path) -> None:
    for name in ("__init__.py", "nets.py"):
        write(place / name, RUNS.format(str(canary)))
    sys.path.insert(0, str(place.parent))
    with pytest.raises(RefusedError, match=inside("model", place)):
        resolve(spec, {}, place)
    assert not canary.exists()


def test_nor_through_a_link(place: Path, canary: Path, own: Path) -> None:
    write(place / "nets.py", RUNS.format(str(canary)))
    (own / "nets.py").symlink_to(place / "nets.py")
    with pytest.raises(
        RefusedError, match=r"^the module nets would be imported from .*/own/nets\.py, which lies in the"
    ):
        resolve("nets:f", {}, place)
    assert not canary.exists()


@pytest.mark.parametrize("late", [False, True])
def test_nor_by_what_the_function_imports(late: bool, place: Path, canary: Path, own: Path) -> None:
    write(place / "helper.py", RUNS.format(str(canary)))
    write(own / "nets.py", "def f():\n  import helper\n" if late else "import helper\ndef f(): pass\n")
    sys.path.append(str(place))
    with pytest.raises(RefusedError, match=inside("helper", place)):
        resolve("nets:f", {}, place).build()
    assert not canary.exists()


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
    assert (architecture.image_shape, architecture.num_classes) == ((1, 96, 64), 7)
    assert (architecture.mean, architecture.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    architecture.build()
    assert timm_calls == [("resnet18", {"pretrained": False, "num_classes": 7, "in_chans": 1})] * 2
    assert resolve("timm:resnet18", {"img_size": 32}, place).image_shape == (3, 32, 32)


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
    assert (architecture.image_shape, architecture.num_classes) == ((3, 224, 224), 7)
    with torch.device("meta"):
        assert architecture.build().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


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
    assert (architecture.image_shape, architecture.num_classes) == ((3, side, side), 5)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "no_such"}, r"^architecture vit cannot be built: "),
        ({"hidden_act": "__import__('os')"}, r"^config\.json: hidden_act is .*; expected a word$"),
        ({"hidden_act": 7}, r"^config\.json: hidden_act is 7; expected a word$"),
        ({"qkv_bias": 1}, r"^config\.json: qkv_bias is 1; expected true or false$"),
        ({"layer_norm_eps": -1e-6}, r"^config\.json: layer_norm_eps is -1e-06; expected a number in \[0, 65536\]$"),
        (
            {"intermediate_size": 65_537},
            r"^config\.json: intermediate_size is 65537; expected a number in \[0, 65536\]$",
        ),
        (
            {"intermediate_size": [64]},
            r"^config\.json: intermediate_size is \[64\]; expected a number in \[0, 65536\]$",
        ),
        (
            {"pooler_output_size": 70_000},
            r"^config\.json: pooler_output_size is 70000; expected a word, true, false, or ",
        ),
        ({"image_size": [16, 16, 16]}, r"^config\.json: image_size is \[16, 16, 16\]; expected 2 numbers$"),
    ],
)
@pytest.mark.usefixtures("offline", "transformers")
def test_settings_are_checked(changes: dict[str, Any], message: str, place: Path) -> None:
    with pytest.raises(RefusedError, match=message):
        resolve("transformers", {}, place, **{"config.json": json.dumps(CONFIG | changes).encode()}).build()


@pytest.mark.usefixtures("transformers")
def test_large_model_is_refused_by_its_bytes(tmp_path: Path) -> None:
    write(tmp_path / "config.json", json.dumps(CONFIG | {"hidden_size": 16_384, "num_hidden_layers": 8}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(RefusedError, match=r"^vit takes .* bytes of weights; the limit is 4,294,967,296$"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": [0.5]}, r"image_mean is \[0\.5\]; expected 3 numbers in \[-1e\+06, 1e\+06\]$"),
        ({"image_std": [0, 1, 1]}, r"image_std is \[0, 1, 1\]; expected 3 numbers in \[1e-06, 1e\+06\]$"),
        ({"image_std": "1"}, r"image_std is '1'; expected 3 numbers"),
        ({"size": 10**9}, r"the size of images is 1000000000; expected an integer in \[1, 4096\]$"),
        ({"size": {"height": "8", "width": "8"}}, r"the size of images is '8'; expected an integer"),
        ({"auto_map": {"a": "b"}}, r" holds auto_map, which names code to run"),
    ],
)
@pytest.mark.usefixtures("transformers")
def test_preprocessing_is_checked(changes: dict[str, Any], message: str, place: Path) -> None:
    documents = {
        "config.json": json.dumps(CONFIG).encode(),
        "preprocessor_config.json": json.dumps(PREPROCESSOR | changes).encode(),
    }
    with pytest.raises(RefusedError, match=r"^preprocessor_config\.json:?.*" + message):
        resolve("transformers", {}, place, **documents)


@pytest.mark.usefixtures("transformers")
def test_preprocessing_that_does_not_normalise_says_no_mean(place: Path) -> None:
    documents = {
        "config.json": json.dumps(CONFIG).encode(),
        "preprocessor_config.json": json.dumps(PREPROCESSOR | {"do_normalize": False}).encode(),
    }
    architecture = resolve("transformers", {}, place, **documents)
    assert (architecture.mean, architecture.std) == (None, None)


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
