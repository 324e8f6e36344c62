"""A model folder, or one file: ``inspect`` identifies its files and what to build, ``receive`` builds it."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from seamfast.gating.architecture import Architecture, parse_architecture
from seamfast.gating.config_json import MAX_CONFIG_BYTES
from seamfast.gating.import_guard import nothing_imported_from, refuse_import_path
from seamfast.gating.overrides import NO_OVERRIDES, Overrides
from seamfast.intake.identify import READABLE, Effort, Look, look, refuse_kind
from seamfast.intake.pickles import convert_pickle
from seamfast.intake.refusal import RefusedError
from seamfast.intake.tensors import (
    TensorSpec,
    expected_of,
    fill,
    non_finite,
    open_untrusted,
    read_sharded,
    read_tensors,
)
from seamfast.intake.tokenizer import MAX_BYTES as MAX_TOKENIZER_BYTES
from seamfast.isolation.folders import private_folder
from seamfast.models.folder import WEIGHTS
from seamfast.models.meta import without_memory
from seamfast.untrusted import CHUNK, listed, printable, shown

INDEX = "model.safetensors.index.json"
MAX_FILES = 1000
MAX_DEPTH = 8
MAX_MODEL_BYTES = 4 << 30  # of weights and buffers; a ViT of 632 million parameters has 2.5 billion

_SUFFIX = ".safetensors"
_CODE = frozenset({"python", "native", "script"})
_REPOSITORIES = frozenset({".git", ".hg", ".svn", ".bzr"})  # their settings and hooks run when another tool looks
_PICKLES = frozenset({"pickle", "torch-zip", "torchscript", "torch-export", "numpy-pickle"})
_CONVERTIBLE = frozenset({"pickle", "torch-zip"})
_OTHER_MODELS = frozenset({"onnx", "keras", "keras-zip", "hdf5", "tensorflow-savedmodel", "gguf"})
_ACTED_ON = _PICKLES | _OTHER_MODELS | {"zip", "tar", "gzip", "archive", "npz", "web", "build"}

_SETTLED_S, _WRITTEN_PER_S = 0.1, 500e6  # seconds, bytes a second: how long a write may still go on

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class ModelFile:
    """One file of a model.

    Attributes:
        name: relative to the folder, with ``/`` between; printable.
        kind: what it is by content, of ``seamfast.intake.identify``.
        n_bytes: its size.
        sha256: in hexadecimal, of the bytes that were used; ``None`` where none were, or not yet.
        role: ``"weights"``, ``"description"`` or ``"ignored"``.
    """

    name: str
    kind: str
    n_bytes: int
    sha256: str | None = None
    role: str = "ignored"


@dataclass(frozen=True)
class Inspection:
    """A model as its files describe it, before any weight is read.

    Attributes:
        path: as the caller gave it.
        files: all of them, in order of name.
        architecture: what will be built.
        n_parameters: numbers in its parameters.
        n_bytes: that its parameters and buffers take in memory.
        ignored_policies: names of files that look like a policy; none of them is read.
        not_read: names of files beside the weights that other tools may run, open or unpack; none of them is read.
    """

    path: str
    files: tuple[ModelFile, ...]
    architecture: Architecture
    n_parameters: int
    n_bytes: int
    ignored_policies: tuple[str, ...]
    not_read: tuple[str, ...]
    _root: Path = field(repr=False)  # the folder, links resolved
    _weights: str = field(repr=False)  # what to read first: a file of tensors, an index, or a pickle
    _stamps: Mapping[str, _Stamp] = field(repr=False)


@dataclass(frozen=True)
class Received:
    """A model in memory.

    Attributes:
        model: in eval mode, on the CPU, its weights finite and its own.
        architecture: what it was built by.
        files: as of the inspection, with the SHA-256 of each that was used.
        converted_from_pickle: whether the weights went through ``convert_pickle``.
    """

    model: nn.Module
    architecture: Architecture
    files: tuple[ModelFile, ...]
    converted_from_pickle: bool


def inspect(
    path: str | os.PathLike[str],
    *,
    architecture: str | Callable[..., object] | None = None,
    arguments: Mapping[str, Any] | None = None,
    overrides: Overrides = NO_OVERRIDES,
    allow_pickle: bool = False,
) -> Inspection:
    """The files of a model's folder and what to build; no weight is read or allocated, no code in it is run.

    The weights are ``model.safetensors``, else the shards of ``model.safetensors.index.json``, else the only file that
    ends in ``.safetensors``, all of them in the folder itself, not below it.

    Args:
        path: a folder, or a file of weights; it may be a symbolic link, what lies in the folder may not.
        architecture, arguments, overrides: as for ``parse_architecture``.
        allow_pickle: allow pickles there, and read the weights from the only one where there is no safetensors file.

    Raises:
        RefusedError: codes ``import-path``, ``not-found``, ``symlink``, ``not-a-file``, ``file-name``,
            ``too-many-files``, ``mixed-folder``, ``ambiguous``, ``no-weights``, ``no-architecture``, ``too-large``,
            ``changed``, and those of ``parse_config``, of ``refuse_kind`` and of the architecture; e.g. ``model holds
            code or pickles beside the weights: train.py (python); expected a folder of data alone``.
        InputError: the architecture is unknown, or needs an extra that is not installed.
    """
    choice = parse_architecture(architecture, arguments or {}, overrides)
    given = resolved(path)
    refuse_import_path(given)
    with nothing_imported_from(str(given)):
        if given.is_dir():
            root, stamps = given, _listed(given)
        else:
            _check_name(given.name, given.name)
            root, stamps = given.parent, {given.name: _stamp(given.lstat())}
        files = {name: ModelFile(name, kind, stamps[name][2]) for name, kind in _kinds(root, stamps).items()}
        weights = _choose_weights(files, allow_pickle)
        _refuse_mixed(files, shown(path), allow_pickle)
        documents: dict[str, bytes] = {}

        def describe(names: Iterable[str], max_bytes: int) -> None:
            for name in names:
                documents[name] = _read_description(root, name, stamps[name], max_bytes)
                files[name] = replace(files[name], role="description", sha256=sha256(documents[name]).hexdigest())

        describe(choice.documents(files), MAX_CONFIG_BYTES)
        describe(choice.tokenizer_documents(files, documents), MAX_TOKENIZER_BYTES)
        for name in weights:
            files[name] = replace(files[name], role="weights")
        chosen = choice.resolve(documents, given)
        with without_memory():
            model = chosen.build()
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if n_bytes > MAX_MODEL_BYTES:
        size = f"{n_bytes:,} bytes of weights"
        raise RefusedError("too-large", f"{printable(chosen.name)} takes {size}; the limit is {MAX_MODEL_BYTES:,}")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    policies = tuple(sorted(filter(_is_policy_like, files)))
    sorted_files = tuple(files[name] for name in sorted(files))
    not_read = tuple(file.name for file in sorted_files if file.role == "ignored" and file.kind in _ACTED_ON)
    given_path, first = printable(path, 4096), weights[0]
    return Inspection(given_path, sorted_files, chosen, n_parameters, n_bytes, policies, not_read, root, first, stamps)


def receive(inspection: Inspection) -> Received:
    """The model that was inspected, filled with its weights.

    A model with tensors that its state dict does not hold is built with memory, under a fixed seed, and takes up to
    twice the memory of its weights while they are filled in.

    Raises:
        RefusedError: codes ``changed``, ``non-finite`` and ``value``, and those of ``read_tensors``, ``read_sharded``
            and ``convert_pickle``; e.g. ``model.safetensors holds NaN or Inf in head.weight; expected finite weights``.
    """
    used = [file.name for file in inspection.files if file.role != "ignored"]
    _wait_for_writes(inspection, used)
    _refuse_changed(inspection, used)
    architecture, first = inspection.architecture, inspection._weights
    with nothing_imported_from(architecture.place):
        with without_memory():
            model = architecture.build()
        in_file = architecture.names_in_file(model)
        with _naming_the_classes(architecture):
            state, hashes, converted = _read_weights(inspection, _renamed(expected_of(model), in_file))
        if names := non_finite(state):
            message = f"{printable(first)} holds NaN or Inf in {listed(names, 5)}; expected finite weights"
            raise RefusedError("non-finite", message)
        _refuse_impossible(model, {name: state[in_file[name]] for name in in_file}, first)
        _refuse_changed(inspection, used)
        if _has_more_than_state(model):
            with torch.device("cpu"):
                model = architecture.build()
        fill(model, {name: state[in_file[name]] for name in in_file})
    files = []
    for file in inspection.files:
        if file.name in hashes:
            file = replace(file, sha256=hashes[file.name])
        elif file.role == "weights":  # tensors that the index does not name
            file = replace(file, role="ignored")
        files.append(file)
    return Received(model.eval(), architecture, tuple(files), converted)


def digest_of(inspection: Inspection, name: str) -> str:
    """The SHA-256 of a file of the folder, in hexadecimal; it need not be one that is used.

    Raises:
        RefusedError: code ``changed``: it is not as it was inspected.
    """
    digest = sha256()
    with open_untrusted(inspection._root / name, "a file of a model") as file:
        if _stamp(os.fstat(file.fileno())) != inspection._stamps[name]:
            _refuse_change_of(name)
        while part := file.read(CHUNK):
            digest.update(part)
    _refuse_changed(inspection, [name])
    return digest.hexdigest()


def name_of(inspection: Inspection, path: Path) -> str | None:
    """The name of ``path`` in the folder, links resolved; ``None`` if it lies elsewhere."""
    real = Path(os.path.realpath(path))
    return real.relative_to(inspection._root).as_posix() if real.is_relative_to(inspection._root) else None


def model_values(inspection: Inspection, received: Received | None = None) -> dict[str, Any]:
    """The part ``"model"`` of the gate report: plain JSON values."""
    chosen = inspection.architecture
    return {
        "path": inspection.path,
        "files": [vars(file).copy() for file in (received or inspection).files],
        "architecture": {"source": chosen.source, "name": chosen.name, "arguments": dict(chosen.arguments)},
        "n_parameters": inspection.n_parameters,
        "n_bytes": inspection.n_bytes,
        "converted_from_pickle": received is not None and received.converted_from_pickle,
    }


# The files


def resolved(path: str | os.PathLike[str]) -> Path:
    """``path`` without links; raises ``RefusedError`` where there is nothing."""
    try:
        return Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RefusedError("not-found", f"{shown(path)} cannot be opened ({reason}); expected a model") from error


def _listed(root: Path) -> dict[str, _Stamp]:
    """The stamp of every file below ``root``, by name, in order; anything but files and folders is refused."""
    stamps: dict[str, _Stamp] = {}
    waiting = [(root, "", 0)]
    n_seen = 0
    while waiting:
        folder, prefix, depth = waiting.pop()
        for entry in _entries(folder, prefix or root.name):
            n_seen += 1
            name = prefix + entry.name
            _check_name(entry.name, name)
            if n_seen > MAX_FILES:
                message = f"{printable(root.name)} holds more than {MAX_FILES:,} files; expected fewer"
                raise RefusedError("too-many-files", message)
            if entry.is_symlink():
                raise RefusedError("symlink", f"{printable(name)} is a symbolic link; expected the file itself")
            if entry.is_dir(follow_symlinks=False):
                if depth == MAX_DEPTH:
                    raise RefusedError("too-many-files", f"{printable(name)} lies more than {MAX_DEPTH} folders deep")
                waiting.append((Path(entry.path), f"{name}/", depth + 1))
            elif entry.is_file(follow_symlinks=False):
                stamps[name] = _stamp(entry.stat(follow_symlinks=False))
            else:
                message = f"{printable(name)} is a device, a pipe or a socket; expected files only"
                raise RefusedError("not-a-file", message)
    return dict(sorted(stamps.items()))


def _entries(folder: Path, name: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise RefusedError("not-a-file", f"{printable(name)} cannot be listed ({error.strerror})") from error


def _check_name(name: str, whole: str) -> None:
    if not name.isprintable():  # nor are bytes that are not UTF-8
        raise RefusedError("file-name", f"a file is called {printable(whole)}; expected a name of printable characters")


def _stamp(status: os.stat_result) -> _Stamp:
    """Changes when a file is written to or replaced: ctime cannot be set back."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _kinds(root: Path, stamps: Mapping[str, _Stamp]) -> dict[str, str]:
    """The kind of each file; a file under several names is looked at once."""
    looks: dict[_Stamp, Look] = {}
    effort = Effort()
    for name, stamp in stamps.items():
        with open_untrusted(root / name, "a file of a model", where=printable(name)) as file:
            if _stamp(os.fstat(file.fileno())) != stamp:
                _refuse_change_of(name)
            if stamp not in looks:
                looks[stamp] = look(file, effort)
    return {name: looks[stamp].kind(name) for name, stamp in stamps.items()}


