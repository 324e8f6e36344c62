"""Small classifiers of each kind of layer in float64, samples for them, and their whole Jacobians by ``torch.func``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

CLASSES = 3
N = 5


class Residual(nn.Module):
    """A convolution, a block of two with a shortcut, batch normalization after each, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, CLASSES)
        for norm in (self.norm, self.block[1]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images)).relu()
        logits: Tensor = self.head(self.drop((x + self.block(x)).mean((2, 3))))
        return logits


class Attention(nn.Module):
    """A ``TransformerEncoder`` over embeddings; in eval mode torch has a fast path for it, which has no derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        logits: Tensor = self.head(x[:, 0])
        return logits


class Recurrent(nn.Module):
    """A GRU in both directions over embeddings, with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = nn.GRU(6, 5, num_layers=2, batch_first=True, bidirectional=True, dropout=0.5)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(self.embed(input_ids))[0][:, -1])
        return logits


class InPlace(nn.Module):
    """Adds its first layer to a tensor of its own, in place, which no parameter moves before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(CLASSES, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        sums = torch.cat([x, x[:, :1]], 1)
        for part in (x, x.flip(1)):
            sums.add_(self.first(part))
        logits: Tensor = self.head(sums.tanh())
        return logits


class Tied(nn.Module):
    """One matrix, by two names, before and after a nonlinearity; two biases of one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(CLASSES, CLASSES)
        self.second = nn.Linear(CLASSES, CLASSES, bias=False)
        self.second.weight = self.first.weight
        self.one = nn.Parameter(torch.zeros(CLASSES))
        self.other = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.first(x).tanh()) + (self.one + self.other)
        return logits


def bert() -> nn.Module:
    """Of transformers, with random weights; its answer is an object with ``logits``."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=20, num_labels=CLASSES, max_position_embeddings=8, **sizes)
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def images(n: int = N) -> Tensor:
    return torch.randn(n, 1, 4, 4, dtype=torch.float64)


def vectors(n: int = N) -> Tensor:
    return torch.randn(n, CLASSES, dtype=torch.float64)


def tokens(n: int = N) -> dict[str, Tensor]:
    mask = torch.ones(n, 6, dtype=torch.int64)
    mask[0, 4:] = 0
    return {"input_ids": torch.randint(1, 20, (n, 6)) * mask, "attention_mask": mask}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any]]] = {
    "residual": (Residual, images),
    "attention": (Attention, tokens),
    "recurrent": (Recurrent, lambda n=N: tokens(n)["input_ids"]),
    "in place": (InPlace, vectors),
    "tied": (Tied, vectors),
    "bert": (bert, tokens),
}


def network(name: str) -> tuple[nn.Module, Callable[..., Any]]:
    """In train mode, and what draws ``n`` samples for it."""
    make, samples = NETWORKS[name]
    return make().double().train(), samples


def jacobian(model: nn.Module, inputs: Any, names: Collection[str] | None = None) -> Tensor:
    """``(N * C, P)`` in eval mode: rows by sample, then by class."""
    wanted = {name: p.detach() for name, p in model.named_parameters() if names is None or name in names}
    arguments = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        output = functional_call(model, parameters, *arguments)
        return output if isinstance(output, Tensor) else output.logits

    try:
        with warnings.catch_warnings(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            warnings.simplefilter("ignore")
            parts = jacrev(logits)(wanted)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode
    return torch.cat([parts[name].detach().flatten(2) for name in wanted], 2).flatten(0, 1)


def off(found: Tensor, wanted: Tensor) -> float:
    """``norm(found - wanted) / norm(wanted)``."""
    return float((found - wanted).norm() / wanted.norm())
