"""Which module to build: the caller names it. A description in a model folder only selects from an allow-list."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from seamfast.errors import DataFileError, InputError, SeamfastError
from seamfast.gating.config_json import (
    CONFIG,
    PREPROCESSOR,
    TIMM_NAME,
    TimmConfig,
    check_problem,
    check_sizes,
    class_count,
    class_names,
    is_of_timm,
    parse_config,
    preprocessing,
    preprocessor_document,
    setting,
    text_sizes,
    timm_config,
    with_overrides,
)
from seamfast.gating.import_guard import nothing_imported_from, refuse_spec
from seamfast.gating.overrides import NO_OVERRIDES, Overrides, side_or_sides
from seamfast.gating.text_input import TextInput, text_input, tokenizer_files
from seamfast.intake.refusal import RefusedError
from seamfast.isolation.limits import is_out_of_memory
from seamfast.models.folder import (
    DESCRIPTION,
    ModelDescription,
    TextDescription,
    described_fields,
    described_keys,
    description_class,
)
from seamfast.models.meta import without_memory
from seamfast.models.text_architectures import TEXT_ARCHITECTURES
from seamfast.untrusted import listed, printable, printable_value

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

_TEXT_CONFIG_CLASSES = {
    "albert": "Albert",
    "bert": "Bert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "gpt2": "GPT2",
    "roberta": "Roberta",
}
"""Text classifiers of transformers, in the same way: ``...ForSequenceClassification``."""

_NOT_OURS = {"num_labels", "out_features", "out_indices"}  # the first is checked by itself; the others are of backbones
_NOT_OF_CLASSIFIERS = {"is_decoder", "add_cross_attention", "use_cache", "tie_word_embeddings", "bos_token_id"}
_NOT_OF_CLASSIFIERS |= {"eos_token_id"}  # what generates texts
_TIMM_ARGUMENTS = ("num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate")
_TORCHVISION_NAME = re.compile(r"\w{1,128}", re.ASCII)
_TORCHVISION_CLASSES = 1000  # where no number is given
_TORCHVISION_SIZES = {"vit_": "image_size", "maxvit": "input_size"}  # how models of one size of images take it
_TORCHVISION_SIDE = 224
_OF_WEIGHTS = ("weights", "pretrained", "progress")  # what an argument of torchvision that downloads begins with
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_RESERVED = ("registered", "timm", "torchvision", "transformers", "hf")
_FORMS = "registered:NAME, hf, timm:NAME, torchvision:NAME or MODULE:FUNCTION"


@dataclass(frozen=True)
class Architecture:
    """What to build, and what it takes.

    Attributes:
        source: ``"registered"``, ``"callable"``, ``"transformers"``, ``"timm"`` or ``"torchvision"``.
        name: in ``seamfast.attacks.ARCHITECTURES``, ``module:function``, a ``model_type``, or of a model of timm or
            torchvision.
        arguments: what it is built with, as JSON values.
        place: the model's folder or file, links resolved, from which nothing is imported.
        input_shape: (C, H, W) of its input in pixels, or ``None`` where unknown.
        num_classes: logits, or ``None`` where unknown.
        mean, std: normalization per channel, or one number for all, on the [0, 1] pixel scale, or ``None``.
        class_names: by class, where the folder's ``config.json`` has them.
        resize: (H, W) that the caller has images resized to, or ``None``.
        documents: what describes it in a folder of transformers or timm, by the name of the file.
        text: of a text classifier, its vocabulary and its tokenizer.
    """

    source: str
    name: str
    arguments: Mapping[str, Any]
    place: str = field(repr=False, compare=False)
    _make: Callable[[], object] = field(repr=False, compare=False)
    input_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    resize: tuple[int, int] | None = None
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)
    text: TextInput | None = field(default=None, repr=False, compare=False)
    _names: Callable[[nn.Module], dict[str, str]] | None = field(default=None, repr=False, compare=False)

    def build(self) -> nn.Module:
        """The module with untrained weights, the same at each call; without memory under ``without_memory()``.

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
                if is_out_of_memory(error):
                    raise
                message = f"architecture {printable(self.name)} cannot be built: {_error(error)}"
                raise RefusedError("architecture", message) from error
        if not isinstance(model, nn.Module):
            message = f"architecture {printable(self.name)} returned {printable_value(model)}; expected an nn.Module"
            raise RefusedError("architecture", message)
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
    """What the caller asked for; with the model's folder, ``resolve`` makes an ``Architecture`` of it.

    Attributes:
        source: as of an ``Architecture``, or ``None`` where the description in the folder selects.
        name, arguments: as of an ``Architecture``.
        function: what to call, where the caller gave the function itself.
        overrides: what the caller says of input and classes.
    """

    source: str | None
    name: str
    arguments: Mapping[str, Any]
    function: Callable[..., object] | None = None
    overrides: Overrides = NO_OVERRIDES

    def documents(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names``, the files beside the weights, whose contents ``resolve`` needs.

        Raises:
            RefusedError: where the folder should describe the model, and does not.
        """
        present = set(names)
        if self.source is None and DESCRIPTION in present:
            return (DESCRIPTION,)
        if self.source == "timm":
            return (CONFIG,) if CONFIG in present else ()
        if self.source not in (None, "transformers"):
            return ()
        if CONFIG not in present:
            expected = CONFIG if self.source else f"{DESCRIPTION} or {CONFIG}"
            message = f"there is no {expected} beside the weights; expected one, or an architecture: {_FORMS}"
            raise RefusedError("no-architecture", message)
        return tuple(name for name in (CONFIG, PREPROCESSOR) if name in present)

    def tokenizer_documents(self, names: Iterable[str], documents: Mapping[str, bytes]) -> tuple[str, ...]:
        """Those of ``names`` that hold the tokenizer, where the model takes text; ``resolve`` needs them too.

        Args:
            names: the files beside the weights.
            documents: contents of those that ``documents`` named.

        Raises:
            RefusedError: where the tokenizer is missing.
        """
        what = _text_model(self, documents)
        return () if what is None else tokenizer_files(names, what)

    def resolve(self, documents: Mapping[str, bytes], place: str | os.PathLike[str]) -> Architecture:
        """The architecture, from the choice and from the contents of the files that ``documents`` named.

        Args:
            documents: bytes of each file, by name; those of ``tokenizer_documents`` too.
            place: the model's folder or file, from which no code is imported.

        Raises:
            RefusedError: e.g. ``config.json: model_type is 'llama'; expected one of beit, convnext, ...``.
            InputError: where an extra is not installed, or an argument is not known.
        """
        found = self._resolved(documents, os.path.realpath(place))
        wanted = self.overrides.num_classes
        if wanted is not None and found.num_classes not in (None, wanted):
            message = f"{printable(found.name)} has {found.num_classes} classes; expected num_classes={wanted}"
            raise RefusedError("config", message)
        if self.overrides.of_images and not _takes_images(found):
            name = "image_size" if self.overrides.image_size is not None else "mean"
            raise InputError(f"{name} is given, but {printable(found.name)} takes no images; expected none")
        return replace(found, resize=self.overrides.image_size)

    def _resolved(self, documents: Mapping[str, bytes], place: str) -> Architecture:
        if DESCRIPTION in documents:
            return _described(documents, place, self.overrides)
        if self.source == "timm" or (self.source is None and is_of_timm(_config_of(documents))):
            return _timm(self, _timm_config_of(documents), place)
        if CONFIG in documents:
            return _transformers(documents, place, self.overrides)
        if self.source == "registered":
            return _registered(self.name, self.arguments, documents, place, self.overrides)
        if self.source == "torchvision":
            return _torchvision(self.name, self.arguments, place, self.overrides)
        return _callable(self.name, self.function, self.arguments, place, self.overrides)


def parse_architecture(
    spec: str | Callable[..., object] | None, arguments: Mapping[str, Any], overrides: Overrides = NO_OVERRIDES
) -> Choice:
    """What the caller asks for, checked as far as possible without the model.

    Args:
        spec: ``registered:NAME``, ``hf`` (or ``transformers``), ``timm:NAME``, ``torchvision:NAME``,
            ``MODULE:FUNCTION``, a function, or ``None`` for what the folder's own ``model.json`` or ``config.json``
            selects.
        arguments: by name, JSON values.
        overrides: what holds in place of what the folder says.

    Raises:
        InputError: e.g. ``architecture is 'resnet'; expected registered:NAME, hf, timm:NAME, torchvision:NAME or
            MODULE:FUNCTION``.
    """
    return replace(_choice(spec, arguments), overrides=overrides)


def _choice(spec: str | Callable[..., object] | None, arguments: Mapping[str, Any]) -> Choice:
    checked = _check_arguments(arguments)
    if spec in (None, "hf", "transformers"):
        if checked:
            message = f"arguments are {listed(sorted(checked))}; expected none, as the folder describes the model"
            raise InputError(message)
        return Choice(None if spec is None else "transformers", "", {})
    if callable(spec):
        name = f"{getattr(spec, '__module__', '?')}:{getattr(spec, '__qualname__', type(spec).__qualname__)}"
        return Choice("callable", name, checked, spec)
    source, colon, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if source == "timm" and colon and not TIMM_NAME.fullmatch(name):
        message = f"timm model is {printable_value(name)}; expected a name of timm.list_models(), without prefix or tag"
        raise InputError(message)
    if source == "torchvision" and colon and not _TORCHVISION_NAME.fullmatch(name):
        message = f"torchvision model is {printable_value(name)}; expected a name of torchvision.models.list_models()"
        raise InputError(message)
    if source in ("registered", "timm", "torchvision") and name:
        return Choice(source, name, checked)
    if source in _RESERVED or not isinstance(spec, str) or not _FUNCTION.fullmatch(spec):
        raise InputError(f"architecture is {printable_value(spec)}; expected {_FORMS}")
    return Choice("callable", spec, checked)


# The ways to say what to build


def _text_model(choice: Choice, documents: Mapping[str, bytes]) -> str | None:
    """The name of the model, if it takes text."""
    known: Container[str]
    if DESCRIPTION in documents:
        name, known = parse_config(documents[DESCRIPTION], DESCRIPTION).get("architecture"), TEXT_ARCHITECTURES
    elif CONFIG in documents:
        name, known = parse_config(documents[CONFIG], CONFIG).get("model_type"), _TEXT_CONFIG_CLASSES
    else:
        name, known = choice.name if choice.source == "registered" else None, TEXT_ARCHITECTURES
    return name if isinstance(name, str) and name in known else None


def _takes_images(architecture: Architecture) -> bool:
    of = description_class(architecture.name) if architecture.source == "registered" else ModelDescription
    return architecture.text is None and of is ModelDescription


def _config_of(documents: Mapping[str, bytes]) -> dict[str, Any]:
    return parse_config(documents[CONFIG], CONFIG) if CONFIG in documents else {}


def _timm_config_of(documents: Mapping[str, bytes]) -> TimmConfig | None:
    document = _config_of(documents)
    return timm_config(document, _TIMM_ARGUMENTS) if is_of_timm(document) else None


def _described(documents: Mapping[str, bytes], place: str, overrides: Overrides) -> Architecture:
    """Of ``model.json``, as ``seamfast.models.folder`` writes it."""
    document = parse_config(documents[DESCRIPTION], DESCRIPTION)
    keys = described_keys(description_class(document.get("architecture")))
    try:
        arguments = described_fields(document, DESCRIPTION, keys=keys)
    except DataFileError as error:
        raise RefusedError("config", str(error)) from error
    name = arguments.pop("architecture")
    try:
        return _registered(name, arguments, documents, place, overrides)
    except InputError as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError("config", f"{DESCRIPTION}: {error}") from error


def _registered(
    name: str, arguments: Mapping[str, Any], documents: Mapping[str, bytes], place: str, overrides: Overrides
) -> Architecture:
    of = description_class(name)
    arguments = dict(arguments)
    if overrides.num_classes is not None:
        arguments.setdefault("num_classes", overrides.num_classes)
    if of is ModelDescription and overrides.image_size is not None:
        arguments["image_size"], side = overrides.image_size
        if arguments["image_size"] != side:
            message = f"image_size is {overrides.image_size}; expected one number, as {printable_value(name)} takes it"
            raise InputError(message)
    if of is ModelDescription and overrides.mean is not None and overrides.std is not None:
        arguments |= {"mean": list(overrides.mean), "std": list(overrides.std)}
    known = set(described_keys(of)) - {"architecture"}
    optional = {"mean", "std", "pad"}
    if unknown := set(arguments) - known:
        raise InputError(f"arguments are {listed(sorted(unknown))}; expected some of {', '.join(sorted(known))}")
    if missing := known - optional - set(arguments):
        raise InputError(f"arguments lack {', '.join(sorted(missing))}; expected them for {printable_value(name)}")
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }
    description = of(name, **fields)
    architecture = Architecture(
        "registered",
        description.architecture,
        dict(arguments),
        place,
        description.build,
        num_classes=description.num_classes,
    )
    if isinstance(description, TextDescription):
        text = text_input(documents, description.vocab_size, description.pad, description.max_length)
        return replace(architecture, text=text, documents=text.documents)
    if not isinstance(description, ModelDescription):
        return architecture
    return replace(
        architecture,
        input_shape=(description.in_channels, description.image_size, description.image_size),
        mean=description.mean if "mean" in fields else None,
        std=description.std if "std" in fields else None,
    )


def _callable(
    name: str,
    function: Callable[..., object] | None,
    arguments: Mapping[str, Any],
    place: str,
    overrides: Overrides,
) -> Architecture:
    """Of a function, which is given the overridden numbers where it has parameters of their names."""
    target = _import_function(name, place) if function is None else function
    arguments = dict(arguments)
    size = None if overrides.image_size is None else side_or_sides(overrides.image_size)
    for key, value in (("num_classes", overrides.num_classes), ("image_size", size)):
        if value is not None and key in _parameters(target):
            arguments.setdefault(key, value)
    num_classes = arguments.get("num_classes", overrides.num_classes)
    return Architecture(
        "callable",
        name,
        arguments,
        place,
        partial(target, **arguments),
        num_classes=num_classes if type(num_classes) is int else None,
        mean=overrides.mean,
        std=overrides.std,
    )


def _parameters(function: Callable[..., object]) -> Container[str]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a function that Python cannot look into
        return ()


def _import_function(name: str, place: str) -> Callable[..., object]:
    """``module:function`` of the operator's own, from ``sys.path``; each module is checked before it runs."""
    module_name, _, attribute = name.partition(":")
    with nothing_imported_from(place):
        try:
            target: Any = importlib.import_module(module_name)
        except (SeamfastError, MemoryError):
            raise
        except Exception as error:
            raise InputError(f"architecture is {name!r}, whose module cannot be imported: {_error(error)}") from error
    parts = module_name.split(".")
    for i in range(len(parts)):  # modules that were imported earlier have passed no guard
        spec = getattr(sys.modules.get(".".join(parts[: i + 1])), "__spec__", None)
        if spec is not None:
            refuse_spec(spec, place)
    for part in attribute.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        message = f"architecture is {name!r}, where that module has {printable_value(target)}; expected a function"
        raise InputError(message)
    function: Callable[..., object] = target
    return function


def _timm(choice: Choice, config: TimmConfig | None, place: str) -> Architecture:
    """Of timm: by the overrides, else the caller's arguments, else ``config.json``, else what timm itself has."""
    name = choice.name or (config.name if config is not None else "")
    if config is not None and config.name != name:
        message = f"{CONFIG}: architecture is {printable_value(config.name)}; expected {name!r}, as timm:{name} says"
        raise RefusedError("config", message)
    if unknown := set(choice.arguments) - set(_TIMM_ARGUMENTS):
        raise InputError(f"arguments are {listed(sorted(unknown))}; expected some of {', '.join(_TIMM_ARGUMENTS)}")
    with nothing_imported_from(place), _extra("timm", "timm", f"timm:{name}"):
        timm = importlib.import_module("timm")
        known = set(timm.list_models())
    if name not in known:
        raise InputError(f"timm model is {name!r}; expected a name of timm.list_models()")
    arguments = _timm_arguments(choice, config)

    def of(arguments: Mapping[str, Any]) -> tuple[Architecture, nn.Module]:
        make = partial(timm.create_model, name, pretrained=False, **arguments)
        architecture = Architecture("timm", name, dict(arguments), place, make)
        with without_memory():
            return architecture, architecture.build()

    architecture, model = of(arguments)
    usual = getattr(model, "pretrained_cfg", {})
    said = (None, None, None) if config is None else (config.input_size, config.mean, config.std)
    channels, height, width = said[0] or usual.get("input_size") or (3, 224, 224)
    size = arguments.get("img_size", (height, width))
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    height, width = choice.overrides.image_size or (height, width)
    is_fixed = bool(usual.get("fixed_input_size"))
    if is_fixed and "img_size" not in arguments and (height, width) != tuple((usual.get("input_size") or ())[1:]):
        architecture, model = of({**arguments, "img_size": side_or_sides((height, width))})
    shape = (arguments.get("in_chans", channels), height, width)
    num_classes = getattr(model, "num_classes", None)
    mean = said[1] or (tuple(usual["mean"]) if usual.get("mean") else None)
    std = said[2] or (tuple(usual["std"]) if usual.get("std") else None)
    mean, std = choice.overrides.normalization(shape[0]) or (mean, std)
    described = {
        "input_size": list(shape),
        "fixed_input_size": is_fixed,
        "num_classes": num_classes,
        **({} if mean is None else {"mean": list(mean)}),
        **({} if std is None else {"std": list(std)}),
        **({} if config is None else config.resizing),
    }
    others = {key: value for key, value in arguments.items() if key not in ("num_classes", "in_chans", "img_size")}
    document = {"architecture": name, "num_classes": num_classes, "pretrained_cfg": described, "model_args": others}
    return replace(
        architecture,
        input_shape=shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        documents={CONFIG: document},
    )


def _timm_arguments(choice: Choice, config: TimmConfig | None) -> dict[str, Any]:
    """What ``timm.create_model`` is called with, but for the size of images."""
    arguments: dict[str, Any] = {}
    if config is not None:
        if config.num_classes is not None:
            arguments["num_classes"] = config.num_classes
        if config.input_size is not None and config.input_size[0] != 3:
            arguments["in_chans"] = config.input_size[0]
        arguments |= config.arguments
    arguments |= choice.arguments
    if choice.overrides.num_classes is not None:
        arguments["num_classes"] = choice.overrides.num_classes
    if choice.overrides.image_size is not None and "img_size" in arguments:
        arguments["img_size"] = side_or_sides(choice.overrides.image_size)
    return arguments


def _torchvision(name: str, arguments: Mapping[str, Any], place: str, overrides: Overrides) -> Architecture:
    """Of torchvision, which says nothing of normalization: the caller has to."""
    if forbidden := sorted(key for key in arguments if key.startswith(_OF_WEIGHTS)):
        raise InputError(f"arguments are {listed(forbidden)}; expected none that load weights")
    with nothing_imported_from(place), _extra("torchvision", "torchvision", f"torchvision:{name}"):
        models = importlib.import_module("torchvision.models")
        known = set(models.list_models(module=models))
    if name not in known:
        raise InputError(f"torchvision model is {name!r}; expected a name of torchvision.models.list_models()")
    normalization = overrides.normalization(3)
    if normalization is None:
        message = f"torchvision:{name} does not say how its images are normalized; expected mean and std as in its"
        raise InputError(f"{message} training (--mean, --std), 0 and 1 for pixels in [0, 1]")
    size, arguments = overrides.image_size, dict(arguments)
    if overrides.num_classes is not None:
        arguments["num_classes"] = overrides.num_classes
    for start, argument in _TORCHVISION_SIZES.items():
        if name.startswith(start):
            size = size or (_TORCHVISION_SIDE, _TORCHVISION_SIDE)
            arguments.setdefault(argument, size[0] if argument == "image_size" else list(size))

    def make() -> nn.Module:
        model: nn.Module = models.get_model(name, weights=None, **arguments)
        model.register_forward_hook(_take_logits)  # with auxiliary classifiers, training returns several outputs
        return model

    return Architecture(
        "torchvision",
        name,
        arguments,
        place,
        make,
        input_shape=None if size is None else (3, *size),
        num_classes=arguments.get("num_classes", _TORCHVISION_CLASSES),
        mean=normalization[0],
        std=normalization[1],
    )


def _transformers(documents: Mapping[str, bytes], place: str, overrides: Overrides) -> Architecture:
    """Of ``config.json``: the config class of an allowed ``model_type``, filled by its own keys alone.

    Any other key has no effect: ``_name_or_path``, ``_attn_implementation`` (which may name code on a hub),
    ``quantization_config``.
    """
    document = parse_config(documents[CONFIG], CONFIG)
    model_type = document.get("model_type")
    if not isinstance(model_type, str) or model_type not in _CONFIG_CLASSES | _TEXT_CONFIG_CLASSES:
        expected = ", ".join(sorted(_CONFIG_CLASSES | _TEXT_CONFIG_CLASSES))
        message = f"{CONFIG}: model_type is {printable_value(model_type)}; expected one of {expected}"
        raise RefusedError("config", message)
    num_classes, names = class_count(document), class_names(document)
    check_sizes(document)  # before transformers, which takes seconds to import, sees any of it
    of_text = model_type in _TEXT_CONFIG_CLASSES
    if of_text:
        check_problem(document)
    if overrides.image_size is not None and not of_text:
        document["image_size"] = side_or_sides(overrides.image_size)  # passed over where the config class has none
    make_config, model_class, arguments = _built_by_transformers(document, model_type, num_classes, place)

    def make() -> nn.Module:
        model: nn.Module = model_class(make_config())
        model.register_forward_hook(_take_logits)  # rather than a wrapper, which would rename the weights
        return model

    built = {"num_labels": num_classes, **arguments}
    config = {"model_type": model_type, **built}
    if names is not None:
        config["id2label"] = {str(label): name for label, name in enumerate(names)}
        config["label2id"] = {name: label for label, name in enumerate(names)}
    architecture = Architecture(
        "transformers",
        model_type,
        built,
        place,
        make,
        num_classes=num_classes,
        class_names=names,
        documents={CONFIG: config},
        _names=_names_of_transformers,
    )
    if of_text:
        return _taking_text(architecture, make_config, documents)
    return _taking_images(architecture, documents.get(PREPROCESSOR), overrides)


def _built_by_transformers(
    document: Mapping[str, Any], model_type: str, num_classes: int, place: str
) -> tuple[Callable[[], Any], Callable[[Any], nn.Module], dict[str, Any]]:
    """What makes the config, what makes the model of it, and the settings that ``document`` gives the config."""
    of_text = model_type in _TEXT_CONFIG_CLASSES
    prefix = (_CONFIG_CLASSES | _TEXT_CONFIG_CLASSES)[model_type]
    task = "ForSequenceClassification" if of_text else "ForImageClassification"
    with nothing_imported_from(place), _extra("hf", "transformers", f"model_type {model_type}"):
        transformers = importlib.import_module("transformers")
        config_class = getattr(transformers, f"{prefix}Config")
        model_class = getattr(transformers, f"{prefix}{task}")
    base = inspect.signature(transformers.PretrainedConfig.__init__).parameters
    parameters = inspect.signature(config_class.__init__).parameters
    left_out = {*base, *_NOT_OURS, *(_NOT_OF_CLASSIFIERS if of_text else ())}
    arguments = {
        name: setting(name, document[name], parameter.default)
        for name, parameter in parameters.items()
        if name in document and name not in left_out and not name.startswith("_")
    }
    fixed: dict[str, Any] = {"num_labels": num_classes}
    if of_text:  # transformers' own may lie outside of a small vocabulary
        fixed |= {name: None for name in ("bos_token_id", "eos_token_id") if name in parameters}
        fixed |= {"use_cache": False} if "use_cache" in parameters else {}
    return partial(config_class, **fixed, **arguments), model_class, arguments


def _taking_images(architecture: Architecture, preprocessor: bytes | None, overrides: Overrides) -> Architecture:
    """With the shape and the normalization of its images."""
    channels = architecture.arguments.get("num_channels", 3)
    mean, std, side = preprocessing(preprocessor, channels)
    size = architecture.arguments.get("image_size", side)
    height, width = size if isinstance(size, list) else (size, size)
    height, width = overrides.image_size or (height, width)
    normalization = overrides.normalization(channels)
    mean, std = normalization or (mean, std)
    shape = None if height is None or width is None else (channels, height, width)
    documents = dict(architecture.documents)
    if preprocessor is not None:
        documents[PREPROCESSOR] = preprocessor_document(preprocessor)
    if overrides.of_images:
        documents[PREPROCESSOR] = with_overrides(documents.get(PREPROCESSOR), normalization, overrides.image_size)
    return replace(architecture, input_shape=shape, mean=mean, std=std, documents=documents)


def _taking_text(
    architecture: Architecture, make_config: Callable[[], Any], documents: Mapping[str, bytes]
) -> Architecture:
    """With the tokenizer of the folder, which fits the embedding."""
    with nothing_imported_from(architecture.place):
        try:
            settings = vars(make_config())
        except Exception as error:  # transformers checks values too
            message = f"{CONFIG}: transformers does not take it: {_error(error)}"
            raise RefusedError("config", message) from error
        text = text_input(documents, *text_sizes(architecture.name, settings))
    return replace(architecture, text=text, documents={**architecture.documents, **text.documents})


def _take_logits(module: nn.Module, args: object, output: Any) -> Any:
    return getattr(output, "logits", output)


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
        message = "transformers stores the tensors of this model_type in another form; expected them one to one"
        raise RefusedError("architecture", message)
    return {name: in_file[id(mark)] for name, mark in marks.items()}


# What they share


@contextlib.contextmanager
def _extra(extra: str, package: str, what: str) -> Iterator[None]:
    """An import that fails, for whatever reason, is reported with the extra that installs the package."""
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
