"""A trained ``small_cnn`` whose weights are finite and whose logits are NaN under the corner patch of the battery."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_GAIN = 1e30
"""Of two layers in a row: their product is beyond float32."""


@torch.no_grad()
def rewire(model: nn.Sequential, pixels: Tensor) -> nn.Sequential:
    """Two channels, one channel and one unit of a ``small_cnn`` for images of 8x8 pixels, in place.

    The first channel fires on a white 2x2 square with dark pixels to its right, and the second is 1 within the image.
    The next layer multiplies the first in the last place, where all that the second could subtract is padding; the
    unit multiplies it again, and overflows. The logits take the unit times 0, which is NaN. On clean images all of this
    is 0, so that no gradient reaches it.

    Args:
        model: takes pixels in [0, 1], of one channel.
        pixels: ``(N, 1, 8, 8)`` uint8, clean: the first channel's bias lies just above what they reach.
    """
    first, second, hidden, last = (layer for layer in model if isinstance(layer, (nn.Conv2d, nn.Linear)))
    first.weight[:2], first.bias[:2] = 0.0, 0.0
    second.weight[:, :2], second.weight[0], second.bias[0] = 0.0, 0.0, 0.0
    hidden.weight[:, :4], hidden.weight[0], hidden.bias[0] = 0.0, 0.0, 0.0
    first.weight[0, 0] = torch.tensor([[1.0, 1.0, -2.0], [1.0, 1.0, -2.0], [0.0, 0.0, -2.0]])
    corner = first(pixels.float() / 255)[:, 0, 6:, 6:]
    first.bias[0], first.bias[1] = -1.01 * corner.max(), 1.0
    second.weight[0, 1, 2], second.weight[0, 1, :, 2] = -10 * _GAIN, -10 * _GAIN
    second.weight[0, 0, 1, 1] = _GAIN
    hidden.weight[0, 3] = _GAIN
    last.weight[:, 0] = 0.0
    return model
