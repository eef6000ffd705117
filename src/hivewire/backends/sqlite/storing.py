"""How records come into the file: declared queues, caps, idempotency keys, lanes and packs."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Container, Mapping, Sequence

import msgspec

from hivewire.backend import Append, Duplicate, QueueSpec, Record, Room
from hivewire.backends.sqlite.schema import LANE_BITS, READY
from hivewire.backends.sqlite.transaction import Queue, Run, Transaction
from hivewire.errors import BackendError, QueueFull, QueueMissing

REPLY_PREFIX = "~reply/"

_MOST_IN_PACK = 128
_MOST_BYTES_IN_PACK = 128 * 1024
_MOST_BYTES_IN_LANE = 900  # more than about a thousand would need a page of its own
_FIND_LANE = "SELECT id FROM lanes WHERE queue = ? AND key = ?"
_KEYS_AT_ONCE = 50
_FIND_LANES = f"SELECT key, id FROM lanes WHERE queue = ? AND key IN ({', '.join('?' * _KEYS_AT_ONCE)})"
_MAKE_LANE = (
    f"INSERT INTO lanes(queue, key, id, state, rank, head, stored_at, data) VALUES (?, ?, ?, {READY}, ?, ?, ?, ?)"
)
_MAKE_PACK = "INSERT INTO packs(lane, first, last, stored_at, expires_at, priority, data) VALUES (?, ?, ?, ?, ?, ?, ?)"
_FIND_KEY = "SELECT id FROM idempotent WHERE queue = ? AND key = ? AND until > ?"
_SAVE_KEY = "INSERT OR REPLACE INTO idempotent(queue, key, id, used_at, until) VALUES (?, ?, ?, ?, ?)"
_SCHEDULE = "INSERT INTO scheduled(queue, due_at, stored_at, number, data) VALUES (?, ?, ?, ?, ?)"
_DUE = "SELECT id, queue, stored_at, data FROM scheduled WHERE due_at <= ? ORDER BY due_at, id LIMIT 100"
_UNSCHEDULE = "DELETE FROM scheduled WHERE id = ?"
_SET_MODE = "UPDATE queues SET mode = ? WHERE id = ?"

_Row = tuple[str, str, bytes, str, str, float | None, int, int]
_Pack = tuple[int, int, int, float, float | None, int, bytes]
_Part = tuple[list[Record], bytes]
"""What is in a pack, and as it is stored."""
_Lane = tuple[int, str, int, int, int, float, bytes | None]
_NO_ATTEMPTS = (0,) * 8
_MOST_FRESH = 64
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_Row])


def pack(records: Sequence[Record]) -> bytes:
    return _encoder.encode([(r.id, r.key, r.body, r.type, r.sender, r.ttl_s, r.priority, r.replay) for r in records])


def unpack(data: bytes) -> list[Record]:
    return [Record(*row) for row in _decoder.decode(data)]


def declare(transaction: Transaction, spec: QueueSpec) -> Queue:
    """The queue as the first declaration made it, but for a mode that nobody decided yet."""
    queue = transaction.queue_named(spec.name)
    if queue is None:
        return transaction.make_queue(spec)
    if queue.mode is None and spec.mode is not None:
        transaction.db.execute(_SET_MODE, (spec.mode, queue.id))
        queue.mode = spec.mode
    return queue


def append(
    transaction: Transaction, batch: Sequence[Append], cap: int
) -> tuple[Mapping[int, Duplicate | Exception], int]:
    """Returns what was not stored, by running number, and the catalogue's epoch."""
    problems: dict[int, Duplicate | Exception] = {}
    number = 0
    for entry in batch:
        queue = _queue(transaction, entry.queue, cap)
        if queue is None:
            problems.update((number + place, _missing(entry.queue)) for place in range(len(entry.records)))
        else:
            _append_one(transaction, queue, entry, number, problems)
        number += len(entry.records)
    return problems, transaction.epoch or 0