def _read_description(root: Path, name: str, stamp: _Stamp, max_bytes: int) -> bytes:
    with open_untrusted(root / name, "the description of a model", where=printable(name)) as file:
        if _stamp(os.fstat(file.fileno())) != stamp:
            _refuse_change_of(name)
        if stamp[2] > max_bytes:
            message = f"{printable(name)} has {stamp[2]:,} bytes; expected at most {max_bytes:,}"
            raise RefusedError("config", message)
        return file.read(max_bytes)


def _wait_for_writes(inspection: Inspection, names: Collection[str]) -> None:
    """Let a write that had begun before the inspection end; one that begins later changes a stamp.

    The times of a file are set as a write begins, which may then go on for as long as its bytes take.
    """
    stamps = [inspection._stamps[name] for name in names]
    n_bytes = min(max(stamp[2] for stamp in stamps), inspection.n_bytes)  # what is larger is refused
    needed = _SETTLED_S + n_bytes / _WRITTEN_PER_S
    age = time.time() - max(stamp[4] for stamp in stamps) / 1e9
    if age < needed:
        time.sleep(min(needed - age, needed))  # a clock of another machine may be ahead


def _refuse_changed(inspection: Inspection, names: Collection[str]) -> None:
    for name in names:
        try:
            status = (inspection._root / name).lstat()
        except OSError:
            _refuse_change_of(name)
        if not stat.S_ISREG(status.st_mode) or _stamp(status) != inspection._stamps[name]:
            _refuse_change_of(name)


