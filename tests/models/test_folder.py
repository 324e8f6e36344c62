"""Model folders: what goes in comes out to the bit; what is hostile is refused, quickly and without side effects."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from torch import nn

from seamfast import CleanSet
from seamfast.errors import DataFileError, InputError
from seamfast.modalities import Vocabulary
from seamfast.models.architectures import IMAGE_ARCHITECTURES
from seamfast.models.folder import (
    ModelDescription,
    TabularDescription,
    TextDescription,
    VectorDescription,
    load_model,
    save_model,
)
from seamfast.models.text_architectures import TEXT_ARCHITECTURES, train_tokenizer

DESCRIPTION = ModelDescription("small_cnn", num_classes=4, in_channels=1, image_size=8, mean=(0.4,), std=(0.25,))
DOCUMENT: dict[str, Any] = {
    "format": "seamfast-model",
    "version": 1,
    **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(DESCRIPTION).items()},
}
Header = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good model in it."""
    save_model(tmp_path / "model", DESCRIPTION.build(), DESCRIPTION)
    return tmp_path / "model"


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def header_and_data(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, header: Header, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def describe(folder: Path, **changes: Any) -> None:
    (folder / "model.json").write_text(json.dumps(DOCUMENT | changes), encoding="utf-8")


# What goes in comes out.


@pytest.mark.parametrize("architecture", sorted(IMAGE_ARCHITECTURES))
def test_round_trip_is_bit_equal(architecture: str, tmp_path: Path) -> None:
    given_ = ModelDescription(architecture, 5, 3, 16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    model = given_.build()
    model.train()(torch.rand(8, 3, 16, 16))  # moves the statistics and the counter of each BatchNorm
    save_model(tmp_path, model, given_)
    loaded, description = load_model(tmp_path)
    assert description == given_
    state, wanted = loaded.state_dict(), model.state_dict()
    assert list(state) == list(wanted)
    for name, tensor in wanted.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
    if "resnet" in architecture:
        assert any(name.endswith("running_var") for name in state)
        assert all(value == 1 for name, value in state.items() if name.endswith("num_batches_tracked"))


def test_loaded_model_is_ready_and_its_own(folder: Path) -> None:
    model, _ = load_model(folder)
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in model.parameters())
    images = torch.rand(2, 1, 8, 8)
    before = model(images)
    weights(folder).write_bytes(b"something else")  # the weights were read, not mapped
    assert torch.equal(model(images), before)
    model(images).sum().backward()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert not torch.equal(model(images), before)


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    state = torch.random.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_files_hold_what_is_documented(folder: Path) -> None:
    assert json.loads((folder / "model.json").read_text(encoding="utf-8")) == DOCUMENT
    header, _ = header_and_data(weights(folder))
    assert set(header) - {"__metadata__"} == set(DESCRIPTION.build().state_dict())
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_nan_weights_are_loaded_for_others_to_judge(tmp_path: Path) -> None:
    model = DESCRIPTION.build()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    save_model(tmp_path, model, DESCRIPTION)
    assert next(load_model(tmp_path)[0].parameters())[0].isnan().all()


def test_failed_write_leaves_the_old_model_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            refused(OSError, "No space left", save_model, folder, DESCRIPTION.build(), DESCRIPTION)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# model.safetensors: hostile ones.


class Canary:
    """Whoever unpickles this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "torch.save", "torch.save, legacy"])
def test_pickle_is_never_read(how: str, folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    if how == "pickle":
        weights(folder).write_bytes(pickle.dumps(Canary(canary)))
    else:
        torch.save({"0.weight": Canary(canary)}, weights(folder), _use_new_zipfile_serialization=how == "torch.save")
    with pytest.raises(
        DataFileError, match=r"model\.safetensors is not a whole safetensors file \(.*\); other formats"
    ):
        load_model(folder)
    assert not canary.exists()
    # The canary is alive: it would have sung.
    with weights(folder).open("rb") as file:
        (pickle.load if how == "pickle" else partial(torch.load, weights_only=False))(file)
    assert canary.exists()


def changed(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        header, data = header_and_data(path)
        header[name] = header[name] | changes
        write(path, header, data)

    return change


def extra(path: Path) -> None:
    header, data = header_and_data(path)
    header["\x1b[2Jextra\n"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    write(path, header, data + b"\0" * 4)


def without_last(path: Path) -> None:
    header, data = header_and_data(path)
    last = max((k for k in header if k != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    write(path, {k: v for k, v in header.items() if k != last}, data[: header[last]["data_offsets"][0]])


def halves(dtype: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        """All in two bytes a number."""
        header, data = header_and_data(path)
        for name, entry in header.items():
            if name != "__metadata__":
                entry.update(dtype=dtype, data_offsets=[offset // 2 for offset in entry["data_offsets"]])
        write(path, header, data[: len(data) // 2])

    return change


def transposed(path: Path) -> None:
    header, data = header_and_data(path)
    header["9.weight"]["shape"] = header["9.weight"]["shape"][::-1]
    write(path, header, data)


def overlapping(path: Path) -> None:
    header, data = header_and_data(path)
    header["9.bias"]["data_offsets"] = [0, 16]  # inside the first tensor
    write(path, header, data)


def hostile_name(path: Path) -> None:
    header, data = header_and_data(path)
    first = min((k for k in header if k != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    start, end = header[first]["data_offsets"]
    header["\x1b[2J\n"] = header.pop(first) | {"data_offsets": [start + 4, end]}
    write(path, header, data)


def bytes_at(start: int, replacement: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[start : start + len(replacement)] = replacement
        path.write_bytes(content)

    return change


NOT_WHOLE = r"^model\.safetensors is not a whole safetensors file \(.+\); other formats are refused$"


SPOILT_WEIGHTS = {
    "empty": (lambda p: p.write_bytes(b""), NOT_WHOLE),
    "one byte short": (lambda p: p.write_bytes(p.read_bytes()[:-1]), NOT_WHOLE),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:100]), NOT_WHOLE),
    "one byte more": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), NOT_WHOLE),
    "header of 2**60 bytes": (bytes_at(0, struct.pack("<Q", 2**60)), NOT_WHOLE),
    "header length that wraps": (bytes_at(0, struct.pack("<Q", 2**64 - 8)), NOT_WHOLE),
    "header not JSON": (bytes_at(8, b"["), NOT_WHOLE),
    "overlapping offsets": (overlapping, NOT_WHOLE),
    "2**40 elements": (changed("0.bias", shape=[2**40]), NOT_WHOLE),
    "a shape that overflows": (changed("0.bias", shape=[2**32, 2**32, 16]), NOT_WHOLE),
    "negative size": (changed("0.bias", shape=[-16]), NOT_WHOLE),
    "offsets past the end": (changed("0.bias", data_offsets=[2**62, 2**62 + 64]), NOT_WHOLE),
    "terminal escapes in a name": (hostile_name, NOT_WHOLE.replace(".+", r".*\\x1b\[2J.*")),
    "unknown dtype": (changed("0.bias", dtype="object"), NOT_WHOLE),
    "extra tensor": (extra, r"^model\.safetensors holds besides '\\x1b\[2Jextra\\n', for the architecture small_cnn$"),
    "missing tensor": (without_last, r"^model\.safetensors lacks \d\.(weight|bias), for the architecture small_cnn$"),
    "wrong shape": (
        transposed,
        r"^model\.safetensors holds 9\.weight of shape \(64, 4\); small_cnn expects \(4, 64\)$",
    ),
    "F16": (halves("F16"), r"^model\.safetensors holds 0\.weight as F16; expected F32$"),
    "BF16": (halves("BF16"), r"^model\.safetensors holds 0\.weight as BF16; expected F32$"),
    "integers": (changed("9.bias", dtype="I32"), r"^model\.safetensors holds 9\.bias as I32; expected F32$"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT_WEIGHTS.values(), ids=SPOILT_WEIGHTS)
def test_spoilt_weights_are_refused(spoil: Callable[[Path], None], message: str, folder: Path) -> None:
    spoil(weights(folder))
    files = sorted(path.name for path in folder.iterdir())
    started = time.perf_counter()
    assert refused(DataFileError, message, load_model, folder).isprintable()
    assert time.perf_counter() - started < 2
    assert sorted(path.name for path in folder.iterdir()) == files


def test_counter_of_a_batchnorm_must_be_an_integer(tmp_path: Path) -> None:
    description = ModelDescription("narrow_resnet18", 4, 1, 8)
    save_model(tmp_path, description.build(), description)
    changed("norm.num_batches_tracked", dtype="F64")(weights(tmp_path))
    with pytest.raises(
        DataFileError, match=r"^model\.safetensors holds norm\.num_batches_tracked as F64; expected I64$"
    ):
        load_model(tmp_path)


def test_file_larger_than_the_architecture_needs_is_not_read(folder: Path) -> None:
    with weights(folder).open("r+b") as file:
        file.truncate(2**40)  # sparse: a terabyte of zeros in no space
    with pytest.raises(
        DataFileError, match=r"model\.safetensors has 1,099,511,627,776 bytes; expected at most 3\d\d,\d+$"
    ):
        load_model(folder)


def test_description_of_a_giant_is_refused_before_weights_are_looked_for(folder: Path) -> None:
    describe(folder, image_size=4096, num_classes=4096)
    weights(folder).unlink()
    with pytest.raises(
        DataFileError, match=r"model\.json describes weights of 8,\d+,\d+,\d+ bytes; the limit is 1,073,"
    ):
        load_model(folder)


MEMORY_SCRIPT = """
import resource, sys
from seamfast.errors import DataFileError
from seamfast.models.folder import load_model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sys.argv[1:]:
    try:
        load_model(folder)
    except DataFileError:
        print("refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_refusing_takes_little_memory(tmp_path: Path) -> None:
    folders = []
    for i, spoil in enumerate((changed("0.bias", shape=[2**40]), bytes_at(0, struct.pack("<Q", 2**60)), None, None)):
        folder = tmp_path / str(i)
        save_model(folder, DESCRIPTION.build(), DESCRIPTION)
        if spoil is not None:
            spoil(weights(folder))
        folders.append(folder)
    with weights(folders[2]).open("r+b") as file:
        file.truncate(2**31)
    describe(folders[3], image_size=4096)
    with weights(folders[3]).open("r+b") as file:
        file.truncate(2**33)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, *map(str, folders)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    *said, kibibytes = done.stdout.split()
    assert said == ["refused"] * 4
    assert int(kibibytes) < 100 * 1024


# model.json: hostile ones.

A_MODEL = r"^model\.json"


SPOILT_DESCRIPTIONS = {
    "empty": ("", r" is not JSON: "),
    "cut": ("{", r" is not JSON: "),
    "deep nesting": ("[" * 30_000, r" is not JSON: "),
    "deep nesting, closed": ('{"a":' * 10_000 + "1" + "}" * 10_000, r" is not JSON: "),
    "not UTF-8": (b"\xff\xfe{}", r" is not JSON: "),
    "an integer too long for Python": ("1" * 5000, r" is not JSON: "),
    "huge": ("{}" + " " * 65535, r" has 65,537 bytes; expected at most 65,536$"),
    "a list": ("[]", r" is not a description of format 'seamfast-model', version 1$"),
    "null": ("null", r" is not a description of format 'seamfast-model', version 1$"),
    "no format": ('{"version": 1}', r" is not a description of format"),
    "other format": (json.dumps(DOCUMENT | {"format": "other"}), r" is not a description of format"),
    "later version": (json.dumps(DOCUMENT | {"version": 2}), r" is not a description of format"),
    "version true": (json.dumps(DOCUMENT | {"version": True}), r" is not a description of format"),
    "doubled key": (json.dumps(DOCUMENT)[:-1] + ', "num_classes": 4}', r" is not JSON: it holds a key twice$"),
    "unknown key": (
        json.dumps(DOCUMENT | {"auto_map": "x.py"}),
        r" has the keys \['architecture', 'auto_map', .*; expected \['architecture', 'image_size', 'in_channels', "
        r"'mean', 'num_classes', 'std'\]$",
    ),
    "missing key": (json.dumps({k: v for k, v in DOCUMENT.items() if k != "std"}), r" has the keys .*; expected"),
}


@pytest.mark.parametrize(("text", "message"), SPOILT_DESCRIPTIONS.values(), ids=SPOILT_DESCRIPTIONS)
def test_spoilt_descriptions_are_refused(text: str | bytes, message: str, folder: Path) -> None:
    (folder / "model.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refused(DataFileError, A_MODEL + message, load_model, folder)
    assert said.isprintable()
    assert len(said) < 600


INTEGER = r"; expected an integer in \[\d+, 4096\]$"
SPOILT_VALUES = [
    (
        "architecture",
        "vgg",
        r"'vgg'; expected one of small_cnn, narrow_resnet18, resnet18, resnet20, small_vgg, small_vit, wrn_16_1, "
        r"small_vgg_bn, small_convnext, text_transformer, bilstm, text_cnn, vector_gru, mlp$",
    ),
    ("architecture", "__import__('os')", r".*; expected one of small_cnn"),
    ("architecture", "\x1b[2J" * 1000, r".*; expected one of small_cnn"),
    ("architecture", ["small_cnn"], r"\['small_cnn'\]; expected one of small_cnn"),
    ("architecture", None, r"None; expected one of small_cnn"),
    ("num_classes", 1, "1" + INTEGER),
    ("num_classes", "4", "'4'" + INTEGER),
    ("num_classes", 4.0, "4.0" + INTEGER),
    ("num_classes", True, "True" + INTEGER),
    ("num_classes", None, "None" + INTEGER),
    ("num_classes", 4097, "4097" + INTEGER),
    ("in_channels", 0, "0" + INTEGER),
    ("in_channels", [1], r"\[1\]" + INTEGER),
    ("image_size", 7, "7" + INTEGER),
    ("image_size", -8, "-8" + INTEGER),
    ("image_size", 10**9, "1000000000" + INTEGER),
    ("image_size", 10**4000, r"10+\.\.\.0+" + INTEGER),
    ("mean", 0.5, r"0\.5; expected a list of numbers$"),
    ("mean", {"0": 1}, r"\{'0': 1\}; expected a list of numbers$"),
    ("mean", [], r"\(\); expected one number, or 1$"),
    ("mean", [0.1, 0.2, 0.3], r"\(0\.1, 0\.2, 0\.3\); expected one number, or 1$"),
    ("mean", [None], r"\(None,\); expected one number, or 1$"),
    ("mean", [True], r"\(True,\); expected one number, or 1$"),
    ("mean", [float("nan")], r"\(nan,\); expected one number, or 1$"),
    ("mean", [float("-inf")], r"\(-inf,\); expected one number, or 1$"),
    ("std", [0.0], r"\(0\.0,\); expected one number above 0, or 1$"),
    ("std", [-0.25], r"\(-0\.25,\); expected one number above 0, or 1$"),
    ("std", [float("nan")], r"\(nan,\); expected one number above 0, or 1$"),
    ("std", [1e-300], r"\(1e-300,\); expected one number above 0, or 1$"),
    ("std", [[1.0]], r"\(\[1\.0\],\); expected one number above 0, or 1$"),
]


@pytest.mark.parametrize(("key", "value", "message"), SPOILT_VALUES)
def test_spoilt_values_are_refused(key: str, value: Any, message: str, folder: Path) -> None:
    describe(folder, **{key: value})
    said = refused(DataFileError, rf"{A_MODEL}: {key} is {message}", load_model, folder)
    assert said.isprintable()
    assert len(said) < 600


def test_number_beyond_floats_is_refused(folder: Path) -> None:
    text = json.dumps(DOCUMENT).replace('"mean": [0.4]', '"mean": [1e309]')
    assert "1e309" in text
    (folder / "model.json").write_text(text, encoding="utf-8")
    refused(DataFileError, A_MODEL + r": mean is \(inf,\); expected one number, or 1$", load_model, folder)


@pytest.mark.parametrize(("key", "value", "message"), SPOILT_VALUES)
def test_what_cannot_be_loaded_cannot_be_described(key: str, value: Any, message: str) -> None:
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in DOCUMENT.items() if k not in ("format", "version")}
    value = tuple(value) if key in ("mean", "std") and isinstance(value, list) else value
    refused(InputError, f"^{key} is ", ModelDescription, **fields | {key: value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    save_model(folder, DESCRIPTION.build(), DESCRIPTION)
    shutil.copy(weights(folder), folder / "whole")
    return folder


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(sorted(DOCUMENT)), value=JSON)
def test_any_json_value_is_taken_or_refused(key: str, value: Any, shared_folder: Path) -> None:
    shutil.copy(shared_folder / "whole", weights(shared_folder))
    describe(shared_folder, **{key: value})
    try:
        _, description = load_model(shared_folder)
    except DataFileError:
        return
    assert key in ("mean", "std", "format", "version") or getattr(description, key) == value


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_byte_changed_in_the_header_is_survived(data: st.DataObject, shared_folder: Path) -> None:
    describe(shared_folder)
    content = bytearray((shared_folder / "whole").read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    weights(shared_folder).write_bytes(content)
    try:
        model, _ = load_model(shared_folder)
    except DataFileError:
        return
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 4)


# Files that are not files.


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_symbolic_links_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / name
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    refused(DataFileError, rf"^{name} is a symbolic link; expected the file itself: the ", load_model, folder)


def test_link_that_appears_while_looking_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights(folder).rename(tmp_path / "elsewhere")
    weights(folder).symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)  # it was none a moment ago
    with pytest.raises(
        DataFileError, match=r"model\.safetensors: cannot be opened \(Too many levels of symbolic links\)"
    ):
        load_model(folder)


def test_folder_may_be_a_symbolic_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert load_model(tmp_path / "link")[1] == DESCRIPTION


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "missing"])
def test_what_is_no_regular_file_is_refused_without_waiting(name: str, kind: str, folder: Path) -> None:
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    wanted = "no such file" if kind == "missing" else "is not a regular file"
    looked_for = "the weights as safetensors" if name == "model.safetensors" else "the description of a model"
    refused(DataFileError, rf"^{name}: {wanted}; looked for {looked_for}$", load_model, folder)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(folder: Path) -> None:
    weights(folder).chmod(0)
    refused(DataFileError, r"model\.safetensors: cannot be opened \(Permission denied\)", load_model, folder)


