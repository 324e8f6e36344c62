"""Which module to build: the caller names it. What a model folder says can only select from what is allowed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import zipimport
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from seamfast.errors import DataFileError, InputError, SeamfastError
from seamfast.intake.refusal import RefusedError
from seamfast.intake.tensors import strict_json
from seamfast.model_files import DESCRIPTION, ModelDescription, described_fields
from seamfast.untrusted import listed, printable, printable_value

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
MAX_CONFIG_BYTES = 2 << 20  # 21 thousand class names, listed twice, take 1.7 million
_MAX_DEPTH = 8
_MAX_LAYERS = 200
_MAX_HIDDEN = 16_384
_MAX_IMAGE = 4096
_MAX_CLASSES = 65_536
_MAX_NUMBER = 65_536  # any other number of a config.json
_MAX_LIST = 32
_MAX_ARGUMENTS = 64
_LARGEST_NUMBER = 2**53
_LONGEST_TEXT = 1000

_CONFIG_CLASSES = {
    "beit": "Beit",
    "convnext": "ConvNext",
    "convnextv2": "ConvNextV2",
    "deit": "DeiT",
    "dinov2": "Dinov2",
    "efficientnet": "EfficientNet",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
    "mobilevit": "MobileViT",
    "poolformer": "PoolFormer",
    "pvt": "Pvt",
    "regnet": "RegNet",
    "resnet": "ResNet",
    "swin": "Swin",
    "swinv2": "Swinv2",
    "vit": "ViT",
}
"""Image classifiers of transformers, by ``model_type``: what their ``...Config`` and ``...ForImageClassification``
begin with. None of them builds another model inside that its config names."""

_REMOTE_CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
_NOT_OURS = {"num_labels", "out_features", "out_indices"}  # the first is checked by itself; backbones have the others
_LARGEST = {
    **dict.fromkeys(
        ("num_hidden_layers", "num_encoder_blocks", "num_stages", "depths", "num_block_repeats"), _MAX_LAYERS
    ),
    **dict.fromkeys(("hidden_size", "hidden_sizes", "neck_hidden_sizes", "embed_dim", "embedding_size"), _MAX_HIDDEN),
    **dict.fromkeys(("hidden_dim", "num_attention_heads", "num_heads", "num_channels"), _MAX_HIDDEN),
    **dict.fromkeys(("image_size", "patch_size"), _MAX_IMAGE),
}
"""Integers from 1 to this. What other numbers can do is bounded by the bytes that the model takes."""
_COEFFICIENTS = ("depth_coefficient", "width_coefficient", "depth_multiplier")
_MAX_COEFFICIENT = 16
_PAIRS = {"image_size", "patch_size"}  # one number, or two
_WORD = re.compile(r"[a-z0-9_]{1,32}")
_TIMM_NAME = re.compile(r"[a-z0-9_]{1,128}")
_TIMM_ARGUMENTS = ("num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate")
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_RESERVED = ("registered", "timm", "transformers")
_FORMS = "registered:NAME, transformers, timm:NAME or MODULE:FUNCTION"


@dataclass(frozen=True)
class Architecture:
    """What to build, and what it takes.

    Attributes:
        source: ``"registered"``, ``"callable"``, ``"transformers"`` or ``"timm"``.
        name: in ``seamfast.attacks.ARCHITECTURES``, ``module:function``, a ``model_type``, or of a timm model.
        arguments: what it is built with, as JSON values.
        image_shape: (C, H, W) of its input in pixels, or ``None`` where nothing says.
        num_classes: logits, or ``None`` where nothing says.
        mean, std: normalisation per channel, or one number for all, on the [0, 1] pixel scale, or ``None``.
        place: the model's folder or file, links resolved, from where nothing is imported.
    """

    source: str
    name: str
    arguments: Mapping[str, Any]
    image_shape: tuple[int, int, int] | None
    num_classes: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    place: str = field(repr=False, compare=False)
    _make: Callable[[], object] = field(repr=False, compare=False)
    _names: Callable[[nn.Module], dict[str, str]] | None = field(default=None, repr=False, compare=False)

    def build(self) -> nn.Module:
        """The module with untrained weights, the same at each call; without memory under ``torch.device("meta")``.

        The caller's random numbers stay as they are.

        Raises:
            RefusedError: e.g. ``architecture my_models:net cannot be built: TypeError: missing argument 'width'``.
        """
        with torch.random.fork_rng(devices=[]), nothing_imported_from(self.place):
            torch.default_generator.manual_seed(0)
            try:
                model = self._make()
            except (SeamfastError, MemoryError):
                raise
            except Exception as error:
                raise RefusedError(
                    "architecture", f"architecture {printable(self.name)} cannot be built: {_error(error)}"
                ) from error
        if not isinstance(model, nn.Module):
            raise RefusedError(
                "architecture",
                f"architecture {printable(self.name)} returned {printable_value(model)}; expected an nn.Module",
            )
        return model

    def names_in_file(self, model: nn.Module) -> dict[str, str]:
        """What a weights file calls each entry of ``model.state_dict()``: the same, but for some of transformers.

        Raises:
            RefusedError: where transformers would have to merge or split tensors to read its own format.
        """
        if self._names is None:
            return {name: name for name in model.state_dict()}
        with nothing_imported_from(self.place):
            return self._names(model)


@dataclass(frozen=True)
class Choice:
    """What the caller asked for; it becomes an ``Architecture`` once the model's folder is at hand.

    Attributes:
        source: as of an ``Architecture``, or ``None`` where the description in the folder shall select.
        name, arguments: as of an ``Architecture``.
        function: what to call, where the caller gave the function itself.
    """

    source: str | None
    name: str
    arguments: Mapping[str, Any]
    function: Callable[..., object] | None = None

    def documents(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names``, the files beside the weights, that ``resolve`` needs to see.

        Raises:
            RefusedError: where the folder should describe the model, and does not.
        """
        present = set(names)
        if self.source is None and DESCRIPTION in present:
            return (DESCRIPTION,)
        if self.source not in (None, "transformers"):
            return ()
        if CONFIG not in present:
            wanted = CONFIG if self.source else f"{DESCRIPTION} or {CONFIG}"
            raise RefusedError(
                "no-architecture",
                f"there is no {wanted} beside the weights; expected one, or an architecture: {_FORMS}",
            )
        return tuple(name for name in (CONFIG, PREPROCESSOR) if name in present)

    def resolve(self, documents: Mapping[str, bytes], place: str | os.PathLike[str]) -> Architecture:
        """The architecture, from what ``documents`` says and from the contents of these files.

        Args:
            documents: bytes of each file, by name.
            place: the model's folder or file, from where no code is ever taken.

        Raises:
            RefusedError: e.g. ``config.json: model_type is 'llama'; expected one of beit, convnext, ...``.
            InputError: where an extra is not installed, or an argument is not known.
        """
        place = os.path.realpath(place)
        if DESCRIPTION in documents:
            return _described(documents[DESCRIPTION], place)
        if CONFIG in documents:
            return _transformers(documents[CONFIG], documents.get(PREPROCESSOR), place)
        if self.source == "registered":
            return _registered(self.name, self.arguments, place)
        if self.source == "timm":
            return _timm(self.name, self.arguments, place)
        return _callable(self.name, self.function, self.arguments, place)


