"""``resized``: images in another size, gray ones as color."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seamfast import CleanSet
from seamfast.data.resizing import resized
from seamfast.errors import DataFileError, InputError

IMAGES = torch.randint(0, 256, (300, 1, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
DATA = CleanSet(IMAGES, torch.arange(300) % 3, mean=0.5, std=0.25, num_classes=3, class_names=("a", "b", "c"))


def test_images_are_resized_and_the_rest_stays() -> None:
    found = resized(DATA, (12, 5), max_bytes=1 << 20, where="data")
    wanted = F.interpolate(IMAGES, size=(12, 5), mode="bilinear", antialias=True)
    assert torch.equal(found.inputs, wanted)  # type: ignore[arg-type]
    assert torch.equal(found.labels, DATA.labels)
    assert (found.mean, found.std, found.num_classes, found.class_names) == ((0.5,), (0.25,), 3, ("a", "b", "c"))


def test_gray_becomes_color_where_three_channels_are_wanted() -> None:
    found = resized(DATA, (6, 8), channels=3, max_bytes=1 << 20, where="data")
    assert torch.equal(found.inputs, IMAGES.expand(-1, 3, -1, -1))  # type: ignore[arg-type]


def test_same_size_is_the_same_set() -> None:
    assert resized(DATA, (6, 8), max_bytes=1, where="data") is DATA


def test_what_cannot_be_resized_is_refused() -> None:
    with pytest.raises(DataFileError, match=r"^data: would take 30,000 bytes; the limit is max_bytes=29,999$"):
        resized(DATA, (10, 10), max_bytes=29_999, where="data")
    rows = CleanSet(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(InputError, match=r"^data: holds no images of pixels; expected such, to resize them$"):
        resized(rows, (10, 10), max_bytes=1 << 20, where="data")
