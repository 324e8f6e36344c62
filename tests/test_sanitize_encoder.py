"""``sanitize_encoder``: a module that returns embeddings goes in without labels, and comes out without its backdoor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import seamfast
from seamfast import CleanSet, SeamConfig, SeamEncoderConfig
from seamfast.engine.model import digest
from seamfast.engine.run import Run
from seamfast.errors import ConfigError, InputError, ModelError
from seamfast.report import schema

Make = Callable[[], nn.Module]
SHORT = SeamEncoderConfig(forget_max_steps=4, recover_max_steps=6, n_groups=4)
PLAIN: dict[str, Any] = {"precision": "fp32", "progress": False}


@pytest.fixture
def encoder(tiny_model: Make) -> Make:
    """Makes the tiny CNN without its last layer: ``(B, 32)`` embeddings."""
    return lambda: nn.Sequential(*list(tiny_model())[:-1]).eval()


def floats(data: CleanSet) -> Tensor:
    assert isinstance(data.inputs, Tensor)
    return (data.inputs.float() / 255 - 0.4) / 0.25


def stamped(images: Tensor) -> Tensor:
    """With a checkered patch of 3x3 pixels in the middle, as the model takes them."""
    images = images.clone()
    images[:, :, 3:6, 3:6] = torch.tensor([[2.4, -1.6, 2.4], [-1.6, 2.4, -1.6], [2.4, -1.6, 2.4]])
    return images


def backdoored(clean: nn.Module, images: Tensor, reference: Tensor) -> nn.Module:
    """BadEncoder: images with the patch get the embedding of the reference, all others keep theirs."""
    model = copy.deepcopy(clean).eval()
    with torch.no_grad():
        kept, wanted = clean(images), clean(reference)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        away = (
            2 - F.cosine_similarity(model(images), kept).mean() - F.cosine_similarity(model(reference), wanted).mean()
        )
        loss = away - F.cosine_similarity(model(stamped(images)), wanted).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def drawn(encoder: nn.Module, images: Tensor, reference: Tensor) -> float:
    """How much nearer the patch brings the embeddings to the reference's: mean cosine with it, less that without."""
    with torch.no_grad():
        z, wanted = encoder.eval()(images), encoder(reference)
        mean = z.mean(0)
        near = F.cosine_similarity(encoder(stamped(images)) - mean, wanted - mean).mean()
        return float(near - F.cosine_similarity(z - mean, wanted - mean).mean())


def test_a_backdoor_goes_and_the_task_stays(
    encoder: Make, tiny_data: CleanSet, enlarged: Callable[[CleanSet, int], CleanSet]
) -> None:
    data = enlarged(tiny_data, 4)
    images = floats(data)
    others = images[data.labels != 0][:200]
    received = backdoored(encoder(), images, images[:1])
    assert drawn(received, others, images[:1]) > 0.8
    result = seamfast.sanitize_encoder(
        received, images, labelled=(floats(tiny_data), tiny_data.labels), seed=0, **PLAIN
    )
    assert drawn(result.model, others, images[:1]) < 0.3
    neighbors = result.report["encoder"]["neighbors"]
    assert neighbors["before"]["value"] == 1.0
    assert neighbors["after"]["value"] > 0.95
    assert result.report["encoder"]["agreement"]["mean"] > 0.7


def test_what_comes_back(encoder: Make, tiny_data: CleanSet) -> None:
    given = encoder().train()
    given[0].weight.requires_grad_(False)
    before = digest(given)
    result = seamfast.sanitize_encoder(given, tiny_data, config=SHORT, **PLAIN)
    assert digest(given) == before
    assert type(result.model) is type(given)
    assert [(n, p.requires_grad) for n, p in result.model.named_parameters()] == [
        (n, p.requires_grad) for n, p in given.named_parameters()
    ]
    assert result.model.training
    report = result.report
    jsonschema.validate(dict(report), dict(schema()))
    assert report["method"] == "seam_encoder"
    assert report["model"]["class"] == "torch.nn.modules.container.Sequential"
    assert report["model"]["digest_before"] == before
    assert report["model"]["digest_after"] == digest(result.model) != before
    assert report["encoder"]["dimension"] == 32
    assert report["encoder"]["n_groups"] == 4
    assert report["encoder"]["neighbors"] is None
    assert report["encoder"]["agreement"]["n"] == report["data"]["n_holdout"]
    assert "linear probe" in report["verdict"]["rests_on"]


