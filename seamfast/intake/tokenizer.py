"""A stranger's tokenizer: its files as data, checked by an allow-list before the library for them is called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from seamfast.errors import BackendUnavailableError
from seamfast.intake.refusal import RefusedError
from seamfast.intake.tensors import strict_json
from seamfast.untrusted import listed, printable, printable_value

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
WORDS, PAIRS, MERGES = "vocab.txt", "vocab.json", "merges.txt"
FILES = (TOKENIZER, TOKENIZER_CONFIG, WORDS, PAIRS, MERGES)
"""What ``read_tokenizer`` looks at."""

MAX_BYTES = 16 << 20
"""Of one file. The largest of BERT, DistilBERT, RoBERTa and GPT-2 take 4 MB."""
MAX_CONFIG_BYTES = 2 << 20
MAX_TOKENS = 1_000_000
MAX_TOKEN = 512
"""Longest token, in characters; the longest of GPT-2 has 128."""
MAX_VOCABULARY_BYTES = 12 << 20
_MAX_UNIGRAM_BYTES = 1 << 20  # each byte may take a node of a tree, some 350 bytes of memory
_MAX_ADDED = 4096
_MAX_PIECES = 8  # of a template, of a sequence
_MAX_CONTAINERS = 2_000_000  # arrays and objects of a file, each of which takes some 60 bytes of memory
_MAX_WORD = 200  # characters of a word that WordPiece looks at; its time grows with the square
_MAX_LENGTH = 1 << 20
_MAX_AFFIX = 16

_PAD, _MASK = ("[PAD]", "<pad>"), ("[MASK]", "<mask>")
_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFile:
    """What a folder says about its tokenizer.

    Attributes:
        tokenizer: without truncation and padding.
        pad, mask: ids, ``None`` where the folder has none.
        special: ids that stand for no text, ascending.
        max_length: the most tokens of one text, or ``None``.
    """

    tokenizer: Tokenizer
    pad: int | None
    mask: int | None
    special: tuple[int, ...]
    max_length: int | None


def read_tokenizer(documents: Mapping[str, bytes]) -> Tokenizer:
    """``read_tokenizer_file(documents).tokenizer``."""
    return read_tokenizer_file(documents).tokenizer


def read_tokenizer_file(documents: Mapping[str, bytes]) -> TokenizerFile:
    """``tokenizers.Tokenizer.from_str(documents["tokenizer.json"])`` and its special ids, of a checked document.

    Without a ``tokenizer.json``, the document is made of a ``vocab.txt`` (WordPiece as in BERT) or of a ``vocab.json``
    and a ``merges.txt`` (byte-level BPE as in GPT-2; as in RoBERTa, if the vocabulary holds ``<s>`` and ``</s>``).
    ``tokenizer_config.json`` gives the longest input, the names of special tokens, and how a ``vocab.txt`` is to be
    used; all else in it is ignored, code that it names as well. Truncation and padding are dropped.

    Args:
        documents: whole files by name; others than those of ``FILES`` are not looked at.

    Raises:
        RefusedError: code ``"tokenizer"``, e.g. ``tokenizer.json is not strict JSON: it holds a key twice``,
            ``tokenizer.json: token 'a' has the id 7; expected each of 0 to 4 once``, ``tokenizer.json: normalizer is of
            the type 'Custom'; expected BertNormalizer, ...``.
        BackendUnavailableError: ``reading tokenizers needs the package tokenizers: pip install seamfast[text]``.

    Source: the format is that of the package tokenizers 0.20 to 0.23 of Hugging Face.
    """
    config = _config(documents.get(TOKENIZER_CONFIG))
    if TOKENIZER in documents:
        document, where = _object(documents[TOKENIZER], TOKENIZER, MAX_BYTES), TOKENIZER
    elif WORDS in documents:
        document, where = _of_words(documents[WORDS], config), WORDS
    elif PAIRS in documents and MERGES in documents:
        document, where = _of_merges(documents[PAIRS], documents[MERGES], config), PAIRS
    else:
        _refuse(
            f"found {listed(sorted(documents)) or 'no files'}; expected {TOKENIZER}, {WORDS}, or {PAIRS} and {MERGES}"
        )
    checked, ids = _checked(document, where)
    named = [ids[token] for key in _SPECIAL_KEYS if (token := _token(config, key)) in ids]
    special = {token["id"] for token in checked["added_tokens"] if token["special"]}
    special |= {*named, *_processor_ids(checked["post_processor"])}
    padding = document.get("padding")
    pads = (_token(config, "pad_token"), padding.get("pad_token") if isinstance(padding, dict) else None, *_PAD)
    pad, mask = _first(pads, ids), _first((_token(config, "mask_token"), *_MASK), ids)
    special |= {token for token in (pad, mask) if token is not None}
    longest = config.get("model_max_length")
    is_length = type(longest) is int and 1 <= longest <= _MAX_LENGTH  # transformers writes 1e30 for no limit
    tokenizer = _built(checked, ids, where)
    return TokenizerFile(tokenizer, pad, mask, tuple(sorted(special)), longest if is_length else None)


def _built(document: dict[str, Any], ids: Mapping[str, int], where: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        needed = "reading tokenizers needs the package tokenizers: pip install seamfast[text]"
        raise BackendUnavailableError(needed) from error
    try:
        made = Tokenizer.from_str(json.dumps(document, ensure_ascii=False))
        # What no rule foresees shows in a first use, here and not in the run.
        made.encode("A first text, of 2 sentences. \u00c9t\u00e9 \u6f22\u5b57 \U0001f600!")
        held = made.get_vocab(with_added_tokens=True)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # pyo3's, of Rust
            raise
        raise RefusedError("tokenizer", f"{where} is no tokenizer that can be used: {printable(error)}") from error
    if held != ids:
        _refuse(
            f"{where}: {len(held):,} tokens are left of {len(ids):,}, or have other ids; expected those of the file"
        )
    return made


# ---- Files to a document ----


def _object(data: bytes, where: str, most: int) -> dict[str, Any]:
    if len(data) > most:
        _refuse(f"{where} has {len(data):,} bytes; expected at most {most:,}")
    if data.count(b"[") + data.count(b"{") > _MAX_CONTAINERS:
        _refuse(f"{where} holds more than {_MAX_CONTAINERS:,} brackets; expected fewer")
    try:
        document = strict_json(data)
    except ValueError as error:
        raise RefusedError("tokenizer", f"{where} is not strict JSON: {printable(error)}") from error
    if not isinstance(document, dict):
        _refuse(f"{where} holds {printable_value(document)}; expected an object")
    return document


def _config(data: bytes | None) -> dict[str, Any]:
    return {} if data is None else _object(data, TOKENIZER_CONFIG, MAX_CONFIG_BYTES)


def _token(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _flag(config: Mapping[str, Any], key: str, default: bool | None) -> bool | None:
    value = config.get(key, default)
    if value is None and default is None:
        return None
    if not isinstance(value, bool):
        _refuse(f"{TOKENIZER_CONFIG}: {key} is {printable_value(value)}; expected true or false")
    return value


def _text_lines(data: bytes, where: str) -> list[str]:
    if len(data) > MAX_BYTES:
        _refuse(f"{where} has {len(data):,} bytes; expected at most {MAX_BYTES:,}")
    if data.count(b"\n") > MAX_TOKENS + 1:
        _refuse(f"{where} has more than {MAX_TOKENS:,} lines; expected at most as many")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"{where} is not UTF-8 (byte 0x{data[error.start]:02X} at {error.start:,}); expected UTF-8")
    if text.startswith("\ufeff"):
        _refuse(f"{where} starts with a byte order mark; expected UTF-8 without one")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _special_tokens(names: Iterable[str], vocab: Mapping[str, int], *, strips_left: str = "") -> list[dict[str, Any]]:
    found = sorted({vocab[name]: name for name in names if name in vocab}.items())
    off = {"single_word": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": number, "content": name, "lstrip": name == strips_left, **off} for number, name in found]


def _of_words(data: bytes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Source: ``BertTokenizer`` of transformers, whose settings ``tokenizer_config.json`` holds."""
    vocab = dict[str, int]()
    for number, token in enumerate(_text_lines(data, WORDS)):
        if token in vocab:
            _refuse(f"{WORDS}: line {number + 1} repeats {printable_value(token)}; expected each token once")
        vocab[token] = number
    names = {key: _token(config, f"{key}_token") or f"[{key.upper()}]" for key in ("unk", "cls", "sep", "pad", "mask")}
    for key in ("unk", "cls", "sep"):
        if names[key] not in vocab:
            _refuse(f"{WORDS}: holds no {printable_value(names[key])}; expected it as the {key}_token")
    cls, sep = ({"SpecialToken": {"id": names[key], "type_id": 0}} for key in ("cls", "sep"))
    other = {"SpecialToken": {"id": names["sep"], "type_id": 1}}
    first, second = ({"Sequence": {"id": name, "type_id": type_id}} for name, type_id in (("A", 0), ("B", 1)))
    return {
        "added_tokens": _special_tokens(names.values(), vocab),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": _flag(config, "tokenize_chinese_chars", True),
            "strip_accents": _flag(config, "strip_accents", None),
            "lowercase": _flag(config, "do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, sep],
            "pair": [cls, first, sep, second, other],
            "special_tokens": {
                names[key]: {"id": names[key], "ids": [vocab[names[key]]], "tokens": [names[key]]}
                for key in ("cls", "sep")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": names["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def _of_merges(pairs: bytes, merges: bytes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Source: ``GPT2Tokenizer`` and ``RobertaTokenizer`` of transformers."""
    vocab = _object(pairs, PAIRS, MAX_BYTES)
    _check_ids(vocab.items(), PAIRS)
    lines = _text_lines(merges, MERGES)
    lines = lines[1:] if lines and lines[0].startswith("#version") else lines
    is_roberta = "<s>" in vocab and "</s>" in vocab
    prefix = bool(_flag(config, "add_prefix_space", False))
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": is_roberta, "use_regex": True}
    ends = {"sep": ["</s>", vocab.get("</s>")], "cls": ["<s>", vocab.get("<s>")]}
    roberta = {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": prefix}
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if is_roberta else ("<|endoftext|>",)
    named = [token for key in _SPECIAL_KEYS if (token := _token(config, key)) is not None]
    return {
        "added_tokens": _special_tokens((*names, *named), vocab, strips_left="<mask>"),
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": roberta if is_roberta else level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": lines},
    }


# ---- What a document may hold ----

_Kind = tuple[str, Callable[[Any], bool]]
"""What is expected, in words, and whether a value is that."""


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most


def _one_of(*values: str) -> _Kind:
    return " or ".join(values), lambda value: isinstance(value, str) and value in values


_BOOL: _Kind = ("true or false", lambda value: isinstance(value, bool))
_MAYBE_BOOL: _Kind = ("true, false or null", lambda value: value is None or isinstance(value, bool))
_CHARACTER: _Kind = ("one character", lambda value: isinstance(value, str) and len(value) == 1)
_AFFIX: _Kind = (f"at most {_MAX_AFFIX} characters", lambda value: _is_text(value, _MAX_AFFIX))
_MAYBE_AFFIX: _Kind = (f"null or at most {_MAX_AFFIX} characters", lambda v: v is None or _is_text(v, _MAX_AFFIX))
_COUNT: _Kind = ("an integer in [0, 1000]", lambda value: type(value) is int and 0 <= value <= 1000)
_NULL: _Kind = ("null", lambda value: value is None)
_SPACE: _Kind = _one_of("\u2581")
_BEHAVIOR = _one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_SPLIT_PATTERNS = (
    {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"},  # GPT-2, encoder.py
)
_REPLACEMENTS = (  # ALBERT, T5, Llama: none makes a text longer each time
    ({"String": " "}, "\u2581"),
    ({"String": "\u2581"}, " "),
    ({"String": "``"}, '"'),
    ({"String": "''"}, '"'),
    ({"Regex": " {2,}"}, " "),
)
_SPLIT: _Kind = ("a published pattern, since others may take exponential time", lambda v: v in _SPLIT_PATTERNS)
_REPLACED: _Kind = ("a published pattern, since others may take exponential time", lambda v: _is_replaced(v))
_LEVEL = {"add_prefix_space": _BOOL, "trim_offsets": _BOOL, "use_regex": _BOOL}
_META = {
    "replacement": _SPACE,
    "str_rep": _SPACE,
    "add_prefix_space": _BOOL,
    "prepend_scheme": _one_of("always", "never", "first"),
    "split": _BOOL,
}
_REPLACE = {"pattern": _REPLACED, "content": _AFFIX}

_Types = Mapping[str, Mapping[str, _Kind]]

_NORMALIZERS: _Types = {
    "BertNormalizer": {
        "clean_text": _BOOL,
        "handle_chinese_chars": _BOOL,
        "strip_accents": _MAYBE_BOOL,
        "lowercase": _BOOL,
    },
    "Lowercase": {},
    "NFC": {},
    "NFD": {},
    "NFKC": {},
    "NFKD": {},
    "Prepend": {"prepend": _SPACE},
    "Replace": _REPLACE,
    "Strip": {"strip_left": _BOOL, "strip_right": _BOOL},
    "StripAccents": {},
}
_PRE_TOKENIZERS: _Types = {
    "BertPreTokenizer": {},
    "ByteLevel": _LEVEL,
    "CharDelimiterSplit": {"delimiter": _CHARACTER},
    "Digits": {"individual_digits": _BOOL},
    "Metaspace": _META,
    "Punctuation": {"behavior": _BEHAVIOR},
    "Split": {"pattern": _SPLIT, "behavior": _BEHAVIOR, "invert": _BOOL},
    "UnicodeScripts": {},
    "Whitespace": {},
    "WhitespaceSplit": {},
}
_DECODERS: _Types = {
    "BPEDecoder": {"suffix": _AFFIX},
    "ByteFallback": {},
    "ByteLevel": _LEVEL,
    "Fuse": {},
    "Metaspace": _META,
    "Replace": _REPLACE,
    "Strip": {"content": _CHARACTER, "start": _COUNT, "stop": _COUNT},
    "WordPiece": {"prefix": _AFFIX, "cleanup": _BOOL},
}
_MAY_REPEAT = ("Replace", "Split", "Strip")  # any other type makes a text longer each time, or does nothing twice
_SEQUENCES = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
_TYPES = {"normalizer": _NORMALIZERS, "pre_tokenizer": _PRE_TOKENIZERS, "decoder": _DECODERS}
_MODELS: _Types = {
    "BPE": {
        "dropout": _NULL,  # answers would differ from one call to the next
        "unk_token": ("a token or null", lambda value: value is None or isinstance(value, str)),
        "continuing_subword_prefix": _MAYBE_AFFIX,
        "end_of_word_suffix": _MAYBE_AFFIX,
        "fuse_unk": _BOOL,
        "byte_fallback": _BOOL,
        "ignore_merges": _BOOL,
    },
    "Unigram": {"unk_id": ("a token's id", lambda value: type(value) is int), "byte_fallback": _BOOL},
    "WordLevel": {"unk_token": ("a token", lambda value: isinstance(value, str))},
    "WordPiece": {
        "unk_token": ("a token", lambda value: isinstance(value, str)),
        "continuing_subword_prefix": _AFFIX,
        "max_input_chars_per_word": (
            f"an integer in [1, {_MAX_WORD}]",
            lambda value: type(value) is int and 1 <= value <= _MAX_WORD,
        ),
    },
}
_ADDED: Mapping[str, _Kind] = {
    "content": (f"1 to {MAX_TOKEN} characters", lambda value: _is_text(value, MAX_TOKEN) and value != ""),
    "id": ("an integer", lambda value: type(value) is int),
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), _BOOL),
}
_PARTS = ("version", "truncation", "padding", "added_tokens", "model", "post_processor", *_TYPES)


def _is_replaced(pattern: Any) -> bool:
    return any(pattern == known for known, _ in _REPLACEMENTS)


def _checked(document: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The document with what it may hold alone, and the ids of all of its tokens."""
    _check_keys(document, _PARTS, where)
    if document.get("version", "1.0") != "1.0":
        _refuse(f"{where}: version is {printable_value(document['version'])}; expected '1.0'")
    model, ids = _model(document.get("model"), where)
    added = _added(document.get("added_tokens"), ids, where)
    made: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    for part, types in _TYPES.items():
        made[part] = _components(document.get(part), types, part, _SEQUENCES[part], where)
    made["post_processor"] = _processor(document.get("post_processor"), ids, where)
    return made | {"model": model}, ids


def _check_keys(given: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    for key in given:
        if key not in known:
            _refuse(f"{what} holds {printable_value(key)}; expected {', '.join(known) or 'its type alone'}")


def _values(given: Mapping[str, Any], kinds: Mapping[str, _Kind], what: str) -> dict[str, Any]:
    """``given``, if each of its values is of the kind that its key has in ``kinds``."""
    _check_keys(given, kinds, what)
    for key, value in given.items():
        expected, is_allowed = kinds[key]
        if not is_allowed(value):
            _refuse(f"{what}: {key} is {printable_value(value)}; expected {expected}")
    return dict(given)


def _typed(given: Any, types: Iterable[str], what: str) -> tuple[str, dict[str, Any]]:
    """The type of a component, and the rest of it."""
    if not isinstance(given, dict):
        _refuse(f"{what} is {printable_value(given)}; expected an object with a type")
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in types:
        _refuse(f"{what} is of the type {printable_value(kind)}; expected {', '.join(types)}")
    return kind, {key: value for key, value in given.items() if key != "type"}


def _steps(given: dict[str, Any], items: str, what: str) -> list[Any]:
    _check_keys(given, (items,), what)
    steps = given.get(items)
    if not isinstance(steps, list) or len(steps) > _MAX_PIECES:
        _refuse(f"{what}: {items} is {printable_value(steps)}; expected a list of at most {_MAX_PIECES}")
    return steps


def _components(given: Any, types: _Types, part: str, items: str, where: str) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder, or a flat sequence of them."""
    what = f"{where}: {part}"
    if given is None:
        return None
    kind, rest = _typed(given, (*types, "Sequence"), what)
    if kind != "Sequence":
        return _component(given, types, what)
    made = [_component(step, types, what) for step in _steps(rest, items, f"{what} Sequence")]
    _check_repeats([step["type"] for step in made], what)
    return {"type": "Sequence", items: made}


def _check_repeats(kinds: list[str], what: str) -> None:
    for kind in kinds:
        if kinds.count(kind) > 1 and kind not in _MAY_REPEAT:
            _refuse(f"{what} holds {kind} {kinds.count(kind)} times; expected it once")


def _component(given: Any, types: _Types, what: str) -> dict[str, Any]:
    kind, rest = _typed(given, types, what)
    values = _values(rest, types[kind], f"{what} {kind}")
    if kind == "Replace" and (values.get("pattern"), values.get("content")) not in _REPLACEMENTS:
        _refuse(f"{what} Replace: content is {printable_value(values.get('content'))}; expected a published one")
    return {"type": kind, **values}


def _check_ids(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, int]:
    """Tokens and ids: each of 0 to n - 1 once."""
    items = list(pairs)
    n = len(items)
    if not 1 <= n <= MAX_TOKENS:
        _refuse(f"{where}: the vocabulary has {n:,} tokens; expected 1 to {MAX_TOKENS:,}")
    seen = bytearray(n)
    n_bytes = 0
    for token, number in items:
        _check_token(token, where)
        if type(number) is not int or not 0 <= number < n or seen[number]:
            found = f"token {printable_value(token)} has the id {printable_value(number)}"
            _refuse(f"{where}: {found}; expected each of 0 to {n - 1} once")
        seen[number] = 1
        n_bytes += len(token.encode())
    if n_bytes > MAX_VOCABULARY_BYTES:
        _refuse(f"{where}: the tokens take {n_bytes:,} bytes; expected at most {MAX_VOCABULARY_BYTES:,}")
    return dict(items)


def _check_token(token: Any, where: str) -> None:
    if not isinstance(token, str) or not 1 <= len(token) <= MAX_TOKEN:
        length = f" of {len(token):,} characters" if isinstance(token, str) else ""
        _refuse(f"{where}: token {printable_value(token)}{length}; expected 1 to {MAX_TOKEN} characters")


def _model(given: Any, where: str) -> tuple[dict[str, Any], dict[str, int]]:
    what = f"{where}: model"
    if isinstance(given, dict) and "type" not in given:  # as files before 2021 have it
        guess = "BPE" if "merges" in given else "WordPiece" if "max_input_chars_per_word" in given else "WordLevel"
        given = {"type": "Unigram" if "unk_id" in given else guess, **given}
    kind, rest = _typed(given, _MODELS, what)
    vocab, merges = rest.pop("vocab", None), rest.pop("merges", None) if kind == "BPE" else None
    values = _values(rest, _MODELS[kind], f"{what} {kind}")
    if kind == "Unigram":
        ids = _unigram(vocab, values, what)
        return {"type": kind, **values, "vocab": vocab}, ids
    if not isinstance(vocab, dict):
        _refuse(f"{what}: vocab is {printable_value(vocab)}; expected an object")
    ids = _check_ids(vocab.items(), where)
    if kind == "BPE":
        for key in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
            values[key] = values.get(key) or None  # the file of GPT-2 has "" for none
        values["merges"] = _merges(merges, ids, values["continuing_subword_prefix"] or "", what)
    unknown = values.get("unk_token")
    if unknown not in ids and (kind != "BPE" or unknown is not None):
        _refuse(f"{what}: unk_token is {printable_value(unknown)}; expected a token of the vocabulary")
    return {"type": kind, **values, "vocab": vocab}, ids


def _unigram(vocab: Any, values: Mapping[str, Any], what: str) -> dict[str, int]:
    if not isinstance(vocab, list) or not 1 <= len(vocab) <= MAX_TOKENS:
        _refuse(f"{what}: vocab is {printable_value(vocab)}; expected a list of 1 to {MAX_TOKENS:,} pairs")
    ids, n_bytes = dict[str, int](), 0
    for number, pair in enumerate(vocab):
        is_pair = isinstance(pair, list) and len(pair) == 2 and type(pair[1]) in (int, float)
        if not is_pair or not -1e6 <= pair[1] <= 1e6:
            _refuse(f"{what}: vocab holds {printable_value(pair)}; expected a token and a number in [-1e6, 1e6]")
        _check_token(pair[0], what)
        if pair[0] in ids:
            _refuse(f"{what}: vocab holds {printable_value(pair[0])} twice; expected each token once")
        ids[pair[0]] = number
        n_bytes += len(pair[0].encode())
    if n_bytes > _MAX_UNIGRAM_BYTES:
        _refuse(f"{what}: the tokens take {n_bytes:,} bytes; expected at most {_MAX_UNIGRAM_BYTES:,}")
    if not 0 <= values.get("unk_id", -1) < len(ids):
        _refuse(f"{what}: unk_id is {printable_value(values.get('unk_id'))}; expected an integer in [0, {len(ids)})")
    return ids


def _merges(given: Any, ids: Mapping[str, int], prefix: str, what: str) -> list[list[str]]:
    if not isinstance(given, list) or len(given) > MAX_TOKENS:
        _refuse(f"{what}: merges is {printable_value(given)}; expected a list of at most {MAX_TOKENS:,}")
    made = []
    for merge in given:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            _refuse(f"{what}: merges hold {printable_value(merge)}; expected two tokens")
        first, second = pair
        whole = first + second.removeprefix(prefix)
        if first not in ids or second not in ids or whole not in ids or not second.startswith(prefix):
            _refuse(
                f"{what}: merges hold {printable_value(merge)}; expected tokens of the vocabulary that make one of it"
            )
        made.append(pair)
    return made


def _added(given: Any, ids: dict[str, int], where: str) -> list[dict[str, Any]]:
    """The added tokens; ``ids`` gets those that the model does not have."""
    what = f"{where}: added_tokens"
    if given is None:
        return []
    if not isinstance(given, list) or len(given) > _MAX_ADDED:
        _refuse(f"{what} is {printable_value(given)}; expected a list of at most {_MAX_ADDED:,}")
    made, seen = list[dict[str, Any]](), set[str]()
    for token in given:
        if not isinstance(token, dict):
            _refuse(f"{what} holds {printable_value(token)}; expected an object")
        values = _values(token, _ADDED, what)
        if missing := [key for key in _ADDED if key not in values]:
            _refuse(f"{what} holds {printable_value(token)}; expected {missing[0]} too")
        content, number = values["content"], values["id"]
        if content in seen:
            _refuse(f"{what} holds {printable_value(content)} twice; expected each token once")
        if number != ids.get(content, len(ids)):
            found = f"{printable_value(content)} has the id {printable_value(number)}"
            _refuse(f"{what}: {found}; expected {ids.get(content, len(ids))}")
        ids[content] = number
        seen.add(content)
        made.append(values)
    return made


# ---- Post-processors ----

_PROCESSORS = ("BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing")


def _processor(given: Any, ids: Mapping[str, int], where: str) -> dict[str, Any] | None:
    what = f"{where}: post_processor"
    if given is None:
        return None
    kind, rest = _typed(given, (*_PROCESSORS, "Sequence"), what)
    if kind != "Sequence":
        return _one_processor(given, ids, what)
    made = [_one_processor(step, ids, what) for step in _steps(rest, "processors", f"{what} Sequence")]
    _check_repeats([step["type"] for step in made], what)
    return {"type": "Sequence", "processors": made}


def _one_processor(given: Any, ids: Mapping[str, int], what: str) -> dict[str, Any]:
    kind, rest = _typed(given, _PROCESSORS, what)
    what = f"{what} {kind}"
    if kind == "ByteLevel":
        return {"type": kind, **_values(rest, _LEVEL, what)}
    if kind == "TemplateProcessing":
        return {"type": kind, **_template(rest, ids, what)}

    def is_token(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], str)
            and _is_id(value[1], value[0], ids)
        )

    end: _Kind = ("a token of the vocabulary and its id", is_token)
    flags = {"trim_offsets": _BOOL, "add_prefix_space": _BOOL} if kind == "RobertaProcessing" else {}
    return {"type": kind, **_values(rest, {"sep": end, "cls": end, **flags}, what)}


def _is_id(number: Any, token: Any, ids: Mapping[str, int]) -> bool:
    return type(number) is int and isinstance(token, str) and ids.get(token) == number


def _template(given: dict[str, Any], ids: Mapping[str, int], what: str) -> dict[str, Any]:
    _check_keys(given, ("single", "pair", "special_tokens"), what)
    special = given.get("special_tokens")
    if not isinstance(special, dict) or len(special) > _MAX_PIECES:
        _refuse(f"{what}: special_tokens is {printable_value(special)}; expected an object of at most {_MAX_PIECES}")
    for name, token in special.items():
        fields = [token.get(key) for key in ("ids", "tokens")] if isinstance(token, dict) else [None, None]
        is_whole = isinstance(token, dict) and set(token) == {"id", "ids", "tokens"} and token["id"] == name
        are_lists = all(isinstance(field, list) and 1 <= len(field) <= _MAX_PIECES for field in fields)
        if (
            not is_whole
            or not are_lists
            or len(fields[0]) != len(fields[1])
            or not all(map(_is_id, *fields, [ids] * _MAX_PIECES))
        ):
            expected = "an id, and tokens of the vocabulary with their ids"
            _refuse(f"{what}: {printable_value(name)} is {printable_value(token)}; expected {expected}")
    for key, sequences in (("single", ["A"]), ("pair", ["A", "B"])):
        pieces = given.get(key)
        if not isinstance(pieces, list) or len(pieces) > _MAX_PIECES:
            _refuse(f"{what}: {key} is {printable_value(pieces)}; expected a list of at most {_MAX_PIECES}")
        found = sorted(name for piece in pieces if (name := _sequence(piece, special, what)) is not None)
        if found != sequences:
            _refuse(f"{what}: {key} has the sequences {', '.join(found)}; expected {', '.join(sequences)} once")
    return given


def _sequence(piece: Any, special: Mapping[str, Any], what: str) -> str | None:
    """The name of the sequence in a piece of a template; ``None`` for a special token."""
    kind, value = next(iter(piece.items())) if isinstance(piece, dict) and len(piece) == 1 else (None, None)
    names = {"Sequence": ("A", "B"), "SpecialToken": special}.get(str(kind), ())
    is_whole = isinstance(value, dict) and set(value) == {"id", "type_id"} and isinstance(value["id"], str)
    if not is_whole or value["id"] not in names or type(value["type_id"]) is not int or value["type_id"] not in (0, 1):
        _refuse(f"{what} holds {printable_value(piece)}; expected a Sequence or a SpecialToken, of the type 0 or 1")
    return str(value["id"]) if kind == "Sequence" else None


def _processor_ids(processor: dict[str, Any] | None) -> set[int]:
    """The ids that a checked post-processor puts in."""
    found = set[int]()
    for step in (processor or {}).get("processors", [processor] if processor else []):
        found |= {step[key][1] for key in ("sep", "cls") if key in step}
        found |= {number for token in step.get("special_tokens", {}).values() for number in token["ids"]}
    return found


def _first(names: Iterable[str | None], ids: Mapping[str, int]) -> int | None:
    return next((ids[name] for name in names if isinstance(name, str) and name in ids), None)


def _refuse(message: str) -> NoReturn:
    raise RefusedError("tokenizer", message)
