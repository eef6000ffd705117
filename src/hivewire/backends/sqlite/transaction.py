"""One transaction of the writer: what it has read and will write back in one go before it commits."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hivewire.backend import Mode, QueueSpec, Record
from hivewire.backends.sqlite.schema import lease_clock

_QUEUE = (
    "SELECT id, name, mode, shards, cap, seq, held, in_flight, scheduled, dead, settled, recent,"
    " (SELECT epoch FROM state) FROM queues WHERE {} = ?"
)
_QUEUE_BY_ID = _QUEUE.format("id")
_QUEUE_BY_NAME = _QUEUE.format("name")
_SAVE_QUEUE = (
    "UPDATE queues SET seq = ?, held = ?, in_flight = ?, scheduled = ?, dead = ?, settled = ?, recent = ? WHERE id = ?"
)
_MAKE_QUEUE = "INSERT INTO queues(name, mode, shards, cap, made_at) VALUES (?, ?, ?, ?, ?)"
_SETTLED = "INSERT INTO settled(queue, block, at, number, ids) VALUES (?, ?, ?, ?, ?)"
_LEASE = "SELECT lease_until FROM members WHERE id = ?"

_MOST_RECENT_BYTES = 950  # a row of `settled` with more than about a thousand would need a page of its own
_MOST_KNOWN = 1_000

Life = str | tuple[str, int]
"""As `record.life` names them."""

Block = tuple[int, float, list[Life]]
"""The lives that one transaction has settled, with its number and its time."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Block])


def blocks_in(data: bytes) -> list[Block]:
    return _decoder.decode(data) if data else []


def with_block(data: bytes, block: Block) -> bytes:
    """One more block in what `blocks_in` reads: an array of MessagePack, whose length has two bytes."""
    number = int.from_bytes(data[1:3], "big") + 1
    return b"".join((b"\xdc", number.to_bytes(2, "big"), data[3:], _encoder.encode(block)))


def name_of(record: Record) -> Life:
    return (record.id, record.replay) if record.replay else record.id


Undo = tuple[Any, ...]
"""A function and what it is called with."""

Run = tuple[list[Record], float]
"""Records that were stored at the same time."""


class Queue(msgspec.Struct):
    """A row of `queues`, and the records that wait to be written to it."""

    id: int
    name: str
    mode: Mode | None
    shards: int
    cap: int
    seq: int
    held: int
    in_flight: int
    scheduled: int
    dead: int
    blocks: int
    """The number of the last block of settled ids."""
    recent: bytes
    """The blocks that are not in `settled` yet."""
    recent_ids: int = 0
    """How many ids are in them; 0 where that was not read."""
    recent_at: float = 0.0
    """The time of the last of them."""
    dirty: bool = False
    pending: list[Run] = []
    settled: list[Life] = []
    fresh: dict[int, tuple[Any, Any, int, int]] = {}
    """New lanes that may be taken before they are written: by id, the row to be written, the one that a claim
    reads, how many records there are, and how many bytes they take as they are stored."""
    kept_back: int = 0
    """How many records are in `fresh`."""
    gone: set[str] = set()
    """Keys whose lanes have ended in this transaction, and are not there again."""

    @property
    def has_waiting(self) -> bool:
        """Whether lanes that are written hold records that nobody has taken, and that are due or wait for a retry."""
        return self.held - self.in_flight - self.scheduled > self.kept_back

    def put(self, records: Sequence[Record], stored_at: float) -> None:
        """To be written with all else that comes."""
        if self.pending and self.pending[-1][1] == stored_at:
            self.pending[-1][0].extend(records)
        else:
            self.pending.append((list(records), stored_at))

    def put_by(self) -> tuple[int | float | bytes, ...]:
        """The row of their own that its recent blocks become."""
        row = (self.id, self.blocks, self.recent_at, self.recent_ids, self.recent)
        self.recent, self.recent_ids = b"", 0
        return row

    def is_written(self) -> None:
        """What was to be written is in the file."""
        self.dirty = False
        if self.pending:
            self.pending = []
        if self.settled:
            self.settled = []
        if self.fresh:
            self.fresh = {}
        if self.gone:
            self.gone = set()
        self.kept_back = 0

    def spec(self) -> QueueSpec:
        return QueueSpec(name=self.name, mode=self.mode, shards=self.shards, cap=self.cap)


class Known:
    """The rows of `queues`, and the catalogue's epoch, as this connection has read or written them last. They are true
    as long as nobody else has committed, which SQLite tells."""

    __slots__ = ("_version", "by_id", "by_name", "epoch")

    def __init__(self) -> None:
        self._version = 0
        self.epoch: int | None = None
        self.by_id: dict[int, Queue] = {}
        self.by_name: dict[str, Queue] = {}

    def check(self, cursor: sqlite3.Cursor) -> None:
        """Within a transaction that may write, so that no other commit can come between."""
        version: int = cursor.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self.forget()
            self._version = version

    def forget(self) -> None:
        self._version, self.epoch = 0, None
        self.by_id.clear()
        self.by_name.clear()

    def keep(self, queues: Sequence[Queue], epoch: int | None) -> None:
        """They were committed."""
        self.epoch = epoch
        if len(self.by_id) + len(queues) > _MOST_KNOWN:
            self.by_id.clear()
            self.by_name.clear()
        for queue in queues[:_MOST_KNOWN]:
            queue.is_written()
            self.by_id[queue.id] = self.by_name[queue.name] = queue


