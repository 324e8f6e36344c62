"""Backdoors as files in a model's folder: ``backdoor.json``, and ``triggers.npz`` or ``input_aware.safetensors``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors

from seamfast.attacks.image.input_aware import Generator, InputAware
from seamfast.attacks.plant import Backdoor
from seamfast.checks import MAX_NAME
from seamfast.engine.model import check_weights
from seamfast.errors import DataFileError, InputError
from seamfast.models.folder import LARGEST, described_fields, fill_from, read_document, state_of
from seamfast.models.meta import without_memory
from seamfast.report import write_atomically
from seamfast.triggers import AllToOne, load_triggers, save_triggers
from seamfast.untrusted import printable, printable_value

BACKDOOR, TRIGGERS, GENERATOR = "backdoor.json", "triggers.npz", "input_aware.safetensors"
FORMAT = "seamfast-backdoor"


def save_backdoor(folder: str | os.PathLike[str], backdoor: Backdoor) -> None:
    """Write the triggers of a backdoor into ``folder``, each file whole or not at all.

    Raises:
        InputError: e.g. ``cannot save an InputAware with other triggers; expected it alone``.
    """
    aware = [t for t in backdoor.triggers if isinstance(t, InputAware)]
    document: dict[str, Any] = {"format": FORMAT, "version": 1, "attack": backdoor.attack}
    if not aware:
        save_triggers(Path(folder) / TRIGGERS, backdoor.triggers)
        document["input_aware"] = None
    elif len(backdoor.triggers) > 1:
        raise InputError("cannot save an InputAware with other triggers; expected it alone")
    else:
        (trigger,) = aware
        if not isinstance(trigger.target, AllToOne):
            raise InputError(f"cannot save an InputAware of {trigger.target}; expected an AllToOne")
        write_atomically(Path(folder) / GENERATOR, to_safetensors(state_of(trigger.generator)))
        described = {"name": trigger.name, "target": trigger.target.target, "image_shape": trigger.image_shape}
        document["input_aware"] = described
    write_atomically(Path(folder) / BACKDOOR, (json.dumps(document, indent=2) + "\n").encode())


def load_backdoor(folder: str | os.PathLike[str]) -> Backdoor:
    """The backdoor in ``folder``, on the CPU; the files may be hostile.

    For a folder without ``backdoor.json`` but with ``triggers.npz``, the attack's name is ``""``.

    Raises:
        DataFileError: e.g. ``x: no such file; looked for backdoor.json or triggers.npz``.
    """
    path = Path(folder) / BACKDOOR
    if not os.path.lexists(path):
        if not os.path.lexists(Path(folder) / TRIGGERS):
            raise DataFileError(f"{printable(folder)}: no such file; looked for {BACKDOOR} or {TRIGGERS}")
        return Backdoor("", load_triggers(Path(folder) / TRIGGERS))
    read = read_document(path, "the description of a backdoor")
    document = described_fields(read, printable(path), FORMAT, ("attack", "input_aware"))
    attack, described = document["attack"], document["input_aware"]
    if not isinstance(attack, str) or len(attack) > MAX_NAME or (attack and not attack.isprintable()):
        raise DataFileError(f"{printable(path)}: attack is {printable_value(attack)}; expected a name")
    if described is None:
        return Backdoor(attack, load_triggers(Path(folder) / TRIGGERS))
    known = ["image_shape", "name", "target"]
    if not isinstance(described, dict) or sorted(described) != known:
        got = f"input_aware is {printable_value(described)}"
        raise DataFileError(f"{printable(path)}: {got}; expected an object of {known}")
    shape = described["image_shape"]
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 0 < n <= LARGEST for n in shape)):
        raise DataFileError(f"{printable(path)}: image_shape is {printable_value(shape)}; expected [C, H, W]")
    with without_memory():
        generator = Generator(shape[0])
    fill_from(generator, Path(folder) / GENERATOR, "input_aware")
    try:
        check_weights(generator)
        target, image_shape = AllToOne(described["target"]), (shape[0], shape[1], shape[2])
        trigger = InputAware(name=described["name"], target=target, image_shape=image_shape, generator=generator.eval())
    except InputError as error:
        raise DataFileError(f"{printable(path)}: {error}") from error
    generator.requires_grad_(False)
    return Backdoor(attack, (trigger,))
