"""`hivewire explain`: the life of one message, and where it is now."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from hivewire.cli.options import (
    add_json_option,
    add_protocol_option,
    connect_from,
    is_store_missing,
    note_if_memory,
    printable,
    run_async,
    settings_from,
    to_json,
)
from hivewire.rules.trail import Event, Explanation, Place, sentence, whereabouts

_ALL = "only trouble was recorded; with the setting trail=all everything is, from then on"
_OFF = "nothing is recorded: the setting trail is off"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tell what happened to one message, in order, and where it is now. What is recorded is decided by the setting "
        "`trail` of those who send and handle it: off, trouble (the default: all but the plain good path) or all."
    )
    parser.add_argument("id", metavar="ID", help="the message's id; its copies for a group's members are told, too")
    add_protocol_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    note_if_memory(args)
    if is_store_missing(args):
        return _print(Explanation(id=args.id, events=(), places=()), args.json, "trouble")
    return run_async(_explain(args))


async def _explain(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        found = await protocol.explain(args.id)
    return _print(found, args.json, settings_from(args).trail)


def _print(found: Explanation, as_json: bool, trail: str) -> int:
    """1: nothing is known of it."""
    if as_json:
        print(to_json(_rows(found)))
    else:
        for line in lines(found):
            print(printable(line))
    if not found.events and not found.places:
        sys.stderr.write(f"nothing is known of {printable(found.id)}: never sent, or handled without trouble\n")
    if found.unsearched:
        sys.stderr.write(f"the queues of {', '.join(found.unsearched)} cannot be looked through in this store\n")
    if trail != "all":
        sys.stderr.write(f"note: {_OFF if trail == 'off' else _ALL}\n")
    return 0 if found.events or found.places else 1


def _rows(found: Explanation) -> dict[str, Any]:
    return {
        "id": found.id,
        "events": [_row(event) | {"says": sentence(event)} for event in found.events],
        "places": [_row(place) | {"says": whereabouts(place)} for place in found.places],
        "unsearched": list(found.unsearched),
    }


def _row(told: Event | Place) -> dict[str, Any]:
    return {name: getattr(told, name) for name in told.__struct_fields__}


def lines(found: Explanation) -> list[str]:
    """The story as it is printed: a line for each event, then one for each place."""
    told = [f"{_at(event.at)}  {_of(found, event.id, event.replay)}{sentence(event)}" for event in found.events]
    for place in found.places:
        since = f" (since {_at(place.dead_at)})" if place.dead_at else f" (stored {_at(place.stored_at)})"
        due = f", due {_at(place.due_at)}" if place.due_at else ""
        told.append(f"{'now':<23}  {_of(found, place.id, place.replay)}{whereabouts(place)}{due}{since}")
    return told


def _of(found: Explanation, id: str, replay: int) -> str:
    """Which copy and which life is meant, where it is not the first."""
    names = [id.removeprefix(found.id)] if id != found.id else []
    if replay:
        names.append(f"replay {replay}")
    return f"[{', '.join(names)}] " if names else ""


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03d}"
