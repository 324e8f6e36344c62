"""Capturing a training step as a CUDA graph, and checking the graph before it is used.

Warming up changes weights, buffers, optimizer and generators: all are restored. A capture can silently keep values of
the moment when it was made: two replays are compared with two eager steps from the same state. A model that waits for
the device, or allocates by its data, cannot be captured: everything is restored, and the reason is raised.

Source: PyTorch's notes on CUDA graphs, "Whole-network capture".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

_N_WARM_UPS = 3
_TRIAL_RATE = 1e-3
_LEAST_COSINE = 0.99
_SLACK = 0.05
_SHARE_APART = 0.05
_LOSS_SLACK = 0.01
"""Kernels with different orders of summation differ by rounding, and Adam amplifies a gradient that is only rounding,
such as that of a bias before BatchNorm. So two steps count as equal if, for all but a few percent of the numbers, they
agree to a few percent in length and direction. A broken capture differs far more."""


class NotCaptured(Exception):
    """The step cannot be replayed; the message is the reason."""


def why_not(device: torch.device) -> str | None:
    """Why ``device`` cannot capture a step, or ``None``."""
    return None if device.type == "cuda" else f"{device.type} has no graphs to replay"


def captured(
    body: Callable[[], None],
    model: nn.Module,
    state: list[Tensor],
    witness: Tensor,
    set_rate: Callable[[float], None],
    device: torch.device,
    generators: list[torch.Generator],
) -> Callable[[], None]:
    """The replay of a CUDA graph of ``body``; model, ``state``, ``witness`` and generators are restored.

    Args:
        body: a training step on static tensors.
        model: trained by ``body``.
        state: the other tensors that ``body`` changes, except the witness.
        witness: 0-d; ``body`` adds its loss to it.
        set_rate: sets the learning rate of ``body``.
        device: of the tensors.
        generators: of ``body`` on the device, in addition to the device's own.

    Raises:
        NotCaptured: ``body`` cannot be captured, or replays differ from it.
    """
    before = _Snapshot(model, [*state, witness], device, generators)
    try:
        # Some schedules begin at a rate of 0, at which wrong steps look right.
        set_rate(_TRIAL_RATE)
        _warm_up(body, device)
        replay = _captured(body, device, generators)
        replaced = before.replaced()
        if replaced is not None:  # a replay would read the old one
            raise NotCaptured(f"the model puts another tensor in place of {replaced} at each step")
        before.restore()
        moved = []
        for take in (body, replay):
            for _ in range(2):
                take()
            moved.append(before.moves())
            before.restore()
        problem = _difference(*moved)
        if problem is not None:
            raise NotCaptured(f"two replays differ from two eager steps: {problem}")
    except NotCaptured:
        before.restore()
        raise
    except Exception as error:  # any operation that a capture does not allow
        before.restore()
        first_line = (str(error).splitlines() or [""])[0]
        raise NotCaptured(f"the step cannot be captured ({type(error).__name__}: {first_line})") from error
    return replay


def _warm_up(body: Callable[[], None], device: torch.device) -> None:
    """Make workspaces and autotuned kernels before the capture, on a separate stream."""
    if device.type != "cuda":
        body()
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_N_WARM_UPS):
            body()
    torch.cuda.current_stream(device).wait_stream(stream)


def _captured(body: Callable[[], None], device: torch.device, generators: list[torch.Generator]) -> Callable[[], None]:
    with torch.cuda.device(device):
        cuda_graph = torch.cuda.CUDAGraph()
        for generator in generators:
            cuda_graph.register_generator_state(generator)
        # Other threads may use the device meanwhile: one sends batches.
        with torch.cuda.graph(cuda_graph, capture_error_mode="thread_local"):
            body()
    return cuda_graph.replay


class _Snapshot:
    """Saved tensors and generators, to be restored."""

    def __init__(
        self, model: nn.Module, state: list[Tensor], device: torch.device, generators: list[torch.Generator]
    ) -> None:
        self._owned = [
            (f"{path}.{name}".lstrip("."), tensors, name, tensor)
            for path, module in model.named_modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._state = [*model.parameters(), *model.buffers(), *state]
        self._values = [value.detach().clone() for value in self._state]
        self._device = device
        self._generators = [(generator, generator.get_state()) for generator in generators]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def replaced(self) -> str | None:
        """The first parameter or buffer that is no longer the same tensor."""
        return next((path for path, tensors, name, tensor in self._owned if tensors.get(name) is not tensor), None)

    @torch.no_grad()
    def restore(self) -> None:
        for _, tensors, name, tensor in self._owned:
            tensors[name] = tensor
        for tensor, value in zip(self._state, self._values, strict=True):
            tensor.copy_(value)
        for tensor in self._state:
            tensor.grad = None
        for generator, state in self._generators:
            generator.set_state(state)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)

    @torch.no_grad()
    def moves(self) -> list[Tensor]:
        """The change of each tensor."""
        return [(now - then).reshape(-1) for now, then in zip(self._state, self._values, strict=True)]


def _difference(expected: list[Tensor], got: list[Tensor]) -> str | None:
    """How two lists of changes differ, or ``None``; the last is the witness, which must agree."""
    products = [torch.stack([_dot(a, a), _dot(b, b), _dot(a, b)]) for a, b in zip(expected, got, strict=True)]
    n_apart, n_all, example = 0, 0, ""
    for n, (square, other_square, product) in enumerate(torch.stack(products).tolist()):  # the only sync
        if not math.isfinite(square):
            continue  # the run itself raises an error
        length, other = math.sqrt(square), math.sqrt(other_square)
        cosine = product / max(length * other, 1e-300)
        same = max(length, other) < 1e-12 or (cosine >= _LEAST_COSINE and abs(other - length) <= _SLACK * length)
        n_all += expected[n].numel()
        if not same:
            n_apart += expected[n].numel()
            example = f"tensor {n} moves by {other:.3g} instead of {length:.3g}, at a cosine of {cosine:.3f}"
    loss, other_loss = float(expected[-1]), float(got[-1])
    if math.isfinite(loss) and not math.isclose(loss, other_loss, rel_tol=_LOSS_SLACK):
        return f"their losses add up to {other_loss:.6g} instead of {loss:.6g}"
    return example if n_apart > _SHARE_APART * n_all else None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum()
