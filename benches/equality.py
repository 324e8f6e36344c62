"""Is a changed package bit-equal to an earlier one? Fixed cases, their weights and reports, as digests to compare.

    python benches/equality.py --write benches/results/equality.json    # before a change
    python benches/equality.py --against benches/results/equality.json  # after it: exit code 1 if anything differs
    python benches/equality.py --cases digits gate                      # some of the cases, digests only

Each case trains a small model from fixed seeds and sanitizes or evaluates it on one thread, in float32, with PyTorch's
deterministic algorithms; all together take a minute. One line a digest: ``digits.weights``, and one a top-level
section of the report, ``digits.report.holdout``. What differs from run to run is left out: times, paths, memory, the
machine, the version. ``--against`` compares the reports value by value and names each value that differs.

Bits depend on the processor, on torch's version and on the instruction set of the C++ kernels, so a file is of use on
the machine that wrote it; where the machine differs, the comparison reports that too. MNIST, Fashion-MNIST and GTSRB
are read from ``--root``, by default ``SEAMFAST_DATA`` or ``../shared/data``; a case without its data is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from seamfast import CleanSet, FineTuneConfig, SeamConfig, SuperFineTuneConfig, attacks, cli, triggers  # noqa: E402
from seamfast.attacks import TrainConfig  # noqa: E402
from seamfast.gating import pipeline  # noqa: E402

DATA_ROOT = Path(os.environ.get("SEAMFAST_DATA") or ROOT.parent / "shared" / "data")
VOLATILE = {"created", "seconds", "machine", "peak_memory_bytes", "path", "version"}
"""Keys of a report whose values differ from run to run, from folder to folder or from release to release."""
FIXED: dict[str, Any] = {"precision": "fp32", "threads": 1, "deterministic": True, "progress": False}
SHORT = SeamConfig(forget_max_steps=30, recover_max_steps=40)

Result = dict[str, Any]
"""Of one run: digests by name, and under ``report`` the normalized report."""
Case = Callable[[Path], Iterator[tuple[str, Result]]]


class MissingError(Exception):
    """The data of a case are not there."""


def digits(root: Path) -> Iterator[tuple[str, Result]]:
    """Defaults, and a known trigger that is measured."""
    data = seamfast.load("digits", split="train")
    trigger = triggers.Patch.square(size=3, target=0)
    model = planted("small_cnn", data, trigger, TrainConfig(epochs=15, batch_size=64))
    yield "digits", sanitized(model, data.draw(0.3), config=SHORT, triggers=[trigger])


def mnist(root: Path) -> Iterator[tuple[str, Result]]:
    """Every method."""
    data = part_of("mnist", root / "mnist", 0.15, root=root / "mnist")
    model = planted("small_cnn", data, triggers.Blend.noise(data.image_shape, 0.2), TrainConfig(epochs=2))
    clean = data.draw(0.15, seed=1)
    yield "mnist", sanitized(model, clean, config=SHORT)
    yield "mnist fine_tune", sanitized(model, clean, method="fine_tune", config=FineTuneConfig(max_steps=60))
    short = SuperFineTuneConfig(forget_steps=40, recover_steps=40, eval_every=20)
    yield "mnist super_fine_tune", sanitized(model, clean, method="super_fine_tune", config=short)


def fashion_mnist(root: Path) -> Iterator[tuple[str, Result]]:
    """Crops and flips, in training and in sanitizing."""
    data = part_of("fashion-mnist", root / "fashion-mnist", 0.15, root=root / "fashion-mnist")
    trigger = triggers.Patch.checkerboard(size=3, target=1, corner="random")
    model = planted("small_cnn", data, trigger, TrainConfig(epochs=2, crop_pad=2, flip=True))
    config = replace(SHORT, crop_pad=2, flip=True)
    yield "fashion-mnist", sanitized(model, data.draw(0.15, seed=1), config=config, triggers=[trigger])


def gtsrb(root: Path) -> Iterator[tuple[str, Result]]:
    """Color, 43 classes, a source-specific trigger."""
    data = part_of(root / "gtsrb-32x32-subset.npz", root / "gtsrb-32x32-subset.npz", 0.3, num_classes=43)
    trigger = triggers.Patch.square(size=4, target=triggers.SourceSpecific((1, 2, 3), 8))
    model = planted("small_vgg", data, trigger, TrainConfig(epochs=8, batch_size=64, rate=0.03), cover_rate=0.02)
    yield "gtsrb", sanitized(model, data.draw(0.3, seed=1), config=SHORT, triggers=[trigger])


class Sentences(nn.Module):
    """Classifies rows of token numbers by the mean of their embeddings, where the mask is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 16)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weight = mask.unsqueeze(2).float()
        logits: Tensor = self.head((self.embedding(ids) * weight).sum(1) / weight.sum(1))
        return logits


