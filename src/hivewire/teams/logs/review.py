"""The reviewer: counts the input again, in another way, and holds the report against it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

from hivewire.teams.logs.findings import Findings, Mined, gather
from hivewire.teams.logs.report import LABELS, markdown_path, visible_path
from hivewire.teams.logs.sources import Changed, Inventory, count_lines
from hivewire.teams.logs.steps import SendBack, Subtask, results_of

_MOST_TOLD: Final = 20
_NUMBER: Final = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})*")


def review(task: Subtask) -> dict[str, Any]:
    """Accept the report. Raises `SendBack` for the work in which there is a mistake, saying which."""
    inventory, mined = results_of(task)
    recounted = _recount(inventory)
    _check_analysts(inventory, mined, recounted)
    findings = gather(inventory, mined.values())
    facts = findings.facts()
    complaints = list(_complaints(task.wanted.folder, facts))
    if complaints:
        more = f"; and {len(complaints) - _MOST_TOLD} more" if len(complaints) > _MOST_TOLD else ""
        raise SendBack("write", "; ".join(complaints[:_MOST_TOLD]) + more)
    recounted = {path: lines for path, lines in recounted.items() if path not in _changed(findings)}
    return {
        "accepted": True,
        "lines": facts["lines"],
        "recounted": sum(recounted.values()),
        "changed_pieces": len(findings.changed),
        "numbers_checked": 2 * len(facts),
        "checks": _told(findings, facts, recounted),
    }


def _told(findings: Findings, facts: Mapping[str, int], recounted: Mapping[str, int]) -> list[str]:
    by_template = sum(found.count for found in findings.summary.templates.values())
    told = [
        f"all {facts['pieces']:,} pieces are there, end to end over {facts['files']:,} files",
        f"{sum(recounted.values()):,} lines counted again in {len(recounted):,} files: equal in each",
        f"the lines by template add up to {by_template:,}",
        f"{len(facts):,} numbers are the same in report.md, report.html and the pieces",
    ]
    gone = facts["files"] - len(recounted) - len(_changed(findings))
    if gone or findings.changed:
        told.append(
            f"files that got shorter since: {gone:,}; pieces that changed before they were read: "
            f"{len(findings.changed):,}, not counted"
        )
    return told


def _changed(findings: Findings) -> set[str]:
    return {result.piece.path for result in findings.changed}


def _recount(inventory: Inventory) -> dict[str, int]:
    """Lines by file; a file that cannot be counted any more is left out."""
    counts = {}
    for source in inventory.sources:
        try:
            counts[source.path] = count_lines(source)
        except Changed:
            continue
    return counts


def _check_analysts(inventory: Inventory, mined: Mapping[str, Mined], recounted: Mapping[str, int]) -> None:
    """Raises `SendBack` for an analyst whose books do not balance."""
    lines: dict[str, int] = {}
    analysts: dict[str, str] = {}
    changed: set[str] = set()
    for name, part in mined.items():
        by_piece = sum(result.lines for result in part.pieces)
        by_template = sum(template.count for template in part.summary.templates.values())
        by_file = part.summary.total.lines
        if not by_piece == by_template == by_file:
            raise SendBack(name, f"{by_piece:,} lines by piece, {by_template:,} by template, {by_file:,} by file")
        for result in part.pieces:
            path = result.piece.path
            lines[path] = lines.get(path, 0) + result.lines
            analysts.setdefault(path, name)
            if result.changed:
                changed.add(path)
    for source in inventory.sources:
        path = source.path
        if path in recounted and path not in changed and lines.get(path, 0) != recounted[path]:
            told = f"{path} has {recounted[path]:,} lines, its pieces have {lines.get(path, 0):,}"
            raise SendBack(analysts.get(path, "find"), told)


def _complaints(folder: Path, facts: Mapping[str, int]) -> Iterator[str]:
    expected = {visible_path(key): number for key, number in facts.items()}
    for name, read in (("report.md", _markdown_numbers), ("report.html", _page_numbers)):
        try:
            text = (folder / name).read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            yield f"{name} cannot be read: {error}"
            continue
        told = read(text, facts)
        for key, number in expected.items():
            if key not in told:
                yield f"{name} does not tell {key!r}; it is {number:,}"
            for other in told.get(key, []):
                if other != number:
                    yield f"{name} says {other:,} for {key!r}; it is {number:,}"
        for key in told:
            if key not in expected:
                yield f"{name} tells {key!r}, which is not in the input"


def _markdown_numbers(text: str, facts: Mapping[str, int]) -> dict[str, list[int]]:
    """The numbers in the tables of totals and of files."""
    keys = {label: key for key, label in LABELS.items()}
    files = [key.removeprefix("file ") for key in facts if key.startswith("file ")]
    keys |= {markdown_path(path): visible_path(f"file {path}") for path in files}
    numbers: dict[str, list[int]] = {}
    section = ""
    for line in text.split("\n"):
        section = line[3:] if line.startswith("## ") else section
        if section in ("Totals", "Files read") and line.startswith("| "):
            cells = line[2:].split(" | ")  # a bar within a cell has a backslash before it
            found = _NUMBER.match(cells[1]) if len(cells) > 1 else None
            if found:
                numbers.setdefault(keys.get(cells[0], cells[0]), []).append(_number(found.group()))
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


def _page_numbers(text: str, facts: Mapping[str, int]) -> dict[str, list[int]]:
    found = _Facts()
    found.feed(text)
    found.close()
    return found.numbers


def _number(text: str) -> int:
    return int(text.replace(",", ""))
