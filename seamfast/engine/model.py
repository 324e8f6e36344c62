"""The model of a run: how it is called, copied, checked and returned."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from seamfast.engine.trainable import Trainable, choose_trainable
from seamfast.errors import InputError, ModelError
from seamfast.modalities.batch import Batch, call

_SHARDED = ("DTensor", "FlatParameter")
"""Classes of tensors that are spread over processes: of FSDP2 and tensor parallelism, and of FSDP1."""


def resolve_device(device: str | torch.device, model: nn.Module) -> torch.device:
    """``"auto"``: the model's device if that is an accelerator, else CUDA if available, else the CPU."""
    given = device_of(model)
    if device == "auto":
        return given if given.type != "cpu" else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return as_device(device)


def as_device(device: str | torch.device) -> torch.device:
    """``torch.device(device)``, on which torch can have tensors here.

    Raises:
        InputError: e.g. ``device is 'gpu'; expected 'auto' or a torch device such as 'cpu' or 'cuda:0'``.
    """
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device is {device!r}; expected 'auto' or a torch device such as 'cpu' or 'cuda:0'"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {str(device)!r}, but torch sees no CUDA device here; expected 'auto' or 'cpu'")
    try:
        held = torch.zeros(1, device=chosen).device
    except (AssertionError, ImportError, RuntimeError) as error:  # each kind of device has errors of its own
        message = f"device is {str(device)!r}, on which torch can have no tensors here; expected 'auto' or 'cpu'"
        raise InputError(message) from error
    if held.type == "meta":
        raise InputError(f"device is {str(device)!r}, which holds no weights; expected 'auto' or 'cpu'")
    return chosen


def device_of(model: nn.Module) -> torch.device:
    """The one device that holds all parameters and buffers."""
    for name, value in _tensors(model):
        if nn.parameter.is_lazy(value):
            raise ModelError(f"{name} is not initialized yet; run one batch through the model first")
    _check_whole(model)
    devices = sorted({str(t.device) for t in (*model.parameters(), *model.buffers())})
    if not devices or next(model.parameters(), None) is None:
        raise ModelError("the model has no parameters; expected a trained nn.Module")
    if len(devices) > 1:
        message = f"the model is spread over {', '.join(devices)}; expected all parameters and buffers on one device"
        raise ModelError(message)
    if devices[0] == "meta":
        message = "the model is on the meta device and holds no weights; expected a trained model on a real device"
        raise ModelError(message)
    return torch.device(devices[0])


def _check_whole(model: nn.Module) -> None:
    """Raise ``ModelError`` naming the first parameter or buffer of which other processes hold a part."""
    of_fsdp = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    for name, value in _tensors(model):
        # By name: to import what defines them takes longer than to import this package.
        sharded = next((c.__name__ for c in type(value).__mro__ if c.__name__ in _SHARDED), None)
        if sharded or of_fsdp:
            raise ModelError(
                f"{name} is a {sharded or 'parameter of FullyShardedDataParallel'}, of which each process holds a "
                "part; expected whole tensors: gather the full state first (get_model_state_dict with "
                "StateDictOptions(full_state_dict=True), of torch.distributed.checkpoint.state_dict), load it into a "
                "model that is not sharded, and pass that, in one process"
            )


def check_weights(model: nn.Module) -> None:
    """Raise ``ModelError`` naming the first parameter or buffer that is complex or not finite, or counts below 0."""
    for name, value in _tensors(model):
        if value.is_complex():  # a cast to float32 drops the imaginary part
            raise ModelError(f"{name} is {str(value.dtype).removeprefix('torch.')}; expected real weights")
        if value.is_floating_point() and not torch.isfinite(value).all():
            n_bad = int((~torch.isfinite(value)).sum())
            raise ModelError(f"{name} holds {n_bad} NaN or Inf of {value.numel()} numbers; expected finite weights")
    for name, module in model.named_modules():
        # With momentum=None, batch normalization divides by this count plus 1.
        count = module.num_batches_tracked if isinstance(module, nn.modules.batchnorm._BatchNorm) else None
        if count is not None and int(count) < 0:
            raise ModelError(f"{name}.num_batches_tracked is {int(count)}; expected 0 or more")


def digest(model: nn.Module) -> str:
    """``"sha256:..."`` of names, dtypes, shapes and bytes of the state dict, sorted by name."""
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        state.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{state.hexdigest()}"


