"""A stranger's ``config.json`` and ``preprocessor_config.json``: strict JSON, values within bounds, no name of code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from seamfast.intake.refusal import RefusedError
from seamfast.intake.tensors import strict_json
from seamfast.untrusted import printable, printable_value

Numbers = tuple[float, ...] | None

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
MAX_CONFIG_BYTES = 2 << 20  # 21 thousand class names, listed twice, take 1.7 million
_MAX_DEPTH = 8
_MAX_LAYERS = 200
_MAX_HIDDEN = 16_384
_MAX_IMAGE = 4096
_MAX_CLASSES = 65_536
_MAX_TOKENS = 1 << 20
_MAX_POSITIONS = 8192
_FEWEST_POSITIONS = 8
_MAX_TOKEN_TYPES = 16
_MAX_NUMBER = 65_536  # any other number of a config.json
_MAX_LIST = 32
_MAX_RESAMPLE = 5  # of Pillow's filters
_SIDES = {"height", "width", "shortest_edge"}

_REMOTE_CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
_LARGEST = {
    **dict.fromkeys(
        ("num_hidden_layers", "num_encoder_blocks", "num_stages", "depths", "num_block_repeats"), _MAX_LAYERS
    ),
    **dict.fromkeys(("n_layer", "n_layers", "num_hidden_groups", "inner_group_num"), _MAX_LAYERS),
    **dict.fromkeys(("hidden_size", "hidden_sizes", "neck_hidden_sizes", "embed_dim", "embedding_size"), _MAX_HIDDEN),
    **dict.fromkeys(("hidden_dim", "num_attention_heads", "num_heads", "num_channels"), _MAX_HIDDEN),
    **dict.fromkeys(("dim", "n_embd", "n_head", "n_heads"), _MAX_HIDDEN),
    **dict.fromkeys(("image_size", "img_size", "patch_size"), _MAX_IMAGE),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), _MAX_POSITIONS),
    "type_vocab_size": _MAX_TOKEN_TYPES,
    "vocab_size": _MAX_TOKENS,
}
"""Integers from 1 to this. Other numbers are bounded by the bytes that the model takes."""
_COEFFICIENTS = ("depth_coefficient", "width_coefficient", "depth_multiplier")
_MAX_COEFFICIENT = 16
_PAIRS = {"image_size", "img_size", "patch_size"}  # one number, or two
TIMM_NAME = re.compile(r"[a-z0-9_]{1,128}")
_WORD = re.compile(r"[a-z0-9_]{1,32}")


def parse_config(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``data``: strict, bounded in size and depth, and without a key that names code.

    Args:
        data: the whole file, in UTF-8.
        where: names it in messages.

    Raises:
        RefusedError: code ``"config"``, e.g. ``config.json is not strict JSON: it holds a key twice``; or
            ``"remote-code"``, e.g. ``config.json holds auto_map, which names code to run; ...``.
    """
    if len(data) > MAX_CONFIG_BYTES:
        _refuse(f"{where} has {len(data):,} bytes; expected at most {MAX_CONFIG_BYTES:,}")
    try:
        document = strict_json(data)
    except ValueError as error:
        raise RefusedError("config", f"{where} is not strict JSON: {printable(error)}") from error
    if not isinstance(document, dict):
        _refuse(f"{where} holds {printable_value(document)}; expected an object")
    level: list[Any] = [document]
    for _ in range(_MAX_DEPTH):
        for key in (key for entry in level if isinstance(entry, dict) for key in _REMOTE_CODE if key in entry):
            message = f"{where} holds {key}, which names code to run; expected a description that is data alone"
            raise RefusedError("remote-code", message)
        values = [value for entry in level for value in (entry.values() if isinstance(entry, dict) else entry)]
        level = [value for value in values if isinstance(value, (dict, list))]
    if level:
        _refuse(f"{where} is nested more than {_MAX_DEPTH} deep; expected less")
    return document


