"""`hivewire config`: the settings in force, and where each comes from. Secrets are hidden."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from hivewire.cli.options import add_json_option, add_protocol_option, print_table, settings_from

if TYPE_CHECKING:
    from hivewire.settings import Settings

COLUMNS: Final = ("setting", "value", "source", "environment")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="SETTING", help="these only, or all of a section (redis)")
    parser.add_argument("--all", action="store_true", help="the settings of protocols that are not in use, too")
    parser.add_argument("--changed", action="store_true", help="what is not a default")
    add_protocol_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    rows = rows_of(settings_from(args))
    if args.names:
        rows = [row for row in rows if row["setting"] in args.names or row["section"] in args.names]
        _refuse_unknown(args.names, rows)
    elif not args.all:
        rows = [row for row in rows if row["section"] in ("", row["protocol"])]
    if args.changed:
        rows = [row for row in rows if row["source"] != "default"]
    shown = [{name: value for name, value in row.items() if name not in ("section", "protocol")} for row in rows]
    if shown or args.json:
        print_table(shown, COLUMNS, args.json)
    else:
        print("every setting has its default")
    return 0


def rows_of(settings: Settings) -> list[dict[str, Any]]:
    """One row a setting, secrets and the passwords of URLs hidden."""
    from hivewire.settings.schema import every_setting

    known = {setting.name: setting for setting in every_setting()}
    return [
        {
            "setting": name,
            "value": _shown(value),
            "source": source,
            "environment": known[name].env,
            "meaning": known[name].about.text,
            "section": known[name].section,
            "protocol": settings.protocol,
        }
        for name, value, source in settings.sources()
    ]


def _shown(value: object) -> object:
    from hivewire.settings.targets import hidden

    if isinstance(value, str):
        return hidden(value) if "://" in value and "@" in value else value
    return list(value) if isinstance(value, tuple) else value


def _refuse_unknown(names: list[str], rows: list[dict[str, Any]]) -> None:
    from hivewire.cli.options import UsageError

    known = {row["setting"] for row in rows} | {row["section"] for row in rows}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no setting {name!r}; `hivewire config --all` lists them")