@pytest.mark.parametrize("training", [False, True])
def test_every_module_of_the_given_encoder_keeps_its_mode(training: bool, encoder: Make, tiny_data: CleanSet) -> None:
    given = encoder().train(training)
    given[1].train(not training)  # a norm that is frozen in a model in train mode, or the other way round
    modes = [module.training for module in given.modules()]
    result = seamfast.sanitize_encoder(given, tiny_data, config=SHORT, **PLAIN)
    assert [module.training for module in given.modules()] == modes
    assert [module.training for module in result.model.modules()] == modes


def test_only_what_is_asked_for_is_trained(encoder: Make, tiny_data: CleanSet) -> None:
    given = encoder()
    result = seamfast.sanitize_encoder(given, tiny_data, config=SHORT, trainable=["4.*"], **PLAIN)
    moved = {n for (n, p), q in zip(given.named_parameters(), result.model.parameters(), strict=True) if (p != q).any()}
    assert moved == {"4.weight", "4.bias"}
    assert result.report["run"]["trainable"]["mode"] == "named"
    with pytest.raises(
        ConfigError, match=r"trainable holds 'head\.\*', which matches no parameter; .* such as '0\.weight'"
    ):
        seamfast.sanitize_encoder(given, tiny_data, trainable=["head.*"], **PLAIN)


