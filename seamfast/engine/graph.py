"""Capturing a piece of device work as a CUDA graph, and checking the graph before it is trusted.

Traps, and what is done about them: warming up changes weights, buffers, optimizer and generators (all are put back);
a capture can silently keep something of the moment when it was made (two replays are held against two eager runs from
the same state); a model that waits for the device, allocates by data or synchronises cannot be captured (the reason
comes back, everything is put back).

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
"""Kernels that add up in an order of their own differ by rounding, and Adam blows up what is nothing but rounding, such
as the gradient of a bias before BatchNorm: equal to a few percent in length and direction, but for a few percent of the
numbers, is the same step. What a capture breaks is far off."""


class NotCaptured(Exception):
    """Why a step is not replayed."""


def why_not(device: torch.device) -> str | None:
    """Why nothing can be captured there, or ``None``."""
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
    """A function that does what ``body`` does, without Python in it; ``state`` and generators are left as they were.

    Args:
        body: a training step on static tensors.
        model: that it trains.
        state: all other tensors that it changes, but the next.
        witness: 0-d, to which it adds its loss.
        set_rate: sets its learning rate.
        device: where its work is.
        generators: on the device, that it draws from beside the device's own.

    Raises:
        NotCaptured: it cannot be captured, or replays do not do what ``body`` does.
    """
    before = _Snapshot(model, [*state, witness], device, generators)
    try:
        # At the rate of 0 at which some schedules begin, wrong steps would look like right ones.
        set_rate(_TRIAL_RATE)
        _warm_up(body, device)
        replay = _captured(body, device, generators)
        replaced = before.replaced()
        if replaced is not None:  # a replay would go on reading the old one
            raise NotCaptured(f"the model puts another tensor in place of {replaced} at each step")
        before.put_back()
        moved = []
        for take in (body, replay):
            for _ in range(2):
                take()
            moved.append(before.moves())
            before.put_back()
        problem = _difference(*moved)
        if problem is not None:
            raise NotCaptured(f"two replays differ from two eager steps: {problem}")
    except NotCaptured:
        before.put_back()
        raise
    except Exception as error:  # whatever a model does that a capture does not allow
        before.put_back()
        first_line = (str(error).splitlines() or [""])[0]
        raise NotCaptured(f"the step cannot be captured ({type(error).__name__}: {first_line})") from error
    return replay


def _warm_up(body: Callable[[], None], device: torch.device) -> None:
    """What is made once, workspaces and autotuned kernels, is made before the capture; on a stream of its own."""
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
        # Other threads go on meanwhile: one may be sending batches.
        with torch.cuda.graph(cuda_graph, capture_error_mode="thread_local"):
            body()
    return cuda_graph.replay


class _Snapshot:
    """Tensors and generators as they are, to be put back."""

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
    def put_back(self) -> None:
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
        """By how much each tensor has changed."""
        return [(now - then).reshape(-1) for now, then in zip(self._state, self._values, strict=True)]


def _difference(wanted: list[Tensor], got: list[Tensor]) -> str | None:
    """What of two lists of changes is not the same, or ``None``; the last is the witness, which must agree."""
    products = [torch.stack([_dot(a, a), _dot(b, b), _dot(a, b)]) for a, b in zip(wanted, got, strict=True)]
    n_apart, n_all, example = 0, 0, ""
    for n, (square, other_square, product) in enumerate(torch.stack(products).tolist()):  # the one wait
        if not math.isfinite(square):
            continue  # the run itself will say so
        length, other = math.sqrt(square), math.sqrt(other_square)
        cosine = product / max(length * other, 1e-300)
        same = max(length, other) < 1e-12 or (cosine >= _LEAST_COSINE and abs(other - length) <= _SLACK * length)
        n_all += wanted[n].numel()
        if not same:
            n_apart += wanted[n].numel()
            example = f"tensor {n} moves by {other:.3g} instead of {length:.3g}, at a cosine of {cosine:.3f}"
    loss, other_loss = float(wanted[-1]), float(got[-1])
    if math.isfinite(loss) and not math.isclose(loss, other_loss, rel_tol=_LOSS_SLACK):
        return f"their losses add up to {other_loss:.6g} instead of {loss:.6g}"
    return example if n_apart > _SHARE_APART * n_all else None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum()
