"""`hivewire dead`: lists, shows, replays and purges dead letters."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from hivewire.cli.options import (
    UsageError,
    add_store_options,
    confirm,
    connect_from,
    count,
    duration_s,
    is_store_missing,
    note_if_memory,
    print_table,
    printable,
    run_async,
    to_json,
)
from hivewire.cli.send import shown_message
from hivewire.errors import last_words

if TYPE_CHECKING:
    from hivewire.protocol import DeadLetter, Protocol

COLUMNS: Final = ("id", "agent", "type", "from", "reason", "attempts", "age_s", "error")
_PAGE: Final = 500
_WIDE: Final = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|replay|purge")
    listing = actions.add_parser("list", help="list dead letters, oldest first")
    listing.add_argument("--limit", type=count, default=100, metavar="N", help="at most so many (100)")
    _add_filters(listing)
    show = actions.add_parser("show", help="show one with its error and the original bytes")
    show.add_argument("id", metavar="ID")
    replay = actions.add_parser("replay", help="put them back into their queues, attempts at zero")
    purge = actions.add_parser("purge", help="delete them for ever")
    for action in (replay, purge):
        action.add_argument("ids", nargs="*", metavar="ID", help="these only")
        action.add_argument("--all", action="store_true", help="the dead letters of every agent")
        action.add_argument("--yes", action="store_true", help="do not ask")
        _add_filters(action)
    add_store_options(parser, (listing, show, replay, purge))


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agent", metavar="NAME", help="of this agent")
    parser.add_argument("--reason", metavar="TEXT", help="whose reason or error contains this")
    parser.add_argument("--type", metavar="TYPE", help="of this message type")
    parser.add_argument("--older-than", type=duration_s, metavar="TIME", help="dead for longer than this")


def run(args: argparse.Namespace) -> int:
    if args.action in ("replay", "purge"):
        _check_choice(args)
    note_if_memory(args)
    if is_store_missing(args):
        return _nothing(args)
    return run_async({"list": _list, "show": _show, "replay": _replay, "purge": _purge}[args.action](args))


def _nothing(args: argparse.Namespace) -> int:
    """There is no store, so there are no dead letters."""
    if args.action == "list":
        _print_rows([], args.json)
        return 0
    if args.action == "show":
        raise UsageError(f"there is no dead letter {args.id!r}")
    return _report(args, "replayed" if args.action == "replay" else "purged", 0)


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if rows or as_json:
        print_table(rows, COLUMNS, as_json)
    else:
        print("no dead letters")


def _check_choice(args: argparse.Namespace) -> None:
    filters = [args.agent, args.reason, args.type, args.older_than]
    if args.ids and (args.all or any(value is not None for value in filters)):
        raise UsageError("name either ids or filters, not both")
    if not args.ids and not args.all and args.agent is None:
        raise UsageError(f"say which: ids, --agent NAME or --all (`hivewire dead {args.action} --help`)")
    if args.all and args.agent is not None:
        raise UsageError("--all and --agent exclude each other")


async def chosen(protocol: Protocol, args: argparse.Namespace) -> AsyncIterator[DeadLetter]:
    """The dead letters that the filters let through, oldest first."""
    after: str | None = None
    while True:
        page = await protocol.dead_letters(args.agent, limit=_PAGE, after=after)
        for letter in page:
            if _fits(letter, args):
                yield letter
        if len(page) < _PAGE:
            return
        after = page[-1].cursor


def _fits(letter: DeadLetter, args: argparse.Namespace) -> bool:
    return (
        (args.reason is None or args.reason.lower() in f"{letter.reason}\n{letter.error}".lower())
        and (args.type is None or (letter.message is not None and letter.message.type == args.type))
        and (args.older_than is None or time.time() - letter.dead_at > args.older_than)
    )


def row_of(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as a row of a table."""
    message = letter.message
    return {
        "id": letter.id,
        "agent": letter.agent,
        "type": message.type if message else "(unreadable)",
        "from": message.sender if message else "",
        "reason": letter.reason,
        "attempts": letter.attempts,
        "age_s": round(max(time.time() - letter.dead_at, 0.0), 1),
        "worker": letter.worker,
    }


async def _list(args: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    more = False
    async with connect_from(args) as protocol:
        async for letter in chosen(protocol, args):
            if len(rows) == args.limit:
                more = True
                break
            error = letter.error if args.json else last_line(letter.error)
            rows.append(row_of(letter) | {"error": error, "dead_at": letter.dead_at})
    _print_rows(rows, args.json)
    if more:
        sys.stderr.write(f"there are more than {args.limit}; --limit N shows more\n")
    return 0


def last_line(error: str) -> str:
    """What a traceback ends with, short enough for a table."""
    line = last_words(error)
    return line if len(line) <= _WIDE else line[: _WIDE - 1] + "…"


async def _find(protocol: Protocol, id_: str) -> DeadLetter:
    everything = argparse.Namespace(agent=None, reason=None, type=None, older_than=None)
    async for letter in chosen(protocol, everything):
        if letter.id == id_:
            return letter
    raise UsageError(f"there is no dead letter {id_!r}; `hivewire dead list` shows them")


async def _show(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        letter = await _find(protocol, args.id)
    facts = row_of(letter) | {"first_at": _at(letter.first_at), "dead_at": _at(letter.dead_at)}
    message = shown_message(letter.message) if letter.message else None
    if args.json:
        raw = letter.raw.decode("utf-8", "backslashreplace")
        print(to_json(facts | {"error": letter.error, "message": message, "raw": raw}))
        return 0
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<10}{printable(value)}")
    print("\nerror")
    for line in letter.error.splitlines() or ["(none)"]:
        print(f"  {printable(line)}")
    print("\nmessage" if message else "\noriginal bytes")
    text = to_json(message) if message else letter.raw.decode("utf-8", "backslashreplace")
    for line in text.splitlines():
        print(f"  {printable(line)}")
    return 0


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


async def _meant(protocol: Protocol, args: argparse.Namespace) -> str | list[str]:
    """The agent or the ids that are meant, after asking the user; an empty list for none."""
    is_whole_agent = args.agent is not None and args.reason is None and args.type is None and args.older_than is None
    if args.ids and args.action == "replay":
        return list(args.ids)
    found = list(args.ids) or [letter.id async for letter in chosen(protocol, args)]
    if found:
        confirm(f"{args.action} {len(found)} dead letter{'s' if len(found) != 1 else ''}", args.yes)
    return args.agent if found and is_whole_agent else found


async def _replay(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        what = await _meant(protocol, args)
        done = await protocol.replay(what) if what else 0
    return _report(args, "replayed", done)


async def _purge(args: argparse.Namespace) -> int:
    async with connect_from(args) as protocol:
        what = await _meant(protocol, args)
        done = await protocol.purge_dead(what) if what else 0
    return _report(args, "purged", done)


def _report(args: argparse.Namespace, verb: str, done: int) -> int:
    if args.json:
        print(to_json({verb: done}))
    else:
        print(f"{verb} {done}")
    if args.ids and done < len(set(args.ids)):
        sys.stderr.write(f"{len(set(args.ids)) - done} of the ids are no dead letters\n")
        return 1
    return 0