def parse_architecture(spec: str | Callable[..., object] | None, arguments: Mapping[str, Any]) -> Choice:
    """What the caller asks for, checked as far as that goes without the model.

    Args:
        spec: ``registered:NAME``, ``transformers``, ``timm:NAME``, ``MODULE:FUNCTION``, a function, or ``None`` for
            what the folder's own ``model.json`` or ``config.json`` selects.
        arguments: by name, JSON values; ``parse_arguments`` makes them of text.

    Raises:
        InputError: e.g. ``architecture is 'resnet'; expected registered:NAME, transformers, timm:NAME or ...``.
    """
    checked = _check_arguments(arguments)
    if spec is None or spec == "transformers":
        if checked:
            raise InputError(
                f"arguments are {listed(sorted(checked))}; expected none, as the folder describes the model"
            )
        return Choice(spec and "transformers", "", {})
    if callable(spec):
        name = f"{getattr(spec, '__module__', '?')}:{getattr(spec, '__qualname__', type(spec).__qualname__)}"
        return Choice("callable", name, checked, spec)
    source, colon, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if source == "timm" and colon and not _TIMM_NAME.fullmatch(name):
        raise InputError(
            f"timm model is {printable_value(name)}; expected a name of timm.list_models(), without prefix or tag"
        )
    if source in ("registered", "timm") and name:
        return Choice(source, name, checked)
    if source in _RESERVED or not isinstance(spec, str) or not _FUNCTION.fullmatch(spec):
        raise InputError(f"architecture is {printable_value(spec)}; expected {_FORMS}")
    return Choice("callable", spec, checked)


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments as a command line gives them: ``["num_classes=10", "act=relu"]`` is ``{"num_classes": 10, ...}``.

    A value that is JSON is read as such; any other is text.

    Raises:
        InputError: e.g. ``argument is 'width'; expected NAME=VALUE``.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"argument is {printable_value(text)}; expected NAME=VALUE")
        if name in arguments:
            raise InputError(f"argument {printable_value(name)} is given twice; expected it once")
        try:
            arguments[name] = strict_json(value.encode())
        except ValueError:
            arguments[name] = value
    return _check_arguments(arguments)


