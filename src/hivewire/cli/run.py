"""`hivewire run`: a plan from a file, carried out by the user's own team."""

from __future__ import annotations

import argparse

from hivewire.cli.team_job import add_run_options, job_from, read_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", required=True, metavar="FILE", help="the plan: JSON with subtasks")
    parser.add_argument(
        "--team", required=True, metavar="module:name", help="a list of Workers in a module, as in team:TEAM"
    )
    add_run_options(parser, out="hivewire-out")


def run(args: argparse.Namespace) -> int:
    from hivewire.cli.team_run import carry_out

    return carry_out(job_from(args, "run", read_plan(args.plan), args.team))
