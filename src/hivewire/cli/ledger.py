"""`hivewire ledger`: the state of a ledger's tables, their migrations, and purging."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hivewire.cli.options import (
    UsageError,
    add_json_option,
    add_unneeded_protocol,
    confirm,
    duration_s,
    print_table,
    run_async,
    settings_from,
    to_json,
)

if TYPE_CHECKING:
    from hivewire.coordination.ledger.stored import StoredLedger
    from hivewire.settings import Settings

EXIT_BEHIND: Final = 1
_OUTCOMES: Final = {
    "upgrade": ("applied", "the tables are there already"),
    "downgrade": ("undid", "no later migration was applied"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="status|upgrade|downgrade|purge")
    status = actions.add_parser("status", help="the migrations that were applied, and what is in the ledger")
    upgrade = actions.add_parser("upgrade", help="make the tables, or bring them to this version")
    upgrade.add_argument("--to", type=_number, metavar="N", help="up to this migration only")
    downgrade = actions.add_parser("downgrade", help="undo migrations, with the data that only they had")
    downgrade.add_argument("--to", type=_number, required=True, metavar="N", help="the last one to keep; 0 for none")
    purge = actions.add_parser("purge", help="delete what was finished long ago")
    purge.add_argument(
        "--older-than", type=duration_s, metavar="TIME", help="finished for longer than this (LEDGER_RETAIN_DURATION)"
    )
    purge.add_argument("--progress", action="store_true", help="steps so old, too, whatever became of their tasks")
    for action in (downgrade, purge):
        action.add_argument("--yes", action="store_true", help="do not ask")
    for action in (status, upgrade, downgrade, purge):
        action.add_argument(
            "--ledger",
            metavar="URL",
            help="sqlite:///FILE or postgresql://…; without it: the environment and hivewire.toml decide",
        )
        add_json_option(action)
    add_unneeded_protocol(parser, (status, upgrade, downgrade, purge))


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a migration")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from hivewire.coordination.ledger.opening import ledger_settings

    if args.protocol is not None:
        settings_from(args)  # a mistake in it is told
    settings = ledger_settings(args.ledger)
    if settings.ledger.type == "inmemory":
        raise UsageError(
            "a ledger in memory ends with this command; name one with --ledger sqlite:///FILE or postgresql://…, "
            "or set LEDGER_TYPE"
        )
    path = Path(settings.ledger.path)
    if settings.ledger.type == "sqlite" and args.action != "upgrade" and not path.exists():
        raise UsageError(f"there is no ledger {str(path)!r}; `hivewire ledger upgrade` makes it")
    return run_async(_run(args, settings))


async def _run(args: argparse.Namespace, settings: Settings) -> int:
    from hivewire.coordination.ledger.opening import store_of
    from hivewire.coordination.ledger.stored import StoredLedger

    ledger = StoredLedger(store_of(settings))
    try:
        if args.action == "status":
            return await _status(args, ledger)
        if args.action == "purge":
            return await _purge(args, ledger, settings)
        return await _migrate(args, ledger)
    finally:
        await ledger.close()


async def _status(args: argparse.Namespace, ledger: StoredLedger) -> int:
    from hivewire.errors import MigrationNeeded

    lines = await ledger.migrator.status()
    rows: list[dict[str, Any]] = [
        {"number": line.number, "name": line.name, "applied": _at(line.applied_at), "problem": line.problem}
        for line in lines
    ]
    said = ""
    try:
        await ledger.migrator.check()
    except MigrationNeeded as error:
        said = str(error)
    facts: dict[str, Any] = {}
    if not said:
        stats = await ledger.stats()
        facts = {name: getattr(stats, name) for name in stats.__struct_fields__}
    if args.json:
        print(to_json({"ok": not said, "detail": said, "migrations": rows, "ledger": facts}))
    else:
        print_table(rows, ("number", "name", "applied", "problem"))
        for name, value in facts.items():
            shown = _at(value) if name in ("oldest", "newest") else value
            print(f"{name.replace('_', ' '):<20}{shown}")
    if said:
        sys.stderr.write(f"hivewire ledger: {said}\n")
    return EXIT_BEHIND if said else 0


def _at(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


async def _migrate(args: argparse.Namespace, ledger: StoredLedger) -> int:
    migrator = ledger.migrator
    if args.action == "upgrade":
        done = await migrator.upgrade(args.to)
    else:
        undone = [line for line in await migrator.status() if line.applied_at is not None and line.number > args.to]
        if undone:
            confirm(f"undo {len(undone)} migrations, with the data that only they had", args.yes)
        done = await migrator.downgrade(args.to)
    if args.json:
        print(to_json({"action": args.action, "migrations": done}))
    else:
        verb, none = _OUTCOMES[args.action]
        print(f"{verb} {', '.join(map(str, done))}" if done else f"nothing to do: {none}")
    return 0


async def _purge(args: argparse.Namespace, ledger: StoredLedger, settings: Settings) -> int:
    from hivewire.durations import format_duration

    age_s = settings.ledger.retain_duration_s if args.older_than is None else args.older_than
    await ledger.open()
    confirm(f"delete every task that was finished more than {format_duration(age_s)} ago", args.yes)
    tasks = await ledger.purge_completed(age_s)
    steps = await ledger.purge_progress(age_s) if args.progress else 0
    if args.json:
        print(to_json({"tasks": tasks, "steps": steps}))
    else:
        print(f"purged {tasks} tasks" + (f" and {steps} steps" if args.progress else ""))
    return 0
