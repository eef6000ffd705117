"""The SQLite backend: one file, any number of processes of one host, one writing thread in each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from hivewire.backend import (
    Append,
    Backend,
    BackendHealth,
    Consumer,
    DeadRecord,
    Depth,
    Duplicate,
    Entry,
    Features,
    Member,
    Ownership,
    QueueSpec,
    Record,
    Room,
    Waiting,
)
from hivewire.backends.sqlite import catalogue, letters, looking, members, reading, storing, tidying
from hivewire.backends.sqlite.consumer import SQLiteConsumer
from hivewire.backends.sqlite.keeper import Keeper
from hivewire.backends.sqlite.members import Membership
from hivewire.backends.sqlite.memory import Packs, Settled
from hivewire.backends.sqlite.reading import Reader
from hivewire.backends.sqlite.schema import path_of
from hivewire.backends.sqlite.transaction import Queue, Transaction
from hivewire.backends.sqlite.writer import Writer
from hivewire.blobs import BlobStore
from hivewire.blobs.local import SQLiteBlobs
from hivewire.errors import BackendError, Closed
from hivewire.forks import forks
from hivewire.rules.backoff import Backoff
from hivewire.settings import Settings

log = logging.getLogger(__name__)

_CAP = 1_000_000
_MOST_HEARD = 10_000
_END_AGAIN_S = 0.1
_MOST_END_AGAIN_S = 2.0


class Channel:
    """What this process has heard and nobody has taken yet."""

    def __init__(self) -> None:
        self.heard: deque[bytes] = deque(maxlen=_MOST_HEARD)
        self.news = asyncio.Event()


class SQLiteBackend(Backend):
    """Not to be used from another thread than its event loop's, nor after a fork."""

    def __init__(self, settings: Settings) -> None:
        self.path = path_of(settings.url)
        self.cap = settings.queue_cap or _CAP
        self.packs = Packs()
        self._window = (settings.dedup_window_ids, settings.dedup_window_s)
        self._full = settings.sqlite_synchronous == "full"
        self.features = Features(durability="disk" if self._full else "process", store_lanes=True)
        self._forks = forks.count
        self._writer: Writer | None = None
        self._keeper: Keeper | None = None
        self._reader: Reader | None = None
        self._memberships: dict[Member, Membership] = {}
        self._consumers: set[SQLiteConsumer] = set()
        self._settled: dict[int, Settled] = {}
        self._channels: dict[str, Channel] = {}
        self._closing = asyncio.Lock()
        self._owed: set[asyncio.Task[None]] = set()

    # -- life

    async def open(self) -> None:
        if self._writer is not None:
            return
        self._forks = forks.count
        writer = Writer(self.path, self._full)
        try:
            await writer.submit(_nothing)
        except BaseException:
            await writer.close()
            raise
        writer.on_settled = self._note_settled
        self._writer, self._reader = writer, Reader(self.path)
        self._keeper = Keeper(
            self.path, writer, self._hear, lambda transaction: tidying.tidy(transaction, *self._window)
        )

    def check_usable(self) -> None:
        if self._forks != forks.count:
            raise BackendError(f"use {self.path}: it was opened before a fork; connect anew in the child process")
        if self._writer is None:
            raise Closed(f"use {self.path}: it is not open")

    @property
    def writer(self) -> Writer:
        if self._writer is None or self._forks != forks.count:
            self.check_usable()
        assert self._writer is not None
        return self._writer

    async def _read(self, function: Any, *arguments: Any) -> Any:
        self.check_usable()
        assert self._reader is not None
        return await self._reader.read(lambda db: function(db, *arguments))

    def now(self) -> float:
        return time.time()

    async def health(self) -> BackendHealth:
        durability = self.features.durability
        try:
            self.check_usable()
            assert self._reader is not None
            await self._reader.probe()
        except (BackendError, Closed) as error:
            return BackendHealth(ok=False, durability=durability, detail=str(error))
        warnings = () if self._full else ("synchronous=normal: a power cut may lose the last messages",)
        return BackendHealth(ok=True, durability=durability, detail=str(self.path), warnings=warnings)

    async def close(self) -> None:
        if self._forks != forks.count:
            return
        async with self._closing:
            if self._writer is None:
                return
            for task in self._owed:
                task.cancel()  # the last one to leave gives it back, too
            for consumer in tuple(self._consumers):
                await consumer.close()
            if self._keeper is not None:
                await self._keeper.close()
            await self._writer.close()
            if self._reader is not None:
                await self._reader.close()
            self._writer = self._keeper = self._reader = None

    def blobs(self) -> BlobStore:
        return SQLiteBlobs(self.path.with_name(f"{self.path.name}-blobs"))

    # -- queues

    async def declare(self, spec: QueueSpec) -> QueueSpec:
        queue: Queue = await self.writer.submit(storing.declare, spec)
        return queue.spec()

    async def queues(self) -> Sequence[QueueSpec]:
        found: Sequence[QueueSpec] = await self._read(reading.queues)
        return found

    async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        problems: Mapping[int, Duplicate | Exception]
        problems, epoch = await self.writer.submit(storing.append, batch, self.cap)
        if epoch:
            self.epoch = epoch
        return problems

    def append_soon(self, queue: str, record: Record, room: Room) -> asyncio.Future[BackendError | None] | None:
        if self._writer is None or self._forks != forks.count:
            return None  # `append` says what is wrong
        return self._writer.submit(storing.append_plain, queue, record, room, self.cap)

    async def drop_queue(self, queue: str) -> None:
        await self.writer.submit(_drop_queue, queue)

    async def depth(self, queue: str) -> Depth:
        found: Depth = await self._read(reading.depth, queue)
        return found

    async def peek(self, queue: str, limit: int, after: str | None, *, delayed_only: bool = False) -> Sequence[Waiting]:
        found: Sequence[Waiting] = await self._read(looking.peek, queue, limit, after, delayed_only)
        return found

    async def withdraw(self, queue: str, cursors: Sequence[str]) -> Sequence[str]:
        gone: Sequence[str] = await self.writer.submit(looking.withdraw, queue, cursors)
        return gone

    # -- consuming

    async def consume(self, queue: str, member: Member, owner: Ownership) -> Consumer:
        writer = self.writer
        membership = self._memberships.get(member)
        if membership is None:
            membership = self._memberships[member] = Membership(member, self._lost)
        consumer = SQLiteConsumer(self, QueueSpec(name=queue, cap=self.cap), membership, owner)
        self._consumers.add(consumer)
        try:
            await writer.submit(consumer.register)
        except BaseException:
            self._consumers.discard(consumer)
            raise
        if self._keeper is not None:
            self._keeper.add(membership)
        return consumer

    def settled(self, queue: int) -> Settled:
        """In the writer's thread: what is remembered of a queue's settled ids."""
        found = self._settled.get(queue)
        if found is None:
            found = self._settled[queue] = Settled(queue, *self._window)
        return found

    def _note_settled(self, transaction: Transaction) -> None:
        """In the writer's thread: after the commit, so that no other transaction need read it."""
        for queue, block, lives in transaction.settled:
            settled = self._settled.get(queue)
            if settled is not None:
                settled.note(block, transaction.now, lives)

    async def leave(self, consumer: SQLiteConsumer) -> None:
        self._consumers.discard(consumer)
        membership = consumer.membership
        is_last = all(other.membership is not membership for other in self._consumers)
        if is_last:
            self._memberships.pop(membership.member, None)
            if self._keeper is not None:
                self._keeper.remove(membership)
        try:
            await self._end(consumer, is_last)
        except BackendError as error:
            log.warning("what was held could not be given back yet", extra={"error": str(error)})
            membership.owing = (*membership.owing, consumer)
            if not is_last:  # else it is free when the lease ends
                task = asyncio.create_task(self._end_later(consumer), name=f"leave {consumer.queue_name}")
                self._owed.add(task)
                task.add_done_callback(self._owed.discard)

    async def _end(self, consumer: SQLiteConsumer, is_last: bool) -> None:
        membership = consumer.membership
        owing = membership.owing
        await self.writer.submit(consumer.end, is_last)
        membership.owing = tuple(one for one in membership.owing if one not in owing)

    async def _end_later(self, consumer: SQLiteConsumer) -> None:
        backoff = Backoff(_END_AGAIN_S, _MOST_END_AGAIN_S)
        while consumer in consumer.membership.owing:
            await asyncio.sleep(backoff.next_s())
            try:
                await self._end(consumer, is_last=False)
            except BackendError:
                continue
            except Closed:
                return

    def _lost(self, membership: Membership, token: int) -> None:
        for consumer in tuple(self._consumers):
            if consumer.membership is membership:
                consumer.lost()

    # -- dead letters

    async def dead(self, queue: str | None, limit: int, after: str | None) -> Sequence[DeadRecord]:
        found: Sequence[DeadRecord] = await self._read(letters.listed, queue, limit, after)
        return found

    async def revive(self, queue: str | None, ids: Sequence[str] | None) -> int:
        return int(await self.writer.submit(letters.revive, queue, ids))

    async def purge_dead(self, queue: str | None, ids: Sequence[str] | None, older_than_s: float | None) -> int:
        return int(await self.writer.submit(letters.purge, queue, ids, older_than_s))

    async def bury_expired(self, queue: str | None = None) -> int:
        buried = 0
        place: letters.Place | None = letters.Place()
        while place is not None:
            part, place = await self.writer.submit(letters.bury_expired, place, self.settled)
            buried += part
        return buried

    async def cleanup(self, older_than_s: float | None) -> int:
        """The keeper forgets what has outlived its window."""
        forgotten = 0 if older_than_s is None else int(await self.writer.submit(tidying.clean_up, older_than_s))
        assert self._reader is not None
        await self._reader.shrink()
        return forgotten

    # -- catalogue and notes

    async def get(self, key: str) -> Entry:
        entry: Entry = await self._read(catalogue.get, key, time.time())
        return entry

    async def put(self, key: str, value: bytes, version: int, *, ttl_s: float | None = None) -> Entry | None:
        entry: Entry | None
        entry, epoch = await self.writer.submit(catalogue.put, key, value, version, ttl_s)
        self.epoch = self.epoch if epoch is None else epoch
        return entry

    async def scan(self, prefix: str) -> Mapping[str, Entry]:
        found: Mapping[str, Entry] = await self._read(catalogue.scan, prefix, time.time())
        return found

    async def publish(self, channel: str, body: bytes) -> None:
        await self.writer.submit(catalogue.publish, channel, body, durable=False)

    async def listen(self, channel: str, wait_s: float) -> Sequence[bytes]:
        self.check_usable()
        heard = self._channels.get(channel)
        if heard is None:
            cursor: int = await self._read(catalogue.newest_note)
            heard = self._channels.setdefault(channel, Channel())
            if self._keeper is not None:
                self._keeper.listen_from(cursor)
        if not heard.heard and wait_s > 0:
            heard.news.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await heard.news.wait()
            except TimeoutError:
                return ()
        found = list(heard.heard)
        heard.heard.clear()
        return found

    def _hear(self, notes: Sequence[tuple[int, str, bytes]]) -> None:
        for _, name, body in notes:
            channel = self._channels.get(name)
            if channel is not None:
                channel.heard.append(body)
                channel.news.set()


def _nothing(transaction: Transaction) -> None:
    """Opens the file."""


def _drop_queue(transaction: Transaction, name: str) -> None:
    queue = transaction.queue_named(name)
    if queue is not None:
        queue.pending = []
        members.drop_queue(transaction, queue.id)
