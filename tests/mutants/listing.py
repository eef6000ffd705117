"""The list of the mutants that survive, with the reason of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from tests.mutants.making import ROOT

LIST = ROOT / "tests" / "mutants" / "survivors.md"
_LINE = re.compile(r"^- `(.+)`:[ ]?(.*)$", re.MULTILINE)
_ROW = re.compile(r"^\| (\w+) \| (\d+) \| (\d+) \| \d+ \|$", re.MULTILINE)
_HEAD = """# Mutants of `rules/` that survive

Made by `python -m tests.mutants --write [MODULE …]`; the reasons are written by hand and kept. A line is *module: the
line as it is [the part that is changed] => what it became*. A mutant counts as killed when a unit test fails, or does
not come to an end, with it.

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
    return {key: reason for key, reason in _lines() if reason}


def read_found() -> dict[str, Found]:
    """What the list says of each module. The lines of survivors are not known any more: 0."""
    text = LIST.read_text(encoding="utf-8") if LIST.exists() else ""
    counts = {match[1]: int(match[3]) for match in _ROW.finditer(text)}
    left: dict[str, list[tuple[int, str]]] = {module: [] for module in counts}
    for key, _ in _lines():
        module, _, change = key.partition(": ")
        left[module].append((0, change))
    return {module: Found(module, count, left[module]) for module, count in counts.items()}


def _lines() -> list[tuple[str, str]]:
    text = LIST.read_text(encoding="utf-8") if LIST.exists() else ""
    return [(match[1].replace("``", "`"), match[2]) for match in _LINE.finditer(text)]


def write_list(found: Iterable[Found], reasons: dict[str, str]) -> None:
    """These modules; of the others what it says already."""
    known = read_found() | {one.module: one for one in found}
    everything = [known[module] for module in sorted(known)]
    total, killed = sum(one.count for one in everything), sum(one.killed for one in everything)
    text = _HEAD + f"{killed} of {total} killed: {100 * killed / total:.1f} %.\n\n| module | killed | of | % |\n"
    text += "| --- | --- | --- | --- |\n"
    text += "".join(f"| {one.module} | {one.killed} | {one.count} | {one.percent:.0f} |\n" for one in everything)
    for one in everything:
        if one.left:
            text += f"\n## {one.module}\n\n"
        for _, change in one.left:
            key = f"{one.module}: {change}"
            text += f"- `{key.replace('`', '``')}`: {reasons.get(key, '')}".rstrip() + "\n"
    LIST.write_text(text, encoding="utf-8")
