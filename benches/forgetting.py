"""What the forgetting step does: ACC and ASR on held-out data against how far the weights have moved.

    python benches/forgetting.py [--out docs/forgetting.svg]

One planted model of each small architecture and data set of the zoo (``zoo.py`` plants them), 5 % clean data, the
defaults but for the end of forgetting, which is put off. How far: the sum of the learning rates, which ``RelativeAdam``
counts in shares of each tensor's size; on a logarithmic axis, as rates grow from step to step. The mark is the radius.
Triggers are only measured here. A minute on one core.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches.rows import as_svg  # noqa: E402
from benches.zoo import DATA_ROOT, ZOO, Entry, clean_part, is_planted, load, read  # noqa: E402
from seamfast import SeamConfig  # noqa: E402
from seamfast.methods.forgetting import radius_of  # noqa: E402
from seamfast.plot import _BLUE, _VERMILION  # noqa: E402
from seamfast.report import write_atomically  # noqa: E402

MODELS = (
    Entry("mnist", "small_cnn", "blended"),
    Entry("fashion-mnist", "small_cnn", "blended"),
    Entry("gtsrb", "small_vgg", "badnets"),
    Entry("cifar10", "small_vgg", "blended"),
    Entry("cifar10", "narrow_resnet18", "badnets"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "forgetting.svg")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="of the data sets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    curves = [(e, *curve(e, arguments.zoo, arguments.root)) for e in MODELS if is_planted(e, arguments.zoo)]
    if not curves:
        print(f"none of the models is planted in {arguments.zoo}; zoo.py plants them", file=sys.stderr)
        return 1
    for entry, moved, accuracy, _, radius in curves:
        print(f"{entry.name}: ACC {accuracy[0]:.3f} to {accuracy[-1]:.3f} at {moved[-1]:.2f}, radius {radius:.3f}")
    draw(curves, arguments.out)
    return 0


def curve(entry: Entry, zoo: Path, root: Path) -> tuple[list[float], list[float], list[float], float]:
    """How far the weights had moved; ACC and ASR then; and the radius."""
    model, backdoor = load(entry, zoo)
    assert backdoor is not None
    clean = clean_part(entry.data, read(entry.data, root, "train"), 0.05, 0)
    config = SeamConfig(forget_until=1e-9, forget_max_steps=27, recover_max_steps=1)
    triggers = list(backdoor.triggers)
    result = seamfast.sanitize(model, clean, config=config, triggers=triggers, threads=1, progress=False)
    points = [point for point in result.history if point.phase == "forget"]
    moved = list(itertools.accumulate(map(config.forget_rate_at, range(len(points)))))
    accuracy = [point.holdout_accuracy for point in points]
    success = [max(point.attack_success_rate.values()) for point in points]
    received = result.report["holdout"]["before"]["clean_accuracy"]["value"]
    path = [(0.0, received), *zip(moved, accuracy, strict=True)]
    return moved, accuracy, success, radius_of(path, (received + 1 / (clean.num_classes or 10)) / 2)


def draw(curves: list[tuple[Entry, list[float], list[float], list[float], float]], path: Path) -> None:
    def panels(figure: Any) -> None:
        axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for axis, (entry, moved, accuracy, success, radius) in zip(axes, curves, strict=True):
            axis.plot(moved, accuracy, color=_BLUE, label="ACC")
            axis.plot(moved, success, color=_VERMILION, linestyle="--", label="ASR")
            axis.axvline(radius, color="0.5", linewidth=1, linestyle=":")
            axis.annotate(f"radius {radius:.2f}", (radius, 0.02), xytext=(3, 0), textcoords="offset points", fontsize=8)
            axis.set(xscale="log", ylim=(0, 1.02))
            axis.set_title(f"{entry.data}, {entry.architecture},\n{entry.attack}", fontsize=8)
        axes[0].legend(frameon=False, fontsize=8)
        figure.supxlabel("how far the weights have moved, as a share of their size", fontsize=9)

    write_atomically(path, as_svg(panels, (2.3 * len(curves), 2.6), "forgetting"))


if __name__ == "__main__":
    sys.exit(main())
