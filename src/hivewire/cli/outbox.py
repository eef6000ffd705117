"""`hivewire outbox`: the tables of outbox and inbox in the user's database, what waits in them, and the relay."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from hivewire.cli.options import (
    add_json_option,
    add_protocol_option,
    add_unneeded_protocol,
    connect_from,
    print_table,
    run_async,
    settings_from,
    to_json,
)

if TYPE_CHECKING:
    from hivewire.coordination.outbox.relay import OutboxDatabase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="sql|create|status|retry|relay")
    sql = actions.add_parser("sql", help="print the statements that make the tables, for your own migrations")
    sql.add_argument("--dialect", choices=("postgres", "sqlite"), default="postgres")
    create = actions.add_parser("create", help="make the tables that are not there")
    status = actions.add_parser("status", help="how many messages wait, were sent, were refused")
    retry = actions.add_parser("retry", help="let the messages that were refused be tried again")
    relay = actions.add_parser("relay", help="send what is committed, until SIGTERM or Ctrl-C")
    for action in (create, status, retry, relay):
        action.add_argument("database", metavar="URL", help="your database: postgresql://… or sqlite:///FILE")
    for action in (status, retry):
        add_json_option(action)
    add_unneeded_protocol(parser, (sql, create, status, retry))
    add_protocol_option(relay, argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.protocol is not None:
        settings_from(args)  # a mistake in it is told
    if args.action == "sql":
        from hivewire.coordination.outbox.tables import tables

        print(tables(args.dialect), end="")
        return 0
    return run_async(_relay(args) if args.action == "relay" else _look(args))


async def _look(args: argparse.Namespace) -> int:
    from hivewire.coordination.outbox.relay import OutboxDatabase

    database = OutboxDatabase(args.database)
    try:
        if args.action == "create":
            await database.create()
            print("the tables are there")
            return 0
        await database.open()
        if args.action == "retry":
            count = await database.retry()
            print(to_json({"again": count}) if args.json else f"{count} messages wait again")
            return 0
        return await _status(database, args.json)
    finally:
        await database.close()


async def _status(database: OutboxDatabase, as_json: bool) -> int:
    stats = await database.stats()
    facts = stats._asdict()
    errors = [{"id": name, "error": error} for name, error in facts.pop("errors")]
    if as_json:
        print(to_json({**facts, "errors": errors}))
        return 0
    print_table([facts], tuple(facts))
    if errors:
        print()
        print_table(errors, ("id", "error"))
    return 0


async def _relay(args: argparse.Namespace) -> int:
    from hivewire.coordination.outbox.relay import Relay
    from hivewire.coordination.serving import StopSignals

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    with StopSignals(5.0, lambda: loop.call_soon_threadsafe(stop.set)):
        async with connect_from(args) as protocol, Relay(protocol, args.database):
            print("sending", flush=True)
            await stop.wait()
    return 0
