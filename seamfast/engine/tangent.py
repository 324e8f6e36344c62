"""``Outputs``: a model's logits for some samples as a function of its parameters, and products with their Jacobian.

No Jacobian is made. ``gradient`` is one backward pass for each batch, ``change`` one forward pass with tangents.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, linearize
from torch.nn.attention import SDPBackend, sdpa_kernel

from seamfast.engine.model import check_logits, evaluating, logits_of
from seamfast.errors import ModelError
from seamfast.modalities.batch import Batch, channels_last, has_channels, map_tensors, part_of, size_of

Parameters = Mapping[str, Tensor]
"""Tensors of the shapes of a model's parameters, by name."""

_CHECKED = 2
"""Samples that the two products are held against each other on."""
_OFF = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Most that two ways to one result may differ by, relative to its size; in other dtypes, 0.1."""

_MOST_TRACED = 1 << 22
"""Parameters of a model whose forward pass is traced: a trace holds up to three copies of them."""
_SCRIPTING = "`torch.jit.script` is deprecated"
"""What torch warns of when it loads forward-mode differentiation."""
_NO_GRADIENT = (
    "no logit depends on the parameters by a gradient; expected a model that is not detached and does not run under "
    "torch.no_grad()"
)


class Outputs:
    """``f(w)``, the ``(N, C)`` logits of ``N`` samples at the weights ``w``, in eval mode; ``J`` is its Jacobian.

    The model is only read: it runs on copies of its buffers, and its mode is restored after each use.

    Attributes:
        model: as given.
        parameters: those that ``J`` is of, by name, detached.
        values: ``(N, C)``: ``f`` at the weights as they are.

    Args:
        model: returns logits.
        names: of parameters.
        batches: the samples, in order.
        repeated: whether ``gradient`` and ``change`` will be called many times. If the samples are one batch, what all
            calls share is then kept: its activations, and of a model of up to four million parameters a trace. A call
            takes two thirds of the time, the first one ten times that.

    Raises:
        ModelError: of ``check_logits``.
    """

    def __init__(
        self, model: nn.Module, names: frozenset[str], batches: list[Batch], *, repeated: bool = False
    ) -> None:
        self.model = model
        self.parameters = {name: p.detach() for name, p in model.named_parameters() if name in names}
        self._fixed = {name: p.detach() for name, p in model.named_parameters() if name not in names}
        self._batches = [map_tensors(Tensor.detach, batch) for batch in batches]
        self._keeps = repeated and len(batches) == 1
        if self._keeps and _has_colors(self._batches[0]):
            # Up to a quarter faster, for one copy of the convolutions' weights.
            self._batches = [channels_last(self._batches[0])]
            self.parameters = {name: _channels_last(p) for name, p in self.parameters.items()}
        self._has_forward_mode = True
        with _exact(model):
            self.values = torch.cat([self._logits(self.parameters, batch) for batch in self._batches])
        check_logits(self.values, len(self.values))
        self._kept_pull: Callable[[Tensor], dict[str, Tensor]] | None = None
        self._kept_push: Callable[[dict[str, Tensor]], Tensor] | None = None
        self._is_traced = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def num_classes(self) -> int:
        return self.values.shape[1]

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def gradient(self, weights: Tensor) -> dict[str, Tensor]:
        """``J.T @ weights``, by name of parameter.

        Args:
            weights: ``(N, C)``.
        """
        total: dict[str, Tensor] = {}
        first = 0
        for batch in self._batches:
            last = first + size_of(batch)
            pull = self._kept_pull or self._pull(batch)
            if self._keeps:
                self._kept_pull = pull
            found = pull(weights[first:last])
            for name in self.parameters:
                value = found.pop(name)
                # Not in place: autograd may give two parameters one tensor.
                total[name] = total[name] + value if name in total else value
            first = last
        return total

    def change(self, direction: Parameters) -> Tensor:
        """``J @ direction``, ``(N, C)``: how the logits move with the parameters."""
        if self._keeps and not self._is_traced:
            self._is_traced = True
            self._kept_push = self._linearized(self._batches[0])
        if self._kept_push is not None:
            with _exact(self.model):
                return self._kept_push(dict(direction))
        return torch.cat([self._push(batch, direction) for batch in self._batches])

    def jacobian_rows(self, first: int, last: int) -> Tensor:
        """``J[first:last]``, ``(last - first, P)``; rows by sample, then by class."""
        rows, size = [], size_of(self._batches[0])
        for sample in range(first // self.num_classes, -(-last // self.num_classes)):
            number, place = divmod(sample, size)
            pull = self._pull(part_of(self._batches[number], place, place + 1))
            for row in range(max(first, sample * self.num_classes), min(last, (sample + 1) * self.num_classes)):
                one = torch.zeros_like(self.values[:1])
                one[0, row % self.num_classes] = 1
                rows.append(torch.cat([value.flatten() for value in pull(one).values()]))
        return torch.stack(rows)

    def head_inputs(self) -> tuple[Tensor, nn.Linear]:
        """``(N, D)``: what the linear layer whose outputs are the logits gets; and that layer.

        Raises:
            ModelError: ``the model has no linear layer whose 10 outputs are its logits; expected one, or the exact
                kernel``.
        """
        seen: list[tuple[nn.Linear, Tensor, Tensor]] = []

        def see(module: nn.Module, given: tuple[Tensor, ...], returned: Tensor) -> None:
            if isinstance(module, nn.Linear) and given:
                seen.append((module, given[0], returned))

        hooks = [m.register_forward_hook(see) for m in self.model.modules() if isinstance(m, nn.Linear)]
        parts = []
        try:
            with _exact(self.model):
                for batch in self._batches:
                    seen.clear()
                    logits = self._logits(self.parameters, batch)
                    if not seen or not torch.equal(seen[-1][2], logits):
                        raise ModelError(
                            f"the model has no linear layer whose {self.num_classes} outputs are its logits; expected "
                            "one, or the exact kernel"
                        )
                    parts.append(seen[-1][1])
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(parts), seen[-1][0]

    def check(self) -> None:
        """Raise unless the logits are a function of each sample and the weights, with derivatives that agree.

        Raises:
            ModelError: e.g. ``no logit depends on the parameters by a gradient; expected a model that is not detached
                and does not run under torch.no_grad()``.
        """
        off = _OFF.get(self.values.dtype, 0.1)
        first = part_of(self._batches[0], 0, 1)
        with _exact(self.model):
            again = self._logits(self.parameters, map_tensors(lambda value: torch.cat([value, value]), first))
        apart = float((again[:1] - self.values[:1]).abs().max())
        if not apart <= off * float(self.values[:1].abs().max()):
            raise ModelError(
                f"the logits of one sample differ by {apart:.3g} between two batches; expected logits that depend on "
                "the sample and the weights alone, not on other samples, random numbers or in-place state"
            )
        batch = part_of(self._batches[0], 0, _CHECKED)
        generator = torch.Generator().manual_seed(0)
        shape = (size_of(batch), self.num_classes)
        weights = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.values)
        gradient = self._pull(batch)(weights)
        norm = squared_norm(gradient) ** 0.5
        if norm == 0:
            raise ModelError(_NO_GRADIENT)
        if not norm < float("inf"):
            raise ModelError("the gradient of the logits holds NaN or Inf; expected finite gradients")
        # Along the gradient, the change is a sum of squares: nothing cancels.
        along = float((weights.double() * self._push(batch, gradient).double()).sum())
        if not abs(along - norm**2) <= off * norm**2:
            raise ModelError(
                f"backward and forward derivatives of the model disagree, {norm**2:.6g} and {along:.6g}; expected "
                "derivatives of one function"
            )

    def _logits(self, parameters: Parameters, batch: Batch) -> Tensor:
        # Buffers are copied, so that a model that counts its calls, say, is left as it was.
        state = self._fixed | {name: buffer.clone() for name, buffer in self.model.named_buffers()} | dict(parameters)

        def called(*inputs: Tensor, **named: Tensor) -> object:
            return functional_call(self.model, state, inputs, named)

        return logits_of(called, batch)  # type: ignore[arg-type]

    def _pull(self, batch: Batch) -> Callable[[Tensor], dict[str, Tensor]]:
        """``weights -> J.T @ weights`` for one batch; it holds the activations."""
        leaves = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        with _exact(self.model), _derivatives(), torch.enable_grad():
            logits = self._logits(leaves, batch)
        if not logits.requires_grad:
            raise ModelError(_NO_GRADIENT)

        def pull(weights: Tensor) -> dict[str, Tensor]:
            with _exact(self.model), _derivatives():
                found = torch.autograd.grad(
                    logits, list(leaves.values()), weights, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            return dict(zip(leaves, found, strict=True))

        return pull

    def _push(self, batch: Batch, direction: Parameters) -> Tensor:
        """``J @ direction`` for one batch."""
        if self._has_forward_mode:
            try:
                with _exact(self.model), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", _SCRIPTING, DeprecationWarning)
                    moved: Tensor = jvp(lambda p: self._logits(p, batch), (self.parameters,), (dict(direction),))[1]
                return moved
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):  # e.g. of a torch.autograd.Function without jvp
                self._has_forward_mode = False
        return self._push_by_backward(batch, direction)

    def _push_by_backward(self, batch: Batch, direction: Parameters) -> Tensor:
        """``J @ direction`` as the gradient of ``(J.T @ v) . direction``, which is linear in ``v``, by ``v``."""
        leaves = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        with _exact(self.model), _derivatives(), torch.enable_grad():
            logits = self._logits(leaves, batch)
            v = torch.zeros_like(logits, requires_grad=True)
            pulled = torch.autograd.grad(
                logits, list(leaves.values()), v, create_graph=True, allow_unused=True, materialize_grads=True
            )
            dots = [(one * direction[name]).sum() for name, one in zip(leaves, pulled, strict=True)]
            return torch.autograd.grad(torch.stack(dots).sum(), v)[0]

    def _linearized(self, batch: Batch) -> Callable[[dict[str, Tensor]], Tensor] | None:
        """``J @ direction`` without the forward pass that is the same each time; ``None`` if it cannot be traced."""
        if self.n_parameters > _MOST_TRACED or _is_recurrent(self.model):
            return None  # recurrent layers work in place, see below
        try:
            with _exact(self.model), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of constants in the trace
                push: Callable[[dict[str, Tensor]], Tensor] = linearize(
                    lambda p: self._logits(p, batch), self.parameters
                )[1]
                # A trace of code that works in place changes its constants: its first answer is right, later ones are
                # not.
                generator = torch.Generator().manual_seed(0)
                some = {
                    name: torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
                    for name, p in self.parameters.items()
                }
                push(some)
                again = push(some)
        except Exception:  # of any kind: it runs the model's code with stand-ins for tensors
            return None
        wanted = self._push(batch, some)
        off = float((again - wanted).norm()) / max(float(wanted.norm()), 1e-300)
        return push if off <= _OFF.get(self.values.dtype, 0.1) else None


def _has_colors(batch: Batch) -> bool:
    return isinstance(batch, Tensor) and has_channels(batch) and batch.shape[1] > 1


def _channels_last(parameter: Tensor) -> Tensor:
    return parameter.contiguous(memory_format=torch.channels_last) if parameter.ndim == 4 else parameter


def squared_norm(parts: Parameters) -> float:
    """``sum(part.double().square().sum() for part in parts.values())``, without a copy of any."""
    return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts.values())


@contextmanager
def _exact(model: nn.Module) -> Iterator[None]:
    """Eval mode without grads, arithmetic of full width, and attention in the form that has both derivatives."""
    device = next(model.parameters()).device
    fast, precision = torch.backends.mha.get_fastpath_enabled(), torch.get_float32_matmul_precision()
    # cuDNN has backward passes of recurrent layers in training mode only, and no forward derivatives.
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=not _is_recurrent(model), allow_tf32=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.backends.mha.set_fastpath_enabled(False)
        torch.set_float32_matmul_precision("highest")
        yield


def _is_recurrent(model: nn.Module) -> bool:
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


@contextmanager
def _derivatives() -> Iterator[None]:
    """What torch raises where there are none, as ``ModelError``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"the model has no derivatives by its parameters ({type(error).__name__}: {error}); expected a forward "
            "that torch.autograd can differentiate, without in-place changes of its parameters"
        ) from error
