"""What the kernel's figures cost, as samples, classes and parameters grow; resumable.

    python benches/ntk_growth.py [--only images classes parameters resnet18]
    python benches/ntk_growth.py --report

A row of ``--out`` is one call of ``seamfast.audits.ntk.forgetting``: all four schemes of labels, one draw, as many
probes as training samples, the defaults. Networks have random weights and images are noise of 3x32x32 pixels, but for
``trained``, with a few epochs on made images. Cost depends on sizes, and on how many products the eigenvalues ask for,
which the row says; trained networks ask for two to five times as many. ``cnn`` is four convolutions of w, w, 2w and 2w
channels and a hidden layer of 16w. ``seconds_a_product`` is the median of ten products of the kernel with a vector,
each with the checks of a call of its own. One thread; seconds are medians of ``--repeats`` calls. ``--report`` draws
``ntk-growth.svg`` into ``--docs`` and prints the rows as a table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benches.gpu_suite import made_data  # noqa: E402
from benches.rows import Row, append_row, as_svg, commit, read_rows  # noqa: E402
from benches.study_report import table  # noqa: E402
from seamfast import CleanSet, attacks  # noqa: E402
from seamfast.audits import ntk  # noqa: E402
from seamfast.plot import _BLUE, _VERMILION  # noqa: E402
from seamfast.record import machine  # noqa: E402
from seamfast.report import write_atomically  # noqa: E402

OUT = ROOT / "benches" / "results" / "ntk_growth.jsonl"


@dataclass(frozen=True)
class Size:
    """One row to be: of ``kind``, with ``n`` training samples, ``classes`` and, of ``cnn``, ``width``.

    ``epochs`` of training come before, on 4,000 images of smooth templates with noise.
    """

    kind: str
    n: int = 64
    classes: int = 10
    width: int = 32
    network: str = "cnn"
    epochs: int = 0


SIZES = (
    *(Size("images", n=n) for n in (16, 32, 64, 128)),
    *(Size("classes", classes=classes) for classes in (5, 10, 20, 43)),
    *(Size("parameters", width=width) for width in (8, 16, 32, 64)),
    Size("trained", width=22, epochs=3),
    Size("resnet18", n=16, network="resnet18"),
)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = list(dict.fromkeys(size.kind for size in SIZES))
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="measure nothing; a figure and a table of the rows")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the figure goes")
    arguments = parser.parse_args(given)
    rows = read_rows(arguments.out)
    if arguments.report:
        report(rows, arguments.docs)
        return 0
    torch.set_num_threads(1)
    done = [{name: row[name] for name in asdict(SIZES[0])} for row in rows]
    for size in SIZES:
        if size.kind in arguments.only and asdict(size) not in done:
            row = row_of(size, arguments.repeats, torch.device("cpu"))
            append_row(arguments.out, row)
            print(f"{size}: {row['seconds']:.1f} s, {row['n_products']} products", file=sys.stderr, flush=True)
    return 0


def row_of(size: Size, repeats: int, device: torch.device) -> Row:
    """Time one size; results are on the CPU, so nothing is left to be computed when a clock stops."""
    model = network(size).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 * size.n, 3, 32, 32, generator=generator)
    train = CleanSet(images[: size.n], torch.arange(size.n) % size.classes, num_classes=size.classes)
    probes: Any = images[size.n :]
    if size.epochs:
        attacks.train(model, made_data(4000, 1), attacks.TrainConfig(epochs=size.epochs, rate=0.02), progress=False)
        some = made_data(2 * size.n, 2)
        train, probes = some.subset(range(size.n)), some.subset(range(size.n, 2 * size.n))
    vector = torch.randn(size.n, size.classes, generator=generator)
    n_products = 10 if size.network == "cnn" else 3
    products = [timed(lambda: ntk.ntk_vector_product(model, train, vector).cpu())[0] for _ in range(n_products)]
    calls = [timed(lambda: ntk.forgetting(model, train, probes, progress=False)) for _ in range(repeats)]
    found = calls[0][1]
    row: Row = asdict(size) | {"n_parameters": sum(p.numel() for p in model.parameters())}
    row |= {"seconds": round(statistics.median(seconds for seconds, _ in calls), 3), "repeats": repeats}
    row |= {"slowest": round(max(seconds for seconds, _ in calls), 3)}
    row |= {"seconds_a_product": round(statistics.median(products), 4), "n_products": found.n_products}
    return row | {"residual": found.residual, "machine": machine(), "commit": commit()}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def network(size: Size) -> nn.Module:
    """With random weights, in eval mode."""
    torch.manual_seed(0)
    if size.network == "resnet18":
        return attacks.build("resnet18", num_classes=size.classes, in_channels=3, image_size=32).eval()
    w = size.width
    blocks: list[nn.Module] = []
    for inputs, outputs in ((3, w), (w, 2 * w)):
        blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        blocks += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    hidden = [nn.Flatten(), nn.Linear(2 * w * 64, 16 * w), nn.ReLU(), nn.Linear(16 * w, size.classes)]
    return nn.Sequential(*blocks, *hidden).eval()


def report(rows: list[Row], docs: Path) -> None:
    """The figure, and the rows as a table on stdout."""
    heads = ["what grows", "network", "parameters", "samples", "classes", "products", "s a product", "s", "slowest"]
    lines = []
    for row in rows:
        sizes = [f"{row['n_parameters']:,}", f"{row['n']} + {row['n']}", str(row["classes"]), str(row["n_products"])]
        seconds = [f"{row['seconds_a_product']:.2f}", f"{row['seconds']:.1f}", f"{row['slowest']:.1f}"]
        lines.append([row["kind"], row["network"], *sizes, *seconds])
    print(table(heads, lines), end="")
    axes_of = {"images": "n", "classes": "classes", "parameters": "n_parameters"}

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(axes_of), sharey=True)
        for axis, (kind, name) in zip(axes, axes_of.items(), strict=True):
            some = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row[name])
            values = [row[name] for row in some]
            axis.plot(values, [row["seconds"] for row in some], color=_BLUE, marker="o", label="four schemes")
            axis.plot(
                values, [row["seconds_a_product"] for row in some], color=_VERMILION, marker="s", label="a product"
            )
            axis.set(xscale="log", yscale="log", xlabel={"n_parameters": "parameters", "n": "samples"}.get(name, name))
            axis.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
            axis.minorticks_off()
        axes[0].set_ylabel("seconds")
        axes[0].legend(frameon=False, fontsize=8)

    if rows:
        write_atomically(docs / "ntk-growth.svg", as_svg(draw, (9.0, 3.0), "ntk-growth"))


if __name__ == "__main__":
    sys.exit(main())
