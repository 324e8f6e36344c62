from __future__ import annotations

import re
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from refusals import raises
from torch import Tensor, nn

from seamfast.engine.model import (
    WorkingCopy,
    check_logits,
    check_weights,
    device_of,
    digest,
    evaluating,
    logits_of,
    resolve_device,
)
from seamfast.errors import InputError, ModelError
from seamfast.modalities.batch import fit_to_call

Make = Callable[[], nn.Module]

CPU = torch.device("cpu")


def train(model: nn.Module, steps: int = 2) -> None:
    """Change every weight matrix and buffer, and the other weights where their dtype shows it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(steps):
        F.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.randint(0, 4, (8,))).backward()
        optimizer.step()
        optimizer.zero_grad()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def model(tiny_model: Make) -> nn.Module:
    """Trainable in parts, in mixed modes, with a hook and with grads: all that a careless copy would disturb."""
    made = tiny_model()
    made.train()
    made[1].eval()
    made[0].weight.requires_grad_(False)
    made[9].weight.grad = torch.full_like(made[9].weight, 3.0)
    made[2].register_forward_hook(lambda *args: None)
    return made


class TestWorkingCopy:
    def test_the_given_model_is_left_as_it_is(self, model: nn.Module) -> None:
        before, pointers = values(model), [p.data_ptr() for p in model.parameters()]
        modes = [m.training for m in model.modules()]
        copied = WorkingCopy(model, CPU)
        assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in copied.model.parameters())
        train(copied.model)
        copied.model.eval()
        copied.round_to_given_dtypes()
        copied.reset()
        copied.frozen_received()
        train(copied.model)
        copied.finish()
        assert equal(values(model), before)
        assert [p.data_ptr() for p in model.parameters()] == pointers
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 9
        assert torch.equal(model[9].weight.grad, torch.full_like(model[9].weight, 3.0))
        assert [p.grad is None for p in model.parameters()] == [True] * 8 + [False, True]
        assert len(model[2]._forward_hooks) == 1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_finish_gives_dtype_mode_and_trainability_back(self, model: nn.Module, dtype: torch.dtype) -> None:
        model.to(dtype)
        copied = WorkingCopy(model, CPU)
        assert {p.dtype for p in copied.model.parameters()} == {torch.float32}
        train(copied.model)
        returned = copied.finish()
        assert returned is copied.model
        assert type(returned) is type(model)
        assert [m.training for m in returned.modules()] == [m.training for m in model.modules()]
        assert [p.requires_grad for p in returned.parameters()] == [p.requires_grad for p in model.parameters()]
        assert all(p.grad is None for p in returned.parameters())
        got, given = values(returned), values(model)
        assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in given.items()}
        assert got["1.num_batches_tracked"].dtype == torch.int64
        assert not any(torch.equal(got[k], given[k]) for k in got if k.endswith("weight"))
        assert returned.eval()(torch.zeros(2, 1, 8, 8, dtype=dtype)).dtype == dtype

    def test_untrained_it_comes_back_bit_for_bit(self, model: nn.Module) -> None:
        for dtype in (torch.bfloat16, torch.float32):
            model.to(dtype)
            assert equal(values(WorkingCopy(model, CPU).finish()), values(model))

    def test_rounding_shows_what_finish_will_give(self, model: nn.Module) -> None:
        copied = WorkingCopy(model.to(torch.bfloat16), CPU)
        train(copied.model)
        unrounded = values(copied.model)
        copied.round_to_given_dtypes()
        rounded = values(copied.model)
        assert not equal(rounded, unrounded)
        assert {p.dtype for p in copied.model.parameters()} == {torch.float32}
        finished = values(copied.finish())
        assert all(torch.equal(finished[k].to(v.dtype), v) for k, v in rounded.items())

    def test_reset_restores_weights_and_buffers_in_place(self, model: nn.Module) -> None:
        copied = WorkingCopy(model, CPU)
        received, parameters = values(copied.model), list(copied.model.parameters())
        train(copied.model)
        assert not any(torch.equal(v, received[k]) for k, v in values(copied.model).items())
        copied.reset()
        assert equal(values(copied.model), received)
        assert all(a is b for a, b in zip(copied.model.parameters(), parameters, strict=True))  # optimizers hold them
        train(copied.model)
        copied.reset()
        assert equal(values(copied.model), received)

    def test_the_teacher_is_the_model_as_received(self, model: nn.Module) -> None:
        copied = WorkingCopy(model, CPU)
        received = values(copied.model)
        train(copied.model)
        trained = values(copied.model)
        teacher = copied.frozen_received()
        assert equal(values(teacher), received)
        assert not any(p.requires_grad for p in teacher.parameters())
        assert not any(m.training for m in teacher.modules())
        assert equal(values(copied.model), trained)
        assert all(p.requires_grad for p in copied.model.parameters())

    def test_tied_weights_stay_tied(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Linear(4, 4, bias=False)
                self.head = nn.Linear(4, 4, bias=False)
                self.head.weight = self.embed.weight

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.embed(x))

        model = Tied().to(torch.bfloat16)
        copied = WorkingCopy(model, CPU)
        optimizer = torch.optim.SGD(copied.model.parameters(), lr=0.1)
        copied.model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        copied.round_to_given_dtypes()
        finished = copied.finish()
        assert finished.head.weight is finished.embed.weight
        assert not torch.equal(finished.head.weight, model.head.weight)
        assert len(list(finished.parameters())) == 1
        copied.reset()
        assert copied.model.head.weight is copied.model.embed.weight

    def test_buffers_outside_of_the_state_dict_are_reset_too(self) -> None:
        class Counting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(2, 2)
                self.register_buffer("seen", torch.zeros(()), persistent=False)

            def forward(self, x: Tensor) -> Tensor:
                self.seen += len(x)
                return self.linear(x)

        model = Counting()
        copied = WorkingCopy(model, CPU)
        copied.model(torch.zeros(3, 2))
        assert float(copied.model.seen) == 3
        assert float(copied.frozen_received().seen) == 0
        copied.reset()
        assert float(copied.model.seen) == 0

    def test_a_model_that_keeps_its_activations(self) -> None:
        class Keeping(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 2)

            def forward(self, x: Tensor) -> Tensor:
                self.features = self.first(x)
                return self.second(self.features)

        copied = WorkingCopy(Keeping(), CPU)
        received = values(copied.model)
        copied.model(torch.randn(3, 2)).sum().backward()
        assert equal(values(copied.frozen_received()), received)

    def test_a_cache_that_the_first_forward_pass_makes(self) -> None:
        """Made without grads while probing, it must not break the training step after it, nor the way back."""

        class Caching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(2, 2)

            def forward(self, x: Tensor) -> Tensor:
                if not hasattr(self, "scale"):
                    self.register_buffer("scale", torch.full((2,), 0.5), persistent=False)
                return self.linear(x) * self.scale

        copied = WorkingCopy(Caching().to(torch.bfloat16), CPU)
        with evaluating(copied.model):
            copied.model(torch.zeros(1, 2))
        copied.model(torch.randn(3, 2)).sum().backward()
        copied.reset()
        copied.round_to_given_dtypes()
        assert copied.finish().linear.weight.dtype == torch.bfloat16

    def test_a_model_that_cannot_be_copied(self) -> None:
        model = nn.Linear(2, 2)
        model.scaled = model.weight * 2  # no leaf of the graph, as weight norm's hook leaves one
        with pytest.raises(ModelError, match=r"^the model cannot be copied \(RuntimeError: Only Tensors created.*fold"):
            WorkingCopy(model, CPU)

    def test_a_lazy_model(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
        for call in (lambda: WorkingCopy(model, CPU), lambda: device_of(model)):
            with raises(ModelError, "1.weight is not initialized yet; run one batch through the model first"):
                call()


class TestCheckWeights:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("name", ["4.weight", "9.bias", "5.running_var"])
    def test_names_the_tensor(self, bad: float, name: str, tiny_model: Make) -> None:
        model = tiny_model()
        check_weights(model)
        tensor = values(model)[name]
        tensor.view(-1)[1:3] = bad
        model.load_state_dict({name: tensor}, strict=False)
        message = f"{name} holds 2 NaN or Inf of {tensor.numel()} numbers; expected finite weights"
        with raises(ModelError, message):
            check_weights(model)
        with raises(ModelError, message):
            WorkingCopy(model, CPU)

    def test_complex_weights_would_lose_their_imaginary_part(self) -> None:
        with raises(ModelError, "weight is complex64; expected real weights"):
            WorkingCopy(nn.Linear(2, 2, dtype=torch.complex64), CPU)

    def test_integer_buffers_pass(self) -> None:
        check_weights(nn.BatchNorm2d(3))


class TestDigest:
    def test_is_a_sha256_of_all_bytes(self, tiny_model: Make) -> None:
        model = tiny_model()
        assert re.fullmatch("sha256:[0-9a-f]{64}", digest(model))
        assert digest(model) == digest(tiny_model())
        assert digest(model) == digest(model.to(memory_format=torch.channels_last))

    def test_changes_with_one_bit_of_any_tensor(self, tiny_model: Make) -> None:
        seen = {digest(tiny_model())}
        for name in tiny_model().state_dict():
            model = tiny_model()
            value = model.state_dict()[name]
            value.view(-1).view(torch.uint8)[-1:] ^= 1  # shares the model's memory
            seen.add(digest(model))
        assert len(seen) == 1 + len(tiny_model().state_dict())

    def test_not_with_the_order_of_insertion(self) -> None:
        first, second = nn.Linear(2, 3), nn.Linear(3, 2)
        assert digest(nn.ModuleDict({"a": first, "b": second})) == digest(nn.ModuleDict({"b": second, "a": first}))
        assert digest(nn.ModuleDict({"a": first, "b": second})) != digest(nn.ModuleDict({"a": second, "b": first}))

    def test_changes_with_name_dtype_and_shape(self) -> None:
        def holder(name: str, value: Tensor) -> nn.Module:
            module = nn.Module()
            module.register_buffer(name, value)
            return module

        zeros = torch.zeros(4)
        seen = [
            holder("a", zeros), holder("b", zeros), holder("a", zeros.view(2, 2)), holder("a", zeros.int()),
            holder("a", torch.zeros(8, dtype=torch.bfloat16)), holder("a", torch.zeros(0)), nn.Module(),
        ]  # fmt: skip
        assert len({digest(m) for m in seen}) == len(seen)
        assert digest(holder("a", torch.tensor(1.5))) != digest(holder("a", torch.tensor(1.25)))

    def test_other_state_is_left_out(self) -> None:
        class Extra(nn.Linear):
            def get_extra_state(self) -> Any:
                return {"note": object()}

        model = Extra(2, 2)
        assert digest(model).startswith("sha256:")


class TestDevice:
    def test_auto_and_named(self, tiny_model: Make) -> None:
        model = tiny_model()
        assert device_of(model) == CPU
        assert resolve_device("cpu", model) == CPU
        assert resolve_device(CPU, model) == CPU
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
        assert resolve_device("auto", model).type == wanted

    @pytest.mark.parametrize("device", ["gpu", "cpu:x", "", 3.5])
    def test_what_is_no_device(self, device: Any, tiny_model: Make) -> None:
        message = f"device is {device!r}; expected 'auto' or a torch device such as 'cpu' or 'cuda:0'"
        with raises(InputError, message):
            resolve_device(device, tiny_model())

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
    def test_cuda_where_there_is_none(self, tiny_model: Make) -> None:
        with raises(InputError, "device is 'cuda:0', but torch sees no CUDA device here; expected 'auto' or 'cpu'"):
            resolve_device("cuda:0", tiny_model())

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (nn.ReLU(), "the model has no parameters; expected a trained nn.Module"),
            (nn.BatchNorm1d(2, affine=False), "the model has no parameters; expected a trained nn.Module"),
            (
                nn.Linear(2, 2, device="meta"),
                "the model is on the meta device and holds no weights; expected a trained model on a real device",
            ),
            (
                nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")),
                "the model is spread over cpu, meta; expected all parameters and buffers on one device",
            ),
        ],
    )
    def test_models_without_a_device(self, model: nn.Module, message: str) -> None:
        with raises(ModelError, message):
            device_of(model)

    @pytest.mark.gpu
    def test_there_and_back(self, tiny_model: Make) -> None:
        model = tiny_model()
        copied = WorkingCopy(model, torch.device("cuda"))
        assert {p.device.type for p in copied.model.parameters()} == {"cuda"}
        returned = copied.finish()
        assert {t.device.type for t in values(returned).values()} == {"cpu"}
        assert equal(values(returned), values(model))


class TestCalling:
    class Named(nn.Module):
        """Takes two inputs by name."""

        def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
            return input_ids if mask is None else input_ids * mask

    def test_named_inputs_go_by_keyword(self) -> None:
        inputs = {"mask": torch.full((2, 3), 2.0), "input_ids": torch.ones(2, 3)}
        assert fit_to_call(self.Named(), inputs) is inputs
        assert torch.equal(logits_of(self.Named(), inputs), torch.full((2, 3), 2.0))

    def test_one_input_of_a_foreign_name_goes_by_position(self) -> None:
        image = torch.ones(2, 3)
        assert fit_to_call(self.Named(), {"pixel_values": image}) is image
        known = {"input_ids": image}
        assert fit_to_call(self.Named(), known) is known
        assert fit_to_call(self.Named(), image) is image

    def test_a_forward_that_takes_anything_gets_the_names(self) -> None:
        class Open(nn.Module):
            def forward(self, **inputs: Tensor) -> Tensor:
                return inputs["a"] + inputs["b"]

        inputs = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
        assert fit_to_call(Open(), inputs) is inputs
        assert torch.equal(logits_of(Open(), inputs), torch.full((2, 3), 2.0))

    def test_several_inputs_of_foreign_names(self) -> None:
        inputs = {"pixel_values": torch.ones(2, 3), "mask": torch.ones(2, 3)}
        message = "batches hold ['mask', 'pixel_values']; the model's forward takes ['input_ids', 'mask']"
        with raises(InputError, message):
            fit_to_call(self.Named(), inputs)

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: x,
            lambda x: {"logits": x, "loss": None},
            lambda x: UserDict({"logits": x}),
            lambda x: SimpleNamespace(logits=x),
            lambda x: SimpleNamespace(logits=x, loss=x.mean(), hidden_states=(x, x)),
            lambda x: (x,),
            lambda x: (x.mean(), x),
            lambda x: [None, x],
            lambda x: (x, (x, x), x[:, :, None], x.long()),
        ],
    )
    def test_logits_in_every_wrapping(self, wrap: Callable[[Tensor], Any]) -> None:
        class Wrapped(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return wrap(x)

        x = torch.randn(2, 3)
        assert logits_of(Wrapped(), x) is x

    @pytest.mark.parametrize(
        ("kind", "output"),
        [
            ("tuple", (torch.ones(2, 3), torch.ones(2, 5))), ("tuple", (torch.ones(2), None)),
            ("dict", {"scores": torch.ones(2, 3)}), ("NoneType", None),
            ("dict", {"logits": 3}),
        ],
    )  # fmt: skip
    def test_no_logits(self, kind: str, output: Any) -> None:
        class Odd(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return output

        expected = (
            "a tensor, an object or dict with 'logits', or a tuple with one (B, C) tensor, such as (loss, logits)"
        )
        message = f"the model returned a {kind}; expected logits: {expected}"
        with raises(ModelError, message):
            logits_of(Odd(), torch.ones(2))

    @pytest.mark.parametrize(
        ("logits", "message"),
        [
            *(
                (torch.zeros(shape), f"logits of shape {shape}; expected (4, number of classes >= 2)")
                for shape in ((4, 2, 3), (4,), (4, 1), (3, 5))
            ),
            (torch.zeros(4, 2).long(), "torch.int64; expected floating-point logits"),
            (torch.full((4, 2), float("nan")), "NaN or Inf on clean data; expected finite logits"),
            (torch.full((4, 2), float("inf")), "NaN or Inf on clean data; expected finite logits"),
        ],
    )
    def test_logits_that_cannot_be_used(self, logits: Tensor, message: str) -> None:
        check_logits(torch.zeros(4, 2), 4)
        with raises(ModelError, f"the model returned {message}"):
            check_logits(logits, 4)

    def test_finite_is_asked_for_or_not(self) -> None:
        check_logits(torch.full((4, 2), float("nan")), 4, finite=False)


class TestEvaluating:
    def test_eval_mode_without_grads_and_every_mode_restored(self, model: nn.Module) -> None:
        modes = [m.training for m in model.modules()]
        assert len(set(modes)) == 2
        with evaluating(model):
            assert not any(m.training for m in model.modules())
            assert not model(torch.zeros(2, 1, 8, 8)).requires_grad
        assert [m.training for m in model.modules()] == modes
        assert torch.is_grad_enabled()

    def test_after_an_error_too(self, model: nn.Module) -> None:
        modes = [m.training for m in model.modules()]
        with pytest.raises(RuntimeError), evaluating(model):
            model(torch.zeros(2, 7))
        assert [m.training for m in model.modules()] == modes
        assert torch.is_grad_enabled()