# What the description is for.


def test_images_must_fit() -> None:
    def images(*shape: int) -> CleanSet:
        return CleanSet(torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape[0], dtype=torch.int64))

    DESCRIPTION.check_data(images(2, 1, 8, 8))
    with pytest.raises(
        InputError, match=r"^the images are \(3, 8, 8\); expected \(1, 8, 8\) \(C, H, W\), as the model"
    ):
        DESCRIPTION.check_data(images(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"^the images are \(1, 8, 9\); expected \(1, 8, 8\)"):
        DESCRIPTION.check_data(images(2, 1, 8, 9))


def test_built_model_takes_what_it_says() -> None:
    for architecture in IMAGE_ARCHITECTURES:
        model: nn.Module = ModelDescription(architecture, 6, 3, 8).build()
        assert model.eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 6)


# Models of text, with their tokenizer, and of vectors.

TEXTS = ["a stirring , funny film", "the dull sequel of a film"]


def text_folder(folder: Path, architecture: str = "text_cnn") -> tuple[nn.Module, TextDescription]:
    tokenizer = train_tokenizer(TEXTS, 400)
    given_ = TextDescription(architecture, 3, tokenizer.get_vocab_size(), 16, tokenizer=tokenizer)
    model = given_.build().eval()
    save_model(folder, model, given_)
    return model, given_


