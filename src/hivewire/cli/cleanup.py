"""`hivewire cleanup`: forgets what is kept for recognising repeats, and gives space back."""

from __future__ import annotations

import argparse

from hivewire.cli.options import (
    add_json_option,
    add_protocol_option,
    connect_from,
    duration_s,
    is_store_missing,
    note_if_memory,
    run_async,
    to_json,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Forget settled ids, used idempotency keys, the trail and contents that nothing refers to, when they are "
        "older; give space back. Never touches a message or a dead letter. Afterwards a repeat from before is not "
        "recognised."
    )
    parser.add_argument("--older-than", type=duration_s, required=True, metavar="TIME", help="such as 1h or 7d")
    add_protocol_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    note_if_memory(args)
    return _report(args, 0) if is_store_missing(args) else run_async(_clean(args))


async def _clean(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        return _report(args, await protocol.cleanup(args.older_than))


def _report(args: argparse.Namespace, forgotten: int) -> int:
    print(to_json({"forgotten": forgotten}) if args.json else f"forgot {forgotten}")
    return 0