class WorkingCopy:
    """A deep copy of a model in float32 on ``device``, until ``finish``; the parameters to train require grad.

    The given model is not modified: its weights, grads, mode, hooks and device stay as they are.

    Attributes:
        trained: what the run trains.

    Args:
        model: to be copied.
        device: of the copy.
        trained: the parameters to train; ``None``: all.
    """

    def __init__(self, model: nn.Module, device: torch.device, trained: Trainable | None = None) -> None:
        self._given_device = device_of(model)
        check_weights(model)
        self._given = model
        self._device = device
        self.trained = trained or choose_trainable(model, "all")
        try:
            self.model = copy.deepcopy(model)
        except Exception as error:
            raise ModelError(
                f"the model cannot be copied ({type(error).__name__}: {error}); expected one that "
                "copy.deepcopy accepts: fold weight norm or other re-parametrisations first"
            ) from error
        self._dtypes = {name: t.dtype for name, t in _tensors(self.model)}
        self._contiguous = {name for name, t in _tensors(self.model) if t.is_contiguous()}
        self._trainable = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self._training = {name: m.training for name, m in self.model.named_modules()}
        self.model.to(device=device, dtype=torch.float32)  # casts floats only: integer buffers keep their dtype
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.trained.names)
        self.model.zero_grad(set_to_none=True)
        self._received = self.weights()

    def train(self) -> None:
        """Train mode, except for modules whose buffers stay as they are: their own mode is eval."""
        self.model.train()
        for name in self.trained.fixed:
            self.model.get_submodule(name).training = False  # not that of what is in it, such as dropout

    def reset(self) -> None:
        """Restore the weights and buffers as received."""
        self.restore(self._received)

    def weights(self) -> dict[str, Tensor]:
        """A copy of all parameters and buffers as they are now, by name."""
        # Not the state dict: it leaves out the buffers that are not persistent.
        return {name: t.detach().clone() for name, t in _tensors(self.model)}

    @torch.no_grad()
    def restore(self, kept: dict[str, Tensor]) -> None:
        """Set the parameters and buffers to ``kept = weights()``; a buffer made since then stays."""
        for name, tensor in _tensors(self.model):
            if name in kept and tensor.shape != kept[name].shape:  # observers get their size in the first forward pass
                tensor.data = kept[name].clone()
            elif name in kept:
                tensor.copy_(kept[name])

    def frozen_received(self) -> nn.Module:
        """A second copy with the weights as received, in eval mode, without grads: the teacher of distillation."""
        # Of the given model: the working copy may hold activations of a training step, which cannot be copied.
        teacher = copy.deepcopy(self._given).to(device=self._device, dtype=torch.float32)
        for name, parameter in teacher.named_parameters():
            parameter.data = self._received[name]  # shared: no step writes to them
        return teacher.eval().requires_grad_(False)

    def round_to_given_dtypes(self) -> bool:
        """Round the weights as ``finish`` will, but keep them in float32; returns whether any had to be rounded."""
        rounded = False
        for name, tensor in _tensors(self.model):
            given = self._dtypes.get(name, tensor.dtype)
            if given not in (tensor.dtype, torch.float64):  # float64 holds every float32
                tensor.data = tensor.data.to(given).to(tensor.dtype)
                rounded = True
        return rounded

    def finish(self) -> nn.Module:
        """The copy in the dtypes, mode, trainability and device of the given model.

        What is not trained has the bits of the given model: float64, which the run rounds, too.
        """
        self.model.zero_grad(set_to_none=True)
        kept = self._not_trained()
        for name, tensor in _tensors(self.model):
            if name in kept:
                tensor.data = kept[name].detach().clone()
                continue
            # A buffer made in the first forward pass, such as a cache, has no recorded dtype.
            tensor.data = tensor.data.to(device=self._given_device, dtype=self._dtypes.get(name, tensor.dtype))
            if name in self._contiguous:
                tensor.data = tensor.data.contiguous()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        for name, module in self.model.named_modules():
            module.training = self._training[name]
        return self.model

    def _not_trained(self) -> dict[str, Tensor]:
        """Of the given model: the parameters that are not trained, and the buffers of the modules without any."""
        kept: dict[str, Tensor] = {
            name: p for name, p in self._given.named_parameters() if name not in self.trained.names
        }
        for path in self.trained.fixed:
            for name, buffer in self._given.get_submodule(path).named_buffers(path, recurse=False):
                kept[name] = buffer
        return kept


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name; shared ones occur once."""
    return [*model.named_parameters(), *model.named_buffers()]


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """``model(batch)``, or ``model(**batch)`` for named tensors; its ``logits`` if the output has them.

    Of a tuple or list, such as ``(loss, logits)``, the only tensor of floats with two dimensions.
    """
    output = call(model, batch)
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)):
        tables = [v for v in output if isinstance(v, Tensor) and v.ndim == 2 and v.is_floating_point()]
        logits = tables[0] if len(tables) == 1 else None
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"the model returned a {type(output).__name__}; expected logits: a tensor, an object or dict with "
            "'logits', or a tuple with one (B, C) tensor, such as (loss, logits)"
        )
    return logits


def check_logits(logits: Tensor, n_samples: int, *, finite: bool = True) -> None:
    """Raise ``ModelError`` unless ``logits`` is ``(n_samples, C >= 2)`` floats; all finite, if ``finite``."""
    if logits.ndim != 2 or len(logits) != n_samples or logits.shape[1] < 2:
        raise ModelError(
            f"the model returned logits of shape {tuple(logits.shape)}; expected ({n_samples}, number of classes >= 2)"
        )
    if not logits.is_floating_point():
        raise ModelError(f"the model returned {logits.dtype}; expected floating-point logits")
    if finite and not torch.isfinite(logits).all():
        raise ModelError("the model returned NaN or Inf on clean data; expected finite logits")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without grads; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference mode: training could not use tensors that the model caches in its first forward pass.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
