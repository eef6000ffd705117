"""What a queue holds, seen without taking it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, Literal

from hivewire.backend import Record, Waiting
from hivewire.backends.sqlite.schema import BLOCKED, IS_LONE, LANE_BITS, OWNED
from hivewire.backends.sqlite.storing import unpack
from hivewire.backends.sqlite.transaction import Transaction

_QUEUE = "SELECT id FROM queues WHERE name = ?"
_PACKS = (
    "SELECT lane, first, last, stored_at, data FROM packs WHERE lane >= ? AND lane < ? AND (lane > ? OR last > ?)"
    " ORDER BY lane, first"
)
_LANE = (
    "SELECT state, head, taken_to, due_at, counted, starts, failures FROM lanes"
    " WHERE queue = ? AND key IN (?, ?) AND id = ?"
)
_LONE = (
    "SELECT key, data, stored_at, state, head, taken_to, due_at, counted, starts, failures FROM lanes l"
    f" WHERE queue = ? AND key > ? AND {IS_LONE} ORDER BY key LIMIT ?"
)
_HOLES = "SELECT seq FROM holes WHERE lane = ?"
_DELAYED = (
    "SELECT id, due_at, stored_at, data FROM scheduled INDEXED BY scheduled_due"
    " WHERE queue = ? AND (due_at, id) > (?, ?) ORDER BY due_at, id LIMIT ?"
)
_WITHDRAW = "DELETE FROM scheduled WHERE queue = ? AND id = ? AND due_at > ?"

State = Literal["ready", "in_flight", "scheduled"]


def peek(db: sqlite3.Connection, name: str, limit: int, after: str | None, delayed_only: bool) -> list[Waiting]:
    db.execute("BEGIN")
    try:
        row = db.execute(_QUEUE, (name,)).fetchone()
        if row is None:
            return []
        found: list[Waiting] = []
        part = "s" if delayed_only else after[0] if after else "l"
        if part == "l":
            found, after = _lone(db, row[0], limit, after), None
        if part in ("l", "r") and len(found) < limit:
            with closing(_held(db, row[0], after)) as held:
                found += islice(held, limit - len(found))
            after = None
        return found if len(found) == limit else found + _delayed(db, row[0], limit - len(found), after)
    finally:
        db.execute("COMMIT")


def _lone(db: sqlite3.Connection, queue: int, limit: int, after: str | None) -> list[Waiting]:
    """Records that are in their lanes' rows, by key."""
    now = time.time()
    rows = db.execute(_LONE, (queue, after[1:] if after else "", limit))
    return [_waiting(row, f"l{key}", row[1], unpack(data)[0], stored_at, now) for key, data, stored_at, *row in rows]


def _held(db: sqlite3.Connection, queue: int, after: str | None) -> Generator[Waiting]:
    lane, seq = (int(part) for part in after[1:].split("-")) if after else (-1, -1)
    low = queue << LANE_BITS
    now = time.time()
    for id_, first, last, stored_at, data in db.execute(_PACKS, (max(low, lane), (queue + 1) << LANE_BITS, lane, seq)):
        records = unpack(data)
        row = db.execute(_LANE, (queue, records[0].key, records[0].id, id_)).fetchone()
        if row is None:
            continue
        holes = {gone for (gone,) in db.execute(_HOLES, (id_,))}
        start = max(first, row[1], seq + 1 if id_ == lane else 0)
        for place in range(start, last + 1):
            if place not in holes:
                cursor = f"r{id_:020d}-{place:020d}"
                yield _waiting(row, cursor, place, records[place - first], stored_at, now)


def _waiting(row: Any, cursor: str, seq: int, record: Record, stored_at: float, now: float) -> Waiting:
    state, head, taken_to, due_at, counted, starts, failures = row
    waits = state == BLOCKED and seq == head and due_at > now
    known: State = "in_flight" if state == OWNED and seq <= taken_to else "scheduled" if waits else "ready"
    return Waiting(
        cursor=cursor,
        record=record,
        state=known,
        stored_at=stored_at,
        due_at=due_at if waits else 0.0,
        starts=starts if counted == seq else 0,
        failures=failures if counted == seq else 0,
    )


def _delayed(db: sqlite3.Connection, queue: int, limit: int, after: str | None) -> list[Waiting]:
    due_at, id_ = after[1:].split("-") if after else ("-1", "-1")
    rows = db.execute(_DELAYED, (queue, float.fromhex(due_at) if after else -1.0, int(id_), limit))
    return [
        Waiting(
            cursor=f"s{due.hex()}-{number}",
            record=unpack(data)[0],
            state="scheduled",
            stored_at=stored_at,
            due_at=due,
        )
        for number, due, stored_at, data in rows
    ]


def withdraw(transaction: Transaction, name: str, cursors: Sequence[str]) -> list[str]:
    queue = transaction.queue_named(name)
    if queue is None:
        return []
    gone = []
    for cursor in cursors:
        number = int(cursor.rpartition("-")[2])
        if transaction.db.execute(_WITHDRAW, (queue.id, number, transaction.now)).rowcount:
            gone.append(cursor)
    queue.scheduled -= len(gone)
    queue.held -= len(gone)
    queue.dirty = queue.dirty or bool(gone)
    return gone
