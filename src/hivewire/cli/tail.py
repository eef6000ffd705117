"""`hivewire tail`: watches an agent's queue, or takes messages from it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from hivewire.cli.dead import last_line, row_of
from hivewire.cli.options import (
    add_json_option,
    add_protocol_option,
    connect_from,
    count,
    duration_s,
    note_if_memory,
    period_s,
    printable,
    run_async,
    wants_ascii,
)
from hivewire.cli.send import shown_message

if TYPE_CHECKING:
    from hivewire.protocol import DeadLetter, Protocol

_PAGE = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Watch an agent: a line whenever its queue's depth changes, and each new dead letter. Nothing is taken. "
        "With --ack: take messages, as a worker would, print each and acknowledge it; then they are gone."
    )
    parser.add_argument("agent", metavar="AGENT")
    parser.add_argument("--ack", action="store_true", help="take messages from the queue, for good")
    parser.add_argument("--limit", type=count, metavar="N", help="end after N messages or lines")
    parser.add_argument("--for", dest="for_s", type=duration_s, metavar="TIME", help="end after this time")
    parser.add_argument("--every", type=period_s, default=1.0, metavar="TIME", help="how often to look (1s)")
    add_protocol_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    note_if_memory(args)
    return run_async(_take(args) if args.ack else _watch(args))


class _Until:
    """The end of a tail: after so many lines or so long."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._left: int | None = args.limit
        self._end = None if args.for_s is None else time.monotonic() + args.for_s

    def note(self) -> None:
        if self._left is not None:
            self._left -= 1

    def most(self, wanted: int) -> int:
        return wanted if self._left is None else min(wanted, self._left)

    def time_left_s(self, wanted_s: float) -> float:
        return wanted_s if self._end is None else max(min(wanted_s, self._end - time.monotonic()), 0.0)

    @property
    def is_over(self) -> bool:
        return self._left == 0 or (self._end is not None and time.monotonic() >= self._end)


async def _take(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        until = _Until(args)
        while not until.is_over:
            batch = await protocol.receive(args.agent, limit=until.most(10), wait_s=until.time_left_s(5.0))
            for delivery in batch:
                # Printed before the ack: a pipe that closes now leaves the message in the queue.
                _print_line(shown_message(delivery.message) | {"attempt": delivery.attempt}, args.json)
                await delivery.ack()
                until.note()
    return 0


async def _watch(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        until = _Until(args)
        shown: dict[str, Any] = {}
        after = await _last_cursor(protocol, args.agent)
        while True:
            depth = await protocol.depth(args.agent)
            now = {"ready": depth.ready, "in_flight": depth.in_flight, "scheduled": depth.scheduled, "dead": depth.dead}
            if now != shown:
                _print_depth(now, depth.oldest_age_s, args.json)
                shown = now
                until.note()
            for letter in await protocol.dead_letters(args.agent, limit=_PAGE, after=after):
                after = letter.cursor
                _print_letter(letter, args.json)
                until.note()
            if until.is_over:
                return 0
            await asyncio.sleep(until.time_left_s(args.every))


async def _last_cursor(protocol: Protocol, agent: str) -> str | None:
    """Where the dead letters end now: what is older is not news."""
    after: str | None = None
    while page := await protocol.dead_letters(agent, limit=_PAGE, after=after):
        after = page[-1].cursor
    return after


def _print_line(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        line = json.dumps(shown, ensure_ascii=wants_ascii(), default=str)
    else:
        content = json.dumps(shown["content"], ensure_ascii=False)
        line = f"{shown['id']}  {shown['type']}  from {shown['from']}  {content}"
    _write(line)


def _print_depth(now: dict[str, Any], oldest_age_s: float, as_json: bool) -> None:
    if as_json:
        line = json.dumps({"at": time.time(), "oldest_age_s": oldest_age_s, **now})
    else:
        line = f"{time.strftime('%H:%M:%S')}  " + "  ".join(f"{k.replace('_', ' ')} {v}" for k, v in now.items())
        line += f"  oldest {oldest_age_s:.1f} s" if oldest_age_s else ""
    _write(line)


def _print_letter(letter: DeadLetter, as_json: bool) -> None:
    row = row_of(letter)
    if as_json:
        line = json.dumps({"at": time.time(), "dead_letter": row, "error": letter.error}, ensure_ascii=wants_ascii())
    else:
        line = f"{time.strftime('%H:%M:%S')}  dead letter {letter.id}: {letter.reason}, {last_line(letter.error)}"
    _write(line)


def _write(line: str) -> None:
    sys.stdout.write(printable(line) + "\n")
    sys.stdout.flush()
