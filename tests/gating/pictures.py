"""Pictures as a gate has them, drawn without a model."""

from __future__ import annotations

import numpy as np


def example_pictures() -> dict[str, np.ndarray]:
    """Grey images of 8x8 pixels: samples, a pattern for each of 10 classes before and after, and parted samples."""
    generator = np.random.default_rng(3)

    def images(n: int) -> np.ndarray:
        ramps = generator.integers(0, 120, (n, 8, 1, 1)) + generator.integers(0, 120, (n, 1, 8, 1))
        return ramps.astype(np.uint8)

    return {"samples": images(16), "patterns_before": images(10), "patterns_after": images(10), "parted": images(40)}
