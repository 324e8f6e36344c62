"""NAD, neural attention distillation: the received model learns where a fine-tuned copy of it looks.

Source: Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks", ICLR 2021,
arXiv:2101.05930.

The teacher is the received model fine-tuned on the clean budget for 10 epochs. The student starts as the received model
too, and for 10 epochs minimizes cross-entropy plus, at each of several depths, ``beta`` times the mean squared
difference of its attention map and the teacher's. The attention map of features ``A`` is ``sum(abs(A)**p)`` over
channels, divided by its l2 norm over places.

Settings: those of the authors' code (bboylyg/NAD: ``main.py``, ``at.py``, ``config.py`` as first published, and the
README on the teacher): p 2; betas 500, 1000, 1000 from low to high; SGD with Nesterov momentum 0.9, weight decay 1e-4,
batches of 64, rate 0.1 for two epochs and 0.01 from then on; teacher by the same loop with betas of 0; Cutout.
Cutout's hole is 9 of 32 pixels wide, as in the paper (the code's is 2), in proportion for images of other sizes.

Which features: theirs are the outputs of the three groups of a WideResNet, one for each resolution. Here, for any
model (``stages``): the last feature map at each resolution at which a layer with weights computes, and of these the
last three; maps of a single place, whose attention is always 1, are left out. A model that gives tokens has one
resolution: there it is the outputs of the blocks one, two and three thirds of the way through, and a map has one place
for each token. With fewer than three stages the first betas go.

Departs: 0.1 with these betas destroys most networks without BatchNorm, so teacher and student are each trained again at
a tenth, and a hundredth, of the rate where accuracy on the clean budget ends below 0.9 of what the received model has
there; all steps count. The authors keep the epoch that is best on test data; here it is the last. Crops reflect the
image's edges, theirs pad with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from benches.defences.training import Defended, Training, set_rate

BETAS = (500.0, 1000.0, 1000.0)

Place = tuple[str, int]
"""A module by name, and which of its calls within a forward pass."""


def nad(
    model: nn.Module,
    clean: seamfast.CleanSet,
    *,
    seed: int,
    augment: tuple[int, bool],
    teacher_epochs: int = 10,
    epochs: int = 10,
    betas: tuple[float, ...] = BETAS,
    power: float = 2.0,
    batch_size: int = 64,
    rates: tuple[float, ...] = (0.1, 0.01, 0.001),
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    cutout_share: float = 9 / 32,
    precision: str = "auto",
) -> Defended:
    """NAD, as in the head of this file; ``n_steps`` counts the steps of the teacher and of the student."""
    with Training(model, clean, seed=seed, augment=augment, batch_size=batch_size, precision=precision) as training:
        places = stages(training.copy(), next(training.as_they_are())[0][:2])[-len(betas) :]
        weights = betas[len(betas) - len(places) :]

        def trained(n_epochs: int, loss: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> nn.Module:
            """A copy of the received model, trained at the highest rate that keeps its accuracy."""
            for rate in rates:
                candidate = training.copy()
                optimizer = torch.optim.SGD(
                    candidate.parameters(), rate, momentum, weight_decay=weight_decay, nesterov=True
                )
                for epoch in range(n_epochs):
                    set_rate(optimizer, rate if epoch < 2 else min(rate, 0.01))
                    for inputs, labels in training.batches(epoch):
                        optimizer.zero_grad()
                        loss(candidate, cutout(inputs, cutout_share), labels).backward()
                        optimizer.step()
                if training.is_intact(candidate):
                    break
            return candidate

        def cross_entropy(candidate: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(training.logits(candidate, inputs), labels)

        teacher = trained(teacher_epochs, cross_entropy).eval().requires_grad_(False)

        def with_attention(candidate: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad(), features(teacher, places) as wanted:
                training.logits(teacher, inputs)
            with features(candidate, places) as got:
                loss = cross_entropy(candidate, inputs, labels)
            for place, beta in zip(places, weights, strict=True):
                loss = loss + beta * attention_loss(got[place], wanted[place], power)
            return loss

        return training.finish(trained(epochs, with_attention))


def attention_loss(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """``mse_loss(attention_map(student), attention_map(teacher))``."""
    return F.mse_loss(attention_map(student, power), attention_map(teacher, power))


def attention_map(features: Tensor, power: float) -> Tensor:
    """``normalize(sum(abs(features)**power))``: over channels the sum, over places the l2 norm.

    Args:
        features: ``(N, C, H, W)`` maps or ``(N, T, D)`` tokens.
        power: of the absolute value.

    Returns:
        ``(N, H * W)`` or ``(N, T)`` float32.
    """
    strength = features.float().abs().pow(power)
    summed = strength.sum(1).flatten(1) if features.ndim == 4 else strength.sum(2)
    return summed / (summed.norm(dim=1, keepdim=True) + 1e-6)


def stages(model: nn.Module, inputs: Tensor) -> list[Place]:
    """Where the features are whose attention is distilled, in the order of the forward pass; see the head of this file.

    Args:
        model: any; its mode is kept.
        inputs: a few samples.

    Raises:
        ValueError: ``the model gives neither feature maps nor tokens; attention needs places to attend to``.
    """
    seen: list[tuple[Place, torch.Size, bool]] = []
    counts: dict[str, int] = {}
    names = {module: name for name, module in model.named_modules() if name}

    def note(module: nn.Module, _: object, output: object) -> None:
        name = names[module]
        counts[name] = counts.get(name, -1) + 1
        if isinstance(output, Tensor):
            has_weights = any(True for _ in module.parameters(recurse=False))
            seen.append(((name, counts[name]), output.shape, has_weights))

    hooks = [module.register_forward_hook(note) for module in names]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()

    blocks = _token_blocks(model, [(place, shape) for place, shape, _ in seen if len(shape) == 3])
    if blocks:
        thirds = [math.ceil(third * len(blocks) / 3) - 1 for third in (1, 2, 3)]
        return [blocks[i] for i in sorted(set(thirds))]

    last: dict[tuple[int, ...], Place] = {}
    computed = set()
    for place, shape, has_weights in seen:
        resolution = tuple(shape[2:])
        if len(shape) == 4 and math.prod(resolution) > 1:
            last[resolution] = place
            if has_weights:
                computed.add(resolution)
    found = [place for resolution, place in last.items() if resolution in computed]
    if not found:
        raise ValueError("the model gives neither feature maps nor tokens; attention needs places to attend to")
    return found


def _token_blocks(model: nn.Module, giving_tokens: list[tuple[Place, torch.Size]]) -> list[Place]:
    """The outermost modules that are one of several in a row and give tokens: an encoder's blocks."""
    in_a_row = {
        f"{name}.{i}" if name else str(i)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList))
        for i in range(len(module))
    }
    candidates = [place for place, _ in giving_tokens if place[0] in in_a_row]
    names = {name for name, _ in candidates}
    return [(name, call) for name, call in candidates if not any(name.startswith(f"{outer}.") for outer in names)]


@contextmanager
def features(model: nn.Module, places: list[Place]) -> Iterator[dict[Place, Tensor]]:
    """What ``model`` gives at ``places`` in the forward pass that is made in here."""
    found: dict[Place, Tensor] = {}
    counts: dict[str, int] = {}
    hooks = []
    for name in {name for name, _ in places}:

        def note(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
            counts[name] = counts.get(name, -1) + 1
            if (name, counts[name]) in places:
                found[name, counts[name]] = output

        hooks.append(model.get_submodule(name).register_forward_hook(note))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def cutout(images: Tensor, share: float) -> Tensor:
    """One square hole of zeros in each image, its middle anywhere, so that a part of it may lie outside.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    arXiv:1708.04552.

    Args:
        images: ``(N, C, H, W)`` normalized, so that 0 is the mean.
        share: side of the hole by the shorter side of the image.
    """
    n, _, height, width = images.shape
    side = round(share * min(height, width))

    def inside(length: int) -> Tensor:
        first = torch.randint(0, length, (n, 1), device=images.device) - side // 2
        at = torch.arange(length, device=images.device)
        return (at >= first) & (at < first + side)

    return images.masked_fill((inside(height)[:, :, None] & inside(width)[:, None, :])[:, None], 0.0)