def _refuse_change_of(name: str) -> NoReturn:
    raise RefusedError("changed", f"{printable(name)} changed while it was read; expected a file that stays as it is")


# What they are


def _choose_weights(files: Mapping[str, ModelFile], allow_pickle: bool) -> list[str]:
    """The files to read the weights from, in order."""
    top = [file for name, file in files.items() if "/" not in name]
    tensors = [file.name for file in top if file.kind == "safetensors" or file.name.endswith(_SUFFIX)]
    if WEIGHTS in files and INDEX in files:
        raise RefusedError("ambiguous", f"there are {WEIGHTS} and {INDEX}; expected one of them")
    if WEIGHTS in files:
        tensors = [WEIGHTS]
    elif len(tensors) > 1 and INDEX not in files:
        message = f"there are {listed(tensors, 5)}; expected {WEIGHTS}, {INDEX} or one {_SUFFIX} file"
        raise RefusedError("ambiguous", message)
    for name in tensors:
        if files[name].kind != "safetensors":
            refuse_kind(files[name].kind, name)
    if INDEX in files:
        if files[INDEX].kind not in READABLE:
            refuse_kind(files[INDEX].kind, INDEX)
        return [INDEX, *tensors]
    return tensors or [_choose_pickle(top, allow_pickle)]


