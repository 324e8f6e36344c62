"""The draws in ``golden/draws.json``: pinned, so that a recorded seed gives the same run in every version.

The file was written by ``python tests/ops/test_golden.py``, from the generator below: plain integers, without
seamfast. A change of a draw is a change of every recorded run; it needs a new major version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import labels_of
from conftest import Backend

from seamfast.ops import (
    TriggerTable,
    gather_augment,
    occlude,
    random_label_loss_and_count,
    random_labels,
    stamp_trigger,
)
from seamfast.ops.philox import philox4x32
from seamfast.triggers import Patch

FILE = Path(__file__).parent / "golden" / "draws.json"
PARTS = ("philox", "labels", "augment", "places", "occlude")
GOLDEN = {part: [] for part in PARTS} | (json.loads(FILE.read_text()) if FILE.exists() else {})


# ---- The generator, as in the paper: Salmon et al., SC 2011. ----


def generated(counter: list[int], key: list[int]) -> list[int]:
    c, k, mask = list(counter), list(key), 2**32 - 1
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & mask, a >> 32 ^ c[3] ^ k[1], a & mask]
        k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
    return c


def words(seed: int, sample: int, when: int, stream: int) -> list[int]:
    return generated([sample % 2**32, sample >> 32, when, stream], [seed % 2**32, seed >> 32])


def golden() -> dict[str, Any]:
    ids = [*range(6), 49_999, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**62 + 12345]
    seeds = [0, 1, 2**32 - 1, 2**63 + 5, 2**64 - 1]
    found: dict[str, Any] = {part: [] for part in PARTS}
    for n, seed in enumerate(seeds):
        counter = [n, 2**32 - 1 - n, 0x9E3779B9 * n % 2**32, n % 2]
        key = [seed % 2**32, seed >> 32]
        found["philox"].append({"counter": counter, "key": key, "words": generated(counter, key)})
    for classes, seed, step in ((2, 0, 0), (10, 1, 0), (10, 1, 1), (43, seeds[2], 7), (1000, seeds[3], 2**32 - 1)):
        labels = [(7 * i + seed) % classes for i in range(len(ids))]
        for exclude in (True, False):
            drawn = [words(seed, i, step, 2)[0] * (classes - exclude) >> 32 for i in ids]
            if exclude:
                drawn = [d + (d >= label) for d, label in zip(drawn, labels, strict=True)]
            case = {"classes": classes, "seed": seed, "step": step, "exclude_true": exclude, "ids": ids}
            found["labels"].append({**case, "labels": labels, "drawn": drawn})
    for pad, seed, epoch in ((4, 0, 0), (4, seeds[4], 9), (7, seeds[2], 2**32 - 1)):
        draws = [words(seed, i, epoch, 1) for i in range(12)]
        moved = [[w[0] * (2 * pad + 1) >> 32, w[1] * (2 * pad + 1) >> 32, w[2] >> 31] for w in draws]
        found["augment"].append({"pad": pad, "seed": seed, "epoch": epoch, "down_right_mirrored": moved})
    for free, seed in ((7, 0), (16, seeds[4])):
        draws = [words(seed, i, 0, 16) for i in ids]
        where = [[w[0] * free >> 32, w[1] * free >> 32] for w in draws]
        found["places"].append({"free": free, "seed": seed, "ids": ids, "top_left": where})
    for seed, step in ((0, 0), (seeds[3], 2**32 - 1)):
        drawn = [[rectangle(seed, i, step, number, len(ids)) for number in range(2)] for i in ids]
        found["occlude"].append({"seed": seed, "step": step, "ids": ids, "rectangles": drawn})
    return found


def rectangle(seed: int, sample: int, step: int, number: int, n: int) -> dict[str, Any]:
    """A rectangle over an image of 1x16x16, with sides up to 4."""
    lengths_and_places, kind, color = (words(seed, sample, step, 32 + 1024 * number + k) for k in range(3))
    spans = []
    for word, place in (lengths_and_places[:2], lengths_and_places[2:]):
        # 1 + floor(4 * u ** 1.5), u = word / 2 ** 32: one more for each k with u ** 3 >= (k / 4) ** 2.
        length = 1 + sum(16 * word**3 >= k**2 * 2**96 for k in (1, 2, 3, 4))
        begin = min(max((place * (16 + length - 1) >> 32) - (length - 1), 0), 16 - length)
        spans.append([begin, begin + length])
    noise = [word for block in range(2) for word in words(seed, sample, step, (number + 1) * 2**24 + block)]
    found: dict[str, Any] = {"rows": spans[0], "columns": spans[1], "kind": kind[0] >> 30}
    return found | {"other": kind[1] * n >> 32, "color": color[0], "noise": noise}


# ---- The draws of seamfast. ----


def test_the_file_is_what_the_generator_gives() -> None:
    assert golden() == GOLDEN


@pytest.mark.parametrize("case", GOLDEN["philox"])
def test_words(native: Any, case: dict[str, Any]) -> None:
    assert list(native.philox4x32(case["counter"], case["key"])) == case["words"]
    counter = tuple(torch.tensor([word]) for word in case["counter"])
    assert [int(word) for word in philox4x32(counter, tuple(case["key"]))] == case["words"]  # type: ignore[arg-type]


@pytest.mark.parametrize("case", GOLDEN["labels"])
def test_labels(backend: Backend, case: dict[str, Any]) -> None:
    settings = {name: case[name] for name in ("seed", "step", "exclude_true")}
    labels, ids = (torch.tensor(case[name], device=backend.device) for name in ("labels", "ids"))
    assert random_labels(labels, ids, num_classes=case["classes"], **settings).tolist() == case["drawn"]
    logits = torch.zeros(len(ids), case["classes"], device=backend.device, requires_grad=True)
    random_label_loss_and_count(logits, labels, ids, **settings, backend=backend.name).loss.backward()
    assert logits.grad is not None
    assert labels_of(logits.grad).tolist() == case["drawn"]


@pytest.mark.parametrize("case", GOLDEN["augment"])
def test_augmentation(backend: Backend, case: dict[str, Any]) -> None:
    if backend.name == "cuda":
        pytest.skip("gather_augment has no backend 'cuda'")
    size, pad = 16, case["pad"]
    one = torch.arange(size * size, dtype=torch.uint8).view(1, 1, size, size)  # each pixel holds its place
    data = one.expand(12, -1, -1, -1).contiguous().to(backend.device)
    indices = torch.arange(12, device=backend.device)
    got = gather_augment(
        data,
        indices,
        mean=0.0,
        std=1 / 255,
        pad=pad,
        flip=True,
        seed=case["seed"],
        epoch=case["epoch"],
        backend=backend.name,
    )
    for image, (down, right, mirrored) in zip(got.cpu().round(), case["down_right_mirrored"], strict=True):
        padded = torch.nn.functional.pad(one[0].float(), (pad,) * 4, mode="reflect")
        crop = padded[:, down : down + size, right : right + size]
        assert torch.equal(image, crop.flip(-1) if mirrored else crop)


@pytest.mark.parametrize("case", GOLDEN["places"])
def test_places(backend: Backend, case: dict[str, Any]) -> None:
    size, ids = case["free"] + 1, torch.tensor(case["ids"], device=backend.device)
    table = TriggerTable.of([Patch.square(size=2, corner="random")], (1, size, size), backend.device)
    got = stamp_trigger(
        torch.zeros(1, 1, size, size, dtype=torch.uint8, device=backend.device),
        torch.zeros(len(ids), dtype=torch.int64, device=backend.device),
        table,
        mean=0.0,
        std=1.0,
        sample_ids=ids,
        seed=case["seed"],
        backend=backend.name,
    )
    assert [image.nonzero()[0].tolist()[1:] for image in got.cpu()] == case["top_left"]


@pytest.mark.parametrize("case", GOLDEN["occlude"])
def test_pasted_rectangles(backend: Backend, case: dict[str, Any]) -> None:
    if backend.name == "cuda":
        pytest.skip("occlude has no backend 'cuda'")
    n = len(case["ids"])
    images = 2 + torch.arange(n * 256, dtype=torch.float32).view(n, 1, 16, 16)  # each pixel holds its image and place
    want, hidden = images.clone(), torch.zeros(images.shape, dtype=torch.bool)
    for i, rectangles in enumerate(case["rectangles"]):
        for one in rectangles:
            at = (i, 0, slice(*one["rows"]), slice(*one["columns"]))
            bits = [word >> shift & 1 for word in one["noise"] for shift in range(32)]
            color = torch.tensor(one["color"])
            fillings = (
                ((color >> 8) / 2**24).expand(16, 16),
                (color >> 31).expand(16, 16),
                torch.tensor(bits).view(16, 16),
                images[one["other"], 0],
            )
            want[at] = fillings[one["kind"]].float()[at[2:]]
            hidden[at] = True
    low, high, ids = (torch.tensor(v, device=backend.device) for v in ([0.0], [1.0], case["ids"]))
    settings: Any = {"n_rectangles": 2, "largest": 0.25, "seed": case["seed"], "step": case["step"]}
    got, neutral = occlude(images.to(backend.device), low, high, ids, **settings, backend=backend.name)
    assert torch.equal(got.cpu(), want)
    assert torch.equal((neutral.cpu() != images), hidden)


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden(), indent=1) + "\n")
