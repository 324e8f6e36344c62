"""The options of ``seamfast fleet``; no torch, so that they are read before it."""

from __future__ import annotations

import argparse

from seamfast.options import Parser, fraction, integer, json_option, seconds, share, size

FLEET = "sanitize or gate many models, on the processes of this machine or on Ray; resumes where it was"
DEFAULT_MAX_TIME_S = 3600


def fleet_parser() -> argparse.ArgumentParser:
    """What parses the arguments behind ``seamfast fleet``."""
    parser = Parser(
        prog="seamfast fleet",
        description=FLEET,
        allow_abbrev=False,
        epilog="seamfast fleet status DIR: print how far a fleet is, and write its summary anew. Exit codes: 0 every "
        "job accepted or passed, 1 some were not, 2 some were given up or not reached: run it again, 3 some refused, "
        "undecided or with input that cannot be used, 4 usage.",
    )
    json_option(parser)
    fleet_options(parser)
    return parser


def status_parser() -> argparse.ArgumentParser:
    """What parses the arguments behind ``seamfast fleet status``."""
    parser = Parser(
        prog="seamfast fleet status", description="how far a fleet is; writes its summary anew", allow_abbrev=False
    )
    json_option(parser)
    parser.add_argument("folder", metavar="DIR", help="the --out of a fleet")
    parser.add_argument("--prometheus", action="store_true", help="write fleet.prom too")
    return parser


def fleet_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of ``fleet``, but for ``--json``."""
    sub.add_argument("jobs", metavar="JOBS", help="folder of model folders, or a file of JSON lines, one job each")
    sub.add_argument("--out", required=True, help="folder of the fleet; with an earlier call's, what is done stays")
    one = sub.add_argument_group("what each job does, unless it says otherwise")
    one.add_argument("--data", help="clean data, as for seamfast sanitize")
    one.add_argument("--root", help="folder that holds the files of a data set given by name")
    one.add_argument("--split", choices=("train", "test"), help="part of the data to use")
    one.add_argument("--fraction", type=fraction, help="share of the data to use, by class (default: 1)")
    one.add_argument("--holdout", help="as --data: samples that no model was trained on; they decide")
    one.add_argument("--test", help="as --data: samples on which the models are compared; they decide nothing")
    one.add_argument("--triggers", metavar="NPZ", help="known triggers: measured, never used")
    one.add_argument("--policy", metavar="TOML", help="gate by this policy, in place of sanitizing")
    one.add_argument("--method", help="default: seam")
    one.add_argument("--preset", help="of seam: fast, balanced (default) or thorough")
    one.add_argument("--config", metavar="TOML", help="settings of the method")
    one.add_argument("--evidence", action="store_true", help="blind evidence on each model, before and after")
    one.add_argument("--seed", type=integer(0, 2**63 - 1), help="default: 0")
    one.add_argument("--max-time", type=seconds, default=DEFAULT_MAX_TIME_S, metavar="SECONDS", help="of a job")
    one.add_argument("--max-memory", type=size, metavar="SIZE", help="of a job: bytes, or with K, M, G or T")
    where = sub.add_argument_group("where they run")
    where.add_argument("--workers", type=integer(1, 100_000), help="jobs at a time (default: one a core)")
    where.add_argument("--ray", metavar="ADDRESS", help="on Ray: local, auto, or HOST:PORT (seamfast[fleet])")
    where.add_argument("--gpus-per-job", type=share, default=0.0, metavar="SHARE", help="of a GPU, such as 0.25")
    where.add_argument("--shard", metavar="K/N", help="the jobs of one of N calls; K from 0")
    sub.add_argument(
        "--retry-quarantined", action="store_true", help="try again what an earlier call gave up, or met a defect"
    )
    sub.add_argument("--prometheus", action="store_true", help="write fleet.prom, for node_exporter")