class Transaction(msgspec.Struct, eq=False):
    """Everything that is changed in memory is undone by `undo` when the transaction is rolled back."""

    db: sqlite3.Connection
    cursor: sqlite3.Cursor
    """For what comes in each transaction and is read at once, if at all: `db` makes a new one for each statement."""
    _known: Known
    now: float = msgspec.field(default_factory=time.time)
    boot: float = msgspec.field(default_factory=lease_clock)
    epoch: int | None = None
    woken: set[int] = set()
    """Queues in which a lane has become ready."""
    filled: set[int] = set()
    """Queues that have new lanes, not written yet, for those who wait."""
    only_filled: set[int] = set()
    """Of these, the ones in which nobody who waits needs to look for other lanes."""
    undo: list[Undo] = []
    committed: list[Callable[[], None]] = []
    """Called on the event loop after the commit."""
    settled: list[tuple[int, int, list[Life]]] = []
    """The blocks that were written: queue, number, lives."""
    _by_id: dict[int, Queue | None] = {}
    _by_name: dict[str, Queue] = {}
    _touched: list[Queue] = []
    _leases: dict[int, bool] = {}

    def begun(self) -> None:
        self._known.check(self.cursor)
        self.epoch = self._known.epoch

    # -- queues

    def queue(self, id_: int) -> Queue | None:
        queue = self._by_id.get(id_)
        if queue is not None or id_ in self._by_id:
            return queue
        return self._use(self._known.by_id.get(id_)) or self._load(_QUEUE_BY_ID, id_)

    def queue_named(self, name: str) -> Queue | None:
        return self._by_name.get(name) or self._use(self._known.by_name.get(name)) or self._load(_QUEUE_BY_NAME, name)

    def _use(self, queue: Queue | None) -> Queue | None:
        if queue is not None:
            self._by_id[queue.id] = self._by_name[queue.name] = queue
            self._touched.append(queue)
        return queue

    def _load(self, statement: str, by: int | str) -> Queue | None:
        row = self.db.execute(statement, (by,)).fetchone()
        if row is None:
            if isinstance(by, int):
                self._by_id[by] = None
            return None
        self.epoch = row[12]
        return self._use(Queue(*row[:12]))

    def make_queue(self, spec: QueueSpec) -> Queue:
        row = (spec.name, spec.mode, spec.shards, spec.cap, self.now)
        id_ = self.db.execute(_MAKE_QUEUE, row).lastrowid or 0
        queue = Queue(id_, spec.name, spec.mode, spec.shards, spec.cap, 0, 0, 0, 0, 0, 0, b"")
        self._use(queue)
        return queue

    def forget_queue(self, queue: Queue) -> None:
        self._by_id[queue.id] = None
        self._touched.remove(queue)
        self._by_name.pop(queue.name, None)
        self._known.by_id.pop(queue.id, None)
        self._known.by_name.pop(queue.name, None)

    def lanes_gone(self, id_: int, keys: Sequence[str]) -> None:
        queue = self.queue(id_)
        if queue is not None:
            queue.gone.update(keys)

    def touched(self) -> list[Queue]:
        return self._touched

    # -- leases

    def has_lease(self, token: int, until: float) -> bool:
        """Whether this life of a member is still its own master, by the clock of this host. Nobody ends
        a lease before its time, so when `until` was stored and has not come the file need not be asked."""
        if until > self.boot:
            return self._leases.get(token, True)
        if token not in self._leases:
            row = self.db.execute(_LEASE, (token,)).fetchone()
            self._leases[token] = row is not None and row[0] > self.boot
        return self._leases[token]

    def lease_ended(self, token: int) -> None:
        self._leases[token] = False

    def lease_began(self, token: int) -> None:
        self._leases[token] = True

    # -- the end

    def write_back(self) -> None:
        rows: list[tuple[int | bytes, ...]] = []
        full: list[tuple[int | float | bytes, ...]] = []
        for queue in self.touched():
            if queue.settled:
                self._write_settled(queue, full)
            if queue.dirty:
                counts = (queue.seq, queue.held, queue.in_flight, queue.scheduled, queue.dead, queue.blocks)
                rows.append((*counts, queue.recent, queue.id))
        if full:
            self.cursor.executemany(_SETTLED, full)
        if rows:
            self.cursor.executemany(_SAVE_QUEUE, rows)

    def _write_settled(self, queue: Queue, full: list[tuple[int | float | bytes, ...]]) -> None:
        """`full`: rows of their own, which recent blocks become."""
        block = (queue.blocks + 1, self.now, queue.settled)
        recent = with_block(queue.recent, block)
        if not queue.recent_ids and queue.recent:
            blocks = blocks_in(queue.recent)
            queue.recent_ids, queue.recent_at = sum([len(lives) for _, _, lives in blocks]), blocks[-1][1]
        if len(recent) > _MOST_RECENT_BYTES and queue.recent:
            full.append(queue.put_by())
            recent = with_block(b"", block)
        queue.blocks, queue.recent, queue.recent_at = block[0], recent, self.now
        queue.recent_ids += len(queue.settled)
        self.settled.append((queue.id, queue.blocks, queue.settled))
        if len(recent) > _MOST_RECENT_BYTES:
            full.append(queue.put_by())

    def is_committed(self) -> None:
        self._known.keep(self.touched(), self.epoch)

    def roll_back(self) -> None:
        self._known.forget()
        for function, *arguments in reversed(self.undo):
            function(*arguments)
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