def class_count(document: Mapping[str, Any]) -> int:
    """The number of classes in ``config.json``: that of ``id2label``, else ``num_labels``, else transformers' 2."""
    names, number = document.get("id2label"), document.get("num_labels")
    if names is not None:
        is_numbered = isinstance(names, dict) and set(names) == {str(i) for i in range(len(names))}
        if not is_numbered or not all(isinstance(name, str) for name in names.values()):
            _refuse(f"{CONFIG}: id2label is {printable_value(names)}; expected names of classes 0, 1, ...")
        if number is not None and number != len(names):
            _refuse(f"{CONFIG}: num_labels is {printable_value(number)}; expected {len(names)}, as id2label has")
        number = len(names)
    if number is None:
        return 2
    if type(number) is not int or not 2 <= number <= _MAX_CLASSES:
        found = f"the number of classes is {printable_value(number)}"
        _refuse(f"{CONFIG}: {found}; expected an integer in [2, {_MAX_CLASSES}]")
    return number


def class_names(document: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes in ``config.json``, which ``class_count`` has checked; ``None`` where it has none."""
    names = document.get("id2label")
    return None if names is None else tuple(names[str(i)] for i in range(len(names)))


def setting(name: str, value: Any, default: Any) -> Any:
    """One value of ``config.json``, within bounds and of the kind of its ``default`` in transformers."""
    if value is None and (default is None or default is inspect.Parameter.empty):
        return None
    if isinstance(default, (list, tuple)) or (name in _PAIRS and isinstance(value, list)):
        if not isinstance(value, list) or not len(value) <= _MAX_LIST or (name in _PAIRS and len(value) != 2):
            expected = "2 numbers" if name in _PAIRS else f"a list of at most {_MAX_LIST}"
            _refuse(f"{CONFIG}: {name} is {printable_value(value)}; expected {expected}")
        kind = default[0] if isinstance(default, (list, tuple)) and default else 0
        return [_scalar(name, item, kind) for item in value]
    return _scalar(name, value, default)


def _scalar(name: str, value: Any, default: Any) -> Any:
    is_word = isinstance(value, str) and _WORD.fullmatch(value) is not None
    if isinstance(default, bool):
        expected, allowed = "true or false", isinstance(value, bool)
    elif isinstance(default, str):
        expected, allowed = "a word", is_word
    elif default is None or default is inspect.Parameter.empty:
        expected = f"a word, true, false, or a number in [0, {_MAX_NUMBER}]"
        allowed = is_word or isinstance(value, bool) or _is_number(value, _MAX_NUMBER)
    elif name in _LARGEST:
        expected = f"an integer in [1, {_LARGEST[name]}]"
        allowed = type(value) is int and 1 <= value <= _LARGEST[name]
    else:
        most = _MAX_COEFFICIENT if name in _COEFFICIENTS else _MAX_NUMBER
        expected, allowed = f"a number in [0, {most}]", _is_number(value, most)
    if not allowed:
        _refuse(f"{CONFIG}: {name} is {printable_value(value)}; expected {expected}")
    return value


def _is_number(value: Any, most: int) -> bool:
    return type(value) in (int, float) and 0 <= value <= most  # type(), since bool is an int too


def check_sizes(document: Mapping[str, Any]) -> None:
    """Refuse sizes out of bounds, and more layers than are allowed in all."""
    for name in (*_LARGEST, *_COEFFICIENTS):
        value = document.get(name)
        if value is not None:
            setting(name, value, [0] if isinstance(value, list) else 0)
    layers = [document.get(name) or 0 for name in ("num_hidden_layers", "depths", "num_block_repeats")]
    counts = [sum(count) if isinstance(count, list) else count for count in layers]
    counts[2] = (counts[2] or 16) * (document.get("depth_coefficient") or 1)  # of EfficientNet alone
    counts.append((document.get("num_hidden_groups") or 1) * (document.get("inner_group_num") or 1))
    # Layers cost time and memory even where weights do not: each is some hundred Python objects.
    if max(counts) > _MAX_LAYERS:
        _refuse(f"{CONFIG} describes {max(counts):,.0f} layers; expected at most {_MAX_LAYERS}")


def check_problem(document: Mapping[str, Any]) -> None:
    """Refuse a ``problem_type`` other than one class a text."""
    problem = document.get("problem_type")
    if problem not in (None, "single_label_classification"):
        expected = "expected 'single_label_classification', or none"
        _refuse(f"{CONFIG}: problem_type is {printable_value(problem)}; {expected}")


def text_sizes(model_type: str, settings: Mapping[str, Any]) -> tuple[int, int, int]:
    """Rows of the embedding, the id of the padding, and the tokens that a text may have.

    Args:
        model_type: of a text classifier.
        settings: of its config, with the defaults of transformers filled in.

    Raises:
        RefusedError: code ``"config"``, e.g. ``config.json: pad_token_id is None; expected the id of the token that
            texts are padded with, in [0, 50257)``.
    """
    n_rows, pad = settings["vocab_size"], settings["pad_token_id"]
    if type(pad) is not int or not 0 <= pad < n_rows:
        expected = f"expected the id of the token that texts are padded with, in [0, {n_rows})"
        _refuse(f"{CONFIG}: pad_token_id is {printable_value(pad)}; {expected}")
    name = "n_positions" if model_type == "gpt2" else "max_position_embeddings"
    unused = pad + 1 if model_type == "roberta" else 0  # its positions begin behind the padding's id
    if settings[name] < unused + _FEWEST_POSITIONS:
        _refuse(f"{CONFIG}: {name} is {settings[name]}; expected at least {unused + _FEWEST_POSITIONS}")
    return n_rows, pad, settings[name] - unused


def preprocessing(data: bytes | None, channels: int) -> tuple[Numbers, Numbers, int | None]:
    """Mean, standard deviation and side of the images, each ``None`` where ``preprocessor_config.json`` has none."""
    if data is None:
        return None, None, None
    document = parse_config(data, PREPROCESSOR)
    numbers: list[Numbers] = []
    for key, least in (("image_mean", -1e6), ("image_std", 1e-6)):
        values = document.get(key)
        if values is None or document.get("do_normalize") is False:
            numbers.append(None)
            continue
        is_list = isinstance(values, list) and len(values) == channels
        if not (is_list and all(type(v) in (int, float) and least <= v <= 1e6 for v in values)):
            expected = f"{channels} numbers in [{least:g}, 1e+06]"
            _refuse(f"{PREPROCESSOR}: {key} is {printable_value(values)}; expected {expected}")
        numbers.append(tuple(float(v) for v in values))
    side = document.get("crop_size", document.get("size"))
    if isinstance(side, dict):
        height, width = side.get("height", side.get("shortest_edge")), side.get("width", side.get("shortest_edge"))
        side = height if height == width else None
    if side is not None and not (type(side) is int and 1 <= side <= _MAX_IMAGE):
        found = f"the size of images is {printable_value(side)}"
        _refuse(f"{PREPROCESSOR}: {found}; expected an integer in [1, {_MAX_IMAGE}]")
    return numbers[0], numbers[1], side


def preprocessor_document(data: bytes) -> dict[str, Any]:
    """A ``preprocessor_config.json`` that says what ``preprocessing`` found in ``data``, and nothing unchecked.

    Pixels are scaled to [0, 1], as the gate scales them, whatever ``data`` says.
    """
    given = parse_config(data, PREPROCESSOR)
    written: dict[str, Any] = {"do_rescale": True, "rescale_factor": 1 / 255}
    for key in ("do_resize", "do_center_crop", "do_normalize"):
        if isinstance(given.get(key), bool):
            written[key] = given[key]
    if given.get("do_normalize") is not False:
        written |= {key: given[key] for key in ("image_mean", "image_std") if given.get(key) is not None}
    if type(given.get("resample")) is int and 0 <= given["resample"] <= _MAX_RESAMPLE:
        written["resample"] = given["resample"]
    for key in ("size", "crop_size"):
        side = given.get(key)
        numbers = list(side.values()) if isinstance(side, dict) and set(side) <= _SIDES else [side]
        if numbers and all(type(number) is int and 1 <= number <= _MAX_IMAGE for number in numbers):
            written[key] = side
    return written


def with_overrides(
    document: Mapping[str, Any] | None, normalization: tuple[Numbers, Numbers] | None, size: tuple[int, int] | None
) -> dict[str, Any]:
    """A ``preprocessor_config.json``, from ``preprocessor_document``, with another normalization or size of images."""
    written: dict[str, Any] = dict(document or {"do_rescale": True, "rescale_factor": 1 / 255})
    if normalization is not None:
        mean, std = (None if numbers is None else list(numbers) for numbers in normalization)
        written |= {"do_normalize": True, "image_mean": mean, "image_std": std}
    if size is not None:
        written = {key: value for key, value in written.items() if key not in ("crop_size", "do_center_crop")}
        written |= {"do_resize": True, "size": {"height": size[0], "width": size[1]}}
    return written


@dataclass(frozen=True)
class TimmConfig:
    """What a ``config.json`` of timm says.

    Attributes:
        name: of the model.
        num_classes: logits, or ``None``.
        input_size: (C, H, W), or ``None``.
        mean, std: for each channel, or ``None``.
        arguments: of the model, as JSON values.
        resizing: how timm itself resizes, for other tools: ``interpolation`` and ``crop_pct``, where given.
    """

    name: str
    num_classes: int | None
    input_size: tuple[int, int, int] | None
    mean: Numbers
    std: Numbers
    arguments: Mapping[str, Any]
    resizing: Mapping[str, Any]


def is_of_timm(document: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one that timm writes; those of transformers have a ``model_type``."""
    return isinstance(document.get("architecture"), str) and "model_type" not in document


def timm_config(document: Mapping[str, Any], allowed: Collection[str]) -> TimmConfig:
    """What a ``config.json`` of timm says, checked; other keys, such as an address of weights, have no effect.

    Args:
        document: from ``parse_config``; ``is_of_timm`` holds.
        allowed: names that ``model_args`` may have.

    Raises:
        RefusedError: code ``"config"``, e.g. ``config.json: architecture is 'hf-hub:x/y'; expected a name of
            timm.list_models(), without prefix or tag``.
    """
    name, usual, given = (
        document["architecture"],
        document.get("pretrained_cfg") or {},
        document.get("model_args") or {},
    )
    if not TIMM_NAME.fullmatch(name):
        expected = "expected a name of timm.list_models(), without prefix or tag"
        _refuse(f"{CONFIG}: architecture is {printable_value(name)}; {expected}")
    for key, value in (("pretrained_cfg", usual), ("model_args", given)):
        if not isinstance(value, dict):
            _refuse(f"{CONFIG}: {key} is {printable_value(value)}; expected an object")
    number = document.get("num_classes", usual.get("num_classes"))
    if number is not None:
        number = class_count({"num_labels": number})
    size = usual.get("input_size")
    if size is not None and not _is_list_of(size, 3, 1, _MAX_IMAGE, (int,)):
        found = f"{CONFIG}: input_size is {printable_value(size)}"
        _refuse(f"{found}; expected three integers (C, H, W) in [1, {_MAX_IMAGE}]")
    channels = 3 if size is None else size[0]
    numbers: list[Numbers] = []
    for key, least in (("mean", -1e6), ("std", 1e-6)):
        values = usual.get(key)
        if values is not None and not _is_list_of(values, channels, least, 1e6, (int, float)):
            expected = f"expected {channels} numbers in [{least:g}, 1e+06]"
            _refuse(f"{CONFIG}: {key} is {printable_value(values)}; {expected}")
        numbers.append(None if values is None else tuple(float(value) for value in values))
    if unknown := set(given) - set(allowed):
        expected = f"expected some of {', '.join(allowed)}"
        _refuse(f"{CONFIG}: model_args hold {printable_value(min(unknown))}; {expected}")
    arguments = {key: setting(key, value, 0 if key in _LARGEST else None) for key, value in given.items()}
    resizing = {"interpolation": setting("interpolation", usual.get("interpolation"), None)}
    resizing["crop_pct"] = setting("crop_pct", usual.get("crop_pct"), None)
    return TimmConfig(
        name,
        number,
        None if size is None else (size[0], size[1], size[2]),
        numbers[0],
        numbers[1],
        arguments,
        {key: value for key, value in resizing.items() if value is not None},
    )


def _is_list_of(value: Any, n: int, least: float, most: float, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, list) and len(value) == n and all(type(v) in kinds and least <= v <= most for v in value)


def _refuse(message: str) -> NoReturn:
    raise RefusedError("config", message)
