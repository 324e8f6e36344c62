"""seamfast as a mitigation for NIST's TrojAI mitigation round for image classifiers.

The round's framework expects a class that takes a model and a dataset of examples and returns weights:

    class Seamfast(TrojAIMitigation):
        def mitigate_model(self, model, dataset):
            return TrojAIMitigatedModel(trojai_mitigation.mitigate_model(model, dataset, device=self.device))

Later revisions of the framework wrap the module in place of its weights: load them into ``model`` then, and wrap that.

The round's models are pickles of whole modules, and its own code loads them, which runs any code in them. The gate does
not check them: use a container without network and secrets.

Source: https://github.com/usnistgov/trojai-example (``trojai_mitigation_round``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

import seamfast


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """The round's samples as ``(image, label)``, from ``(image, label, file name)`` with a label that is a number, a
    mapping with ``clean_label``, or -1 where the labels were not read."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label, *_ = self._samples[index]
        if isinstance(label, Mapping):
            label = label["clean_label"]
        if label is None or label < 0:
            raise ValueError(
                f"sample {index} has the label {label}; expected its class: read it with require_label=True"
            )
        return image, int(label)


def mitigate_model(model: nn.Module, dataset: Any, **options: Any) -> dict[str, Tensor]:
    """``seamfast.sanitize(model, dataset).model.state_dict()``; if not accepted, a warning and the weights as received.

    Args:
        model: returns logits; it is read, never written.
        dataset: map-style, of images in the form that the model takes, ``(C, H, W)``, with their labels.
        options: of ``seamfast.sanitize``: ``device``, ``seed``, ``time_budget_s`` and so on.

    Returns:
        A state dict that ``model`` takes.

    Raises:
        ValueError: e.g. ``sample 3 has the label -1; expected its class: read it with require_label=True``.
    """
    result = seamfast.sanitize(model, LabelledImages(dataset), **options)
    if result.accepted:
        return result.model.state_dict()
    # The round expects weights in any case; the warning marks them as not sanitized.
    warnings.warn(f"not accepted, so these are the weights as received: {result.reason}", RuntimeWarning, stacklevel=2)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