def _choose_pickle(top: Collection[ModelFile], allow_pickle: bool) -> str:
    pickles = [file.name for file in top if file.kind in _CONVERTIBLE]
    if allow_pickle and len(pickles) == 1:
        return pickles[0]
    if allow_pickle and pickles:
        raise RefusedError("ambiguous", f"there are {listed(pickles, 5)}; expected one file of weights")
    for file in top:  # likely the weights, in a format that is refused
        if file.kind in _PICKLES | _OTHER_MODELS or (len(top) == 1 and file.kind not in READABLE):
            refuse_kind(file.kind, file.name)
    raise RefusedError("no-weights", f"there is no {WEIGHTS}, no {INDEX} and no other {_SUFFIX} file; expected one")


def _refuse_mixed(files: Mapping[str, ModelFile], where: str, allow_pickle: bool) -> None:
    unwanted = _CODE if allow_pickle else _CODE | _PICKLES
    mixed = [f"{printable(name, 60)} ({file.kind})" for name, file in files.items() if file.kind in unwanted]
    folders = {part for name in files for part in name.lower().split("/")[:-1]}
    mixed += [f"{name} (a repository)" for name in sorted(folders & _REPOSITORIES)]
    if mixed:
        what = "code" if allow_pickle else "code or pickles"
        message = f"{where} holds {what} beside the weights: {listed(mixed, 5)}; expected a folder of data alone"
        raise RefusedError("mixed-folder", message)


