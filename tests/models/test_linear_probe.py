"""An encoder with a linear head: how it is called, frozen and fitted."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.errors import InputError
from seamfast.modalities import TextModality, Vocabulary
from seamfast.models import LinearProbe, embed, with_head
from seamfast.models.architectures import ResNet20Encoder, build
from seamfast.models.folder import ModelDescription, load_model, save_model


@pytest.fixture
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12)).train()


def some(n: int = 200, n_classes: int = 3) -> CleanSet:
    """Images whose class is how bright they are, with noise."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % n_classes
    noise = torch.randint(0, 60, (n, 1, 8, 8), generator=generator)
    return CleanSet((labels.view(-1, 1, 1, 1) * 60 + noise).to(torch.uint8), labels, num_classes=n_classes)


def test_the_probe_is_the_head_on_the_embeddings(encoder: nn.Module) -> None:
    data = some()
    probe = with_head(encoder, 3, data)
    images = data.normalize(data.pixels(torch.arange(5)))
    torch.testing.assert_close(probe(images), probe.head(encoder.eval()(images)))
    assert probe(images).shape == (5, 3)


def test_the_encoder_is_copied_and_keeps_its_mode(encoder: nn.Module) -> None:
    before = copy.deepcopy(encoder.state_dict())
    probe = with_head(encoder, 3, some(), frozen=True).fit(some())
    assert encoder.training
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert probe.encoder is not encoder


