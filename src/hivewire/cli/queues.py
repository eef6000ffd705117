"""`hivewire queues`: the agents, and how much waits for each."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

from hivewire.cli.options import (
    add_json_option,
    add_protocol_option,
    connect_from,
    is_store_missing,
    note_if_memory,
    period_s,
    print_table,
    run_async,
)

if TYPE_CHECKING:
    from hivewire.protocol import Protocol

COLUMNS: Final = ("agent", "ready", "in_flight", "scheduled", "dead", "oldest_age_s", "mode", "types", "groups")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agents", nargs="*", metavar="AGENT", help="these only")
    parser.add_argument(
        "--watch",
        nargs="?",
        const=2.0,
        type=period_s,
        metavar="TIME",
        help="print again every TIME (2s) until Ctrl-C",
    )
    add_protocol_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    note_if_memory(args)
    if is_store_missing(args) and args.watch is None:
        _print([], args.json)
        return 0
    return run_async(_show(args))


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if rows or as_json:
        trouble = ("lost",) if any(row["lost"] for row in rows) else ()  # that others have deleted: a rare thing
        print_table(rows, COLUMNS[:5] + trouble + COLUMNS[5:], as_json)
    else:
        print("no agent has a queue here yet")


async def _show(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        while True:
            rows = await rows_of(protocol, args.agents)
            if args.watch is not None and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            _print(rows, args.json)
            if args.watch is None:
                return 0
            sys.stdout.flush()
            await asyncio.sleep(args.watch)


async def rows_of(protocol: Protocol, agents: list[str]) -> list[dict[str, Any]]:
    """One row an agent."""
    names = agents or sorted(await protocol.agents())
    return [await _row(protocol, name) for name in names]


async def _row(protocol: Protocol, agent: str) -> dict[str, Any]:
    depth = await protocol.depth(agent)
    subscription = await protocol.subscription(agent)
    types = subscription.types
    return {
        "agent": agent,
        "ready": depth.ready,
        "in_flight": depth.in_flight,
        "scheduled": depth.scheduled,
        "dead": depth.dead,
        "lost": depth.lost,
        "oldest_age_s": round(depth.oldest_age_s, 3),
        "mode": subscription.mode or "not set",
        "types": "all" if types is None else list(types) or "none",
        "groups": list(subscription.groups),
    }
