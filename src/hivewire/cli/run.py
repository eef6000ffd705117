"""`hivewire run`: a task carried out by the user's own team, by a plan from a file or from a model."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hivewire.cli.options import UsageError, to_json
from hivewire.cli.team_job import add_run_options, another_plan, has_unfinished_run, job_from, locked, read_plan

if TYPE_CHECKING:
    from hivewire.rules.plan import Plan

OUT: Final = "hivewire-out"
READY: Final = "hivewire.teams.ready.configured:TEAM"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="?", metavar="TASK", help="what to do: a model (llm.model) makes the plan")
    parser.add_argument("--plan", metavar="FILE", help="the plan, in place of TASK: JSON with subtasks")
    parser.add_argument(
        "--team",
        metavar="module:name",
        help="a list of Workers in a module, as in team:TEAM; with TASK and no team: the ready agents",
    )
    parser.add_argument("--plan-only", action="store_true", help="print the plan as a tree and as Mermaid; run nothing")
    parser.add_argument(
        "--prompts", metavar="DIR", help="plan.md, repair.md, replan.md in place of the bundled prompts"
    )
    add_run_options(parser, out=OUT)


def run(args: argparse.Namespace) -> int:
    if (args.task is None) == (args.plan is None):
        raise UsageError("say what to do: either a TASK, or a plan with --plan FILE")
    if args.team is None and args.task is not None:
        args.team = READY
    if args.team is None and not args.plan_only:
        raise UsageError("--team module:name is missing: who is to do it, and what can they do?")
    plan = _plan(args)
    if args.plan_only:
        return _print(plan, args.json)
    from hivewire.cli.team_run import carry_out

    return carry_out(job_from(args, "run", plan, args.team))


def _plan(args: argparse.Namespace) -> Plan:
    if args.plan is not None:
        plan = read_plan(args.plan)
        if args.plan_only and args.team is not None:
            _check_team(args, plan)
        return plan
    if args.plan_only:
        return asyncio.run(_ask(args))
    out = Path(args.out).absolute()
    with locked(out) if out.exists() else nullcontext():
        return _kept_or_asked(args, out)


def _kept_or_asked(args: argparse.Namespace, out: Path) -> Plan:
    """The plan of the run that is under way: another answer would be another plan. A model is asked, and paid, only
    when the run can begin with its answer."""
    from hivewire.cli.planned import keep_plan, kept_plan

    if not args.new:
        kept = kept_plan(out, args.task)
        if kept is not None:
            return kept
        if asyncio.run(has_unfinished_run(out)):
            raise another_plan(out)
    plan = asyncio.run(_ask(args))
    keep_plan(out, args.task, plan)
    return plan


async def _ask(args: argparse.Namespace) -> Plan:
    from hivewire.cli.team_job import checked_paths
    from hivewire.coordination.planner import Planner
    from hivewire.coordination.prompting import Prompts
    from hivewire.coordination.tasks import TaskRequest
    from hivewire.llm.models import model_from
    from hivewire.settings import load

    async with model_from(load()) as model:
        planner = Planner(model, prompts=Prompts(args.prompts))
        paths = checked_paths(args.input)
        request = TaskRequest(name=_short(args.task), description=args.task, input={"paths": paths, "out": args.out})
        return await planner.plan(request, _capabilities(args.team))


def _capabilities(team: str) -> list[str]:
    from hivewire.cli.worker import load_workers

    return sorted({name for worker in load_workers([team]) for name in worker.capabilities})


def _check_team(args: argparse.Namespace, plan: Plan) -> None:
    from hivewire.rules.plan import checked_graph

    checked_graph(plan.subtasks, _capabilities(args.team))


def _short(task: str) -> str:
    line = " ".join(task.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def _print(plan: Plan, as_json: bool) -> int:
    from hivewire.rules.plan_picture import mermaid, tree

    if as_json:
        print(to_json({"name": plan.name, "subtasks": plain(plan), "tree": tree(plan), "mermaid": mermaid(plan)}))
        return 0
    print("\n".join(tree(plan)))
    print()
    print("\n".join(mermaid(plan)))
    return 0


def plain(plan: Plan) -> object:
    """The subtasks as JSON has them."""
    import msgspec

    return msgspec.to_builtins(plan.subtasks)