def parse_config(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object of a stranger's: strict, bounded in size and depth, and without a word of code to fetch.

    Args:
        data: the whole file, in UTF-8.
        where: names it in messages.

    Raises:
        RefusedError: code ``"config"``, e.g. ``config.json is not strict JSON: it holds a key twice``; or
            ``"remote-code"``, e.g. ``config.json holds auto_map, which names code to run; ...``.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise RefusedError("config", f"{where} has {len(data):,} bytes; expected at most {MAX_CONFIG_BYTES:,}")
    try:
        document = strict_json(data)
    except ValueError as error:
        raise RefusedError("config", f"{where} is not strict JSON: {printable(error)}") from error
    if not isinstance(document, dict):
        raise RefusedError("config", f"{where} holds {printable_value(document)}; expected an object")
    level: list[Any] = [document]
    for _ in range(_MAX_DEPTH):
        for entry in level:
            for key in _REMOTE_CODE if isinstance(entry, dict) else ():
                if key in entry:
                    raise RefusedError(
                        "remote-code",
                        f"{where} holds {key}, which names code to run; expected a description that is data alone",
                    )
        level = [
            inner
            for entry in level
            for inner in (entry.values() if isinstance(entry, dict) else entry)
            if isinstance(inner, (dict, list))
        ]
    if level:
        raise RefusedError("config", f"{where} is nested more than {_MAX_DEPTH} deep; expected less")
    return document


def refuse_import_path(place: str | os.PathLike[str]) -> None:
    """Raise ``RefusedError`` where Python would look for modules in the model's folder, as it does in the working one.

    What Python imported from there before this is called has run already: nothing within Python can undo it.
    """
    for entry in sys.path:
        # The name of an editable install is there too, and looks like a file of the working folder. It is no place: the
        # hook that knows it answers for it.
        importer = pkgutil.get_importer(entry)
        is_place = importer is None or isinstance(importer, (importlib.machinery.FileFinder, zipimport.zipimporter))
        if is_place and _is_inside(entry, os.path.realpath(place)):
            raise RefusedError(
                "import-path",
                f"Python imports modules from {printable(entry or os.getcwd())}, which lies in the model's folder; "
                "expected to be run from elsewhere",
            )


@contextlib.contextmanager
def nothing_imported_from(place: str) -> Iterator[None]:
    """While this lasts, importing anything from ``place`` raises ``RefusedError``, however it comes about."""
    guard = _Guard(place)
    sys.meta_path.insert(0, guard)
    try:
        yield
    finally:
        sys.meta_path.remove(guard)


class _Guard:
    """A finder that asks the others and looks at what they found before any of it runs."""

    def __init__(self, place: str) -> None:
        self.place = place

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        for finder in list(sys.meta_path):
            if isinstance(finder, _Guard):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _refuse_spec(spec, self.place)
                return spec
        return None


def _refuse_spec(spec: importlib.machinery.ModuleSpec, place: str) -> None:
    for found in (
        *([spec.origin] if spec.origin and spec.has_location else []),
        *(spec.submodule_search_locations or []),
    ):
        if _is_inside(found, place):
            raise RefusedError(
                "remote-code",
                f"the module {printable(spec.name)} would be imported from {printable(found)}, which lies in the "
                "model's folder; expected code from elsewhere",
            )


def _is_inside(path: str, place: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), place]) == place


# The ways to say what to build


