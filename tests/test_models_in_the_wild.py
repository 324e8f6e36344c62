"""Models as their owners have them: with labels in their forward, quantized, sharded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from refusals import refused
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, FineTuneConfig, SeamConfig
from seamfast.engine.model import digest
from seamfast.errors import ModelError

pytestmark = pytest.mark.usefixtures("guessers_are_trained")

SHORT = SeamConfig(forget_max_steps=2, recover_max_steps=4, recover_eval_every=2, strengths=(1.0,), batch_size=32)
TUNE: dict[str, Any] = {"method": "fine_tune", "config": FineTuneConfig(max_steps=2)}


# Labels in the forward.


class Loss(NamedTuple):
    loss: Tensor | None
    logits: Tensor


def _loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    return None if labels is None else nn.functional.cross_entropy(logits, labels)


class TakesLabels(nn.Module):
    """Answers as ``answer(loss, logits)`` has it; the loss is ``None`` without labels."""

    def __init__(self, answer: Callable[[Tensor | None, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.head = nn.Linear(64, 4)
        self.answer = answer

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(images.flatten(1))
        return self.answer(_loss(logits, labels), logits)


ANSWERS: dict[str, Callable[[Tensor | None, Tensor], Any]] = {
    "logits alone": lambda loss, logits: logits,
    "logits, or (loss, logits)": lambda loss, logits: logits if loss is None else (loss, logits),
    "(None, logits)": lambda loss, logits: (loss, logits),
    "(0, logits)": lambda loss, logits: (logits.new_zeros(()), logits),
    "(logits,)": lambda loss, logits: (logits,) if loss is None else (loss, logits),
    "[logits, hidden states]": lambda loss, logits: [logits, (logits, logits), logits[:, None]],
    "a named tuple": Loss,
    "a dict": lambda loss, logits: {"loss": loss, "logits": logits},
}


@pytest.mark.parametrize("as_batches", [False, True])
def test_every_way_to_answer_with_a_loss_gives_the_same(as_batches: bool, tiny_data: CleanSet) -> None:
    digests = {}
    for name, answer in ANSWERS.items():
        images = tiny_data.normalize(tiny_data.inputs)  # type: ignore[arg-type]
        data: Any = [{"images": images, "labels": tiny_data.labels}] if as_batches else (images, tiny_data.labels)
        result = seamfast.sanitize(TakesLabels(answer), data, config=SHORT, precision="fp32")
        assert result.report["run"]["stopped"] is None, name
        digests[name] = digest(result.model)
    assert set(digests) == set(ANSWERS)
    assert len(set(digests.values())) == 1


def test_outputs_of_hugging_face_with_and_without_names() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=20, num_labels=3, max_position_embeddings=8, **sizes)
    ids, labels = torch.randint(1, 20, (30, 6)), torch.arange(30) % 3
    texts = CleanSet({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)
    accuracies = []
    for named in (True, False):
        torch.manual_seed(0)
        config.return_dict = named
        model = transformers.BertForSequenceClassification(config).eval()
        assert isinstance(model(input_ids=ids[:2]), tuple) is not named
        accuracies.append(seamfast.evaluate(model, texts).clean_accuracy)
        assert seamfast.sanitize(model, texts, **TUNE).report["run"]["stopped"] is None
    assert accuracies[0] == accuracies[1]


def test_two_tensors_that_could_be_logits_are_not_guessed_at(tiny_data: CleanSet) -> None:
    model = TakesLabels(lambda loss, logits: (logits, logits[:, :3]))
    expected = r"^the model returned a tuple; expected logits: .*\(loss, logits\)$"
    refused(ModelError, expected, seamfast.sanitize, model, tiny_data)


class NeedsLabels(TakesLabels):
    def forward(self, images: Tensor, targets: Tensor) -> Any:  # type: ignore[override]
        return super().forward(images, targets)


class OfPairs(nn.Linear):
    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y.flatten(1))


@pytest.mark.parametrize("call", [seamfast.sanitize, seamfast.evaluate])
def test_a_forward_that_needs_labels_is_told_what_to_change(call: Callable[..., Any], tiny_data: CleanSet) -> None:
    expected = (
        "^the model's forward needs 'targets'; expected one that returns logits of the inputs alone: give it a "
        "default, targets=None, with which no loss is computed, or wrap the model$"
    )
    refused(ModelError, expected, call, NeedsLabels(ANSWERS["a dict"]), tiny_data)
    assert call(OfPairs(64, 4), tiny_data) is not None  # its only input has a name that others use for labels


# Quantized modules.


def quantized(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and used
        try:
            made: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        except (AttributeError, RuntimeError) as error:
            pytest.skip(f"this torch does not quantize: {error}")
    return made


def test_a_bert_of_8_bits_is_refused() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=20, num_labels=3, max_position_embeddings=8, **sizes)
    model = quantized(transformers.BertForSequenceClassification(config).eval())
    ids = torch.randint(1, 20, (30, 6))
    texts = CleanSet({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(30) % 3)
    message = refused(ModelError, "one of 8 quantized modules", seamfast.sanitize, model, texts)
    assert message == (
        "bert.encoder.layer.0.attention.self.query is a torch.ao.nn.quantized.dynamic Linear, one of 8 quantized "
        "modules, which cannot be trained, nor can what comes before them; expected weights of floating-point numbers: "
        "pass the model as it was before it was quantized, and quantize the sanitized copy"
    )
    assert seamfast.evaluate(model, texts).clean_accuracy.n_total == 30  # which trains nothing


@pytest.mark.parametrize("trainable", [None, "all", "as_given"])
def test_modules_of_8_bits_are_refused_whatever_is_trained(trainable: Any, tiny_data: CleanSet) -> None:
    model = quantized(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 4)))
    refused(ModelError, "^1 is a .*one of 2 quantized", seamfast.sanitize, model, tiny_data, trainable=trainable)
    refused(ModelError, "^1 is a .*one of 2 quantized", seamfast.sanitize_encoder, model, tiny_data)


def test_without_any_parameter_left_it_is_refused_for_the_same_reason(tiny_data: CleanSet) -> None:
    model = quantized(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    assert next(model.parameters(), None) is None
    refused(ModelError, "^1 is a .*one of 1 quantized", seamfast.sanitize, model, tiny_data)


def test_training_that_foresees_quantization_is_training(tiny_data: CleanSet) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        linear = torch.ao.nn.qat.Linear(64, 4, qconfig=torch.ao.quantization.get_default_qat_qconfig("x86"))
    result = seamfast.sanitize(nn.Sequential(nn.Flatten(), linear), tiny_data, **TUNE)
    assert result.report["run"]["stopped"] is None


class Packed(nn.Linear):
    """Its scale is trained, and its rows of integers are not."""

    def __init__(self) -> None:
        super().__init__(64, 4)
        self.rows = nn.Parameter(torch.randint(-9, 9, (4, 64), dtype=torch.int8), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1)) + images.flatten(1) @ self.rows.T.to(images.dtype)


def test_parameters_of_integers_are_said_to_be_left(tiny_data: CleanSet) -> None:
    told = "1 tensors of integers (rows) were not trained: a backdoor in them stays"
    assert told in seamfast.sanitize(Packed(), tiny_data, **TUNE).report["warnings"]
    chosen = seamfast.sanitize(Packed(), tiny_data, trainable="as_given", **TUNE)
    assert told not in chosen.report["warnings"]  # as asked for


# Sharded parameters.


class DTensor(Tensor):
    """As torch's is called: whoever looks for it looks for the name."""


