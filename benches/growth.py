"""How the cost of a run grows: with the number of clean samples, the image side, the classes, the width of the model.

    python benches/growth.py [--device cpu] [--out benches/results/growth.jsonl]
    python benches/growth.py --plot docs/growth.svg

One of the four is swept at a time, the others stay at the base point: 1,000 random images of 3x32x32 in 10 classes, an
untrained ResNet-18 of 16 channels, batch 128. Each point is one ``sanitize`` with its defaults but for the number of
steps, of which the median counts, after the first; so random data are as good as any. It is in plain float32, so that
points differ in nothing else. What is timed, in that run but for the probe:

  step      one of recovery: batch, patterns, disturbances, the teacher's forward pass, the student's both passes,
            the update
  forget    one of forgetting
  copy      the working copy, and the teacher's
  split     the clean data into its parts, and to where the run reaches them
  probe     of precision and layout, by itself (its answer is kept for later runs of such a model in the process)
  evaluate  all of the held-out fifth, once: the mean of before and after
  report    the report, the digests of the weights before and after in it

On a CPU, seconds of CPU time of the one thread, which other load on the machine disturbs little; on CUDA, wall clock.
Rows that the output holds already are not measured again; delete it to begin anew. The whole takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches.rows import append_row, as_svg, commit, read_rows  # noqa: E402
from seamfast import CleanSet, SeamConfig  # noqa: E402
from seamfast.engine.precision import _chosen, choose_precision  # noqa: E402
from seamfast.models.architectures import ResNet18  # noqa: E402
from seamfast.record import machine  # noqa: E402

OUT = ROOT / "benches" / "results" / "growth.jsonl"
BASE = {"n": 1000, "side": 32, "classes": 10, "width": 16}
SWEEPS = {
    "n": (250, 1000, 4000, 16_000),
    "side": (16, 24, 32, 48, 64),
    "classes": (2, 10, 100, 1000),
    "width": (4, 8, 16, 32, 64),
}
BATCH = 128
LINES = ("step", "evaluate", "probe", "copy", "split", "report")

# What of the package does each part, by the name under which the run looks it up.
PARTS = {
    "copy": ("seamfast.sanitize:WorkingCopy", "seamfast.engine.model:WorkingCopy.frozen_received"),
    "split": ("seamfast.sanitize:split_by_class", "seamfast.sanitize:Resident"),
    "evaluate": ("seamfast.engine.run:count_clean",),
    "report": ("seamfast.record:RunRecord.report", "seamfast.sanitize:digest"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4, help="of each phase; the first does not count")
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=SWEEPS)
    parser.add_argument("--largest", type=int, default=10**9, help="leave out what is swept to more than this")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw the rows of the output, and measure nothing")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps is below 2; the first does not count")
    rows = read_rows(arguments.out)
    if arguments.plot:
        draw(rows, arguments.device, arguments.plot)
        return 0
    torch.set_num_threads(1)
    points = {
        tuple({**BASE, name: value}.items()): None
        for name in arguments.sweeps
        for value in SWEEPS[name]
        if value <= arguments.largest
    }
    done = {(row["device"], *(row[name] for name in BASE)) for row in rows}
    todo = [dict(point) for point in points if (arguments.device, *dict(point).values()) not in done]
    if todo:
        seamfast.warmup(device=arguments.device)
    for point in todo:
        row = {**point, "device": arguments.device, **measured(arguments.device, arguments.steps, **point)}
        print(json.dumps(row), flush=True)
        append_row(arguments.out, row | {"machine": machine(), "commit": commit()})
    return 0


def measured(device: str, steps: int, *, n: int, side: int, classes: int, width: int) -> dict[str, Any]:
    """One run, and what its parts took."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    # Five samples of each label at least, of which a fifth is one: of 1,000 classes, only some have samples.
    data = CleanSet(images, torch.arange(n) % min(classes, n // 5))
    torch.manual_seed(0)
    model = ResNet18(classes, width=width)
    config = SeamConfig(
        batch_size=BATCH,
        forget_growth=1.0,  # which grows to no more than a million, and so limits the steps
        forget_max_steps=steps,
        forget_eval_every=steps,
        forget_until=0.0,
        recover_max_steps=steps,
        recover_eval_every=steps,
        strengths=(1.0,),
    )
    clock = Clock(device)
    watch = Watch(clock)
    with clock.on(PARTS) as parts:
        begin = clock.now()
        result = seamfast.sanitize(
            model, data, config=config, device=device, precision="fp32", callbacks=[watch], progress=False
        )
        total = clock.now() - begin
    run = result.report["run"]
    if run["steps"] != {"forget": steps, "recover": steps}:
        raise RuntimeError(f"the run took {run['steps']} steps; expected {steps} of each phase: {run['stopped']}")
    seconds = {name: sum(values) for name, values in parts.items()}
    seconds["evaluate"] = statistics.mean((parts["evaluate"][0], parts["evaluate"][-1]))  # the others count a slice
    _chosen.clear()
    batch, labels, model = (value.to(device) for value in (images[:BATCH].float() / 255, data.labels[:BATCH], model))
    begin = clock.now()
    choose_precision(model, batch, labels, "auto", classes)
    seconds |= {
        "probe": clock.now() - begin,
        "step": statistics.median(watch.seconds["recover"][1:]),
        "forget": statistics.median(watch.seconds["forget"][1:]),
        "total": total,
    }
    return {
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
    }


class Clock:
    """CPU time of the process on a CPU; on CUDA the time of day, all queued work done."""

    def __init__(self, device: str) -> None:
        self._on_cuda = torch.device(device).type == "cuda"

    def now(self) -> float:
        if self._on_cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    @contextmanager
    def on(self, parts: dict[str, tuple[str, ...]]) -> Iterator[dict[str, list[float]]]:
        """Seconds of each call, by part, of the functions named ``module:attribute``."""
        found: dict[str, list[float]] = {name: [] for name in parts}
        with ExitStack() as stack:
            for name, places in parts.items():
                for place in places:
                    module, path = place.split(":")
                    *outer, attribute = path.split(".")
                    owner: Any = sys.modules[module]  # not by attribute: seamfast.sanitize is a function, too
                    for step in outer:
                        owner = getattr(owner, step)
                    timed = self._timed(getattr(owner, attribute), found[name])
                    stack.enter_context(mock.patch.object(owner, attribute, timed))
            yield found

    def _timed(self, function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begin = self.now()
            result = function(*arguments, **options)
            seconds.append(self.now() - begin)
            return result

        return timed


class Watch(seamfast.Callback):
    """Seconds of each step, by phase."""

    def __init__(self, clock: Clock) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._clock = clock
        self._begin = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin = self._clock.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.setdefault(state.phase, []).append(self._clock.now() - self._begin)


def draw(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    """Four panels, one a sweep, both axes logarithmic: two lines of one slope grow alike."""
    from seamfast.plot import _BLUE, _LINES
    from seamfast.report import write_atomically

    about = {"n": "clean samples", "side": "image side, px", "classes": "classes", "width": "parameters"}

    def panels(figure: Any) -> None:
        axes = figure.subplots(2, 2, sharey=True).ravel()
        for axis, name in zip(axes, SWEEPS, strict=True):
            swept = sorted(
                (
                    row
                    for row in rows
                    if row["device"] == device and all(row[k] == v for k, v in BASE.items() if k != name)
                ),
                key=lambda row: row[name],
            )
            places = [row["n_parameters"] if name == "width" else row[name] for row in swept]
            for line, color, mark in zip(LINES, (_BLUE, *_LINES), "os^Dv*", strict=False):
                values = [1e3 * row["seconds"][line] for row in swept]
                axis.plot(places, values, f"{mark}-", color=color, ms=4, lw=1.5, label=line)
            axis.set(xscale="log", yscale="log", xlabel=about[name])
            axis.set_xticks(places, [f"{x / 1e6:.2g}M" if name == "width" else f"{x:,}" for x in places])
            axis.set_xticks([], minor=True)
            axis.grid(color="0.9", lw=0.6)
            axis.set_axisbelow(True)
        for axis in axes[::2]:
            axis.set_ylabel("ms")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(LINES), fontsize=9, frameon=False)

    write_atomically(path, as_svg(panels, (9, 6.4), "growth"))


if __name__ == "__main__":
    sys.exit(main())
