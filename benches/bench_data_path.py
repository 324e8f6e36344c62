"""``gather_augment``, ``stamp_trigger`` and ``occlude`` in C++ on one thread, against what they replace.

    python -m pytest benches/bench_data_path.py --benchmark-only

Baselines:
  memcpy       libc's, of as many bytes as the output has. Above 1, the kernel is faster than a copy of its output (it
               reads a quarter of the bytes, or half); below 1, its arithmetic and its new tensor cost more than that.
  loader       what most training code does: ``torch.utils.data.DataLoader``, 2 persistent workers, batch 128 (32 of the
               large ones), default collate, and torchvision's transforms image by image, as that library runs them on
               PIL images: RandomCrop(padding=4, padding_mode="reflect"), which pads in NumPy, RandomHorizontalFlip,
               ToTensor, Normalize. One epoch, after one that starts the workers. The workers have a core each, if there
               are so many; the kernel has one. Both give a new tensor for each batch, whose pages the operating system
               has to clear first: 19 MB of them at 224x224.
  lean loader  the same without PIL: NumPy pads, tensors do the rest.
  tensor ops   the stamping chain in eager PyTorch on the whole batch: ``images[indices]``, the trigger's formula, then
               ``.float()``, ``/ 255``, ``- mean``, ``/ std`` (in place after the first). Fractions in float32, as such
               code does; ours is float64, so a few ties may fall apart by one level ("match" allows one level).
               And the pasting of patterns on the whole batch: ``benches/baselines/occlude.py``, which draws less (one
               field of noise and one other image for all rectangles), and draws otherwise: "match" is with the op's
               reference.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benches.baselines.occlude import occlude as occlude_by_tensors
from seamfast.ops import TriggerTable, cpp, gather_augment, occlude, stamp_trigger
from seamfast.triggers import Additive, Blend, ColorFilter, Patch, Sinusoid, Trigger, Warp

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PAD = 4

pytestmark = pytest.mark.skipif(cpp.why_unavailable() is not None, reason="seamfast._native is not built")


def images(count: int, size: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def drawn(count: int, batch: int) -> Tensor:
    return torch.randint(0, count, (batch,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("size", "batch", "dtype", "channels_last", "augment"),
    [
        (32, 128, torch.float32, False, True),  # CIFAR, the batch of a training step
        (32, 128, torch.float32, False, False),  # the same for evaluation
        (32, 128, torch.bfloat16, True, True),  # what a CPU with bfloat16 trains fastest on
        (224, 32, torch.float32, False, True),  # ImageNet
    ],
)
def test_gather_against_memcpy(
    race: Any, size: int, batch: int, dtype: torch.dtype, channels_last: bool, augment: bool
) -> None:
    data = images(8 * batch if size == 32 else 128, size)
    indices = drawn(len(data), batch)
    arguments: dict[str, Any] = {"mean": MEAN, "std": STD, "dtype": dtype, "channels_last": channels_last, "threads": 1}
    if augment:
        arguments |= {"pad": PAD, "flip": True}

    def ours() -> Tensor:
        return gather_augment(data, indices, **arguments, backend="cpp")

    out, other = ours(), ours()
    n_bytes = out.numel() * out.element_size()
    match = torch.equal(out, gather_augment(data, indices, **arguments, backend="reference"))
    name = f"gather {size}x{size} x{batch} {str(dtype)[6:]}{' crop flip' if augment else ''}"
    row = race(
        name,
        ours,
        "memcpy of the output",
        lambda: ctypes.memmove(other.data_ptr(), out.data_ptr(), n_bytes),
        match=match,
        target=0.4,
    )
    row["images_per_second"] = batch / (row["ours_us"] / 1e6)
    row["output_gb_per_second"] = n_bytes / row["ours_us"] / 1e3


class TorchvisionStyle(Dataset[Tensor]):
    """One image at a time, as torchvision's transforms do it on PIL images."""

    def __init__(self, data: Tensor) -> None:
        self.data = data.permute(0, 2, 3, 1).contiguous().numpy()
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.fromarray(self.data[index])
        padded = Image.fromarray(np.pad(np.asarray(image), ((PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect"))
        down, right = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
        image = padded.crop((right, down, right + image.width, down + image.height))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(self.mean).div_(self.std)


class Lean(TorchvisionStyle):
    """The same without PIL."""

    def __getitem__(self, index: int) -> Tensor:
        pixels = self.data[index]
        size = pixels.shape[0]
        padded = np.pad(pixels, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect")
        down, right = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
        image = torch.from_numpy(padded[down : down + size, right : right + size])
        if torch.rand(()) < 0.5:
            image = image.flip(1)
        return (image.permute(2, 0, 1).float() / 255 - self.mean) / self.std


@pytest.mark.parametrize(
    ("size", "dataset", "target"),
    [(32, TorchvisionStyle, 20), (32, Lean, None), (224, TorchvisionStyle, 10), (224, Lean, None)],
)
def test_gather_against_a_loader(race: Any, size: int, dataset: type[TorchvisionStyle], target: float | None) -> None:
    data, batch = (images(2048, 32), 128) if size == 32 else (images(256, 224), 32)
    order = torch.arange(len(data)).split(batch)

    def ours() -> None:
        for indices in order:
            gather_augment(data, indices, mean=MEAN, std=STD, pad=PAD, flip=True, threads=1, backend="cpp")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
        loader = DataLoader(
            dataset(data),
            batch_size=batch,
            num_workers=2,
            persistent_workers=True,
            worker_init_fn=lambda _: torch.set_num_threads(1),
        )

        def epoch() -> int:
            return sum(len(images_) for images_ in loader)

        epoch()  # starts the workers
        name = f"gather {size}x{size} x{len(data)} crop flip, new memory"
        against = "loader, 2 workers, torchvision style" if dataset is TorchvisionStyle else "lean loader, 2 workers"
        race(name, ours, against, epoch, match=epoch() == len(data), target=target, turns=5, turn_seconds=0.01)


def chain(trigger: Trigger, size: int) -> Callable[[Tensor], Tensor]:
    """The trigger's formula on a batch of uint8 images, as one writes it in PyTorch: float pixels come out."""
    if isinstance(trigger, Patch):
        pattern = torch.tensor(trigger.pattern)
        edge = pattern.shape[-1]

        def patch(x: Tensor) -> Tensor:
            x[:, :, size - 1 - edge : size - 1, size - 1 - edge : size - 1] = pattern
            return x.float()

        return patch
    if isinstance(trigger, Blend):
        mixed = trigger.alpha * torch.tensor(trigger.pattern).float()
        return lambda x: x.float().mul_(1 - trigger.alpha).add_(mixed).floor_()
    if isinstance(trigger, Sinusoid):
        wave = trigger.delta * torch.sin(2 * torch.pi * torch.arange(size) * trigger.frequency / size)
        return lambda x: x.float().add_(wave).clamp_(0, 255).floor_()
    if isinstance(trigger, Additive):
        by = torch.tensor(trigger.perturbation).float()
        return lambda x: x.float().add_(by).clamp_(0, 255)
    if isinstance(trigger, Warp):
        at = torch.tensor(trigger.flow) + torch.stack(
            torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), -1
        )
        grid = (at.flip(-1) / (size - 1) * 2 - 1)[None]

        def warp(x: Tensor) -> Tensor:
            grids = grid.expand(len(x), -1, -1, -1)
            warped = torch.nn.functional.grid_sample(x.float(), grids, padding_mode="border", align_corners=True)
            return warped.round_().clamp_(0, 255)

        return warp
    assert isinstance(trigger, ColorFilter)
    matrix, bias = torch.tensor(trigger.matrix).float(), torch.tensor(trigger.bias).float()

    def color_filter(x: Tensor) -> Tensor:
        toned = (x.float().div_(255).pow_(trigger.gamma).sub_(0.5)).mul_(trigger.contrast).add_(0.5)
        mixed = torch.einsum("ij,njhw->nihw", matrix, toned).add_(bias[:, None, None])
        return mixed.mul_(255).round_().clamp_(0, 255)

    return color_filter


@pytest.mark.parametrize(("size", "batch"), [(32, 512), (224, 32)])
@pytest.mark.parametrize("kind", ["patch", "blend", "sinusoid", "low frequency", "warp", "filter"])
def test_stamp_against_tensor_ops(race: Any, kind: str, size: int, batch: int) -> None:
    shape = (3, size, size)
    trigger: Trigger = {
        "patch": lambda: Patch.square(size=max(3, size // 10)),
        "blend": lambda: Blend.noise(shape, 0.2),
        "sinusoid": lambda: Sinusoid.of(20, 6),
        "low frequency": lambda: Additive.low_frequency(shape, 12),
        "warp": lambda: Warp.elastic(shape),
        "filter": lambda: ColorFilter.nashville(3),
    }[kind]()
    data = images(2 * batch, size)
    indices = drawn(len(data), batch)
    table = TriggerTable.of([trigger], shape)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    stamp = chain(trigger, size)

    def ours() -> Tensor:
        return stamp_trigger(data, indices, table, mean=MEAN, std=STD, threads=1, backend="cpp")

    def tensor_ops() -> Tensor:
        return stamp(data[indices]).div_(255).sub_(mean).div_(std)

    level = 1.001 / 255 / min(STD)
    apart = (ours() - tensor_ops()).abs()
    match = bool(apart.max() < level) and float((apart > level / 10).float().mean()) < 0.02
    race(f"stamp {kind} {size}x{size} x{batch}", ours, "tensor ops", tensor_ops, match=match, target=3, turns=11)


@pytest.mark.parametrize(("channels", "size", "batch"), [(3, 32, 128), (1, 28, 128), (3, 224, 32)])
def test_occlude_against_tensor_ops(race: Any, channels: int, size: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(2)
    data = torch.rand(batch, channels, size, size, generator=generator)
    lowest, highest, ids = torch.zeros(channels), torch.ones(channels), torch.arange(batch)
    ends = (lowest.view(1, -1, 1, 1), highest.view(1, -1, 1, 1))

    def ours(backend: str = "cpp") -> tuple[Tensor, Tensor]:
        return occlude(data, lowest, highest, ids, seed=3, step=5, threads=1, backend=backend)

    def tensor_ops() -> tuple[Tensor, Tensor]:
        return occlude_by_tensors(data, *ends, generator)

    match = all(map(torch.equal, ours(), ours("reference")))
    race(f"occlude {channels}x{size}x{size} x{batch}", ours, "tensor ops", tensor_ops, match=match, target=3, turns=11)
