"""The memory backend's driver: what is stored, and who reads it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakKeyDictionary

import msgspec

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
    Fetched,
    Letter,
    Member,
    Ownership,
    QueueSpec,
    Record,
    Room,
    Waiting,
)
from hivewire.backends.memory import looking
from hivewire.backends.memory.consumer import MemoryConsumer
from hivewire.backends.memory.queue import MOMENT, Lane, Queue
from hivewire.backends.memory.store import Listener, Store
from hivewire.errors import Closed, QueueFull, QueueMissing
from hivewire.settings import Settings

_stores: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Store]] = WeakKeyDictionary()
_DEFAULT_CAP = 100_000
_YIELD_EVERY = 64
_MOST_TURNS = 32
_EPOCH_PREFIXES = ("agent/", "group/")


def _clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Wall time that never steps back: a loop on virtual time brings its own."""
    wall: Callable[[], float] | None = getattr(loop, "wall_time", None)
    if wall is not None:
        return wall
    start = time.time() - time.monotonic()
    monotonic = time.monotonic
    return lambda: start + monotonic()


class MemoryBackend(Backend):
    """Everything is lost when the last protocol on the store closes."""

    def __init__(self, settings: Settings) -> None:
        self.features = Features(durability="volatile", store_lanes=True, by_reference=True, shared=False)
        self._settings = settings
        self._name = (settings.url or "memory://").removeprefix("memory://")
        self._store: Store | None = None
        self._listeners: dict[str, Listener] = {}
        self.consumers: set[MemoryConsumer] = set()
        self._unyielded = 0
        self._wall: Callable[[], float] = time.time
        self._queues: dict[str, Queue] = {}
        """The store's."""

    @property
    def store(self) -> Store:
        if self._store is None:
            raise Closed("the memory store is not open; use the protocol inside `async with`")
        return self._store

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        stores = _stores.setdefault(loop, {})
        store = stores.get(self._name)
        if store is None:
            settings = self._settings
            store = stores[self._name] = Store(_clock(loop), settings.dedup_window_ids, settings.dedup_window_s)
        store.users += 1
        self._store = store
        self._wall, self._queues = store.now, store.queues

    def _queue(self, name: str) -> Queue:
        return self.store.queue(name, self._settings.queue_cap or _DEFAULT_CAP)

    def now(self) -> float:
        return self._wall()

    async def declare(self, spec: QueueSpec) -> QueueSpec:
        queue = self._queue(spec.name)
        if queue.spec.mode is None and spec.mode is not None:
            queue.spec = msgspec.structs.replace(queue.spec, mode=spec.mode)
        return queue.spec

    async def queues(self) -> Sequence[QueueSpec]:
        return [queue.spec for queue in self.store.queues.values()]

    async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        store = self.store
        problems: dict[int, Duplicate | Exception] = {}
        number = 0
        for entry in batch:
            queue = store.queues.get(entry.queue)
            if queue is None:
                if entry.queue.startswith("~reply/"):
                    for _ in entry.records:
                        problems[number] = QueueMissing(f"nobody waits for replies at {entry.queue}")
                        number += 1
                    continue
                queue = self._queue(entry.queue)
            records = entry.records
            if entry.room is not Room.ALWAYS:
                room = queue.room(entry.room is Room.RESERVE)
                if room < len(records):
                    held, cap = queue.size, queue.spec.cap
                    advice = "wait for its workers, or raise queue_cap"
                    full = QueueFull(f"send to {entry.queue}: it holds {held} messages and its cap is {cap}; {advice}")
                    problems.update((number + place, full) for place in range(max(room, 0), len(records)))
                    records = records[: max(room, 0)]
            number += len(entry.records)
            if entry.idempotency_key is not None:
                records = self._unused(queue, entry, records, problems, number)
            if not records:
                continue
            now = store.now()
            if entry.delay_s > 0:
                queue.schedule(records, now, now + entry.delay_s)
            else:
                queue.append(records, now)
        self.epoch = store.epoch
        self._unyielded += number
        if self._unyielded >= _YIELD_EVERY:
            await self._let_others(batch, number)
        return problems

    def append_now(self, queue: str, record: Record, room: Room) -> bool:
        """`Queue.append` for one record without a time to live, written out: it is done for each lone send."""
        found = self._queues.get(queue)
        if found is None or record.ttl_s is not None:
            return False
        spec = found.spec
        if found.size >= spec.cap:
            return False
        key = record.id if spec.mode == "competing" else record.key
        lane = found.lanes.get(key)
        if lane is None:
            lane = found.lanes[key] = Lane(key)
        records = lane.records
        records.append(Fetched(0, next(found.positions), 0, record, self._wall()))
        found.size = size = found.size + 1
        if lane.holder is None and len(records) == 1 and lane.due_at is None:
            found.ready.append(lane)
            found.notify()
        self._unyielded = unyielded = self._unyielded + 1
        if unyielded >= _YIELD_EVERY or (size > MOMENT and found.readers):
            self.crowded = True
        return True

    async def give_way(self) -> None:
        self.crowded = False
        self._unyielded = 0
        await asyncio.sleep(0)

    async def _let_others(self, batch: Sequence[Append], number: int) -> None:
        """Who only sends must not keep the readers from their turn, nor run far ahead of them."""
        for _ in range(min(max(number // _YIELD_EVERY, 1), _MOST_TURNS)):
            await self.give_way()
            if not any(queue.is_behind for entry in batch if (queue := self.store.queues.get(entry.queue))):
                return

    def _unused(
        self,
        queue: Queue,
        entry: Append,
        records: Sequence[Record],
        problems: dict[int, Duplicate | Exception],
        end: int,
    ) -> Sequence[Record]:
        key, now = entry.idempotency_key or "", self.store.now()
        first, _, until = queue.idempotent.get(key, ("", 0.0, 0.0))
        if until > now:
            problems[end - len(entry.records)] = Duplicate(first)
            return ()
        if records:
            queue.idempotent[key] = (records[0].id, now, now + entry.window_s)
        return records

    async def consume(self, queue: str, member: Member, owner: Ownership) -> Consumer:
        consumer = MemoryConsumer(self, self._queue(queue), member, owner)
        self.consumers.add(consumer)
        return consumer

    def abandon(self) -> None:
        """As if the process was killed: for tests and the demo."""
        for consumer in tuple(self.consumers):
            consumer.abandon()
        self.consumers.clear()

    async def depth(self, queue: str) -> Depth:
        found = self.store.queues.get(queue)
        dead = sum(record.queue == queue for record in self.store.dead.values())
        if found is None:
            return Depth(dead=dead)
        found.advance(self.store.now())
        return found.depth(dead)

    async def peek(self, queue: str, limit: int, after: str | None, *, delayed_only: bool = False) -> Sequence[Waiting]:
        found = self.store.queues.get(queue)
        if found is None:
            return ()
        found.advance(self.store.now())
        return looking.peek(found, limit, after, delayed_only=delayed_only)

    async def withdraw(self, queue: str, cursors: Sequence[str]) -> Sequence[str]:
        found = self.store.queues.get(queue)
        if found is None:
            return ()
        found.advance(self.store.now())
        return looking.withdraw(found, cursors)

    async def dead(self, queue: str | None, limit: int, after: str | None) -> Sequence[DeadRecord]:
        found = [dead for dead in self.store.dead.values() if queue is None or dead.queue == queue]
        return [dead for dead in found if after is None or dead.cursor > after][:limit]

    async def revive(self, queue: str | None, ids: Sequence[str] | None) -> int:
        picked = self.store.pick_dead(queue, ids)
        for cursor in picked:
            dead = self.store.dead.pop(cursor)
            record = msgspec.structs.replace(dead.record, replay=dead.record.replay + 1)
            self._queue(dead.queue).append([record], self.store.now())
        return len(picked)

    async def purge_dead(self, queue: str | None, ids: Sequence[str] | None, older_than_s: float | None) -> int:
        horizon = self.store.now() - (older_than_s or 0.0)
        picked = [cursor for cursor in self.store.pick_dead(queue, ids) if self.store.dead[cursor].dead_at <= horizon]
        for cursor in picked:
            del self.store.dead[cursor]
        return len(picked)

    async def bury_expired(self, queue: str | None = None) -> int:
        now = self.store.now()
        buried = 0
        for name, held in self.store.queues.items():
            if queue is not None and queue != name:
                continue

            def bury(fetched: Fetched, name: str = name) -> None:
                error = f"its time to live of {fetched.record.ttl_s} s ran out before anybody read it"
                letter = Letter(
                    reason="expired", error=error, attempts=fetched.starts, first_at=fetched.stored_at, worker=""
                )
                self.store.bury(name, fetched, letter)

            buried += held.bury_expired(now, bury)
        return buried

    async def cleanup(self, older_than_s: float | None) -> int:
        now = self.store.now()
        used_by = -1.0 if older_than_s is None else now - older_than_s
        settled_before = now - (self._settings.dedup_window_s if older_than_s is None else older_than_s)
        forgotten = 0
        for queue in self.store.queues.values():
            old = [key for key, (_, at, until) in queue.idempotent.items() if until <= now or at <= used_by]
            for key in old:
                del queue.idempotent[key]
            queue.forget_settled_times()
            forgotten += len(old) + queue.settled.forget(settled_before)
        stale = [key for key, (_, until) in self.store.catalogue.items() if until is not None and until <= now]
        for key in stale:
            del self.store.catalogue[key]
        return forgotten + len(stale)

    async def get(self, key: str) -> Entry:
        entry, until = self.store.catalogue.get(key, (Entry(b"", 0), None))
        return Entry(b"", 0) if until is not None and until <= self.store.now() else entry

    async def put(self, key: str, value: bytes, version: int, *, ttl_s: float | None = None) -> Entry | None:
        present = await self.get(key)
        if present.version != version:
            return None
        entry = Entry(value, version + 1)
        self.store.catalogue[key] = (entry, None if ttl_s is None else self.store.now() + ttl_s)
        if key.startswith(_EPOCH_PREFIXES):
            self.store.epoch += 1
            self.epoch = self.store.epoch
        return entry

    async def scan(self, prefix: str) -> Mapping[str, Entry]:
        now = self.store.now()
        return {
            key: entry
            for key, (entry, until) in sorted(self.store.catalogue.items())
            if key.startswith(prefix) and (until is None or until > now)
        }

    async def drop_queue(self, queue: str) -> None:
        self.store.queues.pop(queue, None)
        for cursor in self.store.pick_dead(queue, None):
            del self.store.dead[cursor]

    async def publish(self, channel: str, body: bytes) -> None:
        for listener in self.store.channels.get(channel, ()):
            listener.hear(body)

    async def listen(self, channel: str, wait_s: float) -> Sequence[bytes]:
        listener = self._listeners.get(channel)
        if listener is None:
            listener = self._listeners[channel] = Listener()
            self.store.channels.setdefault(channel, set()).add(listener)
        return await listener.heard(wait_s)

    async def health(self) -> BackendHealth:
        ok = self._store is not None
        return BackendHealth(ok=ok, durability="volatile", detail="" if ok else "not open")

    async def close(self) -> None:
        for consumer in tuple(self.consumers):
            await consumer.close()
        store, self._store = self._store, None
        self._queues = {}
        if store is None:
            return
        for channel, listener in self._listeners.items():
            store.channels[channel].discard(listener)
        store.users -= 1
        if not store.users:
            stores = _stores.get(asyncio.get_running_loop(), {})
            if stores.get(self._name) is store:
                del stores[self._name]
