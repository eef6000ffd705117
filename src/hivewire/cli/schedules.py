"""`hivewire schedules`: messages that are sent again and again."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from hivewire.cli.options import (
    UsageError,
    add_store_options,
    connect_from,
    is_store_missing,
    note_if_memory,
    print_table,
    run_async,
    to_json,
)
from hivewire.cli.send import add_message_options, message_from, shown_message

if TYPE_CHECKING:
    from hivewire.protocol import Schedule

COLUMNS: Final = ("name", "when", "timezone", "catch_up", "to", "type", "next_in_s", "fired")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|add|remove")
    listing = actions.add_parser("list", help="list them, with the time of the next firing")
    add = actions.add_parser("add", help="make one, or change the one of this name")
    add.description = (
        "Send a message at each time of WHEN, by whichever process is there. Made again as it is, it stays as it is."
    )
    add.add_argument("name", metavar="NAME")
    add.add_argument("when", metavar="WHEN", help="a cron expression ('30 3 * * mon-fri', @hourly) or a duration (5m)")
    add.add_argument("to", metavar="TO", help="an agent, or agent/instance")
    add.add_argument(
        "--timezone", default="UTC", metavar="ZONE", help="of the cron expression, e.g. Europe/Berlin (UTC)"
    )
    add.add_argument(
        "--catch-up",
        choices=("one", "all", "none"),
        default="one",
        help="of times at which no process was there, send the latest (one), each (all), or nothing (none)",
    )
    add_message_options(add)
    remove = actions.add_parser("remove", help="end one; what it has sent stays sent")
    remove.add_argument("name", metavar="NAME")
    add_store_options(parser, (listing, add, remove))


def run(args: argparse.Namespace) -> int:
    note_if_memory(args)
    if args.action != "add" and is_store_missing(args):
        if args.action == "remove":
            raise UsageError(f"there is no schedule {args.name!r}")
        _print([], args.json)
        return 0
    return run_async({"list": _list, "add": _add, "remove": _remove}[args.action](args))


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if rows or as_json:
        print_table(rows, COLUMNS, as_json)
    else:
        print("no schedules")


def _row(schedule: Schedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "when": schedule.when,
        "timezone": schedule.timezone,
        "catch_up": schedule.catch_up,
        "to": schedule.message.to,
        "type": schedule.message.type,
        "next_in_s": round(schedule.next_at - time.time(), 1),
        "fired": schedule.fired,
        "next_at": _at(schedule.next_at),
        "last_at": _at(schedule.last_at) if schedule.last_at else None,
        "message": {name: value for name, value in shown_message(schedule.message).items() if name not in _NOT_YET},
    }


_NOT_YET: Final = ("id", "created_at")
"""Each message that is sent has its own."""


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


async def _list(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        _print([_row(schedule) for schedule in await protocol.schedules()], args.json)
    return 0


async def _add(args: argparse.Namespace) -> int:
    message = message_from(args, args.to)
    async with connect_from(args) as protocol:
        await protocol.schedule(args.name, args.when, message, timezone=args.timezone, catch_up=args.catch_up)
        (made,) = [schedule for schedule in await protocol.schedules() if schedule.name == args.name]
    print(to_json(_row(made)) if args.json else f"{made.name}: next at {_at(made.next_at)}")
    return 0


async def _remove(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        if not await protocol.unschedule(args.name):
            raise UsageError(f"there is no schedule {args.name!r}; `hivewire schedules list` shows them")
    print(to_json({"removed": args.name}) if args.json else f"removed {args.name}")
    return 0
