"""``sanitize(trainable=)``: what is frozen keeps every bit, what is changed or not reached all the same is said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, SeamConfig, sanitize
from seamfast.errors import ConfigError
from seamfast.modalities import TextModality

Make = Callable[[], nn.Module]

SHORT = SeamConfig(forget_max_steps=6, recover_max_steps=12, recover_easy_steps=12)
METHODS: dict[str, Any] = {
    "seam": SHORT,
    "seam_authors": seamfast.SeamAuthorsConfig(forget_max_epochs=1, recover_max_epochs=2),
    "fine_tune": seamfast.FineTuneConfig(max_steps=6),
    "super_fine_tune": seamfast.SuperFineTuneConfig(forget_steps=6, recover_steps=6),
}


class LowRank(nn.Module):
    """A frozen layer, and a product of two matrices beside it, the second of which begins at zero.

    Source: Hu et al., "LoRA", arXiv:2106.09685.
    """

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.base(x) + self.lora_B(self.lora_A(x))
        return adapted


@pytest.fixture
def adapted(tiny_model: Make) -> nn.Module:
    """The trained model, all of it frozen but for an adapter of its last layer, which gives its answers with it."""
    model = tiny_model().requires_grad_(False)
    last = LowRank(model[9])  # type: ignore[index, arg-type]
    with torch.no_grad():
        last.lora_B.weight.normal_(0, 0.5)
        last.base.weight -= last.lora_B.weight @ last.lora_A.weight
    model[9] = last  # type: ignore[index, operator]
    return model


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def changed(given: nn.Module, returned: nn.Module) -> set[str]:
    """Names of parameters and buffers whose dtype or bits differ."""
    before, after = tensors(given), tensors(returned)
    assert before.keys() == after.keys()
    return {
        name
        for name, value in before.items()
        if after[name].dtype != value.dtype or not torch.equal(_bytes(after[name]), _bytes(value))
    }


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def of_training(result: seamfast.SanitizeResult) -> list[str]:
    marks = ("frozen", "does not depend")
    return [warning for warning in result.report["warnings"] if any(mark in warning for mark in marks)]


def test_an_adapter_alone_is_trained_without_being_asked(adapted: nn.Module, tiny_data: CleanSet) -> None:
    result = sanitize(adapted, tiny_data, config=SHORT, precision="fp32")
    assert result.report["run"]["stopped"] is None
    assert changed(adapted, result.model) == {"9.lora_A.weight", "9.lora_B.weight"}
    wanted = {"mode": "as_given", "n_tensors": 12, "n_trained": 2, "n_frozen_changed": 0}
    assert result.report["run"]["trainable"] == wanted
    assert of_training(result) == []
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in adapted.parameters()]


def test_the_zero_matrix_of_an_adapter_moves_by_a_useful_amount(adapted: nn.Module, tiny_data: CleanSet) -> None:
    """It moved by 2e-9. Not pruned: its first few steps change the answers little."""
    last = adapted[9]  # type: ignore[index]
    with torch.no_grad():
        last.base.weight += last.lora_B.weight @ last.lora_A.weight
        last.lora_B.weight.zero_()
    config = SeamConfig.from_dict(SHORT.to_dict() | {"prune": False})
    result = sanitize(adapted, tiny_data, config=config, precision="fp32")
    moved = result.model.get_parameter("9.lora_B.weight").detach().square().mean().sqrt()
    assert 1e-3 < float(moved) < 1
    inputs = torch.randn(50, 1, 8, 8)
    with torch.no_grad():
        shift = (result.model(inputs) - adapted(inputs)).square().mean().sqrt()
    assert float(shift) > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_frozen_tensors_alone(adapted: nn.Module, tiny_data: CleanSet, method: str) -> None:
    result = sanitize(adapted, tiny_data, method=method, config=METHODS[method], precision="fp32")
    assert result.report["run"]["steps"]
    assert "9.lora_B.weight" in changed(adapted, result.model) <= {"9.lora_A.weight", "9.lora_B.weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_frozen_tensors_of_other_dtypes_keep_every_bit(
    tiny_model: Make, tiny_data: CleanSet, dtype: torch.dtype
) -> None:
    model = tiny_model().to(dtype)
    for name, parameter in model.named_parameters():
        if dtype == torch.float64:
            parameter.data += 1e-12  # below the precision of float32
        parameter.requires_grad_(name.startswith("9."))
    # float32 data and other weights: only the working copy, which is float32, is called
    result = sanitize(model, tiny_data, config=SHORT, trainable="as_given", precision="fp32")
    assert result.report["run"]["stopped"] is None
    assert changed(model, result.model) == {"9.weight", "9.bias"}
    assert {t.dtype for n, t in tensors(result.model).items() if "tracked" not in n} == {dtype}


def test_frozen_norms_keep_their_statistics_and_others_do_not(tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model()
    result = sanitize(model, tiny_data, config=SHORT, trainable=["5.*", "9.*"], precision="fp32")
    moved = changed(model, result.model)
    assert {name.partition(".")[0] for name in moved} == {"5", "9"}
    assert {"5.running_mean", "5.num_batches_tracked"} <= moved
    assert result.report["run"]["trainable"] == {
        "mode": "named",
        "n_tensors": 10,
        "n_trained": 4,
        "n_frozen_changed": 0,
    }


def test_frozen_norms_normalize_by_their_statistics_in_training_too(tiny_model: Make, tiny_data: CleanSet) -> None:
    model, seen = tiny_model(), set()
    model.register_forward_pre_hook(lambda module, _: seen.add((module[9].training, module[1].training)))
    sanitize(model, tiny_data, config=SHORT, trainable=["9.*"], precision="fp32", threads=1)
    assert seen == {(True, False), (False, False)}


def test_frozen_layers_are_not_pruned(tiny_model: Make, tiny_data: CleanSet) -> None:
    """A unit that is never active and an input that never changes are held where they are trained."""
    model = tiny_model()
    model.append(nn.Linear(4, 6))
    model.append(nn.ReLU())
    model.append(nn.Linear(6, 4))
    with torch.no_grad():
        model[10].weight.copy_(torch.eye(6, 4))
        model[10].bias.copy_(torch.tensor([20.0, 20, 20, 20, 0.7, -50]))
        model[12].weight.copy_(torch.eye(4, 6) + 0.3 * torch.eye(4, 6).flip(0))
        model[12].bias.zero_()
    for trainable, layers in ((["9.*"], {"9"}), (["10.*"], {"10"}), (["12.*"], {"12"})):
        result = sanitize(model, tiny_data, config=SHORT, trainable=trainable, precision="fp32")
        assert {name.partition(".")[0] for name in changed(model, result.model)} == layers
        assert {part["layer"] for part in result.report["run"]["pruned"]} <= layers
        if layers != {"9"}:
            assert result.report["run"]["pruned"]


def test_frozen_tensors_that_are_changed_are_counted_and_named(tiny_model: Make, tiny_data: CleanSet) -> None:
    """By default, a model without adapters is trained as a whole."""
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("9."))
    result = sanitize(model, tiny_data, config=SHORT, precision="fp32")
    wanted = {"mode": "all", "n_tensors": 10, "n_trained": 10, "n_frozen_changed": 8}
    assert result.report["run"]["trainable"] == wanted
    assert of_training(result) == [
        "8 tensors that were frozen were changed: 0.weight, 0.bias, 1.weight, 1.bias, 4.weight, ..."
    ]


def test_changes_of_what_an_adapter_stands_on_are_said(adapted: nn.Module, tiny_data: CleanSet) -> None:
    """As a PEFT model that is loaded for inference, in which nothing requires grad."""
    result = sanitize(adapted.requires_grad_(False), tiny_data, config=SHORT, precision="fp32")
    (warning,) = of_training(result)
    assert warning.startswith("12 tensors that were frozen were changed: 0.weight, ")
    assert warning.endswith("; an adapter saved alone is without these changes")


def test_a_model_returned_as_received_has_nothing_changed(tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model().requires_grad_(False)
    model[9].bias[0] += 1000  # type: ignore[index, operator]
    result = sanitize(model, tiny_data, config=SHORT)
    assert result.report["model"]["returned"] == "received"
    wanted = {"mode": "all", "n_tensors": 10, "n_trained": 10, "n_frozen_changed": 0}
    assert result.report["run"]["trainable"] == wanted
    assert of_training(result) == []


class Detached(nn.Module):
    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.encoder, self.head, self.how = model[:9], model[9], how  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "detach":
            return self.head(self.encoder(x).detach())  # type: ignore[no-any-return]
        with torch.no_grad():
            features = self.encoder(x)
        return self.head(features)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["no_grad", "detach"])
def test_an_encoder_that_the_loss_does_not_reach_is_said(tiny_model: Make, tiny_data: CleanSet, how: str) -> None:
    model = Detached(tiny_model(), how)
    result = sanitize(model, tiny_data, config=SHORT, precision="fp32")
    assert of_training(result) == [
        "the loss does not depend on 8 of 10 tensors (encoder.0.weight, encoder.0.bias, encoder.1.weight, "
        "encoder.1.bias, encoder.4.weight, ...): a backdoor in them stays"
    ]
    # Those that the caller leaves alone are no news.
    result = sanitize(model, tiny_data, config=SHORT, trainable=["head.*"], precision="fp32")
    assert of_training(result) == []
    assert changed(model, result.model) == {"head.weight", "head.bias"}


def test_a_layer_that_is_never_called_is_pruned_and_not_called_unreached(tiny_model: Make, tiny_data: CleanSet) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.spare = tiny_model(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)  # type: ignore[no-any-return]

    result = sanitize(Unused(), tiny_data, config=SHORT, precision="fp32")
    assert of_training(result) == []
    assert any("reaches the layer spare" in warning for warning in result.report["warnings"])


def test_what_cannot_be_asked_for(tiny_model: Make, tiny_data: CleanSet) -> None:
    for requested in ("as_given", ["10.*"], "head"):
        model = tiny_model().requires_grad_(False)
        before = copy.deepcopy(model)
        with pytest.raises(ConfigError, match=r"^trainable "):
            sanitize(model, tiny_data, trainable=requested)
        assert changed(before, model) == set()


@pytest.fixture
def texts() -> tuple[dict[str, Tensor], Tensor]:
    """160 of 12 tokens; the fourth tells the class."""
    ids = torch.randint(5, 60, (160, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(160) % 2
    ids[:, 3] = torch.where(labels == 1, 7, 9)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # read by peft
def test_peft_saves_what_was_measured(texts: tuple[dict[str, Tensor], Tensor], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, num_labels=2,
    )  # fmt: skip
    base = transformers.BertForSequenceClassification(config)
    received = copy.deepcopy(base)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = peft.get_peft_model(base, lora)
    inputs, labels = texts
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(**inputs).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    settings = SeamConfig.preset("balanced", TextModality)
    short = {"searches": 0, "forget_max_steps": 6, "recover_max_steps": 12, "recover_easy_steps": 12}
    config = SeamConfig.from_dict(settings.to_dict() | short)
    result = sanitize(model, texts, config=config, precision="fp32")
    assert result.report["run"]["stopped"] is None

    counts = result.report["run"]["trainable"]
    assert (counts["mode"], counts["n_trained"], counts["n_frozen_changed"]) == ("as_given", 10, 0)
    assert of_training(result) == []
    moved = changed(model, result.model)
    assert moved <= {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition("classifier.")[2] for name in moved if "classifier" in name} == {
        "modules_to_save.default.weight",
        "modules_to_save.default.bias",
    }
    assert sum("lora_B" in name for name in moved) == 4
    result.model.save_pretrained(tmp_path)
    reloaded = peft.PeftModel.from_pretrained(received, tmp_path).eval()
    with torch.no_grad():
        got, wanted = reloaded(**inputs).logits, result.model(**inputs).logits
    assert torch.equal(got, wanted)
    assert not torch.allclose(wanted, model(**inputs).logits.detach(), atol=1e-3)
