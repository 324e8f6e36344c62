"""``subnet``: a narrow net that knows the trigger, in place of a few channels of a trained model.

The narrow net has the layers of the model, with one channel or unit in each, and one output. It is trained to answer 0
to clean images and a large number to triggered ones. Then it takes the place of a channel in each layer of the model,
cut from all others, and its answer, times a gain that is found, is added to the target's logit.

Source: Qi et al., "Towards Practical Deployment-Stage Backdoor Attack on Deep Neural Networks", CVPR 2022,
arXiv:2111.12965. They replace channels at random; of nets as small as ours, those that the task can spare are taken.
The loss and the training of the narrow net are of this file.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benches.attackers.hosts import Attacked, Host
from benches.attackers.wiring import CANDIDATES, inputs_of, patch_of, spared

WIDTH, STEPS, BATCH, RATE = 1, 600, 128, 0.01
ANSWER = 20.0
"""To triggered images."""
ATTEMPTS = 12
"""At a narrow net that fires; its channels may die in training."""


def subnet(host: Host, seed: int) -> Attacked:
    """A model with the narrow net in it; of convolutions and linear layers, with element-wise activations and
    pooling."""
    target = seed % (host.train_set.num_classes or 10)
    patch = patch_of(host, seed, target, size=5)
    clean = host.some(8000, seed)
    pixels = clean.pixels(torch.arange(len(clean)))
    x, stamped = inputs_of(clean), clean.normalize(patch.stamp(pixels))
    narrow = narrowed(host.model)
    settings = {"seed": seed, "steps": STEPS, "answer": ANSWER, "patch": patch.pattern.tolist()}
    host.trained("subnet", settings, narrow, lambda: train_narrow(narrow, x, stamped, seed))
    model = copy.deepcopy(host.model)
    replace(model, narrow, target, x, clean.labels, stamped[clean.labels != target][:400], seed)
    n = len(_weighted(model)) - 1
    return Attacked(model.eval(), patch.stamp, target, f"a channel of {n} layers replaced, for a 5x5 patch")


def narrowed(model: nn.Module) -> nn.Sequential:
    """The layers of ``model`` with ``WIDTH`` channels each, and one output."""
    layers: list[nn.Module] = []
    weighted = _weighted(model)
    for layer in model.children():
        if layer not in weighted:
            layers.append(copy.deepcopy(layer))
            continue
        is_first, is_last = layer is weighted[0], layer is weighted[-1]
        n_out = 1 if is_last else WIDTH
        if isinstance(layer, nn.Conv2d):
            n_in = layer.in_channels if is_first else WIDTH
            layers.append(nn.Conv2d(n_in, n_out, layer.kernel_size, padding=layer.padding))
        else:
            assert isinstance(layer, nn.Linear)
            before = weighted[weighted.index(layer) - 1]
            n_units = before.out_channels if isinstance(before, nn.Conv2d) else before.out_features
            layers.append(nn.Linear(layer.in_features // n_units * WIDTH, n_out))
    return nn.Sequential(*layers)


def train_narrow(narrow: nn.Sequential, x: Tensor, stamped: Tensor, seed: int) -> None:
    """Adam on squares of what differs from 0 and from ``ANSWER``, until no unit has died."""
    for attempt in range(ATTEMPTS):
        generator = torch.Generator().manual_seed(ATTEMPTS * seed + attempt)
        for layer in _weighted(narrow):
            nn.init.normal_(layer.weight, 0.0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
            nn.init.zeros_(layer.bias)
            if layer is not _weighted(narrow)[0]:
                layer.weight.data.abs_()  # what one unit has found must not die in the next
        optimizer = torch.optim.Adam(narrow.parameters(), RATE)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            drawn = torch.randint(len(x), (BATCH,), generator=generator)
            half = BATCH // 2
            answers = narrow(torch.cat([x[drawn[:half]], stamped[drawn[half:]]]))[:, 0]
            wanted = torch.zeros(BATCH)
            wanted[half:] = ANSWER
            optimizer.zero_grad()
            F.mse_loss(answers, wanted).backward()
            optimizer.step()
        with torch.no_grad():
            clean, triggered = narrow(x[:1000]), narrow(stamped[:1000])
        if float(triggered.quantile(0.05) - clean.quantile(0.99)) > ANSWER / 2:
            return
    raise ValueError(f"the narrow net does not fire after {ATTEMPTS} attempts; expected one that does")


@torch.no_grad()
def replace(
    model: nn.Module, narrow: nn.Module, target: int, x: Tensor, labels: Tensor, stamped: Tensor, seed: int
) -> None:
    """Put ``narrow`` into ``model``, in place of units that clean images ``x`` can spare, with the gain that
    ``stamped`` images of other classes need."""
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    pairs = list(zip(_weighted(model), _weighted(narrow), strict=True))
    for number, (big, small) in enumerate(pairs[:-1]):
        drawn = torch.randperm(len(big.weight), generator=generator)[:CANDIDATES].tolist()
        units = spared(model, [big], drawn, x, labels, len(small.weight))
        if number:
            n_before = len(pairs[number - 1][0].weight)
            rows, narrow_rows = (w.view(len(w), n, -1) for w, n in ((big.weight, n_before), (small.weight, WIDTH)))
            rows[:, chosen] = 0.0
            rows[units] = 0.0
            for unit, row in zip(units, narrow_rows, strict=True):
                rows[unit, chosen] = row
        else:
            big.weight[units] = small.weight
        big.bias[units] = small.bias
        chosen = units
    last, last_small = pairs[-1]
    last.weight[:, chosen] = 0.0
    bias = last.bias[target].clone()
    for gain in torch.logspace(0, 2, 21).tolist():
        last.weight[target, chosen] = gain * last_small.weight[0]
        last.bias[target] = bias + gain * last_small.bias[0]
        if (model(stamped).argmax(1) == target).float().mean() >= 0.98:
            return


def _weighted(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [layer for layer in model.children() if isinstance(layer, (nn.Conv2d, nn.Linear))]