def _described(data: bytes, place: str) -> Architecture:
    """Of ``model.json``, as ``seamfast.model_files`` writes it."""
    document = parse_config(data, DESCRIPTION)
    try:
        arguments = described_fields(document, DESCRIPTION)
    except DataFileError as error:
        raise RefusedError("config", str(error)) from error
    name = arguments.pop("architecture")
    try:
        return _registered(name, arguments, place)
    except InputError as error:
        raise RefusedError("config", f"{DESCRIPTION}: {error}") from error


def _registered(name: str, arguments: Mapping[str, Any], place: str) -> Architecture:
    known = set(ModelDescription.__dataclass_fields__) - {"architecture"}
    optional = {"mean", "std"}
    if unknown := set(arguments) - known:
        raise InputError(f"arguments are {listed(sorted(unknown))}; expected some of {', '.join(sorted(known))}")
    if missing := known - optional - set(arguments):
        raise InputError(f"arguments lack {', '.join(sorted(missing))}; expected them for {printable_value(name)}")
    fields = dict(arguments)
    for key in optional & set(fields):
        fields[key] = tuple(fields[key]) if isinstance(fields[key], list) else fields[key]
    description = ModelDescription(name, **fields)
    return Architecture(
        "registered",
        description.architecture,
        dict(arguments),
        (description.in_channels, description.image_size, description.image_size),
        description.num_classes,
        description.mean if "mean" in fields else None,
        description.std if "std" in fields else None,
        place,
        description.build,
    )


def _callable(
    name: str, function: Callable[..., object] | None, arguments: Mapping[str, Any], place: str
) -> Architecture:
    num_classes = arguments.get("num_classes")
    return Architecture(
        "callable",
        name,
        dict(arguments),
        None,
        num_classes if type(num_classes) is int else None,
        None,
        None,
        place,
        partial(_import_function(name, place) if function is None else function, **arguments),
    )


def _import_function(name: str, place: str) -> Callable[..., object]:
    """``module:function`` of the operator's own, from ``sys.path``; each module is looked at before it runs."""
    module_name, _, attribute = name.partition(":")
    with nothing_imported_from(place):
        try:
            found: Any = importlib.import_module(module_name)
        except (SeamfastError, MemoryError):
            raise
        except Exception as error:
            raise InputError(f"architecture is {name!r}, whose module cannot be imported: {_error(error)}") from error
    parts = module_name.split(".")
    for i in range(len(parts)):  # what was imported earlier has passed no guard
        spec = getattr(sys.modules.get(".".join(parts[: i + 1])), "__spec__", None)
        if spec is not None:
            _refuse_spec(spec, place)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InputError(
            f"architecture is {name!r}, where that module has {printable_value(found)}; expected a function"
        )
    function: Callable[..., object] = found
    return function


def _timm(name: str, arguments: Mapping[str, Any], place: str) -> Architecture:
    if unknown := set(arguments) - set(_TIMM_ARGUMENTS):
        raise InputError(f"arguments are {listed(sorted(unknown))}; expected some of {', '.join(_TIMM_ARGUMENTS)}")
    with nothing_imported_from(place), _extra("timm", "timm", f"timm:{name}"):
        timm = importlib.import_module("timm")
        known = set(timm.list_models())
    if name not in known:
        raise InputError(f"timm model is {name!r}; expected a name of timm.list_models()")
    make = partial(timm.create_model, name, pretrained=False, **arguments)
    architecture = Architecture("timm", name, dict(arguments), None, None, None, None, place, make)
    with torch.device("meta"):
        model = architecture.build()
    usual = getattr(model, "pretrained_cfg", {})
    channels, height, width = usual.get("input_size") or (3, 224, 224)
    size = arguments.get("img_size", (height, width))
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return replace(
        architecture,
        image_shape=(arguments.get("in_chans", channels), height, width),
        num_classes=getattr(model, "num_classes", None),
        mean=tuple(usual["mean"]) if usual.get("mean") else None,
        std=tuple(usual["std"]) if usual.get("std") else None,
    )


