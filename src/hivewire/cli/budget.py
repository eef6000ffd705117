"""`hivewire budget`: what models have cost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hivewire.cli.options import (
    add_json_option,
    add_protocol_option,
    connect_from,
    is_store_missing,
    note_if_memory,
    print_table,
    run_async,
)

if TYPE_CHECKING:
    from hivewire.coordination.budgets import Spent

COLUMNS: Final = ("scope", "calls", "tokens", "money", "reserved_tokens", "reserved_money", "limit")
KINDS: Final = ("day", "month", "run", "label")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=(*KINDS, "all"), default="day", help="what to add up by (day)")
    parser.add_argument(
        "name", nargs="?", default="", metavar="NAME", help="one day, month, run or label, or how it begins"
    )
    add_protocol_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    note_if_memory(args)
    return run_async(_show(args))


async def _show(args: argparse.Namespace) -> int:
    lines = [] if is_store_missing(args) else await _lines(args)
    if lines or args.json:
        rows = [_row(line) for line in lines]
        print_table(rows if args.json else [_shown(row) for row in rows], COLUMNS, args.json)
    else:
        print("no model's call was paid here yet")
    return 0


async def _lines(args: argparse.Namespace) -> list[Spent]:
    from hivewire.coordination.budgets import Budgets, limits_from
    from hivewire.settings import load

    prefix = "" if args.kind == "all" else f"{args.kind}/{args.name}"
    async with connect_from(args) as protocol:
        return await Budgets(protocol, limits_from(load())).summary(prefix)


def _row(line: Spent) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(line)
    limits = {name: most for name, most in (row["limit"] or {}).items() if most is not None}
    return {**row, "limit": ", ".join(f"{name} {most:g}" for name, most in limits.items())}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Money with the small parts that a call costs."""
    return {name: f"{value:.6f}" if isinstance(value, float) else value for name, value in row.items()}
