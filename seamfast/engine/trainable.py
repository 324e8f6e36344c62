"""Which parameters of a model a run trains, and what of the rest must not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from seamfast.errors import ConfigError, ModelError

_WANTED = "None, 'all', 'as_given' or a list of names or patterns of parameters"
_MARKS = ("lora_", "ia3_", "prompt_encoder", "vera_")
"""Beginnings of a part of a parameter's name, as in the modules of PEFT; "adapter" counts anywhere in it."""
_N_EXAMPLES = 3
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
"""Packages of modules that hold packed integers in place of parameters; ``torch.ao.nn.qat`` trains floats."""


@dataclass(frozen=True)
class Trainable:
    """The parameters that a run trains.

    Attributes:
        mode: ``"all"``, ``"as_given"`` or ``"named"``.
        names: of the trained parameters; a shared one occurs once, as in ``named_parameters``.
        fixed: names of the modules whose buffers stay as they are: they have buffers, and none of their parameters is
            trained. A module without parameters counts with the one around it that has some.
    """

    mode: str
    names: frozenset[str]
    fixed: tuple[str, ...]


def check_trainable(requested: object) -> None:
    """Raise ``ConfigError`` unless ``requested`` has the form of an argument ``trainable``.

    Raises:
        ConfigError: e.g. ``trainable is 'head'; expected None, 'all', 'as_given' or a list of names or patterns of
            parameters``.
    """
    if requested is None or (isinstance(requested, str) and requested in ("all", "as_given")):
        return
    names = requested if isinstance(requested, Sequence) and not isinstance(requested, str) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"trainable is {requested!r}; expected {_WANTED}")


def choose_trainable(model: nn.Module, requested: str | Sequence[str] | None) -> Trainable:
    """The parameters of ``model`` that ``requested`` asks for.

    Args:
        model: as given; its ``requires_grad`` are read.
        requested: ``"all"``: those of floating-point numbers; ``"as_given"``: those that require grad; names, or
            patterns of ``fnmatch``; ``None``: ``"as_given"`` where some parameters are frozen, some are not, and
            ``has_adapters``, else ``"all"``.

    Raises:
        ModelError: modules of the model are quantized; the message names the first and their number.
        ConfigError: nothing requires grad, or a pattern matches nothing; e.g. ``trainable is 'as_given', but no
            parameter of the model requires grad; expected one that does, or 'all', or names`` and ``trainable holds
            'head.*', which matches no parameter; expected names or patterns of names such as '0.weight'``.
    """
    check_trainable(requested)
    _check_no_quantized(model)
    if requested is None:
        some = len({p.requires_grad for p in model.parameters()}) == 2
        requested = "as_given" if some and has_adapters(model) else "all"
    if requested == "all":  # frozen integers, such as quantized weights, cannot be trained
        return Trainable("all", frozenset(name for name, p in model.named_parameters() if p.is_floating_point()), ())
    if requested == "as_given":
        names = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        if not names:
            raise ConfigError(
                "trainable is 'as_given', but no parameter of the model requires grad; expected one that does, or "
                "'all', or names"
            )
        return Trainable("as_given", names, _without_trained(model, names))
    names = _matching(model, requested)
    return Trainable("named", names, _without_trained(model, names))


def _check_no_quantized(model: nn.Module) -> None:
    """Raise ``ModelError`` naming the first module of integer weights that no gradient passes."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        package = type(module).__module__.partition(".modules")[0]
        inner = any(path.startswith(f"{outer}.") for outer in found)
        if not inner and package.startswith(_QUANTIZED):
            found[path] = f"{package} {type(module).__name__}"
    if not found:
        return
    path, kind = next(iter(found.items()))
    raise ModelError(
        f"{path or 'the model'} is a {kind}, one of {len(found)} quantized modules, which cannot be trained, nor can "
        "what comes before them; expected weights of floating-point numbers: pass the model as it was before it was "
        "quantized, and quantize the sanitized copy"
    )


def has_adapters(model: nn.Module) -> bool:
    """Whether a parameter's name has the marks of an adapter (LoRA, IA3, ...), or a module is one of PEFT."""
    if any(type(module).__module__.partition(".")[0] == "peft" for module in model.modules()):
        return True
    parts = (part for name, _ in model.named_parameters() for part in name.split("."))
    return any(part.startswith(_MARKS) or "adapter" in part for part in parts)


def changed_frozen(given: nn.Module, returned: nn.Module) -> list[str]:
    """Names of the parameters that do not require grad in ``given`` and have other values in ``returned``, a copy."""
    copies = dict(returned.named_parameters())
    return [
        name
        for name, p in given.named_parameters()
        if not p.requires_grad and not torch.equal(p.detach(), copies[name].detach())
    ]


def _matching(model: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    main = {id(p): name for name, p in model.named_parameters()}
    # With every name of a shared parameter.
    named = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()]
    found: set[str] = set()
    for pattern in patterns:
        matched = {main[id(p)] for name, p in named if fnmatchcase(name, pattern)}
        if not matched:
            examples = ", ".join(repr(name) for name, _ in named[:_N_EXAMPLES])
            raise ConfigError(
                f"trainable holds {pattern!r}, which matches no parameter; expected names or patterns of names such as "
                f"{examples}"
            )
        found |= matched
    return frozenset(found)


def _without_trained(model: nn.Module, trained: frozenset[str]) -> tuple[str, ...]:
    """Names of the modules with buffers and without a trained parameter; see ``Trainable.fixed``."""
    names: dict[int, str] = {id(p): name for name, p in model.named_parameters()}
    modules: dict[str, Any] = dict(model.named_modules())

    def is_fixed(path: str) -> bool:
        while path and path in modules and next(modules[path].parameters(), None) is None:
            path = path.rpartition(".")[0]
        return not any(names[id(p)] in trained for p in modules[path].parameters())

    with_buffers = (path for path, module in modules.items() if any(True for _ in module.buffers(recurse=False)))
    return tuple(path for path in with_buffers if is_fixed(path))
