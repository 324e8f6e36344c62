"""Everything that wants a GPU, in one script: build, test, verify against float64, time, write JSON.

    python benches/gpu_suite.py [--out FILE] [--quick] [--device cpu] [--only PART]

It needs no network and no installed seamfast: it builds the extensions in place, with nvcc the CUDA one too, and
imports the package from this tree (torch, numpy, safetensors, tqdm, pillow and pytest must be there). Every kernel is
verified before anything is timed. ``--device cpu --quick`` runs the same path without a GPU, so that a mistake in the
script shows anywhere; figures of such a run say nothing.

Times of kernels: the median of 15, each of ten calls replayed in a CUDA graph ("graph": no launches count), or of 100
calls from Python ("host": what eager code pays). Inputs rotate, so that large ones do not sit in the cache. The
roofline is a copy of 1 GiB, bytes read and written; a kernel's floor is each input read once, each output written once.
Whole runs use made data: ten classes of smooth random templates with noise, at CIFAR-10's sizes. The result goes to
``benches/results/`` with the machine and the commit, unless ``--out`` says otherwise; the exit code is 0 only if tests
and verification passed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def build() -> dict[str, Any]:
    """Compile the extensions in place, the CUDA one too where nvcc is; the suite goes on without, and says so."""
    wanted = {"SEAMFAST_CUDA": "1"} if shutil.which("nvcc") else {}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=ROOT,
        env={**os.environ, **wanted},
        capture_output=True,
        text=True,
        check=False,
    )
    tail = (done.stdout + done.stderr)[-1500:] if done.returncode else ""
    return {"ok": done.returncode == 0, "cuda": bool(wanted), "tail": tail}


def run_gpu_tests() -> dict[str, Any]:
    """``pytest -m gpu``; on a machine without a GPU they all skip."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-3000:], flush=True)
    return {"ok": done.returncode in (0, 5), "last_line": (done.stdout.strip().splitlines() or [""])[-1]}


# ---- Verification. ----


def backends_on(op: str, device: Any) -> list[str]:
    """The op's own kernels that run on ``device``."""
    from seamfast.ops import backends

    rows = (row for row in backends() if row["op"] == op and row["available"] and row["devices"])
    return [row["backend"] for row in rows if device.type in (row["devices"] or ())]


def verify(device: Any, quick: bool) -> dict[str, Any]:
    """Every kernel on ``device``: losses and gradients against float64, all else bit for bit against the reference."""
    found: dict[str, Any] = {}
    for check in (verify_loss, verify_counts, verify_gather, verify_stamp, verify_occlude):
        for name, row in check(device, quick).items():
            found[name] = row
            print(f"{'ok  ' if row['ok'] else 'FAIL'} {name} {row.get('max_error', '')}", flush=True)
    return found


