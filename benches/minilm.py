"""MiniLM, a real pretrained encoder, as a classifier of texts, built from a folder of its weights.

The folder is that of all-MiniLM-L6-v2 as published (``config.json``, ``model.safetensors``, ``tokenizer.json``): BERT
of 6 layers, 384 wide, 22.7 M parameters. Nothing here downloads it, and no bench runs without being given it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def tokenizer_of(folder: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of a folder."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def classifier(folder: Path, num_classes: int, seed: int) -> nn.Module:
    """The encoder with a new linear head on its pooled first token, in eval mode.

    Args:
        folder: of the encoder, or of a classifier, whose head is kept.
        num_classes: of the head.
        seed: of a new head.
    """
    from transformers import BertForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # it says at length that the head is new
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model: nn.Module = BertForSequenceClassification.from_pretrained(folder, num_labels=num_classes)
    return model.eval()


def encoder(folder: Path) -> nn.Module:
    """The encoder with its pooler, whose ``pooler_output`` is its embedding, ``(N, 384)``; in eval mode."""
    from transformers import BertModel

    model: nn.Module = BertModel.from_pretrained(folder)
    return model.eval()


@torch.no_grad()
def first_token_vectors(folder: Path, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """``last_hidden_state[:, 0]`` of the frozen encoder, ``(N, 384)``.

    Args:
        folder: of the encoder.
        input_ids, attention_mask: ``(N, L)`` int64, padded on the right.
    """
    encoder = _encoder(folder)
    vectors = torch.empty(len(input_ids), encoder.config.hidden_size)
    lengths = attention_mask.sum(1)
    for chosen in lengths.argsort().split(64):
        width = int(lengths[chosen].max())
        output = encoder(input_ids[chosen, :width], attention_mask[chosen, :width])
        vectors[chosen] = output.last_hidden_state[:, 0]
    return vectors


@functools.cache
def _encoder(folder: Path) -> Any:
    from transformers import BertModel

    return BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
