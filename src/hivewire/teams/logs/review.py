"""The reviewer: counts the input again, in another way, and holds the report against it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

from hivewire.teams.logs.files import load
from hivewire.teams.logs.findings import Findings, Mined, gather
from hivewire.teams.logs.report import LABELS, markdown_code
from hivewire.teams.logs.sources import Changed, Inventory, count_lines
from hivewire.teams.logs.steps import Subtask, inventory_of, mined_of, stored_in

_MOST_TOLD: Final = 20
_NUMBER: Final = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})*")


def review(task: Subtask) -> dict[str, Any]:
    """Accept the report, or send back the work in which a mistake was found, saying which."""
    inventory = inventory_of(task)
    faulty = _unreadable(task)
    if faulty:
        return _back(*faulty)
    mined = dict(mined_of(task))
    recounted = _recount(inventory)
    wrong = _miscounted(inventory, mined, recounted)
    if wrong:
        return _back(*wrong)
    findings = gather(inventory, mined.values())
    folder = task.wanted.folder
    expected = findings.facts()
    complaints = [
        *_complaints("report.md", _markdown_numbers(folder / "report.md", expected), expected),
        *_complaints("report.html", _page_numbers(folder / "report.html"), expected),
    ]
    if complaints:
        more = f" … and {len(complaints) - _MOST_TOLD} more" if len(complaints) > _MOST_TOLD else ""
        return _back("write", "; ".join(complaints[:_MOST_TOLD]) + more)
    return {
        "accepted": True,
        "lines": expected["lines"],
        "recounted": sum(recounted.values()),
        "changed_pieces": len(findings.changed),
        "numbers_checked": 2 * len(expected),
        "checks": _told(findings, expected),
    }


def _back(subtask: str, feedback: str) -> dict[str, Any]:
    return {"accepted": False, "send_back": {"subtask": subtask, "feedback": feedback}}


def _told(findings: Findings, facts: Mapping[str, int]) -> list[str]:
    return [
        f"all {facts['pieces']:,} pieces are there, end to end over {facts['files']:,} files",
        f"{facts['lines']:,} lines counted again in the files: equal in each file",
        f"the lines by template add up to {sum(t.count for t in findings.summary.templates.values()):,}",
        f"{len(facts):,} numbers are the same in report.md, report.html and the pieces",
    ]


def _unreadable(task: Subtask) -> tuple[str, str] | None:
    for name in sorted(task.outputs):
        if name.startswith("mine-"):
            try:
                load(task.wanted.pieces_folder, stored_in(task.outputs[name], "summary"), Mined)
            except ValueError as error:
                return name, f"the summary cannot be used: {error}"
    return None


def _recount(inventory: Inventory) -> dict[str, int]:
    """Lines by file; a file that cannot be counted any more is left out."""
    counts = {}
    for source in inventory.sources:
        try:
            counts[source.path] = count_lines(source)
        except Changed:
            continue
    return counts


def _miscounted(
    inventory: Inventory, mined: Mapping[str, Mined], recounted: Mapping[str, int]
) -> tuple[str, str] | None:
    """The analyst whose books do not balance, and how."""
    lines: dict[str, int] = {}
    changed: set[str] = set()
    analyst: dict[str, str] = {}
    for name, part in mined.items():
        by_piece = sum(result.lines for result in part.pieces)
        by_template = sum(template.count for template in part.summary.templates.values())
        if not by_piece == by_template == part.summary.total.lines:
            by_file = part.summary.total.lines
            return name, f"{by_piece:,} lines by piece, {by_template:,} by template, {by_file:,} by file"
        for result in part.pieces:
            path = result.piece.path
            lines[path] = lines.get(path, 0) + result.lines
            analyst.setdefault(path, name)
            if result.changed:
                changed.add(path)
    for source in inventory.sources:
        path = source.path
        if path in changed or path not in recounted or not source.pieces:
            continue
        if lines.get(path, 0) != recounted[path]:
            told = f"{path} has {recounted[path]:,} lines, its pieces have {lines.get(path, 0):,}"
            return analyst.get(path, "find"), told
    return None


def _complaints(report: str, told: Mapping[str, list[int]] | str, expected: Mapping[str, int]) -> list[str]:
    if isinstance(told, str):
        return [told]
    found = []
    for key, number in expected.items():
        numbers = told.get(key, [])
        if not numbers:
            found.append(f"{report} does not tell {key!r}; it is {number:,}")
        found.extend(f"{report} says {other:,} for {key!r}; it is {number:,}" for other in numbers if other != number)
    found.extend(f"{report} tells {key!r}, which is not in the input" for key in told if key not in expected)
    return found


def _markdown_numbers(path: Path, expected: Mapping[str, int]) -> dict[str, list[int]] | str:
    text = _text(path)
    if text is None:
        return f"{path.name} is missing"
    names = {label: key for key, label in LABELS.items()}
    names |= {markdown_code(key.removeprefix("file "), 4096): key for key in expected if key.startswith("file ")}
    numbers: dict[str, list[int]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line[3:]
        if section in ("Totals", "Files read") and line.startswith("| "):
            name, _, rest = line[2:].partition(" | ")
            while rest and name not in names and " | " in rest:
                more, _, rest = rest.partition(" | ")
                name += " | " + more
            found = _NUMBER.match(rest)
            if name in names and found:
                numbers.setdefault(names[name], []).append(_number(found.group()))
    return numbers


class _Facts(HTMLParser):
    """Collects the text of elements with a `data-fact`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.numbers: dict[str, list[int]] = {}
        self._key: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._key = dict(attrs).get("data-fact")

    def handle_endtag(self, tag: str) -> None:
        self._key = None

    def handle_data(self, data: str) -> None:
        if self._key is not None:
            found = _NUMBER.fullmatch(data.strip())
            self.numbers.setdefault(self._key, []).append(_number(found.group()) if found else -1)


def _page_numbers(path: Path) -> dict[str, list[int]] | str:
    text = _text(path)
    if text is None:
        return f"{path.name} is missing"
    facts = _Facts()
    facts.feed(text)
    facts.close()
    return facts.numbers


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _number(text: str) -> int:
    return int(text.replace(",", ""))
