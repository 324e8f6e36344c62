"""``seamfast fleet`` as a command; without torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seamfast.errors import ConfigError, InputError
from seamfast.fleet.options import fleet_parser, status_parser
from seamfast.fleet.run import exit_code_of, run
from seamfast.fleet.store import n_listed, n_rows, rows, shards_missing
from seamfast.fleet.summary import as_text, write_summary
from seamfast.options import EXIT_USAGE, written_to
from seamfast.terminal import say, write_out
from seamfast.untrusted import listed

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - CI runs 3.11
    import tomli as tomllib

_SETTINGS = (
    *("data", "root", "split", "fraction", "holdout", "test", "triggers", "policy", "method", "preset", "config"),
    *("evidence", "seed"),
)


def main(argv: Sequence[str]) -> int:
    """Run ``seamfast fleet ARGV`` and return the exit code."""
    try:
        if argv[:1] == ["status"]:
            return _status(status_parser().parse_args(argv[1:]))
        return _run(fleet_parser().parse_args(argv))
    except InputError as error:  # of the call itself: what a job meets is its result
        say(f"seamfast: {type(error).__name__}: {error}")
        return EXIT_USAGE


def _run(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name) for name in _SETTINGS}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value not in (None, False)}
    if "config" in settings:
        settings["config"] = _toml(settings["config"])
    result = run(
        arguments.jobs,
        arguments.out,
        workers=arguments.workers,
        ray=arguments.ray,
        gpus_per_job=arguments.gpus_per_job,
        shard=arguments.shard,
        max_time_s=arguments.max_time,
        max_memory=arguments.max_memory,
        retry_quarantined=arguments.retry_quarantined,
        prometheus=arguments.prometheus,
        **settings,
    )
    if arguments.json:
        document = {
            "n_jobs": result.n_jobs,
            "outcomes": result.outcomes,
            "n_done_before": result.n_done_before,
            "seconds": round(result.seconds, 3),
            "stopped": result.stopped,
            "out": os.fspath(arguments.out),
        }
        write_out(json.dumps(document, indent=2) + "\n")
    else:
        write_out(as_text(result.rows(), n_waiting=result.outcomes.get("waiting", 0)))
        write_out(written_to(arguments.out) + "\n")
    if result.stopped is not None:
        n_done = result.n_jobs - result.outcomes.get("waiting", 0)
        say(f"seamfast: {result.stopped}: {n_done} of {result.n_jobs} jobs are done; the same command goes on")
    return result.exit_code


def _status(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder)
    n_waiting, missing = max(0, n_listed(folder) - n_rows(folder)), shards_missing(folder)
    if missing:
        say(f"seamfast: {listed([f'shard {name}' for name in missing], 5)} never began")
    outcomes = write_summary(folder, rows(folder), n_waiting=n_waiting, prometheus=arguments.prometheus)
    if missing:
        outcomes["waiting"] = max(1, n_waiting)
    if arguments.json:
        write_out(json.dumps({"n_jobs": sum(outcomes.values()), "outcomes": outcomes}, indent=2) + "\n")
    else:
        write_out(as_text(rows(folder), n_waiting=n_waiting))
    return exit_code_of(outcomes)


def _toml(path: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
