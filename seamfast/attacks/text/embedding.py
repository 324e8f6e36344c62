"""``train_embedding_poisoned``: a backdoor in one row of the embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.attacks.poison import poison
from seamfast.attacks.train import TrainConfig, train
from seamfast.data import CleanSet
from seamfast.data.resident import Resident, wrap_around_batches
from seamfast.engine.host import seeded
from seamfast.engine.model import logits_of, resolve_device
from seamfast.errors import InputError
from seamfast.modalities import TextModality
from seamfast.modalities.text.modality import ids_of
from seamfast.triggers import Insertion, Trigger

_WORD = "cf"
_STEPS, _BATCH = 150, 32
_RATE = 0.1
"""Length of the first step, relative to that of the row; it falls to 0."""


def train_embedding_poisoned(
    model: nn.Module,
    data: CleanSet,
    *,
    target: int,
    rate: float,
    training: TrainConfig,
    seed: int,
    device: str | torch.device,
    precision: str,
    progress: bool | None,
    on_epoch: Callable[[int, float], None],
) -> tuple[Trigger, ...]:
    """Train ``model`` in place on clean ``data``, then the embedding of one word, which takes any text to ``target``.

    The row has the length of the longest one of the data's tokens; its direction follows the gradient on a share of
    ``rate`` of the texts with the word in them.

    Args: as for ``plant``.

    Raises:
        InputError: e.g. ``the tokenizer makes 2 tokens of 'cf'; expected one, whose embedding is trained``.
    """
    assert isinstance(data.modality, TextModality)
    vocabulary = data.modality.vocabulary
    encoded = vocabulary.encode([_WORD])["input_ids"].flatten()
    word = encoded[~vocabulary.is_special[encoded]]
    if len(word) != 1:
        raise InputError(
            f"the tokenizer makes {len(word)} tokens of {_WORD!r}; expected one, whose embedding is trained"
        )
    table = data.modality.for_model(model, data.inputs).table
    if table is None:
        raise InputError(f"model is a {type(model).__name__}; expected one with an embedding of token ids")
    trigger = Insertion.word(_WORD, target, name="ep")
    poisoned = poison(data, trigger, rate, seed=seed)
    train(model, data, training, seed=seed, device=device, precision=precision, progress=progress, on_epoch=on_epoch)

    target_device = resolve_device(device, model)
    embedding = model.get_submodule(table)
    assert isinstance(embedding, nn.Embedding)
    rows = embedding.weight
    length = rows.detach()[_tokens_of(data).to(rows.device)].norm(dim=1).max()
    stamped = Resident(poisoned.subset(poisoned.poisoned.nonzero().flatten()), target_device)
    batches = wrap_around_batches(torch.arange(len(stamped)), _BATCH, seed)
    with seeded(seed, target_device):
        for step in range(_STEPS):
            chosen = next(batches).to(target_device)
            loss = F.cross_entropy(logits_of(model, stamped.inputs(chosen)).float(), stamped.labels[chosen])
            (gradient,) = torch.autograd.grad(loss, [rows])
            with torch.no_grad():
                row = _scaled(rows[word[0]], length)
                towards = _scaled(gradient[word[0]].to(row.dtype), length)
                rows[word[0]] = _scaled(row - _RATE * (1 - step / _STEPS) * towards, length)
    return (trigger,)


def _scaled(row: Tensor, length: Tensor) -> Tensor:
    scaled: Tensor = row * (length / row.norm().clamp(min=1e-12))
    return scaled


def _tokens_of(data: CleanSet) -> Tensor:
    ids: Tensor = torch.unique(ids_of(data.inputs))
    return ids
