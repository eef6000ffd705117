"""Claims: a member takes runs of lanes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any, cast

import msgspec

from hivewire.backend import Fetched, Record
from hivewire.backends.sqlite.memory import Packs, Settled
from hivewire.backends.sqlite.schema import IS_LONE, OWNED, READY
from hivewire.backends.sqlite.transaction import Life, Queue, Transaction, name_of
from hivewire.rules.priority import Shares

_MOST_BYTES = 8 * 1024 * 1024
_MOST_RANK = 1 << 40
# Each ready lane with its first pack; there is no statement a lane unless more than that is taken of it.
_READY = f"""
SELECT l.id, l.key, l.head, l.counted, l.starts, l.failures, l.crashes, l.died, l.suspect_from, l.suspect_to, l.holes,
  coalesce(p.first, l.head), coalesce(p.last, l.head), coalesce(p.stored_at, l.stored_at), coalesce(p.data, l.data),
  1, p.lane IS NULL
FROM lanes l LEFT JOIN packs p ON NOT {IS_LONE} AND p.lane = l.id
  AND p.first = (SELECT min(m.first) FROM packs m WHERE m.lane = l.id)
WHERE l.queue = ? AND l.state = {READY} AND l.rank = ? AND (p.lane NOT NULL OR {IS_LONE}) ORDER BY l.head LIMIT ?"""
_RANK_FROM = f"SELECT min(rank) FROM lanes WHERE queue = ? AND state = {READY} AND rank >= ?"
_MORE = "SELECT first, last, stored_at, data FROM packs WHERE lane = ? AND first > ? ORDER BY first"
_HOLES = "SELECT seq FROM holes WHERE lane = ?"
_TAKE = f"UPDATE lanes SET state = {OWNED}, owner = ?, taken = ?, taken_to = ?, due_at = 0 WHERE queue = ? AND key = ?"
_TAKE_RUNNING = (
    f"UPDATE lanes SET state = {OWNED}, owner = ?, taken = ?, taken_to = ?, due_at = 0, running = 1, counted = ?,"
    " starts = ?, failures = ?, crashes = ?, died = ? WHERE queue = ? AND key = ?"
)
_TAKE_FRESH = (
    "INSERT INTO lanes(queue, key, id, state, rank, head, stored_at, data, owner, taken, taken_to, counted, starts,"
    f" running) VALUES (?, ?, ?, {OWNED}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


NOTHING_KEPT = cast("dict[int, float]", MappingProxyType({}))
"""Never written to."""


class Hold(msgspec.Struct, eq=False, gc=False):
    """A run of one lane that this process has taken. `counted` is the record whose counters are stored."""

    lane: int
    key: str
    counted: int = 0
    has_holes: bool = False
    seqs: list[int] = []
    taken: list[Fetched] = []
    """What was handed out, in the order of `seqs`."""
    lives: list[Life] = []
    """As `name_of` names them, in the same order."""
    lasts: list[int] = []
    """The last record of each pack that the run touches; a lone record has none."""
    place: int = 0
    """Where in `seqs` the first record is that stays in the lane."""
    kept: dict[int, float] = NOTHING_KEPT
    """Settled as Again or Back: they stay. The value is when the lane is due."""
    marked: bool = False

    def keep(self, seq: int, due_at: float) -> None:
        self.kept = self.kept or {}
        self.kept[seq] = due_at


class Wanted(msgspec.Struct, eq=False, gc=False):
    """How much a claim may take."""

    token: int
    limit: int
    run: int
    starting: int
    left: int = 0
    """What is left for the present lane."""
    bytes: int = _MOST_BYTES


_Row = tuple[int, str, int, int, int, int, int, int, int, int, int, int, int, float, bytes | list[Record], bool, bool]
"""A ready lane: its row, its first pack, whether there may be more packs, whether that pack is a lone record."""
_Pack = tuple[int, int, float, bytes | list[Record]]


def take(
    transaction: Transaction,
    queue: Queue,
    wanted: Wanted,
    lanes: int,
    packs: Packs,
    settled: Settled,
    shares: Shares,
) -> list[Hold]:
    """Of the lanes that are ready the more urgent sooner, of one priority those first that have waited longest."""
    db = transaction.db
    holds: list[Hold] = []
    if not queue.has_waiting or queue.id in transaction.only_filled:
        _take_new(transaction, queue, wanted, lanes, holds)
        if not queue.fresh or wanted.limit <= 0 or wanted.bytes <= 0 or len(holds) == lanes:
            _note(transaction, queue, holds, settled)
            return holds
    plain: list[tuple[int | str, ...]] = []
    running: list[tuple[int | str, ...]] = []
    fresh: list[tuple[Any, ...]] = []
    for row in _lanes(transaction, queue, min(lanes - len(holds), wanted.limit), shares):
        hold = Hold(row[0], row[1], row[3], bool(row[10]))
        _take_lane(transaction, hold, row, wanted, packs)
        if not hold.seqs:
            continue
        holds.append(hold)
        _count(row, hold)
        head = hold.taken[0]
        owned = (wanted.token, len(hold.seqs), hold.seqs[-1])
        if hold.lane in queue.fresh:
            if wanted.starting > 0:
                _mark(head, hold)
            lane, _, number, _ = queue.fresh.pop(hold.lane)
            queue.kept_back -= number
            fresh.append((*lane, *owned, hold.counted, head.starts, head.starts))
        elif wanted.starting > 0 and not head.suspect:
            _mark(head, hold)
            counters = (head.starts, head.failures, head.crashes, head.died)
            running.append((*owned, hold.seqs[0], *counters, queue.id, hold.key))
        else:
            plain.append((*owned, queue.id, hold.key))
        wanted.starting -= 1
        if wanted.limit <= 0 or wanted.bytes <= 0 or len(holds) == lanes:
            break
    if fresh:
        db.executemany(_TAKE_FRESH, fresh)
    if plain:
        db.executemany(_TAKE, plain)
    if running:
        db.executemany(_TAKE_RUNNING, running)
    _note(transaction, queue, holds, settled)
    return holds


def _take_new(transaction: Transaction, queue: Queue, wanted: Wanted, lanes: int, holds: list[Hold]) -> None:
    """`take` of new lanes as long as all of the next one is taken: it is written as taken, with what is known of it."""
    token = wanted.token
    rows: list[tuple[Any, ...]] = []
    for id_, (lane, row, number, size) in tuple(queue.fresh.items()):
        if row[15] or number > wanted.limit or number > wanted.run or size > wanted.bytes or len(holds) == lanes:
            break
        first, last, stored_at, records = row[11:15]
        hold = Hold(id_, row[1], lasts=[] if row[16] else [last])
        if number == 1:
            record = records[0]
            hold.seqs.append(first)
            hold.taken.append(Fetched(0, first, token, record, stored_at))
            hold.lives.append(name_of(record) if record.replay else record.id)
        else:
            hold.seqs += range(first, last + 1)
            hold.taken += [Fetched(0, seq, token, record, stored_at) for seq, record in enumerate(records, first)]
            hold.lives += [name_of(record) if record.replay else record.id for record in records]
        head = hold.taken[0]
        if wanted.starting > 0:
            wanted.starting -= 1
            _mark(head, hold)
        wanted.limit -= number
        wanted.bytes -= size
        holds.append(hold)
        rows.append((*lane, token, number, last, hold.counted, head.starts, head.starts))
        queue.kept_back -= number
        del queue.fresh[id_]
    if rows:
        transaction.cursor.executemany(_TAKE_FRESH, rows)


def _note(transaction: Transaction, queue: Queue, holds: Sequence[Hold], settled: Settled) -> None:
    if not holds:
        return
    queue.dirty = True
    committed, uncommitted = settled.refresh(transaction, queue), set(queue.settled)
    for hold in holds:
        queue.in_flight += len(hold.taken)
        if not (committed.isdisjoint(hold.lives) and uncommitted.isdisjoint(hold.lives)):
            for fetched, life in zip(hold.taken, hold.lives, strict=True):
                fetched.seen = life in committed or life in uncommitted


def _lanes(transaction: Transaction, queue: Queue, limit: int, shares: Shares) -> Iterator[_Row]:
    if queue.has_waiting and queue.id not in transaction.only_filled:
        ranks = _ranks(transaction.db, queue.id)
        if len(ranks) == 1:
            yield from transaction.db.execute(_READY, (queue.id, ranks[0], limit))
        elif ranks:
            yield from _in_turn(transaction.db, queue.id, ranks, limit, shares)
    for _, row, _, _ in tuple(queue.fresh.values()):
        yield row


def _ranks(db: sqlite3.Connection, queue: int) -> list[int]:
    """Of the lanes that are ready, the most urgent first: a look into the index for each."""
    found: list[int] = []
    rank: int | None = -_MOST_RANK
    while (rank := db.execute(_RANK_FROM, (queue, rank)).fetchone()[0]) is not None:
        found.append(rank)
        rank += 1
    return found


def _in_turn(db: sqlite3.Connection, queue: int, ranks: Sequence[int], limit: int, shares: Shares) -> Iterator[_Row]:
    """Lanes of several ranks, each when its turn comes."""
    lines = {-rank: db.execute(_READY, (queue, rank, limit)) for rank in ranks}
    heads = {level: line.fetchone() for level, line in lines.items()}
    while waiting := [level for level, row in heads.items() if row is not None]:
        level = shares.pick(waiting) if len(waiting) > 1 else waiting[0]
        row, heads[level] = heads[level], lines[level].fetchone()
        yield row


def _take_lane(transaction: Transaction, hold: Hold, row: _Row, wanted: Wanted, packs: Packs) -> None:
    db = transaction.db
    wanted.left = min(wanted.limit, wanted.run)
    holes: set[int] = {seq for (seq,) in db.execute(_HOLES, (hold.lane,))} if hold.has_holes else set()
    pack: _Pack | None = (row[11], row[12], row[13], row[14])
    more: sqlite3.Cursor | None = None
    while pack is not None:
        first, last, stored_at, data = pack
        records = packs.records(hold.lane, first, data)
        seqs: Sequence[int] = range(max(first, row[2]), last + 1)
        if holes:
            seqs = [seq for seq in seqs if seq not in holes]
        taken_to = _take_records(hold, seqs, first, records, stored_at, wanted)
        if more is not None or not row[16]:
            hold.lasts.append(last)
        if taken_to < last:
            packs.keep(hold.lane, first, records)
            transaction.undo.append((packs.forget,))  # a pack that was not committed may come to be another one
        if wanted.left <= 0 or wanted.bytes <= 0:
            break
        if more is None:
            if not row[15]:
                break
            more = db.execute(_MORE, (hold.lane, first))
        pack = more.fetchone()


def _take_records(
    hold: Hold, seqs: Sequence[int], first: int, records: Sequence[Record], stored_at: float, wanted: Wanted
) -> int:
    """Returns the last that was taken."""
    token = wanted.token
    seqs = seqs[: wanted.left]
    if isinstance(seqs, range):
        records = records[seqs.start - first : seqs.stop - first]
    else:
        records = [records[seq - first] for seq in seqs]
    sizes = [len(record.body) for record in records]
    size = sum(sizes)
    if size > wanted.bytes:  # the last one may be too long
        seqs = seqs[: sum(before < wanted.bytes for before in accumulate(sizes, initial=0)) or 1]
        records = records[: len(seqs)]
        size = wanted.bytes
    hold.taken += [Fetched(0, seq, token, record, stored_at) for seq, record in zip(seqs, records, strict=False)]
    hold.lives += [name_of(record) if record.replay else record.id for record in records]
    wanted.bytes -= size
    hold.seqs += seqs
    wanted.left -= len(seqs)
    wanted.limit -= len(seqs)
    return seqs[-1] if seqs else 0


def _count(row: _Row, hold: Hold) -> None:
    """Tell what the store knows of attempts at its records."""
    _, _, _, counted, starts, failures, crashes, died, suspect_from, suspect_to, *_ = row
    if counted >= hold.seqs[0]:
        for fetched in hold.taken:
            if fetched.at == counted:
                fetched.starts, fetched.failures, fetched.crashes, fetched.died = starts, failures, crashes, died
    if suspect_to >= hold.seqs[0]:
        for seq, fetched in zip(hold.seqs, hold.taken, strict=True):
            fetched.suspect = suspect_from <= seq <= suspect_to


def _mark(head: Fetched, hold: Hold) -> None:
    head.starts += 1
    head.marked = True
    hold.counted = hold.seqs[0]
    hold.marked = True
