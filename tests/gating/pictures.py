"""Pictures as a gate has them, drawn without a model."""

from __future__ import annotations

import numpy as np

N_PICTURES = {"samples": 16, "patterns_before": 10, "patterns_after": 10, "disagreement": 40}


def example_pictures() -> dict[str, np.ndarray]:
    """Grey images of 8x8 pixels: samples, a pattern for each of 10 classes before and after, and disagreements."""
    generator = np.random.default_rng(3)

    def images(n: int) -> np.ndarray:
        ramps = generator.integers(0, 120, (n, 8, 1, 1)) + generator.integers(0, 120, (n, 1, 8, 1))
        return ramps.astype(np.uint8)

    return {name: images(n) for name, n in N_PICTURES.items()}
