"""Messages for later: a compacted topic, from which the owner of a shard moves what is due for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

from hivewire.backends.kafka.catalogue import DELAYED, Follower
from hivewire.backends.kafka.names import key_bytes, partition_of
from hivewire.backends.kafka.packing import KafkaMessage, headers_of, letter_key, stored_at
from hivewire.backends.kafka.sending import Item
from hivewire.errors import BackendError
from hivewire.record import Record
from hivewire.rules.backoff import Backoff

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

log = logging.getLogger(__name__)

_RETRY_S = 0.2
_LONGEST_RETRY_S = 2.0
_AT_ONCE = 500
_OVER_S = 1e-6


class _Later(msgspec.Struct, array_like=True, gc=False):
    due_at: float
    queue: str
    id: str
    key: str
    type: str
    sender: str
    ttl_s: float | None
    priority: int
    replay: int
    dedup_key: str | None
    body: bytes


class _Known(msgspec.Struct, gc=False):
    due_at: float
    offset: int
    shard: int


_read = msgspec.msgpack.Decoder(_Later).decode
_write = msgspec.msgpack.Encoder().encode


class Waiting:
    """What waits for one queue: when it is due, and where its body is."""

    def __init__(self) -> None:
        self.known: dict[bytes, _Known] = {}
        self.heap: list[tuple[float, int, bytes]] = []
        self.changed = asyncio.Event()

    def put(self, key: bytes, known: _Known) -> None:
        self.known[key] = known
        heappush(self.heap, (known.due_at, known.offset, key))
        self.changed.set()

    def first(self) -> tuple[bytes, _Known] | None:
        """The next one to fall due."""
        while self.heap:
            _, offset, key = self.heap[0]
            known = self.known.get(key)
            if known is not None and known.offset == offset:
                return key, known
            heappop(self.heap)
        return None


class Delays:
    """Those of all queues that this process has to do with."""

    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._topic = backend.names.delayed
        self._waiting: dict[str, Waiting] = {}
        self._logs: dict[int, Follower] = {}
        self._first: dict[str, asyncio.Event] = {}
        """For those who wait until anything is delayed for a queue."""

    def begun(self, queue: str) -> None:
        """The catalogue says that something was delayed for the queue."""
        first = self._first.get(queue)
        if first is not None:
            first.set()

    async def _ensure(self) -> int:
        kept = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}
        return await self._backend.topics.ensure_own(self._topic, self._backend.settings.kafka.num_partitions, kept)

    async def store(self, queue: str, records: Sequence[Record], due_at: float) -> None:
        """Returns when they are stored. One that is sent again takes the place of the first."""
        place = crc32(queue.encode()) % await self._ensure()
        items = []
        for record in records:
            later = _Later(
                due_at,
                queue,
                record.id,
                record.key,
                record.type,
                record.sender,
                record.ttl_s,
                record.priority,
                record.replay,
                record.dedup_key,
                record.body,
            )
            items.append(Item(self._topic, None, 0, place, letter_key(queue, record), _write(later), None))
        await self._backend.store_all(items)
        if not self._backend.catalogue.known(DELAYED + queue).version:
            await self._backend.catalogue.put(DELAYED + queue, b"1", 0)

    def exist(self, queue: str) -> bool:
        """Whether anything was ever delayed for the queue, as far as is known here."""
        return self._backend.catalogue.known(DELAYED + queue).version > 0

    async def waiting(self, queue: str) -> Waiting | None:
        """Up to date as of now; None: nothing was ever delayed."""
        if not self.exist(queue):
            return None
        waiting = self._waiting.setdefault(queue, Waiting())
        partition = crc32(queue.encode()) % await self._ensure()
        log = self._logs.get(partition)
        if log is None:
            log = self._logs[partition] = Follower(self._backend, self._topic, partition, self._take)
        await log.catch_up()
        return waiting

    def _take(self, message: KafkaMessage) -> None:
        key = message.key() or b""
        value = message.value()
        if value is None:
            for waiting in self._waiting.values():
                waiting.known.pop(key, None)
            return
        later = _read(value)
        waiting = self._waiting.setdefault(later.queue, Waiting())
        shards = self._backend.topics.partitions.get(self._backend.names.topic(later.queue), 1)
        shard = partition_of(key_bytes(later.key), shards)
        waiting.put(key, _Known(later.due_at, message.offset(), shard))

    async def move(self, queue: str, waiting: Waiting, owned: set[int]) -> float | None:
        """Move what is due for the owned shards into the queue; when to come again, if that is known."""
        due: list[tuple[bytes, _Known]] = []
        aside: list[tuple[bytes, _Known]] = []
        now = self._backend.now()
        while (first := waiting.first()) is not None and first[1].due_at <= now and len(due) < _AT_ONCE:
            heappop(waiting.heap)
            (due if first[1].shard in owned else aside).append(first)
        for key, known in aside:
            heappush(waiting.heap, (known.due_at, known.offset, key))
        try:
            if due:
                await self._move(queue, due)
        except BackendError:
            for key, known in due:
                if waiting.known.get(key) is known:
                    heappush(waiting.heap, (known.due_at, known.offset, key))
            raise
        if len(due) == _AT_ONCE:
            return now
        return min((at for at, _, key in waiting.heap if at > now and key in waiting.known), default=None)

    async def read(self, queue: str, offsets: Sequence[int]) -> dict[int, tuple[Record, float]]:
        """Those of these that are still there, with the time of their storing."""
        if not offsets:
            return {}
        partition = crc32(queue.encode()) % await self._ensure()
        messages = await self._backend.reader.read(
            self._topic, partition, min(offsets), max(offsets), frozenset(offsets)
        )
        return {message.offset(): (_record(message), stored_at(message)) for message in messages if message.value()}

    async def _move(self, queue: str, due: Sequence[tuple[bytes, _Known]]) -> None:
        """In the order they fall due. Stored in the queue first: a crash in between stores one twice, and it is
        recognised by its id."""
        found = await self.read(queue, [known.offset for _, known in due])
        now = self._backend.now()
        topic = self._backend.names.topic(queue)
        items = []
        for _, known in due:
            if known.offset not in found:
                continue
            record, at = found[known.offset]
            if record.ttl_s is not None:
                # Its time runs from when it was sent; what is over by now expires with its first reader.
                record.ttl_s = max(_OVER_S, record.ttl_s - (now - at))
            key, headers = key_bytes(record.key), headers_of(queue, record)
            items.append(Item(topic, record.id, record.replay, known.shard, key, record.body, headers))
        await self._backend.store_all(items)
        partition = crc32(queue.encode()) % await self._ensure()
        await self._backend.store_all([Item(self._topic, None, 0, partition, key, None, None) for key, _ in due])

    async def keep_moving(self, queue: str, owned: set[int]) -> None:
        """For as long as a consumer of the queue lives; `owned` is its shards, and changes."""
        backoff = Backoff(_RETRY_S, _LONGEST_RETRY_S)
        while True:
            while not self.exist(queue):
                first = self._first.setdefault(queue, asyncio.Event())
                first.clear()
                await first.wait()
            try:
                waiting = await self.waiting(queue)
                assert waiting is not None
                waiting.changed.clear()
                at = await self.move(queue, waiting, owned)
                backoff.is_over()
            except BackendError as error:
                log.warning("cannot move delayed messages yet", extra={"queue": queue, "error": str(error)})
                await asyncio.sleep(backoff.next_s())
                continue
            wait_s = 1.0 if at is None else min(1.0, max(0.0, at - self._backend.now()))
            try:
                async with asyncio.timeout(wait_s):
                    await waiting.changed.wait()
            except TimeoutError:
                continue


def _record(message: KafkaMessage) -> Record:
    later = _read(message.value())
    return Record(
        later.id,
        later.key,
        later.body,
        later.type,
        later.sender,
        later.ttl_s,
        later.priority,
        later.replay,
        dedup_key=later.dedup_key,
    )