def _transformers(data: bytes, preprocessor: bytes | None, place: str) -> Architecture:
    """Of ``config.json``: the config class of an allowed ``model_type``, filled by its own keys alone.

    What is not such a key is passed to nobody: ``_name_or_path``, ``_attn_implementation`` (which may name code on a
    hub), ``quantization_config`` and their like are without effect.
    """
    document = parse_config(data, CONFIG)
    model_type = document.get("model_type")
    if not isinstance(model_type, str) or model_type not in _CONFIG_CLASSES:
        raise RefusedError(
            "config",
            f"{CONFIG}: model_type is {printable_value(model_type)}; expected one of {', '.join(_CONFIG_CLASSES)}",
        )
    num_classes = _num_classes(document)
    _check_sizes(document)  # before transformers, which takes seconds to import, sees any of it
    prefix = _CONFIG_CLASSES[model_type]
    with nothing_imported_from(place), _extra("hf", "transformers", f"model_type {model_type}"):
        transformers = importlib.import_module("transformers")
        config_class = getattr(transformers, f"{prefix}Config")
        model_class = getattr(transformers, f"{prefix}ForImageClassification")
    base = inspect.signature(transformers.PretrainedConfig.__init__).parameters
    arguments = {
        name: _setting(name, document[name], parameter.default)
        for name, parameter in inspect.signature(config_class.__init__).parameters.items()
        if name in document and name not in {*base, *_NOT_OURS} and not name.startswith("_")
    }

    def make() -> nn.Module:
        model: nn.Module = model_class(config_class(num_labels=num_classes, **arguments))
        model.register_forward_hook(_take_logits)  # rather than a wrapper, which would rename the weights
        return model

    channels = arguments.get("num_channels", 3)
    mean, std, side = _preprocessing(preprocessor, channels)
    size = arguments.get("image_size", side)
    height, width = size if isinstance(size, list) else (size, size)
    return Architecture(
        "transformers",
        model_type,
        {"num_labels": num_classes, **arguments},
        None if height is None or width is None else (channels, height, width),
        num_classes,
        mean,
        std,
        place,
        make,
        _names_of_transformers,
    )


def _take_logits(module: nn.Module, args: object, output: Any) -> Any:
    return output.logits


def _names_of_transformers(model: nn.Module) -> dict[str, str]:
    """From release 5 on, modules of some classifiers have new names inside, while files keep the old ones."""
    state = model.state_dict()
    try:
        loading = importlib.import_module("transformers.core_model_loading")
    except ImportError:
        return {name: name for name in state}
    marks = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    in_file = {id(mark): name for name, mark in loading.revert_weight_conversion(model, dict(marks)).items()}
    if set(in_file) != {id(mark) for mark in marks.values()}:
        raise RefusedError(
            "architecture",
            "transformers stores the tensors of this model_type in another form; expected them one to one",
        )
    return {name: in_file[id(mark)] for name, mark in marks.items()}


# What a config.json may say


def _num_classes(document: Mapping[str, Any]) -> int:
    names, number = document.get("id2label"), document.get("num_labels")
    if names is not None:
        if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
            raise RefusedError(
                "config", f"{CONFIG}: id2label is {printable_value(names)}; expected names of classes 0, 1, ..."
            )
        if number is not None and number != len(names):
            raise RefusedError(
                "config", f"{CONFIG}: num_labels is {printable_value(number)}; expected {len(names)}, as id2label has"
            )
        number = len(names)
    if number is None:
        return 2  # which transformers leaves unsaid
    if type(number) is not int or not 2 <= number <= _MAX_CLASSES:
        raise RefusedError(
            "config",
            f"{CONFIG}: the number of classes is {printable_value(number)}; expected an integer in [2, {_MAX_CLASSES}]",
        )
    return number


def _setting(name: str, value: Any, default: Any) -> Any:
    """One value of a config, of the kind that its default is of, within bounds."""
    if value is None and (default is None or default is inspect.Parameter.empty):
        return None
    if isinstance(default, (list, tuple)) or (name in _PAIRS and isinstance(value, list)):
        if not isinstance(value, list) or not len(value) <= _MAX_LIST or (name in _PAIRS and len(value) != 2):
            wanted = "2 numbers" if name in _PAIRS else f"a list of at most {_MAX_LIST}"
            raise RefusedError("config", f"{CONFIG}: {name} is {printable_value(value)}; expected {wanted}")
        kind = default[0] if isinstance(default, (list, tuple)) and default else 0
        return [_scalar(name, item, kind) for item in value]
    return _scalar(name, value, default)


