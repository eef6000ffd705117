"""`hivewire demo`: `hivewire run` with the bundled team, and one kill in the middle."""

from __future__ import annotations

import argparse
from typing import Final

from hivewire.cli.team_job import add_run_options, job_from

TEAM: Final = "hivewire.teams.logs.team:TEAM"
_LEASE_S: Final = 2.0
"""Short, so that a takeover can be seen within seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-chaos", action="store_true", help="kill nobody")
    add_run_options(parser, out="hivewire-demo")


def run(args: argparse.Namespace) -> int:
    from hivewire.cli.team_run import carry_out
    from hivewire.rules.plan import parse_plan
    from hivewire.teams.logs.team import PLAN

    settings = {"lease_s": _LEASE_S}
    return carry_out(job_from(args, "demo", parse_plan(PLAN), TEAM, has_chaos=not args.no_chaos, settings=settings))