def append_plain(transaction: Transaction, name: str, record: Record, room: Room, cap: int) -> BackendError | None:
    """`append` of one record with neither delay nor idempotency key: why it was not stored."""
    queue = _queue(transaction, name, cap)
    if queue is None:
        return _missing(name)
    if _room(queue, room) < 1:
        return _full(queue)
    queue.held += 1
    queue.dirty = True
    queue.put((record,), transaction.now)
    return None


def _queue(transaction: Transaction, name: str, cap: int) -> Queue | None:
    queue = transaction.queue_named(name)
    if queue is None and not name.startswith(REPLY_PREFIX):
        queue = transaction.make_queue(QueueSpec(name=name, cap=cap))
    return queue


def _missing(name: str) -> QueueMissing:
    return QueueMissing(f"send to {name}: nobody waits for replies there any more")


def _room(queue: Queue, room: Room) -> int:
    """How many records it may still be given."""
    if room is Room.CAP:
        return max(queue.cap - queue.held, 0)
    if room is Room.ALWAYS:
        return sys.maxsize
    return max(queue.cap + max(queue.cap // 10, 100) - queue.held, 0)


def _full(queue: Queue) -> QueueFull:
    return QueueFull(
        f"send to {queue.name}: it holds {queue.held} messages and its cap is {queue.cap};"
        " wait for its workers, or raise queue_cap"
    )


def _append_one(
    transaction: Transaction, queue: Queue, entry: Append, number: int, problems: dict[int, Duplicate | Exception]
) -> None:
    records = entry.records
    if entry.idempotency_key is not None:
        row = transaction.db.execute(_FIND_KEY, (queue.id, entry.idempotency_key, transaction.now)).fetchone()
        if row is not None:
            problems.update((number + place, Duplicate(row[0])) for place in range(len(records)))
            return
    room, asked = _room(queue, entry.room), len(records)
    if asked > room:
        records = records[:room]
    queue.held += len(records)
    if asked > room:
        problems.update(dict.fromkeys(range(number + room, number + asked), _full(queue)))
    if not records:
        return
    now = transaction.now
    if entry.idempotency_key is not None:
        row = (queue.id, entry.idempotency_key, records[0].id, now, now + entry.window_s)
        transaction.db.execute(_SAVE_KEY, row)
    queue.dirty = True
    if entry.delay_s > 0:
        for record in records:
            row = (queue.id, now + entry.delay_s, now, 1, pack((record,)))
            transaction.db.execute(_SCHEDULE, row)
        queue.scheduled += len(records)
    else:
        queue.put(records, now)


def move_due(transaction: Transaction) -> bool:
    """Put scheduled records that fell due into their lanes. True: there may be more."""
    rows = transaction.db.execute(_DUE, (transaction.now,)).fetchall()
    for id_, queue_id, stored_at, data in rows:
        transaction.db.execute(_UNSCHEDULE, (id_,))
        queue = transaction.queue(queue_id)
        if queue is not None:
            records = unpack(data)
            queue.scheduled -= len(records)
            queue.dirty = True
            queue.put(records, stored_at)
    return len(rows) == 100


def flush(transaction: Transaction, waited_for: Container[int] = ()) -> None:
    """Write what the operations so far have appended. In queues that somebody waits for, new lanes are kept
    back until he has taken what he wants: so a lane that is taken at once is written once, and never as ready."""
    rows: list[_Pack] = []
    for queue in transaction.touched():
        if queue.pending:
            rows += _flush_queue(transaction, queue, queue.id in waited_for)
    if rows:
        transaction.cursor.executemany(_MAKE_PACK, rows)


def write_fresh(transaction: Transaction) -> None:
    """Write the new lanes that nobody took."""
    for queue in transaction.touched():
        if queue.fresh:
            transaction.db.executemany(_MAKE_LANE, [lane for lane, _, _, _ in queue.fresh.values()])


def _keep_run_back(transaction: Transaction, queue: Queue) -> Sequence[_Pack] | None:
    """`_flush_queue` of records that begin a lane as one pack, or a lone one that needs none, and are waited for.
    None: they are not that kind."""
    records, stored_at = queue.pending[0]
    head, number, is_competing = records[0], len(records), queue.mode == "competing"
    if len(queue.pending) > 1 or (number > 1 and (is_competing or not _are_one_pack(records))):
        return None
    key = head.id if is_competing else head.key
    if key not in queue.gone and _there(transaction.db, queue.id, [key]):
        return None
    data = pack(records)
    if number > 1 and len(data) > _MOST_BYTES_IN_PACK:
        return None
    is_lone = number == 1 and head.ttl_s is None and len(data) <= _MOST_BYTES_IN_LANE
    first, last = queue.seq + 1, queue.seq + number
    id_ = (queue.id << LANE_BITS) + first
    lane = (queue.id, key, id_, -head.priority, first, stored_at, data if is_lone else None)
    row = (id_, key, first, *_NO_ATTEMPTS, first, last, stored_at, records, False, is_lone)
    queue.fresh[id_] = (lane, row, number, len(data))
    queue.kept_back += number
    queue.pending = []
    queue.seq = last
    queue.dirty = True
    queue.gone.clear()
    transaction.filled.add(queue.id)
    if is_lone:
        return ()
    expires_at = None if head.ttl_s is None else stored_at + head.ttl_s
    return ((id_, first, last, stored_at, expires_at, head.priority, data),)


def _are_one_pack(records: list[Record]) -> bool:
    """Whether they are of one key and of one kind, and not too many."""
    if len(records) > _MOST_IN_PACK:
        return False
    return len({(record.key, record.ttl_s, record.priority) for record in records}) == 1


def _flush_queue(transaction: Transaction, queue: Queue, is_waited_for: bool) -> Sequence[_Pack]:
    """Returns the packs to be written."""
    if is_waited_for:
        kept_back = _keep_run_back(transaction, queue)
        if kept_back is not None:
            return kept_back
    pending, queue.pending = queue.pending, []
    lanes, is_even = _by_key(pending, competing=queue.mode == "competing")
    seq = queue.seq + 1
    made: list[tuple[_Lane, list[_Pack]]] = []
    for key, runs in lanes.items():
        id_ = (queue.id << LANE_BITS) + seq
        packs = _packs(id_, seq, runs, is_even=is_even)
        head = packs[0]
        fits = len(packs) == 1 and head[1] == head[2] and head[4] is None and len(head[6]) <= _MOST_BYTES_IN_LANE
        made.append(((queue.id, key, id_, -head[5], seq, head[3], head[6] if fits else None), packs))
        seq = packs[-1][2] + 1
    queue.seq = seq - 1
    queue.dirty = True
    there = _there(transaction.db, queue.id, [key for key in lanes if key not in queue.gone])
    if is_waited_for and len(made) <= _MOST_FRESH:
        rows = _keep_back(queue, made, lanes, there)
        transaction.filled.add(queue.id)
    else:
        rows = _make_lanes(transaction, made, there)
        transaction.woken.add(queue.id)
    queue.gone.clear()
    return rows


def _there(db: sqlite3.Connection, queue: int, keys: list[str]) -> dict[str, int]:
    """The ids of the lanes that these keys have already."""
    if len(keys) == 1:
        row = db.execute(_FIND_LANE, (queue, keys[0])).fetchone()
        return {} if row is None else {keys[0]: row[0]}
    found: dict[str, int] = {}
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        some = keys[start : start + _KEYS_AT_ONCE]
        found.update(db.execute(_FIND_LANES, (queue, *some, *[None] * (_KEYS_AT_ONCE - len(some)))))
    return found


def _by_key(pending: list[Run], *, competing: bool) -> tuple[dict[str, list[Run]], bool]:
    """The records of each lane, in the order in which they came, and whether it is known that all are of one kind."""
    first = pending[0][0]
    if len(pending) == 1 and (len(first) == 1 or not competing):
        kinds = {(record.key, record.ttl_s, record.priority) for record in first}
        if len(kinds) == 1:
            return {first[0].id if competing else first[0].key: pending}, True
    lanes: dict[str, list[Run]] = {}
    for records, stored_at in pending:
        for record in records:
            key = record.id if competing else record.key
            runs = lanes.get(key)
            if runs is None:
                lanes[key] = [([record], stored_at)]
            elif runs[-1][1] == stored_at:
                runs[-1][0].append(record)
            else:
                runs.append(([record], stored_at))
    return lanes, False


def _keep_back(
    queue: Queue,
    made: list[tuple[_Lane, list[_Pack]]],
    lanes: Mapping[str, list[Run]],
    there: Mapping[str, int],
) -> list[_Pack]:
    """Note new lanes, to be written when it is known who takes them. Returns the packs to be written."""
    rows: list[_Pack] = []
    for lane, packs in made:
        if lane[1] in there:
            rows += _of_lane(there[lane[1]], packs)
            continue
        is_lone = lane[6] is not None
        _, first, last, stored_at, *_ = packs[0]
        records = lanes[lane[1]][0][0][: last - first + 1]
        row = (lane[2], lane[1], first, *_NO_ATTEMPTS, first, last, stored_at, records, len(packs) > 1, is_lone)
        number = packs[-1][2] - first + 1
        queue.fresh[lane[2]] = (lane, row, number, sum([len(data) for *_, data in packs]))
        queue.kept_back += number
        if not is_lone:
            rows += packs
    return rows


def _make_lanes(
    transaction: Transaction, made: list[tuple[_Lane, list[_Pack]]], there: Mapping[str, int]
) -> list[_Pack]:
    """Write the lanes that are not there yet. Returns the packs to be written."""
    transaction.db.executemany(_MAKE_LANE, [lane for lane, _ in made if lane[1] not in there])
    rows: list[_Pack] = []
    for lane, packs in made:
        if lane[1] in there:
            rows += _of_lane(there[lane[1]], packs)
        elif lane[6] is None:
            rows += packs
    return rows


def _of_lane(id_: int, packs: list[_Pack]) -> list[_Pack]:
    """These packs for a lane that was there already."""
    return [(id_, *pack[1:]) for pack in packs]


def _packs(lane: int, first: int, runs: Sequence[Run], *, is_even: bool) -> list[_Pack]:
    """The rows of these records, in which they have one place after another from `first` on."""
    rows: list[_Pack] = []
    for records, stored_at in runs:
        for part, data in _even_parts(records, is_even=is_even) or _parts(records):
            head = part[0]
            expires_at = None if head.ttl_s is None else stored_at + head.ttl_s
            rows.append((lane, first, first + len(part) - 1, stored_at, expires_at, head.priority, data))
            first += len(part)
    return rows


def _even_parts(records: list[Record], *, is_even: bool) -> list[_Part]:
    """`_parts` of records that are all of one kind and short, as most are. Empty: they are not."""
    if len(records) == 1:
        return [(records, pack(records))]
    if not is_even:
        ttl_s, priority = records[0].ttl_s, records[0].priority
        if [1 for record in records if record.ttl_s != ttl_s or record.priority != priority]:
            return []
    if len(records) <= _MOST_IN_PACK:
        parts = [(records, pack(records))]
    else:
        some = [records[start : start + _MOST_IN_PACK] for start in range(0, len(records), _MOST_IN_PACK)]
        parts = [(part, pack(part)) for part in some]
    return [] if [1 for _, data in parts if len(data) > _MOST_BYTES_IN_PACK] else parts


def _parts(records: list[Record]) -> list[_Part]:
    """As they fit into packs: of one priority and one time to live."""
    parts: list[list[Record]] = []
    start, size = 0, 0
    for place, record in enumerate(records):
        head = records[start]
        fits = place - start < _MOST_IN_PACK and size + len(record.body) <= _MOST_BYTES_IN_PACK
        if place > start and not (fits and record.ttl_s == head.ttl_s and record.priority == head.priority):
            parts.append(records[start:place])
            start, size = place, 0
        size += len(record.body)
    parts.append(records[start:])
    return [(part, pack(part)) for part in parts]
