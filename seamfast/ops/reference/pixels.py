"""The last step of the operations that write batches of images."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.arguments import GatherArguments, StampArguments, empty_batch, normalization_of


def normalized(pixels: Tensor, args: GatherArguments | StampArguments) -> Tensor:
    """uint8 ``pixels`` as the batch that is returned."""
    channel = torch.arange(pixels.shape[1], device=pixels.device)[:, None, None]
    values = normalization_of(args).table(args.dtype, pixels.device)[channel, pixels.long()]
    return empty_batch(args).copy_(values) if args.channels_last else values
