"""The log of competing queues: what members say, in one order, and what has come of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec

from hivewire.backends.kafka.catalogue import Follower
from hivewire.backends.kafka.packing import KafkaMessage, stored_at
from hivewire.backends.kafka.sending import Item
from hivewire.rules.pool import Pool
from hivewire.rules.words import Heard, Word

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend
    from hivewire.backends.kafka.seat import Seat

log = logging.getLogger(__name__)

_PARTITIONS: Final = 4
_KEEP: Final = "kept"
"""The header of a record that holds the state of all queues of its partition, as of the offset that it names."""
_KEEP_EVERY: Final = 20_000
_MOST_ANSWERS: Final = 1_000


class _Said(msgspec.Struct, array_like=True, gc=False):
    queue: str
    word: Word


class _State(msgspec.Struct, array_like=True):
    """Of one partition, with all words up to and with this offset applied."""

    upto: int
    queues: Mapping[str, bytes]


_read = msgspec.msgpack.Decoder(_Said).decode
_read_state = msgspec.msgpack.Decoder(_State).decode
_write = msgspec.msgpack.Encoder().encode


def pool_of_moved(queue: str) -> str:
    """The name under which is said who runs what of partitions that have moved."""
    return f"~away/{queue}"


def pack_word(queue: str, word: Word) -> bytes:
    return _write(_Said(queue, word))


class ClaimsLog:
    """One partition, applied as far as it was read."""

    def __init__(self, backend: KafkaBackend, partition: int) -> None:
        self._backend = backend
        self.topic = backend.names.claims
        self.partition = partition
        self.pools: dict[str, Pool] = {}
        self.seats: dict[str, dict[str, Seat]] = {}
        """Those of this process, by queue and by name."""
        self._follower = Follower(backend, self.topic, partition, self._take, apart=True)
        self._answers: dict[int, Heard] = {}
        self._is_restored = False
        self._first = 0
        self._unread: list[KafkaMessage] = []
        """Words whose past was deleted: they count from the state on that was kept."""
        self._since_kept = 0
        self._keeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        place = (self.topic, self.partition)
        self._first = (await self._backend.admin.ends([place], first=True))[place]
        self._is_restored = self._first == 0
        await self._follower.open(self._first)

    async def catch_up(self) -> None:
        await self._follower.catch_up()
        if not self._is_restored:
            log.error(
                "the past of competing queues is gone: what was finished is handled again", extra={"topic": self.topic}
            )
            self._go_on_from(-1)

    def pool(self, queue: str) -> Pool:
        pool = self.pools.get(queue)
        if pool is None:
            settings = self._backend.settings
            windows = (settings.dedup_window_ids, settings.dedup_window_s, settings.idempotency_window_s)
            pool = self.pools[queue] = Pool(*windows)
        return pool

    async def say(self, queue: str, word: Word) -> Heard:
        """Returns when the word is in the log and was applied."""
        item = Item(self.topic, None, 0, self.partition, queue.encode(), pack_word(queue, word), None)
        offset = await self._backend.store_one(item)
        await self._follower.until(offset + 1)
        return self._answers.pop(offset, None) or Heard()

    def _take(self, message: KafkaMessage) -> None:
        if any(name == _KEEP for name, _ in message.headers() or ()):
            self._begin_with(message)
        elif self._is_restored:
            self._apply(message)
        else:
            self._unread.append(message)

    def _begin_with(self, message: KafkaMessage) -> None:
        self._since_kept = 0
        if self._is_restored:
            return
        state = _read_state(message.value())
        for queue, packed in state.queues.items():
            self.pool(queue).restore(packed, stored_at(message))
        self._go_on_from(state.upto)

    def _go_on_from(self, upto: int) -> None:
        self._is_restored = True
        unread, self._unread = self._unread, []
        for message in unread:
            if message.offset() > upto:
                self._apply(message)

    def _apply(self, message: KafkaMessage) -> None:
        try:
            said = _read(message.value() or b"")
        except msgspec.DecodeError:
            log.warning("not a word of a member", extra={"topic": self.topic, "offset": message.offset()})
            return
        at = stored_at(message)
        self._backend.not_before(at)
        heard = self.pool(said.queue).apply(said.word, message.offset(), at)
        self._since_kept += 1
        seats = self.seats.get(said.queue)
        if not seats:
            return
        mine = seats.get(said.word.member)
        if mine is not None:
            self._answers[message.offset()] = heard
            if len(self._answers) > _MOST_ANSWERS:
                del self._answers[next(iter(self._answers))]
        for seat in tuple(seats.values()):
            seat.heard(said.word, heard, is_mine=seat is mine)

    # -- giving back space

    def tidy(self) -> None:
        """Keep the state from time to time, so that nobody has to read the whole past."""
        if self._since_kept >= _KEEP_EVERY and self._is_restored and self._keeping is None:
            self._since_kept = 0
            loop = asyncio.get_running_loop()
            self._keeping = loop.create_task(self.keep(), name=f"keep the state of {self.topic}")
            self._keeping.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._keeping = None
        if not task.cancelled() and task.exception() is not None:
            log.warning("the past of competing queues stays for now", exc_info=task.exception())

    async def keep(self) -> None:
        state = _State(self._follower.reached - 1, {queue: pool.pack() for queue, pool in self.pools.items()})
        headers: list[tuple[str, str | bytes | None]] = [(_KEEP, b"1")]
        offset = await self._backend.store_one(Item(self.topic, None, 0, self.partition, None, _write(state), headers))
        assert offset > state.upto
        await self._backend.admin.delete_before({(self.topic, self.partition): state.upto + 1})

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)


class Claims:
    """The partitions of the log that this process follows."""

    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._logs: dict[int, ClaimsLog] = {}
        self._opening = asyncio.Lock()

    async def log_of(self, queue: str) -> ClaimsLog:
        """Read up to now."""
        kept = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
        count = await self._backend.topics.ensure_own(self._backend.names.claims, _PARTITIONS, kept)
        partition = crc32(queue.encode()) % count
        async with self._opening:
            found = self._logs.get(partition)
            if found is None:
                found = ClaimsLog(self._backend, partition)
                await found.open()
                self._logs[partition] = found
        await found.catch_up()
        return found

    async def made_anew(self, queue: str) -> None:
        """Its topic was: what was said of positions in the one before counts no more."""
        topic = await self._backend.admin.topic_id(self._backend.names.topic(queue))
        for name in (queue, pool_of_moved(queue)):
            found = await self.log_of(name)
            if found.pool(name).topic:
                await found.say(name, Word("", topic=topic))

    async def emptied(self, queue: str, before: Mapping[int, int]) -> None:
        """Of a competing queue, all before these positions was deleted on purpose: nobody misses it."""
        found = await self.log_of(queue)
        await found.say(queue, Word("", gone=list(before.items())))
        pool = found.pool(queue)
        await found.say(queue, Word("", gaps=[(shard, pool.low(shard), end) for shard, end in before.items()]))

    async def close(self) -> None:
        for one in self._logs.values():
            await one.stop()
        self._logs.clear()