def verify_loss(device: Any, quick: bool) -> dict[str, Any]:
    import torch
    import torch.nn.functional as F

    from seamfast.ops import random_label_loss_and_count, random_labels

    found: dict[str, Any] = {}
    sizes = (
        [(7, 10), (33, 1000)] if quick else [(513, 2), (513, 10), (512, 43), (513, 1000), (64, 21843), (17, 100_000)]
    )
    for name in backends_on("cross_entropy", device):
        for n, classes in sizes:
            if name == "cuda" and classes > 1024:
                continue  # a twin for few classes
            for dtype, slack in ((torch.float32, 2e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
                generator = torch.Generator().manual_seed(n + classes)
                logits = (4 * torch.randn(n, classes, generator=generator)).to(dtype).to(device).requires_grad_()
                labels = torch.randint(0, classes, (n,), generator=generator).to(device)
                ids = torch.arange(n, device=device) * 7919
                result = random_label_loss_and_count(logits, labels, ids, seed=2**63 + 5, step=11, backend=name)
                result.loss.backward()
                drawn = random_labels(labels, ids, num_classes=classes, seed=2**63 + 5, step=11)
                exact = logits.detach().double().requires_grad_()
                loss = F.cross_entropy(exact, drawn)
                loss.backward()
                off = float((logits.grad.double() - exact.grad).abs().max() / exact.grad.abs().max())
                off_loss = float((result.loss.double() - loss).detach().abs() / loss.detach().abs())
                count = int((logits.detach().argmax(1) == labels).sum())
                found[f"loss {name} {n} x {classes} {str(dtype)[6:]}"] = {
                    "max_error": off,
                    "loss_error": off_loss,
                    "ok": off <= slack and off_loss <= 3e-6 and int(result.n_correct) == count,  # NaN is not ok
                }
    return found


def verify_counts(device: Any, quick: bool) -> dict[str, Any]:
    import torch

    from seamfast.ops import count_outcomes

    found: dict[str, Any] = {}
    for name in backends_on("count_outcomes", device):
        for n, classes in [(33, 10)] if quick else [(4099, 10), (1000, 1000), (65, 21843)]:
            generator = torch.Generator().manual_seed(classes)
            logits = torch.randint(-3, 4, (n, classes), generator=generator).float()  # many ties
            logits[5, classes // 2] = float("nan")
            labels = torch.randint(0, classes, (n,), generator=generator)
            ids = torch.randint(-1, 3, (n,), generator=generator)
            targets = torch.randint(0, classes, (3, classes), generator=generator)
            arguments = [value.to(device) for value in (logits, labels, targets, ids)]
            got = count_outcomes(*arguments, backend=name).cpu()
            want = count_outcomes(logits, labels, targets, ids, backend="reference")
            found[f"counts {name} {n} x {classes}"] = {"ok": bool(torch.equal(got, want))}
    return found


def verify_gather(device: Any, quick: bool) -> dict[str, Any]:
    import torch

    from seamfast.ops import gather_augment

    found: dict[str, Any] = {}
    for name in backends_on("gather_augment", device):
        for size in (32,) if quick else (32, 224):
            images, indices = made_images(64, size), torch.arange(40) * 7 % 64
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                for last in (False, True):
                    settings: Any = {"mean": MEAN, "std": STD, "pad": 4, "flip": True, "seed": 7, "epoch": 3}
                    settings |= {"dtype": dtype, "channels_last": last}
                    got = gather_augment(images.to(device), indices.to(device), **settings, backend=name).cpu()
                    want = gather_augment(images, indices, **settings, backend="reference")
                    row = {"ok": bool(torch.equal(got, want))}
                    found[f"gather {name} {size} {str(dtype)[6:]}{' channels_last' * last}, bits"] = row
    return found


def verify_stamp(device: Any, quick: bool) -> dict[str, Any]:
    import torch

    from seamfast.ops import TriggerTable, stamp_trigger

    found: dict[str, Any] = {}
    for name in backends_on("stamp_trigger", device):
        for size in (16,) if quick else (32, 224):
            images, triggers = made_images(64, size), every_trigger((3, size, size))
            indices, ids = torch.arange(40) * 7 % 64, torch.arange(40) % (len(triggers) + 1) - 1
            table = TriggerTable.of(triggers, (3, size, size))
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                settings: Any = {"mean": MEAN, "std": STD, "seed": 5, "dtype": dtype}
                settings["channels_last"] = dtype == torch.bfloat16
                want = stamp_trigger(images, indices, table, ids, **settings, backend="reference")
                arguments = [value.to(device) for value in (images, indices, table, ids)]
                got = stamp_trigger(*arguments, **settings, backend=name).cpu()
                found[f"stamp {name} {size} {str(dtype)[6:]}, bits"] = {"ok": bool(torch.equal(got, want))}
    return found


def verify_occlude(device: Any, quick: bool) -> dict[str, Any]:
    import torch

    from seamfast.ops import occlude

    found: dict[str, Any] = {}
    shapes = [(6, 3, 32, 32)] if quick else [(128, 3, 32, 32), (128, 1, 28, 28), (40, 3, 224, 224), (40, 5, 9, 7)]
    for name in backends_on("occlude", device):
        for shape in shapes:
            for last in (False, True):
                generator = torch.Generator().manual_seed(shape[1])
                layout = torch.channels_last if last else torch.contiguous_format
                images = torch.rand(shape, generator=generator).contiguous(memory_format=layout)
                arguments = (images, -torch.rand(shape[1]), torch.rand(shape[1]), torch.arange(shape[0]) * 2**33 - 5)
                settings: Any = {"n_rectangles": 6, "seed": 2**63 + 5, "step": 2**32 - 1}
                there = [value.to(device) for value in arguments]
                got = occlude(*there, **settings, backend=name)
                want = occlude(*there, **settings, backend="reference")
                on_cpu, _ = occlude(*arguments, **settings, backend="reference")
                # The mean image's last bits depend on the device, which sums in an order of its own.
                ok = all(map(torch.equal, got, want)) and torch.equal(got[0].cpu(), on_cpu)
                found[f"occlude {name} {'x'.join(map(str, shape))}{' channels_last' * last}, bits"] = {"ok": ok}
    return found


def made_images(count: int, size: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def every_trigger(shape: tuple[int, int, int]) -> list[Any]:
    """One of each kind of the table."""
    from seamfast.triggers import Additive, AllToOne, Blend, ColorFilter, Patch, Quantize, Sinusoid, Warp

    return [
        Patch.square(size=3),
        Patch.square(size=3, corner="random", name="anywhere"),
        Blend.noise(shape, 0.2),
        Sinusoid.of(20, 6),
        Additive.low_frequency(shape, 12),
        Quantize(name="dither", target=AllToOne(0), levels=8, dither=True),
        Warp.elastic(shape),
        ColorFilter.nashville(3),
    ]


# ---- Times of kernels. ----


def seconds_of(call: Callable[[], Any], device: Any, in_graph: bool) -> float:
    """The median time of a call: of its kernels alone, replayed in a CUDA graph of ten calls; or from the host."""
    import torch

    if device.type != "cuda":
        call()
        return statistics.median(timed(call, device)[0] for _ in range(5))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    calls = 10 if in_graph else 100
    if in_graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()

    def run() -> None:
        if in_graph:
            graph.replay()
        else:
            for _ in range(calls):
                call()

    run()
    torch.cuda.synchronize()
    found = []
    for _ in range(15):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(found)


def copy_bandwidth(device: Any, quick: bool) -> float:
    """Bytes a second, read and written, of a large copy on the device: the roofline of all that follows."""
    import torch

    n = 2**20 if quick else 2**30
    source, target = (torch.empty(n, dtype=torch.uint8, device=device).random_() for _ in range(2))
    return 2 * n / seconds_of(lambda: target.copy_(source), device, True)


def cycle(items: list[Any]) -> Callable[[], Any]:
    """The next of ``items`` at each call: sets of inputs that together outgrow the cache."""
    turn = itertools.cycle(items)
    return lambda: next(turn)


def raced(name: str, ours: Callable[[], Any], others: dict[str, Callable[[], Any]], device: Any) -> dict[str, Any]:
    """Times in graphs and from the host, ours and others' by turns."""
    row: dict[str, Any] = {"what": name}
    for who, call in {"ours": ours, **others}.items():
        for how, in_graph in (("graph", True), ("host", False)):
            try:
                row[f"{who}_{how}_us"] = seconds_of(call, device, in_graph) * 1e6
            except Exception as error:  # a graph that cannot be captured must not end the lease
                row[f"{who}_{how}_error"] = f"{type(error).__name__}: {error}"[:300]
    for who in others:
        for how in ("graph", "host"):
            if f"{who}_{how}_us" in row and f"ours_{how}_us" in row:
                row[f"ratio_to_{who}_{how}"] = row[f"{who}_{how}_us"] / row[f"ours_{how}_us"]
    return row


def of_roofline(row: dict[str, Any], n_bytes: int, bandwidth: float) -> dict[str, Any]:
    """The row with the share of the copy's bandwidth at which the fewest possible bytes went."""
    row["floor_bytes"] = n_bytes
    if "ours_graph_us" in row:
        row["share_of_roofline"] = n_bytes / bandwidth / (row["ours_graph_us"] / 1e6)
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    return row


def loss_of_seamfast(pick: Any, labels: Any, ids: Any, step: Any, backend: str) -> Callable[[], Any]:
    """Loss, gradient and count by the op; the step is counted on the device, as in a captured run."""
    import torch

    from seamfast.ops import random_label_loss_and_count

    def call() -> Any:
        x = pick()
        step.add_(1)
        found = random_label_loss_and_count(x, labels, ids, seed=1, step=step, backend=backend)
        return torch.autograd.grad(found.loss, x), found.n_correct

    return call


def loss_of_chain(pick: Any, labels: Any, wraps: Callable[[Any], Any]) -> Callable[[], Any]:
    """The same by ``randint``, ``cross_entropy``, autograd, argmax, eq, sum; ``wraps`` may compile the chain."""
    import torch
    import torch.nn.functional as F

    def forward(x: Any) -> Any:
        wrong = torch.randint(0, x.shape[1], (len(x),), device=x.device)
        return F.cross_entropy(x, wrong), (x.argmax(1) == labels).sum()

    chain = wraps(forward)

    def call() -> Any:
        x = pick()
        loss, n_correct = chain(x)
        return torch.autograd.grad(loss, x), n_correct

    return call


def time_loss(device: Any, quick: bool, bandwidth: float) -> list[dict[str, Any]]:
    """Loss, gradient and count of a forgetting step."""
    import torch

    rows = []
    sizes = [(512, 10), (512, 100), (512, 1000), (4096, 1000), (4096, 32_768), (2048, 100_000)]
    for n, classes in [(64, 10)] if quick else sizes:
        for dtype in (torch.float32, torch.bfloat16):
            n_bytes = 2 * n * classes * dtype.itemsize  # logits in, gradient out
            sets = 1 if quick else max(1, min(8, 2**28 // n_bytes))
            inputs = [torch.randn(n, classes, device=device).to(dtype).requires_grad_() for _ in range(sets)]
            labels, ids = torch.randint(0, classes, (n,), device=device), torch.arange(n, device=device)
            step = torch.zeros((), dtype=torch.int64, device=device)
            others = {"eager": loss_of_chain(cycle(inputs), labels, lambda f: f)}
            if device.type == "cuda":
                others["compiled"] = loss_of_chain(cycle(inputs), labels, torch.compile)
            for backend in backends_on("cross_entropy", device):
                if backend != "cuda" or classes <= 1024:
                    ours = loss_of_seamfast(cycle(inputs), labels, ids, step, backend)
                    row = raced(f"loss {backend} {n} x {classes} {str(dtype)[6:]}", ours, others, device)
                    rows.append(of_roofline(row, n_bytes, bandwidth))
    return rows


def normalized(images: Any, dtype: Any) -> Callable[[Any], Any]:
    import torch

    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
    return lambda batch: batch.float().div_(255).sub_(mean).div_(std).to(dtype)


def gather_of_chain(images: Any, pick: Any, dtype: Any) -> Callable[[], Any]:
    """Pad, draw, index, normalize: what a data path on the device does without the op."""
    import torch

    finish = normalized(images, dtype)

    def call() -> Any:
        x = torch.nn.functional.pad(images[pick()].float(), (4, 4, 4, 4), mode="reflect")
        n, c, h, w = x.shape
        down, right = torch.randint(0, 9, (2, n, 1), device=x.device)
        flip = torch.rand(n, 1, device=x.device) < 0.5
        columns = torch.arange(w - 8, device=x.device).expand(n, -1)
        columns = torch.where(flip, w - 9 - columns, columns) + right
        rows = torch.arange(h - 8, device=x.device).expand(n, -1) + down
        each = torch.arange(n, device=x.device)[:, None, None, None]
        channel = torch.arange(c, device=x.device)[:, None, None]
        return finish(x[each, channel, rows[:, None, :, None], columns[:, None, None, :]])

    return call


def stamp_of_chain(images: Any, pick: Any, dtype: Any) -> Callable[[], Any]:
    finish = normalized(images, dtype)

    def call() -> Any:
        x = images[pick()]
        x[:, :, -4:-1, -4:-1] = 255
        return finish(x)

    return call


def time_pixels(device: Any, quick: bool, bandwidth: float) -> list[dict[str, Any]]:
    """Gathering and stamping against the chain of tensor ops that they replace."""
    import torch

    from seamfast.ops import TriggerTable, gather_augment, stamp_trigger
    from seamfast.triggers import Patch

    rows = []
    for size, batch in [(32, 64)] if quick else [(32, 128), (32, 8192), (224, 512)]:
        images = made_images(2 * batch, size).to(device)
        pick = cycle([torch.randint(0, 2 * batch, (batch,), device=device) for _ in range(4)])
        table = TriggerTable.of([Patch.square(size=3)], (3, size, size), device)
        for dtype in (torch.float32, torch.bfloat16):
            n_bytes = batch * 3 * size * size * (1 + dtype.itemsize)
            settings: Any = {"mean": MEAN, "std": STD, "dtype": dtype}
            gather = functools.partial(gather_augment, images, pad=4, flip=True, seed=1, **settings)
            stamp = functools.partial(stamp_trigger, images, **settings)
            eager_gather = {"eager": gather_of_chain(images, pick, dtype)}
            eager_stamp = {"eager": stamp_of_chain(images, pick, dtype)}
            what = f"{batch} x {size} {str(dtype)[6:]}"
            for backend in backends_on("gather_augment", device):
                ours = functools.partial(lambda op, pick, by: op(pick(), backend=by), gather, pick, backend)
                row = raced(f"gather {backend} {what}", ours, eager_gather, device)
                rows.append(of_roofline(row, n_bytes, bandwidth))
            for backend in backends_on("stamp_trigger", device):
                ours = functools.partial(
                    lambda op, pick, table, by: op(pick(), table, 0, backend=by), stamp, pick, table, backend
                )
                row = raced(f"stamp {backend} {what}", ours, eager_stamp, device)
                rows.append(of_roofline(row, n_bytes, bandwidth))
    return rows


def occlude_of_chain(pick: Any, lowest: Any, highest: Any) -> Callable[[], Any]:
    """The same by tensor operations, which draw from the device's own generator."""
    import torch

    from benches.baselines.occlude import occlude

    ends = (lowest.view(1, -1, 1, 1), highest.view(1, -1, 1, 1))
    if lowest.device.type == "cuda":
        torch.cuda.init()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
    else:
        generator = torch.default_generator
    return lambda: occlude(pick(), *ends, generator)


def time_occlude(device: Any, quick: bool, bandwidth: float) -> list[dict[str, Any]]:
    """Pasting patterns, for student and teacher, against tensor operations; the op's time holds that of the mean."""
    import torch

    from seamfast.ops import occlude

    rows = []
    for batch, channels, size in [(4, 3, 32)] if quick else [(128, 1, 28), (128, 3, 32), (8192, 3, 32), (512, 3, 224)]:
        n_bytes = 3 * 4 * batch * channels * size * size  # the images in, two batches out
        pick = cycle([torch.rand(batch, channels, size, size, device=device) for _ in range(2 if quick else 4)])
        lowest, highest = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        ids, step = torch.arange(batch, device=device), torch.zeros((), dtype=torch.int64, device=device)
        others = {"eager": occlude_of_chain(pick, lowest, highest)}
        for backend in backends_on("occlude", device):
            ours = functools.partial(
                lambda pick, *arguments, **settings: occlude(pick(), *arguments, **settings),
                pick,
                lowest,
                highest,
                ids,
                seed=1,
                step=step,
                backend=backend,
            )
            row = raced(f"occlude {backend} {batch} x {channels}x{size}x{size}", ours, others, device)
            rows.append(of_roofline(row, n_bytes, bandwidth))
    return rows


def time_evaluate(device: Any, quick: bool) -> dict[str, Any]:
    """16 triggers x 10,000 images against a loop like BackdoorBench's, and what stamping and counting take of it."""
    import torch

    from benches import bench_evaluate as bench
    from seamfast import attacks
    from seamfast.ops import TriggerTable, count_outcomes, stamp_trigger

    n = 500 if quick else 10_000
    pixels, labels = bench.made(n)
    torch.manual_seed(0)
    model = attacks.build("narrow_resnet18" if quick else "resnet18", num_classes=10, in_channels=3, image_size=32)
    model = model.to(device).eval()
    arguments = (model, pixels, labels, str(device))
    bench.by_seamfast(*arguments)
    ours_s, got = zip(*(timed(lambda: bench.by_seamfast(*arguments), device) for _ in range(3)), strict=True)
    loop_s, want = timed(lambda: bench.by_loop(*arguments), device)

    triggers = [trigger for trigger, _ in bench.triggers()]
    table = TriggerTable.of(triggers, (3, 32, 32), device)
    data, true = pixels.to(device), labels.to(device)
    batch = min(512, n)
    where, ids = torch.arange(batch, device=device), torch.arange(batch, device=device) % len(triggers)
    targets = torch.zeros(len(triggers), 10, dtype=torch.int64, device=device)
    counters = torch.zeros(len(triggers) + 1, 6, dtype=torch.int64, device=device)
    logits = torch.randn(batch, 10, device=device)

    def kernels() -> None:
        stamp_trigger(data, where, table, ids, mean=bench.MEAN, std=bench.STD)
        count_outcomes(logits, true[:batch], targets, ids, counters=counters)

    batches = -(-n * (len(triggers) + 1) // batch)
    ours = statistics.median(ours_s)
    row = {
        "what": f"evaluate, {len(triggers)} triggers x {n}, {'narrow ' * quick}ResNet-18",
        "ours_s": ours,
        "loop_s": loop_s,
        "ratio": loop_s / ours,
        "match": bench.close(got[0], want),
        "stamp_and_count_share": seconds_of(kernels, device, True) * batches / ours,
        "acc": got[0][0][0] / n,
    }
    print(json.dumps(row), flush=True)
    return row


# ---- Times of whole runs. ----


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
            seconds, scratch = timed(
                lambda f=fresh: attacks.train(f(), train_set, recipe, device=device, precision="auto"), device
            )
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


PEAK_BF16 = 989e12
"""Dense bfloat16 operations a second of an H100 or H200 (SXM), as its data sheet says."""


def time_engine(device: Any, quick: bool) -> list[dict[str, Any]]:
    """``sanitize`` against the same schedule driven by others (``benches/baselines``), by turns; 200 steps.

    ``eager`` is seamfast without replays. The share of peak counts the operations of convolutions and matrix products
    of all steps (student forward and backward, teacher forward), over the seconds of the steps alone.
    """
    import torch

    import seamfast
    from benches.baselines import naive, resident
    from benches.baselines.schedule import Schedule
    from seamfast import SeamAuthorsConfig, SeamConfig, attacks
    from seamfast.engine import graph
    from seamfast.engine.precision import Precision

    forget, recover, turns = (3, 12, 1) if quick else (15, 185, 5)
    clean = made_data(300 if quick else 2500, 2)
    rows = []
    for name in ("narrow_resnet18",) if quick else ("narrow_resnet18", "resnet18"):
        for batch_size in (32,) if quick else (128, 512):
            torch.manual_seed(0)
            model = attacks.build(name, num_classes=10, in_channels=3, image_size=32).to(device)
            full = Schedule.of(clean, forget, recover, SeamConfig(batch_size=batch_size))
            authors = Schedule.of(clean, forget, recover, SeamAuthorsConfig())
            reports: dict[str, Any] = {}

            def ours(schedule: Any, who: str, m: Any = model, seen: Any = reports) -> None:
                result = seamfast.sanitize(m, schedule.clean, config=schedule.config, device=device, progress=False)
                seen[who] = result.report["run"]

            def eager(m: Any = model, s: Any = full, call: Any = ours) -> None:
                allowed, graph.why_not = graph.why_not, lambda _: "the bench wants it eager"
                try:
                    call(s, "eager")
                finally:
                    graph.why_not = allowed

            first_s, _ = timed(lambda call=ours, s=full: call(s, "ours"), device)
            chosen = reports["ours"]["precision"]["chosen"]
            found = Precision(bf16="bf16" in chosen, channels_last="channels_last" in chosen)
            calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
                "eager": (lambda call=ours, s=full: call(s, "ours"), eager),
                "resident": (
                    lambda call=ours, s=full: call(s, "ours"),
                    lambda s=full, m=model, p=found: resident.run(s, m, p),
                ),
                "naive": (lambda call=ours, s=full: call(s, "ours"), lambda s=full, m=model: naive.run(s, m)),
            }
            if batch_size == 128 or quick:
                calls["authors"] = (
                    lambda call=ours, s=authors: call(s, "authors"),
                    lambda s=authors, m=model: naive.run(s, m),
                )
            if not quick:
                calls["compiled"] = (
                    lambda call=ours, s=full: call(s, "ours"),
                    lambda s=full, m=model, p=found: resident.run(s, m, p, compiles=True),
                )
            n_flops = flops_of_run(model, batch_size, forget, recover, device)
            for who, (mine, theirs) in calls.items():
                n = 2 if who in ("naive", "authors") and turns > 2 else turns
                times = [(timed(mine, device)[0], timed(theirs, device)[0]) for _ in range(n)]
                quotients = [b / a for a, b in times]
                warm = quotients[1:] or quotients
                key = "authors" if who == "authors" else "ours"
                spent = sum(reports[key]["seconds"][phase] for phase in ("forget", "recover"))
                row = {
                    "what": f"{name}, batch {32 if who == 'authors' else batch_size}, {forget + recover} steps",
                    "against": who,
                    "first_s": round(first_s, 3),
                    "ours_s": statistics.median(a for a, _ in times),
                    "theirs_s": statistics.median(b for _, b in times),
                    "ratio": statistics.median(warm if who == "compiled" else quotients),
                    "ratio_range": [min(warm), max(warm)],
                    "ratio_cold": quotients[0],
                    "turns": n,
                    "stepped": reports[key]["stepped"],
                    "precision": reports[key]["precision"]["chosen"],
                    "seconds": reports[key]["seconds"],
                }
                if key == "ours":
                    row["share_of_bf16_peak"] = n_flops / spent / PEAK_BF16
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def flops_of_run(model: Any, batch_size: int, forget: int, recover: int, device: Any) -> float:
    """Of convolutions and matrix products, as PyTorch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    images = torch.randn(batch_size, 3, 32, 32, device=device)
    with FlopCounterMode(display=False) as forward:
        model(images)
    with FlopCounterMode(display=False) as both:
        model(images).sum().backward()
    model.zero_grad(set_to_none=True)
    return both.get_total_flops() * (forget + recover) + forward.get_total_flops() * recover


def time_cold(device: Any, quick: bool) -> dict[str, Any]:
    """200 steps of ResNet-18 in a new process, from ``import`` to the result, and again in the same process."""
    code = (
        f"import time; begin = time.perf_counter(); DEVICE = {str(device)!r}\n"
        "import torch, seamfast\n"
        "from benches.gpu_suite import made_data\n"
        f"name, recover, n = {('narrow_resnet18', 10, 300) if quick else ('resnet18', 185, 2500)}\n"
        "model = seamfast.attacks.build(name, num_classes=10, in_channels=3, image_size=32)\n"
        "fixed = {'forget_max_steps': 15, 'forget_until': 0.0, 'strengths': (1.0,)}\n"
        "config = seamfast.SeamConfig(recover_max_steps=recover, **fixed)\n"
        "clean = made_data(n, 2)\n"
        "times = []\n"
        "for _ in range(3):\n"
        "    seamfast.sanitize(model, clean, config=config, device=DEVICE, progress=False)\n"
        "    times.append(time.perf_counter() - begin); begin = time.perf_counter()\n"
        "print(*times)"
    )
    times = []
    for _ in range(1 if quick else 3):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return {"error": done.stderr[-1500:]}
        times.append([float(value) for value in done.stdout.split()])
    row = {
        "what": "sanitize, resnet18, 200 steps, from a new process",
        "cold_s": statistics.median(t[0] for t in times),
        "warm_s": statistics.median(t[2] for t in times),
        "turns": len(times),
    }
    print(json.dumps(row), flush=True)
    return row


def time_ntk(device: Any, quick: bool) -> list[dict[str, Any]]:
    """Forgetting by the kernel, see ``ntk_growth.py``; on a CPU with a small network."""
    from benches import ntk_growth

    sizes = [ntk_growth.Size("parameters"), ntk_growth.Size("resnet18", network="resnet18")]
    rows = []
    for size in [ntk_growth.Size("parameters", n=8, width=8)] if quick else sizes:
        rows.append(ntk_growth.row_of(size, 1 if quick else 5, device))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def time_fleet(device: Any, quick: bool) -> list[dict[str, Any]]:
    """Small models through ``seamfast.fleet``: one at a time on the GPU, then two and four, each with its share.

    On a CPU, by one worker and by two.
    """
    import tempfile

    import numpy as np
    import torch

    import seamfast
    from seamfast.models.folder import ModelDescription, save_model

    n_jobs = 2 if quick else 16
    data = made_data(600 if quick else 10_000, seed=0)
    rows: list[dict[str, Any]] = []
    short = {"forget_max_steps": 5, "recover_max_steps": 10, "recover_easy_steps": 5}
    settings: dict[str, Any] = {"config": short} if quick else {}
    with tempfile.TemporaryDirectory(prefix="fleet") as place:
        models, clean = Path(place, "models"), Path(place, "clean.npz")
        pixels = data.subset(range(len(data) // 5)).inputs.permute(0, 2, 3, 1).contiguous()
        np.savez(clean, images=pixels.numpy(), labels=data.labels[: len(pixels)].numpy())
        for number in range(n_jobs):
            torch.manual_seed(number)
            model = seamfast.attacks.build("small_cnn", num_classes=10, in_channels=3, image_size=32)
            training = seamfast.attacks.TrainConfig(epochs=5, batch_size=64)
            seamfast.attacks.train(model, data, training, device=device)
            save_model(models / f"m{number}", model, ModelDescription.of("small_cnn", data))
        for at_a_time in (1, 2) if device.type == "cpu" else (1, 2, 4):
            share = 0.0 if device.type == "cpu" else 1 / at_a_time
            out = Path(place, f"out-{at_a_time}")
            result = seamfast.fleet.run(
                models, out, data=str(clean), workers=at_a_time, gpus_per_job=share, progress=False, **settings
            )
            inside = [row["seconds"] for row in result.rows()]
            row = {"at_a_time": at_a_time, "gpus_per_job": share, "n_jobs": n_jobs, "outcomes": result.outcomes}
            row |= {"wall_s": round(result.seconds, 2), "job_s": round(sum(inside), 2), "stopped": result.stopped}
            rows.append(row | {"ratio_to_one": round(result.seconds / rows[0]["wall_s"], 3) if rows else 1.0})
            print("fleet", rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="where to write the JSON")
    parser.add_argument("--quick", action="store_true", help="small sizes, to test this script")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--only",
        choices=("loss", "pixels", "occlude", "evaluate", "cold", "engine", "sanitize", "ntk", "fleet"),
        help="time this part alone",
    )
    arguments = parser.parse_args()
    built = build()
    print("extension:", "built" if built["ok"] else f"not built\n{built['tail']}", flush=True)

    import torch

    from benches.rows import commit
    from seamfast.record import machine

    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device; --device cpu --quick tests this script", file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "commit": commit(),
        "machine": {**machine(), "cuda": torch.version.cuda},
        "quick": arguments.quick,
        "device": str(device),
        "extension": built,
        "tests": run_gpu_tests(),
        "verification": verify(device, arguments.quick),
    }
    out = Path(arguments.out) if arguments.out else ROOT / "benches" / "results" / _file_name(device, result["commit"])
    out.parent.mkdir(parents=True, exist_ok=True)
    bandwidth = copy_bandwidth(device, arguments.quick)
    result["copy_bytes_per_second"] = bandwidth
    # Written after each part: a lease that ends early leaves what came before.
    parts: dict[str, Callable[[], Any]] = {
        "loss": lambda: time_loss(device, arguments.quick, bandwidth),
        "pixels": lambda: time_pixels(device, arguments.quick, bandwidth),
        "occlude": lambda: time_occlude(device, arguments.quick, bandwidth),
        "evaluate": lambda: time_evaluate(device, arguments.quick),
        "cold": lambda: time_cold(device, arguments.quick),
        "engine": lambda: time_engine(device, arguments.quick),
        "sanitize": lambda: time_sanitize(device, arguments.quick),
        "ntk": lambda: time_ntk(device, arguments.quick),
        "fleet": lambda: time_fleet(device, arguments.quick),
    }
    for name, part in parts.items():
        out.write_text(json.dumps(result, indent=2) + "\n")
        if arguments.only in (None, name):
            result[name] = part()
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")
    ok = result["tests"]["ok"] and all(row["ok"] for row in result["verification"].values())
    print("all verified" if ok else "FAILED: see tests and verification")
    return 0 if ok else 1


def _file_name(device: Any, commit: str) -> str:
    import torch

    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return f"gpu-suite-{name.replace(' ', '-').lower()}-{commit}.json"


if __name__ == "__main__":
    sys.exit(main())
