"""Does the backdoor of a text classifier go, and does the task stay? Methods on models of ``text_zoo.py``; resumable.

    python benches/text_study.py [--methods fine_tune meft] [--budgets 0.05 20] [--defence-seeds 0 1 2] [--shard 1/2]
    python benches/text_study.py --data sst2 --architectures text_transformer --ablation '{"disturbance": 0.0}'
    python benches/text_study.py --report

Each method gets a model of the zoo as received, a clean budget and a seed, and nothing else. A budget below 1 is a
share of the training texts (5 % is 346 of SST-2, 555 of the AG News that is there, 273 of TREC), from 1 on it is texts
a class, or all of a class that has fewer. What is triggered is stamped here, on test texts, and only to measure: ACC,
ASR and RA before and after, and the *floor*: the ASR of the same model without a backdoor. Nothing is chosen by it.

A row of ``--out`` is one model, method, budget and seed. What has a row is not run again, so a killed run goes on where
it was, and two processes may share a file (``--shard``). Delete the rows of a method that changed. Models that are not
planted are left out, and those of a pretrained encoder without ``--minilm`` (see ``text_zoo.py``). One thread; seconds
are those of the method, on a machine that may have other load.

Methods: ``seam (balanced)``, the defaults of ``sanitize``, and its other presets; ``ABLATIONS``, the defaults with some
settings changed, more of which ``--ablation`` takes as JSON; those of ``benches/defences/text.py``; and of the
pretrained encoder ``pretrained``, a new classifier that is fine-tuned on the clean budget: what a defender has who can
get the encoder anew.

``--report`` measures nothing: it writes ``text.md`` from the rows to ``--docs``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benches import minilm, study, text_report, text_zoo  # noqa: E402
from benches.defences.text import TEXT_DEFENCES, fine_tune  # noqa: E402
from benches.rows import Row, read_rows  # noqa: E402
from benches.study import Treated, latest  # noqa: E402
from benches.study_report import SEAM, Key  # noqa: E402
from benches.text_zoo import PRETRAINED, TestSet, TextEntry, clean_part  # noqa: E402
from seamfast import CleanSet, SeamConfig  # noqa: E402
from seamfast.attacks import Backdoor  # noqa: E402
from seamfast.modalities import TextModality  # noqa: E402

OUT = ROOT / "benches" / "results" / "text.jsonl"
ABLATIONS: tuple[dict[str, Any], ...] = (
    {"forget_max_steps": 40, "recover_from_forgotten": True},
    {"distillation": 0.0},
    {"occlusions": 0, "searches": 0},
    {"searches": 0},
    {"calibration": 0.0},
    {"prune": False},
)
"""Changes to the settings for texts, one method each. In order: forgetting before recovery, no teacher,
neither insertions nor edits, no search of the vocabulary, no calibration, and no row held."""
NEW_ENCODER = "pretrained"


@dataclass(frozen=True)
class TextJob:
    """One row to be."""

    entry: TextEntry
    method: str
    budget: float
    seed: int

    @property
    def key(self) -> Key:
        return self.entry.name, self.method, self.budget, self.seed, False


@dataclass(frozen=True)
class TextCase:
    """What all methods get of one model, budget and seed, and what they are measured with."""

    model: nn.Module
    clean: CleanSet
    backdoor: Backdoor | None
    test: TestSet
    before: Row
    floor: float | None


Method = Callable[[nn.Module, CleanSet, int], Treated]
"""``(model, clean, seed)``: all that a defender knows."""


def seam(**options: Any) -> Method:
    """``seamfast.sanitize`` with these options."""
    treat = study.seam(**options)
    return lambda model, clean, seed: treat(model, clean, "", (0, False), seed)


def published(name: str) -> Method:
    """A defence of ``benches/defences/text.py``."""

    def treat(model: nn.Module, clean: CleanSet, seed: int) -> Treated:
        done = TEXT_DEFENCES[name](model, clean, seed=seed, augment=(0, False))
        return Treated(done.model, done.n_steps, done.seconds)

    return treat


def new_encoder(folder: Path) -> Method:
    """The encoder as published with a new head, fine-tuned on the clean budget; of the received model, nothing."""

    def treat(model: nn.Module, clean: CleanSet, seed: int) -> Treated:
        assert clean.num_classes is not None
        new = minilm.classifier(folder, clean.num_classes, seed)
        done = fine_tune(new, clean, seed=seed, augment=(0, False))
        return Treated(done.model, done.n_steps, done.seconds)

    return treat


def ablation(changes: dict[str, Any]) -> tuple[str, Method]:
    """The method and its name: ``seam, occlusions=0``."""
    name = ", ".join(["seam", *(f"{field}={value}" for field, value in changes.items())])
    return name, seam(config=replace(SeamConfig.preset("balanced", TextModality), **changes))


METHODS: dict[str, Method] = {
    SEAM: seam(),
    **{f"seam ({preset})": seam(preset=preset) for preset in ("fast", "thorough")},
    **{name: published(name) for name in TEXT_DEFENCES},
    **dict(map(ablation, ABLATIONS)),
}
MAIN = (SEAM, *TEXT_DEFENCES)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text_zoo.add_choices(parser)
    parser.add_argument(
        "--methods", nargs="+", default=[], help=f"of {', '.join([*METHODS, NEW_ENCODER])}; default: {', '.join(MAIN)}"
    )
    parser.add_argument(
        "--ablation", action="append", default=[], type=json.loads, metavar="JSON", help="a method more"
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.05], help="e.g. 0.05 20")
    parser.add_argument("--defence-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing that is expected to end later")
    parser.add_argument("--shard", default="1/1", help="i/n: of the models, every n-th from the i-th on")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="measure nothing; tables of the rows")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    arguments = parser.parse_args(given)
    rows = latest(read_rows(arguments.out))
    if arguments.report:
        text_report.write(arguments.docs, list(rows.values()))
        return 0

    more = dict(map(ablation, arguments.ablation))
    if arguments.minilm is not None:
        more[NEW_ENCODER] = new_encoder(arguments.minilm)
    methods = METHODS | more
    wanted = [*arguments.methods, *(name for name in more if name != NEW_ENCODER)] or list(MAIN)
    unknown = sorted(set(wanted) - set(methods))
    if unknown:
        parser.error(f"there is no method {', '.join(unknown)}; expected some of {', '.join(methods)}")
    place, n_shards = (int(number) for number in arguments.shard.split("/"))
    if not 1 <= place <= n_shards:
        parser.error(f"--shard is {arguments.shard}; expected i/n with i from 1 to n")
    torch.set_num_threads(1)
    todo = [job for job in jobs(arguments, wanted, place, n_shards) if job.key not in rows]
    study.run(todo, list(rows.values()), arguments, in_turn(methods, arguments))  # type: ignore[arg-type]
    return 0


def jobs(arguments: argparse.Namespace, methods: Sequence[str], place: int, n_shards: int) -> list[TextJob]:
    """All that was asked for, falls to this shard and can be done, one budget and seed after the other."""
    entries = text_zoo.chosen(arguments)[place - 1 :: n_shards]

    def is_ready(entry: TextEntry) -> bool:
        if entry.architecture in PRETRAINED and arguments.minilm is None:
            return False
        return all(text_zoo.is_planted(e, arguments.zoo) for e in (entry, entry.clean_twin))

    missing = [entry.name for entry in entries if not is_ready(entry)]
    if missing:
        named = ", ".join([*missing[:5], *(["..."] if missing[5:] else [])])
        print(f"{len(missing)} models are not planted, or need --minilm, and are left out: {named}", file=sys.stderr)
    return [
        TextJob(entry, method, budget, seed)
        for budget, seed in itertools.product(arguments.budgets, arguments.defence_seeds)
        for entry in filter(is_ready, entries)
        for method in methods
        if is_for(method, entry)
    ]


def is_for(method: str, entry: TextEntry) -> bool:
    """Whether a method is made for such models: ``scratch`` for those from scratch, ``pretrained`` for ``minilm``."""
    return {"scratch": entry.architecture != "minilm", NEW_ENCODER: entry.architecture == "minilm"}.get(method, True)


def in_turn(methods: dict[str, Method], arguments: argparse.Namespace) -> Callable[[TextJob], Row]:
    """The row of a job; a case is kept for the jobs that follow on it."""
    case: TextCase | None = None
    case_of: tuple[TextEntry, float, int] | None = None

    def measured(job: TextJob) -> Row:
        nonlocal case, case_of
        if case is None or case_of != (job.entry, job.budget, job.seed):
            case_of = (job.entry, job.budget, job.seed)
            case = prepare(job, arguments)
        return row_of(job, case, methods[job.method], arguments.minilm)

    return measured


def prepare(job: TextJob, arguments: argparse.Namespace) -> TextCase:
    """The case of a job."""
    entry, encoder = job.entry, arguments.minilm
    model, backdoor = text_zoo.load(entry, arguments.zoo)
    places = arguments.zoo, arguments.root, encoder
    test = text_zoo.test_set(entry, *places)
    clean = clean_part(text_zoo.train_set(entry, *places), job.budget, job.seed)
    before = {f"{name}_before": value for name, value in text_zoo.rates(model, backdoor, test, encoder).items()}
    floor: float | None = None
    if backdoor is not None:
        floor = json.loads((arguments.zoo / entry.name / "info.json").read_text())["floor"]
    return TextCase(model, clean, backdoor, test, before, floor)


def row_of(job: TextJob, case: TextCase, method: Method, encoder: Path | None) -> Row:
    """Treat, measure, and say all of it."""
    entry = job.entry
    row: Row = {"entry": entry.name, "method": job.method, "budget": job.budget, "seed": job.seed}
    row |= {name: getattr(entry, name) for name in ("data", "architecture", "attack", "rate", "part")}
    row |= {"model_seed": entry.seed, "n_clean": len(case.clean), "n_test": len(case.test.texts)} | case.before
    row["floor"] = case.floor
    return row | study.outcome(
        lambda: method(case.model, case.clean, job.seed),
        lambda model: text_zoo.rates(model, case.backdoor, case.test, encoder),
        case.before,
    )


if __name__ == "__main__":
    sys.exit(main())
