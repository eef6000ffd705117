"""`hivewire delayed`: messages that are not due yet."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Final

from hivewire.cli.options import (
    add_store_options,
    connect_from,
    count,
    is_store_missing,
    note_if_memory,
    print_table,
    run_async,
    to_json,
)

COLUMNS: Final = ("id", "agent", "type", "from", "due_in_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|cancel")
    listing = actions.add_parser("list", help="list an agent's, the soonest first")
    listing.add_argument("agent", metavar="AGENT")
    listing.add_argument("--limit", type=count, default=100, metavar="N", help="at most so many (100)")
    cancel = actions.add_parser("cancel", help="remove them; what has fallen due is never removed")
    cancel.add_argument("ids", nargs="+", metavar="ID")
    cancel.add_argument("--agent", metavar="NAME", help="look in this agent's queue alone: quicker")
    add_store_options(parser, (listing, cancel))


def run(args: argparse.Namespace) -> int:
    note_if_memory(args)
    if is_store_missing(args):
        if args.action == "list":
            _print([], args)
            return 0
        return _report(args, 0)
    return run_async({"list": _list, "cancel": _cancel}[args.action](args))


def _print(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    if rows or args.json:
        print_table(rows, COLUMNS, args.json)
    else:
        print(f"nothing for {args.agent} waits for its time")


async def _list(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        found = await protocol.delayed(args.agent, limit=args.limit + 1)
    rows = [
        {
            "id": each.id,
            "agent": each.agent,
            "type": each.message.type if each.message else "(unreadable)",
            "from": each.message.sender if each.message else "",
            "due_in_s": round(each.due_at - time.time(), 1),
            "due_at": each.due_at,
        }
        for each in found[: args.limit]
    ]
    _print(rows, args)
    if len(found) > args.limit:
        sys.stderr.write(f"there are more than {args.limit}; --limit N shows more\n")
    return 0


async def _cancel(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        return _report(args, await protocol.cancel_delayed(args.ids, agent=args.agent))


def _report(args: argparse.Namespace, cancelled: int) -> int:
    """1: some were not there, or not any more."""
    print(to_json({"cancelled": cancelled}) if args.json else f"cancelled {cancelled}")
    missing = len(set(args.ids)) - cancelled
    if missing > 0:
        sys.stderr.write(f"{missing} of the ids wait for no time: unknown, due by now, or cancelled before\n")
        return 1
    return 0