def test_a_frozen_encoder_stays_in_eval_mode_without_grads(encoder: nn.Module) -> None:
    data = some()
    probe = with_head(encoder, 3, data, frozen=True).train()
    assert probe.training
    assert not any(module.training for module in probe.encoder.modules())
    before = copy.deepcopy(probe.encoder.state_dict())
    probe(data.normalize(data.pixels(torch.arange(8)))).sum().backward()
    assert [name for name, p in probe.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    assert [name for name, p in probe.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert all(torch.equal(value, before[name]) for name, value in probe.encoder.state_dict().items())


def test_otherwise_all_of_it_trains(encoder: nn.Module) -> None:
    data = some()
    probe = with_head(encoder, 3, data).train()
    assert all(module.training for module in probe.modules())
    probe(data.normalize(data.pixels(torch.arange(8)))).square().sum().backward()
    assert all(p.grad is not None for p in probe.parameters())


def test_a_copied_probe_is_frozen_too(encoder: nn.Module) -> None:
    probe = copy.deepcopy(with_head(encoder, 3, some(), frozen=True)).train()
    assert not probe.encoder.training


def test_the_head_follows_the_seed_and_leaves_the_global_generator_alone(encoder: nn.Module) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = (with_head(encoder, 3, some(), seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_fit_is_the_minimum_of_the_cross_entropy(encoder: nn.Module) -> None:
    """Against PyTorch's L-BFGS on the same loss, of labels that no plane separates."""
    data = some()
    generator = torch.Generator().manual_seed(2)
    noisy = torch.where(torch.rand(len(data), generator=generator) < 0.3, (data.labels + 1) % 3, data.labels)
    data = CleanSet(data.inputs, noisy, num_classes=3)
    probe = with_head(encoder, 3, data).fit(data, ridge=1e-6)
    x = embed(encoder, data).double()
    head = nn.Linear(12, 3).double()
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x), noisy)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        ours = F.cross_entropy(probe.head.double()(x), noisy)
        least = F.cross_entropy(head(x), noisy)
    assert float(ours) == pytest.approx(float(least), abs=1e-3)


def test_embeddings_that_are_constant_or_repeated_do_no_harm() -> None:
    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images: Tensor) -> Tensor:
            bright = self.scale * images.mean((1, 2, 3))
            return torch.stack([bright, bright, 0 * bright, 1e4 * bright], 1)

    data = some()
    probe = with_head(Repeating(), 3, data, frozen=True).fit(data)
    assert torch.isfinite(probe.head.weight).all()
    assert seamfast.evaluate(probe, data, progress=False).clean_accuracy.value > 0.95


def test_as_many_samples_as_features_leave_the_noise_out() -> None:
    """Two features tell the class, 200 are noise of a fifth of their size; 240 samples."""
    generator = torch.Generator().manual_seed(3)

    def drawn(n: int) -> CleanSet:
        labels = torch.arange(n) % 3
        angle = 2 * torch.pi * labels / 3
        signal = torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(n, 2, generator=generator)
        noise = 0.2 * torch.randn(n, 200, generator=generator)
        return CleanSet(torch.cat([signal, noise], 1), labels, num_classes=3)

    encoder = nn.Linear(202, 202, bias=False)
    nn.init.eye_(encoder.weight)
    probe = with_head(encoder, 3, drawn(240), frozen=True).fit(drawn(240))
    found = seamfast.evaluate(probe, drawn(600), progress=False).clean_accuracy.value
    assert found is not None
    assert found > 0.9  # 0.81 without the shrinkage


def test_more_ridge_makes_smaller_weights(encoder: nn.Module) -> None:
    data = some()
    sizes = [float(with_head(encoder, 3, data).fit(data, ridge=r).head.weight.detach().norm()) for r in (1e-3, 1.0)]
    assert sizes[1] < sizes[0] / 2


def test_a_fitted_probe_is_an_ordinary_model(encoder: nn.Module) -> None:
    data = some()
    probe = with_head(encoder, 3, data).fit(data)
    assert seamfast.evaluate(probe, data, progress=False).clean_accuracy.value > 0.9
    result = seamfast.sanitize(probe, data, progress=False)
    assert isinstance(result.model, LinearProbe)


def test_it_has_the_layout_of_resnet20(tmp_path: Any) -> None:
    torch.manual_seed(0)
    data = CleanSet(torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 4, num_classes=4)
    probe = with_head(ResNet20Encoder(), 4, data).fit(data)
    model = build("resnet20", num_classes=4, in_channels=3, image_size=8)
    model.load_state_dict(probe.state_dict())
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(model.eval()(images), probe(images))
    save_model(tmp_path, probe, ModelDescription("resnet20", 4, 3, 8))
    assert torch.equal(load_model(tmp_path)[0](images), probe(images))


def test_embed_is_in_the_order_of_the_samples(encoder: nn.Module) -> None:
    data = some(n=600)
    found = embed(encoder, data)
    assert encoder.training
    with torch.no_grad():
        wanted = encoder.eval()(data.normalize(data.pixels(torch.arange(600))))
    torch.testing.assert_close(found, wanted)


class Texts(nn.Module):
    """The mean of the embeddings of the tokens that are attended."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = attention_mask[:, :, None]
        embeddings: Tensor = (self.table(input_ids) * kept).sum(1) / kept.sum(1)
        return embeddings


class IdsAlone(Texts):
    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(ids, (ids > 0).long())


@pytest.mark.parametrize("kind", [Texts, IdsAlone])
def test_texts_are_passed_as_the_encoder_takes_them(kind: type[nn.Module]) -> None:
    labels = torch.arange(300) % 2
    mask = (torch.arange(9) < torch.randint(3, 10, (300, 1))).long()
    ids = (torch.randint(2, 16, (300, 9)) + 15 * labels[:, None]) * mask
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    modality = TextModality(Vocabulary.of_ids(ids, mask))
    data = CleanSet(inputs, labels, num_classes=2, modality=modality)
    encoder = kind()
    probe = with_head(encoder, 2, data).fit(data)
    wanted = Texts.forward(encoder, ids, mask)  # type: ignore[arg-type]
    torch.testing.assert_close(embed(encoder, data), wanted.detach(), rtol=1e-5, atol=1e-6)
    assert seamfast.evaluate(probe, data, progress=False).clean_accuracy.value > 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": {}}, "encoder is a dict; expected a torch.nn.Module"),
        ({"num_classes": 1}, "num_classes is 1; expected an integer from 2"),
        ({"num_classes": 2.5}, "num_classes is 2.5; expected an integer from 2"),
        ({"data": torch.zeros(2, 1, 8, 8)}, "data is a Tensor; expected a seamfast.CleanSet"),
        ({"data": some().subset([])}, "data holds no samples; expected at least one"),
        ({"frozen": 1}, "frozen is 1; expected True or False"),
        ({"seed": -1}, "seed is -1; expected an integer in [0, 2**63)"),
    ],
)
def test_arguments_that_are_refused(encoder: nn.Module, arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"encoder": encoder, "num_classes": 3, "data": some()} | arguments
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        with_head(given.pop("encoder"), given.pop("num_classes"), given.pop("data"), **given)


@pytest.mark.parametrize("wrong", [0, -1, "1", float("nan"), None])
def test_ridges_that_are_refused(encoder: nn.Module, wrong: Any) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(f'ridge is {wrong!r}; expected a number above 0')}$"):
        with_head(encoder, 3, some()).fit(some(), ridge=wrong)


def test_labels_that_the_head_lacks_are_refused(encoder: nn.Module) -> None:
    message = "labels hold 3; expected integers in [0, 3) for the 3 classes of the head"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        with_head(encoder, 3, some()).fit(some(n_classes=4))