def named_tensors(root: Path) -> Iterator[tuple[str, Result]]:
    """Token numbers and a mask, by keyword; token 63 is the trigger."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(800) % 4
    ids = torch.randint(0, 60, (800, 12), generator=draw)
    ids[:, ::3] = ids[:, ::3] % 15 + 15 * labels[:, None]  # a third of the tokens shows the class
    mask = (torch.arange(12) < torch.randint(4, 13, (800, 1), generator=draw)).long()
    clean = {"ids": ids, "mask": mask}
    poisoned = {"ids": ids.clone(), "mask": mask}
    poisoned["ids"][::10, 1] = 63
    torch.manual_seed(0)
    model = Sentences()
    config = TrainConfig(optimizer="adam", epochs=10, batch_size=32, rate=3e-3)
    attacks.train(model, CleanSet(poisoned, labels.index_fill(0, torch.arange(0, 800, 10), 0)), config, progress=False)
    yield "named tensors", sanitized(model, (clean, labels), config=SHORT)


class Shaken(Dataset[tuple[Tensor, int]]):
    """Vectors that come out differently each time that they are read."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index] + 0.1 * torch.randn(30), int(self.labels[index])


def float_vectors(root: Path) -> Iterator[tuple[str, Result]]:
    """BatchNorm, dropout, several attempts; and a data set that augments."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    inputs = torch.randn(900, 30, generator=draw) + 0.6 * torch.randn(3, 30, generator=draw)[labels]
    torch.manual_seed(0)
    first = [nn.Linear(30, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.2)]
    model = nn.Sequential(*first, nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))
    attacks.train(model, CleanSet(inputs, labels), TrainConfig(epochs=6, batch_size=64), progress=False)
    config = replace(SHORT, strengths=(30.0, 1.0), accuracy_budget=0.0)
    yield "float vectors", sanitized(model, (inputs, labels), config=config)
    yield "float vectors, read anew", sanitized(model, Shaken(inputs, labels), config=SHORT, augments=True, seed=5)


def gate(root: Path) -> Iterator[tuple[str, Result]]:
    """``seamfast plant`` on digits, the policy of ``seamfast policy init``, the gate."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run_cli("plant", "--data", "digits", "--epochs", "15", "--out", str(folder / "planted"))
        # Without its comments, so that the policy's digest depends on what it asks for, not on its words.
        (folder / "policy.toml").write_text(re.sub(r"\s*#.*", "", run_cli("policy", "init")))
        theirs, pipeline.sanitize = pipeline.sanitize, functools.partial(seamfast.sanitize, **FIXED)
        try:
            result = seamfast.gate(
                folder / "planted", "digits", policy=folder / "policy.toml", out=folder / "out", progress=False
            )
        finally:
            pipeline.sanitize = theirs
        yield (
            "gate",
            {
                "received": sha256((folder / "planted" / "model.safetensors").read_bytes()),
                "triggers": sha256((folder / "planted" / "triggers.npz").read_bytes()),
                "weights": None if result.model is None else weights_digest(result.model),
                "report": normalized(result.report),
            },
        )


