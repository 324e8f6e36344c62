"""Everything that wants a GPU, in one script: build, test, verify against float64, time, write JSON.

    python benches/gpu_suite.py [--out FILE] [--quick] [--device cpu]

It needs no network and no installed seamfast: it builds the extension in place and imports the package from this tree
(torch, numpy, safetensors, tqdm, pytest must be there). ``--device cpu --quick`` runs the same path without a GPU, so
that a mistake in the script shows anywhere; figures of such a run say nothing. Data are made here: ten classes of
smooth random templates with noise, at CIFAR-10's sizes. The result goes to ``benches/results/`` with the machine and
the commit, unless ``--out`` says otherwise; the exit code is 0 only if tests and verification passed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def build() -> dict[str, Any]:
    """Compile the extension in place; the suite goes on without it, and says so."""
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {"ok": done.returncode == 0, "tail": (done.stdout + done.stderr)[-1500:] if done.returncode else ""}


def run_gpu_tests() -> dict[str, Any]:
    """``pytest -m gpu``; on a machine without a GPU they all skip."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-3000:], flush=True)
    return {"ok": done.returncode in (0, 5), "last_line": (done.stdout.strip().splitlines() or [""])[-1]}


def verify(device: Any) -> dict[str, Any]:
    """The ops on ``device`` against float64, and their draws bit for bit against the CPU's."""
    import torch

    from seamfast.ops import gather_augment, random_labels

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (257, 3, 32, 32), dtype=torch.uint8, generator=generator)
    indices = torch.randint(0, 257, (513,), generator=generator)
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    found: dict[str, Any] = {}
    exact = (images[indices].double() / 255 - torch.tensor(mean).double().view(1, 3, 1, 1)) / torch.tensor(
        std
    ).double().view(1, 3, 1, 1)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        got = gather_augment(images.to(device), indices.to(device), mean=mean, std=std, dtype=dtype).double().cpu()
        error = float((got - exact).abs().max())
        found[f"gather_augment {dtype}"] = {"max_error": error, "ok": bool(error <= tolerance)}  # NaN is not ok
    both = [
        gather_augment(images.to(d), indices.to(d), mean=mean, std=std, pad=4, flip=True, seed=7, epoch=3).cpu()
        for d in ("cpu", device)
    ]
    found["gather_augment crop and flip, bits"] = {"ok": bool(torch.equal(*both))}
    labels, ids = torch.arange(1000) % 43, torch.arange(1000) * 7919
    drawn = [random_labels(labels.to(d), ids.to(d), num_classes=43, seed=5, step=11).cpu() for d in ("cpu", device)]
    found["random_labels, bits"] = {"ok": bool(torch.equal(*drawn))}
    return found


def made_data(n: int, seed: int, num_classes: int = 10) -> Any:
    """``n`` images of 3x32x32: a smooth template a class, shared by all seeds, plus noise."""
    import torch
    import torch.nn.functional as F

    from seamfast import CleanSet

    shared = torch.Generator().manual_seed(1234)
    templates = F.interpolate(torch.rand(num_classes, 3, 6, 6, generator=shared), size=32, mode="bicubic")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % num_classes
    noise = torch.randn(n, 3, 32, 32, generator=generator)
    pixels = (templates[labels] * 160 + 40 + 45 * noise).clamp(0, 255).to(torch.uint8)
    return CleanSet(pixels, labels, mean=(0.5,), std=(0.25,), num_classes=num_classes)


def timed(call: Callable[[], Any], device: Any) -> tuple[float, Any]:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    value = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def time_sanitize(device: Any, quick: bool) -> list[dict[str, Any]]:
    """``sanitize`` against training from scratch, by turns, with ACC and ASR of both."""
    import torch

    import seamfast
    from seamfast import attacks
    from seamfast.triggers import Patch

    n_train, epochs, turns = (2000, 2, 1) if quick else (50_000, 30, 3)
    train_set, test_set = made_data(n_train, 0), made_data(1000 if quick else 10_000, 1)
    clean = made_data(n_train // 20, 2)
    trigger = Patch.square(size=3, target=0)
    recipe = attacks.TrainConfig(epochs=epochs, rate=0.1, crop_pad=4, flip=True)
    rows = []
    for name in ("narrow_resnet18",) if quick else ("narrow_resnet18", "resnet18"):

        def fresh(name: str = name) -> Any:
            torch.manual_seed(0)
            return attacks.build(name, num_classes=10, in_channels=3, image_size=32)

        received = attacks.train(fresh(), attacks.poison(train_set, trigger, 0.05), recipe, device=device)
        config = seamfast.SeamConfig(forget_max_steps=5, recover_max_steps=20) if quick else seamfast.SeamConfig()
        first_s, _ = timed(lambda m=received, c=config: seamfast.sanitize(m, clean, config=c, device=device), device)
        cures, scratches = [], []
        for _ in range(turns):
            seconds, result = timed(
                lambda m=received, c=config: seamfast.sanitize(m, clean, config=c, device=device), device
            )
            cures.append(seconds)
            seconds, scratch = timed(lambda f=fresh: attacks.train(f(), train_set, recipe, device=device), device)
            scratches.append(seconds)
        row = {
            "what": f"sanitize, {name}, {len(clean)} clean images, against {epochs} epochs from scratch",
            "sanitize_first_s": first_s,
            "sanitize_s": statistics.median(cures),
            "scratch_s": statistics.median(scratches),
            "ratio": statistics.median(s / c for s, c in zip(scratches, cures, strict=True)),
            "turns": turns,
            "steps": result.report["run"]["steps"],
            "accepted": result.accepted,
        }
        for when, model in (("received", received), ("sanitized", result.model), ("scratch", scratch)):
            evaluation = seamfast.evaluate(model, test_set, triggers=[trigger], device=device)
            row[f"acc_{when}"] = evaluation.clean_accuracy.value
            row[f"asr_{when}"] = evaluation.worst_attack_success_rate
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="where to write the JSON")
    parser.add_argument("--quick", action="store_true", help="small sizes, to test this script")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    built = build()
    print("extension:", "built" if built["ok"] else f"not built\n{built['tail']}", flush=True)

    import torch

    from seamfast.record import machine

    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device; --device cpu --quick tests this script", file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "commit": _commit(),
        "machine": {**machine(), "cuda": torch.version.cuda},
        "quick": arguments.quick,
        "device": str(device),
        "extension": built,
        "tests": run_gpu_tests(),
        "verification": verify(device),
    }
    out = Path(arguments.out) if arguments.out else ROOT / "benches" / "results" / _file_name(device, result["commit"])
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written before the timings too: a lease that ends early still leaves the verification.
    out.write_text(json.dumps(result, indent=2) + "\n")
    result["timings"] = time_sanitize(device, arguments.quick)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")
    ok = result["tests"]["ok"] and all(row["ok"] for row in result["verification"].values())
    print("all verified" if ok else "FAILED: see tests and verification")
    return 0 if ok else 1


def _file_name(device: Any, commit: str) -> str:
    import torch

    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return f"gpu-suite-{name.replace(' ', '-').lower()}-{commit[:10]}.json"


def _commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
