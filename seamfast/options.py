"""Exit codes, and the options that commands share or that ``gate`` takes; no torch, so that they are read before it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from seamfast.terminal import printable

EXIT_OK, EXIT_NOT_ACCEPTED, EXIT_INCOMPLETE, EXIT_REFUSED, EXIT_USAGE = range(5)

GATE = "inspect, audit, sanitize, audit again, and decide by a policy"
DEFAULT_MAX_TIME_S = 6 * 3600

_MAX_SIDE = 4096
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Parser(argparse.ArgumentParser):
    """Ends with ``EXIT_USAGE`` where the arguments are wrong."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def gate_parser() -> argparse.ArgumentParser:
    """What parses the arguments behind ``seamfast gate``, by itself."""
    parser = Parser(prog="seamfast gate", description=GATE, allow_abbrev=False)
    json_option(parser)
    gate_options(parser)
    return parser


def gate_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of ``gate``, but for ``--json``."""
    sub.add_argument("model", help="safetensors file, or folder with one")
    data_options(sub, required=True)
    split_option(sub, "train")
    sub.add_argument("--policy", required=True, help="TOML file; seamfast policy init prints one to begin with")
    sub.add_argument("--out", help="folder for the report and, on a pass, sanitized/; does not exist yet")
    architecture_options(sub)
    sub.add_argument("--allow-pickle", action="store_true", help="convert a pickled state_dict, in a child process")
    trusted = sub.add_mutually_exclusive_group()
    trusted.add_argument("--verify-key", metavar="PEM", help="refuse a model that this public key did not sign")
    trusted.add_argument("--verify-certificate", metavar="PEM", help="the same, by certificates that are trusted")
    sub.add_argument("--signature", help="of the model (default: model.sig in its folder)")
    sub.add_argument("--sign-key", metavar="PEM", help="private key for the attestation and the sanitized model")
    sub.add_argument("--dry-run", action="store_true", help="check policy, files and data; run and write nothing")
    sub.add_argument(
        "--max-memory",
        type=size,
        metavar="SIZE",
        help="memory that the run may take: bytes, or with K, M, G or T (default: what the machine or its control "
        "group has)",
    )
    sub.add_argument(
        "--max-time",
        type=seconds,
        default=DEFAULT_MAX_TIME_S,
        metavar="SECONDS",
        help=f"of the run, by the clock (default: {DEFAULT_MAX_TIME_S})",
    )


def architecture_options(sub: argparse.ArgumentParser) -> None:
    """Add what says of a model folder which module to build and how to feed it."""
    sub.add_argument(
        "--architecture",
        metavar="SPEC",
        help="registered:NAME, hf, timm:NAME, torchvision:NAME or module:function, your own code (default: what "
        "model.json or config.json selects)",
    )
    sub.add_argument(
        "--argument", action="append", default=[], type=_argument, metavar="NAME=JSON", help="of the architecture"
    )
    sub.add_argument(
        "--architecture-path",
        action="append",
        default=[],
        metavar="DIR",
        help="folder of the module that --architecture names, looked in after all others; may be repeated",
    )
    said = "(default: what the folder says)"
    sub.add_argument(
        "--image-size", type=_sides, metavar="N", help=f"pixels a side of the model's images, or HxW; resizes {said}"
    )
    sub.add_argument(
        "--mean", type=_numbers, metavar="X,Y,Z", help=f"subtracted from pixels in [0, 1], by channel or one {said}"
    )
    sub.add_argument("--std", type=_numbers, metavar="X,Y,Z", help=f"that they are divided by then {said}")
    sub.add_argument("--num-classes", type=integer(2, 65_536), metavar="N", help=f"logits of the model {said}")


def written_to(out: str) -> str:
    """The last line on stdout of a run that wrote to ``out``."""
    return f"written to {printable(out)}/"


def json_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def data_options(sub: argparse.ArgumentParser, **data: Any) -> None:
    """Add ``--data``, given more arguments of ``add_argument`` for it, and what goes with it."""
    names = "digits, mnist-5k, mnist, fashion-mnist, cifar10, sst2, ag-news, trec, breast-cancer, digits-table, or a "
    names += "path: .npz, .zip, .tsv, .csv, .jsonl, folder of class folders"
    sub.add_argument("--data", help=names + data.pop("otherwise", ""), **data)
    sub.add_argument("--root", help="folder that holds the files of a data set given by name")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda:0 (default: auto)")
    sub.add_argument("--seed", type=integer(0, 2**63 - 1), default=0, help="default: 0")
    sub.add_argument(
        "--threads",
        type=integer(0, 1024),
        help="threads of PyTorch on the CPU (default: 0, its own choice, or 1 where training steps are faster so)",
    )


def split_option(sub: argparse.ArgumentParser, default: str) -> None:
    sub.add_argument(
        "--split",
        choices=("train", "test"),
        help=f"part of the data to use (default: {default} of a data set given by name; of a path, all, or train)",
    )


def integer(least: int, most: int) -> Callable[[str], int]:
    """What reads an integer in [``least``, ``most``]."""

    def parse(text: str) -> int:
        value: int | None
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r}; expected an integer in [{least}, {most}]")
        return value

    return parse


def share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number in [0, 1]")
    return value


def fraction(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number in (0, 1]")
    return value


def seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected seconds above 0")
    return value


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        if not (name.isidentifier() and equals):
            raise ValueError(text)
        return name, json.loads(value)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=JSON, such as num_classes=10") from None


def _sides(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,3})(?:x([1-9][0-9]{0,3}))?", text)
    if found is None or max(sides := (int(found[1]), int(found[2] or found[1]))) > _MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r}; expected pixels in [1, {_MAX_SIDE}], such as 32, or 48x32 (HxW)")
    return sides


def _numbers(text: str) -> tuple[float, ...]:
    values = tuple(_number(part) for part in text.split(","))
    if not all(-1e6 <= value <= 1e6 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers in [-1e6, 1e6], such as 0.5 or 0.49,0.48,0.45")
    return values


def size(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,17})([KMGT]?)", text)
    if found is None or int(found[1]) * _UNITS[found[2]] >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r}; expected bytes, such as 8G or 500M")
    return int(found[1]) * _UNITS[found[2]]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
