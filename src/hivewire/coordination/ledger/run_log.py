"""What is told of a run: its log, numbered without gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from operator import is_not
from typing import Any

import msgspec

from hivewire.coordination.ledger.rows import as_json
from hivewire.coordination.ledger.store import Many, Query, Script
from hivewire.rules.plan_state import Row, RunState


class LogEntry(msgspec.Struct, frozen=True):
    """What happened in a run. Numbers begin at 1 and have no gaps."""

    number: int
    at: float
    body: dict[str, Any]


def told(before: RunState, after: RunState) -> list[dict[str, Any]]:
    """What a step has changed, for whoever follows the run."""
    if after is before:
        return []
    entries: list[dict[str, Any]] = []
    moves: list[dict[str, Any]] = []
    run = {"type": "run", "status": after.header.status, "reason": after.header.reason}
    is_news = after.header.status != before.header.status
    if is_news and not after.is_finished:
        entries.append(run)
    if after.header.version != before.header.version:
        entries.append({"type": "plan", "version": after.header.version, "subtasks": list(after.rows)})
    if (after.header.facts, after.header.guesses) != (before.header.facts, before.header.guesses):
        entries.append({"type": "facts", "facts": after.header.facts, "guesses": after.header.guesses})
    if after.header.stalls > before.header.stalls:
        entries.append({"type": "stall", "stalls": after.header.stalls})
    if after.header.planning and after.header.planning != before.header.planning:
        entries.append({"type": "planning"})
    for row in _changed(before, after):
        name, old = row.spec.name, before.rows.get(row.spec.name)
        if old is None or (old.status, old.attempt) != (row.status, row.attempt):
            entry = {"type": "subtask", "subtask": name, "status": row.status, "attempt": row.attempt}
            moves.append(entry | ({"error": row.error} if row.error else {}))
    entries += sorted(moves, key=lambda entry: entry["status"] == "running")  # what ended is why others begin
    if is_news and after.is_finished:  # the end is told last of all
        entries.append(run)
    return entries


def _changed(before: RunState, after: RunState) -> Iterable[Row]:
    """The rows that a step has changed, in the order of the plan; quickly, for there may be thousands."""
    rows = after.rows.values()
    if before.header.version == after.header.version:  # the same subtasks in the same order
        return compress(rows, map(is_not, rows, before.rows.values()))
    return [row for row in rows if before.rows.get(row.spec.name) is not row]


def add(run: str, last: int, entries: Sequence[tuple[float, dict[str, Any]]]) -> Script[None]:
    if entries:
        yield Many(
            "INSERT INTO run_log (run, number, at, body) VALUES ($1, $2, $3, $4)",
            [(run, last + n, at, as_json(body)) for n, (at, body) in enumerate(entries, 1)],
        )


def read(run: str, after: int, limit: int) -> Script[list[LogEntry]]:
    rows = yield Query(
        "SELECT number, at, body FROM run_log WHERE run = $1 AND number > $2 ORDER BY number LIMIT $3",
        [run, after, limit],
    )
    return [LogEntry(number, at, msgspec.json.decode(body)) for number, at, body in rows]