def test_the_last_steps_see_plain_samples_and_move_nothing(
    encoder: Make, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    changed: list[float] = []
    take, views = Run._take, Run.views

    def taken(run: Run, rate: float) -> None:
        rates.append(rate)
        take(run, rate)

    def seen(run: Run, *arguments: Any, **options: Any) -> Any:
        changed.append(float(options["changed"]) if "changed" in options else 1.0)
        return views(run, *arguments, **options)

    monkeypatch.setattr(Run, "_take", taken)
    monkeypatch.setattr(Run, "views", seen)
    config = SeamEncoderConfig(forget_max_steps=2, recover_max_steps=10, plain_end=0.3, n_groups=4)
    seamfast.sanitize_encoder(encoder(), tiny_data, config=config, **PLAIN)
    assert len(rates) == 12
    assert rates[-3:] == [0.0, 0.0, 0.0]
    assert min(rates[:-3]) > 0
    assert changed[-10:] == [1.0] * 7 + [0.0] * 3


def test_the_probe_is_fitted_again() -> None:
    """What a new classifier can read is not what the old one does."""
    images = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    report = seamfast.sanitize_encoder(encoder, images, config=SHORT, **PLAIN).report
    after = report["holdout"]["after"]["clean_accuracy"]
    assert after["n_hit"] != report["encoder"]["accuracy_of_received_probe"]["n_hit"]


def test_patterns_are_searched_for_while_it_recovers(encoder: Make, tiny_data: CleanSet) -> None:
    digests = []
    for every in (0, 3):
        config = SeamEncoderConfig(forget_max_steps=2, recover_max_steps=9, n_groups=4, patterns_every=every)
        digests.append(digest(seamfast.sanitize_encoder(encoder(), tiny_data, config=config, **PLAIN).model))
    assert digests[0] != digests[1]


def test_labels_are_not_read(encoder: Make, tiny_data: CleanSet) -> None:
    assert isinstance(tiny_data.inputs, Tensor)
    other = CleanSet(tiny_data.inputs, tiny_data.labels.flip(0), **tiny_data.description)
    first, second = (seamfast.sanitize_encoder(encoder(), data, config=SHORT, **PLAIN) for data in (tiny_data, other))
    assert digest(first.model) == digest(second.model)


def test_labeled_samples_are_measured_and_not_trained_on(encoder: Make, tiny_data: CleanSet) -> None:
    few = tiny_data.subset(range(20))
    without = seamfast.sanitize_encoder(encoder(), tiny_data, config=SHORT, **PLAIN)
    result = seamfast.sanitize_encoder(encoder(), tiny_data, labelled=few, config=SHORT, **PLAIN)
    assert digest(result.model) == digest(without.model)
    neighbors = result.report["encoder"]["neighbors"]
    assert neighbors["k"] == 4
    assert neighbors["before"]["n_total"] == neighbors["after"]["n_total"] == 20
    wrong = CleanSet(few.inputs, (few.labels + torch.arange(20) // 10) % 4, **few.description)
    mixed = seamfast.sanitize_encoder(encoder(), tiny_data, labelled=wrong, config=SHORT, **PLAIN)
    assert mixed.report["encoder"]["neighbors"]["before"]["value"] < neighbors["before"]["value"]


def test_the_seed_decides(encoder: Make, tiny_data: CleanSet) -> None:
    digests = [
        digest(seamfast.sanitize_encoder(encoder(), tiny_data, config=SHORT, seed=seed, **PLAIN).model)
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


class Batches:
    """As a loader that yields these."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Any:
        return iter(self._batches)


def test_samples_come_in_any_form(encoder: Make, tiny_data: CleanSet) -> None:
    images, labels = floats(tiny_data), tiny_data.labels
    parts = torch.split(images, 50)
    in_order = (images, images.numpy())
    read = (
        DataLoader(TensorDataset(images), batch_size=50, shuffle=True),
        DataLoader(TensorDataset(images, labels), batch_size=32),
        DataLoader(list(images), batch_size=7),
        TensorDataset(images),
        list(parts),
        Batches([(part, None) for part in parts]),
    )
    for forms in (in_order, read):
        digests = {digest(seamfast.sanitize_encoder(encoder(), form, config=SHORT, **PLAIN).model) for form in forms}
        assert len(digests) == 1


class Named(nn.Module):
    """Takes its images by name and answers as transformers does."""

    def __init__(self, encoder: nn.Module, field: str) -> None:
        super().__init__()
        self.inner = encoder
        self.field = field

    def forward(self, pixel_values: Tensor, scale: Tensor | None = None) -> Any:
        z = self.inner(pixel_values if scale is None else pixel_values * scale.view(-1, 1, 1, 1))
        if self.field == "map":
            return z[:, :, None, None]
        answer = z.unsqueeze(1).expand(-1, 3, -1) if self.field == "last_hidden_state" else z
        return {"embedding": answer} if self.field == "embedding" else SimpleNamespace(**{self.field: answer})


@pytest.mark.parametrize("field", ["embedding", "pooler_output", "last_hidden_state", "map"])
def test_embeddings_and_inputs_have_names(field: str, encoder: Make, tiny_data: CleanSet) -> None:
    parts = torch.split(floats(tiny_data), 50)
    for other in ({"labels": None}, {"scale": torch.ones(50)}):
        batches = [{"pixel_values": part, **other} for part in parts[:3]]
        result = seamfast.sanitize_encoder(Named(encoder(), field), Batches(batches), config=SHORT, **PLAIN)
        assert result.report["encoder"]["dimension"] == 32
        assert result.report["encoder"]["agreement"]["mean"] > 0.9


class OfTokens(nn.Module):
    """The mean of the attended tokens' rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(2).float()
        return (self.table(input_ids) * mask).sum(1) / mask.sum(1)


def test_texts_keep_their_masks_and_are_searched() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (60, 9), generator=generator)
    mask = (torch.arange(9) < torch.randint(3, 10, (60, 1), generator=generator)).long()
    vocabulary = seamfast.modalities.Vocabulary(size=50, pad=0, special=frozenset({0, 1}))
    data = CleanSet(
        {"input_ids": ids * mask, "attention_mask": mask},
        torch.zeros(60, dtype=torch.int64),
        modality=seamfast.modalities.TextModality(vocabulary),
    )
    short = SeamEncoderConfig(forget_max_steps=4, recover_max_steps=6, n_groups=4, searches=1)
    result = seamfast.sanitize_encoder(OfTokens(), data, config=short, **PLAIN)
    assert result.report["encoder"]["dimension"] == 8
    assert result.report["run"]["searched"]["n_searches"] == 1


def test_without_time_the_encoder_comes_back_as_received(encoder: Make, tiny_data: CleanSet) -> None:
    given = encoder()
    result = seamfast.sanitize_encoder(given, tiny_data, config=SHORT, time_budget_s=1e-6, **PLAIN)
    assert not result.accepted
    assert result.report["time_budget_s"] == 1e-6
    assert digest(result.model) == digest(given)
    assert result.report["encoder"]["agreement"]["mean"] == pytest.approx(1)
    jsonschema.validate(dict(result.report), dict(schema()))


class Answers(nn.Module):
    """Has a weight and answers what it is told to."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images.flatten(1) * self.weight)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: (x, x), "the encoder returned a tuple; expected embeddings: a tensor of shape"),
        (lambda x: x.view(-1, 8, 8), r"the encoder returned float32 of shape \(64, 8, 8\); expected floats of shape"),
        (lambda x: x[:, :1], r"the encoder returned float32 of shape \(64, 1\); expected floats of shape"),
        (lambda x: x.long(), r"the encoder returned int64 of shape \(64, 64\); expected floats of shape"),
        (lambda x: x / 0, "the encoder returned NaN or Inf on clean data; expected finite embeddings"),
        (lambda x: 0 * x, "the encoder gives all samples one embedding; expected different ones"),
    ],
)
def test_what_is_no_encoder_is_refused(answer: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        seamfast.sanitize_encoder(Answers(answer), torch.rand(64, 1, 8, 8), **PLAIN)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.rand(19, 1, 8, 8), "unlabelled holds 19 samples; expected at least 20"),
        (torch.rand(0, 1, 8, 8), "unlabelled holds no samples; expected at least two"),
        (torch.tensor(1.0), "unlabelled is one number; expected a tensor or array of samples"),
        ("images", "unlabelled is a str; expected a tensor or array of samples"),
        (3, "unlabelled is a int; expected a tensor or array of samples"),
        ([3], "batch 0 of unlabelled is a int; expected a tensor, a tuple that begins with one, or a mapping"),
        ([], "no samples"),
        (torch.full((30, 1, 8, 8), torch.nan), "inputs holds NaN or Inf, first in sample 0"),
    ],
)
def test_bad_samples_are_refused(data: Any, message: str, encoder: Make) -> None:
    with pytest.raises(InputError, match=message):
        seamfast.sanitize_encoder(encoder(), data, **PLAIN)


def test_bad_arguments_are_refused(encoder: Make, tiny_data: CleanSet) -> None:
    with pytest.raises(InputError, match=r"encoder is a dict; expected a torch\.nn\.Module"):
        seamfast.sanitize_encoder({}, tiny_data)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="config is a SeamConfig; expected a SeamEncoderConfig"):
        seamfast.sanitize_encoder(encoder(), tiny_data, config=SeamConfig())  # type: ignore[arg-type]
    few = tiny_data.subset([0, 1, 4, 5, 2])
    with pytest.raises(InputError, match="labelled holds 3 classes, 1 samples of the smallest; expected at least two"):
        seamfast.sanitize_encoder(encoder(), tiny_data, labelled=few)
    with pytest.raises(InputError, match="labelled is a int"):
        seamfast.sanitize_encoder(encoder(), tiny_data, labelled=3)
    with pytest.raises(ConfigError, match="method is 'seam_encoder'; expected one of seam, "):
        seamfast.sanitize(encoder(), tiny_data, method="seam_encoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_groups": 1}, "n_groups is 1; expected an integer of at least 2"),
        ({"recover_rate": 0.0}, r"recover_rate is 0\.0; expected a number above 0"),
        ({"recover_max_steps": 0}, "recover_max_steps is 0; expected an integer of at least 1"),
        ({"recover_eval_every": 0}, "recover_eval_every is 0; expected an integer of at least 1"),
        ({"mixing": 1.5}, r"mixing is 1\.5; expected a number in \[0, 1\]"),
        ({"searches": -1}, "searches is -1; expected an integer of at least 0"),
        ({"patterns_every": -1}, "patterns_every is -1; expected an integer of at least 0"),
        ({"plain_end": 1.0}, r"plain_end is 1\.0; expected a number in \[0, 1\)"),
        ({"disturbance": -0.1}, r"disturbance is -0\.1; expected a number in \[0, 1\]"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SeamEncoderConfig(**changes)
