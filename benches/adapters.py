"""A LoRA adapter of MiniLM with a backdoor: cured as given, saved alone, and loaded onto its base anew.

    python benches/adapters.py --minilm FOLDER [--attacks word sentence] [--seed 0]

The received model is the published encoder (see ``minilm.py``) with a new head, and LoRA of rank 8 on queries and
values. Adapter and head are trained on 2,000 texts of SST-2, a tenth of them poisoned, for 3 epochs of batches of 32,
AdamW at 1e-3 that falls linearly; the base is frozen. The defender has 5 % of the 6,920 training texts, and calls
``seamfast.sanitize`` by its defaults, so only what requires grad is trained. Then PEFT saves the adapter, and loads it
onto the base as it was published: ``acc_reloaded`` and ``asr_reloaded`` are those of that model, and ``n_changed``
counts the frozen tensors that differ in a bit. ``floor`` is the ASR of an adapter that was trained without poison.

A row of ``--out`` is one attack and seed; what has a row is not run again. One thread, and seconds are those of the
cure, on a machine that may have other load. The figures stand in docs/method.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches import minilm, study, text_zoo  # noqa: E402
from benches.rows import Row, append_row, commit, read_rows  # noqa: E402
from benches.text_zoo import RATE, TestSet, TextEntry  # noqa: E402
from benches.zoo import DATA_ROOT  # noqa: E402
from seamfast import CleanSet, attacks  # noqa: E402
from seamfast.attacks import Backdoor  # noqa: E402
from seamfast.modalities import Vocabulary  # noqa: E402
from seamfast.record import machine  # noqa: E402

OUT = ROOT / "benches" / "results" / "adapters.jsonl"
ATTACKS = ("word", "sentence")
N_TRAIN, RANK, EPOCHS, BATCH, PEAK = 2000, 8, 3, 32, 1e-3
BUDGET = 0.05


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="of the data sets")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    done = {(row["attack"], row["seed"]) for row in read_rows(arguments.out)}
    todo = [attack for attack in arguments.attacks if (attack, arguments.seed) not in done]
    if not todo:
        return 0
    vocabulary = Vocabulary.of(minilm.tokenizer_of(arguments.minilm), max_length=text_zoo.MAX_LENGTH["sst2"])
    train_set, test_set = (
        text_zoo.read("sst2", arguments.root, split).encoded(vocabulary) for split in ("train", "test")
    )
    known = train_set.draw(N_TRAIN / len(train_set), seed=arguments.seed)
    clean = text_zoo.clean_part(train_set, BUDGET, arguments.seed)
    never = adapted(arguments.minilm, known, arguments.seed)
    for attack in todo:
        row = row_of(attack, arguments.seed, arguments.minilm, never, known, clean, TestSet(test_set))
        append_row(arguments.out, row)
        print(row, flush=True)
    return 0


def row_of(
    attack: str, seed: int, folder: Path, never: nn.Module, known: CleanSet, clean: CleanSet, test: TestSet
) -> Row:
    """Plant, cure, save, load, and say all of it."""
    target = TextEntry("sst2", "minilm", attack, seed).target
    planted = attacks.known_attack(attack, known, target=target, rate=RATE, seed=seed)
    backdoor = Backdoor(attack, planted.triggers)
    received = adapted(folder, planted.data, seed)
    before = text_zoo.rates(received, backdoor, test, None)
    begin = time.perf_counter()
    result = seamfast.sanitize(received, clean, seed=seed, progress=False)
    seconds = time.perf_counter() - begin
    after = text_zoo.rates(result.model, backdoor, test, None)
    with tempfile.TemporaryDirectory() as saved:
        result.model.save_pretrained(saved)  # type: ignore[operator]
        reloaded = text_zoo.rates(loaded(folder, Path(saved), seed), backdoor, test, None)
    row: Row = {"data": "sst2", "attack": attack, "seed": seed, "n_clean": len(clean), "n_test": len(test.texts)}
    for when, found in (("before", before), ("after", after), ("reloaded", reloaded)):
        row |= {f"{name}_{when}": value for name, value in found.items()}
    row |= study.fidelities({f"{name}_before": value for name, value in before.items()}, after)
    row |= {"floor": text_zoo.rates(never, backdoor, test, None)["asr"]}
    row |= {"n_changed": n_changed(received, result.model), "trainable": result.report["run"]["trainable"]}
    row |= {"accepted": result.accepted, "seconds": round(seconds, 1), "machine": machine(), "commit": commit()}
    return row


def adapted(folder: Path, data: CleanSet, seed: int) -> nn.Module:
    """The published encoder with an adapter and a head that are trained on ``data``, in eval mode."""
    from peft import LoraConfig, get_peft_model

    base = minilm.classifier(folder, data.num_classes or 0, seed)
    torch.manual_seed(seed)
    how: dict[str, Any] = {"task_type": "SEQ_CLS", "r": RANK, "target_modules": ["query", "value"]}
    model: nn.Module = get_peft_model(base, LoraConfig(**how))  # type: ignore[arg-type]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, PEAK, weight_decay=0.0)
    n_steps = EPOCHS * (len(data) // BATCH)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_steps)
    assert isinstance(data.inputs, dict)
    lengths = data.inputs["attention_mask"].sum(1)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(data), generator=order).split(BATCH)[: len(data) // BATCH]:
            width = int(lengths[chosen].max())
            inputs = {name: values[chosen, :width] for name, values in data.inputs.items()}
            optimizer.zero_grad()
            F.cross_entropy(model(**inputs).logits, data.labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            falling.step()
    return model.eval()


def loaded(folder: Path, saved: Path, seed: int) -> nn.Module:
    """The published encoder with a saved adapter and its head, in eval mode."""
    from peft import PeftModel

    model: nn.Module = PeftModel.from_pretrained(minilm.classifier(folder, 2, seed), saved)  # type: ignore[arg-type]
    return model.eval()


def n_changed(received: nn.Module, returned: nn.Module) -> int:
    """Tensors that do not require grad, or are buffers, and differ."""
    trained = {name for name, parameter in received.named_parameters() if parameter.requires_grad}
    after = returned.state_dict()
    before = received.state_dict()
    return sum(not torch.equal(before[name], after[name]) for name in before.keys() - trained)


if __name__ == "__main__":
    sys.exit(main())
