"""``Outputs``: a model's logits for some samples as a function of its parameters, and products with their Jacobian.

No Jacobian is made. ``gradient`` is one backward pass for each batch, ``change`` one forward pass with tangents.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, linearize, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from seamfast.engine.model import check_logits, evaluating, logits_of
from seamfast.errors import ModelError
from seamfast.modalities.batch import Batch, map_tensors

Parameters = Mapping[str, Tensor]
"""Tensors of the shapes of a model's parameters, by name."""

_CHECKED = 2
"""Samples that the two products are held against each other on."""
_OFF = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Most that they may differ by, relative to their size; of other dtypes, 0.1."""


class Outputs:
    """``f(w)``, the ``(N, C)`` logits of ``N`` samples at the weights ``w``, in eval mode; ``J`` is its Jacobian.

    Attributes:
        model: read only; its mode is restored after each use.
        parameters: those that ``J`` is of, by name, detached.
        values: ``(N, C)``: ``f`` at the weights as they are.

    Args:
        model: returns logits.
        names: of parameters.
        batches: the samples, in order.
        repeated: whether ``gradient`` and ``change`` will be called many times. If the samples are one batch, what all
            calls share is then kept: a call takes two thirds of the time, the first one ten times that.

    Raises:
        ModelError: the logits do not depend on the parameters in a way that can be differentiated, e.g. ``no logit
            depends on the parameters by a gradient; expected a model that is not detached``.
    """

    def __init__(
        self, model: nn.Module, names: frozenset[str], batches: list[Batch], *, repeated: bool = False
    ) -> None:
        self.model = model
        self.parameters = {name: p.detach() for name, p in model.named_parameters() if name in names}
        self._batches = batches
        with _differentiable(model), torch.no_grad():
            self.values = torch.cat([logits_of(model, batch).detach() for batch in batches])
        check_logits(self.values, len(self.values))
        self._backward, self._forward = None, None
        if repeated and len(batches) == 1:
            self._backward, self._forward = self._pull(batches[0]), self._linearized(batches[0])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def num_classes(self) -> int:
        return self.values.shape[1]

    def gradient(self, weights: Tensor) -> dict[str, Tensor]:
        """``J.T @ weights``, by name of parameter.

        Args:
            weights: ``(N, C)``.
        """
        total: dict[str, Tensor] = {}
        for batch, part in self._parts(weights):
            pull = self._backward or self._pull(batch)
            with _differentiable(self.model):
                (found,) = pull(part)
            for name, value in found.items():
                total[name] = total[name].add_(value) if name in total else value
        return total

    def change(self, direction: Parameters) -> Tensor:
        """``J @ direction``, ``(N, C)``: how the logits move with the parameters."""
        if self._forward is not None:
            with torch.no_grad():
                return self._forward(dict(direction))
        return torch.cat([self._push(batch, direction) for batch in self._batches])

    def jacobian_rows(self, first: int, last: int) -> Tensor:
        """``J[first:last]``, ``(last - first, P)``; rows by sample, then by class."""
        rows, size = [], _size(self._batches[0])
        for sample in range(first // self.num_classes, -(-last // self.num_classes)):
            number, place = divmod(sample, size)
            pull = self._pull(_part(self._batches[number], place, place + 1))
            for row in range(max(first, sample * self.num_classes), min(last, (sample + 1) * self.num_classes)):
                one = torch.zeros_like(self.values[:1])
                one[0, row % self.num_classes] = 1
                with _differentiable(self.model):
                    (found,) = pull(one)
                rows.append(torch.cat([value.flatten() for value in found.values()]))
        return torch.stack(rows)

    @torch.no_grad()
    def head_inputs(self) -> tuple[Tensor, nn.Linear]:
        """``(N, D)``: what the last linear layer of ``C`` outputs gets; and that layer.

        Raises:
            ModelError: there is none, or it gets something else.
        """
        seen: list[tuple[nn.Linear, Tensor]] = []

        def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(module, nn.Linear)
            if module.out_features == self.num_classes and given and given[0].ndim == 2:
                seen.append((module, given[0].detach()))

        hooks = [m.register_forward_pre_hook(see) for m in self.model.modules() if isinstance(m, nn.Linear)]
        parts = []
        try:
            with _differentiable(self.model), torch.no_grad():
                for batch in self._batches:
                    seen.clear()
                    logits_of(self.model, batch)
                    if not seen or len(seen[-1][1]) != _size(batch):
                        raise ModelError(
                            f"the model has no linear layer of {self.num_classes} outputs for each sample at its end; "
                            "expected one, or the exact kernel"
                        )
                    parts.append(seen[-1][1])
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(parts), seen[-1][0]

    def check(self) -> None:
        """Raise ``ModelError`` where the two products are not those of one matrix, or of a matrix of zeros."""
        batch = _part(self._batches[0], 0, _CHECKED)
        generator = torch.Generator().manual_seed(0)
        some = self.values[:_CHECKED]
        weights = torch.randn(some.shape, generator=generator).to(some)
        pull = self._pull(batch)
        with _differentiable(self.model):
            (gradient,) = pull(weights[: len(some)])
        norm = sum(float(value.double().square().sum()) for value in gradient.values()) ** 0.5
        if norm == 0:
            raise ModelError(
                "no logit depends on the parameters by a gradient; expected a model that is not detached and does not "
                "run under torch.no_grad()"
            )
        if not norm < float("inf"):
            raise ModelError("the gradient of the logits holds NaN or Inf; expected finite gradients")
        # Along the gradient, the change is a sum of squares: nothing cancels.
        along = float((weights.double() * self._push(batch, gradient).double()).sum())
        if not abs(along - norm**2) <= _OFF.get(some.dtype, 0.1) * norm**2:
            raise ModelError(
                f"backward and forward derivatives of the model disagree, {norm**2:.6g} and {along:.6g}; expected a "
                "forward without in-place changes of its state and without random numbers"
            )

    def _parts(self, weights: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        first = 0
        for batch in self._batches:
            n = _size(batch)
            yield batch, weights[first : first + n]
            first += n

    def _pull(self, batch: Batch):  # type: ignore[no-untyped-def]
        with _differentiable(self.model):
            return vjp(lambda parameters: self._logits(parameters, batch), self.parameters)[1]

    def _linearized(self, batch: Batch) -> Callable[[dict[str, Tensor]], Tensor] | None:
        """``J @ direction`` without the forward pass that is the same each time; ``None`` if it cannot be traced."""
        try:
            with _differentiable(self.model), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of constants in the trace
                return linearize(lambda parameters: self._logits(parameters, batch), self.parameters)[1]
        except Exception:  # of any kind: it runs the model's code with stand-ins for tensors
            return None

    def _push(self, batch: Batch, direction: Parameters) -> Tensor:
        with _differentiable(self.model), torch.no_grad():
            moved: Tensor = jvp(
                lambda parameters: self._logits(parameters, batch), (self.parameters,), (dict(direction),)
            )[1]
        return moved

    def _logits(self, parameters: Parameters, batch: Batch) -> Tensor:
        def called(*inputs: Tensor, **named: Tensor) -> object:
            return functional_call(self.model, dict(parameters), inputs, named)

        return logits_of(called, batch)  # type: ignore[arg-type]


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Eval mode, arithmetic of full width, and of attention the form that has derivatives of both kinds."""
    device = next(model.parameters()).device
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ModelError(
                f"the model has no derivatives by its parameters ({type(error).__name__}: {error}); expected one whose "
                "forward torch.func can differentiate, without in-place changes of its state"
            ) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def _size(batch: Batch) -> int:
    return len(next(iter(batch.values()))) if isinstance(batch, dict) else len(batch)


def _part(batch: Batch, first: int, last: int) -> Batch:
    return map_tensors(lambda value: value[first:last], batch)