@pytest.mark.parametrize("architecture", sorted(TEXT_ARCHITECTURES))
def test_round_trip_of_text(architecture: str, tmp_path: Path) -> None:
    model, given_ = text_folder(tmp_path, architecture)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors", "tokenizer.json"]
    loaded, description = load_model(tmp_path)
    assert description == given_
    assert isinstance(description, TextDescription)
    vocabulary = Vocabulary.of(description.tokenizer)
    inputs = vocabulary.encode(TEXTS)
    assert torch.equal(inputs["input_ids"], Vocabulary.of(given_.tokenizer).encode(TEXTS)["input_ids"])
    assert torch.equal(loaded(**inputs), model(**inputs))


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    text_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    _, description = load_model(tmp_path)
    assert isinstance(description, TextDescription)
    assert description.tokenizer is None


def test_round_trip_of_vectors(tmp_path: Path) -> None:
    given_ = VectorDescription("vector_gru", 2, 12)
    model = given_.build().eval()
    save_model(tmp_path, model, given_)
    loaded, description = load_model(tmp_path)
    assert description == given_
    vectors = torch.randn(3, 1, 12)
    assert torch.equal(loaded(vectors), model(vectors))
    description.check_data(CleanSet(vectors, torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(InputError, match=r"^the samples are \(2, 13\); expected \(L, 12\), as the model takes them$"):
        description.check_data(CleanSet(torch.zeros(3, 2, 13), torch.zeros(3, dtype=torch.int64)))


def test_round_trip_of_tables(tmp_path: Path) -> None:
    given_ = TabularDescription("mlp", 2, 12)
    model = given_.build().eval()
    save_model(tmp_path, model, given_)
    loaded, description = load_model(tmp_path)
    assert description == given_
    rows, labels = torch.randn(3, 12), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(loaded(rows), model(rows))
    data = CleanSet(rows, labels, num_classes=2)
    description.check_data(data)
    assert TabularDescription.of("mlp", data) == given_
    wanted = r"^the samples are \(13,\); expected \(12,\), rows of 12 columns, as the model takes them$"
    with pytest.raises(InputError, match=wanted):
        description.check_data(CleanSet(torch.zeros(3, 13), labels))
    for other in (torch.zeros(3, 1, 12), {"a": rows, "b": labels[:, None]}):
        refused(
            InputError,
            "^data is .*; expected rows of floats, as 'mlp' takes",
            TabularDescription.of,
            "mlp",
            CleanSet(other, labels),
        )
    refused(InputError, r"^n_columns is 0; expected an integer in \[1, 1000000\]$", TabularDescription, "mlp", 2, 0)
    refused(InputError, "^architecture is 'small_cnn'; expected one of mlp$", TabularDescription, "small_cnn", 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 7}, "vocab_size is 7; expected an integer in \\[8, 1000000\\]$"),
        ({"vocab_size": True}, "vocab_size is True; expected an integer"),
        ({"max_length": 4097}, "max_length is 4097; expected an integer in \\[4, 4096\\]$"),
        ({"pad": -1}, "pad is -1; expected an integer in \\[0, 1000000\\]$"),
        ({"pad": 900}, "pad is 900; expected a token id in \\[0, 900\\)$"),
        ({"architecture": "bilstm2"}, "architecture is 'bilstm2'; expected one of small_cnn, .*, vector_gru, mlp$"),
        (
            {"architecture": "small_cnn"},
            "architecture is 'small_cnn'; expected one of text_transformer, bilstm, text_cnn$",
        ),
    ],
)
def test_spoilt_descriptions_of_text(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"architecture": "text_cnn", "num_classes": 2, "vocab_size": 900, "max_length": 16}
    refused(InputError, f"^{message}", TextDescription, **fields | changes)
    if "architecture" not in changes:
        text_folder(tmp_path)
        document = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
        (tmp_path / "model.json").write_text(json.dumps(document | {"vocab_size": 900} | changes), encoding="utf-8")
        refused(DataFileError, rf"model\.json: {message}", load_model, tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_has(tmp_path: Path) -> None:
    _, given_ = text_folder(tmp_path)
    document = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    (tmp_path / "model.json").write_text(json.dumps(document | {"vocab_size": 20}), encoding="utf-8")
    n = given_.vocab_size
    refused(
        DataFileError, rf"model\.json: tokenizer has {n} tokens; expected at most vocab_size=20$", load_model, tmp_path
    )


def test_a_hostile_tokenizer_is_refused(tmp_path: Path) -> None:
    text_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    refused(DataFileError, r"tokenizer\.json", load_model, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "model.json")
    refused(DataFileError, r"tokenizer\.json", load_model, tmp_path)


def test_texts_that_a_model_takes() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    data = CleanSet.from_texts(TEXTS, [0, 1], tokenizer, num_classes=2)
    given_ = TextDescription.of("bilstm", data)
    assert given_ == TextDescription("bilstm", 2, tokenizer.get_vocab_size(), 512)
    given_.check_data(data)
    with pytest.raises(InputError, match=r"^input_ids have 8 positions; expected at most 5, as the model has$"):
        replace(given_, max_length=5).check_data(data)
    largest = int(data.inputs["input_ids"].max())
    small = TextDescription("bilstm", 2, largest, 512)
    with pytest.raises(InputError, match=rf"^input_ids hold {largest}; expected token ids in \[0, {largest}\), as the"):
        small.check_data(data)
    images = CleanSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), num_classes=2)
    with pytest.raises(InputError, match=r"^data is CleanSet\(.*\); expected texts, as the model takes them$"):
        given_.check_data(images)
    with pytest.raises(InputError, match=r"^data is CleanSet\(.*\); expected texts, as 'bilstm' takes them$"):
        TextDescription.of("bilstm", images)