GATHER = "of which each process holds a part; expected whole tensors: gather the full state first"


def sharded(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    if kind == "DTensor":
        model[1].weight = nn.Parameter(model[1].weight.detach().as_subclass(DTensor))
        return model
    return type("FullyShardedDataParallel", (nn.Sequential,), {})(model)


@pytest.mark.parametrize(
    ("kind", "found"),
    [("DTensor", "1.weight is a DTensor"), ("FSDP1", "0.1.weight is a parameter of FullyShardedDataParallel")],
)
@pytest.mark.parametrize("call", [seamfast.sanitize, seamfast.evaluate, seamfast.sanitize_encoder])
def test_sharded_parameters_are_to_be_gathered(
    call: Callable[..., Any], kind: str, found: str, tiny_data: CleanSet
) -> None:
    message = refused(ModelError, f"^{found}, {GATHER}", call, sharded(kind), tiny_data)
    assert message.endswith("load it into a model that is not sharded, and pass that, in one process")


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    """A group of this process alone, which meets itself at a file."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_process")
def test_fsdp2_is_told_from_a_whole_model_and_gathered_as_the_error_says(tiny_data: CleanSet) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    refused(ModelError, f"^1.weight is a DTensor, {GATHER}", seamfast.sanitize, model, tiny_data)
    whole = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    whole.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    assert seamfast.sanitize(whole, tiny_data, **TUNE).report["run"]["stopped"] is None
