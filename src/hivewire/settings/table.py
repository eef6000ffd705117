"""The tables of the settings guide: `python -m hivewire.settings.table docs/guides/settings.md` makes them anew."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hivewire.durations import format_duration
from hivewire.settings.schema import SECTIONS, Secret, Setting, every_setting
from hivewire.settings.values import EXAMPLES, accepted, kind_of


def tables() -> dict[str, str]:
    """Each table of the guide, by the name in its marker."""
    every = every_setting()
    made = {section or "general": _table([s for s in every if s.section == section]) for section in ("", *SECTIONS)}
    made["differs"] = _differences([s for s in every if s.about.reference])
    return made


def with_tables(guide: str) -> str:
    """The guide, the text between each pair of markers made anew."""
    for name, table in tables().items():
        guide, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)",
            rf"\g<1>\n{_escaped(table)}\n\g<2>",
            guide,
            flags=re.DOTALL,
        )
        if found != 1:
            raise ValueError(f"the guide has {found} places for the table {name!r}, not one")
    return guide


def _table(settings: Sequence[Setting]) -> str:
    rows = ["| setting | in the environment | default | accepted | what it is |", "| --- | --- | --- | --- | --- |"]
    for setting in settings:
        about = setting.about.text.replace("|", "\\|")
        if setting.about.sets:
            about += f"; sets `{setting.about.sets}`"
        values = accepted(setting).replace(EXAMPLES, "")
        rows.append(f"| `{setting.name}` | `{setting.env}` | {default_of(setting)} | {values} | {about} |")
    return "\n".join(rows) + "\n"


def _differences(settings: Sequence[Setting]) -> str:
    rows = ["| setting | the reference | here | why |", "| --- | --- | --- | --- |"]
    for setting in settings:
        here = "none" if setting.default is None else default_of(setting)
        rows.append(f"| `{setting.name}` | `{setting.about.reference}` | {here} | {setting.about.why} |")
    return "\n".join(rows) + "\n"


def default_of(setting: Setting) -> str:
    """The default as it would be written in the environment."""
    value = setting.default
    if value is None or (isinstance(value, Secret) and not value):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return f"`{format_duration(value)}`" if kind_of(setting)[0] is float else f"`{value}`"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\")


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text("utf-8")), "utf-8")
