"""The bundled team: four workers and the plan that they carry out. A team of your own looks the same.

hivewire run --plan plan.json --team hivewire.teams.logs.team:TEAM --input /var/log
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Final

from hivewire import Context, Message, Worker
from hivewire.teams.logs import review, steps

researcher = Worker("researcher", capabilities=["research"])
# One piece at a time in a process: mining keeps a core busy, and what waits is free for other processes.
analyst = Worker("analyst", capabilities=["data_analysis"], concurrency=1)
writer = Worker("writer", capabilities=["content_creation"])
reviewer = Worker("reviewer", capabilities=["content_review"])


@researcher.on("task")
def find_and_split(message: Message, ctx: Context) -> dict[str, Any]:
    """Its `subtasks`, one for each share of the pieces, become the next version of the plan."""
    return steps.answer(steps.research, message.content)


@analyst.on("task")
def mine(message: Message, ctx: Context) -> dict[str, Any]:
    return steps.answer(steps.mine, message.content)


@writer.on("task")
def write(message: Message, ctx: Context) -> dict[str, Any]:
    return steps.answer(steps.write, message.content)


@reviewer.on("task")
def check(message: Message, ctx: Context) -> dict[str, Any]:
    """`send_back` in its output makes a new attempt of the subtask that it names, with the feedback."""
    return steps.answer(review.review, message.content)


TEAM: Final = [researcher, analyst, writer, reviewer]
PLAN: Final[dict[str, Any]] = json.loads(resources.files(__package__).joinpath("plan.json").read_text(encoding="utf-8"))