def _is_policy_like(name: str) -> bool:
    last = PurePosixPath(name).name.lower()
    return last.endswith(".toml") or last.startswith("policy")


# The weights


def _read_weights(
    inspection: Inspection, expected: Mapping[str, TensorSpec]
) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """The tensors by their names in the file, the SHA-256 of each file read, and whether that was a pickle."""
    first, what = inspection._weights, printable(inspection.architecture.name)
    path = inspection._root / first
    kinds = {file.name: file.kind for file in inspection.files}
    if first == INDEX:
        sharded = read_sharded(path, expected, what=what, max_bytes=MAX_MODEL_BYTES)
        return sharded.state, {INDEX: sharded.sha256, **{n: w.sha256 for n, w in sharded.shards.items()}}, False
    if kinds[first] == "safetensors":
        weights = read_tensors(path, expected, what=what, max_bytes=MAX_MODEL_BYTES)
        return weights.state, {first: weights.sha256}, False
    with private_folder(Path(tempfile.gettempdir()), "seamfast-gate") as (private, _):
        out = private / WEIGHTS
        converted = convert_pickle(path, out)
        weights = read_tensors(out, expected, what=what, max_bytes=MAX_MODEL_BYTES)
    return weights.state, {first: converted.sha256}, True


@contextmanager
def _naming_the_classes(architecture: Architecture) -> Iterator[None]:
    """Weights that do not fit a model of so many classes as its package has by itself."""
    try:
        yield
    except RefusedError as error:
        is_usual = architecture.source in ("timm", "torchvision") and "num_classes" not in architecture.arguments
        if error.code != "shape" or not is_usual:
            raise
        usual = f"{printable(architecture.name)} has {architecture.num_classes} classes, as none are given"
        message = f"{error}; {usual}: num_classes (--num-classes) sets them"
        raise RefusedError(error.code, message) from error


def _refuse_impossible(model: nn.Module, state: Mapping[str, Tensor], first: str) -> None:
    """Refuse running statistics that no training leaves: their square roots and shares are no numbers."""
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for buffer in ("running_var", "num_batches_tracked"):
                name = f"{prefix}.{buffer}" if prefix else buffer
                if name in state and state[name].numel() and state[name].min() < 0:
                    found = f"{printable(name, 60)} of {state[name].min().item():g}"
                    raise RefusedError("value", f"{printable(first)} holds {found}; expected at least 0")


def _renamed(expected: Mapping[str, TensorSpec], in_file: Mapping[str, str]) -> dict[str, TensorSpec]:
    return {
        in_file[name]: replace(spec, tied_to=tuple(in_file[other] for other in spec.tied_to))
        for name, spec in expected.items()
    }


def _has_more_than_state(model: nn.Module) -> bool:
    """Whether a module has tensors that its state dict does not hold: buffers, or plain attributes."""
    if {name for name, _ in model.named_buffers(remove_duplicate=False)} - set(model.state_dict()):
        return True
    return any(isinstance(value, Tensor) for module in model.modules() for value in vars(module).values())