def _scalar(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        wanted, known = "true or false", isinstance(value, bool)
    elif isinstance(default, str):
        wanted, known = "a word", isinstance(value, str) and _WORD.fullmatch(value) is not None
    elif default is None or default is inspect.Parameter.empty:
        wanted = f"a word, true, false, or a number in [0, {_MAX_NUMBER}]"
        is_word = isinstance(value, str) and _WORD.fullmatch(value) is not None
        known = is_word or isinstance(value, bool) or _is_number(value, _MAX_NUMBER)
    elif name in _LARGEST:
        wanted = f"an integer in [1, {_LARGEST[name]}]"
        known = type(value) is int and 1 <= value <= _LARGEST[name]
    else:
        most = _MAX_COEFFICIENT if name in _COEFFICIENTS else _MAX_NUMBER
        wanted, known = f"a number in [0, {most}]", _is_number(value, most)
    if not known:
        raise RefusedError("config", f"{CONFIG}: {name} is {printable_value(value)}; expected {wanted}")
    return value


def _is_number(value: Any, most: int) -> bool:
    return type(value) in (int, float) and 0 <= value <= most  # type(), since bool is an int too


def _check_sizes(document: Mapping[str, Any]) -> None:
    for name in (*_LARGEST, *_COEFFICIENTS):
        value = document.get(name)
        if value is not None:
            _setting(name, value, [0] if isinstance(value, list) else 0)
    layers = [document.get(name) or 0 for name in ("num_hidden_layers", "depths", "num_block_repeats")]
    counts = [sum(count) if isinstance(count, list) else count for count in layers]
    counts[2] = (counts[2] or 16) * (document.get("depth_coefficient") or 1)  # of EfficientNet alone
    # Layers cost time and memory even where weights do not: each is some hundred Python objects.
    if max(counts) > _MAX_LAYERS:
        raise RefusedError("config", f"{CONFIG} describes {max(counts):,.0f} layers; expected at most {_MAX_LAYERS}")


_Numbers = tuple[float, ...] | None


def _preprocessing(data: bytes | None, channels: int) -> tuple[_Numbers, _Numbers, int | None]:
    """Mean, standard deviation and side of the images, as far as ``preprocessor_config.json`` says them."""
    if data is None:
        return None, None, None
    document = parse_config(data, PREPROCESSOR)
    numbers: list[_Numbers] = []
    for key, least in (("image_mean", -1e6), ("image_std", 1e-6)):
        values = document.get(key)
        if values is None or document.get("do_normalize") is False:
            numbers.append(None)
            continue
        if not (
            isinstance(values, list)
            and len(values) == channels
            and all(type(v) in (int, float) and least <= v <= 1e6 for v in values)
        ):
            raise RefusedError(
                "config",
                f"{PREPROCESSOR}: {key} is {printable_value(values)}; expected {channels} numbers in "
                f"[{least:g}, 1e+06]",
            )
        numbers.append(tuple(float(v) for v in values))
    side = document.get("crop_size", document.get("size"))
    if isinstance(side, dict):
        height, width = side.get("height", side.get("shortest_edge")), side.get("width", side.get("shortest_edge"))
        side = height if height == width else None
    if side is not None and not (type(side) is int and 1 <= side <= _MAX_IMAGE):
        raise RefusedError(
            "config",
            f"{PREPROCESSOR}: the size of images is {printable_value(side)}; expected an integer in [1, {_MAX_IMAGE}]",
        )
    return numbers[0], numbers[1], side


# What they share


@contextlib.contextmanager
def _extra(extra: str, package: str, what: str) -> Iterator[None]:
    """An import that fails, for whatever reason, is told as the extra that would bring it."""
    try:
        yield
    except (SeamfastError, MemoryError):
        raise
    except Exception as error:  # a torchvision that does not fit the torch raises a RuntimeError
        raise InputError(
            f"{what} needs the package {package}, which cannot be imported ({_error(error)}); "
            f'expected it installed: pip install "seamfast[{extra}]"'
        ) from error


def _check_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if len(arguments) > _MAX_ARGUMENTS:
        raise InputError(f"there are {len(arguments)} arguments; expected at most {_MAX_ARGUMENTS}")
    for name, value in arguments.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"an argument is called {printable_value(name)}; expected a name of Python")
        for item in value if isinstance(value, (list, tuple)) else [value]:
            is_number = isinstance(item, (int, float)) and abs(item) <= _LARGEST_NUMBER  # NaN is not
            is_text = isinstance(item, str) and len(item) <= _LONGEST_TEXT
            if not (item is None or is_number or is_text):
                raise InputError(
                    f"argument {name} is {printable_value(value)}; expected numbers within 2^53, text, or lists of them"
                )
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


def _error(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(error)}"
