"""What commands share: options, connecting, tables, durations, progress."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from hivewire.durations import parse_duration
from hivewire.errors import HivewireError

if TYPE_CHECKING:
    from hivewire.protocol import Protocol
    from hivewire.settings import Settings

PROTOCOL_TYPES: Final = ("memory", "inmemory", "sqlite", "redis", "kafka")


class UsageError(HivewireError):
    """What the user asked for cannot be done as asked."""

    code = "usage"


def duration_s(text: str) -> float:
    """Seconds, from `500ms`, `60s`, `2m`, `1h30m`, `7d` or a plain number of seconds.

    >>> duration_s("1h30m")
    5400.0
    """
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = -1.0
    if seconds < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write it as 500ms, 60s, 2m, 1h30m or 7d")
    return seconds


def count(text: str) -> int:
    """A whole number above zero, `_` and `,` allowed as in 100_000."""
    try:
        number = int(text.replace(",", "_"))
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def add_protocol_option(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """`--protocol TYPE|URL`."""
    parser.add_argument(
        "--protocol",
        metavar="TYPE|URL",
        default=default,
        help="memory, sqlite, redis, kafka, or a URL such as sqlite:///hive.db; without it: the environment "
        "and hivewire.toml decide",
    )


def add_json_option(parser: argparse.ArgumentParser, default: str | bool = False) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", default=default, help="print JSON")


def add_store_options(parser: argparse.ArgumentParser, actions: Iterable[argparse.ArgumentParser]) -> None:
    """`--protocol` and `--json` of a command with actions: they may stand before the action or after it."""
    add_protocol_option(parser)
    add_json_option(parser)
    for action in actions:
        add_protocol_option(action, argparse.SUPPRESS)
        add_json_option(action, argparse.SUPPRESS)


def add_unneeded_protocol(parser: argparse.ArgumentParser, actions: Iterable[argparse.ArgumentParser]) -> None:
    """`--protocol` of a command that needs no messages: scripts give it to all of them. It is checked, no more."""
    for each, default in ((parser, None), *((action, argparse.SUPPRESS) for action in actions)):
        each.add_argument(
            "--protocol", metavar="TYPE|URL", default=default, help="taken as by every command; not needed here"
        )


def target_of(protocol: str | None) -> tuple[str | None, dict[str, Any]]:
    """The arguments of `connect` for a value of `--protocol`: a URL is the target, a type is a setting."""
    if protocol is None:
        return None, {}
    if "://" in protocol:
        return protocol, {}
    name = protocol.lower()
    if name not in PROTOCOL_TYPES:
        raise UsageError(f"--protocol {protocol!r} is neither a URL nor one of {', '.join(PROTOCOL_TYPES)}")
    return None, {"protocol": "inmemory" if name == "memory" else name}


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings in force for `--protocol`, the environment and the file."""
    from hivewire.settings import load

    target, chosen = target_of(args.protocol)
    return load(target, **chosen)


def note_if_memory(args: argparse.Namespace) -> None:
    """Say on stderr that a queue in memory is of no use to a command that ends."""
    if settings_from(args).protocol == "inmemory":
        sys.stderr.write(
            "note: memory:// ends with this command; --protocol sqlite:///FILE, or a server, is shared with others\n"
        )


def is_store_missing(args: argparse.Namespace) -> bool:
    """Whether the SQLite file does not exist yet: looking must not make one. Says so on stderr."""
    settings = settings_from(args)
    if settings.protocol != "sqlite":
        return False
    from hivewire.backends.sqlite.schema import path_of

    path = path_of(settings.url)
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {str(path.absolute().parent)!r}")
    if not path.exists():
        sys.stderr.write(f"note: {path} does not exist yet; the first message makes it\n")
    return not path.exists()


def connect_from(args: argparse.Namespace, **settings: Any) -> Protocol:
    """The protocol that `--protocol`, the environment and the file name; not opened yet."""
    from hivewire.factory import connect

    target, chosen = target_of(args.protocol)
    return connect(target, **chosen, **settings)


def run_async(work: Coroutine[Any, Any, int]) -> int:
    """Run a command's coroutine to its exit code."""
    from hivewire.coordination.serving import loop_factory

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(work)
    finally:
        work.close()  # there may be no descriptor left for a loop to run it


def printable(value: object) -> str:
    """As text in which nothing can move the cursor or colour the terminal: messages come from strangers."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def confirm(what: str, is_agreed: bool) -> None:
    """Ask the user, on the terminal, whether `what` may be done. Raises `UsageError` for a no, and for no terminal."""
    if is_agreed:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"this would {what}; say --yes")
    sys.stderr.write(f"{what}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was done")


def to_json(value: object) -> str:
    """Indented JSON for people and programs."""
    return json.dumps(value, indent=2, ensure_ascii=wants_ascii(), default=str)


def wants_ascii() -> bool:
    """Whether what is printed goes where not every letter can be written. JSON has escapes for that."""
    return (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"


def period_s(text: str) -> float:
    """Seconds between two looks: a duration above zero."""
    seconds = duration_s(text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time between two looks; write it as 500ms or 2s")
    return seconds


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(printable, value))
    return printable(value)


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool = False) -> None:
    """Print the columns of the rows; as JSON, whole rows with all their keys. Numbers stand to the right."""
    if as_json:
        sys.stdout.write(to_json([dict(row) for row in rows]) + "\n")
        return
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    heads = [
        column.removesuffix("_s").replace("_", " ") + (" s" if column.endswith("_s") else "") for column in columns
    ]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(columns))]
    right = [bool(rows) and all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns]
    for line in [heads, *cells]:
        aligned = (f"{text:>{w}}" if r else f"{text:<{w}}" for text, w, r in zip(line, widths, right, strict=True))
        sys.stdout.write("  ".join(aligned).rstrip() + "\n")


class Progress:
    """One line on the terminal that is written over; silent in a pipe."""

    def __init__(self) -> None:
        self._shown = 0
        self._on = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line by this one."""
        if self._on:
            sys.stderr.write("\r" + text.ljust(self._shown))
            sys.stderr.flush()
            self._shown = len(text)

    def clear(self) -> None:
        """Leave an empty line for what comes next."""
        if self._on and self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            sys.stderr.flush()
            self._shown = 0
