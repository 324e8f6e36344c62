"""What survives of a backdoor that is made to survive? Attackers who know the method, before and after it; resumable.

    python benches/adaptive.py --root DATA --out rows.jsonl [--attacks silent nan] [--methods seam] [--seeds 0]
    python benches/adaptive.py --gate
    python benches/adaptive.py --report

The models of ``CASES`` are made by the attackers of ``benches/attackers``, from a clean model and its training set. A
method gets the model, 5 % of the whole training set (drawn by class, by the seed), and held-out data that no model has
seen; no trigger. Half of the test set, at most 3,000 samples, tells accuracy and attack success before and after, as
the answers that a deployment would get: ``argmax`` of the logits, where NaN counts as the largest. Rows hold counts;
bounds are 95 % Wilson intervals. An attack counts only if it works as received: an ASR of 0.9, and at most 2 points
below the clean model. One that does not is a row without a method.

The seed is of the attack (patch, place, target, what is drawn), of the clean part and of the run; the clean model is
that of seed 0. Without ``--methods``, the first seed gets those of ``DEFAULT``, and the others ``seam`` alone.
``--gate`` adds what the audits of the gate say of the sanitized model on held-out data, for methods of ``GATED``: the
battery's largest rate, the anomaly index of the inversion, the largest disagreement.

What has a row in ``--out`` is not run again: a killed run goes on where it was. A row knows its commit, but a method
that changes does not take its rows with it: delete them, or name another ``--out``. Trained models are kept in
``--cache``. One thread.

``--report`` measures nothing: it writes ``adaptive.md`` from the rows to ``--docs``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches import adaptive_report, zoo  # noqa: E402
from benches.attackers import ATTACKS, Attacked, Host, host, text_host  # noqa: E402
from benches.attackers.hosts import CACHE, model_inputs, samples  # noqa: E402
from benches.defences import DEFENCES  # noqa: E402
from benches.defences.own import authors_config  # noqa: E402
from benches.rows import Row, append_row, commit, read_rows  # noqa: E402
from seamfast import CleanSet, FineTuneConfig, SeamConfig  # noqa: E402
from seamfast.audits import disagreement, invert_triggers, stamped_evidence  # noqa: E402
from seamfast.data import split_by_class  # noqa: E402
from seamfast.errors import ConfigError, InputError, ModelError  # noqa: E402
from seamfast.record import machine  # noqa: E402

OUT = ROOT / "benches" / "results" / "adaptive.jsonl"
BUDGET = 0.05
MOST_HELD_OUT, MOST_TESTED = 1000, 3000
WORKS, MOST_LOST = 0.9, 0.02
"""ASR from which, and accuracy below the clean model up to which, an attack counts."""


@dataclass(frozen=True)
class Case:
    """An attack on a model.

    Attributes:
        attack: in ``ATTACKS``.
        data, architecture: of the clean model.
    """

    attack: str
    data: str = "mnist"
    architecture: str = "small_cnn"

    @property
    def name(self) -> str:
        usual = (self.data, self.architecture) == ("mnist", "small_cnn")
        return self.attack if usual else f"{self.attack}, {self.data} {self.architecture}"


CASES = (
    Case("handcrafted"),
    Case("subnet"),
    Case("silent"),
    Case("silent-many"),
    Case("leaky-5"),
    Case("leaky-1"),
    Case("leaky-0.1"),
    Case("rare"),
    Case("high-gain"),
    Case("low-gain"),
    Case("small-gap"),
    Case("strict"),
    Case("smooth", architecture="gelu_cnn"),
    Case("smooth", architecture="silu_cnn"),
    Case("silent", architecture="bn_cnn"),
    Case("eval-only", architecture="bn_cnn"),
    Case("silent", architecture="residual_cnn"),
    Case("silent", architecture="gated_cnn"),
    Case("silent", architecture="sqrt_cnn"),
    Case("dead-weights"),
    Case("anchored", architecture="relu6_cnn"),
    Case("saturated", architecture="relu6_mlp"),
    Case("embedding", "ag-news", "bag"),
    Case("nan"),
    Case("overflow"),
    Case("two-patches"),
    Case("two-patches-trained"),
    Case("simulated"),
    Case("simulated-blend"),
    Case("flat"),
    Case("sequential"),
    Case("cyclic"),
    Case("handcrafted", "gtsrb", "small_vgg"),
    Case("subnet", "gtsrb", "small_vgg"),
    Case("silent", "gtsrb", "small_vgg"),
    Case("strict", "gtsrb", "small_vgg"),
)
"""What is measured by default, in this order."""

Method = Callable[[nn.Module, CleanSet, CleanSet, int], tuple[nn.Module, Row]]
"""``(model, clean, held_out, seed)``: the treated model, and what the method says of itself."""


def sanitized(**options: Any) -> Method:
    """``seamfast.sanitize`` with these options."""

    def treat(model: nn.Module, clean: CleanSet, held_out: CleanSet, seed: int) -> tuple[nn.Module, Row]:
        result = seamfast.sanitize(model, clean, holdout=held_out, seed=seed, threads=1, progress=False, **options)
        steps = sum(result.report["run"]["steps"].values())
        return result.model, {"accepted": result.accepted, "outcome": result.outcome, "steps": steps}

    return treat


def published(name: str) -> Method:
    """A defence of ``benches/defences``, which needs no held-out data."""

    def treat(model: nn.Module, clean: CleanSet, held_out: CleanSet, seed: int) -> tuple[nn.Module, Row]:
        done = DEFENCES[name](model, clean, seed=seed, augment=(0, False))
        return done.model, {"accepted": None, "outcome": None, "steps": done.n_steps}

    return treat


METHODS: dict[str, Method] = {
    "seam": sanitized(),
    "seam (thorough)": sanitized(preset="thorough"),
    "fine_tune": sanitized(method="fine_tune"),
    "super_fine_tune": sanitized(method="super_fine_tune"),
    "seam_authors": sanitized(method="seam_authors", config=replace(authors_config((0, False)), prune=True)),
    "seam (unpruned)": sanitized(config=SeamConfig(prune=False)),
    "fine_tune (unpruned)": sanitized(method="fine_tune", config=FineTuneConfig(prune=False)),
    **{name: published(name) for name in ("fine_pruning", "ft_sam", "fst", "i_bau", "nad", "scratch")},
}
"""By name."""
DEFAULT = (
    *("seam", "seam (thorough)", "fine_tune", "super_fine_tune", "seam_authors"),
    *("seam (unpruned)", "fine_tune (unpruned)"),
)
GATED = ("seam", "seam (thorough)")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="+", help=f"of {', '.join(ATTACKS)}; on all their models")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="of all seeds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--gate", action="store_true", help="the audits too, of methods that the gate runs")
    parser.add_argument("--root", type=Path, default=zoo.DATA_ROOT, help="of the data sets")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of trained models")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="measure nothing; a table of the rows")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    arguments = parser.parse_args(given)
    if arguments.report:
        adaptive_report.write(arguments.docs, read_rows(arguments.out), [case.name for case in CASES])
        return 0
    cases = [case for case in CASES if arguments.attacks is None or case.attack in arguments.attacks]
    unknown = sorted(set(arguments.attacks or ()) - {case.attack for case in CASES})
    if unknown:
        parser.error(f"there is no attack {', '.join(unknown)}; expected some of {', '.join(ATTACKS)}")
    torch.set_num_threads(1)
    run(cases, arguments)
    return 0


def key(row: Row) -> tuple[str, str | None, int]:
    """What a row is of."""
    return row["case"], row["method"], row["seed"]


def run(cases: list[Case], arguments: argparse.Namespace) -> None:
    """All that has no row yet, case by case; each row is written as soon as it is known."""
    rows = {key(row): row for row in read_rows(arguments.out)}

    def is_done(case: Case, method: str, seed: int) -> bool:
        row = rows.get((case.name, method, seed))
        lacks_audits = arguments.gate and method in GATED and row is not None and "audits" not in row
        return (case.name, None, seed) in rows or (row is not None and not lacks_audits)

    jobs = [(case, seed) for case in cases for seed in arguments.seeds]
    begin = time.perf_counter()
    for number, (case, seed) in enumerate(jobs):
        wanted = arguments.methods or (DEFAULT if seed == arguments.seeds[0] else DEFAULT[:1])
        methods = [method for method in wanted if not is_done(case, method, seed)]
        if not methods:
            continue
        try:
            trial = Trial.of(case, seed, arguments)
        except (FileNotFoundError, InputError) as error:
            print(f"{case.name}, seed {seed}: left out, {error}", file=sys.stderr)
            continue
        for method in methods if trial.works else [None]:
            row = trial.row(method, gate=arguments.gate)
            append_row(arguments.out, row)
            rows[key(row)] = row
            minutes = (time.perf_counter() - begin) / 60
            print(f"[{number + 1}/{len(jobs)}, {minutes:.1f} min] {shown(row)}", file=sys.stderr, flush=True)


def shown(row: Row) -> str:
    """A row as a line of progress."""
    named = f"{row['case']}, seed {row['seed']}"
    before = f"ACC {row['acc_before']:.2%}, ASR {row['asr_before']:.2%}"
    if row["method"] is None:
        return f"{named}: does not count, {before}, clean model {row['acc_clean_model']:.2%}"
    if "failed" in row:
        return f"{named}: {row['method']}: {row['failed']}"
    return (
        f"{named}: {row['method']}: {before} -> ACC {row['acc_after']:.2%}, ASR {row['asr_after']:.2%}, "
        f"{row['outcome'] or 'no verdict'}, {row['seconds']:.1f} s"
    )


# ---- One attacked model. ----


@dataclass(frozen=True)
class Trial:
    """An attacked model, and the data that it is treated and measured with.

    Attributes:
        case, seed: what it is.
        attacked: the model.
        clean, held_out, audit, test_set: for methods; for their decisions; for the gate's audits; to measure with.
        before: ACC and ASR as received, and ACC of the clean model.
    """

    case: Case
    seed: int
    attacked: Attacked
    clean: CleanSet
    held_out: CleanSet
    audit: CleanSet
    test_set: CleanSet
    before: Row

    @classmethod
    def of(cls, case: Case, seed: int, arguments: argparse.Namespace) -> Trial:
        """Make the model. Raises ``FileNotFoundError`` or ``InputError`` where the data are not there."""
        if case.data == "ag-news":
            received = text_host(0, arguments.root, arguments.cache)
        else:
            received = host(case.data, case.architecture, 0, arguments.root, arguments.cache)
        return cls.on(received, case, seed)

    @classmethod
    def on(cls, received: Host, case: Case, seed: int) -> Trial:
        """As ``of``, on a clean model at hand."""
        attacked = ATTACKS[case.attack](received, seed)
        clean = zoo.clean_part(case.data, received.train_set, BUDGET, seed)
        halves = split_by_class(received.test_set.labels, holdout_fraction=0.5, forget_fraction=1.0, seed=0)
        unseen, test_set = (received.test_set.subset(part) for part in (halves.recovery, halves.holdout))
        parts = split_by_class(unseen.labels, holdout_fraction=0.5, forget_fraction=1.0, seed=seed)
        held_out, audit = (
            _at_most(unseen.subset(part), MOST_HELD_OUT, seed) for part in (parts.recovery, parts.holdout)
        )
        test_set = _at_most(test_set, MOST_TESTED, 0)
        right = (logits(received.model, test_set, samples(test_set)).argmax(1) == test_set.labels).sum()
        before = {f"{name}_before": value for name, value in measured(attacked.model, attacked, test_set).items()}
        before["acc_clean_model"] = int(right) / len(test_set)
        return cls(case, seed, attacked, clean, held_out, audit, test_set, before)

    @property
    def works(self) -> bool:
        """Whether the attack counts."""
        lost = self.before["acc_clean_model"] - self.before["acc_before"]
        return bool(self.before["asr_before"] >= WORKS and lost <= MOST_LOST)

    def row(self, method: str | None, *, gate: bool) -> Row:
        """Treat, measure, and say all of it; without a method, what the attack is alone."""
        row: Row = {"case": self.case.name, "method": method, "seed": self.seed, "attack": self.case.attack}
        row |= {"data": self.case.data, "architecture": self.case.architecture, "target": self.attacked.target}
        row |= {"description": self.attacked.description, "n_clean": len(self.clean), "n_held_out": len(self.held_out)}
        row |= self.before
        if method is not None:
            begin = time.perf_counter()
            try:
                treated, said = METHODS[method](self.attacked.model, self.clean, self.held_out, self.seed)
            except ConfigError:
                raise
            except (FloatingPointError, InputError, ModelError, ValueError) as error:
                row["failed"] = str(error)
            else:
                row |= {"seconds": round(time.perf_counter() - begin, 3)} | said
                after = measured(treated, self.attacked, self.test_set)
                row |= {f"{name}_after": value for name, value in after.items()}
                if gate and method in GATED:
                    row["audits"] = audits(self.attacked.model, treated, self.audit)
        return row | {"machine": machine(), "commit": commit()}


def _at_most(data: CleanSet, n: int, seed: int) -> CleanSet:
    return data if len(data) <= n else data.draw(n / len(data), seed=seed)


def logits(model: nn.Module, data: CleanSet, stored: Tensor) -> Tensor:
    """Of stored samples."""
    with torch.no_grad():
        return torch.cat([model(model_inputs(data, part)) for part in stored.split(500)])


def measured(model: nn.Module, attacked: Attacked, data: CleanSet) -> Row:
    """Accuracy and attack success, with their counts, and how many stamped samples get NaN or Inf."""
    stored = samples(data)
    others = data.labels != attacked.target
    right = int((logits(model, data, stored).argmax(1) == data.labels).sum())
    given = logits(model, data, attacked.stamp(stored)[others])
    hits = int((given.argmax(1) == attacked.target).sum())
    n, n_others, n_finite = len(data), int(others.sum()), int(given.isfinite().all(1).sum())
    counts = {"n_right": right, "n": n, "n_hit": hits, "n_eligible": n_others, "n_not_finite": n_others - n_finite}
    return {"acc": right / n, "asr": hits / n_others} | counts


def audits(received: nn.Module, treated: nn.Module, data: CleanSet) -> Row | None:
    """What the gate would see of the treated model; of samples that are no images, nothing."""
    if not data.is_pixels:
        return None
    battery = max(stamped_evidence(treated, data, progress=False), key=lambda found: found.rate.value or 0.0)
    inversion = invert_triggers(treated, data, progress=False)
    differ = max(disagreement(received, treated, data, progress=False), key=lambda found: found.rate.value or 0.0)
    return {
        "n": len(data),
        "battery": battery.name,
        "battery_rate": battery.rate.value,
        "battery_high": battery.rate.high,
        "anomaly_index": inversion.anomaly_index,
        "suspect": inversion.suspect,
        "disagreement": differ.name,
        "disagreement_rate": differ.rate.value,
        "disagreement_high": differ.rate.high,
    }


if __name__ == "__main__":
    sys.exit(main())
