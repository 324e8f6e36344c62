"""Mutated inputs against the readers of what strangers send, until the time is up or a defect is found.

    python fuzz/drive.py [--seconds 600] [--seed 0] [TARGET ...]

The seconds are shared by the targets, all of them unless some are named. Atheris steers by coverage where it is
installed; else Hypothesis mutates at random, and shrinks what it finds. The exit code is 0 where no defect was found.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import strategies as st

if TYPE_CHECKING:
    from targets import Target

NAMES = ("header", "policy", "config", "kind", "npz", "idx", "image", "signature")
INPUT_S = 10.0  # for one input
INPUT_BYTES = 2 << 30  # of memory, beside what the libraries take
ROUND = 200  # inputs between two looks at the clock


class Hang(BaseException):
    """An input takes too long; no ``except Exception`` of a reader may swallow that."""


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, each target in a process of its own, and return the exit code."""
    parser = argparse.ArgumentParser(description="Mutated inputs against the readers of what strangers send.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all targets together (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    arguments = parser.parse_args(argv)
    names = arguments.targets or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"unknown target {unknown[0]!r}; expected some of {', '.join(NAMES)}")
    if len(names) == 1:
        return fuzz(names[0], arguments.seconds, arguments.seed)
    share = [f"--seconds={arguments.seconds / len(names)}", f"--seed={arguments.seed}"]
    codes = [subprocess.run([sys.executable, __file__, *share, name]).returncode for name in names]
    return int(any(codes))


def fuzz(name: str, seconds: float, seed: int) -> int:
    """One target, in this process; the exit code."""
    atheris = find_atheris()
    if atheris is None:
        target = load(name)
        bound_memory()
        return with_hypothesis(name, target, seconds, seed)
    with atheris.instrument_imports(
        include=["seamfast.gating", "seamfast.intake", "seamfast.data.readers", "json", "tomllib"]
    ):
        target = load(name)
    return with_atheris(atheris, name, target, seconds, seed)


def load(name: str) -> Target:
    """The target; its reader is imported only here, so that Atheris may instrument it."""
    target: Target = importlib.import_module("targets").TARGETS[name]
    return target


def find_atheris() -> Any:
    """The module, or ``None`` where it is not installed."""
    try:
        return importlib.import_module("atheris")
    except ImportError:
        return None


def bound_memory() -> None:
    """From here on, an allocation beyond what is taken already and ``INPUT_BYTES`` is a ``MemoryError``."""
    n_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = n_pages * resource.getpagesize() + INPUT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def with_hypothesis(name: str, target: Target, seconds: float, seed: int) -> int:
    """Rounds of random mutations, at least one, while there is time."""
    end = time.monotonic() + seconds
    tried: Counter[bool] = Counter()
    for target_seed in target.seeds:
        assert target.run(target_seed), f"{name}: a seed is refused: {target_seed!r}"
    n_rounds = 0
    while n_rounds == 0 or time.monotonic() < end:
        try:
            attack(target, seed + n_rounds, tried)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()  # Hypothesis notes the shrunk input below it
            say(f"{name}: a defect, in round {n_rounds} of seed {seed}")
            return 1
        n_rounds += 1
    say(f"{name}: {tried.total():,} inputs by Hypothesis, {tried[True]:,} of them accepted; no defect")
    return 0


def attack(target: Target, seed: int, tried: Counter[bool]) -> None:
    """One round; raises what the reader should not have raised."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(mutated(target))
    def each(data: bytes) -> None:
        tried[in_time(target, data)] += 1

    each()


def in_time(target: Target, data: bytes) -> bool:
    """``target.run(data)``, or ``Hang``."""
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, INPUT_S)
    try:
        return target.run(data)
    except Hang:
        raise Hang(f"an input took more than {INPUT_S:g} s: {data!r}") from None  # Hypothesis lets it through unseen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def give_up(number: int, frame: FrameType | None) -> None:
    raise Hang


@st.composite
def mutated(draw: st.DrawFn, target: Target) -> bytes:
    """A seed of which up to four parts were cut out or replaced."""
    data = bytearray(draw(st.sampled_from(target.seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(start + 40, len(data))))
        data[start:end] = draw(st.sampled_from(target.words) | st.binary(max_size=8))
    return bytes(data)


def with_atheris(atheris: Any, name: str, target: Target, seconds: float, seed: int) -> int:
    """``atheris.Fuzz()``, which ends the process by itself: 0, or not where a defect was found."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        for number, content in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(content)
        quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words if len(word) < 100)
        words.write_text("".join(f'"{word}"\n' for word in quoted), encoding="ascii")
        options = [f"-max_total_time={max(round(seconds), 1)}", f"-timeout={INPUT_S:g}", f"-seed={seed + 1}"]
        options += [f"-dict={words}", f"-rss_limit_mb={INPUT_BYTES >> 20}", f"-artifact_prefix={name}-", str(corpus)]
        # In a child, as the process does not come back from it.
        child = os.fork()
        if child == 0:
            atheris.Setup([sys.argv[0], *options], target.run)
            atheris.Fuzz()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    say(f"{name}: {'a defect' if code else 'no defect'} by Atheris")
    return int(code != 0)


def say(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
