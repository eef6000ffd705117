"""The list of the mutants that survive, with the reason of each."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from tests.mutants.making import ROOT

LIST = ROOT / "tests" / "mutants" / "survivors.md"
_LINE = re.compile(r"- `(.+)`: (.*)")
_HEAD = """# Mutants of `rules/` that survive

Made by `python -m tests.mutants --write`; the reasons are written by hand and kept. A line is *module: the line as it
is [the part that is changed] => what it became*. A mutant counts as killed when a unit test fails, or does not come to
an end, with it.

"""


class Found(msgspec.Struct, frozen=True):
    """What became of the mutants of a module. `left`: the line and text of each survivor."""

    module: str
    count: int
    left: Sequence[tuple[int, str]]

    @property
    def killed(self) -> int:
        return self.count - len(self.left)

    @property
    def percent(self) -> float:
        return 100 * self.killed / max(self.count, 1)


def read_reasons() -> dict[str, str]:
    """By "module: text" of the mutant. A survivor without a reason has none here."""
    if not LIST.exists():
        return {}
    found = (_LINE.fullmatch(line) for line in LIST.read_text(encoding="utf-8").splitlines())
    return {match[1].replace("``", "`"): match[2] for match in found if match and match[2]}


def write_list(found: Sequence[Found], reasons: dict[str, str]) -> None:
    total, killed = sum(one.count for one in found), sum(one.killed for one in found)
    text = _HEAD + f"{killed} of {total} killed: {100 * killed / total:.1f} %.\n\n| module | killed | of | % |\n"
    text += "| --- | --- | --- | --- |\n"
    text += "".join(f"| {one.module} | {one.killed} | {one.count} | {one.percent:.0f} |\n" for one in found)
    for one in found:
        if one.left:
            text += f"\n## {one.module}\n\n"
        for key in dict.fromkeys(f"{one.module}: {line}" for _, line in one.left):
            text += f"- `{key.replace('`', '``')}`: {reasons.get(key, '')}".rstrip() + "\n"
    LIST.write_text(text, encoding="utf-8")
