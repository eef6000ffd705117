"""Dead letters: buried, listed, revived, purged."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from hivewire.backend import DeadRecord, Letter, QueueSpec, Record
from hivewire.backends.sqlite.freeing import free_from
from hivewire.backends.sqlite.schema import BLOCKED, IS_LONE, LANE_BITS, OWNED, READY
from hivewire.backends.sqlite.storing import declare, flush, move_due, pack, unpack
from hivewire.backends.sqlite.transaction import Life, Transaction, name_of

if TYPE_CHECKING:
    from hivewire.backends.sqlite.memory import Settled

_BURY = "INSERT INTO dead(queue, record, data, letter, dead_at) VALUES (?, ?, ?, ?, ?)"
_LIST = "SELECT id, queue, data, letter, dead_at FROM dead WHERE {} ORDER BY id LIMIT ?"
_DELETE = "DELETE FROM dead WHERE id = ?"
_AT_ONCE = 500
_EXPIRED = (
    "SELECT expires_at, lane, first, stored_at, data FROM packs WHERE expires_at <= ?"
    f" AND (expires_at, lane, first) > (?, ?, ?) ORDER BY expires_at, lane, first LIMIT {_AT_ONCE}"
)
_LANE = "SELECT key, state, head, taken_to, counted, starts FROM lanes WHERE queue = ? AND key IN (?, ?) AND id = ?"
_NOT_WAITING = f"UPDATE lanes SET state = {READY}, due_at = 0 WHERE queue = ? AND key = ? AND state = {BLOCKED}"
_DROP_PACK = "DELETE FROM packs WHERE lane = ? AND first = ?"
_HOLES = "SELECT seq FROM holes WHERE lane = ?"
_HELD = (
    "SELECT data FROM packs WHERE lane = ? AND first <= ?"
    f" UNION ALL SELECT l.data FROM lanes l WHERE l.queue = ? AND l.key = ? AND {IS_LONE}"
)

_letters = msgspec.msgpack.Decoder(Letter)


def bury(transaction: Transaction, queue: str, record: Record, letter: Letter) -> None:
    row = (queue, record.id, pack((record,)), msgspec.msgpack.encode(letter), transaction.now)
    transaction.db.execute(_BURY, row)
    _count(transaction, queue, 1)


def _count(transaction: Transaction, name: str, change: int) -> None:
    queue = transaction.queue_named(name)
    if queue is not None:
        queue.dead += change
        queue.dirty = True


def _found(queue: str | None, ids: Sequence[str] | None, after: int, limit: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Statements with their values. Ids are looked up in parts, for a statement has a limit of values."""
    conditions = ["id > ?"] if queue is None else ["id > ?", "queue = ?"]
    values: tuple[Any, ...] = (after,) if queue is None else (after, queue)
    if ids is None:
        return [(_LIST.format(" AND ".join(conditions)), (*values, limit))]
    unique = list(dict.fromkeys(ids))
    parts = []
    for place in range(0, len(unique), 500):
        part = unique[place : place + 500]
        conditions_here = [*conditions, f"record IN ({', '.join('?' * len(part))})"]
        parts.append((_LIST.format(" AND ".join(conditions_here)), (*values, *part, limit)))
    return parts


def listed(db: sqlite3.Connection, queue: str | None, limit: int, after: str | None) -> list[DeadRecord]:
    (statement, values), *_ = _found(queue, None, int(after) if after else 0, limit)
    return [
        DeadRecord(
            cursor=f"{id_:016d}", queue=name, record=unpack(data)[0], letter=_letters.decode(letter), dead_at=dead_at
        )
        for id_, name, data, letter, dead_at in db.execute(statement, values)
    ]


def revive(transaction: Transaction, queue: str | None, ids: Sequence[str] | None) -> int:
    revived = 0
    for statement, values in _found(queue, ids, 0, -1):
        for id_, name, data, _, _ in transaction.db.execute(statement, values).fetchall():
            record = unpack(data)[0]
            record.replay += 1
            home = declare(transaction, QueueSpec(name=name))
            home.put((record,), transaction.now)
            home.held += 1
            home.dead -= 1
            home.dirty = True
            transaction.db.execute(_DELETE, (id_,))
            revived += 1
    return revived


def purge(transaction: Transaction, queue: str | None, ids: Sequence[str] | None, older_than_s: float | None) -> int:
    purged = 0
    for statement, values in _found(queue, ids, 0, -1):
        for id_, name, _, _, dead_at in transaction.db.execute(statement, values).fetchall():
            if older_than_s is None or dead_at <= transaction.now - older_than_s:
                transaction.db.execute(_DELETE, (id_,))
                _count(transaction, name, -1)
                purged += 1
    return purged


def _lives(db: sqlite3.Connection, lane: int, to: int, queue: int, key: str) -> set[Life]:
    """Of the records of a lane up to there: what its owner holds is among them."""
    return {name_of(record) for (data,) in db.execute(_HELD, (lane, to, queue, key)) for record in unpack(data)}


class Place(msgspec.Struct, frozen=True):
    """How far the search for expired packs has come."""

    expires_at: float = 0.0
    lane: int = 0
    first: int = 0


def bury_expired(transaction: Transaction, after: Place, settled: Callable[[int], Settled]) -> tuple[int, Place | None]:
    """One part of what has expired, unread, and where to go on. Runs that somebody holds are left alone. `settled`:
    what is remembered of a queue's lives."""
    while move_due(transaction):  # what falls due where nobody reads can have expired, too
        pass
    flush(transaction)
    values = (transaction.now, after.expires_at, after.lane, after.first)
    rows = transaction.db.execute(_EXPIRED, values).fetchall()
    buried = sum(_bury_pack(transaction, settled, *row[1:]) for row in rows)
    return buried, Place(*rows[-1][:3]) if len(rows) == _AT_ONCE else None


def _bury_pack(
    transaction: Transaction, settled: Callable[[int], Settled], lane: int, first: int, stored_at: float, data: bytes
) -> int:
    db = transaction.db
    queue = transaction.queue(lane >> LANE_BITS)
    records = unpack(data)
    if queue is None:
        return 0
    row = db.execute(_LANE, (queue.id, records[0].key, records[0].id, lane)).fetchone()
    if row is None or (row[1] == OWNED and first <= row[3]):
        return 0
    key, state, head, taken_to, counted, starts = row
    if state == OWNED and not _lives(db, lane, taken_to, queue.id, key).isdisjoint(map(name_of, records)):
        return 0  # it was sent twice, and what becomes of the first one is not known yet
    holes = {seq for (seq,) in db.execute(_HOLES, (lane,))}
    buried = gone = 0
    ended = settled(queue.id).refresh(transaction, queue)
    for seq, record in enumerate(records, first):
        if seq < head or seq in holes:
            continue
        gone += 1
        life = name_of(record)
        if life in ended or life in queue.settled:
            continue  # it was sent twice, and the first one has come to its end
        error = f"its time to live of {record.ttl_s} s ran out before anybody read it"
        attempts = starts if seq == counted else 0
        letter = Letter(reason="expired", error=error, attempts=attempts, first_at=stored_at, worker="")
        bury(transaction, queue.name, record, letter)
        queue.settled.append(life)
        buried += 1
    queue.held -= gone
    queue.dirty = True
    db.execute(_DROP_PACK, (lane, first))
    if state != OWNED and first <= head:
        db.execute(_NOT_WAITING, (queue.id, key))  # what waited for its retry is gone
        free_from(transaction, queue.id, key, lane, head)
        transaction.woken.add(queue.id)
    return buried