def evaluation(root: Path) -> Iterator[tuple[str, Result]]:
    """Every kind of trigger under every label map, on color images; then the same images as floats."""
    grey = seamfast.load("digits", split="train")
    color = torch.cat([grey.inputs, grey.inputs // 2 + 40, 255 - grey.inputs], 1)
    data = CleanSet(color, grey.labels, mean=(0.3, 0.4, 0.7), std=(0.37, 0.2, 0.37), num_classes=10)
    shape = data.image_shape
    model = planted("small_cnn", data, triggers.Patch.square(size=2, target=3), TrainConfig(epochs=8, batch_size=64))
    own = [
        triggers.Patch.checkerboard(size=4, corner="top-left", name="patch"),
        replace(triggers.Patch.square(size=3, name="half-clear"), mask=torch.full((3, 3), 0.4).numpy()),
        triggers.Blend.noise(shape, 0.35, seed=3, name="blend"),
        triggers.Sinusoid.of(40, 2, name="wave"),
        triggers.Additive.low_frequency(shape, 20, name="additive"),
        triggers.Warp.elastic(shape, 3, 0.9, seed=2, name="bent"),
        triggers.Quantize.of(4, dither=True, name="levels"),
        triggers.ColorFilter.nashville(3, name="filter"),
    ]
    maps = (triggers.AllToOne(3), triggers.AllToAll(2), triggers.SourceSpecific((1, 4, 7), 3))
    stamps = [
        replace(trigger, name=f"{trigger.name} {label_map.kind}", target=label_map)
        for label_map in maps
        for trigger in (*triggers.battery(shape, 10), *own)
    ]
    floats = CleanSet(data.normalize(color), data.labels, mean=data.mean, std=data.std, num_classes=10)
    for name, samples in (("evaluation", data), ("evaluation, floats", floats)):
        found = seamfast.evaluate(model, samples, triggers=stamps, batch_size=500, seed=7, progress=False)
        yield name, {"received": weights_digest(model), "report": json.loads(json.dumps(asdict(found)))}


CASES: dict[str, Case] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "gtsrb": gtsrb,
    "named tensors": named_tensors,
    "float vectors": float_vectors,
    "gate": gate,
    "evaluation": evaluation,
}


def part_of(name: str | Path, needed: Path, fraction: float, **options: Any) -> CleanSet:
    """A part of a training set, by class."""
    if not needed.exists():
        raise MissingError(f"{needed} is not there")
    return seamfast.load(name, split="train", **options).draw(fraction)


def planted(name: str, data: CleanSet, trigger: Any, config: TrainConfig, **options: Any) -> nn.Module:
    """A new model, trained on ``data`` of which 5 % carry the trigger."""
    channels, side, _ = data.image_shape
    assert data.num_classes is not None
    torch.manual_seed(0)
    model = attacks.build(name, num_classes=data.num_classes, in_channels=channels, image_size=side)
    return attacks.train(model, attacks.poison(data, trigger, 0.05, **options), config, progress=False)


def sanitized(model: nn.Module, data: Any, **options: Any) -> Result:
    """Digests of the model as received and as sanitized, and the report."""
    received = weights_digest(model)
    result = seamfast.sanitize(model, data, **FIXED, **options)
    assert weights_digest(model) == received, "the given model was written"
    return {"received": received, "weights": weights_digest(result.model), "report": normalized(result.report)}


def run_cli(*arguments: str) -> str:
    """What the command prints on stdout; a failure raises."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(list(arguments))
    if code:
        raise RuntimeError(f"seamfast {' '.join(arguments)} returned {code}: {err.getvalue()}")
    return out.getvalue()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the state dict, in its order."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def normalized(report: Any) -> Any:
    """The report without what differs from run to run, as JSON returns it."""
    if isinstance(report, Mapping):
        return {key: normalized(value) for key, value in report.items() if key not in VOLATILE}
    return [normalized(value) for value in report] if isinstance(report, (list, tuple)) else report


def digests(name: str, result: Result) -> Iterator[tuple[str, str]]:
    """Key paths and SHA-256 digests: of the weights, and of each top-level section of the report."""
    for key, value in result.items():
        if key != "report":
            yield f"{name}.{key}", str(value)
    for section, value in result["report"].items():
        yield f"{name}.report.{section}", sha256(json.dumps(value, sort_keys=True).encode())


def differences(place: str, before: Any, after: Any) -> Iterator[str]:
    """One line for each value that differs: its key path, and both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from differences(f"{place}.{key}", before.get(key, "(absent)"), after.get(key, "(absent)"))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(f"{place}[{index}]", old, new)
    elif type(before) is not type(after) or before != after:
        yield f"{place}: {json.dumps(before)} -> {json.dumps(after)}"


def machine() -> dict[str, str]:
    """What the bits depend on besides the code."""
    return {"torch": str(torch.__version__), "cpu": torch.backends.cpu.get_cpu_capability(), "processor": processor()}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--root", type=Path, default=DATA_ROOT)
    parser.add_argument("--write", type=Path, help="save digests and reports as JSON")
    parser.add_argument("--against", type=Path, help="compare with a file that --write saved")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Result] = {}
    for case in arguments.cases:
        start = time.perf_counter()
        try:
            for name, result in CASES[case](arguments.root):
                results[name] = result
                for place, digest in digests(name, result):
                    print(f"{place:<48} {digest}")
        except MissingError as missing:
            print(f"{case}: skipped, {missing}")
        print(f"{case}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    if arguments.write:
        saved = {"machine": machine(), "results": results}
        text = json.dumps(saved, separators=(",", ":"), allow_nan=False)
        arguments.write.write_text(text.replace("},", "},\n") + "\n")
    return compare(json.loads(arguments.against.read_text()), results) if arguments.against else 0


def compare(saved: dict[str, Any], results: dict[str, Result]) -> int:
    """Print what differs from the saved results; 1 if anything does, or if nothing could be compared."""
    for line in differences("machine", saved["machine"], machine()):
        print(f"{line} (bits may differ for this reason)")
    shared = [name for name in results if name in saved["results"]]
    found = [line for name in shared for line in differences(name, saved["results"][name], results[name])]
    for line in found:
        print(line)
    for name in sorted({*results, *saved["results"]} - {*shared}):
        print(f"{name}: not compared")
    print(f"{len(shared)} results compared, {len(found)} values differ")
    return 1 if found or not shared else 0


if __name__ == "__main__":
    sys.exit(main())
